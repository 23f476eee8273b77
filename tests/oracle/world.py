"""Worlds small enough to enumerate: a data law over all V^l sequences and everything that follows from it, exactly.

Written in numpy from the definitions in docs/mathematics.md; it imports nothing of the packages it judges. A sequence
is a row of digits 0..V-1; [MASK] is the digit V. The index of a row is its value in base V (base V + 1 with masks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from itertools import product as cartesian
from math import comb

import numpy as np


def all_rows(base: int, length: int) -> np.ndarray:
    """(base^length, length) int64, every row of digits, in the order of its index."""
    return np.array(list(cartesian(range(base), repeat=length)), dtype=np.int64)


def index_of(rows: np.ndarray, base: int) -> np.ndarray:
    """The place of each row in `all_rows`. rows: (..., length)."""
    return rows @ (base ** np.arange(rows.shape[-1])[::-1])


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p - q).sum())


def entropy(p: np.ndarray) -> float:
    """In nats; p is positive."""
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True, eq=False)
class World:
    """A data law on V^l. data: (V^l,) positive, sums to one."""

    num_tokens: int
    length: int
    data: np.ndarray

    @cached_property
    def sequences(self) -> np.ndarray:
        return all_rows(self.num_tokens, self.length)

    @cached_property
    def masked_sequences(self) -> np.ndarray:
        return all_rows(self.num_tokens + 1, self.length)

    def mask_forward(self, t: int) -> np.ndarray:
        """q(xt | x0): (V^l, (V + 1)^l), exactly t positions masked, every subset alike."""
        forward = np.zeros((len(self.sequences), len(self.masked_sequences)))
        for corrupted in combinations(range(self.length), t):
            xt = self.sequences.copy()
            xt[:, corrupted] = self.num_tokens
            forward[np.arange(len(xt)), index_of(xt, self.num_tokens + 1)] += 1 / comb(self.length, t)
        return forward

    def substitute_forward(self, t: int) -> np.ndarray:
        """q(xt | x0): (V^l, V^l), uniform over the sequences at Hamming distance t."""
        distance = (self.sequences[:, None] != self.sequences[None]).sum(-1)
        return (distance == t) / (comb(self.length, t) * (self.num_tokens - 1.0) ** t)

    def uniform_forward(self, t: int) -> np.ndarray:
        """q(xt | x0): (V^l, V^l), every set of t positions alike, and on it every token, the same one among them."""
        forward = np.zeros((len(self.sequences),) * 2)
        for corrupted in combinations(range(self.length), t):
            kept = [i for i in range(self.length) if i not in corrupted]
            agrees = (self.sequences[:, None, kept] == self.sequences[None][:, :, kept]).all(-1)
            forward += agrees / (comb(self.length, t) * float(self.num_tokens) ** t)
        return forward

    def posterior(self, forward: np.ndarray) -> np.ndarray:
        """q(x0 | xt): (number of xt, V^l). Rows of an xt that cannot occur are uniform."""
        joint = (self.data[:, None] * forward).T
        mass = joint.sum(1, keepdims=True)
        return np.where(mass > 0, joint / np.where(mass > 0, mass, 1), 1 / len(self.data))

    def marginals(self, posterior: np.ndarray) -> np.ndarray:
        """p_i(x0_i | xt): (number of xt, l, V), the factorised exact predictor."""
        one_hot = np.eye(self.num_tokens)[self.sequences]
        return np.einsum("xn,nlv->xlv", posterior, one_hot)

    def mask_predictor(self, t: int) -> np.ndarray:
        return self.marginals(self.posterior(self.mask_forward(t)))

    def substitute_predictor(self, t: int) -> np.ndarray:
        return self.marginals(self.posterior(self.substitute_forward(t)))

    def uniform_predictor(self, t: int) -> np.ndarray:
        return self.marginals(self.posterior(self.uniform_forward(t)))


def make_world(num_tokens: int, length: int, seed: int = 0, correlated: bool = True) -> World:
    """A random law; `correlated` prefers sequences whose neighbours are alike, by a factor 8 each."""
    rng = np.random.default_rng([seed, num_tokens, length])
    data = rng.gamma(0.5, size=num_tokens**length) + 1e-3
    if correlated:
        sequences = all_rows(num_tokens, length)
        data *= 8.0 ** (sequences[:, 1:] == sequences[:, :-1]).sum(1)
    return World(num_tokens, length, data / data.sum())


def random_predictor(num_states: int, length: int, num_tokens: int, seed: int) -> np.ndarray:
    """(num_states, l, V): a predictor that knows nothing and is sure of it."""
    logits = 2 * np.random.default_rng([seed, num_states]).normal(size=(num_states, length, num_tokens))
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


def guess_law(p: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """The law of x0_hat drawn independently at each position. p: (l, V); returns (len(sequences),)."""
    return p[np.arange(p.shape[0]), sequences].prod(-1)


def one_token_step(kernel: str, p: np.ndarray, xt: np.ndarray, t: int, sequences: np.ndarray) -> np.ndarray:
    """p(xs | xt) of a reverse kernel of the substitute process, s = t - 1, by enumerating every x0_hat.

    p: (l, V), xt: (l,). Returns (V^l,).
    """
    num_tokens = p.shape[1]
    law = np.zeros(len(sequences))
    if kernel == "site":
        change = np.where(np.arange(num_tokens) == xt[:, None], 0, p).sum(1)
        for i, v in cartesian(range(len(xt)), range(num_tokens)):
            if v != xt[i]:
                xs = xt.copy()
                xs[i] = v
                law[index_of(xs, num_tokens)] += change[i] / change.sum() * (p[i, v] / change[i])
        return law
    for x0, weight in zip(sequences, guess_law(p, sequences), strict=True):
        differing = np.flatnonzero(x0 != xt)
        if kernel == "hamming" and len(differing) != t:
            continue
        if len(differing) == 0:
            law[index_of(xt, num_tokens)] += weight
        for i in differing:
            xs = xt.copy()
            xs[i] = x0[i]
            law[index_of(xs, num_tokens)] += weight / len(differing)
    return law / law.sum()
