"""Harvest activations: run a language model over text and keep what one of its hooks sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from saelab.autoencoders import check_activations

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class ActivationStore:
    """Activations of one hook, each traceable to its token.

    ``len(store)`` is the number of activations; `Trainer` takes a store as it is.
    """

    activations: Tensor
    """``(n, d_in)``, scaled so that E||x||^2 = d_in."""
    scale: float
    """The factor that was applied: the model's own activation is ``activations / scale``."""
    hook: str
    """Where in the model they were taken."""
    token_ids: Tensor
    """``(n,)``: the token at each activation."""
    text_indices: Tensor
    """``(n,)``: the text each activation comes from, counted from 0 in the order given."""
    positions: Tensor
    """``(n,)``: its position in that text's tokens, counted from 0 at the first token that is not special."""

    def __len__(self) -> int:
        return len(self.activations)


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


@torch.no_grad()
def hook_batches(
    model: "TransformerBridge", hook: str, texts: Sequence[str], context: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Texts in order, ``batch_size`` at a time: activations ``(b, t, d)``, token ids ``(b, t)`` and a mask ``(b, t)``.

    Each text is read with BOS in front, as the model was trained, and cut to ``context`` tokens with it. The mask is
    true where a token is the text's own: neither BOS nor padding.
    """
    tokenizer = model.tokenizer
    bos = tokenizer.bos_token_id
    # What lies above the hook needs no computing.
    stop = int(hook.split(".")[1]) + 1 if hook.startswith("blocks.") else None
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
        _, cache = model.run_with_cache(ids.to(model.cfg.device), names_filter=hook, stop_at_layer=stop)
        yield cache[hook], ids, mask


def context_length(model: "TransformerBridge", context: int | None) -> int:
    longest = model.cfg.n_ctx
    if context is None:
        return min(128, longest)
    if not 2 <= context <= longest:
        raise ValueError(f"context must lie between 2 and this model's {longest} tokens, not {context}")
    return context


def harvest(
    model: "TransformerBridge",
    hook: str,
    text: Sequence[str],
    *,
    n_tokens: int | None = None,
    context: int | None = None,
    scale: float | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> ActivationStore:
    """Activations of ``hook`` on the tokens of ``text``, scaled so that E||x||^2 = d_in.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``.
    text
        Strings; each is read on its own, with BOS in front, and cut to ``context`` tokens. Special tokens are left out.
    n_tokens
        Stop after so many tokens; all of ``text`` by default.
    context
        Tokens the model sees at once, BOS included; 128 or the model's own limit where that is lower.
    scale
        Multiply by this instead: another store's ``scale``, for activations that an SAE trained on it is to see.
    batch_size
        Texts at a time.
    progress
        Show a bar.

    Raises
    ------
    TypeError, ValueError
        A hook that does not exist (with those that do), text that is empty or no list, a context the model cannot take,
        an ``n_tokens`` below 1, a ``scale`` that is not positive, activations that are not finite.
    """
    from tqdm.auto import tqdm

    check_hook(model, hook)
    check_texts(text)
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, not {n_tokens}")
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, such as another store's, not {scale}")
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    total = 0
    with tqdm(total=n_tokens, desc=f"harvesting {hook}", unit="tok", leave=False, disable=not progress) as bar:
        for index, (values, ids, mask) in enumerate(
            hook_batches(model, hook, text, context_length(model, context), batch_size)
        ):
            row, column = mask.nonzero(as_tuple=True)
            room = len(row) if n_tokens is None else min(len(row), n_tokens - total)
            row, column = row[:room], column[:room]
            kept.append((values[row, column].float().cpu(), ids[row, column], row + index * batch_size, column - 1))
            total += room
            bar.update(room)
            if total == n_tokens:
                break
        bar.total = total  # a text that ends before n_tokens is no failure
    if total == 0:
        raise ValueError("text holds no tokens; expected at least one string that is not empty")
    x, token_ids, text_indices, positions = (torch.cat(parts) for parts in zip(*kept, strict=True))
    check_activations(x)
    if scale is None:
        scale = float((x.shape[1] / x.double().square().sum(dim=1).mean()).sqrt())
    return ActivationStore(x.mul_(scale), scale, hook, token_ids, text_indices, positions)


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
    """One activation a text, ``(len(text), d_in)``, times ``scale``: its last token's, or the mean over its tokens.

    Give the ``scale`` of the store that the SAE was trained on. Raises like `harvest`; also for a text with no token or
    with more than fit into ``context``: cut, it would end on another token.
    """
    from tqdm.auto import tqdm

    check_hook(model, hook)
    check_texts(text)
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    length = context_length(model, context)
    lengths = [len(row) for row in model.tokenizer(list(text), add_special_tokens=False, verbose=False)["input_ids"]]
    for index, n_tokens in enumerate(lengths):
        if not 1 <= n_tokens < length:
            raise ValueError(
                f"text {index} has {n_tokens} tokens; pooling takes 1 to {length - 1} (context {length} with BOS). "
                "Shorten the text, or raise context as far as the model allows"
            )
    pooled: list[Tensor] = []
    with tqdm(total=len(text), desc=f"reading texts at {hook}", unit="text", leave=False, disable=not progress) as bar:
        for values, _, mask in hook_batches(model, hook, text, length, batch_size):
            counts = mask.sum(dim=1)
            weights = mask.to(values)
            if pooling == "last":
                weights = torch.zeros_like(weights).scatter_(1, counts[:, None].to(values.device), 1.0)
            mean = torch.einsum("btd,bt->bd", values, weights / weights.sum(dim=1, keepdim=True))
            pooled.append(mean.float().cpu())
            bar.update(len(mean))
    return torch.cat(pooled) * scale
