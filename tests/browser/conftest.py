"""Fixtures of the browser tests: a real Chromium, and a page that mounts a built widget on a mock model."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from saelab_widgets.instrument import NOT_THE_WIDGETS_OWN, Instrument
from saelab_widgets.quantities import palette

sys.path.insert(0, str(Path(__file__).parent))
from chromium import FLAGS, find_chromium, root_flags  # type: ignore[import-not-found]
from live_notebook import errors_of  # type: ignore[import-not-found]

STATIC = Path(__file__).parents[2] / "widgets" / "saelab_widgets" / "static"
# A mock of the model that anywidget passes to a widget, which records what the widget does with it.
MOCK_MODEL = """
class MockModel {
  constructor(state) { this.state = state; this.handlers = {}; this.pending = {}; this.saved = []; this.sent = []; }
  get(name) { return this.state[name]; }
  set(name, value) {
    if (Object.is(this.state[name], value)) return;
    this.state[name] = value;
    this.pending[name] = value;
    for (const handler of [...(this.handlers['change:' + name] ?? [])]) handler();
  }
  save_changes() { this.saved.push(this.pending); this.pending = {}; }
  send(content) { this.sent.push(content); }
  // What the kernel sends: an answer to a message, by default to the last one.
  answer(id = this.sent.at(-1)?.id) {
    for (const handler of this.handlers['msg:custom'] ?? []) handler({ kind: 'done', id });
  }
  on(event, handler) { (this.handlers[event] ??= []).push(handler); }
  off(event, handler) { this.handlers[event] = (this.handlers[event] ?? []).filter((other) => other !== handler); }
  get listeners() { return Object.values(this.handlers).flat().length; }
}
window.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
window.dataView = (text) => new DataView(window.bytes(text).buffer);
"""

# The variables and attributes that JupyterLab 4.6 sets in its two themes.
THEMES = {
    "light": (
        "true",
        "color-scheme: light; background: #fff; --jp-layout-color0: #fff; --jp-ui-font-color1: rgba(0, 0, 0, 0.87)",
    ),
    "dark": (
        "false",
        "color-scheme: dark; background: #111; --jp-layout-color0: #111; --jp-ui-font-color1: rgba(255, 255, 255, 1)",
    ),
}


class Mount(Protocol):
    """Render a built widget on a mock model, which is then ``window.model``; ``window.dispose`` ends it.

    ``traits`` may be a widget itself: its state as the kernel would send it.
    """

    def __call__(
        self,
        name: str,
        traits: Mapping[str, Any] | Instrument,
        *,
        theme: str = "light",
        body: str | None = None,
        width: int = 1000,
    ) -> Page: ...


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    path: str | None = find_chromium()
    if path is None:
        pytest.fail(
            "The browser tests need Chromium or Chrome. `python tests/browser/chromium.py` installs one, "
            "or set SAELAB_CHROMIUM to the path of yours.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=[*FLAGS, *root_flags()])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. An error in its console or its scripts fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors = errors_of(page)
    yield page
    context.close()
    if errors:
        pytest.fail("The page reported errors:\n" + "\n".join(errors), pytrace=False)


@pytest.fixture
def mount(page: Page) -> Mount:
    """Render a widget's committed bundle in a page, with no Jupyter and no kernel.

    Traits are given as in Python; bytes arrive as a DataView, as in JupyterLab. ``body`` replaces the theme's
    attributes.
    """

    def to_javascript(value: object) -> str:
        if isinstance(value, bytes):
            return f"dataView({json.dumps(base64.b64encode(value).decode())})"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{json.dumps(name)}: {to_javascript(inner)}" for name, inner in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(to_javascript, value)) + "]"
        return json.dumps(value)  # NaN is valid JavaScript too

    def _mount(
        name: str,
        traits: Mapping[str, Any] | Instrument,
        *,
        theme: str = "light",
        body: str | None = None,
        width: int = 1000,
    ) -> Page:
        if isinstance(traits, Instrument):
            traits = {key: value for key, value in traits.get_state().items() if key not in NOT_THE_WIDGETS_OWN}
        traits = {"palette": palette(), **traits}
        light, style = THEMES[theme]
        attributes = f'data-jp-theme-light="{light}" style="{style}"' if body is None else body
        html = (
            f'<!doctype html><html lang="en"><head><title>{name}</title><link rel="icon" href="data:,">'
            f'<link rel="stylesheet" href="widget.css"></head><body {attributes}>'
            f'<main id="cell" style="width: {width}px"></main></body></html>'
        )
        css = (STATIC / f"{name}.css").read_text(encoding="utf-8")
        script = (STATIC / f"{name}.js").read_text(encoding="utf-8")
        page.route("http://widget.test/", lambda route: route.fulfill(content_type="text/html", body=html))
        page.route("**/widget.css", lambda route: route.fulfill(content_type="text/css", body=css))
        page.route("**/widget.js*", lambda route: route.fulfill(content_type="text/javascript", body=script))
        page.goto("http://widget.test/")
        state = to_javascript(traits)
        page.evaluate(
            f"""async () => {{
                {MOCK_MODEL}
                window.model = new MockModel({state});
                const widget = (await import('/widget.js')).default;
                window.dispose = await widget.render({{ model, el: document.getElementById('cell') }});
            }}"""
        )
        return page

    return _mount
