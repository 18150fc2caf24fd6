"""Exercises of tutorial 02: a right answer passes; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import saelab
from saelab.exercises import check

Bias = Callable[[Tensor, Tensor], float]


def gamma(x: Tensor, r: Tensor) -> float:
    return float(r.square().sum(1).mean() / (x * r).sum(1).mean())


def version_1(x: Tensor, r: Tensor) -> float:
    xx, rr, error = (v.square().sum(1).mean() for v in (x, r, x - r))
    return float((rr / (xx - error)).sqrt())


WRONG: dict[str, tuple[Bias, str]] = {
    "version 1": (version_1, "version 1's equation (10)"),
    "upside down": (lambda x, r: 1 / gamma(x, r), "1 / gamma"),
    "mean of ratios": (lambda x, r: float((r.square().sum(1) / (x * r).sum(1)).mean()), "mean of each row's own"),
    "projection": (lambda x, r: float((x * r).sum() / x.square().sum()), "the best factor on x"),
    "norm ratio": (lambda x, r: float(r.norm(dim=1).mean() / x.norm(dim=1).mean()), "ratio of norms"),
    "negative": (lambda x, r: -gamma(x, r), "which factor g"),
}


def test_gamma_passes() -> None:
    assert check.relative_reconstruction_bias(gamma).passed


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gamma_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG[name]
    verdict = check.relative_reconstruction_bias(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def test_the_best_code_passes_and_is_the_best_on_a_grid() -> None:
    def best(z: Tensor, l1: float) -> Tensor:
        return (z - l1 / 2).clamp(min=0)

    assert check.best_code(best).passed
    z, f = torch.tensor([2.0, 0.7, 0.2, -1.0]), torch.linspace(0, 3, 3001)
    losses = (z[:, None] - f).square() + 0.9 * f
    torch.testing.assert_close(best(z, 0.9), f[losses.argmin(dim=1)], rtol=0, atol=1e-3)


def in_place(z: Tensor, l1: float) -> Tensor:
    return z.sub_(l1 / 2).clamp(min=0)


WRONG_CODES: dict[str, tuple[Callable[[Tensor, float], Tensor], str]] = {
    "twice as much": (lambda z, l1: (z - l1).clamp(min=0), "a factor of 2"),
    "negative": (lambda z, l1: z - l1 / 2, "some of these are below 0"),
    "no price": (lambda z, l1: z.clamp(min=0), "at no price"),
    "hard threshold": (lambda z, l1: z * (z > l1 / 2), "leaves the others unchanged"),
    "either sign": (lambda z, l1: z.sign() * (z.abs() - l1 / 2).clamp(min=0), "either sign"),
    "ridge": (lambda z, l1: (z / (1 + l1)).clamp(min=0), "a price on f squared"),
    "sign": (lambda z, l1: (z + l1 / 2).clamp(min=0), "does not increase codes"),
    "absolute": (lambda z, l1: (z - l1 / 2).abs(), "at the bound"),
    "factor": (lambda z, l1: z * (1 - l1 / 2), "set the derivative"),
    "in place": (in_place, "in place"),
}


@pytest.mark.parametrize("name", WRONG_CODES)
def test_a_wrong_code_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_CODES[name]
    verdict = check.best_code(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


@pytest.mark.parametrize("answer", [{"projection", "norm_ratio"}, ["norm_ratio", "projection"]])
def test_the_right_formulas_pass(answer: Any) -> None:
    assert check.biased_by(answer).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ({"norm_ratio"}, "orthogonal"),
        ("projection", "compares lengths"),
        ({"corrected", "projection", "norm_ratio"}, "no factor brings back"),
        ({"v1", "projection", "norm_ratio"}, "Pythagoras"),
        ({"gamma"}, "names of formulas"),
    ],
)
def test_a_wrong_choice_of_formulas_has_its_own_hint(answer: Any, hint: str) -> None:
    verdict = check.biased_by(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


Batches = Iterable[tuple[Tensor, Tensor]]


def pooled(batches: Batches) -> float:
    bias = saelab.RelativeReconstructionBias()
    for x, r in batches:
        bias.add_batch(x, r)
    return bias.compute()


def first(batches: Batches) -> float:
    for x, r in batches:
        return gamma(x, r)
    return 0.0


def last(batches: Batches) -> float:
    answer = 0.0
    for x, r in batches:
        answer = gamma(x, r)
    return answer


def of_means(batches: Batches) -> float:
    pairs = [(r.square().sum(1).mean(), (x * r).sum(1).mean()) for x, r in batches]
    return float(sum(rr for rr, _ in pairs) / sum(xr for _, xr in pairs))


def two_passes(batches: Batches) -> float:
    rr = sum(float(r.square().sum()) for _, r in batches)
    xr = sum(float((x * r).sum()) for x, r in batches)
    return rr / xr if xr else float("inf")


def weighted(batches: Batches) -> float:
    pairs = [(len(x), gamma(x, r)) for x, r in batches]
    return sum(n * one for n, one in pairs) / sum(n for n, _ in pairs)


WRONG_POOLING: dict[str, tuple[Callable[[Batches], float], str]] = {
    "mean": (lambda batches: float(np.mean([gamma(x, r) for x, r in batches])), "each batch's own gamma"),
    "weighted mean": (weighted, "each batch's own gamma"),
    "median": (lambda batches: float(np.median([gamma(x, r) for x, r in batches])), "median"),
    "first": (first, "inside the loop"),
    "last": (last, "the last batch"),
    "upside down": (lambda batches: 1 / pooled(batches), "upside down"),
    "ratio of means": (of_means, "as much as 64"),
    "two passes": (two_passes, "only once"),
}


def test_pooled_gamma_passes() -> None:
    assert check.pooled_bias(pooled).passed


@pytest.mark.parametrize("name", WRONG_POOLING)
def test_a_wrong_pooling_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_POOLING[name]
    verdict = check.pooled_bias(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict
