"""A small decoder of characters, trained to predict the next one, and the same with new weights: two starts.

    python benchmarks/decoders.py FOLDER [--data data/unicode_names] [--steps 2000]
    udm train --data data/unicode_names --model FOLDER/causal --output ...      # and FOLDER/new

What a decoder knows is worth to diffusion what `udm train` then says of the two after as many steps. The decoder is a
GPT-2 of two layers; its rows are [CLS] text [SEP], and its tokenizer has [MASK] already.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from udm_text.corpus import load_corpus, make_rows, train_tokenizer


def new_decoder(tokenizer, longest: int, seed: int) -> GPT2LMHeadModel:
    """GPT-2 of two layers, 128 wide, four heads, with new weights."""
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    sizes = {"n_positions": max(64, 2 * longest), "n_embd": 128, "n_layer": 2, "n_head": 4}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), pad_token_id=0, **ends, **sizes, **dropout))


def batch_of(rows: list[list[int]], padding: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (B, L) int64: the model itself moves labels by one."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def train_causal(model: GPT2LMHeadModel, rows: list[list[int]], steps: int, batch: int, rate: float, padding: int):
    """AdamW with a warm-up and a cosine, on random rows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    generator, began, mean = torch.Generator().manual_seed(0), time.process_time(), 0.0
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(rows), (batch,), generator=generator).tolist()
        loss = model(**batch_of([rows[i] for i in chosen], padding), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = float(loss.detach()) if step == 0 else 0.98 * mean + 0.02 * float(loss.detach())
        if step % 200 == 199:
            print(
                f"step {step + 1}: {mean / math.log(2):.3f} bits/char, {time.process_time() - began:.0f} s", flush=True
            )
    model.eval()


@torch.no_grad()
def bits_per_token(model: GPT2LMHeadModel, rows: list[list[int]], padding: int) -> float:
    """Of held-out rows, their ends among the tokens."""
    nats, count = 0.0, 0
    for start in range(0, len(rows), 64):
        batch = batch_of(rows[start : start + 64], padding)
        scored = int(batch["labels"][:, 1:].ne(-100).sum())
        nats, count = nats + float(model(**batch, use_cache=False).loss) * scored, count + scored
    return nats / count / math.log(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="data/unicode_names")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    corpus = load_corpus(args.data)
    tokenizer = train_tokenizer("char", corpus["train"]["text"], cls_sep=True)
    rows, held = (make_rows(corpus[split], tokenizer)[0]["input_ids"] for split in ("train", "validation"))
    rows, held, padding = list(rows), list(held), tokenizer.pad_token_id
    assert isinstance(padding, int)
    longest = max(map(len, rows))
    for name, steps in (("new", 0), ("causal", args.steps)):
        model = new_decoder(tokenizer, longest, seed=steps > 0)
        if steps:
            train_causal(model, rows, steps, args.batch, args.rate, padding)
        print(
            f"{name}: {bits_per_token(model, held, padding):.3f} bits a character and end of {len(held)} held-out rows"
        )
        model.save_pretrained(args.folder / name)
        tokenizer.save_pretrained(args.folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
