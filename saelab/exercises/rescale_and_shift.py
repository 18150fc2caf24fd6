"""Exercises of tutorial 03: one factor by hand, rescaled and shifted codes, and what such a repair can change."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, Wrong, exercise, expect, expect_choice, expect_gradients, shown, wrong


@exercise
def best_rescale(answer: Callable[[Tensor, Tensor, Tensor, Tensor], float]) -> None:
    """``answer(x, codes, W_dec, b_dec)`` is the a of least E||x - (a * codes @ W_dec + b_dec)||^2.

    Shapes: ``x`` ``(batch, d_in)``, ``codes`` ``(batch, d_sae)``, ``W_dec`` ``(d_sae, d_in)``, ``b_dec`` ``(d_in,)``.
    """
    one = torch.ones(1, 1)
    expect(
        "one feature, x = 3, code 1, b_dec = 1",
        answer(3 * one, one, one, one[0]),
        2.0,
        "with which a does a * 1 + 1 give 3?",
        [
            Mistake(3.0, "b_dec is added whatever a is: only the rest of x is for the features to explain"),
            Mistake(1.5, "this stretches b_dec as well: a multiplies codes @ W_dec alone"),
            Mistake(0.5, "this is 1 / a: by how much the features are too short, not by how much to stretch them"),
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
        "with d = codes @ W_dec, set the derivative of E||x - b_dec - a * d||^2 by a to zero, and solve for a",
        [
            Mistake(
                (x * d).sum() / dd.sum(),
                "b_dec is added whatever a is: only the rest of x is for the features to explain",
            ),
            Mistake((x * r).sum() / (r * r).sum(), "this stretches b_dec as well: a multiplies codes @ W_dec alone"),
            Mistake(dd.sum() / td.sum(), "this is 1 / a: by how much the features are too short"),
            Mistake((td / dd)[dd > 0].mean(), "this is the mean of each row's own a; sum over the batch, then divide"),
            Mistake((td / dd).mean(), "some rows have no feature on, and no a of their own: sum over the batch first"),
            Mistake(td.sum() / tt.sum(), "this is the factor on x - b_dec that comes nearest to d; stretch d instead"),
            Mistake(
                (tt.sum() / dd.sum()).sqrt(),
                "this makes the lengths equal; where directions differ, that is too long for the least error",
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
        "for each entry ask first whether its feature is on (pi alone says so), then how strongly",
        [
            Mistake(
                line.relu(),
                "a shift above 0 has switched on features that the encoder left off; who decides whether one is on?",
            ),
            Mistake(on * line, "a code is negative where the shift is; codes never are"),
            Mistake(line, "nothing is ever off here, and codes are negative; where is the gate?"),
            Mistake(
                on * (r_mag * pi + b_mag).relu(), "r_mag is the logarithm of the factor, so that 0 changes nothing"
            ),
            Mistake(on * ((1 + r_mag) * pi + b_mag).relu(), "1 + r_mag is exp(r_mag) only near 0"),
            Mistake(
                on * (r_mag.exp() * (pi + b_mag)).relu(), "here the shift is stretched, too; rescale first, then shift"
            ),
            Mistake(on * (r_mag.exp() * pi).relu(), "this only rescales; what has become of b_mag?"),
            Mistake(on * (pi + b_mag).relu(), "this only shifts; what has become of r_mag?"),
        ],
    )
    expect_gradients(
        "codes.sum()",
        seen,
        {"r_mag": r_mag, "b_mag": b_mag},
        expected,
        "these two are all that learns: compute codes from them with torch alone, without detach, item or numpy",
    )


_CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "L0": (
        "stays",
        {
            "rises": "L0 counts features that are on; the frozen pi > 0 is still asked first, so which could be new?",
            "falls": "only a shift below 0 can switch a code off; L1 made codes too small, so where does the shift go?",
        },
    ),
    "gamma": (
        "rises",
        {
            "falls": "gamma below 1 says that reconstructions are too short; will less error make them shorter still?",
            "stays": "gamma is what two numbers a feature, fitted to the error alone, can mend: no L1 pulls any more",
        },
    ),
    "FVU": (
        "falls",
        {
            "rises": "FVU is the error that this training minimises, and doing nothing is among its choices",
            "stays": "FVU has two parts: which features are on, and how strongly. Is the second as good as it can be?",
        },
    ),
}


@exercise
def what_repair_changes(answer: Mapping[str, str]) -> None:
    """``answer`` says of ``"L0"``, ``"gamma"`` and ``"FVU"`` whether it ``"rises"``, ``"falls"`` or ``"stays"``."""
    if not isinstance(answer, Mapping) or set(answer) != set(_CHOICES):
        raise Wrong(
            shown(answer),
            "a dict with the keys 'L0', 'gamma' and 'FVU'",
            "such as {'L0': 'stays', ...}: a word for each of the three",
        )
    for name, (right, others) in _CHOICES.items():
        expect_choice(answer[name], right, others, of=name)
