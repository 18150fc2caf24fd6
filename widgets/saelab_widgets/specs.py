"""The data of knobs and charts, as the page takes it.

``widgets/frontend/src/specs.ts`` declares the same under the same names; ``tests/saelab_widgets/test_contract.py``
compares the two.
"""

from typing import Literal, NotRequired, TypedDict

Scale = Literal["linear", "log"]


class OptionSpec(TypedDict):
    """One choice of several."""

    value: str
    label: str


class ArchitectureSpec(OptionSpec):
    """An architecture to choose."""

    ablations: list[str]
    """The ablations that it has, by value."""


class KnobSpec(TypedDict):
    """A slider, bound to the trait ``name``."""

    name: str
    label: str
    symbol: str
    unit: str
    help: str
    min: float
    max: float
    step: float
    """In the knob's unit, or on a log scale in decades."""
    scale: Scale
    default: float
    paper: float | None
    """The value that the paper used, or None."""
    values: NotRequired[list[float]]
    """The only values it takes, rising, where there are only some; limits, step and scale are then ignored."""


class LabKnobSpec(KnobSpec):
    """A knob of the `TrainingLab`."""

    enabled_for: list[str]
    """The architectures that have this knob."""


class ReferenceSpec(TypedDict):
    """A level to compare with, drawn as a horizontal line."""

    value: float
    label: str


class LineSpec(TypedDict):
    """A further column of a chart, drawn as a thinner dashed line with a key."""

    column: str
    label: str
    color: str
    """A name in the palette or the front end's theme."""
    dash: NotRequired[str]
    """An SVG dash pattern; empty: solid."""


class QuantityBase(TypedDict):
    """How a quantity is called and written."""

    column: str
    label: str
    unit: str
    help: str
    digits: int
    """Decimals of a value."""
    color: str
    """A name in the palette or the front end's theme."""
    reference: ReferenceSpec | None


class ChartSpec(QuantityBase):
    """A chart of one quantity."""

    domain: list[float | None]
    """Limits of the y axis; None: from the data."""
    scale: Scale
    least: NotRequired[float]
    """A y axis from the data reaches at least this far up."""
    others: list[LineSpec]


class AxisScales(TypedDict):
    """The kind of axis that a quantity has along either direction."""

    x: Scale
    y: Scale


class QuantitySpec(QuantityBase):
    """A column of a sweep's table."""

    scales: AxisScales


class SeriesSpec(OptionSpec):
    """How an architecture, or a control of one, is drawn."""

    color: str
    """A name in the palette or the front end's theme."""
    shape: str
    dash: str
    """An SVG dash pattern; empty: solid."""


class FormulaSpec(TypedDict):
    """One way to say the relative reconstruction bias in a number."""

    name: Literal["corrected", "v1", "projection", "norm_ratio"]
    label: str
    formula: str
    dash: str
    """An SVG dash pattern; empty: solid."""


class ColorSpec(TypedDict):
    """A colour on light and on dark pages, as ``#rrggbb``; the ink is for text, by default the colour itself."""

    light: str
    dark: str
    light_ink: NotRequired[str]
    dark_ink: NotRequired[str]
