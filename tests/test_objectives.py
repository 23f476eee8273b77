"""The bounds are bounds, for every sequence of enumerated worlds and for any predictor, and tight where they say so."""

from itertools import combinations
from math import comb, log

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.oracle.chains import (
    filled,
    kernel_sampler_law,
    log_of,
    mask_sampler_law,
    mask_term_means,
    mask_transitions,
    substitute_term_means,
)
from tests.oracle.outcomes import MASK, Board, Script, forward_outcomes
from tests.oracle.world import (
    entropy,
    index_of,
    make_world,
    one_token_step,
    random_predictor,
    total_variation,
)
from udm_text.hamming import NEVER
from udm_text.kernels import KERNELS
from udm_text.objectives import (
    LOSS_WEIGHTINGS,
    TIME_LAWS,
    changes,
    mask_terms,
    row_losses,
    stratified_counts,
    substitute_terms,
    training_weights,
)
from udm_text.processes import MaskProcess, SubstituteProcess

EXACT = 1e-12
WORLDS = [(2, 3), (3, 3), (4, 2), (5, 2), (2, 4)]
PREDICTORS = ["exact", "wrong", "wrong and sure"]


def predictor_of(world, kind, masks):
    """A function t -> (number of xt, l, V)."""
    if kind == "exact":
        return world.mask_predictor if masks else world.substitute_predictor
    states = len(world.masked_sequences if masks else world.sequences)
    tables = {}
    for t in range(1, world.length + 1):
        p = random_predictor(states, world.length, world.num_tokens, seed=t) ** (4 if "sure" in kind else 1)
        tables[t] = p / p.sum(-1, keepdims=True)
    return tables.__getitem__


# --- mask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_mask_sampling_one_token_a_step_reproduces_the_data_law(num_tokens, length, correlated, seed):
    world, board = make_world(num_tokens, length, seed, correlated), Board(num_tokens, length)
    law = mask_sampler_law(MaskProcess(MASK), board, world.mask_predictor, list(range(length, -1, -1)))
    assert total_variation(law, world.data) < EXACT


@pytest.mark.parametrize("counts", [[3, 1, 0], [3, 0]])
def test_mask_sampling_several_tokens_a_step_does_not(counts):
    world, board = make_world(3, 3), Board(3, 3)
    law = mask_sampler_law(MaskProcess(MASK), board, world.mask_predictor, counts)
    assert total_variation(law, world.data) > 0.01


@pytest.mark.parametrize("kind", PREDICTORS)
@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_mask_bound_holds_for_every_sequence(num_tokens, length, kind):
    world, board = make_world(num_tokens, length), Board(num_tokens, length)
    predictor = predictor_of(world, kind, masks=True)
    law = mask_sampler_law(MaskProcess(MASK), board, predictor, list(range(length, -1, -1)))
    assert abs(law.sum() - 1) < EXACT
    bound = mask_term_means(world, predictor).mean(1)  # t uniform: the mean of the terms is the sum over t
    gap = bound + np.log(law)
    assert gap.min() > -EXACT
    if kind != "exact":
        assert gap.max() > 0.01


@pytest.mark.parametrize("counts", [[4, 2, 0], [4, 3, 1, 0], [4, 1, 0], [4, 0]])
@pytest.mark.parametrize("kind", PREDICTORS)
def test_mask_bound_of_a_schedule_holds_for_every_sequence(kind, counts):
    """k_j / t_j times the sum of CE: the steps weigh (t_j - t_{j+1}) terms of the uniform estimate."""
    world, board = make_world(2, 4), Board(2, 4)
    predictor = predictor_of(world, kind, masks=True)
    law = mask_sampler_law(MaskProcess(MASK), board, predictor, counts)
    means = mask_term_means(world, predictor) / world.length
    bound = sum((t - s) * means[:, t - 1] for t, s in zip(counts[:-1], counts[1:], strict=True))
    assert (bound + np.log(law)).min() > -EXACT


@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_mask_bound_of_the_exact_predictor_is_the_entropy(num_tokens, length):
    world = make_world(num_tokens, length)
    bound = mask_term_means(world, world.mask_predictor).mean(1)
    assert abs(world.data @ bound - entropy(world.data)) < EXACT


