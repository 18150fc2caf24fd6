"""The SAEs of a sweep trained in turn, or at the same time in processes of one thread each that share activations."""

import contextlib
import os
import signal
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations
from saelab.errors import InputError, InputTypeError, SAELabError
from saelab.sae.base import ARCHITECTURES, SparseAutoencoder
from saelab.training.interrupts import HeldSignals

Item = TypeVar("Item")
Data = tuple[Activations, Tensor | ActivationStore]
"""What to train on, and what to evaluate on."""
Train = Callable[[Item, Activations, Tensor | ActivationStore, Callable[[int], None]], None]
"""Trains one SAE on the data, and says after each step how many it has done."""
SECONDS_BETWEEN_LOOKS = 0.2
"""At how far the processes are, and at whether they shall stop."""
_STOP, _FIRST = 0, 1
"""Places in the numbers that processes share: whether all shall stop, then for each task the steps it has done."""
_NOT_STARTED = -1


class Task(NamedTuple):
    """One SAE to train."""

    name: str
    n_steps: int
    item: Any
    """What `Train` takes."""


class KilledError(SAELabError, RuntimeError):
    """A process ended without a word: killed by someone, or by the system for want of memory."""


def train_in_turn(train: Train[Any], tasks: Sequence[Task], data: Data, *, n_jobs: int = 1, progress: bool) -> None:
    """Train one after the other in this process, with a bar over the steps of all.

    One that fails does not keep the others from being trained; its error is raised at the end. A mistake of the
    caller's is raised at once.
    """
    errors: dict[int, BaseException] = {}
    steps = np.zeros(len(tasks), dtype=np.int64)
    with _bar(tasks, progress) as show:
        for place, task in enumerate(tasks):

            def note(step: int, place: int = place) -> None:
                steps[place] = step
                show(steps)

            try:
                train(task.item, *data, note)
            except (InputError, InputTypeError):
                raise
            except Exception as error:
                errors[place] = error
            show(steps, finished=place)
    _raise(errors, tasks)


def train_in_processes(train: Train[Any], tasks: Sequence[Task], data: Data, *, n_jobs: int, progress: bool) -> None:
    """Train up to ``n_jobs`` at the same time, with a bar over the steps of all.

    Errors are raised as by `train_in_turn`. If a process is killed, those that were being trained are tried again, each
    by itself: one that ends its process again has failed. Interrupted (Ctrl-C, Jupyter's stop button) or told to
    terminate, all processes finish their step, write a checkpoint and stop; so they do where this process is killed,
    which they notice on systems other than Windows. Interrupted a second time, they are killed.
    """
    own = {name: cls for name, cls in ARCHITECTURES.items() if not cls.__module__.startswith("saelab.")}
    train_on, evaluate_on = data
    first = _Shared.of(train_on)
    shared = first, first if evaluate_on is train_on else _Shared.of(evaluate_on)
    errors: dict[int, BaseException] = {}
    with tempfile.TemporaryDirectory(prefix="saelab-sweep-", ignore_cleanup_errors=True) as folder:
        numbers: NDArray[np.int64] = np.memmap(
            Path(folder) / "numbers", dtype=np.int64, mode="w+", shape=_FIRST + len(tasks)
        )
        numbers[_FIRST:] = _NOT_STARTED
        with HeldSignals() as held, _bar(tasks, progress) as show, _looking(numbers, held, show):
            groups = [list(range(len(tasks)))]
            while groups and not numbers[_STOP]:
                group = groups.pop()
                calls = ((train, tasks[place].item, place, shared, numbers, own) for place in group)
                left = set(group)
                try:
                    for place, error in _results(calls, n_jobs):
                        left.discard(place)
                        if error is not None:
                            errors[place] = error
                        if isinstance(error, InputError | InputTypeError):
                            numbers[_STOP] = 1
                        show(numbers[_FIRST:], finished=place)
                except BrokenExecutor:
                    started = {place for place in left if numbers[_FIRST + place] != _NOT_STARTED}
                    if len(group) == 1 or not started:
                        errors |= {place: KilledError("its process was killed") for place in started or left}
                        started = started or left
                    else:
                        groups += [[place] for place in sorted(started)]
                    if rest := sorted(left - started):
                        groups.insert(0, rest)
            asked = set(held.asked)
        del numbers  # Windows deletes no file that is mapped
    if signal.SIGTERM in asked:
        raise SystemExit(128 + signal.SIGTERM)
    if asked:
        raise KeyboardInterrupt("the sweep was stopped; the same call goes on from there")
    _raise(errors, tasks)


