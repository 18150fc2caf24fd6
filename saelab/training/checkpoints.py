"""A training run on disk: everything that it takes to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelab.files.sae_files import describe, rebuild
from saelab.files.tensor_files import SAEFileError, read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder
from saelab.training.runs import TrainingConfig, columns_of

CHECKPOINT = "checkpoint.safetensors"
"""Name of the one file in a trainer's folder."""
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run between two steps."""

    sae: SparseAutoencoder
    config: TrainingConfig
    knobs: Mapping[str, float]
    """Every knob as it stands."""
    seconds: float
    """Time spent in steps."""
    resampled_at: int | None
    """The step after which features were resampled last."""
    fingerprint: str | None
    """Identifies the activations."""
    device: str
    moments: Mapping[str, Mapping[str, Tensor]]
    """Adam's state by parameter name, features first."""
    history: Mapping[str, np.ndarray]
    """The records so far, column by column."""
    batches: Mapping[str, Tensor]
    """Where the source of batches stands."""
    resampling: Tensor
    """State of the generator that resampling draws from."""
    silent_steps: Tensor
    """``(d_sae,)``: steps since each feature was on."""

    def write(self, path: Path) -> Path:
        """Write it to one file, atomically; `saelab.load` reads the SAE from it."""
        tensors, header = describe(self.sae)
        for name, state in self.moments.items():
            tensors |= {f"adam.{name}.{key}": tensor for key, tensor in state.items()}
        tensors |= {f"history.{name}": torch.from_numpy(column) for name, column in self.history.items()}
        tensors |= {f"training.batches.{name}": tensor for name, tensor in self.batches.items()}
        tensors |= {"training.resampling": self.resampling, "training.silent_steps": self.silent_steps}
        header["training"] = {
            "config": asdict(self.config),
            "knobs": dict(self.knobs),
            "seconds": self.seconds,
            "resampled_at": self.resampled_at,
            "fingerprint": self.fingerprint,
            "device": self.device,
        }
        return write_tensors(path, tensors, header)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read what `write` wrote.

        Raises
        ------
        FileNotFoundError, SAEFileError
            There is no such file; it holds no run, or only a part of one.
        """
        tensors, header = read_tensors(path)
        sae = rebuild(path, tensors, header)
        if "training" not in header:
            raise SAEFileError(f"{path}: its header has no field 'training'; it holds an SAE, but no run to go on with")
        state = header["training"]
        try:
            moments: dict[str, dict[str, Tensor]] = {
                name: {key: tensors[f"adam.{name}.{key}"] for key in ADAM_STATE if f"adam.{name}.{key}" in tensors}
                for name, _ in sae.named_parameters()
            }
            prefix = "training.batches."
            return cls(
                sae=sae,
                config=TrainingConfig(**{**state["config"], "betas": tuple(state["config"]["betas"])}),
                knobs={name: state["knobs"][name] for name in (*sae.knobs(), "lr")},
                seconds=state["seconds"],
                resampled_at=state["resampled_at"],
                fingerprint=state["fingerprint"],
                device=state["device"],
                moments=moments,
                history={name: tensors[f"history.{name}"].numpy() for name in columns_of(sae)},
                batches={n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)},
                resampling=tensors["training.resampling"],
                silent_steps=tensors["training.silent_steps"],
            )
        except KeyError as error:
            raise SAEFileError(f"{path}: field {error} of the run is missing") from error
