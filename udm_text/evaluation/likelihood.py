"""How likely rows are to a model of masks, by the chain rule in an order of positions, and by many orders at once.

An order s of the l editable positions that is known beforehand makes a law of texts by the chain rule,

    log p_s(x0) = sum over k of log p(x0 at s_k, given x0 at s_1, ..., s_{k-1} and [MASK] elsewhere),

and -log p_s(x0) is exact for the sampler that opens one position a step in that order, at temperature 1. The sampler of
random order has p(x0) = mean over all l! orders of p_s(x0). Of K orders drawn for a row

    chain       mean of -log p_s          its expectation is the NELBO, an upper bound on -log p(x0)
    importance  -log (mean of p_s)        its expectation is an upper bound on -log p(x0), never above the NELBO; it
                                          falls with K to -log p(x0), and with K = 1 it is the chain

Both are bounds in expectation over the orders: one estimate may lie below -log p(x0) by chance.

Sources: the chain rule of any-order models, Uria et al. 1310.1757; the importance-weighted bound, Burda et al.
1509.00519.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import check_whole, choices, eval_mode, finite, watched
from ..corpus.rows import collate
from ..decoding import NOT_FINITE, STATIC_ORDERS
from ..generation_options import Skeleton
from ..objectives import CorruptedRows, cross_entropies, said
from ..positions import Positions
from ..predictors import static_scores
from ..processes import ranks
from ..randomness import RowRandom
from .bounds import answers_have_widths, length_nats, row_draws, row_figures, scored_rows

LIKELIHOODS = ("bound", "chain", "importance")
"""What a row may be scored by: the NELBO from single corruptions of it, and what the head of this module says."""


@dataclasses.dataclass(frozen=True)
class RowScores:
    """Scores of R rows one by one, tensors (R,) of the CPU.

    nats: float64, the estimate of -log p of each, or of a bound on it, its length counted as the bound counts it.
    stderr: float64, one standard error of the estimate over corruptions or orders: 0 where it is exact, nan where one
        draw alone was made. Of "bound" it is a little too large, for it does not know that the corruptions of a row
        are spread evenly; of "importance" it is the delta method's, good where there are many orders.
    length_nats: float64, of nats those for how long the row is. tokens: int64, that were scored of each.
    likelihood: one of `LIKELIHOODS`. draws: corruptions or orders of each row.
    """

    nats: Tensor
    stderr: Tensor
    length_nats: Tensor
    tokens: Tensor
    likelihood: str
    draws: int


@dataclasses.dataclass(frozen=True)
class LikelihoodReport:
    """The likelihood of held-out rows by the chain rule, or its importance-weighted bound; see `LIKELIHOODS`.

    The figures are those of a `BoundReport` under the names of a likelihood: nats_per_token, perplexity and
    bits_per_char, each with one standard error over rows and orders. `exact`: the order is known beforehand, so they
    are the likelihood of the sampler of that order; otherwise they estimate an upper bound on -log p of the sampler of
    random order.
    """

    nats_per_token: float
    nats_per_token_stderr: float
    perplexity: float
    perplexity_stderr: float
    bits_per_char: float | None
    bits_per_char_stderr: float | None
    length_nats_per_token: float
    length_included: bool
    likelihood: str
    order: str
    exact: bool
    process: str
    rows: int
    tokens: int
    chars: int | None
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows neither nan nor infinity: None in their place."""
        return finite(dataclasses.asdict(self))


