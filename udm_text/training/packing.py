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

from ..configuration_udm import PROCESSES
from ..objectives import said

BACKBONES = ("bert", "roberta", "modernbert", "nomic_bert", "llama", "qwen2", "qwen3", "gpt2")
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
    if config.shift_logits:
        raise ValueError(
            "pack_rows goes with models that read a position at itself, and shift_logits of this one is True: the "
            "position before a row's first is another row's. Leave pack_rows away"
        )
    if config.blank_widths is not None:
        raise ValueError(
            f"pack_rows goes with models without a width head, and blank_widths of this one is {config.blank_widths}: "
            "leave pack_rows away"
        )


class _Packed:
    """Rows (B, L) in sequences: where their tokens are, and what a backbone reads besides these."""

    def __init__(self, where: Layout, inputs: dict[str, Any], attention_mask: Tensor):
        self.where, self.inputs, self.width = where, inputs, attention_mask.shape[1]
        self.real = where.row >= 0
        nowhere = attention_mask.numel()
        target = where.source.masked_fill(~self.real, nowhere).flatten()  # where a token of the rows has gone
        place = torch.zeros(nowhere + 1, dtype=torch.int64, device=target.device)
        self.place = place.index_copy(0, target, torch.arange(len(target), device=target.device))

    def tokens(self, input_ids: Tensor, padding: int) -> Tensor:
        """The tokens of rows, in sequences."""
        return input_ids.flatten()[self.where.source].masked_fill(~self.real, padding)

    def places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the sequences, in which places of the rows are."""
        there, width = self.place[rows * self.width + columns], self.real.shape[1]
        return torch.div(there, width, rounding_mode="floor"), there % width


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


def packed_predict(model, model_config, attention_mask: Tensor, width: int, attention: str) -> Callable[..., Any]:
    """What a model says (`objectives.said`) of (B, L) rows, from packed sequences.

    predict(input_ids, positions, attention_mask=None, gaps=None, t=None, num_editable=None, apply_head=None) is asked
    as the model is; rows of other tokens than those of `attention_mask` bring their own, and are laid out anew.

    Args:
        model: as wrapped for training. model_config: its `UDMConfig`; see `check_packing` for which will do.
        attention_mask: (B, L) of the rows. width: tokens of a sequence. attention: "sdpa" or "eager".
    """
    dtype, told = next(model.parameters()).dtype, model_config.time_conditioning

    def packed(mask: Tensor) -> _Packed:
        where = layout(mask, width)
        return _Packed(where, packed_inputs(model_config, where, attention, dtype), mask)

    rows = packed(attention_mask) if not PROCESSES[model_config.process].gap_scores else None

    def predict(
        input_ids: Tensor,
        positions: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        gaps: tuple[Tensor, Tensor] | None = None,
        t: Tensor | None = None,
        num_editable: Tensor | None = None,
        apply_head: Any = None,
    ) -> Any:
        here = rows if attention_mask is None else packed(attention_mask)
        assert here is not None
        inputs = {**here.inputs, "input_ids": here.tokens(input_ids, model_config.pad_token_id or 0)}
        inputs["positions"] = here.places(*positions)
        if gaps is not None:
            inputs["gaps"] = here.places(*gaps)
        if told:
            assert t is not None and num_editable is not None
            of = here.where.row.clamp(min=0)
            inputs |= {"t": t[of], "num_editable": num_editable[of]}
        if apply_head is not None:
            inputs["apply_head"] = apply_head
        return said(model(**inputs))

    return predict
