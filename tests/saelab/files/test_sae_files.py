"""What is saved comes back bit by bit, also from a run that was killed; what cannot be read says what is wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saelab import (
    ARCHITECTURES,
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SAEFileError,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    load,
    save,
    sweep,
)
from saelab.files.tensor_files import read_tensors, write_tensors
from saelab.sae.sparse import Entries
from saelab.training.checkpoints import CHECKPOINT


def weights_of(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in sae.state_dict().items()}


def assert_same(ours: SparseAutoencoder, theirs: SparseAutoencoder) -> None:
    assert type(ours) is type(theirs) and ours.settings() == theirs.settings()
    assert [getattr(ours, knob.name) for knob in ours.live_settings] == [
        getattr(theirs, knob.name) for knob in theirs.live_settings
    ]
    for name, weight in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), weight)
        assert ours.get_parameter(name).stride() == weight.stride()
        assert ours.get_parameter(name).requires_grad == weight.requires_grad


@pytest.mark.parametrize(
    "sae",
    [
        StandardSAE(6, 10, preset="norm_weighted"),
        StandardSAE(6, 10, dtype=torch.float64),
        GatedSAE(6, 10, ablations=["untied_encoders", "unfrozen_decoder"]),
        RescaleShiftSAE(6, 10),
        JumpReLUSAE(6, 10),
    ],
    ids=repr,
)
def test_a_saved_sae_comes_back_bit_by_bit_with_its_settings(sae: ElementwiseSAE, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter))
    sae.gate_threshold = 0.1
    path = save(sae, tmp_path / "folder" / "sae.safetensors")
    assert_same(load(path), sae)
    assert [file.name for file in path.parent.iterdir()] == ["sae.safetensors"]


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = save(StandardSAE(6, 10), tmp_path / "sae.safetensors")
    save(GatedSAE(6, 10), path)
    assert isinstance(load(path), GatedSAE)


def test_a_class_that_a_file_would_not_bring_back_is_not_written_under_the_name_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halved(GatedSAE):
        def magnitude(self, entries: Entries, pi_gate: torch.Tensor) -> torch.Tensor:
            return super().magnitude(entries, pi_gate) / 2

    x = torch.randn(64, 6)
    for write in (
        lambda: save(Halved(6, 10), tmp_path / "sae.safetensors"),
        lambda: Trainer(Halved(6, 10), x, folder=tmp_path / "run"),
        lambda: sweep(lambda: Halved(6, 10), x, [1.0], folder=tmp_path / "sweep", progress=False),
    ):
        with pytest.raises(TypeError, match=r"'gated' is not read as a Halved; give Halved an `architecture` of its"):
            write()
    assert not list(tmp_path.iterdir())

    monkeypatch.setitem(ARCHITECTURES, "halved", Halved)  # taken out again after the test

    class Registered(Halved):
        architecture = "halved"

    sae = Registered(6, 10)
    assert_same(load(save(sae, tmp_path / "sae.safetensors")), sae)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = StandardSAE(6, 10)
    path = save(old, tmp_path / "sae.safetensors")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(GatedSAE(6, 10), path)
    assert_same(load(path), old)
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_no_sae_say_what_is_wrong(tmp_path: Path) -> None:
    path = save(GatedSAE(6, 10), tmp_path / "sae.safetensors")
    tensors, header = read_tensors(path)

    def written(tensors: dict[str, torch.Tensor], **changes: object) -> Path:
        changed = tmp_path / "changed.safetensors"
        save_file(tensors, changed, {"saelab": json.dumps({**header, **changes})})
        return changed

    with pytest.raises(FileNotFoundError, match="no file .*absent"):
        load(tmp_path / "absent")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SAEFileError, match="cut.safetensors: not a complete safetensors file"):
        load(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"W": torch.ones(2)}, foreign)
    with pytest.raises(SAEFileError, match="foreign.safetensors: its header has no field 'saelab'"):
        load(foreign)
    save_file({"W": torch.ones(2)}, foreign, {"saelab": "[1"})
    with pytest.raises(SAEFileError, match="the field 'saelab' of its header cannot be read"):
        load(foreign)
    with pytest.raises(SAEFileError, match="version 99.*install a newer one"):
        load(written(tensors, version=99))
    with pytest.raises(SAEFileError, match="does not describe an SAE.*'unheard_of'"):
        load(written(tensors, architecture="unheard_of"))
    with pytest.raises(SAEFileError, match="tensor r_mag of a gated SAE is missing"):
        load(written({name: tensor for name, tensor in tensors.items() if name != "sae.r_mag"}))
    with pytest.raises(SAEFileError, match=r"tensor b_mag is torch.float32 of shape \(3,\); expected .*\(10,\)"):
        load(written({**tensors, "sae.b_mag": torch.ones(3)}))
    with pytest.raises(SAEFileError, match="unknown tensor.* b_extra"):
        load(written({**tensors, "sae.b_extra": torch.ones(3)}))
    with pytest.raises(SAEFileError, match="no field 'training'"):
        (tmp_path / CHECKPOINT).write_bytes(path.read_bytes())
        Trainer.resume(tmp_path, torch.randn(20, 6))
    with pytest.raises(SAEFileError, match="field 'training.silent_steps' of the run is missing"):
        Trainer(GatedSAE(6, 10), torch.ones(20, 6), TrainingConfig(n_steps=1), folder=tmp_path / "run").run(
            progress=False
        )
        tensors, header = read_tensors(tmp_path / "run" / CHECKPOINT)
        del tensors["training.silent_steps"]
        write_tensors(tmp_path / "run" / CHECKPOINT, tensors, header)
        Trainer.resume(tmp_path / "run", torch.ones(20, 6))


def test_a_file_can_be_read_by_whom_the_users_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = save(GatedSAE(6, 10), tmp_path / "sae.safetensors")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
