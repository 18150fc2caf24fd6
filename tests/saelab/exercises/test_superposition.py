"""Exercises of tutorial 01: a right answer passes; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import saelab
from saelab.exercises import check


def test_expected_l0_passes_and_is_what_the_data_have() -> None:
    assert check.expected_l0(lambda density: float(density.sum())).passed
    density = torch.rand(40, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.01
    data = saelab.superposition(40, 8, density)
    assert float((data.codes > 0).sum(1).float().mean()) == pytest.approx(float(density.sum()), rel=0.02)


WRONG_L0: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "mean": (lambda density: density.mean(), "mean density"),
    "any": (lambda density: 1 - (1 - density).prod(), "any feature is on"),
    "all": (lambda density: density.prod(), "all are on at once"),
    "largest": (lambda density: density.max(), "most frequent feature"),
    "how many": (lambda density: len(density), "how many features there are"),
    "rounded": (lambda density: density.sum().round(), "L0 counts features"),
}


@pytest.mark.parametrize("name", WRONG_L0)
def test_a_wrong_expected_l0_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_L0[name]
    verdict = check.expected_l0(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows)


def cosines(rows: Tensor) -> Tensor:
    return unit(rows) @ unit(rows).T


def off(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


def test_interference_passes_and_is_what_a_reading_is_off_by() -> None:
    assert check.interference(lambda rows: off(cosines(rows))).passed
    data = saelab.superposition(12, 6, 0.3, n_samples=500)
    readings = data.activations @ data.dictionary.T
    torch.testing.assert_close(
        readings - data.codes, data.codes @ off(cosines(data.dictionary)).T, rtol=1e-4, atol=1e-4
    )


WRONG_INTERFERENCE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "diagonal": (cosines, "with itself"),
    "dot products": (lambda rows: off(rows @ rows.T), "as they are"),
    "absolute": (lambda rows: off(cosines(rows).abs()), "sign matters"),
    "squared": (lambda rows: off(cosines(rows).square()), "squared"),
    "one side": (lambda rows: off(rows @ unit(rows).T), "only one of the two"),
    "columns": (lambda rows: off((rows / rows.norm(dim=0)) @ (rows / rows.norm(dim=0)).T), "features are the rows"),
    "of dimensions": (lambda rows: rows.T @ rows, "entry (i, j)"),
}


@pytest.mark.parametrize("name", WRONG_INTERFERENCE)
def test_a_wrong_interference_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_INTERFERENCE[name]
    verdict = check.interference(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


Encode = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def test_encode_passes() -> None:
    assert check.standard_encode(lambda x, W, b, c: torch.relu((x - c) @ W + b)).passed


def in_place(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    x -= b_dec
    return torch.relu(x @ W_enc + b_enc)


WRONG_ENCODE: dict[str, tuple[Encode, str]] = {
    "no relu": (lambda x, W, b, c: (x - c) @ W + b, "pre-activations"),
    "not centred": (lambda x, W, b, c: torch.relu(x @ W + b), "not centred"),
    "b_dec added": (lambda x, W, b, c: torch.relu((x + c) @ W + b), "b_dec has the wrong sign"),
    "no b_enc": (lambda x, W, b, c: torch.relu((x - c) @ W), "b_enc is missing"),
    "bias outside": (lambda x, W, b, c: torch.relu((x - c) @ W) + b, "before the ReLU"),
    "b_enc subtracted": (lambda x, W, b, c: torch.relu((x - c) @ W - b), "b_enc has the wrong sign"),
    "absolute": (lambda x, W, b, c: ((x - c) @ W + b).abs(), "absolute value"),
    "relu of the bias": (lambda x, W, b, c: (x - c) @ W + b.relu(), "bias alone"),
    "in place": (in_place, "in place"),
    "reversed": (lambda x, W, b, c: torch.relu((c - x) @ W + b), "from the inside"),
}


@pytest.mark.parametrize("name", WRONG_ENCODE)
def test_a_wrong_encode_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_ENCODE[name]
    verdict = check.standard_encode(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


@pytest.mark.parametrize(
    ("answer", "seen", "hint"),
    [
        (("rises", "rises"), "L0: 'rises'", "each feature"),
        (("stays", "rises"), "L0: 'stays'", "a weak feature"),
        (("falls", "falls"), "FVU: 'falls'", "with less"),
        (("falls", "stays"), "FVU: 'stays'", "the loss"),
        ("falls", "falls", "first what L0 does"),
        (("falls", "up"), "FVU: up", "one of these"),
    ],
)
def test_a_wrong_prediction_of_the_l1_penalty_has_its_own_hint(answer: Any, seen: str, hint: str) -> None:
    verdict = check.doubling_the_l1_penalty(answer)
    assert verdict.state == "failed" and seen in verdict.seen and hint in verdict.hint, verdict


def test_what_the_check_takes_for_right_is_what_training_does() -> None:
    data = saelab.superposition(24, 12, 0.05, n_samples=4000)
    measured = []
    for l1 in (1, 2):
        sae = saelab.StandardSAE(12, 30)
        config = saelab.TrainingConfig(n_steps=200, batch_size=512, lr=3e-3)
        saelab.Trainer(sae, data.activations[:3000], config, l1_coefficient=l1).run(progress=False)
        measured.append(saelab.evaluate(sae, data.activations[3000:]))
    once, twice = measured
    l0 = "falls" if twice.l0 < 0.9 * once.l0 else "stays or rises"
    fvu = "rises" if twice.fvu > 1.1 * once.fvu else "stays or falls"
    assert check.doubling_the_l1_penalty((l0, fvu)).passed
