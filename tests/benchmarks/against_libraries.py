"""Compare saelab with sae-lens and dictionary_learning in one run, on the embedded model's activations: `make bench`.

The first table has a row for each library and architecture: one complete training step in milliseconds (including
the batch draw), beside one encoder matmul as the floor; L0, FVU and gamma on held-out activations; memory. Every
library weights its penalty in its own way, so each row is trained at two values of its sparsity knob, found here, that
bring its L0 to either side of 30, and FVU and gamma are interpolated between them. `build/bench` keeps the values, so
the next run starts from them. Each row has a separate process; the steps are timed in turns, so that other load on the
machine affects all rows alike, and only one process works at a time.

A second table is the same at the size of a tutorial's SAE. The third shows saelab's step over d_sae and over L0, on
Gaussian activations, with the L0 set by the gate's bias and a learning rate of 0 to keep it there. ``--device cuda``
prints only this table, for one large shape in bfloat16; ``--busy`` only the step beside another busy process.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

import saelab
from saelab.data.language_models import EMBEDDED_MODEL
from saelab.training.sparsity_search import next_value

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"
ENVIRONMENT = ROOT / "build" / "bench-libraries"
PACKAGES = ("sae-lens==6.54.12", "dictionary_learning==0.1.0")
START = {
    ("saelab", "gated"): (3.2, 2.5), ("sae-lens", "gated"): (2.5, 1.95), ("dictionary_learning", "gated"): (4.1, 3.2),
    ("saelab", "standard"): (2.4, 2.0), ("sae-lens", "standard"): (3.5, 2.8),
    ("dictionary_learning", "standard"): (2.4, 2.0),
    ("saelab", "jumprelu"): (0.5, 0.35), ("sae-lens", "jumprelu"): (0.5, 0.35),
    ("saelab", "topk"): (34, 26), ("sae-lens", "topk"): (34, 26),
    ("saelab", "batchtopk"): (34, 26), ("sae-lens", "batchtopk"): (34, 26),
}  # fmt: skip
"""The rows, and the values of their sparsity knob (an L1 or L0 coefficient, or k) at which their search starts."""
ENDS = ((20.0, 30.0), (30.0, 40.0))
"""Each row is trained once with its L0 in the first range and once in the second."""
L0_TARGET = 30.0
MOST_TRAININGS = 8
NOTES = """\
A step is what the library does by default with its logging off, and the draw of the batch. Timed at the higher L0.
saelab: resamples dead features; records losses, L0, FVU and gamma at every step.
sae-lens: L1 weighted by the decoder's free norm; auxiliary term not frozen; gradient clipped at 1; counts firings.
dictionary_learning: no clipping, no resampling, no record; Adam's betas in standard are (0.9, 0.999), which it fixes.
Elsewhere betas are (0, 0.999). FVU at L0 30 is read off the two trainings log-log, gamma against log L0.
Peak memory is that of the process, the activations mapped into it included; of which training: what came on top of the
imported library and the activations."""


class Settings(NamedTuple):
    """Settings shared by all libraries, as far as each allows it."""

    d_sae: int = 2048
    batch_size: int = 1024
    n_steps: int = 2000
    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.999)
    lr_warmup_steps: int = 50
    sparsity_warmup_steps: int = 100
    seed: int = 0
    model: str = EMBEDDED_MODEL
    layer: int = 2


class Effort(NamedTuple):
    """Settings that determine how long the run takes."""

    settings: Settings
    architectures: tuple[str, ...]
    n_tokens: int | None
    rounds: int
    steps_a_round: int
    d_saes: tuple[int, ...]
    l0s: tuple[int, ...]


ARCHITECTURES = tuple(dict.fromkeys(architecture for _, architecture in START))
FULL = Effort(Settings(), ARCHITECTURES, None, 15, 20, (1024, 2048, 4096, 8192, 16384), (10, 30, 100, 300))
SMALL = {"d_sae": 512, "batch_size": 256}
"""The size of a tutorial's SAE and batch."""
QUICK = Effort(Settings(d_sae=512, batch_size=256, n_steps=200), ARCHITECTURES, 20_000, 3, 5, (1024, 2048), (10, 100))


