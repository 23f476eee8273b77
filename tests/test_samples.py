"""Figures of drawn texts: known values, and that what is wrong with texts shows beside held-out ones."""

import json
import random
from collections import Counter

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import udm_here, write_lines
from tests.models import make_masked_lm, text_config, word_tokenizer
from tests.test_train_text import train
from udm_text import UDMForMaskedGeneration
from udm_text.card import make_card
from udm_text.cli.reports import describe_frontier, describe_samples, draw_frontier
from udm_text.cli.scoring import load_beside, user_function
from udm_text.evaluation.features import mauve, text_features
from udm_text.evaluation.samples import (
    TrainingTexts,
    bleu,
    check_judge,
    compare_samples,
    distinct,
    gram_distance,
    grams,
    judged,
    length_distance,
    measure_frontier,
    repetition,
    self_bleu,
    unigram_entropy,
    valid_share,
    words,
)
from udm_text.run_report import read_report

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


def test_the_distance_of_n_grams_is_that_of_scipy():
    a, b = ([words(text) for text in sentences(20, seed)] for seed in (0, 1))
    counts = [Counter(gram for text in each for gram in grams(text, 2)) for each in (a, b)]
    every = sorted(counts[0] | counts[1])
    expected = jensenshannon(*([each[gram] for gram in every] for each in counts), base=2) ** 2
    assert 0.0 < expected == pytest.approx(gram_distance(a, b), abs=1e-12)
    assert gram_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    assert gram_distance([("a", "b")], [("c", "d")]) == pytest.approx(1.0, abs=1e-12)
    assert gram_distance([("a",)], a) is None


def test_the_share_of_valid_texts_has_the_error_of_a_share():
    found = valid_share(["ab", "b", "ab", "ab"], lambda text: text.startswith("a"))
    assert found == {"valid": 0.75, "valid_stderr": pytest.approx((0.75 * 0.25 / 3) ** 0.5)}
    assert valid_share(["ab"], lambda text: False) == {"valid": 0.0, "valid_stderr": None}
    with pytest.raises(ValueError, match="validity failed on 'ab': ZeroDivisionError"):
        valid_share(["ab"], lambda text: 1 / 0)
    with pytest.raises(ValueError, match="validity must say True or False of a text, of 'ab' it said None"):
        valid_share(["ab"], lambda text: None)


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


def test_a_model_that_sees_what_comes_or_is_of_other_tokens_is_no_judge():
    model, tokenizer = make_judge(sentences(5, 1))
    check_judge(model, tokenizer)
    seeing = make_masked_lm(text_config("bert", vocab_size=len(tokenizer)))
    with pytest.raises(ValueError, match="--judge it: what it says of a token depends on the tokens behind it"):
        check_judge(seeing, tokenizer, "--judge it")
    other = word_tokenizer({f"word{i}" for i in range(99)})
    with pytest.raises(ValueError, match="its tokenizer has 104 tokens and the model"):
        check_judge(model, other)
    with pytest.raises(ValueError, match="judge: its tokenizer has no two tokens that are not special"):
        check_judge(model, word_tokenizer(()))


def test_what_is_no_judge_or_no_function_is_refused_in_a_sentence_that_names_it(tmp_path):
    model, tokenizer = make_judge(["red green"])
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="--judge .*bare holds no tokenizer: save the model"):
        load_beside(str(tmp_path / "bare"), "--judge", "cpu")
    (tmp_path / "mine.py").write_text("def short(text):\n    return len(text) < 9\n\n\nnumber = 3\n")
    assert user_function(f"{tmp_path}/mine.py:short")("red") is True
    assert user_function("keyword:iskeyword")("if") is True
    for given, error in (
        ("short", "--validity must be module:function or path.py:function, got short"),
        (f"{tmp_path}/gone.py:short", "there is no file"),
        (f"{tmp_path}/mine.py:long", "it cannot be had: KeyError: 'long'"),
        ("no_such_module:f", "it cannot be had: ModuleNotFoundError"),
        (f"{tmp_path}/mine.py:number", "must be a function of one text"),
    ):
        with pytest.raises(ValueError, match=error):
            user_function(given)


# --- MAUVE and the frontier ------------------------------------------------------------------------------------------


def test_the_features_of_a_text_are_the_last_state_of_its_last_token_whatever_stands_beside_it():
    texts = ["greek small letter", "", "latin", *sentences(4, 1)]
    model, tokenizer = make_judge(texts)
    found = text_features(model.transformer, tokenizer, texts, batch_size=3)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = model.transformer(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-4)


def test_mauve_is_near_one_for_texts_alike_and_near_nothing_for_others():
    pytest.importorskip("mauve")
    texts, same = sentences(60, 1), sentences(60, 2)
    model, tokenizer = make_judge([*texts, "dot"])
    other = [" ".join(["dot"] * (i % 3 + 1)) for i in range(60)]
    found = mauve(model.transformer, tokenizer, [same, texts, other], texts)
    assert found[1] == pytest.approx(1.0, abs=0.01) and found[2] < 0.1 < 0.4 < found[0]
    assert found == mauve(model.transformer, tokenizer, [same, texts, other], texts)
    with pytest.raises(ValueError, match=r"as many texts as reference, at least 2, got \[2\] and 3"):
        mauve(model.transformer, tokenizer, [texts[:2]], texts[:3])


