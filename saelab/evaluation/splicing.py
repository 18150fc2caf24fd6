"""Does it matter to the model? Run it with an SAE's reconstruction in place of its own activation.

Throughout, x is the model's own activation at a hook, in its own units; an SAE sees ``x * scale``, and what it gives
back is divided by ``scale`` before the model goes on with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saelab.data.hooks import check_at_hook, check_hook, check_texts, context_length, hook_batches, is_special
from saelab.errors import InputError, InputTypeError
from saelab.quantities import as_line, as_table, where_float64_is
from saelab.sae.base import SparseAutoencoder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Reconstruct = SparseAutoencoder | Callable[[Tensor], Tensor]
"""What can be spliced in: an SAE, or any function from activations ``(batch, tokens, d_in)`` to as many of them."""
_TOKENS = "embed.hook_in"
"""Where TransformerLens shows the token ids of the text that runs through the model."""


@contextmanager
def spliced(
    model: "TransformerBridge",
    hook: str,
    sae: Reconstruct,
    *,
    scale: float | None = None,
    error_term: bool = False,
    edit: Callable[[Tensor], Tensor] | None = None,
    special_tokens: bool = False,
) -> Iterator["TransformerBridge"]:
    """Within it, every run of ``model`` has ``sae(x * scale) / scale`` in place of the activation x at ``hook``.

    Any way of running the model is affected: calling it, ``run_with_cache``, ``generate``. May be nested, on several
    hooks; on leaving, by an exception or an interrupt too, the model is its own again. Gradients flow through the SAE.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``; the one that the SAE was trained on.
    sae
        An SAE, as it stands, with its `gate_threshold`; or any function of activations ``(batch, tokens, d_in)`` that
        gives as many of them: ``torch.zeros_like`` is zero-ablation. Where a value comes back unchanged, the model
        keeps its own to the last bit, so that ``lambda x: x`` changes nothing at any ``scale``.
    scale
        What it is to see the activations multiplied by. By default that of the store that the SAE was trained on, which
        it remembers (``sae.trained_on.scale``); 1 for an SAE trained on a bare tensor, and for any other function.
    error_term
        Add what the SAE misses, ``x - sae(x * scale) / scale``, as a constant: without an ``edit`` the model's output
        is its own exactly, and with one only the edit changes it (Marks et al. 2024, arXiv 2403.19647).
    edit
        From codes ``(batch, tokens, d_sae)`` to codes of the same shape, before they are decoded: to switch features
        off, to steer, or to read them, giving back what came.
    special_tokens
        Replace the activation at BOS, EOS and padding too. By default those keep the model's own: `harvest` leaves
        BOS and padding out, so that the SAE has never seen them.

    Raises
    ------
    TypeError, ValueError
        A hook that does not exist (with those that do) or that does not reach the model's output, a scale that is not
        positive, an ``edit`` of what has no codes. When the model runs: a hook of another width than the SAE's, codes
        or reconstructions of another shape, and input that is no tokens, whose special ones cannot be told.

    Examples
    --------
    >>> with spliced(model, store.hook, sae):
    ...     loss = model("A fine film.", return_type="loss")
    """
    factor = _check_spliceable(model, hook, sae, scale)
    if edit is not None and not isinstance(sae, SparseAutoencoder):
        raise InputTypeError(f"edit changes the codes of an SAE, and a {type(sae).__name__} has none; splice in an SAE")
    if not special_tokens and _TOKENS not in model.hook_dict:
        raise InputError(
            f"{model.cfg.model_name} has no hook {_TOKENS!r}, so its special tokens cannot be told; "
            "with special_tokens=True every activation is replaced"
        )
    special: Tensor | None = None

    def read_tokens(ids: Tensor, hook: Any) -> None:
        nonlocal special
        special = is_special(model, ids)

    def splice(x: Tensor, hook: Any) -> Tensor:
        nonlocal special
        _check_width(name, x, sae)
        replaced = _replaced(x, sae, factor, error_term, edit)
        if special_tokens:
            return replaced
        if special is None or special.shape != x.shape[:2]:
            raise InputError(
                f"{name} saw activations {tuple(x.shape)}, but no tokens of theirs, so special ones cannot be told; "
                "run the model on text or token ids, or say special_tokens=True"
            )
        keep, special = special.to(x.device), None  # never those of an earlier run
        return torch.where(keep[..., None], x, replaced)

    name = hook
    hooks = [(hook, splice)] if special_tokens else [(_TOKENS, read_tokens), (hook, splice)]
    with model.hooks(fwd_hooks=hooks):
        yield model


def _replaced(
    x: Tensor, sae: Reconstruct, scale: float, error_term: bool, edit: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """What the model goes on with in place of ``x``, ``(batch, tokens, d_in)``."""
    if isinstance(sae, SparseAutoencoder):
        scaled = x.to(device=sae.W_enc.device, dtype=sae.W_enc.dtype) * scale
        codes = sae.encode(scaled)
        unedited = edited = sae.decode(codes)
        if edit is not None:
            edited = sae.decode(_edited(codes, edit))
    else:
        scaled = x.to(torch.promote_types(x.dtype, torch.float32)) * scale
        unedited = edited = sae(scaled)
        if not isinstance(edited, Tensor) or edited.shape != x.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise InputError(
                f"what is spliced in took activations {tuple(x.shape)} and gave {got}; give the same shape"
            )
    if error_term:
        # x + (edited - unedited), not edited + (x - unedited): without an edit the model's own to the last bit.
        return x.detach() + ((edited - unedited.detach()) / scale).to(x)
    # Times scale and divided by it again, a float may come back as its neighbour.
    return torch.where((edited == scaled).to(x.device), x, (edited / scale).to(x))


def _edited(codes: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    edited = edit(codes)
    if not isinstance(edited, Tensor) or edited.shape != codes.shape:
        got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(f"edit took codes {tuple(codes.shape)} and gave {got}; give codes of the same shape back")
    return edited


def _check_spliceable(model: "TransformerBridge", hook: str, sae: Reconstruct, scale: float | None) -> float:
    """What the activations are multiplied by before ``sae`` sees them; raises where it cannot be spliced in."""
    check_hook(model, hook)
    if hook.endswith("hook_resid_mid") and str(model.hook_dict[hook].name).endswith(".hook_in"):
        raise InputError(
            f"what is written to {hook} reaches only the MLP in TransformerLens' bridge, and not the residual stream "
            "beside it; splice at hook_resid_pre or hook_resid_post"
        )
    if not callable(sae):
        raise InputTypeError(f"expected an SAE or a function of activations to splice in, not a {type(sae).__name__}")
    if scale is None:
        remembered = sae.trained_on if isinstance(sae, SparseAutoencoder) else None
        return remembered.scale if remembered else 1.0
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be a positive number, such as store.scale, not {scale}")
    return scale


def _check_width(hook: str, x: Tensor, sae: Reconstruct, called: str = "this SAE") -> None:
    check_at_hook(hook, x)
    if isinstance(sae, SparseAutoencoder) and x.shape[-1] != sae.d_in:
        raise InputError(
            f"{hook} has width {x.shape[-1]}, but {called} was made for d_in={sae.d_in}; "
            "splice it in at the hook it was trained on"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class LossRecovered:
    """What `loss_recovered` returns. Printed, it is a table; `as_dict` is a row of a DataFrame.

    Losses are cross-entropies in nats per token, the mean over all tokens of the text.
    """

    clean: float
    """The model's own loss."""
    spliced: float
    """With the SAE's reconstruction in place of the activation."""
    zero_ablated: float
    """With zeros in its place."""
    mean_ablated: float
    """With the mean activation in its place."""
    n_tokens: int
    """Tokens that were predicted."""

    @property
    def score_zero(self) -> float:
        """``(zero_ablated - spliced) / (zero_ablated - clean)``, the field's "loss recovered".

        1: the SAE costs the model nothing; 0: as bad as zeros; negative: worse. NaN where zeros cost nothing.
        """
        return _score(self.zero_ablated, self.spliced, self.clean)

    @property
    def score_mean(self) -> float:
        """``(mean_ablated - spliced) / (mean_ablated - clean)``: the same against the mean, usually less."""
        return _score(self.mean_ablated, self.spliced, self.clean)

    def as_dict(self) -> dict[str, float | int]:
        """Every number by name."""
        return {
            "clean": self.clean,
            "spliced": self.spliced,
            "mean_ablated": self.mean_ablated,
            "zero_ablated": self.zero_ablated,
            "score_mean": self.score_mean,
            "score_zero": self.score_zero,
            "n_tokens": self.n_tokens,
        }

    def __repr__(self) -> str:
        return f"LossRecovered({as_line(self.as_dict(), '.4f')})"

    def __str__(self) -> str:
        return as_table(self.as_dict(), ".4f")


