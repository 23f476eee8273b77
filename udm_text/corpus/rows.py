"""From texts to rows of tokens: a line each, of fixed length, packed into blocks, or a prompt and its answer."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor

from ..common import choices
from ..framing import tokenizer_frame, tokenizer_separator
from .files import CorpusError

ROWS = ("line", "fixed", "packed")


class RowCutter:
    """Cuts tokenised texts into rows, and counts what is lost. See `make_rows` for the arguments and what it makes.

    counts: "truncated" rows, "truncated_prompts", texts "left_out", and "unknown" tokens, of all rows cut so far.
    """

    def __init__(self, tokenizer, rows: str = "line", row_length: int | None = None, prompted: bool = False):
        if rows not in ROWS:
            raise ValueError(f"rows must be {choices(ROWS)}, got {rows!r}")
        if rows != "line" and row_length is None:
            raise ValueError(f"rows={rows!r} needs row_length")
        if row_length is not None and row_length < 1:
            raise ValueError(f"row_length must be at least 1, got {row_length}")
        if prompted and rows == "packed":
            raise ValueError("rows='packed' joins texts, and prompts and answers stay apart: use 'line' or 'fixed'")
        self.tokenizer, self.rows, self.row_length, self.prompted = tokenizer, rows, row_length, prompted
        self.prefix, self.suffix = tokenizer_frame(tokenizer)
        self.separator = tokenizer_separator(tokenizer) if prompted else []
        self.special = set(tokenizer.all_special_ids)
        self.counts = {"truncated": 0, "left_out": 0, "unknown": 0}
        if prompted:
            self.counts["truncated_prompts"] = 0

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row there can be, what stands around it included; None where nothing says."""
        if self.row_length is None or (self.rows == "fixed" and self.prompted):
            return None
        return self.row_length + sum(map(len, (self.prefix, self.separator, self.suffix)))

    def encode(self, batch: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
        """A batch of columns "text" (and "prompt") as "ids", "chars" (of each token; None: unknown) and "prompt"."""
        texts, tokenizer = list(batch["text"]), self.tokenizer
        fast = tokenizer.is_fast
        out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        columns: dict[str, list[Any]] = {"ids": out["input_ids"], "chars": [None] * len(texts)}
        if fast:
            spans = zip(texts, out["input_ids"], out["offset_mapping"], strict=True)
            columns["chars"] = [_chars_per_token(*span, self.special) for span in spans]
        if self.prompted:
            prompts = [prompt or "" for prompt in batch["prompt"]]
            columns["prompt"] = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        return columns

    def cut(self, encoded: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows from the texts of `encode`, one after the other; those without a token that may change are left out."""
        rows = self._pack(encoded) if self.rows == "packed" else map(self._one, encoded)
        for row in rows:
            if row is not None and row["length"]:
                self.counts["unknown"] += row["input_ids"].count(self.tokenizer.unk_token_id)
                yield row
            else:
                self.counts["left_out"] += 1

    def _one(self, text: dict[str, Any]) -> dict[str, Any] | None:
        """The row of one text; None where it fits no row."""
        ids, chars, limit = text["ids"], text["chars"], self.row_length
        prompt = text["prompt"] if self.prompted else []
        if self.rows == "fixed":
            if len(ids) != limit:
                return None
        elif limit is not None:
            keep, keep_prompt = split_room(len(ids), len(prompt), limit)
            self.counts["truncated"] += len(ids) > keep
            if self.prompted:
                self.counts["truncated_prompts"] += len(prompt) > keep_prompt
            ids, chars = ids[:keep], chars and chars[:keep]
            prompt = prompt[len(prompt) - keep_prompt :]
        n = len(self.separator)
        if self.prompted and any(prompt[i : i + n] == self.separator for i in range(len(prompt))):
            return None
        return self._row(ids, chars, prompt)

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
    texts: Dataset, tokenizer, *, rows: str = "line", row_length: int | None = None, num_proc: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """Tokenised rows with "input_ids", "length" (tokens that may change) and "num_chars".

    num_chars counts the characters of the text that the tokens which may change stand for, with the white space before
    them: unknown tokens are not scored, so their characters do not count. None where the tokenizer cannot tell.

    A data set with a "prompt" column gives rows of prefix, prompt, separator, answer and suffix, as the tokenizer
    frames a pair. The answer alone may change, and is what "length" and "num_chars" count. A prompt that holds the
    separator itself is left out: nothing could tell where its answer begins.

    Args:
        texts: a data set with a "text" column, and "prompt" where the texts are answers.
        rows: "line": a row a text, cut at `row_length` tokens; "fixed": the texts of exactly `row_length` tokens;
            "packed": all texts, each with a newline behind it where the tokenizer has one, joined and cut into blocks
            of `row_length` tokens, the rest dropped. A packed row knows nothing of where a text ends: its tokens attend
            to those of its neighbours.
        row_length: tokens of a row without the special tokens around it (needed for "fixed" and "packed"). Of prompt
            and answer together (see `split_room` for which is cut); with "fixed" of the answer alone.
        num_proc: processes that tokenise. What they make is cached beside the texts where these are files.

    Returns:
        The rows, and counts of what was "truncated", "left_out" and "unknown" (tokens, never corrupted nor scored), and
        with prompts of "truncated_prompts".
    """
    cutter = RowCutter(tokenizer, rows, row_length, prompted="prompt" in texts.column_names)
    how: dict[str, Any] = {}
    if tokenizer.is_fast:  # by what it does: pickled, a tokenizer changes with its first use
        frame = (cutter.prompted, sorted(cutter.special))
        how["new_fingerprint"] = Hasher.hash((texts._fingerprint, tokenizer.backend_tokenizer.to_str(), frame))
    encoded = texts.map(
        cutter.encode, batched=True, num_proc=num_proc, remove_columns=texts.column_names, desc="tokenising", **how
    )
    tokens, begins = array("i"), array("q")  # 4 bytes a token; where each row but the first begins
    lengths: list[int] = []
    num_chars: list[int | None] = []
    for row in cutter.cut(text for batch in encoded.iter(batch_size=1000) for text in each(batch)):
        if tokens:
            begins.append(len(tokens))
        tokens.extend(row["input_ids"])
        lengths.append(row["length"])
        num_chars.append(row["num_chars"])
    if not lengths:
        raise CorpusError(
            f"no row is left: rows={rows!r}, row_length={row_length}, {len(texts)} texts, {cutter.counts['left_out']} "
            "left out"
        )
    input_ids = np.split(np.frombuffer(tokens, dtype=np.intc), begins)
    return Dataset.from_dict({"input_ids": input_ids, "length": lengths, "num_chars": num_chars}), cutter.counts


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


def vocabulary_report(rows: Dataset, tokenizer) -> dict[str, Any]:
    """Tokens of the vocabulary that training never sees ("never_seen", special ones left aside), unknown tokens, and
    their shares of the vocabulary and of all tokens."""
    counts = token_counts(rows, len(tokenizer))
    ordinary = np.ones(len(tokenizer), dtype=bool)
    ordinary[list(tokenizer.all_special_ids)] = False
    never = int((counts[ordinary] == 0).sum())
    unknown = 0 if tokenizer.unk_token_id is None else int(counts[tokenizer.unk_token_id])
    return {
        "tokens": int(counts[ordinary].sum()) + unknown,
        "unknown": unknown,
        "unknown_share": unknown / max(1, int(counts[ordinary].sum()) + unknown),
        "never_seen": never,
        "never_seen_share": never / max(1, int(ordinary.sum())),
    }


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int | None, editable) -> dict[str, Tensor]:
    """A batch of rows: input_ids (B, L) int64, attention_mask (B, L) of ones and zeros, editable (B, L) bool.

    rows: each with "input_ids". editable(input_ids, attention_mask) -> (B, L) bool.
    """
    ids = [row["input_ids"].tolist() if hasattr(row["input_ids"], "tolist") else row["input_ids"] for row in rows]
    lengths = [len(x) for x in ids]
    longest = max(lengths)
    if pad_token_id is None and min(lengths) < longest:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")
    padding = [pad_token_id or 0] * longest
    input_ids = torch.tensor([[*x, *padding[len(x) :]] for x in ids], dtype=torch.int64)
    attention_mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    changing = editable(input_ids, attention_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "editable": changing}
