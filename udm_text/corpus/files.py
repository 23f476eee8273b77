"""Files of texts: plain or compressed, lines or tables, read as the strings that stand in them.

No type is guessed: a cell of a CSV file is its characters, a date in JSON its string. Of a table the named columns
alone are read, whatever else stands beside them.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..chats import Message, check_chat

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of files that have columns; any other file is plain text. Each may end in one of `PACKED`."""

PACKED = (".gz", ".bz2", ".xz", ".zip")
"""Suffixes of compressed files."""

_CSV_CELL = 2**31 - 1
"""Characters of a cell at most; the csv module stops at 131,072 unless it is told."""

MESSAGES = "messages"
"""Our name of a column of chats, whose cells are lists of messages, or the JSON of such lists."""

Record = dict[str, str | None]


_SURROGATE = re.compile("[\ud800-\udfff]")


class CorpusError(ValueError):
    """The corpus cannot be used; the message names the file, and the line where there is one."""


def file_kind(path: Path) -> str:
    """The suffix that says what a file holds, in small letters: that before .gz and its like where it is compressed.

    Of a .zip file whose own name does not say it, the name of the file in it does.
    """
    name = path.name.lower()
    packed = Path(name).suffix
    if packed not in PACKED:
        return packed
    kind = Path(name.removesuffix(packed)).suffix
    if packed == ".zip" and kind not in (".txt", *TABLES) and path.is_file():
        with _whole(path), zipfile.ZipFile(path) as archive:
            return Path(_member(path, archive).lower()).suffix
    return kind


def bare_name(path: Path) -> str:
    """The name of a file without the suffixes that say what it holds."""
    name = path.name.removesuffix(path.suffix) if path.suffix.lower() in PACKED else path.name
    return Path(name).stem


def _member(path: Path, archive: zipfile.ZipFile) -> str:
    """The one file in a .zip file."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise CorpusError(f"{path} holds {len(names)} files, and one alone is read: unpack it into a folder")
    return names[0]


@contextmanager
def _unzipped(path: Path) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(_member(path, archive)) as file:
        yield file


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Says of a compressed file that is damaged, or locked by a password, that it is."""
    packed = path.suffix.lower()
    kind = {".gz": "gzip", ".bz2": "bzip2"}.get(packed, packed.removeprefix("."))
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path} is not a whole {kind} file: {error}") from None
    except (OSError, RuntimeError, NotImplementedError) as error:
        if packed not in PACKED or getattr(error, "errno", None) is not None:
            raise
        raise CorpusError(f"{path} cannot be read as a {kind} file: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes that a file holds, unpacked."""
    ways: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _unzipped}
    with _whole(path), ways.get(path.suffix.lower(), partial(open, mode="rb"))(path) as file:
        yield file


