"""Loss and all gradients of a gate with a linear magnitude, on the active entries alone and without autograd.

For codes ``(pi > gate_threshold) * relu(slope * u + shift)``, where ``u = (x - b_dec) @ W_enc`` and ``pi = u +
gate_bias``, and a loss of the reconstruction error, an L1 penalty on ``relu(pi)`` and the error with which ``relu(pi)``
reconstructs: standard, gated and rescale-and-shift SAEs (paper, eq. 1-8). An operator of autograd takes tens of
microseconds, whatever the size; at a tutorial's size a step of some hundred of them spends most of its time there.
Values and gradients are those of `SparseAutoencoder.training_pass`.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saelab.sae import workers
from saelab.sae.sparse import Search, rows_of


class GateLoss(NamedTuple):
    """A loss that this module can take; tensors are ``(d_sae,)``."""

    gate_bias: Tensor
    slope: Tensor
    shift: Tensor
    norms: Tensor | None
    """Live norms of the decoder's rows, where they weight the L1 penalty."""
    auxiliary: bool
    """Whether relu(pi) shall reconstruct, too."""
    live: bool
    """Whether that term trains ``W_dec`` and ``b_dec``."""


class Sums(NamedTuple):
    """Sums over a batch in float64."""

    n_on: float
    penalty: float
    error: float
    auxiliary_error: float
    xx: float
    xe: float


class Learnt(NamedTuple):
    """What one pass found; the gradients of ``W_enc``, ``W_dec`` and ``b_dec`` are in these."""

    gate_bias: Tensor
    """Gradient with respect to it, ``(d_sae,)``."""
    slope: Tensor
    shift: Tensor

    sums: Sums
    sum_x: Tensor
    """``(d_in,)``, float64."""
    fired: Tensor
    """``(d_sae,)``, boolean."""


@torch.no_grad()
def learn(
    search: Search,
    x: Tensor,
    b_dec: nn.Parameter,
    W_enc: nn.Parameter,
    W_dec: nn.Parameter,
    loss: GateLoss,
    *,
    threshold: float,
    sparsity: float,
    auxiliary: float,
    share: float,
) -> Learnt | None:
    """Gradients of ``share * (error + sparsity * L1 + auxiliary * auxiliary error)``, averaged over ``x`` (n, d_in).

    They are set, not added. None where ``search`` finds too many entries.
    """
    loops = workers.loops()
    (n, d_in), d_sae = x.shape, len(loss.gate_bias)
    kind = x.numpy().dtype
    number = functools.partial(workers.number, kind=kind)
    gate_bias, slope, shift = (tensor.detach().numpy() for tensor in loss[:3])
    weights = np.ones_like(shift) if loss.norms is None else loss.norms.numpy()
    encoder, decoder = W_enc.detach().T.numpy(), W_dec.detach().numpy()
    codes, d_codes, d_pi = (np.empty(len(search.values), kind) for _ in range(3))
    residual = np.empty((n, d_in), kind)
    frozen = np.empty((n, d_in) if loss.auxiliary else (n, 0), kind)
    n_parts = len(workers.parts_of(n))
    sums, fired = np.empty((n_parts, 6)), np.zeros(d_sae, np.bool_)
    sum_x, sum_residual, sum_frozen = np.empty((3, n_parts, d_in))
    to_error, to_auxiliary = number(2 * share / n), number(2 * share * auxiliary / n)
    rows = (
        x.numpy(), decoder, b_dec.detach().numpy(), gate_bias, slope, shift, weights, number(threshold), loss.auxiliary,
        to_error, number(share * sparsity / n), to_auxiliary,
        codes, d_codes, d_pi, residual, frozen, sums, sum_x, sum_residual, sum_frozen, fired,
    )  # fmt: skip
    of_rows = (*search.arguments, *rows)

    def learn_rows(first: int, last: int, part: int) -> None:
        if search.product(first, last):  # whose part is still in this core's cache
            loops.learn_rows(first, last, part, *of_rows)

    workers.run(n * d_sae * d_in, (learn_rows, n))
    n_active = search.n_found
    if n_active is None:
        return None
    column_starts = np.empty(d_sae + 1, np.int64)
    order, of_row = np.empty(n_active, np.int32), np.empty(n_active, np.int32)
    gathered, to_encoder = np.empty(n_active, kind), np.empty(n_active, kind)
    loops.by_column(search.starts, search.ends, search.columns, column_starts, order, of_row)
    d_W_enc = np.empty((d_sae, d_in) if W_enc.requires_grad else (0, d_in), kind)
    d_W_dec = np.empty((d_sae, d_in) if W_dec.requires_grad else (0, d_in), kind)
    d_gate, d_slope, d_shift, positive = (np.empty(d_sae, kind) for _ in range(4))
    d_b_dec = np.empty((len(workers.parts_of(d_sae)), d_in), kind)
    of_features = (
        column_starts, order, of_row, search.values, codes, d_codes, d_pi, gate_bias, slope, to_error, to_auxiliary,
        residual, frozen, rows_of(search.xc), encoder, gathered, to_encoder,
        W_enc.requires_grad, W_dec.requires_grad, loss.live, d_W_enc, d_W_dec,
        d_gate, d_slope, d_shift, positive, d_b_dec,
    )  # fmt: skip
    workers.run(2 * n_active * d_in, (lambda *part: loops.learn_features(*part, *of_features), d_sae))
    if W_enc.requires_grad:
        W_enc.grad = torch.from_numpy(d_W_enc).T
    if W_dec.requires_grad:
        W_dec.grad = torch.from_numpy(d_W_dec)
    trains_b_dec = to_auxiliary if loss.live else number(0)
    loops.add_parts(to_error, trains_b_dec, sums, sum_x, sum_residual, sum_frozen, d_b_dec)
    if b_dec.requires_grad:
        b_dec.grad = torch.from_numpy(d_b_dec[0])
    if loss.norms is not None and W_dec.grad is not None:
        by_norm = torch.from_numpy(positive * number(share * sparsity / n)) / loss.norms
        W_dec.grad.addcmul_(by_norm[:, None], W_dec)
    return Learnt(
        torch.from_numpy(d_gate),
        torch.from_numpy(d_slope),
        torch.from_numpy(d_shift),
        Sums(*sums[0].tolist()),
        torch.from_numpy(sum_x[0]),
        torch.from_numpy(fired),
    )
