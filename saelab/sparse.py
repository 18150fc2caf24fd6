"""One encoder matmul a step, then only the entries that matter: exact sparse forward and backward under the losses.

After a short warm-up a few per cent of the features are active on an input. ReLU, gate, L1 and auxiliary terms have
zero value *and zero gradient* on all others, so the encoder's forward matmul finds the active entries, and everything
else (both decodes and every gradient) runs on these alone. Nothing is approximated: values and gradients are those of
the dense path.

An architecture writes its loss once, on `Entries`; whether these are all of ``(batch, d_sae)`` or the active ones is
decided here, by their density.
"""

import functools
import statistics
import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

DENSE_ABOVE = 0.12
"""Share of active entries above which two dense matmuls are faster, measured on a CPU (`tests/benchmarks/step.py`)."""


class Entries(ABC):
    """Entries of ``u = (x - b_dec) @ W_enc`` and what can be done with values that stand beside them."""

    u: Tensor
    """The entries' values, differentiable in ``x``, ``b_dec`` and ``W_enc``."""

    @abstractmethod
    def project(self, W: Tensor) -> Tensor:
        """``(x - b_dec) @ W`` at the same entries, for a second encoder ``(d_in, d_sae)``."""

    @abstractmethod
    def per_feature(self, parameter: Tensor) -> Tensor:
        """A parameter ``(d_sae,)`` in the shape that broadcasts with `u`."""

    @abstractmethod
    def decode(self, values: Tensor, W_dec: Tensor, offset: Tensor) -> Tensor:
        """``values @ W_dec + offset``: ``(batch, d_in)``, as is ``offset``."""

    @abstractmethod
    def mean_sum(self, values: Tensor) -> Tensor:
        """Sum over the features, mean over the batch: a scalar."""

    @abstractmethod
    def fired(self, values: Tensor) -> Tensor:
        """Which features have a positive value anywhere in the batch: ``(d_sae,)``, boolean."""


class DenseEntries(Entries):
    """All of ``(batch, d_sae)``, from ``xc = x - b_dec``."""

    def __init__(self, u: Tensor, xc: Tensor) -> None:
        self.u = u
        self._xc = xc

    def project(self, W: Tensor) -> Tensor:
        return self._xc @ W

    def per_feature(self, parameter: Tensor) -> Tensor:
        return parameter

    def decode(self, values: Tensor, W_dec: Tensor, offset: Tensor) -> Tensor:
        return values @ W_dec + offset  # no addmm: under autocast that would round the offset

    def mean_sum(self, values: Tensor) -> Tensor:
        return values.sum(dim=-1).mean()

    def fired(self, values: Tensor) -> Tensor:
        return (values > 0).flatten(0, -2).any(dim=0)


class ActiveEntries(Entries):
    """The active entries alone, ``(n_active,)``, in row-major order."""

    def __init__(self, x: Tensor, b_dec: Tensor, W_enc: Tensor, xc: Tensor, u: Tensor, pattern: "Pattern") -> None:
        self._inputs = (x, b_dec, xc)
        self._pattern = pattern
        self.u = self._project(W_enc, u)

    def _project(self, W: Tensor, values: Tensor) -> Tensor:
        x, b_dec, xc = self._inputs
        projected: Tensor = _Project.apply(x, b_dec, W, xc, values, self._pattern)
        return projected

    def project(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            values = self._pattern.sample(self._inputs[2], W)
        return self._project(W, values)

    def per_feature(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self._pattern.columns)  # its backward is faster than indexing's

    def decode(self, values: Tensor, W_dec: Tensor, offset: Tensor) -> Tensor:
        decoded: Tensor = _SparseDecode.apply(values, W_dec, offset, self._pattern)
        return decoded

    def mean_sum(self, values: Tensor) -> Tensor:
        return values.sum() / self._pattern.shape[0]

    def fired(self, values: Tensor) -> Tensor:
        summed = values.new_zeros(self._pattern.shape[1])
        return summed.index_add_(0, self._pattern.columns, values.detach().relu()) > 0


def find_entries(x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor, *, floor: float) -> Entries:
    """The entries of ``u = (x - b_dec) @ W_enc`` under a loss that is flat where ``u + bias <= floor``.

    Parameters
    ----------
    x, b_dec, W_enc, bias
        ``(batch, d_in)``, ``(d_in,)``, ``(d_in, d_sae)``, ``(d_sae,)``.
    floor
        Entries at or below it must add nothing to the loss, nor to its gradient.
    """
    with torch.no_grad():
        xc = x - b_dec
        u = xc @ W_enc
        limit = floor - bias
        if floor:  # rounding must not lose an entry; one too many adds nothing
            limit -= 4 * torch.finfo(limit.dtype).eps * (bias.abs() + abs(floor))
        pattern = Pattern(u > limit)
    if len(pattern.flat) > dense_above(u, W_enc) * u.numel():
        return DenseEntries(_Project.apply(x, b_dec, W_enc, xc, u, None), x - b_dec)
    # Under autocast the encoder's matmul alone is in half precision: what is left is too little to gain from it.
    return ActiveEntries(x, b_dec, W_enc, xc, u.take(pattern.flat).to(W_enc.dtype), pattern)


def dense_above(u: Tensor, W_enc: Tensor) -> float:
    """Share of active entries above which the dense path is taken; negative where it always is."""
    if W_enc.dtype not in (torch.float32, torch.float64):
        return -1.0  # sparse matmuls know no half precision
    if u.device.type == "cpu":
        return DENSE_ABOVE
    return measured_crossover(u.device, u.dtype, len(u), *W_enc.shape) if u.device.type == "cuda" else -1.0


@functools.cache
def measured_crossover(device: torch.device, dtype: torch.dtype, batch: int, d_in: int, d_sae: int) -> float:
    """The largest of a few densities at which a sparse step beats a dense one there; negative where none does.

    Takes about a second, once for each shape. ``dtype`` is that of the encoder's matmul.
    """
    x, W_enc = torch.randn(batch, d_in, device=device), torch.randn(d_in, d_sae, device=device) / d_in**0.5
    W_enc.requires_grad_()

    def step(share: float, *, dense: bool) -> None:
        cut = statistics.NormalDist().inv_cdf(1 - share)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != W_enc.dtype):
            u = x @ W_enc
            entries: Entries = DenseEntries(u, x)
            if not dense:
                pattern = Pattern(u.detach() > cut)
                entries = ActiveEntries(x, x.new_zeros(d_in), W_enc, x, u.detach().take(pattern.flat).float(), pattern)
            error = entries.decode((entries.u - cut).relu(), W_enc.T, -x)
        torch.autograd.grad(error.float().square().sum(), W_enc)

    def seconds(share: float, *, dense: bool) -> float:
        scope = {"step": step, "share": share, "dense": dense}
        return Timer("step(share, dense=dense)", globals=scope).blocked_autorange(min_run_time=0.1).median

    faster = -1.0
    for share in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
        try:
            if seconds(share, dense=False) > seconds(share, dense=True):
                break
        except RuntimeError:  # a device, or a build of torch, without these sparse kernels
            break
        faster = share
    return faster