@pytest.mark.parametrize("kind", PREDICTORS)
def test_mask_terms_average_to_the_sum_over_counts_and_subsets(kind):
    """NELBO = sum_t (1/t) E_S sum_{i in S} CE_i, written out."""
    world = make_world(3, 3)
    predictor = predictor_of(world, kind, masks=True)
    got = mask_term_means(world, predictor).mean(1)
    for number, x0 in enumerate(world.sequences):
        total = 0.0
        for t in range(1, 4):
            for corrupted in combinations(range(3), t):
                xt = x0.copy()
                xt[list(corrupted)] = 3
                p = predictor(t)[index_of(xt, 4)]
                total -= sum(log(p[i, x0[i]]) for i in corrupted) / t / comb(3, t)
        assert abs(got[number] - total) < EXACT


@pytest.mark.parametrize("kind", PREDICTORS)
def test_reusing_the_noise_is_worth_the_factor_of_the_baseline_weights(kind):
    """mathematics.md 2.1: the baseline step (churn 1) costs (l - t + 1)/l times the sum of CE where the improved step
    costs 1/t of it: a bound for the baseline sampler, looser by t (l - t + 1)/l at count t."""
    world, board = make_world(3, 3), Board(3, 3)
    predictor, process, length = predictor_of(world, kind, masks=True), MaskProcess(MASK), 3
    improved = mask_term_means(world, predictor) / length  # (1/t) E sum of CE at every t
    steps = {}
    for churn in (0.0, 1.0):
        columns = []
        for t in range(1, length + 1):
            p = mask_transitions(process, board, predictor(t), t, t - 1, churn)
            forward, closer = world.mask_forward(t), world.mask_forward(t - 1)
            if churn:  # cross-entropy of q(xs | x0), which has forgotten xt, less its entropy
                cost = [np.array([relative_entropy(closer[n], p[x]) for x in range(len(p))]) for n in range(27)]
            else:  # the same of q(xs | xt, x0), one masked position put back
                back = [mask_posterior(world, n, t) for n in range(27)]
                cost = [np.array([relative_entropy(b[x], p[x]) for x in range(len(p))]) for b in back]
            columns.append([forward[n] @ np.where(forward[n] > 0, cost[n], 0) for n in range(27)])
        steps[churn] = np.array(columns).T
    t = np.arange(1, length + 1)
    assert np.abs(steps[0.0] - improved).max() < EXACT
    assert np.abs(steps[1.0] - improved * t * (length - t + 1) / length).max() < EXACT
    law = mask_sampler_law(process, board, predictor, [3, 2, 1, 0], churn=1.0)
    assert (steps[1.0].sum(1) + np.log(law)).min() > -EXACT


def relative_entropy(q, p):
    """KL(q || p) over the support of q; where p is zero there, infinite."""
    support = q > 0
    if (p[support] == 0).any():
        return np.inf
    return float((q[support] * np.log(q[support] / p[support])).sum())


def mask_posterior(world, number, t):
    """q(x_{t-1} | x_t, x0) for one x0: one uniformly chosen [MASK] becomes its token."""
    states, num_tokens = world.masked_sequences, world.num_tokens
    matrix = np.zeros((len(states), len(states)))
    for state, xt in enumerate(states):
        for i in np.flatnonzero(xt == num_tokens):
            xs = xt.copy()
            xs[i] = world.sequences[number][i]
            matrix[state, index_of(xs, num_tokens + 1)] += 1 / t
    return matrix


# --- substitute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTORS)
@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
@pytest.mark.parametrize("name", KERNELS)
def test_substitute_bound_holds_for_every_sequence(name, num_tokens, length, kind):
    world = make_world(num_tokens, length)
    predictor = predictor_of(world, kind, masks=False)
    prior = np.full(len(world.sequences), 1 / len(world.sequences))
    law = kernel_sampler_law(name, predictor, prior, length)
    assert abs(law.sum() - 1) < EXACT
    bound = substitute_term_means(name, world, predictor).mean(1)
    gap = bound + np.log(law)
    assert gap.min() > -EXACT
    if kind == "exact":
        print(f"{name} V {num_tokens} l {length}: bound {world.data @ bound:.4f}, entropy {entropy(world.data):.4f}")
        assert world.data @ bound > entropy(world.data)


