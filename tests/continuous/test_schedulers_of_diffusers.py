"""Agreement with the schedulers of diffusers, whose code is not ours, and their use inside our loop."""

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)

from continuous import sampling
from continuous.processes import GaussianProcess
from continuous.sampling import ancestral, ddim, ddpm_large, dpm_solver, inverted, reverse_sde, sample, spread
from continuous.scheduler_adapter import SchedulerPredictor
from tests.continuous.worlds import TWO
from udm_text.core import denoise
from udm_text.randomness import RowRandom

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # of diffusers, with numpy 2

PROCESS = GaussianProcess.vp("linear", 1000)
PREDICT = TWO.predictor(PROCESS)
START = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


class Dictated(GaussianProcess):
    """Its fresh noise is what it is told, draw by draw."""

    def __init__(self, noises):
        super().__init__(PROCESS.a, PROCESS.b)
        self.noises = iter(noises)

    def sample_noise(self, x, *, editable=None, random=None):
        return next(self.noises)


def in_float64(scheduler, num_steps):
    scheduler.alphas_cumprod = PROCESS.a[1:].square()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(num_steps)
    return scheduler


def output(xt, timestep, kind="epsilon"):
    """What a network of this kind would tell, at diffusers' timestep."""
    t = torch.full((len(xt),), int(timestep) + 1, dtype=torch.int64)
    x0 = PREDICT(xt, t, t)
    return PROCESS.target(kind, x0, PROCESS.invert_noise(x0, xt, t), t)


def times_of(scheduler):
    return torch.cat((scheduler.timesteps.long() + 1, torch.zeros(1, dtype=torch.int64)))


def test_the_schedules_are_those_of_diffusers():
    for ours, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        table = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).alphas_cumprod.double()
        assert torch.allclose(GaussianProcess.vp(ours, 1000).a[1:].square(), table, rtol=2e-3, atol=1e-7)
        assert torch.allclose(GaussianProcess.vp(ours, 1000).a[1:900].square(), table[:899], rtol=1e-4)
    table = DDPMScheduler(num_train_timesteps=1000, beta_schedule="sigmoid").alphas_cumprod.double()
    distance = {
        name: float((GaussianProcess.vp(name, 1000).a[1:].square() - table).abs().max())
        for name in ("sigmoid_beta", "sigmoid")
    }
    assert distance["sigmoid_beta"] < 0.01 and distance["sigmoid"] > 0.25  # the ends of their betas are other ones


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_ddim_of_diffusers(eta):
    scheduler = in_float64(DDIMScheduler(**BETAS, clip_sample=False), 20)
    fresh = torch.randn(20, *START.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = START
    for timestep, noise in zip(scheduler.timesteps, fresh, strict=True):
        noise = noise if eta else None
        theirs = scheduler.step(output(theirs, timestep), timestep, theirs, eta=eta, variance_noise=noise).prev_sample
    process = Dictated(fresh)
    ours = denoise(process, ddim(process, PREDICT, eta), START, spread(times_of(scheduler), 16))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_ddpm_is_the_ddpm_of_diffusers(kind):
    name = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}[kind]
    scheduler = in_float64(DDPMScheduler(**BETAS, clip_sample=False, prediction_type=name), 50)
    generator, theirs = torch.Generator().manual_seed(2), START
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(output(theirs, timestep, kind), timestep, theirs, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)
    process = Dictated(torch.randn(START.shape, generator=generator, dtype=torch.float64) for _ in range(50))
    ours = denoise(process, ancestral(process, PREDICT), START, spread(times_of(scheduler), 16))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_steps", [5, 50])
def test_ddpm_of_the_large_variance_is_the_fixed_large_of_diffusers(num_steps, monkeypatch):
    scheduler = in_float64(DDPMScheduler(**BETAS, clip_sample=False, variance_type="fixed_large"), num_steps)
    generator, theirs = torch.Generator().manual_seed(2), START
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(output(theirs, timestep), timestep, theirs, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)
    monkeypatch.setattr(
        sampling, "normal_like", lambda x, random: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    )
    ours = denoise(PROCESS, ddpm_large(PROCESS, PREDICT), START, spread(times_of(scheduler), 16))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_the_reverse_sde_of_exploding_noise_is_the_predictor_of_diffusers(monkeypatch):
    process, steps = GaussianProcess.ve(40, 0.05, 30.0), 40
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=steps, sigma_min=0.05, sigma_max=30.0)
    scheduler.set_sigmas(steps)
    scheduler.discrete_sigmas = process.b[1:]
    predict, generator, theirs = TWO.predictor(process), torch.Generator().manual_seed(2), 30 * START
    for timestep, t in zip(scheduler.timesteps[:-1], range(steps, 1, -1), strict=True):
        at_t = torch.full((16,), t)
        score = (predict(theirs, at_t, at_t) - theirs) / process.b[t].square()
        theirs = scheduler.step_pred(score, timestep, theirs, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)
    monkeypatch.setattr(
        sampling, "normal_like", lambda x, random: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    )
    ours = denoise(process, reverse_sde(process, predict), 30 * START, spread(range(steps, 0, -1), 16))
    assert torch.allclose(ours, theirs.double(), rtol=0, atol=1e-4)  # their times are float32


