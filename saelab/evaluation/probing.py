"""Linear probes: can a label be read from activations, an SAE's codes, or a PCA with the same number of dimensions?"""

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
"""Bootstrap resamples; the limits are then accurate to about 3 % of a standard error."""


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """What `probe` found."""

    train_accuracy: float
    test_accuracy: float
    n_active: int
    """Number of columns with a nonzero value in either part: for codes, the features that are ever on; after a PCA, its
    components; with ``k_best``, the columns chosen."""
    train_interval: tuple[float, float]
    """95 % interval of `train_accuracy`, like `test_interval`. It says nothing about new texts."""
    test_interval: tuple[float, float]
    """95 % percentile bootstrap of `test_accuracy` over the test rows, for the probe as fitted. If every row is right
    (or wrong), every resample agrees, so the interval has zero width."""
    effective_dimension: float
    """`effective_dimension` of the training part's columns; after a PCA, of its components; with ``k_best``, of the
    columns chosen."""
    C: float
    """C of the fit, chosen or given; NaN if there was nothing to fit."""
    test_correct: NDArray[np.bool_] = field(repr=False)
    """``(n_test,)``: true for test rows it gets right. ``split.test.rows[~report.test_correct]`` are the row numbers
    in the whole set that it gets wrong."""
    columns: tuple[int, ...] | None = None
    """The columns that ``k_best`` chose, in ascending order; None without it."""

    def as_dict(self) -> dict[str, float | int]:
        """All numbers by name, with the intervals as ``train_low``, ``train_high``, ``test_low`` and ``test_high``."""
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
    k_best: int | None = None,
    standardize: bool = True,
) -> ProbeReport:
    """Accuracy of a standardised logistic regression; only the score uses the test part.

    Parameters
    ----------
    train, test
        ``(x, labels)`` each; ``x`` of shape ``(n, d)``.
    C
        Inverse strength of the L2 penalty, as in scikit-learn; the default penalty is strong, suited to ~1,000 rows. If
        several are given, cross-validation within the training part picks the most accurate, and the smallest among
        equals, with five stratified folds, or as many as the rarest class has rows; each fold repeats the whole fit.
    n_components
        Give the regression only this many principal components of the standardised columns, not whitened; with all of
        them it is the same regression. Capped by the rows of the training part (of its smallest fold, if ``C`` has to
        be chosen) and by its columns that are not all zero. With 0, the probe predicts the most frequent class.
    k_best
        Give the regression only this many columns: a k-sparse probe (Gurnee et al. 2023, arXiv 2305.01610), which tells
        whether single features carry the label. They are those whose class means differ most, in units of the standard
        deviation within the classes (the F of an analysis of variance); each fold chooses its own if ``C`` has to be
        chosen. Capped by the columns that are not all zero; 0 is as for ``n_components``, and only one of both may be
        given.
    standardize
        First give each column mean 0 and variance 1. False is for columns from `principal_components`.

    Raises
    ------
    TypeError, ValueError
        Parts are empty, differ in width or hold NaN; labels are not one per row, or are all of one class; ``C`` is not
        positive, or several are given and a class has only one row; ``n_components`` or ``k_best`` is negative, or both
        are given.
    """
    (x, y), (x_test, y_test) = _arrays("train", *train[:2]), _arrays("test", *test[:2])
    if x.shape[1] != x_test.shape[1]:
        raise InputError(f"train has width {x.shape[1]}, but test has {x_test.shape[1]}; use one representation")
    on = (x != 0).any(axis=0)
    n_active = int((on | (x_test != 0).any(axis=0)).sum())
    x, x_test = x[:, on], x_test[:, on]
    fitted = _fit(x, y, C, n_components, k_best, standardize)
    train_accuracy = float((fitted.model.predict(x) == y).mean())
    test_correct = fitted.model.predict(x_test) == y_test
    test_accuracy = float(test_correct.mean())
    columns = None
    if n_components is not None:
        x = fitted.components(x)
        n_active = x.shape[1]
    elif k_best is not None:
        chosen = fitted.chosen(x)
        x, columns = x[:, chosen], tuple(np.flatnonzero(on)[chosen].tolist())
        n_active = len(columns)
    return ProbeReport(
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        n_active=n_active,
        train_interval=_interval(train_accuracy, len(y)),
        test_interval=_interval(test_accuracy, len(y_test)),
        effective_dimension=_participation_ratio(x),
        C=fitted.C,
        test_correct=test_correct,
        columns=columns,
    )


