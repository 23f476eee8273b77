"""What `UDMTrainer` does between steps: tells the epoch, averages the weights, watches the noise of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import ProgressCallback, TrainerCallback
from transformers.utils import logging

from .ema import WeightAverage
from .interrupts import TimedLRLambda

logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the row order which epoch begins, also after a resume (accelerate does not reach a wrapped sampler)."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.row_order is not None:
            self.trainer.row_order.set_epoch(int(state.epoch or 0.0))  # exact where an epoch is complete


class AverageCallback(TrainerCallback):
    """Keeps the average of the weights, from the first step or from where a checkpoint left it."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        trainer.average = average = WeightAverage(trainer.accelerator.unwrap_model(trainer.model), args.ema_decay)
        if trainer.resumed_from is not None:
            average.load(trainer.resumed_from)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step)


class StepNoise(TrainerCallback):
    """How much the loss of a step owes to which rows and which noise it drew; warns where that is a lot.

    From step 20 to 60 the loss falls slowly against its noise: half the mean square of its changes from step to step
    estimates the variance of one. `relative` is the deviation over the mean, None before; where it is above `limit` and
    the global batch below `few` rows, a warning names both.
    """

    first, last, limit, few = 20, 60, 0.05, 64

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.losses: list[Tensor] = []
        self.step_loss: Tensor | None = None
        self.relative: float | None = None

    def add(self, loss: Tensor) -> None:
        """The loss of a micro-step, which stays where it is."""
        loss = loss.detach().double()
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step - self.trainer._initial_global_step
        if step <= self.last and self.step_loss is not None:
            self.losses.append(self.step_loss)
        self.step_loss = None
        if step != self.last:
            return
        losses = torch.stack(self.losses[self.first :]).cpu()  # once in a run
        # each process sees its own share of the global batch
        deviation = float((losses.diff().square().mean() / 2 / args.world_size).sqrt())
        mean, rows = float(losses.mean()), self.trainer.rows_per_step
        self.relative = deviation / abs(mean) if mean else None
        if self.relative is not None and self.relative > self.limit and rows < self.few and state.is_world_process_zero:
            times = math.ceil((self.relative / self.limit) ** 2)
            logger.warning(
                f"the loss of a step is {mean:.3g} +- {deviation:.2g} ({self.relative:.0%} noise) with {rows} rows a "
                f"step: most of what the optimiser sees is chance. gradient_accumulation_steps "
                f"{args.gradient_accumulation_steps * times} would bring it below {self.limit:.0%}"
            )


class LossCheck:
    """The first loss that was not finite, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self.found: Tensor | None = None  # (2,) float64: step, loss

    def add(self, loss: Tensor, step: int) -> None:
        """A loss () of a step."""
        now = torch.stack((torch.full_like(loss, step, dtype=torch.float64), loss.detach().double()))
        self.found = now if self.found is None else torch.where(self.found[1].isfinite(), now, self.found)

    def not_finite(self) -> tuple[int, float] | None:
        """Step and loss, or None. Waits for the device."""
        if self.found is None:
            return None
        step, loss = self.found.tolist()
        return None if math.isfinite(loss) else (int(step), loss)


def describe_time(rate: TimedLRLambda, step: int) -> str:
    """How far a run is that may end by the clock: `42 s of 300 s, step 204`."""
    steps = f" of {rate.steps}" if rate.steps else ""
    return f"{min(rate.elapsed, rate.seconds):.0f} s of {rate.seconds:.0f} s, step {step}{steps}"


def terminal_bar(parts: Collection[Any], what: str) -> Iterable[Any]:
    """A bar for `common.watching`: on stderr, where that is a terminal, and gone when the loop is over."""
    found: Iterable[Any] = tqdm(parts, desc=what, leave=False, dynamic_ncols=True, disable=None)
    return found


class LossBar(ProgressCallback):
    """The progress bar of transformers with the latest loss in it, in place of a line for each log.

    Args:
        describe: the words for an evaluation, from what it logged; the held-out loss by default.
        rate: of a run that may end by the clock, whose bar is its time; None: the bar is its steps.
    """

    def __init__(self, describe: Callable[[dict[str, float]], str] | None = None, rate: TimedLRLambda | None = None):
        super().__init__()
        self.describe = describe or (lambda logs: f"held-out loss {logs['eval_loss']:.5f}")
        self.rate = rate

    def on_train_begin(self, args, state, control, **kwargs):
        if self.rate is None:
            super().on_train_begin(args, state, control, **kwargs)
        elif state.is_world_process_zero:
            how: dict[str, Any] = {"dynamic_ncols": True, "bar_format": "{percentage:3.0f}%|{bar}| {desc}{postfix}"}
            self.training_bar = tqdm(total=1.0, initial=self.rate.over(state.global_step), **how)

    def on_step_end(self, args, state, control, **kwargs):
        if self.rate is None:
            super().on_step_end(args, state, control, **kwargs)
        elif state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.set_description_str(describe_time(self.rate, state.global_step), refresh=False)
            self.training_bar.update(self.rate.over(state.global_step) - self.training_bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)
        elif "eval_loss" in logs:
            self.training_bar.write(f"step {state.global_step}: {self.describe(logs)}")
