"""A quantity is one line of `saelab.quantities`: every table, figure and formula follows from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import (
    ARCHITECTURES,
    DictionaryStability,
    GatedSAE,
    LossRecovered,
    SAEMetrics,
    StandardSAE,
    TrainingRecord,
    compare_with_truth,
    evaluate,
    superposition,
)
from saelab.data.labelled import LabelledSet
from saelab.evaluation.probing import compare_representations
from saelab.figures import pareto
from saelab.quantities import (
    COLOURS,
    QUANTITIES,
    Quantity,
    Spread,
    as_line,
    as_table,
    fvu,
    gamma,
    gamma_v1,
    norm_ratio,
    projection,
)
from saelab.sae.base import in_order, label_of

WHITE, BLACK = "#ffffff", "#111111"
"""The pages of figures."""


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG defines it."""

    def luminance(color: str) -> float:
        if len(color) == 4:
            color = "#" + "".join(2 * digit for digit in color[1:])
        shares = [channel / 255 for channel in bytes.fromhex(color[1:])]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def metrics() -> SAEMetrics:
    return evaluate(StandardSAE(4, 8), torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))


def test_every_number_of_metrics_records_and_tables_is_described() -> None:
    recovered = LossRecovered(clean=3.0, spliced=4.0, zero_ablated=9.0, mean_ablated=7.0, n_tokens=10)
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    words = np.array([str(row % 4) for row in range(80)])
    compared = compare_representations(LabelledSet(x, torch.arange(80) % 2, words, words, words), {"a": GatedSAE(4, 8)})
    numbers = set(compared.select_dtypes("number"))
    record = {field.name for field in fields(TrainingRecord)} - {"terms", "coefficients", "settings"}
    named = {*metrics().as_dict(), *recovered.as_dict(), *record, *numbers, "density", "threshold"}
    named |= {"d_sae", "seconds", "loss_recovered", "probe_accuracy", "n_active", "n_dead"}
    data = superposition(8, 4, 0.5, n_samples=20)
    named |= {*compare_with_truth(StandardSAE(4, 8), data).as_dict(), *DictionaryStability._fields} - {"pairs"}
    assert named <= set(QUANTITIES)


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_a_quantity_says_what_it_is_in_one_line(quantity: Quantity) -> None:
    assert quantity.label and quantity.meaning and "\n" not in quantity.meaning
    assert not quantity.meaning.endswith((".", ";", ":"))
    assert quantity.sentence.endswith(".") and quantity.sentence[0].isupper()
    assert quantity.axis_label
    assert quantity.colour is None or quantity.colour in COLOURS.values()


def test_meanings_are_not_said_twice() -> None:
    meanings = [one.meaning for one in QUANTITIES.values() if one.name not in ("threshold", "train_low", "train_high")]
    assert len(set(meanings)) == len(meanings)


def test_axis_labels_come_from_label_and_unit_and_keep_abbreviations() -> None:
    assert Quantity("a", "Probe weight", "", "log odds").axis_label == "probe weight, log odds"
    assert Quantity("a", "Dead features", "", "features").axis_label == "dead features"
    assert Quantity("a", "FVU", "").axis_label == "FVU" and Quantity("a", "C", "").axis_label == "C"
    assert Quantity("a", "FVU", "", axis="unexplained").axis_label == "unexplained"
    assert Quantity("a", "Penalty", "", "nats", "p").axis_label == "penalty p, nats"


@pytest.mark.parametrize("name", COLOURS)
def test_lines_and_letters_in_each_hue_stand_out_from_both_pages(name: str) -> None:
    colour = COLOURS[name]
    assert colour.name == name
    assert contrast(colour.light, WHITE) >= 3 and contrast(colour.dark, BLACK) >= 3
    assert contrast(colour.light_ink, WHITE) >= 4.5 and contrast(colour.dark_ink, BLACK) >= 4.5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architectures_line_stands_out_from_both_pages(name: str) -> None:
    look = ARCHITECTURES[name].look
    assert contrast(look.light, WHITE) >= 3 and contrast(look.dark, BLACK) >= 3


def test_hues_and_architectures_names_do_not_collide_on_the_page() -> None:
    assert not set(COLOURS) & set(ARCHITECTURES)


def test_legends_begin_with_the_courses_three_and_end_with_what_is_no_architecture() -> None:
    names = ["mine", "jumprelu", "gated", "standard", "rescale_shift", "gated"]
    assert in_order(names) == ["standard", "rescale_shift", "gated", "jumprelu", "mine"]
    assert in_order(["gated", "other"]) == ["gated", "other"]
    assert [label_of(name) for name in ("jumprelu", "mine")] == ["JumpReLU", "mine"]


@pytest.mark.parametrize("make", [float, lambda value: torch.tensor([value, value])], ids=["float", "tensor"])
def test_formulas_by_hand(make: Callable[[float], float]) -> None:
    # x is 2 or 6, and r half of it: E[x x] = 20, E[x r] = 10, E[r r] = 5, E[(x - r)^2] = 5, E[(x - 4)^2] = 4.
    xx, xr, rr, error, variance = map(make, (20.0, 10.0, 5.0, 5.0, 4.0))

    def is_all(value: float | torch.Tensor, expected: float) -> bool:
        return bool((torch.as_tensor(value) == expected).all())

    assert is_all(gamma(rr, xr), 0.5)
    assert is_all(gamma_v1(rr, xr), math.sqrt(5 / 15) if make is float else float(torch.tensor(5 / 15).sqrt()))
    assert is_all(projection(xr, xx), 0.5)
    assert is_all(norm_ratio(make(2.0), make(4.0)), 0.5)
    assert is_all(fvu(error, variance), 1.25)


