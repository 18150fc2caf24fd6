"""Exercises of tutorial 03: a rescaling factor by hand, rescaled and shifted codes, and what this repair changes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, Wrong, exercise, expect, expect_choice, expect_gradients, shown, wrong


@exercise
def best_rescale(answer: Callable[[Tensor, Tensor, Tensor, Tensor], float]) -> None:
    """``answer(x, codes, W_dec, b_dec)`` is the a that minimises E||x - (a * codes @ W_dec + b_dec)||^2.

    Shapes: ``x`` ``(batch, d_in)``, ``codes`` ``(batch, d_sae)``, ``W_dec`` ``(d_sae, d_in)``, ``b_dec`` ``(d_in,)``.
    """
    one = torch.ones(1, 1)
    expect(
        "one feature, x = 3, code 1, b_dec = 1",
        answer(3 * one, one, one, one[0]),
        2.0,
        "for which a is a * 1 + 1 equal to 3?",
        [
            Mistake(3.0, "b_dec is added whatever a is, so the features only have to explain the rest of x"),
            Mistake(1.5, "this rescales b_dec as well; a multiplies codes @ W_dec alone"),
            Mistake(0.5, "this is 1 / a, which says how short the features are, not by how much to stretch them"),
        ],
    )
    generator = torch.Generator().manual_seed(3)
    W_dec = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator))
    b_dec = torch.randn(4, generator=generator)
    truth = torch.randn(64, 6, generator=generator).relu() * torch.linspace(0.3, 3, 64)[:, None]
    codes = (truth - 0.4).relu()
    x = truth @ W_dec + b_dec + 0.1 * torch.randn(64, 4, generator=generator)
    d, target = codes @ W_dec, x - b_dec
    dd, td, tt = (d * d).sum(1), (target * d).sum(1), (target * target).sum(1)
    r = d + b_dec
    expect(
        "64 random rows",
        answer(x, codes, W_dec, b_dec),
        td.sum() / dd.sum(),
        "with d = codes @ W_dec, set the derivative of E||x - b_dec - a * d||^2 with respect to a to zero",
        [
            Mistake(
                (x * d).sum() / dd.sum(),
                "b_dec is added whatever a is, so the features only have to explain the rest of x",
            ),
            Mistake((x * r).sum() / (r * r).sum(), "this rescales b_dec as well; a multiplies codes @ W_dec alone"),
            Mistake(dd.sum() / td.sum(), "this is 1 / a, which says how short the features are"),
            Mistake((td / dd)[dd > 0].mean(), "this is the mean of each row's own a; sum over the batch, then divide"),
            Mistake((td / dd).mean(), "rows with no feature on have no a of their own; sum over the batch first"),
            Mistake(td.sum() / tt.sum(), "this is the best factor on x - b_dec to match d; rescale d instead"),
            Mistake(
                (tt.sum() / dd.sum()).sqrt(),
                "this makes the lengths equal, but if directions differ, the least error needs a shorter one",
            ),
        ],
    )


@exercise
def rescale_shift_codes(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(pi, r_mag, b_mag)`` are the codes of a rescale-and-shift SAE (Rajamanoharan et al. 2024, section 5.2).

    ``codes = (pi > 0) * relu(exp(r_mag) * pi + b_mag)``: ``pi`` ``(batch, d_sae)``, the others ``(d_sae,)``.
    """
    pi = torch.tensor([[-1.0, -0.2, 0.5, 0.4, 2.0], [0.3, 1.5, -2.0, 1.0, 0.1], [0.0, -0.1, 1.0, -0.5, 0.6]])
    r_mag = torch.tensor([0.2, -0.3, 0.7, 0.4, 0.0], requires_grad=True)
    b_mag = torch.tensor([0.8, 0.5, -0.2, -1.0, -0.3], requires_grad=True)
    given = pi.clone()
    seen = answer(given, r_mag, b_mag)
    if not torch.equal(given, pi):
        wrong("pi after the call", given, pi, "your function has changed its input in place; make a new tensor instead")
    on, line = pi > 0, r_mag.exp() * pi + b_mag
    expected = on * line.relu()
    expect(
        "codes of three inputs",
        seen,
        expected,
        "for each entry, first ask whether its feature is on (pi alone decides), then how strongly",
        [
            Mistake(
                line.relu(),
                "a positive shift has switched on features that the encoder left off; what decides whether one is on?",
            ),
            Mistake(on * line, "a code is negative where the shift is negative; codes never are"),
            Mistake(line, "no feature is ever off here, and codes are negative; where is the gate?"),
            Mistake(
                on * (r_mag * pi + b_mag).relu(), "r_mag is the logarithm of the factor, so that 0 changes nothing"
            ),
            Mistake(on * ((1 + r_mag) * pi + b_mag).relu(), "1 + r_mag is exp(r_mag) only near 0"),
            Mistake(on * (r_mag.exp() * (pi + b_mag)).relu(), "the shift is rescaled, too; rescale first, then shift"),
            Mistake(on * (r_mag.exp() * pi).relu(), "this only rescales; where is b_mag?"),
            Mistake(on * (pi + b_mag).relu(), "this only shifts; where is r_mag?"),
        ],
    )
    expect_gradients(
        "codes.sum()",
        seen,
        {"r_mag": r_mag, "b_mag": b_mag},
        expected,
        "only these two are trained: compute codes from them with torch alone, without detach, item or numpy",
    )


_CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "L0": (
        "stays",
        {
            "rises": "L0 counts features that are on, and the frozen pi > 0 is still required; which could be new?",
            "falls": "only a negative shift can switch a code off; L1 made codes too small, so what sign does it get?",
        },
    ),
    "gamma": (
        "rises",
        {
            "falls": "gamma below 1 means that reconstructions are too short; will less error make them even shorter?",
            "stays": "two numbers per feature, fitted to the error alone, can repair gamma: no L1 pulls any more",
        },
    ),
    "FVU": (
        "falls",
        {
            "rises": "FVU is the error that this training minimises, and doing nothing is one of its options",
            "stays": "FVU depends on which features are on and how strongly. Is the second as good as it can be?",
        },
    ),
}


@exercise
def what_repair_changes(answer: Mapping[str, str]) -> None:
    """``answer`` says for ``"L0"``, ``"gamma"`` and ``"FVU"`` whether it ``"rises"``, ``"falls"`` or ``"stays"``."""
    if not isinstance(answer, Mapping) or set(answer) != set(_CHOICES):
        raise Wrong(
            shown(answer),
            "a dict with the keys 'L0', 'gamma' and 'FVU'",
            "such as {'L0': 'stays', ...}: a word for each of the three",
        )
    for name, (right, others) in _CHOICES.items():
        expect_choice(answer[name], right, others, of=name)
