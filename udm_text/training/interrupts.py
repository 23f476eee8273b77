"""Ends of a run that are no failures: a signal from the system, or the time that was given. A checkpoint is written."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainerCallback

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""What batch systems send before they stop a job, and Ctrl-C: at the end of the step a checkpoint is written."""
INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has ended, as shells have it."""
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
"""Learning-rate schedules that can run by the clock."""
TIME_IS_UP = "max_seconds"
ONCE_MORE = b"\nCtrl-C: a checkpoint is written at the end of this step; once more ends the run at once, without one\n"


class TimedLRLambda:
    """The learning rate's share of its maximum where a run ends by time: the multiplier of a `LambdaLR`.

    Linear warm-up by steps, then `schedule` over the share of the run that is over, so that a run which is stopped by
    the clock ends on a finished schedule. `elapsed` is stored with the schedule in a checkpoint and restored from it.

    Args:
        seconds: of training in all, resumed parts included. steps: at most so many; 0: no limit.
        warmup: steps. schedule: one of `SCHEDULES`.
    """

    __slots__ = ("seconds", "steps", "warmup", "schedule", "__dict__")  # a LambdaLR stores what is in __dict__ only

    def __init__(self, seconds: float, steps: int, warmup: int, schedule: str):
        if schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ValueError(f"lr_scheduler_type must be one of {known} with max_seconds, got {schedule!r}")
        self.seconds, self.steps, self.warmup, self.schedule = seconds, steps, warmup, schedule
        self.elapsed = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        over = self.over(step)
        if self.schedule.startswith("constant"):
            return 1.0
        return 1.0 - over if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * over))

    def over(self, step: int) -> float:
        """The share of the run that is over after `step` steps, in [0, 1]: of its time or of its steps, the larger."""
        return min(1.0, max(self.elapsed / self.seconds, step / self.steps if self.steps else 0.0))


class TimedShares(TrainerCallback):
    """Logs, evaluates and saves by shares of a run that may end by the clock.

    transformers takes a `logging_steps`, `eval_steps` or `save_steps` below 1 as a share of `max_steps`, which such a
    run may never see; here it is one of the run (`TimedLRLambda.over`). To be called after `Interrupts`, which keeps
    the time and agrees on it among processes. The last step is logged, and not evaluated.
    """

    def __init__(self, rate: TimedLRLambda):
        self.rate = rate
        self.done: dict[str, int] = {}

    def _reached(self, args, step: int) -> dict[str, int]:
        """What of the three goes by shares -> how many of its shares are over."""
        shares = {"log": args.logging_steps, "evaluate": args.eval_steps or 0, "save": args.save_steps}
        by = {"log": args.logging_strategy, "evaluate": args.eval_strategy, "save": args.save_strategy}
        over = self.rate.over(step) + 1e-9
        return {name: int(over / share) for name, share in shares.items() if by[name] == "steps" and 0 < share < 1}

    def on_train_begin(self, args, state, control, **kwargs):
        self.done = self._reached(args, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        for name, count in self._reached(args, state.global_step).items():
            due, self.done[name] = count > self.done[name], count
            if not control.should_training_stop:  # in place of what transformers makes of a share of max_steps
                first = name == "log" and args.logging_first_step and state.global_step == 1
                setattr(control, f"should_{name}", due or first)
            elif name == "log" and due:
                control.should_log = True


class EvaluationInterrupted(Exception):
    """A signal came while a model was measured in the middle of its training."""


class Interrupts(TrainerCallback):
    """Stops at the end of a step once any process was sent a signal or the time is up, and has a checkpoint written.

    transformers has `enable_jit_checkpoint`, which knows SIGTERM only, waits three seconds, decides in each process by
    itself and may save between gradients and update; here all processes agree, and a step is saved when it is whole.

    Args:
        all_reduce_max: a number of each process -> the largest of them, the same in every process.
        rate: whose time limit holds, and whose `elapsed` is kept; None: no time limit.
        saves: whether a checkpoint is written at the end.
    """

    def __init__(self, all_reduce_max: Callable[[float], float], rate: TimedLRLambda | None = None, saves: bool = True):
        self.all_reduce_max, self.rate, self.saves = all_reduce_max, rate, saves
        self.received = 0
        self.reason: str | None = None
        self._began = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block the signals are noted instead of ending the process; a second Ctrl-C ends it at once.

        Only the main thread can listen. Ctrl-C stays ignored where it was (nohup, jobs in the background).
        """
        self.received, self.reason = 0, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [n for n in SIGNALS if n != signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            with contextlib.suppress(OSError):  # not by print, which may be in the middle of another line
                os.write(2, ONCE_MORE)
        self.received = number

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.monotonic() - (self.rate.elapsed if self.rate is not None else 0.0)
        if self.rate is not None and self.rate.elapsed >= self.rate.seconds:  # of a checkpoint at the end of the time
            self.reason = TIME_IS_UP
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        number = int(self.all_reduce_max(self.received))
        if self.rate is not None:
            self.rate.elapsed = self.all_reduce_max(time.monotonic() - self._began)
        if number:
            self.reason = signal.Signals(number).name
        elif self.rate is not None and self.rate.elapsed >= self.rate.seconds:
            self.reason = TIME_IS_UP
        else:
            return
        control.should_training_stop = True
        control.should_save = self.saves
        control.should_evaluate = False  # whoever sent a signal waits for some seconds only

    def between_batches(self) -> None:
        """Raises EvaluationInterrupted once any process was sent a signal; to be called in every process alike."""
        if int(self.all_reduce_max(self.received)):
            raise EvaluationInterrupted

    def stop(self, control: Any) -> None:
        """Ends the training where an evaluation was interrupted, which is left out: the step was whole before it."""
        self.reason = signal.Signals(int(self.all_reduce_max(self.received))).name
        control.should_training_stop = True
        control.should_save = self.saves
        control.should_evaluate = False


class _Unbroken:
    """A text stream that is written to until nobody reads it any more (`train ... | head`), and then no longer."""

    def __init__(self, stream: Any):
        self.stream, self.open = stream, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, what: Callable[[], Any]) -> None:
        if not self.open:
            return
        try:
            what()
        except BrokenPipeError:
            self.open = False
            with contextlib.suppress(OSError, ValueError):  # what waits in the buffer is not tried again at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            print("note: nobody reads what the run prints any more; it goes on", file=sys.stderr, flush=True)


@contextlib.contextmanager
def unbroken_output() -> Iterator[None]:
    """Inside the block a pipe behind stdout or stderr that is closed ends nothing: a note, and the run goes on."""
    before = sys.stdout, sys.stderr
    own: Any = tuple(stream and _Unbroken(stream) for stream in before)  # None where there is no console
    sys.stdout, sys.stderr = own
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == own:
            sys.stdout, sys.stderr = before


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)
