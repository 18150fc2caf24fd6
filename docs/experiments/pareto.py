"""Measure what sparsity costs each architecture, over five seeds and beside controls.

    python docs/experiments/pareto.py            # 23 minutes on two cores; seconds when repeated
    python docs/experiments/pareto.py --quick    # small SAEs, about a minute

The shape is that of figures 1 and 6 of the paper (arXiv 2404.16014v2), with thin lines for other architectures. The
paper compares standard and gated SAEs at equal compute, the standard ones 1.5 times as wide (section 4.1), and
rescale-and-shift SAEs with gated ones at equal width (section 5.2). Here all SAEs have the same width, on the small
language model inside the package. Controls are SAEs with random directions (Korznikov et al. 2026, arXiv 2602.14111), a
PCA and a random dictionary of the same width.

All results are kept in ``--folder``: run again, the script resumes where it was stopped. Its tables are written there
too: one of all SAEs, and one at equal L0, where each line is compared with the standard and the gated one, paired by
seed. A full run at the default hook also updates those beside this script, and the pictures in ``docs/pictures``.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from joblib import Parallel, cpu_count, delayed

import saelab
from saelab.evaluation.controls import NO_CONTROL, UNTRAINED, label_of_control
from saelab.figures import pareto, save_figure
from saelab.files.tensor_files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
HOOK = "blocks.1.hook_resid_post"
LOSS_TEXTS = 32
"""Held-out texts, of all, on which the loss is measured: a run of the model for each SAE."""


class Effort(NamedTuple):
    """The size of the experiment."""

    n_tokens: int | None
    n_held_out_texts: int
    d_sae: int
    seeds: Sequence[int]
    training: saelab.TrainingConfig
    rescaling: saelab.TrainingConfig
    sparsity: Mapping[str, Sequence[float]]
    """Values of each architecture's sparsity knob; found by trial, for an L0 from about 80 down to 5."""
    controls: Mapping[tuple[str, str], Sequence[float]]
    """The same for controls of an architecture."""
    k: Sequence[int]
    """Features on in dictionaries that nobody trained."""
    at_l0: Sequence[float]
    """Where lines are compared."""


FULL = Effort(
    n_tokens=None,  # all available, about 390,000
    n_held_out_texts=64,
    d_sae=512,
    seeds=range(5),
    # No resampling: in so few steps, features killed by a large L1 penalty only die again once revived. A start at the
    # mean, because random directions cannot learn it as trained ones do: it is fair to the controls.
    training=saelab.TrainingConfig(n_steps=1000, batch_size=512, lr=2e-3, resample_every=0, start_at_mean=True),
    # With two numbers per feature there is less to learn, so fewer steps suffice.
    rescaling=saelab.TrainingConfig(n_steps=300, batch_size=512, lr=3e-3),
    sparsity={
        "standard": (0.7, 1.2, 2, 3.3, 5.5),
        "gated": (1.2, 2, 3.2, 5, 8),
        "jumprelu": (0.12, 0.3, 0.8, 2.4),
        "topk": (8, 16, 32, 64),
        "batchtopk": (8, 16, 32, 64),
    },
    controls={
        ("standard", "frozen_decoder"): (1.2, 2, 3),
        ("standard", "soft_frozen_decoder"): (1.2, 2.2, 4),
        ("standard", "frozen_encoder"): (5, 10, 20),
        ("gated", "frozen_decoder"): (1.6, 2.4, 3.2, 4),
        ("gated", "soft_frozen_decoder"): (1.5, 2.5, 4.5, 8),
        ("gated", "frozen_encoder"): (2, 5, 12, 30),
    },
    k=(5, 10, 20, 40, 80),
    at_l0=(10, 20, 30),
)
QUICK = FULL._replace(
    n_tokens=30_000,
    n_held_out_texts=16,
    d_sae=256,
    seeds=range(2),
    training=saelab.TrainingConfig(n_steps=100, batch_size=512, lr=5e-3, resample_every=0, start_at_mean=True),
    rescaling=saelab.TrainingConfig(n_steps=50, batch_size=512, lr=3e-3),
    sparsity={"standard": (0.5, 6), "gated": (0.5, 8), "topk": (4, 64)},
    controls={("gated", "frozen_decoder"): (0.5, 4)},
    k=(4, 64),
    at_l0=(20,),
)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def rescaled(path: str) -> saelab.RescaleShiftSAE:
    """Untrained rescale-and-shift SAE for the standard SAE in a file (paper, section 5.2)."""
    standard = saelab.load(path)
    assert isinstance(standard, saelab.StandardSAE)
    return saelab.RescaleShiftSAE.from_standard(standard)


