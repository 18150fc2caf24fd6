import pytest
import torch

from saelab import ARCHITECTURES, GatedSAE, SparseAutoencoder, StandardSAE, Trainer, TrainingConfig, evaluate
from saelab.autoencoders import Preset
from saelab.training import NonFiniteLossError


def planted(n: int = 4096, d_in: int = 16, n_features: int = 32) -> torch.Tensor:
    """Sparse non-negative combinations of unit directions, scaled to E||x||^2 = d_in."""
    directions = torch.nn.functional.normalize(torch.randn(n_features, d_in), dim=1)
    x = (torch.rand(n, n_features) * (torch.rand(n, n_features) < 0.06)) @ directions
    return x * (d_in / x.square().sum(dim=1).mean()).sqrt()


def config(**values: float) -> TrainingConfig:
    return TrainingConfig(**{"n_steps": 200, "batch_size": 256, "lr": 3e-3, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_training_reconstructs_and_a_higher_l1_penalty_gives_fewer_features(make: type[SparseAutoencoder]) -> None:
    x = planted()
    weak, strong = make(16, 64), make(16, 64)
    Trainer(weak, x, config(l1_coefficient=0.3)).run(progress=False)
    Trainer(strong, x, config(l1_coefficient=3)).run(progress=False)
    assert evaluate(weak, x).fvu < 0.1
    assert evaluate(strong, x).l0 < 0.6 * evaluate(weak, x).l0


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_same_seed_trains_to_the_same_weights_and_an_interrupted_run_goes_on_where_it_was(
    make: type[SparseAutoencoder],
) -> None:
    x = planted()
    whole, parts = make(16, 64), make(16, 64)
    Trainer(whole, x, config(n_steps=30)).run(progress=False)
    trainer = Trainer(parts, x, config(n_steps=30))
    for record in trainer:
        if record.step == 13:
            break
    trainer.run(progress=False)
    assert trainer.n_steps_done == 30
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name])


def test_paper_preset_keeps_decoder_rows_at_unit_norm_and_the_other_lets_them_go() -> None:
    x = planted()
    presets: dict[Preset, bool] = {"paper": True, "norm_weighted": False}
    for preset, kept in presets.items():
        sae = GatedSAE(16, 64, preset=preset)
        Trainer(sae, x, config(n_steps=20)).run(progress=False)
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(64), atol=1e-6) == kept


def test_callers_activations_are_never_changed() -> None:
    x = planted()
    before = x.clone()
    Trainer(StandardSAE(16, 64), x, config(n_steps=5)).run(progress=False)
    assert torch.equal(x, before)


def test_knobs_turned_between_steps_act_on_the_next_and_are_recorded() -> None:
    sae = GatedSAE(16, 64)
    trainer = Trainer(sae, planted(), config(l1_warmup_steps=0, lr_warmup_steps=0, aux_coefficient=1))
    trainer.step()
    trainer.l1_coefficient, trainer.aux_coefficient, trainer.lr, trainer.gate_threshold = 7.0, 0.5, 1e-4, 0.25
    record = trainer.step()
    assert (record.l1_coefficient, record.aux_coefficient, record.lr, record.gate_threshold) == (7.0, 0.5, 1e-4, 0.25)
    assert sae.gate_threshold == 0.25
    assert record.loss == pytest.approx(record.reconstruction + 7 * record.sparsity + 0.5 * record.auxiliary, rel=1e-5)
    frame = trainer.history_frame()
    assert list(frame.step) == [1, 2] and list(frame.l1_coefficient) == [4.0, 7.0]
    assert trainer.history["lr"].tolist() == [3e-3, 1e-4]


def test_learning_rate_and_l1_warm_up_and_decay_follow_the_config() -> None:
    schedule = config(n_steps=10, lr=1.0, lr_warmup_steps=4, l1_warmup_steps=2, lr_decay_steps=5, l1_coefficient=8)
    trainer = Trainer(StandardSAE(16, 64), planted(), schedule).run(progress=False)
    assert trainer.history["lr"] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert trainer.history["l1_coefficient"][:3] == pytest.approx([4, 8, 8])


def test_every_activation_is_drawn_once_an_epoch() -> None:
    x = torch.arange(12.0).repeat_interleave(2).reshape(12, 2)
    trainer = Trainer(StandardSAE(2, 4), x, config(batch_size=4))
    drawn = torch.cat([trainer._next_batch() for _ in range(3)])
    assert sorted(drawn[:, 0].tolist()) == list(range(12))


def test_a_batch_larger_than_the_data_still_trains() -> None:
    trainer = Trainer(StandardSAE(16, 64), planted(n=10), config(batch_size=32, n_steps=2)).run(progress=False)
    assert trainer.n_steps_done == 2


def test_non_finite_loss_stops_with_step_and_knobs_and_keeps_the_weights() -> None:
    sae = StandardSAE(16, 64)
    trainer = Trainer(sae, planted(), config())
    trainer.step()
    trainer.l1_coefficient = float("inf")
    before = {name: weight.clone() for name, weight in sae.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 2 with l1_coefficient=inf.*lr="):
        trainer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in sae.state_dict().items())
    assert trainer.n_steps_done == 1


def test_wrong_activations_and_config_get_a_sentence() -> None:
    sae = StandardSAE(16, 64)
    with pytest.raises(ValueError, match="width 8.*d_in=16"):
        Trainer(sae, torch.randn(10, 8))
    with pytest.raises(ValueError, match="empty"):
        Trainer(sae, torch.empty(0, 16))
    with pytest.raises(ValueError, match="NaN"):
        Trainer(sae, torch.full((10, 16), float("nan")))
    with pytest.raises(ValueError, match=r"x.flatten\(0, -2\)"):
        Trainer(sae, torch.randn(2, 5, 16))
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        TrainingConfig(n_steps=0)
    with pytest.raises(ValueError, match="lr must be a finite number"):
        TrainingConfig(lr=float("nan"))
