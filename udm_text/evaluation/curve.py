"""What a token costs at each ratio of masks: the measured curve, and the price of fewer steps that follows from it."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import check_whole, finite, to_json, written_whole
from ..schedules import SCHEDULES, counts, interpolation_weights, step_costs
from .bounds import ratio_with_stderr, row_draws, scored_rows


@dataclasses.dataclass(frozen=True)
class CurveReport:
    """The measured curve: curve[j - 1] is c at the share j/n of masked positions, nats of one of them, with its error.

    covariance: (n, n) float64 of the curve's values over rows and noise; what smoothing does to the curve is not in it,
    nor in any error that follows from it (`fit_curve`). halves: the curves of every other row. length: the median row,
    in tokens.
    """

    curve: list[float]
    curve_stderr: list[float]
    nelbo_nats_per_token: float
    length: int
    rows: int
    tokens: int
    draws: int
    seed: int
    covariance: Tensor
    halves: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["covariance"], fields["halves"]
        return finite(fields)

    def price(self, schedule: str, num_steps: int | None = None, length: int | None = None) -> tuple[float, float]:
        """NELBO_K of a row in nats per token, a bound on -log p of the sampler, and its standard error.

        The optimal grid is priced on rows that did not choose it, or it would look better than it is: chosen on either
        half of the rows, priced on the other (on all, where both halves choose the same).
        """
        row = torch.tensor([self.length if length is None else length])
        chosen = [counts(schedule, row, num_steps, self.curve)]
        on = [self.curve]
        if schedule == "optimal" and len(self.halves) == 2:
            crossed = [counts(schedule, row, num_steps, half) for half in self.halves]
            if not torch.equal(*crossed):
                chosen, on = crossed, self.halves[::-1]
        value, variance = 0.0, 0.0
        unit = torch.eye(len(self.curve), dtype=torch.float64)
        for times, curve in zip(chosen, on, strict=True):
            share = torch.stack([step_costs(times, point.tolist())[0] for point in unit]) / row
            value += float(share @ torch.tensor(curve, dtype=torch.float64)) / len(chosen)
            variance += float(share @ self.covariance @ share) / len(chosen)
        return value, math.sqrt(max(0.0, variance)) if self.rows > 1 else math.nan


def measure_curve(
    model,
    rows: Iterable[dict[str, Any]],
    *,
    batch_size: int = 64,
    draws: int = 8,
    seed: int = 0,
    points: int = 32,
) -> CurveReport:
    """The price of a token against the share of masks: c(t) = E[mean CE over S | t], from the draws of the bound.

    Rows differ in length, so they are pooled by the share t/l: a curve, linear between its points 1/n, ..., 1, is
    fitted to all draws (`fit_curve`), weighted by l as the bound weighs them. Its sum over the draws is exactly that of
    the draws, so the price of one token a step is the NELBO of the same draws (where every t of a row is drawn).

    Args:
        model: of the mask process. rows, batch_size, draws, seed: as in `evaluate_bound`, whose noise this is.
        points: n at most; fewer where the longest row has fewer tokens.

    Raises:
        ValueError: where a row's price is infinite: it holds a token that the model rules out.
    """
    check_whole(1, draws=draws, batch_size=batch_size, points=points)
    check_whole(-(2**63), seed=seed)
    if not model.config.build_process().has_curve:
        raise ValueError(
            f"no curve of prices is known of {model.config.process_words}: it is the mask process that has one"
        )
    index, kept = scored_rows(model.config, rows)
    how: dict[str, Any] = {"draws": draws, "seed": seed}
    drawn = row_draws(model, kept, index, batch_size=batch_size, kernel=model.config.kernel, **how)
    infinite = (~drawn.nats.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if infinite:
        raise ValueError(
            f"row {index[infinite[0]]} holds a token whose probability is 0 to this model, so that its price is "
            "infinite, and no curve can be made of it: leave such rows out, or train on them"
        )
    lengths = drawn.lengths
    points = min(points, int(lengths.max()))
    below, weight = interpolation_weights(drawn.t.double() / lengths[:, None], points)
    basis = torch.zeros(*drawn.t.shape, points, dtype=torch.float64)
    basis.scatter_add_(2, below[..., None], (1 - weight)[..., None])
    basis.scatter_add_(2, (below + 1).clamp(max=points - 1)[..., None], weight[..., None])
    mass = (lengths.double()[:, None] / draws).expand_as(drawn.nats)
    price = drawn.nats / lengths[:, None]
    fit, covariance = fit_curve(basis, mass, price)
    stderr = covariance.diagonal().clamp(min=0).sqrt() if len(kept) > 1 else torch.full_like(fit, torch.nan)
    halves = [fit_curve(basis[half::2], mass[half::2], price[half::2])[0] for half in range(min(2, len(kept)))]
    return CurveReport(
        curve=fit.clamp(min=0.0).tolist(),
        curve_stderr=stderr.tolist(),
        nelbo_nats_per_token=float(drawn.nats.mean(dim=1).sum() / lengths.sum()),
        length=int(statistics.median_low(lengths.tolist())),
        rows=len(kept),
        tokens=int(lengths.sum()),
        **how,
        covariance=covariance,
        halves=[half.clamp(min=0.0).tolist() for half in halves],
    )


def fit_curve(basis: Tensor, mass: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of prices on hat functions: (n,) values, and their (n, n) covariance over independent rows.

    The covariance is that of the fit with the pull it has (a sandwich estimate, clustered by row). What the pull itself
    does is not in it: a curve that is pulled flat differs from the true one by more than its errors say, most where few
    draws fall, and so does one whose negative values `measure_curve` lifts to zero.

    Neighbours are pulled together, as strongly as generalised cross-validation asks for: it fills points without a draw
    and calms a curve of few rows. The pull is none for a constant, so the weighted sum of the fit stays that of the
    prices exactly.

    Args:
        basis: (R, draws, n) float64, rows of hat weights, each summing to 1. mass, price: (R, draws) float64.
    """
    points = basis.shape[2]
    normal = torch.einsum("rdi,rd,rdj->ij", basis, mass, basis)
    right = torch.einsum("rdi,rd->i", basis, mass * price)
    rough = torch.eye(points, dtype=torch.float64).diff(dim=0)
    smoothness = rough.T @ rough * (mass.sum() / points)
    best = torch.inf
    for strength in torch.logspace(-7, 3, 21, dtype=torch.float64):
        candidate = (normal + strength * smoothness).inverse()
        free = max(1e-9, price.numel() - float((candidate * normal).sum()))
        score = float((mass * (price - basis @ (candidate @ right)).square()).sum()) / free**2
        if score < best:
            best, inverse = score, candidate
    fit = inverse @ right
    residual = torch.einsum("rdi,rd->ri", basis, mass * (price - basis @ fit)) @ inverse
    return fit, residual.T @ residual * (len(price) / max(1, len(price) - 1))


