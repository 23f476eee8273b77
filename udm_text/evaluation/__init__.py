"""How good a model is, through one door: bounds, what fewer steps cost, repairs."""

from __future__ import annotations

from .bounds import BoundReport, evaluate_bound, ratio_with_stderr, row_draws, scored_rows
from .context import ContextReport, measure_context, token_counts, unigram_nats
from .curve import CurveReport, fit_curve, measure_curve, price_table, store_curve
from .repair import RepairReport, evaluate_repair

__all__ = [
    "BoundReport",
    "ContextReport",
    "CurveReport",
    "RepairReport",
    "evaluate_bound",
    "evaluate_repair",
    "fit_curve",
    "measure_context",
    "measure_curve",
    "price_table",
    "ratio_with_stderr",
    "row_draws",
    "scored_rows",
    "store_curve",
    "token_counts",
    "unigram_nats",
]
