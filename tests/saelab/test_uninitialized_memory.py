"""No result depends on what lay in memory before: with all new memory filled with NaN, each is what it is without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import saelab
from saelab import ARCHITECTURES, ElementwiseSAE, SparseAutoencoder, StandardSAE, Trainer, TrainingConfig
from saelab.data.labelled import LabelledSet
from saelab.sae.thresholds import threshold_curves

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Within it, what `torch.empty` and `numpy.empty` return is filled: NaN, and for integers the largest."""
    numpy_empty: Any = np.empty

    def filled(shape: Any, dtype: Any = float, *rest: Any, **options: Any) -> Any:
        array = numpy_empty(shape, dtype, *rest, **options)
        if array.dtype.kind in "fiu":
            array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max)
        return array

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()  # torch.utils.deterministic.fill_uninitialized_memory is on by default
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(np, "empty", filled)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def results_of(name: str) -> dict[str, Any]:
    """What training, evaluation, curves and probes find; plain numbers."""
    cls: Any = ARCHITECTURES[name]
    sae: SparseAutoencoder = cls(8, 16, k=4) if "k" in cls.knobs() else cls(8, 16)
    with torch.no_grad():
        sae.W_enc.mul_(10)
        for parameter in ("b_enc", "b_gate"):
            if parameter in sae.feature_parameters:
                sae.get_parameter(parameter)[:2] = -1e3  # dead: to be resampled, or revived by its loss
    config = TrainingConfig(n_steps=12, batch_size=64, resample_every=6, dead_after_steps=2)
    trainer = Trainer(sae, X, config).run(progress=False)
    assert trainer.history["n_resampled"].any() == sae.W_enc.requires_grad
    found: dict[str, Any] = {f"history of {column}": values.tolist() for column, values in trainer.history.items()}
    found["measured"] = list(trainer.measure(X[:50]).as_dict().values())
    found |= {parameter: values.flatten().tolist() for parameter, values in sae.state_dict().items()}
    metrics = saelab.evaluate(sae, X, batch_size=100)
    found |= {"metrics": list(metrics.as_dict().values()), "density": metrics.density.tolist()}
    found["reconstruction"] = sae(X).flatten().tolist()
    strata = np.array(["a", "a", "b", "b"] * 10)
    labels = torch.arange(40) // 2 % 2
    data = LabelledSet(x=X[:40] + labels[:, None], labels=labels, texts=strata, blocks=strata, strata=strata)
    found["codes of texts"] = data.encoded(sae).x.flatten().tolist()
    probed = saelab.compare_representations(data, {"sae": sae}, progress=False)
    found["probes"] = probed.drop(columns=["representation", "held_out", "l0"]).to_numpy(dtype=float).flatten().tolist()
    if isinstance(sae, ElementwiseSAE):
        found["curves"] = threshold_curves(sae, X, [0.1, -0.2], natural=0.5).to_numpy().flatten().tolist()
        found["JumpReLU"] = sae.to_jumprelu()(X).flatten().tolist()
    if isinstance(sae, StandardSAE):
        found["rescaled"] = saelab.RescaleShiftSAE.from_standard(sae)(X).flatten().tolist()
    return found


@pytest.mark.parametrize("always", [1.0, 0.0, -1.0], ids=["sparse", "dense", "dense by autograd"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_results_do_not_depend_on_uninitialised_memory(
    name: str, always: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelab.sae.sparse.dense_above", lambda *arguments, **options: always)
    expected = results_of(name)
    with new_memory_is_nan():
        found = results_of(name)
    for what, numbers in found.items():
        assert np.isfinite(numbers).all(), what
        assert numbers == expected[what], what
