"""Training in several processes, through `accelerate launch`, on CPUs with gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import saelab
from saelab.data.activations import ActivationStore
from saelab.training.checkpoints import CHECKPOINT

if sys.platform == "win32":
    pytest.skip("accelerate starts no processes with gloo there", allow_module_level=True)

HOOK = "blocks.1.hook_resid_post"
TOLERANCE = 1e-5
"""Of a weight after 40 steps, resampling among them: processes add up gradients in another order than one does."""
WORKER = """
import os, sys
import torch
from accelerate import Accelerator
import saelab, saelab.data.shards, saelab.training.checkpoints

torch.set_num_threads(1)
def say(*words):  # in one write: the two processes share a pipe
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
accelerator = Accelerator(cpu=True)
store, folder = saelab.ActivationStore.open(sys.argv[1]), sys.argv[2]
read = set()
check = saelab.data.shards.StoredRows._check
def checked(self, shard, blocks):
    read.update((shard, int(block)) for block in blocks)
    check(self, shard, blocks)
saelab.data.shards.StoredRows._check = checked
write = saelab.training.checkpoints.write_tensors
def written(path, *content):
    say("write", os.environ["RANK"])
    return write(path, *content)
saelab.training.checkpoints.write_tensors = written
if accelerator.is_main_process or "--same" in sys.argv:
    sae = saelab.GatedSAE(256, 64)
else:  # a user's own random start: the main process's counts
    sae = saelab.GatedSAE(256, 64, seed=7)
settings = eval(sys.argv[3])
knobs = settings.pop("knobs", {})
config = saelab.TrainingConfig(**settings)
read.clear()
saelab.Trainer(sae, store, config, folder=folder, accelerator=accelerator, **knobs).run(progress=False)
say("read", sorted(read))
"""


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 12 blocks, so that both processes have some."""
    folder = tmp_path_factory.mktemp("store") / "store"
    saelab.harvest(model, HOOK, saelab.load_text()[:40], store=folder, n_tokens=3000, progress=False)
    return folder


def launch(*what: object, **options: Any) -> "subprocess.Popen[str]":
    """`accelerate launch` on two processes; `--multi_gpu` is its word for several on one machine, CPUs too."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *map(str, what)], env=environment, encoding="utf-8", **options)


def launched(*what: object) -> str:
    process = launch(*what, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_weights(sae: saelab.SparseAutoencoder, other: saelab.SparseAutoencoder) -> None:
    for name, weight in sae.named_parameters():
        torch.testing.assert_close(weight, other.get_parameter(name), rtol=0, atol=TOLERANCE, msg=name)


RESAMPLED = {
    "n_steps": 40, "batch_size": 501, "sparsity_warmup_steps": 5, "lr_warmup_steps": 5,
    "dead_after_steps": 5, "resample_every": 15, "checkpoint_every": 20,
}  # fmt: skip


def test_two_processes_train_the_sae_of_one_each_on_rows_of_its_own(
    folder: Path, tmp_path: Path, one_thread: None
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    output = launched(script, folder, tmp_path / "two", repr({**RESAMPLED, "knobs": {"l1_coefficient": 40}}))
    config = saelab.TrainingConfig(**RESAMPLED)  # type: ignore[arg-type]
    store = ActivationStore.open(folder)
    one = saelab.Trainer(saelab.GatedSAE(256, 64), store, config, l1_coefficient=40).run(progress=False)
    assert one.history["n_resampled"].any()
    two = saelab.Trainer.resume(tmp_path / "two", store)
    assert_same_weights(two.sae, one.sae)
    assert two.sae.trained_on == store.trained_on
    for name, values in one.history.items():
        assert two.history[name][0] == pytest.approx(values[0], rel=1e-6), name  # of the same weights
        assert two.history[name] == pytest.approx(values, rel=1e-3, abs=1e-2), name
    lines = output.splitlines()
    assert lines.count("write 0") == 2 and "write 1" not in lines  # after 20 steps, and at the end
    mine, other = (set(eval(line.removeprefix("read "))) for line in lines if line.startswith("read "))
    assert mine and other and not mine & other and len(mine | other) == 12


def test_the_command_line_trains_in_two_processes_what_it_trains_in_one(folder: Path, tmp_path: Path) -> None:
    options = ["--d-sae", "64", "--n-steps", "20", "--batch-size", "300", "--start-at-mean"]
    output = launched("-m", "saelab", "train", folder, tmp_path / "two", *options, "--json")
    assert [json.loads(line)["step"] for line in output.splitlines() if line.startswith("{")] == [20]  # by one of them
    one = [sys.executable, "-m", "saelab", "train", str(folder), str(tmp_path / "one"), *options]
    subprocess.run(one, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert_same_weights(saelab.load(tmp_path / "two" / CHECKPOINT), saelab.load(tmp_path / "one" / CHECKPOINT))


@pytest.mark.parametrize("stopped_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_or_a_told_launcher_ends_the_run_with_a_checkpoint_to_go_on_from(
    folder: Path, tmp_path: Path, one_thread: None, stopped_by: signal.Signals
) -> None:
    script, run = tmp_path / "worker.py", tmp_path / "run"
    script.write_text(WORKER, encoding="utf-8")
    config = {"n_steps": 5000, "batch_size": 300, "checkpoint_every": 10}
    process = launch(script, folder, run, repr(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (run / CHECKPOINT).exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(workers) == 2
    os.kill(workers[1] if stopped_by == signal.SIGKILL else process.pid, stopped_by)
    process.communicate(timeout=60)
    assert process.returncode != 0
    for worker in workers:
        assert not psutil.pid_exists(worker)
    store = ActivationStore.open(folder)
    resumed = saelab.Trainer.resume(run, store)
    n_steps = resumed.n_steps_done
    assert 10 <= n_steps < 5000
    for _ in range(3):
        resumed.step()
    alone = saelab.Trainer(saelab.GatedSAE(256, 64), store, saelab.TrainingConfig(**config))  # type: ignore[arg-type]
    while alone.n_steps_done < n_steps + 3:
        alone.step()
    assert alone.history["l0"] == pytest.approx(resumed.history["l0"], rel=1e-2)
