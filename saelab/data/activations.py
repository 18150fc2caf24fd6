"""Harvest activations: run a language model over text and keep what some of its hooks see."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor

from saelab.data.hooks import check_hook, check_texts, context_length, hook_batches, is_special
from saelab.data.shards import Shard, ShardWriter, StoredRows, StoreError, open_shards, read_index, sum_of_squares
from saelab.errors import InputError
from saelab.sae.base import TrainedOn, check_activations

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pooling = Literal["last", "mean"]
Rows = Tensor | StoredRows
"""Rows in memory, or on disk: both have a length and a shape, and give a tensor where they are indexed."""
TOKEN_COLUMNS = ("token_ids", "text_indices", "positions")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ActivationStore:
    """Activations of one hook, each traceable to its token; in memory, or on disk and then as large as the disk.

    ``len(store)`` is the number of activations; `Trainer` takes a store as it is. ``store.activations[:1000]`` is a
    tensor wherever they are kept.
    """

    activations: Rows
    """``(n, d_in)``, scaled so that E||x||^2 = d_in."""
    scale: float
    """The factor that was applied: the model's own activation is ``activations / scale``."""
    model_name: str
    """The model, by the name that `saelab.load_language_model` takes."""
    hook: str
    """Where in the model they were taken."""
    token_ids: Rows
    """``(n,)``: the token at each activation."""
    text_indices: Rows
    """``(n,)``: the text each activation comes from, counted from 0 in the order given."""
    positions: Rows
    """``(n,)``: its position in that text's tokens, counted from 0 at the first token after BOS."""

    def __len__(self) -> int:
        return len(self.activations)

    @property
    def trained_on(self) -> TrainedOn:
        """What an SAE that is trained on it has to remember, to find its place in the model again."""
        return TrainedOn(self.model_name, self.hook, self.scale)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], hook: str | None = None) -> "ActivationStore":
        """The store that ``harvest(..., store=folder)`` made; of several hooks, that of ``hook``.

        Nothing is read but its files' headers. Every byte is checked the first time that it is used.

        Raises
        ------
        saelab.StoreError
            There is no whole store, or one of its files is missing, cut or changed; names the file.
        ValueError
            It has no such hook, or several and none was named.
        """
        folder = Path(folder)
        index = read_index(folder)
        if not index["complete"]:
            raise StoreError(
                f"{folder}: its harvest was stopped before the end; call harvest again with the same arguments"
            )
        scales = index["scales"]
        if hook is None and len(scales) == 1:
            hook = next(iter(scales))
        if hook is None or hook not in scales:
            raise InputError(f"{folder} holds activations of {', '.join(scales)}; name one as hook, not {hook!r}")
        return _stored(open_shards(folder, index), index["recipe"]["model"], hook, scales[hook])


def _stored(shards: Sequence[Shard], model_name: str, hook: str, scale: float) -> ActivationStore:
    tokens = (StoredRows(shards, name) for name in TOKEN_COLUMNS)
    return ActivationStore(StoredRows(shards, hook, scale=scale), scale, model_name, hook, *tokens)


@overload
def harvest(
    model: "TransformerBridge",
    hook: str,
    text: Sequence[str],
    *,
    store: str | os.PathLike[str] | None = None,
    n_tokens: int | None = None,
    context: int | None = None,
    scale: float | Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    special_tokens: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> ActivationStore: ...


@overload
def harvest(
    model: "TransformerBridge",
    hook: list[str] | tuple[str, ...],
    text: Sequence[str],
    *,
    store: str | os.PathLike[str] | None = None,
    n_tokens: int | None = None,
    context: int | None = None,
    scale: float | Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    special_tokens: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, ActivationStore]: ...


def harvest(
    model: "TransformerBridge",
    hook: str | list[str] | tuple[str, ...],
    text: Sequence[str],
    *,
    store: str | os.PathLike[str] | None = None,
    n_tokens: int | None = None,
    context: int | None = None,
    scale: float | Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    special_tokens: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> ActivationStore | dict[str, ActivationStore]:
    """Activations of ``hook`` on the tokens of ``text``, scaled so that E||x||^2 = d_in.

    With a ``store`` they are kept on disk and may be far more than fits into memory. A harvest that was stopped or
    killed goes on where it was when it is called again, and ends as it would have ended; one that is whole is opened,
    and the model does not run.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``; or several, for one run of the model.
    text
        Strings; each is read on its own, with BOS in front, and cut to ``context`` tokens.
    store
        Folder to keep them in; in memory by default.
    n_tokens
        Stop after so many tokens; all of ``text`` by default.
    context
        Tokens the model sees at once, BOS included; 128 or the model's own limit where that is lower.
    scale
        Multiply by this instead: another store's ``scale``, for activations that an SAE trained on it is to see. For
        several hooks, a scale each by name.
    dtype
        Kept as float32, float16 or bfloat16, the last two in half the space. Read from disk they are float32 again.
    special_tokens
        Keep the activations at BOS, EOS and padding within a text too; BOS then has position -1.
    batch_size
        Texts at a time.
    progress
        Show a bar, with tokens per second.

    Returns
    -------
    ActivationStore, or a dict of them
        One store for one hook; for a list of hooks a store each, by name.

    Raises
    ------
    TypeError, ValueError
        A hook that does not exist (with those that do) or that is not ``(batch, tokens, d_in)``, text that is empty or
        no list, a context the model cannot take, an ``n_tokens`` below 1, a ``scale`` that is not positive, activations
        that are not finite.
    FileExistsError
        ``store`` holds a harvest of another kind, or something else.
    saelab.StoreError
        What was begun in ``store`` cannot be read; names the file.
    """
    hooks = [hook] if isinstance(hook, str) else list(hook)
    if not hooks or len(set(hooks)) < len(hooks):
        raise InputError(f"hook must be a hook's name, or a list of at least one, each once; not {hook!r}")
    for name in hooks:
        check_hook(model, name)
    check_texts(text)
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"n_tokens must be at least 1, not {n_tokens}")
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype}")
    reading = _Reading(
        model, hooks, text, context_length(model, context), batch_size, n_tokens, special_tokens, dtype, progress
    )
    scales = _scales_of(hooks, scale)
    stores = reading.in_memory(scales) if store is None else reading.on_disk(Path(store), scales)
    return stores[hook] if isinstance(hook, str) else stores


