"""Prompt and answer: framed as the tokenizer frames a pair, the answer alone corrupted, scored, counted and written."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

from tests.models import (
    CLS,
    COUNTS,
    FIRST,
    MASK,
    PAD,
    SEP,
    TEXTS,
    UNK,
    make_tokenizer,
    make_udm,
    save_masked_lm,
    text_config,
    wake_time,
)
from tests.training_helpers import make_trainer
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.cli.train_text import parse, train_text
from udm_text.corpus import CorpusError, collate, hold_out, length_counts, load_corpus, make_rows, train_tokenizer
from udm_text.corpus.rows import split_room
from udm_text.evaluation import evaluate_bound, evaluate_token_repair
from udm_text.framing import tokenizer_fields, tokenizer_separator
from udm_text.randomness import step_random
from udm_text.training.objective import DROP_SEED, TextObjective, drop_prompts

PAIRS = [("the cat sat", "on the mat"), ("a dog", "ran to the cat"), ("", "a red dog"), ("the mat", "sat")]
DATA = Dataset.from_dict({"prompt": [a for a, _ in PAIRS], "text": [b for _, b in PAIRS]})


def tokenizers():
    for family in ("bert", "roberta", "modernbert"):
        yield family, make_tokenizer(family)
    for kind in ("char", "wordpiece", "bpe"):
        for cls_sep in (False, True):
            yield kind, train_tokenizer(kind, TEXTS, 300, cls_sep=cls_sep, separator=True)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tokenizer"), list(tokenizers()))
def test_a_row_is_the_pair_as_the_tokenizer_frames_it_and_the_answer_alone_may_change(name, tokenizer):
    rows, counts = make_rows(DATA, tokenizer)
    assert counts == {"truncated": 0, "left_out": 0, "unknown": 0, "truncated_prompts": 0}
    fields = {**tokenizer_fields(tokenizer), "separator_token_ids": tokenizer_separator(tokenizer)}
    config = UDMConfig(text_config=text_config(vocab_size=len(tokenizer)), **fields)
    for row, (prompt, answer) in zip(rows, PAIRS, strict=True):
        assert row["input_ids"] == tokenizer(prompt, answer)["input_ids"]
        ids = torch.tensor([row["input_ids"]])
        told = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert ids[config.editable(ids)].tolist() == told
        assert (row["length"], row["num_chars"]) == (len(told), len(answer))
    assert config.count_editable(rows["input_ids"]) == list(rows["length"])
    assert sum(length_counts(rows)) == len(PAIRS)


def test_a_batch_of_padded_pairs_is_editable_on_answers_alone():
    config = make_udm(separator_token_ids=[SEP]).config
    rows = [{"input_ids": [CLS, 7, 8, SEP, 9, UNK, 10, SEP]}, {"input_ids": [CLS, SEP, 11, SEP]}, {"input_ids": [CLS]}]
    batch = collate(rows, PAD, config.editable)
    expected = torch.zeros(3, 8, dtype=torch.bool)
    expected[0, 4] = expected[0, 6] = expected[1, 2] = True
    assert torch.equal(batch["editable"], expected)
    assert batch["input_ids"][expected].tolist() == [9, 10, 11]


def test_either_side_keeps_half_of_the_room_and_what_the_other_leaves():
    for room in range(1, 8):
        for answer in range(10):
            for prompt in range(10):
                kept = split_room(answer, prompt, room)
                assert sum(kept) == min(answer + prompt, room)
                assert kept[0] >= min(answer, room - room // 2) and kept[1] >= min(prompt, room // 2)
                assert kept[0] <= answer and kept[1] <= prompt


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end():
    tokenizer = train_tokenizer("char", ["abcdefghijklmnop"], separator=True)
    texts = Dataset.from_dict({"prompt": ["abcdefgh", "ab", "abcdefgh"], "text": ["ij", "ijklmnop", "ijklmnop"]})
    rows, counts = make_rows(texts, tokenizer, row_length=6)
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == ["efgh[SEP]ij", "ab[SEP]ijkl", "fgh[SEP]ijk"]
    assert (counts["truncated"], counts["truncated_prompts"]) == (2, 2)
    assert list(rows["num_chars"]) == [2, 4, 3]


def test_fixed_rows_are_fixed_in_the_answer():
    tokenizer = train_tokenizer("char", ["abcd"], separator=True)
    texts = Dataset.from_dict({"prompt": ["a", "abc"], "text": ["ab", "abc"]})
    rows, counts = make_rows(texts, tokenizer, rows="fixed", row_length=3)
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == ["abc[SEP]abc"] and counts["left_out"] == 1
    with pytest.raises(ValueError, match="rows='packed' joins texts, and prompts and answers stay apart"):
        make_rows(texts, tokenizer, rows="packed", row_length=3)


def test_a_prompt_that_holds_the_separator_is_left_out():
    tokenizer = train_tokenizer("char", ["abcd"], separator=True)
    texts = Dataset.from_dict({"prompt": ["a[SEP]b", "a"], "text": ["c", "c"]})
    rows, counts = make_rows(texts, tokenizer)
    assert len(rows) == 1 and counts["left_out"] == 1


def test_a_tokenizer_without_a_separator_is_told_how_to_get_one():
    with pytest.raises(ValueError, match="has no sep_token; add one by tokenizer.add_special_tokens"):
        make_rows(DATA, train_tokenizer("char", TEXTS))


def test_prompts_are_read_beside_the_text_and_equal_prompts_stay_on_one_side(tmp_path):
    records = [{"q": f"question {i % 60}", "text": f"answer {i}", "prompt": "trap"} for i in range(300)]
    records += [{"q": None, "text": "alone", "prompt": None}, {"q": "no answer", "text": "  ", "prompt": None}]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    splits = hold_out(load_corpus(str(path), prompt_column="q"), 0.2)
    sides = {name: list(zip(rows["prompt"], rows["text"], strict=True)) for name, rows in splits.items()}
    assert len(sides["train"]) + len(sides["validation"]) == 301
    assert not {q for q, _ in sides["train"]} & {q for q, _ in sides["validation"]}
    swapped = load_corpus(str(path), "q", prompt_column="text")["train"]
    assert (swapped["text"][0], swapped["prompt"][0]) == ("question 0", "answer 0")
    with pytest.raises(CorpusError, match="no column 'p'; it has 'q', 'text', 'prompt'"):
        load_corpus(str(path), prompt_column="p")
    with pytest.raises(ValueError, match="prompt_column and text_column must differ, got 'text'"):
        load_corpus(str(path), prompt_column="text")


# --- the bound -------------------------------------------------------------------------------------------------------


def test_the_bound_of_one_token_answers_is_their_cross_entropy_given_the_prompt():
    model = make_udm(separator_token_ids=[SEP]).double()
    rows = [
        {"input_ids": [CLS, *prompt, SEP, a, SEP], "num_chars": 3} for prompt, a in (((7, 8), 9), ((), 10), ((11,), 7))
    ]
    total = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        last = len(row["input_ids"]) - 2
        shown = ids.clone()
        shown[0, last] = MASK
        logits = model(input_ids=shown).logits[0, last]
        logits[model.config.special_token_ids] = -torch.inf
        total -= float(logits.log_softmax(-1)[ids[0, last]].detach())
    report = evaluate_bound(model, rows, draws=3)
    assert report.nelbo_nats_per_token == pytest.approx(total / 3, rel=1e-5)
    assert (report.tokens, report.chars) == (3, 9)
    assert report.bits_per_char == pytest.approx(total / 9 / math.log(2), rel=1e-5)


# --- hidden prompts --------------------------------------------------------------------------------------------------


def pairs_batch(count=64):
    rows = [{"input_ids": [CLS, 5 + i % 7, 6, SEP, *range(7, 8 + i % 4), SEP]} for i in range(count)]
    return collate(rows, PAD, make_udm(separator_token_ids=[SEP]).config.editable)


def test_a_hidden_prompt_is_all_masks_between_its_special_tokens_and_nothing_else_changes():
    batch = pairs_batch(4000)
    config = make_udm(separator_token_ids=[SEP]).config
    x0, editable = batch["input_ids"], batch["editable"]
    before = x0.clone()
    how = (config.forbidden_tokens(), step_random(3 ^ DROP_SEED, 5, torch.arange(4000)), 0.3, MASK)
    shown = drop_prompts(x0, editable, *how)
    assert torch.equal(x0, before)
    changed = shown != x0
    hidden = changed.any(dim=1)
    assert (changed[hidden].nonzero()[:, 1].reshape(-1, 2) == torch.tensor([1, 2])).all()  # both tokens of the prompt
    assert (shown[changed] == MASK).all()
    assert abs(int(hidden.sum()) - 1200) < 4 * math.sqrt(4000 * 0.3 * 0.7)
    assert torch.equal(config.prompt_tokens(x0, batch["attention_mask"])[hidden], changed[hidden])
    parts = [
        drop_prompts(
            x0[i::2], editable[i::2], how[0], step_random(3 ^ DROP_SEED, 5, torch.arange(i, 4000, 2)), 0.3, MASK
        )
        for i in range(2)
    ]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), shown)
    assert drop_prompts(x0, editable, how[0], how[1], 0.0, None) is x0


@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_the_loss_of_a_row_is_that_of_its_hidden_prompt_where_the_draw_says_so(process):
    model = make_udm(process, separator_token_ids=[SEP]).double()
    batch = pairs_batch(16)
    how = {"row_index": torch.arange(16), "total": 16, "step": 2, "seed": 9}

    def terms(inputs, probability=0.0):
        model.config.prompt_dropout = probability
        with torch.no_grad():
            return TextObjective(model.config).row_terms(model, inputs, **how)

    whole = terms(batch)
    shown = batch["input_ids"].clone()
    shown[:, 1:3] = MASK
    without = terms({**batch, "input_ids": shown})
    mixed = terms(batch, 0.5)
    hidden = step_random(9 ^ DROP_SEED, 2, how["row_index"]).uniform(1)[:, 0] < 0.5
    assert 0 < hidden.sum() < 16 and not torch.isclose(whole, without).any()
    assert torch.allclose(mixed, torch.where(hidden, without, whole), rtol=1e-9)
    halves = []
    for part in (slice(0, 6), slice(6, 16)):
        here = {**how, "row_index": how["row_index"][part]}
        with torch.no_grad():
            inputs = {name: value[part] for name, value in batch.items()}
            halves.append(TextObjective(model.config).row_terms(model, inputs, **here))
    assert torch.allclose(torch.cat(halves), mixed, rtol=1e-9)


def test_a_model_trained_with_hidden_prompts_knows_the_answer_and_without_its_prompt_how_often_it_comes(tmp_path):
    words = [FIRST + i // 3 for i in range(12)] * 8  # four words; the answer repeats the prompt
    rows = [{"input_ids": [CLS, word, SEP, word, SEP]} for word in words]
    model = make_udm(separator_token_ids=[SEP], prompt_dropout=0.25)
    how = {"max_steps": 160, "learning_rate": 5e-3, "per_device_train_batch_size": 48, "lr_scheduler_type": "cosine"}
    trainer = make_trainer(tmp_path, model=model, rows=rows, **how)
    trainer.train()
    prompts = torch.tensor([[CLS, word, SEP, MASK, SEP] for word in (*range(FIRST, FIRST + 4), MASK)])
    with torch.no_grad():
        scores = model.eval()(input_ids=prompts).logits[:, 3].masked_fill(model.config.forbidden_tokens(), -torch.inf)
    law = scores.softmax(-1)[:, FIRST : FIRST + 4]
    assert (law[:4].diagonal() > 0.8).all()
    assert (law[4] - 0.25).abs().max() < 0.1
    answers = model.generate(prompts[:4, :3], seed=0, length=1, num_return_sequences=50)
    assert (answers[:, 3] == answers[:, 1]).double().mean() > 0.75


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"separator_token_ids": []}, r"separator_token_ids must hold the tokens between prompt and answer.*got \[\]"),
        ({"separator_token_ids": [99]}, r"special_token_ids must lie in \[0, 24\)"),
        ({"prompt_dropout": 1.0}, r"prompt_dropout must lie in \[0, 1\), got 1.0"),
        (
            {"prompt_dropout": 0.1, "mask_token_id": None, "process": "substitute"},
            "prompt_dropout is 0.1.*mask_token_id",
        ),
    ],
)
def test_wrong_fields_are_refused(fields, error):
    with pytest.raises(ValueError, match=error):
        make_udm(**fields)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_a_prompt_gets_separator_answer_and_frame_and_stays_as_it_is(process):
    model = make_udm(process, separator_token_ids=[SEP], length_counts=COUNTS).double()
    prompts = torch.tensor([[CLS, 7, 8, SEP], [CLS, 9, SEP, PAD], [CLS, SEP, PAD, PAD], [7, 8, 9, 10]])
    out = model.generate(prompts, seed=0, max_new_tokens=3, return_dict_in_generate=True)
    for row, heads in zip(
        out.sequences, ([CLS, 7, 8, SEP], [CLS, 9, SEP], [CLS, SEP], [7, 8, 9, 10, SEP]), strict=True
    ):
        n = len(heads)
        assert row[:n].tolist() == heads and row[n + 3] == SEP
        assert not set(row[n : n + 3].tolist()) & set(model.config.special_token_ids)
    assert torch.equal(out.editable.sum(1), torch.full((4,), 3))
    for i, row in enumerate(prompts):
        alone = model.generate(row[None, row != PAD], seed=0, max_new_tokens=3, sample_index=torch.tensor([i]))
        assert torch.equal(alone[0], out.sequences[i, : alone.shape[1]])
    nothing = model.generate(seed=0, length=2)
    assert nothing[0, [0, 1, 4]].tolist() == [CLS, SEP, SEP] and nothing.shape == (1, 5)


def test_answer_lengths_follow_the_answers_of_training_whatever_the_prompt():
    model = make_udm(separator_token_ids=[SEP], length_counts=COUNTS)
    law = model.config.length_probabilities()
    for prompt in ([CLS, SEP], [CLS, *[7] * 20, SEP]):
        out = model.generate(
            torch.tensor([prompt]), seed=1, num_return_sequences=600, return_dict_in_generate=True, num_steps=1
        )
        drawn = torch.bincount(out.editable.sum(1), minlength=len(law)).double() / 600
        assert ((drawn - law).abs() <= 4 * (law * (1 - law) / 600).sqrt() + 1e-12).all()
    with pytest.raises(ValueError, match="a prompt of 40 tokens leaves no room: answers of this model have at most 0"):
        model.generate(torch.tensor([[CLS, *[7] * 38, SEP]]))


def test_an_answer_that_is_begun_is_continued_and_its_blanks_are_filled_in():
    model = make_udm(separator_token_ids=[SEP], length_counts=COUNTS)
    begun = torch.tensor([[CLS, 7, SEP, 8, 9, SEP]])
    out = model.generate(begun, seed=0, length=4)
    assert out[0, :5].tolist() == [CLS, 7, SEP, 8, 9] and out[0, 7:].tolist() == [SEP]
    with pytest.raises(ValueError, match="length is 2, and a prompt has 2 tokens already"):
        model.generate(begun, length=2)
    blanks = model.generate(torch.tensor([[CLS, 7, SEP, MASK, 9, SEP]]), seed=0)
    assert blanks[0, [0, 1, 2, 4, 5]].tolist() == [CLS, 7, SEP, 9, SEP] and blanks[0, 3] != MASK
    for wrong in ([CLS, MASK, SEP, 8, SEP], [CLS, MASK, 7]):
        with pytest.raises(
            ValueError, match=r"the prompt of row 0 of input_ids holds \[MASK\], and this model fills in answers"
        ):
            model.generate(torch.tensor([wrong]))


def test_a_separator_of_two_tokens_is_found_beside_a_suffix_of_one():
    model = make_udm(separator_token_ids=[SEP, SEP], length_counts=COUNTS)
    for prompt in ([CLS, 7, SEP], [CLS, 7, SEP, SEP], [CLS, 7]):
        out = model.generate(torch.tensor([prompt]), seed=0, length=2)
        assert out[0, :4].tolist() == [CLS, 7, SEP, SEP] and out.shape == (1, 7)
    starts = model.config.answer_starts(torch.tensor([[CLS, 7, SEP, SEP, 8, SEP], [CLS, 7, 8, 9, 10, SEP]]))
    assert starts.tolist() == [4, 6]


def test_repair_changes_the_answer_alone():
    model = make_udm("substitute", separator_token_ids=[SEP])
    rows = torch.tensor([[CLS, 7, 8, SEP, 9, 10, 11, SEP]])
    out = model.generate(rows, max_edits=3, seed=0, temperature=5.0, kernel="hamming", return_dict_in_generate=True)
    assert out.editable[0].tolist() == [False] * 4 + [True] * 3 + [False]
    assert out.sequences[0, :4].tolist() == [CLS, 7, 8, SEP] and out.sequences[0, 4:7].tolist() != [9, 10, 11]
    assert (
        evaluate_token_repair(model, [{"input_ids": rows[0].tolist()}, {"input_ids": [CLS, 7, 8, SEP, SEP]}]).rows == 1
    )
    with pytest.raises(ValueError, match=r"row 0 of input_ids has no answer to repair.*separator \[3\]"):
        model.generate(torch.tensor([[CLS, 7, 8]]), max_edits=1)


# --- from a corpus to an answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_pipeline_answers_a_string(tmp_path, family):
    plain = save_masked_lm(tmp_path / "plain", family)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    separator = tokenizer_separator(tokenizer)
    how = {"separator_token_ids": separator, "length_counts": COUNTS}
    wake_time(UDMForMaskedGeneration.from_pretrained(plain, **how)).save_pretrained(tmp_path / "udm")
    tokenizer.save_pretrained(tmp_path / "udm")
    pipe = pipeline("udm-generation", model=str(tmp_path / "udm"), dtype=torch.float64)
    assert pipe.model.config.separator_token_ids == separator and pipe.model.config.prompted
    answer, again = (pipe("the cat", seed=0, max_new_tokens=4, **how)[0]["generated_text"] for how in ({}, {}))
    whole = pipe("the cat", seed=0, max_new_tokens=4, return_full_text=True)[0]["generated_text"]
    assert answer == again and whole.replace(" ", "") == "thecat" + answer.replace(" ", "")
    between = tokenizer.decode(separator)
    begun = pipe(f"the cat{between}a dog", seed=0, max_new_tokens=2)[0]["generated_text"]
    added = pipe(f"the cat{between}a dog", seed=0, max_new_tokens=2, return_full_text=False)[0]["generated_text"]
    assert begun.startswith("a dog") and begun.endswith(added.removeprefix("##")) and len(added) < len(begun)


def test_a_run_on_prompts_and_answers(tmp_path):
    words = "latin greek small capital letter with above".split()
    pairs = [([words[i % 7], words[i * 3 % 7]], i) for i in range(160)]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps({"q": " ".join([*p, str(i)]), "a": " ".join(p[::-1])}) + "\n" for p, i in pairs))
    options = "--model tiny --max_steps 3 --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"
    base = ["--data", str(path), "--text_column", "a", "--output", str(tmp_path / "run"), *options.split()]
    with pytest.raises(ValueError, match="--prompt_dropout is 0.2 and rows have no prompt: give --prompt_column"):
        train_text(*parse([*base, "--prompt_dropout", "0.2"]))
    report = train_text(*parse([*base, "--prompt_column", "q", "--prompt_dropout", "0.2"]))
    assert report["validation"]["tokens"] == 2 * report["validation"]["rows"]  # answers of two words
    held = hold_out(load_corpus(str(path), "a", prompt_column="q"))["validation"]
    assert (
        report["examples"] == [{"prompt": q, "text": a} for q, a in zip(held["prompt"], held["text"], strict=True)][:4]
    )
    config = UDMConfig.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert (config.prompt_dropout, config.separator_token_ids) == (0.2, [tokenizer.sep_token_id])
    assert config.length_counts == [0, 0, report["train_rows"]]
    answer = pipeline("udm-generation", model=str(tmp_path / "run"))("latin greek 5", seed=0, length=2)
    assert 0 < len(answer[0]["generated_text"].split()) <= 2
    # continued on whole texts, it is no model of prompts any more
    more = ["--model", str(tmp_path / "run"), "--output", str(tmp_path / "more")]
    train_text(*parse(["--data", str(path), "--text_column", "a", *options.split()[2:], *more]))
    assert not UDMConfig.from_pretrained(tmp_path / "more").prompted
