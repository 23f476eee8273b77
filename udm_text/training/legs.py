"""What a run has taken so far, over all its legs: kept in its checkpoints, so that a resumed run counts it all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..common import write_json
from .resuming import read_json

SPENT_FILE = "spent.json"


@dataclasses.dataclass(frozen=True)
class Spent:
    """What the legs of a run have taken up to some step: a leg that was killed counts up to its last checkpoint.

    seconds: of all, reading and measuring included. train_seconds: of training, with the evaluations in it.
    loss: the sum of the losses of all steps, mean over processes; None: unknown, of a checkpoint that does not say.
    """

    seconds: float = 0.0
    train_seconds: float = 0.0
    loss: float | None = 0.0

    def save(self, checkpoint: Path) -> None:
        """Writes it into the folder of a checkpoint."""
        write_json(checkpoint / SPENT_FILE, dataclasses.asdict(self))


def read_spent(checkpoint: str | Path | None) -> Spent:
    """What had been spent at a checkpoint; None: a run that begins. One without the file counts no seconds."""
    if checkpoint is None:
        return Spent()
    found = read_json(Path(checkpoint) / SPENT_FILE)
    return Spent(loss=None) if found is None else Spent(**found)
