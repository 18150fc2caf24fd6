"""What is measured and shown: each quantity in one line, and the formulas that turn pooled sums into numbers.

The tables of metrics, figures and widgets all read `QUANTITIES`. To add a quantity, add its line here and compute it
under the same name: a field of `saelab.SAEMetrics`, of a training record, or any column of a table.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
"""Formulas take floats, or tensors of one shape; tensors stay on their device, and nothing waits for them."""


class Colour(NamedTuple):
    """One hue. Lines stand out from the page 3:1, and text, in ``ink``, 4.5:1."""

    name: str
    """What widgets call it: the page has it as the CSS variable ``--saelab-<name>``."""
    light: str
    """For lines on a light page; also the colour in pictures and figures."""
    dark: str
    light_ink: str
    """For text on a light page."""
    dark_ink: str


# The palette of Okabe and Ito, which colour-blind eyes tell apart, and two more hues.
BLUE = Colour("l0", "#0072b2", "#56b4e9", "#0072b2", "#56b4e9")
VERMILLION = Colour("gamma", "#d55e00", "#f0803c", "#b84f00", "#f0803c")
GREEN = Colour("fvu", "#009e73", "#2dbd92", "#00795a", "#2dbd92")
PURPLE = Colour("probe", "#cc79a7", "#d98db6", "#a84c80", "#d98db6")
GREY = Colour("dead", "#6b6b6b", "#a6a6a6", "#6b6b6b", "#a6a6a6")
GOLD = Colour("loss", "#a67c00", "#d9b53f", "#7a5c00", "#d9b53f")
COLOURS = {colour.name: colour for colour in (BLUE, VERMILLION, GREEN, PURPLE, GREY, GOLD)}
"""Every hue by name."""


class Reference(NamedTuple):
    """A value that charts and figures mark with a line across."""

    value: float
    label: str


@dataclass(frozen=True)
class Quantity:
    """What a number is called and how it is shown, wherever it appears."""

    name: str
    """Its field or column."""
    label: str
    """Short name, above charts."""
    meaning: str
    """What it is, in one line without a full stop: the last column of printed tables, and the help in widgets."""
    unit: str = ""
    symbol: str = ""
    scale: Literal["linear", "log"] = "linear"
    """Of a chart's y axis."""
    digits: int | None = 3
    """Decimals; None: as many as its values need."""
    domain: tuple[float | None, float | None] = (None, None)
    """Limits of a chart's y axis; None: from the data."""
    least: float | None = None
    """A chart's y axis whose upper limit comes from the data reaches at least this value."""
    reference: Reference | None = None
    colour: Colour | None = None
    """None: the colour of text."""
    axis: str = ""
    """What a figure writes along its axis, if not label and unit."""

    @property
    def sentence(self) -> str:
        """The meaning as a sentence."""
        return f"{self.meaning[0].upper()}{self.meaning[1:]}." if self.meaning else ""

    @property
    def axis_label(self) -> str:
        """What a figure writes along its axis."""
        if self.axis:
            return self.axis
        word = self.label[1:2].islower()  # and not an abbreviation such as L0 or FVU
        label = f"{self.label[0].lower()}{self.label[1:]}" if word else self.label
        if self.symbol and self.symbol not in label.split():
            label = f"{label} {self.symbol}"
        return label if self.unit in label else f"{label}, {self.unit}"


