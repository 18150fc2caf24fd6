"""What is frozen stays as it is: in training, in resampling, in files, in a run that goes on."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import (
    ARCHITECTURES,
    GatedSAE,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    load,
    resample_dead_features,
    save,
    superposition,
    sweep,
)

X = superposition(32, 16, 0.05, n_samples=2000).activations
CONFIG = TrainingConfig(n_steps=60, batch_size=64, dead_after_steps=5, resample_every=10, checkpoint_every=20)
FROM_SCRATCH = [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch]
PARAMETERS = [
    (name, parameter) for name in FROM_SCRATCH for parameter, _ in ARCHITECTURES[name](16, 80).named_parameters()
]


def values(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_a_frozen_parameter_of_any_architecture_stays_as_it_was_and_the_others_learn(name: str, parameter: str) -> None:
    sae = ARCHITECTURES[name](16, 80, frozen=(parameter,))
    before = values(sae)
    history = Trainer(sae, X, CONFIG).run(progress=False).history
    after = values(sae)
    assert torch.equal(after[parameter], before[parameter])
    for other in ("W_enc", "W_dec", "b_dec"):
        assert other == parameter or not torch.equal(after[other], before[other])
    assert math.isfinite(history["loss"][-1])


def test_a_frozen_decoder_keeps_its_rows_when_dead_features_are_resampled() -> None:
    sae = StandardSAE(16, 80, frozen=("W_dec",))
    before = values(sae)
    with torch.no_grad():
        sae.b_enc[:40] = -5
    trainer = Trainer(sae, X, CONFIG).run(progress=False)
    assert trainer.history["n_resampled"].sum() >= 40
    assert torch.equal(sae.W_dec, before["W_dec"])


def test_a_dead_feature_with_a_frozen_decoder_row_is_pointed_along_it_and_one_with_a_frozen_encoder_along_that() -> (
    None
):
    dead = torch.tensor([True, False, True])
    held = StandardSAE(2, 3, frozen=("W_dec",))
    with torch.no_grad():
        held.W_dec.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]))
        held.W_enc.copy_(torch.tensor([[9.0, 0.0, 9.0], [9.0, 5.0, 9.0]]))
        held.b_enc.fill_(-7.0)
    resample_dead_features(held, dead, torch.randn(5, 2))
    # The only living column has norm 5, of which a resampled one has a fifth.
    torch.testing.assert_close(held.W_enc, torch.tensor([[0.6, 0.0, 0.0], [0.8, 5.0, 1.0]]))
    assert held.b_enc.tolist() == [0, -7, 0]

    encoder = StandardSAE(2, 3, frozen=("W_enc",))
    with torch.no_grad():
        encoder.W_enc.copy_(torch.tensor([[3.0, 1.0, 0.0], [4.0, 1.0, -2.0]]))
        encoder.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    resample_dead_features(encoder, dead, torch.randn(5, 2))
    torch.testing.assert_close(encoder.W_dec, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, -1.0]]))


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_and_a_run_that_goes_on_know_what_is_frozen_however_it_came_to_be(by_hand: bool, tmp_path: Path) -> None:
    def make() -> GatedSAE:
        sae = GatedSAE(16, 80, frozen=() if by_hand else ("W_dec", "b_mag"))
        if by_hand:
            for name in ("W_dec", "b_mag"):
                sae.get_parameter(name).requires_grad_(False)
        return sae

    assert set(load(save(make(), tmp_path / "sae.safetensors")).frozen) == {"W_dec", "b_mag"}
    whole = make()
    Trainer(whole, X, CONFIG).run(progress=False)
    part = Trainer(make(), X, CONFIG, folder=tmp_path / "run")
    for _ in range(25):
        part.step()
    part.save()
    resumed = Trainer.resume(tmp_path / "run", X).run(progress=False).sae
    assert set(resumed.frozen) == {"W_dec", "b_mag"}
    for name, tensor in values(whole).items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    assert torch.equal(resumed.W_dec, make().W_dec)


def test_a_parameter_that_an_architecture_freezes_may_be_trained_and_its_file_says_so(tmp_path: Path) -> None:
    sae = RescaleShiftSAE(16, 32)
    assert set(sae.frozen) == {"W_enc", "W_dec", "b_dec", "b_enc"}
    sae.W_dec.requires_grad_(True)
    assert load(save(sae, tmp_path / "sae.safetensors")).W_dec.requires_grad


def test_a_sweep_does_not_take_a_frozen_sae_for_a_trained_one(tmp_path: Path) -> None:
    def frozen() -> StandardSAE:
        sae = StandardSAE(16, 32)
        sae.W_dec.requires_grad_(False)
        return sae

    trained = sweep(lambda: StandardSAE(16, 32), X, [1.0], config=CONFIG, folder=tmp_path, progress=False)
    held = sweep(frozen, X, [1.0], config=CONFIG, folder=tmp_path, progress=False)
    softly = sweep(
        lambda: StandardSAE(16, 32, decoder_cosine=0.8), X, [1.0], config=CONFIG, folder=tmp_path, progress=False
    )
    assert len({trained.path[0], held.path[0], softly.path[0]}) == 3
    assert torch.equal(load(held.path[0]).W_dec, StandardSAE(16, 32).W_dec)
    assert held.fvu[0] > trained.fvu[0]


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_a_held_decoder_row_stays_within_its_cosine_of_where_it_started(name: str) -> None:
    free, held = ARCHITECTURES[name](16, 80), ARCHITECTURES[name](16, 80, decoder_cosine=0.95)
    start = free.W_dec.detach().clone()
    for sae in (free, held):
        Trainer(sae, X, CONFIG, lr=0.02).run(progress=False)
    assert float((free.W_dec.detach() * start).sum(dim=1).min()) < 0.9
    assert float((held.W_dec.detach() * start).sum(dim=1).min()) >= 0.95 - 1e-6
    torch.testing.assert_close(held.W_dec.detach().norm(dim=1), torch.ones(80))


def test_a_row_outside_its_cone_is_turned_to_the_nearest_direction_on_its_surface_at_the_same_norm() -> None:
    sae = StandardSAE(2, 3)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    sae.hold_decoder(0.6)
    with torch.no_grad():  # outside: straight up, of norm 2; inside; behind, a little downwards
        sae.W_dec.copy_(torch.tensor([[0.0, 2.0], [4.0, 3.0], [-4.0, -3.0]]))
    sae.restrain_decoder()
    torch.testing.assert_close(sae.W_dec, torch.tensor([[1.2, 1.6], [4.0, 3.0], [3.0, -4.0]]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), cosine=st.floats(-1, 1), scale=st.floats(0.1, 10))
def test_restraining_changes_no_norm_and_leaves_every_row_inside_its_cone(
    seed: int, cosine: float, scale: float
) -> None:
    sae = StandardSAE(6, 20, seed=seed, decoder_cosine=cosine, dtype=torch.float64, preset="norm_weighted")
    moved = scale * torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.copy_(moved)
    sae.restrain_decoder()
    rows = sae.W_dec.detach()
    torch.testing.assert_close(rows.norm(dim=1), moved.norm(dim=1))
    cosines = torch.nn.functional.cosine_similarity(rows, sae.get_buffer("decoder_start"))
    assert bool((cosines >= cosine - 1e-9).all())
    inside = torch.nn.functional.cosine_similarity(moved, sae.get_buffer("decoder_start")) >= cosine
    torch.testing.assert_close(rows[inside], moved[inside])


def test_a_held_decoder_goes_on_from_a_file_and_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = GatedSAE(16, 80, decoder_cosine=0.8)
    Trainer(whole, X, CONFIG).run(progress=False)
    part = Trainer(GatedSAE(16, 80, decoder_cosine=0.8), X, CONFIG, folder=tmp_path)
    for _ in range(25):
        part.step()
    part.save()
    resumed = Trainer.resume(tmp_path, X).run(progress=False).sae
    assert resumed.decoder_cosine == 0.8 and "decoder_cosine=0.8" in repr(resumed)
    for name, tensor in values(whole).items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_what_cannot_be_frozen_or_held_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="not understood: W_gate; a gated SAE has W_dec, W_enc, b_dec, b_gate"):
        GatedSAE(4, 8, frozen=("W_gate",))
    with pytest.raises(ValueError, match="frozen must be a collection of names"):
        GatedSAE(4, 8, frozen="W_dec")
    with pytest.raises(ValueError, match="decoder_cosine must lie between -1 and 1, not 80"):
        GatedSAE(4, 8, decoder_cosine=80)
    sae = StandardSAE(16, 32, frozen=("W_enc", "W_dec", "b_dec", "b_enc"))
    with pytest.raises(ValueError, match="every parameter of this SAE is frozen"):
        Trainer(sae, X, CONFIG)
