"""Speculative steps: the law of one-token steps to the last bit, for any network; a row's result is its own."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.models import CLS, COUNTS, FAMILIES, MASK, PAD, ROWS, SEP, make_udm
from tests.oracle.outcomes import Script, orderings
from tests.oracle.world import all_rows, index_of, random_predictor, total_variation
from udm_text import UDMGenerationConfig
from udm_text.fastpath import plain_path
from udm_text.processes import MaskProcess
from udm_text.randomness import RowRandom
from udm_text.speculative import Drafts, check_speculation, speculate, speculative_round

NEVER_ZERO, NEVER_ONE = 2.0**-60, 1 - 2.0**-53
"""The ends of the uniforms: a coin that accepts whatever can be accepted, and one that accepts certainties only."""


# ---- a world: a table of marginals for every xt, consistent with nothing


def sparse_predictor(num_states, length, num_tokens, seed):
    """Some tokens are impossible, so that drafts can be impossible under their conditional."""
    p = random_predictor(num_states, length, num_tokens, seed)
    p = np.where(np.random.default_rng(seed).random(p.shape) < 0.3, 0.0, p)
    p[..., 0] += p.sum(-1) == 0
    return p / p.sum(-1, keepdims=True)


def greedy_predictor(num_states, length, num_tokens, seed):
    """Temperature 0."""
    p = random_predictor(num_states, length, num_tokens, seed)
    return np.eye(num_tokens)[p.argmax(-1)]


TABLES = {"random": random_predictor, "sparse": sparse_predictor, "greedy": greedy_predictor}


def marginals_of(table, num_tokens, calls=None):
    """The network that answers with the table; tokens are 0..V-1 and [MASK] is V."""
    p = torch.tensor(table)

    def marginals(xt, t, positions):
        rows, columns, _ = positions
        assert ((xt == num_tokens).sum(1) == t)[rows].all(), "t counts the masks of the row that is asked"
        assert (xt[rows, columns] == num_tokens).all(), "only masks are asked about"
        if calls is not None:
            calls.append(len(positions.asked))
        rank = (num_tokens + 1) ** torch.arange(xt.shape[1]).flip(0)
        return lambda which: p[(xt @ rank)[rows[which]], columns[which]]

    return marginals


def one_token_law(table, num_tokens, length, order):
    """The law over V^l of revealing one position at a time in this order, by the chain rule."""
    rows = all_rows(num_tokens, length)
    law, xt = np.ones(len(rows)), np.full_like(rows, num_tokens)
    for position in order:
        law = law * table[index_of(xt, num_tokens + 1), position, rows[:, position]]
        xt[:, position] = rows[:, position]
    return law


def thresholds(below, count):
    """(count,): where `below`(u (count,)), true for small u, becomes false; 0 and 1 where it never or always is."""
    low, high = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    for _ in range(56):
        middle = (low + high) / 2
        yes = below(middle)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return torch.where(high == 1, high, low)


def framed(cuts):
    """(..., V - 1) thresholds with 0 before and 1 behind."""
    return torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=1.0)


class RoundLaw:
    """The exact law of `speculative_round`, read off the code itself.

    A state is a row xt, with the row that its drafts are drawn from: xt as it was before its last token, since that
    token is always one behind the drafts that were kept. Nothing else is carried from round to round, which is checked.

    A token is drawn by comparing one uniform with a cumulative law, a draft accepted by comparing one uniform with a
    ratio. The thresholds are found by bisection through the code, to the last bit, one row of a batch for each.

    drafts_from: the table that drafts are drawn from instead, of a drafter that knows nothing of the network.
    """

    def __init__(self, table, num_tokens, order, k, drafts_from=None):
        self.num_tokens, self.length, self.order, self.k = num_tokens, len(order), list(order), k
        self.marginals = marginals_of(table, num_tokens)
        self.p, self.other = torch.tensor(table), drafts_from
        self.seen = None

    def listen(self, xt, t, positions):
        self.seen = xt
        return self.marginals(xt, t, positions)

    def ahead(self, xt, done, table):
        """(B, n, V): what the table says of the next n positions, at xt before its last token."""
        before = xt.index_fill(1, torch.tensor(self.order[done - 1]), self.num_tokens)
        next_ones = self.order[done : done + self.k]
        return table[torch.from_numpy(index_of(before.numpy(), self.num_tokens + 1))][:, next_ones]

    def round(self, xt, drafts, coins, again):
        """A round of rows (B, l) of as many masks each; uniforms (B, k), (B, k), (B,)."""
        left = (xt == self.num_tokens).sum(1)
        assert (left == left[0]).all()
        done = self.length - int(left[0])
        turns = torch.tensor((self.order[done:] + [self.length] * (2 * self.k + 1))[: 2 * self.k + 1])
        ahead, ready = None, torch.full((len(xt),), done > 0)
        if done:
            ahead = self.ahead(xt, done, self.p if self.other is None else torch.tensor(self.other))
            ahead = torch.cat((ahead, ahead[:, :1].expand(-1, self.k - ahead.shape[1], -1)), dim=1)
        uniforms, counts = (drafts, coins, again[:, None]), [(self.length - done, done > 0)] * len(xt)
        after = speculative_round(self.listen, xt, turns.expand(len(xt), -1), left, ahead, ready, uniforms, counts)
        assert torch.equal(after.ready, left > after.settled)
        for settled in after.settled[after.ready].unique().tolist():
            here = after.settled == settled
            expected = self.ahead(after.xs[here], done + settled, self.p)
            assert torch.equal(after.ahead[here, : expected.shape[1]], expected), "the next drafts' laws"
        return after

    def constant(self, batch, value):
        return torch.full((batch, self.k), value, dtype=torch.float64)

    def drafts(self, xt, order, uniforms):
        """(B, n): the drafts, read from the row of the call that has all n of them."""
        self.round(xt, uniforms, self.constant(len(xt), NEVER_ONE), uniforms[:, 0])
        return self.seen.view(len(xt), self.k + 1, -1)[:, len(order)][:, order]

    def behind(self, ranks_, rows, settle):
        """Of rows (n,): the states, which of the rows each comes from, and the mass of the token drawn at `ranks_`.

        settle(which, u): the states after the round of rows[which] with u for that token.
        """
        V = self.num_tokens
        which, value = rows.repeat_interleave(V - 1), torch.arange(V - 1).repeat(len(rows))
        cut = framed(thresholds(lambda u: settle(which, u)[:, ranks_] <= value, len(which)).view(-1, V - 1))
        for v in range(V):
            yield settle(rows, (cut[:, v] + cut[:, v + 1]) / 2), rows, cut[:, v + 1] - cut[:, v]

    def law(self, xt):
        """The law of a round from each of the rows xt (S, l), which have as many masks: states (N, l), of, mass (N,).

        of (N,): which of the S rows a state comes from.
        """
        V, left = self.num_tokens, int((xt[0] == self.num_tokens).sum())
        done = self.length - left
        n = min(self.k, left) if done else 0  # drafts
        order = self.order[done : done + n]
        of, mass = torch.arange(len(xt)), torch.ones(len(xt), dtype=torch.float64)
        uniforms = self.constant(len(xt), 0.5)

        if n:  # the drafts, slot by slot
            places = itertools.product(range(len(xt)), range(n), range(V - 1))
            row, slot, token = (torch.tensor(x) for x in zip(*places, strict=True))
            every = torch.arange(len(row))

            def draft_at_most(u):
                numbers = self.constant(len(row), 0.5)
                numbers[every, slot] = u
                return self.drafts(xt[row], order, numbers)[every, slot] <= token

            cuts = framed(thresholds(draft_at_most, len(row)).view(len(xt), n, V - 1))
            drafts = torch.from_numpy(all_rows(V, n))
            of = of.repeat_interleave(len(drafts))
            drafts = drafts.repeat(len(xt), 1)
            width = cuts.diff(dim=-1)[of[:, None], torch.arange(n), drafts]
            middle = ((cuts[..., 1:] + cuts[..., :-1]) / 2)[of[:, None], torch.arange(n), drafts]
            mass = width.prod(dim=1)
            of, mass, middle = of[mass > 0], mass[mass > 0], middle[mass > 0]
            uniforms = self.constant(len(of), 0.5)
            uniforms[:, :n] = middle
        half = torch.full((len(of),), 0.5, dtype=torch.float64)

        def coins(j, value):
            """Everything before slot j is accepted, and behind it what is certain."""
            made = self.constant(len(of), NEVER_ONE)
            made[:, :j] = NEVER_ZERO
            if j < self.k:
                made[:, j] = value
            return made

        def accepted(j, u):
            return self.round(xt[of], uniforms, coins(j, u), half).kept > j

        def settle(j, which, u):
            """The states where the drafts before slot j are accepted, the one there is not, and u draws the token."""
            return self.round(xt[of[which]], uniforms[which], coins(j, NEVER_ONE)[which], u).xs

        states, origin, weights = [], [], []
        for j in range(n):
            chance = thresholds(partial(accepted, j), len(of))
            refused = ((chance < 1) & (mass > 0)).nonzero()[:, 0]
            if len(refused):
                for state, rows, part in self.behind(order[j], refused, partial(settle, j)):
                    states.append(state)
                    origin.append(of[rows])
                    weights.append((mass * (1 - chance))[rows] * part)
            mass = mass * chance
        alive = (mass > 0).nonzero()[:, 0]
        if len(alive) and left > n:  # all drafts were accepted, or there were none: one token more
            for state, rows, part in self.behind(self.order[done + n], alive, partial(settle, n)):
                states.append(state)
                origin.append(of[rows])
                weights.append(mass[rows] * part)
        elif len(alive):
            states.append(settle(n, alive, half[alive]))
            origin.append(of[alive])
            weights.append(mass[alive])
        states, origin, weights = torch.cat(states), torch.cat(origin), torch.cat(weights)
        return states[weights > 0], origin[weights > 0], weights[weights > 0]

    def sampler_law(self):
        """The law over V^l of whole rows, rounds until no mask is left."""
        V, states = self.num_tokens, torch.from_numpy(all_rows(self.num_tokens + 1, self.length))
        law, masks = torch.zeros(len(states), dtype=torch.float64), (states == V).sum(1)
        law[-1] = 1.0
        for left in range(self.length, 0, -1):
            here = ((masks == left) & (law > 0)).nonzero()[:, 0]
            if len(here):
                after, of, mass = self.law(states[here])
                settled = left - (after == V).sum(1)
                assert (settled >= 1).all() and (settled <= min(self.k + 1, left)).all()
                assert left < self.length or (settled == 1).all()
                law.index_add_(0, torch.from_numpy(index_of(after.numpy(), V + 1)), mass * law[here][of])
                law[here] = 0.0
        return law[masks == 0].numpy()


WORLDS = [
    *(("random", tokens, length) for length in (2, 3, 4) for tokens in (2, 3, 4)),
    *(("sparse", tokens, length) for tokens, length in ((3, 2), (3, 3), (2, 4), (4, 4))),
    *(("greedy", tokens, length) for tokens, length in ((3, 3), (4, 4))),
]


@pytest.mark.parametrize(("kind", "num_tokens", "length"), WORLDS)
def test_the_law_is_that_of_one_token_steps(kind, num_tokens, length):
    table = TABLES[kind]((num_tokens + 1) ** length, length, num_tokens, seed=num_tokens + length)
    orders = list(itertools.permutations(range(length)))
    for number, k in enumerate((2, 3, 4, 5) if (num_tokens, length) == (2, 4) else (2, 3, 4)):
        order = orders[(5 * number + num_tokens) % len(orders)]  # the law holds for each order, so for a random one
        law = RoundLaw(table, num_tokens, order, k).sampler_law()
        gap = total_variation(law, one_token_law(table, num_tokens, length, order))
        assert gap < 1e-12, (k, order, gap)


@pytest.mark.parametrize("k", [2, 3])
def test_the_law_does_not_depend_on_what_the_drafts_were_drawn_from(k):
    table, other = random_predictor(4**3, 3, 3, seed=1), sparse_predictor(4**3, 3, 3, seed=2)
    law = RoundLaw(table, 3, (2, 0, 1), k, drafts_from=other).sampler_law()
    assert total_variation(law, one_token_law(table, 3, 3, (2, 0, 1))) < 1e-12


def test_the_marginals_of_the_row_as_it_was_have_another_law():
    """What is accepted and refused for: these tables do tell the two apart."""
    table, rows = random_predictor(3**3, 3, 2, seed=5), all_rows(2, 3)
    assert total_variation(one_token_law(table, 2, 3, (0, 1, 2)), table[-1][np.arange(3), rows].prod(-1)) > 0.1


def masks_of(rows, num_tokens, length):
    return torch.full((rows, length), num_tokens), torch.ones(rows, length, dtype=torch.bool)


def test_every_order_is_as_likely_as_any_other():
    keys, ties = (x.flatten(0, 1) for x in torch.broadcast_tensors(orderings(3)[:, None], orderings(3)[None]))
    xt, editable = masks_of(len(keys), 2, 3)
    some = torch.full((len(keys), 3), 0.5, dtype=torch.float64)
    script = Script(keys, ties, some, *[torch.cat((some, some * 0 + NEVER_ZERO, some[:, :1]), dim=1)] * 3)
    ask, seen = marginals_of(random_predictor(27, 3, 2, seed=0), 2), []

    def listening(rows, t, positions):
        seen.append(rows.view(-1, 4, 3))
        return ask(rows, t, positions)

    done = speculate(MaskProcess(2), listening, xt, 3, editable=editable, random=script)
    assert len(seen) == int(done.rounds.max()) <= 3, "a call a round"
    ranks_ = (seen[1][:, :3] < 2).sum(1)  # rows with one token, with one draft and two: the first is in all of them
    assert sorted(map(tuple, ranks_.tolist())) == sorted(list(itertools.permutations((1, 2, 3))) * 6)


@pytest.mark.parametrize(("k", "left_to_right"), [(2, False), (3, True), (4, False)])
def test_whole_runs_have_the_law_of_one_token_steps(k, left_to_right):
    """Rounds after rounds with each row's own numbers, the laws of the next drafts carried over."""
    num_tokens, length, rows = 2, 5, 200_000
    table = TABLES["random"](3**5, length, num_tokens, seed=k)
    table = (table + 2 * table[-1:]) / 3  # nearer to each other, so that whole rounds are accepted too
    orders = [tuple(range(length))] if left_to_right else list(itertools.permutations(range(length)))
    law = np.mean([one_token_law(table, num_tokens, length, order) for order in orders], axis=0)
    xt, editable = masks_of(rows, num_tokens, length)
    random = RowRandom(k, torch.arange(rows))
    done = speculate(
        MaskProcess(num_tokens),
        marginals_of(table, num_tokens),
        xt,
        k,
        editable=editable,
        random=random,
        left_to_right=left_to_right,
    )
    seen = np.bincount(index_of(done.sequences.numpy(), num_tokens), minlength=len(law))
    assert chisquare(seen, law * rows).pvalue > 0.001
    assert (done.tokens == length).all()
    assert (done.drafts.accepted[:, -1] > 0).any(), "a round was accepted whole"
    assert (done.drafts.tested >= done.drafts.accepted).all()
    refused = (done.drafts.tested - done.drafts.accepted).sum(1)
    assert (refused < done.rounds).all() and (refused > 0).any(), "the first round has no drafts"
    assert (done.drafts.tested[:, 0] == done.rounds - 1).all(), "every other round tests its first draft"


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("k", [2, 3, 4])
def test_where_the_context_tells_nothing_every_draft_is_accepted(k, length):
    table = np.broadcast_to(random_predictor(1, length, 2, seed=1), (3**length, length, 2))
    xt, editable = masks_of(300, 2, length)
    calls = []
    done = speculate(
        MaskProcess(2), marginals_of(table, 2, calls), xt, k, editable=editable, random=RowRandom(0, torch.arange(300))
    )
    rounds = 1 + math.ceil((length - 1) / (k + 1))  # one token, then k drafts and one more each
    assert (done.rounds == rounds).all() and len(calls) == rounds
    assert (done.drafts.tested == done.drafts.accepted).all()
    tested = done.drafts.tested.sum(0)
    assert torch.equal(done.drafts.acceptance[tested > 0], torch.ones_like(tested[tested > 0]).double())
    full, rest = divmod(length - 1, k + 1)
    assert int(tested.sum()) == 300 * (full * k + rest)
    torch.testing.assert_close(done.tokens_per_call, length / done.rounds.double())


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_call_settles_a_token_even_where_all_drafts_are_wrong(k):
    """A network whose mind changes with every token: each further draft is impossible."""
    length, num_tokens = 7, 2
    table = np.zeros((3**length, length, num_tokens))
    masks = (all_rows(3, length) == 2).sum(1)
    table[np.arange(3**length), :, masks % 2] = 1.0
    xt, editable = masks_of(50, num_tokens, length)
    left = []
    done = speculate(
        MaskProcess(num_tokens),
        marginals_of(table, num_tokens),
        xt,
        k,
        editable=editable,
        random=RowRandom(0, torch.arange(50)),
        on_round=lambda number, xs, remaining: left.append(remaining[0].item()),
    )
    assert left == [6, 5, 4, 3, 2, 1, 0]
    assert (done.rounds == 7).all() and (done.tokens_per_call == 1).all(), "as one-token steps"
    assert not done.drafts.accepted.any() and (done.drafts.tested[:, 0] == 6).all()


