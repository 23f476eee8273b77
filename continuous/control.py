"""Control over what is sampled: guidance, constraints and editing. All but `edit` wrap the predictor.

Guidance moves x0_hat; the step then finds its noise from the moved x0_hat, which is the same as moving epsilon, since
at a given xt the two are tied by a straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from udm_text.common import choices
from udm_text.core import Prediction, denoise
from udm_text.devices import demand
from udm_text.randomness import RowRandom

from .degradations import per_row
from .processes import GaussianProcess, ImageProcess, check_finite
from .sampling import OnStep, Predictor, as_prediction, check_falling, grid, langevin, repeated, spread

MODES = ("replace", "clean")
"""How known content stands in an edit: put back at every step with the noise of its time, or clean all the way."""
STEP_SIZE = 0.2
"""Of a correction of `edit`, in units of b_t^2: it makes the noise of its time too large by a tenth, in variance."""


def guided(conditional: Predictor, unconditional: Predictor, scale: float) -> Predictor:
    """Classifier-free guidance (Ho & Salimans 2207.12598): x0_u + scale (x0_c - x0_u). 1 is conditional, 0 is not.

    Above 1 the answer lies beyond both, so it may leave the range of images: put `sampling.clip` around it.
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        chosen = as_prediction(conditional(xt, t, s), xt)
        free = as_prediction(unconditional(xt, t, s), xt).x0
        return chosen._replace(x0=free + scale * (chosen.x0 - free))

    return predict


def classifier_guided(
    process: GaussianProcess,
    predict_x0: Predictor,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
) -> Predictor:
    """Classifier guidance (Dhariwal & Nichol 2105.05233): x0_hat + scale (b_t^2 / a_t) grad log p(y | xt).

    Args:
        log_prob: (xt, t) -> (B,) log p(y | xt) of the wished y, differentiable in xt; a row's value must depend on that
            row alone.
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        a, b = process.coefficients(t, xt)
        demand(a > 0, "classifier guidance needs a_t > 0: at rectified flow's T, xt says nothing of x0")
        with torch.enable_grad():
            leaf = xt.detach().requires_grad_()
            value = log_prob(leaf, t)
            if value.shape != (len(xt),):
                raise ValueError(f"log_prob must give one number for each row, ({len(xt)},), got {tuple(value.shape)}")
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return prediction._replace(x0=prediction.x0 + scale * (b * b / a) * slope)

    return predict


def project(predict_x0: Predictor, projection: Callable[[Tensor], Tensor]) -> Predictor:
    """x0_hat replaced by projection(x0_hat) at every step, so what comes out at t = 0 obeys the constraint.

    projection: (B, ...) -> (B, ...), one that changes nothing when done twice (not checked).
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        return as_prediction(prediction._replace(x0=projection(prediction.x0)), xt)

    return predict


def keep_known(
    process: ImageProcess,
    known: Tensor,
    editable: Tensor,
    walk: Sequence[Tensor],
    random: RowRandom | None = None,
) -> Callable[[int, Tensor, Prediction | None], Tensor]:
    """An `on_step` for `core.denoise` that puts F_s(known, fresh noise) back wherever `editable` is false.

    Known pixels must carry the noise of their time: left clean they would be images that the network never saw.
    """

    def on_step(step: int, xs: Tensor, prediction: Prediction | None) -> Tensor:
        noise = process.sample_noise(known, random=random)
        return torch.where(editable, xs, process.corrupt(known, walk[step + 1], noise))

    return on_step


