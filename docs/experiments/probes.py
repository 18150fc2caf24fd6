"""At which layer can a probe read sentiment, what is left in sparse codes, and do trained features keep more of it?

    python docs/experiments/probes.py            # sixteen minutes on two cores; seconds when repeated
    python docs/experiments/probes.py --quick    # two layers and small SAEs, two minutes

At each layer of the small language model inside the package, the script trains gated SAEs at several L1 coefficients,
from five seeds, and controls with random directions (Korznikov et al. 2026, arXiv 2602.14111). It fits one probe on the
activations, one on the codes, and one on a PCA of the activations to as many dimensions as the SAE has features on.
Test texts are held out in two ways: a quarter of each kind, and each genre in turn. Controls have other L0s than
trained SAEs, so accuracies are compared at equal L0, paired by seed.

All results are kept in ``--folder``: run again, the script resumes where it was stopped. The tables are written there
too; a full run also updates those beside this script, and the pictures in ``docs/pictures``.
"""

import argparse
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

import saelab
from saelab.evaluation.controls import NO_CONTROL, label_of_control
from saelab.figures import probe_by_layer, save_figure
from saelab.files.tensor_files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


class Effort(NamedTuple):
    """The size of the experiment."""

    layers: Sequence[int]
    n_tokens: int
    d_sae: int
    seeds: Sequence[int]
    training: saelab.TrainingConfig
    l1_coefficients: Mapping[str, Sequence[float]]
    """Of trained SAEs and of each control."""
    C: Sequence[float]
    """Inverse penalties of the probes; each fit chooses one, so that no representation is stuck with another's best."""


FULL = Effort(
    layers=range(4),
    n_tokens=200_000,
    d_sae=512,
    seeds=range(5),
    # As in pareto.py, which says why.
    training=saelab.TrainingConfig(n_steps=1000, batch_size=512, lr=2e-3, resample_every=0, start_at_mean=True),
    l1_coefficients={NO_CONTROL: (1, 2, 4), "frozen_decoder": (1, 3), "frozen_encoder": (2, 20)},
    C=(0.003, 0.03),
)
QUICK = FULL._replace(
    layers=(1, 3),
    n_tokens=30_000,
    d_sae=256,
    seeds=range(2),
    training=saelab.TrainingConfig(n_steps=100, batch_size=512, lr=5e-3, resample_every=0, start_at_mean=True),
    l1_coefficients={NO_CONTROL: (1, 4), "frozen_encoder": (1, 20)},
    C=(0.01,),
)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def as_control(control: str, d_in: int, d_sae: int, *, seed: int) -> saelab.SparseAutoencoder:
    """Untrained gated SAE, as this control."""
    sae = saelab.GatedSAE(d_in, d_sae, seed=seed)
    return sae if control == NO_CONTROL else saelab.CONTROLS[control].apply(sae)


def sweeps(store: saelab.ActivationStore, effort: Effort, folder: Path) -> pd.DataFrame:
    """A row for each SAE of one layer."""
    tables = []
    for control, values in effort.l1_coefficients.items():
        of_control = saelab.sweep(
            partial(as_control, control, store.d_in, effort.d_sae),
            store,
            values,
            seeds=effort.seeds,
            config=effort.training,
            test=store.activations[:10_000],  # its metrics are not used
            n_jobs=-1,
            folder=folder,
        )
        tables.append(of_control.assign(control=control))
    return pd.concat(tables, ignore_index=True)


