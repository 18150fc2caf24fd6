"""The front end of GateExplorer, in a real browser on a real widget's state: no Jupyter, no kernel."""

# Typographic signs are what the page shows.
# ruff: noqa: RUF001

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect
from saelab_widgets import GateExplorer

from saelab import GatedSAE, evaluate

Mount = Callable[..., Page]
CHARTS = ("l0", "gamma", "fvu")


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def explorer(inputs: torch.Tensor) -> GateExplorer:
    sae = GatedSAE(16, 40)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        density = (sae.encode(inputs) > 0).double().mean(dim=0)
    explorer = GateExplorer(sae, inputs, feature=int(density.argsort()[len(density) // 2]))  # has neighbours
    explorer.wait(60)
    return explorer


def root(page: Page) -> Locator:
    return page.locator(".saelab-gate-explorer")


def shown(page: Page, chart: str) -> float:
    return float(page.locator(f'[data-chart="{chart}"]').get_attribute("data-value") or "nan")


def trait(page: Page, name: str) -> Any:
    return page.evaluate("(name) => model.get(name)", name)


def mounted(mount: Mount, explorer: GateExplorer, **options: Any) -> Page:
    page = mount("gate_explorer", explorer, **options)
    page.wait_for_selector('[data-chart="l0"] path.saelab-line[d^=M]')
    return page


def drawn(page: Page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_whole_saes_numbers_are_those_of_the_library_at_every_threshold(
    mount: Mount, explorer: GateExplorer, inputs: torch.Tensor
) -> None:
    page = mounted(mount, explorer)
    slider = page.locator("input[data-knob=gate_threshold]")
    slider.focus()
    for key, n in (("ArrowRight", 7), ("ArrowLeft", 12)):
        for _ in range(n):
            page.keyboard.press(key)
        drawn(page)
        sae = explorer.apply()
        sae.gate_threshold = trait(page, "gate_threshold")
        metrics = evaluate(sae, inputs)
        for chart in CHARTS:
            assert shown(page, chart) == pytest.approx(getattr(metrics, chart), rel=1e-5)


def test_natural_b_mag_moves_the_curves_and_leaves_the_learned_ones_in_grey(
    mount: Mount, explorer: GateExplorer, inputs: torch.Tensor
) -> None:
    page = mounted(mount, explorer)
    slider = page.locator("input[data-knob=natural]")
    slider.focus()
    page.keyboard.press("End")
    drawn(page)
    sae = explorer.sae
    assert trait(page, "natural") == 1 and isinstance(sae, GatedSAE)
    metrics = evaluate(sae.with_natural_b_mag(), inputs)
    for chart in CHARTS:
        assert shown(page, chart) == pytest.approx(getattr(metrics, chart), rel=1e-5)
        assert page.locator(f'[data-chart="{chart}"] path.saelab-ghost[d^=M]').count() == 1
    page.keyboard.press("Home")
    drawn(page)
    assert page.locator('[data-chart="l0"] path.saelab-ghost').count() == 0


def test_a_threshold_of_the_features_own_changes_its_numbers_and_tells_what_it_does_to_all(
    mount: Mount, explorer: GateExplorer, inputs: torch.Tensor
) -> None:
    page = mounted(mount, explorer)
    before = shown(page, "histogram")
    page.locator("input[data-knob=feature_threshold_offset]").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    drawn(page)
    offset = trait(page, "feature_threshold_offset")
    assert offset > 0 and shown(page, "histogram") < before
    feature = explorer.feature
    with torch.no_grad():
        sae = explorer.sae
        on = (sae.gate(sae.project(inputs))[:, feature] > offset) & (sae.encode(inputs)[:, feature] > 0)
    assert shown(page, "histogram") == pytest.approx(100 * on.double().mean().item(), abs=0.01)
    assert "changes the whole SAE: L0 −" in page.locator("[data-show=effect]").inner_text()


def test_dragging_the_threshold_by_mouse_moves_the_line_the_colours_and_the_numbers(
    mount: Mount, explorer: GateExplorer
) -> None:
    page = mounted(mount, explorer)
    before = shown(page, "l0")
    box = page.locator("input[data-knob=gate_threshold]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    drawn(page)
    assert trait(page, "gate_threshold") == pytest.approx(2, abs=0.15)
    assert shown(page, "l0") < before
    assert page.locator(".saelab-gate-label").text_content() == f"θ {trait(page, 'gate_threshold'):.2f}"


def test_a_threshold_between_two_steps_is_exact_as_soon_as_the_kernel_has_told_of_it(
    mount: Mount, inputs: torch.Tensor, explorer: GateExplorer
) -> None:
    exact = GateExplorer(explorer.sae, inputs)
    exact.gate_threshold, exact.natural, exact.feature_threshold_offset = 0.333, 0.47, -0.25
    exact.wait(60)
    page = mounted(mount, exact)
    drawn(page)
    metrics = evaluate(exact.apply(), inputs)
    for chart in CHARTS:
        assert shown(page, chart) == pytest.approx(getattr(metrics, chart), rel=1e-5)
    exact.close()


def test_buffers_that_colab_dropped_are_asked_for_and_read_as_bytes(mount: Mount, explorer: GateExplorer) -> None:
    state = {name: value for name, value in explorer.get_state().items() if name not in ("_esm", "_css", "layout")}
    page = mount("gate_explorer", {**state, "rows": None, "shipped": None, "curves": None})
    drawn(page)
    assert page.evaluate("() => model.sent[0]") == {"kind": "hello", "need": ["curves", "rows", "shipped"], "id": 1}
    for name in ("rows", "curves"):
        data = list(getattr(explorer, name))
        page.evaluate("([name, data]) => model.set(name, Uint8Array.from(data))", [name, data])
    drawn(page)
    assert shown(page, "l0") == pytest.approx(evaluate(explorer.sae, explorer.test_x).l0, rel=1e-5)
    assert page.locator(".saelab-gate-on[d^=M]").count() == 1


def test_with_no_kernel_a_feature_that_the_page_lacks_says_so_and_the_buttons_pass_over_it(
    mount: Mount, explorer: GateExplorer
) -> None:
    state = {name: value for name, value in explorer.get_state().items() if name not in ("_esm", "_css", "layout")}
    page = mount("gate_explorer", {**state, "kernel": False})
    had = {look["feature"] for look in explorer.shipped_of}
    missing = next(feature for feature in range(40) if feature not in had)
    page.get_by_label("Feature", exact=True).fill(str(missing))
    page.get_by_label("Feature", exact=True).press("Enter")
    drawn(page)
    assert "does not have that feature" in page.locator("[data-show=effect]").inner_text()
    assert page.locator('[data-chart="histogram"]').get_attribute("data-value") == ""
    button = page.get_by_role("button", name="Denser")
    seen = []
    while button.get_attribute("aria-disabled") == "false":
        button.click()
        seen.append(trait(page, "feature"))
    assert seen and set(seen) <= had


def test_features_are_picked_by_number_and_by_neighbour_in_density(mount: Mount, explorer: GateExplorer) -> None:
    page = mounted(mount, explorer)
    first = trait(page, "feature")
    page.get_by_role("button", name="Rarer").click()
    rarer = trait(page, "feature")
    density = dict(enumerate((explorer.sae.encode(explorer.test_x) > 0).double().mean(dim=0).tolist()))
    assert rarer != first and density[rarer] <= density[first]
    page.get_by_role("button", name="Denser").focus()
    page.keyboard.press("Enter")
    assert trait(page, "feature") == first
    page.get_by_role("spinbutton", name="Feature").fill("3")
    page.get_by_role("spinbutton", name="Feature").press("Enter")
    assert trait(page, "feature") == 3


def test_resetting_a_knob_goes_back_to_where_it_was(mount: Mount, explorer: GateExplorer) -> None:
    page = mounted(mount, explorer)
    before = shown(page, "l0")
    page.evaluate("() => model.set('gate_threshold', 1.5)")
    drawn(page)
    assert shown(page, "l0") < before
    page.get_by_role("button", name="Reset Gate threshold").click()
    drawn(page)
    assert shown(page, "l0") == before


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violations(mount: Mount, explorer: GateExplorer, theme: str) -> None:
    page = mounted(mount, explorer, theme=theme)
    results = Axe().run(page, context=".saelab-gate-explorer")
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("width", [1000, 620, 340])
def test_nothing_sticks_out_on_a_narrow_page(mount: Mount, explorer: GateExplorer, width: int) -> None:
    page = mounted(mount, explorer, width=width)
    assert root(page).evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")


def test_text_from_python_is_never_markup(mount: Mount, explorer: GateExplorer) -> None:
    page = mounted(mount, explorer)
    attack = "<img src=x onerror=\"document.title = 'broken'\"> \N{SPARKLES} שלום"
    page.evaluate("(text) => { model.set('status', text); model.set('error', text) }", attack)
    assert page.get_by_role("alert").text_content() == attack
    assert page.locator("img").count() == 0


def test_every_control_keeps_its_keys_from_the_notebook(mount: Mount, explorer: GateExplorer) -> None:
    page = mounted(mount, explorer)
    for control in page.locator("button, input, select").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"


def test_closing_the_widget_leaves_nothing_behind(mount: Mount, explorer: GateExplorer) -> None:
    page = mounted(mount, explorer)
    page.evaluate("() => dispose()")
    assert page.evaluate("() => model.listeners") == 0
    assert page.locator("#cell *").count() == 0


def test_a_saved_page_answers_every_threshold_with_no_kernel(
    page: Page, explorer: GateExplorer, inputs: torch.Tensor, tmp_path: Path
) -> None:
    page.goto(explorer.save_html(tmp_path / "gate.html").as_uri())
    page.wait_for_selector('[data-chart="l0"] path.saelab-line[d^=M]')
    slider = page.locator("input[data-knob=gate_threshold]")
    expect(slider).to_be_enabled()
    slider.focus()
    page.keyboard.press("End")
    drawn(page)
    sae = explorer.apply()
    sae.gate_threshold = 4.0
    assert shown(page, "l0") == pytest.approx(evaluate(sae, inputs).l0, rel=1e-5)
    page.get_by_role("button", name="Rarer").click()
    drawn(page)
    assert page.locator("[data-show=effect]").inner_text() != ""
