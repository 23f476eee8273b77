"""Typing errors in texts, as people make them: a letter replaced, put in, left out, or two letters swapped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch

from ..common import check_whole, choices
from ..randomness import RowRandom

KINDS = _SUBSTITUTE, _INSERT, _DELETE, _TRANSPOSE = "substitute", "insert", "delete", "transpose"
"""The kinds of errors: a letter becomes another, one is put behind it, it is left out, it is swapped with the next."""
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""The rows of keys of a QWERTY keyboard, each half a key further to the right than the one above."""
_ATTEMPTS = 16
"""Draws of the errors of a text that may come out as the text itself, such as a letter left out and put in again."""
_NUMBERS = 4
"""Uniform numbers of an error: its kind, its place, where its letter is from, which letter it is."""


def _neighbours() -> dict[str, str]:
    found: dict[str, set[str]] = {key: set() for row in _KEYS for key in row}
    for number, row in enumerate(_KEYS):
        below = _KEYS[number + 1] if number + 1 < len(_KEYS) else ""
        for place, key in enumerate(row):
            touching = row[place + 1 : place + 2] + below[max(0, place - 1) : place + 1]
            for other in touching:
                found[key].add(other)
                found[other].add(key)
    return {key: "".join(sorted(others)) for key, others in found.items()}


KEYBOARD = _neighbours()
"""The keys that touch a key, of Latin letters on a QWERTY keyboard."""


class Typed(NamedTuple):
    """A text with errors, and the kind of each of them, in the order in which they were drawn."""

    text: str
    kinds: tuple[str, ...]


def make_typos(
    texts: Sequence[str],
    *,
    errors: int | Sequence[int] = 1,
    kinds: Collection[str] = KINDS,
    alphabet: str | None = None,
    keyboard: float = 0.5,
    seed: int = 0,
    rows: Iterable[int] | None = None,
) -> list[Typed | None]:
    """Each text with errors in its letters; a pure function of (text, seed, row), whatever the other texts.

    The errors of a text lie at different letters. The kind of each is drawn uniformly from those that the letters left
    allow, its place uniformly from the places where it can be. A letter that is typed by mistake is a neighbour on the
    keyboard with probability `keyboard`, where there is any, and else one of the alphabet; it takes the case of the
    letter it replaces or stands behind. What is no letter (`str.isalpha`) is never touched.

    Args:
        errors: how many in a text, or in each.
        kinds: of `KINDS`, those to draw from.
        alphabet: letters to type by mistake, those that stand there more than once drawn more often; None: of each
            text its own letters.
        keyboard: in [0, 1].
        seed: of the errors. rows: what tells the texts apart under one seed, integers of 64 bits; None: their places.

    Returns:
        Of each text the one with errors, never the text itself nor a blank one; None where it has no room for so many.

    Raises:
        ValueError: for an argument that cannot be.
    """
    if isinstance(kinds, str) or not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        got = kinds if isinstance(kinds, str) or not kinds else unknown[0]
        raise ValueError(f"kinds must be a collection of {choices(KINDS)}, got {got!r}")
    if not 0.0 <= keyboard <= 1.0:
        raise ValueError(f"keyboard must lie in [0, 1], got {keyboard}")
    counts = [errors] * len(texts) if isinstance(errors, int) else list(errors)
    for count in counts:
        check_whole(1, errors=count)
    check_whole(-(2**63), seed=seed)
    index = list(range(len(texts)) if rows is None else rows)
    if not len(texts) == len(counts) == len(index):
        raise ValueError(f"errors and rows must have one entry a text: {len(counts)}, {len(index)} of {len(texts)}")
    typed: list[Typed | None] = [None] * len(texts)
    if not texts:
        return typed
    random = RowRandom(seed, torch.tensor(index, dtype=torch.int64))
    wanted = [kind for kind in KINDS if kind in kinds]
    waiting = list(range(len(texts)))
    for _ in range(_ATTEMPTS):
        drawn = random.uniform(_NUMBERS * max(counts))
        for i in waiting:
            typed[i] = _typed(texts[i], counts[i], wanted, alphabet, keyboard, drawn[i].tolist())
        waiting = [i for i in waiting if typed[i] is None]
        if not waiting:
            break
    return typed


def _typed(
    text: str, count: int, kinds: list[str], alphabet: str | None, keyboard: float, numbers: list[float]
) -> Typed | None:
    """The text with so many errors, by `_NUMBERS` numbers each; None where they do not fit or undo each other."""
    pool = [c for c in (text if alphabet is None else alphabet) if c.isalpha()]
    pools: dict[tuple[bool, bool], list[str]] = {}
    slips: dict[str, tuple[list[str], list[str]]] = {}  # of each letter those from the keyboard and from the alphabet
    for c in {*text}:
        if c.isalpha():
            case = c.isupper(), c.islower()
            pools.setdefault(case, _like(pool, c))
            slips[c] = _like(KEYBOARD.get(_plain(c), ""), c), pools[case]
    replaced = {c for c, sources in slips.items() if any(other != c for source in sources for other in source)}
    letters = [i for i, c in enumerate(text) if c in slips]
    parts, made = list(text), []
    for error in range(count):
        what, where, source, which = numbers[_NUMBERS * error : _NUMBERS * (error + 1)]
        free = set(letters)
        places = {
            _SUBSTITUTE: [i for i in letters if text[i] in replaced],
            _INSERT: [i for i in letters if any(slips[text[i]])],
            _DELETE: letters,
            _TRANSPOSE: [i for i in letters if i + 1 in free and _swapped(text, i) != text[i : i + 2]],
        }
        possible = [kind for kind in kinds if places[kind]]
        if not possible:
            return None
        kind = _pick(possible, what)
        i = _pick(places[kind], where)
        if kind in (_SUBSTITUTE, _INSERT):
            near, far = slips[text[i]]
            if kind == _SUBSTITUTE:
                near, far = ([c for c in letters_there if c != text[i]] for letters_there in (near, far))
            new = _pick(near if near and (source < keyboard or not far) else far, which)
            parts[i] = new if kind == _SUBSTITUTE else text[i] + new
        elif kind == _DELETE:
            parts[i] = ""
        else:
            parts[i : i + 2] = _swapped(text, i)
        letters = [j for j in letters if j != i and (kind != _TRANSPOSE or j != i + 1)]
        made.append(kind)
    result = "".join(parts)
    return None if result == text or not result.strip() else Typed(result, tuple(made))


def _pick(items: Sequence, number: float):
    return items[int(number * len(items))]


def _plain(letter: str) -> str:
    """The small letter, where that is one character."""
    small = letter.lower()
    return small if len(small) == 1 else letter


def _like(letters: Iterable[str], model: str) -> list[str]:
    """The letters in the case of another, where that is one character each; their order and number are kept."""
    if model.isupper():
        return [c.upper() if len(c.upper()) == 1 else c for c in letters]
    return [_plain(c) for c in letters] if model.islower() else list(letters)


def _swapped(text: str, i: int) -> str:
    """Characters i and i + 1 in the other order; the case stays at its place."""
    return _like(text[i + 1], text[i])[0] + _like(text[i], text[i + 1])[0]
