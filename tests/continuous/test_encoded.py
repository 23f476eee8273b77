"""Corruption behind an encoder: 27 sequences whose posterior is enumerated, so that every law is known."""

import math
import warnings

import pytest
import torch

from continuous.encoded import EncodedProcess, bound_terms, plus_minus, prior_nats, sample_encoded, sample_means
from continuous.likelihood import nelbo
from continuous.processes import ColdProcess, GaussianProcess
from continuous.sampling import grid
from tests.continuous.worlds import at
from tests.oracle.world import entropy, make_world, total_variation
from udm_text.core import denoise
from udm_text.randomness import RowRandom

WORLD = make_world(3, 3)
DATA = torch.tensor(WORLD.data)
SEQUENCES = torch.tensor(WORLD.sequences)  # (27, 3)
ANGLES = torch.tensor([0.0, 1.7, 3.9], dtype=torch.float64)
TABLE = math.sqrt(2) * torch.stack((ANGLES.cos(), ANGLES.sin()), 1)  # (3, 2), of unit rms
VP = GaussianProcess.vp("cosine", 1000)
N = 8_000


def embed(ids):
    return TABLE[ids]


ENCODERS = {"embeddings": embed, "logits": lambda ids: plus_minus(3)(ids).double()}


def rows(n, seed=0):
    return RowRandom(seed, torch.arange(n))


def posterior(process, xt, t):
    """p(x0 | xt) over the 27 sequences, (B, 27)."""
    a, b = (x.flatten(1) for x in process.inner.coefficients(t, xt))
    clean = process.encode(SEQUENCES).flatten(1)
    square = (a * clean.square().sum(1) - 2 * xt.flatten(1) @ clean.T) * a  # but for what all have in common
    return (DATA.log() - square / (2 * b.square())).softmax(-1)


def draw(process, random, marginals=False):
    """x0_hat drawn from the exact posterior; with `marginals` each position from its own."""

    def predict(xt, t, s=None):
        p = posterior(process, xt, t)
        if not marginals:
            return SEQUENCES[(p.cumsum(1) < random.uniform(1)).sum(1).clamp(max=26)]
        each = torch.stack([p[:, SEQUENCES[:, i] <= v].sum(1) for i in range(3) for v in range(2)], 1).view(-1, 3, 2)
        return (each < random.uniform(3)[:, :, None]).sum(-1)

    return predict


def mean(process):
    clean = process.encode(SEQUENCES)

    def predict(xt, t, s=None):
        return torch.einsum("bn,n...->b...", posterior(process, xt, t), clean)

    return predict


def off(x0):
    """Total variation between drawn sequences and the data."""
    index = (x0 * torch.tensor([9, 3, 1])).sum(1)
    return total_variation(torch.bincount(index, minlength=27).double().numpy() / len(x0), WORLD.data)


