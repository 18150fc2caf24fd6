from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab import (
    ARCHITECTURES,
    GatedSAE,
    NonFiniteLossError,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    evaluate,
    resample_dead_features,
)
from saelab.sae.base import Preset
from saelab.sae.gated import Ablation
from saelab.training.resampling import ENCODER_SHARE


def planted(n: int = 4096, d_in: int = 16, n_features: int = 32) -> torch.Tensor:
    """Sparse non-negative combinations of unit directions, scaled to E||x||^2 = d_in."""
    directions = torch.nn.functional.normalize(torch.randn(n_features, d_in), dim=1)
    x = (torch.rand(n, n_features) * (torch.rand(n, n_features) < 0.06)) @ directions
    return x * (d_in / x.square().sum(dim=1).mean()).sqrt()


def config(**values: float) -> TrainingConfig:
    return TrainingConfig(**{"n_steps": 200, "batch_size": 256, "lr": 3e-3, **values})  # type: ignore[arg-type]


def sparsity(sae: SparseAutoencoder, *, strong: bool) -> dict[str, Any]:
    """The knob that trades sparsity for reconstruction: a penalty, or the number of features that are kept."""
    assert sae.sparsity_knob is not None
    weak_and_strong = (12, 3) if sae.sparsity_knob.is_whole else (0.1, 3.0)
    return {sae.sparsity_knob.name: weak_and_strong[strong]}


@pytest.mark.parametrize("make", [make for make in ARCHITECTURES.values() if make.trains_from_scratch])
def test_training_reconstructs_and_a_higher_penalty_gives_fewer_features(make: type[SparseAutoencoder]) -> None:
    x = planted()
    weak, strong = make(16, 64), make(16, 64)
    Trainer(weak, x, config(n_steps=600), **sparsity(weak, strong=False)).run(progress=False)
    Trainer(strong, x, config(n_steps=600), **sparsity(strong, strong=True)).run(progress=False)
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
    trainer = Trainer(sae, planted(), config(sparsity_warmup_steps=0, lr_warmup_steps=0), aux_coefficient=1)
    trainer.step()
    trainer.l1_coefficient, trainer.aux_coefficient, trainer.lr, trainer.gate_threshold = 7.0, 0.5, 1e-4, 0.25
    record = trainer.step()
    assert record.coefficients == {"l1_coefficient": 7.0, "aux_coefficient": 0.5}
    assert record.settings == {"gate_threshold": 0.25} and record.lr == 1e-4
    assert trainer.knobs == {"l1_coefficient": 7.0, "aux_coefficient": 0.5, "gate_threshold": 0.25, "lr": 1e-4}
    assert sae.gate_threshold == 0.25
    terms = record.terms
    assert record.loss == pytest.approx(
        record.reconstruction + 7 * terms["sparsity"] + 0.5 * terms["auxiliary"], rel=1e-5
    )
    frame = trainer.history_frame()
    assert list(frame.step) == [1, 2] and list(frame.l1_coefficient) == [4.0, 7.0]
    assert trainer.history["lr"].tolist() == [3e-3, 1e-4]


def test_a_records_flat_row_has_every_number_by_name_in_the_order_of_the_history() -> None:
    trainer = Trainer(GatedSAE(16, 64), planted(), config(n_steps=3)).run(progress=False)
    names = [
        "step", "loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu", "gamma", "n_dead", "n_resampled",
        "l1_coefficient", "aux_coefficient", "lr", "gate_threshold",
    ]  # fmt: skip
    assert list(trainer.records[-1].as_dict()) == names == list(trainer.history_frame().columns)
    assert trainer.history_frame().iloc[-1].to_dict() == pytest.approx(trainer.records[-1].as_dict())


def test_a_knob_of_a_wrong_name_is_refused_with_those_there_are() -> None:
    x = planted()
    those = "l1_coefficient, aux_coefficient, gate_threshold, lr"
    with pytest.raises(TypeError, match=f"'l1_coeficient' is no knob of a gated SAE's training; those are {those}"):
        Trainer(GatedSAE(16, 64), x, l1_coeficient=4)
    trainer = Trainer(GatedSAE(16, 64), x, config())
    with pytest.raises(
        AttributeError, match=f"'l1_coeficient' is no knob of a gated SAE's training; those are {those}"
    ):
        trainer.l1_coeficient = 4.0
    with pytest.raises(AttributeError, match=f"no attribute 'l1_coeficient'; its knobs are {those}"):
        _ = trainer.l1_coeficient
    with pytest.raises(TypeError, match="no knob of a rescale and shift SAE's training; those are gate_threshold, lr"):
        Trainer(RescaleShiftSAE(16, 64), x, l1_coefficient=4)
    with pytest.raises(AttributeError, match="'aux_coefficient' is no knob of a standard SAE's training"):
        Trainer(StandardSAE(16, 64), x).aux_coefficient = 1.0


