"""The story of a training run, top to bottom: images, process, model, trainer, held-out loss, report.

`udm image train` and `recipes/train_image.py` are two doors to `train_image`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from udm_text.common import choices
from udm_text.training import UDMTrainer
from udm_text.training.resuming import digest_rows
from udm_text.training.runs import (
    NOTHING_TO_DRAW,
    Preparation,
    RunArguments,
    describe_best,
    end,
    evaluated_rows,
    keep_best,
    prepare,
    resolved,
)
from udm_text.training.runs import parse as parse_run
from udm_text.training.runs import run as carry_out

from .autoencoders import Autoencoder
from .data import DIGITS, ImageSplits, is_model, load_images
from .degradations import degradation
from .evaluation import told
from .grids import draw_loss, save_grid, save_png, tile
from .modeling import ImageConfig, ImageDenoiser
from .objectives import ERRORS, HUBER, WEIGHTINGS, ImageObjective, ImportanceCallback
from .pipeline import ImagePipeline
from .processes import ColdProcess, GaussianProcess, ImageProcess
from .sampling import PRIOR_RANK
from .schedules import LOG_SNRS, SCHEDULES
from .train_student import (
    CONSISTENCY_STEPS,
    PAIRS,
    REFLOW_STEPS,
    Lesson,
    coupled_splits,
    read_lesson,
    student_config,
)

SMALL = 256
"""Up to so many numbers an image, the default network is the small one."""


@dataclass
class DataArguments:
    """What to train on."""

    data: str = field(
        default=DIGITS,
        metadata={"help": "digits (scikit-learn's), a folder of images or of idx files (MNIST), or a `datasets` name."},
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Bring the shorter side to it and cut out the middle square; default: as it is."},
    )
    channels: int | None = field(default=None, metadata={"help": "1 (grey) or 3 (colour); default: as the files are."})
    validation_share: float = field(default=0.05, metadata={"help": "Held out where the data has no part for it."})
    flip: bool = field(default=False, metadata={"help": "Mirror half of the training rows left to right."})
    conditional: bool = field(default=True, metadata={"help": "Tell the network the class, where there are classes."})
    condition_columns: str | None = field(
        default=None,
        metadata={"help": "Columns of numbers, with commas between, that the network is told in place of a class."},
    )


@dataclass
class ModelArguments:
    """What to train."""

    process: str | None = field(
        default=None,
        metadata={
            "help": "Corruption: vp (default), ve, rf, log_snr (continuous time) or cold; of a student its teacher's."
        },
    )
    schedule: str | None = field(
        default=None,
        metadata={"help": f"Of vp: {', '.join(SCHEDULES)}; of log_snr: {', '.join(LOG_SNRS)}; default: cosine."},
    )
    times: int | None = field(default=None, metadata={"help": "T, corruption steps; default: 1000, cold: its own."})
    process_options: str = field(
        default="{}", metadata={"help": 'Further parameters of the process, as JSON: {"sigma_max": 80} for ve.'}
    )
    degradation: str = field(default="blur", metadata={"help": "Of cold: blur, pixel_mask, pool or desaturate."})
    degradation_options: str = field(default="{}", metadata={"help": 'Its parameters, as JSON: {"std": 3.0}.'})
    sigma: float = field(default=0.0, metadata={"help": "Of cold: noise beside the degradation."})
    prior_rank: int | None = field(
        default=None,
        metadata={"help": "Of cold: directions of the law of x_T kept to generate from (default: 64; 0: no law)."},
    )
    prediction: str | None = field(
        default=None, metadata={"help": "What the network predicts: epsilon, x0, score or v (default; cold: x0)."}
    )
    learned_variance: bool = field(default=False, metadata={"help": "Learn the variance of a step, too."})
    optimal_variance: bool = field(
        default=False,
        metadata={
            "help": "Measure the best variance of a step after training and keep it, for sampler ddpm_optimal: T calls "
            "for each of 512 images."
        },
    )
    autoencoder: str | None = field(
        default=None, metadata={"help": "Walk in the latents of this autoencoder, a folder; see docs/encoders.md."}
    )
    network: str | None = field(
        default=None, metadata={"help": f"mlp (default up to {SMALL} numbers an image), unet (beyond) or cross_unet."}
    )
    network_options: str = field(
        default="{}", metadata={"help": 'Its sizes, as JSON: {"width": 384, "blocks": 4} or {"widths": [64, 128]}.'}
    )


@dataclass
class ObjectiveArguments:
    """What is minimised."""

    error: str | None = field(default=None, metadata={"help": f"{', '.join(ERRORS)}; default: l2, cold: l1."})
    huber_delta: float = field(
        default=HUBER, metadata={"help": "Of huber: where it turns from a parabola into a line (torch's own: 1)."}
    )
    weighting: str = field(default="simple", metadata={"help": f"{', '.join(WEIGHTINGS)}."})
    gamma: float = field(default=5.0, metadata={"help": "Of min_snr."})
    label_drop: float = field(default=0.1, metadata={"help": "Share of the rows whose class is withheld."})
    importance: bool = field(default=False, metadata={"help": "Draw t where the bound's terms are large."})
    vlb_share: float = field(default=0.001, metadata={"help": "Share of the bound beside a learned variance."})
    regions: float = field(
        default=0.0,
        metadata={"help": "Share of the rows corrupted in a random region alone, for exact edits; 0: none."},
    )
    vlb_ramp: int = field(default=0, metadata={"help": "Steps over which that share rises from 0; 0: none."})
    objective: str | None = field(
        default=None,
        metadata={"help": "Of a student: imitate (a smaller network), distil (fewer steps), consistency or reflow."},
    )
    teacher: str | None = field(
        default=None, metadata={"help": "A model that the student learns from, a folder or name."}
    )
    student_steps: int | None = field(
        default=None, metadata={"help": "Of distil: steps of the student (default: half of its teacher's)."}
    )
    teacher_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps of the teacher's grid (default: twice student_steps; consistency "
            f"{CONSISTENCY_STEPS}, reflow {REFLOW_STEPS})."
        },
    )
    pairs: int | None = field(
        default=None, metadata={"help": f"Of reflow: samples of the teacher to train on (default: {PAIRS})."}
    )


@dataclass
class ViewArguments:
    """What is shown on the way."""

    sample_every: int | None = field(
        default=None, metadata={"help": "Draw samples-STEP.png at every n-th held-out evaluation; default: none."}
    )

    def __post_init__(self):
        if self.sample_every is not None and self.sample_every < 1:
            raise ValueError(f"sample_every must be at least 1, got {self.sample_every}")


DEFAULTS = {
    "max_steps": 2000,
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 512,
    "ema_decay": 0.999,
    "save_steps": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "eval_rows": 512,
}
"""Of a run on small images, where they differ from those of `RunArguments`."""


GROUPS: dict[str, dict[str, str | None]] = {
    "Needed": {"output_dir": "The folder that the model, its report and its checkpoints go to."},
    "The images": {
        "data": None,
        "image_size": None,
        "channels": None,
        "validation_share": None,
        "flip": None,
    },
    "The model": {
        "process": None,
        "schedule": None,
        "degradation": None,
        "degradation_options": None,
        "prediction": None,
        "network": None,
        "network_options": None,
        "autoencoder": None,
        "conditional": None,
    },
    "A student": {"objective": None, "teacher": None},
    "How long, and how": {
        "max_steps": "Steps.",
        "max_seconds": "Seconds of training at most; measuring the model comes on top.",
        "per_device_train_batch_size": "Images of a step, on each device.",
        "learning_rate": None,
        "ema_decay": "Of the average of the weights that is written; none: no average.",
        "seed": "Of the weights, the noise and the order of images.",
    },
    "On the way": {
        "eval_steps": "Steps between two measurements of the held-out loss, or their share of the run.",
        "eval_rows": "Held-out images of such a measurement, evenly spread; default: 512.",
        "keep_best": None,
        "save_steps": "Steps between two checkpoints, or their share of the run.",
        "resume": None,
        "report_to": None,
        "plot": None,
    },
}
"""What `udm image train --help` tells of."""

Arguments = tuple[DataArguments, ModelArguments, ObjectiveArguments, ViewArguments, RunArguments]


def parse(arguments: list[str] | None = None) -> Arguments:
    """The options of `udm image train`; None: those of the process."""
    kinds = (DataArguments, ModelArguments, ObjectiveArguments, ViewArguments, RunArguments)
    found: Any = parse_run(kinds, arguments, "udm image train", DEFAULTS, GROUPS)
    return found


def train_image(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, view: ViewArguments, run: RunArguments
) -> dict[str, Any]:
    """Train, evaluate and write a model to `run.output_dir`; returns what report.json holds."""
    # what is wrong with the flags is said before anything is written
    lesson = read_lesson(goal, lambda: build_process(model_args))
    taught = lesson is not None and lesson.model is not None
    process = lesson.process if lesson is not None and not asks_for_process(model_args) else build_process(model_args)
    if lesson is not None:
        check_lesson(lesson, data, run)
        if model_args.autoencoder is not None or (lesson.model is not None and lesson.model.config.autoencoder):
            raise ValueError("a student learns in pixels: give no autoencoder, and a teacher that has none")
    model_args = model_args if taught else filled(model_args)
    with prepare(run, {"data": data, "model": model_args, "objective": goal, "view": view}) as ready:
        if ready.finished is not None:
            return ready.finished
        return _train(data, model_args, goal, view, run, process, lesson, ready)


def _train(
    data: DataArguments,
    model_args: ModelArguments,
    goal: ObjectiveArguments,
    view: ViewArguments,
    run: RunArguments,
    process: ImageProcess,
    lesson: Lesson | None,
    ready: Preparation,
) -> dict[str, Any]:
    """`train_image`, in a folder that is this run's own."""
    with ready.state.main_process_first():
        splits = load_images(
            data.data,
            size=data.image_size,
            channels=data.channels,
            validation_share=data.validation_share,
            condition_columns=columns(data.condition_columns),
        )
    for note in splits.notes:
        ready.say(f"note: {note}")
    if (
        ready.checkpoint is not None and lesson is None
    ):  # begun by an older package, "v" may mean what it meant then: see GaussianProcess
        process = ImageConfig.from_pretrained(ready.checkpoint).build_process()
    autoencoder = None if model_args.autoencoder is None else Autoencoder.from_pretrained(model_args.autoencoder)
    config = build_config(model_args, process, splits, data.conditional, lesson, autoencoder, goal.regions > 0)
    model = ImageDenoiser(config)
    if autoencoder is not None:
        model.hold(autoencoder)
    if lesson is not None:
        splits = _taught(lesson, model, splits, goal, run, ready)
    if run.learning_rate is None:
        run.learning_rate = 2e-3 if (config.network or {})["kind"] == "mlp" else 4e-4
    run.optim = run.optim or "adamw_torch_fused"
    objective = build_objective(config, data, goal, run, lesson)
    held = splits.validation
    chosen = evaluated_rows(run, len(held))
    some = held if len(chosen) == len(held) else held.take(torch.tensor(chosen))
    trainer = UDMTrainer(model, run, objective=objective, train_dataset=splits.train, eval_dataset=some)
    if objective.importance is not None:
        trainer.add_callback(ImportanceCallback(trainer, objective.importance))
    grids = None
    if view.sample_every is not None:
        grids = SampleGrids(trainer, splits, view.sample_every)
        trainer.add_callback(grids)
    best = keep_best(trainer, run, ready)
    parameters = sum(p.numel() for p in model.parameters())
    ready.say(
        f"{len(splits.train)} images {' x '.join(map(str, splits.train.shape))}, {len(held)} held out"
        f"{f' ({len(some)} of them measured on the way)' * (len(some) < len(held))}, "
        f"{config.num_classes or 'no'} classes, {parameters / 1e6:.2f} M parameters, {process}, prediction "
        f"{config.prediction}, {trainer.rows_per_step} rows a step"
    )
    facts = {
        "data": resolved(data.data, (DIGITS,)),
        "data_arguments": vars(data),
        "model_arguments": vars(model_args),
        "objective_arguments": vars(goal),
        "process": config.process,
        "teacher": resolved(goal.teacher),
        "train_rows": len(splits.train),
        "held_out_rows": len(held),
        "eval_rows": len(some),
    }

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        if grids is not None:
            trainer.remove_callback(grids)
        trainer.model = ImageDenoiser.from_pretrained(ready.output).to(run.device)  # what was written is measured
        trainer.average = None
        if not process.starts_from_noise and (rank := model_args.prior_rank) != 0:
            labels = splits.train.labels if config.num_classes else None
            trainer.model.fit_prior(splits.train.images, labels, PRIOR_RANK if rank is None else rank)
        found = trainer.evaluate(held)  # all of it
        figures = {name: found[f"eval_{name}"] for name in ("loss", "loss_stderr")}
        if ready.state.is_main_process:
            pipe = ImagePipeline(trainer.model)
            if model_args.optimal_variance:
                pipe.fit_variance(splits.train.images, told(pipe, splits.train))
            pipe.save_pretrained(ready.output)
            ready.say(describe(figures))
            show(pipe, splits, ready.output / "samples.png", run.seed)
            if run.plot and not draw_loss(trainer.state.log_history, ready.output / "loss.png"):
                ready.say(NOTHING_TO_DRAW)
        return {"validation": figures, **describe_best(best, report["steps"], ready)}

    parts = {"training": splits.train, "held-out": splits.validation}
    digests = {
        name: digest_rows(x.numpy() for x in (part.images, part.labels, part.noise, part.conditions) if x is not None)
        for name, part in parts.items()
    }
    return carry_out(trainer, ready, facts, measure, rows=digests)


