"""The losses and gradients are the paper's: d_in = d_sae = 1 and x = 2, so that each number can be found by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saelab import ARCHITECTURES, GatedSAE, SparseAutoencoder, StandardSAE
from saelab.autoencoders import Preset

X = torch.tensor([[2.0]], dtype=torch.float64)


def fill(sae: SparseAutoencoder, **values: float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(sae, name).fill_(value)


def gradients(sae: SparseAutoencoder) -> dict[str, float]:
    return {name: float(p.grad) for name, p in sae.named_parameters() if p.grad is not None}


def scalar_gated(preset: Preset = "paper") -> GatedSAE:
    sae = GatedSAE(1, 1, preset=preset, dtype=torch.float64)
    # u = 2, pi_gate = 1.5, pi_mag = 2 * 2 + 0.25 = 4.25
    fill(sae, W_enc=1, W_dec=1, b_dec=0, b_gate=-0.5, b_mag=0.25, r_mag=math.log(2))
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


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_gate_threshold_switches_codes_but_leaves_l1_and_auxiliary_alone(make: type[SparseAutoencoder]) -> None:
    sae, x = make(8, 32), torch.randn(64, 8)
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
    assert torch.equal(first.W_enc, first.W_dec.T)


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
    with pytest.raises(ValueError, match="width 5.*d_sae=4"):
        GatedSAE(4, 4).decode(torch.ones(2, 5))
