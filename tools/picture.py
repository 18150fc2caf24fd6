"""Record the README's animation of the lab and its still image: `make picture`.

In a real JupyterLab and a real browser, the lab of the first tutorial trains while the L1 penalty is dragged from one
end to the other and back. The still, for readers who prefer reduced motion, is a frame at the highest penalty.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from chromium import FLAGS, find_chromium, root_flags  # type: ignore[import-not-found]  # noqa: E402
from live_notebook import (  # type: ignore[import-not-found]  # noqa: E402
    SECONDS,
    TOKEN,
    command,
    jupyterlab,
    step,
    until,
    wait_for_kernel,
)

PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1000, 740
FRAME_SECONDS = 0.25
LAST_SECONDS = 2.5
LIMIT_BYTES = 2_000_000
CURSOR = """() => {
    const dot = document.createElement('div');
    dot.style = 'position:fixed;z-index:99999;width:18px;height:18px;margin:-9px;border-radius:50%;pointer-events:none;'
        + 'background:rgba(213,94,0,.35);border:2px solid rgba(213,94,0,.9)';
    document.body.append(dot);
    const follow = ({ clientX, clientY }) => { dot.style.left = clientX + 'px'; dot.style.top = clientY + 'px'; };
    addEventListener('mousemove', follow, true);
}"""


class Film:
    """Frames of a page, taken while it is being operated."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.frames: list[Image.Image] = []

    def take(self) -> None:
        started = time.monotonic()
        self.frames.append(Image.open(BytesIO(self._page.screenshot())).convert("RGB"))
        self._page.wait_for_timeout(max(0.0, FRAME_SECONDS - (time.monotonic() - started)) * SECONDS)

    def watch(self, seconds: float) -> None:
        for _ in range(round(seconds / FRAME_SECONDS)):
            self.take()

    def drag(self, slider: Locator, start: float, end: float, n_frames: int = 7) -> None:
        """Drag with the mouse between two fractions of the track, taking a frame at each stop."""
        box = slider.bounding_box()
        assert box is not None
        for index in range(n_frames + 1):
            share = start + (end - start) * index / n_frames
            self._page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2, steps=4)
            if index == 0:
                self._page.mouse.down()
            self.take()
        self._page.mouse.up()


def film(page: Page, address: str) -> tuple[list[Image.Image], Image.Image]:
    """Record the lab; return the frames and the still."""
    page.goto(f"{address}/?token={TOKEN}")
    wait_for_kernel(page, "00_start_here.ipynb")
    # Run only up to the lab: the cells below it would slow it down.
    page.locator(".jp-CodeCell", has_text="lab = TrainingLab(").first.click()
    command(page, "notebook:run-all-above")
    command(page, "notebook:run-cell")
    page.locator(".saelab-training-lab").first.wait_for(timeout=300 * SECONDS)
    command(page, "application:toggle-left-area")
    lab = page.locator(".saelab-training-lab").first
    slider, toggle = lab.locator("input[data-knob=l1_coefficient]"), lab.locator("[data-action=toggle]")
    slider.focus()  # makes its cell active, so JupyterLab scrolls to it before we do
    page.wait_for_timeout(1 * SECONDS)
    lab.evaluate("(lab) => lab.scrollIntoView({ block: 'start' })")
    page.wait_for_timeout(1 * SECONDS)
    page.evaluate(CURSOR)
    taken = Film(page)
    toggle.hover()
    taken.watch(0.75)
    toggle.click()
    slider.hover()
    taken.watch(3)
    taken.drag(slider, 0.67, 0)
    taken.watch(2.5)
    taken.drag(slider, 0, 1, n_frames=10)
    raised_at = step(lab)
    taken.watch(2)
    until(page, lambda: step(lab) > raised_at + 60, "60 steps at the highest penalty")
    taken.take()
    still = taken.frames[-1]
    taken.drag(slider, 1, 0.67)
    taken.watch(2)
    return taken.frames, still


def save(frames: Sequence[Image.Image], path: Path) -> None:
    """Save an endlessly looping animated WebP that rests on its last frame.

    Raises
    ------
    ValueError
        The file is larger than a README should have.
    """
    durations = [round(FRAME_SECONDS * 1000)] * (len(frames) - 1) + [round(LAST_SECONDS * 1000)]
    first, *rest = frames
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, quality=82, method=6)
    if path.stat().st_size > LIMIT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {LIMIT_BYTES:,} are allowed")


def main() -> None:
    with tempfile.TemporaryDirectory() as home, jupyterlab(Path(home)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=[*FLAGS, *root_flags()])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        frames, still = film(page, address)
        browser.close()
    save(frames, PICTURES / "lab.webp")
    still.save(PICTURES / "lab.png", optimize=True)
    print(f"{len(frames)} frames, {(PICTURES / 'lab.webp').stat().st_size:,} bytes in {PICTURES / 'lab.webp'}")


if __name__ == "__main__":
    main()
