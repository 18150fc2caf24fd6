import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.stats import binom
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import saelab
from saelab.data.activations import ActivationStore, Pooling
from saelab.data.labelled import LabelledActivations, LabelledSet, sentiment_set, sentiment_sets
from saelab.evaluation.probing import (
    ProbeReport,
    compare_representations,
    effective_dimension,
    pool_reports,
    principal_components,
    probe,
    probe_weights,
)


def part(n: int, d: int, seed: int, signal: float = 3.0) -> LabelledActivations:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    x[:, 0] += signal * (labels - 0.5)
    return LabelledActivations(x, labels)


def labelled_set(n: int = 120, d: int = 6, seed: int = 0) -> LabelledSet:
    x, labels, _ = part(n, d, seed)
    return LabelledSet(
        x=x,
        labels=labels,
        texts=np.array([f"text {row}" for row in range(n)]),
        blocks=np.array(["drama", "comedy", "action"])[np.arange(n) % 3],
        strata=labels.numpy().astype(str),
    )


def random_sae(d_in: int = 6, d_sae: int = 10) -> saelab.StandardSAE:
    """Not trained; about half of its features are on for an input."""
    return saelab.StandardSAE(d_in, d_sae)


def numbers(report: ProbeReport, prefix: str = "") -> dict[str, float]:
    return {name: value for name, value in report.as_dict().items() if name.startswith(prefix)}


def test_probe_finds_a_signal_and_none_where_there_is_none() -> None:
    assert probe(part(400, 5, 0, signal=8), part(400, 5, 1, signal=8)).test_accuracy > 0.98
    assert abs(probe(part(400, 5, 0, signal=0), part(400, 5, 1, signal=0)).test_accuracy - 0.5) < 0.1


@settings(deadline=None, max_examples=10)
@given(st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_probe_does_not_depend_on_a_columns_scale_or_offset(scale: float, offset: float) -> None:
    train, test = part(200, 5, 0), part(200, 5, 1)
    moved = [LabelledActivations(p.x.double() * scale + offset, p.labels) for p in (train, test)]
    assert probe(*moved).test_accuracy == pytest.approx(probe(train, test).test_accuracy, abs=0.011)


def test_test_rows_do_not_leak_into_the_scaler() -> None:
    train, test = part(200, 5, 0), part(200, 5, 1)
    far = LabelledActivations(torch.cat([test.x, torch.full((1, 5), 1e6)]), torch.cat([test.labels, test.labels[:1]]))
    alone, together = probe(train, test), probe(train, far)
    assert together.train_accuracy == alone.train_accuracy
    assert round(together.test_accuracy * 201) - round(alone.test_accuracy * 200) in (0, 1)


def test_columns_that_are_zero_throughout_are_not_counted_as_active() -> None:
    train, test = part(50, 3, 0), part(50, 3, 1)
    padded = [LabelledActivations(torch.cat([p.x, torch.zeros(50, 4)], dim=1), p.labels) for p in (train, test)]
    padded[1].x[0, 5] = 1.0  # on once, in the test part only
    assert probe(*padded).n_active == 4
    assert probe(*padded).train_accuracy == probe(train, test).train_accuracy


def test_codes_with_nothing_on_give_the_most_frequent_class() -> None:
    labels = torch.tensor([1, 1, 1, 0])
    report = probe(LabelledActivations(torch.zeros(4, 6), labels), LabelledActivations(torch.zeros(4, 6), labels))
    assert (report.train_accuracy, report.test_accuracy, report.n_active) == (0.75, 0.75, 0)
    assert report.effective_dimension == 0
    assert np.isnan(report.C)


def test_half_precision_codes_can_be_probed() -> None:
    train, test = part(200, 5, 0), part(200, 5, 1)
    halves = [LabelledActivations(p.x.bfloat16(), p.labels) for p in (train, test)]
    assert probe(*halves).test_accuracy == pytest.approx(probe(train, test).test_accuracy, abs=0.02)


def test_more_than_two_classes_can_be_probed() -> None:
    labels = torch.arange(90) % 3
    x = torch.nn.functional.one_hot(labels).float() + 0.1 * torch.randn(90, 3)
    assert probe((x[:60], labels[:60]), (x[60:], labels[60:])).test_accuracy == 1  # type: ignore[arg-type]


# Intervals


@given(st.integers(5, 2000), st.floats(0, 1))
def test_an_interval_is_that_of_rows_drawn_anew(n: int, share: float) -> None:
    right = round(share * n)
    labels = torch.arange(n) < right  # a probe that always says True
    always = LabelledActivations(torch.zeros(3, 1), torch.tensor([True, True, False]))
    low, high = probe(always, LabelledActivations(torch.zeros(n, 1), labels)).test_interval
    exact = binom.ppf([0.025, 0.975], n, right / n) / n
    sampling = 0.1 * math.sqrt(right / n * (1 - right / n) / n)
    assert [low, high] == pytest.approx(exact, abs=1.01 / n + sampling)
    assert low <= right / n <= high


def test_an_interval_is_the_same_every_time() -> None:
    train, test = part(100, 5, 0), part(100, 5, 1)
    assert numbers(probe(train, test)) == numbers(probe(train, test))


def test_where_every_row_is_right_the_interval_has_no_width() -> None:
    report = probe(part(100, 3, 0, signal=100), part(100, 3, 1, signal=100))
    assert report.test_interval == report.train_interval == (1.0, 1.0)


# Effective dimension


def test_effective_dimension_of_covariances_that_are_known() -> None:
    cross = torch.cat([torch.eye(4), -torch.eye(4)])  # covariance I / 4
    assert effective_dimension(cross) == pytest.approx(4)
    assert effective_dimension(cross * torch.tensor([1.0, 2, 0, 0])) == pytest.approx((1 + 4) ** 2 / (1 + 16))
    assert effective_dimension(torch.arange(5.0)[:, None] * torch.tensor([1.0, -2, 3])) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_effective_dimension_is_0_where_all_rows_are_the_same(value: float) -> None:
    assert effective_dimension(torch.full((7, 3), value)) == 0
    assert effective_dimension(torch.full((1, 3), value)) == 0


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 1000))
def test_effective_dimension_follows_from_the_eigenvalues_for_any_shape(n: int, d: int, seed: int) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy(), rowvar=False).reshape(d, d))
    assert effective_dimension(x) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
    assert 1 - 1e-5 <= effective_dimension(x) <= min(n - 1, d) + 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_effective_dimension_does_not_depend_on_units_or_offset(scale: float) -> None:
    x = torch.randn(50, 6)
    assert effective_dimension(x * scale) == pytest.approx(effective_dimension(x), rel=1e-5)
    assert effective_dimension(x.double() + 1e6) == pytest.approx(effective_dimension(x), rel=1e-5)


