"""TopK: which features are kept, what the loss and its gradients are, how dead features come back."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import saelab
from saelab import Moment, TopKSAE, Trainer, TrainingConfig
from saelab.sae import sparse


def example() -> TopKSAE:
    """Two dimensions, three features of unit norm along (1, 0), (0, 1) and (-1, 0); the encoder is the same."""
    sae = TopKSAE(2, 3, k=1)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
    return sae


def test_the_largest_pre_activations_are_kept_and_the_rest_are_zero() -> None:
    sae = example()
    x = torch.tensor([[2.0, 1.0], [1.0, 0.75], [-3.0, -4.0], [0.0, -1.0]])
    # pi: (2, 1.5, -2), (1, 1.25, -1), (-3, -3.5, 3), (0, -0.5, 0)
    assert sae.encode(x).tolist() == [[2, 0, 0], [0, 1.25, 0], [0, 0, 3], [0, 0, 0]]
    sae.k = 2
    assert sae.encode(x).tolist() == [[2, 1.5, 0], [1, 1.25, 0], [0, 0, 3], [0, 0, 0]]


def test_loss_and_gradients_are_those_computed_by_hand() -> None:
    sae = example()
    x = torch.tensor([[2.0, 1.0], [1.0, 0.75]])
    loss = sae.loss(x)
    # Codes 2 of feature 0, 1.25 of feature 1; reconstructions (2, 0) and (0, 1.25); r - x is (0, -1) and (-1, 0.5).
    assert loss.reconstruction.item() == pytest.approx((1 + 1.25) / 2)
    assert loss.terms["auxk"].item() == 0 and loss.total.item() == loss.reconstruction.item()
    torch.autograd.backward(loss.total)
    # d loss / d reconstruction = r - x (2 / 2 rows); d / d code = (r - x) . row: 0 for feature 0, 0.5 for feature 1.
    assert sae.W_dec.grad is not None and sae.W_enc.grad is not None
    assert sae.b_enc.grad is not None and sae.b_dec.grad is not None
    assert torch.allclose(sae.W_dec.grad, torch.tensor([[0.0, -2.0], [-1.25, 0.625], [0.0, 0.0]]))
    assert torch.allclose(sae.W_enc.grad, torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.375, 0.0]]))
    assert torch.allclose(sae.b_enc.grad, torch.tensor([0.0, 0.5, 0.0]))
    # Through the decoder (0, -1) + (-1, 0.5); through the encoder's input -(W_enc @ (0, 0.5, 0)).
    assert torch.allclose(sae.b_dec.grad, torch.tensor([-1.0, -0.5 - 0.5]))


def test_dead_features_learn_to_reconstruct_what_the_others_miss() -> None:
    sae = example()
    x = torch.tensor([[2.0, 1.0]])
    dead = torch.tensor([False, True, False])
    loss = sae.loss(x, moment=Moment(step=5, n_steps=10, dead=dead), auxk_coefficient=0.5)
    # The residual is x - (2, 0) = (0, 1); feature 1 reconstructs it by (0, 1.5): an error of 0.5^2.
    assert loss.terms["auxk"].item() == pytest.approx(0.25)
    assert loss.total.item() == pytest.approx(1 + 0.5 * 0.25)
    (of_aux,) = torch.autograd.grad(loss.terms["auxk"], sae.b_enc, retain_graph=True)
    assert of_aux.tolist() == [0, 1, 0]  # 2 * (1.5 - 1): of the dead feature alone, the residual being a constant
    assert sae.loss(x, moment=Moment(dead=torch.zeros(3, dtype=torch.bool))).terms["auxk"].item() == 0


@given(st.integers(1, 20), st.integers(0, 3))
def test_the_sparse_step_is_the_dense_one(k: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(32, 8)
    found = []
    for limit in (1.0, -1.0):
        sae = TopKSAE(8, 64, k=k, seed=seed)
        with torch.no_grad():
            sae.b_dec.copy_(torch.linspace(-0.1, 0.1, 8))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse, "dense_above", lambda x, W_enc, limit=limit: limit)
            result = sae.training_pass(x, {"auxk_coefficient": 1.0}, Moment(dead=torch.arange(64) > 50))
        torch.autograd.backward(result.loss.total)
        found.append((result.loss.total, result.l0, result.fired, *(p.grad for p in sae.parameters())))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-6)


def test_k_acts_at_once_and_is_a_whole_number_up_to_d_sae() -> None:
    x = saelab.superposition(32, 16, 0.1, n_samples=512).activations
    trainer = Trainer(TopKSAE(16, 64), x, TrainingConfig(n_steps=10, batch_size=64), k=4)
    assert trainer.step().l0 <= 4 and trainer.k == 4
    trainer.k = 9
    assert 4 < trainer.step().l0 <= 9
    for wrong in (0, 2.5, float("nan")):
        with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
            trainer.k = wrong
    with pytest.raises(ValueError, match="k must lie between 1 and d_sae=64"):
        TopKSAE(16, 64, k=65)


def test_training_reconstructs_with_k_features_and_leaves_few_dead() -> None:
    x = saelab.superposition(64, 32, 0.05, n_samples=4096).activations
    sae = TopKSAE(32, 128, k=6)
    config = TrainingConfig(n_steps=600, batch_size=256, lr=3e-3, dead_after_steps=50)
    trainer = Trainer(sae, x, config).run(progress=False)
    metrics = saelab.evaluate(sae, x)
    assert metrics.fvu < 0.1 and metrics.l0 <= 6
    assert not trainer.history["n_resampled"].any()  # its loss revives them
    assert trainer.history["auxk"].any() and metrics.n_dead < 64


def test_its_file_and_a_folder_of_either_library_bring_back_the_same_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = TopKSAE(8, 32, k=5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(std=0.5)
        sae.normalize_decoder()
    x = torch.randn(50, 8)
    loaded = saelab.load(saelab.save(sae, tmp_path / "sae.safetensors"))
    assert isinstance(loaded, TopKSAE) and loaded.k == 5 and torch.equal(loaded.encode(x), sae.encode(x))
    for library in ("sae_lens", "dictionary_learning"):
        folder = saelab.export(sae, tmp_path / library, library, scale=2.0)
        back = saelab.load(folder)
        assert isinstance(back, TopKSAE) and back.k == 5
        assert torch.allclose(back.encode(x / 2), sae.encode(x), atol=1e-5)
        assert torch.allclose(back(x / 2), sae(x) / 2, atol=1e-5)
