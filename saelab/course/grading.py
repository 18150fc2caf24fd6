"""Grade a folder of submissions.

A submission is a tutorial's notebook with a learner's answers. Its cells run in a process of their own; then the checks
of the *original* tutorial judge what they defined, so verdicts that a submission displays or edits do not count. The
process runs without network access and within limits of time and memory, but with the rights of the user who grades:
grade submissions from strangers in a container.
"""

import csv
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saelab.course.notebooks import NotANotebook, checks_of, read_notebook, tags, tutorial_of
from saelab.errors import InputError
from saelab.exercises.verdicts import State

WORKER = Path(__file__).with_name("worker.py")
NOT_RUN = {"check", "widget"}
"""Cells with these tags are skipped."""
SECONDS_BETWEEN_LOOKS = 0.1
FEW_CORES = 2
"""A submission with at most this many cores computes in one thread: a second thread gains little, and costs much when
other programs compute as well."""

Outcome = Literal[State, "timed out", "out of memory", "crashed", "no notebook", "no tutorial"]


class Row(NamedTuple):
    """Result of one exercise of one submission; ``exercise`` is empty if the submission cannot be graded."""

    submission: str
    """Path below the folder."""
    tutorial: str
    exercise: str
    state: Outcome
    seen: str = ""
    expected: str = ""
    hint: str = ""


class Limits(NamedTuple):
    """Limits for one submission."""

    timeout: float = 300.0
    """Seconds."""
    memory: float = 2e9
    """Resident bytes, summed over all of its processes."""


DEFAULT_LIMITS = Limits()


