"""Train SAEs at each value of their sparsity knob, for each seed and control, and keep them all in one table."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations, batches_of, fingerprint
from saelab.data.shards import StoredRows
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.controls import CONTROLS, NO_CONTROL
from saelab.evaluation.metrics import METRICS, evaluate
from saelab.files.sae_files import describe, rebuild
from saelab.files.tensor_files import FORMAT_VERSION, read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder
from saelab.training.checkpoints import CHECKPOINT
from saelab.training.processes import Task, train_in_processes, train_in_turn
from saelab.training.runs import TrainingConfig
from saelab.training.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd

MakeSAE = Callable[..., SparseAutoencoder]
"""Gives a new, untrained SAE; of the ``seed`` that it is called with, where a sweep has several."""


def sweep(
    make_sae: MakeSAE | Sequence[MakeSAE],
    activations: Activations,
    sparsity: Iterable[float] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    controls: Sequence[str] = (),
    config: TrainingConfig | None = None,
    test: Tensor | ActivationStore | None = None,
    n_jobs: int = 1,
    folder: str | os.PathLike[str] = "sweep",
    progress: bool = True,
    **knobs: float,
) -> "pd.DataFrame":
    """Train a fresh SAE from each ``make_sae`` at each value of its sparsity knob, and evaluate it.

    Each SAE is a file in ``folder``, named after its content: what `make_sae` gives, the knobs, the configuration and
    the activations. Called again, the same sweep reads what is there; interrupted or killed, it goes on within the SAEs
    where it was.

    Parameters
    ----------
    make_sae
        Gives a new, untrained SAE each time, such as ``partial(GatedSAE, 256, 2048)``; or several such.
    activations
        As for `Trainer`; of an iterable of batches the content cannot be known, so let it have a folder of its own.
    sparsity
        Values of the knob that trades sparsity for reconstruction, at least one: ``l1_coefficient`` of standard and
        gated SAEs, ``l0_coefficient`` of JumpReLU, ``k`` of TopK (`SparseAutoencoder.sparsity_knob`). None for SAEs
        without such a knob (rescale and shift), which are trained once.
    seeds
        Train each SAE once with each of these seeds, of its initialisation (``make_sae(seed=...)``) and of the order in
        which activations are drawn (instead of ``config.seed``). By default once, from ``make_sae()`` with
        ``config.seed``. `saelab.summarize` and `saelab.compare_at_l0` turn seeds into intervals.
    controls
        Train each SAE also as each of these controls, names in `saelab.CONTROLS` such as ``"frozen_decoder"``.
    config
        Applies to every run. Defaults to ``TrainingConfig()``.
    test
        What to evaluate on, ``(n, d_in)``; better not what was trained on. Defaults to ``activations``, which must
        then be no iterable.
    n_jobs
        SAEs trained at the same time, each in a process of its own with one thread; -1 takes as many as there are
        cores. With 1, SAEs are trained in turn, in this process and with all of its threads. The processes share one
        copy of the activations, which an iterable of batches does not allow.
    progress
        Show a bar, over the steps of all SAEs that are still to be trained.
    knobs
        Further knobs of every run, by name, as for `Trainer`.

    Returns
    -------
    DataFrame
        A row an SAE: ``architecture``, ``preset``, ``ablations``, ``control`` (``"none"``: trained as it is),
        ``d_sae``, the sparsity knob under its name (NaN for architectures with another), ``seed``, the metrics of
        `evaluate`, ``seconds`` of training, and ``path``, which `saelab.load` takes.

    Raises
    ------
    ValueError, TypeError
        Like `Trainer` and `evaluate`; values for an SAE without a sparsity knob, or none for one that has one; a
        control that does not exist, or of an SAE that starts from a trained one; seeds for a ``make_sae`` that takes
        none.
    saelab.NonFiniteLossError, RuntimeError
        An SAE diverged, or its process was killed. All others are trained first: SAEs that are done stay done.
    """
    import pandas as pd

    makers: list[MakeSAE] = [make_sae] if callable(make_sae) else list(make_sae)
    values = None if sparsity is None else [float(value) for value in sparsity]
    chosen = None if seeds is None else _whole_numbers(seeds)
    if not makers or values == [] or chosen == []:
        raise InputError("a sweep needs at least one make_sae, and at least one value of its sparsity knob and seed")
    if isinstance(controls, str) or not set(controls) <= CONTROLS.keys():
        raise InputError(f"controls must list any of {', '.join(CONTROLS)}, not {controls!r}")
    held_out = activations if test is None else test
    if not isinstance(held_out, Tensor | ActivationStore):
        raise InputTypeError(
            f"test must be a torch.Tensor or an ActivationStore to evaluate on, not {type(held_out).__name__}"
        )
    n_jobs = _n_processes(n_jobs)
    if n_jobs > 1 and not isinstance(activations, Tensor | ActivationStore | StoredRows):
        raise InputTypeError(
            f"processes cannot share a {type(activations).__name__} of batches; give a torch.Tensor or an "
            "ActivationStore, or train in turn with n_jobs=1"
        )
    config = config or TrainingConfig()
    members = []
    each_seed: list[int | None] = [None] if chosen is None else [*chosen]
    d_in = _make(makers[0], each_seed[0]).d_in
    trained_on = batches_of(activations, d_in, batch_size=1, seed=0).fingerprint()
    tested_on = trained_on if test is None else batches_of(test, d_in, batch_size=1, seed=0).fingerprint()
    content = {"version": FORMAT_VERSION, "activations": trained_on, "test": tested_on}
    for make in makers:
        own_values = _values_for(_make(make, each_seed[0]), values)
        for control in (NO_CONTROL, *controls):
            for value in own_values:
                for seed in each_seed:
                    members.append(_Member.of(make, control, value, seed, config, knobs, content, Path(folder)))

    missing = list({member.path: member for member in members if not member.path.exists()}.values())
    train = train_in_processes if n_jobs > 1 and len(missing) > 1 else train_in_turn
    tasks = [Task(str(member.path), config.n_steps, member) for member in missing]
    train(_train, tasks, (activations, held_out), n_jobs=n_jobs, progress=progress)
    return pd.DataFrame([member.row(held_out) for member in members])


class _Member(NamedTuple):
    """One SAE of a sweep."""

    make: MakeSAE
    control: str
    seed: int | None
    config: TrainingConfig
    knobs: Mapping[str, float]
    """All knobs that are set, the swept one too."""
    identity: Mapping[str, Any]
    """What its row begins with."""
    path: Path

    @classmethod
    def of(
        cls,
        make: MakeSAE,
        control: str,
        value: float | None,
        seed: int | None,
        config: TrainingConfig,
        knobs: Mapping[str, float],
        content: Mapping[str, Any],
        folder: Path,
    ) -> "_Member":
        sae = _make(make, seed, control)
        swept = {} if value is None or sae.sparsity_knob is None else {sae.sparsity_knob.name: value}
        knobs = {**knobs, **swept}
        config = config if seed is None else replace(config, seed=seed)
        shown = "".join(f"-{name}={number:g}" for name, number in swept.items())
        name = sae.architecture if control == NO_CONTROL else f"{sae.architecture}-{control}"
        identity = {
            "architecture": sae.architecture,
            "preset": sae.preset,
            "ablations": ", ".join(sae.settings().get("ablations", ())),
            "control": control,
            "d_sae": sae.d_sae,
            **swept,
            "seed": config.seed,
        }
        path = folder / f"{name}{shown}-{_digest(sae, config, knobs, content)}.safetensors"
        return cls(make, control, seed, config, knobs, identity, path)

    def row(self, test: Tensor | ActivationStore) -> dict[str, Any]:
        """The row of the trained SAE, as its file keeps it; a metric that is newer than the file is measured now."""
        tensors, header = read_tensors(self.path)
        row: dict[str, Any] = header["row"]
        if set(METRICS) - row.keys():
            measured = evaluate(rebuild(self.path, tensors, header), test).as_dict()
            header["row"] = row = {**row, **measured}
            write_tensors(self.path, tensors, header)
        measured = {name: row[name] for name in (*METRICS, "seconds")}
        return {**self.identity, **measured, "path": str(self.path)}


def _make(make: MakeSAE, seed: int | None, control: str = NO_CONTROL) -> SparseAutoencoder:
    """A new SAE of this seed, as this control."""
    if seed is None:
        sae = make()
    else:
        try:
            inspect.signature(make).bind(seed=seed)
        except TypeError:
            raise InputTypeError(
                f"{make!r} takes no seed, so a sweep over seeds would train the same SAE again; give one that does, "
                "such as partial(GatedSAE, 256, 2048) or lambda seed: GatedSAE(256, 2048, seed=seed)"
            ) from None
        sae = make(seed=seed)
    return sae if control == NO_CONTROL else CONTROLS[control].apply(sae)


def _whole_numbers(seeds: Iterable[int]) -> list[int]:
    listed = list(seeds)
    if any(isinstance(seed, bool) or int(seed) != seed for seed in listed) or len(set(listed)) < len(listed):
        raise InputError(f"seeds must be whole numbers, each once, such as range(5), not {listed}")
    return [int(seed) for seed in listed]


def _n_processes(n_jobs: int) -> int:
    if n_jobs == -1:
        import joblib

        return int(joblib.cpu_count())
    if n_jobs < 1:
        raise InputError(f"n_jobs must be at least 1, or -1 for all cores, not {n_jobs}")
    return n_jobs


def _values_for(sae: SparseAutoencoder, values: Sequence[float] | None) -> Sequence[float | None]:
    """What a sweep tries for one kind of SAE."""
    knob = sae.sparsity_knob
    if knob is None and values is not None:
        raise InputError(f"a {sae.label} SAE has no knob for sparsity; sweep it by itself, and leave the values out")
    if knob is not None and values is None:
        raise InputError(f"a sweep of a {sae.label} SAE needs values of its {knob.name}, such as {knob.default:g}")
    return [None] if values is None else values


def _digest(
    sae: SparseAutoencoder, config: TrainingConfig, knobs: Mapping[str, float], content: Mapping[str, Any]
) -> str:
    """A name for all that decides how the trained SAE comes out."""
    tensors, header = describe(sae)
    weights = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    recipe = json.dumps([header, weights, asdict(config), dict(knobs), content], sort_keys=True)
    return hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()


def _train(
    member: _Member, activations: Activations, test: Tensor | ActivationStore, on_step: Callable[[int], None]
) -> None:
    """Train it, from where it was left, to its file; ``on_step`` is told the number of steps done."""
    unfinished = member.path.with_suffix(".unfinished")
    sae = _make(member.make, member.seed, member.control)
    if (unfinished / CHECKPOINT).exists():
        trainer = Trainer.resume(unfinished, activations, device=sae.W_enc.device)
    else:
        trainer = Trainer(sae, activations, member.config, folder=unfinished, **member.knobs)
    trainer.run(progress=False, on_step=lambda record: on_step(record.step))
    sae = trainer.sae
    tensors, header = describe(sae)
    header["row"] = {**evaluate(sae, test).as_dict(), "seconds": trainer.seconds}
    write_tensors(member.path, tensors, header)
    (unfinished / CHECKPOINT).unlink()
    unfinished.rmdir()
