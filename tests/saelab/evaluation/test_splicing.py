"""A spliced model against one that is hooked by hand, and the scores against numbers worked out on paper."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import saelab
from saelab.data.activations import ActivationStore
from saelab.evaluation.splicing import LossRecovered, Reconstruct, loss_recovered, loss_recovered_many, spliced
from saelab.sae.base import TrainedOn
from saelab.sae.gated import GatedSAE
from saelab.sae.standard import StandardSAE

HOOK = "blocks.1.hook_resid_post"
TEXTS = ["A fine film.", "Dull, and far too long for what it has to say. I left before its end.", "", "Superb!"]


@pytest.fixture(scope="module")
def llama_folder(save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def an_sae(d_in: int = 256, d_sae: int = 300) -> GatedSAE:
    return GatedSAE(d_in, d_sae, seed=1)


def activations_at(model: Any, tokens: Any, hook: str = HOOK) -> Tensor:
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    result: Tensor = cache[hook]
    return result


def logits_of(model: Any, tokens: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens)
    return result


def summed_loss(model: Any, text: str, replace: Callable[[Tensor], Tensor] | None = None) -> float:
    """One text by itself, with a hook by hand that leaves BOS alone."""

    def hook_by_hand(x: Tensor, hook: Any) -> Tensor | None:
        return None if replace is None else torch.cat([x[:, :1], replace(x[:, 1:])], dim=1)

    ids = model.to_tokens(text, prepend_bos=True)
    with torch.no_grad():
        logits = model.run_with_hooks(ids, fwd_hooks=[(HOOK, hook_by_hand)])
    return float(cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum"))


def n_hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("hook", [HOOK, "blocks.0.mlp.hook_post"])
def test_splicing_the_identity_recovers_exactly_1_and_zeros_exactly_0(model: Any, hook: str, scale: float) -> None:
    identity = loss_recovered(model, hook, lambda x: x, TEXTS, scale=scale, progress=False)
    zeros = loss_recovered(model, hook, torch.zeros_like, TEXTS, scale=scale, progress=False)
    assert identity.score_zero == identity.score_mean == 1
    assert identity.spliced == identity.clean < identity.zero_ablated
    assert zeros.score_zero == 0 and zeros.spliced == zeros.zero_ablated


def test_all_four_losses_are_those_of_a_model_hooked_by_hand_text_by_text(model: Any, store: ActivationStore) -> None:
    """Texts of very different lengths: a mean of their means would be another number."""
    sae = an_sae()
    measured = loss_recovered(model, HOOK, sae, TEXTS, scale=store.scale, batch_size=3, progress=False)
    own = torch.cat([activations_at(model, model.to_tokens(text))[0, 1:] for text in TEXTS])
    mean, n_tokens = own.mean(dim=0), len(own)

    def pooled(replace: Callable[[Tensor], Tensor] | None) -> float:
        return sum(summed_loss(model, text, replace) for text in TEXTS if text) / n_tokens

    assert measured.n_tokens == n_tokens
    assert measured.clean == pytest.approx(pooled(None), rel=1e-5)
    assert measured.spliced == pytest.approx(pooled(lambda x: sae(x * store.scale) / store.scale), rel=1e-5)
    assert measured.zero_ablated == pytest.approx(pooled(torch.zeros_like), rel=1e-5)
    assert measured.mean_ablated == pytest.approx(pooled(lambda x: mean.expand_as(x)), rel=1e-5)


def test_scores_are_the_share_of_an_ablations_cost_that_is_avoided() -> None:
    measured = LossRecovered(clean=2.0, spliced=3.0, zero_ablated=6.0, mean_ablated=4.0, n_tokens=10)
    assert measured.score_zero == 0.75 and measured.score_mean == 0.5
    assert measured.as_dict()["score_zero"] == 0.75
    assert str(measured).splitlines()[0].split()[:2] == ["clean", "2.0000"]
    free = LossRecovered(clean=2.0, spliced=2.0, zero_ablated=2.0, mean_ablated=2.0, n_tokens=10)
    assert math.isnan(free.score_zero) and math.isnan(free.score_mean)


def test_batch_size_and_padding_do_not_change_the_losses(model: Any) -> None:
    one, many = (loss_recovered(model, HOOK, an_sae(), TEXTS, batch_size=n, progress=False) for n in (1, 4))
    assert one.as_dict() == pytest.approx(many.as_dict(), rel=1e-5)


def test_several_saes_have_the_numbers_of_each_by_itself_each_at_its_own_scale(
    model: Any, store: ActivationStore
) -> None:
    trained, bare = an_sae(), StandardSAE(256, 64, seed=2)
    trained.trained_on = TrainedOn("reviews-4l", HOOK, store.scale)
    saes: dict[str, Reconstruct] = {"trained": trained, "bare": bare, "scaled": an_sae(), "zeros": torch.zeros_like}
    together = loss_recovered_many(model, HOOK, saes, TEXTS, scales={"scaled": 3.0}, batch_size=3, progress=False)
    assert list(together) == list(saes)
    for name, sae in saes.items():
        scale = 3.0 if name == "scaled" else None
        assert together[name] == loss_recovered(model, HOOK, sae, TEXTS, scale=scale, batch_size=3, progress=False)
    assert len({measured.spliced for measured in together.values()}) == 4
    assert together["trained"] == loss_recovered(
        model, HOOK, an_sae(), TEXTS, scale=store.scale, batch_size=3, progress=False
    )


def test_each_further_sae_costs_one_more_run_of_the_model(model: Any) -> None:
    runs: list[Tensor] = []

    def n_runs(n: int) -> int:
        runs.clear()
        saes = {str(index): an_sae() for index in range(n)}
        with model.hooks(fwd_hooks=[("unembed.hook_out", lambda x, hook: runs.append(x))]):
            loss_recovered_many(model, HOOK, saes, TEXTS, progress=False)
        return len(runs)

    one = n_runs(1)
    assert 4 <= one <= 5  # and where the pass for the mean does not stop at the hook, that
    assert [n_runs(n) - one for n in (2, 5)] == [1, 4]


def test_inside_the_activation_is_the_reconstruction_and_special_tokens_keep_their_own(
    model: Any, store: ActivationStore
) -> None:
    sae = an_sae()
    tokens = model.to_tokens(["Superb!", TEXTS[1]])  # BOS in front, the first padded
    own = activations_at(model, tokens)
    with spliced(model, HOOK, sae, scale=store.scale):
        inside = activations_at(model, tokens)
    with spliced(model, HOOK, sae, scale=store.scale, special_tokens=True):
        everywhere = activations_at(model, tokens)
    expected = sae(own * store.scale).detach() / store.scale
    special = tokens == model.tokenizer.bos_token_id  # of this model, padding too
    assert special[:, 0].all() and special.sum() > 2
    assert torch.equal(inside[special], own[special])
    assert torch.allclose(inside[~special], expected[~special], atol=1e-4)
    assert torch.allclose(everywhere, expected, atol=1e-4)


def test_with_the_error_term_the_model_is_its_own_exactly(model: Any, store: ActivationStore) -> None:
    tokens = model.to_tokens(TEXTS[1])
    own = logits_of(model, tokens)
    with spliced(model, HOOK, an_sae(), scale=store.scale):
        assert not torch.allclose(logits_of(model, tokens), own, atol=0.1)
    with spliced(model, HOOK, an_sae(), scale=store.scale, error_term=True):
        assert torch.equal(logits_of(model, tokens), own)
    with spliced(model, HOOK, an_sae(), scale=store.scale, error_term=True, edit=lambda codes: codes.clone()):
        assert torch.equal(logits_of(model, tokens), own)


def test_codes_can_be_read_and_features_switched_off(model: Any, store: ActivationStore) -> None:
    sae = an_sae()
    tokens = model.to_tokens(TEXTS[1])
    own = activations_at(model, tokens)
    read: list[Tensor] = []

    def switch_off(codes: Tensor) -> Tensor:
        read.append(codes)
        return codes.index_fill(-1, torch.tensor([feature]), 0.0)

    codes = sae.encode(own * store.scale).detach()
    feature = int(codes[0, 1:].amax(dim=0).argmax())
    with spliced(model, HOOK, sae, scale=store.scale, error_term=True, edit=switch_off):
        changed = activations_at(model, tokens)
    assert torch.allclose(read[0], codes, atol=1e-4)
    expected = -codes[0, 1:, feature, None] * sae.W_dec[feature].detach() / store.scale
    assert torch.allclose((changed - own)[0, 1:], expected, atol=1e-4)


@pytest.mark.parametrize("error_term", [False, True])
def test_gradients_of_the_models_loss_reach_the_codes(model: Any, store: ActivationStore, error_term: bool) -> None:
    kept: list[Tensor] = []

    def keep(codes: Tensor) -> Tensor:
        codes.retain_grad()
        kept.append(codes)
        return codes

    with spliced(model, HOOK, an_sae(), scale=store.scale, error_term=error_term, edit=keep):
        model(model.to_tokens(TEXTS[0]), return_type="loss").backward()
    model.zero_grad()
    gradient = kept[0].grad
    assert gradient is not None and gradient[0, 1:-1].abs().sum() > 0


def test_splices_nest_on_different_hooks(model: Any) -> None:
    tokens = model.to_tokens(TEXTS[0])
    other = "blocks.2.hook_resid_post"
    with spliced(model, other, torch.zeros_like):
        with spliced(model, HOOK, torch.zeros_like):
            both = [activations_at(model, tokens, hook)[0, 1:] for hook in (HOOK, other)]
        outer = [activations_at(model, tokens, hook)[0, 1:] for hook in (HOOK, other)]
    assert [bool(x.any()) for x in both] == [False, False]
    assert [bool(x.any()) for x in outer] == [True, False]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_or_an_interrupt_no_hook_is_left(model: Any, error: type[BaseException]) -> None:
    tokens = model.to_tokens(TEXTS[0])
    own, hooks = logits_of(model, tokens), n_hooks(model)

    def fail(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(error), spliced(model, HOOK, torch.zeros_like), spliced(model, HOOK, fail):
        model(tokens)
    with pytest.raises(error):
        loss_recovered(model, HOOK, fail, TEXTS, progress=False)
    assert n_hooks(model) == hooks
    assert torch.equal(logits_of(model, tokens), own)


def test_hooks_of_ones_own_stay(model: Any) -> None:
    calls: list[int] = []
    with model.hooks(fwd_hooks=[(HOOK, lambda x, hook: calls.append(1))]):
        with spliced(model, HOOK, torch.zeros_like):
            model(model.to_tokens(TEXTS[0]))
        model(model.to_tokens(TEXTS[0]))
    assert len(calls) == 2


def test_generated_text_goes_through_the_splice_too(model: Any) -> None:
    def generate() -> list[int]:
        tokens: list[int] = model.generate(
            model.to_tokens(TEXTS[0]), max_new_tokens=5, do_sample=False, stop_at_eos=False, verbose=False
        )[0].tolist()
        return tokens

    own = generate()
    with spliced(model, HOOK, lambda x: x):
        assert generate() == own
    with spliced(model, HOOK, torch.zeros_like):
        assert generate() != own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_architecture_from_a_folder_works_alike_in_any_precision(
    llama_folder: Path, dtype: torch.dtype
) -> None:
    llama = saelab.load_language_model(str(llama_folder), dtype=dtype)
    for hook, d_in in (("blocks.0.hook_resid_post", 32), ("blocks.1.mlp.hook_post", 48)):
        identity = loss_recovered(llama, hook, lambda x: x, TEXTS, scale=0.37, progress=False)
        zeros = loss_recovered(llama, hook, torch.zeros_like, TEXTS, progress=False)
        sae = loss_recovered(llama, hook, an_sae(d_in, 64), TEXTS, scale=2.0, progress=False)
        assert identity.score_zero == identity.score_mean == 1 and zeros.score_zero == 0
        assert sae.clean == identity.clean != sae.spliced
        tokens = llama.to_tokens(TEXTS[1])
        own = logits_of(llama, tokens)
        with spliced(llama, hook, an_sae(d_in, 64), scale=2.0, error_term=True):
            assert torch.equal(logits_of(llama, tokens), own)


def test_a_hook_that_is_not_there_or_of_another_width_gets_a_sentence(model: Any) -> None:
    sae = an_sae()
    with pytest.raises(ValueError, match=r"4 layers.*blocks\.0\.hook_resid_post"):
        loss_recovered(model, "blocks.9.hook_resid_post", sae, TEXTS)
    with pytest.raises(ValueError, match=r"4 layers"), spliced(model, "blocks.9.hook_resid_post", sae):
        pass
    with pytest.raises(ValueError, match=r"mlp.hook_post has width 1024, but this SAE was made for d_in=256"):
        loss_recovered(model, "blocks.1.mlp.hook_post", sae, TEXTS, progress=False)
    with pytest.raises(ValueError, match="has width 1024"), spliced(model, "blocks.1.mlp.hook_post", sae):
        model("A fine film.")
    with pytest.raises(ValueError, match=r"expected activations \(batch, tokens, d_in\)"):
        loss_recovered(model, "blocks.1.attn.hook_z", sae, TEXTS, progress=False)


def test_a_hook_from_which_nothing_reaches_the_output_is_refused(model: Any) -> None:
    """TransformerLens' bridge shows the residual stream there, but what is written reaches the MLP alone."""
    with pytest.raises(ValueError, match="reaches only the MLP.*hook_resid_post"):
        loss_recovered(model, "blocks.1.hook_resid_mid", an_sae(), TEXTS)


