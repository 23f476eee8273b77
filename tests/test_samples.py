"""Figures of drawn texts: known values, and that what is wrong with texts shows beside held-out ones."""

import json
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5Model, ViTConfig, ViTModel

from tests.helpers import udm_here, write_lines
from tests.models import make_masked_lm, make_udm, text_config, word_tokenizer
from tests.test_train_text import train
from udm_text import UDMForMaskedGeneration
from udm_text.card import make_card
from udm_text.cli.reports import describe_frontier, describe_samples, draw_frontier
from udm_text.cli.scoring import SampleOptions, figures_of_samples, load_beside, user_function
from udm_text.evaluation.features import count_cut, mauve, text_features
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
from udm_text.run_report import read_report, words_on_judges

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
    with pytest.raises(ValueError, match="^validity failed on 'ab': SystemExit: 3$"):
        valid_share(["ab"], lambda text: sys.exit(3))
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


class Bigrams(torch.nn.Module):
    """A causal model whose law of a token, given the one before it, is a row of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(table.log().float().clamp(min=-1e4))
        self.config = GPT2Config(vocab_size=len(table))

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.table(input_ids))


def test_under_the_true_law_held_out_texts_have_its_entropy_and_single_words_are_worse_and_copies_as_training_texts():
    """Texts [CLS] w1 ... wn [SEP] of a chain of words; what a token costs is known: sum_s n_s H_s / sum_s n_s, n_s how
    often a text is expected to be at s."""
    tokenizer = word_tokenizer(NAMES)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    size, source = len(tokenizer), torch.Generator().manual_seed(0)
    table = torch.zeros(size, size, dtype=torch.float64)
    states = [first, *range(5, size)]
    for state in states:
        table[state, 5:] = torch.rand(size - 5, generator=source, dtype=torch.float64) ** 6  # some follow, most do not
        table[state, last] = 0.0 if state == first else 0.15 * table[state].sum()
    table = table / table.sum(dim=1, keepdim=True).clamp(min=1e-9)
    visits = torch.linalg.inv(torch.eye(len(states)) - table[states][:, states])[0]
    entropy = float((visits * torch.special.entr(table[states]).sum(dim=1)).sum() / visits.sum())

    def write(state=first):
        found = []
        while (state := int(table[state].multinomial(1, generator=source))) != last:
            found.append(tokenizer.convert_ids_to_tokens(state))
        return " ".join(found)

    training, held_out = ([write() for _ in range(300)] for _ in range(2))
    every = [word for text in training for word in text.split()]
    single = [" ".join(random.Random(i).choices(every, k=len(text.split()))) for i, text in enumerate(held_out)]
    judge = Bigrams(table), tokenizer
    check_judge(*judge)
    copies = random.Random(0).choices(training, k=300)
    found = {name: compare_samples(s, held_out, training, judge=judge) for name, s in (("1", single), ("2", copies))}
    held, words_alone, heart, learnt = (
        found["1"]["held_out"],
        found["1"]["samples"],
        found["2"]["samples"],
        found["2"]["training"],
    )
    assert abs(held["nats_per_token"] - entropy) < 4 * held["nats_per_token_stderr"] < 0.2
    assert held["perplexity"] == pytest.approx(torch.tensor(held["nats_per_token"]).exp().item())
    assert words_alone["nats_per_token"] > held["nats_per_token"] + 10 * held["nats_per_token_stderr"]
    apart = (heart["nats_per_token_stderr"] ** 2 + learnt["nats_per_token_stderr"] ** 2) ** 0.5
    assert abs(heart["nats_per_token"] - learnt["nats_per_token"]) < 4 * apart and heart["copies"] == 1.0
    assert judged(*judge, training) == {name: learnt[name] for name in judged(*judge, training)}  # all of them


def test_of_texts_longer_than_a_judge_or_featuriser_reads_the_beginnings_count_and_their_number_is_said():
    short, long = "greek small letter", " ".join(["dot"] * 40)
    model, tokenizer = make_judge([short, "dot"])  # reads 32 tokens
    by = {"judge": (model, tokenizer), "featuriser": (model.transformer, tokenizer)}
    assert judged(model, tokenizer, [" ".join(["dot"] * 30)])["judge_cut"] == 0  # with [CLS] and [SEP] 32
    cut = judged(model, tokenizer, [short, long, long])
    assert cut["judge_cut"] == count_cut(*by["featuriser"], [short, long, long]) == 2
    ids = tokenizer(long, return_tensors="pt")["input_ids"][:, :32]
    with torch.no_grad():
        alone = float(model(input_ids=ids, labels=ids).loss)
    assert judged(model, tokenizer, [long])["nats_per_token"] == pytest.approx(alone, abs=1e-5)
    held_out, training = [short, long, short, short], [short] * 9
    whole = compare_samples([short] * 4, [short] * 4, training, judge=by["judge"])
    assert "cut" not in describe_samples(whole).splitlines()[-1] and words_on_judges({"samples": whole}) == ""
    found = compare_samples([long, long, short, short], held_out, training, judge=by["judge"])
    said = "Texts longer than the judge reads are cut, and perplexity is of their beginnings: 2 of 4 samples, 1 of 4 "
    said += "held-out texts, 0 of 4 training texts."
    assert describe_samples(found).splitlines()[-1] == f"note: {said}"
    assert words_on_judges({"samples": {**found, "judge": "j"}}) == f"Perplexity and token entropy by j. {said}"
    points = measure_frontier(lambda temperature, steps: [long, short], by["judge"], (1.0,), (2,))
    assert describe_frontier(points).splitlines()[1].split()[-1] == "1"


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
    (tmp_path / "ends.py").write_text("import sys\n\nsys.exit(3)\n")
    assert user_function(f"{tmp_path}/mine.py:short")("red") is True
    assert user_function("keyword:iskeyword")("if") is True
    for given, error in (
        ("short", "--validity must be module:function or path.py:function, got short"),
        (f"{tmp_path}/gone.py:short", "there is no file"),
        (f"{tmp_path}/mine.py:long", "it cannot be had: KeyError: 'long'"),
        (f"{tmp_path}/ends.py:short", "it cannot be had: SystemExit: 3"),
        ("no_such_module:f", "it cannot be had: ModuleNotFoundError"),
        (f"{tmp_path}/mine.py:number", "must be a function of one text"),
    ):
        with pytest.raises(ValueError, match=error):
            user_function(given)


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("option", "causal"), [("--judge", True), ("--featuriser", False)])
def test_a_model_of_another_vocabulary_or_with_broken_files_is_named_with_its_option(tmp_path, option, causal):
    model, tokenizer = make_judge(["red green"])
    many = word_tokenizer({f"word{i}" for i in range(99)})
    other = saved(tmp_path / "other", model, many)
    with pytest.raises(ValueError, match=f"^{option} {other}: its tokenizer has 104 tokens and the model 7"):
        load_beside(other, option, "cpu", causal)
    weights = saved(tmp_path / "weights", model, tokenizer)
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"\xff" * 99)
    with pytest.raises(
        ValueError, match=f"^{option} {weights} is no .*model of transformers that can be read: .*eader"
    ):
        load_beside(weights, option, "cpu", causal)
    tokens = saved(tmp_path / "tokens", model, tokenizer)
    (tmp_path / "tokens" / "tokenizer.json").write_text("{red")
    with pytest.raises(ValueError, match=f"^{option} {tokens} holds a tokenizer that cannot be read: "):
        load_beside(tokens, option, "cpu", causal)


def test_a_judge_without_all_its_weights_is_refused(tmp_path):
    folder = saved(tmp_path / "part", *make_judge(["red green"]))
    weights = load_file(f"{folder}/model.safetensors")
    lost = next(name for name in weights if name.endswith("c_proj.weight"))
    del weights[lost]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"^--judge {folder} lacks weights, which would be drawn at random: {lost}$"):
        load_beside(folder, "--judge", "cpu")


def test_no_text_is_drawn_for_a_featuriser_that_cannot_be_asked(tmp_path):
    model, _ = make_judge(["red green"])
    other = saved(tmp_path / "other", model, word_tokenizer({f"word{i}" for i in range(99)}))
    pipe = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(prompted=False), device="cpu"))
    with pytest.raises(ValueError, match="^--featuriser .*: they are of two models$"):  # and the pipeline is not called
        figures_of_samples(pipe, None, SampleOptions(4, featuriser=other), None, batch_size=4, seed=0)


def test_of_an_encoder_decoder_the_encoder_is_the_featuriser(tmp_path):
    texts = ["greek small letter", "latin", *sentences(3, 1)]
    _, tokenizer = make_judge(texts)
    size = len(tokenizer)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = T5Model(T5Config(vocab_size=size, decoder_start_token_id=0, **sizes)).eval()
    found = text_features(*load_beside(saved(tmp_path, whole, tokenizer), "--featuriser", "cpu", False), texts)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = whole(input_ids=ids, decoder_input_ids=ids[:, :1]).encoder_last_hidden_state
        torch.testing.assert_close(vector, states[0, -1], rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_no_tokens_is_no_featuriser(tmp_path):
    _, tokenizer = make_judge(["red green"])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    eye = ViTModel(ViTConfig(image_size=4, patch_size=2, **sizes))
    with pytest.raises(ValueError, match="^--featuriser .*: it gives no hidden states of tokens alone"):
        load_beside(saved(tmp_path, eye, tokenizer), "--featuriser", "cpu", False)


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


def test_the_command_sets_perplexity_mauve_and_the_frontier_of_drawn_texts_beside_held_out_ones(tmp_path):
    pytest.importorskip("mauve")
    texts = [*dict.fromkeys(sentences(60, 1))]
    (tmp_path / "corpus").mkdir()
    for split, part in (("train", texts[:40]), ("validation", texts[40:])):
        (tmp_path / "corpus" / f"{split}.txt").write_text("\n".join(part))
    judge, tokenizer = make_judge(texts)
    place = saved(tmp_path / "judge", judge, tokenizer)
    model = make_udm(vocab_size=len(tokenizer), length_counts=[0, 0, 1, 2, 1])
    mine = saved(tmp_path / "model", model, tokenizer)
    command = ("evaluate", mine, "--data", tmp_path / "corpus", "--samples", 6, "--judge", place, "--featuriser", place)
    more = ("--frontier", tmp_path / "out.png", "--temperatures", "0.5,1", "--steps", "2")
    said = json.loads(udm_here(*command, *more, "--json").stdout)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG" and said["judge"] == said["featuriser"] == place
    for part, of in (("held_out", texts[40:]), ("training", texts[:40])):
        shown = judged(judge, tokenizer, [of[i * len(of) // 6] for i in range(6)])
        assert {name: said[part][name] for name in shown} == pytest.approx(shown)
    assert all(0 < said[part]["mauve"] <= 1 for part in ("samples", "held_out", "training"))
    assert [(p["temperature"], p["num_steps"], p["texts"]) for p in said["frontier"]] == [(0.5, 2, 6), (1.0, 2, 6)]
    table = udm_here(*command, *more).stdout.splitlines()
    assert table[2].split() == [
        "perplexity",
        *(f"{said[p]['perplexity']:.4f}" for p in ("samples", "held_out", "training")),
    ]
    assert [line.split()[0] for line in table[-3:]] == ["steps", "2", "2"]


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
