"""The command `saelab lab`, and the places where tutorials are found."""

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import typer

FIRST_TUTORIAL = "00_start_here.ipynb"
JUPYTER_DEFAULTS = Path(__file__).parents[1] / "assets" / "jupyter"


def packaged_tutorials() -> Path:
    """Folder of the tutorials that were installed with the package, in the environment's shared data."""
    files = importlib.metadata.files("saelab") or []
    return next(Path(str(file.locate())).resolve().parent for file in files if file.name == FIRST_TUTORIAL)


def _tutorials_here() -> Path | None:
    """Folder of the tutorials if the current directory is a clone of the repository."""
    here = Path("tutorials")
    return here if (here / FIRST_TUTORIAL).exists() else None


def original_tutorials() -> Path:
    """Folder of the original tutorials: those of the clone in the current directory, or else the installed ones."""
    return _tutorials_here() or packaged_tutorials()


def tutorials_folder() -> Path:
    """Folder of the tutorials to open: those of the clone in the current directory, or else an editable copy."""
    if (here := _tutorials_here()) is not None:
        return here
    copy = Path("saelab-tutorials")
    if not copy.exists():
        shutil.copytree(packaged_tutorials(), copy)
        typer.echo(f"The tutorials are in {copy.resolve()}; your changes there are kept.")
    return copy


def lab(context: typer.Context) -> None:
    """Open JupyterLab on the tutorials. Further options go to JupyterLab: saelab lab --no-browser --port 9999."""
    if importlib.util.find_spec("jupyterlab") is None:
        typer.echo('JupyterLab is not installed; run: pip install "saelab[lab]"', err=True)
        raise typer.Exit(1)
    folder = tutorials_folder()
    options = [f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url=/lab/tree/{FIRST_TUTORIAL}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    # Defaults below the user's own settings; without them, JupyterLab's question about news covers the notebook.
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER_DEFAULTS)])
    )
    raise typer.Exit(run_in_this_terminal([sys.executable, "-m", "jupyter", "lab", *options, *context.args]))


def run_in_this_terminal(command: list[str]) -> int:
    """Run a command in this terminal and return its exit code. Ctrl-C is left to it, as JupyterLab asks before it ends.

    Not `os.execv`, which on Windows splits arguments at spaces and ends this process while JupyterLab still runs.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)  # JupyterLab would inherit SIG_IGN
    try:
        process = subprocess.Popen(command)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return code if code >= 0 else 128 - code
