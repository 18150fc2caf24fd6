"""One encoder matmul a step, then only the entries that matter: exact sparse forward and backward under the losses.

After a short warm-up a few per cent of the features are active on an input. ReLU, gate, L1 and auxiliary terms have
zero value *and zero gradient* on all others, so the encoder's forward matmul finds the active entries, and everything
else (both decodes and every gradient) runs on these alone. Where the CPU multiplies bfloat16 matrices much faster, that
matmul only names candidates, with a margin that no rounding can cross, and the entries are computed in float32. Nothing
is approximated: values and gradients are those of the dense path.

An architecture writes its loss once, on `Entries`; whether these are all of ``(batch, d_sae)`` or the active ones is
decided here, by their density. On a CPU the active ones are worked on by compiled loops (`saelab.sae.loops`), on a GPU
by torch's sparse matrices; elsewhere all entries are taken.
"""

import functools
import math
import statistics
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.sae import workers

DENSE_ABOVE = 0.2
"""Share of active entries above which two dense matmuls are faster, measured on a CPU (`tests/benchmarks/step.py`)."""
SCREENED_WORK = 2**26
"""Multiplications of an encoder from which on the bfloat16 screen can pay for its preparation."""


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
    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        """``values @ W_dec``, ``(batch, d_in)``."""

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

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        return values @ W_dec

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

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        decoded: Tensor = _SparseDecode.apply(values, W_dec, self._pattern)
        return decoded

    def mean_sum(self, values: Tensor) -> Tensor:
        return values.sum() / self._pattern.shape[0]

    def fired(self, values: Tensor) -> Tensor:
        summed = values.new_zeros(self._pattern.shape[1])
        return summed.index_add_(0, self._pattern.columns, values.detach().relu()) > 0


