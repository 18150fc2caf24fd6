"""The one vocabulary of all widgets: what each quantity and each knob is called, its colour, unit, digits and range."""

from typing import Any, cast

from saelab.sae.base import ARCHITECTURES
from saelab_widgets.specs import ChartSpec, ColorSpec, KnobSpec, LineSpec

COLORS = {
    "l0": "#0072B2",
    "gamma": "#D55E00",
    "fvu": "#009E73",
    "probe": "#CC79A7",
    "dead": "#6B6B6B",
    "loss": "#B8860B",
}
"""Okabe-Ito, one colour a quantity, as in the front end's theme; two more for what the palette has no hue left for."""
ARCHITECTURE_COLORS = {
    "standard": "#E69F00",
    "rescale_shift": "#56B4E9",
    "gated": "#222222",
    "jumprelu": "#009E73",
}
"""As in `saelab.figures`; the front end's theme has them for dark pages too."""
ARCHITECTURE_LABELS = {
    "standard": "Standard",
    "gated": "Gated",
    "rescale_shift": "Rescale and shift",
    "jumprelu": "JumpReLU",
}

_CHARTS: dict[str, dict[str, Any]] = {
    "l0": {
        "label": "L0",
        "unit": "features on",
        "help": "Mean number of features on per token.",
        "domain": [1.0, None],
        "scale": "log",
        "digits": 1,
        "color": "l0",
    },
    "gamma": {
        "label": "Bias \N{GREEK SMALL LETTER GAMMA}",
        "help": "Relative reconstruction bias: below 1 the reconstruction has shrunk.",
        "domain": [0.4, 1.2],
        "reference": {"value": 1.0, "label": "unbiased"},
        "color": "gamma",
    },
    "fvu": {
        "label": "FVU",
        "help": "Fraction of the activations' variance that the reconstruction leaves unexplained.",
        "domain": [0.0, 1.0],
        "color": "fvu",
    },
    "probe_accuracy": {
        "label": "Probe accuracy",
        "help": "Sentiment, read by a linear probe from the codes of snippets it has not seen;",
        "domain": [0.4, 1.0],
        "color": "probe",
    },
    "n_active": {
        "label": "Features on at all",
        "unit": "features",
        "help": "On for at least one of the texts;",
        "domain": [1.0, None],
        "scale": "log",
        "digits": 0,
        "color": "l0",
    },
    "loss_recovered": {
        "label": "Loss recovered",
        "help": "How much of the model's own loss survives when the SAE is spliced in: 1 is all of it.",
        "domain": [None, 1.0],
        "reference": {"value": 1.0, "label": "nothing lost"},
        "color": "loss",
    },
    "n_dead": {
        "label": "Dead features",
        "unit": "features",
        "help": "On for no input of the last 100 steps.",
        "domain": [0.0, None],
        "least": 10.0,
        "digits": 0,
        "color": "dead",
    },
    "max_activation": {
        "label": "Largest activation",
        "help": "Tokens by how strongly the feature is on.",
        "domain": [0.0, None],
        "digits": 2,
        "color": "l0",
    },
    "density": {
        "label": "Density",
        "unit": "% of tokens",
        "help": "Share of tokens on which the feature is on.",
        "domain": [0.0, 100.0],
        "digits": 2,
        "color": "l0",
    },
    "probe_weight": {
        "label": "Probe weight",
        "unit": "log odds",
        "help": "What one unit of the feature adds to the log odds of a positive verdict; "
        "0 where it is off on all snippets.",
        "domain": [None, None],
        "color": "probe",
    },
    "loss": {
        "label": "Loss",
        "help": "Summed over the width, mean over tokens, on held-out activations; its terms:",
        "domain": [None, None],
        "scale": "log",
        "digits": 1,
        "color": "loss",
    },
}
_IN_A_SWEEP: dict[str, dict[str, Any]] = {
    "probe_accuracy": {"help": "Sentiment, read by a linear probe from the codes of snippets it has not seen."},
    "n_dead": {"help": "On for none of the inputs that it was measured on."},
    "loss": {"help": "Summed over the width, mean over tokens."},
    "l1_coefficient": {"label": "L1 penalty", "help": "Price of one unit of feature activation."},
    "d_sae": {"label": "Width", "unit": "features", "help": "Features of the SAE.", "digits": 0},
    "l1": {"label": "L1 norm", "help": "Mean sum of the codes per token.", "digits": 1},
    "cosine_similarity": {
        "label": "Cosine",
        "help": "Of an activation and its reconstruction; 1: the same direction.",
        "digits": 3,
    },
    "norm_ratio": {
        "label": "Norm ratio",
        "help": "Norm of the reconstruction, as a share of the activation's.",
        "digits": 3,
    },
    "n_inputs": {"label": "Inputs", "help": "Activations that it was measured on.", "digits": 0},
    "seconds": {"label": "Training", "unit": "s", "help": "Seconds of training.", "digits": 1},
    "clean": {"label": "Model's loss", "unit": "nats", "help": "The model's own loss per token.", "digits": 3},
    "spliced": {"label": "Spliced", "unit": "nats", "help": "Its loss with the SAE spliced in.", "digits": 3},
    "mean_ablated": {"label": "Mean-ablated", "unit": "nats", "help": "With the mean activation instead.", "digits": 3},
    "zero_ablated": {"label": "Zero-ablated", "unit": "nats", "help": "With zeros instead.", "digits": 3},
    "score_mean": {"label": "Recovered from mean", "help": "Loss recovered, against the mean activation.", "digits": 3},
    "score_zero": {"label": "Recovered from zero", "help": "Loss recovered, against zeros.", "digits": 3},
    "n_tokens": {"label": "Tokens", "help": "Tokens on which the model's loss was measured.", "digits": 0},
}
"""What a sweep measures that no chart shows, and what a chart says otherwise."""
_KNOBS: dict[str, dict[str, Any]] = {
    "l1_coefficient": {
        "label": "L1 penalty",
        "symbol": "\N{GREEK SMALL LETTER LAMDA}",
        "help": "Price of one unit of feature activation, against squared error summed over the activation's width.",
        "min": 0.25,
        "max": 16.0,
        "scale": "log",  # its steps are in decades
        "default": 4.0,
    },
    "aux_coefficient": {
        "label": "Auxiliary loss",
        "symbol": "\N{GREEK SMALL LETTER ALPHA}",
        "help": "Weight of the term that teaches the gate to reconstruct. A standard SAE has no such term.",
        "min": 0.0,
        "max": 4.0,
        "default": 1.0,
        "paper": 1.0,
    },
    "gate_threshold": {
        "label": "Gate threshold",
        "symbol": "\N{GREEK SMALL LETTER THETA}",
        "help": "A feature is on where its pre-activation (gated: its gate's) exceeds this. It acts at once.",
        "min": -1.0,
        "max": 4.0,
        "default": 0.0,
        "paper": 0.0,
    },
    "lr": {
        "label": "Learning rate",
        "symbol": "\N{GREEK SMALL LETTER ETA}",
        "help": "Adam's step. Higher learns sooner and settles less well.",
        "min": 1e-4,
        "max": 1e-2,
        "scale": "log",
        "default": 1e-3,
        "paper": 3e-4,
    },
}


