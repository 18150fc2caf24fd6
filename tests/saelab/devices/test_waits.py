"""How often a training step makes the CPU wait for the device, which a GPU would spend idle."""

from collections import Counter
from typing import Any

import pretend_device  # type: ignore[import-not-found]
import pytest
import torch
from saes import DEVICE, an_sae, inputs  # type: ignore[import-not-found]

from saelab import ARCHITECTURES, Trainer, TrainingConfig
from saelab.evaluation.metrics import FVU, L0, L1, CosineSimilarity, FeatureDensity

DENSE, SPARSE = "cuda", "cuda, sparse"
WAITS = {
    # architecture: in a dense step, in a sparse step
    "standard": (2, 3),
    "gated": (2, 3),
    "gated, untied_encoders": (2, 3),
    "rescale and shift": (2, 3),
    "jumprelu": (2, 3),
    "topk": (3, 3),
    "topk, some dead": (4, 4),
    "batchtopk": (4, 4),
    "batchtopk, some dead": (5, 5),
}
"""Two in every step: for the batch (its rows, or their numbers), and for the record."""


def test_every_architecture_has_its_number_of_waits() -> None:
    assert {an_sae(name.partition(", some ")[0]).architecture for name in WAITS} == set(ARCHITECTURES)


@pytest.mark.parametrize("rules", [DENSE, SPARSE], indirect=True)
@pytest.mark.parametrize("name", WAITS)
def test_a_training_step_waits_for_the_device_as_often_as_said(rules: str, name: str) -> None:
    expected = WAITS[name][rules == SPARSE]
    waits = waits_of_a_step(name, DEVICE)
    assert waits.total() == expected, told(waits, expected)


@pytest.mark.parametrize("rules", [DENSE], indirect=True)
def test_activations_on_the_cpu_cost_no_more_waits(rules: str) -> None:
    waits = waits_of_a_step("gated", "cpu")
    assert waits.total() == WAITS["gated"][0], told(waits, WAITS["gated"][0])


def waits_of_a_step(name: str, side: str) -> Counter[str]:
    architecture, _, dead = name.partition(", some ")
    sae = an_sae(architecture, DEVICE)
    if dead:
        with torch.no_grad():
            sae.get_parameter("b_enc")[:3] = -1e3
    config = TrainingConfig(batch_size=64, resample_every=0, dead_after_steps=1 if dead else 100)
    trainer = Trainer(sae, inputs(512).to(side), config)
    for _ in range(2):  # until what is kept from step to step is there
        trainer.step()
    with pretend_device.counted_waits() as waits:
        record = trainer.step()
    assert (record.n_dead > 0) == bool(dead)
    counted: Counter[str] = waits
    return counted


def told(waits: Counter[str], expected: int) -> str:
    lines = "".join(f"\n{count} x {line}" for line, count in waits.items())
    return f"{waits.total()} waits instead of {expected}:{lines}"


@pytest.mark.parametrize("rules", [DENSE], indirect=True)
def test_metrics_wait_for_the_device_only_when_they_are_computed(rules: str) -> None:
    x = inputs().to(DEVICE)
    for metric in (L0, L1, FeatureDensity, FVU, CosineSimilarity):
        stream: Any = metric()
        batch = (x, x.relu()) if metric in (FVU, CosineSimilarity) else (x.relu(),)
        with pretend_device.counted_waits() as waits:
            stream.add_batch(*batch)
            stream.add_batch(*batch)
        assert not waits, waits
        stream.compute()
