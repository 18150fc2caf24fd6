"""The built site in a browser, with the network blocked: `make check-site`."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Frame, Locator, Page, Route, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from chromium import FLAGS, ensure_chromium, root_flags  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
LOADS = {("img", "src"), ("script", "src"), ("iframe", "src"), ("link", "href"), ("source", "srcset")}
"""The URLs that a browser fetches by itself."""
LOOKS: dict[str, tuple[Literal["light", "dark"], int]] = {
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "phone": ("light", 390),
    "dark phone": ("dark", 390),
}


class _Links(HTMLParser):
    """The anchors of a page, and the targets of its links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src", "srcset") and value:
                self.links.append((tag, name, value))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the log."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=ensure_chromium(), args=[*FLAGS, *root_flags()])
        yield browser
        browser.close()


@pytest.fixture(params=LOOKS)
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in each theme; an error in its console or a request to another host fails the test."""
    scheme, width = LOOKS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        base_url=address,
    )
    wrong: list[str] = []

    def only_here(route: Route) -> None:
        if route.request.url.startswith((address, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(f"request to {route.request.url}")
            route.abort()

    context.route("**/*", only_here)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("response", lambda response: wrong.append(f"{response.status} {response.url}") if not response.ok else None)
    yield page
    context.close()
    assert wrong == []


def test_every_link_inside_leads_to_a_page_and_its_anchor_and_nothing_is_loaded_from_elsewhere() -> None:
    assert "index.html" in PAGES and "gallery.html" in PAGES
    found = {SITE / page: _Links(SITE / page) for page in PAGES}
    dead, foreign = [], []
    for path, links in found.items():
        for tag, attribute, link in links.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if (tag, attribute) in LOADS and parts.scheme != "data":
                    foreign.append(f"{path.name}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            whole = target.is_file() and target.is_relative_to(SITE)
            anchors = found[target].anchors if target in found else None
            if not whole or (parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors):
                dead.append(f"{path.relative_to(SITE)}: {link}")
    assert dead == [] and foreign == []


def test_no_page_names_a_folder_of_this_machine() -> None:
    names = {str(ROOT), str(Path.home())} - {"/"}
    texts = [path for path in SITE.rglob("*") if path.suffix in (".html", ".js", ".css", ".inv")]
    assert [
        path.name for path in texts if any(name in path.read_text(errors="ignore", encoding="utf-8") for name in names)
    ] == []


def test_pages_show_in_each_look_without_an_error_and_as_wide_as_the_screen(page: Page) -> None:
    for name in PAGES:
        page.goto(f"/{name}")
        page.wait_for_load_state("networkidle")
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, name
        assert page.locator("mjx-merror").count() == 0, name
        for picture in page.locator("main img").all():
            assert picture.get_attribute("alt"), f"{name}: a picture without words"


def test_tutorials_have_their_formulas_and_folded_solutions_with_coloured_code(page: Page) -> None:
    names = [name for name in PAGES if name.startswith("tutorials/")]
    assert len(names) == len(list((ROOT / "tutorials").glob("*.ipynb")))
    for name in names:
        page.goto(f"/{name}")
        page.wait_for_load_state("networkidle")
        assert page.locator("mjx-container").count() > 0, name
        for solution in page.locator("details").all():
            assert solution.get_attribute("open") is None, name
            code = solution.locator("pre").first
            if code.count():
                expect(code).to_be_hidden()
                solution.locator("summary").click()
                expect(code).to_be_visible()
                assert code.locator("span[class]").count() > 0, f"{name}: a solution without colours"
        for cell in page.locator(".tag_widget").all():
            assert cell.locator("img").count() > 0, name
            link = cell.locator(".saelab-aside a")
            assert "gallery.html" in (link.get_attribute("href") or ""), name


def press(selector: str, key: str) -> Callable[[Frame], None]:
    """Press a key on the first control that matches."""

    def move(frame: Frame) -> None:
        frame.locator(selector).first.press(key)

    return move


MOVES: dict[str, Callable[[Frame], None]] = {
    "ShrinkageExplorer": press("input[type=range]", "ArrowRight"),
    "GateExplorer": press("input[type=range]", "ArrowRight"),
    "ParetoExplorer": lambda frame: (frame.locator("select").last.select_option("fvu"), None)[1],
    "ProbeExplorer": lambda frame: frame.get_by_role("radio", name="3", exact=True).check(),
    "FeatureBrowser": press("[role=listbox]", "ArrowDown"),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_widget_in_the_gallery_fits_its_frame_follows_the_theme_and_answers(page: Page, name: str) -> None:
    page.goto("/gallery.html")
    element = page.locator(f"iframe[title={name}]")
    assert element.get_attribute("loading") == "lazy"
    frame = _frame(page, element)
    # As high as its content, at any width.
    page.wait_for_function(
        """name => {
            const frame = document.querySelector(`iframe[title=${name}]`);
            return Math.abs(frame.clientHeight - frame.contentDocument.documentElement.offsetHeight) <= 1
                && frame.contentDocument.documentElement.scrollWidth <= frame.clientWidth;
        }""",
        arg=name,
    )
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert _theme(frame) == ("dark" if dark else "light")
    page.evaluate("theme => { document.body.dataset.theme = theme; }", "light" if dark else "dark")
    frame.wait_for_function(
        "theme => getComputedStyle(document.documentElement).colorScheme === theme", arg="light" if dark else "dark"
    )
    before = _shown(frame)
    MOVES[name](frame)
    frame.wait_for_function("before => document.querySelector('main').innerText !== before", arg=before)
    assert frame.locator("[role=alert]:not(:empty)").count() == 0


def test_the_lab_shows_a_recorded_run_and_says_what_it_needs(page: Page) -> None:
    page.goto("/gallery.html")
    frame = _frame(page, page.locator("iframe[title=TrainingLab]"))
    frame.wait_for_selector("path.saelab-line[d^=M]")
    assert "JupyterLab" in _shown(frame)
    for control in frame.locator("input[type=range]").all():
        expect(control).to_be_disabled()


def _frame(page: Page, element: Locator) -> Frame:
    element.scroll_into_view_if_needed()
    handle = element.element_handle()
    frame = handle.content_frame() if handle is not None else None
    assert frame is not None
    frame.wait_for_selector("#saelab-widget .saelab")
    return frame


def _theme(frame: Frame) -> str:
    theme: str = frame.evaluate("getComputedStyle(document.documentElement).colorScheme")
    return theme


def _shown(frame: Frame) -> str:
    return frame.locator("main").inner_text()
