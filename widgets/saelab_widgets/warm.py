"""Make now what default widgets are made of, so that they open at once: ``python -m saelab_widgets.warm``.

For a machine that is set up before its readers come, such as a Binder image. Everything goes to the user's cache; done
again, nothing is computed.
"""

import time
from collections.abc import Callable

import saelab
from saelab.data.language_models import EMBEDDED_MODEL
from saelab.files.tensor_files import write_tensors
from saelab_widgets.materials import (
    DEFAULT_HOOK,
    DEFAULT_TOKENS,
    cache_folder,
    default_sae,
    default_sweep,
    language_model,
    warmed_activations,
    warmed_snippets,
)
from saelab_widgets.probe_explorer import ProbeExplorer


def warm_activations(hook: str = DEFAULT_HOOK, n_tokens: int = DEFAULT_TOKENS) -> None:
    """The activations that most widgets stand on, and the sentiment set at the same place."""
    model, texts = language_model(EMBEDDED_MODEL), saelab.load_text()
    store = saelab.harvest(model, hook, texts, n_tokens=n_tokens, store=warmed_activations(hook, n_tokens))
    path = warmed_snippets(hook, store.scale)
    if not path.exists():
        write_tensors(path, {"x": saelab.sentiment_set(model, hook, scale=store.scale).x}, {})


def main() -> None:
    start = time.monotonic()
    steps: dict[str, Callable[[], object]] = {
        "activations": warm_activations,
        "the SAE of GateExplorer and FeatureBrowser": default_sae,
        "the sweep of ParetoExplorer": default_sweep,
        "the probes of ProbeExplorer": ProbeExplorer,
    }
    for what, make in steps.items():
        print(f"{time.monotonic() - start:4.0f} s  {what}", flush=True)
        make()
    print(f"{time.monotonic() - start:4.0f} s  all of it is in {cache_folder()}")


if __name__ == "__main__":
    main()
