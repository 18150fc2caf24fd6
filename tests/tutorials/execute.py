"""Execute every tutorial and keep its outputs: `make tutorials`.

What stays is what shows everywhere and does not change from run to run: text and pictures. A widget keeps its picture
only, since its live view would need a kernel; timestamps and progress bars go.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[2] / "tutorials"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop live views, progress bars and timestamps, in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            data = output.get("data", {})
            was_a_view = data.pop(WIDGET_VIEW, None) is not None
            progress_bar = was_a_view and "image/png" not in data
            if not progress_bar and output.get("name") != "stderr":
                kept.append(output)
        cell.outputs = kept


def main() -> None:
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        print(f"executing {path.name}", flush=True)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
        clean(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
