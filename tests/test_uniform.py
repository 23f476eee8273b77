"""The uniform process: its law, its inverse, its kernel and its bound, by enumeration; and models of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from tests.models import CLS, MASK, SEP, make_rows, make_udm
from tests.oracle.chains import (
    filled,
    forward_law,
    kernel_sampler_law,
    kernel_transitions,
    log_of,
    substitute_term_means,
    uniform_term_means,
)
from tests.oracle.outcomes import Board, Script, accumulate, cells, coins, combine, orderings
from tests.oracle.world import entropy, index_of, make_world, random_predictor, total_variation
from tests.test_kernels import draw_tokens, passes_chi_square, random_change
from udm_text import UDMConfig, UDMForMaskedGeneration, compiling, kernels
from udm_text.core import denoise, reverse_step
from udm_text.decoding import draw
from udm_text.evaluation import evaluate_bound
from udm_text.hamming import NEVER
from udm_text.kernels import UNIFORM_KERNELS, Change
from udm_text.objectives import changes, row_losses, uniform_terms
from udm_text.predictors import make_changes
from udm_text.processes import UniformProcess, corrupted_set
from udm_text.randomness import RowRandom
from udm_text.training.objective import TextObjective

EXACT = 1e-12
WORLDS = [(3, 3), (6, 3), (10, 3)]
KERNEL = UNIFORM_KERNELS["uniform"]
MANY = 200_000


def process_of(num_tokens):
    """On the tokens 0..V-1."""
    return UniformProcess(torch.arange(num_tokens))


# --- the process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [(), (0, 2)])
@pytest.mark.parametrize(("num_tokens", "length"), [(3, 3), (5, 2)])
def test_corrupt_has_exactly_the_forward_law_and_ends_in_the_uniform_one(num_tokens, length, prompt):
    board, world = Board(num_tokens, length, prompt), make_world(num_tokens, length)
    process = UniformProcess(board.allowed)
    keys, shifts = (board.spread(part) for part in combine(orderings(length), cells(num_tokens, length)))
    weights = torch.full((len(keys),), 1 / len(keys), dtype=torch.float64)
    for t in range(length + 1):
        for number, x0 in enumerate(torch.from_numpy(world.sequences)):
            script, row = Script(keys, keys, shifts), board.rows(x0[None]).expand(len(keys), -1)
            noise = process.sample_noise(row, editable=board.editable(len(row)), random=script)
            assert script.used_up()
            xt = process.corrupt(row, filled(t, row), noise)
            law = accumulate(board.index(xt, False), weights, num_tokens**length)
            assert total_variation(law.numpy(), world.uniform_forward(t)[number]) < EXACT
    assert np.abs(world.uniform_forward(length) - 1 / num_tokens**length).max() < EXACT


def reverse_outcomes(board, churn):
    """Calls of `reverse_step` on a uniform process, all outcomes, and their weights. The keys of the inversion are
    sorted by it, so that one order of them is enough."""
    length, size = board.length, board.num_tokens
    unused = torch.full((1, length), 0.5, dtype=torch.float64)
    keys = orderings(2 * length if churn else length)
    keys = keys[(keys[:, 1:length] > keys[:, : length - 1]).all(1)]
    coin, weight = coins(churn, length) if churn else (unused, torch.ones(1, dtype=torch.float64))
    fresh = [cells(size, length)] if churn else []
    parts = [orderings(length), keys, orderings(length), cells(size, length), torch.cat((coin, weight[:, None]), 1)]
    same, keys, ties, shifts, coin, *fresh = combine(*parts, *fresh)
    weights = coin[:, length]
    calls = [same, keys[:, :length], ties, unused.expand(len(ties), -1), shifts]
    calls += [keys[:, length:], coin[:, :length], *fresh] if churn else []
    return [board.spread(call) for call in calls], weights / weights.sum()


@pytest.mark.parametrize(
    ("num_tokens", "length", "churn", "prompt"),
    [(3, 3, 0.0, (1,)), (5, 2, 0.0, ()), (3, 2, 0.3, (0,)), (3, 2, 1.0, ()), (2, 2, 0.3, ())],
)
def test_the_marginal_identity_holds_for_every_jump(num_tokens, length, churn, prompt):
    """sum over xt of p(xs | xt, x0) q(xt | x0) = q(xs | x0), and the other way (s > t) as well."""
    board, world = Board(num_tokens, length, prompt), make_world(num_tokens, length)
    process, number = UniformProcess(board.allowed), 1
    x0, (calls, weights) = torch.from_numpy(world.sequences[number]), reverse_outcomes(board, churn)
    for t in range(length + 1):
        q = world.uniform_forward(t)[number]
        laws = [np.zeros(len(q)) for _ in range(length + 1)]
        for state in np.flatnonzero(q):
            xt, clean = (board.rows(digits[None]) for digits in (torch.from_numpy(world.sequences[state]), x0))
            xt, clean = (rows.expand(len(weights), -1) for rows in (xt, clean))
            for s, law in enumerate(laws):
                script, times = Script(*calls), (filled(t, xt), filled(s, xt))
                how = {"editable": board.editable(len(xt)), "random": script}
                xs = reverse_step(process, xt, clean, *times, churn, **how)
                assert script.used_up()
                law += q[state] * accumulate(board.index(xs, False), weights, len(q)).numpy()
        for s, law in enumerate(laws):
            assert total_variation(law, world.uniform_forward(s)[number]) < EXACT, (t, s)


@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_tokens", [6, 10])
def test_drawn_steps_keep_the_marginal_law_in_larger_vocabularies(num_tokens, churn):
    many, world, process = 60_000, make_world(num_tokens, 3), process_of(num_tokens)
    x0, random = torch.tensor([[0, 1, 1]]).expand(many, -1), RowRandom(3, torch.arange(many))
    number = int(index_of(x0[0].numpy(), num_tokens))
    for t, s in ((3, 2), (3, 1), (2, 1)):
        xt = process.corrupt(x0, filled(t, x0), process.sample_noise(x0, random=random))
        xs = reverse_step(process, xt, x0, filled(t, x0), filled(s, x0), churn, random=random)
        counts = np.bincount(index_of(xs.numpy(), num_tokens), minlength=num_tokens**3).astype(float)
        assert passes_chi_square(counts, world.uniform_forward(s)[number] * many), (t, s)


def test_recovered_noise_carries_x0_to_xt_and_corrupts_t_positions():
    board, batch = Board(4, 6, (2, 5)), 64
    process, random = UniformProcess(board.allowed), RowRandom(4, torch.arange(batch))
    x0 = board.rows(torch.randint(4, (batch, 6), generator=torch.Generator().manual_seed(0)))
    editable, t = board.editable(batch), torch.arange(batch) % 7
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    noise = process.invert_noise(x0, xt, t, editable=editable, random=random)
    assert torch.equal(process.corrupt(x0, t, noise), xt)
    corrupted = corrupted_set(noise.keys, t)
    assert torch.equal(corrupted.sum(1), t) and not (process.corrupted(xt, x0) & ~corrupted).any()
    assert (corrupted & (xt == x0)).any(), "no corrupted token is its own replacement: a case is missing"
    assert (noise.shifts[corrupted & (xt == x0)] == 0).all()


def test_a_step_puts_a_differing_token_back_with_one_in_t_and_rests_else():
    board = Board(3, 3)
    x0, xt = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 2])
    calls, weights = reverse_outcomes(board, 0.0)
    rows, clean = (board.rows(digits[None]).expand(len(weights), -1) for digits in (xt, x0))
    for t in (1, 2, 3):
        xs = reverse_step(
            UniformProcess(board.allowed), rows, clean, filled(t, rows), filled(t - 1, rows), random=Script(*calls)
        )
        assert abs(float(weights[(xs == clean).all(1)].sum()) - 1 / t) < EXACT
        assert abs(float(weights[(xs == rows).all(1)].sum()) - (1 - 1 / t)) < EXACT


def test_more_differing_positions_than_t_are_all_corrupted():
    process, x0, xt = process_of(4), torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 2, 3, 3]])
    noise = process.invert_noise(x0, xt, torch.tensor([1]), random=RowRandom(0, torch.arange(1)))
    assert corrupted_set(noise.keys, torch.tensor([3])).tolist() == [[True, True, True, False]]
    assert torch.equal(process.corrupt(x0, torch.tensor([3]), noise), xt)


def test_what_may_not_stand_there_and_noise_without_shifts_are_refused():
    with pytest.raises(ValueError, match="process 'uniform' needs at least 2"):
        UniformProcess(torch.tensor([5, 5]))
    process, x0 = UniformProcess(torch.tensor([3, 4])), torch.tensor([[3, 7]])
    noise = process.sample_noise(x0)
    with pytest.raises(ValueError, match="x0 holds a token that may not stand"):
        process.corrupt(x0, torch.tensor([2]), noise)
    with pytest.raises(ValueError, match="shifts"):
        process.corrupt(x0, torch.tensor([2]), noise._replace(shifts=None))
    with pytest.raises(ValueError, match="churn"):
        process.blend(noise, noise, 1.5)


@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_a_padded_row_goes_the_way_it_goes_alone_and_no_argument_is_modified(churn):
    board, lengths, generator = Board(4, 7), (3, 7, 1, 5), torch.Generator().manual_seed(2)
    process = UniformProcess(board.allowed)
    x0, x0_hat = (board.rows(torch.randint(4, (4, 7), generator=generator)) for _ in range(2))
    editable = torch.arange(7) < torch.tensor(lengths)[:, None]
    x0, x0_hat = (x.masked_fill(~editable, 0) for x in (x0, x0_hat))

    def walk(rows, width):
        random = RowRandom(11, torch.arange(4)[rows])
        clean, prediction, edit = x0[rows, :width], x0_hat[rows, :width], editable[rows, :width]
        t, before = edit.sum(1), [x.clone() for x in (clean, prediction, edit)]
        xt = process.corrupt(clean, t - 1, process.sample_noise(clean, editable=edit, random=random))
        prior = process.prior(clean, editable=edit, random=random)
        xs = reverse_step(process, xt, prediction, t - 1, t // 2, churn, editable=edit, random=random)
        assert all(torch.equal(a, b) for a, b in zip(before, (clean, prediction, edit), strict=True))
        return torch.stack((xt, prior, xs))

    together = walk(slice(None), 7)
    for row, length in enumerate(lengths):
        assert torch.equal(together[:, row : row + 1, :length], walk(slice(row, row + 1), length))
    assert (together[:, ~editable] == 0).all()


# --- the kernel ------------------------------------------------------------------------------------------------


def step_law(p, xt, t, least):
    """p(x_{t-1} | xt), (V^l,), by its definition. p: (l, V), xt: (l,)."""
    law, length, num_tokens = {}, *p.shape
    total = sum(1 - p[i, xt[i]] for i in range(length))
    rest = max(t - total, least)
    for i in range(length):
        for v in range(num_tokens):
            if v != xt[i]:
                xs = (*xt[:i], v, *xt[i + 1 :])
                law[xs] = law.get(xs, 0.0) + p[i, v] / (total + rest)
    law[tuple(xt)] = rest / (total + rest)
    return law


def test_the_chances_of_a_step_are_those_of_the_definition():
    world = make_world(4, 3)
    p = random_predictor(64, 3, 4, seed=1)
    for t in (1, 2, 3):
        got = kernel_transitions("uniform", p, t)
        for number, xt in enumerate(world.sequences):
            law = step_law(p[number], tuple(xt), t, kernels.LEAST_REST)
            expected = np.zeros(64)
            for xs, chance in law.items():
                expected[index_of(np.array(xs), 4)] = chance
            assert np.abs(got[number] - expected).max() < EXACT


@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_predictor_reproduces_the_data_law_from_the_uniform_one(num_tokens, length, seed, monkeypatch):
    world = make_world(num_tokens, length, seed)
    prior = np.full(len(world.data), 1 / len(world.data))
    law = kernel_sampler_law("uniform", world.uniform_predictor, prior, length)
    assert total_variation(law, world.data) < 5e-4  # where t - R is below LEAST_REST a step rests too often
    monkeypatch.setattr(kernels, "LEAST_REST", 0.0)
    law = kernel_sampler_law("uniform", world.uniform_predictor, prior, length)
    assert total_variation(law, world.data) < EXACT


def test_draws_have_these_chances():
    """One step of `denoise` with the real randomness, for every xt at once."""
    world, process = make_world(3, 3), process_of(3)
    p = random_predictor(27, 3, 3, seed=4)
    numbers, random = torch.arange(MANY) % 27, RowRandom(0, torch.arange(MANY))
    xt = torch.from_numpy(world.sequences)[numbers]
    times = [filled(3, xt), filled(2, xt)]
    xs = denoise(process, table_predictor({3: p}, random), xt, times, random=random)
    pairs = (numbers * 27 + torch.from_numpy(index_of(xs.numpy(), 3))).numpy()
    counts = np.bincount(pairs, minlength=27**2).astype(float)
    starts = torch.bincount(numbers).double().numpy()
    assert passes_chi_square(counts, (kernel_transitions("uniform", p, 3) * starts[:, None]).ravel())


def table_predictor(tables, random):
    """predict_x0 as the package has it, by a table {t: (V^l, l, V)} for tokens 0..V-1."""
    config = SimpleNamespace(temperature=1.0, churn=0.0)

    def predict_x0(xt, t, s):
        log_p = log_of(tables[int(t[0])])
        log_p = log_p[torch.from_numpy(index_of(xt.numpy(), log_p.shape[-1]))]
        change = changes(log_p, xt, torch.ones_like(xt, dtype=torch.bool))
        change = change._replace(tokens=draw_tokens(log_p, xt, random.uniform(xt.shape[1])))
        return make_changes(config, KERNEL, change, xt, t, s, random, 3)

    return predict_x0


def test_walks_from_the_prior_end_in_the_data_law():
    """All of it at once: the real randomness, the loop, the kernel and the process."""
    world, process, random = make_world(3, 3), process_of(3), RowRandom(2, torch.arange(MANY))
    xt = process.prior(torch.zeros(MANY, 3, dtype=torch.int64), random=random)
    times = [filled(t, xt) for t in (3, 2, 1, 0)]
    tables = {t: world.uniform_predictor(t) for t in (1, 2, 3)}
    out = denoise(process, table_predictor(tables, random), xt, times, random=random)
    counts = np.bincount(index_of(out.numpy(), 3), minlength=27).astype(float)
    assert passes_chi_square(counts, world.data * MANY)


@pytest.mark.parametrize(("t", "s"), [(6, 3), (5, 1), (4, 3)])
def test_a_step_of_several_positions_draws_them_as_balls_without_replacement(t, s):
    """Three positions that surely change, the others surely not: so many of t - s drawn of t corrupted ones."""
    xt, random = torch.zeros(MANY, 7, dtype=torch.int64), RowRandom(5, torch.arange(MANY))
    sure = torch.tensor([True, False, True, False, False, True, False]).expand(MANY, -1)
    never, surely = torch.full(sure.shape, NEVER).double(), torch.zeros(sure.shape).double()
    change = Change(torch.where(sure, surely, never), torch.where(sure, never, surely), xt + 1)
    prediction = KERNEL.draw(change, xt, filled(t, xt), filled(s, xt), 0.0, random, False)
    changed = (prediction.x0 != xt).sum(1)
    assert not (prediction.x0 != xt)[~sure].any() and torch.equal(prediction.t, changed)
    counts = torch.bincount(changed, minlength=4).double().numpy()
    assert passes_chi_square(counts, hypergeom(t, 3, t - s).pmf(np.arange(4)) * MANY)


def test_jumps_to_the_end_change_as_many_as_the_predictor_expects():
    change, xt = random_change(1, 9, seed=1, never=(0, 5))
    change = Change(*(x.expand(20_000, -1) for x in change))
    expected = float(change.log_change[0].exp().sum())
    assert 1 < expected < 6 and expected % 1 > 0.1
    xt, random = xt.expand(20_000, -1), RowRandom(1, torch.arange(20_000))
    prediction = KERNEL.draw(change, xt, filled(7, xt), filled(0, xt), 0.0, random, False)
    changed = (prediction.x0 != xt).sum(1).double()
    assert set(changed.tolist()) == {float(int(expected)), float(int(expected) + 1)}
    assert abs(float(changed.mean()) - expected) < 4.5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_a_padded_row_in_a_batch_is_drawn_as_alone(greedy, churn):
    change, xt = random_change(4, 8)
    lengths, t, s = (3, 8, 1, 5), torch.tensor([2, 7, 1, 4]), torch.tensor([1, 3, 0, 0])
    outside = torch.arange(8) >= torch.tensor(lengths)[:, None]
    change = Change(
        change.log_change.masked_fill(outside, NEVER), change.log_stay.masked_fill(outside, 0.0), change.tokens
    )
    together = KERNEL.draw(change, xt, t, s, churn, RowRandom(5, torch.arange(4)), greedy)
    for row, length in enumerate(lengths):
        one, random = slice(row, row + 1), RowRandom(5, torch.tensor([row]))
        alone = Change(*(x[one, :length] for x in change))
        drawn = KERNEL.draw(alone, xt[one, :length], t[one], s[one], churn, random, greedy)
        assert torch.equal(drawn.x0, together.x0[one, :length])
        assert torch.allclose(KERNEL.log_rate(alone, t[one]), KERNEL.log_rate(change, t)[one, :length], atol=EXACT)
    assert torch.equal(together.x0[outside], xt[outside])


def test_temperature_zero_changes_what_the_predictor_prefers_to_change():
    change, xt = random_change(100, 8, never=(3,))
    odds = (change.log_change - change.log_stay).masked_fill(change.log_change <= NEVER / 2, -torch.inf)
    prediction = KERNEL.draw(change, xt, filled(5, xt), filled(3, xt), 0.0, RowRandom(0, torch.arange(100)), True)
    best = torch.zeros_like(xt, dtype=torch.bool).scatter(1, odds.topk(2).indices, True) & (odds > 0)
    assert torch.equal(prediction.x0 != xt, best)


# --- the bound -------------------------------------------------------------------------------------------------


def mixed_predictor(world, wrong):
    """The exact predictor, a share `wrong` of a random one in it."""
    tables = {}
    for t in range(1, world.length + 1):
        p = (1 - wrong) * world.uniform_predictor(t)
        tables[t] = p + wrong * random_predictor(len(p), world.length, world.num_tokens, seed=t)
    return tables.__getitem__


@pytest.mark.parametrize(
    ("num_tokens", "length", "wrong"),
    [*((v, 3, wrong) for v in (3, 6) for wrong in (0.0, 0.2, 0.5, 1.0)), (10, 3, 0.5), (2, 4, 1.0)],
)
def test_the_bound_holds_for_every_sequence(num_tokens, length, wrong):
    world = make_world(num_tokens, length)
    predictor = mixed_predictor(world, wrong)
    prior = np.full(len(world.data), 1 / len(world.data))
    law = kernel_sampler_law("uniform", predictor, prior, length)
    assert abs(law.sum() - 1) < EXACT
    gap = uniform_term_means(world, predictor).mean(1) + np.log(law)
    assert gap.min() > -EXACT


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_terms_average_to_the_sum_of_the_steps(wrong):
    """sum_t E[log q(x_{t-1} | xt, x0) - log p(x_{t-1} | xt)], with q from the forward laws by Bayes' rule."""
    world = make_world(3, 3)
    predictor = mixed_predictor(world, wrong)
    got = uniform_term_means(world, predictor).mean(1)
    for number in range(0, 27, 5):
        x0, total = world.sequences[number], 0.0
        for t in (1, 2, 3):
            for state in np.flatnonzero(world.uniform_forward(t)[number]):
                xt = tuple(int(v) for v in world.sequences[state])
                law = step_law(predictor(t)[state], xt, t, kernels.LEAST_REST)
                back = {}  # of t corrupted positions one, uniformly, whatever shows of them
                for i in range(3):
                    if xt[i] != x0[i]:
                        back[(*xt[:i], int(x0[i]), *xt[i + 1 :])] = 1 / t
                if sum(back.values()) < 1 - EXACT:
                    back[xt] = 1 - sum(back.values())
                step = sum(q * (np.log(q) - np.log(law[xs])) for xs, q in back.items())
                total += world.uniform_forward(t)[number, state] * step
        assert abs(got[number] - total) < 1e-11


