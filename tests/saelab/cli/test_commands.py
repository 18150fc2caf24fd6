"""The command line: what it prints, what it leaves on the disk, how it fails and how it goes on."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner, Result

import saelab
from saelab.cli import commands, options, output
from saelab.cli.app import app
from saelab.data import activations, shards
from saelab.files import other_libraries
from saelab.training.checkpoints import CHECKPOINT

HOOK = "blocks.1.hook_resid_post"
TEXTS = saelab.load_text()[:40]
L1 = "--l1-coefficient"
TINY = ("--d-sae", "32", "--n-steps", "12", "--batch-size", "64")


def run(*words: object, code: int = 0) -> Result:
    """Give a command, that is to exit with ``code``."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def document(*words: object) -> dict[str, Any]:
    """The one JSON document of a command."""
    found: dict[str, Any] = json.loads(run(*words, "--json").stdout)
    return found


def sentence(result: Result) -> str:
    """What went wrong, wherever its lines are broken."""
    return " ".join(result.stderr.split())


def config_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("saelab-*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def same_weights(a: Path, b: Path) -> bool:
    weights = [saelab.load(path).state_dict() for path in (a, b)]
    return weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(TEXTS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A store of one hook, made by the command."""
    folder = tmp_path_factory.mktemp("harvested") / "store"
    run("harvest", folder, "--hook", HOOK, "--text", text_file, "--n-tokens", 1000, "--context", 32)
    return folder


@pytest.fixture(scope="module")
def two_hooks(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("two_hooks") / "store"
    hooks = ("--hook", "blocks.0.hook_resid_post", "--hook", HOOK)
    run("harvest", folder, *hooks, "--text", text_file, "--n-tokens", 500)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, harvested: Path) -> Path:
    """The folder of a run, made by the command."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("train", harvested, folder, *TINY, "--ablation", "no_r_mag", "--betas", 0.5, 0.99, "--seed", 3, "--lr", 0.002)
    return folder


# Help, and what it costs.


def help_of(command: str) -> str:
    """Its help on one line; where a line broke at a hyphen, the word is whole again."""
    return re.sub(r"(?<=\w)- (?=\w)", "-", " ".join(run(command, "--help").stdout.split()))


def test_every_field_of_the_training_configuration_is_an_option_with_its_meaning() -> None:
    text = help_of("train")
    for field in dataclasses.fields(saelab.TrainingConfig):
        option = "--" + field.name.replace("_", "-")
        assert f"{option} <" in text or f"{option} / --no{option[1:]}" in text
    for name, _, _, meaning in options.training_fields():
        assert meaning in text, name
    assert "Adam's decay rates; the paper's (appendix D). [default: 0.0, 0.999]" in text
    for command, name in itertools.product(("train", "sweep"), options.KNOBS):
        text = help_of(command)
        assert f"--{name.replace('_', '-')} <" in text and options.KNOBS[name].meaning in text


def test_the_choices_of_the_command_line_are_the_librarys() -> None:
    assert tuple(getattr(torch, name) for name in get_args(options.Dtype)) == activations.DTYPES
    assert set(get_args(options.Architecture)) == saelab.ARCHITECTURES.keys()
    assert options.KNOBS.keys() == {name for cls in saelab.ARCHITECTURES.values() for name in cls.knobs()}


def test_every_command_explains_itself_and_every_option_too() -> None:
    found: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    assert list(found) == ["lab", "harvest", "train", "sweep", "evaluate", "export", "grade", "handout"]
    for name, command in found.items():
        assert command.help and name in run("--help").stdout
        assert all(parameter.help for parameter in command.params)


# Harvest.


def test_a_harvest_keeps_what_the_library_would_and_the_same_command_says_that_it_is_whole(
    harvested: Path, model: Any, text_file: Path
) -> None:
    store = saelab.ActivationStore.open(harvested)
    expected = saelab.harvest(model, HOOK, TEXTS, n_tokens=1000, context=32, progress=False)
    assert torch.equal(store.activations[:], expected.activations[:])
    words = ("harvest", harvested, "--hook", HOOK, "--text", text_file, "--n-tokens", 1000, "--context", 32)
    before = {path: path.stat().st_mtime_ns for path in harvested.iterdir()}
    found = document(*words)
    assert found["status"] == "whole already"
    assert found["n_activations"] == 1000
    assert found["hooks"] == {HOOK: {"d_in": 256, "scale": store.scale}}
    assert "whole already" in run(*words).stdout
    assert {path: path.stat().st_mtime_ns for path in harvested.iterdir()} == before


def test_an_interrupted_harvest_goes_on_when_the_command_is_given_again(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**16)
    words = ("--hook", HOOK, "--text", text_file, "--n-tokens", 2000, "--batch-size", 4)
    run("harvest", tmp_path / "whole", *words)
    add, n_calls = shards.ShardWriter.add, 0

    def stops(self: shards.ShardWriter, rows: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise KeyboardInterrupt
        add(self, rows)

    monkeypatch.setattr(shards.ShardWriter, "add", stops)
    stopped = run("harvest", tmp_path / "store", *words, code=130)
    assert "The same command goes on" in stopped.stderr
    assert stopped.stdout == ""
    assert not shards.read_index(tmp_path / "store")["complete"]
    assert config_in(tmp_path / "store")["n_tokens"] == 2000
    assert document("harvest", tmp_path / "store", *words)["status"] == "completed"
    whole, store = (saelab.ActivationStore.open(tmp_path / name) for name in ("whole", "store"))
    assert torch.equal(whole.activations[:], store.activations[:])


def test_a_harvest_that_is_refused_or_stopped_leaves_the_configuration_of_the_store_that_is_there(
    harvested: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = config_in(harvested)
    words = ("harvest", harvested, "--hook", HOOK, "--text", text_file, "--n-tokens", 999)
    assert "holds a harvest that differs in context, n_tokens" in sentence(run(*words, code=1))

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saelab, "harvest_many", stopped)
    run(*words, code=130)
    assert config_in(harvested) == before


def test_several_hooks_take_the_scales_of_another_store_and_their_type_and_special_tokens(
    tmp_path: Path, two_hooks: Path, text_file: Path
) -> None:
    hooks = ("--hook", "blocks.0.hook_resid_post", "--hook", HOOK)
    words = ("--n-tokens", 100, "--dtype", "float16", "--special-tokens", "--scale-of", two_hooks)
    found = document("harvest", tmp_path / "test", *hooks, "--text", text_file, *words)
    for name in hooks[1::2]:
        assert found["hooks"][name]["scale"] == saelab.ActivationStore.open(two_hooks, name).scale
    assert shards.read_index(tmp_path / "test")["recipe"]["dtype"] == "float16"
    assert saelab.ActivationStore.open(tmp_path / "test", HOOK).positions[:][0] == -1  # BOS


def test_a_text_file_holds_a_text_a_line_and_empty_lines_hold_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("A fine film.\n\n  \nA café\u2028of a film.\n", encoding="utf-8-sig")
    assert commands.read_text(str(tmp_path / "a.txt")) == ["A fine film.", "A café\u2028of a film."]
    (tmp_path / "a.jsonl").write_text('{"text": "One\\ntwo."}\n\n{"text": "Three.", "label": 1}', encoding="utf-8")
    assert commands.read_text(str(tmp_path / "a.jsonl")) == ["One\ntwo.", "Three."]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews-4l").mkdir()  # a folder of that name is none of its business
    assert commands.read_text("reviews-4l") == saelab.load_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "One."}\nnonsense\n', r'a.jsonl, line 2: expected a JSON object with a field "text"'),
        ("a.jsonl", b'{"words": "One."}\n', 'line 1: expected a JSON object with a field "text"'),
        ("a.jsonl", b'{"text": 1}\n', 'its field "text" must be a string, not 1'),
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8 text"),
        ("a.txt", b"\n", "text is empty"),
        ("a.csv", b"text\n", "a.csv is neither .txt (one text a line) nor .jsonl"),
        ("missing.txt", None, "there is no file"),
        ("nonsense", None, "there is no text"),
    ],
)
def test_text_that_cannot_be_read_is_told_by_its_file_and_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("harvest", tmp_path / "store", "--hook", HOOK, "--text", tmp_path / name, code=1)
    assert message in sentence(result)
    assert not (tmp_path / "store").exists()


