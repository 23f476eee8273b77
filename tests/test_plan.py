"""One draw of the noise serves a whole walk: its law is, exactly, that of steps which each draw their own."""

import itertools

import pytest
import torch

from tests.models import CLS, MASK, SEP, make_udm
from tests.oracle.outcomes import Script
from udm_text import Skeleton, UDMGenerationConfig
from udm_text.constraints import Constraints
from udm_text.inputs import GenerationInputs
from udm_text.randomness import RowRandom
from udm_text.samplers import Start, step_by_step
from udm_text.schedules import counts

WORDS, LENGTH = (5, 6, 7), 3
INSIDE = slice(1, 1 + LENGTH)
ORDERS = list(itertools.permutations(range(LENGTH)))
TEXTS = list(itertools.product(range(len(WORDS)), repeat=LENGTH))


class Nobody:
    """Looks on, and changes nothing."""

    replaces = False

    def __call__(self, step, xs, s):
        return xs


@pytest.fixture(scope="module")
def model():
    special = [token for token in range(24) if token not in (*WORDS, MASK)]
    return make_udm(special_token_ids=special).double()


def conditionals(model, order, text, grid):
    """(LENGTH, 2): below and above the uniform that draws each token of `text`, by the plain forward, step by step."""
    edges = torch.zeros(LENGTH, 2, dtype=torch.float64)
    row = torch.tensor([[CLS, *[MASK] * LENGTH, SEP]])
    for t, s in itertools.pairwise(grid):
        revealed = order[LENGTH - t : LENGTH - s]
        with torch.no_grad():
            law = model(input_ids=row).logits[0, INSIDE, list(WORDS)].softmax(-1)
        for place in revealed:
            sums = torch.cat((torch.zeros(1, dtype=torch.float64), law[place].cumsum(0)))
            edges[place] = sums[text[place] : text[place] + 2]
        for place in revealed:
            row[0, 1 + place] = WORDS[text[place]]
    return edges


@pytest.mark.parametrize("num_steps", [None, 2, 1])
@pytest.mark.parametrize(
    "order_name",
    ["random", "left_to_right", Skeleton(every=2), Skeleton(rule=lambda tokens, editable: editable.cumsum(1) == 1)],
    ids=["random", "left_to_right", "every second", "the first"],
)
def test_every_order_is_as_likely_as_any_other_and_draws_every_text_as_often_as_its_law_says(
    model, num_steps, order_name
):
    """Each order and text has a box of uniforms, its sides the conditionals of its steps. A walk drawn near the corners
    of a box gives its text; the boxes of an order fill the cube, so nothing else can draw it."""
    grid = counts("linear", torch.tensor([LENGTH]), num_steps)[:, 0].tolist()
    own = isinstance(order_name, Skeleton)
    skeletons = [(0, 2, 1)] if own and order_name.every else [order for order in ORDERS if order[0] == 0]
    orders = skeletons if own else ORDERS if order_name == "random" else [tuple(range(LENGTH))]
    ties, uniforms, expected, volume = [], [], [], 0.0
    for order in orders:
        for text in TEXTS:
            edges = conditionals(model, order, text, grid)
            volume += float((edges[:, 1] - edges[:, 0]).prod()) / len(orders)
            for corner in itertools.product((1e-9, 0.5, 1 - 1e-9), repeat=LENGTH):
                weight = torch.tensor(corner, dtype=torch.float64)
                inner = edges[:, 0] * (1 - weight) + edges[:, 1] * weight
                uniforms.append(torch.nn.functional.pad(inner, (1, 1), value=0.5))
                # the first in the order is revealed first, so it holds the largest key
                rank = torch.tensor([LENGTH - 1 - order.index(place) for place in range(LENGTH)], dtype=torch.float64)
                ties.append(torch.nn.functional.pad((rank + 0.5) / (LENGTH + 1), (1, 1), value=0.5))
                expected.append([CLS, *(WORDS[word] for word in text), SEP])
    assert volume == pytest.approx(1, abs=1e-12)

    rows = torch.tensor([[CLS, *[MASK] * LENGTH, SEP]]).expand(len(ties), -1)
    keys = RowRandom(0, torch.arange(len(ties))).uniform(LENGTH + 2)
    calls = [torch.stack(ties), keys, keys, keys] if own else [keys, torch.stack(ties), keys]
    script = Script(*calls, torch.stack(uniforms))
    config = UDMGenerationConfig(order=order_name, temperature=1.0)
    inputs = GenerationInputs(rows, rows == MASK, torch.ones_like(rows, dtype=torch.bool), (rows == MASK).sum(1))
    process = model.config.build_process()
    predictor = process.predictor(model, config, inputs, script, Constraints(model.config, config, inputs))
    times = counts("linear", inputs.start, num_steps)
    with torch.no_grad():
        walk = step_by_step(Start(process, predictor, rows, times, config, inputs.editable, script, Nobody()))
    assert walk.sequences.tolist() == expected
    assert script.used_up(), "a walk takes its order and one number a position, and nothing more"


@pytest.mark.parametrize(
    "how", [{}, {"num_steps": 3}, {"order": "left_to_right"}, {"order": "margin"}, {"threshold": 0.3}, {"revise": 2}]
)
def test_a_callback_that_looks_on_changes_nothing_and_one_that_writes_is_obeyed(model, how):
    rows = torch.tensor([[CLS, *[MASK] * 6, SEP], [CLS, *[MASK] * 4, SEP, 0, 0]])
    plain = model.generate(rows, seed=4, **how)
    assert torch.equal(model.generate(rows, seed=4, callback_on_step_end=lambda *_: None, **how), plain)
    before = []

    def blank(model, step, s, state):
        xt = state["xt"].clone()
        if step == 1:
            before.append(int((xt == MASK).sum()))
            xt[:, 1:3] = MASK
        return {"xt": xt}

    def in_place(model, step, s, state):
        if step == 1:
            state["xt"][:, 1:3] = MASK

    for write in (blank, in_place):
        written = model.generate(rows, seed=4, callback_on_step_end=write, **how, return_dict_in_generate=True)
        assert written.sequences.shape == rows.shape
    assert before
