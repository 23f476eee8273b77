"""The rows that generation works on: what stands in them, what of it may change, and how much is corrupted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .decoding import draw
from .randomness import RowRandom

MOST_TOKENS = 1 << 20
"""Tokens of a row at most, of models that read rows of any length; and rows of a call at most."""
_MOST_EDITS = 64
"""Edits of a short text at most, where they put tokens in, too."""


class GenerationInputs(NamedTuple):
    """Rows to work on, all (B, L): tokens, what may change, where there is a token; start (B,): corrupted positions.

    keep_tokens: what stands at the editable positions is where the walk begins (repair); else it is drawn.
    """

    tokens: Tensor
    editable: Tensor
    attention_mask: Tensor
    start: Tensor
    keep_tokens: bool = False


def check_inputs(
    model_config, input_ids, attention_mask, token_type_ids, device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(input_ids int64, attention_mask bool) on the device of the model, or (None, None)."""
    if input_ids is None:
        if attention_mask is not None:
            raise ValueError("attention_mask is given without input_ids")
        return None, None
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        tensor = isinstance(input_ids, Tensor)
        got = f"{tuple(input_ids.shape)} {input_ids.dtype}" if tensor else type(input_ids).__name__
        raise ValueError(f"input_ids must be a (B, L) tensor of integers, got {got}")
    input_ids = input_ids.to(device, torch.int64)
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < model_config.vocab_size:
        raise ValueError(
            f"input_ids must lie in [0, {model_config.vocab_size}), the vocabulary of the model, got "
            f"{int(input_ids.min())} to {int(input_ids.max())}"
        )
    if token_type_ids is not None:
        if not isinstance(token_type_ids, Tensor):
            raise ValueError(f"token_type_ids must be a tensor of zeros, got {type(token_type_ids).__name__}")
        if bool(token_type_ids.any()):
            raise ValueError("token_type_ids must hold zeros: a row has one segment")
    if attention_mask is None:
        pad = model_config.pad_token_id
        attention_mask = torch.ones_like(input_ids) if pad is None else input_ids != pad
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"attention_mask must be a tensor of the shape of input_ids, got {type(attention_mask).__name__}"
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape {tuple(input_ids.shape)} of input_ids, got "
            f"{tuple(attention_mask.shape)}"
        )
    given = attention_mask.to(device)
    attention_mask = given.bool()
    if bool((given != attention_mask).any()):
        raise ValueError("attention_mask must hold 1 where there is a token and 0 elsewhere, got other values")
    if (attention_mask[:, 1:] & ~attention_mask[:, :-1]).any():
        raise ValueError("attention_mask must be right-padded: ones, then zeros (tokenizer.padding_side = 'right')")
    return input_ids, attention_mask


class BlankRows(NamedTuple):
    """Rows that hold blanks, or are given one: tokens (B, L) int64; attention_mask, blanks (B, L) bool.

    at_least_one: (B,) bool, rows that were given one behind what they hold, which is not to be empty.
    """

    tokens: Tensor
    attention_mask: Tensor
    blanks: Tensor
    at_least_one: Tensor


