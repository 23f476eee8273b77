"""Draws the figures of one-loop.md by that page's own blocks; `python docs/figures.py` writes docs/images/loop-*.

Words are an SVG, digits are PNG; both are the same at every run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from continuous import save_strip
from continuous.grids import save_png, tile
from udm_text.common import written_whole
from udm_text.core import denoise
from udm_text.randomness import RowRandom

DOCS = Path(__file__).resolve().parent
CELL, GAP, LEFT, TOP = 30, 40, 74, 14
"""Of the figure of words, in pixels: a letter, what is between two words, room for the names of the states, above."""
SHOWN = 12
"""Digits in a row."""


def run_blocks() -> list[dict[str, Any]]:
    """The names after each block of the page that has a predictor; what they print is not shown."""
    page = (DOCS / "one-loop.md").read_text(encoding="utf-8")
    left: dict[str, Any] = {"print": lambda *parts: None}
    after = []
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if "\ndef predict_" in block:
            exec(compile(block, "one-loop.md", "exec"), left)
            after.append(dict(left))
    return after


def draw_words(states: Sequence[Sequence[str]]) -> str:
    """An SVG: a line for each state, the letters of its words in boxes, "_" empty, new letters on yellow.

    states: words of the same lengths in each.
    """
    boxes, before = [], states[0]
    for row, words in enumerate(states):
        y = TOP + row * (CELL + 10)
        boxes.append(f'<text x="0" y="{y + 20}" class="t">t = {len(states) - 1 - row}</text>')
        for number, word in enumerate(words):
            for place, letter in enumerate(word):
                x = LEFT + number * (len(word) * CELL + GAP) + place * CELL
                kind = "m" if letter == "_" else "n" if before[number][place] == "_" else "k"
                boxes.append(f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="{CELL - 3}" rx="4" class="{kind}"/>')
                if letter != "_":
                    boxes.append(f'<text x="{x + CELL / 2 - 1.5}" y="{y + 19}" class="l">{escape(letter)}</text>')
        before = words
    width = LEFT + sum(len(word) * CELL + GAP for word in states[0]) - GAP
    height = TOP + len(states) * (CELL + 10)
    style = (
        "text{font:16px ui-monospace,Menlo,monospace;fill:#1a1a1a}.l{text-anchor:middle}.t{fill:#777}"
        ".m{fill:#d9dbe3}.n{fill:#ffe08a}.k{fill:#eef0f6}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"<style>{style}</style>\n" + "\n".join(boxes) + "\n</svg>\n"
    )


def draw(folder: Path) -> list[Path]:
    """Writes the three figures into a folder; returns where they are."""
    words, blur, noise = (folder / f"loop-{name}" for name in ("words.svg", "blur.png", "noise.png"))

    of_words, of_blur, left = run_blocks()
    states = [[of_words["spell"](row) for row in state] for state in of_words["states"]]
    with written_whole(words) as part:
        part.write_text(draw_words(states), encoding="utf-8")

    rows = [of_blur["xt"], *of_blur["restored"].values(), of_blur["held_out"]]
    save_png(blur, tile([images[:SHOWN] for images in rows]))

    process, random = left["process"], RowRandom(seed=0, rows=torch.arange(4))
    xt = process.prior(left["held_out"][:4], random=random)
    walk, way = [torch.full((4,), t) for t in range(100, -1, -1)], [xt]
    denoise(process, left["predict_mean"], xt, walk, random=random, on_step=lambda step, xs, _: way.append(xs))
    save_strip(noise, way, SHOWN)
    return [words, blur, noise]


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if sys.argv[1:] else DOCS / "images"):
        print(path)
