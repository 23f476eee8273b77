"""Chats as rows: each answer of the assistant is a text, and what was said before it its prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, TypedDict

from ..chats import Message, answers_of, prompt_of


class Row(TypedDict):
    """An answer, its prompt, and what they are held out by."""

    prompt: str
    text: str
    opening: str
    chat: str


def chat_rows(chat: list[Message], tokenizer: Any) -> list[Row]:
    """A row for each answer of a chat: "prompt", "text", and what it is held out by (`sources.HoldOut`).

    That is "opening", the prompt of the first answer, and "chat", the same in rows of equal chats and in no others.

    A chat without an answer is one row without text.
    """
    rows = [(prompt_of(tokenizer, before), answer) for before, answer in answers_of(chat)] or [("", "")]
    digest = hashlib.sha256(json.dumps(chat).encode()).hexdigest()
    return [{"prompt": prompt, "text": text, "opening": rows[0][0], "chat": digest} for prompt, text in rows]


def whole_chats(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Of rows in the order of their chats the last of each, whose prompt holds all that was said before."""
    for _, same in groupby(rows, key=lambda row: row["chat"]):
        yield list(same)[-1]
