"""The exact fast path of generation: the logits of the full forward at the wanted positions, for less work.

    first layer    queries, keys and values are kept, and computed anew only where a token changed since the last call
    middle layers  the backbone's own modules
    last layer     query, attention output and MLP at the wanted positions only; keys and values nowhere where few are
                   wanted (`attend_unprojected`), else everywhere
    head           at the wanted positions only, and of as many of them at a time as the caller has room for

Nothing is approximated: what is skipped does not reach the logits that are asked for, or was computed before from the
same tokens. It works on the backbones of `backbones.py`; every other model takes the plain path, `model(...,
positions=...)`, which stays the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbones import Bert, Linear, packed_copy, recognise

_ROOM = {"cpu": 1 << 20}
"""Numbers of a hidden state that run through the layers at a time, whole rows each: bounds what a large batch needs."""

_ROOM_ELSEWHERE = 1 << 24
"""The same on accelerators, which want more to do at once."""

_PACK_FROM = 2
"""Calls after which the weights of the head are laid out anew for the CPU: a single step would not earn it back."""

_enabled = True


@contextmanager
def plain_path() -> Iterator[None]:
    """Within it, generate asks the model by its forward alone: for tests and benchmarks."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def round_up(count: int) -> int:
    """Rows that a CPU's matrix kernels are given for `count` rows: kernels are prepared for each new number."""
    block = 64 if count > 64 else 8 if count > 8 else 1
    return -(-count // block) * block


class FastForward:
    """The network for the calls of one `generate`: what it remembers lasts as long as it.

    Args:
        model: a `UDMForMaskedGeneration`; its weights stay as they are meanwhile.
        attention_mask: (B, L) bool, of the rows that the calls are about; ones, then zeros.
        lengths: (B,) editable positions of each row, for models conditioned on time.
    """

    all_layers = False
    """Whether all layers are run by their parts."""

    def __init__(self, model: Any, attention_mask: Tensor, lengths: Tensor):
        self.body = recognise(model, self.all_layers) if _enabled else None
        self.model, self.shape, self.calls = model, attention_mask.shape, 0
        self.attended = None if bool(attention_mask.all()) else attention_mask
        self.row_lengths, self.lengths = attention_mask.sum(dim=1).tolist(), lengths
        self._weights = list(model.parameters()) if self.body is not None else []
        self._stamp: int | None = None

    def _prepare(self, body: Bert) -> None:
        """Weights side by side, masks, and room for what is kept."""
        rows, length = self.shape
        embedding = self.model.get_input_embeddings().weight
        like = embedding.new_empty(1, 1, 1).expand(rows, length, 1)
        body.length = length
        room = _ROOM.get(embedding.device.type, _ROOM_ELSEWHERE)
        self.group = max(1, room // (length * body.config.hidden_size))  # rows
        self.masks = body.masks(like, None if self.attended is None else self.attended.long())
        self.layers: list[Any] = list(body.layers)
        self.decoder, self.packed = Linear(body.decoder), False
        self.where = torch.arange(length, device=embedding.device)
        self.tokens = torch.full(self.shape, -1, device=embedding.device)
        self.position_ids = torch.full(self.shape, -1, device=embedding.device)
        self._make_room(body, embedding)

    def _make_room(self, body: Bert, like: Tensor) -> None:
        """The first and the last layer's projections, and what is kept of the first. like: of the weights' kind."""
        hidden = body.config.hidden_size
        self.query, self.key_value = (body.project(self.layers[-1], *part) for part in ((0, hidden), (hidden, None)))
        if self.model.time_embedding is None:
            self.first = body.project(self.layers[0])
            self.input = like.new_empty(*self.shape, hidden)
            self.projected = like.new_empty(*self.shape, 3 * hidden)

    def __call__(self, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor | None:
        """(N, V) logits in the order of `positions.nonzero()`, or None: ask the model itself. See `hidden`."""
        rows = self.hidden(xt, t, positions)
        return None if rows is None else self.head(rows)

    def hidden(self, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor | None:
        """(N, H) behind the last layer in the order of `positions.nonzero()`, for `head`; None: ask the model itself.

        xt: (B, L) int64. t: (B,). positions: (B, L) bool.
        """
        body = self.body
        if body is None or xt.shape != self.shape or torch.is_grad_enabled() or self.model.training:
            return None
        if torch.is_autocast_enabled(xt.device.type):
            return None
        stamp = sum(weight._version for weight in self._weights if not weight.is_inference())
        if stamp != self._stamp:  # the first call, or a callback changed the weights
            self._prepare(body)
            self._stamp, self.calls = stamp, 0
        self.calls += 1
        return self._hidden(body, xt, t, positions)

    def head(self, rows: Tensor) -> Tensor:
        """(n, V) logits of rows (n, H) that `hidden` gave: any of them, as many at a time as there is room for."""
        assert self.body is not None
        surplus = round_up(len(rows)) - len(rows) if rows.device.type == "cpu" else 0
        x = self.body.head_transform(F.pad(rows, (0, 0, 0, surplus)))
        if self.calls >= _PACK_FROM and not self.packed:
            self.packed = True
            self._pack(len(x))
        return self.decoder(x)[: len(rows)]

    def _pack(self, rows: int) -> None:
        """The head always, which few rows go through; in bfloat16 the layers too (a product takes a fifth less)."""
        self.decoder.pack(rows)
        if self.decoder.packed is not None and self.decoder.weight.dtype == torch.bfloat16:
            tokens = min(self.shape[0], self.group) * self.shape[1]
            self.layers = [packed_copy(layer, tokens) for layer in self.layers]
            self._pack_projections(tokens)

    def _pack_projections(self, tokens: int) -> None:
        self.key_value.pack(tokens)

    def _hidden(self, body: Bert, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """(N, H) behind the last layer, by groups of rows."""
        asked = positions.any(dim=1).nonzero()[:, 0].tolist()
        groups = [asked[start : start + self.group] for start in range(0, len(asked), self.group)]
        parts = [self._group(body, self._index(rows), rows, xt, t, positions) for rows in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _index(self, rows: list[int]) -> Any:
        """The rows as a slice where they lie side by side (a view), else as a tensor (a copy)."""
        if rows[-1] - rows[0] == len(rows) - 1:
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self.where.device)

    def _masks(self, index: Any, length: int) -> dict[str, Any]:
        """The masks of some rows, cut at a length, by the kind of layer."""
        return {
            kind: mask if mask is None else (mask[index] if len(mask) > 1 else mask)[..., :length, :length]
            for kind, mask in self.masks.items()
        }

    def _shift(self, index: Any, t: Tensor, like: Tensor) -> Tensor | None:
        """(b, H): what a model conditioned on time adds to the embeddings of a row's tokens."""
        if self.model.time_embedding is None:
            return None
        return self.model.time_embedding(t[index] / self.lengths[index].clamp(min=1)).to(like.dtype)

    def _group(self, body: Bert, index: Any, rows: list[int], xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """(n, H) behind the last layer, of the rows of one group, cut at the longest of them."""
        length = max(self.row_lengths[row] for row in rows)
        tokens, wanted = xt[index, :length], positions[index, :length]
        masks, layers = self._masks(index, length), self.layers
        kept = self.model.time_embedding is None
        if kept:
            x, projected = self._first(body, index, rows, tokens)
            kind = body.kind(layers[0])
            parts = projected.unflatten(-1, (3, body.heads, -1)).unbind(dim=2)
            query, key, value = (part.transpose(1, 2) for part in parts)
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=masks[kind])
            x = body.attention_output_and_mlp(layers[0], context.transpose(1, 2).flatten(2), x)
        else:
            x = self.model.get_input_embeddings()(tokens)
            shift = self._shift(index, t, x)
            x = body.embeddings(inputs_embeds=x if shift is None else x + shift[:, None])
        for layer in layers[1:-1] if kept else layers[:-1]:
            x = body.run(layer, x, masks[body.kind(layer)])
        return self._last(body, layers[-1], x, masks[body.kind(layers[-1])], wanted)

    def _first(self, body: Bert, index: Any, rows: list[int], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Input (b, L, H) and queries, keys and values (b, L, 3H) of the first layer, brought up to date."""
        length = tokens.shape[1]
        row, column, number, position_ids = self._changes(body, index, tokens)
        if len(row):
            x = body.embed(tokens[row, column], position_ids[row, column])
            self.input[number, column] = x
            first = self.layers[0]
            projected = self.first(body.attention_input(first, x)).unflatten(-1, (3, body.heads, -1))
            query, key, value = projected.unbind(dim=1)
            parts = (body.apply_rotary(first, query, column), body.apply_rotary(first, key, column), value)
            self.projected[number, column] = torch.stack(parts, dim=1).flatten(1)
        return self.input[index, :length], self.projected[index, :length]

    def _changes(
        self, body: Bert, index: Any, tokens: Tensor, besides: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where tokens (b, L) differ from those of the last call, which they take the place of.

        besides: (b, L) bool, positions that count as changed. Returns row (n,) in the group, column (n,), row (n,) in
        the batch; and the position ids (b, L).
        """
        length = tokens.shape[1]
        position_ids = body.position_ids(tokens) if self.model.time_embedding is None else None
        if position_ids is None:
            position_ids = (self.where[:length] + body.first_position_id).expand_as(tokens)
        changed = (tokens != self.tokens[index, :length]) | (position_ids != self.position_ids[index, :length])
        row, column = (changed if besides is None else changed | besides).nonzero(as_tuple=True)
        number = row + index.start if isinstance(index, slice) else index[row]
        self.tokens[number, column], self.position_ids[number, column] = tokens[row, column], position_ids[row, column]
        return row, column, number, position_ids

    def _last(self, body: Bert, layer: Any, x: Tensor, mask: Tensor | None, wanted: Tensor) -> Tensor:
        """(n, H) behind the last layer at the wanted positions (b, L), from its input x (b, L, H)."""
        seen = body.attention_input(layer, x)
        row, column = wanted.nonzero(as_tuple=True)
        query = body.apply_rotary(layer, self.query(seen[row, column]).unflatten(-1, (body.heads, -1)), column)
        if not body.rotary and cheaper_unprojected(wanted, body.heads, x.shape[-1]):
            context = attend_unprojected(query, seen, self.key_value, mask, wanted)
        else:
            key, value = self.key_value(seen).unflatten(-1, (2, body.heads, -1)).unbind(dim=2)
            if body.rotary:
                flat = self.where[: x.shape[1]].expand_as(wanted).flatten()
                key = body.apply_rotary(layer, key.flatten(0, 1), flat).view_as(key)
            context = attend(query, key, value, mask, wanted)
        return body.attention_output_and_mlp(layer, context, x[row, column])


def cheaper_unprojected(where: Tensor, heads: int, hidden: int) -> bool:
    """Whether `attend_unprojected` is the cheaper for the positions `where` (b, L), by half the operations at least.

    Keys and values of a row are 4 L H^2 operations; without them each of its queries costs 4 H^2 + 4 heads L H instead.
    """
    length, width = where.shape[1], int(where.sum(dim=1).max())
    return 2 * width * (hidden + heads * length) <= length * hidden


def attend_unprojected(query: Tensor, x: Tensor, key_value: Linear, mask: Tensor | None, where: Tensor) -> Tensor:
    """(n, H): what `attend` gathers from the keys and values that `key_value` makes of x, neither of which is made.

    For few queries the maps change places: q (K x_j) = (q K) x_j, and sum_j a_j (V x_j + v) = V (sum_j a_j x_j) + v,
    since the a_j of a query sum to one. The bias of the keys adds the same to all scores of a query: none.

    query: (n, heads, d) of the positions `where` (b, L). x: (b, L, H). mask: (b or 1, 1, L, L), bool or added, or None.
    """
    _, heads, width = query.shape
    key, value = key_value.weight.view(2, heads, width, -1)
    queries, mask, row, slot = _side_by_side(torch.bmm(query.transpose(0, 1), key).transpose(0, 1), mask, where)
    if mask is not None:
        mask = mask.repeat_interleave(heads, dim=2)
    x = x[:, None]
    gathered = F.scaled_dot_product_attention(queries.flatten(1, 2)[:, None], x, x, attn_mask=mask, scale=width**-0.5)
    gathered = gathered[:, 0].unflatten(1, (-1, heads))[row, slot]
    context = torch.bmm(gathered.transpose(0, 1), value.transpose(1, 2)).transpose(0, 1).flatten(1)
    return context if key_value.bias is None else context + key_value.bias[heads * width :]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, where: Tensor) -> Tensor:
    """(n, heads * d): what the queries (n, heads, d) of the positions `where` (b, L) gather from keys and values.

    key, value: (b, L, heads, d). mask: (b or 1, 1, L, L), bool or added, or None.
    """
    queries, mask, row, slot = _side_by_side(query, mask, where)
    context = F.scaled_dot_product_attention(
        queries.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return context.transpose(1, 2)[row, slot].flatten(1)


def _side_by_side(query: Tensor, mask: Tensor | None, where: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Queries (b, w, ...) with those of each row side by side, their masks (b, 1, w, L), and the place of each.

    query: (n, ...) of the positions `where` (b, L). mask: (b or 1, 1, L, L) or None. The place of a query is row (n,)
    and slot (n,); slots behind the last query of a row hold zeros.
    """
    row, column = where.nonzero(as_tuple=True)
    slot = (where.cumsum(dim=1) - 1)[row, column]
    rows, width = len(where), int(slot.max()) + 1
    queries = query.new_zeros(rows, width, *query.shape[1:])
    queries[row, slot] = query
    if mask is not None:
        mask = mask.expand(rows, -1, -1, -1)[:, 0]
        shape = (rows, width, mask.shape[-1])
        chosen = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
        chosen[row, slot] = mask[row, column]
        mask = chosen[:, None]
    return queries, mask, row, slot
