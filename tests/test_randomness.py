"""A row's numbers are its own, uniform, and those of Philox-4x32-10."""

import pytest
import torch
from scipy.stats import chi2, kstest

from udm_text import randomness
from udm_text.randomness import RowRandom, philox4x32

ONES = 0xFFFFFFFF

# kat_vectors of Random123 (Salmon et al. 2011): counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_plain_integers(counter, key):
    """The definition, one counter at a time."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return tuple(c)


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([c, 7]) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == expected
    assert philox_in_plain_integers(counter, key) == expected


def test_philox_equals_its_definition_in_plain_integers():
    counters = torch.randint(2**32, (50, 4), generator=torch.Generator().manual_seed(0))
    words = torch.stack(philox4x32(tuple(counters.T), (123456789, 4294967000)), dim=1)
    for counter, word in zip(counters.tolist(), words.tolist(), strict=True):
        assert philox_in_plain_integers(counter, (123456789, 4294967000)) == tuple(word)


@pytest.mark.parametrize("seed", [0, 5, -1, 2**40 + 3, -(2**63)])
def test_a_number_is_philox_at_pair_draw_and_row_keyed_by_the_seed(seed):
    """The leading bits of two words make a number, so a stored seed means the same text in years to come."""
    row = -(2**35) - 11
    source = RowRandom(seed, rows(3, row))
    source.uniform(2)
    numbers = source.uniform(5)[1].tolist()
    key = (seed & ONES, (seed >> 32) & ONES)
    for position, number in enumerate(numbers):
        words = philox_in_plain_integers((position // 2, 1, row & ONES, (row >> 32) & ONES), key)
        high, low = words[:2] if position % 2 == 0 else words[2:]
        assert abs(number - (high * 2**32 + low) / 2**64) < 2.0**-51


def test_a_row_does_not_depend_on_its_neighbours_or_on_their_order():
    batch, alone = RowRandom(9, rows(4, 17, 2, 90)), RowRandom(9, rows(17))
    shuffled = RowRandom(9, rows(90, 2, 17, 4))
    for n in (1, 6, 7):
        together = batch.uniform(n)
        assert torch.equal(together[1:2], alone.uniform(n))
        assert torch.equal(together.flip(0), shuffled.uniform(n))


def test_a_number_does_not_depend_on_how_many_positions_are_asked_for():
    short, long = RowRandom(3, rows(0, 1)), RowRandom(3, rows(0, 1))
    for few, many in ((1, 2), (4, 9), (5, 5), (0, 3)):
        assert torch.equal(short.uniform(few), long.uniform(many)[:, :few])


def test_a_fork_continues_the_rows_it_takes():
    source = RowRandom(1, rows(5, 6, 7, 8))
    source.uniform(3)
    by_index, by_mask = (
        source.fork(torch.tensor([3, 1])),
        source.fork(torch.tensor([False, True, False, True])),
    )
    expected = source.uniform(4)
    assert torch.equal(by_index.uniform(4), expected[[3, 1]])
    assert torch.equal(by_mask.uniform(4), expected[[1, 3]])
    assert torch.equal(by_mask.uniform(4), source.uniform(4)[[1, 3]])


def test_seeds_rows_and_draws_all_give_other_numbers():
    """Also where they differ in the high words, or in sign, only."""
    big = 2**32
    keys = [(s, r) for s in (0, 1, -1, big, 2**63) for r in (0, 1, -1, big, 2 * big, 2**63 - 1, -(2**63))]
    sources = [RowRandom(seed, rows(row)) for seed, row in keys]
    numbers = torch.stack([source.uniform(1) for source in sources + sources])
    assert len(numbers.unique()) == 2 * len(keys)


def test_numbers_are_uniform():
    u = RowRandom(0, torch.arange(4000)).uniform(25)
    assert u.dtype == torch.float64
    assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(u[7].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("pair", ["positions", "rows", "draws", "seeds"])
def test_neighbouring_numbers_are_independent(pair):
    """Chi-square on a 16 x 16 grid of consecutive numbers."""
    source = RowRandom(2, torch.arange(20_001))
    u = source.uniform(2)
    first, second = {
        "positions": (u[:, 0], u[:, 1]),
        "rows": (u[:-1, 0], u[1:, 0]),
        "draws": (u[:, 0], source.uniform(1)[:, 0]),
        "seeds": (u[:, 0], RowRandom(3, torch.arange(20_001)).uniform(1)[:, 0]),
    }[pair]
    counts = torch.bincount((first * 16).long() * 16 + (second * 16).long(), minlength=256).double()
    statistic = float((counts - len(first) / 256).square().sum() / (len(first) / 256))
    assert chi2.sf(statistic, 255) > 1e-3


@pytest.mark.parametrize("word", [0, ONES])
def test_numbers_stay_inside_the_open_interval_at_the_extreme_bits(monkeypatch, word):
    """A number that rounds to 1 would draw a shift of V, that is no corruption at all."""

    def constant(counter, key):
        return tuple(torch.full_like(torch.broadcast_tensors(*counter)[0], word) for _ in range(4))

    monkeypatch.setattr(randomness, "philox4x32", constant)
    u = RowRandom(0, rows(0)).uniform(3)
    assert ((u > 0) & (u < 1)).all()
    for n in range(1, 2000):  # the largest number times n never reaches n: every cell u * n is one of 0..n-1
        assert ((u * n).long() < n).all()


def test_fresh_draws_its_seed_from_the_generator():
    def numbers(seed):
        return RowRandom.fresh(3, generator=torch.Generator().manual_seed(seed)).uniform(4)

    assert torch.equal(numbers(1), numbers(1))
    assert not torch.equal(numbers(1), numbers(2))
    torch.manual_seed(5)
    first = RowRandom.fresh(3).uniform(4)
    second = RowRandom.fresh(3).uniform(4)
    torch.manual_seed(5)
    assert torch.equal(first, RowRandom.fresh(3).uniform(4))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2), torch.tensor(3)])
def test_rows_of_another_shape_or_type_are_refused(bad):
    with pytest.raises(ValueError, match="rows"):
        RowRandom(0, bad)


def test_draws_that_are_made_ahead_are_those_made_one_by_one():
    widths = [7] * 40 + [3, 7, 7, 7, 3, 3] + [7] * 5 + [0, 0, 1]
    ahead = RowRandom(5, rows(2, -9))
    for number, width in enumerate(widths):
        alone = RowRandom(5, rows(2, -9))
        alone.draws = number
        assert torch.equal(ahead.uniform(width), alone.uniform(width)), number
        if number == 20:
            fork, there = ahead.fork(rows(1)), RowRandom(5, rows(-9))
            there.draws = 21
            assert torch.equal(fork.uniform(7)[0], there.uniform(7)[0])


def test_few_numbers_are_made_ahead_of_large_draws(monkeypatch):
    made = []
    one_by_one = randomness.philox4x32
    monkeypatch.setattr(randomness, "philox4x32", lambda *how: made.append(1) or one_by_one(*how))
    for width, calls in ((8, 6), (2**15, 32)):
        source = RowRandom(0, rows(0))
        made.clear()
        for _ in range(32):
            source.uniform(width)
        assert len(made) == calls
