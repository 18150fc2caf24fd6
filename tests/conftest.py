"""What every test stands on: no network, fixed seeds, one small model with its activations made once."""

import ipaddress
import os
import socket
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import saelab
from saelab.activations import ActivationStore

# The same examples every time, and no verdict on how long one takes: machines differ.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """A test that reaches beyond this machine fails: everything must work offline."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> Any:
    return saelab.load_language_model()


@pytest.fixture(scope="session")
def store(model: Any) -> ActivationStore:
    return saelab.harvest(model, HOOK, saelab.load_text()[:60], n_tokens=4096, progress=False)