def test_rows_with_nothing_to_fill_in_rest_and_a_round_of_one_is_refused():
    table = random_predictor(27, 3, 2, seed=0)
    xt = torch.tensor([[0, 1, 0], [2, 2, 1]])
    settings = {"editable": torch.ones(2, 3, dtype=torch.bool), "random": RowRandom(0, torch.arange(2))}
    done = speculate(MaskProcess(2), marginals_of(table, 2), xt, 4, **settings)
    assert done.sequences[0].tolist() == [0, 1, 0] and (done.sequences[1] < 2).all()
    assert done.rounds.tolist() == [0, 2] and done.tokens.tolist() == [0, 2]
    assert done.tokens_per_call.tolist() == [0, 1]
    with pytest.raises(ValueError, match="at least 2"):
        speculate(MaskProcess(2), marginals_of(table, 2), xt, 1, **settings)
    whole = speculate(MaskProcess(2), marginals_of(table, 2), xt[:1], 2, editable=settings["editable"][:1], random=None)
    assert whole.sequences.tolist() == [[0, 1, 0]]


def careless_marginals_of(table, num_tokens):
    """As `marginals_of`, of a network that may be asked about anything: rows with [MASK] or tokens out of turn, too."""
    p, powers = torch.tensor(table), (num_tokens + 1) ** torch.arange(table.shape[1]).flip(0)

    def marginals(xt, t, positions):
        laws = p[(xt @ powers)[positions.rows], positions.columns]
        return lambda which: laws if which is None else laws[which]

    return marginals


