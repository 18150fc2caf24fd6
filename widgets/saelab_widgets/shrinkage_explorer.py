"""`ShrinkageExplorer`: what an L1 penalty does to magnitudes, four ways to say it in a number, and what repairs it."""

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import traitlets
from torch import Tensor

from saelab.data.synthetic import SuperpositionData
from saelab.errors import InputError
from saelab.evaluation.metrics import BiasFormula
from saelab.sae.base import L1_COEFFICIENT, SparseAutoencoder
from saelab.sae.rescale_shift import RescaleShiftSAE
from saelab_widgets.background import LatestTask, one_thread_on_small_machines
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.pictures import INK, as_png, plain_axes
from saelab_widgets.quantities import COLORS, chart, knob, other_line
from saelab_widgets.shrinkage_grid import (
    LEAST_RESCALE,
    N_SHOWN,
    NO_REPAIR,
    Level,
    Point,
    TwoNumbers,
    best_two_numbers,
    matched_codes,
    numbers_of,
    trained_grid,
    with_two_numbers,
)
from saelab_widgets.sources import HasSAE
from saelab_widgets.specs import ChartSpec, FormulaSpec, KnobSpec, LineSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

L1_COEFFICIENTS = (0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 4.0, 6.0, 8.0)
NOISES = (0.0, 0.1, 0.2, 0.3)
MOST_TRUE_FEATURES = 256
PICTURE_POINTS = 500
PICTURE_DASHES: dict[BiasFormula, str] = {"corrected": "-", "v1": "--", "projection": ":", "norm_ratio": "-."}
WRONG = "#B3261E"
"""The theme's colour of errors."""
Repair = Literal["by_hand", "best_two", "each_feature"]
_REPAIR_LABELS: dict[Repair, str] = {
    "by_hand": "by hand",
    "best_two": "best two numbers",
    "each_feature": "each feature",
}
_FORMULAS: dict[BiasFormula, tuple[str, str, str]] = {
    # label, formula, dashes of its line
    "corrected": ("\N{GREEK SMALL LETTER GAMMA}, corrected", "E‖r‖² / E[x·r]", ""),
    "v1": ("version 1", "√(E‖r‖² / (E‖x‖² \N{MINUS SIGN} E‖x\N{MINUS SIGN}r‖²))", "7 3"),
    "projection": ("projection", "E[x·r] / E‖x‖²", "2 3"),
    "norm_ratio": ("norm ratio", "E‖r‖ / E‖x‖", "8 3 2 3"),
}


