"""Sample the text inside SAELab from the embedded language model, so that harvesting needs no download.

    python sample.py            # about 400,000 tokens, a few minutes on two cores

Each text starts from BOS and ends where the model ends it or its context is full. The same seed gives the same text on
the same machine; elsewhere, rounding may tip a token and everything after it.
"""

import argparse
import json
import lzma

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.data.language_models import EMBEDDED_FOLDER, SAMPLED_TEXT

SHORTEST = 16  # tokens; a shorter text has little context to show a feature in


@torch.no_grad()
def sample(n_tokens: int, *, temperature: float, top_p: float, batch_size: int, seed: int) -> list[str]:
    """Distinct texts with about ``n_tokens`` tokens in all."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    texts: dict[str, None] = {}
    total = 0
    start = torch.full((batch_size, 1), tokenizer.bos_token_id)
    with tqdm(total=n_tokens, unit="tok", desc="sampling") as bar:
        while total < n_tokens:
            rows = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                max_length=model.config.n_positions,
                pad_token_id=tokenizer.pad_token_id,
            )
            for row in rows[:, 1:].tolist():
                ids = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
                text = tokenizer.decode(ids).strip()
                if len(ids) >= SHORTEST and text not in texts:
                    texts[text] = None
                    total += len(ids)
                    bar.update(len(ids))
    return list(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.97)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = sample(
        args.tokens, temperature=args.temperature, top_p=args.top_p, batch_size=args.batch_size, seed=args.seed
    )
    packed = lzma.compress(json.dumps(texts, ensure_ascii=False).encode(), preset=9 | lzma.PRESET_EXTREME)
    SAMPLED_TEXT.write_bytes(packed)
    print(f"{len(texts)} texts, {len(packed) / 1e6:.2f} MB in {SAMPLED_TEXT}")


if __name__ == "__main__":
    main()