def submissions(folder: Path) -> list[Path]:
    """All notebooks below a folder, except JupyterLab's checkpoints."""
    return sorted(
        path
        for path in folder.rglob("*.ipynb")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def grade(
    folder: Path,
    tutorials: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    jobs: int = 1,
    done: Iterable[str] = (),
) -> Generator[list[Row], None, None]:
    """Grade all submissions below a folder, yielding the rows of each as soon as it is done.

    It leaves no process behind when it is closed or interrupted, even in the middle of a submission.

    Parameters
    ----------
    folder
        Searched for notebooks at every depth.
    tutorials
        Folder of the original tutorials, whose checks are run.
    limits
        Limits for each submission. If the check of one exercise exceeds them, the submission starts again for the
        exercises that follow.
    jobs
        Number of submissions graded at the same time.
    done
        Submissions to leave out, named as in the rows.

    Raises
    ------
    RuntimeError
        A worker process could not start; no submission is to blame.
    FileNotFoundError, ImportError
        The folder does not exist or holds no notebook; IPython or psutil is not installed.
    """
    for needed in ("IPython", "psutil"):
        try:
            __import__(needed)
        except ImportError as error:
            raise ImportError(f'grading needs {needed}: pip install "saelab[widgets]"') from error
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    originals = {path.stem: checks_of(read_notebook(path)) for path in sorted(tutorials.glob("*.ipynb"))}
    if not originals:
        raise FileNotFoundError(f"there are no tutorials in {tutorials}")
    paths = {path.relative_to(folder).as_posix(): path for path in submissions(folder)}
    if not paths:
        raise FileNotFoundError(f"there is no notebook below {folder}")
    cores = (os.cpu_count() or 1) // jobs
    threads = cores if cores > FEW_CORES else 1
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        left = [name for name in paths if name not in set(done)]
        futures = [pool.submit(_grade_one, name, paths[name], originals, limits, threads, stop) for name in left]
        for future in as_completed(futures):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _grade_one(
    name: str,
    path: Path,
    originals: Mapping[str, list[tuple[str, str]]],
    limits: Limits,
    threads: int,
    stop: threading.Event,
) -> list[Row]:
    try:
        notebook = read_notebook(path)
    except NotANotebook as error:
        return [Row(name, "", "", "no notebook", hint=str(error))]
    tutorial = tutorial_of(path, notebook, originals)
    if tutorial is None:
        hint = f"neither its metadata nor its file name says which of {', '.join(originals)} it is"
        return [Row(name, "", "", "no tutorial", hint=hint)]
    cells = [
        (number, cell["source"])
        for number, cell in enumerate(notebook["cells"], start=1)
        if cell.get("cell_type") == "code" and not tags(cell) & NOT_RUN
    ]
    checks = originals[tutorial]
    rows: list[Row] = []
    while checks and not stop.is_set():
        run = _Run(limits, threads, stop)
        run.judge(cells, checks)
        n_before = len(rows)
        for exercise, _ in checks:
            if exercise in run.verdicts:
                rows.append(Row(name, tutorial, exercise, **run.verdicts[exercise]))
            else:
                rows.append(Row(name, tutorial, exercise, run.end, hint=run.why))
                if run.begun == exercise:  # its answer is to blame; those that follow get another run
                    break
        checks = checks[len(rows) - n_before :]
    return rows


class _Run:
    """One worker process that runs a submission: the verdicts it reports, and how it ends."""

    def __init__(self, limits: Limits, threads: int, stop: threading.Event) -> None:
        self.verdicts: dict[str, dict[str, Any]] = {}
        """Fields of rows, by exercise."""
        self.begun: str | None = None
        """The check that began last."""
        self.end: Outcome = "crashed"
        self.why = "its process ended by itself"
        self._limits, self._threads, self._stop = limits, threads, stop
        self._cell, self._broken = 0, ""
        self._token = secrets.token_hex(16)

    def judge(self, cells: Sequence[tuple[int, str]], checks: Sequence[tuple[str, str]]) -> None:
        """Run the cells, then the checks, in a process of their own, and wait for its end.

        Raises
        ------
        RuntimeError
            The process could not start.
        """
        here = Path(tempfile.mkdtemp(prefix="saelab-grade-"))
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=here,
                env=os.environ | _environment(here, self._threads),
                start_new_session=True,  # so that ctrl-C reaches only the grading command
            )
            assert process.stdin is not None and process.stdout is not None
            order = {
                "token": self._token,
                "cells": cells,
                "checks": checks,
                "path": [path for path in sys.path if path],
            }
            reader = threading.Thread(target=self._listen, args=[process.stdout], daemon=True)
            reader.start()
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(order).encode() + b"\n")
            self._watch(process)
            reader.join(10)
        finally:
            shutil.rmtree(here, ignore_errors=True)
        if self._broken:
            raise RuntimeError(f"the process that grades could not begin: {self._broken}")

    def _listen(self, stream: Any) -> None:
        for line in stream:
            try:
                said = json.loads(line)
                if said.pop("token") != self._token:
                    continue
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if "cell" in said:
                self._cell = said["cell"]
            elif "begins" in said:
                self.begun = said["begins"]
            elif "broken" in said:
                self._broken = said["broken"]
            elif "exercise" in said:
                self.verdicts.setdefault(said.pop("exercise"), said)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the submission to end, then kill whatever is left of it; kill it early at a limit or at a stop."""
        import psutil

        began = time.monotonic()
        family = {process.pid: psutil.Process(process.pid)}
        try:
            while process.poll() is None and not self._stop.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(psutil.NoSuchProcess):
                    family |= {child.pid: child for child in family[process.pid].children(recursive=True)}
                if _resident(family.values()) > self._limits.memory:
                    self.end = "out of memory"
                    self.why = f"{self._where()} it took more than {self._limits.memory / 1e9:g} GB"
                    break
                if time.monotonic() - began > self._limits.timeout:
                    self.end = "timed out"
                    self.why = f"{self._where()} it had not ended after {self._limits.timeout:g} s"
                    break
        finally:
            for member in family.values():
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            code = process.wait()
        if self.end == "crashed":
            by = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.why = f"{self._where()} its process ended, with {by}"

    def _where(self) -> str:
        return f"in the check of {self.begun}" if self.begun else f"in cell {self._cell}"


def _environment(here: Path, threads: int) -> dict[str, str]:
    """Environment variables that give a submission caches and settings of its own, apart from other submissions'."""
    folders = {name: str(here / name.lower()) for name in ("IPYTHONDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR")}
    return folders | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": str(threads)}


def _resident(processes: Iterable[Any]) -> int:
    import psutil

    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV that `table` wrote.

    Raises
    ------
    InputError
        The file has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(Row._fields):
            raise InputError(f"{path} has other columns than {', '.join(Row._fields)}; it is no table of grades")
        return [Row(**row) for row in reader]  # type: ignore[arg-type]


@contextmanager
def table(path: Path, rows: Iterable[Row] = ()) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Write a CSV of rows, and yield a function that appends more; they are on disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def add(more: Iterable[Row]) -> None:
            writer.writerows(more)
            file.flush()

        writer.writerow(Row._fields)
        add(rows)
        yield add


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Sum up each submission: points, the number of exercises, and the state of each."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = found.setdefault(
            row.submission, {"submission": row.submission, "tutorial": row.tutorial, "points": 0, "of": 0, "states": []}
        )
        entry["points"] += row.state == "passed"
        entry["of"] += bool(row.exercise)
        entry["states"].append(row.state)
    return [found[name] for name in sorted(found)]
