"""Counts of independent changes, exactly: the Poisson-binomial law, and draws conditioned on its count.

Position i changes with probability r_i, independently; N is the number of changes and N_-i the number without i.
Everything is done in log space and float64, batched and differentiable; positions that cannot change carry
log r = NEVER. Cost O(L T) for L positions and counts up to T.

Sources: Chen & Liu, "Statistical applications of the Poisson-binomial and conditional Bernoulli distributions" (1997),
for the recursions and the conditional draw; docs/mathematics.md for their use in the edit sampler.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEVER = -1e30
"""log of a probability that is zero; finite, so that gradients stay finite."""


def count_table(log_change: Tensor, log_stay: Tensor, max_count: int) -> Tensor:
    """log P(N = k) of every prefix.

    Args:
        log_change: (B, L) float64, log r_i. log_stay: (B, L) float64, log(1 - r_i).
        max_count: T, the largest count asked for.

    Returns:
        (B, L + 1, T + 1) float64; entry [b, i, k] is log P(exactly k of the first i positions change).
    """
    batch, length = log_change.shape
    row = torch.full((batch, max_count + 1), NEVER, dtype=torch.float64, device=log_change.device)
    row = torch.cat((torch.zeros_like(row[:, :1]), row[:, 1:]), dim=1)
    rows = [row]
    edge = torch.full_like(row[:, :1], NEVER)
    for i in range(length):
        shifted = torch.cat((edge, row[:, :-1]), dim=1)
        row = torch.logaddexp(row + log_stay[:, i, None], shifted + log_change[:, i, None]).clamp(min=NEVER)
        rows.append(row)
    return torch.stack(rows, dim=1)


def log_prob_count(log_change: Tensor, log_stay: Tensor, t: Tensor) -> Tensor:
    """(B,) float64: log P(N = t). Arguments as in `count_table`; t: (B,) int64."""
    table = count_table(log_change, log_stay, int(t.max()))
    return table[:, -1].gather(1, t[:, None])[:, 0]


def log_leave_one_out(log_change: Tensor, log_stay: Tensor, t: Tensor) -> Tensor:
    """(B, L) float64: log [P(N_-i = t - 1) / P(N = t)], for t >= 1.

    Times r_i this is the chance that position i is among the t that change. Prefix and suffix tables are convolved, so
    nothing is subtracted and nothing cancels. Arguments as in `count_table`; t: (B,) int64.
    """
    top = int(t.max())
    before = count_table(log_change, log_stay, top)
    after = count_table(log_change.flip(1), log_stay.flip(1), top).flip(1)
    j = torch.arange(top, device=t.device)
    rest = t[:, None] - 1 - j[None]  # j changes before i, rest after it
    pick = rest.clamp(min=0)[:, None].expand(-1, log_change.shape[1], -1)
    terms = before[:, :-1, :top] + after[:, 1:].gather(2, pick)
    terms = terms.masked_fill((rest < 0)[:, None], NEVER)
    return terms.logsumexp(dim=2) - before[:, -1].gather(1, t[:, None])


def log_mean_inverse_count(log_change: Tensor, log_stay: Tensor) -> Tensor:
    """(B, L) float64: log E[1 / (1 + N_-i)].

    Equals the integral over z in (0, 1) of the generating function prod_{j != i} (1 - r_j + r_j z), a polynomial of
    degree
    below L: Gauss-Legendre quadrature with ceil(L / 2) nodes is exact. Arguments as in `count_table`.
    """
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (log_change.shape[1] + 1) // 2))
    log_z = torch.as_tensor(np.log((nodes + 1) / 2), device=log_change.device)
    log_w = torch.as_tensor(np.log(weights / 2), device=log_change.device)
    factors = torch.logaddexp(log_stay[..., None], log_change[..., None] + log_z)
    return (factors.sum(dim=1, keepdim=True) - factors + log_w).logsumexp(dim=-1)


def draw_changes(log_change: Tensor, log_stay: Tensor, t: Tensor, uniforms: Tensor, most: int | None = None) -> Tensor:
    """Which positions change, given that exactly t do: an exact draw without rejection.

    Args:
        log_change, log_stay: as in `count_table`. t: (B,) int64.
        uniforms: (B, L) float64 in (0, 1), one for each position.
        most: a number that no t exceeds, from a caller who knows it and that every row has positions enough: then
            nothing is read from the device. None: both are found by reading.

    Returns:
        (B, L) bool with exactly t true in each row.

    Raises:
        ValueError: where fewer than t positions can change.
    """
    length = log_change.shape[1]
    if most is None:
        if ((log_change > NEVER / 2).sum(dim=1) < t).any():
            raise ValueError(
                "t asks for more changes than a row has positions that can change (log_change above NEVER)"
            )
        most = int(t.max())
    table = count_table(log_change, log_stay, max(1, most))
    left = t.clone()
    chosen = []
    for i in range(length - 1, -1, -1):
        here = table[:, i + 1].gather(1, left[:, None])[:, 0]
        with_i = table[:, i].gather(1, (left - 1).clamp(min=0)[:, None])[:, 0] + log_change[:, i]
        take = (uniforms[:, i].log() < with_i - here) & (left > 0)
        chosen.append(take)
        left = left - take.long()
    return torch.stack(chosen[::-1], dim=1)
