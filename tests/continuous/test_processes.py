"""Processes, schedules and degradations: laws, saving, bad input."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from continuous import degradations, schedules
from continuous.degradations import Blur, Desaturate, PixelMask, Pool
from continuous.processes import ColdProcess, GaussianProcess, check_finite, process_from_dict
from tests.continuous.worlds import at
from udm_text.core import reverse_step
from udm_text.randomness import RowRandom

PROCESSES = {
    "linear": GaussianProcess.vp("linear", 1000),
    "cosine": GaussianProcess.vp("cosine", 50),
    "sigmoid": GaussianProcess.vp("sigmoid", 50),
    "sigmoid_beta": GaussianProcess.vp("sigmoid_beta", 1000),
    "sqrt": GaussianProcess.vp("sqrt", 1000),
    "abar": GaussianProcess.vp(torch.linspace(1, 0, 11).double() ** 2),
    "ve": GaussianProcess.ve(30),
    "rf": GaussianProcess.rf(30),
    "table": GaussianProcess(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 2.0])),
}
COLD = {
    "blur": ColdProcess(Blur(8, 3.0)),
    "mask": ColdProcess(PixelMask(8, "random", fill=0.5, seed=3)),
    "pool": ColdProcess(Pool((1, 2, 4))),
    "fade": ColdProcess(Desaturate(8), sigma=0.1),
}


def images(n=4, channels=3, size=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, channels, size, size, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


# randomness -----------------------------------------------------------------------------------------------------------


def test_normal_numbers_are_normal_and_belong_to_their_row():
    source = RowRandom(0, torch.arange(500))
    numbers = source.normal(200)
    assert numbers.dtype == torch.float64 and kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(RowRandom(0, torch.tensor([7, 3])).normal(5), numbers[[7, 3], :5])
    assert kstest((source.normal(200) * numbers).sum(1).numpy() / math.sqrt(200), "norm").pvalue > 1e-3  # across draws


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_tails_of_normal_numbers_are_symmetric_and_finite(dtype, monkeypatch):
    source = RowRandom(0, torch.arange(1))
    ends = torch.tensor([[2.0**-53, 0.5, 1 - 2.0**-53]], dtype=torch.float64)
    monkeypatch.setattr(source, "uniform", lambda n: ends)
    low, middle, high = source.normal(3)[0].to(dtype).tolist()
    assert low == pytest.approx(-8.2095, abs=1e-3) and high == pytest.approx(8.2095, abs=1e-3) and middle == 0


def test_a_images_noise_does_not_depend_on_its_neighbours():
    x, process = images(), PROCESSES["cosine"]
    together = process.sample_noise(x, random=RowRandom(1, torch.tensor([5, 9, 2, 4])))
    alone = process.sample_noise(x[1:2], random=RowRandom(1, torch.tensor([9])))
    assert torch.equal(together[1:2], alone)


# Gaussian -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_down_and_up_again_comes_back(name):
    process, x0 = PROCESSES[name], images()
    noise = process.sample_noise(x0, random=RowRandom(0, torch.arange(4)))
    for t in (process.T, max(1, process.T // 3)):
        xt = process.corrupt(x0, at(t, 4), noise)
        assert torch.allclose(process.invert_noise(x0, xt, at(t, 4)), noise, atol=1e-7)
        s = at(t - 1, 4)
        assert torch.allclose(reverse_step(process, xt, x0, at(t, 4), s), process.corrupt(x0, s, noise), atol=1e-9)
    assert torch.equal(process.corrupt(x0, at(0, 4), noise), x0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_ancestral_share_gives_the_posterior_of_bayes(name):
    """q(xs | xt, x0) by precisions: 1/b_s^2 + r^2/(b_t^2 - r^2 b_s^2), as xt = r xs + noise, r = a_t/a_s."""
    process = PROCESSES[name]
    for t, s in ((process.T, max(1, process.T - 1)), (process.T - 1, 1)) if process.T > 2 else ((2, 1),):
        r, b_s, b_t = process.a[t] / process.a[s], process.b[s], process.b[t]
        precision = 1 / b_s**2 + r**2 / (b_t**2 - r**2 * b_s**2)
        share = process.ancestral_churn(at(t, 1), at(s, 1))[0]
        assert b_s**2 * share**2 == pytest.approx(float(1 / precision), rel=1e-6, abs=1e-12)
        # the mean, for x0 = 0 and xt = 1: the precision-weighted one, and that of the step
        mean = (r / (b_t**2 - r**2 * b_s**2)) / precision
        assert b_s * (1 - share**2).sqrt() / b_t == pytest.approx(float(mean), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "score"])
def test_a_networks_answer_and_its_target_agree(name, prediction):
    process, x0 = PROCESSES[name], images()
    noise = process.sample_noise(x0, random=RowRandom(0, torch.arange(4)))
    for t in (1, process.T - 1):
        xt = process.corrupt(x0, at(t, 4), noise)
        told = process.target(prediction, x0, noise, at(t, 4))
        assert torch.allclose(process.to_x0(prediction, told, xt, at(t, 4)), x0, atol=1e-6)
    if name == "rf":
        assert torch.equal(process.target("v", x0, noise, at(3, 4)), noise - x0)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "rf"])
def test_v_has_unit_variance_at_every_time_where_images_and_noise_have(name):
    # of independent x0 and noise of unit variance, the variance of p noise - q x0 is p^2 + q^2
    process = PROCESSES[name]
    t = torch.arange(1, process.T + 1)
    one, zero = (torch.full((process.T, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
    p, q = process.target("v", zero, one, t), process.target("v", one, zero, t)
    assert torch.allclose(p.square() + q.square(), torch.ones_like(p), atol=1e-12)
    # and v and xt together are x0 and noise turned (and scaled): neither says anything of the other
    assert torch.allclose(p * process.b[1:, None] + q * process.a[1:, None], torch.zeros_like(p), atol=1e-9)


def test_a_process_that_was_written_before_v_was_divided_keeps_its_v():
    x0, noise = images(), images(seed=1)
    for process in (PROCESSES["ve"], PROCESSES["table"]):
        t = at(min(25, process.T - 1), 4)
        saved = process.to_dict()
        assert saved.pop("unit_v") is True
        older = process_from_dict(json.loads(json.dumps(saved)))
        a, b = float(older.a[t[0]]), float(older.b[t[0]])
        assert torch.equal(older.target("v", x0, noise, t), a * noise - b * x0)
        assert not torch.allclose(process.target("v", x0, noise, t), a * noise - b * x0, atol=0.1)
        assert torch.allclose(older.to_x0("v", a * noise - b * x0, a * x0 + b * noise, t), x0)
        assert process_from_dict(older.to_dict()).to_dict() == older.to_dict() == {**saved, "unit_v": False}


def test_rows_of_one_batch_may_stand_at_different_times():
    process, x0 = PROCESSES["linear"], images()
    noise, t = process.sample_noise(x0, random=RowRandom(0, torch.arange(4))), torch.tensor([0, 1, 500, 1000])
    together = process.corrupt(x0, t, noise)
    for row in range(4):
        alone = process.corrupt(x0[row : row + 1], t[row : row + 1], noise[row : row + 1])
        assert torch.equal(together[row : row + 1], alone)
    assert process.corrupt(x0.float(), t, noise.float()).dtype == torch.float32


@pytest.mark.parametrize("name", ["cosine", "ve", "rf"])
def test_a_clock_for_each_pixel_is_the_process_of_each_pixel(name):
    process, x0, T = PROCESSES[name], images(), PROCESSES[name].T
    noise, other = process.sample_noise(x0, random=RowRandom(0, torch.arange(4))), images(seed=1)
    t = torch.randint(0, T, (4, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    t[0], t[1, 0, 0] = 0, 0
    xt = process.corrupt(x0, t, noise)
    back, churn = process.invert_noise(other, xt, t), process.ancestral_churn(t, (t - 1).clamp(min=0))
    told = {kind: process.to_x0(kind, other, xt, t) for kind in ("epsilon", "x0", "v")}
    for step in t.unique().tolist():
        here, whole = (t == step).expand_as(x0), at(step, 4)
        assert torch.equal(xt[here], process.corrupt(x0, whole, noise)[here])
        for kind, found in told.items():
            assert torch.equal(found[here], process.to_x0(kind, other, xt, whole)[here])
        if step:
            assert torch.equal(back[here], process.invert_noise(other, xt, whole)[here])
            assert bool((churn[t == step] == process.ancestral_churn(at(step, 1), at(step - 1, 1))).all())
    clean = (t == 0).expand_as(x0)
    assert torch.equal(xt[clean], x0[clean]) and bool((back[clean] == 0).all()) and bool((churn[t == 0] == 0).all())


def test_blending_keeps_the_law_and_takes_a_share_for_each_row():
    process, x = PROCESSES["cosine"], images(2000, 1, 4)
    first, fresh = (process.sample_noise(x, random=RowRandom(seed, torch.arange(2000))) for seed in (0, 1))
    for churn in (0.3, 0.9):
        mixed = process.blend(first, fresh, churn)
        assert float(mixed.std()) == pytest.approx(1.0, abs=0.02)
        assert float((mixed * fresh).mean()) == pytest.approx(churn, abs=0.025)
    shares = torch.cat((torch.zeros(1000), torch.ones(1000)))
    mixed = process.blend(first, fresh, shares)
    assert torch.equal(mixed[:1000], first[:1000]) and torch.equal(mixed[1000:], fresh[1000:])


def test_what_euler_steps_of_velocity_and_of_sigma_would_do_the_plain_step_does():
    x0, xt = images(), images(seed=1)
    rf, ve = PROCESSES["rf"], PROCESSES["ve"]
    t, s = at(20, 4), at(13, 4)
    velocity = rf.target("v", x0, rf.invert_noise(x0, xt, t), t)
    assert torch.allclose(reverse_step(rf, xt, x0, t, s), xt + (13 / 30 - 20 / 30) * velocity, atol=1e-12)
    slope = (xt - x0) / ve.b[20]
    assert torch.allclose(reverse_step(ve, xt, x0, t, s), xt + (ve.b[13] - ve.b[20]) * slope, atol=1e-12)


def test_the_schedules_have_their_closed_forms():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(schedules.linear(1000)[1:], (1 - beta).cumprod(0), rtol=1e-12)
    u = 0.5
    curve = math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(schedules.cosine(1000)[500]) == pytest.approx(curve, rel=1e-9)
    assert float(schedules.cosine(1000)[-1] / schedules.cosine(1000)[-2]) == pytest.approx(0.001)  # the cut
    assert float(schedules.sigmoid(10)[5]) == pytest.approx(0.5)
    alpha = (1 - 0.02 * torch.arange(1, 1001, dtype=torch.float64) / 1000).sqrt()
    assert torch.allclose(schedules.sqrt(1000)[1:], alpha.cumprod(0).square(), rtol=1e-12)
    for name in schedules.SCHEDULES:
        table = schedules.abar(name, 100)
        assert table[0] == 1 and bool((table.diff() < 0).all()) and float(table[-1]) > 0


def test_a_sigmoid_of_beta_is_the_table_that_code_prints_and_not_that_of_a_sigmoid_of_abar():
    i = np.arange(1000)
    beta = 1 / (1 + np.exp(-(i / 1000 - 0.5) * 12)) * (0.02 - 1e-4) + 1e-4
    expected = np.concatenate(([1.0], np.cumprod(1 - beta)))
    found = schedules.sigmoid_beta(1000).numpy()
    assert np.abs(found - expected).max() < 1e-15 and np.abs(found / expected - 1).max() < 1e-12
    assert float(np.abs(found - schedules.sigmoid(1000).numpy()).max()) == pytest.approx(0.258, abs=5e-4)


# cold -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLD)
def test_a_cold_step_from_the_truth_is_the_degradation_itself(name):
    process, x0 = COLD[name], images()
    T = process.T
    xt = process.degrade(x0, at(T, 4))
    xs = reverse_step(process, xt, x0, at(T, 4), at(T - 1, 4))
    assert torch.allclose(xs, process.degrade(x0, at(T - 1, 4)), atol=1e-12)
    assert torch.equal(process.degrade(x0, at(0, 4)), x0)
    assert not torch.allclose(process.degrade(x0, at(1, 4)), x0, atol=1e-3)
    mixed = process.degrade(x0, torch.tensor([0, 1, T, 1]))
    assert torch.equal(mixed[2], process.degrade(x0[2:3], at(T, 1))[0]) and torch.equal(mixed[0], x0[0])


def test_a_blur_adds_in_squares_keeps_the_mean_and_is_the_gaussian_in_the_middle():
    blur, x = Blur(10, 2.0), images(size=33, channels=1)
    twice = blur(blur(x, at(3, 4)), at(4, 4))  # 0.6 and 0.8 pixels: together 1.0
    assert torch.allclose(twice, blur(x, at(5, 4)), atol=1e-12)
    assert torch.allclose(twice.mean((-1, -2)), x.mean((-1, -2)), atol=1e-12)
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1.0
    offset = torch.arange(33, dtype=torch.float64) - 16
    bell = (-offset.square() / (2 * 1.6**2)).exp() / math.sqrt(2 * math.pi * 1.6**2)
    assert torch.allclose(blur(point, at(8, 1))[0, 0], bell[:, None] * bell[None, :], atol=1e-5)
    flat = Blur(1, 500.0)(x, at(1, 4))
    assert torch.allclose(flat, x.mean((-1, -2), keepdim=True).expand_as(x), atol=1e-9)


def test_missing_pixels_are_nested_counted_and_nearest_the_centre_first():
    for order in ("centre", "random"):
        mask = PixelMask(10, order, seed=1)
        sets = [mask.missing(at(t, 1), 6, 5)[0, 0] for t in range(11)]
        assert [int(s.sum()) for s in sets] == [3 * t for t in range(11)]
        assert all(bool((later | ~now).all()) for now, later in zip(sets, sets[1:], strict=False))
    middle = PixelMask(9).missing(at(1, 1), 3, 3)[0, 0]
    assert middle[1, 1] and int(middle.sum()) == 1


def test_pooling_shows_means_of_squares_and_desaturation_ends_in_grey():
    x = images()
    pooled = Pool((1, 2, 4))(x, at(2, 4))
    assert torch.allclose(pooled[0, 1, 4:, :4], x[0, 1, 4:, :4].mean().expand(4, 4))
    grey = Desaturate(5)(x, at(5, 4))
    assert torch.allclose(grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], atol=1e-12)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-12)


def test_a_cold_process_with_noise_ends_clean_and_starts_noisy():
    process, x0 = ColdProcess(Blur(4, 1.0), sigma=0.2), images(200, 1)
    noise = process.sample_noise(x0, random=RowRandom(0, torch.arange(200)))
    assert float(noise.std()) == pytest.approx(0.2, rel=0.05)
    assert torch.equal(process.corrupt(x0, at(0, 200), noise), x0)
    assert torch.allclose(process.corrupt(x0, at(2, 200), noise) - process.degrade(x0, at(2, 200)), noise)
    prior = process.prior(x0, random=RowRandom(0, torch.arange(200)))
    assert torch.allclose(prior, process.corrupt(x0, at(4, 200), noise))


# saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_a_gaussian_process_survives_json(name):
    process = PROCESSES[name]
    again = process_from_dict(json.loads(json.dumps(process.to_dict())))
    assert torch.equal(again.a, process.a) and torch.equal(again.b, process.b) and again.to_dict() == process.to_dict()


@pytest.mark.parametrize("name", COLD)
def test_a_cold_process_survives_json(name):
    process = COLD[name]
    again = process_from_dict(json.loads(json.dumps(process.to_dict())))
    assert again.degradation == process.degradation and (again.T, again.sigma) == (process.T, process.sigma)


def test_a_degradation_of_ones_own_is_a_function_and_can_be_saved_once_registered(monkeypatch):
    monkeypatch.setattr(degradations, "DEGRADATIONS", dict(degradations.DEGRADATIONS))

    def darken(x0, t):
        return x0 * (1 - t / 10).view(-1, 1, 1, 1)

    x0 = images()
    assert torch.allclose(ColdProcess(darken, T=10).degrade(x0, at(5, 4)), x0 / 2)
    with pytest.raises(ValueError, match="register"):
        ColdProcess(darken, T=10).to_dict()

    @degradations.register("darken")
    @dataclasses.dataclass(frozen=True)
    class Darken:
        T: int = 10

        def __call__(self, x0, t):
            return darken(x0, t)

    assert process_from_dict(ColdProcess(Darken()).to_dict()).degradation == Darken()
    with pytest.raises(ValueError, match="already"):
        degradations.register("blur")(Darken)
    with pytest.raises(ValueError, match="dataclass"):
        degradations.register("other")(int)


# bad input ------------------------------------------------------------------------------------------------------------


def test_a_schedule_that_leaves_the_image_in_x_T_warns():
    with pytest.warns(UserWarning, match="x_T still shows x0"):
        GaussianProcess.vp("linear", 50)
    with pytest.warns(UserWarning, match="x_T still shows x0"):
        GaussianProcess.ve(10, sigma_max=5.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianProcess.vp("linear", 0), "T, the number of corruption steps, .* got 0"),
        (lambda: GaussianProcess.rf(2.5), "got 2.5"),
        (lambda: GaussianProcess.vp("quadratic", 10), "'linear', 'cosine', 'sigmoid', 'sigmoid_beta', 'sqrt', got"),
        (lambda: GaussianProcess.vp("cosine", 10, slope=1), "does not take these options"),
        (lambda: GaussianProcess.vp("linear", 10, beta_end=1.5), r"betas must be a row of numbers in \[0, 1\)"),
        (lambda: GaussianProcess.vp(torch.tensor([1.0, 2.0])), r"abar must be .* in \[0, 1\]"),
        (lambda: GaussianProcess.vp(torch.tensor([0.9, 0.5])), "at t = 0 nothing is corrupted"),
        (lambda: GaussianProcess.vp(torch.tensor([1.0, 0.1, 0.5])), "fall with every t"),
        (lambda: GaussianProcess(torch.ones(3), torch.zeros(2)), "two tables"),
        (lambda: GaussianProcess(torch.tensor([1.0, torch.nan]), torch.tensor([0.0, 1.0])), "finite"),
        (lambda: GaussianProcess.ve(10, sigma_min=3.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: GaussianProcess.ve(10, unit_v="no"), "unit_v must be True or False, got 'no'"),
        (lambda: GaussianProcess.of_family("ve", family="rf"), "family 've' does not take these parameters"),
        (lambda: ColdProcess(Blur(5), T=6), "T is 6 and the degradation's own T is 5"),
        (lambda: ColdProcess(lambda x, t: x), "T must be given"),
        (lambda: ColdProcess("blur"), "must be a function"),
        (lambda: ColdProcess(Blur(5), sigma=-1.0), "sigma must be a number >= 0"),
        (lambda: ColdProcess(lambda x, t: x, T=0), "got 0"),
        (lambda: Blur(T=0), "got 0"),
        (lambda: Blur(std=-2.0), "std must be a positive number"),
        (lambda: PixelMask(order="spiral"), "'centre' or 'random'"),
        (lambda: Pool((2, 4)), "start at 1"),
        (lambda: Pool((1, 2, 3)), "divide the next"),
        (lambda: degradations.degradation("fog"), "'blur', 'pixel_mask', 'pool', 'desaturate', got 'fog'"),
        (lambda: degradations.degradation("blur", radius=3), "does not take these parameters"),
        (lambda: process_from_dict({"process": "warm"}), "'gaussian' or 'cold', got 'warm'"),
        (lambda: process_from_dict({"process": "gaussian", "family": "xp"}), "'vp', 've', 'rf', 'log_snr' or 'table'"),
        (lambda: process_from_dict({"process": "gaussian", "family": "rf", "steps": 3}), "does not take"),
        (
            lambda: PROCESSES["cosine"].target("noise", images(), images(), at(1, 4)),
            "'epsilon', 'x0', 'v' or 'score', got 'noise'",
        ),
        (lambda: PROCESSES["rf"].to_x0("epsilon", images(), images(), at(30, 4)), "a_t = 0"),
        (lambda: PROCESSES["cosine"].corrupt(images(), at(51, 4), images()), "0..50, got 51..51"),
        (lambda: PROCESSES["cosine"].corrupt(images(), at(-1, 4), images()), "got -1"),
        (lambda: PROCESSES["cosine"].corrupt(images(), at(1, 3), images()), r"\(4,\) int64"),
        (lambda: PROCESSES["cosine"].corrupt(images(), at(1, 4).float(), images()), "float32"),
        (
            lambda: PROCESSES["cosine"].corrupt(images(), torch.ones(4, 1, 8, 7).long(), images()),
            r"\(4,\) int64 tensor of steps, or one for each pixel that broadcasts to the images, got \(4, 1, 8, 7\)",
        ),
        (lambda: COLD["blur"].degrade(images(), torch.ones(4, 1, 8, 8).long()), r"must be a \(4,\) int64 tensor of st"),
        (lambda: PROCESSES["cosine"].invert_noise(images(), images(), at(0, 4)), "no noise can be recovered"),
        (lambda: PROCESSES["cosine"].blend(images(), images(), 1.5), r"churn must lie in \[0, 1\]"),
        (lambda: PROCESSES["cosine"].sample_noise(images(), editable=torch.ones(4)), "control.edit"),
        (lambda: PROCESSES["cosine"].sample_noise(images(), random=RowRandom(0, torch.arange(3))), "3 rows"),
        (lambda: COLD["pool"].degrade(images(size=6), at(1, 4)), "must divide height and width"),
        (lambda: COLD["fade"].degrade(images(channels=1), at(1, 4)), "3 channels"),
        (lambda: ColdProcess(lambda x, t: x + 0.1, T=3).degrade(images(), at(1, 4)), "not the identity at t = 0"),
        (lambda: ColdProcess(lambda x, t: x[:, :1], T=3).degrade(images(), at(1, 4)), "keep shape and dtype"),
        (lambda: check_finite(torch.zeros(3)), r"\(B, \.\.\.\)"),
        (lambda: check_finite(torch.zeros(3, 4, dtype=torch.uint8)), "uint8"),
        (lambda: check_finite(torch.full((3, 4), torch.nan), "xt"), "xt holds 12 values that are NaN"),
        (lambda: check_finite(torch.full((3, 4), 200.0), low=-1, high=1), r"\[-1, 1\], got values from 200"),
    ],
)
@pytest.mark.filterwarnings("ignore:a_T")
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
