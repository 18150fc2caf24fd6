"""Loss and all gradients of a gate with a linear magnitude, without autograd, on the active entries if they are few.

For codes ``(pi > gate_threshold) * relu(slope * u + shift)``, where ``u = (x - b_dec) @ W_enc`` and ``pi = u +
gate_bias``, and a loss of the reconstruction error, an L1 penalty on ``relu(pi)`` and the error with which ``relu(pi)``
reconstructs: standard (paper, eq. 1-4), gated (eq. 6-8) and rescale-and-shift SAEs (section 5.2). An operator of
autograd takes tens of microseconds, whatever the size; at a tutorial's size a step of some hundred of them spends most
of its time there. Values and gradients are those of `SparseAutoencoder.training_pass`.
"""

import functools
from typing import Any, NamedTuple, Self

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
    rr: float
    """Of the reconstruction r, as the next."""
    xr: float
    squares: float
    """Of `Spread`."""


class Learnt(NamedTuple):
    """What one pass found; the gradients of ``W_enc``, ``W_dec`` and ``b_dec`` are in these."""

    gate_bias: Tensor
    """Gradient with respect to it, ``(d_sae,)``."""
    slope: Tensor
    shift: Tensor

    sums: Sums
    mean: Tensor
    """Of x; ``(d_in,)``, float64."""
    fired: Tensor
    """``(d_sae,)``, boolean."""


class Gradients(NamedTuple):
    """Of the loss with respect to the features' weights, features first; empty where such a weight is not trained."""

    W_enc: Any
    W_dec: Any
    gate_bias: Any
    """``(parts, d_sae)``, as the next three."""
    slope: Any
    shift: Any
    positive: Any
    """No gradient: relu(pi), summed over the batch."""
    b_dec: Any
    """``(parts, d_in)``: what goes through the encoder."""

    @classmethod
    def empty(
        cls, W_enc: nn.Parameter, W_dec: nn.Parameter, kind: Any, *, feature_parts: int, b_dec_parts: int
    ) -> Self:
        """With sums over the features' entries in so many parts, ``(parts, d_sae)``."""
        d_in, d_sae = W_enc.shape
        of_weights = ((d_sae if W.requires_grad else 0, d_in) for W in (W_enc, W_dec))
        shapes = (*of_weights, *[(feature_parts, d_sae)] * 4, (b_dec_parts, d_in))
        return cls(*(np.empty(shape, kind) for shape in shapes))


class Pass(NamedTuple):
    """What the sparse and the dense way share: arrays of one pass, and the factors of the loss's terms."""

    x: Any
    decoder: Any
    b_dec: Any
    wide_b_dec: Any
    """In float64, as the next."""
    reference: Any
    """``x[0]``."""
    gate_bias: Any
    slope: Any
    shift: Any
    weights: Any
    """Of the features in the L1 penalty."""
    threshold: Any
    auxiliary: bool
    to_error: Any
    to_sparsity: Any
    to_auxiliary: Any
    residual: Any
    frozen: Any
    sums: Any
    """``(parts, 7)``: `Sums` of each part."""
    sum_away: Any
    """Of ``x - reference``; ``(parts, d_in)``, as the next two."""
    sum_residual: Any
    sum_frozen: Any


Trained = tuple[nn.Parameter, nn.Parameter, nn.Parameter]
"""``W_enc``, ``W_dec`` and ``b_dec``."""


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
) -> Learnt:
    """Gradients of ``share * (error + sparsity * L1 + auxiliary * auxiliary error)``, averaged over ``x`` (n, d_in).

    They are set, not added. Where ``search`` finds too many entries, all are taken.
    """
    loops = workers.loops()
    (n, d_in), n_parts = x.shape, len(workers.parts_of(len(x)))
    rows, offset = x.numpy(), b_dec.detach().numpy()
    kind = rows.dtype
    number = functools.partial(workers.number, kind=kind)
    gate_bias, slope, shift = (tensor.detach().numpy() for tensor in loss[:3])
    weights = np.ones_like(shift) if loss.norms is None else loss.norms.numpy()
    given = Pass(
        rows, W_dec.detach().numpy(), offset, offset.astype(np.float64), rows[0].astype(np.float64),
        gate_bias, slope, shift, weights, number(threshold), loss.auxiliary,
        number(2 * share / n), number(share * sparsity / n), number(2 * share * auxiliary / n),
        np.empty((n, d_in), kind), np.empty((n, d_in if loss.auxiliary else 0), kind),
        np.empty((n_parts, len(Sums._fields))), *np.empty((3, n_parts, d_in)),
    )  # fmt: skip
    trained = W_enc, W_dec, b_dec
    found = _learn_active(search, given, trained, live=loss.live)
    gradients, fired = found or _learn_all(search, given, trained, live=loss.live)
    if W_enc.requires_grad:
        W_enc.grad = torch.from_numpy(gradients.W_enc).T
    if W_dec.requires_grad:
        W_dec.grad = torch.from_numpy(gradients.W_dec)
    trains_b_dec = given.to_auxiliary if loss.live else number(0)
    loops.add_parts(
        n, given.reference, given.to_error, trains_b_dec,
        given.sums, given.sum_away, given.sum_residual, given.sum_frozen,
        gradients.gate_bias, gradients.slope, gradients.shift, gradients.positive, gradients.b_dec,
    )  # fmt: skip
    if b_dec.requires_grad:
        b_dec.grad = torch.from_numpy(gradients.b_dec[0])
    if loss.norms is not None and W_dec.grad is not None:
        by_norm = torch.from_numpy(gradients.positive[0] * given.to_sparsity) / loss.norms
        W_dec.grad.addcmul_(by_norm[:, None], W_dec)
    return Learnt(
        torch.from_numpy(gradients.gate_bias[0]),
        torch.from_numpy(gradients.slope[0]),
        torch.from_numpy(gradients.shift[0]),
        Sums(*given.sums[0].tolist()),
        torch.from_numpy(given.sum_away[0]),
        torch.from_numpy(fired),
    )


