"""Uniform numbers that belong to a row: the same whatever the batch, the padding, the device or the order of rows.

A stateful generator hands its numbers out in the order they are asked for, so a row's noise would depend on its
neighbours. Here a number is a pure function of (seed, row, draw, position): Philox-4x32-10, the counter-based
generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), computed for a whole batch at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_AHEAD = {"cpu": 1 << 15}
"""Numbers that are made ahead of the calls for them, at most."""

_AHEAD_ELSEWHERE = 1 << 22
"""The same on accelerators, where a few numbers take as long as many."""


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox-4x32.

    Args:
        counter: four int64 tensors of one broadcast shape, each holding values of 32 bits.
        key: two values of 32 bits.

    Returns:
        Four int64 tensors of that shape, each holding 32 random bits.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    # both halves of a round at once: few, larger operations
    even, odd = torch.stack((c0, c2)), torch.stack((c1, c3))
    column = (2, *[1] * c0.ndim)
    constants = _constants(*key, str(even.device))
    multipliers = constants[0].view(column)
    for round_key in constants[1:].view(10, *column).unbind():
        # int64 products wrap around; the shift is arithmetic, so the high word is masked back to 32 bits
        product = (even * multipliers).flip(0)
        even, odd = (product >> 32).bitwise_and_(_WORD).bitwise_xor_(odd).bitwise_xor_(round_key), product & _WORD
    return even[0], odd[0], even[1], odd[1]


@lru_cache(maxsize=256)
def _constants(k0: int, k1: int, device: str) -> Tensor:
    """(11, 2) int64: the multipliers of a round, and the keys of the ten; sent to a device once."""
    keys = [[(k0 + i * _WEYL[0]) & _WORD, (k1 + i * _WEYL[1]) & _WORD] for i in range(10)]
    with torch.inference_mode(False):
        return torch.tensor([list(_MULTIPLIERS), *keys], device=device)


class RowRandom:
    """A source of uniforms for a batch of rows, each row with its own stream.

    Every call of `uniform` is one draw; calls are counted, so two sources made alike give the same sequence. A row's
    number at a position depends on (seed, row, draw, position) only: not on the other rows and not on how many
    positions were asked for.

    Args:
        seed: any integer; its low 64 bits count.
        rows: (B,) int64, the identity of each row (for example the sample index), 64 bits each.
    """

    def __init__(self, seed: int, rows: Tensor):
        if rows.ndim != 1 or rows.dtype != torch.int64:
            raise ValueError(f"rows must be a (B,) int64 tensor, got {tuple(rows.shape)} {rows.dtype}")
        self.seed = int(seed)
        self.rows = rows
        self.draws = 0
        self._ahead: tuple[int, int, Tensor] = 0, 0, torch.empty(0)
        self._expected = 0

    @classmethod
    def fresh(cls, num_rows: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None):
        """A source whose seed is drawn from `generator` (None: torch's default generator), rows 0..num_rows-1."""
        where = generator.device if generator is not None else "cpu"
        seed = torch.randint(2**63 - 1, (), generator=generator, device=where).item()
        return cls(int(seed), torch.arange(num_rows, device=device))

    def uniform(self, n: int) -> Tensor:
        """(B, n) float64, independent and uniform on the open interval (0, 1), 52 random bits each.

        52, not 53: half a step more must be a float64 of its own, or the largest number would round to 1.
        """
        width, first, block = self._ahead
        if width != n or not 0 <= self.draws - first < len(block):
            # Calls alike come in runs, and few numbers cost as much as many: each time twice as many draws are made.
            follows = width == n and self.draws == first + len(block)
            most = _AHEAD.get(self.rows.device.type, _AHEAD_ELSEWHERE)
            room = max(1, most // max(1, n * len(self.rows)))
            first, wish = self.draws, max(2 * len(block) if follows else 1, self._expected)
            self._expected = 0
            block = self._uniform(first, min(wish, room), n)
            self._ahead = n, first, block
        self.draws += 1
        return block[self.draws - 1 - first]

    def coming(self, count: int, n: int) -> Tensor:
        """(count, B, n): what the next `count` calls of `uniform` with this n give; they are not counted as made."""
        width, first, block = self._ahead
        if width != n or not first <= self.draws <= first + len(block) - count:
            most = _AHEAD.get(self.rows.device.type, _AHEAD_ELSEWHERE)
            room = max(count, most // max(1, n * len(self.rows)))
            first, block = self.draws, self._uniform(self.draws, min(max(count, self._expected), room), n)
            self._ahead = n, first, block
        return block[self.draws - first :][:count]

    def expect(self, draws: int) -> None:
        """So many calls of `uniform` will follow, or more, all of one n: their numbers are made together where there is
        room."""
        self._expected = max(self._expected, draws)

    def _uniform(self, first: int, count: int, n: int) -> Tensor:
        """(count, B, n): the draws from `first` on."""
        key = self.seed & _WORD, (self.seed >> 32) & _WORD
        pair = torch.arange((n + 1) // 2, device=self.rows.device)  # one counter gives two numbers of 52 bits
        row = self.rows[:, None]
        draw = torch.arange(first, first + count, device=self.rows.device)[:, None, None]
        w0, w1, w2, w3 = philox4x32((pair, draw, row & _WORD, (row >> 32) & _WORD), key)
        bits = torch.stack(((w0 << 20) | (w1 >> 12), (w2 << 20) | (w3 >> 12)), dim=-1)
        return (bits.flatten(-2)[..., :n].to(torch.float64) + 0.5) * 2.0**-52

    def normal(self, n: int) -> Tensor:
        """(B, n) float64, independent and standard normal: the inverse distribution function at one draw of `uniform`.

        The 52 bits of a uniform reach to 8.2 standard deviations on either side.
        """
        return torch.special.ndtri(self.uniform(n))

    def fork(self, rows: Tensor) -> RowRandom:
        """A source for a subset of the rows, at the same draw. `rows`: index or boolean mask over B."""
        other = RowRandom(self.seed, self.rows[rows])
        other.draws = self.draws
        return other


def step_random(seed: int, step: int, row_index: Tensor) -> RowRandom:
    """The noise of rows in training: it depends on (seed, global step, place in the global batch) and on nothing else.

    row_index: (B,) int64, below 2^32.
    """
    return RowRandom(seed, (step << 32) + row_index)
