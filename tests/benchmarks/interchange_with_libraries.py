"""Check that sae-lens and dictionary_learning read saelab's folders, and saelab theirs, with outputs equal to 1e-6.

Writes SAEs of every kind with `saelab.export`, loads them in an environment that has both libraries, and compares codes
and reconstructions on random activations; then both libraries write theirs, and saelab loads them. Prints the largest
absolute differences beside the largest outputs, and exits with 1 if one exceeds 1e-6. Run it by hand: the first run
installs the two libraries, unless ``--libraries-python`` names an interpreter that has them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from against_libraries import libraries_python, print_table  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import Tensor

import saelab
from saelab.files.other_libraries import FORMATS
from saelab.files.sae_files import export

D_IN, D_SAE, SCALE, TOLERANCE = 32, 128, 2.5, 1e-6
KINDS: dict[str, tuple[saelab.SparseAutoencoder, float]] = {
    # with the gate_threshold of each that has one
    "standard": (saelab.StandardSAE(D_IN, D_SAE), 0.0),
    "standard, free norms": (saelab.StandardSAE(D_IN, D_SAE, preset="norm_weighted"), 0.0),
    "gated": (saelab.GatedSAE(D_IN, D_SAE), 0.0),
    "gated, free norms": (saelab.GatedSAE(D_IN, D_SAE, preset="norm_weighted"), 0.2),
    "gated, no r_mag": (saelab.GatedSAE(D_IN, D_SAE, ablations=["no_r_mag"]), -0.2),
    "rescale_shift": (saelab.RescaleShiftSAE(D_IN, D_SAE), 0.1),
    "jumprelu": (saelab.JumpReLUSAE(D_IN, D_SAE), 0.1),
    "topk": (saelab.TopKSAE(D_IN, D_SAE, k=20), 0.0),
    "batchtopk": (saelab.BatchTopKSAE(D_IN, D_SAE, k=20), 0.0),
}
WORKER = """
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from dictionary_learning.training import trainSAE
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file
import sae_lens

folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]
d_in, d_sae = x.shape[1], 4 * x.shape[1]
ours, theirs = {}, {}


def note(outputs, name, sae):
    with torch.no_grad():
        codes = sae.encode(x)
        outputs[f"{name}|codes"], outputs[f"{name}|reconstruction"] = codes, sae.decode(codes)


for path in sorted((folder / "ours").iterdir()):
    if (path / "cfg.json").exists():
        note(ours, path.name, sae_lens.SAE.load_from_disk(path, device="cpu"))
    else:
        note(ours, path.name, load_dictionary(str(path), "cpu")[0])

torch.manual_seed(1)
for architecture in ("Standard", "Gated", "JumpReLU"):
    for kind in ("SAE", "TrainingSAE"):
        for b_dec in (True, False):
            Config, SAE = (getattr(sae_lens, f"{architecture}{kind}{end}") for end in ("Config", ""))
            sae = SAE(Config(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=b_dec))
            with torch.no_grad():
                for parameter in sae.parameters():
                    parameter.mul_(0.3).add_(0.05 * torch.randn_like(parameter))
                (sae.b_gate if architecture == "Gated" else sae.b_enc).sub_(0.2)  # sparse, as trained ones are
                if architecture == "JumpReLU" and kind == "TrainingSAE":
                    sae.threshold.abs_()
            name = f"sae_lens, {architecture}{kind}{'' if b_dec else ', b_dec not on input'}"
            sae.save_model(folder / "theirs" / name)
            note(theirs, name, sae_lens.SAE.load_from_disk(folder / "theirs" / name, device="cpu"))
            if kind == "TrainingSAE":
                sae.save_inference_model(folder / "theirs" / f"{name}, saved for inference")
                note(theirs, f"{name}, saved for inference", sae)

for name, kind in (("TopK", "SAE"), ("TopK", "TrainingSAE"), ("BatchTopK", "TrainingSAE")):
    Config, SAE = (getattr(sae_lens, f"{name}{kind}{end}") for end in ("Config", ""))
    sae = SAE(Config(d_in=d_in, d_sae=d_sae, k=20))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.mul_(0.3).add_(0.05 * torch.randn_like(parameter))
    if name == "BatchTopK":
        sae.topk_threshold.fill_(0.1)
    path = folder / "theirs" / f"sae_lens, {name}{kind}"
    (sae.save_model if kind == "SAE" else sae.save_inference_model)(path)  # norms are folded for inference
    note(theirs, path.name, sae_lens.SAE.load_from_disk(path, device="cpu"))

trainers = (StandardTrainer, StandardTrainerAprilUpdate, GatedSAETrainer, JumpReluTrainer,
            TopKTrainer, BatchTopKTrainer)
common = {"steps": 40, "activation_dim": d_in, "dict_size": d_sae, "layer": 1, "lm_name": "none", "device": "cpu",
          "lr": 0.01, "warmup_steps": 2, "sparsity_warmup_steps": 2}
