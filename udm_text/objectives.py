"""Count-based bounds on -log p(x0), in nats, and the losses that estimate them.

t is drawn uniformly from {1..l} and F_t corrupts exactly t of the l editable positions; S is the corrupted set and
CE_i = -log p_i(x0_i | xt). Both bounds are sums over t, so l times a term at a uniform t is an unbiased estimate.

    mask        NELBO = sum_t (1/t) E sum_{i in S} CE_i
    substitute  NELBO = l log(V/(V-1)) + sum_t E [ -log t - (1/t) sum_{i in S} log p(i -> x0_i) ]

Sources: mask, Ou et al. 2406.03736 (the any-order autoregressive bound) in count form; substitute, derived in
docs/mathematics.md and checked by enumeration in tests/oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .hamming import NEVER
from .kernels import KERNELS, Change, Kernel
from .positions import Positions
from .randomness import RowRandom

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
LOSS_WEIGHTINGS = {"bound": 1.0, "sqrt": 0.5, "mean": 0.0}
"""p by name: training weighs a row with t of l corrupted positions by (l/t)^p, up to a constant."""


def stratified_counts(lengths: Tensor, index: Tensor, total: int, seed: int, step: int, law: str = "uniform") -> Tensor:
    """t of each row, in {1..l} by a law, stratified over a global batch of `total` rows.

    Row `index` gets one of `total` equal strata of (0, 1), by a permutation that every process draws alike.

    Args:
        lengths: (B,) int64, l >= 1 of each row. index: (B,) int64 in 0..total-1, the rows' places in the global batch.
        seed, step: what the permutation and the place inside the stratum depend on.
        law: one of `TIME_LAWS`; "uniform" makes every t of a row as likely.

    Returns:
        (B,) int64 in 1..l.
    """
    source = RowRandom(seed, torch.tensor([step], device=lengths.device))
    stratum = source.uniform(total)[0].argsort()[index]
    inside = source.uniform(total)[0][index]
    share = TIME_LAWS[law]((stratum + inside) / total)
    return (share * lengths).long().clamp(max=lengths - 1) + 1


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


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, forbidden: Tensor, chunk: int
) -> Tensor:
    """(N,) cross-entropy without all (N, V) logits at once: a chunk of them is made, used, and made again in backward.

    Args:
        head: (n, H) hidden states -> (n, V) logits. hidden: (N, H). target: (N,) int64. forbidden: (V,) bool, never
            predicted. chunk: rows of logits at a time, at least 1.
    """

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        scores = head(rows).float().masked_fill(forbidden, -torch.inf)
        return torch.nn.functional.cross_entropy(scores, wanted, reduction="none")

    pairs = zip(hidden.split(chunk), target.split(chunk), strict=True)
    parts = [checkpoint(part, rows, wanted, use_reentrant=False) for rows, wanted in pairs]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


class CorruptedRows(NamedTuple):
    """Rows of a loss: x0, xt (B, L) int64; editable, corrupted (B, L) bool; lengths l and counts t, (B,) int64.

    num_corrupted, num_editable: how many of each row are, as numbers of the host; None: they are read where needed.
    steady: whether the network is asked about numbers of positions that are rounded up to a few (`asked_places`).
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


def padded_count(count: int) -> int:
    """What a number of positions is rounded up to: a multiple of 64, and from 1,024 on one of eight an octave."""
    step = max(64, (1 << max(0, count - 1).bit_length()) // 16)
    return -(-count // step) * step


def asked_places(rows: CorruptedRows, positions: Positions) -> tuple[Tensor, Tensor]:
    """Rows and columns that the network is asked about: the positions, and behind them, where the rows are `steady`,
    so many of them again that their number is one of a few. What is said of those is to be cut off."""
    count = len(positions.rows)
    if not rows.steady or not count:
        return positions.places
    number = torch.arange(padded_count(count), device=rows.x0.device) % count
    return positions.rows[number], positions.columns[number]


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
) -> Tensor:
    """(B,) loss of each row in nats, differentiable: corrupt t positions, predict x0, score as the process does.

    Args:
        predict: called as predict(input_ids=xt, t=t, num_editable=l, positions=(rows, columns)), the latter (N,) int64;
            gives logits (N, V).
        x0: (B, L) int64 clean rows. editable: (B, L) bool. t: (B,) int64 in 1..l. forbidden: (V,) bool, never
            predicted.
        loss: "nelbo", an unbiased estimate of the bound on -log p(x0) (for `kernel`, where the process has kernels); or
            "cross_entropy", the sum of CE_i over the positions that the network is asked about.
        chunk: rows of logits at a time (`chunked_cross_entropy`); predict is then called with apply_head=, too, and
            gives (N,) cross-entropies. None: all at once.
        noisy, paired: (B, L) int64 and (B,) bool; rows that are `paired` stand corrupted as `noisy` has them, in place
            of by the process, and their t is the number of editable positions that differ from x0, which may be 0 where
            `loss` is "cross_entropy".
        known: t and l of each row as the host knows them, so that they need not be read; not with `paired`.
        steady: for a compiled network, which sees each new number of positions for the first time: see `CorruptedRows`.
    """
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    if noisy is not None and paired is not None:
        xt = torch.where(paired[:, None], noisy, xt)
    corrupted = process.corrupted(xt, x0) & editable
    if paired is not None:
        t = torch.where(paired, corrupted.sum(dim=1), t)
    corrupt, given = (None, None) if known is None else ([min(pair) for pair in zip(*known, strict=True)], known[1])
    rows = CorruptedRows(x0, xt, editable, corrupted, editable.sum(dim=1), t, corrupt, given, steady)
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
    scores = predict(**wanted)[:count].float().masked_fill(forbidden, -torch.inf)
    return torch.nn.functional.cross_entropy(scores, target[:count], reduction="none")


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
    target = blank.index_put(here, log_probs.gather(-1, x0[here][:, None])[:, 0])
    return substitute_terms(KERNELS[kernel], change, target, rows.corrupted, lengths, rows.t, num_tokens)
