"""What an SAE would be at other gate thresholds, without encoding anew for each."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saelab.errors import InputError
from saelab.quantities import Spread, fvu, gamma, where_float64_is
from saelab.sae.base import SparseAutoencoder, check_activations
from saelab.sae.elementwise import ElementwiseSAE, elementwise
from saelab.sae.sparse import Pattern

if TYPE_CHECKING:
    import pandas as pd

BATCH = 1024
"""Rows at a time: their pre-activations are in memory, ``(batch, d_sae)``."""


@torch.no_grad()
def threshold_curves(
    sae: SparseAutoencoder, x: Tensor, thresholds: Sequence[float], *, natural: float = 0.0
) -> "pd.DataFrame":
    """L0, gamma and FVU of ``sae`` at each gate threshold: what `evaluate` says, but from one encoder matmul.

    Falling from one threshold to the next, the codes gain only the entries between the two, and so does the
    reconstruction: all thresholds together cost about as much as the lowest alone.

    Parameters
    ----------
    sae
        An SAE with a gate threshold; the one that is set plays no part.
    x
        Activations, ``(n, d_in)``, scaled as those that the SAE was trained on.
    thresholds
        Gate thresholds to try, in any order.
    natural
        How far to move the magnitude's shift from the learned one, 0, to none, 1, where magnitudes start from 0 at the
        gate (`SparseAutoencoder.magnitude_line`).

    Returns
    -------
    DataFrame
        A row a threshold, in the order given: ``threshold``, ``l0``, ``gamma``, ``fvu``.

    Raises
    ------
    TypeError, ValueError
        Activations like `check_activations`; no threshold, or NaN among them; ``natural`` outside of 0 to 1, or above 0
        with untied encoders.

    Examples
    --------
    >>> threshold_curves(sae, x, [0.0, 0.5, 1.0]).plot(x="threshold", y="fvu")
    """
    import pandas as pd

    sae = elementwise(sae, "a curve over gate thresholds")
    check_activations(x, sae.d_in)
    if not 0 <= natural <= 1:
        raise InputError(f"natural must lie between 0 (as learned) and 1 (no shift), not {natural}")
    if len(thresholds) == 0 or any(math.isnan(threshold) for threshold in thresholds):
        raise InputError(f"thresholds must be at least one number, and none NaN, not {thresholds}")
    W = where_float64_is(sae.W_enc)
    if W.device != sae.W_enc.device:  # that device has no sparse matmuls either
        sae = copy.deepcopy(sae).to(W.device)
    levels, places = torch.as_tensor(thresholds, dtype=W.dtype, device=W.device).sort(descending=True)
    on, rr, xr, ee = (torch.zeros(len(levels), dtype=torch.float64) for _ in range(4))
    rows = x.reshape(-1, sae.d_in)
    spreads = []
    for part in torch.split(rows, BATCH):
        inputs = part.to(W)
        exact = inputs.double()
        spreads.append(Spread.of(inputs))
        residual = torch.empty_like(exact)
        reconstruction = sae.b_dec.double().repeat(len(inputs), 1)
        for step, (n_more, more) in enumerate(_increments(sae, inputs, levels, natural)):
            if more is not None:
                reconstruction += more.double()
            on[step] += n_more
            rr[step] += float(reconstruction.flatten().dot(reconstruction.flatten()))
            xr[step] += float(reconstruction.flatten().dot(exact.flatten()))
            torch.sub(reconstruction, exact, out=residual)
            ee[step] += float(residual.flatten().dot(residual.flatten()))
    n = len(rows)
    unexplained = fvu(ee / n, Spread.pooled(spreads).variance.cpu())
    order = places.argsort().cpu()
    numbers = {"l0": on.cumsum(0) / n, "gamma": gamma(rr, xr), "fvu": unexplained}
    columns = {name: values[order].numpy() for name, values in numbers.items()}
    return pd.DataFrame({"threshold": [float(threshold) for threshold in thresholds], **columns})


def _increments(sae: ElementwiseSAE, x: Tensor, levels: Tensor, natural: float) -> Iterator[tuple[int, Tensor | None]]:
    """For each level, falling: how many entries are on that were not before, and what they add, ``(n, d_in)``."""
    gates = Gates(sae, x)
    pi_gate, magnitude = gates.pi_gate, gates.magnitude(natural)
    flat = sae.codes_at(levels[-1], pi_gate, magnitude).flatten().nonzero().squeeze(1)
    values = magnitude.flatten()[flat]
    # The number of levels at or above a pre-activation is the first level at which it is on.
    first = torch.searchsorted(levels.flip(0), pi_gate.flatten()[flat])
    first = len(levels) - first
    order = first.argsort(stable=True)
    counts = torch.bincount(first, minlength=len(levels)).tolist()
    W_dec = sae.W_dec.to(torch.promote_types(sae.W_dec.dtype, torch.float32))  # no half precision in sparse matmuls
    for chosen in torch.split(order, counts):
        if len(chosen) == 0:
            yield 0, None
            continue
        pattern = Pattern.at(flat[chosen], len(x), sae.d_sae)
        yield len(chosen), pattern.matmul(values[chosen].to(W_dec), W_dec)


class Gates:
    """An SAE's gates and magnitudes on some activations: its codes at any gate threshold, without encoding anew.

    Parameters
    ----------
    sae
        An SAE with a gate threshold, which plays no part; a TypeError for any other.
    x
        Activations, ``(n, d_in)``.
    """

    @torch.no_grad()
    def __init__(self, sae: SparseAutoencoder, x: Tensor) -> None:
        self.sae = elementwise(sae, "a look at other thresholds")
        entries = self.sae.project(x)
        self.pi_gate = self.sae.gate(entries)
        """``(n, d_sae)``."""
        self._learned = self.sae.magnitude(entries, self.pi_gate)

    @torch.no_grad()
    def magnitude(self, natural: float = 0.0) -> Tensor:
        """``(n, d_sae)``: what codes are where features are on; ``natural`` as in `threshold_curves`."""
        if not natural:
            return self._learned
        slope, shift = self.sae.magnitude_line()
        return (slope * self.pi_gate + (1 - natural) * shift).relu()

    def codes(self, gate_threshold: float, natural: float = 0.0) -> Tensor:
        """``(n, d_sae)``."""
        return self.sae.codes_at(gate_threshold, self.pi_gate, self.magnitude(natural))


@torch.no_grad()
def with_thresholds(
    sae: SparseAutoencoder,
    *,
    gate_threshold: float = 0.0,
    natural: float = 0.0,
    own_thresholds: Mapping[int, float] | None = None,
) -> ElementwiseSAE:
    """A copy of ``sae`` with another gate threshold, nearly natural magnitudes, and thresholds of features' own.

    Parameters
    ----------
    gate_threshold
        Of the copy; that of ``sae`` plays no part.
    natural
        As in `threshold_curves`.
    own_thresholds
        By feature, what is added to the gate threshold for it alone; its magnitude stays the same function of its gate
        pre-activation. A standard SAE has no parameter for it: the copy is then the `JumpReLUSAE` that it amounts to.

    Raises
    ------
    TypeError, ValueError
        An SAE without a gate threshold, or without a parameter for what is asked; ``natural`` above 0 with untied
        encoders.
    """
    moved = copy.deepcopy(elementwise(sae, "a copy with other thresholds"))
    moved.gate_threshold = 0.0
    own = torch.zeros_like(moved.gate_bias)
    for feature, threshold in (own_thresholds or {}).items():
        own[feature] = threshold
    shift = moved.magnitude_line()[1] if natural else None
    if own_thresholds:
        moved = moved.with_own_thresholds(own)
    if shift is not None:
        moved = moved.with_shifted_magnitudes(-natural * shift)
    moved.gate_threshold = gate_threshold
    return moved
