"""Figures for papers and coursework, drawn with matplotlib: one style, on light and on dark pages.

Colours are those of Okabe and Ito, which colour-blind eyes tell apart; every line also has a marker and a dash of its
own, so that nothing is lost in grey. Figures are objects of their own: pyplot and its global state are never touched.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from saelab.errors import InputError, InputTypeError
from saelab.evaluation.comparisons import summarize
from saelab.evaluation.controls import (
    CONTROLS,
    NO_CONTROL,
    UNTRAINED,
    label_as_control,
    label_of_control,
    look_of_control,
)

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
    from PIL import Image  # matplotlib's own dependency
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise  # it is there, but broken: its own message says more
    raise ImportError('figures need matplotlib: pip install "saelab[widgets]"') from error

from saelab.quantities import BLUE, GOLD, GREEN, PURPLE, VERMILLION, Colour
from saelab.sae.base import ARCHITECTURES, in_order, label_of, quantity_of
from saelab.sae.declarations import Look

if TYPE_CHECKING:
    import pandas as pd

Theme = Literal["light", "dark"]
Format = Literal["png", "pdf"]
SCREEN_DPI = 100
"""So that 9 inches fill the column of a notebook."""
SAVED_DPI = 160


class _Page(NamedTuple):
    """What lies behind and beside the lines."""

    paper: str
    ink: str
    grid: str


_PAGES = {"light": _Page("#ffffff", "#222222", "#e4e4e4"), "dark": _Page("#111111", "#e8e8e8", "#343434")}
_DASHES, _DOTS = (4, 1.5), (1, 1.5)


def _look(colour: Colour, marker: str, dash: tuple[float, ...] = ()) -> Look:
    return Look(colour.light, colour.dark, marker, dash)


_INK = Colour("ink", *[_PAGES["light"].ink, _PAGES["dark"].ink] * 2)
_PLAIN = _look(BLUE, "o")
"""For a line that is the only one."""
_OTHERS = (
    _PLAIN,
    _look(GOLD, "s"),
    _look(GREEN, "^", _DASHES),
    _look(PURPLE, "D"),
    _look(VERMILLION, "v", _DASHES),
    _look(_INK, "P", _DOTS),
)
"""For lines that are no architectures, in order and then again."""
_SETTINGS = ("architecture", "preset", "ablations", "d_sae")
"""Columns of `saelab.sweep` that say which SAE it is; a line through several of one compares nothing."""

_RAW, _PCA_OF = "activations", "PCA, k of "  # as `saelab.compare_representations` names them
_REPRESENTATIONS = {
    "codes": (_look(PURPLE, "o"), -0.15),
    "activations": (_look(_INK, "s", _DASHES), 0.0),
    "PCA to as many dimensions": (_look(BLUE, "^"), 0.15),
}
"""With the place of each beside its layer's tick, so that bars do not hide one another."""
_PROBE_NUMBERS = ("test_accuracy", "test_low", "test_high", "train_accuracy", "n_active", "l0")
_HELD_OUT = {
    "stratified": "accuracy on test texts\n(a share of each kind held out)",
    "all": "accuracy on test texts\n(each block held out in turn)",
    "": "accuracy on test texts",
}


