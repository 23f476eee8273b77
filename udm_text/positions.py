"""The positions of a batch that a network call is about: indices, of a number that the host knows.

A mask (B, L) of them would have to be read to learn how many there are, and a device that is read from has nothing to
do meanwhile. The grid of a generation says it beforehand.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

ROW_BLOCK = 64
"""Rows through the language-model head come in multiples of this on a CPU, whose kernels are prepared for each new
number of rows; a training step then takes 20 % less."""


class Positions(NamedTuple):
    """N positions of B rows, row by row, from left to right in each: rows and columns, (N,) int64.

    counts: how many each row has, B numbers of the host.
    """

    rows: Tensor
    columns: Tensor
    counts: list[int]

    @classmethod
    def of(cls, wanted: Tensor, counts: list[int] | None = None) -> Positions:
        """Those that are true in `wanted` (B, L) bool. counts: how many of each row are; None: they are read."""
        if counts is None:
            counts = wanted.sum(dim=1).tolist()
        rows, columns = torch.nonzero_static(wanted, size=sum(counts)).T.contiguous()
        return cls(rows, columns, counts)

    @classmethod
    def padded(cls, wanted: Tensor, width: int) -> tuple[Positions, Tensor]:
        """`width` of each row, at least as many as are true in `wanted` (B, L) bool: these, and then others that are
        not; and which are, (B * width,) bool. All differ, so that each can be written to."""
        columns = (~wanted).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        rows = torch.arange(len(wanted), device=wanted.device)[:, None].expand_as(columns)
        return cls(rows.flatten(), columns.flatten(), [width] * len(wanted)), wanted.gather(1, columns).flatten()

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns, as (B, L, ...) is indexed by them."""
        return self.rows, self.columns

    @property
    def asked(self) -> list[int]:
        """The rows that have any."""
        return [row for row, count in enumerate(self.counts) if count]

    @property
    def width(self) -> int:
        """How many the row has that has most."""
        return max(self.counts, default=0)

    def repeat(self, times: int) -> Positions:
        """Those of so many copies of the batch, one behind the other."""
        rows = torch.cat([self.rows + copy * len(self.counts) for copy in range(times)])
        return Positions(rows, self.columns.repeat(times), self.counts * times)

    def before(self) -> Positions:
        """The positions to the left of them, of the first ones themselves; two of a row may then be the same."""
        return self._replace(columns=(self.columns - 1).clamp(min=0))

    def within(self, some: list[int]) -> Positions:
        """Those of the rows of these rising numbers, which count from 0 then."""
        ends = list(accumulate(self.counts, initial=0))
        counts = [self.counts[row] for row in some]
        if some[-1] - some[0] == len(some) - 1:
            own = slice(ends[some[0]], ends[some[-1] + 1])
            return Positions(self.rows[own] - some[0] if some[0] else self.rows[own], self.columns[own], counts)
        numbers = [number for row in some for number in range(ends[row], ends[row + 1])]
        own_rows = [number for number, count in enumerate(counts) for _ in range(count)]
        device = self.rows.device
        return Positions(
            torch.tensor(own_rows, device=device), self.columns[torch.tensor(numbers, device=device)], counts
        )
