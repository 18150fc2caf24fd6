"""Exercises of tutorial 04: right answers pass; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import saelab
from saelab.exercises import check

Codes = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Threshold = Callable[[Tensor, Tensor, Tensor], Tensor]


def codes(u: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    return (u + b_gate > 0) * torch.relu(u * torch.exp(r_mag) + b_mag)


def straight_through(u: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    soft = torch.sigmoid(u + b_gate)
    hard = (u + b_gate > 0).float()
    return (hard + soft - soft.detach()) * torch.relu(u * torch.exp(r_mag) + b_mag)


def as_identity(u: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    pi_gate = u + b_gate
    hard = (pi_gate > 0).float()
    return (hard + pi_gate - pi_gate.detach()) * torch.relu(u * torch.exp(r_mag) + b_mag)


WRONG_CODES: dict[str, tuple[Codes, str]] = {
    "no relu": (lambda u, g, r, m: (u + g > 0) * (u * r.exp() + m), "negative where the gate is open"),
    "gate on magnitude": (lambda u, g, r, m: torch.relu(u * r.exp() + m), "which path decides"),
    "soft gate": (lambda u, g, r, m: torch.sigmoid(u + g) * torch.relu(u * r.exp() + m), "this gate is soft"),
    "product": (lambda u, g, r, m: torch.relu(u + g) * torch.relu(u * r.exp() + m), "how far the gate is open"),
    "standard": (lambda u, g, r, m: torch.relu(u + g), "magnitude path is missing"),
    "gate alone": (lambda u, g, r, m: (u + g > 0).float(), "the gate alone"),
    "no exp": (lambda u, g, r, m: (u + g > 0) * torch.relu(u * r + m), "a logarithm"),
    "b_gate twice": (lambda u, g, r, m: (u + g > 0) * torch.relu((u + g) * r.exp() + m), "got into the magnitude"),
    "shift first": (lambda u, g, r, m: (u + g > 0) * torch.relu((u + m) * r.exp()), "rescale u first"),
    "swapped": (lambda u, g, r, m: (u + m > 0) * torch.relu(u * r.exp() + g), "b_gate and b_mag are swapped"),
    "shut where open": (lambda u, g, r, m: (u + g < 0) * torch.relu(u * r.exp() + m), "open where pi_gate is below 0"),
    "straight through": (straight_through, "straight-through estimator"),
    "as identity": (as_identity, "as if it were pi_gate itself"),
    "u detached": (lambda u, g, r, m: codes(u.detach(), g, r, m), "u is detached"),
    "all detached": (lambda u, g, r, m: codes(u, g, r, m).detach(), "acts as a constant"),
    "doubled": (lambda u, g, r, m: 2 * codes(u, g, r, m), "on separate lines"),
}


def test_gated_codes_pass() -> None:
    assert check.gated_codes(codes).passed


@pytest.mark.parametrize("name", WRONG_CODES)
def test_wrong_gated_codes_fail_with_their_own_hint(name: str) -> None:
    answer, hint = WRONG_CODES[name]
    verdict = check.gated_codes(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def loss(
    x: Tensor,
    W_enc: Tensor,
    b_gate: Tensor,
    r_mag: Tensor,
    b_mag: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    l1: float,
    *,
    wrong: str = "",
) -> Tensor:
    u = (x - (b_dec.detach() if wrong == "input detached" else 0 if wrong == "uncentred" else b_dec)) @ W_enc
    pi_gate = u + b_gate
    f = codes(u, b_gate, r_mag, b_mag)
    if wrong == "straight through":
        f = straight_through(u, b_gate, r_mag, b_mag)
    error = ((x - (f @ W_dec + b_dec)) ** 2).sum(1).mean()
    sparsity = torch.relu(pi_gate).sum(1).mean()
    gate = torch.relu(pi_gate)
    W, b = W_dec.detach(), b_dec.detach()
    if wrong == "no stop-gradient":
        W, b = W_dec, b_dec
    if wrong == "only b_dec frozen":
        W = W_dec
    if wrong == "only W_dec frozen":
        b = b_dec
    if wrong == "everything frozen":
        gate = gate.detach()
    auxiliary = ((x - ((f if wrong == "auxiliary of codes" else gate) @ W + b)) ** 2).sum(1).mean()
    if wrong == "mean over d_in":
        return error / x.shape[1] + l1 * sparsity + auxiliary / x.shape[1]
    if wrong == "sum over batch":
        return (error + l1 * sparsity + auxiliary) * len(x)
    if wrong == "l1 on codes":
        sparsity = f.sum(1).mean()
    if wrong == "l1 of pi_gate":
        sparsity = pi_gate.abs().sum(1).mean()
    if wrong == "l1 averaged":
        sparsity = torch.relu(pi_gate).mean()
    return error + l1 * sparsity + (0 if wrong == "no auxiliary" else auxiliary)


WRONG_LOSSES = {
    "no stop-gradient": "trains W_dec and b_dec; its decoder is frozen",
    "only b_dec frozen": "only b_dec is frozen in its decode",
    "only W_dec frozen": "the decoder's bias must be frozen there",
    "input detached": "still gets gradients",
    "everything frozen": "trains nothing",
    "straight through": "which tensors it may train",
    "mean over d_in": "averaged over d_in, too",
    "sum over batch": "sum over the batch",
    "l1 on codes": "the L1 penalty is on the codes",
    "l1 of pi_gate": "gates that are shut as well",
    "l1 averaged": "sum over features",
    "no auxiliary": "the third term is missing",
    "auxiliary of codes": "reconstructs from the codes",
    "uncentred": "not subtracted from x",
}


def test_the_gated_loss_passes_and_is_that_of_the_library() -> None:
    assert check.gated_loss(loss).passed

    def of_the_library(x: Tensor, *weights: Tensor) -> Tensor:
        sae = saelab.GatedSAE(4, 6)
        names = ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec")
        *parameters, l1 = weights
        for name, weight in zip(names, parameters, strict=True):
            del sae._parameters[name]
            setattr(sae, name, weight)
        return sae.loss(x, l1_coefficient=float(l1)).total

    assert check.gated_loss(of_the_library).passed


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_a_wrong_loss_fails_with_its_own_hint(name: str) -> None:
    verdict = check.gated_loss(lambda *case: loss(*case, wrong=name))
    assert verdict.state == "failed" and WRONG_LOSSES[name] in verdict.hint, verdict


def test_a_loss_without_a_gradient_and_one_that_is_twice_too_large() -> None:
    assert "autograd" in check.gated_loss(lambda *case: loss(*case).detach()).expected
    assert "the three terms" in check.gated_loss(lambda *case: 2 * loss(*case)).hint


def threshold(b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    return b_mag - torch.exp(r_mag) * b_gate


WRONG_THRESHOLDS: dict[str, tuple[Threshold, str]] = {
    "plus": (lambda g, r, m: m + r.exp() * g, "check the sign"),
    "minus": (lambda g, r, m: r.exp() * g - m, "minus the threshold"),
    "no r_mag": (lambda g, r, m: m - g, "right only if exp(r_mag) is 1"),
    "no exp": (lambda g, r, m: m - r * g, "logarithm of the factor on u"),
    "on u": (lambda g, r, m: -g, "the threshold on u;"),
    "before b_mag": (lambda g, r, m: -r.exp() * g, "before b_mag is added"),
    "divided": (lambda g, r, m: m - g / r.exp(), "not divided"),
    "clipped": (lambda g, r, m: threshold(g, r, m).clamp(min=0), "may be negative"),
    "doubled": (lambda g, r, m: 2 * threshold(g, r, m), "what is pi_mag there"),
}


def test_the_threshold_passes() -> None:
    assert check.jumprelu_threshold(threshold).passed


@pytest.mark.parametrize("name", WRONG_THRESHOLDS)
def test_a_wrong_threshold_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG_THRESHOLDS[name]
    verdict = check.jumprelu_threshold(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def test_the_prediction_passes() -> None:
    assert check.without_auxiliary("falls").passed and check.without_auxiliary(" Falls ").passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("rises", "which term is left to move it"),
        ("stays", "opens gates"),
        ("drops", "write one of these"),
        (3, "write one of these"),
    ],
)
def test_a_wrong_prediction_fails_with_its_own_hint(answer: str, hint: str) -> None:
    verdict = check.without_auxiliary(answer)
    assert verdict.state == "failed" and hint in verdict.hint, verdict


@pytest.mark.parametrize("name", ["gated_codes", "gated_loss", "jumprelu_threshold", "without_auxiliary"])
def test_an_exercise_that_is_not_begun_is_open(name: str) -> None:
    assert getattr(check, name)(None).state == "open"
