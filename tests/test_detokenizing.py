"""What was typed and not changed comes back as it was typed."""

import random

import pytest
from transformers import pipeline

from tests.models import FAMILIES, UDMForMaskedGeneration, make_tokenizer, save_masked_lm
from udm_text.corpus import train_tokenizer
from udm_text.detokenizing import restore_text, unknown_parts

TEXTS = ["the cat sat on the mat", "a dog ran to the cat", "where are naïve cafés", "unhappy, unlucky: un-done"]


OURS = ("wordpiece", "char", "bpe")


@pytest.fixture(params=[*FAMILIES, *OURS])
def tokenizer(request):
    return train_tokenizer(request.param, TEXTS * 3, 300) if request.param in OURS else make_tokenizer(request.param)


def retell(tokenizer, text, change=None, shown=None):
    """The text of a row in which positions were changed: {position: token id}."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    row = list(encoded["input_ids"])
    for position, token in (change or {}).items():
        row[position : position + 1] = [token]
    shown = [True] * len(row) if shown is None else shown
    return restore_text(tokenizer, text, encoded["input_ids"], encoded["offset_mapping"], row, shown)


def some_texts(number):
    draw = random.Random(0)
    letters = "acdehmnorstuwé ,.:-#[]\t\n  ÅßİҖ中文字😀\u200b\u0301ABC019"
    return ["".join(draw.choices(letters, k=draw.randrange(12))) for _ in range(number)]


def test_a_row_that_was_not_changed_is_the_typed_text(tokenizer):
    for text in [
        *TEXTS,
        "",
        " ",
        "  the\tcat \n",
        "THE CAT",
        "the 猫 sat",
        f"a {tokenizer.mask_token}",
        *some_texts(300),
    ]:
        assert retell(tokenizer, text) == text


def test_of_a_text_that_tokens_can_say_every_change_is_what_the_tokenizer_says(tokenizer):
    """Where the tokenizer gives a text back as it is, the decoded row is the right value."""
    draw, compared = random.Random(1), 0
    plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    for text in [text for text in TEXTS if text.isascii()] * 80:
        ids = tokenizer(text)["input_ids"]
        if tokenizer.decode(ids, skip_special_tokens=True) != text:
            continue
        places = [i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids]
        change = {i: draw.choice(plain) for i in draw.sample(places, draw.randrange(1, 4))}
        row = [change.get(i, token) for i, token in enumerate(ids)]
        said = tokenizer.decode(row, skip_special_tokens=True)
        if "  " not in said and "\ufffd" not in said:  # two spaces, or bytes that are no character
            assert retell(tokenizer, text, change) == said, (text, change)
            compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("the [MASK] sat", "dog", "the dog sat"),
        ("THE [MASK] sat", "dog", "THE dog sat"),
        ("猫 [MASK]  sat\n", "dog", "猫 dog  sat\n"),
        ("  the\t[MASK].", "dog", "  the\tdog."),
        ("the\n\n[MASK]", "dog", "the\n\ndog"),
        ("the[MASK]", "dog", "the dog"),
    ],
)
def test_a_filled_in_word_leaves_what_stands_around_it(text, word, expected):
    tokenizer = make_tokenizer("bert")
    ids = tokenizer(text)["input_ids"]
    change = {ids.index(tokenizer.mask_token_id): tokenizer.convert_tokens_to_ids(word)}
    assert retell(tokenizer, text, change) == expected


def test_a_byte_level_word_behind_a_typed_space_brings_no_second_one():
    tokenizer = train_tokenizer("bpe", TEXTS * 3, 300)
    ids = tokenizer("the [MASK] on")["input_ids"]
    change = {ids.index(tokenizer.mask_token_id): tokenizer.convert_tokens_to_ids("Ġcat")}
    assert retell(tokenizer, "the [MASK] on", change) == "the cat on"


def test_a_character_of_several_bytes_is_typed_or_changed_as_a_whole():
    tokenizer = train_tokenizer("bpe", ["a b c"], 300)
    ids = tokenizer("a猫b")["input_ids"]
    other = tokenizer("狗", add_special_tokens=False)["input_ids"]
    start = ids.index(tokenizer.convert_tokens_to_ids("a")) + 1
    assert len(other) == 3
    changed = {start + i: token for i, token in enumerate(other) if ids[start + i] != token}
    assert 0 < len(changed) and retell(tokenizer, "a猫b", changed) == "a狗b"


def test_a_continuation_keeps_the_typed_beginning_and_one_space():
    tokenizer = make_tokenizer("bert")
    word = tokenizer.convert_tokens_to_ids("dog")
    for text, expected in [("THE cat", "THE cat dog"), ("the 猫 ", "the 猫 dog"), ("", "dog"), ("the \n", "the \ndog")]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        source, spans = encoded["input_ids"], encoded["offset_mapping"]
        row = [*source[:-1], word, source[-1]]
        assert restore_text(tokenizer, text, source, spans, row, [True] * len(row)) == expected


def test_what_is_not_shown_gives_nothing():
    tokenizer = make_tokenizer("bert")
    ids = tokenizer("the cat sat")["input_ids"]
    shown = [False] * (len(ids) - 2) + [True] * 2
    assert retell(tokenizer, "the cat sat", None, shown) == "sat"
    assert retell(tokenizer, "the cat sat ", None, [False] * len(ids)) == ""


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("the cat  dog", ["the", None, "##t"], "the  t"),
        ("the  cat[MASK]", ["the", None, "##t"], "the  t"),
        ("the  cat[MASK]", ["the", None, "dog"], "the  dog"),
        ("the cat\tdog", ["the", None, "dog"], "the\tdog"),
        ("the cat  dog on", ["the", None, None, "##t"], "the t"),
        ("  cat dog", [None, "##t"], "t"),
        ("cat[MASK]", [None, "##t"], "t"),
    ],
)
def test_parts_with_something_hidden_between_them_do_not_read_as_one_word(text, words, expected):
    tokenizer = make_tokenizer("bert")
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(words) + 2
    shown = [False, *(word is not None for word in words), False]
    change = {i: tokenizer.convert_tokens_to_ids(word) for i, word in enumerate(words, 1) if word is not None}
    assert retell(tokenizer, text, change, shown) == expected


def test_unknown_parts_are_each_named_once():
    tokenizer = train_tokenizer("char", ["ABC"], 100)
    assert unknown_parts(tokenizer, "AxByAx") == ["x", "y"]
    assert unknown_parts(tokenizer, "ABC [MASK]"[:3]) == []
    assert unknown_parts(tokenizer, "A\tB") == ["\t"]
    assert unknown_parts(train_tokenizer("wordpiece", ["the cat"], 60), "the Жat") == ["Жat"]
    assert unknown_parts(train_tokenizer("bpe", TEXTS, 300), "Ж") == []


@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_the_pipeline_gives_back_what_it_does_not_know_and_names_it_once(tmp_path, process, caplog):
    from transformers.utils import logging

    plain = save_masked_lm(tmp_path / "bert", "bert")
    pipe = pipeline(
        "udm-generation",
        model=UDMForMaskedGeneration.from_pretrained(plain, process=process, length_counts=[0, 1, 2]),
        tokenizer=make_tokenizer("bert"),
    )
    text = "The Жaba  sat [MASK]\ton"
    logging.get_logger().addHandler(caplog.handler)
    try:
        results = pipe([text, text, "a cat"], seed=0, batch_size=2, num_return_sequences=2, num_steps=1)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    for record in results[0] + results[1]:
        assert record["generated_text"].startswith("The Жaba  sat") and record["generated_text"].endswith("\ton")
    assert results[2][0]["generated_text"].startswith("a cat")
    [said] = [record.message for record in caplog.records if "vocabulary" in record.message]
    assert "'The'" in said and "'Жaba'" in said and said.count("Жaba") == 1
    if process == "substitute":
        repaired = pipe(" THE   cat", max_edits=1, seed=0)[0]["generated_text"]
        assert repaired.startswith(" THE ")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_white_space_that_is_typed_before_a_blank_stays_whatever_fills_it(kind):
    tokenizer = train_tokenizer(kind, ["the red hat is red", "a reddish hat, ed ding dong"] * 3, 400)
    [piece] = tokenizer.convert_tokens_to_ids(["ed"])
    word = tokenizer.convert_tokens_to_ids("\u2581red" if kind == "wordpiece" else "\u0120red")
    cases = {
        "the [MASK] hat": ("the red hat", "the ed hat"),
        "his [MASK].": ("his red.", "his ed."),
        "the  [MASK] [MASK] hat": ("the  red red hat", "the  ed ed hat"),
        "the [MASK][MASK] hat": ("the red red hat", "the eded hat"),
        "re[MASK] hat": ("re red hat", "reed hat"),
    }
    for text, expected in cases.items():
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        for token, said in zip((word, piece), expected, strict=True):
            row = [token if one == tokenizer.mask_token_id else one for one in ids]
            assert restore_text(tokenizer, text, ids, spans, row, [True] * len(row)) == said
