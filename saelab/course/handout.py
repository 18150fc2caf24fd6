"""Tutorials for a course: copies without solutions and outputs."""

import functools
import json
import re
from pathlib import Path
from typing import Any

from saelab.course.notebooks import read_notebook
from saelab.files.tensor_files import write_atomically

SOLUTION = re.compile(r"<details>\s*<summary>\s*Solution.*?</details>\n*", re.DOTALL)


def handout(tutorials: Path, folder: Path) -> list[Path]:
    """Copy the tutorials to a folder, without their solutions and outputs.

    Raises
    ------
    FileExistsError
        The folder already holds one of them; nothing is written then.
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
    """Strip a cell of its solution and outputs; None if nothing is left."""
    if cell["cell_type"] == "code":
        return cell | {"outputs": [], "execution_count": None}
    source = SOLUTION.sub("", cell["source"]).rstrip()
    return cell | {"source": source} if source else None
