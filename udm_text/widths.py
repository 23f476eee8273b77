"""Blanks: places of a row where any number of tokens is missing, and the law of how many.

A blank stands in the row as one [MASK] that is marked: an embedding of its own is added to its input. A head on the
last hidden state of the first one gives a law over widths 0..N. Blanks are opened from left to right, each into as many
[MASK] as its width, and the next one is asked about in the row as it then is:

    p(w_1 .. w_m) = prod_j p(w_j | the row with the blanks before j opened)

so the widths of a row have an exact price in nats, to which the bound of what fills them is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .common import eval_mode
from .decoding import NOT_FINITE, draw, tempered
from .devices import demand, reads_are_free
from .randomness import RowRandom

MOST_WIDTHS = 1 << 16
"""The widest blank of a model without a limit on its rows."""

_WIDTHS_SEED = 0x5749445448530000
"""Distinguishes the seed of the widths from that of what fills them."""


class WidthHead(nn.Module):
    """What a model knows of blanks: how they are marked in its input, and how wide the first one of a row is.

    Both are zero at the start: a pretrained backbone is unchanged, and all widths are as likely.

    Args:
        embedding_size: of the input embeddings. hidden_size: of the last hidden states. most: N, the largest width.
    """

    def __init__(self, embedding_size: int, hidden_size: int, most: int):
        super().__init__()
        self.blank_embedding = nn.Parameter(torch.zeros(embedding_size))
        self.head = nn.Linear(hidden_size, most + 1)

    def marks(self, blanks: Tensor) -> Tensor:
        """(B, L, E), what is added to the input embeddings of the blanks, (B, L) bool; zero elsewhere."""
        return blanks[..., None].to(self.blank_embedding.dtype) * self.blank_embedding

    def forward(self, hidden: Tensor, blanks: Tensor) -> Tensor:
        """(B, N + 1) logits of the width of the first blank of each row; of a row without one they mean nothing.

        hidden: (B, L, H), behind the last layer. blanks: (B, L) bool.
        """
        first = blanks.long().argmax(dim=1)
        return self.head(hidden[torch.arange(len(hidden), device=hidden.device), first])


# --- the law ---------------------------------------------------------------------------------------------------------


def read_widths(model: Any, tokens: Tensor, attention_mask: Tensor, blanks: Tensor) -> Tensor:
    """(B, N + 1) logits of the width of each row's first blank, by one call of the network and without its other head.

    tokens: (B, L) int64. attention_mask, blanks: (B, L) bool.
    """
    nowhere = torch.zeros(0, dtype=torch.int64, device=tokens.device)
    return model(
        input_ids=tokens,
        attention_mask=attention_mask.long(),
        t=(tokens == model.config.mask_token_id).sum(dim=1),
        positions=(nowhere, nowhere),
        blanks=blanks,
    ).width_logits


def width_law(logits: Tensor, at_least_one: Tensor, lengths: Tensor, longest: int | None) -> Tensor:
    """(B, N + 1) float64: log p of the widths 0..N of each row's first blank.

    A width that would make the row longer than the model reads is impossible, and so is 0 where there must be a token.
    A row without any possible width has no law (nan).

    Args:
        logits: (B, N + 1), of `read_widths`. at_least_one: (B,) bool, see `is_all_there_is`.
        lengths: (B,) int64, tokens of each row, its blanks one each. longest: what the model reads; None: any.
    """
    number = torch.arange(logits.shape[1], device=logits.device)
    possible = number >= at_least_one[:, None]
    if longest is not None:
        possible &= number <= (longest + 1 - lengths)[:, None]
    return logits.double().masked_fill(~possible, -torch.inf).log_softmax(dim=-1)


def is_all_there_is(model_config: Any, tokens: Tensor, attention_mask: Tensor, blanks: Tensor) -> Tensor:
    """(B,) bool: rows with one blank and nothing else that may change. It is not empty: there is no empty text.

    tokens: (B, L) int64. attention_mask, blanks: (B, L) bool.
    """
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    masks = (tokens == model_config.mask_token_id) & ~blanks & attention_mask
    masks &= columns >= model_config.answer_starts(tokens)[:, None]
    held = (model_config.editable(tokens, attention_mask) | masks).any(dim=1)
    return ~held & (blanks.sum(dim=1) == 1)


class Opened(NamedTuple):
    """Rows whose blanks are opened: tokens (B, L') int64, attention_mask (B, L') bool.

    widths: (B, m) int64 of the blanks of each row from left to right, -1 behind its last. nats: (B,) float64, -log p of
    them, under the model's own law. num_calls: of the network.
    """

    tokens: Tensor
    attention_mask: Tensor
    widths: Tensor
    nats: Tensor
    num_calls: int


Choose = Callable[[Tensor, Tensor, int], Tensor]
"""Called as choose(log_law (n, N + 1), rows (n,), number) for the number-th blank of some rows; gives widths (n,)."""


@torch.no_grad()
def open_blanks(
    model: Any,
    tokens: Tensor,
    attention_mask: Tensor,
    blanks: Tensor,
    choose: Choose,
    at_least_one: Tensor | None = None,
) -> Opened:
    """Opens the blanks of rows from left to right, the first ones of all rows by one network call, then the second.

    Args:
        model: a `UDMForMaskedGeneration` with a width head.
        tokens: (B, L) int64, [MASK] where there is a blank. attention_mask, blanks: (B, L) bool.
        choose: says the width of each. One that is impossible costs infinite nats, and the likeliest takes its place.
        at_least_one: (B,) bool, rows whose blanks are not empty for a reason of the caller's.

    Raises:
        ValueError: where the logits of the network are no law.
    """
    config = model.config
    nats = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    widths: list[Tensor] = []
    with eval_mode(model):
        while len(asked := blanks.any(dim=1).nonzero()[:, 0]):
            rows = tokens[asked], attention_mask[asked], blanks[asked]
            logits = read_widths(model, *rows)
            demand(logits.isfinite(), NOT_FINITE)
            filled = is_all_there_is(config, *rows)
            filled = filled if at_least_one is None else filled | at_least_one[asked]
            law = width_law(logits, filled, rows[1].sum(dim=1), config.max_row_length)
            width = choose(law, asked, len(widths))
            price = -law.gather(1, width.clamp(max=law.shape[1] - 1)[:, None])[:, 0]
            price = price.masked_fill(width >= law.shape[1], torch.inf)
            width = torch.where(price.isinf(), law.argmax(dim=1), width)
            nats = nats.index_add(0, asked, price)
            widths.append(torch.full_like(tokens[:, 0], -1).index_copy(0, asked, width))
            tokens, attention_mask, blanks = open_first(config, tokens, attention_mask, blanks, widths[-1])
    found = torch.stack(widths, dim=1) if widths else tokens.new_zeros(len(tokens), 0)
    return Opened(tokens, attention_mask, found, nats, len(widths))


def open_first(
    model_config: Any, tokens: Tensor, attention_mask: Tensor, blanks: Tensor, widths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (B, L') with as many [MASK] as `widths` (B,) int64 says in place of their first blank; the rest as it was.

    Returns tokens, attention_mask and blanks; a row without a blank is only padded.
    """
    length, columns = tokens.shape[1], torch.arange(tokens.shape[1], device=tokens.device)
    here = blanks.any(dim=1)
    first = torch.where(here, blanks.long().argmax(dim=1), length)[:, None]
    width = torch.where(here, widths, 1)[:, None]
    lengths = attention_mask.sum(dim=1, keepdim=True) + width - 1
    columns = torch.arange(int(lengths.max()), device=tokens.device)
    inside = (columns >= first) & (columns < first + width)
    source = torch.where(columns < first, columns, columns - width + 1).clamp(0, length - 1)
    attended = columns < lengths
    pad = model_config.pad_token_id or 0
    opened = tokens.gather(1, source).masked_fill(inside, model_config.mask_token_id).masked_fill(~attended, pad)
    return opened, attended, blanks.gather(1, source) & ~inside & attended