_PALETTE: dict[str, ColorSpec] = {
    "l0": {"light": "#0072b2", "dark": "#56b4e9"},
    "gamma": {"light": "#d55e00", "dark": "#f0803c", "light_ink": "#b84f00"},
    "fvu": {"light": "#009e73", "dark": "#2dbd92", "light_ink": "#00795a"},
    "probe": {"light": "#cc79a7", "dark": "#d98db6", "light_ink": "#a84c80"},
    "dead": {"light": "#6b6b6b", "dark": "#a6a6a6"},
    "loss": {"light": "#a67c00", "dark": "#d9b53f", "light_ink": "#7a5c00"},
}
"""Okabe-Ito, one hue a quantity: 3:1 against the page for lines, and 4.5:1 for the ink of text."""


def palette() -> dict[str, ColorSpec]:
    """Every colour that charts and series name: those of quantities and of the registered architectures."""
    looks: dict[str, ColorSpec] = {
        name: {"light": sae.look.light, "dark": sae.look.dark} for name, sae in ARCHITECTURES.items()
    }
    return {**_PALETTE, **looks}


def chart(column: str, **changes: Any) -> ChartSpec:
    """The front end's specification of a chart of one quantity, with what this widget says differently."""
    usual: dict[str, Any] = {"unit": "", "scale": "linear", "reference": None, "others": [], "digits": 3}
    return cast(ChartSpec, {"column": column, **usual, **_CHARTS[column], **changes})


def quantity(column: str, digits: int) -> dict[str, Any]:
    """Like `chart`, for any column of a sweep's table.

    What this module does not know is called after its column, and written with so many ``digits``.
    """
    plain = {"label": column.replace("_", " "), "help": "", "color": "text", "digits": digits}
    unknown = {"column": column, "unit": "", "scale": "linear", "reference": None}
    known = chart(column) if column in _CHARTS else unknown
    return {**plain, **known, **_IN_A_SWEEP.get(column, {})}


def other_line(column: str, label: str, color: str) -> LineSpec:
    """A further, dashed line of a chart; ``color`` is one of `COLORS`."""
    return {"column": column, "label": label, "color": color}


def knob(name: str, **changes: Any) -> KnobSpec:
    """The front end's specification of one slider, bound to the trait ``name``.

    A knob that this module does not know needs at least ``label``, ``help``, ``min``, ``max`` and ``default``.
    """
    usual: dict[str, Any] = {"name": name, "symbol": "", "unit": "", "step": 0.05, "scale": "linear", "paper": None}
    return cast(KnobSpec, {**usual, **_KNOBS.get(name, {}), **changes})
