"""Ways to spoil an image step by step: blur, missing pixels, pooling, lost colour. And yours.

A degradation is a function (x0, t) -> xt of images (B, C, H, W) and steps (B,) int64 in 0..T that gives x0 itself
back at t = 0. Any function will do. The ones here are frozen dataclasses, so that a checkpoint can carry them;
`register` adds a dataclass of your own to the table.

Source: Bansal et al., "Cold Diffusion" (2208.09392) for the four families; the exact forms are ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from udm_text.randomness import RowRandom

from .schedules import check_num_times

Degradation = Callable[[Tensor, Tensor], Tensor]
Kind = TypeVar("Kind", bound=type)


def per_row(values: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A value for each row, (B,), as (B, 1, ..., 1) of like's rank, on its device, in its dtype or in the one given.

    Values that have like's rank already are one for each pixel, and keep their shape.
    """
    values = values.to(like.device, like.dtype if dtype is None else dtype)
    return values if values.ndim == like.ndim else values.view(-1, *[1] * (like.ndim - 1))


@dataclasses.dataclass(frozen=True)
class Blur:
    """The image after heat has spread: a Gaussian blur of `std` * t/T pixels, with mirrored edges.

    Every cosine wave of frequency pi k/n is damped by exp(-std_t^2 (pi k/n)^2 / 2): the heat equation, exactly. At a
    std far above the image's size only the mean of each channel is left.
    """

    T: int = 20
    std: float = 8.0

    def __post_init__(self) -> None:
        check_num_times(self.T)
        _positive("std", self.std)

    def __call__(self, x0: Tensor, t: Tensor) -> Tensor:
        where = x0.dtype, x0.device
        rows, columns = (_cosines(n, *where) for n in x0.shape[-2:])
        frequency = _squares(x0.shape[-2], *where)[:, None] + _squares(x0.shape[-1], *where)[None, :]
        std = per_row(self.std * t.to(torch.float64) / self.T, x0)
        blurred = rows.T @ ((rows @ x0 @ columns.T) * torch.exp(-0.5 * std**2 * frequency)) @ columns
        return torch.where(per_row(t, x0, t.dtype) > 0, blurred, x0)  # two transforms leave a rounding error


