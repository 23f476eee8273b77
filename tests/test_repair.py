"""Typing errors, what of them a repairer mends, and the edits it makes: small cases with their exact values."""

from __future__ import annotations

import gzip
import itertools
import json
import runpy

import pytest
import torch
from datasets import Dataset
from scipy.stats import binomtest

from udm_text import UDMForMaskedGeneration
from udm_text.cli.reports import describe_repair
from udm_text.cli.train_text import parse, train_text
from udm_text.common import share_in_words
from udm_text.corpus import CorpusError, collate, load_corpus, make_rows, train_tokenizer
from udm_text.evaluation import evaluate_loss, evaluate_repair, make_typos
from udm_text.evaluation.repair import edit_counts, edits, repair_figures
from udm_text.evaluation.typos import KEYBOARD, KINDS
from udm_text.modeling_udm import UDMOutput
from udm_text.run_report import measured
from udm_text.training import TextObjective
from udm_text.training.arguments import check_data

from .helpers import ROOT, udm_here
from .models import CLS, SEP, UNK, make_udm
from .models import make_rows as random_rows

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
        return UDMOutput(logits=logits[positions])


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


def test_answers_are_repaired_behind_their_prompts(monkeypatch):
    tokenizer = train_tokenizer("char", [ANSWER], separator=True)
    a, b, c, d = tokenizer("abcd")["input_ids"]
    special = {"pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    model = make_udm(
        "substitute",
        **special,
        special_token_ids=tokenizer.all_special_ids,
        prefix_token_ids=[],
        suffix_token_ids=[],
        separator_token_ids=[tokenizer.sep_token_id],
    )
    asked = []

    def mend(input_ids, **how):  # b in place of d, wherever it may change
        asked.extend(input_ids.tolist())
        return torch.where(model.config.editable(input_ids, how["attention_mask"]) & (input_ids == d), b, input_ids)

    monkeypatch.setattr(model, "generate", mend)
    report = evaluate_repair(model, tokenizer, ["abc", "cba"], noisy=["adc", "cda"], prompts=["d", "dd"])
    assert (report.restored, report.left_alone, report.precision, report.recall) == (1.0, 1.0, 1.0, 1.0)
    separator = tokenizer.sep_token_id
    assert [d, separator, a, d, c] in [row[:5] for row in asked] and [d, d, separator, c, d, a] in asked


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
    """The model gives every position the same law, so the loss is one number; t goes from 0 to the share of a row."""
    model = make_udm("substitute")

    def told(input_ids=None, positions=None, t=None, **_):
        told.asked |= set(t.tolist())
        clean = torch.full((*input_ids.shape, 24), 0.0)
        clean[..., 9] = 2.0
        return UDMOutput(logits=clean[positions])

    told.asked = set()
    monkeypatch.setattr(model, "forward", told)
    rows = [{"input_ids": [CLS, *[9] * 10, SEP]}] * 3
    loss, error = evaluate_loss(model, rows, max_corruption=0.3, draws=6)
    assert told.asked == {0, 1, 2, 3}
    others = 24 - 1 - int(model.config.forbidden_tokens(torch.device("cpu")).sum())
    exact = torch.logsumexp(torch.tensor([2.0] + [0.0] * others), 0).item() - 2.0
    assert loss == pytest.approx(exact, rel=1e-6) and error == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="max_corruption"):
        evaluate_loss(model, random_rows(3), max_corruption=0.0)


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
        return UDMOutput(logits=table.expand(len(input_ids), 5, 24)[positions])

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


# --- pairs of noisy and clean texts ----------------------------------------------------------------------------------


def test_a_pair_becomes_two_rows_of_one_length_and_what_differs_in_length_is_left_out_and_counted():
    tokenizer = train_tokenizer("char", ["abc"], separator=True)
    a, b, c = tokenizer("abc")["input_ids"]
    separator = tokenizer.sep_token_id
    texts = {"text": ["abc", "ab", "aabb", "ca"], "noisy": ["abb", "abb", "aabc", None], "prompt": ["c"] * 4}
    rows, counts = make_rows(Dataset.from_dict(texts), tokenizer, row_length=4)
    assert rows["input_ids"] == [[c, separator, a, b, c], [c, separator, a, a, b]]
    assert rows["noisy_ids"] == [[c, separator, a, b, b], [c, separator, a, a, b]]
    assert (counts["noisy_of_other_length"], counts["left_out"], counts["truncated"]) == (2, 2, 1)
    config = make_udm("substitute", pad_token_id=tokenizer.pad_token_id).config
    batch = collate([rows[0], {"input_ids": [a], "noisy_ids": [b]}], config.pad_token_id, config.editable)
    assert batch["noisy_ids"].tolist() == [[c, separator, a, b, b], [b, *[tokenizer.pad_token_id] * 4]]
    with pytest.raises(CorpusError, match="2 noisy texts have another number of tokens"):
        make_rows(Dataset.from_dict({"text": ["a", "b"], "noisy": ["ab", ""]}), tokenizer)
    with pytest.raises(ValueError, match="packed"):
        make_rows(Dataset.from_dict({"text": ["a"], "noisy": ["b"]}), tokenizer, rows="packed", row_length=2)


