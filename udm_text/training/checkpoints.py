"""Checkpoints that are whole or not there: written beside their place, flushed, then renamed; checked before use."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..common import write_json
from .locks import is_alive

STAGING = ".part"
"""How the folders begin, beside the checkpoints, where one is written before it is moved to its place."""
MANIFEST = "manifest.json"
"""In a checkpoint: its step, and the size and SHA-256 of every other file; written last, checked before use."""
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be read."""


def why_unusable(checkpoint: str | Path) -> str | None:
    """Why a run cannot be resumed from `checkpoint`; None where it can.

    It must hold trainer_state.json of its own step, weights, the state of optimiser and schedule and of the random
    numbers; every safetensors file must be as long as its header says, every .pt and .pth file a whole archive. Where
    it has a manifest.json, each file must be the one that was written, byte for byte.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        step = int(state["global_step"])
    except FileNotFoundError:
        return "it has no trainer_state.json"
    except (ValueError, KeyError, TypeError):
        return "its trainer_state.json is not whole"
    if (name := _NAME.fullmatch(folder.name)) and int(name[1]) != step:
        return f"its trainer_state.json is of step {step}"
    sharded = (folder / "latest").exists() or any(folder.glob("pytorch_model_fsdp*"))  # DeepSpeed's and FSDP's own
    wanted = {"random numbers (rng_state*.pth)": "rng_state*.pth"}
    if not sharded:
        if not any((folder / name).exists() for name in ("model.safetensors", "adapter_model.safetensors")):
            wanted["weights (*.safetensors)"] = "model.safetensors.index.json"
        wanted |= {"optimiser state (optimizer.pt)": "optimizer.pt", "schedule state (scheduler.pt)": "scheduler.pt"}
    for what, pattern in wanted.items():
        if not any(folder.glob(pattern)):
            return f"it has no {what}"
    if (index := folder / "model.safetensors.index.json").exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"its {index.name} is not whole"
        if missing := sorted(name for name in shards if not (folder / name).exists()):
            return f"it has no {missing[0]}"
    for file in sorted(folder.glob("*.safetensors")):
        if not is_whole_safetensors(file):
            return f"its {file.name} is cut off"
    for file in sorted((*folder.glob("*.pt"), *folder.glob("*.pth"))):
        if not zipfile.is_zipfile(file):
            return f"its {file.name} is cut off"
    return _against_manifest(folder, step)


def write_manifest(checkpoint: Path, step: int) -> None:
    """Writes manifest.json of the files that are in the folder of a checkpoint, which nothing may change afterwards."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    digests = {path.relative_to(checkpoint).as_posix(): digest_of(path) for path in files}
    write_json(checkpoint / MANIFEST, {"step": step, "files": digests})


def _against_manifest(folder: Path, step: int) -> str | None:
    """How a checkpoint differs from its manifest; None where it does not, or where it was written without one."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        written, digests = int(manifest["step"]), dict(manifest["files"])
        sizes = {name: int(digest["size"]) for name, digest in digests.items()}
    except (ValueError, KeyError, TypeError, OSError):
        return f"its {MANIFEST} is not whole"
    if written != step:
        return f"its {MANIFEST} is of step {written}"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        if (found := (folder / name).stat().st_size) != size:
            return f"its {name} is cut off" if found < size else f"its {name} has {found} bytes in place of {size}"
    for name, digest in digests.items():
        if digest_of(folder / name) != digest:
            return f"its {name} is not what was written (by its SHA-256): damaged, or of another checkpoint"
    return None


def is_whole_safetensors(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says, which its library checks when it opens one."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def digest_of(file: Path) -> dict[str, Any] | None:
    """The size and the SHA-256 of a file; None where there is none."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def checkpoints(folder: str | Path) -> Iterator[Path]:
    """The folders checkpoint-N in `folder`, the latest step first, whole or not."""
    destination = Path(folder)
    found = [p for p in destination.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()] if destination.is_dir() else []
    yield from sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def last_checkpoint(folder: str | Path) -> str | None:
    """The latest checkpoint in `folder` that is whole; None where there is none."""
    return next((str(path) for path in checkpoints(folder) if why_unusable(path) is None), None)


def fsync_tree(folder: Path) -> None:
    """Have a folder and all its files on the disk, so that a rename cannot come before what it names."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """fsync of a file, or of the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know none of folders
            raise
    finally:
        os.close(descriptor)


def move_into_place(written: Path, destination: Path) -> None:
    """Moves a finished folder to its place, in the stead of what may be there."""
    fsync_tree(written)
    if destination.exists():
        old = written.with_name(f"{written.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        destination.rename(old)
        written.rename(destination)
        shutil.rmtree(old, ignore_errors=True)
    else:
        written.rename(destination)
    _sync(destination.parent)


def staging_name() -> str:
    """A name for such a folder that no other process gives: two writers never share one."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    return f"{STAGING}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def sweep(folder: Path, every: bool = False) -> None:
    """Removes the staging folders that runs which were killed have left in `folder`.

    every: those of other machines, too, and of processes that live: for who holds the folder's lock.
    """
    if not folder.is_dir():
        return
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    for path in folder.glob(f"{STAGING}*"):
        owner = re.fullmatch(rf"{re.escape(STAGING)}-(.+)-(\d+)-[0-9a-f]{{8}}", path.name)
        dead = owner is not None and owner[1] == host and not is_alive(int(owner[2]))
        if every or dead or path.name == STAGING:
            shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, limit: int | None, keep: Iterable[str | Path | None]) -> None:
    """Removes all but the latest `limit` checkpoints (None or 0: none), those of `keep` besides being sacred.

    By step, and not by the time of a folder's last change as transformers does it: what is half removed by a run that
    was killed would be the newest then. A checkpoint leaves its name first, so that no half of one is ever seen.
    """
    if not limit or limit < 0:
        return
    sacred = {Path(path).name for path in keep if path is not None}
    found = [path for path in checkpoints(folder) if path.name not in sacred]
    staging = folder / staging_name()
    for path in found[max(0, limit - len(sacred)) :]:
        staging.mkdir(exist_ok=True)
        path.rename(staging / f"{path.name}.old")
    shutil.rmtree(staging, ignore_errors=True)


def move_files_into_place(written: Path, destination: Path) -> None:
    """Moves the files of a finished folder into `destination`, each whole or not at all."""
    fsync_tree(written)
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(written.iterdir()):
        target = destination / path.name
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
    _sync(destination)
    written.rmdir()
