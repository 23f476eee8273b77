"""How good is a model: upper bounds on -log p, each with its standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .generation_udm import eval_mode
from .kernels import KERNELS
from .objectives import row_losses
from .randomness import RowRandom
from .schedules import SCHEDULES, counts, interpolation_weights, step_costs


@dataclasses.dataclass(frozen=True)
class BoundReport:
    """Upper bounds on the negative log-likelihood of held-out rows. A `_stderr` is one standard error.

    nelbo_nats_per_token counts the tokens and, where the model draws its lengths (`length_included`), the length of
    each row: a bound on -log p of the text itself. Of rows with a prompt it is the answer alone that is counted, given
    the prompt. bits_per_char divides the same nats by the characters; None where
    the rows do not say how many they have. The standard error covers both the choice of rows and the draws of the
    noise; one row alone has none (nan). The bound is infinite where a row is longer than any length the model can draw.
    With num_steps it is the bound of the sampler with as many steps (NELBO_K), otherwise that of one token a step.
    """

    nelbo_nats_per_token: float
    nelbo_nats_per_token_stderr: float
    perplexity_bound: float
    perplexity_bound_stderr: float
    bits_per_char: float | None
    bits_per_char_stderr: float | None
    length_nats_per_token: float
    length_included: bool
    process: str
    kernel: str | None
    rows: int
    tokens: int
    chars: int | None
    draws: int
    seed: int
    num_steps: int | None = None
    schedule: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows neither nan nor infinity: None in their place."""
        fields = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int | None, editable) -> dict[str, Tensor]:
    """A batch of rows: input_ids and attention_mask (B, L), labels = x0 where editable and -100 elsewhere.

    rows: each with "input_ids". editable(input_ids, attention_mask) -> (B, L) bool.
    """
    ids = [row["input_ids"].tolist() if hasattr(row["input_ids"], "tolist") else row["input_ids"] for row in rows]
    lengths = [len(x) for x in ids]
    longest = max(lengths)
    if pad_token_id is None and min(lengths) < longest:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")
    padding = [pad_token_id or 0] * longest
    input_ids = torch.tensor([[*x, *padding[len(x) :]] for x in ids], dtype=torch.int64)
    attention_mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    labels = input_ids.masked_fill(~editable(input_ids, attention_mask), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def ratio_with_stderr(numerators: Tensor, denominators: Tensor) -> tuple[float, float]:
    """sum / sum over independent rows, and the standard error of that ratio by linearisation (delta method)."""
    n = len(numerators)
    ratio = numerators.sum() / denominators.sum()
    residual = numerators - ratio * denominators
    spread = (residual.square().sum() / max(1, n - 1)).sqrt()
    return float(ratio), float(spread * math.sqrt(n) / denominators.sum()) if n > 1 else float("nan")


def scored_rows(config, rows: Iterable[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
    """The rows that hold an editable token, behind their places in `rows`. Raises ValueError where there is none."""
    rows = list(rows)
    counts = config.count_editable(row["input_ids"] for row in rows)
    held = [(i, row) for i, (row, count) in enumerate(zip(rows, counts, strict=True)) if count]
    if not held:
        raise ValueError("there is no row with an editable token to evaluate on")
    return [i for i, _ in held], [row for _, row in held]


class Draws(NamedTuple):
    """Estimates of the bound of each row, all (R, draws): corrupted positions t (int64), nats (float64); l: (R,)."""

    t: Tensor
    nats: Tensor
    lengths: Tensor


@torch.no_grad()
def row_draws(
    model,
    rows: Sequence[dict[str, Any]],
    index: Sequence[int],
    *,
    batch_size: int,
    draws: int,
    seed: int,
    kernel: str,
    num_steps: int | None = None,
    schedule: str = "linear",
) -> Draws:
    """Each row is corrupted `draws` times, its t stratified over {1..l}; the mean of a row's nats estimates its bound.

    The noise belongs to (seed, index of the row), so the figures do not depend on the batch. With num_steps, t is
    raised to the next count of the row's grid: a count t_j is drawn with probability (t_j - t_{j+1}) / l, and the same
    mean estimates NELBO_K = sum_j (t_j - t_{j+1}) c(t_j). One token a step changes no t.
    """
    config, process = model.config, model.config.build_process()
    device = model.get_input_embeddings().weight.device
    forbidden = config.forbidden_tokens(device)
    blank = torch.zeros(len(rows), draws, dtype=torch.float64)
    result = Draws(blank.long(), blank, torch.zeros(len(rows), dtype=torch.int64))
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with eval_mode(model):
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], config.pad_token_id, config.editable)
            batch = {name: value.to(device) for name, value in batch.items()}
            editable, mask = batch["labels"] != -100, batch["attention_mask"]
            lengths = editable.sum(dim=1)
            result.lengths[chosen] = lengths.cpu()
            random = RowRandom(seed, torch.tensor([index[i] for i in chosen], device=device))
            grid = None if num_steps is None else counts(schedule, lengths, num_steps, config.step_curve)

            def predict(mask: Tensor = mask, **inputs: Tensor) -> Tensor:
                return model(attention_mask=mask, **inputs).logits

            for stratum in range(draws):
                u = (stratum + random.uniform(1)[:, 0]) / draws
                t = (u * lengths).long().clamp(max=lengths - 1) + 1
                if grid is not None:
                    t = torch.where(grid >= t, grid, lengths).amin(dim=0)
                nats = row_losses(predict, process, batch["input_ids"], editable, t, random, forbidden, kernel=kernel)
                result.t[chosen, stratum], result.nats[chosen, stratum] = t.cpu(), nats.double().cpu()
    return result


def evaluate_bound(
    model,
    rows: Iterable[dict[str, Any]],
    *,
    batch_size: int = 64,
    draws: int = 8,
    seed: int = 0,
    kernel: str | None = None,
    num_steps: int | None = None,
    schedule: str | None = None,
) -> BoundReport:
    """The bound of a model on rows.

    Args:
        model: a `UDMForMaskedGeneration`.
        rows: each with "input_ids" and, for bits per character, "num_chars"; those without an editable token are left
            out.
        batch_size: rows of a forward pass; the figures do not depend on it.
        draws: corruptions of each row (their t stratified); more draws, less noise, same expectation.
        seed: the noise; one seed makes two models comparable.
        kernel: reverse kernel of the substitute process; None: the model's own.
        num_steps, schedule: the bound of the sampler that takes so many steps in random order (masks); None: one token
            a step, "linear".
    """
    for name, value in (("draws", draws), ("batch_size", batch_size), ("num_steps", num_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    kernel = kernel or model.config.kernel
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if num_steps is None and schedule is not None:
        raise ValueError("schedule says how num_steps are spread: give num_steps too")
    if num_steps is not None and not model.config.build_process().visible:
        raise ValueError(f"num_steps: no bound for several tokens a step is known of process {model.config.process!r}")
    if schedule == "optimal" and model.config.step_curve is None:
        raise ValueError("schedule 'optimal' needs the measured curve of the model: `udm evaluate MODEL --curve`")
    index, kept = scored_rows(model.config, rows)
    schedule = schedule or "linear"
    how: dict[str, Any] = {"draws": draws, "seed": seed, "kernel": kernel}
    drawn = row_draws(model, kept, index, batch_size=batch_size, num_steps=num_steps, schedule=schedule, **how)
    report = summarise(model.config, kept, drawn.nats.mean(dim=1), **how)
    return report if num_steps is None else dataclasses.replace(report, num_steps=num_steps, schedule=schedule)


@dataclasses.dataclass(frozen=True)
class CurveReport:
    """The measured curve: curve[j - 1] is c at the share j/n of masked positions, nats of one of them, with its error.

    covariance: (n, n) float64 of the curve's values over rows and noise. halves: the curves of every other row. length:
    the median row, in tokens.
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
        stderr = [value if math.isfinite(value) else None for value in self.curve_stderr]
        return {**fields, "curve_stderr": stderr}

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
    """
    for name, value in (("draws", draws), ("batch_size", batch_size), ("points", points)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not model.config.build_process().visible:
        raise ValueError(f"the curve is of the mask process; this model has process {model.config.process!r}")
    index, kept = scored_rows(model.config, rows)
    how: dict[str, Any] = {"draws": draws, "seed": seed}
    drawn = row_draws(model, kept, index, batch_size=batch_size, kernel=model.config.kernel, **how)
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
    part = file.with_name("config.json.part")
    try:
        part.write_text(json.dumps({**fields, "step_curve": list(curve)}, indent=2, sort_keys=True) + "\n", "utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


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


def summarise(
    config, rows: Sequence[dict[str, Any]], nats: Tensor, *, draws: int, seed: int, kernel: str
) -> BoundReport:
    """`BoundReport` from the NELBO estimate of each row."""
    tokens = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.float64)
    distribution = config.length_probabilities()
    length_nats = torch.zeros_like(nats)
    if distribution is not None:
        inside = tokens.long().clamp(max=len(distribution) - 1)
        length_nats = -torch.where(tokens < len(distribution), distribution[inside], torch.zeros_like(tokens)).log()
    total = nats + length_nats
    visible = config.build_process().visible
    return BoundReport(
        **row_figures(rows, tokens, total, length_nats),
        length_included=distribution is not None,
        process=config.process,
        kernel=None if visible else kernel,
        draws=draws,
        seed=seed,
    )


def row_figures(rows: Sequence[dict[str, Any]], tokens: Tensor, total: Tensor, lengths: Tensor) -> dict[str, Any]:
    """What a `BoundReport` says of the (R,) float64 nats of rows: a token, a character, and of their lengths alone.

    tokens: (R,) float64, editable tokens of each row. total: nats of each, `lengths` of them for how long it is.
    """
    per_token, stderr = ratio_with_stderr(total, tokens)
    perplexity = math.exp(min(per_token, 700.0))
    chars, bits, bits_stderr = None, None, None
    if all(row.get("num_chars") is not None for row in rows):
        count = torch.tensor([row["num_chars"] for row in rows], dtype=torch.float64)
        chars = int(count.sum())
        bits, bits_stderr = ratio_with_stderr(total / math.log(2), count)
    return {
        "nelbo_nats_per_token": per_token,
        "nelbo_nats_per_token_stderr": stderr,
        "perplexity_bound": perplexity,
        "perplexity_bound_stderr": perplexity * stderr,
        "bits_per_char": bits,
        "bits_per_char_stderr": bits_stderr,
        "length_nats_per_token": float(lengths.sum() / tokens.sum()),
        "rows": len(rows),
        "tokens": int(tokens.sum()),
        "chars": chars,
    }


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
        return dataclasses.asdict(self)


def evaluate_repair(
    model, rows: Sequence[dict[str, Any]], *, errors: int = 1, max_rows: int = 500, batch_size: int = 64, seed: int = 0
) -> RepairReport:
    """Corrupt each row in `errors` tokens by the model's own process and repair it, with as many edits and greedily.

    Args:
        rows: each with "input_ids"; of more than `max_rows` an evenly spaced choice is taken.
        errors: wrong tokens of a row; rows with fewer tokens are left out. seed: which tokens are wrong, and how.
    """
    config, process = model.config, model.config.build_process()
    if process.visible:
        raise ValueError("repair needs a model of process 'substitute'")
    if errors < 1:
        raise ValueError(f"errors must be at least 1, got {errors}")
    counted = config.count_editable(row["input_ids"] for row in rows)
    fit = [row for row, count in zip(rows, counted, strict=True) if count >= errors]
    if not fit:
        raise ValueError(f"there is no row with at least {errors} tokens to corrupt")
    fit = [fit[i * len(fit) // min(max_rows, len(fit))] for i in range(min(max_rows, len(fit)))]
    device = model.get_input_embeddings().weight.device
    counts = {"restored": 0, "left_alone": 0}
    for start in range(0, len(fit), batch_size):
        batch = collate(fit[start : start + batch_size], config.pad_token_id, config.editable)
        clean, mask, editable = (batch[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
        editable = editable != -100
        random = RowRandom(seed, torch.arange(start, start + len(clean), device=device))
        noise = process.sample_noise(clean, editable=editable, random=random)
        wrong = process.corrupt(clean, torch.full((len(clean),), errors, device=device), noise)
        for name, given in (("restored", wrong), ("left_alone", clean)):
            repaired = model.generate(given, attention_mask=mask, max_edits=errors, seed=seed)
            counts[name] += int((repaired == clean).all(dim=1).sum())
    shares = {name: count / len(fit) for name, count in counts.items()}
    error = {f"{name}_stderr": math.sqrt(share * (1 - share) / len(fit)) for name, share in shares.items()}
    return RepairReport(**shares, **error, errors=errors, rows=len(fit), seed=seed)
