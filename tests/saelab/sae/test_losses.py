"""The losses and gradients are the paper's: d_in = d_sae = 1 and x = 2, so that each number can be found by hand."""

import math

import pytest
import torch

from saelab import GatedSAE, RescaleShiftSAE, SAELoss, SparseAutoencoder, StandardSAE
from saelab.sae.base import Preset
from saelab.sae.gated import Ablation

X = torch.tensor([[2.0]], dtype=torch.float64)


def fill(sae: SparseAutoencoder, **values: float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(sae, name).fill_(value)


def gradients(sae: SparseAutoencoder) -> dict[str, float]:
    return {name: float(p.grad) for name, p in sae.named_parameters() if p.grad is not None}


def numbers(loss: SAELoss) -> list[float]:
    """The total, the reconstruction error, and the other terms in their order."""
    return [term.item() for term in (loss.total, loss.reconstruction, *loss.terms.values())]


def scalar_gated(preset: Preset = "paper", *ablations: Ablation) -> GatedSAE:
    sae = GatedSAE(1, 1, preset=preset, ablations=ablations, dtype=torch.float64)
    # u = 2, pi_gate = 1.5, pi_mag = 2 * 2 + 0.25 = 4.25, by r_mag or by W_mag
    fill(sae, W_enc=1, W_dec=1, b_dec=0, b_gate=-0.5, b_mag=0.25)
    if "r_mag" in sae.feature_parameters:
        fill(sae, r_mag=math.log(2))
    if "untied_encoders" in ablations:
        fill(sae, W_mag=2)
    return sae


def test_standard_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = StandardSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_dec=0, b_enc=-0.5)
    loss = sae.loss(X, l1_coefficient=3)
    assert numbers(loss) == pytest.approx([4.75, 0.25, 1.5]) and list(loss.terms) == ["sparsity"]
    torch.autograd.backward(loss.total)
    # dr = -2 (2 - 1.5) = -1; dpi = dr + 3 = 2
    assert gradients(sae) == pytest.approx({"W_dec": -1.5, "W_enc": 4.0, "b_dec": -1.0 - 2.0, "b_enc": 2.0})


def test_gated_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = scalar_gated()
    loss = sae.loss(X, l1_coefficient=3, aux_coefficient=0.5)
    assert numbers(loss) == pytest.approx([9.6875, 2.25**2, 1.5, 0.25])
    assert list(loss.terms) == ["sparsity", "auxiliary"]
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
    assert numbers(loss) == pytest.approx([42.25 + 9 + 0.5, 42.25, 3.0, 1.0])
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
    assert numbers(loss) == pytest.approx(terms)
    torch.autograd.backward(loss.total)
    assert gradients(sae) == pytest.approx(expected)


def test_rescale_and_shift_learns_its_two_vectors_from_the_reconstruction_alone() -> None:
    sae = RescaleShiftSAE(1, 1, dtype=torch.float64)
    fill(sae, W_enc=1, W_dec=1, b_enc=-0.5, r_mag=math.log(2), b_mag=0.25)
    loss = sae.loss(X)
    # pi = 1.5, code = 2 * 1.5 + 0.25, dr = 2 (3.25 - 2)
    assert loss.total.item() == loss.reconstruction.item() == pytest.approx(1.25**2) and loss.terms == {}
    torch.autograd.backward(loss.total)
    assert gradients(sae) == pytest.approx({"b_mag": 2.5, "r_mag": 2.5 * 3})


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


def test_coefficients_that_are_not_given_have_the_architectures_defaults_and_a_wrong_name_is_refused() -> None:
    sae = scalar_gated()
    assert numbers(sae.loss(X)) == numbers(sae.loss(X, l1_coefficient=4, aux_coefficient=1))
    with pytest.raises(TypeError, match="a gated SAE has no l1_coeficient; it has l1_coefficient, aux_coefficient"):
        sae.loss(X, l1_coeficient=3)
    with pytest.raises(TypeError, match="a standard SAE has no aux_coefficient; it has l1_coefficient"):
        StandardSAE(1, 1, dtype=torch.float64).loss(X, aux_coefficient=1)
    with pytest.raises(TypeError, match="a rescale and shift SAE has no l1_coefficient; it has none"):
        RescaleShiftSAE(1, 1, dtype=torch.float64).loss(X, l1_coefficient=3)
