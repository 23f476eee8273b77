"""Guidance: the law is p_u (p_c / p_u)^scale, renormalised, for every sampler; what cannot be guided is refused."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from tests.helpers import udm_here
from tests.models import CLS, FAMILIES, MASK, PAD, PROCESSES, SEP, UNK, make_udm
from tests.oracle.world import all_rows, index_of
from tests.test_speculative import one_token_law
from udm_text import UDMGenerationConfig, predictors
from udm_text.cli import commands
from udm_text.constraints import Constraints
from udm_text.decoding import ORDERS, guide, log_probabilities
from udm_text.fastpath import plain_path
from udm_text.inputs import GenerationInputs
from udm_text.kernels import KERNELS
from udm_text.positions import Positions
from udm_text.randomness import RowRandom

pytestmark = pytest.mark.filterwarnings("ignore:guidance_scale")
WORDS = (5, 6, 7)
LENGTH = 3
ROWS = torch.tensor(
    [
        [CLS, 7, MASK, 9, MASK, MASK, SEP, PAD, PAD, PAD],
        [CLS, MASK, MASK, MASK, MASK, MASK, 6, 7, 8, SEP],
        [CLS, UNK, 11, MASK, SEP, PAD, PAD, PAD, PAD, PAD],
    ]
)
SAMPLERS = [
    *(("mask", {"order": order}) for order in ORDERS),
    ("mask", {"churn": 0.5}),
    ("mask", {"threshold": 0.2}),
    ("mask", {"revise": 2, "order": "confidence"}),
    ("mask", {"speculate": 3}),
    ("mask", {"num_steps": 2, "temperature": 0.7, "top_k": 5, "top_p": 0.9}),
    *(("substitute", {"kernel": kernel}) for kernel in KERNELS),
]


def toy(process="mask", **fields):
    """A model of three words that reads one more in front of the three places to fill in."""
    special = [token for token in range(24) if token not in (*WORDS, MASK)]
    return make_udm(process, special_token_ids=special, **fields).double()


def states(digits):
    """(S, L) rows [CLS] 6 ... [SEP] of (S, 3) digits, the digit 3 being [MASK]."""
    inner = torch.tensor([*WORDS, MASK])[torch.from_numpy(digits)]
    return torch.cat((torch.tensor([[CLS, 6]]).repeat(len(inner), 1), inner, torch.full((len(inner), 1), SEP)), dim=1)


def table_by_hand(model, rows, t, scale):
    """(S, 3, 3): p_u^(1 - scale) p_c^scale at the three places, over the three words, normalised."""
    free = rows.clone()
    free[:, 1] = MASK
    with torch.no_grad():
        p_c, p_u = (
            model(x, t=t, num_editable=torch.full((len(x),), LENGTH)).logits[:, 2:5, list(WORDS)].softmax(-1).numpy()
            for x in (rows, free)
        )
    table = p_u ** (1 - scale) * p_c**scale
    return table / table.sum(-1, keepdims=True)


def predicted(model, rows, t, scale, plain=False):
    """The same, by the predictor that generate uses."""
    editable = torch.zeros_like(rows, dtype=torch.bool)
    editable[:, 2:5] = True
    inputs = GenerationInputs(rows, editable, torch.ones_like(editable), t)
    process = model.config.build_process()
    config = UDMGenerationConfig(guidance_scale=scale)
    constraints = Constraints(model.config, config, inputs)
    predictor = process.predictor(model, config, inputs, RowRandom(0, torch.arange(len(rows))), constraints)
    with torch.no_grad():
        answer = predictor.ask(rows, t, Positions.of(editable))
        where = editable.nonzero(as_tuple=True)
        logits = predictor.constraints(answer.head(answer.rows), rows, *where)
    assert (predictor.fast.body is None) == plain
    return log_probabilities(logits).exp()[:, list(WORDS)].view(len(rows), LENGTH, 3).numpy()


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_guided_law_is_that_of_the_two_conditionals_by_hand_for_every_state(family, process, scale):
    model = toy(process, family=family)
    rows = states(all_rows(4 if process == "mask" else 3, LENGTH))
    t = (rows == MASK).sum(1) if process == "mask" else torch.full((len(rows),), 2)
    expected = table_by_hand(model, rows, t, scale)
    bound = 1e-4 if family == "modernbert" else 1e-11  # ModernBERT turns queries and keys in float32
    assert np.abs(predicted(model, rows, t, scale) - expected).max() < bound
    with plain_path():
        assert np.abs(predicted(model, rows, t, scale, plain=True) - expected).max() < 1e-12
    far = table_by_hand(model, rows, t, 1.0)
    assert np.abs(expected - far).max() > 1e-3, "guidance does something here"


@pytest.mark.parametrize(
    "how",
    [{}, {"order": "left_to_right", "temperature": 0.6}, {"speculate": 3}, {"speculate": 2, "top_k": 2}],
    ids=str,
)
def test_generate_has_the_guided_law(how):
    model, scale, count = toy(), 2.5, 3000
    rows = states(all_rows(4, LENGTH))
    table = table_by_hand(model, rows, (rows == MASK).sum(1), scale) ** (1 / how.get("temperature", 1.0))
    if "top_k" in how:
        table = np.where(table >= np.sort(table)[..., -2:-1], table, 0)
    table = table / table.sum(-1, keepdims=True)
    orders = [(0, 1, 2)] if "order" in how else list(itertools.permutations(range(LENGTH)))
    law = np.mean([one_token_law(table, 3, LENGTH, order) for order in orders], axis=0)
    prompt = torch.tensor([[CLS, 6, MASK, MASK, MASK, SEP]])
    output = model.generate(prompt, num_return_sequences=count, guidance_scale=scale, seed=1, **how)
    seen = np.bincount(index_of(output[:, 2:5].numpy() - WORDS[0], 3), minlength=27)
    assert not seen[law == 0].any()
    kept = law * count >= 1  # a cell of the test must not be all but empty
    seen, law = np.append(seen[kept], seen[~kept].sum()), np.append(law[kept], law[~kept].sum())
    assert chisquare(seen[law > 0], law[law > 0] * count).pvalue > 0.001


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=str)
def test_scale_one_is_no_guidance_and_every_sampler_is_the_same_on_both_paths(process, sampler):
    model = make_udm(process).double()
    how = {"seed": 2, "num_return_sequences": 2, **sampler}
    off = model.generate(ROWS, **how)
    assert torch.equal(off, model.generate(ROWS, guidance_scale=1.0, **how))
    on = model.generate(ROWS, guidance_scale=4.0, **how)
    assert not torch.equal(on, off)
    with plain_path():
        assert torch.equal(on, model.generate(ROWS, guidance_scale=4.0, **how))


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=str)
def test_a_guided_row_is_its_own_and_draws_nothing_forbidden(process, sampler):
    model, index = make_udm(process).double(), torch.tensor([4, 1, 6])
    how = {
        "seed": 3,
        "guidance_scale": 3.0,
        "forbidden_tokens": [5, 6, 12],
        "logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([13, 14])]),
        **sampler,
    }
    together = model.generate(ROWS, sample_index=index, **how)
    for i, width in enumerate((7, 10, 5)):
        alone = model.generate(ROWS[i : i + 1, :width], sample_index=index[i : i + 1], **how)
        assert torch.equal(alone[0], together[i, :width])
    given = ROWS != MASK
    assert torch.equal(together[given], ROWS[given])
    drawn = set(together[~given].tolist())
    assert not drawn & {PAD, UNK, CLS, SEP, MASK, 5, 6, 12}
    assert process != "mask" or not drawn & {13, 14}  # a random start may hold them (docs/generation.md)


def test_calls_are_counted_and_no_price_is_named_under_guidance():
    model = make_udm(step_curve=[1.0, 2.0])
    row = ROWS[1:2]
    plain = model.generate(row, return_dict_in_generate=True)
    assert plain.num_calls == 5 and plain.expected_nats is not None
    output = model.generate(row, guidance_scale=2.0, return_dict_in_generate=True)
    assert output.num_calls == 10 and output.tokens_per_call.tolist() == [0.5] and output.expected_nats is None
    drafted = model.generate(row, guidance_scale=2.0, speculate=2, return_dict_in_generate=True)
    assert drafted.num_calls % 2 == 0 and drafted.tokens_per_call.tolist() == [5 / drafted.num_calls]


def test_a_processor_is_given_the_guided_log_probabilities(monkeypatch):
    monkeypatch.setattr(predictors, "_CHUNK_ELEMENTS", 1)  # a position at a time
    model, seen = toy(), []

    def processor(input_ids, scores):
        assert len(scores) == 1
        seen.append((input_ids[0], scores[0, list(WORDS)].double().softmax(-1)))
        return scores

    model.generate(
        states(np.array([[3, 3, 3]])), guidance_scale=2.0, seed=0, logits_processor=processor, order="entropy"
    )
    xt, laws = torch.stack([row for row, _ in seen[:3]]), torch.stack([law for _, law in seen[:3]])
    expected = table_by_hand(model, xt[:1], torch.tensor([3]), 2.0)[0]
    assert len(seen) == 3 + 2 + 1 and np.abs(laws.numpy() - expected).max() < 1e-6


def test_guide_at_zero_and_one_is_either_reading():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 7)
    torch.testing.assert_close(guide(a, b, 1.0), a.double().log_softmax(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(guide(a, b, 0.0), b.double().log_softmax(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("process", "inputs", "message"),
    [
        ("mask", {"length": 4}, "guidance_scale=2.0 weighs .* row 0 has none.*Give a prompt"),
        ("mask", {"input_ids": [[CLS, 7, MASK, SEP], [CLS, UNK, MASK, SEP]]}, "guidance_scale=2.0 .* row 1 has none"),
        ("substitute", {"input_ids": [[CLS, 7, 8, SEP]], "max_edits": 1}, "guidance_scale=2.0 .* row 0 has none"),
        ("unmasked", {"input_ids": [[CLS, 7, SEP]], "max_new_tokens": 2}, "guidance_scale=2.0 .* no mask_token_id"),
    ],
)
def test_what_has_no_condition_is_refused_by_name(process, inputs, message):
    fields = {"mask_token_id": None} if process == "unmasked" else {}
    model = make_udm("substitute" if process == "unmasked" else process, **fields)
    inputs = {name: torch.tensor(value) if name == "input_ids" else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match=message):
        model.generate(guidance_scale=2.0, **inputs)
    assert model.generate(guidance_scale=1.0, **inputs) is not None


def test_of_prompt_and_answer_the_prompt_is_the_condition():
    rows = torch.tensor(
        [[CLS, 7, UNK, 8, SEP, 9, MASK, MASK, SEP, PAD], [CLS, 7, SEP, MASK, 6, SEP, PAD, PAD, PAD, PAD]]
    )
    model = make_udm(separator_token_ids=[SEP], prompt_dropout=0.1).double()
    inputs = GenerationInputs(rows, rows == MASK, rows != PAD, (rows == MASK).sum(1))
    hidden = predictors.condition(model.config, inputs, 2.0)
    assert [row.nonzero()[:, 0].tolist() for row in hidden] == [[1, 3], [1]], "as training hides it, answers stay"
    plain = predictors.condition(make_udm().config, inputs, 2.0)
    assert [row.nonzero()[:, 0].tolist() for row in plain] == [[1, 3, 5], [1, 4]]
    assert not torch.equal(model.generate(rows, seed=0, guidance_scale=9.0), model.generate(rows, seed=0))


def test_senseless_scales_are_refused():
    for bad in (-0.5, float("inf"), float("nan"), True, "2"):
        with pytest.raises(ValueError, match="guidance_scale must be a finite number that is at least 0, or None"):
            UDMGenerationConfig(guidance_scale=bad)


def test_a_model_trained_without_dropped_prompts_is_warned_of():
    model = make_udm()
    with pytest.warns(UserWarning, match="guidance_scale=2.0: .*prompt_dropout is 0"):
        model.generate(ROWS, guidance_scale=2.0)
    model.config.prompt_dropout = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ROWS, guidance_scale=2.0)
        make_udm().generate(ROWS, guidance_scale=1.0)


def test_the_command_passes_the_scale_on(monkeypatch):
    seen = []

    def pipe(inputs, batch_size, **options):
        seen.append(options)
        return [[{"generated_text": "a"}]]

    monkeypatch.setattr(commands, "_pipeline", lambda *args: pipe)
    udm_here("generate", "m", "a [MASK]", "--guidance-scale", 2.5, "--cache-refresh", 8)
    assert seen[0]["guidance_scale"] == 2.5 and seen[0]["cache_refresh"] == 8
