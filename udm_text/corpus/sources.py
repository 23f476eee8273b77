"""Reading a corpus: text files, tables and `datasets` repositories become splits of texts, whole or as a stream."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from datasets import Dataset, DatasetDict, Features, Value, config, load_dataset, load_from_disk
from datasets.fingerprint import Hasher

from ..common import check_place, choices, did_you_mean, reads_as_path
from .chats import Row, chat_rows
from .files import MESSAGES, TABLES, CorpusError, Record, bare_name, file_kind, read_chat, read_records

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the names of files and folders that are theirs."""


class Corpus(DatasetDict):
    """Splits of texts, and what is to be said of them.

    blank: rows of each split that were left out, since no text stands in them; it names the splits that are left out
    whole, too. notes: sentences for who trains on it.
    held_out: what `hold_out` made a validation split of: "test", or "train" for a share of that; None: of nothing.
    """

    def __init__(
        self,
        splits: Mapping[str, Dataset],
        blank: Mapping[str, int] | None = None,
        notes: Iterable[str] = (),
        held_out: str | None = None,
    ):
        super().__init__(splits)
        self.blank, self.notes, self.held_out = dict(blank or {}), list(notes), held_out

    def replaced(self, splits: Mapping[str, Dataset], *notes: str, held_out: str | None = None) -> Corpus:
        """Other splits, of which the same is to be said, and more."""
        return Corpus(splits, self.blank, [*self.notes, *notes], held_out or self.held_out)


# --- files -----------------------------------------------------------------------------------------------------------


class _Files:
    """The rows of some files under our names of columns, read anew by each iteration.

    of_folder: whether they are a split of a folder, and not the one file that was asked for.
    """

    def __init__(
        self, files: Iterable[Path], names: Mapping[str, str], separator: str | None = None, of_folder: bool = True
    ):
        self.files, self.names, self.separator = [file.resolve() for file in files], dict(names), separator
        self.of_folder = of_folder

    def __iter__(self) -> Iterator[Record]:
        return _rows(list(map(str, self.files)), self.names, self.separator)

    def load(self) -> Dataset:
        """The rows as a data set, kept by `datasets` under a name that changes with the files."""
        features = Features(dict.fromkeys(self.names, Value("string")))
        if next(iter(self), None) is None:  # which `datasets` would not call by its name
            return Dataset.from_dict({name: [] for name in self.names}, features=features)
        given = {"files": tuple(map(str, self.files)), "names": self.names, "separator": self.separator}
        return Dataset.from_generator(
            _rows, features=features, gen_kwargs={**given, "stamps": tuple(map(_stamp, self.files))}
        )


