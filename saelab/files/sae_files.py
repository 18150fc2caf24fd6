"""Save and load sparse autoencoders: one safetensors file, with the settings as JSON in its header. No pickle.

`load` and `export` also speak the formats of other libraries, which `saelab.files.other_libraries` knows.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from saelab.errors import InputError, InputTypeError
from saelab.files.other_libraries import FORMATS, Format, load_foreign, portable, write_folder
from saelab.files.tensor_files import SAEFileError as SAEFileError  # part of this module's API
from saelab.files.tensor_files import check_tensors, read_tensors, write_tensors
from saelab.sae.base import ARCHITECTURES, SparseAutoencoder, TrainedOn

_SAE = "sae."
"""Prefix of an SAE's own tensors; a training checkpoint holds others beside them."""
_ACCEPTED = (
    "load takes a file that SAELab wrote; a SAELens folder (cfg.json and sae_weights.safetensors); or a "
    "dictionary_learning folder (config.json with trainer.dict_class, and ae.pt)"
)


def save(sae: SparseAutoencoder, path: str | os.PathLike[str]) -> Path:
    """Write ``sae`` to one file, atomically: whoever reads ``path`` finds the old file or the new one, whole.

    `load` brings it back. The name customarily ends in ``.safetensors``. Raises a TypeError for an SAE of a class that
    is not in `ARCHITECTURES`.
    """
    return write_tensors(path, *describe(sae))


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """An SAE from a file that `save`, `Trainer` or `sweep` wrote, or from a folder of another library.

    Those are a SAELens folder (``cfg.json`` and ``sae_weights.safetensors``; standard, gated or jumprelu) and a
    dictionary_learning folder (``config.json`` and ``ae.pt``; AutoEncoder, GatedAutoEncoder or JumpReluAutoEncoder),
    known by what they hold; a file inside one does as well, ``checkpoints/ae_STEP.pt`` included. Codes and
    reconstructions are those that the library's own loader gives: an AutoEncoder's decoder is normalised, and where
    ``b_dec`` is not subtracted from the input, the encoder's biases make up for it. The preset, which only training
    reads, is ``"paper"`` where every decoder row has unit norm, else ``"norm_weighted"``.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    SAEFileError
        None of these, cut short, by a newer version, with code in its pickle, or with a setting that an SAE of ours
        cannot express; names the file and the field.
    """
    path = Path(path)
    foreign = load_foreign(path)
    if foreign is not None:
        return foreign.to(device)
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
        raise SAEFileError(f"{path}: no SAE that SAELab knows lies in this folder. It holds {listed}; {_ACCEPTED}")
    try:
        tensors, header = read_tensors(path)
    except SAEFileError as error:
        raise SAEFileError(f"{error}. ({_ACCEPTED}.)") from error
    return rebuild(path, tensors, header).to(device)


