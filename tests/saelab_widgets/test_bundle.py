"""The front end that users get is the one that the source builds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

WIDGETS = Path(__file__).parents[2] / "widgets"


def test_committed_front_end_is_what_its_source_builds(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None and not os.environ.get("CI"):
        pytest.skip("Node.js is not installed; only who changes widgets/frontend needs it")
    assert npm is not None, "CI needs Node.js, to build the front end and compare"
    frontend = tmp_path / "frontend"
    shutil.copytree(WIDGETS / "frontend", frontend, ignore=shutil.ignore_patterns("node_modules"))
    built = tmp_path / "saelab_widgets" / "static"
    built.mkdir(parents=True)
    for command in ("ci", "run check", "test", "run build"):
        result = subprocess.run(
            [npm, *command.split()], cwd=frontend, capture_output=True, encoding="utf-8", check=False
        )
        assert result.returncode == 0, f"npm {command}:\n{result.stdout}\n{result.stderr}"
    committed = WIDGETS / "saelab_widgets" / "static"
    assert {path.name for path in built.iterdir()} == {path.name for path in committed.iterdir()}
    for path in built.iterdir():
        assert path.read_bytes() == (committed / path.name).read_bytes(), f"{path.name} is stale: run `make frontend`"