_GAMMA, _ETA, _THETA = "\N{GREEK SMALL LETTER GAMMA}", "\N{GREEK SMALL LETTER ETA}", "\N{GREEK SMALL LETTER THETA}"
_NOTHING_LOST = Reference(1.0, "nothing lost")
_DESCRIBED = (
    # What `saelab.evaluate` measures
    Quantity("l0", "L0", "features on per input", "features on", scale="log", digits=1, domain=(1.0, None), colour=BLUE,
             axis="L0: features on per token"),
    Quantity("l1", "L1 norm", "sum of codes per input", digits=1, axis="L1: sum of codes per token"),
    Quantity("fvu", "FVU", "fraction of variance unexplained: 0 is perfect, 1 no better than the mean",
             domain=(0.0, 1.0), colour=GREEN, axis="fraction of variance unexplained"),
    Quantity("cosine_similarity", "Cosine", "do input and reconstruction point the same way? 1 is yes",
             axis="cosine of input and reconstruction"),
    Quantity("gamma", f"Bias {_GAMMA}", "relative reconstruction bias: below 1 is shrinkage, 1 unbiased", symbol=_GAMMA,
             domain=(0.4, 1.2), reference=Reference(1.0, "unbiased"), colour=VERMILLION,
             axis=f"relative reconstruction bias {_GAMMA}\n(1: none; below: shrinkage)"),
    Quantity("norm_ratio", "Norm ratio", "length of reconstructions over length of inputs; not a measure of shrinkage",
             axis="norm of reconstruction / norm of input"),
    Quantity("n_dead", "Dead features", "on for none of these inputs", "features", digits=0, domain=(0.0, None),
             least=10.0, colour=GREY),
    Quantity("n_inputs", "Inputs", "activations measured", digits=0),
    # What `saelab.compare_with_truth` and `saelab.dictionary_stability` measure
    Quantity("found", "Features found", "share of true features with a learned one of nearly their direction",
             domain=(0.0, 1.0), axis="share of true features found"),
    Quantity("matched_cosine", "Matched cosine", "mean cosine of features matched one to one; 1 if all are the same"),
    Quantity("mmcs", "MMCS", "mean over true features of the greatest cosine to any learned one",
             axis="mean max cosine similarity"),
    Quantity("uniqueness", "Uniqueness", "true features nearest to a learned one, per learned feature; 1: all differ"),
    Quantity("precision", "Precision", "where a learned feature is on, how often its true one is; mean over features",
             domain=(0.0, 1.0)),
    Quantity("recall", "Recall", "where a true feature is on, how often its learned one is; mean over features",
             domain=(0.0, 1.0)),
    Quantity("f1", "F1", "harmonic mean of precision and recall of each feature, mean over features",
             domain=(0.0, 1.0)),
    Quantity("absorption", "Absorption",
             "parent's feature off where its child and the child's feature are on: share of inputs", domain=(0.0, 1.0)),
    Quantity("missed_alone", "Missed without a child",
             "parent's feature off where only the parent is on: share of inputs", domain=(0.0, 1.0)),
    Quantity("shared", "Shared features", "share of features that another seed's dictionary has, too",
             domain=(0.0, 1.0)),
    # What `saelab.loss_recovered` measures, and what a sweep's table calls its score
    Quantity("clean", "Model's loss", "nats per token, the model's own loss", "nats"),
    Quantity("spliced", "Spliced", "with the reconstruction in place of the activation", "nats",
             axis="cross-entropy with the SAE spliced in\n(nats per token)"),
    Quantity("mean_ablated", "Mean-ablated", "with the mean activation in its place", "nats"),
    Quantity("zero_ablated", "Zero-ablated", "with zeros in its place", "nats"),
    Quantity("score_mean", "Recovered from mean", "loss recovered against the mean: 1 costs nothing, 0 is as bad",
             reference=_NOTHING_LOST, axis="loss recovered, as a share\n(1: the model loses nothing; 0: the mean)"),
    Quantity("score_zero", "Recovered from zero", "loss recovered against zeros, the figure that papers give",
             reference=_NOTHING_LOST, axis="loss recovered, as a share\n(1: the model loses nothing; 0: zeros)"),
    Quantity("n_tokens", "Tokens", "tokens predicted", digits=0),
    Quantity("loss_recovered", "Loss recovered", "with the SAE spliced in: 1 costs nothing, 0 is as bad as ablation",
             domain=(None, 1.0), reference=_NOTHING_LOST, colour=GOLD,
             axis="loss recovered, as a share\n(1: the model loses nothing)"),
    # Training
    Quantity("step", "Step", "training steps done", digits=0),
    Quantity("loss", "Loss", "summed over the width, mean over tokens", scale="log", digits=1, colour=GOLD),
    Quantity("reconstruction", "Reconstruction", "squared error of the loss", digits=1, colour=GREEN),
    Quantity("n_resampled", "Resampled", "dead features resampled after this step", "features", digits=0, colour=GREY),
    Quantity("lr", "Learning rate", "Adam's step", symbol=_ETA, digits=None),
    Quantity("threshold", "Gate threshold", "a feature is on above this", symbol=_THETA, digits=None),
    Quantity("d_sae", "Width", "features of the SAE", "features", digits=0, axis="features of the SAE"),
    Quantity("seconds", "Training", "seconds of training", "s", digits=1, axis="seconds of training"),
    # Probes
    Quantity("probe_accuracy", "Probe accuracy",
             "sentiment, read by a linear probe from the codes of snippets it has not seen",
             domain=(0.4, 1.0), colour=PURPLE),
    Quantity("probe_train_accuracy", "Probe train accuracy", "the same, of the snippets that the probe was fitted to",
             domain=(0.4, 1.0), colour=PURPLE),
    Quantity("test_accuracy", "Test accuracy", "share of test texts that the probe gets right", colour=PURPLE),
    Quantity("test_low", "Test accuracy, low", "lower end of its 95 % interval"),
    Quantity("test_high", "Test accuracy, high", "upper end of its 95 % interval"),
    Quantity("train_accuracy", "Train accuracy", "share of training texts that the probe gets right", colour=PURPLE),
    Quantity("train_low", "Train accuracy, low", "lower end of its 95 % interval"),
    Quantity("train_high", "Train accuracy, high", "upper end of its 95 % interval"),
    Quantity("n_active", "Features on at all", "on for at least one of the texts", "features", scale="log", digits=0,
             domain=(1.0, None), colour=BLUE),
    Quantity("n_dimensions", "Dimensions", "dimensions that the probe reads", digits=0),
    Quantity("effective_dimension", "Effective dimension", "participation ratio of what the probe was fitted to",
             digits=1),
    Quantity("C", "C", "inverse strength of the probe's regularisation", digits=None),
    # Single features
    Quantity("density", "Density", "share of tokens on which the feature is on", colour=BLUE),
    Quantity("max_activation", "Largest activation", "the feature's largest code", digits=2, domain=(0.0, None),
             colour=BLUE),
    Quantity("probe_weight", "Probe weight", "what one unit of the feature adds to the log odds of a positive verdict; "
             "0 where it is off on all snippets", "log odds", colour=PURPLE),
)  # fmt: skip
QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in _DESCRIBED}
"""Every quantity by name. Knobs and terms of losses stand with their architectures: `saelab.sae.base.quantity_of`."""