def _rows(
    files: Iterable[str], names: Mapping[str, str], separator: str | None, stamps: tuple[tuple[int, int], ...] = ()
) -> Iterator[Record]:
    for file in files:
        yield from read_records(Path(file), names, separator)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file changes: a part of the name under which its rows are cached."""
    return path.stat().st_size, path.stat().st_mtime_ns


def _check_text(rows: Iterable[Any], source: Any, names: Mapping[str, str]) -> None:
    """Raises CorpusError where files of a folder, a split of it, are there and none of their rows holds a text.

    Left out, the split would be held out of the training texts, or another would stand for it, and nobody was told.
    """
    if not isinstance(source, _Files) or not source.of_folder or next(iter(rows), None) is not None:
        return
    first, *others = source.files
    which = f"{first}, as {len(others)} more of its split," if others else str(first)
    column = f" in column {next(iter(names.values()))!r}" if file_kind(first) in TABLES else ""
    raise CorpusError(f"{which} holds no text{column}: give it texts or remove it")


# --- folders ---------------------------------------------------------------------------------------------------------


def _visible_files(path: Path) -> list[Path]:
    """The files of a folder, in the order of names; none that is hidden, or of a folder that is (.git, __MACOSX)."""
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(path / file for file in files if not any(part.startswith((".", "__")) for part in file.parts))


def _name_of_split(words: list[str]) -> str | None:
    return next((split for split, names in SPLITS.items() if words and words[-1] in names), None)


def by_split(path: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of a folder by the splits that their names, or else those of the folders they are in, say; else train.

    A name says it if it is the split's alone, but for numbers (train-00000-of-00002); or if it begins or ends by it
    and a file that differs in this alone is of the training split (wiki.train, wiki.valid).
    """

    def words(name: str) -> list[str]:
        return [word for word in re.split(r"[._-]+", name.lower()) if word not in ("", "of") and not word.isdigit()]

    def read(name: str) -> tuple[str | None, tuple[str, ...]]:
        """The split that a name may be of, and the rest of it."""
        there = words(name)
        if (split := _name_of_split(there)) is not None:
            return split, tuple(there[:-1])
        return _name_of_split(there[:1]), tuple(there[1:])

    files = list(files)
    names = {file: read(bare_name(file)) for file in files}
    trained = {(file.parent, rest) for file, (split, rest) in names.items() if split == "train"}
    found: dict[str, list[Path]] = {}
    for file in files:
        split, rest = names[file]
        if split is None or (rest and (file.parent, rest) not in trained):
            folders = (read(part) for part in reversed(file.relative_to(path).parent.parts))
            split = next((split for split, rest in folders if split is not None and not rest), "train")
        found.setdefault(split, []).append(file)
    return {split: found[split] for split in (*SPLITS,) if split in found}


