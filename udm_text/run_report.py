"""What a training wrote down of itself, report.json: read with care, and its figures in words."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCard

from .common import finite, read_object, share_in_words
from .configuration_udm import PRESETS

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")  # bert-base-uncased and its like have no owner
_CACHED = re.compile(r"models--([\w.-]+)")  # a folder in the cache of the Hub's client
TEXTS = "examples"
"""The field of report.json that holds texts of the data, not names."""
_FIGURES = {  # of report.json: name in words, and digits
    "bits_per_char": ("bits per character", 4),
    "nelbo_nats_per_token": ("nats per token", 4),
    "perplexity_bound": ("perplexity per token", 2),
}
_RATES = {
    "restored": "texts with errors restored exactly",
    "left_alone": "texts without an error left alone",
    "precision": "precision of the edits",
    "recall": "recall of the edits",
}
COUNTED = {"restored": "rows", "left_alone": "left_alone_rows", "precision": "edits_made", "recall": "edits_needed"}
"""Of these shares the field of the report that says of how many they are."""
_DRAWN = (
    "perplexity token_entropy mauve valid word_entropy distinct_2 self_bleu repetition length_distance gram_distance "
    "copies nearest"
).split()
"""Figures of drawn texts that a card shows (`evaluation.samples`), in their order."""
_TOKEN_RATES = {  # of a report that says how many tokens were wrong, as older ones do
    "restored": "rows with one wrong token restored exactly",
    "left_alone": "rows without an error left alone",
}


def is_local(name: str) -> bool:
    """Whether a string that names data or a model is a path of this machine rather than a name on the Hub."""
    return os.path.isabs(name) or name.startswith(("~", ".")) or "\\" in name or os.path.exists(name)


def public(value: Any) -> Any:
    """`report.json` as it may be published: of every path on this machine only the last part, within sentences, too."""
    if isinstance(value, dict):
        return {key: entry if key == TEXTS else public(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if isinstance(value, str) and value and is_local(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    if isinstance(value, str) and " " in value:
        return re.sub(r"(?<!\S)[~.]{0,2}/(?:[^\s/]+/)*(?=[^\s/])", "", value)
    return finite(value)


def describe_data(data: str | None) -> dict[str, str]:
    """Name, Hub id and licence of the data as far as they are known; the card of a local data set is read."""
    if data is None:
        return {}
    if not is_local(data):
        return {"name": data, "hub": data} if HUB_NAME.fullmatch(data) else {"name": data}
    known = {"name": " ".join(str(public(data)).split())}
    card = Path(data) / "README.md"
    if card.is_file():
        fields = DatasetCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
        if fields.get("pretty_name"):
            known["name"] = " ".join(str(fields["pretty_name"]).split())
        licence = fields.get("license_name") or fields.get("license")
        if licence:
            known["license"] = ", ".join(licence) if isinstance(licence, list) else str(licence)
    return known


def read_report(path: str | Path) -> dict[str, Any]:
    """The report.json of a training; raises ValueError, naming file and field, where it is none."""
    report = finite(read_object(path))
    kinds: dict[str, Any] = dict.fromkeys(
        ("validation", "repair", "curve", "samples", "machine", "model_arguments", "data_arguments", "held_out"), dict
    )
    kinds |= {"data": str, "process": str, "base_model": str, "teacher": str, "command": list, TEXTS: list}
    kinds |= {"max_corruption": int | float, "train_seconds": int | float}
    fields = [(name, report.get(name), kind) for name, kind in kinds.items()]
    inside: dict[str, dict[str, Any]] = {"model_arguments": {"model": str}, "data_arguments": {"validation_data": str}}
    inside["held_out"] = {"data": str, "split": str, "share": int | float}
    inside["samples"] = {"seed": int, **dict.fromkeys(("samples", "held_out", "training"), dict)}
    inside["samples"] |= dict.fromkeys(("judge", "featuriser", "validity"), str)
    for part, named in inside.items():
        if isinstance(report.get(part), dict):
            fields += [(f"{part}.{name}", report[part].get(name), kind) for name, kind in named.items()]
    for part, kind in (("command", str), (TEXTS, dict)):
        if isinstance(report.get(part), list):
            fields += [(f"{part}[{i}]", entry, kind) for i, entry in enumerate(report[part])]
    for i, example in enumerate(report.get(TEXTS) or []):
        if isinstance(example, dict):
            fields += [(f"{TEXTS}[{i}].{name}", example.get(name), str) for name in ("prompt", "text")]
    for part in ("validation", "repair"):
        held = report.get(part)
        if isinstance(held, dict):
            measured = (*_FIGURES, *_RATES)
            names = [name for key in measured for name in (key, f"{key}_stderr")]
            fields += [(f"{part}.{name}", held.get(name), int | float) for name in names]
    for name, value, kind in fields:
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            words = {dict: "an object", str: "a string", list: "a list"}.get(kind, "a number")
            raise ValueError(f"{path}: {name} must be {words}, got {value!r}")
    return {name: value for name, value in report.items() if value is not None or name not in kinds}


def inline(text: str) -> str:
    """A string that is shown as it is within a line or a cell of Markdown: no markup, no HTML, no control character."""
    tidy = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", " ".join(tidy.split()))


def hub_name(model: str) -> str | None:
    """The name on the Hub of a model to start from, None where it has none that is known.

    It is the name itself; of a folder in the cache of the Hub's client the repository it is of; of a run of ours, which
    was not published under a name of its own here, that of what the run started from.
    """
    if model in PRESETS:
        return None
    if not is_local(model):
        return model if HUB_MODEL.fullmatch(model) else None
    for part in Path(model).parts:
        if (found := _CACHED.fullmatch(part)) is not None:
            return found[1].replace("--", "/", 1)
    report = Path(model) / "report.json"
    return base_model(read_report(report)) if report.is_file() else None


def base_model(report: dict[str, Any]) -> str | None:
    """The name on the Hub of what the training started from, or None: from scratch, or from what has no such name."""
    if "base_model" in report:
        found: str | None = report["base_model"]
        return found
    name = report.get("model_arguments", {}).get("model")
    return None if name is None or not HUB_NAME.fullmatch(name) else hub_name(name)


def has_diverged(losses: Sequence[float], bound: float | None = None, vocab_size: int | None = None) -> bool:
    """Whether a training went the wrong way: it ended on a higher loss than it began with, or worse than by guessing.

    Args:
        losses: that were logged, in their order; the end is the mean of the last tenth of them, and noise may make it
            up to 5 % higher. bound: nats a token of the model; those of a guess among all tokens are log(vocab_size).
    """
    last = losses[-max(1, len(losses) // 10) :]
    if len(losses) > 1 and sum(last) / len(last) > 1.05 * losses[0]:
        return True
    return bound is not None and vocab_size is not None and not bound <= 1.1 * math.log(vocab_size)


def went_wrong(report: dict[str, Any]) -> bool:
    """`has_diverged` of a report of a training."""
    context = report.get("context")
    bound, vocabulary = context.get("nelbo") if isinstance(context, dict) else None, report.get("vocab_size")
    losses: list[Any] = [entry.get("loss") for entry in report.get("log") or [] if isinstance(entry, dict)]
    known = is_number(bound) and is_number(vocabulary)
    return has_diverged([x for x in losses if is_number(x)], *((bound, vocabulary) if known else ()))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class HeldOut(NamedTuple):
    """What the figures were measured on."""

    words: str
    """Behind the number of rows."""
    data: dict[str, str]
    """Of `describe_data`."""
    split: str


def held_out(report: dict[str, Any]) -> HeldOut:
    """Where the held-out rows of a report came from. report: as it was written, paths and all."""
    source = report.get("data")
    known = report.get("held_out") or {}
    other = report.get("data_arguments", {}).get("validation_data")
    own = other is None
    data = describe_data(known.get("data") or (source if own else other))
    name = inline(data.get("name", "its data"))
    if not own:
        split = known.get("split", "train") if "hub" in data else "validation"  # a file is what it was given for
        return HeldOut(f"rows of {name}, a source apart from the training data", data, split)
    if known.get("share") is not None:
        words = f"rows of {name} that were held out of the training (a share of {known['share']:g})"
        return HeldOut(words, data, "train")
    if known.get("split") is not None:
        return HeldOut(f"rows of {name}, its {known['split']} split", data, known["split"])
    return HeldOut(f"held-out rows of {name}", data, "validation")


class Figure(NamedTuple):
    """A figure of a report on held-out text; text: as the card shows it, with its error."""

    key: str
    words: str
    value: float
    error: float | None
    """One standard error; None where there is none, or where it says nothing: of a share of none or all."""
    text: str


def measured(report: dict[str, Any]) -> list[Figure]:
    """The figures that a report holds on held-out text."""
    figures = []
    bound, repair = (finite(report.get(name) or {}) for name in ("validation", "repair"))
    if bound.get("nelbo_nats_per_token") is None:  # infinite, and what follows from it with it
        bound = {}
    for key, (words, digits) in _FIGURES.items():
        if bound.get(key) is not None:
            value, error = bound[key], bound.get(f"{key}_stderr")
            text = f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
            figures.append(Figure(key, f"{words}, upper bound", value, error, text))
    of_tokens = "errors" in repair
    for key, words in (_TOKEN_RATES if of_tokens else _RATES).items():
        if (share := repair.get(key)) is not None:
            error = repair.get(f"{key}_stderr") if 0.0 < share < 1.0 else None
            count = repair.get("rows" if of_tokens else COUNTED[key])
            text = f"{share:.4f}" if error is None and not count else share_in_words(share, error, count, ".4f", "±")
            figures.append(Figure(f"{key}_rate", words, share, error, text))
    return figures


def drawn_figures(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Of the drawn texts of a report each figure in words, and its values of samples, held-out and training texts."""
    known = report.get("samples") or {}
    parts = [known[name] for name in ("samples", "held_out", "training") if isinstance(known.get(name), dict)]
    if len(parts) < 3:
        return []
    rows = [(name.replace("_", " "), [part.get(name) for part in parts]) for name in _DRAWN]
    return [(words, [f"{value:.4g}" for value in values]) for words, values in rows if all(map(is_number, values))]


