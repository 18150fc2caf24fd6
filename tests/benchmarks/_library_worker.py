"""One row of `against_libraries.py`: train SAEs with one library in a separate process, and time their steps.

It runs under the interpreter that has the library, so it imports saelab only in saelab's row. Started with library,
architecture, activations file and settings, it reads requests from stdin and writes answers to stdout, one JSON object
per line: ``{"train": value}`` trains an SAE at that value of its sparsity knob and evaluates it; ``{"time": value,
"n_steps": n}`` times further steps of that SAE.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor


class Run(NamedTuple):
    """An SAE in training: one complete step, including the batch draw, and the library's own inference."""

    step: Callable[[], object]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def batches(x: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows of ``x`` in the order in which `saelab.Trainer` draws them, so that every library sees the same batches."""
    order = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    while True:
        while len(rows) < batch_size:
            rows = torch.cat([rows, torch.randperm(len(x), generator=order)])
        yield x[rows[:batch_size]]
        rows = rows[batch_size:]


def with_saelab(architecture: str, sparsity: float, x: Tensor, s: SimpleNamespace) -> Run:
    import saelab

    sae = saelab.ARCHITECTURES[architecture](x.shape[1], s.d_sae, seed=s.seed)
    assert sae.sparsity_knob is not None
    config = saelab.TrainingConfig(
        n_steps=s.n_steps, batch_size=s.batch_size, lr=s.lr, betas=tuple(s.betas),
        lr_warmup_steps=s.lr_warmup_steps, sparsity_warmup_steps=s.sparsity_warmup_steps, seed=s.seed,
    )  # fmt: skip
    trainer = saelab.Trainer(sae, x, config)
    setattr(trainer, sae.sparsity_knob.name, round(sparsity) if sae.sparsity_knob.is_whole else sparsity)
    return Run(trainer.step, sae.encode, sae.decode)


def with_sae_lens(architecture: str, sparsity: float, x: Tensor, s: SimpleNamespace) -> Run:
    import sae_lens  # type: ignore[import-not-found]
    from sae_lens.config import SAETrainerConfig  # type: ignore[import-not-found]
    from sae_lens.training.sae_trainer import SAETrainer  # type: ignore[import-not-found]

    l1 = {"l1_coefficient": sparsity, "l1_warm_up_steps": s.sparsity_warmup_steps}
    l0 = {"l0_coefficient": sparsity, "l0_warm_up_steps": s.sparsity_warmup_steps}
    kinds = {
        "gated": ("GatedTrainingSAE", l1),
        "standard": ("StandardTrainingSAE", l1),
        "jumprelu": ("JumpReLUTrainingSAE", l0),
        "topk": ("TopKTrainingSAE", {"k": round(sparsity)}),
        "batchtopk": ("BatchTopKTrainingSAE", {"k": round(sparsity)}),
    }
    name, settings = kinds[architecture]
    torch.manual_seed(s.seed)
    config_of_sae = getattr(sae_lens, f"{name}Config")(d_in=x.shape[1], d_sae=s.d_sae, **settings)
    sae = getattr(sae_lens, name)(config_of_sae)
    config = SAETrainerConfig(
        total_training_samples=s.n_steps * s.batch_size, train_batch_size_samples=s.batch_size,
        lr=s.lr, lr_end=s.lr, lr_warm_up_steps=s.lr_warmup_steps, adam_beta1=s.betas[0], adam_beta2=s.betas[1],
    )  # fmt: skip
    data = batches(x, s.batch_size, s.seed)
    trainer = SAETrainer(config, sae, data)

    def step() -> None:  # what one iteration of the loop in SAETrainer.fit does with wandb off
        trainer.maybe_reset_sparsity()
        trainer.step(next(data))
        trainer.n_training_steps += 1

    def encode(batch: Tensor) -> Tensor:
        """As after training: a BatchTopK SAE is then saved as JumpReLU, at the threshold that it has learnt."""
        if architecture != "batchtopk":
            return sae.encode(batch)  # type: ignore[no-any-return]
        _, pre = sae.encode_with_hidden_pre(batch)
        return pre.relu() * (pre > sae.topk_threshold)  # type: ignore[no-any-return]

    return Run(step, encode, sae.decode)


def with_dictionary_learning(architecture: str, sparsity: float, x: Tensor, s: SimpleNamespace) -> Run:
    from dictionary_learning.trainers import GatedSAETrainer, StandardTrainer  # type: ignore[import-not-found]

    trainer = {"gated": GatedSAETrainer, "standard": StandardTrainer}[architecture](
        steps=s.n_steps, activation_dim=x.shape[1], dict_size=s.d_sae, layer=s.layer, lm_name=s.model, device="cpu",
        lr=s.lr, l1_penalty=sparsity, warmup_steps=s.lr_warmup_steps, sparsity_warmup_steps=s.sparsity_warmup_steps,
        seed=s.seed,
    )  # fmt: skip
    data, count = batches(x, s.batch_size, s.seed), itertools.count()
    return Run(lambda: trainer.update(next(count), next(data)), trainer.ae.encode, trainer.ae.decode)


LIBRARIES = {"saelab": with_saelab, "sae-lens": with_sae_lens, "dictionary_learning": with_dictionary_learning}


@torch.no_grad()
def evaluate(run: Run, held_out: Tensor, batch_size: int) -> dict[str, float]:
    """L0, FVU and gamma from sums over all of ``held_out``, in float64."""
    mean = held_out.mean(dim=0, dtype=torch.float64)
    n_on = error = variance = rr = xr = 0.0
    for batch in torch.split(held_out, batch_size):
        codes = run.encode(batch)
        x, r = batch.double(), run.decode(codes).double()
        n_on += int((codes > 0).sum())
        error += float((x - r).square().sum())
        variance += float((x - mean).square().sum())
        rr += float(r.square().sum())
        xr += float((x * r).sum())
    return {"l0": n_on / len(held_out), "fvu": error / variance, "gamma": rr / xr}


def memory(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the highest so far) of this process in MiB; NaN where there is no /proc.

    `resource.getrusage` will not do: its maximum starts at that of the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    library, architecture, activations, settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep a library's prints out of the answers
    s = SimpleNamespace(**json.loads(settings))
    data = load_file(activations)
    x, held_out = data["train"], data["held_out"]
    x.sum()  # read all of it now: the file is mapped, and would otherwise count as memory of the training
    make, runs = LIBRARIES[library], dict[float, Run]()
    make(architecture, 1.0, x[: s.batch_size], s)  # imports the library
    before = memory("VmRSS")
    for line in sys.stdin:
        question = json.loads(line)
        if "train" in question:
            sparsity = question["train"]
            run = runs[sparsity] = make(architecture, sparsity, x, s)
            for _ in range(s.n_steps):
                run.step()
            peak = memory("VmHWM")
            answer = {
                "sparsity": sparsity,
                **evaluate(run, held_out, s.batch_size),
                "peak_mib": peak,
                "before_mib": before,
            }
        else:
            step = runs[question["time"]].step
            answer = {"step_ms": [timed(step) for _ in range(question["n_steps"])], "version": version(library)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