def test_a_value_that_a_knob_cannot_take_is_refused_and_the_old_one_stays() -> None:
    trainer = Trainer(GatedSAE(16, 64), planted(), config(), l1_coefficient=2)
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="l1_coefficient must be a finite number of at least 0"):
            trainer.l1_coefficient = value
    with pytest.raises(ValueError, match="gate_threshold must be a finite number"):
        trainer.gate_threshold = float("nan")
    assert trainer.knobs == {"l1_coefficient": 2, "aux_coefficient": 1, "gate_threshold": 0, "lr": 3e-3}


def test_learning_rate_and_l1_warm_up_and_decay_follow_the_config() -> None:
    schedule = config(n_steps=10, lr=1.0, lr_warmup_steps=4, sparsity_warmup_steps=2, lr_decay_steps=5)
    trainer = Trainer(StandardSAE(16, 64), planted(), schedule, l1_coefficient=8).run(progress=False)
    assert trainer.history["lr"] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert trainer.history["l1_coefficient"][:3] == pytest.approx([4, 8, 8])


def test_every_activation_is_drawn_once_an_epoch() -> None:
    x = torch.arange(12.0).repeat_interleave(2).reshape(12, 2)
    trainer = Trainer(StandardSAE(2, 4), x, config(batch_size=4))
    drawn = torch.cat([trainer._batches.draw().x for _ in range(3)])
    assert sorted(drawn[:, 0].tolist()) == list(range(12))


def test_a_batch_larger_than_the_data_still_trains() -> None:
    trainer = Trainer(StandardSAE(16, 64), planted(n=10), config(batch_size=32, n_steps=2)).run(progress=False)
    assert trainer.n_steps_done == 2


