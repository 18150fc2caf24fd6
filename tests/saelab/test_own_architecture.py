"""Every room of the library takes an architecture that it has never heard of, or refuses it with a sentence."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saelab
from saelab import Moment, SparseAutoencoder, Trainer, TrainingConfig
from saelab.data.activations import ActivationStore
from saelab.figures import lines, pareto
from saelab.sae.thresholds import with_thresholds
from saelab.training.checkpoints import CHECKPOINT

CONFIG = TrainingConfig(n_steps=40, batch_size=64, lr=1e-2, checkpoint_every=10)
X = saelab.superposition(32, 16, 0.05, n_samples=1000).activations


def trained(winners: Any, **knobs: Any) -> Trainer:
    return Trainer(winners(16, 32), X, CONFIG, **knobs).run(progress=False)


def test_it_trains_and_its_history_has_its_term_its_knob_and_no_one_elses(winners: Any) -> None:
    trainer = trained(winners, warmth=0.25)
    frame = trainer.history_frame()
    assert frame.fvu.iloc[-1] < 0.7 * frame.fvu.iloc[0]
    assert (frame.l0 <= 4).all() and (frame.warmth == 0.25).all()
    assert not {"l1_coefficient", "sparsity", "gate_threshold"} & set(frame.columns)
    assert frame.loss.to_numpy() == pytest.approx((frame.reconstruction + 0.25 * frame.losers).to_numpy(), rel=1e-5)
    trainer.warmth = 0.0
    record = trainer.step()
    assert record.coefficients == {"warmth": 0.0} and record.loss == record.reconstruction
    with pytest.raises(AttributeError, match=r"'l1_coefficient' is no knob .* warmth, lr"):
        trainer.l1_coefficient = 4.0


def test_its_term_falls_with_the_steps_of_training_as_it_says(winners: Any) -> None:
    sae = winners(16, 32)
    with torch.no_grad():
        sae.b_enc.fill_(0.1)
    full, half, none = (sae.loss(X[:64], moment=Moment(step, 40)).terms["losers"].item() for step in (0, 20, 40))
    assert full > 0 and half == pytest.approx(full / 2) and none == 0
    with pytest.raises(TypeError, match="no l1_coefficient; it has warmth"):
        sae.loss(X[:64], l1_coefficient=1.0)


KILLED = """
import runpy, sys
import torch
import saelab
winners = runpy.run_path(sys.argv[1])["WinnersSAE"]
torch.set_num_threads(1)
x = saelab.superposition(32, 16, 0.05, n_samples=1000).activations
config = saelab.TrainingConfig(n_steps=40, batch_size=64, lr=1e-2, checkpoint_every=10)
trainer = saelab.Trainer(winners(16, 32), x, config, folder=sys.argv[2], warmth=0.25)
for record in trainer:
    if record.step == 20:
        trainer.save()
    if record.step == 23:
        print("now", flush=True)
        sys.stdin.read()