@torch.no_grad()
def edit(
    process: ImageProcess,
    predict_x0: Predictor,
    known: Tensor,
    editable: Tensor,
    *,
    start: int | None = None,
    num_steps: int | None = None,
    times: Tensor | None = None,
    churn: float = 0.0,
    corrections: int = 0,
    step_size: float = STEP_SIZE,
    temperature: float | Tensor = 1.0,
    mode: str = "replace",
    random: RowRandom | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Inpainting: new content where `editable` is true, `known` exactly elsewhere.

    With mode "clean" the known content stands clean in every x_t, at a clock of its own that stays at 0, and the
    predictor is told so: it is called with t and s of the images' shape. Of a predictor that was trained so
    (`ImageObjective(regions=...)`) this samples the law of the rest given what is known.

    Putting the known content back at every step (replacement, Song et al. 2011.13456) does not sample the law of the
    rest given it, not even with an exact predictor and very many steps: what was drawn earlier never hears what the
    known content says later. Of two standard normal numbers of correlation 0.8, one known as 0.625, the other is drawn
    with mean 0.31 and deviation 0.70 in 1,000 steps of DDPM; right are 0.5 and 0.6. `corrections` let both come to
    terms at each noise: 10 of them in 50 steps of DDPM give 0.47 and 0.61, and more of them go on towards the truth.

    Args:
        known: (B, ...) images; editable: bool, broadcasts against known.
        start: the t to begin at; None is T, from nothing. A smaller one begins from the known content, corrupted as far
            (SDEdit, 2108.01073), so that the edit stays near it.
        num_steps: see `sampling.grid`; `times` is a falling grid of your own, in place of both.
        churn: as in `core.denoise`; wrap the predictor for other samplers.
        corrections: Langevin steps (`sampling.langevin`) at each time but 0, for Gaussian processes: each is a call of
            the predictor more, with known content of fresh noise.
        step_size: of a correction, in (0, 2), in units of b_t^2. temperature: see `sampling.langevin`; below 1 what is
            made is nearer to the modes than the law is.
        mode: "replace", for predictors of images with one t; or "clean", of Gaussian processes, which takes no
            corrections, and of wrappers `sampling.ddim`, `ancestral` and `baseline`.
        on_step: see `core.denoise`; corrections count as steps.
    """
    check_finite(known, "known")
    editable = check_editable(editable, known)
    times = grid(process, num_steps, start=start) if times is None else times
    check_falling(times, process.T)
    if mode not in MODES:
        raise ValueError(f"mode must be {choices(MODES)}, got {mode!r}")
    if mode == "clean" and (corrections or not process.starts_from_noise):
        raise ValueError(f"mode 'clean' needs a Gaussian process and no corrections, got {process!r} and {corrections}")
    random = RowRandom.fresh(len(known), known.device) if random is None else random
    if corrections:
        times, predict_x0 = corrected(process, predict_x0, times, corrections, step_size, random, temperature)
    walk = spread(times, len(known), known.device)
    if mode == "clean":
        walk = [torch.where(editable, per_row(t, known, t.dtype), 0) for t in walk]
        if float(times[0]) == (1.0 if times.is_floating_point() else process.T):
            xt = torch.where(editable, process.prior(known, random=random), known)
        else:
            xt = process.corrupt(known, walk[0], process.sample_noise(known, random=random))
        return denoise(process, predict_x0, xt, walk, churn, random=random, on_step=on_step)
    keep = keep_known(process, known, editable, walk, random)
    if float(times[0]) == (1.0 if times.is_floating_point() else process.T):
        xt = process.prior(known, random=random)
    else:
        xt = process.corrupt(known, walk[0], process.sample_noise(known, random=random))

    def after(step: int, xs: Tensor, prediction: Prediction) -> Tensor:
        xs = keep(step, xs, prediction)
        replaced = on_step(step, xs, prediction) if on_step is not None else None
        return xs if replaced is None else replaced

    xt = keep(-1, xt, None)
    return denoise(process, predict_x0, xt, walk, churn, random=random, on_step=after)


def corrected(
    process: ImageProcess,
    predict_x0: Predictor,
    times: Tensor,
    corrections: int,
    step_size: float = STEP_SIZE,
    random: RowRandom | None = None,
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Predictor]:
    """A falling grid with corrections, and the predictor whose steps that stay are such; see `edit`.

    Raises:
        ValueError: corrections below 0, a step_size outside (0, 2), a cold process, which has no score.
    """
    if not process.starts_from_noise:
        raise ValueError(f"corrections are Langevin steps and need a Gaussian process, got {process!r}: give 0")
    hot = cast(GaussianProcess, process)
    return repeated(times, corrections), langevin(hot, predict_x0, step_size, temperature=temperature, random=random)


def check_editable(editable: Tensor, known: Tensor) -> Tensor:
    """`editable` in the shape of `known`; raises ValueError where it is not bool or does not broadcast."""
    if not isinstance(editable, Tensor) or editable.dtype != torch.bool:
        what = editable.dtype if isinstance(editable, Tensor) else type(editable).__name__
        raise ValueError(f"editable must be a bool tensor, true where pixels may change, got {what}")
    try:
        return editable.expand(known.shape)
    except RuntimeError:
        raise ValueError(f"editable must broadcast to {tuple(known.shape)}, got {tuple(editable.shape)}") from None
