"""The gallery: each widget as its own page, with a script that fits the page into the site."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from saelab_widgets import (
    FeatureBrowser,
    GateExplorer,
    ParetoExplorer,
    ProbeExplorer,
    ShrinkageExplorer,
    TrainingLab,
    instrument,
)

ROOT = Path(__file__).parents[2]
L1_COEFFICIENTS = (4.0, 12.0, 1.5)
"""L1 penalties of the lab's recorded run, in order."""
STEPS = 500
"""Training steps at each of them."""

IN_A_FRAME = """<script>
// In the gallery: as high as the content, and in the theme of the site.
addEventListener("message", ({ data }) => {
  if (data?.saelabTheme) document.documentElement.style.colorScheme = data.saelabTheme;
});
const root = document.documentElement;
new ResizeObserver(() => parent.postMessage({ saelabHeight: root.offsetHeight }, "*")).observe(root);
</script>
"""


def recorded_lab() -> TrainingLab:
    """A lab whose L1 penalty has been turned twice while it trained; it needs Python to train on."""
    lab = TrainingLab(n_steps=STEPS, warm_up_steps=0)
    for l1_coefficient in L1_COEFFICIENTS:
        lab.l1_coefficient = l1_coefficient
        lab.start()
        lab.wait()
    lab.status = "A recorded run: to train here, open this widget in JupyterLab."
    return lab


def small_sweep() -> ParetoExplorer:
    """The default sweep, without the local folder in its file paths."""
    pareto = ParetoExplorer()
    pareto.saes = [{**sae, "path": Path(sae["path"]).name} for sae in pareto.saes]
    return pareto


WIDGETS: dict[str, Callable[[], instrument.Instrument]] = {
    "ShrinkageExplorer": ShrinkageExplorer,
    "GateExplorer": GateExplorer,
    "ParetoExplorer": small_sweep,
    "ProbeExplorer": ProbeExplorer,
    "FeatureBrowser": FeatureBrowser,
    "TrainingLab": recorded_lab,
}


def save_pages(folder: Path) -> None:
    """Save a page for each widget to ``folder``, unless an existing page is newer than all its sources."""
    folder.mkdir(parents=True, exist_ok=True)
    made_of = [Path(__file__), *(path for part in ("saelab", "widgets/saelab_widgets") for path in _files(ROOT / part))]
    newest = max(path.stat().st_mtime for path in made_of)
    for name, make in WIDGETS.items():
        path = folder / f"{name}.html"
        if path.exists() and path.stat().st_mtime > newest:
            continue
        print(f"gallery: {name}", flush=True, file=sys.stderr)
        start = time.monotonic()
        widget = make()
        page = widget.to_html().replace("</body>", f"{IN_A_FRAME}</body>")
        widget.close()
        path.write_text(page, encoding="utf-8")
        seconds, size = time.monotonic() - start, len(page) / 1e6
        print(f"gallery: {name} took {seconds:.0f} s, {size:.1f} MB", flush=True, file=sys.stderr)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
