"""Training: a trainer that knows neither text nor images, and what keeps its runs safe."""

from __future__ import annotations

from .objective import TextObjective
from .trainer import NonFiniteLossError, Objective, OutOfMemoryError, UDMTrainer, UDMTrainingArguments

__all__ = [
    "NonFiniteLossError",
    "Objective",
    "OutOfMemoryError",
    "TextObjective",
    "UDMTrainer",
    "UDMTrainingArguments",
]