def libraries_python() -> Path:
    """The interpreter of an environment with the other libraries, created on first use and whenever a pin changes."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    packages = [*PACKAGES, next(line for line in lock if line.startswith("torch=="))]
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.json"
    if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8")) != packages:
        print(f"installing {', '.join(packages)} into {ENVIRONMENT}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        # They pull in a torchvision that may not match this torch, in which case transformers cannot be imported.
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        stamp.write_text(json.dumps(packages), encoding="utf-8")
    return python


class Worker:
    """A process for one library and one architecture; see `_library_worker.py`."""

    def __init__(self, library: str, architecture: str, python: Path, activations: Path, settings: Settings) -> None:
        self.library, self.architecture = library, architecture
        self._log = BUILD / f"{library}-{architecture}.log"
        worker = Path(__file__).with_name("_library_worker.py")
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, worker, library, architecture, activations, json.dumps(settings._asdict())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env={**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""},
            )

    def ask(self, **question: object) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.library}, {self.architecture} ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it


def harvest(path: Path, settings: Settings, n_tokens: int | None) -> int:
    """Write activations of the embedded model, the last tenth of them held out; return d_in."""
    model, hook = saelab.load_language_model(settings.model, device="cpu"), f"blocks.{settings.layer}.hook_resid_post"
    x = saelab.harvest(model, hook, saelab.load_text(settings.model), n_tokens=n_tokens).activations
    n_train = len(x) * 9 // 10
    save_file({"train": x[:n_train].clone(), "held_out": x[n_train:].clone()}, path)
    return x.shape[1]


def in_range(trained: Sequence[dict[str, float]], low: float, high: float) -> dict[str, float] | None:
    """The training whose L0 lies in the range, nearest to its middle."""
    inside = [result for result in trained if low <= result["l0"] <= high]
    return min(inside, key=lambda result: abs(result["l0"] - (low + high) / 2), default=None)


def train_ends(worker: Worker, first: Sequence[float]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Train from ``first`` until an L0 lies in each of `ENDS`; return all trainings, and those of the two ends."""
    trained: list[dict[str, float]] = []
    waiting = list(first)
    while True:
        ends = [in_range(trained, *end) for end in ENDS]
        missing = [sum(end) / 2 for end, found in zip(ENDS, ends, strict=True) if found is None]
        if not waiting and (not missing or len(trained) == MOST_TRAININGS):
            return trained, [end for end in ends if end is not None]
        tried = [(result["sparsity"], result["l0"]) for result in trained]
        result = worker.ask(train=waiting.pop(0) if waiting else next_value(tried, missing[0]))
        trained.append(result)
        print(
            f"{worker.library}, {worker.architecture}: {result['sparsity']:.3g} gives L0 {result['l0']:.1f}, "
            f"FVU {result['fvu']:.4f}, gamma {result['gamma']:.4f}",
            file=sys.stderr,
        )


def at_target(ends: Sequence[dict[str, float]]) -> dict[str, float]:
    """FVU (linear in log-log) and gamma (linear in log L0) at `L0_TARGET`; empty if an end is missing."""
    if len(ends) < 2:
        return {}
    low, high = ends
    share = math.log(L0_TARGET / low["l0"]) / math.log(high["l0"] / low["l0"])
    return {
        "fvu": low["fvu"] ** (1 - share) * high["fvu"] ** share,
        "gamma": low["gamma"] * (1 - share) + high["gamma"] * share,
    }


def processor() -> str:
    """The CPU's name, and the widest vectors that torch uses of it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def milliseconds(call: Callable[[], object], device: str = "cpu") -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def encoder_matmul(d_in: int, d_sae: int, batch_size: int, device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The floor: the least that every step needs. Its matrix has the same memory layout as saelab's."""
    W_enc = saelab.GatedSAE(d_in, d_sae, device=device, dtype=dtype).W_enc.detach()
    return partial(torch.mm, torch.randn(batch_size, d_in, device=device, dtype=dtype), W_enc)