@pytest.mark.parametrize(("num_tokens", "length"), WORLDS)
def test_it_is_tighter_than_that_of_substitution_and_above_the_entropy(num_tokens, length):
    world = make_world(num_tokens, length)
    nats = {
        "entropy": entropy(world.data) / length,
        "uniform": world.data @ uniform_term_means(world, world.uniform_predictor).mean(1) / length,
        "site": world.data @ substitute_term_means("site", world, world.substitute_predictor).mean(1) / length,
    }
    print(f"V {num_tokens}", {name: round(float(value), 3) for name, value in nats.items()})
    assert nats["entropy"] < nats["uniform"] < nats["site"]


def test_terms_have_the_gradient_of_finite_differences_and_stay_finite():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x0, xt = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([[0, 2, 1, 0], [2, 0, 0, 1]])
    editable = torch.tensor([[True] * 4, [False, True, True, True]])

    def terms(logits, t=4):
        log_p = logits.log_softmax(-1)
        target = log_p.gather(2, x0[..., None])[..., 0]
        lengths = editable.sum(1)
        return uniform_terms(changes(log_p, xt, editable), target, x0 != xt, lengths, lengths.clamp(max=t))

    assert torch.autograd.gradcheck(terms, (logits,))
    sure = (100 * torch.nn.functional.one_hot(xt, 3)).double().requires_grad_(True)  # sure of what is wrong
    for t in (3, 4):
        loss = terms(sure, t)
        (gradient,) = torch.autograd.grad(loss.sum(), sure)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_row_losses_average_to_the_bound():
    """Every outcome of the corruption, on a board with a prompt and forbidden tokens. float32 inside: 1e-5."""
    world, board = make_world(3, 3), Board(3, 3, (1,))
    predictor, process = mixed_predictor(world, 1.0), UniformProcess(board.allowed)
    forbidden = torch.ones(10, dtype=torch.bool).index_fill(0, board.allowed, False)
    expected = uniform_term_means(world, predictor)
    keys, shifts = (board.spread(part) for part in combine(orderings(3), cells(3, 3)))
    for number, t in ((0, 1), (11, 2), (23, 3)):
        row = board.rows(torch.from_numpy(world.sequences[number])[None]).expand(len(keys), -1)

        def predict(input_ids, t, num_editable, positions):
            log_p = log_of(predictor(int(t[0])))[board.index(input_ids, False)].float()
            logits = torch.full((*input_ids.shape, 10), 7.0)  # forbidden tokens look good and must not matter
            logits[:, board.open] = logits[:, board.open].index_copy(2, board.allowed, log_p)
            return logits[positions]

        script = Script(keys, keys, shifts)
        rows = row, board.editable(len(row)), filled(t, row)
        losses = row_losses(predict, process, *rows, script, forbidden, kernel="uniform")
        assert abs(float(losses.double().mean()) - expected[number, t - 1]) < 3e-5


