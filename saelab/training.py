"""Train a sparse autoencoder: a plain loop whose knobs may be turned between steps."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab.activations import ActivationStore
from saelab.autoencoders import SparseAutoencoder, TrainingPass, check_activations

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainingConfig:
    """How a training run goes. Losses sum over d_in, on activations with E||x||^2 = d_in."""

    n_steps: int = 2000
    """Steps that `Trainer.run` and iteration take; `Trainer.step` may be called beyond it."""
    batch_size: int = 1024
    """Activations a step."""
    l1_coefficient: float = 4.0
    """Weight of the L1 penalty. The paper's lambda is for squared error averaged over d_in: multiply it by d_in."""
    aux_coefficient: float = 1.0
    """Weight of the gated SAE's auxiliary term; 1 in the paper. A standard SAE has no such term."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Adam's decay rates; the paper's (appendix D)."""
    lr_warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from 0."""
    l1_warmup_steps: int = 100
    """Steps over which the L1 coefficient rises linearly from 0."""
    lr_decay_steps: int = 0
    """Last steps, up to ``n_steps``, over which the learning rate falls linearly to 0."""
    seed: int = 0
    """Of the order in which activations are drawn."""

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "betas") and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be a finite number of at least 0, not {value}")


class TrainingRecord(NamedTuple):
    """One step: its loss terms and metrics on its own batch, before the update, and the knobs as they stood."""

    step: int
    """Steps done, this one included."""
    loss: float
    reconstruction: float
    sparsity: float
    auxiliary: float
    l0: float
    """Mean number of features on per input."""
    fvu: float
    """Fraction of variance unexplained."""
    gamma: float
    """Relative reconstruction bias."""
    l1_coefficient: float
    aux_coefficient: float
    lr: float
    gate_threshold: float


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The SAE keeps the weights from before that step."""


