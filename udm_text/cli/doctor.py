"""What this machine has of what the package needs. Nothing is asked of the network, and no token is printed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "udm-text"
EXTRAS = {
    "train": "curves and TensorBoard logs of a training run; without it: --plot false --report_to none",
    "lora": "low-rank adapters of a pretrained model: udm train --lora_rank",
    "int8": "weights of 8 bits: udm export --int8, udm image export --int8",
    "onnx": "a model as an ONNX file: torch.onnx.export",
    "metrics": "MAUVE of drawn texts: udm evaluate --featuriser",
    "molecules": "whether a text is a molecule: recipes/validity.py",
    "images": "images by hot and cold diffusion: udm image",
    "lm-eval": "the lm-evaluation-harness: python -m udm_text.evaluation.harness",
    "app": "a page in the browser to try models on: udm app",
}
"""What each extra gives to a user; those for work on the package itself are none of theirs."""
BFLOAT16 = {True: "bfloat16 is quick, so --bf16 pays", False: "bfloat16 is slow, so stay with float32"}


def requirements(extra: str = "") -> list[Requirement]:
    """What the installed package asks for, or an extra of it beyond that; none where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    every = [Requirement(line) for line in lines]
    if not extra:
        return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [one for one in every if one.marker and "extra" in str(one.marker) and one.marker.evaluate({"extra": extra})]


def offered() -> list[str]:
    """The extras of `EXTRAS` that the installed package has."""
    try:
        there = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        there = []
    return [name for name in EXTRAS if name in there]


def installed(name: str) -> str | None:
    """The version of a package; None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def fits(one: Requirement) -> bool:
    """Whether a version is installed that a requirement allows."""
    version = installed(one.name)
    return version is not None and one.specifier.contains(version, prereleases=True)


def look_at_devices() -> list[dict[str, Any]]:
    """The processor, then what accelerators torch finds. Raises ImportError or OSError where torch does not load."""
    import torch

    from ..training.optimizers import best_optimizer, quick_bfloat16

    cpu = {"device": "cpu", "name": _processor(), "cores": _cores(), "threads": torch.get_num_threads()}
    found: list[dict[str, Any]] = [cpu]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        memory = round(about.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{number}", "name": about.name, "memory_gib": memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple"})
    for one in found:
        device = torch.device(one["device"])
        one |= {"quick_bfloat16": quick_bfloat16(device), "optimizer": best_optimizer(device)}
    return found


def _processor() -> str:
    """The name of the processor as the kernel or the platform gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_at_cache(path: Path) -> dict[str, Any]:
    """Whether a folder can be written to, or made, and how much room there is."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return {"path": _short(path), "writable": writable, "free_gib": round(shutil.disk_usage(there).free / 2**30, 1)}


def _short(path: Path) -> str:
    """A path as it may be shown to others: ~ for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def look_at_caches() -> dict[str, dict[str, Any]]:
    """Where models and data sets are kept; {} where huggingface_hub is not there."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return {}
    data = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    places = {"models": constants.HF_HUB_CACHE, "data sets": data}
    return {name: look_at_cache(Path(place).expanduser().absolute()) for name, place in places.items()}


def examine() -> dict[str, Any]:
    """Everything that `udm doctor` says, JSON-ready; `problems` holds what keeps the package from working."""
    needed = requirements()
    packages = {one.name: {"version": installed(one.name), "needed": str(one.specifier)} for one in needed}
    problems = [
        f"{one.name} is {installed(one.name) or 'not installed'} and must be {one.specifier or 'there'}: "
        f"pip install '{one.name}{one.specifier}'"
        for one in needed
        if not fits(one)
    ]
    if not needed:
        problems.append(f"{DISTRIBUTION} is not installed, so what it needs is not known: pip install it")
    try:
        devices = look_at_devices()
    except (ImportError, OSError) as error:
        devices = []
        problems.append(f"torch does not load: {' '.join(str(error).split())}")
    caches = look_at_caches()
    problems += [
        f"the cache of {name} ({place['path']}) cannot be written to: set HF_HOME to a folder of yours"
        for name, place in caches.items()
        if not place["writable"]
    ]
    lacking = {
        name: [str(one).split(";")[0].strip() for one in requirements(name) if not fits(one)] for name in offered()
    }
    return {
        DISTRIBUTION: __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "extras": {name: {"missing": missing, "gives": EXTRAS[name]} for name, missing in lacking.items()},
        "devices": devices,
        "caches": caches,
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        "problems": problems,
    }


def describe(found: dict[str, Any]) -> str:
    """What `examine` found, in lines for a person."""
    lines = [f"{DISTRIBUTION} {found[DISTRIBUTION]}, Python {found['python']}, {found['platform']}"]
    lines += [
        f"  {name} {one['version'] or 'missing'} (needs {one['needed'] or 'any'})"
        for name, one in found["packages"].items()
    ]
    for name, extra in found["extras"].items():
        state = f"lacks {', '.join(extra['missing'])}" if extra["missing"] else "is there"
        lines.append(f"extra {name} {state}: {extra['gives']}")
    for device in found["devices"]:
        size = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        size = f", {device['threads']} threads on {device['cores']} cores" if "threads" in device else size
        lines.append(f"{device['device']}: {device['name']}{size}; {BFLOAT16[device['quick_bfloat16']]}")
        lines.append(f"  a new network is trained there by {device['optimizer']}, unless --optim says otherwise")
    for name, place in found["caches"].items():
        state = "can be written to" if place["writable"] else "CANNOT be written to"
        lines.append(f"cache of {name}: {place['path']} {state}, {place['free_gib']} GiB free")
    if found["offline"]:
        lines.append("HF_HUB_OFFLINE is set: nothing is fetched from the Hub")
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]] or ["All that is needed is there."]
    return "\n".join(lines)
