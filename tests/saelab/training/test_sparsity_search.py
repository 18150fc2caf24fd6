"""The search for an L0 finds it in few runs, whichever way the knob works, and says what it tried where it cannot."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import (
    ARCHITECTURES,
    GatedSAE,
    KnobForL0,
    RescaleShiftSAE,
    StandardSAE,
    TopKSAE,
    Trainer,
    TrainingConfig,
    evaluate,
    knob_for_l0,
    load,
    superposition,
)
from saelab.training.sparsity_search import LARGEST_STEP, next_value

CONFIG = TrainingConfig(n_steps=200, batch_size=64, lr=3e-3)
X = superposition(32, 16, 0.15, n_samples=1500).activations
TEST, TRAIN = X[:300], X[300:]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each training run."""
    runs: list[int] = []
    run = Trainer.run

    def counted(self: Trainer, **options: Any) -> Trainer:
        runs.append(1)
        return run(self, **options)

    monkeypatch.setattr(Trainer, "run", counted)
    return runs


@pytest.mark.parametrize("name", [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch])
def test_every_architecture_is_brought_to_an_l0_by_its_own_knob_and_again_without_training(
    name: str, tmp_path: Path, trained: list[int]
) -> None:
    cls = ARCHITECTURES[name]

    def search() -> KnobForL0:
        return knob_for_l0(lambda: cls(16, 32), TRAIN, 8, config=CONFIG, test=TEST, folder=tmp_path, progress=False)

    found = search()
    assert abs(found.l0 - 8) <= 0.05 * 8
    sae, knob = load(found.path), cls.sparsity_knob
    assert type(sae) is cls and evaluate(sae, TEST).l0 == pytest.approx(found.l0)
    assert knob is not None and found.runs[knob.name].iloc[-1] == found.value
    assert found.runs.l0.iloc[-1] == found.l0 and found.runs.path.iloc[-1] == found.path
    n_trained = len(trained)
    assert n_trained == len(found.runs) == found.runs[knob.name].nunique() <= 8
    again = search()
    assert len(trained) == n_trained
    assert again[:3] == found[:3] and again.runs.equals(found.runs)


def test_k_is_the_l0_and_takes_one_run(tmp_path: Path) -> None:
    found = knob_for_l0(
        lambda: TopKSAE(16, 32), TRAIN, 3.2, config=CONFIG, tolerance=0.1, folder=tmp_path, progress=False
    )
    assert (found.value, found.l0, len(found.runs)) == (3, 3, 1)


def test_further_knobs_are_those_of_every_run(tmp_path: Path) -> None:
    values: dict[float, float] = {}
    for aux in (0.0, 1.0):
        found = knob_for_l0(
            lambda: GatedSAE(16, 32), TRAIN, 3.9, config=CONFIG, tolerance=0.5, folder=tmp_path, progress=False,
            aux_coefficient=aux,
        )  # fmt: skip
        values[aux] = found.l0
    assert values[0.0] != values[1.0]


def test_an_l0_that_is_not_found_is_refused_with_all_that_was_tried_which_stays(
    tmp_path: Path, trained: list[int]
) -> None:
    def search(max_runs: int) -> KnobForL0:
        return knob_for_l0(
            lambda: StandardSAE(16, 32), TRAIN, 8, config=CONFIG, max_runs=max_runs, folder=tmp_path, progress=False
        )

    with pytest.raises(ValueError, match=r"no l1_coefficient gave an L0 within 5 % of 8: 4 gave \d.*; .* or more runs"):
        search(1)
    assert len(search(8).runs) == len(trained) > 1  # the first one is not trained again
    with pytest.raises(
        ValueError, match=r"no k gave .* 1 % of 3\.5: 4 gave 4, 3 gave 3; none is left between; allow a l"
    ):
        knob_for_l0(lambda: TopKSAE(16, 32), TRAIN, 3.5, config=CONFIG, tolerance=0.01, folder=tmp_path, progress=False)


def test_wrong_arguments_get_a_sentence(tmp_path: Path, trained: list[int]) -> None:
    def make() -> StandardSAE:
        return StandardSAE(16, 32)

    for target in (0, -3, 33, math.nan):
        with pytest.raises(ValueError, match="target_l0 must be above 0 and at most this SAE's 32 features"):
            knob_for_l0(make, TRAIN, target, folder=tmp_path)
    for tolerance in (0, 5):
        with pytest.raises(ValueError, match="tolerance must be between 0 and 1, such as 0.05 for 5 %"):
            knob_for_l0(make, TRAIN, 4, tolerance=tolerance, folder=tmp_path)
    with pytest.raises(ValueError, match="max_runs must be at least 1"):
        knob_for_l0(make, TRAIN, 4, max_runs=0, folder=tmp_path)
    with pytest.raises(ValueError, match="l1_coefficient is what is searched"):
        knob_for_l0(make, TRAIN, 4, folder=tmp_path, l1_coefficient=2.0)
    with pytest.raises(ValueError, match="a rescale and shift SAE has no knob for sparsity"):
        knob_for_l0(lambda: RescaleShiftSAE.from_standard(make()), TRAIN, 4, folder=tmp_path)
    with pytest.raises(TypeError, match="make_sae must be one function that gives an SAE, not a list"):
        knob_for_l0([make], TRAIN, 4, folder=tmp_path)  # type: ignore[arg-type]
    assert not trained


def test_the_next_value_is_where_the_line_through_two_tries_meets_the_l0() -> None:
    """L0 100 at 1 and 25 at 4 are a slope of -1 in logs; 50 is at 2, and 12.5 at 8."""
    assert next_value([(1, 100), (4, 25)], 50) == pytest.approx(2)
    assert next_value([(1, 100), (4, 25)], 12.5) == pytest.approx(8)
    assert next_value([(2, 20)], 10, slope=1.0) == pytest.approx(1)
    assert next_value([(2, 20)], 10) == pytest.approx(2 * 2 ** (1 / 1.4))
    assert next_value([(1, 100), (4, 99.9), (8, 0)], 95) == pytest.approx(4 * 2**0.1)  # L0 falls off a cliff
    assert next_value([(1, 500)], 1) == pytest.approx(math.exp(LARGEST_STEP))


@settings(max_examples=500)
@given(st.floats(0.05, 20), st.floats(0.7, 2.5), st.sampled_from([-1, 1]), st.floats(0.01, 0.3))
def test_a_smooth_knob_is_found_in_eight_runs(answer: float, steepness: float, sign: int, share: float) -> None:
    """L0 is d_sae / (1 + (value / middle) ** power): flat where all features are on, then a power law."""
    d_sae, power, target = 512, -sign * steepness, 512 * share
    middle = answer / (1 / share - 1) ** (1 / power)
    tried: list[tuple[float, float]] = []
    value = 1.0
    while len(tried) < 8:
        tried.append((value, d_sae / (1 + (value / middle) ** power)))
        if abs(tried[-1][1] - target) <= 0.05 * target:
            return
        value = next_value(tried, target, slope=float(sign))
    raise AssertionError(f"{answer} was not found: {tried}")
