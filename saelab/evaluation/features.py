"""Read features: where each is on, which tokens it promotes, and which other features are similar."""

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
"""Hooks (by their names in TransformerLens' bridge) that hold the residual stream or an update added to it."""
_MLP_NEURONS = re.compile(r"blocks\.(\d+)\.mlp\.out\.hook_in")


class Context(NamedTuple):
    """A piece of text around a feature's maximum activation in that text."""

    text_index: int
    """Index of the text in the order harvested, from 0."""
    position: int
    """Position of the maximum among that text's tokens; the first non-special token has position 0."""
    tokens: tuple[str, ...]
    """The tokens as text; joined, they give the text. If a character spans several tokens, the last of them holds it
    and the others are empty."""
    activations: tuple[float, ...]
    """The feature's code on each of ``tokens``, in units of the store's scaled activations."""
    peak: int
    """Index in ``tokens`` of the maximum."""

    @property
    def activation(self) -> float:
        """The maximum activation, on the token at `peak`."""
        return self.activations[self.peak]

    def __str__(self) -> str:
        before, at, after = self.tokens[: self.peak], self.tokens[self.peak], self.tokens[self.peak + 1 :]
        return f"{self.activation:8.3f}  {_shown(''.join(before))}[[{_shown(at)}]]{_shown(''.join(after))}"


class TokenEffect(NamedTuple):
    """How much a feature raises or lowers a token's logit."""

    token: str
    token_id: int
    effect: float
    """Positive if raised. Its order and ratios are meaningful, its absolute size is not; see `read_features`."""

    def __str__(self) -> str:
        return f"{self.token!r} {self.effect:+.3f}"


class NearFeature(NamedTuple):
    """Another feature and its similarity."""

    feature: int
    cosine: float
    """Cosine similarity of their decoder rows."""

    def __str__(self) -> str:
        return f"{self.feature} ({self.cosine:.2f})"


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureReading:
    """What `read_features` finds about one feature. It prints as a page; `as_dict` gives a row of a DataFrame."""

    feature: int
    """Its index in the SAE."""
    density: float
    """Share of the store's tokens on which it is on (code > 0); 0 if it is dead."""
    contexts: tuple[Context, ...]
    """Its top-activating contexts, each from a different text, greatest activation first."""
    raised: tuple[TokenEffect, ...]
    """Tokens whose logits it raises most, most raised first; empty if its hook has no direct path to the logits."""
    lowered: tuple[TokenEffect, ...]
    """Tokens whose logits it lowers most, most lowered first; empty in the same cases."""
    nearest: tuple[NearFeature, ...]
    """Features with the most similar decoder rows, most similar first."""
    probe_weight: float | None = None
    """Its entry in the ``probe_weights`` given."""

    @property
    def max_activation(self) -> float:
        """Its maximum code in the store; 0 if it is dead."""
        return self.contexts[0].activation if self.contexts else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A flat row: numbers unchanged, tokens and features as text."""
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
    """``text`` on one line, with non-printable characters escaped: line breaks, tabs, terminal escape codes."""
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
    """What each of ``features`` responds to and does: top contexts, density, logit effects and nearest features.

    A feature's effect on a token's logit is the direct path from its decoder row d to the unembedding,
    ``(d * w) @ W_U``, minus its mean over the vocabulary, to which softmax is invariant (nostalgebraist 2020, "the
    logit lens"; Bricken et al. 2023). w is the final norm's weight; a LayerNorm's centring is applied to d. This
    ignores the effects through later layers, and that the final norm divides by the size of the residual stream, which
    differs between tokens: so the order of tokens and the ratios of their effects are meaningful, the absolute size is
    not. At MLP neurons (``mlp.hook_post``), d is first multiplied by the MLP's ``W_out``. Other hooks that do not write
    to the residual stream have no such path, and no tokens are listed.

    Parameters
    ----------
    model
        The model that the store was harvested from, for its tokenizer and unembedding.
    sae
        The SAE; its `gate_threshold` applies.
    store
        From `saelab.harvest`, in its original order, in the scale the SAE was trained on.
    features
        Indices of the features; all by default.
    n_contexts
        Maximum number of contexts per feature, one per text. Texts with the same tokens, such as a review that was
        posted twice, count as one.
    before, after
        Number of tokens to show on each side of the maximum activation, within the harvested text.
    n_tokens, n_nearest
        Number of raised and of lowered tokens, and of nearest features.
    probe_weights
        ``(d_sae,)``: a weight for each feature, such as a logistic regression's ``coef_[0]`` on codes.
    batch_size
        Activations per batch; the codes of a batch, ``(batch_size, d_sae)``, must fit into memory.
    progress
        Show a bar.

    Returns
    -------
    list of FeatureReading
        One per feature, in order. ``pd.DataFrame([reading.as_dict() for reading in readings])`` makes a table of them.

    Raises
    ------
    TypeError, ValueError
        The SAE lacks a feature, the store has another width or is out of order, the model lacks the hook,
        ``probe_weights`` has another shape, or a number is out of range.

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
            f"probe_weights must be ({sae.d_sae},), one per feature, not of shape {tuple(probe_weights.shape)}; "
            "from scikit-learn's coef_ take torch.as_tensor(coef_[0])"
        )
    # The tokens are small compared with the activations, so they are kept in memory.
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
        raise InputTypeError(f"features must be a list of indices, not a single one; try [{features}]")
    asked = torch.as_tensor(features).cpu()
    if asked.ndim != 1 or len(asked) == 0 or asked.is_floating_point() or asked.dtype == torch.bool:
        raise InputTypeError(
            f"features must be a list of at least one index, not {asked.dtype} of shape {tuple(asked.shape)}; "
            "for a mask, pass mask.nonzero().flatten()"
        )
    wrong = asked[(asked < 0) | (asked >= d_sae)]
    if len(wrong):
        raise InputError(f"this SAE has features 0 to {d_sae - 1}; asked for {wrong[:5].tolist()}")
    return asked.long()


