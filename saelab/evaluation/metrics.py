"""What a sparse autoencoder is judged by, as streaming accumulators: ``add_batch``, again and again, then ``compute``.

Sums are pooled over batches in float64. A mean of per-batch ratios is a different number: on one measured example it
gave a relative reconstruction bias of 0.839 where the pooled value was 0.997.

Throughout, x is an input, r its reconstruction, and E the mean over all inputs that were added.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations
from saelab.data.shards import StoredRows
from saelab.errors import InputError
from saelab.quantities import (
    QUANTITIES,
    Spread,
    as_line,
    as_table,
    fvu,
    gamma,
    gamma_v1,
    norm_ratio,
    projection,
    where_float64_is,
)
from saelab.sae.base import SparseAutoencoder, check_activations

BiasFormula = Literal["corrected", "v1", "projection", "norm_ratio"]


def _rows(values: Tensor) -> Tensor:
    return where_float64_is(values.detach().reshape(-1, values.shape[-1]))


class _Pooled:
    """Sums over inputs, by name. They stay on the data's device, so that adding a batch waits for nothing."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: dict[str, Tensor] = {}

    def _pool(self, n: int, **sums: Tensor) -> None:
        self._n += n
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _mean(self, name: str) -> float:
        return float(self._sums[name]) / self._n if self._n else math.nan


class L0(_Pooled):
    """Mean number of features that are on (code > 0) per input. NaN before the first batch."""

    def add_batch(self, codes: Tensor) -> None:
        """Take in codes, ``(batch, d_sae)``."""
        rows = _rows(codes)
        self._pool(len(rows), on=(rows > 0).sum())

    def compute(self) -> float:
        return self._mean("on")


class L1(_Pooled):
    """Mean over inputs of the sum of codes, E||codes||_1, in units of the activations. NaN before the first batch.

    It compares SAEs only where their decoder rows have the same norms: halved rows and doubled codes decode alike.
    """

    def add_batch(self, codes: Tensor) -> None:
        """Take in codes, ``(batch, d_sae)``."""
        rows = _rows(codes)
        self._pool(len(rows), l1=torch.linalg.vector_norm(rows, ord=1, dtype=torch.float64))

    def compute(self) -> float:
        return self._mean("l1")


class FeatureDensity(_Pooled):
    """How often each feature is on: the share of inputs, ``(d_sae,)``, float64. A feature that never was is dead."""

    def add_batch(self, codes: Tensor) -> None:
        """Take in codes, ``(batch, d_sae)``."""
        rows = _rows(codes)
        self._pool(len(rows), on=(rows > 0).sum(dim=0))

    def compute(self) -> Tensor:
        if not self._n:
            raise InputError("no batch was added; call add_batch(codes) first")
        return self._sums["on"].double() / self._n

    def n_dead(self) -> int:
        """Number of features that were on for no input at all."""
        return int((self.compute() == 0).sum())


class _Reconstruction(_Pooled):
    """The sums from which every metric of a reconstruction follows."""

    def __init__(self) -> None:
        super().__init__()
        self._spread: Spread | None = None

    def add_batch(self, x: Tensor, reconstruction: Tensor) -> None:
        """Take in activations and their reconstruction, both ``(batch, d_in)``; a ValueError where shapes differ."""
        if x.shape != reconstruction.shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but its reconstruction {tuple(reconstruction.shape)}; "
                "give one reconstruction an input, of the same width"
            )
        x, r = _rows(x).double(), _rows(reconstruction).double()
        xx, rr, xr = ((a * b).sum(dim=1) for a, b in ((x, x), (r, r), (x, r)))
        x_norm, r_norm = xx.sqrt(), rr.sqrt()
        norms = x_norm * r_norm
        self._pool(
            len(x),
            xx=xx.sum(),
            rr=rr.sum(),
            xr=xr.sum(),
            error=(x - r).square().sum(),
            x_norm=x_norm.sum(),
            r_norm=r_norm.sum(),
            cosine=torch.where(norms == 0, 0.0, xr / norms).sum(),
        )
        if len(x):
            of_batch = Spread.of(x)
            self._spread = of_batch if self._spread is None else Spread.pooled([self._spread, of_batch])

    def _fvu(self) -> float:
        return math.nan if self._spread is None else fvu(self._mean("error"), float(self._spread.variance))

    def _cosine_similarity(self) -> float:
        return self._mean("cosine")

    def _bias(self, formula: BiasFormula) -> float:
        xx, rr, xr, x_norm, r_norm = (self._mean(name) for name in ("xx", "rr", "xr", "x_norm", "r_norm"))
        return {
            "corrected": gamma(rr, xr),
            "v1": gamma_v1(rr, xr),
            "projection": projection(xr, xx),
            "norm_ratio": norm_ratio(r_norm, x_norm),
        }[formula]