# Train.


def test_training_says_where_the_sae_lies_and_gives_its_last_record_as_json(harvested: Path, tmp_path: Path) -> None:
    text = run("train", harvested, tmp_path / "a", *TINY).stdout
    assert text.startswith("Step 12: loss ") and str(tmp_path / "a" / CHECKPOINT) in text
    found = document("train", harvested, tmp_path / "b", *TINY)
    assert found["sae"] == str(tmp_path / "b" / CHECKPOINT)
    assert found["step"] == 12
    assert found.keys() > saelab.Trainer(saelab.GatedSAE(4, 4), torch.ones(8, 4)).step().as_dict().keys()
    assert same_weights(tmp_path / "a" / CHECKPOINT, tmp_path / "b" / CHECKPOINT)


def test_the_options_reach_the_sae_and_its_training(trained: Path, harvested: Path) -> None:
    store = saelab.ActivationStore.open(harvested)
    sae = saelab.GatedSAE(256, 32, ablations=["no_r_mag"], seed=3)
    config = saelab.TrainingConfig(n_steps=12, batch_size=64, betas=(0.5, 0.99), seed=3, lr=0.002)
    saelab.Trainer(sae, store, config).run(progress=False)
    found = saelab.load(trained / CHECKPOINT)
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), found.parameters(), strict=True))
    assert found.trained_on == store.trained_on


