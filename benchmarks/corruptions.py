"""What each corruption learns of Unicode names in the same seconds: its bound, what it writes and what it repairs.

    python benchmarks/corruptions.py                      # mask, delete, substitute, uniform; 150 s each
    python benchmarks/corruptions.py --ways mask uniform --seconds 60 --seeds 3
    python benchmarks/corruptions.py --ways embeddings --steps 320      # by steps, where the machine is shared

Runs follow each other, one thread each, and seeds are outermost. Printed are bits a character of held-out names, the
share of 2,000 samples that are made of known words or are real names never seen, and of held-out names with one wrong
token the share that comes back (substitute, which can repair; the model is told that one is wrong). "embeddings" is
`recipes/embedding_diffusion.py` at the size of the others; of its samples, 50 steps of mean embeddings each, there are
1,000.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from common import machine, train_model

from continuous.embedded_text import EmbeddedTextModel
from udm_text.cli.demo import load_script, prepare_script, verdict
from udm_text.cli.terminal import load_pipeline
from udm_text.common import share_in_words
from udm_text.corpus import load_corpus, load_tokenizer, make_rows
from udm_text.evaluation import evaluate_token_repair

WAYS = ("mask", "delete", "substitute", "uniform")
EMBEDDINGS = "embeddings"
REPAIRS = "substitute"
SAMPLES = 2000
EMBEDDED_SAMPLES, EMBEDDED_STEPS = 1000, 50
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "embedding_diffusion.py"
LIKE_MINI = "--layers 4 --per_device_train_batch_size 256"
NAMES = "--vocab_size 6000 --weight_decay 0.1".split()


def train(way: str, seed: int, length: list[str], data: Path, output: Path) -> dict[str, Any]:
    """One run; its report. length: the options that end it."""
    own, program = ["--model", "mini", "--process", way], ["-m", "udm_text"]
    if way == EMBEDDINGS:
        own, program = LIKE_MINI.split(), [str(RECIPE)]
    return train_model(["--data", str(data), *NAMES, *own, "--seed", str(seed), *length], output, program)


def shares(texts: list[str], seen: list[str]) -> dict[str, float]:
    """Of samples, those made of known words alone and those that are real names and were never seen."""
    known, words = set(seen), {word for name in seen for word in name.split()}
    counts = Counter(verdict(text, known, words) for text in texts)
    return {"known_words": 1 - counts["other"] / len(texts), "unseen": counts["unseen"] / len(texts)}


def embedded_samples(folder: Path, seed: int) -> list[str]:
    """Names by a model of embeddings."""
    model, tokenizer = EmbeddedTextModel.from_pretrained(folder), load_tokenizer(str(folder))
    rows = model.generate(EMBEDDED_SAMPLES, num_steps=EMBEDDED_STEPS, seed=seed)
    texts: list[str] = tokenizer.batch_decode(rows)
    return texts


def in_words(share: float, number: int) -> str:
    """A share with its standard error."""
    return share_in_words(share, (share * (1 - share) / number) ** 0.5, number)


def measure(way: str, seed: int, length: list[str], data: Path, splits: Any, output: Path) -> dict[str, Any]:
    """One corruption, trained and measured; prints its line."""
    report = train(way, seed, length, data, output)
    if way == EMBEDDINGS:
        texts = embedded_samples(output, seed)
    else:
        pipe = load_pipeline(str(output))
        texts = [record["generated_text"] for record in pipe("", num_return_sequences=SAMPLES, seed=seed)]
    found = {"bits_per_char": report["validation"]["bits_per_char"], "steps": report["steps"]}
    found |= shares(texts, splits["train"]["text"])
    line = (
        f"seed {seed}  {way:10} {found['bits_per_char']:.4f} +- {report['validation']['bits_per_char_stderr']:.4f} "
        f"bits/char  {report['steps']} steps of {report['rows_per_step']} rows  known words "
        f"{in_words(found['known_words'], len(texts))}, real and never seen {in_words(found['unseen'], len(texts))}"
    )
    if way == REPAIRS:
        rows, _ = make_rows(splits["validation"], pipe.tokenizer, split="validation")
        repaired = evaluate_token_repair(pipe.model, list(rows), seed=seed)
        found |= {"restored": repaired.restored, "left_alone": repaired.left_alone}
        line += f"  one wrong token mended {in_words(repaired.restored, repaired.rows)}"
    print(line, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, EMBEDDINGS], default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, each")
    parser.add_argument("--steps", type=int, help="of training, each, in place of seconds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    length = ["--max_seconds", str(options.seconds)]
    if options.steps is not None:
        length = ["--max_steps", str(options.steps)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "names"
        load_script(prepare_script()).prepare(data)
        splits = load_corpus(str(data))
        each = f"{options.seconds:.0f} s" if options.steps is None else f"{options.steps} steps"
        print(f"{machine('cpu')}; 1 thread; mini, {each} each", flush=True)
        found = [
            {"way": way, "seed": seed} | measure(way, seed, length, data, splits, Path(folder) / f"{way}-{seed}")
            for seed in range(options.seeds)
            for way in options.ways
        ]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine("cpu"), **vars(options), "found": found}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
