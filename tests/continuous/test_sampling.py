"""Samplers, guidance and editing against closed forms; and that they refuse what they cannot do."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, laplace, norm

from continuous import control, sampling
from continuous.degradations import Blur, PixelMask
from continuous.likelihood import _terms, log_likelihood, nelbo
from continuous.processes import ColdProcess, GaussianProcess
from tests.continuous.worlds import TWO, Mixture, at, normal
from udm_text.core import Prediction, denoise
from udm_text.randomness import RowRandom

VP = GaussianProcess.vp("cosine", 100)
PREDICT = TWO.predictor(VP)


def rows(n, seed=0):
    return RowRandom(seed, torch.arange(n))


def images(n=4, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, size, size, generator=generator, dtype=torch.float64) * 2 - 1


# grids ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP, GaussianProcess.ve(100), GaussianProcess.rf(100)], ids=["vp", "ve", "rf"])
@pytest.mark.parametrize("spacing", sampling.SPACINGS)
def test_grids_fall_strictly_from_the_start_to_zero_with_as_many_steps_as_asked(process, spacing):
    for num_steps in (1, 2, 7, 50, 99, 100):
        for start in (100, 99) if num_steps < 100 else (100,):
            times = sampling.grid(process, num_steps, spacing, start)
            sampling.check_falling(times, 100)
            assert (len(times), int(times[0]), int(times[-1])) == (num_steps + 1, start, 0)


def test_spacings_are_what_they_are_called():
    assert sampling.grid(VP, 4).tolist() == [100, 75, 50, 25, 0]
    assert sampling.grid(VP, 4, "quadratic").tolist() == [100, 56, 25, 6, 0]
    ve = GaussianProcess.ve(100)  # log sigma is even in t there
    assert sampling.grid(ve, 4, "snr").tolist() == [100, 67, 34, 1, 0]


# the share of fresh noise ---------------------------------------------------------------------------------------------


def test_eta_joins_ddim_and_ddpm_and_a_fixed_churn_is_the_sigma_tilde_of_udm():
    """sigma_tilde = churn b_s: xs = a_s x0_hat + sqrt(b_s^2 - sigma_tilde^2) noise + sigma_tilde fresh."""
    x, t, s = torch.randn(5, 2, dtype=torch.float64), at(60, 5), at(40, 5)
    for eta in (0.0, 0.5, 1.0):
        prediction = sampling.ddim(VP, PREDICT, eta)(x, t, s)
        assert torch.allclose(torch.as_tensor(prediction.churn).double(), eta * VP.ancestral_churn(t, s))
    out = denoise(VP, PREDICT, x, [t, s], 0.3, random=rows(5))
    x0, fresh = PREDICT(x, t, s), VP.sample_noise(x, random=rows(5))
    (a_s, b_s), noise = VP.coefficients(s, x), VP.invert_noise(PREDICT(x, t, s), x, t)
    tilde = 0.3 * b_s
    assert torch.allclose(out, a_s * x0 + (b_s**2 - tilde**2).sqrt() * noise + tilde * fresh, atol=1e-12)


def test_a_row_of_samples_does_not_depend_on_its_neighbours_or_the_batch():
    for sampler in sampling.SAMPLERS:
        together = sampling.sample(VP, PREDICT, (6, 2), sampler=sampler, num_steps=9, random=rows(6))
        alone = sampling.sample(
            VP, PREDICT, (1, 2), sampler=sampler, num_steps=9, random=RowRandom(0, torch.tensor([4]))
        )
        assert together.dtype == torch.float32 and torch.allclose(together[4:5], alone, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3])
def test_two_walks_of_one_dpm_solver_do_not_know_of_each_other(order):
    walk = sampling.dpm_solver(VP, PREDICT, order)
    first = sampling.sample(VP, walk, (6, 2), sampler=None, num_steps=9, random=rows(6))
    assert torch.equal(first, sampling.sample(VP, walk, (6, 2), sampler=None, num_steps=9, random=rows(6)))
    sampling.sample(VP, walk, (3, 2), sampler=None, num_steps=9)
    assert torch.equal(first, sampling.sample(VP, walk, (6, 2), sampler=None, num_steps=9, random=rows(6)))


def test_higher_orders_ask_as_often_as_they_say():
    calls = []

    def counted(xt, t, s):
        calls.append((int(t[0]), int(s[0])))
        return PREDICT(xt, t, s)

    for wrap, extra in ((sampling.heun, 8), (lambda p, f: sampling.dpm_solver(p, f, 3), 1), (sampling.dpm_solver, 0)):
        calls.clear()
        sampling.sample(VP, wrap(VP, counted), (6, 2), sampler=None, num_steps=9, random=rows(6))
        assert len(calls) == 9 + extra and (extra == 0 or calls[1] == (89, 89))


def test_a_step_of_third_order_is_exact_where_x0_hat_is_a_parabola_in_log_snr():
    """x_s = (b_s/b_t) x + a_s int_0^h e^(u - h) x0_hat(u) du, by quadrature; the answers depend on t alone."""
    process = GaussianProcess.ve(40, 0.05, 30.0)

    def parabola(level):
        return 0.3 + 0.2 * level - 0.07 * level**2

    def predict(xt, t, s):
        return parabola(-process.sigma(t).log())[:, None].expand_as(xt)

    walk = sampling.spread([30, 26, 19, 14], 1)
    start, states = torch.full((1, 1), 2.0, dtype=torch.float64), []
    solver = sampling.dpm_solver(process, predict, order=3)
    denoise(process, solver, start, walk, on_step=lambda i, xs, g: states.append(float(xs)))
    low, high = (float(-process.sigma(t).log()) for t in (walk[2], walk[3]))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    u = (nodes + 1) / 2 * (high - low)
    integral = float((weights / 2 * (high - low) * np.exp(u - (high - low)) * parabola(low + u)).sum())
    kept = float(process.b[14] / process.b[19])
    assert states[2] == pytest.approx(kept * states[1] + integral, abs=1e-12)


def test_a_learned_variance_may_differ_from_pixel_to_pixel():
    variance = torch.tensor([0.0, 4.0], dtype=torch.float64)
    predict = sampling.with_variance(
        VP, lambda x, t, s: torch.zeros_like(x), lambda x, t, g: variance, random=rows(2000)
    )
    x0 = predict(torch.zeros(2000, 2, dtype=torch.float64), at(9, 2000), at(0, 2000)).x0
    assert bool((x0[:, 0] == 0).all()) and float(x0[:, 1].std()) == pytest.approx(2.0, rel=0.06)
    still = sampling.with_variance(VP, lambda x, t, s: torch.zeros_like(x), lambda x, t, g: variance, last=False)
    assert bool((still(x0, at(9, 2000), at(0, 2000)).x0 == 0).all())


def test_x0_hat_may_be_drawn_from_a_laplace_law_of_the_same_variance():
    n, variance = 4000, torch.full((101,), 0.25, dtype=torch.float64)
    still = lambda xt, t, s: torch.zeros_like(xt)  # noqa: E731
    xt, t = torch.zeros(n, 5, dtype=torch.float64), at(9, n)
    drawn = sampling.with_variance(VP, still, variance, law="laplace", random=rows(n))(xt, t, at(4, n)).x0
    assert kstest(drawn.flatten().numpy(), laplace(scale=0.5 / math.sqrt(2)).cdf).pvalue > 1e-3
    assert kstest(drawn.flatten().numpy(), norm(scale=0.5).cdf).pvalue < 1e-12
    source = RowRandom(0, torch.tensor([7, 3]))
    alone = sampling.with_variance(VP, still, variance, law="laplace", random=source)(xt[:2], t[:2], at(4, 2)).x0
    assert torch.equal(alone, drawn[[7, 3]])


def test_clipping_moves_the_noise_with_x0():
    """The trap of a stock scheduler: x0 clipped, epsilon not. Here the two always make up xt."""
    x, t, s = 3 * torch.randn(5, 2, dtype=torch.float64), at(60, 5), at(40, 5)
    clipped = sampling.clip(lambda xt, t, s: 5 * xt, -1, 1)(x, t, s).x0
    assert float(clipped.abs().max()) == 1.0
    xs = denoise(VP, sampling.clip(lambda xt, t, s: 5 * xt), x, [t, s])
    (a_t, b_t), (a_s, b_s) = VP.coefficients(t, x), VP.coefficients(s, x)
    assert torch.allclose(xs, a_s * clipped + b_s * (x - a_t * clipped) / b_t, atol=1e-12)


# steps upwards, steps that stay ---------------------------------------------------------------------------------------


def test_inversion_and_sampling_undo_each_other_to_first_order():
    process, x0 = GaussianProcess.vp("cosine", 1000), TWO.sample(8, seed=1)[0]
    predict, errors = TWO.predictor(process), []
    for num_steps in (250, 500, 1000):
        noise = sampling.encode(process, predict, x0, num_steps)
        walk = sampling.spread(sampling.grid(process, num_steps), 8)
        errors.append(float((denoise(process, predict, noise, walk) - x0).abs().max()))
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0] and errors[2] < 0.05
    assert 0.3 < float(noise.std()) < 3


def test_langevin_steps_have_the_law_of_their_closed_form():
    """On N(0, v_t) a step is x' = (1 - eta / v_t) x + sqrt(2 eta) xi, at last of variance v_t / (1 - eta / 2 v_t)."""
    world, n, t = normal(0.25, 50), 400, 40
    (a, b), step = VP.coefficients(at(t, n), torch.zeros(n, 1).double()), 0.4
    v, eta = float(a[0] ** 2 * 0.25 + b[0] ** 2), step * float(b[0] ** 2)
    walk = [at(t, n)] * 41
    predict = sampling.langevin(VP, world.predictor(VP), step, random=rows(n))
    x = denoise(VP, predict, torch.zeros(n, 50, dtype=torch.float64), walk)
    assert float(x.var()) == pytest.approx(v / (1 - eta / (2 * v)), rel=4 * math.sqrt(2 / x.numel()))
    assert v / (1 - eta / (2 * v)) > 1.1 * v


