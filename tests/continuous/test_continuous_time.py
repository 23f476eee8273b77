"""Continuous time: curves of log-SNR, what a bound integrates to, and grids of real numbers."""

import json
import math

import pytest
import torch
from scipy.integrate import quad

from continuous import schedules
from continuous.likelihood import nelbo
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.objectives import ImageObjective, loss_weights, snr
from continuous.pipeline import ImagePipeline
from continuous.processes import GaussianProcess, process_from_dict
from continuous.sampling import SAMPLERS, encode, grid, sample, spread
from continuous.step_control import adaptive
from continuous.train_image import main
from tests.continuous.worlds import TWO, normal
from udm_text.core import denoise
from udm_text.randomness import RowRandom

HIGH, LOW = math.log(1e4), math.log(1e-4)


def bent(t):
    """A curve of nobody's, between the same ends."""
    return HIGH + (LOW - HIGH) * (0.7 * t.square() + 0.3 * t)


CURVES = {"linear": "linear", "cosine": "cosine", "bent": bent}


def rows(n, seed=0):
    return RowRandom(seed, torch.arange(n))


def real(t, n=1):
    return torch.full((n,), t, dtype=torch.float64)


@pytest.mark.parametrize("name", CURVES)
def test_the_terms_of_the_bound_integrate_to_the_same_whatever_the_curve(name):
    """x0 given xt of N(m, v) has the variance v / (1 + snr v): that gives log((1 + snr_0 v) / (1 + snr_1 v)) / 2."""
    process, v = GaussianProcess.from_log_snr(CURVES[name]), 0.25

    def term(t):
        weight = float(loss_weights(process, "x0", "vlb", real(t)))
        return weight * v / (1 + float(snr(process, real(t))) * v)

    found, _ = quad(term, 1e-12, 1, limit=200)
    assert found == pytest.approx(0.5 * math.log((1 + 1e4 * v) / (1 + 1e-4 * v)), abs=1e-6)
    assert found == pytest.approx(3.912, abs=5e-4)


def test_the_loss_is_that_integral_whatever_is_predicted():
    losses = {}
    for name, prediction in (("linear", "x0"), ("linear", "v"), ("cosine", "epsilon")):
        process = GaussianProcess.from_log_snr(name)
        network = {"kind": "mlp"}
        config = ImageConfig(process=process.to_dict(), prediction=prediction, image_shape=[1, 1, 1], network=network)

        def predict(xt, t, labels, process=process, prediction=prediction):
            x0 = normal(0.25).predictor(process)(xt, t, None)
            return process.target(prediction, x0, process.invert_noise(x0, xt, t), t)

        objective = ImageObjective(config, weighting="vlb")
        n = 400_000
        batch = {"images": 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(0)).double()}
        terms = objective.row_terms(predict, batch, row_index=torch.arange(n), total=n, step=0, seed=0)
        losses[name, prediction] = (float(terms.mean()), float(terms.std()) / math.sqrt(n))
    for mean, error in losses.values():
        assert mean == pytest.approx(3.912, abs=4 * error) and error < 0.05
    assert losses["linear", "x0"][0] == pytest.approx(losses["linear", "v"][0], rel=1e-9)


def test_times_are_drawn_uniformly_between_0_and_1_and_one_in_every_stratum():
    seen = []

    def network(xt, t, labels):
        seen.append(t)
        return xt

    process = GaussianProcess.from_log_snr("cosine")
    objective = ImageObjective(ImageConfig(process=process.to_dict(), image_shape=[1, 1, 1], network={"kind": "mlp"}))
    batch = {"images": torch.zeros(500, 1)}
    objective.row_terms(network, batch, row_index=torch.arange(500), total=500, step=0, seed=0)
    t = seen[0].sort().values
    assert t.dtype == torch.float64 and torch.equal((t * 500).long(), torch.arange(500)) and 0 < t[0] and t[-1] < 1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("name", CURVES)
def test_samplers_agree_with_the_table_at_its_nodes_bit_for_bit(name, sampler):
    process = GaussianProcess.from_log_snr(CURVES[name], T=8)
    table = GaussianProcess(process.a, process.b)
    walks = [
        sample(one, TWO.predictor(one), (6, 2), sampler=sampler, times=times, random=rows(6), dtype=torch.float64)
        for one, times in (
            (table, grid(table)),
            (process, grid(process, 8)),
            (process, grid(table)),
        )
    ]
    assert walks[1].isfinite().all() and torch.equal(walks[0], walks[1]) and torch.equal(walks[0], walks[2])


def test_grids_are_of_real_numbers_and_those_of_equal_steps_in_log_snr_are_so():
    process = GaussianProcess.from_log_snr("cosine")
    for spacing in ("even", "quadratic", "snr"):
        for steps in (1, 2, 7, 3000):
            times = grid(process, steps, spacing)
            assert times.dtype == torch.float64 and len(times) == steps + 1
            assert times[0] == 1 and times[-1] == 0 and bool((times.diff() < 0).all())
    level = process.sigma(grid(process, 10, "snr")[:-1]).log()
    assert torch.allclose(level.diff(), level.diff().mean().expand(9), rtol=1e-6)
    assert grid(process, 5, start=500).dtype == torch.int64  # from a step: of steps


