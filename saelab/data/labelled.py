"""Labelled texts in one representation, such as the sentiment set, and their splits for probing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelab.data.activations import ActivationStore, Pooling, harvest_many, harvest_pooled_many
from saelab.data.hooks import context_length
from saelab.errors import InputError, InputTypeError
from saelab.sae.base import SparseAutoencoder, check_activations

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

SENTIMENT_PROMPT = " Overall, this movie was"
"""Appended to a snippet, so that at its last token the model is about to give a verdict."""


class LabelledActivations(NamedTuple):
    """Inputs of a probe with their labels."""

    x: Tensor
    """``(n, d)``: activations or codes."""
    labels: Tensor
    """``(n,)``: the class of each row."""
    rows: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    """``(n,)``: their row numbers in the set that they were split from; empty if there was none."""


class LabelledSplit(NamedTuple):
    """A training and a test part, ready for ``probe(*split)``."""

    train: LabelledActivations
    test: LabelledActivations


@dataclass(frozen=True, eq=False, repr=False)
class LabelledSet:
    """Labelled texts in one representation, with the groups by which they can be held out.

    `sentiment_set` makes one. Raises a ValueError if its fields differ in length.
    """

    x: Tensor
    """``(n, d)``: activations or codes, one row per text."""
    labels: Tensor
    """``(n,)``: the class of each text."""
    texts: NDArray[np.str_]
    """``(n,)``."""
    blocks: NDArray[np.str_]
    """``(n,)``: the group of each text, such as a film's genre; `by_block` holds out one at a time."""
    strata: NDArray[np.str_]
    """``(n,)``: the stratum of each text; `split` gives both parts the same share of each."""
    store: ActivationStore | None = None
    """Activations of every token, if ``x`` is their mean over each text, because an SAE takes tokens and not means."""

    def __post_init__(self) -> None:
        check_activations(self.x)
        for name in ("labels", "texts", "blocks", "strata"):
            if len(getattr(self, name)) != len(self.x):
                raise InputError(
                    f"x has {len(self.x)} rows, but {name} has {len(getattr(self, name))}; give one per row"
                )

    def __repr__(self) -> str:
        return f"LabelledSet({len(self.x)} texts, width {self.x.shape[1]}, blocks {', '.join(np.unique(self.blocks))})"

    @torch.no_grad()
    def encoded(self, sae: SparseAutoencoder, *, batch_size: int = 1024) -> "LabelledSet":
        """The same texts with the codes of ``sae``, ``(n, d_sae)``, in place of activations.

        If `store` keeps the tokens, each token is encoded and the codes are averaged over the text, because the mean of
        codes is not the code of a mean, and no SAE was trained on means. A feature is then on for a text if it is on
        for any of its tokens. Codes are computed on the SAE's device, ``batch_size`` rows at a time; the result is on
        the CPU. Raises like `SparseAutoencoder.encode`, and a ValueError for a ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        tokens = self.x if self.store is None else self.store.activations
        text_indices = torch.arange(len(self.x)) if self.store is None else self.store.text_indices
        codes = torch.zeros(len(self.x), sae.d_sae, dtype=self.x.dtype)
        for first in range(0, len(tokens), batch_size):
            batch = slice(first, first + batch_size)
            codes.index_add_(0, text_indices[batch], sae.encode(tokens[batch].to(sae.W_enc)).cpu().to(codes))
        return replace(self, x=codes / _counts(text_indices[:], len(codes)), store=None)

    def split(self, test_size: float = 0.25, seed: int = 0) -> LabelledSplit:
        """A training and a test part with equal shares of the `strata`; the same ``seed`` gives the same split."""
        from sklearn.model_selection import train_test_split

        rows = np.arange(len(self.x))
        train, test = train_test_split(rows, test_size=test_size, random_state=seed, stratify=self.strata)
        return LabelledSplit(self._part(train), self._part(test))

    def by_block(self) -> dict[str, LabelledSplit]:
        """For each block, by name, the split that trains on all other blocks and tests on this one."""
        names = list(dict.fromkeys(self.blocks.tolist()))
        if len(names) < 2:
            raise InputError(f"all rows are in block {names[0]!r}; holding one out takes at least two, so use split()")
        splits = {}
        for name in names:
            train, test = ((self.blocks != name).nonzero()[0], (self.blocks == name).nonzero()[0])
            splits[name] = LabelledSplit(self._part(train), self._part(test))
        return splits

    def _part(self, rows: NDArray[np.intp]) -> LabelledActivations:
        return LabelledActivations(self.x[rows], self.labels[rows], rows)


def sentiment_set(
    model: "TransformerBridge",
    hook: str,
    *,
    scale: float,
    pooling: Pooling = "last",
    snippets: "pd.DataFrame | None" = None,
    progress: bool = True,
) -> LabelledSet:
    """The sentiment set at ``hook``, with one activation per snippet.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``. `sentiment_sets` takes several hooks.
    scale
        ``store.scale`` of the store on which the SAE was trained.
    pooling
        ``"last"``: the activation at the last token of the snippet + `SENTIMENT_PROMPT`. ``"mean"``: the mean over the
        snippet's own tokens, without the prompt; the activations of all tokens are kept for `LabelledSet.encoded`.
    snippets
        Defaults to `saelab.load_sentiment()`. Needs the columns ``text``, ``label`` and ``hard``, whose shares
        `LabelledSet.split` keeps, and ``block`` to hold out blocks.
    progress
        Show a bar.

    Raises
    ------
    TypeError, ValueError
        Like `saelab.harvest_pooled`; also if ``snippets`` lacks a column.
    """
    if not isinstance(hook, str):
        raise InputTypeError(
            f"sentiment_set takes the name of one hook, not {hook!r}; for several hooks use sentiment_sets"
        )
    return sentiment_sets(model, [hook], scales={hook: scale}, pooling=pooling, snippets=snippets, progress=progress)[
        hook
    ]


def sentiment_sets(
    model: "TransformerBridge",
    hooks: Sequence[str],
    *,
    scales: Mapping[str, float],
    pooling: Pooling = "last",
    snippets: "pd.DataFrame | None" = None,
    progress: bool = True,
) -> dict[str, LabelledSet]:
    """The sentiment set at each of ``hooks``, by name, from a single run of the model.

    ``scales`` has a scale for each hook, by name; all other arguments are those of `sentiment_set`.
    """
    from saelab.data.language_models import load_sentiment

    frame = load_sentiment() if snippets is None else snippets
    missing = [column for column in ("text", "label", "hard") if column not in frame]
    if missing:
        raise InputError(
            f"snippets lack the column(s) {', '.join(missing)}; saelab.load_sentiment() shows the columns expected"
        )
    if pooling == "mean":
        stores = harvest_many(model, hooks, list(frame.text), scales=scales, progress=progress)
        longest = context_length(model, None) - 2  # a longer text fills the context and may have been truncated
        return {hook: labelled_snippets(frame, *_means(store, len(frame), longest)) for hook, store in stores.items()}
    texts = list(frame.text + SENTIMENT_PROMPT)
    pooled = harvest_pooled_many(model, hooks, texts, scales=scales, pooling=pooling, progress=progress)
    return {hook: labelled_snippets(frame, x) for hook, x in pooled.items()}


def _means(store: ActivationStore, n_texts: int, longest: int) -> tuple[Tensor, ActivationStore]:
    """Mean of each text's tokens, ``(n_texts, d)``, and the store. Raises if a text has no tokens, or too many."""
    counts = _counts(store.text_indices[:], n_texts)
    for index, count in enumerate(counts[:, 0].tolist()):
        if not 1 <= count <= longest:
            raise InputError(
                f"snippet {index} has {'no' if count == 0 else f'more than {longest}'} tokens; the mean takes 1 to "
                f"{longest}, which fit into the context. Leave it out, or shorten it"
            )
    tokens = store.activations[:]
    sums = tokens.new_zeros(n_texts, tokens.shape[1]).index_add_(0, store.text_indices[:], tokens)
    return sums / counts, store


def labelled_snippets(snippets: "pd.DataFrame", x: Tensor, store: ActivationStore | None = None) -> LabelledSet:
    """The set of ``snippets``, as `sentiment_set` takes them, with activations ``x``, ``(len(snippets), d)``."""
    return LabelledSet(
        x=x,
        labels=torch.tensor(snippets.label.to_numpy()),
        texts=snippets.text.to_numpy(dtype=str),
        blocks=snippets.block.to_numpy(dtype=str) if "block" in snippets else np.full(len(snippets), "all"),
        strata=(snippets.label.astype(str) + snippets.hard.astype(str)).to_numpy(dtype=str),
        store=store,
    )


def _counts(text_indices: Tensor, n: int) -> Tensor:
    """``(n, 1)``: the number of tokens of each text."""
    return torch.bincount(text_indices, minlength=n)[:, None]
