from typing import Any

import pytest
import torch

import saelab
from saelab.data.activations import ActivationStore

HOOK = "blocks.1.hook_resid_post"


def own_activation(model: Any, hook: str, text: str) -> torch.Tensor:
    """Straight from TransformerLens, BOS first: (tokens, d)."""
    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(text, prepend_bos=True))
    result: torch.Tensor = cache[hook][0]
    return result


@pytest.mark.parametrize("hook", [HOOK, "blocks.3.mlp.hook_post", "embed.hook_out"])
def test_harvested_activations_are_the_models_own_without_special_tokens(model: Any, hook: str) -> None:
    texts = ["A fine film.", "Dull, and far too long for what it has to say.", "", "Superb!"]
    store = saelab.harvest(model, hook, texts, batch_size=3, progress=False)
    for index in (0, 1, 3):
        rows = store.text_indices[:] == index
        assert torch.allclose(
            store.activations[rows] / store.scale, own_activation(model, hook, texts[index])[1:], atol=1e-4
        )
    assert 0 not in store.token_ids[:].tolist()


def test_every_activation_can_be_traced_to_its_token(model: Any) -> None:
    texts = ["A fine film.", "Dull, and far too long."]
    store = saelab.harvest(model, HOOK, texts, progress=False)
    for index, text in enumerate(texts):
        rows = store.text_indices[:] == index
        assert model.tokenizer.decode(store.token_ids[rows]) == text
        assert store.positions[rows].tolist() == list(range(int(rows.sum())))


def test_activations_are_scaled_to_mean_squared_norm_d_in(store: ActivationStore) -> None:
    assert len(store) == 4096
    assert float(store.activations[:].square().sum(dim=1).mean()) == pytest.approx(256, rel=1e-4)


def test_a_second_store_can_take_the_scale_of_the_first(model: Any, store: ActivationStore) -> None:
    texts = ["A fine film.", "Dull, and far too long."]
    own = saelab.harvest(model, HOOK, texts, progress=False)
    other = saelab.harvest(model, HOOK, texts, scale=store.scale, progress=False)
    assert other.scale == store.scale != own.scale
    assert torch.allclose(other.activations[:] / other.scale, own.activations[:] / own.scale, atol=1e-5)
    with pytest.raises(ValueError, match="scale must be a positive number.*not -1"):
        saelab.harvest(model, HOOK, texts, scale=-1.0, progress=False)


def test_batch_size_does_not_change_what_is_harvested(model: Any) -> None:
    texts = saelab.load_text()[:7]
    one, many = (saelab.harvest(model, HOOK, texts, batch_size=n, progress=False) for n in (1, 7))
    assert torch.equal(one.token_ids[:], many.token_ids[:])
    assert torch.allclose(one.activations[:], many.activations[:], atol=1e-3)


def test_pooling_takes_the_last_token_or_the_mean(model: Any) -> None:
    texts = ["A fine film.", "Dull, and far too long for what it has to say."]
    last = saelab.harvest_pooled(model, HOOK, texts, scale=2.0, progress=False)
    mean = saelab.harvest_pooled(model, HOOK, texts, pooling="mean", progress=False)
    for index, text in enumerate(texts):
        own = own_activation(model, HOOK, text)
        assert torch.allclose(last[index], 2 * own[-1], atol=1e-4)
        assert torch.allclose(mean[index], own[1:].mean(dim=0), atol=1e-4)


def test_a_hook_that_does_not_exist_names_those_that_do(model: Any) -> None:
    for function in (saelab.harvest, saelab.harvest_pooled):
        with pytest.raises(ValueError, match=r"4 layers.*blocks\.0\.hook_resid_post.*blocks\.3\.mlp\.hook_post"):
            function(model, "blocks.9.hook_resid_post", ["text"])


def test_wrong_text_and_sizes_get_a_sentence(model: Any) -> None:
    with pytest.raises(TypeError, match=r"try \[text\]"):
        saelab.harvest(model, HOOK, "one string")
    with pytest.raises(ValueError, match="empty"):
        saelab.harvest(model, HOOK, [])
    with pytest.raises(ValueError, match="no tokens"):
        saelab.harvest(model, HOOK, ["", ""], progress=False)
    with pytest.raises(TypeError, match="item 1 is a int"):
        saelab.harvest(model, HOOK, ["text", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="n_tokens must be at least 1"):
        saelab.harvest(model, HOOK, ["text"], n_tokens=0)
    with pytest.raises(ValueError, match="between 2 and this model's 128"):
        saelab.harvest(model, HOOK, ["text"], context=500)
    with pytest.raises(ValueError, match="text 1 has 0 tokens"):
        saelab.harvest_pooled(model, HOOK, ["text", ""], progress=False)
    with pytest.raises(ValueError, match="text 0 has .* tokens; pooling takes 1 to 127"):
        saelab.harvest_pooled(model, HOOK, ["so " * 200], progress=False)
    with pytest.raises(ValueError, match="last, mean"):
        saelab.harvest_pooled(model, HOOK, ["text"], pooling="first")  # type: ignore[arg-type]


def test_a_list_of_hooks_and_a_single_hook_each_have_their_function(model: Any) -> None:
    hooks: Any = [HOOK, "blocks.2.hook_resid_post"]
    one: Any = HOOK
    with pytest.raises(TypeError, match="harvest takes the name of one hook, .*; for several hooks use harvest_many"):
        saelab.harvest(model, hooks, ["text"])
    with pytest.raises(TypeError, match="harvest_pooled takes .*; for several hooks use harvest_pooled_many"):
        saelab.harvest_pooled(model, hooks, ["text"])
    with pytest.raises(TypeError, match="must be a list of names, not one string; for one hook use harvest"):
        saelab.harvest_many(model, one, ["text"])
    with pytest.raises(TypeError, match="must be a list of names, not one string; for one hook use harvest_pooled"):
        saelab.harvest_pooled_many(model, one, ["text"])
    for wrong in ([], [HOOK, HOOK]):
        with pytest.raises(ValueError, match="at least one hook, and each only once"):
            saelab.harvest_many(model, wrong, ["text"])
    with pytest.raises(ValueError, match=r"scales has none for blocks\.2\.hook_resid_post"):
        saelab.harvest_many(model, hooks, ["text"], scales={HOOK: 1.0})


def test_pooling_at_several_hooks_gives_what_each_alone_gives(model: Any) -> None:
    texts = ["A fine film.", "Dull."]
    scales = {HOOK: 2.0, "blocks.2.hook_resid_post": 0.5}
    pooled = saelab.harvest_pooled_many(model, list(scales), texts, scales=scales, progress=False)
    assert list(pooled) == list(scales)
    for hook, scale in scales.items():
        alone = saelab.harvest_pooled(model, hook, texts, scale=scale, progress=False)
        assert torch.allclose(pooled[hook], alone, atol=1e-5)
