"""Search the value of an SAE's sparsity knob that gives an L0."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations
from saelab.errors import InputError, InputTypeError
from saelab.sae.base import SparseAutoencoder
from saelab.sae.declarations import Knob
from saelab.training.runs import TrainingConfig
from saelab.training.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd

PENALTY_SLOPE = -1.4
"""Change of log L0 with the log of an L1 coefficient: what gated SAEs near L0 30 show on the embedded model."""
LARGEST_STEP = 1.5
"""Of one try outside the values tried so far, in logs: a factor of 4.5."""
LEAST_L0 = 1 / 300
"""What an L0 of 0 counts as, as a share of the target: it has no logarithm."""


class KnobForL0(NamedTuple):
    """What `knob_for_l0` found."""

    value: float
    """Of the sparsity knob."""
    l0: float
    """Of the SAE trained at that value."""
    path: str
    """The SAE's file, which `saelab.load` takes."""
    runs: "pd.DataFrame"
    """A row for each value that was tried, in order, as of `saelab.sweep`."""


def knob_for_l0(
    make_sae: Callable[[], SparseAutoencoder],
    activations: Activations,
    target_l0: float,
    *,
    config: TrainingConfig | None = None,
    tolerance: float = 0.05,
    test: Tensor | ActivationStore | None = None,
    max_runs: int = 8,
    folder: str | os.PathLike[str] = "sweep",
    progress: bool = True,
    **knobs: float,
) -> KnobForL0:
    """Train SAEs at different values of their sparsity knob until the L0 of one is close to ``target_l0``.

    The first try is the knob's default, or for a knob that counts features (k of TopK and BatchTopK) the target itself.
    Later ones follow the line through two tries in log L0 against log value; once the target lies between two tries,
    the search stays between them. Each try is a `saelab.sweep` of one value: its file stays in ``folder``, so that the
    same search again, or one with more runs, trains only what is new.

    Parameters
    ----------
    make_sae
        Gives a new, untrained SAE each time, such as ``lambda: GatedSAE(256, 2048)``.
    activations, config, test, folder, progress
        As for `saelab.sweep`; L0 is measured on ``test``.
    target_l0
        Mean number of features on per input, above 0 and at most ``d_sae``.
    tolerance
        How far the L0 may be from the target, relative to it.
    max_runs
        Most SAEs to train.
    knobs
        Further knobs of every run, by name, as for `Trainer`; not the one that is searched.

    Raises
    ------
    ValueError, TypeError
        Like `saelab.sweep`; an SAE without a sparsity knob; a target, tolerance or number of runs that cannot be; no
        L0 close enough within ``max_runs`` (with all that were tried, whose files stay).

    Examples
    --------
    >>> found = knob_for_l0(lambda: GatedSAE(256, 2048), store, 30)
    >>> sae = load(found.path)
    >>> table = sweep(lambda: StandardSAE(256, 2048), store, [found.value / 1.2, found.value, found.value * 1.2])
    """
    import pandas as pd

    if not callable(make_sae):
        raise InputTypeError(
            f"make_sae must be one function that gives an SAE, not a {type(make_sae).__name__}; search for each alone"
        )
    sae = make_sae()
    knob, d_sae = sae.sparsity_knob, sae.d_sae
    if knob is None:
        raise InputError(f"a {sae.label} SAE has no knob for sparsity, so its L0 cannot be searched")
    if knob.name in knobs:
        raise InputError(f"{knob.name} is what is searched; leave it out")
    if not 0 < target_l0 <= d_sae:
        raise InputError(f"target_l0 must be above 0 and at most this SAE's {d_sae} features, not {target_l0}")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance must be between 0 and 1, such as 0.05 for 5 %, not {tolerance}")
    if max_runs < 1:
        raise InputError(f"max_runs must be at least 1, not {max_runs}")
    value: float | None = max(1.0, float(round(target_l0))) if knob.is_whole else knob.default or knob.range[1]
    tried: dict[float, float] = {}
    runs = []
    while value is not None and len(tried) < max_runs:
        run = sweep(make_sae, activations, [value], config=config, test=test, folder=folder, progress=progress, **knobs)
        runs.append(run)
        tried[value] = l0 = float(run.l0[0])
        if abs(l0 - target_l0) <= tolerance * target_l0:
            return KnobForL0(value, l0, str(run.path[0]), pd.concat(runs, ignore_index=True))
        wanted = next_value(list(tried.items()), target_l0, slope=1.0 if knob.is_whole else PENALTY_SLOPE)
        value = next((v for v in _allowed(wanted, knob, d_sae) if v not in tried), None)
    found = ", ".join(f"{value:g} gave {l0:.4g}" for value, l0 in tried.items())
    advice = (
        "allow a larger tolerance or more runs"
        if value is not None
        else "none is left between; allow a larger tolerance"
    )
    raise InputError(f"no {knob.name} gave an L0 within {100 * tolerance:g} % of {target_l0:g}: {found}; {advice}")


def next_value(tried: Sequence[tuple[float, float]], l0: float, *, slope: float = PENALTY_SLOPE) -> float:
    """The value to try next for an SAE with ``l0``, after tries ``(value, L0)`` of which none has it.

    Log L0 is taken as linear in the log of the value: between two neighbouring values whose L0s enclose the target, and
    never nearer to either than a tenth of their distance, so that the interval shrinks; otherwise through the two tries
    nearest to the target. ``slope`` is used after a single try, and its sign where L0 does not change.
    """
    points = sorted((math.log(value), math.log(max(got / l0, LEAST_L0))) for value, got in tried)
    enclosing = [(a, b) for a, b in itertools.pairwise(points) if a[1] * b[1] < 0]
    if enclosing:
        (a, error_a), (b, error_b) = min(enclosing, key=lambda pair: abs(pair[0][1]) + abs(pair[1][1]))
        return math.exp(a + min(0.9, max(0.1, error_a / (error_a - error_b))) * (b - a))
    (a, error_a), *others = sorted(points, key=lambda point: abs(point[1]))
    if others:
        b, error_b = others[0]
        measured = (error_b - error_a) / (b - a)
        slope = math.copysign(max(0.3, abs(measured)), measured or slope)
    return math.exp(a + min(LARGEST_STEP, max(-LARGEST_STEP, -error_a / slope)))


def _allowed(value: float, knob: Knob, d_sae: int) -> list[float]:
    """The values that a knob can take near ``value``, nearest first."""
    if not knob.is_whole:
        return [float(f"{value:.4g}")]
    below = math.floor(value)
    return sorted((k for k in (below, below + 1) if 1 <= k <= d_sae), key=lambda k: abs(k - value))
