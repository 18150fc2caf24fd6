"""Exercises of tutorial 08: the control for a claim, an interval paired by seed, a small error that means nothing."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from saelab.data.synthetic import superposition
from saelab.evaluation.comparisons import t_quantile
from saelab.evaluation.metrics import FVU
from saelab.evaluation.truth import compare_with_truth
from saelab.exercises.verdicts import Mistake, Wrong, exercise, expect, expect_choice, shown, wrong

_CONTROLS: dict[str, tuple[str, dict[str, str]]] = {
    "directions": (
        "frozen_decoder",
        {
            "frozen_encoder": "this one still learns its directions; take one that cannot",
            "pca": "a PCA takes its directions from the data, too; take one whose directions are random",
        },
    ),
    "detection": (
        "frozen_encoder",
        {
            "frozen_decoder": "its encoder learns, so it could detect just as well; which part decides what is on?",
            "pca": "all components of a PCA are on everywhere, so it detects nothing; "
            "which SAE cannot choose what its features respond to?",
        },
    ),
    "dimensions": (
        "pca",
        {
            "frozen_decoder": "it is sparse as well; take the rival that keeps as many dimensions without sparsity",
            "frozen_encoder": "it is sparse as well; take the rival that keeps as many dimensions without sparsity",
        },
    ),
}


@exercise
def right_control(answer: Mapping[str, str | None]) -> None:
    """``answer`` names the control that would refute each of three claims: the keys of `_CONTROLS`."""
    if not isinstance(answer, Mapping) or set(answer) != set(_CONTROLS):
        raise Wrong(
            shown(answer),
            f"a dict with the keys {', '.join(map(repr, _CONTROLS))}",
            "one control for each of the three claims",
        )
    chosen = {claim: choice for claim, choice in answer.items() if choice is not None}
    if set(chosen) != set(_CONTROLS):
        raise NotImplementedError("replace each None above")
    for claim, (right, others) in _CONTROLS.items():
        expect_choice(chosen[claim], right, others, of=claim)


@exercise
def paired_interval(answer: Callable[[Sequence[float], Sequence[float]], tuple[float, float, float]]) -> None:
    """``answer(a, b)`` is the mean of a - b and the limits of its 95 % t interval, paired by seed."""
    t_2, t_4 = 4.302653, 2.776445  # 97.5th percentiles of t with 2 and 4 degrees of freedom
    # Differences 1, 2, 3: mean 2, standard deviation 1
    half = t_2 / math.sqrt(3)
    unpaired = t_4 * math.sqrt(2 * (12.0**2 + 11.0**2) / 2 / 3)  # a: 10, 22, 34 and b: 9, 20, 31
    expect(
        "a = 10, 22, 34 and b = 9, 20, 31",
        answer([10.0, 22.0, 34.0], [9.0, 20.0, 31.0]),
        [2.0, 2 - half, 2 + half],
        "take a - b seed by seed, then the mean, and t times the standard error on either side of it",
        [
            Mistake([-2.0, -2 - half, -2 + half], "the difference is a - b, not b - a"),
            Mistake([2.0, 2 + half, 2 - half], "the lower limit comes first"),
            Mistake([2.0, half, half], "return the limits, not their distance from the mean"),
            Mistake([2.0, 2 - unpaired, 2 + unpaired], "the spread of a and of b themselves is not what counts here: "
                    "a seed shifts both alike, and the difference in each seed does not have that shift"),
            *_intervals(2.0, 1.0, 3, t_2),
        ],
    )  # fmt: skip
    a, b = [0.25, 0.75, 0.5, 1.0, 0.5], [0.5, 0.5, 1.0, 1.5, 0.5]  # differences -1/4, 1/4, -1/2, -1/2, 0
    mean, deviation = -0.2, math.sqrt(0.10625)  # squares of their deviations from the mean sum to 0.425
    half = t_4 * deviation / math.sqrt(5)
    expect(
        "five seeds",
        answer(a, b),
        [mean, mean - half, mean + half],
        "does the number of seeds enter both the standard error and the degrees of freedom, n - 1?",
        _intervals(mean, deviation, 5, t_4),
    )


def _intervals(mean: float, deviation: float, n: int, t: float) -> list[Mistake]:
    """Usual mistakes in an interval of a mean of ``n`` with this standard deviation."""
    wrong_halves = {
        1.959964 * deviation / math.sqrt(n): "1.96 is for many seeds; for few, take t with n - 1 degrees of freedom",
        2 * deviation / math.sqrt(n): "2 is for many seeds; for few, take t with n - 1 degrees of freedom",
        t_quantile(0.95, n) * deviation / math.sqrt(n): "n differences have n - 1 degrees of freedom, not n",
        t * deviation: "this is an interval for one more seed; the mean of n has a standard error smaller by sqrt(n)",
        t * deviation / n: "the standard error is the deviation over the root of n, not over n",
        t * deviation / math.sqrt(n - 1): "divide the standard deviation by sqrt(n); n - 1 is already in the deviation",
        t * deviation * math.sqrt((n - 1) / n) / math.sqrt(n): "the deviation of a sample divides by n - 1 (ddof=1)",
        deviation / math.sqrt(n): "this is the standard error; where is t?",
    }
    return [Mistake([mean, mean - half, mean + half], hint) for half, hint in wrong_halves.items()]


@exercise
def small_error_nothing_found(answer: Callable[[Tensor], tuple[Tensor, Tensor] | None]) -> None:
    """``answer(x)`` is a dictionary ``(d_sae, d_in)`` and codes ``(n, d_sae)``, >= 0, with FVU below 0.01.

    None of its directions has a cosine above 0.9 with a true feature.
    """
    data = superposition(n_features=48, d_in=24, density=0.05, n_samples=2_000, seed=8)
    x = data.activations
    given = x.clone()
    answered = answer(given)
    if answered is None:
        raise NotImplementedError
    if not torch.equal(given, x):
        wrong("x after the call", given, x, "your function has changed its input in place; make a new tensor instead")
    if not isinstance(answered, tuple) or len(answered) != 2:
        wrong("what was returned", answered, "a pair of tensors, (dictionary, codes)", "return both, in this order")
    dictionary, codes = answered
    shapes = f"dictionary (d_sae, {x.shape[1]}) and codes ({len(x)}, d_sae)"
    if not isinstance(dictionary, Tensor) or not isinstance(codes, Tensor):
        wrong("what was returned", answered, shapes, "return two tensors")
    if dictionary.ndim != 2 or dictionary.shape[1] != x.shape[1] or codes.shape != (len(x), len(dictionary)):
        wrong(
            "shapes", f"{tuple(dictionary.shape)} and {tuple(codes.shape)}", shapes, "a direction a row, a code a row"
        )
    if (codes < 0).any():
        least = float(codes.min())
        hint = (
            "a code says how strongly a feature is on; for a negative one, add the opposite direction to the dictionary"
        )
        wrong("least code", least, "no code below 0", hint)
    metric = FVU()
    metric.add_batch(x, codes.to(x) @ dictionary.to(x))
    if not (fvu := metric.compute()) < 0.01:
        hint = "how can x itself be written, exactly, as codes @ dictionary?"
        wrong("FVU", fvu, "below 0.01", hint)
    report = compare_with_truth((dictionary, codes), data)
    if report.found > 0:
        n_found = round(report.found * data.dictionary.shape[0])
        hint = "these directions are true ones, or near; take directions that have nothing to do with them"
        wrong("true features found", n_found, "0", hint)
