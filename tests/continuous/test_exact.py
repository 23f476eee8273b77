"""The seven exact tests: no training, closed forms only."""

import functools
import math

import pytest
import torch

from continuous import sampling
from continuous.degradations import Blur, PixelMask
from continuous.likelihood import log_likelihood, nelbo
from continuous.processes import ColdProcess, GaussianProcess
from tests.continuous.worlds import TWO, Mixture, at, normal
from udm_text.core import Prediction, denoise
from udm_text.processes import MaskProcess, TokenNoise
from udm_text.randomness import RowRandom

VP = GaussianProcess.vp("cosine", 1000)


def rows(n, seed=0):
    return RowRandom(seed, torch.arange(n))


# 1 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP, GaussianProcess.ve(100), GaussianProcess.rf(100)], ids=["vp", "ve", "rf"])
def test_the_score_of_a_mixture_is_that_of_the_posterior_mean(process):
    for t in (1, 13, 60, 99):
        x = (3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(t))).double().requires_grad_()
        a, b = process.coefficients(at(t, 50), x)
        (score,) = torch.autograd.grad(TWO.log_density(x, a, b).sum(), x)
        tweedie = (a * TWO.predictor(process)(x, at(t, 50), None) - x) / b**2
        assert torch.allclose(score, tweedie, rtol=1e-9, atol=1e-12)
        if t < 99:  # what a network of that prediction type is to say
            told = process.to_x0("score", score, x, at(t, 50))
            assert torch.allclose(told, TWO.predictor(process)(x, at(t, 50), None), atol=1e-8)


# 2 --------------------------------------------------------------------------------------------------------------------


SOLVERS = [
    (sampling.ddim, 1),
    (sampling.dpm_solver, 2),
    (sampling.heun, 2),
    (functools.partial(sampling.dpm_solver, order=3), 3),
]


@pytest.mark.parametrize(("wrapper", "order"), SOLVERS, ids=["ddim", "dpm_solver", "heun", "dpm_solver_3"])
def test_a_solver_has_its_order_against_the_closed_flow(wrapper, order):
    """Normal data: the flow takes x_T to m + sqrt((v + s_1^2) / (v + s_T^2)) (x_T - m), s the sigmas of a = 1."""
    process, world = GaussianProcess.ve(1025, sigma_min=0.05, sigma_max=30.0), normal(0.3, mean=0.7)
    start = torch.tensor([[15.0], [-31.0]], dtype=torch.float64)
    low, high = float(process.b[1]), float(process.b[-1])
    exact = 0.7 + math.sqrt((0.3 + low**2) / (0.3 + high**2)) * (start - 0.7)
    errors = []
    for steps in (32, 64, 128, 256):
        times = torch.arange(1025, 0, -1024 // steps)
        end = denoise(process, wrapper(process, world.predictor(process)), start, sampling.spread(times, 2))
        errors.append(float((end - exact).abs().max()))
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(order, abs=0.12), (errors, slopes)


# 3 --------------------------------------------------------------------------------------------------------------------


def deviation(num_steps, wrap):
    """The standard deviation of samples of N(0, 1/4): 1 000 rows of 100 numbers."""
    world, random = normal(0.25, 100), rows(1000)
    predict = wrap(world.predictor(VP), random)
    x = sampling.sample(VP, predict, (1000, 100), sampler=None, num_steps=num_steps, random=random, dtype=torch.float64)
    return float(x.std())


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
def test_the_optimal_variance_is_exact_for_normal_data_at_any_number_of_steps(num_steps):
    data, _ = normal(0.25, 100).sample(500, seed=3)
    times = sampling.grid(VP, num_steps)
    variance = sampling.optimal_variance(VP, normal(0.25, 100).predictor(VP), data, times.tolist(), random=rows(500, 1))
    a, b = VP.a[times[:-1]], VP.b[times[:-1]]
    assert torch.allclose(variance[times[:-1]], 0.25 * b**2 / (0.25 * a**2 + b**2), rtol=0.03)
    exact = torch.zeros_like(variance).index_put((times[:-1],), 0.25 * b**2 / (0.25 * a**2 + b**2))
    found = deviation(num_steps, lambda predict, random: sampling.with_variance(VP, predict, exact, random=random))
    assert found == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * 100_000))
    measured = deviation(
        num_steps, lambda predict, random: sampling.with_variance(VP, predict, variance, random=random)
    )
    assert measured == pytest.approx(0.5, abs=0.01)