class FVU(_Reconstruction):
    """Fraction of variance unexplained: E||x - r||^2 / E||x - E[x]||^2. 0 is perfect, 1 no better than the mean.

    NaN where all inputs are the same, or none was added.
    """

    def compute(self) -> float:
        return self._fvu()


class CosineSimilarity(_Reconstruction):
    """Mean over inputs of the cosine between x and r: 1 where all point the same way, whatever their lengths.

    A zero vector points nowhere: where x or r is zero, the input counts as 0. NaN before the first batch.
    """

    def compute(self) -> float:
        return self._cosine_similarity()


class RelativeReconstructionBias(_Reconstruction):
    """gamma = argmin_g E||r / g - x||^2 = E||r||^2 / E[x . r] for a reconstruction r, and three numbers it is not.

    Below 1 the reconstruction is too small (shrinkage); 1 is unbiased. NaN where a formula's denominator is zero, and
    for ``"v1"`` also where it is negative; so for all of them before the first batch.

    Parameters
    ----------
    formula
        - ``"corrected"``: E||r||^2 / E[x . r], gamma itself (arXiv 2404.16014v2, eq. 9-10).
        - ``"v1"``: sqrt(E||r||^2 / (E||x||^2 - E||x - r||^2)), which version 1 of that paper printed. It equals
          sqrt(gamma / (2 - gamma)): right at gamma = 1 and too great elsewhere, by about (1 - gamma)^2 / 2.
        - ``"projection"``: E[x . r] / E||x||^2 = argmin_g E||r - g x||^2: the regression the other way round. It also
          falls with every direction that the reconstruction misses.
        - ``"norm_ratio"``: E||r|| / E||x||. About 0.71 for an orthogonal projection onto half the dimensions of white
          data, which shrinks nothing.

    Raises
    ------
    ValueError
        For another formula.
    """

    def __init__(self, formula: BiasFormula = "corrected") -> None:
        super().__init__()
        if formula not in get_args(BiasFormula):
            raise InputError(f"formula must be one of {', '.join(get_args(BiasFormula))}, not {formula!r}")
        self.formula: BiasFormula = formula

    def compute(self) -> float:
        return self._bias(self.formula)


