"""Interrupts wait for the step, and nothing is lost."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from saelab import GatedSAE, StandardSAE, Trainer, TrainingConfig, superposition
from saelab.training.interrupts import HeldSignals

X = superposition(32, 16, 0.06, n_samples=4096).activations
CONFIG = TrainingConfig(n_steps=200, batch_size=256, lr=3e-3)


def test_run_goes_on_in_a_thread_after_it_ran_in_the_main_one() -> None:
    trainer = Trainer(StandardSAE(16, 64), X, replace(CONFIG, n_steps=2)).run(progress=False)
    trainer.config = replace(trainer.config, n_steps=4)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(trainer.run, progress=False).result()
    assert trainer.n_steps_done == 4


def test_an_interrupt_waits_for_the_step_and_run_goes_on_from_there() -> None:
    whole, parts = GatedSAE(16, 64), GatedSAE(16, 64)
    Trainer(whole, X, CONFIG).run(progress=False)
    trainer = Trainer(parts, X, CONFIG)
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt, match=r"after step \d+; run\(\) goes on"):
        trainer.run(progress=False)
    timer.join()
    assert 0 < trainer.n_steps_done < 200
    trainer.run(progress=False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True))


def test_only_the_first_of_each_signal_is_held() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), HeldSignals() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.asked == {signal.SIGINT}
        signal.raise_signal(signal.SIGINT)  # in a hurry
    assert signal.getsignal(signal.SIGINT) is before


def test_being_told_to_terminate_ends_the_process_after_the_step() -> None:
    trainer = Trainer(StandardSAE(16, 64), X, CONFIG)
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGTERM,))
    timer.start()
    with pytest.raises(SystemExit) as ended:
        trainer.run(progress=False)
    timer.join()
    assert ended.value.code == 128 + signal.SIGTERM and 0 < trainer.n_steps_done < 200
