"""What the front end is told of charts, knobs and colours; quantities and architectures say it of themselves."""

from typing import Any

from saelab.quantities import COLOURS, Quantity, quantity_of
from saelab.sae.base import ARCHITECTURES
from saelab.sae.legend import label_of

COLORS = {name: colour.light for name, colour in COLOURS.items()}
"""The colour of each hue in pictures, which are on white."""
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


def chart(column: str, **changes: Any) -> dict[str, Any]:
    """The front end's specification of a chart of one quantity, with what this widget says differently."""
    known = quantity_of(column)
    spec = {**_named(known, digits=3), "domain": list(known.domain), "others": []}
    if known.least is not None:
        spec["least"] = known.least
    if changes.get("others") and known.meaning:
        spec["help"] = f"{known.sentence[:-1]};"  # the key of the other lines follows
    return {**spec, **changes}


def quantity(column: str, digits: int) -> dict[str, Any]:
    """How the front end writes one column of a sweep's table, with so many ``digits`` if it has no usual ones."""
    return _named(quantity_of(column), digits)


def _named(known: Quantity, digits: int) -> dict[str, Any]:
    return {
        "column": known.name,
        "label": known.label,
        "unit": known.unit,
        "help": known.sentence,
        "scale": known.scale,
        "digits": digits if known.digits is None else known.digits,
        "reference": known.reference and known.reference._asdict(),
        "color": known.colour.name if known.colour else "text",
    }


def other_line(column: str, label: str, color: str) -> dict[str, str]:
    """A further, dashed line of a chart; ``color`` is one of `COLORS`, ``"text"`` or ``"muted"``."""
    return {"column": column, "label": label, "color": color}


def knob(name: str, **changes: Any) -> dict[str, Any]:
    """The front end's specification of one slider, bound to the trait ``name``.

    A knob that this module does not know needs at least ``label``, ``help``, ``min``, ``max`` and ``default``.
    """
    usual: dict[str, Any] = {"name": name, "symbol": "", "unit": "", "step": 0.05, "scale": "linear", "paper": None}
    return {**usual, **_KNOBS.get(name, {}), **changes}


def architecture_label(name: str) -> str:
    """An architecture's label as widgets write it, with a capital; a name that is none stands for itself."""
    label = label_of(name)
    return f"{label[:1].upper()}{label[1:]}" if name in ARCHITECTURES else label


def architecture_color(name: str) -> str:
    """The colour of a registered architecture in pictures, which are on white."""
    return ARCHITECTURES[name].look.light


# Until the gate explorer calls the two functions above.
ARCHITECTURE_LABELS = {name: architecture_label(name) for name in ARCHITECTURES}
ARCHITECTURE_COLORS = {name: architecture_color(name) for name in ARCHITECTURES}


def palette() -> dict[str, dict[str, str]]:
    """Every colour of the page by the name of its CSS variable: hues of quantities, and lines of architectures."""
    shades = ("light", "dark", "light_ink", "dark_ink")
    hues = {name: {shade: getattr(colour, shade) for shade in shades} for name, colour in COLOURS.items()}
    looks = {name: {"light": sae.look.light, "dark": sae.look.dark} for name, sae in ARCHITECTURES.items()}
    return hues | looks