def test_the_variance_of_langevin_steps_falls_with_the_temperature():
    world, n, t, step = normal(0.25, 50), 400, 40, 0.1
    a, b = float(VP.a[t]), float(VP.b[t])
    v, eta = a**2 * 0.25 + b**2, step * b**2
    for temperature in (0.5, 0.125, 0.02):
        table = torch.full((101,), temperature, dtype=torch.float64)
        found = []
        for given in (temperature, table):
            predict = sampling.langevin(VP, world.predictor(VP), step, temperature=given, random=rows(n))
            found.append(denoise(VP, predict, torch.zeros(n, 50, dtype=torch.float64), [at(t, n)] * 121))
        assert torch.equal(*found)
        expected = temperature * v / (1 - eta / (2 * v))  # of an AR(1) process with 1 - eta / v and 2 eta temperature
        assert float(found[0].var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / found[0].numel()))


@pytest.mark.filterwarnings("ignore:a_T")
def test_a_falling_temperature_finds_the_higher_mode_more_often_than_climbing():
    """Simulated annealing on p0^(1 / temperature), from between two modes of 0.3 and 0.7 of the mass."""
    process = GaussianProcess.ve(400, sigma_min=0.4, sigma_max=0.41)
    world, n = Mixture([[-1.0], [1.0]], [0.04, 0.04], [0.3, 0.7]), 2000
    times = torch.arange(400, 0, -1)
    start = 2 * torch.rand(n, 1, generator=torch.Generator().manual_seed(0)).double() - 1
    cooling = 3.0 * torch.arange(401, dtype=torch.float64) / 400
    shares = []
    for temperature in (0.0, cooling):
        predict = sampling.langevin(
            process, world.predictor(process), 0.3, temperature=temperature, carry=True, random=rows(n)
        )
        walk = sampling.spread(sampling.repeated(times, 2), n)
        end = denoise(process, predict, start, walk)
        shares.append(float((end > 0).double().mean()))
        assert float((end.abs() - 1).abs().mean()) < 0.1  # each stands at a mode
    assert shares[0] < 0.62 and shares[1] > shares[0] + 0.15