def store_curve(directory: str | Path, curve: Sequence[float]) -> None:
    """Writes the curve into the config.json of a model's directory, whole or not at all."""
    file = Path(directory) / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    with written_whole(file) as part:
        part.write_text(to_json({**fields, "step_curve": list(curve)}, indent=2, sort_keys=True) + "\n", "utf-8")


def price_table(report: CurveReport, length: int | None = None) -> list[dict[str, Any]]:
    """For K = l, l/2, ..., 1: network calls, and each schedule's NELBO_K in nats per token with its standard error."""
    steps = report.length if length is None else length
    table = []
    while steps:
        row: dict[str, Any] = {"num_steps": steps, "calls": steps}
        for schedule in SCHEDULES:
            row[schedule], row[f"{schedule}_stderr"] = report.price(schedule, steps, length)
            if not math.isfinite(row[f"{schedule}_stderr"]):
                row[f"{schedule}_stderr"] = None
        table.append(row)
        steps //= 2
    return table


def measure_prices(
    model, rows: Iterable[dict[str, Any]], *, batch_size: int = 64, draws: int = 8, seed: int = 0
) -> dict[str, Any]:
    """What fewer steps cost where no one curve says it (process "delete"): NELBO_K, measured for each K by itself.

    Returns what `price_table` has as "prices", for linear and cosine steps of the rows as they are: K the longest row,
    which is one token a step, then l, l/2, ..., 1, l the median row; and "length" (l), "rows", "tokens", "draws",
    "seed". Lengths are not counted. The arguments are those of `evaluate_bound`.

    Raises:
        ValueError: where no bound of several tokens a step is known of the model's process.
    """
    check_whole(1, draws=draws, batch_size=batch_size)
    check_whole(-(2**63), seed=seed)
    config = model.config
    if not config.build_process().prices_steps:
        raise ValueError(f"no bound for several tokens a step is known of process {config.process!r}")
    index, kept = scored_rows(config, rows)
    tokens = torch.tensor(config.count_editable(row["input_ids"] for row in kept), dtype=torch.float64)
    length, longest = int(statistics.median_low(tokens.tolist())), int(tokens.max())
    grid = [longest, *(length >> halvings for halvings in range(length.bit_length()) if length >> halvings < longest)]
    how: dict[str, Any] = {"batch_size": batch_size, "draws": draws, "seed": seed, "kernel": config.kernel}
    table = []
    for steps in grid:
        row: dict[str, Any] = {"num_steps": steps, "calls": steps}
        for schedule in ("linear", "cosine"):
            drawn = row_draws(model, kept, index, num_steps=steps, schedule=schedule, **how)
            value, error = ratio_with_stderr(drawn.nats.mean(dim=1), tokens)
            row[schedule], row[f"{schedule}_stderr"] = value, error if math.isfinite(error) else None
        table.append(row)
    figures = {"prices": table, "length": length, "rows": len(kept), "tokens": int(tokens.sum())}
    return finite({**figures, "draws": draws, "seed": seed})
