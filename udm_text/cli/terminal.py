"""What a terminal shows: texts as they appear, and where an edit was made. Heavy imports wait until they are needed."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common import is_connection_error, refuse_missing

BLOCK = "░░"
"""Stands for a [MASK]."""


def load_pipeline(
    model: str,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
):
    """The generation pipeline of a model, on the Hub at that revision."""
    import torch
    import transformers

    from .. import register
    from ..framing import beside, untrusted

    register()
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    refuse_missing(model)
    check_device(device)
    make: Any = transformers.pipeline
    how: dict[str, Any] = {"revision": revision, "device": device, "dtype": getattr(torch, dtype)}
    with untrusted(model), beside(model, revision=revision):
        return make("udm-generation", model=model, trust_remote_code=trust_remote_code, **how)


def hide_loading_bars() -> None:
    """No progress bar of what takes no time, as weights that are read from a disk; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # which hides downloads, too
    if downloads:
        enable_progress_bars()


_UNTRUE = {"transformers.modeling_utils": "This checkpoint seem corrupted. The tied weights mapping"}
"""Loggers, and how a message begins that is not true here: an encoder without a head is whole, and its head is new,
which is said in words of our own."""


def _is_true(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_UNTRUE[record.name])


def hide_untrue_warnings() -> None:
    """What other libraries say by mistake, or to each other's authors, is not shown; all else is."""
    for name in _UNTRUE:
        logging.getLogger(name).addFilter(_is_true)
    to_peft = "`is_gradient_checkpointing` is deprecated"  # which peft asks for
    warnings.filterwarnings("ignore", message=to_peft, category=FutureWarning)


@contextmanager
def fetching(model: str) -> Iterator[None]:
    """Within it, a connection that breaks is an OSError that names the model."""
    try:
        yield
    except Exception as error:
        if is_connection_error(error):
            raise OSError(f"{model} could not be fetched, the connection broke: {error}") from error
        if isinstance(error, OSError) and "connect" in str(error) and not Path(model).exists():
            raise OSError(f"there is no folder {model} here, and the Hub could not be asked for it: {error}") from error
        raise


