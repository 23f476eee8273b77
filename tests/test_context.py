"""Whether a model has learnt context: the figures it is told from, and what a run says of it."""

import json
import math
import random

import pytest

from tests.models import CLS, SEP, UNK, make_rows, make_udm
from udm_text import UDMForMaskedGeneration
from udm_text.card import make_card
from udm_text.cli.reports import describe_context
from udm_text.cli.train_text import parse, train_text
from udm_text.evaluation import evaluate_bound, measure_context, token_counts, unigram_nats
from udm_text.run_report import has_diverged

WORDS = "ant bee cat dog elk fox gnu hen ibex jay kite lynx".split()


def test_the_unigram_figure_is_that_of_counts_and_half_a_token_more():
    config = make_udm(vocab_size=8).config  # the tokens 5, 6 and 7 may stand in a row
    counts = token_counts(config, [{"input_ids": [CLS, 5, 5, UNK, SEP]}, {"input_ids": [CLS, 5, 6, SEP]}])
    assert counts.tolist() == [0, 0, 0, 0, 0, 3, 1, 0]
    rows = [{"input_ids": [CLS, 5, 7, SEP]}, {"input_ids": [CLS, UNK, SEP]}, {"input_ids": [CLS, 6, 6, 6, SEP]}]
    share = [3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5]
    expected = [-math.log(share[0]) - math.log(share[2]), 0.0, -3 * math.log(share[1])]
    assert unigram_nats(config, rows, counts).tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"counts must have the shape \(8,\), got \(7,\)"):
        unigram_nats(config, rows, counts[:7])


def test_of_prompt_and_answer_the_answer_alone_counts():
    config = make_udm(vocab_size=8, separator_token_ids=[SEP], prefix_token_ids=[CLS], suffix_token_ids=[SEP]).config
    rows = [{"input_ids": [CLS, 7, 7, SEP, 5, 6, SEP]}]
    counts = token_counts(config, rows)
    assert counts.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert unigram_nats(config, rows, counts).tolist() == pytest.approx([-2 * math.log(1.5 / 3.5)])


def test_the_figures_are_the_bounds_of_these_rows_without_their_lengths():
    model, rows = make_udm(length_counts=[0, 4, 4, 4, 4, 4, 4]), make_rows(20, seed=2)
    found = measure_context(model, rows, rows, draws=4, seed=3)
    whole = evaluate_bound(model, rows, draws=4, seed=3)
    one = evaluate_bound(model, rows, num_steps=1)
    assert found.nelbo == pytest.approx(whole.nelbo_nats_per_token - whole.length_nats_per_token, rel=1e-9)
    assert found.one_call == pytest.approx(one.nelbo_nats_per_token - one.length_nats_per_token, rel=1e-6)
    total = unigram_nats(model.config, rows, token_counts(model.config, rows)).sum()
    assert found.unigram == pytest.approx(float(total) / whole.tokens)
    assert (found.rows, found.tokens, found.learnt_context) == (20, whole.tokens, False)  # its weights are random


def test_the_rows_that_are_measured_are_few_and_from_all_of_the_data():
    model, rows = make_udm(), make_rows(90, seed=2)
    found = measure_context(model, rows, rows, max_rows=9)
    assert (found.rows, found) == (9, measure_context(model, rows[::10], rows))
    other = measure_context(model, rows, rows, max_rows=9, max_training_rows=45)
    assert (other.nelbo, other.unigram) == (found.nelbo, measure_context(model, rows[::10], rows[::2]).unigram)


def test_of_one_row_or_an_infinite_bound_nothing_is_said():
    model = make_udm()
    assert measure_context(model, make_rows(1), make_rows(9)).learnt_context is None
    assert describe_context(measure_context(model, make_rows(1), make_rows(9)).to_dict()) == []


def test_a_process_without_a_price_of_steps_is_compared_with_the_unigram_alone():
    found = measure_context(make_udm("substitute"), make_rows(20), make_rows(20)).to_dict()
    assert (found["one_call"], found["one_call_stderr"], found["learnt_context"]) == (None, None, False)
    [line] = describe_context(found)
    assert f"{found['unigram']:.3f} +- " in line and "at once" not in line


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Lines of eight words, each line out of two words of twelve: whoever saw some knows what the others may be."""
    source = random.Random(0)
    lines = (source.choices(source.sample(WORDS, 2), k=8) for _ in range(600))
    file = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    file.write_text("\n".join(map(" ".join, lines)))
    return file


def run(data, output, steps, *more):
    options = "--model tiny --per_device_train_batch_size 32 --use_cpu --report_to none --plot false --save_strategy no"
    more = ("--disable_tqdm", "true", *more)
    given = ["--data", str(data), "--output", str(output), *options.split(), "--max_steps", str(steps), *more]
    return train_text(*parse(given))


def test_a_run_of_three_steps_says_that_no_context_is_learnt(pairs, tmp_path, capsys):
    report = run(pairs, tmp_path / "out", 3)
    found = json.loads((tmp_path / "out" / "report.json").read_text())["context"]
    assert found == report["context"] and found["learnt_context"] is False
    assert found["nelbo"] > 0.98 * min(found["unigram"], found["one_call"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "has learnt no context yet" in line]
    assert len(lines) == 1
    assert f"{found['unigram']:.3f} +- {found['unigram_stderr']:.3f} for a model that knows only how often" in lines[0]


def test_a_run_that_diverged_is_told_to_go_slower_and_not_to_go_on(pairs, tmp_path, capsys):
    how = ["--learning_rate", 3, "--lr_scheduler_type", "constant", "--max_grad_norm", 0, "--logging_steps", 5]
    report = run(pairs, tmp_path / "out", 40, *map(str, how))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "has learnt no context yet" in line]
    assert "the training diverged (it went from" in line and "--learning_rate" in line and "longer" not in line
    card = make_card(UDMForMaskedGeneration.from_pretrained(tmp_path / "out"), "user/name", report=report)
    assert "its training diverged, so train it with a lower learning rate." in card and "train it longer" not in card


@pytest.mark.parametrize(
    ("losses", "bound", "expected"),
    [
        ([], None, False),
        ([3.0], 3.0, False),
        ([3.0, 2.0, 3.1], 3.0, False),
        ([3.0, 2.0, 3.2], 3.0, True),
        ([3.0, 2.9], 3.3, False),
        ([3.0, 2.9], 3.6, True),
        ([3.0, 2.9], None, False),
        ([3.0, *[2.0] * 17, 5.0, 2.0], 3.0, True),
        ([3.0, *[2.0] * 17, 3.5, 2.0], 3.0, False),
    ],
)
def test_a_training_has_diverged_that_ends_above_its_start_or_is_worse_than_a_guess(losses, bound, expected):
    assert has_diverged(losses, bound, vocab_size=24) is expected  # log 24 is 3.18


def test_a_run_that_has_learnt_context_says_nothing(pairs, tmp_path, capsys):
    report = run(pairs, tmp_path / "out", 120, "--warmup_steps", "10")
    assert report["context"]["learnt_context"] is True
    assert report["context"]["nelbo"] < 0.9 * report["context"]["one_call"]
    assert "no context" not in capsys.readouterr().out
