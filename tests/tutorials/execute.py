"""Execute tutorials and keep their outputs: `make tutorials`, or `python tests/tutorials/execute.py 02 04` for some.

Kept are the outputs that show everywhere and do not change from run to run: text and pictures. A widget keeps only its
picture, since its live view would need a kernel; timestamps and progress bars are dropped.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any

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


def peak_memory(pid: int) -> float:
    """Peak resident memory of a process so far, in bytes; NaN if the system does not record it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return float("nan")
    return 1024 * float(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def execute(path: Path) -> tuple[float, float]:
    """Execute one notebook and keep its outputs; return seconds, with the kernel's start, and its peak memory."""
    notebook = nbformat.read(path, as_version=4)
    client: Any = NotebookClient(
        notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": path.parent}}
    )
    peak = 0.0

    def measure(**_: object) -> None:
        nonlocal peak
        peak = peak_memory(client.km.provisioner.pid)

    client.on_cell_executed = measure
    begun = time.monotonic()
    client.execute()
    seconds = time.monotonic() - begun
    clean(notebook)
    nbformat.write(notebook, path)
    return seconds, peak


def main() -> None:
    names = sys.argv[1:] or [""]
    paths = [path for path in sorted(TUTORIALS.glob("*.ipynb")) if any(name in path.name for name in names)]
    if not paths:
        sys.exit(f"no tutorial has {' or '.join(map(repr, names))} in its name")
    for path in paths:
        print(f"executing {path.name}", flush=True)
        seconds, peak = execute(path)
        print(
            f"  {seconds:.0f} s, {peak / 1e6:,.0f} MB of memory at most, {path.stat().st_size / 1e3:,.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
