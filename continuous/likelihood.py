"""How likely an image is: an upper bound on -log p from the sampler's own steps, and the probability-flow likelihood.

With l_t = a_t^2 / b_t^2 the signal-to-noise ratio, a step of DDPM from t to s (`sampling.ancestral`) costs

    KL(q(xs | xt, x0) || p(xs | xt)) = w / 2 ||x0 - x0_hat||^2                                 v = 0, w = l_s - l_t
                       = sum of [log(1 + w v) + (1 + w (x0 - x0_hat)^2) / (1 + w v) - 1] / 2   v > 0

where v is the variance of x0_hat's law (`sampling.with_variance`), of each number of an image its own. Source: Kingma
et al. 2107.00630 for v = 0; the other follows from the same two normal laws. Everything is in nats, summed over an
image, unless it says bits/dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from udm_text.common import watched
from udm_text.core import Prediction, denoise
from udm_text.randomness import RowRandom

from .processes import GaussianProcess, check_finite
from .sampling import Predictor, as_prediction, check_falling, spread


class Bound(NamedTuple):
    """NELBO of each image in nats, (B,) float64: an upper bound on -log p(x0), and its three parts."""

    nats: Tensor
    prior: Tensor
    steps: Tensor
    decoder: Tensor

    def bits_per_dim(self, dimensions: int) -> Tensor:
        """(B,) bits for each of an image's `dimensions` numbers."""
        return self.nats / (dimensions * math.log(2))


@torch.no_grad()
def nelbo(
    process: GaussianProcess,
    predict_x0: Predictor,
    x0: Tensor,
    times: Tensor | None = None,
    *,
    variance: Tensor | Callable[[Tensor, Tensor, Prediction], Tensor] | None = None,
    levels: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    num_terms: int | None = None,
    random: RowRandom | None = None,
) -> Bound:
    """The bound that the DDPM sampler on this grid has, one draw of xt for each term.

    Args:
        x0: (B, ...) clean images.
        times: the sampler's falling grid from T to 0; None: every step, T terms.
        variance: (T + 1,) table of v (see `sampling.optimal_variance`); or a function (xt, t, prediction) -> v >= 0 of
            a shape that broadcasts against xt, for learned variances: whatever `sampling.with_variance` takes, of whose
            sampler this is then the bound. v is also the decoder's variance, and has to be positive there. None: v = 0,
            and the decoder's variance is b^2 / a^2 of the last step.
        levels: images of so many evenly spaced values from `low` to `high` (256 for bytes): the decoder gives
            probabilities and bits/dim are comparable with published ones. None: densities.
        num_terms: estimate the sum by so many terms an image, without bias: the steps nearest to t = 0, where the
            bound is decided, all, in number half of it; the others by one drawn from each of equal groups. A coarse
            grid is no substitute: it is the bound of a coarser sampler.

    Returns:
        A `Bound`; its mean over images is the bound on the data, its spread / sqrt(B) the standard error.
    """
    check_finite(x0, low=low if levels else None, high=high if levels else None)
    if levels is not None:
        _check_levels(x0, levels, low, high)
    if times is None:
        times = torch.arange(process.T, -1, -1)
    check_falling(times, process.T)
    if int(times[0]) != process.T or int(times[-1]) != 0:
        raise ValueError(f"times must run from T = {process.T} to 0, got {int(times[0])}..{int(times[-1])}")
    random = RowRandom.fresh(len(x0), x0.device) if random is None else random
    ratio = process.sigma(times.cpu()).square().reciprocal()  # l at each time of the grid; infinite at 0
    ratio = ratio.to(x0.device)
    grid = times.to(x0.device)
    steps, decoder = torch.zeros(2, len(x0), dtype=torch.float64, device=x0.device)
    last = len(grid) - 2
    for index, weight in watched(_terms(last, num_terms, random), "bound"):
        t, s = grid[index], grid[index + 1]
        xt = process.corrupt(x0, t, process.sample_noise(x0, random=random))
        prediction = as_prediction(predict_x0(xt, t, s), xt)
        off = (x0.double() - prediction.x0.double()).flatten(1)
        v = None if variance is None else _known(variance, xt, t, prediction)
        if int(index[0]) == last:
            v = process.sigma(t).square()[:, None] if v is None else v
            decoder = _decoder(x0.double().flatten(1), off, v, levels, low, high)
        else:
            w = (ratio[index + 1] - ratio[index])[:, None]
            wv = torch.zeros_like(w) if v is None else w * v
            steps = steps + weight * 0.5 * (wv.log1p() + (1 + w * off.square()) / (1 + wv) - 1).sum(1)
    prior = 0.5 * ratio[0] * x0.double().square().flatten(1).sum(1)
    return Bound(prior + steps + decoder, prior, steps, decoder)