def _taught(
    lesson: Lesson,
    student: ImageDenoiser,
    splits: ImageSplits,
    goal: ObjectiveArguments,
    run: RunArguments,
    ready: Preparation,
) -> ImageSplits:
    """A student that begins as its lesson says, and the rows it learns from."""
    if lesson.model is not None:
        lesson.model.to(run.device)
    lesson.begin(student)
    if run.keep_best and lesson.target is not None and not lesson.target.comparable:
        ready.say(
            "note: this objective compares the network with itself, so the last weights are written, not the best"
        )
        run.keep_best = False
    if lesson.times is None:
        return splits
    ready.say(f"drawing pairs of {goal.teacher}, of {len(lesson.times) - 1} steps each")
    return coupled_splits(lesson, splits, goal.pairs, goal.label_drop, run.seed)


def build_objective(
    config: ImageConfig,
    data: DataArguments,
    goal: ObjectiveArguments,
    run: RunArguments,
    lesson: Lesson | None = None,
) -> ImageObjective:
    """What is minimised, as the flags say it."""
    coupled = lesson is not None and lesson.times is not None  # whose rows without a class were drawn so
    return ImageObjective(
        config,
        error=goal.error or config.build_process().default_error,
        huber_delta=goal.huber_delta,
        weighting=goal.weighting,
        gamma=goal.gamma,
        label_drop=0.0 if coupled else goal.label_drop,
        target=None if lesson is None else lesson.target,
        importance=goal.importance,
        vlb_share=goal.vlb_share,
        vlb_ramp=goal.vlb_ramp,
        regions=goal.regions,
        flip=data.flip,
        eval_draws=run.eval_draws,
        eval_batch_size=run.per_device_eval_batch_size,
    )


