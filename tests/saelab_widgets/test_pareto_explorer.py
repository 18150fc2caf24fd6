"""The Pareto explorer in Python, with no browser: what it takes from a sweep, and the SAE that others follow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import traitlets
from matplotlib.figure import Figure
from PIL import Image
from saelab_widgets import ParetoExplorer, materials, pareto_explorer
from saelab_widgets.pareto_explorer import means_along
from saelab_widgets.sources import follow, sae_of

import saelab
from saelab import GatedSAE, RescaleShiftSAE, StandardSAE, TrainingConfig
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit
from saelab.evaluation.probing import probe
from saelab.quantities import COLOURS


@pytest.fixture(scope="session")
def swept(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Four small SAEs in files."""
    return saelab.sweep(
        [lambda: StandardSAE(256, 16), lambda: GatedSAE(256, 16)],
        store,
        [1, 8],
        config=TrainingConfig(n_steps=5, batch_size=64),
        folder=tmp_path_factory.mktemp("sweep"),
        progress=False,
    )


def table(**columns: Any) -> pd.DataFrame:
    """Six SAEs of which there are no files."""
    rows = {
        "architecture": ["gated", "gated", "gated", "standard", "standard", "jumprelu"],
        "l1_coefficient": [1.0, 2.0, 4.0, 1.0, 2.0, 0.0],
        "l0": [80.0, 40.0, 10.0, 90.0, 30.0, 41.5],
        "fvu": [0.1, 0.2, 0.4, 0.15, 0.3, np.nan],
        "gamma": [0.99, 0.98, 0.97, 0.9, 0.8, 1.0],
    }
    return pd.DataFrame({**rows, **columns})


def repeated(**columns: Any) -> pd.DataFrame:
    """Gated SAEs and two controls, at two penalties with three seeds each; the seeds of a setting in a row."""
    rows = [
        {
            "architecture": "gated",
            "control": control,
            "l1_coefficient": l1,
            "seed": seed,
            "l0": 40.0 / l1 + seed,
            "fvu": 0.1 * l1 + cost + 0.03 * seed,
        }
        for control, cost in (("none", 0.0), ("frozen_decoder", 0.1), ("pca", 0.3))
        for l1 in (1.0, 2.0)
        for seed in range(3)
    ]
    return pd.DataFrame(rows).assign(**columns)


def numbers(pareto: ParetoExplorer) -> pd.DataFrame:
    """What the page gets."""
    columns = [one["column"] for one in pareto.quantities]
    return pd.DataFrame(np.frombuffer(pareto.numbers, np.float32).reshape(-1, len(columns)), columns=columns)


def specification(pareto: ParetoExplorer, column: str) -> dict[str, Any]:
    return next(one for one in pareto.quantities if one["column"] == column)


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def ax_of(pareto: ParetoExplorer) -> Any:
    """What the picture shows."""
    ax = Figure().add_subplot()
    pareto._draw_marks(ax)
    return ax


def image_of(pareto: ParetoExplorer) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(pareto._picture())).convert("RGB"))


def test_the_page_gets_every_number_of_the_table(swept: pd.DataFrame) -> None:
    pareto = ParetoExplorer(swept)
    sent = numbers(pareto)
    assert {"l1_coefficient", "l0", "fvu", "gamma", "n_dead", "seconds"} <= set(sent)
    for name in sent:
        np.testing.assert_allclose(sent[name], swept[name], rtol=1e-6)
    assert [sae["series"] for sae in pareto.saes] == list(swept.architecture)
    assert [sae["path"] for sae in pareto.saes] == list(swept.path)


def test_the_table_comes_back_as_it_was_given_and_is_not_the_widgets_own() -> None:
    given = table()
    pareto = ParetoExplorer(given)
    pd.testing.assert_frame_equal(pareto.frame(), given)
    frame = pareto.frame()
    frame.loc[0, "l0"] = -1.0
    assert pareto.frame().l0[0] == 80 and given.l0[0] == 80


def test_loss_recovered_is_on_the_y_axis_where_the_table_has_it_and_else_fvu() -> None:
    assert ParetoExplorer(table()).y == "fvu"
    assert ParetoExplorer(table(loss_recovered=0.9)).y == "loss_recovered"
    assert ParetoExplorer(table(loss_recovered=0.9), y="gamma").y == "gamma"
    assert ParetoExplorer(table(loss_recovered=np.nan)).y == "fvu"