def print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """A Markdown table with aligned columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for line in lines:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def compare(python: Path, effort: Effort) -> list[dict[str, Any]]:
    """Train and time every library; print the first table."""
    settings, activations = effort.settings, BUILD / "activations.safetensors"
    kept = BUILD / f"sparsity-{settings.d_sae}-{settings.n_steps}.json"
    coefficients: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    d_in = harvest(activations, settings, effort.n_tokens)
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        workers = []
        for (library, architecture), start in START.items():
            if architecture not in effort.architectures:
                continue
            interpreter = Path(sys.executable) if library == "saelab" else python
            worker = stack.enter_context(Worker(library, architecture, interpreter, activations, settings))
            key = f"{library} {architecture}"
            trained, ends = train_ends(worker, coefficients.get(key, start))
            coefficients[key] = [result["sparsity"] for result in ends] or list(start)
            kept.write_text(json.dumps(coefficients, indent=1), encoding="utf-8")
            # Time the steps at the denser and so slower of the two ends.
            timed = max(ends or trained[-1:], key=lambda result: result["l0"])
            memory = {name: trained[0][name] for name in ("peak_mib", "before_mib")}  # later ones share its process
            workers.append((worker, timed["sparsity"]))
            results.append(
                {
                    "library": library, "architecture": architecture, "trained": trained, "ends": ends,
                    "at_l0_30": at_target(ends), "timed_l0": timed["l0"], "step_ms": [], **memory,
                }
            )  # fmt: skip
        matmul = encoder_matmul(d_in, settings.d_sae, settings.batch_size, "cpu", torch.float32)
        floors: list[float] = []
        for _ in range(effort.rounds):
            floors += [milliseconds(matmul) for _ in range(effort.steps_a_round)]
            for (worker, value), result in zip(workers, results, strict=True):
                time.sleep(0.1)  # by then the threads of the previous one have stopped spinning
                answer = worker.ask(time=value, n_steps=effort.steps_a_round)
                result["step_ms"] += answer["step_ms"]
                result["version"] = answer["version"]
            time.sleep(0.1)

    floor_ms = statistics.median(floors)
    own = {r["architecture"]: statistics.median(r["step_ms"]) for r in results if r["library"] == "saelab"}
    rows = []
    for result in results:
        ms, ends, target = statistics.median(result["step_ms"]), result["ends"], result["at_l0_30"]
        rows.append(
            {
                "architecture": result["architecture"],
                "library": f"{result['library']} {result['version']}",
                "ms a step": f"{ms:.1f}",
                "x floor": f"{ms / floor_ms:.1f}",
                "x saelab": f"{ms / own[result['architecture']]:.1f}",
                **{
                    name: " and ".join(f"{end[key]:{form}}" for end in ends) or "-"
                    for name, key, form in (("knob", "sparsity", ".3g"), ("L0", "l0", ".1f"), ("FVU", "fvu", ".4f"),
                                            ("gamma", "gamma", ".3f"))
                },
                "FVU at L0 30": f"{target['fvu']:.4f}" if target else "-",
                "gamma at L0 30": f"{target['gamma']:.3f}" if target else "-",
                "peak MiB": f"{result['peak_mib']:.0f}",
                "of which training": f"{result['peak_mib'] - result['before_mib']:.0f}",
            }
        )  # fmt: skip
    rows.sort(key=lambda row: row["architecture"])
    print_table(
        f"d_in {d_in}, d_sae {settings.d_sae}, batch {settings.batch_size}, {settings.n_steps} steps; "
        f"one encoder matmul (floor) {floor_ms:.2f} ms; medians of {len(floors)}, measured in turns",
        rows,
    )
    print(f"\n{NOTES}")
    return [*results, {"library": "floor", "step_ms": floors}]


def keep_medians(numbers: dict[str, Any], settings: Sequence[Settings], path: Path) -> None:
    """Write a row for each size, architecture and library to a CSV file; rows that this run has not measured stay."""
    rows = []
    for of, results in zip(settings, (numbers["libraries"], numbers["libraries, small"]), strict=True):
        (floor,) = (result for result in results if result["library"] == "floor")
        rows += [
            {
                "machine": numbers["machine"], "torch": numbers["torch"], "d_in": 256, "d_sae": of.d_sae,
                "batch_size": of.batch_size, "n_steps": of.n_steps, "architecture": result["architecture"],
                "library": result["library"], "version": result["version"],
                "step_ms": statistics.median(result["step_ms"]), "matmul_ms": statistics.median(floor["step_ms"]),
                "l0": 30, **(result["at_l0_30"] or {}),
            }
            for result in results
            if result is not floor
        ]  # fmt: skip
    table, key = pd.DataFrame(rows), ["d_sae", "architecture", "library"]
    if path.exists():
        table = pd.concat([table, pd.read_csv(path)])
    table.drop_duplicates(key).sort_values(key, ascending=[False, True, False]).to_csv(path, index=False)


def at_l0(sae: saelab.SparseAutoencoder, gate_bias: str, l0: float) -> saelab.SparseAutoencoder:
    """The SAE itself, with about that L0 on standard normal activations."""
    with torch.no_grad():  # u is about standard normal with an encoder of unit norm
        sae.W_enc.copy_(sae.W_dec.T)
    torch.nn.init.constant_(sae.get_parameter(gate_bias), statistics.NormalDist().inv_cdf(l0 / sae.d_sae))
    return sae


def growth(
    shapes: Sequence[tuple[int, int]], d_in: int, batch_size: int, n_turns: int, device: str, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Time saelab's step at each ``(d_sae, L0)`` beside the matmul of that shape in ``dtype``; print the second table.

    Weights are float32 on every device; the trainer chooses the dtype of a GPU's matmuls.
    """
    x = torch.randn(4 * batch_size, d_in, device=device)
    config = saelab.TrainingConfig(batch_size=batch_size, lr=0.0)
    results: list[dict[str, Any]] = []
    for architecture, gate_bias in (("gated", "b_gate"), ("standard", "b_enc")):
        for d_sae, l0 in shapes:
            sae = at_l0(saelab.ARCHITECTURES[architecture](d_in, d_sae, device=device), gate_bias, l0)
            trainer, matmul = saelab.Trainer(sae, x, config), encoder_matmul(d_in, d_sae, batch_size, device, dtype)
            times = [(milliseconds(trainer.step, device), milliseconds(matmul, device)) for _ in range(n_turns + 3)]
            step_ms, floor_ms = (statistics.median(column[3:]) for column in zip(*times, strict=True))
            results.append(
                {
                    "architecture": architecture, "d_sae": d_sae, "l0": trainer.records[-1].l0,
                    "step_ms": step_ms, "floor_ms": floor_ms,
                }
            )  # fmt: skip
    print_table(
        f"saelab's step on {device}, d_in {d_in}, batch {batch_size}, L0 set by the gate's bias; "
        f"floor in {str(dtype).removeprefix('torch.')}; medians of {n_turns}, measured in turns",
        [
            {
                "architecture": result["architecture"],
                "d_sae": str(result["d_sae"]),
                "L0": f"{result['l0']:.0f}",
                "ms a step": f"{result['step_ms']:.2f}",
                "floor": f"{result['floor_ms']:.2f}",
                "x floor": f"{result['step_ms'] / result['floor_ms']:.1f}",
            }
            for result in results
        ],
    )
    return results


