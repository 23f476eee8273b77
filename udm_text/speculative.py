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
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .common import choices
from .constraints import Constraints
from .core import recover_noise
from .decoding import STATIC_ORDERS, draw, log_probabilities, truncate
from .devices import reads_are_free
from .generation_options import refuse_beside_speculation
from .positions import Positions
from .predictors import MaskPredictor
from .processes import ranks
from .randomness import RowRandom

LogProbs = Callable[[Tensor], Tensor]
"""log_probs(which (n,) int64): (n, V) float64 log-probabilities of n of the positions that were asked about."""

Marginals = Callable[[Tensor, Tensor, Positions], LogProbs]
"""marginals(xt (R, L) int64, t (R,) int64, positions): one network call. Its `LogProbs` count the positions in their
order. Rows without a position need not be computed."""


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
    """One round: the rows after it (B, L); `ahead` (B, k, V), laws of the next k drafts, where `ready` (B,).

    settled: (B,) positions settled. kept: (B,) of them drafts. tested: (B, k) bool.
    """

    xs: Tensor
    ahead: Tensor | None
    ready: Tensor
    settled: Tensor
    kept: Tensor
    tested: Tensor


def speculative_round(
    marginals: Marginals,
    xt: Tensor,
    rank: Tensor,
    left: Tensor,
    ahead: Tensor | None,
    ready: Tensor,
    uniforms: tuple[Tensor, Tensor, Tensor],
    counts: list[tuple[int, bool]] | None = None,
) -> Round:
    """One round, one call, for every row that has positions left (some must); the others rest.

    Args:
        xt: (B, L) int64. rank: (B, L) int64, a permutation in each row: when a position's turn comes; those at the
            ranks below `left` (B,) are open.
        ahead: (B, k, V) float64, log-probabilities that the drafts of the next k positions are drawn from, for the rows
            that are `ready` (B,); the others have no drafts this time. None: no row has. The law does not depend on it.
        uniforms: float64 in (0, 1): (B, k) to draw the drafts, (B, k) to keep them, (B, 1) for the token behind those
            that are kept.
        counts: `left` and `ready` of each row, as the host knows them; None: they are read.
    """
    u_draft, u_keep, u_last = uniforms
    counts = _read(left, ready) if counts is None else counts
    k, batch = u_draft.shape[1], torch.arange(len(xt), device=xt.device)
    slots = torch.arange(k + 1, device=xt.device)
    order = pad(rank.argsort(dim=1), (0, max(0, 2 * k + 1 - rank.shape[1])))  # (B, 2k + 1 or more) positions
    tokens = xt.new_zeros(len(xt), k) if ahead is None else draw(ahead, u_draft)

    # row j = 0..k has the first j drafts; it is asked at the next position, and at the k behind for the drafts to come
    column_rank, filled = rank[:, None], slots[:, None]
    rows = torch.where(column_rank < filled, _at(tokens, rank)[:, None], xt[:, None])
    read = (slots < left[:, None]) & ((slots == 0) | ready[:, None])
    wanted = (
        read[..., None] & (column_rank >= filled) & (column_rank <= filled + k) & (column_rank < left[:, None, None])
    )
    asked = [min(k + 1, n - j) if j < n and (j == 0 or drafts) else 0 for n, drafts in counts for j in range(k + 1)]
    positions = Positions.of(wanted.flatten(0, 1), asked)
    log_probs = marginals(rows.flatten(0, 1), (left[:, None] - slots).flatten(), positions)
    number = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)
    p = _laid_out(log_probs, number.gather(2, order[:, : k + 1, None])[..., 0], read)  # (B, k + 1, V)

    offered = ready[:, None] & (slots[:k] < left[:, None])
    last_law, kept = p[:, 0], torch.zeros_like(left)
    if ahead is not None:
        log_p, log_q = (each.gather(2, tokens[..., None])[..., 0] for each in (p[:, :k], ahead))
        kept = (offered & (u_keep * log_q.exp() < log_p.exp())).long().cumprod(dim=1).sum(dim=1)
        refused = ready & (kept < left.clamp(max=k))
        last_law = p[batch, kept]
        rest = _positive_part(last_law, ahead[batch, kept.clamp(max=k - 1)])
        last_law = torch.where(refused[:, None], rest, last_law)
    last = draw(last_law, u_last[:, 0])
    settled = (kept + 1).minimum(left)
    tokens = torch.where(slots == kept[:, None], last[:, None], pad(tokens, (0, 1)))
    xs = torch.where(rank < settled[:, None], _at(tokens, rank), xt)

    following = kept[:, None] + 1 + slots[:k]  # turns of the next drafts, of the row with those kept
    known = following < left[:, None]
    ahead = None
    if max(n for n, _ in counts) > 1:
        ahead = _laid_out(log_probs, number[batch, kept].gather(1, order.gather(1, following)), known)
    return Round(xs, ahead, left > settled, settled, kept, offered & (slots[:k] <= kept[:, None]))


