"""Harvest activations: run a language model over text and keep the values at some of its hooks."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from saelab.data.hooks import check_hook, check_texts, context_length, hook_batches, is_special
from saelab.data.shards import Shard, ShardWriter, StoredRows, StoreError, open_shards, read_index, sum_of_squares
from saelab.errors import InputError, InputTypeError
from saelab.sae.base import TrainedOn, check_activations

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pooling = Literal["last", "mean"]
Rows = Tensor | StoredRows
"""Rows in memory or on disk: both have a length and a shape, and indexing gives a tensor."""
TOKEN_COLUMNS = ("token_ids", "text_indices", "positions")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ActivationStore:
    """Activations at one hook, each traceable to its token; in memory, or on disk if they are larger than memory.

    ``len(store)`` is the number of activations; `Trainer` takes a store as it is. ``store.activations[:1000]`` is a
    tensor in either case.
    """

    activations: Rows
    """``(n, d_in)``, scaled so that E||x||^2 = d_in."""
    scale: float
    """The factor that was applied: the model's own activation is ``activations / scale``."""
    model_name: str
    """The model's name, as `saelab.load_language_model` takes it."""
    hook: str
    """Where in the model they were taken."""
    token_ids: Rows
    """``(n,)``: the token at each activation."""
    text_indices: Rows
    """``(n,)``: index of the text each activation comes from, in the order given, from 0."""
    positions: Rows
    """``(n,)``: position of the token in that text; the first token after BOS has position 0."""

    def __len__(self) -> int:
        return len(self.activations)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.activations.shape[1]

    @property
    def trained_on(self) -> TrainedOn:
        """Model, hook and scale, which an SAE trained on this store remembers."""
        return TrainedOn(self.model_name, self.hook, self.scale)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], hook: str | None = None) -> "ActivationStore":
        """The store that ``harvest(..., store=folder)`` made; ``hook`` says which, if `harvest_many` made several.

        Only the headers of its files are read. Each byte is checked the first time it is used.

        Raises
        ------
        saelab.StoreError
            The store is missing or incomplete, or one of its files is missing, truncated or changed; names the file.
        ValueError
            The store has no such hook, or has several and ``hook`` names none.
        """
        folder = Path(folder)
        index = read_index(folder)
        if not index["complete"]:
            raise StoreError(
                f"{folder}: the harvest was stopped before it finished; call harvest again with the same arguments"
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


def harvest(
    model: "TransformerBridge",
    hook: str,
    text: Sequence[str],
    *,
    store: str | os.PathLike[str] | None = None,
    n_tokens: int | None = None,
    context: int | None = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    special_tokens: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> ActivationStore:
    """Activations of ``hook`` on the tokens of ``text``, scaled so that E||x||^2 = d_in.

    Given a ``store``, they are kept on disk and may be far larger than memory. If a harvest is stopped or killed, the
    same call continues it and ends with the same store; if the store is already complete, it is opened without running
    the model.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``. `harvest_many` takes several hooks.
    text
        Strings. Each is read on its own, with BOS in front, and truncated to ``context`` tokens.
    store
        Folder to keep the activations in; in memory by default.
    n_tokens
        Number of tokens to stop after; all of ``text`` by default.
    context
        Tokens the model sees at once, including BOS; by default 128, or the model's limit if that is lower.
    scale
        Use this factor instead: another store's ``scale``, if an SAE trained on that store is to see the activations.
    dtype
        float32, or float16 or bfloat16 to halve the space. Activations read from disk are float32 again.
    special_tokens
        Also keep the activations at BOS, EOS and padding tokens of a text; BOS has position -1.
    batch_size
        Texts per batch.
    progress
        Show a bar, with tokens per second.

    Returns
    -------
    ActivationStore

    Raises
    ------
    TypeError, ValueError
        The hook does not exist (the message names those that do) or is not ``(batch, tokens, d_in)``; ``text`` is
        empty or not a list; the model cannot take this ``context``; ``n_tokens`` is below 1; ``scale`` is not
        positive; or activations are not finite.
    FileExistsError
        ``store`` holds a different harvest, or something else.
    saelab.StoreError
        The unfinished harvest in ``store`` cannot be read; names the file.
    """
    _check_one(hook, "harvest", "harvest_many")
    return harvest_many(
        model,
        [hook],
        text,
        store=store,
        n_tokens=n_tokens,
        context=context,
        scales=None if scale is None else {hook: scale},
        dtype=dtype,
        special_tokens=special_tokens,
        batch_size=batch_size,
        progress=progress,
    )[hook]


def harvest_many(
    model: "TransformerBridge",
    hooks: Sequence[str],
    text: Sequence[str],
    *,
    store: str | os.PathLike[str] | None = None,
    n_tokens: int | None = None,
    context: int | None = None,
    scales: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    special_tokens: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, ActivationStore]:
    """What `harvest` gives for each of ``hooks``, by name, from a single run of the model.

    ``scales`` has a scale for each hook, by name; all other arguments are those of `harvest`. With a ``store``, all
    hooks share one folder, and `ActivationStore.open` takes the name of the hook to open. Raises like `harvest`; also
    for hooks that are named twice or have no scale in ``scales``.
    """
    _check_hooks(model, hooks, "harvest")
    check_texts(text)
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"n_tokens must be at least 1, not {n_tokens}")
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype}")
    reading = _Reading(
        model, hooks, text, context_length(model, context), batch_size, n_tokens, special_tokens, dtype, progress
    )
    checked_scales = _checked_scales(hooks, scales)
    return reading.in_memory(checked_scales) if store is None else reading.on_disk(Path(store), checked_scales)


