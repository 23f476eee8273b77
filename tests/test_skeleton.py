"""The order of a skeleton: its positions from left to right, then the rest at random; exact, one token a step."""

from itertools import permutations
from math import log

import numpy as np
import pytest
import torch
from transformers import pipeline

from tests.helpers import udm_here
from tests.models import CLS, MASK, SEP, make_tokenizer, make_udm
from tests.oracle.world import index_of, make_world, random_predictor, total_variation
from udm_text import Skeleton, UDMGenerationConfig, compiling
from udm_text.generation_options import read_order

EXACT = 1e-12
BLANKS = torch.tensor([[CLS, MASK, 7, MASK, MASK, MASK, SEP], [CLS, MASK, MASK, MASK, MASK, SEP, 0]])


def orders_of(chosen, length):
    """The orders of a skeleton, all as likely: `chosen` as it is, then every order of the rest."""
    rest = [i for i in range(length) if i not in chosen]
    return [(*chosen, *tail) for tail in permutations(rest)]


def walk_law(world, predict, orders):
    """The law of the walk that reveals one position a step in one of `orders`. predict(row) -> (l, V)."""
    law = np.zeros(len(world.data))
    for order in orders:
        for number, x0 in enumerate(world.sequences):
            row, chance = np.full(world.length, world.num_tokens), 1 / len(orders)
            for place in order:
                chance *= predict(row)[place, x0[place]]
                row[place] = x0[place]
            law[number] += chance
    return law


def table(world, p):
    """predict(row) of a table {t: (states, l, V)}."""
    return lambda row: p(int((row == world.num_tokens).sum()))[index_of(row, world.num_tokens + 1)]


