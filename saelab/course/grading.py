"""Grade a folder of submissions, and hand out tutorials without their solutions.

A submission is the notebook of a tutorial with a learner's answers. Its cells run in a process of their own, and then
the checks of the *original* tutorial judge what they left: verdicts that a submission shows, or edits, count for
nothing. It has no network, so much time and so much memory. It still runs with the rights of who grades: for
submissions of strangers, take a container.
"""

import ast
import csv
import functools
import json
import os
import re
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

from saelab.errors import InputError, SAELabError
from saelab.exercises.verdicts import State
from saelab.files.tensor_files import write_atomically

WORKER = Path(__file__).with_name("worker.py")
NOT_RUN = {"check", "widget"}
"""Tags of cells that do not run: verdicts are found afterwards, and nobody looks."""
SOLUTION = re.compile(r"<details>\s*<summary>\s*Solution.*?</details>\n*", re.DOTALL)
SECONDS_BETWEEN_LOOKS = 0.1
FEW_CORES = 2
"""With so many for a submission, or fewer, it computes in one thread: a second gains little, and loses much where
anything else computes, too."""

Outcome = Literal[State, "timed out", "out of memory", "crashed", "no notebook", "no tutorial"]


class Row(NamedTuple):
    """What is said of one exercise of one submission; of a submission that cannot be graded, ``exercise`` is empty."""

    submission: str
    """Its path below the folder."""
    tutorial: str
    exercise: str
    state: Outcome
    seen: str = ""
    expected: str = ""
    hint: str = ""


class Limits(NamedTuple):
    """Of one submission."""

    timeout: float = 300.0
    """Seconds."""
    memory: float = 2e9
    """Bytes resident, of all its processes together."""


DEFAULT_LIMITS = Limits()


class NotANotebook(SAELabError, ValueError):
    """A file ends in .ipynb and holds something else."""


