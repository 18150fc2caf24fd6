"""The command line: `saelab lab` opens the tutorials."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import typer

app = typer.Typer(help="Train, measure and teach sparse autoencoders.", no_args_is_help=True, add_completion=False)
PACKAGED_TUTORIALS = Path(__file__).parent / "tutorials"
JUPYTER_DEFAULTS = Path(__file__).parent / "assets" / "jupyter"


@app.callback()
def main() -> None:
    """SAELab: sparse autoencoders, live."""


def tutorials_folder() -> Path:
    """The tutorials to open: those of the clone we stand in, else a copy of the package's own that may be edited."""
    here = Path("tutorials")
    if (here / "00_start_here.ipynb").exists():
        return here
    copy = Path("saelab-tutorials")
    if not copy.exists():
        shutil.copytree(PACKAGED_TUTORIALS, copy)
        typer.echo(f"The tutorials are in {copy.resolve()}; what you change there stays.")
    return copy


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the tutorials. Further options go to JupyterLab: saelab lab --no-browser --port 9999."""
    if importlib.util.find_spec("jupyterlab") is None:
        typer.echo('JupyterLab is not installed; run: pip install "saelab[lab]"', err=True)
        raise typer.Exit(1)
    folder = tutorials_folder()
    options = [f"--ServerApp.root_dir={folder.resolve()}", "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    # Our defaults, below the user's own settings: no question about news that covers the first notebook.
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER_DEFAULTS)])
    )
    os.execv(sys.executable, [sys.executable, "-m", "jupyter", "lab", *options, *context.args])


if __name__ == "__main__":
    app()
