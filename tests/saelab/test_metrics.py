"""Every metric against a value computed by hand, and the properties that tell it from its look-alikes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab import FVU, L0, FeatureDensity, RelativeReconstructionBias, StandardSAE, evaluate


def gamma_of(x: torch.Tensor, r: torch.Tensor) -> float:
    gamma = RelativeReconstructionBias()
    gamma.add_batch(x, r)
    return gamma.compute()


def fvu_of(x: torch.Tensor, r: torch.Tensor) -> float:
    fvu = FVU()
    fvu.add_batch(x, r)
    return fvu.compute()


def test_half_of_the_input_has_bias_one_half_and_not_one_over_root_three() -> None:
    x = torch.tensor([[1.0]])
    assert gamma_of(x, x / 2) == 0.5


def test_unbiased_projection_onto_half_the_dimensions_has_bias_one() -> None:
    x = torch.tensor([[3.0, 4.0], [-1.0, 4.0]])
    assert gamma_of(x, x * torch.tensor([1.0, 0.0])) == 1.0  # its norm ratio is well below 1


@given(st.integers(0, 10_000))
def test_gamma_is_the_divisor_that_minimises_the_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    r = 0.8 * x + 0.3 * torch.randn(20, 4, generator=generator, dtype=torch.float64)
    gamma = gamma_of(x, r)
    errors = [float((r / g - x).square().sum()) for g in (gamma * 0.999, gamma, gamma * 1.001)]
    assert errors[1] < min(errors[0], errors[2])


def test_gamma_satisfies_the_identity_of_the_papers_footnote() -> None:
    x, r = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    xx, rr, ee = (float(v.square().sum()) for v in (x, r, x - r))
    assert gamma_of(x, r) == pytest.approx(2 * rr / (xx + rr - ee))


def test_fvu_is_zero_for_the_input_one_for_its_mean_and_by_hand_in_between() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])  # variances 8/3 and 2, so 14 in all over three rows
    assert fvu_of(x, x) == 0
    assert fvu_of(x, x.mean(dim=0).expand(3, 2)) == pytest.approx(1)
    assert fvu_of(x, x + torch.tensor([1.0, 0.0])) == pytest.approx(3 / 14)


@given(st.integers(1, 29), st.integers(0, 1000))
def test_pooled_metrics_do_not_depend_on_how_the_data_is_cut_into_batches(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 4, generator=generator) + 5
    r = x * torch.rand(30, 4, generator=generator)
    codes = torch.randn(30, 7, generator=generator).relu()
    gamma, fvu, l0, density = RelativeReconstructionBias(), FVU(), L0(), FeatureDensity()
    for part in (slice(None, cut), slice(cut, None)):
        gamma.add_batch(x[part], r[part])
        fvu.add_batch(x[part], r[part])
        l0.add_batch(codes[part])
        density.add_batch(codes[part])
    assert gamma.compute() == pytest.approx(gamma_of(x, r))
    assert fvu.compute() == pytest.approx(fvu_of(x, r), rel=1e-9)
    assert l0.compute() == pytest.approx(float((codes > 0).sum()) / 30)
    assert float(density.compute().sum()) == pytest.approx(l0.compute())


def test_density_counts_each_feature_and_names_the_dead() -> None:
    density = FeatureDensity()
    density.add_batch(torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]))
    assert density.compute().tolist() == [1.0, 0.5, 0.0]
    assert density.n_dead() == 1


def test_metrics_of_nothing_are_nan_and_not_zero() -> None:
    zero = torch.zeros(3, 2)
    assert math.isnan(gamma_of(torch.randn(3, 2), zero))
    assert math.isnan(fvu_of(torch.ones(3, 2), zero))
    assert math.isnan(L0().compute())
    with pytest.raises(ValueError, match="add_batch"):
        FeatureDensity().compute()


def test_evaluate_gives_the_same_numbers_for_any_batch_size_and_leaves_no_gradient() -> None:
    sae, x = StandardSAE(8, 32), torch.randn(100, 8)
    whole, pieces = evaluate(sae, x), evaluate(sae, x, batch_size=7)
    assert pieces == pytest.approx(whole)
    codes = sae.encode(x)
    assert whole.l0 == pytest.approx(float((codes > 0).sum()) / 100)
    assert whole.n_dead == int((codes == 0).all(dim=0).sum())
    with pytest.raises(ValueError, match="width 9"):
        evaluate(sae, torch.randn(4, 9))
