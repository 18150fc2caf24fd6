"""Train a sparse autoencoder: a plain loop whose knobs may be turned between steps."""

import contextlib
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations, Batch, batches_of
from saelab.devices import available
from saelab.errors import InputError, InputTypeError
from saelab.files.sae_files import describe
from saelab.quantities import Spread, fvu, gamma, pooling_dtype
from saelab.sae import workers
from saelab.sae.base import BatchSums, GradientPass, SparseAutoencoder
from saelab.sae.declarations import Moment
from saelab.training.adam import Adam
from saelab.training.checkpoints import CHECKPOINT, Checkpoint
from saelab.training.distributed import Together
from saelab.training.interrupts import HeldSignals
from saelab.training.resampling import resample_dead_features
from saelab.training.runs import LR, NonFiniteLossError, TrainingConfig, TrainingRecord, as_history, as_records

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

RESAMPLING_BATCHES = 8
"""Batches from which resampled features draw their new directions."""


class Trainer:
    """Train ``sae`` on ``activations`` with Adam, one step at a time.

    Its knobs are the learning rate ``lr``, the coefficients of the SAE's loss (``l1_coefficient``, ``aux_coefficient``
    of a gated SAE) and the SAE's live settings (``gate_threshold``). Each is an attribute that may be set between
    steps: ``trainer.l1_coefficient = 8``. The next step uses it and the history records it; `knobs` has all of them.

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
    knobs
        Knobs at the start, by name; the others have the defaults of the architecture.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width than the SAE, or hold NaN; a knob that the architecture does not
        have, or a value that it cannot take; with a ``folder``, an SAE of a class that a checkpoint would not bring
        back.
    FileExistsError
        ``folder`` already holds a checkpoint.

    Examples
    --------
    >>> trainer = Trainer(GatedSAE(256, 1024), store, TrainingConfig(n_steps=1000), l1_coefficient=4)
    >>> trainer.run()
    >>> trainer.history_frame().plot(x="step", y="l0")
    """

    sae: SparseAutoencoder
    config: TrainingConfig
    folder: Path | None
    records: list[TrainingRecord]
    seconds: float
    """Time spent in steps, also before a resumption."""
    lr: float

    def __init__(
        self,
        sae: SparseAutoencoder,
        activations: Activations,
        config: TrainingConfig | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        accelerator: "Accelerator | None" = None,
        **knobs: float,
    ) -> None:
        self._knobs = {**sae.knobs(), LR.name: LR}
        self.sae = sae
        self._coefficients = {term.coefficient.name: term.coefficient.default for term in sae.terms}
        self._together = Together(accelerator)
        if self._together.share.n_processes > 1 and not sae.shares_a_batch:
            raise InputError(f"a {sae.label} SAE chooses among all rows of a batch; train it in a single process")
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
        self.lr = self.config.lr
        for name, value in knobs.items():
            if name not in self._knobs:
                raise InputTypeError(self._no_such_knob(name))
            setattr(self, name, value)
        self.records = []
        self.seconds = 0.0
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
        self._adam = Adam(sae, self.config.betas)
        if not self._adam.weights:
            raise InputError("every parameter of this SAE is frozen, so there is nothing to train; leave some out")
        self._resampling = torch.Generator().manual_seed(self.config.seed)
        self._silent_steps = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_enc.device)
        self._resampled_at: int | None = None
        self._held_signals = HeldSignals()
        self._all_stop = False
        """Whether one of several processes was asked to stop; all of them know it after the same step."""

    def __getattr__(self, name: str) -> float:
        """A knob's value; only what is no ordinary attribute comes here."""
        knobs = vars(self).get("_knobs", {})
        if name not in knobs:
            raise AttributeError(f"a Trainer has no attribute {name!r}; its knobs are {', '.join(knobs)}")
        return self._coefficients[name] if name in self._coefficients else getattr(self.sae, name)

    def __setattr__(self, name: str, value: object) -> None:
        knob = vars(self).get("_knobs", {}).get(name)
        if knob is not None:
            number = knob.checked(value)
            if name in vars(self).get("_coefficients", {}):
                self._coefficients[name] = number
            elif name == LR.name:
                super().__setattr__(name, number)
            else:
                setattr(self.sae, name, number)
        elif name.startswith("_") or name in Trainer.__annotations__:
            super().__setattr__(name, value)
        else:
            raise AttributeError(self._no_such_knob(name))

    def _no_such_knob(self, name: str) -> str:
        return f"{name!r} is no knob of a {self.sae.label} SAE's training; those are {', '.join(self._knobs)}"

    @property
    def knobs(self) -> dict[str, float]:
        """Every knob as it stands, by name."""
        return {name: getattr(self, name) for name in self._knobs}

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
        the run's own where this machine has it, or with an ``accelerator`` to its device. The number of processes may
        be another than before.

        Raises
        ------
        FileNotFoundError, saelab.SAEFileError
            ``folder`` holds no checkpoint, or one that cannot be read.
        ValueError
            The activations differ from those of the run.
        """
        path = Path(folder) / CHECKPOINT
        saved = Checkpoint.read(path)
        sae = saved.sae.to(device or available(saved.device)) if accelerator is None else saved.sae
        trainer = cls(sae, activations, saved.config, accelerator=accelerator)
        trainer.folder = Path(folder)
        trainer._fingerprint = trainer._batches.fingerprint()
        if trainer._fingerprint != saved.fingerprint:
            raise InputError(f"{path}: this run used different activations; pass the original ones")
        for name, value in saved.knobs.items():
            setattr(trainer, name, value)
        trainer.seconds = saved.seconds
        trainer.records = as_records({name: column.tolist() for name, column in saved.history.items()}, sae)
        trainer._resampled_at = saved.resampled_at
        trainer._resampling.set_state(saved.resampling)
        trainer._silent_steps.copy_(saved.silent_steps)
        trainer._batches.restore(dict(saved.batches))
        trainer._adam.restore(saved.moments)
        return trainer

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
        path = self.folder / CHECKPOINT
        if not self._together.is_main:
            return path
        return Checkpoint(
            sae=self.sae,
            config=self.config,
            knobs=self.knobs,
            seconds=self.seconds,
            resampled_at=self._resampled_at,
            fingerprint=self._fingerprint,
            device=str(self.sae.W_enc.device),
            moments=self._adam.moments,
            history=self.history,
            batches=self._batches.state(),
            resampling=self._resampling.get_state(),
            silent_steps=self._silent_steps,
        ).write(path)

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
        with workers.without_openmp():
            record = self._step()
        self.records.append(record)
        self.seconds += time.perf_counter() - start
        return record

    def _step(self) -> TrainingRecord:
        done = self.n_steps_done
        lr = self.lr * self._lr_schedule(done)
        coefficients = self._coefficients_now(done)
        batch = self._batches.draw()
        if done == 0 and self.config.start_at_mean:
            self._start_at_mean(batch)
        sums, fired, observed = self._forward_backward(batch, coefficients)
        self._silent_steps.add_(1).masked_fill_(fired, 0)
        record = self._record(done + 1, sums, batch.size, coefficients, lr)
        if not math.isfinite(record.loss):
            what = f"the loss is {record.loss} at step {record.step}; the weights are those from before this step"
            raise NonFiniteLossError(self._what_happened(what, record))
        self._adam.step(lr)
        self.sae.after_update(observed)
        if record.n_dead and self._resamples_after(record.step):
            record = replace(record, n_resampled=record.n_dead)
            self._resample(record.step)
        return record

    @torch.no_grad()
    def measure(self, x: Tensor) -> TrainingRecord:
        """What `step` would record of ``x`` ``(n, d_in)`` as things stand, without learning from it.

        The loss is that of the next step, during the warm-up with the coefficients of the moment; ``n_dead`` is that of
        training.
        """
        W, done = self.sae.W_enc, self.n_steps_done
        x = x.to(device=W.device, dtype=W.dtype)
        coefficients = self._coefficients_now(done)
        with workers.without_openmp():
            sums = BatchSums.of(x, self.sae.training_pass(x, coefficients, self._moment()))
            return self._record(done, sums, len(x), coefficients, self.lr * self._lr_schedule(done))

    def _coefficients_now(self, done: int) -> dict[str, float]:
        risen = min(1.0, (done + 1) / max(1, self.config.sparsity_warmup_steps))
        return {
            name: value * risen if self._knobs[name].warms_up else value for name, value in self._coefficients.items()
        }

    def _moment(self) -> Moment:
        return Moment(self.n_steps_done, self.config.n_steps, self._silent_steps >= self.config.dead_after_steps)

    def __iter__(self) -> Iterator[TrainingRecord]:
        """Steps up to ``config.n_steps``, each as it is taken."""
        while self.n_steps_done < self.config.n_steps:
            yield self.step()

    def run(self, *, progress: bool = True, on_step: Callable[[TrainingRecord], object] | None = None) -> "Trainer":
        """Train up to ``config.n_steps`` with a progress bar; ``on_step`` is called with each record.

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
                if on_step is not None:
                    on_step(record)
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
        return as_history(self.records, self.sae)

    def history_frame(self) -> "pd.DataFrame":
        """The history as a pandas DataFrame, one row a step."""
        import pandas as pd

        return pd.DataFrame(self.history)

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
        every = self.config.resample_every_for(self.sae)
        # Where neither matrix learns, as in rescale and shift, no feature could live again.
        learns = self.sae.W_enc.requires_grad or self.sae.W_dec.requires_grad
        return learns and every > 0 and step % every == 0 and step <= 0.75 * self.config.n_steps

    def _resample(self, step: int) -> None:
        dead = self._silent_steps >= self.config.dead_after_steps
        x = torch.cat([self._whole_batch() for _ in range(RESAMPLING_BATCHES)])
        resample_dead_features(self.sae, dead, x, moments=self._adam.moments, generator=self._resampling)
        self._silent_steps[dead] = 0
        self._resampled_at = step

    @torch.no_grad()
    def _start_at_mean(self, batch: Batch) -> None:
        b_dec = self.sae.b_dec
        if not b_dec.requires_grad:
            return
        total = batch.x.to(b_dec).sum(dim=0)
        if self._together.share.n_processes > 1:
            self._together.add_up([total])
        b_dec.copy_(total / batch.size)

    def _forward_backward(
        self, batch: Batch, coefficients: dict[str, float]
    ) -> tuple[BatchSums, Tensor, Mapping[str, Tensor]]:
        """Give every parameter the gradient of the whole batch's loss; returned as in `GradientPass`.

        A process computes on its own rows, and all add up.
        """
        W = self.sae.W_enc
        self._adam.forget_gradients()
        if len(batch.x):
            x = batch.x.to(device=W.device, dtype=W.dtype)
            in_half = self._precision == "bfloat16"
            with torch.autocast(x.device.type, dtype=torch.bfloat16) if in_half else contextlib.nullcontext():
                passed = self.sae.gradient_pass(x, coefficients, self._moment(), share=len(x) / batch.size)
        else:
            zeros = functools.partial(W.new_zeros, dtype=pooling_dtype(W))
            spread = Spread(zeros(()), zeros(self.sae.d_in), zeros(()))
            none = BatchSums(zeros(3 + len(self.sae.terms)), zeros(3), spread)
            passed = GradientPass(none, torch.zeros_like(W[0], dtype=torch.bool), {})
        sums, fired, observed = passed
        if self._together.share.n_processes > 1:
            gradients = {}
            for name in self._adam.weights:
                parameter = self.sae.get_parameter(name)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients[name] = self.sae.features_first(name, parameter.grad)
            counts, stops = fired.to(W), W.new_full((1,), len(self._held_signals.asked))
            spreads = Spread(*map(self._together.place, sums.spread))
            self._together.add_up([sums.means, sums.products, *spreads, counts, stops, *gradients.values()])
            sums = sums._replace(spread=spreads.joined())
            fired, self._all_stop = counts > 0, bool(stops)
        return sums, fired, observed

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
    def _record(self, step: int, sums: BatchSums, n: int, coefficients: dict[str, float], lr: float) -> TrainingRecord:
        n_dead = (self._silent_steps >= self.config.dead_after_steps).count_nonzero()
        # One transfer, where the SAE is on a GPU.
        others = torch.stack([sums.spread.squares, n_dead.to(sums.means)])
        *summed, dead = torch.cat([sums.means, sums.products, others]).tolist()
        l0, total, reconstruction, *terms, rr, xr, ee, variance = (part / n for part in summed)
        return TrainingRecord(
            step=step, loss=total, reconstruction=reconstruction,
            terms=dict(zip((term.name for term in self.sae.terms), terms, strict=True)),
            l0=l0, fvu=fvu(ee, variance), gamma=gamma(rr, xr), n_dead=int(dead), n_resampled=0,
            coefficients=coefficients, lr=lr,
            settings={knob.name: getattr(self.sae, knob.name) for knob in self.sae.live_settings},
        )  # fmt: skip

    def _what_happened(self, what: str, record: TrainingRecord) -> str:
        used = {**record.coefficients, "lr": record.lr, **record.settings}
        knobs = ", ".join(f"{name}={value:g}" for name, value in used.items())
        checkpoint = self.folder / CHECKPOINT if self.folder is not None else None
        kept = f" The last good checkpoint is {checkpoint}." if checkpoint is not None and checkpoint.exists() else ""
        return f"{what}. Knobs: {knobs}.{kept} Try a lower lr."
