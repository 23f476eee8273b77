"""The edit process has exactly the laws it claims, its inverse is the posterior, and its bounds are bounds.

Statements about the definition are checked in fractions (tests/oracle/edits.py); the code by every outcome of its
randomness where these can be listed, and else by counted samples: a chi-square test at a chance of 1e-5 of a false
alarm each, with fixed seeds.
"""

from collections import Counter, defaultdict
from fractions import Fraction
from itertools import product as cartesian
from math import exp, lgamma, log
from random import Random

import pytest
import torch
from scipy.stats import chisquare

from tests.oracle.edits import (
    STOP,
    WALL,
    EditWorld,
    apply,
    canonical,
    canonical_edits,
    distance,
    entropy_of,
    every_edit,
    multiplicity,
    same,
    step_law,
    texts_of,
    undo,
)
from tests.oracle.outcomes import ALLOWED, SPECIAL, Script, cells, combine, orderings
from udm_text.core import Prediction, denoise
from udm_text.edit_actions import (
    EditScores,
    Move,
    draw_move,
    edit_losses,
    edit_rates,
    find_runs,
    make_move,
    undo_terms,
)
from udm_text.edits import EditNoise, EditProcess
from udm_text.hamming import NEVER
from udm_text.lattice import DELETE, INSERT, KEEP, SUBSTITUTE
from udm_text.processes import ranks
from udm_text.randomness import RowRandom

EXACT = 1e-12
FALSE_ALARM = 1e-5
HOLE = 1
NAMES = {SUBSTITUTE: "substitute", DELETE: "delete", INSERT: "insert"}
MIXED = (0.5, 0.25, 0.25)
TOKENS = (0, 1)


def make_process(num_tokens=2, shares=MIXED):
    return EditProcess(torch.tensor(ALLOWED[:num_tokens]), HOLE, shares)


def make_row(text, room):
    """((1, L) tokens, (1, L) editable): a frame, and each segment of the text with `room` holes behind its tokens."""
    row, editable, segments = [SPECIAL], [False], [[]]
    for token in text:
        if token == WALL:
            segments.append([])
        else:
            segments[-1].append(ALLOWED[token])
    for segment in segments:
        row += [*segment, *[HOLE] * room, SPECIAL]
        editable += [True] * (len(segment) + room) + [False]
    return torch.tensor([row]), torch.tensor([editable])


def fill_row(text, row, editable):
    """(1, L) tokens: the text in the segments of a row."""
    row, place = row[0].masked_fill(editable[0], HOLE), 0
    starts = [i for i in range(1, len(row)) if editable[0, i] and not editable[0, i - 1]]
    for token in text:
        if token == WALL:
            place = 0
            starts.pop(0)
        else:
            row[starts[0] + place] = ALLOWED[token]
            place += 1
    return row[None]


def read_rows(rows, editable):
    """The text of each row, as a list of tuples."""
    found = []
    for row, is_open in zip(rows.tolist(), editable.tolist(), strict=True):
        text: list[int] = []
        begun = False
        for i, token in enumerate(row):
            if not is_open[i]:
                assert token == SPECIAL
                if begun and i + 1 < len(row) and is_open[i + 1]:
                    text.append(WALL)
            else:
                begun = True
                if token != HOLE:
                    assert not is_open[i - 1] or row[i - 1] != HOLE
                    text.append(ALLOWED.index(token))
        found.append(tuple(text))
    return found


def check_counts(counts, law, total):
    """A chi-square test of counted outcomes against their law, the rare ones as one; nothing may occur that cannot."""
    assert not [x for x in counts if not law.get(x)], "an outcome that cannot be"
    assert abs(sum(law.values()) - 1) < 1e-9
    common = [x for x in law if law[x] * total > 8]
    seen, expected = [counts[x] for x in common], [float(law[x]) * total for x in common]
    if total - sum(expected) > 4:
        seen, expected = [*seen, total - sum(seen)], [*expected, total - sum(expected)]
    assert len(seen) > 1, "too few samples, or no choice"
    scale = sum(seen) / sum(expected)
    assert chisquare(seen, [scale * e for e in expected]).pvalue > FALSE_ALARM


def fractions_of(shares):
    return tuple(Fraction(share).limit_denominator(100) for share in shares)


def make_world(num_tokens, lengths, shares, seed=0):
    """A law of texts that likes equal neighbours."""
    source, weights = Random(seed), {}
    for text in texts_of(num_tokens, *lengths):
        weights[text] = source.gammavariate(0.5, 1) + 1e-3
        weights[text] *= 8.0 ** sum(a == b for a, b in zip(text, text[1:], strict=False))
    total = sum(weights.values())
    return EditWorld(num_tokens, shares, {text: weight / total for text, weight in weights.items()})


# --- the definition, in fractions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "x0", "shares"),
    [
        (2, (0, 1), MIXED),
        (2, (0, 0, 1), (0.2, 0.3, 0.5)),
        (3, (2, 2), (0.6, 0.3, 0.1)),
        (2, (0, WALL, 0), MIXED),
        (2, (WALL, 0, 1), MIXED),
        (2, (0, 0), (0, 0.5, 0.5)),
        (3, (0, 1), (1, 0, 0)),
        (2, (0, 1, 1), (0, 1, 0)),
        (2, (0, 1), (0, 0, 1)),
    ],
)
def test_an_alignment_has_its_closed_chance_and_the_last_edit_is_a_uniform_one_of_it(num_tokens, x0, shares):
    """Edits made one after the other, with the texts between them, against unordered alignments."""
    world = EditWorld(num_tokens, fractions_of(shares), {})
    for t in range(1 + sum(v != WALL for v in x0)):
        law, back = world.forward(x0, t), defaultdict(int)
        assert sum(law.values()) == 1
        for chance, texts, edits, _ in world.paths(x0, t):
            if t:
                back[texts[-1], canonical(texts[-1], edits[-1])] += chance
        for xt, p in law.items():
            assert sum(chance for chance, _ in world.alignments(x0, xt, t)) == p
            if t:
                for edit, r in world.reverse(x0, xt, t).items():
                    assert back.pop((xt, edit)) == p * r
        assert not any(back.values())


