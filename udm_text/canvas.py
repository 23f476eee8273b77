"""Texts that grow and shrink in rows of a fixed width.

The editable positions of a row (B, L) lie in segments, runs of them between given tokens. A segment holds the tokens of
its text side by side at its left end, and holes behind them; so what may change, and where given tokens stand, is the
same for every text that a row can hold. A hole is the padding token at an editable position. A network never sees one:
it reads rows with the holes left out (`read`).

A gap is a place where a token may be put in: before, between and behind the tokens of a segment. It has the name of the
column of the token to its left, which is a given token where the segment begins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .devices import demand
from .subsequences import NO_PART, NO_SYMBOL

NO_LEFT = (
    "a text begins at the first position of a row, and a gap is read at the token to its left: rows need a token "
    "before the text, as [CLS], and the tokenizer of this model puts none there"
)


def segments(editable: Tensor) -> Tensor:
    """(B, L) int64, the number of each position's segment, rising; a given token is one of its own."""
    begins = ~editable
    begins[:, 1:] |= ~editable[:, :-1]
    return begins.cumsum(dim=1)


def holds(x: Tensor, editable: Tensor, hole: int) -> Tensor:
    """(B, L) bool: where a row x (B, L) has a token that may change, and no hole."""
    return editable & (x != hole)


def justify(x: Tensor, keep: Tensor, editable: Tensor, hole: int) -> Tensor:
    """(B, L) int64: x with only the editable tokens in `keep` (B, L) bool left, side by side, and holes behind."""
    gone = editable & ~keep
    order = (2 * segments(editable) + gone).argsort(dim=1, stable=True)
    return x.masked_fill(gone, hole).gather(1, order)


def symbols(x: Tensor, editable: Tensor, hole: int) -> tuple[Tensor, Tensor]:
    """The tokens of the segments of x (B, L) as one sequence, equal only where token and segment are.

    Returns (B, L) int64 symbols, then `NO_SYMBOL`; and (B, L) int64, the column that each of them has in x.
    """
    held = holds(x, editable, hole)
    order = (~held).to(torch.uint8).argsort(dim=1, stable=True)
    coded = (segments(editable) << 32) + x
    return coded.masked_fill(~held, NO_SYMBOL).gather(1, order), order


def symbol_pair(whole: Tensor, part: Tensor, editable: Tensor, hole: int) -> tuple[Tensor, Tensor, Tensor]:
    """`symbols` of two rows with one coding, as subsequences.py takes a whole and a part; and the columns of the whole.

    The sequences are cut at the longest of the batch.
    """
    both, order = symbols(torch.cat((whole, part)), editable.repeat(2, 1), hole)
    large, small = both.chunk(2)
    held = holds(whole, editable, hole).sum(dim=1), holds(part, editable, hole).sum(dim=1)
    widths = [int(count.max()) if count.numel() else 0 for count in held]
    small = small[:, : widths[1]]
    return large[:, : widths[0]], small.masked_fill(small == NO_SYMBOL, NO_PART), order[: len(whole), : widths[0]]


def gaps(x: Tensor, editable: Tensor, hole: int) -> Tensor:
    """(B, L) bool: the columns behind which a token may be put in."""
    demand(~editable[:, 0], NO_LEFT)
    before = torch.zeros_like(editable)
    before[:, :-1] = ~editable[:, :-1] & editable[:, 1:]
    return holds(x, editable, hole) | before


