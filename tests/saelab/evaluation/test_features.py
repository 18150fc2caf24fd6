"""What is read about a feature against what loops over all tokens find, and against the model itself."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import saelab
from saelab.data.activations import ActivationStore
from saelab.evaluation.features import FeatureReading, read_features
from saelab.evaluation.splicing import spliced
from saelab.sae.standard import StandardSAE

PLANTED = 7
LAST = "blocks.3.hook_resid_post"


def sparse_sae(d_in: int = 256, d_sae: int = 40) -> StandardSAE:
    """Random features, none of them on everywhere."""
    sae = StandardSAE(d_in, d_sae, seed=3)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-1.0)
    return sae


@pytest.fixture(scope="module")
def sae(store: ActivationStore) -> StandardSAE:
    """One feature of it is planted: the activation on one token of the store, a little of it on few others."""
    sae = sparse_sae()
    direction = store.activations[1234] / store.activations[1234].norm()
    with torch.no_grad():
        sae.W_enc[:, PLANTED] = direction
        sae.b_enc[PLANTED] = -float((store.activations @ direction).quantile(0.97))
        sae.b_enc[11] = -1e6  # dead
    return sae


@pytest.fixture(scope="module")
def codes(sae: StandardSAE, store: ActivationStore) -> Tensor:
    return sae.encode(store.activations[:]).detach()


@pytest.fixture(scope="module")
def readings(model: Any, sae: StandardSAE, store: ActivationStore) -> list[FeatureReading]:
    return read_features(model, sae, store, progress=False)


def best_rows(codes: Tensor, store: ActivationStore) -> list[int]:
    """Of one feature's codes ``(n,)``: the row of each text's greatest, greatest first, by plain loops."""
    best: dict[int, int] = {}
    for row, text in enumerate(store.text_indices[:].tolist()):
        if codes[row] > 0 and (text not in best or codes[row] > codes[best[text]]):
            best[text] = row
    return sorted(best.values(), key=lambda row: -float(codes[row]))


@pytest.mark.parametrize("feature", [PLANTED, 0, 25])
def test_top_contexts_are_those_that_a_search_of_all_tokens_finds(
    readings: list[FeatureReading], codes: Tensor, store: ActivationStore, feature: int
) -> None:
    rows = best_rows(codes[:, feature], store)[:10]
    contexts = readings[feature].contexts
    assert len(contexts) == len(rows) == 10
    assert [(c.text_index, c.position) for c in contexts] == [
        (int(store.text_indices[row]), int(store.positions[row])) for row in rows
    ]
    assert [c.activation for c in contexts] == pytest.approx(codes[rows, feature].tolist(), abs=1e-4)


def test_a_planted_features_first_context_is_the_token_it_was_planted_on(
    readings: list[FeatureReading], store: ActivationStore, codes: Tensor
) -> None:
    found = [(c.text_index, c.position) for c in readings[PLANTED].contexts]
    assert int(codes[:, PLANTED].argmax()) == 1234
    assert found[0] == (int(store.text_indices[1234]), int(store.positions[1234]))
    assert readings[PLANTED].density == pytest.approx(0.03, abs=0.001)


def test_every_token_of_a_context_has_its_own_activation_and_stays_within_its_text(
    model: Any, readings: list[FeatureReading], codes: Tensor, store: ActivationStore
) -> None:
    n_cut = 0
    for context in readings[PLANTED].contexts:
        rows = (store.text_indices[:] == context.text_index).nonzero().flatten()
        shown = rows[max(0, context.position - 12) : context.position + 7]
        assert context.peak == min(12, context.position)
        assert context.activations == pytest.approx(codes[shown, PLANTED].tolist(), abs=1e-4)
        assert "".join(context.tokens).strip() == model.tokenizer.decode(store.token_ids[shown]).strip()
        n_cut += len(shown) < 19
    assert n_cut > 0  # some lie at the edge of their text


def test_density_is_the_share_of_tokens_and_a_dead_feature_has_no_context(
    readings: list[FeatureReading], codes: Tensor
) -> None:
    assert [reading.density for reading in readings] == pytest.approx((codes > 0).double().mean(dim=0).tolist())
    assert readings[11].density == 0 and readings[11].contexts == () and readings[11].max_activation == 0
    assert "on for no token" in str(readings[11])


def test_a_repeated_text_gives_one_context(model: Any) -> None:
    texts = ["Superb, and funny.", "Dull.", "Superb, and funny.", "Superb, and funny.", "A fine film."]
    store = saelab.harvest(model, "blocks.1.hook_resid_post", texts, progress=False)
    sae = sparse_sae()
    with torch.no_grad():
        sae.b_enc.fill_(50.0)  # on everywhere
    for reading in read_features(model, sae, store, batch_size=3, progress=False):
        assert sorted(context.text_index for context in reading.contexts) == [0, 1, 4]


def test_batch_size_does_not_change_what_is_read_and_bounds_the_memory(
    model: Any,
    sae: StandardSAE,
    store: ActivationStore,
    readings: list[FeatureReading],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widest = 0
    encode = sae.encode

    def watched(x: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, len(x))
        return encode(x)

    monkeypatch.setattr(sae, "encode", watched)
    small = read_features(model, sae, store, features=[PLANTED, 25], batch_size=50, progress=False)
    assert widest == 50
    for one, other in zip(small, (readings[PLANTED], readings[25]), strict=True):
        assert one.density == other.density
        for context, same in zip(one.contexts, other.contexts, strict=True):
            assert context.tokens == same.tokens
            assert context.activations == pytest.approx(same.activations, abs=1e-4)


def test_features_come_in_the_order_asked_with_their_probe_weights(
    model: Any, sae: StandardSAE, store: ActivationStore, readings: list[FeatureReading]
) -> None:
    weights = torch.arange(40) / 10
    asked = read_features(model, sae, store, features=[25, PLANTED], probe_weights=weights, progress=False)
    assert [reading.feature for reading in asked] == [25, PLANTED]
    assert [reading.probe_weight for reading in asked] == pytest.approx([2.5, 0.7])
    for reading in asked:
        assert list(map(str, reading.contexts)) == list(map(str, readings[reading.feature].contexts))
        assert reading.density == readings[reading.feature].density
        assert [near.feature for near in reading.nearest] == [
            near.feature for near in readings[reading.feature].nearest
        ]


def test_logit_effects_are_the_decoder_row_through_the_final_norms_weight_and_the_centred_unembedding(
    model: Any, sae: StandardSAE, readings: list[FeatureReading]
) -> None:
    d = sae.W_dec[PLANTED].detach().double()
    effects = ((d - d.mean()) * model.ln_final.weight.detach().double()) @ model.W_U.detach().double()
    effects -= effects.mean()
    order = effects.argsort(descending=True).tolist()
    assert [effect.token_id for effect in readings[PLANTED].raised] == order[:8]
    assert [effect.token_id for effect in readings[PLANTED].lowered] == order[:-9:-1]
    for effect in (*readings[PLANTED].raised, *readings[PLANTED].lowered):
        assert effect.effect == pytest.approx(float(effects[effect.token_id]), abs=1e-5)
        assert effect.token == model.tokenizer.decode([effect.token_id])


def instead(value: Tensor, x: Tensor) -> Tensor:
    return value.expand_as(x)


def own_effects(model: Any, direction: Tensor) -> Tensor:
    """What a direction does to the model's own logits where it is all that the residual stream holds: ``(d_vocab,)``.

    Half the difference between it and its opposite: what the final norm and the unembedding add drops out.
    """
    tokens = model.to_tokens("A fine film.")
    logits = []
    for sign in (1, -1):
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        with torch.no_grad(), spliced(model, last, partial(instead, 1000 * sign * direction.detach())):
            logits.append(model(tokens)[0, -1].double())
    effects: Tensor = ((logits[0] - logits[1]) / 2)[: len(model.tokenizer)]
    return effects - effects.mean()


def assert_same_tokens_and_ratios(reading: FeatureReading, own: Tensor) -> None:
    order = own.argsort(descending=True).tolist()
    assert [effect.token_id for effect in reading.raised] == order[:8]
    assert [effect.token_id for effect in reading.lowered] == order[:-9:-1]
    listed = torch.tensor([effect.effect for effect in (*reading.raised, *reading.lowered)])
    ratios = listed / own[order[:8] + order[:-9:-1]]
    assert torch.allclose(ratios, ratios[0], rtol=1e-3)


def test_raised_tokens_are_those_the_model_says_when_it_sees_the_feature_alone(
    model: Any, sae: StandardSAE, readings: list[FeatureReading]
) -> None:
    assert_same_tokens_and_ratios(readings[PLANTED], own_effects(model, sae.W_dec[PLANTED]))


@pytest.fixture(scope="module")
def llama(save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small random Llama, with a norm of uneven weight and a vocabulary longer than the tokenizer's."""

    def change(network: Any) -> None:
        torch.nn.init.uniform_(network.model.norm.weight, 0.2, 2.0)
        with torch.no_grad():
            network.lm_head.weight[8192:] *= 100  # tokens that do not exist

    return saelab.load_language_model(str(save_llama(tmp_path_factory.mktemp("llama"), vocab_size=8200, change=change)))