def test_more_steps_than_any_table_has_come_nearer_to_the_flow():
    process, v = GaussianProcess.from_log_snr("linear", T=10), 0.3
    start = torch.tensor([[1.1], [-0.4]]).double()
    ratio = math.sqrt(v / (1e-4 / (1 + 1e-4) * v + 1 / (1 + 1e-4)))
    errors = []
    for steps in (10, 40, 160):
        walk = spread(grid(process, steps, "snr"), 2)
        end = denoise(process, normal(v).predictor(process), start, walk)
        errors.append(float((end - ratio * start).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2], errors
    assert (adaptive(process, normal(v).predictor(process), start, 0.05) - ratio * start).abs().max() < 0.2


def test_inversion_and_bounds_know_it_too():
    process = GaussianProcess.from_log_snr("cosine")
    x0, _ = TWO.sample(5, seed=1)
    predict = TWO.predictor(process)
    noise = encode(process, predict, x0, 400)
    back = denoise(process, predict, noise, spread(grid(process, 400), 5))
    assert (back - x0).abs().max() < 0.05
    table = GaussianProcess(process.a, process.b)
    both = [nelbo(one, TWO.predictor(one), x0, random=rows(5)).nats for one in (process, table)]
    assert torch.equal(*both)


def test_a_saved_curve_comes_back_and_one_of_your_own_cannot_be_saved():
    process = GaussianProcess.from_log_snr("linear", T=50, high=5.0, low=-7.0)
    again = process_from_dict(json.loads(json.dumps(process.to_dict())))
    t = torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
    assert all(torch.equal(a, b) for a, b in zip(process.at(t), again.at(t), strict=True)) and again.continuous
    assert float(snr(process, real(1.0))) == pytest.approx(math.exp(-7))
    with pytest.raises(ValueError, match="a log_snr of your own cannot be saved: take 'linear' or 'cosine', by name"):
        GaussianProcess.from_log_snr(bent).to_dict()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GaussianProcess.from_log_snr("square"), "log_snr must be one of 'linear', 'cosine', got 'square'"),
        (lambda: GaussianProcess.from_log_snr("linear", high=-9.0, low=9.0), "low < high, got high -9.0 and low 9.0"),
        (lambda: GaussianProcess.from_log_snr("linear", slope=1.0), "does not take these options"),
        (lambda: GaussianProcess.from_log_snr(lambda t: t), "a_t / b_t must fall with every t"),
        (
            lambda: GaussianProcess.vp("cosine", 10).corrupt(torch.ones(2, 1), real(0.5, 2), torch.ones(2, 1)),
            r"t must be a \(2,\) int64 tensor of steps",
        ),
        (
            lambda: GaussianProcess.from_log_snr().corrupt(torch.ones(2, 1), real(1.5, 2), torch.ones(2, 1)),
            r"t must lie in \[0, 1\], got 1.5..1.5",
        ),
        (
            lambda: ImageConfig(process=GaussianProcess.from_log_snr().to_dict(), learned_variance=True),
            "it does not go with continuous time",
        ),
        (
            lambda: ImageConfig(process=GaussianProcess.from_log_snr().to_dict(), regions=True),
            "regions are trained on steps 1..T: they do not go with continuous time",
        ),
        (
            lambda: ImageObjective(ImageConfig(process=GaussianProcess.from_log_snr().to_dict()), importance=True),
            "importance is measured on steps 1..T: it does not go with continuous time",
        ),
    ],
)
def test_what_has_no_meaning_in_continuous_time_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_model_of_continuous_time_is_trained_and_samples_on_any_grid(tmp_path):
    flags = "--max_steps 3 --report_to none --disable_tqdm true --use_cpu --plot false --eval_strategy no".split()
    flags += ["--per_device_train_batch_size", "32", "--network_options", '{"width": 16, "blocks": 1}']
    main(["--output", str(tmp_path / "real"), "--process", "log_snr", "--schedule", "linear", *flags])
    pipe = ImagePipeline.from_pretrained(tmp_path / "real")
    assert pipe.denoiser.config.process == {"process": "gaussian", "family": "log_snr", "curve": "linear", "T": 1000}
    for how in (
        {},
        {"num_steps": 1500, "sampler": "ddim"},
        {"sampler": "heun", "num_steps": 3},
        {"sampler": "adaptive"},
    ):
        assert pipe.generate(2, 1, seed=0, **how).shape == (2, 1, 8, 8)
    known = torch.zeros(1, 1, 8, 8)
    assert pipe.edit(known, known > 0, num_steps=3).shape == known.shape
    assert pipe.restore(pipe.degrade(known, 300), 300, num_steps=2).shape == known.shape
    with pytest.raises(ValueError, match="times does not go with process 'log_snr', whose t is any number, got 50"):
        main(["--output", str(tmp_path / "none"), "--process", "log_snr", "--times", "50", *flags])
    student = ["--teacher", str(tmp_path / "real"), "--objective", "consistency", "--teacher_steps", "4"]
    main(["--output", str(tmp_path / "student"), *student, *flags[:-2]])
    few = ImageDenoiser.from_pretrained(tmp_path / "student").config.student
    assert few.times == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert ImagePipeline.from_pretrained(tmp_path / "student").generate(2, 1, num_steps=2).shape == (2, 1, 8, 8)


def test_the_curves_have_the_ends_that_they_are_told():
    for name in schedules.LOG_SNRS:
        found = schedules.log_snr(name, high=3.0, low=-8.0)(torch.tensor([0.0, 1.0]).double())
        assert found.tolist() == pytest.approx([3.0, -8.0])