def _check_order(store: ActivationStore) -> None:
    texts, positions = store.text_indices[:].diff(), store.positions[:].diff()
    if (texts < 0).any() or ((texts == 0) & (positions <= 0)).any():
        raise InputError(
            "the store's rows are out of order; expected texts and their tokens in the order that harvest gives: "
            "read features before shuffling, or harvest again"
        )


class _Peaks(NamedTuple):
    """Maxima of the codes of a feature over a text. Each field is ``(n,)``."""

    column: Tensor
    """Index among the requested features."""
    text: Tensor
    """Number of the text in `_distinct_texts`."""
    row: Tensor
    """Row of the store."""
    value: Tensor
    """Code at that row."""


def _find_peaks(
    sae: SparseAutoencoder, store: ActivationStore, asked: Tensor, n_contexts: int, batch_size: int, progress: bool
) -> tuple[Tensor, _Peaks]:
    """Density of each feature, ``(n_features,)``, and the peaks of its `n_contexts` top texts, greatest first."""
    from tqdm.auto import tqdm

    density, texts = FeatureDensity(), _distinct_texts(store)
    empty = torch.empty(0, dtype=torch.long)
    peaks = _Peaks(empty, empty, empty, torch.empty(0))
    floor = torch.zeros(len(asked))  # what a code must exceed to enter the list: 0 until the list is full
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
    """Codes of the requested features: ``(batch, d_in)`` to ``(batch, n_features)``, on the CPU."""
    codes = sae.encode(x.to(device=sae.W_enc.device, dtype=sae.W_enc.dtype))
    return codes[:, asked.to(codes.device)].float().cpu()


