"""Count-based bounds on -log p(x0), in nats, and the losses that estimate them.

t is drawn uniformly from {1..l} and F_t corrupts exactly t of the l editable positions; S is the corrupted set and
CE_i = -log p_i(x0_i | xt). All bounds are sums over t, so l times a term at a uniform t is an unbiased estimate.

    mask        NELBO = sum_t (1/t) E sum_{i in S} CE_i
    substitute  NELBO = l log(V/(V-1)) + sum_t E [ -log t - (1/t) sum_{i in S} log p(i -> x0_i) ]
    uniform     NELBO = sum_t E [ (1/t) sum_{i in D} (CE_i + log((R+c)/t)) + (t-d)/t log((t-d)/t (R+c)/c) ]
    delete      NELBO = sum_t E [ -log t + (1/t) sum_{i in S} (log d_i - log p(gap of i, x0_i)) ]

Sources: mask, Ou et al. 2406.03736 (the any-order autoregressive bound) in count form; the others, derived in
docs/mathematics.md and checked by enumeration in tests/oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .canvas import close, gaps, justify, read, single_insertions, symbol_pair
from .cross_entropy import cross_entropy
from .hamming import NEVER
from .kernels import KERNELS, Change, Kernel, log_rest
from .positions import ROW_BLOCK, Positions
from .randomness import RowRandom
from .subsequences import last_embedding, log_embeddings

if TYPE_CHECKING:
    from .processes import TokenProcess

LOSSES = ("cross_entropy", "nelbo")
TIME_LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "bell": lambda u: 0.5 - torch.sin(torch.asin(1.0 - 2.0 * u) / 3.0),
    "clipped": lambda u: 0.1 + 0.9 * u,
}
"""Laws of the share t/l that training corrupts, as inverse distribution functions: uniform, which the bound is made of;
the density 6 u (1 - u), which asks about middle shares; and uniform above a tenth, without the rows where next to
nothing is missing."""
GEOMETRIC = "geometric"
"""A law of the number of errors, for repairers: with each error more half as many rows."""
LOSS_WEIGHTINGS = {"bound": 1.0, "sqrt": 0.5, "mean": 0.0}
"""p by name: training weighs a row with t of l corrupted positions by (l/t)^p, up to a constant."""


def stratified_counts(lengths: Tensor, index: Tensor, total: int, seed: int, step: int, law: str = "uniform") -> Tensor:
    """t of each row, in {1..l} by a law, stratified over a global batch of `total` rows.

    Row `index` gets one of `total` equal strata of (0, 1), by a permutation that every process draws alike.

    Args:
        lengths: (B,) int64, l >= 1 of each row. index: (B,) int64 in 0..total-1, the rows' places in the global batch.
        seed, step: what the permutation and the place inside the stratum depend on.
        law: one of `TIME_LAWS`, or `GEOMETRIC`; "uniform" makes every t of a row as likely.

    Returns:
        (B,) int64 in 1..l.
    """
    source = RowRandom(seed, torch.tensor([step], device=lengths.device))
    stratum = source.uniform(total)[0].argsort()[index]
    inside = source.uniform(total)[0][index]
    share = share_of_counts((stratum + inside) / total, lengths, law)
    return (share * lengths).long().clamp(max=lengths - 1) + 1


def share_of_counts(u: Tensor, number: Tensor, law: str) -> Tensor:
    """The share of a row's `number` of counts that a law draws by u in (0, 1): rounded down, share * number is a count
    in 0..number - 1, the first being the smallest t. u, number: of one shape; law: of `TIME_LAWS`, or `GEOMETRIC`."""
    if law != GEOMETRIC:
        return TIME_LAWS[law](u)
    number = number.double()
    return (-u * -torch.expm1(-number * math.log(2))).log1p() / (-number * math.log(2))


def training_weights(t: Tensor, lengths: Tensor, weighting: str, law: str = "uniform") -> Tensor:
    """(B,) float64, what the terms of the bound are multiplied by in training: (t/l)^(1-p), its mean under the law 1.

    Args:
        t, lengths: (B,) int64, t of l >= 1 positions corrupted. weighting: one of `LOSS_WEIGHTINGS`, which says p; at
            "bound" all weights are 1. law: that t was drawn by.
    """
    power = 1.0 - LOSS_WEIGHTINGS[weighting]
    grid = (torch.arange(1 << 12, dtype=torch.float64) + 0.5) / (1 << 12)
    mean = (TIME_LAWS[law](grid) ** power).mean().item()
    return (t.double() / lengths.clamp(min=1)) ** power / mean


def most_corrupted(lengths: Tensor, max_corruption: float) -> Tensor:
    """(B,) int64: the largest t of rows of l = `lengths` (B,) editable positions, a share in (0, 1] rounded up."""
    return (lengths.double() * max_corruption - 1e-9).ceil().long().clamp(min=1)


def mask_terms(cross_entropy: Tensor, rows: Tensor, lengths: Tensor, t: Tensor) -> Tensor:
    """(B,) estimate of the mask NELBO of each row, in nats: (l/t) sum over S of CE_i.

    Args:
        cross_entropy: (|S| of all rows,) CE_i. rows: the row of each, int64.
        lengths: (B,) int64, l. t: (B,) int64, |S|.
    """
    sums = torch.zeros(len(t), dtype=cross_entropy.dtype, device=t.device).index_add(0, rows, cross_entropy)
    return sums * (lengths.double() / t.clamp(min=1)).to(sums.dtype)


def changes(log_probs: Tensor, xt: Tensor, editable: Tensor) -> Change:
    """r_i of every position, differentiable. log_probs: (B, L, V) float64; xt: (B, L) int64; editable: (B, L) bool."""
    stay = log_probs.gather(-1, xt[..., None])[..., 0]
    others = log_probs.scatter(-1, xt[..., None], NEVER).logsumexp(dim=-1)
    return Change(
        others.clamp(min=NEVER).masked_fill(~editable, NEVER),
        stay.clamp(min=NEVER).masked_fill(~editable, 0.0),
    )


def substitute_terms(
    kernel: Kernel,
    change: Change,
    log_target: Tensor,
    corrupted: Tensor,
    lengths: Tensor,
    t: Tensor,
    num_tokens: int,
) -> Tensor:
    """(B,) estimate of the substitute NELBO of each row, in nats, for one reverse kernel.

    Args:
        change: r_i at xt (see `changes`). log_target: (B, L) float64, log p_i(x0_i | xt); read on S only.
        corrupted: (B, L) bool, S = {i : xt_i != x0_i}. lengths: (B,) l. t: (B,) |S| >= 1. num_tokens: V.
    """
    log_transition = (log_target + kernel.log_rate(change, t)).masked_fill(~corrupted, 0.0)
    step = -t.double().log() - log_transition.sum(dim=-1) / t
    return lengths * (math.log(num_tokens / (num_tokens - 1)) + step)


def uniform_terms(change: Change, log_target: Tensor, differs: Tensor, lengths: Tensor, t: Tensor) -> Tensor:
    """(B,) estimate of the uniform NELBO of each row, in nats; there is no prior term.

    Args:
        change: r_i at xt (see `changes`). log_target: (B, L) float64, log p_i(x0_i | xt); read on D only.
        differs: (B, L) bool, D = {i : xt_i != x0_i}. lengths: (B,) l. t: (B,), corrupted positions, at least |D| and 1.
    """
    log_total, rest = log_rest(change, t)
    log_all = torch.logaddexp(log_total, rest)
    right = (t - differs.sum(dim=-1)).double() / t  # the share of the corrupted positions that look right
    moves = (log_all - t.double().log()) * (1 - right) - log_target.masked_fill(~differs, 0.0).sum(dim=-1) / t
    return lengths * (moves + torch.xlogy(right, right) + right * (log_all - rest))


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, forbidden: Tensor, chunk: int
) -> Tensor:
    """(N,) cross-entropy without all (N, V) logits at once: a chunk of them is made, used, and made again in backward.

    Args:
        head: (n, H) hidden states -> (n, V) logits. hidden: (N, H). target: (N,) int64. forbidden: (V,) bool, never
            predicted. chunk: rows of logits at a time, at least 1.
    """

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(rows), wanted, forbidden)

    pairs = zip(hidden.split(chunk), target.split(chunk), strict=True)
    parts = [checkpoint(part, rows, wanted, use_reentrant=False) for rows, wanted in pairs]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


class CorruptedRows(NamedTuple):
    """Rows of a loss: x0, xt (B, L) int64; editable, corrupted (B, L) bool; lengths l and counts t, (B,) int64.

    num_corrupted, num_editable: how many of each row are, as numbers of the host; None: they are read where needed.
    steady: whether the network is asked about numbers of positions that are rounded up to a few (`asked_places`).
    noise: what they were corrupted by; None where they were not by the process.
    attention_mask: (B, L), 1 where there is a token; None: everywhere.
    s: (B,) int64, where a step of several tokens leads, whose bound is NELBO_K; None: to t - 1.
    """

    x0: Tensor
    xt: Tensor
    editable: Tensor
    corrupted: Tensor
    lengths: Tensor
    t: Tensor
    num_corrupted: list[int] | None = None
    num_editable: list[int] | None = None
    steady: bool = False
    noise: Any = None
    attention_mask: Tensor | None = None
    s: Tensor | None = None


def padded_count(count: int) -> int:
    """What a number of positions is rounded up to: a multiple of 64, and from 1,024 on one of eight an octave."""
    step = max(64, (1 << max(0, count - 1).bit_length()) // 16)
    return -(-count // step) * step


def asked_places(rows: CorruptedRows, positions: Positions) -> tuple[Tensor, Tensor]:
    """Rows and columns that the network is asked about: the positions, and behind them so many of them again that
    their number is one of a few where the rows are `steady`, or on a CPU a multiple of `ROW_BLOCK`. What is said of
    those is to be cut off: in the end, where it is a number a row and no longer logits, whose slices cost a copy."""
    count = len(positions.rows)
    if not count or not (rows.steady or (rows.x0.device.type == "cpu" and count > ROW_BLOCK)):
        return positions.places
    rounded = padded_count(count) if rows.steady else -(-count // ROW_BLOCK) * ROW_BLOCK
    number = torch.arange(rounded, device=rows.x0.device) % count
    return positions.rows[number], positions.columns[number]


def said(output: Any) -> Any:
    """What a network said of the positions it was asked about: logits; and, asked about gaps, the scores of these."""
    return output.logits if output.gap_logits is None else (output.logits, output.gap_logits)


def wrong_rows(
    process: Any, x0: Tensor, editable: Tensor, attention_mask: Tensor, t: Tensor, random: RowRandom
) -> tuple[Tensor, Tensor]:
    """Rows x0 (B, L) corrupted at t (B,) of their tokens, as a repairer is given them, and their attention_mask."""
    if process.edits:
        x0, attention_mask, editable, t = process.widen(x0, editable, attention_mask, t)
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    if not process.edits:
        return xt, attention_mask
    closed = close(xt, editable, attention_mask, process.hole_token_id)
    return closed.tokens, closed.attention_mask


def take_noisy(
    process: Any, batch: dict[str, Any], x0: Tensor, editable: Tensor, forbidden: Tensor, paired: Tensor
) -> tuple[Tensor, Tensor]:
    """The noisy rows of a batch as `row_losses` takes them, and what is editable (B, L) where some are `paired` (B,).

    batch: of `corpus.rows.collate`, of rows with "noisy_ids". x0: its rows, with prompts hidden or not.
    """
    noisy = batch["noisy_ids"]
    if process.edits:
        behind = torch.arange(noisy.shape[1], device=noisy.device) >= batch["noisy_lengths"][:, None]
        return noisy.masked_fill(behind, process.hole_token_id), editable
    given = ~editable & ~forbidden[batch["input_ids"]]  # prompts
    noisy = torch.where(given, x0, noisy)
    return noisy, editable & ~(forbidden[noisy] & paired[:, None])


def row_losses(
    predict: Callable[..., Tensor],
    process: TokenProcess,
    x0: Tensor,
    editable: Tensor,
    t: Tensor,
    random: RowRandom,
    forbidden: Tensor,
    *,
    loss: str = "nelbo",
    kernel: str = "site",
    chunk: int | None = None,
    noisy: Tensor | None = None,
    paired: Tensor | None = None,
    known: tuple[list[int], list[int]] | None = None,
    steady: bool = False,
    attention_mask: Tensor | None = None,
    s: Tensor | None = None,
) -> Tensor:
    """(B,) loss of each row in nats, differentiable: corrupt t positions, predict x0, score as the process does.

    Args:
        predict: called as predict(input_ids=xt, t=t, num_editable=l, positions=(rows, columns)), the latter (N,) int64;
            gives logits (N, V). Of a process with `gap_scores` also with attention_mask= (B, W) and
            gaps=(rows, columns), each (M,) int64; it gives then those and the scores of these, (M,) or (M, k).
        x0: (B, L) int64 clean rows. editable: (B, L) bool. t: (B,) int64 in 1..l. forbidden: (V,) bool, never
            predicted.
        loss: "nelbo", an unbiased estimate of the bound on -log p(x0) (for `kernel`, where the process has kernels); or
            "cross_entropy", the sum of CE_i over the positions that the network is asked about.
        chunk: rows of logits at a time (`chunked_cross_entropy`); predict is then called with apply_head=, too, and
            gives (N,) cross-entropies. None: all at once.
        noisy, paired: (B, L) int64 and (B,) bool; rows that are `paired` stand corrupted as `noisy` has them, in place
            of by the process, and their t is the number of editable positions that differ from x0, which may be 0 where
            `loss` is "cross_entropy". Of a process that edits noisy is (B, M), see `EditProcess.of_pairs`.
        known: t and l of each row as the host knows them, so that they need not be read; not with `paired`.
        steady: for a compiled network, which sees each new number of positions for the first time: see `CorruptedRows`.
        attention_mask: (B, L), 1 where there is a token; None: everywhere. Read by processes that insert.
        s: (B,) int64 below t, where a step of several tokens leads; read by processes whose price of a step is not the
            sum of its tokens' (they insert).
    """
    noise = None
    if process.edits:
        if noisy is not None and paired is not None:
            pairs = process.of_pairs(x0, noisy, paired, editable, attention_mask, t, random)
            x0, attention_mask, editable, t, noise = pairs
            noisy = paired = None
        else:
            x0, attention_mask, editable, t = process.widen(x0, editable, attention_mask, t)
    noise = process.sample_noise(x0, editable=editable, random=random) if noise is None else noise
    xt = process.corrupt(x0, t, noise)
    if noisy is not None and paired is not None:
        xt = torch.where(paired[:, None], noisy, xt)
    corrupted = process.corrupted(xt, x0) & editable
    if paired is not None:
        t = torch.where(paired, corrupted.sum(dim=1), t)
    corrupt, given = (None, None) if known is None else ([min(pair) for pair in zip(*known, strict=True)], known[1])
    rows = CorruptedRows(
        *(x0, xt, editable, corrupted, editable.sum(dim=1), t, corrupt, given, steady), noise, attention_mask, s
    )
    return process.losses(predict, rows, forbidden, loss=loss, kernel=kernel, chunk=chunk)


def cross_entropies(
    predict: Callable[..., Tensor], rows: CorruptedRows, positions: Positions, forbidden: Tensor, chunk: int | None
) -> Tensor:
    """(N,) CE_i at the positions. The other arguments are those of `row_losses`."""
    here, count = asked_places(rows, positions), len(positions.rows)
    wanted = {"input_ids": rows.xt, "t": rows.t, "num_editable": rows.lengths, "positions": here}
    target = rows.x0[here]
    if chunk is not None:
        apply_head = partial(chunked_cross_entropy, target=target, forbidden=forbidden, chunk=chunk)
        return predict(**wanted, apply_head=apply_head)[:count]
    return cross_entropy(predict(**wanted), target, forbidden)[:count]


def mask_losses(
    predict: Callable[..., Tensor], rows: CorruptedRows, forbidden: Tensor, chunk: int | None = None
) -> Tensor:
    """(B,) losses where the corrupted set is visible: CE_i over it with weight l/t, which estimates the bound."""
    positions = Positions.of(rows.corrupted, rows.num_corrupted)
    ce = cross_entropies(predict, rows, positions, forbidden, chunk)
    return mask_terms(ce, positions.rows, rows.lengths, rows.t)


def substitute_losses(
    predict: Callable[..., Tensor],
    rows: CorruptedRows,
    forbidden: Tensor,
    num_tokens: int,
    *,
    loss: str = "nelbo",
    kernel: str = "site",
    chunk: int | None = None,
) -> Tensor:
    """(B,) losses where the corrupted set is hidden: CE_i over all editable positions, or the bound for a kernel.

    num_tokens: V, the tokens that may stand at an editable position.
    """

    def terms(change: Change, log_target: Tensor) -> Tensor:
        return substitute_terms(KERNELS[kernel], change, log_target, rows.corrupted, rows.lengths, rows.t, num_tokens)

    return _losses_of_all(predict, rows, forbidden, terms, loss=loss, chunk=chunk)


def uniform_losses(
    predict: Callable[..., Tensor],
    rows: CorruptedRows,
    forbidden: Tensor,
    *,
    loss: str = "nelbo",
    chunk: int | None = None,
) -> Tensor:
    """(B,) losses where a corrupted token may be its own replacement: CE_i of all editable positions, or the bound."""

    def terms(change: Change, log_target: Tensor) -> Tensor:
        return uniform_terms(change, log_target, rows.corrupted, rows.lengths, rows.t)

    return _losses_of_all(predict, rows, forbidden, terms, loss=loss, chunk=chunk)


def _losses_of_all(
    predict: Callable[..., Tensor],
    rows: CorruptedRows,
    forbidden: Tensor,
    terms: Callable[[Change, Tensor], Tensor],
    *,
    loss: str,
    chunk: int | None,
) -> Tensor:
    """(B,): the network is asked about all editable positions; terms(change, log p_i(x0_i)) makes a bound of it."""
    x0, lengths = rows.x0, rows.lengths
    positions = Positions.of(rows.editable, rows.num_editable)
    here = positions.places
    if loss == "cross_entropy":
        ce = cross_entropies(predict, rows, positions, forbidden, chunk)
        return mask_terms(ce, positions.rows, lengths, lengths)
    if chunk is not None:
        raise ValueError("loss_chunk goes with loss 'cross_entropy': the NELBO needs the logits of whole rows")
    logits = predict(input_ids=rows.xt, t=rows.t, num_editable=lengths, positions=asked_places(rows, positions))
    log_probs = logits[: len(positions.rows)].float().masked_fill(forbidden, -torch.inf).double().log_softmax(dim=-1)
    own = changes(log_probs, rows.xt[here], torch.ones_like(rows.xt[here], dtype=torch.bool))
    blank = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
    change = Change(
        torch.full_like(blank, NEVER).index_put(here, own.log_change),
        blank.index_put(here, own.log_stay),
    )
    return terms(change, blank.index_put(here, log_probs.gather(-1, x0[here][:, None])[:, 0]))


def delete_losses(
    predict: Callable[..., Tensor],
    rows: CorruptedRows,
    missing: Tensor,
    forbidden: Tensor,
    hole: int,
    gap_token: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """(B,) losses where tokens are missing: the bound of putting them in one by one, or several at a time.

    The network says at which gap, q(g) over all gaps of a row, and which token, p(v | g). Of the gaps beside a run of
    equal tokens only the first takes another of them, so that each string comes of one action: v is ruled out where v
    itself stands to the left. Of t missing tokens each is scored as if put in alone. With `rows.s` below t - 1 it is
    k = t - s of them, drawn without an order as k independent actions, those of one gap in their order; then

        term = log emb(xt, xs) - log C(t, k) - log(k! / prod of n_g!) - sum of log q(g) p(v | g),

    emb(xt, xs) the embeddings of xt in xs and n_g the tokens of gap g, of the one choice of actions that gives xs.

    Args:
        missing: (B, L) bool, the tokens of x0 that xt lacks. hole, gap_token: see canvas.py. The others as in
            `row_losses`.
    """
    x0, xt, editable, t = rows.x0, rows.xt, rows.editable, rows.t
    attended = torch.ones_like(editable) if rows.attention_mask is None else rows.attention_mask
    reading = read(xt, editable, attended, hole, gap_token)
    open_gaps = Positions.of(gaps(xt, editable, hole))
    several = rows.s is not None and bool((rows.s < t - 1).any())
    one = single_insertions(x0, xt, missing, editable, hole)
    columns, tokens, wanted, price = one.columns, x0, missing, one.runs.double().log()
    factor, constant = 1.0 / t.clamp(min=1).double(), -t.clamp(min=1).double().log()
    if several:
        assert rows.s is not None
        columns, tokens, wanted, constant = _joint_insertions(rows, missing, hole)
        price, factor = torch.zeros_like(price), torch.ones_like(factor)
        factor = factor / (t - rows.s).clamp(
            min=1
        )  # a step of k tokens stands for k of the counts that t is drawn from
        constant = constant * factor
    row, place = wanted.nonzero(as_tuple=True)
    column, token = columns[row, place], tokens[row, place]
    asked = torch.zeros_like(editable)
    asked[row, column] = True
    where = Positions.of(asked)
    number = (torch.cumsum(asked.flatten(), 0) - 1).view_as(asked)[row, column]  # of each token among what is asked
    asked_columns = reading.columns[where.places]
    own = xt[where.places].masked_fill(~editable[where.places], -1)  # what stands to the left, and may not come again
    inputs = {
        "input_ids": reading.tokens,
        "attention_mask": reading.attention_mask,
        "t": t,
        "num_editable": rows.lengths,
        "gaps": (open_gaps.rows, reading.columns[open_gaps.places]),
    }
    if chunk is None:
        logits, gap_scores = predict(**inputs, positions=(where.rows, asked_columns))
        ce = cross_entropy(logits, token, forbidden, row=number, ruled_out=own)
    else:
        target = torch.stack((token, own[number]), dim=1)
        apply_head = partial(_chunked_insertions, target=target, forbidden=forbidden, chunk=chunk)
        ce, gap_scores = predict(**inputs, positions=(row, asked_columns[number]), apply_head=apply_head)
    law = torch.full(x0.shape, NEVER, dtype=gap_scores.float().dtype, device=x0.device)
    law = law.index_put(open_gaps.places, gap_scores.float()).log_softmax(dim=1)
    actions = ce - law[row, column] + price[row, place]
    sums = torch.zeros(len(t), dtype=actions.dtype, device=t.device).index_add(0, row, actions)
    return rows.lengths.double() * (factor * sums + constant * (t > 0))


def _chunked_insertions(
    head: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, forbidden: Tensor, chunk: int
) -> Tensor:
    """(M,) as `chunked_cross_entropy`. target: (M, 2), the token of each gap, and the one ruled out (-1: none)."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(rows), wanted[:, 0], forbidden, ruled_out=wanted[:, 1])

    pairs = zip(hidden.split(chunk), target.split(chunk), strict=True)
    parts = [checkpoint(part, rows, wanted, use_reentrant=False) for rows, wanted in pairs]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _joint_insertions(rows: CorruptedRows, missing: Tensor, hole: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The one choice of actions that leads from xt to xs: columns of gaps, tokens, which count, and the constant (B,).

    xs is x0 without the tokens that the same noise deletes at s.
    """
    x0, xt, editable, t, s = rows.x0, rows.xt, rows.editable, rows.t, rows.s
    assert s is not None
    keys = rows.noise.keys.masked_fill(~missing, torch.inf)
    still = (keys.argsort(dim=1, stable=True).argsort(dim=1) < s[:, None]) & missing
    xs = justify(x0, ~still, editable, hole)
    whole, part, places = symbol_pair(xs, xt, editable, hole)
    taken = last_embedding(whole, part)
    held = whole >= 0
    kept = torch.zeros_like(editable).scatter(1, places, taken & held)
    put_in = torch.zeros_like(editable).scatter(1, places, held & ~taken)
    shown = single_insertions(xs, justify(xs, kept, editable, hole), put_in, editable, hole)
    k = (t - s).double()
    at_gap = torch.zeros_like(xt).scatter_add(1, shown.columns.masked_fill(~put_in, 0), put_in.long())
    ordered = (at_gap.double() + 1).lgamma().sum(dim=1) - (k + 1).lgamma()
    choices = (t.double() + 1).lgamma() - (k + 1).lgamma() - (s.double() + 1).lgamma()
    return shown.columns, xs, put_in, log_embeddings(whole, part) - choices + ordered
