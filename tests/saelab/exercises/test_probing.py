"""Exercises of tutorial 06: right answers pass; typical wrong ones fail, each with a hint of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import saelab
from saelab.data.labelled import LabelledActivations
from saelab.exercises import Verdict, check
from saelab.exercises.probing import _leaky

WRONG_COUNTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "L0": (lambda codes: (codes > 0).sum(1).float().mean(), "this is L0"),
    "all codes": (lambda codes: (codes > 0).sum(), "some features several times"),
    "texts": (lambda codes: (codes > 0).any(dim=1).sum(), "this counts texts"),
    "on for all": (lambda codes: (codes > 0).all(dim=0).sum(), "one text is enough"),
    "width": (lambda codes: codes.shape[1], "never on"),
    "not the weak": (lambda codes: (codes > 0.01).any(dim=0).sum(), "a weak feature"),
    "which": (lambda codes: (codes > 0).any(dim=0), "how many are there"),
    "something else": (lambda codes: 17, "column by column"),
}


def test_n_active_passes() -> None:
    assert check.n_active(lambda codes: int((codes > 0).any(dim=0).sum())).passed
    assert check.n_active(lambda codes: torch.count_nonzero(codes.sum(dim=0))).passed


@pytest.mark.parametrize("name", WRONG_COUNTS)
def test_a_wrong_count_has_its_own_hint(name: str) -> None:
    answer, hint = WRONG_COUNTS[name]
    fails_with(check.n_active(answer), hint)


Parts = tuple[Tensor, Tensor]


def by_svd(train_x: Tensor, test_x: Tensor, k: int) -> Parts:
    mean = train_x.mean(dim=0)
    directions = torch.linalg.svd(train_x - mean, full_matrices=False).Vh[:k].T
    return (train_x - mean) @ directions, (test_x - mean) @ directions


def by_scikit_learn(train_x: Tensor, test_x: Tensor, k: int, *, fit_to: Tensor | None = None, **more: Any) -> Any:
    pca = PCA(k, **more).fit(train_x if fit_to is None else fit_to)
    return pca.transform(train_x), pca.transform(test_x)


def uncentred(train_x: Tensor, test_x: Tensor, k: int) -> Parts:
    directions = torch.linalg.svd(train_x, full_matrices=False).Vh[:k].T
    return train_x @ directions, test_x @ directions


def mean_left_in(train_x: Tensor, test_x: Tensor, k: int) -> Parts:
    directions = torch.pca_lowrank(train_x, q=6, niter=20)[2][:, :k]
    return train_x @ directions, test_x @ directions


def least(train_x: Tensor, test_x: Tensor, k: int) -> Parts:
    directions = torch.linalg.eigh(train_x.T.cov()).eigenvectors[:, :k]
    return (train_x - train_x.mean(0)) @ directions, (test_x - train_x.mean(0)) @ directions


def own_centre(train_x: Tensor, test_x: Tensor, k: int) -> Parts:
    shift = test_x.mean(0) - train_x.mean(0)
    return by_svd(train_x, test_x - shift, k)


WRONG_COMPONENTS: dict[str, tuple[Callable[[Tensor, Tensor, int], Any], str]] = {
    "fit to all": (lambda a, b, k: by_scikit_learn(a, b, k, fit_to=torch.cat([a, b])), "influenced the directions"),
    "one each": (lambda a, b, k: (by_svd(a, a, k)[0], by_svd(b, b, k)[0]), "their own components"),
    "own centre": (own_centre, "centred with their own mean"),
    "uncentred": (uncentred, "nothing has been centred"),
    "mean left in": (mean_left_in, "still in the projections"),
    "least variance": (least, "least variance"),
    "first columns": (lambda a, b, k: ((a - a.mean(0))[:, :k], (b - a.mean(0))[:, :k]), "first columns of x"),
    "whitened": (lambda a, b, k: by_scikit_learn(a, b, k, whiten=True), "whitened"),
    "all components": (lambda a, b, k: by_svd(a, b, 6), "subtract the training mean from both"),
    "test part only": (lambda a, b, k: (by_svd(a, b, k)[1],), "return two"),
}


@pytest.mark.parametrize("answer", [by_svd, by_scikit_learn])
def test_principal_components_pass(answer: Callable[[Tensor, Tensor, int], Any]) -> None:
    assert check.principal_components(answer).passed


@pytest.mark.parametrize("name", WRONG_COMPONENTS)
def test_wrong_components_have_their_own_hint(name: str) -> None:
    answer, hint = WRONG_COMPONENTS[name]
    fails_with(check.principal_components(answer), hint)


def model(C: float = 0.01) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def scores(fitted: Any, a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    return float(fitted.score(a, ya)), float(fitted.score(b, yb))


def right(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    return scores(model().fit(a, ya), a, ya, b, yb)


def by_hand(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    mean, std = a.mean(0), a.std(0).clamp_min(1e-9)
    a, b = (a - mean) / std, (b - mean) / std
    return scores(LogisticRegression(C=0.01, max_iter=1000).fit(a, ya), a, ya, b, yb)


def by_saelab(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    report = saelab.probe(LabelledActivations(a, ya), LabelledActivations(b, yb))
    return report.train_accuracy, report.test_accuracy


def own_statistics(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    a, b = (torch.from_numpy(StandardScaler().fit_transform(x)) for x in (a, b))
    return scores(LogisticRegression(C=0.01, max_iter=1000).fit(a, ya), a, ya, b, yb)


def pooled_statistics(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    scaler = StandardScaler().fit(torch.cat([a, b]))
    a, b = (torch.from_numpy(scaler.transform(x)) for x in (a, b))
    return scores(LogisticRegression(C=0.01, max_iter=1000).fit(a, ya), a, ya, b, yb)


def fit_on_all(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    scaler = StandardScaler().fit(a)
    x = scaler.transform(torch.cat([a, b]))
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit(x, torch.cat([ya, yb]))
    return scores(make_pipeline(scaler, fitted), a, ya, b, yb)


def everything_on_all(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    return scores(model().fit(torch.cat([a, b]), torch.cat([ya, yb])), a, ya, b, yb)


def not_standardised(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    return scores(LogisticRegression(C=0.01, max_iter=1000).fit(a, ya), a, ya, b, yb)


def divides_by_zero(a: Tensor, ya: Tensor, b: Tensor, yb: Tensor) -> tuple[float, float]:
    return right((a - a.mean(0)) / a.std(0), ya, (b - a.mean(0)) / a.std(0), yb)


WRONG_PROBES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Any], str]] = {
    "own statistics": (own_statistics, "a single text could not be scored"),
    "pooled statistics": (pooled_statistics, "mean and variance that standardise"),
    "fit on all": (fit_on_all, "fitted on the test rows and their labels"),
    "everything on all": (everything_on_all, "both the regression and the statistics"),
    "fit on test": (lambda a, ya, b, yb: right(b, yb, a, ya)[::-1], "in place of the training rows"),
    "scored on train": (lambda a, ya, b, yb: right(a, ya, a, ya), "both are the training accuracy"),
    "the two are swapped": (lambda a, ya, b, yb: right(a, ya, b, yb)[::-1], "training accuracy first"),
    "not standardised": (not_standardised, "keeps a column of small numbers out"),
    "test alone": (lambda a, ya, b, yb: right(a, ya, b, yb)[1], "this is the test accuracy alone"),
    "errors": (lambda a, ya, b, yb: [1 - accuracy for accuracy in right(a, ya, b, yb)], "error rates"),
    "percent": (lambda a, ya, b, yb: [100 * accuracy for accuracy in right(a, ya, b, yb)], "percent"),
    "something else": (lambda a, ya, b, yb: (1.0, 1.0), "all from the training rows"),
    "a dead column": (divides_by_zero, "whole traceback"),
}


@pytest.mark.parametrize("answer", [right, by_hand, by_saelab])
def test_probe_passes(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> None:
    assert check.probe(answer).passed, check.probe(answer)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", WRONG_PROBES)
def test_a_wrong_probe_has_its_own_hint(name: str) -> None:
    answer, hint = WRONG_PROBES[name]
    fails_with(check.probe(answer), hint)


def test_no_row_of_the_probe_exercise_is_so_near_the_boundary_that_rounding_decides() -> None:
    a, ya, b, _ = _leaky()
    fitted = model().fit(a, ya)
    nearest = min(float(abs(fitted.decision_function(x)).min()) for x in (a, b))
    assert nearest > 1e-2


def test_training_accuracy_on_codes() -> None:
    assert check.training_accuracy_on_codes("lower").passed
    fails_with(check.training_accuracy_on_codes("higher"), "are not all zero")
    fails_with(check.training_accuracy_on_codes("the same"), "vary from text to text")


def fails_with(verdict: Verdict, hint: str) -> None:
    assert verdict.state == "failed" and hint in verdict.hint, verdict
