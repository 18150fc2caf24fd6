"""Hooks of a language model: check their names, and read their values while the model runs on text."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def check_hook(model: "TransformerBridge", hook: str) -> None:
    """Raise a ValueError if ``hook`` does not exist, naming the residual-stream and MLP hooks that do."""
    if hook in model.hook_dict:
        return
    layers = range(model.cfg.n_layers)
    named = [f"blocks.{layer}.{kind}" for kind in ("hook_resid_post", "mlp.hook_post") for layer in layers]
    existing = [name for name in named if name in model.hook_dict]
    raise InputError(
        f"{model.cfg.model_name} has no hook {hook!r}. It has {model.cfg.n_layers} layers, counted from 0; "
        f"most used: {', '.join(existing)}. All {len(model.hook_dict)} names are in model.hook_dict."
    )


def check_texts(texts: Sequence[str]) -> None:
    """Raise if ``texts`` is a single string, is empty, or holds anything but strings."""
    if isinstance(texts, str):
        raise InputTypeError("text must be a list of strings, not one string; try [text]")
    if len(texts) == 0:
        raise InputError("text is empty; expected a list with at least one string")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"text must be a list of strings, but item {index} is a {type(text).__name__}")


def check_at_hook(hook: str, x: object) -> None:
    """Raise a ValueError unless ``x``, the value at ``hook``, is activations ``(batch, tokens, d_in)``."""
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"{hook} holds {got}; expected activations (batch, tokens, d_in), such as those of hook_resid_post or "
            "mlp.hook_post"
        )


class _AllSeen(Exception):
    """Every requested hook has been reached, so the layers above need not be computed."""


@torch.no_grad()
def hook_values(model: "TransformerBridge", hooks: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """Activations ``(b, t, d)`` at each of ``hooks``, by name, when ``model`` reads ``ids`` ``(b, t)``.

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
            raise InputError(f"{model.cfg.model_name} did not reach {name} when it ran; take another hook")
    return seen


def hook_batches(
    model: "TransformerBridge", hooks: Sequence[str], texts: Sequence[str], context: int, batch_size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Texts in order, ``batch_size`` at a time: activations ``(b, t, d)`` by hook, token ids and mask ``(b, t)``.

    Each text is read with BOS in front, as the model was trained, and truncated to ``context`` tokens including BOS.
    The mask is true for the text's own tokens and false for BOS and padding.
    """
    tokenizer = model.tokenizer
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for first in range(0, len(texts), batch_size):
        # A tokenizer that truncates does not warn about texts longer than the model's maximum.
        rows = tokenizer(
            list(texts[first : first + batch_size]), add_special_tokens=False, truncation=True, max_length=context - 1
        )["input_ids"]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max()) + 1), bos, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, 1 : len(row) + 1] = torch.tensor(row, dtype=torch.long)
        position = torch.arange(ids.shape[1])
        mask = (position >= 1) & (position <= lengths[:, None])
        # In a causal model, padding on the right does not affect the tokens before it: no attention mask is needed.
        yield hook_values(model, hooks, ids), ids, mask


def is_special(model: "TransformerBridge", ids: Tensor) -> Tensor:
    """Mask of the same shape as ``ids``: true for BOS, EOS and padding."""
    tokenizer = model.tokenizer
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    special = [token for token in named if token is not None]
    return torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))


def context_length(model: "TransformerBridge", context: int | None) -> int:
    longest = model.cfg.n_ctx
    if context is None:
        return min(128, longest)
    if not 2 <= context <= longest:
        raise InputError(f"context must lie between 2 and this model's {longest} tokens, not {context}")
    return context