def _card(path: Path) -> dict[str, Any] | None:
    """The YAML at the head of a folder's README.md; None: there is none, and the folder is no `datasets` repository."""
    card = path / "README.md"
    if not card.is_file():
        return None
    parts = re.split(r"^---\s*$", card.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return None
    try:
        fields = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise CorpusError(f"{card}: its head is not YAML: {error}") from None
    return fields if isinstance(fields, dict) else {}


def _configuration(path: Path, configs: Any, name: str | None) -> dict[str, Any]:
    """The configuration of this name, or the only one, or the default one, of a card."""
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise CorpusError(f"{path / 'README.md'}: configs must be a list of configurations")
    named = {str(config.get("config_name", "default")): config for config in configs}
    default = next((key for key, config in named.items() if config.get("default") is True), "default")
    if name is None and len(named) == 1:
        name = next(iter(named))
    if (chosen := named.get(default if name is None else name)) is None:
        given = "none is given" if name is None else f"got {name!r}"
        raise CorpusError(f"{path}: its configuration (--data_config) must be {choices(named)}, and {given}")
    return chosen


def _listed(path: Path, config: Mapping[str, Any]) -> dict[str, list[Path]] | None:
    """The files that a configuration lists, by split; None where it says what is not read here."""
    known = {"config_name", "data_files", "data_dir", "default", "description", "sep", "delimiter"}
    if not known.issuperset(config):
        return None
    base, listed = path / str(config.get("data_dir") or "."), config.get("data_files")
    if listed is None:
        return by_split(base, _visible_files(base))
    entries = listed if isinstance(listed, list) else [listed]
    found: dict[str, list[Path]] = {}
    for entry in entries:
        split, patterns = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if not isinstance(split, str) or not isinstance(pattern, str) or pattern.startswith("/") or ":" in pattern:
                return None
            one = base / pattern  # whose name may hold what would be a pattern
            files = [one] if one.is_file() else sorted(file for file in base.glob(pattern) if file.is_file())
            if not files:
                raise CorpusError(f"{path / 'README.md'} lists {pattern!r} as {split}, and there is no such file")
            found.setdefault(split, []).extend(files)
    return found


def _read_folder(path: Path, name: str | None, names: Mapping[str, str]) -> tuple[dict[str, _Files], list[str]] | None:
    """The splits of a folder, and notes; None where it holds something else than text files and tables."""
    card = _card(path)
    separator = None
    notes: list[str] = []
    if card is not None and card.get("configs"):
        config = _configuration(path, card["configs"], name)
        splits = _listed(path, config)
        separator = config.get("sep") or config.get("delimiter")
    else:
        files = _visible_files(path)
        kinds = [file for file in files if file_kind(file) in TABLES]
        texts = [file for file in files if file_kind(file) == ".txt"]
        if kinds and texts:
            notes.append(f"{path} holds tables, which are read, and {len(texts)} .txt files, which are not")
        splits = by_split(path, kinds or texts)
        if len(splits) > 1:
            counts = ", ".join(f"{split} {len(files)}" for split, files in splits.items())
            notes.append(f"the files of {path} are splits by their names: {counts}")
    if not splits or any(file_kind(file) not in (".txt", *TABLES) for files in splits.values() for file in files):
        return None
    return {split: _Files(files, names, separator) for split, files in splits.items()}, notes


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


# --- any source ------------------------------------------------------------------------------------------------------


def _find(
    data: str, path: Path, name: str | None, names: Mapping[str, str], streaming: bool = False
) -> tuple[Mapping[str, Any], list[str]]:
    """The splits of a source, as `_Files` or as `datasets` gives them, and notes."""
    if path.is_file():
        return {"train": _Files([path], names, of_folder=False)}, []
    how = {"streaming": True} if streaming else {}
    if not path.is_dir():
        ask_for_data(data)
        return load_dataset(data, name, **how), []
    if _is_saved(path):  # memory-mapped already
        saved = load_from_disk(str(path))
        return (saved if isinstance(saved, DatasetDict) else {"train": saved}), []
    return _read_folder(path, name, names) or (load_dataset(str(path), name, **how), [])


def ask_for_data(data: str) -> None:
    """Raises CorpusError where the Hub cannot be asked for a data set of which nothing is kept here (`check_place`)."""
    try:
        if not Path(config.HF_DATASETS_CACHE, data.replace("/", "___")).exists():
            check_place(data, "file or folder", kind="dataset")
    except OSError as error:
        what = f"{data!r} is neither a file, nor a folder, nor a data set that could be loaded"
        raise CorpusError(f"{what}: {error}") from error


def _with_validation(splits: Mapping[str, Any]) -> dict[str, Any]:
    """The splits, where none is called validation and one is called val, valid or dev, that one by this name."""
    other = next((name for name in SPLITS["validation"] if name in splits), None)
    return {"validation" if name == other else name: rows for name, rows in splits.items()}


def _reading(data: str, read: Callable[[Path], Any]) -> Any:
    """read(path), where a failure says what could not be read."""
    path = Path(data).expanduser()
    if path.is_file() and not path.stat().st_size:
        raise CorpusError(f"{path} is empty")
    is_path = file_kind(path) in (".txt", *TABLES) or reads_as_path(data)
    if is_path and not path.exists():
        raise CorpusError(f"there is no file or folder {data}{did_you_mean(data, files=True)}")
    try:
        return read(path)
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


def _check_columns(where: str, rows: Any, columns: Iterable[str], chats: bool = False) -> None:
    for column in columns:
        if rows.column_names is not None and column not in rows.column_names:
            raise CorpusError(f"{where}: no column {column!r}; it has {', '.join(map(repr, rows.column_names))}")
        features = getattr(rows, "features", None)
        if features is None or chats:
            continue
        if (kind := getattr(features[column], "dtype", "nested")) not in ("string", "large_string", "null"):
            raise CorpusError(f"{where}: column {column!r} holds no text but {kind} values")


def _has_text(text: str | None) -> bool:
    return bool(text and text.strip())


def _columns(
    text_column: str, prompt_column: str | None, noisy_column: str | None = None, messages_column: str | None = None
) -> dict[str, str]:
    """Our names of columns, and those of the source."""
    if messages_column is not None:
        return {MESSAGES: messages_column}
    names = {"text": text_column}
    for ours, theirs in (("prompt", prompt_column), ("noisy", noisy_column)):
        if theirs is not None:
            if theirs in names.values():
                others = {"text": "text_column", "prompt": "prompt_column"}
                other = next(others[name] for name, column in names.items() if column == theirs)
                raise ValueError(f"{ours}_column and {other} must differ, got {theirs!r} for both")
            names[ours] = theirs
    return names


def load_corpus(
    data: str,
    text_column: str = "text",
    name: str | None = None,
    *,
    prompt_column: str | None = None,
    to_train: bool = True,
    noisy_column: str | None = None,
    messages_column: str | None = None,
    tokenizer: Any = None,
) -> Corpus:
    """Read a corpus into splits of a "text" column, and of "prompt" and "noisy" columns where they are asked for.

    The columns of files are the strings that stand in them, and no other column is read (`files.read_records`). What is
    read from files is cached by `datasets`, under a name that changes with the files.

    Args:
        data: a text file (one row a line), a table (`files.TABLES`), a folder of either, a folder that is a `datasets`
            repository or was written by `save_to_disk`, or the name of a data set on the Hub. Files may be compressed
            (`files.PACKED`). Hidden files of a folder are not read.
        text_column: the column that holds the text, the answer where there are prompts.
        name: configuration of a `datasets` data set.
        prompt_column: the column of prompts; one that is missing in a row is empty.
        to_train: whether there has to be a training split; otherwise any will do.
        noisy_column: the column of texts with errors, whose clean ones are in text_column.
        messages_column: the column of chats, in place of all other columns: each answer of the assistant is a text, and
            what was said before it, as the chat template of the tokenizer writes it, its prompt (`chats.chat_rows`).
        tokenizer: needed for chats.

    Returns:
        Splits as the source has them, without rows whose text is missing or blank, which are counted; a file is one
        split, "train", and the files of a folder are of the splits that their names say (`by_split`). A split of a data
        set that holds no text, as a test split whose answers are kept secret, is left out, and a note says so.

    Raises:
        CorpusError: where there is no such source, it cannot be read, or it holds no text to train on; where the files
            of a split of a folder hold none.
    """
    names = _columns(text_column, prompt_column, noisy_column, messages_column)
    chats = MESSAGES in names
    blank: dict[str, int] = {}

    def read(path: Path) -> tuple[dict[str, Dataset], list[str], Mapping[str, Any]]:
        found, notes = _find(data, path, name, names)
        found, splits = _with_validation(found), {}
        for split, rows in found.items():
            if isinstance(rows, _Files):
                splits[split] = rows.load()
            else:
                _check_columns(f"{data}, split {split}", rows, names.values(), chats)
                rows = rows.select_columns(list(names.values()))
                # In two steps, since the columns may trade names with each other
                rows = rows.rename_columns({theirs: f"our {ours}" for ours, theirs in names.items()})
                splits[split] = rows.rename_columns({f"our {ours}": ours for ours in names})
        return splits, notes, found

    splits, notes, sources = _reading(data, read)
    for split, rows in splits.items():
        if chats:
            rows = _rows_of_chats(rows, tokenizer, f"{data}, split {split}")
        splits[split] = rows.filter(_has_text, input_columns="text")
        blank[split] = len(rows) - len(splits[split])
        _check_text(splits[split], sources[split], names)
    empty = [split for split, rows in splits.items() if not len(rows)]
    notes = [*notes, *(f"{data}, split {split} holds no text, and is left out" for split in empty)]
    splits = {split: rows for split, rows in splits.items() if len(rows)}
    if not splits or (to_train and "train" not in splits):
        raise CorpusError(
            f"{data} holds no text{' to train on' * to_train} (splits with text: {', '.join(splits) or 'none'}; rows "
            f"without text: {sum(blank.values())})"
        )
    return Corpus(splits, blank, notes)


def _rows_of_chats(rows: Dataset, tokenizer: Any, where: str) -> Dataset:
    """The rows of all chats of a split, in their order."""
    if tokenizer is None:
        raise ValueError("messages_column needs a tokenizer, whose chat template writes the messages")

    def expand(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in Row.__annotations__}
        for cell, number in zip(batch[MESSAGES], numbers, strict=True):
            for row in chat_rows(read_chat(cell, f"{where}, row {number + 1}"), tokenizer):
                for name in found:
                    found[name].append(row[name])  # type: ignore[literal-required]
        return found

    features = Features(dict.fromkeys(Row.__annotations__, Value("string")))
    known = rows._fingerprint, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items(), key=str)
    how: dict[str, Any] = {"remove_columns": rows.column_names, "features": features, "desc": "reading chats"}
    return rows.map(expand, with_indices=True, batched=True, new_fingerprint=Hasher.hash(known), **how)


