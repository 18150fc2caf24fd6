"""Means over seeds and differences at equal L0, against numbers worked out on paper; intervals that cover the truth."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import compare_at_l0, summarize

T_95_TWO, T_95_THREE = 12.706204736, 4.302652730
"""97.5 % quantiles of Student's t with one and two degrees of freedom, from its tables."""


def runs(fvu: dict[tuple[str, int], list[float]], l0: tuple[float, ...] = (10.0, 40.0)) -> pd.DataFrame:
    """A sweep's table with the given FVUs by architecture and seed, one at each L0."""
    rows = [
        {
            "architecture": architecture,
            "preset": "paper",
            "ablations": "",
            "d_sae": 64,
            "l1_coefficient": 40 / x,
            "seed": seed,
            "l0": x,
            "fvu": y,
            "path": f"{architecture}-{seed}-{x}",
        }
        for (architecture, seed), values in fvu.items()
        for x, y in zip(l0, values, strict=True)
    ]
    return pd.DataFrame(rows)


TWO = {
    ("standard", 0): [0.4, 0.2],
    ("standard", 1): [0.6, 0.2],
    ("gated", 0): [0.2, 0.1],
    ("gated", 1): [0.4, 0.3],
}


def test_a_summary_has_each_metrics_mean_and_t_interval_over_seeds() -> None:
    table = runs({("gated", seed): [fvu, 0.5] for seed, fvu in enumerate((1.0, 2.0, 3.0))})
    summary = summarize(table)
    assert list(summary.l1_coefficient) == [4, 1] and list(summary.n_seeds) == [3, 3]
    first = summary.iloc[0]
    assert first.fvu == 2
    assert first.fvu_high - 2 == pytest.approx(T_95_THREE / math.sqrt(3)) == 2 - first.fvu_low  # deviation 1
    assert summary.fvu_low[1] == summary.fvu_high[1] == 0.5
    assert "path" not in summary and "seed" not in summary
    wide = summarize(table, confidence=0.99).iloc[0]
    assert wide.fvu_high - wide.fvu_low > first.fvu_high - first.fvu_low


def test_a_summary_tells_all_settings_apart_and_those_without_a_knob_are_one_configuration() -> None:
    table = pd.concat([runs(TWO), runs(TWO).assign(architecture="topk", l1_coefficient=math.nan, k=[8, 32] * 4)])
    table = table[(table.architecture != "topk") | (table.path.str.startswith("gated"))]
    table["control"] = ["none", "none", "frozen_decoder", "frozen_decoder"] * 3
    summary = summarize(table)
    assert len(summary) == 10 + 2 and set(summary.n_seeds) == {1}  # each control has one seed
    summary = summarize(table.drop(columns="control"))
    assert list(summary.architecture) == ["standard", "standard", "gated", "gated", "topk", "topk"]
    assert list(summary.n_seeds) == [2] * 6 and list(summary.k[4:]) == [8, 32] and summary.k[:4].isna().all()


def test_one_seed_has_a_mean_and_no_interval() -> None:
    summary = summarize(runs({("gated", 0): [0.2, 0.1]}))
    assert list(summary.fvu) == [0.2, 0.1] and list(summary.n_seeds) == [1, 1]
    assert summary[["fvu_low", "fvu_high", "l0_low", "l0_high"]].isna().all(axis=None)


def test_a_metric_that_is_nan_for_a_seed_is_nan_and_the_others_are_not() -> None:
    table = runs(TWO)
    table.loc[(table.architecture == "gated") & (table.seed == 1), "fvu"] = math.nan
    summary = summarize(table).set_index("architecture")
    numbers = summary[["fvu", "fvu_low", "fvu_high"]]
    assert numbers[summary.index == "gated"].isna().all(axis=None)
    assert numbers[summary.index == "standard"].notna().all(axis=None)
    assert (summary.n_seeds == 2).all() and summary.l0_low.notna().all()


def test_rows_that_nothing_tells_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"several rows have architecture 'standard'.*l1_coefficient 4.*seed 0; leave"):
        summarize(pd.concat([runs(TWO), runs(TWO)]))
    layers = pd.concat([runs(TWO).assign(layer=layer) for layer in (1, 2)])
    with pytest.raises(ValueError, match=r"if a column of numbers tells them apart, turn it into text"):
        summarize(layers)
    assert list(summarize(layers.astype({"layer": str})).layer) == ["1"] * 4 + ["2"] * 4


