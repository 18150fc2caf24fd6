"""Save and load sparse autoencoders: one safetensors file, with the settings as JSON in its header, without pickle.

`load` and `export` also handle the formats of other libraries, which `saelab.files.other_libraries` implements.
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
"""Prefix of the SAE's tensors; a training checkpoint also holds others."""
_ACCEPTED = (
    "load takes a file that SAELab wrote; a SAELens folder (cfg.json and sae_weights.safetensors); or a "
    "dictionary_learning folder (config.json with trainer.dict_class, and ae.pt)"
)


def save(sae: SparseAutoencoder, path: str | os.PathLike[str]) -> Path:
    """Write ``sae`` to one file, atomically: a reader of ``path`` finds either the complete old file or the new one.

    `load` reads it. The name customarily ends in ``.safetensors``. Raises a TypeError if the SAE's class is not in
    `ARCHITECTURES`.
    """
    return write_tensors(path, *describe(sae))


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """An SAE from a file that `save`, `Trainer` or `sweep` wrote, or from a folder of another library.

    Other libraries' folders are recognised by their content: SAELens (``cfg.json`` and ``sae_weights.safetensors``)
    and dictionary_learning (``config.json`` and ``ae.pt``), of every architecture that declares such a form
    (`SparseAutoencoder.foreign`): standard, gated, JumpReLU, TopK, and in dictionary_learning BatchTopK. A file inside
    one works too, including ``checkpoints/ae_STEP.pt``. Codes and reconstructions equal those of the library's own
    loader: an AutoEncoder's decoder is normalised, and if ``b_dec`` is not subtracted from the input, the encoder's
    biases compensate. The preset, which only training uses, is ``"paper"``
    if every decoder row has unit norm, else ``"norm_weighted"``.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    SAEFileError
        The file is in none of these formats, is truncated, was written by a newer version, has code in its pickle, or
        has a setting that no SAE of this library can express; names the file and the field.
    """
    path = Path(path)
    foreign = load_foreign(path)
    if foreign is not None:
        return foreign.to(device)
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
        raise SAEFileError(f"{path}: this folder holds no SAE that SAELab can read. It holds {listed}; {_ACCEPTED}")
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

    A standard, gated, JumpReLU or TopK SAE keeps its kind; a rescale-and-shift SAE becomes gated; a BatchTopK SAE
    becomes JumpReLU for SAELens, as its own do. `gate_threshold` goes into the gate's bias or the thresholds; settings
    that only training uses (preset, ablations) are lost. Weights are written in float32, or in float64 if they are
    float64. The folder appears complete or not at all.

    **Units of the codes.** On the model's own activation ``x``, ``(..., d_in)``, the exported SAE gives the codes
    ``sae.encode(scale * x)`` and the reconstruction ``sae(scale * x) / scale``. One target differs: dictionary_learning
    normalises the decoder of an AutoEncoder on loading, so its rows are written with unit norm, and each code is
    multiplied by the norm of its row in ``W_dec / scale``.

    Parameters
    ----------
    sae
        Any SAE of this library except a gated one with untied encoders, or of a class of your own without such a form.
    folder
        Folder to write; must be empty or not exist yet.
    format
        ``"sae_lens"``: ``cfg.json`` and ``sae_weights.safetensors``, for ``SAE.load_from_disk`` of version 6.
        ``"dictionary_learning"``: ``config.json`` and ``ae.pt``, for ``load_dictionary``.
    scale
        The `ActivationStore.scale` of the activations it was trained on; by default the one it remembers
        (``sae.trained_on.scale``), or 1. It is folded into the weights as in SAELens: ``W_enc * scale``,
        ``W_dec / scale``, ``b_dec / scale``. Pre-activations do not change, so the encoder's biases, ``r_mag`` and all
        thresholds stay as they are.
    as_jumprelu
        Write any ``sae`` as a JumpReLU SAE with the same codes, for tools without gated SAEs (paper, appendix E). This
        is the only way to write a standard SAE with a positive `gate_threshold`.
    metadata
        More fields for SAELens' ``metadata`` or dictionary_learning's ``trainer``. If the SAE remembers its model and
        hook, they are included as ``model_name`` and ``hook_name``, or ``lm_name`` and ``submodule_name``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        ``sae`` cannot be expressed in ``format``, or an argument is not allowed; says why. Nothing is written.
    FileExistsError
        ``folder`` is a file or is not empty.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists; export writes a new folder or an empty one, so name another")
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
    """An SAE as tensors by name and the header from which `rebuild` makes it again.

    Raises a TypeError if its class is not in `ARCHITECTURES`, because the file would be read as another class.
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
        "frozen": sorted(sae.frozen),
        "decoder_cosine": sae.decoder_cosine,
        "trained_on": sae.trained_on and sae.trained_on._asdict(),
    }


def rebuild(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> SparseAutoencoder:
    """The SAE that `describe` described. A `SAEFileError` names ``path``."""
    try:
        settings = dict(header["settings"])
        dtype = getattr(torch, settings.pop("dtype"))
        sae = ARCHITECTURES[header["architecture"]](**settings, dtype=dtype)
        for knob in sae.live_settings:
            setattr(sae, knob.name, knob.checked(header["live_settings"][knob.name]))
        for name, parameter in sae.named_parameters():
            parameter.requires_grad_(name not in header["frozen"])
        if header["decoder_cosine"] is not None:
            sae.hold_decoder(header["decoder_cosine"])
        sae.trained_on = header["trained_on"] and TrainedOn(**header["trained_on"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SAEFileError(f"{path}: its header does not describe an SAE known to this SAELab ({error!r})") from error
    found = {name.removeprefix(_SAE): tensor for name, tensor in tensors.items() if name.startswith(_SAE)}
    expected = sae.state_dict()
    kind = f"{header['architecture']} SAE"
    check_tensors(path, found, {name: tuple(tensor.shape) for name, tensor in expected.items()}, kind, dtype)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(found[name])  # keeps the constructor's memory layout, so that training continues bit by bit
    return sae
