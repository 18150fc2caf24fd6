"""Read features: where each is on, what it makes the model say, and which others are like it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saelab.data.activations import ActivationStore
from saelab.data.hooks import check_hook
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.metrics import FeatureDensity
from saelab.sae.base import SparseAutoencoder, check_activations

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_WRITES_TO_RESIDUAL = re.compile(
    r"(pos_)?embed\.hook_out|blocks\.\d+\.(hook_in|hook_out|ln[12]\.hook_in|(attn|mlp)\.hook_out)|ln_final\.hook_in"
)
"""Hooks, by the names that TransformerLens' bridge gives them, that hold the residual stream or what is added to it."""
_MLP_NEURONS = re.compile(r"blocks\.(\d+)\.mlp\.out\.hook_in")


class Context(NamedTuple):
    """A piece of text in which a feature is on, around its greatest activation in that text."""

    text_index: int
    """The text, counted from 0 in the order that was harvested."""
    position: int
    """Of the greatest activation among that text's tokens, counted from 0 at the first that is not special."""
    tokens: tuple[str, ...]
    """The text piece, token by token; joined, they are the text. A token that ends within a character is empty, and
    the one that completes the character holds it."""
    activations: tuple[float, ...]
    """The feature's code on each of ``tokens``, in units of the store's scaled activations."""
    peak: int
    """Which of ``tokens`` has the greatest."""

    @property
    def activation(self) -> float:
        """The greatest, on the token `peak`."""
        return self.activations[self.peak]

    def __str__(self) -> str:
        before, at, after = self.tokens[: self.peak], self.tokens[self.peak], self.tokens[self.peak + 1 :]
        return f"{self.activation:8.3f}  {_shown(''.join(before))}[[{_shown(at)}]]{_shown(''.join(after))}"


class TokenEffect(NamedTuple):
    """How much a feature raises a token's logit, or lowers it."""

    token: str
    token_id: int
    effect: float
    """Positive where raised. See `read_features`: its order and ratios mean something, its size does not."""

    def __str__(self) -> str:
        return f"{self.token!r} {self.effect:+.3f}"


class NearFeature(NamedTuple):
    """Another feature, and how alike the two are."""

    feature: int
    cosine: float
    """Between their decoder rows."""

    def __str__(self) -> str:
        return f"{self.feature} ({self.cosine:.2f})"


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureReading:
    """What `read_features` finds out about one feature. Printed, it is a page; `as_dict` is a row of a DataFrame."""

    feature: int
    """Its index in the SAE."""
    density: float
    """Share of all tokens of the store on which it is on (code > 0); 0 is dead."""
    contexts: tuple[Context, ...]
    """Where it is most on, greatest activation first, each from another text."""
    raised: tuple[TokenEffect, ...]
    """Tokens that it makes the model say, most raised first; empty where its hook does not reach the logits so."""
    lowered: tuple[TokenEffect, ...]
    """Tokens that it keeps the model from saying, most lowered first; empty likewise."""
    nearest: tuple[NearFeature, ...]
    """Features with the most similar decoder rows, most similar first."""
    probe_weight: float | None = None
    """Its weight in the probe that was given."""

    @property
    def max_activation(self) -> float:
        """Its greatest code in the store; 0 where it is dead."""
        return self.contexts[0].activation if self.contexts else 0.0

    def as_dict(self) -> dict[str, Any]:
        """One flat row: numbers as they are, tokens and features as text."""
        return {
            "feature": self.feature,
            "density": self.density,
            "max_activation": self.max_activation,
            "top_token": self.contexts[0].tokens[self.contexts[0].peak] if self.contexts else "",
            "raised": ", ".join(repr(effect.token) for effect in self.raised),
            "lowered": ", ".join(repr(effect.token) for effect in self.lowered),
            "nearest": ", ".join(map(str, self.nearest)),
            "probe_weight": self.probe_weight,
        }

    def __str__(self) -> str:
        head = f"feature {self.feature}: on for {self.density:.3%} of tokens"
        if self.probe_weight is not None:
            head += f", probe weight {self.probe_weight:+.4g}"
        parts = {"raises": self.raised, "lowers": self.lowered, "nearest": self.nearest}
        lines = [f"  {name:<8} {', '.join(map(str, values))}" for name, values in parts.items() if values]
        contexts = [f"  {context}" for context in self.contexts] or ["  on for no token of this store"]
        return "\n".join([head, *lines, *contexts])

    def __repr__(self) -> str:
        return (
            f"FeatureReading(feature={self.feature}, density={self.density:.4g}, "
            f"max_activation={self.max_activation:.4g}, {len(self.contexts)} contexts)"
        )


