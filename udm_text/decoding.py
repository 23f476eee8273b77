"""From logits to tokens: forbidden tokens, temperature, top-k, top-p, exact draws in float64, and position orders.

Draws use the inverse of the cumulative distribution in float64. Sampling in float32 lowers the entropy of text and
flatters it (Zheng et al., "Masked diffusion models are secretly time-agnostic masked models", arXiv 2409.02908).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, forbidden: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """(..., V) float64 log-probabilities of logits (..., V).

    forbidden: (V,) bool, tokens of probability zero. temperature > 0 divides the logits; 0 puts all mass on the best.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    scores = logits.to(torch.float64)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -torch.inf)
    if temperature == 0:
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, best, 0.0)
    return (scores / temperature).log_softmax(dim=-1)


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
    """Tokens (...) int64 from log_probs (..., V) float64 by inverse CDF; uniforms (...) float64 in (0, 1)."""
    cdf = log_probs.exp().cumsum(dim=-1)
    target = (uniforms * cdf[..., -1]).unsqueeze(-1)
    last = (cdf < cdf[..., -1:]).sum(dim=-1)  # the last token with mass: rounding never steps past it
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).minimum(last)


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

STATIC_ORDERS = ("random", "left_to_right")
"""Orders known before predicting; only these allow the network to be asked at the changing positions alone."""

ORDERS = (*STATIC_ORDERS, *ADAPTIVE_ORDERS)
