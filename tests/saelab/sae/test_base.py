"""What every architecture shares, and how a new one is registered."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saelab import ARCHITECTURES, GatedSAE, SparseAutoencoder, StandardSAE, Trainer, TrainingConfig, load, save
from saelab.quantities import QUANTITIES
from saelab.sae.base import ENCODER_SCALE, L1_COEFFICIENT, SPARSITY, quantity_of
from saelab.sae.declarations import Knob, LossTerm
from saelab.sae.sparse import Entries


@pytest.mark.parametrize("make", ARCHITECTURES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_decode_of_encode_for_any_leading_shape(make: type[SparseAutoencoder], dtype: torch.dtype) -> None:
    sae, x = make(8, 32, dtype=dtype), torch.randn(3, 5, 8, dtype=dtype)
    codes = sae.encode(x)
    assert codes.shape == (3, 5, 32) and codes.dtype == dtype and bool((codes >= 0).all())
    assert torch.equal(sae(x), sae.decode(codes))


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_same_seed_gives_the_same_unit_norm_dictionary(make: type[SparseAutoencoder]) -> None:
    first, second, other = make(8, 32, seed=1), make(8, 32, seed=1), make(8, 32, seed=2)
    assert torch.equal(first.W_dec, second.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(first.W_enc, ENCODER_SCALE * first.W_dec.T)


@given(st.integers(0, 1000))
def test_projected_gradient_does_not_change_any_row_norm(seed: int) -> None:
    sae = StandardSAE(5, 7, seed=seed, dtype=torch.float64)
    sae.W_dec.grad = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sae.project_decoder_gradient()
    assert torch.allclose((sae.W_dec.grad * sae.W_dec).sum(dim=1), torch.zeros(7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("make", ARCHITECTURES.values())
@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (torch.randn(4, 9), ValueError, "width 9.*d_in=8"),
        (torch.empty(0, 8), ValueError, "empty"),
        (torch.tensor(3.0), ValueError, "empty"),
        (torch.full((4, 8), float("nan")), ValueError, "32 NaN or infinite"),
        (torch.ones(4, 8, dtype=torch.long), TypeError, "floating-point.*int64"),
    ],
)
def test_wrong_activations_get_a_sentence(
    make: type[SparseAutoencoder], x: Tensor, error: type[Exception], sentence: str
) -> None:
    sae = make(8, 32)
    with pytest.raises(error, match=sentence):
        sae.encode(x)
    with pytest.raises(error, match=sentence):
        sae.loss(x)


def test_wrong_sizes_presets_and_codes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GatedSAE(0, 4)
    with pytest.raises(ValueError, match="paper, norm_weighted.*'mixed'"):
        GatedSAE(4, 4, preset="mixed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width 5.*d_sae=4"):
        GatedSAE(4, 4).decode(torch.ones(2, 5))


def test_device_auto_takes_the_gpu_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("meta"))  # stands for a GPU
    assert GatedSAE(4, 4, device="auto").W_enc.device.type == "meta"


# One's own architecture.


@pytest.fixture
def registry() -> Iterator[dict[str, type[SparseAutoencoder]]]:
    before = dict(ARCHITECTURES)
    yield ARCHITECTURES
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


class Linear(SparseAutoencoder):
    """A base that names no architecture, and so is not registered."""

    feature_parameters = ("b_enc",)

    def activate(self, entries: Entries) -> Tensor:
        return (entries.u + entries.per_feature(self.get_parameter("b_enc"))).abs()


def test_defining_a_class_registers_it_and_it_trains_and_is_kept(
    registry: dict[str, type[SparseAutoencoder]], tmp_path: Path
) -> None:
    class Mine(Linear):
        architecture = "my_own"

    assert registry["my_own"] is Mine and Mine.label == "my own" and Linear not in registry.values()
    sae, x = Mine(6, 12), torch.randn(200, 6)
    before = sae.loss(x).total.item()
    Trainer(sae, x, TrainingConfig(n_steps=100, batch_size=64, lr=1e-2)).run(progress=False)
    assert sae.loss(x).total.item() < 0.5 * before
    assert torch.equal(load(save(sae, tmp_path / "sae.safetensors")).encode(x), sae.encode(x))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_name_of_one_of_the_librarys_architectures_is_taken(
    name: str, registry: dict[str, type[SparseAutoencoder]]
) -> None:
    theirs = registry[name]
    with pytest.raises(ValueError, match=f"'{name}' is saelab.{theirs.__name__}; give Mine an `architecture` of its"):
        type("Mine", (Linear,), {"architecture": name})
    assert registry[name] is theirs


@pytest.mark.parametrize("name", ["a/b", "a:b", "a b", "", "../a", "a.b"])
def test_a_name_that_no_file_could_have_on_every_system_is_refused(
    name: str, registry: dict[str, type[SparseAutoencoder]]
) -> None:
    with pytest.raises(ValueError, match="part of file names on every system"):
        type("Mine", (Linear,), {"architecture": name})
    assert name not in registry


def test_ones_own_class_may_be_defined_again_with_other_knobs(registry: dict[str, type[SparseAutoencoder]]) -> None:
    knob = replace(L1_COEFFICIENT, name="my_price")
    for default in (1.0, 2.0):  # as a notebook's cell that is run again
        term = LossTerm("mine", "my term", replace(knob, default=default), hue="l0")
        again = type("Mine", (Linear,), {"architecture": "my_own", "terms": (term,)})
        assert registry["my_own"] is again and registry["my_own"].knobs()["my_price"].default == default


def test_a_knobs_name_means_the_same_in_every_architecture(registry: dict[str, type[SparseAutoencoder]]) -> None:
    shared = type("Shared", (Linear,), {"architecture": "shared", "terms": (SPARSITY,)})
    assert registry["shared"] is shared  # the same knob under the same name
    other: Knob = replace(L1_COEFFICIENT, default=3.0)
    with pytest.raises(ValueError, match="Mine declares another knob 'l1_coefficient' than StandardSAE; .*call yours"):
        type("Mine", (Linear,), {"architecture": "my_own", "terms": (SPARSITY._replace(coefficient=other),)})
    with pytest.raises(ValueError, match="Mine declares another knob 'gate_threshold' than StandardSAE"):
        type("Mine", (Linear,), {"architecture": "my_own", "live_settings": (replace(other, name="gate_threshold"),)})
    assert "my_own" not in registry


@pytest.mark.parametrize("name", ["lr", "step", "l0"])
def test_a_knob_or_a_term_cannot_take_the_name_of_a_tables_column(
    registry: dict[str, type[SparseAutoencoder]], name: str
) -> None:
    knob = replace(L1_COEFFICIENT, name=name)
    for declared in (
        {"live_settings": (knob,)},
        {"terms": (SPARSITY._replace(coefficient=knob),)},
        {"terms": (SPARSITY._replace(name=name),)},
    ):
        with pytest.raises(ValueError, match=f"Mine cannot call .* {name!r}: .*; call it otherwise"):
            type("Mine", (Linear,), {"architecture": "my_own", **declared})
    assert "my_own" not in registry


def test_a_knob_and_a_term_are_described_where_they_are_declared(registry: dict[str, type[SparseAutoencoder]]) -> None:
    knob = replace(L1_COEFFICIENT, name="my_price", label="My price", symbol="p", meaning="Price of mine.")
    type("Mine", (Linear,), {"architecture": "my_own", "terms": (LossTerm("mine", "my term", knob, hue="fvu"),)})
    price, term = quantity_of("my_price"), quantity_of("mine")
    assert (price.label, price.axis_label, price.sentence) == ("My price", "my price p", "Price of mine.")
    assert (term.label, term.axis_label, term.colour) == ("my term", "my term", QUANTITIES["fvu"].colour)


def test_a_column_that_is_not_described_is_called_by_its_name_in_plain_words() -> None:
    unknown = quantity_of("My_score")
    assert (unknown.label, unknown.axis_label, unknown.sentence, unknown.digits) == ("My score", "My score", "", None)
    assert quantity_of("gamma") is QUANTITIES["gamma"]