def test_annealed_langevin_carries_x_over_and_samples_normal_data():
    process, world = GaussianProcess.ve(60, sigma_min=0.05, sigma_max=30.0), normal(0.25, 50)
    times = sampling.repeated(torch.arange(60, -1, -1), 5)
    assert times.tolist()[:8] == [60] * 6 + [59] * 2 and times.tolist()[-3:] == [1, 1, 0]
    predict = sampling.langevin(process, world.predictor(process), 0.1, carry=True, random=rows(400))
    start, seen = process.prior(torch.zeros(400, 50, dtype=torch.float64), random=rows(400, 1)), {}
    end = denoise(
        process, predict, start, sampling.spread(times, 400), on_step=lambda i, xs, g: seen.__setitem__(i, xs)
    )
    assert torch.allclose(seen[5], seen[4], atol=1e-12) and not torch.allclose(seen[6], seen[5], atol=1e-2)
    variance = 30.0**2
    for sigma in process.b[1:].flip(0).tolist():  # five steps at each level, then the predictor's mean
        for _ in range(5):
            shrink = 1 - 0.1 * sigma**2 / (0.25 + sigma**2)
            variance = shrink**2 * variance + 2 * 0.1 * sigma**2
    expected = math.sqrt(variance) * 0.25 / (0.25 + 0.05**2)
    assert float(end.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * end.numel()))
    assert expected == pytest.approx(0.5, rel=0.15)


def test_slerp_walks_the_great_circle():
    x, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    x, y = (z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for z in (x, y))
    assert torch.allclose(sampling.slerp(x, y, 0.0), x) and torch.allclose(sampling.slerp(x, y, 1.0), y)
    z = sampling.slerp(x, y, torch.tensor([0.25, 0.5, 0.9]))
    assert torch.allclose(z.flatten(1).norm(dim=1), torch.ones(3).double())
    angle = (x * y).flatten(1).sum(1).acos()
    assert torch.allclose((x * z).flatten(1).sum(1).acos(), torch.tensor([0.25, 0.5, 0.9]) * angle)
    assert torch.allclose(sampling.slerp(x, x, 0.3), x, atol=1e-12)


# control --------------------------------------------------------------------------------------------------------------


def test_guidance_by_the_exact_classifier_is_the_conditional_predictor():
    """Bayes: x0 given y is x0_hat + (b^2/a) grad log p(y | xt)."""
    x, t = 2 * torch.randn(20, 2, dtype=torch.float64), at(45, 20)

    def log_prob(xt, time):
        a, b = VP.coefficients(time, xt)
        return TWO.parts(xt, a, b).log_softmax(-1)[:, 1]

    conditional = TWO.predictor(VP, only=1)
    found = control.classifier_guided(VP, PREDICT, log_prob)(x, t, t).x0
    assert torch.allclose(found, conditional(x, t, t), atol=1e-10)
    twice = control.classifier_guided(VP, PREDICT, log_prob, scale=2.0)(x, t, t).x0
    free = control.guided(conditional, PREDICT, 2.0)(x, t, t).x0
    assert torch.allclose(twice, free, atol=1e-10) and not torch.allclose(free, found, atol=1e-2)
    assert torch.allclose(control.guided(conditional, PREDICT, 1.0)(x, t, t).x0, conditional(x, t, t))
    assert torch.allclose(control.guided(conditional, PREDICT, 0.0)(x, t, t).x0, PREDICT(x, t, t))


