"""What a run was begun with, beside what it is resumed with: told from run.json and report.json of its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import digest_of, is_whole_safetensors

RUN_FILE = "run.json"
"""Written when training begins: marks a folder as that of a run, which --resume may start anew."""
REPORT_FILE = "report.json"
PATHS = ("data", "validation_data", "tokenizer", "chat_template", "model", "teacher")
"""Options that may name a path: compared by where it leads."""
QUIET = frozenset(
    "output_dir resume resume_from_checkpoint local_rank logging_dir run_name disable_tqdm log_level "
    "log_level_replica log_on_each_node".split()
)
"""Fields of a run that say nothing of what comes of it."""
FREE = frozenset("num_proc attn_implementation loss_chunk pack_rows sample_every".split())
"""Options of data, model and objective that may change when a run is resumed: what is learned is the same but for
rounding. Every other one may not."""
FIXED = frozenset(
    "seed data_seed ema_decay train_sampling_strategy length_column_name dataloader_drop_last optim optim_args "
    "optim_target_modules eval_rows".split()
)
"""Fields of a run that may not change; every other one may, and is applied."""
STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Learning-rate schedules whose state is of no other."""
NOT_SET = object()


class ResumeError(ValueError):
    """A run cannot be resumed with what is given now."""


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
    parts["paths"] = {
        name: resolved(part[name]) for part in parts.values() for name in PATHS if isinstance(part.get(name), str)
    }
    parts["run"] = run.to_dict()
    rows = run.train_batch_size * run.gradient_accumulation_steps * run.world_size
    parts["batch"] = {"rows_per_step": None if run.rows_by_rule else rows}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(parts, default=str))
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
    as_given = "batch" in before  # else it was written with what defaults had become
    paths = before.get("paths")
    for kind, options in now.items():
        if kind == "paths":
            continue
        stored = before.get(kind)
        for name, value in options.items():
            old = stored.get(name, NOT_SET) if isinstance(stored, Mapping) else NOT_SET
            if old is NOT_SET or old == value or (kind == "run" and name in QUIET):
                continue
            if name in PATHS and isinstance(old, str):
                there = paths.get(name, old) if isinstance(paths, Mapping) else resolved(old)
                if there == now["paths"].get(name):
                    continue
            if not as_given and (
                name in ("ignore_data_skip", "accelerator_config") or (name == "learning_rate" and value is None)
            ):
                continue
            found[name] = (old, value)
    return found


def applied_differences(before: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> Differences:
    """The options that differ and can be applied to a run that is resumed.

    Raises:
        ResumeError: for those that cannot: they name what the run is.
    """
    found = differences(before, now)
    fixed = {name for kind in now if kind not in ("run", "paths") for name in now[kind]} - FREE | FIXED
    if found.get("max_seconds", (0, 0))[0] is None:
        fixed.add("max_seconds")
    if any(value in STATEFUL_SCHEDULES for value in found.get("lr_scheduler_type", ())):
        fixed.add("lr_scheduler_type")
    if refused := {name: values for name, values in found.items() if name in fixed}:
        raise ResumeError(
            f"a run is resumed with what it was begun with, and this one differs: {describe_differences(refused)}. "
            "Give the same as before, or begin anew in another --output. Nothing was changed."
        )
    return found


def describe_differences(found: Differences) -> str:
    """seed 2 in place of 1, ..."""
    return ", ".join(f"{name} {now!r} in place of {before!r}" for name, (before, now) in found.items())


def digest_rows(arrays: Iterable[Any]) -> str:
    """SHA-256 of numpy arrays, one after another: what rows hold, and in which order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_rows(before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raises ResumeError where a run was begun on other rows than those of these digests, or in another order."""
    stored = before.get("rows")
    for name, digest in now.items():
        old = stored.get(name) if isinstance(stored, Mapping) else None
        if old is not None and old != digest:
            raise ResumeError(
                f"the {name} rows are not those that this run was begun with (SHA-256 {digest[:12]}... in place of "
                f"{old[:12]}...): the data was changed or reordered since. Give the same data as before, or begin anew "
                "in another --output. Nothing was changed."
            )


def is_finished(output: Path) -> bool:
    """Whether the report in a folder is that of a run that was not stopped by a signal."""
    report = read_json(output / REPORT_FILE)
    return report is not None and "seconds" in report and not str(report.get("stopped")).startswith("SIG")


def is_begun(output: Path) -> bool:
    """Whether a run has begun in a folder, so that --resume goes on with it or begins it anew."""
    return (output / RUN_FILE).exists()


def finished_report(output: Path, now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The report of a run that is over: it says so, its model is whole, and it had these options; else None."""
    before, report = read_json(output / RUN_FILE), read_json(output / REPORT_FILE)
    if before is None or report is None or not is_finished(output):
        return None
    files = report.get("files", {})
    weights = sorted(output.glob("*.safetensors"))
    whole = bool(weights) and read_json(output / "config.json") is not None and isinstance(files, dict)
    whole = whole and all(is_whole_safetensors(file) for file in weights)
    whole = whole and all(digest_of(output / name) == digest for name, digest in files.items())
    return report if whole and not differences(before, now) else None
