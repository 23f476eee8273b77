"""The lm-evaluation-harness asks a tiny model, on tasks of a local file and without network."""

import json
import math

import pytest
import torch

from tests.models import make_udm, word_tokenizer

pytest.importorskip("lm_eval", reason="pip install 'udm-text[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from udm_text.evaluation.harness import UDMLM, main
from udm_text.evaluation.likelihood import row_scores

WORDS = "red green blue small large circle square".split()


def save(folder, **how):
    """A model of 12 positions at most that knows these words."""
    tokenizer = word_tokenizer(WORDS)
    make_udm(vocab_size=len(tokenizer), length_counts=[0, 1, 2, 3, 2, 1], **how).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("masks"))


def asked(kind, *pairs):
    return [Instance(kind, {}, pair, 0, ("toy", number, 1)) for number, pair in enumerate(pairs)]


def scores_of(lm, *pairs):
    return lm.loglikelihood(asked("loglikelihood", *pairs))


def test_it_is_a_model_type_whose_figures_are_those_of_row_scores(saved, tmp_path):
    assert get_model("udm") is UDMLM
    file = tmp_path / "scores.jsonl"
    lm = get_model("udm").create_from_arg_string(
        f"pretrained={saved},draws=3,seed=5,scores={file}", {"batch_size": 1, "device": "cuda:0"}
    )
    [(log_p, _), (whole, _)] = scores_of(lm, ("red small", " circle square"), ("", "red circle"))
    ids = lm.tokenizer("red small circle square")["input_ids"]
    rows = [{"input_ids": ids, "editable": [False, False, False, True, True, False]}]
    rows += [{"input_ids": lm.tokenizer("red circle")["input_ids"]}]
    expected = row_scores(lm.model, rows, index=[0, 1], draws=3, seed=5)
    assert torch.allclose(-expected.nats, torch.tensor([log_p, whole]).double(), atol=1e-5)
    assert expected.length_nats[0] == 0 and expected.length_nats[1] > 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [2, 2] and lines[0]["draws"] == 3 and lines[0]["stderr"] > 0
    info = lm.get_model_info()
    assert (info["likelihood"], info["likelihood_draws"], info["likelihood_seed"]) == ("bound", 3, 5)
    assert info["likelihood_stderr_nats"] == pytest.approx(sum(line["stderr"] for line in lines) / 2)


def test_the_chain_rule_from_left_to_right_is_exact_and_agrees_with_what_the_model_says(saved):
    lm = UDMLM(str(saved), likelihood="chain", order="left_to_right")
    [(log_p, greedy)] = scores_of(lm, ("red", " small circle"))
    cls, red, small, circle, sep = lm.tokenizer("red small circle")["input_ids"]
    total, best = 0.0, True
    forbidden = lm.config.forbidden_tokens()
    for row, place, token in (([red, 4, 4], 2, small), ([red, small, 4], 3, circle)):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[cls, *row, sep]])).logits[0, place]
        law = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
        total, best = total + float(law[token]), best and int(law.argmax()) == token
    assert log_p == pytest.approx(total, abs=1e-4) and not best and greedy is False
    written = lm.pipe("red [MASK] [MASK]", temperature=0.0, order="left_to_right")[0]["generated_text"]
    assert scores_of(lm, ("red", written.removeprefix("red")))[0][1] is True
    info = lm.get_model_info()
    assert info["likelihood_order"] == "left_to_right" and info["likelihood_stderr_nats"] == 0.0


def test_neither_batch_nor_neighbours_nor_their_order_change_a_figure(saved):
    pairs = [("red", " small"), ("large blue", " circle red green"), ("", "square"), ("red", " green")]
    small, large = (UDMLM(str(saved), draws=2, batch_size=size, greedy=False) for size in (1, 8))
    together = large.loglikelihood(asked("loglikelihood", *pairs))
    turned = large.loglikelihood(asked("loglikelihood", *pairs)[::-1])[::-1]
    alone = [small.loglikelihood([request])[0] for request in asked("loglikelihood", *pairs)]
    for (a, _), (b, _), (c, _) in zip(together, turned, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5) and a == pytest.approx(c, abs=1e-5)
    how = {"until": ["circle"], "do_sample": True, "max_gen_toks": 3}
    texts = large.generate_until(asked("generate_until", *[(context, how) for context, _ in pairs]))
    assert texts[1:2] == large.generate_until(asked("generate_until", (pairs[1][0], how)))
    assert texts[0] != texts[3] or texts[0] != texts[1]
    repeats = large.generate_until(asked("generate_until", *[("red", how)] * 6))
    assert repeats[0] == texts[0] and len(set(repeats)) > 1 and not any("circle" in text for text in repeats)


