"""Samplers of images. There is one loop, `udm_text.core.denoise`; a sampler is a wrapper around the predictor.

    the share of fresh noise, handed to the loop   ddim, ancestral (DDPM); a fixed churn is UDM's sigma-tilde
    another x0_hat                               dpm_solver (extrapolated), heun (a mean), with_variance (drawn), clip
    noise settled before the step                inverted (steps upwards), langevin (steps that stay at t), ddpm_large,
                                                 reverse_sde

A predictor is called as predict_x0(xt, t, s), xt (B, ...), t and s (B,) int64, and gives x0_hat or a `core.Prediction`.
Because every step finds its noise anew from x0_hat, a wrapper that changes x0_hat never leaves a stale epsilon behind.
Euler steps of rectified flow and of variance-exploding noise need no wrapper: the plain step is them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from udm_text.common import choices
from udm_text.core import Prediction, denoise
from udm_text.devices import Sent, demand, reads_are_free
from udm_text.randomness import RowRandom

from .degradations import per_row
from .processes import ColdProcess, GaussianProcess, ImageProcess, check_finite, check_times, node, noisy, normal_like

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor | Prediction]
OnStep = Callable[[int, Tensor, Prediction], Tensor | None]

SPACINGS = ("even", "quadratic", "snr")


def as_prediction(output: Tensor | Prediction, like: Tensor) -> Prediction:
    """A predictor's answer as a `Prediction`; ValueError where x0_hat has not the shape of xt."""
    prediction = output if isinstance(output, Prediction) else Prediction(output)
    if prediction.x0.shape != like.shape:
        raise ValueError(
            f"the predictor must answer in the shape of xt, {tuple(like.shape)}, got {tuple(prediction.x0.shape)}"
        )
    return prediction


# grids ----------------------------------------------------------------------------------------------------------------