def test_non_finite_loss_stops_with_step_and_knobs_and_keeps_the_weights() -> None:
    sae = StandardSAE(16, 64)
    trainer = Trainer(sae, planted(), config())
    trainer.step()
    trainer.l1_coefficient = 1e300  # more than the loss can hold
    before = {name: weight.clone() for name, weight in sae.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 2; .*Knobs: l1_coefficient=2e\\+298, .*lr="):
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
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, not 'fp8'"):
        TrainingConfig(precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a torch.Tensor, an ActivationStore or an iterable of batches, not int"):
        Trainer(sae, 3)  # type: ignore[arg-type]


def test_bfloat16_trains_float32_weights_to_nearly_the_same_end() -> None:
    x, ends = planted(), []
    for precision in ("float32", "bfloat16"):
        sae = GatedSAE(16, 64)
        Trainer(sae, x, TrainingConfig(300, 256, lr=3e-3, precision=precision), l1_coefficient=1).run(progress=False)
        assert all(parameter.dtype == torch.float32 for parameter in sae.parameters())
        ends.append(evaluate(sae, x).fvu)
    assert ends[1] == pytest.approx(ends[0], abs=0.03)


def test_an_iterable_of_batches_is_taken_as_it_comes_and_again_from_its_beginning() -> None:
    batches = list(torch.split(planted(n=1000), 100))
    before = [batch.clone() for batch in batches]
    sae = GatedSAE(16, 64)
    trainer = Trainer(sae, batches, config(n_steps=25)).run(progress=False)
    assert trainer.n_steps_done == 25
    assert all(torch.equal(batch, old) for batch, old in zip(batches, before, strict=True))
    whole = Trainer(GatedSAE(16, 64), torch.cat(batches), config())
    drawn = Trainer(GatedSAE(16, 64), iter(batches), config())
    assert torch.equal(drawn._batches.draw().x, batches[0]) and not torch.equal(whole._batches.draw().x, batches[0])


def test_an_iterable_that_ends_or_gives_something_wrong_says_so() -> None:
    def few() -> Iterator[torch.Tensor]:
        yield from torch.split(planted(n=300), 100)

    with pytest.raises(ValueError, match="ended after 3.*can be iterated repeatedly"):
        Trainer(StandardSAE(16, 64), few(), config()).run(progress=False)
    with pytest.raises(ValueError, match="width 8.*d_in=16"):
        Trainer(StandardSAE(16, 64), [torch.randn(10, 8)], config()).step()
    with pytest.raises(ValueError, match=r"a batch must be \(batch, d_in\)"):
        Trainer(StandardSAE(16, 64), [torch.randn(2, 5, 16)], config()).step()


def test_an_sae_that_was_converted_behind_the_trainers_back_is_not_trained_in_silence() -> None:
    sae = GatedSAE(16, 64)
    trainer = Trainer(sae, planted(), config())
    trainer.step()
    sae.double()
    with pytest.raises(RuntimeError, match="make a new Trainer"):
        trainer.step()


@pytest.mark.parametrize("ablations", [(), ("no_r_mag",), ("untied_encoders",)])
def test_resampling_gives_dead_features_all_of_their_parameters_and_moments_anew_and_touches_no_other(
    ablations: tuple[Ablation, ...],
) -> None:
    sae, x = GatedSAE(16, 16, ablations=ablations), planted()  # as many features as dimensions: no shape tells which
    trainer = Trainer(sae, x, config(resample_every=0))
    for _ in range(20):
        trainer.step()
    before = {name: sae.features_first(name, weight.detach()).clone() for name, weight in sae.named_parameters()}
    moments = trainer._adam.moments
    old_moments = {name: state["exp_avg_sq"].clone() for name, state in moments.items()}
    dead = torch.zeros(16, dtype=torch.bool)
    dead[[2, 7, 11]] = True
    resample_dead_features(sae, dead, x[:500], moments=moments, generator=torch.Generator().manual_seed(0))

    after = {name: sae.features_first(name, weight.detach()) for name, weight in sae.named_parameters()}
    assert torch.equal(after["b_dec"], before["b_dec"])
    for name in before.keys() - {"b_dec"}:
        assert torch.equal(after[name][~dead], before[name][~dead])
        assert torch.equal(moments[name]["exp_avg_sq"][~dead], old_moments[name][~dead])
        assert not moments[name]["exp_avg_sq"][dead].any() and moments[name]["exp_avg_sq"][~dead].any()
    for name in sae.feature_parameters:
        assert not after[name][dead].any()
    assert torch.allclose(after["W_dec"].norm(dim=1), torch.ones(16))
    directions = torch.nn.functional.normalize(x[:500] - sae.b_dec.detach(), dim=1)
    assert torch.allclose((after["W_dec"][dead] @ directions.T).max(dim=1).values, torch.ones(3))
    for name in {"W_enc", "W_mag"} & before.keys():
        norm = ENCODER_SHARE * before[name][~dead].norm(dim=1).mean()
        torch.testing.assert_close(after[name][dead], norm * after["W_dec"][dead])


def test_resampling_prefers_inputs_that_are_reconstructed_badly() -> None:
    sae = StandardSAE(4, 8)
    x = torch.zeros(1000, 4)
    x[:, 0] = 0.01
    x[123] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    dead = torch.arange(8) == 3
    resample_dead_features(sae, dead, x, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sae.W_dec[3], torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("n_dead", [0, 8])
def test_resampling_none_and_all_features_works(n_dead: int) -> None:
    sae = GatedSAE(4, 8)
    before = sae.W_dec.clone()
    resample_dead_features(sae, torch.arange(8) < n_dead, torch.randn(5, 4))
    assert torch.isfinite(sae.W_dec).all() and torch.equal(sae.W_dec, before) == (n_dead == 0)


def test_dead_features_come_back_in_training_and_the_learning_rate_dips_and_returns() -> None:
    sae, x = GatedSAE(16, 64), planted()
    with torch.no_grad():
        sae.b_gate[:40] = -50.0
    settings = config(n_steps=200, dead_after_steps=10, resample_every=20, resample_recovery_steps=10)
    trainer = Trainer(sae, x, settings, l1_coefficient=0.5).run(progress=False)
    history = trainer.history
    assert history["n_dead"][18] == 40 == history["n_resampled"][19]
    assert history["lr"][18] == 3e-3 * 19 / 50 and history["lr"][20] == pytest.approx(0.1 * 3e-3 * 21 / 50)
    assert history["lr"][60] == pytest.approx(3e-3)
    assert not history["n_resampled"][150:].any()  # the last quarter
    assert evaluate(sae, x).n_dead < 0.02 * 64


def test_a_raised_gate_threshold_does_not_make_features_dead() -> None:
    sae = GatedSAE(16, 64)
    sae.gate_threshold = 100.0
    trainer = Trainer(sae, planted(), config(n_steps=30, dead_after_steps=5, resample_every=10)).run(progress=False)
    assert trainer.records[-1].l0 == 0 and not trainer.history["n_dead"].any()


def test_a_frozen_sae_is_not_resampled() -> None:
    sae = RescaleShiftSAE(16, 64)
    with torch.no_grad():
        sae.b_enc[:40] = -50.0
    trainer = Trainer(sae, planted(), config(n_steps=40, dead_after_steps=5, resample_every=10)).run(progress=False)
    assert trainer.records[-1].n_dead >= 40 and not trainer.history["n_resampled"].any()


@pytest.mark.parametrize("name", [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch])
def test_a_run_may_start_with_b_dec_at_the_mean_of_its_first_batch(name: str, tmp_path: Path) -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) + 50
    settings = config(n_steps=8, batch_size=400, lr=1e-3, start_at_mean=True, checkpoint_every=3)
    sae = ARCHITECTURES[name](6, 12)
    trainer = Trainer(sae, x, settings, folder=tmp_path)
    trainer.step()
    torch.testing.assert_close(sae.b_dec.detach(), x.mean(dim=0), atol=2e-3, rtol=0)  # and one step from there
    trainer.save()
    torch.testing.assert_close(Trainer.resume(tmp_path, x).run(progress=False).sae.b_dec, trainer.run().sae.b_dec)
    frozen = ARCHITECTURES[name](6, 12, frozen=("b_dec",))
    Trainer(frozen, x, settings).run(progress=False)
    assert not frozen.b_dec.any()
