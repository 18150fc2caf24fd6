"""What a user gets from `import saelab` and from the command line."""

import subprocess
import sys
from pathlib import Path

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
    monkeypatch.setattr("os.execv", lambda program, arguments: started.extend(arguments))
    result = CliRunner().invoke(app, ["lab", "--no-browser", "--port", "9999"])
    assert result.exit_code == 0
    assert f"--ServerApp.root_dir={tmp_path / 'tutorials'}" in started
    assert started[-3:] == ["--no-browser", "--port", "9999"]


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
