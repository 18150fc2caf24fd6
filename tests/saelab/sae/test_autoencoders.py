"""The losses and gradients are the paper's: d_in = d_sae = 1 and x = 2, so that each number can be found by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saelab import (
    ARCHITECTURES,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    evaluate,
    superposition,
)
from saelab.sae.base import ENCODER_SCALE, Preset
from saelab.sae.gated import Ablation

X = torch.tensor([[2.0]], dtype=torch.float64)


def fill(sae: SparseAutoencoder, **values: float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(sae, name).fill_(value)


def gradients(sae: SparseAutoencoder) -> dict[str, float]:
    return {name: float(p.grad) for name, p in sae.named_parameters() if p.grad is not None}


def scalar_gated(preset: Preset = "paper", *ablations: Ablation) -> GatedSAE:
    sae = GatedSAE(1, 1, preset=preset, ablations=ablations, dtype=torch.float64)
    # u = 2, pi_gate = 1.5, pi_mag = 2 * 2 + 0.25 = 4.25, by r_mag or by W_mag
    fill(sae, W_enc=1, W_dec=1, b_dec=0, b_gate=-0.5, b_mag=0.25)
    if "r_mag" in sae.feature_parameters:
        fill(sae, r_mag=math.log(2))
    if "untied_encoders" in ablations:
        fill(sae, W_mag=2)
    return sae


def random_gated(seed: int, *ablations: Ablation) -> GatedSAE:
    sae = GatedSAE(6, 24, ablations=ablations, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae


def test_standard_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = StandardSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_dec=0, b_enc=-0.5)
    loss = sae.loss(X, l1_coefficient=3)
    assert [term.item() for term in loss] == pytest.approx([4.75, 0.25, 1.5, 0.0])
    torch.autograd.backward(loss.total)
    # dr = -2 (2 - 1.5) = -1; dpi = dr + 3 = 2
    assert gradients(sae) == pytest.approx({"W_dec": -1.5, "W_enc": 4.0, "b_dec": -1.0 - 2.0, "b_enc": 2.0})


def test_gated_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = scalar_gated()
    loss = sae.loss(X, l1_coefficient=3, aux_coefficient=0.5)
    assert [term.item() for term in loss] == pytest.approx([9.6875, 2.25**2, 1.5, 0.25])
    torch.autograd.backward(loss.total)
    # dr = -2 (2 - 4.25) = 4.5; dgate = 3 + 0.5 * -2 (2 - 1.5) = 2.5; du = 4.5 * 2 + 2.5 = 11.5
    assert gradients(sae) == pytest.approx(
        {
            "W_dec": 4.5 * 4.25,  # nothing from the auxiliary term: its decoder is frozen
            "W_enc": 11.5 * 2,
            "b_dec": 4.5 - 11.5,  # the auxiliary decode is frozen, the b_dec subtracted from the input is not
            "b_gate": 2.5,  # nothing from the reconstruction: the gate is a step
            "b_mag": 4.5,
            "r_mag": 4.5 * 4,
        }
    )


def test_norm_weighted_preset_weighs_l1_by_the_live_norm_and_does_not_freeze_the_decoder() -> None:
    sae = scalar_gated("norm_weighted")
    fill(sae, W_dec=2)
    loss = sae.loss(X, l1_coefficient=3, aux_coefficient=0.5)
    # r = 8.5, error 6.5^2; sparsity 1.5 * 2; auxiliary (2 - 3)^2
    assert [term.item() for term in loss] == pytest.approx([42.25 + 9 + 0.5, 42.25, 3.0, 1.0])
    torch.autograd.backward(loss.total)
    assert gradients(sae)["W_dec"] == pytest.approx(13 * 4.25 + 3 * 1.5 + 0.5 * 2 * 1.5)


@pytest.mark.parametrize(
    ("ablation", "terms", "expected"),
    [
        # The auxiliary decode, 0.5 (2 - 1.5 W_dec - b_dec)^2, now moves W_dec by -0.75 and b_dec by -0.5.
        (
            "unfrozen_decoder",
            [9.6875, 5.0625, 1.5, 0.25],
            {"W_dec": 19.125 - 0.75, "W_enc": 23, "b_dec": -7.5, "b_gate": 2.5, "b_mag": 4.5, "r_mag": 18},
        ),
        # pi_mag = 2.25, dr = 0.5, du = 0.5 + 2.5
        (
            "no_r_mag",
            [4.6875, 0.0625, 1.5, 0.25],
            {"W_dec": 1.125, "W_enc": 6, "b_dec": -2.5, "b_gate": 2.5, "b_mag": 0.5},
        ),
        # The reconstruction moves W_mag alone, L1 and auxiliary W_enc alone; both see the b_dec of the input.
        (
            "untied_encoders",
            [9.6875, 5.0625, 1.5, 0.25],
            {"W_dec": 19.125, "W_enc": 5, "W_mag": 9, "b_dec": -7, "b_gate": 2.5, "b_mag": 4.5},
        ),
        # dgate = 3, du = 9 + 3
        (
            "no_auxiliary",
            [9.5625, 5.0625, 1.5, 0],
            {"W_dec": 19.125, "W_enc": 24, "b_dec": -7.5, "b_gate": 3, "b_mag": 4.5, "r_mag": 18},
        ),
    ],
)
def test_each_ablation_has_the_loss_and_gradients_computed_by_hand(
    ablation: Ablation, terms: list[float], expected: dict[str, float]
) -> None:
    sae = scalar_gated("paper", ablation)
    loss = sae.loss(X, l1_coefficient=3, aux_coefficient=0.5)
    assert [term.item() for term in loss] == pytest.approx(terms)
    torch.autograd.backward(loss.total)
    assert gradients(sae) == pytest.approx(expected)


def test_rescale_and_shift_learns_its_two_vectors_from_the_reconstruction_alone() -> None:
    sae = RescaleShiftSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_enc=-0.5, r_mag=math.log(2), b_mag=0.25)
    loss = sae.loss(X, l1_coefficient=3)
    # pi = 1.5, code = 2 * 1.5 + 0.25, dr = 2 (3.25 - 2)
    assert loss.total.item() == loss.reconstruction.item() == pytest.approx(1.25**2)
    torch.autograd.backward(loss.total)
    assert gradients(sae) == pytest.approx({"b_mag": 2.5, "r_mag": 2.5 * 3})


def test_jumprelu_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = JumpReLUSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_enc=-0.5, threshold=1)
    loss = sae.loss(X, l1_coefficient=3)
    assert [term.item() for term in loss] == pytest.approx([4.75, 0.25, 1.5, 0.0])
    torch.autograd.backward(loss.total)
    assert gradients(sae) == pytest.approx({"W_dec": -1.5, "W_enc": 4.0, "b_dec": -3.0, "b_enc": 2.0})
    fill(sae, threshold=1.5)  # z = 1.5 does not exceed it
    assert sae.encode(X).item() == 0 and sae.loss(X, l1_coefficient=3).total.item() == 4


@given(st.integers(0, 1000), st.sampled_from([-0.5, 0.0, 0.7]), st.sampled_from([(), ("no_r_mag",)]))
def test_a_gated_sae_and_its_jumprelu_have_the_same_codes(
    seed: int, gate_threshold: float, ablations: tuple[Ablation, ...]
) -> None:
    sae = random_gated(seed, *ablations)
    sae.gate_threshold = gate_threshold
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    jumprelu = sae.to_jumprelu()
    assert 0 < int((jumprelu.threshold < 0).sum()) < sae.d_sae  # both kinds of threshold are met
    torch.testing.assert_close(jumprelu.encode(x), sae.encode(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jumprelu(x), sae(x), rtol=1e-10, atol=1e-12)


def test_natural_b_mag_leaves_a_rescaled_relu_and_the_original_alone() -> None:
    sae, x = random_gated(0), torch.randn(50, 6, dtype=torch.float64)
    before, natural = sae.b_mag.clone(), sae.with_natural_b_mag()
    expected = natural.gate(natural.project(x)).relu() * sae.r_mag.exp()
    torch.testing.assert_close(natural.encode(x), expected)
    assert torch.equal(sae.b_mag, before) and not torch.equal(natural.b_mag, before)


def test_untied_encoders_have_no_jumprelu_and_no_natural_b_mag() -> None:
    sae = random_gated(0, "untied_encoders")
    with pytest.raises(ValueError, match="untied encoders cannot be written as a JumpReLU"):
        sae.to_jumprelu()
    with pytest.raises(ValueError, match="untied encoders cannot be given a natural b_mag"):
        sae.with_natural_b_mag()


def test_rescale_and_shift_cures_the_shrinkage_of_a_trained_sae_and_changes_nothing_else() -> None:
    x = superposition(32, 16, 0.05, n_samples=4096).activations
    config = TrainingConfig(n_steps=600, batch_size=256, l1_coefficient=2, lr=3e-3)
    standard = StandardSAE(16, 32)
    Trainer(standard, x, config).run(progress=False)
    sae = RescaleShiftSAE.from_standard(standard)
    assert torch.equal(sae.encode(x), standard.encode(x))
    Trainer(sae, x, config).run(progress=False)
    assert evaluate(standard, x).gamma < 0.95
    assert evaluate(sae, x).gamma == pytest.approx(1, abs=0.01)
    for name, weight in standard.named_parameters():
        assert torch.equal(sae.get_parameter(name), weight)
    with pytest.raises(TypeError, match="a StandardSAE, not a GatedSAE"):
        RescaleShiftSAE.from_standard(GatedSAE(4, 4))  # type: ignore[arg-type]


def test_gate_bias_gets_exactly_no_gradient_from_reconstruction_alone() -> None:
    # Adam divides by the gradient's size: rounding noise here would move the gate as fast as a true gradient.
    sae = GatedSAE(16, 64)
    torch.autograd.backward(sae.loss(torch.randn(32, 16), l1_coefficient=0, aux_coefficient=0).total)
    assert sae.b_gate.grad is None or not sae.b_gate.grad.any()


def test_one_feature_under_l1_of_one_reconstructs_half_of_its_input() -> None:
    """The shrinkage example of the paper's figure 2: minimise (1 - f)^2 + f over the code f of x = 1."""
    sae = StandardSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_enc=0)
    optimizer = torch.optim.SGD([sae.b_enc], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(sae.loss(torch.ones(1, 1, dtype=torch.float64), l1_coefficient=1).total)
        optimizer.step()
    assert sae(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("make", [StandardSAE, GatedSAE, RescaleShiftSAE])
def test_gate_threshold_switches_codes_but_leaves_l1_and_auxiliary_alone(make: type[SparseAutoencoder]) -> None:
    sae, x = make(8, 32), torch.randn(64, 8)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
    before, loss = sae.encode(x), sae.loss(x, l1_coefficient=1)
    sae.gate_threshold = 0.7
    after = sae.encode(x)
    gate = sae.gate(sae.project(x))
    assert torch.equal(after, before * (gate > 0.7))
    assert 0 < int((after > 0).sum()) < int((before > 0).sum())
    raised = sae.loss(x, l1_coefficient=1)
    assert raised.reconstruction.item() != loss.reconstruction.item()
    assert (raised.sparsity, raised.auxiliary) == (loss.sparsity, loss.auxiliary)


@pytest.mark.parametrize("make", ARCHITECTURES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_decode_of_encode_for_any_leading_shape(make: type[SparseAutoencoder], dtype: torch.dtype) -> None:
    sae, x = make(8, 32, dtype=dtype), torch.randn(3, 5, 8, dtype=dtype)
    codes = sae.encode(x)
    assert codes.shape == (3, 5, 32) and codes.dtype == dtype and bool((codes >= 0).all())
    assert torch.equal(sae(x), sae.decode(codes))


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_same_seed_gives_the_same_unit_norm_dictionary(make: type[SparseAutoencoder]) -> None:
    first, second, other = make(8, 32, seed=1), make(8, 32, seed=1), make(8, 32, seed=2)
    assert torch.equal(first.W_dec, second.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(first.W_enc, ENCODER_SCALE * first.W_dec.T)


@given(st.integers(0, 1000))
def test_projected_gradient_does_not_change_any_row_norm(seed: int) -> None:
    sae = StandardSAE(5, 7, seed=seed, dtype=torch.float64)
    sae.W_dec.grad = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sae.project_decoder_gradient()
    assert torch.allclose((sae.W_dec.grad * sae.W_dec).sum(dim=1), torch.zeros(7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("make", ARCHITECTURES.values())
@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (torch.randn(4, 9), ValueError, "width 9.*d_in=8"),
        (torch.empty(0, 8), ValueError, "empty"),
        (torch.tensor(3.0), ValueError, "empty"),
        (torch.full((4, 8), float("nan")), ValueError, "32 NaN or infinite"),
        (torch.ones(4, 8, dtype=torch.long), TypeError, "floating-point.*int64"),
    ],
)
def test_wrong_activations_get_a_sentence(
    make: type[SparseAutoencoder], x: Tensor, error: type[Exception], sentence: str
) -> None:
    sae = make(8, 32)
    with pytest.raises(error, match=sentence):
        sae.encode(x)
    with pytest.raises(error, match=sentence):
        sae.loss(x, l1_coefficient=1)


def test_wrong_sizes_presets_and_codes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GatedSAE(0, 4)
    with pytest.raises(ValueError, match="paper, norm_weighted.*'mixed'"):
        GatedSAE(4, 4, preset="mixed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="collection of unfrozen_decoder, no_r_mag.*'no_aux'"):
        GatedSAE(4, 4, ablations=["no_aux"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="collection of"):
        GatedSAE(4, 4, ablations="no_r_mag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="those of preset 'paper'"):
        GatedSAE(4, 4, preset="norm_weighted", ablations=["no_r_mag"])
    with pytest.raises(ValueError, match="width 5.*d_sae=4"):
        GatedSAE(4, 4).decode(torch.ones(2, 5))


def test_device_auto_takes_what_the_machine_has() -> None:
    expected = torch.accelerator.current_accelerator() or torch.device("cpu")
    assert GatedSAE(4, 4, device="auto").W_enc.device.type == expected.type
