"""Exercises of tutorial 08: right answers pass; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import t, ttest_1samp
from torch import Tensor

from saelab.exercises import check

Interval = Callable[[Sequence[float], Sequence[float]], tuple[float, float, float]]
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]

RIGHT = {"directions": "frozen_decoder", "detection": "frozen_encoder", "dimensions": "pca"}


def test_the_right_control_of_each_claim_passes() -> None:
    assert check.right_control(RIGHT).passed


@pytest.mark.parametrize("claim", RIGHT)
def test_a_control_that_cannot_refute_the_claim_fails_with_a_hint_of_its_own(claim: str) -> None:
    others = [control for control in RIGHT.values() if control != RIGHT[claim]]
    verdicts = [check.right_control({**RIGHT, claim: other}) for other in others]
    for other, verdict in zip(others, verdicts, strict=True):
        assert verdict.state == "failed" and verdict.hint and f"{claim}: '{other}'" in verdict.seen, verdict


def test_controls_that_are_not_chosen_yet_are_open_and_another_form_is_refused() -> None:
    assert check.right_control({**RIGHT, "detection": None}).state == "open"
    assert "keys 'directions'" in check.right_control({"directions": "pca"}).expected
    assert "one of" in check.right_control({**RIGHT, "directions": "dead salmon"}).expected


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    low, high = ttest_1samp(np.subtract(a, b), 0).confidence_interval(0.95)
    return float(np.mean(a) - np.mean(b)), float(low), float(high)


def with_half(half: Callable[[np.ndarray], float]) -> Interval:
    def answer(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
        differences = np.subtract(a, b)
        mean = float(differences.mean())
        return mean, mean - half(differences), mean + half(differences)

    return answer


def unpaired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    n, mean = len(a), float(np.mean(a) - np.mean(b))
    half = t.ppf(0.975, 2 * n - 2) * np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / n)
    return mean, mean - half, mean + half


WRONG_INTERVALS: dict[str, tuple[Interval, str]] = {
    "b - a": (lambda a, b: paired(b, a), "not b - a"),
    "upside down": (lambda a, b: (paired(a, b)[0], *paired(a, b)[:0:-1]), "lower limit comes first"),
    "unpaired": (unpaired, "a seed shifts both alike"),
    "1.96": (with_half(lambda d: 1.959964 * d.std(ddof=1) / len(d) ** 0.5), "1.96 is for many seeds"),
    "n degrees of freedom": (
        with_half(lambda d: t.ppf(0.975, len(d)) * d.std(ddof=1) / len(d) ** 0.5),
        "n - 1 degrees of freedom, not n",
    ),
    "of one more seed": (with_half(lambda d: t.ppf(0.975, len(d) - 1) * d.std(ddof=1)), "one more seed"),
    "ddof=0": (with_half(lambda d: t.ppf(0.975, len(d) - 1) * d.std() / len(d) ** 0.5), "ddof=1"),
    "one-sided": (with_half(lambda d: t.ppf(0.95, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5), "seed by seed"),
}


def test_the_interval_of_paired_differences_passes() -> None:
    assert check.paired_interval(paired).passed


@pytest.mark.parametrize("name", WRONG_INTERVALS)
def test_a_wrong_interval_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_INTERVALS[name]
    verdict = check.paired_interval(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def axes(x: Tensor) -> tuple[Tensor, Tensor]:
    dictionary = torch.cat([torch.eye(x.shape[1]), -torch.eye(x.shape[1])])
    return dictionary, torch.relu(x @ dictionary.T)


def the_data(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.eye(len(x))


WRONG_DICTIONARIES: dict[str, tuple[Answer, str]] = {
    "negative codes": (lambda x: (torch.eye(x.shape[1]), x), "add the opposite direction"),
    "half of x": (lambda x: (torch.eye(x.shape[1]), torch.relu(x)), "exactly"),
    "a code short": (lambda x: (axes(x)[0], axes(x)[1][:, 1:]), "a code a row"),
    "dictionary only": (lambda x: axes(x)[0], "return both"),  # type: ignore[dict-item, return-value]
    "the data themselves": (the_data, "nothing to do with them"),  # sparse data are features by themselves
}


def test_a_dictionary_that_reconstructs_and_finds_nothing_passes() -> None:
    assert check.small_error_nothing_found(axes).passed


@pytest.mark.parametrize("name", WRONG_DICTIONARIES)
def test_a_dictionary_that_misses_the_point_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_DICTIONARIES[name]
    verdict = check.small_error_nothing_found(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict
