"""Train a sparse autoencoder: a plain loop whose knobs may be turned between steps."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations, Batch, batches_of
from saelab.errors import InputError, SAELabError
from saelab.files.sae_files import describe, rebuild
from saelab.files.tensor_files import SAEFileError, read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder, TrainingPass
from saelab.training.checkpoints import CHECKPOINT
from saelab.training.distributed import Together
from saelab.training.resampling import resample_dead_features

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

Precision = Literal["auto", "float32", "bfloat16"]
KNOBS = ("l1_coefficient", "aux_coefficient", "lr", "gate_threshold")
"""Attributes of a trainer that may be set between steps."""
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
RESAMPLING_BATCHES = 8
"""Batches from which resampled features draw their new directions."""


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
    dead_after_steps: int = 100
    """A feature that was on for no input in so many steps is dead."""
    resample_every: int = 200
    """Steps between resamplings of the dead features (`saelab.resample_dead_features`); 0 for never. None in the last
    quarter of ``n_steps``, so that what is revived can settle."""
    resample_recovery_steps: int = 100
    """Steps over which the learning rate returns, along a cosine, from a tenth after a resampling (appendix D)."""
    precision: Precision = "auto"
    """Of the matmuls: ``"float32"``, which follows ``torch.set_float32_matmul_precision`` (TF32 on NVIDIA GPUs);
    ``"bfloat16"``, by autocast, weights and updates staying in float32; ``"auto"``, bfloat16 on a GPU that has it."""
    checkpoint_every: int = 500
    """Steps between checkpoints, where the trainer has a folder for them; 0 for the end of `Trainer.run` alone."""
    seed: int = 0
    """Of the order in which activations are drawn."""

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
            if field.name not in ("seed", "betas", "precision") and not 0 <= value < float("inf"):
                raise InputError(f"{field.name} must be a finite number of at least 0, not {value}")


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
    n_dead: int
    """Features that were on for no input in the last ``dead_after_steps`` steps, nor would be at a threshold of 0."""
    n_resampled: int
    """Of these, how many were given a new life after this step."""
    l1_coefficient: float
    aux_coefficient: float
    lr: float
    gate_threshold: float


class NonFiniteLossError(SAELabError, RuntimeError):
    """The loss, or a weight on its way to a checkpoint, became NaN or infinite."""


class Trainer:
    """Train ``sae`` on ``activations`` with Adam, one step at a time.

    The attributes ``l1_coefficient``, ``aux_coefficient``, ``lr`` and ``gate_threshold`` may be set between steps; the
    next step uses them and the history records them.

    Parameters
    ----------
    sae
        Trained in place, on its device.
    activations
        ``(n, d_in)`` or an `ActivationStore`, whose rows are drawn without replacement, epoch by epoch; or an iterable
        of batches ``(batch, d_in)``, taken as they come and again from the beginning. Never changed.
    config
        Defaults to ``TrainingConfig()``.
    folder
        Where `run` keeps a checkpoint, ``checkpoint.safetensors``: `saelab.load` reads the SAE from it, and
        `Trainer.resume` goes on with the training. None by default.
    accelerator
        An `accelerate.Accelerator`, to train in several processes that each run this same code (``accelerate launch``).
        ``config.batch_size`` is shared among them, each reads rows of its own, gradients are added up, and the weights
        are those of one process but for rounding. ``sae`` moves to the accelerator's device; only the main process
        writes checkpoints.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width than the SAE, or hold NaN; with a ``folder``, an SAE of a class
        that a checkpoint would not bring back.
    FileExistsError
        ``folder`` already holds a checkpoint.

    Examples
    --------
    >>> trainer = Trainer(GatedSAE(256, 1024), store, TrainingConfig(n_steps=1000, l1_coefficient=4))
    >>> trainer.run()
    >>> trainer.history_frame().plot(x="step", y="l0")
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        activations: Activations,
        config: TrainingConfig | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        accelerator: "Accelerator | None" = None,
    ) -> None:
        self.sae = sae
        self._together = Together(accelerator)
        self._together.take_from_main(sae)
        if isinstance(activations, ActivationStore):
            sae.trained_on = activations.trained_on
        self.config = config or TrainingConfig()
        self.folder = None if folder is None else Path(folder)
        if folder is not None:
            describe(sae)  # raises now what else would end the run at its first checkpoint
        if self.folder is not None and (self.folder / CHECKPOINT).exists():
            raise FileExistsError(
                f"{self.folder} already holds a run; go on with it by Trainer.resume({str(self.folder)!r}, activations)"
                ", or take another folder"
            )
        self.l1_coefficient = self.config.l1_coefficient
        self.aux_coefficient = self.config.aux_coefficient
        self.lr = self.config.lr
        self.records: list[TrainingRecord] = []
        self.seconds = 0.0
        """Spent in steps, also before a resumption."""
        self._batches = batches_of(
            activations,
            sae.d_in,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            share=self._together.share,
        )
        self._fingerprint = self._batches.fingerprint() if folder is not None else None
        self._precision = self.config.precision
        if self._precision == "auto":
            fast = sae.W_enc.device.type == "cuda" and torch.cuda.is_bf16_supported()
            self._precision = "bfloat16" if fast else "float32"
        # Adam's fused kernel is fast on contiguous memory, and an encoder's features are contiguous as rows.
        self._trained = {
            name: sae.features_first(name, parameter.detach())
            for name, parameter in sae.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = torch.optim.Adam(self._trained.values(), lr=self.lr, betas=self.config.betas, fused=True)
        self._resampling = torch.Generator().manual_seed(self.config.seed)
        self._silent_steps = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_enc.device)
        self._resampled_at: int | None = None
        self._held_signals = _HeldSignals()
        self._all_stop = False
        """Whether one of several processes was asked to stop; all of them know it after the same step."""

    @classmethod
    def resume(
        cls,
        folder: str | os.PathLike[str],
        activations: Activations,
        *,
        device: torch.device | str | None = None,
        accelerator: "Accelerator | None" = None,
    ) -> "Trainer":
        """Go on with the run in ``folder``, on the same activations, as if it had never stopped.

        On the CPU, with as many threads, the weights end bit by bit where an uninterrupted run's end. An iterable is
        drawn from its beginning up to where the run was: it must give the same batches again. ``device`` defaults to
        the run's own, or with an ``accelerator`` to its device. The number of processes may be another than before.

        Raises
        ------
        FileNotFoundError, saelab.SAEFileError
            ``folder`` holds no checkpoint, or one that cannot be read.
        ValueError
            The activations are others than those of the run.
        """
        path = Path(folder) / CHECKPOINT
        tensors, header = read_tensors(path)
        sae = rebuild(path, tensors, header)
        if "training" not in header:
            raise SAEFileError(f"{path}: its header has no field 'training'; it holds an SAE, but no run to go on with")
        state = header["training"]
        config = TrainingConfig(**{**state["config"], "betas": tuple(state["config"]["betas"])})
        sae = sae.to(device or state["device"]) if accelerator is None else sae
        trainer = cls(sae, activations, config, accelerator=accelerator)
        trainer.folder = Path(folder)
        trainer._fingerprint = trainer._batches.fingerprint()
        if trainer._fingerprint != state["fingerprint"]:
            raise InputError(f"{path}: the run was on other activations than these; give it those it began with")
        try:
            trainer._restore(tensors, state)
        except KeyError as error:
            raise SAEFileError(f"{path}: field {error} of the run is missing") from error
        return trainer

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        for knob in KNOBS:
            setattr(self, knob, header["knobs"][knob])
        self.seconds = header["seconds"]
        self._resampled_at = header["resampled_at"]
        self._resampling.set_state(tensors["training.resampling"])
        self._silent_steps.copy_(tensors["training.silent_steps"])
        prefix = "training.batches."
        self._batches.restore({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        columns = [tensors[f"history.{name}"].tolist() for name in TrainingRecord._fields]
        self.records = [TrainingRecord(*record) for record in zip(*columns, strict=True)]
        for name, weight in self._trained.items():
            state = {key: tensors[f"adam.{name}.{key}"] for key in ADAM_STATE if f"adam.{name}.{key}" in tensors}
            self._optimizer.state[weight] = {key: tensor.to(weight.device) for key, tensor in state.items()}

    def save(self) -> Path:
        """Write a checkpoint to the trainer's folder, atomically; of several processes, the main one does.

        Raises
        ------
        ValueError
            The trainer has no folder.
        NonFiniteLossError
            A weight is NaN or infinite; the checkpoint that is there stays.
        """
        if self.folder is None:
            raise InputError("this trainer has no folder; make it with Trainer(..., folder=...)")
        broken = [name for name, weight in self.sae.named_parameters() if not weight.isfinite().all()]
        if broken:
            what = f"{', '.join(broken)} became NaN or infinite by step {self.n_steps_done}"
            raise NonFiniteLossError(self._what_happened(what, self.records[-1]))
        if not self._together.is_main:
            return self.folder / CHECKPOINT
        tensors, header = describe(self.sae)
        tensors |= {f"adam.{name}.{key}": tensor for name, state in self._moments() for key, tensor in state.items()}
        tensors |= {f"history.{name}": torch.from_numpy(column) for name, column in self.history.items()}
        tensors |= {f"training.batches.{name}": tensor for name, tensor in self._batches.state().items()}
        tensors |= {
            "training.resampling": self._resampling.get_state(),
            "training.silent_steps": self._silent_steps,
        }
        header["training"] = {
            "config": asdict(self.config),
            "knobs": {knob: getattr(self, knob) for knob in KNOBS},
            "seconds": self.seconds,
            "resampled_at": self._resampled_at,
            "fingerprint": self._fingerprint,
            "device": str(self.sae.W_enc.device),
        }
        return write_tensors(self.folder / CHECKPOINT, tensors, header)

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
        start = time.perf_counter()
        done = self.n_steps_done
        lr = self.lr * self._lr_schedule(done)
        l1 = self._l1_now(done)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        batch = self._batches.draw()
        sums, fired = self._forward_backward(batch, l1)
        self._silent_steps = (self._silent_steps + 1).masked_fill_(fired, 0)
        record = self._record(done + 1, sums, batch.size, l1, lr)
        if not math.isfinite(record.loss):
            what = f"the loss is {record.loss} at step {record.step}; the weights are those from before this step"
            raise NonFiniteLossError(self._what_happened(what, record))
        self.sae.project_decoder_gradient()
        self._update()
        self.sae.normalize_decoder()
        if record.n_dead and self._resamples_after(record.step):
            record = record._replace(n_resampled=record.n_dead)
            self._resample(record.step)
        self.records.append(record)
        self.seconds += time.perf_counter() - start
        return record

    @torch.no_grad()
    def measure(self, x: Tensor) -> TrainingRecord:
        """What `step` would record of ``x`` ``(n, d_in)`` as things stand, without learning from it.

        The loss is that of the next step, with the L1 coefficient on its way up if it is; ``n_dead`` is of training.
        """
        W, done = self.sae.W_enc, self.n_steps_done
        x = x.to(device=W.device, dtype=W.dtype)
        l1 = self._l1_now(done)
        result = self.sae.training_pass(x, l1_coefficient=l1, aux_coefficient=self.aux_coefficient)
        return self._record(done, _sums(x, result), len(x), l1, self.lr * self._lr_schedule(done))

    def _l1_now(self, done: int) -> float:
        return self.l1_coefficient * min(1.0, (done + 1) / max(1, self.config.l1_warmup_steps))

    def __iter__(self) -> Iterator[TrainingRecord]:
        """Steps up to ``config.n_steps``, each as it is taken."""
        while self.n_steps_done < self.config.n_steps:
            yield self.step()

    def run(self, *, progress: bool = True) -> "Trainer":
        """Train up to ``config.n_steps`` with a progress bar.

        Interrupted, or told to terminate (SIGTERM), it finishes the step it is in, writes a checkpoint where it has a
        folder, and keeps what it has: run again to go on. Of several processes, one that is interrupted stops all at
        the same step. Raises like `step`.
        """
        from tqdm.auto import tqdm

        every = self.config.checkpoint_every
        first, last = self.n_steps_done, self.config.n_steps
        stopped = False
        hidden = not (progress and self._together.is_main)
        with (
            self._held_signals as held,
            tqdm(self, initial=first, total=last, desc="training", unit="step", disable=hidden) as bar,
        ):
            for record in bar:
                if record.step % 20 == 0:
                    bar.set_postfix(L0=f"{record.l0:.0f}", FVU=f"{record.fvu:.3f}", gamma=f"{record.gamma:.3f}")
                if self.folder is not None and every and record.step % every == 0 and record.step < last:
                    self.save()
                stopped = bool(held.asked) if self._together.share.n_processes == 1 else self._all_stop
                if stopped:
                    break
        if self.folder is not None:
            self.save()
        if signal.SIGTERM in held.asked:
            raise SystemExit(128 + signal.SIGTERM)
        if stopped:
            raise KeyboardInterrupt(f"training stopped after step {self.n_steps_done}; run() goes on from there")
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

    def _update(self) -> None:
        """Adam's step, on the gradients that the SAE's parameters hold."""
        for name, weight in self._trained.items():
            parameter = self.sae.get_parameter(name)
            if parameter.data_ptr() != weight.data_ptr():
                raise RuntimeError("the SAE was moved or converted while it trained; make a new Trainer for it")
            weight.grad = None if parameter.grad is None else self.sae.features_first(name, parameter.grad)
        self._optimizer.step()

    def _moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Adam's state by parameter name, features first."""
        for name, weight in self._trained.items():
            yield name, self._optimizer.state[weight]

    def _lr_schedule(self, done: int) -> float:
        rising = min(1.0, (done + 1) / max(1, self.config.lr_warmup_steps))
        left = self.config.n_steps - done
        falling = min(1.0, max(0, left) / self.config.lr_decay_steps) if self.config.lr_decay_steps else 1.0
        returning = 1.0
        if self._resampled_at is not None and self.config.resample_recovery_steps:
            share = min(1.0, (done - self._resampled_at) / self.config.resample_recovery_steps)
            returning = 0.1 + 0.9 * (1 - math.cos(math.pi * share)) / 2
        return rising * falling * returning

    def _resamples_after(self, step: int) -> bool:
        every = self.config.resample_every
        learns = self.sae.W_enc.requires_grad  # else there is no feature that could live again
        return learns and every > 0 and step % every == 0 and step <= 0.75 * self.config.n_steps

    def _resample(self, step: int) -> None:
        dead = self._silent_steps >= self.config.dead_after_steps
        x = torch.cat([self._whole_batch() for _ in range(RESAMPLING_BATCHES)])
        resample_dead_features(self.sae, dead, x, moments=dict(self._moments()), generator=self._resampling)
        self._silent_steps[dead] = 0
        self._resampled_at = step

    def _forward_backward(self, batch: Batch, l1: float) -> tuple[Tensor, Tensor]:
        """Give every parameter the gradient of the whole batch's loss; what `_record` needs, and which features fired.

        A process computes on its own rows, and all add up.
        """
        W = self.sae.W_enc
        self.sae.zero_grad()
        sums, fired = W.new_zeros(8 + self.sae.d_in), torch.zeros_like(W[0], dtype=torch.bool)
        if len(batch.x):
            x = batch.x.to(device=W.device, dtype=W.dtype)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._precision == "bfloat16"):
                result = self.sae.training_pass(x, l1_coefficient=l1, aux_coefficient=self.aux_coefficient)
            loss = result.loss.total
            torch.autograd.backward(loss if len(x) == batch.size else loss * (len(x) / batch.size))
            sums, fired = _sums(x, result), result.fired
        if self._together.share.n_processes > 1:
            gradients = {}
            for name in self._trained:
                parameter = self.sae.get_parameter(name)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients[name] = self.sae.features_first(name, parameter.grad)
            fired, stops = fired.to(sums), sums.new_full((1,), len(self._held_signals.asked))
            self._together.add_up([sums, fired, stops, *gradients.values()])
            self._all_stop = bool(stops)
        return sums, fired > 0

    def _whole_batch(self) -> Tensor:
        """The next batch with the rows of all processes."""
        batch = self._batches.draw()
        x = batch.x.to(device=self.sae.W_enc.device, dtype=self.sae.W_enc.dtype)
        if self._together.share.n_processes == 1:
            return x
        whole = x.new_zeros(batch.size, self.sae.d_in)
        whole[batch.places.to(x.device)] = x
        self._together.add_up([whole])
        return whole

    @torch.no_grad()
    def _record(self, step: int, sums: Tensor, n: int, l1: float, lr: float) -> TrainingRecord:
        *losses, xx, xe, ee = sums[:8] / n
        mean = sums[8:] / n
        variance = xx - mean.dot(mean)
        numbers = [
            *losses,
            ee / variance,
            (xx + 2 * xe + ee) / (xx + xe),  # of r = x + e, the reconstruction
            (self._silent_steps >= self.config.dead_after_steps).count_nonzero(),
        ]
        # One transfer, where the SAE is on a GPU.
        total, reconstruction, sparsity, auxiliary, l0, fvu, gamma, n_dead = torch.stack(numbers).tolist()
        return TrainingRecord(
            step=step, loss=total, reconstruction=reconstruction, sparsity=sparsity, auxiliary=auxiliary,
            l0=l0, fvu=fvu, gamma=gamma, n_dead=int(n_dead), n_resampled=0,
            l1_coefficient=l1, aux_coefficient=self.aux_coefficient, lr=lr, gate_threshold=self.gate_threshold,
        )  # fmt: skip

    def _what_happened(self, what: str, record: TrainingRecord) -> str:
        knobs = ", ".join(f"{knob}={getattr(record, knob):g}" for knob in KNOBS)
        checkpoint = self.folder / CHECKPOINT if self.folder is not None else None
        kept = f" The last good checkpoint is {checkpoint}." if checkpoint is not None and checkpoint.exists() else ""
        return f"{what}. Knobs: {knobs}.{kept} Try a lower lr."


@torch.no_grad()
def _sums(x: Tensor, result: TrainingPass) -> Tensor:
    """Over a batch ``(n, d_in)``: each loss term, features on, x.x, x.e and e.e with the residual e; then x itself."""
    loss, n = result.loss, len(x)
    means = torch.stack([loss.total, loss.reconstruction, loss.sparsity, loss.auxiliary, result.l0])
    flat, residual = x.flatten(), result.residual.to(x.dtype).flatten()
    products = torch.stack([flat.dot(flat), flat.dot(residual), residual.dot(residual)])
    return torch.cat([means.to(x.dtype) * n, products, x.sum(dim=0)])


class _HeldSignals:
    """Interrupts (Ctrl-C, Jupyter's stop button) and requests to terminate (a cluster's scheduler), held back so that
    they cannot tear a step; the first of each only: whoever asks again is in a hurry.
    """

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_HeldSignals":
        self.asked.clear()
        self._before.clear()
        if threading.current_thread() is threading.main_thread():  # no other may, and none arrives in another
            for number in (signal.SIGINT, signal.SIGTERM):
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                self._before[number] = signal.signal(number, self._hold_back) or default
        return self

    def _hold_back(self, number: int, frame: object) -> None:
        self.asked.add(number)
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
