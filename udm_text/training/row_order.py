"""The order of training rows, the same in every process and however a run is split or resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler

from ..randomness import RowRandom

_ORDER = 0x4F52444552000000
"""Distinguishes the seed of the order of rows from that of the noise."""


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