def check_likelihood(config, likelihood: str, order: Any = None, draws: int | None = None) -> tuple[Any, int]:
    """The order and the number of draws of a likelihood; None: "random", and 8 or, where all draws are alike, 1.

    Raises:
        ValueError: there is no such likelihood or order; the model opens no masked positions one by one; an order or a
            number of draws is given that the likelihood has no use for.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be {choices(LIKELIHOODS)}, got {likelihood!r}")
    check_whole(1, draws=1 if draws is None else draws)
    if likelihood == "bound":
        if order is not None:
            raise ValueError(f"order {order!r}: the bound is over all orders; it is likelihood 'chain' that has one")
        return None, 8 if draws is None else draws
    process = config.build_process()
    if config.writes_rows:
        raise ValueError(
            f"likelihood {likelihood!r} opens positions one by one, and this model writes whole rows, whose bound in "
            "one step of masks is the likelihood itself: use likelihood 'bound'"
        )
    if not process.has_curve:
        raise ValueError(
            f"likelihood {likelihood!r} opens masked positions one by one, and {config.process_words} has none: use "
            "likelihood 'bound'"
        )
    order = "random" if order is None else order
    if not (isinstance(order, Skeleton) or order in STATIC_ORDERS):
        raise ValueError(
            f"order must be one that is known before the text is, {choices(STATIC_ORDERS)} or a Skeleton, got {order!r}"
        )
    if order == "left_to_right":
        if likelihood == "importance":
            raise ValueError("likelihood 'importance' is over orders that are drawn: give order 'random', or 'chain'")
        if draws not in (None, 1):
            raise ValueError(f"draws must be 1 for order {order!r}, which is always the same, got {draws}")
        return order, 1
    return order, 8 if draws is None else draws


@torch.no_grad()
def row_chains(
    model,
    rows: Sequence[dict[str, Any]],
    index: Sequence[int],
    *,
    draws: int = 1,
    order: Any = "random",
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """(R, draws) float64: -log p_s of each row in nats without its length, one position a step, exact for its order s.

    Every token costs the network one row of a batch, so a row of l tokens l * draws of them. The orders belong to
    (seed, index of the row), so the figures do not depend on the batch.

    Args:
        model: a `UDMForMaskedGeneration` of process "mask".
        rows: each with "input_ids"; with "editable", a bool for each token, where a part of it is given.
        index: the number of each row, which its orders belong to.
        draws: orders of each row. order: "random", "left_to_right", or a `Skeleton`, whose rest is in random order.
        batch_size: rows of a forward pass.

    Raises:
        ValueError: where the logits of the network are no law (`NOT_FINITE`), and as `check_likelihood` does.
    """
    config, process = model.config, model.config.build_process()
    check_likelihood(config, "chain", order)
    check_whole(1, draws=draws, batch_size=batch_size)
    check_whole(-(2**63), seed=seed)
    device = model.get_input_embeddings().weight.device
    forbidden = config.forbidden_tokens(device)
    result = torch.zeros(len(rows), draws, dtype=torch.float64)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with eval_mode(model):
        for start in watched(range(0, len(rows), batch_size), "likelihood"):
            chosen = by_length[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], config.pad_token_id, config.editable)
            x0, mask, editable = (batch[name].to(device) for name in ("input_ids", "attention_mask", "editable"))
            lengths = editable.sum(dim=1)
            random = RowRandom(seed, torch.tensor([index[i] for i in chosen], device=device))
            which = torch.arange(len(chosen), device=device).repeat_interleave(lengths)
            t = torch.cat([torch.arange(int(n), 0, -1, device=device) for n in lengths])
            for draw in range(draws):
                noise = process.sample_noise(x0, editable=editable, random=random)
                scores = static_scores(order, x0.masked_fill(editable, config.mask_token_id), editable, random)
                if scores is not None:  # the last of the corrupted positions by its key is the next to be opened
                    noise = noise._replace(keys=scores.double().masked_fill(~editable, torch.inf))
                rank = ranks(noise.keys)
                for part in torch.arange(len(t), device=device).split(batch_size):
                    row, count = which[part], t[part]
                    opened = editable[row] & (rank[row] == count[:, None] - 1)
                    xt = process.corrupt(x0[row], count, noise._replace(keys=noise.keys[row]))

                    def predict(mask: Tensor = mask[row], **inputs: Any) -> Any:
                        return said(model(attention_mask=mask, **inputs))

                    corrupted = process.corrupted(xt, x0[row])
                    asked = CorruptedRows(x0[row], xt, editable[row], corrupted, lengths[row], count)
                    nats = cross_entropies(predict, asked, Positions.of(opened), forbidden, None).double().cpu()
                    if bool(nats.isnan().any()):
                        raise ValueError(NOT_FINITE)
                    places = torch.tensor(chosen)[row.cpu()]
                    result[:, draw].index_add_(0, places, nats)
    return result


def importance_weighted(nats: Tensor) -> tuple[Tensor, Tensor]:
    """-log of the mean of exp(-nats) over the K of each row: (R,) float64, and its standard errors by the delta method.

    nats: (R, K) float64, -log p_s of K orders; infinite where an order makes the row impossible. With K = 1 the value
    is the one there is, and its error nan.
    """
    count = nats.shape[1]
    value = math.log(count) - (-nats).logsumexp(dim=1)
    weights = (value[:, None] - nats).exp()  # of mean 1
    return value, weights.std(dim=1) / math.sqrt(count) if count > 1 else torch.full_like(value, torch.nan)


def row_scores(
    model,
    rows: Sequence[dict[str, Any]],
    *,
    index: Sequence[int] | None = None,
    likelihood: str = "bound",
    draws: int | None = None,
    order: Any = None,
    seed: int = 0,
    kernel: str | None = None,
    batch_size: int = 64,
) -> RowScores:
    """The likelihood of rows one by one, or a bound on it: what candidates are ranked by.

    The length of a row is counted where all of it that may change is scored, and the model draws lengths. Of a row with
    a given part it is the rest that is scored, given that part and how long the rest is.

    Args:
        model: a `UDMForMaskedGeneration`.
        rows: each with "input_ids" and an editable token; with "editable", a bool for each token, where a part of it is
            given.
        index: the numbers that the noise of the rows belongs to; None: their places. Rows of one number and equal
            tokens have equal scores.
        likelihood: "bound", the NELBO by `draws` corruptions of each row; "chain", the mean over `draws` orders;
            "importance", the bound by so many orders together. See `RowScores` for their errors.
        draws: None: 8, and 1 where the order is always the same. order: of "chain" and "importance", see `row_chains`.
        seed: of corruptions and orders. kernel: of "bound", as in `evaluate_bound`.

    Raises:
        ValueError: for an argument that cannot be, see `check_likelihood`.
    """
    config = model.config
    order, draws = check_likelihood(config, likelihood, order, draws)
    index = range(len(rows)) if index is None else index
    how: dict[str, Any] = {"draws": draws, "seed": seed, "batch_size": batch_size}
    if likelihood == "bound":
        drawn = row_draws(model, rows, index, kernel=kernel or config.kernel, **how).nats
    else:
        drawn = row_chains(model, rows, index, order=order, **how)
    if likelihood == "importance":
        nats, stderr = importance_weighted(drawn)
    elif order == "left_to_right":
        nats, stderr = drawn[:, 0], torch.zeros(len(rows), dtype=torch.float64)
    else:
        nats, known = drawn.mean(dim=1), draws > 1
        stderr = drawn.std(dim=1) / math.sqrt(draws) if known else torch.full_like(nats, torch.nan)
    every = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.int64)
    tokens = torch.tensor(
        [int(n) if (own := row.get("editable")) is None else sum(own) for n, row in zip(every, rows, strict=True)],
        dtype=torch.int64,
    )
    lengths = torch.zeros_like(nats)
    if whole := ((tokens == every) & (tokens > 0)).nonzero()[:, 0].tolist():
        lengths[whole] = length_nats(model, [{"input_ids": rows[i]["input_ids"]} for i in whole], batch_size=batch_size)
    return RowScores(nats + lengths, stderr, lengths, tokens, likelihood, draws)


def evaluate_likelihood(
    model,
    rows: Iterable[dict[str, Any]],
    *,
    likelihood: str = "chain",
    draws: int | None = None,
    order: Any = None,
    seed: int = 0,
    batch_size: int = 64,
) -> LikelihoodReport:
    """The likelihood of rows by the chain rule, or its importance-weighted bound; arguments as in `row_scores`.

    Raises:
        ValueError: likelihood is "bound", which `evaluate_bound` measures, or as `check_likelihood` does.
    """
    if likelihood == "bound":
        raise ValueError("likelihood 'bound' is what evaluate_bound measures: give 'chain' or 'importance'")
    order, draws = check_likelihood(model.config, likelihood, order, draws)
    index, kept = scored_rows(model.config, rows)
    how: dict[str, Any] = {"likelihood": likelihood, "draws": draws, "order": order, "seed": seed}
    scores = row_scores(model, kept, index=index, batch_size=batch_size, **how)
    return summarise_scores(model.config, kept, scores, order=order, seed=seed)


def summarise_scores(
    config, rows: Sequence[dict[str, Any]], scores: RowScores, *, order: Any, seed: int
) -> LikelihoodReport:
    """`LikelihoodReport` from the scores of each row, by "chain" or "importance" in an order."""
    figures = row_figures(rows, scores.tokens.double(), scores.nats, scores.length_nats)
    for old, new in (("nelbo_nats_per_token", "nats_per_token"), ("perplexity_bound", "perplexity")):
        for end in ("", "_stderr"):
            figures[new + end] = figures.pop(old + end)
    return LikelihoodReport(
        **figures,
        length_included=answers_have_widths(config) or config.length_probabilities() is not None,
        likelihood=scores.likelihood,
        order=str(order),
        exact=order == "left_to_right",
        process=config.process,
        draws=scores.draws,
        seed=seed,
    )
