"""Typing errors, what of them a repairer mends, and the edits it makes: small cases with their exact values."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.modeling_outputs import MaskedLMOutput

from udm_text.corpus import train_tokenizer
from udm_text.evaluation import evaluate_loss, evaluate_repair, make_typos
from udm_text.evaluation.repair import edit_counts, edits
from udm_text.evaluation.typos import KEYBOARD, KINDS

from .models import CLS, SEP, make_rows, make_udm

LINES = ["The quick brown fox", "jumps over a lazy dog", "Écoutez, mon ami!", "漢字 and 12 more", "ab"] * 20

# --- typing errors ---------------------------------------------------------------------------------------------------


def test_the_keyboard_knows_its_neighbours_both_ways():
    assert {key: KEYBOARD[key] for key in "qgm"} == {"q": "aw", "g": "bfhtvy", "m": "jkn"}
    assert all(key in KEYBOARD[other] for key in KEYBOARD for other in KEYBOARD[key]) and len(KEYBOARD) == 26


@pytest.mark.parametrize("kind", KINDS)
def test_one_error_of_a_kind_is_what_its_name_says(kind):
    for text, typed in zip(LINES, make_typos(LINES, kinds=(kind,), seed=3), strict=True):
        assert typed is not None and typed.kinds == (kind,) and typed.text != text
        change = {"substitute": 0, "transpose": 0, "insert": 1, "delete": -1}[kind]
        assert len(typed.text) == len(text) + change
        differ = [i for i, (a, b) in enumerate(zip(text, typed.text, strict=False)) if a != b]
        if kind == "substitute":
            [i] = differ
            assert text[i].isalpha() and text[i].isupper() == typed.text[i].isupper()
            assert typed.text[i].lower() in KEYBOARD.get(text[i].lower(), "") + text.lower()
        elif kind == "transpose":
            i, j = differ
            assert j == i + 1 and typed.text[i : j + 1].lower() == (text[j] + text[i]).lower()
            assert text[i].isupper() == typed.text[i].isupper()
        else:
            short, long = sorted((text, typed.text), key=len)
            ways = [i for i in range(len(long)) if long[:i] + long[i + 1 :] == short]
            assert ways and all(long[i].isalpha() for i in ways)


def test_errors_of_a_text_depend_on_its_row_and_not_on_its_neighbours():
    together = make_typos(LINES, errors=2, seed=5)
    alone = [make_typos([text], errors=2, seed=5, rows=[i])[0] for i, text in enumerate(LINES)]
    assert together == alone
    assert together != make_typos(LINES, errors=2, seed=6)
    assert together[0] != together[5], "equal texts of other rows have other errors"
    assert make_typos([], errors=2) == []


def test_a_text_comes_with_so_many_errors_and_never_unchanged():
    counts = [1, 2, 3, 4] * 50
    texts = ["aab", "tattoo at a ball", "x y z", "ababab"] * 50
    for text, count, typed in zip(texts, counts, make_typos(texts, errors=counts), strict=True):
        assert typed is None or (len(typed.kinds) == count and typed.text != text and typed.text.strip())
    kinds = {kind for typed in make_typos(LINES) if typed for kind in typed.kinds}
    assert kinds == set(KINDS), "kinds are drawn from all of them"


def test_letters_are_typed_by_the_alphabet_and_the_keyboard_that_were_given():
    texts = ["Sea"] * 200
    how = {"kinds": ["substitute"], "seed": 1}
    far = {typed.text for typed in make_typos(texts, alphabet="sx", keyboard=0.0, **how)}
    assert far == {"Xea", "Ssa", "Sxa", "Ses", "Sex"}
    near = {typed.text for typed in make_typos(texts, alphabet="", keyboard=1.0, **how)}
    assert near == {*(f"{c.upper()}ea" for c in "aedwxz"), *(f"S{c}a" for c in "drsw"), *(f"Se{c}" for c in "qswz")}


def test_a_text_without_room_has_no_errors():
    assert make_typos(["", "12, 3!", "a"], kinds=["delete"]) == [None, None, None]
    assert make_typos(["aa", "Aa", "ab"], kinds=["transpose"])[:2] == [None, None]
    assert make_typos(["abc"], errors=4, kinds=["substitute"]) == [None]


def test_wrong_arguments_of_typing_errors_are_named():
    for how, message in [
        ({"kinds": ["swap"]}, "kinds must be .*'transpose', got 'swap'"),
        ({"kinds": []}, "kinds must be"),
        ({"kinds": "insert"}, "kinds must be .* got 'insert'"),
        ({"errors": 0}, "errors must be at least 1"),
        ({"errors": [1, 2]}, "one entry a text"),
        ({"rows": [1, 2]}, "one entry a text"),
        ({"keyboard": 1.5}, r"keyboard must lie in \[0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_typos(["text"], **how)


# --- edits -----------------------------------------------------------------------------------------------------------


def test_edits_are_the_fewest_characters_that_change():
    assert edits("teh cat", "the cat") == {(1, 0, "h"), (2, 0, "e")}
    assert edits("cat", "cart") == {(2, 1, "r")} and edits("cart", "cat") == {(2, 0, "")}
    assert edits("ab", "aXYb") == {(1, 1, "X"), (1, 2, "Y")}
    assert edits("same", "same") == set() and edits("", "no") == {(0, 1, "n"), (0, 2, "o")}
    for a, b in itertools.product(("kitten", "sitting", "", "tin", "nit"), repeat=2):
        assert len(edits(a, b)) == _distance(a, b)


def _distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(_distance(a[1:], b) + 1, _distance(a, b[1:]) + 1, _distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_an_edit_is_right_where_it_is_one_that_was_needed():
    assert edit_counts("tha cat sat", "the cat sat", "the cat sit") == (2, 1, 1)  # made, needed, right
    assert edit_counts("tha cet", "the cat", "thy cat") == (2, 2, 1)  # the right place, and another letter
    assert edit_counts("tha cat", "the cat", "tha cat") == (0, 1, 0)


# --- the measure -----------------------------------------------------------------------------------------------------

ANSWER = "abcdefgh"


class _Knows(torch.nn.Module):
    """Believes that position i holds `ANSWER[i]`, with logit `sure[i]` above all others."""

    def __init__(self, tokenizer, sure):
        super().__init__()
        self.ids, self.sure = tokenizer(ANSWER)["input_ids"], sure

    def forward(self, input_ids=None, positions=None, **_):
        logits = torch.zeros(*input_ids.shape, 24)
        for i, (token, sure) in enumerate(zip(self.ids, self.sure, strict=True)):
            if i < logits.shape[1]:
                logits[:, i, token] = sure
        return MaskedLMOutput(logits=logits[positions])


@pytest.fixture
def knowing(monkeypatch):
    """A model that knows the eight letters of one text, a way to say how sure it is, and its tokenizer."""
    tokenizer = train_tokenizer("char", [ANSWER])
    model = make_udm(
        "substitute",
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=tokenizer.all_special_ids,
        prefix_token_ids=[],
        suffix_token_ids=[],
    )

    def set_sure(sure):
        monkeypatch.setattr(model, "forward", _Knows(tokenizer, sure).forward)
        return model

    return set_sure, tokenizer


def test_a_model_that_knows_the_text_restores_what_substitution_can_reach(knowing):
    model, tokenizer = knowing[0]([9.0] * 8), knowing[1]
    report = evaluate_repair(model, tokenizer, [ANSWER] * 24, batch_size=7, keyboard=0.0)
    assert report.left_alone == 1.0 and report.rows == 24 and report.left_out == 0
    for kind, reached in {"substitute": 1.0, "transpose": 1.0, "insert": 0.0, "delete": 0.0}.items():
        for number, cell in report.by_kind[kind].items():
            assert cell["rows"] == 8 and cell["restored"] == reached, (kind, number)
            assert cell["out_of_reach"] == (0 if reached else 8)
    mixed = report.by_kind["mixed"]
    assert sum(cell["out_of_reach"] for cell in mixed.values()) == report.out_of_reach
    assert 0 < report.restored == sum(cell["restored"] * 8 for cell in mixed.values()) / 24 < 1
    assert report == evaluate_repair(model, tokenizer, [ANSWER] * 24, batch_size=24, keyboard=0.0)


def test_precision_and_recall_count_characters(knowing):
    sure = [9.0] * 8
    sure[0] = 0.0  # of the first letter nothing is known
    model, tokenizer = knowing[0](sure), knowing[1]
    noisy = ["abcdefgc", "bbcdefgh", "acbdefgh", ANSWER]
    report = evaluate_repair(model, tokenizer, [ANSWER] * 4, noisy=noisy)
    assert (report.restored, report.rows, report.out_of_reach) == (2 / 3, 3, 0)
    assert (report.precision, report.recall) == (1.0, 3 / 4) and report.by_kind == {}
    assert evaluate_repair(model, tokenizer, [ANSWER] * 4, noisy=noisy, max_edits=1).out_of_reach == 1
    longer = evaluate_repair(model, tokenizer, [ANSWER] * 4, noisy=[*noisy[:3], "abcdefghh"])
    assert longer.out_of_reach == 1 and longer.restored == 2 / 4


def test_texts_are_cut_where_rows_are_and_pairs_are_left_out(knowing):
    model, tokenizer = knowing[0]([9.0] * 8), knowing[1]
    how = {"kinds": ["substitute"], "errors": 1}
    assert evaluate_repair(model, tokenizer, [ANSWER * 2], row_length=8, **how).restored == 1.0
    pairs = evaluate_repair(model, tokenizer, [ANSWER * 2, ANSWER], noisy=[ANSWER * 2, "abcdefga"], row_length=8)
    assert (pairs.left_out, pairs.rows, pairs.restored) == (1, 1, 1.0)


def test_what_cannot_be_measured_is_refused(knowing):
    model, tokenizer = knowing[0]([9.0] * 8), knowing[1]
    for how, message in [
        ({"texts": ["12"]}, "none of the 1 texts can be measured"),
        ({"texts": ["abc"], "noisy": ["abc"]}, "nothing to repair"),
        ({"texts": ["abc"], "noisy": []}, "noisy must have one entry a text: 0 for 1"),
        ({"texts": []}, "none of the 0 texts"),
        ({"texts": ["abc"], "errors": []}, "errors must say"),
        ({"texts": ["abc"], "max_edits": 0}, "max_edits must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_repair(model, tokenizer, **how)
    with pytest.raises(ValueError, match="substitute"):
        evaluate_repair(make_udm(), tokenizer, ["abc"])


def test_the_held_out_loss_of_a_repairer_is_the_mean_over_the_counts_of_its_training(monkeypatch):
    """With p(x0) at every position e^-t: the loss of a row is t a token, and t goes from 1 to the share of it."""
    model = make_udm("substitute")

    def told(input_ids=None, positions=None, t=None, **_):
        told.asked |= set(t.tolist())
        clean = torch.full((*input_ids.shape, 24), 0.0)
        clean[..., 9] = 2.0
        return MaskedLMOutput(logits=clean[positions])

    told.asked = set()
    monkeypatch.setattr(model, "forward", told)
    rows = [{"input_ids": [CLS, *[9] * 10, SEP]}] * 3
    loss, error = evaluate_loss(model, rows, max_corruption=0.3, draws=6)
    assert told.asked == {1, 2, 3}
    others = 24 - 1 - int(model.config.forbidden_tokens(torch.device("cpu")).sum())
    exact = torch.logsumexp(torch.tensor([2.0] + [0.0] * others), 0).item() - 2.0
    assert loss == pytest.approx(exact, rel=1e-6) and error == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="max_corruption"):
        evaluate_loss(model, make_rows(3), max_corruption=0.0)


# --- min_confidence --------------------------------------------------------------------------------------------------

TEXT = [CLS, 7, 8, 9, SEP]


def _three(monkeypatch):
    """A model that sees (0.5, 0.3, 0.2), (0.1, 0.9, 0) and (0.45, 0.55, 0) for tokens 7, 8, 9 at three positions."""
    model = make_udm("substitute")
    table = torch.full((5, 24), -torch.inf)
    table[:, 5:] = -60.0
    world = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 1e-20], [0.45, 0.55, 1e-20]])
    table[1:4, 7:10] = world.log()

    def forward(input_ids=None, positions=None, **_):
        return MaskedLMOutput(logits=table.expand(len(input_ids), 5, 24)[positions])

    monkeypatch.setattr(model, "forward", forward)
    return model


@pytest.mark.parametrize(
    "least, expected",
    [(None, [7, 8, 8]), (0.0, [7, 8, 8]), (0.55, [7, 8, 8]), (0.56, [7, 7, 8]), (0.9, [7, 7, 8]), (0.91, [7, 7, 7])],
)
def test_greedy_edits_are_those_whose_token_is_so_probable(monkeypatch, least, expected):
    model = _three(monkeypatch)
    for kernel in (None, "free"):
        rows = model.generate(torch.tensor([[CLS, 7, 7, 7, SEP]]), max_edits=3, min_confidence=least, kernel=kernel)
        found = rows[0, 1:4].tolist()
        assert sorted(found) == sorted(expected) and found[0] == 7


def test_a_drawn_edit_below_the_threshold_is_not_made(monkeypatch):
    """One step of kernel free draws each position from its law; what is below the threshold leaves it as it was."""
    model = _three(monkeypatch)
    text = torch.tensor([[CLS, 7, 7, 7, SEP]]).repeat(4000, 1)
    rows = model.generate(text, max_edits=3, num_steps=1, temperature=1.0, min_confidence=0.25, seed=0)
    for position, share in ((1, 0.3), (2, 0.9), (3, 0.55)):
        assert float((rows[:, position] == 8).double().mean()) == pytest.approx(share, abs=0.03)
        assert float((rows[:, position] == 7).double().mean()) == pytest.approx(1 - share, abs=0.03)


def test_a_forbidden_token_is_replaced_however_unsure_the_model_is(monkeypatch):
    model = _three(monkeypatch)
    rows = model.generate(torch.tensor([[CLS, 9, 8, 8, SEP]]), max_edits=3, min_confidence=1.0, forbidden_tokens=[9])
    assert rows.tolist() == [[CLS, 7, 8, 8, SEP]]


def test_min_confidence_is_an_option_of_repair(monkeypatch):
    model = _three(monkeypatch)
    with pytest.raises(ValueError, match="min_confidence=0.5 .* give max_edits"):
        model.generate(length=3, min_confidence=0.5)
    with pytest.raises(ValueError, match="min_confidence must be"):
        model.generate(torch.tensor([TEXT]), max_edits=1, min_confidence=1.5)
    with pytest.raises(ValueError, match="needs a model of process 'substitute'"):
        make_udm().generate(length=3, min_confidence=0.5)
