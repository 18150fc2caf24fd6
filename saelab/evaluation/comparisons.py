"""Compare SAEs over several seeds: means with confidence intervals, and differences at equal L0.

Intervals are Student's t intervals of a mean over seeds. The bootstrap, which rliable (arXiv 2108.13264) uses over many
tasks times seeds, is too narrow for a handful of numbers: of five normal ones, its 95 % interval (percentile or BCa)
covers the true mean in 84 % of cases. An interval speaks of other seeds of the same experiment, not of other data,
models or layers, and of one number at a time: of twenty true differences of zero, one lies outside its 95 % interval on
average.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saelab.errors import InputError, InputTypeError
from saelab.sae.base import ARCHITECTURES

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = {"architecture", "preset", "ablations", "control", "d_sae"}
"""Columns of `saelab.sweep` that say which SAE it is, beside its knobs."""
_Line = tuple[Any, ...]
"""A value of each column in ``by``."""
_Points = list[tuple[float, float]]
"""L0 and y of each SAE, sorted."""


def summarize(
    table: "pd.DataFrame", *, by: Sequence[str] | None = None, over: str = "seed", confidence: float = 0.95
) -> "pd.DataFrame":
    """Mean and confidence interval of every metric over the seeds of each configuration.

    Parameters
    ----------
    table
        A row for each SAE, such as `saelab.sweep` gives. Rows belong to one configuration if they agree in all
        settings: ``architecture``, ``preset``, ``ablations``, ``control``, ``d_sae``, the knobs of all architectures,
        and any further column of text or of True and False. Every other column of numbers is a metric.
    by
        The columns that tell configurations apart instead, such as ``["architecture", "step"]``.
    over
        The column that tells the repetitions of a configuration apart.
    confidence
        Of the interval, between 0 and 1.

    Returns
    -------
    DataFrame
        A row for each configuration, in the order of the table: the settings, ``n_seeds``, and each metric's mean under
        its own name, followed by the limits of its t interval, ``<name>_low`` and ``<name>_high``. From one seed there
        is a mean but no interval (NaN). Where a metric is NaN for a seed, its mean and interval are NaN: a mean over
        the other seeds would hide that one. ``path`` is dropped.

    Raises
    ------
    TypeError, ValueError
        What is no DataFrame; a table that is empty or has no column ``over``, or gives two rows of one configuration
        the same seed; a confidence that is not between 0 and 1.
    """
    import pandas as pd

    _check_table(table, [over, *(by or ())])
    _check_confidence(confidence)
    settings = _settings(table, over) if by is None else list(by)
    left_out = {*settings, *_settings(table, over), over, "path"}
    metrics = [str(name) for name in table if name not in left_out]
    which = configurations(table, by=settings, over=over)
    values = {name: _numbers(table, name) for name in metrics}
    rows = []
    for configuration in range(which.max() + 1):
        members = np.flatnonzero(which == configuration)
        row = {name: table[name].iloc[members[0]] for name in settings} | {"n_seeds": len(members)}
        for name in metrics:
            row |= with_interval(name, values[name][members], confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def configurations(table: "pd.DataFrame", *, by: Sequence[str] | None = None, over: str = "seed") -> NDArray[np.intp]:
    """Which configuration each row is a repetition of, ``(n_rows,)``: counted from 0 in the order of the table.

    ``by`` and ``over`` are those of `summarize`, which gives a row for each. Two rows of one configuration with equal
    ``over`` raise ValueError.
    """
    settings = _settings(table, over) if by is None else list(by)
    _check_repetitions(table, [*settings, over])
    if not settings:
        return np.zeros(len(table), np.intp)
    groups = table.groupby(settings, sort=False, dropna=False, observed=True)
    return np.asarray(groups.ngroup(), dtype=np.intp)


def compare_at_l0(
    table: "pd.DataFrame",
    y: str = "fvu",
    *,
    l0: float | Sequence[float],
    by: str | Sequence[str] = "architecture",
    baseline: object,
    over: str = "seed",
    confidence: float = 0.95,
) -> "pd.DataFrame":
    """Compare ``y`` at equal L0: each line's mean over seeds, and its difference to a baseline, paired by seed.

    A line is all SAEs with one value of ``by``. Within each seed its ``y`` is interpolated at ``l0``, linearly in log
    L0 between the two nearest SAEs; SAEs of the same L0 count as one, with the mean of their ``y``. The baseline's
    value in the same seed is then subtracted, which cancels whatever a seed does to all lines alike. Interpolation errs
    by the curvature between two SAEs: let a sweep have values close to the L0 of interest.

    Parameters
    ----------
    table
        A row for each SAE, such as `saelab.sweep` gives, with the columns ``l0``, ``y``, ``by`` and ``over``. Within a
        line only the sparsity knob may vary.
    y
        The column of numbers to compare.
    l0
        One or more values, within the range that all lines of all seeds have in common: nothing is extrapolated.
    by
        The column, or list of columns such as ``["architecture", "control"]``, that tells lines apart.
    baseline
        Which line the others are compared with: a value of ``by``; for a list of columns, a value of each, in order.
    over
        The column by which lines are paired; all must have the same values of it, at least two.
    confidence
        Of the intervals, between 0 and 1.

    Returns
    -------
    DataFrame
        A row for each of ``l0`` and each line: ``l0``; the columns ``by``; ``mean``, ``mean_low`` and ``mean_high``, y
        over seeds with its t interval; ``difference``, ``difference_low`` and ``difference_high``, the line minus the
        baseline with the paired t interval (0 for the baseline itself); ``n_below`` and ``n_above``, in how many seeds
        the difference is below and above zero; ``n_seeds``.

    Raises
    ------
    TypeError, ValueError
        What is no DataFrame; a table that is empty or lacks a column; an ``l0`` outside the common range (with that
        range), and lines that have none; an unknown baseline (with the known ones); a line of several settings, of
        other seeds than the rest, of fewer than two seeds, or of fewer than two different L0s in a seed; an L0 that is
        not positive, and a ``y`` that is NaN or infinite; two SAEs of a line with the same seed and sparsity knob.

    Examples
    --------
    >>> compare_at_l0(table, "fvu", l0=[20, 40], baseline="standard")
    """
    import pandas as pd

    keys = [by] if isinstance(by, str) else list(by)
    if not keys:
        raise InputError("by names no column; give one or more")
    _check_table(table, ["l0", y, over, *keys])
    _check_confidence(confidence)
    _check_lines(table, keys, over)
    lines = _lines(table, y, keys, over)
    first = tuple(baseline) if isinstance(baseline, list | tuple) else (baseline,)
    if first not in lines:
        known = ", ".join(repr(_plain(line)) for line in lines)
        raise InputError(f"the table has no baseline {baseline!r} in {', '.join(keys)}; it has {known}")
    _check_seeds(lines, over)
    targets = np.atleast_1d(np.asarray(l0, dtype=np.float64)).tolist()
    _check_range(lines, targets, over)
    at = {line: np.stack([_at(points, targets) for points in of.values()]) for line, of in lines.items()}
    columns = {}
    for line, values in at.items():
        differences = values - at[first]  # (seeds, targets)
        columns[line] = {
            **with_interval("mean", values, confidence),
            **with_interval("difference", differences, confidence),
            "n_below": (differences < 0).sum(axis=0),
            "n_above": (differences > 0).sum(axis=0),
            "n_seeds": np.full(len(targets), len(differences)),
        }
    return pd.DataFrame(
        [
            {
                "l0": target,
                **dict(zip(keys, line, strict=True)),
                **{name: of[index] for name, of in columns[line].items()},
            }
            for index, target in enumerate(targets)
            for line in lines
        ]
    )


def with_interval(name: str, values: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    """Mean over the first axis, and the limits of its t interval, which are NaN for a single value."""
    n = len(values)
    mean = values.mean(axis=0)
    half = np.full_like(mean, math.nan)
    if n > 1:
        with np.errstate(invalid="ignore"):  # an infinite value has no deviation
            half = t_quantile(confidence, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


@functools.cache
def t_quantile(confidence: float, freedom: int) -> float:
    """Half the width of the interval, in standard errors."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def _settings(table: "pd.DataFrame", over: str) -> list[str]:
    """The columns that tell configurations apart."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    named = _SETTINGS | {knob for cls in ARCHITECTURES.values() for knob in cls.knobs()}
    return [
        str(name)
        for name in table
        if name not in (over, "path")
        and (name in named or is_bool_dtype(table[name]) or not is_numeric_dtype(table[name]))
    ]


def _sparsity_knobs() -> set[str]:
    return {cls.sparsity_knob.name for cls in ARCHITECTURES.values() if cls.sparsity_knob is not None}


def _lines(table: "pd.DataFrame", y: str, keys: Sequence[str], over: str) -> dict[_Line, dict[Any, _Points]]:
    """The points of each line by seed, in an order that does not depend on that of the rows."""
    l0, values = _numbers(table, "l0"), _numbers(table, y)
    if not (l0 > 0).all() or not np.isfinite(l0).all():
        bad = l0[~((l0 > 0) & np.isfinite(l0))][0]
        raise InputError(
            f"l0 holds {bad:g}, which has no logarithm; leave such SAEs out: table[(table.l0 > 0) & (table.l0 < inf)]"
        )
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise InputError(f"{y} holds {bad:g}, which cannot be compared; leave such SAEs out, or compare another column")
    # A CSV has nothing where a sweep's table has "", such as in ablations.
    columns = [table[name].astype(object).where(table[name].notna(), "").tolist() for name in keys]
    found: dict[_Line, dict[Any, _Points]] = {}
    for *line, seed, x, value in zip(*columns, table[over].tolist(), l0.tolist(), values.tolist(), strict=True):
        found.setdefault(tuple(line), {}).setdefault(seed, []).append((x, value))
    return {
        line: {seed: sorted(found[line][seed]) for seed in sorted(found[line], key=_rank)}
        for line in sorted(found, key=lambda line: [_rank(part) for part in line])
    }


def _rank(value: object) -> tuple[float, float, str]:
    """Sorts architectures in the order of menus, numbers by size, and the rest by name."""
    names = list(ARCHITECTURES)
    return (
        names.index(value) if value in names else len(names),
        float(value) if isinstance(value, Real) else 0.0,
        str(value),
    )


def _at(points: _Points, l0: Sequence[float]) -> NDArray[np.float64]:
    """Interpolate ``y`` at each ``l0``, within the range of ``points``; those of one L0 are averaged."""
    x, y = np.array(points).T
    distinct, place, n = np.unique(x, return_inverse=True, return_counts=True)
    at: NDArray[np.float64] = np.interp(np.log(l0), np.log(distinct), np.bincount(place, weights=y) / n)
    return at


def _plain(line: _Line) -> object:
    """A line as a user names it: of one column, its value."""
    return line[0] if len(line) == 1 else line


def _numbers(table: "pd.DataFrame", column: str) -> NDArray[np.float64]:
    try:
        return table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"column {column} must hold numbers: {error}") from error


def _check_table(table: "pd.DataFrame", columns: Iterable[str]) -> None:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise InputTypeError(
            f"table must be a pandas DataFrame, such as that of saelab.sweep, not a {type(table).__name__}"
        )
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise InputError("the table has no rows; give one for each SAE")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, such as 0.95, not {confidence}")


def _check_repetitions(table: "pd.DataFrame", identity: Sequence[str]) -> None:
    """Refuse two rows that agree in all that tells SAEs apart."""
    if (repeated := table.duplicated(list(identity))).any():
        row = table.loc[repeated, list(identity)].to_dict("records")[0]
        said = ", ".join(f"{name} {value!r}" for name, value in row.items())
        raise InputError(
            f"several rows have {said}; leave repeated rows out, and if a column of numbers tells them apart, turn it "
            "into text: table.astype({name: str})"
        )


def _check_lines(table: "pd.DataFrame", keys: Sequence[str], over: str) -> None:
    """Refuse lines through SAEs of several settings, other than sparsity, or with one SAE twice."""
    settings, sparsity = _settings(table, over), _sparsity_knobs()
    groups = table.groupby(list(keys), dropna=False, observed=True)
    for setting in settings:
        if setting in keys or setting in sparsity:
            continue
        several = groups[setting].nunique(dropna=False)
        if (several > 1).any():
            raise InputError(
                f"the line of {', '.join(keys)} {several.idxmax()!r} would run through several values of {setting}; "
                f"add {setting!r} to by, or choose with table[table[{setting!r}] == ...]"
            )
    swept = [name for name in settings if name in sparsity]
    if swept:
        _check_repetitions(table[table[swept].notna().any(axis=1)], [*keys, over, *swept])


def _check_seeds(lines: Mapping[_Line, Mapping[Any, _Points]], over: str) -> None:
    every = sorted({seed for of in lines.values() for seed in of}, key=_rank)
    for line, of in lines.items():
        if missing := [seed for seed in every if seed not in of]:
            raise InputError(
                f"{_plain(line)!r} has no {over} {', '.join(map(str, missing))}, and others have; lines are compared "
                f"{over} by {over}, so train the missing ones, or leave these {over}s out of all"
            )
        for seed, points in of.items():
            if len({x for x, _ in points}) < 2:
                raise InputError(
                    f"{_plain(line)!r} has a single L0 in {over} {seed}; interpolating takes two or more SAEs that "
                    "differ in L0"
                )
    if len(every) < 2:
        raise InputError(f"the table has a single {over}, {every[0]}; an interval takes two or more")


def _check_range(lines: Mapping[_Line, Mapping[Any, _Points]], l0: Sequence[float], over: str) -> None:
    if not l0:
        raise InputError("l0 is empty; give one value or more")
    ends = [(points[0][0], points[-1][0], line, seed) for line, of in lines.items() for seed, points in of.items()]
    low, _, lowest, seed_low = max(ends, key=lambda end: end[0])
    _, high, highest, seed_high = min(ends, key=lambda end: end[1])
    if low > high:
        raise InputError(
            f"the lines have no L0 in common: {_plain(lowest)!r} begins at {low:.4g} ({over} {seed_low}), and "
            f"{_plain(highest)!r} ends at {high:.4g} ({over} {seed_high}); train SAEs in between"
        )
    if outside := [value for value in l0 if not low <= value <= high]:
        within = f"{math.ceil(100 * low) / 100:.2f} to {math.floor(100 * high) / 100:.2f}"  # never outside by rounding
        raise InputError(
            f"l0 {', '.join(f'{value:g}' for value in outside)} is outside of {within}, the range that all lines have "
            f"in common in every {over}; nothing is extrapolated"
        )