class Stream:
    """The records of a source, {"text": ...} and {"prompt": ...}, read anew by each iteration; blank texts left out.

    blank: how many were left out since the last iteration began. notes: sentences on the source. tokenizer: of chats,
    whose answers are the records then.
    """

    def __init__(
        self, where: str, source: Any, names: dict[str, str], notes: Iterable[str] = (), tokenizer: Any = None
    ):
        self.where, self.source, self.names, self.tokenizer = where, source, names, tokenizer
        self.blank, self.notes = 0, list(notes)

    def __iter__(self) -> Iterator[dict[str, str]]:
        self.blank = 0
        for number, record in enumerate(self.source, start=1):
            if missing := [theirs for theirs in self.names.values() if theirs not in record]:
                raise CorpusError(f"{self.where}: no column {missing[0]!r}; it has {', '.join(map(repr, record))}")
            rows: list[Any] = [{ours: record[theirs] or "" for ours, theirs in self.names.items()}]
            if MESSAGES in self.names:
                chat = read_chat(record[self.names[MESSAGES]], f"{self.where}, row {number}")
                rows = list(chat_rows(chat, self.tokenizer))
            for row in rows:
                if _has_text(row["text"]):
                    yield row
                else:
                    self.blank += 1


def open_corpus(
    data: str,
    text_column: str = "text",
    name: str | None = None,
    *,
    prompt_column: str | None = None,
    messages_column: str | None = None,
    tokenizer: Any = None,
) -> dict[str, Stream]:
    """The splits of `load_corpus` as streams: what does not fit into memory (nor, converted, on the disk)."""
    names = _columns(text_column, prompt_column, messages_column=messages_column)
    chats = MESSAGES in names
    splits, notes = _reading(data, lambda path: _find(data, path, name, names, streaming=True))
    streams = {}
    for split, rows in _with_validation(splits).items():
        where = f"{data}, split {split}"
        if isinstance(rows, _Files):
            streams[split] = Stream(where, rows, {ours: ours for ours in names}, notes, tokenizer)
            _check_text(streams[split], rows, names)
        else:
            _check_columns(where, rows, names.values(), chats)
            streams[split] = Stream(where, rows, names, notes, tokenizer)
    if "train" not in streams:
        raise CorpusError(f"{data} holds no text to train on (splits: {', '.join(splits)})")
    return streams


