"""The newcomer's path, in a real JupyterLab and a real browser: open, run all cells, start, drag, watch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

TUTORIALS = Path(__file__).parents[2] / "tutorials"
TOKEN = "test"
SECONDS = 1000  # Playwright counts milliseconds
PICTURES = os.environ.get("SAELAB_PICTURES")
"""A folder for screenshots to look at; none by default."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`saelab lab` in a folder of its own, as `make lab ARGS="--no-browser"` starts it; its address."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(TUTORIALS, home / "tutorials", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    log = home / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "saelab.cli", "lab", *options],
            cwd=home,
            env=os.environ | folders | {"IPYTHONDIR": str(home / "ipython")},
            stdout=stream,
            stderr=stream,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=1)
                break
            except (urllib.error.URLError, TimeoutError):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def picture(what: Page | Locator, name: str) -> None:
    if PICTURES:
        what.screenshot(path=Path(PICTURES) / f"{name}.png")


def value(lab: Locator, chart: str) -> float:
    return float(lab.locator(f"[data-chart={chart}]").get_attribute("data-value") or "nan")


def step(lab: Locator) -> int:
    return int(re.sub(r"\D", "", lab.locator("[data-show=step]").inner_text()))


def until(page: Page, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"within {seconds:g} s this did not happen: {what}"
        page.wait_for_timeout(50)


def drag(page: Page, slider: Locator, start: float, end: float) -> None:
    """By mouse, from one share of the track to another, in 25 moves."""
    box = slider.bounding_box()
    assert box is not None
    thumb = 8

    def x(share: float) -> float:
        return box["x"] + thumb + share * (box["width"] - 2 * thumb)

    y = box["y"] + box["height"] / 2
    page.mouse.move(x(start), y)
    page.mouse.down()
    page.mouse.move(x(end), y, steps=25)
    page.mouse.up()


def open_lab(page: Page, server: str) -> Locator:
    """Open JupyterLab as it greets a newcomer, run all cells, and return the lab of section 3."""
    page.goto(f"{server}/?token={TOKEN}")  # where `saelab lab` points a browser
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.context?.path === '00_start_here.ipynb' && "
        "window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.connectionStatus === 'connected'",
        timeout=90 * SECONDS,
    )
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    lab = page.locator(".saelab-training-lab").first
    lab.wait_for(timeout=120 * SECONDS)
    lab.scroll_into_view_if_needed()
    return lab


def test_newcomer_runs_all_cells_starts_training_drags_l1_and_reads_l0_falling(page: Page, server: str) -> None:
    lab = open_lab(page, server)
    toggle, slider = lab.locator("[data-action=toggle]"), lab.locator("input[data-knob=l1_coefficient]")
    # The cells below the lab use the processor too: wait for the last one.
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
    expect(lab.locator("[role=status]")).to_contain_text("Paused")
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
    expect(lab.locator("input[data-knob=aux_coefficient]")).to_be_disabled()
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
