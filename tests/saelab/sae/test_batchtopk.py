"""BatchTopK: how a batch is shared out, and the threshold that stands for it at inference."""

from pathlib import Path

import pytest
import torch

import saelab
from saelab import BatchTopKSAE, JumpReLUSAE, Trainer, TrainingConfig
from saelab.sae import sparse


def example() -> BatchTopKSAE:
    """Pre-activations are the inputs themselves: two features along the two axes."""
    sae = BatchTopKSAE(2, 2, k=1)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(2))
        sae.W_enc.copy_(torch.eye(2))
    return sae


def test_a_batch_keeps_k_times_its_size_however_many_of_each_input() -> None:
    x = torch.tensor([[3.0, 2.0], [1.0, 0.5]])
    encoded = example().encode_for_loss(x)
    result = example().training_pass(x, {"auxk_coefficient": 0.0})
    assert encoded.entries.mean_sum(encoded.codes).item() == pytest.approx((3 + 2) / 2)  # both of the first input
    assert result.l0.item() == 1.0
    assert result.loss.reconstruction.item() == pytest.approx((1 + 0.25) / 2)
    negative = example().training_pass(-x, {"auxk_coefficient": 0.0})
    assert negative.l0.item() == 0  # what is not positive is never kept


def test_the_threshold_is_the_running_mean_of_the_smallest_that_was_kept() -> None:
    sae = example()
    x = torch.tensor([[3.0, 2.0], [1.0, 0.5]])
    sae.after_update(sae.training_pass(x, {"auxk_coefficient": 0.0}).observed)
    assert sae.threshold.item() == 2.0  # the first batch's own
    assert sae.encode(torch.tensor([[2.5, 2.0], [1.9, 4.0]])).tolist() == [[2.5, 0.0], [0.0, 4.0]]
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2) * 2)
    sae.after_update(sae.training_pass(x, {"auxk_coefficient": 0.0}).observed)
    assert sae.threshold.item() == pytest.approx(0.99 * 2.0 + 0.01 * 4.0)


def test_the_sparse_step_is_the_dense_one() -> None:
    x = torch.randn(32, 8)
    found = []
    for limit in (1.0, -1.0):
        sae = BatchTopKSAE(8, 64, k=3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse, "dense_above", lambda x, W_enc, limit=limit: limit)
            result = sae.training_pass(x, {"auxk_coefficient": 1.0})
        torch.autograd.backward(result.loss.total)
        assert result.l0.item() == 3.0
        found.append([result.loss.total, *(p.grad for p in sae.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.allclose(one, other, atol=1e-6)


def test_after_training_inference_keeps_about_k_features_and_says_the_same_for_one_input_as_for_many(
    tmp_path: Path,
) -> None:
    x = saelab.superposition(64, 32, 0.05, n_samples=4096).activations
    sae = BatchTopKSAE(32, 128, k=5)
    config = TrainingConfig(n_steps=600, batch_size=256, lr=3e-3, lr_decay_steps=200, dead_after_steps=50)
    trainer = Trainer(sae, x, config, folder=tmp_path / "run").run(progress=False)
    metrics = saelab.evaluate(sae, x)
    assert 4 < metrics.l0 < 6 and metrics.fvu < 0.15
    alone = torch.cat([sae.encode(row[None]) for row in x[:64]])
    assert torch.allclose(alone, sae.encode(x[:64]), atol=1e-5)
    resumed = Trainer.resume(tmp_path / "run", x).sae
    assert isinstance(resumed, BatchTopKSAE) and torch.equal(resumed.threshold, sae.threshold)
    assert trainer.history["l0"].max() <= 5


def test_it_is_written_for_sae_lens_as_the_jumprelu_sae_with_the_same_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = BatchTopKSAE(8, 32, k=5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(std=0.5)
        sae.normalize_decoder()
        sae.threshold.fill_(0.4)
    x = torch.randn(50, 8)
    lens = saelab.load(saelab.export(sae, tmp_path / "lens", "sae_lens", scale=2.0))
    assert isinstance(lens, JumpReLUSAE) and torch.allclose(lens.encode(x / 2), sae.encode(x), atol=1e-5)
    learning = saelab.load(saelab.export(sae, tmp_path / "learning", "dictionary_learning"))
    assert isinstance(learning, BatchTopKSAE) and learning.k == 5 and learning.threshold.item() == pytest.approx(0.4)
    assert torch.allclose(learning.encode(x), sae.encode(x), atol=1e-5)
    with pytest.raises(TypeError, match="a BatchTopK SAE has no gate threshold"):
        saelab.threshold_curves(sae, x, [0.0])