def _cold(model_args: ModelArguments) -> ColdProcess:
    if model_args.prior_rank is not None and model_args.prior_rank < 0:
        raise ValueError(f"prior_rank must be at least 0, got {model_args.prior_rank}")
    if model_args.optimal_variance:
        raise ValueError("optimal_variance is that of the steps of a Gaussian process, and process 'cold' has none")
    how = options("degradation_options", model_args.degradation_options)
    if model_args.times is not None and "T" not in how and model_args.degradation != "pool":
        how["T"] = model_args.times
    return ColdProcess(degradation(model_args.degradation, **how), T=model_args.times, sigma=model_args.sigma)


def _gaussian(family: str, *names: str) -> Callable[[ModelArguments], GaussianProcess]:
    """Makes a process of this family from its options, T and the fields of these names."""

    def make(model_args: ModelArguments) -> GaussianProcess:
        more = options("process_options", model_args.process_options)
        if model_args.sigma:
            raise ValueError(f"sigma belongs to process 'cold', got it with {family!r}")
        if model_args.prior_rank:
            raise ValueError(f"prior_rank belongs to process 'cold', got it with {family!r}")
        more["T"] = 1000 if model_args.times is None else model_args.times
        return GaussianProcess.of_family(family, **{**more, **{n: getattr(model_args, n) for n in names}})

    return make


