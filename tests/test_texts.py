"""Texts go in and come out as files, in their order, whole or not at all; and each may have a score."""

import json
import os
import sys

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from tests.helpers import listing, udm_here, write_shapes
from tests.models import make_udm, word_tokenizer
from udm_text import UDMForMaskedGeneration, register
from udm_text.cli.scoring import score_rows
from udm_text.cli.texts import Texts, as_line, by_batch, check_output, find_texts, write_texts
from udm_text.cli.train_text import parse, train_text
from udm_text.evaluation import evaluate_bound

register()
SEED = ("--seed", "3")
QUICK = "--max_steps 3 --model tiny --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A mask model, and a repairer of letters, of the shapes."""
    folder = tmp_path_factory.mktemp("texts")
    shapes = write_shapes(folder / "shapes.txt")
    for name, more in (("mask", ""), ("repairer", "--process substitute --tokenizer char --max_corruption 0.2")):
        given = ["--data", str(shapes), "--output", str(folder / name), "--disable_tqdm=true"]
        train_text(*parse([*given, *QUICK.split(), *more.split()]))
    return folder


@pytest.fixture(scope="module")
def mask(models):
    return models / "mask"


def written(model, prompts, **options):
    """The texts that the pipeline makes of prompts."""
    pipe = pipeline("udm-generation", model=str(model))
    return [record["generated_text"] for one in prompts for record in pipe(one, seed=3, **options)]


PROMPTS = ["red small", "blue [MASK] circle", "", "large"]


# --- what goes in ----------------------------------------------------------------------------------------------------


def test_lines_of_standard_input_are_prompts(mask):
    lines = "\n".join(PROMPTS) + "\n"
    assert udm_here("generate", mask, *SEED, stdin=lines).stdout.splitlines() == written(mask, PROMPTS)
    assert udm_here("generate", mask, *SEED, "--input", "-", stdin=lines.replace("\n", "\r\n")).stdout.splitlines() == (
        written(mask, PROMPTS)
    )


def test_without_lines_on_standard_input_a_text_is_written_from_nothing(mask):
    assert udm_here("generate", mask, *SEED, stdin="").stdout.splitlines() == written(mask, [""])


def test_texts_on_the_command_line_leave_standard_input_alone(mask):
    assert udm_here("generate", mask, "large", *SEED, stdin="red\nblue\n").stdout.splitlines() == (
        written(mask, ["large"])
    )


