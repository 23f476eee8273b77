"""What is scored: a file that is given whole, what was held out otherwise, and every line of it as training read it."""

import json
import math
import shlex
import shutil
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from tests.helpers import udm_here, write_shapes
from tests.models import make_udm
from udm_text import UDMForMaskedGeneration, register
from udm_text.card import make_card
from udm_text.cli.report_page import write_report
from udm_text.cli.train_text import parse, train_text
from udm_text.corpus import CorpusError, load_corpus, make_rows
from udm_text.evaluation import evaluate_bound
from udm_text.run_report import evaluation_command, public, read_report

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


@pytest.mark.parametrize("how", [(), ("--split", "validation"), ("--samples", 4), ("--report", "out")])
def test_a_held_out_file_without_text_is_named_and_no_training_text_scored_in_its_place(
    place, tmp_path, monkeypatch, how
):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.txt").write_text("red small\n" * 9)
    (corpus / "validation.txt").write_text("\n")
    said = udm_here("evaluate", place / "model", "--data", corpus, *how, code=1).exception
    assert str(said) == f"{corpus}/validation.txt holds no text: give it texts or remove it"


def test_no_other_split_is_scored_in_place_of_one_of_a_data_set_without_text(place, tmp_path):
    full, empty = (Dataset.from_dict({"text": [text] * 3}) for text in ("red small", " "))
    DatasetDict(train=full, validation=empty, test=full).save_to_disk(tmp_path / "data")
    said = str(udm_here("evaluate", place / "model", "--data", tmp_path / "data", code=1).exception)
    assert "--split must be 'train', 'test' or 'all' of" in said and "its split validation holds no text" in said
    assert evaluated(place / "model", "--data", tmp_path / "data", "--split", "all")["rows"] == 6
    DatasetDict(train=full, test=empty).save_to_disk(tmp_path / "other")
    said = str(udm_here("evaluate", place / "model", "--data", tmp_path / "other", code=1).exception)
    assert "--split must be 'train' or 'all' of" in said and "its split test holds no text" in said


def test_training_names_a_held_out_file_without_text(tmp_path):
    write_shapes(tmp_path / "train.txt")
    (tmp_path / "validation.txt").write_text("")
    for more in ((), ("--streaming", "--row_length", "8")):
        with pytest.raises(CorpusError, match=r"validation\.txt holds no text: give it texts or remove it$"):
            trained(tmp_path / "model", tmp_path, *more)
    assert not (tmp_path / "model" / "model.safetensors").exists()


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