def probed(data: saelab.LabelledSet, path: str, name: str, is_control: bool, C: Sequence[float]) -> pd.DataFrame:
    """`saelab.compare_representations` of one SAE, held out in both ways; of a control, the rows of its codes alone.

    The sweep names an SAE's file after everything that went into it, so a result cached beside it is valid.
    """
    torch.set_num_threads(1)
    kept = Path(path).with_suffix(f".probes-{'-'.join(f'{c:g}' for c in C)}.csv")
    if not kept.exists():
        sae = saelab.load(path)
        tables = []
        if is_control:
            codes = data.encoded(sae)
            blocks = {block: saelab.probe(*split, C=C) for block, split in codes.by_block().items()}
            reports = {"stratified": saelab.probe(*codes.split(), C=C), "all": saelab.pool_reports([*blocks.values()])}
            l0 = float((codes.x > 0).sum(dim=1).double().mean())
            rows = [
                {"representation": name, "held_out": part, "n_dimensions": sae.d_sae, **report.as_dict(), "l0": l0}
                for part, report in reports.items()
            ]
            tables.append(pd.DataFrame(rows))
        else:
            for held_out in ("stratified", "block"):
                of = saelab.compare_representations(data, {name: sae}, C=C, held_out=held_out, progress=False)
                tables.append(of[of.held_out.isin(["stratified", "all"])])
        write_atomically(kept, lambda path: pd.concat(tables).to_csv(path, index=False))
    return pd.read_csv(kept)


def experiment(effort: Effort, folder: Path) -> pd.DataFrame:
    """Return `saelab.compare_representations` for all layers and seeds, with the columns ``layer`` and ``control``."""
    with timed("activations"):
        model = saelab.load_language_model()
        hooks = [f"blocks.{layer}.hook_resid_post" for layer in effort.layers]
        stores = saelab.harvest_many(
            model, hooks, saelab.load_text(), n_tokens=effort.n_tokens, store=folder / "activations"
        )
        # The snippets get the scale of the activations that the SAEs were trained on.
        data = saelab.sentiment_sets(model, hooks, scales={hook: store.scale for hook, store in stores.items()})
    tables = []
    for layer, hook in zip(effort.layers, hooks, strict=True):
        with timed(f"layer {layer}: SAEs"):
            saes = sweeps(stores[hook], effort, folder / "saes")
        with timed(f"layer {layer}: probes"):
            names = [f"gated, L1 {value:g}" for value in saes.l1_coefficient]
            found = Parallel(n_jobs=-1)(
                delayed(probed)(data[hook], row.path, name, row.control != NO_CONTROL, effort.C)
                for row, name in zip(saes.itertuples(), names, strict=True)
            )
            tables += [
                table.assign(layer=layer, control=row.control, seed=row.seed)
                for table, row in zip(found, saes.itertuples(), strict=True)
            ]
    whole = pd.concat(tables, ignore_index=True)
    # Activations are the same beside every SAE of a seed.
    rows: pd.DataFrame = whole.drop_duplicates(
        ["layer", "representation", "held_out", "control", "seed"], ignore_index=True
    )
    return rows


