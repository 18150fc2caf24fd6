"""The front end of ProbeExplorer, in a real browser on a mock model: no Jupyter, no kernel."""

# Typographic signs are what the page shows.
# ruff: noqa: RUF001

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page
from saelab_widgets import ProbeExplorer

import saelab
from saelab import GatedSAE, LabelledSet

Mount = Callable[..., Page]
N = 320
LAYERS, L1S, BLOCKS = (0, 1, 5), (1.0, 2.0, 8.0), ("drama", "comedy")
ATTACK = "<img src=x onerror=\"document.title = 'broken'\">"
ODD_TEXTS = (ATTACK, "😀 👩‍👩‍👧 loved it", "פשוט סרט נפלא!", "a" * 300)


def texts(shift: int) -> LabelledSet:
    """Two labels that a probe tells apart to some degree, with texts of every kind, each of them also at the end."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % 2
    x = torch.randn(N, 8, generator=generator).roll(shift, dims=1)
    x[:, 0] += 1.2 * (labels - 0.5)
    some = [ODD_TEXTS[row // 2 % 4] if row < 80 else f"snippet {row}" for row in range(N)]
    return LabelledSet(
        x=x,
        labels=labels,
        texts=np.array(some),
        blocks=np.array([BLOCKS[row // 2 % 2] for row in range(N)]),
        strata=np.array([f"{row % 2}{row % 8 < 2}" for row in range(N)]),
    )


def sae(layer: int, l1: float) -> GatedSAE:
    sae = GatedSAE(8, 24, seed=layer)
    with torch.no_grad():
        sae.b_gate.copy_(-0.05 * l1 * torch.rand(24, generator=torch.Generator().manual_seed(layer)))
    return sae


@pytest.fixture(scope="module")
def made() -> Iterator[ProbeExplorer]:
    saes = {layer: {l1: sae(layer, l1) for l1 in L1S} for layer in LAYERS}
    explorer = ProbeExplorer(saes, {layer: texts(layer) for layer in LAYERS}, labels={0: "negative", 1: ATTACK})
    yield explorer
    explorer.close()


@pytest.fixture(scope="module")
def with_seeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeExplorer]:
    """Three layers, one L1 coefficient, three seeds, two controls."""
    folder = tmp_path_factory.mktemp("saes")
    rows = []
    for layer in LAYERS:
        for shift, control in enumerate(("none", "frozen_decoder", "soft_frozen_decoder")):
            for seed in range(3):
                one = sae(100 * shift + 10 * layer + seed, 2.0)
                path = saelab.save(one, folder / f"{layer}-{control}-{seed}.safetensors")
                rows.append({"layer": layer, "l1_coefficient": 2.0, "control": control, "seed": seed, "path": path})
    explorer = ProbeExplorer(pd.DataFrame(rows), {layer: texts(layer) for layer in LAYERS})
    yield explorer
    explorer.close()


@pytest.fixture
def explorer(made: ProbeExplorer) -> ProbeExplorer:
    """The shared explorer, reset to its initial state."""
    made.layer, made.representation, made.l1_coefficient, made.part = 1, "codes", 2.0, "stratified"
    made.gate_threshold, made.shown = 0.0, "wrong"
    made.wait()
    return made


def root(page: Page) -> Locator:
    return page.locator(".saelab-probe-explorer")


def trait(page: Page, name: str) -> Any:
    return page.evaluate("(name) => model.get(name)", name)


def saved(page: Page) -> Any:
    return page.evaluate("() => model.saved.at(-1)")


def drawn(page: Page) -> Page:
    """Wait until everything requested is on the screen."""
    page.wait_for_function("() => Number(document.querySelector('.saelab-probe-explorer').dataset.draws) > 0")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page


def numbers(page: Page, representation: str) -> list[str]:
    return page.locator(f'[data-row="{representation}"] td').all_text_contents()


def check_numbers(found: list[str], row: Any) -> None:
    """Assert that the page shows Python's number, rounded."""
    low, high = found[3].split("–")
    assert found[0] == f"{row.n_active:,}"
    for text, value in ((found[1], row.train_accuracy), (found[2], row.test_accuracy)):
        assert len(text) == 5 and float(text) == pytest.approx(value, abs=0.000501)
    for text, value in ((low, row.test_low), (high, row.test_high)):
        assert len(text) == 4 and float(text) == pytest.approx(value, abs=0.00501)


def count(page: Page) -> str:
    return page.locator('[data-show="count"]').text_content() or ""