@pytest.mark.parametrize("chosen", [(), (0,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_with_the_exact_predictor_any_skeleton_has_the_law_of_the_data(chosen):
    world = make_world(3, 4)
    law = walk_law(world, table(world, world.mask_predictor), orders_of(chosen, 4))
    assert total_variation(law, world.data) < EXACT


@pytest.mark.parametrize("chosen", [(0, 2), (1,)])
def test_its_bound_is_a_chain_and_then_the_bound_of_masks(chosen):
    """-log p <= sum of CE along the skeleton, and the NELBO of the rest given it."""
    world = make_world(2, 4)
    tables = {t: random_predictor(3**4, 4, 2, seed=t) for t in range(1, 5)}
    predict = table(world, tables.__getitem__)
    law = walk_law(world, predict, orders_of(chosen, 4))
    assert abs(law.sum() - 1) < EXACT
    for number, x0 in enumerate(world.sequences):
        bound, row = 0.0, np.full(4, 2)
        for place in chosen:
            bound -= log(predict(row)[place, x0[place]])
            row[place] = x0[place]
        tails = list(permutations([i for i in range(4) if i not in chosen]))
        for tail in tails:
            below = row.copy()
            for place in tail:
                bound -= log(predict(below)[place, x0[place]]) / len(tails)
                below[place] = x0[place]
        assert bound >= -log(law[number]) - EXACT


def revealed(model, rows, **how):
    """The positions of each row in the order in which they were revealed, one a step."""
    out = model.generate(rows, output_trajectory=True, **how)
    steps = [(a == MASK) & (b != MASK) for a, b in zip(out.trajectory, out.trajectory[1:], strict=False)]
    return [[int(i) for step in steps for i in step[row].nonzero()[:, 0]] for row in range(len(out.sequences))]


@pytest.mark.parametrize("how", [{}, {"num_return_sequences": 20}])
def test_every_second_editable_position_comes_first_from_the_left_and_the_rest_in_any_order(how):
    orders = revealed(make_udm(), BLANKS, order=Skeleton(every=2), seed=0, **how)
    first = [[1, 4], [1, 3]]
    for number, order in enumerate(orders):
        own = first[number * 2 // len(orders)]
        assert order[:2] == own and len(order) == 4
    if how:
        assert len({tuple(order[2:]) for order in orders[:20]}) == 2, "the rest is always in one order"


def test_a_rule_sees_the_rows_and_says_which_positions_come_first():
    seen = []

    def beside_what_is_given(tokens, editable):
        seen.append((tokens.clone(), editable.clone()))
        given = ~editable & (tokens > MASK)
        return editable & (given.roll(1, 1) | given.roll(-1, 1))

    orders = revealed(make_udm(), BLANKS[:1], order=Skeleton(rule=beside_what_is_given), seed=0)
    assert orders[0][:2] == [1, 3] and set(orders[0][2:]) == {4, 5}
    assert len(seen) == 1 and torch.equal(seen[0][0], BLANKS[:1]) and torch.equal(seen[0][1], BLANKS[:1] == MASK)


@pytest.mark.parametrize("how", [{"num_steps": 2}, {"churn": 0.5}, {"revise": 2}, {"guidance_scale": 2.0}])
def test_it_goes_with_other_options_and_a_row_is_its_own(how):
    model = make_udm(prompt_dropout=0.1)
    blanks = BLANKS.clone()
    blanks[1, 3] = 8
    rows = model.generate(blanks, order=Skeleton(every=3), seed=5, **how)
    assert not (rows == MASK).any()
    alone = model.generate(blanks[1:, :6], order=Skeleton(every=3), seed=5, sample_index=torch.tensor([1]), **how)
    assert torch.equal(alone[0, :6], rows[1, :6])


def test_all_positions_as_the_skeleton_are_left_to_right_and_a_step_asks_where_it_reveals():
    model = make_udm()
    assert torch.equal(
        model.generate(BLANKS, order=Skeleton(every=1), temperature=0.0),
        model.generate(BLANKS, order="left_to_right", temperature=0.0),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skeleton(), "either every .* or rule"),
        (lambda: Skeleton(every=2, rule=lambda a, b: b), "either every .* or rule"),
        (lambda: Skeleton(every=0), "every must be a positive integer, got 0"),
        (lambda: Skeleton(rule=lambda: 0), "rule must be a function of two arguments"),
        (lambda: make_udm().generate(BLANKS, order=Skeleton(rule=lambda a, b: a)), "must return a bool tensor"),
        (lambda: make_udm().generate(BLANKS, order=Skeleton(every=2), speculate=2), "order must be 'random' or"),
        (lambda: make_udm().generate(BLANKS, order=Skeleton(every=2), order_noise=0.5), "order_noise is of orders"),
        (lambda: make_udm("substitute").generate(BLANKS, order=Skeleton(every=2)), "order is of the mask process"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_is_described_and_not_saved(tmp_path):
    config = UDMGenerationConfig(order=Skeleton(every=4))
    assert "Skeleton(every=4" in repr(config)
    with pytest.raises(ValueError, match="order is a Skeleton .*cannot hold"):
        config.save_pretrained(tmp_path)


def test_a_graph_takes_the_same_steps(monkeypatch):
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    model = make_udm()
    for how in ({}, {"churn": 0.5}):
        call = {"order": Skeleton(every=2), "seed": 2, **how}
        assert torch.equal(model.generate(BLANKS, compile=True, **call), model.generate(BLANKS, **call))
    with pytest.warns(UserWarning, match="compiles nothing beside order"):
        model.generate(BLANKS, compile=True, order=Skeleton(rule=lambda tokens, editable: editable))


def test_the_command_takes_a_skeleton_by_its_number(tmp_path):
    make_udm(length_counts=[0, 0, 0, 0, 1]).save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    said = udm_here("generate", tmp_path, "-n", 6, "--seed", 0, "--order", "skeleton:2").output.splitlines()
    pipe = pipeline("udm-generation", model=str(tmp_path))
    made = pipe("", num_return_sequences=6, seed=0, order=Skeleton(every=2))
    assert said == [record["generated_text"] for record in made]
    assert said != [record["generated_text"] for record in pipe("", num_return_sequences=6, seed=0)]
    assert read_order("skeleton:3") == Skeleton(every=3) and read_order("entropy") == "entropy"
    for wrong in ("skeleton", "skeleton:0", "skeleton:x", "skeleton:-2"):
        with pytest.raises(ValueError, match="order must be a name, or a skeleton such as skeleton:4"):
            read_order(wrong)