class SAEFigure(Figure):
    """A matplotlib figure that a notebook shows where it is the last line of a cell, pyplot or no pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches() * SCREEN_DPI
        return _drawn(self, "png", 2 * SCREEN_DPI), {"width": round(width), "height": round(height)}


def save_figure(figure: Figure, path: str | os.PathLike[str], formats: Sequence[Format] = ("png", "pdf")) -> list[Path]:
    """Write ``figure`` as PNG and as PDF, and give back the paths; a folder that is missing is made.

    The same figure gives the same bytes, on one machine: they hold no date. The PDF has TrueType fonts inside, as
    journals want them.

    Parameters
    ----------
    figure
        One of this module's, or any other of matplotlib.
    path
        Without an ending; ``.png`` or ``.pdf`` is left off.
    formats
        Which of the two to write.

    Raises
    ------
    ValueError
        Another format, or none.
    """
    if isinstance(formats, str) or not formats or not set(formats) <= set(get_args(Format)):
        raise InputError(f"formats must list one or more of {', '.join(get_args(Format))}, not {formats!r}")
    path = Path(path)
    name = path.stem if path.suffix in (".png", ".pdf") else path.name  # a name such as "l1=0.5" has no ending
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in formats:
        file = path.parent / f"{name}.{kind}"
        file.write_bytes(_drawn(figure, kind, SAVED_DPI))
        written.append(file)
    return written


def _drawn(figure: Figure, kind: Format, dpi: int) -> bytes:
    """The figure as a file's content, without dates and versions."""
    changing = ("Software",) if kind == "png" else ("CreationDate", "Creator", "Producer")
    drawn = BytesIO()
    # For the time of drawing, and whatever the user's own settings are.
    with matplotlib.rc_context({"pdf.fonttype": 42, "savefig.bbox": None, "savefig.facecolor": "auto"}):
        figure.savefig(drawn, format=kind, dpi=dpi, metadata=dict.fromkeys(changing))
    if kind == "png" and isinstance(figure, SAEFigure):
        # Lines in a few colours, and no photograph: 256 shades look the same, and take a third of the space.
        with Image.open(drawn) as image:
            shades = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        drawn = BytesIO()
        shades.save(drawn, format="png", optimize=True, dpi=(dpi, dpi))
    return drawn.getvalue()


