"""Steps whose lengths an error chooses: against closed flows, and row by row."""

import math

import pytest
import torch

from continuous import sampling
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.pipeline import ImagePipeline
from continuous.processes import GaussianProcess
from continuous.step_control import adaptive
from tests.continuous.worlds import TWO, normal
from udm_text.core import denoise
from udm_text.randomness import RowRandom

EXPLODING = GaussianProcess.ve(8000, sigma_min=0.002, sigma_max=50.0)


def counted(predict_x0):
    calls = []

    def predict(xt, t, s):
        calls.append(t)
        return predict_x0(xt, t, s)

    return predict, calls


def test_the_error_falls_with_the_tolerance_and_calls_are_spent_for_it():
    """Normal data, whose flow is known: x_T goes to m + sqrt(v / (v + s_T^2)) (x_T - m)."""
    start = torch.tensor([[40.0], [-31.0], [90.0]]).double()
    predict = normal(0.3, mean=0.7).predictor(EXPLODING)
    exact = 0.7 + math.sqrt(0.3 / (0.3 + 50.0**2)) * (start - 0.7)
    errors, spent = [], []
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
        watched, calls = counted(predict)
        errors.append(float((adaptive(EXPLODING, watched, start, rtol) - exact).abs().max()))
        spent.append(len(calls))
    assert all(coarse > 5 * fine for coarse, fine in zip(errors, errors[1:], strict=False)), errors
    assert all(error < 4 * rtol for error, rtol in zip(errors, (1e-1, 1e-2, 1e-3, 1e-4), strict=True)), errors
    assert spent[0] < 25 and spent[-1] < 400, spent
    assert all(2 < more / few < 4 for few, more in zip(spent, spent[1:], strict=False)), spent  # the root of ten


@pytest.mark.parametrize("process", [GaussianProcess.vp("cosine", 1000), GaussianProcess.rf(1000)], ids=["vp", "rf"])
def test_the_flow_of_a_mixture_is_followed_from_where_nothing_is_left_of_it(process):
    start = process.prior(torch.empty(200, 2).double(), random=RowRandom(0, torch.arange(200)))
    predict = TWO.predictor(process)
    walk = sampling.spread(sampling.grid(process), 200)
    every = denoise(process, sampling.heun(process, predict), start, walk)
    errors = [float((adaptive(process, predict, start, rtol) - every).square().mean().sqrt()) for rtol in (0.1, 0.01)]
    assert errors[1] < 0.02 and errors[0] > 2 * errors[1], errors


def test_a_rows_steps_are_its_own():
    start = EXPLODING.prior(torch.empty(5, 2).double(), random=RowRandom(1, torch.arange(5)))
    predict = TWO.predictor(EXPLODING)
    together = adaptive(EXPLODING, predict, start, 0.02)
    alone = torch.cat([adaptive(EXPLODING, predict, row[None], 0.02) for row in start])
    assert torch.equal(together, alone)
    watched, calls = counted(predict)
    adaptive(EXPLODING, watched, start, 0.02)
    assert any(len(set(t.tolist())) > 1 for t in calls)


def test_answers_that_are_no_numbers_end_the_walk():
    process = GaussianProcess.vp("cosine", 50)
    out = adaptive(process, lambda xt, t, s: torch.full_like(xt, math.nan), torch.ones(2, 3))
    assert out.isnan().all()


@pytest.mark.parametrize("rtol", [0.0, -1.0, math.nan, math.inf, True, "much"])
def test_a_tolerance_that_is_none_is_refused(rtol):
    with pytest.raises(ValueError, match="rtol must be a positive number, got"):
        adaptive(EXPLODING, TWO.predictor(EXPLODING), torch.ones(2, 2), rtol)


def test_a_pipeline_takes_adaptive_steps_and_refuses_what_they_have_none_of():
    network = {"kind": "mlp", "width": 16, "blocks": 1}
    config = ImageConfig(process=GaussianProcess.vp("cosine", 30).to_dict(), image_shape=[1, 4, 4], network=network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ImageDenoiser(config)
        torch.nn.init.normal_(denoiser.network.write.weight, std=0.1)
    pipe = ImagePipeline(denoiser)
    whole = pipe.generate(5, sampler="adaptive", rtol=0.02, seed=3)
    assert torch.allclose(whole, pipe.generate(5, sampler="adaptive", rtol=0.02, seed=3, batch_size=2), atol=1e-5)
    random = RowRandom(3, torch.arange(5))
    start = pipe.process.prior(torch.empty(5, 1, 4, 4), random=random)
    assert torch.allclose(whole, adaptive(pipe.process, pipe.predictor(), start, 0.02).clamp(-1, 1), atol=1e-6)
    for how, words in (
        ({"num_steps": 4}, "num_steps does not go with sampler 'adaptive'"),
        ({"output_trajectory": True}, "output_trajectory does not go with sampler 'adaptive'"),
        ({"sampler": "ddim", "rtol": 0.1}, "rtol belongs to sampler 'adaptive', got it with 'ddim'"),
        ({"rtol": 0.0}, "rtol must be a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.generate(1, **{"sampler": "adaptive", **how})
