"""What a training run is described by: its configuration before, a record of each step after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from saelab.errors import InputError, SAELabError
from saelab.sae.base import SparseAutoencoder
from saelab.sae.declarations import Knob

Precision = Literal["auto", "float32", "bfloat16"]
LR = Knob(
    name="lr",
    label="Learning rate",
    short="learning rate",
    symbol="\N{GREEK SMALL LETTER ETA}",
    meaning="Adam's step. Higher learns sooner and settles less well.",
    default=1e-3,
    range=(1e-4, 1e-2),
    scale="log",
    paper=3e-4,
)
RESAMPLE_EVERY = 200
"""Steps between resamplings by default, where the loss does not revive dead features itself."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a training run goes. Losses sum over d_in, on activations with E||x||^2 = d_in.

    The coefficients of the loss are no part of it: they are knobs of the architecture's, which `Trainer` takes by name.
    """

    n_steps: int = 2000
    """Steps that `Trainer.run` and iteration take; `Trainer.step` may be called beyond it."""
    batch_size: int = 1024
    """Activations a step."""
    lr: float = LR.default
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Adam's decay rates; the paper's (appendix D)."""
    lr_warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from 0."""
    sparsity_warmup_steps: int = 100
    """Steps over which the coefficient of the sparsity penalty (L1, or L0 of a JumpReLU SAE) rises linearly from 0."""
    lr_decay_steps: int = 0
    """Last steps, up to ``n_steps``, over which the learning rate falls linearly to 0."""
    start_at_mean: bool = False
    """Start ``b_dec`` at the mean of the first batch instead of 0. Adam moves it by at most about ``lr`` a step: at
    layer 1 of the embedded model, whose mean is 36 % of E||x||^2, it was still 7 away from that mean (of norm 9.6)
    after 1000 steps at 1e-3. A trained SAE learns a feature for what is left; one with random directions cannot."""
    dead_after_steps: int = 100
    """A feature that was on for no input in so many steps is dead."""
    resample_every: int | None = None
    """Steps between resamplings of the dead features (`saelab.resample_dead_features`); 0 for never. None in the last
    quarter of ``n_steps``, so that what is revived can settle. By default 200, or never where the loss revives dead
    features itself (TopK, BatchTopK)."""
    resample_recovery_steps: int = 100
    """Steps over which the learning rate returns, along a cosine, from a tenth after a resampling (appendix D)."""
    precision: Precision = "auto"
    """Precision of the matmuls: ``"float32"``, which follows ``torch.set_float32_matmul_precision`` (TF32 on NVIDIA
    GPUs); ``"bfloat16"``, by autocast, weights and updates staying in float32; ``"auto"``, bfloat16 on a GPU that has
    it."""
    checkpoint_every: int = 500
    """Steps between checkpoints, where the trainer has a folder for them; 0 for the end of `Trainer.run` alone."""
    seed: int = 0
    """Seed of the order in which activations are drawn."""

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "dead_after_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must lie between 0 and 1, 1 left out, not {self.betas}")
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                field.name not in ("seed", "betas", "precision", "start_at_mean")
                and value is not None
                and not 0 <= value < float("inf")
            ):
                raise InputError(f"{field.name} must be a finite number of at least 0, not {value}")

    def resample_every_for(self, sae: SparseAutoencoder) -> int:
        """``resample_every`` with its default."""
        usual = 0 if sae.revives_dead_features else RESAMPLE_EVERY
        return usual if self.resample_every is None else self.resample_every


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """One step: its loss terms and metrics on its own batch, before the update, and the knobs as they stood."""

    step: int
    """Steps done, this one included."""
    loss: float
    reconstruction: float
    """E||x - reconstruction||^2."""
    terms: Mapping[str, float]
    """The other terms of the loss by name, before their coefficients."""
    l0: float
    """Mean number of features on per input."""
    fvu: float
    """Fraction of variance unexplained; NaN where all inputs are the same."""
    gamma: float
    """Relative reconstruction bias; NaN where nothing is reconstructed."""
    n_dead: int
    """Features that were on for no input in the last ``dead_after_steps`` steps, nor would be at a threshold of 0."""
    n_resampled: int
    """Number of dead features resampled after this step."""
    coefficients: Mapping[str, float]
    """The coefficients of the loss as they were used, during the warm-up below the knobs' values."""
    lr: float
    """The learning rate that was used."""
    settings: Mapping[str, float]
    """The SAE's live settings, such as ``gate_threshold``."""

    def as_dict(self) -> dict[str, float]:
        """One flat row: every number by name."""
        return {
            "step": self.step, "loss": self.loss, "reconstruction": self.reconstruction, **self.terms,
            "l0": self.l0, "fvu": self.fvu, "gamma": self.gamma, "n_dead": self.n_dead, "n_resampled": self.n_resampled,
            **self.coefficients, "lr": self.lr, **self.settings,
        }  # fmt: skip


def columns_of(sae: SparseAutoencoder) -> list[str]:
    """The names of `TrainingRecord.as_dict` in runs of SAEs like this one."""
    terms = [term.name for term in sae.terms]
    coefficients = [term.coefficient.name for term in sae.terms]
    settings = [knob.name for knob in sae.live_settings]
    metrics = ["l0", "fvu", "gamma", "n_dead", "n_resampled"]
    return ["step", "loss", "reconstruction", *terms, *metrics, *coefficients, "lr", *settings]


def as_history(records: Sequence[TrainingRecord], sae: SparseAutoencoder) -> dict[str, np.ndarray]:
    """Column by column: ``(n_records,)`` each."""
    rows = [record.as_dict() for record in records]
    return {name: np.array([row[name] for row in rows]) for name in columns_of(sae)}


def as_records(history: Mapping[str, Sequence[float]], sae: SparseAutoencoder) -> list[TrainingRecord]:
    """The records that `as_history` was made of. A KeyError where a column is missing."""
    names = columns_of(sae)
    groups = {
        "terms": [term.name for term in sae.terms],
        "coefficients": [term.coefficient.name for term in sae.terms],
        "settings": [knob.name for knob in sae.live_settings],
    }
    grouped = {name for members in groups.values() for name in members}
    records = []
    for values in zip(*(history[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        parts = {group: {name: row[name] for name in members} for group, members in groups.items()}
        own = {name: value for name, value in row.items() if name not in grouped}
        records.append(TrainingRecord(**own, **parts))  # type: ignore[arg-type]
    return records


class NonFiniteLossError(SAELabError, RuntimeError):
    """The loss, or a weight on its way to a checkpoint, became NaN or infinite."""
