"""What every reader of SAE files shares: opening safetensors, and errors that name the file and what is wrong in it."""

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class SAEFileError(ValueError):
    """A file that cannot be read as an SAE: what is wrong with which of its fields."""


def open_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises `SAEFileError` where it is not one, or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise SAEFileError(f"{path}: not a whole safetensors file ({error})") from error


def check_tensors(
    path: str | os.PathLike[str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    kind: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise `SAEFileError` unless ``found`` has the ``expected`` shapes by name, in ``dtype`` or any floating point."""
    for name, shape in expected.items():
        if name not in found:
            raise SAEFileError(f"{path}: tensor {name} of a {kind} is missing")
        tensor = found[name]
        if tensor.shape != shape or (tensor.dtype != dtype if dtype else not tensor.is_floating_point()):
            raise SAEFileError(
                f"{path}: tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                f"expected {dtype or 'floating point'} of {shape}"
            )
    if unknown := found.keys() - expected.keys():
        raise SAEFileError(f"{path}: unknown tensor(s) {', '.join(sorted(unknown))} in a {kind}")