def _terms(last: int, num_terms: int | None, random: RowRandom) -> list[tuple[Tensor, int]]:
    """(place (B,) int64, weight) of each term; places 0..last, `last` is the step to t = 0 and comes last, weight 1."""
    near = last + 1 if num_terms is None else max(1, num_terms // 2)
    if num_terms is not None and num_terms < 2:
        raise ValueError(f"num_terms must be at least 2, got {num_terms}")
    if num_terms is None or num_terms > last:
        near = last + 1
    terms: list[tuple[Tensor, int]] = []
    far = last + 1 - near  # places 0..far-1 are drawn from
    if far:
        edges = torch.linspace(0, far, (num_terms or 0) - near + 1, dtype=torch.float64).round().long().tolist()
        draws = random.uniform(len(edges) - 1)
        for group, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            terms.append((low + (draws[:, group] * (high - low)).long(), high - low))
    return terms + [(torch.full_like(random.rows, index), 1) for index in range(far, last + 1)]


def discretised_log_prob(
    x: Tensor, mean: Tensor, log_std: Tensor, levels: int, low: float = -1.0, high: float = 1.0
) -> Tensor:
    """log of the probability of the interval of width (high - low) / (levels - 1) around x under a normal law.

    Elementwise and differentiable. Intervals at low and high are open ended, so the probabilities of all levels add to
    one.
    """
    half, inverse = (high - low) / (levels - 1) / 2, (-log_std).exp()
    upper = torch.where(x > high - half, torch.inf, (x + half - mean) * inverse)
    lower = torch.where(x < low + half, -torch.inf, (x - half - mean) * inverse)
    # on the side where both ends are negative the difference of the two distribution functions keeps its digits
    flip = lower > 0
    top, bottom = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_top, log_bottom = torch.special.log_ndtr(top), torch.special.log_ndtr(bottom)
    gap = (log_bottom - log_top).clamp(max=-1e-12)
    return log_top + torch.log(-torch.expm1(gap))


def _decoder(x0: Tensor, off: Tensor, v: Tensor, levels: int | None, low: float, high: float) -> Tensor:
    """-log p(x0 | x_t1), summed over a row: a normal density of variance v, or its mass in the bin of each level."""
    if not bool((v > 0).all()):
        raise ValueError("the decoder's variance must be positive")
    if levels is None:
        return 0.5 * ((2 * math.pi * v).log() + off.square() / v).sum(1)
    return -discretised_log_prob(x0, x0 - off, 0.5 * v.log(), levels, low, high).sum(1)


def _known(
    variance: Tensor | Callable[[Tensor, Tensor, Prediction], Tensor], xt: Tensor, t: Tensor, prediction: Prediction
) -> Tensor:
    """v at t, float64: (B, 1) from a table, (B, numbers of an image) from a function."""
    if isinstance(variance, Tensor):
        v = variance.to(t.device, torch.float64)[t][:, None]
    else:
        v = variance(xt, t, prediction).to(t.device, torch.float64).expand(xt.shape).flatten(1)
    if not bool((v >= 0).all()):
        raise ValueError(
            f"variance must be known and not negative at every t of the grid, is not at t = {int(t.max())}"
        )
    return v


def _check_levels(x0: Tensor, levels: int, low: float, high: float) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    index = (x0.double() - low) / (high - low) * (levels - 1)
    if float((index - index.round()).abs().max()) > 1e-2:
        raise ValueError(f"x0 must hold {levels} evenly spaced values from {low:g} to {high:g}; some lie between them")


# the probability-flow ODE ---------------------------------------------------------------------------------------------


def log_likelihood(
    process: GaussianProcess,
    predict_x0: Predictor,
    x0: Tensor,
    num_steps: int = 50,
    *,
    probes: int | None = 1,
    start: int = 1,
    random: RowRandom | None = None,
) -> Tensor:
    """log p(x0) under the probability-flow ODE (2011.13456): (B,) float64, nats. Four network calls a step.

    In sigma = b/a and y = x/a the flow is dy/dsigma = (y - x0_hat) / sigma, the noise itself. It is walked upwards
    through `core.denoise`: a Runge-Kutta step is a step with an effective x0_hat. The density is that of x0 with the
    noise of `start` added, taken at x0.

    Args:
        predict_x0: differentiable in xt.
        num_steps: steps from `start` to T; each has a node of the table in its middle, so at most (T - start) / 2.
        probes: Rademacher probes of Hutchinson's trace estimate (unbiased for the trace); None: the exact trace, one
            gradient for each number of an image.
        start: >= 1, where the walk begins.
    """
    check_finite(x0)
    top = process.T if float(process.a[-1]) > 0 else process.T - 1
    nodes = _nodes(process, start, top, num_steps)
    random = RowRandom.fresh(len(x0), x0.device) if random is None else random
    flow = _Flow(process, predict_x0, nodes, _probes(x0, probes, random), torch.zeros(len(x0)).double().to(x0.device))
    walk = spread(nodes[::2], len(x0), x0.device)
    a, _ = process.coefficients(walk[0], x0)
    end = denoise(process, flow, a * x0, walk)
    sigma = float(process.sigma(walk[-1][:1].cpu()) if len(x0) else 1.0)
    y = end.double().flatten(1) / float(process.a[top])
    prior = -0.5 * (y.square() / sigma**2 + math.log(2 * math.pi * sigma**2)).sum(1)
    return prior + flow.growth


def _nodes(process: GaussianProcess, start: int, top: int, num_steps: int) -> Tensor:
    """(2 num_steps + 1,) int64, rising from start to top, as even in log sigma as the table allows."""
    if not 1 <= start < top:
        raise ValueError(f"start must lie in 1..{top - 1}, got {start}")
    if not 1 <= num_steps <= (top - start) // 2:
        raise ValueError(f"num_steps must lie in 1..{(top - start) // 2}, half the steps between {start} and {top}")
    level = process.sigma(torch.arange(top + 1)).log()
    wanted = torch.linspace(0, 1, 2 * num_steps + 1, dtype=torch.float64) * (level[top] - level[start]) + level[start]
    count = torch.arange(2 * num_steps + 1)
    nearest = (level[None, start:] - wanted[:, None]).abs().argmin(1) + start - count
    nodes = nearest.cummax(0).values.clamp(max=top - 2 * num_steps) + count
    nodes[0], nodes[-1] = start, top
    return nodes


def _probes(x0: Tensor, probes: int | None, random: RowRandom) -> Tensor | None:
    """(probes, B, ...) of signs, or None."""
    if probes is None:
        return None
    if probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact trace, got {probes}")
    signs = torch.where(random.uniform(probes * x0[0].numel()) < 0.5, -1.0, 1.0).to(x0)
    return signs.view(len(x0), probes, *x0.shape[1:]).transpose(0, 1)


def _weights(c: float) -> tuple[float, float, float]:
    """Quadrature on the nodes 0, c (twice), 1 of [0, 1], exact for parabolas."""
    half, end = 1 / (12 * c * (1 - c)), (2 - 3 * c) / (6 * (1 - c))
    return 1 - 2 * half - end, half, end


class _Flow:
    """A predictor whose step upwards is a Runge-Kutta step of dy/dsigma = noise; it adds up the growth of log p.

    Four stages at the nodes 0, c, c, 1 of the step: the classical ones where c = 1/2, of order 3 for every other c, as
    the two stages at c err by the same amount in opposite directions. The growth is summed in log sigma, in which it is
    nearly constant where there is only noise.
    """

    def __init__(
        self, process: GaussianProcess, predict_x0: Predictor, nodes: Tensor, probes: Tensor | None, growth: Tensor
    ) -> None:
        self.process, self.predict_x0, self.probes, self.growth = process, predict_x0, probes, growth
        self.middle = {(int(t), int(s)): int(m) for t, m, s in zip(nodes[::2], nodes[1::2], nodes[2::2], strict=False)}

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        process = self.process
        m = torch.full_like(t, self.middle[int(t[0]), int(s[0])])
        low, middle, high = (float(process.sigma(time[:1].cpu())) for time in (t, m, s))
        h, c = high - low, (middle - low) / (high - low)
        y = xt / process.coefficients(t, xt)[0]
        k1, d1 = self._slope(y, t)
        k2, d2 = self._slope(y + c * h * k1, m)
        k3, d3 = self._slope(y + c * h * k2, m)
        k4, d4 = self._slope(y + h * ((1 - 0.5 / c) * k1 + 0.5 / c * k3), s)
        begin, half, end = _weights(c)
        y_s = y + h * (begin * k1 + half * (k2 + k3) + end * k4)
        h_log = math.log(high / low)
        begin, half, end = _weights(math.log(middle / low) / h_log)
        self.growth = self.growth + h_log * (begin * d1 + half * (d2 + d3) + end * d4)
        noise = (y_s - y) / h  # the noise whose plain step ends at y_s
        return Prediction(y - low * noise, noise=noise)

    def _slope(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dsigma, and the growth of log p for each unit of log sigma, (B,) float64."""
        a, _ = self.process.coefficients(t, y)
        with torch.enable_grad():
            xt = (a * y).detach().requires_grad_()
            x0 = as_prediction(self.predict_x0(xt, t, t), xt).x0
            if not x0.requires_grad:
                raise ValueError("predict_x0 must be differentiable in xt: take away its no_grad or inference_mode")
            trace = self._trace(x0, xt)
        dimensions = y[0].numel() if len(y) else 0
        sigma = float(self.process.sigma(t[:1].cpu()))
        return (y - x0.detach()) / sigma, dimensions - float(a.flatten()[0]) * trace

    def _trace(self, x0: Tensor, xt: Tensor) -> Tensor:
        """The trace of d x0_hat / d xt of each row: exact, or by probes."""
        trace = torch.zeros(len(xt), dtype=torch.float64, device=xt.device)
        if self.probes is None:
            flat = x0.flatten(1)
            for i in range(flat.shape[1]):
                (slope,) = torch.autograd.grad(flat[:, i].sum(), xt, retain_graph=True)
                trace += slope.flatten(1)[:, i].double()
            return trace
        for probe in self.probes:
            (slope,) = torch.autograd.grad(x0, xt, probe, retain_graph=True)
            trace += (slope * probe).flatten(1).double().sum(1) / len(self.probes)
        return trace
