"""The repository's address: the setting, the command, and the files written from them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "tools" / "address.py"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that the command writes, without an address even if this clone has one."""
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "tutorials", tmp_path / "tutorials", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs")
    )
    address(tmp_path, "--set", "")
    return tmp_path


def address(clone: Path, *options: str, code: int = 0) -> str:
    """Run the command on a copy and return what it printed."""
    command = [sys.executable, str(COMMAND), "--root", str(clone), *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def contents(clone: Path) -> dict[str, bytes]:
    return {str(path.relative_to(clone)): path.read_bytes() for path in sorted(clone.rglob("*")) if path.is_file()}


def test_this_clone_shows_the_address_that_is_set_everywhere(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "tutorials", tmp_path / "tutorials", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs")
    )
    assert address(tmp_path) == "", "run `make address`"


def test_set_changed_and_taken_back_gives_the_same_bytes(clone: Path) -> None:
    before = contents(clone)
    address(clone, "--set", "a-school/sae.course")
    once = contents(clone)
    assert [name for name in once if once[name] == before[name]] == []
    for name, content in once.items():
        assert b"a-school/sae.course" in content, name
    assert address(clone, "--set", "a-school/sae.course") == address(clone) == ""
    assert contents(clone) == once
    address(clone, "--set", "https://github.com/another/fork.git")
    for name, content in contents(clone).items():
        assert b"another/fork" in content and b"a-school" not in content and b".git/" not in content, name
    address(clone, "--set", "")
    assert contents(clone) == before


def test_without_an_address_there_is_no_badge_and_no_link_to_one(clone: Path) -> None:
    for name, content in contents(clone).items():
        text = content.decode()
        for host in ("mybinder.org", "colab.research.google.com", "badge_logo", "git clone https"):
            assert host not in text, name
        assert "https://github.com//" not in text


def test_links_open_each_tutorial_where_it_is(clone: Path) -> None:
    address(clone, "--set", "a-school/course")
    for path in (clone / "tutorials").glob("*.ipynb"):
        head = nbformat.read(path, as_version=4).cells[0]
        assert head.metadata.tags == ["badges"]
        assert (
            f"(https://colab.research.google.com/github/a-school/course/blob/main/tutorials/{path.name})" in head.source
        )
        link = f"https://mybinder.org/v2/gh/a-school/course/main?urlpath=lab/tree/tutorials/{path.name}"
        assert f"({link})" in head.source
        # Opening the notebook requests no picture from another host.
        assert (
            "](data:image/svg+xml;base64," in head.source
            and "](https://colab.research.google.com/assets" not in head.source
        )
    readme = (clone / "README.md").read_text(encoding="utf-8")
    assert "mybinder.org/v2/gh/a-school/course/main?urlpath=lab/tree/tutorials/00_start_here.ipynb" in readme
    assert "git clone https://github.com/a-school/course" in readme
    assert 'repository-code: "https://github.com/a-school/course"' in (clone / "CITATION.cff").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("executed", [True, False])
def test_a_new_tutorial_gets_its_setup_cell_and_keeps_its_outputs(clone: Path, executed: bool) -> None:
    path = clone / "tutorials" / "99_new.ipynb"
    count = 1 if executed else None
    result = nbformat.v4.new_output("execute_result", {"text/plain": "é"}, execution_count=count) if executed else None
    code = nbformat.v4.new_code_cell("1", execution_count=count, outputs=[result] if result else [])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# New"), code]), path)
    assert "99_new.ipynb" in address(clone)
    title, setup, old = nbformat.read(path, as_version=4).cells
    assert title.source == "# New" and setup.metadata.tags == ["setup"] and setup.outputs == []
    assert setup.source.endswith("check=True)") and 'REPOSITORY = ""' in setup.source
    assert [setup.execution_count, old.execution_count] == ([1, 2] if executed else [None, None])
    assert [output.execution_count for output in old.outputs] == ([2] if executed else [])
    nbformat.validate(nbformat.read(path, as_version=4))
    text = path.read_text(encoding="utf-8")
    nbformat.write(nbformat.read(path, as_version=4), path)
    assert path.read_text(encoding="utf-8") == text  # as `make tutorials` writes it
    assert address(clone) == ""


def test_what_is_no_address_is_refused_and_nothing_is_written(clone: Path) -> None:
    before = contents(clone)
    for wrong in ("course", "a/b/c", "https://example.org/a/b", "a b/c", 'a/b"'):
        assert "owner/name" in address(clone, "--set", wrong, code=1)
    assert contents(clone) == before


def test_every_tutorial_has_one_setup_cell_and_it_is_its_first_code() -> None:
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["metadata"].get("tags", []) == ["setup"] for cell in code] == [True] + [False] * (len(code) - 1)
        assert code[0]["outputs"] == []
