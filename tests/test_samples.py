"""Figures of drawn texts: known values, and that what is wrong with texts shows beside held-out ones."""

import json
import random

import pytest
import torch
from scipy.stats import wasserstein_distance
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import udm_here, write_lines
from tests.models import word_tokenizer
from tests.test_train_text import train
from udm_text.evaluation.samples import (
    TrainingTexts,
    bleu,
    compare_samples,
    distinct,
    judged,
    length_distance,
    repetition,
    self_bleu,
    unigram_entropy,
    words,
)

KNOWN = [
    ("the cat sat on the mat", ["the cat is on the mat", "there is a cat on the mat"], 0.3799178428257963),
    ("the the the the the the the", ["the cat is on the mat"], 0.07809849842300637),
    ("it is a guide to action", ["it is a guide to action that ensures"], 0.7165313105737896),
    ("a b c d e f", ["a x b y c z d"], 0.0971654721818804),
    ("red green", ["green red", "blue"], 0.7071067811865478),
]
NAMES = ["greek", "latin", "small", "capital", "letter", "sign", "with", "dot", "above", "below", "arrow", "ring"]


def sentences(count, seed):
    """Texts with a grammar: an order of words, and an end that depends on the beginning."""
    source, texts = random.Random(seed), []
    for _ in range(count):
        script = source.choice([("greek", "alpha"), ("latin", "a"), ("coptic", "khei")])
        case = source.choice(["small", "capital"])
        where = source.choice(["above", "below", "inside", "beside", "over", "under"])
        marks = source.sample(["dot", "ring", "tilde", "acute", "grave", "hook", "tail", "bar"], 2)
        texts.append(f"{script[0]} {case} letter {script[1]} with {marks[0]} and {marks[1]} {where}")
    return texts


# --- known answers -------------------------------------------------------------------------------------------------


def test_words_are_runs_of_letters_and_single_marks():
    assert words("Don't: go  to 3.5%!") == ("Don", "'", "t", ":", "go", "to", "3", ".", "5", "%", "!")
    assert words(" \n") == ()


def test_bleu_is_that_of_sacrebleu():
    """Values of sacrebleu 2.6.0, sentence_score(tokenize="none", effective_order=True) / 100."""
    for text, references, value in KNOWN:
        assert bleu(text.split(), [reference.split() for reference in references]) == pytest.approx(value, abs=1e-12)


def test_a_copy_has_bleu_1_and_a_text_without_a_common_word_none():
    assert bleu("a b c".split(), ["x y".split(), "a b c".split()]) == 1.0
    assert bleu("a b c".split(), ["x y z".split()]) == 0.0
    assert bleu([], ["x".split()]) == 0.0 == bleu("a".split(), [])


