"""The delete process against every string: embeddings, canonical insertions, its laws, its bound and its sampler."""

from itertools import combinations, permutations, product
from math import log

import numpy as np
import pytest
import torch

from tests.oracle import strings as brute
from udm_text.canvas import insert, justify, read, single_insertions
from udm_text.core import reverse_step
from udm_text.objectives import CorruptedRows
from udm_text.processes import DeleteProcess, TokenNoise
from udm_text.randomness import RowRandom
from udm_text.subsequences import NO_PART, NO_SYMBOL, draw_embedding, last_embedding, log_embeddings

V, HOLE = 3, 0
"""Tokens of strings here; in rows they are 1..V, so that 0 can be a hole."""
SIGMA = 4.5
"""Deviations at which a counted share is taken for another one: once in 150,000 comparisons."""


def padded(words, width, padding):
    return torch.tensor([[*word, *[padding] * (width - len(word))] for word in words], dtype=torch.int64)


def canvas(words, width):
    """Rows [CLS] text holes [SEP], as (rows, editable)."""
    rows = torch.tensor([[9, *(v + 1 for v in word), *[HOLE] * (width - len(word)), 8] for word in words])
    editable = torch.zeros_like(rows, dtype=torch.bool)
    editable[:, 1:-1] = True
    return rows, editable


def word_of(row):
    return tuple(int(v) - 1 for v in row[1:-1] if v != HOLE)


# --- how one string stands in another ----------------------------------------------------------------------------


def pairs(longest=4):
    return [(x, y) for x in brute.strings(V, longest) for y in brute.strings(V, len(x))]


def test_embeddings_are_counted_and_the_last_one_found():
    wholes, parts = zip(*pairs(), strict=True)
    whole, part = padded(wholes, 4, NO_SYMBOL), padded(parts, 4, NO_PART)
    counts, last = log_embeddings(whole, part).exp(), last_embedding(whole, part)
    for number, (x, y) in enumerate(pairs()):
        ways = brute.embeddings(y, x)
        assert abs(float(counts[number]) - len(ways)) < 1e-12 * max(1, len(ways))
        if ways:
            assert tuple(last[number].nonzero()[:, 0].tolist()) == max(ways), (x, y)


def test_many_embeddings_do_not_overflow():
    whole, part = torch.zeros(1, 1200, dtype=torch.int64), torch.zeros(1, 600, dtype=torch.int64)
    exact = torch.lgamma(torch.tensor([1201.0, 601.0], dtype=torch.float64))
    assert torch.allclose(log_embeddings(whole, part), exact[0] - 2 * exact[1], rtol=1e-12)


