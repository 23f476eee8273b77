"""The three reverse kernels have the chances they claim, draw with them, and `site` is exact."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tests.oracle.chains import filled, forward_law, kernel_sampler_law, kernel_transitions, log_of
from tests.oracle.outcomes import Board, Script, accumulate, cells, reverse_outcomes, threshold_law
from tests.oracle.world import (
    guess_law,
    make_world,
    one_token_step,
    random_predictor,
    total_variation,
)
from udm_text.core import Prediction, denoise, reverse_step
from udm_text.decoding import draw
from udm_text.hamming import NEVER
from udm_text.kernels import KERNELS, Change
from udm_text.objectives import changes
from udm_text.predictors import make_changes
from udm_text.processes import SubstituteProcess
from udm_text.randomness import RowRandom

EXACT = 1e-12
WORLDS = [(2, 3), (3, 3), (4, 2), (5, 2), (3, 4)]
MANY = 200_000


def sharp_predictor(num_states, length, num_tokens):
    """Chances from 1e-13 to 1 - 1e-13."""
    p = random_predictor(num_states, length, num_tokens, seed=3) ** 6 + 1e-13
    return p / p.sum(-1, keepdims=True)


def passes_chi_square(counts, expected):
    """Observed counts against expected ones, cells of an expectation below 5 taken together."""
    rare = expected < 5
    assert counts[expected == 0].sum() == 0
    observed, mean = (
        np.append(counts[~rare], counts[rare].sum()),
        np.append(expected[~rare], expected[rare].sum()),
    )
    observed, mean = observed[mean > 0], mean[mean > 0]
    return chi2.sf(((observed - mean) ** 2 / mean).sum(), len(mean) - 1) > 1e-3


# --- chances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda n, le, v: random_predictor(n, le, v, 1), sharp_predictor], ids=["wild", "sharp"]
)
@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
@pytest.mark.parametrize("name", KERNELS)
def test_log_rate_gives_the_chances_of_enumerating_every_x0_hat(name, num_tokens, length, make):
    sequences = make_world(num_tokens, length).sequences
    p = make(len(sequences), length, num_tokens)
    for t in range(1, length + 1):
        got = kernel_transitions(name, p, t)
        assert np.abs(got.sum(1) - 1).max() < EXACT
        for number in range(0, len(sequences), 1 + len(sequences) // 12):
            expected = one_token_step(name, p[number], sequences[number], t, sequences)
            assert np.abs(got[number] - expected).max() < EXACT


@pytest.mark.parametrize("name", ["hamming", "free"])
def test_draw_and_step_have_exactly_the_chances_of_log_rate(name):
    """Every outcome of the kernel's uniforms, of the tokens and of the step's noise, through the real code."""
    board, sequences = Board(3, 3, (1,)), make_world(3, 3).sequences
    process, kernel = SubstituteProcess(board.allowed), KERNELS[name]
    p = random_predictor(len(sequences), 3, 3, seed=2)
    noise, noise_weights = reverse_outcomes(board, 0.0, shifts=True)
    picks = (cells(2, 3) * 2).long()  # which of the two other tokens, at each position
    for t in (1, 2, 3):
        expected = kernel_transitions(name, p, t)
        for number in (5, 13, 25):
            xt = torch.from_numpy(sequences[number])
            change, others, chances = change_of(board, p[number], xt)

            def guess_of(uniforms, digits, change=change, xt=xt, t=t):
                """The kernel's guess for a batch of copies of xt, its uniforms and tokens prescribed."""
                size = len(uniforms)
                rows = board.rows(xt.expand(size, -1))
                wide = Change(*(x.expand(size, -1) for x in change[:2]), board.rows(digits))
                counts = torch.full((size,), t), torch.full((size,), t - 1)
                script = Script(board.spread(uniforms))
                return rows, counts, kernel.draw(wide, rows, *counts, 0.0, script, False)

            def decide(uniforms, guess_of=guess_of, others=others):
                rows, _, prediction = guess_of(uniforms, others[:, 0].expand(len(uniforms), -1))
                return (prediction.x0 != rows)[:, board.open]

            leaves = threshold_law(decide, 3)
            leaf, pick, outcome = torch.cartesian_prod(
                torch.arange(len(leaves)), torch.arange(len(picks)), torch.arange(len(noise_weights))
            ).T
            uniforms = torch.stack([u for u, _ in leaves])[leaf]
            where = torch.arange(3), picks[pick]
            rows, counts, prediction = guess_of(uniforms, others[where])
            t_used, s_used = (n if g is None else g for n, g in zip(counts, (prediction.t, prediction.s), strict=True))
            script, editable = Script(*(call[outcome] for call in noise)), board.editable(len(rows))
            xs = reverse_step(process, rows, prediction.x0, t_used, s_used, editable=editable, random=script)
            weights = torch.tensor([w for _, w in leaves], dtype=torch.float64)[leaf]
            weights = weights * chances[where].prod(-1) * noise_weights[outcome]
            law = accumulate(board.index(xs, masks=False), weights, len(sequences))
            assert np.abs(law.numpy() - expected[number]).max() < EXACT


