"""Figures show what a table holds, look the same everywhere, and touch nothing but themselves."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from saelab import CONTROLS
from saelab.figures import SAEFigure, Theme, lines, pareto, probe_by_layer, save_figure, scatter

THEMES: tuple[Theme, ...] = ("light", "dark")
DRAWINGS: dict[str, Callable[..., SAEFigure]] = {
    "pareto": lambda **options: pareto(sweep_table(), y=["loss_recovered", "gamma"], **options),
    "probe_by_layer": lambda **options: probe_by_layer(probe_table(), **options),
}


def sweep_table() -> pd.DataFrame:
    """Three architectures, with L0 from 6 to 100, not in order."""
    rows = [
        {
            "architecture": architecture,
            "preset": "paper",
            "ablations": "",
            "d_sae": 1024,
            "l0": l0,
            "loss_recovered": 1 - 1 / l0 - 0.05 * index,
            "gamma": 1 - 0.1 * index,
        }
        for index, architecture in enumerate(("gated", "rescale_shift", "standard"))
        for l0 in (30.0, 6.0, 100.0)
    ]
    return pd.DataFrame(rows)


def probe_table(parts: tuple[str, ...] = ("stratified", "all")) -> pd.DataFrame:
    """Four layers, two SAEs and their PCAs, in the columns of `saelab.compare_representations`."""
    names = ["activations", "gated, L1 2", "PCA, k of gated, L1 2", "gated, L1 8", "PCA, k of gated, L1 8"]
    rows = []
    for layer in range(4):
        for index, name in enumerate(names):
            for part in parts:
                accuracy = 0.6 + 0.05 * layer - 0.01 * index
                codes = name.startswith("gated")
                rows.append(
                    {
                        "layer": layer, "representation": name, "held_out": part,
                        "test_accuracy": accuracy, "test_low": accuracy - 0.03, "test_high": accuracy + 0.03,
                        "train_accuracy": accuracy + 0.1, "n_active": 100 * index + layer,
                        "l0": 10.0 * index + layer if codes else np.nan,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def drawn(ax: Axes, n_points: int) -> list[Line2D]:
    """The lines with so many points; a reference line has two."""
    return [line for line in ax.get_lines() if len(line.get_xdata()) == n_points]  # type: ignore[arg-type]


def letters(figure: Figure) -> list[Text]:
    """Every text that shows: matplotlib also has labels of ticks beyond the axes, which it never draws."""
    figure.draw_without_rendering()
    beyond = set()
    for ax in figure.axes:
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in beyond]
    return [text for text in texts if text.get_text() and text.get_visible()]


def line_of(figure: Figure, label: str) -> Line2D:
    """How the legend shows ``label``."""
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    line = legend.get_lines()[texts.index(label)]
    assert isinstance(line, Line2D)
    return line


def test_pareto_draws_a_line_for_each_architecture_from_left_to_right() -> None:
    figure = pareto(sweep_table())
    lines = drawn(figure.axes[0], 3)
    assert len(lines) == 3
    gated = next(line for line in lines if line.get_marker() == line_of(figure, "gated").get_marker())
    np.testing.assert_array_equal(gated.get_xdata(), [6, 30, 100])
    np.testing.assert_array_equal(gated.get_ydata(), [1 - 1 / 6, 1 - 1 / 30, 1 - 1 / 100])


def test_pareto_names_quantities_and_architectures_in_plain_words() -> None:
    figure = pareto(sweep_table(), y=["loss_recovered", "gamma"], title="Layer 1")
    recovered, gamma = figure.axes
    assert recovered.get_xlabel() == "L0: features on per token"
    assert recovered.get_ylabel().startswith("loss recovered")
    assert gamma.get_ylabel().startswith("relative reconstruction bias \N{GREEK SMALL LETTER GAMMA}")
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["standard", "rescale and shift", "gated"]
    assert legend.get_title().get_text() == "Layer 1"


def test_one_is_marked_for_gamma_and_loss_recovered_and_for_nothing_that_has_no_such_value() -> None:
    table = sweep_table().assign(fvu=0.1, my_number=3)
    axes = pareto(table, y=["loss_recovered", "gamma", "fvu", "my_number"]).axes
    assert [[line.get_ydata()[0] for line in drawn(ax, 2)] for ax in axes] == [[1], [1], [], []]  # type: ignore[index]
    assert axes[3].get_ylabel() == "my number"


def test_an_architecture_looks_the_same_whichever_others_are_there() -> None:
    table = sweep_table()
    for theme in THEMES:
        among_all = line_of(pareto(table, theme=theme), "gated")
        alone = line_of(pareto(table[table.architecture == "gated"], theme=theme), "gated")
        for look in ("get_color", "get_marker", "get_linestyle"):
            assert getattr(among_all, look)() == getattr(alone, look)()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("theme", THEMES)
def test_lines_differ_in_colour_and_without_it(draw: Callable[..., SAEFigure], theme: Theme) -> None:
    lines = draw(theme=theme, **({"train": False} if draw is DRAWINGS["probe_by_layer"] else {})).legends[0].get_lines()
    assert len({to_hex(line.get_color()) for line in lines}) == len(lines)
    assert len({line.get_marker() for line in lines}) == len(lines)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("theme", THEMES)
def test_every_letter_stands_out_from_the_page_in_both_themes(draw: Callable[..., SAEFigure], theme: Theme) -> None:
    figure = draw(theme=theme, title="A title")
    page = figure.get_facecolor()
    assert len(letters(figure)) > 10
    assert all(contrast(text.get_color(), page) > 7 for text in letters(figure))
    markers = [line for line in figure.findobj(Line2D) if line.get_marker() not in ("", "None", None)]
    assert all(contrast(line.get_markeredgecolor(), page) > 2.5 for line in markers)
    assert {to_hex(ax.get_facecolor()) for ax in figure.axes} == {to_hex(page)}


def contrast(one: Any, other: Any) -> float:
    """Of two colours, as WCAG defines it."""

    def luminance(color: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_cut_off_and_no_label_lies_on_another(draw: Callable[..., SAEFigure], theme: Theme) -> None:
    figure = draw(theme=theme, title="A title")
    boxes = [text.get_window_extent() for text in letters(figure)]
    width, height = figure.get_size_inches() * figure.dpi
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_l0_is_on_a_log_axis_with_plain_numbers_where_it_spans_enough() -> None:
    figure = pareto(sweep_table())
    assert figure.axes[0].get_xscale() == "log"
    shown = letters(figure)
    assert [x.get_text() for x in figure.axes[0].get_xticklabels() if x in shown] == ["10", "20", "50", "100"]
    assert pareto(sweep_table(), log_x=False).axes[0].get_xscale() == "linear"
    narrow = sweep_table().assign(l0=np.linspace(30, 60, 9))
    assert pareto(narrow).axes[0].get_xscale() == "linear"
    dead = sweep_table().replace({"l0": {6.0: 0.0}})
    assert pareto(dead).axes[0].get_xscale() == "linear"
    with pytest.raises(ValueError, match="l0 holds 0, which has no logarithm"):
        pareto(dead, log_x=True)


def test_a_missing_number_is_a_gap() -> None:
    table = sweep_table()
    table.loc[(table.architecture == "gated") & (table.l0 == 30), "loss_recovered"] = np.nan
    table.loc[(table.architecture == "standard") & (table.l0 == 30), "l0"] = np.inf
    figure = pareto(table)
    by_marker = {line.get_marker(): line for line in figure.axes[0].get_lines()}
    gated = by_marker[line_of(figure, "gated").get_marker()]
    standard = by_marker[line_of(figure, "standard").get_marker()]
    np.testing.assert_array_equal(np.isnan(np.asarray(gated.get_ydata())), [False, True, False])
    np.testing.assert_array_equal(standard.get_xdata(), [6, 100])


def test_a_table_read_from_csv_gives_the_same_figure(tmp_path: Path) -> None:
    sweep_table().to_csv(tmp_path / "table.csv", index=False)
    [one] = save_figure(pareto(pd.read_csv(tmp_path / "table.csv")), tmp_path / "one", ["png"])
    [other] = save_figure(pareto(sweep_table()), tmp_path / "other", ["png"])
    assert one.read_bytes() == other.read_bytes()


def test_lines_may_differ_in_another_column() -> None:
    table = sweep_table()
    gated = table[table.architecture == "gated"]
    both = pd.concat([gated, gated.assign(ablations="no_r_mag", gamma=0.9)])
    figure = pareto(both, y="gamma", by="ablations")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ablations: none", "ablations: no_r_mag"]
    with pytest.raises(ValueError, match="'gated' would run through several ablations: '', 'no_r_mag'"):
        pareto(both, y="gamma")


def seeded(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The same at three seeds, whose numbers in ``columns`` are 0.01 apart."""
    return pd.concat(
        [table.assign(seed=seed, **{name: table[name] + 0.01 * (seed - 1) for name in columns}) for seed in range(3)]
    )


