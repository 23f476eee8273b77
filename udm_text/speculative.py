"""Exact speculative steps for masks: several tokens a round, by the law of one-token steps.

The order is drawn first. A round drafts the next k positions from the marginals at xt, all at once; one batched call
then reads k rows, row j with the first j drafts filled in, which gives the conditionals that one-token steps would have
used. Draft j is kept with probability min(1, p_j / q_j); at the first that is not, a token is drawn from the positive
part of p_j - q_j and the round ends. The first draft always stands, since its p is its q. Where all are kept, the last
row's marginals are the next drafts, and the draft call is saved.

The rule is that of speculative decoding (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), where a
second model drafts; here the network drafts for itself, as its marginals do not wait for one another. Kept or redrawn,
a token has the law min(p, q) + (p - q)+ = p, whatever q is: so the sampler's law is that of one-token steps for every
network, consistent or not (docs/generation.md, tests/test_speculative.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .constraints import Constraints
from .core import recover_noise
from .decoding import STATIC_ORDERS, draw, log_probabilities, truncate
from .predictors import MaskPredictor
from .processes import ranks
from .randomness import RowRandom

Marginals = Callable[[Tensor, Tensor, Tensor], Tensor]
"""marginals(xt (R, L) int64, t (R,) int64, positions (R, L) bool): (N, V) float64 log-probabilities, in the order of
`positions.nonzero()`. Rows without a position need not be computed."""


class Drafts(NamedTuple):
    """How drafts fared, (B, k) int64 each: column j counts the drafts of j further positions of the same round.

    tested: compared with their conditional. accepted: kept. Column 0 is never tested: its draft always stands.
    """

    tested: Tensor
    accepted: Tensor

    @property
    def acceptance(self) -> Tensor:
        """(k,) float64: the share of the tested drafts that were kept, over all rows; nan where none was tested.

        It falls with j: each further draft knows one token less. Take the k behind which too little is left of it.
        """
        tested, accepted = self.tested.sum(dim=0), self.accepted.sum(dim=0)
        return accepted.double() / tested


class Speculation(NamedTuple):
    """What `speculate` returns: the rows (B, L); what each took, (B,) int64; how its drafts fared.

    rounds: rounds until the row was done. calls: network calls it took part in. tokens: positions settled.
    """

    sequences: Tensor
    rounds: Tensor
    calls: Tensor
    tokens: Tensor
    drafts: Drafts

    @property
    def tokens_per_call(self) -> Tensor:
        """(B,) float64: positions settled for each call of a row; one-token steps have 1."""
        return self.tokens.double() / self.calls.clamp(min=1)


class Round(NamedTuple):
    """One round: the rows after it (B, L); `ahead` (B, k, V), the marginals of the next k positions where `ready` (B,).

    settled: (B,) positions settled. kept: (B,) of them drafts. tested: (B, k) bool. calls: (B,) network calls.
    """

    xs: Tensor
    ahead: Tensor
    ready: Tensor
    settled: Tensor
    kept: Tensor
    tested: Tensor
    calls: Tensor


def _ask(marginals: Marginals, xt: Tensor, t: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Marginals of rows (B, k, L) where wanted (B, k, L): (N, V), and the number (B, k, L) of each wanted one in it."""
    answer = marginals(xt.flatten(0, 1), t.flatten(), wanted.flatten(0, 1))
    return answer, (wanted.flatten().cumsum(0) - 1).clamp(min=0).view(wanted.shape)


def speculative_round(
    marginals: Marginals,
    xt: Tensor,
    place: Tensor,
    left: Tensor,
    ahead: Tensor | None,
    ready: Tensor,
    uniforms: tuple[Tensor, Tensor, Tensor],
) -> Round:
    """One round for every row that has positions left; the others rest.

    Args:
        xt: (B, L) int64. place: (B, L) int64, a permutation in each row: when a position's turn comes; those at the
            places below `left` (B,) are open.
        ahead: (B, k, V) float64, log-probabilities of the next k positions at xt, for the rows that are `ready` (B,).
        uniforms: float64 in (0, 1): (B, k) to draw the drafts, (B, k) to accept them, (B, 1) for the token in place of
            the first one that is not accepted.
    """
    u_draft, u_accept, u_again = uniforms
    k, slots = u_draft.shape[1], torch.arange(u_draft.shape[1], device=xt.device)
    live = slots < left[:, None]
    turns = pad(place.argsort(dim=1), (0, max(0, 2 * k - place.shape[1])))[:, : 2 * k]  # (B, 2k) positions
    calls = torch.zeros_like(left)

    lacking = (left > 0) & ~ready
    if ahead is None or lacking.any():  # the draft call: the first of a sequence's k rows is asked
        wanted = (lacking[:, None] & (place < left[:, None].clamp(max=k)))[:, None] & (slots == 0)[:, None]
        rows = xt[:, None].expand(-1, k, -1)
        answer, number = _ask(marginals, rows, left[:, None].expand(-1, k), wanted)
        drawn_from = answer[number[:, 0].gather(1, turns[:, :k])]
        ahead = drawn_from if ahead is None else torch.where(lacking[:, None, None], drawn_from, ahead)
        calls = calls + lacking
    q = ahead
    tokens = draw(q, u_draft)  # (B, k)

    # the verify call: row j = 1..k has the first j drafts; it is asked at the next position, the last at the next k
    filled = slots[:, None] + 1
    turn = place[:, None]
    rows = torch.where(turn < filled, _at(tokens, place)[:, None], xt[:, None])
    reach = filled + torch.where(filled == k, k, 1)
    wanted = (turn >= filled) & (turn < reach) & (turn < left[:, None, None])
    asked = wanted.flatten(1).any(dim=1)
    p, after = q[:, 1:], q
    if asked.any():
        answer, number = _ask(marginals, rows, left[:, None] - filled[:, 0], wanted)
        p = answer[number[:, :-1].gather(2, turns[:, 1:k, None])[:, :, 0]]  # (B, k - 1, V)
        after = answer[number[:, -1].gather(1, turns[:, k:])]  # (B, k, V)
        calls = calls + asked

    drafted = tokens[:, 1:, None]
    passes = u_accept[:, 1:] * q[:, 1:].gather(2, drafted)[..., 0].exp() < p.gather(2, drafted)[..., 0].exp()
    keep = live & pad(passes, (1, 0), value=True)
    kept = keep.long().cumprod(dim=1).sum(dim=1)
    refused = kept < left.clamp(max=k)
    tested = live & (slots >= 1) & (slots <= kept[:, None])

    batch, slot = torch.arange(len(xt), device=xt.device), kept.clamp(1, k - 1)
    again = draw(_positive_part(p[batch, slot - 1], q[batch, slot]), u_again[:, 0])
    tokens = torch.where(refused[:, None] & (slots == kept[:, None]), again[:, None], tokens)
    settled = kept + refused
    xs = torch.where(place < settled[:, None], _at(tokens, place), xt)
    return Round(xs, after, (kept == k) & (left > k), settled, kept, tested, calls)


