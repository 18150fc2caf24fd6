"""Still pictures of widgets, for where no widget can run."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

COLORS = {"l0": "#0072B2", "gamma": "#D55E00", "fvu": "#009E73", "probe": "#CC79A7"}
"""Okabe-Ito, one colour a quantity, as in the front end's theme."""
INK = "#444444"


def line_charts_png(rows: "pd.DataFrame", charts: list[dict[str, Any]], *, title: str) -> bytes:
    """The charts of a widget side by side as a PNG: ``rows`` has the column ``step`` and those that ``charts`` name."""
    from matplotlib.figure import Figure  # no pyplot: its global state is not safe in a callback's thread

    figure = Figure(figsize=(9.6, 2.4), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=9, color=INK)
    axes = figure.subplots(1, len(charts), squeeze=False)[0]
    for ax, chart in zip(axes, charts, strict=True):
        for column, style in ((chart["secondary"], ":"), (chart["column"], "-")):
            if column is not None:
                defined = rows[["step", column]].dropna()
                label = column.replace("_", " ") if column == chart["secondary"] else None
                ax.plot(
                    defined["step"], defined[column], style, color=COLORS[chart["color"]], linewidth=1.5, label=label
                )
        if chart["reference"] is not None:
            ax.axhline(
                chart["reference"]["value"], color=INK, linewidth=0.8, linestyle="--", label=chart["reference"]["label"]
            )
        if ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=7, labelcolor=INK, frameon=False)
        ax.set_yscale(chart["scale"])
        ax.set_ylim(*chart["domain"])
        last = rows[chart["column"]].dropna()
        value = f"{last.iloc[-1]:.{chart['digits']}f}" if len(last) else "-"
        ax.set_title(f"{chart['label']}  {value}", fontsize=9, color=INK)
        ax.set_xlabel("step", fontsize=8, color=INK)
        ax.tick_params(labelsize=7, colors=INK)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