def find_blanks(
    model_config,
    config,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    blanks: Tensor | None,
    random: RowRandom,
) -> BlankRows | None:
    """The rows with their blanks; None where no width is to be drawn.

    To a model of prompts and answers with a width head a row without [MASK] is a prompt and one blank, where neither
    length nor max_new_tokens is given: the width of its answer depends on the prompt.

    blanks: (B, L) bool, those that are given (`widths.check_blanks`). random: of the B rows.
    """
    free = config.length is None and config.max_new_tokens is None
    if model_config.blank_widths is None or (blanks is None and not (model_config.prompted and free)):
        return None
    if input_ids is None or attention_mask is None:
        prompts = [list(model_config.prefix_token_ids) for _ in random.rows]
        marks: list[list[bool]] = [[False] * len(row) for row in prompts]
    else:
        prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask, strict=True)]
        where = torch.zeros_like(attention_mask) if blanks is None else blanks
        marks = [mark[keep].tolist() for mark, keep in zip(where, attention_mask, strict=True)]
    grows = [model_config.prompted and free and model_config.mask_token_id not in row for row in prompts]
    if blanks is None and not any(grows):
        return None
    suffix = model_config.suffix_token_ids
    for i in (i for i, new in enumerate(grows) if new):
        row, _ = _open_row(model_config, prompts[i])
        prompts[i] = [*row, model_config.mask_token_id, *suffix]
        marks[i] = [*[False] * len(row), True, *[False] * len(suffix)]
    lengths = [len(row) for row in prompts]
    _check_width(model_config, max(lengths))
    if len(set(lengths)) > 1:
        _demand_padding(model_config)
    pad, filler = torch.nn.utils.rnn.pad_sequence, model_config.pad_token_id or 0
    made = (
        pad([torch.tensor(row, dtype=torch.int64) for row in prompts], batch_first=True, padding_value=filler),
        pad([torch.ones(length, dtype=torch.bool) for length in lengths], batch_first=True),
        pad([torch.tensor(mark, dtype=torch.bool) for mark in marks], batch_first=True),
        torch.tensor(grows),
    )
    return BlankRows(*(part.to(random.rows.device) for part in made))


def make_inputs(
    model_config,
    config,
    input_ids,
    attention_mask,
    random: RowRandom,
    given_by_caller,
    opened: Tensor | None = None,
) -> GenerationInputs:
    """The rows, and which of the four uses each of them is. given_by_caller: the length arguments of this very call.

    opened: (B,) bool, rows whose blanks have been opened: they are filled in, if there is a [MASK] left in them.
    """
    uniforms = random.uniform(1)[:, 0]  # for the lengths; drawn always, so that a row's later numbers are the same
    mask_id = model_config.mask_token_id
    masked = None if input_ids is None or mask_id is None else (input_ids == mask_id) & attention_mask
    if masked is not None and model_config.prompted:
        _check_prompts(model_config, input_ids, masked)
    process = model_config.build_process()
    inserts = process.inserts
    infill = [] if masked is None else masked.any(dim=1).tolist()
    if opened is not None:
        infill = [a or b for a, b in zip(infill, opened.tolist(), strict=True)]
    if config.max_edits is not None:
        if input_ids is None:
            raise ValueError("max_edits repairs a given text: give input_ids")
        if any(infill):
            instead = "give a text without it" if process.edits else "leave max_edits away to fill the masks in"
            raise ValueError(f"max_edits repairs a text without [MASK]; {instead}")
        if config.max_new_tokens is not None or config.length is not None:
            raise ValueError("max_edits repairs a text, which keeps its length: max_new_tokens and length do not apply")
        editable = model_config.editable(input_ids, attention_mask)
        most = editable.sum(1)
        if process.edits:  # a text may be edited more often than it has tokens, but not without end
            most = (2 * most).clamp(min=_MOST_EDITS) * (most > 0)
        start = most.clamp(max=config.max_edits)
        inputs = GenerationInputs(input_ids, editable, attention_mask, start, True)
    else:
        if (
            any(infill)
            and not inserts
            and (wrong := [name for name in given_by_caller if getattr(config, name) is not None])
        ):
            raise ValueError(f"the input holds [MASK], which are filled in: {wrong[0]} does not apply")
        if masked is not None and infill and all(infill) and not inserts:
            inputs = GenerationInputs(input_ids, masked, attention_mask, masked.sum(1))
        else:
            inputs = _extend(model_config, config, input_ids, attention_mask, infill, uniforms, inserts)
    widths = inputs.attention_mask.sum(dim=1)
    if inserts:  # blanks have room for more tokens than come
        widths = widths - inputs.editable.sum(dim=1) + inputs.start
    _check_width(model_config, int(widths.max()) if inputs.attention_mask.numel() else 0)
    empty = ((inputs.start == 0) & (True if opened is None else ~opened)).nonzero()[:, 0]
    if len(empty) and model_config.prompted and config.max_edits is not None:
        raise ValueError(
            f"row {int(empty[0])} of input_ids has no answer to repair: this model repairs what stands behind the "
            f"separator {model_config.separator_token_ids} of a prompt and its answer"
        )
    if len(empty):
        raise ValueError(
            f"row {int(empty[0])} of input_ids has no editable position: give [MASK] tokens to fill in, max_new_tokens "
            "to continue, or max_edits to repair a text"
        )
    if process.edits:
        tokens, attended, editable, _ = process.widen(inputs.tokens, inputs.editable, inputs.attention_mask, start)
        inputs = inputs._replace(tokens=tokens, attention_mask=attended, editable=editable)
    return inputs


