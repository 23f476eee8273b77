"""Constraints: what is forbidden is never drawn, what is allowed is drawn by the model's law among it."""

import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, pipeline

from tests.models import (
    CLS,
    MASK,
    PAD,
    PROCESSES,
    SEP,
    SPECIAL,
    UNK,
    fixed_logits,
    make_tokenizer,
    make_udm,
    save_masked_lm,
)
from udm_text import UDMForMaskedGeneration, UDMGenerationConfig, UDMGenerationPipeline, register
from udm_text.corpus import train_tokenizer
from udm_text.decoding import ORDERS
from udm_text.framing import tokenizer_fields
from udm_text.kernels import KERNELS

register()
SAMPLERS = [("mask", {"order": order, "churn": churn}) for order in ORDERS for churn in (0.0, 0.5)] + [
    ("substitute", {"kernel": kernel, "churn": churn})
    for kernel in KERNELS
    for churn in (0.0, 0.5, 1.0)
    if not (kernel == "site" and churn)
]
SETTINGS = [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.9, "num_steps": 2}]
FORBIDDEN = [5, 6, 7, 8, 9, 10]
ALLOWED = {1: [11, 12], 3: [7, 20, 21], 4: [13]}  # 7 is forbidden as well


@pytest.fixture(scope="module")
def model_of():
    return {process: make_udm(process) for process in PROCESSES}


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=str)
def test_no_sampler_draws_a_forbidden_token_or_one_outside_its_positions_set(model_of, process, sampler):
    for setting in SETTINGS:
        rows = model_of[process].generate(
            length=6,
            num_return_sequences=24,
            seed=0,
            forbidden_tokens=FORBIDDEN,
            allowed_tokens=ALLOWED,
            **sampler,
            **setting,
        )
        assert not set(rows[:, 1:-1].flatten().tolist()) & {*SPECIAL, *FORBIDDEN}
        assert set(rows[:, 1].tolist()) <= {11, 12} and set(rows[:, 3].tolist()) <= {20, 21}
        assert set(rows[:, 4].tolist()) == {13}


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_churn_a_substitute_walk_never_shows_what_is_not_allowed(model_of, kernel):
    output = model_of["substitute"].generate(
        length=5,
        num_return_sequences=20,
        seed=1,
        kernel=kernel,
        forbidden_tokens=FORBIDDEN,
        allowed_tokens=ALLOWED,
        output_trajectory=True,
    )
    for xt in output.trajectory:
        assert not set(xt.flatten().tolist()) & set(FORBIDDEN)
        assert set(xt[:, 4].tolist()) == {13} and set(xt[:, 3].tolist()) <= {20, 21}


