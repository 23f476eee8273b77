"""Make a local dataset of English prose from Python's own `pydoc_data.topics`, without network."""

import platform
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import local_dataset

BODY = """
# Paragraphs of the Python language reference

One row is one paragraph of prose on one line, {shortest} to {longest} characters, from the help topics that
come with Python (`pydoc_data.topics`, Python {version}).

## Source

Headings, code, doctests, grammar productions, tables and version notes are left out; emphasis marks and
footnote references are removed; literals keep their straight quotes. Exact repeats are dropped. Paragraphs
that share {gram} words in a row, directly or through others, form a group, and a whole group goes to train,
validation or test (80/10/10 of the groups) by a hash: no {gram} words in a row of one split occur in another.

## Licence

Python documentation, copyright 2001 Python Software Foundation, under the [PSF License Version 2]({link}).
"""
LICENCE = "https://docs.python.org/3/license.html"
SHORTEST, LONGEST, GRAM = 40, 2000, 8

MARKER = re.compile(r"\s*(?:\*|\d+\.|\[\d+\])\s+(?=\S)")
NOT_PROSE = re.compile(r"::=|>>>|^\s*(?:[-+|=*~]{3}|\||\.\. |-\[)", re.MULTILINE)
VERSION_NOTE = re.compile(r"(?:New|Added|Changed|Removed|Deprecated) (?:in|since) version")
EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
SENTENCE = re.compile(r"[A-Z“‘\"(].*[.!?:][\"”’)]*", re.DOTALL)
WORD = re.compile(r"[“‘(]*[A-Za-z][A-Za-z’'/-]*[”’)]*[.,;:!?]*[”’)]*")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _body(block: str) -> list[str]:
    """The lines of a block without a list marker or the term of a definition; [] if they are no paragraph."""
    lines = block.split("\n")
    marker = MARKER.match(lines[0])
    if marker:
        lines[0] = " " * marker.end() + lines[0][marker.end() :]
    elif len(lines) > 1 and _indent(lines[1]) > _indent(lines[0]):
        lines = lines[1:]
    return lines if len({_indent(line) for line in lines}) == 1 else []


def _plain(lines: list[str]) -> str:
    """One line without emphasis marks and footnote references; literals in straight quotes stay."""
    text = re.sub(r"(?<=\w-)\n *", "", "\n".join(lines))  # a line may break after the hyphen of a word
    pieces = re.split(r'("[^"]*")', text)
    pieces[::2] = [re.sub(r" ?\[\d+\]", "", EMPHASIS.sub(r"\2", piece)) for piece in pieces[::2]]
    return re.sub(r"\s+", " ", "".join(pieces)).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _is_prose(text: str) -> bool:
    """Sentences, most of whose tokens are words; what stands in straight quotes counts as one word."""
    tokens = re.sub(r'"[^"]*"', "x", text).split()
    return (
        SHORTEST <= len(text) <= LONGEST
        and min(len(tokens), len(_words(text))) >= GRAM
        and SENTENCE.fullmatch(text) is not None
        and VERSION_NOTE.match(text) is None
        and sum(WORD.fullmatch(token) is not None for token in tokens) >= 0.8 * len(tokens)
    )


def paragraphs() -> list[str]:
    """Every paragraph of prose once, in the order of the topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError as problem:
        raise FileNotFoundError("this Python comes without pydoc_data.topics") from problem
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            block = block.strip("\n")
            if block and not NOT_PROSE.search(block):
                text = _plain(_body(block))
                if _is_prose(text):
                    found[text] = None
    return list(found)


def grams(text: str) -> set[tuple[str, ...]]:
    """Every run of GRAM words in a text, without case and punctuation."""
    words = _words(text)
    return {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}


def groups(texts: list[str]) -> list[list[str]]:
    """The texts in groups such that no two groups share a run of GRAM words (union-find over the runs)."""
    parent = list(range(len(texts)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = member = parent[parent[member]]
        return member

    first_with: dict[tuple[str, ...], int] = {}
    for member, text in enumerate(texts):
        for gram in grams(text):
            parent[root(member)] = root(first_with.setdefault(gram, member))
    grouped: dict[int, list[str]] = {}
    for member, text in enumerate(texts):
        grouped.setdefault(root(member), []).append(text)
    return list(grouped.values())


def prepare(output: Path, force: bool = False) -> dict[str, int]:
    """Write the dataset repository to `output`; returns the number of rows by split."""
    splits: dict[str, list[str]] = {split: [] for split in local_dataset.SPLITS}
    for group in groups(paragraphs()):
        splits[local_dataset.split_of(min(group))].extend(group)
    counts = {split: len(rows) for split, rows in splits.items()}
    readme = local_dataset.card(
        BODY.format(version=platform.python_version(), shortest=SHORTEST, longest=LONGEST, gram=GRAM, link=LICENCE),
        counts,
        pretty_name="Paragraphs of the Python language reference",
        license_name="psf-2.0",
        license_link=LICENCE,
    )
    local_dataset.write(output, readme, splits, force=force)
    return counts


if __name__ == "__main__":
    local_dataset.main(prepare, Path(__file__).resolve().parent / "dataset", __doc__)
