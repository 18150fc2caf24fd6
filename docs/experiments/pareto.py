"""Measure what sparsity costs each architecture: the shape of the paper's figures 1 and 6, and thin lines beside it.

    python docs/experiments/pareto.py            # twenty minutes on two idle, slow cores; seconds when repeated
    python docs/experiments/pareto.py --quick    # small SAEs, about a minute

The paper is arXiv 2404.16014v2. It compares standard and gated SAEs at equal compute, the standard ones 1.5 times as
wide (section 4.1), and rescale-and-shift SAEs with gated ones at equal width (section 5.2). Here all SAEs have the same
width, on the small language model inside the package.
Every other architecture that trains from scratch is swept around the default of its sparsity knob. Each SAE has one
seed: a difference as small as that between neighbouring lines is one observation.

All results are kept in ``--folder``: run again, the script resumes where it was stopped. The table is written there
too; a full run at the default hook also updates the one beside this script, and the pictures in ``docs/pictures``.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import saelab
from saelab.figures import pareto, save_figure
from saelab.files.tensor_files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
HOOK = "blocks.1.hook_resid_post"


class Effort(NamedTuple):
    """The size of the experiment."""

    n_tokens: int | None
    n_held_out_texts: int
    d_sae: int
    training: saelab.TrainingConfig
    rescaling: saelab.TrainingConfig
    gated_l1: Sequence[float]
    standard_l1: Sequence[float]
    around: Sequence[float]
    """Other architectures: values of the sparsity knob, as multiples of its default."""


FULL = Effort(
    n_tokens=None,  # all available, about 390,000
    n_held_out_texts=128,
    d_sae=1024,
    # No resampling: in so few steps, features killed by a large L1 penalty only die again once revived. With it, a
    # standard SAE of 2,048 features ended at L0 20 and FVU 0.55 at an L1 of 8; without, at L0 5 and FVU 0.50 at 6.5.
    training=saelab.TrainingConfig(n_steps=2000, resample_every=0),
    # With two numbers per feature there is less to learn, so fewer steps suffice. At lr 1e-3, 500 steps left gamma at
    # 0.97 at the largest L1 penalty, and at 1.00 elsewhere.
    rescaling=saelab.TrainingConfig(n_steps=500, lr=3e-3),
    # Found by trial: L0 from about 80 down to 5 for both.
    gated_l1=(1.4, 2, 3, 4.5, 7, 10),
    standard_l1=(0.8, 1.2, 1.8, 2.8, 4.2, 6.5),
    around=(0.25, 0.5, 1, 2),
)
QUICK = FULL._replace(
    n_tokens=30_000,
    n_held_out_texts=16,
    d_sae=512,
    training=saelab.TrainingConfig(n_steps=200, batch_size=512, resample_every=0),
    rescaling=saelab.TrainingConfig(n_steps=100, batch_size=512, lr=3e-3),
    gated_l1=(2, 4, 8),
    standard_l1=(1.2, 2.4, 6),
    around=(0.5, 1),
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


def recovered(model: Any, hook: str, paths: Sequence[str], texts: Sequence[str]) -> list[dict[str, float]]:
    """`saelab.loss_recovered` of the SAE in each file, cached beside it.

    The sweep names the file after everything that went into it, including the held-out activations and so these texts:
    a cached result is always valid.
    """
    kept = {path: Path(path).with_suffix(".loss.json") for path in paths}
    if saes := {path: saelab.load(path) for path in paths if not kept[path].exists()}:
        for path, measured in saelab.loss_recovered_many(model, hook, saes, texts, progress=False).items():
            write_atomically(
                kept[path], partial(Path.write_text, data=json.dumps(measured.as_dict()), encoding="utf-8")
            )
    return [json.loads(kept[path].read_text(encoding="utf-8")) for path in paths]


def values(cls: type[saelab.SparseAutoencoder], effort: Effort) -> list[float]:
    """What to try of an architecture's sparsity knob."""
    knob = cls.sparsity_knob
    assert knob is not None
    return [round(knob.default * share) if knob.is_whole else knob.default * share for share in effort.around]


def experiment(effort: Effort, hook: str, folder: Path) -> pd.DataFrame:
    """Return a row for each SAE: metrics on held-out texts, and what splicing it into the model costs there."""
    with timed("activations"):
        model = saelab.load_language_model()
        texts = saelab.load_text()
        train, held_out = texts[: -effort.n_held_out_texts], texts[-effort.n_held_out_texts :]
        store = saelab.harvest(model, hook, train, n_tokens=effort.n_tokens, store=folder / "train")
        # SAEs expect activations in the training store's scale, so the held-out ones must have it too.
        test = saelab.harvest(model, hook, held_out, scale=store.scale, store=folder / "held-out")

    d_in, d_sae = store.d_in, effort.d_sae
    sweep = partial(saelab.sweep, activations=store, test=test, folder=folder / "saes")
    with timed("standard SAEs"):
        standard = sweep(lambda: saelab.StandardSAE(d_in, d_sae), sparsity=effort.standard_l1, config=effort.training)
    with timed("rescale-and-shift SAEs"):
        # One per standard SAE. Its loss has no L1 term; the table shows the coefficient of the SAE that it repairs.
        makers = [partial(rescaled, path) for path in standard.path]
        cured = sweep(makers, config=effort.rescaling)
        cured["l1_coefficient"] = standard.l1_coefficient
    with timed("gated SAEs"):
        gated = sweep(lambda: saelab.GatedSAE(d_in, d_sae), sparsity=effort.gated_l1, config=effort.training)

    others = []
    for cls in saelab.ARCHITECTURES.values():
        if cls.trains_from_scratch and cls not in (saelab.StandardSAE, saelab.GatedSAE):
            with timed(f"{cls.label} SAEs"):
                others.append(sweep(partial(cls, d_in, d_sae), sparsity=values(cls, effort), config=effort.training))

    table = pd.concat([standard, cured, gated, *others], ignore_index=True)
    with timed("loss recovered"):
        losses = pd.DataFrame(recovered(model, hook, list(table.path), held_out))
    table["loss_recovered"] = losses.score_zero
    return table.join(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hook", default=HOOK, help=f"where in the model; {HOOK} by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "experiments", help="for all that is kept")
    parser.add_argument("--quick", action="store_true", help="small SAEs, to see that everything runs")
    arguments = parser.parse_args()

    folder = arguments.folder / f"pareto-{arguments.hook}{'-quick' if arguments.quick else ''}"
    table = experiment(QUICK if arguments.quick else FULL, arguments.hook, folder)
    pictures = folder
    table.to_csv(folder / "table.csv", index=False)
    if arguments.hook == HOOK and not arguments.quick:  # the run that the repository shows
        pictures = ROOT / "docs" / "pictures"
        table.drop(columns=["path", "seconds"]).to_csv(Path(__file__).with_suffix(".csv"), index=False)
    for theme in ("light", "dark"):
        figure = pareto(table, y=["loss_recovered", "gamma"], theme=theme)
        save_figure(figure, pictures / f"pareto-{theme}", ["png", "pdf"] if theme == "light" else ["png"])
    knobs = dict.fromkeys(cls.sparsity_knob.name for cls in saelab.ARCHITECTURES.values() if cls.sparsity_knob)
    swept = [name for name in knobs if name in table]
    shown = ["architecture", *swept, "l0", "fvu", "gamma", "loss_recovered", "n_dead", "seconds"]
    print(table[shown].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
