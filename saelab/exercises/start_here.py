"""Exercises of tutorial 00: what a price on features does, and how many features are on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, wrong

HINTS = {
    "l0": ("falls", "each feature that is on has to pay: look at the first chart while the L1 penalty is high"),
    "fvu": ("rises", "fewer directions, each turned down, have to make up the same activation: what is lost?"),
    "gamma": ("falls", "the price is on every unit of a code, so what does it do to codes that stay on?"),
}
"""The right word and a hint for each quantity."""


@exercise
def higher_price(answer: Mapping[str, str | None]) -> None:
    """``answer`` says for ``"l0"``, ``"fvu"`` and ``"gamma"`` whether each ``"rises"``, ``"falls"`` or ``"stays"``."""
    if not isinstance(answer, Mapping) or set(answer) != set(HINTS):
        wrong("your prediction", answer, f"a word for each of {', '.join(HINTS)}", "keep the three names as they were")
    for name, (right, hint) in HINTS.items():
        if (word := answer[name]) is None:
            raise NotImplementedError("replace each None above")
        others = {"rises", "falls", "stays"} - {right}
        expect_choice(word, right, dict.fromkeys(others, hint), of=name)


@exercise
def features_on(answer: Callable[[Tensor], float]) -> None:
    """``answer(codes)`` is L0: the mean number of codes above zero per input, from ``(batch, d_sae)``."""
    codes = torch.tensor([[0.0, 2.0, 0.5, 0.0], [0.0, 0.0, 3.0, 0.0], [0.25, 1.0, 4.0, 0.0]])
    expect(
        "L0 of three inputs with 2, 1 and 3 of 4 features on",
        answer(codes),
        2.0,
        "count the codes above zero in each row; the mean of these counts is L0",
        [
            Mistake(0.5, "this is the share of all codes that are on; L0 is a number of features"),
            Mistake(6.0, "this counts over the whole batch; L0 is per input"),
            Mistake(1.5, "this is the mean along the other axis: over features, not over inputs"),
            Mistake(
                codes.sum(1).mean(), "this sums the codes, which is L1: it depends on how strongly a feature is on"
            ),
            Mistake(codes.mean(), "this is the mean of the codes themselves; L0 asks only whether each is on"),
            Mistake(codes.numel() / len(codes), "this counts the features that are off, too"),
        ],
    )
