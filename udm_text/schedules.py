"""Count grids l = t_0 > t_1 > ... > t_K = 0: how many editable positions are still corrupted after each step.

A step from t to s reveals t - s positions that are drawn independently of each other, at a price of (t - s) c(t) nats,
where c(t) is the mean cross-entropy of a masked position when t are masked (mathematics, masks: NELBO_K). The prices of
all grids follow from the one curve, so the best grid of K steps is a shortest path.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

SCHEDULES = ("linear", "cosine", "optimal")
COUNTS = ("exact", "binomial")
"""How many positions are corrupted: as many as the grid says, or each of its own with that chance."""


def counts(
    schedule: str,
    start: Tensor,
    num_steps: int | None = None,
    curve: Sequence[float] | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """The grid of each row.

    Args:
        schedule: "linear": equal steps; "cosine": small steps first (`cosine_counts`); "optimal": the grid of lowest
            price on the measured curve.
        start: (B,) int64 >= 0, the corrupted positions of each row at the beginning.
        num_steps: K >= 1; None takes one position a step, whatever the schedule. A row with start < K takes one
            position a step and then rests, so that its own walk is the same in any batch.
        curve: for "optimal", c at the ratios 1/n, 2/n, ..., 1 of corrupted positions, in nats (see `curve_at`).
        lengths: (B,) int64 >= start, the positions that a ratio is taken of; None: start.

    Returns:
        (K + 1, B) int64, from `start` down to 0; consecutive counts of a row differ by at least one until it is at 0.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")
    if schedule == "linear" or num_steps is None:
        return linear_counts(start, num_steps)
    if schedule == "cosine":
        return cosine_counts(start, num_steps)
    if curve is None:
        raise ValueError("schedule 'optimal' needs curve, the measured price of a token at each ratio of masks")
    return optimal_counts(start, num_steps, curve, lengths)


def linear_counts(start: Tensor, num_steps: int | None = None) -> Tensor:
    """A grid that removes the same share of the corruption in every step. Arguments and result as in `counts`."""
    own, done = _own_steps(start, num_steps)
    return start[None] - torch.div(start[None] * done, own.clamp(min=1), rounding_mode="floor")


def cosine_counts(start: Tensor, num_steps: int | None = None) -> Tensor:
    """A grid whose counts follow start * cos(pi/2 * j/K), rounded down: few positions first, many at the end.

    Source: MaskGIT, Chang et al. 2202.04200. Where the cosine would rest or leave too little for the steps to come, a
    step takes one position. Arguments and result as in `counts`.
    """
    own, done = _own_steps(start, num_steps)
    angle = done.double() / own.clamp(min=1) * (math.pi / 2)
    wish = (start * angle.cos() + 1e-9).floor().long()  # cos(pi/3) is a little more or less than 1/2
    falling = (wish + done).cummin(dim=0).values - done
    return falling.maximum(own - done).minimum(start[None])


def optimal_counts(
    start: Tensor, num_steps: int | None, curve: Sequence[float], lengths: Tensor | None = None
) -> Tensor:
    """The grid of lowest price on a curve; of equal prices the most even one. Arguments and result as in `counts`."""
    own, _ = _own_steps(start, num_steps)
    values = _checked(curve)
    lengths = _lengths(start, lengths)
    grid = torch.zeros((int(own.max()) if own.numel() else 0) + 1, len(start), dtype=torch.int64)
    for row, (first, steps, length) in enumerate(zip(start.tolist(), own[0].tolist(), lengths.tolist(), strict=True)):
        grid[: steps + 1, row] = torch.tensor(_shortest_path(values, first, steps, length))
    return grid.to(start.device)


def curve_at(curve: Sequence[float], ratios: Tensor) -> Tensor:
    """c at ratios t/l of corrupted positions in (0, 1]; float64, the shape of `ratios`.

    curve: c at 1/n, 2/n, ..., 1, linear between them and constant below 1/n.
    """
    values = torch.tensor(_checked(curve), dtype=torch.float64, device=ratios.device)
    below, weight = interpolation_weights(ratios, len(values))
    return values[below] * (1 - weight) + values[(below + 1).clamp(max=len(values) - 1)] * weight


