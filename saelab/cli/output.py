"""What a command prints, and how it ends when it is interrupted."""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import typer


@contextmanager
def working(how_to_go_on: str = "Nothing was written.") -> Iterator[None]:
    """Keep stdout for the result by sending what libraries print to stderr; say how to go on after an interrupt."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Trainer raises SystemExit when told to terminate
        if os.environ.get("RANK", "0") == "0":  # in a run of several processes, only the first speaks
            typer.echo(f"Stopped. {how_to_go_on}", err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from stop


def command_line(*words: object) -> str:
    """Quote a saelab command so that a user can paste it into this system's shell."""
    command = ["saelab", *map(str, words)]
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)


def shows_progress() -> bool:
    return sys.stderr.isatty()  # in a log file, each update of a progress bar would be a line


def print_result(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    """Print the result of a command, as text or as one JSON document."""
    typer.echo(json.dumps(_plain(document), allow_nan=False) if as_json else text)


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can hold: NaN and infinities become None, paths strings."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