@dataclasses.dataclass(frozen=True)
class PixelMask:
    """Pixels go missing, more at every t and the same ones for every image: round(n t/T) of n show `fill`.

    order: "centre" loses the pixels nearest to the middle first; "random" loses them in an order drawn from `seed`.
    """

    T: int = 20
    order: str = "centre"
    fill: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_num_times(self.T)
        if self.order not in ("centre", "random"):
            raise ValueError(f"order must be 'centre' or 'random', got {self.order!r}")

    def ranks(self, height: int, width: int) -> Tensor:
        """(height, width) int64: the place of each pixel in the order of loss."""
        if self.order == "random":
            keys = RowRandom(self.seed, torch.zeros(1, dtype=torch.int64)).uniform(height * width)[0]
        else:
            y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
            keys = (y[:, None].square() + x[None, :].square()).flatten()
        return keys.argsort(stable=True).argsort().view(height, width)

    def missing(self, t: Tensor, height: int, width: int) -> Tensor:
        """(B, 1, height, width) bool: which pixels are missing at t."""
        count = (t.to(torch.float64) * (height * width) / self.T).round().long()
        return (_ranks_on(self, height, width, t.device) < count[:, None, None])[:, None]

    def __call__(self, x0: Tensor, t: Tensor) -> Tensor:
        return x0.masked_fill(self.missing(t, *x0.shape[-2:]), self.fill)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Squares of factors[t] pixels show their mean: pooled down and back up. factors[0] is 1 and T is len(factors) - 1.

    Each factor must divide the next, and the last must divide height and width.
    """

    factors: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON gives a list
        pairs = zip(self.factors, self.factors[1:], strict=False)
        if len(self.factors) < 2 or self.factors[0] != 1 or any(b <= a or b % a for a, b in pairs):
            raise ValueError(f"factors must start at 1 and each must divide the next, got {self.factors}")

    @property
    def T(self) -> int:
        return len(self.factors) - 1

    def __call__(self, x0: Tensor, t: Tensor) -> Tensor:
        if any(n % self.factors[-1] for n in x0.shape[-2:]):
            raise ValueError(f"factor {self.factors[-1]} must divide height and width, got {tuple(x0.shape)}")
        xt = x0
        for step, factor in enumerate(self.factors[1:], start=1):
            pooled = functional.avg_pool2d(x0, factor)
            pooled = pooled.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
            xt = torch.where(per_row(t, x0, t.dtype) == step, pooled, xt)
        return xt


@dataclasses.dataclass(frozen=True)
class Desaturate:
    """Colour fades: x0 + t/T (grey - x0), grey the luma of ITU-R BT.601. Images of three channels."""

    T: int = 10

    def __post_init__(self) -> None:
        check_num_times(self.T)

    def __call__(self, x0: Tensor, t: Tensor) -> Tensor:
        if x0.shape[1] != 3:
            raise ValueError(f"desaturation needs images of 3 channels, got {tuple(x0.shape)}")
        grey = (x0 * _luma(x0.dtype, x0.device)).sum(1, keepdim=True)
        return torch.lerp(x0, grey.expand_as(x0), per_row(t.to(torch.float64) / self.T, x0).expand_as(x0))


DEGRADATIONS: dict[str, Callable[..., Any]] = {
    "blur": Blur,
    "pixel_mask": PixelMask,
    "pool": Pool,
    "desaturate": Desaturate,
}
"""The one table from a degradation's name, as checkpoints and commands write it, to its class."""


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: a dataclass of your own takes its place in the table, so that checkpoints can carry it."""

    def add(kind: Kind) -> Kind:
        if name in DEGRADATIONS:
            raise ValueError(f"there is a degradation of the name {name!r} already: {DEGRADATIONS[name]}")
        if not dataclasses.is_dataclass(kind):
            raise ValueError(f"a registered degradation must be a dataclass, so that it can be saved, got {kind}")
        DEGRADATIONS[name] = kind
        return kind

    return add


def degradation(name: str, **parameters: Any) -> Degradation:
    """A degradation of the table: `degradation("blur", T=20, std=4.0)`."""
    if name not in DEGRADATIONS:
        raise ValueError(f"degradation must be one of {', '.join(map(repr, DEGRADATIONS))}, got {name!r}")
    try:
        return DEGRADATIONS[name](**parameters)
    except TypeError as error:
        raise ValueError(f"degradation {name!r} does not take these parameters: {error}") from error


def to_dict(chosen: Degradation) -> dict[str, Any]:
    """{"name": ..., and its parameters}, JSON-ready. ValueError for a function that is not in the table."""
    for name, kind in DEGRADATIONS.items():
        if type(chosen) is kind:
            return {"name": name, **dataclasses.asdict(chosen)}  # type: ignore[call-overload]
    raise ValueError(
        f"the degradation {chosen!r} cannot be saved: make it a dataclass and register it with @register('its-name')"
    )


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")


# Constants, sent to a device once.


@functools.lru_cache(maxsize=64)
def _cosines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n points as a matrix: row k holds wave k."""
    k = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * k[:, None] * (k[None, :] + 0.5)) * math.sqrt(2 / n)
    waves[0] *= math.sqrt(0.5)
    return waves.to(device, dtype)


@functools.lru_cache(maxsize=64)
def _squares(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (math.pi / n * torch.arange(n, dtype=torch.float64)).square().to(device, dtype)


@functools.lru_cache(maxsize=64)
def _luma(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor((0.299, 0.587, 0.114), dtype=dtype, device=device)[:, None, None]


@functools.lru_cache(maxsize=64)
def _ranks_on(mask: PixelMask, height: int, width: int, device: torch.device) -> Tensor:
    return mask.ranks(height, width).to(device)