def _check_one(hook: object, function: str, function_of_many: str) -> None:
    if not isinstance(hook, str):
        raise InputTypeError(
            f"{function} takes the name of one hook, not {hook!r}; for several hooks use {function_of_many}"
        )


def _check_hooks(model: "TransformerBridge", hooks: Sequence[str], function_of_one: str) -> None:
    if isinstance(hooks, str):
        raise InputTypeError(f"hooks must be a list of names, not one string; for one hook use {function_of_one}")
    if not hooks or len(set(hooks)) < len(hooks):
        raise InputError(f"hooks must name at least one hook, and each only once; not {hooks!r}")
    for hook in hooks:
        check_hook(model, hook)


def _checked_scales(hooks: Sequence[str], scales: Mapping[str, float] | None) -> dict[str, float]:
    """The scales given for ``hooks``; empty if none were given."""
    if scales is None:
        return {}
    if missing := [hook for hook in hooks if hook not in scales]:
        raise InputError(
            f"scales has none for {', '.join(missing)}; give one for each hook: {{hook: store.scale, ...}}"
        )
    checked = {hook: float(scales[hook]) for hook in hooks}
    for scale in checked.values():
        if not 0 < scale < float("inf"):
            raise InputError(f"scale must be a positive number, such as another store's, not {scale}")
    return checked


@dataclass(frozen=True)
class _Reading:
    """One run of a model over text, with validated arguments."""

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
        """Everything that determines the harvested rows, up to rounding."""
        words = hashlib.blake2b(digest_size=16)
        for text in self.text:
            words.update(len(text).to_bytes(8, "little") + text.encode(errors="surrogatepass"))
        # A model of the same name may have been trained further, which also changes these first weights.
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
        """Rows by column for each batch of texts, starting after the token at text and position ``after``."""
        from tqdm.auto import tqdm

        # The same batches as in an uninterrupted run, since results are rounded differently in another batch.
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
            raise InputError("text holds no tokens; expected at least one non-empty string")

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
    """The scale that gives E||x||^2 = d_in for activations ``(n, d_in)`` whose squares sum to ``squares``."""
    if squares == 0:
        raise InputError("all activations are zero at this hook, so no scale makes E||x||^2 = d_in; give a scale")
    n, d_in = shape
    return math.sqrt(n * d_in / squares)


def harvest_pooled(
    model: "TransformerBridge",
    hook: str,
    text: Sequence[str],
    *,
    scale: float = 1.0,
    pooling: Pooling = "last",
    context: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """One activation per text, ``(len(text), d_in)``, times ``scale``: the last token's, or the mean over all tokens.

    ``scale`` is that of the store on which the SAE was trained; by default the activations are the model's own.
    `harvest_pooled_many` takes several hooks. Raises like `harvest`; also for a text that has no tokens or does not fit
    into ``context``, since a truncated text would end on another token.
    """
    _check_one(hook, "harvest_pooled", "harvest_pooled_many")
    return harvest_pooled_many(
        model,
        [hook],
        text,
        scales={hook: scale},
        pooling=pooling,
        context=context,
        batch_size=batch_size,
        progress=progress,
    )[hook]


def harvest_pooled_many(
    model: "TransformerBridge",
    hooks: Sequence[str],
    text: Sequence[str],
    *,
    scales: Mapping[str, float] | None = None,
    pooling: Pooling = "last",
    context: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Tensor]:
    """What `harvest_pooled` gives for each of ``hooks``, by name, from a single run of the model.

    ``scales`` has a scale for each hook, by name; all other arguments are those of `harvest_pooled`.
    """
    from tqdm.auto import tqdm

    _check_hooks(model, hooks, "harvest_pooled")
    check_texts(text)
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    checked_scales = _checked_scales(hooks, scales)
    length = context_length(model, context)
    lengths = [len(row) for row in model.tokenizer(list(text), add_special_tokens=False, verbose=False)["input_ids"]]
    for index, n_tokens in enumerate(lengths):
        if not 1 <= n_tokens < length:
            raise InputError(
                f"text {index} has {n_tokens} tokens; pooling takes 1 to {length - 1} (context {length} with BOS). "
                "Shorten the text, or raise context as far as the model allows"
            )
    pooled: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    label = f"reading texts at {', '.join(hooks)}"
    with tqdm(total=len(text), desc=label, unit="text", leave=False, disable=not progress) as bar:
        for values, _, mask in hook_batches(model, hooks, text, length, batch_size):
            for hook, x in values.items():
                weights = mask.to(x)
                if pooling == "last":
                    last = mask.sum(dim=1)[:, None].to(x.device)
                    weights = torch.zeros_like(weights).scatter_(1, last, 1.0)
                mean = torch.einsum("btd,bt->bd", x, weights / weights.sum(dim=1, keepdim=True))
                pooled[hook].append(mean.float().cpu())
            bar.update(len(mask))
    return {hook: torch.cat(parts) * checked_scales.get(hook, 1.0) for hook, parts in pooled.items()}
