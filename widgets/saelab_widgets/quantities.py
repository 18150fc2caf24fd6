"""What the front end is told of charts, knobs and colours; quantities and architectures say it of themselves."""

from typing import Any, cast

from saelab.evaluation.controls import look_of_control
from saelab.quantities import COLOURS, GREY, Quantity
from saelab.sae.base import ARCHITECTURES, label_of, quantity_of
from saelab.sae.declarations import Knob
from saelab_widgets.specs import ChartSpec, ColorSpec, KnobSpec, LineSpec, SeriesSpec

COLORS = {name: colour.light for name, colour in COLOURS.items()}
"""The colour of each hue in pictures, which are on white."""
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle",
    "D": "diamond",
    "P": "cross",
    "X": "cross",
    "*": "star",
    "v": "wye",
}
"""What it has no shape for becomes a similar one."""


def chart(column: str, **changes: Any) -> ChartSpec:
    """The front end's specification of a chart of one quantity, with what this widget says differently."""
    known = quantity_of(column)
    spec = {**_named(known, digits=3), "domain": list(known.domain), "others": []}
    if known.least is not None:
        spec["least"] = known.least
    if changes.get("others") and known.meaning:
        spec["help"] = f"{known.sentence[:-1]};"  # the key of the other lines follows
    return cast(ChartSpec, {**spec, **changes})


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


def other_line(column: str, label: str, color: str) -> LineSpec:
    """A further, dashed line of a chart; ``color`` is one of `COLORS`, ``"text"`` or ``"muted"``."""
    return {"column": column, "label": label, "color": color}


def knob(declared: Knob | str, **changes: Any) -> KnobSpec:
    """The front end's specification of one slider, bound to the trait of the knob's name.

    A slider of the widget's own is named instead, with at least ``label``, ``help``, ``min``, ``max`` and ``default``.
    """
    spec: dict[str, Any] = {"symbol": "", "unit": "", "step": 0.05, "scale": "linear", "paper": None}
    if isinstance(declared, str):
        return cast(KnobSpec, {**spec, "name": declared, **changes})
    spec |= {name: getattr(declared, name) for name in ("name", "label", "symbol", "step", "scale", "default", "paper")}
    low, high = declared.range
    return cast(KnobSpec, {**spec, "help": declared.meaning, "min": low, "max": high, **changes})


def architecture_label(name: str) -> str:
    """An architecture's label as widgets write it, with a capital; a name that is none stands for itself."""
    label = label_of(name)
    return f"{label[:1].upper()}{label[1:]}" if name in ARCHITECTURES else label


def architecture_color(name: str) -> str:
    """The colour of a registered architecture in pictures, which are on white."""
    return ARCHITECTURES[name].look.light


def shape_of(marker: str) -> str:
    """The front end's shape for one of matplotlib's markers."""
    return SHAPES.get(marker, "circle")


def control_series(value: str, label: str, control: str, marker: str) -> SeriesSpec:
    """How the front end draws a control: grey, with the dashes that it has in figures."""
    dash = " ".join(f"{2 * length:g}" for length in look_of_control(control, marker).dash)
    return {"value": value, "label": label, "color": GREY.name, "shape": shape_of(marker), "dash": dash}


def palette() -> dict[str, ColorSpec]:
    """Every colour of the page by the name of its CSS variable: hues of quantities, and lines of architectures."""
    hues: dict[str, ColorSpec] = {
        name: {
            "light": colour.light,
            "dark": colour.dark,
            "light_ink": colour.light_ink,
            "dark_ink": colour.dark_ink,
        }
        for name, colour in COLOURS.items()
    }
    looks: dict[str, ColorSpec] = {
        name: {"light": sae.look.light, "dark": sae.look.dark} for name, sae in ARCHITECTURES.items()
    }
    return hues | looks
