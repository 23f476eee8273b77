"""An approximation of the network, several times cheaper a call: keys and values are kept, seldom brought up to date.

In every r-th call of a row all of it runs through all layers, and the keys and values of each layer are kept. In the
calls between, only the positions whose token changed since the row's last call and those that are asked about run
through the layers; they attend to what was kept, where their own keys and values take the place of the old ones. What
every other position would now say is what it said at the last refresh: that is the error, and it does not vanish
with anything but r. It is no sampler of the model's law; benchmarks/generation.py measures how far off it is.

The calls of a row are counted for the row, so that what becomes of it does not depend on its neighbours.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .backbones import Angles, Linear, turned
from .fastpath import Batch, Group, attend, attend_all, known_body
from .positions import Positions


class CachedForward:
    """The `Forward` with the keys and values of all layers kept between calls.

    Memory beside the model's: 2 * layers * B * L * W numbers, W of the queries of a position, at any number of calls.

    Args:
        model, attention_mask, lengths: see `FastForward`.
        refresh: r >= 1, calls of a row from one refresh to the next; 1 keeps nothing that is used (exact).

    Raises:
        ValueError: where the model is not one whose layers can be run by their parts.
    """

    def __init__(self, model: Any, attention_mask: Tensor, lengths: Tensor, refresh: int):
        body = known_body(model, all_layers=True)
        if body is None:
            raise refused(refresh, f"{type(getattr(model, 'backbone', model)).__name__} as it is here is none of them")
        self.batch, self.refresh = Batch(body, model, attention_mask, lengths), refresh

    def hidden(self, xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None = None) -> Tensor:
        """See `Forward`; never None.

        Raises:
            ValueError: under autocast, with gradients, or in training mode.
        """
        if not self.batch.takes(xt):
            raise refused(self.refresh, "not under autocast, with gradients, or in training mode")
        if self.batch.begin():
            self._prepare()
        asked = self.batch.asked(positions)
        due = [row for row in asked if self.age[row] % self.refresh == 0]
        rest = [row for row in asked if self.age[row] % self.refresh]
        out = self.kept[0].new_empty(len(positions.rows), self.batch.hidden_size)
        ends = list(accumulate(positions.counts, initial=0))
        for rows, run in ((due, self._refresh), (rest, self._update)):
            for group in self.batch.groups(rows, xt, t, positions, others):
                own = group.index
                here = (
                    slice(ends[own.start], ends[own.stop])
                    if isinstance(own, slice)
                    else torch.isin(positions.rows, own)
                )
                out[here] = run(group)
        for row in asked:
            self.age[row] += 1
        return out

    def head(self, rows: Tensor) -> Tensor:
        return self.batch.head(rows, self.projections)

    def _prepare(self) -> None:
        batch, heads = self.batch, self.batch.body.heads
        self.age = [0] * batch.shape[0]  # calls of each row
        self.projections = [Linear(*batch.body.projections(layer)) for layer in batch.layers]
        self.kept = [batch.weight.new_zeros(*batch.shape, 2, heads, batch.body.width // heads) for _ in batch.layers]

    def _refresh(self, group: Group) -> Tensor:
        """(n, H) behind the last layer, exact; all keys and values of the rows of the group are kept."""
        body, layers = self.batch.body, self.batch.layers
        position_ids = self.batch.renew(group)
        x = body.embed(group.tokens, position_ids, None if group.shift is None else group.shift[:, None])
        here, wanted = (group.index, slice(x.shape[1])), group.positions.places
        for number, layer in enumerate(layers):
            mask, angles = group.sights[body.kind(layer)]
            query, key, value = self._project(number, x, angles, here)
            if number < len(layers) - 1:
                context = attend_all(query, key, value, mask)
            else:
                x, context = x[wanted], attend(query[wanted], key, value, mask, group.positions)
            x = body.attention_output_and_mlp(layer, context, x)
        return x

    def _update(self, group: Group) -> Tensor:
        """(n, H) behind the last layer, from what changed and what is asked about alone."""
        body, layers = self.batch.body, self.batch.layers
        where, number_of, position_ids = self.batch.changes(group, and_asked=True)
        row, column, _ = where
        length = group.tokens.shape[1]
        places = (each.rows * length + each.columns for each in (where, group.positions))
        asked = torch.searchsorted(*places)  # which of them are asked about
        shift = None if group.shift is None else group.shift[row]
        x = body.embed(group.tokens[row, column][None], position_ids[row, column][None], shift)[0]
        for number, layer in enumerate(layers):
            mask, angles = group.sights[body.kind(layer)]
            query, *_ = self._project(number, x, angles, (number_of, column), column)
            key, value = self.kept[number][group.index, :length].unbind(dim=2)
            if number == len(layers) - 1:
                where, query, x = group.positions, query[asked], x[asked]
            x = body.attention_output_and_mlp(layer, attend(query, key, value, mask, where), x)
        return x

    def _project(
        self, number: int, x: Tensor, angles: Angles | None, here: Any, where: Any = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, d) of a layer with input x (..., H).

        here: where the keys and values are kept, of all rows. where: the positions that x holds.
        """
        body, layer = self.batch.body, self.batch.layers[number]
        projected = self.projections[number](body.attention_input(layer, x)).unflatten(-1, (3, body.heads, -1))
        query, key, value = turned(projected, body.norms(layer), angles, where)
        self.kept[number][here] = torch.stack((key, value), dim=-3)
        return query, key, value


def refused(refresh: int, why: str) -> ValueError:
    return ValueError(
        f"cache_refresh={refresh} keeps keys and values of backbones built like BERT, ModernBERT, NomicBERT or Llama "
        f"(eager or sdpa attention, at least two layers, no adapters or hooks): {why}; leave cache_refresh at None"
    )