def test_a_report_tells_the_effective_dimension_of_the_training_part_as_it_is() -> None:
    train, test = part(60, 4, 0), part(60, 4, 1)
    stretched = LabelledActivations(train.x * torch.tensor([1.0, 5, 0, 1]), train.labels)
    assert probe(stretched, test).effective_dimension == pytest.approx(effective_dimension(stretched.x))


# Nothing leaks


@pytest.mark.parametrize(("n_components", "k_best"), [(None, None), (3, None), (None, 2)])
@pytest.mark.parametrize("C", [0.01, [0.001, 0.1, 10]])
def test_a_fit_never_sees_the_test_part(C: Any, n_components: int | None, k_best: int | None) -> None:
    def probed(test: LabelledActivations) -> ProbeReport:
        return probe(train, test, C=C, n_components=n_components, k_best=k_best)

    train, test = part(100, 5, 0, signal=1), part(60, 5, 1, signal=1)
    report = probed(test)
    for_far = probed(LabelledActivations(1e5 * test.x - 300, 1 - test.labels))
    assert numbers(for_far, "train") == numbers(report, "train")
    assert (for_far.C, for_far.effective_dimension) == (report.C, report.effective_dimension)
    assert for_far.columns == report.columns
    alone = [probed(LabelledActivations(test.x[[row]], test.labels[[row]])) for row in range(20)]
    assert_array_equal(np.concatenate([one.test_correct for one in alone]), report.test_correct[:20])


def test_a_feature_that_is_on_in_the_test_part_only_changes_no_prediction() -> None:
    train, test = part(100, 5, 0), part(60, 5, 1)
    wider = [LabelledActivations(torch.cat([p.x, torch.zeros(len(p.x), 1)], dim=1), p.labels) for p in (train, test)]
    wider[1].x[:, 5] = 100.0
    assert_array_equal(probe(*wider).test_correct, probe(train, test).test_correct)


# PCA


@pytest.mark.parametrize("C", [0.01, 10.0])
def test_a_pca_with_all_components_is_the_probe_itself(C: float) -> None:
    train, test = part(300, 8, 0, signal=1), part(300, 8, 1, signal=1)
    train, test = (LabelledActivations(p.x * torch.logspace(-2, 2, 8) + 5, p.labels) for p in (train, test))
    report, reduced = probe(train, test, C=C), probe(train, test, C=C, n_components=8)
    assert_array_equal(reduced.test_correct, report.test_correct)
    assert numbers(reduced, "train") == numbers(report, "train")
    assert reduced.n_active == 8


