"""Measure how fast the widgets respond, in a real JupyterLab and a real Chromium: `make bench-widgets`.

A change is a key press on a focused slider. It counts as answered when the chart that it moves has changed and the next
frame has been painted. For sliders that the page answers itself, a second number comes from the browser: the longest
time from any event of the press to its next paint (Event Timing, in steps of 8 ms). Run it on an idle machine.
``--soak MINUTES`` measures memory instead, of a lab that trains while its sliders are dragged.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from playwright.sync_api import Locator, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from chromium import FLAGS, ensure_chromium, root_flags  # type: ignore[import-not-found]
from live_notebook import (  # type: ignore[import-not-found]
    drag,
    jupyterlab,
    open_notebook,
    run_all,
    run_code,
    step,
    until,
    write_notebook,
)

N = 40
"""Changes of a slider; the first of them are not counted, since they include one-time loading."""
SKIPPED = 5
LAB = "from saelab_widgets import TrainingLab\nlab = TrainingLab()\nlab"


class Slider(NamedTuple):
    """One row of the table."""

    widget: str
    """Class of the widget's root, without ``saelab-``."""
    knob: str
    chart: str
    """The chart that must change."""
    kind: str
    """One of `BOUNDS`."""
    shows: str = "value"
    """Part of the chart to watch: its ``"value"``, or ``"marks"`` if a step may leave the value unchanged."""
    ahead: int = 10
    """Steps to the right before as many to the left; the slider has room for them from where it starts."""


NOTEBOOKS: dict[str, tuple[list[str], list[Slider]]] = {
    "lab": ([LAB], [Slider("training-lab", "gate_threshold", "l0", "kernel")]),
    "gate": (
        ["from saelab_widgets import GateExplorer\nexplorer = GateExplorer()\nexplorer", "explorer.wait()"],
        [
            Slider("gate-explorer", "gate_threshold", "l0", "looked up"),
            Slider("gate-explorer", "natural", "gamma", "looked up"),
            Slider("gate-explorer", "feature_threshold_offset", "histogram", "looked up", shows="marks"),
        ],
    ),
    "shrinkage": (
        ["from saelab_widgets import ShrinkageExplorer\nShrinkageExplorer()"],
        [
            Slider("shrinkage-explorer", "rescale", "corrected", "looked up"),
            Slider("shrinkage-explorer", "shift", "corrected", "looked up"),
            Slider("shrinkage-explorer", "l1_coefficient", "corrected", "looked up", ahead=3),
            Slider("shrinkage-explorer", "noise", "corrected", "looked up", ahead=3),
        ],
    ),
    "probe": (
        ["from saelab_widgets import ProbeExplorer\nProbeExplorer()"],
        [Slider("probe-explorer", "gate_threshold", "probe_accuracy", "kernel", shows="marks")],
    ),
    "beside": (
        [LAB, "from saelab_widgets import GateExplorer\nexplorer = GateExplorer(sae=lab)\nlab.start()\nexplorer"],
        [
            Slider("training-lab", "gate_threshold", "l0", "kernel, a lab trains"),
            Slider("gate-explorer", "gate_threshold", "l0", "looked up, a lab trains"),
        ],
    ),
}
CORES = len(os.sched_getaffinity(0))
BOUNDS = {
    kind: milliseconds * (2 if CORES == 1 else 1)
    for kind, milliseconds in {
        "looked up": 33,
        "kernel": 100,
        "kernel, a lab trains": 150,
        "looked up, a lab trains": 33,
    }.items()
}
"""Limits on the 95th percentile, in milliseconds; doubled on a single core."""

# Resolves to the milliseconds from the key press to the end of the frame that shows the change: a message posted in an
# animation frame arrives when this has been painted.
ARM = """([root, chart, shows]) => {
    const element = root.querySelector(`[data-chart="${chart}"]`);
    window.answer = new Promise((resolve) => {
        let pressed = 0;
        addEventListener('keydown', (event) => { pressed = event.timeStamp; }, { capture: true, once: true });
        const isOther = (record) => record.type !== 'attributes'
            || record.target.getAttribute(record.attributeName) !== record.oldValue;
        const observer = new MutationObserver((records) => {
            if (!pressed || !records.some(isOther)) return;
            observer.disconnect();
            requestAnimationFrame(() => {
                const { port1, port2 } = new MessageChannel();
                port1.onmessage = () => resolve(performance.now() - pressed);
                port2.postMessage(null);
            });
        });
        const all = { attributes: true, attributeOldValue: true };
        observer.observe(element, shows === 'value'
            ? { ...all, attributeFilter: ['data-value'] }
            : { ...all, subtree: true, childList: true, attributeFilter: ['d', 'x1', 'cy'] });
        setTimeout(() => resolve(NaN), 5000);
    });
}"""
EVENT_TIMING = """() => {
    window.events = [];
    new PerformanceObserver((list) => events.push(...list.getEntries().map((one) => [one.startTime, one.duration])))
        .observe({ type: 'event', durationThreshold: 16 });
}"""


