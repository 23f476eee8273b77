"""`udm chat`: a line of the user's, an answer, and so on, with all that was said before as the prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ..chats import Message, prompt_of
from .terminal import BLOCK, LiveText, show, visible
from .texts import as_line

RESET, EXIT = "/reset", "/exit"
"""Lines that are no messages: forget what was said; end."""
_PROMPT = "> "


class LiveAnswer(LiveText):
    """The answer alone as it appears, without what stands before and around it."""

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return [answer_text(self.tokenizer, rows[0])]


def answer_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of an answer with a block for each [MASK]; other special tokens, as what ends it, are not shown."""
    special = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id}
    text = tokenizer.decode([token for token in ids if token not in special])
    return visible(text.replace(tokenizer.mask_token, BLOCK) if tokenizer.mask_token else text).strip()


def fitting(pipe: Any, chat: list[Message]) -> list[Message]:
    """The messages without the oldest questions and answers where the prompt would leave no room for an answer.

    Of a row as long as the model reads, half at most is kept for the answer, or the longest there was in training where
    that is less. The system's message and the last one of the user stay.
    """
    config, tokenizer = pipe.model.config, pipe.tokenizer
    if (limit := config.max_row_length) is None:
        return chat
    longest = len(config.length_counts or ()) - 1
    room = limit - (min(longest, limit // 2) if longest > 0 else limit // 2)
    head = 1 if chat[0]["role"] == "system" else 0
    while len(chat) > head + 2 and len(tokenizer(prompt_of(tokenizer, chat))["input_ids"]) > room:
        chat = [*chat[:head], *chat[head + 2 :]]
    return chat


def lines_of(source: Any, typed: bool) -> Iterator[str]:
    """What the user says, a line at a time: asked for on a terminal, else read as it comes."""
    while True:
        if typed:
            try:
                line = input(_PROMPT)
            except EOFError:
                print()
                return
        elif not (line := source.readline()):
            return
        if line.strip() == EXIT:
            return
        if line.strip():
            yield line.strip("\r\n")


def converse(pipe: Any, system: str | None, pause: float, **options: Any) -> None:
    """Answers the lines of standard input, each with what was said before it, until they end.

    On a terminal the answers appear as they are denoised, and what cannot be answered is said and forgotten; of a file
    or a pipe each answer is a line of standard output, and the first line that cannot be answered ends the chat.

    Raises:
        ValueError: which line cannot be answered, and why.
    """
    typed = sys.stdin is not None and sys.stdin.isatty()
    live = sys.stdout.isatty()
    beginning = [] if system is None else [{"role": "system", "content": system}]
    chat, forgotten = list(beginning), False
    if typed:
        show(f"{RESET} forgets what was said, {EXIT} or the end of input ends the chat")
    for number, line in enumerate(lines_of(sys.stdin, typed), start=1):
        if line.strip() == RESET:
            chat, forgotten = list(beginning), False
            continue
        said: list[Message] = [*chat, {"role": "user", "content": line}]
        try:
            asked = fitting(pipe, said)
            if live:
                with LiveAnswer(pipe.tokenizer, pause) as streamer:
                    [record] = pipe(asked, streamer=streamer, **options)
            else:
                [record] = pipe(asked, **options)
        except ValueError as error:
            if not typed:
                raise ValueError(f"standard input, message {number}: {error}") from error
            show(f"udm: {error}", error=True)
            continue
        if len(asked) < len(said) and not forgotten:
            forgotten = True
            show("note: the chat is longer than the model reads, and its oldest messages are left out", error=True)
        chat = [*said, record["generated_text"][-1]]
        if not live:
            print(as_line(chat[-1]["content"]), flush=True)
