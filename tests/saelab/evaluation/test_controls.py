"""What a trained SAE has to beat: controls of any architecture, and dictionaries that nobody trained."""

from functools import partial
from pathlib import Path

import pytest
import torch

from saelab import (
    CONTROLS,
    GatedSAE,
    RescaleShiftSAE,
    StandardSAE,
    TrainingConfig,
    evaluate,
    load,
    pca_dictionary,
    random_dictionary,
    superposition,
    sweep,
)
from saelab.evaluation.controls import label_of_control

X = superposition(32, 16, 0.05, n_samples=3000).activations
CONFIG = TrainingConfig(n_steps=300, batch_size=128, lr=5e-3)


def test_each_control_keeps_what_its_name_says() -> None:
    made = {name: control.apply(GatedSAE(16, 32)) for name, control in CONTROLS.items()}
    assert made["frozen_decoder"].frozen == ("W_dec",)
    assert made["frozen_encoder"].frozen == ("W_enc",)
    assert made["soft_frozen_decoder"].frozen == () and made["soft_frozen_decoder"].decoder_cosine == 0.8
    untied = GatedSAE(16, 32, ablations=["untied_encoders"])
    CONTROLS["frozen_encoder"].apply(untied)
    assert set(untied.frozen) == {"W_enc", "W_mag"}
    # As long as the decoder's rows, for training cannot lengthen them.
    torch.testing.assert_close(untied.W_mag.detach().norm(dim=0), torch.ones(32))
    assert [label_of_control(name) for name in ("frozen_decoder", "pca", "mine")] == ["frozen decoder", "PCA", "mine"]


def test_an_sae_that_starts_from_a_trained_one_has_no_control_of_its_own() -> None:
    with pytest.raises(ValueError, match="a rescale and shift SAE starts from a trained one"):
        CONTROLS["frozen_decoder"].apply(RescaleShiftSAE(16, 32))


def test_a_sweep_trains_each_sae_also_as_its_controls_which_reconstruct_worse(tmp_path: Path) -> None:
    table = sweep(
        [partial(GatedSAE, 16, 32), partial(StandardSAE, 16, 32)],
        X,
        [1.0],
        seeds=(3, 4),
        controls=list(CONTROLS),
        config=CONFIG,
        folder=tmp_path,
        progress=False,
    )
    assert list(table.control) == [name for name in ("none", *CONTROLS) for _ in range(2)] * 2
    assert list(table.seed) == [3, 4] * 8
    by = table.set_index(["architecture", "control", "seed"])
    for architecture in ("gated", "standard"):
        for seed in (3, 4):
            start = {"gated": GatedSAE, "standard": StandardSAE}[architecture](16, 32, seed=seed)
            held = load(by.path[architecture, "frozen_decoder", seed])
            assert torch.equal(held.W_dec, start.W_dec) and not torch.equal(held.W_enc, start.W_enc)
            encoder = load(by.path[architecture, "frozen_encoder", seed])
            assert torch.equal(encoder.W_enc, start.W_dec.T) and not torch.equal(encoder.W_dec, start.W_dec)
            trained = by.fvu[architecture, "none", seed]
            assert trained < by.fvu[architecture, "frozen_decoder", seed]
            assert trained < by.fvu[architecture, "frozen_encoder", seed]
    with pytest.raises(ValueError, match="controls must list any of frozen_decoder, soft_frozen_decoder, frozen_enc"):
        sweep(partial(GatedSAE, 16, 32), X, [1.0], controls=["frozen"], folder=tmp_path / "none")


def test_a_pca_dictionary_keeps_the_largest_projections_whichever_way_they_point() -> None:
    # Principal directions (1, 1) and (1, -1), each over sqrt 2; the mean is (1, 0).
    a, b = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
    x = torch.stack([3 * a, -3 * a, b, -b]) + torch.tensor([1.0, 0.0])
    sae = pca_dictionary(x, 4, 1)
    torch.testing.assert_close(sae.b_dec.detach(), torch.tensor([1.0, 0.0]))
    assert sorted(sae.encode(x).max(dim=1).values.tolist()) == pytest.approx([1, 1, 3, 3])
    torch.testing.assert_close(sae(x), x)
    mixed = (3 * a + 2 * b + torch.tensor([1.0, 0.0]))[None]
    torch.testing.assert_close(sae(mixed), (3 * a + torch.tensor([1.0, 0.0]))[None])
    assert pca_dictionary(x, 3, 1).d_sae == 2 and pca_dictionary(x, 100, 2).d_sae == 4


def test_all_principal_components_reconstruct_everything() -> None:
    assert evaluate(pca_dictionary(X, 32, 16), X).fvu == pytest.approx(0, abs=1e-9)
    fewer = [evaluate(pca_dictionary(X, 32, k), X).fvu for k in (1, 4, 8)]
    assert fewer == sorted(fewer, reverse=True)


def test_a_random_dictionary_is_scaled_as_well_as_one_factor_can_be() -> None:
    sae = random_dictionary(X, 64, 4, seed=5)
    measured = evaluate(sae, X)
    assert measured.l0 == pytest.approx(4, abs=0.1)
    torch.testing.assert_close(sae.W_dec.detach(), StandardSAE(16, 64, seed=5).W_dec.detach())
    for factor in (0.9, 1.1):
        other = random_dictionary(X, 64, 4, seed=5)
        with torch.no_grad():
            other.W_enc.mul_(factor)
        assert evaluate(other, X).fvu > measured.fvu
    assert not torch.equal(random_dictionary(X, 64, 4, seed=6).W_dec, sae.W_dec)


def test_dictionaries_that_cannot_be_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"k must lie between 1 and the number of principal directions, here 4"):
        pca_dictionary(X, 8, 5)
    with pytest.raises(ValueError, match="k must lie between 1 and d_sae=8"):
        random_dictionary(X, 8, 9)
    with pytest.raises(ValueError, match="NaN"):
        pca_dictionary(X * float("nan"), 8, 2)