def check_device(name: str | None) -> None:
    """Raises ValueError for a --device that this machine does not have."""
    import torch

    if name is None:
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda, cuda:1 or the like, got {name!r}") from error
    module = getattr(torch, device.type, None)
    count = 1 if device.type == "cpu" else getattr(module, "device_count", lambda: 0)()
    if (device.index or 0) >= count:
        raise ValueError(f"--device {name}: this machine has {count} of that kind; give --device cpu, or leave it away")


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal or turn a text around; line ends and tabs are none."""


def visible(text: str) -> str:
    """The text with its control characters as escapes (\\u001b), which JSON reads as the same text."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def speaks_unicode() -> bool:
    """Whether the output can hold every character; where it cannot, JSON is written in ASCII."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def show(text: str, error: bool = False) -> None:
    """Prints a line, as it is; on a terminal so that what a model or a file put into it cannot steer the terminal."""
    stream = sys.stderr if error else sys.stdout
    print(visible(text) if stream.isatty() else text, file=stream)


def marks(before: str, after: str) -> str:
    """A line that points at where two texts differ: ^ below what is changed, - below what goes, + where a part comes.

    Of texts of different length what comes stands behind the mark.
    """
    if len(before) == len(after):
        return "".join("^" if a != b else " " for a, b in zip(before, after, strict=True)).rstrip()
    head = len(os.path.commonprefix((before, after)))
    tail = len(os.path.commonprefix((before[head:][::-1], after[head:][::-1])))
    gone, comes = before[head : len(before) - tail], after[head : len(after) - tail]
    sign = "+" if not gone else ("^" if comes else "-") * len(gone)
    return " " * head + sign + (f" {comes}" if comes else "")


def as_text(table: Any) -> str:
    """A rich table as plain text: as wide as the terminal (80 columns where there is none), in its characters."""
    from rich.console import Console

    console = Console(color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")


def describe_prices(figures: dict[str, Any]) -> str:
    """The price table of `evaluation.price_table` under `CurveReport.to_dict`."""
    from rich.table import Table

    schedules = [name for name in figures["prices"][0] if f"{name}_stderr" in figures["prices"][0]]
    table = Table()
    for head in ("calls", *schedules):
        table.add_column(head, justify="right")
    for row in figures["prices"]:
        cells = ((row[name], row[f"{name}_stderr"]) for name in schedules)
        shown = (f"{a:.4f} +- {'unknown' if b is None else format(b, '.4f')}" for a, b in cells)
        table.add_row(str(row["calls"]), *shown)
    measured = "optimal" not in schedules  # without a curve: the rows as they are, and not one of their median length
    what = f"rows of {figures['length']} tokens in the median" if measured else f"a row of {figures['length']} tokens"
    return (
        f"Expected price in nats/token of {what} (bound NELBO_K, +- one standard error;\n"
        f"length given; {figures['rows']} rows, {figures['draws']} draws each); the first line is one token a step:\n"
        f"{as_text(table)}"
    )


def describe_speed(records: list[list[dict[str, Any]]], inputs_per_batch: int, seconds: float) -> str:
    """One line on what a generation took: tokens, time, network calls, and what it was expected to cost in nats."""
    every = [record for group in records for record in group]
    tokens = sum(record["num_tokens"] for record in every)
    calls = sum(group[0]["num_calls"] for group in records[::inputs_per_batch])
    priced = [record for record in every if "expected_nats" in record]
    line = f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s, {calls} network calls"
    if not every:
        return line
    if len(priced) < len(every):
        return (
            f"{line}; no expected price: a curve (`udm evaluate MODEL --curve`) prices the model's own law, masks in "
            "random order at temperature 1, and no guidance, caching, churn, revision, truncation or constraints"
        )
    nats = sum(record["expected_nats"] * record["num_tokens"] for record in priced)
    return f"{line}; expected price {nats / tokens:.4f} nats/token (a bound)"


def readable(tokenizer, text: str) -> str:
    """A state of a trajectory as it is shown: a block for each [MASK]."""
    return (text.replace(tokenizer.mask_token, BLOCK) if tokenizer.mask_token else text).strip()


class TextStreamer:
    """A streamer (put_typed, put, put_draft, end) that reads rows as texts, masks as blocks, for its `show`."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.head: list[list[int]] = []
        self.typed: list[Any] = [None]

    def show(self, texts: list[str], done: bool) -> None:
        """What is to be shown: the texts of all rows after a step, and whether these are the finished ones."""
        raise NotImplementedError

    def put_typed(self, typed: list[Any]) -> None:
        """What was typed for the rows to come, a `Typed` or None each: from the pipeline."""
        self.typed = typed

    def put(self, value) -> None:
        """The prompt first, the finished rows last."""
        if not self.head:
            self.head = value.tolist()
        else:
            self.show(self._texts(value.tolist()), True)

    def put_draft(self, value) -> None:
        self.show(self._texts(value.tolist()), False)

    def end(self) -> None:
        self.head = []

    def _texts(self, rows: list[list[int]]) -> list[str]:
        whole = [a + b for a, b in zip(self.head, rows, strict=True)]
        samples = max(1, len(whole) // len(self.typed))
        return [show_masks(self.tokenizer, row, self.typed[i // samples]) for i, row in enumerate(whole)]


class LiveText(TextStreamer):
    """Redraws all rows in the terminal, each draft for `pause` seconds at least."""

    def __init__(self, tokenizer, pause: float = 0.08):
        from rich.live import Live

        super().__init__(tokenizer)
        self.pause = pause
        self.live = Live(refresh_per_second=30, vertical_overflow="visible")

    def __enter__(self) -> LiveText:
        self.live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.live.stop()

    def show(self, texts: list[str], done: bool) -> None:
        from rich.text import Text

        self.live.start()
        self.live.update(Text("\n".join(texts), style="bold" if done else "default"), refresh=True)
        if not done:
            time.sleep(self.pause)

    def end(self) -> None:
        self.live.stop()
        super().end()
        print()


def show_masks(tokenizer, ids: list[int], typed: Any = None) -> str:
    """The text of a row with a block for each [MASK], without padding; what was typed (a `Typed`) as it was typed."""
    from ..detokenizing import restore_text

    if typed is not None:
        text, source, spans = typed
        return visible(restore_text(tokenizer, text, source, spans, ids, [True] * len(ids), BLOCK))
    text = tokenizer.decode([token for token in ids if token != tokenizer.pad_token_id], skip_special_tokens=False)
    return visible(text.replace(tokenizer.mask_token, BLOCK) if tokenizer.mask_token else text)
