"""Exact speculative steps for masks: several tokens a network call, by the law of one-token steps.

The order is drawn first, and a round is one batched call. It reads k + 1 rows, row j with the first j of k drafts
filled in, which gives the conditionals p that one-token steps would have used. A draft is kept with probability
min(1, p / q), where q is what it was drawn from; at the first that is not, a token is drawn from the positive part of
p - q; where all are kept, one more is drawn from the last row's p. The row that holds exactly the drafts that were kept
was asked at the positions behind, too: its marginals there are the q of the next k drafts, so that drafting has no call
of its own. In the first round nothing was drafted: a token is drawn from p.

The rule is that of speculative decoding (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), where a
second model drafts; here the network drafts for itself, as its marginals do not wait for one another. Kept or redrawn,
a token has the law min(p, q) + (p - q)+ = p, whatever q is: so the sampler's law is that of one-token steps for every
network, consistent or not (docs/generation.md, tests/test_speculative.py). Drafts behind the first that is not kept
are thrown away, and nothing that stays was computed from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .common import choices
from .constraints import Constraints
from .core import recover_noise
from .decoding import STATIC_ORDERS, draw_weighted, tempered, truncate
from .devices import reads_are_free
from .generation_options import refuse_beside_speculation
from .positions import Positions
from .predictors import MaskPredictor
from .randomness import RowRandom

_ROOM = 1 << 25
"""Probabilities that are held where every position of a round is asked about, at most: 256 MiB."""

_TRACE = 2.0**-1000
"""The share of p that is left in (p - q)+: it counts only where rounding leaves nothing else."""

Laws = Callable[[Tensor | None], Tensor]
"""laws(which (n,) int64): (n, V) float64, the probabilities at n of the positions that were asked about; None: all."""

Marginals = Callable[[Tensor, Tensor, Positions], Laws]
"""marginals(xt (R, L) int64, t (R,) int64, positions): one network call. Its `Laws` count the positions in their order.
Rows without a position need not be computed."""


class Drafts(NamedTuple):
    """How drafts fared, (B, k) int64 each: column j counts the drafts behind j others of the same round.

    tested: compared with their conditional. accepted: kept.
    """

    tested: Tensor
    accepted: Tensor

    @property
    def acceptance(self) -> Tensor:
        """(k,) float64: the share of the tested drafts that were kept, over all rows; nan where none was tested.

        Each further draft knows one token less. Take the k behind which too little is left of it.
        """
        tested, accepted = self.tested.sum(dim=0), self.accepted.sum(dim=0)
        return accepted.double() / tested


class Speculation(NamedTuple):
    """What `speculate` returns: the rows (B, L); what each took, (B,) int64; how its drafts fared.

    rounds: rounds until the row was done, a network call each. tokens: positions settled.
    """

    sequences: Tensor
    rounds: Tensor
    tokens: Tensor
    drafts: Drafts

    @property
    def tokens_per_call(self) -> Tensor:
        """(B,) float64: positions settled for each call of a row; one-token steps have 1."""
        return self.tokens.double() / self.rounds.clamp(min=1)


class Round(NamedTuple):
    """One round: the rows after it (B, L); `ahead` (B, k, V), laws of the next k drafts, in rows that are `ready`.

    settled: (B,) positions settled; left: (B,) positions that remain. kept: (B,) how many drafts were kept before one
    was not; those of turns that a row does not have may count among them.
    """

    xs: Tensor
    ahead: Tensor | None
    settled: Tensor
    left: Tensor
    kept: Tensor

    @property
    def ready(self) -> Tensor:
        """(B,) bool: the rows that `ahead` holds laws for."""
        return self.left > 0


def speculative_round(
    marginals: Marginals,
    xt: Tensor,
    turns: Tensor,
    left: Tensor,
    ahead: Tensor | None,
    ready: Tensor | None,
    uniforms: tuple[Tensor, Tensor, Tensor],
    counts: list[tuple[int, bool]] | None = None,
) -> Round:
    """One round, one call, for every row that has positions left (some must); the others rest.

    Args:
        xt: (B, L) int64. left: (B,) positions of each row that are open. turns: (B, 2k + 1) int64, the next of them in
            the order of their turns; L behind the last.
        ahead: (B, k, V) float64, the probabilities that the drafts of the next k positions are drawn by, for the rows
            that are `ready` (B,) bool (None: all that have positions left); the others have no drafts this time. None:
            no row has. The law does not depend on it.
        uniforms: float64 in (0, 1): (B, k) to draw the drafts, (B, k) to keep them, (B, 1) for the token behind those
            that are kept.
        counts: `left` and `ready` of each row, as the host knows them: `marginals` is asked about what is open. None:
            about as many positions of every row, whatever stands there, so that no size depends on the rows.
    """
    u_draft, u_keep, u_last = uniforms
    (batch, length), k = xt.shape, u_draft.shape[1]
    row, slots, later, askers = _constants(batch, k, str(xt.device))
    drafts = xt.new_zeros(batch, k) if ahead is None else draw_weighted(ahead, u_draft)

    # row j = 0..k has the first j drafts, and is asked at the next position and at the k behind for the drafts to come
    written = turns[:, None, :k].masked_fill(later, length)  # what is written at position L is not read
    rows = pad(xt, (0, 1))[:, None].expand(-1, k + 1, -1)
    rows = rows.scatter(2, written, drafts[:, None].expand(-1, k + 1, -1))
    windows = turns.unfold(1, k + 1, 1)
    network = partial(marginals, rows[..., :length].flatten(0, 1), (left[:, None] - slots).flatten())
    if counts is None:
        asked = _ask_everywhere(network, windows, length, askers)
    else:
        asked = _ask(network, windows, length, ready, counts)

    if ahead is None:
        kept = torch.zeros_like(left)
        law, following = asked.after(row, kept)
    else:
        p, q = (each.gather(2, drafts[..., None])[..., 0] for each in (asked.first[:, :k], ahead))
        keeps = u_keep * q < p
        keeps = keeps if ready is None else keeps & ready[:, None]
        kept = keeps.cumprod(dim=1).sum(dim=1)
        law, following = asked.after(row, kept)
        taken = pad(ahead, (0, 0, 0, 1))[row, kept]  # nothing where all were kept
        law = _positive_part(law, taken if ready is None else taken.masked_fill(~ready[:, None], 0.0))
    last = draw_weighted(law, u_last[:, 0])
    xs = rows[row, kept].scatter(1, turns.gather(1, kept[:, None]), last[:, None])[:, :length].contiguous()
    settled = (kept + 1).minimum(left)
    return Round(xs, following, settled, left - settled, kept)


@lru_cache(maxsize=64)
def _constants(batch: int, k: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """0..B-1; 0..k; (k + 1, k) bool, which drafts row j = 0..k does not have; and (B (k + 1)^2,), the row of each
    position where all B (k + 1) rows are asked at k + 1. They are made on a device once."""
    with torch.inference_mode(False):
        row, slots = torch.arange(batch, device=device), torch.arange(k + 1, device=device)
        askers = torch.arange(batch * (k + 1), device=device)[:, None].expand(-1, k + 1).flatten()
        return row, slots, slots[:k] >= slots[:, None], askers


class _Asked(NamedTuple):
    """What the network says in a round. first: (B, k + 1, V), the laws of the next position, of each row j.
    after(0..B-1, kept (B,)): of the row with the drafts kept, the law of its next position, (B, V), and those of the k
    behind it, (B, k, V) or None where no row has any."""

    first: Tensor
    after: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def _ask_everywhere(network: Callable[[Positions], Laws], windows: Tensor, length: int, askers: Tensor) -> _Asked:
    """All k + 1 rows of each row at k + 1 positions: `windows` (B, k + 1, k + 1), or the last where none is left."""
    batch, size, _ = windows.shape
    positions = Positions(askers, windows.clamp(max=length - 1).flatten(), [size] * (batch * size))
    laws = network(positions)(None).view(batch, size, size, -1)

    def after(row: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        own = laws[row, kept]
        return own[:, 0], own[:, 1:]

    return _Asked(laws[:, :, 0], after)


def _ask(
    network: Callable[[Positions], Laws],
    windows: Tensor,
    length: int,
    ready: Tensor | None,
    counts: list[tuple[int, bool]],
) -> _Asked:
    """Rows that have their drafts, at the positions of `windows` (B, k + 1, k + 1) that there are."""
    size = windows.shape[1]
    live = windows < length
    if ready is not None:
        live = live & (ready[:, None, None] | (torch.arange(size, device=windows.device) == 0)[:, None])
    numbers = [min(size, n - j) if j < n and (j == 0 or drafts) else 0 for n, drafts in counts for j in range(size)]
    places = Positions.of(live.flatten(0, 1), numbers)
    laws = network(places._replace(columns=windows.flatten(0, 1)[places.places]))
    number = (live.flatten().cumsum(0) - 1).view(live.shape)

    first = _laid_out(laws, number[:, :, 0], live[:, :, 0])

    def after(row: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        if max(n for n, _ in counts) <= 1:
            return first[row, kept], None
        return first[row, kept], _laid_out(laws, number[row, kept][:, 1:], live[row, kept][:, 1:])

    return _Asked(first, after)


def _laid_out(laws: Laws, number: Tensor, known: Tensor) -> Tensor:
    """(B, n, V): the laws of those numbers (B, n) that are known (B, n); elsewhere any law."""
    if not reads_are_free(known.device):  # to learn how many are known would take longer than the law of all
        return laws(number.clamp(min=0).flatten()).unflatten(0, number.shape)
    if not known.any():
        return laws(number[:1, :1].flatten().clamp(min=0)).expand(*number.shape, -1)
    return laws(number[known])[(known.flatten().cumsum(0) - 1).clamp(min=0).view(known.shape)]


def _positive_part(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)+ of (B, V), not normalised; p, but for a factor, where rounding leaves nothing of it."""
    return (p - q).clamp_(min=0).add_(p, alpha=_TRACE)


