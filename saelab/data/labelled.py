"""Labelled texts in one representation: the sentiment set, its splits, and any other set like it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelab.data.activations import ActivationStore, Pooling, harvest, harvest_pooled
from saelab.data.hooks import context_length
from saelab.errors import InputError
from saelab.sae.base import SparseAutoencoder, check_activations

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

SENTIMENT_PROMPT = " Overall, this movie was"
"""Appended to a snippet, so that its last token is one at which the model is about to say what it thinks."""


class LabelledActivations(NamedTuple):
    """Inputs of a probe with their labels."""

    x: Tensor
    """``(n, d)``: activations or codes."""
    labels: Tensor
    """``(n,)``: one class a row."""
    rows: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    """``(n,)``: which rows of the whole set they are, where they were split off one."""


class SentimentSplit(NamedTuple):
    """A labelled set in two parts, ready to probe: ``probe(*split)``."""

    train: LabelledActivations
    test: LabelledActivations


@dataclass(frozen=True, eq=False, repr=False)
class LabelledSet:
    """Labelled texts in one representation, with the groups by which they can be held out.

    `sentiment_set` makes one. A ValueError where its parts are not of the same length.
    """

    x: Tensor
    """``(n, d)``: activations or codes, one row a text."""
    labels: Tensor
    """``(n,)``: one class a text."""
    texts: NDArray[np.str_]
    """``(n,)``."""
    blocks: NDArray[np.str_]
    """``(n,)``: the group of each, such as a film's genre; `by_block` holds out one after the other."""
    strata: NDArray[np.str_]
    """``(n,)``: what `split` gives both parts equal shares of."""
    store: ActivationStore | None = None
    """The activations of every token, where ``x`` is their mean over each text: an SAE takes tokens, not means."""

    def __post_init__(self) -> None:
        check_activations(self.x)
        for name in ("labels", "texts", "blocks", "strata"):
            if len(getattr(self, name)) != len(self.x):
                raise InputError(f"x has {len(self.x)} rows, but {name} {len(getattr(self, name))}; give one a row")

    def __repr__(self) -> str:
        return f"LabelledSet({len(self.x)} texts, width {self.x.shape[1]}, blocks {', '.join(np.unique(self.blocks))})"

    @torch.no_grad()
    def encoded(self, sae: SparseAutoencoder, *, batch_size: int = 1024) -> "LabelledSet":
        """The same texts with the codes of ``sae`` in place of activations, ``(n, d_sae)``.

        Where `store` keeps the tokens, each token is encoded and its codes averaged over the text: the mean of an SAE's
        codes is not the code of a mean, which no SAE has been trained on. A feature is then on for a text where it is
        on for any of its tokens. Codes are computed on the SAE's device, ``batch_size`` rows at a time; the result is
        on the CPU. Raises like `SparseAutoencoder.encode`; a ValueError for a ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        tokens = self.x if self.store is None else self.store.activations
        text_indices = torch.arange(len(self.x)) if self.store is None else self.store.text_indices
        codes = torch.zeros(len(self.x), sae.d_sae, dtype=self.x.dtype)
        for first in range(0, len(tokens), batch_size):
            batch = slice(first, first + batch_size)
            codes.index_add_(0, text_indices[batch], sae.encode(tokens[batch].to(sae.W_enc)).to(codes))
        return replace(self, x=codes / _counts(text_indices[:], len(codes)), store=None)

    def split(self, test_size: float = 0.25, seed: int = 0) -> SentimentSplit:
        """Two parts with equal shares of the `strata`; the same every time for the same ``seed``."""
        from sklearn.model_selection import train_test_split

        rows = np.arange(len(self.x))
        train, test = train_test_split(rows, test_size=test_size, random_state=seed, stratify=self.strata)
        return SentimentSplit(self._part(train), self._part(test))

    def by_block(self) -> dict[str, SentimentSplit]:
        """For each block, by name, the split that trains on all others and tests on it."""
        names = list(dict.fromkeys(self.blocks.tolist()))
        if len(names) < 2:
            raise InputError(f"all rows are of block {names[0]!r}; holding one out takes at least two, so use split()")
        splits = {}
        for name in names:
            train, test = ((self.blocks != name).nonzero()[0], (self.blocks == name).nonzero()[0])
            splits[name] = SentimentSplit(self._part(train), self._part(test))
        return splits

    def _part(self, rows: NDArray[np.intp]) -> LabelledActivations:
        return LabelledActivations(self.x[rows], self.labels[rows], rows)


@overload
def sentiment_set(
    model: "TransformerBridge",
    hook: str,
    *,
    scale: float | Mapping[str, float],
    pooling: Pooling = "last",
    snippets: "pd.DataFrame | None" = None,
    progress: bool = True,
) -> LabelledSet: ...


@overload
def sentiment_set(
    model: "TransformerBridge",
    hook: list[str] | tuple[str, ...],
    *,
    scale: float | Mapping[str, float],
    pooling: Pooling = "last",
    snippets: "pd.DataFrame | None" = None,
    progress: bool = True,
) -> dict[str, LabelledSet]: ...


def sentiment_set(
    model: "TransformerBridge",
    hook: str | list[str] | tuple[str, ...],
    *,
    scale: float | Mapping[str, float],
    pooling: Pooling = "last",
    snippets: "pd.DataFrame | None" = None,
    progress: bool = True,
) -> LabelledSet | dict[str, LabelledSet]:
    """The sentiment set at ``hook``, one activation a snippet.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``; or several, for one run of the model.
    scale
        Of the store that the SAE was trained on, ``store.scale``; for several hooks, a scale each by name.
    pooling
        ``"last"``: the activation at the last token of the snippet + `SENTIMENT_PROMPT`. ``"mean"``: the mean over the
        snippet's own tokens, without the prompt; those of every token are kept for `LabelledSet.encoded`.
    snippets
        Defaults to `saelab.load_sentiment()`. It needs the columns ``text``, ``label`` and ``hard``, whose shares
        `LabelledSet.split` keeps, and ``block`` to hold out blocks.
    progress
        Show a bar.

    Returns
    -------
    LabelledSet, or a dict of them
        One set for one hook; for a list of hooks a set each, by name.

    Raises
    ------
    TypeError, ValueError
        Like `saelab.harvest_pooled`; snippets without a column that is needed.
    """
    from saelab.data.language_models import load_sentiment

    frame = load_sentiment() if snippets is None else snippets
    missing = [column for column in ("text", "label", "hard") if column not in frame]
    if missing:
        raise InputError(
            f"snippets lack the column(s) {', '.join(missing)}; see saelab.load_sentiment() for one with all"
        )
    hooks = [hook] if isinstance(hook, str) else list(hook)
    if pooling == "mean":
        stores = harvest(model, hooks, list(frame.text), scale=scale, progress=progress)
        longest = context_length(model, None) - 2  # one more fills the context, and may have been cut
        sets = {name: labelled_snippets(frame, *_means(store, len(frame), longest)) for name, store in stores.items()}
    else:
        texts = list(frame.text + SENTIMENT_PROMPT)
        pooled = harvest_pooled(model, hooks, texts, scale=scale, pooling=pooling, progress=progress)
        sets = {name: labelled_snippets(frame, x) for name, x in pooled.items()}
    return sets[hook] if isinstance(hook, str) else sets


def _means(store: ActivationStore, n_texts: int, longest: int) -> tuple[Tensor, ActivationStore]:
    """``(n_texts, d)``: the mean of each text's tokens; and their store. Raises where a text has none, or too many."""
    counts = _counts(store.text_indices[:], n_texts)
    for index, count in enumerate(counts[:, 0].tolist()):
        if not 1 <= count <= longest:
            raise InputError(
                f"snippet {index} has {'no' if count == 0 else f'more than {longest}'} tokens; the mean takes 1 to "
                f"{longest}, that fit into the context whole. Leave it out, or shorten it"
            )
    tokens = store.activations[:]
    sums = tokens.new_zeros(n_texts, tokens.shape[1]).index_add_(0, store.text_indices[:], tokens)
    return sums / counts, store


