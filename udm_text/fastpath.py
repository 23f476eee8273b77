"""The exact fast path of generation: the logits of the full forward at the wanted positions, for less work.

    first layer    queries, keys and values are kept, and computed anew only where a token changed since the last call
    middle layers  the backbone's own modules
    last layer     query, attention output and MLP at the wanted positions only; keys and values nowhere where few are
                   wanted (`attend_unprojected`; keys that are turned by their positions everywhere), else everywhere
    head           at the wanted positions only, and of as many of them at a time as the caller has room for

Nothing is approximated: what is skipped does not reach the logits that are asked for, or was computed before from the
same tokens. It works on the backbones of `backbones.py`; every other model takes the plain path, `model(...,
positions=...)`, which stays the reference. What it shares with the approximation of `caching.py` is a `Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbones import Body, Linear, Sight, packed_copy, recognise, rotate, turned
from .devices import reads_are_free
from .positions import Positions

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


def known_body(model: Any, all_layers: bool = False) -> Body | None:
    """`recognise`, but None within `plain_path`."""
    return recognise(model, all_layers) if _enabled else None


def round_up(count: int) -> int:
    """Rows that a CPU's matrix kernels are given for `count` rows: kernels are prepared for each new number."""
    block = 64 if count > 64 else 8 if count > 8 else 1
    return -(-count // block) * block


class Forward(Protocol):
    """The network in the calls of one `generate`, by way of its backbone's parts: `FastForward`, `CachedForward`."""

    def hidden(self, xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None = None) -> Tensor | None:
        """(N, H) behind the last layer at the positions, for `head`; None: ask the model itself.

        xt: (B, L) int64. t: (B,). others: how many tokens of each row have changed since it was asked about last, but
        for those at `positions`; None where it is not known.
        """

    def head(self, rows: Tensor) -> Tensor:
        """(n, V) logits of rows (n, H) that `hidden` gave: any of them, as many at a time as there is room for."""


class Group(NamedTuple):
    """Rows that run through the layers together, b of them, cut at the longest."""

    index: Any
    """Which they are in the batch: a slice where they lie side by side (a view), else a tensor (a copy)."""
    tokens: Tensor
    """(b, L) int64."""
    positions: Positions
    """Those that are asked about."""
    others: list[int] | None
    """How many tokens of each row besides them have changed; None: it is not known."""
    sights: dict[str, Sight]
    """By the kind of layer."""
    shift: Tensor | None
    """(b, H), what a model conditioned on time adds to the embeddings of a row's tokens."""


class Batch:
    """The rows of one `generate` before a backbone of known parts, and what any `Forward` needs to run them.

    Args:
        body: the parts of the model's backbone.
        model, attention_mask, lengths: see `FastForward`.
    """

    def __init__(self, body: Body, model: Any, attention_mask: Tensor, lengths: Tensor):
        self.body, self.model, self.lengths, self.shape = body, model, lengths, attention_mask.shape
        self.attended = None if bool(attention_mask.all()) else attention_mask
        self.row_lengths = attention_mask.sum(dim=1).tolist()
        self.timed = model.time_embedding is not None
        self.weight: Tensor = model.get_input_embeddings().weight
        self.hidden_size = self.weight.shape[1]
        rows, length = self.shape
        like = self.weight.new_empty(1, 1, 1).expand(rows, length, 1)
        self.group = max(1, _ROOM.get(like.device.type, _ROOM_ELSEWHERE) // (length * self.hidden_size))  # rows
        self.reads_are_free = reads_are_free(like.device)
        self.sights = body.sights(like, None if self.attended is None else self.attended.long())
        self._weights, self._stamp = list(model.parameters()), -1
        self.calls = 0  # since the weights are what they are

    def takes(self, xt: Tensor) -> bool:
        """Whether the parts compute what the model would now: its rows, no gradients, training mode or autocast."""
        plain = xt.shape == self.shape and not torch.is_grad_enabled() and not self.model.training
        return plain and not torch.is_autocast_enabled(xt.device.type)

    def begin(self) -> bool:
        """Counts a call; whether nothing that was kept holds: it is the first, or a callback changed the weights."""
        stamp = sum(weight._version for weight in self._weights if not weight.is_inference())
        if stamp == self._stamp:
            self.calls += 1
            return False
        self._stamp, self.calls = stamp, 1
        self.layers: list[Any] = list(self.body.layers)
        self.decoder, self.packed = Linear(self.model.get_output_embeddings()), False
        self.true = torch.ones((), dtype=torch.bool, device=self.weight.device)
        self.tokens, self.position_ids = (torch.full(self.shape, -1, device=self.weight.device) for _ in range(2))
        return True

    def asked(self, positions: Positions) -> list[int]:
        """The rows to run: where the host would have to send which they are, those that nobody asks about, too."""
        return positions.asked if self.reads_are_free else list(range(self.shape[0]))

    def groups(
        self, rows: list[int], xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None = None
    ) -> Iterator[Group]:
        """The rows of those numbers that are asked about, as many at a time as there is room for."""
        for some in (rows[start : start + self.group] for start in range(0, len(rows), self.group)):
            own = positions.within(some)
            if not own.width:
                continue
            side_by_side = some[-1] - some[0] == len(some) - 1
            index = slice(some[0], some[-1] + 1) if side_by_side else torch.tensor(some, device=xt.device)
            length = max(self.row_lengths[row] for row in some)
            sights = {kind: sight.cut(index, length) for kind, sight in self.sights.items()}
            shift = None
            if self.timed:
                shift = self.model.time_embedding(t[index], self.lengths[index]).to(self.weight.dtype)
            changed = None if others is None else [others[row] for row in some]
            yield Group(index, xt[index, :length], own, changed, sights, shift)

    def changes(self, group: Group, and_asked: bool = False) -> tuple[Positions, Tensor, Tensor]:
        """Where the tokens of a group differ from those of its last call, which they take the place of.

        and_asked: the positions that are asked about count as changed, too; then the host may know how many there are.
        Returns them, rows of the group; their rows (n,) in the batch; and the position ids (b, L).
        """
        index, tokens = group.index, group.tokens
        before = index, slice(tokens.shape[1])
        position_ids = self.body.position_ids(tokens, embedded=self.timed)
        changed = (tokens != self.tokens[before]) | (position_ids != self.position_ids[before])
        counts = None
        if and_asked:
            asked = group.positions
            changed = changed.index_put(asked.places, self.true)
            if group.others is not None:
                counts = [a + b for a, b in zip(asked.counts, group.others, strict=True)]
        where = Positions.of(changed, counts)
        self.tokens[before], self.position_ids[before] = tokens, position_ids
        return where, where.rows + index.start if isinstance(index, slice) else index[where.rows], position_ids

    def renew(self, group: Group) -> Tensor:
        """The position ids (b, L) of a group; its tokens are those of its last call now."""
        before = group.index, slice(group.tokens.shape[1])
        self.tokens[before] = group.tokens
        self.position_ids[before] = position_ids = self.body.position_ids(group.tokens, embedded=self.timed)
        return position_ids

    def head(self, rows: Tensor, projections: list[Linear]) -> Tensor:
        """See `Forward.head`. projections: those that whole rows go through, packed where the layers are."""
        surplus = round_up(len(rows)) - len(rows) if rows.device.type == "cpu" else 0
        x = self.body.head_transform(F.pad(rows, (0, 0, 0, surplus)) if surplus else rows)
        if self.calls >= _PACK_FROM and not self.packed:
            self.packed = True
            self._pack(len(x), projections)
        return self.decoder(x)[: len(rows)]

    def _pack(self, rows: int, projections: list[Linear]) -> None:
        """The head always, which few rows go through; in bfloat16 the layers too (a product takes a fifth less)."""
        self.decoder.pack(rows)
        if self.decoder.packed is not None and self.decoder.weight.dtype == torch.bfloat16:
            tokens = min(self.shape[0], self.group) * self.shape[1]
            self.layers = [packed_copy(layer, tokens) for layer in self.layers]
            for projection in projections:
                projection.pack(tokens)


class FastForward:
    """The exact `Forward`: what it remembers lasts as long as it.

    Args:
        model: a `UDMForMaskedGeneration`; its weights stay as they are meanwhile.
        attention_mask: (B, L) bool, of the rows that the calls are about; ones, then zeros.
        lengths: (B,) editable positions of each row, for models conditioned on time.
    """

    def __init__(self, model: Any, attention_mask: Tensor, lengths: Tensor):
        self.body = known_body(model)
        if self.body is not None:
            self.batch = Batch(self.body, model, attention_mask, lengths)

    def hidden(self, xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None = None) -> Tensor | None:
        if self.body is None or not self.batch.takes(xt):
            return None
        if self.batch.begin():
            self._prepare()
        parts = [self._run(group) for group in self.batch.groups(self.batch.asked(positions), xt, t, positions)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def head(self, rows: Tensor) -> Tensor:
        return self.batch.head(rows, [self.key_value])

    def _prepare(self) -> None:
        """The first and the last layer's projections, and room for what is kept of the first."""
        batch, width = self.batch, self.batch.body.width
        first, last = (batch.body.projections(batch.layers[end]) for end in (0, -1))
        self.query, self.key_value = Linear(*last, end=width), Linear(*last, start=width)
        # What changed is found by reading it, and to compute all of it anew is one product more: free reads alone pay.
        self.keeps_first = batch.reads_are_free and not batch.timed
        if self.keeps_first:
            self.first = Linear(*first)
            self.input = batch.weight.new_empty(*batch.shape, batch.hidden_size)
            self.projected = batch.weight.new_empty(*batch.shape, 3, batch.body.heads, width // batch.body.heads)

    def _run(self, group: Group) -> Tensor:
        """(n, H) behind the last layer, of the rows of one group."""
        body, layers = self.batch.body, self.batch.layers
        if not self.keeps_first:
            shift = None if group.shift is None else group.shift[:, None]  # the time changes the input everywhere
            x, between = body.embed(group.tokens, shift=shift), layers[:-1]
        else:
            x, projected = self._first(group)
            query, key, value = projected.unbind(dim=2)
            context = attend_all(query, key, value, group.sights[body.kind(layers[0])].mask)
            x, between = body.attention_output_and_mlp(layers[0], context, x), layers[1:-1]
        for layer in between:
            x = body.run(layer, x, group.sights[body.kind(layer)])
        return self._last(group, layers[-1], x)

    def _first(self, group: Group) -> tuple[Tensor, Tensor]:
        """Input (b, L, H) and queries, keys and values (b, L, 3, heads, d) of the first layer, brought up to date."""
        body, layer = self.batch.body, self.batch.layers[0]
        (row, column, _), number, position_ids = self.batch.changes(group)
        if len(row):
            x = body.embed(group.tokens[row, column][None], position_ids[row, column][None])[0]
            self.input[number, column] = x
            projected = self.first(body.attention_input(layer, x)).unflatten(-1, (3, body.heads, -1))
            parts = turned(projected, body.norms(layer), group.sights[body.kind(layer)].angles, column)
            self.projected[number, column] = torch.stack(parts, dim=1)
        here = group.index, slice(group.tokens.shape[1])
        return self.input[here], self.projected[here]

    def _last(self, group: Group, layer: Any, x: Tensor) -> Tensor:
        """(n, H) behind the last layer at the wanted positions, from its input x (b, L, H)."""
        body, where = self.batch.body, group.positions
        where = where.before() if self.batch.model.config.shift_logits else where
        return last_layer(body, layer, x, self.query, self.key_value, group.sights[body.kind(layer)], where)


def last_layer(
    body: Body, layer: Any, x: Tensor, query: Linear, key_value: Linear, sight: Sight, where: Positions
) -> Tensor:
    """(n, H) behind a layer at the positions `where`, from its input x (b, L, H). query, key_value: its projections."""
    (mask, angles), norms = sight, body.norms(layer)
    seen, here = body.attention_input(layer, x), where.places

    def headed(x: Tensor, norm: Callable[[Tensor], Tensor] | None, where: Any = slice(None)) -> Tensor:
        x = x.unflatten(-1, (body.heads, -1))
        return rotate(x if norm is None else norm(x), angles, where)

    queries = headed(query(seen[here]), norms and norms.query, where.columns)
    if cheaper_unprojected(where.width, x.shape[1], body.heads, body.width):
        if angles is None and norms is None:
            context = attend_unprojected(queries, seen, key_value, mask, where)
        else:
            keys = headed(key_value.first(seen, body.width), norms and norms.key)
            context = attend_to_unprojected(queries, keys, seen, key_value, mask, where)
    else:
        key, value = key_value(seen).unflatten(-1, (2, -1)).unbind(dim=2)
        context = attend(queries, headed(key, norms and norms.key), value.unflatten(-1, (body.heads, -1)), mask, where)
    return body.attention_output_and_mlp(layer, context, x[here])


def cheaper_unprojected(queries: int, length: int, heads: int, width: int) -> bool:
    """Whether `attend_unprojected` is the cheaper for so many queries of a row, by half the operations at least.

    Keys and values of a row, W = `width` wide, are 4 L H W operations; without them each of its queries costs 4 H W + 4
    heads L H instead.
    """
    return 2 * queries * (width + heads * length) <= length * width


def attend_unprojected(query: Tensor, x: Tensor, key_value: Linear, mask: Tensor | None, where: Positions) -> Tensor:
    """(n, H): what `attend` gathers from the keys and values that `key_value` makes of x, neither of which is made.

    For few queries the maps change places: q (K x_j) = (q K) x_j, and sum_j a_j (V x_j + v) = V (sum_j a_j x_j) + v,
    since the a_j of a query sum to one. The bias of the keys adds the same to all scores of a query: none.

    query: (n, heads, d) of the positions `where`. x: (b, L, H). mask: (b or 1, 1, L, L), bool or added, or None.
    """
    _, heads, width = query.shape
    key, value = key_value.weight.view(2, heads, width, -1)
    queries, mask, slot = _side_by_side(torch.bmm(query.transpose(0, 1), key).transpose(0, 1), mask, where)
    if mask is not None:
        mask = mask.repeat_interleave(heads, dim=2)
    x = x[:, None]
    gathered = F.scaled_dot_product_attention(queries.flatten(1, 2)[:, None], x, x, attn_mask=mask, scale=width**-0.5)
    gathered = _one_by_one(gathered[:, 0].unflatten(1, (-1, heads)), where, slot)
    context = torch.bmm(gathered.transpose(0, 1), value.transpose(1, 2)).transpose(0, 1).flatten(1)
    return context if key_value.bias is None else context + key_value.bias[heads * width :]


def attend_to_unprojected(
    query: Tensor, key: Tensor, x: Tensor, key_value: Linear, mask: Tensor | None, where: Positions
) -> Tensor:
    """(n, H): what `attend` gathers from keys, and from the values that `key_value` makes of x, which are not made.

    As in `attend_unprojected`, where keys are turned by their positions and have to be made.

    query: (n, heads, d) of the positions `where`. key: (b, L, heads, d). x: (b, L, H). mask: as there.
    """
    _, heads, width = query.shape
    queries, mask, slot = _side_by_side(query, mask, where)
    scores = torch.matmul(queries.transpose(1, 2), key.permute(0, 2, 3, 1)) * width**-0.5  # (b, heads, w, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = scores.float().softmax(dim=-1).to(x.dtype) if x.dtype == torch.bfloat16 else scores.softmax(dim=-1)
    gathered = torch.bmm(shares.flatten(1, 2), x).unflatten(1, (heads, -1)).transpose(1, 2)  # (b, w, heads, H)
    gathered = _one_by_one(gathered, where, slot)
    value = key_value.weight.view(2, heads, width, -1)[1]
    context = torch.bmm(gathered.transpose(0, 1), value.transpose(1, 2)).transpose(0, 1).flatten(1)
    return context if key_value.bias is None else context + key_value.bias[heads * width :]


def attend_all(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(b, L, H): what all queries gather. query, key, value: (b, L, heads, d). mask: (b or 1, 1, L, L) or None."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, where: Positions) -> Tensor:
    """(n, heads * d): what the queries (n, heads, d) of the positions `where` gather from keys and values.

    key, value: (b, L, heads, d). mask: (b or 1, 1, L, L), bool or added, or None.
    """
    queries, mask, slot = _side_by_side(query, mask, where)
    context = F.scaled_dot_product_attention(
        queries.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return _one_by_one(context.transpose(1, 2), where, slot).flatten(1)


def _side_by_side(query: Tensor, mask: Tensor | None, where: Positions) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Queries (b, w, ...) with those of each row side by side, their masks (b, 1, w, L), and the slot (n,) of each.

    query: (n, ...) of the positions `where`. mask: (b or 1, 1, L, L) or None. Slots behind the last query of a row hold
    zeros; where every row has as many, no slot is named.
    """
    seen = None
    if mask is not None:
        seen = mask[:, 0][where.rows, where.columns] if len(mask) > 1 else mask[0, 0][where.columns]
    rows, width = len(where.counts), where.width
    if min(where.counts) == width:
        together = (rows, width)
        return query.unflatten(0, together), None if seen is None else seen.unflatten(0, together)[:, None], None
    slot = torch.arange(len(query), device=query.device) - torch.searchsorted(where.rows, where.rows)
    queries = query.new_zeros(rows, width, *query.shape[1:])
    queries[where.rows, slot] = query
    if seen is not None:
        shape = (rows, 1, width, seen.shape[-1])
        mask = seen.new_ones(shape) if seen.dtype == torch.bool else seen.new_zeros(shape)
        mask[:, 0][where.rows, slot] = seen
    return queries, mask, slot


def _one_by_one(x: Tensor, where: Positions, slot: Tensor | None) -> Tensor:
    """(n, ...): of what the queries of `_side_by_side` gave (b, w, ...), that of each."""
    return x.flatten(0, 1) if slot is None else x[where.rows, slot]