def submissions(folder: Path) -> list[Path]:
    """All notebooks below a folder, but for JupyterLab's own copies."""
    return sorted(
        path
        for path in folder.rglob("*.ipynb")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook in a file, with each cell's source as one string.

    Raises
    ------
    NotANotebook
        What is no JSON, or no notebook of format 4; its sentence says which.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotANotebook(f"it cannot be read: {error}") from error
    except ValueError as error:
        raise NotANotebook(f"it is not JSON: {error}") from error
    try:
        if notebook["nbformat"] != 4:
            raise NotANotebook(f"it has notebook format {notebook['nbformat']}, not 4; save it anew in JupyterLab")
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell.setdefault("metadata", {})
        if not isinstance(notebook.setdefault("metadata", {}), dict):
            raise TypeError
    except (KeyError, TypeError, AttributeError) as error:
        raise NotANotebook("it is JSON, but no notebook: there are no cells where these should be") from error
    found: dict[str, Any] = notebook
    return found


def checks_of(notebook: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and expression of each check of an original tutorial, in order."""
    expressions = [cell["source"].strip() for cell in notebook["cells"] if "check" in _tags(cell)]
    return [(ast.unparse(ast.parse(text, mode="eval").body).split("(")[0].split(".")[-1], text) for text in expressions]


def _tags(cell: Mapping[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", ()))


def tutorial_of(path: Path, notebook: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """Which of the ``known`` tutorials a submission is of: by its metadata, or else by the file's name."""
    told = notebook["metadata"].get("saelab")
    name = told.get("tutorial") if isinstance(told, dict) else None
    if name in (names := list(known)):
        return str(name)
    in_its_name = [name for name in names if name in path.stem]
    return in_its_name[0] if len(in_its_name) == 1 else None


def grade(
    folder: Path,
    tutorials: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    jobs: int = 1,
    done: Iterable[str] = (),
) -> Generator[list[Row], None, None]:
    """Grade all submissions below a folder; gives the rows of each as soon as it is done.

    Stopped, between two submissions or within one, it leaves no process behind.

    Parameters
    ----------
    folder
        Searched for notebooks to the bottom.
    tutorials
        Folder of the originals, whose checks are run.
    limits
        Of each submission. What exceeds them in the check of one exercise is started anew for the exercises after it.
    jobs
        Submissions at a time.
    done
        Submissions, as rows name them, to leave out.

    Raises
    ------
    RuntimeError
        A process could not even begin; no submission is to blame.
    FileNotFoundError, ImportError
        No such folder, or no notebook below it; IPython or psutil is missing.
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
        if cell.get("cell_type") == "code" and not _tags(cell) & NOT_RUN
    ]
    checks = originals[tutorial]
    rows: list[Row] = []
    while checks and not stop.is_set():
        run = _Run(cells, checks, limits, threads, stop)
        n_before = len(rows)
        for exercise, _ in checks:
            if exercise in run.verdicts:
                rows.append(Row(name, tutorial, exercise, **run.verdicts[exercise]))
            else:
                rows.append(Row(name, tutorial, exercise, run.end, hint=run.why))
                if run.begun == exercise:  # its answer is to blame, and not those below
                    break
        checks = checks[len(rows) - n_before :]
    return rows


class _Run:
    """One process with a submission in it: what came of its checks, and what ended it."""

    verdicts: dict[str, dict[str, Any]]
    """Fields of rows, by exercise."""
    begun: str | None = None
    """The check that was run last."""
    end: Outcome = "crashed"
    why: str = "its process ended by itself"

    def __init__(
        self,
        cells: Sequence[tuple[int, str]],
        checks: Sequence[tuple[str, str]],
        limits: Limits,
        threads: int,
        stop: threading.Event,
    ) -> None:
        self.verdicts = {}
        self._cell, self._broken = 0, ""
        self._token = secrets.token_hex(16)
        here = Path(tempfile.mkdtemp(prefix="saelab-grade-"))
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=here,
                env=os.environ | _environment(here, threads),
                start_new_session=True,  # ctrl-C is for who grades
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
            self._watch(process, limits, stop)
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

    def _watch(self, process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event) -> None:
        """Wait for the end of all of a submission's processes, and bring it about where a limit is passed."""
        import psutil

        began = time.monotonic()
        family = {process.pid: psutil.Process(process.pid)}
        try:
            while process.poll() is None and not stop.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(psutil.NoSuchProcess):
                    family |= {child.pid: child for child in family[process.pid].children(recursive=True)}
                if _resident(family.values()) > limits.memory:
                    self.end, self.why = (
                        "out of memory",
                        f"{self._where()} it took more than {limits.memory / 1e9:g} GB",
                    )
                    break
                if time.monotonic() - began > limits.timeout:
                    self.end, self.why = "timed out", f"{self._where()} it had not ended after {limits.timeout:g} s"
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
    """Caches and settings of its own, so that no submission finds what another has left."""
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
    """The rows in a CSV that `table` wrote.

    Raises
    ------
    ValueError
        It has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(Row._fields):
            raise InputError(f"{path} has other columns than {', '.join(Row._fields)}; it is no table of grades")
        return [Row(**row) for row in reader]  # type: ignore[arg-type]


@contextmanager
def table(path: Path, rows: Iterable[Row] = ()) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Write a CSV; what is given to the function it yields is on the disk when that returns."""
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
    """Per submission: points, of how many, and what stands in their way."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = found.setdefault(
            row.submission, {"submission": row.submission, "tutorial": row.tutorial, "points": 0, "of": 0, "states": []}
        )
        entry["points"] += row.state == "passed"
        entry["of"] += bool(row.exercise)
        entry["states"].append(row.state)
    return [found[name] for name in sorted(found)]


def handout(tutorials: Path, folder: Path) -> list[Path]:
    """Copy tutorials to a folder, without their solutions and outputs.

    Raises
    ------
    FileExistsError
        One of them is in the folder already; then nothing is written.
    """
    originals = sorted(tutorials.glob("*.ipynb"))
    written = [folder / path.name for path in originals]
    if there := [path for path in written if path.exists()]:
        raise FileExistsError(f"{there[0]} is there already; name a new folder, or take it away first")
    for original, path in zip(originals, written, strict=True):
        notebook = read_notebook(original)
        notebook["cells"] = [bare for cell in notebook["cells"] if (bare := _without_solution(cell)) is not None]
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    return written


def _without_solution(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The cell without solution and outputs; None where nothing is left."""
    if cell["cell_type"] == "code":
        return cell | {"outputs": [], "execution_count": None}
    source = SOLUTION.sub("", cell["source"]).rstrip()
    return cell | {"source": source} if source else None
