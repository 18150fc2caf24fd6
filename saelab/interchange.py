"""Save and load sparse autoencoders: one safetensors file, with the settings as JSON in its header. No pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelab.autoencoders import ARCHITECTURES, SparseAutoencoder

FORMAT_VERSION = 1
_SAE = "sae."
"""Prefix of an SAE's own tensors; a training checkpoint holds others beside them."""


class SAEFileError(ValueError):
    """A file that cannot be read as an SAE: what is wrong with which of its fields."""


def save(sae: SparseAutoencoder, path: str | os.PathLike[str]) -> Path:
    """Write ``sae`` to one file, atomically: whoever reads ``path`` finds the old file or the new one, whole.

    `load` brings it back. The name customarily ends in ``.safetensors``.
    """
    return write(path, *describe(sae))


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The SAE that `save`, `Trainer` or `sweep` wrote.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    SAEFileError
        Not such a file, cut short, or written by a newer SAELab; names the file and the field.
    """
    tensors, header = read(path)
    return rebuild(path, tensors, header).to(device)


def describe(sae: SparseAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An SAE as tensors by name, and the header from which `rebuild` makes it anew."""
    tensors = {_SAE + name: tensor for name, tensor in sae.state_dict().items()}
    settings = {**sae.settings(), "dtype": str(sae.W_enc.dtype).removeprefix("torch.")}
    return tensors, {"architecture": sae.architecture, "settings": settings, "gate_threshold": sae.gate_threshold}


def rebuild(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> SparseAutoencoder:
    """The SAE of `describe`. Raises `SAEFileError` in the name of ``path``."""
    try:
        settings = dict(header["settings"])
        dtype = getattr(torch, settings.pop("dtype"))
        sae = ARCHITECTURES[header["architecture"]](**settings, dtype=dtype)
        sae.gate_threshold = float(header["gate_threshold"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SAEFileError(f"{path}: its header describes no SAE that this SAELab knows ({error!r})") from error
    found = {name.removeprefix(_SAE): tensor for name, tensor in tensors.items() if name.startswith(_SAE)}
    with torch.no_grad():
        for name, parameter in sae.state_dict().items():
            if name not in found:
                raise SAEFileError(f"{path}: tensor {name} of a {header['architecture']} SAE is missing")
            tensor = found.pop(name)
            if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
                raise SAEFileError(
                    f"{path}: tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                    f"expected {parameter.dtype} of {tuple(parameter.shape)}"
                )
            parameter.copy_(tensor)  # into the constructor's memory layout: training goes on bit by bit
    if found:
        raise SAEFileError(f"{path}: unknown tensor(s) {', '.join(sorted(found))} in a {header['architecture']} SAE")
    return sae


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header to one file, atomically, and have it on the disk before the old one goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")  # one that was killed is overwritten
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, unfinished, {"saelab": json.dumps({"version": FORMAT_VERSION, **header})})
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write` made. Raises like `load`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise SAEFileError(f"{path}: not a whole safetensors file ({error})") from error
    if "saelab" not in metadata:
        raise SAEFileError(f"{path}: its header has no field 'saelab'; SAELab did not write this file")
    try:
        header: dict[str, Any] = json.loads(metadata["saelab"])
        version = int(header["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise SAEFileError(f"{path}: the field 'saelab' of its header cannot be read ({error!r})") from error
    if version > FORMAT_VERSION:
        raise SAEFileError(
            f"{path}: version {version}, but this SAELab reads up to {FORMAT_VERSION}; install a newer one"
        )
    return tensors, header
