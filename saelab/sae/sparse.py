"""One encoder matmul a step, then only the entries that matter: exact sparse forward and backward under the losses.

After a short warm-up a few per cent of the features are active on an input. ReLU, gate, L1 and auxiliary terms have
zero value *and zero gradient* on all others, so the encoder's forward matmul finds the active entries, and everything
else (both decodes and every gradient) runs on these alone. Where the CPU multiplies bfloat16 matrices much faster, that
matmul only names candidates, with a margin that no rounding can cross, and the entries are computed in float32. Nothing
is approximated: values and gradients are those of the dense path.

An architecture writes its loss once, on `Entries`; whether these are all of ``(batch, d_sae)`` or the active ones is
decided here, by their density.
"""

import functools
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DENSE_ABOVE = 0.2
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
        limit = floor - bias
        if floor:  # rounding must not lose an entry; one too many adds nothing
            limit -= 4 * torch.finfo(limit.dtype).eps * (bias.abs() + abs(floor))
        most = dense_above(xc, W_enc) * len(x) * len(bias)
        u: Tensor | None = None
        flat = _screen(xc, W_enc, limit) if _screens(xc, W_enc) else None
        if flat is None:
            u = xc @ W_enc
            flat = positions_above(u, limit) if most >= 0 else None
        if flat is None or len(flat) > most:
            u = xc @ W_enc if u is None else u
            flat = None
    if flat is None:
        return DenseEntries(_Project.apply(x, b_dec, W_enc, xc, u, None), x - b_dec)
    with torch.no_grad():
        pattern = Pattern.at(flat, len(x), len(bias))
        if u is not None:
            # Under autocast the encoder's matmul alone is in half precision: the rest is too little to gain from it.
            values = u.take(flat).to(W_enc.dtype)
        else:  # candidates; their exact values tell which of them are entries
            values = pattern.sample(xc, W_enc)
            kept = positions_above(values, limit.index_select(0, pattern.columns))
            values, pattern = values.index_select(0, kept), pattern.subset(kept)
    return ActiveEntries(x, b_dec, W_enc, xc, values, pattern)


def choose_entries(
    x: Tensor, b_dec: Tensor, W_enc: Tensor, choose: Callable[[Tensor], Tensor]
) -> tuple[Entries, Tensor | None]:
    """The entries of ``u = (x - b_dec) @ W_enc`` that ``choose`` keeps, under a loss to which no others add anything.

    Parameters
    ----------
    x, b_dec, W_enc
        ``(batch, d_in)``, ``(d_in,)``, ``(d_in, d_sae)``.
    choose
        Gives the kept positions in the flattened ``u``, ascending.

    Returns
    -------
    Entries, mask
        Where they are too many for a sparse step, all entries, and the boolean mask by which codes have to be
        multiplied; else no mask.
    """
    with torch.no_grad():
        xc = x - b_dec
        u = xc @ W_enc
        flat = choose(u)
        is_sparse = len(flat) <= dense_above(xc, W_enc) * u.numel()
        values = u.take(flat).to(W_enc.dtype)
    if is_sparse:
        return ActiveEntries(x, b_dec, W_enc, xc, values, Pattern.at(flat, *u.shape)), None
    kept = torch.zeros_like(u, dtype=torch.bool)
    kept.view(-1)[flat] = True
    return DenseEntries(_Project.apply(x, b_dec, W_enc, xc, u, None), x - b_dec), kept


def positions_above(u: Tensor, limit: Tensor) -> Tensor:
    """Where in the flattened ``u`` an entry exceeds ``limit``, or is NaN, ascending: a NaN must reach the loss."""
    if u.device.type != "cpu" or u.dtype == torch.bfloat16:
        return (~(u <= limit)).flatten().nonzero().squeeze(1)
    below = u.numpy() <= limit.numpy()  # numpy compares and searches twice as fast
    return torch.from_numpy(np.flatnonzero(np.logical_not(below, out=below)))


def _screens(xc: Tensor, W_enc: Tensor) -> bool:
    """Whether to find the candidates in bfloat16 first."""
    exact = W_enc.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return xc.device.type == "cpu" and exact and _has_amx()


