"""How much faster is a sweep with a process for each core than in turn? Of the tutorials' SAEs, on this machine.

    python tests/benchmarks/sweep_in_processes.py

Three ways in turns: one SAE after the other with one thread (as the tutorials set it), the same with all of torch's
threads, and ``n_jobs=-1``. The processes are there before the first turn, as in a notebook's second sweep; what it
takes to start them is told apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import saelab


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--n-steps", type=int, default=400)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=512)
    arguments = parser.parse_args()

    model = saelab.load_language_model()
    store = saelab.harvest(model, "blocks.1.hook_resid_post", saelab.load_text(), n_tokens=60_000, progress=False)
    config = saelab.TrainingConfig(n_steps=arguments.n_steps, batch_size=arguments.batch_size)
    makers: list[Callable[..., saelab.SparseAutoencoder]] = [
        partial(saelab.GatedSAE, 256, arguments.d_sae),
        partial(saelab.StandardSAE, 256, arguments.d_sae),
    ]
    n_threads = torch.get_num_threads()

    def seconds(threads: int, n_jobs: int) -> float:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            saelab.sweep(
                makers, store, [2, 4, 8, 12], config=config, test=store.activations[:4096], n_jobs=n_jobs,
                folder=Path(folder), progress=False,
            )  # fmt: skip
            return time.perf_counter() - start

    print(f"starting the processes, and their first sweep: {seconds(1, -1):.1f} s")
    ways = {"in turn, one thread": (1, 1), f"in turn, {n_threads} threads": (n_threads, 1), "n_jobs=-1": (1, -1)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.turns):
        for way, settings in ways.items():
            taken[way].append(seconds(*settings))
    medians = {way: statistics.median(times) for way, times in taken.items()}
    for way, times in taken.items():
        ratio = medians[way] / medians["n_jobs=-1"]
        print(f"{way:22} {medians[way]:6.1f} s  ({', '.join(f'{t:.1f}' for t in times)}), {ratio:.2f} times n_jobs=-1")


if __name__ == "__main__":
    main()
