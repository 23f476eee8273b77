"""Three ways to walk down a grid of counts, of one signature: step by step, by a threshold, by speculation.

Each hands every step to `core.denoise` or, where several tokens are settled by one call, to `speculative.speculate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .compiling import CompiledSteps
from .core import Prediction, denoise, take_step
from .randomness import RowRandom
from .schedules import with_revision
from .speculative import Drafts, speculate


class Watch(Protocol):
    """Who sees the rows between steps."""

    replaces: bool
    """Whether it may put others in their place, or write in them."""

    def __call__(self, step: int, xs: Tensor, s: Tensor) -> Tensor:
        """The rows (B, L) after a step, s (B,) positions of them corrupted; returns those to go on with."""


class Walk(NamedTuple):
    """What a sampler returns: rows (B, L) int64; steps of each, (B,) int64; positions settled a call, (B,) float64.

    drafts: how those of speculative steps fared, None where there are none.
    """

    sequences: Tensor
    steps: Tensor
    tokens_per_call: Tensor
    drafts: Drafts | None = None


class Start(NamedTuple):
    """Where a walk begins and what it takes along: rows xt (B, L), the grid times (K + 1, B) int64, editable (B, L)."""

    process: Any
    predictor: Any
    xt: Tensor
    times: Tensor
    config: Any
    editable: Tensor
    random: RowRandom
    watch: Watch


Sampler = Callable[[Start], Walk]


def step_by_step(start: Start) -> Walk:
    """Every step that the grid names, and then those of a revision (`revise`)."""
    process, predictor, xt, times, config, editable, random, watch = start
    grid = with_revision(times, config.revise) if config.revise else times
    predictor.begin(xt, grid.tolist())
    step_by: Any = CompiledSteps(predictor, predictor.graph_needs(), xt, random) if config.compile else take_step

    def on_step(step: int, xs: Tensor, prediction: Prediction) -> Tensor:
        return _watched(watch, predictor, step, xs, grid[step + 1])

    how: dict[str, Any] = {"editable": editable, "random": random, "on_step": on_step, "step_by": step_by}
    sequences = denoise(process, predictor, xt, list(grid), config.churn, **how)
    falls = (grid[:-1] - grid[1:]).clamp(min=0)
    settled = falls.sum(dim=0).double() / (falls > 0).sum(dim=0).clamp(min=1)
    return Walk(sequences, (grid[1:] != grid[:-1]).sum(dim=0), settled)


def _watched(watch: Watch, predictor: Any, step: int, xs: Tensor, s: Tensor) -> Tensor:
    """The rows to go on with; the predictor is told where they are others."""
    if not watch.replaces:
        return watch(step, xs, s)
    before = xs.clone()
    after = watch(step, xs, s)
    if not torch.equal(after, before):
        predictor.replaced()
    return after


def by_threshold(start: Start) -> Walk:
    """Steps that may go further than the grid asks: the predictor says how far (`threshold`).

    A row that is ahead of the grid goes on by at least one position a step, and the walk ends when all rows have. A
    row's steps depend on itself alone.
    """
    process, predictor, xt, times, _, editable, random, watch = start
    first = left = (process.corrupted(xt, xt) & editable).sum(dim=1)
    floors, steps, none = times.tolist(), [0] * len(xt), torch.zeros_like(left)
    predictor.begin(xt, floors)
    for step, floor in enumerate(times[1:]):
        before = left.tolist()  # how far the rows are is seen in them alone: the one read of a step
        if not any(before):
            break
        steps = [taken + (count > 0) for taken, count in zip(steps, before, strict=True)]
        after = [max(0, min(a, b - 1)) for a, b in zip(floors[step + 1], before, strict=True)]
        predictor.begin(xt, [before, after])

        def on_step(_: int, xs: Tensor, prediction: Prediction, step: int = step) -> Tensor:
            nonlocal left
            assert prediction.s is not None  # the predictor of a threshold says it
            left = prediction.s
            return _watched(watch, predictor, step, xs, prediction.s)

        grid = [left, (left - 1).clamp(none, floor)]
        xt = denoise(process, predictor, xt, grid, editable=editable, random=random, on_step=on_step)
        if predictor.is_replaced:
            left = (process.corrupted(xt, xt) & editable).sum(dim=1)
    taken = torch.tensor(steps, device=xt.device)
    return Walk(xt, taken, first.double() / taken.clamp(min=1))


def speculative(start: Start) -> Walk:
    """Rounds that draft `speculate` tokens and keep the law of one token a step; the grid is not needed."""
    process, predictor, xt, _, config, editable, random, watch = start
    how: dict[str, Any] = {"editable": editable, "random": random, "on_round": watch}
    how["everywhere"] = predictor.asks_everywhere
    ordered = config.order == "left_to_right"
    done = speculate(process, predictor.marginals, xt, config.speculate, left_to_right=ordered, **how)
    return Walk(done.sequences, done.rounds, done.tokens_per_call, done.drafts)


SAMPLERS: dict[str, Sampler] = {"speculate": speculative, "threshold": by_threshold, "num_steps": step_by_step}
"""The one table of samplers, by the option that asks for them; the last one is asked for by none."""


def find_sampler(config: Any) -> Sampler:
    """The sampler that a configuration asks for."""
    asked = (sampler for name, sampler in SAMPLERS.items() if getattr(config, name) is not None)
    return next(asked, step_by_step)