def test_a_projection_is_obeyed_at_the_end():
    def onto_the_line(x):
        return x - (x.sum(1, keepdim=True) - 1) / 2  # x + y = 1

    predict = control.project(PREDICT, onto_the_line)
    out = sampling.sample(VP, predict, (50, 2), num_steps=20, random=rows(50), dtype=torch.float64)
    assert torch.allclose(out.sum(1), torch.ones(50).double(), atol=1e-12)
    with pytest.raises(ValueError, match="shape of xt"):
        sampling.sample(VP, control.project(PREDICT, lambda x: x[:, :1]), (5, 2), num_steps=2)


def test_editing_keeps_what_is_known_and_noises_it_on_the_way():
    known, editable = TWO.sample(400, seed=2)[0], torch.tensor([True, False])
    seen = []

    def watch(step, xs, prediction):
        seen.append(xs)

    out = control.edit(VP, sampling.ancestral(VP, PREDICT), known, editable, random=rows(400), on_step=watch)
    assert torch.equal(out[:, 1], known[:, 1]) and not torch.allclose(out[:, 0], known[:, 0], atol=0.1)
    t = 60  # after the 40th of 100 steps
    a, b = float(VP.a[t]), float(VP.b[t])
    residual = seen[39][:, 1] - a * known[:, 1]
    assert float(residual.std()) == pytest.approx(b, rel=0.15)
    assert torch.equal(out, control.edit(VP, sampling.ancestral(VP, PREDICT), known, editable, random=rows(400)))


def moments_of_an_edit(process, times, correlation, value, step_size, corrections):
    """Mean and variance of one number of a correlated pair of standard normal ones, the other put back: exactly.

    Everything is linear: x0_hat = M x, so each step takes x = (mine, known) to G x + noise, and what is put back is
    independent of mine.
    """
    law = np.array([[1.0, correlation], [correlation, 1.0]])
    a, b = process.a.numpy(), process.b.numpy()
    mean, variance = 0.0, b[times[0]] ** 2
    other = np.array([0.0, b[times[0]] ** 2])  # mean and variance of the known number: pure noise at first
    for t, s in zip(times, times[1:], strict=False):
        m = a[t] * law @ np.linalg.inv(a[t] ** 2 * law + b[t] ** 2 * np.eye(2))
        noise = (np.eye(2) - a[t] * m) / b[t]
        for _ in range(corrections):
            row = (a[t] * m + (1 - step_size) * b[t] * noise)[0]
            mean = row @ (mean, other[0])
            variance = row**2 @ (variance, other[1]) + 2 * step_size * b[t] ** 2
            other = np.array([a[t] * value, b[t] ** 2])
        kept = a[t] * b[s] / (a[s] * b[t])  # DDPM: the share of the noise that is kept
        row = (a[s] * m + b[s] * kept * noise)[0]
        mean = row @ (mean, other[0])
        variance = row**2 @ (variance, other[1]) + b[s] ** 2 * (1 - kept**2)
        other = np.array([a[s] * value, b[s] ** 2])
    return mean, math.sqrt(variance)


def test_an_edit_by_replacement_is_off_and_corrections_mend_it():
    """Of two standard normal numbers of correlation 0.8, one known as 0.625, the other is N(0.5, 0.6^2)."""
    process, n = GaussianProcess.vp("cosine", 1000), 20_000
    law = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    known, editable = torch.full((n, 2), 0.625, dtype=torch.float64), torch.tensor([True, False])

    def predict(xt, t, s):
        a, b = float(process.a[t[0]]), float(process.b[t[0]])
        return a * xt @ torch.linalg.inv(a**2 * law + b**2 * torch.eye(2)).double() @ law

    def drawn(**how):
        return control.edit(process, sampling.ancestral(process, predict), known, editable, random=rows(n), **how)[:, 0]

    times, found = sampling.grid(process, 50).tolist(), {}
    for corrections in (0, 10):
        x = drawn(num_steps=50, corrections=corrections)
        mean, deviation = moments_of_an_edit(process, times, 0.8, 0.625, control.STEP_SIZE, corrections)
        assert float(x.mean()) == pytest.approx(mean, abs=4 * deviation / n**0.5)
        assert float(x.std()) == pytest.approx(deviation, abs=4 * deviation / (2 * n) ** 0.5)
        found[corrections] = mean, deviation
    assert found[0] == pytest.approx((0.30, 0.68), abs=0.01)  # replacement alone
    assert found[10] == pytest.approx((0.47, 0.61), abs=0.01)
    every = list(range(1000, -1, -1))  # no number of steps mends replacement ...
    assert moments_of_an_edit(process, every, 0.8, 0.625, 0.2, 0) == pytest.approx((0.31, 0.70), abs=0.01)
    for corrections, step_size, off in ((10, 0.2, 0.012), (100, 0.2, 0.002)):  # ... and corrections go on to the truth
        found = moments_of_an_edit(process, every, 0.8, 0.625, step_size, corrections)
        assert found == pytest.approx((0.5, 0.6), abs=off)


