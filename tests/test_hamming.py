"""Counts of independent changes, against brute force, mpmath and scipy, at ordinary and at extreme chances."""

import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import poisson_binom

from tests.oracle.outcomes import threshold_law
from udm_text.hamming import (
    NEVER,
    count_table,
    draw_changes,
    log_leave_one_out,
    log_mean_inverse_count,
    log_prob_count,
)

mpmath.mp.dps = 60


def logs(chances):
    """log r and log(1 - r) of (B, L) chances, or of a list of rows."""
    r = torch.as_tensor(chances, dtype=torch.float64)
    return r.log().clamp(min=NEVER), (-r).log1p().clamp(min=NEVER)


def random_chances(batch, length, seed=0):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def subsets(length):
    return torch.tensor(list(product((False, True), repeat=length)))


def subset_chances(r):
    """(2^L,): the chance of each of `subsets`, by multiplying."""
    return torch.where(subsets(len(r)), r, 1 - r).prod(-1)


def exact_counts(log_change, log_stay):
    """P(N = k) in 60 digits from the same two logarithms, by polynomial multiplication."""
    law = [mpmath.mpf(1)]
    for change, stay in zip(log_change.tolist(), log_stay.tolist(), strict=True):
        p, q = mpmath.exp(change), mpmath.exp(stay)
        law = [q * a + p * b for a, b in zip([*law, 0], [0, *law], strict=True)]
    return law


# --- counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_count_table_equals_the_sum_over_all_subsets(length):
    r = random_chances(3, length)
    table = count_table(*logs(r), max_count=length + 1)
    assert table.shape == (3, length + 1, length + 2)
    for b in range(3):
        for prefix in range(length + 1):
            sizes = subsets(prefix).sum(-1) if prefix else torch.zeros(1, dtype=torch.int64)
            chances = subset_chances(r[b, :prefix]) if prefix else torch.ones(1, dtype=torch.float64)
            expected = torch.zeros(length + 2, dtype=torch.float64).index_add(0, sizes, chances)
            assert torch.allclose(table[b, prefix].exp(), expected, rtol=1e-12, atol=0)
            assert (table[b, prefix, prefix + 1 :] <= NEVER / 2).all()


