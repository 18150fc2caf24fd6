"""Every public path with an SAE on a GPU, as far as rules of devices go: see `pretend_device`.

What comes out has to be what the CPU gives, and on the device where it belongs.
"""

import copy
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from saes import D_IN, D_SAE, DEVICE, SAES, an_sae, inputs  # type: ignore[import-not-found]
from torch import Tensor

import saelab
from saelab import (
    ElementwiseSAE,
    GatedSAE,
    Moment,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
)
from saelab.data.labelled import LabelledActivations, LabelledSet, LabelledSplit
from saelab.exercises import verdicts
from saelab.sae.thresholds import threshold_curves, with_thresholds

HOOK = "blocks.1.hook_resid_post"
EACH_SAE = pytest.mark.parametrize("name", SAES)
SIDES = ("cpu", DEVICE)
NO_STEP = pytest.mark.parametrize("rules", ["cuda", "mps"], indirect=True)
"""For paths that take no training step, which alone can be dense or sparse."""


def same(found: Tensor, expected: Tensor, what: str, device: str = DEVICE) -> None:
    """On the device, and what the CPU gives."""
    assert found.device.type == device, f"{what} is on {found.device}"
    torch.testing.assert_close(
        found.cpu(), expected, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def same_table(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-5)


def test_every_architecture_is_among_those_tried() -> None:
    assert {an_sae(name).architecture for name in SAES} == set(saelab.ARCHITECTURES)


@EACH_SAE
def test_a_training_pass_has_the_values_and_gradients_of_the_cpu(rules: str, name: str) -> None:
    on_cpu, on_device = an_sae(name), an_sae(name, DEVICE)
    thresholds = (0.0, 0.5, -0.5) if isinstance(on_cpu, ElementwiseSAE) else (0.0,)
    for threshold in thresholds:
        found: dict[str, dict[str, Tensor]] = {}
        for sae, device in ((on_cpu, "cpu"), (on_device, DEVICE)):
            if isinstance(sae, ElementwiseSAE):
                sae.gate_threshold = threshold
            x = inputs().to(device).requires_grad_()
            dead = (torch.arange(D_SAE) % 3 == 0).to(device)
            sae.zero_grad()
            coefficients = {term.coefficient.name: 2.0 for term in sae.terms}
            result = sae.training_pass(x, coefficients, Moment(3, 10, dead))
            torch.autograd.backward(result.loss.total)
            sae.project_decoder_gradient()
            loss = sae.loss(x, moment=Moment(3, 10, dead))
            gradients = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
            assert x.grad is not None
            found[device] = {
                "total": result.loss.total, "reconstruction": result.loss.reconstruction, **result.loss.terms,
                "l0": result.l0, "fired": result.fired, "residual": result.residual, **result.observed,
                "loss": loss.total, "gradient of x": x.grad, **gradients,
            }  # fmt: skip
        assert found["cpu"].keys() == found[DEVICE].keys()
        for what, expected in found["cpu"].items():
            same(found[DEVICE][what], expected, f"{what} at a gate threshold of {threshold}")


@NO_STEP
@EACH_SAE
def test_an_sae_is_made_reads_and_is_copied_on_the_device(rules: str, name: str) -> None:
    on_cpu, on_device, x = an_sae(name), an_sae(name, DEVICE), inputs()
    made = SAES[name](D_IN, D_SAE, device="auto")
    for what, parameter in made.named_parameters():
        same(parameter.detach(), SAES[name](D_IN, D_SAE).get_parameter(what).detach(), what)
    with torch.no_grad():
        same(on_device.encode(x.to(DEVICE)), on_cpu.encode(x), "codes")
        for sae in (on_device, copy.deepcopy(on_device), copy.deepcopy(on_cpu).to(DEVICE)):
            same(sae(x.to(DEVICE)), on_cpu(x), "reconstruction")
        same(copy.deepcopy(on_device).to("cpu")(x), on_cpu(x), "reconstruction", "cpu")
        for parameter in (on_device.W_dec, on_cpu.W_dec):
            parameter.mul_(3.0)
        for sae in (on_device, on_cpu):
            sae.after_update({})
        same(on_device.W_dec.detach(), on_cpu.W_dec.detach(), "decoder")


@NO_STEP
@EACH_SAE
def test_an_sae_takes_its_other_forms_on_the_device(rules: str, name: str) -> None:
    on_cpu, on_device, x = an_sae(name), an_sae(name, DEVICE), inputs()
    forms: dict[str, Callable[[Any], SparseAutoencoder]] = {}
    if "untied_encoders" not in name:
        forms["portable"] = lambda sae: sae.portable()
    if isinstance(on_cpu, ElementwiseSAE):
        forms["with thresholds"] = lambda sae: with_thresholds(sae, gate_threshold=0.3)
    if isinstance(on_cpu, ElementwiseSAE) and "untied_encoders" not in name:
        lines = zip(("slope", "shift"), on_device.magnitude_line(), on_cpu.magnitude_line(), strict=True)
        for end, found, expected in lines:
            same(found, expected, end)
        forms["with own thresholds"] = lambda sae: with_thresholds(sae, natural=0.5, own_thresholds={3: 0.5, 4: -0.2})
    if name == "batchtopk" or (isinstance(on_cpu, ElementwiseSAE) and "untied_encoders" not in name):
        forms["JumpReLU"] = lambda sae: sae.to_jumprelu()
    if isinstance(on_cpu, GatedSAE) and "untied_encoders" not in name:
        forms["natural b_mag"] = lambda sae: sae.with_natural_b_mag()
    if isinstance(on_cpu, StandardSAE):
        forms["rescale and shift"] = RescaleShiftSAE.from_standard
    with torch.no_grad():
        for what, form in forms.items():
            same(form(on_device)(x.to(DEVICE)), form(on_cpu)(x), what)


@NO_STEP
@pytest.mark.parametrize("name", [name for name in SAES if not name.startswith(("topk", "batchtopk"))])
def test_threshold_curves_are_those_of_the_cpu(rules: str, name: str) -> None:
    naturals = (0.0,) if "untied_encoders" in name else (0.0, 0.5)
    for natural in naturals:
        expected = threshold_curves(an_sae(name), inputs(), [0.3, -0.5, 2.0], natural=natural)
        for side in SIDES:
            x = inputs().to(side)
            same_table(threshold_curves(an_sae(name, DEVICE), x, [0.3, -0.5, 2.0], natural=natural), expected)


@EACH_SAE
def test_training_resamples_and_resumes_with_activations_on_either_side(rules: str, name: str, tmp_path: Path) -> None:
    config = TrainingConfig(n_steps=8, batch_size=64, resample_every=4, dead_after_steps=2)
    x = inputs(512)
    trained = {}
    for device in ("cpu", DEVICE):
        sae = an_sae(name, device)
        with torch.no_grad():
            for bias in ("b_gate", "b_enc"):
                if bias in dict(sae.named_parameters()):
                    sae.get_parameter(bias)[:3] = -1e3
        trainer = Trainer(sae, x, config, folder=tmp_path / device)
        for _ in range(6):
            trainer.step()
        trainer.save()
        trained[device] = resumed = Trainer.resume(tmp_path / device, x.to(device)).run(progress=False)
        assert resumed.sae.W_enc.device.type == device
        record = resumed.measure(x[:64])
        assert record.loss > 0
        assert saelab.load(tmp_path / device / "checkpoint.safetensors", device=device).W_enc.device.type == device
    resamples = trained["cpu"].sae.W_enc.requires_grad
    assert (trained["cpu"].history_frame().n_resampled.sum() > 0) == resamples
    same_table(trained[DEVICE].history_frame(), trained["cpu"].history_frame())


def test_training_in_half_precision_keeps_weights_and_losses_in_float32(rules: str) -> None:
    config = TrainingConfig(n_steps=3, batch_size=32, precision="bfloat16")
    for name in SAES:
        trainer = Trainer(an_sae(name, DEVICE), inputs(128), config).run(progress=False)
        assert all(p.dtype == torch.float32 for p in trainer.sae.parameters())
        assert np.isfinite(trainer.history["loss"]).all()


@NO_STEP
def test_the_density_below_which_sparse_steps_are_faster_can_be_measured(rules: str) -> None:
    from saelab.sae.sparse import measured_crossover

    for autocast in (False, True):
        found = measured_crossover.__wrapped__(torch.device(DEVICE, 0), 32, D_IN, D_SAE, autocast=autocast)
        assert found == -1.0 if rules == "mps" else -1.0 <= found <= 0.1


@NO_STEP
@pytest.mark.parametrize("side", SIDES)
def test_evaluate_gives_the_numbers_of_the_cpu(rules: str, side: str) -> None:
    for name in SAES:
        expected = saelab.evaluate(an_sae(name), inputs(), batch_size=50)
        found = saelab.evaluate(an_sae(name, DEVICE), inputs().to(side), batch_size=50)
        assert found.as_dict() == pytest.approx(expected.as_dict(), rel=1e-4), name
        assert found.density.equal(expected.density)


@NO_STEP
def test_dead_features_are_resampled_on_the_device(rules: str) -> None:
    for name in SAES:
        resampled = []
        for device in ("cpu", DEVICE):
            sae, dead = an_sae(name, device), torch.arange(D_SAE) % 5 == 0
            generator = torch.Generator().manual_seed(3)
            saelab.resample_dead_features(sae, dead.to(device), inputs(256).to(device), generator=generator)
            resampled.append(sae)
        for what, parameter in resampled[1].named_parameters():
            same(parameter.detach(), resampled[0].get_parameter(what).detach(), f"{what} of {name}")


@NO_STEP
def test_metrics_are_those_of_the_cpu(rules: str) -> None:
    x, codes, true = inputs(), inputs(d=D_SAE).relu(), inputs(d=4).relu()
    sae = an_sae("gated, norm-weighted")
    matching = torch.tensor([3, -1, 0, 7])
    for side in SIDES:
        x_there, codes_there, dictionary = x.to(side), codes.to(side), sae.W_dec.detach().to(side)
        for metric in (saelab.L0, saelab.L1, saelab.FeatureDensity):
            pair = metric(), metric()
            for stream, batch in zip(pair, (codes_there, codes), strict=True):
                stream.add_batch(batch)
                stream.add_batch(batch)
            found, expected = (torch.as_tensor(stream.compute()).cpu() for stream in pair)
            torch.testing.assert_close(found, expected)
        for formula in ("corrected", "v1", "projection", "norm_ratio"):
            found_bias = saelab.relative_reconstruction_bias(x_there, 0.7 * x_there, formula)
            assert found_bias == pytest.approx(
                saelab.relative_reconstruction_bias(x, 0.7 * x, formula),
                rel=1e-6,
            )
        for other in (saelab.FVU, saelab.CosineSimilarity):
            there, here = other(), other()
            there.add_batch(x_there, x_there.relu())
            here.add_batch(x, x.relu())
            assert there.compute() == pytest.approx(here.compute(), rel=1e-6)
        match = saelab.matched_cosine_similarity(dictionary, sae.W_dec.detach()[:4])
        assert match.mean == pytest.approx(1.0)
        norms = dictionary.norm(dim=1)
        for place in (matching, matching.to(side)):
            shrinkage = saelab.feature_shrinkage(codes_there, true.to(side), place, decoder_norms=norms).cpu()
            expected = saelab.feature_shrinkage(codes, true, matching, decoder_norms=norms.cpu())
            torch.testing.assert_close(shrinkage, expected, equal_nan=True)


@NO_STEP
@EACH_SAE
def test_an_sae_of_the_device_is_compared_with_the_truth(rules: str, name: str) -> None:
    data = saelab.superposition(D_SAE, D_IN, 0.2, n_samples=50, n_parents=2)
    sae, on_cpu = an_sae(name, DEVICE), an_sae(name)
    expected = saelab.compare_with_truth(on_cpu, data).as_dict()
    assert saelab.compare_with_truth(sae, data, batch_size=20).as_dict() == pytest.approx(expected)
    pair = sae.W_dec, sae.encode(data.activations.to(DEVICE))
    assert saelab.compare_with_truth(pair, data).as_dict() == pytest.approx(expected)
    stability = saelab.dictionary_stability([sae.W_dec, -on_cpu.W_dec, on_cpu.W_dec])
    assert stability.pairs.matched_cosine[1] == pytest.approx(1.0)


@NO_STEP
@pytest.mark.parametrize("side", SIDES)
def test_probes_read_codes_of_the_device(rules: str, side: str) -> None:
    def data(side: str) -> LabelledSet:
        n = 80
        strata = np.array(["a", "a", "b", "b"] * (n // 4))
        labels = torch.arange(n) // 2 % 2
        return LabelledSet(
            x=(inputs(n) + labels[:, None]).to(side), labels=labels.to(side), texts=strata,
            blocks=np.array(["p", "q"] * (n // 2)), strata=strata,
        )  # fmt: skip

    sae, on_cpu = an_sae("gated", DEVICE), an_sae("gated")
    for held_out in ("stratified", "block"):
        found = saelab.compare_representations(data(side), {"gated": sae}, held_out=held_out, progress=False)
        expected = saelab.compare_representations(data("cpu"), {"gated": on_cpu}, held_out=held_out, progress=False)
        same_table(found, expected)
    split, split_on_cpu = data(side).split(), data("cpu").split()
    torch.testing.assert_close(saelab.probe_weights(split.train), saelab.probe_weights(split_on_cpu.train))
    found_parts = saelab.principal_components(*split)
    for part, expected_part in zip(found_parts, saelab.principal_components(*split_on_cpu), strict=True):
        torch.testing.assert_close(part.x, expected_part.x)
    assert saelab.effective_dimension(split.train.x) == saelab.effective_dimension(split_on_cpu.train.x)
    of_codes = LabelledActivations(sae.encode(split.train.x.to(DEVICE)).detach(), split.train.labels)
    assert saelab.probe(of_codes, of_codes).n_active > 0


@NO_STEP
def test_codes_of_tokens_are_averaged_over_texts(rules: str) -> None:
    tokens, of = inputs(90), torch.arange(90) // 3
    strata = np.array(["a"] * 30)
    codes = {}
    for side in SIDES:
        store = saelab.ActivationStore(tokens.to(side), 1.0, "model", HOOK, torch.arange(90), of, torch.arange(90) % 3)
        means = tokens.view(30, 3, D_IN).mean(dim=1).double()  # as numpy gives them
        data = LabelledSet(
            x=means, labels=torch.arange(30) % 2, texts=strata, blocks=strata, strata=strata, store=store
        )
        codes[side] = data.encoded(an_sae("gated", DEVICE), batch_size=50).x
        expected = an_sae("gated").encode(tokens).view(30, 3, D_SAE).double().mean(dim=1).detach()
        same(codes[side], expected, f"codes with tokens on {side}", "cpu")


def test_a_sweep_and_exported_files_know_no_device(rules: str, tmp_path: Path) -> None:
    config = TrainingConfig(n_steps=5, batch_size=64)
    for side in SIDES:
        make = partial(an_sae, "gated", DEVICE)
        table = saelab.sweep(
            make, inputs(256).to(side), [1.0, 2.0], config=config, folder=tmp_path / "sweep", progress=False
        )
        assert len(table) == 2 and len(list((tmp_path / "sweep").glob("*.safetensors"))) == 2
    for name in ("standard", "gated", "jumprelu", "topk", "batchtopk"):
        for format in ("sae_lens", "dictionary_learning"):
            folder = saelab.export(an_sae(name, DEVICE), tmp_path / f"{name}-{format}", format, scale=2.0)
            loaded, expected = saelab.load(folder, device=DEVICE), saelab.load(folder)
            same(loaded(inputs().to(DEVICE)).detach(), expected(inputs()).detach(), f"{name} from {format}")


@NO_STEP
def test_a_language_model_on_the_device_is_harvested_read_and_spliced(rules: str) -> None:
    texts = ["A fine film.", "Dull, and far too long for what it has to say. I left before its end.", "Superb!"]
    models = {device: _language_model(device) for device in ("cpu", DEVICE)}
    stores = {d: saelab.harvest(m, HOOK, texts, progress=False) for d, m in models.items()}
    same(stores[DEVICE].activations[:], stores["cpu"].activations[:], "activations", "cpu")
    pooled = [saelab.harvest_pooled(m, HOOK, texts, progress=False) for m in models.values()]
    same(pooled[1], pooled[0], "pooled activations", "cpu")
    snippets = saelab.load_sentiment()[:6]
    for pooling in ("last", "mean"):
        sets = [
            saelab.sentiment_set(m, HOOK, scale=0.5, pooling=pooling, snippets=snippets, progress=False)
            for m in models.values()
        ]
        same(sets[1].x, sets[0].x, f"{pooling} activations of snippets", "cpu")
    saes = {device: GatedSAE(256, 64, seed=1, device=device) for device in ("cpu", DEVICE)}
    expected = saelab.loss_recovered(models["cpu"], HOOK, saes["cpu"], texts, scale=2.0, progress=False)
    for of_model, of_sae in ((DEVICE, DEVICE), ("cpu", DEVICE), (DEVICE, "cpu")):
        model, sae = models[of_model], saes[of_sae]
        found = saelab.loss_recovered(model, HOOK, sae, texts, scale=2.0, progress=False)
        assert found.as_dict() == pytest.approx(expected.as_dict(), rel=1e-3), (of_model, of_sae)
        readings = saelab.read_features(model, sae, stores["cpu"], features=[3, 14], n_contexts=2, progress=False)
        for reading, on_cpu in zip(
            readings,
            saelab.read_features(
                models["cpu"], saes["cpu"], stores["cpu"], features=[3, 14], n_contexts=2, progress=False
            ),
            strict=True,
        ):
            assert [effect.token for effect in reading.raised[:3]] == [effect.token for effect in on_cpu.raised[:3]]
            assert reading.max_activation == pytest.approx(on_cpu.max_activation, rel=1e-3)
        for options in ({"error_term": True}, {"edit": torch.zeros_like}):
            with torch.no_grad(), saelab.spliced(model, HOOK, sae, **options):
                assert model("A fine film.", return_type="loss").isfinite()


@NO_STEP
def test_widgets_show_an_sae_of_the_device(rules: str) -> None:
    from saelab_widgets import FeatureBrowser, GateExplorer
    from saelab_widgets.probe_results import LiveCodes

    for name in ("standard", "gated", "jumprelu"):
        shown = {}
        for device in ("cpu", DEVICE):
            explorer = GateExplorer(an_sae(name, device), inputs().to(device), feature=3)
            explorer.gate_threshold = 0.3
            shown[device] = explorer
        rows = [np.frombuffer(one.rows, np.float32) for one in shown.values()]
        assert np.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
        assert shown[DEVICE].apply().W_enc.device.type == "cpu"
    strata = np.array(["a", "b"] * 32)
    data = LabelledSet(x=inputs(), labels=torch.arange(64) % 2, texts=strata, blocks=strata, strata=strata)
    (found, n_found, l0), (expected, n_expected, l0_on_cpu) = (
        LiveCodes(data, an_sae("gated", device)).at(0.3) for device in (DEVICE, "cpu")
    )
    same(found.x, expected.x, "codes at a threshold", "cpu")
    assert (n_found, l0) == (n_expected, l0_on_cpu)
    model = _language_model(DEVICE)
    store = saelab.harvest(model, HOOK, ["A fine film.", "Superb!", "Dull."], progress=False)
    part = LabelledActivations(store.activations[:], torch.arange(len(store)) % 2)
    browser = FeatureBrowser(GatedSAE(256, 64, device=DEVICE), store, model, sentiment=LabelledSplit(part, part))
    assert len(browser.frame()) == 64


@NO_STEP
def test_a_store_on_disk_and_the_command_line_take_the_device(rules: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from saelab.cli.app import app

    texts = ["A fine film.", "Dull, and far too long for what it has to say. I left before its end.", "Superb!"]
    folder = tmp_path / "store"
    store = saelab.harvest(_language_model(DEVICE), HOOK, texts, store=folder, progress=False)
    config = TrainingConfig(n_steps=4, batch_size=16)
    trained = {
        device: Trainer(GatedSAE(256, 32, device=device), store, config).run(progress=False)
        for device in ("cpu", DEVICE)
    }
    same_table(trained[DEVICE].history_frame(), trained["cpu"].history_frame())
    expected, found = (saelab.evaluate(trained[device].sae, store).as_dict() for device in ("cpu", DEVICE))
    assert found == pytest.approx(expected, rel=1e-3)
    run, options = str(tmp_path / "run"), ["--n-steps", "4", "--batch-size", "16", "--d-sae", "32"]
    for command in (["train", str(folder), run, *options], ["evaluate", run, str(folder), "--json"]):
        result = CliRunner().invoke(app, [*command, "--device", DEVICE])
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["l0"] > 0


def test_batches_of_an_iterable_may_be_on_either_side(rules: str) -> None:
    for side in SIDES:
        trainer = Trainer(an_sae("gated", DEVICE), inputs(128).to(side).split(32), TrainingConfig(n_steps=6))
        assert np.isfinite(trainer.run(progress=False).history["loss"]).all()


@NO_STEP
def test_answers_to_exercises_and_densities_may_be_on_the_device(rules: str) -> None:
    density = torch.tensor([0.2, 0.5, 0.3], device=DEVICE)
    assert saelab.superposition(3, 4, density, n_samples=20).activations.device.type == "cpu"
    verdicts.expect("a number", torch.tensor(2.0, device=DEVICE), 2.0, "no hint")


@cache  # loading takes seconds
def _language_model(device: str) -> Any:
    return saelab.load_language_model(device=device)
