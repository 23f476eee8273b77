"""What a training run on text tells a person: rows and figures in a line, a progress bar, the loss as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import share_in_words, written_whole
from ..run_report import COUNTED, has_diverged, words_on_cuts

_BOUNDS = {None: "NELBO", "chain": "NELBO by the chain rule", "importance": "importance-weighted bound"}
"""What an upper bound on -log p is called, by the likelihood that it is made of (`evaluation.likelihood`)."""


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

    exact, ordered = bool(bound.get("exact")), bound.get("likelihood")
    names = ("NLL", "perplexity") if exact else (_BOUNDS[ordered], "perplexity bound")
    keys = ("nats_per_token", "perplexity") if ordered else ("nelbo_nats_per_token", "perplexity_bound")
    text = f"{names[0]} {figure(keys[0], 4)} nats/token, {names[1]} {figure(keys[1], 2)}"
    if bound["chars"] is not None:
        text += f", {figure('bits_per_char', 4)} bits/char"
        if lost := ((vocabulary or {}).get("round_trip") or {}).get("lost"):
            text += f" without {', '.join(lost)}"
    length = "lengths included" if bound["length_included"] else "lengths given"
    how = "exact" if exact else f"{bound['draws']} {'orders' if ordered else 'draws'} each"
    way = f", order {bound['order']}" if ordered else ""
    return f"{text} ({length}; {bound['rows']} rows, {how}{way})"


def describe_context(context: dict[str, Any], losses: Sequence[float] = (), vocab_size: int | None = None) -> list[str]:
    """The line to print where a model has learnt no context (`ContextReport`), and none where it has.

    losses, vocab_size: of the training, which tell what would help (`has_diverged`).
    """
    if context["learnt_context"] in (True, None):
        return []
    nats = {name: figure_with_error(context[name], context[f"{name}_stderr"], 3) for name in ("nelbo", "unigram")}
    advice = "train longer, or start from an encoder (--model NAME)"
    if has_diverged(losses, context["nelbo"], vocab_size):
        went = f" (it went from {losses[0]:.3f} to {losses[-1]:.3f})" if len(losses) > 1 else ""
        advice = f"the training diverged{went}: give a lower --learning_rate, more --warmup_steps or a --max_grad_norm"
    one_call = "" if context["one_call"] is None else f"{context['one_call']:.3f} for all tokens at once, "
    return [
        f"note: the model has learnt no context yet: {nats['nelbo']} nats a token, {one_call}{nats['unigram']} for a "
        f"model that knows only how often each token is ({context['rows']} rows, lengths not counted): {advice}"
    ]


def describe_samples(figures: dict[str, Any]) -> str:
    """A table: a line for each figure, its values of samples, of held-out and of training texts beside each other.

    Where a model has read the beginnings of texts alone, a line below it says so.
    """
    parts = ("samples", "held_out", "training")
    lines = [f"{'':24}" + "".join(f"{name.replace('_', ' '):>12}" for name in parts)]
    for name in figures["samples"]:
        if name.endswith("_stderr"):
            continue
        values = [figures[part][name] for part in parts]
        shown = ["none" if v is None else str(v) if isinstance(v, int) else f"{v:.4f}" for v in values]
        lines.append(f"{name.replace('_', ' '):24}" + "".join(f"{value:>12}" for value in shown))
    if cut := words_on_cuts(figures):
        lines.append(f"note: {cut}")
    return "\n".join(lines)


def describe_frontier(points: Sequence[dict[str, Any]]) -> str:
    """A table: a line for each number of steps and temperature, perplexity beside the entropies of what was drawn, and
    where a judge has read the beginnings of texts alone, of how many."""
    heads = ["steps", "temperature", "perplexity", "token entropy", "word entropy"]
    heads += ["judge cut"] if any(point["judge_cut"] for point in points) else []
    lines = ["".join(f"{head:>15}" for head in heads)]
    for point in points:
        values = [point[name.replace(" ", "_")] for name in heads[2:]]
        shown = ["none" if v is None else str(v) if isinstance(v, int) else f"{v:.4f}" for v in values]
        lines.append("".join(f"{cell:>15}" for cell in (point["num_steps"], f"{point['temperature']:g}", *shown)))
    return "\n".join(lines)


def draw_frontier(figures: dict[str, Any], path: Path) -> None:
    """Perplexity under the judge against the entropy of its tokens, as a PNG: a line for each number of steps, its
    points the temperatures, and the held-out and the training texts as single points; bars of one standard error.

    figures: of `compare_samples` with a judge, with the points of `measure_frontier` as "frontier".
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    points = [point for point in figures["frontier"] if point["perplexity"] is not None]
    groups = {f"{steps} steps": [p for p in points if p["num_steps"] == steps] for steps in _different(points)}
    known = [name for name in ("held_out", "training") if figures[name]["perplexity"] is not None]
    groups |= {name.replace("_", " "): [figures[name]] for name in known}
    colors = [plt.get_cmap("viridis")(i / len(groups)) for i in range(len(groups))]
    for (label, group), color in zip(groups.items(), colors, strict=True):
        alone = "temperature" not in (group[0] if group else {})
        x, y = ([point[name] for point in group] for name in ("token_entropy", "perplexity"))
        errors = [value * (point["nats_per_token_stderr"] or 0.0) for value, point in zip(y, group, strict=True)]
        style: dict[str, Any] = {"marker": "*", "markersize": 14, "color": "#ee6677" if "held" in label else "#666666"}
        axes.errorbar(x, y, errors, label=label, capsize=3, **(style if alone else {"marker": "o", "color": color}))
        for point in group:
            if not alone:
                place = (point["token_entropy"], point["perplexity"])
                axes.annotate(f"{point['temperature']:g}", place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="entropy of the judge's tokens, nats", ylabel="perplexity under the judge", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="temperatures at the points")
    with written_whole(path) as part:
        figure.savefig(part, dpi=150, format="png")
    plt.close(figure)


