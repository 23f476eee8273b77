"""A training step against the one that everybody writes: full logits, with the same optimiser and precision.

    python benchmarks/training.py                          # mini, small and base; 32 rows x 128 tokens; one thread
    python benchmarks/training.py --threads 2 --json training.json
    python benchmarks/training.py --bf16                   # autocast
    python benchmarks/training.py --bf16 --backbone nomic_bert --methods gathered wide --sizes mini
    python benchmarks/training.py --keep-memory            # freed memory stays with the process, as in `udm train`
    python benchmarks/training.py --memory                 # peak memory of a step, each in its own process
    python benchmarks/training.py --device cuda            # L 128 and 512, fp32 and bf16, compiled or not; tokens/s

full       the backbone's logits at every position, cross-entropy where there is a mask
gathered   the trainer's objective: masked positions alone go through the language-model head
chunked    the same with `loss_chunk`: logits of that many rows at a time, made again in backward
wide       gathered, with the angles of rotary positions as transformers has them: float32 under autocast

All take the same rows, noise, weights and fused AdamW, and clip gradients. Rounds are interleaved, since a machine
drifts; a ratio is the median of the ratios within a round. "of peak" is the operations that the step needs (forward,
and twice that for backward) by its time, over what this machine's matrix product reaches in the same precision.
Exits with 1 where the losses of the methods differ by more than 1e-4 of their size (1e-2 in bf16).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import torch  # noqa: E402
from common import BACKBONES, MASK, SIZES, VOCABULARY, machine, make_encoder, matrix_peak, synchronize  # noqa: E402
from torch import Tensor  # noqa: E402

from udm_text import UDMForMaskedGeneration  # noqa: E402
from udm_text.objectives import stratified_counts  # noqa: E402
from udm_text.randomness import step_random  # noqa: E402
from udm_text.training.objective import TextObjective  # noqa: E402
from udm_text.training.precision import narrow_angles  # noqa: E402
from udm_text.training.runs import keep_memory  # noqa: E402

METHODS = ("full", "gathered", "chunked", "wide")
BARS = {"mini": 1.4, "small": 1.3, "base": 1.1}
CHUNK = 256
WARM_UP = 3


def make_model(size: str, length: int, device: str, attention: str, backbone: str) -> UDMForMaskedGeneration:
    """A random network of that size, without dropout."""
    return make_encoder(size, length, backbone, attention, dropout=0.0).to(device).train()


def make_batch(objective: TextObjective, rows: int, length: int, device: str) -> dict[str, Tensor]:
    """Rows of random tokens without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, VOCABULARY, (rows, length), generator=generator)
    batch = objective.collate([{"input_ids": row.tolist()} for row in ids])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def full_loss(model: UDMForMaskedGeneration, batch: dict[str, Tensor], step: int, objective: TextObjective) -> Tensor:
    """The loss of the objective from logits at every position (special tokens stay in the softmax: four of 30,522)."""
    x0, mask = batch["input_ids"], batch["attention_mask"]
    editable = batch["editable"]
    lengths, row_index = editable.sum(dim=1), torch.arange(len(x0), device=x0.device)
    t = stratified_counts(lengths, row_index, len(x0), 0x5354524154410000, step)
    process, random = objective.process, step_random(0, step, row_index)
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    logits = model.backbone(input_ids=xt, attention_mask=mask).logits
    target = x0.masked_fill(xt != MASK, -100)
    scores = logits.float().flatten(0, 1)
    ce = torch.nn.functional.cross_entropy(scores, target.flatten(), ignore_index=-100, reduction="none")
    return (ce.view_as(x0).sum(dim=1) * lengths / t).sum() / lengths.sum()


