"""A classifier of half-filled texts guides the tokens that fill them: exact by enumeration, and in `generate`."""

import numpy as np
import pytest
import torch

from tests.models import CLS, MASK, SEP, fixed_logits, make_udm
from tests.oracle.chains import mask_sampler_law
from tests.oracle.outcomes import MASK as BOARD_MASK
from tests.oracle.outcomes import Board
from tests.oracle.world import make_world, total_variation
from tests.test_kernels import passes_chi_square
from udm_text import UDMGenerationConfig
from udm_text.constraints import Constraints
from udm_text.inputs import GenerationInputs
from udm_text.processes import MaskProcess

EXACT = 1e-12
WORDS = torch.tensor([5, 6, 7])
BLANKS = torch.tensor([[CLS, MASK, 8, MASK, SEP]])


@pytest.fixture(scope="module")
def world():
    return make_world(3, 3)


@pytest.fixture(scope="module")
def wanted(world):
    """q(y = 1 | x0) of every sequence: a random classifier of whole texts."""
    return np.random.default_rng(0).uniform(0.02, 0.98, size=len(world.data))


def of_states(world, wanted):
    """p(y = 1 | xt) of every state with masks, (V + 1)^l, from the exact posterior of x0."""
    found = np.zeros(len(world.masked_sequences))
    for state, xt in enumerate(world.masked_sequences):
        agrees = ((world.sequences == xt) | (xt == 3)).all(1)
        found[state] = (world.data * wanted)[agrees].sum() / world.data[agrees].sum()
    return found


def guided(world, wanted, **how):
    """t -> ((V + 1)^l, l, V): the law of each token, through `Constraints` with the exact predictor and classifier."""
    ids = torch.cat((WORDS, torch.tensor([MASK])))
    xt = ids[torch.from_numpy(world.masked_sequences)]
    special = [token for token in range(24) if token not in (*WORDS.tolist(), MASK)]
    log_y = torch.from_numpy(of_states(world, wanted)).log()
    asked = []

    def classifier(tokens, rows):
        digits = (tokens[..., None] == ids).int().argmax(-1)
        filled = (tokens != MASK).sum(1) - (xt[rows] != MASK).sum(1)
        asked.append(bool((filled == 1).all()))
        return log_y[(digits * torch.tensor([16, 4, 1])).sum(1)]

    inputs = GenerationInputs(xt, xt == MASK, torch.ones_like(xt, dtype=torch.bool), (xt == MASK).sum(1))
    config = make_udm(special_token_ids=special).config
    constraints = Constraints(config, UDMGenerationConfig(**how), inputs, classifier=classifier)
    rows, columns = (xt == MASK).nonzero(as_tuple=True)

    def predictor(t):
        p = torch.from_numpy(world.mask_predictor(t)).clamp(min=1e-300).log()
        logits = torch.full((len(rows), 24), 7.0, dtype=torch.float64)  # what may not be drawn looks good
        logits[:, WORDS] = p[rows, columns]
        table = torch.zeros(*xt.shape, 3, dtype=torch.float64)
        table[rows, columns] = constraints(logits, xt, rows, columns).softmax(-1)[:, WORDS]
        return table.numpy()

    predictor(1)
    assert asked and (how.get("classifier_scale") == 0 or all(asked))
    return predictor


def walked(predictor):
    return mask_sampler_law(MaskProcess(BOARD_MASK), Board(3, 3), predictor, [3, 2, 1, 0])


def test_with_exact_predictor_and_classifier_one_token_a_step_samples_given_y(world, wanted):
    given = world.data * wanted / (world.data @ wanted)
    assert total_variation(walked(guided(world, wanted)), given) < EXACT
    assert total_variation(world.data, given) > 0.1, "y tells nothing: this world cannot tell the two laws apart"


@pytest.mark.parametrize(("scale", "candidates"), [(2.0, None), (0.5, None), (1.0, 2), (3.0, 1)])
def test_other_scales_and_fewer_candidates_are_what_they_say(world, wanted, scale, candidates):
    """By hand, state by state: p_i(v) p(y | xt with v at i)^scale over the likeliest tokens, renormalised."""
    table = guided(world, wanted, classifier_scale=scale, classifier_candidates=candidates)
    chance = of_states(world, wanted)
    for t in (1, 2, 3):
        found, p = table(t), world.mask_predictor(t)
        for state, xt in enumerate(world.masked_sequences):
            for i in np.flatnonzero(xt == 3) if (xt == 3).sum() == t else ():
                filled = [state - (3 - v) * 4 ** (2 - i) for v in range(3)]
                expected = p[state, i] * chance[filled] ** scale
                expected[np.argsort(-p[state, i])[candidates or 3 :]] = 0.0
                assert np.abs(found[state, i] - expected / expected.sum()).max() < EXACT


