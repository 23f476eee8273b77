"""Upper bounds on -log p of rows, each with its standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common import check_whole, choices, eval_mode, finite, watched
from ..corpus.rows import collate
from ..decoding import NOT_FINITE
from ..kernels import ALL_KERNELS, KERNELS
from ..objectives import most_corrupted, row_losses, said, share_of_counts, take_noisy
from ..randomness import RowRandom
from ..schedules import SCHEDULES, counts
from ..showing import table
from ..widths import as_one_blank, width_nats


@dataclasses.dataclass(frozen=True)
class BoundReport:
    """Upper bounds on the negative log-likelihood of held-out rows. A `_stderr` is one standard error.

    nelbo_nats_per_token counts the tokens and, where the model draws its lengths (`length_included`), the length of
    each row: a bound on -log p of the text itself. Of rows with a prompt it is the answer alone that is counted, given
    the prompt, its length as well where the model has a width head. bits_per_char divides the same nats by the
    characters; None where the rows do not say how many they have. The standard error covers both the choice of rows and
    the draws of the noise; one row alone has none (nan). The bound is infinite where a row is longer than any length
    the model can draw, or holds a token that it rules out; the perplexity bound is where a float64 cannot hold it.
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
        return finite(dataclasses.asdict(self))

    def _repr_html_(self) -> str:
        def figure(value: float | None, error: float | None) -> str:
            return "unknown" if value is None or error is None else f"{value:.4g} &plusmn; {error:.2g}"

        return table(
            (
                ("bound", f"{figure(self.nelbo_nats_per_token, self.nelbo_nats_per_token_stderr)} nats a token"),
                ("", f"{figure(self.bits_per_char, self.bits_per_char_stderr)} bits a character"),
                ("perplexity, at most", figure(self.perplexity_bound, self.perplexity_bound_stderr)),
                ("of", f"{self.rows} rows, {self.tokens} tokens, {self.draws} draws each"),
                ("process", escape(self.process if self.kernel is None else f"{self.process}, {self.kernel}")),
            )
        )


def ratio_with_stderr(numerators: Tensor, denominators: Tensor) -> tuple[float, float]:
    """sum / sum over independent rows, and the standard error of that ratio by linearisation (delta method)."""
    n = len(numerators)
    ratio = numerators.sum() / denominators.sum()
    residual = numerators - ratio * denominators
    spread = (residual.square().sum() / max(1, n - 1)).sqrt()
    return float(ratio), float(spread * math.sqrt(n) / denominators.sum()) if n > 1 else float("nan")