@pytest.mark.parametrize("replaces", [None, "fills", "masks", "watches"])
@pytest.mark.parametrize(("kind", "k"), [("random", 2), ("sparse", 3), ("greedy", 5)])
def test_asked_everywhere_it_is_the_same_text(kind, k, replaces):
    """What a device does in order not to wait: rows of all lengths, whole rounds and rounds that are cut short."""
    length, num_tokens = 6, 3
    table = TABLES[kind](4**length, length, num_tokens, seed=k)
    table = (table + table[-1:]) / 2
    xt, editable = masks_of(60, num_tokens, length)
    xt = xt.masked_fill(torch.from_numpy(all_rows(2, length)[:60]) == 1, 1)
    editable[::7, 2] = False

    def on_round(number, xs, left):
        seen.append(left.tolist())
        if replaces == "fills":
            xs[number % 5 :: 5, 1] = 0
        return xs.index_fill(1, torch.tensor([3]), num_tokens) if replaces == "masks" and number == 1 else None

    on_round.replaces = replaces != "watches"
    found = []
    for everywhere in (False, True):
        seen = []
        how = {"editable": editable, "random": RowRandom(k, torch.arange(60)), "everywhere": everywhere}
        how["on_round"] = on_round if replaces else None
        done = speculate(MaskProcess(num_tokens), careless_marginals_of(table, num_tokens), xt, k, **how)
        found.append([done.sequences, done.rounds, done.tokens, *done.drafts, torch.tensor(seen)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    sequences, rounds, _, tested, accepted, _ = found[0]
    assert replaces == "masks" or not (sequences == num_tokens)[editable].any()
    assert rounds.max() > 2 and (tested >= accepted).all() and accepted.any()


def test_acceptance_is_counted_over_all_rows():
    drafts = Drafts(torch.tensor([[0, 4, 2], [0, 4, 0]]), torch.tensor([[0, 2, 1], [0, 4, 0]]))
    assert drafts.acceptance[1:].tolist() == [0.75, 0.5] and drafts.acceptance[0].isnan()


# ---- generate


@pytest.fixture(scope="module")
def model():
    """In double precision: what rounding does is not what is asked here."""
    return make_udm("mask", length_counts=COUNTS).double()


def generated(model, rows, index, width=0, **how):
    width = max(width, *(len(row) for row in rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    output = model.generate(
        ids, attention_mask=ids != PAD, sample_index=torch.tensor(index), seed=3, return_dict_in_generate=True, **how
    )
    return [tokens[keep].tolist() for tokens, keep in zip(output.sequences, output.attention_mask, strict=True)], output


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("how", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}], ids=str)
def test_a_rows_result_depends_on_its_input_seed_and_sample_index_only(model, order, k, how):
    how = {"order": order, "speculate": k, **how}
    together, output = generated(model, ROWS, [5, 1, 9, 2], **how)
    assert together == generated(model, ROWS, [5, 1, 9, 2], **how)[0], "the seed reproduces"
    assert together == generated(model, ROWS, [5, 1, 9, 2], width=15, **how)[0], "padding"
    assert together[::-1] == generated(model, ROWS[::-1], [2, 9, 1, 5], **how)[0], "another order"
    for number, (row, index, result) in enumerate(zip(ROWS, (5, 1, 9, 2), together, strict=True)):
        alone, one = generated(model, [row], [index], **how)
        assert alone == [result]
        assert one.steps.tolist() == [output.steps[number]]
        assert one.tokens_per_call.tolist() == [output.tokens_per_call[number]]
        assert torch.equal(one.drafts.tested[0], output.drafts.tested[number])
        assert one.num_calls == round(int(one.editable.sum()) / one.tokens_per_call.item())
    for row, result in zip(ROWS[:3], together[:3], strict=True):
        for before, after in zip(row, result, strict=True):
            assert after > MASK if before == MASK else after == before
    assert together[3][:2] == [CLS, 11] and together[3][-1] == SEP and min(together[3][2:-1]) > MASK


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_path_of_the_network_serves_it(family):
    model = make_udm("mask", family=family, length_counts=COUNTS).double()
    how = {"length": 14, "num_return_sequences": 5, "speculate": 3, "seed": 2}
    fast = model.generate(**how)
    with plain_path():
        assert torch.equal(fast, model.generate(**how))


def test_another_seed_gives_another_row(model):
    first = model.generate(length=12, speculate=4, seed=0)
    assert torch.equal(first, model.generate(length=12, speculate=4, seed=0))
    assert not torch.equal(first, model.generate(length=12, speculate=4, seed=1))
    rows = model.generate(length=12, speculate=4, seed=0, num_return_sequences=3)
    assert torch.equal(rows[:1], first) and len(rows.unique(dim=0)) == 3


@pytest.mark.parametrize("how", [{"temperature": 0}, {"top_k": 1}], ids=str)
@pytest.mark.parametrize("k", [2, 4, 16])
def test_without_chance_the_row_is_that_of_one_token_steps(model, k, how):
    how = {"length": 14, "order": "left_to_right", "num_return_sequences": 2, **how}
    assert torch.equal(model.generate(speculate=k, **how), model.generate(**how))


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.6, "top_p": 0.9}, {"top_k": 2}], ids=str)
def test_generate_has_the_law_of_one_token_steps(time_conditioning, how):
    words, length, rows, k = [5, 6, 7], 3, 8_000, 3
    special = [token for token in range(24) if token not in (*words, MASK)]
    model = make_udm("mask", special_token_ids=special, time_conditioning=time_conditioning).double()
    states = torch.tensor(words + [MASK])[torch.from_numpy(all_rows(4, length))]
    framed_rows = torch.cat((states.new_full((64, 1), CLS), states, states.new_full((64, 1), SEP)), dim=1)
    with torch.no_grad():
        logits = model(framed_rows, t=(states == MASK).sum(1), num_editable=torch.full((64,), length)).logits
    logits = logits[:, 1:-1, words] / how.get("temperature", 1)
    table = logits.softmax(-1).numpy()
    if "top_k" in how:
        table = np.where(table >= np.sort(table)[..., -2:-1], table, 0)
    if "top_p" in how:
        ranked = -np.sort(-table)
        cut = np.take_along_axis(ranked, (ranked.cumsum(-1) >= 0.9).argmax(-1)[..., None], -1)
        table = np.where(table >= cut, table, 0)
    table = table / table.sum(-1, keepdims=True)
    law = np.mean([one_token_law(table, 3, length, order) for order in itertools.permutations(range(length))], axis=0)
    output = model.generate(length=length, num_return_sequences=rows, speculate=k, seed=1, **how)
    seen = np.bincount(index_of(output[:, 1:-1].numpy() - words[0], 3), minlength=27)
    assert not seen[law == 0].any()
    assert chisquare(seen[law > 0], law[law > 0] * rows).pvalue > 0.001


