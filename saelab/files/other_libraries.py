"""The folders of SAELens and dictionary_learning: SAEs written for them, and theirs read.

Formats and what a setting does: sae-lens 6.54.12, ``saes/sae.py`` and ``loading/pretrained_sae_loaders.py``;
dictionary_learning 0.1.0, ``dictionary.py`` and ``utils.py``. The latter wants a pickle: it is read with
``weights_only``, which runs no code.
"""

import copy
import json
import math
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from saelab.errors import InputError
from saelab.files.tensor_files import SAEFileError, check_tensors, flush_to_disk, open_safetensors
from saelab.sae.base import ARCHITECTURES, Preset, SparseAutoencoder
from saelab.sae.declarations import ForeignForm

Format = Literal["sae_lens", "dictionary_learning"]
SAE_LENS_VERSION = "6.0.0"
"""What exported folders say they were written by: the first version with this format."""
_DTYPES = ("float32", "float64", "float16", "bfloat16")


class Portable(NamedTuple):
    """An SAE as it is written: what it does to unscaled activations stands in its tensors and settings alone."""

    cls: type[SparseAutoencoder]
    tensors: dict[str, Tensor]
    """By our names: ``W_enc``, ``W_dec``, ``b_dec``, and what the form of ``cls`` lists."""
    settings: dict[str, Any]

    @property
    def form(self) -> ForeignForm:
        assert self.cls.foreign is not None
        return self.cls.foreign


@torch.no_grad()
def portable(sae: SparseAutoencoder, scale: float, as_jumprelu: bool, format: Format) -> Portable:
    """What is written of an SAE that was trained on activations times ``scale``.

    Where ``format`` has no place for its architecture, it is written as the JumpReLU SAE with the same codes.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be positive and finite, not {scale}; it is the ActivationStore's")
    # A class that inherits its form may compute something else.
    its_own = {"foreign", "portable", *(("magnitude_line", "to_jumprelu") if as_jumprelu else ())}
    if not its_own & vars(type(sae)).keys():
        raise InputError(f"a {type(sae).__name__} has no form in other libraries; keep it with saelab.save")
    # Folding would round half precision once more.
    exact = copy.deepcopy(sae).to("cpu", torch.promote_types(sae.W_enc.dtype, torch.float32))
    written = exact.portable(as_jumprelu=as_jumprelu)
    if written.foreign is not None and getattr(written.foreign, format) is None:
        written = exact.portable(as_jumprelu=True)
    assert written.foreign is not None
    tensors = {name: tensor.detach() for name, tensor in written.state_dict().items()}
    # u = (scale * x - b_dec) @ W_enc = (x - b_dec / scale) @ (scale * W_enc), so that all that follows u stays.
    folded = {"W_enc": tensors["W_enc"] * scale, "W_dec": tensors["W_dec"] / scale, "b_dec": tensors["b_dec"] / scale}
    return Portable(type(written), {**tensors, **folded}, written.settings())


def _forms(format: Format) -> dict[str, type[SparseAutoencoder]]:
    """Our class for each name that a library has for an architecture."""
    known: dict[str, type[SparseAutoencoder]] = {}
    for cls in ARCHITECTURES.values():
        form = vars(cls).get("foreign")  # a class that inherits one is not what their files hold
        if form is not None and format == "sae_lens" and form.sae_lens:
            known[form.sae_lens] = cls
        if form is not None and format == "dictionary_learning" and form.dictionary_learning:
            known[form.dictionary_learning[0]] = cls
    return known


@torch.no_grad()
def _imported(
    path: Path,
    cls: type[SparseAutoencoder],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    settings: Mapping[str, Any],
) -> SparseAutoencoder:
    """An SAE of ours with ``tensors``, by our names; its preset is what the decoder's rows allow."""
    norms = tensors["W_dec"].float().norm(dim=1)
    unit = torch.allclose(norms, torch.ones_like(norms), atol=max(1e-3, torch.finfo(dtype).eps))
    preset: Preset = "paper" if unit else "norm_weighted"
    d_in, d_sae = tensors["W_enc"].shape
    try:
        sae = cls(d_in, d_sae, preset=preset, dtype=dtype, **settings)
    except (TypeError, ValueError) as error:
        raise SAEFileError(f"{path}: {error}") from error
    for name, parameter in sae.state_dict().items():
        parameter.copy_(tensors[name])
        if not parameter.isfinite().all():
            raise SAEFileError(f"{path}: tensor {name} holds NaN or infinite values")
    return sae


def _shapes(form: ForeignForm, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    features = dict.fromkeys(form.features, (d_sae,))
    return {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **features}


def _centered(tensors: dict[str, Tensor], sign: int) -> dict[str, Tensor]:
    """The same SAE with ``b_dec`` taken off its input where it was not (``sign`` 1), or the other way round (-1).

    ``x @ W_enc + b = (x - b_dec) @ W_enc + (b + b_dec @ W_enc)``; a gated SAE's magnitude sees the shift rescaled.
    """
    shift = sign * (tensors["b_dec"].double() @ tensors["W_enc"].double())
    shifts = {"b_enc": shift, "b_gate": shift}
    if "r_mag" in tensors:
        shifts["b_mag"] = shift * tensors["r_mag"].double().exp()
    return tensors | {name: (tensors[name] + shifts[name]).to(tensors[name].dtype) for name in tensors.keys() & shifts}


def _with_unit_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A standard SAE with the same reconstructions and decoder rows of unit norm, as ``AutoEncoder`` loads itself."""
    W_dec = tensors["W_dec"]
    norms = W_dec.norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return tensors
    # A row of zeros gets some direction, and its feature is never on.
    rows = torch.where(norms[:, None] > 0, W_dec / norms[:, None], W_dec.shape[1] ** -0.5)
    return tensors | {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms, "W_dec": rows}


def write_folder(folder: Path, foreign: "ForeignFormat", config: object, tensors: dict[str, Tensor]) -> None:
    """Write the two files beside ``folder`` and rename: it appears whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # one that was killed
    try:
        unfinished.mkdir(parents=True)
        (unfinished / foreign.config).write_text(json.dumps(config, indent=1), encoding="utf-8")
        foreign.write(tensors, unfinished / foreign.weights)
        for path in unfinished.iterdir():
            flush_to_disk(path)
        if folder.exists():
            folder.rmdir()  # fails unless it is still empty
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_foreign(path: Path) -> SparseAutoencoder | None:
    """The SAE in the folder ``path``, or beside the file ``path``, where those are another library's."""
    folder = path if path.is_dir() else path.parent
    pairs = [(foreign.read, folder / foreign.config, folder / foreign.weights) for foreign in FORMATS.values()]
    if path.suffix == ".pt":  # dictionary_learning's checkpoints/ae_STEP.pt, whose config.json lies above
        pairs.append((_read_dictionary_learning, folder.parent / "config.json", path))
    for reader, config_path, weights_path in pairs:
        if path in (folder, config_path, weights_path) and config_path.is_file() and weights_path.is_file():
            return reader(config_path, weights_path)
    return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SAEFileError(f"{path}: not whole JSON ({error})") from error
    if not isinstance(config, dict):
        raise SAEFileError(f"{path}: holds no fields but a {type(config).__name__}")
    return config


def _with_metadata(fields: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    if taken := fields.keys() & metadata.keys():
        raise InputError(f"metadata must not hold {', '.join(sorted(taken))}, which export itself writes")
    return {**fields, **metadata}


def _as_sae_lens(sae: Portable, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder for ``SAE.load_from_disk``."""
    tensors = sae.tensors
    d_in, d_sae = tensors["W_enc"].shape
    config = {
        "architecture": sae.form.sae_lens,
        **{field: sae.settings[name] for field, name in sae.form.sae_lens_fields.items()},
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _with_metadata({"sae_lens_version": SAE_LENS_VERSION}, metadata),
    }
    return config, tensors


def _read_sae_lens(config_path: Path, weights_path: Path) -> SparseAutoencoder:
    """What ``SAE.load_from_disk`` makes of the folder; a setting that changes more than biases is refused."""
    config = _read_config(config_path)
    metadata = config.get("metadata") or {}
    version = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    try:
        major = int(str(version or 0).split(".")[0])
    except ValueError as error:
        raise SAEFileError(f"{config_path}: field 'sae_lens_version' is {version!r}, no version") from error
    newest = int(SAE_LENS_VERSION.split(".")[0])
    if major > newest:
        raise SAEFileError(
            f"{config_path}: field 'sae_lens_version' is {version}, but this SAELab reads up to {newest}.x; "
            "install a newer one"
        )
    # What SAELens takes where a field is missing: `handle_config_defaulting`.
    hook = str(config.get("hook_name") or config.get("hook_point") or "") if major < newest else ""
    known = _forms("sae_lens")
    settings: dict[str, tuple[object, tuple[object, ...], str]] = {
        # field: its default, what may stand there, and what to do where something else does
        "architecture": ("standard" if major < newest else None, tuple(known), ""),
        "dtype": (None, tuple(f"{torch_}{name}" for torch_ in ("", "torch.") for name in _DTYPES), ""),
        "apply_b_dec_to_input": (True, (True, False), ""),
        "normalize_activations": (
            "none",
            ("none", None, False),
            ", since SAEs here do not normalise; SAELens can fold a constant factor or a whitening into weights",
        ),
        "reshape_activations": (
            "hook_z" if "hook_z" in hook else "none",
            ("none",),
            "; write that into a copy of the folder, and give it activations with their heads flattened into d_in",
        ),
        "activation_fn_str" if "activation_fn_str" in config else "activation_fn": ("relu", ("relu",), ""),
        # A TopK SAE's choice then goes by what each feature adds to the reconstruction.
        "rescale_acts_by_decoder_norm": (False, (True, False), ""),
    }
    for field, (default, allowed, advice) in settings.items():
        config.setdefault(field, default)
        if config[field] not in allowed:
            raise SAEFileError(
                f"{config_path}: field {field!r} is {config[field]!r}; "
                f"SAELab reads {', '.join(str(value) for value in allowed)}{advice}"
            )
    for field in ("d_in", "d_sae"):
        if type(config.get(field)) is not int or config[field] < 1:
            raise SAEFileError(f"{config_path}: field {field!r} is {config.get(field)!r}, no number from 1")
    tensors, _ = open_safetensors(weights_path)
    scaling_factor = tensors.pop("scaling_factor", torch.ones(1))  # in files of before version 6
    if not torch.equal(scaling_factor, torch.ones_like(scaling_factor)):
        raise SAEFileError(f"{weights_path}: tensor scaling_factor is not all ones; fold it into W_dec first")
    cls = known[config["architecture"]]
    assert cls.foreign is not None
    kind = f"SAELens {config['architecture']} SAE"
    check_tensors(weights_path, tensors, _shapes(cls.foreign, config["d_in"], config["d_sae"]), kind)
    own = {}
    for field, name in cls.foreign.sae_lens_fields.items():
        if field not in config:
            raise SAEFileError(f"{config_path}: field {field!r} of a {kind} is missing")
        own[name] = config[field]
    dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if config["rescale_acts_by_decoder_norm"]:
        tensors = _with_unit_rows(tensors)
    return _imported(
        weights_path, cls, tensors if config["apply_b_dec_to_input"] else _centered(tensors, 1), dtype, own
    )


def _as_dictionary_learning(sae: Portable, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder for ``load_dictionary``."""
    assert sae.form.dictionary_learning is not None
    dict_class, names = sae.form.dictionary_learning
    tensors = sae.tensors
    d_in, d_sae = tensors["W_enc"].shape
    trainer = _with_metadata({"dict_class": dict_class, "activation_dim": d_in, "dict_size": d_sae}, metadata)
    if dict_class == "AutoEncoder":
        tensors = _with_unit_rows(tensors)
    elif dict_class == "JumpReluAutoEncoder":  # alone there in taking no b_dec off its input
        tensors = _centered(tensors, -1)
    if "k" in sae.settings:
        trainer["k"] = sae.settings["k"]
    state = {theirs: tensors[ours].T if theirs.endswith(".weight") else tensors[ours] for theirs, ours in names.items()}
    for name, constant in sae.form.scalars.items():
        own = tensors.get(name, sae.settings.get(name))
        state[name] = torch.as_tensor(constant if own is None else own)
    return {"trainer": trainer, "buffer": {}}, state


def _read_dictionary_learning(config_path: Path, weights_path: Path) -> SparseAutoencoder:
    """What ``load_dictionary`` makes of the folder."""
    trainer = _read_config(config_path).get("trainer")
    dict_class = trainer.get("dict_class") if isinstance(trainer, dict) else None
    known = _forms("dictionary_learning")
    if not isinstance(dict_class, str) or dict_class not in known:
        raise SAEFileError(
            f"{config_path}: field 'trainer.dict_class' is {dict_class!r}; SAELab reads {', '.join(known)}"
        )
    cls = known[dict_class]
    assert cls.foreign is not None and cls.foreign.dictionary_learning is not None
    names = cls.foreign.dictionary_learning[1]
    state = _read_pickle(weights_path)
    encoder = next(theirs for theirs, ours in names.items() if ours == "W_enc")
    if encoder not in state or state[encoder].ndim != 2:
        raise SAEFileError(f"{weights_path}: tensor {encoder} of {dict_class} is missing or no matrix")
    d_in, d_sae = state[encoder].T.shape if encoder.endswith(".weight") else state[encoder].shape
    scalars = {name: state.pop(name) for name in cls.foreign.scalars if name in state}
    for name, constant in cls.foreign.scalars.items():
        if constant is None and (name not in scalars or scalars[name].ndim):
            raise SAEFileError(f"{weights_path}: tensor {name} of {dict_class} is missing or no number")
    shapes = _shapes(cls.foreign, d_in, d_sae)
    expected = {
        theirs: shapes[ours][::-1] if theirs.endswith(".weight") else shapes[ours] for theirs, ours in names.items()
    }
    check_tensors(weights_path, state, expected, f"dictionary_learning {dict_class}")
    dtype = torch.promote_types(state[encoder].dtype, torch.float32)  # it computes in float32, whatever the file has
    tensors = {
        ours: (state[theirs].T if theirs.endswith(".weight") else state[theirs]).detach().to(dtype)
        for theirs, ours in names.items()
    }
    if dict_class == "AutoEncoder":
        tensors = _with_unit_rows(tensors)  # as its loader does
    elif dict_class == "JumpReluAutoEncoder":
        tensors = _centered(tensors, 1)
    needed = {name: scalars[name] for name, constant in cls.foreign.scalars.items() if constant is None}
    own = {"k": int(needed.pop("k"))} if "k" in needed else {}
    buffers = {name: number.to(dtype) for name, number in needed.items()}
    return _imported(weights_path, cls, {**tensors, **buffers}, dtype, own)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote; anything else in it is refused, and no code of it runs."""
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # Without torch's own message, which tells how to run the code.
            raise SAEFileError(
                f"{path}: its pickle holds more than tensors, which may be code; or is damaged"
            ) from None
        except Exception as error:  # a damaged file may raise anything
            raise SAEFileError(f"{path}: not a whole file of torch.save ({error!r})") from error
    if isinstance(state, dict) and "ae" in state:
        raise SAEFileError(f"{path}: field 'ae' makes it a backup of a training that was not finished; load its ae.pt")
    if not isinstance(state, dict):
        raise SAEFileError(f"{path}: holds a {type(state).__name__}, no state_dict")
    for name, tensor in state.items():
        # A tensor may also claim a size that its file does not have.
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not isinstance(name, str) or not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise SAEFileError(f"{path}: field {name!r} is no tensor whose values are all in the file")
    return state


class ForeignFormat(NamedTuple):
    """Two files in a folder, and what turns them into an SAE and back."""

    config: str
    weights: str
    origin_fields: tuple[str, str]
    """Of its metadata: what it calls the model's name and the hook's."""
    describe: Callable[[Portable, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Tensor]]]
    """From an SAE and metadata: its config and its tensors."""
    read: Callable[[Path, Path], SparseAutoencoder]
    write: Callable[[dict[str, Tensor], Path], object]


FORMATS: dict[Format, ForeignFormat] = {
    "sae_lens": ForeignFormat(
        "cfg.json", "sae_weights.safetensors", ("model_name", "hook_name"), _as_sae_lens, _read_sae_lens, save_file
    ),
    "dictionary_learning": ForeignFormat(
        "config.json",
        "ae.pt",
        ("lm_name", "submodule_name"),
        _as_dictionary_learning,
        _read_dictionary_learning,
        torch.save,
    ),
}