def gamma(rr: Number, xr: Number) -> Number:
    """Relative reconstruction bias, E||r||^2 / E[x . r]; NaN where E[x . r] is zero."""
    return _ratio(rr, xr, xr != 0)


def gamma_v1(rr: Number, xr: Number) -> Number:
    """sqrt(E||r||^2 / (E||x||^2 - E||x - r||^2)), the formula of the paper's version 1; NaN if that is undefined."""
    denominator = 2 * xr - rr  # equal to E||x||^2 - E||x - r||^2, with less rounding
    squared = _ratio(rr, denominator, denominator != 0)
    if isinstance(squared, Tensor):
        return squared.sqrt()
    return math.nan if squared < 0 else math.sqrt(squared)


def projection(xr: Number, xx: Number) -> Number:
    """E[x . r] / E||x||^2: the factor that regresses r on x; NaN where x is zero."""
    return _ratio(xr, xx, xx != 0)


def norm_ratio(r_norm: Number, x_norm: Number) -> Number:
    """E||r|| / E||x||; NaN where x is zero."""
    return _ratio(r_norm, x_norm, x_norm != 0)


def fvu(error: Number, variance: Number) -> Number:
    """Fraction of variance unexplained, E||x - r||^2 / E||x - E[x]||^2; NaN where all inputs are the same.

    Take the variance from a `Spread`, which is exactly zero there: a difference of sums of squares is not.
    """
    return _ratio(error, variance, variance > 0)