def test_the_loss_of_a_pair_is_that_of_the_process_at_the_noise_that_was_given():
    """Cross-entropy over the tokens known in both rows, at xt = the noisy row and t = the tokens that differ."""
    model = make_udm("substitute").double()
    clean = [[CLS, 7, 8, 9, 10, SEP], [CLS, 11, 12, SEP], [CLS, 7, 8, UNK, SEP]]
    noisy = [[CLS, 7, 20, 9, 21, SEP], [CLS, 11, 12, SEP], [CLS, UNK, 9, 9, SEP]]
    config = model.config
    rows = [{"input_ids": a, "noisy_ids": b} for a, b in zip(clean, noisy, strict=True)]
    batch = collate(rows, config.pad_token_id, config.editable)
    how = {"row_index": torch.arange(3), "total": 3, "step": 4, "seed": 1}
    found = TextObjective(config, max_corruption=0.5, noisy_share=1.0).row_terms(model, batch, **how)
    scored = [[1, 2, 3, 4], [1, 2], [2]]
    for i, (positions, t) in enumerate(zip(scored, (2, 0, 1), strict=True)):
        wanted = torch.zeros(1, len(clean[i]), dtype=torch.bool)
        wanted[0, positions] = True
        logits = model(
            input_ids=torch.tensor([noisy[i]]),
            t=torch.tensor([t]),
            num_editable=torch.tensor([len(positions)]),
            positions=wanted,
        ).logits.masked_fill(config.forbidden_tokens(torch.device("cpu")), -torch.inf)
        exact = torch.nn.functional.cross_entropy(logits, torch.tensor(clean[i])[positions], reduction="sum")
        assert found[i].item() == pytest.approx(exact.item(), rel=1e-6)
    own = TextObjective(config, max_corruption=0.5).row_terms(model, batch, **how)
    assert not torch.isclose(own[0], found[0]), "without a share the noise is the process's"
    half = TextObjective(config, max_corruption=0.5, noisy_share=0.5)
    taken = [
        torch.isclose(half.row_terms(model, batch, **{**how, "step": step})[0], found[0]).item() for step in range(40)
    ]
    assert 10 < sum(taken) < 30


def test_a_repairer_also_learns_to_leave_clean_rows_alone(monkeypatch):
    model = make_udm("substitute")
    seen = set()

    def spy(predict, process, x0, editable, t, *rest, **how):
        seen.update(t.tolist())
        return torch.zeros(len(t))

    monkeypatch.setattr("udm_text.training.objective.row_losses", spy)
    rows = [{"input_ids": [CLS, *[9] * 10, SEP]}] * 16
    batch = collate(rows, model.config.pad_token_id, model.config.editable)
    how = {"row_index": torch.arange(16), "total": 16, "step": 0, "seed": 0}
    TextObjective(model.config, max_corruption=0.2).row_terms(model, batch, **how)
    assert seen == {0, 1, 2}
    seen.clear()
    TextObjective(model.config).row_terms(model, batch, **how)
    assert seen == set(range(1, 11))


def test_noisy_texts_are_refused_where_they_cannot_train():
    with pytest.raises(ValueError, match="process 'substitute'"):
        TextObjective(make_udm().config, noisy_share=0.5)
    with pytest.raises(ValueError, match="cross_entropy"):
        TextObjective(make_udm("substitute").config, noisy_share=0.5, loss="nelbo")
    with pytest.raises(ValueError, match=r"noisy_share must lie in \[0, 1\]"):
        TextObjective(make_udm("substitute").config, noisy_share=2.0)
    with pytest.raises(ValueError, match="noisy_column and prompt_column must differ"):
        load_corpus("x.csv", prompt_column="a", noisy_column="a")
    for options, message in [
        ("--noisy_share 0.5", "give --noisy_column"),
        ("--noisy_column n --noisy_share 0", r"--noisy_share must lie in \(0, 1\]"),
        ("--noisy_column n --streaming true --max_steps 1 --row_length 5", "--streaming"),
        ("--noisy_column n --rows packed --row_length 5", "packed blocks"),
        ("--noisy_column n --objective ar", "--objective ar"),
        ("--noisy_column n --loss nelbo", "--loss cross_entropy"),
    ]:
        data, _, goal, run = parse(["--data", "d", "--output", "o", *options.split()])
        with pytest.raises(ValueError, match=message):
            check_data(data, goal, run)


