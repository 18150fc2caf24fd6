"""A sweep trains each SAE once, whatever happens, and tells them all in one table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab import (
    ARCHITECTURES,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
    evaluate,
    load,
    superposition,
    sweep,
)

CONFIG = TrainingConfig(n_steps=40, batch_size=64, checkpoint_every=10)
X = superposition(32, 16, 0.05, n_samples=1000).activations


def make_gated() -> GatedSAE:
    return GatedSAE(16, 32)


def make_standard() -> StandardSAE:
    return StandardSAE(16, 32)


def test_a_sweep_has_a_row_an_sae_with_its_metrics_and_its_file(tmp_path: Path) -> None:
    table = sweep([make_gated, make_standard], X, [0.5, 4], config=CONFIG, folder=tmp_path, progress=False)
    assert list(table.architecture) == ["gated", "gated", "standard", "standard"]
    assert list(table.l1_coefficient) == [0.5, 4, 0.5, 4]
    assert {"l0", "fvu", "gamma", "n_dead", "seconds", "path"} <= set(table.columns)
    for row in table.to_dict("records"):
        measured = evaluate(load(row["path"]), X).as_dict()
        assert measured == pytest.approx({name: row[name] for name in measured})
    assert table.l0[1] < table.l0[0] and table.l0[3] < table.l0[2]
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_a_sweep_that_is_done_is_read_and_what_is_new_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(make_gated, X, [0.5, 4], config=CONFIG, folder=tmp_path, progress=False)
    trained: list[float] = []
    run = Trainer.run

    def counted(self: Trainer, **options: Any) -> Trainer:
        trained.append(self.l1_coefficient)
        return run(self, **options)

    monkeypatch.setattr(Trainer, "run", counted)
    assert sweep(make_gated, X, [0.5, 4], config=CONFIG, folder=tmp_path, progress=False).equals(first)
    assert trained == []
    sweep(make_gated, X, [0.5, 2], config=CONFIG, folder=tmp_path, progress=False)
    assert trained == [2]
    for change in (
        {"activations": X * 0.9},
        {"config": TrainingConfig(n_steps=41, batch_size=64)},
        {"make_sae": lambda: GatedSAE(16, 32, seed=1)},
        {"test": X[:100]},
        {"aux_coefficient": 0.5},
    ):
        arguments = {"make_sae": make_gated, "activations": X, "config": CONFIG, **change}
        sweep(sparsity=[0.5], folder=tmp_path, progress=False, **arguments)  # type: ignore[arg-type]
    assert trained == [2, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_an_interrupted_sweep_goes_on_within_the_sae_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(make_gated, X, [0.5, 4], config=CONFIG, folder=tmp_path / "whole", progress=False)
    step, steps = Trainer.step, []

    def breaking(self: Trainer) -> object:
        steps.append((self.l1_coefficient, self.n_steps_done))
        if len(steps) == 65:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        sweep(make_gated, X, [0.5, 4], config=CONFIG, folder=tmp_path / "parts", progress=False)
    parts = sweep(make_gated, X, [0.5, 4], config=CONFIG, folder=tmp_path / "parts", progress=False)
    assert steps[65:] == [(4.0, n) for n in range(20, 40)]  # the last checkpoint was at step 20
    for ours, theirs in zip(parts.path, whole.path, strict=True):
        for name, weight in load(theirs).state_dict().items():
            torch.testing.assert_close(load(ours).state_dict()[name], weight)


def test_a_sweep_with_nothing_to_do_or_nothing_to_test_on_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one make_sae, and at least one value of its sparsity knob"):
        sweep(make_gated, X, [], folder=tmp_path)
    with pytest.raises(TypeError, match="test must be a torch.Tensor or an ActivationStore.*not list"):
        sweep(make_gated, [X], [1.0], folder=tmp_path)


def test_the_column_of_the_values_is_named_after_the_knob_that_a_sweep_varies(tmp_path: Path) -> None:
    makers: list[Callable[[], SparseAutoencoder]] = [make_gated, lambda: JumpReLUSAE(16, 32)]
    table = sweep(makers, X, [0.5, 4], config=CONFIG, folder=tmp_path, progress=False)
    assert list(table.l1_coefficient[:2]) == [0.5, 4] == list(table.l0_coefficient[2:])
    assert table.l0_coefficient[:2].isna().all() and table.l1_coefficient[2:].isna().all()


def test_rescale_and_shift_is_swept_without_values_and_what_has_a_knob_is_not(tmp_path: Path) -> None:
    def repaired() -> RescaleShiftSAE:
        return RescaleShiftSAE.from_standard(make_standard())

    table = sweep(repaired, X, config=CONFIG, folder=tmp_path, progress=False)
    assert list(table.architecture) == ["rescale_shift"] and "l1_coefficient" not in table
    with pytest.raises(ValueError, match="a rescale and shift SAE has no knob for sparsity; .*leave the values out"):
        sweep(repaired, X, [1.0], folder=tmp_path / "none")
    with pytest.raises(ValueError, match="a sweep of a gated SAE needs values of its l1_coefficient, such as 4"):
        sweep(make_gated, X, folder=tmp_path / "none")
    with pytest.raises(TypeError, match="'aux_coeficient' is no knob of a gated SAE's training"):
        sweep(make_gated, X, [1.0], folder=tmp_path / "none", aux_coeficient=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch])
def test_every_architecture_is_swept_over_its_own_knob(name: str, tmp_path: Path) -> None:
    cls = ARCHITECTURES[name]
    assert cls.sparsity_knob is not None
    values = [cls.sparsity_knob.default / 2, cls.sparsity_knob.default / 4]
    table = sweep(lambda: cls(16, 64), X, values, config=CONFIG, folder=tmp_path, progress=False)
    assert list(table[cls.sparsity_knob.name]) == values and set(table.architecture) == {name}
    again = sweep(lambda: cls(16, 64), X, values, config=CONFIG, folder=tmp_path, progress=False)
    assert again.equals(table) and all(type(load(path)) is cls for path in table.path)
