"""A sweep in several processes trains the same SAEs as one in turn, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from saelab import (
    ARCHITECTURES,
    ActivationStore,
    GatedSAE,
    NonFiniteLossError,
    SAELabError,
    SparseAutoencoder,
    StandardSAE,
    TrainingConfig,
    load,
    superposition,
    sweep,
)

X = superposition(32, 16, 0.05, n_samples=40_000).activations  # more than 1 MB: joblib then keeps one copy
CONFIG = TrainingConfig(n_steps=60, batch_size=64, checkpoint_every=20)
LONG = TrainingConfig(n_steps=2000, batch_size=256, checkpoint_every=500)
both_ways = pytest.mark.parametrize("n_jobs", [1, 2])


def same_weights(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    pairs = zip(ours.path, theirs.path, strict=True)
    states = [(load(a).state_dict(), load(b).state_dict()) for a, b in pairs]
    return all(torch.equal(a[name], b[name]) for a, b in states for name in a)


@pytest.fixture
def own_class() -> Iterator[type[StandardSAE]]:
    """A class that saelab does not know, as a notebook defines it."""

    class Own(StandardSAE):
        architecture = "own"

    yield Own
    del ARCHITECTURES["own"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sweep_in_processes_trains_the_same_saes_as_one_in_turn(
    dtype: torch.dtype, own_class: type[StandardSAE], tmp_path: Path
) -> None:
    makers: list[Callable[..., SparseAutoencoder]] = [
        partial(GatedSAE, 16, 32),
        lambda seed: own_class(16, 32, seed=seed),
    ]
    x = X.to(dtype)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        in_turn = sweep(makers, x, [1.0, 4.0], seeds=(0, 1), config=CONFIG, folder=tmp_path / "1", progress=False)
    finally:
        torch.set_num_threads(n_threads)
    at_once = sweep(makers, x, [1.0, 4.0], seeds=(0, 1), config=CONFIG, folder=tmp_path / "2", n_jobs=2, progress=False)
    assert same_weights(in_turn, at_once)
    shared = [column for column in in_turn if column not in ("seconds", "path")]
    pd.testing.assert_frame_equal(in_turn[shared], at_once[shared])
    assert sorted(path.suffix for path in (tmp_path / "2").iterdir()) == [".safetensors"] * 8


def test_processes_remember_which_activations_a_store_holds(tmp_path: Path) -> None:
    none = torch.zeros(len(X))
    store = ActivationStore(X, 2.5, "some-model", "blocks.1.hook_resid_post", none, none, none)
    table = sweep(partial(GatedSAE, 16, 32), store, [1, 4], config=CONFIG, folder=tmp_path, n_jobs=2, progress=False)
    assert [load(path).trained_on for path in table.path] == [store.trained_on] * 2


@both_ways
def test_an_sae_that_diverges_does_not_take_the_others_with_it(n_jobs: int, tmp_path: Path) -> None:
    broken = X.clone()
    broken[0] = 1e30  # whether this row is drawn within so few steps depends on the seed
    config = TrainingConfig(n_steps=150, batch_size=128)
    with pytest.raises(NonFiniteLossError) as raised:
        sweep(
            partial(StandardSAE, 16, 32), broken, [1.0], seeds=range(8), config=config, test=X, folder=tmp_path,
            n_jobs=n_jobs, progress=False,
        )  # fmt: skip
    n_done = len(list(tmp_path.glob("*.safetensors")))
    assert 0 < n_done < 8
    assert any(f"{8 - n_done} of 8 SAEs failed" in note for note in raised.value.__notes__)


@both_ways
def test_a_mistake_of_the_callers_ends_the_sweep_at_once(n_jobs: int, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'aux_coeficient' is no knob of a gated SAE's training"):
        sweep(
            partial(GatedSAE, 16, 32), X, [1.0, 2.0], config=LONG, folder=tmp_path, n_jobs=n_jobs, progress=False,
            aux_coeficient=1.0,
        )  # fmt: skip
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_sae_whose_process_is_killed_fails_alone(tmp_path: Path) -> None:
    here = os.getpid()

    def make(deadly: bool) -> GatedSAE:
        if deadly and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return GatedSAE(16, 32, seed=int(deadly))

    makers: list[Callable[[], GatedSAE]] = [partial(make, False), partial(make, True)]
    with pytest.raises(SAELabError, match="its process was killed") as raised:
        sweep(makers, X, [1.0, 2.0], config=CONFIG, folder=tmp_path, n_jobs=2, progress=False)
    assert any("2 of 4 SAEs failed" in note for note in raised.value.__notes__)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    done = sweep(makers[:1], X, [1.0, 2.0], config=CONFIG, folder=tmp_path, n_jobs=2, progress=False)
    assert len(done) == 2


def test_an_interrupted_sweep_in_processes_stops_all_of_them_and_goes_on_where_they_were(tmp_path: Path) -> None:
    make, values = partial(GatedSAE, 16, 128), [1.0, 2.0, 4.0]
    whole = sweep(make, X, values, config=LONG, folder=tmp_path / "whole", n_jobs=2, progress=False)
    part = tmp_path / "part"

    def interrupt() -> None:
        while not list(part.glob("*.unfinished/*.safetensors")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="the same call goes on from there"):
        sweep(make, X, values, config=LONG, folder=part, n_jobs=2, progress=False)
    thread.join()
    n_done, left = len(list(part.glob("*.safetensors"))), list(part.glob("*.unfinished/checkpoint.safetensors"))
    assert n_done < 3 and left
    time.sleep(0.5)
    steps = [load(path) for path in left]  # whole files, that nobody writes any more
    assert len(steps) == len(list(part.glob("*.unfinished/checkpoint.safetensors")))
    again = sweep(make, X, values, config=LONG, folder=part, n_jobs=2, progress=False)
    assert same_weights(whole, again) and not list(part.glob("*.unfinished"))


@pytest.mark.skipif(sys.platform == "win32", reason="there, processes finish the SAE they are at")
def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            from functools import partial
            from saelab import GatedSAE, TrainingConfig, superposition, sweep
            X = superposition(32, 16, 0.05, n_samples=8000).activations
            config = TrainingConfig(n_steps=10**6, batch_size=64, checkpoint_every=100)
            sweep(partial(GatedSAE, 16, 32), X, [1.0, 2.0], config=config, folder={str(tmp_path / "saes")!r}, n_jobs=2)
        """),
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "saes").glob("*.unfinished/*.safetensors"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_what_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="processes cannot share a list of batches; .*n_jobs=1"):
        sweep(partial(GatedSAE, 16, 32), [X], [1.0], test=X, folder=tmp_path, n_jobs=2)
    with pytest.raises(ValueError, match="n_jobs must be at least 1, or -1 for all cores, not 0"):
        sweep(partial(GatedSAE, 16, 32), X, [1.0], folder=tmp_path, n_jobs=0)


def test_seeds_of_a_make_sae_that_takes_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"takes no seed.*lambda seed: GatedSAE\(256, 2048, seed=seed\)"):
        sweep(lambda: GatedSAE(16, 32), X, [1.0], seeds=(0, 1), folder=tmp_path)
    with pytest.raises(ValueError, match="seeds must be whole numbers, each once"):
        sweep(partial(GatedSAE, 16, 32), X, [1.0], seeds=(0, 0), folder=tmp_path)
