"""Exercises of tutorial 07: a right answer passes; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saelab.exercises import Verdict, check
from saelab.exercises.capstone import KNOBS

PLAN = {
    "question": "Does a wider dictionary lose less variance at the same L0?",
    "varied": "d_sae",
    "fixed": [name for name in KNOBS if name != "d_sae"],
    "prediction": "The wider one has a lower FVU at the same L0.",
    "because": "With more directions to choose from, a few of them fit each activation better.",
}


def fails(verdict: Verdict, hint: str) -> None:
    assert verdict.state == "failed" and hint in verdict.hint, verdict


def test_a_plan_passes_and_one_with_a_gap_is_open() -> None:
    assert check.capstone_plan(PLAN).passed
    assert check.capstone_plan(PLAN | {"because": None}).state == "open"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"question": "Wider?"}, "name what you compare"),
        ({"question": "I compare two widths of dictionary."}, "make it a question"),
        ({"varied": ["d_sae", "lr"]}, "change one thing"),
        ({"varied": "l1_coefficient"}, "along the L1 penalty already"),
        ({"varied": "width"}, "as the library does"),
        ({"fixed": "all others"}, "list the names"),
        ({"fixed": KNOBS}, "cannot be both varied and fixed"),
        ({"fixed": ["seed", "lr"]}, "on neither list"),
        ({"prediction": "wider"}, "which setting will be lower"),
        ({"prediction": "The wider one has a lower FVU."}, "at which sparsity"),
        ({"because": "It is bigger."}, "give the mechanism"),
        ({"more": "words"}, "the five names"),
    ],
)
def test_a_plan_with_a_fault_fails_with_its_own_hint(change: dict[str, Any], hint: str) -> None:
    fails(check.capstone_plan(PLAN | change), hint)


def right_fvu_at(l0: Any, fvu: Any, target: float) -> float:
    order = np.argsort(l0)
    return float(np.interp(np.log(target), np.log(l0[order]), fvu[order], left=np.nan, right=np.nan))


WRONG: dict[str, tuple[Callable[[Any, Any, float], Any], str]] = {
    "over L0": (lambda l0, fvu, t: np.interp(t, np.sort(l0), fvu[np.argsort(l0)]), "over L0 itself"),
    "nearest": (lambda l0, fvu, t: fvu[np.argmin(abs(l0 - t))], "the nearest point"),
    "unsorted": (lambda l0, fvu, t: np.interp(np.log(t), np.log(l0), fvu), "in ascending order"),
    "log FVU": (
        lambda l0, fvu, t: np.exp(np.interp(np.log(t), np.log(np.sort(l0)), np.log(fvu[np.argsort(l0)]))),
        "the logarithm of FVU",
    ),
    "beyond the points": (
        lambda l0, fvu, t: np.interp(np.log(t), np.log(np.sort(l0)), fvu[np.argsort(l0)]),
        "nothing was measured there",
    ),
    "best of all": (lambda l0, fvu, t: fvu.min(), "on a point itself"),
}


def test_the_fvu_at_an_l0_passes() -> None:
    assert check.fvu_at(right_fvu_at).passed


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_fvu_at_an_l0_fails_with_its_own_hint(name: str) -> None:
    answer, hint = WRONG[name]
    fails(check.fvu_at(answer), hint)


@pytest.fixture
def results() -> pd.DataFrame:
    """As of two sweeps."""
    table = pd.DataFrame(
        {
            "variant": ["narrow"] * 3 + ["wide"] * 3,
            "l1_coefficient": [1.0, 2.0, 4.0] * 2,
            "l0": [80.0, 30.0, 9.0, 100.0, 40.0, 10.0],
            "fvu": [0.2, 0.3, 0.5, 0.15, 0.22, 0.4],
            "gamma": 0.99,
            "n_dead": 0,
        }
    )
    return table.assign(fvu_train=table.fvu - 0.01)


def test_results_pass(results: pd.DataFrame) -> None:
    assert check.capstone_results(results).passed
    two_seeds = pd.concat([results.assign(seed=0), results.assign(seed=1, l0=results.l0 + 1)])
    assert check.capstone_results(two_seeds).passed


BROKEN: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "no table": (lambda t: t.to_dict(), "pd.concat"),
    "no variant": (lambda t: t.drop(columns="variant"), "which curve"),
    "no FVU on the training set": (lambda t: t.drop(columns="fvu_train"), "FVU on the training activations"),
    "no gamma": (lambda t: t.drop(columns="gamma"), "keep the columns"),
    "not a number": (lambda t: t.assign(fvu=[np.nan, *t.fvu[1:]]), "train this SAE again"),
    "one variant": (lambda t: t[t.variant == "wide"], "compare it with"),
    "two L1": (lambda t: t[t.l1_coefficient > 1], "two points do not make a curve"),
    "twice": (lambda t: pd.concat([t, t]), "if you use several seeds"),
    "per cent": (lambda t: t.assign(fvu=100 * t.fvu), "above 1"),
    "on the training set": (lambda t: t.assign(fvu=t.fvu_train), "no SAE has trained on"),
    "one L0": (lambda t: t.assign(l0=30.0), "did the L1 coefficient reach"),
    "apart": (lambda t: t.assign(l0=t.l0 + 1000 * (t.variant == "wide")), "so that their ranges of L0 overlap"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_results_with_a_fault_fail_with_their_own_hint(name: str, results: pd.DataFrame) -> None:
    breaks, hint = BROKEN[name]
    fails(check.capstone_results(breaks(results)), hint)


def test_a_conclusion_passes_where_the_table_says_so(results: pd.DataFrame) -> None:
    answer = {"results": results, "l0": 30, "lower_fvu": "wide"}
    assert check.capstone_conclusion(answer).passed
    close = results.assign(fvu=[0.2, 0.3, 0.5, 0.19, 0.254, 0.48])
    assert check.capstone_conclusion(answer | {"results": close, "lower_fvu": "neither", "l0": 30}).passed
    assert check.capstone_conclusion(answer | {"l0": None}).state == "open"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"lower_fvu": "narrow"}, "not at the same L1"),
        ({"lower_fvu": "neither"}, "more than two per cent"),
        ({"lower_fvu": "gated"}, "as in your table"),
        ({"l0": 500}, "narrow 9 to 80"),
        ({"l0": "30"}, "within the range of every variant"),
        ({"results": {}}, "saelab.sweep gives one"),
        ({"why": "so"}, "the three names"),
    ],
)
def test_a_wrong_conclusion_fails_with_its_own_hint(results: pd.DataFrame, change: dict[str, Any], hint: str) -> None:
    fails(check.capstone_conclusion({"results": results, "l0": 30, "lower_fvu": "wide"} | change), hint)


def test_what_one_seed_does_not_tell_apart_is_no_result(results: pd.DataFrame) -> None:
    close = results.assign(fvu=[0.2, 0.3, 0.5, 0.19, 0.254, 0.48])
    fails(check.capstone_conclusion({"results": close, "l0": 30, "lower_fvu": "wide"}), "one seed cannot tell apart")
