"""What a network says of the edits of texts: the loss that trains a repairer, and the predictor that repairs.

The network reads a text without holes and with a [MASK] in every gap. Its own head says at each token what should
stand there, and at each gap what is missing there; beside that a linear map says three scores: at the first token of
the row that of no edit (stop), at each token that of its deletion, at each gap that of an insertion. Together they are
the rates of `edit_actions.edit_rates`, from which each row draws one edit, or stops.

Of the logits (N, V) only what the loss or the step needs of a position is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .canvas import NO_LEFT, Closed, Reading, close, read
from .core import Prediction
from .decoding import NOT_FINITE, draw, log_probabilities, truncate
from .devices import demand, reads_are_free
from .edit_actions import Move, Runs, find_runs, find_undoing, make_move
from .edits import EditNoise, EditProcess
from .hamming import NEVER
from .inputs import GenerationInputs
from .lattice import DELETE, INSERT, KEEP, SUBSTITUTE
from .modeling_udm import language_head
from .objectives import CorruptedRows
from .positions import Positions
from .predictors import NetworkOutput, Predictor

_STOP, _DELETE, _GAP = range(3)
"""The scores of a position, in their order (`EditProcess.gap_scores`)."""


class Question(NamedTuple):
    """What a network is asked about rows (B, L): all their tokens, and then all gaps into which one may be put.

    runs: of the rows. reading: the rows as they are read. number: how many of the N places are tokens.
    rows, columns: (N,) int64, the tokens, and the columns at which tokens would be inserted (`edit_actions.Runs`).
    places: (N,) int64, the column in which each is read. own: (N,) int64, the token that is no edit there: the one that
    stands there, and the one left of a gap; -1 where there is none.
    """

    runs: Runs
    reading: Reading
    number: int
    rows: Tensor
    columns: Tensor
    places: Tensor
    own: Tensor

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the tokens."""
        return self.rows[: self.number], self.columns[: self.number]

    @property
    def gaps(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the gaps."""
        return self.rows[self.number :], self.columns[self.number :]

    def inputs(self) -> dict[str, Any]:
        """What the network is given, but for t and the lengths: the B first tokens have scores, too."""
        every = torch.arange(len(self.reading.tokens), device=self.rows.device)
        return {
            "input_ids": self.reading.tokens,
            "attention_mask": self.reading.attention_mask,
            "positions": (self.rows, self.places),
            "gaps": (torch.cat((every, self.rows)), torch.cat((torch.zeros_like(every), self.places))),
        }

    def of_gaps(self, scores: Tensor) -> Tensor:
        """(N,) float64: of the scores (N, 3) of the places those of insertions, 0 at tokens."""
        return scores[:, _GAP].double().masked_fill(torch.arange(len(scores), device=scores.device) < self.number, 0.0)

    def spread(self, values: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N,) of tokens and of gaps at their columns of (B, L), elsewhere `blank`."""
        n = self.number
        return blank.index_put(self.tokens, values[:n]), blank.index_put(self.gaps, values[n:])


def ask(xt: Tensor, editable: Tensor, attention_mask: Tensor, process: EditProcess) -> Question:
    """xt: (B, L) int64 rows as `EditProcess` has them; editable, attention_mask: (B, L).

    A row that is as long as the model reads has no gaps.
    """
    demand(~editable[:, 0], NO_LEFT)
    runs, hole = find_runs(xt, editable, process), process.hole_token_id
    if process.longest is not None:
        held = (attention_mask.bool() & ~(editable & (xt == hole))).sum(dim=1)
        runs = runs._replace(gap=runs.gap & (held < process.longest)[:, None])
    reading = read(xt, editable, attention_mask, hole, process.gap_token_id)
    tokens, gaps = Positions.of(runs.token), Positions.of(runs.gap)
    # a gap has its name of the token to its left, right of which the [MASK] of the gap is read
    at_tokens, at_gaps = reading.columns[tokens.places] - 1, reading.columns[gaps.rows, gaps.columns - 1]
    own = torch.cat((runs.letters[tokens.places], runs.left()[gaps.places]))
    return Question(
        runs,
        reading,
        len(tokens.rows),
        torch.cat((tokens.rows, gaps.rows)),
        torch.cat((tokens.columns, gaps.columns)),
        torch.cat((at_tokens, at_gaps)),
        process.tokens_of(own),
    )


class Rates(NamedTuple):
    """Log-rates of rows, float64: stop (B,); of the edits at each column, over all tokens, change, delete, insert
    (B, L); NEVER where there is none. total: (B,), of all together."""

    stop: Tensor
    change: Tensor
    delete: Tensor
    insert: Tensor
    total: Tensor


def sum_rates(question: Question, scores: Tensor, others: Tensor) -> Rates:
    """The rates of the edits at each column.

    scores: (B + N, 3), of the first tokens of the rows and of the places. others: (N,), the log of the share that all
    tokens but `own` have there.
    """
    q, n, batch = question, question.number, len(question.reading.tokens)
    stop, said = scores[:batch, _STOP].double(), scores[batch:].double()
    blank = torch.full(q.runs.token.shape, NEVER, dtype=torch.float64, device=scores.device)
    change, insert = q.spread(others.double() + q.of_gaps(said), blank)
    begins = q.runs.first[q.tokens] == q.tokens[1]  # of a run of equal tokens the first is deleted
    delete = blank.index_put(q.tokens, said[:n, _DELETE].masked_fill(~begins, NEVER))
    total = torch.cat((stop[:, None], change, delete, insert), dim=1).logsumexp(dim=1)
    return Rates(stop, change, delete, insert, total)


def network_losses(predict: Callable[..., Any], rows: CorruptedRows, forbidden: Tensor, process: EditProcess) -> Tensor:
    """(B,) float64 losses of a network in nats, as `edit_actions.edit_losses` has them of whole tables.

    predict, rows, forbidden: as in `objectives.row_losses`; the rows have their noise.
    """
    if rows.noise is None:
        raise ValueError("process 'edit' scores rows by the noise that they were corrupted with")
    attended = torch.ones_like(rows.editable) if rows.attention_mask is None else rows.attention_mask
    edited = process.edit(rows.x0, rows.t, rows.noise)
    question = ask(edited.xt, rows.editable, attended, process)
    logits, scores = predict(**question.inputs(), t=rows.t, num_editable=rows.lengths)
    logits = logits.float().masked_fill(forbidden, -torch.inf)
    constant = logits.logsumexp(dim=1)
    others = _without(logits, question.own).logsumexp(dim=1) - constant
    rates = sum_rates(question, scores, others)

    back = find_undoing(question.runs, edited)
    row, place = (back.kinds != KEEP).nonzero(as_tuple=True)
    kind, column, letter = (x[row, place] for x in (back.kinds, back.columns, back.letters))
    # the place of each edit back among those that were asked about: a token's, or a gap's
    numbers = torch.arange(len(question.rows), device=row.device)
    at_token, at_gap = question.spread(numbers, torch.zeros_like(edited.xt))
    number = torch.where(kind == INSERT, at_gap[row, column], at_token[row, column])
    token = (logits[number, process.tokens_of(letter)] - constant[number]).double()
    gap = scores[len(rows.t) + number, _GAP].double()
    chosen = torch.where(kind == INSERT, token + gap, token)
    chosen = torch.where(kind == DELETE, rates.delete[row, column], chosen)
    cost = torch.zeros_like(rates.total).index_add(0, row, rates.total[row] - chosen)
    count = (back.kinds != KEEP).sum(dim=1)
    return torch.where(count > 0, cost / count.clamp(min=1), rates.total - rates.stop)


def _without(logits: Tensor, own: Tensor) -> Tensor:
    """(N, V): the logits, -inf at the token own (N,), which is -1 where there is none."""
    ruled_out = torch.zeros_like(logits, dtype=torch.bool)
    return logits.masked_fill(ruled_out.scatter_(1, own.clamp(min=0)[:, None], (own >= 0)[:, None]), -torch.inf)


class EditPredictor(Predictor):
    """Takes one edit a step, or none: at temperature 0 the likeliest of all edits and of stopping, else a draw of them.

    Temperature divides the log-rates of all; top_k and top_p are of the tokens of a place. A row that has stopped rests
    to the end, as does one whose edit is less probable than `min_confidence`. A row that is as long as the model reads
    gets no insertions.
    """

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        super().begin(xt, grid)
        self.random.expect(3 * (len(grid) - 1))
        self._rests = torch.zeros(len(xt), dtype=torch.bool, device=xt.device)
        none = torch.zeros_like(xt)
        half = torch.full(xt.shape, 0.5, dtype=torch.float64, device=xt.device)
        # a step has made its edit itself, and leaves none to be made
        keys = half.masked_fill(~self.editable, torch.inf)
        self._no_edits = EditNoise(keys, half, none, none + 1, none, half, half)

    def replaced(self) -> None:
        super().replaced()
        self._rests = torch.zeros_like(self._rests)

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        width, live = xt.shape[1], ~self._rests & (t > s)
        uniforms = self.random.uniform(1)[:, 0], self.random.uniform(width), self.random.uniform(width)
        nothing = torch.zeros_like(s)
        # rows that rest are left out where the host need not send word of which they are
        chosen = live.nonzero()[:, 0] if reads_are_free(xt.device) else torch.arange(len(xt), device=xt.device)
        if not len(chosen):
            return Prediction(xt, self._no_edits, s=nothing)
        self.num_calls += 1
        move = self._choose(xt, chosen, *(u[chosen] for u in uniforms))
        move = move._replace(kinds=torch.where(live[chosen], move.kinds, KEEP))
        self._rests = self._rests.index_put((chosen,), self._rests[chosen] | (move.kinds == KEEP))
        after = make_move(xt[chosen], self.editable[chosen], move, self.process)
        return Prediction(xt.index_put((chosen,), after), self._no_edits, s=nothing)

    def _choose(self, xt: Tensor, chosen: Tensor, which: Tensor, changing: Tensor, coming: Tensor) -> Move:
        """An edit of each of the chosen rows, or none.

        which: (n,), the uniforms of the places; changing, coming: (n, L), of the tokens there.
        """
        config, own, batch = self.config, xt[chosen], len(chosen)
        question = ask(own, self.editable[chosen], self.attention_mask[chosen], self.process)
        output, scores = self._say(question, self.editable[chosen])
        uniforms = torch.cat((changing[question.tokens], coming[question.gaps]))
        places = chosen[question.rows], question.columns, question.own, uniforms
        others, token, share, rate = self._by_chunks(partial(self._place, xt), output, *places)
        rates, cold = sum_rates(question, scores, others), self.config.temperature == 0
        weighed = sum_rates(question, scores if cold else scores / config.temperature, rate)
        every = torch.cat((weighed.stop[:, None], weighed.change, weighed.delete, weighed.insert), dim=1)
        number = every.argmax(dim=1) if cold else draw(every, which)

        edit, width = (number - 1).clamp(min=0), own.shape[1]
        kind = torch.tensor((SUBSTITUTE, DELETE, INSERT), device=own.device)[edit // width]
        here = torch.arange(batch, device=own.device), edit % width
        comes = kind == INSERT
        shares = question.spread(share + question.of_gaps(scores[batch:]), torch.full_like(rates.change, NEVER))
        letters = question.spread(self.process.index_of(token), torch.zeros_like(own))
        exact = torch.where(comes, shares[1][here], shares[0][here])
        exact = torch.where(kind == DELETE, rates.delete[here], exact)
        kind = kind.masked_fill(number == 0, KEEP)
        if config.min_confidence is not None:
            kind = kind.masked_fill((exact - rates.total).exp() < config.min_confidence, KEEP)
        return Move(kind, here[1], torch.where(comes, letters[1][here], letters[0][here]))

    def _say(self, question: Question, editable: Tensor) -> tuple[NetworkOutput, Tensor]:
        """What the network says of the places, and its scores (B + N, 3)."""
        head = language_head(self.model.backbone)
        # hidden states, whose logits can wait
        keep = {} if head is None else {"apply_head": lambda head, hidden: hidden}
        inputs = question.inputs()
        mask = inputs.pop("attention_mask")
        unpadded = reads_are_free(mask.device) and bool(mask.all())
        output = self.model(
            **inputs,
            attention_mask=None if unpadded else mask.long(),
            t=torch.zeros(len(editable), dtype=torch.int64, device=editable.device),
            num_editable=editable.sum(dim=1),
            **keep,
        )
        self.constraints.refuse(~output.gap_logits.isfinite().all(dim=1), NOT_FINITE)
        return NetworkOutput(output.logits, head or (lambda logits: logits)), output.gap_logits

    def _place(
        self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, own: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each place, all (n,): log of the share of all tokens but `own`; the token that an edit there would bring;
        log of its share; and the log-rate that the edits there are weighed by, together or by the best."""
        config = self.config
        log_probs = _without(log_probabilities(self.constraints(logits, xt, rows, columns)), own)
        others = log_probs.logsumexp(dim=1)
        if config.temperature == 0:
            share, token = log_probs.max(dim=1)
            rate = share
        else:
            none = others.isneginf()[:, None]  # no other token may stand there
            kept = truncate(log_probs.masked_fill(none, 0.0), config.top_k, config.top_p).isfinite()
            scaled = log_probs.masked_fill(~kept, -torch.inf) / config.temperature
            rate = scaled.logsumexp(dim=1)
            token = draw(scaled.masked_fill(none, 0.0), uniforms)
            share = log_probs.gather(1, token[:, None])[:, 0]
        return others.clamp(min=NEVER), token, share.clamp(min=NEVER), rate.clamp(min=NEVER)

    def _closed(self, xs: Tensor, attention_mask: Tensor) -> Closed:
        return close(xs, self.editable, attention_mask, self.process.hole_token_id)

    def shown(self, xs: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._closed(xs, self.attention_mask).tokens, None

    def finish(self, sequences: Tensor, inputs: GenerationInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Rows without holes, as wide as the longest."""
        closed = self._closed(sequences, inputs.attention_mask)
        width = int(closed.attention_mask.sum(dim=1).max())
        return closed.tokens[:, :width], closed.attention_mask[:, :width], closed.editable[:, :width]
