"""Load language models and text, from inside the package or from the Hugging Face hub."""

import gc
import json
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saelab.errors import InputError, SAELabError

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

EMBEDDED_MODEL = "reviews-4l"
ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED_FOLDER = ASSETS / EMBEDDED_MODEL
SAMPLED_TEXT = EMBEDDED_FOLDER / "sampled_text.json.xz"
SENTIMENT = ASSETS / "sentiment.jsonl"
TRAIN_COMMAND = "python saelab/assets/reviews-4l/train.py --out runs/reviews-4l"
SAMPLE_COMMAND = "python saelab/assets/reviews-4l/sample.py"


class ModelNotFoundError(SAELabError, ValueError):
    """The model does not exist, or there is no network to fetch it."""


def _asset(path: Path, how_to_make_it: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing from this installation of saelab ({path}); {how_to_make_it}")
    return path


def _hub_is_reachable() -> bool:
    """Whether one quick request succeeds; transformers would retry for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # the exception depends on the HTTP library in use
        return False
    return True


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Importing TransformerLens makes many objects, all kept: garbage collection would be a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Show no bar for the half second it takes to load the embedded model."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@_no_garbage_collection()
def load_language_model(
    name: str = EMBEDDED_MODEL, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> "TransformerBridge":
    """A language model as a TransformerLens `TransformerBridge`.

    Parameters
    ----------
    name
        ``"reviews-4l"``, the model inside the package (offline); a Hugging Face folder on disk (offline); or any name
        that TransformerLens takes: ``"gelu-1l"``, ``"gpt2"``, ``"EleutherAI/pythia-70m"`` (from the hub, then cached).
    device, dtype
        Device and type of the weights; by default float32 on the device that TransformerLens chooses.

    Raises
    ------
    ModelNotFoundError
        The name is unknown, or needs a network and there is none; the message says which names work offline.
    FileNotFoundError
        The embedded model is missing from the installation.
    ImportError
        TransformerLens is not installed.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.supported_models import get_official_model_name
    except ModuleNotFoundError as error:
        if error.name != "transformer_lens":
            raise  # TransformerLens is installed but broken; its own message says more
        raise ImportError('language models need TransformerLens 4: pip install "saelab[lm]"') from error

    def boot(source: str) -> "TransformerBridge":
        model = TransformerBridge.boot_transformers(source, device=device, dtype=dtype)
        model.cfg.model_name = (
            name  # the name that loads it again; TransformerLens gives a path inside this installation
        )
        return model

    if name == EMBEDDED_MODEL:
        _asset(EMBEDDED_FOLDER / "model.safetensors", f"reinstall it, or train the model again: {TRAIN_COMMAND}")
        with _no_progress_bar():
            return boot(str(EMBEDDED_FOLDER))
    if (Path(name) / "config.json").is_file():
        return boot(name)
    offline = f"Offline there are {EMBEDDED_MODEL!r} and any Hugging Face folder (its path as the name)."
    if Path(name).is_dir():
        raise ModelNotFoundError(
            f"the folder {name!r} holds no config.json, so it is not a Hugging Face model. {offline}"
        )
    try:
        repository = get_official_model_name(name)
    except ValueError:
        repository = name  # TransformerLens does not list it, but it may still be on the hub
    if not _is_cached(repository) and not _hub_is_reachable():
        raise ModelNotFoundError(
            f"{name!r} is not on this machine and the Hugging Face hub cannot be reached. {offline}"
        )
    try:
        return boot(name)
    except (OSError, ValueError) as error:
        known = "https://transformerlensorg.github.io/TransformerLens/generated/transformer_bridge_models.html"
        raise ModelNotFoundError(
            f"TransformerLens cannot load {name!r}: {error}\n{offline} With a network, the names are those in {known}"
        ) from error


def load_text(name: str = EMBEDDED_MODEL) -> list[str]:
    """Texts to harvest activations from.

    Parameters
    ----------
    name
        ``"reviews-4l"``: about 3,700 texts sampled from the embedded model (offline); ``"imdb"``: the 25,000 training
        reviews of the Large Movie Review Dataset (Maas et al. 2011), from the hub.

    Raises
    ------
    ValueError
        The name is unknown, or ``"imdb"`` is neither cached nor can be fetched.
    FileNotFoundError
        The sampled text is missing from the installation.
    """
    if name == EMBEDDED_MODEL:
        path = _asset(SAMPLED_TEXT, f"reinstall it, or sample the text again: {SAMPLE_COMMAND}")
        texts: list[str] = json.loads(lzma.decompress(path.read_bytes()))
        return texts
    if name != "imdb":
        raise InputError(f"there is no text {name!r}; there are {EMBEDDED_MODEL!r} (offline) and 'imdb' (from the hub)")
    from datasets import load_dataset

    try:
        reviews = load_dataset("stanfordnlp/imdb", split="train")["text"]
    except (OSError, ValueError) as error:
        raise InputError(
            f"'imdb' is not on this machine and cannot be fetched from the Hugging Face hub: {error}\n"
            f"Offline there is {EMBEDDED_MODEL!r}."
        ) from error
    return [clean_review(review) for review in reviews]


def clean_review(review: str) -> str:
    """An IMDB review with line breaks instead of ``<br />``, as the embedded model saw reviews in training."""
    return re.sub(r"\s*<br\s*/?>\s*", "\n", review).strip()


def load_sentiment() -> "pd.DataFrame":
    """1,280 labelled film-review snippets written for this project, one per row.

    Columns: ``id``; ``block`` (drama, comedy, action, thriller); ``text``; ``label`` (1 positive, 0 negative); ``hard``
    (True if single words mislead: negation, contrast, irony).

    Raises
    ------
    FileNotFoundError
        The set is missing from the installation.
    """
    import pandas as pd

    return pd.read_json(_asset(SENTIMENT, "reinstall it"), lines=True)
