"""One edit of a row: which edits there are, how likely a predictor takes each to be, and what it loses by that.

Several edits may give the same row: of a run of equal tokens any may be deleted, and a token may be inserted anywhere
beside its like. One of them stands for all, the first: the first token of a run is deleted, and no token is inserted
right of its like. So the chances of the canonical edits, and of stopping, are those of the rows that follow.

Source: docs/mathematics.md; checked by enumeration in tests/test_edits.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .devices import demand
from .edits import Edited, EditProcess
from .hamming import NEVER
from .lattice import DELETE, INSERT, KEEP, SUBSTITUTE


class EditScores(NamedTuple):
    """What a predictor says of rows (B, L) with V tokens: scores, the logarithms of rates up to one constant of a row.

    stop: (B,), of no edit. tokens: (B, L, V) logits at the tokens: a rate is the softmax at the substitute, and what
    it gives to the token itself is the rate of nothing. delete: (B, L), of the deletion of a token. gap: (B, L), of
    an insertion at a column, left of what stands there; behind the last token it is the first hole. inserts: (B, L,
    V) logits of what is inserted there.
    """

    stop: Tensor
    tokens: Tensor
    delete: Tensor
    gap: Tensor
    inserts: Tensor


class Runs(NamedTuple):
    """Where equal tokens stand side by side in a row, all (B, L).

    token: bool. gap: bool, the columns at which a token may be inserted: those of tokens and the first hole of a
    segment that has one. letters: int64, the index of the token, -1 elsewhere. first, last: int64, the columns of the
    first and the last token of the run that a token is in.
    """

    token: Tensor
    gap: Tensor
    letters: Tensor
    first: Tensor
    last: Tensor

    def left(self) -> Tensor:
        """(B, L) int64: the token left of each column, -1 where none of the segment is."""
        return torch.cat((torch.full_like(self.letters[:, :1], -1), self.letters[:, :-1]), dim=1)


def find_runs(x: Tensor, editable: Tensor, process: EditProcess) -> Runs:
    """x: (B, L) int64 rows as `EditProcess` has them; editable: (B, L) bool."""
    width = x.shape[1]
    letters = process.letters(x, editable)
    token = letters >= 0
    number = torch.arange(width, device=x.device).expand_as(x)
    none = torch.full_like(letters[:, :1], -1)
    starts = token & (letters != torch.cat((none, letters[:, :-1]), dim=1))
    ends = token & (letters != torch.cat((letters[:, 1:], none), dim=1))
    first = torch.where(starts, number, -1).cummax(dim=1).values
    last = torch.where(ends, number, width).flip(1).cummin(dim=1).values.flip(1)
    hole = editable & ~token
    room = hole | ~editable
    before = torch.cat((torch.zeros_like(hole[:, :1]), hole[:, :-1]), dim=1)
    # a segment has room where the next column from here on that holds no token is a hole
    next_free = torch.where(room, number, width).flip(1).cummin(dim=1).values.flip(1)
    has_room = torch.cat((hole, torch.zeros_like(hole[:, :1])), dim=1).gather(1, next_free)
    return Runs(token, (token & has_room) | (hole & ~before), letters, first, last)


class EditRates(NamedTuple):
    """Log-rates of the canonical edits, float64; `total` (B,) is the logarithm of their sum.

    stop: (B,). substitute, insert: (B, L, V); delete: (B, L). What is no canonical edit of the row has NEVER.
    """

    stop: Tensor
    substitute: Tensor
    delete: Tensor
    insert: Tensor
    total: Tensor


def edit_rates(scores: EditScores, runs: Runs) -> EditRates:
    """The rates of every canonical edit of the rows that `runs` is about, differentiable."""
    tokens, inserts = (logits.double().log_softmax(dim=-1) for logits in (scores.tokens, scores.inserts))
    own = torch.arange(tokens.shape[-1], device=tokens.device)
    substitute = tokens.masked_fill(~runs.token[..., None] | (own == runs.letters[..., None]), NEVER)
    begins = runs.token & (runs.first == torch.arange(runs.token.shape[1], device=tokens.device))
    delete = scores.delete.double().masked_fill(~begins, NEVER)
    insert = inserts + scores.gap.double()[..., None]
    insert = insert.masked_fill(~runs.gap[..., None] | (own == runs.left()[..., None]), NEVER)
    stop = scores.stop.double()
    every = torch.cat((stop[:, None], substitute.flatten(1), delete, insert.flatten(1)), dim=1)
    return EditRates(stop, substitute, delete, insert, every.logsumexp(dim=1))


class Undoing(NamedTuple):
    """The canonical edits that undo those of a row, at the tokens of x0 that have one. All (B, L) int64.

    kinds: of the edit back: DELETE of an inserted token, INSERT of a deleted one, SUBSTITUTE, or KEEP (no edit).
    columns: the column of xt of the edit back. letters: the index of the token that it brings.
    wide: the number of ways that the step of rows does not tell apart (docs/mathematics.md), 1 where there is no edit.
    """

    kinds: Tensor
    columns: Tensor
    letters: Tensor
    wide: Tensor


def find_undoing(runs: Runs, edited: Edited) -> Undoing:
    """The edits back. runs: of the rows `edited.xt`; edited: what was done to x0."""
    width = edited.xt.shape[1]
    kinds, letters = edited.kinds, edited.letters
    at = edited.columns.clamp(max=width - 1)
    came, went, changed = kinds == INSERT, kinds == DELETE, kinds == SUBSTITUTE
    demand(
        ~went | ((edited.columns < width) & runs.gap.gather(1, at)),
        "a segment has no room for a token that was deleted from it: give it as many holes as there are edits",
    )
    first, last = runs.first.gather(1, at), runs.last.gather(1, at)
    before = (at - 1).clamp(min=0)
    like_left = (runs.left().gather(1, at) == letters) & went
    like_right = (runs.letters.gather(1, at) == letters) & went
    gap = torch.where(like_left, runs.first.gather(1, before), at)
    wide = torch.ones_like(at)
    wide = wide + torch.where(like_left, at - gap, 0) + torch.where(like_right, last - at + 1, 0)
    wide = torch.where(came, (last - first + 1) * (1 + edited.ghosts), wide)
    columns = torch.where(came, first.clamp(min=0), torch.where(changed, at, gap))
    back = torch.where(came, DELETE, torch.where(went, INSERT, kinds))
    return Undoing(back, columns, letters, wide.masked_fill(kinds == KEEP, 1))


def undo_terms(rates: EditRates, runs: Runs, edited: Edited) -> tuple[Tensor, Tensor]:
    """What undoing each of the edits of a row costs.

    Args:
        rates, runs: of the rows `edited.xt`.
        edited: what was done to x0.

    Returns:
        Two (B, L) float64, 0 where there is no edit: -log of the chance of the edit back, and log d, the logarithm of
        the number of ways that the step of rows does not tell apart (docs/mathematics.md).
    """
    kinds, columns, letters, wide = find_undoing(runs, edited)

    def of(table: Tensor, columns: Tensor) -> Tensor:
        """What a (B, L, V) table says of the tokens of x0 at the columns."""
        return table.flatten(1).gather(1, columns * table.shape[-1] + letters)

    chosen = torch.where(kinds == DELETE, rates.delete.gather(1, columns), of(rates.insert, columns))
    chosen = torch.where(kinds == SUBSTITUTE, of(rates.substitute, columns), chosen)
    cost = (rates.total[:, None] - chosen).masked_fill(kinds == KEEP, 0.0)
    return cost, wide.double().log()


def edit_losses(scores: EditScores, edited: Edited, editable: Tensor, process: EditProcess) -> Tensor:
    """(B,) float64 losses of edited rows in nats, differentiable: the mean over the edits of a row of -log of the
    chance to undo it, and -log of the chance to stop where there is none.

    Its mean is the cross-entropy of the step back. Where each further edit up to the l-th comes with one chance, it is
    the bound of a repairer that stops as well, but for constants (docs/mathematics.md).

    Args:
        scores: of the rows `edited.xt`. editable: (B, L) bool.
    """
    runs = find_runs(edited.xt, editable, process)
    rates = edit_rates(scores, runs)
    cost, _ = undo_terms(rates, runs, edited)
    count = (edited.kinds != KEEP).sum(dim=1)
    return torch.where(count > 0, cost.sum(dim=1) / count.clamp(min=1), rates.total - rates.stop)


class Move(NamedTuple):
    """One edit of each row, or none. All (B,) int64.

    kinds: SUBSTITUTE, DELETE, INSERT or KEEP (none). columns: where. letters: the index of the token that comes.
    """

    kinds: Tensor
    columns: Tensor
    letters: Tensor


def draw_move(rates: EditRates, uniforms: Tensor) -> Move:
    """An edit or none, by its chance: first where and of which kind, then the token.

    uniforms: (B, 2) float64 in (0, 1).
    """
    length, num_tokens = rates.substitute.shape[1:]
    parts = (rates.stop[:, None], rates.substitute.logsumexp(dim=2), rates.delete, rates.insert.logsumexp(dim=2))
    number = _by_inverse(torch.cat(parts, dim=1).softmax(dim=1), uniforms[:, 0])
    columns = (number - 1).clamp(min=0) % length
    kinds = torch.where(
        number == 0, KEEP, torch.tensor((SUBSTITUTE, DELETE, INSERT), device=number.device)[(number - 1) // length]
    )
    pick = columns[:, None, None].expand(-1, 1, num_tokens)
    tokens = torch.where(
        (kinds == INSERT)[:, None], rates.insert.gather(1, pick)[:, 0], rates.substitute.gather(1, pick)[:, 0]
    )
    return Move(kinds, columns, _by_inverse(tokens.softmax(dim=1), uniforms[:, 1]))


def _by_inverse(chances: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) int64, drawn by the inverse distribution function. chances: (B, n) float64; uniforms: (B,)."""
    heights = chances.cumsum(dim=1)
    return (uniforms[:, None] * heights[:, -1:] >= heights[:, :-1]).sum(dim=1)