def _at(tokens: Tensor, place: Tensor) -> Tensor:
    """(B, L): the token (B, k) whose turn it is at each position; meaningless at places from k on."""
    return tokens.gather(1, place.clamp(max=tokens.shape[1] - 1))


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
    """Fill in every masked editable position, by rounds of at most k tokens.

    The rows go through their rounds together and each uses its own numbers of a round, so that neither its neighbours
    nor how fast they are matters to it; a row that is done rests. A round that has to ask for its drafts settles at
    least two tokens with two calls (one with one call at the end of a row).

    Args:
        process: a process whose corrupted set is visible (`MaskProcess`). It draws the order, as it does in a step.
        marginals: see `Marginals`; asked with B * k rows, k in a row for each row of xt.
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
    ahead, ready = None, torch.zeros_like(left, dtype=torch.bool)
    rounds, calls, tokens = torch.zeros_like(left), torch.zeros_like(left), torch.zeros_like(left)
    tested = torch.zeros(len(xt), k, dtype=torch.int64, device=xt.device)
    accepted = tested.clone()
    for number in range(int(left.max()) if len(left) else 0):
        open_ = process.corrupted(xt, xt) & editable
        left = open_.sum(dim=1)
        if not left.any():
            break
        place = ranks((-keys).masked_fill(~open_, torch.inf))  # the largest key is the first to be revealed
        uniforms = random.uniform(k), random.uniform(k), random.uniform(1)
        done = speculative_round(marginals, xt, place, left, ahead, ready, uniforms)
        xt, ahead, ready = done.xs, done.ahead, done.ready
        rounds, calls, tokens = rounds + (left > 0), calls + done.calls, tokens + done.settled
        tested = tested + done.tested
        accepted = accepted + (done.tested & (torch.arange(k, device=xt.device) < done.kept[:, None]))
        if on_round is not None:
            before = xt.clone()
            replaced = on_round(number, xt, left - done.settled)
            xt = xt if replaced is None else replaced
            ready = ready & (xt == before).all(dim=1)  # marginals are those of the row as it was
    return Speculation(xt, rounds, calls, tokens, Drafts(tested, accepted))


class SpeculativePredictor(MaskPredictor):
    """Asks the network for k variants of each row at once. `canvas` is that of the B rows."""

    def __init__(self, model, process, config, canvas, random: RowRandom, constraints: Constraints | None = None):
        self.width: int = config.speculate
        spread = (x.repeat_interleave(self.width, dim=0) if isinstance(x, Tensor) else x for x in canvas)
        super().__init__(model, process, config, type(canvas)(*spread), random, constraints)

    def marginals(self, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """`Marginals` with constraints, temperature, top_k and top_p: p and q alike are what is drawn from."""
        places = positions.nonzero(as_tuple=True)
        return self._by_chunks(partial(self._law, xt), self.ask(xt, t, positions), *places)[0]

    def _law(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor]:
        config = self.config
        temperature = 1.0 if config.temperature is None else config.temperature
        log_probs = log_probabilities(self.constraints(logits, xt, rows, columns), temperature=temperature)
        if config.top_k is not None or config.top_p is not None:
            log_probs = truncate(log_probs, config.top_k, config.top_p)
        return (log_probs,)


_WORKS_WITH = frozenset(
    "speculate order guidance_scale temperature top_k top_p forbidden_tokens allowed_tokens length max_new_tokens "
    "num_return_sequences seed return_dict_in_generate output_trajectory".split()
)
"""Settings that mean the same with speculative steps; any other must be left at its default."""


def check_speculation(config, model_config, process) -> None:
    """Raises ValueError for settings that speculative steps cannot keep the law of."""
    if not process.visible:
        raise ValueError(
            f"speculate fills in masks; this model has process {model_config.process!r}, whose steps may change any "
            "position"
        )
    if config.order not in STATIC_ORDERS:
        raise ValueError(
            f"speculate draws the order first, so order must be one of {', '.join(map(repr, STATIC_ORDERS))}, got "
            f"{config.order!r}"
        )
    for name, default in config._defaults.items():
        value = getattr(config, name)
        if name not in _WORKS_WITH and value != default:
            raise ValueError(
                f"speculate keeps the law of one-token steps and does not go with {name}={value!r}: leave {name} at "
                f"{default!r}, or give speculate=None"
            )