def test_what_a_run_reports(model):
    streamed, called = [], []
    streamer = SimpleNamespace(put=streamed.append, put_draft=streamed.append, end=lambda: streamed.append("end"))

    def callback(model, number, s, values):
        called.append((number, s.clone(), values["xt"].clone()))

    how = {"length": 9, "speculate": 3, "seed": 4}
    output = model.generate(**how, output_trajectory=True, streamer=streamer, callback_on_step_end=callback)
    rounds = int(output.steps[0])
    assert [number for number, _, _ in called] == list(range(rounds))
    assert len(output.trajectory) == rounds + 1 and torch.equal(output.trajectory[-1], output.sequences)
    before = 9
    for number, s, xt in called:
        assert torch.equal(xt, output.trajectory[number + 1]) and s.item() == (xt == MASK).sum()
        assert 1 <= before - s.item() <= 4
        before = s.item()
    assert streamed[-1] == "end" and len(streamed) == rounds + 4
    assert torch.equal(output.sequences, model.generate(**how)), "watching changes nothing"
    assert output.num_calls == rounds and output.tokens_per_call.tolist() == [9 / rounds]
    assert output.drafts.tested.shape == (1, 3) and output.drafts.acceptance.shape == (3,)
    plain = model.generate(length=9, seed=4, return_dict_in_generate=True)
    assert plain.tokens_per_call.tolist() == [1.0] and plain.drafts is None


