"""Likelihoods by the chain rule are laws, many orders together tighten the bound, and their errors are errors."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch

from tests.models import CLS, MASK, SEP, make_rows, make_udm
from tests.oracle.chains import mask_sampler_law
from tests.oracle.outcomes import MASK as MASK_DIGIT
from tests.oracle.outcomes import Board
from tests.oracle.world import all_rows
from tests.test_autoregressive import make_writer
from tests.test_evaluation import exact_bound
from udm_text.evaluation import (
    evaluate_bound,
    evaluate_likelihood,
    importance_weighted,
    row_chains,
    row_scores,
)
from udm_text.generation_options import Skeleton
from udm_text.processes import MaskProcess

WORDS, LENGTH = [5, 6, 7, 8], 3
IDS = [CLS, 5, 8, 6, SEP]
ROWS = [{"input_ids": [CLS, *words, SEP]} for words in product(WORDS, repeat=LENGTH)]
"""Every text of three of four words."""
ORDERS = list(permutations(range(LENGTH)))


@pytest.fixture(scope="module")
def model():
    return make_udm(vocab_size=9)


@torch.no_grad()
def chain_of(model, ids, order):
    """-log p of a row by one call of the model a position, written from the chain rule."""
    row, nats = torch.tensor([ids]), 0.0
    xt = torch.tensor([[ids[0], *[MASK] * (len(ids) - 2), ids[-1]]])
    for place in order:
        p = model(xt).logits[0, place + 1, WORDS].double().softmax(-1)
        nats -= math.log(float(p[WORDS.index(ids[place + 1])]))
        xt[0, place + 1] = row[0, place + 1]
    return nats


@pytest.fixture(scope="module")
def by_order(model):
    """-log p of IDS in each of the six orders."""
    return [chain_of(model, IDS, order) for order in ORDERS]


@pytest.mark.parametrize("order", ["left_to_right", Skeleton(every=2), "random"])
def test_the_chain_rule_in_an_order_is_a_law_over_all_texts(model, order):
    """Under one order for all, as under one seed and number, the chances of all texts sum to one."""
    nats = row_chains(model, ROWS, [3] * len(ROWS), order=order, batch_size=50)
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_chain_rule_is_a_call_of_the_model_for_every_position(model, by_order):
    [row] = row_chains(model, [{"input_ids": IDS}], [0], order="left_to_right").tolist()
    assert row == [pytest.approx(by_order[0], abs=1e-5)]
    skeleton = row_chains(model, [{"input_ids": IDS}], [0], order=Skeleton(every=2))
    assert float(skeleton) == pytest.approx(by_order[ORDERS.index((0, 2, 1))], abs=1e-5)
    drawn = row_chains(model, [{"input_ids": IDS}], [0], draws=60)[0]
    nearest = (drawn[:, None] - torch.tensor(by_order, dtype=torch.float64)).abs().min(dim=1)
    assert float(nearest.values.max()) < 1e-5 and set(nearest.indices.tolist()) == set(range(len(ORDERS)))


def test_a_model_told_the_time_is_told_how_many_positions_are_masked():
    timed = make_udm(vocab_size=9, time_conditioning=True)
    nats = row_chains(timed, ROWS, [0] * len(ROWS), order="left_to_right")
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    blind = row_chains(make_udm(vocab_size=9), ROWS, [0] * len(ROWS), order="left_to_right")
    assert not torch.allclose(nats, blind, atol=1e-3)


def test_the_mean_over_all_orders_is_the_bound_and_their_mean_chance_the_sampler(model, by_order):
    nats = torch.tensor([by_order], dtype=torch.float64)
    assert float(nats.mean()) == pytest.approx(exact_bound(model, IDS), abs=1e-5)
    value, _ = importance_weighted(nats)
    states = torch.from_numpy(all_rows(5, LENGTH))
    rows = torch.tensor([CLS, 0, 0, 0, SEP]).repeat(len(states), 1)
    rows[:, 1:4] = torch.tensor([*WORDS, MASK])[states]
    with torch.no_grad():
        p = model(rows).logits.double()[:, 1:4, WORDS].softmax(-1).numpy()
    law = mask_sampler_law(MaskProcess(MASK_DIGIT), Board(4, LENGTH), lambda t: p, [3, 2, 1, 0])
    number = int(np.array([WORDS.index(token) for token in IDS[1:-1]]) @ 4 ** np.arange(LENGTH)[::-1])
    assert float(value) == pytest.approx(-math.log(law[number]), abs=1e-5)


def test_the_importance_weighted_bound_is_one_and_tightens_with_the_number_of_orders(by_order):
    """Its expectation, summed over every choice of K orders: from the NELBO at K = 1 down towards -log p."""
    truth = float(importance_weighted(torch.tensor([by_order], dtype=torch.float64))[0])
    means = []
    for count in (1, 2, 3, 4):
        chosen = torch.tensor(list(product(by_order, repeat=count)), dtype=torch.float64)
        means.append(float(importance_weighted(chosen)[0].mean()))
    assert means[0] == pytest.approx(sum(by_order) / len(by_order), abs=1e-12)
    assert all(a > b > truth for a, b in zip(means, means[1:], strict=False))
    assert means[0] - truth > 0.01  # orders differ, or nothing would be shown


def test_one_order_is_the_chain_and_equal_orders_change_nothing():
    one = torch.tensor([[2.0], [5.0], [math.inf]]).double()
    assert importance_weighted(one)[0].tolist() == [2.0, 5.0, math.inf]
    assert importance_weighted(one)[1].isnan().all()
    value, error = importance_weighted(one[:2].expand(2, 7))
    assert value.tolist() == pytest.approx([2.0, 5.0]) and error.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert float(importance_weighted(torch.tensor([[1.0, math.inf]]).double())[0]) == pytest.approx(1 + math.log(2))


@pytest.mark.parametrize("likelihood", ["bound", "chain"])
def test_intervals_of_a_row_and_of_the_mean_cover_the_bound(model, likelihood, by_order):
    """300 repetitions on one text whose bound is a sum over everything; 95 % of the intervals hold it."""
    repetitions, draws = 300, 12
    truth, rows = sum(by_order) / len(by_order), [{"input_ids": IDS}] * repetitions
    scores = row_scores(model, rows, likelihood=likelihood, draws=draws, seed=5, batch_size=300)
    inside = float(((scores.nats - truth).abs() < 2.2 * scores.stderr).double().mean())  # t of 11 degrees of freedom
    assert 0.90 < inside <= 1.0 and (likelihood == "bound" or inside < 0.985)
    groups = scores.nats.view(30, 10)
    mean, error = groups.mean(dim=1), groups.std(dim=1) / math.sqrt(10)
    assert 0.80 < float(((mean - truth).abs() < 2.26 * error).double().mean())


def test_the_error_of_the_importance_weighted_bound_is_the_spread_of_others(model):
    rows = [{"input_ids": IDS}] * 300
    scores = row_scores(model, rows, likelihood="importance", draws=24, batch_size=300)
    ratio = float(scores.nats.std() / scores.stderr.square().mean().sqrt())
    assert 0.8 < ratio < 1.25, ratio


@pytest.mark.parametrize("likelihood", ["bound", "chain", "importance"])
def test_scores_belong_to_the_row_and_the_seed(likelihood):
    model, rows = make_udm(scale=0.25), make_rows(9, seed=2)
    how = {"likelihood": likelihood, "draws": 2, "seed": 3}
    whole = row_scores(model, rows, batch_size=4, **how)
    part = row_scores(model, rows[5:7], index=[5, 6], batch_size=64, **how)
    torch.testing.assert_close(part.nats, whole.nats[5:7], rtol=1e-5, atol=1e-5)
    assert torch.equal(row_scores(model, rows, batch_size=4, **how).nats, whole.nats)
    assert not torch.equal(row_scores(model, rows, batch_size=4, **{**how, "seed": 4}).nats, whole.nats)
    assert whole.tokens.tolist() == model.config.count_editable(row["input_ids"] for row in rows)


def test_a_fixed_order_is_exact_and_scores_sum_to_the_report():
    model, rows = make_udm(scale=0.25, length_counts=[0, *[1] * 12]), make_rows(9)
    scores = row_scores(model, rows, likelihood="chain", order="left_to_right")
    assert scores.stderr.tolist() == [0.0] * 9 and scores.draws == 1
    assert float(scores.length_nats.min()) > 0
    report = evaluate_likelihood(model, rows, order="left_to_right")
    tokens = int(scores.tokens.sum())
    assert report.exact and report.length_included and report.draws == 1 and report.tokens == tokens
    assert report.nats_per_token == pytest.approx(float(scores.nats.sum()) / tokens)
    assert report.bits_per_char == pytest.approx(float(scores.nats.sum()) / math.log(2) / report.chars)
    assert report.perplexity == pytest.approx(math.exp(report.nats_per_token))
    bound = row_scores(model, rows, draws=4, seed=1)
    expected = evaluate_bound(model, rows, draws=4, seed=1)
    assert float(bound.nats.sum()) / tokens == pytest.approx(expected.nelbo_nats_per_token)
    assert float(bound.length_nats.sum()) / tokens == pytest.approx(expected.length_nats_per_token)


def test_of_a_given_part_the_rest_is_scored_given_it(model, by_order):
    """The chain from left to right splits into the first word, and the rest given it."""
    first = {"input_ids": IDS, "editable": [False, True, False, False, False]}
    rest = {"input_ids": IDS, "editable": [False, False, True, True, False]}
    scores = row_scores(model, [rest], likelihood="chain", order="left_to_right")
    with torch.no_grad():
        p = model(torch.tensor([[CLS, MASK, MASK, MASK, SEP]])).logits[0, 1, WORDS].double().softmax(-1)
    assert float(scores.nats) - math.log(float(p[WORDS.index(IDS[1])])) == pytest.approx(by_order[0], abs=1e-5)
    assert scores.tokens.tolist() == [2] and row_scores(model, [first, rest], draws=2).tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "how", "error"),
    [
        ("mask", {"likelihood": "iwae"}, "likelihood must be 'bound', 'chain' or 'importance', got 'iwae'"),
        ("mask", {"likelihood": "chain", "order": "confidence"}, "order must be one that is known before the text is"),
        ("mask", {"likelihood": "chain", "order": "left_to_right", "draws": 4}, "draws must be 1 for order"),
        ("mask", {"likelihood": "importance", "order": "left_to_right"}, "is over orders that are drawn"),
        ("mask", {"order": "random"}, "it is likelihood 'chain' that has one"),
        ("mask", {"likelihood": "chain", "draws": 0}, "draws must be at least 1, got 0"),
        ("substitute", {"likelihood": "chain"}, "and process 'substitute' has none: use likelihood 'bound'"),
        ("writer", {"likelihood": "chain"}, "this model writes whole rows"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(kind, how, error):
    with pytest.raises(ValueError, match=error):
        row_scores(make_writer() if kind == "writer" else make_udm(kind), make_rows(2), **how)
