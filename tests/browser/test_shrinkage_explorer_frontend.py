"""The front end of ShrinkageExplorer, in a real browser on a mock model, with the state of a real one."""

# Greek letters and typographic signs are what the page shows.
# ruff: noqa: RUF001

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page
from saelab_widgets import ShrinkageExplorer

Mount = Callable[..., Page]
NAME = "shrinkage_explorer"
NUMBERS = ("corrected", "v1", "projection", "norm_ratio", "fvu", "l0", "recovered", "missed", "false")
L1, NOISES = (0.5, 1.0, 4.0), (0.0, 0.2)
BUFFERS = ["inputs", "true_codes", "codes", "dictionaries", "fits"]
ATTACK = "<img src=x onerror=\"document.title = 'broken'\"> 🙂 שלום"


@pytest.fixture
def explorer() -> Iterator[ShrinkageExplorer]:
    """An explorer trained once per session, with no repair fitted."""
    explorer = ShrinkageExplorer(n_features=12, d_in=10, density=0.08, l1_coefficients=L1, noises=NOISES)
    for point in explorer._grid.points:
        point.fitted = None
    explorer.fits = explorer._fits()
    yield explorer
    explorer.wait()
    explorer.close()


def root(page: Page) -> Locator:
    return page.locator(".saelab-shrinkage-explorer")


def slider(page: Page, name: str) -> Locator:
    return page.locator(f'[data-knob="{name}"]')


def repair(page: Page, kind: str) -> Locator:
    return page.locator(f'[data-repair="{kind}"]')


def trait(page: Page, name: str) -> Any:
    return page.evaluate("(name) => model.get(name)", name)


