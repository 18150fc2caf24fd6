"""Train one SAE for each L1 coefficient, and keep them all in one table."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.batches import Activations, batches_of, fingerprint
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.metrics import evaluate
from saelab.files.sae_files import describe
from saelab.files.tensor_files import FORMAT_VERSION, read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder
from saelab.training.checkpoints import CHECKPOINT
from saelab.training.trainer import Trainer, TrainingConfig

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    make_sae: Callable[[], SparseAutoencoder] | Sequence[Callable[[], SparseAutoencoder]],
    activations: Activations,
    l1_coefficients: Iterable[float],
    *,
    config: TrainingConfig | None = None,
    test: Tensor | ActivationStore | None = None,
    folder: str | os.PathLike[str] = "sweep",
    progress: bool = True,
) -> "pd.DataFrame":
    """Train a fresh SAE from each ``make_sae`` at each L1 coefficient, and evaluate it.

    Each SAE is a file in ``folder``, named after its content: what `make_sae` gives, the configuration and the
    activations. Called again, the same sweep reads what is there; interrupted, it goes on within the SAE where it was.

    Parameters
    ----------
    make_sae
        Gives a new, untrained SAE each time, such as ``lambda: GatedSAE(256, 2048)``; or several such.
    activations
        As for `Trainer`; of an iterable of batches the content cannot be known, so let it have a folder of its own.
    l1_coefficients
        At least one.
    config
        Of every run, but for ``l1_coefficient``. Defaults to ``TrainingConfig()``.
    test
        What to evaluate on, ``(n, d_in)``; better not what was trained on. Defaults to ``activations``, which must
        then be no iterable.
    progress
        Show a bar for the sweep and one for each run.

    Returns
    -------
    DataFrame
        A row an SAE: ``architecture``, ``preset``, ``ablations``, ``d_sae``, ``l1_coefficient``, the metrics of
        `evaluate`, ``seconds`` of training, and ``path``, which `saelab.load` takes.

    Raises
    ------
    ValueError, TypeError, saelab.NonFiniteLossError
        Like `Trainer` and `evaluate`; SAEs that are done stay done.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    makers = [make_sae] if callable(make_sae) else list(make_sae)
    penalties = [float(l1) for l1 in l1_coefficients]
    if not makers or not penalties:
        raise InputError("a sweep needs at least one make_sae and one L1 coefficient")
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
    runs = [(make, l1) for make in makers for l1 in penalties]
    for make, l1 in tqdm(runs, desc="sweep", unit="SAE", disable=not progress):
        sae, run = make(), replace(config, l1_coefficient=l1)
        path = Path(folder) / f"{sae.architecture}-l1={l1:g}-{_digest(sae, run, content)}.safetensors"
        if not path.exists():
            _train(sae, run, activations, held_out, path, progress=progress)
        rows.append({**read_tensors(path)[1]["row"], "path": str(path)})
    return pd.DataFrame(rows)


def _digest(sae: SparseAutoencoder, config: TrainingConfig, content: dict[str, Any]) -> str:
    """Of all that decides how the trained SAE comes out."""
    tensors, header = describe(sae)
    weights = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    recipe = json.dumps([header, weights, asdict(config), content], sort_keys=True)
    return hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()


def _train(
    sae: SparseAutoencoder,
    config: TrainingConfig,
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
        trainer = Trainer(sae, activations, config, folder=unfinished)
    trainer.run(progress=progress)
    sae = trainer.sae
    tensors, header = describe(sae)
    settings = sae.settings()
    header["row"] = {
        "architecture": sae.architecture,
        "preset": sae.preset,
        "ablations": ", ".join(settings.get("ablations", ())),
        "d_sae": sae.d_sae,
        "l1_coefficient": config.l1_coefficient,
        **evaluate(sae, test).as_dict(),
        "seconds": trainer.seconds,
    }
    write_tensors(path, tensors, header)
    (unfinished / CHECKPOINT).unlink()
    unfinished.rmdir()
