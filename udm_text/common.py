"""Three small things that every room needs: names in a message, a model's mode, files that appear whole."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def choices(names: Collection[str]) -> str:
    """'a', 'b' or 'c': for error messages."""
    *rest, last = [repr(name) for name in names]
    return f"{', '.join(rest)} or {last}" if rest else last


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """The model in evaluation mode, each of its modules put back as it was, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file to write, beside `path`, which it takes the place of when the block ends without an error.

    A reader sees the old file or the new one, never a part. The file is new (O_EXCL), so nothing that lies there under
    its name is followed or overwritten; after an error it is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a file of JSON, whole or not at all; what JSON does not know is written as its string."""
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
