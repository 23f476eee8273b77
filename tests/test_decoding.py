"""From logits to tokens: exact draws, truncation as defined, and no token where none may be."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from udm_text.decoding import (
    ADAPTIVE_ORDERS,
    ORDERS,
    STATIC_ORDERS,
    confidence,
    draw,
    log_probabilities,
    margin,
    negative_entropy,
    tempered,
    truncate,
)

fixed = settings(deadline=None, derandomize=True, max_examples=200)
LEAST, MOST = 2.0**-53, 1 - 2.0**-53  # the edges of what RowRandom gives
weights = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


def log_of(masses):
    p = torch.tensor(masses, dtype=torch.float64)
    return (p / p.sum()).log()


# --- draws -----------------------------------------------------------------------------------------------------


@fixed
@given(weights)
def test_draw_is_the_inverse_of_the_exact_cdf(masses):
    """Just inside both ends of every token's interval the draw is that token."""
    assume(sum(masses) > 0)
    log_p, total, start = log_of(masses), sum(masses), Fraction(0)
    for token, mass in enumerate(masses):
        end = start + Fraction(mass, total)
        if mass:
            inside = [float(start) + 1e-13, float(start + end) / 2, float(end) - 1e-13]
            u = torch.tensor([min(max(x, LEAST), MOST) for x in inside], dtype=torch.float64)
            assert (draw(log_p.expand(3, -1), u) == token).all()
        start = end


@fixed
@given(weights, st.floats(LEAST, MOST))
def test_a_token_without_mass_is_never_drawn(masses, uniform):
    assume(sum(masses) > 0)
    u = torch.tensor([LEAST, uniform, MOST], dtype=torch.float64)
    tokens = draw(log_of(masses).expand(3, -1), u).tolist()
    assert all(masses[token] > 0 for token in tokens)
    support = [token for token, mass in enumerate(masses) if mass]
    assert tokens[0] == support[0] and tokens[2] == support[-1]


def test_an_interval_holds_its_lower_end_and_a_uniform_of_one_takes_the_last_token_with_mass():
    log_p = log_of([1.0, 0.0, 2.0, 1.0, 0.0])
    u = torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64)
    assert draw(log_p.expand(3, -1), u).tolist() == [2, 3, 3]


def test_draw_keeps_the_shape_of_the_batch():
    log_p = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    u = torch.linspace(0.05, 0.95, 6, dtype=torch.float64).view(2, 3)
    tokens = draw(log_p, u)
    assert tokens.shape == (2, 3) and tokens.dtype == torch.int64
    expected = [draw(p[None], x[None])[0] for p, x in zip(log_p.view(6, 7), u.flatten(), strict=True)]
    assert tokens.flatten().tolist() == expected


def test_draw_resolves_chances_that_float32_cannot():
    """Half of 1e-12 of the mass: a float32 cdf would round it away."""
    log_p = log_of([1.0, 1e-12])
    assert draw(log_p[None], torch.tensor([1 - 0.5e-12], dtype=torch.float64)) == 1
    assert draw(log_p[None], torch.tensor([1 - 1.5e-12], dtype=torch.float64)) == 0


# --- temperature and forbidden tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_log_probabilities_are_the_softmax_in_float64(temperature):
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    p = np.exp(logits.double().numpy() / temperature)
    got = log_probabilities(logits, temperature=temperature)
    assert got.dtype == torch.float64
    assert np.allclose(got.exp().numpy(), p / p.sum(-1, keepdims=True), rtol=1e-13)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 50.0])
def test_a_forbidden_token_has_no_mass_even_if_it_is_the_best(temperature):
    logits = torch.tensor([[1.0, 90.0, 2.0, -3.0]])
    forbidden = torch.tensor([False, True, False, False])
    log_p = log_probabilities(logits, forbidden, temperature)
    assert log_p[0, 1] == -torch.inf
    assert abs(float(log_p.exp().sum()) - 1) < 1e-12
    u = torch.cat((torch.tensor([LEAST, MOST]), torch.rand(500))).double().clamp(LEAST, MOST)
    for kept in (log_p, truncate(log_p, top_k=3), truncate(log_p, top_p=0.9999), truncate(log_p, 4, 0.5)):
        assert not (draw(kept.expand(len(u), -1), u) == 1).any()


def test_temperature_zero_draws_the_best_token_whatever_the_uniform():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
    log_p = log_probabilities(logits, temperature=0.0)
    for u in (LEAST, 0.5, MOST):
        assert torch.equal(draw(log_p, torch.full((5,), u, dtype=torch.float64)), logits.argmax(-1))


def test_a_low_temperature_tends_to_temperature_zero():
    logits = torch.tensor([[0.3, 1.2, 1.1, -4.0]])
    low, zero = (log_probabilities(logits, temperature=t).exp() for t in (1e-3, 0.0))
    assert torch.allclose(low, zero, atol=1e-12)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        log_probabilities(torch.zeros(1, 2), temperature=-0.1)


# --- truncation ------------------------------------------------------------------------------------------------


