"""Train one SAE at each value of its sparsity knob, and keep them all in one table."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations, batches_of, fingerprint
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.metrics import METRICS, evaluate
from saelab.files.sae_files import describe, rebuild
from saelab.files.tensor_files import FORMAT_VERSION, read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder
from saelab.training.checkpoints import CHECKPOINT
from saelab.training.runs import TrainingConfig
from saelab.training.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    make_sae: Callable[[], SparseAutoencoder] | Sequence[Callable[[], SparseAutoencoder]],
    activations: Activations,
    sparsity: Iterable[float] | None = None,
    *,
    config: TrainingConfig | None = None,
    test: Tensor | ActivationStore | None = None,
    folder: str | os.PathLike[str] = "sweep",
    progress: bool = True,
    **knobs: float,
) -> "pd.DataFrame":
    """Train a fresh SAE from each ``make_sae`` at each value of its sparsity knob, and evaluate it.

    Each SAE is a file in ``folder``, named after its content: what `make_sae` gives, the knobs, the configuration and
    the activations. Called again, the same sweep reads what is there; interrupted, it goes on within the SAE where it
    was.

    Parameters
    ----------
    make_sae
        Gives a new, untrained SAE each time, such as ``lambda: GatedSAE(256, 2048)``; or several such.
    activations
        As for `Trainer`; of an iterable of batches the content cannot be known, so let it have a folder of its own.
    sparsity
        Values of the knob that trades sparsity for reconstruction, at least one: ``l1_coefficient`` of standard and
        gated SAEs, ``l0_coefficient`` of JumpReLU, ``k`` of TopK (`SparseAutoencoder.sparsity_knob`). None for SAEs
        without such a knob (rescale and shift), which are trained once.
    config
        Applies to every run. Defaults to ``TrainingConfig()``.
    test
        What to evaluate on, ``(n, d_in)``; better not what was trained on. Defaults to ``activations``, which must
        then be no iterable.
    progress
        Show a bar for the sweep and one for each run.
    knobs
        Further knobs of every run, by name, as for `Trainer`.

    Returns
    -------
    DataFrame
        A row an SAE: ``architecture``, ``preset``, ``ablations``, ``d_sae``, the sparsity knob under its name (NaN for
        architectures with another), the metrics of `evaluate`, ``seconds`` of training, and ``path``, which
        `saelab.load` takes.

    Raises
    ------
    ValueError, TypeError, saelab.NonFiniteLossError
        Like `Trainer` and `evaluate`; values for an SAE without a sparsity knob, or none for one that has one. SAEs
        that are done stay done.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    makers = [make_sae] if callable(make_sae) else list(make_sae)
    values = None if sparsity is None else [float(value) for value in sparsity]
    if not makers or values == []:
        raise InputError("a sweep needs at least one make_sae, and at least one value of its sparsity knob")
    runs = [(make, value) for make in makers for value in _values_for(make(), values)]
    held_out = activations if test is None else test
    if not isinstance(held_out, Tensor | ActivationStore):
        raise InputTypeError(
            f"test must be a torch.Tensor or an ActivationStore to evaluate on, not {type(held_out).__name__}"
        )
    config = config or TrainingConfig()
    d_in = makers[0]().d_in
    trained_on = batches_of(activations, d_in, batch_size=1, seed=0).fingerprint()
    tested_on = trained_on if test is None else batches_of(test, d_in, batch_size=1, seed=0).fingerprint()
    content = {"version": FORMAT_VERSION, "activations": trained_on, "test": tested_on}
    rows = []
    for make, value in tqdm(runs, desc="sweep", unit="SAE", disable=not progress):
        sae = make()
        swept = {} if value is None or sae.sparsity_knob is None else {sae.sparsity_knob.name: value}
        of_run = knobs | swept
        shown = "".join(f"-{name}={number:g}" for name, number in swept.items())
        path = Path(folder) / f"{sae.architecture}{shown}-{_digest(sae, config, of_run, content)}.safetensors"
        if not path.exists():
            _train(sae, config, of_run, swept, activations, held_out, path, progress=progress)
        rows.append({**_row(path, held_out), "path": str(path)})
    return pd.DataFrame(rows)


def _row(path: Path, test: Tensor | ActivationStore) -> dict[str, Any]:
    """The row of a trained SAE, as its file keeps it; a metric that is newer than the file is measured now."""
    tensors, header = read_tensors(path)
    row: dict[str, Any] = header["row"]
    if set(METRICS) - row.keys():
        measured = evaluate(rebuild(path, tensors, header), test).as_dict()
        header["row"] = row = {**row, **measured}
        write_tensors(path, tensors, header)
    return row


def _values_for(sae: SparseAutoencoder, values: Sequence[float] | None) -> Sequence[float | None]:
    """What a sweep tries for one kind of SAE."""
    knob = sae.sparsity_knob
    if knob is None and values is not None:
        raise InputError(f"a {sae.label} SAE has no knob for sparsity; sweep it by itself, and leave the values out")
    if knob is not None and values is None:
        raise InputError(f"a sweep of a {sae.label} SAE needs values of its {knob.name}, such as {knob.default:g}")
    return [None] if values is None else values


def _digest(sae: SparseAutoencoder, config: TrainingConfig, knobs: Mapping[str, float], content: dict[str, Any]) -> str:
    """A name for all that decides how the trained SAE comes out."""
    tensors, header = describe(sae)
    weights = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    recipe = json.dumps([header, weights, asdict(config), dict(knobs), content], sort_keys=True)
    return hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()


def _train(
    sae: SparseAutoencoder,
    config: TrainingConfig,
    knobs: Mapping[str, float],
    swept: Mapping[str, float],
    activations: Activations,
    test: Tensor | ActivationStore,
    path: Path,
    *,
    progress: bool,
) -> None:
    unfinished = path.with_suffix(".unfinished")
    if (unfinished / CHECKPOINT).exists():
        trainer = Trainer.resume(unfinished, activations, device=sae.W_enc.device)
    else:
        trainer = Trainer(sae, activations, config, folder=unfinished, **knobs)
    trainer.run(progress=progress)
    sae = trainer.sae
    tensors, header = describe(sae)
    settings = sae.settings()
    header["row"] = {
        "architecture": sae.architecture,
        "preset": sae.preset,
        "ablations": ", ".join(settings.get("ablations", ())),
        "d_sae": sae.d_sae,
        **swept,
        **evaluate(sae, test).as_dict(),
        "seconds": trainer.seconds,
    }
    write_tensors(path, tensors, header)
    (unfinished / CHECKPOINT).unlink()
    unfinished.rmdir()
