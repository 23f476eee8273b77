"""Whether a text is valid, for texts of which that can be told: functions for `udm evaluate --validity`.

    udm evaluate runs/model --samples 1000 --validity recipes/validity.py:unicode_name
    udm evaluate runs/sudoku --samples 1000 --validity recipes/validity.py:sudoku_grid
    udm evaluate runs/molecules --samples 1000 --validity recipes/validity.py:smiles     # udm-text[molecules]

A function of your own takes a text and returns True or False. What a text is worth otherwise it does not say: a copy of
a training text is valid, too, so read it beside `copies`.
"""

from __future__ import annotations

import unicodedata

_WORDS = frozenset(word for code in range(0x110000) for word in unicodedata.name(chr(code), "").split("-")[0].split())


def unicode_name(text: str) -> bool:
    """Whether a text is the name of a Unicode character, as Python's own table has it: one that exists, therefore."""
    try:
        unicodedata.lookup(text.strip())
    except KeyError:
        return False
    return True


def unicode_words(text: str) -> bool:
    """Whether every word of a text stands in the name of some Unicode character; hyphened words by their first part."""
    return bool(text.split()) and all(word.split("-")[0] in _WORDS for word in text.split())


def sudoku_grid(text: str) -> bool:
    """Whether 81 digits, white space aside, are a finished Sudoku: every row, column and box holds 1 to 9."""
    cells = "".join(text.split())
    if len(cells) != 81:
        return False
    rows = [cells[i : i + 9] for i in range(0, 81, 9)]
    boxes = ["".join(row[j : j + 3] for row in rows[i : i + 3]) for i in range(0, 9, 3) for j in range(0, 9, 3)]
    return all(set(group) == set("123456789") for group in [*rows, *map("".join, zip(*rows, strict=True)), *boxes])


def smiles(text: str) -> bool:
    """Whether RDKit reads a text as a molecule: its grammar is right, and so are the valences of its atoms."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    return bool(text.strip()) and Chem.MolFromSmiles(text.strip()) is not None
