"""Train `reviews-4l`, the language model inside SAELab: a byte-level BPE tokenizer and a 4-layer GPT-2 on film reviews.

    python train.py --out runs/reviews-4l                       # stanfordnlp/imdb from the Hugging Face hub
    python train.py --out runs/reviews-4l --data FILE_OR_FOLDER # parquet with a column `text`

If it is killed, run the same line again: it resumes from the last checkpoint in `--out`. Every batch depends
only on (seed, step), so an interrupted run and an uninterrupted one agree up to rounding. Needs `saelab[lab]` and
torch >= 2.9 (for Muon); pass `--no-compile` without a C++ compiler. The finished Hugging Face folder is `OUT/model`.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saelab.data.language_models import clean_review

BOS = "<|endoftext|>"  # id 0: starts every context and separates reviews
VOCABULARY = 8192
CONTEXT = 128
REVIEW_STARTS = 0.3  # fraction of contexts that begin where a review begins; the others begin anywhere


def read_reviews(data: Path | None) -> list[str]:
    """Every distinct review, cleaned, in an order that does not depend on where it came from."""
    if data is None:
        from datasets import concatenate_datasets, load_dataset

        splits = load_dataset("stanfordnlp/imdb")
        raw = concatenate_datasets([splits["train"], splits["unsupervised"]])["text"]
    else:
        raw = pd.read_parquet(data, columns=["text"]).text
    return sorted({clean_review(review) for review in raw})


def train_tokenizer(reviews: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        reviews, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet)
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, reviews: list[str]) -> np.ndarray:
    """Token ids of BOS, review, BOS, review, ... as uint16, (n_tokens,)."""
    pieces: list[np.ndarray] = []
    for start in tqdm(range(0, len(reviews), 1000), desc="tokenizing", unit="k reviews"):
        pieces += [np.array([0, *e.ids], np.uint16) for e in tokenizer.encode_batch(reviews[start : start + 1000])]
    return np.concatenate(pieces)


def prepare(data: Path | None, out: Path, seed: int, n_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the token streams (train, held out); they and the tokenizer are made once and kept in `out`."""
    kept = out / "tokens.npz"
    if not kept.exists():
        reviews = read_reviews(data)
        order = np.random.default_rng(seed).permutation(len(reviews))
        held_out = [reviews[i] for i in order[:n_held_out]]
        train = [reviews[i] for i in order[n_held_out:]]
        tokenizer = train_tokenizer(train)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
        )
        fast.save_pretrained(out / "model")
        streams = {"train": token_stream(tokenizer, train), "held_out": token_stream(tokenizer, held_out)}
        np.savez(out / "tokens.partial.npz", **streams)
        (out / "tokens.partial.npz").replace(kept)
    streams = np.load(kept)
    return streams["train"].astype(np.int64), streams["held_out"].astype(np.int64)


def batch(stream: np.ndarray, review_starts: np.ndarray, size: int, seed: int, step: int) -> torch.Tensor:
    """Contexts for one step, (size, CONTEXT + 1); each begins with BOS, as always when the model is used."""
    rng = np.random.default_rng([seed, step])
    last = len(stream) - CONTEXT - 1
    anywhere = rng.integers(0, last, size)
    at_review = np.minimum(review_starts[rng.integers(0, len(review_starts), size)], last)
    starts = np.where(rng.random(size) < REVIEW_STARTS, at_review, anywhere)
    tokens = torch.from_numpy(stream[starts[:, None] + np.arange(CONTEXT + 1)])
    tokens[:, 0] = 0
    return tokens


def loss_of(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token; the float32 logits stay in this function, so a compiler can fuse it."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        hidden = model.transformer(tokens[:, :-1], use_cache=False).last_hidden_state
        logits = hidden @ model.transformer.wte.weight.T
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, stream: np.ndarray) -> float:
    """Loss in nats per token over consecutive windows of the held-out reviews, each read with BOS in front."""
    n_windows = (len(stream) - 1) // CONTEXT
    windows = torch.from_numpy(stream[np.arange(n_windows)[:, None] * CONTEXT + np.arange(CONTEXT + 1)])
    windows[:, 0] = 0
    device = next(model.parameters()).device
    chunks = windows.split(64)
    total = sum(loss_of(model, chunk.to(device)).item() * len(chunk) for chunk in chunks)
    return total / n_windows


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, then linear to 0 over the last 60 %; `--tokens` may be changed until then."""
    return peak * min(1.0, (step + 1) / 200, (n_steps - step) / (0.6 * n_steps))


def make_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings, biases and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    ]


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--data", type=Path, help="parquet file or folder with a column `text` (default: the hub)")
    parser.add_argument("--tokens", type=float, default=45e6, help="tokens to train on")
    parser.add_argument("--batch-size", type=int, default=64, help="contexts a step")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--held-out", type=int, default=1000, help="reviews to measure on and never train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stream, held_out = prepare(args.data, args.out, args.seed, args.held_out)
    review_starts = np.flatnonzero(stream == 0)

    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=256, n_layer=4, n_head=4, activation_function="gelu",
        bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(args.device)
    optimizers = make_optimizers(model)
    n_steps = math.ceil(args.tokens / (args.batch_size * CONTEXT))
    first, history = 0, []
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first, history = state["step"], state["history"]

    compiled = loss_of if args.no_compile else torch.compile(loss_of)
    progress = tqdm(range(first, n_steps), initial=first, total=n_steps, unit="step", mininterval=2)
    for step in progress:
        rate = learning_rate(step, n_steps, args.lr)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = compiled(model, batch(stream, review_starts, args.batch_size, args.seed, step).to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", tokens=f"{done * args.batch_size * CONTEXT / 1e6:.1f}M")
        if done % args.save_every == 0 or done == n_steps:
            if done % (5 * args.save_every) == 0 or done == n_steps:
                history.append({"step": done, "held_out_loss": round(held_out_loss(model, held_out), 4)})
                tqdm.write(json.dumps(history[-1]))
            optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            write_atomically(
                checkpoint,
                {"model": model.state_dict(), "optimizers": optimizer_states, "step": done, "history": history},
            )

    model.half().save_pretrained(args.out / "model")
    recipe = {
        "steps": n_steps, "batch_size": args.batch_size, "context": CONTEXT, "lr": args.lr, "seed": args.seed,
        "training_tokens": n_steps * args.batch_size * CONTEXT, "tokens_in_corpus": len(stream),
        "held_out_reviews": args.held_out, "held_out_tokens": len(held_out), "history": history,
    }  # fmt: skip
    (args.out / "model" / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
