"""What a run was begun with, beside what it is resumed with: told from run.json and report.json of its folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import digest_of, is_whole_safetensors

RUN_FILE = "run.json"
"""Written when training begins: marks a folder as that of a run, which --resume may start anew."""
REPORT_FILE = "report.json"
PATHS = ("data", "validation_data", "tokenizer", "model")
"""Options that may name a path: compared by where it leads."""
QUIET = frozenset(
    "output_dir resume resume_from_checkpoint local_rank logging_dir run_name disable_tqdm log_level "
    "log_level_replica log_on_each_node".split()
)
"""Fields of a run that say nothing of what comes of it."""
NOT_SET = object()

Differences = dict[str, tuple[Any, Any]]
"""Option -> what the run was begun with, what it is resumed with."""


def resolved(name: str | None, kinds: Collection[str] = ()) -> str | None:
    """A path that is there, made absolute, so that a report can be read from elsewhere; any other name as it is.

    kinds: names with a meaning of their own, which no path takes from them.
    """
    return str(Path(name).resolve()) if name and name not in kinds and Path(name).exists() else name


def describe_options(options: Mapping[str, Any], run: Any) -> dict[str, dict[str, Any]]:
    """The options of a run as run.json holds them: dataclasses by name and the training arguments, as they were given.

    To be called before a default is filled in that depends on what is read.
    """
    parts = {name: dict(vars(value)) for name, value in options.items()}
    for part in parts.values():
        part |= {name: resolved(part[name]) for name in PATHS if isinstance(part.get(name), str)}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps({**parts, "run": run.to_dict()}, default=str))
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file holds; None where there is none, or where it is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> Differences:
    """The options that differ between a run.json and what is given now, those that only one of the two knows aside."""
    found: Differences = {}
    as_given = "rows_per_step" in before  # else it was written with what defaults had become
    for kind, options in now.items():
        stored = before.get(kind)
        for name, value in options.items():
            old = stored.get(name, NOT_SET) if isinstance(stored, Mapping) else NOT_SET
            if old is NOT_SET or old == value or (kind == "run" and name in QUIET):
                continue
            if name in PATHS and isinstance(old, str) and resolved(old) == value:
                continue
            if not as_given and (
                name in ("ignore_data_skip", "accelerator_config") or (name == "learning_rate" and value is None)
            ):
                continue
            found[name] = (old, value)
    return found


def finished_report(output: Path, now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The report of a run that is over: it says so, its model is whole, and it had these options; else None."""
    before, report = read_json(output / RUN_FILE), read_json(output / REPORT_FILE)
    if before is None or report is None or "seconds" not in report or str(report.get("stopped")).startswith("SIG"):
        return None
    files = report.get("files", {})
    weights = sorted(output.glob("*.safetensors"))
    whole = bool(weights) and read_json(output / "config.json") is not None and isinstance(files, dict)
    whole = whole and all(is_whole_safetensors(file) for file in weights)
    whole = whole and all(digest_of(output / name) == digest for name, digest in files.items())
    return report if whole and not differences(before, now) else None