def test_a_callback_may_fill_in_and_open_positions(model):
    def fill(model, number, s, values):
        xt = values["xt"].clone()
        if number == 0:
            xt[:, -2] = 9
        return {"xt": xt}

    output = model.generate(length=9, speculate=3, seed=4, callback_on_step_end=fill, return_dict_in_generate=True)
    assert output.sequences[0, -2] == 9 and output.sequences.min() > PAD and not (output.sequences == MASK).any()

    def reopen(model, number, s, values):
        return {"xt": values["xt"].masked_fill(torch.arange(11) == 5, MASK)}

    output = model.generate(length=9, speculate=3, seed=4, callback_on_step_end=reopen, return_dict_in_generate=True)
    assert output.sequences[0, 5] == MASK and output.steps.item() == 9, "it ends all the same"


def test_a_callback_that_changes_a_row_sends_its_next_drafts_back():
    """The marginals that were ready are those of another row then: the run has the law of the row as it stands."""
    table = np.broadcast_to(random_predictor(1, 4, 2, seed=1), (81, 4, 2))
    xt, editable = masks_of(20, 2, 4)
    calls = []

    def change(number, xs, left):
        xs = xs.clone()
        xs[:5] = torch.where(xs[:5] < 2, 1 - xs[:5], xs[:5])
        return xs

    done = speculate(
        MaskProcess(2),
        marginals_of(table, 2, calls),
        xt,
        2,
        editable=editable,
        random=RowRandom(0, torch.arange(20)),
        on_round=change,
    )
    assert calls == [20, 5 + 15 * 3, 5, 5] and done.rounds.tolist() == [4] * 5 + [2] * 15


