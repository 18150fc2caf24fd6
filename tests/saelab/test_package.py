"""What a user gets from `import saelab` and from the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import saelab
from saelab.cli import lab
from saelab.cli.app import app

HEAVY = (
    "transformers",
    "transformer_lens",
    "sklearn",
    "pandas",
    "matplotlib",
    "ipywidgets",
    "anywidget",
    "numba",
    "scipy",
    "typer",
)


def test_importing_saelab_costs_torch_and_nothing_else_heavy() -> None:
    code = f"import sys, saelab; print([name for name in {HEAVY} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout == "[]\n"
    )


def test_every_public_name_is_there_and_documented() -> None:
    for name in saelab.__all__:
        assert getattr(saelab, name).__doc__


def test_lab_opens_the_tutorials_of_the_clone_and_passes_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials" / "00_start_here.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    started: list[str] = []

    def run(command: list[str]) -> int:
        started.extend(command)
        return 3

    monkeypatch.setattr(lab, "run_in_this_terminal", run)
    result = CliRunner().invoke(app, ["lab", "--no-browser", "--port", "9999"])
    assert result.exit_code == 3
    assert f"--ServerApp.root_dir={tmp_path / 'tutorials'}" in started
    assert started[-3:] == ["--no-browser", "--port", "9999"]


JUPYTER = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print(sys.argv[-1], flush=True)
while len(asked) < 2:
    time.sleep(0.01)
sys.exit(7)
"""
"""Stands for JupyterLab, which ends at the second Ctrl-C."""


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C to a process group")
def test_lab_leaves_ctrl_c_to_jupyterlab_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "jupyter.py").write_text(JUPYTER, encoding="utf-8")
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials" / "00_start_here.ipynb").write_text("{}", encoding="utf-8")
    command = [sys.executable, "-m", "saelab", "lab", "--notebook-dir=a folder"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **options) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "--notebook-dir=a folder\n"
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # JupyterLab asks whether to stop
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 7
        assert process.stderr.read() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to hand on")
def test_lab_takes_jupyterlab_with_it_when_it_is_told_to_terminate() -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    run = f"run_in_this_terminal([sys.executable, '-c', {program!r}])"
    script = f"import sys; from saelab.cli.lab import run_in_this_terminal; sys.exit({run})"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_lab_copies_the_packaged_tutorials_where_there_is_no_clone_and_never_over_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    (packaged / "00_start_here.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(lab, "packaged_tutorials", lambda: packaged)
    (tmp_path / "course").mkdir()
    monkeypatch.chdir(tmp_path / "course")
    copy = lab.tutorials_folder() / "00_start_here.ipynb"
    copy.write_text("my notes", encoding="utf-8")
    assert lab.tutorials_folder() / "00_start_here.ipynb" == copy
    assert copy.read_text(encoding="utf-8") == "my notes"


def test_lab_without_jupyterlab_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["lab"])
    assert result.exit_code == 1
    assert 'pip install "saelab[lab]"' in result.output