def _results(calls: Iterator[tuple[Any, ...]], n_jobs: int) -> Iterator[tuple[int, BaseException | None]]:
    """What `_work` gives for each call, as they end."""
    from joblib import Parallel, delayed

    # Two at least: with one, joblib would use this process. It keeps one copy of arrays that are larger than 1 MB.
    parallel = Parallel(n_jobs=max(2, n_jobs), backend="loky", batch_size=1, return_as="generator_unordered")
    yield from parallel(delayed(_work)(*call) for call in calls)


def _work(
    train: Train[Any],
    item: Any,
    place: int,
    shared: Sequence["_Shared"],
    numbers: NDArray[np.int64],
    own: Mapping[str, type[SparseAutoencoder]],
) -> tuple[int, BaseException | None]:
    """In a process of its own: train one SAE, and give back its place and its error."""
    parent = os.getppid()
    torch.set_num_threads(1)
    # Ctrl-C comes to all processes of a terminal; only the first of them answers it, and tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ARCHITECTURES.update(own)  # a notebook's classes come without having been defined here, or defined anew
    numbers[_FIRST + place] = 0

    def note(step: int) -> None:
        numbers[_FIRST + place] = step
        if numbers[_STOP] or os.getppid() != parent:
            signal.raise_signal(signal.SIGINT)  # held by the trainer until it has written a checkpoint

    try:
        if not numbers[_STOP]:
            train(item, shared[0].tensor(), shared[1].tensor(), note)
    except KeyboardInterrupt:
        if os.getppid() != parent:
            os._exit(1)  # nobody is left to give it back to
    except Exception as error:
        error.add_note(f"In a process of its own:\n{traceback.format_exc()}")
        return place, error
    return place, None


class _Shared(NamedTuple):
    """Activations on their way to a process: as an array, which joblib keeps once for all."""

    array: NDArray[Any] | None
    """None where the rows are on disk."""
    dtype: torch.dtype
    rest: Any
    """The store around the array, without it; None where there is none. Or all of what is on disk."""

    @classmethod
    def of(cls, activations: Any) -> "_Shared":
        rows = activations.activations if isinstance(activations, ActivationStore) else activations
        if not isinstance(rows, Tensor):
            return cls(None, rows.dtype, activations)
        none = torch.empty(0)
        rest = None
        if isinstance(activations, ActivationStore):
            rest = replace(activations, activations=none, token_ids=none, text_indices=none, positions=none)
        rows = rows.detach().cpu().contiguous()
        array = rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows  # which NumPy does not have
        return cls(array.numpy(), rows.dtype, rest)

    def tensor(self) -> Any:
        """The activations again; in a process, on the shared copy, which no trainer changes."""
        if self.array is None:
            return self.rest
        with warnings.catch_warnings():
            # A trainer never writes to activations, so it does not matter that this array cannot be written.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            rows = torch.from_numpy(np.asarray(self.array)).view(self.dtype)
        return rows if self.rest is None else replace(self.rest, activations=rows)


@contextlib.contextmanager
def _bar(tasks: Sequence[Task], progress: bool) -> Iterator[Callable[..., None]]:
    """A bar over the steps of all tasks; what it gives shows how far each is, and that one is finished."""
    from tqdm.auto import tqdm

    most = np.array([task.n_steps for task in tasks])
    done: set[int] = set()
    lock = threading.Lock()
    with tqdm(total=int(most.sum()), desc="sweep", unit="step", disable=not progress or not tasks) as bar:

        def show(steps: NDArray[np.int64], finished: int | None = None) -> None:
            with lock:
                if finished is not None:
                    done.add(finished)
                now = np.clip(steps, 0, most)
                now[list(done)] = most[list(done)]
                bar.set_postfix_str(f"{len(done)} of {len(tasks)} SAEs", refresh=finished is not None)
                bar.update(int(now.sum()) - bar.n)

        yield show


@contextlib.contextmanager
def _looking(numbers: NDArray[np.int64], held: HeldSignals, show: Callable[..., None]) -> Iterator[None]:
    """Within it, a thread shows how far the processes are, and has them stop when this one is interrupted."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            show(numbers[_FIRST:])
            if held.asked:
                numbers[_STOP] = 1

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _raise(errors: Mapping[int, BaseException], tasks: Sequence[Task]) -> None:
    if not errors:
        return
    first = min(errors, key=lambda place: (not isinstance(errors[place], InputError | InputTypeError), place))
    if len(tasks) > 1:
        names = ", ".join(tasks[place].name for place in sorted(errors))
        errors[first].add_note(f"{len(errors)} of {len(tasks)} SAEs failed: {names}. The others are done and kept.")
    raise errors[first]
