"""Grading: whatever a submission does, each exercise gets the verdict it has earned, and the others get theirs."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from saelab.cli.app import app
from saelab.course import grading, notebooks
from saelab.course.grading import Limits, Row

Cell = tuple[str, str]
"""A cell's source, and its tag."""

IMPORTS: Cell = ("from saelab.exercises import check", "")
CHECKS: list[Cell] = [("check.features_on(my_l0)", "check"), ("check.relative_reconstruction_bias(my_gamma)", "check")]
RIGHT_L0: Cell = ("def my_l0(codes):\n    return (codes > 0).sum(1).float().mean()", "exercise")
RIGHT_GAMMA: Cell = ("def my_gamma(x, r):\n    return float(r.square().sum() / (x * r).sum())", "exercise")
OPEN: list[Cell] = [
    ("def my_l0(codes):\n    raise NotImplementedError", "exercise"),
    ("def my_gamma(x, r):\n    raise NotImplementedError", "exercise"),
]
FAKES = """
import torch
from saelab.exercises import Verdict, verdicts
from saelab.exercises import check as its_check
def fake(*_, **__):
    return Verdict("fake", "passed")
verdicts._verdict = verdicts.expect = verdicts._close = fake
its_check.features_on = its_check.relative_reconstruction_bias = fake
torch.allclose = lambda *_, **__: True
class check:
    features_on = relative_reconstruction_bias = fake
def my_l0(codes):
    torch.allclose = lambda *_, **__: True
    return 77.0
my_gamma = my_l0
print('{"exercise": "features_on", "state": "passed"}')
"""


def write(path: Path, cells: Sequence[Cell], tutorial: str | None = "00_test") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"saelab": {"tutorial": tutorial}} if tutorial else {},
        "cells": [
            {"cell_type": "code", "source": source, "metadata": {"tags": [tag]} if tag else {}, "outputs": []}
            for source, tag in cells
        ],
    }
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@pytest.fixture
def tutorials(tmp_path: Path) -> Path:
    write(tmp_path / "tutorials" / "00_test.ipynb", [IMPORTS, *OPEN, *CHECKS])
    write(tmp_path / "tutorials" / "01_other.ipynb", [IMPORTS, OPEN[0], CHECKS[0]])
    return tmp_path / "tutorials"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handed in").mkdir()
    return tmp_path / "handed in"


Graded = Callable[..., dict[tuple[str, str], Row]]


@pytest.fixture
def graded(tutorials: Path, folder: Path) -> Graded:
    """Grade the folder; rows by submission and exercise."""

    def all_rows(**limits: Any) -> dict[tuple[str, str], Row]:
        found = grading.grade(folder, tutorials, limits=Limits(**{"timeout": 60, **limits}), jobs=2)
        return {(row.submission, row.exercise): row for rows in found for row in rows}

    return all_rows


def states(rows: dict[tuple[str, str], Row], name: str) -> list[str]:
    return [row.state for (submission, _), row in rows.items() if submission == name]


def test_answers_pass_fail_and_are_open_and_a_fake_fails(folder: Path, graded: Graded) -> None:
    wrong = ("def my_l0(codes):\n    return (codes > 0).float().mean()", "exercise")
    write(folder / "ada" / "00_test.ipynb", [IMPORTS, RIGHT_L0, RIGHT_GAMMA, *CHECKS])
    write(folder / "bob" / "mine.ipynb", [IMPORTS, wrong, OPEN[1]])
    write(folder / "cid" / "00_test.ipynb", [IMPORTS, *OPEN, *CHECKS])
    write(folder / "dan" / "00_test.ipynb", [IMPORTS, (FAKES, "exercise"), *CHECKS])
    write(
        folder / "eve" / "00_test.ipynb",
        [("def my_gamma(", ""), ("1 / 0", ""), ("import sys; sys.exit()", ""), RIGHT_L0],
    )
    rows = graded()
    assert states(rows, "ada/00_test.ipynb") == ["passed", "passed"]
    assert states(rows, "bob/mine.ipynb") == ["failed", "open"]
    seen = rows["bob/mine.ipynb", "features_on"]
    assert seen.tutorial == "00_test" and seen.seen.endswith(": 0.5") and seen.expected == "2" and "share" in seen.hint
    assert states(rows, "cid/00_test.ipynb") == ["open", "open"]
    assert states(rows, "dan/00_test.ipynb") == ["failed", "failed"]
    assert rows["dan/00_test.ipynb", "features_on"].seen.endswith(": 77")
    # Errors in a cell do not stop the rest.
    assert states(rows, "eve/00_test.ipynb") == ["passed", "failed"]
    missing = rows["eve/00_test.ipynb", "relative_reconstruction_bias"]
    assert missing.seen == "NameError: name 'my_gamma' is not defined"
    assert "cell 1 raised SyntaxError" in missing.hint and "cell 2 raised ZeroDivisionError" in missing.hint