def drawn(page: Page) -> Page:
    """Wait until everything requested is on the screen."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("() => Number(document.querySelector('.saelab-shrinkage-explorer').dataset.draws) > 0")
    return page


def set_traits(page: Page, **values: Any) -> None:
    page.evaluate("(values) => { for (const [name, value] of Object.entries(values)) model.set(name, value); }", values)
    drawn(page)


def send_fits(page: Page, fits: bytes) -> None:
    page.evaluate("(text) => model.set('fits', dataView(text))", base64.b64encode(fits).decode())
    drawn(page)


def number(page: Page, name: str, when: str = "after") -> float:
    value = page.locator(f'[data-number="{name}"][data-when="{when}"]').get_attribute("data-value")
    return float(value or "nan")


def assert_row(page: Page, row: Any, when: str = "after") -> None:
    for name in NUMBERS:
        assert number(page, name, when) == pytest.approx(getattr(row, name), rel=1e-5, abs=1e-6), name


def test_every_number_of_every_sae_and_repair_is_pythons(mount: Mount, explorer: ShrinkageExplorer) -> None:
    explorer.rescale, explorer.shift = 1.3, -0.35  # which switches some codes off
    tables = {kind: explorer.frame(kind) for kind in ("each_feature", "best_two", "by_hand")}
    before = explorer.frame()
    page = mount(NAME, explorer)
    for kind, table in tables.items():
        for row, trained in zip(table.itertuples(), before.itertuples(), strict=True):
            set_traits(page, l1_coefficient=row.l1_coefficient, noise=row.noise, repair=kind)
            assert_row(page, row, "after")
            assert_row(page, trained, "before")
            chart = page.locator('[data-chart="corrected"]').get_attribute("data-value")
            assert float(chart or "nan") == pytest.approx(row.corrected, rel=1e-5)
    clipped = tables["by_hand"].missed > before.missed
    assert clipped.any()


def test_without_a_repair_before_and_after_are_the_same(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    for name in NUMBERS:
        assert number(page, name, "before") == number(page, name, "after")
    assert page.locator(".saelab-ghosts path").count() == 0


def test_the_picture_has_every_point_and_the_line_of_least_squares(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    true = explorer._level.true_codes.numpy()
    learned = explorer._point.codes[:, explorer._point.matching].numpy()
    found = (true > 0) & (learned > 0)
    slope, at_0 = np.polyfit(true[found], learned[found], 1)
    shown = page.locator('[data-chart="magnitudes"]').get_attribute("data-value")
    assert float(shown or "nan") == pytest.approx(slope, rel=1e-4)
    label = page.locator('[data-chart="magnitudes"] svg[role=img]').get_attribute("aria-label") or ""
    n_false = int((explorer._point.codes > 0).sum()) - int(found.sum())
    n_missed = int(((true > 0) & (learned == 0)).sum())
    assert f"{found.sum()} found, {n_missed} missed, {n_false} false alarms." in label
    assert f"learned = {slope:.2f} × true {'minus' if at_0 < 0 else 'plus'} {abs(at_0):.2f}." in label
    points = page.locator("canvas").get_attribute("data-points")
    assert int(points or 0) == found.sum() + n_missed + n_false
    # The canvas lies exactly where the axes are drawn.
    assert page.locator("canvas").bounding_box() == page.locator('[data-chart="magnitudes"] > svg').bounding_box()


PIXELS = """() => {
    const c = document.querySelector('canvas');
    const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    const sums = [0, 0, 0];
    let painted = 0;
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 100) {
        painted++;
        for (let k = 0; k < 3; k++) sums[k] += data[i + k];
    }
    return { painted, mean: (sums[0] + sums[1] + sums[2]) / 3 / painted };
}"""


def test_points_are_drawn_and_follow_a_change_of_theme(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    light = page.evaluate(PIXELS)
    assert light["painted"] > 1000 and light["mean"] < 110
    page.evaluate(
        """() => { document.body.dataset.jpThemeLight = 'false';
            document.body.style.setProperty('--jp-ui-font-color1', 'white'); }"""
    )
    drawn(page)
    assert page.evaluate(PIXELS)["mean"] > 150


def test_the_l1_slider_stops_at_the_grid_only(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    knob = slider(page, "l1_coefficient")
    box = knob.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 20, y, steps=7)
    page.mouse.up()
    assert trait(page, "l1_coefficient") == 4
    knob.focus()
    page.keyboard.press("ArrowLeft")
    assert trait(page, "l1_coefficient") == 1
    page.keyboard.press("Home")
    assert trait(page, "l1_coefficient") == 0.5
    assert knob.get_attribute("aria-valuetext") == "0.5"
    saved = [save["l1_coefficient"] for save in page.evaluate("() => model.saved")]
    assert saved == [4, 1, 0.5]
    assert drawn(page).locator(".saelab-cursor").last.get_attribute("x1") == "40"  # the left end of the chart


def test_noise_by_the_keyboard_goes_from_level_to_level(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    clean = number(page, "fvu")
    slider(page, "noise").focus()
    page.keyboard.press("ArrowRight")
    assert trait(page, "noise") == 0.2
    assert number(drawn(page), "fvu") > clean


def test_rescale_and_shift_repair_at_once_by_mouse_and_by_keyboard(mount: Mount, explorer: ShrinkageExplorer) -> None:
    explorer.l1_coefficient = 4
    page = drawn(mount(NAME, explorer))
    before = number(page, "corrected")
    slider(page, "rescale").focus()
    page.keyboard.press("ArrowRight")
    assert trait(page, "rescale") == 1.01
    # gamma itself is not exactly 1.01 times as large, since b_dec is not rescaled.
    assert number(drawn(page), "corrected") == pytest.approx(1.01 * before, rel=0.005)
    box = slider(page, "shift").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
    assert trait(page, "shift") == pytest.approx(1.5, abs=0.1)
    drawn(page)
    assert number(page, "fvu") < number(page, "fvu", "before")
    assert number(page, "missed") == number(page, "missed", "before")
    assert page.locator(".saelab-ghosts path").count() == 1
    page.get_by_role("button", name="Reset Shift to 0.00").click()
    page.get_by_role("button", name="Reset Rescale to 1.00").click()
    assert number(drawn(page), "corrected") == before


def test_the_best_two_numbers_are_on_the_sliders_and_moving_one_goes_on_by_hand(
    mount: Mount, explorer: ShrinkageExplorer
) -> None:
    explorer.l1_coefficient = 4
    best = explorer.best_two_numbers()
    page = drawn(mount(NAME, explorer))
    repair(page, "by_hand").focus()
    page.keyboard.press("ArrowDown")
    assert trait(page, "repair") == "best_two"
    drawn(page)
    readouts = page.locator(".saelab-slider output").all_text_contents()[2:]
    assert [float(text) for text in readouts] == pytest.approx(best, rel=1e-5)
    assert (trait(page, "rescale"), trait(page, "shift")) == (1, 0)  # the user's own choice, kept
    slider(page, "shift").focus()
    page.keyboard.press("ArrowRight")
    assert trait(page, "repair") == "by_hand"
    assert trait(page, "rescale") == pytest.approx(best.rescale)
    assert trait(page, "shift") == pytest.approx(best.shift + 0.05, abs=0.026)
    assert repair(page, "by_hand").is_checked()


def test_each_features_own_repair_appears_when_python_has_fitted_it(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    repair(page, "each_feature").check()
    assert trait(page, "repair") == "each_feature"
    note = drawn(page).locator('[data-show="repair"]')
    assert note.text_content() == "Python is fitting it."
    assert page.locator('[data-number="fvu"][data-when="after"]').text_content() == "–"
    assert page.locator('[data-formula="v1"] .saelab-strip-after').is_hidden()
    for name in ("rescale", "shift"):
        assert slider(page, name).is_disabled()
    assert page.get_by_text("Off: each feature has its own.").count() == 2
    explorer.fit_all(progress=False)
    send_fits(page, explorer.fits)
    assert (note.text_content() or "").startswith("A RescaleShiftSAE, trained here: rescale ")
    assert_row(page, explorer.frame("each_feature").iloc[1])
    repair(page, "by_hand").check()
    assert slider(drawn(page), "shift").is_enabled()


def test_the_strip_has_a_dot_for_each_formula_in_its_place(mount: Mount, explorer: ShrinkageExplorer) -> None:
    explorer.l1_coefficient = 4
    page = drawn(mount(NAME, explorer))
    rows = page.locator("[data-formula]")
    names = rows.evaluate_all("(all) => all.map((row) => row.dataset.formula)")
    assert names == ["corrected", "v1", "projection", "norm_ratio"]
    dashes = set()
    for name in names:
        row = page.locator(f'[data-formula="{name}"]')
        strip, dot = row.locator(".saelab-strip").bounding_box(), row.locator(".saelab-strip-after").bounding_box()
        assert strip is not None and dot is not None
        middle = (dot["x"] + dot["width"] / 2 - strip["x"]) / strip["width"]
        assert 1.5 * middle == pytest.approx(number(page, name), abs=0.02)
        dashes.add(row.locator("svg path").evaluate("(path) => getComputedStyle(path).strokeDasharray"))
    assert len(dashes) == 4  # distinguishable without colour
    set_traits(page, rescale=5.0)
    assert number(page, "corrected") > 1.5  # beyond the strip, so drawn at its end
    box, strip = (
        page.locator(f'[data-formula="corrected"] .saelab-strip{part}').bounding_box() for part in ("-after", "")
    )
    assert box is not None and strip is not None
    assert box["x"] + box["width"] / 2 == pytest.approx(strip["x"] + strip["width"], abs=1)


def test_many_changes_are_drawn_once(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    draws = int(root(page).get_attribute("data-draws") or 0)
    page.evaluate("() => { for (let i = 0; i < 50; i++) model.set('rescale', 1 + i / 100); }")
    drawn(page)
    assert int(root(page).get_attribute("data-draws") or 0) - draws <= 2


def test_buffers_that_colab_dropped_are_asked_for_and_read_as_they_come(
    mount: Mount, explorer: ShrinkageExplorer
) -> None:
    traits = {name: value for name, value in explorer.get_state().items() if not name.startswith("_")}
    traits.pop("layout", None)
    page = drawn(mount(NAME, {**traits, **dict.fromkeys(BUFFERS)}))
    assert page.evaluate("() => model.sent") == [{"kind": "hello", "need": BUFFERS, "id": 1}]
    assert page.locator('[data-number="fvu"][data-when="before"]').text_content() == "–"
    for name in BUFFERS:
        text = base64.b64encode(getattr(explorer, name)).decode()
        page.evaluate("([name, text]) => model.set(name, bytes(text))", [name, text])
    assert number(drawn(page), "fvu") == pytest.approx(explorer.frame().fvu.iloc[1], rel=1e-5)


def test_text_from_python_is_never_markup(mount: Mount, explorer: ShrinkageExplorer) -> None:
    explorer.status = explorer.error = ATTACK
    explorer.knobs = [{**knob, "label": ATTACK, "help": ATTACK, "symbol": ATTACK} for knob in explorer.knobs]
    explorer.formulas = [{**one, "label": ATTACK, "formula": ATTACK} for one in explorer.formulas]
    explorer.options = {"repair": [{**one, "label": ATTACK} for one in explorer.options["repair"]]}
    others = [{**one, "label": ATTACK} for one in explorer.bias_chart["others"]]
    explorer.bias_chart = {**explorer.bias_chart, "label": ATTACK, "help": ATTACK, "others": others}
    page = drawn(mount(NAME, explorer))
    assert page.locator("img").count() == 0 and page.title() == NAME
    assert page.get_by_role("alert").text_content() == ATTACK
    assert page.locator("[data-formula] th").first.text_content() == 2 * ATTACK


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["by_hand", "each_feature"])
def test_axe_finds_no_violations(mount: Mount, explorer: ShrinkageExplorer, theme: str, kind: str) -> None:
    page = drawn(mount(NAME, explorer, theme=theme))
    set_traits(page, repair=kind, l1_coefficient=4.0, error="Something broke.")
    results = Axe().run(page, context=".saelab-shrinkage-explorer")
    assert results.violations_count == 0, results.generate_report()


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                return { name: e.dataset.knob ?? e.dataset.repair ?? e.getAttribute('aria-label'),
                         ring: style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
                         keeps: e.dataset.lmSuppressShortcuts };
            }"""
        )
        assert focused["ring"], f"no focus ring on {focused['name']}"
        assert focused["keeps"] == "true", f"JupyterLab would take the keys of {focused['name']}"
        reached.append(focused["name"])
    assert reached == [
        "l1_coefficient",
        "Reset L1 penalty to 1.0",
        "noise",
        "Reset Noise to 0.0",
        "by_hand",
        "rescale",
        "Reset Rescale to 1.00",
        "shift",
        "Reset Shift to 0.00",
    ]


