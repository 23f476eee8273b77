"""What every training run does around the training, whatever it trains: its folder, its files, what it was run on."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from .checkpoints import checkpoints, last_checkpoint, why_unusable

RUN_FILE = "run.json"
"""Written when training begins: marks a folder as that of a run, which --resume may start anew."""


class OutputExistsError(FileExistsError):
    """The output folder is not empty and `resume` was not asked for."""


def prepare_output(output: Path, resume: bool) -> str | None:
    """The checkpoint to resume from, or None; refuses a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; --output must be a folder")
    if output.is_dir() and any(output.iterdir()):
        if not resume:
            raise OutputExistsError(
                f"{output} is not empty: give --resume to continue that run, or another --output. Nothing was changed."
            )
        checkpoint = last_checkpoint(output)
        broken = [
            f"{path.name}: {why_unusable(path)}" for path in checkpoints(output) if why_unusable(path) is not None
        ]
        if checkpoint is None and not (output / RUN_FILE).exists():
            found = f" ({'; '.join(broken)})" if broken else ""
            raise OutputExistsError(f"{output} holds no checkpoint to resume from{found}; give another --output")
        return checkpoint  # none yet, but a run of ours: from the beginning
    if resume:
        raise FileNotFoundError(f"{output} holds no checkpoint to resume from")
    return None


def resolved(name: str | None, kinds: Collection[str] = ()) -> str | None:
    """A path that is there, made absolute, so that a report can be read from elsewhere; any other name as it is.

    kinds: names with a meaning of their own, which no path takes from them.
    """
    return str(Path(name).resolve()) if name and name not in kinds and Path(name).exists() else name


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def was_stopped(trainer: Any, output: Path, report: dict[str, Any], state: PartialState) -> bool:
    """Whether a signal ended the training; the report is then written and says so, and the model is not finished."""
    if trainer.stopped_by is None or not trainer.stopped_by.startswith("SIG"):
        return False
    if state.is_main_process:
        write_json(output / "report.json", report)
    print_once(
        state,
        f"{trainer.stopped_by} at step {trainer.state.global_step}: a checkpoint is written, the model is not "
        "finished; the same command with --resume goes on from there",
    )
    return True


def print_once(state: PartialState, text: str) -> None:
    if state.is_main_process:
        print(text, flush=True)


def keep_memory(device: torch.device) -> bool:
    """Have a CPU process keep the memory that a step frees for the next one; whether its C library can be told so.

    glibc gives blocks of a megabyte and more back to the system each time they are freed, and the next step waits for
    fresh, zeroed pages (what that costs: docs/benchmarks.md). What is kept is at most the peak of the
    run, as an accelerator's allocator has it. Anything but Linux with glibc, and any accelerator, is left alone.
    Source: mallopt(3).
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) for name, value in settings.items())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def require_matplotlib() -> None:
    """Fail before training where the plot could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "the loss plot needs matplotlib: pip install 'udm-text[train]', or give --plot false"
        ) from None
