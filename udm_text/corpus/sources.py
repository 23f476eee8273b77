"""Reading a corpus: text files, tables and `datasets` repositories become splits of texts, whole or as a stream."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_dataset_builder, load_from_disk

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffixes of files that have columns, and who reads them; any other file is plain text. Each may end in .gz."""


class CorpusError(ValueError):
    """The corpus cannot be used; the message names the file, and the line where there is one."""


def file_kind(path: Path) -> str:
    """The suffix that says what a file holds, in small letters: that before .gz where it is compressed."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a UTF-8 text file (or a .gz of one), without line ends and without a byte order mark."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{path}, line {number}: not valid UTF-8 (byte {error.object[error.start]:#04x}, the line's "
                        f"byte {error.start + 1}); convert the file, for example with iconv"
                    ) from None
                if line := line.strip("\r\n"):
                    yield line
    except (gzip.BadGzipFile, EOFError) as error:
        raise CorpusError(f"{path} is not a whole gzip file: {error}") from None


def _records(files: list[str], stamps: list[tuple[int, int]] | None = None) -> Iterator[dict[str, str]]:
    for file in files:
        for line in read_lines(Path(file)):
            yield {"text": line}


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file changes: a part of the name under which its lines are cached."""
    return path.stat().st_size, path.stat().st_mtime_ns


def _plain_text(files: list[Path]) -> DatasetDict:
    files = [file.resolve() for file in files]
    if next(_records(list(map(str, files))), None) is None:  # which `datasets` would not call by its name
        return DatasetDict(train=Dataset.from_dict({"text": []}, features=Features({"text": Value("string")})))
    lines = Dataset.from_generator(
        _records,
        features=Features({"text": Value("string")}),
        gen_kwargs={"files": tuple(map(str, files)), "stamps": tuple(map(_stamp, files))},
    )
    return DatasetDict(train=lines)


def _check_utf8(path: Path) -> None:
    for _ in read_lines(path):  # so that invalid UTF-8 is reported with its line
        pass