def drawn_widths(random: RowRandom, temperature: float) -> Choose:
    """Widths by numbers of each row's own, apart from those of `random`; at temperature 0 the likeliest."""
    own = RowRandom(random.seed ^ _WIDTHS_SEED, random.rows)

    def choose(law: Tensor, rows: Tensor, number: int) -> Tensor:
        return draw(tempered(law, temperature=temperature), own.uniform(1)[rows, 0])

    return choose


def width_nats(model: Any, tokens: Tensor, attention_mask: Tensor, blanks: Tensor, widths: Tensor) -> Tensor:
    """(B,) float64: -log p of the widths of each row's blanks, exact; infinite where the model never draws them.

    tokens: (B, L) int64, [MASK] where there is a blank. attention_mask, blanks: (B, L) bool. widths: (B, m) int64 from
    left to right, anything behind the last blank of a row.

    Raises:
        ValueError: where a row has more blanks than widths, or a width below 0.
    """
    counts = blanks.sum(dim=1, keepdim=True)
    needed = torch.arange(widths.shape[1], device=widths.device) < counts
    if int(counts.max()) > widths.shape[1] or bool(((widths < 0) & needed).any()):
        raise ValueError(
            f"widths must hold a number that is at least 0 for each of up to {int(counts.max())} blanks of a row, got "
            f"{widths.tolist()}"
        )
    return open_blanks(model, tokens, attention_mask, blanks, lambda law, rows, number: widths[rows, number]).nats