def _continuous(model_args: ModelArguments) -> GaussianProcess:
    if model_args.times is not None:
        raise ValueError(f"times does not go with process 'log_snr', whose t is any number, got {model_args.times}")
    made: Any = replace(model_args, schedule=None)
    more = options("process_options", model_args.process_options)
    return _gaussian("log_snr")(replace(made, process_options=json.dumps({**more, "curve": model_args.schedule})))


FAMILIES: dict[str, Callable[[ModelArguments], ImageProcess]] = {
    "vp": _gaussian("vp", "schedule"),
    "ve": _gaussian("ve"),
    "rf": _gaussian("rf"),
    "log_snr": _continuous,
    "cold": _cold,
}
"""The one table from what `--process` names to what makes it."""


def filled(model_args: ModelArguments) -> ModelArguments:
    """The options with process and schedule, where they are not given."""
    return replace(model_args, process=model_args.process or "vp", schedule=model_args.schedule or "cosine")


def asks_for_process(model_args: ModelArguments) -> bool:
    """Whether an option of the process is given."""
    names = "process schedule times process_options degradation degradation_options sigma".split()
    return any(getattr(model_args, name) != getattr(ModelArguments(), name) for name in names)


def check_lesson(lesson: Lesson, data: DataArguments, run: RunArguments) -> None:
    """Raises ValueError for options that a student of this objective cannot have."""
    if lesson.times is not None and data.flip:
        raise ValueError("flip does not go with objective 'reflow': a mirrored sample came of no such noise")
    if lesson.target is not None and not lesson.target.comparable and run.patience is not None:
        raise ValueError(
            f"patience waits for a better loss, and that of {lesson.name!r} compares a network with itself"
        )