def insert(x: Tensor, editable: Tensor, hole: int, columns: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
    """x (B, L) with tokens put into its gaps; those of one gap stand in the order in which they are given.

    Args:
        columns, tokens: (B, k) int64, the gaps and what is put there; live: (B, k) bool, which of them count. A segment
            must have a hole for each token that it gets.
    """
    segment = segments(editable)
    own = segment.gather(1, (columns + 1).clamp(max=x.shape[1] - 1))  # a gap is of the segment to its right
    held = holds(x, editable, hole)
    number = torch.arange(columns.shape[1], device=x.device)
    places = torch.arange(x.shape[1], device=x.device)
    # tokens that move a token of the row: those of its segment that are put in somewhere to its left
    before = live[:, None] & (own[:, None] == segment[:, :, None]) & (columns[:, None] < places[None, :, None])
    moved = places + before.sum(dim=2)
    same = own[:, :, None] == own[:, None, :]
    earlier = columns[:, None, :] < columns[:, :, None]
    earlier |= (columns[:, None, :] == columns[:, :, None]) & (number[None, None, :] < number[None, :, None])
    target = columns + 1 + (live[:, None, :] & same & earlier).sum(dim=2)
    width = x.shape[1]
    room = torch.full((len(x), width + 1), hole, dtype=x.dtype, device=x.device)  # what does not count goes to the end
    room = room.scatter(1, moved.masked_fill(~held, width).clamp(max=width), x)
    room = room.scatter(1, target.masked_fill(~live, width).clamp(max=width), tokens.to(x.dtype))
    return torch.where(editable, room[:, :width], x)


class Reading(NamedTuple):
    """Rows as a network reads them, without holes: tokens (B, W) int64, attention_mask (B, W) bool; and columns (B, L)
    int64, where what is read of each gap of the rows stands."""

    tokens: Tensor
    attention_mask: Tensor
    columns: Tensor


def read(
    x: Tensor,
    editable: Tensor,
    attention_mask: Tensor,
    hole: int,
    gap_token: int | None = None,
    width: int | None = None,
) -> Reading:
    """The rows x (B, L) without their holes, those attended to.

    gap_token: a token that is put into every gap, and read there; None: a gap is read at the token to its left.
    width: W, if the host knows it; None: it is read.
    """
    present = attention_mask.bool() & ~(editable & (x == hole))
    columns = present.cumsum(dim=1) - 1
    if gap_token is not None:
        between = gaps(x, editable, hole)
        x = torch.stack((x, torch.full_like(x, gap_token)), dim=2).flatten(1)
        present = torch.stack((present, between), dim=2).flatten(1)
        columns = (present.cumsum(dim=1) - 1)[:, 1::2]
    if width is None:
        width = int(present.sum(dim=1).max()) if present.numel() else 0
    order = (~present).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    mask = present.gather(1, order)
    return Reading(x.gather(1, order).masked_fill(~mask, hole), mask, columns.clamp(min=0))


class Closed(NamedTuple):
    """Rows as a whole, all (B, L): tokens, holes behind them; what is attended to; and what of that is editable.

    Of `close` the holes have gone to the end, and no hole is attended to or editable.
    """

    tokens: Tensor
    attention_mask: Tensor
    editable: Tensor


def widen(x: Tensor, editable: Tensor, attention_mask: Tensor, room: Tensor, hole: int) -> Closed:
    """The rows x (B, L) with `room` (B,) int64 more holes at the end of each of their segments, and holes behind.

    Where a row's own positions go depends on its own room alone. Holes of segments are editable and attended to.
    """
    ends = editable.clone()
    ends[:, :-1] &= ~editable[:, 1:]
    before = ends.long().cumsum(dim=1) - ends.long()  # segments that end left of each position
    added = room * ends.sum(dim=1)
    width = x.shape[1] + (int(added.max()) if len(x) else 0)
    target = torch.arange(x.shape[1], device=x.device) + room[:, None] * before
    blank = torch.zeros(len(x), width, dtype=torch.bool, device=x.device)
    taken = blank.scatter(1, target, True)
    new = ~taken & (torch.arange(width, device=x.device) < x.shape[1] + added[:, None])
    tokens = torch.full((len(x), width), hole, dtype=x.dtype, device=x.device).scatter(1, target, x)
    attended = blank.scatter(1, target, attention_mask.bool()) | new
    return Closed(tokens, attended, blank.scatter(1, target, editable) | new)


def close(x: Tensor, editable: Tensor, attention_mask: Tensor, hole: int) -> Closed:
    """The rows x (B, L) as texts: side by side, and padding behind."""
    present = attention_mask.bool() & ~(editable & (x == hole))
    order = (~present).to(torch.uint8).argsort(dim=1, stable=True)
    attended = present.gather(1, order)
    return Closed(x.gather(1, order).masked_fill(~attended, hole), attended, editable.gather(1, order) & attended)


class Actions(NamedTuple):
    """Tokens that a row lacks of another, as what puts them in: all (B, L), read where `missing` is true.

    missing: bool, in the columns of the whole row. columns: int64, the gap of each. runs: int64, d, the length of the
    run of equal tokens that the token stands in when it alone has been put in: so many single deletions undo it.
    """

    missing: Tensor
    columns: Tensor
    runs: Tensor


def single_insertions(x0: Tensor, xt: Tensor, missing: Tensor, editable: Tensor, hole: int) -> Actions:
    """How each of the tokens of x0 that xt lacks is put into xt, on its own.

    Beside a run of equal tokens one string comes of several gaps; the one that counts is before the run.

    Args:
        x0, xt: (B, L) int64; xt is x0 without the tokens in `missing` (B, L) bool.
    """
    length = x0.shape[1]
    places = torch.arange(length, device=x0.device).expand_as(x0)
    segment, held = segments(editable), holds(xt, editable, hole)
    kept = holds(x0, editable, hole) & ~missing
    begins = torch.ones_like(editable)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    first = places.masked_fill(~begins, 0).cummax(dim=1).values  # column at which a position's segment begins
    total = kept.cumsum(dim=1)
    left = first - 1 + total - total.gather(1, first) + kept.gather(1, first)  # behind what is kept, up to here
    run = torch.ones_like(held)  # where a run of equal tokens of xt begins
    run[:, 1:] = ~(held[:, 1:] & held[:, :-1] & (segment[:, 1:] == segment[:, :-1]) & (xt[:, 1:] == xt[:, :-1]))
    run_begins = places.masked_fill(~run, 0).cummax(dim=1).values
    number = run.cumsum(dim=1) - 1
    size = torch.zeros_like(xt).scatter_add(1, number, held.long()).gather(1, number)
    here = left.clamp(min=0)
    beside = held.gather(1, here) & (xt.gather(1, here) == x0)
    left = torch.where(beside, run_begins.gather(1, here) - 1, left)
    right = (left + 1).clamp(max=length - 1)
    followed = held.gather(1, right) & (xt.gather(1, right) == x0)
    return Actions(missing, left.clamp(min=0), 1 + size.gather(1, right).masked_fill(~followed, 0))
