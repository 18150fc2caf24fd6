"""Harvest activations: run a language model over text and keep what some of its hooks see."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor

from saelab.autoencoders import TrainedOn, check_activations
from saelab.shards import Shard, ShardWriter, StoredRows, StoreError, open_shards, read_index, sum_of_squares

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
            raise ValueError(f"{folder} holds activations of {', '.join(scales)}; name one as hook, not {hook!r}")
        return _stored(open_shards(folder, index), index["recipe"]["model"], hook, scales[hook])


def _stored(shards: Sequence[Shard], model_name: str, hook: str, scale: float) -> ActivationStore:
    tokens = (StoredRows(shards, name) for name in TOKEN_COLUMNS)
    return ActivationStore(StoredRows(shards, hook, scale=scale), scale, model_name, hook, *tokens)


def check_hook(model: "TransformerBridge", hook: str) -> None:
    """Raise a ValueError that names the residual-stream and MLP hooks that exist where ``hook`` does not."""
    if hook in model.hook_dict:
        return
    layers = range(model.cfg.n_layers)
    named = [f"blocks.{layer}.{kind}" for kind in ("hook_resid_post", "mlp.hook_post") for layer in layers]
    existing = [name for name in named if name in model.hook_dict]
    raise ValueError(
        f"{model.cfg.model_name} has no hook {hook!r}. It has {model.cfg.n_layers} layers, counted from 0; "
        f"most used: {', '.join(existing)}. All {len(model.hook_dict)} names are in model.hook_dict."
    )


def check_texts(texts: Sequence[str]) -> None:
    """Raise where ``texts`` is one string, or empty, or holds anything but strings."""
    if isinstance(texts, str):
        raise TypeError("text must be a list of strings, not one string; try [text]")
    if len(texts) == 0:
        raise ValueError("text is empty; expected a list with at least one string")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text must be a list of strings, but item {index} is a {type(text).__name__}")


def check_at_hook(hook: str, x: object) -> None:
    """Raise a ValueError where what ``hook`` holds is no activations ``(batch, tokens, d_in)``."""
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{hook} holds {got}; expected activations (batch, tokens, d_in), such as those of hook_resid_post or "
            "mlp.hook_post"
        )


class _AllSeen(Exception):
    """Every hook that was asked for has been seen; what lies above needs no computing."""


@torch.no_grad()
def hook_values(model: "TransformerBridge", hooks: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """What each of ``hooks`` sees when ``model`` reads ``ids`` ``(b, t)``: ``(b, t, d)`` by name.

    Raises a ValueError for a hook that holds anything else, or that the model does not reach.
    """
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any, name: str) -> None:
        check_at_hook(name, x)
        seen[name] = x
        if len(seen) == len(hooks):
            raise _AllSeen

    with suppress(_AllSeen), model.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in hooks]):
        model(ids.to(model.cfg.device))
    for name in hooks:
        if name not in seen:
            raise ValueError(f"{model.cfg.model_name} did not reach {name} when it ran; take another hook")
    return seen


def hook_batches(
    model: "TransformerBridge", hooks: Sequence[str], texts: Sequence[str], context: int, batch_size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Texts in order, ``batch_size`` at a time: activations ``(b, t, d)`` by hook, token ids and mask ``(b, t)``.

    Each text is read with BOS in front, as the model was trained, and cut to ``context`` tokens with it. The mask is
    true where a token is the text's own: neither BOS nor padding.
    """
    tokenizer = model.tokenizer
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for first in range(0, len(texts), batch_size):
        # No text is too long for a tokenizer that cuts it, so its warning about the model's maximum never shows.
        rows = tokenizer(
            list(texts[first : first + batch_size]), add_special_tokens=False, truncation=True, max_length=context - 1
        )["input_ids"]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max()) + 1), bos, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, 1 : len(row) + 1] = torch.tensor(row, dtype=torch.long)
        position = torch.arange(ids.shape[1])
        mask = (position >= 1) & (position <= lengths[:, None])
        # Padding on the right of a causal model changes nothing on its left, so no attention mask is needed.
        yield hook_values(model, hooks, ids), ids, mask


def is_special(model: "TransformerBridge", ids: Tensor) -> Tensor:
    """Where ``ids`` are BOS, EOS or padding: true there, in the same shape."""
    tokenizer = model.tokenizer
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    special = [token for token in named if token is not None]
    return torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))


def context_length(model: "TransformerBridge", context: int | None) -> int:
    longest = model.cfg.n_ctx
    if context is None:
        return min(128, longest)
    if not 2 <= context <= longest:
        raise ValueError(f"context must lie between 2 and this model's {longest} tokens, not {context}")
    return context


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
        raise ValueError(f"hook must be a hook's name, or a list of at least one, each once; not {hook!r}")
    for name in hooks:
        check_hook(model, name)
    check_texts(text)
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, not {n_tokens}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype}")
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
        raise ValueError("several hooks need a scale each: scale={hook: other_store.scale, ...}")
    for given in scales.values():
        if not 0 < given < float("inf"):
            raise ValueError(f"scale must be a positive number, such as another store's, not {given}")
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
            raise ValueError("text holds no tokens; expected at least one string that is not empty")

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
        raise ValueError("all activations are zero at this hook, so no scale makes E||x||^2 = d_in; give a scale")
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
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    scales = _scales_of(hooks, scale)
    length = context_length(model, context)
    lengths = [len(row) for row in model.tokenizer(list(text), add_special_tokens=False, verbose=False)["input_ids"]]
    for index, n_tokens in enumerate(lengths):
        if not 1 <= n_tokens < length:
            raise ValueError(
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
