"""Signal schedules of variance-preserving noise: abar_t, the share of the signal's power that is left at t = 0..T.

Every schedule is a float64 table of T + 1 values with abar_0 = 1; a_t = sqrt(abar_t), b_t = sqrt(1 - abar_t). What
libraries call "timestep i" is t = i + 1 here, because t = 0 is the clean image. In continuous time a schedule is a
curve of log(a_t^2 / b_t^2) over t in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]
MAX_BETA = 0.999  # Nichol & Dhariwal 2102.09672; at 0.9999 the last steps divide by almost nothing


def check_num_times(T: int) -> int:
    """T as an int >= 1, or a ValueError."""
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ValueError(f"T, the number of corruption steps, must be an integer of at least 1, got {T!r}")
    return T


def from_betas(beta: Tensor) -> Tensor:
    """abar_t = product of (1 - beta_i), i <= t. beta: (T,) in [0, 1); returns (T + 1,) float64."""
    beta = torch.as_tensor(beta, dtype=torch.float64)
    if beta.ndim != 1 or not len(beta) or not bool(((beta >= 0) & (beta < 1)).all()):
        raise ValueError(f"betas must be a row of numbers in [0, 1), got shape {tuple(beta.shape)}: {beta}")
    return torch.cat((torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0))).exp()


def linear(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """beta_t evenly spaced (Ho et al. 2006.11239). The default is for T = 1000: raise beta_end for less."""
    return from_betas(torch.linspace(beta_start, beta_end, check_num_times(T), dtype=torch.float64))


def cosine(T: int, offset: float = 0.008) -> Tensor:
    """abar_t = f(t/T) / f(0), f(u) = cos^2(pi/2 (u + offset)/(1 + offset)), betas cut at 0.999 (2102.09672)."""
    u = torch.linspace(0, 1, check_num_times(T) + 1, dtype=torch.float64)
    return _cut(torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square())


def sigmoid(T: int, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> Tensor:
    """abar_t a sigmoid of t/T, moved and scaled to run from 1 to 0, betas cut at 0.999 (Chen 2301.10972)."""
    u = torch.linspace(0, 1, check_num_times(T) + 1, dtype=torch.float64)
    if temperature <= 0 or end <= start:
        raise ValueError(f"sigmoid needs start < end and temperature > 0, got {start}, {end}, {temperature}")
    curve = torch.sigmoid((u * (end - start) + start) / temperature)
    return _cut((curve[-1] - curve) / (curve[-1] - curve[0]))


def sigmoid_beta(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """beta_t = sigmoid(12 ((t - 1)/T - 1/2)) (beta_end - beta_start) + beta_start: beta, not abar, is the sigmoid.

    Source: public code of diffusion models, where it is called "sigmoid", as in diffusers (whose last beta stands at 6
    itself); that of Chen is `sigmoid`. The default is for T = 1000: raise beta_end for less.
    """
    u = torch.arange(check_num_times(T), dtype=torch.float64) / T - 0.5
    return from_betas(torch.sigmoid(12 * u) * (beta_end - beta_start) + beta_start)


def sqrt(T: int, slope: float = 0.02) -> Tensor:
    """alpha_t = sqrt(1 - slope t/T), abar_t = product of alpha_i^2 (Su Jianlin, kexue.fm/archives/9119)."""
    return from_betas(slope * torch.arange(1, check_num_times(T) + 1, dtype=torch.float64) / T)


LEAST_LOG_SNR, MOST_LOG_SNR = math.log(1e-4), math.log(1e4)
"""What curves of the logarithm of the signal-to-noise ratio run between, unless it is said."""


def linear_log_snr(high: float = MOST_LOG_SNR, low: float = LEAST_LOG_SNR) -> Curve:
    """A straight line from `high` at t = 0 to `low` at t = 1."""
    _check_ends(high, low)
    return lambda t: high + (low - high) * t


def cosine_log_snr(high: float = MOST_LOG_SNR, low: float = LEAST_LOG_SNR) -> Curve:
    """-2 log tan of an angle that goes evenly through what `high` and `low` cut out of 0..pi/2 (2301.11093)."""
    _check_ends(high, low)
    first, last = math.atan(math.exp(-high / 2)), math.atan(math.exp(-low / 2))
    return lambda t: -2 * torch.tan(first + (last - first) * t).log()


def _check_ends(high: float, low: float) -> None:
    if not (math.isfinite(high) and math.isfinite(low) and low < high):
        raise ValueError(f"a log_snr needs finite ends, low < high, got high {high} and low {low}")


LOG_SNRS: dict[str, Callable[..., Curve]] = {"linear": linear_log_snr, "cosine": cosine_log_snr}
"""The one table from a name to what makes a curve of log(a^2 / b^2) over t in [0, 1]."""


def log_snr(name: str, **options: float) -> Curve:
    """The curve of this name: float64 to float64, elementwise, falling, differentiable."""
    if name not in LOG_SNRS:
        raise ValueError(f"log_snr must be one of {', '.join(map(repr, LOG_SNRS))}, got {name!r}")
    try:
        return LOG_SNRS[name](**options)
    except TypeError as error:
        raise ValueError(f"log_snr {name!r} does not take these options: {error}") from error


def _cut(curve: Tensor) -> Tensor:
    """abar of the betas that a curve of shares asks for, none above 0.999."""
    return from_betas((1 - curve[1:] / curve[:-1]).clamp(0.0, MAX_BETA))


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "sigmoid_beta": sigmoid_beta,
    "sqrt": sqrt,
}
"""The one table from a schedule's name to its function."""


def abar(schedule: str, T: int, **options: float) -> Tensor:
    """The table of a schedule by name: (T + 1,) float64, from 1 downwards."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")
    try:
        return SCHEDULES[schedule](T, **options)
    except TypeError as error:
        raise ValueError(f"schedule {schedule!r} does not take these options: {error}") from error