def build_process(model_args: ModelArguments) -> ImageProcess:
    """The process that the flags name."""
    model_args = filled(model_args)
    if model_args.process not in FAMILIES:
        raise ValueError(f"process must be {choices(FAMILIES)}, got {model_args.process!r}")
    options("process_options", model_args.process_options)
    return FAMILIES[model_args.process](model_args)


def build_config(
    model_args: ModelArguments,
    process: ImageProcess,
    splits: ImageSplits,
    conditional: bool,
    lesson: Lesson | None = None,
    autoencoder: Autoencoder | None = None,
    regions: bool = False,
) -> ImageConfig:
    """What the model is to be, for these images."""
    rows, teacher = splits.train, None if lesson is None or lesson.model is None else lesson.model.config
    numbers, condition = rows.images[0].numel(), rows.conditions
    if autoencoder is not None:
        if tuple(autoencoder.config.image_shape or ()) != rows.shape:
            raise ValueError(
                f"autoencoder {model_args.autoencoder} is one of images of {autoencoder.config.image_shape}, and the "
                f"data has {list(rows.shape)}"
            )
        numbers = math.prod(autoencoder.config.latent_shape)
    kind = model_args.network or ("mlp" if numbers <= SMALL else "unet")
    if condition is not None and condition.ndim == 3 and model_args.network is None:
        kind = "cross_unet"
    network = options("network_options", model_args.network_options)
    usual = process.default_prediction if teacher is None else teacher.prediction
    wanted = ImageConfig(
        process=process.to_dict(),
        prediction=model_args.prediction or usual,
        learned_variance=model_args.learned_variance,
        regions=regions,
        image_shape=list(rows.shape),
        levels=rows.levels,
        classes=rows.classes if conditional and condition is None and (not teacher or teacher.num_classes) else None,
        condition_dim=0 if condition is None else condition.shape[-1],
        condition_length=condition.shape[1] if condition is not None and condition.ndim == 3 else 0,
        autoencoder=None if autoencoder is None else autoencoder.config.fields(),
        network={"kind": kind, **network},
    )
    if lesson is None:
        return wanted
    return student_config(lesson, wanted, network if model_args.network is None else {"kind": kind, **network})