def _shown(text: str) -> str:
    """On one line, with everything that is not printed written out: line breaks, tabs, a terminal's escape codes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@torch.no_grad()
def read_features(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    store: ActivationStore,
    *,
    features: Sequence[int] | Tensor | None = None,
    n_contexts: int = 10,
    before: int = 12,
    after: int = 6,
    n_tokens: int = 8,
    n_nearest: int = 5,
    probe_weights: Tensor | None = None,
    batch_size: int = 1024,
    progress: bool = True,
) -> list[FeatureReading]:
    """What each of ``features`` reacts to and does: its top contexts, density, logit effects and nearest features.

    A feature's effect on a token's logit is the straight path from its decoder row d to the unembedding,
    ``(d * w) @ W_U``, less its mean over the vocabulary, which softmax does not see (nostalgebraist 2020, "the logit
    lens"; Bricken et al. 2023). w is the final norm's weight, and a LayerNorm's centring of d counts too. Left out are
    what later layers make of the feature, and that the final norm divides by the size of the residual stream, other at
    every token: so the order of tokens and the ratio of their effects mean something, the size does not. At MLP
    neurons (``mlp.hook_post``) d is first taken through the MLP's ``W_out``. At hooks that write neither there nor to
    the residual stream there is no such path, and no token is listed.

    Parameters
    ----------
    model
        The one that the store was harvested from, for its tokenizer and unembedding.
    sae
        As it stands, with its `gate_threshold`.
    store
        From `saelab.harvest`, as it came: text by text, scaled as the SAE was trained.
    features
        Their indices; all by default.
    n_contexts
        At most so many for each feature, and one of each text: texts with the same tokens, such as a review that was
        posted twice, are one.
    before, after
        Tokens shown on either side of the greatest activation, as far as the text was harvested.
    n_tokens, n_nearest
        How many tokens it raises and lowers, and how many near features.
    probe_weights
        ``(d_sae,)``: a weight for each feature, such as a logistic regression's ``coef_[0]`` on codes.
    batch_size
        Activations at a time; their codes are in memory at once, ``(batch_size, d_sae)``.
    progress
        Show a bar.

    Returns
    -------
    list of FeatureReading
        In the order asked. ``pd.DataFrame([reading.as_dict() for reading in readings])`` is a table of them.

    Raises
    ------
    TypeError, ValueError
        Features that the SAE has not, a store of another width or out of order, a hook that the model has not, probe
        weights of another shape, sizes that cannot be.

    Examples
    --------
    >>> for reading in read_features(model, sae, store, features=[3, 14]):
    ...     print(reading)
    """
    check_hook(model, store.hook)
    asked = _asked(features, sae.d_sae)
    for name, value, least in (
        ("n_contexts", n_contexts, 1),
        ("batch_size", batch_size, 1),
        ("before", before, 0),
        ("after", after, 0),
        ("n_tokens", n_tokens, 0),
        ("n_nearest", n_nearest, 0),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    if probe_weights is not None:
        probe_weights = torch.as_tensor(probe_weights).detach().cpu()
    if probe_weights is not None and probe_weights.shape != (sae.d_sae,):
        raise InputError(
            f"probe_weights must be ({sae.d_sae},), one a feature, not of shape {tuple(probe_weights.shape)}; "
            "of scikit-learn's coef_ take torch.as_tensor(coef_[0])"
        )
    # The tokens, small beside the activations, are in memory from here on.
    store = replace(
        store, token_ids=store.token_ids[:], text_indices=store.text_indices[:], positions=store.positions[:]
    )
    _check_order(store)
    check_activations(store.activations[:1], sae.d_in)
    density, peaks = _find_peaks(sae, store, asked, n_contexts, batch_size, progress)
    rows, inside, codes = _around(sae, store, asked, peaks, before, after, batch_size)
    pieces = _Pieces(model.tokenizer)
    contexts: list[list[Context]] = [[] for _ in asked]
    for index, column in enumerate(peaks.column.tolist()):
        shown = inside[index]
        contexts[column].append(
            Context(
                text_index=int(store.text_indices[peaks.row[index]]),
                position=int(store.positions[peaks.row[index]]),
                tokens=pieces.of(store.token_ids[rows[index][shown]].tolist()),
                activations=tuple(codes[index][shown].tolist()),
                peak=int(shown[:before].sum()),
            )
        )
    raised, lowered = _token_effects(model, store.hook, sae.W_dec[asked.to(sae.W_dec.device)], n_tokens, pieces)
    nearest = _nearest(sae.W_dec, asked, n_nearest)
    weights = [None] * len(asked) if probe_weights is None else probe_weights[asked].tolist()
    return [
        FeatureReading(
            feature=feature,
            density=float(density[column]),
            contexts=tuple(contexts[column]),
            raised=raised[column],
            lowered=lowered[column],
            nearest=nearest[column],
            probe_weight=weights[column],
        )
        for column, feature in enumerate(asked.tolist())
    ]


def _asked(features: Sequence[int] | Tensor | None, d_sae: int) -> Tensor:
    """``(n_features,)``: indices of the features to read."""
    if features is None:
        return torch.arange(d_sae)
    if isinstance(features, int):
        raise InputTypeError(f"features must be a list of indices, not one; try [{features}]")
    asked = torch.as_tensor(features).cpu()
    if asked.ndim != 1 or len(asked) == 0 or asked.is_floating_point() or asked.dtype == torch.bool:
        raise InputTypeError(
            f"features must be a list of at least one index, not {asked.dtype} of shape {tuple(asked.shape)}; "
            "of a mask take mask.nonzero().flatten()"
        )
    wrong = asked[(asked < 0) | (asked >= d_sae)]
    if len(wrong):
        raise InputError(f"this SAE has features 0 to {d_sae - 1}; asked for {wrong[:5].tolist()}")
    return asked.long()


def _check_order(store: ActivationStore) -> None:
    texts, positions = store.text_indices[:].diff(), store.positions[:].diff()
    if (texts < 0).any() or ((texts == 0) & (positions <= 0)).any():
        raise InputError(
            "the store's rows are out of order; expected text after text and token after token, as harvest gives them: "
            "read features before shuffling, or harvest again"
        )


class _Peaks(NamedTuple):
    """Entries of the codes, each the greatest of its feature in its text. Each field is ``(n,)``."""

    column: Tensor
    """Which of the features asked for."""
    text: Tensor
    """Its number in `_distinct_texts`."""
    row: Tensor
    """Of the store."""
    value: Tensor
    """The code there."""


def _find_peaks(
    sae: SparseAutoencoder, store: ActivationStore, asked: Tensor, n_contexts: int, batch_size: int, progress: bool
) -> tuple[Tensor, _Peaks]:
    """Density of each feature, ``(n_features,)``, and its `n_contexts` best texts, by feature and greatest first."""
    from tqdm.auto import tqdm

    density, texts = FeatureDensity(), _distinct_texts(store)
    empty = torch.empty(0, dtype=torch.long)
    peaks = _Peaks(empty, empty, empty, torch.empty(0))
    floor = torch.zeros(len(asked))  # what a code must exceed to be among the best: 0, until the list is full
    with tqdm(total=len(store), desc="reading features", unit="tok", leave=False, disable=not progress) as bar:
        for start in range(0, len(store), batch_size):
            codes = _codes(sae, store.activations[start : start + batch_size], asked)
            density.add_batch(codes)
            row, column = (codes > floor).nonzero(as_tuple=True)
            found = _Peaks(column, texts[row + start], row + start, codes[row, column])
            both = _Peaks(*(torch.cat(parts) for parts in zip(peaks, found, strict=True)))
            peaks, floor = _best_texts(both, len(asked), n_contexts)
            bar.update(len(codes))
    return density.compute(), peaks


def _codes(sae: SparseAutoencoder, x: Tensor, asked: Tensor) -> Tensor:
    """Codes of the features ``asked`` for: ``(batch, d_in)`` to ``(batch, n_features)``, on the CPU."""
    codes = sae.encode(x.to(device=sae.W_enc.device, dtype=sae.W_enc.dtype))
    return codes[:, asked.to(codes.device)].float().cpu()


def _distinct_texts(store: ActivationStore) -> Tensor:
    """``(n,)``: the text of each activation by its tokens, so that a text which comes again has the same number."""
    counts = torch.unique_consecutive(store.text_indices[:], return_counts=True)[1]
    numbers: dict[int, int] = {}
    texts = torch.split(store.token_ids[:], counts.tolist())
    of_text = [numbers.setdefault(hash(ids.numpy().tobytes()), len(numbers)) for ids in texts]
    return torch.tensor(of_text).repeat_interleave(counts)


def _best_texts(peaks: _Peaks, n_features: int, n_contexts: int) -> tuple[_Peaks, Tensor]:
    """Of each feature and text the greatest entry, of each feature the best ``n_contexts``; and the new floor.

    Of equal entries the first stays, as all sorting is stable.
    """
    falling = peaks.value.argsort(descending=True, stable=True)
    pair = (peaks.column * (int(peaks.text.max()) + 1) + peaks.text if len(peaks.text) else peaks.text)[falling]
    order = pair.argsort(stable=True)
    is_first = torch.ones(len(pair), dtype=torch.bool)
    is_first[1:] = pair[order].diff() != 0
    kept = falling[order[is_first].sort().values]  # greatest first again
    kept = kept[peaks.column[kept].argsort(stable=True)]
    column = peaks.column[kept]
    counts = torch.bincount(column, minlength=n_features)
    rank = torch.arange(len(kept)) - (counts.cumsum(0) - counts)[column]
    best = _Peaks(*(part[kept[rank < n_contexts]] for part in peaks))
    floor = torch.zeros(n_features)
    is_last = rank == n_contexts - 1
    floor[column[is_last]] = peaks.value[kept[is_last]]
    return best, floor


def _around(
    sae: SparseAutoencoder,
    store: ActivationStore,
    asked: Tensor,
    peaks: _Peaks,
    before: int,
    after: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Around each peak: rows of the store, which of them are its text's, and its feature's codes. ``(n, window)``."""
    offsets = torch.arange(-before, after + 1)
    rows = peaks.row[:, None] + offsets
    inside = (rows >= 0) & (rows < len(store))
    rows = rows.clamp(0, len(store) - 1)
    inside &= store.text_indices[rows] == store.text_indices[peaks.row][:, None]
    inside &= store.positions[rows] - store.positions[peaks.row][:, None] == offsets
    # Each token that is shown anywhere is encoded once, whatever the number of features that show it.
    wanted, which = torch.unique(rows[inside], return_inverse=True)
    column = peaks.column[:, None].expand_as(rows)[inside]
    found = torch.zeros(len(which))
    for start in range(0, len(wanted), batch_size):
        codes = _codes(sae, store.activations[wanted[start : start + batch_size]], asked)
        here = (which >= start) & (which < start + len(codes))
        found[here] = codes[which[here] - start, column[here]]
    around = torch.zeros(rows.shape)
    around[inside] = found
    around[:, before] = peaks.value  # the number that they were ordered by: another batch may round otherwise
    return rows, inside, around


class _Pieces:
    """Token ids as pieces of text that, joined, are the text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        # Decoded alone, a token may lose its leading space: it is decoded behind another one.
        self._lead: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._lead_text = self._decode(self._lead)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def one(self, token: int) -> str:
        """A single token; bytes that are no whole character show as the replacement character."""
        if token not in self._known:
            text = self._decode([*self._lead, token])
            led = text.startswith(self._lead_text)
            self._known[token] = text[len(self._lead_text) :] if led else self._decode([token])
        return self._known[token]

    def of(self, ids: list[int]) -> tuple[str, ...]:
        """As many pieces as ``ids``. A character of several tokens is in the last of them, the others are empty."""
        pieces = [self.one(token) for token in ids]
        if not any("\ufffd" in piece for piece in pieces):
            return tuple(pieces)
        pieces, done = [], len(self._lead_text)
        for end in range(1, len(ids) + 1):
            text = self._decode([*self._lead, *ids[:end]])
            whole = not text.endswith("\ufffd") or end == len(ids)
            pieces.append(text[done:] if whole else "")
            done = len(text) if whole else done
        return tuple(pieces)


def _to_residual(model: "TransformerBridge", hook: str, directions: Tensor) -> Tensor | None:
    """What ``directions`` ``(f, d_in)`` at ``hook`` add to the residual stream, ``(f, d_model)``, if they do so."""
    name = model.hook_dict[hook].name or hook
    neurons = _MLP_NEURONS.fullmatch(name)
    if neurons:
        W_out: Tensor = model.blocks[int(neurons[1])].mlp.W_out.detach()
        return directions.to(W_out.device, torch.float32) @ W_out.float()
    return directions.float() if _WRITES_TO_RESIDUAL.fullmatch(name) else None


def _logit_effects(model: "TransformerBridge", residual: Tensor) -> Tensor:
    """Of directions ``(f, d_model)`` in the residual stream on each logit, ``(f, vocabulary)``, centred."""
    # Some vocabularies are padded with tokens that do not exist.
    W_U = model.W_U.detach()[:, : len(model.tokenizer)].float()
    direction = residual.to(W_U.device)
    norm = getattr(model, "ln_final", None)
    if norm is not None:
        if not getattr(norm, "uses_rms_norm", False):
            direction = direction - direction.mean(dim=1, keepdim=True)
        weight = getattr(norm, "weight", None)
        if weight is not None:
            # Gemma's norms multiply by 1 + weight.
            direction = direction * (weight.detach().float() + float(getattr(norm, "uses_weight_offset", False)))
    effects = direction @ W_U
    return effects - effects.mean(dim=1, keepdim=True)


def _token_effects(
    model: "TransformerBridge", hook: str, directions: Tensor, n_tokens: int, pieces: _Pieces
) -> tuple[list[tuple[TokenEffect, ...]], list[tuple[TokenEffect, ...]]]:
    """The tokens that each of ``directions`` ``(f, d_in)`` raises most, and lowers most."""
    raised: list[tuple[TokenEffect, ...]] = []
    lowered: list[tuple[TokenEffect, ...]] = []
    for some in torch.split(directions, 256):  # times the vocabulary, all features at once could fill the memory
        residual = _to_residual(model, hook, some)
        if residual is None or n_tokens == 0:
            raised += [()] * len(some)
            lowered += [()] * len(some)
            continue
        effects = _logit_effects(model, residual).cpu()
        for sign, lists in ((1, raised), (-1, lowered)):
            top = (sign * effects).topk(min(n_tokens, effects.shape[1]), dim=1)
            for values, tokens in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                pairs = zip(tokens, values, strict=True)
                lists.append(tuple(TokenEffect(pieces.one(token), token, sign * value) for token, value in pairs))
    return raised, lowered


def _nearest(W_dec: Tensor, asked: Tensor, n_nearest: int) -> list[tuple[NearFeature, ...]]:
    """The features whose decoder rows have the greatest cosine with each feature's asked for, itself left out."""
    rows = normalize(W_dec.detach().float())
    nearest: list[tuple[NearFeature, ...]] = []
    for some in torch.split(asked.to(rows.device), 1024):
        cosines = rows[some] @ rows.T
        cosines[torch.arange(len(some)), some] = -torch.inf
        top = cosines.topk(min(n_nearest, len(rows) - 1), dim=1)
        for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            nearest.append(tuple(NearFeature(*pair) for pair in zip(indices, values, strict=True)))
    return nearest
