"""Students: what they are to predict and how they are sampled, against closed forms of normal data."""

import math
import re

import pytest
import torch

from continuous import sampling
from continuous.distillation import (
    Consistency,
    Distillation,
    FewSteps,
    Imitation,
    coupled_rows,
    teacher_of,
    x0_of_step,
)
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.objectives import ImageObjective
from continuous.processes import ColdProcess, GaussianProcess
from tests.continuous.worlds import at, normal
from udm_text.core import denoise, reverse_step
from udm_text.randomness import RowRandom

VP, RF = GaussianProcess.vp("cosine", 1000), GaussianProcess.rf(1000)
PROCESSES = {"vp": VP, "ve": GaussianProcess.ve(1000), "rf": RF}
MEAN, DEVIATION = 0.3, 0.5


def config_of(process, prediction="x0", **more):
    return ImageConfig(
        process=process.to_dict(), prediction=prediction, image_shape=[1, 1, 1], network={"kind": "mlp"}, **more
    )


def rows(n, seed=0):
    return RowRandom(seed, torch.arange(n))


def wild(labels):
    """A teacher that follows no law."""
    return lambda xt, t, s: torch.sin(3 * xt + t[:, None].double() / 100)


def told(process, labels=None):
    """The best predictor of N(MEAN, DEVIATION^2)."""
    return normal(DEVIATION**2, mean=MEAN).predictor(process)


# fewer steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("stride", [2, 5])
def test_one_step_with_the_target_ends_where_the_steps_of_any_teacher_end(name, stride):
    process = PROCESSES[name]
    times = sampling.grid(process, 4 * stride)
    target = Distillation(process, wild, times, 4)
    assert target.times.tolist() == sampling.grid(process, 4)[:-1].flip(0).tolist()
    for t, walk in zip(times[:-stride:stride], times.unfold(0, stride + 1, stride), strict=True):
        xt = float(process.b[t]) * torch.randn(20, 3, generator=torch.Generator().manual_seed(int(t))).double()
        x0 = target(None, xt, at(t, 20), None, None, None)
        one = reverse_step(process, xt, x0, at(t, 20), at(walk[-1], 20))
        several = denoise(process, wild(None), xt, sampling.spread(walk, 20))
        scale = max(1.0, float(process.b[t]))
        assert torch.allclose(one, several, rtol=0, atol=3e-15 * scale)
        assert x0.abs().max() <= 1 + 1e-12  # a mean of answers, which are sines


def test_students_of_students_of_normal_data_end_where_64_steps_of_the_first_teacher_do():
    """Six rounds, each student an affine function at every of its times, which is all that is needed."""
    times = sampling.grid(VP, 64)
    start = torch.tensor([[-2.0], [0.1], [1.7]]).double()
    expected = denoise(VP, told(VP), start, sampling.spread(times, 3))
    predict, two = told(VP), torch.tensor([[0.0], [1.0]]).double()
    for num_steps in (32, 16, 8, 4, 2, 1):
        target = Distillation(VP, lambda labels, predict=predict: predict, times, num_steps)
        found = {}
        for t in target.times.tolist():
            low, high = target(None, two, at(t, 2), None, None, None)[:, 0]
            found[t] = (low, high - low)

        def predict(xt, t, s, found=found):
            shift, slope = found[int(t[0])]
            return shift + slope * xt

        times = torch.cat((target.times.flip(0), torch.zeros(1, dtype=torch.int64)))
        end = denoise(VP, predict, start, sampling.spread(times, 3))
        assert torch.allclose(end, expected, rtol=0, atol=2e-14), num_steps
    assert times.tolist() == [1000, 0]
    assert (denoise(VP, told(VP), start, sampling.spread([1000, 0], 3)) - expected).abs().max() > 0.8


def test_the_objective_compares_the_network_with_the_target_and_weighs_as_ever():
    objective = ImageObjective(config_of(VP, "v"), weighting="snr", target=Imitation(wild))
    t, x0 = torch.tensor([100, 400, 800]), torch.tensor([0.5, -0.5, 0.1]).double().view(3, 1)
    terms, _ = objective.terms(lambda xt, t, labels: 0.2 * xt, x0, t, None, rows(3))
    noise = VP.sample_noise(x0, random=rows(3))
    xt = VP.corrupt(x0, t, noise)
    a, b = VP.coefficients(t, xt)
    of_teacher = (xt - a * wild(None)(xt, t, t)) / b
    of_student = (xt - a * (a * xt - b * 0.2 * xt)) / b  # x0 = a xt - b v
    assert torch.allclose(terms, (of_teacher - of_student).square()[:, 0], rtol=1e-9)


