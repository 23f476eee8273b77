"""How good is a model: upper bounds on -log p, each with its standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels import KERNELS
from .objectives import row_losses
from .randomness import RowRandom


@dataclasses.dataclass(frozen=True)
class BoundReport:
    """Upper bounds on the negative log-likelihood of held-out rows. A `_stderr` is one standard error.

    nelbo_nats_per_token counts the tokens and, where the model draws its lengths (`length_included`), the length of
    each row: a bound on -log p of the text itself. bits_per_char divides the same nats by the characters; None where
    the rows do not say how many they have. The standard error covers both the choice of rows and the draws of the
    noise; one row alone has none (nan). The bound is infinite where a row is longer than any length the model can draw.
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
    special = set(config.special_token_ids)
    held = [(i, row) for i, row in enumerate(rows) if any(int(token) not in special for token in row["input_ids"])]
    if not held:
        raise ValueError("there is no row with an editable token to evaluate on")
    return [i for i, _ in held], [row for _, row in held]


@torch.no_grad()
def row_bounds(
    model,
    rows: Sequence[dict[str, Any]],
    index: Sequence[int],
    *,
    batch_size: int,
    draws: int,
    seed: int,
    kernel: str,
) -> Tensor:
    """(len(rows),) float64: NELBO estimate of each row in nats, lengths not counted.

    Each row is corrupted `draws` times, its t stratified over {1..l}; the noise belongs to (seed, index of the row), so
    the figure does not depend on the batch.
    """
    config, process = model.config, model.config.build_process()
    device = model.get_input_embeddings().weight.device
    forbidden = config.forbidden_tokens(device)
    was_training = model.training
    model.eval()
    result = torch.zeros(len(rows), dtype=torch.float64)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], config.pad_token_id, config.editable)
        batch = {name: value.to(device) for name, value in batch.items()}
        editable, mask = batch["labels"] != -100, batch["attention_mask"]
        lengths = editable.sum(dim=1)
        random = RowRandom(seed, torch.tensor([index[i] for i in chosen], device=device))

        def predict(mask: Tensor = mask, **inputs: Tensor) -> Tensor:
            return model(attention_mask=mask, **inputs).logits

        total = torch.zeros(len(chosen), dtype=torch.float64, device=device)
        for stratum in range(draws):
            u = (stratum + random.uniform(1)[:, 0]) / draws
            t = (u * lengths).long().clamp(max=lengths - 1) + 1
            total += row_losses(
                predict, process, batch["input_ids"], editable, t, random, forbidden, kernel=kernel
            ).double()
        result[chosen] = (total / draws).cpu()
    model.train(was_training)
    return result


def evaluate_bound(
    model,
    rows: Iterable[dict[str, Any]],
    *,
    batch_size: int = 64,
    draws: int = 8,
    seed: int = 0,
    kernel: str | None = None,
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
    """
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    kernel = kernel or model.config.kernel
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    index, kept = scored_rows(model.config, rows)
    nats = row_bounds(model, kept, index, batch_size=batch_size, draws=draws, seed=seed, kernel=kernel)
    return summarise(model.config, kept, nats, draws=draws, seed=seed, kernel=kernel)


def summarise(
    config, rows: Sequence[dict[str, Any]], nats: Tensor, *, draws: int, seed: int, kernel: str
) -> BoundReport:
    """`BoundReport` from the NELBO estimate of each row."""
    special = set(config.special_token_ids)
    lengths = [sum(int(token) not in special for token in row["input_ids"]) for row in rows]
    tokens = torch.tensor(lengths, dtype=torch.float64)
    law = config.length_probabilities()
    length_nats = torch.zeros_like(nats)
    if law is not None:
        inside = tokens.long().clamp(max=len(law) - 1)
        length_nats = -torch.where(tokens < len(law), law[inside], torch.zeros_like(tokens)).log()
    total = nats + length_nats
    per_token, per_token_stderr = ratio_with_stderr(total, tokens)
    chars, bits, bits_stderr = None, None, None
    if all(row.get("num_chars") is not None for row in rows):
        count = torch.tensor([row["num_chars"] for row in rows], dtype=torch.float64)
        chars = int(count.sum())
        bits, bits_stderr = ratio_with_stderr(total / math.log(2), count)
    visible = config.build_process().visible
    return BoundReport(
        nelbo_nats_per_token=per_token,
        nelbo_nats_per_token_stderr=per_token_stderr,
        perplexity_bound=math.exp(min(per_token, 700.0)),
        perplexity_bound_stderr=math.exp(min(per_token, 700.0)) * per_token_stderr,
        bits_per_char=bits,
        bits_per_char_stderr=bits_stderr,
        length_nats_per_token=float(length_nats.sum() / tokens.sum()),
        length_included=law is not None,
        process=config.process,
        kernel=None if visible else kernel,
        rows=len(rows),
        tokens=int(tokens.sum()),
        chars=chars,
        draws=draws,
        seed=seed,
    )


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
    special = set(config.special_token_ids)
    fit = [row for row in rows if sum(token not in special for token in row["input_ids"]) >= errors]
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
