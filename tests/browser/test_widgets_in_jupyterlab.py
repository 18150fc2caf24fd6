"""Every widget in a real JupyterLab and a real browser: each control by mouse and by keyboard, in both themes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parent))
from live_notebook import (  # type: ignore[import-not-found]
    command,
    drag,
    jupyterlab,
    open_notebook,
    run_all,
    run_code,
    step,
    until,
    value,
    write_notebook,
)

PICTURES = os.environ.get("SAELAB_PICTURES")
"""A folder in which to save screenshots; none by default."""

# Small, so that everything is ready within seconds: these tests are about the page.
MATERIALS = """
import torch, saelab, saelab_widgets as sw
from functools import partial
torch.set_num_threads(1)
HOOK = "blocks.1.hook_resid_post"
model = saelab.load_language_model()
store = saelab.harvest(model, HOOK, saelab.load_text()[:60], n_tokens=4096, progress=False)
data = saelab.sentiment_set(model, HOOK, scale=store.scale, progress=False)
config = saelab.TrainingConfig(n_steps=60, batch_size=512)
makers = [partial(saelab.GatedSAE, 256, 128), partial(saelab.StandardSAE, 256, 128)]
table = saelab.sweep(makers, store, [2, 6], config=config, folder="sweep", progress=False)
saes = {1: {l1: saelab.load(path) for l1, path in zip([2, 6], table.path)}}
"""
WIDGETS = {
    "training-lab": "lab = sw.TrainingLab(store, sentiment=data.split(), d_sae=128, warm_up_steps=20)\nlab",
    "gate-explorer": "gate = sw.GateExplorer(sae=lab)\ngate",
    "shrinkage-explorer": "shrinkage = sw.ShrinkageExplorer(l1_coefficients=(1, 4), noises=(0, 0.2))\nshrinkage",
    "pareto": "pareto = sw.ParetoExplorer(table)\npareto",
    "probe-explorer": "probes = sw.ProbeExplorer(saes, {1: data})\nprobes",
    "feature-browser": "sentiment = data.split()\n"
    "browser = sw.FeatureBrowser(pareto, store, model, sentiment=sentiment, n_contexts=4)\nbrowser",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with jupyterlab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def notebook(browser: Browser, server: str, folder: Path) -> Iterator[Page]:
    """A notebook with all six widgets; an error in its console fails the last test that uses it."""
    page = browser.new_context(viewport={"width": 1400, "height": 1100}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    write_notebook(folder / "tutorials" / "widgets.ipynb", [MATERIALS, *WIDGETS.values()])
    open_notebook(page, server, "widgets.ipynb")
    run_all(page)
    for name in WIDGETS:
        page.locator(f".saelab-{name}").first.wait_for(timeout=120_000)
    yield page
    page.context.close()
    assert not errors, "The page reported errors:\n" + "\n".join(errors)


def widget(page: Page, name: str) -> Locator:
    root = page.locator(f".saelab-{name}").first
    root.scroll_into_view_if_needed()
    return root


def look(root: Locator, name: str) -> None:
    if PICTURES:
        root.screenshot(path=Path(PICTURES) / f"{name}.png")


def fine(root: Locator) -> None:
    """Assert that the widget reports no error."""
    assert root.locator("[role=alert]").first.text_content() == ""


def draws(root: Locator) -> int:
    return int(root.get_attribute("data-draws") or 0)


@pytest.mark.parametrize("name", WIDGETS)
def test_every_control_answers_the_mouse(notebook: Page, name: str) -> None:
    root = widget(notebook, name)
    for slider in root.locator("input[type=range]:enabled:visible").all():
        before = draws(root)
        slider.scroll_into_view_if_needed()
        drag(notebook, slider, 0.5, 0.9)
        drag(notebook, slider, 0.9, 0.4, moves=3)
        until(notebook, lambda at=before: draws(root) > at, f"{name} is drawn anew")
    for box in root.locator("input[type=checkbox]:enabled").all():
        box.click()
        box.click()
    radios = root.locator("input[type=radio]:enabled").all()
    at_first = [radio for radio in radios if radio.is_checked()]
    for radio in [*radios, *at_first]:  # back to the first: the other widgets do not take every architecture
        radio.check()
        expect(radio).to_be_checked()
    for chosen in root.locator("select:enabled").all():
        for option in chosen.locator("option").all():
            chosen.select_option(option.get_attribute("value"))
    for index in range(root.locator("button").count()):
        button = root.locator("button").nth(index)
        if button.is_visible() and button.is_enabled():
            button.click()
    notebook.wait_for_timeout(500)
    fine(root)
    look(root, f"{name}-mouse")


# Key presses for each kind of control that leave its value nearly unchanged in the end.
KEYS = {
    "range": ("ArrowRight", "ArrowLeft"),
    "checkbox": ("Space", "Space"),
    "radio": ("ArrowRight", "ArrowLeft"),
    "select-one": ("ArrowDown", "ArrowUp"),
    "number": ("ArrowUp", "ArrowDown"),
    "submit": ("Enter",),
    "button": ("Enter",),
}
FOCUSED = """(root) => {
    const e = document.activeElement;
    if (!root.contains(e)) return null;
    const style = getComputedStyle(e);
    const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1.5;
    const name = e.getAttribute('aria-label') ?? e.outerHTML.slice(0, 90);
    return { type: e.type ?? e.getAttribute('role'), ring, name };
}"""


@pytest.mark.parametrize("name", WIDGETS)
def test_every_control_answers_the_keyboard_alone_in_the_dark_theme(notebook: Page, name: str) -> None:
    command(notebook, "apputils:change-theme", {"theme": "JupyterLab Dark"})
    notebook.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    root = widget(notebook, name)
    root.evaluate("(e) => { e.tabIndex = -1; e.focus(); e.removeAttribute('tabindex'); }")
    reached = 0
    for _ in range(300):
        notebook.keyboard.press("Tab")
        focused = notebook.evaluate(FOCUSED, root.element_handle())
        if focused is None:
            break
        reached += 1
        assert focused["ring"], f"no focus ring on {focused['name']}"
        for key in KEYS.get(focused["type"], ()):
            notebook.keyboard.press(key)
    else:
        pytest.fail(f"the Tab key does not leave {name}")
    assert reached >= 3
    notebook.wait_for_timeout(300)
    fine(root)
    assert Axe().run(notebook, context=f".saelab-{name}").violations_count == 0
    look(root, f"{name}-dark")


@pytest.mark.parametrize("name", WIDGETS)
def test_axe_finds_no_violations_in_the_light_theme(notebook: Page, name: str) -> None:
    command(notebook, "apputils:change-theme", {"theme": "JupyterLab Light"})
    notebook.wait_for_function("() => document.body.dataset.jpThemeLight === 'true'")
    root = widget(notebook, name)
    results = Axe().run(notebook, context=f".saelab-{name}")
    assert results.violations_count == 0, results.generate_report()
    look(root, f"{name}-light")


def test_a_slider_and_a_cell_do_the_same(notebook: Page) -> None:
    root = widget(notebook, "gate-explorer")
    run_code(notebook, "gate.gate_threshold = 1.0")
    slider = root.locator("input[data-knob=gate_threshold]")
    expect(slider).to_have_value("1")
    slider.focus()
    notebook.keyboard.press("ArrowLeft")
    until(notebook, lambda: run_code(notebook, "print(gate.gate_threshold)").strip() == "0.95", "the trait follows")


def test_choosing_a_mark_drives_the_widget_that_follows(notebook: Page) -> None:
    run_code(notebook, "pareto.chosen = 3\nbrowser.wait(60)")
    assert run_code(notebook, "print(browser.sae.architecture)").strip() == "standard"
    run_code(notebook, "pareto.chosen = 0\nbrowser.wait(60)")
    assert run_code(notebook, "print(browser.sae.architecture)").strip() == "gated"


def test_the_gate_explorer_follows_a_lab_that_trains(notebook: Page) -> None:
    lab, gate = widget(notebook, "training-lab"), notebook.locator(".saelab-gate-explorer").first
    run_code(notebook, "lab.reset(); lab.l1_coefficient = 16.0; gate.gate_threshold = 0.0; lab.start()")
    until(notebook, lambda: step(lab) > 250, "training")
    run_code(notebook, "lab.pause()")
    until(notebook, lambda: abs(value(gate, "l0") - value(lab, "l0")) < 0.3 + 0.05 * value(lab, "l0"), "the same L0")


def test_the_gate_explorer_says_that_it_cannot_show_a_topk_sae_and_goes_on_with_the_next(notebook: Page) -> None:
    alert = widget(notebook, "gate-explorer").locator("[role=alert]").first
    run_code(notebook, "lab.architecture = 'topk'")
    expect(alert).to_contain_text("has no gate threshold", timeout=30_000)
    run_code(notebook, "lab.architecture = 'gated'")
    expect(alert).to_have_text("", timeout=30_000)


COUNT = """
import threading
from ipywidgets.widgets.widget import _instances
from saelab_widgets.instrument import Instrument
loops = sum(thread.name == "saelab-background-loop" for thread in threading.enumerate())
widgets = sum(isinstance(one, Instrument) and one.comm is not None for one in _instances.values())
print(loops, widgets)
"""


def test_interrupting_running_again_closing_and_restarting_leave_one_lab_that_works(
    page: Page, server: str, folder: Path
) -> None:
    cell = (
        "import torch\nfrom saelab_widgets import TrainingLab\n"
        "lab = TrainingLab(torch.randn(4096, 32), d_sae=64, warm_up_steps=5)\nlab"
    )
    write_notebook(folder / "tutorials" / "again.ipynb", [cell, "lab"])
    open_notebook(page, server, "again.ipynb")
    lab = page.locator(".saelab-training-lab").first
    first = page.locator(".jp-CodeCell").first

    def run_first_cell() -> None:
        first.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")

    def train() -> None:
        toggle = lab.locator("[data-action=toggle]")
        expect(toggle).to_have_text("Start", timeout=60_000)
        toggle.click()
        at = step(lab)
        until(page, lambda: step(lab) > at + 20, "training")

    for _ in range(10):
        run_first_cell()
        page.wait_for_function(
            "() => document.querySelector('.jp-CodeCell .jp-InputPrompt').textContent.match(/\\d/)", timeout=60_000
        )
        lab.wait_for(timeout=60_000)
        train()
    assert run_code(page, COUNT).split() == ["1", "1"]

    command(page, "notebook:interrupt-kernel")
    at = step(lab)
    until(page, lambda: step(lab) > at + 20, "an interrupt of the kernel is no pause")

    command(page, "notebook:clear-all-cell-outputs")  # its view is closed, and it continues training
    page.wait_for_function("() => document.querySelectorAll('.saelab-training-lab').length === 0")
    page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    lab.wait_for()
    at = step(lab)
    until(page, lambda: step(lab) > at + 20, "another view shows it")
    assert run_code(page, COUNT).split() == ["1", "1"]

    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.reconnect()")
    at = step(lab)
    until(page, lambda: step(lab) > at + 20, "it goes on after the page has connected again")

    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    run_first_cell()
    until(page, lambda: lab.count() > 0 and step(lab) == 5, "a fresh lab", 90)
    train()
    assert run_code(page, COUNT).split() == ["1", "1"]
    run_code(page, "lab.pause()")


def test_two_notebooks_with_a_lab_each_both_answer(browser: Browser, server: str, folder: Path) -> None:
    pages = []
    for name in ("one", "two"):
        cell = "import torch, saelab_widgets\nlab = saelab_widgets.TrainingLab(torch.randn(4096, 32), d_sae=64)\nlab"
        write_notebook(folder / "tutorials" / f"{name}.ipynb", [cell])
        page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        open_notebook(page, server, f"{name}.ipynb")
        run_all(page)
        page.locator(".saelab-training-lab [data-action=toggle]").click(timeout=60_000)
        pages.append(page)
    for page in pages:
        lab = page.locator(".saelab-training-lab")
        at = step(lab)
        until(page, lambda lab=lab, at=at: step(lab) > at + 50, "both train")
        before = value(lab, "l0")
        lab.locator("input[data-knob=l1_coefficient]").focus()
        page.keyboard.press("End")
        until(page, lambda lab=lab, before=before: value(lab, "l0") < before, "L0 answers the penalty")
    for page in pages:
        page.context.close()
