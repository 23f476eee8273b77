"""The two corruptions of token rows: [MASK], and substitution by a different token.

For a row with l editable positions, t in {0..l} counts the corrupted ones, exactly. The noise is a uniform random
ranking of the editable positions, carried as i.i.d. uniform keys; substitution adds one shift for each position. F_t
corrupts the positions of rank < t. No part of the noise depends on x0, so any share of it may be replaced by fresh
noise without changing the law (`blend`), and whatever x0_hat is, exactly s positions differ from it after a step.

Source: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9271), mask and edit models; docs/mathematics.md.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .core import Process
from .randomness import RowRandom


class TokenProcess(Process, Protocol):
    """A `Process` of token rows: it can say which positions of xt are corrupted."""

    visible: bool
    """Whether xt alone shows the corrupted set; then x0_hat is needed at the changing positions only."""

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: the corrupted positions."""


class TokenNoise(NamedTuple):
    """Noise of a batch of rows, all (B, L).

    keys: float64 in (0, 1), +inf where a position is not editable; the rank of a key is the position's rank.
    coins: float64 in (0, 1); `blend` replaces a position where the fresh noise's coin is below churn.
    shifts: int64 in 1..V-1 (substitute; None for masks): how far the replacement stands from x0 in the vocabulary.
    """

    keys: Tensor
    coins: Tensor
    shifts: Tensor | None = None


def ranks(keys: Tensor) -> Tensor:
    """Rank 0..L-1 of every key in its row. keys: (B, L); returns (B, L) int64."""
    return keys.argsort(dim=-1, stable=True).argsort(dim=-1)


def corrupted_set(keys: Tensor, t: Tensor) -> Tensor:
    """S_t: (B, L) bool, the editable positions whose rank is below t. keys: (B, L), t: (B,)."""
    return (ranks(keys) < t[:, None]) & torch.isfinite(keys)


def _editable(x: Tensor, editable: Tensor | None) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if editable is None else editable


def _source(x: Tensor, random: RowRandom | None) -> RowRandom:
    return RowRandom.fresh(len(x), x.device) if random is None else random


def _fresh_keys(editable: Tensor, random: RowRandom) -> Tensor:
    return random.uniform(editable.shape[1]).masked_fill(~editable, torch.inf)


def _posterior_keys(corrupted: Tensor, editable: Tensor, scores: Tensor | None, random: RowRandom) -> Tensor:
    """I.i.d. uniform keys given that the corrupted positions hold the smallest ones.

    The sorted fresh keys go to the corrupted positions first, among themselves in random order, or by rising `scores`
    (so the position of the highest score is the first to leave the corrupted set), then to the others.
    """
    values = _fresh_keys(editable, random).sort(dim=-1).values
    tie = random.uniform(editable.shape[1])
    if scores is not None:
        tie = torch.where(corrupted, (ranks(scores.to(torch.float64)) + tie) / editable.shape[1], tie)
    order = (tie + (~corrupted).double() + (~editable).double()).argsort(dim=-1)
    return torch.empty_like(values).scatter_(1, order, values)