def change_of(board, p, xt):
    """What a predictor p: (l, V) says of one row of digits xt: (l,) on the board, forbidden tokens at -inf.

    Returns `changes`, the other digits (l, V - 1) at each position, and p_i(v | v != xt_i) of them.
    """
    log_p = torch.full((1, board.width, 10), -torch.inf, dtype=torch.float64)
    log_p[0, :, 3] = 0.0  # what the predictor says of a prompt must not matter
    log_p[0, board.open] = torch.full_like(log_p[0, board.open], -torch.inf).index_copy(1, board.allowed, log_of(p))
    others = torch.tensor([[v for v in range(board.num_tokens) if v != x] for x in xt.tolist()])
    chances = torch.from_numpy(p).gather(1, others)
    return changes(log_p, board.rows(xt[None]), board.editable(1)), others, chances / chances.sum(1, keepdim=True)


def draw_tokens(log_p, xt, uniforms):
    """(B, L): a token from p_i(v | v != xt_i)."""
    others = log_p.scatter(-1, xt[..., None], -torch.inf)
    return draw(others.log_softmax(-1), uniforms)


def table_predictor(name, tables, random, churn=0.0):
    """predict_x0 that looks p up in `tables`, {t: (V^l, l, V)}, for tokens 0..V-1."""

    def predict_x0(xt, t, s):
        log_p = log_of(tables[int(t[0])])
        num_tokens = log_p.shape[-1]
        place = num_tokens ** torch.arange(xt.shape[1]).flip(0)
        log_p = log_p[(xt * place).sum(-1)]
        change = changes(log_p, xt, torch.ones_like(xt, dtype=torch.bool))
        change = change._replace(tokens=draw_tokens(log_p, xt, random.uniform(xt.shape[1])))
        return KERNELS[name].draw(change, xt, t, s, churn, random, False)

    return predict_x0


@pytest.mark.parametrize("name", KERNELS)
def test_two_hundred_thousand_draws_have_the_chances_of_log_rate(name):
    """One step of `denoise` with the real randomness, for every xt at once."""
    sequences = make_world(3, 3).sequences
    p = random_predictor(len(sequences), 3, 3, seed=4)
    numbers = torch.arange(MANY) % len(sequences)
    random = RowRandom(0, torch.arange(MANY))
    xt = torch.from_numpy(sequences)[numbers]
    process = SubstituteProcess(torch.arange(3))
    xs = denoise(process, table_predictor(name, {2: p}, random), xt, [filled(2, xt), filled(1, xt)], random=random)
    pairs = numbers * len(sequences) + (xs * torch.tensor([9, 3, 1])).sum(-1)
    counts = torch.bincount(pairs, minlength=len(sequences) ** 2).double().numpy()
    starts = torch.bincount(numbers).double().numpy()
    assert passes_chi_square(counts, (kernel_transitions(name, p, 2) * starts[:, None]).ravel())