class Pattern:
    """Where the active entries stand in ``(batch, d_sae)``: in row order, and in column order for weight gradients."""

    def __init__(self, active: Tensor) -> None:
        self.shape = active.shape
        self.flat = active.flatten().nonzero().squeeze(1)
        self.columns = (self.flat % self.shape[1]).int()
        ends = torch.arange(self.shape[0] + 1, device=active.device) * self.shape[1]
        self._row_starts = torch.searchsorted(self.flat, ends).int()

    @functools.cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The permutation into column order, the columns' starts, the rows in that order."""
        if self.columns.device.type != "cpu":
            order = self.columns.argsort(stable=True)
            starts = torch.bincount(self.columns, minlength=self.shape[1]).cumsum(0)
            rows = self.flat.div(self.shape[1], rounding_mode="floor")[order]
            return order, torch.nn.functional.pad(starts, (1, 0)).int(), rows.int()
        from scipy.sparse import csr_array  # a counting sort: ten times as fast as a stable argsort

        positions = np.arange(len(self.flat), dtype=np.int32)
        by_row = csr_array((positions, self.columns.numpy(), self._row_starts.numpy()), shape=tuple(self.shape))
        by_column = by_row.tocsc()
        order, starts, rows = map(torch.from_numpy, (by_column.data, by_column.indptr, by_column.indices))
        return order, starts, rows

    def matmul(self, values: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """``V @ right`` with these values at V's active entries, ``(batch, d_sae)``; added to ``out`` where given."""
        return _matmul(_csr(self._row_starts, self.columns, values, self.shape), right, out)

    def transposed_matmul(self, values: Tensor, right: Tensor) -> Tensor:
        """``V.T @ right`` for the same matrix."""
        order, starts, rows = self._by_column
        return _matmul(_csr(starts, rows, values.index_select(0, order), self.shape[::-1]), right, None)

    def sample(self, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right`` at the active entries alone, ``(n_active,)``."""
        zeros = _csr(self._row_starts, self.columns, left.new_zeros(len(self.flat)), self.shape)
        sampled: Tensor = torch.sparse.sampled_addmm(zeros, left, right, beta=0.0).values()
        return sampled


@functools.cache
def _silence_beta_warning() -> None:
    """PyTorch warns once a process that CSR is in beta; a user of an SAE can do nothing with that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    _silence_beta_warning()
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _matmul(sparse: Tensor, right: Tensor, out: Tensor | None) -> Tensor:
    """``sparse @ right``, without the zeros and the copy that ``@`` makes for its result."""
    if out is None:
        return right.new_empty(sparse.shape[0], right.shape[1]).addmm_(sparse, right, beta=0)
    return out.addmm_(sparse, right)


class _Project(torch.autograd.Function):
    """``xc @ W`` with ``xc = x - b_dec``, given its values; at the entries of ``pattern`` where there is one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W: Tensor, xc: Tensor, values: Tensor, pattern: Pattern | None
    ) -> Tensor:
        # Under autocast the dense backward is in half precision, as the forward was.
        ctx.save_for_backward(xc.to(values.dtype), W.to(values.dtype))
        ctx.pattern = pattern
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (xc, W), (g,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        to_x, to_b_dec, to_W = ctx.needs_input_grad[:3]
        if to_W:
            to_W = xc.T @ g if pattern is None else pattern.transposed_matmul(g, xc).T
        if to_b_dec:  # a sum over the batch: summed before the matmul, it costs a vector's worth
            summed = g.sum(dim=0) if pattern is None else g.new_zeros(W.shape[1]).index_add_(0, pattern.columns, g)
            to_b_dec = -(W @ summed)
        if to_x:
            to_x = g @ W.T if pattern is None else pattern.matmul(g, W.T)
        return *(gradient if gradient is not False else None for gradient in (to_x, to_b_dec, to_W)), None, None, None


class _SparseDecode(torch.autograd.Function):
    """``values @ W_dec + offset`` for values at the active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, offset: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return pattern.matmul(values, W_dec, out=offset.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (values, W_dec), (g,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        to_values, to_W_dec, to_offset = ctx.needs_input_grad[:3]
        return (
            pattern.sample(g, W_dec.T) if to_values else None,
            pattern.transposed_matmul(values, g) if to_W_dec else None,
            g if to_offset else None,
            None,
        )