@pytest.mark.parametrize("num_steps", [7, 20])
def test_dpm_solver_is_the_2m_of_diffusers(num_steps):
    scheduler = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading", lower_order_final=True)
    scheduler, theirs = in_float64(scheduler, num_steps), START
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(output(theirs, timestep), timestep, theirs).prev_sample
    ours = denoise(PROCESS, dpm_solver(PROCESS, PREDICT), START, spread(times_of(scheduler), 16))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    plain = denoise(PROCESS, PREDICT, START, spread(times_of(scheduler), 16))
    assert not torch.allclose(plain, theirs, rtol=0, atol=1e-3)


def test_inversion_is_the_inverse_ddim_of_diffusers():
    scheduler = in_float64(DDIMInverseScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"), 20)
    scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    x0, _ = TWO.sample(16, seed=3)
    theirs = x0
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(output(theirs, timestep), timestep, theirs).prev_sample
    times = torch.cat((torch.zeros(1, dtype=torch.int64), scheduler.timesteps + 1))
    ours = denoise(PROCESS, inverted(PROCESS, PREDICT), x0, spread(times, 16))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_the_plain_step_of_rectified_flow_is_the_euler_step_of_diffusers():
    process = GaussianProcess.rf(1000)
    scheduler, predict = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000), TWO.predictor(process)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.5, 0.2, 0.1])
    theirs = START
    for timestep in scheduler.timesteps:
        t = torch.full((16,), round(float(timestep)), dtype=torch.int64)
        x0 = predict(theirs, t, t)
        velocity = process.target("v", x0, process.invert_noise(x0, theirs, t), t)
        theirs = scheduler.step(velocity, timestep, theirs).prev_sample
    ours = denoise(process, predict, START, spread([1000, 700, 500, 200, 100, 0], 16))
    assert torch.allclose(ours, theirs.double(), rtol=0, atol=1e-5)


# the adapter ----------------------------------------------------------------------------------------------------------


def by_hand(scheduler, num_steps, **options):
    """The loop that diffusers' pages show, with the same network."""
    scheduler.alphas_cumprod = PROCESS.a[1:].square()
    scheduler.set_timesteps(num_steps)
    exploding = float(scheduler.init_noise_sigma) > 1.001
    x = START * (1 / PROCESS.a[int(scheduler.timesteps[0]) + 1] if exploding else 1.0)
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, timestep).double()
        told = output(shown, timestep)
        x = scheduler.step(told, timestep, x, **options).prev_sample
    return x.double()


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda: DDIMScheduler(**BETAS, clip_sample=False), 1e-9),
        (lambda: DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading"), 1e-5),
        (lambda: DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", solver_order=3), 1e-5),
        (lambda: UniPCMultistepScheduler(**BETAS, timestep_spacing="leading"), 1e-5),
        (lambda: DEISMultistepScheduler(**BETAS, timestep_spacing="leading"), 1e-5),
        (lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"), 1e-4),
    ],
    ids=["ddim", "dpm2", "dpm3", "unipc", "deis", "euler"],
)
def test_a_scheduler_walks_its_own_path_inside_the_loop(make, tolerance):
    scheduler = make()
    before = scheduler.alphas_cumprod
    adapter = SchedulerPredictor(scheduler, PROCESS, PREDICT, num_steps=10)
    ours = denoise(PROCESS, adapter, START, adapter.walk(16))
    assert scheduler.alphas_cumprod is before  # the caller's object is not touched
    theirs = by_hand(make(), 10)
    assert torch.allclose(ours, theirs, rtol=0, atol=tolerance), float((ours - theirs).abs().max())
    again = denoise(PROCESS, adapter, START, adapter.walk(16))  # a second walk remembers nothing of the first
    assert torch.equal(ours, again)


def test_a_noisy_scheduler_takes_its_generator():
    walks = []
    for seed in (0, 0, 1):
        scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
        generator = torch.Generator().manual_seed(seed)
        walks.append(SchedulerPredictor(scheduler, PROCESS, PREDICT, num_steps=10, generator=generator))
    first, same, other = (denoise(PROCESS, walk, START, walk.walk(16)) for walk in walks)
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=1e-2)
    euler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    theirs = by_hand(euler, 10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(first, theirs, rtol=0, atol=1e-4)


def test_a_flow_scheduler_walks_rectified_flow():
    process = GaussianProcess.rf(1000)
    adapter = SchedulerPredictor(FlowMatchEulerDiscreteScheduler(), process, TWO.predictor(process), num_steps=8)
    ours = sample(process, adapter, (16, 2), sampler=None, times=adapter.times, random=rows(), dtype=torch.float64)
    plain = sample(process, TWO.predictor(process), (16, 2), num_steps=8, random=rows(), dtype=torch.float64)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-5)


def rows():
    return RowRandom(0, torch.arange(16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIMScheduler(**BETAS), "clip_sample=False"),
        (lambda: DDIMScheduler(num_train_timesteps=500, clip_sample=False), "500 timesteps and the process 1000"),
        (lambda: HeunDiscreteScheduler(**BETAS), "2 network calls a step"),
        (lambda: EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True), "falling integers"),
        (lambda: DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True), "not those of its timesteps"),
        (lambda: DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace"), "stride"),
        (lambda: FlowMatchEulerDiscreteScheduler(), "needs GaussianProcess.rf"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        SchedulerPredictor(make(), PROCESS, PREDICT, num_steps=10)


def test_a_grid_that_is_not_the_schedulers_is_refused():
    adapter = SchedulerPredictor(DDIMScheduler(**BETAS, clip_sample=False), PROCESS, PREDICT, num_steps=10)
    with pytest.raises(ValueError, match="the scheduler's own"):
        denoise(PROCESS, adapter, START, spread([1000, 500, 0], 16))