def test_the_small_variance_of_ddpm_is_not():
    assert deviation(5, lambda predict, random: sampling.ancestral(VP, predict)) < 0.35


def test_the_large_variance_of_ddpm_is_exact_for_data_as_wide_as_the_noise_and_too_wide_for_less():
    """Normal data of variance v: by conditioning, each step is linear in xt, and its variance follows."""

    def expected(v, num_steps):
        times, variance = sampling.grid(VP, num_steps).tolist(), float(VP.b[-1]) ** 2
        for t, s in zip(times, times[1:], strict=False):
            (a_t, b_t), (a_s, b_s) = ((float(VP.a[time]), float(VP.b[time])) for time in (t, s))
            gain = a_t * v / (a_t**2 * v + b_t**2)  # x0_hat = gain xt
            kept = (a_t / a_s) * b_s**2 / b_t**2  # of xt, in the mean of xs given xt and x0
            slope = kept + (a_s - kept * a_t) * gain
            variance = slope**2 * variance + (b_t**2 - (a_t / a_s) ** 2 * b_s**2 if s else 0.0)
        return math.sqrt(variance)

    for num_steps in (5, 20):
        found = deviation(num_steps, lambda predict, random: sampling.ddpm_large(VP, predict, random=random))
        assert found == pytest.approx(expected(0.25, num_steps), abs=4 * 0.5 / math.sqrt(2 * 100_000))
    assert expected(0.25, 20) == pytest.approx(0.516, abs=1e-3)
    last = float(sampling.grid(VP, 20)[-2])
    left = 1 - float(VP.b[int(last)]) ** 2  # the step to 0 has no noise: of variance 1 it takes what is left of xt's
    assert expected(1.0, 20) == pytest.approx(math.sqrt(left), abs=1e-6)


def variance_left(process, num_steps, noise, monkeypatch):
    """Of normal data of variance 1/4, by the reverse SDE: each step is linear, so what it does to 1 and to z is all."""
    predict, variance = normal(0.25).predictor(process), float(process.b[-1]) ** 2
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    times = sampling.grid(process, num_steps)
    walk = sampling.spread(times, 1)
    step = sampling.reverse_sde(process, predict, noise)
    for t, s in zip(walk, walk[1:], strict=False):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "normal_like", lambda x, random: zero)
            slope = float(denoise(process, step, one, [t, s]))
            patch.setattr(sampling, "normal_like", lambda x, random: one)
            fresh = float(denoise(process, step, zero, [t, s]))
        variance = slope**2 * variance + fresh**2
    return variance


@pytest.mark.parametrize(("family", "noise"), [("vp", 0.5), ("vp", 1.0), ("ve", 0.0), ("ve", 1.0)])
def test_the_reverse_sde_goes_to_the_law_of_data_with_slope_one_whatever_its_noise(family, noise, monkeypatch):
    process = GaussianProcess.vp("linear", 1600) if family == "vp" else GaussianProcess.ve(1600, 0.01, 40.0)
    errors = [abs(variance_left(process, k, noise, monkeypatch) - 0.25) for k in (100, 200, 400)]
    assert errors[-1] < 0.03
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(1.0, abs=0.15), (errors, slopes)