# --- models ----------------------------------------------------------------------------------------------------


def test_a_model_is_saved_with_its_process_and_kernel_and_no_other_kernel_is_taken(tmp_path):
    model = make_udm("uniform", length_counts=[0, 1, 0, 4, 5, 2])
    assert model.config.kernel == "uniform" and model.config.time_conditioning
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert isinstance(again.config.build_process(), UniformProcess)
    assert torch.equal(model.generate(length=6, seed=1), again.generate(length=6, seed=1))
    with pytest.raises(ValueError, match="kernel of process 'uniform' must be 'uniform', got 'site'"):
        UDMConfig.from_pretrained(tmp_path, kernel="site")
    with pytest.raises(ValueError, match="kernel of process 'substitute' must be .*, got 'uniform'"):
        make_udm("substitute", kernel="uniform")
    with pytest.raises(ValueError, match="kernel is of the substitute process"):
        model.generate(length=6, kernel="free")
    turned = {process: UDMConfig.from_pretrained(tmp_path, process=process) for process in ("substitute", "mask")}
    assert turned["substitute"].kernel == "site"
    make_udm("mask").save_pretrained(tmp_path / "masks")
    assert UDMConfig.from_pretrained(tmp_path / "masks", process="uniform").kernel == "uniform"


def test_repairs_are_refused_by_name():
    model = make_udm("uniform")
    with pytest.raises(ValueError, match="max_edits is of the substitute or edit process"):
        model.generate(torch.tensor([[CLS, 7, 8, SEP]]), max_edits=1)
    with pytest.raises(ValueError, match="max_corruption below 1 trains a repairer"):
        TextObjective(model.config, max_corruption=0.3)
    with pytest.raises(ValueError, match="loss_chunk goes with loss 'cross_entropy'"):
        TextObjective(model.config, loss="nelbo", loss_chunk=8)