def test_a_pca_keeps_the_directions_along_which_standardised_columns_vary_most() -> None:
    generator = torch.Generator().manual_seed(0)
    common, other = torch.randn(2, 400, generator=generator)
    # Standardised, four columns move together; the fifth varies most as it is, and tells the label.
    x = torch.cat([common[:, None] + 0.1 * torch.randn(400, 4, generator=generator), 100 * other[:, None]], dim=1)
    told = LabelledActivations(x, (other > 0).long())
    assert abs(probe(told, told, n_components=1).train_accuracy - 0.5) < 0.1
    assert probe(told, told, n_components=2).train_accuracy > 0.95
    assert probe(told, told, n_components=1).effective_dimension == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_first_principal_components_are_what_a_pca_to_as_many_gives_the_probe(k: int) -> None:
    train, test = part(300, 8, 0, signal=1), part(300, 8, 1, signal=1)
    train, test = (LabelledActivations(p.x * torch.logspace(-2, 2, 8) + 5, p.labels) for p in (train, test))
    first = [p._replace(x=p.x[:, :k]) for p in principal_components(train, test)]
    report, expected = probe(*first, standardize=False), probe(train, test, n_components=k)
    assert_array_equal(report.test_correct, expected.test_correct)
    assert numbers(report, "train") == numbers(expected, "train")
    assert (report.n_active, expected.n_active) == (k, k)


def test_principal_components_leave_out_columns_that_are_zero_and_are_as_many_as_the_training_part_allows() -> None:
    train, test = part(5, 30, 0), part(20, 30, 1)
    assert [tuple(p.x.shape) for p in principal_components(train, test)] == [(5, 5), (20, 5)]
    zero = [LabelledActivations(p.x * 0, p.labels) for p in (train, test)]
    assert [tuple(p.x.shape) for p in principal_components(*zero)] == [(5, 0), (20, 0)]


def test_components_are_capped_at_what_the_training_part_allows() -> None:
    train, test = part(20, 30, 0), part(20, 30, 1)
    assert probe(train, test, n_components=100).n_active == 20
    assert probe(train, test, n_components=100, C=[0.1, 1]).n_active == 16  # in four of five folds
    narrow = [LabelledActivations(p.x * (torch.arange(30) < 3), p.labels) for p in (train, test)]
    assert probe(*narrow, n_components=100).n_active == 3


def test_a_pca_to_nothing_is_the_most_frequent_class() -> None:
    train, test = part(51, 5, 0), part(50, 5, 1)
    report = probe(train, test, n_components=0)
    most = float(train.labels.double().mean() > 0.5)
    assert report.test_accuracy == pytest.approx(float((test.labels == most).double().mean()))
    assert (report.n_active, report.effective_dimension) == (0, 0)


# Sparse probes


def test_a_sparse_probe_takes_the_columns_whose_class_means_differ_most_for_their_spread() -> None:
    labels = torch.arange(6) % 2
    x = torch.tensor(
        [  # the second is the first in other units, but for the 12; the third separates; the last is never on
            [-1.0, -10.0, 0.0, 0.0],
            [0.0, 0.0, 0.3, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [1.0, 10.0, 0.3, 0.0],
            [1.0, 12.0, 0.0, 0.0],
            [2.0, 20.0, 0.3, 0.0],
        ]
    )
    train = LabelledActivations(x, labels)
    assert probe(train, train, k_best=1).columns == (2,)
    assert probe(train, train, k_best=2).columns == (0, 2)
    report = probe(train, train, k_best=1)
    assert (report.train_accuracy, report.n_active) == (1, 1) and report.effective_dimension == pytest.approx(1)


def test_a_sparse_probe_is_the_probe_of_the_columns_that_it_chose() -> None:
    train, test = part(200, 12, 0), part(200, 12, 1)
    report = probe(train, test, k_best=3, C=0.1)
    assert report.columns is not None and 0 in report.columns and len(report.columns) == report.n_active == 3
    few = [LabelledActivations(p.x[:, list(report.columns)], p.labels) for p in (train, test)]
    assert numbers(report) == numbers(probe(*few, C=0.1))
    every = probe(train, test, k_best=12)
    assert numbers(every) == numbers(probe(train, test)) == numbers(probe(train, test, k_best=100))
    assert every.columns == tuple(range(12)) and probe(train, test).columns is None


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_the_choice_is_that_of_an_analysis_of_variance_whatever_the_units(
    seed: int, scale: float, offset: float
) -> None:
    x = torch.randn(60, 9, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.arange(60) % 3
    x += 0.5 * torch.nn.functional.one_hot(labels, 9)
    best = sorted(f_classif(x.numpy(), labels.numpy())[0].argsort()[-4:].tolist())
    moved = LabelledActivations(x * torch.linspace(1, scale, 9).double() + offset, labels)
    assert probe(moved, moved, k_best=4).columns == tuple(best)


def test_where_c_is_chosen_each_fold_chooses_its_columns() -> None:
    noise = torch.randn(60, 400, generator=torch.Generator().manual_seed(1))
    train = LabelledActivations(noise, torch.arange(60) % 2)
    x, y = noise.numpy(), train.labels.numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    best = SelectKBest(f_classif, k=5)
    seen = best.fit_transform(x, y)  # chosen with the rows that a fold holds out, which look better than they are

    def honest(C: float) -> float:
        return float(
            cross_val_score(make_pipeline(best, StandardScaler(), LogisticRegression(C=C)), x, y, cv=folds).mean()
        )

    def leaking(C: float) -> float:
        return float(
            cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=C)), seen, y, cv=folds).mean()
        )

    candidates = [1e-3, 0.03, 1.0]
    chosen = probe(train, train, k_best=5, C=candidates).C
    assert chosen == max(candidates, key=honest) != max(candidates, key=leaking)


