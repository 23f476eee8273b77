"""Generation against the loop that everybody writes, with the same weights.

    python benchmarks/generation.py                       # mini, small and base; L 64, batch 8; one thread
    python benchmarks/generation.py --threads 2 --json generation.json
    python benchmarks/generation.py --methods naive cache8 speculate4 --model runs/unicode-names   # a trained model
    python benchmarks/generation.py --compile             # also `compile=True`, and the others under torch.compile
    python benchmarks/generation.py --memory              # peak memory at L 512, batch 32, each in its own process
    python benchmarks/generation.py --device cuda         # a grid: L, batch, precision, compiled or not; share of peak

naive       full masked-LM forward, softmax of the full logits in fp32, one random [MASK] of each row filled in
plain       `generate` with the model's own forward, asked at the changing positions (`fastpath.plain_path`)
fast        `generate` as it is
bf16        `generate` as it is, weights in bfloat16
cache8      `cache_refresh=8`, an approximation: its error is printed with it
speculate2  `speculate=2`, 4 and 8 alike: tokens per network call
guided      `guidance_scale=2`: two calls a step; left out where rows are masks alone (mini, unless --steps is given)
compiled    `compile=True`: a step as one graph (with --compile, as are the next two)
naive-compiled, plain-compiled   the naive loop with the backbone, and `plain` with its body, under torch.compile
confidence  `order="confidence"` from a row of masks only, in two steps: for memory, since it asks everywhere

Rounds are interleaved, since a machine drifts; a ratio is the median of the ratios within a round. Exits with 1 where
the logits of the fast path leave those of the full forward by more than 1e-4 anywhere on a trajectory. Random weights
say nothing about how well drafts fare or how far a cache is off: give those a trained model by --model.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import BACKBONES, MASK, SIZES, VOCABULARY, machine, make_encoder, matrix_peak
from torch import Tensor

from udm_text import UDMForMaskedGeneration
from udm_text.caching import CachedForward
from udm_text.decoding import log_probabilities
from udm_text.fastpath import FastForward, plain_path
from udm_text.positions import Positions

OPTIONS: dict[str, dict[str, Any]] = {
    "fast": {},
    "bf16": {},
    "cache8": {"cache_refresh": 8},
    **{f"speculate{k}": {"speculate": k} for k in (2, 4, 8)},
    "guided": {"guidance_scale": 2.0},
    "compiled": {"compile": True},
    "confidence": {"order": "confidence", "num_steps": 2},
}
"""What `generate` is given."""
METHODS = ("naive", "plain", "fast", "bf16", "cache8", "speculate2", "speculate4", "speculate8", "guided")
MEMORY_METHODS = ("naive", "plain", "fast", "bf16", "cache8", "confidence")
COMPILED = ("naive-compiled", "plain-compiled")
"""With the backbone or its body under torch.compile, in the mode that is given."""
BARS = {"fast": {"mini": 4.0, "small": 3.0, "base": 1.35}, "bf16": {"mini": 10.0, "small": 9.0, "base": 5.5}}
MEMORY_BARS = {"mini": 1 / 10, "small": 1 / 10, "base": 1 / 5}
TOLERANCE = 1e-4


def make_model(size: str, length: int, options: argparse.Namespace) -> UDMForMaskedGeneration:
    """A random network of that size, or the trained model of process mask in that directory."""
    if size not in SIZES:
        return UDMForMaskedGeneration.from_pretrained(size).eval().to(options.device)
    # nothing is trained here: no warning under guidance
    return make_encoder(size, length, options.backbone, prompt_dropout=0.1).eval().to(options.device)


def make_rows(model: UDMForMaskedGeneration, batch: int, length: int, masks: int) -> Tensor:
    """(batch, length) random tokens with `masks` masks in each row, at places of its own.

    Of a trained model (which has training lengths) rows of masks alone, `length` with their frame.
    """
    config, device = model.config, model.get_input_embeddings().weight.device
    if config.length_counts is not None:
        prefix, suffix = config.prefix_token_ids, config.suffix_token_ids
        row = [*prefix, *[config.mask_token_id] * (length - len(prefix) - len(suffix)), *suffix]
        return torch.tensor([row] * batch, device=device)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1000, VOCABULARY, (batch, length), generator=generator)
    where = torch.rand(batch, length, generator=generator).argsort(dim=1) < masks
    return rows.masked_fill(where, MASK).to(device)


@torch.no_grad()
def naive(model: UDMForMaskedGeneration, rows: Tensor) -> Tensor:
    """The loop of tutorials: all logits, all probabilities, one position of each row."""
    rows, mask = rows.clone(), model.config.mask_token_id
    for _ in range(int((rows[0] == mask).sum())):
        logits = model.backbone(input_ids=rows).logits
        logits[..., mask] = -torch.inf
        probabilities = logits.float().softmax(dim=-1)
        where = (rows == mask).float().multinomial(1)[:, 0]
        each = torch.arange(len(rows), device=rows.device)
        rows[each, where] = probabilities[each, where].multinomial(1)[:, 0]
    return rows


def make_run(method: str, model: UDMForMaskedGeneration, rows: Tensor, mode: str | None = None) -> Callable[[], Any]:
    """A run of the method. mode: of torch.compile, for methods that end in "-compiled"."""
    if method.endswith("-compiled"):
        model = copy.deepcopy(model)
        # the naive loop calls the whole backbone; generate finds a compiled body and leaves the fast path for it
        (model.backbone if method.startswith("naive") else model.backbone.base_model).compile(mode=mode)
    if method.startswith("naive"):
        return lambda: naive(model, rows)
    if method == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    if method == "confidence":
        rows = torch.full_like(rows, model.config.mask_token_id)
    options = OPTIONS.get(method, {})

    def run() -> Any:
        with plain_path() if method.startswith("plain") else nullcontext():
            return model.generate(rows, seed=0, return_dict_in_generate=True, **options)

    return run


def possible(methods: list[str], model: UDMForMaskedGeneration, rows: Tensor) -> list[str]:
    """The methods, without guidance where a row holds nothing but masks (and special tokens) to be guided by."""
    given = model.config.editable(rows).any(dim=1).all()
    return [name for name in methods if name != "guided" or bool(given)]


def trajectory(model: UDMForMaskedGeneration, rows: Tensor, **options: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """xt, t and the positions that are asked about, of every one-token step of a generation."""
    states = model.generate(rows, seed=0, output_trajectory=True, **options).trajectory
    for xt, xs in zip(states, states[1:], strict=False):
        yield xt, (xt == model.config.mask_token_id).sum(dim=1), xt != xs


@torch.no_grad()
def largest_error(model: UDMForMaskedGeneration, rows: Tensor) -> float:
    """Largest difference of the fast path's logits from the full forward's, on a whole trajectory."""
    attended = torch.ones_like(rows, dtype=torch.bool)
    fast = FastForward(model, attended, (rows == model.config.mask_token_id).sum(dim=1))
    worst = 0.0
    for xt, t, changed in trajectory(model, rows):
        hidden = fast.hidden(xt, t, Positions.of(changed))
        assert hidden is not None, "the fast path declines"
        logits = fast.head(hidden)
        whole = model.backbone(input_ids=xt).logits[changed]
        worst = max(worst, float((logits - whole).abs().max()))
    return worst


@torch.no_grad()
def cache_error(model: UDMForMaskedGeneration, rows: Tensor, refresh: int) -> dict[str, float]:
    """How far kept keys and values are off, at the positions asked about on a trajectory of theirs.

    log_p_mean, log_p_max: |difference of log p|, nats, of the token that was drawn; kl_mean, kl_max: KL(exact ||
    approximate), nats a token; total_kl: the former summed over a row's steps.
    """
    attended, lengths = torch.ones_like(rows, dtype=torch.bool), (rows == model.config.mask_token_id).sum(dim=1)
    kept, exact = CachedForward(model, attended, lengths, refresh), FastForward(model, attended, lengths)
    forbidden = model.config.forbidden_tokens(rows.device)
    steps = list(trajectory(model, rows, cache_refresh=refresh))
    last = [xt for xt, _, _ in steps[1:]] + [model.generate(rows, seed=0, cache_refresh=refresh)]
    gaps, divergences = [], []
    for (xt, t, changed), xs in zip(steps, last, strict=True):
        said = (forward.head(forward.hidden(xt, t, Positions.of(changed))) for forward in (kept, exact))
        q, p = (log_probabilities(logits, forbidden) for logits in said)
        drawn = xs[changed][:, None]
        gaps.append((q.gather(1, drawn) - p.gather(1, drawn)).abs()[:, 0])
        divergences.append((p.exp() * (p - q).masked_fill(forbidden, 0.0)).sum(dim=1))
    gap, kl = torch.cat(gaps), torch.cat(divergences)
    return {
        "log_p_mean": float(gap.mean()),
        "log_p_max": float(gap.max()),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "total_kl": float(kl.sum() / len(rows)),
    }


def measure(run: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Seconds of a run: CPU time (on CUDA: between events), wall; and its result."""
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        wall = time.perf_counter()
        start.record()
        done = run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, time.perf_counter() - wall, done
    cpu, wall = time.process_time(), time.perf_counter()
    done = run()
    return time.process_time() - cpu, time.perf_counter() - wall, done


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int, device: str, steps: int) -> dict[str, dict[str, Any]]:
    """Of each run: ms a step of each round, and the ratio of the first run's time to its own, by both clocks."""
    names = list(runs)
    seconds: dict[str, list[tuple[float, float, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(measure(runs[name], device))
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        own = table[name] = {}
        for which, clock in enumerate(("cpu", "wall")):
            ratios = [a[which] / b[which] for a, b in zip(seconds[names[0]], seconds[name], strict=True)]
            own[clock] = {
                "ms_per_step": [round(1e3 * x[which] / steps, 3) for x in seconds[name]],
                "ratio": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
            }
        output = seconds[name][0][2]
        if not isinstance(output, Tensor):
            own["calls"] = output.num_calls
            own["tokens_per_call"] = float(output.tokens_per_call.mean())
    return table


def speed(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times of every round, ratios to the naive loop, and the errors of the fast path and of the cache."""
    model = make_model(size, options.length, options)
    masks = min(options.steps or {"mini": 64, "small": 32, "base": 16}.get(size, 64), options.length)
    rows = make_rows(model, options.batch, options.length, masks)
    short = make_rows(model, options.batch, options.length, min(4, options.length))
    steps = int((rows[0] == model.config.mask_token_id).sum())
    methods = possible(options.methods, model, rows)
    compiled = ("compiled", *COMPILED) if options.compile else ()
    methods = list(dict.fromkeys(("naive", *methods, *compiled)))
    result: dict[str, Any] = {"size": size, "steps": steps, "error": largest_error(model, rows)}
    if "cache8" in methods:
        result["cache8"] = cache_error(model, rows, 8)
    for name in methods:  # warm
        if name not in compiled:
            make_run(name, model, short)()
    runs = {name: make_run(name, model, rows) for name in methods}
    for name in compiled:
        runs[name]()  # compiling is not what is timed
    result["methods"] = interleaved(runs, options.rounds, options.device, steps)
    return result


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(size: str, method: str, options: argparse.Namespace) -> int:
    """KiB that a step needs at most on top of the model. For a process of its own."""
    model = make_model(size, options.length, options)
    if method == "bf16":
        model = model.to(torch.bfloat16)
    method = method.replace("bf16", "fast")
    make_run(method, model, make_rows(model, 1, 8, 1))()  # libraries, buffers
    steps = 1 if method == "naive" else 2  # the second packs the head; steps of the naive loop are all alike
    run = make_run(method, model, make_rows(model, options.batch, options.length, steps))
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
    for method in MEMORY_METHODS:
        command = [sys.executable, __file__, "--peak", size, method, "--length", str(options.length)]
        command += ["--batch", str(options.batch), "--threads", str(options.threads), "--device", options.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{size} {method} failed: {done.stderr[-500:]}")
        result["mib"][method] = int(done.stdout.split()[-1]) / 1024
    result["share"] = {method: result["mib"][method] / result["mib"]["naive"] for method in MEMORY_METHODS}
    return result


def work(size: str, method: str, batch: int, length: int) -> float:
    """Multiplications and additions of one step, matrix products alone: what the method has to compute.

    naive: every layer (12 H^2 weights a token, 2 L H for the attention) and the head (H^2 + V H) at every position.
    fast: at every position the first layer without its projections, and the middle layers whole; the last layer, where
    each head attends to its whole input (`fastpath.attend_unprojected`), and the head at one position of each row.
    """
    layers, hidden, heads = SIZES[size]
    attention, head = 2 * length * hidden, hidden**2 + VOCABULARY * hidden
    layer = 12 * hidden**2 + attention
    if method == "naive":
        return 2.0 * batch * length * (layers * layer + head)
    everywhere = (layers - 2) * layer + 9 * hidden**2 + attention
    once = 3 * hidden**2 + 12 * hidden**2 + heads * attention + head
    return 2.0 * batch * (length * everywhere + once)


def grid(size: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times by length, batch and precision, eager and compiled ("reduce-overhead" records CUDA graphs)."""
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        top = matrix_peak(options.device, dtype)
        for length in options.lengths:
            model = make_model(size, length, options).to(dtype)
            for batch in options.batches:
                rows = make_rows(model, batch, length, min(options.steps or 16, length))
                steps = int((rows[0] == MASK).sum())
                methods = [name for name in possible(options.methods, model, rows) if name != "bf16"]
                runs = {name: make_run(name, model, rows) for name in dict.fromkeys(("naive", *methods))}
                if options.compile:
                    runs["compiled"] = make_run("compiled", model, rows)  # chooses its mode itself
                    for mode in ("default", "reduce-overhead"):
                        runs |= {f"{m} {mode}": make_run(m, model, rows, mode) for m in COMPILED}
                for run in runs.values():  # compiles, records graphs, warms up
                    run()
                result = {"size": size, "dtype": name, "length": length, "batch": batch, "peak_flops": top}
                result["error"] = largest_error(model, rows) if dtype == torch.float32 else None
                result["methods"] = interleaved(runs, options.rounds, options.device, steps)
                for method in {"naive", "fast"} & set(runs):
                    own = result["methods"][method]
                    seconds = statistics.median(own["wall"]["ms_per_step"]) / 1e3
                    own["share_of_peak"] = work(size, method, batch, length) / seconds / top
                yield result


def show(result: dict[str, Any]) -> None:
    """One line for each method."""
    about = " ".join(str(result[key]) for key in ("size", "dtype", "length", "batch") if key in result)
    for method, own in result["methods"].items():
        bar = BARS.get(method, {}).get(result["size"]) if "dtype" not in result else None
        cells = [
            f"{clock} {statistics.median(own[clock]['ms_per_step']):8.1f} ms/step "
            f"{own[clock]['ratio']:6.2f}x ({own[clock]['spread'][0]:.2f}-{own[clock]['spread'][1]:.2f})"
            for clock in ("cpu", "wall")
        ]
        if "calls" in own:
            cells.append(f"{own['calls']:4} calls, {own['tokens_per_call']:.2f} tokens/call")
        if "share_of_peak" in own:
            cells.append(f"{own['share_of_peak']:.2f} of the matrix peak")
        if bar is not None:
            cells.append(f"bar {bar} {'met' if own['cpu']['ratio'] >= bar else 'MISSED'}")
        print(f"{about:6} {method:12} {'   '.join(cells)}")
    if result.get("error") is not None:
        print(f"{about:6} largest error of a logit of the fast path: {result['error']:.1e}")
    if "cache8" in result:
        figures = ", ".join(f"{name} {value:.2e}" for name, value in result["cache8"].items())
        print(f"{about:6} error of cache8 in nats: {figures}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--backbone", choices=BACKBONES, default=BACKBONES[0], help="of --sizes")
    parser.add_argument("--model", help="a directory of a trained model of process mask, in place of --sizes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--length", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="masks in a row; default 64, 32, 16 of mini, small, base; grid 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="compile=True, too, and naive and plain under torch.compile"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory at L 512, batch 32 in place of speed")
    parser.add_argument("--grid", action="store_true", help="a grid of lengths, batches, precisions (default on cuda)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512], help="of the grid")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], help="of the grid")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    heavy = options.memory or options.peak
    as_grid = not heavy and (options.grid or options.device.startswith("cuda"))
    if options.model and (options.sizes or heavy or as_grid):
        parser.error("--model is measured for speed, in place of --sizes: leave --sizes, --memory and --grid away")
    sizes = [options.model] if options.model else options.sizes or (["base"] if as_grid else list(SIZES))
    options.length = options.length or (512 if heavy else 64)
    options.batch = options.batch or (32 if heavy else 8)
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(*options.peak, options))
        return 0

    where = f"L {options.lengths}, batch {options.batches}" if as_grid else f"L {options.length}, batch {options.batch}"
    about = f"{machine(options.device)}; torch {torch.__version__}; {options.threads} thread(s)"
    print(f"{about}; {where}" + ("" if options.model else f", vocabulary {VOCABULARY}"), flush=True)
    results: list[dict[str, Any]] = []
    for size in sizes:
        if options.memory:
            results.append(memory(size, options))
            for method in MEMORY_METHODS:
                mib, share = (results[-1][key][method] for key in ("mib", "share"))
                bar = "" if method == "naive" else f"  bar {MEMORY_BARS[size]:.2f}"
                print(f"{size:6} {method:10} {mib:9.0f} MiB  {share:.3f}{bar}", flush=True)
        else:
            for result in grid(size, options) if as_grid else [speed(size, options)]:
                results.append(result)
                show(result)
    if options.json:
        settings = {"about": about, "length": options.length, "batch": options.batch, "results": results}
        options.json.write_text(json.dumps(settings, indent=1) + "\n")
    wrong = [result for result in results if not (result.get("error") or 0.0) <= TOLERANCE]
    if wrong:
        print(f"the fast path leaves the full forward by more than {TOLERANCE}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
