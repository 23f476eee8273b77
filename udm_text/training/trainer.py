"""Training: `transformers.Trainer` with the noise drawn in the loss, each row's noise its own.

A batch is corrupted in `compute_loss`, not in the collator, from (seed, global step, the row's place in the global
batch) alone. So the same rows get the same noise however the global batch is split into micro-batches and processes,
and a resumed run continues with the noise of the uninterrupted one.

The trainer knows neither text nor images: what a row is, what it costs and how good a model is are the business of an
`Objective` that it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from logging import Filter
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput, speed_metrics
from transformers.utils import logging

from ..common import to_json, watching, written_whole
from ..modeling_udm import check_own_code
from ..padding import padded_wrongly
from .adapters import is_adapted
from .callbacks import AverageCallback, EpochCallback, LossCheck, StepNoise
from .checkpoints import (
    CheckpointError,
    last_checkpoint,
    move_files_into_place,
    move_into_place,
    rotate,
    staging_name,
    sweep,
    why_unusable,
    write_manifest,
)
from .ema import WeightAverage
from .interrupts import EvaluationInterrupted, Interrupts, TimedLRLambda, TimedShares, out_of_memory
from .legs import Spent, read_spent
from .optimizers import MUON, MuonAdamW, has_muon
from .precision import narrow_angles
from .row_order import RowOrder

logger = logging.get_logger(__name__)

_PUSH = (
    "push_to_hub must be off: it would send what is unfinished, and the arguments as a pickle. After training call "
    "trainer.push_to_hub(), with hub_model_id='user/name', or give the command `udm push DIR user/name`"
)
_PROBED = 32
"""Tokens of the rows that a backbone is asked about before it is compiled."""

_ENDLESS = 10**9
"""Steps of a run that ends by time."""


class _NoComparison(Filter):
    """Leaves out what transformers says where a share of the run is not a number of steps, or a micro-batch another."""

    def filter(self, record):
        return "do not match the ones in the `trainer_state.json`" not in record.getMessage()


class NonFiniteLossError(RuntimeError):
    """The loss or the weights are no longer finite."""


class OutOfMemoryError(RuntimeError):
    """A step does not fit into memory."""


@dataclass
class UDMTrainingArguments(TrainingArguments):
    """`TrainingArguments` of transformers and what diffusion adds.

    Args:
        eval_draws: corruptions of each row in an evaluation.
        ema_decay: decay of an exponential average of the weights, in (0, 1), which then takes their place in evaluation
            and in the model that is written at the end; None: none.
        max_seconds: end training after so many seconds, on a finished learning-rate schedule; None: by steps alone.
            logging_steps, eval_steps and save_steps below 1 are then shares of the time, or of max_steps where that
            ends first.

    `optim` may also be "muon", see optimizers.py.
    """

    eval_draws: int = field(default=2, metadata={"help": "Corruptions of each row in an evaluation."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay of an average of the weights, such as 0.999; it is what gets saved."}
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "End training after so many seconds, the learning-rate schedule with it."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Kept off: a loss that is not finite ends the run, and is said as it is."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Kept off: rows carry what evaluation needs besides the model's inputs."},
    )

    def __post_init__(self):
        if self.push_to_hub:
            raise ValueError(_PUSH)
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"max_steps must be at least 1, or -1 for num_train_epochs or max_seconds, got {self.max_steps}"
            )
        if self.max_steps < 0 and self.max_seconds is None and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be positive without max_steps, got {self.num_train_epochs}")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_seconds is not None:
            if not self.max_seconds > 0:
                raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")
            if self.max_steps <= 0:
                self.max_steps = _ENDLESS
        optim: Any = self.optim
        known = optim not in (None, MUON)
        if optim == MUON:
            if not has_muon():
                raise ValueError(f"optim {MUON!r} needs torch 2.9 or newer, got {torch.__version__}: give adamw_torch")
            if self.optim_args:
                raise ValueError(f"optim_args has no effect with optim {MUON!r}, got {self.optim_args!r}")
        if not known:
            self.optim = "adamw_torch"  # transformers knows its own names alone
        super().__post_init__()
        if not known:
            self.optim = optim
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in (0, 1), got {self.ema_decay}")
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws must be at least 1, got {self.eval_draws}")


class Objective(Protocol):
    """What `UDMTrainer` asks of the thing it trains: rows, their cost, and the measure of a model.

    `TextObjective` (objective.py) is the one for `UDMForMaskedGeneration` and shows how little it takes. An
    objective holds no optimiser state and draws no number but from `step_random(seed, step, row_index)`: then every
    split of the global batch, and every resumed run, gives the same trajectory.

    collate: rows of the data set -> a batch, a dict of tensors whose first dimension is the rows. It travels to data
        loader workers, so it is a function, a partial or an object that pickles.
    """

    collate: Any

    def begin(self) -> None:
        """Called when training begins: what was measured on the weights before is dropped."""
        ...

    def row_terms(
        self, model: Any, inputs: dict[str, Any], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) cost of each row, differentiable: summed nats or a summed weighted error, never an average.

        Called under autocast where that is on; a row's cost depends on no other row.

        Args:
            model: the network as wrapped for training; call it, take no part of it.
            inputs: a batch of `collate`, on the model's device.
            row_index: (B,) int64, the rows' places in the global batch, 0..total-1 (use `row_index % total` where a
                stratum is looked up: a batch from outside training may hold more). total: rows of the global batch.
            step, seed: the global step, and the run's seed.
        """
        ...

    def num_items(self, inputs: dict[str, Any]) -> Tensor | int:
        """What the batch's summed cost is divided by: its tokens, its pixels or its rows.

        The trainer sums it over the global batch; the loss is the sum of all row terms over that number, however the
        global batch is split.
        """
        ...

    def lengths(self, dataset: Any) -> list[int] | None:
        """The length of each row, for `train_sampling_strategy` "group_by_length"; None where rows are all alike."""
        ...

    def evaluate(self, trainer: UDMTrainer, dataset: Any) -> dict[str, float]:
        """Figures of `trainer.model` on `dataset`, without prefix; "loss" must be among them (lower is better).

        Called in every process at once, with the averaged weights in place where there are any. Noise comes from one
        fixed seed, so that checkpoints compare. `trainer.own_rows(n)` gives the rows of this process,
        `trainer.gather_rows(values, mine, n)` puts together what all processes measured.
        """
        ...


