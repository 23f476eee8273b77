"""What a terminal shows: texts as they appear, and where an edit was made. Heavy imports wait until they are needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def load_pipeline(model: str, device: str | None = None, dtype: str = "float32"):
    """The generation pipeline of a model."""
    import torch
    import transformers

    from . import register

    register()
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"there is no model directory {model}")
    make: Any = transformers.pipeline
    return make("udm-generation", model=model, device=device, dtype=getattr(torch, dtype))


def marks(before: str, after: str) -> str:
    """A line that points at where two texts of equal length differ; the new text where they are not of equal length."""
    if len(before) != len(after):
        return f"-> {after}"
    return "".join("^" if a != b else " " for a, b in zip(before, after, strict=True)).rstrip()


class LiveText:
    """A streamer (put, put_draft, end) that redraws all rows in the terminal, masks as blocks."""

    def __init__(self, tokenizer, pause: float = 0.08):
        from rich.live import Live

        self.tokenizer, self.pause = tokenizer, pause
        self.live = Live(refresh_per_second=30, vertical_overflow="visible")
        self.head: list[list[int]] = []

    def __enter__(self) -> LiveText:
        self.live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.live.stop()

    def put(self, value) -> None:
        """The prompt first, the finished rows last."""
        if not self.head:
            self.head = value.tolist()
        else:
            self._show(value.tolist(), "bold")

    def put_draft(self, value) -> None:
        self._show(value.tolist(), "default")
        time.sleep(self.pause)

    def end(self) -> None:
        self.live.stop()
        self.head = []
        print()

    def _show(self, rows: list[list[int]], style: str) -> None:
        from rich.text import Text

        self.live.start()
        lines = [show_masks(self.tokenizer, a + b) for a, b in zip(self.head, rows, strict=True)]
        self.live.update(Text("\n".join(lines), style=style), refresh=True)


def show_masks(tokenizer, ids: list[int]) -> str:
    """Decoded text with a block for each [MASK], without padding."""
    text = tokenizer.decode([token for token in ids if token != tokenizer.pad_token_id], skip_special_tokens=False)
    return text.replace(tokenizer.mask_token, "░░") if tokenizer.mask_token else text