def _blend(noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
    if not 0.0 <= churn <= 1.0:
        raise ValueError(f"churn must lie in [0, 1], got {churn}")
    swap = fresh.coins < churn
    if noise.shifts is None or fresh.shifts is None:
        shifts = None
    else:
        shifts = torch.where(swap, fresh.shifts, noise.shifts)
    return TokenNoise(torch.where(swap, fresh.keys, noise.keys), torch.where(swap, fresh.coins, noise.coins), shifts)


class MaskProcess:
    """F_t puts [MASK] on the positions of rank < t. It can be inverted before predicting: [MASK] is visible in xt.

    Args:
        mask_token_id: the id of [MASK].
    """

    visible = True  # xt alone shows the corrupted set

    def __init__(self, mask_token_id: int):
        self.mask_token_id = int(mask_token_id)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` without shifts."""
        editable, random = _editable(x, editable), _source(x, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]))

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 with [MASK] on exactly min(t, l) editable positions. t: (B,) int64."""
        return x0.masked_fill(corrupted_set(noise.keys, t), self.mask_token_id)

    def corrupted(self, xt: Tensor, x0: Tensor | None = None) -> Tensor:
        """(B, L) bool: where xt is [MASK]."""
        return xt == self.mask_token_id

    def invert_noise(
        self,
        x0: Tensor | None,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt, a draw from its posterior. x0 and t are not needed: xt shows the set.

        `scores` (B, L): order inside the corrupted set; None draws it uniformly (the exact posterior).
        """
        editable, random = _editable(xt, editable), _source(xt, random)
        corrupted = self.corrupted(xt) & editable
        return TokenNoise(_posterior_keys(corrupted, editable, scores, random), random.uniform(xt.shape[1]))

    def changing(self, xt: Tensor, s: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) bool: the positions that a step to s reveals, the only ones where x0_hat is needed."""
        return self.corrupted(xt) & ~corrupted_set(noise.keys, s) & torch.isfinite(noise.keys)

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with [MASK] on every editable position."""
        return x.masked_fill(_editable(x, editable), self.mask_token_id)


class SubstituteProcess:
    """F_t replaces the tokens of rank < t, each by a token that differs from x0, uniform over the V - 1 others.

    Hence S_t = {i : xt_i != x0_i} and q(xt | x0) = 1[Hamming(xt, x0) = t] / (C(l, t) (V - 1)^t).

    Args:
        allowed_token_ids: (V,) int64, V >= 2: the tokens that may stand at an editable position (no special tokens).
    """

    visible = False  # the corrupted set is where xt differs from x0

    def __init__(self, allowed_token_ids: Tensor):
        allowed = torch.as_tensor(allowed_token_ids, dtype=torch.int64).unique()
        if len(allowed) < 2:
            raise ValueError(
                "process 'substitute' needs at least 2 tokens that may stand at an editable position, "
                f"the vocabulary has {len(allowed)}"
            )
        self.allowed = allowed
        self.num_tokens = len(allowed)

    def _index(self, tokens: Tensor) -> Tensor:
        allowed = self.allowed.to(tokens.device)
        return torch.searchsorted(allowed, tokens.contiguous()).clamp(max=self.num_tokens - 1)

    def _checked(self, tokens: Tensor, editable: Tensor, name: str) -> Tensor:
        index = self._index(tokens)
        if ((self.allowed.to(tokens.device)[index] != tokens) & editable).any():
            raise ValueError(f"{name} holds a token that may not stand at an editable position (special or [MASK])")
        return index

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` with shifts."""
        editable, random = _editable(x, editable), _source(x, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]), self._shifts(x, random))

    def _shifts(self, x: Tensor, random: RowRandom) -> Tensor:
        return 1 + (random.uniform(x.shape[1]) * (self.num_tokens - 1)).long()

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 with exactly min(t, l) editable positions replaced by another token. t: (B,) int64."""
        if noise.shifts is None:
            raise ValueError("this noise carries no shifts: it was made by a mask process")
        chosen = corrupted_set(noise.keys, t)
        index = (self._checked(x0, chosen, "x0") + noise.shifts) % self.num_tokens
        return torch.where(chosen, self.allowed.to(x0.device)[index], x0)

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: where xt differs from x0."""
        return xt != x0

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt, a draw from its posterior; t is not needed: the differing set shows it.

        `scores` (B, L): order inside the corrupted set; None draws it uniformly (the exact posterior).
        """
        editable, random = _editable(xt, editable), _source(xt, random)
        corrupted = (xt != x0) & editable
        keys = _posterior_keys(corrupted, editable, scores, random)
        coins = random.uniform(xt.shape[1])
        recovered = self._checked(xt, corrupted, "xt") - self._checked(x0, corrupted, "x0")
        recovered = recovered % self.num_tokens
        return TokenNoise(keys, coins, torch.where(corrupted, recovered, self._shifts(xt, random)))

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with a uniform allowed token on every editable position."""
        editable, random = _editable(x, editable), _source(x, random)
        index = (random.uniform(x.shape[1]) * self.num_tokens).long()
        return torch.where(editable, self.allowed.to(x.device)[index], x)