def principal_components(
    train: LabelledActivations, test: LabelledActivations
) -> tuple[LabelledActivations, LabelledActivations]:
    """Both parts in the principal components of the training part's standardised columns, not whitened, ``(n, k)``.

    This is for probes at many numbers of dimensions: `probe` on the first ``k`` columns (at least one), with
    ``standardize=False``, equals `probe` on the parts with ``n_components=k``, in a fraction of the time. The number of
    components is that of the training part's rows or of its columns that are not all zero, whichever is less. Raises
    like `probe`.
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
    """The weight of each column in the probe that `probe` fits, ``(d,)``; a positive weight favours the greater label.

    Weights are log odds per unit of the unstandardised column, so features compare by weight times code. A column of
    zeros has weight zero. Fitted on codes, they are the ``probe_weights`` of `saelab.read_features`.

    Raises
    ------
    TypeError, ValueError
        Like `probe`; also for more than two classes, as a column then has more than one weight.
    """
    x, y = _arrays("train", *train[:2])
    n_classes = len(np.unique(y))
    if n_classes > 2:
        raise InputError(
            f"the labels hold {n_classes} classes, but weights need two; keep only the rows of two classes"
        )
    on = (x != 0).any(axis=0)
    fitted = _fit(x[:, on], y, C)
    weights = np.zeros(x.shape[1], dtype=x.dtype)
    if on.any():
        scaler, regression = fitted.model
        weights[on] = regression.coef_[0] / scaler.scale_
    return torch.from_numpy(weights)


def effective_dimension(x: Tensor) -> float:
    """Participation ratio (tr C)^2 / tr(C^2) of the covariance C of the columns of ``x``, ``(n, d)``.

    It is d if all directions vary equally, 1 if all rows lie on a line, and 0 if all rows are equal. Columns are not
    standardised, so one that varies more counts for more. Raises like `probe` for an invalid ``x``.
    """
    return _participation_ratio(_array("x", x))


def compare_representations(
    data: LabelledSet,
    saes: Mapping[str, SparseAutoencoder],
    *,
    C: float | Sequence[float] = 0.01,
    k_best: Sequence[int] = (),
    held_out: HeldOut = "stratified",
    test_size: float = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> "pd.DataFrame":
    """Probe the same texts through activations, each SAE's codes, and a PCA to as many dimensions as features are on.

    Parameters
    ----------
    data
        Activations at the hook and in the scale that the SAEs were trained on, such as `sentiment_set` gives.
    saes
        SAEs by the name to show in the table; may be empty.
    C
        As for `probe`; if several are given, each fit chooses its own.
    k_best
        Numbers of columns for k-sparse probes of the activations and of the codes, as for `probe`: ``[1, 2, 5]``.
    held_out
        ``"stratified"``: one split by `LabelledSet.split` with ``test_size`` and ``seed``. ``"block"``: each block in
        turn is the test set.
    progress
        Show a bar.

    Returns
    -------
    DataFrame
        A row for each ``representation`` (``"activations"``, an SAE's name, or ``"PCA, k of ..."`` with that name; with
        ``k_best=[5]`` also ``"best 5 of ..."`` with ``activations`` and with each SAE's name) and each ``held_out``
        part (``"stratified"``, or a block's name), with

        - ``n_dimensions``: d_in, d_sae, the number of columns chosen, or the k of the PCA, which is the number of the
          SAE's features that are on for any text (found without labels), capped as for `probe`;
        - the numbers of `ProbeReport.as_dict`;
        - ``l0``: mean number of features on per text; NaN without an SAE. If codes are means over tokens, a feature
          counts for a text if it is on for any token.

        With ``"block"``, each representation has one more row, ``"all"``, as from `pool_reports`.

    Raises
    ------
    TypeError, ValueError
        Like `probe`; an SAE's width differs from that of ``data``; ``held_out`` is neither of the two; or the only
        block would be held out.

    Examples
    --------
    >>> data = sentiment_set(model, store.hook, scale=store.scale)
    >>> compare_representations(data, {"gated": sae}, C=[0.001, 0.01, 0.1], held_out="block")
    >>> compare_representations(data, {"gated": sae}, k_best=[1, 2, 5])
    """
    import pandas as pd
    from tqdm.auto import tqdm

    if held_out not in get_args(HeldOut):
        raise InputError(f"held_out must be one of {', '.join(get_args(HeldOut))}, not {held_out!r}")
    table = []
    total = (1 + len(saes)) * (1 + len(k_best)) + len(saes)
    for name, representation, n_components, k in tqdm(
        _representations(data, saes, k_best), "probing", total, leave=False, disable=not progress
    ):
        splits = representation.by_block() if held_out == "block" else {held_out: representation.split(test_size, seed)}
        reports = {part: probe(*s, C=C, n_components=n_components, k_best=k) for part, s in splits.items()}
        if held_out == "block":
            reports["all"] = pool_reports(list(reports.values()))
        l0 = float((representation.x > 0).sum(dim=1).double().mean()) if representation is not data else math.nan
        for part, report in reports.items():
            reduced = n_components is not None or k is not None
            n_dimensions = report.n_active if reduced else representation.x.shape[1]
            head = {"representation": name, "held_out": part, "n_dimensions": n_dimensions}
            table.append({**head, **report.as_dict(), "l0": l0})
    return pd.DataFrame(table)


def _representations(
    data: LabelledSet, saes: Mapping[str, SparseAutoencoder], k_best: Sequence[int]
) -> Iterator[tuple[str, LabelledSet, int | None, int | None]]:
    """Name, set, number of PCA components and of best columns (None: all), holding the codes of one SAE at a time."""

    def all_and_best(name: str, whole: LabelledSet) -> Iterator[tuple[str, LabelledSet, int | None, int | None]]:
        yield name, whole, None, None
        for k in k_best:
            yield f"best {k} of {name}", whole, None, k

    yield from all_and_best("activations", data)
    for name, sae in saes.items():
        codes = data.encoded(sae)
        yield from all_and_best(name, codes)
        yield f"PCA, k of {name}", data, int((codes.x != 0).any(dim=0).sum()), None


def pool_reports(reports: Sequence[ProbeReport]) -> ProbeReport:
    """One report over all rows, from those of each held-out block, in the order of `LabelledSet.by_block`.

    The test accuracy and its interval are over all rows, each predicted while its block was held out. The training
    accuracy and ``effective_dimension`` are means over the fits, weighted by their rows. The training interval is
    computed as if a single fit had scored each row, so it is rather too wide. If the fits chose different values of
    ``C`` or ``columns``, it is NaN or None.
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
        columns=reports[0].columns if len({report.columns for report in reports}) == 1 else None,
    )


def _array(name: str, x: Tensor) -> NDArray[Any]:
    """``x`` as an array for scikit-learn."""
    check_activations(x)
    if x.ndim != 2:
        raise InputError(f"{name} has shape {tuple(x.shape)}, but a probe takes rows (n, d); try x.flatten(0, -2)")
    return x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32)).numpy()  # numpy has no bfloat16


