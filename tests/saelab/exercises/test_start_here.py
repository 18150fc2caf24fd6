"""Exercises of tutorial 00: a right answer passes; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from saelab.exercises import check

RIGHT = {"l0": "falls", "fvu": "rises", "gamma": "falls"}


def test_a_right_prediction_passes_and_one_half_written_is_open() -> None:
    assert check.higher_price(RIGHT).passed
    assert check.higher_price(RIGHT | {"gamma": None}).state == "open"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (RIGHT | {"l0": "rises"}, "has to pay"),
        (RIGHT | {"fvu": "falls"}, "make up the same activation"),
        (RIGHT | {"gamma": "stays"}, "on every unit of a code"),
        (RIGHT | {"gamma": "down"}, "write one of these"),
        ({"l0": "falls"}, "the three names"),
        ("falls", "the three names"),
    ],
)
def test_a_wrong_prediction_fails_with_its_own_hint(answer: Any, hint: str) -> None:
    verdict = check.higher_price(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "share": (lambda codes: (codes > 0).float().mean(), "the share of all codes"),
    "whole batch": (lambda codes: (codes > 0).sum(), "over the whole batch"),
    "other axis": (lambda codes: (codes > 0).float().sum(0).mean(), "along the other axis"),
    "L1": (lambda codes: codes.sum(1).mean(), "which is L1"),
    "mean of codes": (lambda codes: codes.mean(), "mean of the codes themselves"),
    "at least zero": (lambda codes: (codes >= 0).float().sum(1).mean(), "features that are off"),
}


def test_l0_passes() -> None:
    assert check.features_on(lambda codes: float((codes > 0).sum(1).float().mean())).passed


def test_counts_of_each_input_are_one_step_away() -> None:
    verdict = check.features_on(lambda codes: (codes > 0).sum(1))  # type: ignore[arg-type, return-value]
    assert verdict.state == "failed" and "shape (3,)" in verdict.seen and verdict.expected == "one number"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_l0_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG[name]
    verdict = check.features_on(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict
