"""SAEs go to SAELens and dictionary_learning and come back with equal outputs; what cannot is refused with a reason.

The formulas of both libraries stand here a second time, from their source (sae-lens 6.54.12, dictionary_learning
0.1.0); `tests/benchmarks/interchange_with_libraries.py` compares with the libraries themselves.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelab import (
    ARCHITECTURES,
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SAEFileError,
    SparseAutoencoder,
    StandardSAE,
)
from saelab.files.other_libraries import Format
from saelab.files.sae_files import export, load

D_IN, D_SAE = 8, 24
FEATURES = {"standard": ("b_enc",), "gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
FORMATS: tuple[Format, ...] = ("sae_lens", "dictionary_learning")
Outputs = tuple[Tensor, Tensor]


def random_tensors(*names: str) -> dict[str, Tensor]:
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    return {name: torch.randn(shapes.get(name, (D_SAE,))) * 0.3 for name in ("W_enc", "W_dec", "b_dec", *names)}


def randomized(sae: ElementwiseSAE, gate_threshold: float = 0.0) -> ElementwiseSAE:
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        sae.normalize_decoder()
        if isinstance(sae, RescaleShiftSAE):
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    sae.gate_threshold = gate_threshold
    return sae


def sae_lens_folder(folder: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    config = {
        "architecture": "gated", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2"}, **settings,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def dictionary_learning_folder(folder: Path, dict_class: str, state: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"trainer": {"dict_class": dict_class, "layer": 3}, "buffer": {}}), encoding="utf-8"
    )
    torch.save(state, folder / "ae.pt")
    return folder


def sae_lens_computes(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Outputs:
    sae_in = x - w["b_dec"] * config["apply_b_dec_to_input"]
    if config["architecture"] == "gated":
        on = (sae_in @ w["W_enc"] + w["b_gate"] > 0).float()
        codes = on * torch.relu(sae_in @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    else:
        hidden_pre = sae_in @ w["W_enc"] + w["b_enc"]
        codes = torch.relu(hidden_pre)
        if config["architecture"] == "jumprelu":
            codes = codes * (hidden_pre > w["threshold"]).float()
    return codes, codes @ w["W_dec"] + w["b_dec"]


def dictionary_learning_computes(dict_class: str, w: dict[str, Tensor], x: Tensor) -> Outputs:
    if dict_class == "JumpReluAutoEncoder":
        pre_jump = x @ w["W_enc"] + w["b_enc"]
        codes = torch.relu(pre_jump * (pre_jump > w["threshold"]))
        return codes, codes @ w["W_dec"] + w["b_dec"]
    if dict_class == "AutoEncoder":  # which it normalises as it loads it
        norms = w["decoder.weight"].norm(dim=0)
        codes = torch.relu((x - w["bias"]) @ (w["encoder.weight"] * norms[:, None]).T + w["encoder.bias"] * norms)
        return codes, codes @ (w["decoder.weight"] / norms).T + w["bias"]
    x_enc = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    codes = (x_enc + w["gate_bias"] > 0) * torch.relu(w["r_mag"].exp() * x_enc + w["mag_bias"])
    return codes, codes @ w["decoder.weight"].T + w["decoder_bias"]


def its_library_computes(folder: Path, x: Tensor) -> Outputs:
    if (folder / "cfg.json").exists():
        return sae_lens_computes(
            json.loads((folder / "cfg.json").read_text(encoding="utf-8")),
            load_file(folder / "sae_weights.safetensors"),
            x,
        )
    state = torch.load(folder / "ae.pt", weights_only=True)
    return dictionary_learning_computes(
        json.loads((folder / "config.json").read_text(encoding="utf-8"))["trainer"]["dict_class"], state, x
    )


@torch.no_grad()
def assert_outputs(sae: SparseAutoencoder, x: Tensor, expected: Outputs) -> None:
    codes = sae.encode(x)
    assert 0.05 < (codes > 0).float().mean() < 0.95
    torch.testing.assert_close(codes, expected[0].to(codes.dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae.decode(codes), expected[1].to(codes.dtype), rtol=1e-6, atol=1e-6)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(60, D_IN)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", FEATURES)
def test_a_sae_lens_folder_loads_with_equal_outputs(
    architecture: str, apply_b_dec_to_input: bool, tmp_path: Path, x: Tensor
) -> None:
    tensors = random_tensors(*FEATURES[architecture])
    settings = {"architecture": architecture, "apply_b_dec_to_input": apply_b_dec_to_input}
    folder = sae_lens_folder(tmp_path, tensors, **settings, l1_coefficient=5.0, decoder_init_norm=0.1)
    sae = load(folder)
    assert sae.architecture == architecture
    assert_outputs(sae, x, sae_lens_computes(settings, tensors, x))


@pytest.mark.parametrize("dict_class", ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_a_dictionary_learning_folder_loads_with_equal_outputs(dict_class: str, tmp_path: Path, x: Tensor) -> None:
    classes: dict[str, dict[str, tuple[int, ...]]] = {
        "AutoEncoder": {"bias": (D_IN,), "encoder.bias": (D_SAE,)},
        "GatedAutoEncoder": {"decoder_bias": (D_IN,), "r_mag": (D_SAE,), "gate_bias": (D_SAE,), "mag_bias": (D_SAE,)},
        "JumpReluAutoEncoder": {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,),
                                "threshold": (D_SAE,)},
    }  # fmt: skip
    shapes = classes[dict_class]
    if dict_class != "JumpReluAutoEncoder":
        shapes = {**shapes, "encoder.weight": (D_SAE, D_IN), "decoder.weight": (D_IN, D_SAE)}
    state = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    sae = load(dictionary_learning_folder(tmp_path, dict_class, state))
    assert_outputs(sae, x, dictionary_learning_computes(dict_class, state, x))
    assert sae.preset == ("paper" if dict_class == "AutoEncoder" else "norm_weighted")


SAES = {
    "standard": lambda: randomized(StandardSAE(D_IN, D_SAE)),
    "standard below its threshold": lambda: randomized(StandardSAE(D_IN, D_SAE, preset="norm_weighted"), -0.2),
    "gated": lambda: randomized(GatedSAE(D_IN, D_SAE, preset="norm_weighted")),
    "gated with a threshold": lambda: randomized(GatedSAE(D_IN, D_SAE, ablations=["unfrozen_decoder"]), 0.2),
    "gated without r_mag": lambda: randomized(GatedSAE(D_IN, D_SAE, ablations=["no_r_mag", "no_auxiliary"]), -0.2),
    "rescale and shift": lambda: randomized(RescaleShiftSAE(D_IN, D_SAE), 0.1),
    "JumpReLU": lambda: randomized(JumpReLUSAE(D_IN, D_SAE), 0.1),
    "float64": lambda: randomized(GatedSAE(D_IN, D_SAE, dtype=torch.float64), 0.1),
}


@pytest.mark.parametrize("as_jumprelu", [False, True], ids=["as it is", "as JumpReLU"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", SAES)
def test_an_exported_sae_takes_the_models_own_activations_and_gives_equal_outputs_there_and_back(
    kind: str, format: Format, as_jumprelu: bool, tmp_path: Path, x: Tensor
) -> None:
    sae, scale = SAES[kind](), 2.5
    x = x.to(sae.W_enc.dtype)
    folder = export(sae, tmp_path / "out", format, scale=scale, as_jumprelu=as_jumprelu)
    with torch.no_grad():
        codes, reconstruction = sae.encode(x), sae(x) / scale  # the SAE's own x is scaled already
        if format == "dictionary_learning" and sae.architecture == "standard" and not as_jumprelu:
            codes = codes * sae.W_dec.norm(dim=1) / scale  # an AutoEncoder: unit decoder rows
    back = load(folder)
    assert back.architecture == (
        "jumprelu" if as_jumprelu else "gated" if sae.architecture == "rescale_shift" else sae.architecture
    )
    assert_outputs(back, x / scale, (codes, reconstruction))
    theirs = its_library_computes(folder, x / scale)
    torch.testing.assert_close(theirs[0], codes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theirs[1], reconstruction, rtol=1e-6, atol=1e-6)


def test_a_standard_sae_with_a_positive_threshold_goes_out_as_jumprelu_or_not_at_all(tmp_path: Path, x: Tensor) -> None:
    sae = randomized(StandardSAE(D_IN, D_SAE), 0.3)
    with pytest.raises(ValueError, match=r"gate_threshold=0.3 .*as_jumprelu=True"):
        export(sae, tmp_path / "out", "sae_lens")
    assert list(tmp_path.iterdir()) == []
    back = load(export(sae, tmp_path / "out", "sae_lens", as_jumprelu=True))
    assert_outputs(back, x, (sae.encode(x), sae(x)))


def test_sae_lens_finds_its_fields_and_contiguous_tensors(tmp_path: Path) -> None:
    metadata = {"model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post"}
    folder = export(randomized(GatedSAE(D_IN, D_SAE)), tmp_path / "a" / "out", "sae_lens", metadata=metadata)
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert json.loads((folder / "cfg.json").read_text(encoding="utf-8")) == {
        "architecture": "gated", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **metadata},
    }  # fmt: skip
    tensors = load_file(folder / "sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,),
        "b_gate": (D_SAE,), "b_mag": (D_SAE,), "r_mag": (D_SAE,),
    }  # fmt: skip


def test_dictionary_learning_finds_its_class_its_tensors_and_a_normalised_decoder(tmp_path: Path) -> None:
    sae = StandardSAE(D_IN, D_SAE, preset="norm_weighted")
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) * 3)
        sae.W_dec[0] = 0
    folder = export(sae, tmp_path / "out", "dictionary_learning", metadata={"lm_name": "gpt2", "layer": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["ae.pt", "config.json"]
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D_IN, "dict_size": D_SAE, "lm_name": "gpt2", "layer": 2}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {"trainer": trainer, "buffer": {}}
    state = torch.load(folder / "ae.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "bias": (D_IN,), "encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "decoder.weight": (D_IN, D_SAE),
    }  # fmt: skip
    norms = state["decoder.weight"].norm(dim=0)
    assert torch.allclose(norms, torch.ones(D_SAE))  # else it would print, and divide the row of zeros by zero


def test_the_preset_of_a_loaded_sae_is_what_its_decoder_allows(tmp_path: Path) -> None:
    for index, (preset, norm) in enumerate((("paper", 1.0), ("norm_weighted", 0.1))):
        tensors = random_tensors("b_enc")
        tensors["W_dec"] *= norm / tensors["W_dec"].norm(dim=1, keepdim=True)
        sae = load(sae_lens_folder(tmp_path / str(index), tensors, architecture="standard"))
        assert sae.preset == preset
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.tensor(norm))


def test_a_half_precision_sae_is_written_in_float32_and_loses_nothing(tmp_path: Path) -> None:
    sae = randomized(GatedSAE(D_IN, D_SAE, dtype=torch.bfloat16))
    for format in FORMATS:
        back = load(export(sae, tmp_path / format, format))
        assert back.W_enc.dtype == torch.float32
        for name, parameter in sae.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter.float())


def test_a_sae_lens_folder_keeps_its_dtype(tmp_path: Path) -> None:
    sae = load(sae_lens_folder(tmp_path, random_tensors(*FEATURES["gated"]), dtype="torch.bfloat16"))
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.bfloat16}


def test_a_dictionary_learning_sae_is_never_in_less_than_float32(tmp_path: Path) -> None:
    sae = randomized(GatedSAE(D_IN, D_SAE))
    folder = export(sae, tmp_path / "out", "dictionary_learning")
    half = {name: tensor.half() for name, tensor in torch.load(folder / "ae.pt", weights_only=True).items()}
    torch.save(half, folder / "ae.pt")
    assert load(folder).W_enc.dtype == torch.float32


def test_a_folder_or_any_file_in_it_can_be_named(tmp_path: Path) -> None:
    sae = randomized(GatedSAE(D_IN, D_SAE))
    files: dict[Format, tuple[str, str]] = {
        "sae_lens": ("cfg.json", "sae_weights.safetensors"),
        "dictionary_learning": ("config.json", "ae.pt"),
    }
    for format, names in files.items():
        folder = export(sae, tmp_path / format, format)
        for path in (str(folder), folder / names[0], folder / names[1]):
            assert torch.equal(load(path).W_dec, sae.W_dec)
    (folder / "checkpoints").mkdir()
    checkpoint = (folder / "ae.pt").rename(folder / "checkpoints" / "ae_500.pt")
    assert torch.equal(load(checkpoint).W_dec, sae.W_dec)


def test_sae_lens_folders_from_before_version_6_load(tmp_path: Path, x: Tensor) -> None:
    tensors = random_tensors("b_enc")
    legacy = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "hook_point": "blocks.2.hook_resid_pre",
        "activation_fn_str": "relu", "normalize_activations": False, "model_name": "gpt2", "expansion_factor": 3,
    }  # fmt: skip
    folder = sae_lens_folder(tmp_path, {**tensors, "scaling_factor": torch.ones(D_SAE)})

    def written(**changes: object) -> Path:
        (folder / "cfg.json").write_text(json.dumps({**legacy, **changes}), encoding="utf-8")
        return folder

    assert_outputs(
        load(written()), x, sae_lens_computes({"architecture": "standard", "apply_b_dec_to_input": True}, tensors, x)
    )
    for changes, field in (
        ({"activation_fn_str": "topk"}, "'activation_fn_str' is 'topk'"),
        ({"hook_point": "blocks.2.attn.hook_z"}, "'reshape_activations' is 'hook_z'"),
        ({"normalize_activations": True}, "'normalize_activations' is True"),
    ):
        with pytest.raises(SAEFileError, match=f"cfg.json: field {field}"):
            load(written(**changes))
    save_file({**tensors, "scaling_factor": torch.rand(D_SAE)}, folder / "sae_weights.safetensors")
    with pytest.raises(SAEFileError, match="sae_weights.safetensors: tensor scaling_factor is not all ones"):
        load(written())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "field 'architecture' is 'temporal'; SAELab reads standard, gated, jumprelu"),
        ({"architecture": None}, "field 'architecture' is None"),
        ({"normalize_activations": "layer_norm"}, "field 'normalize_activations' is 'layer_norm'; SAELab reads none"),
        ({"normalize_activations": "expected_average_only_in"}, "field 'normalize_activations'"),
        ({"reshape_activations": "hook_z"}, "field 'reshape_activations' is 'hook_z'.*flattened"),
        ({"apply_b_dec_to_input": "yes"}, "field 'apply_b_dec_to_input' is 'yes'"),
        ({"dtype": "int8"}, "field 'dtype' is 'int8'"),
        ({"d_in": "8"}, "field 'd_in' is '8'"),
        ({"d_sae": 0}, "field 'd_sae' is 0"),
        ({"metadata": {"sae_lens_version": "7.1.0"}}, "field 'sae_lens_version' is 7.1.0.*install a newer one"),
        ({"sae_lens_version": "new"}, "field 'sae_lens_version' is 'new'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_sae_lens_setting_that_cannot_be_kept_is_refused_by_name(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = sae_lens_folder(tmp_path, random_tensors(*FEATURES["gated"]), **changes)
    with pytest.raises(SAEFileError, match=f"cfg.json: {message}"):
        load(folder)


def test_a_sae_lens_folder_that_is_damaged_says_which_file_and_what(tmp_path: Path) -> None:
    tensors = random_tensors(*FEATURES["gated"])
    folder = sae_lens_folder(tmp_path, tensors)
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    for wrong, message in (
        ({"b_gate": None}, "tensor b_gate of a SAELens gated SAE is missing"),
        (
            {"b_gate": torch.ones(3)},
            r"tensor b_gate is torch.float32 of shape \(3,\); expected floating point of \(24,\)",
        ),
        ({"W_enc": torch.ones(D_IN, D_SAE, dtype=torch.int32)}, "tensor W_enc is torch.int32"),
        ({"b_enc": torch.ones(D_SAE)}, "unknown tensor.* b_enc in a SAELens gated SAE"),
        ({"b_mag": torch.full((D_SAE,), torch.nan)}, "tensor b_mag holds NaN"),
    ):
        kept = {name: tensor for name, tensor in {**tensors, **wrong}.items() if tensor is not None}
        save_file(kept, weights)
        with pytest.raises(SAEFileError, match=f"sae_weights.safetensors: {message}"):
            load(folder)
    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(SAEFileError, match="sae_weights.safetensors: not a complete safetensors file"):
        load(folder)
    config.write_bytes(config.read_bytes()[:40])
    with pytest.raises(SAEFileError, match="cfg.json: not whole JSON"):
        load(folder)
    config.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(SAEFileError, match="cfg.json: not whole JSON"):
        load(folder)
    config.write_text("[1]", encoding="utf-8")
    with pytest.raises(SAEFileError, match="cfg.json: holds no fields but a list"):
        load(folder)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile-code-ran",)


def test_code_in_an_ae_pt_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = dictionary_learning_folder(tmp_path / "in", "GatedAutoEncoder", {"r_mag": Hostile()})
    with pytest.raises(SAEFileError, match="ae.pt: its pickle holds more than tensors") as error:
        load(folder)
    assert not (tmp_path / "hostile-code-ran").exists()
    assert error.value.__suppress_context__  # torch's own message tells how to run it


def test_a_dictionary_learning_folder_that_is_wrong_says_which_file_and_what(tmp_path: Path) -> None:
    state = torch.load(
        export(randomized(GatedSAE(D_IN, D_SAE)), tmp_path / "good", "dictionary_learning") / "ae.pt", weights_only=True
    )
    folder, dict_class = tmp_path / "in", "GatedAutoEncoder"
    huge = torch.ones(1).expand(10**6, 10**6)
    for wrong, message in (
        ({**state, "gate_bias": torch.ones(2)}, r"tensor gate_bias is torch.float32 of shape \(2,\)"),
        ({**state, "decoder.weight": state["encoder.weight"]}, "tensor decoder.weight is"),
        ({**state, "k": torch.tensor(3)}, "unknown tensor.* k in a dictionary_learning GatedAutoEncoder"),
        ({**state, "mag_bias": torch.full((D_SAE,), torch.inf)}, "tensor b_mag holds NaN or infinite"),
        ({"r_mag": state["r_mag"]}, "tensor encoder.weight of GatedAutoEncoder is missing"),
        ({**state, "encoder.weight": huge}, "field 'encoder.weight' is no tensor whose values are all in the file"),
        ({**state, "r_mag": [1.0]}, "field 'r_mag' is no tensor"),
        ({"step": 7, "ae": state, "optimizer": {}}, "field 'ae' makes it a backup"),
        ([1, 2], "holds a list"),
    ):
        dictionary_learning_folder(folder, dict_class, wrong)
        with pytest.raises(SAEFileError, match=f"ae.pt: {message}"):
            load(folder)
    for content in (b"", b"no pickle", (tmp_path / "good" / "ae.pt").read_bytes()[:-100]):
        (folder / "ae.pt").write_bytes(content)
        with pytest.raises(SAEFileError, match="ae.pt: "):
            load(folder)
    for config, message in (
        (
            '{"trainer": {"dict_class": "CrossCoder"}}',
            "field 'trainer.dict_class' is 'CrossCoder'; SAELab reads",
        ),
        ('{"trainer": {}}', "field 'trainer.dict_class' is None"),
        ('{"model_type": "gpt2"}', "field 'trainer.dict_class' is None"),
        ('{"trainer": {"dict', "not whole JSON"),
    ):
        (folder / "config.json").write_text(config, encoding="utf-8")
        with pytest.raises(SAEFileError, match=f"config.json: {message}"):
            load(folder)


def test_what_is_none_of_the_formats_says_what_load_takes(tmp_path: Path) -> None:
    takes = "load takes a file that SAELab wrote.*SAELens folder.*dictionary_learning folder"
    with pytest.raises(SAEFileError, match=f"It holds nothing; {takes}"):
        load(tmp_path)
    folder = dictionary_learning_folder(tmp_path / "in", "GatedAutoEncoder", {})
    (folder / "config.json").unlink()
    with pytest.raises(SAEFileError, match=f"It holds ae.pt; {takes}"):
        load(folder)
    with pytest.raises(SAEFileError, match=takes):
        load(folder / "ae.pt")
    with pytest.raises(FileNotFoundError, match="no file .*absent"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(format: Format, tmp_path: Path) -> None:
    class Own(StandardSAE):
        """Might compute anything."""

    nan = StandardSAE(D_IN, D_SAE)
    torch.nn.init.constant_(nan.b_enc, torch.nan)
    reserved = {"sae_lens": "sae_lens_version", "dictionary_learning": "dict_class"}[format]
    for sae, options, message in (
        (GatedSAE(D_IN, D_SAE, ablations=["untied_encoders"]), {}, "untied encoders cannot be exported.*W_mag"),
        (GatedSAE(D_IN, D_SAE, ablations=["untied_encoders"]), {"as_jumprelu": True}, "untied encoders"),
        (Own(D_IN, D_SAE), {}, "a Own has no form in other libraries"),
        (Own(D_IN, D_SAE), {"as_jumprelu": True}, "a Own has no form in other libraries"),
        (nan, {}, "would hold NaN"),
        (StandardSAE(D_IN, D_SAE), {"scale": 0.0}, "scale must be positive"),
        (StandardSAE(D_IN, D_SAE), {"scale": 1e-45}, "would hold NaN or infinite values.*scale=1e-45"),
        (StandardSAE(D_IN, D_SAE), {"metadata": {reserved: "5"}}, f"metadata must not hold {reserved}"),
    ):
        with pytest.raises(ValueError, match=message):
            export(sae, tmp_path / "out", format, **options)
    with pytest.raises(TypeError, match="JSON"):
        export(StandardSAE(D_IN, D_SAE), tmp_path / "out", format, metadata={"when": object()})
    with pytest.raises(ValueError, match="format must be one of sae_lens, dictionary_learning, not 'onnx'"):
        export(StandardSAE(D_IN, D_SAE), tmp_path / "out", "onnx")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_export_writes_over_no_folder_but_an_empty_one_and_appears_whole(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, folder = randomized(GatedSAE(D_IN, D_SAE)), tmp_path / "out"
    killed = tmp_path / ".out.unfinished"
    killed.mkdir()
    (killed / "half").write_text("of a write that was killed", encoding="utf-8")
    folder.mkdir()
    export(sae, folder, format)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(list(folder.iterdir())) == 2
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="out already exists.*an empty one"):
        export(StandardSAE(D_IN, D_SAE), folder, format)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(FileExistsError):
        export(sae, folder / next(iter(before)), format)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        export(sae, tmp_path / "new", format)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exported_sae_is_left_as_it_was(tmp_path: Path) -> None:
    sae = randomized(GatedSAE(D_IN, D_SAE), 0.1)
    before = {name: parameter.clone() for name, parameter in sae.named_parameters()}
    for format in FORMATS:
        export(sae, tmp_path / format, format, scale=3.0, as_jumprelu=True)
    assert sae.gate_threshold == 0.1 and all(torch.equal(sae.get_parameter(name), old) for name, old in before.items())


@pytest.mark.parametrize("format", FORMATS)
def test_a_class_of_ones_own_takes_over_no_file_of_the_architecture_it_derives_from(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(randomized(GatedSAE(D_IN, D_SAE)), tmp_path / "gated", format)

    class Unregistered(GatedSAE):
        pass

    monkeypatch.setitem(ARCHITECTURES, "my_own", Unregistered)  # taken out again after the test

    class Own(Unregistered):
        architecture = "my_own"

    assert type(load(tmp_path / "gated")) is GatedSAE
    with pytest.raises(ValueError, match="a Own has no form in other libraries"):
        export(Own(D_IN, D_SAE), tmp_path / "own", format)
