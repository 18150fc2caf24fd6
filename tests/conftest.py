"""Shared by all tests: no network, fixed seeds, and one small model whose activations are computed once."""

import ipaddress
import os
import runpy
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import saelab
from saelab.data.activations import ActivationStore
from saelab.data.language_models import EMBEDDED_FOLDER

# The same examples every time, and no deadline, because machines differ.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """Fail a test that connects to another machine: everything must work offline."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _interrupts() -> None:
    """Let SIGINT interrupt also a run of the suite that a shell started in the background, where it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def save_llama() -> Callable[..., Path]:
    """Write a small random Llama to a folder: RMS norm, rotary positions, gated MLP, separate unembedding."""

    def save(folder: Path, *, vocab_size: int = 8192, change: Callable[[Any], None] | None = None) -> Path:
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        network = LlamaForCausalLM(config)
        if change is not None:
            change(network)
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def model() -> Any:
    return saelab.load_language_model()


@pytest.fixture(scope="session")
def store(model: Any) -> ActivationStore:
    return saelab.harvest(model, HOOK, saelab.load_text()[:60], n_tokens=4096, progress=False)


@pytest.fixture
def winners() -> Iterator[Any]:
    """The class of an architecture of a user's own (`own_architecture.py`), registered for one test."""
    defined = runpy.run_path(str(Path(__file__).parent / "own_architecture.py"))
    yield defined["WinnersSAE"]
    del saelab.ARCHITECTURES["winners"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
