"""Every outcome of the randomness of the real code, with its exact weight.

The processes use their uniforms in three ways only: by order (keys, ties), by comparison with churn (coins) and by
the cell of 1/k they fall in (shifts, prior). Each has finitely many outcomes, so a batch that holds one row for each
combination, weighted, gives the exact law of what the code returns. `Script` hands these uniforms out in place of
`RowRandom`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from itertools import product as cartesian

import torch
from torch import Tensor

SPECIAL, MASK = 0, 1
ALLOWED = (3, 4, 6, 7, 9)


class Script:
    """Stands in for RowRandom: the n-th call of `uniform` gives the n-th of the prescribed (B, n) tensors."""

    def __init__(self, *calls: Tensor):
        self.calls = list(calls)

    def uniform(self, n: int) -> Tensor:
        call = self.calls.pop(0)
        assert call.shape[1] == n, f"the script has {call.shape[1]} numbers for this call, the code asks for {n}"
        return call.clone()

    def expect(self, draws: int) -> None:
        """Nothing is made ahead."""

    def used_up(self) -> bool:
        return not self.calls


@dataclass(frozen=True)
class Board:
    """How the l positions of a world sit in rows of tokens: between prompt tokens, under ids that are not 0..V-1.

    prompt: the positions of the row that are not editable. They hold [MASK] and a special token: a prompt may.
    """

    num_tokens: int
    length: int
    prompt: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return self.length + len(self.prompt)

    @property
    def allowed(self) -> Tensor:
        return torch.tensor(ALLOWED[: self.num_tokens])

    @property
    def open(self) -> Tensor:
        """(L,) bool: the editable positions."""
        mask = torch.ones(self.width, dtype=torch.bool)
        mask[list(self.prompt)] = False
        return mask

    def editable(self, batch: int) -> Tensor:
        return self.open.expand(batch, -1).clone()

    def rows(self, digits: Tensor) -> Tensor:
        """(B, L) tokens of (B, l) digits; the digit V is [MASK]."""
        ids = torch.cat((self.allowed, torch.tensor([MASK])))
        rows = torch.tensor([(MASK, SPECIAL)[i % 2] for i in range(self.width)]).repeat(len(digits), 1)
        rows[:, self.open] = ids[digits]
        return rows

    def index(self, rows: Tensor, masks: bool) -> Tensor:
        """The world's index of each row; fails if a prompt was touched or a token stands where it may not."""
        ids = torch.cat((self.allowed, torch.tensor([MASK]))) if masks else self.allowed
        match = rows[:, self.open, None] == ids
        assert match.any(-1).all(), "a token stands where it may not"
        digits = match.int().argmax(-1)
        untouched = self.rows(torch.zeros(1, self.length, dtype=torch.int64))
        assert (rows[:, ~self.open] == untouched[:, ~self.open]).all(), "a prompt was touched"
        return (digits * len(ids) ** torch.arange(self.length).flip(0)).sum(-1)

    def spread(self, values: Tensor) -> Tensor:
        """(B, L) uniforms of (B, l) uniforms; a prompt's own uniform is small, so that it would win every race."""
        full = torch.full((len(values), self.width), 1e-3, dtype=torch.float64)
        full[:, self.open] = values
        return full


def orderings(n: int) -> Tensor:
    """(n!, n): one representative of every order of n uniforms."""
    return (torch.tensor(list(permutations(range(n))), dtype=torch.float64) + 0.5) / n


def cells(k: int, n: int) -> Tensor:
    """(k^n, n): one representative of every combination of the cells [j/k, (j+1)/k)."""
    return (torch.tensor(list(cartesian(range(k), repeat=n)), dtype=torch.float64) + 0.5) / k


def coins(churn: float, n: int) -> tuple[Tensor, Tensor]:
    """((2^n, n), (2^n,)): which of n uniforms lie below churn, weighted churn^k (1 - churn)^(n - k)."""
    below = torch.tensor(list(cartesian((True, False), repeat=n)))
    weights = torch.where(below, churn, 1 - churn).to(torch.float64).prod(-1)
    values = torch.where(below, churn / 2, (1 + churn) / 2).to(torch.float64)
    return values[weights > 0], weights[weights > 0]


