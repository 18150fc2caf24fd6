"""Still pictures of widgets, for where no widget can run."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab_widgets.quantities import COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#444444"


def line_charts_png(rows: "pd.DataFrame", charts: list[dict[str, Any]], *, title: str) -> bytes:
    """The charts of a widget side by side as a PNG: ``rows`` has the column ``step`` and those that ``charts`` name."""
    from matplotlib.figure import Figure  # no pyplot: its global state is not safe in a callback's thread

    columns = min(3, len(charts))
    rows_of_charts = -(-len(charts) // columns)
    figure = Figure(figsize=(9.6, 2.2 * rows_of_charts + 0.3), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=9, color=INK)
    grid = figure.subplots(rows_of_charts, columns, squeeze=False).ravel()
    for ax in grid[len(charts) :]:
        ax.set_visible(False)
    for ax, chart in zip(grid, charts, strict=False):
        others = [other for other in chart["others"] if _is_drawable(rows[other["column"]], chart["scale"])]
        lines = [(other["column"], other["label"], other["color"], ":") for other in others]
        for column, label, color, style in (*lines, (chart["column"], None, chart["color"], "-")):
            defined = rows[["step", column]].dropna()
            ax.plot(defined["step"], defined[column], style, color=COLORS.get(color, INK), linewidth=1.5, label=label)
        if chart["reference"] is not None:
            ax.axhline(
                chart["reference"]["value"], color=INK, linewidth=0.8, linestyle="--", label=chart["reference"]["label"]
            )
        if ax.get_legend_handles_labels()[1]:
            in_a_row = {
                "ncols": 3,
                "handlelength": 1.2,
                "handletextpad": 0.4,
                "columnspacing": 0.9,
                "borderaxespad": 0.1,
            }
            ax.legend(loc="upper right", fontsize=7, labelcolor=INK, frameon=False, **in_a_row)
            ax.margins(y=0.15)  # room for it where the domain is not given
        ax.set_yscale(chart["scale"])
        ax.set_ylim(*chart["domain"])
        last = rows[chart["column"]].dropna()
        value = f"{last.iloc[-1]:.{chart['digits']}f}" if len(last) else "-"
        ax.set_title(f"{chart['label']}  {value}", fontsize=9, color=INK)
        ax.set_xlabel("step", fontsize=8, color=INK)
        plain_axes(ax)
        ax.grid(alpha=0.25)
    return as_png(figure)


def _is_drawable(column: "pd.Series[float]", scale: str) -> bool:
    """Whether an axis of this scale has a place for any of the numbers: a line without one has no key either."""
    finite = column[np.isfinite(column)]
    return bool((finite > 0).any() if scale == "log" else len(finite))


def plain_axes(ax: "Axes", labelsize: float = 7) -> None:
    """Small ticks in ink, and no line above or on the right."""
    ax.tick_params(which="both", labelsize=labelsize, colors=INK)
    ax.spines[["top", "right"]].set_visible(False)


def as_png(figure: "Figure") -> bytes:
    """What a widget's picture is made of."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
