"""What supports the claims of prose: `docs/experiments/claims.toml`, and the committed tables that it points to."""

import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from claims import over_seeds  # type: ignore[import-not-found]
from claims import supports as read_supports
from prose_numbers import Number, numbers, plain  # type: ignore[import-not-found]

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments"
supports = functools.cache(read_supports)


@functools.cache
def unmeasured() -> dict[str, dict[str, Any]]:
    """By the name of a tutorial: ``shown``, pairs of a sentence's first words and a text in an output; ``reasoned``."""
    return tomllib.loads((Path(__file__).parent / "unmeasured.toml").read_text(encoding="utf-8"))


@functools.cache
def table(name: str) -> pd.DataFrame:
    return pd.read_csv(EXPERIMENTS / name)


def measured(tutorial: str, measure: str) -> pd.Series:
    """The row of ``claims.csv``."""
    rows = table("claims.csv")
    (found,) = rows[(rows.tutorial == tutorial) & (rows.measure == measure)].to_dict("records")
    return pd.Series(found)


def claims_of(document: str, sentence: str) -> list[dict[str, Any]]:
    """Those that a sentence rests on."""
    return [claim for claim in supports().get(document, {}).get("claims", []) if plain(claim["says"]) in sentence]


def numbers_of(document: str, sentence: str) -> list[Number]:
    """All numbers of the table rows that a sentence rests on, and their sizes: prose says "0.03 less" for -0.03."""
    return [number for claim in claims_of(document, sentence) for number in _numbers_of(document, claim)]


def _numbers_of(document: str, claim: dict[str, Any]) -> Sequence[Number]:
    if not claim.get("table", ".csv").endswith(".csv"):
        lines = (EXPERIMENTS / claim["table"]).read_text(encoding="utf-8").splitlines()
        (found,) = (line for line in lines if claim["where"] in line)
        return [*numbers(found.replace("=", " "))]
    if "table" in claim:
        rows = table(claim["table"]).query(claim["where"])
        assert len(rows) == 1, f"{claim['where']} finds {len(rows)} rows of {claim['table']}"
        values = [float(value) for value in rows.select_dtypes("number").iloc[0]]
        # A share is a percentage or points in the prose, and "0.03 less" is a difference of -0.03
        return [Number(str(value), value * factor, 0.0) for value in values for factor in (1, -1, 100, -100)]
    row = measured(document, claim["measure"])
    seeds = over_seeds(row)
    counted = {sum(value > 0 for value in seeds), sum(value < 0 for value in seeds), len(seeds)}
    values = [*(float(row[name]) for name in ("mean", "low", "high")), *seeds]
    return [
        *(Number(str(value), sign * value, 0.0) for value in values for sign in (1, -1)),
        *(number for count in counted for number in numbers(str(count))),
        *numbers(claim["measure"]),
    ]


def holds(document: str, claim: dict[str, Any]) -> bool:
    """Whether the interval of a claim lies where the claim says; of one that only gives numbers it is true."""
    row = measured(document, claim["measure"])
    return (
        ("above" not in claim or row["low"] > claim["above"])
        and ("below" not in claim or row["high"] < claim["below"])
        and ("around" not in claim or row["low"] <= claim["around"] <= row["high"])
    )


def holds_in_every_seed(document: str, claim: dict[str, Any]) -> bool:
    seeds = over_seeds(measured(document, claim["measure"]))
    return all(
        value > claim.get("above", -float("inf")) and value < claim.get("below", float("inf")) for value in seeds
    )