def text_hash(text: str) -> int:
    """Where a text stands between 0 and 2^64, by a hash of its own: what decides which side of a split it is on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class HoldOut(NamedTuple):
    """Which rows are held out: those whose place (`text_hash`) lies below `below`.

    whole: the place is that of prompt and text together; else of the prompt, where there is one, or of the text. The
    rows of a chat stay together: their place is that of its first prompt, or of all of it. note: a sentence on why it
    is so, where it is not the usual rule.
    """

    below: int = 0
    whole: bool = False
    note: str | None = None

    def place(self, record: Mapping[str, str | None]) -> int:
        """Where a row stands between 0 and 2^64."""
        if "chat" in record:
            return text_hash((record["chat"] if self.whole else record["opening"]) or "")
        text, prompt = record["text"] or "", record.get("prompt", "") or ""
        if self.whole:
            return text_hash(f"{prompt}\0{text}")
        return text_hash(prompt if "prompt" in record else text)

    def holds(self, record: Mapping[str, str | None]) -> bool:
        """Whether the row is held out."""
        return self.below > 0 and self.place(record) < self.below


def hold_out_rule(train: Dataset, share: float) -> HoldOut:
    """The rule that holds out about `share` of these rows, and one at least.

    It goes by prompts, so that equal ones stay on one side; where few of them repeat, so that the rows they hold out
    are more than twice or less than half of the share, it goes by rows.
    """

    def below(rule: HoldOut) -> tuple[int, int, int]:
        """The limit, how many rows lie below, and how many places there are."""
        places = [rule.place(record) for batch in train.iter(1000) for record in _each(batch)]
        limit = held_below(places, share)
        return limit, sum(place < limit for place in places), len(set(places))

    limit, held, prompts = below(HoldOut())
    wanted = max(1.0, share * len(train))
    if (
        "prompt" not in train.column_names
        or prompts == len(train)
        or (wanted / 2 <= held <= 2 * wanted and held < len(train))
    ):
        return HoldOut(limit)
    what, by = ("rows are held out by prompt and text together, and equal prompts are", "prompts")
    if "chat" in train.column_names:
        what, by = ("chats are held out by all that is said, and equal first prompts are", "first prompts")
    return HoldOut(
        below(HoldOut(whole=True))[0],
        True,
        f"{what} on both sides: by the {prompts} different {by} alone {held} of {len(train)} rows would be held out, "
        f"where a share of {share:g} was asked for",
    )


def _each(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


def hold_out(splits: DatasetDict, share: float = 0.05, contiguous: bool = False) -> Any:
    """A validation split where there is none, of about `share` of the texts and one at least.

    Texts are chosen by a hash of their own, so equal texts never stand on both sides, and a text keeps its side when
    others come or go; of rows with a prompt, it is the prompt that decides, or prompt and text together where few
    prompts repeat (`hold_out_rule`; a note says so). With `contiguous` it is the end of the corpus instead: for packed
    rows, whose blocks join neighbours.
    A test split serves as validation split where there is no other.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), got {share}")
    if "validation" in splits or not share:
        return splits
    if "test" in splits:
        return _replaced(splits, {**splits, "validation": splits["test"]}, held_out="test")
    train = splits["train"]
    if contiguous:
        total = len(train)
        cut = min(total - 1, round(total * (1 - share)))
        if cut < 1:
            raise CorpusError(
                f"{total} texts are too few to hold out a share of {share} for validation, the end of the corpus where "
                "rows are packed; give more text, a validation split, or validation_share=0"
            )
        parts = {"train": train.select(range(cut)), "validation": train.select(range(cut, total))}
        return _replaced(splits, parts, held_out="train")
    rule = hold_out_rule(train, share)
    held = [rule.holds(record) for batch in train.iter(1000) for record in _each(batch)]
    sides = {
        side: [i for i, there in enumerate(held) if there == (side == "validation")] for side in ("train", "validation")
    }
    if not sides["train"]:
        raise CorpusError(
            f"{len(held)} rows are too few to hold out a share of {share} for validation{_alike(train)}; give more "
            "text, a validation split, or validation_share=0"
        )
    notes = [] if rule.note is None else [rule.note]
    parts = {side: train.select(rows) for side, rows in sides.items()}
    return _replaced(splits, parts, *notes, held_out="train")


def _alike(train: Dataset) -> str:
    """Says of more rows than one that all are the same, which is why none of them can stand on the other side."""
    same = len(train) > 1 and all(train[i] == train[0] for i in range(len(train)))
    return ", since all have the same text, and equal texts stay on one side" if same else ""


def _replaced(splits: DatasetDict, others: Mapping[str, Dataset], *notes: str, held_out: str) -> Corpus:
    """Other splits, of which is to be said what is said of these, and more."""
    return (splits if isinstance(splits, Corpus) else Corpus({})).replaced(others, *notes, held_out=held_out)


def held_below(hashes: Iterable[int], share: float) -> int:
    """The place below which texts are held out: a share of them, and the first at least."""
    return max(int(share * 2**64), min(hashes) + 1)
