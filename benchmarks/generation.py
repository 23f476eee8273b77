"""Exact one-token generation against the loop that everybody writes, with the same weights.

    python benchmarks/generation.py                       # mini, small and base; L 64, batch 8; one thread
    python benchmarks/generation.py --threads 2 --json generation.json
    python benchmarks/generation.py --memory              # peak memory at L 512, batch 32, each in its own process

naive   full masked-LM forward, softmax of the full logits in fp32, one random [MASK] of each row filled in
plain   `generate` with the model's own forward, asked at the changing positions (`fastpath.plain_path`)
fast    `generate` as it is
bf16    `generate` as it is, weights in bfloat16

Rounds are interleaved, since a machine drifts; a ratio is the median of the ratios within a round. Exits with 1 where
the logits of the fast path leave those of the full forward by more than 1e-4 anywhere on a trajectory.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModelForMaskedLM, BertConfig  # noqa: E402

from udm_text import UDMConfig, UDMForMaskedGeneration  # noqa: E402
from udm_text.fastpath import FastForward, plain_path  # noqa: E402

SIZES = {"mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
"""Layers, hidden size, heads."""
METHODS = ("naive", "plain", "fast", "bf16")
BARS = {"fast": {"mini": 4.0, "small": 3.0, "base": 1.35}, "bf16": {"mini": 10.0, "small": 9.0, "base": 5.5}}
MEMORY_BARS = {"mini": 1 / 10, "small": 1 / 10, "base": 1 / 5}
TOLERANCE = 1e-4
MASK, VOCABULARY = 103, 30522


def make_model(size: str, length: int, device: str) -> UDMForMaskedGeneration:
    """A random BERT of that size."""
    layers, hidden, heads = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, length),
    )
    backbone = AutoModelForMaskedLM.from_config(config).eval().to(device)
    own = UDMConfig(text_config=config, mask_token_id=MASK, pad_token_id=0, special_token_ids=[100, 101, 102])
    return UDMForMaskedGeneration(own, backbone=backbone).eval()


def make_rows(batch: int, length: int, steps: int, device: str) -> Tensor:
    """(batch, length) random tokens with `steps` masks in each row, at places of its own."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1000, VOCABULARY, (batch, length), generator=generator)
    where = torch.rand(batch, length, generator=generator).argsort(dim=1) < steps
    return rows.masked_fill(where, MASK).to(device)


@torch.no_grad()
def naive(model: UDMForMaskedGeneration, rows: Tensor) -> Tensor:
    """The loop of tutorials: all logits, all probabilities, one position of each row."""
    rows = rows.clone()
    for _ in range(int((rows[0] == MASK).sum())):
        logits = model.backbone(input_ids=rows).logits
        logits[..., MASK] = -torch.inf
        probabilities = logits.float().softmax(dim=-1)
        where = (rows == MASK).float().multinomial(1)[:, 0]
        each = torch.arange(len(rows), device=rows.device)
        rows[each, where] = probabilities[each, where].multinomial(1)[:, 0]
    return rows


def ours(model: UDMForMaskedGeneration, rows: Tensor, plain: bool = False) -> Tensor:
    with plain_path() if plain else nullcontext():
        return model.generate(rows, seed=0)


def make_run(method: str, model: UDMForMaskedGeneration, rows: Tensor) -> Callable[[], Tensor]:
    if method == "naive":
        return lambda: naive(model, rows)
    if method == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    return lambda: ours(model, rows, plain=method == "plain")


@torch.no_grad()
def largest_error(model: UDMForMaskedGeneration, rows: Tensor) -> float:
    """Largest difference of the fast path's logits from the full forward's, on a whole trajectory."""
    output = model.generate(rows, seed=0, output_trajectory=True)
    attended = torch.ones_like(rows, dtype=torch.bool)
    fast = FastForward(model, attended, (rows == MASK).sum(dim=1))
    worst = 0.0
    for xt, xs in zip(output.trajectory, output.trajectory[1:], strict=False):
        changed = xt != xs
        logits = fast(xt, (xt == MASK).sum(dim=1), changed)
        assert logits is not None, "the fast path declines"
        worst = max(worst, float((logits - model.backbone(input_ids=xt).logits[changed]).abs().max()))
    return worst


