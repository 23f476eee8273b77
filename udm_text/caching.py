"""An approximation of the network, several times cheaper a call: keys and values are kept, seldom brought up to date.

In every r-th call of a row all of it runs through all layers, and the keys and values of each layer are kept. In the
calls between, only the positions whose token changed since the row's last call and those that are asked about run
through the layers; they attend to what was kept, where their own keys and values take the place of the old ones. What
every other position would now say is what it said at the last refresh: that is the error, and it does not vanish
with anything but r. It is no sampler of the model's law; benchmarks/generation.py measures how far off it is.

The calls of a row are counted for the row, so that what becomes of it does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .fastpath import FastForward, attend


class CachedForward(FastForward):
    """`FastForward` with the keys and values of all layers kept between calls.

    Memory beside the model's: 2 * layers * B * L * hidden numbers, whatever the number of calls.

    Args:
        refresh: r >= 1, calls of a row from one refresh to the next; 1 keeps nothing that is used (exact).

    Raises:
        ValueError: where the model is not one whose layers can be run by their parts.
    """

    all_layers = True

    def __init__(self, model: Any, attention_mask: Tensor, lengths: Tensor, refresh: int):
        super().__init__(model, attention_mask, lengths)
        if self.body is None:
            raise refused(refresh, f"{type(getattr(model, 'backbone', model)).__name__} as it is here is none of them")
        self.refresh = refresh

    def _make_room(self, body: Any, like: Tensor) -> None:
        self.age = [0] * self.shape[0]  # calls of each row
        self.projections = [body.project(layer) for layer in self.layers]
        width = body.config.hidden_size // body.heads
        self.kept = [like.new_zeros(*self.shape, 2, body.heads, width) for _ in self.layers]

    def hidden(self, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor | None:
        rows = super().hidden(xt, t, positions)
        if rows is None:
            raise refused(self.refresh, "not under autocast, with gradients, or in training mode")
        return rows

    def _pack_projections(self, tokens: int) -> None:
        for projection in self.projections:
            projection.pack(tokens)

    def _hidden(self, body: Any, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        asked = positions.any(dim=1).nonzero()[:, 0].tolist()
        due = [row for row in asked if self.age[row] % self.refresh == 0]
        rest = [row for row in asked if self.age[row] % self.refresh]
        number = positions.nonzero()[:, 0]
        out = self.kept[0].new_empty(len(number), body.config.hidden_size)
        size = self.group
        for rows, run in ((due, self._refresh_rows), (rest, self._update_rows)):
            for group in (rows[start : start + size] for start in range(0, len(rows), size)):
                here = torch.zeros(self.shape[0], dtype=torch.bool, device=out.device)
                here[group] = True
                out[here[number]] = run(body, self._index(group), group, xt, t, positions)
        for row in asked:
            self.age[row] += 1
        return out

    def _refresh_rows(self, body: Any, index: Any, rows: list[int], xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """(n, H) behind the last layer, exact; all keys and values of the rows of the group are kept."""
        length = max(self.row_lengths[row] for row in rows)
        tokens, wanted = xt[index, :length], positions[index, :length]
        masks, where = self._masks(index, length), self.where[:length].repeat(len(rows))
        *_, position_ids = self._changes(body, index, tokens)
        shift = self._shift(index, t, self.kept[0])
        shift = None if shift is None else shift.repeat_interleave(length, dim=0)
        x = body.embed(tokens.flatten(), position_ids.flatten(), shift).view(*tokens.shape, -1)
        row, column = wanted.nonzero(as_tuple=True)
        for number, layer in enumerate(self.layers):
            mask, last = masks[body.kind(layer)], number == len(self.layers) - 1
            projected = self.projections[number](body.attention_input(layer, x)).unflatten(-1, (3, body.heads, -1))
            query, key, value = projected.unbind(dim=2)
            if body.rotary:
                query, key = (
                    body.apply_rotary(layer, part.flatten(0, 1), where).view_as(part) for part in (query, key)
                )
            self.kept[number][index, :length] = torch.stack((key, value), dim=2)
            if last:
                x, context = x[row, column], attend(query[row, column], key, value, mask, wanted)
            else:
                query, key, value = (part.transpose(1, 2) for part in (query, key, value))
                context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
            x = body.attention_output_and_mlp(layer, context, x)
        return x

    def _update_rows(self, body: Any, index: Any, rows: list[int], xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """(n, H) behind the last layer, from what changed and what is asked about alone."""
        length = max(self.row_lengths[row] for row in rows)
        tokens, wanted = xt[index, :length], positions[index, :length]
        masks = self._masks(index, length)
        row, column, number_of, position_ids = self._changes(body, index, tokens, wanted)
        active = torch.zeros_like(wanted)
        active[row, column] = True
        shift = self._shift(index, t, self.kept[0])
        x = body.embed(tokens[row, column], position_ids[row, column], None if shift is None else shift[row])
        asked = wanted[row, column]
        for number, layer in enumerate(self.layers):
            projected = self.projections[number](body.attention_input(layer, x)).unflatten(-1, (3, body.heads, -1))
            query, key, value = projected.unbind(dim=1)
            query, key = body.apply_rotary(layer, query, column), body.apply_rotary(layer, key, column)
            self.kept[number][number_of, column] = torch.stack((key, value), dim=1)
            keys, values = self.kept[number][index, :length].unbind(dim=2)
            where = active
            if number == len(self.layers) - 1:
                query, x, where = query[asked], x[asked], wanted
            x = body.attention_output_and_mlp(layer, attend(query, keys, values, masks[body.kind(layer)], where), x)
        return x


def refused(refresh: int, why: str) -> ValueError:
    return ValueError(
        f"cache_refresh={refresh} keeps keys and values of backbones built like BERT, RoBERTa or ModernBERT (eager or "
        f"sdpa attention, at least two layers, no adapters or hooks): {why}; leave cache_refresh at None"
    )
