"""Images on a simulated accelerator: the pictures of the CPU, and no step that waits."""

import copy
from collections import Counter

import pytest
import torch

from continuous import sampling, watching
from continuous.degradations import Blur, Desaturate, PixelMask, Pool
from continuous.modeling import ImageConfig, ImageDenoiser, NonFiniteOutputError
from continuous.objectives import ImageObjective
from continuous.pipeline import SAMPLERS, ImagePipeline
from continuous.processes import ColdProcess, GaussianProcess
from tests.simulated_device import SimulatedDevice, values
from udm_text.randomness import RowRandom


def make(process=None, **more):
    process = GaussianProcess.vp("cosine", 20) if process is None else process
    defaults = {"classes": ["a", "b"], "image_shape": [1, 4, 4], "network": {"kind": "mlp", "width": 16, "blocks": 1}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageDenoiser(ImageConfig(process=process.to_dict(), **{**defaults, **more}))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return ImagePipeline(model)


def compare(pipe, call, monkeypatch):
    """The same pictures; returns how often each step waits. call: pipe -> pictures."""
    expected, seen = call(pipe), []
    on_step = watching.Watcher.on_step

    with SimulatedDevice() as device:

        def looked(*arguments):
            seen.append(Counter(device.waits))
            return on_step(*arguments)

        monkeypatch.setattr(watching.Watcher, "on_step", looked)
        found = call(ImagePipeline(device.move(copy.deepcopy(pipe.denoiser))))
    assert torch.equal(values(found), expected)
    waits = [dict(b - a) for a, b in zip(seen, seen[1:], strict=False)]
    assert waits, "there are steps"
    return waits


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_every_sampler_draws_the_same_and_no_step_waits(sampler, scale, monkeypatch):
    learned = sampler == "ddpm_learned"
    if sampler in ("ddpm_learned", "ddpm_optimal") and scale != 1.0:
        pytest.skip("learned and measured variances take no guidance")
    how = {"label": [0, 1, 1], "sampler": sampler, "num_steps": 5, "seed": 0, "guidance_scale": scale}
    pipe = make(learned_variance=learned)
    pipe.denoiser.hold_variance(torch.linspace(0, 1, 21).expand(2, 21))
    assert not any(compare(pipe, lambda pipe: pipe.generate(3, **how), monkeypatch))


@pytest.mark.parametrize("family", ["ve", "rf"])
def test_so_do_other_families(family, monkeypatch):
    process = getattr(GaussianProcess, family)(20)
    assert not any(compare(make(process), lambda pipe: pipe.generate(2, num_steps=5, seed=1), monkeypatch))


@pytest.mark.parametrize(
    "degradation",
    [Blur(T=4, std=2.0), PixelMask(T=4), PixelMask(T=4, order="random"), Pool((1, 2, 4)), Desaturate(T=3)],
)
@pytest.mark.parametrize("churn", [0.0, 1.0, 0.5])
def test_restoration_and_editing_wait_for_nothing(degradation, churn, monkeypatch):
    channels = 3 if isinstance(degradation, Desaturate) else 1
    images = RowRandom(0, torch.arange(3)).uniform(channels * 16).view(3, channels, 4, 4).float() * 2 - 1
    for sigma in (0.0, 0.1):
        pipe = make(ColdProcess(degradation, sigma=sigma), prediction="x0", classes=[], image_shape=[channels, 4, 4])
        assert not any(compare(pipe, lambda pipe: pipe.restore(images, churn=churn, seed=0), monkeypatch))
    editable = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    editable[..., :2] = True
    hot = images[:, :1]
    for call in (
        lambda pipe: pipe.edit(hot, editable, num_steps=5, seed=0),
        lambda pipe: pipe.restore(hot, 5, churn=churn, seed=0),
    ):
        assert not any(compare(make(), call, monkeypatch))


def test_wrappers_of_the_predictor_are_those_of_the_cpu():
    process, shape = GaussianProcess.vp("cosine", 12), (2, 1, 2, 2)
    table = torch.linspace(0, 1, 13, dtype=torch.float64)

    def predict(xt, t, s):
        return (xt * 0.5).tanh()

    def walks(device):
        there = device.move if device is not None else lambda x: x
        random = RowRandom(0, there(torch.arange(2)))
        where = there(torch.zeros(1)).device
        grid = sampling.grid(process, 4)
        how = {"random": random, "device": where}
        wrapped = sampling.with_variance(process, predict, table, random=random)
        langevin = sampling.langevin(process, predict, 0.1, random=random)
        walk = sampling.spread(sampling.repeated(grid, 1), 2, where)
        start = process.prior(torch.zeros(shape, device=where), random=random)
        encoded = sampling.encode(process, predict, torch.full(shape, 0.3, device=where), 4)
        corrected = sampling.denoise(process, langevin, start, walk, random=random)
        return sampling.sample(process, wrapped, shape, sampler=None, num_steps=4, **how), encoded, corrected

    expected = walks(None)
    with SimulatedDevice() as device:
        found = walks(device)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(values(a), b)


@pytest.mark.parametrize("how", [{}, {"weighting": "vlb"}, {"error": "huber", "weighting": "min_snr", "flip": True}])
@pytest.mark.parametrize("cold", [False, True])
def test_losses_and_their_gradients_are_those_of_the_cpu(how, cold):
    if cold and "weighting" in how:
        pytest.skip("weights by signal-to-noise ratio are of hot processes")
    process = ColdProcess(Blur(T=6, std=2.0)) if cold else GaussianProcess.vp("cosine", 20)
    model = make(process, prediction="x0" if cold else "v").denoiser
    objective = ImageObjective(model.config, **how)
    batch = {"images": torch.linspace(-1, 1, 64).view(4, 1, 4, 4), "labels": torch.tensor([0, 1, 1, 0])}

    def terms(own, inputs, index):
        made = objective.row_terms(own, inputs, row_index=index, total=4, step=3, seed=2)
        made.sum().backward()
        return made.detach(), [p.grad for p in own.parameters()]

    model.zero_grad()
    expected, gradients = terms(copy.deepcopy(model), batch, torch.arange(4))
    with SimulatedDevice() as device:
        there = {name: device.move(x) for name, x in batch.items()}
        model = device.move(copy.deepcopy(model))
        terms(model, there, torch.arange(4))  # constants are sent
        model.zero_grad()
        device.reset()
        found, own = terms(model, there, torch.arange(4))
        assert not device.waits, device.waits
    torch.testing.assert_close(values(found), expected)
    for a, b in zip(own, gradients, strict=True):
        torch.testing.assert_close(values(a), b, rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_is_named_when_the_pictures_are_made():
    pipe = make()
    with torch.no_grad():
        next(pipe.denoiser.parameters()).fill_(torch.nan)
    with SimulatedDevice() as device, pytest.raises(NonFiniteOutputError, match="not finite, in 2 of 2 images"):
        ImagePipeline(device.move(pipe.denoiser)).generate(2, num_steps=3, seed=0)