class Search:
    """The encoder's one matmul, and in it the entries that matter to a loss.

    Parameters
    ----------
    x, b_dec, W_enc, bias
        ``(batch, d_in)``, ``(d_in,)``, ``(d_in, d_sae)``, ``(d_sae,)``.
    floor
        Entries where ``u + bias`` does not exceed it must add nothing to the loss, nor to its gradient.
    """

    @torch.no_grad()
    def __init__(self, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor, *, floor: float) -> None:
        self._inputs = (x, b_dec, W_enc)
        self._limit = floor - bias
        if floor:  # rounding must not lose an entry; one too many adds nothing
            self._limit -= 4 * torch.finfo(bias.dtype).eps * (bias.abs() + abs(floor))
        self._most = dense_above(x, W_enc)
        self._u: Tensor | None = None
        self.is_compiled = self._most >= 0 and x.device.type == "cpu"
        """Whether compiled loops may find the entries, by `product` and then `loops.find`."""
        if not self.is_compiled:
            self.xc = x - b_dec
            self._u = workers.matmul(self.xc, W_enc)
            return
        n, d_sae = len(x), W_enc.shape[1]
        self.xc = x.new_empty(x.shape, dtype=torch.result_type(x, b_dec))
        """``x - b_dec``: for compiled loops, once `product` has been there."""
        self._screen = Screen(self.xc, W_enc, self._limit) if _screens(x, W_enc) else None
        if self._screen is None:
            kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else W_enc.dtype
            self._right = W_enc.detach().to(kind)
            self._out = self.xc.new_empty(n, d_sae, dtype=kind)
        n_parts = len(workers.parts_of(n))
        self.allowed = int(self._most * -(-n // n_parts) * d_sae)
        self.columns = np.empty(n_parts * (self.allowed + 1), np.int32)
        """Features of the entries found, for each part of the batch from a place of its own on."""
        self.values = np.empty(len(self.columns), array_of(W_enc).dtype)
        """Their values."""
        self.starts, self.ends = np.empty(n, np.int64), np.empty(n, np.int64)
        """``(batch,)``: where in them the entries of a row are."""
        self.found = np.zeros(n_parts, np.int64)
        """Number of entries of each part; -1 where they are too many for a sparse step."""

    def product(self, first: int, last: int) -> bool:
        """The matrix product for some of the rows, without which their entries cannot be found.

        False where it is not needed, since another part has been found to have too many.
        """
        if self._screen is not None and self.n_found is None:
            return False
        x, b_dec, _ = self._inputs
        left = torch.sub(x.detach()[first:last], b_dec.detach(), out=self.xc[first:last])
        if self._screen is not None:
            self._screen.product(first, last)
        else:
            torch.mm(left.to(self._out.dtype), self._right, out=self._out[first:last])
        return True

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `loops.find` takes after the part."""
        W_enc = rows_of(self._inputs[2].T)
        screen = self._screen
        marks = np.empty((0, 0), np.int16) if screen is None else screen.marks
        u = W_enc[:0] if screen is not None else array_of(self._out.to(self.xc.dtype))
        return (
            screen is not None, u, marks, rows_of(self.xc), W_enc, array_of(self._limit), self.allowed,
            self.columns, self.values, self.starts, self.ends, self.found,
        )  # fmt: skip

    @property
    def n_found(self) -> int | None:
        """The number of entries that compiled loops have found; None where they are too many."""
        found: list[int] = self.found.tolist()
        return None if min(found) < 0 else sum(found)

    def entries(self) -> Entries:
        """The entries that matter, or all where these are too many."""
        return self.active_entries() or self.all_entries()

    def active_entries(self) -> ActiveEntries | None:
        """The entries that matter; None where they are too many."""
        found = self._found_by_loops() if self.is_compiled else self._found_by_torch()
        if found is None:
            return None
        x, b_dec, W_enc = self._inputs
        return ActiveEntries(x, b_dec, W_enc, self.xc, *found)

    @torch.no_grad()
    def _found_by_loops(self) -> "tuple[Tensor, Pattern] | None":
        """Values and places of the entries that matter, unless they are too many."""
        self._find()
        n_found = self.n_found
        if n_found is None:
            return None
        row_starts, columns = np.empty(len(self.starts) + 1, np.int64), np.empty(n_found, np.int32)
        values = np.empty(n_found, self.values.dtype)
        workers.loops().gather(self.starts, self.ends, self.columns, self.values, row_starts, columns, values)
        pattern = Pattern(torch.from_numpy(columns), torch.from_numpy(row_starts), len(self._limit))
        return torch.from_numpy(values), pattern

    @torch.no_grad()
    def _found_by_torch(self) -> "tuple[Tensor, Pattern] | None":
        assert self._u is not None
        flat = positions_above(self._u, self._limit) if self._most >= 0 else None
        if flat is None or len(flat) > self._most * self._u.numel():
            return None
        # Under autocast the encoder's matmul alone is in half precision: the rest is too little to gain from it.
        return self._u.take(flat).to(self.xc.dtype), Pattern.at(flat, *self._u.shape)

    def _find(self) -> None:
        n, work = len(self.xc), len(self.xc) * self._inputs[2].numel()
        if torch.is_autocast_enabled("cpu"):  # the product's rows are converted before they are searched
            with torch.autocast("cpu", enabled=False):
                workers.run(work, (lambda first, last, part: self.product(first, last), n))
            arguments = self.arguments
            workers.run(work, (lambda *part: workers.loops().find(*part, *arguments), n))
            return
        arguments = self.arguments

        def find(first: int, last: int, part: int) -> None:
            if self.product(first, last):
                workers.loops().find(first, last, part, *arguments)

        workers.run(work, (find, n))

    @torch.no_grad()
    def products(self) -> tuple[Tensor, Tensor]:
        """``u`` at all entries, to be overwritten, and ``x - b_dec``; only after a search by compiled loops."""
        if self._screen is None:
            return self._out, self.xc
        x, b_dec, W_enc = self._inputs
        torch.sub(x, b_dec, out=self.xc)  # the search has left out what came after the first part with too many
        return workers.matmul(self.xc, W_enc), self.xc

    def all_entries(self, first: int = 0, last: int | None = None) -> DenseEntries:
        """All entries, or those of some of the rows."""
        x, b_dec, W_enc = self._inputs
        x = x[first:last]
        xc = x - b_dec
        with torch.no_grad():
            product = self._out if self.is_compiled and self._screen is None else self._u
            u = workers.matmul(xc, W_enc) if product is None else product[first:last]
        return DenseEntries(_Project.apply(x, b_dec, W_enc, xc.detach(), u, None), xc)


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
        u = workers.matmul(xc, W_enc)
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
    below = u.detach().numpy() <= limit.detach().numpy()  # numpy compares and searches twice as fast
    return torch.from_numpy(np.flatnonzero(np.logical_not(below, out=below)))


def _screens(xc: Tensor, W_enc: Tensor) -> bool:
    """Whether to find the candidates in bfloat16 first."""
    large = len(xc) * W_enc.numel() >= SCREENED_WORK
    exact = W_enc.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return large and exact and xc.device.type == "cpu" and bfloat16_pays()


@functools.cache
def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 matrices much faster than float32 ones, asked of a clock.

    What a CPU can do does not say what a build of oneDNN will use of it. The best of several tries, taken in turns, and
    a wide margin keep other programs out of the answer. Takes some hundredths of a second, once.
    """
    x, W = torch.randn(256, 256), torch.randn(1024, 256)
    halves = x.bfloat16(), W.bfloat16()
    best = [math.inf, math.inf]
    for _ in range(8):
        for place, (left, right) in enumerate(((x, W), halves)):
            start = time.perf_counter()
            left @ right.T
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0] > 1.5 * best[1]


class Screen:
    """Factors in bfloat16 whose product is positive where ``xc @ W_enc`` exceeds ``limit``, and in few other places.

    Nothing is missed: rounding both factors to 8 bits moves a product of rows a and b by less than
    ``1.01 * 2**-7 * |a| * |b|`` (Cauchy-Schwarz), and accumulating n terms in float32 by less than
    ``n * 2**-22 * |a| * |b|``. That margin and ``-limit`` are columns of the matmul itself, each rounded up, so that
    every entry that may exceed the limit comes out positive; all entries do of a row or feature that is huge or not
    finite.
    """

    def __init__(self, xc: Tensor, W_enc: Tensor, limit: Tensor) -> None:
        (n, d_in), d_sae = xc.shape, W_enc.shape[1]
        width = -(-(d_in + 3) // 4) * 4  # whole tiles of 32 took a tenth longer on a CPU without AMX
        self._inputs, self._left = rows_of(xc), np.empty((n, width), np.int16)
        right = np.empty((d_sae, width), np.int16)
        arguments = (rows_of(W_enc.T), array_of(limit), right)
        workers.run(right.size, (lambda first, last, _: workers.loops().round_features(first, last, *arguments), d_sae))
        self._factors = tuple(torch.from_numpy(bits).view(torch.bfloat16) for bits in (self._left, right))
        self._product = xc.new_empty(n, d_sae, dtype=torch.bfloat16)

    def product(self, first: int, last: int) -> None:
        """Find `marks` for some of the rows."""
        workers.loops().round_inputs(first, last, self._inputs, self._left)
        left, right = self._factors
        torch.mm(left[first:last], right.T, out=self._product[first:last])

    @property
    def marks(self) -> Any:
        """``(batch, d_sae)``, int16, positive at entries that may exceed the limit."""
        return self._product.view(torch.int16).numpy()


def dense_above(x: Tensor, W_enc: Tensor) -> float:
    """Share of active entries above which the dense path is taken; negative where it always is."""
    if W_enc.dtype not in (torch.float32, torch.float64):
        return -1.0  # sparse matmuls know no half precision
    if x.device.type == "cpu":
        return DENSE_ABOVE if workers.compiled() else -1.0
    if x.device.type != "cuda":
        return -1.0
    return measured_crossover(x.device, len(x), *W_enc.shape, autocast=torch.is_autocast_enabled("cuda"))


@functools.cache
def measured_crossover(device: torch.device, batch: int, d_in: int, d_sae: int, *, autocast: bool) -> float:
    """The largest of a few densities at which a sparse step beats a dense one there; negative where none does.

    Takes about a second, once for each shape.
    """
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
            error = entries.decode((entries.u - cut).relu(), W_enc.T) - x
            loss = error.float().square().sum()
        torch.autograd.grad(loss, W_enc)

    def seconds(share: float, *, dense: bool) -> float:
        """Median of a tenth of a second's steps, after one that pays for what is set up once."""
        times: list[float] = []
        while len(times) < 4 or sum(times[1:]) < 0.1:
            torch.accelerator.synchronize(device) if device.type != "cpu" else None
            start = time.perf_counter()
            step(share, dense=dense)
            torch.accelerator.synchronize(device) if device.type != "cpu" else None
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

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
        return cls((flat % d_sae).int(), row_starts, d_sae)

    @functools.cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The permutation into column order, the columns' starts, the rows in that order."""
        if self._is_compiled:
            starts = torch.empty(self.shape[1] + 1, dtype=torch.int64)
            order, rows = torch.empty_like(self.columns), torch.empty_like(self.columns)
            row_starts, to_fill = array_of(self._row_starts), map(array_of, (starts, order, rows))
            workers.loops().by_column(row_starts[:-1], row_starts[1:], array_of(self.columns), *to_fill)
            return order, starts, rows
        order = self.columns.argsort(stable=True)
        places = torch.arange(self.shape[1] + 1, dtype=torch.int32, device=self.columns.device)
        # Not bincount, which makes a CPU wait for its GPU.
        return (
            order,
            torch.searchsorted(self.columns.index_select(0, order), places),
            self._row_numbers.index_select(0, order),
        )

    @functools.cached_property
    def _row_numbers(self) -> Tensor:
        """``(n_active,)``, int32."""
        return torch.repeat_interleave(self._row_starts.diff(), output_size=len(self.columns)).int()

    @property
    def _is_compiled(self) -> bool:
        return self.columns.device.type == "cpu" and workers.compiled() is not None

    def matmul(self, values: Tensor, right: Tensor) -> Tensor:
        """``V @ right`` with these values at V's active entries, ``(batch, d_sae)``."""
        return self._multiply(self._row_starts, self.columns, values, self.shape, right)

    def transposed_matmul(self, values: Tensor, right: Tensor) -> Tensor:
        """``V.T @ right`` for the same matrix."""
        order, starts, rows = self._by_column
        return self._multiply(starts, rows, values.index_select(0, order), self.shape[::-1], right)

    def _multiply(self, starts: Tensor, columns: Tensor, values: Tensor, shape: torch.Size, right: Tensor) -> Tensor:
        # Not `new_empty`: without MKL, addmm_ multiplies what it finds there by 0, which leaves a NaN a NaN.
        out = right.new_zeros(shape[0], right.shape[1])
        if self._is_compiled:
            arguments = (array_of(starts), array_of(columns), array_of(values), rows_of(right), array_of(out))
            workers.run(
                values.numel() * right.shape[1], (lambda *part: workers.loops().multiply(*part, *arguments), shape[0])
            )
            return out
        if right.device.type == "cuda":
            return out.addmm_(_csr(starts, columns, values, shape), right)
        dense = values.new_zeros(shape)
        dense.index_put_((torch.repeat_interleave(starts.diff(), output_size=len(columns)), columns.long()), values)
        return out.addmm_(dense, right)

    def sample(self, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right`` at the active entries alone, ``(n_active,)``."""
        if self._is_compiled:
            sampled = left.new_empty(len(self.columns))
            arguments = (
                array_of(self._row_starts), array_of(self.columns), rows_of(left), rows_of(right.T), array_of(sampled)
            )  # fmt: skip
            work = len(self.columns) * left.shape[1]
            workers.run(work, (lambda *part: workers.loops().sample(*part, *arguments), self.shape[0]))
            return sampled
        if left.device.type == "cuda":
            zeros = _csr(self._row_starts, self.columns, left.new_zeros(len(self.columns)), self.shape)
            of_device: Tensor = torch.sparse.sampled_addmm(zeros, left, right, beta=0.0).values()
            return of_device
        return (left @ right)[self._row_numbers.long(), self.columns.long()]


def array_of(tensor: Tensor) -> Any:
    """A tensor's memory as a NumPy array."""
    return tensor.detach().numpy()


def rows_of(matrix: Tensor) -> Any:
    """The same, row after row."""
    return matrix.detach().contiguous().numpy()


@functools.cache
def _silence_beta_warning() -> None:
    """PyTorch warns once a process that CSR is in beta; a user of an SAE can do nothing with that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    _silence_beta_warning()
    return torch.sparse_csr_tensor(starts.int(), columns, values, shape, check_invariants=False)


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
    """``values @ W_dec`` for values at the active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return pattern.matmul(values, W_dec)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (values, W_dec), (g,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        to_values, to_W_dec = ctx.needs_input_grad[:2]
        return (
            pattern.sample(g, W_dec.T) if to_values else None,
            pattern.transposed_matmul(values, g) if to_W_dec else None,
            None,
        )