def test_it_fills_in_continues_and_writes_by_every_option_it_takes():
    model = make_udm("uniform", length_counts=[0, 1, 0, 4, 5, 2], prompt_dropout=0.1, scale=0.2)
    filled_in = torch.tensor([[CLS, 7, MASK, 8, MASK, SEP]])
    for how in ({}, {"num_steps": 2}, {"churn": 0.5}, {"churn": 1.0}, {"temperature": 0.0}, {"temperature": 0.5}):
        for more in ({}, {"top_k": 3}, {"top_p": 0.6}, {"guidance_scale": 2.0}):
            out = model.generate(filled_in, num_return_sequences=3, seed=0, **how, **more)
            assert (out[:, [0, 1, 3, 5]] == filled_in[:, [0, 1, 3, 5]]).all() and (out[:, [2, 4]] > MASK).all()
    out = model.generate(
        length=5, num_return_sequences=40, seed=0, forbidden_tokens=[5, 6], allowed_tokens={2: [9, 10]},
        return_dict_in_generate=True, output_trajectory=True,
    )  # fmt: skip
    assert len(out.trajectory) == 6 and set(out.sequences[:, 2].tolist()) <= {9, 10}
    assert not torch.isin(out.sequences, torch.tensor([5, 6])).any() and out.expected_nats is None
    changed = torch.stack([(a != b).sum(1) for a, b in zip(out.trajectory, out.trajectory[1:], strict=False)])
    assert changed.max() == 1 and changed.min() == 0  # a position a step at most, and some steps rest