def grid(
    process: ImageProcess, num_steps: int | None = None, spacing: str = "even", start: int | None = None
) -> Tensor:
    """A strictly decreasing grid from `start` to 0: (num_steps + 1,) int64, float64 from 1 in continuous time.

    Args:
        num_steps: 1..start, in continuous time any number; None takes every step.
        spacing: "even"; "quadratic": t in proportion to j^2, dense near 0 (Song et al. 2010.02502); "snr": even in
            log(b_t / a_t) (Lu et al. 2206.00927), the last step from the least noise to 0, hot processes only.
        start: where to start, a step; None: T. A grid with a start is one of steps, in continuous time too.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(map(repr, SPACINGS))}, got {spacing!r}")
    if spacing == "snr" and not process.starts_from_noise:
        raise ValueError("spacing 'snr' needs a GaussianProcess: a cold one has no signal-to-noise ratio")
    real = start is None and process.starts_from_noise and cast(GaussianProcess, process).continuous
    start = process.T if start is None else start
    if not 1 <= start <= process.T:
        raise ValueError(f"start must lie in 1..{process.T}, got {start}")
    num_steps = start if num_steps is None else num_steps
    whole = isinstance(num_steps, int) and not isinstance(num_steps, bool)
    if not whole or num_steps < 1 or (num_steps > start and not real):
        raise ValueError(
            f"num_steps must be an integer in 1..{start} (the steps from t = {start} to 0), got {num_steps!r}"
        )
    j = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    if real:
        return _real_grid(cast(GaussianProcess, process), j, spacing)
    if spacing == "even":
        rising = j * start
    elif spacing == "quadratic":
        rising = j.square() * start
    else:
        rising = _even_in_log_sigma(cast(GaussianProcess, process), num_steps, start)
    count = torch.arange(num_steps + 1)
    rising = (rising.round().long() - count).cummax(0).values + count  # at least one step each ...
    return rising.minimum(start - (num_steps - count)).flip(0)  # ... and never beyond the start


LEAST_TIME = 1e-6
"""Where the last step of a grid that is even in log(b_t / a_t) begins, in continuous time."""


def _real_grid(process: GaussianProcess, j: Tensor, spacing: str) -> Tensor:
    """A grid in continuous time from 1 to 0, float64. j: (num_steps + 1,), even from 0 to 1."""
    if spacing == "even":
        return j.flip(0)
    if spacing == "quadratic":
        return j.square().flip(0)
    low, high = torch.full((len(j) - 1,), LEAST_TIME, dtype=torch.float64), torch.ones(len(j) - 1, dtype=torch.float64)
    level = torch.lerp(
        process.sigma(low).log(), process.sigma(high).log(), j[1:] if len(j) == 2 else (j[1:] - j[1]) / (1 - j[1])
    )
    for _ in range(60):  # bisection: log(b_t / a_t) rises with t
        middle = 0.5 * (low + high)
        above = process.sigma(middle).log() > level
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    high[-1], high[0] = 1.0, LEAST_TIME if len(j) > 2 else 1.0
    return torch.cat((torch.zeros(1, dtype=torch.float64), high)).flip(0)


def _even_in_log_sigma(process: GaussianProcess, num_steps: int, start: int) -> Tensor:
    level = process.sigma(torch.arange(1, start + 1)).log()
    if start > 1:
        level = level.nan_to_num(posinf=float(level[-2]) + 1)  # a_T = 0 is infinitely far away
    wanted = torch.lerp(level[0], level[-1], torch.linspace(0, 1, num_steps, dtype=torch.float64))
    nearest = (level[None] - wanted[:, None]).abs().argmin(1) + 1
    nearest[-1] = start
    return torch.cat((torch.zeros(1), nearest)).double()


def spread(times: Sequence[float] | Tensor, rows: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """A grid as the loop wants it: a (rows,) tensor for each time, int64 or, of a grid in continuous time, float64.

    It is the same tensor where the grid stays at a time.
    """
    numbers = times.tolist() if isinstance(times, Tensor) else [int(t) if t == int(t) else t for t in times]
    dtype = torch.float64 if any(isinstance(t, float) for t in numbers) else torch.int64
    made = {t: torch.full((rows,), t, dtype=dtype, device=device) for t in dict.fromkeys(numbers)}
    return [made[t] for t in numbers]


def check_falling(times: Sequence[float] | Tensor, T: float) -> None:
    """ValueError unless the grid falls strictly, inside 0..T, or inside [0, 1] where it is of real numbers."""
    values = times.tolist() if isinstance(times, Tensor) else list(times)
    T = 1 if isinstance(times, Tensor) and times.is_floating_point() else T
    if len(values) < 2 or any(s >= t for t, s in zip(values, values[1:], strict=False)):
        raise ValueError(f"times must fall with every step, two of them at least, got {_short(values)}")
    if values[0] > T or values[-1] < 0:
        raise ValueError(f"times must lie in 0..{T}, got {_short(values)}")


def _short(values: list[Any]) -> str:
    return str(values if len(values) <= 12 else [*values[:6], "...", *values[-5:]])


# the share of fresh noise ---------------------------------------------------------------------------------------------


def ddim(process: GaussianProcess, predict_x0: Predictor, eta: float = 0.0) -> Predictor:
    """DDIM(eta): churn eta sqrt(1 - (a_t b_s / a_s b_t)^2). 0 is deterministic, 1 is DDPM (2010.02502, 2006.11239)."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        return prediction._replace(churn=eta * process.ancestral_churn(t, s) if eta else 0.0)

    return predict


ancestral = functools.partial(ddim, eta=1.0)
"""DDPM: every step draws xs from q(xs | xt, x0_hat)."""