def interpolation_weights(ratios: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation on 1/n, ..., 1: index of the point below (int64), and weight of the next one (float64)."""
    position = (ratios.double() * points - 1).clamp(0, points - 1)
    below = position.floor().clamp(max=max(points - 2, 0))
    return below.long(), position - below


def step_costs(times: Tensor, curve: Sequence[float], lengths: Tensor | None = None) -> Tensor:
    """(B,) float64: the price of a grid in nats for each row, sum_j (t_j - t_{j+1}) c(t_j).

    On the curve of a model this is NELBO_K, a bound on -log p of the sampler that walks down the grid in random order.

    times: (K + 1, B) int64, a grid of `counts`. curve: see `curve_at`. lengths: as in `counts`.
    """
    ratios = times[:-1].double() / _lengths(times[0], lengths).clamp(min=1)
    return ((times[:-1] - times[1:]) * curve_at(curve, ratios)).sum(dim=0)


def binomial_counts(shares: Tensor, start: Tensor, uniforms: Tensor) -> Tensor:
    """The counts of a walk whose positions are corrupted independently: each row draws its own.

    A position is corrupted at a time where its uniform lies below the share of that time. So a count is
    Binomial(start, share), the next one Binomial(count, share' / share), and a walk by counts has at each time the law
    of the channel that corrupts every position by itself, as D3PM (Austin et al., arXiv 2107.03006) and MDLM (Sahoo et
    al., arXiv 2406.07524) do.

    Args:
        shares: (K + 1, B) float64 in [0, 1], falling: 1 - the chance that a position is as it was ("survival").
        start: (B,) int64, the positions that a row has. uniforms: (B, L) float64 in (0, 1), L >= start.

    Returns:
        (K + 1, B) int64, falling, where a row may rest at any time.

    Raises:
        ValueError: where shares lie outside of [0, 1] or rise, or a row has fewer uniforms than positions.
    """
    if bool(((shares < 0) | (shares > 1)).any()) or bool((shares[1:] > shares[:-1]).any()):
        raise ValueError("shares must lie in [0, 1] and fall from each time to the next")
    if start.numel() and int(start.max()) > uniforms.shape[1]:
        raise ValueError(f"uniforms must hold one for each of {int(start.max())} positions, got {uniforms.shape[1]}")
    own = uniforms.masked_fill(torch.arange(uniforms.shape[1], device=start.device) >= start[:, None], torch.inf)
    return (own < shares[..., None]).sum(dim=2)


def edit_cost_share(cost: float, num_tokens: int) -> float:
    """The share at which uniform noise is the law q(y | x) ~ exp(-cost d), d the positions where y differs from x.

    share = V e^-cost / (1 + (V - 1) e^-cost): over rows of one length the law is a product over positions, and there
    it puts e^-cost on each of V - 1 other tokens for 1 on the same one. n such steps have the share 1 - (1 - share)^n.

    Args:
        cost: nats of a substitution, at least 0 (0 is the uniform law). num_tokens: V >= 2.
    """
    if not cost >= 0 or num_tokens < 2:
        raise ValueError(f"cost must be at least 0 and num_tokens at least 2, got {cost} and {num_tokens}")
    other = math.exp(-cost)
    return num_tokens * other / (1 + (num_tokens - 1) * other)


def with_revision(times: Tensor, revise: int) -> Tensor:
    """A grid that, once a row is at 0, rises to `revise` (or its start, if that is less) and falls one by one again.

    A row's revision follows its own last step; then it rests, while longer rows go on.

    times: (K + 1, B) int64, a grid of `counts`. Returns (K' + 1, B) int64.
    """
    walks = []
    for row in times.T:
        own = row[: int((row > 0).sum()) + 1].tolist()
        walks.append(torch.tensor(own + list(range(min(revise, own[0]), -1, -1))))
    return torch.nn.utils.rnn.pad_sequence(walks).to(times.device)


def _own_steps(start: Tensor, num_steps: int | None) -> tuple[Tensor, Tensor]:
    """(1, B): steps of each row; (K + 1, B): those it has made at each place of the grid."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if (start < 0).any():
        raise ValueError(f"start must be at least 0 corrupted positions in every row, got {int(start.min())}")
    longest = int(start.max()) if start.numel() else 0
    steps = longest if num_steps is None else min(num_steps, longest)
    own = start.clamp(max=steps)[None]
    return own, torch.arange(steps + 1, device=start.device)[:, None].minimum(own)


def _lengths(start: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return start
    if lengths.shape != start.shape or (lengths < start).any():
        raise ValueError("lengths must hold at least the corrupted positions of every row, one number for each row")
    return lengths


def _checked(curve: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in curve)
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("curve must hold at least one number, and finite ones only")
    return values


@functools.lru_cache(maxsize=1024)
def _shortest_path(curve: tuple[float, ...], start: int, steps: int, length: int) -> tuple[int, ...]:
    """start = t_0 > ... > t_K = 0 of lowest sum_j (t_j - t_{j+1}) c(t_j), by O(K start^2) dynamic programming."""
    if steps == start:
        return tuple(range(start, -1, -1))
    here = torch.arange(start + 1, dtype=torch.float64)
    cost = curve_at(curve, here / length)
    fall = here[:, None] - here
    # A step's square, too small to outweigh a price, breaks ties in favour of even steps.
    even = 1e-10 * max(1e-30, float(cost.abs().max())) / start
    edges = (fall * cost[:, None] + even * fall.square()).masked_fill(fall <= 0, torch.inf)
    best = torch.full_like(here, torch.inf)
    best[0] = 0.0
    choices = []
    for _ in range(steps):
        best, choice = (edges + best).min(dim=1)
        choices.append(choice)
    path = [start]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return tuple(path)
