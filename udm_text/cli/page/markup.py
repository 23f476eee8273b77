"""What the page shows, as HTML that is safe whatever a person or a model wrote: texts, masks, edits, images."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from ..terminal import BLOCK, visible

_PIECES = re.compile(rf"{BLOCK}|\s+|[^\s{BLOCK[0]}]+|{BLOCK[0]}")
"""Masks, white space and words: what of a text is marked as a whole."""


def escaped(text: str) -> str:
    """The text as HTML shows it, its control characters as escapes."""
    return html.escape(visible(text))


def _shown(piece: str) -> str:
    return '<span class="mask" title="not yet written"></span>' if piece == BLOCK else escaped(piece)


def marked(before: str, after: str) -> str:
    """The text `after`, with a box for each mask and what it has that `before` has not in `<mark>`."""
    a, b = _PIECES.findall(before), _PIECES.findall(after)
    parts = []
    for kind, _, _, start, end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for piece in b[start:end]:
            new = kind != "equal" and piece != BLOCK and not piece.isspace()
            parts.append(f"<mark>{_shown(piece)}</mark>" if new else _shown(piece))
    return "".join(parts)


class Edit(NamedTuple):
    """One change of a text: its characters start..end became `text`."""

    start: int
    end: int
    text: str


def find_edits(before: str, after: str) -> list[Edit]:
    """The changes, by words and white space, that together make `after` of `before`."""
    a, b = _PIECES.findall(before), _PIECES.findall(after)
    places = [0]
    for piece in a:
        places.append(places[-1] + len(piece))
    found = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return [Edit(places[i], places[j], "".join(b[k:m])) for kind, i, j, k, m in found if kind != "equal"]


def apply_edits(before: str, edits: Collection[Edit]) -> str:
    """The text with these of its edits made; all of `find_edits` give the text they were found in, none this one."""
    parts, read = [], 0
    for edit in sorted(edits):
        parts += [before[read : edit.start], edit.text]
        read = edit.end
    return "".join(parts) + before[read:]


def edited(before: str, edits: Collection[Edit]) -> str:
    """The text with what each edit takes in `<del>` and what it puts there in `<ins>`."""
    parts, read = [], 0
    for edit in sorted(edits):
        parts.append(escaped(before[read : edit.start]))
        for tag, text in (("del", before[edit.start : edit.end]), ("ins", edit.text)):
            parts.append(f"<{tag}>{escaped(text)}</{tag}>" if text else "")
        read = edit.end
    return "".join(parts) + escaped(before[read:])


def describe_edit(number: int, before: str, edit: Edit) -> str:
    """An edit in a line, numbered from 1, in plain characters."""
    gone, comes = visible(before[edit.start : edit.end].strip()), visible(edit.text.strip())
    if gone and comes:
        return f"{number}. {gone} → {comes}"
    return f"{number}. {gone or comes or 'a space'} {'taken out' if edit.end > edit.start else 'put in'}"


def cards(texts: Sequence[str], before: Sequence[str] = (), done: bool = False) -> str:
    """Texts below each other, what is new in them since the same texts `before` marked; `done`: the finished ones."""
    known = [*before, *[""] * (len(texts) - len(before))]
    shown = (escaped(text) if done else marked(old, text) for old, text in zip(known, texts, strict=False))
    return "".join(f'<div class="card{" done" * done}">{text or "&nbsp;"}</div>' for text in shown)


def problem(error: Exception) -> str:
    """What went wrong, in the sentence of the error."""
    return f'<div class="problem">{escaped(str(error))}</div>'


def picture(page: Any, words: str) -> str:
    """An image (C, H, W) uint8 of 1 or 3 channels within the page itself, so that no file of it is kept."""
    from continuous.grids import to_image

    held = io.BytesIO()
    to_image(page).save(held, format="PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
    said = escaped(words)
    return f'<figure><img alt="{said}" src="{source}"><figcaption>{said}</figcaption></figure>'