@pytest.mark.parametrize("x0", [(0, 1, 0), (1, WALL, 0, 0)])
def test_the_step_back_keeps_the_law(x0):
    """sum over xt of q(x_{t-1} | xt, x0) q(xt | x0) = q(x_{t-1} | x0), in fractions."""
    world = EditWorld(2, fractions_of(MIXED), {})
    for t in range(1, 3):
        law = defaultdict(int)
        for xt, p in world.forward(x0, t).items():
            for edit, r in world.reverse(x0, xt, t).items():
                law[apply(xt, edit)] += p * r
        assert dict(law) == world.forward(x0, t - 1)


def test_the_places_that_a_step_of_texts_does_not_tell_apart_are_as_many_either_way():
    for text in texts_of(2, 0, 1, 2, 3, 4):
        edits = list(every_edit(text, 2))
        for edit in edits:
            assert multiplicity(text, edit) == sum(same(text, edit, other) for other in edits)


# --- the forward draw ------------------------------------------------------------------------------------------


def forward_outcomes(row, editable, num_tokens):
    """The seven calls of `sample_noise`, every outcome at the tokens and walls of the row; shares in quarters."""
    tokens = [i for i in range(row.shape[1]) if editable[0, i] and row[0, i] != HOLE]
    walls = [i for i in range(1, row.shape[1] - 1) if not editable[0, i] and editable[0, i + 1] and i > 0][0:]
    walls = [i for i in walls if editable[0, :i].any()]
    n = len(tokens)
    parts = combine(
        orderings(n), cells(4, n), cells(max(1, num_tokens - 1), n), cells(num_tokens, n), orderings(2 * n + len(walls))
    )
    keys, kinds, shifts, letters, order = parts

    def spread(values, where):
        full = torch.full((len(keys), row.shape[1]), 0.5, dtype=torch.float64)
        full[:, where] = values
        return full

    unused = torch.full((len(keys), row.shape[1]), 0.5, dtype=torch.float64)
    places, insertions = order[:, : n + len(walls)], order[:, n + len(walls) :]
    return [
        spread(keys, tokens),
        unused,
        spread(kinds, tokens),
        spread(shifts, tokens),
        spread(letters, tokens),
        spread(places, sorted(tokens + walls)),
        spread(insertions, tokens),
    ]


@pytest.mark.parametrize(
    ("num_tokens", "x0"), [(2, (0, 1)), (3, (2, 2)), (2, (1,)), (2, (0, WALL, 0)), (2, (WALL, 1, 0)), (2, ())]
)
def test_corrupt_has_exactly_the_forward_law(num_tokens, x0):
    process, world = make_process(num_tokens), EditWorld(num_tokens, fractions_of(MIXED), {})
    row, editable = make_row(x0, room=2)
    length = sum(v != WALL for v in x0)
    calls = forward_outcomes(row, editable, num_tokens) if length else [torch.full((1, row.shape[1]), 0.5)] * 7
    many = len(calls[0])
    rows, is_open = row.expand(many, -1), editable.expand(many, -1)
    for t in range(length + 2):
        script = Script(*(call.double() for call in calls))
        noise = process.sample_noise(rows, editable=is_open, random=script)
        assert script.used_up()
        counts = Counter(read_rows(process.corrupt(rows, torch.full((many,), t), noise), is_open))
        expected = world.forward(x0, min(t, length))
        assert {x: Fraction(n, many) for x, n in counts.items()} == expected


def test_the_first_s_edits_of_t_are_those_of_s():
    process, x0 = make_process(3), (0, 1, 2, 2, 0)
    row, editable = make_row(x0, room=5)
    rows, is_open = row.expand(200, -1), editable.expand(200, -1)
    noise = process.sample_noise(rows, editable=is_open, random=RowRandom(0, torch.arange(200)))
    kinds = [process.edit(rows, torch.full((200,), t), noise).kinds for t in range(6)]
    for fewer, more in zip(kinds, kinds[1:], strict=False):
        assert ((fewer == KEEP) | (fewer == more)).all() and ((more != KEEP).sum(1) == (fewer != KEEP).sum(1) + 1).all()


# --- the lattice, and the noise recovered ----------------------------------------------------------------------

PAIRS = [
    (2, (0, 1), MIXED),
    (2, (0, 0, 1), (0.2, 0.3, 0.5)),
    (3, (2, 0), (0.6, 0.3, 0.1)),
    (2, (0, WALL, 1), MIXED),
    (2, (1, 0), (0, 0.5, 0.5)),
    (3, (1, 0, 0), (1, 0, 0)),
    (2, (1, 1, 0), (0, 1, 0)),
    (2, (1, 0), (0, 0, 1)),
]