def labelled_snippets(snippets: "pd.DataFrame", x: Tensor, store: ActivationStore | None = None) -> LabelledSet:
    """The set of ``snippets``, as `sentiment_set` takes them, whose activations ``(len(snippets), d)`` are known."""
    return LabelledSet(
        x=x,
        labels=torch.tensor(snippets.label.to_numpy()),
        texts=snippets.text.to_numpy(dtype=str),
        blocks=snippets.block.to_numpy(dtype=str) if "block" in snippets else np.full(len(snippets), "all"),
        strata=(snippets.label.astype(str) + snippets.hard.astype(str)).to_numpy(dtype=str),
        store=store,
    )


def sentiment_activations(
    model: "TransformerBridge",
    hook: str,
    *,
    scale: float,
    snippets: "pd.DataFrame | None" = None,
    test_size: float = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> SentimentSplit:
    """The sentiment set at ``hook``: the activation at the last token of each snippet + `SENTIMENT_PROMPT`.

    Split with the labels and the hard snippets in equal shares; ``scale`` is that of the store the SAE was trained on.
    ``snippets`` defaults to `saelab.load_sentiment()`; it needs the columns ``text``, ``label`` and ``hard``.
    `sentiment_set` gives the whole set, in any of its splits.
    """
    return sentiment_set(model, hook, scale=scale, snippets=snippets, progress=progress).split(test_size, seed)


def _counts(text_indices: Tensor, n: int) -> Tensor:
    """``(n, 1)``: the number of tokens of each text."""
    return torch.bincount(text_indices, minlength=n)[:, None]
