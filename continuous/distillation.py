"""Students: networks that learn from another network, or from themselves, what x0 to predict of xt.

`ImageObjective(target=...)` asks a target for the x0 that takes the place of the clean image; everything else of the
objective stays. The noise that leads from it to xt is recovered by the process, so every prediction type has its own.

    Imitation      what the teacher predicts                                    a smaller network of the same steps
    Distillation   the x0 whose one step ends where several of the teacher's do      fewer steps (2202.00512)
    Consistency    the student's own x0_hat at the end of a step of the teacher      one step, or a few (2303.01469)

Reflow (2209.03003) needs no target but other rows: samples of the teacher beside the noise each of them came of
(`coupled_rows`). What a student may be sampled with is part of it: `FewSteps`, which its checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from udm_text.common import choices
from udm_text.core import denoise, take_step
from udm_text.devices import Sent
from udm_text.randomness import RowRandom

from . import sampling
from .degradations import per_row
from .processes import GaussianProcess, ImageProcess
from .sampling import Predictor

Teacher = Callable[[Tensor | None], Predictor]
"""teacher(labels) is predict_x0(xt, t, s); labels (B,) int64 as the network has them, or None."""
Student = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""student(xt, t, labels) is the x0_hat of the network that is trained, at t = 0 xt itself."""
DETERMINISTIC = ("ddim", "dpm_solver", "dpm_solver_3", "heun")
"""Samplers that carry one noise to one image."""


class Target(Protocol):
    """What x0 a network is to predict."""

    times: Tensor | None
    """(K,) int64, rising: the t that are trained; None: all of 1..T."""
    comparable: bool
    """Whether the loss says which of two checkpoints is better."""

    def __call__(
        self, student: Student, xt: Tensor, t: Tensor, labels: Tensor | None, x0: Tensor, noise: Tensor
    ) -> Tensor:
        """The x0 to be predicted of xt = corrupt(x0, t, noise), of the shape and dtype of xt. No gradient runs back."""