def floor():
    """Mean and deviation of what sampling noise alone gives, of N draws of the data."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.multinomial(DATA, N, replacement=True, generator=generator) for _ in range(50)]
    found = torch.tensor([off(SEQUENCES[x]) for x in drawn])
    return float(found.mean()), float(found.std())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("how", [{"churn": 0.0}, {"eta": 1.0}, {"churn": 1.0}], ids=["improved", "ddpm", "baseline"])
@pytest.mark.parametrize("num_steps", [1, 40])
def test_draws_of_the_exact_posterior_have_the_law_of_the_data_at_any_number_of_steps(encoder, how, num_steps):
    """Within 4 standard deviations of the total variation that N draws of the data have."""
    process, random = EncodedProcess(VP, ENCODERS[encoder]), rows(N)
    like = torch.zeros(process.encode(SEQUENCES[:1]).shape, dtype=torch.float64).expand(N, -1, -1)
    x0, latents = sample_encoded(process, draw(process, random), like, grid(VP, num_steps), random=random, **how)
    least, spread = floor()
    assert off(x0) < least + 4 * spread
    assert torch.equal(latents, process.encode(x0))


def test_one_step_of_marginals_does_not_have_the_law_of_the_data():
    """So the test above can fail."""
    process, random = EncodedProcess(VP, embed), rows(N)
    like = torch.zeros(N, 3, 2, dtype=torch.float64)
    x0, _ = sample_encoded(process, draw(process, random, marginals=True), like, grid(VP, 1), random=random)
    assert off(x0) > 0.2


def test_the_walk_of_mean_latents_comes_nearer_to_the_data_with_the_steps():
    process, found = EncodedProcess(VP, embed), []
    for num_steps in (4, 10, 40):
        random = rows(N)
        like = torch.zeros(N, 3, 2, dtype=torch.float64)
        x0 = sample_means(process, mean(process), draw(process, random), like, grid(VP, num_steps), random=random)
        found.append(off(x0))
    least, spread = floor()
    assert found[0] > 2 * found[1] and found[1] > least + 4 * spread and found[2] < least + 4 * spread, found


def bound(process, n, seed=0, x0=None):
    """(n,) one draw of each term of the bound, added up, for sequences drawn from the data, and these sequences."""
    generator = torch.Generator().manual_seed(seed)
    x0 = SEQUENCES[torch.multinomial(DATA, n, replacement=True, generator=generator)] if x0 is None else x0
    random, latents = rows(n, seed), process.encode(x0)
    total = prior_nats(process.inner, latents)
    for step in range(1, process.T + 1):
        t = at(step, n)
        xt = process.corrupt(x0, t, process.sample_noise(latents, random=random))
        nats = -posterior(process, xt, t).gather(1, (x0 * torch.tensor([9, 3, 1])).sum(1, keepdim=True))[:, 0].log()
        total = total + bound_terms(process.inner, latents, mean(process)(xt, t), nats, t)
    return total, x0


def test_the_bound_of_the_exact_predictor_falls_to_the_entropy_as_steps_are_added():
    """With half as long steps the gap is about half as wide; the entropy is not crossed, within 4 standard errors."""
    gaps, errors = [], []
    for T in (10, 20, 40):
        found, _ = bound(EncodedProcess(GaussianProcess.vp("cosine", T), embed), 6_000)
        gaps.append(float(found.mean()) - entropy(WORLD.data))
        errors.append(float(found.std()) / math.sqrt(len(found)))
    assert all(gap > -4 * error for gap, error in zip(gaps, errors, strict=True)), (gaps, errors)
    assert gaps[0] > 1.6 * gaps[1] and gaps[1] > 1.6 * gaps[2], gaps


def test_the_terms_are_those_of_the_bound_of_images_on_the_same_noise():
    process = EncodedProcess(GaussianProcess.vp("cosine", 30), embed)
    x0 = SEQUENCES.repeat(4, 1)
    latents, random = process.encode(x0), rows(len(x0))
    steps = torch.zeros(len(x0), dtype=torch.float64)
    for step in range(30, 0, -1):  # `nelbo` walks down
        t = at(step, len(x0))
        xt = process.corrupt(x0, t, process.sample_noise(latents, random=random))
        steps += bound_terms(process.inner, latents, mean(process)(xt, t), torch.zeros(len(x0)), t)
    known = nelbo(process.inner, mean(process), latents, random=rows(len(x0)))
    assert torch.allclose(steps, known.steps, rtol=1e-12, atol=1e-12)
    assert torch.allclose(prior_nats(process.inner, latents), known.prior, rtol=1e-12, atol=1e-12)


def test_the_whole_bound_is_stationary_in_the_scale_of_the_encoder_and_its_last_term_is_not():
    """The derivative by the logarithm of the scale, against that of -log q(x0 | x1), which still has to decode."""
    falling = torch.linspace(0.0, -6.0, 80, dtype=torch.float64).sigmoid()  # log snr from 0 to -6
    inner = GaussianProcess.vp(torch.cat((torch.ones(1, dtype=torch.float64), falling)))
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    process = EncodedProcess(inner, lambda ids: log_scale.exp() * TABLE[ids], free_scale=True)
    total, x0 = bound(process, 2000)
    (whole,) = torch.autograd.grad(total.mean(), log_scale)
    t = at(1, len(x0))
    xt = process.corrupt(x0, t, process.sample_noise(process.encode(x0), random=rows(len(x0), 1)))
    nats = -posterior(process, xt, t).gather(1, (x0 * torch.tensor([9, 3, 1])).sum(1, keepdim=True)).log().mean()
    (last,) = torch.autograd.grad(nats, log_scale)
    assert math.isfinite(float(whole)) and float(last) < -1
    assert abs(float(whole)) < 0.2 * abs(float(last)), (whole, last)


def test_the_last_term_alone_falls_without_end_as_the_encoder_is_scaled_up():
    found = []
    for scale in (1.0, 3.0, 10.0):
        process = EncodedProcess(VP, lambda ids, scale=scale: scale * TABLE[ids], free_scale=True)
        x0 = SEQUENCES[torch.multinomial(DATA, 4000, replacement=True, generator=torch.Generator().manual_seed(0))]
        t = at(600, len(x0))
        xt = process.corrupt(x0, t, process.sample_noise(process.encode(x0), random=rows(len(x0))))
        p = posterior(process, xt, t).gather(1, (x0 * torch.tensor([9, 3, 1])).sum(1, keepdim=True))
        found.append(float(-p.log().mean()))
    assert found[0] > 2 * found[1] > 4 * found[2], found


def test_gradients_reach_the_encoder():
    table = TABLE.clone().requires_grad_()
    process = EncodedProcess(GaussianProcess.vp("cosine", 30), lambda ids: table[ids], free_scale=True)
    total, _ = bound(process, 200)
    total.mean().backward()
    assert torch.isfinite(table.grad).all() and float(table.grad.abs().min()) > 0


def test_latents_without_unit_scale_are_warned_of_once_and_measured():
    process = EncodedProcess(VP, lambda ids: 5 * TABLE[ids])
    with pytest.warns(UserWarning, match="rms of 5: schedules are made for 1"):
        process.encode(SEQUENCES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process.encode(SEQUENCES)
        EncodedProcess(VP, lambda ids: 5 * TABLE[ids], free_scale=True).encode(SEQUENCES)
        EncodedProcess(VP, embed).encode(SEQUENCES)


def test_logits_have_unit_rms_and_one_positive_number_a_token():
    found = plus_minus(5)(torch.tensor([[0, 4]]))
    assert found.tolist() == [[[1, -1, -1, -1, -1], [-1, -1, -1, -1, 1]]]


def test_a_row_does_not_depend_on_its_neighbours():
    process = EncodedProcess(VP, embed)
    like = torch.zeros(8, 3, 2, dtype=torch.float64)

    def one(part):
        random = RowRandom(3, torch.arange(8)[part])
        return sample_encoded(process, draw(process, random), like[part], grid(VP, 7), eta=0.5, random=random)[0]

    assert torch.equal(torch.cat((one(slice(0, 3)), one(slice(3, 8)))), one(slice(0, 8)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EncodedProcess(ColdProcess(lambda x, t: x, T=3), embed), "inner must be a GaussianProcess"),
        (lambda: EncodedProcess(VP, TABLE), "encode must be a function of x0"),
        (lambda: EncodedProcess(VP, lambda ids: ids).encode(SEQUENCES), r"float tensor of 27 rows, got \(27, 3\)"),
        (lambda: EncodedProcess(VP, lambda ids: None).encode(SEQUENCES), "got NoneType"),
        (lambda: plus_minus(1), "num_tokens must be at least 2, got 1"),
        (lambda: walk(times=grid(VP, 4, start=500)), r"times must run from T = 1000 to 0, got 500..0"),
        (lambda: walk(times=torch.tensor([1000, 1000, 0])), "times must fall with every step"),
        (lambda: walk(churn=0.5, eta=0.5), "give churn or eta"),
        (lambda: walk(eta=2.0), r"eta must lie in \[0, 1\], got 2.0"),
        (lambda: walk(churn=2.0), r"churn must lie in \[0, 1\], got 2.0"),
        (lambda: bound_terms(VP, embed(SEQUENCES), TABLE, torch.zeros(27), at(1, 27)), "shape of the latents"),
        (lambda: denoise(EncodedProcess(VP, embed), lambda *_: SEQUENCES, embed(SEQUENCES), [at(0, 27)] * 2), "t = 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def walk(times=None, **how):
    process = EncodedProcess(VP, embed)
    like = torch.zeros(27, 3, 2, dtype=torch.float64)
    return sample_encoded(process, lambda xt, t, s: SEQUENCES, like, grid(VP, 4) if times is None else times, **how)
