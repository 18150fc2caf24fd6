"""Commands for a course: grade and handout."""

import platform
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from saelab.cli.lab import original_tutorials
from saelab.cli.options import JsonOption
from saelab.cli.output import print_result, working
from saelab.course import grading
from saelab.course.handout import handout as copy_tutorials

ONLY_PYTHON = (
    "Note: on this system only Python keeps a submission from the network, and not the other programs that it starts; "
    "grade submissions from strangers in a container."
)
OriginalsOption = Annotated[
    Path | None,
    typer.Option(
        "--tutorials", show_default="SAELab's own", help="Folder of the original tutorials, if the course has its own."
    ),
]


def grade(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of submissions, searched at every depth.")],
    output: Annotated[Path, typer.Option(help="CSV to write, one row per exercise.")] = Path("grades.csv"),
    timeout: Annotated[float, typer.Option(min=0, help="Time limit for one submission, in seconds.")] = 300,
    memory: Annotated[float, typer.Option(min=0, help="Memory limit for one submission, in GB.")] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Number of submissions graded at the same time.")] = 1,
    tutorials: OriginalsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the rows in --output and grade the remaining submissions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the checks of the tutorials' exercises on every notebook below a folder.

    Each submission runs without network access, in its own process; the checks come from the original tutorial.
    """
    with working(f"{output} has the grades so far; the same command with --resume goes on."):
        if output.exists() and not resume:
            raise FileExistsError(f"{output} is there already: add --resume to go on with it, or name another --output")
        rows = grading.read_rows(output) if output.exists() else []
        graded = grading.grade(
            folder,
            tutorials or original_tutorials(),
            limits=grading.Limits(timeout, memory * 1e9),
            jobs=jobs,
            done={row.submission for row in rows},
        )
        if platform.system() != "Linux":
            typer.echo(ONLY_PYTHON, err=True)
        n_all, n_done = len(grading.submissions(folder)), len({row.submission for row in rows})
        with grading.table(output, rows) as add, closing(graded):
            for found in graded:
                add(found)
                rows += found
                n_done += 1
                [entry] = grading.summary(found)
                typer.echo(f"[{n_done}/{n_all}] {_points(entry)}", err=True)
    entries = grading.summary(rows)
    document = {"output": output, "submissions": entries, "rows": [row._asdict() for row in rows]}
    print_result(as_json, document, "\n".join([*map(_points, entries), f"The table is in {output}"]))


def _points(entry: Mapping[str, Any]) -> str:
    states = entry["states"]
    others = [f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != "passed"]
    points = f"{entry['points']} of {entry['of']}" if entry["of"] else "-"
    return f"{entry['submission']}  {points}" + (f"  ({', '.join(others)})" if others else "")


def handout(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to.")],
    tutorials: OriginalsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the tutorials for a course, without their solutions and outputs."""
    with working():
        written = copy_tutorials(tutorials or original_tutorials(), folder)
    print_result(as_json, {"written": written}, "\n".join(["Without solutions and outputs:", *map(str, written)]))
