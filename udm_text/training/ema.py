"""An exponential average of the weights, kept beside them: for evaluation and for the model that is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

EMA_FILE = "ema.safetensors"


class WeightAverage:
    """The average of a model's trainable weights, in float32 at least.

    After step n it moves by 1 - min(decay, (n + 1)/(n + 10)) towards the weights: a short run is not held back by its
    first, random weights.

    Args:
        model: not wrapped; its parameters must keep their identity. decay: in (0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        self.average = {name: p.detach().to(wide.get(p.dtype, p.dtype), copy=True) for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = list(self.average.values())
        now = [p.detach().to(a.dtype) for p, a in zip(self.weights.values(), average, strict=True)]
        get_ema_multi_avg_fn(decay)(average, now, step)

    def save(self, folder: str | Path) -> None:
        """Writes ema.safetensors."""
        save_file({name: a.contiguous() for name, a in self.average.items()}, Path(folder) / EMA_FILE)

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Reads what `save` wrote, bit for bit. Raises ValueError where there is none, or that of other weights."""
        file = Path(folder) / EMA_FILE
        if not file.exists():
            raise ValueError(f"{folder} has no {EMA_FILE}: that run had no ema_decay; resume without it")
        stored: dict[str, Tensor] = load_file(file)
        if stored.keys() != self.average.keys():
            odd = sorted(stored.keys() ^ self.average.keys())
            raise ValueError(f"{file} is of another model: {odd[0]} is in one of the two only")
        for name, value in self.average.items():
            value.copy_(stored[name])

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own = [p.detach().clone() for p in self.weights.values()]
        self._put(self.average.values())
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values) -> None:
        for p, value in zip(self.weights.values(), values, strict=True):
            p.copy_(value)
