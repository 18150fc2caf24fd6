"""A separate JupyterLab for tests and benchmarks, started by `saelab lab`, and control of a notebook in it."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page

TUTORIALS = Path(__file__).parents[2] / "tutorials"
TOKEN = "test"
SECONDS = 1000  # Playwright counts milliseconds
JUPYTERLABS_OWN = ("Canceled future for create_subshell_request", "Canceled future for debug_request")
"""What JupyterLab reports when a kernel is restarted."""


@contextmanager
def jupyterlab(home: Path, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run `saelab lab` on a copy of the tutorials, ``home/tutorials``, with separate settings; yields its address."""
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
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "saelab", "lab", *options],
            cwd=home,
            env=os.environ | folders | {"IPYTHONDIR": str(home / "ipython")} | (environment or {}),
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
                assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def errors_of(page: Page) -> list[str]:
    """A list that collects all errors in the page's console and scripts from now on."""
    errors: list[str] = []

    def note(error: str) -> None:
        if not any(own in error for own in JUPYTERLABS_OWN):
            errors.append(error)

    page.on("pageerror", lambda error: note(f"uncaught: {error}"))
    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    return errors


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def open_notebook(page: Page, address: str, path: str) -> None:
    """Open a notebook in a fresh workspace, and wait for its kernel."""
    page.goto(f"{address}/lab/tree/{path}?token={TOKEN}&reset")
    wait_for_kernel(page, path)


def wait_for_kernel(page: Page, path: str) -> None:
    """Wait until the notebook in front is ``path`` and has a kernel."""
    page.wait_for_function(
        "(path) => window.jupyterapp?.shell?.currentWidget?.context?.path === path && "
        "window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.connectionStatus === 'connected'",
        arg=path,
        timeout=90 * SECONDS,
    )


def command(page: Page, name: str, arguments: dict[str, object] | None = None) -> None:
    """Run one of JupyterLab's commands, without waiting for what it starts."""
    page.evaluate("([name, args]) => void window.jupyterapp.commands.execute(name, args)", [name, arguments or {}])


def run_all(page: Page) -> None:
    """Run all cells."""
    command(page, "notebook:run-all-cells")


def restart_and_run_all(page: Page, seconds: float) -> None:
    """*Run → Restart Kernel and Run All Cells*, confirming its dialog; returns when the last cell has run."""
    run_code(page, "")  # otherwise the page's first requests to the kernel would go unanswered
    page.evaluate(
        "() => { window.ran = 'no'; window.jupyterapp.commands.execute('notebook:restart-run-all')"
        ".then(() => { window.ran = 'yes'; }, (error) => { window.ran = String(error); }); }"
    )
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_function("() => window.ran !== 'no'", timeout=seconds * SECONDS)
    assert page.evaluate("() => window.ran") == "yes"


def run_code(page: Page, code: str) -> str:
    """Run ``code`` in the notebook's kernel, outside of its cells, and return what it prints."""
    printed: str = page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({ code, store_history: false });
            let printed = '';
            future.onIOPub = ({ header, content }) => {
                if (header.msg_type === 'stream' && content.name === 'stdout') printed += content.text;
                if (header.msg_type === 'error') printed += content.traceback.join('\\n');
            };
            await future.done;
            return printed;
        }""",
        code,
    )
    return printed


def until(page: Page, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until ``condition`` holds; fail with ``what`` if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"within {seconds:g} s this did not happen: {what}"
        page.wait_for_timeout(50)


def drag(page: Page, slider: Locator, start: float, end: float, moves: int = 25) -> None:
    """Drag with the mouse from one fraction of the track to another."""
    box = slider.bounding_box()
    assert box is not None
    thumb = 8

    def x(share: float) -> float:
        return box["x"] + thumb + share * (box["width"] - 2 * thumb)

    y = box["y"] + box["height"] / 2
    page.mouse.move(x(start), y)
    page.mouse.down()
    page.mouse.move(x(end), y, steps=moves)
    page.mouse.up()


def value(widget: Locator, chart: str) -> float:
    """The number beside the label of a chart."""
    return float(widget.locator(f"[data-chart={chart}]").first.get_attribute("data-value") or "nan")


def step(lab: Locator) -> int:
    """Number of steps that a `TrainingLab` shows as trained."""
    return int(re.sub(r"\D", "", lab.locator("[data-show=step]").inner_text()))