def busy(shapes: Sequence[dict[str, int]], d_in: int, n_turns: int) -> list[dict[str, Any]]:
    """Time saelab's gated step with and without another process that wants a core all the time; print a table."""
    results: list[dict[str, Any]] = []
    for shape in shapes:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            sae = at_l0(saelab.GatedSAE(d_in, shape["d_sae"]), "b_gate", 30)
            config = saelab.TrainingConfig(batch_size=shape["batch_size"], lr=0.0)
            trainer = saelab.Trainer(sae, torch.randn(4 * shape["batch_size"], d_in), config)
            times: dict[str, list[float]] = {"alone": [], "beside": []}
            for turn in range(n_turns):
                times["alone"] += [milliseconds(trainer.step) for _ in range(10)][2 * (turn == 0) :]
                with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                    time.sleep(0.2)  # until it has started
                    times["beside"] += [milliseconds(trainer.step) for _ in range(10)]
                    other.kill()
            medians = {name: statistics.median(measured) for name, measured in times.items()}
            results.append({**shape, "n_threads": n_threads, **medians})
    print_table(
        f"saelab's gated step alone and beside a busy process, {os.cpu_count()} cores, d_in {d_in}, L0 30; "
        f"medians of {10 * n_turns}, measured in turns",
        [
            {
                "d_sae": str(result["d_sae"]), "batch": str(result["batch_size"]), "threads": str(result["n_threads"]),
                "ms alone": f"{result['alone']:.2f}", "ms beside": f"{result['beside']:.2f}",
                "ratio": f"{result['beside'] / result['alone']:.1f}",
            }
            for result in results
        ],
    )  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few steps: the numbers mean nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--busy", action="store_true", help="only the step beside another busy process")
    parser.add_argument("--steps", type=int, help=f"of each training, instead of {FULL.settings.n_steps}")
    parser.add_argument(
        "--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="rows of the first table"
    )
    parser.add_argument("--libraries-python", type=Path, help="an interpreter that has the two other libraries")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument(
        "--table", type=Path, help="keep the medians in this CSV file, such as docs/experiments/bench.csv"
    )
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)

    numbers: dict[str, Any] = {
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    print(f"{numbers['machine']}, torch {numbers['torch']}", flush=True)
    if options.busy:
        shapes_of_steps = [SMALL, {name: getattr(FULL.settings, name) for name in SMALL}]
        numbers["busy"] = busy(shapes_of_steps, 256, QUICK.rounds if options.quick else FULL.rounds)
    elif options.device == "cuda":
        shapes = [(16384, l0) for l0 in (30, 100)]
        numbers["growth"] = growth(shapes, 2048, 4096, 30, "cuda", torch.bfloat16)
    else:
        effort = (QUICK if options.quick else FULL)._replace(architectures=tuple(options.architectures))
        if options.steps:
            effort = effort._replace(settings=effort.settings._replace(n_steps=options.steps))
        python = options.libraries_python or libraries_python()
        numbers["libraries"] = compare(python, effort)
        small = effort._replace(settings=effort.settings._replace(d_sae=SMALL["d_sae"], batch_size=SMALL["batch_size"]))
        numbers["libraries, small"] = compare(python, small)
        if options.table:
            keep_medians(numbers, (effort.settings, small.settings), options.table)
        sizes = [(d_sae, 30) for d_sae in effort.d_saes] + [(effort.settings.d_sae, l0) for l0 in effort.l0s]
        shapes = sorted(set(sizes), key=sizes.index)
        numbers["growth"] = growth(shapes, 256, effort.settings.batch_size, 2 * effort.rounds, "cpu", torch.float32)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