def listed(page: Page) -> list[int]:
    rows = page.locator("[data-text]").evaluate_all("(all) => all.map((li) => Number(li.dataset.text))")
    return [int(row) for row in rows]


def test_every_number_in_the_page_is_the_one_in_python(mount: Mount, explorer: ProbeExplorer) -> None:
    page = mount("probe_explorer", explorer)
    table = explorer.frame()
    for layer in LAYERS:
        page.get_by_role("radio", name=str(layer), exact=True).check()
        for l1 in L1S:
            page.evaluate("(l1) => model.set('l1_coefficient', l1)", l1)
            for part in ("stratified", "each block", *BLOCKS):
                page.get_by_label("Held out").select_option(part)
                drawn(page)
                here = table[(table.layer == layer) & (table.l1_coefficient == l1) & (table.held_out == part)]
                for row in here.itertuples():
                    check_numbers(numbers(page, str(row.representation)), row)
                codes = here[here.representation == "codes"].iloc[0]
                assert count(page) == f"{codes.n_wrong} of {codes.n_test} wrong"
                shown = page.locator('[data-chart="probe_accuracy"]').get_attribute("data-value")
                assert float(shown or "nan") == pytest.approx(codes.test_accuracy, abs=1e-6)
                shown = page.locator('[data-chart="n_active"]').get_attribute("data-value")
                assert float(shown or "nan") == codes.n_active