@pytest.mark.parametrize("kind", ["forbidden_tokens", "allowed_tokens", "logits_processor"])
def test_what_is_left_is_drawn_by_the_models_renormalised_law(monkeypatch, kind):
    model = make_udm()
    table = torch.full((3, 24), -70.0)
    table[1, 5:10] = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1]).log()
    table[1, MASK] = 5.0
    fixed_logits(monkeypatch, model, table)
    how = {
        "forbidden_tokens": [5, 8],
        "allowed_tokens": {1: [6, 7, 9]},
        "logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([5, 8])]),
    }[kind]
    rows = model.generate(torch.tensor([[CLS, MASK, SEP]]), num_return_sequences=4000, seed=0, **{kind: how})
    seen = torch.bincount(rows[:, 1], minlength=24)
    expected = torch.tensor([0.25, 0.2, 0.1], dtype=torch.float64)
    assert int(seen[[6, 7, 9]].sum()) == 4000
    assert chisquare(seen[[6, 7, 9]].numpy(), (expected / expected.sum() * 4000).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("process", PROCESSES)
def test_no_constraint_and_an_empty_one_change_nothing(model_of, process):
    model, how = model_of[process], {"length": 6, "seed": 3, "num_return_sequences": 3}
    plain = model.generate(**how)
    assert torch.equal(plain, model.generate(**how, forbidden_tokens=[], allowed_tokens={}))
    assert torch.equal(plain, model.generate(**how, logits_processor=LogitsProcessorList()))
    if process == "mask":
        assert torch.equal(plain, model.generate(**how, allowed_tokens={2: list(range(24))}))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_processor_gets_the_rows_that_the_positions_stand_in(model_of, process):
    seen = []

    def processor(input_ids, scores):
        seen.append((input_ids.clone(), scores.dtype))
        return scores.fill_(0.0)  # in place, as some of transformers' own do

    output = model_of[process].generate(
        torch.tensor([[CLS, 7, SEP]]), max_new_tokens=3, seed=0, logits_processor=processor, output_trajectory=True
    )
    assert len(seen) == 3
    for (rows, dtype), xt in zip(seen, output.trajectory, strict=False):
        assert dtype == torch.float32
        assert len(rows) == (1 if process == "mask" else 3) and bool((rows == xt).all())


def test_a_processor_cannot_bring_special_tokens_back(model_of):
    rows = model_of["mask"].generate(
        length=4,
        num_return_sequences=8,
        logits_processor=lambda ids, scores: torch.zeros_like(scores).index_fill(1, torch.tensor([MASK, UNK]), 1e4),
    )
    assert not set(rows[:, 1:-1].flatten().tolist()) & {MASK, UNK}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_repair_replaces_forbidden_tokens_first(model_of, kernel):
    text = torch.tensor([[CLS, 11, 5, 12, 6, 13, 14, SEP]])
    how = {"kernel": kernel, "temperature": 0.0, "forbidden_tokens": [5, 6]}
    rows = model_of["substitute"].generate(text, max_edits=2, **how)
    assert (rows != text).nonzero()[:, 1].tolist() == [2, 4]
    if kernel != "site":  # a draw, too, leaves no forbidden token where x0_hat may change so much
        drawn = model_of["substitute"].generate(
            text, max_edits=2, num_return_sequences=20, seed=0, num_steps=1, **{**how, "temperature": 1.0}
        )
        assert kernel == "free" or not set(drawn.flatten().tolist()) & {5, 6}


def test_a_prompt_may_hold_what_must_not_be_drawn(model_of):
    rows = model_of["mask"].generate(torch.tensor([[CLS, 5, SEP]]), max_new_tokens=4, forbidden_tokens=[5], seed=0)
    assert rows[0, 1] == 5 and 5 not in rows[0, 2:].tolist()


def test_a_rows_constrained_result_does_not_depend_on_its_neighbours():
    ids = torch.tensor([[CLS, MASK, 7, MASK, SEP, PAD], [CLS, 8, MASK, MASK, MASK, SEP]])
    for process in PROCESSES:
        model = make_udm(process).double()
        how = {"seed": 2, "forbidden_tokens": FORBIDDEN, "allowed_tokens": {3: [11, 12, 13]}}
        both = model.generate(ids, sample_index=torch.tensor([4, 6]), **how)
        assert torch.equal(both[:1, :5], model.generate(ids[:1, :5], sample_index=torch.tensor([4]), **how))
        assert torch.equal(both[1:], model.generate(ids[1:], sample_index=torch.tensor([6]), **how))


def test_constraints_are_saved_with_the_generation_config(tmp_path):
    config = UDMGenerationConfig(forbidden_tokens=[5], allowed_tokens={2: [6, 7]})
    config.save_pretrained(tmp_path)
    again = UDMGenerationConfig.from_pretrained(tmp_path)
    assert again.forbidden_tokens == [5] and again.allowed_tokens == {2: [6, 7]} and again == config


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"forbidden_tokens": ["a"]}, "forbidden_tokens must be a list of token ids"),
        ({"forbidden_tokens": [24]}, r"forbidden_tokens must hold token ids in \[0, 24\)"),
        ({"forbidden_tokens": list(range(24))}, "forbidden_tokens leaves no token"),
        ({"allowed_tokens": [[5]]}, "allowed_tokens must be a dict"),
        ({"allowed_tokens": {1: [99]}}, r"allowed_tokens\[1\] must hold token ids"),
        ({"allowed_tokens": {1: []}}, "allowed_tokens leaves no token at position 1"),
        ({"allowed_tokens": {2: [MASK, 5]}, "forbidden_tokens": [5]}, "leaves no token at position 2"),
        ({"allowed_tokens": {0: [7]}}, "position 0, which is editable in no row; editable are positions 1, 2, 3 "),
        ({"allowed_tokens": {9: [7]}}, "position 9, which is editable in no row"),
        ({"allowed_tokens": {-1: [7]}}, "position -1"),
        ({"logits_processor": 3}, "logits_processor must be callable"),
        ({"logits_processor": lambda ids, scores: scores[:, :5]}, "logits_processor must return scores"),
        ({"logits_processor": lambda ids, scores: scores - torch.inf}, "logits_processor leaves no token at position"),
    ],
)
@pytest.mark.parametrize("process", PROCESSES)
def test_constraints_that_cannot_hold_are_refused_by_name(model_of, process, how, message):
    with pytest.raises(ValueError, match=message):
        model_of[process].generate(length=3, **how)


def test_the_pipeline_takes_tokens_as_strings(tmp_path):
    folder = save_masked_lm(tmp_path, "bert")
    model = UDMForMaskedGeneration.from_pretrained(folder)
    pipe = pipeline("udm-generation", model=model, tokenizer=make_tokenizer("bert"))
    texts = [
        r["generated_text"]
        for r in pipe("the [MASK] sat", num_return_sequences=20, seed=0, allowed_tokens={2: ["cat", "dog"]})
    ]
    assert {text for text in texts} == {"the cat sat", "the dog sat"}
    held = pipe(
        "the [MASK] sat", num_return_sequences=20, seed=0, allowed_tokens={2: ["cat", "dog"]}, forbidden_tokens=["cat"]
    )
    assert {r["generated_text"] for r in held} == {"the dog sat"}
    with pytest.raises(ValueError, match="forbidden_tokens must hold single tokens, and 'the cat' is"):
        pipe("the [MASK]", forbidden_tokens=["the cat"])
    with pytest.raises(ValueError, match="forbidden_tokens must be a list"):
        pipe("the [MASK]", forbidden_tokens="cat")


def test_a_string_names_a_token_with_and_without_the_white_space_before_it():
    tokenizer = train_tokenizer("wordpiece", ["the cat sat, un-cat"] * 3, 60)
    model = make_udm("mask", vocab_size=len(tokenizer), **tokenizer_fields(tokenizer))
    pipe = UDMGenerationPipeline(model=model, tokenizer=tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    assert pipe._token_ids("x", ["cat", "▁the", ",", 5]) == [
        ids("cat"),
        ids("▁cat"),
        ids("▁the"),
        ids(","),
        ids("▁,"),
        5,
    ]
    texts = pipe("the [MASK]", num_return_sequences=20, seed=0, allowed_tokens={1: ["cat"]})
    assert {record["generated_text"] for record in texts} == {"the cat", "thecat"}