def as_control(architecture: str, control: str, d_in: int, d_sae: int, *, seed: int) -> saelab.SparseAutoencoder:
    """Untrained SAE as this control."""
    return saelab.CONTROLS[control].apply(saelab.ARCHITECTURES[architecture](d_in, d_sae, seed=seed))


def untrained(
    store: saelab.ActivationStore, test: saelab.ActivationStore, effort: Effort, folder: Path
) -> pd.DataFrame:
    """A row as of a sweep for each dictionary that nobody trained; a PCA has no seed, so it is the same for each."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = store.activations[:50_000]
    rows = []
    for k in effort.k:
        for control, seed in [("pca", effort.seeds[0]), *(("random", seed) for seed in effort.seeds)]:
            path = folder / f"{control}-{k}-{seed}.safetensors"
            if not path.exists():
                made = (
                    saelab.pca_dictionary(sample, effort.d_sae, k)
                    if control == "pca"
                    else saelab.random_dictionary(sample, effort.d_sae, k, seed)
                )
                made.trained_on = store.trained_on
                saelab.save(made, path)
            sae = saelab.load(path)
            row = {
                "architecture": "topk", "preset": sae.preset, "ablations": "", "control": control, "d_sae": sae.d_sae,
                "k": float(k), **saelab.evaluate(sae, test).as_dict(), "seconds": 0.0, "path": str(path),
            }  # fmt: skip
            rows += [{**row, "seed": each} for each in (effort.seeds if control == "pca" else [seed])]
    return pd.DataFrame(rows)


def recovered(hook: str, paths: Sequence[str], texts: Sequence[str]) -> list[dict[str, float]]:
    """`saelab.loss_recovered` of the SAE in each file, cached beside it.

    The sweep names the file after everything that went into it, including the held-out activations and so these texts:
    a cached result is always valid.
    """
    kept = {path: Path(path).with_suffix(".loss.json") for path in paths}
    missing = [path for path in kept if not kept[path].exists()]
    n_jobs = cpu_count()
    parts = [missing[first::n_jobs] for first in range(n_jobs)]
    Parallel(n_jobs)(delayed(keep_losses)(hook, {path: kept[path] for path in part}, texts) for part in parts if part)
    return [json.loads(kept[path].read_text(encoding="utf-8")) for path in paths]


def keep_losses(hook: str, files: Mapping[str, Path], texts: Sequence[str]) -> None:
    """In a process of its own: measure SAEs in batches, each into its file."""
    torch.set_num_threads(1)
    model = saelab.load_language_model()
    for paths in batched(files, 16):
        saes = {path: saelab.load(path) for path in paths}
        for path, measured in saelab.loss_recovered_many(model, hook, saes, texts, progress=False).items():
            write = partial(Path.write_text, data=json.dumps(measured.as_dict()), encoding="utf-8")
            write_atomically(files[path], write)


def batched(paths: Iterable[str], n: int) -> list[list[str]]:
    listed = list(paths)
    return [listed[first : first + n] for first in range(0, len(listed), n)]


def experiment(effort: Effort, hook: str, folder: Path) -> pd.DataFrame:
    """Return a row for each SAE: metrics on held-out texts, and what splicing it into the model costs there."""
    with timed("activations"):
        model = saelab.load_language_model()
        texts = saelab.load_text()
        train, held_out = texts[: -effort.n_held_out_texts], texts[-effort.n_held_out_texts :]
        store = saelab.harvest(model, hook, train, n_tokens=effort.n_tokens, store=folder / "train")
        # SAEs expect activations in the training store's scale, so the held-out ones must have it too.
        test = saelab.harvest(model, hook, held_out, scale=store.scale, store=folder / "held-out")

    sizes = store.d_in, effort.d_sae
    sweep = partial(saelab.sweep, activations=store, test=test, folder=folder / "saes", n_jobs=-1)
    trained = {}
    for name, values in effort.sparsity.items():
        with timed(f"{name} SAEs"):
            make = partial(saelab.ARCHITECTURES[name], *sizes)
            trained[name] = sweep(make, sparsity=values, seeds=effort.seeds, config=effort.training)
    standard = trained["standard"]
    with timed("rescale-and-shift SAEs"):
        # One per standard SAE. Its loss has no L1 term; the table shows coefficient and seed of the SAE it repairs.
        cured = sweep([partial(rescaled, path) for path in standard.path], config=effort.rescaling)
        cured[["l1_coefficient", "seed"]] = standard[["l1_coefficient", "seed"]]
    controls = []
    for (name, control), values in effort.controls.items():
        with timed(f"{name} SAEs, {control}"):
            make = partial(as_control, name, control, *sizes)
            of_control = sweep(make, sparsity=values, seeds=effort.seeds, config=effort.training)
            controls.append(of_control.assign(control=control))
    with timed("untrained dictionaries"):
        controls.append(untrained(store, test, effort, folder / "untrained"))

    table = pd.concat([*trained.values(), cured, *controls], ignore_index=True)
    with timed("loss recovered"):
        losses = pd.DataFrame(recovered(hook, list(table.path), held_out[:LOSS_TEXTS]))
    table["loss_recovered"] = losses.score_zero
    joined: pd.DataFrame = table.join(losses)
    return joined


def at_equal_l0(table: pd.DataFrame, at_l0: Sequence[float]) -> pd.DataFrame:
    """Each line beside the gated and the standard SAEs, where both reach that L0 in every seed."""
    keys = ["architecture", "control"]
    rows = []
    for baseline in ("standard", "gated"):
        is_baseline = (table.architecture == baseline) & (table.control == NO_CONTROL)
        for architecture, control in table[keys].drop_duplicates().itertuples(index=False):
            both = table[is_baseline | ((table.architecture == architecture) & (table.control == control))]
            ends = both.groupby([*keys, "seed"]).l0.agg(["min", "max"])
            reached = [l0 for l0 in at_l0 if ends["min"].max() <= l0 <= ends["max"].min()]
            for measure in ("fvu", "loss_recovered", "gamma") if reached else ():
                found = saelab.compare_at_l0(both, measure, l0=reached, by=keys, baseline=(baseline, NO_CONTROL))
                found = found[(found.architecture == architecture) & (found.control == control)]
                rows.append(found.assign(measure=measure, baseline=baseline))
    compared: pd.DataFrame = pd.concat(rows, ignore_index=True)
    return compared


def markdown(compared: pd.DataFrame) -> str:
    """Markdown table with a row per line and L0: means over seeds, and differences to the gated SAEs."""
    beside_gated = compared[compared.baseline == "gated"]
    lines = [
        "| L0 | SAE | FVU | minus gated | loss recovered | minus gated | relative reconstruction bias |",
        "|---|---|---|---|---|---|---|",
    ]
    order = beside_gated[["l0", "architecture", "control"]].drop_duplicates().sort_values("l0", kind="stable")
    for l0, architecture, control in order.itertuples(index=False):
        cells = [f"{l0:g}", label(architecture, control)]
        rows = beside_gated[
            (beside_gated.l0 == l0) & (beside_gated.architecture == architecture) & (beside_gated.control == control)
        ]
        for row in rows.itertuples():
            cells.append(f"{row.mean:.3f} ({row.mean_low:.3f} to {row.mean_high:.3f})")
            if row.measure != "gamma":
                is_gated = (architecture, control) == ("gated", NO_CONTROL)
                of_difference = f"{row.difference:+.3f} ({row.difference_low:+.3f} to {row.difference_high:+.3f})"
                cells.append("" if is_gated else of_difference)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def label(architecture: str, control: str) -> str:
    of = saelab.ARCHITECTURES[architecture].label
    if control == NO_CONTROL:
        return of
    return label_of_control(control) if control in UNTRAINED else f"{of}, {label_of_control(control)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hook", default=HOOK, help=f"where in the model; {HOOK} by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "experiments", help="for all that is kept")
    parser.add_argument("--quick", action="store_true", help="small SAEs, to see that everything runs")
    arguments = parser.parse_args()

    folder = arguments.folder / f"pareto-{arguments.hook}{'-quick' if arguments.quick else ''}"
    effort = QUICK if arguments.quick else FULL
    with timed("all"):
        table = experiment(effort, arguments.hook, folder)
    compared = at_equal_l0(table, effort.at_l0)
    tables, pictures = [folder], folder
    if arguments.hook == HOOK and not arguments.quick:  # the run that the repository shows
        tables, pictures = [folder, Path(__file__).parent], ROOT / "docs" / "pictures"
    for place in tables:
        table.drop(columns=["path", "seconds"]).to_csv(place / "pareto.csv", index=False)
        compared.to_csv(place / "pareto_at_equal_l0.csv", index=False)
        (place / "pareto.md").write_text(markdown(compared), encoding="utf-8")
    # Controls of standard SAEs are in the tables; beside those of gated ones, their lines would be too many to read.
    shown = table[(table.architecture != "standard") | (table.control == NO_CONTROL)]
    for theme in ("light", "dark"):
        figure = pareto(shown, y=["loss_recovered", "gamma"], theme=theme)
        save_figure(figure, pictures / f"pareto-{theme}", ["png", "pdf"] if theme == "light" else ["png"])
    print(markdown(compared))


if __name__ == "__main__":
    main()