@pytest.mark.parametrize(("hook", "d_in"), [("blocks.0.hook_resid_post", 32), ("blocks.1.mlp.hook_post", 48)])
def test_another_architecture_from_a_folder_reads_alike_in_residual_stream_and_mlp(
    llama: Any, hook: str, d_in: int
) -> None:
    store = saelab.harvest(llama, hook, saelab.load_text()[:5], progress=False)
    sae = sparse_sae(d_in)
    [reading] = read_features(llama, sae, store, features=[5], n_contexts=3, progress=False)
    codes = sae.encode(store.activations[:])[:, 5].detach()
    assert [c.activation for c in reading.contexts] == pytest.approx(
        codes[best_rows(codes, store)[:3]].tolist(), abs=1e-4
    )
    direction = sae.W_dec[5].detach()
    if d_in == 48:
        direction = direction @ llama.blocks[1].mlp.W_out.detach()
    assert_same_tokens_and_ratios(reading, own_effects(llama, direction))


def test_where_no_straight_path_leads_to_the_logits_no_token_is_listed(model: Any) -> None:
    hook = "blocks.1.ln1.hook_normalized"
    store = saelab.harvest(model, hook, ["A fine film."], progress=False)
    [reading] = read_features(model, sparse_sae(), store, features=[5], progress=False)
    assert reading.raised == reading.lowered == () and reading.nearest
    assert "raises" not in str(reading)