@functools.cache
def _has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 matrices several times as fast as float32 ones (Intel's AMX)."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _screen(xc: Tensor, W_enc: Tensor, limit: Tensor) -> Tensor | None:
    """Positions of all entries of ``xc @ W_enc`` above ``limit``, with few others, from one bfloat16 matmul.

    Nothing is missed: rounding both factors to 8 bits moves a product of rows a and b by less than
    ``1.01 * 2**-7 * |a| * |b|`` (Cauchy-Schwarz), and accumulating n terms in float32 by less than
    ``n * 2**-22 * |a| * |b|``. That margin and ``-limit`` are columns of the matmul itself, each rounded up, so that
    what may lie above is what comes out positive. None where something is not finite.
    """
    n, d_in = xc.shape
    lengths, norms = xc.norm(dim=1), W_enc.norm(dim=0)
    if not bool((lengths.sum() * norms.sum() + limit.abs().sum()).isfinite()):
        return None
    up = 1 + 2**-7  # more than what rounding to bfloat16 takes away
    bias = limit.abs() * 2**-10 - limit + 1e-30  # the last for numbers so small that they may be taken for 0
    width = -(-(d_in + 3) // 32) * 32  # whole tiles
    left = xc.new_zeros(n, width, dtype=torch.bfloat16)
    left[:, :d_in] = xc
    left[:, d_in] = lengths * up
    left[:, d_in + 1 : d_in + 3] = 1
    right = xc.new_zeros(len(limit), width, dtype=torch.bfloat16)
    right[:, :d_in] = W_enc.T
    right[:, d_in] = norms * up * (1.01 * 2**-7 + d_in * 2**-22)
    right[:, d_in + 1] = bias
    right[:, d_in + 2] = bias - right[:, d_in + 1].float()
    positive = (left @ right.T).view(torch.int16).numpy() > 0  # the sign bit, without bfloat16's slow comparison
    return torch.from_numpy(np.flatnonzero(positive))


def dense_above(x: Tensor, W_enc: Tensor) -> float:
    """Share of active entries above which the dense path is taken; negative where it always is."""
    if W_enc.dtype not in (torch.float32, torch.float64):
        return -1.0  # sparse matmuls know no half precision
    if x.device.type == "cpu":
        return DENSE_ABOVE
    if x.device.type != "cuda":
        return -1.0
    return measured_crossover(x.device, len(x), *W_enc.shape, autocast=torch.is_autocast_enabled("cuda"))


@functools.cache
def measured_crossover(device: torch.device, batch: int, d_in: int, d_sae: int, *, autocast: bool) -> float:
    """The largest of a few densities at which a sparse step beats a dense one there; negative where none does.

    Takes about a second, once for each shape.
    """
    from torch.utils.benchmark import Timer

    x, W_enc = torch.randn(batch, d_in, device=device), torch.randn(d_in, d_sae, device=device) / d_in**0.5
    W_enc.requires_grad_()

    def step(share: float, *, dense: bool) -> None:
        cut = statistics.NormalDist().inv_cdf(1 - share)
        with torch.enable_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            u = x @ W_enc
            entries: Entries = DenseEntries(u, x)
            if not dense:
                flat = positions_above(u.detach(), x.new_full((d_sae,), cut))
                values = u.detach().take(flat).to(W_enc.dtype)
                entries = ActiveEntries(x, x.new_zeros(d_in), W_enc, x, values, Pattern.at(flat, batch, d_sae))
            error = entries.decode((entries.u - cut).relu(), W_enc.T, -x)
            loss = error.float().square().sum()
        torch.autograd.grad(loss, W_enc)

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

    def __init__(self, columns: Tensor, row_starts: Tensor, d_sae: int) -> None:
        self.columns = columns
        """``(n_active,)``, int32, row by row and ascending in each."""
        self._row_starts = row_starts
        self.shape = torch.Size((len(row_starts) - 1, d_sae))

    @classmethod
    def at(cls, flat: Tensor, batch: int, d_sae: int) -> "Pattern":
        """From positions in the flattened matrix, ascending."""
        row_starts = torch.searchsorted(flat, torch.arange(batch + 1, device=flat.device) * d_sae)
        return cls((flat % d_sae).int(), row_starts.int(), d_sae)

    def subset(self, kept: Tensor) -> "Pattern":
        """The entries whose numbers are in ``kept``, ascending."""
        row_starts = torch.searchsorted(kept, self._row_starts.long())
        return Pattern(self.columns.index_select(0, kept), row_starts.int(), self.shape[1])

    @functools.cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The permutation into column order, the columns' starts, the rows in that order."""
        rows = torch.repeat_interleave(self._row_starts.diff(), output_size=len(self.columns)).int()
        if self.columns.device.type == "cpu":
            # numpy sorts 16-bit integers by radix, ten times as fast as torch sorts any.
            narrow = np.uint16 if self.shape[1] <= 2**16 else np.int32
            order = torch.from_numpy(self.columns.numpy().astype(narrow).argsort(kind="stable"))
        else:
            order = self.columns.argsort(stable=True)
        starts = torch.bincount(self.columns, minlength=self.shape[1]).cumsum(0)
        return order, torch.nn.functional.pad(starts, (1, 0)).int(), rows.index_select(0, order)

    def matmul(self, values: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """``V @ right`` with these values at V's active entries, ``(batch, d_sae)``; added to ``out`` where given."""
        return _matmul(_csr(self._row_starts, self.columns, values, self.shape), right, out)

    def transposed_matmul(self, values: Tensor, right: Tensor) -> Tensor:
        """``V.T @ right`` for the same matrix."""
        order, starts, rows = self._by_column
        return _matmul(_csr(starts, rows, values.index_select(0, order), self.shape[::-1]), right, None)

    def sample(self, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right`` at the active entries alone, ``(n_active,)``."""
        zeros = _csr(self._row_starts, self.columns, left.new_zeros(len(self.columns)), self.shape)
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
