"""Measure activation stores: `python tests/benchmarks/store.py [--gigabytes 4] [--limit 1.5]`, on an idle machine.

Prints tokens per second of harvesting the embedded model beside those of its plain forward pass, in turns; and how a
process that is limited to 1.5 GB of memory, page cache included, reads a store of 4 GB in shuffled order.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import saelab
from saelab.data.hooks import hook_batches
from saelab.data.shards import ShardWriter

D_IN = 256
READ = """
import resource, sys, time
from pathlib import Path
import torch
from saelab.data.batches import batches_of
from saelab.data.shards import StoredRows, open_shards, read_index
folder = Path(sys.argv[1])
start = time.perf_counter()
rows = StoredRows(open_shards(folder, read_index(folder)), "x")
opened = time.perf_counter() - start
batches = batches_of(rows, rows.shape[1], batch_size=1024, seed=0)
seen = torch.zeros(len(rows), dtype=torch.bool)
for epoch in range(2):
    start = time.perf_counter()
    for _ in range(len(rows) // 1024):
        seen[batches.draw().x[:, 0].long()] = True
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"opened in {opened:.2f} s; epoch {epoch + 1}: {len(rows) / seconds:,.0f} rows/s, "
          f"{1e3 * seconds / (len(rows) // 1024):.2f} ms a batch of 1024; all rows seen: {bool(seen.all())}; "
          f"peak resident {peak:.2f} GiB", flush=True)
"""


def harvesting(folder: Path) -> None:
    model = saelab.load_language_model()
    texts = saelab.load_text()[:640]
    batches = [
        (ids, int(mask.sum())) for _, ids, mask in hook_batches(model, ["blocks.0.hook_resid_pre"], texts, 128, 32)
    ]
    n_tokens = sum(n for _, n in batches)

    @torch.no_grad()
    def forward() -> None:
        for ids, _ in batches:
            model(ids)

    def harvest(layer: int, store: Path | None = None) -> None:
        saelab.harvest(model, f"blocks.{layer}.hook_resid_post", texts, store=store, progress=False)
        if store is not None:
            shutil.rmtree(store)

    runs: dict[str, Callable[[], None]] = {
        "plain forward pass": forward,
        "harvest the last layer, in memory": lambda: harvest(3),
        "harvest the last layer, to disk": lambda: harvest(3, folder / "harvested"),
        "harvest layer 1, to disk": lambda: harvest(1, folder / "harvested"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(7):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain forward pass"])
    print(f"{n_tokens:,} tokens of the embedded model, medians of 7 in turns:")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<36} {n_tokens / median:>8,.0f} tokens/s  {plain / median:5.2f} of plain")


def reading(folder: Path, gigabytes: float, limit: float) -> None:
    writer = ShardWriter(folder / "large", {"what": "random"})
    n, done, start = int(gigabytes * 2**30 / (4 * D_IN)), 0, time.perf_counter()
    while done < n:
        x = torch.randn(min(65536, n - done), D_IN)
        x[:, 0] = torch.arange(done, done + len(x))
        writer.add({"x": x})
        done += len(x)
    writer.finish()
    print(f"wrote {gigabytes} GiB in {time.perf_counter() - start:.0f} s")
    group = _memory_group(limit)
    print(f"reading it within {limit} GiB, page cache included:" if group else "no cgroup here, so without a limit:")
    subprocess.run(
        [sys.executable, "-c", READ, str(folder / "large")],
        check=True,
        preexec_fn=(lambda: _join(group)) if group else None,
    )


def _memory_group(limit: float) -> Path | None:
    """A control group with a memory limit, if this user may create one."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"saelab-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(int(limit * 2**30)))
        except OSError:
            continue
        return group
    return None


def _join(group: Path | None) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=1.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder), arguments.gigabytes, arguments.limit)
        harvesting(Path(folder))


if __name__ == "__main__":
    main()