def _text_files(path: Path) -> list[Path]:
    """The text files of a folder that holds texts alone; [] where it is something else."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    texts = [file for file in files if file_kind(file) == ".txt"]
    card = path / "README.md"
    has_card = card.is_file() and card.read_bytes().startswith(b"---")  # the YAML of a `datasets` repository
    return [] if has_card or any(file_kind(file) in TABLES for file in files) else texts


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def _load_folder(path: Path, name: str | None, **how: Any) -> Any:
    # By its files: the cache of a folder does not notice that they have changed, the cache of files does.
    builder = load_dataset_builder(str(path), name)
    if not builder.config.data_files:
        return load_dataset(str(path), name, **how)
    reader = type(builder).__module__.rsplit(".", 1)[-1]
    files = {split: list(files) for split, files in builder.config.data_files.items()}
    return load_dataset(reader, data_files=files, **how)


def _load(data: str, path: Path, name: str | None) -> DatasetDict:
    if path.is_file():
        kind = TABLES.get(file_kind(path))
        if kind is None:
            return _plain_text([path])
        if kind != "parquet":
            _check_utf8(path)
        return load_dataset(kind, data_files={"train": str(path)})
    if not path.is_dir():
        return load_dataset(data, name)
    if texts := _text_files(path):
        return _plain_text(texts)
    if _is_saved(path):
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    return _load_folder(path, name)


def _open(data: str, path: Path, name: str | None) -> dict[str, Any]:
    """The splits of `_load` as iterables of records, which begin anew each time they are iterated over."""
    if path.is_file():
        kind = TABLES.get(file_kind(path))
        if kind is None:
            return {"train": _Lines([path])}
        return load_dataset(kind, data_files={"train": str(path)}, streaming=True)
    if not path.is_dir():
        return load_dataset(data, name, streaming=True)
    if texts := _text_files(path):
        return {"train": _Lines(texts)}
    if _is_saved(path):  # memory-mapped already
        return _load(data, path, name)
    return _load_folder(path, name, streaming=True)


class _Lines:
    """The lines of text files as records."""

    column_names = ("text",)

    def __init__(self, files: list[Path]):
        self.files = [str(file) for file in files]

    def __iter__(self) -> Iterator[dict[str, str]]:
        return _records(self.files)


def _reading(data: str, read: Callable[..., Any], name: str | None) -> Any:
    """read(data, path, name), where a failure says what could not be read."""
    path = Path(data).expanduser()
    if path.is_file() and not path.stat().st_size:
        raise CorpusError(f"{path} is empty")
    is_path = file_kind(path) in (".txt", *TABLES) or data.startswith((".", "/", "~"))
    if is_path and not path.exists():
        raise CorpusError(f"there is no file or folder {data}")
    try:
        return read(data, path, name)
    except CorpusError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from None
        what = (
            f"{path} cannot be read as a {file_kind(path)} file"
            if path.is_file()
            else f"{path} is neither a folder of .txt files nor a `datasets` repository"
            if path.is_dir()
            else f"{data!r} is neither a file, nor a folder, nor a data set that could be loaded"
        )
        raise CorpusError(f"{what}: {error.__cause__ or error}") from error


def _check_columns(where: str, rows: Any, columns: Iterable[str]) -> None:
    for column in columns:
        if rows.column_names is not None and column not in rows.column_names:
            raise CorpusError(f"{where}: no column {column!r}; it has {', '.join(map(repr, rows.column_names))}")
        features = getattr(rows, "features", None)
        if features is None:
            continue
        if (kind := getattr(features[column], "dtype", "nested")) not in ("string", "large_string", "null"):
            raise CorpusError(f"{where}: column {column!r} holds no text but {kind} values")


def _has_text(text: str | None) -> bool:
    return bool(text and text.strip())


def _columns(text_column: str, prompt_column: str | None) -> dict[str, str]:
    """Our names of columns, and those of the source."""
    if prompt_column is not None and prompt_column == text_column:
        raise ValueError(f"prompt_column and text_column must differ, got {text_column!r} for both")
    return {"text": text_column} | ({} if prompt_column is None else {"prompt": prompt_column})


def load_corpus(
    data: str, text_column: str = "text", name: str | None = None, *, prompt_column: str | None = None
) -> DatasetDict:
    """Read a corpus into splits of a "text" column, and of a "prompt" column where one is asked for.

    Lines of text files and what is read from tables are cached by `datasets`, under a name that changes with the files.

    Args:
        data: a text file (one row a line), a .jsonl, .json, .csv or .parquet file, a folder of text files, a folder
            that is a `datasets` repository or was written by `save_to_disk`, or the name of a data set on the Hub.
            Text, .jsonl, .json and .csv files may be compressed (.gz).
        text_column: the column that holds the text, the answer where there are prompts.
        name: configuration of a `datasets` data set.
        prompt_column: the column of prompts; one that is missing in a row is empty.

    Returns:
        Splits as the source has them, without rows whose text is blank; a file or a folder of text files is one split,
        "train".

    Raises:
        CorpusError: where there is no such source, it cannot be read, or it holds no text to train on.
    """
    names = _columns(text_column, prompt_column)
    splits = _reading(data, _load, name)
    for split, rows in splits.items():
        _check_columns(f"{data}, split {split}", rows, names.values())
    splits = splits.select_columns(list(names.values()))
    # In two steps, since the columns may trade names with each other
    splits = splits.rename_columns({theirs: f"our {ours}" for ours, theirs in names.items()})
    splits = splits.rename_columns({f"our {ours}": ours for ours in names})
    splits = splits.filter(_has_text, input_columns="text")
    splits = DatasetDict({split: rows for split, rows in splits.items() if len(rows)})
    if "train" not in splits:
        raise CorpusError(f"{data} holds no text to train on (splits with text: {', '.join(splits) or 'none'})")
    return splits


class Stream:
    """The records of a source, {"text": ...} and {"prompt": ...}, read anew by each iteration; blank texts left out."""

    def __init__(self, where: str, source: Any, names: dict[str, str]):
        self.where, self.source, self.names = where, source, names

    def __iter__(self) -> Iterator[dict[str, str]]:
        for record in self.source:
            if missing := [theirs for theirs in self.names.values() if theirs not in record]:
                raise CorpusError(f"{self.where}: no column {missing[0]!r}; it has {', '.join(map(repr, record))}")
            if _has_text(record[self.names["text"]]):
                yield {ours: record[theirs] or "" for ours, theirs in self.names.items()}


def open_corpus(
    data: str, text_column: str = "text", name: str | None = None, *, prompt_column: str | None = None
) -> dict[str, Stream]:
    """The splits of `load_corpus` as streams: what does not fit into memory (nor, converted, on the disk)."""
    names = _columns(text_column, prompt_column)
    splits = _reading(data, _open, name)
    for split, rows in splits.items():
        _check_columns(f"{data}, split {split}", rows, names.values())
    if "train" not in splits:
        raise CorpusError(f"{data} holds no text to train on (splits: {', '.join(splits)})")
    return {split: Stream(f"{data}, split {split}", rows, names) for split, rows in splits.items()}


def text_hash(text: str) -> int:
    """Where a text stands between 0 and 2^64, by a hash of its own: what decides which side of a split it is on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hold_out(splits: DatasetDict, share: float = 0.05, contiguous: bool = False) -> DatasetDict:
    """A validation split where there is none, of about `share` of the texts and one at least.

    Texts are chosen by a hash of their own, so equal texts never stand on both sides, and a text keeps its side when
    others come or go; of rows with a prompt, it is the prompt that decides. With `contiguous` it is the end of the
    corpus instead: for packed rows, whose blocks join neighbours.
    A test split serves as validation split where there is no other.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), got {share}")
    if "validation" in splits or not share:
        return splits
    if "test" in splits:
        return DatasetDict(**{**splits, "validation": splits["test"]})
    train = splits["train"]
    if contiguous:
        total = len(train)
        cut = min(total - 1, round(total * (1 - share)))
        if cut < 1:
            raise CorpusError(f"{total} texts are too few to hold out a share of {share} for validation")
        return DatasetDict(train=train.select(range(cut)), validation=train.select(range(cut, total)))
    hashes = [text_hash(text or "") for text in train["prompt" if "prompt" in train.column_names else "text"]]
    limit = held_below(hashes, share)
    sides = {
        "train": [i for i, value in enumerate(hashes) if value >= limit],
        "validation": [i for i, value in enumerate(hashes) if value < limit],
    }
    if not sides["train"]:
        raise CorpusError(
            f"{len(hashes)} rows are too few to hold out a share of {share} for validation; give more text, a "
            "validation split, or validation_share=0"
        )
    return DatasetDict({side: splits["train"].select(rows) for side, rows in sides.items()})


def held_below(hashes: Iterable[int], share: float) -> int:
    """The place below which texts are held out: a share of them, and the first at least."""
    return max(int(share * 2**64), min(hashes) + 1)
