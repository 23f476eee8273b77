"""From a row of tokens back to the text it was made from: what was not changed stands as it was typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Span = tuple[int, int]


def unknown_parts(tokenizer: Any, text: str) -> list[str]:
    """The parts of a text, each once, that a fast tokenizer does not know and reads as its unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    found = [text[start:end] for token, (start, end) in spans if token == unknown]
    return [part for part in dict.fromkeys(found) if part and part != tokenizer.unk_token]


def restore_text(
    tokenizer: Any, text: str, source: Sequence[int], spans: Sequence[Span], row: Sequence[int], shown: Sequence[bool]
) -> str:
    """The text of a row that began as the tokens of a typed text.

    A position that still holds its token gives the characters it was made from, whatever the tokenizer does to them
    (case, unknown characters, white space); one that was changed or added gives what its token says, and the white
    space before it is the typed one wherever the tokenizer puts any. A character that was made of several tokens is as
    it was typed only if none of them was changed.

    Args:
        tokenizer: for `decode`, and its special tokens.
        text: what was typed.
        source: its token ids.
        spans: where each of them stands in the text, first character and the one behind the last; of tokens that frame
            a row (0, 0).
        row: the token ids of the row; position i was made from `source[i]`, and those behind `source` are new.
        shown: of each position whether its text is wanted.
    """
    special = set(tokenizer.all_special_ids)
    kept = _kept(source, spans, row)
    parts: list[str] = []
    context: list[int] = []  # the token before, if it is one of the text
    read: int | None = 0  # up to where the typed text has been seen; None: what stands before is not shown
    run: list[int] = []
    before: list[int] = []
    between = ""

    def write_run() -> None:
        if run:
            parts.append(_spaced(between, _said(tokenizer, before, run), bool(parts) and parts[-1][-1:].isspace()))
            run.clear()

    for i, token in enumerate(row):
        span = spans[i] if i < len(source) and spans[i][0] < spans[i][1] else None
        if not shown[i]:
            write_run()
            read, context = (None if span else read), []
            continue
        if span is None and token in special:
            continue
        if span is not None:
            gap = "" if read is None else text[read : span[0]]
            start, read = max(span[0], read or 0), max(span[1], read or 0)
        elif i < len(source) and kept[i]:  # a token without characters of its own
            gap = ""
        else:
            gap = "" if read is None else text[read:]
            read = read if read is None else len(text)
        if kept[i]:
            write_run()
            parts.append(gap + (text[start : span[1]] if span is not None else ""))
        elif token not in special:
            if run and gap:
                write_run()
            if not run:
                between, before = gap, context
            run.append(token)
        context = [token]
    write_run()
    return "".join(parts) + (text[read:] if read is not None and (any(shown) or not row) else "")


def _kept(source: Sequence[int], spans: Sequence[Span], row: Sequence[int]) -> list[bool]:
    """Of each position of a row whether its typed characters stand: its token does, and those it shares them with."""
    kept = [i < len(source) and token == source[i] for i, token in enumerate(row)]
    places = range(1, min(len(source), len(row)))
    for order in (places, reversed(places)):
        for i in order:
            if spans[i - 1][0] < spans[i][1] and spans[i][0] < spans[i - 1][1]:
                kept[i - 1] = kept[i] = kept[i - 1] and kept[i]
    return kept


def _said(tokenizer: Any, before: list[int], run: list[int]) -> str:
    """What tokens say behind the one before them, the white space at their head included."""
    head = tokenizer.decode(before, skip_special_tokens=False) if before else ""
    whole = tokenizer.decode([*before, *run], skip_special_tokens=False)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(run, skip_special_tokens=False)


def _spaced(gap: str, said: str, after_space: bool) -> str:
    """What changed tokens say, behind the typed characters that stand before them."""
    bare = said.lstrip()
    if gap.strip():
        return gap + bare
    if not bare or bare == said:  # white space itself, or nothing that parts it from what stands before
        return said
    if after_space:
        return gap + bare
    return (gap or said[: len(said) - len(bare)]) + bare
