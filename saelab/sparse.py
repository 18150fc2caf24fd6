"""One encoder matmul a step, then only the entries that matter: exact sparse forward and backward under the losses.

After a short warm-up a few per cent of the features are active on an input. ReLU, gate, L1 and auxiliary terms have
zero value *and zero gradient* on all others, so the encoder's forward matmul finds the active entries, and everything
else (both decodes and every gradient) runs on these alone. Nothing is approximated: values and gradients are those of
the dense path.

An architecture writes its loss once, on `Entries`; whether these are all of ``(batch, d_sae)`` or the active ones is
decided here, by their density.
"""

import functools
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

DENSE_ABOVE = 0.12
"""Share of active entries above which two dense matmuls are faster, measured on a CPU (`tests/benchmarks/step.py`)."""


class Entries(ABC):
    """Entries of ``u = (x - b_dec) @ W_enc`` and what can be done with values that stand beside them."""

    u: Tensor
    """The entries' values, differentiable in ``x``, ``b_dec`` and ``W_enc``."""

    @abstractmethod
    def per_feature(self, parameter: Tensor) -> Tensor:
        """A parameter ``(d_sae,)`` in the shape that broadcasts with `u`."""

    @abstractmethod
    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        """``values @ W_dec``: ``(batch, d_in)``."""

    @abstractmethod
    def mean_sum(self, values: Tensor) -> Tensor:
        """Sum over the features, mean over the batch: a scalar."""


class DenseEntries(Entries):
    """All of ``(batch, d_sae)``."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def per_feature(self, parameter: Tensor) -> Tensor:
        return parameter

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        return values @ W_dec

    def mean_sum(self, values: Tensor) -> Tensor:
        return values.sum(dim=-1).mean()


class ActiveEntries(Entries):
    """The active entries alone, ``(n_active,)``, in row-major order."""

    def __init__(self, u: Tensor, pattern: "Pattern") -> None:
        self.u = u
        self._pattern = pattern

    def per_feature(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self._pattern.columns)  # its backward is faster than indexing's

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        decoded: Tensor = _SparseDecode.apply(values, W_dec, self._pattern)
        return decoded

    def mean_sum(self, values: Tensor) -> Tensor:
        return values.sum() / self._pattern.shape[0]


def find_entries(x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor, *, floor: float) -> Entries:
    """The entries of ``u = (x - b_dec) @ W_enc`` under a loss that is flat where ``u + bias <= floor``.

    Parameters
    ----------
    x, b_dec, W_enc, bias
        ``(batch, d_in)``, ``(d_in,)``, ``(d_in, d_sae)``, ``(d_sae,)``.
    floor
        Entries at or below it must add nothing to the loss, nor to its gradient.
    """
    device = x.device.type
    exact = W_enc.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device)
    if device != "cpu" or not exact:
        # Elsewhere dense matmuls are cheap, and sparse ones know no half precision.
        return DenseEntries((x - b_dec) @ W_enc)
    with torch.no_grad():
        xc = x - b_dec
        u = xc @ W_enc
        active = u + bias > floor
        # count_nonzero, not sum: a sum of booleans is taken on eight times as many bytes.
        dense = int(active.count_nonzero()) > DENSE_ABOVE * active.numel()
    pattern = None if dense else Pattern(active)
    u = _Project.apply(x, b_dec, W_enc, xc, u, pattern)
    return DenseEntries(u) if pattern is None else ActiveEntries(u, pattern)


class Pattern:
    """Where the active entries stand in ``(batch, d_sae)``: in row order, and in column order for weight gradients."""

    def __init__(self, active: Tensor) -> None:
        self.shape = active.shape
        self.flat = active.flatten().nonzero().squeeze(1)
        self.columns = self.flat % self.shape[1]
        self._rows = self.flat // self.shape[1]
        self._row_starts = _starts(self._rows, self.shape[0])

    @functools.cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The permutation into column order, the columns' starts, the rows in that order."""
        order = self.columns.argsort(stable=True)
        return order, _starts(self.columns, self.shape[1]), self._rows[order].int()

    def matrix(self, values: Tensor) -> Tensor:
        """CSR matrix ``(batch, d_sae)`` with these values at the active entries."""
        return _csr(self._row_starts, self.columns.int(), values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """CSR matrix ``(d_sae, batch)``, the transpose of `matrix`."""
        order, starts, rows = self._by_column
        return _csr(starts, rows, values[order], (self.shape[1], self.shape[0]))

    def sample(self, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right`` at the active entries alone, ``(n_active,)``."""
        zeros = self.matrix(left.new_zeros(len(self.flat)))
        sampled: Tensor = torch.sparse.sampled_addmm(zeros, left, right, beta=0.0).values()
        return sampled


def _starts(indices: Tensor, n: int) -> Tensor:
    """Where the run of each index in 0..n begins once they are sorted, ``(n + 1,)``."""
    return torch.nn.functional.pad(torch.bincount(indices, minlength=n).cumsum(0), (1, 0)).int()


@functools.cache
def _silence_beta_warning() -> None:
    """PyTorch warns once a process that CSR is in beta; a user of an SAE can do nothing with that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    _silence_beta_warning()
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class _Project(torch.autograd.Function):
    """``u = xc @ W_enc`` with ``xc = x - b_dec``, given its value; at the entries of ``pattern`` where there is one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, xc: Tensor, u: Tensor, pattern: Pattern | None
    ) -> Tensor:
        ctx.save_for_backward(xc, W_enc)
        ctx.pattern = pattern
        return u.view_as(u) if pattern is None else u.flatten()[pattern.flat]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (xc, W_enc), (g,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        if pattern is None:
            per_feature, to_W_enc = g.sum(dim=0), xc.T @ g
        else:
            per_feature = g.new_zeros(pattern.shape[1]).index_add_(0, pattern.columns, g)
            to_W_enc = (pattern.transposed(g) @ xc).T
            g = pattern.matrix(g)
        # b_dec's gradient is a sum over the batch: summed before the matmul, this costs a vector's worth of it.
        return g @ W_enc.T if ctx.needs_input_grad[0] else None, -(W_enc @ per_feature), to_W_enc, None, None, None


class _SparseDecode(torch.autograd.Function):
    """``values @ W_dec`` for values at the active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return pattern.matrix(values) @ W_dec

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (values, W_dec), (g,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        to_values = pattern.sample(g, W_dec.T) if ctx.needs_input_grad[0] else None
        return to_values, pattern.transposed(values) @ g if ctx.needs_input_grad[1] else None, None