def columns(text: str | None) -> tuple[str, ...]:
    """Names of columns out of a flag."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def options(name: str, text: str) -> dict[str, Any]:
    """A JSON object out of a flag."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON object such as '{{\"width\": 384}}', got {text!r}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"width\": 384}}', got {text!r}")
    return found


def describe(figures: dict[str, Any]) -> str:
    """One line on the held-out loss."""
    return f"held-out loss {figures['loss']:.5f} +- {figures['loss_stderr']:.5f} per dimension"


def show(pipe: ImagePipeline, splits: ImageSplits, path: Path, seed: int) -> None:
    """samples.png: images from nothing, or held-out images, degraded and restored below each other."""
    if splits.train.shape[0] not in (1, 3):
        return
    if pipe.process.starts_from_noise:
        label: Any = "all" if pipe.denoiser.config.num_classes else None
        columns = min(10, pipe.denoiser.config.num_classes or 8)
        if pipe.denoiser.config.condition_dim:
            assert splits.validation.conditions is not None
            label = splits.validation.conditions[torch.arange(8 * columns) % len(splits.validation)]
        save_grid(path, pipe.generate(8 * columns, label, seed=seed), columns)
        return
    clean = splits.validation.images[:10]
    degraded = pipe.degrade(clean, seed=seed)
    save_png(path, tile([clean, degraded, pipe.restore(degraded, seed=seed)]))


class SampleGrids(TrainerCallback):
    """What the model makes at every n-th evaluation, as samples-STEP.png in the folder of the run, of one seed."""

    def __init__(self, trainer: UDMTrainer, splits: ImageSplits, every: int):
        if trainer.eval_dataset is None or trainer.args.eval_strategy == "no":
            raise ValueError(f"sample_every={every} counts evaluations of held-out rows, and this run makes none")
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("sample_every goes with one process or with DDP: else no process has all of the weights")
        self.trainer, self.splits, self.every = trainer, splits, every

    def on_evaluate(self, args, state, control, **kwargs):
        made = sum("eval_loss" in entry for entry in state.log_history)
        if made % self.every or not state.is_world_process_zero:
            return
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        training = model.training
        with self.trainer.averaged_weights():
            path = Path(str(args.output_dir)) / f"samples-{state.global_step}.png"
            show(ImagePipeline(model), self.splits, path, args.seed)
        model.train(training)  # a pipeline sets its model to evaluation


def load_splits_of(
    model: str, data: str | None = None, image_size: int | None = None, channels: int | None = None
) -> tuple[ImageSplits, str]:
    """The images a model was trained with, as its report.json names them, or `data`, read alike; and their name.

    image_size, channels: in place of those of the report.

    Raises:
        ValueError: no report says which images they were, or what it holds is no report.
    """
    report_file = Path(model) / "report.json"
    report: Any = {}
    if report_file.is_file():
        try:
            report = json.loads(report_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{report_file} is not readable as JSON: {error}") from None
    how = report.get("data_arguments", {}) if isinstance(report, dict) else None
    if not isinstance(how, dict) or not isinstance(report.get("data", ""), str):
        raise ValueError(f"{report_file} is not the report of a run on images")
    known = report.get("data")
    if known is not None and how.get("data") == DIGITS and is_model(known):
        known = DIGITS  # older reports named the run's own folder, where it was called digits
    data = data or known
    if data is None:
        raise ValueError(f"{model} holds no report.json that names its images: give --data")
    share = how.get("validation_share", 0.05)
    size = how.get("image_size") if image_size is None else image_size
    channels = how.get("channels") if channels is None else channels
    names = columns(how.get("condition_columns"))
    found = load_images(data, size=size, channels=channels, validation_share=share, condition_columns=names)
    return found, data


def main(arguments: list[str] | None = None) -> None:
    end(train_image(*parse(arguments)))
