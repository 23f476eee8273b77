"""Count grids l = t_0 > t_1 > ... > t_K = 0: how many editable positions are still corrupted after each step."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_counts(start: Tensor, num_steps: int | None = None) -> Tensor:
    """A grid that removes the same share of the corruption in every step.

    Args:
        start: (B,) int64 >= 0, the corrupted positions of each row at the beginning.
        num_steps: K >= 1; None takes one position a step (K = the largest start). A row with start < K takes one
            position a step and then rests, so that its own walk is the same in any batch.

    Returns:
        (K + 1, B) int64, from `start` down to 0; consecutive counts of a row differ by at least one until 0 is reached
        and the row ends at 0.
    """
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if (start < 0).any():
        raise ValueError(f"start must be at least 0 corrupted positions in every row, got {int(start.min())}")
    longest = int(start.max()) if start.numel() else 0
    steps = longest if num_steps is None else min(num_steps, longest)
    own = start.clamp(max=steps)[None].clamp(min=1)
    done = torch.arange(steps + 1, device=start.device)[:, None].clamp(max=own)
    return start[None] - torch.div(start[None] * done, own, rounding_mode="floor")
