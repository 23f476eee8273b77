"""Small things that every room needs: names and whole numbers, a model's mode, files that appear whole."""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
import secrets
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def choices(names: Collection[str]) -> str:
    """'a', 'b' or 'c': for error messages."""
    *rest, last = [repr(name) for name in names]
    return f"{', '.join(rest)} or {last}" if rest else last


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer of 64 bits (no bool), and at least so much."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and (-(2**63) if least is None else least) <= int(value) < 2**63


def check_whole(least: int, **values: Any) -> None:
    """Raises ValueError for the first that is no integer of 64 bits that is at least so much, naming it."""
    for name, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{name} must be an integer of 64 bits, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def takes(function: Any, arguments: int) -> bool:
    """Whether a value can be called with so many arguments; one that does not say what it takes is believed."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # a function of C without a signature
        return True
    return True


def is_connection_error(error: BaseException) -> bool:
    """Whether an error, of whichever library carries it, is that the connection to the Hub broke."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")


_mode_lock = threading.Lock()
_users: dict[Any, tuple[int, bool]] = {}
"""Modules that are in evaluation mode within `eval_mode`: how many blocks want that, and their mode before."""


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """The model in evaluation mode, each of its modules put back as it was, also after an error.

    Several threads may be within it with one model: the mode is put back when the last of them leaves.
    """
    modules = list(model.modules())
    with _mode_lock:
        for module in modules:
            users, training = _users.get(module, (0, module.training))
            _users[module] = users + 1, training
        model.eval()
    try:
        yield
    finally:
        with _mode_lock:
            for module in modules:
                users, training = _users.pop(module)
                if users > 1:
                    _users[module] = users - 1, training
                elif training:
                    module.training = True


@contextmanager
def written_whole(path: str | Path, keep: bool = True) -> Iterator[Path]:
    """A file to write, beside `path`, which it takes the place of when the block ends without an error.

    keep: False only tries whether such a file can be made, and leaves `path` as it is.

    A reader sees the old file or the new one, never a part. The file is new (O_EXCL), so nothing that lies there under
    its name is followed or overwritten; after an error it is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        if keep:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: null for NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **how: Any) -> str:
    """Strict JSON: null for NaN and infinity, and what JSON does not know as its string. how: of `json.dumps`."""
    return json.dumps(finite(value), default=str, allow_nan=False, **how)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds; raises ValueError, naming the file, where it holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {json.dumps(value)[:40]}")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes a file of strict JSON (`to_json`), whole or not at all."""
    with written_whole(path) as part:
        part.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")
