"""How well a repairer (process substitute or edit) repairs: texts with errors, typed or given, and rows it corrupts.

An edit is a character that is replaced, left out or put in on the way from one text to another, by the alignment of the
two that needs the fewest. Of a text with errors those on the way to the clean text are needed and those on the way to
the repaired one were made; an edit is right where it is both.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from ..common import check_whole, finite, watched
from ..corpus.rows import RowCutter, collate
from ..detokenizing import Typed, edit_costs, edited_typed, restore_text
from ..objectives import wrong_rows
from ..randomness import RowRandom
from .bounds import ratio_with_stderr
from .typos import KINDS, make_typos

MIXED = "mixed"
"""What the texts are called whose errors are drawn from all the kinds that are measured."""


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """How a repairer (process substitute or edit) repairs texts: shares with one standard error each (None: no figure).

    restored: texts with errors that come back exactly. left_alone: clean texts that stay as they are.
    precision: of the edits that were made, those that are right. recall: of the edits that were needed, those that were
        made (see the head of the module). Both over the texts with errors; the standard error is one over texts.
    left_alone_rows, edits_made, edits_needed: of how many left_alone, precision and recall are the shares; restored is
        one of `rows`.
    out_of_reach: texts with errors that cannot be reached: they are more edits of a token away than `max_edits`, or by
        substitution have another number of tokens than the clean ones. They count as not restored.
    by_kind: of each kind of error (`typos.KINDS`, and "mixed" for all of them together, which the figures above are
        of), and of each number of errors: restored, restored_stderr, rows, out_of_reach. Empty where the noisy texts
        were given.
    max_edits: tokens that may be changed in a text. left_out: clean texts that could not be measured: no token
        of theirs may change, they are longer than the model reads, or have no room for so many errors.
    """

    restored: float
    restored_stderr: float
    left_alone: float
    left_alone_stderr: float
    left_alone_rows: int
    precision: float | None
    precision_stderr: float | None
    recall: float | None
    recall_stderr: float | None
    edits_made: int
    edits_needed: int
    out_of_reach: int
    rows: int
    left_out: int
    max_edits: int
    min_confidence: float | None
    by_kind: dict[str, dict[str, dict[str, Any]]]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return finite(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class TokenRepairReport:
    """How a model repairs rows that its own process corrupted, as shares of rows, each with one standard error.

    restored: rows with `errors` wrong tokens that come back exactly. left_alone: rows without an error that stay as
        they are.
    """

    restored: float
    restored_stderr: float
    left_alone: float
    left_alone_stderr: float
    errors: int
    rows: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return finite(dataclasses.asdict(self))


# --- texts -----------------------------------------------------------------------------------------------------------


def evaluate_repair(
    model,
    tokenizer,
    texts: Sequence[str],
    *,
    noisy: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    errors: int | Sequence[int] = (1, 2, 3),
    kinds: Collection[str] = KINDS,
    keyboard: float = 0.5,
    max_edits: int = 6,
    min_confidence: float | None = None,
    row_length: int | None = None,
    max_rows: int = 500,
    batch_size: int = 64,
    seed: int = 0,
) -> RepairReport:
    """Put typing errors into texts and repair them, greedily, as `udm repair` does; see `RepairReport`.

    The model is told neither the kind of the errors nor their number: all texts, the clean ones too, are repaired with
    the same `max_edits`.

    Args:
        tokenizer: the model's.
        texts: clean ones; of more than `max_rows` an evenly spaced choice is taken.
        noisy: of each text the one with errors, in place of typing errors (with which `errors`, `kinds` and `keyboard`
            are of no use); pairs that are equal are clean texts and no others.
        prompts: of a model of prompts and answers, whose answers the texts are.
        errors: how many in a text: text i of those chosen has `errors[i % len(errors)]`. kinds, keyboard: see
            `make_typos`. Every text is measured once with errors of all kinds, and once for each.
        max_edits: tokens that are changed in a text at most. Two letters that are swapped are two.
        min_confidence: see `UDMGenerationConfig`.
        row_length: tokens of a row in training, without those around it: a longer text is cut there, and left out where
            it is one of a pair.
        seed: of the errors.

    Raises:
        ValueError: for a model of another process, arguments that cannot be, and where no text can be measured.
    """
    check_repairs(model)
    check_whole(1, max_rows=max_rows, batch_size=batch_size, max_edits=max_edits)
    for name, others in (("noisy", noisy), ("prompts", prompts)):
        if others is not None and len(others) != len(texts):
            raise ValueError(f"{name} must have one entry a text: {len(others)} for {len(texts)}")
    numbers = list(errors) if isinstance(errors, Sequence) else [errors]
    if not numbers:
        raise ValueError("errors must say how many there are in a text, got none")
    chosen = [i * len(texts) // min(max_rows, len(texts)) for i in range(min(max_rows, len(texts)))]
    lines = _Lines.read(model, tokenizer, [texts[i] for i in chosen], prompts and [prompts[i] for i in chosen])
    if row_length is not None and noisy is None and prompts is None:
        lines = lines.of([lines.cut(i, row_length) for i in range(len(chosen))], range(len(chosen)))
    counts = [numbers[i % len(numbers)] for i in range(len(chosen))]
    if noisy is not None:
        wrong: dict[str, list[str | None]] = {MIXED: [noisy[i] for i in chosen]}
    else:
        wrong = _with_typos(lines.texts, counts, kinds, keyboard=keyboard, seed=seed, rows=chosen)
    first, *_ = wrong.values()
    kept = [i for i, text in enumerate(first) if text is not None and lines.fits(i, row_length)]
    if not kept:
        raise ValueError(
            f"none of the {len(chosen)} texts can be measured: they have no room for the errors, no token that may "
            "change, or more tokens than the model reads"
        )
    clean = lines.of([lines.texts[i] for i in kept], kept)
    noisy_lines = {kind: _Noisy.read(lines, these, kept, max_edits) for kind, these in wrong.items()}
    mixed, *_ = noisy_lines.values()
    if not mixed.place:
        raise ValueError("noisy is the same as the clean texts everywhere: there is nothing to repair")
    how: dict[str, Any] = {"max_edits": max_edits, "min_confidence": min_confidence, "batch_size": batch_size}
    left_alone = [a == b for a, b in zip(clean.repaired(seed=seed, **how), clean.texts, strict=True)]
    repaired = {
        kind: these.lines.repaired(seed=seed, skip=() if these is mixed else these.out_of_reach, **how)
        for kind, these in noisy_lines.items()
    }
    by_kind = {kind: _by_number(these, repaired[kind], counts) for kind, these in noisy_lines.items()}
    of_mixed, *_ = repaired.values()
    return RepairReport(
        **repair_figures(mixed.lines.texts, mixed.clean, of_mixed),
        **_share("left_alone", left_alone),
        left_alone_rows=len(left_alone),
        out_of_reach=len(mixed.out_of_reach),
        rows=len(mixed.place),
        left_out=len(chosen) - len(kept),
        max_edits=max_edits,
        min_confidence=min_confidence,
        by_kind={} if noisy is not None else by_kind,
        seed=seed,
    )


def _with_typos(texts: list[str], counts: list[int], kinds: Collection[str], **how: Any) -> dict[str, list[str | None]]:
    """The texts with so many errors each, by kind, those of all kinds first; None for one that has no room for them."""
    sets: dict[str, Collection[str]] = {MIXED: kinds} | {kind: (kind,) for kind in KINDS if kind in kinds}
    if len(sets) == 2:  # one kind alone
        del sets[MIXED]
    found: dict[str, list[str | None]] = {}
    for name, these in sets.items():
        typed = make_typos(texts, errors=counts, kinds=these, **how)
        found[name] = [None if one is None else one.text for one in typed]
    return found


def _by_number(these: _Noisy, repaired: Sequence[str], counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """How many texts with errors of a kind are restored, by how many errors there are; counts: of each clean text."""
    back, figures = these.restored(repaired), {}
    for number in sorted({*counts}):
        of = [at for at, i in enumerate(these.place) if counts[i] == number]
        unreached = sum(at in these.out_of_reach for at in of)
        shares = _share("restored", [back[at] for at in of])
        figures[str(number)] = {**shares, "rows": len(of), "out_of_reach": unreached}
    return figures


def check_repairs(model) -> None:
    """Raises ValueError for a model whose process repairs no text."""
    if "max_edits" not in model.config.build_process().generation_options:
        raise ValueError("repair needs a model of process 'substitute' or 'edit'")


class _Lines(NamedTuple):
    """Texts as a model reads them: the row of tokens of each, and of its own tokens where they stand in the text."""

    model: Any
    tokenizer: Any
    prompts: Sequence[str] | None
    texts: list[str]
    rows: list[list[int]]
    own: list[list[int]]
    spans: list[list[tuple[int, int]]]
    behind: int
    """Tokens of the frame behind a text."""
    framing: int
    """Tokens around text and prompt, and between them."""

    @classmethod
    def read(cls, model, tokenizer, texts: Sequence[str], prompts: Sequence[str] | None) -> _Lines:
        return cls(model, tokenizer, prompts, [], [], [], [], 0, 0).of(texts, range(len(texts)))

    def of(self, texts: Sequence[str], places: Sequence[int]) -> _Lines:
        """Other texts, behind the prompts of these places."""
        cutter = RowCutter(self.tokenizer, prompted=self.prompts is not None)
        how: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        fast = self.tokenizer.is_fast
        encoded: Any = {"input_ids": [], "offset_mapping": []}  # a tokenizer takes no empty list
        if texts:
            encoded = self.tokenizer(list(texts), return_offsets_mapping=fast, **how)
        prompts = self.prompts and [self.prompts[i] for i in places]
        before: list[list[int]] = [[]] * len(texts)
        if prompts:
            before = [[*ids, *cutter.separator] for ids in self.tokenizer(prompts, **how)["input_ids"]]
        own = encoded["input_ids"]
        rows = [[*cutter.prefix, *a, *b, *cutter.suffix] for a, b in zip(before, own, strict=True)]
        spans = encoded["offset_mapping"] if fast else []
        behind = len(cutter.suffix)
        framing = len(cutter.prefix) + len(cutter.separator) + behind
        return _Lines(self.model, self.tokenizer, prompts, list(texts), rows, own, spans, behind, framing)

    def cut(self, i: int, size: int) -> str:
        """What the first tokens of text i say, `size` of them at most."""
        if len(self.own[i]) <= size:
            return self.texts[i]
        if not self.spans:
            return self.tokenizer.decode(self.own[i][:size], skip_special_tokens=True)
        return self.texts[i][: self.spans[i][size - 1][1]]

    def fits(self, i: int, row_length: int | None = None) -> bool:
        """Whether row i can be repaired: a token may change, none is [MASK], and the model reads so many.

        row_length: tokens it may have without those around it.
        """
        config = self.model.config
        longest = config.max_row_length
        row = self.rows[i]
        if config.mask_token_id in row or (longest is not None and len(row) > longest):
            return False
        if row_length is not None and len(row) - self.framing > row_length:
            return False
        return config.count_editable([row])[0] > 0

    def repaired(
        self, *, max_edits: int, min_confidence: float | None, batch_size: int, seed: int, skip: Collection[int] = ()
    ) -> list[str]:
        """The repaired texts; those of rows that do not fit, and of those to skip, as they are."""
        config = self.model.config
        device = self.model.get_input_embeddings().weight.device
        result, moves = list(self.texts), config.build_process().edits
        asked = [i for i in range(len(result)) if i not in skip and self.fits(i)]
        asked.sort(key=lambda i: len(self.rows[i]))
        for start in watched(range(0, len(asked), batch_size), "repairs"):
            chosen = asked[start : start + batch_size]
            batch = collate([{"input_ids": self.rows[i]} for i in chosen], config.pad_token_id, config.editable)
            out = self.model.generate(
                batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                max_edits=max_edits,
                min_confidence=min_confidence,
                seed=seed,
                sample_index=torch.tensor(chosen),
                return_dict_in_generate=moves,
            )
            repaired = out.sequences if moves else out
            lengths = out.attention_mask.sum(dim=1).tolist() if moves else [len(self.rows[i]) for i in chosen]
            for i, row, length in zip(chosen, repaired.tolist(), lengths, strict=True):
                begin = len(self.rows[i]) - self.behind - len(self.own[i])
                result[i] = self._text(i, row[begin : length - self.behind])
        return result

    def _text(self, i: int, tokens: list[int]) -> str:
        """Text i with other tokens in place of its own."""
        if not self.spans:
            return self.texts[i] if tokens == self.own[i] else self.tokenizer.decode(tokens, skip_special_tokens=True)
        typed = Typed(self.texts[i], self.own[i], self.spans[i])
        if self.model.config.build_process().edits:
            typed = edited_typed(self.tokenizer, typed, tokens)
        return restore_text(self.tokenizer, *typed, tokens, [True] * len(tokens))


class _Noisy(NamedTuple):
    """Texts with errors, without those that have none: their lines, and of each the place of its clean text.

    out_of_reach: which of them no so many edits of the model's process restore.
    """

    lines: _Lines
    place: list[int]
    clean: list[str]
    out_of_reach: set[int]

    @classmethod
    def read(cls, clean: _Lines, texts: Sequence[str | None], kept: Sequence[int], max_edits: int) -> _Noisy:
        """texts: of each clean text the one with errors, or None; kept: the places of those to take."""
        place = [i for i in kept if texts[i] is not None and texts[i] != clean.texts[i]]
        lines = clean.of([texts[i] or "" for i in place], place)
        pairs = [(a, clean.own[i]) for a, i in zip(lines.own, place, strict=True)]
        if clean.model.config.build_process().edits:
            out = {at for at, (a, b) in enumerate(pairs) if len(edits(a, b)) > max_edits}
        else:
            out = {at for at, (a, b) in enumerate(pairs) if len(a) != len(b) or sum(map(operator.ne, a, b)) > max_edits}
        return cls(lines, place, [clean.texts[i] for i in place], out)

    def restored(self, repaired: Sequence[str]) -> list[bool]:
        return [a == b for a, b in zip(repaired, self.clean, strict=True)]


def _share(name: str, found: Sequence[bool]) -> dict[str, Any]:
    """The share of a list that is true, by name, and its standard error; nan of none."""
    share = sum(found) / len(found) if found else math.nan
    return {name: share, f"{name}_stderr": math.sqrt(share * (1 - share) / len(found)) if found else math.nan}


# --- edits -----------------------------------------------------------------------------------------------------------


def repair_figures(noisy: Sequence[str], clean: Sequence[str], repaired: Sequence[str]) -> dict[str, Any]:
    """restored, precision and recall of `RepairReport`, each with its `_stderr`, and the edits, of texts that anything
    repaired.

    Three lists of one length, of texts with errors. None where there is nothing to divide by.
    """
    back = [a == b for a, b in zip(repaired, clean, strict=True)]
    figures = _share("restored", back)
    found = [edit_counts(*three) for three in zip(noisy, clean, repaired, strict=True)]
    made, needed, right = torch.tensor(found, dtype=torch.float64).T
    for name, of in (("precision", made), ("recall", needed)):
        share, error = ratio_with_stderr(right, of) if bool(of.sum()) else (None, None)
        figures |= {name: share, f"{name}_stderr": error}
    return figures | {"edits_made": int(made.sum()), "edits_needed": int(needed.sum())}


def edit_counts(noisy: str, clean: str, repaired: str) -> tuple[int, int, int]:
    """How many edits were made on the way from a noisy text to the repaired one, were needed, and were right."""
    made, needed = edits(noisy, repaired), edits(noisy, clean)
    return len(made), len(needed), len(made & needed)


def edits(source: Sequence[Any], target: Sequence[Any]) -> set[tuple[int, int, Any]]:
    """The fewest edits of characters that make `target` of `source` (Levenshtein), as (place, number, character); of
    lists of tokens likewise.

    A character of the source that is replaced is (its place, 0, the new one), one that is left out (its place, 0, "");
    the n-th that is put in before place i is (i, n, the new one), n from 1. Of several alignments the one that replaces
    rather than leaves out and puts in, from the end of the texts; what they begin or end with alike is not touched.
    """
    begin, end, costs = edit_costs(source, target)
    a, b = source[begin : len(source) - end], target[begin : len(target) - end]
    found: set[tuple[int, int, Any]] = set()
    i, j = len(a), len(b)
    put_in: list[Any] = []

    def write() -> None:
        found.update((begin + i, n, c) for n, c in enumerate(reversed(put_in), start=1))
        put_in.clear()

    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + (a[i - 1] != b[j - 1]):
            write()
            i, j = i - 1, j - 1
            if a[i] != b[j]:
                found.add((begin + i, 0, b[j]))
        elif i and costs[i][j] == costs[i - 1][j] + 1:
            write()
            i -= 1
            found.add((begin + i, 0, ""))
        else:
            j -= 1
            put_in.append(b[j])
    write()
    return found


# --- rows ------------------------------------------------------------------------------------------------------------


def evaluate_token_repair(
    model, rows: Sequence[dict[str, Any]], *, errors: int = 1, max_rows: int = 500, batch_size: int = 64, seed: int = 0
) -> TokenRepairReport:
    """Corrupt each row in `errors` tokens by the model's own process and repair it, with as many edits and greedily.

    Any token of the vocabulary may be the wrong one, and the model is told how many there are: easier than what people
    type (`evaluate_repair`), and without a text or a tokenizer.

    Args:
        rows: each with "input_ids"; of more than `max_rows` an evenly spaced choice is taken.
        errors: wrong tokens of a row; rows with fewer tokens are left out. seed: which tokens are wrong, and how.
    """
    config, process = model.config, model.config.build_process()
    check_repairs(model)
    check_whole(1, errors=errors, max_rows=max_rows, batch_size=batch_size)
    check_whole(-(2**63), seed=seed)
    counted = config.count_editable(row["input_ids"] for row in rows)
    fit = [row for row, count in zip(rows, counted, strict=True) if count >= errors]
    if not fit:
        raise ValueError(f"there is no row with at least {errors} tokens to corrupt")
    fit = [fit[i * len(fit) // min(max_rows, len(fit))] for i in range(min(max_rows, len(fit)))]
    device = model.get_input_embeddings().weight.device
    counts = {"restored": 0, "left_alone": 0}
    for start in range(0, len(fit), batch_size):
        batch = collate(fit[start : start + batch_size], config.pad_token_id, config.editable)
        clean, mask, editable = (batch[name].to(device) for name in ("input_ids", "attention_mask", "editable"))
        random = RowRandom(seed, torch.arange(start, start + len(clean), device=device))
        number = torch.full((len(clean),), errors, device=device)
        wrong, attended = wrong_rows(process, clean, editable, mask, number, random)
        for name, given, there in (("restored", wrong, attended), ("left_alone", clean, mask)):
            out = model.generate(given, attention_mask=there, max_edits=errors, seed=seed, return_dict_in_generate=True)
            ends = out.attention_mask.sum(dim=1).tolist()
            rows_out = [row[:end] for row, end in zip(out.sequences.tolist(), ends, strict=True)]
            wanted = [row[:end] for row, end in zip(clean.tolist(), mask.sum(dim=1).tolist(), strict=True)]
            counts[name] += sum(map(operator.eq, rows_out, wanted))
    shares = {name: count / len(fit) for name, count in counts.items()}
    error = {f"{name}_stderr": math.sqrt(share * (1 - share) / len(fit)) for name, share in shares.items()}
    return TokenRepairReport(**shares, **error, errors=errors, rows=len(fit), seed=seed)
