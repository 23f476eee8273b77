"""What looks on while an `ImagePipeline` works: a bar, the callback, a trajectory; and checks of its arguments."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from udm_text.common import takes
from udm_text.core import Prediction

from .modeling import NonFiniteOutputError
from .sampling import Predictor

if TYPE_CHECKING:
    from .pipeline import ImagePipeline

OnStepEnd = Callable[["ImagePipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""callback_on_step_end(pipe, step, s, {"xt": xt}) after each step; may return {"xt": ...}, which takes its place.

What it returns must be finite and of the shape of xt; None or {} leaves xt as it is.
"""


class Watcher:
    """What looks on while images come to be: a bar, the caller's callback, a trajectory."""

    def __init__(self, pipe: ImagePipeline, callback: OnStepEnd | None, keeps: bool, progress: bool):
        if callback is not None and not takes(callback, 4):
            what = type(callback).__name__
            raise ValueError(f"callback_on_step_end must be a function of (pipe, step, s, state), got {what}")
        check_flag("output_trajectory", keeps)
        check_flag("progress", progress)
        self.pipe, self.callback, self.keeps, self.progress = pipe, callback, keeps, progress
        self.batches: list[tuple[list[Tensor], list[Tensor]]] = []
        self.states: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.advance: Callable[[], Any] = lambda: None
        self.s: Any = None
        self.asked = False  # in this step: some samplers ask twice

    def predictor(self, predict_x0: Predictor) -> Predictor:
        """The same predictor, seen: in each step it is first asked with the state that the step begins from."""

        def predict(xt: Tensor, t: Tensor, s: Tensor) -> Tensor | Prediction:
            if not self.asked:
                if self.keeps:
                    self.states.append(xt.cpu())
                self.s, self.asked = s, True
            return predict_x0(xt, t, s)

        return predict

    def on_step(self, step: int, xs: Tensor, prediction: Prediction) -> Tensor | None:
        self.advance()
        self.asked = False
        if self.keeps:
            self.answers.append(prediction.x0.cpu().to(torch.float32))
        if self.callback is None:
            return None
        returned: Any = self.callback(self.pipe, step, self.s, {"xt": xs})
        if returned is None or (isinstance(returned, dict) and not returned):
            return None
        xt = returned["xt"] if isinstance(returned, dict) and set(returned) == {"xt"} else None
        if not isinstance(xt, Tensor) or xt.shape != xs.shape or not xt.is_floating_point():
            what = f"xt {tuple(xt.shape)} {xt.dtype}" if isinstance(xt, Tensor) else repr(returned)[:80]
            raise ValueError(
                'callback_on_step_end must return None or {"xt": a floating point tensor of shape '
                f"{tuple(xs.shape)}}}, got {what} after step {step}"
            )
        if not torch.isfinite(xt).all():
            raise ValueError(f"callback_on_step_end returned an xt that is not finite after step {step}")
        return xt.to(xs)

    def finished(self, images: Tensor) -> Tensor:
        """A batch at its end, on the CPU and inside [-1, 1]."""
        images = self._decoded(images).clamp(-1.0, 1.0)
        if bool(images.isnan().any()):
            raise NonFiniteOutputError(
                f"what the network predicts is not finite, in {int(images.flatten(1).isnan().any(dim=1).sum())} of "
                f"{len(images)} images: its weights are damaged, or too large for {self.pipe.denoiser.dtype}"
            )
        if self.keeps:
            self.batches.append(([*map(self._decoded, self.states), images], [*map(self._decoded, self.answers)]))
            self.states, self.answers = [], []
        return images

    def _decoded(self, state: Tensor) -> Tensor:
        """A state as an image, float32 on the CPU."""
        denoiser = self.pipe.denoiser
        return denoiser.to_images(state.to(denoiser.device)).cpu().to(torch.float32)

    def trajectory(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(states) for states in zip(*(states for states, _ in self.batches), strict=True))

    def predictions(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(answers) for answers in zip(*(answers for _, answers in self.batches), strict=True))

    @contextlib.contextmanager
    def bar(self, total: int) -> Iterator[None]:
        """A progress bar on stderr, or nothing."""
        if not self.progress:
            yield
            return
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(**{"total": total, "unit": "step", "leave": False, **self.pipe._progress_bar}) as bar:
            self.advance = bar.update
            yield


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int in low..high (None: no end); ValueError naming it for anything else, True and False too."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    whole = int(value)
    if whole < low or (high is not None and whole > high):
        where = f"be at least {low}" if high is None else f"lie in {low}..{high}"
        raise ValueError(f"{name} must {where}, got {whole}")
    return whole


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """ValueError unless `value` is a finite number in [low, high]; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not low <= float(value) <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def check_flag(name: str, value: Any) -> None:
    """ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
