"""The still pictures of widgets."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from saelab_widgets import pictures
from saelab_widgets.quantities import chart, other_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def test_a_line_without_a_number_to_draw_is_not_drawn_and_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def keep(figure: "Figure") -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(pictures, "as_png", keep)
    rows = pd.DataFrame({"step": [0, 10], "loss": [3.0, 2.0], "some": [math.nan, 1.0]})
    rows["missing"], rows["zero"], rows["infinite"] = math.nan, 0.0, math.inf
    others = [other_line(column, column, "l0") for column in ("missing", "some", "zero", "infinite")]
    charts: list[dict[str, Any]] = [{**chart("loss", scale=scale, others=others)} for scale in ("log", "linear")]
    pictures.line_charts_png(rows, charts, title="")
    on_log, on_linear = (
        [line.get_label() for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        for ax in figures[0].axes[:2]
    )
    assert (on_log, on_linear) == (["some"], ["some", "zero"])  # a log axis has no place for zero
