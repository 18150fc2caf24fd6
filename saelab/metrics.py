"""What a sparse autoencoder is judged by, as streaming accumulators: ``add_batch``, again and again, then ``compute``.

Sums are pooled over batches in float64. A mean of per-batch ratios is a different number: on one measured example it
gave a relative reconstruction bias of 0.839 where the pooled value was 0.997.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saelab.autoencoders import SparseAutoencoder, check_activations


def _rows(values: Tensor) -> Tensor:
    return values.detach().reshape(-1, values.shape[-1])


class L0:
    """Mean number of features that are on (code > 0) per input."""

    def __init__(self) -> None:
        self._n_on = 0
        self._n_rows = 0

    def add_batch(self, codes: Tensor) -> None:
        """Take in codes, ``(batch, d_sae)``."""
        rows = _rows(codes)
        self._n_on += int((rows > 0).sum())
        self._n_rows += len(rows)

    def compute(self) -> float:
        return self._n_on / self._n_rows if self._n_rows else float("nan")


class FeatureDensity:
    """How often each feature is on: the share of inputs, ``(d_sae,)``, float64. A feature that never was is dead."""

    def __init__(self) -> None:
        self._n_on: Tensor | None = None
        self._n_rows = 0

    def add_batch(self, codes: Tensor) -> None:
        """Take in codes, ``(batch, d_sae)``."""
        rows = _rows(codes)
        n_on = (rows > 0).sum(dim=0)
        self._n_on = n_on if self._n_on is None else self._n_on + n_on
        self._n_rows += len(rows)

    def compute(self) -> Tensor:
        if self._n_on is None:
            raise ValueError("no batch was added; call add_batch(codes) first")
        return self._n_on.double() / self._n_rows

    def n_dead(self) -> int:
        """Number of features that were on for no input at all."""
        return int((self.compute() == 0).sum())


class RelativeReconstructionBias:
    """gamma = argmin_g E||r / g - x||^2 = E||r||^2 / E[x . r] for a reconstruction r (paper, eq. 9-10 of version 2).

    Below 1 the reconstruction is too small (shrinkage); 1 is unbiased. NaN where E[x . r] is zero.
    """

    def __init__(self) -> None:
        self._rr = 0.0
        self._xr = 0.0

    def add_batch(self, x: Tensor, reconstruction: Tensor) -> None:
        """Take in activations and their reconstruction, both ``(batch, d_in)``."""
        x, r = _rows(x).double(), _rows(reconstruction).double()
        self._rr += float(r.square().sum())
        self._xr += float((x * r).sum())

    def compute(self) -> float:
        return self._rr / self._xr if self._xr else float("nan")


class FVU:
    """Fraction of variance unexplained: E||x - r||^2 / E||x - E[x]||^2. 0 is perfect, 1 no better than the mean."""

    def __init__(self) -> None:
        self._n = 0
        self._error = 0.0
        self._xx = 0.0
        self._sum: Tensor | float = 0.0

    def add_batch(self, x: Tensor, reconstruction: Tensor) -> None:
        """Take in activations and their reconstruction, both ``(batch, d_in)``."""
        x, r = _rows(x).double(), _rows(reconstruction).double()
        self._n += len(x)
        self._error += float((x - r).square().sum())
        self._xx += float(x.square().sum())
        self._sum = self._sum + x.sum(dim=0)

    def compute(self) -> float:
        if not self._n:
            return float("nan")
        variance = self._xx - float(torch.as_tensor(self._sum).square().sum()) / self._n
        return self._error / variance if variance > 0 else float("nan")


class SAEMetrics(NamedTuple):
    """What `evaluate` returns."""

    l0: float
    """Mean number of features on per input."""
    fvu: float
    """Fraction of variance unexplained."""
    gamma: float
    """Relative reconstruction bias; below 1 is shrinkage."""
    n_dead: int
    """Features on for none of these inputs."""


@torch.no_grad()
def evaluate(sae: SparseAutoencoder, activations: Tensor, *, batch_size: int = 4096) -> SAEMetrics:
    """Metrics of ``sae`` over ``activations``, ``(n, d_in)``, batch by batch.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width, or hold NaN.
    """
    check_activations(activations, sae.d_in)
    l0, density, gamma, fvu = L0(), FeatureDensity(), RelativeReconstructionBias(), FVU()
    for first in range(0, len(activations), batch_size):
        x = activations[first : first + batch_size].to(device=sae.W_enc.device, dtype=sae.W_enc.dtype)
        codes = sae.encode(x)
        reconstruction = sae.decode(codes)
        l0.add_batch(codes)
        density.add_batch(codes)
        gamma.add_batch(x, reconstruction)
        fvu.add_batch(x, reconstruction)
    return SAEMetrics(l0.compute(), fvu.compute(), gamma.compute(), density.n_dead())
