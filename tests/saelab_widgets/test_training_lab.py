"""The lab in Python, with no browser: its traits are its state, and training answers them."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import traitlets
from saelab_widgets import TrainingLab
from saelab_widgets.training_lab import FURTHER, MAX_KEPT_RUNS, MAX_RECORDS, MAX_ROWS, WORTH_KEEPING

import saelab
from saelab import ARCHITECTURES, GatedSAE, StandardSAE, evaluate
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit


def sentiment(d: int = 256) -> LabelledSplit:
    parts = [LabelledActivations(torch.randn(60, d), torch.arange(60) % 2) for _ in range(2)]
    return LabelledSplit(*parts)


@pytest.fixture
def lab(store: ActivationStore) -> Iterator[TrainingLab]:
    lab = TrainingLab(store, sentiment=sentiment(), d_sae=128, warm_up_steps=20)
    yield lab
    lab.pause()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def test_lab_shows_something_before_start(lab: TrainingLab) -> None:
    rows = lab.frame()
    assert lab.step == 20 and list(rows.step) == [20]
    terms = {term.name for term in GatedSAE.terms}
    others = [term.name for cls in ARCHITECTURES.values() for term in cls.terms if term.name not in terms]
    assert rows.drop(columns=[*others, *FURTHER]).notna().all(axis=None)
    assert rows[[*others, *FURTHER]].isna().all(axis=None)  # not its own, or not shown
    assert not lab.running and "Start" in lab.status and not lab.error


def test_start_and_pause_are_the_same_as_setting_the_trait(lab: TrainingLab) -> None:
    lab.running = True
    until(lambda: lab.step > 25)
    lab.pause()
    paused_at = lab.step
    assert not lab.running and lab.trainer.n_steps_done == paused_at
    time.sleep(0.1)
    assert lab.trainer.n_steps_done == paused_at
    lab.start()
    until(lambda: lab.step > paused_at)


def test_raising_the_l1_penalty_while_it_trains_lowers_l0(lab: TrainingLab) -> None:
    lab.start()
    until(lambda: lab.step > 60)
    before = lab.frame().l0.iloc[-1]
    lab.l1_coefficient = 32.0
    moved_at = lab.step
    until(lambda: lab.step > moved_at + 60)
    lab.pause()
    assert lab.frame().l0.iloc[-1] < 0.5 * before
    assert lab.trainer.records[-1].coefficients["l1_coefficient"] == 32.0
    assert lab.events[-1]["label"] == "L1 penalty 4 → 32" and lab.events[-1]["step"] >= 60


def test_gate_threshold_acts_at_once_while_paused_and_adds_no_step(lab: TrainingLab) -> None:
    before = lab.frame()
    lab.gate_threshold = 2.0
    after = lab.frame()
    assert after.l0.iloc[-1] < before.l0.iloc[-1] and lab.step == 20 and len(after) == len(before)


def test_one_drag_of_a_slider_is_one_event(lab: TrainingLab) -> None:
    for value in (5.0, 6.0, 7.0):
        lab.l1_coefficient = value
    assert [event["label"] for event in lab.events] == ["L1 penalty 4 → 7"]
    lab.l1_coefficient = 4.0  # back where it was: nothing has happened
    assert lab.events == []


def test_choosing_an_architecture_starts_anew_and_goes_on_if_it_ran(lab: TrainingLab) -> None:
    assert isinstance(lab.sae, GatedSAE)
    lab.architecture = "standard"
    assert isinstance(lab.sae, StandardSAE) and lab.step == 0 and not lab.running
    lab.start()
    until(lambda: lab.step > 0)
    lab.architecture = "gated"
    assert isinstance(lab.sae, GatedSAE) and lab.running


def test_reset_starts_from_the_same_weights_with_the_knobs_as_they_stand(lab: TrainingLab) -> None:
    fresh = GatedSAE(256, 128, seed=0)
    lab.l1_coefficient = 9.0
    lab._receive(lab, {"kind": "reset", "id": 1}, [])
    assert torch.equal(lab.sae.W_dec, fresh.W_dec)
    assert lab.step == 0 and lab.events == [] and lab.trainer.l1_coefficient == 9.0
    assert list(lab.frame().step) == [0]


def test_training_pauses_by_itself_after_n_steps_and_start_goes_on(store: ActivationStore) -> None:
    lab = TrainingLab(store, d_sae=64, warm_up_steps=0, n_steps=15)
    lab.start()
    lab.wait(30)
    assert lab.step == 15 and not lab.running and "15 steps" in lab.status
    assert lab.frame().step.iloc[-1] == 15  # the last state is never lost
    lab.start()
    lab.wait(30)
    assert lab.step == 30


def test_a_second_lab_pauses_the_first_so_that_a_cell_run_again_leaves_nothing_behind(
    lab: TrainingLab, store: ActivationStore
) -> None:
    lab.start()
    again = TrainingLab(store, d_sae=64, warm_up_steps=0)
    again.start()
    assert not lab.running and again.running
    again.pause()


def test_step_takes_one_step_while_paused_and_none_while_training(lab: TrainingLab) -> None:
    lab.take_step()
    assert lab.step == 21 and lab.trainer.n_steps_done == 21 and not lab.running
    lab.start()
    until(lambda: lab.step > 25)
    lab.take_step()
    assert "One step" not in lab.status


def test_loss_terms_add_up_and_are_those_of_the_library(lab: TrainingLab) -> None:
    lab.l1_coefficient, lab.aux_coefficient = 3.0, 0.5
    lab.take_step()
    row = lab.frame().iloc[-1]
    assert row.loss == pytest.approx(row.reconstruction + row.sparsity + row.auxiliary, rel=1e-5)
    l1 = 3.0 * 22 / 100  # on its way up over the first 100 steps
    with torch.no_grad():
        loss = lab.sae.loss(lab.test_x[:512], l1_coefficient=l1, aux_coefficient=0.5)
    assert row.loss == pytest.approx(loss.total.item(), rel=1e-4)
    assert row.sparsity == pytest.approx(l1 * loss.terms["sparsity"].item(), rel=1e-4)
    measured = evaluate(lab.sae, lab.test_x[:512])
    assert (row.l0, row.fvu, row.gamma) == pytest.approx((measured.l0, measured.fvu, measured.gamma), rel=1e-4)


def test_a_run_that_is_kept_stays_until_it_is_taken_away(lab: TrainingLab) -> None:
    lab.keep_run("before")
    lab.keep_run()
    assert [run["label"] for run in lab.runs] == ["before", "gated, L1 4"]
    assert lab.runs[0]["history"] == lab.history and lab.runs[0]["kept"]
    lab.reset()
    assert [run["label"] for run in lab.runs] == ["before", "gated, L1 4"]
    lab.forget_run(lab.runs[0]["id"])
    lab.forget_run(999)  # gone already
    assert [run["label"] for run in lab.runs] == ["gated, L1 4"]
    for _ in range(10):
        lab.keep_run()
    assert len(lab.runs) == MAX_KEPT_RUNS


def test_a_run_that_is_given_up_stays_as_a_shadow_until_the_next_one_is(store: ActivationStore) -> None:
    lab = TrainingLab(store, d_sae=64, warm_up_steps=WORTH_KEEPING)
    lab.ablations = ["no_r_mag"]
    assert [(run["label"], run["kept"]) for run in lab.runs] == [("gated, L1 4", False)]
    for _ in range(WORTH_KEEPING):
        lab.take_step()
    lab.preset = "norm_weighted"
    assert [run["label"] for run in lab.runs] == ["gated, L1 4, no r_mag"]
    lab.reset()  # nothing has been trained: there is nothing to remember
    assert [run["label"] for run in lab.runs] == ["gated, L1 4, no r_mag"]


def test_preset_ablations_and_seed_are_those_of_the_sae_that_trains(lab: TrainingLab) -> None:
    lab.ablations = ["no_auxiliary", "untied_encoders"]
    assert isinstance(lab.sae, GatedSAE) and lab.sae.ablations == {"no_auxiliary", "untied_encoders"}
    lab.preset = "norm_weighted"  # has no ablations: they wait
    assert isinstance(lab.sae, GatedSAE) and lab.sae.preset == "norm_weighted" and not lab.sae.ablations
    lab.preset = "paper"
    assert isinstance(lab.sae, GatedSAE) and lab.sae.ablations == {"no_auxiliary", "untied_encoders"}
    lab.ablations = []
    lab.seed = 7
    assert torch.equal(lab.sae.W_dec, GatedSAE(256, 128, seed=7).W_dec)


def test_learning_rate_is_a_knob_like_the_others(lab: TrainingLab) -> None:
    lab.lr = 5e-3
    assert lab.trainer.lr == 5e-3 and lab.events[-1]["label"] == "Learning rate 0.001 → 0.005"


def test_export_writes_the_sae_the_curves_and_the_settings(
    lab: TrainingLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lab.start()
    first, second = lab.export(), lab.export()
    assert lab.running and first != second and first.parent == Path("runs")
    lab.pause()
    folder = lab.export(tmp_path / "mine")
    assert torch.equal(saelab.load(folder / "sae.safetensors").W_enc, lab.sae.W_enc)
    assert pd.read_csv(folder / "history.csv").step.iloc[-1] == lab.step
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["l1_coefficient"] == 4.0 and settings["seed"] == 0 and settings["step"] == lab.step
    assert str(folder) in lab.status
    lab._receive(lab, {"kind": "export", "id": 1}, [])  # from the page
    with pytest.raises(FileExistsError):
        lab.export(folder)


def test_what_it_remembers_does_not_grow_with_training(lab: TrainingLab) -> None:
    for _ in range(1500):
        lab.trainer.records.append(lab.trainer.records[-1])
    lab.take_step()
    assert len(lab.trainer.records) == MAX_RECORDS and lab.step == 21


def test_closing_the_lab_ends_its_training(lab: TrainingLab) -> None:
    lab.start()
    until(lambda: lab.step > 21)
    lab.close()
    done = lab.trainer.n_steps_done
    time.sleep(0.1)
    assert lab.trainer.n_steps_done == done


def test_an_error_while_training_is_shown_in_the_widget(lab: TrainingLab) -> None:
    lab.trainer.lr = 1e300
    lab.start()
    until(lambda: bool(lab.error))
    until(lambda: not lab.running)
    assert "loss is nan" in lab.error and "Reset" in lab.status
    lab.reset()
    assert not lab.error
    lab.start()
    until(lambda: lab.step > 3)


def test_history_on_the_screen_stays_small_and_ends_with_the_newest_row(lab: TrainingLab) -> None:
    for step in range(21, 3000):
        lab._add_row((float(step), 1.0, 1.0, 1.0, math.nan, math.nan, math.nan, *[1.0] * 5))
    steps = [row[0] for row in lab._rows]
    assert len(steps) <= MAX_ROWS and steps[-1] == 2999 and steps == sorted(set(steps)) and steps[0] < 40


def test_an_observer_may_turn_a_knob_and_pause_from_within_the_run(lab: TrainingLab) -> None:
    def schedule(change: dict[str, int]) -> None:
        lab.l1_coefficient = 10.0
        if change["new"] > 40:
            lab.pause()

    lab.observe(schedule, "step")
    lab.start()
    lab.wait(30)
    assert lab.step > 40 and not lab.running and lab.trainer.l1_coefficient == 10.0


def test_a_lab_without_a_probe_has_three_charts(store: ActivationStore) -> None:
    lab = TrainingLab(store, d_sae=64, warm_up_steps=1)
    assert lab.shown_charts == ["l0", "gamma", "fvu", "n_dead", "loss"]


def test_where_no_widget_can_run_there_is_a_picture(lab: TrainingLab) -> None:
    bundle = lab._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == "TrainingLab(gated, d_sae=128, step 20)"
    assert "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.parametrize(("architecture", "shown"), [("gated", True), ("standard", False)])
def test_the_picture_speaks_of_an_auxiliary_term_only_where_there_is_one(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch, architecture: str, shown: bool
) -> None:
    drawn: dict[str, str] = {}

    def draw(rows: pd.DataFrame, charts: list[dict[str, Any]], *, title: str) -> bytes:
        drawn.update(title=title, lines=str([line["label"] for chart in charts for line in chart["others"]]))
        return b""

    monkeypatch.setattr("saelab_widgets.training_lab.line_charts_png", draw)
    lab = TrainingLab(store, d_sae=64, warm_up_steps=1, architecture=architecture)
    lab._picture()
    assert ("auxiliary 1" in drawn["title"]) is shown and ("auxiliary term" in drawn["lines"]) is shown
    assert "gate threshold 0" in drawn["title"] and "L1 term" in drawn["lines"] and "L0 term" not in drawn["lines"]


def test_a_jumprelu_sae_trains_with_a_penalty_of_its_own(store: ActivationStore) -> None:
    lab = TrainingLab(store, d_sae=64, warm_up_steps=30, architecture="jumprelu", l0_coefficient=2.0)
    assert lab.trainer.knobs == {"l0_coefficient": 2.0, "gate_threshold": 0.0, "lr": lab.lr}
    row = lab.frame().iloc[-1]
    assert row.loss == pytest.approx(row.reconstruction + row.l0_penalty, rel=1e-5) and math.isnan(row.sparsity)
    lab.l0_coefficient = 8.0
    assert lab.trainer.l0_coefficient == 8.0 and lab.events[-1]["label"] == "L0 penalty 2 → 8"


def test_a_knob_that_no_architecture_has_is_refused(store: ActivationStore) -> None:
    with pytest.raises(TypeError, match="takes no l1_coeficient; its knobs are l1_coefficient, "):
        TrainingLab(store, d_sae=64, warm_up_steps=0, l1_coeficient=4)


def test_a_buffer_that_colab_dropped_is_sent_again(lab: TrainingLab, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    monkeypatch.setattr(lab, "send_state", sent.append)
    lab._receive(lab, {"kind": "hello", "need": ["history", "no such trait"], "id": 1}, [])
    assert sent == [["history"]]


def test_wrong_input_gets_a_sentence(store: ActivationStore) -> None:
    with pytest.raises(ValueError, match="1000 rows; at least 2048"):
        TrainingLab(store.activations[:1000])
    with pytest.raises(ValueError, match="width 8, the activations 256"):
        TrainingLab(store, sentiment=sentiment(8))
    with pytest.raises(ValueError, match="standard, gated, .*, not 'unheard_of'"):
        TrainingLab(store, architecture="unheard_of")
    with pytest.raises(ValueError, match="ablations must be one of .*no_r_mag.*, not 'no_gate'"):
        TrainingLab(store, ablations=("no_gate",))
    with pytest.raises(ValueError, match="NaN"):
        TrainingLab(store.activations[:] * float("nan"))
    lab = TrainingLab(store, d_sae=64, warm_up_steps=0)
    with pytest.raises(traitlets.TraitError):
        lab.l1_coefficient = -1.0


def test_a_hook_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"blocks\.3\.hook_resid_post"):
        TrainingLab(hook="blocks.7.hook_resid_post")


def test_a_metric_whose_chart_is_chosen_is_measured_from_then_on(lab: TrainingLab) -> None:
    assert "cosine_similarity" in [one["value"] for one in lab.options["shown_charts"]]
    lab.shown_charts = ["l0", "cosine_similarity"]
    row = lab.frame().iloc[-1]
    measured = evaluate(lab.sae, lab.test_x[:512])
    assert row.cosine_similarity == pytest.approx(measured.cosine_similarity, rel=1e-4)
    assert math.isnan(row.norm_ratio)
    with pytest.raises(traitlets.TraitError, match="shown_charts must be one of l0, gamma, .*, not 'accuracy'"):
        lab.shown_charts = ["accuracy"]


@pytest.mark.parametrize("name", [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch])
def test_every_architecture_that_trains_from_scratch_can_be_chosen_with_its_own_knobs(
    lab: TrainingLab, name: str
) -> None:
    lab.architecture = name
    lab.take_step()
    assert type(lab.sae) is ARCHITECTURES[name] and lab.step >= 1 and not lab.error
    own = {knob["name"] for knob in lab.knobs if name in knob["enabled_for"]}
    assert own == set(lab.trainer.knobs)
    knob = ARCHITECTURES[name].sparsity_knob
    assert knob is not None
    setattr(lab, knob.name, 2 * knob.default)
    assert lab.trainer.knobs[knob.name] == 2 * knob.default