def test_a_folder_that_holds_a_run_says_to_add_resume_and_stays_as_it_is(trained: Path, harvested: Path) -> None:
    before = {path: path.read_bytes() for path in trained.iterdir()}
    result = run("train", harvested, trained, *TINY, code=1)
    assert "holds a run: add --resume to go on with it" in sentence(result)
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_how_to_go_on_and_resume_ends_with_the_same_weights(
    harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    run("train", harvested, tmp_path / "whole", *TINY)
    step = saelab.Trainer.step

    def interrupted(self: saelab.Trainer) -> saelab.TrainingRecord:
        if self.n_steps_done == 4:
            signal.raise_signal(number)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(saelab.Trainer, "step", interrupted)
        # With --resume a script need not know whether it is the first time.
        stopped = run("train", harvested, tmp_path / "run", *TINY, "--resume", "--json", code=code)
    assert f"Go on with: saelab train {harvested} {tmp_path / 'run'} --resume" in stopped.stderr
    assert stopped.stdout == ""
    assert config_in(tmp_path / "run")["d_sae"] == 32
    assert document("train", harvested, tmp_path / "run", "--resume")["step"] == 12
    assert same_weights(tmp_path / "whole" / CHECKPOINT, tmp_path / "run" / CHECKPOINT)


def test_resume_takes_the_options_of_the_run_again_and_no_others(trained: Path, harvested: Path) -> None:
    same = (*TINY, "--ablation", "no_r_mag", "--betas", 0.5, 0.99)
    assert document("train", harvested, trained, "--resume", *same)["step"] == 12
    for words, message in [
        (("--n-steps", 13), "has --n-steps 12; leave --n-steps 13 out"),
        (("--d-sae", 64), "has --d-sae 32"),
        (("--ablation", "no_auxiliary"), "has --ablation ['no_r_mag']"),
        (("--architecture", "standard"), "has --architecture gated"),
    ]:
        assert message in sentence(run("train", harvested, trained, "--resume", *words, code=1))


def test_resume_on_other_activations_is_refused(trained: Path, two_hooks: Path) -> None:
    result = run("train", two_hooks, trained, "--hook", HOOK, "--resume", code=1)
    assert "this run used different activations" in sentence(result)


def test_rescale_and_shift_starts_from_the_standard_sae_of_another_run(harvested: Path, tmp_path: Path) -> None:
    run("train", harvested, tmp_path / "standard", *TINY, "--architecture", "standard", "--preset", "norm_weighted")
    words = ("--architecture", "rescale_shift", "--from", tmp_path / "standard", "--n-steps", 5)
    run("train", harvested, tmp_path / "shifted", *words)
    standard, shifted = (saelab.load(tmp_path / name / CHECKPOINT) for name in ("standard", "shifted"))
    assert isinstance(shifted, saelab.RescaleShiftSAE)
    assert torch.equal(standard.W_dec, shifted.W_dec)
    assert {"d_sae": 32, "preset": "norm_weighted"}.items() <= config_in(tmp_path / "shifted").items()
    run("train", harvested, tmp_path / "again", "--config", tmp_path / "shifted" / "saelab-train.json")
    assert same_weights(tmp_path / "shifted" / CHECKPOINT, tmp_path / "again" / CHECKPOINT)
    wrong = run("train", harvested, tmp_path / "other", *words, "--d-sae", 64, code=1)
    assert "has --d-sae 32; leave --d-sae 64 out" in sentence(wrong)
    assert not (tmp_path / "other").exists()


def test_one_hook_of_a_store_of_several_is_trained_on_and_evaluated_on(two_hooks: Path, tmp_path: Path) -> None:
    result = run("train", two_hooks, tmp_path / "run", *TINY, code=1)
    assert f"holds activations of blocks.0.hook_resid_post, {HOOK}; name one" in sentence(result)
    run("train", two_hooks, tmp_path / "run", *TINY, "--hook", HOOK)
    assert document("evaluate", tmp_path / "run", two_hooks)["hook"] == HOOK
    other = run("evaluate", tmp_path / "run", two_hooks, "--hook", "blocks.0.hook_resid_post", "--json")
    assert json.loads(other.stdout)["hook"] == "blocks.0.hook_resid_post"
    assert f"Note: the SAE was trained on model_name reviews-4l, hook {HOOK}" in other.stderr


def test_a_launcher_that_started_one_process_only_is_told_how_to_start_several(
    harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as `accelerate launch --num_processes 2` on CPUs leaves it
    assert "for several without GPUs add --multi_gpu" in sentence(run("train", harvested, tmp_path / "run", *TINY))


def test_several_processes_take_no_device(harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_accelerator", lambda: object())
    result = run("train", harvested, tmp_path / "run", "--device", "cpu", code=2)
    assert "leave --device out" in sentence(result)


# Configurations.


def test_a_run_repeated_from_its_configuration_has_identical_weights(
    trained: Path, harvested: Path, tmp_path: Path
) -> None:
    found = config_in(trained)
    assert found["saelab_version"] == saelab.__version__
    assert found["ablation"] == ["no_r_mag"]
    fields = {field.name for field in dataclasses.fields(saelab.TrainingConfig)}
    assert found.keys() >= fields | {"store", "folder", "architecture", "d_sae", "preset", "from", "hook", "device"}
    run("train", "--config", trained / "saelab-train.json", harvested, tmp_path / "run")
    assert same_weights(trained / CHECKPOINT, tmp_path / "run" / CHECKPOINT)
    assert config_in(tmp_path / "run") == {**found, "folder": str(tmp_path / "run")}


def test_a_harvest_repeated_from_its_configuration_is_the_same(harvested: Path, tmp_path: Path) -> None:
    run("harvest", tmp_path / "store", "--config", harvested / "saelab-harvest.json")
    first, second = (saelab.ActivationStore.open(folder) for folder in (harvested, tmp_path / "store"))
    assert torch.equal(first.activations[:], second.activations[:])
    assert shards.read_index(harvested)["recipe"] == shards.read_index(tmp_path / "store")["recipe"]


def test_an_option_given_wins_over_the_configuration_which_wins_over_the_default(
    harvested: Path, tmp_path: Path
) -> None:
    config = {"store": str(harvested), "folder": str(tmp_path / "run"), "n_steps": 3, "d_sae": 16, "batch_size": 32}
    (tmp_path / "c.json").write_text(json.dumps({**config, "ablation": ["no_r_mag"], "lr": None}), encoding="utf-8")
    found = document("train", "--config", tmp_path / "c.json", "--n-steps", 2, "--ablation", "no_auxiliary")
    assert found["step"] == 2 and found["d_sae"] == 16
    kept = config_in(tmp_path / "run")
    assert (kept["batch_size"], kept["ablation"], kept["lr"]) == (32, ["no_auxiliary"], 1e-3)


@pytest.mark.parametrize(
    "words",
    [("harvest", "a", "--hook", HOOK), ("train", "a", "b"), ("sweep", "a", "b", L1, 1)],
    ids=lambda w: w[0],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"n_step": 3, "resume": true}', "has unknown field(s) n_step, resume; known: store, "),
        ("[1]", "must hold one JSON object, not a list"),
        ("{", "cannot be read as JSON"),
        ('{"batch_size": "many"}', "Invalid value for '--batch-size'"),
        (None, "cannot be read as JSON"),
    ],
)
def test_a_configuration_that_is_not_understood_is_wrong_usage(
    tmp_path: Path, words: tuple[object, ...], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "c.json").write_text(content, encoding="utf-8")
    assert message in sentence(run(*words, "--config", tmp_path / "c.json", code=2))


def test_a_configuration_by_another_version_is_noted(harvested: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"saelab_version": "0.0.1"}', encoding="utf-8")
    result = run("train", harvested, tmp_path / "run", *TINY, "--config", tmp_path / "c.json", "--json")
    assert "is by saelab 0.0.1" in sentence(result)
    assert json.loads(result.stdout)["step"] == 12


# Sweep.


def test_a_sweep_prints_the_table_that_it_keeps_and_its_configuration_repeats_it(
    harvested: Path, two_hooks: Path, tmp_path: Path
) -> None:
    words = (
        "--architecture",
        "gated",
        "--architecture",
        "standard",
        "--l1-coefficient",
        1,
        "--l1-coefficient",
        8,
        "--lr",
        0.002,
        *TINY,
    )
    found = document("sweep", harvested, tmp_path / "a", *words, "--test", two_hooks, "--hook", HOOK)
    table = pd.read_csv(tmp_path / "a" / "table.csv")
    assert found["table"] == str(tmp_path / "a" / "table.csv")
    assert [(row["architecture"], row["l1_coefficient"]) for row in found["rows"]] == [
        ("gated", 1), ("gated", 8), ("standard", 1), ("standard", 8),
    ]  # fmt: skip
    assert table.fvu.tolist() == pytest.approx([row["fvu"] for row in found["rows"]])
    assert table.n_inputs.tolist() == [500] * 4  # the test store's
    text = run("sweep", harvested, tmp_path / "b", "--config", tmp_path / "a" / "saelab-sweep.json").stdout
    assert "The table is in" in text
    for first, second in zip(table.path, pd.read_csv(tmp_path / "b" / "table.csv").path, strict=True):
        assert Path(first).name == Path(second).name
        assert same_weights(Path(first), Path(second))


def test_a_sweep_of_several_seeds_and_a_control_has_a_row_each_and_trains_on_every_core(
    harvested: Path, tmp_path: Path
) -> None:
    words = ("--l1-coefficient", 4, "--seeds", 0, "--seeds", 3, "--control", "frozen_decoder", *TINY)
    found = document("sweep", harvested, tmp_path / "a", *words, "--jobs", 2)
    assert [(row["control"], row["seed"]) for row in found["rows"]] == [
        ("none", 0), ("none", 3), ("frozen_decoder", 0), ("frozen_decoder", 3),
    ]  # fmt: skip
    assert len({row["fvu"] for row in found["rows"]}) == 4
    text = run("sweep", harvested, tmp_path / "a", *words).stdout
    assert "frozen_decoder" in text and "seed" in text
    assert (
        "not one of frozen_decoder" in run("sweep", harvested, tmp_path / "b", *words, "--control", "no", code=2).output
    )


def test_an_interrupted_sweep_goes_on_when_the_command_is_given_again(
    harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (L1, 1, L1, 2, *TINY)
    step, n_calls = saelab.Trainer.step, 0

    def interrupted(self: saelab.Trainer) -> saelab.TrainingRecord:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 12 + 5:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(saelab.Trainer, "step", interrupted)
    stopped = run("sweep", harvested, tmp_path / "a", *words, "--json", code=130)
    assert "The same command goes on" in stopped.stderr and stopped.stdout == ""
    assert config_in(tmp_path / "a")["l1_coefficient"] == [1, 2]
    rows = document("sweep", harvested, tmp_path / "a", *words)["rows"]
    assert n_calls == 2 * 12
    for row, other in zip(rows, document("sweep", harvested, tmp_path / "b", *words)["rows"], strict=True):
        assert same_weights(Path(row["path"]), Path(other["path"]))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "a sweep of gated SAEs needs values to try: give --l1-coefficient, once or more"),
        ((L1, -1), 2, "Invalid value for '--l1-coefficient'"),
        (
            ("--l1-coefficient", 1, "--architecture", "rescale_shift"),
            2,
            "'rescale_shift' is not one of standard, gated",
        ),
        (
            ("--l1-coefficient", 1, "--architecture", "standard", "--ablation", "no_r_mag"),
            1,
            "ablations are those of the gated",
        ),
        ((L1, 1, "--n-steps", 0), 1, "n_steps must be at least 1, not 0"),
        ((L1, 1, "--l0-coefficient", 1), 2, "--l0-coefficient: none of gated has such a knob; leave it out"),
        ((L1, 1, "--architecture", "gated", "--architecture", "jumprelu"), 2, "give --l0-coefficient, once or more"),
        ((L1, 1, "--test", "nowhere"), 1, "nowhere is not an activation store"),
    ],
)
def test_a_sweep_that_cannot_be_writes_nothing(
    harvested: Path, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    assert message in sentence(run("sweep", harvested, tmp_path / "sweep", *words, code=code))
    assert not (tmp_path / "sweep").exists()


# Evaluate and export.


def test_evaluate_gives_the_librarys_metrics(trained: Path, harvested: Path) -> None:
    expected = saelab.evaluate(saelab.load(trained / CHECKPOINT), saelab.ActivationStore.open(harvested))
    assert document("evaluate", trained, harvested)["metrics"] == expected.as_dict()
    assert str(expected) in run("evaluate", trained / CHECKPOINT, harvested).stdout


def test_what_is_not_a_number_is_null(harvested: Path, tmp_path: Path) -> None:
    sae = saelab.StandardSAE(256, 4)
    torch.nn.init.constant_(sae.get_parameter("b_enc"), -1e3)
    saelab.save(sae, tmp_path / "silent.safetensors")
    metrics = document("evaluate", tmp_path / "silent.safetensors", harvested)["metrics"]
    assert metrics["gamma"] is None
    assert metrics["n_dead"] == 4


def test_the_loss_is_measured_at_the_stores_hook_scale_and_context_on_the_last_texts(
    trained: Path, harvested: Path, text_file: Path, model: Any
) -> None:
    words = ("--loss-recovered", "--text", text_file, "--n-texts", 3)
    store = saelab.ActivationStore.open(harvested)
    sae = saelab.load(trained / CHECKPOINT)
    expected = saelab.loss_recovered(
        model, HOOK, sae, TEXTS[-3:], scale=store.scale, context=32, progress=False
    ).as_dict()
    assert document("evaluate", trained, harvested, *words)["loss_recovered"] == pytest.approx(expected, nan_ok=True)
    assert "nats per token" in run("evaluate", trained, harvested, *words).stdout


def test_the_probe_reads_the_codes_and_the_activations(
    trained: Path, harvested: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = saelab.load_sentiment()[::8]
    monkeypatch.setattr("saelab.data.language_models.load_sentiment", lambda: snippets)
    found = document("evaluate", trained, harvested, "--probe")["probe"]
    scale = saelab.ActivationStore.open(harvested).scale
    split = saelab.sentiment_set(model, HOOK, scale=scale, progress=False).split()
    assert found["activations"]["test_accuracy"] == saelab.probe(*split).test_accuracy
    with torch.no_grad():
        codes = [part._replace(x=saelab.load(trained / CHECKPOINT).encode(part.x)) for part in split]
    assert found["codes"]["test_accuracy"] == saelab.probe(*codes).test_accuracy
    assert found["codes"]["n_active"] <= 32


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere.safetensors", "STORE"), 1, "there is no file nowhere.safetensors"),
        (("STORE", "STORE"), 1, "this folder holds no SAE that SAELab can read"),
        (("SAE", "nowhere"), 1, "nowhere is not an activation store"),
        (("SAE", "STORE", "--hook", "blocks.0.hook_resid_post"), 1, f"holds activations of {HOOK}"),
        (("SAE", "STORE", "--n-texts", 3), 2, "--text and --n-texts are for --loss-recovered"),
        (("SAE", "STORE", "--loss-recovered", "--n-texts", 0), 2, "Invalid value for '--n-texts'"),
        (("SAE", "STORE", "--device", "cray"), 1, "device 'cray' cannot be used here"),
        (("SAE",), 2, "Missing argument 'STORE'"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_a_sentence(
    trained: Path, harvested: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    paths = {"SAE": trained, "STORE": harvested}
    result = run("evaluate", *(paths.get(str(word), word) for word in words), "--json", code=code)
    assert message in sentence(result)
    assert result.stdout == "" and "Traceback" not in result.stderr


@pytest.mark.parametrize("format", get_args(other_libraries.Format))
def test_an_exported_folder_is_read_again(trained: Path, harvested: Path, tmp_path: Path, format: str) -> None:
    found = document("export", trained, tmp_path / "out", "--format", format, "--as-jumprelu", "--scale", 1)
    assert found["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert saelab.load(tmp_path / "out").architecture == "jumprelu"
    original = document("evaluate", trained, harvested)["metrics"]
    assert document("evaluate", tmp_path / "out", harvested)["metrics"]["fvu"] == pytest.approx(original["fvu"], 1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--format", "sae_lens", "--scale", 0), 1, "scale must be positive"),
        (("--format", "onnx"), 2, "Invalid value for '--format'"),
        ((), 2, "Missing option '--format'"),
    ],
)
def test_what_cannot_be_exported_writes_nothing(
    trained: Path, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    assert message in sentence(run("export", trained, tmp_path / "out", *words, code=code))
    assert not (tmp_path / "out").exists()
    assert "already exists" in sentence(run("export", trained, trained, "--format", "sae_lens", code=1))


# Errors, and what goes where.


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("harvest", "OUT", "--hook", "blocks.9.hook_resid_post"), 1, "has no hook 'blocks.9.hook_resid_post'"),
        (("harvest", "OUT", "--hook", HOOK, "--hook", HOOK), 1, "name at least one hook, and each only once"),
        (("harvest", "OUT", "--hook", HOOK, "--model", "no/such-model"), 1, "is not on this machine"),
        (("harvest", "OUT", "--hook", HOOK, "--context", 1), 1, "context must lie between 2 and"),
        (("harvest", "OUT", "--hook", HOOK, "--dtype", "int8"), 2, "Invalid value for '--dtype'"),
        (("harvest", "OUT", "--hook", HOOK, "--scale-of", "nowhere"), 1, "nowhere is not an activation store"),
        (("harvest", "OUT"), 2, "Missing option '--hook'"),
        (("train", "nowhere", "OUT"), 1, "nowhere is not an activation store"),
        (("train", "STORE", "OUT", "--preset", "own"), 2, "Invalid value for '--preset'"),
        (("train", "STORE", "OUT", "--ablation", "all"), 2, "'all' is not one of unfrozen_decoder"),
        (
            ("train", "STORE", "OUT", "--preset", "norm_weighted", "--ablation", "no_r_mag"),
            1,
            "the ablations are those",
        ),
        (("train", "STORE", "OUT", "--architecture", "rescale_shift"), 2, "--from, its standard SAE, go together"),
        (("train", "STORE", "OUT", "--from", "SAE"), 2, "--from, its standard SAE, go together"),
        (("train", "STORE", "OUT", "--from", "SAE", "--architecture", "rescale_shift"), 1, "holds a gated SAE"),
        (("train", "STORE", "OUT", "--batch-size", 0), 1, "batch_size must be at least 1, not 0"),
        (("train", "STORE", "OUT", "--precision", "int8"), 2, "Invalid value for '--precision'"),
        (("train", "STORE", "OUT", "--betas", 1), 2, "requires 2 arguments"),
        (("train", "STORE", "OUT", "--epochs", 1), 2, "No such option"),
        (("trian",), 2, "No such command 'trian'"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_leaves_nothing_behind(
    harvested: Path, trained: Path, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    paths = {"STORE": harvested, "SAE": trained, "OUT": tmp_path / "out"}
    result = run(*(paths.get(str(word), word) for word in words), code=code)
    assert message in sentence(result)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_loss_that_explodes_is_told_in_a_sentence(harvested: Path, tmp_path: Path) -> None:
    words = ("--lr", 1e30, "--lr-warmup-steps", 0, "--precision", "float32")
    assert "Try a lower lr" in sentence(run("train", harvested, tmp_path / "run", *TINY, *words, code=1))


def buggy(*_: Any, **__: Any) -> Any:
    return None + 1  # type: ignore[operator]


def raising(error: Exception) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize(
    "broken", [buggy, raising(TypeError("a bug")), raising(ValueError("a bug")), raising(BrokenPipeError())]
)
def test_a_bug_keeps_its_traceback(
    trained: Path, harvested: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(saelab, "evaluate", broken)
    with pytest.raises((TypeError, ValueError, BrokenPipeError)):
        CliRunner().invoke(app, ["evaluate", str(trained), str(harvested)], catch_exceptions=False)


@pytest.mark.parametrize(
    "kind", [saelab.SAELabError, saelab.InputTypeError, saelab.NonFiniteLossError, PermissionError, ImportError]
)
def test_a_mistake_of_the_users_is_told_by_its_message_alone(
    trained: Path, harvested: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(saelab, "evaluate", raising(kind("give another")))
    assert run("evaluate", trained, harvested, code=1).stderr == "Error: give another\n"


def test_what_libraries_print_does_not_disturb_the_json(
    trained: Path, harvested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = saelab.evaluate

    def noisy(*words: Any, **options: Any) -> Any:
        print("loading ...")
        return evaluate(*words, **options)

    monkeypatch.setattr(saelab, "evaluate", noisy)
    result = run("evaluate", trained, harvested, "--json")
    assert json.loads(result.stdout)["metrics"]
    assert "loading ..." in result.stderr


@pytest.mark.parametrize(
    ("system", "shown"),
    [("linux", "saelab train 'my store' C"), ("win32", 'saelab train "my store" C')],
)
def test_a_command_to_go_on_with_is_quoted_for_the_systems_shell(
    system: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert output.command_line("train", Path("my store"), "C") == shown


def test_as_a_module_it_is_a_program_whose_stdout_is_the_result_alone(harvested: Path, tmp_path: Path) -> None:
    def start(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "saelab", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    done = start("train", harvested, tmp_path / "run", *TINY, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 12
    again = start("train", harvested, tmp_path / "run", *TINY, "--json")
    assert again.returncode == 1
    assert again.stdout == ""
    assert again.stderr.startswith("Error: ") and again.stderr.count("\n") == 1


def test_another_model_goes_all_the_way_from_harvest_to_export(
    save_llama: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    llama = save_llama(tmp_path / "llama")
    words = ("--model", llama, "--hook", "blocks.0.hook_resid_post", "--text", text_file)
    found = document("harvest", tmp_path / "store", *words, "--n-tokens", 600, "--context", 16)
    assert found["hooks"]["blocks.0.hook_resid_post"]["d_in"] == 32
    document("train", tmp_path / "store", tmp_path / "run", *TINY)
    texts = ("--text", text_file, "--n-texts", 4)
    found = document("evaluate", tmp_path / "run", tmp_path / "store", "--loss-recovered", *texts)
    recovered = found["loss_recovered"]
    assert recovered["clean"] > 0 and recovered["n_tokens"] <= 4 * 15
    document("export", tmp_path / "run", tmp_path / "out", "--format", "sae_lens")
    config = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))
    assert config["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
