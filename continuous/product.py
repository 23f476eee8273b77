"""Several processes side by side, each with a clock of its own: text and images together, or one from the other.

x, noise and t are tuples, an entry for each part; each part is corrupted and brought back by its own process, and all
stand behind one predictor, which reads every part and says every x0_hat. The loop is as it is.

    both fall together            joint generation
    one falls, then the other     text first, or image first
    one stands at 0               the other is generated given it: exactly, since it is clean and the predictor sees it

A part whose clock stands at 0 is handed on as it is, whatever the predictor says of it. The objective is the sum of the
parts' own, each at a t of its own, drawn apart; among these t = 0, so that the predictor knows clean parts.

Source: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9262, 9271); a clock for each part: Bao et al.,
"UniDiffuser" (2303.06555).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from udm_text.core import PredictX0, Process, denoise
from udm_text.randomness import RowRandom

Parts = tuple[Any, ...]


class Held(NamedTuple):
    """In place of the noise of a part that stands at 0: what it is."""

    x: Tensor


class ProductProcess:
    """A `core.Process` of tuples: the processes of its parts, each at its own t.

    `editable` is a tuple, too, or None. `churn` is one number for all parts, or a tuple of what each takes. A clock
    stands at 0 for all rows of a batch or for none; it is read from the device once a step and part.

    Args:
        parts: the processes, two or more, in the order of the tuples.
    """

    def __init__(self, *parts: Process):
        if len(parts) < 2:
            raise ValueError(f"a product needs two processes or more, got {len(parts)}")
        for number, part in enumerate(parts):
            if not all(callable(getattr(part, name, None)) for name in ("corrupt", "invert_noise", "blend", "prior")):
                raise ValueError(f"part {number} must be a process, got {type(part).__name__}")
        self.parts = parts

    def _each(self, what: str, values: Any) -> Parts:
        """A tuple of as many entries as there are parts; None: of None."""
        if values is None:
            return (None,) * len(self.parts)
        if not isinstance(values, tuple) or len(values) != len(self.parts):
            given = f"{len(values)} entries" if isinstance(values, tuple) else type(values).__name__
            raise ValueError(f"{what} must be a tuple of {len(self.parts)}, an entry for each part, got {given}")
        return values

    def sample_noise(self, x: Parts, *, editable: Parts | None = None, random: RowRandom | None = None) -> Parts:
        """The noise of each part."""
        parts = zip(self.parts, self._each("x", x), self._each("editable", editable), strict=True)
        return tuple(part.sample_noise(own, editable=may, random=random) for part, own, may in parts)

    def corrupt(self, x0: Parts, t: Parts, noise: Parts) -> Parts:
        """F_t of each part at its own t; one that is held as it is."""
        parts = zip(self.parts, *(self._each(n, v) for n, v in (("x0", x0), ("t", t), ("noise", noise))), strict=True)
        return tuple(
            own.x if isinstance(own, Held) else part.corrupt(clean, now, own) for part, clean, now, own in parts
        )

    def invert_noise(
        self, x0: Parts, xt: Parts, t: Parts, *, editable: Parts | None = None, random: RowRandom | None = None
    ) -> Parts:
        """The recovered noise of each part; of one at t = 0 itself, `Held`."""
        named = (("x0", x0), ("xt", xt), ("t", t), ("editable", editable))
        parts = zip(self.parts, *(self._each(name, values) for name, values in named), strict=True)
        return tuple(
            Held(noisy) if stands(now) else part.invert_noise(clean, noisy, now, editable=may, random=random)
            for part, clean, noisy, now, may in parts
        )

    def blend(self, noise: Parts, fresh: Parts, churn: Any) -> Parts:
        """A share `churn` of the noise of each part fresh; churn: for all, or a tuple."""
        shares = churn if isinstance(churn, tuple) else (churn,) * len(self.parts)
        parts = zip(self.parts, noise, fresh, self._each("churn", shares), strict=True)
        return tuple(own if isinstance(own, Held) else part.blend(own, new, share) for part, own, new, share in parts)

    def prior(self, x: Parts, *, editable: Parts | None = None, random: RowRandom | None = None) -> Parts:
        """A draw of x_T of each part."""
        parts = zip(self.parts, self._each("x", x), self._each("editable", editable), strict=True)
        return tuple(part.prior(own, editable=may, random=random) for part, own, may in parts)

    def __repr__(self) -> str:
        return f"ProductProcess({', '.join(map(repr, self.parts))})"


def stands(t: Tensor) -> bool:
    """Whether a clock, (B,) int64, stands at 0; ValueError where it does for some rows of a batch alone."""
    still = t == 0
    if bool(still.all()):
        return True
    if bool(still.any()):
        raise ValueError("a clock must stand at 0 for all rows of a batch or for none")
    return False


# clocks ---------------------------------------------------------------------------------------------------------------


def together(tops: Sequence[int], num_steps: int, powers: Sequence[float] | None = None) -> Tensor:
    """Clocks that fall side by side, (num_steps + 1, parts) int64: part i from tops[i], in proportion to
    (1 - step / num_steps)^powers[i].

    A top of 0 holds its part. A part of fewer steps than others rests in between.

    Args:
        powers: positive; above 1 a part is made before the others, below 1 after them. None: all 1.
    """
    check_tops(tops, num_steps)
    powers = [1.0] * len(tops) if powers is None else powers
    if len(powers) != len(tops) or min(powers) <= 0:
        raise ValueError(f"powers must be {len(tops)} positive numbers, one for each part, got {list(powers)}")
    left = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    return torch.stack([(top * left**power).ceil().long() for top, power in zip(tops, powers, strict=True)], 1)


def in_turn(tops: Sequence[int], num_steps: int, order: Sequence[int]) -> Tensor:
    """Clocks that fall one after the other, num_steps for each part: (parts * num_steps + 1, parts) int64.

    order: the parts by number, the first to be made first.
    """
    check_tops(tops, num_steps)
    if sorted(order) != list(range(len(tops))):
        raise ValueError(f"order must hold each of the parts 0..{len(tops) - 1} once, got {list(order)}")
    whole = together(tops, num_steps)
    columns = [torch.empty(0)] * len(tops)
    for place, part in enumerate(order):
        before, behind = place * num_steps, (len(tops) - 1 - place) * num_steps
        columns[part] = torch.cat((whole[:1, part].expand(before), whole[:, part], whole[-1:, part].expand(behind)))
    return torch.stack(columns, 1)


def check_tops(tops: Sequence[int], num_steps: int) -> None:
    """ValueError unless these are clocks to begin at, and so many steps take at least one of them to 0."""
    if len(tops) < 2 or min(tops) < 0 or not max(tops):
        raise ValueError(f"tops must be a number >= 0 for each of two parts or more, not all 0, got {list(tops)}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}")


def check_clocks(clocks: Tensor, parts: int) -> None:
    """ValueError unless clocks (K + 1, parts) int64 fall or stand from step to step, and end at 0."""
    if clocks.ndim != 2 or clocks.shape[1] != parts or len(clocks) < 2 or clocks.dtype != torch.int64:
        raise ValueError(
            f"clocks must be (steps + 1, {parts}) int64, a column for each part, got {tuple(clocks.shape)} "
            f"{clocks.dtype}"
        )
    if bool((clocks.diff(dim=0) > 0).any()) or bool((clocks < 0).any()):
        raise ValueError("a clock must not rise, nor fall below 0")
    if bool(clocks[-1].any()):
        raise ValueError(f"clocks must end at 0, got {clocks[-1].tolist()}")


@torch.no_grad()
def sample_product(
    process: ProductProcess,
    predict_x0: PredictX0,
    x: Parts,
    clocks: Tensor,
    *,
    churn: Any = 0.0,
    editable: Parts | None = None,
    random: RowRandom | None = None,
) -> Parts:
    """New parts, or some of them given the others.

    Args:
        predict_x0: called as predict_x0(xt, t, s) with tuples; gives a `core.Prediction` of a tuple.
        x: what is given of the parts whose clock begins at 0; of the others anything of the shape and dtype wanted.
        clocks: (steps + 1, parts) int64, see `together` and `in_turn`.
        churn: for all parts, or a tuple.
    """
    check_clocks(clocks, len(process.parts))
    rows, device = len(x[0]), x[0].device
    random = RowRandom.fresh(rows, device) if random is None else random
    drawn = process.prior(x, editable=editable, random=random)
    xt = tuple(new if top else own for new, own, top in zip(drawn, x, clocks[0].tolist(), strict=True))
    walk: list[Any] = [
        tuple(torch.full((rows,), clock, dtype=torch.int64, device=device) for clock in step)
        for step in clocks.tolist()
    ]
    walked: Any = denoise(
        process,  # type: ignore[arg-type]  # a process of tuples
        predict_x0,
        xt,  # type: ignore[arg-type]
        walk,
        churn,
        editable=editable,  # type: ignore[arg-type]
        random=random,
    )
    return walked
