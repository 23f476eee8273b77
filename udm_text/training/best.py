"""The weights of the best evaluation, kept on the way and written at the end, and how long to wait for better ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

if TYPE_CHECKING:
    from .trainer import UDMTrainer

OUT_OF_PATIENCE = "patience"
"""Why such a run ended early."""


class BestWeights(TrainerCallback):
    """Keeps the weights of the best held-out loss, and puts them in place when training ends.

    They are the averaged weights where there is an average. The last step counts as an evaluation, so what is written
    is never worse than what was measured on the way. They lie beside every checkpoint, so that a resumed run ends on
    the weights of the uninterrupted one.

    Args:
        patience: evaluations in a row without a better loss after which training ends; None: it goes on.
    """

    name = "best.safetensors"

    def __init__(self, trainer: UDMTrainer, patience: int | None = None):
        self.trainer, self.patience = trainer, patience
        self.step, self.loss, self.last = -1, math.inf, -1
        self.since = 0
        self.weights: dict[str, Tensor] = {}
        self.over = False
        trainer.in_checkpoints.append(self.save)

    def current(self) -> dict[str, Tensor]:
        """The tensors that an evaluation measures; what is not trained is the same in all of them."""
        if self.trainer.average is not None:
            return self.trainer.average.average
        named = self.trainer.accelerator.unwrap_model(self.trainer.model).named_parameters()
        return {name: part for name, part in named if part.requires_grad}

    def on_train_begin(self, args, state, control, **kwargs):
        folder = self.trainer.resumed_from
        if folder is None or not (Path(folder) / self.name).is_file():
            return  # evaluated for the first time after that checkpoint
        with safe_open(Path(folder) / self.name, "pt") as file:
            known = file.metadata()
            self.step, self.loss = int(known["step"]), float(known["loss"])
            self.since, self.last = int(known.get("since", 0)), int(known.get("last", -1))
            self.weights = {name: file.get_tensor(name) for name in file.keys()}
        self._end_if_out_of_patience(control)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        loss = (metrics or {}).get("eval_loss", math.nan)
        self.last = state.global_step
        if self.over:
            return
        self.since += 1
        if loss < self.loss:
            self.step, self.loss, self.since = state.global_step, loss, 0
            self.weights = {name: value.detach().clone() for name, value in self.current().items()}
        self._end_if_out_of_patience(control)

    def _end_if_out_of_patience(self, control) -> None:
        if self.patience is not None and self.since >= self.patience and not control.should_training_stop:
            self.trainer.interrupts.reason = OUT_OF_PATIENCE
            control.should_training_stop = True

    def save(self, folder: Path) -> None:
        """Writes best.safetensors, where there are such weights."""
        if self.weights:
            known = {"step": self.step, "loss": repr(self.loss), "since": self.since, "last": self.last}
            about = {"format": "pt", **{name: str(value) for name, value in known.items()}}
            save_file({name: value.contiguous() for name, value in self.weights.items()}, folder / self.name, about)

    @torch.no_grad()
    def on_train_end(self, args, state, control, **kwargs):
        if not self.weights or (self.trainer.stopped_by or "").startswith("SIG"):
            return
        if self.last != state.global_step:
            self.trainer.evaluate()
        self.over = True
        if self.step != state.global_step:
            for name, value in self.current().items():
                value.copy_(self.weights[name])
