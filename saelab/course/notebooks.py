"""Notebooks as the course commands read them: cells, tags, checks, and the tutorial that each belongs to."""

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saelab.errors import SAELabError

_NO_CELLS = "it is JSON, but no notebook: there are no cells where these should be"


class NotANotebook(SAELabError, ValueError):
    """A file ends in .ipynb but holds something else."""


def read_notebook(path: Path) -> dict[str, Any]:
    """Read a notebook, with each cell's source as one string.

    Raises
    ------
    NotANotebook
        The file is not JSON, or not a notebook of format 4; the message says which.
    """
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
    except (KeyError, TypeError, AttributeError) as error:
        raise NotANotebook(_NO_CELLS) from error
    if not isinstance(notebook.setdefault("metadata", {}), dict):
        raise NotANotebook(_NO_CELLS)
    return notebook


def tags(cell: Mapping[str, Any]) -> set[str]:
    """The tags of a cell."""
    return set(cell["metadata"].get("tags", ()))


def checks_of(notebook: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and expression of each check in an original tutorial, in order."""
    expressions = [cell["source"].strip() for cell in notebook["cells"] if "check" in tags(cell)]
    return [(ast.unparse(ast.parse(text, mode="eval").body).split("(")[0].split(".")[-1], text) for text in expressions]


def tutorial_of(path: Path, notebook: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """The one of the ``known`` tutorials that a submission answers, by its metadata or else by its file name."""
    told = notebook["metadata"].get("saelab")
    name = told.get("tutorial") if isinstance(told, dict) else None
    if name in (names := list(known)):
        return str(name)
    in_its_name = [name for name in names if name in path.stem]
    return in_its_name[0] if len(in_its_name) == 1 else None
