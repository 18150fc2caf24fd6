"""The trained grid of `ShrinkageExplorer`: data with known features, an SAE a point, its repairs and its numbers."""

import copy
import functools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

import saelab
from saelab.data.synthetic import SuperpositionData
from saelab.evaluation.metrics import BiasFormula
from saelab.sae.base import SparseAutoencoder
from saelab.sae.rescale_shift import RescaleShiftSAE
from saelab.sae.standard import StandardSAE
from saelab.training.runs import TrainingConfig
from saelab.training.trainer import Trainer
from saelab_widgets.background import one_thread_on_small_machines

N_TRAIN = 16_000
"""Number of inputs to train on."""
N_SHOWN = 1000
"""Number of held-out inputs, on which every point and number on the page is measured."""
SPARE_FEATURES = 0.25
"""Learned features beyond one for each true one, as a share. Without them two or three of 32 true features stayed
unfound with most seeds; with a quarter more, each of six seeds found all (worst cosine 0.85, at L1 0.25, noise 0.3)."""
LEAST_MAGNITUDE = 0.2
"""Smallest magnitude of a feature that is on, as a share of the greatest. Far from 0, a feature is missed only because
its code has shrunk."""
DICTIONARY_L1 = 1.0
"""L1 penalty at which the first SAE finds its features, before the others start from it."""
BATCH_SIZE = 512
DICTIONARY_STEPS = 600
NOISE_STEPS = 100
POINT_STEPS = 100
POINT_LR = 3e-2
"""An encoder's bias has to move by about half the change of the L1 penalty, which takes a high learning rate."""
FIT_STEPS = 100
FIT_LR = 0.2
"""At the highest penalty a shift has to grow to 4; a rate of 0.05 does not get there."""
LEAST_RESCALE = 0.01
"""Smallest rescale, in the page as well."""
AnySAE = TypeVar("AnySAE", bound=SparseAutoencoder)


class TwoNumbers(NamedTuple):
    """A repair that is the same for every feature: ``code * rescale + shift`` where the feature is on."""

    rescale: float
    shift: float


NO_REPAIR = TwoNumbers(1.0, 0.0)


@dataclass(eq=False)
class Point:
    """One trained SAE, and once asked for, the repair of each of its features."""

    l1_coefficient: float
    sae: StandardSAE
    codes: Tensor
    """``(n_shown, d_sae)``."""
    matching: Tensor
    """``(n_features,)``: the learned feature of each true one."""
    fitted: RescaleShiftSAE | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fit(self, data: SuperpositionData) -> None:
        """Train its `RescaleShiftSAE`, once for all widgets that show it."""
        with self._lock:
            if self.fitted is None:
                sae = RescaleShiftSAE.from_standard(self.sae)
                config = _config(FIT_STEPS, FIT_LR)
                self.fitted = _run(sae, data.activations[:N_TRAIN], config)


@dataclass(eq=False)
class Level:
    """One level of noise: its data, and an SAE for each L1 penalty."""

    data: SuperpositionData
    points: list[Point]

    @property
    def x(self) -> Tensor:
        """``(n_shown, d_in)``."""
        return self.data.activations[N_TRAIN:]

    @property
    def true_codes(self) -> Tensor:
        """``(n_shown, n_features)``."""
        return self.data.codes[N_TRAIN:]


@dataclass(eq=False)
class Grid:
    """All levels of noise, each with an SAE for every L1 penalty."""

    levels: list[Level]

    @property
    def points(self) -> Iterator[Point]:
        return (point for level in self.levels for point in level.points)


@functools.lru_cache(maxsize=2)
def trained_grid(
    n_features: int, d_in: int, density: float, seed: int, l1: tuple[float, ...], noises: tuple[float, ...]
) -> Grid:
    """Train all SAEs; they are kept, so that a cell that is run again starts at once.

    The true features are the same at every noise, so they are found once. From there each SAE starts from the one next
    to it: at the start L1 from the noise before, and along the grid from the L1 between.
    """
    from tqdm.auto import tqdm

    d_sae = math.ceil((1 + SPARE_FEATURES) * n_features)
    start = l1.index(min(l1, key=lambda value: abs(math.log(value / DICTIONARY_L1))))
    grid = Grid([])
    total = len(noises) * (1 + len(l1))
    with one_thread_on_small_machines(), tqdm(total=total, desc="training SAEs", unit="SAE") as bar:
        found: StandardSAE | None = None
        for noise in noises:
            data = saelab.superposition(
                n_features, d_in, density, n_samples=N_TRAIN + N_SHOWN, magnitudes=_magnitudes, noise=noise, seed=seed
            )
            x = data.activations[:N_TRAIN]
            if found is None:
                config = _config(DICTIONARY_STEPS, 1e-2, sparsity_warmup_steps=100)
                found = _run(StandardSAE(d_in, d_sae, seed=seed), x, config, l1_coefficient=l1[start])
            else:
                found = _run(copy.deepcopy(found), x, _config(NOISE_STEPS, POINT_LR), l1_coefficient=l1[start])
            bar.update()
            saes: dict[float, StandardSAE] = {}
            for path in (l1[start:], l1[:start][::-1]):
                sae = found
                for coefficient in path:
                    sae = _run(copy.deepcopy(sae), x, _config(POINT_STEPS, POINT_LR), l1_coefficient=coefficient)
                    saes[coefficient] = sae
                    bar.update()
            grid.levels.append(Level(data, [_measured(value, saes[value], data) for value in l1]))
    return grid


