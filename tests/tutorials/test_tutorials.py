"""What a reader finds in a committed tutorial before running anything, and whether its exercises can be solved.

nbval tests that the notebooks run.
"""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from saelab.exercises import Verdict

PATHS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))
SOLUTION = re.compile(r"<details>\s*<summary>[^<]+</summary>\n\n.*?```python\n(.+?)\n```\n\n.*?</details>", re.DOTALL)

each_tutorial = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def is_tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def imports_of(cells: list[NotebookNode]) -> str:
    """All imports of code cells, without their other statements."""
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    return "\n".join(
        ast.unparse(line) for tree in trees for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)
    )


@each_tutorial
def test_tutorial_shows_its_outputs_as_text_and_pictures_and_stays_small(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make tutorials`"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.get("name") != "stderr" and output.output_type != "error"
        assert set(output.get("data", {})) <= {"text/plain", "text/html", "image/png"}, "run `make tutorials`"
    for cell in code:
        if is_tagged(cell, "widget"):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    assert path.stat().st_size < 1_000_000


@each_tutorial
def test_tutorial_says_in_its_metadata_which_one_it_is(path: Path) -> None:
    assert read(path).metadata.get("saelab", {}).get("tutorial") == path.stem


@each_tutorial
def test_exercises_are_open_as_they_stand_and_their_solutions_pass(path: Path) -> None:
    cells = read(path).cells
    exercises = [index for index, cell in enumerate(cells) if is_tagged(cell, "exercise")]
    checks = [index for index, cell in enumerate(cells) if is_tagged(cell, "check")]
    assert 2 <= len(exercises) <= 4
    assert checks == [index + 1 for index in exercises]
    namespace: dict[str, Any] = {}  # shared within a notebook: a solution may use those above it
    for index in exercises:
        stub, check, below = (cell.source for cell in cells[index : index + 3])
        (line,) = ast.parse(check).body
        assert isinstance(line, ast.Expr) and re.fullmatch(r"check\.(\w+)\(\w+\)", ast.unparse(line)), check
        exec(imports_of(cells[:index]), namespace)
        exec(stub, namespace)
        assert verdict(check, namespace).state == "open", stub
        solution = SOLUTION.search(below)
        assert solution is not None, f"below {check} there must be a folded solution with a python block"
        exec(solution[1], namespace)
        assert verdict(check, namespace).passed, verdict(check, namespace)


def verdict(check: str, namespace: dict[str, Any]) -> Verdict:
    found = eval(check, namespace)
    assert isinstance(found, Verdict)
    return found