PAIRS_SEED = 0x5041495253000000
"""Distinguishes the seed of which rows take their given noise from that of the noise."""


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
    loss: str = "nelbo",
    max_corruption: float = 1.0,
    noisy_share: float = 0.0,
) -> Draws:
    """Each row is corrupted `draws` times, its t stratified over {1..l}; the mean of a row's nats estimates its bound.

    With max_corruption below 1 (and loss "cross_entropy", see `row_losses`) t goes from 0 as far as in the training of
    a repairer, by the law that its process learns most by, and the mean estimates that loss. A share of the draws of
    rows with "noisy_ids" stands corrupted as these have them.

    The noise belongs to (seed, index of the row), so the figures do not depend on the batch. With num_steps, t is
    raised to the next count of the row's grid (of a model that writes whole rows that of one step, where none is
    given): a count t_j is drawn with probability (t_j - t_{j+1}) / l, and the same
    mean estimates NELBO_K = sum_j (t_j - t_{j+1}) c(t_j). One token a step changes no t.

    Raises:
        ValueError: where the logits of the network are no law (`NOT_FINITE`).
    """
    config, process = model.config, model.config.build_process()
    device = model.get_input_embeddings().weight.device
    forbidden = config.forbidden_tokens(device)
    num_steps = config.default_steps if num_steps is None and loss == "nelbo" else num_steps
    blank = torch.zeros(len(rows), draws, dtype=torch.float64)
    result = Draws(blank.long(), blank, torch.zeros(len(rows), dtype=torch.int64))
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with eval_mode(model):
        for start in watched(range(0, len(rows), batch_size), "bound"):
            chosen = by_length[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], config.pad_token_id, config.editable)
            batch = {name: value.to(device) for name, value in batch.items()}
            editable, mask = batch["editable"], batch["attention_mask"]
            lengths = editable.sum(dim=1)
            result.lengths[chosen] = lengths.cpu()
            least = 0 if max_corruption < 1.0 else 1
            counted = most_corrupted(lengths, max_corruption) + 1 - least
            numbers = torch.tensor([index[i] for i in chosen], device=device)
            random, pairing = RowRandom(seed, numbers), RowRandom(seed ^ PAIRS_SEED, numbers)
            grid = None if num_steps is None else counts(schedule, lengths, num_steps, config.step_curve)

            def predict(mask: Tensor = mask, **inputs: Any) -> Any:
                return said(model(**{"attention_mask": mask, **inputs}))

            for stratum in range(draws):
                u = (stratum + random.uniform(1)[:, 0]) / draws
                share = u if least else share_of_counts(u, counted, process.training[1])
                t = (share * counted).long().clamp(max=counted - 1) + least
                behind = None
                if grid is not None:
                    drawn, t = t, torch.where(grid >= t, grid, lengths).amin(dim=0)
                    behind = torch.where(grid < drawn, grid, 0).amax(dim=0)
                clean, changing = batch["input_ids"], editable
                how: dict[str, Any] = {"loss": loss, "kernel": kernel, "attention_mask": mask, "s": behind}
                if noisy_share:
                    how["paired"] = pairing.uniform(1)[:, 0] < noisy_share
                    how["noisy"], changing = take_noisy(process, batch, clean, editable, forbidden, how["paired"])
                nats = row_losses(predict, process, clean, changing, t, random, forbidden, **how)
                nats = nats.double().cpu()
                if bool(nats.isnan().any()):
                    raise ValueError(NOT_FINITE)
                result.t[chosen, stratum], result.nats[chosen, stratum] = t.cpu(), nats
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
        kernel: reverse kernel, of a process that has several (substitute); None: the model's own.
        num_steps, schedule: the bound of the sampler that takes so many steps in random order (masks); None: one token
            a step, "linear"; of a model that writes whole rows one step, whose bound is -log p itself for masks.
    """
    check_whole(1, draws=draws, batch_size=batch_size, num_steps=1 if num_steps is None else num_steps)
    check_whole(-(2**63), seed=seed)
    kernel, own = kernel or model.config.kernel, model.config.build_process().kernels
    if kernel not in (own or ALL_KERNELS):
        raise ValueError(f"kernel must be {choices(own or KERNELS)}, got {kernel!r}")
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(f"schedule must be {choices(SCHEDULES)}, got {schedule!r}")
    if num_steps is None and schedule is not None:
        raise ValueError("schedule says how num_steps are spread: give num_steps too")
    if num_steps is not None and not model.config.build_process().prices_steps:
        raise ValueError(f"num_steps: no bound for several tokens a step is known of {model.config.process_words}")
    if schedule == "optimal" and not model.config.build_process().has_curve:
        raise ValueError(f"schedule 'optimal' follows a curve of prices, and {model.config.process_words} has none")
    if schedule == "optimal" and model.config.step_curve is None:
        raise ValueError("schedule 'optimal' needs the measured curve of the model: `udm evaluate MODEL --curve`")
    index, kept = scored_rows(model.config, rows)
    num_steps, schedule = model.config.default_steps if num_steps is None else num_steps, schedule or "linear"
    how: dict[str, Any] = {"draws": draws, "seed": seed, "kernel": kernel}
    drawn = row_draws(model, kept, index, batch_size=batch_size, num_steps=num_steps, schedule=schedule, **how)
    lengths = length_nats(model, kept, batch_size=batch_size)
    report = summarise(model.config, kept, drawn.nats.mean(dim=1), lengths, **how)
    return report if num_steps is None else dataclasses.replace(report, num_steps=num_steps, schedule=schedule)


def evaluate_loss(
    model,
    rows: Iterable[dict[str, Any]],
    *,
    max_corruption: float = 1.0,
    noisy_share: float = 0.0,
    batch_size: int = 64,
    draws: int = 8,
    seed: int = 0,
) -> tuple[float, float]:
    """The training loss "cross_entropy" of rows in nats a token, and its standard error.

    Of a repairer (max_corruption below 1): t is drawn from 0 to that share of a row, as it was trained; and where rows
    have "noisy_ids", that share of the draws of a row has these in place of noise. The other arguments are those of
    `evaluate_bound`.
    """
    check_whole(1, draws=draws, batch_size=batch_size)
    check_whole(-(2**63), seed=seed)
    if not 0.0 < max_corruption <= 1.0:
        raise ValueError(f"max_corruption must lie in (0, 1], got {max_corruption}")
    index, kept = scored_rows(model.config, rows)
    how: dict[str, Any] = {"draws": draws, "seed": seed, "kernel": model.config.kernel, "batch_size": batch_size}
    if noisy_share and "noisy_ids" not in kept[0]:
        raise ValueError(f"noisy_share is {noisy_share}, and the rows have no noisy_ids: give rows of pairs, or 0")
    goal: dict[str, Any] = {"max_corruption": max_corruption, "noisy_share": noisy_share}
    drawn = row_draws(model, kept, index, loss="cross_entropy", **goal, **how)
    return ratio_with_stderr(drawn.nats.mean(dim=1), drawn.lengths.double())


def summarise(
    config, rows: Sequence[dict[str, Any]], nats: Tensor, lengths: Tensor, *, draws: int, seed: int, kernel: str
) -> BoundReport:
    """`BoundReport` from the NELBO estimate of each row, and the nats of its length (`length_nats`)."""
    tokens = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.float64)
    return BoundReport(
        **row_figures(rows, tokens, nats + lengths, lengths),
        length_included=answers_have_widths(config) or config.length_probabilities() is not None,
        process=config.process,
        kernel=kernel if config.build_process().kernels else None,
        draws=draws,
        seed=seed,
    )


def answers_have_widths(config) -> bool:
    """Whether the width of an answer is drawn by a width head, given its prompt."""
    return config.prompted and config.blank_widths is not None


def length_nats(model, rows: Sequence[dict[str, Any]], *, batch_size: int = 64) -> Tensor:
    """(R,) float64: -log p of the length of each row as the model draws it.

    Of a model of prompts and answers with a width head that of the answer, as the width of one blank behind the prompt;
    else by the training lengths (`nats_of_lengths`). rows: each with an editable token.
    """
    config = model.config
    tokens = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.int64)
    if not answers_have_widths(config):
        return nats_of_lengths(config, tokens.double())
    device = model.get_input_embeddings().weight.device
    nats = torch.zeros(len(rows), dtype=torch.float64)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = collate([{"input_ids": rows[i]["input_ids"]} for i in chosen], config.pad_token_id, config.editable)
        one = as_one_blank(config, batch["input_ids"].to(device), batch["attention_mask"].bool().to(device))
        here = width_nats(model, one.tokens, one.attention_mask, one.blanks, tokens[chosen, None].to(device))
        nats[chosen] = here.cpu()
    return nats


def nats_of_lengths(config, tokens: Tensor) -> Tensor:
    """-log p of lengths (R,) float64 by the training lengths: 0 where it draws none, infinite where it never would."""
    distribution = config.length_probabilities()
    if distribution is None:
        return torch.zeros_like(tokens)
    inside = tokens.long().clamp(max=len(distribution) - 1)
    return -torch.where(tokens < len(distribution), distribution[inside], torch.zeros_like(tokens)).log()


def row_figures(rows: Sequence[dict[str, Any]], tokens: Tensor, total: Tensor, lengths: Tensor) -> dict[str, Any]:
    """What a `BoundReport` says of the (R,) float64 nats of rows: a token, a character, and of their lengths alone.

    tokens: (R,) float64, editable tokens of each row. total: nats of each, `lengths` of them for how long it is.
    """
    per_token, stderr = ratio_with_stderr(total, tokens)
    try:
        perplexity = math.exp(per_token)
    except OverflowError:
        perplexity = math.inf
    chars, bits, bits_stderr = None, None, None
    if all(row.get("num_chars") is not None for row in rows):
        count = torch.tensor([row["num_chars"] for row in rows], dtype=torch.float64)
        chars = int(count.sum())
        bits, bits_stderr = ratio_with_stderr(total / math.log(2), count)
    return {
        "nelbo_nats_per_token": per_token,
        "nelbo_nats_per_token_stderr": stderr,
        "perplexity_bound": perplexity,
        "perplexity_bound_stderr": perplexity * stderr if math.isfinite(perplexity) else math.nan,
        "bits_per_char": bits,
        "bits_per_char_stderr": bits_stderr,
        "length_nats_per_token": float(lengths.sum() / tokens.sum()),
        "rows": len(rows),
        "tokens": int(tokens.sum()),
        "chars": chars,
    }
