"""From logits to tokens: forbidden tokens, temperature, top-k, top-p, exact draws in float64, and position orders.

Draws use the inverse of the cumulative distribution in float64. Sampling in float32 lowers the entropy of text and
flatters it (Zheng et al., "Masked diffusion models are secretly time-agnostic masked models", arXiv 2409.02908).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NOT_FINITE = (
    "the logits of the network are not finite (NaN, +inf, or nothing but -inf where a token may stand), so there is no "
    "law to draw from or to score by: its weights may be damaged, or of a training that diverged, or their dtype too "
    "narrow (try float32)"
)
"""What is said of logits without a law."""

COLDEST = torch.finfo(torch.float64).tiny
"""The smallest temperature that is divided by; below it only the best token is left, as at 0."""

_BLOCK = 256
"""Tokens whose probabilities are summed before a block of them is searched."""

_BELOW_ONE = 1.0 - 2.0**-53
"""The largest uniform: times a sum, it is less than the sum, however it is rounded."""


def log_probabilities(logits: Tensor, forbidden: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """(..., V) float64 log-probabilities of logits (..., V). The arguments are those of `tempered`."""
    return tempered(logits, forbidden, temperature).log_softmax(dim=-1)


def tempered(logits: Tensor, forbidden: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """(..., V) float64 log-probabilities of logits (..., V) but for a constant, which `draw` does not need.

    forbidden: (V,) bool, tokens of probability zero. temperature > 0 divides the logits; 0, and what is below
    `COLDEST`, puts all mass on the best.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    scores = logits.to(torch.float64)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -torch.inf)
    if temperature < COLDEST:
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, best, 0.0)
    if temperature < 1:  # the best is at 0, so that no quotient overflows
        scores = scores - scores.amax(dim=-1, keepdim=True)
    return scores if temperature == 1 else scores / temperature


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: log p_u + scale (log p_c - log p_u), renormalised. Logits (..., V) to float64 (..., V).

    scale 1 is p_c itself, 0 is p_u, more than 1 goes beyond p_c. Source: Ho and Salimans, "Classifier-free diffusion
    guidance" (arXiv 2207.12598); for tokens Sanchez et al. (arXiv 2306.17806), whose convention for scale this is.
    """
    log_c, log_u = (logits.to(torch.float64).log_softmax(dim=-1) for logits in (conditional, unconditional))
    impossible = log_c.isneginf() & log_u.isneginf()
    return (log_u + scale * (log_c - log_u)).masked_fill(impossible, -torch.inf).log_softmax(dim=-1)


def truncate(log_probs: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Keep the top_k most likely tokens, then the smallest set whose mass reaches top_p; renormalised. (..., V)."""
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if top_k < log_probs.shape[-1]:
            cut = log_probs.topk(top_k, dim=-1).values[..., -1:]
            log_probs = log_probs.masked_fill(log_probs < cut, -torch.inf)
    if top_p is not None:
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
        if top_p < 1.0:
            ranked, order = log_probs.log_softmax(dim=-1).sort(dim=-1, descending=True)
            drop = ranked.exp().cumsum(dim=-1) - ranked.exp() >= top_p
            log_probs = log_probs.masked_fill(drop.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return log_probs.log_softmax(dim=-1)


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (...) int64 from log_probs (..., V) float64 by inverse CDF; uniforms (...) float64 in (0, 1).

    log_probs need not be normalised; the largest of each row must be finite.
    """
    return draw_weighted(log_probs.softmax(dim=-1), uniforms)


def draw_weighted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (...) int64 as `draw` gives them, from weights (..., V) float64, at least 0 and somewhere positive."""
    return _inverse_cdf(weights, uniforms.unsqueeze(-1)).squeeze(-1)


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """(..., 1) int64: the first place where the sum of weights (..., V) up to it exceeds that share of all of them.

    A running sum waits for each of its additions, so of a long row the sums of blocks are searched first, and then one
    block. A place without weight is never found: rounding does not step past the last one with weight.

    weights: float64, at least 0 and somewhere positive. uniforms: (..., 1) float64 in (0, 1).
    """
    size, length = _BLOCK, weights.shape[-1]
    uniforms = uniforms.clamp(max=_BELOW_ONE)
    if length < 4 * size:
        running = weights.cumsum(dim=-1)
        return torch.searchsorted(running, uniforms * running[..., -1:], right=True)
    whole = length - length % size
    sums = weights[..., :whole].unflatten(-1, (-1, size)).sum(dim=-1)
    if whole < length:
        sums = torch.cat((sums, weights[..., whole:].sum(dim=-1, keepdim=True)), dim=-1)
    running = sums.cumsum(dim=-1)
    target = uniforms * running[..., -1:]
    block = torch.searchsorted(running, target, right=True)
    before = torch.where(block > 0, running.gather(-1, (block - 1).clamp(min=0)), 0.0)
    place = block * size + torch.arange(size, device=weights.device)
    inside = weights.gather(-1, place.clamp(max=length - 1)).masked_fill(place >= length, 0.0)
    running = inside.cumsum(dim=-1)
    # rounding may leave more to find than the block holds: then it is the last of it that adds any
    last = torch.searchsorted(running, running[..., -1:].contiguous())
    return block * size + torch.searchsorted(running, target - before, right=True).minimum(last)


def confidence(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the drawn token. log_probs (N, V), tokens (N,); returns (N,)."""
    return log_probs.gather(-1, tokens[:, None])[:, 0].exp()


def margin(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the best token less that of the second best. (N,)."""
    best = log_probs.topk(min(2, log_probs.shape[-1]), dim=-1).values.exp()
    return best[:, 0] - best[:, 1] if best.shape[-1] > 1 else best[:, 0]


def negative_entropy(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Less uncertain positions first: sum p log p, in nats. (N,)."""
    return torch.special.xlogy(log_probs.exp(), log_probs.exp()).sum(dim=-1)


Order = Callable[[Tensor, Tensor], Tensor]

ADAPTIVE_ORDERS: dict[str, Order] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": negative_entropy,
}
"""Orders that look at the predictions: the position of the highest score is revealed first."""

_PROBABILITY_LIKE = (confidence, margin)
"""Orders whose scores lie in [0, 1]: noise is added to their logarithm, to the scores of all others as they are."""

STATIC_ORDERS = ("random", "left_to_right")
"""Orders known before predicting; only these allow the network to be asked at the changing positions alone."""

ORDERS = (*STATIC_ORDERS, *ADAPTIVE_ORDERS)


def find_order(order: str | Order) -> Order | None:
    """The function of an order that looks at the predictions, by its name or as the user gives it; None for others."""
    return order if callable(order) else ADAPTIVE_ORDERS.get(order)


NO_ORDER = "order must return numbers, got nan"
"""What is said of scores that are none."""


def score(order: Order, log_probs: Tensor, tokens: Tensor) -> Tensor:
    """(N,) float64: an order's scores, nan among them. log_probs (N, V) float64, tokens (N,) int64, those drawn."""
    scores = order(log_probs, tokens)
    if not isinstance(scores, Tensor) or scores.shape != tokens.shape:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"order must return one score for each of the {len(tokens)} positions, got {got}")
    return scores.to(log_probs)


def perturb(order: Order, scores: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Scores with Gumbel noise of this temperature, so that the surest position is likely, not certain, to be next.

    By the Gumbel-max trick the position of the highest result is i with chance proportional to
    confidence_i^(1/temperature) (margin alike), or exp(score_i / temperature) for other scores: 0 is the order itself,
    and a large temperature the random order. Source: MaskGIT, Chang et al. 2202.04200.

    scores, uniforms: float64 of one shape, uniforms in (0, 1).
    """
    tiny = torch.finfo(scores.dtype).tiny
    level = scores.clamp(min=tiny).log() if order in _PROBABILITY_LIKE else scores
    return level - temperature * (-uniforms.log()).log()
