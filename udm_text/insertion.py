"""The predictor of the delete process: at which gap of a text a token is put in, and which.

The network reads the text as it is, without holes, and gives a law over the gaps and, at each, one over tokens. Of the
gaps beside a run of equal tokens only the first takes another of them, as in the bound. A step of several tokens draws
them independently; those of one gap stand in the order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .canvas import close, gaps, holds, insert, read
from .core import Prediction
from .decoding import COLDEST, NOT_FINITE, draw, guide, tempered, truncate
from .inputs import GenerationInputs
from .modeling_udm import language_head
from .positions import Positions
from .predictors import Predictor
from .processes import TokenNoise

_CHUNK_ELEMENTS = 1 << 21
"""Logits held at a time."""


class Gaps(NamedTuple):
    """What the network says of the gaps of rows: `law` (B, L) float64, log-probabilities, -inf where there is none.

    head: gives logits (n, V) of gaps, called with rows and columns (n,) int64.
    """

    law: Tensor
    head: Callable[[Tensor, Tensor], Tensor]


class InsertionPredictor(Predictor):
    """Draws the gaps of a step first, so that logits of tokens are made at those alone.

    Temperature is that of both laws; at 0 a step takes the best gaps, and top_k and top_p are of tokens.
    """

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        super().begin(xt, grid)
        self.random.expect(2 * (len(grid) - 1))
        self._count(xt, grid[0])
        # a step leaves out of x0 what it has not put in itself: nothing
        keys = torch.full(xt.shape, 0.5, dtype=torch.float64, device=xt.device).masked_fill(~self.editable, torch.inf)
        self._nothing_deleted = TokenNoise(keys, keys)
        tokens = (~self.forbidden).nonzero()[:, 0]
        self._only = int(tokens[0]) if len(tokens) == 1 else None

    def _count(self, xt: Tensor, t: list[int]) -> None:
        """Reads once what the host then knows of every step: how long a row is when t tokens are still to come."""
        given, hole = self.attention_mask[: len(xt)] & ~self.editable, self.process.hole_id
        places = gaps(xt, self.editable, hole)
        present = given | holds(xt, self.editable, hole)
        totals = torch.stack((present.sum(dim=1), places.sum(dim=1))).tolist()
        self._final = [[number + left for number, left in zip(row, t, strict=True)] for row in totals]

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        before, after = self._counts()
        k = max((a - b for a, b in zip(before, after, strict=True)), default=0)
        hole, nothing = self.process.hole_id, torch.zeros_like(s)
        where, which = self.random.uniform(xt.shape[1]), self.random.uniform(xt.shape[1])
        if k < 1:
            return Prediction(xt, self._nothing_deleted, s=nothing)
        if self.is_replaced:
            self._count(xt, before)
        live = torch.arange(k, device=xt.device) < (t - s)[:, None]  # rows that rest, or put in fewer, draw in vain
        said = self._gaps(xt, t, before)
        columns = self._draw_gaps(said.law, where[:, :k])
        rows = torch.arange(len(xt), device=xt.device)[:, None].expand_as(columns)
        drawn = self._draw_tokens(said, xt, rows.flatten(), columns.flatten(), which[:, :k].flatten())
        tokens = drawn.view_as(columns)
        put_in = insert(xt, self.editable, hole, columns, tokens, live)
        if self.is_replaced:
            lost = holds(put_in, self.editable, hole).sum(1) - holds(xt, self.editable, hole).sum(1) != live.sum(1)
            self.constraints.refuse(lost, "callback_on_step_end has left no room for the tokens that are still to come")
        return Prediction(put_in, self._nothing_deleted, s=nothing)

    def _gaps(self, xt: Tensor, t: Tensor, left: list[int]) -> Gaps:
        """Asks the network about all gaps of the rows, to which `left` tokens are still to come."""
        self.num_calls += self.readings
        model, hole = self.model, self.process.hole_id
        rows = xt
        if self.condition is not None:
            rows = torch.cat((xt, xt.masked_fill(self.condition, model.config.mask_token_id)))
        editable = self.editable.repeat(self.readings, 1)
        tokens, counted = (
            [total - k for total, k in zip(totals, left, strict=True)] * self.readings for totals in self._final
        )
        marked = self.process.gap_token_id is not None
        widths = [a + b * marked for a, b in zip(tokens, counted, strict=True)]
        width = max(widths)
        reading = read(rows, editable, self.attention_mask, hole, self.process.gap_token_id, width)
        where = Positions.of(gaps(rows, editable, hole), counted)
        places = where.rows, reading.columns[where.places]
        head = language_head(model.backbone)
        keep = (
            {} if head is None else {"apply_head": lambda head, hidden: hidden}
        )  # hidden states, whose logits can wait
        output = model(
            input_ids=reading.tokens,
            attention_mask=None if min(widths) == width else reading.attention_mask.long(),
            t=t.repeat(self.readings),
            num_editable=self.lengths,
            positions=places,
            gaps=places,
            **keep,
        )
        scores = torch.full(rows.shape, -torch.inf, dtype=torch.float64, device=xt.device)
        scores = scores.index_put(where.places, output.gap_logits.double())
        self.constraints.refuse(scores.isnan().any(dim=1) | (scores == torch.inf).any(dim=1), NOT_FINITE)
        number = torch.zeros(rows.shape, dtype=torch.int64, device=xt.device)
        number = number.index_put(where.places, torch.arange(len(where.rows), device=xt.device))
        if self._only is not None:  # behind itself the one token that may be drawn is never put in
            scores = scores.masked_fill((rows == self._only) & editable, -torch.inf)
        if self.condition is not None:
            conditional, unconditional = scores.chunk(2)
            scores = guide(conditional, unconditional, self.scale)

        def logits(row: Tensor, column: Tensor) -> Tensor:
            own = [row + reading_ * len(xt) for reading_ in range(self.readings)]
            made = [output.logits[number[each, column]] for each in own]
            made = made if head is None else [head(hidden) for hidden in made]
            return made[0] if len(made) == 1 else guide(made[0], made[1], self.scale)

        return Gaps(scores.log_softmax(dim=1), logits)

    def _draw_gaps(self, law: Tensor, uniforms: Tensor) -> Tensor:
        """(B, k) int64: columns of gaps, drawn by uniforms (B, k); at temperature 0 the best ones in turn."""
        temperature, k = self.config.temperature, uniforms.shape[1]
        if temperature < COLDEST:
            best = law.argsort(dim=1, descending=True, stable=True)
            turn = torch.arange(k, device=law.device) % (law > -torch.inf).sum(dim=1, keepdim=True)
            return best.gather(1, turn)
        scores = tempered(law, temperature=temperature)
        return draw(scores[:, None].expand(-1, k, -1), uniforms)

    def _draw_tokens(self, said: Gaps, xt: Tensor, rows: Tensor, columns: Tensor, uniforms: Tensor) -> Tensor:
        """(n,) int64: tokens drawn at gaps, by uniforms (n,)."""
        own = xt[rows, columns].masked_fill(~self.editable[rows, columns], -1)
        size = max(1, _CHUNK_ELEMENTS // (self.readings * self.model.config.vocab_size))
        chunks = zip(*(x.split(size) for x in (rows, columns, own, uniforms)), strict=True)
        return torch.cat(
            [self._tokens(said.head(row, column), xt, row, column, *rest) for row, column, *rest in chunks]
        )

    def _tokens(
        self, logits: Tensor, xt: Tensor, rows: Tensor, columns: Tensor, own: Tensor, uniforms: Tensor
    ) -> Tensor:
        config = self.config
        logits = self.constraints(logits, xt, rows, columns + 1)
        ruled_out = torch.zeros_like(logits, dtype=torch.bool)
        ruled_out = ruled_out.scatter_(1, own.clamp(min=0)[:, None], (own >= 0)[:, None])
        logits = logits.masked_fill(ruled_out, -torch.inf)
        self.constraints.refuse(logits.isneginf().all(dim=1), "no token is left that may stand in a gap", columns + 1)
        scores = tempered(logits, temperature=config.temperature)
        if config.top_k is not None or (config.top_p or 1.0) < 1.0:
            scores = truncate(scores, config.top_k, config.top_p)
        return draw(scores, uniforms)

    def shown(self, xs: Tensor) -> tuple[Tensor, Tensor | None]:
        closed = close(xs, self.editable, self.attention_mask[: len(xs)], self.process.hole_id)
        return closed.tokens, closed.editable

    def finish(self, sequences: Tensor, inputs: GenerationInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Rows without the holes that several blanks have left, as wide as the longest."""
        closed = close(sequences, inputs.editable, inputs.attention_mask, self.process.hole_id)
        width = int(closed.attention_mask.sum(dim=1).max())
        return closed.tokens[:, :width], closed.attention_mask[:, :width], closed.editable[:, :width]
