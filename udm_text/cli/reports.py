"""What a training run on text tells a person: rows and figures in a line, a progress bar, the loss as an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..common import written_whole


def describe_rows(dropped: dict[str, int], vocabulary: dict[str, Any], rows: int) -> str:
    """What of the corpus training will not see, each with its share; and what of the vocabulary."""
    lost = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in dropped.items())
    return (
        f"note: of {rows} training rows: {lost} ({vocabulary['unknown_share']:.2%} of tokens unknown); "
        f"{vocabulary['never_seen']} tokens of the vocabulary ({vocabulary['never_seen_share']:.1%}) never occur"
    )


def describe_round_trip(vocabulary: dict[str, Any], rows: int) -> str | None:
    """What the tokenizer does not give back, where it does not give all of a corpus of so many rows back."""
    found = vocabulary.get("round_trip")
    if not found or found["exact"] == found["texts"]:
        return None
    sample = f"a sample of {found['texts']} of " if found["texts"] < rows else ""
    return (
        f"{found['exact']} of {sample}{rows} rows come back exactly: this tokenizer loses {', '.join(found['lost'])}, "
        "which figures per character leave out"
    )


def figure_with_error(value: float | None, error: float | None, digits: int) -> str:
    """A figure +- one standard error; None and infinity alike are infinite, an error that is no number unknown."""
    if value is None or not math.isfinite(value):
        return "infinite"
    known = error is not None and math.isfinite(error)
    return f"{value:.{digits}f} +- {format(error, f'.{digits}f') if known else 'unknown'}"


def describe(bound: dict[str, Any], vocabulary: dict[str, Any] | None = None) -> str:
    """One line on a bound, each figure with its standard error; with what the tokenizer loses of the text, if any."""

    def figure(name: str, digits: int) -> str:
        return figure_with_error(bound[name], bound[f"{name}_stderr"], digits)

    exact = bool(bound.get("exact"))
    names = ("NLL", "perplexity") if exact else ("NELBO", "perplexity bound")
    values = figure("nelbo_nats_per_token", 4), figure("perplexity_bound", 2)
    text = f"{names[0]} {values[0]} nats/token, {names[1]} {values[1]}"
    if bound["chars"] is not None:
        text += f", {figure('bits_per_char', 4)} bits/char"
        if lost := ((vocabulary or {}).get("round_trip") or {}).get("lost"):
            text += f" without {', '.join(lost)}"
    length = "lengths included" if bound["length_included"] else "lengths given"
    how = "exact" if exact else f"{bound['draws']} draws each"
    return f"{text} ({length}; {bound['rows']} rows, {how})"


def describe_repair(rates: dict[str, Any]) -> str:
    """One line on how well a repairer does."""
    restored, left = (f"{rates[name]:.1%} +- {rates[f'{name}_stderr']:.1%}" for name in ("restored", "left_alone"))
    return (
        f"of {rates['rows']} held-out rows with one wrong token {restored} are restored exactly; without an error "
        f"{left} are left alone"
    )


def describe_evaluation(logs: dict[str, float]) -> str:
    """The held-out bound of an evaluation in the middle of training, or a twin's loss."""
    if "eval_nelbo_nats_per_token" not in logs:
        return f"held-out loss {logs['eval_loss']:.4f} nats/token"
    value, error = (logs[f"eval_nelbo_nats_per_token{end}"] for end in ("", "_stderr"))
    return f"held-out NELBO {figure_with_error(value, error, 4)} nats/token"


def draw_loss(history: list[dict[str, Any]], path: Path, final: dict[str, Any] | None = None) -> None:
    """Training loss and held-out bounds over the steps, as a PNG; `final` is the bound of the finished model.

    The training loss does not count the lengths of rows, and neither does the last bound as it is drawn here.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held = [
        (entry["step"], entry["eval_nelbo_nats_per_token"], entry["eval_nelbo_nats_per_token_stderr"])
        for entry in history
        if math.isfinite(entry.get("eval_nelbo_nats_per_token", math.nan))
    ]
    if train:
        axes.plot(*zip(*train, strict=True), label="training loss", color="#4477aa", linewidth=1)
    if held:
        steps, values, errors = zip(*held, strict=True)
        errors = tuple(error if math.isfinite(error) else 0.0 for error in errors)
        axes.errorbar(steps, values, errors, label="held-out bound", color="#ee6677", marker="o", capsize=3)
    if final is not None and final["nelbo_nats_per_token"] is not None and train:
        value = final["nelbo_nats_per_token"] - final["length_nats_per_token"]
        label = f"held-out bound at the end: {value:.3f}, lengths not counted"
        axes.errorbar(
            train[-1][0], value, final["nelbo_nats_per_token_stderr"] or 0.0, color="#228833", marker="D", label=label
        )
    axes.set(xlabel="step", ylabel="nats per token", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    if train or held:
        axes.legend()
    with written_whole(path) as part:
        figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
