"""Uniform noise as others have it: the bound in continuous time, and the scheduler of diffusers beside our process."""

import numpy as np
import pytest
import torch

from tests.helpers import udm_here
from tests.models import make_rows, make_udm, word_tokenizer
from tests.oracle.world import entropy, index_of, make_world, random_predictor
from tests.test_kernels import passes_chi_square
from udm_text.core import reverse_step
from udm_text.evaluation import evaluate_bound, evaluate_continuous_bound
from udm_text.evaluation.continuous_time import continuous_terms, leave_one_out
from udm_text.processes import UniformProcess
from udm_text.randomness import RowRandom

MANY = 60_000


def channel(num_tokens, survival):
    """(V, V): q(v | u) of one position."""
    return survival * np.eye(num_tokens) + (1 - survival) / num_tokens


def forward_of(world, survival):
    """(V^l, V^l): q(xt | x0), each position by itself."""
    law, pairs = channel(world.num_tokens, survival), (world.sequences[:, None], world.sequences[None])
    return law[pairs].prod(-1)


def bound_of(world, predictor, *, converted=True, nodes=32):
    """(V^l,): the integral over alpha of the expected terms, for each x0. predictor(alpha): (V^l, l, V).

    By Gauss-Legendre in u, 1 - alpha = u^4: near alpha = 1 terms go as log(1 - alpha).
    """
    places, weights = np.polynomial.legendre.leggauss(nodes)
    u = (places + 1) / 2
    xt, size = torch.from_numpy(world.sequences), world.num_tokens
    total = np.zeros(len(xt))
    for alpha, weight in zip(1 - u**4, 2 * u**3 * weights, strict=True):
        log_p = torch.from_numpy(predictor(alpha)).log().flatten(0, 1)
        here, survival = xt.flatten(), torch.full((xt.numel(),), alpha, dtype=torch.float64)
        alone = leave_one_out(log_p, here, survival, size) if converted else log_p
        for number, x0 in enumerate(xt):
            terms = continuous_terms(alone, here, x0.repeat(len(xt)), survival, size).view(xt.shape).sum(1)
            total[number] += weight * (forward_of(world, alpha)[number] @ terms.numpy())
    return total


def exact(world):
    return lambda alpha: world.marginals(world.posterior(forward_of(world, alpha)))


@pytest.mark.parametrize(("num_tokens", "length"), [(3, 3), (6, 2)])
def test_the_bound_of_the_exact_predictor_is_the_entropy_once_it_is_converted(num_tokens, length):
    world = make_world(num_tokens, length)
    assert abs(world.data @ bound_of(world, exact(world)) - entropy(world.data)) < 1e-6
    assert world.data @ bound_of(world, exact(world), converted=False) > entropy(world.data) + 0.1


def bound_in_steps(world, predictor, steps):
    """(V^l,): sum of KL(q(xs | xt, x0), p(xs | xt)) over a grid of alpha, by Bayes' rule; x0_hat drawn by position."""
    total, size, digits = np.zeros(len(world.sequences)), world.num_tokens, world.sequences
    for step in range(steps):
        before, after = step / steps, (step + 1) / steps  # alpha at t and at s
        joint = channel(size, after)[:, None, :] * channel(size, before / after).T[None]  # (x0, xt, xs)
        back = joint / joint.sum(-1, keepdims=True)
        model = np.einsum("nlu,unlv->nlv", predictor(before), back[:, digits])
        for number, x0 in enumerate(digits):
            q = back[x0[None], digits]
            terms = np.where(q > 0, q * (np.log(np.where(q > 0, q, 1)) - np.log(model)), 0.0).sum((1, 2))
            total[number] += forward_of(world, before)[number] @ terms
    return total


def test_it_is_the_limit_of_the_bound_of_many_steps_for_a_wrong_predictor_too():
    """The wrong one says of a position what no data say, and then weighs what stands there as the channel has it: one
    that distrusts what stands there even as alpha goes to 1 has an infinite bound."""
    world = make_world(3, 2)
    alone = random_predictor(9, 2, 3, seed=1)

    def predictor(alpha):
        p = alone * channel(3, alpha).T[world.sequences]
        return p / p.sum(-1, keepdims=True)

    limit = bound_of(world, predictor)
    few, more = (bound_in_steps(world, predictor, steps) - limit for steps in (40, 160))
    assert np.abs(few).max() > 0.01 and np.abs(more).max() < 0.3 * np.abs(few).max()
    in_steps = [world.data @ bound_in_steps(world, exact(world), steps) - entropy(world.data) for steps in (5, 20, 80)]
    assert in_steps[0] > in_steps[1] > in_steps[2] > 0 and in_steps[2] < 0.02


def test_a_model_is_measured_row_by_row_by_its_seed_alone():
    model, rows = make_udm("uniform", length_counts=[0, 1, *[1] * 14]), make_rows(9)
    report = evaluate_continuous_bound(model, rows, draws=3, seed=4)
    assert (report.kernel, report.draws, report.length_included) == ("continuous_time", 3, True)
    again = evaluate_continuous_bound(model, rows, draws=3, seed=4, batch_size=2)
    assert abs(report.nelbo_nats_per_token - again.nelbo_nats_per_token) < 1e-5
    assert report.nelbo_nats_per_token != evaluate_continuous_bound(model, rows, draws=3).nelbo_nats_per_token
    with pytest.raises(ValueError, match="is of process 'uniform', got a model of process 'mask'"):
        evaluate_continuous_bound(make_udm("mask"), rows)