def test_any_column_of_numbers_can_be_an_axis_and_text_cannot() -> None:
    pareto = ParetoExplorer(
        table(my_score=[1, None, 3, 4, 5, 6], note="text", mixed=[1, "a", 2, 3, 4, 5], flag=True, none=np.nan)
    )
    pareto.x, pareto.y = "my_score", "l1_coefficient"
    spec = specification(pareto, "my_score")
    assert spec["label"] == "my score" and spec["digits"] == 0 and spec["reference"] is None
    assert np.isnan(numbers(pareto).my_score[1])
    names = {one["column"] for one in pareto.quantities}
    assert not names & {"note", "mixed", "flag", "none", "architecture"}
    assert ["note", "text"] in pareto.saes[0]["texts"] and ["flag", "True"] in pareto.saes[0]["texts"]
    with pytest.raises(traitlets.TraitError, match="x must be a column of numbers: .*not 'note'"):
        pareto.x = "note"
    assert pareto.x == "my_score"


def test_quantities_are_called_written_and_marked_as_everywhere() -> None:
    pareto = ParetoExplorer(table(loss_recovered=0.9, tiny=[1e-4, 2.5e-4, 0.5, 0.5, 0.5, 0.5]))
    assert specification(pareto, "gamma")["label"] == "Bias \N{GREEK SMALL LETTER GAMMA}"
    assert specification(pareto, "gamma")["reference"]["value"] == 1
    assert specification(pareto, "loss_recovered")["reference"]["value"] == 1
    assert specification(pareto, "fvu")["reference"] is None
    assert [specification(pareto, name)["digits"] for name in ("l0", "fvu", "tiny")] == [1, 3, 5]
    assert not ParetoExplorer(table(n_dead=3)).quantities[-1]["help"].endswith("100 steps.")  # a sweep has no steps


def test_an_axis_is_logarithmic_where_the_quantity_spans_a_factor_of_four() -> None:
    def scale(values: list[float]) -> str:
        scales: dict[str, str] = specification(ParetoExplorer(table(score=values)), "score")["scales"]
        return scales["x"]

    assert scale([1, 2, 3, 4, 2, 2]) == "log"
    assert scale([1, 2, 3, 3.9, 2, 2]) == "linear"
    assert scale([0, 2, 3, 40, 2, 2]) == "linear"
    assert scale([1, 2, 3, 40, np.nan, np.inf]) == "log"
    assert specification(ParetoExplorer(table()), "l0")["scales"] == {"x": "log", "y": "log"}
    assert specification(ParetoExplorer(table()), "fvu")["scales"]["y"] == "linear"


def test_saes_of_other_widths_or_presets_are_on_other_lines() -> None:
    lines = [sae["line"] for sae in ParetoExplorer(table(d_sae=[64, 64, 128, 64, 64, 64], ablations=np.nan)).saes]
    assert lines[0] == lines[1] != lines[2] and lines[3] == lines[4] != lines[0]


