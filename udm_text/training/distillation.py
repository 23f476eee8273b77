"""A student learns from a teacher: the same corrupted rows, and the teacher's law of a position in place of its token.

    KL(teacher | student) = sum over v of p_T(v | xt) (log p_T(v | xt) - log p_S(v | xt)),

at the positions that the loss of the data asks about, with the weight that it has there: for masks l/t over the
corrupted ones. Its smallest value is 0, at the teacher's own law, whatever the data. Of models that write whole rows
both are told the clean tokens before each position.

Source: Hinton, Vinyals and Dean 1503.02531, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common import eval_mode
from ..hamming import NEVER


def check_teacher(config: Any, teacher: Any) -> None:
    """Raises ValueError where a student of `config` cannot learn from a model of the `UDMConfig` `teacher`.

    Both have to mean the same by a row: process, predictor and vocabulary. Their shapes may be any.
    """
    if config.build_process().inserts or config.build_process().edits:
        raise ValueError(
            f"a teacher says what stands at a position, and texts of process {config.process!r} change their length: "
            "it goes with process 'mask', 'substitute' or 'uniform'"
        )
    for name in ("process", "predictor", "vocab_size", "mask_token_id", "special_token_ids", "separator_token_ids"):
        own, other = getattr(config, name), getattr(teacher, name)
        if own != other:
            raise ValueError(
                f"the teacher's {name} is {other!r} and that of the student {own!r}: they must be the same"
            )
    if config.blank_widths is not None:
        raise ValueError(
            f"a teacher does not teach widths of blanks, and blank_widths of the student is {config.blank_widths}: "
            "leave it out"
        )


class WithTeacher:
    """predict(...) of corrupted rows, as `row_losses` calls it, that asks a teacher the same and keeps how far it is.

    Args:
        predict: gives the student's logits. teacher: a `UDMForMaskedGeneration`; it is asked in evaluation mode.
        mask: (B, L), attention_mask of the rows. editable: (B, L) bool. process: theirs.
        forbidden: (V,) bool, tokens of probability 0.
    """

    def __init__(
        self,
        predict: Callable[..., Tensor],
        teacher: Any,
        mask: Tensor,
        editable: Tensor,
        process: Any,
        forbidden: Tensor,
    ):
        self.predict, self.teacher, self.mask, self.editable = predict, teacher, mask, editable
        self.process, self.forbidden = process, forbidden
        self.sums: Tensor | None = None

    def __call__(self, **wanted: Any) -> Tensor:
        """The student's logits."""
        logits = self.predict(**wanted)
        with torch.no_grad(), eval_mode(self.teacher):
            told = self.teacher(attention_mask=self.mask, **wanted).logits
        self.sums = self._sums(logits, told, **wanted)
        return logits

    def _sums(self, logits: Tensor, told: Tensor, *, input_ids: Tensor, positions: Any = None, **others: Any) -> Tensor:
        """(B,) KL of each row in nats, with the weight that the loss of the data has."""
        each = divergence(told, logits[:, : told.shape[1]] if positions is None else logits, self.forbidden)
        if positions is None:  # whole rows, each of which counts once
            return each.masked_fill(~self.process.unsettled(input_ids, self.editable), 0.0).sum(dim=1)
        rows, columns = positions
        # some may be asked about twice, to round their number: each counts for its share
        times = torch.zeros(input_ids.shape, device=each.device).index_put(
            (rows, columns), torch.ones_like(each, dtype=torch.float32), accumulate=True
        )
        sums = torch.zeros(len(input_ids), dtype=each.dtype, device=each.device)
        sums = sums.index_add(0, rows, each / times[rows, columns])
        return sums * self.editable.sum(dim=1) / (times > 0).sum(dim=1).clamp(min=1)

    def nats(self) -> Tensor:
        """(B,), after a call."""
        assert self.sums is not None
        return self.sums


def divergence(teacher: Tensor, student: Tensor, forbidden: Tensor) -> Tensor:
    """(...) KL(teacher | student) in nats of logits (..., V), over the tokens that are not `forbidden` (V,) bool."""
    log_t, log_s = (_scores(logits, forbidden).log_softmax(dim=-1) for logits in (teacher, student))
    return (log_t.exp() * (log_t - log_s)).sum(dim=-1)


def _scores(logits: Tensor, forbidden: Tensor) -> Tensor:
    scores = logits if logits.dtype == torch.float64 else logits.float()
    return scores.clamp(min=NEVER).masked_fill(forbidden, NEVER)