def combine(*parts: Tensor) -> list[Tensor]:
    """Every combination of one row of each part, aligned."""
    where = torch.cartesian_prod(*(torch.arange(len(part)) for part in parts))
    where = where[:, None] if where.ndim == 1 else where
    return [part[where[:, i]] for i, part in enumerate(parts)]


def forward_outcomes(board: Board, shifts: bool) -> tuple[list[Tensor], Tensor]:
    """The calls of `sample_noise`, all outcomes, and their weights."""
    unused = torch.full((1, board.length), 0.5, dtype=torch.float64)
    parts = [orderings(board.length), unused]
    if shifts:
        parts.append(cells(board.num_tokens - 1, board.length))
    calls = combine(*parts)
    weights = torch.full((len(calls[0]),), 1 / len(calls[0]), dtype=torch.float64)
    return [board.spread(call) for call in calls], weights


def reverse_outcomes(board: Board, churn: float, shifts: bool, rising: bool = False) -> tuple[list[Tensor], Tensor]:
    """The calls of `reverse_step` (`invert_noise`, and `sample_noise` if churn), all outcomes, and their weights.

    The fresh keys of the inversion and those of the blend are compared with each other: all orders of the 2 l of them
    are taken. `rising` takes only those where the inversion's keys rise, which is enough because it sorts them.
    """
    length = board.length
    unused = torch.full((1, length), 0.5, dtype=torch.float64)
    jump = [cells(board.num_tokens - 1, length)] if shifts else []
    coin, coin_weight = coins(churn, length) if churn else (unused, torch.ones(1, dtype=torch.float64))
    keys = orderings(2 * length if churn else length)
    if rising:
        keys = keys[(keys[:, 1:length] > keys[:, : length - 1]).all(1)]
    parts = [
        keys,
        orderings(length),
        *jump,
        torch.cat((coin, coin_weight[:, None]), dim=1),
        *(jump if churn else []),
    ]
    keys, ties, *rest = combine(*parts)
    inverted = [rest.pop(0)] if shifts else []
    coin, weights = rest[0][:, :length], rest[0][:, length]
    calls = [keys[:, :length], ties, unused.expand(len(ties), -1), *inverted]
    if churn:
        calls += [keys[:, length:], coin, *rest[1:]]
    return [board.spread(call) for call in calls], weights / weights.sum()


def accumulate(index: Tensor, weights: Tensor, num_states: int) -> Tensor:
    """(num_states,) float64: the law of a state from weighted outcomes. `sum` is pairwise: it keeps 1e-15."""
    law = torch.zeros(num_states, dtype=torch.float64)
    for state in index.unique():
        law[state] = weights[index == state].sum()
    return law


def threshold_law(decide: Callable[[Tensor], Tensor], length: int) -> list[tuple[Tensor, float]]:
    """The exact law of yes/no decisions made by comparing uniforms with thresholds, the last position first.

    decide: (B, l) uniforms -> (B, l) bool, where decision i is "yes" for small uniforms and depends on its own uniform
    and on the decisions after i. The thresholds are found by section search through the code itself.

    Returns:
        [(uniforms (l,), probability)], one representative for each possible outcome.
    """
    fractions = torch.linspace(0, 1, 65, dtype=torch.float64)

    def branch(uniforms: Tensor, i: int) -> list[tuple[Tensor, float]]:
        if i < 0:
            return [(uniforms, 1.0)]
        low, high = 0.0, 1.0
        while high - low > 2.0**-53 * max(high, 2.0**-900):
            points = low + (high - low) * fractions
            rows = uniforms.repeat(63, 1)
            rows[:, i] = points[1:-1]
            yes = int(decide(rows)[:, i].sum())
            if (float(points[yes]), float(points[yes + 1])) == (low, high):
                break
            low, high = float(points[yes]), float(points[yes + 1])
        threshold = high if high == 1.0 else low
        leaves = []
        for value, weight in ((threshold / 2, threshold), ((1 + threshold) / 2, 1 - threshold)):
            if weight > 0:
                chosen = uniforms.clone()
                chosen[i] = value
                leaves += [(u, w * weight) for u, w in branch(chosen, i - 1)]
        return leaves

    return branch(torch.full((length,), 0.5, dtype=torch.float64), length - 1)
