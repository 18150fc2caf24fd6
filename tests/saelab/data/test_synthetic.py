"""Superposition data keeps its promises: known features, exact densities, one scale, one seed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.data.synthetic import CORRELATED_GROUP, SuperpositionData, superposition
from saelab.evaluation.truth import matched_cosine_similarity
from saelab.sae.standard import StandardSAE


def mean_square(x: torch.Tensor) -> float:
    return float(x.double().square().sum(dim=1).mean())


def together(data: SuperpositionData, i: int, j: int) -> float:
    """Share of samples for which two features are both on."""
    return float(((data.codes[:, i] > 0) & (data.codes[:, j] > 0)).double().mean())


@given(
    n_features=st.integers(1, 20),
    d_in=st.integers(1, 12),
    density=st.floats(0.1, 1.0),
    correlated=st.sampled_from([0.0, 0.5, 0.99]),
    seed=st.integers(-(2**31), 2**31),
)
@settings(deadline=None, max_examples=40)
def test_activations_are_codes_times_unit_directions_and_have_mean_square_d_in(
    n_features: int, d_in: int, density: float, correlated: float, seed: int
) -> None:
    data = superposition(n_features, d_in, density, n_samples=200, correlated=correlated, seed=seed)
    assert len(data) == 200 and data.activations.shape == (200, d_in)
    assert data.codes.shape == (200, n_features) and data.dictionary.shape == (n_features, d_in)
    assert torch.allclose(data.activations, data.codes @ data.dictionary, atol=1e-5)
    assert torch.allclose(data.dictionary.norm(dim=1), torch.ones(n_features), atol=1e-6)
    assert mean_square(data.activations) == pytest.approx(d_in, rel=1e-5)
    assert (data.codes >= 0).all()


@pytest.mark.parametrize("correlated", [0.0, 0.3, 0.9])
def test_every_feature_keeps_its_density_however_correlated(correlated: float) -> None:
    density = torch.tensor([0.01, 0.05, 0.2, 0.5, 0.9, 1.0, 0.03])
    data = superposition(7, 4, density, n_samples=40_000, correlated=correlated)
    measured = (data.codes > 0).double().mean(dim=0)
    error = (density * (1 - density) / 40_000).sqrt()  # binomial
    assert ((measured - density).abs() <= 4.5 * error).all()
    assert torch.equal(data.density, density)


def test_features_of_a_group_fire_together_more_often_the_higher_the_correlation() -> None:
    rates = [together(superposition(8, 4, 0.1, n_samples=20_000, correlated=c), 0, 3) for c in (0.0, 0.3, 0.6, 0.95)]
    assert rates[0] == pytest.approx(0.01, abs=0.003)  # independent
    assert rates[0] < rates[1] < rates[2] < rates[3] < 0.1


def test_groups_fire_independently_of_each_other() -> None:
    data = superposition(2 * CORRELATED_GROUP, 4, 0.1, n_samples=20_000, correlated=0.9)
    assert together(data, 0, CORRELATED_GROUP) == pytest.approx(0.01, abs=0.003)


def test_firing_of_half_density_features_agrees_with_the_closed_form_of_the_copula() -> None:
    data = superposition(2, 2, 0.5, n_samples=40_000, correlated=0.6)
    assert together(data, 0, 1) == pytest.approx(1 / 4 + math.asin(0.6) / (2 * math.pi), abs=0.01)


def test_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    a, b, c = (superposition(16, 8, 0.1, n_samples=5000, correlated=0.5, noise=0.1, seed=seed) for seed in (3, 3, 4))
    for name in ("activations", "codes", "dictionary"):
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert not torch.equal(getattr(a, name), getattr(c, name))


def test_global_random_state_is_neither_read_nor_changed() -> None:
    before = torch.get_rng_state()
    data = superposition(16, 8, 0.1, n_samples=100)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(superposition(16, 8, 0.1, n_samples=100).activations, data.activations)


def test_an_untrained_sae_of_the_same_seed_knows_nothing_of_the_dictionary() -> None:
    data = superposition(32, 32, 0.1, n_samples=100, seed=0)
    assert matched_cosine_similarity(StandardSAE(32, 32, seed=0).W_dec, data.dictionary).mean < 0.6


def test_named_magnitudes_have_their_distributions() -> None:
    def drawn(magnitudes: str) -> torch.Tensor:
        data = superposition(8, 4, 0.5, n_samples=10_000, magnitudes=magnitudes)  # type: ignore[arg-type]
        return data.codes[data.codes > 0] / data.scale

    uniform, exponential, constant = drawn("uniform"), drawn("exponential"), drawn("constant")
    assert float(uniform.mean()) == pytest.approx(1 / 2, abs=0.01) and float(uniform.max()) <= 1 + 1e-6
    assert float(exponential.mean()) == pytest.approx(1, abs=0.02)
    assert float(exponential.std()) == pytest.approx(1, abs=0.03)
    assert torch.allclose(constant, torch.ones(()))


def test_magnitudes_may_be_a_function_of_shape_and_generator() -> None:
    data = superposition(8, 4, 0.5, n_samples=100, magnitudes=lambda shape, generator: torch.full(shape, 3.0))
    assert torch.allclose(data.codes[data.codes > 0] / data.scale, torch.tensor(3.0))
    with pytest.raises(TypeError, match="shape it was given"):
        superposition(8, 4, 0.5, n_samples=100, magnitudes=lambda shape, generator: torch.ones(2))
    with pytest.raises(TypeError, match="not float"):
        superposition(8, 4, 0.5, n_samples=100, magnitudes=lambda shape, generator: 1.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="at least 0"):
        superposition(8, 4, 0.5, n_samples=100, magnitudes=lambda shape, generator: -torch.ones(shape))


def test_noise_is_in_units_of_the_scaled_activations_and_part_of_their_mean_square() -> None:
    data = superposition(32, 16, 0.1, n_samples=10_000, noise=0.5)
    noise = data.activations - data.codes @ data.dictionary
    assert noise.std(dim=0).tolist() == pytest.approx([0.5] * 16, abs=0.02)
    assert mean_square(noise) == pytest.approx(0.5**2 * 16, rel=0.02)
    assert mean_square(data.activations) == pytest.approx(16, rel=1e-5)


def test_features_and_density_may_be_given_one_by_one_or_all_at_once() -> None:
    one = superposition(5, 3, 0.25, n_samples=50)
    each = superposition(5, 3, torch.full((5,), 0.25), n_samples=50)
    assert torch.equal(one.activations, each.activations) and one.density.tolist() == [0.25] * 5
    assert repr(one) == "SuperpositionData(n_samples=50, n_features=5, d_in=3, noise=0)"


def test_zipf_frequencies_fall_like_a_power_of_the_rank_and_keep_their_mean() -> None:
    data = superposition(50, 8, 0.02, zipf=1.0, n_samples=50_000)
    assert float(data.density.mean()) == pytest.approx(0.02)
    assert torch.allclose(data.density, data.density[0] / torch.arange(1, 51))
    measured = (data.codes > 0).double().mean(dim=0)
    error = (data.density * (1 - data.density) / 50_000).sqrt()
    assert ((measured - data.density).abs() <= 4.5 * error).all()
    assert torch.equal(
        superposition(5, 3, 0.25, n_samples=50, zipf=0).codes, superposition(5, 3, 0.25, n_samples=50).codes
    )


def test_a_child_is_on_only_where_its_parent_is_and_then_as_often_as_said() -> None:
    data = superposition(10, 4, 0.3, n_parents=2, children_per_parent=3, child_probability=0.4, n_samples=40_000)
    assert data.parents.tolist() == [-1, -1, 0, 0, 0, 1, 1, 1, -1, -1]
    assert data.density.tolist() == pytest.approx([0.3] * 2 + [0.12] * 6 + [0.3] * 2)
    on = data.codes > 0
    for child, parent in zip(range(2, 8), [0, 0, 0, 1, 1, 1], strict=True):
        assert not (on[:, child] & ~on[:, parent]).any()
        assert float(on[on[:, parent], child].double().mean()) == pytest.approx(0.4, abs=0.02)
    assert together(data, 2, 3) == pytest.approx(0.3 * 0.4**2, abs=0.005)  # siblings, given their parent, independent
    assert together(data, 2, 5) == pytest.approx(0.12**2, abs=0.005)
    assert torch.allclose(data.activations, data.codes @ data.dictionary, atol=1e-5)


def test_in_a_hierarchy_zipf_ranks_the_features_without_a_parent() -> None:
    data = superposition(8, 4, 0.1, zipf=1.0, n_parents=1, children_per_parent=3, child_probability=0.5)
    roots = data.density[[0, 4, 5, 6, 7]]
    assert torch.allclose(roots, roots[0] / torch.arange(1, 6)) and float(roots.mean()) == pytest.approx(0.1)
    assert torch.allclose(data.density[1:4], roots[0] / 2)


def test_without_parents_no_feature_has_one_and_the_other_knobs_change_nothing() -> None:
    plain = superposition(6, 4, 0.2, n_samples=100)
    assert plain.parents.tolist() == [-1] * 6
    other = superposition(6, 4, 0.2, n_samples=100, children_per_parent=9, child_probability=0.9)
    assert torch.equal(plain.activations, other.activations)


def test_wrong_arguments_get_a_sentence() -> None:
    for name in ("n_features", "d_in", "n_samples"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            superposition(**{"n_features": 4, "d_in": 2, "density": 0.5, "n_samples": 10, name: 0})  # type: ignore[arg-type]
    for density in (0.0, -0.1, 1.5, math.nan, torch.tensor([0.5, 0.5, 0.0, 0.5])):
        with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
            superposition(4, 2, density)
    with pytest.raises(ValueError, match=r"shape \(4,\).*not \(3,\)"):
        superposition(4, 2, torch.full((3,), 0.5))
    for value in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"correlated must lie in \[0, 1\)"):
            superposition(4, 2, 0.5, correlated=value)
        with pytest.raises(ValueError, match=r"noise must lie in \[0, 1\)"):
            superposition(4, 2, 0.5, noise=value)
    with pytest.raises(ValueError, match="uniform, exponential, constant.*not 'normal'"):
        superposition(4, 2, 0.5, magnitudes="normal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no feature is on in any of 1 samples"):
        superposition(4, 2, 1e-9, n_samples=1)
    with pytest.raises(ValueError, match="noise leaves no room"):
        for seed in range(20):  # a third of all single samples have more noise than its variance
            superposition(4, 1, 1.0, n_samples=1, noise=0.999, seed=seed)


def test_hierarchies_and_frequencies_that_cannot_be_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="3 parents with 2 children each are 9 features, but n_features is 8"):
        superposition(8, 4, 0.1, n_parents=3)
    with pytest.raises(ValueError, match="n_parents must be at least 0"):
        superposition(8, 4, 0.1, n_parents=-1)
    with pytest.raises(ValueError, match="children_per_parent must be at least 1"):
        superposition(8, 4, 0.1, n_parents=1, children_per_parent=0)
    for probability in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"child_probability must lie in \(0, 1\]"):
            superposition(8, 4, 0.1, n_parents=1, child_probability=probability)
    with pytest.raises(ValueError, match="correlated and n_parents cannot be combined"):
        superposition(8, 4, 0.1, n_parents=1, correlated=0.5)
    for zipf in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="zipf must be a finite number"):
            superposition(8, 4, 0.1, zipf=zipf)
    with pytest.raises(ValueError, match="feature 0 would be on with probability 1.47; lower one"):
        superposition(8, 4, 0.5, zipf=1.0)
    with pytest.raises(ValueError, match="give density as a number"):
        superposition(8, 4, torch.full((8,), 0.1), zipf=1.0)
