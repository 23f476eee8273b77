"""Texts that go in and come out as files: lines, tables and standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..common import to_json, written_whole

STDIN = "-"
TABLE_OUT = (".jsonl", ".ndjson")
"""Suffixes of an output that holds an object a line; any other holds a text a line."""
_SILENCE = 2.0
"""Seconds after which a person is told that standard input is waited for."""


class Texts(NamedTuple):
    """Texts to work on.

    source: the file that they are the lines or rows of, in words; None: they were given on the command line, or none.
    """

    texts: list[str]
    source: str | None


def find_texts(given: Sequence[str] | None, file: str | None, column: str | None) -> Texts:
    """The texts of a command: those given, or the lines or rows of a file, or those of standard input.

    Where neither texts nor a file are given, standard input is read to its end if it is a file or a pipe. A terminal,
    a device such as /dev/null and a closed one hold no text. Of a file without any there is a note on stderr.

    Args:
        given: on the command line. file: a text file, whose lines are texts, blank ones too; a table (`corpus.files`);
            or "-" for standard input. column: of a table, the one with the texts; None: "text".

    Raises:
        ValueError: texts and a file are given; a text is the path of a file; a row holds no text; the file cannot be
            read, or is no UTF-8. FileNotFoundError: there is no such file.
    """
    if given and file is not None:
        raise ValueError(f"--input {file} and texts on the command line are given: give one of them")
    if column is not None and (file is None or file == STDIN):
        raise ValueError(f"--text-column {column} names a column of a table: give one by --input")
    for text in given or ():
        if ("." in text or os.sep in text) and os.path.isfile(text):
            raise ValueError(
                f"{text} is a file: give --input {text} to read its lines (as a text it can come by standard input)"
            )
    if given:
        return Texts(list(given), None)
    if file is not None:
        name = "standard input" if file == STDIN else file
        found = _lines_of_stdin() if file == STDIN else _read(Path(file), column)
        if not found:
            print(f"note: {name} holds 0 texts", file=sys.stderr, flush=True)
        return Texts(found, name)
    lines = _lines_of_stdin() if _stdin_has_text() else []
    return Texts(lines, "standard input" if lines else None)


def _read(path: Path, column: str | None) -> list[str]:
    from ..corpus.files import TABLES, file_kind, read_lines, read_records

    if not path.is_file():
        raise FileNotFoundError(f"--input {path}: there is no such file")
    if file_kind(path) not in TABLES:
        if column is not None:
            raise ValueError(f"--text-column {column} names a column of a table, and {path} holds lines")
        return list(read_lines(path, blank=True))
    texts = [record["text"] for record in read_records(path, {"text": column or "text"})]
    if None in texts:
        raise ValueError(f"{path}, row {texts.index(None) + 1}: column {column or 'text'!r} holds no text")
    return texts  # type: ignore[return-value]


def _stdin_has_text() -> bool:
    """Whether standard input is a file or a pipe, and so something that a person sends texts by."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return False
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no stream of the system: what a program put in its place
        return True
    if stat.S_ISFIFO(kind) and os.name == "posix" and not select.select([sys.stdin], [], [], _SILENCE)[0]:
        print("note: prompts are read from standard input, one a line, to its end", file=sys.stderr, flush=True)
    return stat.S_ISREG(kind) or stat.S_ISFIFO(kind)


def _lines_of_stdin() -> list[str]:
    if sys.stdin is None or sys.stdin.closed:
        return []
    source = getattr(sys.stdin, "buffer", None)
    data = sys.stdin.read().encode() if source is None else source.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"standard input, line {line}: not valid UTF-8 (byte {data[error.start]:#04x})") from None
    lines = text.split("\n")
    return [line.strip("\r") for line in (lines[:-1] if not lines[-1] else lines)]


def is_table(path: str) -> bool:
    """Whether an output holds objects, which have a place for more than a text; standard output may."""
    return path == STDIN or Path(path).suffix.lower() in TABLE_OUT


def check_output(path: str | None, source: str | None, as_json: bool = False) -> str | None:
    """The path, if texts can be written there (None and "-": standard output); raises before the work is done."""
    if path is None or path == STDIN:
        return None
    if as_json:
        raise ValueError(f"--json prints a document, and --output {path} is a file: give --output FILE.jsonl alone")
    target = Path(path)
    parent = target.absolute().parent
    if target.is_dir() or not parent.is_dir():
        why = "it is a folder" if target.is_dir() else f"there is no folder {parent}"
        raise ValueError(f"--output {path} cannot be written: {why}")
    if target.exists() and not target.is_file():
        raise ValueError(f"--output {path} is no file that could be replaced: give - for standard output")
    if source is not None and Path(source).exists() and target.exists() and target.samefile(source):
        raise ValueError(f"--output {path} would take the place of --input {source}: give it another name")
    with written_whole(target, keep=False):  # the name that is tried is the one that is written later
        pass
    return path


def write_texts(path: str, records: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Writes a file, whole or not at all: an object a line where its suffix is of `TABLE_OUT`, else a text a line."""
    if is_table(path):
        lines = [to_json(record, ensure_ascii=False) for record in records]
    else:
        lines = [as_line(text) for text in texts]
    with written_whole(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_line(text: str) -> str:
    """The text in one line: a line end in it as \\n."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def has_something(pipe: Any, text: str) -> bool:
    """Whether a text holds a token that a model may change: it is not blank, nor all unknown to the tokenizer.

    Of a model of prompts and answers every text does: one without an answer is a mistake to be told of.
    """
    if pipe.model.config.prompted:
        return True
    return pipe.model.config.count_editable(pipe.preprocess(text)["input_ids"].tolist())[0] > 0


def by_batch(texts: Texts, size: int, work: Callable[[list[str]], list[Any]]) -> list[Any]:
    """What `work` makes of the texts, some at a time; of lines of a file an error says which they are."""
    found: list[Any] = []
    for start in range(0, len(texts.texts), size):
        some = texts.texts[start : start + size]
        try:
            found += work(some)
        except ValueError as error:
            if texts.source is None:
                raise
            many = f"lines {start + 1} to {start + len(some)}" if len(some) > 1 else f"line {start + 1}"
            raise ValueError(f"{texts.source}, {many}: {error}") from error
    return found
