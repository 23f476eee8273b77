"""Training: `transformers.Trainer` with the noise drawn in the loss, each row's noise its own.

A batch is corrupted in `compute_loss`, not in the collator, from (seed, global step, the row's index in the global
batch) alone. So the same rows get the same noise however the global batch is split into micro-batches and processes,
and a resumed run continues with the noise of the uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import speed_metrics

from .evaluation import collate, row_draws, scored_rows, summarise
from .objectives import LOSSES, row_losses, stratified_counts
from .randomness import RowRandom

_STRATA, _ORDER = 0x5354524154410000, 0x4F52444552000000
"""Distinguish the seeds of the stratification of t and of the order of rows from that of the noise."""


class NonFiniteLossError(RuntimeError):
    """The loss or the weights are no longer finite."""


@dataclass
class UDMTrainingArguments(TrainingArguments):
    """`TrainingArguments` of transformers and what diffusion adds.

    Args:
        loss: "cross_entropy" or "nelbo" (they differ for the substitute process only, see `objectives.row_losses`).
        max_corruption: largest share of a row that is corrupted in training. Below 1 a substitute model becomes a
            repairer of texts: it cannot write from nothing, and its NELBO means little.
        eval_draws: corruptions of each row in an evaluation.
    """

    loss: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy or nelbo; they differ for the substitute process only."},
    )
    max_corruption: float = field(
        default=1.0,
        metadata={"help": "Largest corrupted share of a row in training; below 1 a substitute model learns to repair."},
    )
    eval_draws: int = field(default=2, metadata={"help": "Corruptions of each row in an evaluation."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Kept off: rows carry what evaluation needs besides the model's inputs."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if not 0.0 < self.max_corruption <= 1.0:
            raise ValueError(f"max_corruption must lie in (0, 1], got {self.max_corruption}")
        if self.max_corruption < 1.0 and self.loss != "cross_entropy":
            raise ValueError(
                "max_corruption below 1 goes with loss 'cross_entropy': the NELBO is a sum over all counts"
            )
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws must be at least 1, got {self.eval_draws}")


class RowOrder(Sampler[int]):
    """The order of rows in an epoch: a permutation that depends on (seed, epoch) only, the same in every process.

    An epoch is a whole number of global batches, so that it ends alike however these are split into micro-batches and
    processes: the last one is filled up with rows from the front of the permutation, or dropped.

    Args:
        lengths: the rows' lengths, to group rows of like length into batches of `group` rows; None: no grouping.
        num_rows, seed: how many rows; the seed of the permutation.
        group: rows of a global batch. Rows are grouped inside windows of 50 such batches, whose batches are shuffled.
        drop_last: drop the rows that fill no batch instead of filling it up.
    """

    window = 50

    def __init__(self, num_rows: int, seed: int, group: int, lengths: list[int] | None = None, drop_last: bool = False):
        self.num_rows, self.seed, self.group, self.lengths = num_rows, seed ^ _ORDER, group, lengths
        self.num_batches = num_rows // group if drop_last else -(-num_rows // group)
        if not self.num_batches:
            raise ValueError(f"{num_rows} training rows do not make one global batch of {group} rows")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.group

    def __iter__(self) -> Iterator[int]:
        source = RowRandom(self.seed, torch.tensor([self.epoch]))
        order = source.uniform(self.num_rows)[0].argsort().tolist()
        order = list(islice(cycle(order), len(self)))
        if self.lengths is None:
            return iter(order)
        size, lengths = self.group * self.window, self.lengths
        by_length: list[int] = []
        for start in range(0, len(order), size):
            by_length += sorted(order[start : start + size], key=lambda i: lengths[i])
        batches = source.uniform(self.num_batches)[0].argsort().tolist()
        return (i for batch in batches for i in by_length[batch * self.group : (batch + 1) * self.group])


class _EpochCallback(TrainerCallback):
    """Tells the row order which epoch begins, also after a resume (accelerate does not reach a wrapped sampler)."""

    def __init__(self, trainer: UDMTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.row_order is not None:
            self.trainer.row_order.set_epoch(int(state.epoch or 0.0))  # exact where an epoch is complete


class UDMTrainer(Trainer):
    """`Trainer` for `UDMForMaskedGeneration`.

    Rows are dictionaries with "input_ids", and for bits per character "num_chars". The loss is in nats per token of the
    global batch: (l/t) sum over the corrupted positions of CE, summed over rows, over the number of editable tokens.
    """

    args: UDMTrainingArguments
    model: PreTrainedModel

    def __init__(self, model, args: UDMTrainingArguments, *, data_collator=None, **kwargs):
        if not isinstance(args, UDMTrainingArguments):
            raise TypeError(f"args must be UDMTrainingArguments, got {type(args).__name__}")
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor must be 0: a smoothed loss bounds nothing")
        for name in ("compute_metrics", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} has no effect here: loss and metrics are the bound; override evaluate")
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process (DataParallel) are not supported; start one process a GPU: accelerate "
                "launch"
            )
        config = model.config
        collator = data_collator or partial(collate, pad_token_id=config.pad_token_id, editable=config.editable)
        super().__init__(model, args, data_collator=collator, **kwargs)
        self.udm_config = config
        self.process = config.build_process()
        if args.max_corruption < 1.0 and self.process.visible:
            raise ValueError("max_corruption below 1 trains a repairer, which needs process 'substitute'")
        self.row_order: RowOrder | None = None
        self._micro_step = 0
        self.add_callback(_EpochCallback(self))

    def _get_train_sampler(self, train_dataset=None):
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        if dataset is None or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        lengths = None
        if strategy == "group_by_length":
            columns = getattr(dataset, "column_names", None)
            lengths = [len(ids) for ids in (dataset["input_ids"] if columns else (row["input_ids"] for row in dataset))]
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

    def _row_index(self, rows: int, device) -> Tensor:
        """(rows,) int64: places of this micro-batch's rows in the global batch."""
        first = (self._micro_step * self.args.world_size + self.args.process_index) * self._train_batch_size
        return first + torch.arange(rows, device=device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x0, labels, mask = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
        editable = labels != -100
        lengths = editable.sum(dim=1).clamp(min=1)
        step, seed, total = self.state.global_step, self.args.seed, self.rows_per_step
        index = self._row_index(len(x0), x0.device)
        most = (lengths.double() * self.args.max_corruption - 1e-9).ceil().long().clamp(min=1)
        t = stratified_counts(most, index % total, total, seed ^ _STRATA, step)
        terms = row_losses(
            lambda **wanted: model(attention_mask=mask, **wanted).logits,
            self.process,
            x0,
            editable,
            t,
            RowRandom(seed, (step << 32) + index),
            self.udm_config.forbidden_tokens(x0.device),
            loss=self.args.loss,
            kernel=self.udm_config.kernel,
        )
        items = editable.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = terms.sum() / items
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # gradients are averaged over processes, while the loss is already divided by the tokens of all of them
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, {"loss": loss, "terms": terms.detach()}) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_step += 1
        self.model.config.step_curve = None  # it was measured on the weights before
        if not torch.isfinite(loss).all():
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step}: training stops, checkpoints written "
                "before stay. Resume from the last one with a lower learning_rate, or with max_grad_norm below 1."
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        broken = [name for name, p in self.model.named_parameters() if not torch.isfinite(p.detach()).all()]
        if broken:
            raise NonFiniteLossError(
                f"the weights are not finite at step {self.state.global_step} (first: {broken[0]}): nothing is "
                "written, checkpoints written before stay"
            )
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which resuming does not read and a published model should not hold
            Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def evaluate(
        self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The bound on `eval_dataset`, with one fixed seed so that checkpoints compare; processes share the rows."""
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
        config = self.udm_config
        index, rows = scored_rows(config, dataset)
        world, rank = self.args.world_size, self.args.process_index
        mine = list(range(rank, len(rows), world))
        how: dict[str, Any] = {"draws": self.args.eval_draws, "seed": 0, "kernel": config.kernel}
        nats = torch.zeros(len(rows), dtype=torch.float64)
        if mine:
            own = row_draws(
                self.model,
                [rows[i] for i in mine],
                [index[i] for i in mine],
                batch_size=self.args.per_device_eval_batch_size,
                **how,
            )
            nats[mine] = own.nats.mean(dim=1)
        if world > 1:
            nats = self.accelerator.reduce(nats.to(self.args.device), "sum").cpu()
        report = summarise(config, rows, nats, **how)
        wanted = ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound")
        metrics = {}
        for name in (*wanted, *(f"{name}_stderr" for name in wanted)):
            if (value := getattr(report, name)) is not None:
                metrics[f"{metric_key_prefix}_{name}"] = value
        metrics[f"{metric_key_prefix}_loss"] = report.nelbo_nats_per_token
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(rows))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