def _arrays(name: str, x: Tensor, labels: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    array = _array(name, x)
    if len(labels) != len(x):
        raise InputError(f"{name} has {len(x)} rows but {len(labels)} labels; give one label per row")
    return array, labels.cpu().numpy()


class _Fitted(NamedTuple):
    """A probe fitted on its training part."""

    model: Any
    """A scikit-learn estimator."""
    C: float
    n_components: int | None = None
    k_best: int | None = None

    def components(self, x: NDArray[Any]) -> NDArray[Any]:
        """``(n, n_components)``: inputs of the regression after the PCA."""
        components: NDArray[Any] = self.model[:-1].transform(x) if self.n_components else x[:, :0]
        return components

    def chosen(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Which columns ``k_best`` chose, ``(d,)``."""
        chosen: NDArray[np.bool_] = self.model[0].get_support() if self.k_best else np.zeros(x.shape[1], dtype=bool)
        return chosen


def _fit(
    x: NDArray[Any],
    y: NDArray[Any],
    C: float | Sequence[float],
    n_components: int | None = None,
    k_best: int | None = None,
    standardize: bool = True,
) -> _Fitted:
    """Fit to columns that are not all zero; the others would get weight zero and are left out for speed."""
    from sklearn.decomposition import PCA
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_selection import SelectKBest
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    class_sizes = np.unique(y, return_counts=True)[1]
    if len(class_sizes) < 2:
        raise InputError("the training labels hold one class only; a probe needs at least two")
    if n_components is not None and n_components < 0:
        raise InputError(f"n_components must be at least 0, not {n_components}; None uses the columns without a PCA")
    if k_best is not None and k_best < 0:
        raise InputError(f"k_best must be at least 0, not {k_best}; None uses all columns")
    if n_components is not None and k_best is not None:
        raise InputError("n_components and k_best are two ways to fewer columns; give one of them")
    candidates = sorted(np.atleast_1d(np.asarray(C, dtype=float)).tolist())  # the search takes the first among equals
    if not candidates or not all(0 < candidate < math.inf for candidate in candidates):
        raise InputError(f"C must be a positive number, or several to choose from, not {C!r}")
    folds = []
    if len(candidates) > 1:
        if class_sizes.min() < 2:
            raise InputError("choosing C takes at least two training rows of each class; give a single number")
        folds = list(StratifiedKFold(min(5, class_sizes.min()), shuffle=True, random_state=0).split(x, y))
    if n_components is not None:
        n_components = min(n_components, *x.shape, *(len(rows) for rows, _ in folds))
    if k_best is not None:
        k_best = min(k_best, x.shape[1])
    if n_components == 0 or k_best == 0 or x.shape[1] == 0:  # no inputs: the probe predicts the most frequent class
        return _Fitted(DummyClassifier(strategy="most_frequent").fit(x, y), math.nan, n_components, k_best)
    pca = [] if n_components is None else [PCA(n_components, svd_solver="full")]
    scaler = [StandardScaler()] if standardize else []
    best = [] if k_best is None else [SelectKBest(_separation, k=k_best)]
    model = make_pipeline(*best, *scaler, *pca, LogisticRegression(C=candidates[0], max_iter=1000))
    if len(candidates) == 1:
        return _Fitted(model.fit(x, y), candidates[0], n_components, k_best)
    search = GridSearchCV(model, {"logisticregression__C": candidates}, cv=folds).fit(x, y)
    chosen = search.best_params_["logisticregression__C"]
    return _Fitted(search.best_estimator_, chosen, n_components, k_best)


def _separation(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Variance between the class means over that within the classes, ``(d,)``: F, but for a factor of all columns."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x[0]  # exactly zero for a constant column, which subtracting the mean does not guarantee
    mean = x.mean(axis=0)
    between, within = np.zeros((2, x.shape[1]))
    for label in np.unique(y):
        part = x[y == label]
        between += len(part) * np.square(part.mean(axis=0) - mean)
        within += len(part) * part.var(axis=0)
    with np.errstate(divide="ignore"):
        return np.divide(between, within, out=np.zeros_like(between), where=between > 0)


@functools.lru_cache(maxsize=10_000)
def _interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % percentile bootstrap: the number of right rows in a resample of ``n`` is binomial and drawn directly."""
    right = np.random.default_rng(0).binomial(n, accuracy, size=N_RESAMPLES)
    low, high = np.quantile(right, [0.025, 0.975]) / n
    return float(low), float(high)


def _participation_ratio(x: NDArray[Any]) -> float:
    # In the precision of x, for speed: rounding errors and both traces scale with the directions that vary most.
    x = x - x[0]  # exactly zero for a constant column, which subtracting the mean does not guarantee
    x -= x.mean(axis=0)
    largest = max(x.max(initial=0), -x.min(initial=0))
    if largest == 0:
        return 0.0
    x /= largest  # keeps values in range, as they are squared twice below
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T  # the same eigenvalues, except for zeros
    return float(gram.trace(dtype=np.float64) ** 2 / np.square(gram).sum(dtype=np.float64))