def naive_truncation(masses, top_k, top_p):
    """The definition with fractions: the k heaviest, then the fewest of them whose share reaches top_p."""
    ranked = sorted(range(len(masses)), key=lambda token: -masses[token])
    if top_k is not None:
        ranked = ranked[:top_k]
    if top_p is not None:
        total, kept, reached = sum(masses[token] for token in ranked), [], Fraction(0)
        for token in ranked:
            assume(top_p == 1 or abs(reached - Fraction(top_p)) > 1e-9)  # on the edge rounding decides
            if reached >= Fraction(top_p):
                break
            kept.append(token)
            reached += Fraction(masses[token], total)
        ranked = kept
    total = sum(masses[token] for token in ranked)
    return [masses[token] / total if token in ranked else 0.0 for token in range(len(masses))]


@fixed
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=10, unique=True),
    st.one_of(st.none(), st.integers(1, 12)),
    st.one_of(st.none(), st.floats(1e-6, 1.0)),
)
def test_truncation_equals_its_definition(masses, top_k, top_p):
    got = truncate(log_of(masses)[None], top_k, top_p).exp()[0]
    assert np.allclose(got.numpy(), naive_truncation(masses, top_k, top_p), rtol=1e-12, atol=0)


def test_truncation_of_a_batch_treats_every_row_alone():
    log_p = torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(3)).double().log_softmax(-1)
    together = truncate(log_p, 6, 0.7)
    for i in range(4):
        for j in range(3):
            assert torch.allclose(together[i, j], truncate(log_p[i, j], 6, 0.7), rtol=0, atol=1e-14)


def test_truncation_always_keeps_the_best_token():
    log_p = log_of([5, 3, 90, 2])[None]
    for kept in (truncate(log_p, 1), truncate(log_p, top_p=1e-9), truncate(log_p, 1, 1e-9)):
        assert kept.exp().tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_without_truncation_nothing_is_lost():
    log_p = log_of([5, 3, 9, 2])[None]
    for kept in (truncate(log_p), truncate(log_p, 4), truncate(log_p, 99), truncate(log_p, None, 1.0)):
        assert torch.allclose(kept, log_p, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "value"), [("top_k", 0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)])
def test_truncation_errors_name_the_argument(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        truncate(torch.zeros(1, 3), **{name: value})


# --- orders ----------------------------------------------------------------------------------------------------


def test_scores_of_the_adaptive_orders():
    log_p = torch.stack((log_of([2, 5, 3]), log_of([0, 0, 1]), log_of([1, 1, 1])))
    tokens = torch.tensor([0, 2, 1])
    assert torch.allclose(confidence(log_p, tokens), torch.tensor([0.2, 1, 1 / 3]).double())
    assert torch.allclose(margin(log_p, tokens), torch.tensor([0.2, 1, 0]).double(), atol=1e-12)
    plain = [sum(p * math.log(p) for p in row if p) for row in ([0.2, 0.5, 0.3], [1.0], [1 / 3] * 3)]
    assert torch.allclose(negative_entropy(log_p, tokens), torch.tensor(plain).double())
    assert margin(log_of([1.0])[None], torch.tensor([0])).tolist() == [1.0]


def test_every_order_has_one_name():
    assert ORDERS == (*STATIC_ORDERS, *ADAPTIVE_ORDERS) and len(set(ORDERS)) == len(ORDERS)


def test_no_argument_is_modified_in_place():
    logits, forbidden = torch.randn(3, 6), torch.tensor([True] + [False] * 5)
    log_p, u = log_probabilities(logits), torch.rand(3).double()
    given_ = (logits, forbidden, log_p, u)
    before = [x.clone() for x in given_]
    log_probabilities(logits, forbidden, 0.0)
    log_probabilities(logits, forbidden, 0.7)
    truncate(log_p, 3, 0.5)
    draw(log_p, u)
    for order in ADAPTIVE_ORDERS.values():
        order(log_p, torch.zeros(3, dtype=torch.int64))
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


def test_a_long_row_is_searched_by_blocks_and_draws_what_the_whole_running_sum_says():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(40, 3001, generator=generator, dtype=torch.float64).pow(8)
    weights[:, ::3] = 0.0  # tokens without mass, single and in whole blocks, at both ends
    weights[::2, :600], weights[::4, 2600:] = 0.0, 0.0
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    uniforms[:8], uniforms[8:16] = 2.0**-53, 1 - 2.0**-53
    tokens = draw(weights.log() - 700 * torch.rand(40, 1, generator=generator), uniforms)
    for row, token, uniform in zip(weights.tolist(), tokens.tolist(), uniforms.tolist(), strict=True):
        below, total = math.fsum(row[:token]), math.fsum(row)
        assert row[token] > 0
        assert below - 1e-12 * total <= uniform * total <= below + row[token] + 1e-12 * total


def test_what_is_drawn_needs_no_normalised_scores():
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(500, 40, generator=generator)
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    for temperature in (0.0, 0.7, 1.0):
        normalised = draw(log_probabilities(logits, temperature=temperature), uniforms)
        assert torch.equal(draw(tempered(logits, temperature=temperature), uniforms), normalised)