def test_columns_are_named_as_they_came_and_those_without_a_value_left_out() -> None:
    train, test = part(100, 2, 0), part(100, 2, 1)
    spread = []
    for p in (train, test):
        x = torch.zeros(100, 7)
        x[:, [2, 5]] = p.x
        spread.append(LabelledActivations(x, p.labels))
    spread[1].x[:, 6] = 1.0  # on in the test part only
    assert probe(*spread, k_best=1).columns == (2,)
    assert probe(*spread, k_best=5).columns == (2, 5)


def test_constant_columns_are_chosen_last() -> None:
    train, test = part(100, 2, 0), part(100, 2, 1)
    constant = torch.linspace(0.1, 9, 50, dtype=torch.float64).repeat(100, 1)  # the mean of such a column is rounded
    train, test = (LabelledActivations(torch.cat([constant, p.x], dim=1), p.labels) for p in (train, test))
    assert probe(train, test, k_best=2).columns == (50, 51)


def test_a_sparse_probe_of_nothing_is_the_most_frequent_class() -> None:
    train, test = part(100, 3, 0), part(100, 3, 1)
    report, none = probe(train, test, k_best=0), probe(train, test, n_components=0)
    assert numbers(report) == pytest.approx(numbers(none), nan_ok=True) and report.columns == ()
    off = LabelledActivations(torch.zeros(4, 3), torch.tensor([1, 1, 1, 0]))
    assert probe(off, off, k_best=2).columns == () and probe(off, off, k_best=2).train_accuracy == 0.75


def test_a_wrong_number_of_columns_gets_a_sentence() -> None:
    good = part(20, 3, 0)
    with pytest.raises(ValueError, match="k_best must be at least 0, not -1"):
        probe(good, good, k_best=-1)
    with pytest.raises(ValueError, match="give one of them"):
        probe(good, good, k_best=1, n_components=1)


# The choice of C


def test_c_is_chosen_by_cross_validation_within_the_training_part() -> None:
    train, test = part(150, 40, 0, signal=1.5), part(100, 40, 1, signal=1.5)
    candidates = [1e-4, 1e-2, 1.0]
    x, y = train.x.numpy(), train.labels.numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = [
        cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=C)), x, y, cv=folds).mean()
        for C in candidates
    ]
    best = candidates[int(np.argmax(scores))]
    chosen = probe(train, test, C=candidates)
    assert best == chosen.C
    assert numbers(chosen) == numbers(probe(train, test, C=best))
    assert numbers(probe(train, test, C=candidates[::-1])) == numbers(chosen)


def test_of_equally_good_c_the_strongest_penalty_is_taken() -> None:
    clear = part(60, 3, 0, signal=100)
    assert probe(clear, clear, C=np.array([10.0, 0.1, 1.0])).C == 0.1  # type: ignore[arg-type]


def test_a_wrong_c_or_number_of_components_gets_a_sentence() -> None:
    good = part(20, 3, 0)
    for wrong in (0.0, -1.0, float("nan"), [0.1, -1], []):
        with pytest.raises(ValueError, match="C must be a positive number, or several"):
            probe(good, good, C=wrong)
    with pytest.raises(ValueError, match="n_components must be at least 0, not -1"):
        probe(good, good, n_components=-1)
    rare = LabelledActivations(good.x, (torch.arange(20) == 0).long())
    with pytest.raises(ValueError, match="at least two training rows of each class"):
        probe(rare, good, C=[0.1, 1])


# Weights


