"""Make a local dataset of Unicode character names from Python's own `unicodedata`, without network."""

import sys
import unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import local_dataset

BODY = """
# Unicode character names

One row is the name of one character: `GREEK SMALL LETTER ALPHA WITH TONOS`, `FACE WITH TEARS OF JOY`. The
names follow a grammar of their own over a small vocabulary, and any sample can be judged without a second
model: `unicodedata.lookup(sample)` returns the character, or raises KeyError if no character has that name.
A name that resolves but is not in the training split is one the model was never shown.

## Source

Python's `unicodedata`, Unicode {version}, all code points in order. Left out are the names that are made by
rule from the code point (CJK, Tangut, Khitan and Nushu characters, Hangul syllables) and the names that
contain a digit, which are serial numbers (`EGYPTIAN HIEROGLYPH A001`). A name goes to train, validation or
test (80/10/10) by a hash of the name alone, so a later Unicode version adds rows but moves none. The splits
share no name, but they do share words and patterns: SMALL LETTER A may be in one and CAPITAL LETTER A in
another.

## Licence

Unicode data files, copyright 1991-present Unicode, Inc., under the [Unicode License v3]({link}).
"""
LICENCE = "https://www.unicode.org/license.txt"


def names() -> list[str]:
    """Every character name that is not made by rule from the code point nor numbered, by code point."""
    found = []
    for point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(point), "")
        by_rule = name.startswith("HANGUL SYLLABLE ") or name.endswith(f"-{point:04X}")
        if name and not by_rule and not any(character.isdigit() for character in name):
            found.append(name)
    return found


def prepare(output: Path, force: bool = False) -> dict[str, int]:
    """Write the dataset repository to `output`; returns the number of rows by split."""
    splits: dict[str, list[str]] = {split: [] for split in local_dataset.SPLITS}
    for name in names():
        splits[local_dataset.split_of(name)].append(name)
    counts = {split: len(rows) for split, rows in splits.items()}
    readme = local_dataset.card(
        BODY.format(version=unicodedata.unidata_version, link=LICENCE),
        counts,
        pretty_name="Unicode character names",
        license_name="unicode-3.0",
        license_link=LICENCE,
    )
    local_dataset.write(output, readme, splits, force=force)
    return counts


if __name__ == "__main__":
    local_dataset.main(prepare, Path(__file__).resolve().parent / "dataset", __doc__)
