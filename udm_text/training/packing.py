"""Rows of a batch side by side in fewer, longer sequences, each attending to itself alone: a forward without padding.

Nothing but the forward pass knows of it. Rows stay rows, each with its own t, noise and loss; `packed_predict` takes
the place of the model's call and gives the same logits, up to rounding. This is another thing than rows="packed", which
cuts blocks out of joined texts: there tokens attend across the ends of texts, and here they never do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BACKBONES = ("bert", "roberta", "modernbert", "nomic_bert")
"""Model types that take positions and who attends to whom from outside, as it is tested."""
_IMPLEMENTATIONS = ("eager", "sdpa")


class Layout(NamedTuple):
    """Where the tokens of (B, L) rows stand in (P, W) sequences, all (P, W) int64.

    source: the token's place in the flattened rows; row: its row, -1 for padding; position: its place in its row.
    """

    source: Tensor
    row: Tensor
    position: Tensor


def check_packing(model, length: int) -> None:
    """Raises ValueError where rows of this model cannot be packed."""
    config = model.config
    if length < 1:
        raise ValueError(f"pack_rows must be at least 1, got {length}")
    kind = config.text_config.model_type
    if kind not in BACKBONES:
        raise ValueError(
            f"pack_rows needs a backbone that takes masks of who attends to whom, known of {', '.join(BACKBONES)}; "
            f"this one is {kind!r}. Leave pack_rows away: rows are then padded, and grouped by length but in a stream"
        )
    if (how := model.backbone.config._attn_implementation) not in _IMPLEMENTATIONS:
        raise ValueError(f"pack_rows goes with attn_implementation {' or '.join(_IMPLEMENTATIONS)}, got {how!r}")
    if config.blank_widths is not None:
        raise ValueError(
            f"pack_rows goes with models without a width head, and blank_widths of this one is {config.blank_widths}: "
            "leave pack_rows away"
        )
    if config.time_conditioning:
        raise ValueError(
            "pack_rows goes with models without time_conditioning (the default of masks): rows of one sequence differ "
            "in t"
        )


def first_fit(lengths: list[int], width: int) -> list[list[int]]:
    """Which rows share a sequence of `width` tokens: the longest first, each into the first that has room for it.

    A row that is longer than `width` has a sequence of its own. Uses at most 11/9 of the fewest sequences possible, and
    one more (Johnson 1973).
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        sequence = next((i for i, free in enumerate(room) if free >= lengths[row]), len(room))
        if sequence == len(room):
            sequences.append([])
            room.append(width)
        sequences[sequence].append(row)
        room[sequence] -= lengths[row]
    return sequences


def layout(attention_mask: Tensor, width: int) -> Layout:
    """Rows (B, L), ones and then zeros in `attention_mask`, packed into sequences of at most `width` tokens."""
    lengths = attention_mask.sum(dim=1).tolist()
    sequences = first_fit(lengths, width)
    longest = max(sum(lengths[row] for row in rows) for rows in sequences)
    source = torch.zeros(len(sequences), longest, dtype=torch.int64)
    row_of = torch.full_like(source, -1)
    position = torch.zeros_like(source)
    for number, rows in enumerate(sequences):
        at = 0
        for row in rows:
            here = slice(at, at + lengths[row])
            offsets = torch.arange(lengths[row])
            source[number, here] = row * attention_mask.shape[1] + offsets
            row_of[number, here], position[number, here] = row, offsets
            at += lengths[row]
    return Layout(*(x.to(attention_mask.device) for x in (source, row_of, position)))


def packed_inputs(model_config, where: Layout, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a backbone reads besides the tokens: who attends to whom (tokens of one row), and positions in the row.

    attention: "sdpa" takes (P, 1, W, W) bool, "eager" the same as numbers to add, of `dtype`.
    """
    config = model_config.text_config
    together = (where.row[:, :, None] == where.row[:, None, :])[:, None]  # padding attends to padding, and is not read

    def written(allowed: Tensor) -> Tensor:
        if attention == "sdpa":
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    mask: Any = written(together)
    if config.model_type == "modernbert":
        offsets = torch.arange(where.row.shape[1], device=where.row.device)
        near = (offsets[:, None] - offsets).abs() <= config.sliding_window
        mask = {"full_attention": mask, "sliding_attention": written(together & near)}
    return {"attention_mask": mask, "position_ids": where.position + offset}


def packed_predict(model, model_config, attention_mask: Tensor, width: int, attention: str) -> Callable[..., Tensor]:
    """predict(input_ids, positions) -> (N, V) logits, as the model gives them for (B, L) rows, from packed sequences.

    Args:
        model: as wrapped for training. model_config: its `UDMConfig`; see `check_packing` for which will do.
        attention_mask: (B, L) of the rows. width: tokens of a sequence. attention: "sdpa" or "eager".
    """
    where = layout(attention_mask, width)
    real = where.row >= 0
    dtype = next(model.parameters()).dtype
    inputs = packed_inputs(model_config, where, attention, dtype)
    nowhere = attention_mask.numel()
    target = where.source.masked_fill(~real, nowhere).flatten()  # where a token of the rows has gone
    place = torch.zeros(nowhere + 1, dtype=torch.int64, device=target.device)
    place = place.index_copy(0, target, torch.arange(len(target), device=target.device))

    def predict(input_ids: Tensor, positions: tuple[Tensor, Tensor], apply_head: Any = None, **unused: Any) -> Tensor:
        ids = input_ids.flatten()[where.source].masked_fill(~real, model_config.pad_token_id or 0)
        rows, columns = positions
        packed = place[rows * input_ids.shape[1] + columns]
        here = torch.div(packed, ids.shape[1], rounding_mode="floor"), packed % ids.shape[1]
        how = {} if apply_head is None else {"apply_head": apply_head}
        return model(input_ids=ids, positions=here, **how, **inputs).logits

    return predict
