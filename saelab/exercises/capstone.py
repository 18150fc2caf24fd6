"""Exercises of tutorial 07: a plan, a comparison at the same L0, a table of results and the conclusion from it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saelab.exercises.verdicts import Mistake, exercise, expect, wrong

if TYPE_CHECKING:
    import pandas as pd

KNOBS = (
    *("architecture", "preset", "ablations", "control", "d_sae", "seed", "hook"),
    *("aux_coefficient", "gate_threshold", "lr", "n_steps"),
)
"""Knobs that an experiment may vary, one at a time."""
PLAN = ("question", "varied", "fixed", "prediction", "because")
COLUMNS = ("variant", "l1_coefficient", "l0", "fvu", "fvu_train", "gamma", "n_dead")
MIN_L1 = 3
CLOSE = 0.02
"""Relative difference below which a single seed cannot tell two FVUs apart."""


@exercise
def capstone_plan(answer: Mapping[str, Any]) -> None:
    """``answer`` is a plan made before the experiment: a text for each of `PLAN`; for ``"fixed"``, a list of knobs."""
    if not isinstance(answer, Mapping) or set(answer) != set(PLAN):
        wrong("your plan", answer, f"a dict with {', '.join(PLAN)}", "keep the five names as they were")
    if any(entry is None for entry in answer.values()):
        raise NotImplementedError("replace each None above")
    question, varied, fixed, prediction, because = (answer[name] for name in PLAN)
    _sentence("question", question, 5, "name what you compare and by which measure, in at least five words")
    if not question.strip().endswith("?"):
        wrong("question", question, "a question", "make it a question that your table can answer, with a question mark")
    if isinstance(varied, list | tuple | set):
        wrong(
            "varied", varied, "one knob", "change one thing: with two you would not know which one made the difference"
        )
    if varied in ("l1", "l1_coefficient"):
        wrong(
            "varied",
            varied,
            "another knob",
            "each curve runs along the L1 penalty already; vary what distinguishes the curves",
        )
    if varied not in KNOBS:
        wrong("varied", varied, f"one of {', '.join(KNOBS)}", "write the knob's name as the library does")
    if isinstance(fixed, str) or not all(name in KNOBS for name in fixed):
        wrong("fixed", fixed, f"a list of names from {', '.join(KNOBS)}", "list the names of the knobs that stay fixed")
    if varied in fixed:
        wrong("fixed", fixed, f"a list without {varied!r}", "the same knob cannot be both varied and fixed")
    if missing := [name for name in KNOBS if name not in fixed and name != varied]:
        wrong(
            "fixed",
            fixed,
            f"also {missing[0]!r}, for example",
            "a knob on neither list may change without your noticing",
        )
    _sentence("prediction", prediction, 5, "say which setting will be lower in which measure, in at least five words")
    if "l0" not in prediction.lower():
        wrong(
            "prediction", prediction, "a mention of L0", "lower at which sparsity? Settings are compared at the same L0"
        )
    _sentence("because", because, 8, "give the mechanism, as you would to a colleague, in at least eight words")


def _sentence(name: str, text: object, n_words: int, hint: str) -> None:
    if not isinstance(text, str) or len(text.split()) < n_words:
        wrong(name, repr(text), "a sentence", hint)


@exercise
def fvu_at(answer: Callable[[Any, Any, float], float]) -> None:
    """``answer(l0, fvu, target)`` is the FVU at L0 ``target``, interpolated linearly over log L0 between the points.

    The points come in any order. Outside their range the answer is NaN, since nothing was measured there.
    """
    l0, fvu = np.array([40.0, 10.0, 90.0]), np.array([0.2, 0.4, 0.1])
    _expect_fvu(answer, l0, fvu, 40.0, "on a point itself the answer is that point's FVU")
    _expect_fvu(answer, l0, fvu, 20.0, "halfway between the logarithms of 10 and 40, so halfway between their FVUs")
    _expect_fvu(answer, l0, fvu, 60.0, "halfway between the logarithms of 40 and 90, so halfway between their FVUs")
    for target in (5.0, 200.0):
        if np.isfinite(found := np.asarray(answer(l0, fvu, target), dtype=float)).any():
            wrong(
                f"FVU at L0 {target:g}, from points between 10 and 90",
                float(found),
                "nan",
                "nothing was measured there: np.interp repeats the last value unless you pass left and right",
            )


def _expect_fvu(answer: Callable[[Any, Any, float], float], l0: Any, fvu: Any, target: float, hint: str) -> None:
    order = np.argsort(l0)
    up, down = l0[order], fvu[order]
    unsorted = "np.interp needs its points in ascending order; sort them"
    expect(
        f"FVU at L0 {target:g}, from (40, 0.2), (10, 0.4), (90, 0.1)",
        answer(l0.copy(), fvu.copy(), target),
        interpolated(l0, fvu, target),
        hint,
        [
            Mistake(np.interp(target, up, down), "this interpolates over L0 itself; interpolate over log L0"),
            Mistake(
                down[np.argmin(np.abs(up - target))], "this is the FVU of the nearest point; interpolate between two"
            ),
            Mistake(np.interp(np.log(target), np.log(l0), fvu), unsorted),
            Mistake(np.interp(target, l0, fvu), unsorted + ", and take the logarithm of L0"),
            Mistake(
                np.exp(np.interp(np.log(target), np.log(up), np.log(down))),
                "this takes the logarithm of FVU, too; take only that of L0",
            ),
        ],
    )


def interpolated(l0: NDArray[np.float64], fvu: NDArray[np.float64], target: float) -> float:
    """The FVU that `fvu_at` expects."""
    order = np.argsort(l0)
    return float(np.interp(np.log(target), np.log(l0[order]), fvu[order], left=np.nan, right=np.nan))


@exercise
def capstone_results(answer: "pd.DataFrame") -> None:
    """``answer`` has a row for each SAE, with `COLUMNS`: at least two variants, each at three or more L1 coefficients.

    ``fvu`` is measured on held-out activations and ``fvu_train`` on the training activations; the variants' ranges of
    L0 overlap.
    """
    _check_results(answer)


def _check_results(table: Any) -> None:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        wrong("your results", table, "a pandas DataFrame", "saelab.sweep gives one; pd.concat joins several")
    if missing := [name for name in COLUMNS if name not in table]:
        wrong("your columns", ", ".join(map(str, table.columns)), f"also {', '.join(missing)}", _WHERE[missing[0]])
    numbers = table[list(COLUMNS[1:])].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
        wrong(
            f"row {row}",
            str(numbers[row].tolist()),
            "finite numbers",
            "train this SAE again, or leave it out and say so",
        )
    if (n_variants := table.variant.nunique()) < 2:
        wrong("variants", n_variants, "two or more", "a single curve answers no question; what do you compare it with?")
    n_l1 = table.groupby("variant").l1_coefficient.nunique()
    if n_l1.min() < MIN_L1:
        wrong(
            f"L1 coefficients of {n_l1.idxmin()!r}",
            int(n_l1.min()),
            f"{MIN_L1} or more",
            "two points do not make a curve: add an L1 coefficient between or beyond those you have",
        )
    if table.duplicated(["variant", "l1_coefficient", *(["seed"] if "seed" in table else [])]).any():
        wrong("rows", "a variant twice at one L1", "each once", "if you use several seeds, add a column named seed")
    if not table.fvu.between(0, 1, inclusive="neither").all():
        far = table.fvu[~table.fvu.between(0, 1, inclusive="neither")].iloc[0]
        wrong(
            "FVU",
            float(far),
            "a share between 0 and 1",
            "above 1 the mean does better: is it a percentage, or on another scale?",
        )
    if np.allclose(table.fvu, table.fvu_train, rtol=1e-9, atol=0):
        wrong(
            "fvu and fvu_train",
            "the same in every row",
            "two measurements",
            "fvu is measured on activations that no SAE has trained on: pass test to saelab.sweep",
        )
    if table.groupby("variant").l0.nunique().min() < MIN_L1:
        wrong(
            "L0", "the same at several L1", "another L0 at each L1", "did the L1 coefficient reach the training at all?"
        )
    low, high = _shared_l0(table)
    if low >= high:
        wrong(
            "ranges of L0",
            f"no L0 is in all of them: {_ranges(table)}",
            "ranges that overlap",
            "choose the L1 coefficients separately for each variant, so that their ranges of L0 overlap",
        )


_WHERE = {
    "variant": "add a column variant that says which curve each row belongs to",
    "fvu_train": "add the FVU on the training activations: saelab.evaluate(saelab.load(path), store).fvu",
}
_WHERE |= dict.fromkeys(set(COLUMNS) - set(_WHERE), "keep the columns that saelab.sweep gives")


def _shared_l0(table: "pd.DataFrame") -> tuple[float, float]:
    l0 = table.groupby("variant").l0
    return float(l0.min().max()), float(l0.max().min())


def _ranges(table: "pd.DataFrame") -> str:
    return "; ".join(f"{name} {rows.min():.3g} to {rows.max():.3g}" for name, rows in table.groupby("variant").l0)


@exercise
def capstone_conclusion(answer: Mapping[str, Any]) -> None:
    """``answer`` has ``"results"``, ``"l0"`` and ``"lower_fvu"``, the variant with the lowest FVU at that L0.

    ``"lower_fvu"`` is ``"neither"`` if the two lowest are within `CLOSE` of each other.
    """
    names = {"results", "l0", "lower_fvu"}
    if not isinstance(answer, Mapping) or set(answer) != names:
        wrong("your conclusion", answer, f"a dict with {', '.join(sorted(names))}", "keep the three names as they were")
    if any(entry is None for entry in answer.values()):
        raise NotImplementedError("replace each None above")
    table, l0, said = answer["results"], answer["l0"], answer["lower_fvu"]
    _check_results(table)
    low, high = _shared_l0(table)
    if not isinstance(l0, int | float) or not low <= l0 <= high:
        wrong(
            "l0", l0, "an L0 that all variants reach", f"choose one within the range of every variant: {_ranges(table)}"
        )
    at = {
        str(name): interpolated(rows.l0.to_numpy(float), rows.fvu.to_numpy(float), float(l0))
        for name, rows in table.groupby("variant")
    }
    if said not in (*at, "neither"):
        wrong(
            "lower_fvu",
            said,
            f"one of {', '.join(map(repr, (*at, 'neither')))}",
            "write the variant's name as in your table",
        )
    (best, lowest), (_, second) = sorted(at.items(), key=lambda item: item[1])[:2]
    is_close = second - lowest < CLOSE * lowest
    if is_close and said != "neither":
        wrong(
            "lower_fvu",
            repr(said),
            "another answer",
            "the lowest two are within two per cent of each other, which one seed cannot tell apart",
        )
    if not is_close and said == "neither":
        wrong(
            "lower_fvu",
            repr(said),
            "another answer",
            "they differ by more than two per cent: one curve does lie lower there",
        )
    if not is_close and said != best:
        wrong("lower_fvu", repr(said), "another answer", "read the curves at this very L0, not at the same L1")
