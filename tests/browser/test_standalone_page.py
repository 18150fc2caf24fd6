"""A widget in a standalone page: no kernel, no network, no other file."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect
from saelab_widgets import TrainingLab

from saelab.data.activations import ActivationStore


@pytest.fixture
def lab(store: ActivationStore) -> TrainingLab:
    lab = TrainingLab(store, d_sae=64, warm_up_steps=40)
    lab.status = "</script><b>bold</b> \N{SPARKLES} \u05e9\u05dc\u05d5\u05dd"
    lab.keep_run("a shadow")
    return lab


def test_a_saved_page_shows_the_curves_and_turns_off_what_needs_python(
    page: Page, lab: TrainingLab, tmp_path: Path
) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    path = lab.save_html(tmp_path / "lab.html")
    page.goto(path.as_uri())
    page.wait_for_selector("path.saelab-line[d^=M]")
    shown = page.locator("[data-chart=l0]").get_attribute("data-value")
    assert float(shown or "nan") == pytest.approx(lab.frame().l0.iloc[-1], rel=1e-6)
    assert page.locator("path.saelab-ghost").count() == 5
    assert page.locator(".saelab-status [role=status]").last.inner_text() == lab.status
    for control in page.locator("button, input:not([data-shown-charts]), select").all():
        expect(control).to_be_disabled()
    assert "no kernel" in page.locator(".saelab-slider").first.inner_text()
    assert [request.url for request in requests if not request.url.startswith(("file:", "blob:", "data:"))] == []
    page.wait_for_timeout(4500)
    assert page.locator("[data-show=kernel]").text_content() == ""
