"""The pages of the documentation as text: which there are, their blocks of code, and a place where those run."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def named(page: Path) -> str:
    """The path of a page from the root, as the tests call it."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with the word behind its fence ("" for none)."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    return [body for found, body in blocks_of(page) if found == kind]


def run(page: str, which: Callable[[str], Any], place: Path, monkeypatch, **replaced: str) -> dict[str, Any]:
    """Runs the blocks of Python of a page that `which` takes, one after the other, in a folder; the names they leave.

    `replaced` are numbers that are written `name=number` in the page, and run with another.
    """
    monkeypatch.chdir(place)
    left: dict[str, Any] = {}
    for block in blocks(ROOT / page, "python"):
        if which(block):
            for old, new in replaced.items():
                block = re.sub(rf"\b{old}=\d+", f"{old}={new}", block)
            exec(compile(block, page, "exec"), left)
    return left


def printed_by(block: str, page: str) -> str:
    """What a block prints that needs no other."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, page, "exec"), {})
    return out.getvalue()


@functools.cache
def defined(path: Path) -> dict[str, str]:
    """The functions and classes of a file by name, methods also as `Class.method`, with their source."""
    source, found = path.read_text(encoding="utf-8"), {}
    lines, kinds = source.splitlines(), ast.FunctionDef | ast.ClassDef

    def text(node: ast.FunctionDef | ast.ClassDef) -> str:
        return "\n".join(lines[node.lineno - 1 : node.end_lineno])

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            found.setdefault(node.name, text(node))
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": text(inner) for inner in node.body if isinstance(inner, kinds)}
    return found
