"""Corruption behind an encoder: what is noised is F(x0), and what is predicted is x0 itself.

    F_t(x0, noise) = a_t F(x0) + b_t noise

One class for three systems, which differ in F: a table of embeddings of tokens (embedding diffusion), their rows of -1
and 1 (`plus_minus`: diffusion of logits), an encoder of images (latent diffusion). x0 are token ids or images, xt are
latents, and the process that noises latents is a `GaussianProcess`. There are two kinds of predictors:

    draws of x0     x0_hat ~ q(x0 | xt), encoded again at each step          `sample_encoded`
    mean latents    E[F(x0) | xt], a Gaussian walk whose last step decodes   `sample_means`

The bound on -log p(x0) of the second, with snr_t = a_t^2 / b_t^2 and F_hat the predicted mean latent:

    snr_T |F|^2 / 2  +  sum over t > 1 of (snr_{t-1} - snr_t) / 2 E|F - F_hat(xt)|^2  +  E[-log q(x0 | x1)]

F may be learned under the whole of it, and only so: the last term alone falls without end as F is scaled up, since
noise of a given size then hides less and less.

Sources: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9271, the encoding model), whose objective has the
last term alone; Kingma et al. (2107.00630) for the others; Li et al., "Diffusion-LM" (2205.14217).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from udm_text.common import check_whole
from udm_text.core import Prediction, denoise
from udm_text.randomness import RowRandom

from . import sampling
from .processes import GaussianProcess
from .sampling import OnStep, Predictor

SCALES = (0.5, 2.0)
"""What the rms of latents may lie between without a warning."""


class EncodedProcess:
    """F_t(x0, noise) = a_t F(x0) + b_t noise: a `core.Process` whose x0 is of another kind than its xt.

    Noise, its share `churn` and the prior are those of `inner`, on latents.

    Args:
        inner: what noises latents.
        encode: F, x0 (B, ...) -> latents (B, ...) float. It may be learned; gradients go through it.
        free_scale: True: the scale of F is free, which only the whole bound of the module allows. False: a UserWarning
            says so, once, where the rms of the latents is not about 1, the size the schedules of `inner` are made for.
    """

    def __init__(self, inner: GaussianProcess, encode: Callable[[Tensor], Tensor], *, free_scale: bool = False):
        if not isinstance(inner, GaussianProcess):
            raise ValueError(f"inner must be a GaussianProcess, which noises latents, got {type(inner).__name__}")
        if not callable(encode):
            raise ValueError(f"encode must be a function of x0 that gives latents, got {encode!r}")
        self.inner, self._encode = inner, encode
        self._judged = free_scale

    @property
    def T(self) -> int:
        return self.inner.T

    def encode(self, x0: Tensor) -> Tensor:
        """F(x0), (B, ...). Raises ValueError where that is no float tensor with the rows of x0."""
        latents = self._encode(x0)
        if not isinstance(latents, Tensor) or not latents.is_floating_point() or latents.shape[:1] != x0.shape[:1]:
            what = f"{tuple(latents.shape)} {latents.dtype}" if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"encode must give a float tensor of {len(x0)} rows, got {what}")
        if not self._judged and latents.numel():
            self._judged = True
            size = float(latents.detach().double().square().mean().sqrt())
            if not SCALES[0] <= size <= SCALES[1]:
                warnings.warn(
                    f"the latents of this encoder have an rms of {size:.3g}: schedules are made for 1. Divide them by "
                    "it, or say free_scale=True where they are learned under the whole bound",
                    stacklevel=3,
                )
        return latents

    def ancestral_churn(self, t: Tensor, s: Tensor) -> Tensor:
        """(B,) float64: the churn with which a step is a draw of q(xs | xt, x0)."""
        return self.inner.ancestral_churn(t, s)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """Standard normal, of the shape and dtype of x, which are latents."""
        return self.inner.sample_noise(x, editable=editable, random=random)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """a_t F(x0) + b_t noise; F(x0) itself at t = 0."""
        return self.inner.corrupt(self.encode(x0), t, noise)

    def invert_noise(
        self, x0: Tensor, xt: Tensor, t: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None
    ) -> Tensor:
        """(xt - a_t F(x0)) / b_t, for t > 0."""
        return self.inner.invert_noise(self.encode(x0), xt, t, editable=editable, random=random)

    def blend(self, noise: Tensor, fresh: Tensor, churn: float | Tensor) -> Tensor:
        """sqrt(1 - churn^2) noise + churn fresh."""
        return self.inner.blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """b_T times noise, of the shape and dtype of x, which are latents."""
        return self.inner.prior(x, editable=editable, random=random)

    def __repr__(self) -> str:
        return f"EncodedProcess({self.inner!r}, {self._encode!r})"


def plus_minus(num_tokens: int) -> Callable[[Tensor], Tensor]:
    """The encoder of logits diffusion: ids (...) int64 -> (..., num_tokens) float32, 1 at the token and -1 elsewhere.

    Its rms is 1. Sources: Han et al. (2210.17432) and Karimi Mahabadi et al. (2305.08379), who scale it by K, which
    moves the schedule by 2 log K.
    """
    check_whole(2, num_tokens=num_tokens)

    def encode(ids: Tensor) -> Tensor:
        return 2.0 * torch.nn.functional.one_hot(ids, num_tokens).to(torch.float32) - 1.0

    return encode


# the bound ------------------------------------------------------------------------------------------------------------


def prior_nats(inner: GaussianProcess, latents: Tensor) -> Tensor:
    """(B,) KL(q(x_T | x0) || prior) in nats: snr_T |F|^2 / 2. latents: F(x0), (B, ...)."""
    last = torch.full((len(latents),), inner.T, dtype=torch.int64, device=latents.device)
    return 0.5 * _snr(inner, last).to(latents.dtype) * latents.square().flatten(1).sum(1)


def bound_terms(inner: GaussianProcess, latents: Tensor, means: Tensor, decoder_nats: Tensor, t: Tensor) -> Tensor:
    """(B,) L_t in nats: -log p(x0) <= prior_nats + sum over t = 1..T of E[L_t], for the walk by every t.

    Args:
        latents: F(x0), (B, ...) float. means: F_hat, E[F(x0) | xt] as it is predicted, of the same shape.
        decoder_nats: (B,) -log q(x0 | xt), which is L_1; read where t is 1.
        t: (B,) int64 in 1..T.
    """
    if means.shape != latents.shape:
        raise ValueError(f"means must be of the shape of the latents, {tuple(latents.shape)}, got {tuple(means.shape)}")
    gained = _snr(inner, (t - 1).clamp(min=1)) - _snr(inner, t)
    steps = 0.5 * gained.to(latents.dtype) * (latents - means).square().flatten(1).sum(1)
    return torch.where(t == 1, decoder_nats.to(steps.dtype), steps)


def _snr(inner: GaussianProcess, t: Tensor) -> Tensor:
    """(B,) float64 a_t^2 / b_t^2 for t > 0."""
    a, b = inner.at(t)
    return (a / b).square()


# walks ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_encoded(
    process: EncodedProcess,
    predict_x0: Predictor,
    like: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    eta: float | None = None,
    random: RowRandom | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """New x0 by draws: (x0, latents), the last answer of the predictor, and where the walk ends, which is F(x0).

    Exact at any number of steps, and for any churn, where x0_hat is drawn from the law of x0 given xt.

    Args:
        predict_x0: (xt, t, s) -> x0_hat of the kind of x0, drawn.
        like: (B, ...), latents of the shape and dtype wanted. times: a grid that falls from T to 0.
        churn: share of fresh noise. eta: in its place, eta times that of DDPM (`sampling.ddim`).
    """
    check_walk(process.inner, times)
    if eta is not None:
        if churn:
            raise ValueError(f"give churn or eta, which sets it: got {churn} and {eta}")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
    answers: list[Tensor] = []

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        output = predict_x0(xt, t, s)
        prediction = output if isinstance(output, Prediction) else Prediction(output)
        answers[:] = [prediction.x0]
        return prediction if eta is None else prediction._replace(churn=eta * process.ancestral_churn(t, s))

    random = RowRandom.fresh(len(like), like.device) if random is None else random
    xt = process.prior(like, random=random)
    walk = sampling.spread(times, len(like), like.device)
    latents = denoise(process, predict, xt, walk, churn, random=random, on_step=on_step)
    return answers[0], latents


@torch.no_grad()
def sample_means(
    process: EncodedProcess,
    predict_mean: Predictor,
    decode: Callable[[Tensor, Tensor], Tensor],
    like: Tensor,
    times: Tensor,
    *,
    sampler: str = "ddpm",
    random: RowRandom | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """New x0 by mean latents: a walk of `inner`, whose last step, from times[-2] to 0, decodes.

    It samples what `bound_terms` bounds; how far that is from the data falls with the steps, whatever the predictor.

    Args:
        predict_mean: (xt, t, s) -> E[F(x0) | xt]. decode: (xt, t) -> x0, drawn or chosen.
        like, times: as in `sample_encoded`. sampler: a name of `sampling.SAMPLERS`.
    """
    check_walk(process.inner, times)
    random = RowRandom.fresh(len(like), like.device) if random is None else random
    predict = sampling.sampler_named(sampler)(process.inner, predict_mean)
    xt = process.prior(like, random=random)
    walk = sampling.spread(times, len(like), like.device)
    xt = denoise(process.inner, predict, xt, walk[:-1], random=random, on_step=on_step)
    return decode(xt, walk[-2])


def check_walk(inner: GaussianProcess, times: Tensor) -> None:
    """Raises ValueError unless the grid falls with every step, from T to 0."""
    sampling.check_falling(times, inner.T)
    if int(times[0]) != inner.T or int(times[-1]) != 0:
        raise ValueError(f"times must run from T = {inner.T} to 0, got {int(times[0])}..{int(times[-1])}")
