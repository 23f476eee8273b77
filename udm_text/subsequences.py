"""Ways in which one sequence stands within another, exactly: how many there are, and draws of one of them.

An embedding of a part y (m symbols) in a whole x (l symbols) is a choice of m rising places of x at which y stands. The
number of them follows from that of prefixes,

    emb(x_1..i, y_1..j) = emb(x_1..i-1, y_1..j) + [x_i = y_j] emb(x_1..i-1, y_1..j-1),

and going back through the table draws one uniformly, without rejection. Numbers are kept as logarithms in float64,
batched; cost O(L M) for L and M places. Rows end in padding: -1 in a whole, -2 in a part, which stand for no symbol.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hamming import NEVER

NO_SYMBOL, NO_PART = -1, -2
"""Padding of wholes and of parts: neither equals a symbol, or the other."""


def embedding_table(whole: Tensor, part: Tensor) -> Tensor:
    """log emb of every prefix of `part` in every prefix of `whole`.

    Args:
        whole: (B, L) int64 symbols, at least 0, then `NO_SYMBOL`. part: (B, M) int64, then `NO_PART`.

    Returns:
        (B, L + 1, M + 1) float64; entry [b, i, j] is the logarithm of the number of embeddings of the first j symbols
        of the part in the first i of the whole, NEVER where there is none.
    """
    batch, length = whole.shape
    row = torch.full((batch, part.shape[1] + 1), NEVER, dtype=torch.float64, device=whole.device)
    row = torch.cat((torch.zeros_like(row[:, :1]), row[:, 1:]), dim=1)
    edge = torch.full_like(row[:, :1], NEVER)
    rows = [row]
    for i in range(length):
        same = part == whole[:, i, None]
        taken = torch.cat((edge, row[:, :-1].masked_fill(~same, NEVER)), dim=1)
        row = torch.logaddexp(row, taken).clamp(min=NEVER)
        rows.append(row)
    return torch.stack(rows, dim=1)


def log_embeddings(whole: Tensor, part: Tensor) -> Tensor:
    """(B,) float64: log of the number of embeddings of each part in its whole. Arguments as in `embedding_table`."""
    table, size = embedding_table(whole, part), (part != NO_PART).sum(dim=1)
    return table[:, -1].gather(1, size[:, None])[:, 0]


def draw_embedding(whole: Tensor, part: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """An embedding of each part in its whole, all of them as likely.

    Args:
        whole, part: as in `embedding_table`. uniforms: (B, L) float64 in (0, 1), one for each place of the whole.

    Returns:
        (B, L) bool, the places that it takes; and (B,) bool, whether there is one (where not, the places mean nothing).
    """
    table = embedding_table(whole, part)
    left = (part != NO_PART).sum(dim=1)  # symbols of the part that still have to find a place
    exists = table[:, -1].gather(1, left[:, None])[:, 0] > NEVER / 2
    taken = torch.zeros_like(whole, dtype=torch.bool)
    for i in reversed(range(whole.shape[1])):
        here = table[:, i + 1].gather(1, left[:, None])[:, 0]
        before = table[:, i].gather(1, (left - 1).clamp(min=0)[:, None])[:, 0]
        same = _symbol(part, left - 1) == whole[:, i]
        take = (left > 0) & same & (uniforms[:, i].log() < before - here)
        taken[:, i] = take
        left = left - take.long()
    return taken, exists


def last_embedding(whole: Tensor, part: Tensor) -> Tensor:
    """(B, L) bool: the places of the embedding in which each symbol stands as far to the right as it can.

    No symbol of the whole that lies behind the place of y_j and before that of y_j+1 equals y_j. Arguments as in
    `embedding_table`; a part that stands nowhere in its whole has fewer places than symbols.
    """
    left = (part != NO_PART).sum(dim=1)
    taken = torch.zeros_like(whole, dtype=torch.bool)
    for i in reversed(range(whole.shape[1])):
        take = (left > 0) & (_symbol(part, left - 1) == whole[:, i])
        taken[:, i] = take
        left = left - take.long()
    return taken


def _symbol(part: Tensor, place: Tensor) -> Tensor:
    """(B,) int64: the symbol of each part (B, M) at its place; `NO_PART` where there are no places at all."""
    if not part.shape[1]:
        return torch.full_like(place, NO_PART)
    return part.gather(1, place.clamp(min=0)[:, None])[:, 0]