def test_weights_are_those_of_the_columns_as_they_are() -> None:
    train = part(200, 4, 0)
    train = LabelledActivations(train.x * torch.tensor([1.0, 10, 0, 0.1]) + torch.tensor([0.0, 5, 0, 0]), train.labels)
    x = train.x[:, [0, 1, 3]].double().numpy()
    by_hand = LogisticRegression(C=0.5).fit((x - x.mean(axis=0)) / x.std(axis=0), train.labels.numpy())
    weights = probe_weights(train, C=0.5)
    assert weights.shape == (4,)
    assert weights[[0, 1, 3]].tolist() == pytest.approx((by_hand.coef_[0] / x.std(axis=0)).tolist(), abs=1e-3)
    assert weights[2] == 0
    assert weights[0] > 0  # speaks for label 1


@given(st.floats(0.01, 100))
def test_a_column_in_smaller_units_has_a_greater_weight(factor: float) -> None:
    train = part(100, 3, 0)
    train = LabelledActivations(train.x.double(), train.labels)
    scaled = LabelledActivations(train.x * torch.tensor([factor, 1.0, 1.0]), train.labels)
    expected = probe_weights(train) / torch.tensor([factor, 1.0, 1.0])
    assert torch.allclose(probe_weights(scaled), expected, rtol=1e-2, atol=1e-3)


def test_weights_choose_c_as_the_probe_does() -> None:
    train = part(150, 40, 0, signal=1.5)
    chosen = probe(train, train, C=[1e-4, 1e-2, 1]).C
    assert torch.equal(probe_weights(train, C=[1e-4, 1e-2, 1]), probe_weights(train, C=chosen))


def test_weights_of_codes_with_nothing_on_are_zero() -> None:
    assert torch.equal(probe_weights(LabelledActivations(torch.zeros(4, 3), torch.arange(4) % 2)), torch.zeros(3))


def test_weights_can_be_read_with_the_features(model: Any, store: ActivationStore) -> None:
    sae = random_sae(256, 12)
    with torch.no_grad():
        weights = probe_weights(LabelledActivations(sae.encode(store.activations[:200]), torch.arange(200) % 2))
    reading = saelab.read_features(model, sae, store, features=[3], probe_weights=weights, progress=False)[0]
    assert reading.probe_weight == pytest.approx(float(weights[3]))


def test_weights_of_more_than_two_classes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="3 classes, but weights need two"):
        probe_weights(LabelledActivations(torch.randn(9, 2), torch.arange(9) % 3))
    with pytest.raises(ValueError, match="one class only"):
        probe_weights(LabelledActivations(torch.randn(9, 2), torch.ones(9)))


# Labelled sets


def test_wrong_texts_can_be_listed() -> None:
    data = labelled_set()
    train, test = data.split()
    report = probe(train, test)
    assert report.test_correct.mean() == report.test_accuracy
    wrong = data.texts[test.rows[~report.test_correct]]
    assert 0 < len(wrong) < 30
    assert set(wrong) <= {f"text {row}" for row in test.rows}


def test_a_split_keeps_shares_and_holds_each_row_once() -> None:
    data = labelled_set()
    train, test = data.split(test_size=0.25, seed=3)
    assert sorted([*train.rows, *test.rows]) == list(range(120))
    assert float(test.labels.double().mean()) == pytest.approx(float(data.labels.double().mean()), abs=1 / 30)
    for split_off in (train, test):
        assert torch.equal(split_off.x, data.x[split_off.rows])
        assert torch.equal(split_off.labels, data.labels[split_off.rows])
    assert_array_equal(data.split(seed=3).test.rows, test.rows)
    assert not np.array_equal(data.split(seed=4).test.rows, test.rows)


def test_a_block_that_is_held_out_is_not_trained_on() -> None:
    data = labelled_set()
    splits = data.by_block()
    assert list(splits) == ["drama", "comedy", "action"]
    for block, (train, test) in splits.items():
        assert set(data.blocks[test.rows]) == {block}
        assert set(data.blocks[train.rows]) == set(splits) - {block}
        assert len(train.rows) + len(test.rows) == 120


def test_codes_take_the_place_of_activations_whatever_the_batch_size() -> None:
    data, sae = labelled_set(), random_sae()
    with torch.no_grad():
        codes = sae.encode(data.x)
    for batch_size in (1, 7, 1000):
        encoded = data.encoded(sae, batch_size=batch_size)
        assert torch.allclose(encoded.x, codes)
        assert not encoded.x.requires_grad
    assert_array_equal(encoded.texts, data.texts)
    assert_array_equal(encoded.split().test.rows, data.split().test.rows)