def _check_width(model_config, width: int) -> None:
    """Raises ValueError for a row that is longer than the model reads; of a model without a limit, for absurd ones."""
    longest = model_config.max_row_length
    if width > (MOST_TOKENS if longest is None else longest):
        reads = f"reads at most {longest}" if longest is not None else f"names no limit, so that {MOST_TOKENS} is it"
        raise ValueError(
            f"input_ids with what is to be generated make a row of {width} tokens, and the model {reads}: shorten the "
            "input, or give a smaller length or max_new_tokens"
        )


def _demand_padding(model_config) -> None:
    """Raises ValueError where the model has nothing to put behind the shorter ones of rows of different lengths."""
    if model_config.pad_token_id is None:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")


def _check_prompts(model_config, input_ids: Tensor, masked: Tensor) -> None:
    """A model of prompts and answers fills in answers only."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    wrong = (masked & (columns < model_config.answer_starts(input_ids)[:, None])).any(dim=1).nonzero()[:, 0]
    if len(wrong):
        raise ValueError(
            f"the prompt of row {int(wrong[0])} of input_ids holds [MASK], and this model fills in answers alone: give "
            f"a prompt without it, or the [MASK] behind the separator {model_config.separator_token_ids}"
        )


def _open_row(model_config, row: list[int]) -> tuple[list[int], int]:
    """The row that new tokens go behind, and where the text that they lengthen begins in it.

    It loses the tokenizer's suffix. A prompt without a separator gets one, and its answer is still empty; with one, the
    answer is begun.
    """
    prefix, suffix, start = model_config.prefix_token_ids, model_config.suffix_token_ids, model_config.answer_start(row)
    n, begin = len(suffix), len(prefix) if row[: len(prefix)] == prefix else 0  # one token may begin a row and end it
    ends = n and row[-n:] == suffix and len(row) - n >= max(start or 0, begin)
    row = row[:-n] if ends else list(row)
    if start is None:
        row += model_config.separator_token_ids
        start = len(row)
    return row, start


def _extend(
    model_config, config, input_ids, attention_mask, infill: list[bool], uniforms: Tensor, inserts: bool = False
) -> GenerationInputs:
    """Rows with new editable positions behind their prompt (or from nothing), framed as the tokenizer frames rows.

    Of a model of prompts and answers they stand behind prompt and separator, or behind the answer that is begun. Rows
    that hold [MASK] stand among them as they are, their masks editable. Where the model inserts, a run of [MASK] is a
    blank, in which any of the new tokens may come to stand, and has room for all of them.
    """
    prefix, suffix = model_config.prefix_token_ids, model_config.suffix_token_ids
    mask_id, device, rows = model_config.mask_token_id, uniforms.device, len(uniforms)
    if config.length is not None and config.max_new_tokens is not None:
        raise ValueError("give length (of the whole row) or max_new_tokens (behind the prompt), not both")
    infill = infill or [False] * rows
    if input_ids is None:
        prompts = [list(prefix)] * rows
    else:
        prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask, strict=True)]
    open_rows = [
        (row, (model_config.answer_start(row) or 0) if inserts else 0) if whole else _open_row(model_config, row)
        for row, whole in zip(prompts, infill, strict=True)
    ]
    prompts = [row for row, _ in open_rows]
    new = _count_new(model_config, config, open_rows, [whole and not inserts for whole in infill], uniforms)
    filler = mask_id if mask_id is not None else 0
    behind = [0 if whole else len(suffix) for whole in infill]
    blanks = [row.count(mask_id) if whole and inserts else 0 for row, whole in zip(prompts, infill, strict=True)]
    widths = [len(row) - k + n + m for row, k, n, m in zip(prompts, blanks, new.tolist(), behind, strict=True)]
    _check_width(model_config, max(widths))  # before anything of that size is built
    tokens, editable = [], []
    for row, whole, count in zip(prompts, infill, new.tolist(), strict=True):
        if whole and inserts:
            row, count = _open_blanks(row, mask_id, count), 0
        tail = [] if whole else suffix
        tokens.append(torch.tensor(row + [filler] * count + tail, dtype=torch.int64))
        changing = [whole and token == mask_id for token in row]
        editable.append(torch.tensor(changing + [True] * count + [False] * len(tail), dtype=torch.bool))
    if len({len(row) for row in tokens}) > 1:
        _demand_padding(model_config)
    pad = torch.nn.utils.rnn.pad_sequence
    attended = pad([torch.ones(len(row), dtype=torch.bool) for row in tokens], batch_first=True)
    marked = pad(editable, batch_first=True)
    return GenerationInputs(
        pad(tokens, batch_first=True, padding_value=model_config.pad_token_id or 0).to(device),
        marked.to(device),
        attended.to(device),
        new if inserts else marked.sum(dim=1).to(device),
    )


def _open_blanks(row: list[int], mask_id: int, count: int) -> list[int]:
    """The row with `count` [MASK] in place of each run of them."""
    opened: list[int] = []
    for i, token in enumerate(row):
        if token != mask_id:
            opened.append(token)
        elif i == 0 or row[i - 1] != mask_id:
            opened += [mask_id] * count
    return opened


def _count_new(
    model_config, config, open_rows: list[tuple[list[int], int]], infill: list[bool], uniforms: Tensor
) -> Tensor:
    """(B,) int64: tokens that each row is given, none where it is filled in.

    open_rows: the rows, each with where its text begins.
    """
    device = uniforms.device
    grows = ~torch.tensor(infill, dtype=torch.bool, device=device)
    special = set(model_config.special_token_ids)
    held = torch.tensor([sum(token not in special for token in row[start:]) for row, start in open_rows], device=device)
    for row, count, whole in zip(open_rows, held.tolist(), infill, strict=True):  # before any such row is built
        added = config.max_new_tokens or max(0, (config.length or 0) - count)
        if added and not whole:
            _check_width(model_config, len(row[0]) + int(added) + len(model_config.suffix_token_ids))
    if config.max_new_tokens is not None:
        return config.max_new_tokens * grows
    if config.length is not None:
        if bool(((held >= config.length) & grows).any()):
            raise ValueError(f"length is {config.length}, and a prompt has {int(held[grows].max())} tokens already")
        return (config.length - held) * grows
    distribution = model_config.length_probabilities()
    if distribution is None:
        raise ValueError(
            "length is not given and the model has no training lengths (length_counts): give length, or max_new_tokens "
            "with a prompt"
        )
    distribution = distribution.to(device)
    top = torch.full_like(held, len(distribution) - 1)
    if model_config.max_row_length is not None:
        used = torch.tensor([len(row) for row, _ in open_rows], device=device) + len(model_config.suffix_token_ids)
        top = top.minimum(held + model_config.max_row_length - used)
    if bool(((held >= top) & grows).any()):
        texts = "answers" if model_config.prompted else "rows"
        full = ((held >= top) & grows).nonzero()[:, 0].tolist()
        longest = max(len(open_rows[i][0]) if model_config.prompted else int(held[i]) for i in full)
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room: {texts} of this model have at most "
            f"{max(0, int(top[grows].min()))}, by twice the longest training row or by what the model can read; "
            "shorten it, or give max_new_tokens"
        )
    number = torch.arange(len(distribution), device=device)
    possible = (number > held[:, None]) & (number <= top[:, None]) & grows[:, None]
    weights = torch.where(possible | ~grows[:, None], distribution, 0.0)
    return (draw(weights.log(), uniforms) - held) * grows
