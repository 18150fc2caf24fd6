"""`ParetoExplorer`: a sweep as a scatter, one mark an SAE; the chosen one is what other widgets can follow."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import traitlets
from numpy.typing import NDArray
from torch import Tensor

import saelab
from saelab.data.labelled import LabelledSplit
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.comparisons import configurations
from saelab.evaluation.controls import NO_CONTROL, UNTRAINED, label_as_control, look_of_control
from saelab.sae.base import ARCHITECTURES, SparseAutoencoder, in_order
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.materials import default_sweep, probe_accuracy
from saelab_widgets.pictures import INK, as_png, plain_axes
from saelab_widgets.quantities import (
    COLORS,
    architecture_color,
    architecture_label,
    control_series,
    quantity,
    shape_of,
)
from saelab_widgets.sources import HasSAE
from saelab_widgets.specs import QuantitySpec, SeriesSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SETTINGS = ("preset", "ablations", "d_sae")
"""Columns that say, beside the architecture, which SAE it is: a line through several of one compares nothing."""
LOG_SPAN = 4
"""A quantity whose largest value is so many times its smallest has a log axis, as in `saelab.figures.pareto`."""
FIRST = ("l0", "loss_recovered", "fvu", "gamma", "probe_accuracy", "n_dead")
"""Quantities that come first on the card and among the axes, behind the knobs that were swept."""
_OTHER_LOOKS = (("P", "gamma"), ("*", "probe"), ("v", "l0"))
"""Marker and hue of names that are no registered architecture, in order and then again."""


class ParetoExplorer(Instrument, HasSAE):
    """A sweep as a scatter, one mark an SAE: what sparsity costs, for each architecture.

    Of several seeds (column ``seed``) every SAE has its mark, and lines run through the means over seeds
    (`saelab.summarize`). Controls (column ``control``) are grey, on thin dashed lines of their own.

    Axes and architectures are traits, and so is the chosen SAE: ``pareto.chosen = 3`` in a cell and a click on its mark
    do the same thing. Other widgets follow it: ``GateExplorer(sae=pareto)`` shows the SAE that is chosen here.

    Parameters
    ----------
    table
        What `saelab.sweep` gives, with any further columns of numbers, such as ``loss_recovered``; or the path of a CSV
        file with such a table. It needs a column ``architecture``, and ``path`` where other widgets are to follow. By
        default a small sweep on the embedded model, which takes about a minute the first time and is then kept
        (`saelab_widgets.materials.default_sweep`).
    x, y
        Columns on the axes. ``y`` is the loss recovered by default, or the FVU where the table has none.
    sentiment
        Probe inputs at the SAEs' hook with their scale, for widgets that follow. Where the table has paths and no
        column ``probe_accuracy``, it is measured.

    Raises
    ------
    TypeError, ValueError
        What is no table; a table that is empty, names no architecture, or has no numbers; an ``x`` or ``y`` that is no
        column of numbers; of several seeds, two rows that agree in seed and settings.
    FileNotFoundError
        No CSV file there.

    Examples
    --------
    >>> from saelab_widgets import ParetoExplorer
    >>> pareto = ParetoExplorer()
    >>> pareto
    """

    _esm = STATIC / "pareto_explorer.js"
    _css = STATIC / "pareto_explorer.css"

    x = traitlets.Unicode("l0").tag(sync=True)
    y = traitlets.Unicode("loss_recovered").tag(sync=True)
    architectures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Those that are shown, without their controls."""
    controls = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Controls that are shown: architecture and name as in the table, such as ``"gated, frozen_decoder"``; or the name
    alone of dictionaries that nobody trained, such as ``"pca"``."""
    chosen = traitlets.Int(-1).tag(sync=True)
    """Row of the table; -1 for none. At first that of the gated SAE in the middle along ``x``, or of any other."""
    numbers = traitlets.Bytes(b"").tag(sync=True)
    """The table's numbers, float32, a row an SAE, with the columns that `quantities` names."""
    quantities = traitlets.List(traitlets.Dict()).tag(sync=True)
    saes = traitlets.List(traitlets.Dict()).tag(sync=True)
    """Of each row what is no number: ``series`` (an item of `architectures` or `controls`), ``line`` (equal for those
    on one line), ``point`` (equal for the seeds of one setting, whose mean the line takes), ``seed`` (empty where all
    have one), ``texts``, ``path``, and a ``note`` where there is no SAE to load."""
    series = traitlets.List(traitlets.Dict()).tag(sync=True)
    """How each architecture, and after these each control, is drawn."""

    def __init__(
        self,
        table: "pd.DataFrame | str | os.PathLike[str] | None" = None,
        *,
        x: str = "l0",
        y: str | None = None,
        sentiment: LabelledSplit | None = None,
    ) -> None:
        self._test_x: Tensor | None = None
        self._sentiment: Callable[[], LabelledSplit] | None = (lambda: sentiment) if sentiment is not None else None
        if table is None:
            table, self._test_x, of_sweep = default_sweep()
            self._sentiment = self._sentiment or of_sweep
        self._table = _read(table)
        if sentiment is not None and "path" in self._table and "probe_accuracy" not in self._table:
            self._table["probe_accuracy"] = _probe_accuracies(self._table["path"], sentiment)
        self._numbers = _numeric_columns(self._table)
        if not self._numbers:
            raise InputError(f"the table holds no numbers; its columns are {', '.join(_names(self._table))}")
        if y is None:
            y = next((name for name in ("loss_recovered", "fvu") if name in self._numbers), list(self._numbers)[-1])
        for axis, column in (("x", x), ("y", y)):
            if column not in self._numbers:
                raise InputError(self._no_column(axis, column))
        self._legend = _legend(self._table)
        self._known = {
            "architectures": [one.spec["value"] for one in self._legend if one.control == NO_CONTROL],
            "controls": [one.spec["value"] for one in self._legend if one.control != NO_CONTROL],
        }
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, and is not drawn
            numbers = np.column_stack(list(self._numbers.values())).astype(np.float32)
        super().__init__(
            x=x,
            y=y,
            **self._known,
            numbers=numbers.tobytes(),
            quantities=[_quantity(name, column) for name, column in self._numbers.items()],
            saes=_saes(self._table, set(self._numbers), self._legend),
            series=[one.spec for one in self._legend],
            chosen=self._in_the_middle(x, y),
            status="Click a mark, or take the arrow keys: widgets that follow show its SAE.",
        )
        self.observe(self._on_chosen, "chosen")

    @property
    def sae(self) -> SparseAutoencoder:
        """The chosen SAE, from its file. Another widget may hold the same: copy it before you change it.

        Raises
        ------
        ValueError
            None is chosen, or its row has no path.
        FileNotFoundError
            Its file is gone.
        """
        if self.chosen < 0:
            raise InputError(
                f"no SAE is chosen: click a mark, or set chosen to a row of the table, 0 to {len(self._table) - 1}"
            )
        path = _path_of(self._table, self.chosen)
        note = _why_no_sae(path)
        if path is None:
            raise InputError(note)
        if note:
            raise FileNotFoundError(note)
        return _load(path, Path(path).stat().st_mtime_ns)

    @property
    def test_x(self) -> Tensor | None:
        """Of the default sweep, the activations that it was measured on; of a table, none are known."""
        return self._test_x

    @property
    def sentiment(self) -> LabelledSplit | None:
        return self._sentiment() if self._sentiment is not None else None

    def frame(self) -> "pd.DataFrame":
        """The table, as a pandas DataFrame of its own; `chosen` counts its rows."""
        return self._table.copy()

    def __repr__(self) -> str:
        return f"ParetoExplorer({len(self._table)} SAEs, {self.y} against {self.x})"

    @traitlets.validate("x", "y")
    def _check_axis(self, proposal: dict[str, Any]) -> str:
        column: str = proposal["value"]
        if column not in self._numbers:
            raise traitlets.TraitError(self._no_column(proposal["trait"].name, column))
        return column

    @traitlets.validate("architectures", "controls")
    def _check_shown(self, proposal: dict[str, Any]) -> list[str]:
        names: list[str] = proposal["value"]
        kind = proposal["trait"].name
        known = self._known[kind]
        if unknown := [name for name in names if name not in known]:
            raise traitlets.TraitError(
                f"{kind} may list {', '.join(map(repr, known)) or 'nothing here'}, not {', '.join(map(repr, unknown))}"
            )
        return names

    @traitlets.validate("chosen")
    def _check_chosen(self, proposal: dict[str, Any]) -> int:
        row: int = proposal["value"]
        if not -1 <= row < len(self._table):
            raise traitlets.TraitError(
                f"chosen must be a row of the table, 0 to {len(self._table) - 1}, or -1 for none, not {row}"
            )
        return row

    def _no_column(self, axis: str, column: str) -> str:
        return f"{axis} must be a column of numbers: {', '.join(self._numbers)}; not {column!r}"

    def _in_the_middle(self, x: str, y: str) -> int:
        """A first choice, so that widgets that follow have an SAE at once: a gated one, where there is one."""
        trained = {row for one in self._legend if one.control == NO_CONTROL for row in one.rows}
        gated = {row for row in trained if self._table["architecture"][row] == "gated"}
        along = rows_along(self._numbers[x], self._numbers[y])
        for preferred in (gated, trained, along):
            if rows := [row for row in along if row in preferred]:
                return rows[len(rows) // 2]
        return -1

    def _on_chosen(self, _: object) -> None:
        with self._handling():
            self.error = ""
            if self.chosen >= 0:  # its file may have come or gone
                note = _why_no_sae(_path_of(self._table, self.chosen))
                saes = list(self.saes)
                if saes[self.chosen]["note"] != note:
                    saes[self.chosen] = {**saes[self.chosen], "note": note}
                    self.saes = saes
            self._sae_has_changed()

    def _picture(self) -> bytes:
        from matplotlib.figure import Figure  # no pyplot: its global state is not safe in a callback's thread

        figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained", facecolor="white")
        ax = figure.add_subplot()
        self._draw_marks(ax)
        for name, kind, axis, across in ((self.x, "x", ax.xaxis, ax.axvline), (self.y, "y", ax.yaxis, ax.axhline)):
            spec = next(one for one in self.quantities if one["column"] == name)
            axis.set_label_text(_axis_label(spec), fontsize=9, color=INK)
            if spec["scales"][kind] == "log":
                _make_log(ax, kind)
            if spec["reference"] is not None:
                across(spec["reference"]["value"], color=INK, linewidth=0.8, linestyle="--", zorder=1)
        plain_axes(ax, labelsize=8)
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[1]:
            room = {"ncols": 3, "handlelength": 3} if self.controls else {"ncols": 4}  # longer names, and dashes
            figure.legend(loc="outside upper center", fontsize=8, labelcolor=INK, frameon=False, **room)
        return as_png(figure)

    def _draw_marks(self, ax: "Axes") -> None:
        """The shown lines with their marks, and a ring around the chosen one."""
        x, y = self._numbers[self.x], self._numbers[self.y]
        along = rows_along(x, y)
        seen: list[int] = []
        for spec, marker, control, rows in self._legend:
            here = set(rows)
            marks = [row for row in along if row in here]
            if not marks or spec["value"] not in (*self.architectures, *self.controls):
                continue
            seen += marks
            color = COLORS.get(spec["color"]) or architecture_color(spec["color"])
            dash = () if control == NO_CONTROL else look_of_control(control, marker).dash
            line: dict[str, Any] = {"color": color, "linewidth": 1, "linestyle": (0, dash) if dash else "-"}
            mark: dict[str, Any] = {"marker": marker, "markersize": 6}
            ax.plot([], [], label=spec["label"], **line, **mark)
            for through in dict.fromkeys(self.saes[row]["line"] for row in rows):
                points = {row: self.saes[row]["point"] for row in rows if self.saes[row]["line"] == through}
                ax.plot(*means_along(x, y, points), **line)
            ax.plot(x[marks], y[marks], color=color, linestyle="", **mark)
        if self.chosen in seen:
            ring: dict[str, Any] = {
                "markersize": 14,
                "markerfacecolor": "none",
                "markeredgecolor": COLORS["l0"],
                "markeredgewidth": 2,
            }
            ax.plot(x[self.chosen], y[self.chosen], "o", **ring)


class _Entry(NamedTuple):
    """What has one look, and one entry in the legend."""

    spec: SeriesSpec
    marker: str
    """Matplotlib's."""
    control: str
    rows: list[int]
    """Of the table."""


def rows_along(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Rows that have a place on both axes, in the order of a line through them: of x, then y, as in the page."""
    return [int(row) for row in np.lexsort((y, x)) if np.isfinite([x[row], y[row]]).all()]


def means_along(
    x: NDArray[np.float64], y: NDArray[np.float64], points: Mapping[int, int]
) -> tuple[list[float], list[float]]:
    """Corners of a line through some rows, in order of x, then y, as in the page: of each point the mean of its rows.

    ``points`` names the point of each row. A point of which a row has no place on either axis is left out.
    """
    rows: dict[int, list[int]] = {}
    for row, point in points.items():
        rows.setdefault(point, []).append(row)
    means = np.array([(x[some].mean(), y[some].mean()) for some in rows.values()])
    corners = means[rows_along(*means.T)]
    return corners[:, 0].tolist(), corners[:, 1].tolist()


def _read(table: object) -> "pd.DataFrame":
    """The table of a sweep, checked, as a copy with rows counted from 0."""
    import pandas as pd

    if isinstance(table, str | os.PathLike):
        table = pd.read_csv(table)
    if not isinstance(table, pd.DataFrame):
        raise InputTypeError(
            "table must be a pandas DataFrame, such as that of saelab.sweep, or the path of a CSV file, "
            f"not {type(table).__name__}"
        )
    table = table.rename(columns=str).reset_index(drop=True)
    if table.empty:
        raise InputError("the table has no rows; there is nothing to show")
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()]
        raise InputError(f"the table has several columns {', '.join(repeated)}; rename or drop all but one")
    if "architecture" not in table:
        raise InputError(f"the table has no column architecture; it has {', '.join(_names(table))}")
    if table["architecture"].isna().any():
        raise InputError("architecture is missing in some rows; fill it in, or leave them out")
    table["architecture"] = table["architecture"].astype(str)
    return table


def _names(table: "pd.DataFrame") -> list[str]:
    return [str(name) for name in table.columns]


def _numeric_columns(table: "pd.DataFrame") -> dict[str, NDArray[np.float64]]:
    """Columns that can be an axis, swept knobs and `FIRST` first: numbers, at least one of which is finite."""
    import pandas as pd

    found: dict[str, NDArray[np.float64]] = {}
    swept = [cls.sparsity_knob.name for cls in ARCHITECTURES.values() if cls.sparsity_knob is not None]
    for name in dict.fromkeys([*swept, *FIRST, *_names(table)]):
        if name not in table:
            continue
        # A column of numbers and None has dtype object, but not one of numbers and text.
        if pd.api.types.infer_dtype(table[name], skipna=True) in ("integer", "floating", "mixed-integer-float"):
            numbers = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isfinite(numbers).any():
                found[name] = numbers
    return found


def _quantity(name: str, numbers: NDArray[np.float64]) -> QuantitySpec:
    """How the front end writes and draws one column."""
    finite = numbers[np.isfinite(numbers)]
    spec = quantity(name, digits=_digits(finite))
    spans = bool(finite.min() > 0 and finite.max() >= LOG_SPAN * finite.min())
    log = {"x": spans, "y": spans and spec["scale"] == "log"}
    named = {key: value for key, value in spec.items() if key in QuantitySpec.__annotations__}
    return cast(
        QuantitySpec, {**named, "scales": {axis: "log" if is_log else "linear" for axis, is_log in log.items()}}
    )


def _digits(finite: NDArray[np.float64]) -> int:
    """Decimals with which to write a column that has no usual ones: as many as it needs, but no more than matter."""
    sizes = np.abs(finite[finite != 0])
    if not len(sizes):
        return 0
    needed = max(-int(Decimal(f"{value:.6g}").normalize().as_tuple().exponent) for value in sizes)
    matter = 3 - math.floor(math.log10(sizes.min()))
    return max(0, min(needed, matter, 6))


def _saes(table: "pd.DataFrame", numeric: set[str], legend: list[_Entry]) -> list[dict[str, Any]]:
    """What the trait ``saes`` holds."""
    texts = [name for name in _names(table) if name not in numeric and name not in ("architecture", "path")]
    series = {row: one.spec["value"] for one in legend for row in one.rows}
    settings = table[[name for name in SETTINGS if name in table]].assign(
        series=[series[row] for row in range(len(table))]
    )
    lines = settings.groupby(list(settings), sort=False, dropna=False).ngroup()
    has_seeds = "seed" in table and len(set(table["seed"].dropna())) > 1
    points = configurations(table) if has_seeds else range(len(table))
    found = []
    for row, (line, point) in enumerate(zip(lines, points, strict=True)):
        path = _path_of(table, row)
        found.append(
            {
                "series": series[row],
                "line": int(line),
                "point": int(point),
                "seed": _text(table["seed"][row]).removesuffix(".0") if has_seeds else "",
                "texts": [[name.replace("_", " "), text] for name in texts if (text := _text(table[name][row]))],
                "path": path or "",
                "note": _why_no_sae(path),
            }
        )
    return found


def _text(value: Any) -> str:
    import pandas as pd

    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _legend(table: "pd.DataFrame") -> list[_Entry]:
    """Architectures in the order of menus, then their controls and untrained dictionaries as they come."""
    architectures = list(table["architecture"])
    controls = [NO_CONTROL] * len(table)
    if "control" in table:
        controls = list(table["control"].fillna(NO_CONTROL).astype(str))
    rows: dict[str, list[int]] = {}
    for row, (architecture, control) in enumerate(zip(architectures, controls, strict=True)):
        name = control if control in UNTRAINED else f"{architecture}, {control}"
        rows.setdefault(architecture if control == NO_CONTROL else name, []).append(row)
    marks = _marks(in_order(architectures))
    trained, others = [], []
    for name in in_order(rows):
        architecture, control = architectures[rows[name][0]], controls[rows[name][0]]
        marker, color = marks[architecture]
        label = architecture_label(architecture)
        if control == NO_CONTROL:
            spec: SeriesSpec = {"value": name, "label": label, "shape": shape_of(marker), "color": color, "dash": ""}
            trained.append(_Entry(spec, marker, control, rows[name]))
        else:
            spec = control_series(name, label_as_control(label, control), control, marker)
            others.append(_Entry(spec, marker, control, rows[name]))
    return trained + others


def _marks(architectures: list[str]) -> dict[str, tuple[str, str]]:
    """Matplotlib's marker, and the name of the colour on the page, by architecture."""
    marks, n_others = {}, 0
    for name in architectures:
        if name in ARCHITECTURES:
            marks[name] = (ARCHITECTURES[name].look.marker, name)
        else:
            marks[name] = _OTHER_LOOKS[n_others % len(_OTHER_LOOKS)]
            n_others += 1
    return marks


def _path_of(table: "pd.DataFrame", row: int) -> str | None:
    return _text(table["path"][row]) or None if "path" in table else None


def _why_no_sae(path: str | None) -> str:
    """What a user has to know where a row has no SAE to load; empty where it has."""
    if path is None:
        return "This SAE has no path in the table, so none can be loaded: keep the column path that saelab.sweep gives."
    if not Path(path).exists():
        return f"There is no file {path} here: run the notebook where the sweep ran, or run the sweep again."
    return ""


@functools.lru_cache(maxsize=16)
def _load(path: str, written: int) -> SparseAutoencoder:
    """`saelab.load`, kept for as long as the file is the one ``written`` then."""
    return saelab.load(path)


def _probe_accuracies(paths: "pd.Series[Any]", sentiment: LabelledSplit) -> list[float]:
    from tqdm.auto import tqdm

    return [
        probe_accuracy(saelab.load(path), sentiment) if not _why_no_sae(_text(path) or None) else math.nan
        for path in tqdm(paths, desc="probe", unit="SAE")
    ]


def _axis_label(spec: dict[str, Any]) -> str:
    # Dead features are counted in features, as the label says.
    label, unit = spec["label"], spec["unit"]
    return label if unit in label.lower() else f"{label}, {unit}"


def _make_log(ax: "Axes", kind: str) -> None:
    """Plain numbers at 1, 2 and 5: powers of ten alone would often be a single tick."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = ax.xaxis if kind == "x" else ax.yaxis
    ax.set(**{f"{kind}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