def test_samples_of_the_reverse_sde_have_the_variance_of_its_recursion(monkeypatch):
    for noise in (0.5, 1.0):
        found = deviation(40, lambda predict, random, c=noise: sampling.reverse_sde(VP, predict, c, random=random))
        expected = math.sqrt(variance_left(VP, 40, noise, monkeypatch))
        assert found == pytest.approx(expected, abs=4 * expected / math.sqrt(2 * 100_000))


def test_without_its_fresh_noise_the_chain_of_ddpm_is_not_ddim():
    """Often printed: sigma = 0 in DDPM's mean. It collapses; DDIM, sigma = 0 in the noise's share, does not."""
    world = normal(0.25, 100)

    def mean_only(xt, t, s):  # the mean of q(xs | xt, x0_hat), written as a settled noise
        x0 = world.predictor(VP)(xt, t, s)
        share = VP.ancestral_churn(t, s)[:, None]
        return Prediction(x0, noise=(1 - share**2).sqrt() * VP.invert_noise(x0, xt, t))

    assert deviation(100, lambda predict, random: mean_only) < 0.05
    assert deviation(100, lambda predict, random: sampling.ddim(VP, predict)) == pytest.approx(0.5, abs=0.01)


# 4 --------------------------------------------------------------------------------------------------------------------


def test_the_likelihood_of_the_flow_converges_to_the_density_of_the_mixture():
    """Four calls a step, order 3 at least: the error falls by 8 or more, down to what is left of x0 in x_T."""
    world = Mixture([[-1.0, 0.5], [1.0, -0.5]], [0.09, 0.16], [0.5, 0.5])
    x, _ = world.sample(40, seed=1)
    ones = torch.ones(40, 1, dtype=torch.float64)

    def errors(process, *steps):
        exact = world.log_density(x, ones, process.sigma(at(1, 1)) * ones)
        found = (log_likelihood(process, world.predictor(process), x, k, probes=None) for k in steps)
        return [float((values - exact).abs().max()) for values in found]

    coarse, fine = errors(GaussianProcess.ve(641, sigma_min=0.01, sigma_max=100.0), 10, 20)
    assert fine < min(coarse / 8, 5e-3)
    assert errors(VP, 20, 40)[1] < 3e-3  # uneven nodes: a table of the cosine schedule, whose last step is huge


def test_the_walk_of_the_likelihood_is_of_third_order_also_where_middles_are_far_from_the_middle():
    world, x = normal(0.3, mean=0.2), torch.tensor([[0.9], [-0.4]], dtype=torch.float64)
    errors = []
    for steps in (16, 32, 64):
        step = torch.tensor([0.25, 0.75], dtype=torch.float64).repeat(steps) * math.log(0.2 / 1e4) / steps
        sigmas = 0.2 * torch.cat((torch.zeros(1), -step.cumsum(0))).double().exp()
        b = torch.cat((torch.zeros(1), sigmas)).double()
        process, one = GaussianProcess(torch.ones_like(b), b), torch.ones(2, 1, dtype=torch.float64)
        exact = world.log_density(x, one, 0.2 * one)
        errors.append(
            float((log_likelihood(process, world.predictor(process), x, steps, probes=None) - exact).abs().max())
        )
    assert errors[0] / errors[1] > 6 and errors[1] / errors[2] > 6, errors


def test_hutchinsons_estimate_is_unbiased():
    process = GaussianProcess.ve(81, sigma_min=0.05, sigma_max=50.0)
    x = torch.tensor([[0.1, 0.2]], dtype=torch.float64).expand(400, 2)
    exact = log_likelihood(process, TWO.predictor(process), x[:1], 20, probes=None)
    estimates = log_likelihood(process, TWO.predictor(process), x, 20, probes=1, random=rows(400))
    error = float(estimates.std() / math.sqrt(400))
    assert 1e-4 < error < 0.3
    assert abs(float(estimates.mean() - exact)) < 4 * error
    more = log_likelihood(process, TWO.predictor(process), x, 20, probes=16, random=rows(400))
    assert float(more.std()) < 0.4 * float(estimates.std())