def test_what_is_too_long_is_cut_from_the_left_or_read_in_windows_or_refused(saved):
    lm = UDMLM(str(saved), likelihood="chain", order="left_to_right", greedy=False)
    lm.room = 4
    words = "red small large circle blue green"
    assert scores_of(lm, (words, " square"))[0] == scores_of(lm, ("circle blue green", " square"))[0]
    assert lm.get_model_info()["truncated_contexts"] == 1
    with pytest.raises(ValueError, match="a continuation has 6 tokens and the model reads at most 4"):
        scores_of(lm, ("red", f" {words}"))
    [rolled] = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (words,)))
    given = {"input_ids": lm.tokenizer("large circle blue green")["input_ids"]}
    first = {"input_ids": lm.tokenizer("red small large circle")["input_ids"]}
    rows = [first, {**given, "editable": [False, False, False, True, True, False]}]
    scores = row_scores(lm.model, rows, likelihood="chain", order="left_to_right")
    assert rolled == pytest.approx(-float((scores.nats - scores.length_nats).sum()), abs=1e-4)
    with pytest.raises(ValueError, match="max_gen_toks is 9, and the model reads at most 4 tokens"):
        lm.generate_until(asked("generate_until", ("red", {"max_gen_toks": 9})))


def test_what_cannot_be_written_is_impossible_and_nothing_is_certain(saved):
    lm = UDMLM(str(saved), draws=1)
    found = scores_of(lm, ("red", " unheard"), ("red", ""), ("unheard", " red"))
    assert found[0] == (-math.inf, False) and found[1] == (0.0, True) and math.isfinite(found[2][0])
    assert lm.get_model_info()["unwritable_texts"] == 1


def test_a_model_of_prompts_and_answers_is_asked_as_it_was_trained(tmp_path):
    separator = word_tokenizer(WORDS).sep_token_id
    lm = UDMLM(str(save(tmp_path, separator_token_ids=[separator])), draws=2, greedy=False)
    [(log_p, _)] = scores_of(lm, ("red small", "circle"))
    ids = lm.tokenizer("red small", "circle")["input_ids"]
    expected = row_scores(lm.model, [{"input_ids": ids}], draws=2)
    assert log_p == pytest.approx(-float(expected.nats), abs=1e-5) and int(expected.tokens) == 1
    how = {"until": [], "max_gen_toks": 2}
    [text] = lm.generate_until(asked("generate_until", ("red small", how)))
    assert len(text.split()) == 2 and set(text.split()) <= set(WORDS)
    with pytest.raises(ValueError, match="a text by itself has no prompt"):
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("red",)))


def test_bad_arguments_end_in_one_sentence(saved):
    for wrong, words in (
        ({"likelihood": "exact"}, "likelihood must be"),
        ({"likelihood": "chain", "order": "confidence"}, "order must be one that is known before"),
        ({"draws": 0}, "draws must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ):
        with pytest.raises(ValueError, match=words):
            UDMLM(str(saved), **wrong)
    with pytest.raises(OSError, match="nowhere"):
        UDMLM("./nowhere")
    with pytest.raises(ValueError, match="unknown argument 'colour' of generation_kwargs"):
        UDMLM(str(saved)).generate_until(asked("generate_until", ("red", {"colour": 1})))


def test_an_argument_that_there_is_not_or_that_is_given_twice_ends_the_command_in_one_line(
    saved, tmp_path, monkeypatch, capsys
):
    make_udm(vocab_size=12).save_pretrained(tmp_path / "bare")
    make = get_model("udm").create_from_arg_string
    for given, options, said in (
        (f"pretrained={saved},colour=1", {"batch_size": 1}, "unknown argument 'colour' of model_args, which must be"),
        (f"pretrained={saved},colour=1", {}, "'pretrained', 'likelihood', 'order', "),
        ("", {}, "model_args must name a model, a directory or a name on the Hub: pretrained=DIR"),
        (f"pretrained={saved},device=cpu", {"device": "cuda:0"}, "device of model_args is .*: give --device cpu inst"),
        (f"pretrained={tmp_path}/bare", {}, f"{tmp_path}/bare holds no tokenizer: save the model's own beside it$"),
    ):
        with pytest.raises(ValueError, match=said):
            make(given, options)
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: make(f"pretrained={saved},colour=1"))
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.startswith("udm: unknown argument 'colour' of model_args")


def test_lm_eval_evaluates_tasks_of_a_local_file(saved, tmp_path):
    docs = [{"q": "red small", "a": "circle", "b": "square"}, {"q": "blue", "a": "green", "b": "large"}]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\ntest_split: test\n"
    common += "doc_to_text: '{{q}}'\n"
    kinds = {
        "choices": "output_type: multiple_choice\ndoc_to_choice: '{{[a, b]}}'\ndoc_to_target: 0\n",
        "writing": "output_type: generate_until\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: exact_match}]\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 2}\n",
        "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}} {{a}}'\n"
        "metric_list: [{metric: word_perplexity}]\n",
    }
    for name, text in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: toy_{name}\n{common}{text}")
    how = {"tasks": [f"toy_{name}" for name in kinds], "bootstrap_iters": 0}
    how |= {"task_manager": TaskManager(include_path=str(tmp_path), include_defaults=False)}
    given = f"pretrained={saved},draws=2,seed=1"
    found, again = (simple_evaluate(model="udm", model_args=given, **how) for _ in range(2))
    assert found["results"] == again["results"]
    assert found["results"]["toy_choices"]["acc,none"] in (0.0, 0.5, 1.0)
    assert found["config"]["unwritable_texts"] == 0 and found["config"]["likelihood_texts"] == 6
    assert found["results"]["toy_rolling"]["word_perplexity,none"] > 1
    assert found["config"]["likelihood"] == "bound" and found["config"]["likelihood_stderr_nats"] > 0