def test_an_edit_of_a_predictor_that_is_told_what_is_clean_has_the_conditional_law():
    """The same pair: the known number stands clean, and x0 of the other given both is that of N(0.5, 0.36)."""
    process, n, seen = GaussianProcess.vp("cosine", 1000), 20_000, []
    known, editable = torch.full((n, 2), 0.625, dtype=torch.float64), torch.tensor([True, False])

    def predict(xt, t, s):
        a, b = process.at(t[:, :1])
        mean = 0.5 + 0.36 * a / (0.36 * a**2 + b**2) * (xt[:, :1] - 0.5 * a)
        return torch.cat((mean, xt[:, 1:]), dim=1)

    def watch(step, xs, prediction):
        seen.append(xs[:, 1])

    def drawn(num_steps):
        how = {"num_steps": num_steps, "mode": "clean", "random": rows(n), "on_step": watch}
        return control.edit(process, sampling.ancestral(process, predict), known, editable, **how)

    def expected(num_steps):  # of the deviation, by the variance that each linear step leaves
        times, variance = sampling.grid(process, num_steps).tolist(), 1.0
        for t, s in zip(times, times[1:], strict=False):
            (a_t, b_t), (a_s, b_s) = ((float(process.a[time]), float(process.b[time])) for time in (t, s))
            kept = (a_t / a_s) * b_s**2 / b_t**2
            gain = 0.36 * a_t / (0.36 * a_t**2 + b_t**2)
            left = b_s**2 * (1 - (a_t * b_s / (a_s * b_t)) ** 2)
            variance = (kept + (a_s - kept * a_t) * gain) ** 2 * variance + left
        return math.sqrt(variance)

    for num_steps in (50, 200):
        x, deviation = drawn(num_steps), expected(num_steps)
        assert torch.equal(x[:, 1], known[:, 1]) and all(torch.equal(other, known[:, 1]) for other in seen)
        assert float(x[:, 0].mean()) == pytest.approx(0.5, abs=4 * 0.6 / n**0.5)
        assert float(x[:, 0].std()) == pytest.approx(deviation, abs=4 * deviation / (2 * n) ** 0.5)
    assert expected(200) == pytest.approx(0.59, abs=0.005) and expected(1000) == pytest.approx(0.6, abs=0.006)
    mean, deviation = moments_of_an_edit(process, sampling.grid(process, 200).tolist(), 0.8, 0.625, 0.2, 0)
    assert mean < 0.32 and deviation > 0.68  # what replacement gives, with the exact predictor of the pair
    near = control.edit(process, predict, known, editable, start=1, mode="clean", random=rows(n))
    assert float((near - known).abs().max()) < 0.1
    for how in ({"corrections": 1}, {"mode": "cleanly"}):
        with pytest.raises(ValueError, match="mode 'clean' needs a Gaussian process and no|mode must be 'replace' or"):
            control.edit(VP, PREDICT, known, editable, **{"mode": "clean", "num_steps": 2, **how})
    with pytest.raises(ValueError, match="mode 'clean' needs a Gaussian process"):
        control.edit(ColdProcess(Blur(6, 3.0)), lambda xt, t, s: xt, images(), torch.ones(8, 8).bool(), mode="clean")