def make_step(
    method: str,
    size: str,
    rows: int,
    length: int,
    device: str,
    bf16: bool,
    compiled: bool,
    attention: str,
    backbone: str,
) -> Callable[[int], float]:
    """A training step of a model of its own; gives the loss."""
    model = make_model(size, length, device, attention, backbone)
    if method != "wide":
        narrow_angles(model)
    objective = TextObjective(model.config, loss_chunk=CHUNK if method == "chunked" else None)
    batch = make_batch(objective, rows, length, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    row_index = torch.arange(rows, device=device)
    if compiled:
        (model.backbone if method == "full" else model.backbone.base_model).compile(dynamic=False)

    def step(number: int) -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            if method == "full":
                loss = full_loss(model, batch, number, objective)
            else:
                terms = objective.row_terms(model, batch, row_index=row_index, total=rows, step=number, seed=0)
                loss = terms.sum() / objective.num_items(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def operations(size: str, rows: int, length: int) -> float:
    """Of a step that scores half of its positions: multiplications and additions, forward and backward."""
    layers, hidden, _ = SIZES[size]
    body = layers * (2 * 12 * hidden**2 + 4 * length * hidden)
    head = 2 * hidden**2 + 2 * hidden * VOCABULARY
    return 3.0 * rows * length * (body + head / 2)


def compare(size: str, rows: int, length: int, rounds: int, how: dict[str, Any], methods: list[str]) -> dict[str, Any]:
    """Seconds of a step of each method, interleaved, and the ratios to full logits."""
    device, peak = how["device"], matrix_peak(how["device"], torch.bfloat16 if how["bf16"] else torch.float32)
    steps = {method: make_step(method, size, rows, length, **how) for method in methods}
    losses = {method: [step(i) for i in range(WARM_UP)] for method, step in steps.items()}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(WARM_UP, WARM_UP + rounds):
        for method, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            losses[method].append(step(number))
            synchronize(device)
            seconds[method].append(time.perf_counter() - start)
    reference = losses[methods[0]]
    needed, entry = operations(size, rows, length), {}
    for method in methods:
        median = statistics.median(seconds[method])
        ratios = [a / b for a, b in zip(seconds[methods[0]], seconds[method], strict=True)]
        entry[method] = {
            "seconds": median,
            "ratio": statistics.median(ratios),
            "tokens_per_second": rows * length / median,
            "share_of_peak": needed / median / peak,
            "largest_difference": max(abs(a - b) / abs(a) for a, b in zip(reference, losses[method], strict=True)),
        }
    return {"size": size, "rows": rows, "length": length, **how, "peak_operations": peak, "methods": entry}


def peak_memory(method: str, size: str, rows: int, length: int, how: dict[str, Any]) -> dict[str, float]:
    """MiB that steps need beyond weights, gradients and optimiser state; in a process of its own."""
    step = make_step(method, size, rows, length, **how)
    if how["device"] != "cpu":
        step(0)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(1)
        return {"MiB": (torch.cuda.max_memory_allocated() - before) / 2**20}
    model = make_model(size, length, "cpu", how["attention"], how["backbone"])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    del model
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    for number in range(2):
        step(number)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"MiB": after - before - 3 * weights / 2**20, "whole_MiB": after}


def memory(size: str, rows: int, length: int, how: dict[str, Any], methods: list[str]) -> dict[str, Any]:
    entry = {}
    for method in methods:
        job = json.dumps([method, size, rows, length, how])
        command = [sys.executable, __file__, "--child", job]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        entry[method] = json.loads(result.stdout.splitlines()[-1])
    return {"size": size, "rows": rows, "length": length, **how, "memory": entry}


def show(result: dict[str, Any]) -> None:
    kind = f"{result['size']:6}{result['rows']:4} x {result['length']:<5}{'bf16' if result['bf16'] else 'fp32'}"
    kind += " compiled" * result["compiled"]
    for method, found in result.get("methods", {}).items():
        bar = BARS[result["size"]] if method == "gathered" and not result["bf16"] else None
        said = "" if bar is None else f"  (bar {bar}: {'reached' if found['ratio'] >= bar else 'MISSED'})"
        print(
            f"{kind}  {method:9}{1000 * found['seconds']:9.1f} ms  x{found['ratio']:.2f}  "
            f"{found['tokens_per_second']:10.0f} tokens/s  {found['share_of_peak']:6.1%} of peak{said}",
            flush=True,
        )
    for method, found in result.get("memory", {}).items():
        print(f"{kind}  {method:9}{found['MiB']:9.0f} MiB beyond weights and optimiser", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--backbone", choices=BACKBONES, default=BACKBONES[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS[:3]), choices=METHODS)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help="see udm_text.training.runs.keep_memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.keep_memory and not keep_memory(torch.device(given.device)):
        parser.error("--keep-memory needs Linux with glibc, and the CPU")
    if given.child:
        method, size, rows, length, how = json.loads(given.child)
        print(json.dumps(peak_memory(method, size, rows, length, how)))
        return 0
    on_cpu = given.device == "cpu"
    attention = "eager" if on_cpu else "sdpa"
    lengths = given.lengths or ([128] if on_cpu else [128, 512])
    grid = [(given.bf16, False)] if on_cpu else [(b, c) for b in (False, True) for c in (False, True)]
    methods = list(dict.fromkeys([METHODS[0], *given.methods]))  # the first is what the others are compared with
    results, failed = [], False
    for size in given.sizes:
        for length in lengths:
            for bf16, compiled in grid:
                how = {"device": given.device, "bf16": bf16, "compiled": compiled, "attention": attention}
                how["backbone"] = given.backbone
                if given.memory:
                    result = memory(size, given.rows, length, how, methods)
                else:
                    result = compare(size, given.rows, length, given.rounds, how, methods)
                    off = max(found["largest_difference"] for found in result["methods"].values())
                    if off > (1e-2 if bf16 else 1e-4):
                        print(f"the losses of the methods differ by {off:.1e} of their size")
                        failed = True
                show(result)
                results.append(result)
    if given.json:
        where = {"machine": machine(given.device), "threads": given.threads, "keep_memory": given.keep_memory}
        given.json.write_text(json.dumps({**where, "torch": torch.__version__, "results": results}, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