@pytest.mark.parametrize("make", [float, torch.tensor], ids=["float", "tensor"])
def test_a_formula_without_a_denominator_is_nan(make: Callable[[float], float]) -> None:
    zero, one, three = make(0.0), make(1.0), make(3.0)
    undefined = [gamma(one, zero), projection(one, zero), norm_ratio(one, zero), fvu(one, zero)]
    undefined += [gamma_v1(zero, zero), gamma_v1(three, one)]  # 0 / 0, and the root of a negative number
    assert all(math.isnan(value) for value in undefined)


def test_a_spread_by_hand() -> None:
    spread = Spread.of(torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 11.0]]))
    assert spread.n == 3 and spread.mean.tolist() == [3, 7] and spread.squares == 8 + 24
    assert spread.variance == pytest.approx(32 / 3)
    assert {part.dtype for part in spread} == {torch.float64}


@settings(max_examples=50)
@given(
    mean=st.sampled_from([0.0, 1.0, -300.0, 1e4, 1e7]),
    outlier=st.sampled_from([0.0, 1e3]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 1000),
)
def test_a_spread_is_exact_however_far_the_mean_is_and_however_the_inputs_are_divided(
    mean: float, outlier: float, cuts: list[int], seed: int
) -> None:
    x = mean + torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] += outlier  # the input that others are measured from
    exact = [[Fraction(value) for value in column] for column in x.T.tolist()]
    means = [sum(column) / 40 for column in exact]
    squares = float(sum((value - m) ** 2 for column, m in zip(exact, means, strict=True) for value in column))
    edges = [0, *sorted(cuts), 40]
    nothing = Spread(*(torch.zeros(shape, dtype=torch.float64) for shape in ((), (3,), ())))
    parts = [Spread.of(x[a:b]) if b > a else nothing for a, b in pairwise(edges)]
    pooled = Spread.pooled(parts)
    assert pooled.n == 40
    assert pooled.mean.tolist() == pytest.approx([float(m) for m in means], rel=1e-14, abs=1e-14)
    assert pooled.squares.item() == pytest.approx(squares, rel=1e-12 if mean < 1e6 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_inputs_have_a_spread_of_exactly_zero_and_no_fvu(dtype: torch.dtype) -> None:
    for value in (0.1, 0.3, 7.7, 1e4):
        parts = [Spread.of(torch.full((n, 64), value, dtype=dtype)) for n in (1, 7, 1000)]
        assert Spread.pooled(parts).variance == 0
        assert fvu(torch.ones(()), Spread.pooled(parts).variance).isnan()


def test_formulas_keep_a_tensors_shape_and_type() -> None:
    ones = torch.ones(2, 3)
    for value in (gamma(ones, ones), gamma_v1(ones, ones), projection(ones, ones), fvu(ones, ones)):
        assert value.shape == (2, 3) and value.dtype == torch.float32


def test_tables_have_a_line_a_number_with_its_meaning() -> None:
    values = {"l0": 12.3456, "n_dead": 3, "mine": 0.5}
    assert as_table(values, ".3g", {"n_dead": "of 80"}).splitlines() == [
        "l0      12.3  features on per input",
        "n_dead     3  of 80",
        "mine     0.5  ",
    ]
    assert as_line(values, ".1f") == "l0=12.3, n_dead=3, mine=0.5"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MoreMetrics(SAEMetrics):
    top_ten_share: float


def test_a_new_quantity_is_a_field_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Quantity("top_ten_share", "Top ten", "share of variance explained by the ten strongest features")
    monkeypatch.setitem(QUANTITIES, line.name, line)
    usual = metrics()
    more = MoreMetrics(**{one.name: getattr(usual, one.name) for one in fields(usual)}, top_ten_share=0.25)
    assert str(more).splitlines()[-1].split(maxsplit=2) == ["top_ten_share", "0.25", line.meaning]
    assert more.as_dict()["top_ten_share"] == 0.25 and "top_ten_share=0.25" in repr(more)
    table = pd.DataFrame([{"architecture": "gated", **more.as_dict()}])
    assert pareto(table, y="top_ten_share").axes[0].get_ylabel() == "top ten"


def test_printed_tables_are_those_of_the_tutorials() -> None:
    assert [text.split(maxsplit=2)[2] for text in str(metrics()).splitlines()] == [
        "features on per input",
        "sum of codes per input",
        "fraction of variance unexplained: 0 is perfect, 1 no better than the mean",
        "do input and reconstruction point the same way? 1 is yes",
        "relative reconstruction bias: below 1 is shrinkage, 1 unbiased",
        "length of reconstructions over length of inputs; not a measure of shrinkage",
        "of 8 features, on for none of these inputs",
        "activations measured",
    ]
