"""Linear probes: is a label still readable from activations, from an SAE's codes, from a PCA of as many dimensions?"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelab.data.labelled import LabelledActivations, LabelledSet
from saelab.errors import InputError
from saelab.sae.base import SparseAutoencoder, check_activations

if TYPE_CHECKING:
    import pandas as pd

HeldOut = Literal["stratified", "block"]
N_RESAMPLES = 10_000
"""Of a bootstrap: its limits are then right to about 3 % of the standard error."""


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """What `probe` found."""

    train_accuracy: float
    test_accuracy: float
    n_active: int
    """Columns that are not zero throughout the whole set: for codes, the features that are on at all; after a PCA, its
    components."""
    train_interval: tuple[float, float]
    """95 % interval of `train_accuracy`, like `test_interval`. It says nothing about new texts."""
    test_interval: tuple[float, float]
    """95 % percentile bootstrap of `test_accuracy` over the test rows, the probe as it is. Where all rows are right, or
    all wrong, no row drawn anew is otherwise, and it has no width."""
    effective_dimension: float
    """`effective_dimension` of the training part's columns; after a PCA, of its components."""
    C: float
    """Of the fit, chosen or given; NaN where there was nothing to fit."""
    test_correct: NDArray[np.bool_] = field(repr=False)
    """``(n_test,)``: which test rows it gets right. ``split.test.rows[~report.test_correct]`` are the set's rows
    that it gets wrong."""

    def as_dict(self) -> dict[str, float | int]:
        """Every number by name, the intervals as ``train_low``, ``train_high``, ``test_low`` and ``test_high``."""
        return {
            "train_accuracy": self.train_accuracy,
            "train_low": self.train_interval[0],
            "train_high": self.train_interval[1],
            "test_accuracy": self.test_accuracy,
            "test_low": self.test_interval[0],
            "test_high": self.test_interval[1],
            "n_active": self.n_active,
            "effective_dimension": self.effective_dimension,
            "C": self.C,
        }


def probe(
    train: LabelledActivations,
    test: LabelledActivations,
    *,
    C: float | Sequence[float] = 0.01,
    n_components: int | None = None,
    standardize: bool = True,
) -> ProbeReport:
    """Accuracy of a standardised logistic regression; everything but the score comes from the training part only.

    Parameters
    ----------
    train, test
        ``(x, labels)`` each; ``x`` of shape ``(n, d)``.
    C
        Inverse strength of its L2 penalty, scikit-learn's; the default is a strong one, right for ~1,000 rows. Of
        several, cross-validation within the training part takes the most accurate, and of equals the smallest: five
        stratified folds, or as many as the rarest class has rows, and the whole fit anew in each.
    n_components
        Give the regression only so many principal components of the standardised columns, not whitened; with all of
        them it is the same regression. Capped at what the training part allows: its rows (of the smallest fold, where
        ``C`` is to be chosen) and its columns that are not zero throughout. With 0 it takes the most frequent class.
    standardize
        Give each column mean 0 and variance 1 first. False is for columns that have been, as of `principal_components`.

    Raises
    ------
    TypeError, ValueError
        Parts that are empty, of different widths, or hold NaN; labels that are not one a row, or of one class only; a
        ``C`` that is not positive, or several where a class has one row; a negative ``n_components``.
    """
    (x, y), (x_test, y_test) = _arrays("train", *train[:2]), _arrays("test", *test[:2])
    if x.shape[1] != x_test.shape[1]:
        raise InputError(f"train has width {x.shape[1]}, but test has {x_test.shape[1]}; use one representation")
    on = (x != 0).any(axis=0)
    n_active = int((on | (x_test != 0).any(axis=0)).sum())
    x, x_test = x[:, on], x_test[:, on]
    fitted = _fit(x, y, C, n_components, standardize)
    train_accuracy = float((fitted.model.predict(x) == y).mean())
    test_correct = fitted.model.predict(x_test) == y_test
    test_accuracy = float(test_correct.mean())
    if n_components is not None:
        x = fitted.components(x)
        n_active = x.shape[1]
    return ProbeReport(
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        n_active=n_active,
        train_interval=_interval(train_accuracy, len(y)),
        test_interval=_interval(test_accuracy, len(y_test)),
        effective_dimension=_participation_ratio(x),
        C=fitted.C,
        test_correct=test_correct,
    )