def ddpm_large(process: GaussianProcess, predict_x0: Predictor, *, random: RowRandom | None = None) -> Predictor:
    """DDPM with the largest variance of a step: that of q(xt | xs), b_t^2 - (a_t / a_s)^2 b_s^2 = (b_t churn)^2.

    The mean is that of `ancestral`, whose variance is (b_s churn)^2. This one is right for vp where x0 is standard
    normal, that one where x0 is known (Ho et al. 2006.11239, section 3.2). No noise in the step to t = 0.
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        churn = process.ancestral_churn(t, s)
        (_, b_t), (_, b_s) = process.at(t), process.at(noisy(s))
        kept, fresh = (1 - churn.square()).sqrt(), churn * torch.where(s > 0, b_t / b_s, 0.0)
        noise = per_row(kept, xt) * process.invert_noise(prediction.x0, xt, t)
        return prediction._replace(noise=noise + per_row(fresh, xt) * normal_like(xt, random))

    return predict


def baseline(process: ImageProcess, predict_x0: Predictor) -> Predictor:
    """Forget xt at every step, xs = F_s(x0_hat, fresh noise): naive sampling. Hot images need an x0_hat drawn."""
    return lambda xt, t, s: as_prediction(predict_x0(xt, t, s), xt)._replace(churn=1.0)


# another x0_hat -------------------------------------------------------------------------------------------------------


def clip(predict_x0: Predictor, low: float = -1.0, high: float = 1.0) -> Predictor:
    """x0_hat held inside [low, high]."""
    if not low < high:
        raise ValueError(f"clip needs low < high, got {low} and {high}")

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        return prediction._replace(x0=prediction.x0.clamp(low, high))

    return predict


def heun(process: GaussianProcess, predict_x0: Predictor) -> Predictor:
    """The mean of the answers at both ends of the deterministic step: Heun's method for x0_hat, of second order.

    Two calls a step, the second as predict_x0(xs, s, s); the step to t = 0 takes x0_hat as it is.

    Source: Karras et al. (2206.00364, algorithm 1), who average the slope of xt in sigma, not x0_hat.
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        far = _answer_beyond(process, predict_x0, xt, prediction.x0, t, s)
        return prediction._replace(x0=0.5 * (prediction.x0 + far), churn=0.0)

    return predict


def _answer_beyond(
    process: GaussianProcess, predict_x0: Predictor, xt: Tensor, x0: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """x0_hat at the end of the deterministic step from xt by x0; x0 itself for rows whose step ends at t = 0."""
    if reads_are_free(s.device) and bool((s == 0).all()):
        return x0
    later = noisy(s)
    xs = process.corrupt(x0, later, process.invert_noise(x0, xt, t))
    beyond = as_prediction(predict_x0(xs, later, later), xt).x0
    return torch.where(per_row(s > 0, x0, torch.bool), beyond, x0)


def dpm_solver(process: GaussianProcess, predict_x0: Predictor, order: int = 2) -> Predictor:
    """DPM-Solver++ (2211.01095), multistep: x0_hat carried on from the last answers, then the deterministic step.

    With l = log(a/b), h the length of a step in it and e = exp(-h) - 1, the step is exact for an x0_hat that is a
    polynomial in l, of slope D1 / h and curvature D2 / h^2 at t, if it takes

        x0_hat - (e/h + 1)/e D1 + ((e + h)/h^2 - 1/2)/e D2.

    Order 2 (2M) has D1 from the last two answers, and 1/2 in place of -(e/h + 1)/e. Order 3 (3M) has D1 and D2 from the
    last three, so D2 = 2 (D1' - D1'') / (r' + r''), D1' and D1'' the slopes of the last two steps times h and r their
    lengths over h: code that is often seen has no 2 there, and is of second order.

    The step to t = 0 takes x0_hat as it is; so does the first one, but of order 3 it is one of `heun`, a call more. A
    row whose step does not go on where the last one ended, or whose last one stayed at its t, starts afresh, so one
    predictor serves many calls.

    Args:
        order: 2 or 3.
    """
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order!r}; of order 1 is ddim")
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # t, s and x0_hat of the last steps, the last one first

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        x0 = answer = prediction.x0
        level = process.sigma
        last = _joined(before, 0, t, answer)
        goes_on = torch.zeros_like(s, dtype=torch.bool)
        if last is not None:
            goes_on = (s > 0) & (last[1] == t) & (last[0] > t)
            high, middle, low = (level(time).log() for time in (last[0], t, s))
            if order == 2:
                weight = torch.where(goes_on, (middle - low) / (2 * (high - middle)), 0.0)
                x0 = answer + per_row(weight, answer) * (answer - last[2])
        if order == 3:
            if not _surely_on(last, t, s, goes_on):
                far = _answer_beyond(process, predict_x0, xt, answer, t, s)
                x0 = torch.where(per_row(goes_on | (s == t), x0, torch.bool), x0, 0.5 * (answer + far))
            if last is not None:
                h, h0 = middle - low, high - middle
                e = torch.expm1(-h)
                first, second = -(e / h + 1) / e, ((e + h) / h.square() - 0.5) / e
                slope = per_row(torch.where(goes_on, h / h0, 0.0), answer) * (answer - last[2])
                step = per_row(torch.where(goes_on, first, 0.0), answer) * slope
                earlier = _joined(before, 1, last[0], answer)
                if earlier is not None:
                    h1 = level(earlier[0]).log() - high
                    goes_far = goes_on & (earlier[1] == last[0]) & (earlier[0] > last[0])
                    bend = slope - per_row(torch.where(goes_far, h / h1, 0.0), answer) * (last[2] - earlier[2])
                    weight = first * h0 / (h0 + h1) + 2 * second * h / (h0 + h1)
                    step = step + per_row(torch.where(goes_far, weight, 0.0), answer) * bend
                x0 = x0 + step
        before[:] = [(t, s, answer), *before[: order - 2]]
        return prediction._replace(x0=x0, churn=0.0)

    return predict


