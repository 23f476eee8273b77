"""Deletion and insertion on every string up to a length, by brute force: what the code does by tables and canvases."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np

String = tuple[int, ...]


def strings(num_tokens: int, longest: int) -> list[String]:
    """Every string of at most so many tokens 0..V-1, the short ones first."""
    return [word for size in range(longest + 1) for word in product(range(num_tokens), repeat=size)]


def without(word: String, places: tuple[int, ...]) -> String:
    return tuple(token for place, token in enumerate(word) if place not in places)


def embeddings(part: String, whole: String) -> list[tuple[int, ...]]:
    """Every choice of rising places of `whole` at which `part` stands."""
    return [kept for kept in combinations(range(len(whole)), len(part)) if tuple(whole[i] for i in kept) == part]


def forward(x0: String, t: int) -> dict[String, float]:
    """q(xt | x0): t of the tokens are deleted, each set of them as likely."""
    law: dict[String, float] = {}
    for gone in combinations(range(len(x0)), t):
        law[without(x0, gone)] = law.get(without(x0, gone), 0.0) + 1 / comb(len(x0), t)
    return law


def backward(xt: String, x0: String, k: int) -> dict[String, float]:
    """q(x_{t-k} | xt, x0): of one uniform embedding, k of the missing tokens come back, each set as likely."""
    law: dict[String, float] = {}
    ways = embeddings(xt, x0)
    for kept in ways:
        missing = [i for i in range(len(x0)) if i not in kept]
        for back in combinations(missing, k):
            word = tuple(x0[i] for i in sorted({*kept, *back}))
            law[word] = law.get(word, 0.0) + 1 / len(ways) / comb(len(missing), k)
    return law


def put_in(word: String, gap: int, token: int) -> String:
    """The token behind the first `gap` tokens."""
    return (*word[:gap], token, *word[gap:])


def step_law(pi: np.ndarray, word: String, k: int = 1) -> dict[String, float]:
    """p(x_{t-k} | xt) of k independent actions from pi (gaps, V); those of one gap stand in their order."""
    law: dict[String, float] = {}
    for actions in product(product(range(pi.shape[0]), range(pi.shape[1])), repeat=k):
        chance = float(np.prod([pi[action] for action in actions]))
        if not chance:
            continue
        new: list[int] = []
        for gap in range(len(word) + 1):
            new += [token for place, token in actions if place == gap]
            new += word[gap : gap + 1]
        law[tuple(new)] = law.get(tuple(new), 0.0) + chance
    return law


def canonical(pi: np.ndarray, word: String) -> np.ndarray:
    """pi without actions that put a token behind its like, each gap's law of tokens made whole again."""
    gaps = pi.sum(axis=1, keepdims=True)
    kept = pi.copy()
    for gap in range(1, len(word) + 1):
        kept[gap, word[gap - 1]] = 0.0
    return gaps * kept / kept.sum(axis=1, keepdims=True)


def chain_law(predictor, length: int, grid: list[int]) -> dict[String, float]:
    """The law of x0 when the empty text walks down a grid of counts by predictor(word, t) -> pi (gaps, V)."""
    law: dict[String, float] = {(): 1.0}
    for t, s in zip(grid, grid[1:], strict=False):
        after: dict[String, float] = {}
        for word, mass in law.items():
            for new, chance in step_law(predictor(word, t), word, t - s).items():
                after[new] = after.get(new, 0.0) + mass * chance
        law = after
    return law


def exact_predictor(data: dict[String, float], num_tokens: int):
    """The law of canonical actions that the exact posterior of x0 gives at each (xt, t), one token at a time."""

    def predict(word: String, t: int) -> np.ndarray:
        pi = np.zeros((len(word) + 1, num_tokens))
        for x0, mass in data.items():
            if len(x0) != len(word) + t or not (chance := forward(x0, t).get(word, 0.0)):
                continue
            for new, back in backward(word, x0, 1).items():
                gap, token = next(
                    (gap, token)
                    for gap, token in product(range(len(word) + 1), range(num_tokens))
                    if put_in(word, gap, token) == new and (gap == 0 or word[gap - 1] != token)
                )
                pi[gap, token] += mass * chance * back
        return pi / pi.sum()

    return predict