@pytest.mark.parametrize(("num_tokens", "x0", "shares"), PAIRS)
def test_log_forward_is_the_chance_of_every_text(num_tokens, x0, shares):
    process, world = make_process(num_tokens, shares), EditWorld(num_tokens, shares, {})
    row, editable = make_row(x0, room=3)
    length = len([v for v in x0 if v != WALL])
    walls = len(x0) - length
    for t in range(length + 1):
        law = world.forward(x0, t)
        texts = {*law, *(x for x in texts_of(num_tokens, length, length + 1))} if not walls else {*law}
        texts = sorted(x for x in texts if all(len(part) <= 4 for part in [x]) or x in law)
        rows = torch.cat([fill_row(x, row, editable) for x in texts])
        many = len(rows)
        got = process.log_forward(
            row.expand(many, -1), rows, torch.full((many,), t), editable=editable.expand(many, -1)
        )
        for x, value in zip(texts, got.tolist(), strict=True):
            assert abs(exp(value) - law.get(x, 0)) < EXACT
            assert (value > NEVER / 2) == (x in law)


def alignment_of(noise, x0, row, editable, t):
    """((kind, i, j), ..) of the t edits of a row, as in `EditWorld.alignments`, read from the noise itself."""
    here = [i for i in range(row.shape[1]) if (editable[0, i] and row[0, i] != HOLE)]
    walls = [
        i for i in range(1, row.shape[1] - 1) if not editable[0, i] and editable[0, i + 1] and editable[0, :i].any()
    ]
    things = sorted(here + walls)
    by_rank = sorted(here, key=lambda i: noise.keys[i])[:t]
    places = sorted(noise.places[i] for i in things)
    cells = [(place, n, None) for n, place in enumerate(places)]
    cells += [(noise.insertions[i], None, i) for i in by_rank if noise.kinds[i] == INSERT]
    found, i, j = [], 0, 0
    for _, n, came in sorted(cells, key=lambda cell: cell[0]):
        if came is not None:
            found.append(("insert", i, j))
            j += 1
            continue
        at, i = things[n], i + 1
        kind = NAMES[int(noise.kinds[at])] if at in by_rank else None
        if kind in ("substitute", "delete"):
            found.append((kind, i - 1, j))
        j += kind != "delete"
    return tuple(found)


@pytest.mark.parametrize(
    ("num_tokens", "x0", "xt", "t", "shares"),
    [
        (2, (0, 0, 1), (0, 1, 1), 3, (0.4, 0.3, 0.3)),
        (2, (0, 1), (1, 0), 2, MIXED),
        (3, (2, 2, 0), (2, 0, 1, 2), 3, (0.2, 0.3, 0.5)),
        pytest.param(2, (0, WALL, 1, 1), (1, 1, WALL, 1), 3, MIXED, marks=pytest.mark.slow),
        (2, (0, WALL, 1, 1), (0, 1, WALL, 1), 2, MIXED),
        (2, (0, 0, 0), (0,), 2, MIXED),
        (2, (0, 0), (0, 0, 0, 0), 2, MIXED),
    ],
)
def test_the_recovered_alignment_is_a_draw_from_its_posterior(num_tokens, x0, xt, t, shares):
    process, world, many = make_process(num_tokens, shares), EditWorld(num_tokens, shares, {}), 5_000
    row, editable = make_row(x0, room=3)
    noisy, is_open = fill_row(xt, row, editable).expand(many, -1), editable.expand(many, -1)
    noise = process.invert_noise(
        row.expand(many, -1), noisy, torch.full((many,), t), editable=is_open, random=RowRandom(3, torch.arange(many))
    )
    assert torch.equal(process.corrupt(row.expand(many, -1), torch.full((many,), t), noise), noisy)
    lists = [EditNoise(*(field[n].tolist() for field in noise)) for n in range(many)]
    counts = Counter(alignment_of(one, x0, row, editable, t) for one in lists)
    law = {tuple(edits): chance for chance, edits in world.alignments(x0, xt, t)}
    assert len(law) > 1
    total = sum(law.values())
    check_counts(counts, {edits: chance / total for edits, chance in law.items()}, many)


@pytest.mark.parametrize(("x0", "xt", "t"), [((0, 0, 1), (0, 1, 1), 3), ((0, 1, 1), (1, 1), 3), ((0, 0), (0, 0, 1), 2)])
def test_a_step_back_undoes_one_uniform_edit_of_the_posterior(x0, xt, t):
    process, world, many = make_process(), EditWorld(2, MIXED, {}), 8_000
    row, editable = make_row(x0, room=3)
    rows, is_open = row.expand(many, -1), editable.expand(many, -1)
    noisy, random = fill_row(xt, row, editable).expand(many, -1), RowRandom(4, torch.arange(many))
    grid = [torch.full((many,), t), torch.full((many,), t - 1)]
    xs = denoise(process, lambda xt, t, s: rows, noisy, grid, editable=is_open, random=random)
    law = defaultdict(float)
    for edit, p in world.reverse(x0, xt, t).items():
        law[apply(xt, edit)] += p
    check_counts(Counter(read_rows(xs, is_open)), law, many)


