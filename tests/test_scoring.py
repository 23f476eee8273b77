"""What is scored: a file that is given whole, what was held out otherwise, and every line of it as training read it."""

import json
import shlex

import pytest
from transformers import AutoTokenizer

from tests.helpers import udm_here, write_shapes
from udm_text import UDMForMaskedGeneration, register
from udm_text.card import evaluation_command, make_card, public, read_report
from udm_text.cli.train_text import parse, train_text
from udm_text.corpus import load_corpus, make_rows
from udm_text.evaluation import evaluate_bound

register()
QUICK = "--max_steps 3 --model tiny --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"


def trained(output, data, *options):
    train_text(*parse(["--data", str(data), "--output", str(output), *QUICK.split(), *options, "--disable_tqdm=true"]))
    return output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """shapes.txt, 210 lines, and a model that was trained on it."""
    folder = tmp_path_factory.mktemp("scoring")
    trained(folder / "model", write_shapes(folder / "shapes.txt"))
    return folder


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """A model of answers to prompts, its columns called question and reply."""
    folder = tmp_path_factory.mktemp("prompted")
    words = ["red", "green", "blue", "small"]
    rows = [{"question": f"{a} {b}", "reply": f"{b} {a}", "other": 1} for a in words for b in words]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["--text_column", "reply", "--prompt_column", "question"]
    return trained(folder / "model", folder / "train.jsonl", *columns)


def evaluated(*arguments):
    return json.loads(udm_here("evaluate", *arguments, "--json", "--draws", "2").stdout)


def bound(model, lines, tokenizer=None):
    """(rows, nats a token) of all of some lines, read without the command."""
    texts = load_corpus(str(lines), to_train=False)["train"]
    rows, _ = make_rows(texts, AutoTokenizer.from_pretrained(model))
    report = evaluate_bound(UDMForMaskedGeneration.from_pretrained(model), rows, draws=2)
    return report.rows, report.nelbo_nats_per_token


def test_a_file_that_is_given_is_scored_whole(place, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(["red small circle", "blue green", "large square red"] * 3))
    found = evaluated(place / "model", "--data", file)
    assert (found["rows"], found["nelbo_nats_per_token"]) == bound(place / "model", file) and found["rows"] == 9
    assert found["split"] == "all"


@pytest.mark.parametrize(("split", "rows"), [("train", 200), ("validation", 10), ("all", 210)])
def test_a_split_that_is_named_is_that_of_a_run(place, split, rows):
    assert evaluated(place / "model", "--data", place / "shapes.txt", "--split", split)["rows"] == rows


def test_one_line_is_enough_to_be_scored(place, tmp_path):
    (tmp_path / "one.txt").write_text("red small circle\n")
    assert evaluated(place / "model", "--data", tmp_path / "one.txt")["rows"] == 1
    error = udm_here(
        "evaluate", place / "model", "--data", tmp_path / "one.txt", "--split", "validation", code=1
    ).exception
    assert "too few to hold out" in str(error) and "validation_share=0" in str(error)  # an option of this command


def test_of_a_source_with_splits_the_held_out_one_is_scored(place, tmp_path):
    for name, lines in (("train", 7), ("test", 3)):
        (tmp_path / f"{name}.txt").write_text("red small\n" * lines)
    assert evaluated(place / "model", "--data", tmp_path)["rows"] == 3
    assert evaluated(place / "model", "--data", tmp_path, "--split", "all")["rows"] == 10
    (tmp_path / "train.txt").unlink()
    assert evaluated(place / "model", "--data", tmp_path)["rows"] == 3
    said = str(udm_here("evaluate", place / "model", "--data", tmp_path, "--split", "dev", code=1).exception)
    assert "no text to train on" in said


def test_the_training_file_scored_whole_is_noted(place):
    result = udm_here("evaluate", place / "model", "--data", place / "shapes.txt", "--draws", "1")
    assert "was trained on" in result.stderr and "--split validation" in result.stderr


def test_prompts_are_read_as_in_training_or_by_the_columns_that_are_given(prompted, tmp_path):
    rows = [{"question": "red", "reply": "blue", "a": "green", "b": "red"}] * 4
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    as_trained = evaluated(prompted, "--data", tmp_path / "mine.jsonl")
    other = evaluated(prompted, "--data", tmp_path / "mine.jsonl", "--text-column", "b", "--prompt-column", "a")
    assert as_trained["rows"] == other["rows"] == 4 and as_trained["tokens"] == 4
    assert as_trained["nelbo_nats_per_token"] != other["nelbo_nats_per_token"]