def bands(ax: Axes) -> list[tuple[float, float]]:
    """Lower and upper end of each band."""
    heights = [np.asarray(band.get_paths()[0].vertices)[:, 1] for band in ax.collections]
    return [(float(height.min()), float(height.max())) for height in heights]


def test_several_seeds_are_a_line_through_their_means_with_a_band_of_their_interval() -> None:
    table = sweep_table()
    figure = pareto(seeded(table.assign(l1_coefficient=table.l0), "gamma"), y="gamma")
    gated = drawn(figure.axes[0], 3)[0]
    assert list(gated.get_xdata()) == [6, 30, 100] and list(gated.get_ydata()) == pytest.approx([0.8, 0.8, 0.8])  # type: ignore[arg-type]
    # Three values 0.01 apart: standard deviation 0.01, t with two degrees of freedom 4.3027, over the root of 3.
    half = 4.3027 * 0.01 / 3**0.5
    assert bands(figure.axes[0])[2] == pytest.approx((1 - half, 1 + half), abs=1e-5)
    alone = pareto(table.assign(l1_coefficient=table.l0, seed=0), y="gamma")
    assert not alone.axes[0].collections


def test_curves_of_several_seeds_are_averaged_at_each_point() -> None:
    history = pd.DataFrame({"step": [1, 2, 3], "l0": [9.0, 6.0, 3.0], "architecture": "gated"})
    figure = lines(seeded(history, "l0"), "step", "l0", by="architecture")
    assert list(drawn(figure.axes[0], 3)[0].get_ydata()) == pytest.approx([9, 6, 3])  # type: ignore[arg-type]
    assert bands(figure.axes[0])[0] == pytest.approx((3 - 4.3027 * 0.01 / 3**0.5, 9 + 4.3027 * 0.01 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("theme", THEMES)
def test_controls_are_thin_grey_lines_of_their_own_below_what_they_control(theme: Theme) -> None:
    table = sweep_table().assign(control="none")
    gated = table[table.architecture == "gated"]
    both = pd.concat(
        [
            *(gated.assign(control=name, gamma=0.5 + index / 10) for index, name in enumerate(CONTROLS)),
            gated.assign(control="pca", gamma=0.4),
            table,
        ]
    )
    figure = pareto(both, y="gamma", theme=theme)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "standard", "rescale and shift", "gated",
        "gated, frozen decoder", "gated, soft-frozen decoder", "gated, frozen encoder", "PCA",
    ]  # fmt: skip
    grey = [line_of(figure, label) for label in labels[3:]]
    assert len({line.get_color() for line in grey}) == 1
    assert len({str(line.get_linestyle()) + str(getattr(line, "_unscaled_dash_pattern", "")) for line in grey}) == 4
    assert all(line.get_linewidth() < line_of(figure, "gated").get_linewidth() for line in grey)
    assert [list(line.get_ydata()) for line in drawn(figure.axes[0], 3)][3] == [0.5] * 3  # type: ignore[arg-type]
    by_control = pareto(both[both.architecture == "gated"], y="gamma", by="control", theme=theme)
    assert "trained" in [text.get_text() for text in by_control.legends[0].get_texts()]


def test_probes_of_several_seeds_show_the_interval_of_their_mean_and_controls_beside_it() -> None:
    table = probe_table(("stratified",)).assign(control="none")
    codes = table.representation == "gated, L1 2"
    both = pd.concat([table, table[codes].assign(control="frozen_encoder", test_accuracy=0.55)])
    figure = probe_by_layer(seeded(both, "test_accuracy"), train=False)
    panel = figure.axes[0]
    assert [len(line.get_xdata()) for line in panel.get_lines()] == [4, 4, 4, 4]  # type: ignore[arg-type]
    assert list(panel.get_lines()[3].get_ydata()) == pytest.approx([0.55] * 4)  # type: ignore[arg-type]
    segments = panel.collections[0].get_segments()  # type: ignore[attr-defined]
    half = 4.3027 * 0.01 / 3**0.5
    assert segments[0][:, 1].tolist() == pytest.approx([0.59 - half, 0.59 + half], abs=1e-4)
    assert "frozen encoder" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ([1, 2], {}, TypeError, "table must be a pandas DataFrame, .* not a list"),
        (sweep_table()[:0], {}, ValueError, "the table has no rows"),
        (sweep_table().drop(columns="l0"), {}, ValueError, "no column l0; it has architecture, preset"),
        (sweep_table(), {"y": "accuracy"}, ValueError, "no column accuracy; it has"),
        (sweep_table(), {"y": []}, ValueError, "y names no column"),
        (sweep_table(), {"theme": "blue"}, ValueError, "theme must be one of light, dark, not 'blue'"),
        (sweep_table().assign(gamma="high"), {"y": "gamma"}, ValueError, "column gamma must hold numbers"),
        (sweep_table().assign(gamma=np.nan), {"y": "gamma"}, ValueError, "no row has a finite number both in l0 and"),
        (sweep_table().assign(architecture=None), {}, ValueError, r"architecture is missing in 9 row\(s\)"),
        (sweep_table().assign(d_sae=range(9)), {}, ValueError, "'standard' would run through several d_sae: 6, 7, 8"),
    ],
)
def test_pareto_says_what_is_wrong_with_a_table(
    table: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pareto(table, **options)


def test_probe_by_layer_has_a_panel_for_each_sae_and_way_of_holding_out() -> None:
    figure = probe_by_layer(probe_table())
    assert [ax.get_title() for ax in figure.axes] == ["gated, L1 2", "gated, L1 8", "", ""]
    assert "a share of each kind held out" in figure.axes[0].get_ylabel()
    assert "each block held out in turn" in figure.axes[2].get_ylabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["codes", "activations", "PCA to as many dimensions", "dotted: training texts"]


def test_each_layer_shows_test_and_training_accuracy_intervals_l0_and_features_on() -> None:
    ax = probe_by_layer(probe_table(("all",))).axes[0]
    drawn_accuracies = sorted(tuple(np.round(np.asarray(line.get_ydata()), 6)) for line in drawn(ax, 4))
    by_layer = np.array([0.6, 0.65, 0.7, 0.75])
    of_representations = [by_layer, by_layer - 0.01, by_layer - 0.02]
    expected = sorted(tuple(np.round(a, 6)) for a in of_representations + [a + 0.1 for a in of_representations])
    assert drawn_accuracies == expected
    segments = [segment for bars in ax.collections for segment in bars.get_segments()]  # type: ignore[attr-defined]
    assert sorted({round(float(high - low), 6) for (_, low), (_, high) in segments}) == [0.06]
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == ["0\nL0 10\n100 on", "1\nL0 11\n101 on", "2\nL0 12\n102 on", "3\nL0 13\n103 on"]
    assert ax.get_xlabel() == "layer, L0, features on for any text"


def test_training_accuracies_can_be_left_out() -> None:
    figure = probe_by_layer(probe_table(), train=False)
    assert len(drawn(figure.axes[0], 4)) == 3
    assert len(figure.legends[0].get_texts()) == 3


def test_probe_by_layer_draws_what_there_is_and_leaves_gaps() -> None:
    table = probe_table(("all",))
    needed = table[["layer", "representation", "test_accuracy"]].drop(index=table.index[1])  # an SAE's layer 0
    needed.loc[needed.layer == 2, "test_accuracy"] = np.nan
    ax = probe_by_layer(needed).axes[0]
    assert ax.get_ylabel() == "accuracy on test texts"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    gaps = [np.isnan(np.asarray(line.get_ydata(), dtype=float)).tolist() for line in ax.get_lines()]
    assert gaps == [[True, False, True, False], [False, False, True, False], [False, False, True, False]]
    only = probe_by_layer(table[table.representation == "activations"])
    assert len(only.axes) == 1


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({}, TypeError, "table must be a pandas DataFrame, .* not a dict"),
        (probe_table()[:0], ValueError, "the table has no rows"),
        (probe_table().drop(columns="layer"), ValueError, "no column layer; it has representation"),
        (probe_table().assign(test_accuracy=np.nan), ValueError, "test_accuracy holds no finite number"),
        (probe_table().assign(l0="many"), ValueError, "column l0 must hold numbers"),
        (
            pd.concat([probe_table(), probe_table()]), ValueError,
            "several rows are of layer 0, representation activations, held_out stratified;",
        ),
    ],
)  # fmt: skip
def test_probe_by_layer_says_what_is_wrong_with_a_table(table: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe_by_layer(table)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_the_same_figure_saved_twice_has_the_same_bytes(draw: Callable[..., SAEFigure], tmp_path: Path) -> None:
    one = save_figure(draw(), tmp_path / "one")
    other = save_figure(draw(), tmp_path / "other")
    assert [path.suffix for path in one] == [".png", ".pdf"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert all(path.stat().st_size < 100_000 for path in one)
    assert b"CreationDate" not in one[1].read_bytes()


def test_saved_pictures_keep_the_colours_of_page_and_lines(tmp_path: Path) -> None:
    for theme, page in zip(THEMES, ("#ffffff", "#111111"), strict=True):
        figure = pareto(sweep_table(), theme=theme)
        [png] = save_figure(figure, tmp_path / theme, ["png"])
        with Image.open(png) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        found, counts = np.unique(pixels, axis=0, return_counts=True)
        colors = [to_hex(color) for color in found[np.argsort(-counts)] / 255]
        assert colors[0] == page
        assert {to_hex(line.get_color()) for line in figure.legends[0].get_lines()} <= set(colors)


def test_save_figure_keeps_dots_in_a_name_makes_folders_and_takes_any_figure(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    written = save_figure(figure, tmp_path / "new" / "l1=0.5")
    assert written == [tmp_path / "new" / "l1=0.5.png", tmp_path / "new" / "l1=0.5.pdf"]
    assert save_figure(figure, tmp_path / "a.pdf", ["pdf"]) == [tmp_path / "a.pdf"]
    for formats in ("png", [], ["gif"]):
        with pytest.raises(ValueError, match="formats must list one or more of png, pdf, not"):
            save_figure(figure, tmp_path / "a", formats)  # type: ignore[arg-type]


def test_a_notebook_shows_a_figure_as_a_picture_of_its_size() -> None:
    figure = pareto(sweep_table(), size=(4, 3))
    png, shown_at = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert shown_at == {"width": 400, "height": 300}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_users_own_matplotlib_is_left_as_it_was(draw: Callable[..., SAEFigure], tmp_path: Path) -> None:
    pyplot = "matplotlib.pyplot" in sys.modules
    with matplotlib.rc_context({"axes.grid": True, "lines.linewidth": 7, "text.color": "red", "savefig.dpi": 3}):
        names = set(matplotlib.rcParams) - {"backend"}  # which, looked at, imports pyplot
        before = {name: matplotlib.rcParams[name] for name in names}
        save_figure(draw(), tmp_path / "theirs")
        assert {name: matplotlib.rcParams[name] for name in names} == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
    save_figure(draw(), tmp_path / "plain")
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_table_is_left_as_it_was() -> None:
    for table, draw in ((sweep_table(), pareto), (probe_table(), probe_by_layer)):
        before = table.copy()
        draw(table)
        pd.testing.assert_frame_equal(table, before)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "saelab.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'figures need matplotlib: pip install "saelab\[widgets\]"'):
        import saelab.figures  # noqa: F401


def test_a_scatter_tells_controls_apart_by_how_their_marks_are_filled() -> None:
    controls = ["none", *CONTROLS]
    table = pd.DataFrame(
        {"architecture": "gated", "control": controls, "fvu": [0.1, 0.2, 0.3, 0.4], "found": [0.9, 0.1, 0.2, 0.0]}
    )
    (ax,) = scatter(table, "fvu", "found", by="architecture").axes
    marks = {float(line.get_xdata()[0]): line for line in ax.get_lines()}  # type: ignore[index, arg-type]
    looks = [(line.get_marker(), line.get_fillstyle()) for line in marks.values()]
    assert len(looks) == len(set(looks)) == 4
