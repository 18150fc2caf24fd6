"""The probe explorer in Python, with no browser: what it looks up is what the library finds."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import traitlets
from saelab_widgets import ProbeExplorer, probe_explorer
from saelab_widgets.instrument import Instrument
from saelab_widgets.probe_results import COLUMNS, REPRESENTATIONS, C, LiveCodes, codes_of, over_seeds
from saelab_widgets.sources import follow

import saelab
from saelab import (
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    LabelledSet,
    RescaleShiftSAE,
    StandardSAE,
    compare_representations,
    probe,
)
from saelab.data.activations import ActivationStore
from saelab.evaluation.probing import HeldOut, pool_reports

LAYERS, L1S = (0, 2), (1.0, 4.0)
BLOCKS = ("drama", "comedy")
Saes = dict[int, dict[float, GatedSAE]]


def texts(n: int = 120) -> LabelledSet:
    """Two labels that the first column tells apart, somewhat; two blocks; every fourth text hard."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 2
    x = torch.randn(n, 8, generator=generator)
    x[:, 0] += 1.5 * (labels - 0.5)
    return LabelledSet(
        x=x,
        labels=labels,
        texts=np.array([f"snippet {row}" for row in range(n)]),
        blocks=np.array([BLOCKS[row // 2 % 2] for row in range(n)]),
        strata=np.array([f"{row % 2}{row % 8 < 2}" for row in range(n)]),
    )


def sae(seed: int, l1: float) -> GatedSAE:
    sae = GatedSAE(8, 24, seed=seed)
    with torch.no_grad():
        sae.b_gate.copy_(-0.05 * l1 * torch.rand(24, generator=torch.Generator().manual_seed(seed)))
    return sae


@pytest.fixture
def saes() -> Saes:
    return {layer: {l1: sae(layer, l1) for l1 in L1S} for layer in LAYERS}


@pytest.fixture
def data() -> dict[int, LabelledSet]:
    first = texts()
    return {0: first, 2: replace(first, x=first.x.roll(1, dims=1).contiguous())}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A table of SAEs in files: two layers, one L1 coefficient, three seeds, and a control."""
    folder = tmp_path_factory.mktemp("saes")
    rows = []
    for layer in LAYERS:
        for control, shift in (("none", 0), ("frozen_decoder", 50)):
            for seed in (3, 4, 5):
                path = saelab.save(
                    sae(10 * layer + seed + shift, 4.0), folder / f"{layer}-{control}-{seed}.safetensors"
                )
                rows.append({"layer": layer, "l1_coefficient": 4, "control": control, "seed": seed, "path": str(path)})
    return pd.DataFrame(rows)


@pytest.fixture
def explorer(saes: Saes, data: dict[int, LabelledSet]) -> Iterator[ProbeExplorer]:
    explorer = ProbeExplorer(saes, data)
    yield explorer
    explorer.close()


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def chosen(table: pd.DataFrame, **values: object) -> dict[str, Any]:
    for name, value in values.items():
        table = table[table[name] == value]
    (row,) = records(table)
    return row


def test_the_table_holds_what_the_library_finds(
    explorer: ProbeExplorer, saes: Saes, data: dict[int, LabelledSet]
) -> None:
    table = explorer.frame()
    assert len(table) == len(LAYERS) * len(L1S) * len(REPRESENTATIONS) * 4
    names = {"activations": "activations", "sae": "codes", "PCA, k of sae": "pca"}
    parts = {"all": "each block"}
    for layer, by_l1 in saes.items():
        for l1, one in by_l1.items():
            ways: tuple[HeldOut, ...] = ("stratified", "block")
            for way in ways:
                expected = compare_representations(data[layer], {"sae": one}, C=C, held_out=way, progress=False)
                for row in records(expected):
                    found = chosen(
                        table,
                        layer=layer,
                        l1_coefficient=l1,
                        representation=names[row["representation"]],
                        held_out=parts.get(row["held_out"], row["held_out"]),
                    )
                    for column in COLUMNS:
                        if column != "l0" or row["representation"] == "sae":
                            assert found[column] == pytest.approx(row[column], rel=1e-6, nan_ok=True), (row, column)
                    assert found["n_wrong"] == round((1 - row["test_accuracy"]) * found["n_test"])


def test_of_a_table_of_saes_every_seed_and_control_is_probed(files: pd.DataFrame, data: dict[int, LabelledSet]) -> None:
    explorer = ProbeExplorer(files, data)
    table = explorer.frame()
    assert len(table) == len(LAYERS) * 3 * 4 * 4  # seeds, representations, parts
    for row in records(files):
        codes = data[row["layer"]].encoded(saelab.load(row["path"]))
        report = probe(*codes.split(), C=C)
        of = {name: row[name] for name in ("layer", "seed", "control")}
        found = chosen(table, **of, representation="codes", held_out="stratified")
        assert found["test_accuracy"] == pytest.approx(report.test_accuracy)
        assert found["n_active"] == report.n_active
        assert found["n_wrong"] == (~report.test_correct).sum()
        assert found["l0"] == pytest.approx((codes.x > 0).sum(dim=1).float().mean())
    assert set(table.representation[table.control != "none"]) == {"codes"}


def test_the_page_gets_means_over_seeds_with_the_intervals_of_summarize(
    files: pd.DataFrame, data: dict[int, LabelledSet]
) -> None:
    explorer = ProbeExplorer(files, data)
    assert explorer.seeds == ["3", "4", "5"]
    assert [one["label"] for one in explorer.controls] == ["codes, frozen decoder"]
    names = [option["value"] for option in explorer.options["representation"]]
    assert names == ["activations", "codes", "pca", "codes, frozen_decoder"]
    sent = np.frombuffer(explorer.numbers, np.float32).reshape(2, 1, 4, 4, len(COLUMNS))
    by = ["layer", "representation", "control", "held_out"]
    means = saelab.summarize(explorer.frame().drop(columns=["test_low", "test_high", "train_low", "train_high"]), by=by)
    places = {("codes", "none"): 1, ("pca", "none"): 2, ("codes", "frozen_decoder"): 3}
    for row in records(means):
        if row["representation"] == "activations":
            continue
        part = [option["value"] for option in explorer.options["part"]].index(row["held_out"])
        at = sent[LAYERS.index(row["layer"]), 0, part, places[row["representation"], row["control"]]]
        found = dict(zip(COLUMNS, at.tolist(), strict=True))
        for name in ("test_accuracy", "train_accuracy", "n_active", "l0"):
            assert found[name] == pytest.approx(row[name], rel=1e-6, nan_ok=True)
        for which in ("test", "train"):
            for limit in ("low", "high"):
                assert found[f"{which}_{limit}"] == pytest.approx(row[f"{which}_accuracy_{limit}"], rel=1e-5)
    assert np.isnan(sent[..., 0, COLUMNS.index("test_low")]).all()  # no seed goes into activations
    assert explorer._picture().startswith(b"\x89PNG")


def test_a_mean_over_seeds_and_its_t_interval_are_as_computed_by_hand() -> None:
    numbers = np.zeros((3, len(COLUMNS)), np.float32)
    numbers[:, COLUMNS.index("test_accuracy")] = [0.5, 0.6, 0.7]
    numbers[:, COLUMNS.index("n_active")] = [1, 2, 6]
    found = dict(zip(COLUMNS, over_seeds(numbers).tolist(), strict=True))
    half = 4.302653 * 0.1 / 3**0.5  # the t quantile at two degrees of freedom, times the standard error
    assert found["test_accuracy"] == pytest.approx(0.6) and found["n_active"] == 3
    assert (found["test_low"], found["test_high"]) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-5)
    np.testing.assert_array_equal(over_seeds(numbers[:1]), numbers[0])


def test_the_texts_the_followers_and_the_live_texts_are_those_of_the_first_seed(
    files: pd.DataFrame, data: dict[int, LabelledSet]
) -> None:
    explorer = ProbeExplorer(files, data)
    explorer.layer = 2
    of_layer = files[files.layer == 2]
    first = of_layer[of_layer.seed == 3]
    assert isinstance(explorer.sae, GatedSAE)
    assert torch.equal(explorer.sae.b_gate, saelab.load(first.path.iloc[0]).get_parameter("b_gate"))
    for name, path in zip(("codes", "codes, frozen_decoder"), first.path, strict=True):
        explorer.representation = name
        split = data[2].encoded(saelab.load(path)).split()
        assert list(explorer.wrong_texts().index) == sorted(split.test.rows[~probe(*split, C=C).test_correct])
    explorer.representation, explorer.gate_threshold = "codes", 0.1
    explorer.wait()
    reports = []
    for path in of_layer.path[of_layer.control == "none"]:
        one = saelab.load(path)
        assert isinstance(one, GatedSAE)
        one.gate_threshold = 0.1
        split = data[2].encoded(one).split()
        reports.append(probe(*split, C=C))
    on_codes = dict(zip(COLUMNS, explorer._live_numbers()[0].tolist(), strict=True))
    assert on_codes["test_accuracy"] == pytest.approx(np.mean([report.test_accuracy for report in reports]))
    rows = data[2].split().test.rows
    assert list(explorer.wrong_texts().index) == sorted(rows[~reports[0].test_correct])
    assert "(gate threshold 0.1, seed 3)" in explorer._score()
    looked_up = explorer._chosen_wrong()
    explorer.representation = "codes, frozen_decoder"
    assert explorer._chosen_wrong() != looked_up  # not at the threshold
    assert explorer._picture().startswith(b"\x89PNG")
    explorer.close()


def test_a_table_without_seeds_and_controls_shows_what_a_mapping_of_its_files_shows(
    files: pd.DataFrame, data: dict[int, LabelledSet]
) -> None:
    some = files[(files.control == "none") & (files.seed == 3)]
    from_table = ProbeExplorer(some[["layer", "l1_coefficient", "path"]], data)
    from_mapping = ProbeExplorer({layer: {4.0: path} for layer, path in zip(some.layer, some.path, strict=True)}, data)
    assert from_table.numbers == from_mapping.numbers and from_table.wrong == from_mapping.wrong
    assert from_table.charts == from_mapping.charts and from_table.controls == []
    assert set(from_table.frame()) - set(from_mapping.frame()) == {"control", "seed"}


def test_a_table_that_lacks_something_is_refused_in_a_sentence(
    files: pd.DataFrame, data: dict[int, LabelledSet]
) -> None:
    wrong = [
        (files.drop(columns="layer"), "has no column layer; it has l1_coefficient, control"),
        (files.assign(l1_coefficient=np.nan), "l1_coefficient is missing in some rows"),
        (pd.concat([files, files[:1]]), "several of layer 0, l1_coefficient 4, control none, seed 3; keep one"),
        (files[1:], "none of layer 0, l1_coefficient 4, control none, seed 3; it needs one for each"),
        (files[files.control != "none"], "has none that is no control"),
        (files[:0], "has none that is no control"),
    ]
    for table, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            ProbeExplorer(table, data)
    with pytest.raises(ValueError, match="layers must be one or more of those of saes, 0, 2, not"):
        ProbeExplorer(files, data, layers=[7])
    with pytest.raises(FileNotFoundError):
        ProbeExplorer(files.assign(path="gone"), data)


def test_the_wrong_texts_are_those_that_the_probe_gets_wrong(
    explorer: ProbeExplorer, saes: Saes, data: dict[int, LabelledSet]
) -> None:
    explorer.layer, explorer.l1_coefficient = 2, 1.0
    codes = data[2].encoded(saes[2][1.0])
    k = int((codes.x > 0).any(dim=0).sum())
    for name, of_layer, n_components in (("activations", data[2], None), ("codes", codes, None), ("pca", data[2], k)):
        explorer.representation = name
        splits = {"stratified": [of_layer.split()], "each block": list(of_layer.by_block().values())}
        for part, several in {**splits, "comedy": [of_layer.by_block()["comedy"]]}.items():
            explorer.part = part
            reports = [probe(*split, C=C, n_components=n_components) for split in several]
            rows = [split.test.rows[~report.test_correct] for split, report in zip(several, reports, strict=True)]
            wrong = explorer.wrong_texts()
            assert list(wrong.index) == sorted(np.concatenate(rows))
            assert 0 < len(wrong) < len(of_layer.x)
            assert list(wrong.text) == [f"snippet {row}" for row in wrong.index]
            assert list(wrong.label) == [["negative", "positive"][row % 2] for row in wrong.index]
            assert list(wrong.hard) == [row % 8 < 2 for row in wrong.index]
    pooled = pool_reports([probe(*split, C=C) for split in data[2].by_block().values()])
    explorer.representation, explorer.part = "activations", "each block"
    assert len(explorer.wrong_texts()) == (~pooled.test_correct).sum()


def test_a_gate_threshold_fits_both_probes_anew_and_zero_goes_back(
    explorer: ProbeExplorer, saes: Saes, data: dict[int, LabelledSet]
) -> None:
    explorer.layer, explorer.l1_coefficient, explorer.part = 0, 4.0, "drama"
    looked_up = list(explorer.wrong_texts().index)
    explorer.gate_threshold = 0.1
    explorer.wait()
    one = copy.deepcopy(saes[0][4.0])
    one.gate_threshold = 0.1
    codes = data[0].encoded(one)
    k = int((codes.x > 0).any(dim=0).sum())
    reports = [
        probe(*codes.by_block()["drama"], C=C),
        probe(*data[0].by_block()["drama"], C=C, n_components=k),
    ]
    live = np.frombuffer(explorer.live, dtype=np.float32)
    assert live[:4].tolist() == [0.0, 1.0, 2.0, np.float32(0.1)]
    for numbers, report in zip(live[4:].reshape(2, -1), reports, strict=True):
        found = dict(zip(COLUMNS, numbers.tolist(), strict=True))
        for name in ("train_accuracy", "test_accuracy", "test_low", "n_active"):
            assert found[name] == pytest.approx(report.as_dict()[name], rel=1e-6)
    assert live[4 + COLUMNS.index("l0")] == pytest.approx((codes.x > 0).sum(dim=1).float().mean())
    rows = data[0].by_block()["drama"].test.rows
    for name, report in zip(("codes", "pca"), reports, strict=True):
        explorer.representation = name
        assert list(explorer.wrong_texts().index) == rows[~report.test_correct].tolist()
    assert "fitted anew" in explorer.status and explorer._picture().startswith(b"\x89PNG")
    explorer.representation, explorer.gate_threshold = "codes", 0.0
    explorer.wait()
    assert explorer.live == explorer.live_wrong == b""
    assert list(explorer.wrong_texts().index) == looked_up


@pytest.mark.parametrize("architecture", [StandardSAE, GatedSAE, RescaleShiftSAE, JumpReLUSAE])
def test_codes_at_one_threshold_after_the_other_are_the_whole_codes_but_for_the_columns_that_are_off(
    architecture: type[ElementwiseSAE],
) -> None:
    one, data = architecture(8, 24, seed=5), texts()
    with torch.no_grad():
        one.W_enc.mul_(10)
        for name in one.feature_parameters:
            getattr(one, name).copy_(0.3 * torch.randn(24, generator=torch.Generator().manual_seed(2)))
    live = LiveCodes(data, one)
    for threshold in (-2.0, -0.1, 0.0, 0.15, 0.6, 0.15):
        one.gate_threshold = threshold
        whole, n_active, l0 = codes_of(data, one)
        found, n_found, l0_found = live.at(threshold)
        assert n_found == n_active > 0 and l0_found == pytest.approx(l0)
        assert torch.equal(found.x, whole.x[:, whole.x.any(dim=0)])
        assert np.array_equal(found.texts, data.texts)


def test_codes_of_texts_that_are_means_over_tokens_are_those_of_the_tokens_at_any_threshold() -> None:
    one, data = sae(1, 1.0), texts()
    tokens = torch.arange(2 * len(data.x))
    store = ActivationStore(
        activations=torch.cat([data.x + 0.5, data.x - 0.5]),
        token_ids=tokens,
        text_indices=tokens % len(data.x),
        positions=tokens // len(data.x),
        scale=1.0,
        model_name="m",
        hook="h",
    )
    live = LiveCodes(replace(data, store=store), one)
    for threshold in (0.1, 0.0):
        found = live.at(threshold)[0].x
        one.gate_threshold = threshold
        expected = (one.encode(data.x + 0.5) + one.encode(data.x - 0.5)) / 2
        torch.testing.assert_close(found, expected)


def test_the_threshold_acts_on_the_sae_that_is_chosen_now(explorer: ProbeExplorer, saes: Saes) -> None:
    explorer.gate_threshold = 0.1
    for layer, l1 in ((2, 4.0), (2, 1.0), (0, 1.0)):
        explorer.layer, explorer.l1_coefficient = layer, l1
        explorer.wait()
        one = copy.deepcopy(saes[layer][l1])
        one.gate_threshold = 0.1
        numbers = dict(zip(COLUMNS, explorer._live_numbers()[0].tolist(), strict=True))
        assert numbers["l0"] == pytest.approx(codes_of(explorer._data[layer], one)[2])


def test_of_many_thresholds_the_last_is_what_is_shown(explorer: ProbeExplorer) -> None:
    for step in range(1, 21):
        explorer.gate_threshold = step / 100
    explorer.wait()
    assert np.frombuffer(explorer.live, dtype=np.float32)[3] == np.float32(0.2)
    assert not explorer.error


def test_a_threshold_that_nothing_exceeds_leaves_the_most_frequent_label(explorer: ProbeExplorer) -> None:
    explorer.gate_threshold = 1000.0
    explorer.wait()
    live = np.frombuffer(explorer.live, dtype=np.float32)[4:].reshape(2, -1)
    assert live[:, COLUMNS.index("n_active")].tolist() == [0.0, 0.0]
    assert live[:, COLUMNS.index("test_accuracy")] == pytest.approx(0.5)
    assert np.isnan(live[:, COLUMNS.index("C")]).all() and not explorer.error


def test_other_widgets_follow_the_sae_of_the_chosen_layer(explorer: ProbeExplorer, saes: Saes) -> None:
    seen: list[tuple[torch.Tensor, float]] = []
    follower = Instrument()

    def look() -> None:
        assert isinstance(explorer.sae, GatedSAE)
        seen.append((explorer.sae.gate_bias, explorer.sae.gate_threshold))

    follow(follower, explorer, look)
    explorer.layer = 2
    explorer.gate_threshold = 0.25
    explorer.representation = "pca"
    assert len(seen) == 2 and seen[1][1] == 0.25
    assert torch.equal(seen[0][0], saes[2][4.0].b_gate)
    assert saes[2][4.0].gate_threshold == 0.0  # the user's own SAE stays as it is
    sentiment = explorer.sentiment
    assert sentiment is not None and len(sentiment.train.x) == 90
    assert explorer.test_x is None
    explorer.wait()


def test_a_choice_that_is_not_there_gets_a_sentence(explorer: ProbeExplorer) -> None:
    for name, value, there in (("layer", 1, "0, 2"), ("l1_coefficient", 3.0, "1.0, 4.0"), ("part", "war", "comedy")):
        with pytest.raises(traitlets.TraitError, match=f"{name} must be one of .*{there}"):
            setattr(explorer, name, value)
    with pytest.raises(traitlets.TraitError):
        explorer.representation = "tokens"


def test_it_starts_where_most_is_lost_and_says_what_it_shows(explorer: ProbeExplorer) -> None:
    assert (explorer.layer, explorer.l1_coefficient, explorer.representation) == (0, 4.0, "codes")
    assert repr(explorer) == "ProbeExplorer(layer 0, codes, L1 4)"
    assert [option["value"] for option in explorer.options["part"]] == ["stratified", "each block", *BLOCKS]


def test_where_no_widget_can_run_there_is_a_small_picture(explorer: ProbeExplorer) -> None:
    bundle = explorer._repr_mimebundle_()
    picture = (bundle[0] if isinstance(bundle, tuple) else bundle)["image/png"]
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000


def test_saes_come_from_files_and_widgets_too(saes: Saes, data: dict[int, LabelledSet], tmp_path: Path) -> None:
    path = saelab.save(saes[0][1.0], tmp_path / "sae.safetensors")
    first = ProbeExplorer({0: {1.0: path}}, {0: data[0]})
    second = ProbeExplorer({0: {1.0: first}}, {0: data[0]})
    assert first.numbers == second.numbers == ProbeExplorer(saes, data, layers=[0]).numbers[: len(first.numbers)]


def test_texts_of_one_block_have_one_part_and_their_labels_the_users_names(data: dict[int, LabelledSet]) -> None:
    one = replace(data[0], blocks=np.full(120, "all"), labels=data[0].labels + 4, strata=np.full(120, ""))
    explorer = ProbeExplorer({7: {2.0: sae(0, 2.0)}}, {7: one}, labels={4: "sad"})
    assert [option["value"] for option in explorer.options["part"]] == ["stratified"]
    assert {text["label"] for text in explorer.texts} == {"sad", "5"}
    assert not any(text["hard"] for text in explorer.texts)


def test_wrong_input_gets_a_sentence(saes: Saes, data: dict[int, LabelledSet]) -> None:
    first = data[0]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"saes": [saes[0][1.0]]}, "saes must map each layer to a mapping"),
        ({"saes": {0: {}}}, "saes must map each layer to a mapping"),
        ({"saes": saes, "data": first}, "data must map each layer to a LabelledSet, or be a DataFrame"),
        ({"data": data}, "give these as saes, too"),
        ({"saes": saes, "data": {0: first}}, "data has no LabelledSet of layer 2"),
        ({"saes": saes, "data": data, "layers": [5]}, "layers must be one or more of those of saes, 0, 2, not"),
        ({"saes": {"one": saes[0]}, "data": {"one": first}}, "layers must be whole numbers, not 'one'"),
        ({"saes": {**saes, 2: {1.0: saes[2][1.0]}}, "data": data}, "layer 2 has SAEs of the L1 coefficients 1.0,"),
        ({"saes": {0: {1.0: GatedSAE(9, 12)}}, "data": data}, "has width 8, its SAE at L1 1 takes 9"),
        ({"saes": {0: {1.0: "sae"}, 1: 3}}, "saes must map each layer to a mapping"),
        ({"saes": saes, "data": {**data, 2: replace(first, labels=1 - first.labels)}}, "layer 2 has other texts, lab"),
        ({"saes": saes, "data": {k: replace(d, blocks=np.full(120, "each block")) for k, d in data.items()}}, "rename"),
        ({"saes": saes}, "does not know which activations it was trained on"),
        ({"l1_coefficients": []}, "l1_coefficients need at least one each"),
        ({"n_tokens": 0}, "n_tokens must be at least 1"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises((TypeError, ValueError), match=sentence):
            ProbeExplorer(**arguments)


@pytest.fixture
def cache(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The defaults with the tests' own model, kept in a folder of this test."""
    monkeypatch.setattr(probe_explorer, "cache_folder", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(probe_explorer, "language_model", lambda name: model)
    monkeypatch.setattr("saelab_widgets.probe_results.language_model", lambda name: model)
    probe_explorer._trained.cache_clear()
    return tmp_path


def test_the_default_saes_and_probes_are_made_once_and_then_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = saelab.load_sentiment().groupby(["block", "label", "hard"]).head(2).reset_index(drop=True)
    arguments: dict[str, Any] = {"layers": [0, 3], "l1_coefficients": [4], "d_sae": 16, "n_tokens": 600, "n_steps": 4}
    first = ProbeExplorer(data=snippets, **arguments)
    assert (first.sae.d_in, first.sae.d_sae) == (256, 16)
    trained_on = first.sae.trained_on
    assert trained_on is not None and trained_on.hook == "blocks.0.hook_resid_post"
    test_x = first.test_x
    assert test_x is not None and test_x.shape == (probe_explorer.N_TEST_PER_LAYER, 256)
    assert first.texts[0]["text"] == snippets.text[0] and len(first.options["part"]) == 6
    # The same as what a course would make by hand, from the SAEs alone.
    by_hand = ProbeExplorer({0: {4.0: first}}, snippets)
    n = len(by_hand.numbers) // np.dtype(np.float32).itemsize
    assert np.allclose(
        np.frombuffer(by_hand.numbers, np.float32), np.frombuffer(first.numbers, np.float32)[:n], equal_nan=True
    )

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this is in the cache")

    probe_explorer._trained.cache_clear()
    for what in ("saelab.Trainer.run", "saelab.data.activations.hook_batches", "saelab_widgets.probe_results.probe"):
        monkeypatch.setattr(what, fail)
    again = ProbeExplorer(data=snippets, **arguments)
    assert again.numbers == first.numbers and again.wrong == first.wrong
    assert math.isclose(again.frame().test_accuracy.sum(), first.frame().test_accuracy.sum())