def _learn_active(search: Search, given: Pass, trained: Trained, *, live: bool) -> tuple[Gradients, Any] | None:
    """Gradients from the active entries, and which features fired; None where they are too many."""
    loops = workers.loops()
    W_enc, W_dec, b_dec = trained
    (n, d_in), d_sae, kind = given.x.shape, len(given.shift), given.x.dtype
    codes, d_codes, d_pi = (np.empty(len(search.values), kind) for _ in range(3))
    fired = np.zeros(d_sae, np.bool_)
    of_rows = (*search.arguments, codes, d_codes, d_pi, fired, *given)

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
    gradients = Gradients.empty(W_enc, W_dec, kind, feature_parts=1, b_dec_parts=len(workers.parts_of(d_sae)))
    of_features = (
        column_starts, order, of_row, search.values, codes, d_codes, d_pi, given.gate_bias, given.slope, given.to_error,
        given.to_auxiliary, given.residual, given.frozen, rows_of(search.xc), W_enc.detach().T.numpy(), gathered,
        to_encoder, W_enc.requires_grad, W_dec.requires_grad, b_dec.requires_grad, live, *gradients,
    )  # fmt: skip
    workers.run(2 * n_active * d_in, (lambda *part: loops.learn_features(*part, *of_features), d_sae))
    return gradients, fired


def _learn_all(search: Search, given: Pass, trained: Trained, *, live: bool) -> tuple[Gradients, Any]:
    """The same from all entries: matrix products, and between them one loop for each side of the gate."""
    loops = workers.loops()
    W_enc, W_dec, b_dec = trained
    (n, d_in), d_sae, kind = given.x.shape, len(given.shift), given.x.dtype
    n_parts = len(given.sums)
    u, xc = search.products()
    encoder, decoder = W_enc.detach(), W_dec.detach()
    residual, frozen = torch.from_numpy(given.residual), torch.from_numpy(given.frozen)
    codes, d_codes = torch.empty_like(u), torch.empty_like(u)
    width = d_sae if given.auxiliary else 0
    positive_pi, d_positive_pi = u.new_empty(n, width), u.new_empty(n, width)
    fired = np.empty((n_parts, d_sae), np.bool_)
    gradients = Gradients.empty(W_enc, W_dec, kind, feature_parts=n_parts, b_dec_parts=1)
    of_gate = given.gate_bias, given.slope
    opening = (
        *of_gate, given.shift, given.weights, given.threshold, given.auxiliary, codes.numpy(), positive_pi.numpy(),
        given.sums, fired,
    )  # fmt: skip
    errors = (
        given.x, given.b_dec, given.wide_b_dec, given.reference, given.auxiliary, given.to_error, given.to_auxiliary,
        given.residual, given.frozen, given.sums, given.sum_away, given.sum_residual, given.sum_frozen,
    )  # fmt: skip
    closing = (
        *of_gate, given.weights, given.auxiliary, given.to_sparsity, codes.numpy(), d_codes.numpy(),
        d_positive_pi.numpy(), u.numpy(), gradients.gate_bias, gradients.slope, gradients.shift, gradients.positive,
    )  # fmt: skip
    pairs = [(codes, residual, d_codes), *([(positive_pi, frozen, d_positive_pi)] if given.auxiliary else [])]

    def learn_rows(first: int, last: int, part: int) -> None:
        rows = slice(first, last)
        loops.open_gates(first, last, part, u.numpy(), *opening)
        for values, decoded, _ in pairs:
            torch.mm(values[rows], decoder, out=decoded[rows])
        loops.take_errors(first, last, part, *errors)
        for _, decoded, d_values in pairs:
            torch.mm(decoded[rows], decoder.T, out=d_values[rows])
        loops.close_gates(first, last, part, *closing)

    def learn_features(first: int, last: int, part: int) -> None:
        features = slice(first, last)
        if W_dec.requires_grad:
            d_W_dec = torch.from_numpy(gradients.W_dec)[features]
            torch.mm(codes[:, features].T, residual, out=d_W_dec)
            if live:
                d_W_dec.addmm_(positive_pi[:, features].T, frozen)
        if W_enc.requires_grad:
            torch.mm(u[:, features].T, xc, out=torch.from_numpy(gradients.W_enc)[features])

    workers.run(4 * n * d_sae * d_in, (learn_rows, n))
    workers.run(2 * n * d_sae * d_in, (learn_features, d_sae))
    if b_dec.requires_grad:
        to_pi, to_shift = gradients.gate_bias.sum(axis=0), gradients.shift.sum(axis=0)
        torch.mv(encoder, torch.from_numpy(to_pi + given.slope * to_shift), out=torch.from_numpy(gradients.b_dec[0]))
        np.negative(gradients.b_dec, out=gradients.b_dec)
    return gradients, fired.any(axis=0)
