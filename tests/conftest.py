"""What every test stands on: fixed seeds, one small model, text and activations made once."""

from typing import Any

import pytest
import torch

import saelab
from saelab.activations import ActivationStore

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> Any:
    return saelab.load_language_model()


@pytest.fixture(scope="session")
def store(model: Any) -> ActivationStore:
    return saelab.harvest(model, HOOK, saelab.load_text()[:60], n_tokens=4096, progress=False)