def words_on_judges(report: dict[str, Any]) -> str:
    """By whom the drawn texts of a report were judged, in a sentence; "" where by nobody."""
    what = {"judge": "perplexity and token entropy by", "featuriser": "MAUVE by", "validity": "validity by"}
    known = report.get("samples") or {}
    said = ", ".join(f"{words} {inline(known[name])}" for name, words in what.items() if known.get(name))
    cut = words_on_cuts(known)
    return f"{said[0].upper()}{said[1:]}.{f' {cut}' if cut else ''}" if said else ""


def words_on_cuts(samples: Mapping[str, Any]) -> str:
    """Of how many drawn, held-out and training texts a judge or a featuriser read the beginning alone; "" of none."""
    parts = {"samples": "samples", "held_out": "held-out texts", "training": "training texts"}
    found = []
    for who, figure, total in (("judge", "perplexity", "texts"), ("featuriser", "MAUVE", "compared")):
        each = {name: samples[name] for name in parts if isinstance(samples.get(name), dict)}
        counts = {name: part[f"{who}_cut"] for name, part in each.items() if is_number(part.get(f"{who}_cut"))}
        if any(counts.values()):
            of = ", ".join(f"{count} of {each[name].get(total)} {parts[name]}" for name, count in counts.items())
            found.append(f"Texts longer than the {who} reads are cut, and {figure} is of their beginnings: {of}.")
    return " ".join(found)


def evaluation_command(repo_id: str, report: dict[str, Any]) -> str:
    """The command line that measures the held-out figures of a published report once more.

    Data on the Hub are found by their name in the report; others are named, where a shell takes the name as it is.
    """
    held = (report.get("data_arguments") or {}).get("validation_data")
    data, split = (report.get("data"), "validation") if held is None else (held, "train")
    bound = report.get("validation") or {}
    given = [(name, bound.get(name), default) for name, default in (("draws", 8), ("seed", 0))]
    how = "".join(f" --{name} {value}" for name, value, default in given if is_number(value) and value != default)
    if all(HUB_NAME.fullmatch(name) for name in (report.get("data") or "", held or "a/b")):
        return f"udm evaluate {repo_id}{how}"
    plain = data is not None and re.fullmatch(r"[\w./+][\w./+-]*", data)
    return f"udm evaluate {repo_id} --data {data if plain else 'DATA'} --split {split}{how}"
