"""Charts and colours of widgets are those of `saelab.quantities` and of the registered architectures."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from saelab_widgets import ParetoExplorer
from saelab_widgets.quantities import (
    COLORS,
    SHAPES,
    architecture_color,
    architecture_label,
    chart,
    other_line,
    palette,
    quantity,
)

from saelab import ARCHITECTURES, StandardSAE
from saelab.figures import pareto
from saelab.quantities import BLUE, COLOURS, QUANTITIES, Quantity

THEME = Path(__file__).parents[2] / "widgets" / "frontend" / "src" / "theme.css"


@pytest.fixture
def newcomer() -> Iterator[str]:
    """Name of an architecture that somebody registers; gone after the test."""

    class NewSAE(StandardSAE):
        architecture = "newcomer"
        label = "my own"
        look = StandardSAE.look._replace(light="#123456", dark="#abcdef", marker="*")

    yield NewSAE.architecture
    del ARCHITECTURES[NewSAE.architecture]


def test_a_chart_says_what_its_quantity_says() -> None:
    assert chart("gamma") == {
        "column": "gamma",
        "label": "Bias \N{GREEK SMALL LETTER GAMMA}",
        "unit": "",
        "help": "Relative reconstruction bias: below 1 is shrinkage, 1 unbiased.",
        "scale": "linear",
        "digits": 3,
        "reference": {"value": 1.0, "label": "unbiased"},
        "color": "gamma",
        "domain": [0.4, 1.2],
        "others": [],
    }
    assert chart("n_dead")["least"] == 10 and "least" not in chart("l0")
    assert chart("l0", domain=[None, None])["domain"] == [None, None]


def test_the_key_of_other_lines_follows_the_help_of_the_first() -> None:
    others = [other_line("l0", "L0", "l0")]
    assert chart("n_active", others=others)["help"] == "On for at least one of the texts;"
    assert chart("n_active")["help"] == "On for at least one of the texts."


def test_a_new_quantity_has_a_chart_by_its_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Quantity("top_ten_share", "Top ten", "share of variance explained by the ten strongest", colour=BLUE)
    monkeypatch.setitem(QUANTITIES, line.name, line)
    spec = chart("top_ten_share")
    assert (spec["label"], spec["color"], spec["digits"]) == ("Top ten", "l0", 3)
    assert spec["help"] == "Share of variance explained by the ten strongest."
    table = pd.DataFrame({"architecture": "gated", "l0": [3.0, 9.0], "top_ten_share": [0.5, 0.25]})
    explorer = ParetoExplorer(table, y="top_ten_share")
    assert explorer.quantities[1]["label"] == "Top ten"


def test_a_column_that_is_not_described_is_shown_in_plain_words() -> None:
    assert quantity("my_score", digits=4) == {
        "column": "my_score",
        "label": "my score",
        "unit": "",
        "help": "",
        "scale": "linear",
        "digits": 4,
        "reference": None,
        "color": "text",
    }
    assert quantity("l0", digits=4)["digits"] == 1


def test_the_palette_has_every_hue_and_every_architecture(newcomer: str) -> None:
    colors = palette()
    assert set(colors) == {*COLOURS, *ARCHITECTURES} and "newcomer" in colors
    assert colors["loss"] == {"light": "#a67c00", "dark": "#d9b53f", "light_ink": "#7a5c00", "dark_ink": "#d9b53f"}
    assert colors["newcomer"] == {"light": "#123456", "dark": "#abcdef"}


def test_live_colours_and_those_of_pictures_are_the_same() -> None:
    for name, shades in palette().items():
        picture = COLORS[name] if name in COLORS else architecture_color(name)
        assert picture == shades["light"]
    table = pd.DataFrame({"architecture": list(ARCHITECTURES), "l0": 10.0, "fvu": 0.5})
    drawn = {line.get_label(): to_hex(line.get_color()) for line in pareto(table, y="fvu").legends[0].get_lines()}
    assert list(drawn.values()) == [palette()[name]["light"] for name in ParetoExplorer(table).architectures]


def test_the_style_sheet_leaves_the_colours_of_quantities_and_architectures_to_python() -> None:
    declared = set(re.findall(r"--saelab-([a-z0-9_]+)(?:-ink)?:", THEME.read_text(encoding="utf-8")))
    assert "text" in declared and not declared & set(palette())


def test_an_architecture_that_is_registered_later_is_called_and_drawn_as_it_says(newcomer: str) -> None:
    assert [architecture_label(name) for name in ("rescale_shift", "jumprelu", "newcomer", "unknown")] == [
        "Rescale and shift",
        "JumpReLU",
        "My own",
        "unknown",
    ]
    table = pd.DataFrame({"architecture": ["unknown", "newcomer", "gated"], "l0": [1.0, 2, 3], "fvu": [0.1, 0.2, 0.3]})
    explorer = ParetoExplorer(table)
    assert explorer.architectures == ["gated", "newcomer", "unknown"]
    assert {"value": "newcomer", "label": "My own", "shape": "star", "color": "newcomer", "dash": ""} in explorer.series
    assert explorer._picture().startswith(b"\x89PNG")
    legend = pareto(table, y="fvu").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["gated", "my own", "unknown"]
    assert to_hex(legend.get_lines()[1].get_color()) == "#123456" and legend.get_lines()[1].get_marker() == "*"


def test_the_front_end_has_a_shape_for_every_marker_of_an_architecture() -> None:
    assert {sae.look.marker for sae in ARCHITECTURES.values()} <= set(SHAPES)