def make_move(x: Tensor, editable: Tensor, move: Move, process: EditProcess) -> Tensor:
    """(B, L) int64: the rows after their edits. What stands right of a deletion or an insertion in its segment moves.

    x: (B, L) int64; editable: (B, L) bool; a segment into which something is inserted has a hole.
    """
    number = torch.arange(x.shape[1], device=x.device).expand_as(x)
    kinds, columns = move.kinds[:, None], move.columns[:, None]
    token = process.tokens_of(move.letters)[:, None]
    given = (~editable).long().cumsum(dim=1)  # alike within a segment
    of_segment = editable & (given == given.gather(1, columns))
    edge = torch.full_like(x[:, :1], process.hole_token_id)
    following = torch.cat((x[:, 1:], edge), dim=1)
    ends = of_segment & ~torch.cat((of_segment[:, 1:], torch.zeros_like(of_segment[:, :1])), dim=1)
    following = following.masked_fill(ends, process.hole_token_id)
    before = torch.cat((edge, x[:, :-1]), dim=1)
    moved = torch.where((kinds == DELETE) & of_segment & (number >= columns), following, x)
    moved = torch.where((kinds == INSERT) & of_segment & (number > columns), before, moved)
    here = (number == columns) & ((kinds == SUBSTITUTE) | (kinds == INSERT))
    return torch.where(here, token, moved)