def _laid_out(log_probs: LogProbs, number: Tensor, known: Tensor) -> Tensor:
    """(B, n, V): the laws of those numbers (B, n) that are known (B, n); elsewhere any law."""
    if not reads_are_free(known.device):  # to learn how many are known would take longer than the law of all
        return log_probs(number.clamp(min=0).flatten()).unflatten(0, number.shape)
    if not known.any():
        return log_probs(number[:1, :1].flatten().clamp(min=0)).expand(*number.shape, -1)
    return log_probs(number[known])[(known.flatten().cumsum(0) - 1).clamp(min=0).view(known.shape)]


def _read(left: Tensor, ready: Tensor) -> list[tuple[int, bool]]:
    """Both of each row, by one read from the device."""
    pairs = torch.stack((left, ready.long()), dim=1).tolist()
    return [(n, bool(drafts)) for n, drafts in pairs]


def _at(tokens: Tensor, rank: Tensor) -> Tensor:
    """(B, L): the token (B, k) whose turn it is at each position; meaningless at ranks from k on."""
    return tokens.gather(1, rank.clamp(max=tokens.shape[1] - 1))


def _positive_part(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log (p - q)+ of (B, V), not normalised; log p where rounding leaves nothing of it."""
    rest = (log_p.exp() - log_q.exp()).clamp(min=0)
    return torch.where((rest > 0).any(dim=-1, keepdim=True), rest.log(), log_p)


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
    """
    if k < 2:
        raise ValueError(f"speculate must be at least 2, got {k}: one token a step is the ordinary sampler")
    scores = -torch.arange(xt.shape[1], device=xt.device).expand_as(xt) if left_to_right else None
    left = (process.corrupted(xt, xt) & editable).sum(dim=1)
    keys = recover_noise(process, xt, xt, left, editable=editable, random=random, scores=scores).keys
    ahead: Tensor | None = None
    ready = torch.zeros_like(left, dtype=torch.bool)
    rounds, tokens = torch.zeros_like(left), torch.zeros_like(left)
    tested = torch.zeros(len(xt), k, dtype=torch.int64, device=xt.device)
    accepted = tested.clone()
    most = int(left.max()) if len(left) else 0
    if most:
        random.expect(most)
    for number in range(most):
        open_ = process.corrupted(xt, xt) & editable
        left = open_.sum(dim=1)
        counts = _read(left, ready)
        if not any(n for n, _ in counts):
            break
        rank = ranks((-keys).masked_fill(~open_, torch.inf))  # the largest key is the first to be revealed
        u_draft, u_keep, u_last = random.uniform(2 * k + 1).split((k, k, 1), dim=1)
        uniforms = u_draft, u_keep, u_last
        done = speculative_round(marginals, xt, rank, left, ahead, ready, uniforms, counts)
        xt, ahead, ready = done.xs, done.ahead, done.ready
        rounds, tokens = rounds + (left > 0), tokens + done.settled
        tested = tested + done.tested
        accepted = accepted + (done.tested & (torch.arange(k, device=xt.device) < done.kept[:, None]))
        if on_round is not None:
            replaces = getattr(on_round, "replaces", True)
            before = xt.clone() if replaces else xt
            replaced = on_round(number, xt, left - done.settled)
            xt = xt if replaced is None else replaced
            if replaces:
                ready = ready & (xt == before).all(dim=1)  # ranks and marginals are those of the row as it was
    return Speculation(xt, rounds, tokens, Drafts(tested, accepted))


class SpeculativePredictor(MaskPredictor):
    """Asks the network for k + 1 variants of each row at once. `inputs` is that of the B rows."""

    def __init__(self, model, process, config, inputs, random: RowRandom, constraints: Constraints | None = None):
        rows = config.speculate + 1
        spread = (x.repeat_interleave(rows, dim=0) if isinstance(x, Tensor) else x for x in inputs)
        super().__init__(model, process, config, type(inputs)(*spread), random, constraints)

    def marginals(self, xt: Tensor, t: Tensor, positions: Positions) -> LogProbs:
        """`Marginals` with constraints, temperature, top_k and top_p: p and q alike are what is drawn from.

        Hidden rows of all positions are held, logits are made of those whose law is asked for.
        """
        rows, columns, _ = positions
        output = self.ask(xt, t, positions)

        def log_probs(which: Tensor) -> Tensor:
            some = output._replace(rows=output.rows[which])
            return self._by_chunks(partial(self._log_probs, xt), some, rows[which], columns[which])[0]

        return log_probs

    def _log_probs(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor]:
        config = self.config
        temperature = 1.0 if config.temperature is None else config.temperature
        log_probs = log_probabilities(self.constraints(logits, xt, rows, columns), temperature=temperature)
        if config.top_k is not None or config.top_p is not None:
            log_probs = truncate(log_probs, config.top_k, config.top_p)
        return (log_probs,)


def check_speculation(config) -> None:
    """Raises ValueError for settings that speculative steps cannot keep the law of."""
    if config.order not in STATIC_ORDERS:
        raise ValueError(
            f"speculate draws the order first, so order must be {choices(STATIC_ORDERS)}, got {config.order!r}"
        )
    refuse_beside_speculation(config)
