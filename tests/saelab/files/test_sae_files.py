"""What is saved comes back bit by bit, also from a run that was killed; what cannot be read says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelab import (
    ARCHITECTURES,
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
    superposition,
    sweep,
)
from saelab.files.tensor_files import read_tensors, write_tensors
from saelab.sae.sparse import Entries
from saelab.training.checkpoints import CHECKPOINT


@pytest.fixture
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def weights_of(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in sae.state_dict().items()}


def assert_same(ours: SparseAutoencoder, theirs: SparseAutoencoder) -> None:
    assert type(ours) is type(theirs) and ours.settings() == theirs.settings()
    assert ours.gate_threshold == theirs.gate_threshold
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
def test_a_saved_sae_comes_back_bit_by_bit_with_its_settings(sae: SparseAutoencoder, tmp_path: Path) -> None:
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
        with pytest.raises(TypeError, match=r"'gated' would not be read as a Halved.*saelab.ARCHITECTURES\[Halved"):
            write()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Halved, "architecture", "halved")
    monkeypatch.setitem(ARCHITECTURES, "halved", Halved)
    sae = Halved(6, 10)
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
    with pytest.raises(SAEFileError, match="does not describe an SAE.*'topk'"):
        load(written(tensors, architecture="topk"))
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


CONFIG = TrainingConfig(
    n_steps=120, batch_size=64, l1_coefficient=1.0, checkpoint_every=1, resample_every=15, dead_after_steps=5
)


def example() -> tuple[GatedSAE, torch.Tensor]:
    """An SAE with features to resample, and activations for it."""
    sae = GatedSAE(16, 64)
    with torch.no_grad():
        sae.b_gate[:20] = -50.0
    return sae, superposition(32, 16, 0.05, n_samples=1000).activations


def test_a_checkpoint_holds_the_sae_the_knobs_and_the_history(tmp_path: Path) -> None:
    sae, x = example()
    trainer = Trainer(sae, x, CONFIG, folder=tmp_path)
    for record in trainer:
        if record.step == 30:
            trainer.l1_coefficient, trainer.gate_threshold = 7.0, 0.2
            break
    trainer.save()
    assert_same(load(tmp_path / CHECKPOINT), sae)
    resumed = Trainer.resume(tmp_path, x)
    assert (resumed.l1_coefficient, resumed.gate_threshold, resumed.lr) == (7.0, 0.2, trainer.lr)
    assert resumed.config == CONFIG and resumed.records == trainer.records and resumed.seconds == trainer.seconds
    assert resumed.step() == trainer.step()
    with pytest.raises(ValueError, match="on other activations"):
        Trainer.resume(tmp_path, x + 1)
    with pytest.raises(FileNotFoundError):
        Trainer.resume(tmp_path / "elsewhere", x)


def test_a_run_on_an_iterable_resumes_where_it_was(tmp_path: Path, one_thread: None) -> None:
    sae, x = example()
    batches = list(torch.split(x, 50))
    whole = Trainer(example()[0], batches, CONFIG).run(progress=False)
    trainer = Trainer(sae, batches, CONFIG, folder=tmp_path)
    for record in trainer:
        if record.step == 33:
            break
    trainer.save()
    assert_same(Trainer.resume(tmp_path, batches).run(progress=False).sae, whole.sae)


KILLED = """
import sys, time
import safetensors.torch, torch
import saelab, saelab.files.tensor_files
from saelab.training.checkpoints import CHECKPOINT
sys.path.insert(0, sys.argv[1])
from test_sae_files import CONFIG, example

def slowly(tensors, path, metadata):  # a kill in the middle of a write finds half a file
    content = safetensors.torch.save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(content[len(content) // 2 :])

saelab.files.tensor_files.save_file = slowly
torch.set_num_threads(1)
folder = sys.argv[2]
sae, x = example()
try:
    trainer = saelab.Trainer.resume(folder, x)
except FileNotFoundError:
    trainer = saelab.Trainer(sae, x, CONFIG, folder=folder)
print(trainer.n_steps_done, flush=True)
trainer.run(progress=False)
"""


def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_where_an_undisturbed_one_ends(
    tmp_path: Path, one_thread: None
) -> None:
    sae, x = example()
    whole = Trainer(sae, x, CONFIG).run(progress=False)
    unfinished = tmp_path / f".{CHECKPOINT}.unfinished"

    def start() -> "tuple[subprocess.Popen[str], int]":
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    begun = []
    for delay, in_a_write in ((0.05, False), (0.3, True), (0.2, False), (0.4, True)):
        process, step = start()
        begun.append(step)
        time.sleep(delay)
        while in_a_write and not unfinished.exists() and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was still running
        assert not in_a_write or unfinished.exists()
    assert begun == sorted(begun) and begun[-1] > begun[0] == 0
    assert start()[0].wait() == 0
    ended = Trainer.resume(tmp_path, x)
    assert ended.n_steps_done == CONFIG.n_steps
    assert_same(ended.sae, whole.sae)
    assert ended.records == whole.records and whole.history["n_resampled"].any()
    assert not unfinished.exists()


def test_a_file_can_be_read_by_whom_the_users_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = save(example()[0], tmp_path / "sae.safetensors")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_no_pickle_is_in_a_checkpoint(tmp_path: Path) -> None:
    sae, x = example()
    Trainer(sae, x, TrainingConfig(n_steps=2, batch_size=64), folder=tmp_path).run(progress=False)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    assert {"sae.W_enc", "adam.W_enc.exp_avg_sq", "history.l0"} <= load_file(tmp_path / CHECKPOINT).keys()