# 5 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 5, 50])
def test_the_bound_is_tight_for_normal_data_with_the_optimal_variance(num_steps):
    world = normal(0.25, 20)
    x, _ = world.sample(3000, seed=2)
    ones = torch.ones(3000, 1, dtype=torch.float64)
    exact = -world.log_density(x, ones, 0 * ones)
    v = 0.25 * VP.b**2 / (0.25 * VP.a**2 + VP.b**2)
    times = sampling.grid(VP, num_steps)
    bound = nelbo(VP, world.predictor(VP), x, times, variance=v, random=rows(3000))
    gap = (bound.nats - exact) / 20
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(3000) + 1e-5
    assert float(gap.std()) / math.sqrt(3000) < 0.005
    if num_steps == 5:
        fixed = nelbo(VP, world.predictor(VP), x, times, random=rows(3000))
        assert float((fixed.nats - exact).mean()) / 20 > 0.1  # with DDPM's variance it is far from tight


@pytest.mark.parametrize("num_steps", [1, 5, 50])
def test_a_variance_that_is_a_function_makes_it_tight_where_every_number_has_its_own(num_steps):
    spread = torch.tensor([0.01, 0.25, 1.0], dtype=torch.float64).repeat(7)  # of 21 independent numbers
    n = 3000
    x = spread.sqrt() * torch.randn(n, 21, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = 0.5 * ((2 * math.pi * spread).log() + x.square() / spread).sum(1)

    def predict_x0(xt, t, s):
        a, b = VP.coefficients(t, xt)
        return a * spread / (a**2 * spread + b**2) * xt

    def variance(xt, t, prediction):
        a, b = VP.coefficients(t, xt)
        return spread * b**2 / (a**2 * spread + b**2)

    times = sampling.grid(VP, num_steps)
    bound = nelbo(VP, predict_x0, x, times, variance=variance, random=rows(n))
    gap = (bound.nats - exact) / 21
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(n) + 1e-4
    assert float(gap.std()) / math.sqrt(n) < 0.005
    # one variance for all numbers, the best there is, is not enough
    table = (spread * VP.b[:, None] ** 2 / (VP.a[:, None] ** 2 * spread + VP.b[:, None] ** 2)).mean(1)
    one = nelbo(VP, predict_x0, x, times, variance=table, random=rows(n))
    assert float((one.nats - exact).mean()) / 21 > 0.03


# 6 --------------------------------------------------------------------------------------------------------------------


def mmd(x, y):
    """The unbiased squared maximum mean discrepancy of two samples, a normal kernel of width 0.5."""

    def kernel(p, q):
        return (-torch.cdist(p, q).square() / (2 * 0.5**2)).exp()

    n, m = len(x), len(y)
    return float(
        (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1)) - 2 * kernel(x, y).mean()
    )


def test_ddpm_and_ddim_sample_the_mixture_and_the_baseline_with_a_mean_does_not():
    n = 1000
    real, other = TWO.sample(n, seed=10)[0], TWO.sample(n, seed=11)[0]
    null = max(abs(mmd(TWO.sample(n, seed=20 + i)[0], TWO.sample(n, seed=40 + i)[0])) for i in range(5))
    assert mmd(real, other) < 2 * null

    def distance(sampler, num_steps):
        predict = TWO.predictor(VP)
        x = sampling.sample(VP, predict, (n, 2), sampler=sampler, num_steps=num_steps, random=rows(n), dtype=real.dtype)
        return mmd(x, real)

    assert distance("ddpm", 250) < 2 * null
    assert distance("ddim", 80) < 2 * null
    assert distance("dpm_solver", 40) < 2 * null
    assert distance("baseline", 250) > 6 * null


# 7 --------------------------------------------------------------------------------------------------------------------


def images(n=6, size=8, seed=0, channels=1):
    return (
        torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    )


def a_bad_restorer(xt, t, s):
    """Wrong at every step, and differently at each."""
    noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(int(t[0])), dtype=xt.dtype)
    return 0.3 * xt.flip(-1) + 0.5 * noise


