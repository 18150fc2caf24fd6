"""Exercises of tutorial 05: right answers pass; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saelab import SparseAutoencoder
from saelab.exercises import Verdict, check


def recovered(clean: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - clean)


WRONG_SHARES: dict[str, tuple[Callable[[float, float, float], float], str]] = {
    "wrong sign": (lambda c, s, a: (s - a) / (a - c), "the sign is not"),
    "upside down": (lambda c, s, a: (a - c) / (a - s), "upside down"),
    "lost": (lambda c, s, a: (s - c) / (a - c), "the share that is lost"),
    "percent": (lambda c, s, a: 100 * recovered(c, s, a), "percent"),
    "no baseline": (lambda c, s, a: c / s, "nothing is compared with ablation"),
    "best is 0": (lambda c, s, a: (a - s) / a, "its loss is the clean loss"),
    "nats saved": (lambda c, s, a: a - s, "nats saved"),
    "nats lost": (lambda c, s, a: s - c, "nats lost"),
    "cut at 0": (lambda c, s, a: max(0.0, recovered(c, s, a)), "do not clip it at 0"),
    "absolute": (lambda c, s, a: abs(a - s) / abs(a - c), "no absolute values"),
    "something else": (lambda c, s, a: a + s, "what should it give"),
}


def test_loss_recovered_passes() -> None:
    assert check.loss_recovered(recovered).passed


@pytest.mark.parametrize("name", WRONG_SHARES)
def test_a_wrong_loss_recovered_has_its_own_hint(name: str) -> None:
    answer, hint = WRONG_SHARES[name]
    fails_with(check.loss_recovered(answer), hint)


def in_place(x: Tensor, sae: SparseAutoencoder, scale: float) -> Tensor:
    reconstruction: Tensor = sae(x.mul_(scale))
    return reconstruction / scale


WRONG_SPLICES: dict[str, tuple[Callable[[Tensor, SparseAutoencoder, float], Tensor], str]] = {
    "not divided back": (lambda x, sae, scale: sae(x * scale), "the next layer expects the model's own units"),
    "no scale": (lambda x, sae, scale: sae(x), "never seen activations of this size"),
    "divided only": (lambda x, sae, scale: sae(x) / scale, "input was in the wrong units"),
    "wrong way round": (lambda x, sae, scale: sae(x / scale) * scale, "both conversions are the wrong way round"),
    "scaled twice": (lambda x, sae, scale: sae(x * scale) * scale, "again instead of being undone"),
    "codes": (lambda x, sae, scale: sae.encode(x * scale), "one number per feature"),
    "nothing": (lambda x, sae, scale: x, "no effect on the model"),
    "error": (lambda x, sae, scale: x - sae(x * scale) / scale, "the SAE's error"),
    "in place": (in_place, "changed in place"),
    "something else": (lambda x, sae, scale: 2 * x, "follow the units"),
}


@pytest.mark.parametrize(
    "spelt", [lambda x, sae, s: sae(x * s) / s, lambda x, sae, s: sae.decode(sae.encode(s * x)) / s]
)
def test_splice_passes(spelt: Callable[[Tensor, SparseAutoencoder, float], Tensor]) -> None:
    assert check.splice(spelt).passed


@pytest.mark.parametrize("name", WRONG_SPLICES)
def test_a_wrong_splice_has_its_own_hint(name: str) -> None:
    answer, hint = WRONG_SPLICES[name]
    fails_with(check.splice(answer), hint)


def texts_by(measure: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], list[int]]:
    """Texts by what ``measure`` says of their codes, greatest first, but for those without the feature."""

    def top(code: Tensor, text_indices: Tensor, k: int) -> list[int]:
        of_text = {t: code[text_indices == t] for t in sorted(set(text_indices.tolist()))}
        on = [t for t in of_text if of_text[t].max() > 0]
        return sorted(on, key=lambda t: -float(measure(of_text[t])))[:k]

    return top


peaks = texts_by(torch.max)


def with_the_silent(code: Tensor, text_indices: Tensor, k: int) -> list[int]:
    found = peaks(code, text_indices, k)
    return found + [t for t in sorted(set(text_indices.tolist())) if t not in found][: k - len(found)]


WRONG_TEXTS: dict[str, tuple[Callable[[Tensor, Tensor, int], Any], str]] = {
    "one text twice": (lambda c, t, k: t[c.topk(k).indices], "one text appears several times"),
    "rows": (lambda c, t, k: c.topk(3).indices[torch.tensor([0, 1, 2])], "these are rows"),
    "mean": (texts_by(torch.mean), "the mean over each text"),
    "sum": (texts_by(torch.sum), "the sum over each text"),
    "count": (texts_by(lambda codes: (codes > 0).sum()), "number of tokens on which it is on"),
    "least": (lambda c, t, k: peaks(c, t, 9)[::-1][:k], "with the smallest codes"),
    "other order": (lambda c, t, k: peaks(c, t, k)[::-1], "the order is reversed"),
    "codes": (lambda c, t, k: [5.0, 3.0, 2.0], "these are the codes"),
    "the silent": (with_the_silent, "in which the feature is on for no token"),
    "something else": (lambda c, t, k: [1, 2, 3], "take the greatest code of each text"),
}


def test_top_texts_pass() -> None:
    assert check.top_texts(peaks).passed
    assert check.top_texts(lambda c, t, k: torch.tensor(peaks(c, t, k))).passed


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_wrong_top_texts_have_their_own_hint(name: str) -> None:
    answer, hint = WRONG_TEXTS[name]
    fails_with(check.top_texts(answer), hint)


def test_the_mean_as_a_baseline() -> None:
    assert check.mean_baseline("lower").passed
    fails_with(check.mean_baseline("higher"), "harms the model more")
    fails_with(check.mean_baseline("the same"), "the third loss")
    assert check.mean_baseline("falls").state == "failed"


def fails_with(verdict: Verdict, hint: str) -> None:
    assert verdict.state == "failed" and hint in verdict.hint, verdict
