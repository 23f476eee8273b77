"""How often a model of the substitute process brings back a row that was changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..common import check_whole, finite
from ..corpus.rows import collate
from ..randomness import RowRandom


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """How a model of the substitute process repairs rows, as shares of rows, each with one standard error.

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


def evaluate_repair(
    model, rows: Sequence[dict[str, Any]], *, errors: int = 1, max_rows: int = 500, batch_size: int = 64, seed: int = 0
) -> RepairReport:
    """Corrupt each row in `errors` tokens by the model's own process and repair it, with as many edits and greedily.

    Args:
        rows: each with "input_ids"; of more than `max_rows` an evenly spaced choice is taken.
        errors: wrong tokens of a row; rows with fewer tokens are left out. seed: which tokens are wrong, and how.
    """
    config, process = model.config, model.config.build_process()
    if "max_edits" not in process.generation_options:
        raise ValueError("repair needs a model of process 'substitute'")
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
        noise = process.sample_noise(clean, editable=editable, random=random)
        wrong = process.corrupt(clean, torch.full((len(clean),), errors, device=device), noise)
        for name, given in (("restored", wrong), ("left_alone", clean)):
            repaired = model.generate(given, attention_mask=mask, max_edits=errors, seed=seed)
            counts[name] += int((repaired == clean).all(dim=1).sum())
    shares = {name: count / len(fit) for name, count in counts.items()}
    error = {f"{name}_stderr": math.sqrt(share * (1 - share) / len(fit)) for name, share in shares.items()}
    return RepairReport(**shares, **error, errors=errors, rows=len(fit), seed=seed)
