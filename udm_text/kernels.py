"""Reverse kernels: ways to draw the positions that change. Three of the substitute process, one of the uniform one.

Given xt, a factorised predictor p_i, and r_i = 1 - p_i(xt_i) the chance that position i changes (R = sum of r_i, N the
count of independent changes), a step picks i and a token v != xt_i. Chances of a one-token step:

    site      p_i(v) / R
    hamming   (1/t) p_i(v) P(N_-i = t - 1) / P(N = t)      x0_hat conditioned on Hamming(x0_hat, xt) = t
    free      p_i(v) E[1 / (1 + N_-i)]                     x0_hat as it comes; nothing happens with prod (1 - r_j)

    uniform   p_i(v) / (R + c), nothing happens with c / (R + c)      c = t - R, what of t is corrupted and looks right

`site` and, of the uniform process, `uniform` reproduce the data law when the predictor is the exact posterior at t;
`hamming` is the improved edit sampler of Su Jianlin (kexue.fm/archives/9271). Derivations: docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .core import Prediction
from .hamming import NEVER, draw_changes, log_leave_one_out, log_mean_inverse_count


class Change(NamedTuple):
    """What a predictor says of every position, all (B, L).

    log_change: float64, log r_i (NEVER where not editable). log_stay: float64, log(1 - r_i) (0 where not editable).
    tokens: int64, a draw from p_i(v | v != xt_i), or the best such token where `greedy`.
    """

    log_change: Tensor
    log_stay: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Kernel:
    """draw(change, xt, t, s, churn, random, greedy, most) -> Prediction; log_rate(change, t) -> (B, L) with
    log p(i -> v) = log p_i(v) + log_rate_i. most: see `draw_changes`.

    rests: whether t counts positions that are corrupted and look right, too. Then t may exceed the positions that can
    change, a step may leave all as it is, and without churn all that it draws is made (s is 0).
    """

    draw: Callable[..., Prediction]
    log_rate: Callable[[Change, Tensor], Tensor]
    rests: bool = False


LEAST_REST = 1e-3
"""The least c of kernel `uniform`: a predictor that expects t changes or more may be wrong, and the step rests."""


def _best(change: Change, count: Tensor) -> Tensor:
    """The `count` positions whose change the predictor prefers most. (B, L) bool."""
    scores = (change.log_change - change.log_stay).masked_fill(change.log_change <= NEVER / 2, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (order < count[:, None]) & torch.isfinite(scores)


def _apply(change: Change, where: Tensor, xt: Tensor) -> Tensor:
    if change.tokens is None:
        raise ValueError("a draw needs Change.tokens")
    return torch.where(where, change.tokens, xt)


def _race(change: Change, uniforms: Tensor, count: Tensor) -> Tensor:
    """The first `count` (B,) of an exponential race, in log space: the first to ring is i with chance r_i / R, the next
    one as if i were not there. (B, L) bool."""
    rings = (-uniforms.log()).log() - change.log_change
    return (rings.argsort(dim=-1).argsort(dim=-1) < count[:, None]) & (change.log_change > NEVER / 2)


def _draw_site(change, xt, t, s, churn, random, greedy, most=None):
    if churn:
        raise ValueError("kernel 'site' draws single positions and has no x0_hat to churn; use 'hamming' or 'free'")
    k = t - s
    if greedy:
        where = _best(change, k)
    else:
        where = _race(change, random.uniform(xt.shape[1]), k)
    return Prediction(_apply(change, where, xt), t=where.sum(-1), s=torch.zeros_like(s))


def _rate_site(change, t):
    return -change.log_change.logsumexp(dim=-1, keepdim=True).expand_as(change.log_change)


def _draw_hamming(change, xt, t, s, churn, random, greedy, most=None):
    u = random.uniform(xt.shape[1])
    if greedy:
        if not churn:  # of the t best changes, the t - s most preferred are made
            return Prediction(_apply(change, _best(change, t - s), xt), t=t - s, s=torch.zeros_like(s))
        return Prediction(_apply(change, _best(change, t), xt))
    return Prediction(_apply(change, draw_changes(change.log_change, change.log_stay, t, u, most), xt))


def _rate_hamming(change, t):
    return log_leave_one_out(change.log_change, change.log_stay, t) - t[:, None].double().log()


def _draw_free(change, xt, t, s, churn, random, greedy, most=None):
    u = random.uniform(xt.shape[1])
    k = t - s
    if greedy:
        where = change.log_change > change.log_stay
        if not churn:
            where &= _best(change, k)
            return Prediction(_apply(change, where, xt), t=where.sum(-1), s=torch.zeros_like(s))
    else:
        where = u.log() < change.log_change
    x0 = _apply(change, where, xt)
    if churn:  # the baseline corrupts x0_hat anew, down to s
        return Prediction(x0)
    drawn = where.sum(-1)
    return Prediction(x0, t=drawn, s=(drawn - k).clamp(min=0))


def _rate_free(change, t):
    return log_mean_inverse_count(change.log_change, change.log_stay)


def log_rest(change: Change, t: Tensor) -> tuple[Tensor, Tensor]:
    """log R and log c, (B,) float64: the rates of changing anything and of resting, of kernel `uniform`. t: (B,)."""
    log_total = change.log_change.logsumexp(dim=-1)
    return log_total, (t - log_total.exp()).clamp(min=LEAST_REST).log()


def _draw_uniform(change, xt, t, s, churn, random, greedy, most=None):
    u = random.uniform(xt.shape[1])
    prefers = change.log_change > change.log_stay
    if churn:  # x0_hat as it comes; what is corrupted besides the differing positions is drawn with the noise
        return Prediction(_apply(change, prefers if greedy else u.log() < change.log_change, xt))
    k = t - s
    if greedy:
        where = prefers & _best(change, k)
    else:  # of t balls R are changes; k are drawn, and the fraction of a ball is one with that chance
        log_total, rest = log_rest(change, t)
        expected = t * torch.sigmoid(log_total - rest)
        changes = (expected + random.uniform(xt.shape[1])[:, 0]).floor()
        ball = torch.arange(xt.shape[1], device=xt.device)
        order = random.uniform(xt.shape[1]).masked_fill(ball >= t[:, None], torch.inf).argsort(dim=-1).argsort(dim=-1)
        drawn = (order < k[:, None]) & (ball < changes[:, None])
        where = _race(change, u, drawn.sum(dim=-1))
    return Prediction(_apply(change, where, xt), t=where.sum(dim=-1), s=torch.zeros_like(s))


def _rate_uniform(change, t):
    log_total, rest = log_rest(change, t)
    return -torch.logaddexp(log_total, rest)[:, None].expand_as(change.log_change)


KERNELS: dict[str, Kernel] = {
    "site": Kernel(_draw_site, _rate_site),
    "hamming": Kernel(_draw_hamming, _rate_hamming),
    "free": Kernel(_draw_free, _rate_free),
}
"""Of the substitute process, by name."""

UNIFORM_KERNELS: dict[str, Kernel] = {"uniform": Kernel(_draw_uniform, _rate_uniform, rests=True)}
"""Of the uniform process."""

ALL_KERNELS = {**KERNELS, **UNIFORM_KERNELS}
