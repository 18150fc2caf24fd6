"""Exercises of tutorial 02: the relative reconstruction bias, its look-alikes, and why an L1 penalty shrinks."""

from collections.abc import Callable, Collection, Iterable
from typing import get_args

import torch
from torch import Tensor

import saelab
from saelab.evaluation.metrics import BiasFormula
from saelab.exercises.verdicts import Mistake, exercise, expect, wrong

NORMS = "this is a ratio of norms, which can be below 1 for an unbiased reconstruction, too"
VERSION_1 = "this is version 1's equation (10): its denominator has the loss of r in place of that of the best r / g"


@exercise
def relative_reconstruction_bias(answer: Callable[[Tensor, Tensor], float]) -> None:
    """``answer(x, r)`` is gamma, the g that minimises E||r / g - x||^2; ``x`` and ``r`` are ``(batch, d_in)``.

    Source: Rajamanoharan et al. (2024), version 2, eq. 9 and 10; gamma = E||r||^2 / E[x . r].
    """
    x, r = torch.ones(1, 1), torch.full((1, 1), 0.5)
    expect(
        "gamma of x = 1, r = 1/2",
        answer(x, r),
        0.5,
        "which factor g makes r / g equal to x here?",
        [
            Mistake(
                3**-0.5,
                VERSION_1,
            ),
            Mistake(2.0, "this is 1 / gamma, which says by how much to stretch r; gamma says how short r is"),
            Mistake(0.25, "this looks like gamma squared, or E||r||^2 alone: for which g is r / g equal to x?"),
        ],
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator) * torch.linspace(0.2, 3, 64)[:, None]
    mask = torch.rand(64, 4, generator=generator) < 0.6
    r = 0.7 * x * mask + 0.1 * torch.randn(64, 4, generator=generator)
    rr, xr, xx = r.square().sum(1), (x * r).sum(1), x.square().sum(1)
    expect(
        "gamma of 64 random rows",
        answer(x, r),
        rr.sum() / xr.sum(),
        "set the derivative of E||r / g - x||^2 with respect to g to zero, and solve for g",
        [
            Mistake(
                (rr / xr).mean(),
                "this is the mean of each row's own ratio; take the expectations first, then one ratio",
            ),
            Mistake((r.square() / (x * r)).mean(), "this divides entry by entry; sum over the whole batch first"),
            Mistake(xr.sum() / xx.sum(), "this is E[x . r] / E||x||^2, the best factor on x; gamma divides r"),
            Mistake(
                (rr.sum() / xx.sum()).sqrt(),
                NORMS,
            ),
            Mistake(rr.sum() / xx.sum(), "this compares E||r||^2 with E||x||^2, and ignores whether r points along x"),
            Mistake(
                r.norm(dim=1).mean() / x.norm(dim=1).mean(),
                NORMS,
            ),
            Mistake(
                (rr.sum() / (2 * xr.sum() - rr.sum())).sqrt(),
                VERSION_1,
            ),
        ],
    )


MISSED: dict[str, str] = {
    "projection": "a projection keeps r orthogonal to x - r, so E[x . r] = E||r||^2: substitute that into each formula",
    "norm_ratio": "r lacks half of x, so it is shorter: which formula compares lengths alone?",
}
ACCUSED: dict[str, str] = {
    "corrected": "no factor brings back what was left out: which g brings r / g nearest to x in the dimensions kept?",
    "v1": "by Pythagoras, what is E||x||^2 - E||x - r||^2 for a projection?",
}


@exercise
def biased_by(answer: Collection[str]) -> None:
    """A prediction: the formulas that do not give 1 for an orthogonal projection onto half of the dimensions.

    Formulas are named as in `saelab.relative_reconstruction_bias`, in a set or a list.
    """
    names = {answer} if isinstance(answer, str) else set(answer)
    if not names <= set(get_args(BiasFormula)):
        wrong(
            "your prediction",
            repr(answer),
            f"some of {', '.join(map(repr, get_args(BiasFormula)))}",
            "write names of formulas, in quotes, between { and }",
        )
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    half = x * (torch.arange(8) < 4)
    biased = {
        name for name in get_args(BiasFormula) if abs(saelab.relative_reconstruction_bias(x, half, name) - 1) > 0.05
    }
    for accused in sorted(names - biased):
        wrong("your prediction", f"{accused!r} among them", f"without {accused!r}", ACCUSED[accused])
    for missed in sorted(biased - names):
        wrong("your prediction", f"{len(names)} formula(s)", "another one as well", MISSED[missed])


