"""`ParetoExplorer`: a sweep as a scatter, one mark an SAE; the chosen one is what other widgets can follow."""

import functools
import math
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import traitlets
from numpy.typing import NDArray
from torch import Tensor

import saelab
from saelab.data.labelled import LabelledSplit
from saelab.errors import InputError, InputTypeError
from saelab.sae.base import ARCHITECTURES, SparseAutoencoder, in_order
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.materials import default_sweep, probe_accuracy
from saelab_widgets.pictures import INK, as_png, plain_axes
from saelab_widgets.quantities import COLORS, architecture_color, architecture_label, quantity
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
_SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle",
    "D": "diamond",
    "P": "cross",
    "X": "cross",
    "*": "star",
    "v": "wye",
}
"""The front end's shape for each of matplotlib's markers; what it has no shape for becomes a similar one."""
_OTHER_LOOKS = (("P", "gamma"), ("*", "probe"), ("v", "l0"))
"""Marker and hue of names that are no registered architecture, in order and then again."""


class ParetoExplorer(Instrument, HasSAE):
    """A sweep as a scatter, one mark an SAE: what sparsity costs, for each architecture.

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
        column of numbers.
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
    """Those that are shown."""
    chosen = traitlets.Int(-1).tag(sync=True)
    """Row of the table; -1 for none. At first that of the gated SAE in the middle along ``x``, or of any other."""
    numbers = traitlets.Bytes(b"").tag(sync=True)
    """The table's numbers, float32, a row an SAE, with the columns that `quantities` names."""
    quantities = traitlets.List(traitlets.Dict()).tag(sync=True)
    saes = traitlets.List(traitlets.Dict()).tag(sync=True)
    """Of each row what is no number: ``architecture``, ``line`` (equal for those on one line), ``texts``, ``path``, and
    a ``note`` where there is no SAE to load."""
    series = traitlets.List(traitlets.Dict()).tag(sync=True)
    """How each architecture is drawn."""

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
        self._known_architectures = in_order(self._table["architecture"])
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, and is not drawn
            numbers = np.column_stack(list(self._numbers.values())).astype(np.float32)
        super().__init__(
            x=x,
            y=y,
            architectures=self._known_architectures,
            numbers=numbers.tobytes(),
            quantities=[_quantity(name, column) for name, column in self._numbers.items()],
            saes=_saes(self._table, set(self._numbers)),
            series=_series(self._known_architectures),
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

    @traitlets.validate("architectures")
    def _check_architectures(self, proposal: dict[str, Any]) -> list[str]:
        names: list[str] = proposal["value"]
        unknown = [name for name in names if name not in self._known_architectures]
        if unknown:
            raise traitlets.TraitError(
                f"architectures may list {', '.join(self._known_architectures)}, not {', '.join(map(repr, unknown))}"
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
        drawn = np.isfinite(self._numbers[x]) & np.isfinite(self._numbers[y])
        gated = drawn & (self._table["architecture"] == "gated").to_numpy()
        rows = np.flatnonzero(gated if gated.any() else drawn)
        rows = rows[np.argsort(self._numbers[x][rows], kind="stable")]
        return int(rows[len(rows) // 2]) if len(rows) else -1

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
            figure.legend(loc="outside upper center", ncols=4, fontsize=8, labelcolor=INK, frameon=False)
        return as_png(figure)

    def _draw_marks(self, ax: "Axes") -> None:
        """The shown lines with their marks, and a ring around the chosen one."""
        x, y = self._numbers[self.x], self._numbers[self.y]
        looks = {one["value"]: one for one in self.series}
        marks = _marks(self._known_architectures)
        lines: dict[int, list[int]] = {}
        for row in rows_along(x, y):
            if self.saes[row]["architecture"] in self.architectures:
                lines.setdefault(self.saes[row]["line"], []).append(row)
        labelled: set[str] = set()
        for _, rows in sorted(lines.items()):
            look = looks[self.saes[rows[0]]["architecture"]]
            color = COLORS.get(look["color"]) or architecture_color(look["color"])
            label = look["label"] if look["value"] not in labelled else None  # one entry for all lines of it
            labelled.add(look["value"])
            marker, _ = marks[look["value"]]
            ax.plot(x[rows], y[rows], color=color, marker=marker, markersize=6, linewidth=1, label=label)
        if any(self.chosen in rows for rows in lines.values()):
            ring: dict[str, Any] = {
                "markersize": 14,
                "markerfacecolor": "none",
                "markeredgecolor": COLORS["l0"],
                "markeredgewidth": 2,
            }
            ax.plot(x[self.chosen], y[self.chosen], "o", **ring)


def rows_along(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Rows that have a place on both axes, in the order of a line through them: of x, then y, as in the page."""
    return [int(row) for row in np.lexsort((y, x)) if np.isfinite([x[row], y[row]]).all()]


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


def _saes(table: "pd.DataFrame", numeric: set[str]) -> list[dict[str, Any]]:
    """What the trait ``saes`` holds."""
    texts = [name for name in _names(table) if name not in numeric and name not in ("architecture", "path")]
    settings = table[["architecture", *(name for name in SETTINGS if name in table)]]
    lines = settings.groupby(list(settings), sort=False, dropna=False).ngroup()
    found = []
    for row, line in enumerate(lines):
        path = _path_of(table, row)
        found.append(
            {
                "architecture": table["architecture"][row],
                "line": int(line),
                "texts": [[name.replace("_", " "), text] for name in texts if (text := _text(table[name][row]))],
                "path": path or "",
                "note": _why_no_sae(path),
            }
        )
    return found


def _text(value: Any) -> str:
    import pandas as pd

    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _series(architectures: list[str]) -> list[SeriesSpec]:
    """What the trait ``series`` holds."""
    return [
        {"value": name, "label": architecture_label(name), "shape": _SHAPES.get(marker, "circle"), "color": color}
        for name, (marker, color) in _marks(architectures).items()
    ]


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