def test_of_a_mean_over_tokens_each_token_is_encoded_and_codes_are_averaged(store: ActivationStore) -> None:
    tokens, text_indices = store.activations[:], store.text_indices[:]
    n = int(text_indices.max()) + 1
    means = torch.stack([tokens[text_indices == text].mean(dim=0) for text in range(n)])
    words = np.full(n, "a")
    data, sae = LabelledSet(means, torch.arange(n) % 2, words, words, words, store), random_sae(256, 20)
    encoded = data.encoded(sae, batch_size=100)
    with torch.no_grad():
        codes, of_means = sae.encode(tokens), sae.encode(means)
    assert encoded.x.shape == (n, 20)
    for text in (0, 3, n - 1):
        assert torch.allclose(encoded.x[text], codes[text_indices == text].mean(dim=0), atol=1e-6)
    assert ((encoded.x > 0) & (of_means == 0)).any()  # on for a token, but not for the mean


def test_a_wrong_labelled_set_gets_a_sentence() -> None:
    data = labelled_set()
    with pytest.raises(ValueError, match="x has 120 rows, but texts has 119"):
        replace(data, texts=data.texts[:-1])
    with pytest.raises(ValueError, match="made for d_in=9"):
        data.encoded(random_sae(9))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.encoded(random_sae(), batch_size=0)
    one_block = replace(data, blocks=np.full(120, "drama"))
    with pytest.raises(ValueError, match="all rows are in block 'drama'"):
        one_block.by_block()
    assert repr(data) == "LabelledSet(120 texts, width 6, blocks action, comedy, drama)"


# Representations side by side


def test_each_representation_is_probed_on_the_same_split() -> None:
    data, sae = labelled_set(), random_sae()
    table = compare_representations(data, {"a": sae}, progress=False).set_index("representation")
    assert list(table.index) == ["activations", "a", "PCA, k of a"]
    assert set(table.held_out) == {"stratified"}
    codes = data.encoded(sae)
    reports = {
        "activations": probe(*data.split()),
        "a": probe(*codes.split()),
        "PCA, k of a": probe(*data.split(), n_components=10),
    }
    for name, report in reports.items():
        assert table.loc[name, list(report.as_dict())].to_dict() == report.as_dict()
    assert table.loc["a", "l0"] == pytest.approx(float((codes.x > 0).sum() / 120))
    assert table.l0.isna().tolist() == [True, False, True]
    assert table.n_dimensions.tolist() == [6, 10, 6]  # no more components than columns


def test_a_pca_has_as_many_dimensions_as_the_sae_has_features_on_over_the_set() -> None:
    data, sae = replace(labelled_set(), x=torch.eye(6).repeat(20, 1)), random_sae()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(6, 10))  # six features, for one text in six each
        sae.b_enc[4:] = -1  # two of them never
    table = compare_representations(data, {"a": sae}, progress=False)
    assert table.n_active.tolist() == [6, 4, 4]
    assert table.n_dimensions.tolist() == [6, 10, 4]
    assert table.l0[1] == pytest.approx(4 / 6)


def test_sparse_probes_of_activations_and_codes_have_rows_of_their_own() -> None:
    data, sae = labelled_set(), random_sae()
    table = compare_representations(data, {"a": sae}, k_best=[1, 3], progress=False).set_index("representation")
    best = ["best 1 of activations", "best 3 of activations", "best 1 of a", "best 3 of a"]
    assert list(table.index) == ["activations", *best[:2], "a", *best[2:], "PCA, k of a"]
    assert table.n_dimensions[best].tolist() == [1, 3, 1, 3]
    assert table.loc["best 1 of activations", "test_accuracy"] == probe(*data.split(), k_best=1).test_accuracy
    report = probe(*data.encoded(sae).split(), k_best=3)
    assert table.loc["best 3 of a", list(report.as_dict())].to_dict() == report.as_dict()
    pd.testing.assert_frame_equal(
        table.drop(best).reset_index(), compare_representations(data, {"a": sae}, progress=False)
    )
    blocks = compare_representations(data, {"a": sae}, k_best=[2], held_out="block", progress=False)
    assert len(blocks) == 5 * 4


def test_pooled_reports_name_the_columns_if_all_fits_chose_the_same() -> None:
    reports = [probe(*split, k_best=1) for split in labelled_set().by_block().values()]
    assert {report.columns for report in reports} == {(0,)} == {pool_reports(reports).columns}
    assert pool_reports([replace(reports[0], columns=(1,)), reports[1]]).columns is None


def test_an_sae_with_nothing_on_is_compared_too() -> None:
    data, sae = labelled_set(), random_sae()
    sae.gate_threshold = 1e6
    table = compare_representations(data, {"off": sae}, held_out="block", C=[0.01, 1], progress=False)
    off = table[table.representation != "activations"]
    assert set(off.n_active) == set(off.effective_dimension) == {0}
    assert off.C.isna().all()


def test_without_saes_activations_alone_are_probed() -> None:
    assert compare_representations(labelled_set(), {}, progress=False).representation.tolist() == ["activations"]