def test_site_draws_several_positions_one_after_another_without_replacement():
    """k rings of the race: P(i then j) = r_i / R * r_j / (R - r_i)."""
    r = torch.tensor([0.9, 0.05, 0.3, 0.6], dtype=torch.float64)
    expected = np.zeros(16)
    for i in range(4):
        for j in range(4):
            if i != j:
                expected[2**i + 2**j] += float(r[i] / r.sum() * r[j] / (r.sum() - r[i]))
    xt = torch.zeros(MANY, 4, dtype=torch.int64)
    change = Change(r.log().expand(MANY, -1), (-r).log1p().expand(MANY, -1), xt + 1)
    prediction = KERNELS["site"].draw(
        change, xt, filled(4, xt), filled(2, xt), 0.0, RowRandom(1, torch.arange(MANY)), False
    )
    counts = torch.bincount((prediction.x0 * 2 ** torch.arange(4)).sum(-1), minlength=16).double().numpy()
    assert passes_chi_square(counts, expected * MANY)


# --- exactness of the samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_site_reproduces_the_data_law(num_tokens, length, correlated, seed):
    world = make_world(num_tokens, length, seed, correlated)
    start = world.data @ world.substitute_forward(length)
    law = kernel_sampler_law("site", world.substitute_predictor, start, length)
    assert total_variation(law, world.data) < EXACT


@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_the_exact_predictor_expects_t_changes(num_tokens, length):
    """R = sum of r_i = t, which is why `site` needs a predictor that knows t."""
    world = make_world(num_tokens, length)
    xt = torch.from_numpy(world.sequences)
    for t in range(1, length + 1):
        change = changes(log_of(world.substitute_predictor(t)), xt, torch.ones_like(xt, dtype=torch.bool))
        assert (change.log_change.exp().sum(1) - t).abs().max() < EXACT


def baseline_law(world, factorised):
    """The sampler that throws xt away: x0_hat from the exact posterior, or from its marginals; then churn 1."""
    board = Board(world.num_tokens, world.length)
    process, x0 = SubstituteProcess(board.allowed), torch.from_numpy(world.sequences)
    law = world.data @ world.substitute_forward(world.length)
    for t in range(world.length, 0, -1):
        forward = torch.stack([forward_law(process, board, row, t - 1, masks=False) for row in x0]).numpy()
        prediction = world.posterior(world.substitute_forward(t))
        if factorised:
            prediction = np.stack([guess_law(p, world.sequences) for p in world.marginals(prediction)])
        law = law @ prediction @ forward
    return law


@pytest.mark.parametrize(("num_tokens", "length"), [(3, 3), (5, 2), (2, 4)])
def test_hamming_and_the_factorised_baseline_do_not_reproduce_it_and_the_baseline_is_worse(num_tokens, length):
    world = make_world(num_tokens, length)
    start = world.data @ world.substitute_forward(length)
    laws = {name: kernel_sampler_law(name, world.substitute_predictor, start, length) for name in KERNELS}
    far = {name: total_variation(law, world.data) for name, law in laws.items()}
    far["baseline"] = total_variation(baseline_law(world, factorised=True), world.data)
    far["joint baseline"] = total_variation(baseline_law(world, factorised=False), world.data)
    print(f"V {num_tokens} l {length}", {name: f"{tv:.3g}" for name, tv in far.items()})
    assert far["joint baseline"] < EXACT and far["site"] < EXACT
    assert 0.01 < far["hamming"] < far["baseline"]


def test_two_hundred_thousand_walks_with_site_end_in_the_data_law():
    """All of it at once: the real randomness, the loop, the kernel and the process."""
    world, random = make_world(3, 3), RowRandom(2, torch.arange(MANY))
    x0 = draw(log_of(world.data).expand(MANY, -1), random.uniform(1)[:, 0])
    x0, process = torch.from_numpy(world.sequences)[x0], SubstituteProcess(torch.arange(3))
    times = [filled(t, x0) for t in (3, 2, 1, 0)]
    xt = process.corrupt(x0, times[0], process.sample_noise(x0, random=random))
    tables = {t: world.substitute_predictor(t) for t in (1, 2, 3)}
    out = denoise(process, table_predictor("site", tables, random), xt, times, random=random)
    counts = torch.bincount((out * torch.tensor([9, 3, 1])).sum(-1), minlength=27).double().numpy()
    assert passes_chi_square(counts, world.data * MANY)


# --- properties of a draw --------------------------------------------------------------------------------------