def relative_reconstruction_bias(x: Tensor, reconstruction: Tensor, formula: BiasFormula = "corrected") -> float:
    """`RelativeReconstructionBias` of one batch: ``x`` and ``reconstruction``, both ``(batch, d_in)``.

    Examples
    --------
    >>> x = torch.ones(1, 1)
    >>> relative_reconstruction_bias(x, x / 2), relative_reconstruction_bias(x, x / 2, "v1")
    (0.5, 0.5773502691896257)
    """
    bias = RelativeReconstructionBias(formula)
    bias.add_batch(x, reconstruction)
    return bias.compute()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SAEMetrics:
    """What `evaluate` returns. Printed, it is a table; `as_dict` is a row of a DataFrame.

    Each number's meaning, label and colour stand in `saelab.quantities`, and it is computed in `_Streamed`.
    """

    l0: float
    """Mean number of features on per input."""
    l1: float
    """Mean sum of codes per input, in units of the activations."""
    fvu: float
    """Fraction of variance unexplained, E||x - r||^2 / E||x - E[x]||^2."""
    cosine_similarity: float
    """Mean cosine between x and r; 0 counts for an input where either is zero."""
    gamma: float
    """Relative reconstruction bias, E||r||^2 / E[x . r]; below 1 is shrinkage."""
    norm_ratio: float
    """E||r|| / E||x||, which some libraries call shrinkage."""
    n_dead: int
    """Features on for none of these inputs."""
    n_inputs: int
    """Activations that were measured."""
    density: Tensor
    """``(d_sae,)``, float64: the share of inputs for which each feature is on."""

    def as_dict(self) -> dict[str, float | int]:
        """Every number by name, without `density`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "density"}

    def __str__(self) -> str:
        n_dead = f"of {len(self.density):,} features, {QUANTITIES['n_dead'].meaning}"
        return as_table(self.as_dict(), ".4g", {"n_dead": n_dead})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({as_line(self.as_dict(), '.4g')})"


METRICS = tuple(field.name for field in fields(SAEMetrics) if field.name != "density")
"""Names of the numbers that `evaluate` gives."""


class _Streamed:
    """What `evaluate` sums up over batches. A new metric is added here and as a field of `SAEMetrics`."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self.n_inputs = 0
        self.l1, self.density, self.reconstruction = L1(), FeatureDensity(), _Reconstruction()

    def add_batch(self, x: Tensor, codes: Tensor, reconstruction: Tensor) -> None:
        """Take in inputs and reconstruction, ``(batch, d_in)``, and codes, ``(batch, d_sae)``."""
        self.n_inputs += len(x)
        self.l1.add_batch(codes)
        self.density.add_batch(codes)
        self.reconstruction.add_batch(x, reconstruction)

    def compute(self) -> SAEMetrics:
        density = self.density.compute().cpu()
        return SAEMetrics(
            l0=float(density.sum()),
            l1=self.l1.compute(),
            fvu=self.reconstruction._fvu(),
            cosine_similarity=self.reconstruction._cosine_similarity(),
            gamma=self.reconstruction._bias("corrected"),
            norm_ratio=self.reconstruction._bias("norm_ratio"),
            n_dead=self.density.n_dead(),
            n_inputs=self.n_inputs,
            density=density,
        )


def _batches(chunks: Iterable[Tensor], d_in: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of at most ``batch_size`` inputs, ``(batch, d_in)``, each checked as it comes: all may exceed RAM."""
    for chunk in chunks:
        if not isinstance(chunk, Tensor) or chunk.ndim == 0 or chunk.numel() == 0:
            check_activations(chunk, d_in)  # raises, with the sentence
        for batch in torch.split(chunk.reshape(-1, chunk.shape[-1]), batch_size):
            check_activations(batch, d_in)
            yield batch


@torch.no_grad()
def evaluate(
    sae: SparseAutoencoder,
    activations: Activations,
    *,
    batch_size: int = 4096,
    progress: bool = False,
) -> SAEMetrics:
    """All metrics of ``sae`` over ``activations``, in one pass, batch by batch.

    Parameters
    ----------
    sae
        Measured as it stands, with its `gate_threshold`.
    activations
        ``(n, d_in)``, an `ActivationStore`, or any iterable of batches ``(batch, d_in)``, such as a generator; scaled
        as those that the SAE was trained on.
    batch_size
        Inputs at a time, at most.
    progress
        Show a bar.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width, or hold NaN; a batch size below 1.

    Examples
    --------
    >>> print(evaluate(sae, store))
    >>> pd.DataFrame([evaluate(sae, store).as_dict() for sae in saes])
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    rows = activations.activations if isinstance(activations, ActivationStore) else activations
    if isinstance(rows, Tensor):
        chunks: Iterable[Tensor] = [rows]
    elif isinstance(rows, StoredRows):
        chunks = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    else:
        chunks = rows
    total = math.prod(rows.shape) // sae.d_in if isinstance(rows, Tensor | StoredRows) else None
    streamed = _Streamed(sae)
    with tqdm(total=total, desc="evaluating", unit="input", leave=False, disable=not progress) as bar:
        for batch in _batches(chunks, sae.d_in, batch_size):
            x = batch.to(device=sae.W_enc.device, dtype=sae.W_enc.dtype)
            codes = sae.encode(x)
            streamed.add_batch(x, codes, sae.decode(codes))
            bar.update(len(x))
    if not streamed.n_inputs:
        raise InputError("activations are empty: an iterable without a batch; a generator can be read only once")
    return streamed.compute()
