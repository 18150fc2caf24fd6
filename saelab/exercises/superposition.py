"""Exercises of tutorial 01: sparse data, interference, the standard encoder, and what the L1 penalty does."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, wrong
from saelab.sae.standard import StandardSAE


@exercise
def expected_l0(answer: Callable[[Tensor], float]) -> None:
    """``answer(density)`` is the mean number of features on, from the probability of each, ``(n_features,)``."""
    density = torch.tensor([0.5, 0.25, 0.1, 0.05])
    expect(
        "expected L0 of densities 0.5, 0.25, 0.1, 0.05",
        answer(density),
        density.sum(),
        "L0 counts features; what does a feature that is on half of the time add to the count, on average?",
        [
            Mistake(density.mean(), "this is the mean density, which would not change if every feature were doubled"),
            Mistake(1 - (1 - density).prod(), "this is the probability that any feature is on; how many are?"),
            Mistake(density.prod(), "this is the probability that all are on at once"),
            Mistake(density.max(), "this counts only the most frequent feature"),
            Mistake((density > 0).sum(), "this is how many features there are; they are off most of the time"),
        ],
    )
    expect(
        "expected L0 of one feature of density 0.3",
        answer(torch.tensor([0.3])),
        0.3,
        "a single feature counts, too",
        atol=1e-5,
    )


@exercise
def interference(answer: Callable[[Tensor], Tensor]) -> None:
    """``answer(dictionary)`` is ``(n_features, n_features)``: how much one unit of feature j adds to the reading of i.

    The reading of feature i is the dot product with its direction. ``dictionary`` is ``(n_features, d_in)``, with rows
    of any length; the diagonal is 0.
    """
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 1, 2, 1, 3])[:, None]
    unit = torch.nn.functional.normalize(rows)
    cosines, dots = unit @ unit.T, rows @ rows.T
    off = 1 - torch.eye(5)
    one_side = "only one of the two directions has unit length here; a cosine needs both"
    not_unit = "these are dot products of rows as they are; a direction has length 1"
    columns = rows / rows.norm(dim=0)
    expect(
        "interference of five features in three dimensions",
        answer(rows.clone()),
        cosines * off,
        "entry (i, j) is the cosine of rows i and j: one unit of j, read along i",
        [
            Mistake(cosines, "a feature does not interfere with itself: what belongs on the diagonal?"),
            Mistake(dots * off, not_unit),
            Mistake(dots, not_unit),
            Mistake(cosines.abs() * off, "the sign matters: a negative cosine makes feature i look weaker"),
            Mistake(cosines.square() * off, "this is the cosine squared"),
            Mistake((rows @ unit.T) * off, one_side),
            Mistake((unit @ rows.T) * off, one_side),
            Mistake((columns @ columns.T) * off, "the features are the rows: divide each row by its own length"),
            Mistake(cosines - 1, "this subtracts 1 from every entry; only the diagonal should change"),
        ],
    )


@exercise
def standard_encode(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(x, W_enc, b_enc, b_dec)`` are the codes of a standard SAE, ``(batch, d_sae)``.

    Source: Bricken et al. (2023); Rajamanoharan et al. (2024), section 2. Shapes: ``(batch, d_in)``,
    ``(d_in, d_sae)``, ``(d_sae,)``, ``(d_in,)``.
    """
    generator = torch.Generator().manual_seed(1)
    x, W, b_enc, b_dec = (torch.randn(*shape, generator=generator) for shape in ((6, 3), (3, 5), (5,), (3,)))
    sae = StandardSAE(3, 5)
    with torch.no_grad():
        for parameter, value in ((sae.W_enc, W), (sae.b_enc, b_enc), (sae.b_dec, b_dec)):
            parameter.copy_(value)
        right = sae.encode(x)
    given = x.clone()
    u = (x - b_dec) @ W
    expect(
        "codes of six inputs, with five features in three dimensions",
        answer(given, W.clone(), b_enc.clone(), b_dec.clone()),
        right,
        "work through the formula from the inside: centre x, multiply, add the bias, clip at 0",
        [
            Mistake(u + b_enc, "these are pre-activations: some are below 0, and a code never is"),
            Mistake(
                (x @ W + b_enc).relu(), "x is not centred: what does the decoder add that the encoder should subtract?"
            ),
            Mistake(
                ((x + b_dec) @ W + b_enc).relu(), "b_dec has the wrong sign: the decoder adds it, so the encoder ..."
            ),
            Mistake(u.relu(), "b_enc is missing: without it no feature has a threshold of its own"),
            Mistake(u.relu() + b_enc, "b_enc comes before the ReLU: it decides what is clipped"),
            Mistake((u - b_enc).relu(), "b_enc has the wrong sign"),
            Mistake((u + b_enc).abs(), "this is the absolute value: a feature below 0 is off, not flipped"),
            Mistake(u + b_enc.relu(), "the ReLU applies to the whole sum, not to the bias alone"),
        ],
    )
    if not torch.equal(given, x):
        wrong(
            "x after the call",
            "another tensor",
            "as it was",
            "an operation in place, such as -=, changes the caller's x",
        )


L0_HINTS: Mapping[str, str] = {
    "rises": "each feature that is on costs more now; would you turn more of them on?",
    "stays": "a weak feature saves little error; is it still worth twice the price?",
}
FVU_HINTS: Mapping[str, str] = {
    "falls": "with less to spend on codes, can the reconstruction come closer to x?",
    "stays": "the loss is a sum of two terms; if one becomes more expensive, what happens to the other?",
}


@exercise
def doubling_the_l1_penalty(answer: tuple[str, str]) -> None:
    """A prediction ``(what L0 does, what FVU does)``: each is ``"rises"``, ``"falls"`` or ``"stays"``."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        wrong(
            "your prediction", repr(answer), "two words, such as (..., ...)", "first what L0 does, then what FVU does"
        )
    l0, fvu = answer
    expect_choice(l0, "falls", L0_HINTS, of="L0")
    expect_choice(fvu, "rises", FVU_HINTS, of="FVU")
