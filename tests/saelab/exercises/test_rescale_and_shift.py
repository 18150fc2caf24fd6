"""Exercises of tutorial 03: right answers pass; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saelab.exercises import check

Rescale = Callable[[Tensor, Tensor, Tensor, Tensor], float]
Codes = Callable[[Tensor, Tensor, Tensor], Tensor]


def parts(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
    return x - b_dec, codes @ W_dec


def rescale(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    target, d = parts(x, codes, W_dec, b_dec)
    return float((target * d).sum() / (d * d).sum())


def uncentred(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    return rescale(x, codes, W_dec, torch.zeros_like(b_dec))


def inverse_gamma(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    r = codes @ W_dec + b_dec
    return float((x * r).sum() / (r * r).sum())


def row_by_row(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    target, d = parts(x, codes, W_dec, b_dec)
    on = d.norm(dim=1) > 0
    return float(((target * d).sum(1) / (d * d).sum(1))[on].mean())


def lengths(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    target, d = parts(x, codes, W_dec, b_dec)
    return float(target.norm() / d.norm())


def wrong_way_round(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> float:
    return 1 / rescale(x, codes, W_dec, b_dec)


WRONG_RESCALES: dict[str, tuple[Rescale, str]] = {
    "b_dec not subtracted": (uncentred, "only have to explain the rest of x"),
    "b_dec stretched": (inverse_gamma, "rescales b_dec as well"),
    "upside down": (wrong_way_round, "this is 1 / a"),
    "row by row": (row_by_row, "mean of each row's own a"),
    "lengths": (lengths, "makes the lengths equal"),
    "negative": (lambda *case: -rescale(*case), "for which a"),
}


def test_the_best_factor_passes() -> None:
    assert check.best_rescale(rescale).passed


@pytest.mark.parametrize("name", WRONG_RESCALES)
def test_a_wrong_factor_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_RESCALES[name]
    verdict = check.best_rescale(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def codes(pi: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    return (pi > 0) * torch.relu(torch.exp(r_mag) * pi + b_mag)


def in_place(pi: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    right = codes(pi.clone(), r_mag, b_mag)
    pi.clamp_(min=0)
    return right


WRONG_CODES: dict[str, tuple[Codes, str]] = {
    "no gate": (lambda pi, r, b: torch.relu(r.exp() * pi + b), "switched on features that the encoder left off"),
    "no relu": (lambda pi, r, b: (pi > 0) * (r.exp() * pi + b), "negative where the shift is"),
    "neither": (lambda pi, r, b: r.exp() * pi + b, "where is the gate"),
    "no exp": (lambda pi, r, b: (pi > 0) * torch.relu(r * pi + b), "logarithm of the factor"),
    "one plus": (lambda pi, r, b: (pi > 0) * torch.relu((1 + r) * pi + b), "only near 0"),
    "shift first": (lambda pi, r, b: (pi > 0) * torch.relu(r.exp() * (pi + b)), "rescale first"),
    "no shift": (lambda pi, r, b: (pi > 0) * torch.relu(r.exp() * pi), "only rescales"),
    "no rescale": (lambda pi, r, b: (pi > 0) * torch.relu(pi + b), "only shifts"),
    "detached": (lambda pi, r, b: codes(pi, r, b).detach(), "only these two are trained"),
    "half detached": (lambda pi, r, b: codes(pi, r.detach(), b), "only these two are trained"),
    "in place": (in_place, "changed its input in place"),
    "doubled": (lambda pi, r, b: 2 * codes(pi, r, b), "for each entry, first ask"),
}


def test_rescaled_and_shifted_codes_pass() -> None:
    assert check.rescale_shift_codes(codes).passed


@pytest.mark.parametrize("name", WRONG_CODES)
def test_wrong_codes_fail_with_their_own_hint(name: str) -> None:
    answer, hint = WRONG_CODES[name]
    verdict = check.rescale_shift_codes(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


RIGHT = {"L0": "stays", "gamma": "rises", "FVU": "falls"}


def test_the_right_prediction_passes() -> None:
    assert check.what_repair_changes(RIGHT).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (RIGHT | {"L0": "rises"}, "which could be new"),
        (RIGHT | {"L0": "falls"}, "only a negative shift"),
        (RIGHT | {"gamma": "falls"}, "even shorter"),
        (RIGHT | {"gamma": "stays"}, "no L1 pulls any more"),
        (RIGHT | {"FVU": "rises"}, "doing nothing is one of its options"),
        (RIGHT | {"FVU": "stays"}, "Is the second as good as it can be"),
        (RIGHT | {"FVU": "halves"}, "write one of these"),
        ({"L0": "stays"}, "a word for each of the three"),
        ("rises", "a word for each of the three"),
    ],
)
def test_a_wrong_prediction_fails_with_its_own_hint(answer: dict[str, str], hint: str) -> None:
    verdict = check.what_repair_changes(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def test_a_prediction_that_is_wrong_is_shown_with_its_name() -> None:
    assert check.what_repair_changes(RIGHT | {"gamma": "falls"}).seen == "gamma: 'falls'"