def default_objective(model, args: UDMTrainingArguments) -> Objective:
    """The text objective, for a model of ours."""
    if not hasattr(getattr(model, "config", None), "build_process"):
        raise ValueError(f"objective must be given: {type(model).__name__} is not a model of this package")
    from .objective import TextObjective

    return TextObjective(model.config, eval_draws=args.eval_draws, eval_batch_size=args.per_device_eval_batch_size)


class UDMTrainer(Trainer):
    """`Trainer` whose noise belongs to the row and whose loss is an `Objective`'s.

    The loss is the sum of the objective's row terms over the global batch by the number of its items, for text nats per
    token: (l/t) sum over the corrupted positions of CE, summed over rows, over the number of editable tokens.

    Args:
        model: what is trained. One that is not a `PreTrainedModel` is written as model.safetensors alone.
        objective: what it is trained on; None: the text objective with its defaults, for a `UDMForMaskedGeneration`.
        data_collator: None: the objective's.
    """

    args: UDMTrainingArguments
    model: Any
    objective: Objective
    average: WeightAverage | None
    """The averaged weights, from the beginning of training on, where there is an ema_decay."""
    resumed_from: str | None
    """The checkpoint that the last `train` went on from."""
    in_checkpoints: list[Callable[[Path], None]]
    """What writes more into the folder of a checkpoint before it is moved to its place; called in the first process."""
    started: float
    """`time.time()` when the run began; the trainer's own beginning unless whoever prepared the run says otherwise."""
    before: Spent
    """What the legs before the checkpoint had taken that the last `train` went on from."""

    def __init__(
        self, model, args: UDMTrainingArguments, *, objective: Objective | None = None, data_collator=None, **kwargs
    ):
        if not isinstance(args, UDMTrainingArguments):
            raise TypeError(f"args must be UDMTrainingArguments, got {type(args).__name__}")
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor must be 0: a smoothed loss bounds nothing")
        for name in ("compute_metrics", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} has no effect here: loss and metrics are the objective's")
        if args.push_to_hub:
            raise ValueError(_PUSH)
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process (DataParallel) are not supported; start one process a GPU: accelerate "
                "launch"
            )
        if args.torch_compile and (what := padded_wrongly(model, _PROBED)) is not None:
            raise ValueError(f"torch_compile pads rows and does not go with {what}: leave it at False")
        check_own_code(getattr(model, "backbone", None))
        self._has_default = objective is None
        if objective is not None:
            self.objective = objective
        elif model is not None:
            self.objective = default_objective(model, args)
        collate = None if model is None and objective is None else self.objective.collate
        super().__init__(model, args, data_collator=data_collator or collate, **kwargs)
        narrow_angles(self.model)
        if data_collator is None:
            self.data_collator = self.objective.collate
        self.model_accepts_loss_kwargs = True  # the loss below is divided by the items of the global batch
        self.row_order: RowOrder | None = None
        self.average, self.resumed_from, self.in_checkpoints = None, None, []
        self._micro_step, self._losses = 0, LossCheck()
        self.started, self.before = time.time(), Spent()
        self._train_began, self._loss_sum = self.started, torch.zeros((), dtype=torch.float64)
        self._staging: Path | None = None
        self.add_callback(EpochCallback(self))
        if args.optim == MUON and is_adapted(model):
            raise ValueError(
                f"optim {MUON!r} trains the matrices of a network, and adapters are factors of such: give adamw_torch"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers:
            for name, given, what in (
                ("ema_decay", args.ema_decay is not None, "average"),
                ("LoRA", is_adapted(model), "merge the adapter into"),
                (f"optim {MUON!r}", args.optim == MUON, "make orthogonal"),
            ):
                if given:
                    raise ValueError(
                        f"{name} goes with one process or with DDP: under FSDP and DeepSpeed no process has the whole "
                        f"weights to {what}"
                    )
        if args.ema_decay is not None:
            self.add_callback(AverageCallback(self))
        self.timed_rate: TimedLRLambda | None = None
        if args.max_seconds is not None:
            steps = 0 if args.max_steps >= _ENDLESS else args.max_steps
            warmup = args.get_warmup_steps(steps or 100)
            schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
            self.timed_rate = TimedLRLambda(args.max_seconds, steps, warmup, schedule)
        keeps = not self.is_distributed_loading_by_transformers  # transformers cannot resume what it has sharded
        self.noise = StepNoise(self)
        self.add_callback(self.noise)
        self.interrupts = Interrupts(self._all_reduce_max, self.timed_rate, saves=keeps)
        self.add_callback(self.interrupts)
        if self.timed_rate is not None:
            self.add_callback(TimedShares(self.timed_rate))

    def call_model_init(self, trial=None):
        """As in transformers: a model of `model_init`, and the default objective of that model."""
        model = super().call_model_init(trial)
        check_own_code(getattr(model, "backbone", None))
        if self._has_default:
            self.objective = default_objective(model, self.args)
        return model

    @property
    def stopped_by(self) -> str | None:
        """Why the last `train` ended before its last step: the name of a signal or "max_seconds"; None: it did not."""
        return self.interrupts.reason

    def _all_reduce_max(self, value: float) -> float:
        """The largest of the values of all processes."""
        if self.args.world_size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return agreed.item()

    def _all_reduce_mean(self, value: float) -> float:
        """The mean of the values of all processes."""
        if self.args.world_size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(agreed)
        return agreed.item() / self.args.world_size

    def spent(self) -> Spent:
        """What all legs of the run have taken until now; to be called in every process at once."""
        now, before = time.time(), self.before
        return Spent(
            seconds=before.seconds + now - self.started,
            train_seconds=before.train_seconds + now - self._train_began,
            loss=None if before.loss is None else self._all_reduce_mean(self._loss_sum.item()),
        )

    @property
    def steps_made(self) -> int:
        """Steps of the last `train`, those before a checkpoint that it went on from aside."""
        return self.state.global_step - self._initial_global_step

    def _run_epoch(self, *args, **kwargs):
        """As in transformers; but where a checkpoint stands at the end of the run, no step is made beyond it."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _init_training_state(self, max_steps, *args):
        """As in transformers; but log, evaluation and save steps are those that are given now, not the checkpoint's."""
        about = logging.get_logger("transformers.trainer_utils")

        no_comparison = _NoComparison()
        about.addFilter(no_comparison)
        try:
            found = super()._init_training_state(max_steps, *args)
        finally:
            about.removeFilter(no_comparison)
        self.state.compute_steps(self.args, max_steps)
        self._loss_sum = torch.tensor(self.before.loss or 0.0, dtype=torch.float64, device=self.args.device)
        self.state.train_batch_size = self._train_batch_size
        return found

    def _load_optimizer_and_scheduler(self, checkpoint):
        """As in transformers; but what the arguments say of learning rate, decay and AdamW holds, not the stored."""
        if checkpoint is None or self.is_deepspeed_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        names = ("weight_decay", "betas", "eps", "initial_lr")
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        given = [{n: group[n] for n in names if n in group} for group in optimizer.param_groups]
        bases = list(getattr(scheduler, "base_lrs", []))
        super()._load_optimizer_and_scheduler(checkpoint)
        groups = optimizer.param_groups
        for group, own in zip(groups, given, strict=True):
            group.update(own)
        if not bases:
            return
        stored, scheduler.base_lrs = scheduler.base_lrs, bases
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) and self.timed_rate is None:
            shares = [share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
            rates = [base * share for base, share in zip(bases, shares, strict=True)]
        else:
            rates = [
                group["lr"] * (base / old) if old and base != old else group["lr"]
                for group, base, old in zip(groups, bases, stored, strict=True)
            ]
        for group, rate in zip(groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        scheduler._last_lr = rates

    def create_optimizer(self, model=None):
        if self.args.optim != MUON or self.optimizer is not None:
            return super().create_optimizer(model)
        args, trained = self.args, self.model if model is None else model
        self.optimizer = MuonAdamW(
            trained,
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            decayed=self.get_decay_parameter_names(trained),
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.timed_rate is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduled: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, self.timed_rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As in transformers; `resume_from_checkpoint=True` takes the last checkpoint that is whole.

        Ends early, with a checkpoint and `stopped_by` set, after SIGTERM, SIGUSR1 or Ctrl-C (SIGINT) and when
        `max_seconds` are over.
        """
        output = str(self.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(output)
            if resume_from_checkpoint is None:
                raise ValueError(f"{output} holds no whole checkpoint to resume from")
        elif resume_from_checkpoint and (why := why_unusable(resume_from_checkpoint)) is not None:
            raise CheckpointError(f"{resume_from_checkpoint} cannot be resumed from: {why}")
        self.resumed_from = resume_from_checkpoint or None
        self.before, self._train_began = read_spent(self.resumed_from), time.time()
        with self.interrupts.listening():
            try:
                self.objective.begin()
                self._losses = LossCheck()
                result = super().train(self.resumed_from, *args, **kwargs)
                self._check_losses()
                loss = result.metrics.get("train_loss", result.training_loss)
                return TrainOutput(result.global_step, loss, result.metrics)
            except Exception as error:
                if out_of_memory(error):
                    raise OutOfMemoryError(self._memory_advice()) from error
                raise

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in transformers, whose entries these become; but a `train_loss` is the mean over the steps of all legs.

        transformers has that of the last leg. Of no step, or where a checkpoint does not say, there is none.
        """
        if "train_loss" in logs:
            loss, steps = self.spent().loss, self.state.global_step
            del logs["train_loss"]
            logs |= {} if loss is None or not steps else {"train_loss": loss / steps}
        super().log(logs, *args, **kwargs)

    def _memory_advice(self) -> str:
        rows, accumulated = self._train_batch_size, self.args.gradient_accumulation_steps
        kept = last_checkpoint(str(self.args.output_dir))
        smaller = max(1, rows // 2)
        return (
            f"out of memory at step {self.state.global_step} with per_device_train_batch_size {rows} and "
            f"gradient_accumulation_steps {accumulated}. With {smaller} and {accumulated * max(1, rows // smaller)} "
            "the steps are the same (but for rounding) in half the memory; gradient_checkpointing and bf16 save more. "
            + (f"Resume from {kept}." if kept else "No checkpoint had been written.")
        )

    def _get_train_sampler(self, train_dataset=None):
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        if dataset is None or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        lengths = self.objective.lengths(dataset) if strategy == "group_by_length" else None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        drop_last = self.args.dataloader_drop_last
        self.row_order = RowOrder(len(dataset), seed, self.rows_per_step, lengths, drop_last)
        return self.row_order

    @property
    def rows_per_step(self) -> int:
        """Rows of the global batch: per device x accumulation x processes."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._micro_step = 0  # a step begins, or begins again after auto_find_batch_size
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples, device):
        """() items of the global batch."""
        if not batch_samples:
            return None
        items = torch.as_tensor(sum(self.objective.num_items(batch) for batch in batch_samples), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items.clamp(min=1) / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def _row_indices(self, rows: int) -> Tensor:
        """(rows,) int64, on the CPU: places of this micro-batch's rows in the global batch."""
        first = (self._micro_step * self.args.world_size + self.args.process_index) * self._train_batch_size
        return first + torch.arange(rows)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first = next(iter(inputs.values()))
        terms = self.objective.row_terms(
            model,
            inputs,
            row_index=self._row_indices(len(first)),
            total=self.rows_per_step,
            step=self.state.global_step,
            seed=self.args.seed,
        )
        items = num_items_in_batch
        if items is None:
            items = torch.as_tensor(self.objective.num_items(inputs), device=terms.device).clamp(min=1)
        loss = terms.sum() / items
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # gradients are averaged over processes, while the loss is already divided by the tokens of all of them
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, {"loss": loss, "terms": terms.detach()}) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_step += 1
        self.noise.add(loss)
        self._losses.add(loss, self.state.global_step)
        self._loss_sum = self._loss_sum + loss.detach().double()
        return loss

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """As in transformers; the losses since the last time are looked at first, and a signal ends an evaluation."""
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._check_losses()
        try:
            with watching(between=self.interrupts.between_batches):
                super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationInterrupted:
            self.interrupts.stop(self.control)
            super()._maybe_log_save_evaluate(*args, **kwargs)  # what was due after the evaluation

    def _check_losses(self) -> None:
        """Raises NonFiniteLossError for the first loss that was not finite."""
        if (found := self._losses.not_finite()) is not None:
            step, loss = found
            raise NonFiniteLossError(
                f"the loss is {loss} at step {step}: training stops, checkpoints written before stay. Resume from the "
                "last one with a lower learning_rate, or with max_grad_norm below 1."
            )

    def _get_output_dir(self, trial):
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Writes a checkpoint beside its place and moves it there when it is whole; older ones go only then."""
        step, run = self.state.global_step, Path(self._get_output_dir(trial))
        destination, limit = run / f"checkpoint-{step}", self.args.save_total_limit
        with self._writing(run, f"the checkpoint of step {step}") as staging:
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            written, spent = staging / destination.name, self.spent()
            if self.args.should_save:
                if self.average is not None:
                    self.average.save(written)
                for write in self.in_checkpoints:
                    write(written)
                if self.state.best_model_checkpoint == str(written):
                    self.state.best_model_checkpoint = str(destination)
                self._write_state(written)
                spent.save(written)
            self.accelerator.wait_for_everyone()  # every process has written its part
            if self.args.should_save:
                write_manifest(written, step)
                move_into_place(written, destination)
        if self.args.should_save:
            rotate(run, limit, (destination, self.state.best_model_checkpoint))
        self.accelerator.wait_for_everyone()

    def _write_state(self, folder: Path) -> None:
        """trainer_state.json, as strict JSON: null for a figure that is NaN or infinite."""
        with written_whole(folder / TRAINER_STATE_NAME) as part:
            fields = dataclasses.asdict(self.state)
            part.write_text(to_json(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def save_state(self):
        """As in transformers, as strict JSON."""
        if self.args.should_save:
            self._write_state(Path(str(self.args.output_dir)))

    @contextlib.contextmanager
    def _writing(self, run: Path, what: str) -> Iterator[Path]:
        """A folder inside `run` to write to, gone afterwards; what goes wrong there names the last good checkpoint."""
        if self.args.should_save:
            sweep(run)
        staging = run / broadcast_object_list([staging_name()])[0]  # one for all processes
        self._staging = staging
        try:
            yield staging
        except Exception as error:
            if isinstance(error, NonFiniteLossError):
                raise
            kept = last_checkpoint(run)
            raise CheckpointError(
                f"{what} could not be written: {error}. "
                + (f"The last good one is {kept}; resume from it" if kept else "There is none before it; start again")
                + " once there is room on the disk and leave to write."
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if model is not None or not self._load_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_weights(self, checkpoint: str) -> bool:
        """The weights of a checkpoint, read as `from_pretrained` reads them; False: the trainer of transformers does.

        That one goes by the names in the file. Some architectures write others than their modules have (NomicBERT), and
        it passes over what it does not know.
        """
        model = self.accelerator.unwrap_model(self.model)
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers)
        if not whole or not isinstance(model, PreTrainedModel) or is_adapted(model):
            return False
        kind: Any = type(model)
        stored, info = kind.from_pretrained(checkpoint, output_loading_info=True)
        if absent := sorted(info["missing_keys"]):
            raise CheckpointError(f"{checkpoint} lacks weights of the model, {absent[0]} among them")
        model.load_state_dict(stored.state_dict())
        return True

    def _load_best_model(self):
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_weights(self.state.best_model_checkpoint)
        if self.average is not None and self.state.best_model_checkpoint is not None:
            self.average.load(self.state.best_model_checkpoint)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model has its averaged weights inside the block, where an average is kept."""
        with contextlib.nullcontext() if self.average is None else self.average.swapped_in():
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Writes the model, its averaged weights where there are any; each file appears whole or not at all."""
        broken = [name for name, p in self.model.named_parameters() if not torch.isfinite(p.detach()).all()]
        if broken:
            raise NonFiniteLossError(
                f"the weights are not finite at step {self.state.global_step} (first: {broken[0]}): nothing is "
                "written, checkpoints written before stay"
            )
        if _internal_call:  # part of a checkpoint, which keeps the weights as they are
            return super().save_model(output_dir, _internal_call)
        output = Path(output_dir or str(self.args.output_dir))
        if self.is_fsdp_enabled:  # the shards of a checkpoint are no model that can be loaded
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        with self._writing(output, "the model") as staging:
            with self.averaged_weights():
                super().save_model(str(staging / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                move_files_into_place(staging / "model", output)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Publishes the model, its averaged weights where there are any, as `hub_model_id`: `udm_text.hub.push`.

        The figures of `output_dir` go into the card if the weights there are those of the model. To be called in every
        process; the first one pushes and returns the commit, the others None.

        Args:
            token, revision, private: None: `hub_token`, `hub_revision`, `hub_private_repo` of the arguments.
            kwargs: `license`, `tags`, `include_code` and what else `push` takes.

        Raises:
            ValueError: for an argument that cannot work, before anything is written or sent.
            PushError: the Hub refused, was gone or holds something else.
        """
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        if not blocking:
            raise ValueError("blocking must be True: a push returns when the Hub was seen to hold every file")
        if args.hub_model_id is None or "/" not in args.hub_model_id:
            raise ValueError(f"hub_model_id must name the repository, as user/name, got {args.hub_model_id!r}")
        if is_adapted(model) or not hasattr(getattr(model, "config", None), "build_process"):
            raise ValueError(
                f"push_to_hub publishes whole models of this package, got {type(model).__name__}: merge an adapter "
                "first (`trainer.model = merge_adapter(trainer.model)`), push other models by their own means"
            )
        output = Path(str(args.output_dir))
        made = output / broadcast_object_list([staging_name()])[0]
        try:
            self.save_model(str(made))
            if not self.is_world_process_zero():
                return None
            return (
                type(model)
                .from_pretrained(made)
                .push_to_hub(
                    args.hub_model_id,
                    tokenizer=self.processing_class,
                    source=output,
                    commit_message=commit_message,
                    token=args.hub_token if token is None else token,
                    revision=args.hub_revision if revision is None else revision,
                    private=args.hub_private_repo if private is None else private,
                    **kwargs,
                )
            )
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(made, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which resuming does not read and a published model should not hold
            Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def own_rows(self, count: int) -> list[int]:
        """The rows of an evaluation that this process measures: every process as many, so some are measured twice."""
        world, rank = self.args.world_size, self.args.process_index
        return [i % count for i in range(rank, -(-count // world) * world, world)]

    def gather_rows(self, values: Tensor, mine: list[int], count: int) -> Tensor:
        """(count,) float64 on the CPU, the same in every process, from the (len(mine),) values of each."""
        if self.args.world_size == 1:
            return values.double().cpu()
        values = self.accelerator.gather(values.double().to(self.args.device)).cpu()
        indices = self.accelerator.gather(torch.tensor(mine, device=self.args.device)).cpu()
        return torch.zeros(count, dtype=torch.float64).index_copy(0, indices, values)

    def evaluate(
        self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The objective's figures on `eval_dataset`, each data set of a dict under its own name."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            named: Any = self.eval_dataset
            dataset = named[dataset]
        if dataset is None:
            raise ValueError("evaluate needs eval_dataset")
        if isinstance(dataset, dict):
            metrics: dict[str, float] = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        started = time.time()
        with self.averaged_weights():
            figures = self.objective.evaluate(self, dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