def at_l0_of_trained(table: pd.DataFrame) -> pd.DataFrame:
    """The codes of each trained SAE, and the accuracy that its controls have in the same seed at its L0.

    A control's accuracy is linear in log L0 between its SAEs; beyond them it is NaN.
    """
    codes = table[table.representation.str.startswith("gated")]
    rows = []
    for trained in codes[codes.control == NO_CONTROL].to_dict("records"):
        rows.append(trained)
        same = codes
        for name in ("layer", "held_out", "seed"):
            same = same[same[name] == trained[name]]
        for control, points in same[same.control != NO_CONTROL].groupby("control"):
            along = points.sort_values("l0")
            at: dict[Hashable, object] = {
                name: np.interp(np.log(trained["l0"]), np.log(along.l0), along[name], left=np.nan, right=np.nan)
                for name in ("test_accuracy", "train_accuracy")
            }
            rows.append({**trained, **at, "control": control, "n_active": np.nan})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Markdown table with a row per layer and representation: accuracies in percent, mean and interval over seeds."""
    summary = saelab.summarize(table, by=["layer", "representation", "held_out"])
    lines = [
        "| layer | representation | L0 | dimensions | a quarter held out | each genre held out |",
        "|---|---|---|---|---|---|",
    ]
    for (layer, name), rows in summary.groupby(["layer", "representation"], sort=False):
        by_part = rows.set_index("held_out")
        accuracies = []
        for part in ("stratified", "all"):
            accuracy, low, high = 100 * by_part.loc[part, ["test_accuracy", "test_accuracy_low", "test_accuracy_high"]]
            accuracies.append(f"{accuracy:.1f}" if low == high else f"{accuracy:.1f} ({low:.1f} to {high:.1f})")
        first = rows.iloc[0]  # L0 and dimensions are over all texts, however these are held out
        l0 = "" if pd.isna(first.l0) else f"{first.l0:.0f}"
        lines.append(f"| {' | '.join([str(layer), str(name), l0, f'{first.n_active:.0f}', *accuracies])} |")
    return "\n".join(lines) + "\n"


def differences(table: pd.DataFrame, at_l0: pd.DataFrame) -> pd.DataFrame:
    """By how much the accuracy of trained codes exceeds that of activations, PCA and controls, paired by seed.

    A control that does not reach the L0 in every seed is left out there: the other seeds would be a choice.
    One row per layer, SAE, way of holding out, and other: mean and 95 % interval over seeds, and in how many seeds
    trained codes are better.
    """
    names = [name for name in dict.fromkeys(table.representation) if name.startswith("gated")]
    keys = ["layer", "held_out", "seed"]
    trained = table[(table.control == NO_CONTROL)].set_index(["representation", *keys])
    rows = []
    for name in names:
        if name not in trained.index:
            continue
        codes = trained.loc[name, ["test_accuracy", "l0"]]
        others = {
            "activations": trained.loc["activations"].test_accuracy,
            "PCA": trained.loc[f"PCA, k of {name}"].test_accuracy,
        }
        for control, of in at_l0[(at_l0.representation == name) & (at_l0.control != NO_CONTROL)].groupby("control"):
            others[label_of_control(str(control))] = of.set_index(keys).test_accuracy
        for other, accuracy in others.items():
            frame = (codes.test_accuracy - accuracy).rename("difference").to_frame().assign(l0=codes.l0).reset_index()
            reached = frame.groupby(["layer", "held_out"]).difference.transform(lambda d: d.notna().all())
            frame = frame[reached.astype(bool)]
            if len(frame):
                frame["n_better"] = frame.groupby(["layer", "held_out"]).difference.transform(lambda d: (d > 0).sum())
                rows.append(saelab.summarize(frame, by=["layer", "held_out"]).assign(sae=name, minus=other))
    return pd.concat(rows, ignore_index=True)


def differences_markdown(found: pd.DataFrame) -> str:
    """Of the texts of one genre at a time: percentage points, with the interval over seeds."""
    lines = ["| layer | SAE | L0 | codes minus | percentage points | better in |", "|---|---|---|---|---|---|"]
    for row in found[found.held_out == "all"].sort_values(["layer", "sae"], kind="stable").to_dict("records"):
        mean, low, high = (100 * row[name] for name in ("difference", "difference_low", "difference_high"))
        lines.append(
            f"| {row['layer']} | {row['sae']} | {row['l0']:.0f} | {row['minus']} "
            f"| {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {row['n_better']:.0f} of {row['n_seeds']} seeds |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "experiments", help="for all that is kept")
    parser.add_argument("--quick", action="store_true", help="two layers and small SAEs, to see that everything runs")
    arguments = parser.parse_args()

    folder = arguments.folder / ("probes-quick" if arguments.quick else "probes")
    with timed("all"):
        table = experiment(QUICK if arguments.quick else FULL, folder)
    at_l0 = at_l0_of_trained(table)
    compared = differences(table, at_l0)
    shown = pd.concat([table[table.control == NO_CONTROL], at_l0[at_l0.control != NO_CONTROL]], ignore_index=True)
    tables, pictures = [folder], folder
    if not arguments.quick:  # the run that the repository shows
        tables, pictures = [folder, Path(__file__).parent], ROOT / "docs" / "pictures"
    trained = table[table.control == NO_CONTROL]
    text = f"{markdown(trained)}\n{differences_markdown(compared)}"
    for place in tables:
        table.to_csv(place / "probes.csv", index=False)
        compared.to_csv(place / "probes_differences.csv", index=False)
        (place / "probes.md").write_text(text, encoding="utf-8")
    for theme in ("light", "dark"):
        figure = probe_by_layer(shown, theme=theme)
        save_figure(figure, pictures / f"probe_by_layer-{theme}", ["png", "pdf"] if theme == "light" else ["png"])
    print(text)


if __name__ == "__main__":
    main()