def test_what_loops_exits_or_takes_memory_stops_no_other_submission_and_no_other_exercise(
    folder: Path, graded: Graded
) -> None:
    write(folder / "loop.ipynb", [("def my_l0(codes):\n    while True: pass", ""), RIGHT_GAMMA])
    write(folder / "cells.ipynb", [RIGHT_L0, RIGHT_GAMMA, ("while True: pass", "")])
    write(
        folder / "exit.ipynb",
        [("import os, sys\ndef my_l0(codes):\n    sys.exit()", ""), ("def my_gamma(x, r): os._exit(3)", "")],
    )
    write(folder / "memory.ipynb", [("import numpy as np\nhoard = [np.ones(2**27) for _ in range(10)]", ""), RIGHT_L0])
    write(folder / "right.ipynb", [RIGHT_L0, RIGHT_GAMMA])
    rows = graded(timeout=10, memory=1.5e9)
    assert states(rows, "loop.ipynb") == ["timed out", "passed"]
    assert "in the check of features_on" in rows["loop.ipynb", "features_on"].hint
    assert states(rows, "cells.ipynb") == ["timed out", "timed out"]
    assert "in cell 3 it had not ended after 10 s" in rows["cells.ipynb", "features_on"].hint
    assert states(rows, "exit.ipynb") == ["failed", "crashed"]
    assert "SystemExit" in rows["exit.ipynb", "features_on"].seen
    assert "exit code 3" in rows["exit.ipynb", "relative_reconstruction_bias"].hint
    assert states(rows, "memory.ipynb") == ["out of memory", "out of memory"]
    assert "in cell 1 it took more than 1.5 GB" in rows["memory.ipynb", "features_on"].hint
    assert states(rows, "right.ipynb") == ["passed", "passed"]


