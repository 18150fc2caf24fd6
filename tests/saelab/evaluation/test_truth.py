"""An SAE against the truth: values computed by hand; order and length of decoder rows change nothing."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.data.synthetic import SuperpositionData, superposition
from saelab.evaluation.metrics import evaluate
from saelab.evaluation.truth import (
    TruthReport,
    compare_with_truth,
    dictionary_stability,
    feature_shrinkage,
    matched_cosine_similarity,
)
from saelab.quantities import QUANTITIES
from saelab.sae.gated import GatedSAE
from saelab.sae.standard import StandardSAE
from saelab.training.runs import TrainingConfig
from saelab.training.trainer import Trainer


def by_hand() -> tuple[SuperpositionData, torch.Tensor, torch.Tensor]:
    """A parent, its child and another feature along the axes; a dictionary of four, and its codes."""
    true = torch.tensor(
        [[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]]
    ).float()
    parents = torch.tensor([-1, 0, -1])
    data = SuperpositionData(true, true, torch.eye(3), torch.full((3,), 0.5), parents, scale=1.0, noise=0.0)
    dictionary = torch.tensor([[0.0, 0.0, 2.0], [0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    other, child, parent = [0, 0, 0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1]
    return data, dictionary, torch.tensor([other, child, parent, 8 * [1]]).T.float()


def hierarchy(child_probability: float = 0.4, n_samples: int = 2000, seed: int = 0) -> SuperpositionData:
    return superposition(
        20, 32, 0.15, n_samples=n_samples, n_parents=4, children_per_parent=3, child_probability=child_probability,
        magnitudes="constant", seed=seed,
    )  # fmt: skip


def close(one: TruthReport, other: TruthReport) -> bool:
    return one.as_dict() == pytest.approx(other.as_dict(), nan_ok=True)


# The matching


def test_a_permuted_dictionary_matches_perfectly_whatever_its_norms_and_extra_features() -> None:
    truth = superposition(12, 8, 0.1, n_samples=1000).dictionary
    order = torch.randperm(12)
    learned = torch.cat([truth[order] * torch.rand(12, 1).add(0.1), torch.randn(5, 8)])
    match = matched_cosine_similarity(learned, truth)
    assert match.mean == pytest.approx(1)
    assert match.similarity.tolist() == pytest.approx([1] * 12)
    assert torch.equal(order[match.matching], torch.arange(12))


def test_true_features_left_without_a_learned_one_count_as_0() -> None:
    truth = torch.eye(4)
    match = matched_cosine_similarity(truth[[2, 0]], truth)
    assert match.mean == 0.5
    assert match.similarity.tolist() == [1, 0, 1, 0]
    assert match.matching.tolist() == [1, -1, 0, -1]


def test_each_learned_feature_stands_for_one_true_feature_at_most_and_signs_matter() -> None:
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    one_twice = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # greedy would give both to the first
    match = matched_cosine_similarity(one_twice, truth)
    assert sorted(match.matching.tolist()) == [0, 1]
    assert match.mean == pytest.approx(max(1 - 0.6, 0.8 + 0) / 2)
    assert matched_cosine_similarity(-torch.eye(1), torch.eye(1)).mean == -1
    assert matched_cosine_similarity(torch.zeros(1, 2), torch.eye(2)).mean == 0


def test_matching_refuses_dictionaries_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="width 3, but truth 2"):
        matched_cosine_similarity(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match=r"truth must be \(features, d_in\)"):
        matched_cosine_similarity(torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match="dictionary holds NaN"):
        matched_cosine_similarity(torch.full((2, 2), math.nan), torch.eye(2))


def test_codes_scaled_by_0_7_have_a_shrinkage_of_0_7_through_any_matching() -> None:
    data = superposition(12, 8, 0.2, n_samples=500)
    order = torch.randperm(12)
    matching = order.argsort()
    shrinkage = feature_shrinkage(0.7 * data.codes[:, order], data.codes, matching)
    assert shrinkage.dtype == torch.float64
    assert shrinkage.tolist() == pytest.approx([0.7] * 12)
    norms = torch.rand(12) + 0.5
    assert torch.allclose(
        feature_shrinkage(0.7 * data.codes[:, order] / norms, data.codes, matching, decoder_norms=norms), shrinkage
    )


def test_shrinkage_counts_misses_as_0_and_ignores_firing_elsewhere() -> None:
    true = torch.tensor([[2.0, 0.0, 1.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    codes = torch.tensor([[1.5], [0.0], [9.0]])
    shrinkage = feature_shrinkage(codes, true, torch.tensor([0, -1, -1]))
    assert shrinkage[0] == 1.5 / 6
    assert torch.isnan(shrinkage[1:]).all()  # never on; no learned feature
    assert math.isnan(feature_shrinkage(codes, true, torch.tensor([-1, 0, -1]))[1])  # matched, but never on


def test_shrinkage_refuses_shapes_that_do_not_fit() -> None:
    codes, true = torch.ones(5, 4), torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(5, 3\)"):
        feature_shrinkage(codes[:4], true, torch.arange(3))
    for matching in (torch.arange(4), torch.tensor([0, 1, 4]), torch.tensor([0, 1, -2])):
        with pytest.raises(ValueError, match="matching must hold"):
            feature_shrinkage(codes, true, matching)
    with pytest.raises(ValueError, match="decoder_norms"):
        feature_shrinkage(codes, true, torch.arange(3), decoder_norms=torch.ones(3))


# The report


def test_every_number_by_hand() -> None:
    data, dictionary, codes = by_hand()
    report = compare_with_truth((dictionary, codes), data)
    assert report.match.matching.tolist() == [2, 1, 0]  # the last row is as near to the third feature, but has no place
    assert report.as_dict() == pytest.approx(
        {
            "found": 2 / 3,
            "matched_cosine": (1 + 0.8 + 1) / 3,
            "mmcs": (1 + 0.8 + 1) / 3,
            "uniqueness": 3 / 4,  # two of four are nearest to the third feature
            # The parent is on for 6 inputs, its feature for 3 of them; child: 3, 3, both 2; the other: 2, 2, both 1.
            "precision": (1 + 2 / 3 + 1 / 2) / 3,
            "recall": (1 / 2 + 2 / 3 + 1 / 2) / 3,
            "f1": (2 * 3 / 9 + 2 * 2 / 6 + 2 * 1 / 4) / 3,
            "absorption": 1 / 2,  # of inputs 0 and 1; the child's feature misses input 6
            "missed_alone": 1 / 3,  # of inputs 2, 3 and 7
        }
    )
    assert compare_with_truth((dictionary, codes), data, found_above=0.75).found == 1


def test_the_greatest_cosine_may_be_shared_and_the_matched_one_not() -> None:
    data, _, codes = by_hand()
    dictionary = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    report = compare_with_truth((dictionary, codes), data)
    assert report.mmcs == pytest.approx((2 * math.sqrt(1 / 2) + 1) / 3)
    assert report.matched_cosine == pytest.approx((math.sqrt(1 / 2) + 0 + 1) / 3)


def test_uniqueness_counts_the_true_features_that_learned_ones_are_nearest_to() -> None:
    data, _, codes = by_hand()
    thrice = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, 0.0, 0.0]])
    report = compare_with_truth((thrice, codes[:, :3]), data)
    assert report.uniqueness == 1 / 3  # though each true feature has a nearest one of its own


def test_absorption_is_counted_where_the_parent_is_on() -> None:
    data, dictionary, codes = by_hand()
    data.codes[1, 0] = 0  # a child without its parent, in data of one's own
    assert compare_with_truth((dictionary, codes), data).absorption == 1  # of input 0


def test_features_that_are_never_on_and_those_without_a_partner() -> None:
    data, dictionary, codes = by_hand()
    silent = codes.clone()
    silent[:, 0] = 0  # its precision is no number, and counts as 0
    assert compare_with_truth((dictionary, silent), data).precision == pytest.approx((1 + 2 / 3 + 0) / 3)
    never = replace(data, codes=data.codes * torch.tensor([1.0, 1.0, 0.0]))
    assert compare_with_truth((dictionary, codes), never).recall == pytest.approx((1 / 2 + 2 / 3) / 2)
    parent_alone = compare_with_truth((dictionary[2:3], codes[:, 2:3]), data)
    assert parent_alone.recall == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert math.isnan(parent_alone.absorption)  # no child's feature could be on
    assert parent_alone.missed_alone == 1 / 3
    assert math.isnan(compare_with_truth((dictionary[:1], codes[:, :1]), data).missed_alone)  # no parent's feature


def test_the_true_dictionary_scores_1_and_a_random_one_does_not() -> None:
    data = hierarchy()
    best = compare_with_truth((data.dictionary, data.codes), data)
    assert best.as_dict() == pytest.approx(dict.fromkeys(best.as_dict(), 1.0) | {"absorption": 0, "missed_alone": 0})
    assert math.isnan(
        compare_with_truth((data.dictionary, data.codes), replace(data, parents=torch.full((20,), -1))).absorption
    )
    sae = StandardSAE(32, 20)
    chance = compare_with_truth(sae, data)
    assert chance.found == 0 and chance.matched_cosine < 0.5 and chance.uniqueness < 1 and chance.f1 < 0.5


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_order_and_length_of_decoder_rows_change_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = hierarchy(n_samples=200)
    noisy = data.dictionary + 0.3 * torch.randn(20, 32, generator=generator)
    dictionary = torch.cat([noisy, torch.randn(5, 32, generator=generator)])
    codes = (data.activations @ dictionary.T - 0.5).relu()
    order, lengths = torch.randperm(25, generator=generator), 0.1 + torch.rand(25, generator=generator)
    moved = ((dictionary * lengths[:, None])[order], (codes / lengths)[:, order])
    report = compare_with_truth((dictionary, codes), data)
    assert close(report, compare_with_truth(moved, data))
    assert all(0 <= report.as_dict()[name] <= 1 for name in report.as_dict() if name not in ("matched_cosine", "mmcs"))


def test_an_sae_is_judged_as_it_stands_whatever_the_batches() -> None:
    data, sae = hierarchy(n_samples=500), GatedSAE(32, 24)
    report = compare_with_truth(sae, data)
    assert close(report, compare_with_truth(sae, data, batch_size=7))
    assert close(report, compare_with_truth((sae.W_dec, sae.encode(data.activations)), data))
    assert close(report, compare_with_truth(GatedSAE(32, 24).double(), data))
    sae.gate_threshold = 1.0
    assert compare_with_truth(sae, data).recall < report.recall
    sae.gate_threshold = math.inf
    assert compare_with_truth(sae, data).f1 == 0


def test_absorption_appears_where_children_are_frequent() -> None:
    def absorption(child_probability: float) -> TruthReport:
        data = superposition(
            20, 32, 0.1, n_samples=10_000, n_parents=4, children_per_parent=3, child_probability=child_probability,
            magnitudes="constant",
        )  # fmt: skip
        config = TrainingConfig(n_steps=600, batch_size=256, lr=3e-3, resample_every=0)
        sae = StandardSAE(32, 20)
        for _ in Trainer(sae, data.activations, config, l1_coefficient=1.0):
            pass
        assert evaluate(sae, data.activations).fvu < 0.1
        return compare_with_truth(sae, data)

    rare, frequent = absorption(0.05), absorption(0.5)
    assert frequent.absorption > rare.absorption + 0.2
    assert frequent.missed_alone < 0.1  # parents were found; it is their children that silence them


def test_a_report_prints_as_a_table_and_is_a_row_of_a_data_frame() -> None:
    data, dictionary, codes = by_hand()
    report = compare_with_truth((dictionary, codes), data)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == list(report.as_dict())
    assert lines[0].endswith(f"0.6667  {QUANTITIES['found'].meaning}")
    assert repr(report).startswith("TruthReport(found=0.6667, matched_cosine=0.9333") and "\n" not in repr(report)
    assert set(report.as_dict()) <= set(QUANTITIES)


def test_what_cannot_be_compared_with_the_truth_gets_a_sentence() -> None:
    data, dictionary, codes = by_hand()
    wrong: list[tuple[Any, type[Exception], str]] = [
        (dictionary, TypeError, "an SAE, or a tuple"),
        ((dictionary, codes[:5]), ValueError, r"codes have shape \(5, 4\).*\(8, 4\)"),
        ((dictionary, codes[:, :3]), ValueError, r"\(8, 3\).*4 features"),
        ((dictionary, codes * math.nan), ValueError, "codes hold NaN"),
        (StandardSAE(5, 4), ValueError, "width 5, but truth 3"),
    ]
    for sae, kind, message in wrong:
        with pytest.raises(kind, match=message):
            compare_with_truth(sae, data)
    with pytest.raises(ValueError, match=r"found_above must lie in \[0, 1\), not 1"):
        compare_with_truth((dictionary, codes), data, found_above=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        compare_with_truth((dictionary, codes), data, batch_size=0)


# Over seeds


def test_stability_by_hand_of_three_dictionaries() -> None:
    axes, turned = torch.eye(2), torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    stability = dictionary_stability([axes, turned, axes.flip(0) * 3], shared_above=0.85)
    assert stability.pairs[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert stability.pairs.matched_cosine.tolist() == pytest.approx([0.8, 1.0, 0.8])
    assert stability.pairs.shared.tolist() == [0, 1, 0]
    assert stability.matched_cosine == pytest.approx(2.6 / 3) and stability.shared == pytest.approx(1 / 3)
    assert dictionary_stability([axes, turned]).shared == 1  # above 0.7
    half = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert dictionary_stability([axes, half])[:2] == (0.0, 0.5)  # the opposite direction is another feature


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_stability_does_not_depend_on_the_order_or_length_of_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 12, 6, generator=generator)
    moved = (other * (0.1 + torch.rand(12, 1, generator=generator)))[torch.randperm(12, generator=generator)]
    before, after = dictionary_stability([one, other]), dictionary_stability([one, moved])
    assert after[:2] == pytest.approx(before[:2]) and after[:2] == pytest.approx(dictionary_stability([moved, one])[:2])
    assert before.matched_cosine < 0.95
    assert dictionary_stability([moved, other])[:2] == pytest.approx((1, 1))


def test_stability_refuses_what_does_not_compare() -> None:
    with pytest.raises(ValueError, match="at least two dictionaries, not 1"):
        dictionary_stability([torch.eye(2)])
    with pytest.raises(ValueError, match=r"one shape, not \(2, 2\), \(3, 2\)"):
        dictionary_stability([torch.eye(2), torch.eye(2), torch.ones(3, 2)])
    with pytest.raises(ValueError, match=r"shared_above must lie in \[0, 1\)"):
        dictionary_stability([torch.eye(2), torch.eye(2)], shared_above=-1)