def test_nearest_features_are_those_of_the_greatest_cosine_whatever_the_norms(
    model: Any, store: ActivationStore
) -> None:
    sae = sparse_sae()
    with torch.no_grad():
        sae.W_dec[20] = 5 * (sae.W_dec[3] + 0.1 * sae.W_dec[4])
    [reading] = read_features(model, sae, store, features=[3], n_contexts=1, progress=False)
    W = sae.W_dec.detach().double()
    cosines = {i: float(W[3] @ W[i] / W[3].norm() / W[i].norm()) for i in range(40) if i != 3}
    expected = sorted(cosines, key=lambda i: -cosines[i])[:5]
    assert [near.feature for near in reading.nearest] == expected and expected[0] == 20
    assert [near.cosine for near in reading.nearest] == pytest.approx([cosines[i] for i in expected], abs=1e-5)


def test_tokens_that_end_within_a_character_join_to_the_text(model: Any) -> None:
    text = "“Superb”, a naïve café owner 😀 said — 映画は素晴らしい!"
    store = saelab.harvest(model, "blocks.1.hook_resid_post", [text], progress=False)
    sae = sparse_sae()
    with torch.no_grad():
        sae.b_enc.fill_(50.0)
    for reading in read_features(model, sae, store, before=99, after=99, progress=False):
        [context] = reading.contexts
        assert "".join(context.tokens) == text
        assert len(context.tokens) == len(context.activations) == len(store)


def test_a_reading_prints_as_a_page_without_control_characters_and_is_a_row(model: Any, sae: StandardSAE) -> None:
    texts = ["A fine film.\n\nReally\tfine. \x1b[31mRed.", "Dull."]
    store = saelab.harvest(model, "blocks.1.hook_resid_post", texts, progress=False)
    with torch.no_grad():
        loud = sparse_sae()
        loud.b_enc.fill_(50.0)
    readings = read_features(model, loud, store, features=[0, 1], before=99, after=99, progress=False)
    printed = str(readings[0])
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "\\n\\nReally\\tfine" in printed.replace("[[", "").replace("]]", "") and "[[" in printed
    assert len(printed.split("\n")) == 4 + 2  # what it is, raises, lowers, nearest, and a line a context
    table = pd.DataFrame([reading.as_dict() for reading in readings])
    assert list(table.feature) == [0, 1] and table.density.tolist() == [1.0, 1.0]


def test_wrong_features_stores_and_sizes_get_a_sentence(model: Any, sae: StandardSAE, store: ActivationStore) -> None:
    with pytest.raises(ValueError, match=r"features 0 to 39; asked for \[40, -1\]"):
        read_features(model, sae, store, features=[3, 40, -1])
    with pytest.raises(TypeError, match=r"try \[3\]"):
        read_features(model, sae, store, features=3)  # type: ignore[arg-type]
    for wrong in ([], [0.5], torch.ones(40, dtype=torch.bool)):
        with pytest.raises(TypeError, match="at least one index"):
            read_features(model, sae, store, features=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_contexts must be at least 1"):
        read_features(model, sae, store, n_contexts=0)
    with pytest.raises(ValueError, match="before must be at least 0"):
        read_features(model, sae, store, before=-1)
    with pytest.raises(ValueError, match=r"probe_weights must be \(40,\).*coef_"):
        read_features(model, sae, store, probe_weights=torch.zeros(1, 40))
    with pytest.raises(ValueError, match="made for d_in=32"):
        read_features(model, sparse_sae(32), store)
    with pytest.raises(ValueError, match="4 layers"):
        read_features(model, sae, dataclasses.replace(store, hook="blocks.9.hook_resid_post"))
    order = torch.randperm(len(store))
    shuffled = dataclasses.replace(store, text_indices=store.text_indices[order])
    with pytest.raises(ValueError, match="out of order.*before shuffling"):
        read_features(model, sae, shuffled)
