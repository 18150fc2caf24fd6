"""The API reference: which page each public name is on, and the pages' sources."""

import importlib
import inspect

import typer.main
from typer.cli import get_docs_for_click

from saelab.cli.app import app
from saelab.exercises import check
from saelab.sae.base import ARCHITECTURES

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "autoencoders": (
        "Autoencoders",
        "saelab",
        (
            *(cls.__name__ for cls in ARCHITECTURES.values()),
            "SparseAutoencoder",
            "ElementwiseSAE",
            "SAELoss",
            "Encoded",
            "Knob",
            "LossTerm",
            "Moment",
            "Look",
            "TrainedOn",
            "ARCHITECTURES",
            "threshold_curves",
        ),
    ),
    "training": (
        "Training",
        "saelab",
        (
            "Trainer",
            "TrainingConfig",
            "TrainingRecord",
            "sweep",
            "knob_for_l0",
            "KnobForL0",
            "resample_dead_features",
            "NonFiniteLossError",
        ),
    ),
    "activations": (
        "Models, text and activations",
        "saelab",
        (
            "load_language_model",
            "ModelNotFoundError",
            "load_text",
            "load_sentiment",
            "harvest",
            "harvest_many",
            "harvest_pooled",
            "harvest_pooled_many",
            "ActivationStore",
            "StoreError",
            "superposition",
            "SuperpositionData",
        ),
    ),
    "metrics": (
        "Metrics",
        "saelab",
        (
            "evaluate",
            "SAEMetrics",
            "relative_reconstruction_bias",
            "RelativeReconstructionBias",
            "L0",
            "L1",
            "FVU",
            "CosineSimilarity",
            "FeatureDensity",
            "compare_with_truth",
            "TruthReport",
            "dictionary_stability",
            "DictionaryStability",
            "matched_cosine_similarity",
            "feature_shrinkage",
            "DictionaryMatch",
            "summarize",
            "compare_at_l0",
            "CONTROLS",
            "Control",
            "pca_dictionary",
            "random_dictionary",
            "loss_recovered",
            "loss_recovered_many",
            "LossRecovered",
            "spliced",
        ),
    ),
    "probing": (
        "Probing and reading features",
        "saelab",
        (
            "probe",
            "ProbeReport",
            "pool_reports",
            "compare_representations",
            "sentiment_set",
            "sentiment_sets",
            "LabelledSet",
            "LabelledSplit",
            "LabelledActivations",
            "probe_weights",
            "principal_components",
            "effective_dimension",
            "read_features",
            "FeatureReading",
        ),
    ),
    "files": ("Files and other libraries", "saelab", ("load", "save", "export", "SAEFileError")),
    "errors": ("Errors", "saelab", ("SAELabError", "InputError", "InputTypeError")),
    "widgets": (
        "Widgets",
        "saelab_widgets",
        (
            "TrainingLab",
            "ShrinkageExplorer",
            "GateExplorer",
            "ParetoExplorer",
            "ProbeExplorer",
            "FeatureBrowser",
        ),
    ),
    "default_materials": ("What widgets show by default", "saelab_widgets.materials", ("default_sae", "default_sweep")),
    "figures": ("Figures", "saelab.figures", ("pareto", "probe_by_layer", "lines", "scatter", "save_figure")),
    "exercises": ("Checks of exercises", "saelab.exercises.check", tuple(check.__all__)),
}
"""For each page: title, module to import, and names in the order of the page."""


DATA = ("saelab.sae.base", "saelab.evaluation.controls")
"""Modules that define the public names that are neither classes nor functions."""


def pages() -> dict[str, str]:
    """The source of each page, keyed by file name."""
    made = {f"{name}.rst": _page(*parts) for name, parts in PAGES.items()}
    toctree = [
        "API reference",
        "=" * 13,
        "",
        ".. toctree::",
        "",
        *(f"   {name}" for name in [*PAGES, "command_line"]),
        "",
    ]
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="saelab", title="Command line")
    return made | {"index.rst": "\n".join(toctree), "command_line.md": text}


def _page(title: str, module: str, names: tuple[str, ...]) -> str:
    found = importlib.import_module(module)
    kinds = {name: _kind(getattr(found, name)) for name in names}
    lines = [title, "=" * len(title), "", f".. currentmodule:: {module}", ""]
    if module.count("."):
        lines += [
            ".. code-block:: python",
            "",
            f"   from {module.rpartition('.')[0]} import {module.rpartition('.')[2]}",
            "",
        ]
    lines += [".. autosummary::", "   :nosignatures:", ""]
    lines += [*(f"   {name}" for name in names if kinds[name] != "data"), ""]
    for name, kind in kinds.items():
        # Data is documented where it is defined; a summary would show the docstring of its type.
        lines += [f".. auto{kind}:: {name}" if kind != "data" else f".. autodata:: {_home(name)}", ""]
    return "\n".join(lines)


def _kind(named: object) -> str:
    if isinstance(named, type):
        return "exception" if issubclass(named, Exception) else "class"
    return "function" if inspect.isroutine(named) else "data"


def _home(name: str) -> str:
    return next(f"{module}.{name}" for module in DATA if hasattr(importlib.import_module(module), name))