@pytest.mark.parametrize("kind", PREDICTORS)
@pytest.mark.parametrize("name", KERNELS)
def test_substitute_terms_average_to_the_sum_of_the_steps(name, kind):
    """KL(q(x_l|x0) || uniform) + sum_t E[log q(x_{t-1}|xt,x0) - log p(x_{t-1}|xt)], by enumerating every x0_hat."""
    world, length = make_world(3, 3), 3
    predictor = predictor_of(world, kind, masks=False)
    got = substitute_term_means(name, world, predictor).mean(1)
    for number in range(0, 27, 5):
        x0 = world.sequences[number]
        total = relative_entropy(world.substitute_forward(length)[number], np.full(27, 1 / 27))
        for t in range(1, length + 1):
            q, p = world.substitute_forward(t)[number], predictor(t)
            for state in np.flatnonzero(q):
                xt = world.sequences[state]
                step = one_token_step(name, p[state], xt, t, world.sequences)
                for i in np.flatnonzero(xt != x0):
                    xs = xt.copy()
                    xs[i] = x0[i]
                    total += q[state] / t * (log(1 / t) - log(step[index_of(xs, 3)]))
        assert abs(got[number] - total) < 1e-11


@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_site_is_tighter_for_a_predictor_that_sees_t_and_hamming_for_one_that_does_not(num_tokens, length):
    """Blind to t (the posterior at a uniform t) a predictor is better off with `hamming`, seeing t with `site`."""
    world = make_world(num_tokens, length)
    mixture = sum(world.substitute_forward(t) for t in range(1, length + 1)) / length
    blind = world.marginals(world.posterior(mixture))
    bound = {
        (name, sees): world.data @ substitute_term_means(name, world, predictor).mean(1) / length
        for name in ("site", "hamming")
        for sees, predictor in (("t", world.substitute_predictor), ("nothing", lambda t: blind))
    }
    print(f"V {num_tokens} l {length}", {key: f"{value:.4f}" for key, value in bound.items()})
    assert bound["site", "t"] < bound["hamming", "t"] and bound["site", "t"] < bound["site", "nothing"]
    assert bound["hamming", "nothing"] < bound["site", "nothing"]


