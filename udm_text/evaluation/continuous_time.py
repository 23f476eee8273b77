"""The bound of uniform noise in continuous time, as others state it, beside the count-based one that is ours.

A position is replaced by any of the V tokens at a rate, and is still what it was with probability alpha, its survival.
q(v | x0) = alpha [v = x0] + (1 - alpha) / V is the law of one position. The way back jumps from xt_i to v at a rate in
proportion to q(xt with v at i) / q(xt), and

    NELBO = int_0^1 dalpha / (alpha V) E sum_i sum_{v != xt_i} [ r_hat - r + r log(r / r_hat) ],

r = q(v | x0_i) / q(xt_i | x0_i), and r_hat the same of the model, which needs what the other positions say of x0_i:
r_hat = (alpha m(v) + (1 - alpha) / V) / (alpha m(xt_i) + (1 - alpha) / V), m(v) = p(x0_i = v | xt without xt_i). A
network says p(x0_i | xt), so that it is converted first (`leave_one_out`). There is no prior term.

Sources: UDLM, Schiff et al. 2412.10193; the conversion, 2605.22765; docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..common import check_whole, eval_mode, watched
from ..corpus.rows import collate
from ..decoding import NOT_FINITE
from ..objectives import said
from ..positions import Positions
from ..randomness import RowRandom
from .bounds import BoundReport, length_nats, scored_rows, summarise

CONTINUOUS_TIME = "continuous_time"
"""What such a report says in place of a kernel."""


def leave_one_out(log_probs: Tensor, xt: Tensor, survival: Tensor, num_tokens: int) -> Tensor:
    """(N, W) log p(x0_i | xt without xt_i), from log p(x0_i | xt): what xt_i itself says of x0_i is divided out.

    Args:
        log_probs: (N, W), -inf where a token may not stand. xt: (N,) int64, what stands there. survival: (N,) float64,
            alpha in [0, 1). num_tokens: V, the tokens that may stand there.
    """
    told = torch.log1p(num_tokens * survival / (1 - survival))
    return log_probs.scatter_add(1, xt[:, None], -told[:, None].to(log_probs.dtype)).log_softmax(dim=1)


def continuous_terms(log_alone: Tensor, xt: Tensor, x0: Tensor, survival: Tensor, num_tokens: int) -> Tensor:
    """(N,) float64, what positions add to the integrand of the bound at alpha, in nats.

    Args:
        log_alone: (N, W) float64 of `leave_one_out`. xt, x0: (N,) int64. survival: (N,) float64, alpha in (0, 1).
            num_tokens: V, the tokens that may stand there; the others have -inf in `log_alone`.
    """
    noise = (1 - survival) / num_tokens
    law = (survival[:, None] * log_alone.exp() + noise[:, None]).log()  # of xt_i given the others, as the model sees it
    law_here, law_clean = (law.gather(1, x[:, None])[:, 0] for x in (xt, x0))
    allowed = log_alone > -torch.inf
    others = law.masked_fill(~allowed, 0.0).sum(dim=1) - law_here - (num_tokens - 1) * law_here  # sum of log r_hat
    here = torch.where(xt == x0, survival + noise, noise)
    low, high = noise / here, (survival + noise) / here  # r of another token than x0_i, and of x0_i
    wrong = xt != x0
    total = torch.expm1(-law_here) - (1 - here) / here + low * ((num_tokens - 1 - wrong.double()) * low.log() - others)
    total = total + torch.where(wrong, high * high.log() - (high - low) * (law_clean - law_here), 0.0)
    return total / (survival * num_tokens)


@torch.no_grad()
def evaluate_continuous_bound(
    model, rows: Iterable[dict[str, Any]], *, batch_size: int = 64, draws: int = 8, seed: int = 0
) -> BoundReport:
    """The continuous-time bound of a model of uniform noise on rows; its report says kernel "continuous_time".

    A draw takes alpha from a stratum of (0, 1) and replaces each position with probability 1 - alpha. How many were
    replaced is nothing that the way back knows, so the network is told how many are to be expected, (1 - alpha) l
    rounded, at least one: a bound for any network, a little loose for one that was trained on exact counts.

    Args:
        model: a `UDMForMaskedGeneration` of process "uniform". The others are those of `evaluate_bound`.

    Raises:
        ValueError: the model is of another process; or its logits are no law (`NOT_FINITE`).
    """
    check_whole(1, draws=draws, batch_size=batch_size)
    check_whole(-(2**63), seed=seed)
    config, process = model.config, model.config.build_process()
    if not process.has_rates:
        raise ValueError(f"the continuous-time bound is of process 'uniform', got a model of {config.process_words}")
    device = model.get_input_embeddings().weight.device
    forbidden, num_tokens = config.forbidden_tokens(device), process.num_tokens
    index, kept = scored_rows(config, rows)
    nats = torch.zeros(len(kept), dtype=torch.float64)
    by_length = sorted(range(len(kept)), key=lambda i: len(kept[i]["input_ids"]))
    with eval_mode(model):
        for start in watched(range(0, len(kept), batch_size), "continuous-time bound"):
            chosen = by_length[start : start + batch_size]
            batch = collate([kept[i] for i in chosen], config.pad_token_id, config.editable)
            x0, editable, mask = (batch[name].to(device) for name in ("input_ids", "editable", "attention_mask"))
            random = RowRandom(seed, torch.tensor([index[i] for i in chosen], device=device))
            lengths, positions = editable.sum(dim=1), Positions.of(editable)
            here = positions.places
            for stratum in range(draws):
                survival = (stratum + random.uniform(1)[:, 0]) / draws
                t = ((random.uniform(x0.shape[1]) >= survival[:, None]) & editable).sum(dim=1)
                xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
                told = ((1 - survival) * lengths).round().long().clamp(min=1)
                asked: dict[str, Any] = {"t": told, "num_editable": lengths, "positions": here}
                logits = said(model(input_ids=xt, attention_mask=mask, **asked)).float()
                log_probs = logits.masked_fill(forbidden, -torch.inf).double().log_softmax(dim=-1)
                each = survival[positions.rows]
                alone = leave_one_out(log_probs, xt[here], each, num_tokens)
                terms = continuous_terms(alone, xt[here], x0[here], each, num_tokens)
                if bool(terms.isnan().any()):
                    raise ValueError(NOT_FINITE)
                sums = torch.zeros(len(chosen), dtype=torch.float64, device=device).index_add(0, positions.rows, terms)
                nats[chosen] += sums.cpu() / draws
    how: dict[str, Any] = {"draws": draws, "seed": seed, "kernel": CONTINUOUS_TIME}
    return summarise(config, kept, nats, length_nats(model, kept, batch_size=batch_size), **how)