def test_improved_sampling_is_exact_for_any_restorer_where_the_degradation_is_a_straight_line():
    x0, direction = images(), images(seed=1)
    process = ColdProcess(lambda x, t: x + t.view(-1, 1, 1, 1) * direction, T=7)
    xt = process.degrade(x0, at(7, 6))
    assert torch.allclose(sampling.restore(process, a_bad_restorer, xt), x0, atol=1e-12)
    assert float((sampling.restore(process, a_bad_restorer, xt, churn=1.0) - x0).abs().mean()) > 0.3


@pytest.mark.parametrize("degradation", [Blur(6, 3.0), PixelMask(6, "random")], ids=["blur", "mask"])
def test_a_linear_degradation_ends_at_the_sum_of_the_restorers_errors_times_its_steps(degradation):
    """x_0 - x0 = sum over t of (D_{t-1} - D_t) e_t, e_t the restorer's error at t."""
    process, x0, errors = ColdProcess(degradation), images(), {}

    def restorer(xt, t, s):
        prediction = a_bad_restorer(xt, t, s)
        errors[int(t[0])] = prediction - x0
        return prediction

    end = sampling.restore(process, restorer, process.degrade(x0, at(6, 6)))
    expected = sum(process.degrade(e, at(t - 1, 6)) - process.degrade(e, at(t, 6)) for t, e in errors.items())
    assert len(errors) == 6
    assert torch.allclose(end - x0, expected, atol=1e-12)
    assert float(expected.abs().mean()) > 0.1


class LinearWorld:
    """Normal images of four numbers, degraded towards means of neighbours, beside noise: x0 given xt is normal too."""

    mean = torch.tensor([0.3, -0.5, 0.1, 0.8], dtype=torch.float64)
    root = torch.tensor(
        [[0.6, 0.0, 0.0, 0.0], [0.3, 0.5, 0.0, 0.0], [-0.2, 0.3, 0.4, 0.0], [0.1, -0.3, 0.2, 0.5]]
    ).double()
    covariance = root @ root.T
    pairs = torch.block_diag(*[torch.full((2, 2), 0.5, dtype=torch.float64)] * 2)
    T, sigma = 8, 0.3

    def __init__(self):
        self.process = ColdProcess(self.degrade, T=self.T, sigma=self.sigma)

    def matrix(self, t):
        return torch.lerp(torch.eye(4).double(), self.pairs, t / self.T)

    def degrade(self, x, t):
        return x + (t / self.T).to(x)[:, None] * (x @ self.pairs.to(x) - x)

    def posterior(self, t):
        """(K, C) of x0 given xt, N(mean + K (xt - D mean), C)."""
        d = self.matrix(t)
        gain = (
            self.covariance @ d.T @ torch.linalg.inv(d @ self.covariance @ d.T + self.sigma**2 * torch.eye(4).double())
        )
        return gain, self.covariance - gain @ d @ self.covariance

    def predictor(self, random=None):
        """E[x0 | xt], or with `random` a draw of x0 given xt."""

        def predict(xt, t, s):
            gain, covariance = self.posterior(int(t[0]))
            x0 = self.mean + (xt.double() - self.matrix(int(t[0])) @ self.mean) @ gain.T
            if random is not None:
                x0 = x0 + random.normal(4) @ torch.linalg.cholesky(covariance).T
            return x0.to(xt)

        return predict

    def images(self, n, seed):
        z = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.mean + z @ self.root.T

    def off(self, x):
        """Relative error of the covariance of samples, and the largest of their means in standard errors."""
        error = (torch.cov(x.T.double()) - self.covariance).norm() / self.covariance.norm()
        means = (x.double().mean(0) - self.mean) / (self.covariance.diagonal() / len(x)).sqrt()
        return float(error), float(means.abs().max())


