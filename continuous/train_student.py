"""The part of a training run that a teacher has: what its student learns, how it begins, how it is then sampled.

`udm image train --teacher DIR --objective NAME` comes here; `train_image.py` tells the rest of the story.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udm_text.common import choices, refuse_missing, watched
from udm_text.randomness import RowRandom

from . import sampling
from .data import ImageRows, ImageSplits
from .distillation import (
    DETERMINISTIC,
    Consistency,
    Distillation,
    FewSteps,
    Imitation,
    Target,
    Teacher,
    coupled_rows,
    teacher_of,
)
from .modeling import ImageConfig, ImageDenoiser
from .processes import GaussianProcess, ImageProcess

CONSISTENCY_STEPS, REFLOW_STEPS, REFLOWED_STEPS, PAIRS = 16, 50, 4, 10_000
"""Steps of the grid of consistency, of the teacher of reflow, of its student; pairs of reflow: where none are given."""
_PAIRS = 0x5041495253000000
"""Distinguishes the seed of pairs from that of noise."""
_PART = 512


@dataclass
class Lesson:
    """What a student learns, and of whom.

    Args:
        model: the teacher, an `ImageDenoiser`, or None.
        few: how it is to be sampled; None: in any way.
        target: what x0 it is to predict; None: that of its rows.
        times: the teacher's falling grid, of "reflow"; None: rows are images.
        teacher: the teacher's name on the Hub, or that of its folder.
    """

    name: str
    process: ImageProcess
    model: Any
    few: FewSteps | None = None
    target: Target | None = None
    times: Tensor | None = None
    teacher: str | None = None

    @property
    def begins_as_its_teacher(self) -> bool:
        return self.model is not None and self.name != "imitate"

    def begin(self, student: ImageDenoiser) -> None:
        """Give the student the teacher's weights, unless it is another network."""
        if self.model is None or not self.begins_as_its_teacher:
            return
        try:
            student.load_state_dict(self.model.state_dict())
        except RuntimeError:
            raise ValueError(
                f"a student of objective {self.name!r} begins with the weights of its teacher: network_options may "
                f"change nothing but dropout of {self.model.config.network}"
            ) from None


def _imitate(goal: Any, process: GaussianProcess, teacher: Teacher, known: FewSteps | None) -> dict[str, Any]:
    return {"few": known, "target": Imitation(teacher, known)}


def _distil(goal: Any, process: GaussianProcess, teacher: Teacher, known: FewSteps | None) -> dict[str, Any]:
    steps = goal.teacher_steps
    if known is not None:
        if known.times is None or not known.exactly:
            raise ValueError(
                "objective 'distil' joins steps of one noise: its teacher is no student, or a student by 'distil'"
            )
        if steps not in (None, len(known.times) - 1):
            raise ValueError(f"teacher_steps must be {len(known.times) - 1}, as this teacher takes them, got {steps}")
        steps, times = len(known.times) - 1, known.grid(process, None)
    student_steps = goal.student_steps
    if student_steps is None:
        if steps is None or steps % 2:
            raise ValueError("objective 'distil' needs student_steps: the steps that the student is to take")
        student_steps = steps // 2
    if known is None:
        times = sampling.grid(process, 2 * student_steps if steps is None else steps)
    target = Distillation(process, teacher, times, student_steps)
    grid = [*target.times.flip(0).tolist(), times[-1].item()]
    return {"few": FewSteps(["ddim"], student_steps, grid, exactly=True), "target": target}


def _consistency(
    goal: Any, process: GaussianProcess, teacher: Teacher | None, known: FewSteps | None
) -> dict[str, Any]:
    if known is not None:
        raise ValueError("objective 'consistency' needs a teacher that is no student itself")
    times = sampling.grid(process, CONSISTENCY_STEPS if goal.teacher_steps is None else goal.teacher_steps)
    return {"few": FewSteps(["baseline"], 1, times.tolist()), "target": Consistency(process, times, teacher)}


def _reflow(goal: Any, process: GaussianProcess, teacher: Teacher, known: FewSteps | None) -> dict[str, Any]:
    if known is not None and known.times is not None:
        raise ValueError("objective 'reflow' needs a teacher that is no student itself, or one by 'reflow'")
    times = sampling.grid(process, REFLOW_STEPS if goal.teacher_steps is None else goal.teacher_steps, "snr")
    return {"few": FewSteps(list(DETERMINISTIC), REFLOWED_STEPS), "times": times}


OBJECTIVES: dict[str, Callable[..., dict[str, Any]]] = {
    "imitate": _imitate,
    "distil": _distil,
    "consistency": _consistency,
    "reflow": _reflow,
}
"""The one table from what `--objective` names to what is learned."""
_OPTIONS: dict[str, tuple[str, ...]] = {
    "imitate": (),
    "distil": ("student_steps", "teacher_steps"),
    "consistency": ("teacher_steps",),
    "reflow": ("teacher_steps", "pairs"),
}


