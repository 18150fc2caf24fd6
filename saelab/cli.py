"""The command line: `saelab lab` opens the tutorials."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import typer

app = typer.Typer(help="Train, measure and teach sparse autoencoders.", no_args_is_help=True, add_completion=False)
FIRST_TUTORIAL = "00_start_here.ipynb"
JUPYTER_DEFAULTS = Path(__file__).parent / "assets" / "jupyter"


@app.callback()
def main() -> None:
    """SAELab: sparse autoencoders, live."""


def packaged_tutorials() -> Path:
    """Where installation put the tutorials: beside the environment's other shared data."""
    files = importlib.metadata.files("saelab") or []
    return next(Path(str(file.locate())).resolve().parent for file in files if file.name == FIRST_TUTORIAL)


def tutorials_folder() -> Path:
    """The tutorials to open: those of the clone we stand in, else a copy of the package's own that may be edited."""
    here = Path("tutorials")
    if (here / FIRST_TUTORIAL).exists():
        return here
    copy = Path("saelab-tutorials")
    if not copy.exists():
        shutil.copytree(packaged_tutorials(), copy)
        typer.echo(f"The tutorials are in {copy.resolve()}; what you change there stays.")
    return copy


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the tutorials. Further options go to JupyterLab: saelab lab --no-browser --port 9999."""
    if importlib.util.find_spec("jupyterlab") is None:
        typer.echo('JupyterLab is not installed; run: pip install "saelab[lab]"', err=True)
        raise typer.Exit(1)
    folder = tutorials_folder()
    options = [f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url=/lab/tree/{FIRST_TUTORIAL}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    # Our defaults, below the user's own settings: no question about news that covers the first notebook.
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER_DEFAULTS)])
    )
    os.execv(sys.executable, [sys.executable, "-m", "jupyter", "lab", *options, *context.args])


if __name__ == "__main__":
    app()
