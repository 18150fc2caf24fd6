"""A run that is killed ends bit by bit where an undisturbed one ends, and a bad state never replaces a good one."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saelab import (
    ARCHITECTURES,
    NonFiniteLossError,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    load,
    superposition,
)
from saelab.training.checkpoints import CHECKPOINT

CONFIG = TrainingConfig(n_steps=120, batch_size=64, checkpoint_every=1, resample_every=15, dead_after_steps=5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def assert_same(ours: SparseAutoencoder, theirs: SparseAutoencoder) -> None:
    assert type(ours) is type(theirs) and ours.settings() == theirs.settings()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def example(architecture: str = "gated") -> tuple[SparseAutoencoder, torch.Tensor]:
    """An SAE with features to resample, and activations for it."""
    sae = ARCHITECTURES[architecture](16, 64)
    with torch.no_grad():
        sae.get_parameter("b_gate" if architecture == "gated" else "b_enc")[:20] = -50.0
    return sae, superposition(32, 16, 0.05, n_samples=1000).activations


def test_a_checkpoint_holds_the_sae_the_knobs_and_the_history(tmp_path: Path) -> None:
    sae, x = example()
    trainer = Trainer(sae, x, CONFIG, folder=tmp_path, l1_coefficient=1)
    for record in trainer:
        if record.step == 30:
            trainer.l1_coefficient, trainer.aux_coefficient, trainer.gate_threshold = 7.0, 0.5, 0.2
            break
    trainer.save()
    assert_same(load(tmp_path / CHECKPOINT), sae)
    resumed = Trainer.resume(tmp_path, x)
    assert (resumed.l1_coefficient, resumed.gate_threshold, resumed.lr) == (7.0, 0.2, trainer.lr)
    assert resumed.knobs == trainer.knobs and resumed.aux_coefficient == 0.5
    assert resumed.config == CONFIG and resumed.records == trainer.records and resumed.seconds == trainer.seconds
    assert resumed.step() == trainer.step()
    with pytest.raises(ValueError, match="used different activations"):
        Trainer.resume(tmp_path, x + 1)
    with pytest.raises(FileNotFoundError):
        Trainer.resume(tmp_path / "elsewhere", x)


def test_a_run_on_an_iterable_resumes_where_it_was(tmp_path: Path, one_thread: None) -> None:
    sae, x = example()
    batches = list(torch.split(x, 50))
    whole = Trainer(example()[0], batches, CONFIG, l1_coefficient=1).run(progress=False)
    trainer = Trainer(sae, batches, CONFIG, folder=tmp_path, l1_coefficient=1)
    for record in trainer:
        if record.step == 33:
            break
    trainer.save()
    assert_same(Trainer.resume(tmp_path, batches).run(progress=False).sae, whole.sae)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_of_any_architecture_resumes_bit_by_bit(tmp_path: Path, one_thread: None, architecture: str) -> None:
    sae, x = example(architecture)
    whole = Trainer(example(architecture)[0], x, CONFIG).run(progress=False)
    trainer = Trainer(sae, x, CONFIG, folder=tmp_path)
    while trainer.n_steps_done < 47:
        trainer.step()
    trainer.save()
    ended = Trainer.resume(tmp_path, x).run(progress=False)
    assert_same(ended.sae, whole.sae)
    assert ended.records == whole.records
    assert whole.history["n_resampled"].any() == sae.trains_from_scratch  # a frozen encoder has nothing to resample


KILLED = """
import sys, time
import safetensors.torch, torch
import saelab, saelab.files.tensor_files
from saelab.training.checkpoints import CHECKPOINT
sys.path.insert(0, sys.argv[1])
from test_checkpoints import CONFIG, example

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
    trainer = saelab.Trainer(sae, x, CONFIG, folder=folder, l1_coefficient=1)
print(trainer.n_steps_done, flush=True)
trainer.run(progress=False)
"""


def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_where_an_undisturbed_one_ends(
    tmp_path: Path, one_thread: None
) -> None:
    sae, x = example()
    whole = Trainer(sae, x, CONFIG, l1_coefficient=1).run(progress=False)
    unfinished = tmp_path / f".{CHECKPOINT}.unfinished"

    def start() -> "tuple[subprocess.Popen[str], int]":
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    begun = []
    for delay, in_a_write in ((0.05, False), (0.3, True), (0.2, False), (0.4, True)):
        process, step = start()
        begun.append(step)
        time.sleep(delay)
        while in_a_write and not unfinished.exists() and process.poll() is None:
            pass
        process.kill()
        assert process.wait() != 0  # it was still running
        assert not in_a_write or unfinished.exists()
    assert begun == sorted(begun) and begun[-1] > begun[0] == 0
    assert start()[0].wait() == 0
    ended = Trainer.resume(tmp_path, x)
    assert ended.n_steps_done == CONFIG.n_steps
    assert_same(ended.sae, whole.sae)
    assert ended.records == whole.records and whole.history["n_resampled"].any()
    assert not unfinished.exists()


def test_no_pickle_is_in_a_checkpoint(tmp_path: Path) -> None:
    sae, x = example()
    Trainer(sae, x, TrainingConfig(n_steps=2, batch_size=64), folder=tmp_path).run(progress=False)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    assert {"sae.W_enc", "adam.W_enc.exp_avg_sq", "history.l0"} <= load_file(tmp_path / CHECKPOINT).keys()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    x = example()[1]
    Trainer(StandardSAE(16, 64), x, TrainingConfig(n_steps=3), folder=tmp_path).run(progress=False)
    with pytest.raises(FileExistsError, match="Trainer.resume"):
        Trainer(StandardSAE(16, 64), x, TrainingConfig(), folder=tmp_path)
    with pytest.raises(ValueError, match="has no folder"):
        Trainer(StandardSAE(16, 64), x).save()


def test_non_finite_loss_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    x = example()[1]
    trainer = Trainer(StandardSAE(16, 64), x, TrainingConfig(n_steps=30, checkpoint_every=10), folder=tmp_path)
    for record in trainer:
        if record.step == 10:
            trainer.save()
            trainer.l1_coefficient = 1e300  # more than the loss can hold
            break
    with pytest.raises(NonFiniteLossError, match="step 11;.*last good checkpoint is .*checkpoint.safetensors"):
        trainer.run(progress=False)
    assert Trainer.resume(tmp_path, x).n_steps_done == 10


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path: Path) -> None:
    x = example()[1]
    trainer = Trainer(StandardSAE(16, 64), x, TrainingConfig(n_steps=30, checkpoint_every=10), folder=tmp_path)
    for record in trainer:
        if record.step == 10:
            trainer.save()
        if record.step == 19:
            break
    with torch.no_grad():
        trainer.sae.get_parameter("b_enc")[3] = float("nan")  # a feature that is then off, in silence
    with pytest.raises(NonFiniteLossError, match="b_enc became NaN.*last good checkpoint is"):
        trainer.save()
    assert Trainer.resume(tmp_path, x).n_steps_done == 10