def _config(n_steps: int, lr: float, *, sparsity_warmup_steps: int = 0) -> TrainingConfig:
    return TrainingConfig(
        n_steps=n_steps,
        batch_size=BATCH_SIZE,
        sparsity_warmup_steps=sparsity_warmup_steps,
        lr=lr,
        lr_warmup_steps=20,
        lr_decay_steps=n_steps // 2,
        resample_every=0,
    )


def _run(sae: AnySAE, x: Tensor, config: TrainingConfig, **knobs: Any) -> AnySAE:
    # Step by step: `run` would catch the kernel's interrupt, and make a bar for each of many short runs.
    for _ in Trainer(sae, x, config, **knobs):
        pass
    return sae


@torch.no_grad()
def _measured(l1_coefficient: float, sae: StandardSAE, data: SuperpositionData) -> Point:
    matching = saelab.matched_cosine_similarity(sae.W_dec, data.dictionary).matching
    return Point(l1_coefficient, sae, sae.encode(data.activations[N_TRAIN:]), matching)


def _magnitudes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 1 - (1 - LEAST_MAGNITUDE) * torch.rand(shape, generator=generator)


@torch.no_grad()
def with_two_numbers(standard: StandardSAE, numbers: TwoNumbers) -> RescaleShiftSAE:
    """The SAE with the same rescale and shift for every feature."""
    sae = RescaleShiftSAE.from_standard(standard)
    sae.r_mag.fill_(math.log(numbers.rescale))
    sae.b_mag.fill_(numbers.shift)
    return sae


@torch.no_grad()
def best_two_numbers(point: Point, x: Tensor) -> TwoNumbers:
    """Argmin of E||x - b_dec - sum_on relu(rescale * code + shift) W_dec||^2, as the page solves it.

    The error is quadratic for as long as the same codes stay on, so it is solved for these until they do not change.
    """
    codes, W_dec = point.codes.double(), point.sae.W_dec.double()
    target = x.double() - point.sae.b_dec.double()
    numbers, on = NO_REPAIR, codes > 0
    for _ in range(20):
        parts = torch.stack([((codes * on) @ W_dec).flatten(), (on.double() @ W_dec).flatten()])
        gram, aim = parts @ parts.T, parts @ target.flatten()
        if not float(torch.linalg.det(gram)) > 1e-9 * float(gram[0, 0] * gram[1, 1]):
            return numbers  # too few codes to tell a factor from a shift
        rescale, shift = torch.linalg.solve(gram, aim).tolist()
        if rescale < LEAST_RESCALE:  # a handful of codes on that say nothing of their magnitudes
            rescale = LEAST_RESCALE
            shift = float((aim[1] - rescale * gram[0, 1]) / gram[1, 1])
        numbers = TwoNumbers(rescale, shift)
        stay = (codes > 0) & (numbers.rescale * codes + numbers.shift > 0)
        if torch.equal(stay, on):
            break
        on = stay
    return numbers


@torch.no_grad()
def matched_codes(sae: SparseAutoencoder, level: Level, point: Point) -> tuple[Tensor, Tensor]:
    """True magnitudes and codes, each ``(n_shown, n)``: the true features, then learned ones that have no true one."""
    learned, true = sae.encode(level.x), level.true_codes
    spare = torch.ones(sae.d_sae, dtype=torch.bool)
    spare[point.matching] = False
    without = torch.zeros(len(true), int(spare.sum()))
    return torch.cat([true, without], dim=1), torch.cat([learned[:, point.matching], learned[:, spare]], dim=1)


@torch.no_grad()
def numbers_of(sae: SparseAutoencoder, level: Level, point: Point) -> dict[str, float]:
    """The four formulas, FVU, L0 and detection of ``sae``, a repaired or unrepaired SAE of ``point``."""
    codes = sae.encode(level.x)
    reconstruction = sae.decode(codes)
    fvu = saelab.FVU()
    fvu.add_batch(level.x, reconstruction)
    true, learned = matched_codes(sae, level, point)
    n_true, n_on = int((true > 0).sum()), int((learned > 0).sum())
    recovered = saelab.feature_shrinkage(codes, level.true_codes, point.matching)
    return {
        **{name: saelab.relative_reconstruction_bias(level.x, reconstruction, name) for name in get_args(BiasFormula)},
        "fvu": fvu.compute(),
        "l0": n_on / len(codes),
        "recovered": float(recovered.nanmean()),
        "missed": int(((true > 0) & (learned == 0)).sum()) / n_true if n_true else math.nan,
        "false": int(((true == 0) & (learned > 0)).sum()) / n_on if n_on else math.nan,
    }