@pytest.mark.parametrize("how", [(), ("--samples", 4), ("--report", "out"), ("--curve",)])
def test_a_model_without_a_tokenizer_is_named_in_one_sentence(place, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    make_udm().save_pretrained("bare")
    said = udm_here("evaluate", "bare", "--data", place / "shapes.txt", *how, code=1).exception
    assert str(said) == "bare holds no tokenizer: save the model's own beside it"


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


# --- text by text ----------------------------------------------------------------------------------------------------


def test_every_text_has_its_score_in_a_table_and_together_they_are_the_figures(place, tmp_path):
    lines = ["red small circle", "?", "blue green", "red small circle"]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    out = tmp_path / "out.parquet"
    for how in (
        (),
        ("--likelihood", "chain", "--order", "left_to_right"),
        ("--likelihood", "importance", "--draws", 3),
    ):
        command = ["evaluate", place / "model", "--data", tmp_path / "mine.txt", "--json", *how]
        found = json.loads(udm_here(*command, "--per-example", out).stdout)
        assert found == json.loads(udm_here(*command).stdout)
        table = pq.read_table(out).to_pydict()
        assert list(table) == ["text", "nats", "stderr", "tokens", "characters", "bits_per_char"]
        assert table["text"] == lines and table["nats"][1] is table["tokens"][1] is None
        scored = [i for i in range(4) if i != 1]
        total = sum(table["nats"][i] for i in scored)
        per_token = found["nats_per_token" if how else "nelbo_nats_per_token"]
        assert total / sum(table["tokens"][i] for i in scored) == pytest.approx(per_token)
        for i in scored:
            assert table["characters"][i] == len(lines[i])
            assert table["bits_per_char"][i] == pytest.approx(table["nats"][i] / math.log(2) / len(lines[i]))
        exact = "left_to_right" in how
        assert (table["nats"][0] == pytest.approx(table["nats"][3], abs=1e-5)) == exact  # each has orders of its own
        assert (table["stderr"][0] == 0.0) == exact
    lines = udm_here(*command[:4], *how).stdout.splitlines()
    assert "importance-weighted bound" in lines[0]
    assert lines[1].startswith(f"beside it the bound: NELBO {found['bound']['nelbo_nats_per_token']:.4f} +- ")


@pytest.mark.parametrize("draws", [(), ("--draws", 3)])
def test_the_bound_stands_beside_another_likelihood_as_the_command_without_it_has_it(place, tmp_path, draws):
    (tmp_path / "mine.txt").write_text("red small circle\nblue green\n")
    command = ("evaluate", place / "model", "--data", tmp_path / "mine.txt", "--json", "--seed", 4, *draws)
    found = json.loads(udm_here(*command, "--likelihood", "importance").stdout)
    alone = json.loads(udm_here(*command).stdout)
    assert {name: alone[name] for name in found["bound"]} == found["bound"] and found["bound"]["draws"] in (3, 8)
    assert found["nats_per_token"] != found["bound"]["nelbo_nats_per_token"] and found["likelihood"] == "importance"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--per-example", "out.csv"), "--per-example writes a table that ends in .parquet, got out.csv"),
        (("--per-example", "gone/out.parquet"), "there is no folder for it"),
        (("--per-example", "out.parquet", "--rows", "packed", "--row-length", 4), "give --rows line"),
        (("--per-example", "out.parquet", "--curve"), "leave --curve away"),
        (("--likelihood", "chain", "--order", "skeleton:x"), "a skeleton such as skeleton:4"),
        (("--likelihood", "chain", "--num-steps", 2), "leave --num-steps away"),
        (("--likelihood", "iwae"), "likelihood must be 'bound', 'chain' or 'importance', got 'iwae'"),
        (("--likelihood", "chain", "--order", "entropy"), "order must be one that is known before the text is"),
        (("--order", "random"), "it is --likelihood chain that has one"),
    ],
)
def test_scores_that_cannot_be_made_or_written_are_refused_by_their_option(
    place, tmp_path, monkeypatch, options, error
):
    monkeypatch.chdir(tmp_path)
    assert error in str(
        udm_here("evaluate", place / "model", "--data", place / "shapes.txt", *options, code=1).exception
    )
    assert not list(tmp_path.iterdir())


def test_a_table_is_scored_by_the_column_that_is_named(place, tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"a": "red small", "b": "blue"}) for _ in range(3)))
    found = evaluated(place / "model", "--data", tmp_path / "mine.jsonl", "--text_column", "a")
    assert (found["rows"], found["tokens"]) == (3, 6)
    said = udm_here("evaluate", place / "model", "--data", tmp_path / "mine.jsonl", "--text-column", "c", code=1)
    assert "'c'" in str(said.exception)


@pytest.mark.parametrize("more", [(), ("--samples", 4), ("--per-example", "out.parquet"), ("--report", "out")])
@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("gone.txt", None, "gone.txt"),
        ("empty.txt", b"", "empty.txt"),
        ("binary.txt", b"red\xff\xfe\x00", "binary.txt"),
        ("other.txt", "\u4e2d \u6587\n\u4e2d\n".encode() * 40, "no token of theirs is known to the tokenizer"),
    ],
)
def test_bad_files_and_another_vocabulary_end_in_one_sentence(place, tmp_path, monkeypatch, name, content, error, more):
    if name == "other.txt" and "--samples" in more:
        pytest.skip("texts are compared by words, whatever the tokenizer")
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = udm_here("evaluate", place / "model", "--data", name, *more, code=1).exception
    assert isinstance(said, ValueError | OSError) and error in str(said) and len(str(said).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content is not None else [])


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