@pytest.mark.parametrize("churn", [0.0, 1.0], ids=["improved", "naive"])
def test_cold_images_from_the_fitted_law_of_x_T_have_the_law_of_images_where_x0_hat_is_drawn(churn):
    world, n = LinearWorld(), 40_000
    prior = sampling.ColdPrior.fit(world.process, world.images(n, seed=1))
    random, places = rows(n), torch.zeros(n, dtype=torch.int64)
    xt = prior.draw(world.process, places, random=random)
    end = world.matrix(8)
    expected = end @ world.covariance @ end.T + 0.3**2 * torch.eye(4)
    assert float((torch.cov(xt.T.double()) - expected).norm() / expected.norm()) < 0.02
    drawn = sampling.restore(world.process, world.predictor(random), xt, churn=churn, random=random)
    error, means = world.off(drawn)
    assert error < 0.03 and means < 5  # the means of the images it was fitted on have an error of their own
    mean = sampling.restore(world.process, world.predictor(), xt, churn=churn, random=rows(n, 1))
    assert world.off(mean)[0] > 0.25  # answers that are means lose what the degradation took


def test_a_drawn_x0_hat_of_a_cold_process_has_the_variance_that_is_said():
    """Numbers that fade, x0 (1 - t/16) + noise: x0 given xt is normal, each number for itself."""
    process, n = ColdProcess(lambda x, t: x * (1 - t.to(x) / 16).view(-1, 1), T=8, sigma=0.3), 40_000
    law = torch.tensor([0.04, 0.25, 1.0], dtype=torch.float64)

    def variance(xt, t, prediction):
        d = 1 - t.double()[:, None] / 16
        return law * 0.3**2 / (d**2 * law + 0.3**2)

    def mean(xt, t, s):
        d = 1 - t.double()[:, None] / 16
        return d * law / (d**2 * law + 0.3**2) * xt

    x0 = law.sqrt() * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xt = process.prior(x0, random=rows(n))
    for churn in (0.0, 1.0):
        random = rows(n, 1)
        drawn = sampling.with_variance(process, mean, variance, random=random)
        found = sampling.restore(process, drawn, xt, churn=churn, random=random).var(0)
        assert ((found / law - 1).abs() < 4 * math.sqrt(2 / n)).all()
        alone = sampling.restore(process, mean, xt, churn=churn, random=rows(n, 1)).var(0)
        assert float((alone / law)[0]) < 0.8


def test_nested_pixel_masks_are_the_mask_sampler_of_text():
    """The same guesses, the same order: pixel for token, step by step, and a pixel once shown stays."""
    degradation, hidden = PixelMask(16, "random", fill=-1.0, seed=4), 9
    generator = torch.Generator().manual_seed(0)
    guesses = {t: torch.randint(0, 9, (3, 16), generator=generator) for t in range(1, 17)}
    keys = degradation.ranks(4, 4).flatten().double().expand(3, 16) / 16 + 1e-3
    text, shown = [], []

    def predict_tokens(xt, t, s):
        x0 = torch.where(xt == hidden, guesses[int(t[0])], xt)
        return Prediction(x0, noise=TokenNoise(keys, keys))

    def predict_pixels(xt, t, s):
        return guesses[int(t[0])].double().view(3, 1, 4, 4)

    walk = [at(t, 3) for t in range(16, -1, -1)]
    start = torch.full((3, 16), hidden)
    denoise(MaskProcess(hidden), predict_tokens, start, walk, on_step=lambda i, xs, g: text.append(xs))
    blank = torch.full((3, 1, 4, 4), -1.0, dtype=torch.float64)
    denoise(ColdProcess(degradation), predict_pixels, blank, walk, on_step=lambda i, xs, g: shown.append(xs))
    for tokens, pixels in zip(text, shown, strict=True):
        values = torch.where(tokens == hidden, -1, tokens).double()
        assert torch.equal(pixels.flatten(1), values)
    assert not (text[-1] == hidden).any()