def random_change(batch, length, seed=0, never=()):
    """r from 1e-5 to 1 - 1e-5, tokens xt + 1, xt = 0; the positions `never` are not editable."""
    logits = 4 * torch.randn(batch, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    closed = torch.zeros(length, dtype=torch.bool)
    closed[list(never)] = True
    log_sigmoid = torch.nn.functional.logsigmoid
    xt = torch.zeros(batch, length, dtype=torch.int64)
    change = log_sigmoid(logits).masked_fill(closed, NEVER), log_sigmoid(-logits).masked_fill(closed, 0.0)
    return Change(*change, xt + 1), xt


def step(name, change, xt, t, s, churn=0.0, greedy=False, seed=0):
    """One step of the kernel and the process, on tokens 0..4. Returns the guess and xs."""
    random, editable = RowRandom(seed, torch.arange(len(xt))), change.log_change > NEVER / 2
    prediction = KERNELS[name].draw(change, xt, t, s, churn, random, greedy)
    assert isinstance(prediction, Prediction)
    t, s = t if prediction.t is None else prediction.t, s if prediction.s is None else prediction.s
    process = SubstituteProcess(torch.arange(5))
    return prediction, reverse_step(process, xt, prediction.x0, t, s, churn, editable=editable, random=random)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_step_makes_t_minus_s_changes_and_only_where_it_may(name, greedy):
    change, xt = random_change(300, 9, never=(0, 5))
    t = 1 + torch.arange(300) % 7
    for back in (1, 2, 7):
        s = (t - back).clamp(min=0)
        _, xs = step(name, change, xt, t, s, greedy=greedy)
        changed = (xs != xt).sum(1)
        if name == "free":  # it changes what x0_hat changes, if that is less
            assert (changed <= t - s).all() and (changed > 0).any()
        else:
            assert torch.equal(changed, t - s)
        assert not (xs != xt)[:, [0, 5]].any()
        assert (xs[xs != xt] == 1).all()


@pytest.mark.parametrize("churn", [0.3, 1.0])
@pytest.mark.parametrize("name", ["hamming", "free"])
def test_with_churn_exactly_s_positions_differ_from_x0_hat(name, churn):
    change, xt = random_change(300, 9, never=(4,))
    t = 1 + torch.arange(300) % 8
    s = t // 2
    prediction, xs = step(name, change, xt, t, s, churn)
    assert prediction.t is None and prediction.s is None
    if name == "hamming":
        assert torch.equal((prediction.x0 != xt).sum(1), t)
    assert torch.equal((xs != prediction.x0).sum(1), s)
    assert (xs[:, 4] == xt[:, 4]).all()


def test_free_copies_nothing_where_x0_hat_equals_xt():
    change, xt = random_change(50, 4)
    change = change._replace(
        log_change=torch.full_like(change.log_change, -800.0), log_stay=torch.zeros(50, 4).double()
    )
    _, xs = step("free", change, xt, filled(3, xt), filled(1, xt))
    assert torch.equal(xs, xt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", KERNELS)
def test_what_a_predictor_takes_back_is_what_the_recovered_noise_would(name, temperature):
    """By the same numbers, and as many of them; the step of the process then finds nothing to take back."""
    change, xt = random_change(300, 9, never=(0, 5))
    t = 1 + torch.arange(300) % 7
    process, editable = SubstituteProcess(torch.arange(5)), change.log_change > NEVER / 2
    config = SimpleNamespace(temperature=temperature, churn=0.0)
    for s in (t - 1, t // 2, torch.zeros_like(t)):
        by_noise, by_predictor = (RowRandom(0, torch.arange(300)) for _ in range(2))
        drawn = KERNELS[name].draw(change, xt, t, s, 0.0, by_noise, temperature == 0)
        counts = t if drawn.t is None else drawn.t, s if drawn.s is None else drawn.s
        expected = reverse_step(process, xt, drawn.x0, *counts, editable=editable, random=by_noise)
        made = make_changes(config, KERNELS[name], change, xt, t, s, by_predictor, 7)
        assert by_predictor.draws == by_noise.draws and torch.equal(made.x0, expected)
        assert torch.equal(reverse_step(process, xt, made.x0, made.t, made.s, noise=made.noise), expected)
        assert (expected != xt).any()


@pytest.mark.parametrize("name", KERNELS)
def test_greedy_takes_the_most_preferred_changes(name):
    change, xt = random_change(100, 8, never=(3,))
    odds = (change.log_change - change.log_stay).masked_fill(change.log_change <= NEVER / 2, -torch.inf)
    t, s = filled(5, xt), filled(3, xt)
    prediction, xs = step(name, change, xt, t, s, greedy=True)
    _, again = step(name, change, xt, t, s, greedy=True, seed=1)
    assert torch.equal(xs, again)  # no randomness is left
    best = torch.zeros_like(xt, dtype=torch.bool).scatter(1, odds.topk(2).indices, True)
    if name == "free":
        best &= odds > 0
    assert torch.equal(xs != xt, best)


def test_site_draws_k_positions_even_where_every_chance_underflows():
    """Chances of exp(-800), as a low temperature gives them: the race goes on, among the editable positions."""
    change, xt = random_change(4000, 6, never=(0, 4))
    low = torch.tensor([0.0, -800.0, -801.0, -2000.0, 0.0, -1e6]).double().expand(4000, -1)
    low = low.masked_fill(change.log_change <= NEVER / 2, NEVER)
    change = Change(low, torch.zeros_like(low), change.tokens)
    _, xs = step("site", change, xt, filled(4, xt), filled(3, xt))
    assert torch.equal((xs != xt).sum(1), filled(1, xt))
    won = (xs != xt).double().mean(0)
    assert won[[0, 3, 4, 5]].sum() == 0
    assert abs(float(won[1]) - 1 / (1 + np.exp(-1))) < 0.03  # r_1 / (r_1 + r_2)
    _, xs = step("site", change, xt, filled(4, xt), filled(0, xt))
    assert torch.equal((xs != xt).sum(1), filled(4, xt))


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_padded_row_in_a_batch_is_drawn_as_alone(name, greedy):
    change, xt = random_change(4, 8)
    lengths, t, s = (3, 8, 1, 5), torch.tensor([2, 7, 1, 4]), torch.tensor([1, 3, 0, 0])
    outside = torch.arange(8) >= torch.tensor(lengths)[:, None]
    change = Change(
        change.log_change.masked_fill(outside, NEVER),
        change.log_stay.masked_fill(outside, 0.0),
        change.tokens,
    )
    together = KERNELS[name].draw(change, xt, t, s, 0.0, RowRandom(5, torch.arange(4)), greedy)
    rate = KERNELS[name].log_rate(change, t)
    for row, length in enumerate(lengths):
        one, random = slice(row, row + 1), RowRandom(5, torch.tensor([row]))
        alone_change = Change(*(x[one, :length] for x in change))
        alone = KERNELS[name].draw(alone_change, xt[one, :length], t[one], s[one], 0.0, random, greedy)
        for got, expected in zip(alone, together, strict=True):
            assert got is expected is None or torch.equal(
                got, expected[one, :length] if got.ndim == 2 else expected[one]
            )
        alone_rate = KERNELS[name].log_rate(alone_change, t[one])
        assert torch.allclose(rate[one, :length], alone_rate, rtol=0, atol=EXACT)
    assert torch.equal(together.x0[outside], xt[outside])


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_no_argument_is_modified_in_place(name, greedy):
    change, xt = random_change(5, 6, never=(2,))
    t, s = filled(4, xt), filled(2, xt)
    given = (*change, xt, t, s)
    before = [x.clone() for x in given]
    KERNELS[name].draw(change, xt, t, s, 0.0, RowRandom(0, torch.arange(5)), greedy)
    KERNELS[name].log_rate(change, t)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_site_refuses_churn():
    change, xt = random_change(1, 3)
    with pytest.raises(ValueError, match="churn.*hamming"):
        step("site", change, xt, filled(2, xt), filled(1, xt), churn=0.5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_draw_without_tokens_is_refused(name):
    change, xt = random_change(1, 3)
    with pytest.raises(ValueError, match="tokens"):
        step(name, change._replace(tokens=None), xt, filled(2, xt), filled(1, xt))