def teacher_of(denoiser: Any) -> Teacher:
    """An `ImageDenoiser` as a teacher: in evaluation mode, without gradients, x0_hat held inside [-1, 1]."""
    denoiser.eval().requires_grad_(False)

    def teacher(labels: Tensor | None) -> Predictor:
        if labels is not None:
            labels = torch.where(labels == denoiser.config.num_classes, -1, labels)

        def predict(xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
            if denoiser.device != xt.device:
                denoiser.to(xt.device)
            return denoiser.predict_x0(xt, t, labels)

        return sampling.clip(predict)

    return teacher


def x0_of_step(process: GaussianProcess, xt: Tensor, xs: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x0 whose plain step from xt at t ends in xs at s < t: (xs - b_s/b_t xt) / (a_s - b_s/b_t a_t).

    In float64, rounded to the dtype of xt. Source: Salimans and Ho (2202.00512), appendix G.
    """
    (a_t, b_t), (a_s, b_s) = (process.coefficients(time, xt.double()) for time in (t, s))
    share = b_s / b_t
    return ((xs.double() - share * xt.double()) / (a_s - share * a_t)).to(xt.dtype)


def _times(times: Sequence[float] | Tensor) -> Tensor:
    """As a tensor, int64 or float64."""
    if isinstance(times, Tensor):
        return times
    return torch.tensor(times, dtype=torch.float64 if any(isinstance(t, float) for t in times) else torch.int64)


class Imitation:
    """The teacher's x0_hat at the same xt, for a student of another size.

    With weighting "snr" the error is that of the noise, |epsilon_teacher - epsilon_student|^2.

    Args:
        few: of a teacher of few steps; only its times are then trained.
    """

    comparable = True

    def __init__(self, teacher: Teacher, few: FewSteps | None = None):
        self.teacher = teacher
        self.times = None if few is None or few.times is None else _times(few.times[:-1]).flip(0)

    @torch.no_grad()
    def __call__(
        self, student: Student, xt: Tensor, t: Tensor, labels: Tensor | None, x0: Tensor, noise: Tensor
    ) -> Tensor:
        return sampling.as_prediction(self.teacher(labels)(xt, t, t), xt).x0.to(xt.dtype)


class Distillation:
    """The x0 whose one step ends where `len(times) - 1` over `num_steps` plain steps of the teacher end.

    That is a mean of their answers with positive weights, and so stays within the range of images. Two steps for one,
    and the student as the next teacher, is progressive distillation (Salimans and Ho, 2202.00512).

    Args:
        times: the falling grid of the teacher, from T to 0. num_steps: of the student, a divisor of its steps.
    """

    comparable = True

    def __init__(self, process: GaussianProcess, teacher: Teacher, times: Sequence[float] | Tensor, num_steps: int):
        steps = len(times) - 1
        if not 1 <= num_steps < steps or steps % num_steps:
            raise ValueError(f"num_steps of a student must divide those of its teacher, {steps}, got {num_steps}")
        self.process, self.teacher = process, teacher
        self.stride = steps // num_steps
        self.nodes = _times(times).flip(0)
        self.times = self.nodes[self.stride :: self.stride]
        self._sent = Sent(self.nodes)

    @torch.no_grad()
    def __call__(
        self, student: Student, xt: Tensor, t: Tensor, labels: Tensor | None, x0: Tensor, noise: Tensor
    ) -> Tensor:
        (nodes,) = self._sent(t.device)
        index = torch.searchsorted(nodes, t)
        walk = [nodes[index - step] for step in range(self.stride + 1)]
        xs = denoise(self.process, self.teacher(labels), xt.double(), walk)
        return x0_of_step(self.process, xt.double(), xs, walk[0], walk[-1]).to(xt.dtype)


class Consistency:
    """The student's own x0_hat at the end of the step to the next time, towards which its x0_hat here is drawn.

    At t = 0 x0_hat is x0, so what all times agree on is the end of the path. Source: Song et al., "Consistency models"
    (2303.01469), algorithms 2 and 3; the network that is asked is the student as it is (2310.14189), not an average.

    Args:
        times: the falling grid, from T to 0.
        teacher: takes the step. None: x_s is the same x0 with the same noise, which is right as steps become short.
    """

    comparable = False

    def __init__(self, process: GaussianProcess, times: Sequence[float] | Tensor, teacher: Teacher | None = None):
        self.process, self.teacher = process, teacher
        self.nodes = _times(times).flip(0)
        self.times = self.nodes[1:]
        self._sent = Sent(self.nodes)

    @torch.no_grad()
    def __call__(
        self, student: Student, xt: Tensor, t: Tensor, labels: Tensor | None, x0: Tensor, noise: Tensor
    ) -> Tensor:
        (nodes,) = self._sent(t.device)
        s = nodes[torch.searchsorted(nodes, t) - 1]
        if self.teacher is None:
            xs = self.process.corrupt(x0, s, noise)
        else:
            xs, _ = take_step(self.process, self.teacher(labels), xt, t, s)
        return torch.where(per_row(s == 0, xs, torch.bool), xs, student(xs, s, labels).to(xs.dtype))


@torch.no_grad()
def coupled_rows(
    process: GaussianProcess, teacher: Teacher, like: Tensor, labels: Tensor | None, times: Tensor, random: RowRandom
) -> tuple[Tensor, Tensor]:
    """Samples of the teacher, and the noise that each of them came of: the rows of reflow (2209.03003).

    x_t of such a row lies on a straight line, in b_t/a_t, from the noise to the sample, and a network that is trained
    on them walks along it.

    Args:
        like: (B, ...), of the shape, dtype and device of the rows. times: the falling grid, of DPM-Solver++(2M).

    Returns:
        (x0, noise), both as `like`.
    """
    xt = process.prior(like, random=random)
    walk = sampling.spread(times, len(xt), xt.device)
    return denoise(process, sampling.dpm_solver(process, teacher(labels)), xt, walk), xt / float(process.b[-1])


class FewSteps(NamedTuple):
    """How a student has to be sampled; its checkpoint keeps it (`ImageConfig.few_steps`).

    Args:
        samplers: names of samplers, the first of which is taken where none is given.
        num_steps: that are taken where none are given.
        times: the falling grid from T to 0 whose times it knows; None: it knows all.
        exactly: every time of the grid has to be visited.
    """

    samplers: Sequence[str]
    num_steps: int
    times: Sequence[float] | None = None
    exactly: bool = False

    @classmethod
    def read(cls, saved: dict[str, Any], process: ImageProcess) -> FewSteps:
        """From a configuration; ValueError for what cannot be."""
        try:
            found = cls(**saved)
        except TypeError as error:
            raise ValueError(f"few_steps must hold samplers and num_steps, got {saved}: {error}") from None
        if not process.starts_from_noise:
            raise ValueError("few_steps belongs to a Gaussian process, got it with a cold one")
        if isinstance(found.samplers, str) or not found.samplers:
            raise ValueError(f"few_steps must name samplers, the first of them the usual one, got {found.samplers!r}")
        for name in found.samplers:
            sampling.sampler_named(name)
        if found.times is not None:
            sampling.check_falling(found.times, found.top(process))
            if found.times[0] != found.top(process) or found.times[-1] != 0:
                raise ValueError(f"few_steps must have times from T = {found.top(process)} to 0, got {found.times}")
        found.grid(process, None)
        return found

    def top(self, process: ImageProcess) -> float:
        """Where its times begin: T, or 1 of times in continuous time."""
        return 1.0 if any(isinstance(t, float) for t in self.times or ()) else process.T

    def sampler(self, name: str | None) -> str:
        """The sampler of this name, or its own; ValueError for one that it was not made for."""
        if name is not None and name not in self.samplers:
            raise ValueError(f"sampler must be {choices(self.samplers)} for this model of few steps, got {name!r}")
        return self.samplers[0] if name is None else name

    def grid(self, process: ImageProcess, num_steps: int | None, spacing: str | None = None) -> Tensor:
        """The falling grid of so many steps (None: its own number): as `sampling.grid`, of the times that it knows."""
        steps = self.num_steps if num_steps is None else num_steps
        if self.times is None:
            return sampling.grid(process, steps, "even" if spacing is None else spacing)
        if spacing is not None:
            raise ValueError(f"spacing does not go with this model of few steps, whose times are {list(self.times)}")
        most = len(self.times) - 1
        least = most if self.exactly else 1
        if isinstance(steps, bool) or not isinstance(steps, int) or not least <= steps <= most:
            wanted = f"be {most}" if self.exactly else f"be an integer in 1..{most}"
            raise ValueError(f"num_steps must {wanted} for this model of few steps, got {steps!r}")
        places = [round(step * most / steps) for step in range(steps + 1)]
        return _times([self.times[place] for place in places])