def measure(run: Callable[[], Tensor], device: str) -> tuple[float, float]:
    """Seconds of a run: CPU time (on CUDA: between events), wall."""
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        wall = time.perf_counter()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, time.perf_counter() - wall
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def speed(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every round, ratios to the naive loop, and the largest error of the fast path."""
    model = make_model(size, options.length, options.device)
    steps = options.steps or {"mini": 64, "small": 32, "base": 16}[size]
    rows = make_rows(options.batch, options.length, min(steps, options.length), options.device)
    short = make_rows(options.batch, options.length, min(4, options.length), options.device)
    error = largest_error(model, rows)
    runs = {method: make_run(method, model, rows) for method in METHODS}
    for method in METHODS:  # warm
        make_run(method, model, short)()
    seconds: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for number in range(options.rounds):
        for method in METHODS[number % len(METHODS) :] + METHODS[: number % len(METHODS)]:
            seconds[method].append(measure(runs[method], options.device))
    result: dict[str, Any] = {"size": size, "steps": min(steps, options.length), "error": error, "methods": {}}
    for method in METHODS:
        own = result["methods"][method] = {}
        for place, clock in enumerate(("cpu", "wall")):
            ratios = [a[place] / b[place] for a, b in zip(seconds["naive"], seconds[method], strict=True)]
            own[clock] = {
                "ms_per_step": [round(1e3 * x[place] / result["steps"], 3) for x in seconds[method]],
                "ratio": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
            }
    return result


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(size: str, method: str, options: argparse.Namespace) -> int:
    """KiB that a step needs at most on top of the model. For a process of its own."""
    model = make_model(size, options.length, options.device)
    if method == "bf16":
        model = model.to(torch.bfloat16)
    make_run(method.replace("bf16", "fast"), model, make_rows(1, 8, 1, options.device))()  # libraries, buffers
    steps = 1 if method == "naive" else 2  # the second packs the head; steps of the naive loop are all alike
    rows = make_rows(options.batch, options.length, steps, options.device)
    run = make_run(method.replace("bf16", "fast"), model, rows)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) // 1024
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def memory(size: str, options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"size": size, "mib": {}}
    for method in METHODS:
        command = [sys.executable, __file__, "--peak", size, method, "--length", str(options.length)]
        command += ["--batch", str(options.batch), "--threads", str(options.threads), "--device", options.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{size} {method} failed: {done.stderr[-500:]}")
        result["mib"][method] = int(done.stdout.split()[-1]) / 1024
    result["share"] = {method: result["mib"][method] / result["mib"]["naive"] for method in METHODS}
    return result


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    return f"{name}, AMX {'yes' if 'amx_bf16' in flags else 'no'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--length", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="masks in a row; default 64, 32, 16 of mini, small, base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory at L 512, batch 32 in place of speed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    heavy = options.memory or options.peak
    options.length = options.length or (512 if heavy else 64)
    options.batch = options.batch or (32 if heavy else 8)
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(*options.peak, options))
        return 0

    about = f"{machine(options.device)}; torch {torch.__version__}; {options.threads} thread(s)"
    print(f"{about}; L {options.length}, batch {options.batch}, vocabulary {VOCABULARY}", flush=True)
    results, wrong = [], False
    for size in options.sizes:
        if options.memory:
            result = memory(size, options)
            for method in METHODS:
                bar = "" if method == "naive" else f"  bar {MEMORY_BARS[size]:.2f}"
                print(f"{size:6} {method:6} {result['mib'][method]:9.0f} MiB  {result['share'][method]:.3f}{bar}")
        else:
            result = speed(size, options)
            for method, clocks in result["methods"].items():
                bar = BARS.get(method, {}).get(size)
                verdict = "" if bar is None else f"  bar {bar} {'met' if clocks['cpu']['ratio'] >= bar else 'MISSED'}"
                cells = [
                    f"{clock} {statistics.median(x['ms_per_step']):8.1f} ms/step  "
                    f"{x['ratio']:5.2f}x ({x['spread'][0]:.2f}-{x['spread'][1]:.2f})"
                    for clock, x in clocks.items()
                ]
                print(f"{size:6} {method:6} {'   '.join(cells)}{verdict}")
            print(f"{size:6} largest error of a logit: {result['error']:.1e}")
            wrong |= not result["error"] <= TOLERANCE
        sys.stdout.flush()
        results.append(result)
    if options.json:
        settings = {"about": about, "length": options.length, "batch": options.batch, "results": results}
        options.json.write_text(json.dumps(settings, indent=1) + "\n")
    if wrong:
        print(f"the fast path leaves the full forward by more than {TOLERANCE}", file=sys.stderr)
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