def test_generate_draws_by_it_and_knows_whose_row_it_is(monkeypatch):
    """Two blanks of a model that thinks all tokens alike; y says whether they are one token, p(y) = 1/19 or 18/19."""
    model = make_udm()
    fixed_logits(monkeypatch, model, torch.zeros(5, 24))
    many = 4000
    alike = torch.arange(many) % 2 == 0

    def classifier(tokens, rows):
        pair = tokens[:, [1, 3]]
        open_still = (pair == MASK).any(1)
        same = torch.where(open_still, 1 / 19, (pair[:, 0] == pair[:, 1]).double())
        return torch.where(alike[rows], same, 1 - same).log()

    rows = model.generate(BLANKS, num_return_sequences=many, seed=0, classifier=classifier)
    same = rows[:, 1] == rows[:, 3]
    assert torch.equal(same, alike)
    counts = torch.bincount(rows[:, 1][alike] - 5, minlength=19).double().numpy()
    assert passes_chi_square(counts, np.full(19, alike.sum().item() / 19))
    assert not (rows == MASK).any() and (rows[:, 2] == 8).all()


def test_a_row_is_its_own_with_other_options(monkeypatch):
    model = make_udm(prompt_dropout=0.1)

    def likes_nine(tokens, rows):
        return 2.0 * (tokens == 9).sum(1).double()

    both = torch.tensor([[CLS, MASK, 8, MASK, MASK, SEP], [CLS, 6, MASK, MASK, SEP, 0]])
    for how in ({}, {"order": "confidence"}, {"num_steps": 1}, {"guidance_scale": 2.0}, {"churn": 0.5}, {"top_k": 3}):
        call = {"seed": 3, "classifier": likes_nine, "classifier_candidates": 5, **how}
        together = model.generate(both, **call)
        alone = model.generate(both[1:, :5], sample_index=torch.tensor([1]), **call)
        assert torch.equal(together[1, :5], alone[0]), how
    out = model.generate(both, seed=3, classifier=likes_nine, return_dict_in_generate=True)
    assert out.expected_nats is None
    plain = model.generate(both, seed=3)
    assert torch.equal(model.generate(both, seed=3, classifier=likes_nine, classifier_scale=0), plain)
    with pytest.warns(UserWarning, match="compiles nothing beside classifier"):
        model.generate(both, seed=3, classifier=likes_nine, compile=True)


@pytest.mark.parametrize(
    ("process", "how", "message"),
    [
        ("mask", {"classifier": lambda tokens: 0}, r"classifier must be callable as classifier\(tokens, rows\)"),
        ("mask", {"classifier": lambda a, b: 1.0}, r"classifier must return log-probabilities \(19,\), got float"),
        ("mask", {"classifier": lambda a, b: b}, r"got \(19,\) torch.int64"),
        ("mask", {"classifier": lambda a, b: b * torch.nan}, "classifier must return log-probabilities"),
        ("mask", {"classifier": lambda a, b: b - torch.inf}, "classifier leaves no token at position"),
        ("mask", {"classifier": lambda a, b: b * 1.0, "speculate": 2}, "does not go with speculate"),
        ("mask", {"classifier_scale": 2.0}, "classifier_scale=2.0 is of a classifier: give classifier, too"),
        ("mask", {"classifier_candidates": 3}, "classifier_candidates=3 is of a classifier"),
        ("mask", {"classifier_scale": -1.0}, "classifier_scale must be a number that is at least 0"),
        ("substitute", {"classifier": lambda a, b: b * 1.0}, "needs a model of process 'mask'"),
        ("uniform", {"classifier_scale": 2.0}, "classifier_scale is of the mask process"),
    ],
)
def test_what_cannot_work_is_refused_by_name(process, how, message):
    with pytest.raises(ValueError, match=message):
        make_udm(process).generate(BLANKS, **how)
