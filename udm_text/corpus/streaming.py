"""Training on what is read as it goes: an endless stream of rows, in an order of its own, that can begin anywhere.

Row k of the stream depends on (source, seed, k) alone. A run that is resumed after n rows takes a stream that begins
there, so it goes on with exactly the rows that an unbroken run would have seen next; and processes that each take their
slice of every global batch see, together, the rows that one process alone would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import IterableDataset, get_worker_info

from ..randomness import RowRandom
from .files import CorpusError
from .rows import RowCutter, each
from .sources import Corpus, HoldOut, Stream, hold_out, hold_out_rule

_SHUFFLE = 0x5348554646000000
"""Distinguishes the seed of the order from that of the noise."""
_BATCH = 256
"""Texts that are tokenised at once."""


def shuffled(items: Iterable[Any], size: int, random: RowRandom) -> Iterator[Any]:
    """The items in an order that is random within some `size` places, which is how many are held at a time."""
    held: list[Any] = []
    numbers = chain.from_iterable(random.uniform(4096)[0].tolist() for _ in count())
    for item in items:
        if len(held) < size:
            held.append(item)
        else:
            slot = int(next(numbers) * size)
            yield held[slot]
            held[slot] = item
    for slot in random.uniform(len(held))[0].argsort().tolist():
        yield held[slot]


class TrainingTexts:
    """The texts of a stream that are not held out, read anew by each iteration.

    Args:
        rule: says which texts are held out; None: none of them.
        between: so are those from the first of these numbers to before the second, counted as they come.
    """

    def __init__(
        self, source: Iterable[dict[str, str]], rule: HoldOut | None = None, between: tuple[int, int] = (0, 0)
    ):
        self.source, self.rule, self.between = source, rule, between

    def __iter__(self) -> Iterator[dict[str, str]]:
        first, end = self.between
        for number, record in enumerate(self.source):
            if first <= number < end or (self.rule is not None and self.rule.holds(record)):
                continue
            yield record


def sample_corpus(
    splits: dict[str, Stream], sample: int, share: float = 0.05, contiguous: bool = False
) -> tuple[Corpus, TrainingTexts]:
    """What is read of a stream beforehand, and the texts to train on.

    The first `sample` texts stand for all: the tokenizer is trained on their training part, the lengths of rows and the
    tokens never seen are counted there, and the held-out rows come from them, by the rules of `hold_out` (with
    `contiguous`, they are the last of these first texts). Of a validation or test split the first `sample` texts are
    taken.
    """
    if sample < 2:
        raise ValueError(f"stream_sample must be at least 2, got {sample}")
    head = Corpus({}, notes=splits["train"].notes)
    for split, stream in splits.items():
        if split not in ("train", "validation", "test"):
            continue
        if records := list(islice(stream, sample)):
            head[split] = Dataset.from_list(records)
        else:
            head.notes.append(f"{stream.where} holds no text, and is left out")
        head.blank[split] = stream.blank
    if "train" not in head:
        raise CorpusError(f"{splits['train'].where} holds no text to train on")
    parts = hold_out(head, share, contiguous)
    source = splits["train"]
    if not share or "validation" in head or "test" in head:
        return parts, TrainingTexts(source)
    if contiguous:
        return parts, TrainingTexts(source, between=(len(parts["train"]), len(head["train"])))
    return parts, TrainingTexts(source, hold_out_rule(head["train"], share))


class RowStream(IterableDataset):
    """Rows without end: the texts over and over, each time in another order.

    Rows of a line come as texts, which `StreamCollator` turns into tokens: to begin at a later row, texts are read but
    not tokenised, and a process tokenises its own rows alone. Fixed and packed rows depend on how texts are tokenised,
    so they come as tokens; to begin later, what lies before is tokenised again. The order is one of texts; for packed
    rows, whose texts follow each other, it is one of rows.

    Args:
        texts: what to read, anew for each epoch. cutter: how rows are cut.
        seed: of the order. buffer: how many texts (or packed rows) are shuffled at a time.
        start: rows to leave out at the front, for a run that is resumed.
    """

    def __init__(
        self, texts: Iterable[dict[str, str]], cutter: RowCutter, *, seed: int, buffer: int = 10_000, start: int = 0
    ):
        if buffer < 1:
            raise ValueError(f"stream_buffer must be at least 1, got {buffer}")
        self.texts, self.cutter, self.seed, self.buffer, self.start = texts, cutter, seed, buffer, start

    def _epoch(self, epoch: int) -> Iterator[Any]:
        random = RowRandom(self.seed ^ _SHUFFLE, torch.tensor([epoch]))
        if self.cutter.rows == "packed":
            return shuffled(self._cut(self.texts), self.buffer, random)
        texts = shuffled(self.texts, self.buffer, random)
        return texts if self.cutter.rows == "line" else self._cut(texts)

    def _cut(self, texts: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        def encoded() -> Iterator[dict[str, Any]]:
            source = iter(texts)
            while batch := list(islice(source, _BATCH)):
                yield from each(self.cutter.encode({name: [record[name] for record in batch] for name in batch[0]}))

        return self.cutter.cut(encoded())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"dataloader_num_workers must be 0 or 1 for a stream, got {worker.num_workers}: each would read all of "
                "it"
            )
        left = self.start
        for epoch in count():
            some = False
            for row in self._epoch(epoch):
                some = True
                if left:
                    left -= 1
                else:
                    yield row
            if not some:
                raise CorpusError(
                    f"no row is left of the stream: rows={self.cutter.rows!r}, row_length={self.cutter.row_length} "
                    f"({'none of its texts is read' if self.cutter.rows == 'line' else self.cutter.why_none()})"
                )


class StreamCollator:
    """Rows of a stream to a batch: texts are cut into rows first, then all goes to `collate`."""

    def __init__(self, cutter: RowCutter, collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]):
        self.cutter, self.collate = cutter, collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.collate(self.cutter.lines(rows) if "text" in rows[0] else rows)