def test_the_frontier_has_perplexity_beside_entropy_for_every_pair_and_is_drawn(tmp_path):
    texts = sentences(40, 1)
    judge = make_judge(texts)
    narrow = lambda temperature, steps: [texts[i % max(1, round(temperature * steps))] for i in range(12)]  # noqa: E731
    points = measure_frontier(narrow, judge, (0.5, 1.0), (2, 8))
    assert [(p["num_steps"], p["temperature"]) for p in points] == [(2, 0.5), (2, 1.0), (8, 0.5), (8, 1.0)]
    for point in points:
        drawn = narrow(point["temperature"], point["num_steps"])
        assert {k: point[k] for k in judged(*judge, drawn)} == judged(*judge, drawn)
        assert point["word_entropy"] == unigram_entropy(words(text) for text in drawn)
    assert points[0]["token_entropy"] < points[-1]["token_entropy"]
    figures = {**compare_samples(texts[:9], texts[9:20], texts[20:], judge=judge), "frontier": points}
    draw_frontier(figures, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG" and len(list(tmp_path.iterdir())) == 1
    assert len(describe_frontier(points).splitlines()) == 5
    for wrong in ({"temperatures": (), "steps": (1,)}, {"temperatures": (-1.0,), "steps": (1,)}):
        with pytest.raises(ValueError, match="temperatures must"):
            measure_frontier(narrow, judge, **wrong)


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
    for part in found.values():  # what it writes looks right in every other way
        assert part["compared"] == 50 and part["gram_distance"] < 0.25


def test_a_sampler_of_single_words_is_caught(corpus):
    training, held_out = corpus
    source = random.Random(4)
    every = [word for text in training for word in text.split()]
    drawn = [" ".join(source.choices(every, k=len(text.split()))) for text in held_out[:50]]
    pytest.importorskip("mauve")
    _, tokenizer = make_judge(every)
    encoder = make_masked_lm(text_config("bert", vocab_size=len(tokenizer))).bert
    grammar = lambda text: text.split()[2:3] == ["letter"] and text.split()[4:5] == ["with"]  # noqa: E731
    by = {"featuriser": (encoder, tokenizer), "valid": grammar}
    found = compare_samples(drawn, held_out, training, **by)
    samples, truth = found["samples"], found["held_out"]
    assert samples["valid"] < 0.2 and truth["valid"] == found["training"]["valid"] == 1.0
    assert samples["gram_distance"] > 2 * truth["gram_distance"]
    assert samples["mauve"] < 0.75 < 0.9 < min(truth["mauve"], found["training"]["mauve"])
    assert "mauve" in describe_samples(found) and found == compare_samples(drawn, held_out, training, **by)
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
    options = ("--samples", 6, "--judge", tmp_path / "judge", "--batch-size", 4, "--validity", "keyword:iskeyword")
    more = ("--frontier", tmp_path / "out.png", "--temperatures", "0.5,1", "--steps", "2")
    said = json.loads(udm_here("evaluate", tmp_path / "model", *options, *more, "--json").stdout)
    assert said == json.loads(udm_here("evaluate", tmp_path / "model", *options, *more, "--json").stdout)
    assert (tmp_path / "out.png").is_file() and [p["temperature"] for p in said["frontier"]] == [0.5, 1.0]
    assert said["samples"]["valid"] == 0.0
    for part in ("samples", "held_out", "training"):
        assert said[part]["texts"] == 6 and said[part]["perplexity"] > 1 and said[part]["token_entropy"] > 0
    udm_here("evaluate", tmp_path / "model", *options, *more[2:], "--report", tmp_path / "report")
    assert json.loads((tmp_path / "report/evaluation.json").read_text())["samples"] == {
        name: said[name] for name in said if name not in ("model", "data")
    }
    assert (tmp_path / "report/report.html").read_text().count("data:image/png;base64,") == 2
    card = make_card(
        UDMForMaskedGeneration.from_pretrained(tmp_path / "model"),
        "m",
        report=read_report(tmp_path / "model" / "report.json"),
    )
    assert "Perplexity and token entropy by judge, validity by keyword:iskeyword." in card
    table = udm_here("evaluate", tmp_path / "model", *options).output
    assert "perplexity" in table and "token entropy" in table and "held out" in table
    for wrong, message in (
        (("--judge", tmp_path / "judge"), "give --samples, too"),
        (("--samples", 4, *more), "give --judge, a causal model, too"),
        (("--samples", 4, "--steps", "8"), "give --frontier FILE.png, too"),
        ((*options, "--frontier", tmp_path / "out.jpg"), "an image that ends in .png"),
        ((*options, *more[:2], "--steps", "8,0"), "--steps must be different whole numbers of at least 1"),
        (("--samples", 4, "--curve"), "--curve is of the bound"),
        (("--samples", 4, "--kernel", "site"), "--kernel is of the bound"),
    ):
        assert message in str(udm_here("evaluate", tmp_path / "model", *wrong, code=1).exception)