def principal_components(
    train: LabelledActivations, test: LabelledActivations
) -> tuple[LabelledActivations, LabelledActivations]:
    """Both parts in the principal components of the training part's standardised columns, not whitened, ``(n, k)``.

    For probes at many dimensions: `probe` of their first ``k`` columns, at least one, with ``standardize=False`` is
    `probe` of the parts with ``n_components=k``, in a fraction of the time. There are as many components as the
    training part has rows, or columns that are not zero throughout, whichever is less. Raises like `probe`.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, _), (x_test, _) = _arrays("train", *train[:2]), _arrays("test", *test[:2])
    on = (x != 0).any(axis=0)
    if not on.any():
        return train._replace(x=train.x[:, :0]), test._replace(x=test.x[:, :0])
    model = make_pipeline(StandardScaler(), PCA(svd_solver="full")).fit(x[:, on])
    parts = (torch.from_numpy(model.transform(one[:, on])) for one in (x, x_test))
    return train._replace(x=next(parts)), test._replace(x=next(parts))


def probe_weights(train: LabelledActivations, *, C: float | Sequence[float] = 0.01) -> Tensor:
    """The weight of each column in the probe that `probe` fits, ``(d,)``; positive speaks for the greater label.

    In log odds per unit of the column as it is, so that features compare by weight times code. A column that is zero
    throughout has weight zero. Of codes it is what `saelab.read_features` takes as ``probe_weights``.

    Raises
    ------
    TypeError, ValueError
        Like `probe`; also for more than two classes, where a column has more than one weight.
    """
    x, y = _arrays("train", *train[:2])
    n_classes = len(np.unique(y))
    if n_classes > 2:
        raise InputError(f"the labels hold {n_classes} classes, and weights are of two; keep the rows of two labels")
    on = (x != 0).any(axis=0)
    fitted = _fit(x[:, on], y, C)
    weights = np.zeros(x.shape[1], dtype=x.dtype)
    if on.any():
        scaler, regression = fitted.model
        weights[on] = regression.coef_[0] / scaler.scale_
    return torch.from_numpy(weights)


def effective_dimension(x: Tensor) -> float:
    """Participation ratio (tr C)^2 / tr(C^2) of the covariance C of the columns of ``x``, ``(n, d)``.

    d where all directions vary equally, 1 where all rows lie on a line, 0 where all rows are the same. Columns are
    taken as they are, not standardised: one that varies more counts for more. Raises like `probe` for a wrong ``x``.
    """
    return _participation_ratio(_array("x", x))


def compare_representations(
    data: LabelledSet,
    saes: Mapping[str, SparseAutoencoder],
    *,
    C: float | Sequence[float] = 0.01,
    held_out: HeldOut = "stratified",
    test_size: float = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> "pd.DataFrame":
    """Probe the same texts through activations, each SAE's codes, and a PCA to as many dimensions as the SAE has on.

    Parameters
    ----------
    data
        Activations at the hook and in the scale that the SAEs were trained on, such as `sentiment_set` gives.
    saes
        By the name that is to appear in the table; may be empty.
    C
        As for `probe`; of several, each fit chooses its own.
    held_out
        ``"stratified"``: one split with ``test_size`` and ``seed`` of `LabelledSet.split`. ``"block"``: each block in
        turn is the test set.
    progress
        Show a bar.

    Returns
    -------
    DataFrame
        A row for each ``representation`` (``"activations"``, an SAE's name, or ``"PCA, k of ..."`` with that name) and
        each ``held_out`` part (``"stratified"``, or a block's name), with

        - ``n_dimensions``: d_in, d_sae, or the k of the PCA: as many as the SAE has features on over the whole
          set, which uses no label, and capped as for `probe`;
        - the numbers of `ProbeReport.as_dict`;
        - ``l0``: features on per text, mean over the set; NaN where there are no features. Of codes that are means over
          tokens it counts a feature for a text where it is on for any token.

        With ``"block"``, there is one row more for each representation, ``"all"``: its test accuracy is over all texts,
        each predicted while its block was held out, and so is its interval. Its training accuracy is the mean over the
        fits, weighted by their rows, and so is its ``effective_dimension``; the interval is as wide as if each text had
        been scored by one fit, so rather too wide. ``C`` is NaN there where the fits chose differently.

    Raises
    ------
    TypeError, ValueError
        Like `probe`; an SAE of another width than ``data``; another ``held_out``; one block only, to be held out.

    Examples
    --------
    >>> data = sentiment_set(model, store.hook, scale=store.scale)
    >>> compare_representations(data, {"gated": sae}, C=[0.001, 0.01, 0.1], held_out="block")
    """
    import pandas as pd
    from tqdm.auto import tqdm

    if held_out not in get_args(HeldOut):
        raise InputError(f"held_out must be one of {', '.join(get_args(HeldOut))}, not {held_out!r}")
    table = []
    total = 1 + 2 * len(saes)
    for name, representation, k in tqdm(
        _representations(data, saes), "probing", total, leave=False, disable=not progress
    ):
        if held_out == "block":
            reports = {block: probe(*split, C=C, n_components=k) for block, split in representation.by_block().items()}
            reports["all"] = pool_reports(list(reports.values()))
        else:
            reports = {held_out: probe(*representation.split(test_size, seed), C=C, n_components=k)}
        l0 = float((representation.x > 0).sum(dim=1).double().mean()) if representation is not data else math.nan
        for part, report in reports.items():
            n_dimensions = representation.x.shape[1] if k is None else report.n_active
            head = {"representation": name, "held_out": part, "n_dimensions": n_dimensions}
            table.append({**head, **report.as_dict(), "l0": l0})
    return pd.DataFrame(table)


def _representations(
    data: LabelledSet, saes: Mapping[str, SparseAutoencoder]
) -> Iterator[tuple[str, LabelledSet, int | None]]:
    """Name, set and components of a PCA, where there is to be one; the codes of one SAE at a time."""
    yield "activations", data, None
    for name, sae in saes.items():
        codes = data.encoded(sae)
        yield name, codes, None
        yield f"PCA, k of {name}", data, int((codes.x != 0).any(dim=0).sum())


def pool_reports(reports: Sequence[ProbeReport]) -> ProbeReport:
    """One report of all rows, from those of each block held out, in the order of `LabelledSet.by_block`.

    The test accuracy, and its interval, are over all rows, each predicted while its block was held out. The training
    accuracy is the mean over the fits, weighted by their rows, and so is ``effective_dimension``; its interval is as
    wide as if each row had been scored by one fit, so rather too wide. ``C`` is NaN where the fits chose differently.
    """
    test_correct = np.concatenate([report.test_correct for report in reports])
    n = len(test_correct)
    weights = [n - len(report.test_correct) for report in reports]
    train_accuracy, dimension = (
        float(np.average([getattr(report, name) for report in reports], weights=weights))
        for name in ("train_accuracy", "effective_dimension")
    )
    test_accuracy = float(test_correct.mean())
    return ProbeReport(
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        n_active=max(report.n_active for report in reports),
        train_interval=_interval(train_accuracy, n),
        test_interval=_interval(test_accuracy, n),
        effective_dimension=dimension,
        C=reports[0].C if len({report.C for report in reports}) == 1 else math.nan,
        test_correct=test_correct,
    )


def _array(name: str, x: Tensor) -> NDArray[Any]:
    """``x`` as scikit-learn takes it."""
    check_activations(x)
    if x.ndim != 2:
        raise InputError(f"{name} has shape {tuple(x.shape)}, but a probe takes rows (n, d); try x.flatten(0, -2)")
    return x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32)).numpy()  # numpy has no bfloat16


def _arrays(name: str, x: Tensor, labels: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    array = _array(name, x)
    if len(labels) != len(x):
        raise InputError(f"{name} has {len(x)} rows but {len(labels)} labels; give one label a row")
    return array, labels.cpu().numpy()


class _Fitted(NamedTuple):
    """A probe that has seen its training part."""

    model: Any
    """Scikit-learn's."""
    C: float
    n_components: int | None

    def components(self, x: NDArray[Any]) -> NDArray[Any]:
        """``(n, n_components)``: what the regression weighs after a PCA."""
        components: NDArray[Any] = self.model[:-1].transform(x) if self.n_components else x[:, :0]
        return components


def _fit(
    x: NDArray[Any],
    y: NDArray[Any],
    C: float | Sequence[float],
    n_components: int | None = None,
    standardize: bool = True,
) -> _Fitted:
    """Fit to columns that are not zero throughout: the others get weight zero anyway, and are left out for speed."""
    from sklearn.decomposition import PCA
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    class_sizes = np.unique(y, return_counts=True)[1]
    if len(class_sizes) < 2:
        raise InputError("the training labels hold one class only; a probe needs at least two")
    if n_components is not None and n_components < 0:
        raise InputError(f"n_components must be at least 0, not {n_components}; None takes the columns as they are")
    candidates = sorted(np.atleast_1d(np.asarray(C, dtype=float)).tolist())  # of equals the search takes the first
    if not candidates or not all(0 < candidate < math.inf for candidate in candidates):
        raise InputError(f"C must be a positive number, or several to choose from, not {C!r}")
    folds = []
    if len(candidates) > 1:
        if class_sizes.min() < 2:
            raise InputError("choosing C takes two training rows or more of each class; give one number")
        folds = list(StratifiedKFold(min(5, class_sizes.min()), shuffle=True, random_state=0).split(x, y))
    if n_components is not None:
        n_components = min(n_components, *x.shape, *(len(rows) for rows, _ in folds))
    if n_components == 0 or x.shape[1] == 0:  # nothing to learn from: the probe is the most frequent class
        return _Fitted(DummyClassifier(strategy="most_frequent").fit(x, y), math.nan, n_components)
    pca = [] if n_components is None else [PCA(n_components, svd_solver="full")]
    scaler = [StandardScaler()] if standardize else []
    model = make_pipeline(*scaler, *pca, LogisticRegression(C=candidates[0], max_iter=1000))
    if len(candidates) == 1:
        return _Fitted(model.fit(x, y), candidates[0], n_components)
    search = GridSearchCV(model, {"logisticregression__C": candidates}, cv=folds).fit(x, y)
    return _Fitted(search.best_estimator_, search.best_params_["logisticregression__C"], n_components)


@functools.lru_cache(maxsize=10_000)
def _interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % percentile bootstrap: how many of ``n`` rows drawn anew are right is binomial, so no row need be drawn."""
    right = np.random.default_rng(0).binomial(n, accuracy, size=N_RESAMPLES)
    low, high = np.quantile(right, [0.025, 0.975]) / n
    return float(low), float(high)


def _participation_ratio(x: NDArray[Any]) -> float:
    # In the precision of x, for speed: rounding is relative to the directions that vary most, and so are both traces.
    x = x - x[0]  # exactly zero where a column is constant, which less its mean it need not be
    x -= x.mean(axis=0)
    largest = max(x.max(initial=0), -x.min(initial=0))
    if largest == 0:
        return 0.0
    x /= largest  # squared twice below: neither too great nor too small for that
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T  # the same eigenvalues, but for zeros
    return float(gram.trace(dtype=np.float64) ** 2 / np.square(gram).sum(dtype=np.float64))