# --- blanks in place of text -----------------------------------------------------------------------------------------


def text_region(model_config: Any, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) int64 each: where the text of a row, or its answer, begins, and the column behind its end.

    It lies between what the tokenizer puts around it. A row of a model of prompts without a separator has none.
    """
    ends = attention_mask.sum(dim=1)
    suffix = torch.tensor(model_config.suffix_token_ids, dtype=torch.int64).to(tokens.device, non_blocking=True)
    last = (ends[:, None] - len(suffix) + torch.arange(len(suffix), device=tokens.device)).clamp(min=0)
    ends = ends - len(suffix) * (tokens.gather(1, last) == suffix).all(dim=1)
    if model_config.prompted:
        starts = model_config.answer_starts(tokens)
    else:
        starts = torch.full_like(ends, len(model_config.prefix_token_ids))
    return starts.minimum(ends), ends


class Collapsed(NamedTuple):
    """Rows in which spans have become blanks: tokens (B, L') int64; attention_mask, blanks (B, L') bool; lengths (B,).

    Of a row whose length is above L' a part is missing.
    """

    tokens: Tensor
    attention_mask: Tensor
    blanks: Tensor
    lengths: Tensor


def collapse(
    model_config: Any, tokens: Tensor, attention_mask: Tensor, starts: Tensor, widths: Tensor, spans: Tensor
) -> Collapsed:
    """Rows with one [MASK] in place of each of up to m spans, as a blank stands in the row.

    Args:
        tokens: (B, L) int64. attention_mask: (B, L) bool, ones, then zeros.
        starts, widths: (B, m) int64, the first column of each span and its tokens, 0 or more: of one without tokens the
            blank is put in before that column. From left to right, and none inside another.
        spans: (B, m) bool, those that become blanks.
    """
    rows, length = tokens.shape
    columns, ends = torch.arange(length, device=tokens.device), starts + widths
    grows = (1 - widths) * spans
    dropped, place = ~attention_mask, columns.expand(rows, -1)
    for k in range(spans.shape[1]):
        behind = columns >= ends[:, k, None]
        dropped = dropped | (spans[:, k, None] & (columns >= starts[:, k, None]) & ~behind)
        place = place + grows[:, k, None] * behind
    lengths = attention_mask.sum(dim=1) + grows.sum(dim=1)
    size = length + spans.shape[1]
    if model_config.max_row_length is not None:
        size = min(size, model_config.max_row_length)
    if reads_are_free(tokens.device) and rows:
        size = min(size, int(lengths.max()))
    # what goes, and what has no room, is written into a column that is cut off
    place = place.masked_fill(dropped, size).clamp(max=size)
    spots = (starts + grows.cumsum(dim=1) - grows).masked_fill(~spans, size).clamp(max=size)
    pad = model_config.pad_token_id or 0
    made = torch.full((rows, size + 1), pad, device=tokens.device).scatter(1, place, tokens)
    made = made.scatter(1, spots, model_config.mask_token_id)[:, :size]
    blanks = torch.zeros(rows, size + 1, dtype=torch.bool, device=tokens.device).scatter(1, spots, True)[:, :size]
    return Collapsed(made, torch.arange(size, device=tokens.device) < lengths[:, None], blanks, lengths)


def as_one_blank(model_config: Any, tokens: Tensor, attention_mask: Tensor) -> Collapsed:
    """Rows (B, L) with all of their text, or of their answer, as one blank."""
    starts, ends = text_region(model_config, tokens, attention_mask)
    whole = torch.ones_like(starts[:, None], dtype=torch.bool)
    return collapse(model_config, tokens, attention_mask, starts[:, None], (ends - starts)[:, None], whole)


# --- what a call gives -----------------------------------------------------------------------------------------------


def check_blanks(
    model_config: Any, input_ids: Tensor | None, attention_mask: Tensor | None, blanks: Any, given: dict[str, Any]
) -> Tensor | None:
    """(B, L) bool on the device of the rows, or None where no blanks are given.

    given: the arguments of the call that say how long a row becomes, those that are not None.

    Raises:
        ValueError: where they cannot be blanks of these rows and this model.
    """
    if blanks is None:
        return None
    if input_ids is None or attention_mask is None:
        raise ValueError("blanks is given without input_ids, in which it marks [MASK] tokens")
    if not isinstance(blanks, Tensor) or blanks.shape != input_ids.shape or blanks.dtype != torch.bool:
        got = f"{tuple(blanks.shape)} {blanks.dtype}" if isinstance(blanks, Tensor) else type(blanks).__name__
        raise ValueError(f"blanks must be a bool tensor of the shape {tuple(input_ids.shape)} of input_ids, got {got}")
    blanks = blanks.to(input_ids.device)
    if not bool(blanks.any()):
        return None
    if model_config.blank_widths is None:
        raise ValueError(
            "blanks need a model with a width head, and blank_widths of this one is None: train it with `udm train "
            "--blanks`, or write as many [MASK] as are missing"
        )
    wrong = (blanks & ~((input_ids == model_config.mask_token_id) & attention_mask)).nonzero().tolist()
    if wrong:
        row, column = wrong[0]
        raise ValueError(
            f"blanks must mark [MASK] tokens, id {model_config.mask_token_id}, and row {row} of input_ids has token "
            f"{int(input_ids[row, column])} at position {column}"
        )
    if given:
        name = next(iter(given))
        raise ValueError(
            f"the input holds blanks, whose widths the model draws: {name}={given[name]} does not apply; write as many "
            "[MASK] as you want"
        )
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    inside = (blanks & (columns < model_config.answer_starts(input_ids)[:, None])).any(dim=1)
    if bool(inside.any()):
        raise ValueError(
            f"the prompt of row {int(inside.nonzero()[0])} of input_ids holds a blank, and this model fills in answers "
            f"alone: give a prompt without it, or the blank behind the separator {model_config.separator_token_ids}"
        )
    return blanks