def _distinct_texts(store: ActivationStore) -> Tensor:
    """``(n,)``: a text number for each activation; texts with the same tokens have the same number."""
    counts = torch.unique_consecutive(store.text_indices[:], return_counts=True)[1]
    numbers: dict[int, int] = {}
    texts = torch.split(store.token_ids[:], counts.tolist())
    of_text = [numbers.setdefault(hash(ids.numpy().tobytes()), len(numbers)) for ids in texts]
    return torch.tensor(of_text).repeat_interleave(counts)


def _best_texts(peaks: _Peaks, n_features: int, n_contexts: int) -> tuple[_Peaks, Tensor]:
    """The maximum of each feature and text, limited to the top ``n_contexts`` of each feature; and the new floor.

    Among equal entries the first is kept, as all sorting is stable.
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
    """Window around each peak, ``(n, window)``: rows of the store, a mask of those in its text, codes."""
    offsets = torch.arange(-before, after + 1)
    rows = peaks.row[:, None] + offsets
    inside = (rows >= 0) & (rows < len(store))
    rows = rows.clamp(0, len(store) - 1)
    inside &= store.text_indices[rows] == store.text_indices[peaks.row][:, None]
    inside &= store.positions[rows] - store.positions[peaks.row][:, None] == offsets
    # Each token is encoded once, no matter how many features show it.
    wanted, which = torch.unique(rows[inside], return_inverse=True)
    column = peaks.column[:, None].expand_as(rows)[inside]
    found = torch.zeros(len(which))
    for start in range(0, len(wanted), batch_size):
        codes = _codes(sae, store.activations[wanted[start : start + batch_size]], asked)
        here = (which >= start) & (which < start + len(codes))
        found[here] = codes[which[here] - start, column[here]]
    around = torch.zeros(rows.shape)
    around[inside] = found
    around[:, before] = peaks.value  # the value used for sorting, as another batch may round differently
    return rows, inside, around


class _Pieces:
    """Converts token ids to pieces of text that join to the whole text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        # A token decoded alone may lose its leading space, so it is decoded after another token.
        self._lead: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._lead_text = self._decode(self._lead)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def one(self, token: int) -> str:
        """A single token; an incomplete character is shown as the replacement character."""
        if token not in self._known:
            text = self._decode([*self._lead, token])
            led = text.startswith(self._lead_text)
            self._known[token] = text[len(self._lead_text) :] if led else self._decode([token])
        return self._known[token]

    def of(self, ids: list[int]) -> tuple[str, ...]:
        """One piece per id. If a character spans several tokens, the last holds it and the others are empty."""
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
    """Contribution of ``directions`` ``(f, d_in)`` at ``hook`` to the residual stream, ``(f, d_model)``, or None."""
    name = model.hook_dict[hook].name or hook
    neurons = _MLP_NEURONS.fullmatch(name)
    if neurons:
        W_out: Tensor = model.blocks[int(neurons[1])].mlp.W_out.detach()
        return directions.to(W_out.device, torch.float32) @ W_out.float()
    return directions.float() if _WRITES_TO_RESIDUAL.fullmatch(name) else None


def _logit_effects(model: "TransformerBridge", residual: Tensor) -> Tensor:
    """Effect of directions ``(f, d_model)`` in the residual stream on each logit, ``(f, vocabulary)``, centred."""
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
    """The tokens that each of ``directions`` ``(f, d_in)`` raises most, and those that it lowers most."""
    raised: list[tuple[TokenEffect, ...]] = []
    lowered: list[tuple[TokenEffect, ...]] = []
    for some in torch.split(directions, 256):  # the logits of all features at once could fill the memory
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
    """For each requested feature, the other features whose decoder rows have the greatest cosine with its own."""
    rows = normalize(W_dec.detach().float())
    nearest: list[tuple[NearFeature, ...]] = []
    for some in torch.split(asked.to(rows.device), 1024):
        cosines = rows[some] @ rows.T
        cosines[torch.arange(len(some)), some] = -torch.inf
        top = cosines.topk(min(n_nearest, len(rows) - 1), dim=1)
        for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            nearest.append(tuple(NearFeature(*pair) for pair in zip(indices, values, strict=True)))
    return nearest
