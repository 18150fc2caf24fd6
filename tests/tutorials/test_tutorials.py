"""What a reader finds in a committed tutorial before running anything; that they run is nbval's part of the suite."""

from pathlib import Path

import nbformat
import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_shows_its_outputs_as_text_and_pictures_and_stays_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make tutorials`"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.get("name") != "stderr" and output.output_type != "error"
        assert set(output.get("data", {})) <= {"text/plain", "text/html", "image/png"}, "run `make tutorials`"
    for cell in code:
        if "widget" in cell.metadata.get("tags", []):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    assert path.stat().st_size < 500_000
