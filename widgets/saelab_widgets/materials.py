"""What widgets are made of where the user gives nothing: the embedded model, its activations, its labelled snippets."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

import saelab
from saelab.activations import ActivationStore
from saelab.autoencoders import ARCHITECTURES, SparseAutoencoder, TrainedOn
from saelab.language_models import EMBEDDED_MODEL
from saelab.probing import LabelledSet
from saelab.training import Trainer, TrainingConfig

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_HOOK = "blocks.1.hook_resid_post"
DEFAULT_TOKENS = 100_000
"""Of the embedded text: a harvest takes some seconds, and one serves all widgets."""
HELD_OUT = 1024
"""Rows at the end of an activation store that are kept out of training, to measure on."""


def cache_folder(*parts: str) -> Path:
    """Where sweeps of default widgets are kept between sessions, in the user's own cache."""
    return platformdirs.user_cache_path("saelab").joinpath(*parts)


@functools.lru_cache(maxsize=2)
def language_model(name: str) -> "TransformerBridge":
    """`saelab.load_language_model`, kept, so that a cell run again starts at once."""
    return saelab.load_language_model(name)


@functools.lru_cache(maxsize=4)
def activations_at(model_name: str, hook: str, n_tokens: int, scale: float | None = None) -> ActivationStore:
    """Activations of ``model_name`` at ``hook``, on the embedded text; kept likewise."""
    return saelab.harvest(language_model(model_name), hook, saelab.load_text(), n_tokens=n_tokens, scale=scale)


@functools.lru_cache(maxsize=4)
def snippets_at(model_name: str, hook: str, scale: float) -> LabelledSet:
    """The sentiment set at ``hook``, in the scale of an SAE's activations; kept likewise."""
    return saelab.sentiment_set(language_model(model_name), hook, scale=scale)


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

    It has not seen the last `HELD_OUT` rows of the store. It is shared: take a copy before changing it.
    """
    store = activations_at(EMBEDDED_MODEL, hook, DEFAULT_TOKENS)
    x = store.activations[: len(store) - HELD_OUT]
    sae = ARCHITECTURES[architecture](x.shape[1], d_sae)
    sae.trained_on = store.trained_on
    Trainer(sae, x, TrainingConfig(n_steps=n_steps, l1_coefficient=l1_coefficient)).run()
    return sae, store


def trained_at(sae: SparseAutoencoder) -> TrainedOn:
    """Model, hook and scale that an SAE was trained on.

    Raises
    ------
    ValueError
        It was trained on a plain tensor, and does not know.
    """
    if sae.trained_on is None:
        raise ValueError(
            "this SAE does not know which activations it was trained on, so there is nothing to show it on; "
            "give the widget activations, or train the SAE on an ActivationStore"
        )
    return sae.trained_on