def test_only_the_times_of_a_student_are_trained():
    seen = []

    def network(xt, t, labels):
        seen.extend(t.tolist())
        return xt

    objective = ImageObjective(config_of(VP), target=Distillation(VP, wild, sampling.grid(VP, 8), 4))
    batch = {"images": torch.zeros(400, 1)}
    objective.row_terms(network, batch, row_index=torch.arange(400), total=400, step=0, seed=0)
    assert sorted(seen) == sorted([250, 500, 750, 1000] * 100)


# consistency ----------------------------------------------------------------------------------------------------------


def closed_form(process):
    """Where the flow of N(MEAN, DEVIATION^2) carries xt."""

    def network(xt, t, labels):
        a, b = process.coefficients(t, xt)
        return MEAN + DEVIATION * (xt - a * MEAN) / (a**2 * DEVIATION**2 + b**2).sqrt()

    return network


def flow_step(process):
    """A teacher whose plain step is the flow itself."""

    def predict(xt, t, s):
        (a, b), (a_s, b_s) = process.coefficients(t, xt), process.coefficients(s, xt)
        ratio = ((a_s**2 * DEVIATION**2 + b_s**2) / (a**2 * DEVIATION**2 + b**2)).sqrt()
        return x0_of_step(process, xt, a_s * MEAN + ratio * (xt - a * MEAN), t, s)

    return lambda labels: predict


@pytest.mark.parametrize("name", PROCESSES)
def test_the_end_of_the_flow_agrees_with_itself_along_the_flow_and_the_mean_does_not(name):
    process = PROCESSES[name]
    target = Consistency(process, sampling.grid(process, 8), flow_step(process))
    objective = ImageObjective(config_of(process), target=target)
    t = target.times.repeat(5)
    x0 = MEAN + DEVIATION * torch.randn(40, 1, generator=torch.Generator().manual_seed(0)).double()
    network = closed_form(process)
    assert objective.terms(network, x0, t, None, rows(40))[0].max() < 1e-27
    mean, _ = objective.terms(lambda xt, t, labels: told(process)(xt, t, t), x0, t, None, rows(40))
    assert mean.mean() > 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_consistent_network_samples_the_law_in_any_number_of_steps(num_steps):
    network = closed_form(RF)
    few = FewSteps(["baseline"], 1, sampling.grid(RF, 8).tolist())
    x = sampling.sample(
        RF,
        lambda xt, t, s: network(xt, t, None),
        (40_000, 1),
        sampler=few.sampler(None),
        times=few.grid(RF, num_steps),
        random=rows(40_000),
        dtype=torch.float64,
    )
    assert float(x.std()) == pytest.approx(DEVIATION, abs=4 * DEVIATION / math.sqrt(2 * 40_000))
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(40_000))


def test_without_a_teacher_the_next_state_is_the_same_image_with_the_same_noise():
    seen = {}

    def student(xs, s, labels):
        seen.update(xs=xs, s=s)
        return 7.0 * xs

    target = Consistency(VP, sampling.grid(VP, 4))
    x0, noise, t = torch.full((4, 1), 0.5).double(), torch.ones(4, 1).double(), torch.tensor([250, 500, 750, 1000])
    found = target(student, VP.corrupt(x0, t, noise), t, None, x0, noise)
    assert seen["s"].tolist() == [0, 250, 500, 750] and torch.equal(seen["xs"], VP.corrupt(x0, t - 250, noise))
    assert torch.equal(found[1:], 7.0 * seen["xs"][1:]) and torch.equal(found[0], x0[0])


# reflow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP, RF], ids=["vp", "rf"])
def test_after_reflow_one_step_ends_where_many_steps_of_the_teacher_did(process):
    """Normal data: the best predictor of coupled rows is affine at each t, found here by regression."""
    like = torch.empty(50, 1, dtype=torch.float64)
    times = sampling.grid(process, 50, "snr")
    x0, noise = coupled_rows(process, lambda labels: told(process), like, None, times, rows(50))
    start = float(process.b[-1]) * noise
    assert torch.equal(start, process.prior(like, random=rows(50)))
    assert x0.std() == pytest.approx(DEVIATION * float(noise.std()), rel=0.05)
    seen = {}

    def network(xt, t, labels):
        seen["xt"] = xt
        return xt

    objective = ImageObjective(config_of(process))
    batch = {"images": x0, "noise": noise}
    terms = objective.row_terms(network, batch, row_index=torch.arange(50), total=1, step=0, seed=0)
    assert torch.allclose(terms, (seen["xt"] - x0).square()[:, 0], rtol=1e-9)
    xt = process.corrupt(x0, at(process.T, 50), noise)
    both = torch.cat((torch.ones_like(xt), xt), 1)
    fit = torch.linalg.lstsq(both, x0).solution
    one = denoise(process, lambda xt, t, s: torch.cat((torch.ones_like(xt), xt), 1) @ fit, start, walk_of(process))
    before = denoise(process, told(process), start, walk_of(process))
    rest = float(process.a[-1] / process.b[-1])  # of x0 in the x_T of training; samples start from none
    assert (one - x0).abs().max() < 1e-13 + 2 * rest
    assert (before - x0).abs().max() > 0.8