def test_a_file_or_a_pipe_is_read_and_a_device_and_a_closed_input_are_not(monkeypatch, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n\nb")
    with open(tmp_path / "prompts.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert find_texts(None, None, None) == (["a", "", "b"], "standard input")
    assert find_texts(None, None, None) == ([], None)  # closed
    reading, writing = os.pipe()
    os.write(writing, "é\n".encode())
    os.close(writing)
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert find_texts((), None, None).texts == ["é"]
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert find_texts(None, None, None) == ([], None)
        assert find_texts(None, "-", None) == ([], "standard input")
    monkeypatch.setattr(sys, "stdin", None)
    assert find_texts(None, None, None) == ([], None)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
def test_the_lines_of_a_file_come_out_in_their_order(mask, tmp_path, name):
    rows = {
        "rows.txt": "\n".join(PROMPTS),
        "rows.jsonl": "\n".join(json.dumps({"id": i, "q": text}) for i, text in enumerate(PROMPTS)),
        "rows.csv": "id,q\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(PROMPTS)),
    }
    (tmp_path / name).write_text(rows[name])
    column = [] if name == "rows.txt" else ["--text-column", "q"]
    wanted = written(mask, PROMPTS, num_return_sequences=2)
    call = ["generate", mask, *SEED, "-n", "2", "--input", tmp_path / name, *column, "--batch-size", "3"]
    assert udm_here(*call, "--output", tmp_path / "out.txt").stdout == ""
    assert (tmp_path / "out.txt").read_text().splitlines() == wanted
    udm_here(*call, "--output", tmp_path / "out.jsonl")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert records == [
        {"input": one, "generated_text": text}
        for one, text in zip([one for one in PROMPTS for _ in "12"], wanted, strict=True)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.jsonl", "out.txt"])


def test_an_input_without_texts_is_said_on_stderr(mask, tmp_path):
    (empty := tmp_path / "empty.txt").touch()
    for command in ("generate", "repair"):
        for given, name in ((empty, str(empty)), ("-", "standard input")):
            result = udm_here(command, mask, "--input", given, stdin="")
            assert (result.stdout, result.stderr) == ("", f"note: {name} holds 0 texts\n")


def test_an_empty_file_gives_an_empty_file(mask, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    udm_here("generate", mask, "--input", tmp_path / "none.jsonl", "--output", tmp_path / "out.txt", "--verbose")
    assert (tmp_path / "out.txt").read_text() == ""


def test_repaired_lines_come_out_alone_and_blank_and_unknown_ones_as_they_are(models, tmp_path):
    lines = ["red greem circle", "", "  ", "☃", "smal blue red"]
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    call = ["repair", models / "repairer", "--input", tmp_path / "in.txt"]
    shown = udm_here(*call).stdout.splitlines()
    udm_here(*call, "--output", tmp_path / "out.jsonl", "--batch-size", "2")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["input"] for record in records] == lines
    assert [record["repaired"] for record in records] == shown and len(shown) == 5
    assert shown[1] == "" and shown[3] == "☃"
    given = [json.loads(udm_here("repair", models / "repairer", one, "--json").stdout)[0] for one in lines[::4]]
    assert [record["repaired"] for record in given] == shown[::4]
    assert records[0]["edits"][0] == lines[0] and records[0]["edits"][-1] == shown[0]


def test_a_text_with_line_ends_is_one_line_of_a_file(tmp_path):
    assert as_line("a\nb\r\nc") == "a\\nb\\r\\nc"
    write_texts(str(tmp_path / "a.txt"), [{"x": "a\nb"}], ["a\nb"])
    write_texts(str(tmp_path / "a.jsonl"), [{"x": "a\nb"}], ["a\nb"])
    assert (tmp_path / "a.txt").read_text() == "a\\nb\n" and (tmp_path / "a.jsonl").read_text() == '{"x": "a\\nb"}\n'


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "none", "{place}/notes.txt"], "is a file: give --input .*notes.txt to read its lines"),
        (["repair", "none", "red", "{place}/notes.txt"], "is a file: give --input"),
        (["generate", "none", "red", "--input", "{place}/notes.txt"], "give one of them"),
        (["generate", "none", "--input", "{place}/gone.txt"], "gone.txt: there is no such file"),
        (["generate", "none", "--input", "{place}"], "there is no such file"),
        (["generate", "none", "--input", "{place}/notes.txt", "--text-column", "q"], "holds lines"),
        (["generate", "none", "--text-column", "q"], "give one by --input"),
        (["generate", "none", "--input", "{place}/rows.jsonl"], "no column 'text'; it has 'q'"),
        (
            ["generate", "none", "--input", "{place}/rows.jsonl", "--text-column", "q"],
            "row 2: column 'q' holds no text",
        ),
        (["generate", "none", "--input", "{place}/latin.txt"], "line 2: not valid UTF-8"),
        (["generate", "none", "red", "--output", "{place}"], "it is a folder"),
        (["generate", "none", "red", "--output", "{place}/gone/a.txt"], "there is no folder .*gone"),
        (["repair", "none", "red", "--output", "/dev/null"], "no file that could be replaced"),
        (["repair", "none", "red", "--output", "/proc/a.txt"], "a.txt"),
        (["repair", "none", "--input", "{place}/notes.txt", "--output", "{place}/notes.txt"], "take the place of"),
        (["generate", "none", "red", "--output", "{place}/a.txt", "--json"], "give --output FILE.jsonl"),
        (["generate", "none", "red", "--output", "{place}/a.txt", "--score"], "give --output FILE.jsonl"),
        (["generate", "none", "red", "--output", "{place}/a.txt", "--watch"], "--watch shows texts on the terminal"),
        (["repair", "none"], "there is no text to repair: give texts, --input"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_before_the_model_is_looked_for(tmp_path, arguments, words):
    (tmp_path / "notes.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "a"}\n{"q": null}')
    before = listing(tmp_path)
    error = udm_here(*(a.format(place=tmp_path) for a in arguments), code=1).exception
    assert isinstance(error, ValueError | OSError)
    with pytest.raises(type(error), match=words):
        raise error
    assert listing(tmp_path) == before


def test_a_name_without_a_dot_or_slash_is_a_text_though_there_is_such_a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red").write_text("x")
    assert find_texts(["red", "a\0.b", "no.txt"], None, None) == (["red", "a\0.b", "no.txt"], None)


def test_standard_input_that_is_no_text_is_refused_by_its_line():
    assert "standard input, line 2: not valid UTF-8" in str(
        udm_here("generate", "none", stdin=b"a\n\xff\n", code=1).exception
    )


def test_an_error_names_the_lines_of_a_file_that_it_comes_from():
    def work(some):
        if "bad" in some:
            raise ValueError("no")
        return [text.upper() for text in some]

    assert by_batch(Texts(["a", "b", "c"], "f"), 2, work) == ["A", "B", "C"]
    with pytest.raises(ValueError, match="^f, lines 3 to 4: no$"):
        by_batch(Texts(["a", "b", "bad", "d"], "f"), 2, work)
    with pytest.raises(ValueError, match="^no$"):
        by_batch(Texts(["bad"], None), 2, work)


def test_an_output_that_is_there_stays_until_it_is_replaced(tmp_path):
    (tmp_path / "out.txt").write_text("old")
    assert check_output(str(tmp_path / "out.txt"), None) and check_output("-", None) is None
    assert (tmp_path / "out.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["mask", "substitute"])
@pytest.mark.parametrize("counts", [None, [0, 1, 2, 3, 4]])
def test_the_score_of_a_text_from_nothing_is_its_bound(process, counts):
    model = make_udm(process, length_counts=counts)
    rows = model.generate(num_return_sequences=3, length=4, seed=0, return_dict_in_generate=True)
    given = [
        {"input_ids": ids.tolist(), "editable": free.tolist()}
        for ids, free in zip(rows.sequences, rows.editable, strict=True)
    ]
    for one, score in zip(given, score_rows(model, given, draws=4, seed=5), strict=True):
        bound = evaluate_bound(model, [{"input_ids": one["input_ids"]}], draws=4, seed=5)
        assert bound.length_included == (counts is not None)
        assert score["nats_per_token"] == pytest.approx(bound.nelbo_nats_per_token, rel=1e-6)
        assert score["nats"] == pytest.approx(bound.nelbo_nats_per_token * 4, rel=1e-6)


def test_the_score_behind_a_prompt_is_that_of_the_rest_alone():
    """One token behind a prompt: nothing is random, and the bound is -log p of that token."""
    model = make_udm()
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    free = [False, False, False, True, False]
    [score] = score_rows(model, [{"input_ids": ids[0].tolist(), "editable": free}], draws=3)
    masked = ids.clone()
    masked[0, 3] = 4
    logits = model(input_ids=masked, attention_mask=torch.ones_like(ids), t=torch.tensor([1])).logits[0, 3].double()
    logits[model.config.forbidden_tokens("cpu")] = -torch.inf
    assert score["nats"] == score["nats_per_token"] == pytest.approx(-logits.log_softmax(-1)[9].item(), rel=1e-5)


def test_the_command_gives_every_text_its_score(mask, tmp_path):
    call = ["generate", mask, *SEED, "-n", "2", "--score", "--draws", "2"]
    made = json.loads(udm_here(*call, "", "red small", "--json").stdout)
    tokenizer, model = AutoTokenizer.from_pretrained(mask), UDMForMaskedGeneration.from_pretrained(mask)
    pipe = pipeline("udm-generation", model=model, tokenizer=tokenizer)
    for one in pipe("", num_return_sequences=2, seed=3, return_tensors=True):
        bound = evaluate_bound(model, [{"input_ids": one["generated_token_ids"]}], draws=2)
        [record] = [record for record in made[0]["generated"] if record["generated_text"] == one["generated_text"]]
        assert record["nats"] == pytest.approx(bound.nelbo_nats_per_token * bound.tokens, rel=1e-6)
        assert record["nats_per_token"] == pytest.approx(bound.nelbo_nats_per_token, rel=1e-6)
    assert all({"nats", "nats_per_token"} <= record.keys() for record in made[1]["generated"])
    udm_here(*call, "red small", "--output", tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["nats"] for one in found] == pytest.approx([one["nats"] for one in made[1]["generated"]], rel=1e-5)
    assert found[0].keys() == {"input", "generated_text", "nats", "nats_per_token"}
    assert " nats, " in udm_here(*call, "red").stdout


def test_a_repairer_has_no_score_and_says_why(models):
    error = udm_here("generate", models / "repairer", "--score", "--length", "3", code=1).exception
    assert "is a repairer, trained on rows of which at most 0.2 was wrong" in str(error)


def test_ids_and_what_was_generated_are_given_beside_the_text():
    words = ["a", "b", "c"]
    tokenizer = word_tokenizer(words)
    pipe = pipeline("udm-generation", model=make_udm(vocab_size=len(tokenizer)), tokenizer=tokenizer)
    [[short], [long]] = pipe(["a [MASK]", "a b [MASK]"], seed=0, batch_size=2, return_tensors=True)
    assert short["generated"] == [False, False, True, False] and long["generated"] == [False] * 3 + [True, False]
    for record in (short, long):
        assert tokenizer.decode(record["generated_token_ids"], skip_special_tokens=True) == record["generated_text"]
    with pytest.raises(ValueError, match="return_tensors must be True, False or None"):
        pipe("a", return_tensors=1)
