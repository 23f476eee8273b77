"""What a notebook shows: texts as a table, how they came to be step by step, figures; escaped, and without scripts."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any


def marked(before: str, after: str) -> str:
    """The text, escaped; what lies between the beginning and the end that it shares with the state before, marked."""
    if before == after:
        return html.escape(after)
    room = min(len(before), len(after))
    head = next((i for i in range(room) if before[i] != after[i]), room)
    tail = next((i for i in range(room - head) if before[-1 - i] != after[-1 - i]), room - head)
    parts = after[:head], after[head : len(after) - tail], after[len(after) - tail :]
    start, middle, end = map(html.escape, parts)
    return f"{start}<mark>{middle}</mark>{end}"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns, the second of which is HTML already."""
    lines = "".join(f"<tr><th>{html.escape(head)}</th><td>{cell}</td></tr>" for head, cell in rows)
    return f'<table style="text-align:left">{lines}</table>'


class Texts(list[Any]):
    """What the pipeline gives for a list or a single input: the list that it is, and in a notebook a table.

    A record with a trajectory unfolds: each state of the text, with what the step changed marked.
    """

    def _repr_html_(self) -> str:
        groups = [group if isinstance(group, list) else [group] for group in self]
        if self and not isinstance(self[0], list):
            groups = [list(self)]
        several = len(groups) > 1
        return table(
            (f"{number}.{sample}" if several else f"{sample}", _cell(record))
            for number, group in enumerate(groups)
            for sample, record in enumerate(group)
        )


def _cell(record: Mapping[str, Any]) -> str:
    said = record["generated_text"]
    if not isinstance(said, str):  # a chat
        said = "\n".join(f"{message['role']}: {message['content']}" for message in said)
    shown = f'<span style="white-space:pre-wrap">{html.escape(said)}</span>'
    if not (track := record.get("trajectory")):
        return shown
    steps = "".join(f"<li>{marked(a, b)}</li>" for a, b in zip([track[0], *track], track, strict=False))
    return f"<details><summary>{shown}</summary><ol>{steps}</ol></details>"
