"""Run the tutorials from five seeds, and measure what their prose claims.

    python docs/experiments/claims.py          # under 20 minutes on two cores; seconds when repeated
    python docs/experiments/claims.py 03 05    # only these tutorials

A tutorial sets the seed of all its SAEs, of their initial weights and the order of their data, in one line, ``SEED =
0``. Here it is executed as it stands with each seed in turn, as a reader could do by hand; then the expressions of
``claims.toml`` beside this script are evaluated in it. Texts, synthetic data and the language model are the same for
all seeds. What was measured is kept in ``--folder`` until the tutorial's code or the expressions change, so a stopped
run resumes. ``claims.csv`` has a fingerprint of that code, by which the suite notices that claims are out of date.

The results are ``claims.csv``, which the suite compares with the prose, and ``claims.md``, which a reader may open.
"""

import argparse
import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from nbclient import NotebookClient

import saelab
from saelab.files.tensor_files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SEEDS = range(5)
SEED_LINE = "SEED = 0"
MARK = "measured: "


def supports() -> dict[str, dict[str, Any]]:
    """What ``claims.toml`` says, by the name of a tutorial, or README."""
    return tomllib.loads((HERE / "claims.toml").read_text(encoding="utf-8"))


def claims() -> dict[str, dict[str, Any]]:
    """What it says of each tutorial; claims of the README are about tables that other scripts make."""
    return {name: of for name, of in supports().items() if name != "README"}


def code_of(tutorial: str) -> nbformat.NotebookNode:
    """The tutorial's code cells, but for the one that installs SAELab on Colab."""
    notebook: nbformat.NotebookNode = nbformat.read(ROOT / "tutorials" / f"{tutorial}.ipynb", as_version=4)
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells = [cell for cell in code if "setup" not in cell.metadata.get("tags", [])]
    return notebook


def fingerprint(tutorial: str) -> str:
    """Of the code that a tutorial's claims were measured with."""
    content = [*(cell.source for cell in code_of(tutorial).cells), claims()[tutorial].get("setup", "")]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()[:12]


def measure(
    tutorial: str, seed: int, code: str, setup: str, expressions: Sequence[str], folder: Path
) -> dict[str, float]:
    """The value of each expression at the end of a tutorial with this seed; ``code`` is the tutorial's fingerprint."""
    kept = folder / f"{tutorial}-{seed}-{code}.json"
    known: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if not known.keys() >= set(expressions):
        place = folder / f"{tutorial}-{seed}"  # its trained SAEs are there
        place.mkdir(parents=True, exist_ok=True)
        notebook = code_of(tutorial)
        (seeded,) = (cell for cell in notebook.cells if SEED_LINE in cell.source.splitlines())
        seeded.source = seeded.source.replace(SEED_LINE, f"SEED = {seed}")
        values = ",\n".join(f"    {expression!r}: float({expression})" for expression in expressions)
        printing = f"{setup}\nimport json\nprint({MARK!r} + json.dumps({{\n{values}\n}}))"
        notebook.cells.append(nbformat.v4.new_code_cell(printing))
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": place}}).execute()
        printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
        (line,) = (line for line in printed.splitlines() if line.startswith(MARK))
        known |= json.loads(line.removeprefix(MARK))
        write_atomically(kept, partial(Path.write_text, data=json.dumps(known), encoding="utf-8"))
    if missing := [expression for expression in expressions if not math.isfinite(known[expression])]:
        raise ValueError(f"{tutorial} with seed {seed} has no value for: {', '.join(missing)}")
    return {expression: known[expression] for expression in expressions}


def measured(tutorials: Sequence[str], folder: Path) -> pd.DataFrame:
    """A row for each measure of a tutorial: its value for each seed, their mean, and its 95 % interval."""
    known = claims()
    values = {
        tutorial: {claim["measure"]: claim["value"] for claim in known[tutorial]["claims"]} for tutorial in tutorials
    }
    code = {tutorial: fingerprint(tutorial) for tutorial in tutorials}
    jobs = [(tutorial, seed) for tutorial in tutorials for seed in SEEDS]
    found = Parallel(cpu_count(), verbose=10)(
        delayed(measure)(
            tutorial, seed, code[tutorial], known[tutorial].get("setup", ""), list(values[tutorial].values()), folder
        )
        for tutorial, seed in jobs
    )
    rows = [
        {"tutorial": tutorial, "measure": name, "seed": seed, "mean": of[expression]}
        for (tutorial, seed), of in zip(jobs, found, strict=True)
        for name, expression in values[tutorial].items()
    ]
    long = pd.DataFrame(rows)
    summary = saelab.summarize(long, by=["tutorial", "measure"]).rename(
        columns={"mean_low": "low", "mean_high": "high"}
    )
    by_seed = long.pivot_table("mean", ["tutorial", "measure"], "seed", sort=False).add_prefix("seed ").reset_index()
    joined: pd.DataFrame = summary.drop(columns="n_seeds").merge(by_seed, on=["tutorial", "measure"])
    return joined.assign(code=joined.tutorial.map(code))


def over_seeds(row: pd.Series) -> list[float]:
    """The value for each seed, of a row of the table."""
    return [float(value) for name, value in row.items() if str(name).startswith("seed ")]


def markdown(table: pd.DataFrame) -> str:
    """A table for each tutorial: what its prose says, and what five seeds say of it."""
    lines = [
        "# What the tutorials claim, from five seeds",
        "",
        "Made by `make claims`, which runs each tutorial with the seeds 0 to 4 and changes nothing else. A value is",
        "the mean over seeds, with its 95 % t interval in brackets; the last column counts the seeds in which it is",
        "above zero. The suite checks the tutorials' wording against this table.",
        "",
    ]
    for tutorial, of in claims().items():
        values = table[table.tutorial == tutorial].set_index("measure")
        lines += [f"## {tutorial}", "", "| the tutorial says | measured | value | above 0 in |", "|---|---|---|---|"]
        before = ""
        for claim in of["claims"]:
            row = values.loc[claim["measure"]]
            seeds = over_seeds(row)
            said = "" if claim["says"] == before else claim["says"].replace("|", "\\|")
            before = claim["says"]
            value = f"{row['mean']:.3g} ({row.low:.3g} to {row.high:.3g})"
            n_above = sum(value > 0 for value in seeds)
            lines.append(f"| {said} | {claim['measure']} | {value} | {n_above} of {len(seeds)} seeds |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tutorials", nargs="*", help="their numbers, such as 03; all by default")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "experiments" / "claims", help="for what is kept"
    )
    arguments = parser.parse_args()
    chosen = [name for name in claims() if not arguments.tutorials or name[:2] in arguments.tutorials]
    if not chosen:
        parser.error(f"no tutorial {' or '.join(arguments.tutorials)}; there are {', '.join(claims())}")

    table = measured(chosen, arguments.folder)
    if (path := HERE / "claims.csv").exists():
        before = pd.read_csv(path)
        table = pd.concat([before[~before.tutorial.isin(chosen)], table])
    order = list(
        dict.fromkeys((tutorial, claim["measure"]) for tutorial, of in claims().items() for claim in of["claims"])
    )
    table = table.set_index(["tutorial", "measure"]).loc[order].reset_index()
    table.to_csv(path, index=False)
    (HERE / "claims.md").write_text(markdown(table), encoding="utf-8")


if __name__ == "__main__":
    main()