"""


def test_killed_and_resumed_it_ends_bit_by_bit_where_an_undisturbed_run_ends(
    winners: Any, tmp_path: Path, one_thread: None
) -> None:
    own = Path(__file__).parents[1] / "own_architecture.py"
    command = [sys.executable, "-c", KILLED, str(own), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.kill()
    assert process.wait() != 0
    resumed = Trainer.resume(tmp_path, X)
    assert resumed.n_steps_done == 20 and resumed.knobs == {"warmth": 0.25, "lr": 1e-2}
    resumed.run(progress=False)
    whole = trained(winners, warmth=0.25)
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[name], tensor), name
    assert resumed.records == whole.records


def test_its_file_brings_it_back(winners: Any, tmp_path: Path) -> None:
    sae = trained(winners).sae
    loaded = saelab.load(saelab.save(sae, tmp_path / "sae.safetensors"))
    assert type(loaded) is winners and torch.equal(loaded.encode(X), sae.encode(X))
    assert type(saelab.load(Trainer(sae, X, CONFIG, folder=tmp_path / "run").save())) is winners
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_a_sweep_trains_it_once_for_it_has_no_knob_for_sparsity(winners: Any, tmp_path: Path) -> None:
    table = saelab.sweep(lambda: winners(16, 32), X, config=CONFIG, folder=tmp_path, progress=False, warmth=0.1)
    assert list(table.architecture) == ["winners"] and 0 < table.l0[0] <= 4
    with pytest.raises(ValueError, match="a winners SAE has no knob for sparsity"):
        saelab.sweep(lambda: winners(16, 32), X, [1, 2], config=CONFIG, folder=tmp_path, progress=False)


def test_metrics_loss_recovered_and_features_are_its_own(winners: Any, model: Any, store: ActivationStore) -> None:
    sae = winners(256, 512)
    Trainer(sae, store, TrainingConfig(n_steps=60, batch_size=256)).run(progress=False)
    metrics = saelab.evaluate(sae, store)
    codes = sae.encode(store.activations[:])
    assert metrics.l0 == pytest.approx(float((codes > 0).sum(dim=1).double().mean())) and 0 < metrics.l0 <= 4
    recovered = saelab.loss_recovered(model, store.hook, sae, saelab.load_text()[:4], progress=False)
    assert recovered.clean < recovered.spliced < recovered.zero_ablated
    readings = saelab.read_features(model, sae, store, features=range(8), progress=False)
    assert [reading.density for reading in readings] == pytest.approx(metrics.density[:8].tolist())


def test_a_probe_reads_its_codes(winners: Any) -> None:
    labels = (X[:, 0] > X[:, 1]).long()
    n = len(X)
    texts = np.array(["text"] * n)
    data = saelab.LabelledSet(X, labels, texts, texts, labels.numpy().astype(str))
    table = saelab.compare_representations(data, {"winners": trained(winners).sae}, progress=False)
    assert list(table.representation) == ["activations", "winners", "PCA, k of winners"]
    assert table.l0[1] <= 4 and table.test_accuracy.between(0, 1).all()


def test_figures_draw_it_under_its_own_name_beside_the_others(winners: Any, tmp_path: Path) -> None:
    own = saelab.sweep(lambda: winners(16, 32), X, config=CONFIG, folder=tmp_path, progress=False)
    gated = saelab.sweep(lambda: saelab.GatedSAE(16, 32), X, [1, 4], config=CONFIG, folder=tmp_path, progress=False)
    import pandas as pd

    figure = pareto(pd.concat([gated, own]), y="fvu")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gated", "winners"]
    lines(trained(winners).history_frame(), "step", ["l0", "losers"])


def test_what_needs_a_gate_threshold_or_a_form_elsewhere_refuses_it_with_a_sentence(
    winners: Any, tmp_path: Path
) -> None:
    sae: SparseAutoencoder = winners(16, 32)
    for ask in (lambda: saelab.threshold_curves(sae, X, [0.0, 1.0]), lambda: with_thresholds(sae, natural=0.5)):
        with pytest.raises(TypeError, match="a winners SAE has no gate threshold"):
            ask()
    for format in ("sae_lens", "dictionary_learning"):
        with pytest.raises(ValueError, match="a WinnersSAE has no form in other libraries; keep it with saelab.save"):
            saelab.export(sae, tmp_path / format, format)
        assert not (tmp_path / format).exists()
    with pytest.raises(ValueError, match="a WinnersSAE has no form in other libraries"):
        saelab.export(sae, tmp_path / "out", "sae_lens", as_jumprelu=True)


def test_dead_features_of_it_are_resampled(winners: Any) -> None:
    config = TrainingConfig(n_steps=80, batch_size=64, resample_every=20, dead_after_steps=10)
    trainer = Trainer(winners(16, 64), X, config).run(progress=False)
    assert trainer.history["n_resampled"].any()
    assert all(math.isfinite(record.loss) for record in trainer.records)