def test_corrections_are_calls_at_the_same_noise_that_any_sampler_survives():
    known, editable, asked = TWO.sample(5, seed=2)[0], torch.tensor([True, False]), []

    def watched(xt, t, s):
        asked.append((int(t[0]), int(s[0])))
        return PREDICT(xt, t, s)

    for wrap in (sampling.ancestral, sampling.dpm_solver):
        asked.clear()
        out = control.edit(VP, wrap(VP, watched), known, editable, num_steps=4, corrections=2, random=rows(5))
        assert asked[:4] == [(100, 100), (100, 100), (100, 75), (75, 75)] and asked[-1] == (25, 0) and len(asked) == 12
        assert torch.isfinite(out).all() and torch.equal(out[:, 1], known[:, 1])
        alone = control.edit(
            VP,
            wrap(VP, PREDICT),
            known[3:4],
            editable,
            num_steps=4,
            corrections=2,
            random=RowRandom(0, torch.tensor([3])),
        )
        assert torch.allclose(alone, out[3:4], atol=1e-12)
    for how, words in (
        ({"corrections": -1}, "corrections must be at least 0, got -1"),
        ({"corrections": 2, "step_size": 2.5}, r"step_size must lie in \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            control.edit(VP, PREDICT, known, editable, num_steps=4, **how)
    with pytest.raises(ValueError, match="corrections are Langevin steps and need a Gaussian process, got ColdProcess"):
        control.edit(ColdProcess(Blur(6, 3.0)), lambda xt, t, s: xt, images(), torch.ones(8, 8).bool(), corrections=1)


def test_an_edit_that_starts_low_stays_near():
    known, everything = TWO.sample(400, seed=2)[0], torch.tensor([True, True])
    moved = [
        float((control.edit(VP, PREDICT, known, everything, start=start, random=rows(400)) - known).norm(dim=1).mean())
        for start in (5, 30, 100)
    ]
    assert moved[0] < 0.15 < moved[1] < moved[2]


def test_a_cold_edit_restores_the_editable_part_only():
    process, known = ColdProcess(Blur(6, 3.0)), images()
    editable = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    editable[..., :4] = True
    out = control.edit(process, lambda xt, t, s: known.flip(0), known, editable)
    assert torch.equal(out[..., 4:], known[..., 4:]) and not torch.allclose(out[..., :4], known[..., :4], atol=0.1)


# restoring ------------------------------------------------------------------------------------------------------------


def test_ones_own_spoilt_images_are_restored_each_from_its_own_t():
    process, x0 = ColdProcess(Blur(10, 2.0)), images()
    t = torch.tensor([10, 4, 7, 5])
    xt = process.degrade(x0, t)
    assert torch.allclose(sampling.restore(process, lambda *a: x0, xt, t), x0, atol=1e-12)
    asked = []

    def restorer(x, t, s):
        asked.append((t.tolist(), s.tolist()))
        return x0

    sampling.restore(process, restorer, xt, t, num_steps=2)
    assert asked == [([10, 4, 7, 5], [5, 2, 3, 2]), ([5, 2, 3, 2], [0, 0, 0, 0])]
    sampling.restore(ColdProcess(PixelMask(3)), lambda xt, t, s: asked.append(int(t[0])) or xt, images())
    assert asked[2:] == [3, 2, 1]


def test_a_cold_walk_with_small_noise_ends_clean_at_any_churn():
    process, x0 = ColdProcess(Blur(6, 3.0), sigma=0.05), images()
    xt = process.prior(x0, random=rows(4))
    assert 0.03 < float((xt - process.degrade(x0, at(6, 4))).std()) < 0.07
    for churn in (0.0, 0.5, 1.0):
        seen = []
        out = sampling.restore(
            process, lambda *a: x0, xt, churn=churn, random=rows(4, 1), on_step=lambda i, xs, g, to=seen: to.append(xs)
        )
        assert torch.equal(out, x0)
        assert 0.03 < float((seen[2] - process.degrade(x0, at(3, 4))).std()) < 0.07


def test_naive_sampling_ends_at_the_restorers_last_answer_and_improved_keeps_the_residual():
    process, x0, wrong = ColdProcess(Blur(6, 3.0)), images(), images(seed=1)
    xt = process.degrade(x0, at(6, 4))
    naive = sampling.restore(process, lambda *a: wrong, xt, churn=1.0)
    improved = sampling.restore(process, lambda *a: wrong, xt)
    assert torch.allclose(naive, wrong, atol=1e-12)
    assert torch.allclose(improved, wrong + xt - process.degrade(wrong, at(6, 4)), atol=1e-12)
    assert float((improved - x0).square().mean()) < float((naive - x0).square().mean())


# where a cold walk starts ---------------------------------------------------------------------------------------------


def covariance_of(prior, law=-1):
    basis, deviation = prior.basis[law].flatten(1).double(), prior.deviations[law].flatten().double()
    return basis.T @ basis + torch.diag(deviation.square())


def test_the_law_of_x_T_has_the_moments_of_degraded_images_and_few_directions_keep_the_variances():
    process, x0 = ColdProcess(Blur(6, 1.0)), images(300)
    spoilt = process.degrade(x0, at(6, 300)).flatten(1)
    whole, low = (sampling.ColdPrior.fit(process, x0, rank=rank) for rank in (64, 5))
    assert whole.means.shape == (1, 1, 8, 8) and whole.basis.shape == (1, 64, 1, 8, 8) and low.basis.shape[1] == 5
    assert torch.allclose(whole.means[0].flatten().double(), spoilt.mean(0), atol=1e-6)
    found, few = covariance_of(whole), covariance_of(low)
    true = torch.cov(spoilt.T)
    assert torch.allclose(found, true, atol=1e-6) and torch.allclose(few.diagonal(), true.diagonal(), atol=1e-6)
    # no five directions and a diagonal of their own are nearer, but for the diagonal: Eckart and Young
    values, vectors = torch.linalg.eigh(true)
    best = (vectors[:, -5:] * values[-5:]) @ vectors[:, -5:].T
    off = ~torch.eye(64, dtype=torch.bool)
    assert torch.allclose(few[off], best[off], atol=1e-6)
    # fewer images than numbers: by inner products of images, the same law
    some = sampling.ColdPrior.fit(process, x0[:20])
    assert some.basis.shape[1] == 19 and torch.allclose(covariance_of(some), torch.cov(spoilt[:20].T), atol=1e-6)


def test_each_class_starts_at_its_own_mean_and_no_class_at_that_of_all():
    process, x0 = ColdProcess(Blur(6, 2.0)), images(400)
    labels = torch.arange(400) % 2
    x0 = x0 * 0.2 + torch.where(labels == 0, -0.6, 0.6).view(-1, 1, 1, 1)
    prior = sampling.ColdPrior.fit(process, x0, labels, num_classes=3)  # of the third there is no image
    n, draws = 2000, {}
    for row in range(4):
        draws[row] = prior.draw(process, torch.full((n,), row), random=rows(n, row)).flatten(1).double()
    spoilt = process.degrade(x0, at(6, 400)).flatten(1)
    for row, part in ((0, spoilt[0::2]), (1, spoilt[1::2]), (3, spoilt)):
        assert torch.allclose(draws[row].mean(0), part.mean(0), atol=5 * float(part.std(0).max()) / n**0.5)
        assert float(draws[row].var(0).sum() / part.var(0).sum()) == pytest.approx(1, rel=0.1)
    assert torch.allclose(draws[2].mean(0), spoilt.mean(0), atol=0.02)
    alone = prior.draw(process, torch.tensor([1]), random=RowRandom(1, torch.tensor([7])))
    assert torch.allclose(alone.flatten(1).double(), draws[1][7:8], atol=1e-6)
    jittered = prior.draw(process, torch.full((n,), 1), jitter=0.5, random=rows(n, 1)).flatten(1) - draws[1]
    assert float(jittered.std()) == pytest.approx(0.5, rel=0.02)


# likelihood -----------------------------------------------------------------------------------------------------------


def test_the_step_terms_are_the_kullback_leibler_divergences_of_the_two_normal_laws():
    process, x0 = GaussianProcess.vp("cosine", 6), images(3, 2)
    predict = lambda xt, t, s: 0.5 * xt  # noqa: E731
    v = torch.linspace(0.0, 0.6, 7, dtype=torch.float64)
    bound = nelbo(process, predict, x0, variance=v, random=rows(3))
    source, total = rows(3), torch.zeros(3).double()
    for t, s in ((6, 5), (5, 4), (4, 3), (3, 2), (2, 1)):
        xt = process.corrupt(x0, at(t, 3), process.sample_noise(x0, random=source))
        share = float(process.ancestral_churn(at(t, 1), at(s, 1)))

        def mean(clean, t=t, s=s, xt=xt, share=share):
            noise = process.invert_noise(clean, xt, at(t, 3))
            return process.a[s] * clean + process.b[s] * math.sqrt(1 - share**2) * noise

        slope = float((mean(torch.ones_like(x0)) - mean(torch.zeros_like(x0)))[0, 0, 0, 0])
        q = torch.distributions.Normal(mean(x0), float(process.b[s]) * share)
        p = torch.distributions.Normal(
            mean(0.5 * xt), math.sqrt(float(process.b[s] * share) ** 2 + slope**2 * float(v[t]))
        )
        total += torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
    assert torch.allclose(bound.steps, total, rtol=1e-9)
    end = process.corrupt(x0, at(1, 3), process.sample_noise(x0, random=source))
    decoder = -torch.distributions.Normal(0.5 * end, math.sqrt(float(v[1]))).log_prob(x0).flatten(1).sum(1)
    assert torch.allclose(bound.decoder, decoder, rtol=1e-9)
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(process.a[6] * x0, process.b[6]), torch.distributions.Normal(0.0, process.b[6])
    )
    assert torch.allclose(bound.prior, prior.flatten(1).sum(1), rtol=1e-9)
    assert torch.allclose(bound.nats, bound.prior + bound.steps + bound.decoder)
    assert torch.allclose(bound.bits_per_dim(4), bound.nats / 4 / math.log(2))


def test_the_decoder_of_levels_is_a_law_on_them():
    """Over all 5 values of one pixel the probabilities of the last step sum to one, whatever the mean."""
    process, values = GaussianProcess.vp("cosine", 5), torch.linspace(-1, 1, 5, dtype=torch.float64)
    for mean in (-3.0, -0.4, 0.93):
        bound = nelbo(process, lambda xt, t, s, m=mean: torch.full_like(xt, m), values[:, None], levels=5)
        assert float((-bound.decoder).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    fine = torch.linspace(-1, 1, 4001, dtype=torch.float64)[1999:2000]  # many levels: density times bin
    levels = nelbo(VP, lambda xt, t, s: torch.zeros_like(xt), fine[None], levels=4001, random=rows(1))
    density = nelbo(VP, lambda xt, t, s: torch.zeros_like(xt), fine[None], random=rows(1))
    assert float(levels.decoder) == pytest.approx(float(density.decoder) - math.log(2 / 4000), rel=1e-3)


def test_a_few_terms_estimate_the_sum_of_all_without_bias():
    x = TWO.sample(1, seed=5)[0].expand(3000, 2)
    every, few = (nelbo(VP, PREDICT, x, num_terms=n, random=rows(3000, 3)) for n in (None, 12))
    error = float((few.steps.std() ** 2 + every.steps.std() ** 2).sqrt()) / math.sqrt(3000)
    assert abs(float(few.steps.mean() - every.steps.mean())) < 4 * error
    assert error < 0.05 * float(every.steps.mean())
    for places, num_terms in ((100, 12), (100, 7), (9, 9), (9, 20)):
        terms, seen = _terms(places - 1, num_terms, rows(4000)), torch.zeros(places).double()
        for place, weight in terms:
            seen.index_add_(0, place, torch.full((4000,), weight / 4000).double())
        assert float(seen.sum()) == pytest.approx(places) and torch.allclose(
            seen, torch.ones(places).double(), atol=0.4
        )
    calls = []
    nelbo(VP, lambda xt, t, s: calls.append(int(t[0])) or PREDICT(xt, t, s), x[:1], num_terms=12)
    assert len(calls) == 12 and calls[-6:] == [6, 5, 4, 3, 2, 1]


# bad input ------------------------------------------------------------------------------------------------------------

COLD = ColdProcess(Blur(6, 3.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sampling.ddim(VP, PREDICT, 1.2), r"eta must lie in \[0, 1\], got 1.2"),
        (lambda: sampling.clip(PREDICT, 1, -1), "low < high"),
        (lambda: sampling.grid(VP, 0), r"integer in 1..100 .* got 0"),
        (lambda: sampling.grid(VP, 101), "got 101"),
        (lambda: sampling.grid(VP, 5, "karras"), "'even', 'quadratic', 'snr', got 'karras'"),
        (lambda: sampling.grid(COLD, 5, "snr"), "needs a GaussianProcess"),
        (lambda: sampling.grid(VP, 5, start=101), r"start must lie in 1..100"),
        (lambda: sampling.check_falling([5, 5, 0], 5), r"times must fall with every step, .* got \[5, 5, 0\]"),
        (lambda: sampling.check_falling([7, 0], 5), r"0..5"),
        (lambda: sampling.sample(VP, PREDICT, (2, 2), times=torch.tensor([0, 50, 100])), "times must fall"),
        (lambda: sampling.sample(VP, PREDICT, (2, 2), sampler="euler"), "'heun', 'reverse_sde', 'baseline'"),
        (lambda: sampling.dpm_solver(VP, PREDICT, order=4), "order must be 2 or 3, got 4"),
        (
            lambda: sampling.sample(VP, PREDICT, (2, 2), sampler="ddpm", eta=0.5),
            "eta belongs to sampler 'ddim' or 'reverse_sde', got sampler 'ddpm'",
        ),
        (
            lambda: sampling.with_variance(VP, PREDICT, torch.ones(101), law="cauchy"),
            "law must be 'normal' or 'laplace', got 'cauchy'",
        ),
        (lambda: sampling.reverse_sde(VP, PREDICT, -0.5), "noise must be a number >= 0, got -0.5"),
        (lambda: sampling.langevin(VP, PREDICT, 0.5, temperature=-1.0), "temperature must be a number >= 0 or a table"),
        (lambda: sampling.langevin(VP, PREDICT, 0.5, temperature=torch.ones(7)), "or a table of 101 of them, by t"),
        (lambda: sampling.sample(VP, PREDICT, (2, 2), churn=0.5), "sampler=None"),
        (lambda: sampling.sample(VP, PREDICT, (2,)), r"\(B, \.\.\.\)"),
        (lambda: sampling.sample(VP, PREDICT, (2, 2), dtype=torch.int64), "float tensor"),
        (lambda: sampling.sample(COLD, PREDICT, (2, 1, 8, 8)), "sampling.restore"),
        (lambda: sampling.ColdPrior.fit(COLD, images(1)), "a law of x_T needs at least 2 images, got 1"),
        (lambda: sampling.ColdPrior.fit(COLD, images(), rank=0), "rank must be an integer of at least 1, got 0"),
        (lambda: sampling.ColdPrior.fit(COLD, images(), num_classes=2), "labels must be given with classes"),
        (
            lambda: sampling.ColdPrior.fit(COLD, images()).draw(COLD, at(0, 2), jitter=-1.0),
            "jitter must be a number >= 0, got -1.0",
        ),
        (lambda: sampling.sample(VP, lambda *a: torch.zeros(1), (2, 2)), "shape of xt"),
        (lambda: sampling.restore(COLD, PREDICT, images() * torch.nan), "NaN"),
        (lambda: sampling.restore(COLD, PREDICT, images(), 0), "nothing to restore"),
        (lambda: sampling.restore(COLD, PREDICT, images(), 7), r"0..6, got 7..7"),
        (lambda: sampling.restore(COLD, PREDICT, images(), 3, num_steps=4), "1..3"),
        (lambda: sampling.langevin(VP, PREDICT, 2.5), "explodes; got 2.5"),
        (lambda: sampling.inverted(VP, PREDICT)(images(), at(5, 4), at(3, 4)), "times must rise"),
        (lambda: sampling.slerp(images(), -images(), 0.5), "opposite"),
        (lambda: sampling.slerp(images(), images(3), 0.5), "one shape"),
        (
            lambda: sampling.sample(
                VP, sampling.with_variance(VP, PREDICT, torch.full((101,), torch.nan)), (2, 2), sampler=None
            ),
            "variance must be known",
        ),
        (lambda: control.edit(VP, PREDICT, images(), torch.ones(8, 8)), "bool"),
        (
            lambda: control.edit(VP, PREDICT, images(), torch.ones(7, dtype=torch.bool)),
            r"broadcast to \(4, 1, 8, 8\)",
        ),
        (
            lambda: control.classifier_guided(VP, lambda x, t, s: x, lambda x, t: x)(images(), at(5, 4), at(3, 4)),
            "one number",
        ),
        (
            lambda: control.classifier_guided(GaussianProcess.rf(5), lambda x, t, s: x, None)(
                images(), at(5, 4), at(3, 4)
            ),
            "a_t > 0",
        ),
        (lambda: nelbo(VP, PREDICT, images(), torch.tensor([50, 0])), "from T = 100 to 0"),
        (lambda: nelbo(VP, PREDICT, images(), levels=17), "some lie between"),
        (lambda: nelbo(VP, PREDICT, 9 * images(), levels=17), r"\[-1, 1\]"),
        (lambda: nelbo(VP, PREDICT, images(), num_terms=1), "at least 2"),
        (lambda: log_likelihood(VP, PREDICT, images(), 50), "1..49"),
        (lambda: log_likelihood(VP, PREDICT, images(), 5, probes=0), "probes must be at least 1"),
        (lambda: log_likelihood(VP, lambda x, t, s: x.detach(), images(), 5), "differentiable"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_guess_keeps_what_wrappers_do_not_touch():
    inner = lambda xt, t, s: Prediction(xt, churn=0.25)  # noqa: E731
    assert sampling.clip(inner)(images(), at(3, 4), at(2, 4)).churn == 0.25
    assert control.project(inner, lambda x: x)(images(), at(3, 4), at(2, 4)).churn == 0.25
    assert isinstance(Mixture([[0.0]], [1.0], [1.0]).means, torch.Tensor)
