"""The gate explorer in Python, with no browser: its curves and looks are the library's numbers."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets
from saelab_widgets import GateExplorer, TrainingLab
from saelab_widgets.gate_explorer import NATURALS, THRESHOLDS
from saelab_widgets.sources import HasSAE

from saelab import (
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    evaluate,
    save,
)
from saelab.data.labelled import LabelledActivations, LabelledSplit
from saelab.evaluation.probing import probe

SAES: dict[str, Callable[[], ElementwiseSAE]] = {
    "standard": lambda: StandardSAE(8, 30),
    "gated": lambda: GatedSAE(8, 30),
    "gated, norm-weighted": lambda: GatedSAE(8, 30, preset="norm_weighted"),
    "rescale-and-shift": lambda: RescaleShiftSAE(8, 30),
    "jumprelu": lambda: JumpReLUSAE(8, 30),
}


def random_sae(name: str = "gated", seed: int = 0) -> ElementwiseSAE:
    sae = SAES[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def inputs(n: int = 60) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def sentiment() -> LabelledSplit:
    generator = torch.Generator().manual_seed(2)
    parts = []
    for _ in range(2):
        labels = torch.arange(40) % 2
        x = torch.randn(40, 8, generator=generator) + 2 * labels[:, None]
        parts.append(LabelledActivations(x, labels))
    return LabelledSplit(*parts)


def whole_sae(explorer: GateExplorer, own: float) -> tuple[float, float, float]:
    """L0, gamma and FVU as the page computes them from what it is sent, here in float64."""
    rows = np.frombuffer(explorer.rows, dtype=np.float32).reshape(-1, 3).astype(float)
    of = explorer.rows_of
    magnitude = np.maximum(of["slope"] * rows[:, 0] + (1 - of["natural"]) * of["shift"], 0)
    code = np.where(rows[:, 0] > own, magnitude, 0)
    squares = of["norm"] * (code**2).mean()
    rr = of["rr"] + 2 * (code * (rows[:, 1] + rows[:, 2])).mean() + squares
    xr = of["xr"] + (code * rows[:, 1]).mean()
    error = of["error"] + 2 * (code * rows[:, 2]).mean() + squares
    return of["l0"] + (code > 0).mean(), rr / xr, error / of["variance"]


@pytest.fixture
def explorer() -> Iterator[GateExplorer]:
    explorer = GateExplorer(random_sae(), inputs(), sentiment=sentiment())
    yield explorer
    explorer.close()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("natural", [0.0, 0.3, 1.0])
def test_curves_are_what_evaluate_says_of_the_applied_sae(explorer: GateExplorer, natural: float) -> None:
    explorer.wait()
    frame = explorer.frame().set_index(["natural", "threshold"])
    assert len(frame) == len(NATURALS) * len(THRESHOLDS)
    explorer.natural = natural
    for threshold in (-1.0, -0.35, 0.0, 0.35, 4.0):
        explorer.gate_threshold = threshold
        metrics = evaluate(explorer.apply(), inputs())
        row = frame.xs((natural, threshold))
        assert row.l0 == pytest.approx(metrics.l0, abs=1e-6)
        assert row.gamma == pytest.approx(metrics.gamma, rel=1e-5)
        assert row.fvu == pytest.approx(metrics.fvu, rel=1e-5)


@pytest.mark.parametrize("name", SAES)
@pytest.mark.parametrize(("threshold", "natural", "offset"), [(0.0, 0.0, 0.4), (-0.3, 0.5, -0.6), (0.2, 1.0, 0.1)])
def test_what_the_page_is_sent_gives_the_whole_sae_with_a_threshold_of_the_features_own(
    name: str, threshold: float, natural: float, offset: float
) -> None:
    explorer = GateExplorer(random_sae(name), inputs())
    explorer.gate_threshold, explorer.natural = threshold, natural
    explorer.feature_threshold_offset = offset
    for feature in (3, 11):
        explorer.feature = feature
        metrics = evaluate(explorer.apply(), inputs())
        l0, gamma, fvu = whole_sae(explorer, threshold + offset)
        assert l0 == pytest.approx(metrics.l0, abs=1e-6)
        assert gamma == pytest.approx(metrics.gamma, rel=1e-5)
        assert fvu == pytest.approx(metrics.fvu, rel=1e-5)


def test_what_the_page_is_sent_keeps_its_digits_far_from_zero() -> None:
    x = inputs() + 30_000
    sae = random_sae()
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(dim=0))
    explorer = GateExplorer(sae, x)
    explorer.feature_threshold_offset = 0.4
    metrics = evaluate(explorer.apply().double(), x.double())
    _, gamma, fvu = whole_sae(explorer, 0.4)
    assert (gamma, fvu) == pytest.approx((metrics.gamma, metrics.fvu), rel=1e-5)


def test_an_own_threshold_changes_the_numbers_at_all(explorer: GateExplorer) -> None:
    before = whole_sae(explorer, explorer.gate_threshold)
    after = whole_sae(explorer, 10.0)
    density = float((evaluate(explorer.sae, inputs()).density)[explorer.feature])
    assert density > 0 and before[0] - after[0] == pytest.approx(density)
    assert after[2] != before[2]


def test_what_is_shipped_is_what_the_kernel_would_send_for_each_feature(explorer: GateExplorer) -> None:
    shipped = np.frombuffer(explorer.shipped, dtype=np.float32).reshape(len(explorer.shipped_of), -1)
    for rows, of in zip(shipped, explorer.shipped_of, strict=True):
        explorer.feature = of["feature"]
        np.testing.assert_allclose(rows, np.frombuffer(explorer.rows, dtype=np.float32), rtol=1e-4, atol=1e-5)
        assert explorer.rows_of == pytest.approx(of, rel=1e-5)


def test_shipped_features_run_from_dense_to_rare_and_the_first_is_among_them(explorer: GateExplorer) -> None:
    densities = np.frombuffer(explorer.densities, dtype=np.float32)
    np.testing.assert_allclose(densities, evaluate(explorer.sae, inputs()).density, rtol=1e-6)
    features = [of["feature"] for of in explorer.shipped_of]
    assert explorer.feature in features and len(features) == len(set(features)) <= 24
    assert list(densities[features]) == sorted(densities[features], reverse=True)
    assert densities[features[0]] == densities.max()


def test_probe_accuracy_is_that_of_the_codes_at_every_fifth_threshold(explorer: GateExplorer) -> None:
    explorer.natural = 0.4
    explorer.wait()
    frame = explorer.frame()
    probed = frame.dropna()
    assert sorted(set(probed.natural)) == [0.0, pytest.approx(0.4)]
    assert list(probed[probed.natural == 0].threshold) == list(THRESHOLDS[::5])
    explorer.gate_threshold = 0.5
    sae = explorer.apply()
    parts = [LabelledActivations(sae.encode(x), labels) for x, labels, _ in sentiment()]
    expected = probe(*parts).test_accuracy
    row = probed[(probed.natural - 0.4).abs().lt(1e-6) & probed.threshold.eq(0.5)]
    assert row.probe_accuracy.item() == pytest.approx(expected)
    raw = probe(*sentiment()).test_accuracy
    assert explorer.charts[-1]["reference"]["value"] == raw


def test_without_probe_inputs_there_is_no_probe_chart() -> None:
    explorer = GateExplorer(random_sae(), inputs())
    explorer.wait()
    assert [chart["column"] for chart in explorer.charts] == ["l0", "gamma", "fvu"]
    assert explorer.frame().probe_accuracy.isna().all()
    assert explorer.frame().fvu.notna().all()


def test_moving_thresholds_never_writes_to_the_sae() -> None:
    sae = random_sae()
    before = copy.deepcopy(sae.state_dict())
    explorer = GateExplorer(sae, inputs())
    explorer.gate_threshold, explorer.natural, explorer.feature_threshold_offset = 1.0, 1.0, 0.5
    explorer.apply()
    assert sae.gate_threshold == 0 and sae.W_enc.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())


def test_it_starts_at_the_saes_own_threshold_and_takes_the_last_rows() -> None:
    sae = random_sae()
    sae.gate_threshold = 0.25
    explorer = GateExplorer(sae, inputs(60), n_rows=20, feature=4)
    assert explorer.gate_threshold == 0.25 and explorer.knobs[0]["default"] == 0.25
    assert explorer.feature == 4 and explorer.n_rows == 20
    assert torch.equal(explorer.test_x, inputs(60)[-20:])


def test_a_feature_that_does_not_exist_is_refused_and_the_widget_stays_as_it_was(explorer: GateExplorer) -> None:
    explorer.feature = 7
    with pytest.raises(traitlets.TraitError, match="between 0 and 29, not 30"):
        explorer.feature = 30
    assert explorer.feature == 7 and explorer.rows_of["feature"] == 7


def test_wrong_arguments_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GateExplorer cannot show this SAE: a gated SAE with untied encoders"):
        GateExplorer(GatedSAE(8, 30, ablations=["untied_encoders"]), inputs())
    with pytest.raises(ValueError, match="does not know which activations"):
        GateExplorer(random_sae())
    with pytest.raises(ValueError, match="made for d_in=8"):
        GateExplorer(random_sae(), torch.randn(10, 9))
    with pytest.raises(ValueError, match="between 0 and 29"):
        GateExplorer(random_sae(), inputs(), feature=30)
    with pytest.raises(ValueError, match="n_rows must be at least 2"):
        GateExplorer(random_sae(), inputs(), n_rows=1)
    wide = LabelledSplit(*[LabelledActivations(torch.randn(8, 9), torch.arange(8) % 2)] * 2)
    with pytest.raises(ValueError, match="probe's inputs have width 9"):
        GateExplorer(random_sae(), inputs(), sentiment=wide)
    with pytest.raises(TypeError, match="path of its file"):
        GateExplorer(3, inputs())  # type: ignore[arg-type]
    save(random_sae(), tmp_path / "sae.safetensors")
    assert GateExplorer(tmp_path / "sae.safetensors", inputs()).sae.d_sae == 30


class Source(HasSAE):
    """A widget of another author, reduced to what can be followed."""

    feature = traitlets.Int(5)

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.own = sae

    @property
    def sae(self) -> SparseAutoencoder:
        return self.own

    @property
    def test_x(self) -> torch.Tensor:
        return inputs()

    def become(self, sae: SparseAutoencoder) -> None:
        self.own = sae
        self._sae_has_changed()


def test_it_follows_a_widget_and_keeps_feature_and_knobs() -> None:
    source = Source(random_sae())
    explorer = GateExplorer(source)
    explorer.wait()
    assert explorer.feature == 5  # the two are linked
    explorer.gate_threshold, explorer.natural, explorer.feature = 0.3, 0.2, 9
    assert source.feature == 9
    version = explorer.sae_version
    other = random_sae("jumprelu", seed=8)
    source.become(other)
    until(lambda: explorer.sae_version > version)
    explorer.wait()
    assert explorer.architecture == "jumprelu" and explorer.status.startswith("JumpReLU SAE")
    assert (explorer.gate_threshold, explorer.natural, explorer.feature) == (0.3, 0.2, 9)
    metrics = evaluate(explorer.apply(), inputs())
    assert torch.equal(explorer.sae.W_enc, other.W_enc) and explorer.sae is not other
    assert whole_sae(explorer, 0.3) == pytest.approx((metrics.l0, metrics.gamma, metrics.fvu), rel=1e-5)
    assert explorer.frame().fvu.notna().all()
    assert explorer.shipped_of


def test_of_many_changes_it_looks_at_few_and_at_the_last() -> None:
    source = Source(random_sae())
    explorer = GateExplorer(source)
    explorer.wait()
    looks: list[int] = []
    explorer.observe(lambda change: looks.append(change["new"]), "sae_version")
    saes = [random_sae(seed=seed) for seed in range(1, 31)]
    for sae in saes:
        source.become(sae)
        time.sleep(0.01)
    explorer.wait()
    assert 1 <= len(looks) <= 3
    assert torch.equal(explorer.sae.W_enc, saes[-1].W_enc)


def test_untied_encoders_in_the_widget_that_is_followed_are_an_error_line_until_they_are_gone() -> None:
    source = Source(random_sae())
    explorer = GateExplorer(source)
    explorer.wait()
    source.become(GatedSAE(8, 30, ablations=["untied_encoders"]))
    until(lambda: "untied encoders" in explorer.error)
    assert torch.equal(explorer.sae.W_enc, random_sae().W_enc)
    source.become(random_sae(seed=3))
    until(lambda: not explorer.error)
    assert torch.equal(explorer.sae.W_enc, random_sae(seed=3).W_enc)


def test_a_closed_explorer_follows_nobody() -> None:
    source = Source(random_sae())
    explorer = GateExplorer(source)
    explorer.wait()
    explorer.close()
    source.become(random_sae(seed=4))
    explorer.wait()
    assert torch.equal(explorer.sae.W_enc, random_sae().W_enc)


def test_a_training_lab_is_followed_while_it_trains() -> None:
    x = torch.randn(2100, 8)
    lab = TrainingLab(x, d_sae=16, warm_up_steps=5)
    explorer = GateExplorer(lab)
    assert torch.equal(explorer.test_x, lab.test_x)
    before = explorer.sae.W_enc.clone()
    lab.start()
    until(lambda: explorer.sae_version > 0)
    lab.pause()
    explorer.wait()
    assert not torch.equal(explorer.sae.W_enc, before)
    assert torch.equal(explorer.sae.W_enc, lab.sae.W_enc)  # the last state is never lost
    assert not explorer.error


def test_picture_is_a_small_png(explorer: GateExplorer) -> None:
    explorer.wait()
    explorer.natural, explorer.feature_threshold_offset = 0.5, 0.2
    picture = explorer._picture()
    assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 60_000


def test_a_saved_page_waits_for_every_curve_and_has_no_path_of_this_machine(tmp_path: Path) -> None:
    explorer = GateExplorer(random_sae(), inputs(), sentiment=sentiment())
    page = explorer.save_html(tmp_path / "gate.html").read_text(encoding="utf-8")
    assert explorer.frame().fvu.notna().all()
    state = json.loads(page.split('id="saelab-state">')[1].split("</script>")[0])
    assert state["kernel"] is False and len(state["shipped_of"]) > 5
    assert str(Path(__file__).parents[2]) not in page
