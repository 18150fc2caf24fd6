"""The device that "auto" stands for, whatever torch was built for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import saelab
from saelab.cli.app import app
from saelab.devices import automatic_device
from saelab.training.checkpoints import Checkpoint


def patch_torch(monkeypatch: pytest.MonkeyPatch, *, available: bool, current: Any) -> None:
    def answer(check_available: bool = False) -> Any:
        if check_available and not available:
            return None
        if isinstance(current, Exception):
            raise current
        return current

    monkeypatch.setattr("torch.accelerator.is_available", lambda: available)
    monkeypatch.setattr("torch.accelerator.current_accelerator", answer)


WITHOUT_GPU = [
    torch.device("cuda"),  # a CUDA build names its device whether or not there is one
    RuntimeError("Cannot access accelerator device when none is available."),  # torch 2.6
    None,  # a CPU build
]


@pytest.mark.parametrize("current", WITHOUT_GPU, ids=["built for CUDA", "torch 2.6", "CPU build"])
def test_without_a_gpu_everything_runs_on_the_cpu(
    current: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    patch_torch(monkeypatch, available=False, current=current)
    assert automatic_device() == torch.device("cpu")
    assert saelab.GatedSAE(4, 4, device="auto").W_enc.device.type == "cpu"
    folder, run = str(tmp_path / "store"), str(tmp_path / "run")
    training = ("--d-sae", "16", "--n-steps", "4", "--batch-size", "64")
    for words in (
        ("harvest", folder, "--hook", store.hook, "--n-tokens", "300"),
        ("train", folder, run, *training),
        ("evaluate", run, folder),
        ("sweep", folder, str(tmp_path / "sweep"), *training, "--l1-coefficient", "2"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output


def test_a_gpu_is_taken_where_torch_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_torch(monkeypatch, available=True, current=torch.device("cuda"))
    assert automatic_device() == torch.device("cuda")


def test_a_run_from_a_gpu_goes_on_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_torch(monkeypatch, available=False, current=torch.device("cuda"))
    x = torch.randn(64, 4)
    saelab.Trainer(saelab.GatedSAE(4, 8), x, saelab.TrainingConfig(2, 16), folder=tmp_path).run(progress=False)
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda path: replace(read(path), device="cuda:1"))
    resumed = saelab.Trainer.resume(tmp_path, x)
    assert resumed.n_steps_done == 2 and resumed.sae.W_enc.device.type == "cpu"
