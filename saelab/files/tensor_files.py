"""Tensor files: safetensors with a JSON header, written atomically; errors name the file and its fault."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelab.errors import SAELabError

FORMAT_VERSION = 1


class SAEFileError(SAELabError, ValueError):
    """A file that cannot be read as an SAE; the message names the field and its fault."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file, which replaces ``path`` once it is complete and on the disk."""
    # In its own folder, because safetensors leaves files under other names beside it when killed.
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished / path.name)
        flush_to_disk(unfinished / path.name)
        # The user's default permissions, taken from the folder; safetensors makes files that only their owner can read.
        (unfinished / path.name).chmod(unfinished.stat().st_mode & 0o666)
        (unfinished / path.name).replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"saelab": json.dumps({"version": FORMAT_VERSION, **header})}
    return write_atomically(Path(path), lambda unfinished: save_file(contiguous, unfinished, metadata))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    SAEFileError
        The file is truncated, was written by a newer version, or does not come from `write_tensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    tensors, metadata = open_safetensors(path)
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


def open_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises `SAEFileError` if it is not one, or is truncated.

    The tensors are in memory of their own: Windows does not replace a file while a part of it is mapped.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            names = file.keys()
            return {name: file.get_tensor(name).clone() for name in names}, metadata
    except SafetensorError as error:
        raise SAEFileError(f"{path}: not a complete safetensors file ({error})") from error


def check_tensors(
    path: str | os.PathLike[str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    kind: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise `SAEFileError` unless ``found`` has the ``expected`` shapes, in ``dtype`` or any floating-point type."""
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