def _scales_of(hooks: Sequence[str], scale: float | Mapping[str, float] | None) -> dict[str, float]:
    """The scale that the user gave each of ``hooks``; empty where none was given."""
    if scale is None:
        return {}
    if isinstance(scale, Mapping):
        scales = {hook: float(scale[hook]) for hook in hooks if hook in scale}
    else:
        scales = {hooks[0]: float(scale)}
    if len(scales) < len(hooks):
        raise InputError("several hooks need a scale each: scale={hook: other_store.scale, ...}")
    for given in scales.values():
        if not 0 < given < float("inf"):
            raise InputError(f"scale must be a positive number, such as another store's, not {given}")
    return scales


@dataclass(frozen=True)
class _Reading:
    """One run of a model over text, whose arguments were found to be right."""

    model: "TransformerBridge"
    hooks: Sequence[str]
    text: Sequence[str]
    context: int
    batch_size: int
    n_tokens: int | None
    special_tokens: bool
    dtype: torch.dtype
    progress: bool

    def recipe(self) -> dict[str, Any]:
        """All that decides what is harvested, but for rounding."""
        words = hashlib.blake2b(digest_size=16)
        for text in self.text:
            words.update(len(text).to_bytes(8, "little") + text.encode(errors="surrogatepass"))
        # A model under the same name may have been trained further; then its first weights differ too.
        weights = hashlib.blake2b(digest_size=16)
        for name, parameter in self.model.named_parameters():
            weights.update(name.encode() + parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return {
            "model": self.model.cfg.model_name,
            "weights": weights.hexdigest(),
            "hooks": list(self.hooks),
            "text": words.hexdigest(),
            "context": self.context,
            "n_tokens": self.n_tokens,
            "special_tokens": self.special_tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def rows(self, n_done: int = 0, after: tuple[int, int] = (-1, -1)) -> Iterator[dict[str, Tensor]]:
        """The rows of each batch of texts by column, from the token after that text and position on."""
        from tqdm.auto import tqdm

        # Batches of the same texts as in a run from the beginning: another batch rounds otherwise.
        first = max(0, after[0]) // self.batch_size * self.batch_size
        label = f"harvesting {', '.join(self.hooks)}"
        with tqdm(
            initial=n_done, desc=label, unit="tok", unit_scale=True, leave=False, disable=not self.progress
        ) as bar:
            for values, ids, mask in hook_batches(
                self.model, self.hooks, self.text[first:], self.context, self.batch_size
            ):
                n_texts = first + len(ids)
                wanted = torch.ones_like(mask) if self.special_tokens else mask & ~is_special(self.model, ids)
                wanted &= mask | (torch.arange(ids.shape[1]) == 0)  # never padding
                text, position = wanted.nonzero(as_tuple=True)
                text, position = text + first, position - 1
                first = n_texts
                new = (text > after[0]) | ((text == after[0]) & (position > after[1]))
                text, position = text[new], position[new]
                if self.n_tokens is not None:
                    text, position = text[: self.n_tokens - n_done], position[: self.n_tokens - n_done]
                place = text - (n_texts - len(ids)), position + 1
                if len(text):
                    rows = {hook: x[place].to(self.dtype).cpu() for hook, x in values.items()}
                    for x in rows.values():
                        check_activations(x)
                    tokens = (ids[place], text, position)
                    yield rows | {name: t.int() for name, t in zip(TOKEN_COLUMNS, tokens, strict=True)}
                n_done += len(text)
                expected = round(n_done / n_texts * len(self.text))
                bar.total = expected if self.n_tokens is None else min(self.n_tokens, expected)
                bar.update(len(text))
                if n_done == self.n_tokens:
                    break
        if n_done == 0:
            raise InputError("text holds no tokens; expected at least one string that is not empty")

    def in_memory(self, scales: Mapping[str, float]) -> dict[str, ActivationStore]:
        kept = list(self.rows())
        columns = {name: torch.cat([rows.pop(name) for rows in kept]) for name in list(kept[0])}
        tokens = [columns[name].long() for name in TOKEN_COLUMNS]
        stores = {}
        for hook in self.hooks:
            x = columns[hook]
            scale = scales[hook] if hook in scales else _scale(sum_of_squares(x), x.shape)
            stores[hook] = ActivationStore(x.mul_(scale), scale, self.model.cfg.model_name, hook, *tokens)
        return stores

    def on_disk(self, folder: Path, scales: Mapping[str, float]) -> dict[str, ActivationStore]:
        writer = ShardWriter(folder, {**self.recipe(), "scale": dict(scales)})
        if not writer.is_complete:
            n_done, after = writer.n_rows, (-1, -1)
            if n_done:
                last = writer.shards[-1]
                after = int(last.rows("text_indices")[-1]), int(last.rows("positions")[-1])
            for rows in self.rows(n_done, after):
                writer.add(rows)
            writer.flush()
            found = {
                hook: _scale(
                    math.fsum(shard.squares[hook] for shard in writer.shards),
                    (writer.n_rows, *writer.shards[0].columns[hook].row_shape),
                )
                for hook in self.hooks
                if hook not in scales
            }
            writer.finish(scales={**found, **scales})
        scales = read_index(folder)["scales"]
        return {hook: _stored(writer.shards, self.model.cfg.model_name, hook, scales[hook]) for hook in self.hooks}


def _scale(squares: float, shape: Sequence[int]) -> float:
    """What makes E||x||^2 = d_in of activations ``(n, d_in)`` whose squares sum to ``squares``."""
    if squares == 0:
        raise InputError("all activations are zero at this hook, so no scale makes E||x||^2 = d_in; give a scale")
    n, d_in = shape
    return math.sqrt(n * d_in / squares)


@overload
def harvest_pooled(
    model: "TransformerBridge",
    hook: str,
    text: Sequence[str],
    *,
    scale: float | Mapping[str, float] | None = None,
    pooling: Pooling = "last",
    context: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor: ...


@overload
def harvest_pooled(
    model: "TransformerBridge",
    hook: list[str] | tuple[str, ...],
    text: Sequence[str],
    *,
    scale: float | Mapping[str, float] | None = None,
    pooling: Pooling = "last",
    context: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Tensor]: ...


def harvest_pooled(
    model: "TransformerBridge",
    hook: str | list[str] | tuple[str, ...],
    text: Sequence[str],
    *,
    scale: float | Mapping[str, float] | None = None,
    pooling: Pooling = "last",
    context: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor | dict[str, Tensor]:
    """One activation a text, ``(len(text), d_in)``, times ``scale``: its last token's, or the mean over its tokens.

    Give the ``scale`` of the store that the SAE was trained on; without one the activations are the model's own. For a
    list of hooks, which the model is run for once, it is a scale each by name, and what comes back is by name too.
    Raises like `harvest`; also for a text with no token or with more than fit into ``context``: cut, it would end on
    another token.
    """
    from tqdm.auto import tqdm

    hooks = [hook] if isinstance(hook, str) else list(hook)
    for name in hooks:
        check_hook(model, name)
    check_texts(text)
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    scales = _scales_of(hooks, scale)
    length = context_length(model, context)
    lengths = [len(row) for row in model.tokenizer(list(text), add_special_tokens=False, verbose=False)["input_ids"]]
    for index, n_tokens in enumerate(lengths):
        if not 1 <= n_tokens < length:
            raise InputError(
                f"text {index} has {n_tokens} tokens; pooling takes 1 to {length - 1} (context {length} with BOS). "
                "Shorten the text, or raise context as far as the model allows"
            )
    pooled: dict[str, list[Tensor]] = {name: [] for name in hooks}
    label = f"reading texts at {', '.join(hooks)}"
    with tqdm(total=len(text), desc=label, unit="text", leave=False, disable=not progress) as bar:
        for values, _, mask in hook_batches(model, hooks, text, length, batch_size):
            for name, x in values.items():
                weights = mask.to(x)
                if pooling == "last":
                    last = mask.sum(dim=1)[:, None].to(x.device)
                    weights = torch.zeros_like(weights).scatter_(1, last, 1.0)
                mean = torch.einsum("btd,bt->bd", x, weights / weights.sum(dim=1, keepdim=True))
                pooled[name].append(mean.float().cpu())
            bar.update(len(mask))
    whole = {name: torch.cat(parts) * scales.get(name, 1.0) for name, parts in pooled.items()}
    return whole[hook] if isinstance(hook, str) else whole
