"""-log p of tokens under logits, without a copy of these: read once forward and once backward, some rows at a time.

    CE_m = log sum over allowed v of exp(z_{r_m, v}) - z_{r_m, target_m}

torch's own cross-entropy after float(), masked_fill() and log_softmax writes all (N, V) numbers three times forward and
twice backward, which for a small network with a large vocabulary is more work than its layers. Here a block of rows
that fits a processor's cache is taken at a time; what is kept for backward is the logits alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = {"cpu": 1 << 18}
"""Logits taken at a time, by type of device: what a processor's cache holds; elsewhere `LARGE_BLOCK`."""
LARGE_BLOCK = 1 << 27


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    forbidden: Tensor,
    *,
    row: Tensor | None = None,
    ruled_out: Tensor | None = None,
) -> Tensor:
    """(M,) float32: -log p(target_m) in nats under the softmax of a row of logits over the tokens that are allowed.

    Differentiable once, with respect to the logits.

    Args:
        logits: (N, V), of any floating type; counted in float32 (float64 stays what it is).
        target: (M,) int64. forbidden: (V,) bool, tokens of probability 0.
        row: (M,) int64, the row of logits that each target is asked of; None: target m of row m, and M = N.
        ruled_out: (N,) int64, one more token of probability 0 in each row; -1: none.
    """
    return _CrossEntropy.apply(logits, target, forbidden, row, ruled_out)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, forbidden, row, ruled_out):
        barrier = torch.zeros(logits.shape[1], dtype=_counted(logits), device=logits.device)
        barrier.masked_fill_(forbidden, -torch.inf)
        log_sum = logits.new_empty(len(logits), dtype=barrier.dtype)
        for start, end in _blocks(logits):
            scores = _scores(logits, barrier, ruled_out, start, end)  # torch's log_softmax is faster than its logsumexp
            log_sum[start:end] = scores.amax(dim=1) - scores.log_softmax(dim=1).amax(dim=1)
        ctx.save_for_backward(logits, target, barrier, row, ruled_out)
        if row is None:
            return log_sum - logits.gather(1, target[:, None])[:, 0].to(log_sum.dtype) - barrier[target]
        return log_sum[row] - logits[row, target].to(log_sum.dtype) - barrier[target]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        logits, target, barrier, row, ruled_out = ctx.saved_tensors
        of_row = gradient
        if row is not None:
            of_row = gradient.new_zeros(len(logits)).index_add_(0, row, gradient)
        # what is taken off a share near 1 is taken off in full precision, before it is rounded to that of the logits
        result = torch.empty_like(logits, dtype=logits.dtype if row is None else barrier.dtype)
        for start, end in _blocks(logits):
            share = _scores(logits, barrier, ruled_out, start, end).softmax(dim=1).mul_(of_row[start:end, None])
            if row is None:
                share.scatter_add_(1, target[start:end, None], -of_row[start:end, None])
            result[start:end] = share
        if row is not None:
            result.index_put_((row, target), -gradient, accumulate=True)
        return result.to(logits.dtype), None, None, None, None


def _counted(logits: Tensor) -> torch.dtype:
    return logits.dtype if logits.dtype == torch.float64 else torch.float32


def _blocks(logits: Tensor) -> list[tuple[int, int]]:
    rows = max(1, BLOCK.get(logits.device.type, LARGE_BLOCK) // max(1, logits.shape[1]))
    return [(start, min(start + rows, len(logits))) for start in range(0, len(logits), rows)]


def _scores(logits: Tensor, barrier: Tensor, ruled_out: Tensor | None, start: int, end: int) -> Tensor:
    """A block of rows of logits as they are counted, minus infinity at what has no probability; not the logits."""
    scores = logits[start:end].to(barrier.dtype) + barrier
    if ruled_out is None:
        return scores
    own = ruled_out[start:end, None]
    return scores.scatter_(1, own.clamp(min=0), scores.gather(1, own.clamp(min=0)).masked_fill(own >= 0, -torch.inf))
