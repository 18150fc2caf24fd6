"""Each tutorial passes "Restart kernel and run all" in a real JupyterLab, and shows its widgets.

In `make test`, nbval runs all of them, and another test takes a newcomer through 00 in JupyterLab; so one more is
enough here. `make test-all` runs each.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parent))
from live_notebook import (  # type: ignore[import-not-found]
    SECONDS,
    TUTORIALS,
    errors_of,
    jupyterlab,
    open_notebook,
    restart_and_run_all,
)

EACH_TIME = "04_gated"
PANEL = "window.jupyterapp.shell.currentWidget"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tutorial_caches: Path) -> Iterator[str]:
    """One JupyterLab for all tutorials, which reuses what nbval's run trained from scratch in this session."""
    home = tmp_path_factory.mktemp("home")
    with jupyterlab(home, {"XDG_CACHE_HOME": str(home / "cache")}) as address:
        for made in tutorial_caches.iterdir():
            for kind, there in (("runs", home / "tutorials" / "runs"), ("cache", home / "cache")):
                if (made / kind).exists():
                    shutil.copytree(made / kind, there, dirs_exist_ok=True)
        yield address


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem == EACH_TIME else pytest.mark.release)
        for path in sorted(TUTORIALS.glob("*.ipynb"))
    ],
)
def test_tutorial_restarts_and_runs_all_with_no_error_and_shows_its_widgets(
    browser: Browser, server: str, name: str
) -> None:
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    complaints = errors_of(page)
    try:
        restart_run_and_look(page, server, name)
        assert complaints == []
    finally:
        page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")  # the next one needs its memory
        page.context.close()


def restart_run_and_look(page: Page, server: str, name: str) -> None:
    open_notebook(page, server, f"{name}.ipynb")
    restart_and_run_all(page, seconds=240)
    cells: list[dict[str, Any]] = page.evaluate(f"() => {PANEL}.content.model.toJSON().cells")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    errors = [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert errors == []
    for index, cell in enumerate(cells):
        if "widget" in cell["metadata"].get("tags", []):
            page.evaluate(f"(index) => void {PANEL}.content.scrollToItem(index)", index)
            page.wait_for_function(
                f"""(index) => {{
                    const root = {PANEL}.content.widgets[index].node.querySelector('.jp-OutputArea .saelab-root');
                    return root && root.getBoundingClientRect().height > 0;
                }}""",
                arg=index,
                timeout=30 * SECONDS,
            )
