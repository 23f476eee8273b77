"""Constraints: what is forbidden is never drawn, what is allowed is drawn by the model's law among it."""

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, SuppressTokensLogitsProcessor, pipeline

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
from udm_text.corpus import load_tokenizer, train_tokenizer
from udm_text.decoding import ORDERS
from udm_text.framing import continuation_tokens, tokenizer_fields
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


@pytest.mark.parametrize("kind", ["forbidden_tokens", "allowed_tokens", "logits_processor", "begin_suppress_tokens"])
def test_what_is_left_is_drawn_by_the_models_renormalised_law(monkeypatch, kind):
    model = make_udm()
    table = torch.full((3, 24), -70.0)
    table[1, 5:10] = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1]).log()
    table[1, MASK] = 5.0
    fixed_logits(monkeypatch, model, table)
    how = {
        "forbidden_tokens": [5, 8],
        "begin_suppress_tokens": [5, 8],
        "allowed_tokens": {1: [6, 7, 9]},
        "logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([5, 8])]),
    }[kind]
    rows = model.generate(torch.tensor([[CLS, MASK, SEP]]), num_return_sequences=4000, seed=0, **{kind: how})
    seen = torch.bincount(rows[:, 1], minlength=24)
    expected = torch.tensor([0.25, 0.2, 0.1], dtype=torch.float64)
    assert int(seen[[6, 7, 9]].sum()) == 4000
    assert chisquare(seen[[6, 7, 9]].numpy(), (expected / expected.sum() * 4000).numpy()).pvalue > 1e-4


# --- how a text begins -----------------------------------------------------------------------------------------------

CONTINUE_WORDS = [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=str)
def test_no_text_begins_with_a_suppressed_token(model_of, process, sampler):
    how = {"begin_suppress_tokens": CONTINUE_WORDS, "seed": 0, "num_return_sequences": 20, **sampler}
    begun, later = set(), set()
    for settings in SETTINGS:
        rows = model_of[process].generate(length=4, **how, **settings)
        begun, later = begun | set(rows[:, 1].tolist()), later | set(rows[:, 2:5].flatten().tolist())
    assert not begun & {*CONTINUE_WORDS, *SPECIAL} and later & set(CONTINUE_WORDS)


def test_a_text_begins_behind_what_frames_it_and_nowhere_else(model_of):
    """A row: typed; then, of 30 samples, which of its positions held a suppressed token."""
    answers = make_udm("mask", separator_token_ids=[SEP])
    for model, row, free in [
        (model_of["mask"], [CLS, MASK, MASK, SEP], [2]),
        (model_of["mask"], [CLS, 7, MASK, SEP], [2]),
        (model_of["mask"], [CLS, UNK, MASK, SEP], [2]),
        (model_of["mask"], [MASK, MASK], [1]),
        (model_of["mask"], [CLS, 11, MASK, SEP, MASK, MASK, SEP], [2, 5]),
        (answers, [CLS, 11, SEP, MASK, 9, MASK, SEP], [5]),
    ]:
        how = {"begin_suppress_tokens": list(range(5, 20)), "num_return_sequences": 30, "seed": 0}
        for speculate in (None, 2):
            rows = model.generate(torch.tensor([row]), **how, speculate=speculate)
            assert [i for i, token in enumerate(row) if token == MASK and bool((rows[:, i] < 20).any())] == free
    continued = answers.generate(torch.tensor([[CLS, 11, 12, SEP]]), max_new_tokens=2, **how)
    assert bool((continued[:, 4] >= 20).all()) and bool((continued[:, 5] < 20).any())
    continued = model_of["mask"].generate(torch.tensor([[CLS, 11, 12, SEP]]), max_new_tokens=2, **how)
    assert bool((continued[:, 3] < 20).any())


