"""The shrinkage explorer in Python, with no browser: its SAEs, their repairs, and the numbers of both."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets
from saelab_widgets import ShrinkageExplorer
from saelab_widgets.instrument import Instrument
from saelab_widgets.sources import follow, sae_of

import saelab
from saelab import RescaleShiftSAE, StandardSAE
from saelab.evaluation.metrics import BiasFormula

FORMULAS: tuple[BiasFormula, ...] = ("corrected", "v1", "projection", "norm_ratio")
NUMBERS = (*FORMULAS, "fvu", "l0", "recovered", "missed", "false")


def small() -> ShrinkageExplorer:
    """Trained once in a session, as every explorer with these settings."""
    return ShrinkageExplorer(n_features=12, d_in=10, density=0.08, l1_coefficients=[1, 0.5, 4], noises=[0, 0.2])


@pytest.fixture
def explorer() -> Iterator[ShrinkageExplorer]:
    explorer = small()
    for point in explorer._grid.points:
        point.fitted = None
    explorer.fits = explorer._fits()
    yield explorer
    explorer.wait()
    explorer.close()


def test_features_are_found_and_the_higher_the_penalty_the_smaller_their_codes(explorer: ShrinkageExplorer) -> None:
    table = explorer.frame()
    assert list(table.l1_coefficient) == [0.5, 1, 4] * 2 and list(table.noise) == [0.0] * 3 + [0.2] * 3
    for _, level in table.groupby("noise"):
        assert list(level.corrected) == sorted(level.corrected, reverse=True)
        assert level.corrected.iloc[0] > 0.85 and level.corrected.iloc[-1] < 0.65
        assert level.recovered.iloc[-1] < level.recovered.iloc[0] and level.fvu.iloc[-1] > level.fvu.iloc[0]
    explorer.l1_coefficient = 0.5
    assert saelab.matched_cosine_similarity(explorer.sae.W_dec, explorer.data.dictionary).mean > 0.95


def test_about_half_the_penalty_is_missing_from_the_codes_that_are_on(explorer: ShrinkageExplorer) -> None:
    explorer.l1_coefficient = 4
    x, true = explorer.test_x, explorer._level.true_codes
    learned = explorer.sae.encode(x).detach()[:, explorer._point.matching]
    missing = (true - learned)[(true > 0) & (learned > 0)]
    assert float(missing.mean()) == pytest.approx(4 / 2, rel=0.25)


def test_the_table_says_what_the_library_measures(explorer: ShrinkageExplorer) -> None:
    for _, row in explorer.frame().iterrows():
        explorer.l1_coefficient, explorer.noise = row.l1_coefficient, row.noise
        x, sae = explorer.test_x, explorer.sae
        measured = saelab.evaluate(sae, x)
        assert row.fvu == pytest.approx(measured.fvu, rel=1e-6)
        assert row.l0 == pytest.approx(measured.l0, rel=1e-6)
        for formula in FORMULAS:
            expected = saelab.relative_reconstruction_bias(x, sae(x), formula)
            assert row[formula] == pytest.approx(expected, rel=1e-6)


def test_no_input_on_the_page_was_trained_on(explorer: ShrinkageExplorer) -> None:
    assert len(explorer.test_x) == 1000
    assert torch.equal(explorer.test_x, explorer.data.activations[-1000:])
    assert len(explorer.data) == 17_000


def test_levels_of_noise_have_the_same_true_features(explorer: ShrinkageExplorer) -> None:
    without = explorer.data
    explorer.noise = 0.2
    assert explorer.data.noise == 0.2 and torch.equal(without.dictionary, explorer.data.dictionary)


def test_a_value_between_two_of_the_grid_is_taken_as_the_nearest(explorer: ShrinkageExplorer) -> None:
    explorer.l1_coefficient = 3.0
    assert explorer.l1_coefficient == 4.0
    explorer.l1_coefficient = 0.01
    assert explorer.l1_coefficient == 0.5
    explorer.noise = 0.15
    assert explorer.noise == 0.2
    for name in ("l1_coefficient", "noise", "rescale", "shift"):
        with pytest.raises(traitlets.TraitError, match="finite"):
            setattr(explorer, name, math.nan)


def test_without_a_repair_the_sae_is_the_trained_one(explorer: ShrinkageExplorer) -> None:
    assert type(explorer.sae) is StandardSAE
    assert torch.equal(explorer.sae.encode(explorer.test_x), explorer._point.codes)
    assert explorer.sae is explorer.sae
    with torch.no_grad():
        explorer.sae.b_dec.add_(1)  # what a user does to it does not reach the next one
    explorer.l1_coefficient, explorer.l1_coefficient = 0.5, 4.0
    assert torch.equal(explorer.sae.encode(explorer.test_x), explorer._point.codes)


def test_a_repair_by_hand_rescales_and_shifts_the_codes_that_are_on(explorer: ShrinkageExplorer) -> None:
    before = explorer.sae.encode(explorer.test_x)
    explorer.rescale, explorer.shift = 1.25, -0.4
    assert isinstance(explorer.sae, RescaleShiftSAE)
    expected = (before > 0) * (1.25 * before - 0.4).relu()
    assert torch.allclose(explorer.sae.encode(explorer.test_x), expected, atol=1e-5)
    assert explorer.frame("by_hand").fvu.iloc[0] != explorer.frame().fvu.iloc[0]


def test_the_best_two_numbers_have_the_least_error_and_leave_almost_no_bias(explorer: ShrinkageExplorer) -> None:
    explorer.l1_coefficient = 4
    best = explorer.best_two_numbers()
    assert best.rescale > 1 and best.shift > 0

    def fvu() -> float:
        return saelab.evaluate(explorer.sae, explorer.test_x).fvu

    explorer.repair = "best_two"
    least = fvu()
    assert saelab.evaluate(explorer.sae, explorer.test_x).gamma == pytest.approx(1, abs=0.05)
    explorer.repair = "by_hand"
    for rescale, shift in ((1.02, 0), (0.98, 0), (1, 0.05), (1, -0.05)):
        explorer.rescale, explorer.shift = best.rescale * rescale, best.shift + shift
        assert fvu() > least
    assert explorer.rescale == pytest.approx(best.rescale)  # the two are the user's own, and stay what they were set to


def test_a_repair_changes_the_error_but_neither_misses_nor_false_alarms(explorer: ShrinkageExplorer) -> None:
    before, after = explorer.frame(), explorer.frame("best_two")
    penalised = before.l1_coefficient == 4
    assert (after.fvu < before.fvu).all() and (after.corrected[penalised] > 0.97).all()
    assert (after.missed[penalised] == before.missed[penalised]).all()
    assert (after["false"][penalised] == before["false"][penalised]).all()


def test_each_feature_is_fitted_beside_the_kernel_first_here_then_along_the_penalties(
    explorer: ShrinkageExplorer,
) -> None:
    explorer.l1_coefficient = 4
    unrepaired = saelab.evaluate(explorer.sae, explorer.test_x).fvu
    explorer.repair = "each_feature"
    explorer.wait()
    assert not explorer.error and "own rescale" in explorer.status
    sae = explorer.sae
    assert isinstance(sae, RescaleShiftSAE) and float(sae.r_mag.detach().std()) > 0
    assert saelab.evaluate(sae, explorer.test_x).fvu < 0.8 * unrepaired
    fits = np.frombuffer(explorer.fits, np.float32).reshape(2, 3, 2, 15)
    assert np.isfinite(fits[0]).all() and np.isnan(fits[1]).all()  # the other noise was not asked for
    assert fits[0, 2, 0] == pytest.approx(sae.r_mag.exp().detach().numpy())
    assert fits[0, 2, 1] == pytest.approx(sae.b_mag.detach().numpy())


def test_each_features_own_repair_is_no_worse_than_two_numbers_for_all(explorer: ShrinkageExplorer) -> None:
    each, two = explorer.frame("each_feature"), explorer.frame("best_two")
    assert (each.fvu < 1.05 * two.fvu).all() and each.fvu.mean() < two.fvu.mean()
    assert np.isfinite(np.frombuffer(explorer.fits, np.float32)).all()


def test_what_was_trained_and_fitted_is_kept_for_the_next_explorer_with_these_settings(
    explorer: ShrinkageExplorer,
) -> None:
    explorer.fit_all(progress=False)
    again = small()
    assert again.fits == explorer.fits and again.codes == explorer.codes
    assert torch.equal(again.test_x, explorer.test_x)


def test_closing_it_ends_the_fits(explorer: ShrinkageExplorer) -> None:
    explorer.close()
    explorer.repair = "each_feature"
    explorer.wait()
    assert all(point.fitted is None for point in explorer._grid.points)


def test_others_can_follow_its_sae(explorer: ShrinkageExplorer) -> None:
    seen: list[str] = []
    follower = Instrument()
    follow(follower, explorer, lambda: seen.append(type(explorer.sae).__name__))
    explorer.l1_coefficient = 0.5
    explorer.rescale = 1.5
    assert seen == ["StandardSAE", "RescaleShiftSAE"]
    assert sae_of(explorer) is explorer.sae
    follower.close()


def test_an_sae_that_is_dead_has_numbers_where_they_make_sense_and_a_picture() -> None:
    explorer = ShrinkageExplorer(n_features=4, d_in=3, density=0.2, l1_coefficients=[400.0], noises=[0.0])
    assert explorer.l1_coefficient == 400.0
    row = explorer.frame("best_two").iloc[0]
    assert row.l0 == 0 and row.missed == 1 and row.recovered == 0
    assert math.isnan(row["false"]) and row.fvu == pytest.approx(1, abs=0.1)
    assert explorer.best_two_numbers() == (1.0, 0.0)
    assert explorer._picture().startswith(b"\x89PNG")


def test_where_no_widget_can_run_there_is_a_small_picture(explorer: ShrinkageExplorer) -> None:
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 60_000
    assert data["text/plain"] == "ShrinkageExplorer(l1_coefficient=1, noise=0, repair='by_hand')"


def test_its_page_is_one_file_of_less_than_four_megabytes(explorer: ShrinkageExplorer, tmp_path: Path) -> None:
    path = explorer.save_html(tmp_path / "shrinkage.html")
    assert 100_000 < path.stat().st_size < 4_000_000
    assert '"kernel": false' in path.read_text(encoding="utf-8")


def test_a_buffer_that_colab_dropped_is_sent_again(
    explorer: ShrinkageExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    monkeypatch.setattr(explorer, "send_state", sent.append)
    explorer._receive(explorer, {"kind": "hello", "need": ["inputs", "codes"], "id": 1}, [])
    assert sent == [["inputs", "codes"]]


def test_wrong_input_gets_a_sentence(explorer: ShrinkageExplorer) -> None:
    with pytest.raises(ValueError, match="l1_coefficients must be positive, not 0"):
        ShrinkageExplorer(l1_coefficients=[0, 1])
    with pytest.raises(ValueError, match="at least one finite number"):
        ShrinkageExplorer(l1_coefficients=[])
    with pytest.raises(ValueError, match="at least one finite number"):
        ShrinkageExplorer(noises=[math.inf])
    with pytest.raises(ValueError, match=r"noises must lie in \[0, 1\)"):
        ShrinkageExplorer(noises=[0, 1.5])
    with pytest.raises(ValueError, match="n_features must lie between 1 and 256, not 0"):
        ShrinkageExplorer(n_features=0)
    with pytest.raises(ValueError, match="density must lie in"):
        ShrinkageExplorer(density=0)
    with pytest.raises(ValueError, match="by_hand, best_two, each_feature, not 'all'"):
        explorer.frame("all")  # type: ignore[arg-type]
    with pytest.raises(traitlets.TraitError):
        explorer.rescale = -1
    with pytest.raises(traitlets.TraitError):
        explorer.repair = "magic"
