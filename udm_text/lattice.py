"""Alignments of two rows with known numbers of edits: their sum, and draws, by a table over the edit lattice.

An alignment is a path from (0, 0) to (n, m) for rows a of n and b of m tokens. A step to the right and down keeps a
token, or substitutes it where the two differ; a step down deletes a token of a; a step to the right inserts one of b.
The path counts its substitutions, deletions and insertions (s, d, k), and as its column is i + k - d, the table has
the row i and the three counts. In log space and float64, batched; each row is on its own.

Source: the edit lattice of Wagner & Fischer (1974), summed as the forward algorithm does; docs/mathematics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .hamming import NEVER

WALL, NOTHING = -1, -2
"""What stands in a row of a lattice besides tokens 0..V-1: a given token, which is kept and never edited; no token."""
KEEP, SUBSTITUTE, DELETE, INSERT = -1, 0, 1, 2
"""The steps of a path; those that are edits are the kinds of the edit process."""


class Steps(NamedTuple):
    """log of the weight of a step of each kind."""

    substitute: float
    delete: float
    insert: float


class Alignment(NamedTuple):
    """One path for each row.

    steps: (B, N) int64, what became of each token of a: KEEP, SUBSTITUTE or DELETE.
    inserted: (B, M) bool, the tokens of b that were inserted.
    place_a, place_b: (B, N), (B, M) int64, the place of each token of a and of each inserted token of b on the path:
        where it stands among the tokens of a and the inserted ones of b.
    partner: (B, N) int64, the token of b that stands for a kept or substituted token of a; 0 for others.
    """

    steps: Tensor
    inserted: Tensor
    place_a: Tensor
    place_b: Tensor
    partner: Tensor


def lattice_table(a: Tensor, b: Tensor, steps: Steps, most: int) -> Tensor:
    """log of the summed weight of the paths to each cell.

    Args:
        a: (B, N) int64, b: (B, M) int64: tokens 0..V-1 and WALL, then NOTHING up to the width.
        steps: the weights.
        most: T, the largest number of edits of one kind.

    Returns:
        (B, N + 1, T + 1, T + 1, T + 1) float64; entry [r, i, s, d, k] is about the first i tokens of a and the first
        i + k - d of b.
    """
    batch, length = a.shape
    size = (batch, most + 1, most + 1, most + 1)
    never = torch.full(size, NEVER, dtype=torch.float64, device=a.device)
    cell = never.clone()
    cell[:, 0, 0, 0] = 0.0
    beyond = torch.full((batch, 1), NOTHING, dtype=b.dtype, device=b.device)
    right = torch.cat((b, beyond), dim=1)
    counts = torch.arange(most + 1, device=a.device)
    shift = counts[None, :] - counts[:, None]  # [d, k]: k - d

    def column(i: int) -> Tensor:
        """(B, 1, T + 1, T + 1): the token of b that comes next, for each d and k."""
        j = (i + shift).clamp(min=-1, max=b.shape[1])
        return right[:, j.flatten()].view(batch, 1, most + 1, most + 1)  # -1 is the last column, NOTHING

    def moved(values: Tensor, dim: int) -> Tensor:
        """The same with one more edit of a kind."""
        return torch.cat((never.narrow(dim, 0, 1), values.narrow(dim, 0, most)), dim=dim)

    rows = []
    for i in range(length + 1):
        if i > 0:
            here, there = a[:, i - 1, None, None, None], column(i - 1)
            kept = torch.where((here == there) & (here != NOTHING), cell, never)
            both = (here >= 0) & (there >= 0)
            changed = torch.where(both & (here != there), cell + steps.substitute, never)
            lost = torch.where(here >= 0, cell + steps.delete, never)
            cell = torch.logaddexp(torch.logaddexp(kept, moved(changed, 1)), moved(lost, 2)).clamp(min=NEVER)
        can_come = column(i) >= 0
        layers = [cell[..., 0]]
        for k in range(most):
            came = torch.where(can_come[..., k], layers[-1] + steps.insert, never[..., k])
            layers.append(torch.logaddexp(cell[..., k + 1], came).clamp(min=NEVER))
        cell = torch.stack(layers, dim=-1)
        rows.append(cell)
    return torch.stack(rows, dim=1)


def edit_distance(a: Tensor, b: Tensor) -> Tensor:
    """(B,) int64: the fewest substitutions, deletions and insertions that lead from each row of a to that of b.

    a: (B, N) int64, b: (B, M) int64: tokens and WALL, of any number but NOTHING, which fills what is behind their ends.
    """
    length, width = (a != NOTHING).sum(dim=1), (b != NOTHING).sum(dim=1)
    number = torch.arange(b.shape[1] + 1, device=a.device)
    costs = number.expand(len(a), -1)
    for i in range(a.shape[1]):
        stays = costs[:, :-1] + (a[:, i, None] != b)
        begun = torch.cat((costs[:, :1] + 1, torch.minimum(stays, costs[:, 1:] + 1)), dim=1)
        come = (begun - number).cummin(dim=1).values + number  # from any column before, by insertions
        costs = torch.where((i < length)[:, None], come, costs)
    return costs.gather(1, width[:, None])[:, 0]


def draw_alignment(
    table: Tensor, a: Tensor, b: Tensor, steps: Steps, end: tuple[Tensor, Tensor, Tensor, Tensor], uniforms: Tensor
) -> Alignment:
    """A path to a cell, with chance in proportion to its weight.

    Args:
        table, a, b, steps: as in `lattice_table`.
        end: four (B,) int64, the cell (i, s, d, k); its entry of the table is above NEVER.
        uniforms: (B, N + T) float64 in (0, 1), one for each step of the longest path.
    """
    batch, length = a.shape
    most = table.shape[2] - 1
    index = torch.arange(batch, device=a.device)
    i, s, d, k = (x.clone() for x in end)
    kinds = torch.full_like(a, KEEP)
    inserted = torch.zeros_like(b, dtype=torch.bool)
    place_a, place_b, partner = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(a)

    def entry(i: Tensor, s: Tensor, d: Tensor, k: Tensor) -> Tensor:
        inside = (i >= 0) & (s >= 0) & (d >= 0) & (k >= 0)
        return torch.where(inside, table[index, i.clamp(min=0), s.clamp(min=0), d.clamp(min=0), k.clamp(min=0)], NEVER)

    for step in range(length + most - 1, -1, -1):
        walking = i + k == step + 1  # a path of n + k steps begins when the others have come down to it
        j = i + k - d
        at_a, at_b = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        here = torch.where(i > 0, a[index, at_a], NOTHING)
        there = torch.where(j > 0, b[index, at_b], NOTHING)
        ways = torch.stack(
            (
                torch.where(here == there, entry(i - 1, s, d, k), NEVER),
                torch.where(
                    (here != there) & (here >= 0) & (there >= 0), entry(i - 1, s - 1, d, k) + steps.substitute, NEVER
                ),
                torch.where(here >= 0, entry(i - 1, s, d - 1, k) + steps.delete, NEVER),
                torch.where(there >= 0, entry(i, s, d, k - 1) + steps.insert, NEVER),
            ),
            dim=1,
        )
        heights = ways.softmax(dim=1).cumsum(dim=1)
        way = (uniforms[:, step, None] * heights[:, -1:] >= heights[:, :-1]).sum(dim=1) + KEEP
        of_a, of_b = walking & (way != INSERT), walking & (way == INSERT)
        kinds[index, at_a] = torch.where(of_a, way, kinds[index, at_a])
        place_a[index, at_a] = torch.where(of_a, step, place_a[index, at_a])
        partner[index, at_a] = torch.where(of_a & (way != DELETE), at_b, partner[index, at_a])
        inserted[index, at_b] |= of_b
        place_b[index, at_b] = torch.where(of_b, step, place_b[index, at_b])
        i, k = i - of_a.long(), k - of_b.long()
        s, d = s - (of_a & (way == SUBSTITUTE)).long(), d - (of_a & (way == DELETE)).long()
    return Alignment(kinds, inserted, place_a, place_b, partner)
