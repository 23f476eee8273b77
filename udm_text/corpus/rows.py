"""From texts to rows of tokens: a line each, of fixed length, packed into blocks, or a prompt and its answer."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from unicodedata import category, normalize

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor

from ..common import choices
from ..detokenizing import edit_costs
from ..framing import tokenizer_frame, tokenizer_separator
from .files import CorpusError
from .tokenizers import cut_before, split_long

ROWS = ("line", "fixed", "packed")
_LONG = 20_000
"""Characters of a text that is tokenised as a whole, however much of it is used."""
_TOO_LONG = 10**6
"""Characters of a text that makes no row without row_length: a model of such rows fits into no memory."""


_Tokenised = tuple[list[list[int]], list[list[int] | None], list[bool]]


class RowCutter:
    """Cuts tokenised texts into rows, and counts what is lost. See `make_rows` for the arguments and what it makes.

    counts: "truncated" rows, "truncated_prompts", texts "left_out" (among them "noisy_of_other_length", whose noisy
        text has another number of tokens, or with `most_edits` "noisy_out_of_reach"), and "unknown" tokens, of all rows
        cut so far; and where there are any "cut_before_tokenising", texts so long that a part alone was tokenised.
    """

    def __init__(
        self,
        tokenizer,
        rows: str = "line",
        row_length: int | None = None,
        prompted: bool = False,
        paired: bool = False,
        most_edits: int | None = None,
    ):
        if rows not in ROWS:
            raise ValueError(f"rows must be {choices(ROWS)}, got {rows!r}")
        if rows != "line" and row_length is None:
            raise ValueError(f"rows={rows!r} needs row_length")
        if row_length is not None and row_length < 1:
            raise ValueError(f"row_length must be at least 1, got {row_length}")
        if prompted and rows == "packed":
            raise ValueError("rows='packed' joins texts, and prompts and answers stay apart: use 'line' or 'fixed'")
        if paired and rows == "packed":
            raise ValueError(
                "rows='packed' joins texts, and a noisy text belongs to one of them: use 'line' or 'fixed'"
            )
        self.tokenizer, self.rows, self.row_length, self.prompted = tokenizer, rows, row_length, prompted
        self.paired, self.most_edits = paired, most_edits
        self.prefix, self.suffix = tokenizer_frame(tokenizer)
        self.separator = tokenizer_separator(tokenizer) if prompted else []
        self.special = set(tokenizer.all_special_ids)
        self._seen = (2**63, 0)  # tokens of the shortest and of the longest text
        self._ambiguous = 0  # prompts that hold the separator
        self.counts = {"truncated": 0, "left_out": 0, "unknown": 0}
        if prompted:
            self.counts["truncated_prompts"] = 0
        if paired:
            self.counts["noisy_of_other_length" if most_edits is None else "noisy_out_of_reach"] = 0

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row there can be, what stands around it included; None where nothing says."""
        if self.row_length is None or (self.rows == "fixed" and self.prompted):
            return None
        return self.row_length + sum(map(len, (self.prefix, self.separator, self.suffix)))

    def encode(self, batch: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
        """A batch of columns "text" (and "prompt", "noisy") as "ids", "chars" (of each token; None: unknown) and those.

        A text that is very long is tokenised as far as its row goes, of a prompt its end; a block needs all of it, and
        takes it part by part.

        Raises:
            CorpusError: for a text of more than a million characters where no row_length says how much of it is a row.
        """
        ids, chars, early = self._tokenise(list(batch["text"]))
        columns: dict[str, list[Any]] = {"ids": ids, "chars": chars, "early": early}
        if self.prompted:
            columns["prompt"] = self._tokenise([prompt or "" for prompt in batch["prompt"]], end=True)[0]
        if self.paired:
            columns["noisy"] = self._tokenise([noisy or "" for noisy in batch["noisy"]])[0]
            if self.most_edits is not None:
                columns["edits"] = [self._edits(*pair) for pair in zip(columns["noisy"], ids, strict=True)]
        return columns

    def _edits(self, noisy: list[int], clean: list[int]) -> int:
        """The fewest edits of tokens between a noisy text and the clean one; more than `most_edits` where no row of
        both is made."""
        assert self.most_edits is not None
        beyond = self.most_edits + 1  # and no more than one edit belongs to a token
        if abs(len(noisy) - len(clean)) >= beyond or not self.special.isdisjoint((*noisy, *clean)):
            return beyond
        found = edit_costs(noisy, clean)[2][-1][-1]
        return found if found <= len(clean) else beyond

    def _tokenise(self, texts: list[str], end: bool = False) -> _Tokenised:
        """Tokens, their characters (None: unknown), and whether a part alone was tokenised, of each text."""
        if not any(len(text) > _LONG for text in texts):
            return *self._tokens(texts), [False] * len(texts)
        ids: list[list[int]] = []
        chars: list[list[int] | None] = []
        early: list[bool] = []
        for text in texts:
            one = self._tokens_of_long(text, end) if len(text) > _LONG else (*self._tokens([text]), [False])
            ids += one[0]
            chars += one[1]
            early += one[2]
        return ids, chars, early

    def _tokens_of_long(self, text: str, end: bool) -> _Tokenised:
        if self.rows == "packed":
            joined, counted = array("i"), array("i")
            for part in split_long(text, self._cuts_anywhere):
                (part_ids,), (part_chars,) = self._tokens([part])
                joined.extend(part_ids)
                counted.extend(part_chars or ())
            return [joined.tolist()], [counted.tolist() if self.tokenizer.is_fast else None], [False]
        limit = None if end and self.rows == "fixed" else self.row_length
        if limit is None:
            if len(text) > _TOO_LONG:
                raise CorpusError(
                    f"a {'prompt' if end else 'text'} of {len(text)} characters is too long for a row; it begins with "
                    f"{text[:40]!r}: give row_length, which cuts it, or rows='packed'"
                )
            return *self._tokens([text]), [False]
        room = max(_LONG, 16 * limit)
        while True:
            whole = room >= len(text)
            ids, chars = self._tokens([text if whole else _end_of(text, room) if end else _beginning_of(text, room)])
            if whole or len(ids[0]) > limit:
                return ids, chars, [not whole]
            room *= 4

    def _tokens(self, texts: list[str]) -> tuple[list[list[int]], list[list[int] | None]]:
        tokenizer, fast = self.tokenizer, self.tokenizer.is_fast
        out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        if not fast:
            return out["input_ids"], [None] * len(texts)
        spans = zip(texts, out["input_ids"], out["offset_mapping"], strict=True)
        return out["input_ids"], [_chars_per_token(*span, self.special) for span in spans]

    def _cuts_anywhere(self, left: str, right: str) -> bool:
        """Whether a text may be cut here, inside a word: its tokens give the same text back."""

        def ids(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

        return self.tokenizer.decode(ids(left) + ids(right)) == self.tokenizer.decode(ids(left + right))

    def cut(self, encoded: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows from the texts of `encode`, one after the other; those without a token that may change are left out."""
        rows = self._pack(encoded) if self.rows == "packed" else map(self._one, encoded)
        for row in rows:
            if row is not None and row["length"]:
                self.counts["unknown"] += row["input_ids"].count(self.tokenizer.unk_token_id)
                yield row
            else:
                self.counts["left_out"] += 1

    def why_none(self) -> str:
        """Why no text became a row, in a clause, when all of them were cut."""
        least, most = self._seen
        if self.rows == "packed":
            return f"all texts together have fewer tokens than a block of {self.row_length}"
        if self.rows == "fixed" and not least <= (self.row_length or 0) <= most:
            return f"they have {least} to {most} tokens, and none has {self.row_length}"
        if self.counts.get("noisy_of_other_length"):
            return (
                f"{self.counts['noisy_of_other_length']} noisy texts have another number of tokens than the clean "
                "ones, which substitution cannot mend, and of the others no token is known"
            )
        if self.counts.get("noisy_out_of_reach"):
            return (
                f"{self.counts['noisy_out_of_reach']} noisy texts are out of reach of the clean ones, by more than "
                f"{self.most_edits} edits, unknown tokens or length, and of the others no token is known"
            )
        if self._ambiguous:
            return f"{self._ambiguous} prompts hold the separator itself, and the other texts no token that is known"
        return "no token of theirs is known to the tokenizer" + " and fits" * (self.rows == "fixed")

    def _one(self, text: dict[str, Any]) -> dict[str, Any] | None:
        """The row of one text; None where it fits no row."""
        ids, chars, limit = text["ids"], text["chars"], self.row_length
        prompt = text["prompt"] if self.prompted else []
        noisy = text["noisy"] if self.paired else None
        if text["early"]:
            self.counts["cut_before_tokenising"] = self.counts.get("cut_before_tokenising", 0) + 1
        self._seen = (min(self._seen[0], len(ids)), max(self._seen[1], len(ids)))
        if noisy is not None and self.most_edits is None and len(noisy) != len(ids):
            self.counts["noisy_of_other_length"] += 1
            return None
        if noisy is not None and self.most_edits is not None:
            whole = limit is None or len(prompt) + max(len(ids), len(noisy)) <= limit
            if text["edits"] > self.most_edits or not whole:
                self.counts["noisy_out_of_reach"] += 1
                return None
        if self.rows == "fixed":
            if len(ids) != limit:
                return None
        elif limit is not None:
            keep, keep_prompt = split_room(len(ids), len(prompt), limit)
            self.counts["truncated"] += len(ids) > keep
            if self.prompted:
                self.counts["truncated_prompts"] += len(prompt) > keep_prompt
            ids, chars = ids[:keep], chars and chars[:keep]
            noisy = noisy[:keep] if noisy and self.most_edits is None else noisy
            prompt = prompt[len(prompt) - keep_prompt :]
        n = len(self.separator)
        if self.prompted and any(prompt[i : i + n] == self.separator for i in range(len(prompt))):
            self._ambiguous += 1
            return None
        row = self._row(ids, chars, prompt)
        return row if noisy is None else {**row, "noisy_ids": self._row(noisy, None, prompt)["input_ids"]}

    def _row(self, ids: list[int], chars: list[int] | None, prompt: Sequence[int] = ()) -> dict[str, Any]:
        return {
            "input_ids": [*self.prefix, *prompt, *self.separator, *ids, *self.suffix],
            "length": sum(token not in self.special for token in ids),
            "num_chars": None if chars is None else sum(chars),
        }

    def _pack(self, encoded: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any] | None]:
        """All texts, each with a newline behind it, joined and cut into blocks; None for a tail that fills none."""
        size = self.row_length
        assert size is not None
        newline = [t for t in self.tokenizer("\n", add_special_tokens=False)["input_ids"] if t not in self.special]
        newline_chars = [int(i == 0) for i in range(len(newline))]
        counted = self.tokenizer.is_fast
        ids: list[int] = []
        chars: list[int] = []
        for text in encoded:
            ids.extend(text["ids"] + newline)
            chars.extend((text["chars"] if counted else [0] * len(text["ids"])) + newline_chars)
            whole = len(ids) // size * size
            for start in range(0, whole, size):
                block = slice(start, start + size)
                yield self._row(ids[block], chars[block] if counted else None)
            del ids[:whole], chars[:whole]
        if ids:
            yield None

    def lines(self, records: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """A row a record, also where none of its tokens may change: it is then scored nowhere. For rows="line"."""
        encoded = self.encode({name: [record[name] for record in records] for name in records[0]})
        rows = []
        for text in each(encoded):
            row = self._one(text) or self._row([], None)
            if not row["input_ids"]:  # a text that is no token at all still takes a place in the batch
                row["input_ids"] = [self.tokenizer.mask_token_id]
            rows.append(row)
        return rows


def _beginning_of(text: str, room: int) -> str:
    """The first characters of a text, up to white space where there is some in their second half."""
    return text[: cut_before(text, room) or room]


def _end_of(text: str, room: int) -> str:
    """The last characters of a text, from white space on where there is some in their first half."""
    start = len(text) - room
    found = next((i for i in range(start, start + room // 2) if text[i].isspace()), start)
    return text[found:]


def each(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """A batch of columns as records."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def split_room(answer: int, prompt: int, room: int) -> tuple[int, int]:
    """How many tokens of answer and prompt are kept where a row has `room` for both.

    The answer loses its end, the prompt its beginning, so that what is kept stands together. Either keeps half of the
    room at least, where it has so many tokens, and more where the other leaves it.
    """
    keep = min(answer, room - min(prompt, room // 2))
    return keep, min(prompt, room - keep)


def make_rows(
    texts: Dataset,
    tokenizer,
    *,
    rows: str = "line",
    row_length: int | None = None,
    num_proc: int | None = None,
    split: str = "train",
    most_edits: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Tokenised rows with "input_ids", "length" (tokens that may change) and "num_chars".

    num_chars counts the characters of the text that the tokens which may change stand for, with the white space before
    them: unknown tokens are not scored, so their characters do not count. None where the tokenizer cannot tell.

    A data set with a "prompt" column gives rows of prefix, prompt, separator, answer and suffix, as the tokenizer
    frames a pair. The answer alone may change, and is what "length" and "num_chars" count. A prompt that holds the
    separator itself is left out: nothing could tell where its answer begins.

    A data set with a "noisy" column gives rows with "noisy_ids", too: the row with the noisy text in place of the clean
    one. Where the two differ in their number of tokens, the row is left out; with `most_edits` where more edits of
    tokens lie between them, one of them holds special or unknown tokens, or would be cut.

    Args:
        texts: a data set with a "text" column, and "prompt" where the texts are answers.
        rows: "line": a row a text, cut at `row_length` tokens; "fixed": the texts of exactly `row_length` tokens;
            "packed": all texts, each with a newline behind it where the tokenizer has one, joined and cut into blocks
            of `row_length` tokens, the rest dropped. A packed row knows nothing of where a text ends: its tokens attend
            to those of its neighbours.
        row_length: tokens of a row without the special tokens around it (needed for "fixed" and "packed"). Of prompt
            and answer together (see `split_room` for which is cut); with "fixed" of the answer alone.
        split: what the texts are called where no row is left of them.
        num_proc: processes that tokenise. What they make is cached beside the texts where these are files.
        most_edits: that may lie between a noisy text and the clean one, where substitutions are not all there is.

    Returns:
        The rows, and counts of what was "truncated", "left_out" and "unknown" (tokens, never corrupted nor scored), and
        with prompts of "truncated_prompts", with noisy texts of "noisy_of_other_length" or "noisy_out_of_reach".
    """
    given = {"prompted": "prompt" in texts.column_names, "paired": "noisy" in texts.column_names}
    cutter = RowCutter(tokenizer, rows, row_length, **given, most_edits=most_edits)
    how: dict[str, Any] = {}
    if tokenizer.is_fast:  # by what it does: pickled, a tokenizer changes with its first use
        frame = (cutter.prompted, sorted(cutter.special), *(["noisy", most_edits] if cutter.paired else []))
        how["new_fingerprint"] = Hasher.hash((texts._fingerprint, tokenizer.backend_tokenizer.to_str(), frame))
    encoded = texts.map(
        cutter.encode, batched=True, num_proc=num_proc, remove_columns=texts.column_names, desc="tokenising", **how
    )
    tokens, begins = array("i"), array("q")  # 4 bytes a token; where each row but the first begins
    noisy, noisy_begins = array("i"), array("q")
    lengths: list[int] = []
    num_chars: list[int | None] = []
    for row in cutter.cut(text for batch in encoded.iter(batch_size=1000) for text in each(batch)):
        if tokens:
            begins.append(len(tokens))
            noisy_begins.append(len(noisy))
        tokens.extend(row["input_ids"])
        noisy.extend(row.get("noisy_ids", ()))
        lengths.append(row["length"])
        num_chars.append(row["num_chars"])
    if not lengths:
        raise CorpusError(
            f"no row is left: rows={rows!r}, row_length={row_length}, {len(texts)} texts, {cutter.counts['left_out']} "
            f"left out (split {split!r}: {cutter.why_none()})"
        )
    columns: dict[str, Any] = {"input_ids": np.split(np.frombuffer(tokens, dtype=np.intc), begins)}
    columns |= {"length": lengths, "num_chars": num_chars}
    if cutter.paired:
        columns["noisy_ids"] = np.split(np.frombuffer(noisy, dtype=np.intc), noisy_begins)
    return Dataset.from_dict(columns), cutter.counts


def _chars_per_token(text: str, ids: list[int], spans: list[tuple[int, int]], special: set[int]) -> list[int]:
    """How many characters of the text each token stands for, those before it that no token holds too; special: 0."""
    chars, done = [], 0
    for i, (_, end) in enumerate(spans):
        end = len(text) if i == len(spans) - 1 else max(end, done)
        chars.append(0 if ids[i] in special else end - done)
        done = end
    return chars


def length_counts(rows: Dataset) -> list[int]:
    """`counts[l]`: how many rows have l tokens that may change."""
    lengths = rows["length"]
    counts = [0] * (max(lengths) + 1)
    for length in lengths:
        counts[length] += 1
    return counts


def token_counts(rows: Dataset, vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64: how often each token stands in the rows."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in rows.with_format("numpy").iter(batch_size=10_000):
        counts += np.bincount(np.concatenate(list(batch["input_ids"])), minlength=vocab_size)
    return counts


def vocabulary_report(rows: Dataset, tokenizer, texts: Sequence[str] = ()) -> dict[str, Any]:
    """Tokens of the vocabulary that training never sees ("never_seen", special ones left aside), unknown tokens, and
    their shares of the vocabulary and of all tokens; of the texts "round_trip", see `round_trip`."""
    counts = token_counts(rows, len(tokenizer))
    ordinary = np.ones(len(tokenizer), dtype=bool)
    ordinary[list(tokenizer.all_special_ids)] = False
    never = int((counts[ordinary] == 0).sum())
    unknown = 0 if tokenizer.unk_token_id is None else int(counts[tokenizer.unk_token_id])
    report: dict[str, Any] = {
        "tokens": int(counts[ordinary].sum()) + unknown,
        "unknown": unknown,
        "unknown_share": unknown / max(1, int(counts[ordinary].sum()) + unknown),
        "never_seen": never,
        "never_seen_share": never / max(1, int(ordinary.sum())),
    }
    return report | ({"round_trip": round_trip(texts, tokenizer)} if len(texts) else {})


def round_trip(texts: Sequence[str], tokenizer, most: int = 2000) -> dict[str, Any]:
    """How many texts come back from their tokens as they were: "texts" that were looked at, "exact" ones, and what is
    "lost" of the others, the most frequent first.

    most: so many texts are looked at, evenly spaced, and of a very long one its beginning. Figures per character count
    what is lost as if it had been predicted.
    """
    chosen = [texts[i * len(texts) // min(most, len(texts))] for i in range(min(most, len(texts)))]
    parts = [_beginning_of(text, _LONG) if len(text) > _LONG else text for text in chosen]
    lost: Counter[str] = Counter()
    exact = 0
    for text, ids in zip(parts, tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"], strict=True):
        back = tokenizer.decode(ids, skip_special_tokens=False)
        exact += back == text
        lost.update(_lost(text, back, tokenizer.unk_token_id in ids))
    return {"texts": len(parts), "exact": exact, "lost": [what for what, _ in lost.most_common()]}


def _lost(text: str, back: str, unknown: bool) -> list[str]:
    """What of a text its tokens do not give back."""
    if text == back:
        return []
    if unknown:
        return ["unknown characters"]

    def bare(text: str) -> str:
        return "".join(char for char in normalize("NFKD", text) if not category(char).startswith("M"))

    a, b = "".join(text.split()), "".join(back.split())
    if a == b:
        return ["white space"]
    if a.casefold() == b.casefold():
        return ["capitals", *(["white space"] if text.casefold() != back.casefold() else [])]
    if bare(a).casefold() == bare(b).casefold():
        capitals = ["capitals"] if bare(a) != bare(b) else []
        white = ["white space"] if bare(text).casefold() != bare(back).casefold() else []
        return [*capitals, "accents and forms of characters", *white]
    return ["other characters"]


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int | None, editable) -> dict[str, Tensor]:
    """A batch of rows: input_ids (B, L) int64, attention_mask (B, L) of ones and zeros, editable (B, L) bool.

    rows: each with "input_ids"; "editable", a bool for each token, where it says itself what of it may change. Where
        they have "noisy_ids", so has the batch, (B, M) int64, and "noisy_lengths" (B,).
    editable(input_ids, attention_mask) -> (B, L) bool.
    """

    def listed(name: str) -> list[list[int]]:
        return [row[name].tolist() if hasattr(row[name], "tolist") else row[name] for row in rows]

    ids = listed("input_ids")
    lengths = [len(x) for x in ids]
    longest = max(lengths)
    if pad_token_id is None and min(lengths) < longest:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")

    def padded(ids: list[list[int]]) -> Tensor:
        padding = [pad_token_id or 0] * max(map(len, ids))
        return torch.tensor([[*x, *padding[len(x) :]] for x in ids], dtype=torch.int64)

    input_ids = padded(ids)
    attention_mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    changing = editable(input_ids, attention_mask)
    for i, row in enumerate(rows):
        if (own := row.get("editable")) is not None:
            changing[i] = torch.tensor([*own, *[False] * (longest - len(own))])
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "editable": changing}
    if "noisy_ids" in rows[0]:
        noisy = listed("noisy_ids")
        batch |= {"noisy_ids": padded(noisy), "noisy_lengths": torch.tensor([len(x) for x in noisy])}
    return batch
