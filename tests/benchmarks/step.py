"""Measure one training step in milliseconds, sparse and dense, at several densities, and the floor, one matmul.

The densities are set by the gate's bias, on Gaussian activations. `saelab.sae.sparse.DENSE_ABOVE` was chosen from
these measurements.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

import saelab
from saelab.sae import sparse, workers

D_IN, D_SAE, BATCH = 256, 2048, 1024
ROUNDS = 15


def milliseconds(*calls: Callable[[], object]) -> list[float]:
    """Median of each, measured in turns, so that other load on the machine affects all of them alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 2):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(kept[2:]) for kept in times]


def main() -> None:
    print(f"d_in {D_IN}, d_sae {D_SAE}, batch {BATCH}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    x = torch.randn(BATCH, D_IN)
    for architecture in ("gated", "standard"):
        for density in (0.005, 0.015, 0.03, 0.05, 0.08, 0.12, 0.2):
            sae = saelab.ARCHITECTURES[architecture](D_IN, D_SAE)
            bias = statistics.NormalDist().inv_cdf(density)
            with torch.no_grad():
                # u is about standard normal with an encoder of unit norm
                sae.W_enc.copy_(sae.W_dec.T)
                sae.get_parameter("b_enc" if architecture == "standard" else "b_gate").fill_(bias)

            def step(share: float, sae: saelab.SparseAutoencoder = sae) -> None:
                sparse.DENSE_ABOVE = share
                with workers.without_openmp():  # as a Trainer does
                    sae.gradient_pass(x, {"l1_coefficient": 1.0, "aux_coefficient": 1.0})
                sae.zero_grad()

            W_enc = sae.W_enc.detach()
            floor, fast, dense = milliseconds(partial(torch.mm, x, W_enc), partial(step, 1.0), partial(step, -1.0))
            print(
                f"{architecture:9} density {density:5.1%}: sparse {fast:5.1f} ms, dense {dense:5.1f} ms, "
                f"ratio {dense / fast:4.1f}; one encoder matmul {floor:4.1f} ms"
            )


if __name__ == "__main__":
    main()
