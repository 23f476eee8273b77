"""Whether a model tells a token from its neighbours, or knows no more than how often each token is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import check_whole, finite
from ..corpus.rows import collate
from .bounds import ratio_with_stderr, row_draws, scored_rows

MARGIN = 0.02
"""Share of a reference by which a bound must lie below it, beyond chance."""
SURE = 2.0
"""Standard errors of the paired difference that count as chance."""


@dataclasses.dataclass(frozen=True)
class ContextReport:
    """The bound of a model beside what it costs to know less, all in nats per token of the same rows.

    Lengths of rows are not counted in any of them; a `_stderr` is one standard error.

    nelbo: the bound, one token a step. unigram: -log p under the frequencies of tokens in the training rows
    (`unigram_nats`), which no model that uses context should exceed. one_call: the bound of all tokens at once, each
    from its place and the length of the row alone; None where the process has no such bound, or the model writes whole
    rows, whose nelbo is that of one step.
    learnt_context: whether nelbo lies below every reference by more than `MARGIN` of it and `SURE` standard errors of
    the paired difference; None where that cannot be told (one row, or an infinite figure). The references are both, and
    the unigram alone where rows have a prompt: that is context which one call sees as well.
    """

    nelbo: float
    nelbo_stderr: float
    unigram: float
    unigram_stderr: float
    one_call: float | None
    one_call_stderr: float | None
    learnt_context: bool | None
    rows: int
    tokens: int
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows neither nan nor infinity: None in their place."""
        return finite(dataclasses.asdict(self))


def evenly(rows: Any, most: int) -> list[dict[str, Any]]:
    """At most so many rows of a sequence or data set, from its first to its last in even steps."""
    count = min(len(rows), most)
    chosen = [i * len(rows) // count for i in range(count)]
    return list(rows.select(chosen)) if hasattr(rows, "select") else [rows[i] for i in chosen]


def token_counts(config, rows: Sequence[dict[str, Any]]) -> Tensor:
    """(V,) int64: how often each token stands at an editable position of rows, each with "input_ids"."""
    counts = torch.zeros(config.vocab_size, dtype=torch.int64)
    for start in range(0, len(rows), 1000):
        batch = collate(rows[start : start + 1000], config.pad_token_id, config.editable)
        counts += batch["input_ids"][batch["editable"]].bincount(minlength=config.vocab_size)
    return counts


def unigram_nats(config, rows: Sequence[dict[str, Any]], counts: Tensor) -> Tensor:
    """(R,) float64: nats of the editable tokens of each row, every token drawn by itself with its share of the counts.

    Half a token is added to the count of each of the A tokens that may stand there (Krichevsky and Trofimov 1981), so
    none is impossible: p(v) = (counts[v] + 1/2) / (sum + A/2).

    Args:
        config: of the model whose rows these are. rows: each with "input_ids". counts: (V,) of `token_counts`, of other
            rows.
    """
    if counts.shape != (config.vocab_size,):
        raise ValueError(f"counts must have the shape ({config.vocab_size},), got {tuple(counts.shape)}")
    shares = (counts.double() + 0.5).masked_fill(config.forbidden_tokens(), 0.0)
    nats = torch.where(shares > 0, -(shares / shares.sum()).log(), 0.0)
    result = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, len(rows), 1000):
        batch = collate(rows[start : start + 1000], config.pad_token_id, config.editable)
        result[start : start + 1000] = (nats[batch["input_ids"]] * batch["editable"]).sum(dim=1)
    return result


def measure_context(
    model,
    rows: Any,
    training_rows: Any,
    *,
    batch_size: int = 64,
    draws: int = 4,
    seed: int = 0,
    max_rows: int = 400,
    max_training_rows: int = 20_000,
) -> ContextReport:
    """Compares the bound of a model with those of less knowledge, on some held-out rows; see `ContextReport`.

    Args:
        model: a `UDMForMaskedGeneration`. rows, training_rows: sequences or data sets of rows with "input_ids", held
            out and trained on. batch_size, draws, seed: as in `evaluate_bound`.
        max_rows, max_training_rows: rows at most that are measured and whose tokens are counted, in even steps.

    Raises:
        ValueError: where no row has an editable token.
    """
    check_whole(1, draws=draws, batch_size=batch_size, max_rows=max_rows, max_training_rows=max_training_rows)
    check_whole(-(2**63), seed=seed)
    config = model.config
    index, kept = scored_rows(config, evenly(rows, max_rows))
    tokens = torch.tensor(config.count_editable(row["input_ids"] for row in kept), dtype=torch.float64)
    how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "kernel": config.kernel}
    nats = {
        "nelbo": row_draws(model, kept, index, draws=draws, **how).nats.mean(dim=1),
        "unigram": unigram_nats(config, kept, token_counts(config, evenly(training_rows, max_training_rows))),
    }
    if config.build_process().prices_steps and config.default_steps is None:
        nats["one_call"] = row_draws(model, kept, index, draws=1, num_steps=1, **how).nats[:, 0]
    figures: dict[str, Any] = {"one_call": None, "one_call_stderr": None}
    for name, each in nats.items():
        figures[name], figures[f"{name}_stderr"] = ratio_with_stderr(each, tokens)
    references = ["unigram"] if config.prompted else [name for name in nats if name != "nelbo"]
    gaps = [ratio_with_stderr((1.0 - MARGIN) * nats[name] - nats["nelbo"], tokens) for name in references]
    known = all(math.isfinite(value) for gap in gaps for value in gap)
    return ContextReport(
        **figures,
        learnt_context=all(gap > SURE * stderr for gap, stderr in gaps) if known else None,
        rows=len(kept),
        tokens=int(tokens.sum()),
        draws=draws,
        seed=seed,
    )
