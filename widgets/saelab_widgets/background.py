"""Run a loop beside the kernel, so that cells and sliders stay live while it works."""

import atexit
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import ClassVar

import torch
from threadpoolctl import ThreadpoolController

PUBLISH_SECONDS = 1 / 12
"""Between two pictures. Smooth to the eye; an unthrottled thread makes the server drop messages, the last one too."""
SMALL_MACHINE_CORES = 2
EXIT_SECONDS = 10
"""How long a process that ends waits for each thread here."""


class _OneThread:
    """Torch and the BLAS of NumPy and scikit-learn on one thread, for as long as anybody wants it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._torch_before = 1
        self._blas = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._torch_before = torch.get_num_threads()
                self._blas.enter_context(_blas_libraries("sklearn" in sys.modules).limit(limits=1, user_api="blas"))
            self._n_inside += 1
            torch.set_num_threads(1)  # in each thread, since OpenMP counts by thread

    def before(self) -> int:
        """The number of threads of torch outside of all this."""
        with self._lock:
            return self._torch_before if self._n_inside else torch.get_num_threads()

    def leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                torch.set_num_threads(self._torch_before)
                self._blas.close()


@functools.lru_cache(maxsize=2)
def _blas_libraries(with_sklearn: bool) -> ThreadpoolController:
    """Those that are loaded; it takes some milliseconds to find them, and scikit-learn brings another."""
    return ThreadpoolController()


_ONE_THREAD = _OneThread()


@contextmanager
def one_thread_on_small_machines() -> Iterator[None]:
    """On one or two cores a second thread gains little, takes the browser's time, and loses it all where another thread
    computes too. Contexts of several threads may overlap: the last to leave restores what the first found.
    """
    if (os.cpu_count() or 1) > SMALL_MACHINE_CORES:
        yield
        return
    _ONE_THREAD.enter()
    try:
        yield
    finally:
        _ONE_THREAD.leave()


class BackgroundLoop:
    """Call ``step`` in a daemon thread until it returns False or `stop` is called.

    ``publish`` is called at most 12 times a second and always once more at the end, then ``ended`` with the exception
    that ended the loop or None; all three run in the loop's thread, with all of torch's threads: a trainer's wait
    without using a core. What else computes there takes `one_thread_on_small_machines`. At most one loop runs in a
    process: starting one stops the other, so that a cell that is run again does not leave its first loop behind.
    """

    _latest: ClassVar["BackgroundLoop | None"] = None
    _switch: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self, step: Callable[[], bool], publish: Callable[[], None], ended: Callable[[Exception | None], None]
    ) -> None:
        self._step, self._publish, self._ended = step, publish, ended
        self._stop = threading.Event()
        # Our own event and never Thread.join(): on Python 3.11 an interrupt inside join() marks a live thread as ended.
        self._done = threading.Event()
        self._done.set()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return not self._done.is_set()

    @property
    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start, or do nothing where it runs. Another loop that runs is stopped first."""
        with self._switch:
            if self.running:
                return
            if BackgroundLoop._latest is not None:
                BackgroundLoop._latest.stop()
            BackgroundLoop._latest = self
            self._stop.clear()
            self._done.clear()
            self._thread = threading.Thread(target=self._main, daemon=True, name="saelab-background-loop")
            self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Ask the loop to end and wait until it has; from inside the loop, only ask.

        Raises
        ------
        TimeoutError
            When a step takes longer than ``timeout`` seconds.
        """
        self._stop.set()
        if not self.is_current_thread:
            self.wait(timeout)

    def wait(self, timeout: float) -> None:
        """Wait until the loop has ended by itself; an interrupt of the kernel ends the waiting. Raises TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"the background loop has not ended within {timeout:g} s")

    def _main(self) -> None:
        error: Exception | None = None
        try:
            torch.set_num_threads(_ONE_THREAD.before())  # this thread may have been started within
            published = 0.0
            while not self._stop.is_set() and self._step():
                if time.monotonic() - published >= PUBLISH_SECONDS:
                    self._publish()
                    published = time.monotonic()
            self._publish()
        except Exception as caught:
            error = caught
        try:
            self._ended(error)
        finally:
            self._done.set()


class LatestTask:
    """Run jobs in a daemon thread, one at a time and the newest only: one that waits gives way to a newer one.

    A job checks `superseded` now and then where it takes long, and returns early. ``failed`` is called with the
    exception of a job that raises one. The thread ends when there is no job.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._next: Callable[[], None] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        _TASKS.add(self)

    @property
    def idle(self) -> bool:
        """Whether no job runs or waits."""
        return self._idle.is_set()

    @property
    def superseded(self) -> bool:
        """Whether another job waits for the one that runs."""
        return self._next is not None

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` next, in place of one that has not begun."""
        with self._lock:
            self._next = job
            if self._idle.is_set():
                self._idle.clear()
                threading.Thread(target=self._main, daemon=True, name="saelab-latest-task").start()

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until no job runs or waits. Raises TimeoutError."""
        if not self._idle.wait(timeout):
            raise TimeoutError(f"the background task has not ended within {timeout:g} s")

    def _main(self) -> None:
        with one_thread_on_small_machines():
            while True:
                with self._lock:
                    job, self._next = self._next, None
                    if job is None:
                        self._idle.set()
                        return
                try:
                    job()
                except Exception as error:
                    self._failed(error)


_TASKS: weakref.WeakSet[LatestTask] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Wait for what runs: a thread that is within torch when Python ends takes the process down with it."""
    with suppress(TimeoutError):
        if BackgroundLoop._latest is not None:
            BackgroundLoop._latest.stop(EXIT_SECONDS)
    for task in list(_TASKS):
        with suppress(TimeoutError):
            if not task.idle:  # else this would start a thread, which Python does not allow any more
                task.submit(lambda: None)  # what runs is superseded
                task.wait(EXIT_SECONDS)
