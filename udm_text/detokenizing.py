"""From a row of tokens back to the text it was made from: what was not changed stands as it was typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]


class Typed(NamedTuple):
    """A typed text, the tokens that it is, and where each of them stands in it: see `restore_text`."""

    text: str
    source: list[int]
    spans: list[Span]


def read_typed(tokenizer: Any, text: str) -> Typed | None:
    """A typed text as its tokenizer reads it; None where a slow tokenizer does not tell where its tokens stand."""
    if not tokenizer.is_fast:
        source = list(tokenizer(text)["input_ids"])
        spans = _found_spans(tokenizer, text, source)
        return None if spans is None else Typed(text, source, spans)
    encoded = tokenizer(text, return_offsets_mapping=True)
    return Typed(text, list(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]])


def open_typed(typed: Typed, mask: int, blanks: Sequence[int], widths: Sequence[int]) -> Typed:
    """A typed text with so many mask tokens in place of each blank, as the row has them.

    Where a blank has none, one of the spaces around it goes with it, if that is no token of its own.

    Args:
        typed: the text with one mask token in place of each blank. mask: its id.
        blanks: places of the blanks in `typed.source`, from left to right. widths: as many tokens each.
    """
    text, source, spans = typed
    parts, new_source, new_spans, read, moved, done = [], [], [], 0, 0, 0
    for place, width in zip(blanks, widths, strict=True):
        kept = spans[done:place]
        new_source += source[done:place]
        new_spans += [(start + moved, end + moved) if end else (start, end) for start, end in kept]
        start, end = spans[place]
        said = text[start:end]
        bare = said.strip()
        if not width:
            taken = max((end for _, end in spans[:place]), default=0)
            if start > taken and text[start - 1].isspace() and (end == len(text) or text[end].isspace()):
                start -= 1
            said = ""
        parts += [text[read:start], said + bare * (width - 1)]
        at = sum(map(len, parts)) - len(parts[-1])
        for i in range(width):
            size = len(said) if i == 0 else len(bare)
            new_spans.append((at, at + size))
            at += size
        new_source += [mask] * width
        read, moved, done = end, at - end, place + 1
    new_source += source[done:]
    new_spans += [(start + moved, end + moved) if end else (start, end) for start, end in spans[done:]]
    return Typed("".join([*parts, text[read:]]), new_source, new_spans)


def grown_typed(typed: Typed, mask: int, new: Sequence[bool]) -> Typed:
    """A typed text with so many mask tokens in place of each of its own as a row has new tokens there.

    new: of each token of the row, whether it was put in; the others are those that were typed, in their order.
    """
    places = [i for i, token in enumerate(typed.source) if token == mask]
    before = [place - number for number, place in enumerate(places)]  # given tokens to the left of each
    counts: dict[int, int] = {}
    given = 0
    for is_new in new:
        counts[given] = counts.get(given, 0) + is_new
        given += not is_new
    return open_typed(typed, mask, places, [counts.get(number, 0) for number in before])


_PLACE = "\ufffc"
"""Stands in a typed text where a token was put in; it is never shown."""


def edit_costs(source: Sequence[Any], target: Sequence[Any]) -> tuple[int, int, list[list[int]]]:
    """How many items two sequences begin and end with alike; and of what is between, entry [i][j] of the table, the
    fewest substitutions, deletions and insertions from its first i items to the first j (Levenshtein)."""
    begin, most = 0, min(len(source), len(target))
    while begin < most and source[begin] == target[begin]:
        begin += 1
    end = 0
    while end < most - begin and source[-1 - end] == target[-1 - end]:
        end += 1
    a, b = source[begin : len(source) - end], target[begin : len(target) - end]
    costs = [list(range(len(b) + 1))]
    for i, x in enumerate(a, start=1):
        above, row = costs[-1], [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j - 1] + (x != y), above[j] + 1, row[j - 1] + 1))
        costs.append(row)
    return begin, end, costs


def align(source: Sequence[int], row: Sequence[int]) -> list[int]:
    """Of each token of a row the place of the token of `source` that it is or stands for, -1 where it was put in.

    By the fewest substitutions, deletions and insertions that lead from the one to the other; of several ways the one
    that substitutes rather than deletes and inserts, from the end. What both begin or end with stands.
    """
    begin, end, costs = edit_costs(source, row)
    a, b = source[begin : len(source) - end], row[begin : len(row) - end]
    found = [-1] * len(b)
    i, j = len(a), len(b)
    while i and j:
        if costs[i][j] == costs[i - 1][j - 1] + (a[i - 1] != b[j - 1]):
            i, j = i - 1, j - 1
            found[j] = begin + i
        elif costs[i][j] == costs[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return [*range(begin), *found, *range(len(source) - end, len(source))]


def edited_typed(tokenizer: Any, typed: Typed, row: Sequence[int]) -> Typed:
    """A typed text as one that has a token for each of a row that was made of it by edits.

    What was deleted is gone, and with it one of the spaces around it, if that is no token of its own. What was put in
    has a place, right behind the token before it. A character that was made of several tokens stays while one of them
    does, and counts as changed.

    Args:
        row: the tokens of the row, without padding.
    """
    text, source, spans = typed
    origins = align(source, row)
    gone = sorted({*range(len(source))} - {*origins})
    torn, cuts, read = set[int](), list[Span](), 0
    for i in gone:
        start, end = spans[i]
        sharing = [j for j in (*range(i - 1, -1, -1), *range(i + 1, len(source))) if _share_characters(spans, i, j)]
        torn.update(sharing)
        if start >= end or any(j not in gone for j in sharing):
            continue
        before = max((last for _, last in spans[:i]), default=0)
        after = next((text[first:last] for first, last in spans[i + 1 :] if first < last), "")
        if not text[:start].strip() and after.strip():  # nothing stands before it
            end = len(text) - len(text[end:].lstrip())
        elif start > before and text[start - 1].isspace() and (end == len(text) or text[end].isspace()):
            start -= 1
        cuts.append((max(start, read), end))
        read = max(read, end)
    parts, new_source, new_spans = [], list[int](), list[Span]()
    length = read = 0

    def write(upto: int) -> None:
        """The typed text up to there, but for what is cut."""
        nonlocal length, read
        while cuts and cuts[0][0] < upto:
            start, end = cuts.pop(0)
            parts.append(text[read : max(start, read)])
            length += len(parts[-1])
            read = max(read, end)
        if upto > read:
            parts.append(text[read:upto])
            length += upto - read
            read = upto

    for n, origin in enumerate(origins):
        if origin < 0:
            parts.append(_PLACE)
            new_source.append(-1)
            new_spans.append((length, length + 1))
            length += 1
            follows = origins[n + 1] if n + 1 < len(origins) else -1
            if not read and follows >= 0 and spans[follows][0] < spans[follows][1]:  # nothing typed stands before it
                said = _said(tokenizer, [row[n]], [row[n + 1]])
                space = said[: len(said) - len(said.lstrip())]
                if not text[: spans[follows][1]][:1].isspace():
                    parts.append(space)
                    length += len(space)
            continue
        start, end = spans[origin]
        new_source.append(-1 if origin in torn else source[origin])
        if start >= end:
            new_spans.append((0, 0))
            continue
        write(start)
        at = length
        write(end)
        new_spans.append((at, length) if length > at else new_spans[-1] if new_spans else (0, 0))
    write(len(text))
    return Typed("".join(parts), new_source, new_spans)


def _share_characters(spans: Sequence[Span], i: int, j: int) -> bool:
    """Whether two tokens stand for the same characters of a typed text."""
    return max(spans[i][0], spans[j][0]) < min(spans[i][1], spans[j][1])


def _found_spans(tokenizer: Any, text: str, source: list[int]) -> list[Span] | None:
    """Where tokens stand in a text by what each of them says; None where one does not stand where it should.

    An unknown token is taken for all up to the next white space, if that alone is one.
    """
    special, spans, read = set(tokenizer.all_special_ids), [], 0
    for i, token in enumerate(source):
        start = len(text) - len(text[read:].lstrip())
        if token == tokenizer.unk_token_id:
            word = text[start:].split(maxsplit=1)[:1]
            if not word or list(tokenizer(word[0], add_special_tokens=False)["input_ids"]) != [token]:
                return None
            said = word[0]
        elif token in special:
            said = tokenizer.convert_ids_to_tokens(token)
            if not text.startswith(said, start):  # it frames the row
                spans.append((0, 0))
                continue
        else:
            said = _said(tokenizer, source[i - 1 : i] if i and source[i - 1] not in special else [], [token]).strip()
            if not text.startswith(said, start):
                return None
        read = start + len(said)
        spans.append((start, read))
    return None if text[read:].strip() else spans


def unknown_parts(tokenizer: Any, text: str) -> list[str]:
    """The parts of a text, each once, that a fast tokenizer does not know and reads as its unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    parts = [text[start:end] for token, (start, end) in spans if token == unknown]
    found = [part.strip() or part for part in parts]  # white space before a word may be part of its token
    return [part for part in dict.fromkeys(found) if part and part != tokenizer.unk_token]


