"""What widgets are made of where the user gives nothing: the embedded model, its activations, its labelled snippets."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs
import torch
from torch import Tensor

import saelab
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSet, LabelledSplit, labelled_snippets
from saelab.data.language_models import EMBEDDED_MODEL
from saelab.errors import InputError
from saelab.evaluation.probing import probe
from saelab.files.tensor_files import read_tensors, write_atomically
from saelab.sae.base import ARCHITECTURES, SparseAutoencoder, TrainedOn
from saelab.training.runs import TrainingConfig
from saelab_widgets.background import one_thread_on_small_machines

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_HOOK = "blocks.1.hook_resid_post"
DEFAULT_TOKENS = 100_000
"""Of the embedded text: a harvest takes some seconds, and one serves all widgets."""
N_TEST = 1024
"""Rows at the end of an activation store that are kept out of training, to measure on."""


def cache_folder(*parts: str) -> Path:
    """Where what default widgets are made of is kept between sessions, in the user's own cache."""
    return platformdirs.user_cache_path("saelab").joinpath(*parts)


def warmed(*name: object) -> Path:
    """Where `saelab_widgets.warm` puts what is else computed anew in each session, in some seconds."""
    # Another version may have another model and other texts.
    return cache_folder("warmed", saelab.__version__, "-".join(map(str, name)))


@functools.lru_cache(maxsize=2)
def language_model(name: str) -> "TransformerBridge":
    """`saelab.load_language_model`, kept, so that a cell run again starts at once."""
    return saelab.load_language_model(name)


@functools.lru_cache(maxsize=4)
def activations_at(model_name: str, hook: str, n_tokens: int, scale: float | None = None) -> ActivationStore:
    """Activations of ``model_name`` at ``hook``, on the embedded text; kept likewise."""
    if model_name == EMBEDDED_MODEL and scale is None:
        with suppress(saelab.StoreError):  # it is not there, or not whole
            stored = ActivationStore.open(warmed_activations(hook, n_tokens))
            columns = ("activations", "token_ids", "text_indices", "positions")
            return replace(stored, **{name: getattr(stored, name)[:] for name in columns})
    return saelab.harvest(language_model(model_name), hook, saelab.load_text(), n_tokens=n_tokens, scale=scale)


def warmed_activations(hook: str, n_tokens: int) -> Path:
    return warmed("activations", hook, n_tokens)


@functools.lru_cache(maxsize=4)
def test_activations_at(model_name: str, hook: str, n_tokens: int, scale: float) -> ActivationStore:
    """The same on the last of the embedded text, which `activations_at` does not reach; kept likewise."""
    text = saelab.load_text()[::-1]
    return saelab.harvest(language_model(model_name), hook, text, n_tokens=n_tokens, scale=scale)


@functools.lru_cache(maxsize=4)
def snippets_at(model_name: str, hook: str, scale: float) -> LabelledSet:
    """The sentiment set at ``hook``, in the scale of an SAE's activations; kept likewise."""
    path = warmed_snippets(hook, scale)
    if model_name == EMBEDDED_MODEL and path.exists():
        return labelled_snippets(saelab.load_sentiment(), read_tensors(path)[0]["x"])
    return saelab.sentiment_set(language_model(model_name), hook, scale=scale)


def warmed_snippets(hook: str, scale: float) -> Path:
    return warmed("snippets", hook, f"{scale!r}.safetensors")


@functools.lru_cache(maxsize=2)
def default_sae(
    architecture: str = "gated",
    hook: str = DEFAULT_HOOK,
    *,
    d_sae: int = 1024,
    l1_coefficient: float = 4.0,
    n_steps: int = 500,
) -> tuple[SparseAutoencoder, ActivationStore]:
    """What a widget shows where it is given no SAE: one trained for some seconds, and its activations; kept likewise.

    It has not seen the last `N_TEST` rows of the store. It is shared: take a copy before changing it. Its file is in
    the user's cache, and read from there next time.
    """
    store = activations_at(EMBEDDED_MODEL, hook, DEFAULT_TOKENS)
    x, test_x = store.activations[:-N_TEST], store.activations[-N_TEST:]
    with one_thread_on_small_machines():  # several would wait for one another where another notebook trains
        table = saelab.sweep(
            functools.partial(ARCHITECTURES[architecture], x.shape[1], d_sae),
            replace(store, activations=x),
            [l1_coefficient],
            config=TrainingConfig(n_steps=n_steps),
            test=test_x,
            folder=cache_folder("sae"),
        )
    return saelab.load(table.path[0]), store


def trained_at(sae: SparseAutoencoder) -> TrainedOn:
    """Model, hook and scale that an SAE was trained on.

    Raises
    ------
    ValueError
        It was trained on a plain tensor, and does not know.
    """
    if sae.trained_on is None:
        raise InputError(
            "this SAE does not know which activations it was trained on, so there is nothing to show it on; "
            "give the widget activations, or train the SAE on an ActivationStore"
        )
    return sae.trained_on


class Sweep(NamedTuple):
    """What `default_sweep` gives."""

    table: "pd.DataFrame"
    """As of `saelab.sweep`, with the columns ``loss_recovered`` and ``probe_accuracy``."""
    test_x: Tensor
    """The activations on which the metrics were measured, ``(n, d_in)``."""
    sentiment: Callable[[], LabelledSplit]
    """Gives what the probe was fitted to and tested on. It takes some seconds, and nothing where all is measured."""


