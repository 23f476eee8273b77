"""Counts that each row draws for itself: the channel that corrupts every position independently, in counts."""

from math import comb

import numpy as np
import pytest
import torch

from tests.models import CLS, MASK, SEP, make_udm
from tests.oracle.outcomes import cells
from tests.oracle.world import make_world
from tests.test_kernels import passes_chi_square
from udm_text import compiling
from udm_text.schedules import binomial_counts, edit_cost_share

EXACT = 1e-12
BLANKS = torch.tensor([[CLS, *[MASK] * 6, SEP]])


def binomial(n, k, p):
    return comb(n, k) * p**k * (1 - p) ** (n - k)


@pytest.mark.parametrize(("num_tokens", "length", "cost"), [(3, 3, 0.7), (4, 2, 2.0), (2, 4, 0.0), (3, 3, 40.0)])
def test_steps_of_the_edit_kernel_are_mixtures_of_uniform_noise_over_binomial_counts(num_tokens, length, cost):
    """The kernel q(y | x) ~ exp(-cost d) on all V^l rows, to a power, against the mixture over counts."""
    world = make_world(num_tokens, length)
    distance = (world.sequences[:, None] != world.sequences[None]).sum(-1)
    kernel = np.exp(-cost * distance)
    kernel /= kernel.sum(1, keepdims=True)
    share = edit_cost_share(cost, num_tokens)
    for steps in (1, 2, 5):
        corrupted = 1 - (1 - share) ** steps
        mixture = sum(binomial(length, t, corrupted) * world.uniform_forward(t) for t in range(length + 1))
        assert np.abs(np.linalg.matrix_power(kernel, steps) - mixture).max() < EXACT


def test_counts_are_binomial_and_thin_each_other_exactly():
    """Shares that are multiples of 1/12, uniforms one for each cell of 1/12: every joint count with its chance."""
    uniforms, start = cells(12, 3), torch.full((12**3,), 3)
    shares = torch.tensor([9, 6, 4, 0]).double()[:, None].expand(-1, len(start)) / 12
    counts = binomial_counts(shares, start, uniforms)
    assert (counts[1:] <= counts[:-1]).all() and not counts[-1].any()
    chance: dict[tuple[int, ...], float] = {}
    for walk in counts.T.tolist():
        chance[tuple(walk)] = chance.get(tuple(walk), 0.0) + 1 / len(start)
    assert len(chance) == 20  # all falling walks of three counts of three positions
    for (first, second, third, _), found in chance.items():
        expected = binomial(3, first, 9 / 12) * binomial(first, second, 6 / 9) * binomial(second, third, 4 / 6)
        assert abs(found - expected) < EXACT


@pytest.mark.parametrize("length", [1, 4, 9])
def test_the_weights_of_continuous_time_are_those_of_counts(length):
    """The integral over b in (0, 1) of Bin(t; l, b)/b is 1/t; Gauss-Legendre is exact for the polynomial."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    share = (nodes + 1) / 2
    for t in range(1, length + 1):
        integral = (weights / 2 * comb(length, t) * share ** (t - 1) * (1 - share) ** (length - t)).sum()
        assert abs(integral - 1 / t) < EXACT


def test_a_row_counts_its_own_positions_alone():
    shares = torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]).double()
    uniforms = torch.tensor([[0.4, 0.1, 0.1, 0.1], [0.6, 0.4, 0.2, 0.7]]).double()
    assert binomial_counts(shares, torch.tensor([1, 4]), uniforms).tolist() == [[1, 4], [1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: binomial_counts(torch.tensor([[0.5], [0.6]]), torch.tensor([1]), torch.rand(1, 1)), "shares must"),
        (lambda: binomial_counts(torch.tensor([[1.5]]), torch.tensor([1]), torch.rand(1, 1)), "shares must"),
        (lambda: binomial_counts(torch.tensor([[0.5]]), torch.tensor([3]), torch.rand(1, 2)), "each of 3 positions"),
        (lambda: edit_cost_share(-0.1, 3), "cost must be at least 0"),
        (lambda: edit_cost_share(float("nan"), 3), "cost must be at least 0"),
        (lambda: edit_cost_share(1.0, 1), "num_tokens at least 2"),
        (lambda: make_udm().generate(BLANKS, counts="poisson"), "counts must be 'exact' or 'binomial', got 'poisson'"),
        (lambda: make_udm().generate(BLANKS, counts="binomial", threshold=0.5), "leave counts at 'exact'"),
        (lambda: make_udm().generate(BLANKS, counts="binomial", speculate=2), "does not go with counts='binomial'"),
        (lambda: make_udm("substitute").generate(BLANKS, counts="binomial", max_edits=2), "leave counts at 'exact'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_generation_leaves_every_position_masked_by_itself(schedule):
    """The masks after each of three steps are those of independent positions, jointly over positions."""
    model, many = make_udm(), 3000
    how = {"num_steps": 3, "schedule": schedule, "counts": "binomial", "output_trajectory": True}
    out = model.generate(BLANKS, num_return_sequences=many, seed=3, **how)
    grid = {"linear": (4, 2), "cosine": (5, 3)}[schedule]
    for xt, share in zip(out.trajectory[1:3], (count / 6 for count in grid), strict=True):
        masked = xt[:, 1:7] == MASK
        seen = torch.bincount((masked * 2 ** torch.arange(6)).sum(1), minlength=64).double().numpy()
        size = np.array([bin(n).count("1") for n in range(64)])
        assert passes_chi_square(seen, many * share**size * (1 - share) ** (6 - size))
    assert not (out.sequences == MASK).any()


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform", "delete"])
def test_every_writer_takes_them_and_a_row_is_its_own(process):
    model = make_udm(process)
    how = {"length": 6, "counts": "binomial", "seed": 1, "return_dict_in_generate": True}
    many = model.generate(num_return_sequences=5, **how)
    assert many.sequences.shape == (5, 8) and (many.sequences[:, 1:7] > MASK).all()
    alone = model.generate(sample_index=torch.tensor([3]), **how)
    assert torch.equal(alone.sequences[0], many.sequences[3])
    assert len(set(many.steps.tolist())) > 1, "some rows rest more often than others"
    assert torch.equal(model.generate(length=6, seed=1, counts="exact"), model.generate(length=6, seed=1))


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_a_graph_takes_steps_in_which_rows_rest(process, monkeypatch):
    monkeypatch.setattr(compiling, "_BACKEND", "aot_eager")
    model = make_udm(process)
    how = {"length": 5, "num_return_sequences": 4, "counts": "binomial", "seed": 2}
    assert torch.equal(model.generate(compile=True, **how), model.generate(**how))
