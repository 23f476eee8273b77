"""A trainer on a stream of rows: what it must not skip, and where a run that is resumed goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from ..corpus.streaming import RowStream, StreamCollator


class ResumedStream(TrainerCallback):
    """Where a run with a stream is resumed: the random state of the checkpoint, once more.

    The trainer skips no data (the stream begins where it has to), so it loads that state before it makes the iterator
    of the rows, which takes a number from it.
    """

    def __init__(self, trainer: Any, checkpoint: str):
        self.trainer, self.checkpoint, self.done = trainer, checkpoint, False

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.done:
            self.trainer._load_rng_state(self.checkpoint)
            self.done = True


def stream_arguments(args: Any) -> None:
    """What training arguments must say for a `RowStream`: the stream skips for itself, and each process reads it."""
    args.ignore_data_skip = True
    args.accelerator_config.dispatch_batches = False


def follow_stream(trainer: Any, stream: RowStream, checkpoint: str | None) -> None:
    """Gives a trainer the rows of a stream, from where the checkpoint left off: global batches as large as now."""
    trainer.data_collator = StreamCollator(stream.cutter, trainer.data_collator)
    if checkpoint is not None:
        state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        stream.start = state["global_step"] * trainer.rows_per_step
        trainer.add_callback(ResumedStream(trainer, checkpoint))
