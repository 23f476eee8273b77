"""`udm train` with masks as others draw them: a share u uniform in (0, 1), every token hidden with chance u.

    python benchmarks/bernoulli.py train --data ... --output ...        # the options of udm train

The loss is the bound's, sum of CE_i over the hidden tokens over u, in place of (l/t) of the same sum for exactly t
hidden tokens: their means are the same, and where every token costs the same the latter does not vary. Shares are
stratified over the batch as counts are, and the bound is measured as always.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udm_text.cli import main, train_text
from udm_text.randomness import step_random
from udm_text.training.objective import TextObjective

SHARES, COINS = 0x5348415245530000, 0x434F494E53000000
"""Distinguish the seeds of u and of the coins from that of the noise."""


class BernoulliObjective(TextObjective):
    """A `TextObjective` of masks whose counts are binomial, with the weights 1/u. Its other options stay at "bound"."""

    def draw_counts(self, lengths: Tensor, stratum: Tensor, total: int, seed: int, step: int) -> Tensor:
        """(B,) int64 in 0..l, Bin(l, u)."""
        row = torch.tensor([total])
        order = step_random(seed ^ SHARES, step, row).uniform(total)[0].argsort()
        inside = step_random(seed ^ SHARES, step, row + 1).uniform(total)[0]
        self.share = (order[stratum] + inside[stratum]) / total
        coins = step_random(seed ^ COINS, step, stratum).uniform(int(lengths.max()))
        inside_row = torch.arange(coins.shape[1]) < lengths[:, None]
        return ((coins < self.share[:, None]) & inside_row).sum(dim=1)

    def row_weights(self, t: Tensor, lengths: Tensor) -> Tensor | None:
        """What makes 1/u of the weight l/t."""
        return t.double() / (lengths.clamp(min=1) * self.share)


if __name__ == "__main__":
    train_text.TextObjective = BernoulliObjective  # type: ignore[misc]
    main()