class ShrinkageExplorer(Instrument, HasSAE):
    """Shrinkage seen against the truth: SAEs on synthetic data at many L1 penalties, and what repairs their magnitudes.

    It shows true against learned magnitudes, the relative reconstruction bias by four formulas, and what rescaling and
    shifting the codes changes. All SAEs are trained when the widget is made (some seconds, kept for the session); from
    then on the page computes everything itself, but for the fit of ``repair="each_feature"``.

    Every control is a trait: ``explorer.l1_coefficient = 4`` in a cell and the slider do the same thing.

    Parameters
    ----------
    n_features, d_in, density, seed
        Of the data (`saelab.superposition`), with magnitudes uniform between 0.2 and 1 before scaling. The SAEs have a
        quarter more features than the data.
    l1_coefficients
        The grid of L1 penalties, positive. Each SAE starts from its neighbour's weights, going out from the one nearest
        to 1.
    noises
        The levels of noise, as in `saelab.superposition`; the true features are the same at each.

    Raises
    ------
    ValueError
        A grid that is empty or has values that are not allowed, and what `saelab.superposition` refuses.

    Examples
    --------
    >>> from saelab_widgets import ShrinkageExplorer
    >>> explorer = ShrinkageExplorer()
    >>> explorer
    """

    _esm = STATIC / "shrinkage_explorer.js"
    _css = STATIC / "shrinkage_explorer.css"

    l1_coefficient = traitlets.Float(2.5).tag(sync=True)
    """On the grid: another value is taken as the nearest there."""
    noise = traitlets.Float(0.0).tag(sync=True)
    """One of the levels: another value is taken as the nearest."""
    rescale = traitlets.Float(1.0, min=LEAST_RESCALE).tag(sync=True)
    """Factor on the codes that are on, where `repair` is ``"by_hand"``."""
    shift = traitlets.Float(0.0).tag(sync=True)
    """Added to the codes that are on, in units of magnitude, where `repair` is ``"by_hand"``."""
    repair = traitlets.Enum(get_args(Repair), "by_hand").tag(sync=True)
    """``"by_hand"``: `rescale` and `shift`. ``"best_two"``: the two numbers of least squared error.
    ``"each_feature"``: a `saelab.RescaleShiftSAE`, trained at the grid point."""
    options = traitlets.Dict().tag(sync=True)
    knobs = traitlets.List(traitlets.Dict()).tag(sync=True)
    formulas = traitlets.List(traitlets.Dict()).tag(sync=True)
    bias_chart = traitlets.Dict().tag(sync=True)
    shape = traitlets.Dict().tag(sync=True)
    """Sizes and grid, with which the page reads the buffers."""
    inputs = traitlets.Bytes(b"").tag(sync=True)
    """float32, ``(levels, inputs, d_in)``: what is reconstructed."""
    true_codes = traitlets.Bytes(b"").tag(sync=True)
    """float32, for each level its entries ``(input * n_features + feature, magnitude)``."""
    codes = traitlets.Bytes(b"").tag(sync=True)
    """float32, for each grid point its entries ``(input * d_sae + feature, code)``; the points of a level follow on one
    another."""
    dictionaries = traitlets.Bytes(b"").tag(sync=True)
    """float32, for each grid point ``W_dec``, ``b_dec``, and the learned feature of each true one."""
    fits = traitlets.Bytes(b"").tag(sync=True)
    """float32, for each grid point ``exp(r_mag)`` and ``b_mag`` of its `saelab.RescaleShiftSAE`; NaN before its fit."""

    def __init__(
        self,
        *,
        n_features: int = 32,
        d_in: int = 24,
        density: float = 0.05,
        seed: int = 0,
        l1_coefficients: Sequence[float] | None = None,
        noises: Sequence[float] | None = None,
    ) -> None:
        if not 1 <= n_features <= MOST_TRUE_FEATURES:
            raise InputError(f"n_features must lie between 1 and {MOST_TRUE_FEATURES}, not {n_features}")
        l1 = _grid("l1_coefficients", L1_COEFFICIENTS if l1_coefficients is None else l1_coefficients)
        levels = _grid("noises", NOISES if noises is None else noises)
        if l1[0] <= 0:
            raise InputError(f"l1_coefficients must be positive, not {l1[0]:g}")
        if not 0 <= levels[0] <= levels[-1] < 1:
            raise InputError(f"noises must lie in [0, 1), not {levels}")
        self._l1, self._noises = l1, levels
        self._grid = trained_grid(n_features, d_in, float(density), seed, l1, levels)
        self._task = LatestTask(self._show_error)
        self._shown: SparseAutoencoder | None = None
        first = self._grid.levels[0].points[0].sae
        l1_knob = knob(
            L1_COEFFICIENT,
            values=list(l1),
            default=_nearest(l1, 2.5),
            help="Price of one unit of activation. About half of it is missing from every magnitude.",
        )
        super().__init__(
            l1_coefficient=2.5,
            noise=levels[0],
            options={"repair": [{"value": name, "label": label} for name, label in _REPAIR_LABELS.items()]},
            knobs=[l1_knob, *_knobs(levels)],
            formulas=_formulas(),
            bias_chart=_bias_chart(),
            shape={
                "n_inputs": N_SHOWN,
                "n_features": n_features,
                "d_in": d_in,
                "d_sae": first.d_sae,
                "l1_coefficients": list(l1),
                "noises": list(levels),
                "true_ends": _ends(level.true_codes for level in self._grid.levels),
                "code_ends": _ends(point.codes for point in self._grid.points),
            },
            inputs=_bytes(*(level.x for level in self._grid.levels)),
            true_codes=_bytes(*(_entries(level.true_codes) for level in self._grid.levels)),
            codes=_bytes(*(_entries(point.codes) for point in self._grid.points)),
            dictionaries=_bytes(
                *(part for point in self._grid.points for part in (point.sae.W_dec, point.sae.b_dec, point.matching))
            ),
            fits=self._fits(),
            status="Drag the L1 penalty, then try to repair what it did.",
        )
        self.observe(self._on_change, ["l1_coefficient", "noise", "rescale", "shift", "repair"])

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE as it is shown: that of the grid point, or with a repair a `saelab.RescaleShiftSAE` on it.

        With ``repair="each_feature"`` it is the grid point's own SAE until the fit is there.
        """
        if self._shown is None:
            self._shown = self._repaired(self._point, self.repair)
        return self._shown

    @property
    def test_x(self) -> Tensor:
        """The inputs on the page, ``(1000, d_in)``, on which no SAE was trained."""
        return self._level.x

    @property
    def data(self) -> SuperpositionData:
        """What the SAEs of the current noise were trained on, with its true features."""
        return self._level.data

    def best_two_numbers(self) -> TwoNumbers:
        """The rescale and the shift of least squared error at the current grid point, ``(rescale, shift)``.

        Where a shift below 0 switches codes off, these are the best two numbers for those that stay on.
        """
        return best_two_numbers(self._point, self._level.x)

    def fit_all(self, *, progress: bool = True) -> None:
        """Fit a `saelab.RescaleShiftSAE` at every grid point, so that a saved page has ``"each feature"`` for all.

        Some seconds; ``progress`` shows a bar.
        """
        from tqdm.auto import tqdm

        missing = [(level, point) for level in self._grid.levels for point in level.points if point.fitted is None]
        with one_thread_on_small_machines():
            for level, point in tqdm(missing, desc="fitting each feature", unit="SAE", disable=not progress):
                point.fit(level.data)
        self._take_in_fits()

    def frame(self, repair: Repair | None = None) -> "pd.DataFrame":
        """A row for each grid point: L1, noise, the four formulas, FVU, L0, and what is missed and false.

        ``recovered`` is the mean of `saelab.feature_shrinkage`; ``missed`` is the share of true entries whose learned
        feature is off, ``false`` the share of learned entries whose true feature is off, or that have none.

        Parameters
        ----------
        repair
            How the SAEs are repaired first, with `rescale` and `shift` as they stand where it is ``"by_hand"``. By
            default not at all. ``"each_feature"`` fits what has not been fitted.

        Raises
        ------
        ValueError
            Another repair.

        Examples
        --------
        >>> ShrinkageExplorer().frame().query("noise == 0").plot(x="l1_coefficient", y=["corrected", "norm_ratio"])
        """
        import pandas as pd

        if repair is not None and repair not in get_args(Repair):
            raise InputError(f"repair must be None or one of {', '.join(get_args(Repair))}, not {repair!r}")
        if repair == "each_feature":
            self.fit_all()
        return pd.DataFrame(
            [
                {"l1_coefficient": point.l1_coefficient, "noise": level.data.noise, **numbers_of(sae, level, point)}
                for level in self._grid.levels
                for point in level.points
                for sae in [point.sae if repair is None else self._repaired(point, repair, level)]
            ]
        )

    def wait(self, timeout: float = 60.0) -> None:
        """Block the cell until the fits that ``"each_feature"`` asked for are there. Raises TimeoutError."""
        self._task.wait(timeout)

    def __repr__(self) -> str:
        return (
            f"ShrinkageExplorer(l1_coefficient={self.l1_coefficient:g}, noise={self.noise:g}, repair={self.repair!r})"
        )

    @traitlets.validate("l1_coefficient")
    def _on_the_grid(self, proposal: Any) -> float:
        return _nearest(self._l1, proposal["value"])

    @traitlets.validate("noise")
    def _on_a_level(self, proposal: Any) -> float:
        return _nearest(self._noises, proposal["value"])

    @traitlets.validate("rescale", "shift")
    def _is_finite(self, proposal: Any) -> float:
        return _finite(proposal["value"])

    @property
    def _level(self) -> Level:
        return self._grid.levels[self._noises.index(self.noise)]

    @property
    def _point(self) -> Point:
        return self._level.points[self._l1.index(self.l1_coefficient)]

    def _repaired(self, point: Point, repair: str, level: Level | None = None) -> SparseAutoencoder:
        numbers = TwoNumbers(self.rescale, self.shift)
        if repair == "each_feature":
            return copy.deepcopy(point.sae if point.fitted is None else point.fitted)
        if repair == "best_two":
            numbers = best_two_numbers(point, (level or self._level).x)
        return copy.deepcopy(point.sae) if numbers == NO_REPAIR else with_two_numbers(point.sae, numbers)

    def _on_change(self, _: object) -> None:
        with self._handling():
            self.error = ""
            self._shown = None
            self._sae_has_changed()
            if self.repair == "each_feature":
                self._fit_this_level()

    def _fit_this_level(self) -> None:
        """Fit the current point, then those beside it at the same noise, for the chart."""
        level, here = self._level, self._l1.index(self.l1_coefficient)
        points = sorted(level.points, key=lambda point: abs(self._l1.index(point.l1_coefficient) - here))
        if all(point.fitted is not None for point in points):
            self._take_in_fits()
            return

        def job() -> None:
            for point in points:
                if self._task.superseded or self.comm is None:
                    return
                if point.fitted is None:
                    at = f"L1 {point.l1_coefficient:g}, noise {level.data.noise:g}"
                    self.status = f"Fitting a rescale and a shift for each feature at {at}."
                    point.fit(level.data)
                    self._take_in_fits()
            self.status = "Each feature has its own rescale and shift."

        self._task.submit(job)

    def _take_in_fits(self) -> None:
        fits = self._fits()
        if fits == self.fits:
            return
        self.fits = fits
        if self.repair == "each_feature":
            self._shown = None
            self._sae_has_changed()

    def _fits(self) -> bytes:
        def numbers(point: Point) -> Tensor:
            if point.fitted is None:
                return torch.full((2, point.sae.d_sae), math.nan)
            return torch.stack([point.fitted.r_mag.exp(), point.fitted.b_mag])

        return _bytes(*map(numbers, self._grid.points))

    def _picture(self) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 3.6), dpi=90, layout="constrained", facecolor="white")
        figure.suptitle(self._settings_line(), fontsize=9, color=INK)
        magnitudes, biases = figure.subplots(1, 2)
        self._draw_magnitudes(magnitudes)
        self._draw_biases(biases)
        for ax in (magnitudes, biases):
            ax.legend(fontsize=7, labelcolor=INK, frameon=False)
            plain_axes(ax)
        return as_png(figure)

    def _draw_magnitudes(self, ax: "Axes") -> None:
        true, learned = matched_codes(self.sae, self._level, self._point)
        found, missed, false = (true > 0) & (learned > 0), (true > 0) & (learned == 0), (true == 0) & (learned > 0)
        reach = float(max(true.max(), learned.max())) * 1.05
        ax.plot([0, reach], [0, reach], "--", color=INK, linewidth=0.8, label="not shrunk")
        ax.plot(true[found][:PICTURE_POINTS], learned[found][:PICTURE_POINTS], ".", color="#999999", markersize=2.5)
        ax.plot(true[missed][:PICTURE_POINTS], learned[missed][:PICTURE_POINTS], "|", color=WRONG, label="missed")
        ax.plot(true[false][:PICTURE_POINTS], learned[false][:PICTURE_POINTS], "_", color=WRONG, label="false alarm")
        if int(found.sum()) > 1:
            slope, at_0 = np.polyfit(true[found].numpy(), learned[found].numpy(), 1)
            ends = np.array([float(true[found].min()), float(true[found].max())])
            label = f"least squares: slope {slope:.2f}"
            ax.plot(ends, slope * ends + at_0, color=COLORS["gamma"], linewidth=1.75, label=label)
        ax.set(xlim=(0, reach), ylim=(0, reach))
        ax.set_xlabel("true magnitude", fontsize=8, color=INK)
        ax.set_ylabel("learned code", fontsize=8, color=INK)

    def _draw_biases(self, ax: "Axes") -> None:
        level, here = self._level, self._l1.index(self.l1_coefficient)
        rows = [numbers_of(self._repaired(one, self.repair), level, one) for one in level.points]
        for name, (label, _, _) in _FORMULAS.items():
            color = COLORS["gamma"] if name == "corrected" else INK
            values = [row[name] for row in rows]
            line = f"{label}  {values[here]:.3f}"
            ax.plot(self._l1, values, PICTURE_DASHES[name], color=color, linewidth=1.4, label=line)
        ax.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        ax.axvline(self.l1_coefficient, color=INK, linewidth=0.8, alpha=0.6)
        ax.set_xscale("log")
        ax.set_xticks(self._l1, [f"{value:g}" for value in self._l1])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel("L1 penalty", fontsize=8, color=INK)

    def _settings_line(self) -> str:
        numbers = numbers_of(self.sae, self._level, self._point)
        repair = f"repaired {_REPAIR_LABELS[self.repair]}" if isinstance(self.sae, RescaleShiftSAE) else "not repaired"
        return (
            f"L1 {self.l1_coefficient:g}, noise {self.noise:g}, {repair}: FVU {numbers['fvu']:.3f}, "
            f"missed {numbers['missed']:.1%}, false {numbers['false']:.1%}"
        )


def _grid(name: str, values: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(sorted({float(value) for value in values}))
    if not grid or not all(map(math.isfinite, grid)):
        raise InputError(f"{name} must be at least one finite number, not {list(values)}")
    return grid


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise traitlets.TraitError(f"expected a finite number, not {value}")
    return value


def _nearest(grid: tuple[float, ...], value: float) -> float:
    return min(grid, key=lambda one: abs(one - _finite(value)))


def _entries(codes: Tensor) -> Tensor:
    """What is not zero, ``(n, 2)``: place in the flattened matrix, which float32 holds exactly, and value."""
    flat = codes.flatten()
    at = flat.nonzero()[:, 0]
    return torch.stack([at.float(), flat[at]], dim=1)


def _ends(parts: Iterable[Tensor]) -> list[int]:
    return list(itertools.accumulate(int(part.count_nonzero()) for part in parts))


def _bytes(*parts: Tensor) -> bytes:
    return b"".join(part.detach().float().contiguous().numpy().tobytes() for part in parts)


def _knobs(levels: tuple[float, ...]) -> list[KnobSpec]:
    return [
        knob(
            "noise",
            label="Noise",
            symbol="\N{GREEK SMALL LETTER SIGMA}",
            help="Standard deviation per dimension; its square is the share of noise in the inputs.",
            min=levels[0],
            max=levels[-1],
            values=list(levels),
            default=levels[0],
        ),
        knob(
            "rescale",
            label="Rescale",
            help="Factor on every code that is on. 1: none.",
            min=0.5,
            max=2.0,
            step=0.01,
            default=1.0,
        ),
        knob(
            "shift",
            label="Shift",
            help="Added to every code that is on, in units of magnitude. 0: none.",
            min=-1.0,
            max=4.0,
            step=0.05,
            default=0.0,
        ),
    ]


def _formulas() -> list[FormulaSpec]:
    return [
        {"name": name, "label": label, "formula": formula, "dash": dash}
        for name, (label, formula, dash) in _FORMULAS.items()
    ]


def _bias_chart() -> ChartSpec:
    others: list[LineSpec] = [
        {**other_line(name, label, "muted"), "dash": dash} for name, (label, _, dash) in _FORMULAS.items() if dash
    ]
    bias = chart(
        "gamma",
        label=f"{chart('gamma')['label']} by four formulas",
        help="At each L1, with the repair as it stands. Grey: \N{GREEK SMALL LETTER GAMMA} before it.",
        domain=[0.0, None],
        others=others,
    )
    return {**bias, "column": "corrected"}