def test_log_prob_count_is_the_poisson_binomial_law_of_scipy():
    r = random_chances(4, 30, seed=1)
    for t in range(31):
        counts = torch.tensor([t, 30 - t, 0, 30])
        expected = [math.log(poisson_binom.pmf(int(k), row.tolist())) for k, row in zip(counts, r, strict=True)]
        got = log_prob_count(*logs(r), counts)
        assert np.allclose(got.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("length", [30, 200])
def test_counts_are_right_in_every_tail_at_extreme_chances(length):
    """r from 1e-300 to 1 - 1e-16: relative error below 1e-12 although P(N = k) falls below 1e-10000."""
    generator = torch.Generator().manual_seed(length)
    exponents = -300 * torch.rand(length, generator=generator, dtype=torch.float64)
    change, stay = logs(10 ** exponents[None])
    sure = torch.arange(length)[None] % 3 == 0  # where the change is all but certain: log r = -1e-16
    change, stay = torch.where(sure, -1e-16, change), torch.where(sure, math.log(1e-16), stay)
    table = count_table(change, stay, length)
    assert torch.isfinite(table).all()
    exact = [float(mpmath.log(p)) for p in exact_counts(change[0], stay[0])]
    assert np.allclose(table[0, -1].numpy(), exact, rtol=1e-12, atol=1e-12)
    for t in (1, length // 3, length // 2, length - 1, length):
        ratio = log_leave_one_out(change, stay, torch.tensor([t]))
        assert torch.isfinite(ratio).all()
        assert abs(float((change + ratio).exp().sum()) - t) < 1e-9 * t
    assert torch.isfinite(log_mean_inverse_count(change, stay)).all()


# --- leave one out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 6])
def test_leave_one_out_equals_the_ratio_of_two_sums_over_subsets(length):
    r = random_chances(1, length, seed=2)
    sizes, chances = subsets(length).sum(-1), subset_chances(r[0])
    for t in range(1, length + 1):
        ratio = log_leave_one_out(*logs(r), torch.tensor([t])).exp()[0]
        for i in range(length):
            others = subset_chances(torch.cat((r[0, :i], r[0, i + 1 :]))) if length > 1 else torch.ones(1)
            without = others[(subsets(length - 1).sum(-1) if length > 1 else torch.zeros(1)) == t - 1].sum()
            assert abs(ratio[i] * chances[sizes == t].sum() / without - 1) < 1e-12


@pytest.mark.parametrize("length", [3, 17, 200])
def test_chances_to_be_among_the_t_sum_to_t(length):
    t = torch.arange(1, length + 1, max(1, length // 10))
    r = random_chances(len(t), length, seed=3) ** 3
    change, stay = logs(r)
    chances = (change + log_leave_one_out(change, stay, t)).exp()
    assert torch.allclose(chances.sum(1), t.double(), rtol=1e-11)
    assert (chances <= 1 + 1e-11).all()


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_mean_inverse_count_equals_the_sum_over_all_subsets(length):
    r = random_chances(1, length, seed=4)
    got = log_mean_inverse_count(*logs(r)).exp()[0]
    for i in range(length):
        rest = torch.cat((r[0, :i], r[0, i + 1 :]))
        sizes = subsets(length - 1).sum(-1).double() if length > 1 else torch.zeros(1).double()
        chances = subset_chances(rest) if length > 1 else torch.ones(1).double()
        assert abs(got[i] / (chances / (1 + sizes)).sum() - 1) < 1e-12


def test_mean_inverse_count_stays_exact_for_long_rows():
    change, stay = logs(random_chances(1, 200, seed=5))
    got = log_mean_inverse_count(change, stay)[0]
    for i in (0, 77, 199):
        law = exact_counts(*(torch.cat((x[0, :i], x[0, i + 1 :])) for x in (change, stay)))
        expected = mpmath.log(sum(p / (1 + k) for k, p in enumerate(law)))
        assert abs(float(got[i]) - float(expected)) < 1e-11


def test_positions_that_cannot_change_leave_the_others_as_they_are():
    """Ragged rows: what is appended or interspersed with log r = NEVER does not count."""
    r = random_chances(1, 5, seed=6)
    change, stay = logs(r)
    wide_change, wide_stay = torch.full((1, 9), NEVER).double(), torch.zeros(1, 9).double()
    inside = torch.tensor([0, 2, 3, 6, 7])
    wide_change[0, inside], wide_stay[0, inside] = change[0], stay[0]
    for t in range(1, 6):
        counts = torch.tensor([t])
        assert torch.allclose(log_prob_count(wide_change, wide_stay, counts), log_prob_count(change, stay, counts))
        wide = log_leave_one_out(wide_change, wide_stay, counts)
        assert torch.isfinite(wide).all()
        assert torch.allclose(wide[:, inside], log_leave_one_out(change, stay, counts), rtol=0, atol=1e-12)
        assert ((wide_change + wide).exp().sum() - t).abs() < 1e-11
        u = random_chances(1, 9, seed=7)
        drawn = draw_changes(wide_change, wide_stay, counts, u)
        assert torch.equal(drawn[:, inside], draw_changes(change, stay, counts, u[:, inside]))
        assert int(drawn.sum()) == t
    wide = log_mean_inverse_count(wide_change, wide_stay)
    assert torch.allclose(wide[:, inside], log_mean_inverse_count(change, stay), rtol=0, atol=1e-12)


def test_the_largest_count_of_the_batch_does_not_change_a_row():
    change, stay = logs(random_chances(4, 12, seed=8))
    t = torch.tensor([1, 12, 5, 3])
    u = random_chances(4, 12, seed=9)
    for row in range(4):
        one = slice(row, row + 1)
        together = log_leave_one_out(change, stay, t)[one]
        assert torch.allclose(together, log_leave_one_out(change[one], stay[one], t[one]), rtol=0, atol=1e-12)
        alone = draw_changes(change[one], stay[one], t[one], u[one])
        assert torch.equal(draw_changes(change, stay, t, u)[one], alone)


# --- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda c, s: count_table(c, s, 3)[:, -1, 1:],
        lambda c, s: log_prob_count(c, s, torch.tensor([1, 3])),
        lambda c, s: log_leave_one_out(c, s, torch.tensor([2, 4])),
        log_mean_inverse_count,
    ],
    ids=["count_table", "log_prob_count", "log_leave_one_out", "log_mean_inverse_count"],
)
def test_gradients_equal_finite_differences(function):
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    log_sigmoid = torch.nn.functional.logsigmoid
    assert torch.autograd.gradcheck(lambda x: function(log_sigmoid(x), log_sigmoid(-x)), (logits,))


def test_gradients_stay_finite_at_extreme_chances_and_where_nothing_can_change():
    logits = torch.tensor([[-700.0, 700.0, 0.0, 36.0, -36.0, 1.0]], dtype=torch.float64, requires_grad=True)
    never = torch.tensor([[False, False, False, False, False, True]])
    change = torch.nn.functional.logsigmoid(logits).masked_fill(never, NEVER)
    stay = torch.nn.functional.logsigmoid(-logits).masked_fill(never, 0.0)
    for t in range(1, 6):
        total = log_leave_one_out(change, stay, torch.tensor([t])) + log_mean_inverse_count(change, stay)
        (gradient,) = torch.autograd.grad(total.sum(), logits, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert gradient[0, -1] == 0


# --- draws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_draw_changes_has_exactly_the_conditional_law(length):
    """P(subset | N = t) for every subset, the thresholds measured through the code."""
    r = random_chances(1, length, seed=10)
    change, stay = logs(r)
    for t in sorted({0, 1, length - 1, length}):

        def decide(u, t=t):
            rows = len(u)
            return draw_changes(change.expand(rows, -1), stay.expand(rows, -1), torch.full((rows,), t), u)

        sizes, chances = subsets(length).sum(-1), subset_chances(r[0])
        expected = torch.where(sizes == t, chances, 0) / chances[sizes == t].sum()
        got = torch.zeros(2**length, dtype=torch.float64)
        for u, weight in threshold_law(decide, length):
            got[(subsets(length) == decide(u[None])).all(1)] += weight
        assert (got - expected).abs().max() < 1e-12


def test_draw_changes_always_draws_exactly_t():
    """At every count of rows of 40, chances from 1e-300 to 1 - 1e-16, uniforms at the edges of (0, 1)."""
    generator = torch.Generator().manual_seed(0)
    r = 10 ** (-300 * torch.rand(41, 40, generator=generator, dtype=torch.float64) ** 4)
    r[:, ::7] = 1 - 2.0**-53
    r[:, 3::7] = 0.5
    t = torch.arange(41)
    for u in (
        2.0**-53,
        0.5,
        1 - 2.0**-53,
        torch.rand(41, 40, generator=generator).double().clamp(1e-9, 1 - 1e-9),
    ):
        drawn = draw_changes(*logs(r), t, torch.as_tensor(u, dtype=torch.float64).expand(41, 40))
        assert torch.equal(drawn.sum(1), t)


def test_draw_changes_takes_the_certain_and_never_the_impossible():
    change, stay = logs([[1.0, 0.0, 0.5, 1.0, 0.5, 0.0]])
    drawn = torch.cat([draw_changes(change, stay, torch.tensor([3]), u[None]) for u in random_chances(50, 6)])
    assert drawn[:, [0, 3]].all() and not drawn[:, [1, 5]].any()
    assert drawn[:, 2].any() and drawn[:, 4].any() and (drawn.sum(1) == 3).all()


def test_draw_changes_refuses_more_changes_than_positions_can_make():
    change, stay = logs([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"\bt\b"):
        draw_changes(change, stay, torch.tensor([3, 1]), torch.full((2, 3), 0.5).double())


def test_no_argument_is_modified_in_place():
    change, stay = logs(random_chances(2, 5))
    t, u = torch.tensor([2, 4]), random_chances(2, 5, seed=1)
    before = [x.clone() for x in (change, stay, t, u)]
    count_table(change, stay, 3)
    log_prob_count(change, stay, t)
    log_leave_one_out(change, stay, t)
    log_mean_inverse_count(change, stay)
    draw_changes(change, stay, t, u)
    assert all(torch.equal(a, b) for a, b in zip((change, stay, t, u), before, strict=True))
