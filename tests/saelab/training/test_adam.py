"""Adam's update: right by hand, the same in one pass over memory as in torch's, and kept from run to run."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from saelab import GatedSAE, JumpReLUSAE, SparseAutoencoder, StandardSAE, Trainer, TrainingConfig
from saelab.sae import workers
from saelab.sae.base import Preset
from saelab.training.adam import Adam


def with_gradients(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return sae


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_steps_are_those_computed_by_hand(dtype: torch.dtype) -> None:
    sae = StandardSAE(2, 1, preset="norm_weighted", dtype=dtype)
    adam = Adam(sae, (0.0, 0.75))
    with torch.no_grad():
        sae.b_enc.fill_(1.0)
    sae.b_enc.grad = torch.full((1,), 2.0, dtype=dtype)
    adam.step(0.5)  # square 0.25 * 4 = 1, by its correction 4: a step of 0.5 * 2 / 2
    assert sae.b_enc.item() == pytest.approx(0.5)
    sae.b_enc.grad = torch.full((1,), -1.0, dtype=dtype)
    adam.step(0.5)  # square 0.75 * 1 + 0.25 * 1 = 1, corrected 1 / 0.4375: a step of -0.5 / 1.511858
    assert sae.b_enc.item() == pytest.approx(0.5 + 0.5 * 0.4375**0.5)


def test_a_decoder_row_turns_without_growing() -> None:
    sae = StandardSAE(2, 1)
    adam = Adam(sae, (0.0, 0.75))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0]]))
    sae.W_dec.grad = torch.tensor([[5.0, 2.0]])  # projected: (0, 2); a step of (0, -0.5)
    adam.step(0.5)
    length = 1.25**0.5
    torch.testing.assert_close(sae.W_dec.detach(), torch.tensor([[1.0, -0.5]]) / length)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.99)])
@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize("cls", [GatedSAE, JumpReLUSAE])
def test_one_pass_over_memory_gives_what_torch_gives(
    cls: type[SparseAutoencoder], preset: Preset, betas: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (cls(12, 200, preset=preset, dtype=torch.float64) for _ in range(2))
    compiled = Adam(ours, betas)
    monkeypatch.setattr(workers, "compiled", lambda: None)
    by_torch = Adam(theirs, betas)
    monkeypatch.undo()
    assert compiled._torch is None and by_torch._torch is not None
    for step in range(4):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        if step == 2:  # a parameter without a gradient stays as it is
            ours.b_dec.grad = theirs.b_dec.grad = None
        compiled.step(0.01)
        by_torch.step(0.01)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.999)])
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_run_goes_on_where_numba_is_missing_and_where_it_is_back(
    compiled_first: bool, betas: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, config = torch.randn(512, 12, dtype=torch.float64), TrainingConfig(n_steps=20, batch_size=64, betas=betas)
    whole = Trainer(GatedSAE(12, 40, dtype=torch.float64), x, config, l1_coefficient=1.0).run(progress=False)
    for n_steps, has_numba in ((10, compiled_first), (20, not compiled_first)):
        with monkeypatch.context() as patch:
            if not has_numba:
                patch.setattr(workers, "compiled", lambda: None)
            if n_steps == 10:
                sae = GatedSAE(12, 40, dtype=torch.float64)
                trainer = Trainer(sae, x, config, folder=tmp_path, l1_coefficient=1.0)
            else:
                trainer = Trainer.resume(tmp_path, x)
            while trainer.n_steps_done < n_steps:
                trainer.step()
            trainer.save()
    for name, parameter in whole.sae.named_parameters():
        torch.testing.assert_close(trainer.sae.get_parameter(name), parameter, rtol=1e-6, atol=1e-6)
