"""The command line: `saelab lab` opens the tutorials; the other commands do what the library does, also for scripts.

With ``--json``, a command writes one JSON document to stdout and everything else to stderr. Exit codes: 0, done; 1, an
error, explained on stderr; 2, wrong usage; 130, interrupted (143, terminated).
"""

from typing import Any

import typer
from typer.core import TyperGroup

from saelab.cli.commands import evaluate, export, harvest, sweep, train
from saelab.cli.course import grade, handout
from saelab.cli.lab import lab
from saelab.errors import SAELabError


class _Commands(TyperGroup):
    """Commands that report a user's mistake by its message, and leave a bug its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # an OSError, but no mistake: whoever read the output has stopped
            raise
        except (SAELabError, OSError, ImportError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    help="Train, measure and teach sparse autoencoders.",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its boxes cut the names of options at 80 columns, and break the sentences of errors
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """SAELab: sparse autoencoders, live."""


# In the order in which --help lists them. JupyterLab takes the options that `lab` does not know.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lab)
for _command in (harvest, train, sweep, evaluate, export, grade, handout):
    app.command()(_command)
