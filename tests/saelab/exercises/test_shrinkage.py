"""Exercises of tutorial 02: a right answer passes; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable

import pytest
from torch import Tensor

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
