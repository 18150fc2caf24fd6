import pytest
import torch

from saelab import GatedSAE, RescaleShiftSAE, StandardSAE, Trainer, TrainingConfig, evaluate, superposition


def test_rescale_and_shift_cures_the_shrinkage_of_a_trained_sae_and_changes_nothing_else() -> None:
    x = superposition(32, 16, 0.05, n_samples=4096).activations
    config = TrainingConfig(n_steps=600, batch_size=256, lr=3e-3)
    standard = StandardSAE(16, 32)
    Trainer(standard, x, config, l1_coefficient=2).run(progress=False)
    sae = RescaleShiftSAE.from_standard(standard)
    assert torch.equal(sae.encode(x), standard.encode(x))
    Trainer(sae, x, config).run(progress=False)
    assert evaluate(standard, x).gamma < 0.95
    assert evaluate(sae, x).gamma == pytest.approx(1, abs=0.01)
    for name, weight in standard.named_parameters():
        assert torch.equal(sae.get_parameter(name), weight)
    with pytest.raises(TypeError, match="a StandardSAE, not a GatedSAE"):
        RescaleShiftSAE.from_standard(GatedSAE(4, 4))  # type: ignore[arg-type]