def test_prompts_where_there_are_none_and_none_where_there_are_some_are_refused(place, prompted, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "red", "q": "blue"}))
    said = udm_here("evaluate", place / "model", "--data", tmp_path / "mine.jsonl", "--prompt-column", "q", code=1)
    assert "was not trained on prompts" in str(said.exception)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in prompted.iterdir():
        if path.name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
            (bare / path.name).write_bytes(path.read_bytes())
    said = udm_here("evaluate", bare, "--data", tmp_path / "mine.jsonl", code=1)
    assert "give --prompt-column" in str(said.exception)


def test_packed_rows_are_packed_where_a_file_is_scored_whole(tmp_path):
    write_shapes(tmp_path / "shapes.txt")
    model = trained(tmp_path / "model", tmp_path / "shapes.txt", "--rows", "packed", "--row_length", "8")
    (tmp_path / "mine.txt").write_text("red small circle\n" * 10)
    found = evaluated(model, "--data", tmp_path / "mine.txt")
    assert found["tokens"] == 8 * found["rows"] and found["rows"] == 3
    assert evaluated(model, "--data", tmp_path / "mine.txt", "--row-length", "5")["tokens"] == 30


def test_a_row_longer_than_the_model_reads_is_refused_by_the_option_that_cuts_it(place, tmp_path):
    (tmp_path / "long.txt").write_text("red " * 100)
    said = str(udm_here("evaluate", place / "model", "--data", tmp_path / "long.txt", code=1).exception)
    assert "102 tokens and the model reads at most" in said and "--row-length" in said
    assert evaluated(place / "model", "--data", tmp_path / "long.txt", "--row-length", "6")["tokens"] == 6


# --- the card --------------------------------------------------------------------------------------------------------


def command_of(card):
    (line,) = (line for line in card.splitlines() if line.startswith("To measure them again"))
    return line.split("`")[1]


@pytest.mark.parametrize("kind", ["held out of the file", "a file of its own"])
def test_the_line_of_a_card_gives_its_figures(place, tmp_path, monkeypatch, kind):
    folder, model = place, place / "model"
    if kind == "a file of its own":
        folder = tmp_path
        write_shapes(tmp_path / "shapes.txt")
        (tmp_path / "held.txt").write_text("red small circle\nblue green\n" * 4)
        held = ["--validation_data", str(tmp_path / "held.txt")]
        model = trained(tmp_path / "model", tmp_path / "shapes.txt", *held)
    report = read_report(model / "report.json")
    card = make_card(UDMForMaskedGeneration.from_pretrained(model), "model", report=report)
    monkeypatch.chdir(folder)
    program, command, *rest = shlex.split(command_of(card))
    assert (program, command) == ("udm", "evaluate") and rest[0] == "model"
    # what is published beside the card is what the command reads
    (folder / "model" / "report.json").write_text(json.dumps(public(report)))
    try:
        found = json.loads(udm_here("evaluate", *rest, "--json").stdout)
    finally:
        (folder / "model" / "report.json").write_text(json.dumps(report))
    assert {name: found[name] for name in report["validation"]} == report["validation"]


@pytest.mark.parametrize(
    ("report", "rest"),
    [
        ({"data": "user/corpus"}, ""),
        ({"data": "user/corpus", "data_arguments": {"validation_data": "user/held"}}, ""),
        ({"data": "names.txt"}, " --data names.txt --split validation"),
        ({"data": "my names.txt"}, " --data DATA --split validation"),
        ({"data": "--curve"}, " --data DATA --split validation"),
        ({"data": "user/corpus", "data_arguments": {"validation_data": "held.txt"}}, " --data held.txt --split train"),
        ({}, " --data DATA --split validation"),
    ],
)
def test_a_card_names_the_data_where_the_hub_does_not(report, rest):
    assert evaluation_command("user/name", report) == "udm evaluate user/name" + rest


@pytest.mark.parametrize("data", ["/gone/names.txt", "/gone/with, comma.jsonl"])
def test_a_corpus_that_is_not_here_is_asked_for(place, tmp_path, data):
    (tmp_path / "m").mkdir()
    for path in (place / "model").iterdir():
        if path.is_file():
            (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    report = json.loads((tmp_path / "m" / "report.json").read_text()) | {"data": data}
    (tmp_path / "m" / "report.json").write_text(json.dumps(report))
    said = str(udm_here("evaluate", tmp_path / "m", code=1).exception)
    assert "is not here: give --data" in said and "--split validation" in said