def speculate(
    process,
    marginals: Marginals,
    xt: Tensor,
    k: int,
    *,
    editable: Tensor,
    random: RowRandom,
    left_to_right: bool = False,
    on_round: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    everywhere: bool = False,
) -> Speculation:
    """Fill in every masked editable position, by rounds of one to k + 1 tokens and one network call each.

    The rows go through their rounds together and each uses its own numbers of a round, so that neither its neighbours
    nor how fast they are matters to it; a row that is done rests. The first round of a row settles one
    token, since nothing was drafted yet, and every other at least one, as a one-token step does.

    Args:
        process: a process whose corrupted set is visible (`MaskProcess`). It draws the order, as it does in a step.
        marginals: see `Marginals`; asked with B * (k + 1) rows, k + 1 in a row for each row of xt.
        xt: (B, L) int64. editable: (B, L) bool.
        on_round: called as on_round(round, xs, left) after each round, left (B,) int64 the masks that remain; a tensor
            it returns replaces xs: what it filled in is settled, what it masked is open. There are never more rounds
            than there were masks in the first place.
        everywhere: whether `marginals` is asked about as many positions of every row, whatever stands there: more than
            is needed, and for a device less to do, since it need not say or be told which.
    """
    if k < 2:
        raise ValueError(f"speculate must be at least 2, got {k}: one token a step is the ordinary sampler")
    scores = -torch.arange(xt.shape[1], device=xt.device).expand_as(xt) if left_to_right else None
    open_ = process.corrupted(xt, xt) & editable
    left = open_.sum(dim=1)
    keys = recover_noise(process, xt, xt, left, editable=editable, random=random, scores=scores).keys
    order, ends = _in_turn(keys, open_, k)
    replaces = on_round is not None and getattr(on_round, "replaces", True)
    ahead: Tensor | None = None
    ready = torch.zeros_like(left, dtype=torch.bool)
    none, all_rows = torch.zeros_like(left), torch.ones_like(ready)
    rounds = [(none, none, none, ready)]  # of each: left, settled, kept, ready
    most = int(left.max()) if len(left) else 0
    if most:
        random.expect(most)
    for number in range(most):
        counts = None if everywhere else _read(left, ready)
        if not any(left.tolist() if counts is None else (n for n, _ in counts)):
            break
        u_draft, u_keep, u_last = random.uniform(2 * k + 1).split((k, k, 1), dim=1)
        turns = order.gather(1, ends - left[:, None])
        drafted = ready if replaces or not everywhere else None
        done = speculative_round(marginals, xt, turns, left, ahead, drafted, (u_draft, u_keep, u_last), counts)
        rounds.append((left, done.settled, done.kept, ready))
        xt, ahead, left = done.xs, done.ahead, done.left
        ready = all_rows if drafted is None else done.ready
        if on_round is not None:
            as_it_was = xt.clone() if replaces else xt
            replaced = on_round(number, xt, left)
            xt = xt if replaced is None else replaced
            if replaces:
                ready = ready & (xt == as_it_was).all(dim=1)  # turns and laws are those of the row as it was
                open_ = process.corrupted(xt, xt) & editable
                left = open_.sum(dim=1)
                order, ends = _in_turn(keys, open_, k)
    before, settled, kept, drafted = (torch.stack(each) for each in zip(*rounds, strict=True))
    return Speculation(xt, (before > 0).sum(dim=0), settled.sum(dim=0), _fared(before, kept, drafted, k))