def read_lesson(goal: Any, own: Callable[[], ImageProcess]) -> Lesson | None:
    """What the options of the objective ask for; None: to learn of images alone.

    Args:
        goal: `train_image.ObjectiveArguments`. own: makes the process of the other options, where there is no teacher.

    Raises:
        ValueError: options that do not go together, or with this teacher.
    """
    given = [name for name in ("student_steps", "teacher_steps", "pairs") if getattr(goal, name) is not None]
    for name in given:
        if getattr(goal, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(goal, name)}")
    if goal.objective is None:
        if goal.teacher is not None or given:
            name = "teacher" if goal.teacher is not None else given[0]
            raise ValueError(f"{name} belongs to an objective: give --objective {choices(OBJECTIVES)}")
        return None
    if goal.objective not in OBJECTIVES:
        raise ValueError(f"objective must be {choices(OBJECTIVES)}, got {goal.objective!r}")
    for name in given:
        if name not in _OPTIONS[goal.objective]:
            raise ValueError(f"{name} does not go with objective {goal.objective!r}")
    if goal.teacher is None:
        if goal.objective != "consistency":
            raise ValueError(f"objective {goal.objective!r} needs a teacher: give --teacher DIR")
        process = own()
        if not isinstance(process, GaussianProcess):
            raise ValueError("objective 'consistency' needs a Gaussian process, and this one is cold")
        return Lesson(goal.objective, process, None, **_consistency(goal, process, None, None))
    refuse_missing(goal.teacher)
    model = ImageDenoiser.from_pretrained(goal.teacher)
    if model.config.learned_variance:
        raise ValueError("a teacher with learned_variance has no students here: take one without")
    if goal.objective != "imitate" and not model.process.starts_from_noise:
        raise ValueError(f"objective {goal.objective!r} needs a teacher of a Gaussian process, and this one is cold")
    process, folder = model.process, Path(goal.teacher)
    return Lesson(
        goal.objective,
        process,
        model,
        teacher=folder.resolve().name if folder.exists() else goal.teacher,
        **OBJECTIVES[goal.objective](goal, process, teacher_of(model), model.config.student),
    )


def student_config(lesson: Lesson, wanted: ImageConfig, network: dict[str, Any]) -> ImageConfig:
    """What the student is to be: as its teacher, but for dropout, which it has none of, or by "imitate" the network.

    Args:
        wanted: what the other options and the images ask for; they are filled in from the teacher before.
        network: what they ask for of the network.

    Raises:
        ValueError: they ask for something else than the teacher is.
    """
    few = None if lesson.few is None else lesson.few._asdict()
    for config in (wanted, wanted if lesson.model is None else lesson.model.config):
        if config.regions or config.condition_dim:
            raise ValueError(
                "students learn whole images, of classes or none: regions and condition_columns do not go with them, "
                "nor a teacher that was trained with these"
            )
    if lesson.model is None:
        return ImageConfig(**{**_fields(wanted), "few_steps": few})
    teacher = lesson.model.config
    if wanted.process != lesson.process.to_dict():
        raise ValueError(f"a student has the process of its teacher, {lesson.process}, got {wanted.process}")
    for name in ("prediction", "learned_variance", "image_shape", "classes"):
        given, its = getattr(wanted, name), getattr(teacher, name)
        if given != its:
            raise ValueError(f"a student has the {name} of its teacher, {its!r}, got {given!r}")
    if lesson.begins_as_its_teacher:
        chosen: dict[str, Any] = {**(teacher.network or {}), "dropout": 0.0, **network}
    else:
        chosen = dict(wanted.network or {})
    return ImageConfig(**{**_fields(teacher), "network": chosen, "few_steps": few, "teacher": lesson.teacher})


def _fields(config: ImageConfig) -> dict[str, Any]:
    names = ("process", "prediction", "learned_variance", "image_shape", "levels", "classes", "network")
    return {name: getattr(config, name) for name in names}


def coupled_splits(lesson: Lesson, splits: ImageSplits, pairs: int | None, label_drop: float, seed: int) -> ImageSplits:
    """Pairs of the teacher in place of images: `pairs` to train on, and as many held out as images are.

    Their classes are those of the images in turn, but for the share `label_drop` of none.
    """
    assert lesson.model is not None and lesson.times is not None

    def drawn(rows: ImageRows, number: int, place: int) -> ImageRows:
        random, choice = (RowRandom((seed ^ _PAIRS) + place + more, torch.arange(number)) for more in (0, 2))
        labels = None
        if lesson.model is not None and lesson.model.config.num_classes and rows.labels is not None:
            labels = rows.labels[torch.arange(number) % len(rows)]
            labels = torch.where(choice.uniform(1)[:, 0] < label_drop, -1, labels)
        made = [_some_pairs(lesson, labels, random, part) for part in watched(_parts(number), "pairs")]
        images, noise = (torch.cat(tensors) for tensors in zip(*made, strict=True))
        return ImageRows(images.clamp(-1, 1), labels, rows.classes, rows.levels, noise=noise)

    train = drawn(splits.train, PAIRS if pairs is None else pairs, 0)
    return ImageSplits(train, drawn(splits.validation, len(splits.validation), 1), splits.notes)


def _parts(number: int) -> list[slice]:
    return [slice(first, min(first + _PART, number)) for first in range(0, number, _PART)]


def _some_pairs(lesson: Lesson, labels: Tensor | None, random: RowRandom, part: slice) -> tuple[Tensor, Tensor]:
    """Sample and noise of some rows, on the CPU."""
    model, process, times = lesson.model, lesson.process, lesson.times
    assert model is not None and times is not None and isinstance(process, GaussianProcess)
    rows = RowRandom(random.seed, random.rows[part].to(model.device))
    like = torch.empty(len(rows.rows), *model.config.shape, device=model.device)
    own = None if labels is None else labels[part].to(model.device)
    own = None if own is None else torch.where(own < 0, model.config.num_classes, own)
    x0, noise = coupled_rows(process, teacher_of(model), like, own, times, rows)
    return x0.cpu(), noise.cpu()