@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    ("num_tokens", "x0", "times"),
    [
        (2, (0, 0, 1), (3, 1)),
        (2, (0, 1, 1), (2, 1)),
        (3, (2, 2), (2, 1)),
        (2, (0, WALL, 0), (2, 1)),
        (2, (0, 1), (1, 2)),
        (2, (0, 0, 1), (3, 2, 1)),
    ],
)
def test_the_marginal_identity_holds_for_every_churn_and_jump(num_tokens, x0, times, churn):
    """What is drawn at t and walked to s is as if drawn at s."""
    process, world, many = make_process(num_tokens), EditWorld(num_tokens, MIXED, {}), 12_000
    row, editable = make_row(x0, room=3)
    rows, is_open = row.expand(many, -1), editable.expand(many, -1)
    random = RowRandom(2, torch.arange(many))
    grid = [torch.full((many,), t) for t in times]
    xt = process.corrupt(rows, grid[0], process.sample_noise(rows, editable=is_open, random=random))
    xs = denoise(process, lambda xt, t, s: rows, xt, grid, churn, editable=is_open, random=random)
    check_counts(Counter(read_rows(xs, is_open)), world.forward(x0, times[-1]), many)


def test_recovered_noise_is_as_fresh_noise():
    """Averaged over xt all of it has the law it was drawn from: ranks of keys, kinds, letters, the order of the
    places.
    """
    process, many, x0 = make_process(2, (0.4, 0.3, 0.3)), 12_000, (0, 1)
    row, editable = make_row(x0, room=2)
    rows, is_open, t = row.expand(many, -1), editable.expand(many, -1), torch.full((many,), 2)
    random = RowRandom(5, torch.arange(many))
    xt = process.corrupt(rows, t, process.sample_noise(rows, editable=is_open, random=random))
    noise = process.invert_noise(rows, xt, t, editable=is_open, random=random)
    at = [1, 2]
    kinds = Counter(map(tuple, noise.kinds[:, at].tolist()))
    check_counts(
        kinds, {(a, b): (0.4, 0.3, 0.3)[a] * (0.4, 0.3, 0.3)[b] for a, b in cartesian(range(3), repeat=2)}, many
    )
    ranked = Counter(map(tuple, torch.cat((ranks(noise.keys[:, at]), noise.letters[:, at]), 1).tolist()))
    check_counts(ranked, {(a, 1 - a, b, c): 1 / 8 for a, b, c in cartesian((0, 1), repeat=3)}, many)
    low = torch.minimum(noise.places[:, 1], noise.places[:, 2])
    order = ranks(
        torch.stack((low, torch.maximum(noise.places[:, 1], noise.places[:, 2]), *noise.insertions[:, at].T), 1)
    )
    seen = Counter(map(tuple, order.tolist()))
    check_counts(seen, dict.fromkeys([o for o in seen if o[0] < o[1]], 1 / 12), many)
    assert all(o[0] < o[1] for o in seen)
    for values in (noise.keys[:, at], noise.places, noise.insertions):  # each uniform by itself: 20 cells
        cell = (values * 20).long().flatten()
        check_counts(Counter(cell.tolist()), dict.fromkeys(range(20), 1 / 20), len(cell))


# --- properties ------------------------------------------------------------------------------------------------


def random_rows(batch, num_tokens, segments, seed, room):
    """(B, L) rows of one layout, (B, L) editable: each segment up to its width in `segments` and `room` holes more."""
    source = Random(seed)
    layout = [SPECIAL]
    editable = [False]
    for wide in segments:
        layout += [HOLE] * (wide + room) + [SPECIAL, SPECIAL]
        editable += [True] * (wide + room) + [False, False]
    rows = torch.tensor(layout).repeat(batch, 1)
    for row in rows:
        start = 1
        for wide in segments:
            count = source.randint(0, wide)
            row[start : start + count] = torch.tensor([source.choice(ALLOWED[:num_tokens]) for _ in range(count)])
            start += wide + room + 2
    return rows, torch.tensor(editable).expand(batch, -1)


