"""What a network learns in the same seconds: the recipe of before, today's, and the causal twin of today's.

    python benchmarks/recipes.py                          # Unicode names, 60 s each, one seed
    python benchmarks/recipes.py --seconds 240 --seeds 3 --data LINES.txt --validation-data HELD_OUT.txt

Runs follow each other, one thread each, and seeds are outermost, so that a machine that slows down slows all ways down.
Printed are bits a character of held-out texts (diffusion: the bound; the twin: exact), steps, and with several seeds
the paired differences to the first way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, train_model

from udm_text.cli.demo import load_script, prepare_script

BEFORE = "--backbone bert --optim adamw_torch_fused --loss_weighting bound --time_law uniform"
WAYS = {
    "before": [*BEFORE.split(), "--per_device_train_batch_size", "128", "--keep_best", "false"],
    "muon": ["--backbone", "bert", "--loss_weighting", "bound", "--time_law", "uniform", "--keep_best", "false"],
    "today": [],
    "twin": ["--objective", "ar"],
}
"""Options of `udm train` by name: "muon" is what the optimiser alone, with its smaller steps, makes of the first."""


def train(way: str, seed: int, options: argparse.Namespace, data: list[str], output: Path) -> dict[str, Any]:
    """One run; its report."""
    how = ["--model", options.model, "--seed", str(seed), "--max_seconds", str(options.seconds)]
    return train_model([*data, *WAYS[way], *how], output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", help="texts, a row a line; default: the names of data/unicode_names")
    parser.add_argument("--validation-data", help="held-out texts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            names = Path(folder) / "names"
            script = prepare_script()
            load_script(script).prepare(names)
            data = ["--data", str(names), "--vocab_size", "6000"]
        else:
            data = ["--data", options.data]
        data += [] if options.validation_data is None else ["--validation_data", options.validation_data]
        print(f"{machine('cpu')}; 1 thread; {options.model}, {options.seconds:.0f} s each", flush=True)
        found: dict[str, list[float]] = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            for way in options.ways:
                report = train(way, seed, options, data, Path(folder) / f"{way}-{seed}")
                figures = report["validation"]
                found[way].append(figures["bits_per_char"])
                print(
                    f"seed {seed}  {way:7} {figures['bits_per_char']:.4f} +- {figures['bits_per_char_stderr']:.4f} "
                    f"bits/char  {report['steps']:5} steps of {report['rows_per_step']} rows",
                    flush=True,
                )
    first = options.ways[0]
    for way in options.ways[1:]:
        if options.seeds > 1:
            paired = [b - a for a, b in zip(found[first], found[way], strict=True)]
            error = statistics.stdev(paired) / len(paired) ** 0.5
            print(f"{way} less {first}: {statistics.mean(paired):+.4f} +- {error:.4f} bits/char")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine("cpu"), **vars(options), "found": found}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
