"""What is warmed is what would be computed, and no model is opened to read it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from saelab_widgets import materials, warm

import saelab

HOOK = "blocks.2.hook_resid_post"
N_TOKENS = 2_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache on disk, and nothing kept in memory but the model."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    materials.activations_at.cache_clear()
    materials.snippets_at.cache_clear()
    materials.default_sae.cache_clear()


def test_the_default_sae_is_trained_once_and_then_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materials, "DEFAULT_TOKENS", N_TOKENS)
    trained, store = materials.default_sae("gated", HOOK, d_sae=32, n_steps=3)
    assert trained.trained_on == store.trained_on and len(list((cache / "sae").iterdir())) == 1
    materials.default_sae.cache_clear()
    monkeypatch.setattr(saelab.Trainer, "run", lambda *args, **settings: pytest.fail("it was trained again"))
    again, _ = materials.default_sae("gated", HOOK, d_sae=32, n_steps=3)
    assert again is not trained and again.trained_on == trained.trained_on
    for name, weight in trained.named_parameters():
        assert torch.equal(again.get_parameter(name), weight)


def test_warmed_activations_and_snippets_are_those_that_would_be_computed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("reviews-4l", HOOK)
    computed = materials.activations_at(*place, N_TOKENS)
    snippets = materials.snippets_at(*computed.trained_on)
    assert list(cache.iterdir()) == []  # only who asks for it has it on the disk
    warm.warm_activations(HOOK, N_TOKENS)
    forget()
    monkeypatch.setattr(materials, "language_model", lambda name: pytest.fail("the model was opened"))
    read = materials.activations_at(*place, N_TOKENS)
    assert read.trained_on == computed.trained_on
    for name in ("activations", "token_ids", "text_indices", "positions"):
        assert isinstance(getattr(read, name), torch.Tensor)
        torch.testing.assert_close(getattr(read, name), getattr(computed, name))
    again = materials.snippets_at(*read.trained_on)
    torch.testing.assert_close(again.x, snippets.x)
    assert torch.equal(again.labels, snippets.labels) and (again.texts == snippets.texts).all()


def test_what_is_not_whole_is_computed(cache: Path) -> None:
    folder = materials.warmed_activations(HOOK, N_TOKENS)
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{", encoding="utf-8")
    assert len(materials.activations_at("reviews-4l", HOOK, N_TOKENS)) == N_TOKENS