def test_self_bleu_is_the_mean_bleu_of_each_text_against_all_others():
    texts = [words(text) for text in [*sentences(15, 0), "greek small", "alone here"]]
    each = [bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert self_bleu([("a", "b", "c", "d")] * 3) == 1.0 and self_bleu([("a",)]) is None


def test_a_constant_text_of_n_words_has_distinct_2_of_one_in_n_less_one():
    for n in (2, 5, 40):
        assert distinct([("a",) * n], 2) == 1 / (n - 1)
    assert distinct([("a", "b", "c"), ("a", "b", "d")], 2) == 3 / 4
    assert distinct([("a",)], 2) is None


def test_repetition_is_what_stands_in_a_text_before():
    assert repetition([("a",) * 5]) == pytest.approx(2 / 3)
    assert repetition([tuple("abcdef"), tuple("abcdef")]) == 0.0  # not in another text
    assert repetition([("a",)]) is None


def test_entropy_of_words_is_that_of_their_frequencies():
    assert unigram_entropy([("a", "b"), ("c", "d")]) == pytest.approx(torch.tensor(4.0).log().item())
    assert unigram_entropy([("a", "a")]) == 0.0 == unigram_entropy([])


def test_the_distance_of_lengths_is_that_of_scipy():
    source = random.Random(0)
    for _ in range(20):
        a, b = ([("w",) * source.randint(1, 9) for _ in range(source.randint(1, 12))] for _ in range(2))
        expected = wasserstein_distance([len(x) for x in a], [len(x) for x in b])
        assert length_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_a_training_text_is_found_and_not_beside_itself():
    texts = [tuple("abcdef"), tuple("abcxyz"), tuple("abcdef"), tuple("mnopqr")]
    known = TrainingTexts(texts)
    assert known.figures([tuple("abcdef")]) == {"copies": 1.0, "known_grams": 1.0, "nearest": 1.0}
    half = known.figures([tuple("abcdzz")])
    assert half == {"copies": 0.0, "known_grams": 0.5, "nearest": 0.5}
    own = known.figures(texts, own=range(4))
    assert own["copies"] == 0.5 and own["nearest"] == pytest.approx((1 + 1 / 4 + 1 + 0) / 4)
    assert known.figures([("a",)])["nearest"] is None


# --- a judge -------------------------------------------------------------------------------------------------------


def make_judge(texts):
    tokenizer = word_tokenizer({word for text in texts for word in text.split()})
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


def test_a_judges_perplexity_is_the_mean_of_its_own_loss_by_tokens_and_pads_nothing_in():
    texts = sentences(7, 1) + ["greek small"]
    model, tokenizer = make_judge(texts)
    figures = judged(model, tokenizer, texts, batch_size=3)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert figures["nats_per_token"] == pytest.approx(nats / tokens, abs=1e-5)
    assert figures["perplexity"] == pytest.approx(torch.tensor(nats / tokens).exp().item(), rel=1e-4)
    assert figures["token_entropy"] > 0 and figures["nats_per_token_stderr"] > 0


# --- what is wrong shows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    training = sentences(300, 2)
    held_out = [text for text in sentences(400, 3) if text not in set(training)][:100]
    return training, held_out


def test_a_memoriser_is_caught(corpus):
    training, held_out = corpus
    found = compare_samples(training[:50], held_out, training)
    assert found["samples"]["copies"] == found["samples"]["nearest"] == 1.0
    assert found["held_out"]["copies"] == 0.0 and found["held_out"]["nearest"] < 0.9
    assert found["training"]["copies"] < 0.2 and found["samples"]["texts"] == found["training"]["texts"] == 50


def test_a_sampler_of_single_words_is_caught(corpus):
    training, held_out = corpus
    source = random.Random(4)
    every = [word for text in training for word in text.split()]
    drawn = [" ".join(source.choices(every, k=len(text.split()))) for text in held_out[:50]]
    found = compare_samples(drawn, held_out, training)
    samples, truth = found["samples"], found["held_out"]
    assert abs(samples["word_entropy"] - truth["word_entropy"]) < 0.1  # its words are right
    assert samples["known_grams"] < 0.1 < 0.9 < truth["known_grams"]
    assert samples["self_bleu"] < 0.5 * truth["self_bleu"]


def test_a_sampler_that_repeats_itself_is_caught(corpus):
    training, held_out = corpus
    found = compare_samples([held_out[0]] * 20 + ["small small small small"] * 20, held_out, training)
    assert found["samples"]["self_bleu"] == 1.0 > found["held_out"]["self_bleu"]
    assert found["samples"]["distinct_2"] < 0.25 * found["held_out"]["distinct_2"]
    assert found["samples"]["repetition"] > 0.1 and found["held_out"]["repetition"] == 0.0
    assert found["samples"]["length_distance"] > 1.0


def test_nothing_to_compare_is_refused(corpus):
    training, held_out = corpus
    for name, parts in (("samples", ([], held_out, training)), ("held_out", (training, [], training))):
        with pytest.raises(ValueError, match=f"{name} must hold at least one text"):
            compare_samples(*parts)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_draws_texts_and_shows_every_figure_three_times(tmp_path):
    toy = write_lines(tmp_path / "toy.txt", NAMES, lines=80, longest=6)
    train(toy, tmp_path / "model", "--validation_share", "0.2")
    judge, tokenizer = make_judge(toy.read_text().splitlines())
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    options = ("--samples", 6, "--judge", tmp_path / "judge", "--batch-size", 4)
    said = json.loads(udm_here("evaluate", tmp_path / "model", *options, "--json").stdout)
    for part in ("samples", "held_out", "training"):
        assert said[part]["texts"] == 6 and said[part]["perplexity"] > 1 and said[part]["token_entropy"] > 0
    table = udm_here("evaluate", tmp_path / "model", *options).output
    assert "perplexity" in table and "token entropy" in table and "held out" in table
    for wrong, message in (
        (("--judge", tmp_path / "judge"), "give --samples, too"),
        (("--samples", 4, "--curve"), "--curve is of the bound"),
        (("--samples", 4, "--kernel", "site"), "--kernel is of the bound"),
    ):
        assert message in str(udm_here("evaluate", tmp_path / "model", *wrong, code=1).exception)