def test_a_narrow_page_stacks_and_nothing_sticks_out(mount: Mount, explorer: ShrinkageExplorer) -> None:
    for width in (1120, 620, 340):
        page = drawn(mount(NAME, explorer, width=width))
        controls = page.locator(".saelab-shrinkage-controls").bounding_box()
        pictures = page.locator(".saelab-shrinkage-pictures").bounding_box()
        assert controls is not None and pictures is not None
        assert (pictures["y"] >= controls["y"] + controls["height"]) == (width < 640)
        assert root(page).evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")
        ends = page.locator("table, canvas, svg").evaluate_all(
            "(all) => all.map((e) => e.getBoundingClientRect().right)"
        )
        box = root(page).bounding_box()
        assert box is not None and max(ends) <= box["x"] + box["width"]


def test_moving_a_slider_moves_nothing_else_on_the_page(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    boxes = """() => [...document.querySelectorAll('.saelab input, .saelab button, .saelab svg, .saelab td')]
        .map((e) => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })"""
    before = page.evaluate(boxes)
    for values in ({"l1_coefficient": 4.0}, {"noise": 0.2}, {"repair": "best_two"}, {"repair": "each_feature"}):
        set_traits(page, **values)
        assert page.evaluate(boxes) == before, values


def test_a_page_with_no_kernel_computes_everything_but_new_fits(
    page: Page, explorer: ShrinkageExplorer, tmp_path: Path
) -> None:
    table = explorer.frame("best_two")
    page.goto(explorer.save_html(tmp_path / "without.html").as_uri())
    drawn(page)
    repair(page, "best_two").check()
    slider(page, "l1_coefficient").focus()
    page.keyboard.press("End")
    drawn(page)
    assert_row(page, table.iloc[2])
    assert repair(page, "each_feature").is_disabled()
    assert "no kernel" in (page.locator('[data-show="repair"]').text_content() or "")

    explorer._grid.levels[0].points[2].fit(explorer.data)
    explorer._take_in_fits()
    page.goto(explorer.save_html(tmp_path / "with.html").as_uri())
    drawn(page)
    repair(page, "each_feature").check()
    note = drawn(page).locator('[data-show="repair"]').text_content()
    assert note == "Not fitted here. This page has it at noise 0: L1 4."
    slider(page, "l1_coefficient").focus()
    page.keyboard.press("End")
    drawn(page)
    assert_row(page, explorer.frame("each_feature").iloc[2])


def test_closing_the_widget_leaves_nothing_behind(mount: Mount, explorer: ShrinkageExplorer) -> None:
    page = drawn(mount(NAME, explorer))
    assert page.evaluate("() => model.listeners") > 0
    page.evaluate("() => { model.set('rescale', 1.5); dispose(); }")
    assert page.evaluate("() => model.listeners") == 0
    assert page.locator("#cell *").count() == 0
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'false'; model.set('rescale', 1.2); }")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