@exercise
def best_code(answer: Callable[[Tensor, float], Tensor]) -> None:
    """``answer(z, l1)`` is the f >= 0 that minimises ``(z - f)^2 + l1 * f``, for each magnitude in ``z``, ``(n,)``."""
    z, l1 = torch.tensor([3.0, 2.0, 1.5, 0.8, 0.3, 0.0, -1.0, -2.5]), 1.2
    half = l1 / 2
    given = z.clone()
    expect(
        "codes of z = 3, 2, 1.5, 0.8, 0.3, 0, -1, -2.5 at l1 = 1.2",
        answer(given, l1),
        (z - half).clamp(min=0),
        "set the derivative with respect to f to zero; then ask what happens if that f is below 0",
        [
            Mistake((z - l1).clamp(min=0), "too short: the derivative of (z - f)^2 brings a factor of 2"),
            Mistake(z - half, "some of these are below 0, but a code never is; what is the best allowed value?"),
            Mistake(z.clamp(min=0), "this is the best code at no price at all"),
            Mistake(
                torch.where(z > half, z, 0.0),
                "this switches weak codes off and leaves the others unchanged, but they pay the price as well",
            ),
            Mistake(
                torch.where(z > l1, z, 0.0),
                "this switches weak codes off and leaves the others unchanged, but they pay the price as well",
            ),
            Mistake(
                z.sign() * (z.abs() - half).clamp(min=0),
                "this is right for codes of either sign; an SAE's are never below 0",
            ),
            Mistake(
                (z / (1 + l1)).clamp(min=0),
                "this is for a price on f squared, which rescales codes; an L1 price is linear in f",
            ),
            Mistake(
                (z / (1 + half)).clamp(min=0),
                "this is for a price on f squared, which rescales codes; an L1 price is linear in f",
            ),
            Mistake((z + half).clamp(min=0), "a price does not increase codes: check the sign of its derivative"),
            Mistake(
                (z - half).abs(),
                "if the optimum is out of bounds, the best allowed value is at the bound, not mirrored",
            ),
        ],
    )
    if not torch.equal(given, z):
        wrong("z after the call", "another tensor", "as it was", "an operation in place changes the caller's z")


@exercise
def pooled_bias(answer: Callable[[Iterable[tuple[Tensor, Tensor]]], float]) -> None:
    """``answer(batches)`` is gamma over all rows of an iterable of ``(x, r)``, which may be read only once."""
    generator = torch.Generator().manual_seed(2)

    def batch(n: int, size: float, share: float) -> tuple[Tensor, Tensor]:
        x = size * torch.randn(n, 5, generator=generator)
        return x, share * x + 0.1 * size * torch.randn(n, 5, generator=generator)

    def sums(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Number of rows, summed ||r||^2 and summed x . r of each batch."""
        return (
            torch.tensor([float(len(x)) for x, _ in batches]),
            torch.stack([r.square().sum() for _, r in batches]),
            torch.stack([(x * r).sum() for x, r in batches]),
        )

    even = [batch(32, size, share) for size, share in ((0.5, 0.3), (1.0, 0.6), (5.0, 0.95))]
    n, rr, xr = sums(even)
    each = rr / xr
    expect(
        "gamma over three batches of 32 rows",
        answer(even),
        rr.sum() / xr.sum(),
        "sum ||r||^2 and x . r over all rows of all batches, and divide once, at the end",
        [
            Mistake(
                each.mean(),
                "this is the mean of each batch's own gamma: batches of small x count as much as the others",
            ),
            Mistake(each[-1], "this is gamma of the last batch alone"),
            Mistake(each[0], "this is gamma of the first batch alone: is return inside the loop?"),
            Mistake(each.median(), "this is the median of the batches' gammas; pool sums, not ratios"),
            Mistake(xr.sum() / rr.sum(), "this is upside down: gamma is below 1 if r is too short"),
        ],
    )
    uneven = [batch(64, 3.0, 0.9), batch(64, 1.0, 0.5), batch(3, 1.0, 0.2)]
    n, rr, xr = sums(uneven)
    expect(
        "gamma over batches of 64, 64 and 3 rows",
        answer(uneven),
        rr.sum() / xr.sum(),
        "this was right for batches of equal size; sum over rows, not over batches",
        [
            Mistake((rr / n).sum() / (xr / n).sum(), "batch means count the three rows as much as 64; take sums"),
        ],
    )
    expect(
        "the same batches from an iterator",
        answer(iter(uneven)),
        rr.sum() / xr.sum(),
        "an iterator can be read only once: compute both sums in one pass",
    )