def test_at_equal_l0_y_is_read_off_linearly_in_log_l0_and_paired_by_seed() -> None:
    """L0 20 is half of the way from 10 to 40 in logs: standard 0.3 and 0.4, gated 0.15 and 0.35."""
    compared = compare_at_l0(runs(TWO), l0=20, baseline="standard")
    assert list(compared.architecture) == ["standard", "gated"] and list(compared.l0) == [20, 20]
    standard, gated = compared.to_dict("records")
    assert standard["mean"] == pytest.approx(0.35) and gated["mean"] == pytest.approx(0.25)
    # The deviation of two numbers is their distance over sqrt(2), and that of their mean half their distance.
    assert gated["mean_high"] - gated["mean"] == pytest.approx(T_95_TWO * 0.1)
    assert gated["difference"] == pytest.approx(-0.1)  # -0.15 and -0.05
    assert gated["difference"] - gated["difference_low"] == pytest.approx(T_95_TWO * 0.05)
    assert gated["difference_high"] - gated["difference"] == pytest.approx(T_95_TWO * 0.05)
    assert (gated["n_below"], gated["n_above"], gated["n_seeds"]) == (2, 0, 2)
    assert standard["difference"] == standard["difference_low"] == standard["difference_high"] == 0
    assert standard["n_below"] == standard["n_above"] == 0


def test_several_l0s_have_a_row_a_line_each_and_the_ends_of_the_range_are_the_saes_there() -> None:
    compared = compare_at_l0(runs(TWO), l0=[40, 10], baseline="gated")
    assert list(compared.l0) == [40, 40, 10, 10]
    assert list(compared["mean"]) == pytest.approx([0.2, 0.2, 0.5, 0.3])
    standard = compared[compared.architecture == "standard"]
    assert list(standard.difference) == pytest.approx([0, 0.2])
    assert list(standard.n_below) == [1, 0] and list(standard.n_above) == [1, 2]


def test_lines_may_be_told_apart_by_several_columns_also_where_a_csv_has_nothing() -> None:
    table = pd.concat([runs(TWO).assign(control="none"), runs(TWO).assign(control="frozen_decoder")])
    table.loc[table.control != "none", "fvu"] += 0.25
    lines = ["architecture", "control", "ablations"]
    compared = compare_at_l0(table, l0=20, by=lines, baseline=("gated", "none", ""))
    assert list(compared.columns[:4]) == ["l0", *lines] and len(compared) == 4
    frozen = compared[(compared.architecture == "gated") & (compared.control == "frozen_decoder")].iloc[0]
    assert frozen.difference == pytest.approx(0.25) == frozen.difference_low
    read = table.assign(ablations=math.nan)  # as pandas reads ""
    pd.testing.assert_frame_equal(compare_at_l0(read, l0=20, by=lines, baseline=["gated", "none", ""]), compared)


def test_saes_of_one_l0_count_as_one_with_their_mean() -> None:
    tied = runs({key: [*values, values[-1] + 0.2] for key, values in TWO.items()}, (10.0, 40.0, 40.0))
    tied["l1_coefficient"] = [4.0, 1.0, 0.9] * 4
    assert compare_at_l0(tied, l0=40, baseline="gated")["mean"].tolist() == pytest.approx([0.3, 0.3])


def noisy(rng: np.random.Generator, n_seeds: int, seed_effect: float) -> pd.DataFrame:
    """Lines y = a - 0.1 log L0, a 0.05 apart: five SAEs each, with noise of their own and one that a seed shares."""
    shared = seed_effect * rng.normal(size=(n_seeds, 1))
    lines = []
    for architecture, a in (("standard", 0.6), ("gated", 0.55)):
        l0 = np.exp(rng.uniform(-0.3, 0.3, (n_seeds, 5))) * np.array([5.0, 10, 20, 40, 80])
        fvu = a - 0.1 * np.log(l0) + shared + 0.02 * rng.normal(size=l0.shape)
        seed = np.repeat(np.arange(n_seeds), 5)
        lines.append(pd.DataFrame({"architecture": architecture, "seed": seed, "l0": l0.ravel(), "fvu": fvu.ravel()}))
    return pd.concat(lines, ignore_index=True)


def test_95_percent_intervals_cover_the_true_difference_in_95_percent_of_experiments() -> None:
    rng, n = np.random.default_rng(0), 1000
    covered = 0
    widths = []
    for _ in range(n):
        gated = compare_at_l0(noisy(rng, 5, 0.1), l0=25, baseline="standard").iloc[1]
        covered += gated.difference_low <= -0.05 <= gated.difference_high
        widths.append((gated.difference_high - gated.difference_low) / (gated.mean_high - gated.mean_low))
    assert 0.92 * n <= covered <= 0.98 * n
    assert np.median(widths) < 0.5  # pairing takes out what seeds share


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_what_a_seed_adds_to_every_line_changes_no_difference(constants: list[float], seed: int) -> None:
    table = noisy(np.random.default_rng(seed), 4, 0.0)
    shifted = table.assign(fvu=table.fvu + np.array(constants)[table.seed])
    columns = ["difference", "difference_low", "difference_high"]
    before, after = (compare_at_l0(each, l0=[15, 30], baseline="standard") for each in (table, shifted))
    np.testing.assert_allclose(after[columns], before[columns], atol=1e-11)


