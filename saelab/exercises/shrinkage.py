"""Exercises of tutorial 02: the relative reconstruction bias, and what is taken for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect

NORMS = "this is a ratio of norms, which is below 1 for a reconstruction without bias, too"
VERSION_1 = "this is version 1's equation (10): its denominator has the optimised loss where the original belongs"


@exercise
def relative_reconstruction_bias(answer: Callable[[Tensor, Tensor], float]) -> None:
    """``answer(x, r)`` is gamma, the g of least E||r / g - x||^2, of inputs and reconstructions ``(batch, d_in)``.

    Source: Rajamanoharan et al. (2024), section 4 and appendix; gamma = E||r||^2 / E[x . r].
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
            Mistake(2.0, "this is 1 / gamma: it says by how much to stretch r, gamma says how short it is"),
            Mistake(0.25, "this looks like gamma squared, or E||r||^2 alone: r / g equals x at which g?"),
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
                "this is the mean of each row's own ratio; the expectations come first, then one ratio",
            ),
            Mistake((r.square() / (x * r)).mean(), "this divides entry by entry; sum over the whole batch first"),
            Mistake(xr.sum() / xx.sum(), "this is E[x . r] / E||x||^2, the best factor on x; gamma divides r"),
            Mistake(
                (rr.sum() / xx.sum()).sqrt(),
                NORMS,
            ),
            Mistake(
                rr.sum() / xx.sum(), "this compares E||r||^2 with E||x||^2, and never asks whether r points along x"
            ),
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