# --- the report ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page would fetch, and whether every tag that it opens it closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_has_every_figure_twice_the_same_and_the_card_takes_its_own_from_it(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    how = ("--samples", 6, "--draws", 3, "--seed", 2, "--likelihood", "chain", "--batch-size", 32)
    for name in ("a", "b"):
        figures = json.loads(udm_here("evaluate", model, *how, "--report", tmp_path / name, "--json").stdout)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["evaluation.json", "prices.png", "report.html", "report.md"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text()) == figures
    alone = json.loads(udm_here("evaluate", model, "--draws", 3, "--seed", 2, "--json").stdout)
    assert {name: alone[name] for name in figures["bound"]} == figures["bound"]
    page, markdown = ((tmp_path / "a" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (page, markdown):
        for shown in (
            f"{figures['bound']['nelbo_nats_per_token']:.4f}",
            f"{figures['likelihood']['nats_per_token']:.4f}",
        ):
            assert shown in text
        for shown in ("chain, order random, an upper bound", "optimal", "self bleu", "torch", "seed"):
            assert shown in text
    read = Page(page)
    assert not read.open and "script" not in read.tags and len(read.fetched) == 1
    assert read.fetched[0].startswith("data:image/png;base64,")
    report = read_report(model / "report.json")
    assert report["validation"] == figures["bound"] and report["samples"] == figures["samples"]
    network = UDMForMaskedGeneration.from_pretrained(model)
    assert network.config.step_curve == figures["curve"]["curve"]
    card = make_card(network, "model", report=report)
    assert f"{figures['bound']['bits_per_char']:.4f}" in card and "--draws 3 --seed 2" in command_of(card)
    values = [figures["samples"][part]["self_bleu"] for part in ("samples", "held_out", "training")]
    assert f"| self bleu | {' | '.join(f'{value:.4g}' for value in values)} |" in card
    said = str(udm_here("evaluate", model, *how, "--report", tmp_path / "a", code=1).exception)
    assert "is not an empty folder" in said


def test_a_report_of_uniform_noise_has_its_bound_in_continuous_time_as_the_command_has_it(place, tmp_path):
    model = make_udm("uniform", vocab_size=len(AutoTokenizer.from_pretrained(place / "model")))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(tmp_path / "model")
    (tmp_path / "mine.txt").write_text("red small circle\nblue green\n")
    how = ("evaluate", tmp_path / "model", "--data", tmp_path / "mine.txt", "--draws", 2, "--json")
    found = json.loads(udm_here(*how, "--report", tmp_path / "out").stdout)
    assert found["continuous_time"] == json.loads(udm_here(*how).stdout)["continuous_time"]
    heads, _, nats, *_ = [x for x in (tmp_path / "out" / "report.md").read_text().splitlines() if x.startswith("|")]
    assert heads == "| figure | NELBO, an upper bound | in continuous time, leave-one-out, an upper bound |"
    shown = [found[name]["nelbo_nats_per_token"] for name in ("bound", "continuous_time")]
    assert [cell.split(" +- ")[0] for cell in nats.split(" | ")[1:]] == [f"{value:.4f}" for value in shown]


def test_a_report_of_a_model_that_draws_no_texts_has_its_bound_and_prices_alone(prompted, tmp_path):
    before = read_report(prompted / "report.json")
    rows = [{"question": "red", "reply": "blue"}] * 4
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    udm_here("evaluate", prompted, "--data", tmp_path / "mine.jsonl", "--report", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(figures) == {"bound", "curve", "settings", "versions"} and figures["settings"]["split"] == "all"
    assert "Drawn texts" not in (tmp_path / "out" / "report.md").read_text()
    assert read_report(prompted / "report.json") == before  # of other data nothing goes into the card
    said = udm_here("evaluate", prompted, "--report", tmp_path / "new", "--samples", 4, code=1).exception
    assert "this model writes answers to prompts" in str(said) and not (tmp_path / "new").exists()


def test_what_a_model_or_a_person_writes_is_no_markup_of_a_report(tmp_path):
    evil = "<script>alert(1)</script>\n# head | `x` \x1b[0m"
    bound = {name: 1.0 for name in ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound")}
    bound |= {f"{name}_stderr": None for name in bound} | {"rows": 1, "tokens": 2, "chars": 3, "length_included": True}
    figures = {"bound": bound, "texts": [evil], "settings": {"model": evil}, "versions": {"x": evil}}
    write_report(tmp_path / "out", figures, evil)
    page, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    read = Page(page)
    assert not read.open and not read.fetched and "script" not in read.tags and "\x1b" not in page + markdown
    assert "default-src 'none'" in page
    for line in markdown.splitlines():
        assert "<script>" not in line or line.startswith("    "), line
        assert line.count("|") in (0, 3) or line.startswith("    ") or line.count("\\|"), line