def pareto(
    table: "pd.DataFrame",
    x: str = "l0",
    y: str | Sequence[str] = "loss_recovered",
    *,
    by: str = "architecture",
    log_x: bool | None = None,
    theme: Theme = "light",
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> SAEFigure:
    """What a sweep pays for sparsity: ``y`` against ``x``, a line with markers for each architecture.

    A thin dashed line across marks 1 where that is the best there is: for loss recovered and for gamma. Controls
    (column ``control``) are thin grey lines. Of several seeds (column ``seed``) the line runs through the means, and a
    band shows the 95 % interval of each mean of ``y`` (`saelab.summarize`).

    Parameters
    ----------
    table
        A row for each SAE, such as `saelab.sweep` gives. A row whose ``x`` is NaN or infinite is left out; where ``y``
        is, the line has a gap.
    x, y
        Names of columns. Several ``y`` have a panel each.
    by
        What has a line for each of its values. An architecture looks the same in every figure.
    log_x
        By default where all of ``x`` is positive and the largest at least four times the smallest.
    theme
        For a ``"light"`` page or a ``"dark"`` one.
    title
        Above the figure; none by default, since in a paper the caption says it.
    size
        Width and height in inches; two panels are 9 wide by default, the column of a notebook.

    Raises
    ------
    TypeError, ValueError
        What is no DataFrame; a table that is empty, lacks a column (with those it has), holds text for a number, or has
        nothing to draw; a line through SAEs of several widths, presets or ablations; an unknown theme; the logarithm of
        what is not positive.

    Examples
    --------
    >>> table = sweep(makers, store, [1, 2, 4, 8])
    >>> table["loss_recovered"] = [loss_recovered(model, hook, load(path), text).score_zero for path in table.path]
    >>> save_figure(pareto(table, y=["loss_recovered", "gamma"]), "trade-off")
    """
    page = _page(theme)
    ys = [y] if isinstance(y, str) else list(y)
    if not ys:
        raise InputError("y names no column; give one or more")
    _check_table(table, [x, *ys, by], "saelab.sweep")
    if _has_seeds(table):
        table = summarize(table)
    shown = _lines_of(table, by)
    along = _numbers(table, x)
    drawable = along[np.isfinite(along)]
    if log_x is None:
        log_x = bool(len(drawable) and drawable.min() > 0 and drawable.max() >= 4 * drawable.min())
    elif log_x and len(drawable) and drawable.min() <= 0:
        raise InputError(f"{x} holds {drawable.min():g}, which has no logarithm; leave it out, or take log_x=False")
    figure = SAEFigure(
        figsize=size or (max(5.5, 4.5 * len(ys)), 3.8), dpi=SCREEN_DPI, facecolor=page.paper, layout="constrained"
    )
    for ax, name in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
        up = _numbers(table, name)
        if not (np.isfinite(along) & np.isfinite(up)).any():
            raise InputError(f"no row has a finite number both in {x} and in {name}, so there is nothing to draw")
        quantity = quantity_of(name)
        _style(ax, page, quantity_of(x).axis_label, quantity.axis_label)
        if quantity.reference is not None:
            ax.axhline(quantity.reference.value, color=page.ink, linewidth=0.9, linestyle=(0, (6, 4)), zorder=1)
        for line in shown:
            rows = np.flatnonzero(line.rows & np.isfinite(along))
            rows = rows[np.argsort(along[rows], kind="stable")]
            ax.plot(along[rows], np.where(np.isfinite(up[rows]), up[rows], np.nan), **_line(line.look, theme))
            _band(ax, table, name, along, rows, line.look, theme)
        if log_x:
            _log_axis(ax)
    handles = [Line2D([], [], label=line.label, **_line(line.look, theme)) for line in shown]
    _heading(figure, page, title, handles)
    return figure


def lines(
    table: "pd.DataFrame",
    x: str,
    y: str | Sequence[str],
    *,
    by: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    labels: Mapping[str, str] | None = None,
    theme: Theme = "light",
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> SAEFigure:
    """Curves of many points, without markers: ``y`` against ``x``, a line for each value of ``by``.

    Controls and several seeds are drawn as by `pareto`; seeds are averaged at each value of ``x``.

    Parameters
    ----------
    table
        A row a point, such as `saelab.Trainer.history_frame` or `saelab.threshold_curves` gives. Where a number is NaN
        or infinite, the line runs on to the next.
    x, y
        Names of columns. Several ``y`` have a panel each; a thin dashed line across marks 1 where that means something.
    by
        What has a line for each of its values; an architecture looks the same in every figure. None: one line.
    log_x, log_y
        Logarithmic axes, on which points that are not positive are left out.
    labels
        For axes: by name of a column, what is written there in place of the usual.
    theme, title, size
        As for `pareto`.

    Raises
    ------
    TypeError, ValueError
        What is no DataFrame; a table that is empty, lacks a column (with those it has), holds text for a number, or has
        nothing to draw; an unknown theme.

    Examples
    --------
    >>> lines(trainer.history_frame(), "step", ["l0", "fvu"], log_y=True)
    """
    page = _page(theme)
    ys = [y] if isinstance(y, str) else list(y)
    if not ys:
        raise InputError("y names no column; give one or more")
    _check_table(table, [x, *ys, *([by] if by else [])], "saelab.Trainer.history_frame")
    if _has_seeds(table):
        of_point = [*([by] if by else []), *(["control"] if by and "control" in table else []), x]
        table = summarize(table[[*dict.fromkeys([*of_point, *ys, "seed"])]], by=of_point)
    shown = _lines_of(table, by)
    along = _numbers(table, x)
    figure = SAEFigure(
        figsize=size or (max(5.5, 4.5 * len(ys)), 3.4), dpi=SCREEN_DPI, facecolor=page.paper, layout="constrained"
    )

    def bare(mark: Look) -> dict[str, Any]:
        return _line(mark, theme) | {"marker": "", "linewidth": min(1.5, mark.width)}

    for ax, name in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
        up = _numbers(table, name)
        drawn = np.isfinite(along) & np.isfinite(up)
        for is_log, column in ((log_x, along), (log_y, up)):
            drawn &= (column > 0) | (not is_log)
        if not drawn.any():
            raise InputError(f"no row has a number to draw both in {x} and in {name}")
        quantity = quantity_of(name)
        named = {x: quantity_of(x).axis_label, name: quantity.axis_label} | dict(labels or {})
        _style(ax, page, named[x], named[name])
        if quantity.reference is not None:
            ax.axhline(quantity.reference.value, color=page.ink, linewidth=0.9, linestyle=(0, (6, 4)), zorder=1)
        for line in shown:
            rows = np.flatnonzero(drawn & line.rows)
            ax.plot(along[rows], up[rows], **bare(line.look))
            _band(ax, table, name, along, rows, line.look, theme)
        if log_y:
            ax.set_yscale("log")
        if log_x:
            _log_axis(ax)
    handles = [Line2D([], [], label=line.label, **bare(line.look)) for line in shown] if by else []
    _heading(figure, page, title, handles)
    return figure


def scatter(
    table: "pd.DataFrame",
    x: str,
    y: str | Sequence[str],
    *,
    by: str | None = None,
    identity: bool = False,
    labels: Mapping[str, str] | None = None,
    theme: Theme = "light",
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> SAEFigure:
    """Points, such as true magnitudes against learned ones.

    Parameters
    ----------
    table
        A row a point; one with a number that is NaN or infinite is left out.
    x, y
        Names of columns. Several ``y`` have a panel each.
    by
        What has a colour and a shape for each of its values. None: one.
    identity
        Whether a thin dashed line marks where ``y`` equals ``x``.
    labels
        As for `lines`.
    theme, title, size
        As for `pareto`.

    Raises
    ------
    TypeError, ValueError
        Like `lines`.
    """
    page = _page(theme)
    ys = [y] if isinstance(y, str) else list(y)
    if not ys:
        raise InputError("y names no column; give one or more")
    _check_table(table, [x, *ys, *([by] if by else [])], "saelab")
    shown = _lines_of(table, by)
    along = _numbers(table, x)
    figure = SAEFigure(
        figsize=size or (max(5.0, 4.5 * len(ys)), 4.0), dpi=SCREEN_DPI, facecolor=page.paper, layout="constrained"
    )

    fills = _fills(line.look for line in shown)

    def dots(mark: Look) -> dict[str, Any]:
        drawn = {
            "color": getattr(mark, theme),
            "marker": mark.marker,
            "fillstyle": fills[mark],
            "markerfacecoloralt": "none",
        }
        return drawn | {"markersize": 3.5, "linestyle": "", "alpha": 0.6}

    for ax, name in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
        up = _numbers(table, name)
        drawn = np.isfinite(along) & np.isfinite(up)
        if not drawn.any():
            raise InputError(f"no row has a finite number both in {x} and in {name}, so there is nothing to draw")
        named = {x: quantity_of(x).axis_label, name: quantity_of(name).axis_label} | dict(labels or {})
        _style(ax, page, named[x], named[name])
        for line in shown:
            rows = np.flatnonzero(drawn & line.rows)
            ax.plot(along[rows], up[rows], **dots(line.look))
        if identity:
            ends = [min(along[drawn].min(), up[drawn].min()), max(along[drawn].max(), up[drawn].max())]
            ax.plot(ends, ends, color=page.ink, linewidth=0.9, linestyle=(0, (6, 4)), zorder=1)
    handles = [Line2D([], [], label=line.label, **dots(line.look)) for line in shown] if by else []
    _heading(figure, page, title, handles)
    return figure


def probe_by_layer(
    table: "pd.DataFrame",
    *,
    train: bool = True,
    theme: Theme = "light",
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> SAEFigure:
    """How well a probe reads a label at each layer: from activations, from codes, and from a PCA of as many dimensions.

    A column of panels for each SAE, in the order of the table, and a row for each way to hold out test texts. Filled
    markers are test accuracies with their intervals; hollow ones on dotted lines are training accuracies. Under each
    layer stand the SAE's L0 there and the number of its features that are on for any text, the k of the PCA. An SAE's
    controls (column ``control``) are grey. Of several seeds (column ``seed``) means are drawn, and the intervals are
    those of the mean over seeds, on these same texts (`saelab.summarize`).

    Parameters
    ----------
    table
        `saelab.compare_representations` of each layer, with the column ``layer``:
        ``pd.concat([of_layer[n].assign(layer=n) for n in of_layer])``; an SAE has one name throughout. Needed are
        ``layer``, ``representation`` and ``test_accuracy``; the other columns are drawn where they are. Where a number
        is NaN, or a layer has no row, there is a gap.
    train
        Whether to draw training accuracies.
    theme, title, size
        As for `pareto`; a panel is 3 inches wide by default.

    Raises
    ------
    TypeError, ValueError
        What is no DataFrame; a table that is empty, lacks a column (with those it has), holds text for a number, has
        nothing to draw, or several rows for one point; an unknown theme.
    """
    page = _page(theme)
    _check_table(table, ["layer", "representation", "test_accuracy"], "saelab.compare_representations")
    table = table.assign(**{name: _numbers(table, name) for name in _PROBE_NUMBERS if name in table})
    if not np.isfinite(table["test_accuracy"]).any():
        raise InputError("test_accuracy holds no finite number, so there is nothing to draw")
    if "held_out" not in table:
        table = table.assign(held_out="")
    table = table.assign(control=table["control"].fillna(NO_CONTROL) if "control" in table else NO_CONTROL)
    point = ["layer", "representation", "held_out", "control"]
    if _has_seeds(table):
        table = summarize(table, by=point).drop(columns=["test_low", "test_high"], errors="ignore")
        table = table.rename(columns={"test_accuracy_low": "test_low", "test_accuracy_high": "test_high"})
    repeated = table[table.duplicated(point)]
    if len(repeated):
        which = ", ".join(
            f"{name} {value}" for name, value in repeated[point].iloc[0].items() if value not in ("", NO_CONTROL)
        )
        raise InputError(f"several rows are of {which}; keep one for each point")
    saes = list(dict.fromkeys(name.removeprefix(_PCA_OF) for name in table["representation"] if name != _RAW)) or [""]
    parts, layers = list(dict.fromkeys(table["held_out"])), sorted(set(table["layer"]))
    controls = [control for control in dict.fromkeys(table["control"]) if control != NO_CONTROL]
    figure = SAEFigure(
        figsize=size or (max(5.5, 3.0 * len(saes)), 1.4 + 2.4 * len(parts)),
        dpi=SCREEN_DPI,
        facecolor=page.paper,
        layout="constrained",
    )
    panels = figure.subplots(len(parts), len(saes), sharex="col", sharey=True, squeeze=False)
    for row, part in zip(panels, parts, strict=True):
        for ax, sae in zip(row, saes, strict=True):
            _style(ax, page, "", _HELD_OUT.get(part, f"accuracy on test texts\n({part})") if ax is row[0] else "")
            ax.grid(visible=False, axis="x")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
            drawn = [
                (name, NO_CONTROL, mark, shift)
                for name, (mark, shift) in zip((sae, _RAW, _PCA_OF + sae), _REPRESENTATIONS.values(), strict=True)
            ]
            drawn += [
                (sae, control, look_of_control(control, "X"), 0.07 * (place + 4))
                for place, control in enumerate(controls)
            ]
            for name, control, mark, shift in drawn:
                of = (table["held_out"] == part) & (table["representation"] == name) & (table["control"] == control)
                # A layer without a row becomes one of NaN, and so a gap.
                _draw_accuracies(ax, table[of].set_index("layer").reindex(layers), mark, shift, theme, train)
    for column, sae in zip(panels.T, saes, strict=True):
        column[0].set_title(sae, color=page.ink, fontsize=10)
        codes = table[(table["representation"] == sae) & (table["held_out"] == parts[0])]
        codes = codes[codes["control"] == NO_CONTROL]
        codes = codes.set_index("layer").reindex(layers)
        column[-1].set_xticks(range(len(layers)), [_tick(layer, row) for layer, row in codes.iterrows()])
        column[-1].set_xlim(-0.5, len(layers) - 0.5)
        column[-1].set_xlabel("layer, L0, features on for any text", color=page.ink, fontsize=10)
    handles = [Line2D([], [], label=label, **_line(mark, theme)) for label, (mark, _) in _REPRESENTATIONS.items()]
    for control in controls:
        handles.append(Line2D([], [], label=label_of_control(control), **_line(look_of_control(control, "X"), theme)))
    if train and "train_accuracy" in table:
        ink = _line(_REPRESENTATIONS[_RAW][0], theme) | {"marker": "o"}
        handles.append(Line2D([], [], label="dotted: training texts", **_hollow(ink, page)))
    _heading(figure, page, title, handles)
    return figure


def _draw_accuracies(ax: Axes, rows: "pd.DataFrame", mark: Look, shift: float, theme: Theme, train: bool) -> None:
    """One representation in one panel; ``rows`` has one for each layer, from left to right."""
    place = np.arange(len(rows)) + shift
    line = _line(mark, theme)
    test = rows["test_accuracy"].to_numpy()
    if train and "train_accuracy" in rows:
        ax.plot(place, rows["train_accuracy"], **_hollow(line, _PAGES[theme]))
    if "test_low" in rows and "test_high" in rows:
        ax.vlines(place, rows["test_low"], rows["test_high"], color=line["color"], linewidth=1.4)
    ax.plot(place, test, **line)


def _tick(layer: Any, codes: "pd.Series[Any]") -> str:
    """What stands below a layer: its name, and how many features the SAE has on there."""
    lines = [f"{layer}"]
    if np.isfinite(codes.get("l0", np.nan)):
        lines.append(f"L0 {codes['l0']:.0f}")
    if np.isfinite(codes.get("n_active", np.nan)):
        lines.append(f"{codes['n_active']:.0f} on")
    return "\n".join(lines)


def _line(mark: Look, theme: Theme) -> dict[str, Any]:
    """Matplotlib's arguments for a line. Markers have an outline, so that a pale colour stands out too."""
    return {
        "color": getattr(mark, theme),
        "linestyle": _style_of(mark.dash),
        "linewidth": mark.width,
        "marker": mark.marker,
        "markersize": 6.5,
        "markeredgecolor": _PAGES[theme].ink,
        "markeredgewidth": 0.7,
    }


def _hollow(line: dict[str, Any], page: _Page) -> dict[str, Any]:
    """The same line, thinner and dotted, with hollow markers."""
    markers = {"markerfacecolor": page.paper, "markeredgecolor": line["color"], "markersize": 4.5}
    return {**line, **markers, "linestyle": _style_of(_DOTS), "linewidth": 1.2}


def _style(ax: Axes, page: _Page, x_label: str, y_label: str) -> None:
    """Everything that a theme decides, said outright: ticks made later would take the settings of that moment."""
    ax.set_facecolor(page.paper)
    ax.set_axisbelow(True)
    ax.grid(visible=True, color=page.grid, linewidth=0.7, linestyle="-", alpha=1)
    ax.tick_params(which="both", color=page.ink, labelcolor=page.ink, labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(page.ink)
    ax.set_xlabel(x_label, color=page.ink, fontsize=10)
    ax.set_ylabel(y_label, color=page.ink, fontsize=10)


def _log_axis(ax: Axes) -> None:
    """Plain numbers at 1, 2 and 5: powers of ten alone would often be a single tick."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _heading(figure: Figure, page: _Page, title: str | None, handles: Sequence[Line2D]) -> None:
    """One legend above all panels. The title is the legend's: a figure's own would lie on top of it."""
    if not handles:
        figure.suptitle(title or "", color=page.ink, fontsize=11)
        return
    inches = [0.75 + 0.07 * len(str(handle.get_label())) for handle in handles]  # roughly
    a_row = len(handles) if sum(inches) <= figure.get_figwidth() else max(1, int(figure.get_figwidth() / max(inches)))
    n_rows = math.ceil(len(handles) / a_row)
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=math.ceil(len(handles) / n_rows),  # no row with a single entry below full ones
        frameon=False,
        fontsize=9.5,
        labelcolor=page.ink,
        handlelength=3,
        title=title,
        title_fontsize=11,
    )
    legend.get_title().set_color(page.ink)


def _page(theme: Theme) -> _Page:
    if theme not in _PAGES:
        raise InputError(f"theme must be one of {', '.join(_PAGES)}, not {theme!r}")
    return _PAGES[theme]


def _style_of(dash: tuple[float, ...]) -> Any:
    """Matplotlib's line style."""
    return (0, dash) if dash else "-"


def _fills(looks: Iterable[Look]) -> dict[Look, str]:
    """How each is filled where no line is drawn: of looks with one marker, each in another way."""
    ways, fills = ("full", "none", "left", "top"), dict[Look, str]()
    for look in looks:
        alike = sum(other.marker == look.marker for other in fills)
        fills.setdefault(look, ways[alike % len(ways)])
    return fills


class _Shown(NamedTuple):
    """What is drawn in one look."""

    label: str
    look: Look
    rows: NDArray[np.bool_]
    """Which rows of the table, ``(n_rows,)``."""


def _lines_of(table: "pd.DataFrame", by: str | None) -> list[_Shown]:
    """What is drawn, in the order of the legend: a line for each value of ``by``, then for each of its controls."""
    if by is None:
        return [_Shown("", _PLAIN, np.ones(len(table), dtype=np.bool_))]
    if table[by].isna().any():
        raise InputError(f"{by} is missing in {table[by].isna().sum()} row(s); fill it in, or leave them out")
    values = list(dict.fromkeys(table[by]))
    looks: dict[Any, Look] = {value: ARCHITECTURES[value].look for value in in_order(values) if value in ARCHITECTURES}
    others = [value for value in values if value not in looks]
    looks |= {value: _OTHERS[index % len(_OTHERS)] for index, value in enumerate(others)}
    controls = table["control"].fillna(NO_CONTROL) if "control" in table else None
    if by == "control" or controls is None:
        looks |= {value: look_of_control(value, "o") for value in looks if value in (*CONTROLS, *UNTRAINED)}
        lines = [_Shown(_label(value, by), look, (table[by] == value).to_numpy()) for value, look in looks.items()]
    else:
        lines = []
        for control in (NO_CONTROL, *(one for one in dict.fromkeys(controls) if one != NO_CONTROL)):
            for value, look in looks.items():
                rows = ((table[by] == value) & (controls == control)).to_numpy()
                if rows.any() and control == NO_CONTROL:
                    lines.append(_Shown(_label(value, by), look, rows))
                elif rows.any():
                    label = label_as_control(_label(value, by), control)
                    lines.append(_Shown(label, look_of_control(control, look.marker), rows))
    for line in lines:
        _check_one_setting(table[line.rows], by)
    return lines


def _check_one_setting(rows: "pd.DataFrame", by: str) -> None:
    for setting in _SETTINGS:
        several = rows[setting].drop_duplicates() if setting in rows and setting != by else ()  # NaN once: "" in a CSV
        if len(several) > 1:
            raise InputError(
                f"the line of {by} {rows[by].iloc[0]!r} would run through several {setting}: "
                f"{', '.join(map(repr, several))}; choose with table[table[{setting!r}] == ...], or draw by={setting!r}"
            )


def _has_seeds(table: "pd.DataFrame") -> bool:
    return "seed" in table and len(set(table["seed"])) > 1


def _band(
    ax: Axes,
    table: "pd.DataFrame",
    name: str,
    along: NDArray[np.float64],
    rows: NDArray[np.intp],
    look: Look,
    theme: Theme,
) -> None:
    """The interval of a mean over seeds, where the table has one."""
    if {f"{name}_low", f"{name}_high"} <= set(table.columns):
        low, high = _numbers(table, f"{name}_low")[rows], _numbers(table, f"{name}_high")[rows]
        ax.fill_between(along[rows], low, high, color=getattr(look, theme), alpha=0.2, linewidth=0)


def _label(value: object, by: str) -> str:
    if by == "architecture":
        return label_of(str(value))
    if by == "control":
        return "trained" if value == NO_CONTROL else label_of_control(str(value))
    return f"{by.replace('_', ' ')}: {value if value != '' else 'none'}"


def _check_table(table: "pd.DataFrame", columns: Iterable[str], source: str) -> None:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise InputTypeError(
            f"table must be a pandas DataFrame, such as that of {source}, not a {type(table).__name__}"
        )
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise InputError("the table has no rows; there is nothing to draw")


def _numbers(table: "pd.DataFrame", column: str) -> NDArray[np.float64]:
    """A column as it can be drawn; None is NaN."""
    try:
        return table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"column {column} must hold numbers: {error}") from error
