"""Hiding prompts in training, so that one model can be asked with its prompt and without it: guidance needs both."""

from __future__ import annotations

from torch import Tensor

from .randomness import RowRandom

DROP_SEED = 0x44524F5000000000
"""Distinguishes the seed of which prompts are hidden from that of the noise."""


def drop_prompts(
    x0: Tensor, editable: Tensor, special: Tensor, random: RowRandom, probability: float, mask_id: int | None
) -> Tensor:
    """x0 with the prompts of some rows hidden: each of their tokens, special ones apart, becomes [MASK].

    A prompt is what of a row is neither editable nor special, padding included among the special tokens. A row's prompt
    is hidden as a whole or not at all, by one number of its own; x0 itself is not changed.

    Args:
        x0: (B, L) int64. editable: (B, L) bool. special: (V,) bool, the special tokens (`config.forbidden_tokens`).
        random: the rows' source. probability: in [0, 1], that a row's prompt is hidden. mask_id: [MASK].
    """
    if not probability:
        return x0
    if mask_id is None:
        raise ValueError(
            f"prompt_dropout is {probability}, which hides prompts behind [MASK]: mask_token_id must be given"
        )
    hidden = random.uniform(1) < probability
    return x0.masked_fill(hidden & ~editable & ~special[x0], mask_id)
