"""The variance of x0 around x0_hat, which DDPM draws with: what the network predicts, or what was measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from udm_text.common import eval_mode, watched
from udm_text.core import Prediction
from udm_text.randomness import RowRandom

from . import sampling
from .degradations import per_row
from .modeling import ImageDenoiser
from .objectives import snr, step_variances
from .sampling import Predictor

MEASURED = 512
"""Images that the optimal variance is measured on, at most."""


class LearnedVariance:
    """x0_hat of a network that also predicts the variance of a step, and what that says of x0: one call, two answers.

    The network's share of a step's variance lies between the least, right where x0 is known, and the largest
    (`objectives.step_variances`; Nichol and Dhariwal, arXiv 2102.09672, eq. 15). A step whose x0 is drawn around x0_hat
    with variance v has the least one and slope^2 v, slope that of its mean in x0; so v is what is predicted beyond the
    least one, over slope^2, and never below 0. In the step from t > 1 to 0 v is that of the step to t - 1, which was
    learned, and not below the least variance that is learned at t = 1; in the step from 1 to 0 it is the step's own.

    Args:
        denoiser: a model with `learned_variance`. labels: (B,) int64, -1 for none. clip: hold x0_hat inside [-1, 1].
    """

    def __init__(self, denoiser: ImageDenoiser, labels: Tensor | None = None, clip: bool = True):
        if not denoiser.config.learned_variance:
            raise ValueError("this model was trained without learned_variance: take sampler 'ddpm'")
        self.denoiser, self.labels, self.clip = denoiser, labels, clip
        self.last: tuple[Tensor, Tensor] | None = None  # s and share of the last call

    def predict_x0(self, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x0_hat (B, C, H, W), as `ImageDenoiser.predict_x0`."""
        x0, share = self.denoiser.predict(xt, t, self.labels)
        assert share is not None
        self.last = s, share
        return x0.clamp(-1.0, 1.0) if self.clip else x0

    def variance(self, xt: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """v (B, C, H, W) of the call that `predict_x0` answered last, for `with_variance` and `nelbo`."""
        if self.last is None:
            raise ValueError("variance belongs to an answer of predict_x0, which was not asked yet")
        process, (s, share) = self.denoiser.gaussian, self.last
        whole = t == 1  # the step to 0 of a pixel that nothing more is drawn for
        lower = torch.where(whole, 0, torch.where(s > 0, s, t - 1))
        least, largest = step_variances(process, t, lower)
        slope = process.at(lower)[0] * (1 - snr(process, t) / snr(process, lower))
        grown = (share * per_row(largest.log() - least.log(), share)).expm1()  # variance = least (1 + grown)
        v = grown.clamp(min=0) * per_row(least / slope.square(), share)
        floor, _ = step_variances(process, torch.ones_like(t), torch.zeros_like(t))
        v = torch.where(per_row(s > 0, share, torch.bool), v, v.maximum(per_row(floor, share)))
        v = torch.where(per_row(whole, share, torch.bool), (1 + grown) * per_row(least, share), v)
        return v.nan_to_num(nan=0.0)  # where the network is not finite, x0_hat says so


def kept(table: Tensor, labels: Tensor | None) -> Callable[[Tensor, Tensor, Prediction], Tensor]:
    """The variance that was measured, by row and t, for `sampling.with_variance`.

    Args:
        table: (L, T + 1), the last row for no class, the first of two for any class. labels: (B,) int64, -1 for none,
            or conditions, NaN for none.
    """

    def variance(xt: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        none = len(table) - 1
        law = torch.full_like(t, none)
        if labels is not None:
            known = ~labels.reshape(len(t), -1).isnan().any(dim=1) if labels.is_floating_point() else labels >= 0
            law = torch.where(known, 0, none)
        return per_row(table[law, t], xt)

    return variance


def measure(
    denoiser: ImageDenoiser,
    predictor: Callable[[Tensor | None], Predictor],
    images: Tensor,
    labels: Tensor | None,
    seed: int,
) -> Tensor:
    """(T + 1,) float64 `sampling.optimal_variance` on images, evenly spread where there are more than `MEASURED`.

    Args:
        predictor: what x0_hat is asked of, by the labels of its rows. images: (N, C, H, W) in [-1, 1]. labels: (N,)
            int64, -1 or None for no class.
    """
    some = torch.arange(0, len(images), -(-len(images) // MEASURED))
    own = None if labels is None else labels[some].to(denoiser.device)
    random = RowRandom(seed, torch.arange(len(some), device=denoiser.device))
    times = watched(range(1, denoiser.process.T + 1), "variance")
    rows = images[some].to(denoiser.device, torch.float32)
    with eval_mode(denoiser):
        table = sampling.optimal_variance(denoiser.gaussian, predictor(own), rows, times, random=random)
    table[1:] = table[1:].clamp(min=torch.finfo(torch.float32).tiny)
    return table