def test_wrong_text_scales_and_sizes_get_a_sentence(model: Any) -> None:
    sae = an_sae()
    with pytest.raises(TypeError, match=r"try \[text\]"):
        loss_recovered(model, HOOK, sae, "one string")
    with pytest.raises(ValueError, match="text is empty"):
        loss_recovered(model, HOOK, sae, [])
    with pytest.raises(ValueError, match="no tokens"):
        loss_recovered(model, HOOK, sae, ["", ""], progress=False)
    with pytest.raises(ValueError, match="between 2 and this model's 128"):
        loss_recovered(model, HOOK, sae, TEXTS, context=500)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        loss_recovered(model, HOOK, sae, TEXTS, batch_size=0)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be a positive number, such as store.scale"):
            loss_recovered(model, HOOK, sae, TEXTS, scale=scale)


def test_among_several_saes_the_one_that_does_not_fit_is_named(model: Any) -> None:
    saes = {"fits": an_sae(), "narrow": an_sae(d_in=32)}
    with pytest.raises(ValueError, match="has width 256, but 'narrow' was made for d_in=32"):
        loss_recovered_many(model, HOOK, saes, TEXTS, progress=False)
    with pytest.raises(ValueError, match="scales has nobody, but saes has only fits, narrow"):
        loss_recovered_many(model, HOOK, saes, TEXTS, scales={"nobody": 1.0})
    with pytest.raises(ValueError, match="saes is empty"):
        loss_recovered_many(model, HOOK, {}, TEXTS)
    with pytest.raises(TypeError, match="saes must be a mapping of names to SAEs.*not list"):
        loss_recovered_many(model, HOOK, [an_sae()], TEXTS)  # type: ignore[arg-type]


def test_what_cannot_be_spliced_gets_a_sentence(model: Any) -> None:
    with pytest.raises(TypeError, match="expected an SAE or a function"):
        loss_recovered(model, HOOK, "sae", TEXTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"and gave \(1, .*, 3\); give the same shape"):
        loss_recovered(model, HOOK, lambda x: x[..., :3], TEXTS[:1], progress=False)
    with (
        pytest.raises(TypeError, match="has none; splice in an SAE"),
        spliced(model, HOOK, torch.relu, edit=torch.relu),
    ):
        pass
    sae = StandardSAE(256, 8)

    def give_nothing(codes: Tensor) -> Any:
        return None

    with (
        pytest.raises(ValueError, match="edit took codes .* and gave NoneType"),
        spliced(model, HOOK, sae, edit=give_nothing),
    ):
        model("A fine film.")
    embedded = torch.zeros(1, 3, 256)
    with pytest.raises(ValueError, match="run the model on text or token ids"), spliced(model, HOOK, sae):
        model(embedded)