def _decoded(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without a byte order mark."""
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: not valid UTF-8 (byte {error.object[error.start]:#04x}, the line's byte "
                    f"{error.start + 1}); convert the file, for example with iconv"
                ) from None


def read_lines(path: Path, blank: bool = False) -> Iterator[str]:
    """The lines of a UTF-8 text file, which may be compressed, without line ends and byte order mark.

    blank: whether empty lines count.
    """
    for line in _decoded(path):
        if (line := line.strip("\r\n")) or blank:
            yield line


def read_records(path: Path, names: Mapping[str, str], separator: str | None = None) -> Iterator[Record]:
    """The rows of a file, with a string or None (nothing stands there) for each column.

    Args:
        path: a table (`TABLES`), or a text file, which has the one column "text".
        names: our names of the columns that are read, and those of the file.
        separator: between the cells of a .csv file; None: a comma.

    A column that is ours by the name `MESSAGES` holds chats, and comes as their JSON.

    Raises:
        CorpusError: no row of the file has such a column; it holds something else than text, by line; the file is
            broken. A number in JSON is the text by which it is written; true, false, lists and objects are refused.
    """
    kind = file_kind(path)
    if kind == ".parquet":
        yield from _read_parquet(path, names)
    elif kind in (".csv", ".tsv"):
        rows = _tabbed(path) if kind == ".tsv" and separator is None else _quoted(path, separator or ",")
        yield from _read_cells(path, rows, names)
    elif kind in TABLES:
        yield from _read_json(path, _objects(path) if kind == ".json" else _object_lines(path), names)
    else:
        if missing := [theirs for theirs in names.values() if theirs != "text"]:
            raise _no_column(path, missing[0], ["text"])
        for line in read_lines(path):
            yield {"text": line}


def read_chat(cell: Any, where: str) -> list[Message]:
    """The messages that stand in a cell, a list of them or its JSON; [] of an empty cell.

    Raises:
        CorpusError: it holds no chat (`chats.check_chat`); where: the place that the message names.
    """
    if cell is None or cell == "":
        return []
    try:
        chat = check_chat(json.loads(cell) if isinstance(cell, str) else cell, last=None)
    except ValueError as error:
        raise CorpusError(f"{where} holds no chat: {error}") from None
    if any(_SURROGATE.search(message["content"]) for message in chat):
        raise CorpusError(f"{where} holds half a surrogate pair, which is no text")
    return chat


def _as_json(cell: Any, where: str) -> str | None:
    """The JSON of a cell of chats."""
    return None if cell is None else json.dumps(read_chat(cell, where), ensure_ascii=False)


def _no_column(where: object, column: str, there: Iterable[str]) -> CorpusError:
    return CorpusError(f"{where}: no column {column!r}; it has {', '.join(map(repr, there)) or 'none'}")


def _broken(path: Path, why: object) -> CorpusError:
    return CorpusError(f"{path} cannot be read as a {file_kind(path)} file: {why}")


# --- cells -----------------------------------------------------------------------------------------------------------


def _quoted(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file and the lines they end at; a cell in quotes may hold the separator and line ends."""
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_CELL))
    reader = csv.reader(_decoded(path), delimiter=separator, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _broken(path, f"line {reader.line_num}: {error}") from None
        if row is None:
            return
        if row:
            yield reader.line_num, row


def _tabbed(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a TSV file: a line each, cells between tabs; one that is in quotes as a whole is what they hold."""
    for number, line in enumerate(_decoded(path), start=1):
        if line := line.rstrip("\r\n"):
            yield (
                number,
                [
                    cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell
                    for cell in line.split("\t")
                ],
            )


def _read_cells(path: Path, rows: Iterator[tuple[int, list[str]]], names: Mapping[str, str]) -> Iterator[Record]:
    _, header = next(rows, (0, []))
    for column in names.values():
        if column not in header:
            for _ in _decoded(path):  # what is not UTF-8 is said first, by its line
                pass
            raise _no_column(path, column, header)
        if header.count(column) > 1:
            raise _broken(path, f"{header.count(column)} columns are called {column!r}")
    places = {ours: header.index(theirs) for ours, theirs in names.items()}
    for line, row in rows:
        if any(row[len(header) :]):
            raise _broken(
                path,
                f"line {line} has {len(row)} cells and the first line {len(header)}; a text that holds the separator "
                "stands in quotes",
            )
        record: Record = {ours: row[place] if place < len(row) else None for ours, place in places.items()}
        if MESSAGES in names:
            record[MESSAGES] = _as_json(record[MESSAGES], f"{path}, line {line}: column {names[MESSAGES]!r}")
        yield record


# --- JSON ------------------------------------------------------------------------------------------------------------


class _Number(str):
    """A number as it is written."""


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)


def _object_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file that holds one a line, and where each stands."""
    for number, line in enumerate(_decoded(path), start=1):
        if line.strip():
            try:
                yield f"line {number}", _DECODER.decode(line.strip())
            except (json.JSONDecodeError, RecursionError) as error:
                raise _broken(path, f"line {number}: {error}") from None


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a .json file: those of its list, or one a line, or one alone. A list is read as a whole."""
    first = next((line.strip() for line in _decoded(path) if line.strip()), "")
    if not first.startswith("["):
        try:
            _DECODER.decode(first)
        except (json.JSONDecodeError, RecursionError):
            pass
        else:
            yield from _object_lines(path)
            return
    try:
        value = _DECODER.decode("".join(_decoded(path)).strip())
    except (json.JSONDecodeError, RecursionError) as error:
        if first.startswith("["):
            raise _broken(path, error) from None
        yield from _object_lines(path)  # which says which line is broken
        return
    for number, record in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"row {number}", record


def _read_json(path: Path, values: Iterator[tuple[str, Any]], names: Mapping[str, str]) -> Iterator[Record]:
    there: dict[str, None] = {}
    seen: set[str] = set()
    some = False
    for where, value in values:
        if not isinstance(value, dict):
            raise _broken(path, f"{where} holds {json.dumps(value)[:40]}, and no object with columns")
        some = True
        if len(there) < 100:
            there |= dict.fromkeys(value)
        record: Record = {}
        for ours, theirs in names.items():
            cell = value.get(theirs)
            if ours == MESSAGES:
                cell = _as_json(cell, f"{path}, {where}: column {theirs!r}")
            if cell is not None and not isinstance(cell, str):
                raise CorpusError(
                    f"{path}, {where}: column {theirs!r} holds no text but {json.dumps(cell)[:40]}; give another "
                    "column, or write it as a string"
                )
            if cell is not None and not cell.isascii() and _SURROGATE.search(cell):
                raise CorpusError(f"{path}, {where}: column {theirs!r} holds half a surrogate pair, which is no text")
            record[ours] = None if cell is None else str(cell)
            if theirs in value:
                seen.add(theirs)
        yield record
    if some and (missing := [theirs for theirs in names.values() if theirs not in seen]):
        raise _no_column(path, missing[0], there)


# --- parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, names: Mapping[str, str]) -> Iterator[Record]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with _opened(path) as file:
            table = pq.ParquetFile(file if path.suffix.lower() not in PACKED else io.BytesIO(file.read()))
            schema = table.schema_arrow
            for column in names.values():
                if column not in schema.names:
                    raise _no_column(path, column, schema.names)
                if names.get(MESSAGES) == column:
                    continue
                kind = schema.field(column).type
                plain = kind.value_type if pa.types.is_dictionary(kind) else kind
                text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
                if not any(is_kind(plain) for is_kind in text):
                    raise CorpusError(f"{path}: column {column!r} holds no text but {kind} values")
            number = 0
            for batch in table.iter_batches(batch_size=1000, columns=list(dict.fromkeys(names.values()))):
                columns = [batch.column(theirs).to_pylist() for theirs in names.values()]
                for cells in zip(*columns, strict=True):
                    record: Record = dict(zip(names, cells, strict=True))
                    number += 1
                    if MESSAGES in names:
                        where = f"{path}, row {number}: column {names[MESSAGES]!r}"
                        record[MESSAGES] = _as_json(record[MESSAGES], where)
                    yield record
    except pa.ArrowException as error:
        raise _broken(path, error) from None