def test_every_embedding_is_drawn_as_often():
    """Exactly: with at most three embeddings all chances are multiples of 1/6, and six midpoints see each of them."""
    points = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    uniforms = torch.cartesian_prod(points, points, points)
    for x, y in pairs(3):
        if len(x) < 3 or not (ways := brute.embeddings(y, x)):
            continue
        many = len(uniforms)
        taken, exists = draw_embedding(padded([x] * many, 3, NO_SYMBOL), padded([y] * many, 3, NO_PART), uniforms)
        assert exists.all()
        seen = [int((taken == torch.tensor([i in way for i in range(3)])).all(dim=1).sum()) for way in ways]
        assert seen == [many // len(ways)] * len(ways), (x, y, seen)


# --- canvases ----------------------------------------------------------------------------------------------------


def lacks():
    """Every string of four tokens and every set of them that is missing."""
    return [(x, gone) for x in product(range(V), repeat=4) for n in range(5) for gone in combinations(range(4), n)]


def test_each_missing_token_is_put_in_before_the_run_of_its_like():
    words = lacks()
    x0, editable = canvas([x for x, _ in words], 4)
    missing = torch.zeros_like(editable)
    for number, (_, gone) in enumerate(words):
        missing[number, [1 + i for i in gone]] = True
    xt = justify(x0, ~missing, editable, HOLE)
    actions = single_insertions(x0, xt, missing, editable, HOLE)
    for number, (x, gone) in enumerate(words):
        short = brute.without(x, gone)
        assert word_of(xt[number]) == short
        for i in gone:
            longer = brute.without(x, tuple(j for j in gone if j != i))
            gap = int(actions.columns[number, 1 + i])
            assert brute.put_in(short, gap, x[i]) == longer
            assert gap == 0 or short[gap - 1] != x[i]
            undone = sum(brute.without(longer, (j,)) == short for j in range(len(longer)))
            assert int(actions.runs[number, 1 + i]) == undone


def test_segments_between_given_tokens_are_texts_of_their_own():
    """[CLS] a b [7] b b [SEP]: a gap of one segment never takes part in the other, nor the given token in a run."""
    x0 = torch.tensor([[9, 1, 2, 7, 7, 7, 8]])
    editable = torch.tensor([[False, True, True, False, True, True, False]])
    missing = torch.tensor([[False, False, True, False, False, True, False]])
    xt = justify(x0, ~missing, editable, HOLE)
    assert xt.tolist() == [[9, 1, HOLE, 7, 7, HOLE, 8]]
    actions = single_insertions(x0, xt, missing, editable, HOLE)
    assert actions.columns[missing].tolist() == [1, 3] and actions.runs[missing].tolist() == [1, 2]
    columns, tokens = torch.tensor([[1, 3]]), torch.tensor([[2, 7]])
    assert torch.equal(insert(xt, editable, HOLE, columns, tokens, torch.ones(1, 2, dtype=torch.bool)), x0)


def test_tokens_of_one_gap_stand_in_the_order_in_which_they_are_given():
    rows, editable = canvas([(0, 1)], 6)
    columns, tokens = torch.tensor([[1, 0, 1, 2]]), torch.tensor([[5, 6, 7, 4]])
    live = torch.tensor([[True, True, True, False]])
    assert insert(rows, editable, HOLE, columns, tokens, live).tolist() == [[9, 6, 1, 5, 7, 2, HOLE, 8]]
    assert insert(rows, editable, HOLE, columns, tokens, ~live).tolist() == [[9, 1, 2, 4, HOLE, HOLE, HOLE, 8]]


def test_what_a_network_reads_has_no_holes_and_knows_where_each_gap_is():
    rows, editable = canvas([(0, 1), (2,)], 3)
    attended = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    plain = read(rows, editable, attended, HOLE)
    assert plain.tokens.tolist() == [[9, 1, 2, 8], [9, 3, 8, HOLE]]
    assert plain.attention_mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert plain.columns[:, :3].tolist() == [[0, 1, 2], [0, 1, 1]]
    masked = read(rows, editable, attended, HOLE, gap_token=6)
    assert masked.tokens.tolist() == [[9, 6, 1, 6, 2, 6, 8], [9, 6, 3, 6, 8, HOLE, HOLE]]
    assert masked.columns[0, :3].tolist() == [1, 3, 5] and masked.columns[1, :2].tolist() == [1, 3]


# --- the process -------------------------------------------------------------------------------------------------


def draws(x0, t, many, random, process):
    rows, editable = canvas([x0] * many, len(x0))
    noise = process.sample_noise(rows, editable=editable, random=random)
    return rows, editable, process.corrupt(rows, torch.full((many,), t), noise)


def check_law(rows, law):
    found, counts = rows.unique(dim=0, return_counts=True)
    seen = {word_of(row): int(count) for row, count in zip(found, counts, strict=True)}
    assert set(seen) <= set(law)
    for word, chance in law.items():
        share = seen.get(word, 0) / len(rows)
        assert abs(share - chance) <= SIGMA * (chance * (1 - chance) / len(rows)) ** 0.5 + 1e-12, (word, share, chance)


def test_corrupt_deletes_every_set_as_often():
    """Exactly: every order of the keys."""
    process, x0 = DeleteProcess(HOLE), (0, 1, 1, 0)
    orders = list(permutations(range(4)))
    rows, editable = canvas([x0] * len(orders), 4)
    keys = torch.full(rows.shape, torch.inf, dtype=torch.float64)
    keys[:, 1:-1] = torch.tensor(orders, dtype=torch.float64)
    for t in range(5):
        xt = process.corrupt(rows, torch.full((len(orders),), t), TokenNoise(keys, keys))
        law = brute.forward(x0, t)
        seen = [word_of(row) for row in xt]
        assert {word: seen.count(word) / len(orders) for word in set(seen)} == pytest.approx(law)


@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
def test_the_marginal_identity_holds_for_every_churn_and_jump(churn):
    process, x0, many = DeleteProcess(HOLE), (0, 1, 1, 0), 12_000
    for t, s in product(range(5), range(5)):
        random = RowRandom(7 * t + s, torch.arange(many))
        rows, editable, xt = draws(x0, t, many, random, process)
        times = torch.full((many,), t), torch.full((many,), s)
        xs = reverse_step(process, xt, rows, *times, churn, editable=editable, random=random)
        check_law(xs, brute.forward(x0, s))


def test_an_improved_step_puts_back_one_of_the_missing_tokens():
    process, x0, xt, many = DeleteProcess(HOLE), (0, 1, 0, 1), (0, 1), 40_000
    rows, editable = canvas([x0] * many, 4)
    short, _ = canvas([xt] * many, 4)
    random, times = RowRandom(3, torch.arange(many)), torch.full((many,), 2)
    xs = reverse_step(process, short, rows, times, times - 1, editable=editable, random=random)
    check_law(xs, brute.backward(xt, x0, 1))


def test_a_row_with_holes_in_x0_keeps_the_law_and_given_tokens_stand():
    """The canvas may be wider than the text: its holes take no part."""
    process, many = DeleteProcess(HOLE), 20_000
    x0 = torch.tensor([[9, 1, 2, HOLE, 7, 3, HOLE, HOLE, 8]]).expand(many, -1)
    editable = torch.tensor([[False, True, True, True, False, True, True, True, False]]).expand(many, -1)
    random, times = RowRandom(1, torch.arange(many)), torch.full((many,), 1)
    xt = process.corrupt(x0, times, process.sample_noise(x0, editable=editable, random=random))
    assert (xt[:, [0, 4, 8]] == torch.tensor([9, 7, 8])).all()
    xs = reverse_step(process, xt, x0, times, times, 0.5, editable=editable, random=random)
    for row, share in (([1, 2, HOLE, 7, HOLE], 1 / 3), ([1, HOLE, HOLE, 7, 3], 1 / 3), ([2, HOLE, HOLE, 7, 3], 1 / 3)):
        for drawn in (xt, xs):
            seen = float((drawn[:, 1:6] == torch.tensor(row)).all(dim=1).double().mean())
            assert abs(seen - share) < SIGMA * (2 / 9 / many) ** 0.5
    assert torch.equal(process.prior(x0, editable=editable)[0], torch.tensor([9, 0, 0, 0, 7, 0, 0, 0, 8]))


def test_what_is_no_part_of_x0_is_refused():
    process = DeleteProcess(HOLE)
    (x0, editable), (xt, _) = canvas([(0, 1)], 2), canvas([(2,)], 2)
    with pytest.raises(ValueError, match="xt holds a token that x0 does not"):
        process.invert_noise(x0, xt, torch.tensor([1]), editable=editable)
    with pytest.raises(ValueError, match="a gap is read at the token to its left"):
        read(x0[:, 1:], editable[:, 1:], torch.ones(1, 3), HOLE, gap_token=6)


# --- the bound ---------------------------------------------------------------------------------------------------


def random_predictor(seed=0):
    """pi(gap, token) of every (string, t), canonical, sure of itself and of nothing in particular."""

    def predict(word, t):
        rng = np.random.default_rng([seed, t, len(word), *word])
        pi = np.exp(2 * rng.normal(size=(len(word) + 1, V)))
        return brute.canonical(pi / pi.sum(), word)

    return predict


def as_network(predictor):
    """predict(...) as losses call it: what `predictor` says of the texts in the rows."""

    def predict(input_ids, attention_mask, t, positions, gaps, **_):
        def at(row, column):
            word = tuple(int(v) - 1 for v, on in zip(input_ids[row], attention_mask[row], strict=True) if on)[1:-1]
            return predictor(word, int(t[row]))[column]

        logits = torch.full((len(positions[0]), 10), -torch.inf)
        for n, place in enumerate(zip(*(x.tolist() for x in positions), strict=True)):
            logits[n, 1 : V + 1] = torch.from_numpy(at(*place)).log()
        scores = [log(at(*place).sum()) for place in zip(*(x.tolist() for x in gaps), strict=True)]
        return logits.masked_fill(logits.isneginf(), -1e9), torch.tensor(scores)

    return predict


FORBIDDEN = torch.tensor([not 1 <= i <= V for i in range(10)])


def exact_bound(predictor, x0, grid):
    """The expectation of the loss over every order of deletion, of one walk down the grid, by the code's own losses."""
    orders = list(permutations(range(len(x0))))
    total = 0.0
    for t, s in zip(grid, grid[1:], strict=False):
        rows, editable = canvas([x0] * len(orders), len(x0))
        keys = torch.full(rows.shape, torch.inf, dtype=torch.float64)
        keys[:, 1:-1] = torch.tensor(orders, dtype=torch.float64)
        noise, many = TokenNoise(keys, keys), len(orders)
        process, times = DeleteProcess(HOLE), torch.full((many,), t)
        xt, lengths = process.corrupt(rows, times, noise), torch.full((many,), len(x0))
        behind = None if len(grid) == len(x0) + 1 else torch.full((many,), s)
        batch = CorruptedRows(rows, xt, editable, editable, lengths, times, noise=noise, s=behind)
        losses = process.losses(as_network(predictor), batch, FORBIDDEN)
        total += float(losses.double().mean()) * (t - s) / len(x0)  # t is drawn with chance (t - s) / l
    return total


@pytest.mark.parametrize("grid", [[3, 2, 1, 0], [3, 1, 0], [3, 0], [3, 2, 0]])
def test_the_bound_is_above_what_the_sampler_has_of_every_text(grid):
    predictor = random_predictor()
    law = brute.chain_law(predictor, 3, grid)
    assert abs(sum(law.values()) - 1) < 1e-12
    for x0 in product(range(V), repeat=3):
        bound, price = exact_bound(predictor, x0, grid), -log(law[x0])
        assert bound >= price - 1e-5, (x0, bound, price)
        if grid == [3, 0]:  # one step from nothing has one path
            assert bound == pytest.approx(price, abs=1e-5)


def test_the_bound_is_the_elbo_of_the_strings():
    """sum over t of E log q(xs | xt, x0) / p(xs | xt), by brute force, for one step and for two tokens at a time."""
    predictor, x0 = random_predictor(1), (0, 1, 0, 0)
    for grid in ([4, 3, 2, 1, 0], [4, 2, 0], [4, 3, 1, 0]):
        expected = 0.0
        for t, s in zip(grid, grid[1:], strict=False):
            for xt, mass in brute.forward(x0, t).items():
                step = brute.step_law(predictor(xt, t), xt, t - s)
                back = brute.backward(xt, x0, t - s)
                expected += mass * sum(chance * log(chance / step[xs]) for xs, chance in back.items())
        # log q(xs | xt, x0) holds emb(xs, x0) / emb(xt, x0), which the chain cancels, and the code leaves out
        assert exact_bound(predictor, x0, grid) == pytest.approx(expected, abs=2e-5)


def test_with_the_exact_predictor_the_mean_bound_is_the_entropy_and_the_walk_has_the_law():
    rng = np.random.default_rng(5)
    mass = rng.gamma(0.5, size=V**3) + 1e-3
    data = dict(zip(product(range(V), repeat=3), mass / mass.sum(), strict=True))
    predictor = brute.exact_predictor(data, V)
    law = brute.chain_law(predictor, 3, [3, 2, 1, 0])
    assert sum(abs(law[x] - data[x]) for x in data) / 2 < 1e-12
    entropy = -sum(p * log(p) for p in data.values())
    mean = sum(p * exact_bound(predictor, x, [3, 2, 1, 0]) for x, p in data.items())
    assert mean == pytest.approx(entropy, abs=2e-5)


def test_a_predictor_that_knows_the_text_pays_nothing():
    """Which of the missing tokens comes first is free: of three different ones each order is as good."""
    x0 = (0, 1, 2)

    def sure(word, t):
        pi = np.full((len(word) + 1, V), 1e-12)
        for xs in brute.backward(word, x0, 1):
            for gap, token in product(range(len(word) + 1), range(V)):
                if brute.put_in(word, gap, token) == xs:
                    pi[gap, token] = 1.0
        return pi / pi.sum()

    assert exact_bound(sure, x0, [3, 2, 1, 0]) == pytest.approx(0.0, abs=1e-6)