def test_the_bound_is_measured_and_says_its_kernel_and_no_price_of_fewer_steps():
    model = make_udm("uniform")
    report = evaluate_bound(model, make_rows(5), draws=2)
    assert (report.process, report.kernel) == ("uniform", "uniform") and report.nelbo_nats_per_token > 0
    with pytest.raises(ValueError, match="kernel must be 'uniform', got 'site'"):
        evaluate_bound(model, make_rows(5), kernel="site")
    with pytest.raises(ValueError, match="no bound for several tokens a step is known of process 'uniform'"):
        evaluate_bound(model, make_rows(5), num_steps=2)
    assert TextObjective(model.config, loss="nelbo").loss_is_bound
    assert not TextObjective(model.config, loss="cross_entropy").loss_is_bound


def test_the_exact_posterior_is_not_told_what_is_corrupted_and_looks_right():
    """Of t = 3 corrupted positions of three, with one token the same: `corrupted` shows two, and F_t^-1 knows three."""
    process, x0, xt = process_of(4), torch.tensor([[0, 1, 2]]), torch.tensor([[3, 1, 0]])
    noise = process.invert_noise(x0, xt, torch.tensor([3]), random=RowRandom(0, torch.arange(1)))
    assert process.corrupted(xt, x0).tolist() == [[True, False, True]]
    assert corrupted_set(noise.keys, torch.tensor([3])).all() and noise.shifts[0, 1] == 0


