"""The newcomer's path, in a real JupyterLab and a real browser: open, run all cells, start, drag, watch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parent))
from live_notebook import (  # type: ignore[import-not-found]
    SECONDS,
    TOKEN,
    drag,
    jupyterlab,
    run_all,
    step,
    until,
    value,
    wait_for_kernel,
)

PICTURES = os.environ.get("SAELAB_PICTURES")
"""A folder in which to save screenshots; none by default."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `saelab lab` in a separate folder, started like `make lab ARGS="--no-browser"`."""
    with jupyterlab(tmp_path_factory.mktemp("home")) as address:
        yield address


def picture(what: Page | Locator, name: str) -> None:
    if PICTURES:
        what.screenshot(path=Path(PICTURES) / f"{name}.png")


def open_lab(page: Page, server: str) -> Locator:
    """Open JupyterLab as a newcomer first sees it, run all cells, and return the lab of section 3."""
    page.goto(f"{server}/?token={TOKEN}")  # where `saelab lab` points a browser
    wait_for_kernel(page, "00_start_here.ipynb")
    run_all(page)
    lab = page.locator(".saelab-training-lab").first
    lab.wait_for(timeout=120 * SECONDS)
    lab.scroll_into_view_if_needed()
    return lab


def test_newcomer_runs_all_cells_starts_training_drags_l1_and_reads_l0_falling(page: Page, server: str) -> None:
    lab = open_lab(page, server)
    toggle, slider = lab.locator("[data-action=toggle]"), lab.locator("input[data-knob=l1_coefficient]")
    # The cells below the lab compete for the processor, so wait for the last one.
    output = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
    expect(output).to_contain_text("A price four times as high", timeout=180 * SECONDS)
    expect(page.get_by_role("alert").filter(has_text="Jupyter news")).to_have_count(0)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    lab.scroll_into_view_if_needed()
    picture(page, "before_start")

    drag(page, slider, 0.67, 0)
    toggle.click()
    expect(toggle).to_have_text("Pause")
    until(page, lambda: step(lab) > 300, "300 steps")
    at_low_penalty = value(lab, "l0")

    drag(page, slider, 0, 1)
    moved_at = step(lab)
    until(page, lambda: step(lab) > moved_at + 100, "100 more steps")
    at_high_penalty = value(lab, "l0")
    picture(page, "lab")
    assert at_high_penalty < at_low_penalty / 4
    until(page, lambda: 0.4 < value(lab, "probe_accuracy") < 1, "a probe")

    drag(page, slider, 1, 0)
    moved_at = step(lab)
    until(page, lambda: step(lab) > moved_at + 100, "100 more steps")
    assert value(lab, "l0") > 2 * at_high_penalty

    toggle.click()
    expect(lab.locator("[role=status]:not([data-show])")).to_contain_text("Paused")
    paused_at = step(lab)
    page.wait_for_timeout(300)
    assert step(lab) == paused_at
    before = value(lab, "l0")
    threshold = lab.locator("input[data-knob=gate_threshold]")
    threshold.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    until(page, lambda: value(lab, "l0") < before, "fewer features on, while paused, by keyboard")
    assert step(lab) == paused_at

    lab.get_by_label("Standard").check()
    until(page, lambda: step(lab) == 0, "a fresh start with the other architecture")
    expect(lab.locator("input[data-knob=aux_coefficient]")).to_be_hidden()
    picture(page, "standard")


def test_running_the_cell_again_in_the_dark_theme_leaves_one_lab_training(page: Page, server: str) -> None:
    lab = open_lab(page, server)
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    lab.locator("[data-action=toggle]").click()
    until(page, lambda: step(lab) > 250, "training")
    picture(page, "dark")
    cell = page.locator(".jp-CodeCell", has_text="lab = TrainingLab()")
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    until(page, lambda: step(lab) == 200, "a fresh lab in the same place", 120)
    assert lab.locator("[data-action=toggle]").inner_text() == "Start"
    lab.locator("[data-action=toggle]").click()
    until(page, lambda: step(lab) > 220, "the new lab trains")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