def _in_turn(keys: Tensor, open_: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, L + 2k + 1): the open (B, L) positions by their turns, that of the largest key first, and L behind them; and
    (B, 2k + 1) where among these the next turns stand when none is left: with n left, n before."""
    length = open_.shape[1]
    count = open_.sum(dim=1, keepdim=True)
    order = (-keys).masked_fill(~open_, torch.inf).argsort(dim=1, stable=True)
    order = order.masked_fill(torch.arange(length, device=keys.device) >= count, length)
    return pad(order, (0, 2 * k + 1), value=length), count + torch.arange(2 * k + 1, device=keys.device)


def _read(left: Tensor, ready: Tensor) -> list[tuple[int, bool]]:
    """Both of each row, by one read from the device."""
    pairs = torch.stack((left, ready.long()), dim=1).tolist()
    return [(n, bool(drafts)) for n, drafts in pairs]


def _fared(left: Tensor, kept: Tensor, ready: Tensor, k: int) -> Drafts:
    """How the drafts of R rounds fared. left, kept: (R, B) int64; ready: (R, B) bool, rows that had drafts."""
    slots = torch.arange(k, device=left.device)
    offered = ready[..., None] & (slots < left[..., None])
    tested, accepted = (offered & here for here in (slots <= kept[..., None], slots < kept[..., None]))
    return Drafts(tested.sum(dim=0), accepted.sum(dim=0))


class SpeculativePredictor(MaskPredictor):
    """Asks the network for k + 1 variants of each row at once. `inputs` is that of the B rows."""

    def __init__(self, model, process, config, inputs, random: RowRandom, constraints: Constraints | None = None):
        rows = config.speculate + 1
        spread = (x.repeat_interleave(rows, dim=0) if isinstance(x, Tensor) else x for x in inputs)
        super().__init__(model, process, config, type(inputs)(*spread), random, constraints)

    @property
    def asks_everywhere(self) -> bool:
        """See `speculate`. A processor of the user is shown nothing but what is asked of the rows."""
        rows, width = self.editable.shape[0], self.config.speculate + 1
        fits = rows * width * self.model.config.vocab_size <= _ROOM
        return fits and self.constraints.processor is None and not reads_are_free(self.editable.device)

    def marginals(self, xt: Tensor, t: Tensor, positions: Positions) -> Laws:
        """`Marginals` with constraints, temperature, top_k and top_p: p and q alike are what is drawn from.

        Hidden rows of all positions are held, logits are made of those whose law is asked for.
        """
        rows, columns, _ = positions
        output = self.ask(xt, t, positions)

        def laws(which: Tensor | None) -> Tensor:
            if which is None:
                return self._by_chunks(partial(self._law, xt), output, rows, columns)[0]
            some = output._replace(rows=output.rows[which])
            return self._by_chunks(partial(self._law, xt), some, rows[which], columns[which])[0]

        return laws

    def _law(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor]:
        config = self.config
        temperature = 1.0 if config.temperature is None else config.temperature
        scores = tempered(self.constraints(logits, xt, rows, columns), temperature=temperature)
        if config.top_k is None and config.top_p is None:
            return (scores.softmax(dim=-1),)
        return (truncate(scores, config.top_k, config.top_p).exp(),)


def check_speculation(config) -> None:
    """Raises ValueError for settings that speculative steps cannot keep the law of."""
    if config.order not in STATIC_ORDERS:
        raise ValueError(
            f"speculate draws the order first, so order must be {choices(STATIC_ORDERS)}, got {config.order!r}"
        )
    refuse_beside_speculation(config)