@pytest.mark.parametrize("speculate", [None, 2])
def test_texts_have_the_law_of_steps_whose_first_token_is_none_of_the_suppressed(speculate):
    """Both orders enumerated: p(a, b) = (p1(a) p2(b | a) + p2(b) p1(a | b)) / 2; p1 is renormalised, p2 as it was."""
    model, number = make_udm("mask", vocab_size=10, scale=0.8), 6000
    words, suppressed = torch.arange(5, 10), [5, 6]

    def law(first, second, place):
        ids = torch.tensor([[CLS, first, second, SEP]])
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[0, place] = True
        left = torch.tensor([int(first == MASK) + int(second == MASK)])
        logits = model(input_ids=ids, t=left, num_editable=torch.tensor([2]), positions=where).logits[0].double()
        keep = torch.zeros(10, dtype=torch.bool).index_fill(0, words, True)
        if place == 1:
            keep[suppressed] = False
        return logits.masked_fill(~keep, -torch.inf).softmax(-1)

    with torch.no_grad():
        one, two = law(MASK, MASK, 1), law(MASK, MASK, 2)
        joint = torch.zeros(10, 10, dtype=torch.float64)
        for a in words.tolist():
            joint[a] += 0.5 * one[a] * law(a, MASK, 2)
            joint[:, a] += 0.5 * two[a] * law(MASK, a, 1)
    how = {"begin_suppress_tokens": suppressed, "seed": 1, "num_return_sequences": number, "speculate": speculate}
    rows = model.generate(torch.tensor([[CLS, MASK, MASK, SEP]]), **how)
    seen = torch.bincount(rows[:, 1] * 10 + rows[:, 2], minlength=100)
    possible = joint.flatten() > 0
    assert int(possible.sum()) == 15 and int(seen[~possible].sum()) == 0
    assert chisquare(seen[possible].numpy(), (joint.flatten()[possible] * number).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_repair_may_leave_a_typed_beginning_and_brings_no_suppressed_one(monkeypatch, kernel):
    model = make_udm("substitute")
    how = {"max_edits": 1, "temperature": 0.0, "kernel": kernel, "begin_suppress_tokens": [5, 6]}
    for best, expected in ((5, [5, 9]), (6, [12, 7])):  # of the first token; 7 is the second best there, 12 the third
        table = torch.zeros(4, 24)
        table[1, best], table[1, 12] = 9.0, 6.0
        table[2, 9 if best == 5 else 7] = 12.0
        fixed_logits(monkeypatch, model, table)
        rows = model.generate(torch.tensor([[CLS, 5, 7, SEP], [CLS, 11, 7, SEP]]), **how)
        assert rows[0, 1:3].tolist() == expected, best
        assert not set(rows[1, 1:2].tolist()) & {5, 6}


def test_beginnings_that_leave_no_token_are_refused_by_name(model_of):
    generate = model_of["mask"].generate
    with pytest.raises(ValueError, match=r"begin_suppress_tokens leaves no token at position 1, where a text begins"):
        generate(length=3, begin_suppress_tokens=list(range(24)))
    with pytest.raises(ValueError, match="begin_suppress_tokens leaves no token at position 1"):
        generate(length=3, begin_suppress_tokens=[7], allowed_tokens={1: [7]})
    assert 7 in generate(length=3, begin_suppress_tokens=[7], allowed_tokens={2: [7]})[:, 2].tolist()
    with pytest.raises(ValueError, match=r"begin_suppress_tokens must hold token ids in \[0, 24\), got 24"):
        generate(length=3, begin_suppress_tokens=[24])
    with pytest.raises(ValueError, match="begin_suppress_tokens must be a list of token ids"):
        generate(length=3, begin_suppress_tokens=7)


def unigram_tokenizer():
    """As SentencePiece writes: \u2581 before every word, the first too."""
    pieces = ["<unk>", "<mask>", "\u2581", "\u2581a", "\u2581the", "a", "the", "t", "h", "e", "A"]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", mask_token="<mask>")


def test_what_continues_a_word_is_known_by_the_mark_of_the_tokenizer():
    bert, old = make_tokenizer("bert"), load_tokenizer(str(Path(__file__).parent / "golden" / "wordpiece"))
    for tokenizer in (bert, old):
        marked = sorted(i for token, i in tokenizer.get_vocab().items() if token.startswith("##"))
        assert marked and continuation_tokens(tokenizer) == marked
    new = train_tokenizer("wordpiece", ["the cat sat, un-cat", "### ##a"] * 3, 60)
    for tokenizer in (new, unigram_tokenizer()):
        unmarked = [i for token, i in tokenizer.get_vocab().items() if not token.startswith("\u2581")]
        assert continuation_tokens(tokenizer) == sorted(set(unmarked) - set(tokenizer.all_special_ids)) != []
    texts = ["the cat ##sat", "##a ▁b"]
    others = [make_tokenizer("roberta"), make_tokenizer("modernbert")]
    for tokenizer in [*others, *(train_tokenizer(kind, texts * 9, 300) for kind in ("char", "bpe"))]:
        assert continuation_tokens(tokenizer) == []


def test_no_text_of_the_pipeline_begins_with_the_rest_of_a_word(monkeypatch, tmp_path):
    tokenizer = make_tokenizer("bert")
    inside = continuation_tokens(tokenizer)
    model = UDMForMaskedGeneration.from_pretrained(save_masked_lm(tmp_path, "bert"))
    table = torch.zeros(8, len(tokenizer))
    table[:, inside[0]] = 50.0
    pipe = UDMGenerationPipeline(model=model, tokenizer=tokenizer)
    fixed_logits(monkeypatch, model, table)
    rest = tokenizer.convert_ids_to_tokens(inside[0]).removeprefix("##")
    for text in ("", "[MASK][MASK]"):
        how = {} if text else {"length": 2}
        made = pipe(text, num_return_sequences=30, seed=0, **how)
        assert all(record["generated_text"].endswith(rest) for record in made)
        assert not any("#" in record["generated_text"] for record in made)
        assert len({record["generated_text"] for record in made}) > 5
        [whole] = pipe(text, seed=0, begin_suppress_tokens=[], **how)
        assert whole["generated_text"] == f"##{rest}{rest}"
        [named] = pipe(text, seed=0, begin_suppress_tokens=["the"], **how)
        assert named == whole
    stored = UDMGenerationConfig(length=2, begin_suppress_tokens=[])
    assert pipe("", seed=0, generation_config=stored)[0] == whole


@pytest.mark.parametrize("process", PROCESSES)
def test_no_constraint_and_an_empty_one_change_nothing(model_of, process):
    model, how = model_of[process], {"length": 6, "seed": 3, "num_return_sequences": 3}
    plain = model.generate(**how)
    assert torch.equal(plain, model.generate(**how, forbidden_tokens=[], allowed_tokens={}, begin_suppress_tokens=[]))
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
        how["begin_suppress_tokens"] = [14, 15, 16]
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
        ({"logits_processor": lambda scores: scores}, "must be callable as processor.input_ids, scores., got function"),
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
    texts = pipe("the[MASK]", num_return_sequences=20, seed=0, allowed_tokens={1: ["cat"]})
    assert {record["generated_text"] for record in texts} == {"the cat", "thecat"}