@contextmanager
def chromium_page() -> Iterator[Page]:
    """A page in a separate Chromium."""
    path = ensure_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *root_flags()])
        yield browser.new_page(viewport={"width": 1300, "height": 1000})
        browser.close()


def open_widgets(page: Page, address: str, home: Path, name: str, cells: list[str], widgets: set[str]) -> None:
    """A notebook with these cells, executed, with all its widgets on the screen."""
    write_notebook(home / "tutorials" / f"{name}.ipynb", cells)
    open_notebook(page, address, f"{name}.ipynb")
    run_all(page)
    for widget in widgets:
        page.locator(f".saelab-{widget}").first.wait_for(timeout=600_000)
    page.wait_for_timeout(3000)


class Latencies(NamedTuple):
    milliseconds: np.ndarray
    """Milliseconds of each counted change; NaN if nothing changed within five seconds."""
    events: np.ndarray
    """The browser's own measurement of each counted change, in milliseconds; those under 16 ms count as 16."""
    changed: bool
    """Whether the chart's picture differed after the first steps to the right."""


def latencies(page: Page, slider: Slider) -> Latencies:
    root = page.locator(f".saelab-{slider.widget}").first
    knob, chart = root.locator(f"input[data-knob={slider.knob}]"), root.locator(f"[data-chart={slider.chart}]")
    knob.scroll_into_view_if_needed()
    knob.focus()
    page.evaluate(EVENT_TIMING)
    before, changed = chart.screenshot(), False
    found, events = [], []
    for change in range(N):
        page.evaluate("() => { events.length = 0; }")
        page.evaluate(ARM, [root.element_handle(), slider.chart, slider.shows])
        page.keyboard.press("ArrowRight" if change // slider.ahead % 2 == 0 else "ArrowLeft")
        milliseconds = page.evaluate("() => window.answer")
        page.wait_for_timeout(150)  # entries of Event Timing come late
        if change >= SKIPPED:
            found.append(milliseconds)
            events.append(page.evaluate("() => Math.max(16, ...events.map(([, duration]) => duration))"))
        if change == slider.ahead - 1:
            changed = before != chart.screenshot()
    return Latencies(np.array(found), np.array(events), changed)


def report(slider: Slider, took: Latencies) -> str:
    milliseconds, bound = took.milliseconds, BOUNDS[slider.kind]
    lost = int(np.isnan(milliseconds).sum())
    median, p95 = np.nanmedian(milliseconds), np.nanpercentile(milliseconds, 95)
    verdict = "ok" if p95 <= bound and took.changed and not lost else "MISSED"
    notes = f"{'' if took.changed else ', picture unchanged'}{f', {lost} without an answer' if lost else ''}"
    own = f"; Event Timing {np.median(took.events):.0f}, {np.percentile(took.events, 95):.0f}"
    return (
        f"{slider.widget:20} {slider.knob:24} {slider.kind:24} {len(milliseconds):3} changes  median {median:5.1f} ms  "
        f"p95 {p95:5.1f} ms  (bound {bound} ms: {verdict}{notes}{own if slider.kind.startswith('looked up') else ''})"
    )


HEADLESS = """
import sys, time, torch
from saelab_widgets import TrainingLab
from saelab_widgets.background import one_thread_on_small_machines
lab = TrainingLab()
def rate():
    for _ in range(100): lab.trainer.step()
    start, n = time.perf_counter(), 500
    for _ in range(n): lab.trainer.step()
    return n / (time.perf_counter() - start)
both = rate()
with one_thread_on_small_machines(): one = rate()
print(one, both)
"""


def headless_rates() -> tuple[float, float]:
    """Steps per second of the lab's trainer without a page and without measuring, on one torch thread and on all."""
    run = subprocess.run([sys.executable, "-c", HEADLESS], capture_output=True, text=True, check=True)
    one, both = map(float, run.stdout.split())
    return one, both


# Counts chart updates, and records L0 over time.
WATCH = """(root) => {
    window.draws = () => Number(root.dataset.draws);
    window.seen = [];
    const chart = root.querySelector('[data-chart="l0"]');
    new MutationObserver(() => seen.push([performance.now(), Number(chart.dataset.value)]))
        .observe(chart, { attributes: true, attributeFilter: ['data-value'] });
}"""


def training(page: Page, lab: Locator) -> Iterator[str]:
    """Chart updates and steps per second of a training lab, and how soon L0 follows the L1 penalty."""
    page.evaluate(WATCH, lab.element_handle())
    toggle = lab.locator("[data-action=toggle]")
    toggle.click()
    until(page, lambda: step(lab) > 400, "400 steps", 120)
    rates, updates = [], []
    for _ in range(3):
        start, from_step, from_draws = time.monotonic(), step(lab), page.evaluate("() => draws()")
        page.wait_for_timeout(5000)
        seconds = time.monotonic() - start
        rates.append((step(lab) - from_step) / seconds)
        updates.append((page.evaluate("() => draws()") - from_draws) / seconds)
    rate, update = statistics.median(rates), statistics.median(updates)
    one, both = headless_rates_later(page, toggle)
    yield (
        f"training: {update:.1f} chart updates/s (bound 8), {rate:.0f} steps/s, {rate / one:.0%} of {one:.0f} headless "
        f"on one torch thread (bound 85 %), {rate / both:.0%} of {both:.0f} on all"
    )
    toggle.click()
    until(page, lambda: step(lab) > 2500, "2,500 steps", 300)
    for factor in ("4 -> 16", "16 -> 4"):
        yield f"L1 {factor}: {l0_response(page, float(factor.split()[-1]))}"
        page.wait_for_timeout(10_000)
    toggle.click()


def headless_rates_later(page: Page, toggle: Locator) -> tuple[float, float]:
    """`headless_rates` while the lab is paused, because two trainers would share the cores."""
    toggle.click()
    page.wait_for_timeout(500)
    return headless_rates()


def l0_response(page: Page, l1: float) -> str:
    """Seconds until L0 has gone 90 % of the way to where it is 20 s after the L1 penalty has jumped."""
    before = page.evaluate("() => seen.at(-1)[1]")
    page.evaluate("() => { seen.length = 0; }")
    start = page.evaluate("() => performance.now()")
    run_code(page, f"lab.l1_coefficient = {l1}")
    page.wait_for_timeout(20_000)
    seen = np.array(page.evaluate("() => seen"))
    after = float(np.median(seen[-20:, 1]))
    way = (seen[:, 1] - before) / (after - before)
    there = (seen[np.argmax(way >= 0.9), 0] - start) / 1000
    return f"L0 {before:.1f} -> {after:.1f}, 90 % of the way after {there:.1f} s (bound 3 s)"


def soak(page: Page, lab: Locator, minutes: float) -> Iterator[str]:
    """Memory of kernel and page, minute by minute, while the lab trains and its sliders are dragged."""
    kernel = psutil.Process(int(run_code(page, "import os; print(os.getpid())")))
    session = page.context.new_cdp_session(page)
    lab.locator("[data-action=toggle]").click()

    def state() -> str:
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"] / 2**20
        nodes = page.evaluate("() => document.querySelectorAll('*').length")
        resident = kernel.memory_info().rss / 2**20
        return f"kernel {resident:6.0f} MiB, page's heap {heap:5.1f} MiB, {nodes} elements, step {step(lab):,}"

    start = time.monotonic()
    page.wait_for_timeout(10_000)
    yield f"{0:4.1f} min: {state()}"
    next_report = 60.0
    while time.monotonic() - start < 60 * minutes:
        for knob in ("l1_coefficient", "aux_coefficient", "gate_threshold", "lr"):
            slider = lab.locator(f"input[data-knob={knob}]")
            slider.scroll_into_view_if_needed()
            for a, b in ((0.3, 0.8), (0.8, 0.4)):
                drag(page, slider, a, b, moves=40)
        if time.monotonic() - start >= next_report:
            yield f"{(time.monotonic() - start) / 60:4.1f} min: {state()}"
            next_report += 60


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="measure memory instead")
    parser.add_argument("--only", help="only the notebooks whose name contains this")
    arguments = parser.parse_args()
    say(f"{os.cpu_count()} cores, of which this process may use {CORES}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with jupyterlab(home) as address, chromium_page() as page:
            if arguments.soak:
                endless = LAB.replace("TrainingLab()", "TrainingLab(n_steps=10_000_000)")  # or it ends in minutes
                open_widgets(page, address, home, "soak", [endless], {"training-lab"})
                for line in soak(page, page.locator(".saelab-training-lab").first, arguments.soak):
                    say(line)
                return
            for name, (cells, sliders) in NOTEBOOKS.items():
                if arguments.only and arguments.only not in name:
                    continue
                open_widgets(page, address, home, name, cells, {slider.widget for slider in sliders})
                for slider in sliders:
                    say(report(slider, latencies(page, slider)))
                if name == "lab":
                    for line in training(page, page.locator(".saelab-training-lab").first):
                        say(line)


if __name__ == "__main__":
    main()
