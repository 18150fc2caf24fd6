"""What an architecture says about itself in its own file: its name and look, its knobs, its form in other libraries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, NamedTuple

from torch import Tensor

from saelab.errors import InputError, InputTypeError
from saelab.quantities import QUANTITIES, Quantity


class Look(NamedTuple):
    """How an architecture is drawn, in every figure and widget: told from the others in colour and without."""

    light: str
    """Its colour on a light page; at least 3:1 against white."""
    dark: str
    """Its colour on a dark page."""
    marker: str
    """A marker of matplotlib's: one of ``o s ^ D v P * X``."""
    dash: tuple[float, ...] = ()
    """Lengths of dash and gap in line widths; empty for a solid line."""
    width: float = 1.8
    """Width of its lines, in points."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A number that may be changed at any time, also while an SAE trains. A name means the same in every architecture.

    A coefficient of the loss belongs to the trainer, a live setting (such as ``gate_threshold``) to the SAE itself.
    Both are set under this name: ``trainer.l1_coefficient = 8``.
    """

    name: str
    label: str
    """What a widget calls it."""
    short: str
    """What captions call it, before its value."""
    meaning: str
    """One sentence, for widgets and for the command line's help."""
    default: float
    symbol: str = ""
    range: tuple[float, float]
    """Ends of a slider. Other values are allowed, where they make sense."""
    scale: Literal["linear", "log"] = "linear"
    step: float = 0.05
    """What a slider moves by; in decades on a log scale."""
    paper: float | None = None
    """The source's own value, in this library's units."""
    is_whole: bool = False
    """Whether it counts something."""
    minimum: float = 0.0
    """Least value that is allowed."""
    warms_up: bool = False
    """Whether it rises from 0 over the trainer's ``sparsity_warmup_steps``."""

    @property
    def quantity(self) -> Quantity:
        """Its column in a table."""
        return Quantity(self.name, self.label, self.meaning.rstrip("."), symbol=self.symbol, digits=None)

    def checked(self, value: object) -> float:
        """The value as a number.

        Raises
        ------
        TypeError, ValueError
            It is no number, not finite, below the `minimum`, or has a fraction where it counts something.
        """
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputTypeError(f"{self.name} must be a number, not {value!r}")
        number = float(value)
        if not math.isfinite(number) or number < self.minimum or (self.is_whole and number % 1):
            kind = "whole" if self.is_whole else "finite"
            least = f" of at least {self.minimum:g}" if math.isfinite(self.minimum) else ""
            raise InputError(f"{self.name} must be a {kind} number{least}, not {value}")
        return int(number) if self.is_whole else number


class LossTerm(NamedTuple):
    """A term of a loss beside the reconstruction error, with its coefficient."""

    name: str
    """Its key in `SAELoss.terms`, and its column in a trainer's history."""
    label: str
    """What a chart of the loss calls it."""
    coefficient: Knob
    hue: str
    """Whose colour its line has in the chart of the loss: a name of `saelab.quantities.QUANTITIES`."""

    @property
    def quantity(self) -> Quantity:
        """Its column in a trainer's history."""
        return Quantity(
            self.name,
            self.label,
            "term of the loss, before its coefficient",
            digits=1,
            colour=QUANTITIES[self.hue].colour,
        )


class Moment(NamedTuple):
    """The moment of training at which a loss is computed, for losses that depend on it."""

    step: int = 0
    """Steps done before."""
    n_steps: int = 1
    """Steps planned."""
    dead: Tensor | None = None
    """``(d_sae,)``, boolean: features that were on for no input in the trainer's last ``dead_after_steps`` steps."""


@dataclass(frozen=True)
class ForeignForm:
    """An architecture in the files of SAELens and dictionary_learning: their name for it and for each of its tensors.

    ``W_enc``, ``W_dec`` and ``b_dec`` are part of every form; the decoder of both libraries is ``(d_sae, d_in)`` too.
    """

    features: tuple[str, ...]
    """Our names of its tensors of shape ``(d_sae,)``; SAELens calls them the same."""
    sae_lens: str | None
    """SAELens' ``architecture``; None where it has none for it."""
    dictionary_learning: tuple[str, Mapping[str, str]] | None
    """Its class there, and our name for each of its tensors. Those called ``.weight`` are transposed."""
    sae_lens_fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of SAELens' configuration that hold a setting of the constructor, and the setting's name."""
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    """What dictionary_learning keeps as tensors of one number: a setting or buffer of ours, by the name that both have,
    or where we have none the number that is written."""
