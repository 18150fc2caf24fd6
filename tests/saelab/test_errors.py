"""The errors of saelab: which of them are a user's mistake."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import saelab_widgets

import saelab
from saelab.course.notebooks import NotANotebook

BUILT_IN = {"ValueError", "TypeError"}
ALLOWED = {
    "saelab/course/worker.py": 1,  # caught right there, in a script that starts without importing saelab
}
"""Files that may raise these themselves, and how often."""


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (saelab.InputError, ValueError),
        (saelab.InputTypeError, TypeError),
        (saelab.SAEFileError, ValueError),
        (saelab.StoreError, ValueError),
        (saelab.ModelNotFoundError, ValueError),
        (saelab.NonFiniteLossError, RuntimeError),
        (NotANotebook, ValueError),
    ],
)
def test_a_users_mistake_is_also_the_built_in_error_that_python_has_for_it(
    error: type[Exception], base: type[Exception]
) -> None:
    assert issubclass(error, saelab.SAELabError) and issubclass(error, base)


def raised(tree: ast.AST) -> Iterator[str]:
    """The name of each exception that is raised by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            named = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(named, ast.Name):
                yield named.id


@pytest.mark.parametrize("package", [saelab, saelab_widgets], ids=lambda package: package.__name__)
def test_saelab_raises_its_own_errors_in_place_of_value_error_and_type_error(package: object) -> None:
    folder = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    found = {}
    for path in folder.rglob("*.py"):
        names = [name for name in raised(ast.parse(path.read_text(encoding="utf-8"))) if name in BUILT_IN]
        if names:
            found[path.relative_to(folder.parent).as_posix()] = len(names)
    assert found == (ALLOWED if package is saelab else {}), "raise saelab.errors.InputError or InputTypeError"