def _ratio(numerator: Number, denominator: Number, is_defined: bool | Tensor) -> Number:
    if isinstance(denominator, Tensor):
        return torch.where(torch.as_tensor(is_defined), numerator / denominator, math.nan)
    return numerator / denominator if is_defined else math.nan


class Spread(NamedTuple):
    """How many inputs there are and how far they lie from their mean, in the type of `pooling_dtype`.

    Squares are summed of distances from one of the inputs. However far the mean is from zero, the spread's relative
    rounding is then below ``n`` times the type's (that input's distance from the mean is part of the spread), and equal
    inputs have a spread of exactly zero.
    """

    n: Tensor
    """A scalar, as is ``squares``."""
    mean: Tensor
    """``(d_in,)``."""
    squares: Tensor
    """Squared distances from the mean, summed over inputs and width."""

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Of ``x``, ``(n, d_in)``, n at least 1."""
        n, reference = len(x), x[0].to(pooling_dtype(x))
        away = x - reference
        mean = away.sum(dim=0) / n
        squares = away.flatten().dot(away.flatten()) - n * mean.dot(mean)
        return cls(away.new_full((), n), reference + mean, squares)

    @classmethod
    def pooled(cls, spreads: Iterable[Self]) -> Self:
        """Of the inputs of all of ``spreads``, at least one."""
        return cls(*(torch.stack(parts) for parts in zip(*spreads, strict=True))).joined()

    def joined(self) -> Self:
        """`pooled` of several, stacked along a first dimension (Chan, Golub and LeVeque 1983); some may have n = 0."""
        reference = self.mean.index_select(0, self.n.argmax(dim=0, keepdim=True))
        away = self.mean - reference
        n = self.n.sum()
        shift = away.T @ self.n / n
        squares = self.squares.sum() + self.n.dot((away - shift).square().sum(dim=1))
        return type(self)(n, reference[0] + shift, squares)

    @property
    def variance(self) -> Tensor:
        """E||x - E[x]||^2, a scalar; NaN where n = 0."""
        return self.squares / self.n


def pooling_dtype(values: Tensor) -> torch.dtype:
    """In what sums over ``values`` are pooled: float64, or float32 where their device has no other, Apple's GPUs."""
    try:
        values.new_empty(0, dtype=torch.float64)
    except TypeError:
        return torch.float32
    return torch.float64


def where_float64_is(values: Tensor) -> Tensor:
    """``values``, moved to the CPU where their device has no float64."""
    return values if pooling_dtype(values) == torch.float64 else values.cpu()


def as_table(values: Mapping[str, float], style: str, meanings: Mapping[str, str] | None = None) -> str:
    """Lines of name, value and meaning, in columns.

    Parameters
    ----------
    values
        Numbers by name of their quantity.
    style
        How to write those that are not whole, such as ``".4g"``.
    meanings
        What to write instead of a quantity's usual meaning.
    """
    written = {name: _written(value, style) for name, value in values.items()}
    wide, long = (max(map(len, column)) for column in (written, written.values()))
    said = {name: QUANTITIES[name].meaning if name in QUANTITIES else "" for name in values} | dict(meanings or {})
    return "\n".join(f"{name:<{wide}}  {value:>{long}}  {said[name]}" for name, value in written.items())


def as_line(values: Mapping[str, float], style: str) -> str:
    """The same as arguments of a call, ``name=value, ...``: for a ``repr``."""
    return ", ".join(f"{name}={_written(value, style)}" for name, value in values.items())


def _written(value: float, style: str) -> str:
    return str(value) if isinstance(value, int) else f"{value:{style}}"