def test_children_of_a_submission_end_with_it(folder: Path, graded: Graded, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    spawn = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\ntime.sleep(1)"
    )
    write(folder / "a.ipynb", [(spawn, ""), RIGHT_L0, RIGHT_GAMMA])
    assert states(graded(), "a.ipynb") == ["passed", "passed"]
    child = int(mark.read_text(encoding="utf-8"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def has_namespaces() -> bool:
    code = "import sys, worker; sys.exit(not worker.leave_the_network())"
    return subprocess.run([sys.executable, "-c", code], cwd=grading.WORKER.parent, check=False).returncode == 0


def test_there_is_no_network_for_a_submission_nor_for_its_children(
    folder: Path, graded: Graded, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port, child = server.getsockname()[1], tmp_path / "reached"
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
        cells = [
            (reach, ""),
            ("import socket; socket.getaddrinfo('example.org', 80)", ""),
            (f"import subprocess, sys; code = subprocess.run([sys.executable, '-c', {reach!r}]).returncode", ""),
            (f"open({str(child)!r}, 'w').write(str(code))", ""),
            RIGHT_L0,
        ]
        write(folder / "a.ipynb", cells)
        rows = graded()
        assert states(rows, "a.ipynb") == ["passed", "failed"]
        hint = rows["a.ipynb", "relative_reconstruction_bias"].hint
        assert hint.count("PermissionError: there is no network while a submission is graded") == 2
        if has_namespaces():
            assert child.read_text(encoding="utf-8") == "1"
            with pytest.raises(TimeoutError):
                server.accept()


def test_a_submission_runs_in_a_folder_of_its_own_as_ipython_runs_it(folder: Path, graded: Graded) -> None:
    first = (
        "%time 1 + 1\nfrom IPython.display import display\ndisplay(get_ipython())\nopen('kept', 'w').write('x')\n"
        "import os; home = os.listdir()\n!echo from the shell\n"
    )
    answer = ("def my_l0(codes):\n    return 2.0 if 'kept' in home and 'a.ipynb' not in home else 0.0", "")
    skipped = ("raise SystemError", "widget")
    write(folder / "a.ipynb", [(first, ""), answer, RIGHT_GAMMA, skipped])
    assert states(graded(), "a.ipynb") == ["passed", "passed"]
    assert [path.name for path in folder.iterdir()] == ["a.ipynb"]


def test_what_is_no_notebook_or_of_no_tutorial_says_so(folder: Path, graded: Graded) -> None:
    (folder / "broken.ipynb").write_text('{"cells": [', encoding="utf-8")
    (folder / "list.ipynb").write_text("[]", encoding="utf-8")
    (folder / "bytes.ipynb").write_bytes(b"\xff\xfe\x00")
    (folder / "old.ipynb").write_text('{"nbformat": 3, "worksheets": []}', encoding="utf-8")
    write(folder / "unknown.ipynb", [RIGHT_L0], tutorial="09_nothing")
    write(folder / "eva_01_other_final.ipynb", [RIGHT_L0], tutorial=None)
    write(folder / ".ipynb_checkpoints" / "00_test-checkpoint.ipynb", [RIGHT_L0])
    rows = graded()
    assert {name: row.state for (name, _), row in rows.items()} == {
        "broken.ipynb": "no notebook",
        "list.ipynb": "no notebook",
        "bytes.ipynb": "no notebook",
        "old.ipynb": "no notebook",
        "unknown.ipynb": "no tutorial",
        "eva_01_other_final.ipynb": "passed",
    }
    assert "not JSON" in rows["broken.ipynb", ""].hint and "format 3" in rows["old.ipynb", ""].hint
    assert "00_test, 01_other" in rows["unknown.ipynb", ""].hint
    assert rows["eva_01_other_final.ipynb", "features_on"].tutorial == "01_other"


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_a_table_says_points_and_goes_on(
    folder: Path, tutorials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(folder / "ada.ipynb", [RIGHT_L0, OPEN[1]])
    words = ("grade", folder, "--tutorials", tutorials, "--timeout", 60)
    result = run(*words)
    assert "ada.ipynb  1 of 2  (1 open)" in result.stdout and "[1/1] ada.ipynb" in result.stderr
    with Path("grades.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["submission", "tutorial", "exercise", "state", "seen", "expected", "hint"]
    assert [row["state"] for row in table] == ["passed", "open"]
    assert "is there already" in run(*words, code=1).stderr

    (folder / "bob.ipynb").write_text("", encoding="utf-8")
    write(folder / "ada.ipynb", [])  # graded, so not looked at again
    document = json.loads(run(*words, "--resume", "--json").stdout)
    assert document["submissions"] == [
        {"submission": "ada.ipynb", "tutorial": "00_test", "points": 1, "of": 2, "states": ["passed", "open"]},
        {"submission": "bob.ipynb", "tutorial": "", "points": 0, "of": 0, "states": ["no notebook"]},
    ]
    assert [row["submission"] for row in document["rows"]] == ["ada.ipynb", "ada.ipynb", "bob.ipynb"]
    assert len(grading.read_rows(Path("grades.csv"))) == 3
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert "no table of grades" in run(*words, "--resume", "--output", "other.csv", code=1).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C to one process")
def test_nothing_is_lost_and_no_process_is_left_when_it_is_interrupted(
    folder: Path, tutorials: Path, tmp_path: Path
) -> None:
    write(folder / "a.ipynb", [RIGHT_L0, RIGHT_GAMMA])
    write(folder / "b.ipynb", [("import time; time.sleep(600)", "")])
    command = [sys.executable, "-m", "saelab", "grade", str(folder), "--tutorials", str(tutorials)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, encoding="utf-8")
    assert process.stderr is not None
    assert "[1/2] a.ipynb  2 of 2" in next(line for line in process.stderr if not line.startswith("Note"))
    time.sleep(1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "--resume goes on" in process.stderr.read()
    assert [row.state for row in grading.read_rows(tmp_path / "grades.csv")] == ["passed", "passed"]
    assert workers and not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize(("system", "noted"), [("Linux", False), ("Darwin", True), ("Windows", True)])
def test_where_other_programs_can_reach_the_network_grade_says_so(
    system: str, noted: bool, folder: Path, tutorials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty.ipynb").write_text("", encoding="utf-8")
    monkeypatch.setattr("platform.system", lambda: system)
    words = ("grade", folder, "--tutorials", tutorials, "--output", tmp_path / "grades.csv")
    assert ("only Python keeps a submission from the network" in run(*words).stderr) == noted


def test_what_is_missing_is_said_before_anything_runs(
    folder: Path, tutorials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="no notebook below"):
        next(grading.grade(folder, tutorials))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        next(grading.grade(folder / "none", tutorials))
    with pytest.raises(FileNotFoundError, match="no tutorials in"):
        next(grading.grade(folder, folder))
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError, match="grading needs psutil: pip install"):
        next(grading.grade(folder, tutorials))


def test_a_handout_has_no_solutions_and_no_outputs(tutorials: Path, tmp_path: Path) -> None:
    path = tutorials / "00_test.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    solution = "<details><summary>Solution</summary>\n\n```python\nmy_l0 = 3\n```\n\nSo.\n</details>"
    hint = "<details><summary>A hint</summary>\n\nCount.\n</details>"
    notebook["cells"][1] |= {
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "3"}],
        "execution_count": 4,
    }
    notebook["cells"] += [
        {"cell_type": "markdown", "metadata": {}, "source": [line]}
        for line in (solution, f"Before.\n\n{solution}", hint)
    ]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    result = run("handout", tmp_path / "course", "--tutorials", tutorials)
    assert "00_test.ipynb" in result.stdout and "01_other.ipynb" in result.stdout
    handed = notebooks.read_notebook(tmp_path / "course" / "00_test.ipynb")
    assert [cell["source"] for cell in handed["cells"][-2:]] == ["Before.", hint]
    assert len(handed["cells"]) == len(notebook["cells"]) - 1
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in handed["cells"][:5])
    assert handed["metadata"] == notebook["metadata"]
    assert "is there already" in run("handout", tmp_path / "course", "--tutorials", tutorials, code=1).stderr
