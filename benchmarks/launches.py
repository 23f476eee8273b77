"""What a step asks of an accelerator, counted on a CPU: launches, and waits of the host for the device.

    python benchmarks/launches.py                  # BERT of three layers, rows of 16 [MASK], batch 4
    python benchmarks/launches.py --family modernbert --layers 6

The device is simulated (tests/simulated_device.py): its kernels take no time, so that nothing here is a speed. On a GPU
a launch costs the host some microseconds, which bounds what a small model can do, and a wait drains the queue and
forbids a step to be recorded as a graph. Beside every sampler stand the model's plain forward, and the loop that
tutorials show. Counts are those of the most expensive step.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from generation import naive

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.models import CLS, FAMILIES, MASK, SEP, make_udm  # noqa: E402
from tests.simulated_device import SimulatedDevice  # noqa: E402
from udm_text import generation_udm  # noqa: E402

MASKS: dict[str, dict[str, Any]] = {
    "random": {},
    "left to right": {"order": "left_to_right"},
    "confidence": {"order": "confidence"},
    "margin": {"order": "margin"},
    "entropy": {"order": "entropy"},
    "confidence, order_noise": {"order": "confidence", "order_noise": 0.5},
    "4 steps, cosine": {"num_steps": 4, "schedule": "cosine"},
    "top_k, top_p": {"top_k": 5, "top_p": 0.9},
    "guidance_scale (two readings)": {"guidance_scale": 2.0},
    "cache_refresh 4": {"cache_refresh": 4},
    "revise 4": {"revise": 4},
    "churn 0.5": {"churn": 0.5},
    "threshold 0.5": {"threshold": 0.5},
    "speculate 4": {"speculate": 4},
}
SUBSTITUTE: dict[str, dict[str, Any]] = {kernel: {"kernel": kernel} for kernel in ("site", "hamming", "free")}


def steps_of(device: SimulatedDevice, run: Callable[[], Any]) -> tuple[int, int]:
    """Launches and waits of the most expensive step of a generation."""
    seen: list[tuple[int, int]] = []
    call = generation_udm.Watcher.__call__

    def looked(*arguments: Any) -> Any:
        seen.append((device.total, sum(device.waits.values())))
        return call(*arguments)

    with mock.patch.object(generation_udm.Watcher, "__call__", looked), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(seen, seen[1:], strict=False)]
    return max(launches for launches, _ in steps), max(waits for _, waits in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="bert")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--masks", type=int, default=16)
    args = parser.parse_args()
    if min(args.layers, args.batch, args.masks) < 2 or args.masks > 30:
        parser.error("--layers, --batch and --masks must be at least 2, --masks at most 30")
    torch.set_num_threads(1)
    rows = torch.tensor([[CLS, 7, *[MASK] * args.masks, SEP]] * args.batch)
    print(f"{args.family}, {args.layers} layers, {args.batch} rows of {args.masks} [MASK]")
    print(f"\n| a step of | launches | beyond the plain forward | waits |\n| {'--- | ' * 4}".rstrip())
    for process, samplers in (("mask", MASKS), ("substitute", SUBSTITUTE)):
        with SimulatedDevice() as device:
            model = device.move(make_udm(process, family=args.family, layers=args.layers, prompt_dropout=0.1))
            ids, t = device.move(rows), device.move(torch.full((args.batch,), args.masks))
            given = {"input_ids": ids, "attention_mask": device.move(torch.ones_like(rows)), "t": t, "num_editable": t}
            device.reset()
            with torch.no_grad():
                model(**given)
            plain = device.total
            print(f"| **{process}**: the plain forward | {plain} | | {sum(device.waits.values())} |")
            if process == "mask":
                device.reset()
                naive(model, ids)
                launches, waits = round(device.total / args.masks), round(sum(device.waits.values()) / args.masks)
                print(f"| the loop of tutorials, a mean | {launches} | {launches - plain:+} | {waits} |")
            for name, how in samplers.items():
                start = {"input_ids": ids} if process == "mask" else {"length": args.masks, "num_return_sequences": 4}
                launches, waits = steps_of(device, lambda m=model, k={**start, **how}: m.generate(seed=0, **k))
                print(f"| {name} | {launches} | {launches - plain:+} | {waits} |", flush=True)


if __name__ == "__main__":
    main()