def _joined(
    before: list[tuple[Tensor, Tensor, Tensor]], index: int, t: Tensor, x0: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A remembered step of the shape of this one, or None."""
    if len(before) <= index or before[index][1].shape != t.shape or before[index][2].shape != x0.shape:
        return None
    return before[index]


def _surely_on(last: tuple[Tensor, Tensor, Tensor] | None, t: Tensor, s: Tensor, goes_on: Tensor) -> bool:
    """Whether no row needs a first step, as far as can be told without waiting for a device."""
    if t is s:
        return True
    if reads_are_free(t.device):
        return bool((goes_on | (s == 0) | (s == t)).all())
    return last is not None and last[1] is t and last[0] is not t


def laplace_like(x: Tensor, random: RowRandom | None) -> Tensor:
    """Noise of a Laplace law of mean 0 and variance 1, of the shape of x; row i from row i of `random`."""
    random = RowRandom.fresh(len(x), x.device) if random is None else random
    u = random.uniform(math.prod(x.shape[1:])) - 0.5
    return (-u.sign() * torch.log1p(-2 * u.abs()) / math.sqrt(2)).view(x.shape).to(x)


LAWS: dict[str, Callable[[Tensor, RowRandom | None], Tensor]] = {"normal": normal_like, "laplace": laplace_like}
"""Laws of unit variance that x0_hat may be drawn from."""


def with_variance(
    process: ImageProcess,
    predict_x0: Predictor,
    variance: Tensor | Callable[[Tensor, Tensor, Prediction], Tensor],
    *,
    law: str = "normal",
    random: RowRandom | None = None,
    last: bool = True,
) -> Predictor:
    """x0_hat drawn from a normal law around the predictor's answer, then a step of DDPM: Analytic-DPM (2201.06503).

    With v the variance of x0 given xt, the step's variance is that of q(xs | xt, x0) plus v times the square of the
    step's slope in x0: the best variance a normal step can have. A cold process has no DDPM: there x0_hat is drawn, and
    the loop's churn stays; that is exact where x0 given xt is normal, which takes sigma > 0.

    Args:
        variance: (T + 1,) table of v, from `optimal_variance`; or a function (xt, t, prediction) -> v of a shape that
            broadcasts against xt, for learned variances.
        law: "normal", or "laplace", of the same variance and longer tails (kurtosis 6 in place of 3), where few numbers
            of x0 are far off: the step has the mean and variance of above, and is not normal.
        last: draw in the step to t = 0, too. Without, the last answer is shown as it is: cleaner images, another law.
    """
    inner = ancestral(cast(GaussianProcess, process), predict_x0) if process.starts_from_noise else predict_x0
    table = Sent(variance.cpu()) if isinstance(variance, Tensor) else None
    if law not in LAWS:
        raise ValueError(f"law must be {choices(LAWS)}, got {law!r}")

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(inner(xt, t, s), xt)
        v = (
            per_row(table(xt.device)[0][node(t, process.T)], xt)
            if table is not None
            else cast(Any, variance)(xt, t, prediction)
        )
        wrong = "variance must be known and not negative at every t of the grid"
        demand(v >= 0, wrong, lambda: f", is not at t = {int(t.max())}")
        if not last:
            v = v * per_row(s > 0, xt)
        return prediction._replace(x0=prediction.x0 + v.sqrt() * LAWS[law](xt, random))

    return predict


@torch.no_grad()
def optimal_variance(
    process: GaussianProcess,
    predict_x0: Predictor,
    images: Tensor,
    times: Iterable[int] | None = None,
    *,
    random: RowRandom | None = None,
) -> Tensor:
    """v_t = E ||x0 - x0_hat||^2 / dimensions, measured on `images` (N, ...) with one noise each: (T + 1,) float64.

    NaN at steps that are not in `times` (None: all of 1..T); 0 at t = 0. The form with E ||epsilon||^2 cancels near T.
    """
    check_finite(images, "images")
    table = torch.full((process.T + 1,), math.nan, dtype=torch.float64)
    table[0] = 0.0
    for step in range(1, process.T + 1) if times is None else sorted(set(map(int, times)) - {0}):
        t = torch.full((len(images),), step, dtype=torch.int64, device=images.device)
        xt = process.corrupt(images, t, process.sample_noise(images, random=random))
        x0 = as_prediction(predict_x0(xt, t, torch.zeros_like(t)), xt).x0
        table[step] = (images - x0).double().square().mean()
    return table


# noise settled before the step ----------------------------------------------------------------------------------------


def inverted(process: GaussianProcess, predict_x0: Predictor) -> Predictor:
    """Steps upwards, s > t, that can begin at a clean image: DDIM inversion (2010.02502, 2105.05233).

    The noise is that which the predictor sees in xt at the step's upper end, where it is defined also for t = 0.
    """

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        demand(s > t, "inversion steps upwards: times must rise")
        noise = process.invert_noise(as_prediction(predict_x0(xt, s, t), xt).x0, xt, s)
        a, b = process.coefficients(t, xt)
        return Prediction((xt - b * noise) / a, noise=noise)

    return predict


def reverse_sde(
    process: GaussianProcess, predict_x0: Predictor, noise: float = 1.0, *, random: RowRandom | None = None
) -> Predictor:
    """Euler-Maruyama steps of the reverse SDE: xs = xt - f + (1 + noise^2) / 2 G^2 score + noise G z, of first order.

    f = (a_t / a_s - 1) xt and G^2 = b_t^2 - (a_t / a_s)^2 b_s^2 are drift and variance of the forward step from s to t,
    and score = (a_t x0_hat - xt) / b_t^2 (Tweedie). The step to t = 0 takes x0_hat as it is. It takes hundreds of
    steps; `ddim` walks the probability flow with fewer.

    Args:
        noise: >= 0. 1: the reverse diffusion sampler of Song et al. (2011.13456, appendix E); 0: the probability flow;
            any other: an SDE with the same laws at every t (Zhang and Chen 2204.13902, eq. 6).
    """
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number >= 0, got {noise!r}")

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        later = noisy(s)
        (a_t, b_t), (a_s, b_s) = process.coefficients(t, xt), process.coefficients(later, xt)
        forward = a_t / a_s
        square = (b_t.square() - (forward * b_s).square()).clamp(min=0)
        score = (a_t * prediction.x0 - xt) / b_t.square()
        xs = (2 - forward) * xt + 0.5 * (1 + noise**2) * square * score
        if noise:
            xs = xs + noise * square.sqrt() * normal_like(xt, random)
        settled = process.invert_noise(prediction.x0, xs, later)
        return prediction._replace(noise=torch.where(per_row(s > 0, xt, torch.bool), settled, 0.0))

    return predict


def langevin(
    process: GaussianProcess,
    predict_x0: Predictor,
    step_size: float,
    *,
    temperature: float | Tensor = 1.0,
    carry: bool = False,
    random: RowRandom | None = None,
) -> Predictor:
    """Steps that stay at t (s = t) become Langevin steps, x + eta score + sqrt(2 eta) xi, eta = step_size b_t^2.

    The score is (a_t x0_hat - xt) / b_t^2 (Tweedie). In a grid that names each time several times this is the corrector
    of Song et al. 2011.13456. carry=True hands x on unchanged where t falls: annealed Langevin dynamics (1907.05600),
    for a = 1; the step to 0 then gives x0_hat.

    Args:
        step_size: in (0, 2).
        temperature: >= 0, of sqrt(2 eta temperature) xi: the law at t becomes p_t^(1 / temperature), at 0 its modes;
            one number, or a (T + 1,) table by t. A table that falls towards 0 with t makes it simulated annealing
            (Kirkpatrick et al. 1983).
    """
    if not 0.0 < step_size < 2.0:
        raise ValueError(f"step_size must lie in (0, 2), in units of b_t^2: beyond, the walk explodes; got {step_size}")
    table = torch.as_tensor(temperature, dtype=torch.float64).cpu()
    if table.shape not in ((), (process.T + 1,)) or not bool((torch.isfinite(table) & (table >= 0)).all()):
        raise ValueError(
            f"temperature must be a number >= 0 or a table of {process.T + 1} of them, by t, got {temperature!r}"
        )
    spread_by_t = Sent((2 * step_size * table).sqrt().expand(process.T + 1))

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        if t is s or bool((t == s).all()):
            noise = process.invert_noise(prediction.x0, xt, t)
            fresh = per_row(spread_by_t(xt.device)[0][node(t, process.T)], xt) * normal_like(xt, random)
            return prediction._replace(noise=(1 - step_size) * noise + fresh)
        demand(t != s, "all rows of a batch must stay at t together")
        if carry:
            noise = process.invert_noise(prediction.x0, xt, noisy(s))
            return prediction._replace(noise=torch.where(per_row(s > 0, xt, torch.bool), noise, 0.0))
        return prediction

    return predict


def repeated(times: Tensor, corrections: int) -> Tensor:
    """A falling grid with `corrections` steps that stay at each time but 0, for `langevin`."""
    if corrections < 0:
        raise ValueError(f"corrections must be at least 0, got {corrections}")
    return times.repeat_interleave(torch.where(times > 0, corrections + 1, 1))


# where a cold walk starts ---------------------------------------------------------------------------------------------

PRIOR_RANK = 64
"""Directions that a `ColdPrior` keeps, unless it is said."""
_WIDE = 1024
"""Numbers of an image above which the covariance is that of at most `_FEW` images, by their inner products."""
_FEW = 2048
_MOST = 2**26
"""Numbers that are held at once."""


class ColdPrior(NamedTuple):
    """The normal law of D_T(x0) over images, from which a cold walk starts where no degraded image is given.

    x_T = mean + sum over k of z_k basis_k + deviation z', z and z' standard normal: a covariance of low rank and a
    diagonal, with the variance of every number right whatever the rank. Source: Bansal et al., "Cold Diffusion"
    (2208.09392, section 5.2), who draw the few numbers that their D_T leaves from a mixture of normal laws and add a
    little noise.

    With classes, each has a mean of its own (that of all images where it has no image), and all one covariance around
    these; images of no class are drawn from the law of all.

    Args:
        means: (K + 1, ...), of the K classes and of all images; (1, ...) without classes.
        basis: (2, rank, ...), of the classes and of all images; (1, rank, ...) without.
        deviations: (2, ...) or (1, ...).
    """

    means: Tensor
    basis: Tensor
    deviations: Tensor

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        process: ColdProcess,
        images: Tensor,
        labels: Tensor | None = None,
        num_classes: int = 0,
        rank: int = PRIOR_RANK,
    ) -> ColdPrior:
        """Measured on clean images, float32 on their device; of many large ones, on 2,048 evenly spread.

        Args:
            images: (N, ...) float, N >= 2. labels: (N,) int64 in 0..num_classes-1; None where num_classes
                is 0.
            rank: >= 1, of which no more are kept than N - 1 or than an image has numbers.
        """
        check_finite(images, "images")
        if len(images) < 2:
            raise ValueError(f"a law of x_T needs at least 2 images, got {len(images)}")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
        if (labels is None) != (num_classes == 0):
            raise ValueError(f"labels must be given with classes, and without none, got {num_classes} classes")
        numbers = images[0].numel()
        most = _FEW if numbers > _WIDE else max(_FEW, _MOST // numbers)
        some = torch.arange(0, len(images), -(-len(images) // most), device=images.device)
        parts = [
            process.degrade(images[part], torch.full((len(part),), process.T, device=images.device)).flatten(1)
            for part in some.split(512)
        ]
        x = torch.cat(parts).double()
        means, laws = x.mean(0, keepdim=True), []
        if labels is not None:
            of = labels.to(images.device)[some]
            own = torch.stack([x[of == k].mean(0) if bool((of == k).any()) else means[0] for k in range(num_classes)])
            laws, means = [_directions(x - own[of], rank)], torch.cat((own, means))
        laws.append(_directions(x - means[-1], rank))
        basis, deviations = (torch.stack(found) for found in zip(*laws, strict=True))
        shape = images.shape[1:]
        return cls(*(y.float().unflatten(-1, shape) for y in (means, basis, deviations)))

    def draw(
        self, process: ColdProcess, rows: Tensor, *, jitter: float = 0.0, random: RowRandom | None = None
    ) -> Tensor:
        """x_T (B, ...) float32, each from numbers of its own: a draw of the law, and the noise of the process (sigma).

        Args:
            rows: (B,) int64, places in `means`: classes, or the last one for all.
            jitter: deviation of further noise, which tells numbers apart that the degradation has made equal.
        """
        random = RowRandom.fresh(len(rows), rows.device) if random is None else random
        if not (math.isfinite(jitter) and jitter >= 0):
            raise ValueError(f"jitter must be a number >= 0, got {jitter!r}")
        means, basis, deviations = (y.to(rows.device, torch.float64) for y in self)
        law = torch.where(rows == len(means) - 1, len(basis) - 1, 0)
        rank = basis.shape[1]
        z = random.normal(rank + means[0].numel())
        low = torch.stack([z[:, :rank] @ one.flatten(1) for one in basis])[law, torch.arange(len(rows))]
        xt = means[rows].flatten(1) + low + deviations[law].flatten(1) * z[:, rank:]
        xt = xt.float().view(len(rows), *means.shape[1:])
        xt = xt + process.sample_noise(xt, random=random)
        return xt + jitter * normal_like(xt, random) if jitter else xt


def _directions(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Of centred rows (N, d): (rank, d) directions, each as long as the deviation along it, and (d,) of the rest."""
    rank = min(rank, len(x) - 1, x.shape[1])
    if x.shape[1] <= len(x):
        values, vectors = torch.linalg.eigh(x.T @ x / (len(x) - 1))
        basis = (vectors * values.clamp(min=0).sqrt()).T
    else:
        _, vectors = torch.linalg.eigh(x @ x.T)
        basis = vectors.T @ x / math.sqrt(len(x) - 1)
    basis = basis.flip(0)[:rank]  # eigenvalues rise
    left = x.square().sum(0) / (len(x) - 1) - basis.square().sum(0)
    return basis, left.clamp(min=0).sqrt()


# whole walks ----------------------------------------------------------------------------------------------------------

SAMPLERS: dict[str, Callable[..., Predictor]] = {
    "ddim": ddim,
    "ddpm": ancestral,
    "ddpm_large": ddpm_large,
    "dpm_solver": dpm_solver,
    "dpm_solver_3": functools.partial(dpm_solver, order=3),
    "heun": heun,
    "reverse_sde": reverse_sde,
    "baseline": baseline,
}
"""The one table from a sampler's name to its wrapper, called as (process, predict_x0)."""
OWN_NOISE = frozenset({"ddpm_large", "reverse_sde"})
"""Of these the wrappers that draw noise themselves, and take `random`."""
ETA = {"ddim": "eta", "reverse_sde": "noise"}
"""Of these the wrappers that take a share of fresh noise, which is `eta` of whole walks, and how they call it."""


def sampler_named(
    name: str, eta: float | None = None, random: RowRandom | None = None
) -> Callable[[GaussianProcess, Predictor], Predictor]:
    """The wrapper of this name. eta: of one of `ETA`. random: what it draws from, where it draws."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(map(repr, SAMPLERS))}, got {name!r}")
    check_eta(name, eta)
    how: dict[str, Any] = {} if eta is None else {ETA[name]: eta}
    return functools.partial(SAMPLERS[name], **how, **({"random": random} if name in OWN_NOISE else {}))


def check_eta(sampler: str | None, eta: float | None) -> None:
    """ValueError where an eta is given to a sampler that has none."""
    if eta is not None and sampler not in ETA:
        raise ValueError(f"eta belongs to sampler {choices(ETA)}, got sampler {sampler!r}")


@torch.no_grad()
def sample(
    process: GaussianProcess,
    predict_x0: Predictor,
    shape: Sequence[int],
    *,
    sampler: str | None = "ddim",
    num_steps: int | None = None,
    spacing: str = "even",
    eta: float | None = None,
    churn: float = 0.0,
    times: Tensor | None = None,
    random: RowRandom | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Tensor:
    """New images from noise: (B, ...) of `dtype`.

    Args:
        shape: (B, ...), for images (B, C, H, W).
        sampler: a name of `SAMPLERS`; None takes the predictor as it is, with `churn` (UDM's sigma-tilde / b_s).
        num_steps, spacing: see `grid`; `times` is a grid of your own, from T down.
        eta: the share of fresh noise, of the samplers in `ETA`.
        random: each row's numbers; None: from torch's default generator.
        on_step: see `core.denoise`.
    """
    if not process.starts_from_noise:
        raise ValueError(
            "only hot processes start from noise: a cold one restores a degraded image, see sampling.restore, also one "
            "that sampling.ColdPrior has drawn"
        )
    if churn and sampler is not None:
        raise ValueError(f"sampler {sampler!r} sets its own churn: give sampler=None to set it yourself")
    like = torch.empty(tuple(shape), dtype=dtype, device=device)
    check_finite(like.fill_(0.0), "shape's images")
    random = RowRandom.fresh(len(like), like.device) if random is None else random
    check_eta(sampler, eta)
    if sampler is not None:
        predict_x0 = sampler_named(sampler, eta, random)(process, predict_x0)
    if times is None:
        times = grid(process, num_steps, spacing)
    else:
        check_falling(times, process.T)
    xt = process.prior(like, random=random)
    walk = spread(times, len(like), like.device)
    return denoise(process, predict_x0, xt, walk, churn, random=random, on_step=on_step)


@torch.no_grad()
def restore(
    process: ImageProcess,
    predict_x0: Predictor,
    xt: Tensor,
    t: int | Tensor | None = None,
    *,
    num_steps: int | None = None,
    churn: float = 0.0,
    random: RowRandom | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Your own spoilt images, restored: the walk from xt, spoilt as far as t, down to 0.

    Args:
        xt: (B, ...) float. t: how far it is spoilt, 1..T, one number or (B,) int64; None: T.
        num_steps: 1..min(t); None: min(t), for rows of one t every step. 1 is direct restoration, x0_hat itself (plus
            what is left of the residual when the process is cold and churn 0).
        churn: 0 improved, 1 naive.
    """
    check_finite(xt, "xt")
    if not isinstance(t, Tensor):
        t = torch.full((len(xt),), process.T if t is None else t, dtype=torch.int64, device=xt.device)
    check_times(t, xt, process.T)
    least = int(t.min()) if len(t) else 1
    if least < 1:
        raise ValueError("t must be at least 1: at t = 0 there is nothing to restore")
    num_steps = least if num_steps is None else num_steps
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= least:
        raise ValueError(f"num_steps must be an integer in 1..{least}, the least t, got {num_steps!r}")
    times = [torch.div(t * j, num_steps, rounding_mode="floor") for j in range(num_steps, -1, -1)]
    return denoise(process, predict_x0, xt, times, churn, random=random, on_step=on_step)


@torch.no_grad()
def encode(process: GaussianProcess, predict_x0: Predictor, x0: Tensor, num_steps: int | None = None) -> Tensor:
    """The noise that the deterministic sampler would turn into x0 (to first order): x_T, (B, ...)."""
    check_finite(x0)
    walk = spread(grid(process, num_steps).flip(0), len(x0), x0.device)
    return denoise(process, inverted(process, predict_x0), x0, walk)


def slerp(x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of noises, row by row: x at weight 0, y at weight 1, on the great circle (Shoemake 1985).

    Args:
        x, y: (B, ...) of one shape. weight: a number or (B,).
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"slerp needs two (B, ...) tensors of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    w = torch.as_tensor(weight, dtype=torch.float64, device=x.device).expand(len(x))
    p, q = x.double().flatten(1), y.double().flatten(1)
    cosine = torch.nn.functional.cosine_similarity(p, q).clamp(-1, 1)
    angle = cosine.acos()
    if bool((angle > math.pi - 1e-6).any()):
        raise ValueError("slerp: x and y point in opposite directions, no great circle is the shortest")
    near = angle < 1e-6
    sine = torch.where(near, 1.0, angle.sin())
    first = torch.where(near, 1 - w, ((1 - w) * angle).sin() / sine)
    second = torch.where(near, w, (w * angle).sin() / sine)
    return (first[:, None] * p + second[:, None] * q).view(x.shape).to(x)