def _score(ablated: float, spliced: float, clean: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else math.nan


def loss_recovered(
    model: "TransformerBridge",
    hook: str,
    sae: Reconstruct,
    text: Sequence[str],
    *,
    scale: float | None = None,
    context: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> LossRecovered:
    """What splicing ``sae`` in at ``hook`` costs the model on ``text``, against taking the activation away.

    Four runs of each text: the model's own; with the reconstruction; with zeros; with the mean activation of ``text``,
    which one pass before finds. Each is read as `harvest` reads it, with BOS in front. Every token of the text is
    predicted and counts, the first one, predicted from BOS alone, too. No run replaces the activation at a special
    token (see `spliced`). Losses are summed over tokens in float64 and divided once: batches do not show in them.
    For several SAEs, `loss_recovered_many` runs the model less often.

    Parameters
    ----------
    model
        From `saelab.load_language_model`.
    hook
        A TransformerLens name, such as ``"blocks.1.hook_resid_post"``; the one that the SAE was trained on.
    sae
        An SAE, or any function of activations, as for `spliced`: ``lambda x: x`` has scores of exactly 1,
        ``torch.zeros_like`` a ``score_zero`` of exactly 0.
    text
        Strings, better not those that the SAE was trained on; cut to ``context`` tokens each.
    scale
        What it is to see the activations multiplied by. By default that of the store that the SAE was trained on, which
        it remembers (``sae.trained_on.scale``); 1 for an SAE trained on a bare tensor, and for any other function.
    context
        Tokens the model sees at once, BOS included; 128 or the model's own limit where that is lower.
    batch_size
        Texts at a time. Their logits are in memory at once, ``(batch_size, context, d_vocab)``.
    progress
        Show a bar.

    Raises
    ------
    TypeError, ValueError
        Like `spliced` and `harvest`: a hook that does not exist, or of another width than the SAE's; text that is empty
        or no list; a scale, context or batch size that cannot be.
    """
    return loss_recovered_many(
        model,
        hook,
        {"sae": sae},
        text,
        scales=None if scale is None else {"sae": scale},
        context=context,
        batch_size=batch_size,
        progress=progress,
    )["sae"]


@torch.no_grad()
def loss_recovered_many(
    model: "TransformerBridge",
    hook: str,
    saes: Mapping[str, Reconstruct],
    text: Sequence[str],
    *,
    scales: Mapping[str, float] | None = None,
    context: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, LossRecovered]:
    """What `loss_recovered` gives for each of ``saes``, by name, with the same numbers to the last bit.

    All share the model's own run and the two ablated ones: n SAEs take 3 + n runs of each text instead of 4 n. Losses
    are all that is kept of an SAE's run, so that memory does not grow with n, beside the SAEs themselves.

    Parameters
    ----------
    saes
        SAEs, or functions of activations, by any name, such as the path of each in a sweep's table; at least one.
    scales
        What an SAE is to see the activations multiplied by, by its name. One that is left out keeps its own, as for
        `loss_recovered`.
    model, hook, text, context, batch_size, progress
        As for `loss_recovered`.

    Raises
    ------
    TypeError, ValueError
        Like `loss_recovered`; no SAE, what is no mapping, or a scale for an unknown name.

    Examples
    --------
    >>> saes = {path: load(path) for path in table.path}
    >>> recovered = loss_recovered_many(model, hook, saes, text)
    >>> table["loss_recovered"] = [recovered[path].score_zero for path in table.path]
    """
    from tqdm.auto import tqdm

    if not isinstance(saes, Mapping):
        raise InputTypeError(
            f"saes must be a mapping of names to SAEs, such as {{'a': sae}}, not {type(saes).__name__}"
        )
    if not saes:
        raise InputError("saes is empty; give at least one SAE by its name")
    own = dict(scales or {})
    if unknown := own.keys() - saes.keys():
        raise InputError(f"scales has {', '.join(sorted(unknown))}, but saes has only {', '.join(saes)}")
    spliced_in = {name: (sae, _check_spliceable(model, hook, sae, own.get(name))) for name, sae in saes.items()}
    check_texts(text)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    length = context_length(model, context)
    batches: list[tuple[Tensor, list[int]]] = []  # token ids (b, t), and how many of a row are its text's own
    total: Tensor | None = None
    n_replaced = 0
    with tqdm(total=len(text), desc=f"mean of {hook}", unit="text", leave=False, disable=not progress) as bar:
        for values, ids, mask in hook_batches(model, [hook], text, length, batch_size):
            x = values[hook]
            for name, sae in saes.items():
                _check_width(hook, x, sae, f"{name!r}" if len(saes) > 1 else "this SAE")
            batches.append((ids, mask.sum(dim=1).tolist()))
            rows = x[(mask & ~is_special(model, ids)).to(x.device)]
            n_replaced += len(rows)
            added = where_float64_is(rows).double().sum(dim=0)
            total = added if total is None else total + added
            bar.update(len(ids))
    if total is None or n_replaced == 0:
        raise InputError("text holds no tokens; expected at least one string that is not empty")
    mean = total / n_replaced
    ablations: list[tuple[Reconstruct, float]] = [(torch.zeros_like, 1.0), (lambda x: mean.to(x).expand_as(x), 1.0)]
    runs = [None, *ablations, *spliced_in.values()]
    losses = [0.0] * len(runs)
    with tqdm(total=len(text), desc=f"loss without {hook}", unit="text", leave=False, disable=not progress) as bar:
        for ids, lengths in batches:
            for index, run in enumerate(runs):
                with nullcontext() if run is None else spliced(model, hook, run[0], scale=run[1]):
                    losses[index] += _summed_loss(model, ids, lengths)
            bar.update(len(ids))
    n_tokens = sum(sum(lengths) for _, lengths in batches)
    clean, zero_ablated, mean_ablated, *with_saes = (loss / n_tokens for loss in losses)
    return {
        name: LossRecovered(
            clean=clean, spliced=loss, zero_ablated=zero_ablated, mean_ablated=mean_ablated, n_tokens=n_tokens
        )
        for name, loss in zip(saes, with_saes, strict=True)
    }


def _summed_loss(model: "TransformerBridge", ids: Tensor, lengths: list[int]) -> float:
    """Sum of cross-entropies in nats over each row's first ``length`` tokens after BOS; ``ids`` is ``(b, t)``."""
    ids = ids.to(model.cfg.device)
    total = 0.0
    # A text at a time: log-probabilities of a whole batch would be as large as its logits once more.
    for logits, row, n in zip(model(ids), ids, lengths, strict=True):
        if n:
            losses = cross_entropy(logits[:n].float(), row[1 : n + 1], reduction="none")
            total += float(where_float64_is(losses).double().sum())
    return total
