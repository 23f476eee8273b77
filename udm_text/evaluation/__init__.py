"""How good a model is, through one door: bounds, what fewer steps cost, repairs."""

from __future__ import annotations

from .bounds import BoundReport, evaluate_bound, evaluate_loss, ratio_with_stderr, row_draws, scored_rows
from .context import ContextReport, measure_context, token_counts, unigram_nats
from .continuous_time import evaluate_continuous_bound
from .curve import CurveReport, fit_curve, measure_curve, measure_prices, price_table, store_curve
from .features import mauve, text_features
from .likelihood import (
    LikelihoodReport,
    RowScores,
    evaluate_likelihood,
    importance_weighted,
    row_chains,
    row_scores,
)
from .repair import RepairReport, TokenRepairReport, evaluate_repair, evaluate_token_repair, repair_figures
from .samples import (
    bleu,
    check_judge,
    compare_samples,
    distinct,
    gram_distance,
    judged,
    measure_frontier,
    self_bleu,
    valid_share,
)
from .typos import make_typos

__all__ = [
    "BoundReport",
    "ContextReport",
    "CurveReport",
    "LikelihoodReport",
    "RepairReport",
    "RowScores",
    "TokenRepairReport",
    "evaluate_bound",
    "evaluate_likelihood",
    "evaluate_continuous_bound",
    "evaluate_loss",
    "evaluate_repair",
    "evaluate_token_repair",
    "fit_curve",
    "importance_weighted",
    "measure_context",
    "make_typos",
    "measure_curve",
    "measure_prices",
    "price_table",
    "bleu",
    "check_judge",
    "compare_samples",
    "distinct",
    "gram_distance",
    "judged",
    "mauve",
    "measure_frontier",
    "ratio_with_stderr",
    "self_bleu",
    "repair_figures",
    "row_chains",
    "row_draws",
    "row_scores",
    "scored_rows",
    "store_curve",
    "text_features",
    "token_counts",
    "unigram_nats",
    "valid_share",
]
