"""Parts of a batch on as many threads as torch uses, which wait without using the CPU.

Parts depend on the batch alone and each is one thread's work from beginning to end, so results are the same bit by bit
for any number of threads. OpenMP's threads, which torch uses, spin while they wait. That takes a core from whoever else
wants one: a second program on the machine, or these threads.
"""

import contextlib
import functools
import math
import os
import queue
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

MOST_PARTS = 16
FEWEST_ROWS = 128
"""In a part: matrix products of fewer rows are slow."""
MOST_LARGE_PARTS = 4
LARGE_WORK = 2**26
"""Multiplications in an encoder's matmul from which on a part is worth operators of its own."""
SMALL_WORK = 500_000
"""Multiplications below which one thread has finished before another would have begun."""


@functools.cache
def compiled() -> ModuleType | None:
    """`saelab.sae.loops`; None where Numba is not installed or cannot compile, which it says once."""
    try:
        import numba

        try:
            from saelab.sae import loops
        except RuntimeError:  # neither the package's folder nor the user's can keep compiled code
            vars(numba.config)["CACHE_DIR"] = tempfile.mkdtemp(prefix="saelab-loops-")
            from saelab.sae import loops
        one = np.ones((1, 1), np.float32)
        loops.multiply(0, 1, 0, np.arange(2), np.zeros(1, np.int32), one[0], one, one.copy())
    except Exception as error:  # whatever a compiler may raise on a machine that nobody has tried
        warnings.warn(
            f"Numba is missing or does not work here ({type(error).__name__}: {error}); training gives the same "
            "numbers without it, but takes several times as long: pip install numba",
            stacklevel=2,
        )
        return None
    return loops


def loops() -> Any:
    """The compiled loops, which are known to be there."""
    return compiled()


def number(value: float, kind: Any) -> Any:
    """A loop's scalar argument, of NumPy's type ``kind``; infinite where it is too large for that."""
    if abs(value) > _largest(kind):
        value = math.copysign(math.inf, value)
    return kind.type(value)


@functools.cache
def _largest(kind: Any) -> float:
    return float(np.finfo(kind).max)


@functools.lru_cache(maxsize=64)
def parts_of(n: int) -> tuple[tuple[int, int, int], ...]:
    """The parts in which ``n`` rows are taken: first, last, and the part's number."""
    return _split(n, min(MOST_PARTS, n // FEWEST_ROWS))


def large_parts(n: int, work_of_row: int) -> tuple[tuple[int, int, int], ...]:
    """The parts for work whose operators are autograd's, and for which each part has a gradient of its own."""
    return _split(n, min(MOST_LARGE_PARTS, n * work_of_row // LARGE_WORK))


def _split(n: int, most: int) -> tuple[tuple[int, int, int], ...]:
    n_parts = max(1, most)
    return tuple((n * part // n_parts, n * (part + 1) // n_parts, part) for part in range(n_parts))


Job = tuple[Callable[[int, int, int], object], int]
"""What to do for the rows from first to last of a part with its number, and the number of rows in all."""


def run(work: float, *jobs: Job) -> None:
    """Do every part of every job, in any order.

    Parameters
    ----------
    work
        About how many multiplications they take together.
    """
    parts = [functools.partial(job, *part) for job, n in jobs for part in parts_of(n)]
    run_parts(parts, alone=work < SMALL_WORK)


def run_parts(parts: Sequence[Callable[[], object]], *, alone: bool = False) -> None:
    """Do all of ``parts``, in any order; ``alone``: in this thread."""
    waiting = iter(parts)

    def take() -> None:
        for part in waiting:
            part()

    n_threads = min(n_threads_of_torch(), len(parts))
    # Where another thread is training, too, each does its own work.
    if n_threads == 1 or alone or not _in_use.acquire(blocking=False):
        take()
        return
    try:
        helpers = [_helper(place) for place in range(n_threads - 1)]
        for helper in helpers:
            helper.start(take)
        with contextlib.ExitStack() as waits:  # for all of them, whichever fails
            for helper in helpers:
                waits.callback(helper.wait)
            take()
    finally:
        _in_use.release()


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right`` without a gradient, rows shared out on a CPU."""
    if left.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return left @ right
    left, right = left.detach(), right.detach()
    product = left.new_empty(len(left), right.shape[1])

    def multiply(first: int, last: int, part: int) -> None:
        torch.mm(left[first:last], right, out=product[first:last])

    run(left.shape[0] * right.numel(), (multiply, len(left)))
    return product


def take_rows(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``matrix[rows]``, shared out on a CPU: rows that lie apart in memory take much longer than their size says."""
    if matrix.device.type != "cpu":
        return matrix.index_select(0, rows.to(matrix.device))
    matrix = matrix.detach()
    taken = matrix.new_empty(len(rows), *matrix.shape[1:])

    def take(first: int, last: int, part: int) -> None:
        torch.index_select(matrix, 0, rows[first:last], out=taken[first:last])

    run(8 * taken.numel(), (take, len(rows)))
    return taken


_alone = threading.local()


def n_threads_of_torch() -> int:
    """The number of threads that torch was told to use, also within `without_openmp`."""
    return getattr(_alone, "n_threads", None) or torch.get_num_threads()


@contextlib.contextmanager
def without_openmp() -> Iterator[None]:
    """Let torch's operators run in the calling thread alone; `run` goes on sharing out parts."""
    if getattr(_alone, "n_threads", None):
        yield
        return
    _alone.n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_alone.n_threads)
        _alone.n_threads = None


@contextlib.contextmanager
def with_openmp() -> Iterator[None]:
    """Give torch its threads back within `without_openmp`, for a few large operators."""
    n_threads = getattr(_alone, "n_threads", None)
    if n_threads is None:
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)


class _Helper:
    """A thread that waits for something to do."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._working = False
        self._error: BaseException | None = None
        n_threads, ready = torch.get_num_threads(), threading.Event()
        threading.Thread(target=self._live, args=(ready,), name="saelab", daemon=True).start()
        ready.wait()
        torch.set_num_threads(n_threads)

    def _live(self, ready: threading.Event) -> None:
        torch.set_num_threads(1)  # in this thread, and in all that start later
        ready.set()
        while True:
            task = self._tasks.get()
            try:
                task()
            except BaseException as error:  # raised where it is waited for
                self._error = error
            del task  # and with it the batch
            self._working = False
            self._done.put(None)

    def start(self, task: Callable[[], None]) -> None:
        self._working = True
        self._tasks.put(task)

    def wait(self) -> None:
        """Wait for the end even when interrupted: the task writes to arrays that others use."""
        interrupt: BaseException | None = None
        while self._working:
            try:
                with contextlib.suppress(queue.Empty):
                    self._done.get(timeout=0.1)  # an interrupt may have come just as it was taken
            except KeyboardInterrupt as error:
                interrupt = error
        failure, self._error = self._error or interrupt, None
        if failure is not None:
            raise failure


_in_use = threading.Lock()
_helpers: list[_Helper] = []


def _helper(place: int) -> _Helper:
    while len(_helpers) <= place:
        _helpers.append(_Helper())
    return _helpers[place]


def _forget_threads() -> None:
    """A forked process has none of its parent's threads."""
    global _in_use
    _helpers.clear()
    _in_use = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