def test_draws_of_the_data_law_are_corrupted_alike_by_definition_and_by_code():
    """q(xt) of the data, drawn: the oracle's forward law and the process agree at V = 6."""
    world, process, random = make_world(6, 3), process_of(6), RowRandom(9, torch.arange(MANY))
    x0 = torch.from_numpy(world.sequences)[draw(log_of(world.data).expand(MANY, -1), random.uniform(1)[:, 0])]
    xt = process.corrupt(x0, filled(2, x0), process.sample_noise(x0, random=random))
    counts = np.bincount(index_of(xt.numpy(), 6), minlength=216).astype(float)
    assert passes_chi_square(counts, world.data @ world.uniform_forward(2) * MANY)


def test_the_forward_law_of_substitution_is_another():
    """The two processes differ, and the worlds of these tests tell them apart."""
    board, world = Board(3, 2), make_world(3, 2)
    law = forward_law(UniformProcess(board.allowed), board, torch.tensor([0, 1]), 2, masks=False)
    assert total_variation(law.numpy(), world.substitute_forward(2)[1]) > 0.1


@pytest.mark.parametrize("how", [{"churn": 0.5}, {"temperature": 0.0}, {"num_steps": 2}], ids=str)
def test_a_graph_takes_the_same_steps(how, monkeypatch):
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    model, call = make_udm("uniform"), {"length": 5, "num_return_sequences": 3, "seed": 2, **how}
    assert torch.equal(model.generate(compile=True, **call), model.generate(**call))
