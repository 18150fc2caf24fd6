"""What an SAE would be at other gate thresholds, without encoding anew for each."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saelab.quantities import fvu, gamma
from saelab.sae.base import SparseAutoencoder, check_activations
from saelab.sae.gated import GatedSAE
from saelab.sae.jumprelu import JumpReLUSAE
from saelab.sae.rescale_shift import RescaleShiftSAE
from saelab.sae.sparse import Pattern
from saelab.sae.standard import StandardSAE

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
        Its own `gate_threshold` plays no part.
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

    check_activations(x, sae.d_in)
    if not 0 <= natural <= 1:
        raise ValueError(f"natural must lie between 0 (as learned) and 1 (no shift), not {natural}")
    if len(thresholds) == 0 or any(math.isnan(threshold) for threshold in thresholds):
        raise ValueError(f"thresholds must be at least one number, and none NaN, not {thresholds}")
    W = sae.W_enc
    levels, places = torch.as_tensor(thresholds, dtype=W.dtype, device=W.device).sort(descending=True)
    on, rr, xr = (torch.zeros(len(levels), dtype=torch.float64) for _ in range(3))
    rows = x.reshape(-1, sae.d_in)
    xx, mean = 0.0, torch.zeros(sae.d_in, dtype=torch.float64)
    for part in torch.split(rows, BATCH):
        inputs = part.to(W)
        exact = _double(inputs)
        xx += float(exact.square().sum())
        mean += exact.sum(dim=0).cpu() / len(rows)
        reconstruction = _double(sae.b_dec).repeat(len(inputs), 1)
        for step, (n_more, more) in enumerate(_increments(sae, inputs, levels, natural)):
            if more is not None:
                reconstruction += _double(more)
            on[step] += n_more
            rr[step] += float(reconstruction.flatten().dot(reconstruction.flatten()))
            xr[step] += float(reconstruction.flatten().dot(exact.flatten()))
    n = len(rows)
    l0, rr, xr, xx = on.cumsum(0) / n, rr / n, xr / n, xx / n
    unexplained = fvu(xx - 2 * xr + rr, torch.full_like(rr, xx), mean.square().sum())
    order = places.argsort().cpu()
    numbers = {"l0": l0, "gamma": gamma(rr, xr), "fvu": unexplained}
    columns = {name: values[order].numpy() for name, values in numbers.items()}
    return pd.DataFrame({"threshold": [float(threshold) for threshold in thresholds], **columns})


def _increments(
    sae: SparseAutoencoder, x: Tensor, levels: Tensor, natural: float
) -> Iterator[tuple[int, Tensor | None]]:
    """For each level, falling: how many entries are on that were not before, and what they add, ``(n, d_in)``."""
    entries = sae.project(x)
    pi_gate = sae.gate(entries)
    if natural:
        slope, shift = sae.magnitude_line()
        magnitude = (slope * pi_gate + (1 - natural) * shift).relu()
    else:
        magnitude = sae.magnitude(entries, pi_gate)
    flat = ((pi_gate > levels[-1]) & (magnitude > 0)).flatten().nonzero().squeeze(1)
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


@torch.no_grad()
def with_thresholds(
    sae: SparseAutoencoder,
    *,
    gate_threshold: float = 0.0,
    natural: float = 0.0,
    own_thresholds: Mapping[int, float] | None = None,
) -> SparseAutoencoder:
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
    ValueError
        ``natural`` above 0 with untied encoders.
    """
    moved = copy.deepcopy(sae)
    own = torch.zeros_like(sae.gate_bias)
    for feature, threshold in (own_thresholds or {}).items():
        own[feature] = threshold
    if isinstance(moved, StandardSAE) and own.any():
        moved = _as_jumprelu(moved)
    moved.gate_threshold = gate_threshold
    by = -natural * sae.magnitude_line()[1] if natural else torch.zeros_like(own)
    if isinstance(moved, GatedSAE):
        moved.b_mag.add_(by)
        moved.b_gate.sub_(own)
    elif isinstance(moved, RescaleShiftSAE):
        moved.b_mag.add_(by + moved.r_mag.exp() * own)
        moved.b_enc.sub_(own)
    elif isinstance(moved, JumpReLUSAE):
        moved.b_enc.add_(by)
        moved.threshold.add_(by + own)
    return moved


def _as_jumprelu(sae: StandardSAE) -> JumpReLUSAE:
    W = sae.W_enc
    jumprelu = JumpReLUSAE(sae.d_in, sae.d_sae, preset=sae.preset, device=W.device, dtype=W.dtype)
    for name, parameter in sae.named_parameters():
        jumprelu.get_parameter(name).copy_(parameter)
    jumprelu.trained_on = sae.trained_on
    return jumprelu


def _double(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()