def restore_text(
    tokenizer: Any,
    text: str,
    source: Sequence[int],
    spans: Sequence[Span],
    row: Sequence[int],
    shown: Sequence[bool],
    blank: str | None = None,
) -> str:
    """The text of a row that began as the tokens of a typed text.

    A position that still holds its token gives the characters it was made from, whatever the tokenizer does to them
    (case, unknown characters, white space); one that was changed or added gives what its token says, and the white
    space before it is the typed one wherever the tokenizer puts any, before a filled blank always. A character that was
    made of several tokens is as it was typed only if none of them was changed. Typed white space that only parts what
    is shown from what is not is of neither at the ends of a text; between two shown parts some of it stays (that behind
    what is not shown, or else that before it), whatever the tokens say, or they would read as one word.

    Args:
        tokenizer: for `decode`, and its special tokens.
        text: what was typed.
        source: its token ids.
        spans: where each of them stands in the text, first character and the one behind the last; of tokens that frame
            a row (0, 0).
        row: the token ids of the row; position i was made from `source[i]`, and those behind `source` are new.
        shown: of each position whether its text is wanted.
        blank: what is written for a mask token; None: for a typed one what was typed, for others nothing.
    """
    special, mask = set(tokenizer.all_special_ids), tokenizer.mask_token_id
    kept = _kept(source, spans, row)
    apart = blank is not None and _blanks_stand_apart(tokenizer)
    parts: list[str] = []
    context: list[int] = []  # the token before, if it is one of the text
    read = 0  # up to where the typed text has been seen
    hidden = False  # whether text was seen that is not shown
    seen = True  # whether the last token of the text was shown
    skipped = ""  # the white space before the first of the tokens that were not shown since
    run: list[int] = []
    before: list[int] = []
    between, opens, stands = "", False, False

    def write_run() -> None:
        if run:
            said = _said(tokenizer, before, run)
            if hidden and not parts:
                parts.append(said.lstrip() if between else said)
            else:
                parts.append(_spaced(between, said, bool(parts) and parts[-1][-1:].isspace(), opens, stands))
            run.clear()

    for i, token in enumerate(row):
        span = spans[i] if i < len(source) and spans[i][0] < spans[i][1] else None
        if span is None and token in special and not (token == mask and blank is not None):
            if not shown[i]:
                write_run()
                context = []
            continue
        gap, typed = "", ""
        if span is not None:
            gap, typed = text[read : span[0]], text[max(span[0], read) : span[1]]
            read = max(span[1], read)
        elif i >= len(source) or not kept[i]:  # else it is a token without characters of its own
            gap, read = text[read:], len(text)
        lead = typed[: len(typed) - len(typed.lstrip())]
        if not shown[i]:
            write_run()
            if seen:
                skipped = gap + lead if (gap + lead).isspace() else ""
            hidden, seen = True, False
            context = [] if token in special and token != tokenizer.unk_token_id else [token]
            continue
        first = not (parts or run)
        parted, seen = not (seen or first), True
        if parted and not (gap or lead):
            gap = skipped
        if token == mask and blank is not None:
            write_run()
            gap += lead
            if not gap and apart and parts and span is None and not parts[-1][-1:].isspace():
                gap = " "
            parts.append(("" if hidden and first else gap) + blank)
        elif kept[i]:
            write_run()
            parts.append(("" if hidden and first else gap) + typed)
        elif token not in special:
            stays = parted or (i < len(source) and source[i] == mask)
            if typed.strip() and (lead != " " or first or stays):  # one space is what the token itself says, if any
                gap += lead
            if run and gap:
                write_run()
            if not run:
                between, before, opens, stands = gap, context, first and not hidden, stays
            run.append(token)
        context = [token]
    write_run()
    return "".join(parts) + (text[read:] if seen and (any(shown) or not row) else "")


def _blanks_stand_apart(tokenizer: Any) -> bool:
    """Whether white space stands before a mask token that stands for a word: where its tokens are words or carry it."""
    mask = next((t for i, t in tokenizer.added_tokens_decoder.items() if i == tokenizer.mask_token_id), None)
    return getattr(mask, "lstrip", False) or " " in tokenizer.decode([tokenizer.mask_token_id] * 2)


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


def _spaced(gap: str, said: str, after_space: bool, opens: bool, stands: bool) -> str:
    """What changed tokens say, behind the typed characters that stand before them.

    opens: whether nothing but typed white space stands before them, which a tokenizer need not say. stands: whether
    the typed white space stays whatever they say: before a filled blank, and behind text that is not shown.
    """
    bare = said.lstrip()
    if gap.strip() or (gap and stands):
        return gap + bare
    if not bare or (bare == said and not opens):
        return said  # white space itself, or nothing that parts it from what stands before
    if after_space:
        return gap + bare
    return (gap or said[: len(said) - len(bare)]) + bare