def export(
    sae: SparseAutoencoder,
    folder: str | os.PathLike[str],
    format: Format,
    *,
    scale: float | None = None,
    as_jumprelu: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``sae`` as a folder that SAELens or dictionary_learning loads, taking the model's own activations.

    A standard, gated or JumpReLU SAE keeps its kind; a rescale-and-shift SAE becomes gated. `gate_threshold` goes into
    the gate's bias or the thresholds; what concerns training alone (preset, ablations) is lost. Weights are written in
    float32, or float64 where they are that. The folder appears whole or not at all.

    **Units of the codes.** On the model's own activation ``x``, ``(..., d_in)``, the exported SAE gives the codes that
    ``sae.encode(scale * x)`` gives, unchanged, and the reconstruction ``sae(scale * x) / scale``. One target differs:
    dictionary_learning normalises the decoder of an AutoEncoder as it loads it, so its rows are written with unit norm,
    and each code comes multiplied by its row's norm in ``W_dec / scale``.

    Parameters
    ----------
    sae
        Any SAE of this library but a gated one with untied encoders.
    folder
        Where to; must not be there yet, or be empty.
    format
        ``"sae_lens"``: ``cfg.json`` and ``sae_weights.safetensors``, for ``SAE.load_from_disk`` of version 6.
        ``"dictionary_learning"``: ``config.json`` and ``ae.pt``, for ``load_dictionary``.
    scale
        The `ActivationStore.scale` of the activations it was trained on; by default the one it remembers
        (``sae.trained_on.scale``), or 1. It is folded away as SAELens does it: ``W_enc * scale``, ``W_dec / scale``,
        ``b_dec / scale``. No pre-activation changes, so the encoder's biases, ``r_mag`` and all thresholds stay.
    as_jumprelu
        Write a JumpReLU SAE with the same codes whatever ``sae`` is, for tools that know no gated ones (paper,
        appendix E). A standard SAE with a positive `gate_threshold` can be written in no other way.
    metadata
        More fields: in SAELens' ``metadata``, in dictionary_learning's ``trainer``. Where the SAE remembers its model
        and hook they are there already, as ``model_name`` and ``hook_name``, or ``lm_name`` and ``submodule_name``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        ``sae`` cannot be expressed in ``format``, or an argument is not allowed; says why. Nothing is written.
    FileExistsError
        ``folder`` is a file, or holds something.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; export writes a new folder or an empty one: name another")
    origin = sae.trained_on
    if scale is None:
        scale = origin.scale if origin else 1.0
    form = portable(sae, scale, as_jumprelu, format)
    known = dict(zip(FORMATS[format].origin_fields, origin[:2], strict=True)) if origin else {}
    config, tensors = FORMATS[format].describe(form, {**known, **(metadata or {})})
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{name} would hold NaN or infinite values; look at the SAE's weights and at scale={scale}"
            )
    write_folder(folder, FORMATS[format], config, {name: tensor.contiguous() for name, tensor in tensors.items()})
    return folder


def describe(sae: SparseAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An SAE as tensors by name, and the header from which `rebuild` makes it anew.

    Raises a TypeError for a class that is not in `ARCHITECTURES`: its file would be read as that of another class.
    """
    if ARCHITECTURES.get(sae.architecture) is not type(sae):
        name = type(sae).__name__
        raise InputTypeError(
            f"a file of architecture {sae.architecture!r} is not read as a {name}; give {name} an `architecture` of "
            "its own in its class body, which registers it"
        )
    tensors = {_SAE + name: tensor for name, tensor in sae.state_dict().items()}
    settings = {**sae.settings(), "dtype": str(sae.W_enc.dtype).removeprefix("torch.")}
    return tensors, {
        "architecture": sae.architecture,
        "settings": settings,
        "live_settings": {knob.name: getattr(sae, knob.name) for knob in sae.live_settings},
        "trained_on": sae.trained_on and sae.trained_on._asdict(),
    }


def rebuild(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> SparseAutoencoder:
    """The SAE of `describe`. Raises `SAEFileError` in the name of ``path``."""
    try:
        settings = dict(header["settings"])
        dtype = getattr(torch, settings.pop("dtype"))
        sae = ARCHITECTURES[header["architecture"]](**settings, dtype=dtype)
        for knob in sae.live_settings:
            setattr(sae, knob.name, knob.checked(header["live_settings"][knob.name]))
        sae.trained_on = header["trained_on"] and TrainedOn(**header["trained_on"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SAEFileError(f"{path}: its header describes no SAE that this SAELab knows ({error!r})") from error
    found = {name.removeprefix(_SAE): tensor for name, tensor in tensors.items() if name.startswith(_SAE)}
    expected = sae.state_dict()
    kind = f"{header['architecture']} SAE"
    check_tensors(path, found, {name: tuple(tensor.shape) for name, tensor in expected.items()}, kind, dtype)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(found[name])  # into the constructor's memory layout: training goes on bit by bit
    return sae
