"""Curves over gate thresholds are what evaluating at each of them gives."""

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import (
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    StandardSAE,
    evaluate,
    threshold_curves,
)
from saelab.sae.thresholds import with_thresholds

TIED = {
    "standard": lambda dtype: StandardSAE(6, 20, dtype=dtype),
    "gated": lambda dtype: GatedSAE(6, 20, dtype=dtype),
    "gated, norm-weighted": lambda dtype: GatedSAE(6, 20, preset="norm_weighted", dtype=dtype),
    "gated, no r_mag": lambda dtype: GatedSAE(6, 20, ablations=["no_r_mag"], dtype=dtype),
    "rescale-and-shift": lambda dtype: RescaleShiftSAE(6, 20, dtype=dtype),
    "jumprelu": lambda dtype: JumpReLUSAE(6, 20, dtype=dtype),
}
ALL: dict[str, Callable[[torch.dtype], ElementwiseSAE]] = {
    **TIED,
    "gated, untied": lambda dtype: GatedSAE(6, 20, ablations=["untied_encoders"], dtype=dtype),
}


def random_sae(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> ElementwiseSAE:
    sae = ALL[name](dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return sae


def inputs(seed: int = 0, n: int = 40, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (1 + torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))).to(dtype)


def evaluated(sae: ElementwiseSAE, x: torch.Tensor, thresholds: Sequence[float]) -> list[list[float]]:
    rows = []
    for threshold in thresholds:
        sae.gate_threshold = threshold
        metrics = evaluate(sae, x)
        rows.append([threshold, metrics.l0, metrics.gamma, metrics.fvu])
    return rows


@pytest.mark.parametrize("name", TIED)
def test_the_magnitude_is_relu_of_its_line_in_the_gates_pre_activation(name: str) -> None:
    sae, x = random_sae(name), inputs()
    slope, shift = sae.magnitude_line()
    pi_gate = sae.gate(sae.project(x))
    codes = (pi_gate > 0) * (slope * pi_gate + shift).relu()
    torch.testing.assert_close(codes, sae.encode(x), rtol=1e-12, atol=1e-12)
    assert slope.shape == shift.shape == (20,)
    assert not slope.requires_grad and not shift.requires_grad


@pytest.mark.parametrize("name", TIED)
def test_a_magnitude_line_is_a_copy(name: str) -> None:
    sae = random_sae(name)
    before = copy.deepcopy(sae.state_dict())
    for part in sae.magnitude_line():
        part.add_(1)
    assert all(torch.equal(sae.state_dict()[key], value) for key, value in before.items())


def test_untied_encoders_have_no_magnitude_line() -> None:
    with pytest.raises(ValueError, match="untied encoders cannot have its magnitude written as a line"):
        random_sae("gated, untied").magnitude_line()


@given(
    name=st.sampled_from(sorted(ALL)),
    seed=st.integers(0, 1000),
    thresholds=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
)
@settings(max_examples=40)
def test_curves_are_what_evaluate_says_at_each_threshold(name: str, seed: int, thresholds: list[float]) -> None:
    sae, x = random_sae(name, seed), inputs(seed)
    curves = threshold_curves(sae, x, thresholds)
    assert list(curves.columns) == ["threshold", "l0", "gamma", "fvu"]
    assert sae.gate_threshold == 0
    expected = torch.tensor(evaluated(sae, x, thresholds), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(curves.to_numpy()), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_curves_in_float32_agree_to_six_digits_also_where_rows_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelab.sae.thresholds.BATCH", 7)
    thresholds = [round(-1 + 0.05 * i, 2) for i in range(60)]
    sae, x = random_sae("gated", dtype=torch.float32), inputs(dtype=torch.float32)
    curves = threshold_curves(sae, x, thresholds)
    expected = torch.tensor(evaluated(sae, x, thresholds), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(curves.to_numpy()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("natural", [0.3, 1.0])
@pytest.mark.parametrize("ablations", [(), ("no_r_mag",)])
def test_natural_moves_b_mag_towards_the_natural_one(natural: float, ablations: tuple[str, ...]) -> None:
    sae, x = random_sae("gated, no r_mag" if ablations else "gated"), inputs()
    assert isinstance(sae, GatedSAE)
    thresholds = [-1.0, 0.0, 0.5]
    curves = threshold_curves(sae, x, thresholds, natural=natural)
    moved = copy.deepcopy(sae)
    with torch.no_grad():
        moved.b_mag.lerp_(sae.with_natural_b_mag().b_mag, natural)
    expected = torch.tensor(evaluated(moved, x, thresholds), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(curves.to_numpy()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TIED)
def test_a_copy_with_thresholds_has_the_codes_of_its_moved_line_and_gates(name: str) -> None:
    sae, x = random_sae(name), inputs()
    before = copy.deepcopy(sae.state_dict())
    moved = with_thresholds(sae, gate_threshold=0.2, natural=0.4, own_thresholds={3: 0.5, 7: -0.6})
    threshold = torch.full((20,), 0.2, dtype=torch.float64)
    threshold[3], threshold[7] = 0.7, -0.4
    pi_gate, (slope, shift) = sae.gate(sae.project(x)), sae.magnitude_line()
    codes = (pi_gate > threshold) * (slope * pi_gate + 0.6 * shift).relu()
    torch.testing.assert_close(moved.encode(x), codes, rtol=1e-12, atol=1e-12)
    assert 0 < int((codes[:, [3, 7]] > 0).sum()) < 80
    assert type(moved) is (JumpReLUSAE if name == "standard" else type(sae))
    assert all(torch.equal(sae.state_dict()[key], value) for key, value in before.items())


def test_a_threshold_that_nothing_reaches_leaves_the_decoders_bias_alone() -> None:
    sae, x = random_sae("gated"), inputs()
    row = threshold_curves(sae, x, [math.inf]).iloc[0]
    variance = float((x - x.mean(0)).square().sum(1).mean())
    assert row.l0 == 0
    assert row.fvu == pytest.approx(float((x - sae.b_dec.detach()).square().sum(1).mean()) / variance)


def test_the_same_inputs_throughout_have_no_fvu() -> None:
    curves = threshold_curves(random_sae("gated"), torch.ones(5, 6, dtype=torch.float64), [0.0, 1.0])
    assert curves.fvu.isna().all() and curves.l0.notna().all()


def test_wrong_arguments_are_refused_with_what_is_allowed() -> None:
    sae, x = random_sae("gated"), inputs()
    with pytest.raises(ValueError, match="between 0 .as learned. and 1"):
        threshold_curves(sae, x, [0.0], natural=1.1)
    with pytest.raises(ValueError, match="at least one number"):
        threshold_curves(sae, x, [])
    with pytest.raises(ValueError, match="none NaN"):
        threshold_curves(sae, x, [0.0, math.nan])
    with pytest.raises(ValueError, match="width 5"):
        threshold_curves(sae, x[:, :5], [0.0])
    with pytest.raises(ValueError, match="untied encoders"):
        threshold_curves(random_sae("gated, untied"), x, [0.0], natural=0.5)