def _different(points: Sequence[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(point["num_steps"] for point in points))


def describe_repair(rates: dict[str, Any], by: str = "substitution") -> str:
    """Some lines on how well a repairer does: all errors together, then by their kind and number. by: what it does."""

    def share(figures: dict[str, Any], name: str) -> str:
        if figures[name] is None:
            return "none"
        return share_in_words(figures[name], figures[f"{name}_stderr"], figures.get(COUNTED[name]))

    by_kind = rates["by_kind"]
    numbers = list(next(iter(by_kind.values()), ()))
    spread = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}" if numbers else ""
    what = f"texts with {spread} typing errors" if numbers else "noisy texts"
    lines = [
        f"of {rates['rows']} held-out {what} {share(rates, 'restored')} are restored exactly ({rates['out_of_reach']} "
        f"cannot be reached by {by} of at most {rates['max_edits']} tokens); of those without an error "
        f"{share(rates, 'left_alone')} are left alone",
        f"  edits: precision {share(rates, 'precision')}, recall {share(rates, 'recall')}",
    ]
    for kind, cells in by_kind.items():
        total = sum(cell["rows"] for cell in cells.values())
        unreached = sum(cell["out_of_reach"] for cell in cells.values())
        restored = ", ".join(f"{n}: {share(cell, 'restored')}" for n, cell in cells.items())
        beyond = f" (cannot be reached by {by}: {unreached} of {total})" if unreached else ""
        lines.append(f"  {kind}, by the number of errors: {restored}{beyond}")
    if rates.get("loss_nats_per_token") is not None:
        loss, error = rates["loss_nats_per_token"], rates["loss_nats_per_token_stderr"]
        lines.append(f"  held-out loss, corrupted as in training: {figure_with_error(loss, error, 4)} nats/token")
    return "\n".join(lines)


def describe_evaluation(logs: dict[str, float]) -> str:
    """The held-out bound of an evaluation in the middle of training, or a twin's loss."""
    if "eval_nelbo_nats_per_token" not in logs:
        return f"held-out loss {logs['eval_loss']:.4f} nats/token"
    value, error = (logs[f"eval_nelbo_nats_per_token{end}"] for end in ("", "_stderr"))
    return f"held-out NELBO {figure_with_error(value, error, 4)} nats/token"


def draw_loss(
    history: list[dict[str, Any]],
    path: Path,
    final: dict[str, Any] | None = None,
    *,
    loss_is_bound: bool = True,
    counts_lengths: bool = False,
) -> bool:
    """Training loss and held-out bounds over the steps, as a PNG; whether there was a point to draw.

    What stands on one axis is one quantity: the held-out bounds leave out what the training loss leaves out, the
    lengths of rows, and stand in an image of their own below it where it estimates no bound.

    Args:
        history: of the trainer. final: the bound of the finished model.
        loss_is_bound: whether the training loss estimates the bound. counts_lengths: whether it counts lengths of rows,
            or as a causal twin their ends.
    """
    train = [(entry["step"], entry["loss"], 0.0) for entry in history if _number(entry.get("loss")) is not None]
    held = [
        point for entry in history if (point := _bound_of(entry, entry["step"], "eval_", counts_lengths)) is not None
    ]
    last = max((entry["step"] for entry in history if "step" in entry), default=0)
    point = None if final is None else _bound_of(final, last, "", counts_lengths)
    end = [] if point is None else [point]
    if not train and not held:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    below = bool(train and (held or end) and not loss_is_bound)
    figure, rows = plt.subplots(1 + below, sharex=True, squeeze=False, figsize=(7, 4 + 3 * below), layout="constrained")
    loss, bound = rows[0, 0], rows[-1, 0]
    if train:
        steps, values, _ = zip(*train, strict=True)
        loss.plot(steps, values, label="training loss", color="#4477aa", linewidth=1)
    styles = ((held, "held-out bound", "#ee6677", "o"), (end, "held-out bound at the end", "#228833", "D"))
    for points, label, color, marker in styles:
        if points:
            steps, values, errors = zip(*points, strict=True)
            label += f": {values[-1]:.3f}" if points is end else ""
            bound.errorbar(steps, values, errors, label=label, color=color, marker=marker, capsize=3)
    lengths = "ends of rows counted" if counts_lengths else "lengths of rows not counted"
    bound.set(xlabel="step", ylabel=f"nats per token, {lengths}")
    if below:
        loss.set(ylabel="nats per token, loss of training")
    for axes in rows[:, 0]:
        axes.set(yscale="log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    with written_whole(path) as part:
        figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    return True


def _number(value: Any) -> float | None:
    """A finite number; None in place of any other value."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _bound_of(figures: dict[str, Any], step: int, prefix: str, counts_lengths: bool) -> tuple[int, float, float] | None:
    """(step, bound in nats per token, its error) as `draw_loss` draws it; None: it is infinite, or not there."""
    value, error = (_number(figures.get(f"{prefix}nelbo_nats_per_token{end}")) for end in ("", "_stderr"))
    lengths = 0.0 if counts_lengths else _number(figures.get(f"{prefix}length_nats_per_token"))
    return None if value is None or lengths is None else (step, value - lengths, error or 0.0)
