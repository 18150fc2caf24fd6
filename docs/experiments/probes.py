"""At which layer can a probe read sentiment, and what of it is left in sparse codes?

    python docs/experiments/probes.py            # nine minutes on two idle cores; seconds when repeated
    python docs/experiments/probes.py --quick    # two layers and small SAEs, one minute

At each layer of the small language model inside the package, the script trains gated SAEs at several L1 coefficients
and fits one probe on the activations, one on the codes, and one on a PCA of the activations to as many dimensions as
the SAE has features on. Test texts are held out in two ways: a quarter of each kind, and each genre in turn. All
results are kept in ``--folder``: run again, the script resumes where it was stopped. The tables are written there too;
a full run also updates those beside this script, and the pictures in ``docs/pictures``.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

import saelab
from saelab.figures import probe_by_layer, save_figure
from saelab.files.tensor_files import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROOT = Path(__file__).resolve().parents[2]


class Effort(NamedTuple):
    """The size of the experiment."""

    layers: Sequence[int]
    n_tokens: int
    d_sae: int
    training: saelab.TrainingConfig
    l1_coefficients: Sequence[float]
    C: Sequence[float]
    """Inverse penalties of the probes; each fit chooses one, so that no representation is stuck with another's best."""


FULL = Effort(
    layers=range(4),
    n_tokens=200_000,
    d_sae=1024,
    training=saelab.TrainingConfig(n_steps=1500, resample_every=0),  # pareto.py says why there is no resampling
    l1_coefficients=(1, 2, 4),
    C=(0.001, 0.01, 0.1),
)
QUICK = FULL._replace(
    layers=(1, 3),
    n_tokens=30_000,
    d_sae=256,
    training=saelab.TrainingConfig(n_steps=200, batch_size=512, resample_every=0),
    l1_coefficients=(4,),
    C=(0.01,),
)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def probed(
    model: "TransformerBridge", store: saelab.ActivationStore, sweep: pd.DataFrame, C: Sequence[float], folder: Path
) -> pd.DataFrame:
    """One layer's `saelab.compare_representations`, held out in both ways, cached under the names of its SAEs.

    The sweep names an SAE's file after everything that went into it, so a result cached under these names is valid.
    """
    names = "+".join([*(Path(path).stem for path in sweep.path), *(f"C={c:g}" for c in C)])
    kept = folder / f"{names}.csv"
    if not kept.exists():
        # The snippets get the scale of the activations that the SAEs were trained on.
        data = saelab.sentiment_set(model, store.hook, scale=store.scale)
        saes = {
            f"gated, L1 {l1:g}": saelab.load(path) for l1, path in zip(sweep.l1_coefficient, sweep.path, strict=True)
        }
        tables = [
            saelab.compare_representations(data, saes, C=C, held_out=held_out) for held_out in ("stratified", "block")
        ]
        write_atomically(kept, lambda path: pd.concat(tables).to_csv(path, index=False))
    return pd.read_csv(kept)


def experiment(effort: Effort, folder: Path) -> pd.DataFrame:
    """Return `saelab.compare_representations` for all layers, with the column ``layer``."""
    with timed("activations"):
        model = saelab.load_language_model()
        hooks = [f"blocks.{layer}.hook_resid_post" for layer in effort.layers]
        stores = saelab.harvest_many(
            model, hooks, saelab.load_text(), n_tokens=effort.n_tokens, store=folder / "activations"
        )
    tables = []
    for layer, store in zip(effort.layers, stores.values(), strict=True):
        d_in = store.d_in
        with timed(f"layer {layer}: SAEs"):
            sweep = saelab.sweep(
                partial(saelab.GatedSAE, d_in, effort.d_sae),
                store,
                effort.l1_coefficients,
                config=effort.training,
                test=store.activations[:10_000],  # its metrics are not used
                folder=folder / "saes",
            )
        with timed(f"layer {layer}: probes"):
            tables.append(probed(model, store, sweep, effort.C, folder).assign(layer=layer))
    return pd.concat(tables, ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """Markdown table with a row per layer and representation: accuracies in percent and their 95 % intervals."""
    lines = [
        "| layer | representation | L0 | dimensions | a quarter held out | each genre held out |",
        "|---|---|---|---|---|---|",
    ]
    for (layer, name), rows in table.groupby(["layer", "representation"], sort=False):
        by_part = rows.set_index("held_out")
        accuracies = []
        for part in ("stratified", "all"):
            accuracy, low, high = 100 * by_part.loc[part, ["test_accuracy", "test_low", "test_high"]]
            accuracies.append(f"{accuracy:.1f} ({low:.1f} to {high:.1f})")
        first = rows.iloc[0]  # L0 and dimensions are over all texts, however these are held out
        cells = [layer, name, "" if pd.isna(first.l0) else f"{first.l0:.0f}", first.n_active, *accuracies]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "experiments", help="for all that is kept")
    parser.add_argument("--quick", action="store_true", help="two layers and small SAEs, to see that everything runs")
    arguments = parser.parse_args()

    folder = arguments.folder / ("probes-quick" if arguments.quick else "probes")
    table = experiment(QUICK if arguments.quick else FULL, folder)
    tables = [folder / "table"]
    pictures = folder
    if not arguments.quick:  # the run that the repository shows
        tables.append(Path(__file__).with_suffix(""))
        pictures = ROOT / "docs" / "pictures"
    for path in tables:
        table.to_csv(path.with_suffix(".csv"), index=False)
        path.with_suffix(".md").write_text(markdown(table), encoding="utf-8")
    # "all" pools the held-out genres; a row of panels for each of the four would say less.
    shown = table[table.held_out.isin(["stratified", "all"])]
    for theme in ("light", "dark"):
        figure = probe_by_layer(shown, theme=theme)
        save_figure(figure, pictures / f"probe_by_layer-{theme}", ["png", "pdf"] if theme == "light" else ["png"])
    print(markdown(table))


if __name__ == "__main__":
    main()