def test_blocks_are_held_out_one_by_one_and_pooled() -> None:
    data = labelled_set()
    table = compare_representations(data, {"a": random_sae()}, held_out="block", progress=False)
    assert len(table) == 3 * 4
    raw = table[table.representation == "activations"].set_index("held_out")
    assert list(raw.index) == ["drama", "comedy", "action", "all"]
    reports = {block: probe(*split) for block, split in data.by_block().items()}
    for block, report in reports.items():
        assert raw.test_accuracy[block] == report.test_accuracy
    right = sum(report.test_correct.sum() for report in reports.values())
    assert raw.test_accuracy["all"] == right / 120
    exact = binom.ppf([0.025, 0.975], 120, right / 120) / 120
    assert [raw.test_low["all"], raw.test_high["all"]] == pytest.approx(exact, abs=1.01 / 120)
    assert raw.train_accuracy["all"] == pytest.approx(np.mean([r.train_accuracy for r in reports.values()]))


def test_of_blocks_of_different_sizes_each_text_counts_once() -> None:
    data = labelled_set()
    uneven = replace(data, blocks=np.repeat(["big", "small"], [90, 30]))
    table = compare_representations(uneven, {}, held_out="block", progress=False).set_index("held_out")
    big, small, both = (table.loc[name] for name in ("big", "small", "all"))
    assert both.test_accuracy == pytest.approx((90 * big.test_accuracy + 30 * small.test_accuracy) / 120)
    assert both.train_accuracy == pytest.approx((30 * big.train_accuracy + 90 * small.train_accuracy) / 120)


def test_what_is_in_a_block_changes_no_fit_that_holds_it_out() -> None:
    data, sae = labelled_set(), random_sae()
    moved = replace(data, x=data.x.clone(), labels=data.labels.clone())
    comedy = torch.as_tensor(data.blocks == "comedy")
    moved.x[comedy] *= 50
    moved.labels[comedy] = 1 - moved.labels[comedy]
    before, after = (
        compare_representations(x, {"a": sae}, held_out="block", C=[0.01, 1], progress=False).set_index("held_out")
        for x in (data, moved)
    )
    for column in ("train_accuracy", "train_low", "C", "effective_dimension"):
        assert before[column]["comedy"].tolist() == after[column]["comedy"].tolist()
        assert before[column]["drama"].tolist() != after[column]["drama"].tolist() or column == "C"


def test_another_way_to_hold_out_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="held_out must be one of stratified, block, not 'random'"):
        compare_representations(labelled_set(), {}, held_out="random", progress=False)  # type: ignore[arg-type]


def test_wrong_parts_get_a_sentence() -> None:
    good = part(20, 3, 0)
    with pytest.raises(ValueError, match="width 3, but test has 4"):
        probe(good, part(20, 4, 1))
    with pytest.raises(ValueError, match="train has 20 rows but 19 labels"):
        probe(LabelledActivations(good.x, good.labels[:19]), good)
    with pytest.raises(ValueError, match="one class only"):
        probe(LabelledActivations(good.x, torch.ones(20)), good)
    with pytest.raises(ValueError, match="NaN"):
        probe(LabelledActivations(good.x * float("nan"), good.labels), good)


# The sentiment set


@pytest.fixture(scope="module")
def snippets() -> pd.DataFrame:
    return saelab.load_sentiment().groupby(["block", "label", "hard"]).head(2).reset_index(drop=True)


def test_the_sentiment_set_knows_texts_labels_and_blocks(model: Any, snippets: pd.DataFrame) -> None:
    data = sentiment_set(model, "blocks.1.hook_resid_post", scale=2.0, snippets=snippets, progress=False)
    assert data.x.shape == (32, 256)
    assert_array_equal(data.texts, snippets.text)
    assert_array_equal(data.labels, snippets.label)
    assert set(data.by_block()) == {"drama", "comedy", "action", "thriller"}
    assert data.store is None
    frame = snippets.drop(columns="block")
    without_blocks = sentiment_set(model, "blocks.1.hook_resid_post", scale=2.0, snippets=frame, progress=False)
    assert set(without_blocks.blocks) == {"all"}
    for one, expected in zip(without_blocks.split(), data.split(), strict=True):
        assert torch.equal(one.x, expected.x)
        assert_array_equal(one.rows, expected.rows)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_several_hooks_in_one_run_give_what_each_alone_gives(
    model: Any, snippets: pd.DataFrame, pooling: Pooling
) -> None:
    scales = {"blocks.0.hook_resid_post": 2.0, "blocks.3.hook_resid_post": 0.5}
    sets = sentiment_sets(model, list(scales), scales=scales, pooling=pooling, snippets=snippets, progress=False)
    assert list(sets) == list(scales)
    for hook, scale in scales.items():
        alone = sentiment_set(model, hook, scale=scale, pooling=pooling, snippets=snippets, progress=False)
        assert torch.allclose(sets[hook].x, alone.x, atol=1e-5)
        assert_array_equal(sets[hook].strata, alone.strata)
        assert (sets[hook].store is None) == (pooling == "last")
    with pytest.raises(ValueError, match=r"scales has none for blocks\.1\.hook_resid_post; give one for each hook"):
        sentiment_sets(model, [*scales, "blocks.1.hook_resid_post"], scales=scales, snippets=snippets, progress=False)
    with pytest.raises(TypeError, match="takes the name of one hook, .*; for several hooks use sentiment_sets"):
        sentiment_set(model, list(scales), scale=2.0, snippets=snippets, progress=False)  # type: ignore[arg-type]


