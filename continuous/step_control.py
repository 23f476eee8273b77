"""Steps as long as an error allows, each row's own: no grid is given, but how far off a step may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udm_text.core import Prediction, denoise

from .degradations import per_row
from .processes import GaussianProcess, check_finite
from .sampling import Predictor, as_prediction, heun

ADAPTIVE = "adaptive"
"""Its name among the samplers."""
RTOL = 0.05
"""What a step may be off, unless it is said."""
LONGEST = 1.0
"""Of a step, in log(b/a).

A longer one would end where there is hardly any noise, and there x0_hat is whatever xs is: both methods would agree.
"""
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
"""Of the length that the error allows, the share that is tried; what a length changes by at most."""


@torch.no_grad()
def adaptive(process: GaussianProcess, predict_x0: Predictor, xt: Tensor, rtol: float = RTOL) -> Tensor:
    """The deterministic walk from x_T to 0 by steps of `heun`, whose lengths in log(b/a) the error chooses.

    A step is tried by both Heun's method and the plain step inside it. What the two differ by, root mean square over a
    row, is what a step of the lower order is off; where it is above rtol times the size of xs, sqrt(a_s^2 + b_s^2), the
    step is taken again, shorter. The next length is 0.9 (rtol / error)^(1/2) times the last, as errors of order 1 go
    with its square, and `LONGEST` at most. The step to 0 begins at the least noise there is. Two calls a step, of all
    rows: those that are done wait.

    Source: embedded pairs of steps, Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.4; for
    diffusion Jolicoeur-Martineau et al. (2105.14080), who do so for the SDE.

    Args:
        xt: (B, ...) at T, as `process.prior` draws it. rtol: > 0.
    """
    check_finite(xt, "xt")
    if isinstance(rtol, bool) or not isinstance(rtol, (int, float)) or not (math.isfinite(rtol) and rtol > 0):
        raise ValueError(f"rtol must be a positive number, got {rtol!r}")
    t = torch.full((len(xt),), process.T, dtype=torch.int64, device=xt.device)
    length = torch.full((len(xt),), LONGEST, dtype=torch.float64, device=xt.device)
    while bool((t > 0).any()):
        now = t.clamp(min=1)  # rows that are done take no part, whatever is predicted of them
        s = _lower(process, now, length)
        trial, gap = _noted(process, predict_x0)
        xs = denoise(process, trial, xt, [now, s])
        error = _error(process, gap(), now, s) / rtol
        moves = (t > 0) & ~((error > 1) & (s < now - 1))  # there is no shorter step than one, nor a mend for NaN
        xt = torch.where(per_row(moves, xt, torch.bool), xs, xt)
        t = torch.where(moves, s, t)
        length = (length * (_SAFETY * error.rsqrt()).nan_to_num(1.0).clamp(_SHRINK, _GROW)).clamp(max=LONGEST)
    return xt


def _lower(process: GaussianProcess, t: Tensor, length: Tensor) -> Tensor:
    """(B,) int64: the time below t >= 1 that is nearest to so much less log sigma; 0 only from 1."""
    level = process.sigma(torch.arange(1, process.T + 1, device=t.device)).log()
    if process.T > 1:
        level = level.nan_to_num(posinf=float(level[-2]) + 1)  # where a_T = 0
    wanted = level[t - 1] - length
    s = torch.searchsorted(level, wanted) + 1
    return torch.where(t == 1, 0, s.minimum(t - 1))


def _noted(process: GaussianProcess, predict_x0: Predictor) -> tuple[Predictor, Callable[[], Tensor]]:
    """`heun`, and what its x0_hat differs by from the plain step's, in the step that was taken."""
    seen: list[Tensor] = []

    def first(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        seen.append(prediction.x0)
        return prediction

    inner = heun(process, first)

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction: Any = inner(xt, t, s)
        seen[:] = [prediction.x0 - seen[0]]
        return prediction

    return predict, lambda: seen[0]


def _error(process: GaussianProcess, gap: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(B,) float64: what xs is off by for x0_hat off by `gap`, in units of the size of xs."""
    (a_t, b_t), (a_s, b_s) = process.at(t), process.at(s)
    size = (a_s.square() + b_s.square()).sqrt()
    return (a_s - b_s / b_t * a_t) / size * gap.double().flatten(1).square().mean(1).sqrt()