@pytest.mark.parametrize("shares", [MIXED, (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_recovered_noise_carries_x0_to_xt_by_t_edits(shares):
    process, batch = make_process(4, shares), 120
    x0, editable = random_rows(batch, 4, (3, 4), 0, room=7)
    random, t = RowRandom(6, torch.arange(batch)), torch.arange(batch) % 6
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    noise = process.invert_noise(x0, xt, t, editable=editable, random=random)
    edited = process.edit(x0, t, noise)
    tokens = (editable & (x0 != HOLE)).sum(1)
    assert torch.equal(edited.xt, xt)
    assert torch.equal((edited.kinds != KEEP).sum(1), torch.minimum(t, tokens))
    assert torch.equal(torch.isfinite(noise.keys), editable)
    assert torch.equal(xt[~editable], x0[~editable])
    came = (editable & (xt != HOLE)).sum(1) - tokens
    assert torch.equal(came, (edited.kinds == INSERT).sum(1) - (edited.kinds == DELETE).sum(1))


def test_with_one_share_it_is_that_process_alone():
    for kind, share in ((SUBSTITUTE, (1, 0, 0)), (DELETE, (0, 1, 0)), (INSERT, (0, 0, 1))):
        process = make_process(3, share)
        x0, editable = random_rows(300, 3, (5,), 1, room=5)
        noise = process.sample_noise(x0, editable=editable, random=RowRandom(7, torch.arange(300)))
        edited = process.edit(x0, torch.full((300,), 3), noise)
        assert set(edited.kinds.unique().tolist()) == {KEEP, kind}
        if kind == SUBSTITUTE:
            tokens = (editable & (x0 != HOLE)).sum(1)
            assert torch.equal((edited.xt != x0).sum(1), tokens.clamp(max=3))


@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
def test_a_padded_row_in_a_batch_goes_the_way_it_goes_alone(churn):
    process, x0_hats = make_process(3), [(0, 1), (2,), (1, 1, 0), (0, 2, 1)]
    alone = [make_row(text, room=4) for text in x0_hats]
    width = max(row.shape[1] for row, _ in alone)
    together = torch.full((4, width), SPECIAL)
    editable = torch.zeros(4, width, dtype=torch.bool)
    for n, (row, is_open) in enumerate(alone):
        together[n, : row.shape[1]], editable[n, : row.shape[1]] = row, is_open

    def walk(rows, is_open, number):
        random = RowRandom(8, number)
        t = torch.minimum((is_open & (rows != HOLE)).sum(1), torch.tensor(2))
        xt = process.corrupt(rows, t, process.sample_noise(rows, editable=is_open, random=random))
        xs = denoise(process, lambda xt, t, s: rows, xt, [t, t - 1], churn, editable=is_open, random=random)
        return torch.cat((xt, xs), dim=0)

    batch = walk(together, editable, torch.arange(4)).view(2, 4, width)
    for n, (row, is_open) in enumerate(alone):
        assert torch.equal(batch[:, n, : row.shape[1]], walk(row, is_open, torch.tensor([n])))
    assert (batch[:, ~editable] == SPECIAL).all()


def test_no_argument_is_modified_in_place():
    process = make_process(3)
    x0, editable = random_rows(6, 3, (3,), 2, room=4)
    random, t = RowRandom(9, torch.arange(6)), torch.full((6,), 2)
    noise, fresh = (process.sample_noise(x0, editable=editable, random=random) for _ in range(2))
    xt = process.corrupt(x0, t, noise)
    given = [x0, editable, t, xt, *noise, *fresh]
    before = [x.clone() for x in given]
    process.invert_noise(x0, xt, t, editable=editable, random=random)
    process.blend(noise, fresh, 0.5)
    process.log_forward(x0, xt, t, editable=editable)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_what_cannot_be_is_refused():
    tokens = torch.tensor(ALLOWED)
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        EditProcess(tokens[:1], HOLE, MIXED)
    with pytest.raises(ValueError, match="hole_token_id must not be an allowed token, got 3"):
        EditProcess(tokens, 3, MIXED)
    for shares in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.2, 0.2, 0.2), (float("nan"), 0.5, 0.5)):
        with pytest.raises(ValueError, match="three chances of sum 1"):
            EditProcess(tokens, HOLE, shares)
    process, one = make_process(), torch.tensor([1])
    row, editable = make_row((0, 1), room=1)
    noise = process.sample_noise(row, editable=editable)
    with pytest.raises(ValueError, match="churn must lie"):
        process.blend(noise, noise, 1.5)
    with pytest.raises(ValueError, match="no prior"):
        process.prior(row)
    with pytest.raises(ValueError, match="x0 holds a token that may not stand"):
        process.corrupt(torch.where(row == ALLOWED[0], 8, row), one, noise)
    with pytest.raises(ValueError, match="x0 has a hole in front of a token"):
        process.corrupt(torch.where(row == ALLOWED[0], HOLE, row), one, noise)
    full, is_open = make_row((0, 1), room=0)
    only = make_process(shares=(0, 0, 1))
    with pytest.raises(ValueError, match="no room for the tokens that are inserted"):
        only.corrupt(full, one, only.sample_noise(full, editable=is_open))
    with pytest.raises(ValueError, match="t is no number of edits"):
        process.invert_noise(row, fill_row((1, 0), row, editable), one, editable=editable)


# --- the bound, on the definition ------------------------------------------------------------------------------


def random_predictor(num_tokens, states, seed, stop=False):
    """text -> {canonical edit: chance}: knows nothing and is sure of it."""
    source, table = Random(seed), {}
    for text in sorted(states):
        edits = [*canonical_edits(text, num_tokens), *([STOP] if stop else [])]
        weights = [exp(2 * source.gauss(0, 1)) for _ in edits]
        table[text] = {edit: weight / sum(weights) for edit, weight in zip(edits, weights, strict=True)}
    return table


def longest(world):
    return max(map(len, world.data))


def repair_bounds(world, count, predictors):
    """(x0, y) -> the bound on -log p(x0 | y) of the walk from y by `count` told edits; predictors[t][text][edit]."""
    found = {}
    for x0 in world.data:
        sums = defaultdict(float)
        for chance, texts, edits, ghosts in world.paths(x0, count):
            cost = log(chance)
            for t, (xt, edit, near) in enumerate(zip(texts[1:], edits, ghosts, strict=True), start=1):
                cost += log(multiplicity(xt, edit) * (1 + near)) - log(predictors[t][xt][canonical(xt, edit)])
            sums[texts[-1]] += chance * cost
        q = world.forward(x0, count)
        found |= {(x0, y): total / q[y] - log(q[y]) for y, total in sums.items()}
    return found


def walked(y, count, predictors, most):
    """The law of the texts up to `most` tokens after a walk from y by `count` told edits."""
    law = {y: 1.0}
    for t in range(count, 0, -1):  # what is too long to come back is left out
        law = {text: p for text, p in step_law(law, predictors[t]).items() if len(text) < most + t}
    return law


WORLDS = [
    (2, (3,), 2, MIXED),
    (2, (2, 3), 2, (0.3, 0.3, 0.4)),
    (3, (2,), 2, (0.6, 0.3, 0.1)),
    pytest.param(2, (3,), 3, (0.2, 0.4, 0.4), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("num_tokens", "lengths", "count", "shares"), WORLDS)
def test_the_walk_of_the_exact_predictor_from_corrupted_data_ends_in_the_law_of_the_data(
    num_tokens, lengths, count, shares
):
    world = make_world(num_tokens, lengths, shares)
    law = world.marginal(count)
    assert distance(law, world.data) > 0.05
    for t in range(count, 0, -1):
        law = step_law(law, world.exact_predictor(t))
    assert distance(law, world.data) < EXACT


@pytest.mark.parametrize("kind", ["exact", "wrong"])
@pytest.mark.parametrize(("num_tokens", "lengths", "count", "shares"), WORLDS)
def test_the_bound_of_a_repair_holds_for_every_text_and_start(num_tokens, lengths, count, shares, kind):
    world = make_world(num_tokens, lengths, shares)
    most = longest(world)
    states = texts_of(num_tokens, *range(most + count + 1))
    told = {
        t: world.exact_predictor(t) if kind == "exact" else random_predictor(num_tokens, states, t)
        for t in range(1, count + 1)
    }
    bounds, laws = repair_bounds(world, count, told), {}
    for (x0, y), bound in bounds.items():
        laws[y] = laws.get(y) or walked(y, count, told, most)
        assert bound + log(laws[y][x0]) > -EXACT
    assert len(bounds) > 20


@pytest.mark.parametrize("shares", [(0, 1, 0), (0, 0, 1)])
def test_for_deletions_or_insertions_alone_the_bound_of_the_exact_predictor_is_the_entropy(shares):
    """Their edits are Markov on texts: H(x0 | xt), on average, and nothing is lost. For a mixture something is."""
    world = make_world(2, (3,), shares)
    assert abs(average_bound(world, 2) - conditional_entropy(world, 2)) < EXACT
    mixed = make_world(2, (3,), MIXED)
    assert 0.02 < average_bound(mixed, 2) - conditional_entropy(mixed, 2) < 0.5


def average_bound(world, count):
    told = {t: world.exact_predictor(t) for t in range(1, count + 1)}
    bounds = repair_bounds(world, count, told)
    return sum(world.data[x0] * world.forward(x0, count)[y] * bound for (x0, y), bound in bounds.items())


def conditional_entropy(world, count):
    """H(x0 | xt)."""
    joint = {(x0, y): w * p for x0, w in world.data.items() for y, p in world.forward(x0, count).items()}
    return entropy_of(joint) - entropy_of(world.marginal(count))


# --- stopping --------------------------------------------------------------------------------------------------


def geometric(share, most):
    """Chances of t = 0..most: each further edit has the chance `share`, and beyond `most` there is none."""
    return [(1 - share) * share**t for t in range(most)] + [share**most]


def stopped(world, count_law, rounds=40):
    """The law of the texts where the exact predictor that is not told t stops, started from corrupted data."""
    predictor = world.untold_predictor(count_law)
    law, ended = defaultdict(float), defaultdict(float)
    for t, rho in enumerate(count_law):
        for x, p in world.marginal(t).items():
            law[x] += rho * p
    for _ in range(rounds):
        left = defaultdict(float)
        for text, weight in law.items():
            for edit, p in predictor.get(text, {STOP: 1.0}).items():
                (ended if edit == STOP else left)[apply(text, edit)] += weight * p
        law = left
    for text, weight in law.items():
        ended[text] += weight
    return dict(ended)


def test_without_t_the_walk_is_exact_where_stopping_needs_no_memory():
    """A geometric law of t is what is left of it after a step: exact but for the counts beyond l, which are cut."""
    world = make_world(2, (3,), MIXED)
    far = distance(stopped(world, [0.25] * 4), world.data)
    errors = [distance(stopped(world, geometric(share, 3)), world.data) for share in (0.2, 0.1, 0.05)]
    assert far > 0.02
    assert errors[0] < 0.01
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < coarse / 6  # the share of rows that are cut, share^3, falls by 8


@pytest.mark.parametrize("kind", ["exact", "wrong"])
def test_the_bound_of_a_repair_that_stops_holds_for_every_text_and_start(kind):
    """x0 given y, t unknown: E[-log p(stop | x0) + sum_t (-log p + log d) + log q(path, t | x0)] - log q(y | x0)."""
    world, most = make_world(2, (2,), MIXED), 2
    count_law = geometric(0.3, most)
    states = texts_of(2, *range(longest(world) + most + 1))
    untold = world.untold_predictor(count_law) if kind == "exact" else random_predictor(2, states, 0, stop=True)
    sums, chances = defaultdict(float), defaultdict(float)
    for x0 in world.data:
        for count, rho in enumerate(count_law):
            for chance, texts, edits, ghosts in world.paths(x0, count):
                cost = log(rho * chance) - log(untold[x0][STOP])
                for xt, edit, near in zip(texts[1:], edits, ghosts, strict=True):
                    cost += log(multiplicity(xt, edit) * (1 + near)) - log(untold[xt][canonical(xt, edit)])
                sums[x0, texts[-1]] += rho * chance * cost
                chances[x0, texts[-1]] += rho * chance
    for (x0, y), total in sums.items():
        bound = total / chances[x0, y] - log(chances[x0, y])
        law, stops = {y: 1.0}, 0.0
        for _ in range(most + 1):  # longer walks only add to the chance of x0
            stops += law.get(x0, 0.0) * untold[x0][STOP]
            going = {text: {e: p for e, p in untold.get(text, {}).items() if e != STOP} for text in law}
            law = step_law(law, going)
        assert bound + log(stops) > -EXACT


def test_the_bound_at_a_geometric_count_is_a_sum_of_the_losses():
    """f_0 + sum of g^t f_t + E log q(path, t | x0), where f_0 = -log p(stop), f_t = E[mean of -log p + log d]."""
    world, share, most = make_world(2, (3,), (0.4, 0.3, 0.3)), 0.3, 3
    count_law = geometric(share, most)
    untold = random_predictor(2, texts_of(2, *range(7)), 0, stop=True)

    def cost(xt, edit, near):
        return log(multiplicity(xt, edit) * (1 + near)) - log(untold[xt][canonical(xt, edit)])

    x0, bound, constant = (0, 0, 1), 0.0, 0.0
    summed = -log(untold[x0][STOP])
    for count, rho in enumerate(count_law):
        for chance, texts, edits, ghosts in world.paths(x0, count):
            steps = sum(map(cost, texts[1:], edits, ghosts))
            bound += rho * chance * (log(rho * chance) - log(untold[x0][STOP]) + steps)
            kinds = Counter(edit[0] for edit in edits)  # of the edits back
            inserted = kinds["delete"]
            closed = lgamma(4 - count + inserted) - lgamma(4 + inserted)
            closed += kinds["substitute"] * log(0.4) + kinds["insert"] * log(0.3) + inserted * log(0.3 / 2)
            assert abs(closed - log(chance)) < EXACT
            constant += rho * chance * (log(rho) + closed)
        for xt, q in world.forward(x0, count).items():
            for chance, path in world.alignments(x0, xt, count):
                for edit in path:
                    summed += share**count * chance / count * cost(xt, undo(x0, edit), ghosts_of(edit, path))
            assert q > 0
    assert abs(bound - summed - constant) < 1e-10


def ghosts_of(edit, path):
    """How many tokens an alignment deletes right beside an inserted one."""
    return sum(edit[0] == "insert" and kind == "delete" and j - edit[2] in (0, 1) for kind, _, j in path)


# --- the loss --------------------------------------------------------------------------------------------------


def random_scores(texts, width, num_tokens, seed):
    """Scores of rows by their text: the same text is scored alike. EditScores, float64."""
    tables = {}
    for text in set(texts):
        generator = torch.Generator().manual_seed(seed + sum((v + 2) * 5**n for n, v in enumerate(text)))
        shapes = ((), (width, num_tokens), (width,), (width,), (width, num_tokens))
        tables[text] = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return EditScores(*(torch.stack([tables[text][n] for text in texts]) for n in range(5)))


def chances_by_hand(scores, n, text, num_tokens):
    """{canonical edit or stop: chance} of row n, written out; the tokens begin at column 1."""
    rates = {STOP: exp(scores.stop[n])}
    for edit in canonical_edits(text, num_tokens):
        column = 1 + edit[1]
        if edit[0] == "delete":
            rates[edit] = exp(scores.delete[n, column])
        else:
            table = scores.tokens if edit[0] == "substitute" else scores.inserts
            weights = table[n, column].exp()
            rates[edit] = float(weights[edit[2]] / weights.sum())
            rates[edit] *= exp(scores.gap[n, column]) if edit[0] == "insert" else 1.0
    return {edit: rate / sum(rates.values()) for edit, rate in rates.items()}


def test_the_chances_of_the_canonical_edits_are_those_written_out():
    process, texts = make_process(3), [text for text in texts_of(3, 0, 1, 2, 3)]
    rows, editable = make_row((0, 0, 0), room=1)
    rows = torch.cat([fill_row(text, rows, editable) for text in texts])
    editable = editable.expand(len(rows), -1)
    scores = random_scores(texts, rows.shape[1], 3, 0)
    rates = edit_rates(scores, find_runs(rows, editable, process))
    for n, text in enumerate(texts):
        expected = chances_by_hand(scores, n, text, 3)
        got = {STOP: float((rates.stop - rates.total)[n].exp())}
        tables = {"substitute": rates.substitute[n], "insert": rates.insert[n], "delete": rates.delete[n]}
        for kind, table in tables.items():
            for place in (table > NEVER / 2).nonzero().tolist():
                got[kind, place[0] - 1, *place[1:]] = float((table[tuple(place)] - rates.total[n]).exp())
        assert got.keys() == expected.keys()
        assert all(abs(got[edit] - p) < EXACT for edit, p in expected.items())
        assert abs(sum(got.values()) - 1) < EXACT


def test_a_full_segment_takes_no_insertion():
    process = make_process()
    rows, editable = make_row((0, WALL, 1), room=0)
    runs = find_runs(rows, editable, process)
    assert not runs.gap.any()
    wide, is_open = make_row((0, WALL, 1), room=1)
    assert find_runs(wide, is_open, process).gap.tolist() == [[False, True, True, False, True, True, False]]


def test_undoing_an_edit_costs_what_its_canonical_edit_costs():
    process, batch, x0 = make_process(2, (0.2, 0.4, 0.4)), 400, (0, 0, 1)
    row, editable = make_row(x0, room=4)
    rows, is_open = row.expand(batch, -1), editable.expand(batch, -1)
    t = torch.arange(batch) % 4
    noise = process.sample_noise(rows, editable=is_open, random=RowRandom(10, torch.arange(batch)))
    edited = process.edit(rows, t, noise)
    texts = read_rows(edited.xt, is_open)
    scores = random_scores(texts, row.shape[1], 2, 1)
    runs = find_runs(edited.xt, is_open, process)
    cost, wide = undo_terms(edit_rates(scores, runs), runs, edited)
    losses = edit_losses(scores, edited, is_open, process)
    for n, text in enumerate(texts):
        by_hand = chances_by_hand(scores, n, text, 2)
        path = alignment_of(EditNoise(*(field[n] for field in noise)), x0, row, editable, int(t[n]))
        edits = [undo(x0, edit) for edit in path]
        places = (edited.kinds[n] != KEEP).nonzero()[:, 0].tolist()
        ghosts = [ghosts_of(edit, path) for edit in path]
        expected = sorted(
            (-log(by_hand[canonical(text, e)]), log(multiplicity(text, e) * (1 + near)))
            for e, near in zip(edits, ghosts, strict=True)
        )
        got = sorted((float(cost[n, i]), float(wide[n, i])) for i in places)
        assert torch.allclose(torch.tensor(got), torch.tensor(expected), atol=1e-12)
        mean = sum(a for a, _ in expected) / len(expected) if expected else -log(by_hand[STOP])
        assert abs(float(losses[n]) - mean) < EXACT
    assert {round(exp(value)) for value in wide.flatten().tolist()} >= {1, 2, 3, 4}


def test_the_mean_loss_is_the_cross_entropy_of_the_step_back():
    process, world, many, x0 = make_process(), EditWorld(2, MIXED, {}), 8_000, (0, 1, 1)
    row, editable = make_row(x0, room=3)
    rows, is_open = row.expand(many, -1), editable.expand(many, -1)
    for t in (0, 1, 3):
        noise = process.sample_noise(rows, editable=is_open, random=RowRandom(11, torch.arange(many)))
        edited = process.edit(rows, torch.full((many,), t), noise)
        texts = read_rows(edited.xt, is_open)
        losses = edit_losses(random_scores(texts, row.shape[1], 2, 2), edited, is_open, process)
        exact = 0.0
        for xt, q in world.forward(x0, t).items():
            by_hand = chances_by_hand(random_scores([xt], row.shape[1], 2, 2), 0, xt, 2)
            back = world.reverse(x0, xt, t) if t else {STOP: 1.0}
            exact -= q * sum(p * log(by_hand[edit]) for edit, p in back.items())
        assert abs(float(losses.mean()) - exact) < 4.5 * float(losses.std()) / many**0.5 + EXACT


def test_the_loss_of_a_row_has_a_gradient_everywhere_and_depends_on_that_row_alone():
    process = make_process(3)
    x0, editable = random_rows(5, 3, (3, 2), 3, room=4)
    noise = process.sample_noise(x0, editable=editable, random=RowRandom(12, torch.arange(5)))
    edited = process.edit(x0, torch.arange(5), noise)
    scores = random_scores(read_rows(edited.xt, editable), x0.shape[1], 3, 3)
    scores = EditScores(*(score.clone().requires_grad_() for score in scores))
    edit_losses(scores, edited, editable, process)[2].backward()
    for score in scores:
        assert torch.isfinite(score.grad).all() and score.grad[2].abs().sum() > 0
        assert not score.grad[[0, 1, 3, 4]].any()


# --- a walk ----------------------------------------------------------------------------------------------------


def test_a_move_changes_the_row_as_the_edit_changes_the_text():
    process = make_process(3)
    for text in [(0, 1, 2), (2, 2), (1,), (0, WALL, 1, 2), (WALL, 0)]:
        row, editable = make_row(text, room=1)
        columns = [c for c in range(row.shape[1]) if editable[0, c] and row[0, c] != HOLE]
        things = [n for n, v in enumerate(text) if v != WALL]
        for column, n in zip(columns, things, strict=True):
            for kind, edit in ((SUBSTITUTE, ("substitute", n, 2)), (DELETE, ("delete", n)), (INSERT, ("insert", n, 2))):
                move = Move(torch.tensor([kind]), torch.tensor([column]), torch.tensor([2]))
                got = make_move(row, editable, move, process)
                assert read_rows(got, editable) == [apply(text, edit)]
        none = Move(torch.tensor([KEEP]), torch.tensor([0]), torch.tensor([2]))
        assert torch.equal(make_move(row, editable, none, process), row)


def test_a_step_of_the_loop_draws_edits_by_their_chances():
    """A predictor of one edit is a wrapper of the loop as others are: x0_hat is the row after the edit, at s = 0."""
    process, many, text = make_process(3), 20_000, (1, 1, 0)
    row, editable = make_row(text, room=1)
    rows, is_open, random = row.expand(many, -1), editable.expand(many, -1), RowRandom(13, torch.arange(many))
    scores = random_scores([text], row.shape[1], 3, 4)
    by_hand = chances_by_hand(scores, 0, text, 3)

    def predict(xt, t, s):
        everywhere = EditScores(*(score.expand(many, *score.shape[1:]) for score in scores))
        move = draw_move(edit_rates(everywhere, find_runs(xt, is_open, process)), random.uniform(2))
        noise = process.sample_noise(xt, editable=is_open, random=random)
        return Prediction(make_move(xt, is_open, move, process), noise=noise, s=torch.zeros_like(s))

    grid = [torch.ones(many, dtype=torch.int64), torch.zeros(many, dtype=torch.int64)]
    xs = denoise(process, predict, rows, grid, editable=is_open, random=random)
    check_counts(Counter(read_rows(xs, is_open)), {apply(text, edit): p for edit, p in by_hand.items()}, many)
