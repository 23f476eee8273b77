"""Revision: the least sure tokens are opened again and drawn anew; a repair shows every edit."""

import itertools

import pytest
import torch

from tests.models import CLS, MASK, PAD, SEP, SPECIAL, fixed_logits, make_udm
from udm_text.decoding import ORDERS
from udm_text.kernels import KERNELS
from udm_text.schedules import linear_counts, with_revision

ROWS = torch.tensor(
    [
        [CLS, MASK, 7, MASK, SEP, PAD, PAD],
        [CLS, 8, MASK, MASK, MASK, MASK, SEP],
        [CLS, MASK, 9, 10, SEP, PAD, PAD],
    ]
)


@pytest.fixture(scope="module")
def model():
    return make_udm().double()


def test_a_rows_grid_falls_to_zero_rises_to_the_revision_and_falls_again_then_rests():
    times = linear_counts(torch.tensor([4, 2]), None)
    assert with_revision(times, 3).T.tolist() == [[4, 3, 2, 1, 0, 3, 2, 1, 0], [2, 1, 0, 2, 1, 0, 0, 0, 0]]
    assert torch.equal(with_revision(times, 0)[: len(times)], times)


def test_exactly_the_tokens_that_were_drawn_least_surely_are_opened_again(monkeypatch):
    model = make_udm()
    table = torch.full((7, 24), -70.0)
    for i, p in enumerate((0.9, 0.3, 0.8, 0.2, 0.7), start=1):  # of the best token at each position
        table[i, 5:16] = torch.tensor([p] + [(1 - p) / 10] * 10).log()
    fixed_logits(monkeypatch, model, table)
    for order in ORDERS:
        for how in ({"temperature": 0.0}, {"top_k": 1}):  # judged by the model's own probabilities
            output = model.generate(length=5, order=order, revise=2, seed=0, output_trajectory=True, **how)
            left = [(xt[0] == MASK).nonzero()[:, 0].tolist() for xt in output.trajectory]
            assert [len(places) for places in left] == [5, 4, 3, 2, 1, 0, 2, 1, 0]
            assert left[6] == [2, 4]
            assert output.steps.tolist() == [8] and output.num_calls == 7


def test_what_is_opened_is_drawn_anew_given_all_the_rest(monkeypatch):
    model = make_udm()
    calls = fixed_logits(monkeypatch, model, torch.zeros(7, 24))
    output = model.generate(length=5, revise=1, seed=0, num_return_sequences=40, output_trajectory=True)
    opened, done = output.trajectory[-2], output.trajectory[-1]
    assert torch.equal(calls[-1]["input_ids"], opened) and calls[-1]["positions"].sum(1).tolist() == [1] * 40
    assert bool(((opened == MASK).sum(1) == 1).all()) and bool((done[opened != MASK] == opened[opened != MASK]).all())
    assert bool((output.trajectory[5] != done).any())


@pytest.mark.parametrize("churn", [0.0, 0.5])
@pytest.mark.parametrize("order", ORDERS)
def test_a_revised_row_is_its_own_and_its_trajectory_ends_with_its_steps(model, order, churn):
    for num_steps in (None, 2):
        how = {"order": order, "churn": churn, "revise": 2, "num_steps": num_steps, "seed": 1}
        index = torch.tensor([3, 8, 5])
        output = model.generate(ROWS, sample_index=index, output_trajectory=True, **how)
        assert not set(output.sequences[ROWS == MASK].tolist()) & SPECIAL
        assert torch.equal(output.sequences[ROWS != MASK], ROWS[ROWS != MASK])
        for i, width in enumerate((5, 7, 5)):
            alone = model.generate(
                ROWS[i : i + 1, :width], sample_index=index[i : i + 1], output_trajectory=True, **how
            )
            assert torch.equal(alone.sequences[0], output.sequences[i, :width])
            steps = int(output.steps[i])
            assert int(alone.steps) == steps == len(alone.trajectory) - 1
            own = [xt[i, :width].tolist() for xt in output.trajectory[: steps + 1]]
            assert own == [xt[0].tolist() for xt in alone.trajectory]


def test_the_walk_before_the_revision_is_the_walk_without_it(model):
    for order in ORDERS:
        how = {"length": 6, "order": order, "seed": 4, "output_trajectory": True}
        plain, revised = model.generate(**how), model.generate(**how, revise=3)
        assert all(torch.equal(a, b) for a, b in zip(plain.trajectory, revised.trajectory, strict=False))
        assert (plain.sequences != revised.sequences).sum() <= 3


def test_revision_goes_with_constraints_and_noise(model):
    rows = model.generate(
        length=6,
        num_return_sequences=10,
        seed=0,
        revise=4,
        order="confidence",
        order_noise=0.5,
        forbidden_tokens=[5, 6, 7],
        allowed_tokens={2: [9, 10]},
    )
    assert not set(rows[:, 1:-1].flatten().tolist()) & {*SPECIAL, 5, 6, 7} and set(rows[:, 2].tolist()) <= {9, 10}


@pytest.mark.parametrize(
    ("process", "how", "message"),
    [
        ("mask", {"revise": -1}, "revise must be"),
        ("mask", {"revise": 1.5}, "revise must be"),
        ("mask", {"revise": True}, "revise must be"),
        ("substitute", {"revise": 1}, "revise is of the mask process"),
        ("mask", {"revise": 1, "threshold": 0.5, "order": "confidence"}, "revise does not go with threshold"),
        ("mask", {"revise": 1, "speculate": 2}, "revise"),
    ],
)
def test_what_cannot_work_is_refused_by_name(process, how, message):
    with pytest.raises(ValueError, match=message):
        make_udm(process).generate(length=3, **how)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_repair_has_a_trace_of_single_edits_from_the_given_text_to_the_result(kernel, temperature):
    text = torch.tensor([[CLS, 7, 8, 9, 10, 11, 12, SEP]])
    output = make_udm("substitute").generate(
        text, max_edits=3, kernel=kernel, temperature=temperature, seed=0, output_trajectory=True
    )
    assert torch.equal(output.trajectory[0], text) and torch.equal(output.trajectory[-1], output.sequences)
    edits = [int((a != b).sum()) for a, b in itertools.pairwise(output.trajectory)]
    assert len(edits) == 3 and max(edits) <= 1 and int((output.sequences != text).sum()) <= 3
