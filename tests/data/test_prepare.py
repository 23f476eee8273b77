"""The embedded datasets: what they hold, how they are split, and that they load without network."""

import importlib.util
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
import yaml

NAMES = ("unicode_names", "python_docs")


def load(repository: Path, name: str) -> ModuleType:
    path = repository / "data" / name / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts(repository: Path) -> dict[str, ModuleType]:
    return {name: load(repository, name) for name in NAMES}


@pytest.fixture(scope="module")
def prepared(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prepared")
    for name, script in scripts.items():
        script.prepare(root / name)
    return {name: root / name for name in NAMES}


def rows(directory: Path) -> dict[str, list[str]]:
    files = {split: directory / "data" / f"{split}.jsonl" for split in ("train", "validation", "test")}
    lines = {split: file.read_text(encoding="utf-8").splitlines() for split, file in files.items()}
    return {split: [json.loads(line)["text"] for line in lines[split]] for split in lines}


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_row_occurs_twice_and_nine_in_ten_are_for_training(prepared: dict[str, Path], name: str) -> None:
    splits = rows(prepared[name])
    texts = [text for split in splits.values() for text in split]
    assert len(set(texts)) == len(texts)
    assert 0.75 < len(splits["train"]) / len(texts) < 0.85
    assert min(len(splits["validation"]), len(splits["test"])) > 0.025 * len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_write_the_same_bytes_and_only_the_promised_files(
    scripts: dict[str, ModuleType], prepared: dict[str, Path], tmp_path: Path, name: str
) -> None:
    counts = scripts[name].prepare(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(prepared[name])
    assert set(contents(tmp_path / "again")) == {"README.md", *(f"data/{split}.jsonl" for split in counts)}
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert counts == {split: len(texts) for split, texts in rows(tmp_path / "again").items()}


@pytest.mark.parametrize("name", NAMES)
def test_load_dataset_finds_the_three_splits(prepared: dict[str, Path], tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(prepared[name]), cache_dir=str(tmp_path))
    assert {split: list(loaded[split]["text"]) for split in loaded} == rows(prepared[name])


@pytest.mark.parametrize("name, licence", [("unicode_names", "unicode-3.0"), ("python_docs", "psf-2.0")])
def test_the_card_is_one_the_hub_can_read(prepared: dict[str, Path], name: str, licence: str) -> None:
    readme = (prepared[name] / "README.md").read_text(encoding="utf-8")
    _, front, body = readme.split("---\n", 2)
    card = yaml.safe_load(front)
    counts = {split: len(texts) for split, texts in rows(prepared[name]).items()}
    assert card["license"] == "other" and card["license_name"] == licence
    assert card["license_link"].startswith("https://")
    assert card["language"] == ["en"] and card["task_categories"] == ["text-generation"]
    assert card["size_categories"] == ["10K<n<100K" if sum(counts.values()) > 10_000 else "1K<n<10K"]
    (config,) = card["configs"]
    assert {file["split"]: file["path"] for file in config["data_files"]} == {
        split: f"data/{split}.jsonl" for split in counts
    }
    assert all(f"| {split} | {count} |" in body for split, count in counts.items())


def test_every_name_resolves_and_none_is_a_serial_number(prepared: dict[str, Path]) -> None:
    names = [name for split in rows(prepared["unicode_names"]).values() for name in split]
    assert 27_000 < len(names) < 40_000
    assert all(unicodedata.name(unicodedata.lookup(name)) == name for name in names)
    assert not any(character.isdigit() for name in names for character in name)
    # This name by rule has no digit: U+FACE and its like must be caught by their ending.
    assert unicodedata.name("\uface") == "CJK COMPATIBILITY IDEOGRAPH-FACE" not in names
    assert not any(name.startswith("HANGUL SYLLABLE") for name in names)


def test_a_name_keeps_its_split_whatever_the_other_names_are(prepared: dict[str, Path]) -> None:
    splits = rows(prepared["unicode_names"])
    assert "EXCLAMATION MARK" in splits["train"]
    assert "LATIN CAPITAL LETTER A" in splits["validation"]
    assert "AMPERSAND" in splits["test"]


def test_no_eight_words_in_a_row_are_in_two_splits(scripts: dict[str, ModuleType], prepared: dict[str, Path]) -> None:
    splits = rows(prepared["python_docs"])
    grams = {split: set().union(*map(scripts["python_docs"].grams, texts)) for split, texts in splits.items()}
    assert all(grams.values())
    assert not grams["train"] & grams["validation"]
    assert not grams["train"] & grams["test"]
    assert not grams["validation"] & grams["test"]


def test_texts_that_are_related_through_a_third_are_one_group(scripts: dict[str, ModuleType]) -> None:
    first = "one two three four five six seven eight nine"
    between = "Two, three; four five six SEVEN eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    last = "and nine ten eleven twelve thirteen fourteen fifteen sixteen"
    alone = "one two three four five six seven and no further than that"
    groups = scripts["python_docs"].groups([first, alone, last, between])
    assert sorted(map(sorted, groups)) == sorted(map(sorted, ([first, last, between], [alone])))


def test_paragraphs_are_prose_on_one_line(scripts: dict[str, ModuleType], prepared: dict[str, Path]) -> None:
    texts = [text for split in rows(prepared["python_docs"]).values() for text in split]
    assert len(texts) > 900
    assert all(40 <= len(text) <= 2000 and text == " ".join(text.split()) for text in texts)
    assert not any(mark in text for text in texts for mark in (">>>", "::=", "+--", "-[ ", "\n"))
    assert not any(scripts["python_docs"].VERSION_NOTE.match(text) for text in texts)


TOPIC = """
The "spam" statement
********************

The *spam* statement has **two** uses, and "*args" is left
alone; it works line by
line and hand-
made [1].

   spam_stmt ::= "spam" expression

   >>> spam(1)  # A doctest is no prose, however long it is, full stop.

* An item of a list is a paragraph too, and its marker is taken
  away before anything else.

New in version 3.4: This statement was not here before, and now it is.

Spam ("spam")
   The term of a definition goes, and what it means is kept as a
   paragraph.

   if __debug__:
       print("Code is no prose. It goes.", *spam(1, two, three, four, five, six))

+------+------+
| A table is no prose, whatever there is in it. |
+------+------+
"""


def test_markup_goes_and_words_stay(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    topics = pytest.importorskip("pydoc_data.topics")
    monkeypatch.setattr(topics, "topics", {"spam": TOPIC, "twice": TOPIC})
    assert scripts["python_docs"].paragraphs() == [
        'The spam statement has two uses, and "*args" is left alone; it works line by line and hand-made.',
        "An item of a list is a paragraph too, and its marker is taken away before anything else.",
        "The term of a definition goes, and what it means is kept as a paragraph.",
    ]


def test_an_output_that_holds_something_is_refused_and_left_alone(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    prepare = scripts["python_docs"].prepare
    (tmp_path / "diary").write_text("dear diary")
    with pytest.raises(FileExistsError, match="not empty: pass --force"):
        prepare(tmp_path)
    with pytest.raises(FileExistsError, match="also holds diary"):
        prepare(tmp_path, force=True)
    with pytest.raises(FileExistsError, match="is a file"):
        prepare(tmp_path / "diary", force=True)
    assert contents(tmp_path) == {"diary": b"dear diary"}


def test_force_replaces_a_prepared_dataset_and_an_empty_directory_needs_none(
    scripts: dict[str, ModuleType], prepared: dict[str, Path], tmp_path: Path
) -> None:
    prepare = scripts["python_docs"].prepare
    prepare(tmp_path)
    (tmp_path / "data" / "train.jsonl").write_text("stale")
    prepare(tmp_path, force=True)
    assert contents(tmp_path) == contents(prepared["python_docs"])


def test_a_failure_while_writing_leaves_nothing_behind(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = scripts["unicode_names"]
    monkeypatch.setattr(script, "names", lambda: ["SPACE", "\ud800"])
    with pytest.raises(UnicodeEncodeError):
        script.prepare(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_standard_library_is_enough_and_a_refusal_says_why(repository: Path, tmp_path: Path, name: str) -> None:
    script, output = repository / "data" / name / "prepare.py", tmp_path / "out"
    command = [sys.executable, "-S", str(script), "--output", str(output)]
    first = subprocess.run(command, capture_output=True, text=True)
    second = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0 and " train, " in first.stdout and not first.stderr
    assert second.returncode == 1 and second.stderr.startswith("error: output ") and "--force" in second.stderr
