"""docs/troubleshooting.md goes by messages that the code says, word for word."""

import ast
import re

import pytest

from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    message
    for cell in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    for message in re.findall(r"`([^`]*)`", cell)
]


def said(node: ast.expr) -> str:
    """A string as it is written in the code, … for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    return "…"


@pytest.fixture(scope="module")
def strings():
    """Every string of the packages, on one line each."""
    found = set()
    for package in ("udm_text", "continuous"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found |= {said(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)}
    return "\n".join(" ".join(text.split()) for text in found)


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_on_the_page_is_one_that_the_code_says(message, strings):
    assert message in strings


def test_there_are_messages_and_a_wrong_one_would_be_seen(strings):
    assert len(QUOTED) > 50 and len(set(QUOTED)) == len(QUOTED)
    assert "is of model type …, and this wants a UDM model" not in strings


def test_every_section_says_what_to_do():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 60 and all(len(row.strip("| ").split(" | ")) == 3 for row in rows)