def test_the_list_has_the_texts_that_the_probe_gets_wrong(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    for name, label in (("activations", "activations"), ("pca", "PCA"), ("codes", "codes")):
        page.get_by_role("radio", name=label).check()
        drawn(page)
        explorer.representation = name
        wrong = explorer.wrong_texts()
        assert listed(page) == list(wrong.index)
        assert page.locator(".saelab-probe-text").all_text_contents() == list(wrong.text)
        assert page.locator(".saelab-probe-is-hard").count() == wrong.hard.sum()
        hard = page.locator('[data-show="hard"]').text_content() or ""
        assert hard.startswith(f"{wrong.hard.sum()} of ") and hard.endswith(" hard ones")
    facts = page.locator(".saelab-probe-facts bdi").all_text_contents()
    assert facts[::2] == list(wrong.label) and facts[1::2] == list(wrong.block)


def test_markup_emoji_and_right_to_left_script_show_as_text(mount: Mount, explorer: ProbeExplorer) -> None:
    page = mount("probe_explorer", explorer)
    page.get_by_role("radio", name="right").check()
    page.get_by_label("Held out").select_option("each block")
    drawn(page)
    shown = page.locator(".saelab-probe-text").all_text_contents()
    assert set(ODD_TEXTS) <= set(shown)
    assert page.locator("img").count() == 0 and page.title() == "probe_explorer"
    hebrew = page.locator(".saelab-probe-text", has_text=ODD_TEXTS[2]).first
    assert hebrew.evaluate("(e) => getComputedStyle(e).direction") == "rtl"
    assert root(page).evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")  # 300 letters without a space


def test_a_long_list_is_turned_page_by_page_within_one_height(mount: Mount, explorer: ProbeExplorer) -> None:
    page = mount("probe_explorer", explorer)
    height = page.locator(".saelab-probe-texts").evaluate("(e) => e.offsetHeight")
    page.get_by_role("radio", name="right").check()
    assert saved(page) == {"shown": "right"}
    page.get_by_label("Held out").select_option("each block")
    drawn(page)
    explorer.part = "each block"
    n_right = N - len(explorer.wrong_texts())
    assert 100 < n_right < 300
    first = listed(page)
    assert len(first) == 100 and page.get_by_role("button", name="Previous").is_disabled()
    assert page.locator('[data-show="range"]').text_content() == f"1–100 of {n_right}"
    seen = list(first)
    while page.get_by_role("button", name="Next").is_enabled():
        page.get_by_role("button", name="Next").click()
        seen += listed(page)
    assert sorted({*seen, *explorer.wrong_texts().index}) == list(range(N)) and len(seen) == n_right
    while page.get_by_role("button", name="Previous").is_enabled():
        page.get_by_role("button", name="Previous").click()
    assert listed(page) == first
    assert page.locator(".saelab-probe-texts").evaluate("(e) => e.offsetHeight") == height


def test_a_part_with_nothing_wrong_says_so(mount: Mount, explorer: ProbeExplorer) -> None:
    state = {name: value for name, value in explorer.get_state().items() if name not in ("_esm", "_css", "layout")}
    page = drawn(mount("probe_explorer", {**state, "wrong": bytes(len(explorer.wrong))}))
    assert count(page) == f"0 of {N // 4} wrong"
    assert page.locator(".saelab-probe-texts").inner_text() == "None."


def test_every_control_answers_to_the_keyboard(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                const { knob, layer, representation, select, shown, action } = e.dataset;
                return { name: knob ?? layer ?? representation ?? select ?? shown ?? action ?? e.ariaLabel,
                         ring: style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
                         keeps: e.dataset.lmSuppressShortcuts };
            }"""
        )
        assert focused["ring"] and focused["keeps"] == "true", focused
        reached.append(focused["name"])
    assert reached == [
        "1",
        "codes",
        "part",
        "l1_coefficient",
        "Reset L1 penalty to 8",
        "gate_threshold",
        "Reset Gate threshold to 0.00",
        "wrong",
        "Texts",
    ]
    page.get_by_role("radio", name="1", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert saved(page) == {"layer": 5}
    page.get_by_role("radio", name="codes").focus()
    page.keyboard.press("ArrowRight")
    assert saved(page) == {"representation": "pca"}
    page.get_by_role("radio", name="wrong").focus()
    page.keyboard.press("ArrowRight")
    assert saved(page) == {"shown": "right"}
    page.get_by_label("Held out").focus()
    page.keyboard.press("ArrowDown")
    assert saved(page) == {"part": "each block"}


def test_the_l1_slider_stops_at_the_saes_there_are(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    slider = page.locator('[data-knob="l1_coefficient"]')
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert saved(page) == {"l1_coefficient": 8}
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert saved(page) == {"l1_coefficient": 2} and slider.get_attribute("aria-valuetext") == "2"
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    assert saved(page) == {"l1_coefficient": 1}
    page.get_by_role("button", name="Reset L1 penalty to 8").click()
    assert trait(page, "l1_coefficient") == 8


def test_a_layer_can_be_chosen_in_the_chart_and_is_marked_there(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    page.wait_for_selector(".saelab-band[width]", state="attached")
    chart = page.locator('[data-chart="probe_accuracy"]')
    bands = []
    for place, layer in enumerate(LAYERS):
        chart.locator(".saelab-layer-hit").nth(place).click()
        drawn(page)
        assert trait(page, "layer") == layer
        assert page.get_by_role("radio", name=str(layer), exact=True).is_checked()
        box, mark = chart.locator(".saelab-band").bounding_box(), chart.locator(".saelab-here").bounding_box()
        assert box is not None and mark is not None
        assert box["x"] < mark["x"] and mark["x"] + mark["width"] < box["x"] + box["width"]
        bands.append(box["x"])
    assert bands == sorted(set(bands))


def test_the_chart_has_every_accuracy_with_its_interval(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    page.wait_for_selector(".saelab-interval[y1]", state="attached")
    chart = page.locator('[data-chart="probe_accuracy"]')
    assert chart.locator(".saelab-mark-filled").count() == 9 == chart.locator(".saelab-mark-hollow").count()
    assert chart.locator(".saelab-interval").count() == 9
    assert chart.locator(".saelab-here").count() == 1
    # Heights on the page are linear in what they stand for.
    table = explorer.frame()
    table = table[(table.l1_coefficient == 2.0) & (table.held_out == "stratified")]
    order = [name for name in ("activations", "pca", "codes") for _ in LAYERS]  # the selected one lies on top
    lengths = chart.locator(".saelab-interval").evaluate_all(
        "(all) => all.map((e) => e.y1.baseVal.value - e.y2.baseVal.value)"
    )
    rows = [
        table[(table.representation == name) & (table.layer == layer)].iloc[0]
        for name, layer in zip(order, LAYERS * 3, strict=True)
    ]
    widths = [row.test_high - row.test_low for row in rows]
    assert np.allclose(np.array(lengths) / lengths[0], np.array(widths) / widths[0], rtol=1e-4)
    label = chart.get_by_role("img").get_attribute("aria-label") or ""
    codes = table[(table.representation == "codes") & (table.layer == 5)].iloc[0]
    assert f"codes {codes.test_accuracy:.3f}, training {codes.train_accuracy:.3f}" in label


@pytest.mark.parametrize(("theme", "grey"), [("light", "rgb(107, 107, 107)"), ("dark", "rgb(166, 166, 166)")])
def test_controls_are_grey_beside_the_codes_and_numbers_are_means_over_seeds(
    mount: Mount, with_seeds: ProbeExplorer, theme: str, grey: str
) -> None:
    page = drawn(mount("probe_explorer", with_seeds, theme=theme))
    page.wait_for_selector(".saelab-interval[y1]", state="attached")
    chart = page.locator('[data-chart="probe_accuracy"]')
    # Of each layer a mark for activations, codes, PCA and two controls; hollow ones for the first three.
    assert chart.locator(".saelab-mark-filled").count() == 15 and chart.locator(".saelab-mark-hollow").count() == 9
    assert chart.locator(".saelab-interval").count() == 12  # no seed goes into activations
    lines = chart.locator(".saelab-line-thin")
    looks = lines.evaluate_all(
        "(all) => all.map((e) => [getComputedStyle(e).stroke, e.getAttribute('stroke-dasharray')])"
    )
    assert [color for color, _ in looks] == [grey] * 2 and len({dash for _, dash in looks}) == 2
    assert chart.locator(".saelab-line").count() == 8
    labels = ["activations", "codes", "PCA", "codes, frozen decoder", "codes, soft-frozen decoder"]
    assert page.get_by_role("group", name="Probe on").locator("label").all_text_contents() == labels
    assert page.locator(".saelab-probe-numbers tbody th").all_text_contents() == labels
    assert "means of 3 seeds" in (chart.locator(".saelab-help").text_content() or "")
    assert page.locator("caption").text_content() == "Layer 1Means of 3 seeds; 95 % intervals are of these means."
    assert numbers(page, "activations")[3] == "–"
    table = with_seeds.frame()
    table = table[(table.layer == 1) & (table.held_out == "stratified") & (table.representation == "codes")]
    for name, control in (("codes", "none"), ("codes, frozen_decoder", "frozen_decoder")):
        mean = table.test_accuracy[table.control == control].mean()
        assert float(numbers(page, name)[2]) == pytest.approx(mean, abs=0.000501)
    results = Axe().run(page, context=".saelab-probe-explorer")
    assert results.violations_count == 0, results.generate_report()


def test_a_controls_texts_can_be_read_and_name_their_seed(mount: Mount, with_seeds: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", with_seeds))
    page.get_by_role("radio", name="PCA").focus()
    page.keyboard.press("ArrowRight")
    drawn(page)
    assert saved(page) == {"representation": "codes, frozen_decoder"}
    with_seeds.representation = "codes, frozen_decoder"
    wrong = with_seeds.wrong_texts()
    assert listed(page) == list(wrong.index) and count(page) == f"{len(wrong)} of 80 wrong (seed 0)"
    assert page.locator('[data-chart="probe_accuracy"] .saelab-line-thin.saelab-chosen').count() == 1
    page.get_by_role("radio", name="activations").check()
    drawn(page)
    assert "seed" not in count(page)
    with_seeds.representation = "codes"


def test_a_page_of_its_own_shows_seeds_and_controls(page: Page, with_seeds: ProbeExplorer, tmp_path: Path) -> None:
    page.goto(with_seeds.save_html(tmp_path / "probes.html").as_uri())
    drawn(page)
    page.get_by_role("radio", name="5", exact=True).check()
    page.get_by_role("radio", name="codes, soft-frozen decoder").check()
    drawn(page)
    with_seeds.layer, with_seeds.representation = 5, "codes, soft_frozen_decoder"
    assert listed(page) == list(with_seeds.wrong_texts().index)
    with_seeds.layer, with_seeds.representation = 1, "codes"


def test_a_gate_threshold_shows_what_the_kernel_computes_for_this_place_alone(
    mount: Mount, explorer: ProbeExplorer
) -> None:
    page = drawn(mount("probe_explorer", explorer))
    before = count(page)
    page.locator('[data-knob="gate_threshold"]').focus()
    page.keyboard.press("ArrowRight")
    drawn(page)
    assert saved(page) == {"gate_threshold": 0.05}
    assert "(computing)" in (page.locator("caption").text_content() or "")
    explorer.gate_threshold = 0.05
    explorer.wait()
    live = [base64.b64encode(value).decode() for value in (explorer.live, explorer.live_wrong)]
    page.evaluate("([a, b]) => { model.set('live', dataView(a)); model.set('live_wrong', bytes(b)); }", live)
    drawn(page)
    assert page.locator("caption").text_content() == "Layer 1, gate threshold 0.05"
    found = explorer._live_numbers()
    columns = list(explorer.columns)
    for name, values in zip(("codes", "pca"), found, strict=True):
        assert numbers(page, name)[1] == f"{values[columns.index('train_accuracy')]:.3f}"
    assert listed(page) == list(explorer.wrong_texts().index)
    assert page.locator('[data-chart="n_active"] .saelab-mark-ghost').count() > 0
    page.get_by_role("radio", name="5", exact=True).check()
    drawn(page)
    assert "(computing)" in (page.locator("caption").text_content() or "")
    page.get_by_role("radio", name="1", exact=True).check()
    page.get_by_role("button", name="Reset Gate threshold").click()
    drawn(page)
    assert page.locator("caption").text_content() == "Layer 1" and count(page) == before
    assert page.locator(".saelab-mark-ghost").count() == 0


def test_buffers_that_colab_dropped_are_asked_for(mount: Mount, explorer: ProbeExplorer) -> None:
    state = {name: value for name, value in explorer.get_state().items() if name not in ("_esm", "_css", "layout")}
    page = drawn(mount("probe_explorer", {**state, "numbers": None, "wrong": None, "tested": None}))
    assert page.evaluate("() => model.sent[0].need.slice(0, 3)") == ["numbers", "wrong", "tested"]
    assert numbers(page, "codes") == ["–", "–", "–", "–"] and count(page) == "0 of 0 wrong"
    for name in ("numbers", "wrong", "tested"):
        text = base64.b64encode(getattr(explorer, name)).decode()
        page.evaluate("([name, text]) => model.set(name, bytes(text))", [name, text])
    drawn(page)
    assert listed(page) == list(explorer.wrong_texts().index)


def test_a_page_of_its_own_looks_up_all_but_the_gate_threshold(
    page: Page, explorer: ProbeExplorer, tmp_path: Path
) -> None:
    explorer.gate_threshold = 0.1
    explorer.wait()
    page.goto(explorer.save_html(tmp_path / "probes.html").as_uri())
    drawn(page)
    assert page.locator("caption").text_content() == "Layer 1, gate threshold 0.10"
    assert listed(page) == list(explorer.wrong_texts().index)
    assert page.locator('[data-knob="gate_threshold"]').is_disabled()
    assert page.get_by_text("Off: this page has no kernel").count() == 1
    page.get_by_role("radio", name="5", exact=True).check()
    drawn(page)
    explorer.layer, explorer.gate_threshold = 5, 0.0
    explorer.wait()
    assert page.locator("caption").text_content() == "Layer 5"
    assert listed(page) == list(explorer.wrong_texts().index)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violations(mount: Mount, explorer: ProbeExplorer, theme: str) -> None:
    page = drawn(mount("probe_explorer", explorer, theme=theme))
    results = Axe().run(page, context=".saelab-probe-explorer")
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("width", [340, 500, 700, 800, 1000])
@pytest.mark.parametrize("which", ["explorer", "with_seeds"])
def test_it_fits_into_every_width(mount: Mount, which: str, width: int, request: pytest.FixtureRequest) -> None:
    page = drawn(mount("probe_explorer", request.getfixturevalue(which), width=width))
    assert root(page).evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")
    table, charts = page.locator(".saelab-probe-numbers"), page.locator(".saelab-probe-charts")
    one, other = table.bounding_box(), charts.bounding_box()
    assert one is not None and other is not None
    assert one["x"] + one["width"] <= other["x"] or one["y"] + one["height"] <= other["y"]


def test_two_explorers_on_one_page_do_not_share_ids_or_radios(mount: Mount, explorer: ProbeExplorer) -> None:
    page = mount("probe_explorer", explorer)
    page.evaluate(
        """async () => {
            const el = document.getElementById('cell').appendChild(document.createElement('div'));
            await (await import('/widget.js?again')).default.render({ model: window.model, el });
        }"""
    )
    ids = page.locator("[id]").evaluate_all("(all) => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.get_by_role("radio", checked=True).count() == 6


def test_closing_it_leaves_nothing_behind(mount: Mount, explorer: ProbeExplorer) -> None:
    page = drawn(mount("probe_explorer", explorer))
    assert page.evaluate("() => model.listeners") > 0
    page.evaluate("() => { model.set('layer', 5); dispose(); }")
    assert page.evaluate("() => model.listeners") == 0
    assert page.locator("#cell *").count() == 0
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
