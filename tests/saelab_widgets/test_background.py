"""A loop beside the kernel: it always says its last word, and can always be stopped."""

import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
import torch
from saelab_widgets.background import (
    PUBLISH_SECONDS,
    BackgroundLoop,
    LatestTask,
    one_thread_on_small_machines,
)
from threadpoolctl import threadpool_info


class Counter:
    """A loop that counts its steps and what it published, up to ``last`` steps, failing at ``fail``."""

    def __init__(self, last: int = 10**9, fail: int = 10**9, seconds: float = 0.0) -> None:
        self.n, self.published, self.ended_with = 0, list[tuple[float, int]](), list[Exception | None]()
        self.last, self.fail, self.seconds = last, fail, seconds
        self.loop = BackgroundLoop(self.step, lambda: self.published.append((time.monotonic(), self.n)), self.ended)

    def step(self) -> bool:
        time.sleep(self.seconds)
        self.n += 1
        if self.n == self.fail:
            raise ValueError("step failed")
        return self.n < self.last

    def ended(self, error: Exception | None) -> None:
        self.ended_with.append(error)


def test_last_state_is_published_however_fast_the_loop_ends() -> None:
    counter = Counter(last=100)
    counter.loop.start()
    counter.loop.wait(10)
    assert counter.published[-1][1] == 100
    assert counter.ended_with == [None] and not counter.loop.running


def test_pictures_are_never_closer_than_the_throttle_but_for_the_last() -> None:
    counter = Counter(seconds=0.001)
    counter.loop.start()
    time.sleep(0.6)
    counter.loop.stop()
    times = [at for at, _ in counter.published]
    assert len(times) >= 3
    assert all(b - a >= 0.99 * PUBLISH_SECONDS for a, b in pairwise(times[:-1]))
    assert counter.published[-1][1] == counter.n


def test_a_stopped_loop_goes_on_where_it_was() -> None:
    counter = Counter(seconds=0.001)
    for _ in range(3):
        counter.loop.start()
        time.sleep(0.05)
        counter.loop.stop()
    assert len(counter.ended_with) == 3 and counter.n > 3


def test_an_error_ends_the_loop_and_is_handed_over() -> None:
    counter = Counter(fail=3)
    counter.loop.start()
    counter.loop.wait(10)
    assert str(counter.ended_with[0]) == "step failed"


def test_starting_one_loop_stops_the_other() -> None:
    first, second = Counter(seconds=0.001), Counter(seconds=0.001)
    first.loop.start()
    second.loop.start()
    assert not first.loop.running and second.loop.running
    second.loop.stop()


def test_stop_from_within_the_loop_does_not_wait_for_itself() -> None:
    counter = Counter()

    def step() -> bool:
        counter.loop.stop()
        return True

    counter.loop = BackgroundLoop(step, lambda: None, counter.ended)
    counter.loop.start()
    counter.loop.wait(10)
    assert counter.ended_with == [None]


def test_a_step_that_hangs_is_reported_and_not_waited_for_forever() -> None:
    begun, release = threading.Event(), threading.Event()

    def step() -> bool:
        begun.set()
        return release.wait(10)

    loop = BackgroundLoop(step, lambda: None, lambda error: None)
    loop.start()
    begun.wait(10)
    with pytest.raises(TimeoutError, match="has not ended within 0.1 s"):
        loop.stop(0.1)
    release.set()
    loop.stop()


def test_of_the_jobs_that_wait_only_the_newest_runs() -> None:
    done, release, errors = list[int](), threading.Event(), list[Exception]()
    task = LatestTask(errors.append)

    def first() -> None:
        release.wait(10)
        done.append(0)

    task.submit(first)
    while task.superseded:
        time.sleep(0.001)
    for job in range(1, 6):
        task.submit(lambda job=job: done.append(job))  # type: ignore[misc]
    assert task.superseded
    release.set()
    task.wait(10)
    assert done == [0, 5] and not errors


def test_a_job_that_fails_is_handed_over_and_the_next_one_runs() -> None:
    done, errors = list[int](), list[Exception]()
    task = LatestTask(errors.append)
    task.submit(lambda: 1 // 0)  # type: ignore[arg-type]
    task.wait(10)
    task.submit(lambda: done.append(1))
    task.wait(10)
    assert isinstance(errors[0], ZeroDivisionError) and done == [1]


def test_a_finished_task_leaves_no_thread_behind() -> None:
    task = LatestTask(lambda error: None)
    task.submit(lambda: None)
    task.wait(10)
    end = time.monotonic() + 5
    while any(thread.name == "saelab-latest-task" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_threads_come_back_when_the_last_of_several_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before, blas_before = torch.get_num_threads(), blas()
    torch.set_num_threads(2)
    try:
        first, second = one_thread_on_small_machines(), one_thread_on_small_machines()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        assert set(blas()) == {1}
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
        assert blas() == blas_before
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "background",
    [
        "BackgroundLoop(lambda: bool(a @ a is not None), lambda: None, print).start()",
        "task = LatestTask(print); task.submit(lambda: [a @ a for _ in iter(lambda: task.superseded, True)])",
    ],
)
def test_a_script_that_ends_while_something_runs_ends_without_a_crash(background: str) -> None:
    script = f"""
import time, torch
from saelab_widgets.background import BackgroundLoop, LatestTask
a = torch.randn(300, 300)
{background}
time.sleep(0.2)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