def test_seeds_of_one_setting_are_one_point_of_a_line_and_of_one_seed_each_row_is_its_own() -> None:
    saes = ParetoExplorer(repeated()).saes
    assert [sae["point"] for sae in saes] == [row // 3 for row in range(18)]
    assert [sae["line"] for sae in saes] == [row // 6 for row in range(18)]
    assert [sae["seed"] for sae in saes] == ["0", "1", "2"] * 6
    frame = repeated()
    one_seed = ParetoExplorer(frame[frame.seed == 1]).saes
    assert [sae["point"] for sae in one_seed] == list(range(6)) and {sae["seed"] for sae in one_seed} == {""}
    equal = ParetoExplorer(pd.DataFrame({"architecture": ["gated"] * 2, "l0": [1.0, 2.0]})).saes
    assert [sae["point"] for sae in equal] == [0, 1]


def test_the_points_of_a_line_are_the_means_of_summarize() -> None:
    frame = repeated()
    x, y = frame.l0.to_numpy(), frame.fvu.to_numpy()
    xs, ys = means_along(x, y, {row: row // 3 for row in range(6)})
    means = saelab.summarize(frame[frame.control == "none"]).sort_values("l0")
    np.testing.assert_allclose(xs, means.l0)
    np.testing.assert_allclose(ys, means.fvu)
    assert xs == [21.0, 41.0] and ys == pytest.approx([0.23, 0.13])


def test_a_point_with_a_seed_that_has_no_number_is_left_out_of_the_line() -> None:
    y = np.array([1.0, np.nan, 2.0, 4.0])
    points = {row: row // 2 for row in range(4)}
    assert means_along(np.arange(4.0), y, points) == ([2.5], [3.0])
    assert means_along(np.arange(4.0), np.full(4, np.nan), points) == ([], [])


def test_a_control_is_grey_in_its_architectures_shape_and_called_as_in_figures() -> None:
    pareto = ParetoExplorer(repeated())
    assert pareto.architectures == ["gated"] and pareto.controls == ["gated, frozen_decoder", "pca"]
    gated, frozen, pca = pareto.series
    assert [one["label"] for one in pareto.series] == ["Gated", "Gated, frozen decoder", "PCA"]
    assert gated["shape"] == frozen["shape"] == pca["shape"] == "circle"
    assert gated["dash"] == "" and frozen["dash"] and pca["dash"] and frozen["dash"] != pca["dash"]
    assert frozen["color"] == pca["color"] == "dead" != gated["color"]
    assert [sae["series"] for sae in pareto.saes[::6]] == ["gated", "gated, frozen_decoder", "pca"]
    legend = ax_of(pareto).get_legend_handles_labels()
    assert legend[1] == ["Gated", "Gated, frozen decoder", "PCA"]
    assert [handle.get_color() for handle in legend[0]] == [GatedSAE.look.light, *[COLOURS["dead"].light] * 2]


def test_a_table_whose_rows_are_no_controls_looks_as_one_without_the_column() -> None:
    plain = ParetoExplorer(table())
    for control in ("none", None):
        pareto = ParetoExplorer(table(control=control))
        assert pareto.controls == [] and pareto.series == plain.series
        assert pareto._picture() == plain._picture()


def test_the_first_choice_is_no_control_unless_there_are_only_controls() -> None:
    assert ParetoExplorer(repeated()).chosen < 6
    standard = ["standard"] * 6 + ["gated"] * 12
    assert ParetoExplorer(repeated(architecture=standard)).chosen < 6
    assert ParetoExplorer(repeated(control="frozen_decoder", l1_coefficient=np.arange(18.0))).chosen >= 0


def test_the_picture_draws_every_mark_and_a_line_through_the_means() -> None:
    pareto = ParetoExplorer(repeated())
    lines = [line for line in ax_of(pareto).lines if len(line.get_xdata())]
    marks = [line for line in lines if line.get_linestyle() == "None" and line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in marks if line.get_markersize() < 10] == [6, 6, 6]
    through = [line for line in lines if line.get_marker() == "None"]
    assert [list(line.get_xdata()) for line in through] == [[21.0, 41.0]] * 3
    pareto.controls = ["pca"]
    assert ax_of(pareto).get_legend_handles_labels()[1] == ["Gated", "PCA"]


def test_an_architecture_looks_as_in_the_librarys_figures_and_others_have_a_look_of_their_own() -> None:
    pareto = ParetoExplorer(
        table(architecture=["unheard_of", "gated", "standard", "rescale_shift", "jumprelu", "mine"])
    )
    shapes = {one["value"]: one["shape"] for one in pareto.series}
    known = {"gated": "circle", "standard": "square", "rescale_shift": "triangle", "jumprelu": "diamond"}
    assert {name: shapes[name] for name in known} == known
    assert len(set(shapes.values())) == 6
    assert pareto.architectures == ["standard", "rescale_shift", "gated", "jumprelu", "unheard_of", "mine"]


def test_a_gated_sae_in_the_middle_is_chosen_at_first() -> None:
    assert ParetoExplorer(table()).chosen == 1
    assert ParetoExplorer(table(architecture="standard")).chosen == 1  # row 5, nearer to the middle, has no FVU
    assert ParetoExplorer(table(l0=np.nan, seconds=1.0), x="gamma").chosen == 1


def test_the_chosen_sae_is_the_one_in_its_file(swept: pd.DataFrame) -> None:
    pareto = ParetoExplorer(swept)
    for row, path in enumerate(swept.path):
        pareto.chosen = row
        for mine, theirs in zip(pareto.sae.parameters(), saelab.load(path).parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert isinstance(pareto.sae, GatedSAE) and sae_of(pareto) is pareto.sae
    assert pareto.error == "" and all(sae["note"] == "" for sae in pareto.saes)


def test_widgets_that_follow_get_the_sae_that_is_chosen(swept: pd.DataFrame) -> None:
    pareto, follower = ParetoExplorer(swept), ParetoExplorer(table())
    seen: list[Any] = []
    follow(follower, pareto, lambda: seen.append(pareto.sae))
    pareto.chosen = 0
    pareto.chosen = 3
    pareto.y = "gamma"
    pareto.architectures = ["gated"]
    assert [type(sae) for sae in seen] == [StandardSAE, GatedSAE]
    follower.close()
    pareto.chosen = 1
    assert len(seen) == 2


def test_a_table_without_paths_can_be_looked_at_and_says_why_no_sae_follows() -> None:
    pareto = ParetoExplorer(table())
    pareto.chosen = 4
    assert "column path" in pareto.saes[4]["note"]
    with pytest.raises(ValueError, match="keep the column path that saelab.sweep gives"):
        _ = pareto.sae
    pareto.chosen = -1
    with pytest.raises(ValueError, match="click a mark, or set chosen to a row of the table, 0 to 5"):
        _ = pareto.sae


def test_a_file_that_is_missing_is_named_and_taken_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    pareto = ParetoExplorer(table(path=[str(path)] * 5 + [None]))
    assert str(path) in pareto.saes[0]["note"] and "column path" in pareto.saes[5]["note"]
    pareto.chosen = 2
    with pytest.raises(FileNotFoundError, match="run the sweep again"):
        _ = pareto.sae
    saelab.save(GatedSAE(8, 4, seed=1), path)
    pareto.chosen = 3
    assert pareto.saes[3]["note"] == "" and pareto.sae.d_sae == 4
    saelab.save(GatedSAE(8, 6, seed=1), path)
    assert pareto.sae.d_sae == 6, "a file that was written anew is read anew"
    path.unlink()
    pareto.chosen = 4
    assert str(path) in pareto.saes[4]["note"]


def test_a_csv_file_gives_what_its_table_gives(tmp_path: Path) -> None:
    given = table(ablations="", preset="paper", path=["there is none"] * 6)
    given.to_csv(tmp_path / "sweep.csv", index=False)
    from_file, direct = ParetoExplorer(tmp_path / "sweep.csv"), ParetoExplorer(given)
    assert from_file.numbers == direct.numbers and from_file.quantities == direct.quantities
    assert from_file.saes == direct.saes
    with pytest.raises(FileNotFoundError):
        ParetoExplorer(str(tmp_path / "none.csv"))


def test_the_repositorys_own_experiment_can_be_shown() -> None:
    path = Path(__file__).parents[2] / "docs" / "experiments" / "pareto.csv"
    pareto = ParetoExplorer(path)
    assert repr(pareto) == f"ParetoExplorer({len(pd.read_csv(path))} SAEs, loss_recovered against l0)"
    assert {"clean", "score_zero", "n_tokens"} <= set(numbers(pareto))


def test_a_probe_measures_what_the_table_lacks(swept: pd.DataFrame) -> None:
    split = LabelledSplit(*(LabelledActivations(torch.randn(60, 256), torch.arange(60) % 2) for _ in range(2)))
    pareto = ParetoExplorer(swept.assign(path=[*swept.path[:3], "gone"]), sentiment=split)
    sae = saelab.load(swept.path[2])
    with torch.no_grad():
        report = probe(*(LabelledActivations(sae.encode(part.x), part.labels) for part in split))
    accuracy = pareto.frame().probe_accuracy
    assert accuracy[2] == report.test_accuracy and np.isnan(accuracy[3])
    assert pareto.sentiment is split and pareto.test_x is None


def test_wrong_input_gets_a_sentence() -> None:
    with pytest.raises(TypeError, match="pandas DataFrame, .* or the path of a CSV file, not list"):
        ParetoExplorer([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no rows"):
        ParetoExplorer(table().iloc[:0])
    with pytest.raises(ValueError, match="no column architecture; it has l1_coefficient, l0"):
        ParetoExplorer(table().drop(columns="architecture"))
    with pytest.raises(ValueError, match="architecture is missing in some rows"):
        ParetoExplorer(table(architecture=["gated"] * 5 + [None]))
    with pytest.raises(ValueError, match="y must be a column of numbers: .*; not 'loss'"):
        ParetoExplorer(table(), y="loss")
    with pytest.raises(ValueError, match="no numbers"):
        ParetoExplorer(table()[["architecture"]])
    with pytest.raises(ValueError, match="several columns l0"):
        ParetoExplorer(pd.concat([table(), table()[["l0"]]], axis=1))
    pareto = ParetoExplorer(table())
    with pytest.raises(traitlets.TraitError, match="0 to 5, or -1 for none, not 6"):
        pareto.chosen = 6
    with pytest.raises(traitlets.TraitError, match="may list 'standard', 'gated', 'jumprelu', not 'unheard_of'"):
        pareto.architectures = ["gated", "unheard_of"]
    with pytest.raises(traitlets.TraitError, match="controls may list nothing here, not 'pca'"):
        pareto.controls = ["pca"]
    with pytest.raises(ValueError, match="several rows have .*'gated'.* seed 1; leave repeated rows out"):
        ParetoExplorer(pd.concat([repeated(), repeated()[1:2]]))


def test_where_no_widget_can_run_there_is_a_picture_of_what_is_shown() -> None:
    pareto = ParetoExplorer(table(loss_recovered=[0.98, 0.95, 0.8, 0.9, 0.7, 0.9]))
    bundle = pareto._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 60_000
    orange, blue = (rgb(color) for color in (StandardSAE.look.light, COLOURS["l0"].light))
    shown = image_of(pareto)
    assert (shown == orange).all(axis=2).any() and (shown == blue).all(axis=2).any()
    pareto.architectures, pareto.chosen = ["gated"], -1
    shown = image_of(pareto)
    assert not (shown == orange).all(axis=2).any() and not (shown == blue).all(axis=2).any()
    pareto.architectures = []
    assert pareto._picture().startswith(b"\x89PNG")


def test_a_page_of_its_own_holds_the_sweep(tmp_path: Path) -> None:
    page = (
        ParetoExplorer(table(note="</script><b>bold</b>"))
        .save_html(tmp_path / "pareto.html")
        .read_text(encoding="utf-8")
    )
    assert "ParetoExplorer(6 SAEs, fvu against l0)" in page and "</script><b>" not in page


def test_the_default_sweep_is_kept_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep() -> materials.Sweep:
        return materials.default_sweep(
            tmp_path,
            n_tokens=600,
            n_test_texts=4,
            d_sae=16,
            n_steps=4,
            standard_l1=[1, 4],
            gated_l1=[2],
            control_l1={"frozen_decoder": [3]},
            progress=False,
        )

    split = LabelledSplit(*(LabelledActivations(torch.randn(60, 256), torch.arange(60) % 2) for _ in range(2)))

    class Snippets:
        def split(self) -> LabelledSplit:
            return split

    monkeypatch.setattr(materials, "snippets_at", lambda *_: Snippets())
    monkeypatch.setattr(pareto_explorer, "default_sweep", sweep)
    pareto = ParetoExplorer()
    frame = pareto.frame()
    assert list(frame.architecture) == ["standard", "standard", "rescale_shift", "rescale_shift", "gated", "gated"]
    assert list(frame.l1_coefficient) == [1, 4, 1, 4, 2, 3]
    assert list(frame.control) == [*["none"] * 5, "frozen_decoder"]
    assert saelab.load(frame.path[5]).frozen == ("W_dec",)
    assert frame[["loss_recovered", "probe_accuracy"]].notna().all(axis=None)
    assert pareto.chosen == 4 and isinstance(pareto.sae, GatedSAE)
    # Each is the cure of its own standard SAE.
    cured, standard = saelab.load(frame.path[3]), saelab.load(frame.path[1])
    assert isinstance(cured, RescaleShiftSAE) and torch.equal(cured.W_dec, standard.W_dec)
    assert pareto.test_x is not None and pareto.test_x.shape[1] == 256
    assert saelab.evaluate(pareto.sae, pareto.test_x).l0 == pytest.approx(frame.l0[4])
    assert pareto.sentiment is split
    # What is there is not made again; what is missing is.
    Path(frame.path[4]).with_suffix(".csv").unlink()
    measured: list[str] = []
    real = saelab.loss_recovered

    def counted(model: Any, hook: str, sae: saelab.SparseAutoencoder, *args: Any, **more: Any) -> saelab.LossRecovered:
        measured.append(sae.architecture)
        return real(model, hook, sae, *args, **more)

    monkeypatch.setattr("saelab.training.sweeps.Trainer", None)
    monkeypatch.setattr(saelab, "loss_recovered", counted)
    again = sweep().table
    assert measured == ["gated"]
    pd.testing.assert_frame_equal(again, frame)
