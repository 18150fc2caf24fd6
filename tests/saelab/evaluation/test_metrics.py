"""Every metric against a value computed by hand, and the properties that tell it from its look-alikes."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.data.activations import ActivationStore
from saelab.evaluation.metrics import (
    FVU,
    L0,
    L1,
    BiasFormula,
    CosineSimilarity,
    FeatureDensity,
    RelativeReconstructionBias,
    SAEMetrics,
    evaluate,
    relative_reconstruction_bias,
)
from saelab.sae.gated import GatedSAE
from saelab.sae.standard import StandardSAE

FORMULAS: tuple[BiasFormula, ...] = get_args(BiasFormula)
RECONSTRUCTION_METRICS: list[Callable[[], FVU | CosineSimilarity | RelativeReconstructionBias]] = [
    FVU,
    CosineSimilarity,
    *(lambda formula=formula: RelativeReconstructionBias(formula) for formula in FORMULAS),
]


def pooled(
    metric: FVU | CosineSimilarity | RelativeReconstructionBias, *batches: tuple[torch.Tensor, torch.Tensor]
) -> float:
    for x, r in batches:
        metric.add_batch(x, r)
    return metric.compute()


def gamma_of(x: torch.Tensor, r: torch.Tensor) -> float:
    return relative_reconstruction_bias(x, r)


def fvu_of(x: torch.Tensor, r: torch.Tensor) -> float:
    return pooled(FVU(), (x, r))


def cosine_of(x: torch.Tensor, r: torch.Tensor) -> float:
    return pooled(CosineSimilarity(), (x, r))


def noisy_pair(seed: int, n: int = 20, d_in: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator, dtype=torch.float64)
    return x, 0.8 * x + 0.3 * torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def test_half_of_the_input_has_bias_one_half_and_only_version_1_says_one_over_root_three() -> None:
    x = torch.tensor([[1.0]])
    assert {formula: relative_reconstruction_bias(x, x / 2, formula) for formula in FORMULAS} == {
        "corrected": 0.5,
        "v1": pytest.approx(1 / math.sqrt(3), rel=1e-15),
        "projection": 0.5,
        "norm_ratio": 0.5,
    }


def test_every_formula_by_hand_on_two_inputs() -> None:
    x, r = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    # E||x||^2 = 25, E||r||^2 = 12.5, E[x . r] = 14.5, E||x - r||^2 = 8.5, E||x|| = 5, E||r|| = 3.5
    assert relative_reconstruction_bias(x, r, "corrected") == pytest.approx(12.5 / 14.5)
    assert relative_reconstruction_bias(x, r, "v1") == pytest.approx(math.sqrt(12.5 / (25 - 8.5)))
    assert relative_reconstruction_bias(x, r, "projection") == pytest.approx(14.5 / 25)
    assert relative_reconstruction_bias(x, r, "norm_ratio") == pytest.approx(3.5 / 5)


def test_unbiased_projection_of_white_data_onto_half_the_dimensions_has_bias_one_and_a_norm_ratio_of_0_71() -> None:
    x = torch.randn(2000, 64)
    r = torch.cat([x[:, :32], torch.zeros(2000, 32)], dim=1)
    assert gamma_of(x, r) == pytest.approx(1, abs=1e-12)
    assert relative_reconstruction_bias(x, r, "v1") == pytest.approx(1, abs=1e-12)
    assert relative_reconstruction_bias(x, r, "norm_ratio") == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert relative_reconstruction_bias(x, r, "projection") == pytest.approx(0.5, abs=0.01)


@given(st.integers(0, 10_000))
def test_gamma_is_the_divisor_that_minimises_the_error(seed: int) -> None:
    x, r = noisy_pair(seed)
    gamma = gamma_of(x, r)
    errors = [float((r / g - x).square().sum()) for g in (gamma * 0.999, gamma, gamma * 1.001)]
    assert errors[1] < min(errors[0], errors[2])


@given(st.integers(0, 10_000))
def test_projection_is_the_factor_of_the_regression_the_other_way_round(seed: int) -> None:
    x, r = noisy_pair(seed)
    factor = relative_reconstruction_bias(x, r, "projection")
    errors = [float((r - g * x).square().sum()) for g in (factor * 0.999, factor, factor * 1.001)]
    assert errors[1] < min(errors[0], errors[2])


@given(st.integers(0, 10_000))
def test_the_formula_of_version_1_follows_from_gamma_and_is_what_was_printed(seed: int) -> None:
    x, r = noisy_pair(seed)
    gamma, v1 = gamma_of(x, r), relative_reconstruction_bias(x, r, "v1")
    xx, rr, ee = (float(v.square().sum()) for v in (x, r, x - r))
    assert v1 == pytest.approx(math.sqrt(gamma / (2 - gamma)))
    assert v1 == pytest.approx(math.sqrt(rr / (xx - ee)))


def test_gamma_satisfies_the_identity_of_the_papers_footnote() -> None:
    x, r = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    xx, rr, ee = (float(v.square().sum()) for v in (x, r, x - r))
    assert gamma_of(x, r) == pytest.approx(2 * rr / (xx + rr - ee))


def test_fvu_is_zero_for_the_input_one_for_its_mean_and_by_hand_in_between() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])  # variances 8/3 and 2, so 14 in all over three rows
    assert fvu_of(x, x) == 0
    assert fvu_of(x, x.mean(dim=0).expand(3, 2)) == pytest.approx(1)
    assert fvu_of(x, x + torch.tensor([1.0, 0.0])) == pytest.approx(3 / 14)


def test_cosine_similarity_sees_directions_only_and_counts_zero_vectors_as_0() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 4.0]])
    r = torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine_of(x, r) == pytest.approx((1 - 1 + math.sqrt(0.5) + 0) / 4)
    assert cosine_of(torch.zeros(1, 2), torch.ones(1, 2)) == 0
    assert math.isnan(cosine_of(torch.full((1, 2), math.nan), torch.ones(1, 2)))  # NaN is no zero


def test_l1_is_the_mean_over_inputs_of_the_sum_of_codes() -> None:
    l1 = L1()
    l1.add_batch(torch.tensor([[1.0, 0.0, 2.5], [0.0, 0.0, 0.5]]))
    l1.add_batch(torch.zeros(2, 3))
    assert l1.compute() == 1.0


@given(st.lists(st.integers(0, 30), max_size=4), st.integers(0, 1000))
def test_pooled_metrics_do_not_depend_on_how_the_data_is_cut_into_batches(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-3, 3, 30)[:, None]  # the batches differ in scale, too
    x = (torch.randn(30, 4, generator=generator) + 5) * scales
    r = x * torch.rand(30, 4, generator=generator)
    codes = torch.randn(30, 7, generator=generator).relu() * scales
    edges = [0, *sorted(cuts), 30]
    parts = [slice(first, last) for first, last in pairwise(edges)]
    for make in RECONSTRUCTION_METRICS:
        assert pooled(make(), *((x[part], r[part]) for part in parts)) == pytest.approx(
            pooled(make(), (x, r)), rel=1e-9
        )
    l0, l1, density = L0(), L1(), FeatureDensity()
    for part in parts:
        l0.add_batch(codes[part])
        l1.add_batch(codes[part])
        density.add_batch(codes[part])
    assert l0.compute() == pytest.approx(float((codes > 0).sum()) / 30)
    assert l1.compute() == pytest.approx(float(codes.double().sum()) / 30)
    assert float(density.compute().sum()) == pytest.approx(l0.compute())


def test_bias_is_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    small, large = torch.tensor([[1.0]]), torch.tensor([[8.5]])
    batches = [(small, 0.678 * small), (large, large)]
    assert sum(gamma_of(x, r) for x, r in batches) / 2 == pytest.approx(0.839)
    assert pooled(RelativeReconstructionBias(), *batches) == pytest.approx(0.997, abs=5e-4)


def test_sums_are_kept_in_float64_whatever_the_activations_are() -> None:
    x = torch.tensor([[4096.0]], dtype=torch.float16)  # its square is beyond float16
    assert gamma_of(x, x / 2) == 0.5
    codes = torch.full((1000, 100), 1000.0, dtype=torch.float16)
    l1 = L1()
    l1.add_batch(codes)
    assert l1.compute() == 100_000


def test_density_counts_each_feature_and_names_the_dead() -> None:
    density = FeatureDensity()
    density.add_batch(torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]))
    assert density.compute().tolist() == [1.0, 0.5, 0.0]
    assert density.n_dead() == 1


def test_metrics_of_nothing_are_nan_and_not_zero() -> None:
    x, zero = torch.randn(3, 2), torch.zeros(3, 2)
    assert math.isnan(gamma_of(x, zero)) and math.isnan(relative_reconstruction_bias(x, zero, "v1"))
    assert math.isnan(relative_reconstruction_bias(x, 3 * x, "v1"))  # sqrt of a negative number
    assert math.isnan(relative_reconstruction_bias(zero, x, "projection"))
    assert math.isnan(relative_reconstruction_bias(zero, x, "norm_ratio"))
    assert math.isnan(fvu_of(torch.ones(3, 2), zero)) and math.isnan(fvu_of(torch.full((7, 3), 0.1), torch.ones(7, 3)))
    assert math.isnan(L0().compute()) and math.isnan(L1().compute())
    assert all(math.isnan(make().compute()) for make in RECONSTRUCTION_METRICS)
    with pytest.raises(ValueError, match="add_batch"):
        FeatureDensity().compute()


def test_unknown_formulas_and_shapes_that_differ_get_a_sentence() -> None:
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="one of corrected, v1, projection, norm_ratio, not 'v2'"):
        relative_reconstruction_bias(x, x, "v2")  # type: ignore[arg-type]
    for make in RECONSTRUCTION_METRICS:
        with pytest.raises(ValueError, match=r"\(3, 2\).*\(1, 2\)"):  # which would broadcast
            make().add_batch(x, x[:1])


def test_evaluate_gives_the_same_numbers_for_any_batch_size_and_leaves_no_gradient() -> None:
    sae, x = StandardSAE(8, 32), torch.randn(100, 8)
    whole, pieces = evaluate(sae, x), evaluate(sae, x, batch_size=7)
    assert pieces.as_dict() == pytest.approx(whole.as_dict())
    assert torch.equal(pieces.density, whole.density) and not whole.density.requires_grad
    assert sae.W_enc.grad is None
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(sae, x, batch_size=0)


def test_evaluate_reports_what_the_accumulators_say() -> None:
    sae, x = GatedSAE(8, 32), torch.randn(100, 8)
    with torch.no_grad():
        sae.b_gate[:3] = -100  # three dead features
        codes = sae.encode(x)
        r = sae.decode(codes)
    metrics = evaluate(sae, x)
    assert metrics.l0 == pytest.approx(float((codes > 0).sum()) / 100)
    assert metrics.l1 == pytest.approx(float(codes.sum()) / 100)
    assert metrics.fvu == fvu_of(x, r)
    assert metrics.cosine_similarity == pytest.approx(float(torch.cosine_similarity(x, r).mean()))
    assert metrics.gamma == gamma_of(x, r)
    assert metrics.norm_ratio == relative_reconstruction_bias(x, r, "norm_ratio")
    assert metrics.n_dead == int((codes == 0).all(dim=0).sum()) >= 3
    assert torch.equal(metrics.density, (codes > 0).double().mean(dim=0))
    assert metrics.n_inputs == 100


def test_evaluate_takes_a_tensor_a_store_or_any_iterable_of_batches() -> None:
    sae, x = StandardSAE(8, 32), torch.randn(100, 8)
    index = torch.arange(100)
    store = ActivationStore(x, 1.0, "reviews-4l", "blocks.0.hook_resid_post", index, index, index)
    expected = pytest.approx(evaluate(sae, x).as_dict())
    assert evaluate(sae, store).as_dict() == expected
    assert evaluate(sae, [x[:1], x[1:80], x[80:]], batch_size=30).as_dict() == expected
    assert evaluate(sae, (part for part in torch.split(x, 33))).as_dict() == expected
    assert evaluate(sae, x.reshape(5, 20, 8)).as_dict() == expected
    assert evaluate(sae, x.double()).as_dict() == expected


def test_evaluate_refuses_what_cannot_be_activations() -> None:
    sae = StandardSAE(8, 32)
    with pytest.raises(ValueError, match="width 9"):
        evaluate(sae, torch.randn(4, 9))
    with pytest.raises(ValueError, match="width 9"):
        evaluate(sae, [torch.randn(4, 8), torch.randn(4, 9)])
    with pytest.raises(ValueError, match="NaN"):
        evaluate(sae, torch.full((4, 8), math.nan))
    with pytest.raises(TypeError, match="floating-point"):
        evaluate(sae, torch.ones(4, 8, dtype=torch.long))
    with pytest.raises(TypeError, match="not list"):
        evaluate(sae, [[1.0] * 8])  # type: ignore[list-item]
    for nothing in (torch.empty(0, 8), [], [torch.empty(0, 8)]):
        with pytest.raises(ValueError, match="empty"):
            evaluate(sae, nothing)


def test_evaluate_shows_a_bar_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    sae, x = StandardSAE(8, 32), torch.randn(100, 8)
    evaluate(sae, x)
    assert capfd.readouterr().err == ""
    evaluate(sae, x, progress=True)
    assert "evaluating" in capfd.readouterr().err


def test_metrics_print_as_a_table_with_a_meaning_a_line_and_go_into_a_data_frame_as_a_row() -> None:
    metrics = SAEMetrics(
        l0=12.3456,
        l1=30.0,
        fvu=0.25,
        cosine_similarity=0.9,
        gamma=0.8,
        norm_ratio=0.7,
        n_dead=1,
        n_inputs=1000,
        density=torch.tensor([0.0, 0.5]),
    )
    lines = str(metrics).splitlines()
    assert lines[0] == "l0                 12.35  features on per input"
    assert lines[6] == "n_dead                 1  of 2 features, on for none of these inputs"
    assert [line.split()[0] for line in lines] == list(metrics.as_dict())
    assert len({line.index(line.split("  ")[-1]) for line in lines}) == 1  # the meanings stand in one column
    assert repr(metrics).startswith("SAEMetrics(l0=12.35, l1=30, fvu=0.25") and "\n" not in repr(metrics)
    row = metrics.as_dict()
    assert "density" not in row and {type(value) for value in row.values()} == {int, float}
