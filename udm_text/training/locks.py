"""One run in a folder at a time: a file that says which process works there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = ".lock"
"""In the folder of a run while a process works there: its host, its number, and since when."""


class LockedError(RuntimeError):
    """Another run works in the folder."""


def process_identity(pid: int) -> str | None:
    """What tells a process from a later one of the same number: boot and start time; None where nobody tells.

    Of a process that has ended and waits for its parent to notice: "ended". Source: proc(5).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else f"{boot} {fields[19]}"


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; True where that cannot be asked."""
    if os.name == "nt":  # there signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process_identity(pid) != "ended"


def _mine() -> dict[str, Any]:
    """What this process writes into a lock."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "identity": process_identity(os.getpid()),
        "job": [os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)],
    }


def _read(file: Path) -> dict[str, Any] | None:
    """The holder that a lock names; None where there is no lock, {} where it names none."""
    for attempt in range(10):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:  # perhaps being written
            time.sleep(0.05 * (attempt < 9))
            continue
        named = isinstance(found, dict) and isinstance(found.get("pid"), int) and isinstance(found.get("host"), str)
        return found if named else {}
    return {}


def _is_over(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock names is certainly gone."""
    job, (mine, restart) = holder.get("job"), _mine()["job"]
    if mine is not None and isinstance(job, list) and len(job) == 2 and job[0] == mine and job[1] != restart:
        return True  # an earlier start of this very job: Slurm ends one before it begins the next
    if holder.get("host") != socket.gethostname():
        return False
    pid, identity = holder["pid"], holder.get("identity")
    return not is_alive(pid) or (identity is not None and process_identity(pid) not in (None, identity))


def refuse_if_locked(folder: Path) -> None:
    """Raises LockedError where another run works in the folder; one that is gone is none."""
    holder = _read(folder / LOCK)
    if holder is None or (holder and _is_over(holder)):
        return
    if not holder:
        raise LockedError(
            f"{folder / LOCK} does not say which process works in {folder}: if none does, remove that file. Nothing "
            "was changed."
        )
    raise LockedError(
        f"{folder} is in use by process {holder['pid']} on host {holder['host']}, since {holder.get('start')}: wait "
        f"for it or give another --output; if it is gone, remove {folder / LOCK}. Nothing was changed."
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, which is made where it is not there, is this process's own inside the block.

    The lock of a process that is gone is taken over. After the block the lock is gone, and folders that were made for
    it where nothing came into them.

    Raises:
        LockedError: another run works there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file, mine = folder / LOCK, _mine()
    try:
        while not _create(file, mine):
            refuse_if_locked(folder)
            _remove_dead(file)
        try:
            yield
        finally:
            held = _read(file)
            if held is not None and (held.get("host"), held.get("pid")) == (mine["host"], os.getpid()):
                file.unlink(missing_ok=True)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _create(file: Path, holder: dict[str, Any]) -> bool:
    """Writes a lock that is not there yet; whether it was not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, json.dumps(holder).encode())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _remove_dead(file: Path) -> None:
    """Removes the lock of a process that is gone, one process at a time: nobody removes what another has just written.

    Who removes holds an flock on the file, and looks again under it whether that file is still the one at its place.
    """
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except (ImportError, OSError):  # not here, or not on this file system: what is left is a very small gap
            pass
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(file))
        except FileNotFoundError:
            return
        holder = _read(file)
        if same and holder and _is_over(holder):
            file.unlink()
    finally:
        os.close(descriptor)