def test_the_mean_over_tokens_is_that_of_the_snippets_own(model: Any, snippets: pd.DataFrame) -> None:
    hook, sae = "blocks.1.hook_resid_post", random_sae(256, 40)
    data = sentiment_set(model, hook, scale=2.0, pooling="mean", snippets=snippets, progress=False)
    pooled = saelab.harvest_pooled(model, hook, list(snippets.text), scale=2.0, pooling="mean", progress=False)
    assert torch.allclose(data.x, pooled, atol=1e-4)
    tokens = saelab.harvest(model, hook, [snippets.text[5]], scale=2.0, progress=False).activations[:]
    with torch.no_grad():
        assert torch.allclose(data.encoded(sae).x[5], sae.encode(tokens).mean(dim=0), atol=1e-4)


def test_wrong_snippets_get_a_sentence(model: Any, snippets: pd.DataFrame) -> None:
    hook = "blocks.0.hook_resid_post"
    with pytest.raises(ValueError, match="lack the column.* label, hard; saelab.load_sentiment"):
        sentiment_set(model, hook, scale=1.0, snippets=snippets[["text"]], progress=False)
    with pytest.raises(ValueError, match="pooling must be one of last, mean, not 'max'"):
        sentiment_set(model, hook, scale=1.0, pooling="max", snippets=snippets, progress=False)  # type: ignore[arg-type]
    for text, tokens in (("", "no"), (" word" * 126 + " and one", "more than 126")):
        broken = snippets.assign(text=[text, *snippets.text[1:]])
        with pytest.raises(ValueError, match=f"snippet 0 has {tokens} tokens; the mean takes 1 to 126"):
            sentiment_set(model, hook, scale=1.0, pooling="mean", snippets=broken, progress=False)


def test_sentiment_split_is_stratified_fixed_and_disjoint(model: Any) -> None:
    frame = saelab.load_sentiment().groupby(["label", "hard"]).head(20).reset_index(drop=True)
    hook = "blocks.0.hook_resid_post"
    split = sentiment_set(model, hook, scale=2.0, snippets=frame, progress=False).split()
    again = sentiment_set(model, hook, scale=1.0, snippets=frame, progress=False).split()
    assert (len(split.train.x), len(split.test.x)) == (60, 20)
    assert float(split.test.labels.double().mean()) == 0.5
    assert torch.allclose(split.train.x, 2 * again.train.x)
    rows = np.concatenate([split.train.x.numpy(), split.test.x.numpy()])
    assert len(np.unique(rows, axis=0)) == 80


def test_a_model_of_another_architecture_is_probed_from_a_store_on_disk_all_the_same(
    save_llama: Callable[..., Path], tmp_path: Path
) -> None:
    llama = saelab.load_language_model(str(save_llama(tmp_path / "llama")))
    frame = saelab.load_sentiment().groupby(["label", "hard"]).head(10).reset_index(drop=True)
    frame["text"] = frame.text.str[:50]  # this model reads 32 tokens
    for hook, d_in in (("blocks.0.hook_resid_post", 32), ("blocks.1.mlp.hook_post", 48)):
        store = saelab.harvest(llama, hook, saelab.load_text()[:20], store=tmp_path / hook, progress=False)
        assert store.d_in == d_in
        config = saelab.TrainingConfig(n_steps=20, batch_size=64)
        sae = saelab.Trainer(saelab.GatedSAE(d_in, 64), store, config, l1_coefficient=1).run(progress=False).sae
        for pooling in ("last", "mean"):
            data = saelab.sentiment_set(llama, hook, scale=store.scale, pooling=pooling, snippets=frame, progress=False)
            table = saelab.compare_representations(data, {"gated": sae}, progress=False).set_index("representation")
            assert table.n_dimensions["activations"] == d_in
            assert table.n_dimensions["PCA, k of gated"] == min(table.n_active["gated"], d_in, len(frame) * 3 // 4)
