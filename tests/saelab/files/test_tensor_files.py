"""Files are written and read so that Windows, too, lets them be flushed and replaced."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saelab
from saelab.cli.lab import original_tutorials
from saelab.course.handout import handout
from saelab.files.other_libraries import FORMATS

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def train(folder: Path) -> saelab.Trainer:
    config = saelab.TrainingConfig(n_steps=3, batch_size=16)
    trainer = saelab.Trainer(saelab.GatedSAE(6, 10), X, config, folder=folder)
    trainer.run(progress=False)
    return trainer


def test_every_file_is_flushed_through_a_handle_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows itself refuses the others")
    flushed: list[int] = []

    def fsync_of_windows(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError("[Errno 13] Permission denied")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_of_windows)
    sae = saelab.GatedSAE(6, 10)
    writers: list[Callable[[], object]] = [
        lambda: saelab.save(sae, tmp_path / "sae.safetensors"),
        lambda: train(tmp_path / "run"),
        lambda: saelab.harvest(
            model, "blocks.0.hook_resid_post", ["A film."], store=tmp_path / "store", progress=False
        ),
        lambda: handout(original_tutorials(), tmp_path / "handout"),
        *(lambda name=name: saelab.export(sae, tmp_path / name, name) for name in FORMATS),
    ]
    for write in writers:
        flushed.clear()
        write()
        assert flushed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_nothing_of_a_file_stays_mapped_once_it_is_loaded(tmp_path: Path) -> None:
    """Windows would refuse to replace it, as the next checkpoint does."""
    sae = train(tmp_path / "run").sae
    kept = [
        saelab.load(saelab.save(sae, tmp_path / "sae.safetensors")),
        saelab.Trainer.resume(tmp_path / "run", X),
        *(saelab.load(saelab.export(sae, tmp_path / name, name)) for name in FORMATS),
    ]
    assert len(kept) == 2 + len(FORMATS)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