@one_thread_on_small_machines()
def default_sweep(
    folder: str | os.PathLike[str] | None = None,
    *,
    hook: str = DEFAULT_HOOK,
    n_tokens: int = 50_000,
    n_test_texts: int = 48,
    d_sae: int = 512,
    n_steps: int = 250,
    standard_l1: Sequence[float] = (1.2, 2.0, 3.5, 6.0),
    gated_l1: Sequence[float] = (2.0, 3.5, 5.5, 9.0),
    control_l1: Mapping[str, Sequence[float]] = {"frozen_decoder": (2.0, 5.0), "soft_frozen_decoder": (3.0, 9.0)},
    progress: bool = True,
) -> Sweep:
    """Standard, rescale-and-shift and gated SAEs on the embedded model, beside controls; small enough for a first look.

    All that is made is kept in ``folder``: interrupted, the same call goes on where it was; done, it reads files. It
    takes about a minute the first time, on a small machine with one thread: two get into each other's way where
    anything else computes, too. The experiment in ``docs/experiments/pareto.py`` is the same on more activations, with
    more steps, from five seeds.

    Parameters
    ----------
    folder
        By default one in the user's cache.
    hook, n_tokens, n_test_texts
        Activations to train on, and texts, not among theirs, on which everything but the probe is measured: the loss
        recovered, which takes runs of the model, on a quarter of them.
    d_sae, n_steps, standard_l1, gated_l1
        Of the SAEs. There is one rescale-and-shift SAE from each standard one.
    control_l1
        L1 coefficients of gated SAEs as each of these controls (`saelab.CONTROLS`).

    Raises
    ------
    ValueError, TypeError
        Like `saelab.harvest` and `saelab.sweep`.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    # Another version may have another text or another model inside.
    folder = Path(folder) if folder is not None else cache_folder(f"pareto-{saelab.__version__}")
    model, texts = language_model(EMBEDDED_MODEL), saelab.load_text()
    train_texts, test_texts = texts[:-n_test_texts], texts[-n_test_texts:]
    harvest = functools.partial(saelab.harvest, model, hook, progress=progress)
    stores = folder / f"{hook}-{n_tokens}-{n_test_texts}"
    store = harvest(train_texts, n_tokens=n_tokens, store=stores / "train")
    # SAEs know activations in the training store's scale, so the others have to come in the same.
    test = harvest(test_texts, scale=store.scale, store=stores / "test")

    def sentiment() -> LabelledSplit:
        return snippets_at(EMBEDDED_MODEL, hook, store.scale).split()

    # No resampling: in so few steps, features that are revived only die again. A start at the mean, which random
    # directions could not learn.
    config = saelab.TrainingConfig(n_steps=n_steps, batch_size=512, resample_every=0, start_at_mean=True)
    # Two numbers a feature: there is less to learn, and it can be learnt faster.
    rescaling = saelab.TrainingConfig(n_steps=n_steps // 2, batch_size=512, lr=3e-3, resample_every=0)
    sweep = functools.partial(saelab.sweep, activations=store, test=test, folder=folder / "saes", progress=progress)
    d_in = store.d_in
    standard = sweep(lambda: saelab.StandardSAE(d_in, d_sae), sparsity=standard_l1, config=config)
    # Its loss has no L1 term; the table shows the coefficient of the SAE that it cures.
    cured = sweep([_rescaled(path) for path in standard.path], config=rescaling)
    cured["l1_coefficient"] = standard.l1_coefficient
    gated = sweep(lambda: saelab.GatedSAE(d_in, d_sae), sparsity=gated_l1, config=config)
    controls = [
        sweep(functools.partial(_gated_as, control, d_in, d_sae), sparsity=values, config=config).assign(
            control=control
        )
        for control, values in control_l1.items()
    ]
    table = pd.concat([standard, cured, gated, *controls], ignore_index=True)

    def measure(sae: SparseAutoencoder) -> dict[str, float]:
        few = test_texts[: math.ceil(n_test_texts / 4)]
        spliced = saelab.loss_recovered(model, hook, sae, few, progress=False)
        return {"loss_recovered": spliced.score_zero, "probe_accuracy": probe_accuracy(sae, sentiment())}

    bar = tqdm(table.path, desc="loss recovered, probe", unit="SAE", disable=not progress)
    measured = pd.DataFrame([_kept_beside(path, measure) for path in bar])
    return Sweep(table.join(measured), test.activations[:], sentiment)


def _gated_as(control: str, d_in: int, d_sae: int) -> SparseAutoencoder:
    return saelab.CONTROLS[control].apply(saelab.GatedSAE(d_in, d_sae))


def _rescaled(path: str) -> Callable[[], saelab.RescaleShiftSAE]:
    """Gives what cures the shrinkage of the standard SAE in a file, still to be trained (paper, section 5.2)."""

    def make() -> saelab.RescaleShiftSAE:
        standard = saelab.load(path)
        assert isinstance(standard, saelab.StandardSAE)
        return saelab.RescaleShiftSAE.from_standard(standard)

    return make


def _kept_beside(path: str, measure: Callable[[SparseAutoencoder], dict[str, float]]) -> dict[str, Any]:
    """What ``measure`` says of the SAE in a file, kept beside it.

    The sweep names the file after all that went into it: what is found there still holds.
    """
    import pandas as pd

    kept = Path(path).with_suffix(".csv")
    if not kept.exists():
        row = pd.DataFrame([measure(saelab.load(path))])
        write_atomically(kept, lambda unfinished: row.to_csv(unfinished, index=False))
    return dict(pd.read_csv(kept).iloc[0])


@torch.no_grad()
def probe_accuracy(sae: SparseAutoencoder, sentiment: LabelledSplit) -> float:
    """Test accuracy of a linear probe on the SAE's codes."""
    train, test = (LabelledActivations(sae.encode(part.x.to(sae.W_enc)).cpu(), part.labels) for part in sentiment)
    return probe(train, test).test_accuracy
