"""What trains a width head: blanks in clean rows, and a question about the width of one of them.

A quarter of the rows of a step is asked about. Of such a row spans are drawn at random and become blanks, or all of its
text is one. One of the blanks is asked about, in the row as generation asks about it: those before it opened into
[MASK], those behind it blanks still. The questions go through the network behind the corrupted rows, in the same call,
so that a wrapper of it sees one call a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..randomness import RowRandom
from ..widths import Collapsed, collapse, text_region, width_law

BLANKS_SEED = 0x424C414E4B530000
"""Distinguishes the seed of the blanks in training from that of the noise."""
ASKED_EVERY = 4
"""One row of so many is asked about in a step, and what it costs counts as many times: a row more takes time."""
MOST_BLANKS = 3
"""Blanks of a row, at most."""
WHOLE_SHARE = {True: 0.5, False: 0.125}
"""Share of rows whose text is one blank, by whether rows have prompts: an answer is asked for so whenever one is."""


class Spans(NamedTuple):
    """Spans that become blanks: starts, widths (B, m) int64, from left to right; used (B, m) bool; asked (B,) int64.

    starts: columns of the row. asked: the span whose width is asked about.
    """

    starts: Tensor
    widths: Tensor
    used: Tensor
    asked: Tensor


class Questions(NamedTuple):
    """Rows with blanks (see `Collapsed`); the width of the first blank of each, (B,) int64; whether it is asked, (B,).

    at_least_one: (B,) bool, rows where it is all there is. A row is not asked about where it, or what comes of it, is
    longer than the model reads, and where a width is above the largest.
    """

    rows: Collapsed
    widths: Tensor
    asked: Tensor
    at_least_one: Tensor


def draw_spans(model_config: Any, x0: Tensor, attention_mask: Tensor, editable: Tensor, random: RowRandom) -> Spans:
    """Spans of clean rows: with the chance of `WHOLE_SHARE` the text as a whole, else one to three, none in another.

    The text is cut into as many parts, at places drawn alike, and each holds one span: its width w has a chance in
    proportion to log((w + 2)/(w + 1)), from 0 to all of the part, so that short ones are frequent and every octave is
    about as likely; its place is any. A span ends before a token that may not change, and is not wider than the model
    knows.

    Args:
        x0: (B, L) int64. attention_mask, editable: (B, L) bool.
        random: one draw is taken of it.
    """
    rows, device = len(x0), x0.device
    u_whole, u_count, u_asked, *rest = random.uniform(3 + (MOST_BLANKS - 1) + 2 * MOST_BLANKS).unbind(dim=1)
    u_cut = torch.stack(rest[: MOST_BLANKS - 1], dim=1)
    u_width, u_place = torch.stack(rest[MOST_BLANKS - 1 :], dim=1).split(MOST_BLANKS, dim=1)
    number = torch.arange(MOST_BLANKS, device=device)

    first, behind = text_region(model_config, x0, attention_mask)
    length = behind - first
    whole = u_whole < WHOLE_SHARE[model_config.prompted]
    count = torch.where(whole, 1, (u_count * MOST_BLANKS).long() + 1)
    used = number < count[:, None]

    cuts = (u_cut * (length + 1)[:, None]).long()  # those behind the last part are at the end
    cuts = torch.where(number[1:] < count[:, None], cuts, length[:, None]).sort(dim=1).values
    cuts = torch.cat((torch.zeros(rows, 1, dtype=torch.int64, device=device), cuts, length[:, None]), dim=1)
    part = cuts[:, 1:] - cuts[:, :-1]
    widths = ((part + 2).double() ** u_width).long() - 1
    widths = torch.where(whole[:, None], part, widths.minimum(part))
    starts = cuts[:, :-1] + (u_place * (part - widths + 1)).long().minimum(part - widths) + first[:, None]

    columns = torch.arange(x0.shape[1], device=device)
    ends = torch.where(editable, x0.shape[1], columns).flip(1).cummin(dim=1).values.flip(1)  # of runs that may change
    room = pad(ends, (0, 1), value=x0.shape[1]).gather(1, starts) - starts
    widths = torch.where(whole[:, None], widths, widths.minimum(room).clamp(max=model_config.blank_widths))
    return Spans(starts, widths, used, (u_asked * count).long().minimum(count - 1))


def ask_widths(model_config: Any, x0: Tensor, attention_mask: Tensor, editable: Tensor, random: RowRandom) -> Questions:
    """One question about each of some clean rows. The arguments are those of `draw_spans`."""
    starts, widths, used, asked = draw_spans(model_config, x0, attention_mask, editable, random)
    number, columns = torch.arange(MOST_BLANKS, device=x0.device), torch.arange(x0.shape[1], device=x0.device)
    opened = used & (number < asked[:, None])
    inside = (columns >= starts[..., None]) & (columns < (starts + widths)[..., None]) & opened[..., None]
    shown = x0.masked_fill(inside.any(dim=1), model_config.mask_token_id)
    closed = used & ~opened
    rows = collapse(model_config, shown, attention_mask, starts, widths, closed)
    # the text as one blank is as long as what of it may change
    lengths, spans = editable.sum(dim=1), widths.gather(1, asked[:, None])[:, 0]
    whole = (used.sum(dim=1) == 1) & (spans >= lengths)
    wanted = torch.where(whole, lengths, spans)
    alone = (closed.sum(dim=1) == 1) & (lengths <= (widths * closed).sum(dim=1))
    fits = (wanted <= model_config.blank_widths) & (lengths > 0)
    if model_config.max_row_length is not None:
        longest = rows.lengths.maximum(rows.lengths - 1 + wanted)
        fits &= longest <= model_config.max_row_length
    return Questions(rows, wanted, fits, alone)


def asked_rows(places: list[int], step: int) -> list[int]:
    """Which of some rows are asked about in a step, by their places in its global batch: every fourth, in turn."""
    return [i for i, place in enumerate(places) if (place + step) % ASKED_EVERY == 0]


class WithQuestions:
    """predict(...) of corrupted rows, as `row_losses` calls it, that puts questions to the network in the same call.

    Args:
        read: called as read(mask, input_ids=..., blanks=..., ...), gives the output of the network.
        mask: (B, L), of the corrupted rows.
        rows: (n,) int64, those of the batch that the questions are about.
    """

    def __init__(self, model_config: Any, read: Callable[..., Any], mask: Tensor, questions: Questions, rows: Tensor):
        self.config, self.read, self.mask, self.questions, self.rows = model_config, read, mask, questions, rows
        self.logits: Tensor | None = None

    def __call__(self, *, input_ids: Tensor, t: Tensor, num_editable: Tensor, **wanted: Any) -> Tensor:
        """The logits of the corrupted rows; those of the widths are kept."""
        config, (tokens, attended, blanks, _) = self.config, self.questions.rows
        width = max(input_ids.shape[1], tokens.shape[1])

        def together(one: Tensor, other: Tensor, value: Any = 0) -> Tensor:
            parts = (pad(part, (0, width - part.shape[1]), value=value) for part in (one, other))
            return torch.cat(tuple(parts))

        masks = tokens == config.mask_token_id
        if config.time_conditioning:
            own = (config.editable(tokens, attended) | masks).sum(dim=1)
            wanted["num_editable"] = torch.cat((num_editable, own))
        output = self.read(
            together(self.mask, attended.to(self.mask.dtype)),
            input_ids=together(input_ids, tokens, config.pad_token_id or 0),
            blanks=together(torch.zeros_like(input_ids, dtype=torch.bool), blanks),
            t=torch.cat((t, masks.sum(dim=1))),
            **wanted,
        )
        self.logits = output.width_logits[len(input_ids) :]
        return output.logits

    def nats(self) -> Tensor:
        """(B,) float64: an unbiased estimate of -log p of the width of a blank of each row, 0 where none was asked."""
        assert self.logits is not None  # after the call
        rows, widths, asked, at_least_one = self.questions
        lengths = rows.lengths.masked_fill(~asked, 0)  # a row that is too long has no law
        law = width_law(self.logits, at_least_one, lengths, self.config.max_row_length)
        known = torch.where(asked, widths, law.detach().argmax(dim=1))
        nats = -law.gather(1, known[:, None])[:, 0].where(asked, torch.zeros_like(law[:, 0]))
        return torch.zeros(len(self.mask), dtype=nats.dtype, device=nats.device).index_add(
            0, self.rows, ASKED_EVERY * nats
        )
