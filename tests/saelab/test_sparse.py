"""The sparse step is the dense step, in values and in gradients; a user cannot tell them apart but by the clock."""

import warnings
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import ARCHITECTURES, SAELoss, SparseAutoencoder, Trainer, TrainingConfig, sparse
from saelab.autoencoders import Preset

ALWAYS_SPARSE, ALWAYS_DENSE = 1.0, -1.0


def make_random(name: str, preset: Preset, seed: int, dtype: torch.dtype = torch.float64) -> SparseAutoencoder:
    """An SAE with every parameter random, so that no gradient vanishes by symmetry."""
    sae = ARCHITECTURES[name](12, 40, preset=preset, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return sae


def loss_and_gradients(
    sae: SparseAutoencoder, x: torch.Tensor, share: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[SAELoss, torch.Tensor, dict[str, torch.Tensor]]:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
    sae.zero_grad()
    result = sae.training_pass(x, l1_coefficient=0.7, aux_coefficient=0.4)
    torch.autograd.backward(result.loss.total)
    return result.loss, result.l0, {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.sampled_from(get_args(Preset)),
    st.sampled_from([-0.5, 0.0, 0.8]),
    st.integers(0, 1000),
)
def test_sparse_and_dense_steps_agree_in_every_loss_term_and_gradient(
    name: str, preset: Preset, threshold: float, seed: int
) -> None:
    sae = make_random(name, preset, seed)
    sae.gate_threshold = threshold
    x = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as monkeypatch:
        dense_loss, dense_l0, dense = loss_and_gradients(sae, x, ALWAYS_DENSE, monkeypatch)
        sparse_loss, sparse_l0, sparse_ = loss_and_gradients(sae, x, ALWAYS_SPARSE, monkeypatch)
    torch.testing.assert_close(sparse_loss, dense_loss, rtol=1e-10, atol=1e-12)
    assert sparse_l0 == dense_l0
    assert sparse_.keys() == dense.keys()
    for parameter in dense:
        torch.testing.assert_close(sparse_[parameter], dense[parameter], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
def test_gradient_with_respect_to_the_input_is_right(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
    sae, x = make_random(name, "paper", 5), torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sae.training_pass(x, l1_coefficient=0.7).loss.total, (x,))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_dense_path_has_the_gradients_of_plain_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one place where the dense path is not plain autograd is the reused encoder matmul."""
    sae, x = make_random(name, "paper", 3), torch.randn(9, 12, dtype=torch.float64)
    _, _, ours = loss_and_gradients(sae, x, ALWAYS_DENSE, monkeypatch)
    monkeypatch.setattr(
        "saelab.autoencoders.find_entries",
        lambda x, b_dec, W_enc, bias, floor: sparse.DenseEntries((x - b_dec) @ W_enc, x - b_dec),
    )
    _, _, plain = loss_and_gradients(sae, x, ALWAYS_DENSE, monkeypatch)
    for parameter in plain:
        torch.testing.assert_close(ours[parameter], plain[parameter], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
def test_a_batch_with_nothing_active_still_trains_the_decoder_bias(
    name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = ARCHITECTURES[name](12, 40)
    with torch.no_grad():
        dict(sae.named_parameters())["b_enc" if name == "standard" else "b_gate"].fill_(-1e3)
    loss, l0, gradients = loss_and_gradients(sae, torch.ones(5, 12), share, monkeypatch)
    assert l0 == 0 and loss.reconstruction.item() == pytest.approx(12)
    assert torch.allclose(gradients["b_dec"], torch.full((12,), -2.0))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_sparse_steps_run_in_float32_without_grad_and_under_autocast_and_print_no_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", ALWAYS_SPARSE)
    sae, x = make_random(name, "paper", 0, torch.float32), torch.randn(64, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = sae.training_pass(x, l1_coefficient=1).loss.total.item()
        with torch.no_grad():
            assert sae.training_pass(x, l1_coefficient=1).loss.total.item() == pytest.approx(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = sae.training_pass(x, l1_coefficient=1)
        torch.autograd.backward(mixed.loss.total)
        assert mixed.loss.total.item() == pytest.approx(plain, rel=0.05)


def test_an_sae_in_half_precision_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", ALWAYS_SPARSE)
    sae, x = make_random("gated", "paper", 0, torch.bfloat16), torch.randn(64, 12, dtype=torch.bfloat16)
    torch.autograd.backward(sae.training_pass(x, l1_coefficient=1).loss.total)
    assert sae.W_enc.grad is not None and sae.W_enc.grad.dtype == torch.bfloat16


def test_density_chooses_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W_enc = torch.randn(100, 12), torch.randn(12, 40)
    for bias, kind in ((-100.0, sparse.ActiveEntries), (100.0, sparse.DenseEntries)):
        found = sparse.find_entries(x, torch.zeros(12), W_enc, torch.full((40,), bias), floor=0.0)
        assert isinstance(found, kind)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_sparse_run_ends_where_a_dense_run_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(512, 12, dtype=torch.float64)
    ends = []
    for share in (ALWAYS_SPARSE, ALWAYS_DENSE):
        monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
        sae = ARCHITECTURES[name](12, 40, dtype=torch.float64)
        trainer = Trainer(sae, x, TrainingConfig(n_steps=60, batch_size=64, l1_coefficient=1)).run(progress=False)
        ends.append(trainer.records[-1].loss)
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