@pytest.mark.parametrize("name", KERNELS)
def test_substitute_terms_have_the_gradient_of_finite_differences(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x0, xt = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([[0, 2, 1, 0], [2, 0, 0, 1]])
    editable = torch.tensor([[True] * 4, [False, True, True, True]])

    def terms(logits):
        log_p = logits.log_softmax(-1)
        target = log_p.gather(2, x0[..., None])[..., 0]
        counts = editable.sum(1), (x0 != xt).sum(1), 3
        return substitute_terms(KERNELS[name], changes(log_p, xt, editable), target, x0 != xt, *counts)

    assert torch.autograd.gradcheck(terms, (logits,))


@pytest.mark.parametrize("name", KERNELS)
def test_a_loss_and_its_gradient_stay_finite_under_a_very_sure_predictor(name):
    """Logits 100 apart, a forbidden token at -inf, at right and at wrong places."""
    logits = torch.tensor([[[100.0, 0, 0, 0], [0, 100, 0, 0], [0, 0, 100, 0], [0.1, 0.2, 0.3, 0]]], dtype=torch.float64)
    logits.requires_grad_(True)
    forbidden = torch.tensor([False, False, False, True])
    log_p = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
    x0, xt = torch.tensor([[0, 2, 2, 1]]), torch.tensor([[0, 1, 0, 2]])
    change = changes(log_p, xt, torch.ones_like(xt, dtype=torch.bool))
    target = log_p.gather(2, x0[..., None])[..., 0]
    loss = substitute_terms(KERNELS[name], change, target, x0 != xt, torch.tensor([4]), torch.tensor([3]), 3)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and gradient.abs().max() > 0


# --- changes ---------------------------------------------------------------------------------------------------


def test_changes_are_the_mass_on_the_other_tokens():
    p = torch.tensor([[[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.4, 0.6], [0.1, 0.2, 0.7]]], dtype=torch.float64)
    xt, editable = torch.tensor([[1, 0, 0, 2]]), torch.tensor([[True, True, True, False]])
    change = changes(p.log(), xt, editable)
    assert torch.allclose(change.log_change.exp(), torch.tensor([[0.5, 0.0, 1.0, 0.0]]).double())
    assert torch.allclose(change.log_stay.exp(), torch.tensor([[0.5, 1.0, 0.0, 1.0]]).double())
    assert change.log_change[0, [1, 3]].tolist() == [NEVER, NEVER] and change.log_stay[0, 2] == NEVER
    assert change.tokens is None


def test_a_chance_to_change_below_float64_resolution_is_kept():
    """1 - p(xt) would be zero; the sum over the other tokens is not."""
    log_p = torch.tensor([[[0.0, -50.0, -60.0]]], dtype=torch.float64).log_softmax(-1)
    change = changes(log_p, torch.tensor([[0]]), torch.tensor([[True]]))
    assert abs(float(change.log_change) - float(np.logaddexp(-50, -60))) < 1e-12


# --- rows in a batch -------------------------------------------------------------------------------------------


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 7, 1, 5])
    editable = torch.arange(7) < lengths[:, None]
    x0 = torch.randint(5, (4, 7), generator=generator)
    t = torch.tensor([2, 7, 1, 3])
    log_p = torch.randn(4, 7, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    return lengths, editable, x0, t, log_p


def test_mask_terms_of_a_row_do_not_depend_on_its_neighbours():
    lengths, editable, x0, t, log_p = ragged()
    corrupted = (torch.arange(7) < t[:, None]) & editable
    ce = -log_p.gather(2, x0[..., None])[..., 0]
    together = mask_terms(ce[corrupted], corrupted.nonzero()[:, 0], lengths, t)
    for row in range(4):
        expected = lengths[row] / t[row].double() * ce[row][corrupted[row]].sum()
        assert abs(together[row] - expected) < EXACT


def test_a_row_without_corruption_costs_nothing():
    row = torch.tensor([1])
    terms = mask_terms(torch.tensor([1.5]).double(), row, torch.tensor([2, 2]), torch.tensor([0, 1]))
    assert terms.tolist() == [0.0, 3.0]


def test_mask_terms_scale_in_the_precision_of_the_cross_entropy():
    rows = torch.zeros(3, dtype=torch.int64)
    terms = mask_terms(torch.ones(3).double(), rows, torch.tensor([10]), torch.tensor([3]))
    assert abs(float(terms) - 10) < 1e-14


@pytest.mark.parametrize("name", KERNELS)
def test_substitute_terms_of_a_row_do_not_depend_on_its_neighbours_or_on_padding(name):
    lengths, editable, x0, t, log_p = ragged()
    corrupted = (torch.arange(7) < t[:, None]) & editable
    xt = torch.where(corrupted, (x0 + 1) % 5, x0)

    def terms(rows, width):
        at = rows, slice(0, width)
        target = log_p[at].gather(2, x0[at][..., None])[..., 0]
        change = changes(log_p[at], xt[at], editable[at])
        return substitute_terms(KERNELS[name], change, target, corrupted[at], lengths[rows], t[rows], 5)

    together = terms(slice(None), 7)
    for row in range(4):
        assert abs(together[row] - terms(slice(row, row + 1), int(lengths[row]))[0]) < 1e-11


def test_no_argument_is_modified_in_place():
    lengths, editable, x0, t, log_p = ragged()
    corrupted = (torch.arange(7) < t[:, None]) & editable
    ce, index = torch.rand(int(corrupted.sum())).double(), torch.arange(4)
    change = changes(log_p, x0, editable)
    given = (lengths, editable, x0, t, log_p, corrupted, ce, index, *change[:2])
    before = [x.clone() for x in given]
    mask_terms(ce, corrupted.nonzero()[:, 0], lengths, t)
    changes(log_p, x0, editable)
    stratified_counts(lengths, index, 4, 0, 0)
    for kernel in KERNELS.values():
        substitute_terms(kernel, change, log_p[..., 0], corrupted, lengths, t, 5)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


# --- the training loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("masks", "kernel"), [(True, "site"), *((False, name) for name in KERNELS)])
def test_row_losses_average_to_the_bound(masks, kernel):
    """Every outcome of the corruption, on a board with a prompt and forbidden tokens. float32 inside: 1e-5."""
    world, board = make_world(3, 3), Board(3, 3, (1,))
    predictor = predictor_of(world, "wrong", masks)
    process = MaskProcess(MASK) if masks else SubstituteProcess(board.allowed)
    forbidden = torch.ones(10, dtype=torch.bool).index_fill(0, board.allowed, False)
    expected = mask_term_means(world, predictor) if masks else substitute_term_means(kernel, world, predictor)
    calls, weights = forward_outcomes(board, shifts=not masks)
    for number in (0, 11, 23):
        row = board.rows(torch.from_numpy(world.sequences[number])[None]).expand(len(weights), -1)
        for t in (1, 2, 3):

            def predict(input_ids, t, num_editable, positions):
                assert (num_editable == 3).all() and not (positions[1] == 1).any()
                log_p = log_of(predictor(int(t[0])))[board.index(input_ids, masks)].float()
                logits = torch.full((*input_ids.shape, 10), 7.0)  # forbidden tokens look good and must not matter
                logits[:, board.open] = logits[:, board.open].index_copy(2, board.allowed, log_p)
                return logits[positions]

            losses = row_losses(
                predict,
                process,
                row,
                board.editable(len(row)),
                filled(t, row),
                Script(*calls),
                forbidden,
                kernel=kernel,
            )
            assert losses.shape == (len(row),)
            assert abs(float(losses.double() @ weights) - expected[number, t - 1]) < 1e-5 * world.length


# --- counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 7, 64])
def test_every_stratum_is_drawn_exactly_once(total):
    """With l = total the count is the number of the stratum."""
    for step in range(20):
        t = stratified_counts(torch.full((total,), total), torch.arange(total), total, seed=3, step=step)
        assert t.sort().values.tolist() == list(range(1, total + 1))


def test_counts_do_not_depend_on_how_the_batch_is_split():
    lengths = torch.randint(1, 50, (24,), generator=torch.Generator().manual_seed(0))
    index = torch.arange(24)
    whole = stratified_counts(lengths, index, 24, seed=1, step=9)
    for size in (1, 5, 8):
        pieces = [
            stratified_counts(a, b, 24, 1, 9) for a, b in zip(lengths.split(size), index.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(pieces), whole)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(stratified_counts(lengths[shuffled], index[shuffled], 24, 1, 9), whole[shuffled])


def test_counts_of_another_step_or_seed_differ():
    def counts(seed, step):
        return stratified_counts(torch.full((32,), 1000), torch.arange(32), 32, seed, step)

    assert torch.equal(counts(0, 0), counts(0, 0))
    assert not torch.equal(counts(0, 0), counts(0, 1)) and not torch.equal(counts(0, 0), counts(1, 0))


def test_counts_are_uniform_on_one_to_l_for_every_row_of_a_ragged_batch():
    lengths, index = torch.tensor([1, 3, 10, 7]), torch.arange(4)
    counts = torch.stack([stratified_counts(lengths, index, 4, seed=5, step=step) for step in range(1500)])
    for row, length in enumerate(lengths.tolist()):
        seen = torch.bincount(counts[:, row], minlength=length + 1)
        assert len(seen) == length + 1 and seen[0] == 0
        assert length == 1 or chisquare(seen[1:].numpy()).pvalue > 1e-3


def test_counts_stay_in_one_to_l_where_the_uniform_rounds_up():
    t = stratified_counts(torch.full((4096,), 3), torch.arange(4096), 4096, seed=0, step=0)
    assert (t >= 1).all() and (t <= 3).all()
    assert torch.bincount(t)[1:].tolist() in ([1365, 1366, 1365], [1366, 1365, 1365], [1365, 1365, 1366])


SHARE_LAWS = {  # the distribution functions, written down apart from what draws by them
    "uniform": lambda x: x,
    "bell": lambda x: 3 * x**2 - 2 * x**3,
    "clipped": lambda x: np.clip((x - 0.1) / 0.9, 0, 1),
}


@pytest.mark.parametrize("law", TIME_LAWS)
def test_counts_follow_their_law_stratum_by_stratum(law):
    """Of l positions t is the share times l, rounded up: P(t) is the law's mass between (t - 1) / l and t / l."""
    length, total = 12, 4000
    t = stratified_counts(torch.full((total,), length), torch.arange(total), total, seed=2, step=3, law=law)
    mass = np.diff(SHARE_LAWS[law](np.arange(length + 1) / length))
    seen = torch.bincount(t, minlength=length + 1)[1:].numpy()
    assert np.abs(seen - mass * total).max() <= 1.5  # each stratum once: no count is further off than its two ends
    assert sum(seen) == total


@pytest.mark.parametrize("law", TIME_LAWS)
@pytest.mark.parametrize("weighting", LOSS_WEIGHTINGS)
def test_weights_of_training_are_powers_of_the_share_with_mean_one(weighting, law):
    u = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    share, power = TIME_LAWS[law](u), {"bound": 0.0, "sqrt": 0.5, "mean": 1.0}[weighting]
    lengths = torch.full(share.shape, 10**9)
    weights = training_weights((share * 10**9).round().long(), lengths, weighting, law)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(weights / weights[0], (share / share[0]) ** power, rtol=1e-4, atol=0)