def test_a_network_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(monkeypatch):
    """m uniform: r_hat = 1 everywhere, whatever stands there; the bound of each position is log V, with noise."""
    model, rows = make_udm("uniform"), [row for row in make_rows(300, shortest=6) if 1 not in row["input_ids"]]
    size = model.config.build_process().num_tokens

    def forward(input_ids, positions, attention_mask=None, t=None, num_editable=None):
        told = torch.log1p(size * (alpha := 1 - t / num_editable) / (1 - alpha).clamp(min=1e-3))
        logits = torch.zeros(*input_ids.shape, model.config.text_config.vocab_size)
        logits.scatter_(2, input_ids[..., None], told[:, None, None].expand(*input_ids.shape, 1).float())
        return type("Said", (), {"logits": logits[positions], "gap_logits": None})()

    monkeypatch.setattr(model, "forward", forward)
    report = evaluate_continuous_bound(model, rows, draws=16)
    assert abs(report.nelbo_nats_per_token - np.log(size)) < 4 * report.nelbo_nats_per_token_stderr + 0.1
    assert evaluate_bound(model, rows).nelbo_nats_per_token > report.nelbo_nats_per_token - 0.5


def test_the_command_names_both_bounds(tmp_path):
    words = "red green blue small large circle square".split()
    tokenizer = word_tokenizer(words)
    make_udm("uniform", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("red circle\nsmall blue square\n" * 3)
    out = udm_here("evaluate", tmp_path / "model", "--data", tmp_path / "texts.txt", "--rows", "line").output
    assert "NELBO" in out and "in continuous time, leave-one-out: NELBO" in out


# --- the scheduler of diffusers --------------------------------------------------------------------------------------


def scheduler(steps):
    from diffusers import DiscreteDDIMScheduler

    return DiscreteDDIMScheduler(num_inference_steps=steps)


def their_step(steps, index, xt, x0, size):
    logits = 50.0 * torch.nn.functional.one_hot(x0, size).float()  # temperature 0: x0_hat is x0
    return scheduler(steps).step(logits, index, xt, generator=torch.Generator().manual_seed(7)).prev_sample


def test_the_conversion_is_that_of_diffusers():
    log_p = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    xt = torch.arange(40) % 6
    for alpha in (0.0, 0.2, 0.9):
        theirs = scheduler(10)._to_loo_logits(log_p, xt, alpha).log_softmax(1)
        assert torch.allclose(leave_one_out(log_p, xt, torch.full((40,), alpha).double(), 6), theirs, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_steps_of_diffusers_and_ours_have_the_same_marginals_from_the_same_rows(index):
    """xt by binomially many replaced positions; four steps of theirs lie at alpha 0, 1/4, ..., 1."""
    size, clean, random = 4, torch.tensor([0, 1, 1]), RowRandom(3, torch.arange(MANY))
    process, x0 = UniformProcess(torch.arange(size)), clean.expand(MANY, -1)
    before, after = index / 4, (index + 1) / 4
    keys = random.uniform(3)
    t, s = ((keys >= alpha).sum(1) for alpha in (before, after))
    xt = process.corrupt(x0, t, process.sample_noise(x0, random=random))
    world = make_world(size, 3)
    expected = forward_of(world, after)[int(index_of(clean.numpy(), size))] * MANY
    rows = {"theirs": their_step(4, index, xt, x0, size)}
    rows |= {str(c): reverse_step(process, xt, x0, t, s, c, random=random) for c in (0.0, 0.5, 1.0)}
    for name, xs in rows.items():
        counts = np.bincount(index_of(xs.numpy(), size), minlength=size**3).astype(float)
        assert passes_chi_square(counts, expected), name


def test_given_xt_they_agree_at_both_ends_of_a_walk_and_keep_less_of_it_between():
    """From pure noise theirs is our baseline step (churn 1), which forgets xt; the last step is x0. Between, theirs
    keeps a replaced token with a (1 - b) / (1 - ab), b = alpha_s and ab = alpha_t, and draws it anew else; ours, which
    reuses the noise, keeps it with (1 - b) / (1 - ab)."""
    size, steps = 4, 4
    x0, xt = (torch.full((MANY, 1), token) for token in (0, 2))
    assert torch.equal(their_step(steps, 3, xt, x0, size), x0)
    for index in (0, 1, 2):
        after, ratio = (index + 1) / steps, index / (index + 1)
        kept = ratio * (1 - after) / (1 - ratio * after)
        law = kept * np.eye(size)[2] + (1 - kept) * channel(size, after)[0]
        counts = np.bincount(their_step(steps, index, xt, x0, size)[:, 0].numpy(), minlength=size).astype(float)
        assert passes_chi_square(counts, law * MANY)
        ours = (1 - after) / (1 - ratio * after) * np.eye(size)[2]
        ours = ours + (after - ratio * after) / (1 - ratio * after) * np.eye(size)[0]
        if index:
            assert 0.5 * np.abs(law - ours).sum() > 0.1