batches = [batch.clone() for _ in range(5) for batch in x.split(64)]  # which it divides in place
kept = {**{name: common[name] for name in common if name != "sparsity_warmup_steps"}, "k": 20}
configs = [{"trainer": trainer, **(common if trainer in trainers[:4] else kept)} for trainer in trainers]
trainSAE(batches, configs, 40,
         save_dir=str(folder / "theirs" / "trained"), normalize_activations=True, device="cpu")
for index, trainer in enumerate(trainers):
    name = f"dictionary_learning, {trainer.__name__}"
    path = (folder / "theirs" / "trained" / f"trainer_{index}").rename(folder / "theirs" / name)
    note(theirs, name, load_dictionary(str(path), "cpu")[0])
(folder / "theirs" / "trained").rmdir()
save_file(ours, folder / "ours.safetensors")
save_file(theirs, folder / "theirs.safetensors")
print("sae-lens", version("sae-lens"), "and dictionary_learning", version("dictionary_learning"))
"""


@torch.no_grad()
def randomize(sae: saelab.SparseAutoencoder, gate_threshold: float) -> None:
    """Sparse, no bias zero, and outputs of order 1, so that float32 can resolve the tolerance."""
    sae.W_enc.copy_(0.2 * sae.W_dec.T)
    for parameter in sae.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    if sae.preset == "paper":
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    (sae.b_gate if isinstance(sae, saelab.GatedSAE) else sae.get_parameter("b_enc")).sub_(0.35)
    if isinstance(sae, saelab.ElementwiseSAE):
        sae.gate_threshold = gate_threshold
    if isinstance(sae, saelab.BatchTopKSAE):
        sae.threshold.fill_(0.1)


@torch.no_grad()
def export_all(folder: Path, x: Tensor) -> dict[str, Tensor]:
    """Every kind in every format, and the outputs that each must give on unscaled activations ``x``."""
    expected = {}
    for kind, (sae, gate_threshold) in KINDS.items():
        randomize(sae, gate_threshold)
        codes, reconstruction = sae.encode(SCALE * x), sae(SCALE * x) / SCALE
        for format in FORMATS:
            for as_jumprelu in (False, True) if kind != "topk" else (False,):  # which no threshold expresses
                name = f"{format}, {kind}{', as jumprelu' if as_jumprelu else ''}"
                export(sae, folder / name, format, scale=SCALE, as_jumprelu=as_jumprelu)
                unit_rows = format == "dictionary_learning" and kind.startswith("standard") and not as_jumprelu
                expected[f"{name}|codes"] = codes * sae.W_dec.norm(dim=1) / SCALE if unit_rows else codes
                expected[f"{name}|reconstruction"] = reconstruction
    return expected


@torch.no_grad()
def load_all(folder: Path, x: Tensor) -> dict[str, Tensor]:
    """Outputs of every folder as loaded by saelab."""
    outputs = {}
    for path in sorted(folder.iterdir()):
        sae = saelab.load(path)
        codes = sae.encode(x)
        outputs[f"{path.name}|codes"], outputs[f"{path.name}|reconstruction"] = codes, sae.decode(codes)
    return outputs


def compare(title: str, outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Print a row for each SAE; true where all are equal to the tolerance."""
    assert outputs.keys() == expected.keys(), outputs.keys() ^ expected.keys()
    rows, equal = [], True
    for name in sorted({key.split("|")[0] for key in expected}):
        row = {"SAE": name, "on": f"{float((expected[f'{name}|codes'] > 0).float().mean()):.0%}"}
        for what in ("codes", "reconstruction"):
            one, other = outputs[f"{name}|{what}"], expected[f"{name}|{what}"]
            error, largest = float((one - other).abs().max()), float(other.abs().max())
            row |= {f"max error of {what}": f"{error:.1e}", f"largest {what}": f"{largest:.1f}"}
            equal &= error <= TOLERANCE
        rows.append(row)
    print_table(title, rows)
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries-python", type=Path, help="an interpreter that has the two other libraries")
    python = parser.parse_args().libraries_python or libraries_python()
    torch.manual_seed(0)
    x = torch.randn(512, D_IN) / SCALE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({"x": x}, folder / "x.safetensors")
        expected = export_all(folder / "ours", x)
        worker = subprocess.run(
            [python, "-c", WORKER, folder],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if worker.returncode:
            raise SystemExit(worker.stderr)
        print(f"saelab {saelab.__version__}, {worker.stdout.splitlines()[-1]}")
        equal = compare("Written by saelab, read by its library", load_file(folder / "ours.safetensors"), expected)
        equal &= compare("Written by saelab, read by saelab", load_all(folder / "ours", x), expected)
        theirs = load_file(folder / "theirs.safetensors")
        equal &= compare("Written by its library, read by saelab", load_all(folder / "theirs", x), theirs)
    print(f"\n{'all equal' if equal else 'NOT EQUAL'} to {TOLERANCE}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