def test_constraints_hold_for_drafts_and_conditionals(model):
    how = {"length": 8, "speculate": 3, "seed": 0, "num_return_sequences": 20}
    rows = model.generate(**how, forbidden_tokens=[5, 6], allowed_tokens={3: [9, 10]})[:, 1:-1]
    assert not torch.isin(rows, torch.tensor([5, 6])).any() and set(rows[:, 2].tolist()) == {9, 10}

    def odd(input_ids, scores):
        assert input_ids.shape == (len(scores), 10)
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 0, -torch.inf)

    assert (model.generate(**how, logits_processor=odd)[:, 1:-1] % 2 == 1).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"order": "confidence"}, "order must be 'random' or 'left_to_right'"),
        ({"num_steps": 3}, "num_steps=3"),
        ({"churn": 0.5}, "churn=0.5"),
        ({"max_edits": 2}, "max_edits=2"),
        ({"kernel": "free"}, "kernel='free'"),
    ],
    ids=str,
)
def test_what_does_not_go_with_speculation_is_refused(model, how, message):
    with pytest.raises(ValueError, match=message):
        model.generate(speculate=4, **({"length": 5} | how))


def test_any_setting_that_steers_steps_in_another_way_is_refused(model):
    known = set(
        "speculate order guidance_scale temperature top_k top_p length max_new_tokens num_return_sequences seed".split()
    )
    known |= {"return_dict_in_generate", "output_trajectory", "forbidden_tokens", "allowed_tokens"}
    known |= {"begin_suppress_tokens", "compile"}
    for name, default in UDMGenerationConfig._defaults.items():
        other = UDMGenerationConfig(speculate=2, length=5)
        setattr(other, name, "random" if name == "order" else "something else")
        if name in known:
            check_speculation(other)
        else:
            with pytest.raises(
                ValueError, match=f"speculate .* does not go with {name}=.* leave {name} at {default!r}"
            ):
                check_speculation(other)


def test_substitute_models_and_senseless_numbers_are_refused():
    with pytest.raises(ValueError, match="speculate is of the mask process.*'substitute'.*fills in masks"):
        make_udm("substitute", length_counts=COUNTS).generate(length=5, speculate=2)
    for bad in (1, 0, -2, 2.5, True, "4"):
        with pytest.raises(ValueError, match="speculate must be an integer that is at least 2"):
            UDMGenerationConfig(speculate=bad)
    assert UDMGenerationConfig.from_dict(UDMGenerationConfig(speculate=4).to_dict()).speculate == 4