@settings(max_examples=25)
@given(st.permutations(range(30)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    table = noisy(np.random.default_rng(0), 3, 0.1)
    expected = compare_at_l0(table, l0=[15, 30], baseline="gated")
    pd.testing.assert_frame_equal(compare_at_l0(table.iloc[order], l0=[15, 30], baseline="gated"), expected)
    knobs = table.assign(l1_coefficient=[1.0, 2, 3, 4, 5] * 6)
    keys = ["architecture", "l1_coefficient"]
    again = summarize(knobs.iloc[order]).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(again, summarize(knobs).sort_values(keys, ignore_index=True))


def test_nothing_is_extrapolated() -> None:
    table = runs(TWO)
    table.loc[(table.architecture == "gated") & (table.seed == 1) & (table.l0 == 10), "l0"] = 12.345
    assert len(compare_at_l0(table, l0=12.35, baseline="gated")) == 2
    with pytest.raises(ValueError, match=r"l0 10, 50 is outside of 12\.35 to 40\.00, the range that all lines have in"):
        compare_at_l0(table, l0=[10, 20, 50], baseline="gated")
    with pytest.raises(ValueError, match="l0 nan is outside"):
        compare_at_l0(table, l0=math.nan, baseline="gated")
    table.loc[table.architecture == "standard", "l0"] /= 5
    with pytest.raises(
        ValueError, match=r"no L0 in common: 'gated' begins at 12\.3. \(seed 1\), and 'standard' ends at 8"
    ):
        compare_at_l0(table, l0=20, baseline="gated")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t[(t.architecture != "gated") | (t.seed != 1)], "'gated' has no seed 1, and others have"),
        (lambda t: t[t.seed == 0], "the table has a single seed, 0; an interval takes two or more"),
        (lambda t: t[(t.seed != 1) | (t.l0 != 40)], "has a single L0 in seed 1; interpolating takes two or more SAEs"),
        (lambda t: t.assign(l0=20), "has a single L0 in seed 0"),
        (lambda t: t.assign(l0=t.l0 - 10), "l0 holds 0, which has no logarithm; leave such SAEs out"),
        (lambda t: t.assign(l0=-t.l0), "l0 holds -10, which has no logarithm"),
        (lambda t: t.assign(fvu=t.fvu.where(t.seed == 0)), "fvu holds nan, which cannot be compared; leave such SAEs"),
        (lambda t: t.assign(fvu="much"), "column fvu must hold numbers"),
        (
            lambda t: t.assign(d_sae=[64, 128] * 4),
            "architecture 'gated' would run through several values of d_sae; add",
        ),
        (lambda t: t.assign(text=t.path), "through several values of text; add 'text' to by"),
        (lambda t: pd.concat([t, t]), "several rows have architecture 'standard', seed 0, l1_coefficient"),
        (lambda t: t.drop(columns="seed"), "the table has no column seed; it has architecture, preset"),
        (lambda t: t[:0], "the table has no rows"),
    ],
)
def test_a_table_that_cannot_be_compared_gets_a_sentence(change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare_at_l0(change(runs(TWO)), l0=20, baseline="gated")


def test_wrong_arguments_get_a_sentence() -> None:
    table = runs(TWO)
    with pytest.raises(ValueError, match="no baseline 'gatd' in architecture; it has 'standard', 'gated'"):
        compare_at_l0(table, l0=20, baseline="gatd")
    with pytest.raises(ValueError, match="l0 is empty"):
        compare_at_l0(table, l0=[], baseline="gated")
    with pytest.raises(ValueError, match="by names no column"):
        compare_at_l0(table, l0=20, by=[], baseline="gated")
    with pytest.raises(ValueError, match="no column gama; it has"):
        compare_at_l0(table, "gama", l0=20, baseline="gated")
    with pytest.raises(TypeError, match="must be a pandas DataFrame.*not a list"):
        summarize([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the table has no column run; it has"):
        summarize(table, over="run")
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1, such as 0.95"):
            summarize(table, confidence=confidence)
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            compare_at_l0(table, l0=20, baseline="gated", confidence=confidence)