class Trainer:
    """Train ``sae`` on ``activations`` with Adam, one step at a time.

    The attributes ``l1_coefficient``, ``aux_coefficient``, ``lr`` and ``gate_threshold`` may be set between steps; the
    next step uses them and the history records them.

    Parameters
    ----------
    sae
        Trained in place.
    activations
        ``(n, d_in)``, or an `ActivationStore`. Never changed. Batches are drawn without replacement, epoch by epoch.
    config
        Defaults to ``TrainingConfig()``.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width than the SAE, or hold NaN.

    Examples
    --------
    >>> trainer = Trainer(GatedSAE(256, 1024), store, TrainingConfig(n_steps=1000, l1_coefficient=4))
    >>> trainer.run()
    >>> trainer.history_frame().plot(x="step", y="l0")
    """

    def __init__(
        self, sae: SparseAutoencoder, activations: Tensor | ActivationStore, config: TrainingConfig | None = None
    ) -> None:
        x = activations.activations if isinstance(activations, ActivationStore) else activations
        check_activations(x, sae.d_in)
        if x.ndim != 2:
            raise ValueError(f"activations must be (n, d_in), not of shape {tuple(x.shape)}; try x.flatten(0, -2)")
        self.sae = sae
        self.activations = x
        self.config = config or TrainingConfig()
        self.l1_coefficient = self.config.l1_coefficient
        self.aux_coefficient = self.config.aux_coefficient
        self.lr = self.config.lr
        self.records: list[TrainingRecord] = []
        self._optimizer = torch.optim.Adam(sae.parameters(), lr=self.lr, betas=self.config.betas)
        self._order = torch.Generator().manual_seed(self.config.seed)
        self._epoch = torch.empty(0, dtype=torch.long)

    @property
    def gate_threshold(self) -> float:
        """The SAE's own gate threshold."""
        return self.sae.gate_threshold

    @gate_threshold.setter
    def gate_threshold(self, value: float) -> None:
        self.sae.gate_threshold = value

    @property
    def n_steps_done(self) -> int:
        return self.records[-1].step if self.records else 0

    def step(self) -> TrainingRecord:
        """Take one step and return its record.

        Raises
        ------
        NonFiniteLossError
            When the loss is NaN or infinite; the weights stay as they were before this step.
        """
        done = self.n_steps_done
        lr = self.lr * self._lr_schedule(done)
        l1 = self.l1_coefficient * min(1.0, (done + 1) / max(1, self.config.l1_warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        x = self._next_batch()
        result = self.sae.training_pass(x, l1_coefficient=l1, aux_coefficient=self.aux_coefficient)
        record = self._record(done + 1, x, result, l1, lr)
        if not np.isfinite(record.loss):
            raise NonFiniteLossError(
                f"the loss is {record.loss} at step {record.step} with l1_coefficient={l1:g}, "
                f"aux_coefficient={self.aux_coefficient:g}, lr={lr:g}, gate_threshold={self.gate_threshold:g}; "
                "the weights are those from before this step. Try a lower lr."
            )
        self._optimizer.zero_grad()
        torch.autograd.backward(result.loss.total)
        self.sae.project_decoder_gradient()
        self._optimizer.step()
        self.sae.normalize_decoder()
        self.records.append(record)
        return record

    def __iter__(self) -> Iterator[TrainingRecord]:
        """Steps up to ``config.n_steps``, each as it is taken."""
        while self.n_steps_done < self.config.n_steps:
            yield self.step()

    def run(self, *, progress: bool = True) -> "Trainer":
        """Train up to ``config.n_steps`` with a progress bar. Interrupted, it keeps what it has; run again to go on."""
        from tqdm.auto import tqdm

        first, last = self.n_steps_done, self.config.n_steps
        with tqdm(self, initial=first, total=last, desc="training", unit="step", disable=not progress) as bar:
            for record in bar:
                if record.step % 20 == 0:
                    bar.set_postfix(L0=f"{record.l0:.0f}", FVU=f"{record.fvu:.3f}", gamma=f"{record.gamma:.3f}")
        return self

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Every record so far: field name to array, ``(n_steps_done,)``."""
        columns = zip(*self.records, strict=True) if self.records else ([] for _ in TrainingRecord._fields)
        return {name: np.array(column) for name, column in zip(TrainingRecord._fields, columns, strict=True)}

    def history_frame(self) -> "pd.DataFrame":
        """The history as a pandas DataFrame, one row a step."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=TrainingRecord._fields)

    def _lr_schedule(self, done: int) -> float:
        rising = min(1.0, (done + 1) / max(1, self.config.lr_warmup_steps))
        left = self.config.n_steps - done
        falling = min(1.0, max(0, left) / self.config.lr_decay_steps) if self.config.lr_decay_steps else 1.0
        return rising * falling

    def _next_batch(self) -> Tensor:
        n = self.config.batch_size
        while len(self._epoch) < n:  # also right where the batch is larger than the data
            self._epoch = torch.cat([self._epoch, torch.randperm(len(self.activations), generator=self._order)])
        rows, self._epoch = self._epoch[:n], self._epoch[n:]
        W = self.sae.W_enc
        return self.activations[rows.to(self.activations.device)].to(device=W.device, dtype=W.dtype)

    @torch.no_grad()
    def _record(self, step: int, x: Tensor, result: TrainingPass, l1: float, lr: float) -> TrainingRecord:
        r, loss = result.reconstruction, result.loss
        variance = (x - x.mean(dim=0)).square().sum(dim=1).mean()
        total, reconstruction, sparsity, auxiliary, l0, fvu, gamma = torch.stack(
            [
                loss.total,
                loss.reconstruction,
                loss.sparsity,
                loss.auxiliary,
                result.l0,
                loss.reconstruction / variance,
                r.square().sum() / (x * r).sum(),
            ]
        ).tolist()  # one transfer, where the SAE is on a GPU
        return TrainingRecord(
            step=step, loss=total, reconstruction=reconstruction, sparsity=sparsity, auxiliary=auxiliary,
            l0=l0, fvu=fvu, gamma=gamma,
            l1_coefficient=l1, aux_coefficient=self.aux_coefficient, lr=lr, gate_threshold=self.gate_threshold,
        )  # fmt: skip