def test_two_columns_train_a_repairer_and_measure_it(tmp_path, capsys):
    """Held-out pairs are the measure; rows whose texts differ in length are counted; the command measures it again."""
    clean = [f"{a} {b}" for a in ("red", "blue", "green", "grey") for b in ("circle", "square", "cube", "line", "dot")]
    noisy = [typed.text for typed in make_typos(clean, kinds=["substitute", "insert"])]
    file = tmp_path / "pairs.csv"
    file.write_text("typed,meant\n" + "".join(f"{a},{b}\n" for a, b in zip(noisy, clean, strict=True)))
    options = (
        "--text_column meant --noisy_column typed --process substitute --tokenizer char --model tiny --max_steps 2"
    )
    options += " --per_device_train_batch_size 4 --use_cpu --report_to none --plot false --validation_share 0.3"
    output = tmp_path / "run"
    report = train_text(*parse(["--data", str(file), "--output", str(output), *options.split()]))
    left_out = report["dropped"]["noisy_of_other_length"]
    assert left_out > 0 and report["train_rows"] + left_out + report["repair"]["rows"] == len(clean)
    assert report["repair"]["by_kind"] == {} and "validation" not in report
    assert UDMForMaskedGeneration.from_pretrained(output).config.time_conditioning is False
    assert "noisy texts" in capsys.readouterr().out
    again = json.loads(udm_here("evaluate", output, "--json").stdout)
    assert {name: again[name] for name in report["repair"]} == report["repair"]


# --- shares in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "error", "count", "said"),
    [
        (0.123, 0.012, 40, "12.3% +- 1.2%"),
        (0.0, 0.0, 40, "0 of 40 (at most 7.2% at 95 %)"),
        (1.0, 0.0, 40, "40 of 40 (at least 92.8% at 95 %)"),
        (0.0, 0.0, 1, "0 of 1 (at most 95.0% at 95 %)"),
        (1.0, 0.0, 300, "300 of 300 (at least 99.0% at 95 %)"),
        (1.0, 0.0, None, "100.0%"),
        (0.5, None, 2, "50.0% +- unknown"),
    ],
)
def test_a_share_of_none_or_all_has_a_limit_in_place_of_an_error_of_zero(share, error, count, said):
    assert share_in_words(share, error, count) == said


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_limit_is_the_share_of_which_so_many_draws_give_none_in_one_case_of_twenty(count):
    limit = float(share_in_words(0.0, 0.0, count, ".12f").split("at most ")[1].split(" ")[0])
    assert binomtest(0, count, limit, alternative="less").pvalue == pytest.approx(0.05)


def test_a_report_says_of_how_many_its_shares_are():
    figures = repair_figures(
        ["the cot sat", "a dgo", "x"], ["the cat sat", "a dog", "y"], ["the cat sat", "a dog", "x"]
    )
    assert (figures["precision"], figures["edits_made"], figures["recall"], figures["edits_needed"]) == (
        1.0,
        3,
        0.75,
        4,
    )
    shares = {**figures, "restored": 1.0, "left_alone": 0.0, "left_alone_stderr": 0.0, "left_alone_rows": 9, "rows": 3}
    lines = describe_repair({**shares, "by_kind": {}, "out_of_reach": 0, "max_edits": 6})
    assert "noisy texts 3 of 3 (at least 36.8% at 95 %) are restored" in lines and "+- 0.0%" not in lines
    assert "without an error 0 of 9 (at most 28.3% at 95 %) are left alone" in lines
    assert "precision 3 of 3 (at least 36.8% at 95 %), recall 75.0% +- " in lines
    card = {figure.key: (figure.text, figure.error) for figure in measured({"repair": shares})}
    assert card["precision_rate"] == ("3 of 3 (at least 0.3684 at 95 %)", None)
    assert card["left_alone_rate"] == ("0 of 9 (at most 0.2831 at 95 %)", None)
    assert card["recall_rate"][0].startswith("0.7500 ± 0.") and card["recall_rate"][1] > 0


def test_the_benchmark_reads_packed_texts_and_tables(tmp_path, monkeypatch, capsys):
    text = "".join(f"{line}\n\n" for line in LINES[:4] * 5)
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text.encode()))
    rows = "".join(json.dumps({"text": line}) + "\n" for line in LINES[:2])
    (tmp_path / "held.jsonl").write_text(rows, encoding="utf-8")
    call = ["repair.py", "--train", str(tmp_path / "train.txt.gz"), "--held-out", str(tmp_path / "held.jsonl")]
    monkeypatch.setattr("sys.argv", call)
    runpy.run_path(str(ROOT / "benchmarks/repair.py"), run_name="__main__")
    first, *ways = capsys.readouterr().out.splitlines()
    assert first.endswith("2 held-out lines with 1 to 3 typing errors") and len(ways) == 2
    assert all("left_alone 2 of 2 (at least 22.4% at 95 %)" in way for way in ways)
