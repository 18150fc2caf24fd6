"""What the page computes again agrees with Python: cases that both sides are tested on.

``widgets/frontend/test/shared_cases.json`` holds inputs with the answers of this library, and
``widgets/frontend/test/shared_cases.test.ts`` asks the page's functions for theirs. Run this file to write it anew.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from saelab_widgets import GateExplorer
from saelab_widgets.feature_browser import COLUMNS, ORDERS, found_in, listed, searchable, searched_text
from saelab_widgets.pareto_explorer import means_along, rows_along
from saelab_widgets.probe_results import bits
from saelab_widgets.shrinkage_explorer import _entries, _nearest
from saelab_widgets.shrinkage_grid import (
    N_TRAIN,
    Level,
    Point,
    TwoNumbers,
    best_two_numbers,
    numbers_of,
    with_two_numbers,
)
from torch import Tensor

import saelab
from saelab import GatedSAE, RescaleShiftSAE, StandardSAE
from saelab.data.synthetic import SuperpositionData
from saelab.evaluation.features import Context, FeatureReading, TokenEffect

CASES = Path(__file__).parents[2] / "widgets" / "frontend" / "test" / "shared_cases.json"
N_ROWS = 24
"""Inputs of a case: few, since the file is committed."""


def shared_cases() -> dict[str, Any]:
    """Every case, by what computes it."""
    return {
        "gate": gate_cases(),
        "shrinkage": shrinkage_cases(),
        "nearest": nearest_cases(),
        "probe": probe_cases(),
        "pareto": pareto_cases(),
        "search": search_cases(),
    }


def draws(seed: int) -> np.random.RandomState:
    """Numbers that are the same with every version of NumPy."""
    return np.random.RandomState(seed)


def normal(random: np.random.RandomState, *shape: int) -> Tensor:
    # Four decimals keep the file small.
    return torch.as_tensor(random.normal(size=shape).round(4), dtype=torch.float32)


def numbers(values: Tensor | NDArray[Any]) -> list[float]:
    """The float32 numbers themselves, in as few digits as tell them apart."""
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32).ravel()]


@torch.no_grad()
def gate_cases() -> list[dict[str, Any]]:
    random = draws(0)
    sae = GatedSAE(4, 6)
    sae.W_dec.copy_(torch.nn.functional.normalize(normal(random, *sae.W_dec.shape), dim=1))
    sae.W_enc.copy_(sae.W_dec.T)
    for parameter in (sae.b_gate, sae.b_mag, sae.r_mag, sae.b_dec):
        parameter.copy_(0.4 * normal(random, *parameter.shape))
    x = normal(random, N_ROWS, 4)
    explorer = GateExplorer(sae, x)
    cases = []
    for feature, threshold, natural, offset in (
        (2, 0.0, 0.0, 0.0),
        (2, 0.1, 0.0, -0.45),
        (4, -0.25, 1.0, 0.6),
        (0, 0, 0.5, 9),
    ):
        explorer.feature, explorer.natural = feature, natural
        explorer.gate_threshold, explorer.feature_threshold_offset = threshold, offset
        codes = explorer.apply().encode(x)
        reconstruction = explorer.apply().decode(codes)
        fvu = saelab.FVU()
        fvu.add_batch(x, reconstruction)
        on = codes[:, feature][codes[:, feature] > 0]
        cases.append(
            {
                "rows": numbers(np.frombuffer(explorer.rows, dtype=np.float32)),
                "look": explorer.rows_of,
                "own": threshold + offset,
                "l0": int((codes > 0).sum()) / N_ROWS,
                "gamma": saelab.relative_reconstruction_bias(x, reconstruction),
                "fvu": fvu.compute(),
                "density": len(on) / N_ROWS,
                "mean": float(on.double().mean()),
                "largest": float(on.max()) if len(on) else 0.0,
            }
        )
    explorer.wait()
    explorer.close()
    return cases


@torch.no_grad()
def shrinkage_cases() -> list[dict[str, Any]]:
    random = draws(1)
    n_features, d_in, d_sae = 5, 4, 6
    dictionary = torch.nn.functional.normalize(normal(random, n_features, d_in), dim=1)
    truth = (normal(random, N_ROWS, n_features) - 0.5).relu() * 2
    x = truth @ dictionary + 0.05 * normal(random, N_ROWS, d_in)
    # Only what comes after the training inputs is measured.
    unseen = [torch.cat([torch.zeros(N_TRAIN, part.shape[1]), part]) for part in (x, truth)]
    density = torch.full((n_features,), 0.3)
    parents = torch.full((n_features,), -1)
    data = SuperpositionData(unseen[0], unseen[1], dictionary, density, parents, scale=1.0, noise=0.05)
    level = Level(data, [])
    learned = torch.cat([dictionary, normal(random, 1, d_in)]) + 0.1 * normal(random, d_sae, d_in)
    sae = StandardSAE(d_in, d_sae)
    sae.W_dec.copy_(torch.nn.functional.normalize(learned, dim=1))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_enc.fill_(-0.4)
    sae.b_dec.copy_(0.05 * normal(random, d_in))
    each = RescaleShiftSAE.from_standard(sae)
    each.r_mag.copy_(0.3 * normal(random, d_sae))
    each.b_mag.copy_(0.3 * normal(random, d_sae))
    silent = StandardSAE(d_in, d_sae)
    silent.load_state_dict({**sae.state_dict(), "b_enc": torch.full((d_sae,), -99.0), "b_dec": torch.zeros(d_in)})
    return [shrinkage_case(sae, each, level), shrinkage_case(silent, None, level)]


def shrinkage_case(sae: StandardSAE, each: RescaleShiftSAE | None, level: Level) -> dict[str, Any]:
    matching = torch.arange(level.true_codes.shape[1])
    point = Point(1.0, sae, sae.encode(level.x), matching)
    best = best_two_numbers(point, level.x)
    repairs = [TwoNumbers(1.0, 0.0), TwoNumbers(1.3, 0.2), TwoNumbers(0.9, -0.35), best]
    outcomes: list[dict[str, Any]] = [
        {**repair._asdict(), "numbers": numbers_of(with_two_numbers(sae, repair), level, point)} for repair in repairs
    ]
    if each is not None:
        by_feature = {"rescale": numbers(each.r_mag.exp()), "shift": numbers(each.b_mag)}
        outcomes.append({**by_feature, "numbers": numbers_of(each, level, point)})
    return {
        "dIn": sae.d_in,
        "dSae": sae.d_sae,
        "x": numbers(level.x),
        "dictionary": numbers(sae.W_dec),
        "bias": numbers(sae.b_dec),
        "codes": numbers(_entries(point.codes)),
        "truth": numbers(_entries(level.true_codes)),
        "matching": matching.tolist(),
        "best": best._asdict(),
        "repairs": outcomes,
    }


def nearest_cases() -> list[dict[str, Any]]:
    grid = (0.25, 0.5, 1.0, 4.0)
    return [
        {"grid": list(grid), "value": value, "nearest": _nearest(grid, value)} for value in (-1, 0.3, 0.75, 2.4, 2.5, 9)
    ]


def probe_cases() -> dict[str, Any]:
    shape, columns = (2, 3, 2, 3), ["test", "train", "n_active"]
    table = np.arange(math.prod(shape) * len(columns), dtype=np.float32).reshape(*shape, len(columns))
    asked = [(0, 0, 0, 0, "test"), (1, 2, 1, 2, "n_active"), (1, 0, 1, 1, "train"), (0, 2, 0, 1, "n_active")]
    picked = [
        {
            "layer": i,
            "l1": j,
            "part": p,
            "representation": k,
            "column": name,
            "value": float(table[i, j, p, k, columns.index(name)]),
        }
        for i, j, p, k, name in asked
    ]
    rows = {11: [0, 3, 7, 8, 10], 16: [15], 9: [], 3: [0, 1, 2]}
    masks = [
        {"n_rows": n_rows, "rows": some, "bytes": bits(np.array(some, dtype=np.intp), n_rows).tolist()}
        for n_rows, some in rows.items()
    ]
    return {"shape": list(shape), "columns": columns, "numbers": numbers(table), "picked": picked, "masks": masks}


def pareto_cases() -> list[dict[str, Any]]:
    x = [3.0, 1.0, math.nan, 1.0, 2.0, 1.0, math.inf]
    y = [0.0, 5.0, 1.0, 4.0, math.nan, 5.0, 1.0]
    points = [0, 1, 2, 1, 0, 1, 3]
    lines = []
    for rows in ([0, 1, 3, 5], [1, 2, 3], [2, 6], [0, 4, 5]):
        corners = means_along(np.array(x), np.array(y), {row: points[row] for row in rows})
        lines.append({"rows": rows, "corners": [list(at) for at in zip(*corners, strict=True)]})
    return [{"x": x, "y": y, "rows": rows_along(np.array(x), np.array(y)), "points": points, "lines": lines}]


def search_cases() -> dict[str, Any]:
    nothing = FeatureReading(feature=0, density=0.0, contexts=(), raised=(), lowered=(), nearest=())
    first = Context(
        text_index=0,
        position=1,
        tokens=("An", " \u00c9T", "\u00c9", "\n\n", "<b>"),
        activations=(0, 1, 2, 0, 0),
        peak=2,
    )
    second = first._replace(tokens=("next", "\t", " one", "\u00a0\u03a3\u0391\u03a3"), activations=(1, 0, 0, 0), peak=0)
    readings = [
        nothing,
        replace(nothing, contexts=(first, second), raised=(TokenEffect(" Wonderful", 5, 1.0),)),
        replace(nothing, contexts=(second,), lowered=(TokenEffect(" awful", 6, -1.0),)),
    ]
    searches = [
        "\u00e9t\u00e9",
        "wonder",
        "AWFUL",
        "<b>next",
        "next  one",
        "\u03c3\u03b1\u03c2",
        " ",
        "\u00a0",
        "",
        "n",
    ]
    columns = np.array([[0.1, 1, 0.5], [0, 0, 0], [0.3, 1, -2], [0.1, 3, 0.5]], dtype=np.float32)
    return {
        "texts": [
            {"text": text, "searchable": searchable(text)} for text in ("A\r\n\t B", "\u0130I\u00df", "\u00a0\u2003x")
        ],
        "readings": [
            {
                "contexts": [list(context.tokens) for context in reading.contexts],
                "raised": [effect.token for effect in reading.raised],
            }
            for reading in readings
        ],
        "found": {search: found_in([searched_text(reading) for reading in readings], search) for search in searches},
        "columns": dict(zip(COLUMNS, map(numbers, columns.T), strict=True)),
        "orders": [
            {**order._asdict(), "show_dead": show_dead, "features": listed(order, columns, show_dead=show_dead)}
            for order in ORDERS.values()
            for show_dead in (False, True)
        ],
    }


def without_nan(value: Any) -> Any:
    """NaN as null and infinity as text, which JSON does not have as numbers."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def assert_same(ours: Any, theirs: Any, at: str) -> None:
    assert type(ours) is type(theirs) or isinstance(ours, int | float), at
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), at
        for name in ours:
            assert_same(ours[name], theirs[name], f"{at}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), at
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{at}[{index}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), at
    else:
        assert ours == theirs, at


def test_the_cases_that_the_page_is_tested_on_are_what_python_says() -> None:
    assert_same(without_nan(shared_cases()), json.loads(CASES.read_text(encoding="utf-8")), "cases")


if __name__ == "__main__":
    CASES.write_text(json.dumps(without_nan(shared_cases()), allow_nan=False) + "\n", encoding="utf-8")
