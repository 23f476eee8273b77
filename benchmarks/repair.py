"""A repairer against a dictionary, on the same held-out lines with the same typing errors.

    python benchmarks/repair.py MODEL [MODEL ...] --train TRAIN.txt --held-out HELD_OUT.txt
    python benchmarks/repair.py --train TRAIN.txt --held-out HELD_OUT.txt       # the dictionary alone

Lines have 1, 2 or 3 errors in turn, of all kinds or of --kinds (`udm_text.evaluation.make_typos`). The dictionary
replaces a word that stands nowhere in the training lines by the most frequent one there that is one edit away (a letter
replaced, put in or left out, or two neighbours swapped), or also two; it keeps the case of the first letter, and every
other word.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from udm_text.common import share_in_words
from udm_text.corpus.files import read_records
from udm_text.run_report import COUNTED

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def shortened(word: str, most: int) -> set[str]:
    """The word, and what is left of it without up to `most` of its letters."""
    found = last = {word}
    for _ in range(most):
        last = {w[:i] + w[i + 1 :] for w in last for i in range(len(w))}
        found = found | last
    return found


def distance(a: str, b: str) -> int:
    """Letters to replace, put in, leave out, or to swap with their neighbour (optimal string alignment)."""
    above: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row, before = row, [i], above
        for j, y in enumerate(b, start=1):
            cost = min(above[j - 1] + (x != y), above[j] + 1, row[j - 1] + 1)
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
    return row[-1]


class Dictionary:
    """The words of some lines, and how often they stand there. reach: edits between a word and its replacement."""

    def __init__(self, lines: Iterable[str], reach: int):
        self.reach = reach
        self.counts = Counter(word.lower() for line in lines for word in WORD.findall(line))
        self.by_rest: dict[str, list[str]] = {}
        for word in self.counts:
            for rest in shortened(word, reach):
                self.by_rest.setdefault(rest, []).append(word)

    def nearest(self, word: str) -> str:
        """The word that stands for a word, which itself is in small letters."""
        if word in self.counts:
            return word
        near = {other for rest in shortened(word, self.reach) for other in self.by_rest.get(rest, ())}
        ranked = [(far, -self.counts[other], other) for other in near if (far := distance(word, other)) <= self.reach]
        return min(ranked)[2] if ranked else word

    def repair(self, line: str) -> str:
        """The line with its unknown words replaced."""

        def one(match: re.Match) -> str:
            word = match[0]
            best = self.nearest(word.lower())
            if best == word.lower():
                return word
            return best[:1].upper() + best[1:] if word[:1].isupper() else best

        return WORD.sub(one, line)


def texts_of(path: Path) -> list[str]:
    """The lines of a text file, or the column "text" of a table, packed or not, blank ones aside."""
    return [text for record in read_records(path, {"text": "text"}) if (text := record["text"]) and text.strip()]


def show(name: str, figures: dict) -> None:
    """One line on a way to repair."""
    parts = []
    for key in KEYS:
        share, error, count = figures[key], figures[f"{key}_stderr"], figures[COUNTED[key]]
        parts.append(f"{key} {'none' if share is None else share_in_words(share, error, count)}")
    print(f"{name:32} {', '.join(parts)}", flush=True)


KEYS = ("restored", "precision", "recall", "left_alone")


def main() -> None:
    from udm_text import UDMForMaskedGeneration
    from udm_text.evaluation import evaluate_repair, make_typos, repair_figures
    from udm_text.evaluation.typos import KINDS
    from udm_text.framing import load_tokenizer
    from udm_text.training.runs import processor_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="Repairers; none: the dictionary alone.")
    parser.add_argument("--train", type=Path, required=True, help="Lines, or a table with a column text; .gz, too.")
    parser.add_argument("--held-out", type=Path, required=True, help="Another one.")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--min-confidence", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--max-edits", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    held = texts_of(args.held_out)
    chosen = [held[i * len(held) // args.lines] for i in range(args.lines)] if len(held) > args.lines else held
    typed = make_typos(chosen, errors=[1 + i % 3 for i in range(len(chosen))], kinds=args.kinds, seed=args.seed)
    pairs = [(one.text, line) for one, line in zip(typed, chosen, strict=True) if one is not None]
    noisy, clean = map(list, zip(*pairs, strict=True))
    print(f"{processor_name()}: {len(clean)} held-out lines with 1 to 3 typing errors")
    found: dict[str, dict] = {}

    lines = texts_of(args.train)
    for reach in (1, 2):
        started = time.perf_counter()
        words = Dictionary(lines, reach)
        figures = repair_figures(noisy, clean, [words.repair(line) for line in noisy])
        share = sum(words.repair(line) == line for line in clean) / len(clean)
        figures |= {"rows": len(clean), "left_alone_rows": len(clean)}
        figures |= {"left_alone": share, "left_alone_stderr": math.sqrt(share * (1 - share) / len(clean))}
        found[f"dictionary, {reach}"] = {**figures, "seconds": time.perf_counter() - started}
        show(f"dictionary, up to {reach} edit{'s' * (reach > 1)} a word", figures)
    for place in args.models:
        model, tokenizer = UDMForMaskedGeneration.from_pretrained(place), load_tokenizer(place)
        for least in (None, *args.min_confidence):
            started = time.perf_counter()
            how = {"noisy": noisy, "max_edits": args.max_edits, "min_confidence": least, "max_rows": len(clean)}
            report = evaluate_repair(model, tokenizer, clean, **how)
            name = f"{Path(place).name}, min_confidence {least}"
            found[name] = {**report.to_dict(), "seconds": time.perf_counter() - started}
            show(name, found[name])
        print(f"{place}: out of reach {report.out_of_reach} of {report.rows}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
