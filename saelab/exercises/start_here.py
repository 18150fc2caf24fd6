"""Exercises of tutorial 00: what a price on features does, and how many of them are on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, wrong

HINTS = {
    "l0": ("falls", "each feature that is on has to pay: look at the first chart while the L1 penalty is high"),
    "fvu": ("rises", "fewer directions, each turned down, have to make up the same activation: what is lost then?"),
    "gamma": ("falls", "the price is on every unit of a code, so what does it do to codes that stay on?"),
}
"""By quantity: the right word, and a hint."""


@exercise
def higher_price(answer: Mapping[str, str | None]) -> None:
    """``answer`` says of ``"l0"``, ``"fvu"`` and ``"gamma"`` whether each ``"rises"``, ``"falls"`` or ``"stays"``."""
    if not isinstance(answer, Mapping) or set(answer) != set(HINTS):
        wrong("your prediction", answer, f"a word for each of {', '.join(HINTS)}", "keep the three names as they were")
    for name, (right, hint) in HINTS.items():
        if (word := answer[name]) is None:
            raise NotImplementedError("replace each None above")
        others = {"rises", "falls", "stays"} - {right}
        expect_choice(word, right, dict.fromkeys(others, hint), of=name)


@exercise
def features_on(answer: Callable[[Tensor], float]) -> None:
    """``answer(codes)`` is L0: how many of the codes ``(batch, d_sae)`` of one input are above zero, on average."""
    codes = torch.tensor([[0.0, 2.0, 0.5, 0.0], [0.0, 0.0, 3.0, 0.0], [0.25, 1.0, 4.0, 0.0]])
    expect(
        "L0 of three inputs with 2, 1 and 3 of 4 features on",
        answer(codes),
        2.0,
        "count in each row what is above zero; the mean of these counts is L0",
        [
            Mistake(0.5, "this is the share of all codes that are on; L0 is a number of features"),
            Mistake(6.0, "this counts over the whole batch; L0 is of one input"),
            Mistake(1.5, "this is the mean along the other axis: over features, not over inputs"),
            Mistake(codes.sum(1).mean(), "this adds the codes up, which is L1: how strongly a feature is on counts"),
            Mistake(codes.mean(), "this is the mean of the codes themselves; L0 asks only whether each is on"),
            Mistake(codes.numel() / len(codes), "this counts the features that are off, too"),
        ],
    )