def walk_of(process):
    return sampling.spread([process.T, 0], 50)


# teachers and checkpoints ---------------------------------------------------------------------------------------------


def test_a_model_teaches_what_it_predicts_inside_the_range_of_images():
    config = ImageConfig(image_shape=[1, 2, 2], classes=["a", "b"], network={"kind": "mlp", "width": 8, "blocks": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ImageDenoiser(config).train()
        torch.nn.init.normal_(denoiser.network.write.weight)
    teacher = teacher_of(denoiser)
    xt, t = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 400, 900])
    found = teacher(torch.tensor([0, 1, 2]))(xt, t, t).x0
    assert torch.equal(found, denoiser.predict_x0(xt, t, torch.tensor([0, 1, -1])).clamp(-1, 1))
    assert not denoiser.training and not found.requires_grad


def test_a_grid_of_few_steps_is_of_the_times_that_were_trained():
    times = sampling.grid(VP, 8).tolist()
    free = FewSteps(["baseline"], 2, times)
    assert free.grid(VP, None).tolist() == [1000, 500, 0] and free.grid(VP, 8).tolist() == times
    assert free.grid(VP, 3).tolist() == [1000, 625, 375, 0]
    every = FewSteps(["ddim"], 8, times, exactly=True)
    assert every.grid(VP, None).tolist() == times
    anywhere = FewSteps(["ddim", "heun"], 4)
    assert torch.equal(anywhere.grid(VP, None, "snr"), sampling.grid(VP, 4, "snr"))
    assert anywhere.sampler("heun") == "heun" and anywhere.sampler(None) == "ddim"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FewSteps(["ddim"], 2, [1000, 500, 0], True).grid(VP, 1), "num_steps must be 2 for this model of few"),
        (lambda: FewSteps(["baseline"], 1, [1000, 500, 0]).grid(VP, 3), "num_steps must be an integer in 1..2 for"),
        (lambda: FewSteps(["baseline"], 1, [1000, 500, 0]).grid(VP, 1, "snr"), "spacing does not go with this model"),
        (lambda: FewSteps(["ddim"], 1).sampler("ddpm"), "sampler must be 'ddim' for this model of few steps"),
        (lambda: config_of(VP, few_steps={"samplers": ["dim"], "num_steps": 1}), "sampler must be one of"),
        (lambda: config_of(VP, few_steps={"num_steps": 1}), "few_steps must hold samplers and num_steps"),
        (lambda: config_of(VP, few_steps={"samplers": [], "num_steps": 1}), "few_steps must name samplers"),
        (
            lambda: config_of(VP, few_steps={"samplers": ["ddim"], "num_steps": 1, "times": [900, 0]}),
            "few_steps must have times from T = 1000 to 0, got [900, 0]",
        ),
        (
            lambda: config_of(VP, learned_variance=True, few_steps={"samplers": ["ddim"], "num_steps": 1}),
            "few_steps does not go with learned_variance",
        ),
        (lambda: Distillation(VP, wild, [1000, 500, 0], 2), "must divide those of its teacher, 2, got 2"),
        (lambda: Distillation(VP, wild, [1000, 800, 600, 0], 2), "must divide those of its teacher, 3, got 2"),
        (
            lambda: ImageObjective(config_of(VP), weighting="vlb", target=Imitation(wild)),
            "with a target leave out weighting 'vlb'",
        ),
    ],
)
def test_what_cannot_be_learned_or_sampled_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_few_steps_are_none_of_a_cold_process():
    from continuous.degradations import Blur

    cold = ColdProcess(Blur(T=4)).to_dict()
    with pytest.raises(ValueError, match="few_steps belongs to a Gaussian process"):
        ImageConfig(process=cold, prediction="x0", few_steps={"samplers": ["ddim"], "num_steps": 1})
