import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import saelab
from saelab.data import language_models
from saelab.data.language_models import EMBEDDED_FOLDER, ModelNotFoundError


def test_embedded_model_is_a_bridge_that_predicts_reviews_better_than_chance(model: Any) -> None:
    text = "I thought this film was one of the worst films I have ever seen."
    with torch.no_grad():
        loss = model(model.to_tokens(text), return_type="loss").item()
    assert type(model).__name__ == "TransformerBridge"
    assert loss < 4  # a guess among 8,192 tokens costs 9 nats


def test_model_folder_holds_what_hugging_face_needs_and_the_recipe() -> None:
    recipe = json.loads((EMBEDDED_FOLDER / "recipe.json").read_text(encoding="utf-8"))
    card = (EMBEDDED_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{recipe['history'][-1]['held_out_loss']:.2f} nats" in card


def test_a_hugging_face_folder_on_disk_opens_like_the_embedded_model(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=8192, n_positions=32, n_embd=16, n_layer=2, n_head=2)).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(tmp_path)
    small = saelab.load_language_model(str(tmp_path))
    store = saelab.harvest(small, "blocks.1.hook_resid_post", saelab.load_text()[:3], progress=False)
    assert store.d_in == 16
    assert int(store.positions[:].max()) < 31  # its own context, BOS included


def test_an_unknown_name_without_a_network_says_which_names_work_offline() -> None:
    with pytest.raises(ModelNotFoundError, match="'gelu-1l' is not on this machine.*Offline there are 'reviews-4l'"):
        saelab.load_language_model("gelu-1l")


def test_an_unreachable_hub_is_found_out_in_seconds_not_after_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as closed:  # a port on which nothing listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ModelNotFoundError, match="hub cannot be reached"):
            saelab.load_language_model("someone/some-model")
    assert time.monotonic() - started < 15


def test_a_name_the_hub_does_not_have_says_which_names_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models, "_hub_is_reachable", lambda: True)
    with pytest.raises(ModelNotFoundError, match="(?s)cannot load 'no-such-model'.*Offline there are 'reviews-4l'"):
        saelab.load_language_model("no-such-model")


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        saelab.load_language_model(str(tmp_path))


def test_without_transformer_lens_a_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "transformer_lens":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(ImportError, match=r'pip install "saelab\[lm\]"'):
        saelab.load_language_model()


def test_missing_assets_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models, "EMBEDDED_FOLDER", tmp_path)
    monkeypatch.setattr(language_models, "SAMPLED_TEXT", tmp_path / "sampled_text.json.xz")
    monkeypatch.setattr(language_models, "SENTIMENT", tmp_path / "sentiment.jsonl")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing.*train\.py"):
        saelab.load_language_model()
    with pytest.raises(FileNotFoundError, match=r"sampled_text\.json\.xz is missing.*sample\.py"):
        saelab.load_text()
    with pytest.raises(FileNotFoundError, match=r"sentiment\.jsonl is missing"):
        saelab.load_sentiment()


def test_sentiment_set_is_balanced_and_complete() -> None:
    frame = saelab.load_sentiment()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 1280
    assert list(frame.columns) == ["id", "block", "text", "label", "hard"]
    assert set(frame.block) == {"drama", "comedy", "action", "thriller"} and set(frame.label) == {0, 1}
    assert frame.id.is_unique and frame.text.is_unique and 0.48 < frame.label.mean() < 0.52


def test_sampled_text_is_about_400_thousand_tokens_of_distinct_texts(model: Any) -> None:
    texts = saelab.load_text()
    n_tokens = sum(map(len, model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
    assert 380_000 < n_tokens < 420_000
    assert len(set(texts)) == len(texts) and all(text.strip() for text in texts)


def test_imdb_without_a_network_and_an_unknown_text_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="'imdb' is not on this machine.*\nOffline there is 'reviews-4l'"):
        saelab.load_text("imdb")
    with pytest.raises(ValueError, match="no text 'shakespeare'; there are 'reviews-4l'.*'imdb'"):
        saelab.load_text("shakespeare")


def test_the_models_training_script_resumes_to_the_same_model(tmp_path: Path) -> None:
    """Killed after a checkpoint and started again, it ends with the weights of an uninterrupted run."""
    reviews = saelab.load_text()[:2000]
    pd.DataFrame({"text": [f"{text} <br /><br /> {i}" for i, text in enumerate(reviews)]}).to_parquet(
        tmp_path / "r.parquet"
    )
    script = EMBEDDED_FOLDER / "train.py"

    def command(out: str) -> list[str]:
        sizes = ["--tokens", "4096", "--batch-size", "4", "--save-every", "2", "--no-compile", "--held-out", "50"]
        return [
            sys.executable,
            str(script),
            "--data",
            str(tmp_path / "r.parquet"),
            "--out",
            str(tmp_path / out),
            *sizes,
        ]

    subprocess.run(command("whole"), check=True, capture_output=True)
    shutil.copytree(
        tmp_path / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("checkpoint.pt", "*.safetensors")
    )
    process = subprocess.Popen(command("parts"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "parts" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run(command("parts"), check=True, capture_output=True)
    whole, parts = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
