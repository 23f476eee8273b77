"""The demo: everything the package does, on real text, in minutes and through the public interface.

Three models learn the names of Unicode characters. One of the mask process writes names from nothing and fills in
blanks; one of the substitute process, on single letters, repairs misspellings; and a small one of the delete process
puts tokens in, so that its names grow and its blanks are as wide as it likes. `unicodedata.lookup` says which exist.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from ..common import write_json
from ..corpus import load_corpus
from ..training.arguments import parse
from ..training.optimizers import MUON, best_optimizer, quick_bfloat16
from ..training.resuming import is_begun, is_finished
from ..training.runs import end
from .reports import describe, describe_repair
from .terminal import load_pipeline, marks
from .train_text import train_text

SAMPLES = 2000
VERDICTS = {
    "seen": "real name, seen in training",
    "unseen": "real name, never seen",
    "words": "made of known words",
    "other": "other",
}
WORDS = ["--model", "tiny", "--tokenizer", "wordpiece", "--vocab_size", "6000"]
"""In minutes so small a network learns more than a larger one: docs/training.md."""
NAMES = [*WORDS, "--weight_decay", "0.1"]
REPAIR = ["--process", "substitute", "--tokenizer", "char", "--max_corruption", "0.12", "--model", "tiny"]
GROWING = ["--process", "delete", *WORDS]
BY_MUON = {
    "names": ["--per_device_train_batch_size", "256", "--learning_rate", "8e-3", "--warmup_steps", "100"],
    "repair": ["--per_device_train_batch_size", "64", "--learning_rate", "6e-3", "--warmup_steps", "100"],
    "growing": ["--per_device_train_batch_size", "128", "--learning_rate", "8e-3", "--warmup_steps", "50"],
}
ADAMW = [
    *("--backbone", "bert", "--optim", "adamw_torch_fused", "--learning_rate", "1e-3"),
    *("--loss_weighting", "bound", "--time_law", "uniform"),
]
BY_ADAMW = {
    "names": ["--per_device_train_batch_size", "128", "--warmup_steps", "200", *ADAMW],
    "repair": ["--per_device_train_batch_size", "64", *ADAMW],
    "growing": ["--per_device_train_batch_size", "128", *ADAMW],
}
"""What is trained with where Muon is not quick; where it is, `BY_MUON`."""
NAMES_SECONDS, REPAIR_SECONDS, GROWING_SECONDS = 170, 75, 45
"""What the models are trained for, so that the demo takes as long on one machine as on another; `--steps` in place of
that gives every machine the same training."""
MISSPELT = [
    "LATIN SMALL LEXTER A WITH GRAVE",
    "GREEK CAPITAK LETTER OMEGA",
    "CYRILLIC SMALL LETTXR YA",
]
BLANK = "LATIN SMALL LETTER [MASK] WITH [MASK]"
WIDE_BLANK = "LATIN <blank> WITH <blank>"

console = Console(highlight=False, soft_wrap=True)


def prepare_script() -> Path:
    """data/unicode_names/prepare.py: of the clone that this package runs from, or the copy that a wheel holds."""
    package = Path(__file__).resolve().parents[1]
    scripts = [root / "data" / "unicode_names" / "prepare.py" for root in (package.parent, package)]
    for script in scripts:
        if script.is_file():
            return script
    raise FileNotFoundError(f"what makes the data of the demo is missing, {scripts[1]}: install udm-text anew")


def place_of_data(script: Path, output: Path) -> Path:
    """Where the data of the demo go: beside the script in a clone, and below `output` where that is installed."""
    package = Path(__file__).resolve().parents[1]
    return output / "unicode-names-data" if script.is_relative_to(package) else script.parent / "dataset"


def load_script(path: Path) -> ModuleType:
    """A Python file as a module, without installing it."""
    spec = importlib.util.spec_from_file_location(f"udm_text_data_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict(name: str, seen: set[str], words: set[str]) -> str:
    """Which of `VERDICTS` a sample is: looked up in Python's own Unicode table."""
    if name in seen:
        return "seen"
    try:
        unicodedata.lookup(name)
        return "unseen"
    except KeyError:
        return "words" if name and all(word in words for word in name.split()) else "other"


def run(output: Path, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Train the models below `output`, print what they do; returns what is added to report.json."""
    started = time.time()
    logging.disable_progress_bar()
    script = prepare_script()
    dataset = place_of_data(script, output)
    if not (dataset / "README.md").exists():
        counts = load_script(script).prepare(dataset)
        console.print(f"[bold]data[/]  {sum(counts.values())} names of Unicode characters -> {dataset}")
    names_dir, repair_dir = output / "unicode-names", output / "unicode-names-repair"
    growing_dir = output / "unicode-names-growing"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = BY_MUON if best_optimizer(device) == MUON else BY_ADAMW
    less = None if steps is None else max(1, steps // 4)
    train(names_dir, dataset, [*NAMES, *how["names"]], NAMES_SECONDS, steps, seed)
    train(repair_dir, dataset, [*REPAIR, *how["repair"]], REPAIR_SECONDS, less, seed)
    train(growing_dir, dataset, [*GROWING, *how["growing"]], GROWING_SECONDS, less, seed)

    splits = load_corpus(str(dataset))
    report = json.loads((names_dir / "report.json").read_text(encoding="utf-8"))
    console.print(f"\n[bold]bound on held-out names[/]  {describe(report['validation'])}")
    pipe = load_pipeline(str(names_dir))
    shown = {
        "samples": show_samples(pipe, splits["train"]["text"], seed),
        "infilling": show_infilling(pipe, seed),
        "repair": show_repair(repair_dir),
        "growing": show_growing(growing_dir, seed),
        "demo_seconds": time.time() - started,
    }
    write_json(names_dir / "report.json", {**report, **shown})
    console.print(f"\nmodel  {names_dir}\nevery figure  {names_dir / 'report.json'}")
    if (names_dir / "loss.png").is_file():
        console.print(f"loss curve  {names_dir / 'loss.png'}")
    else:
        console.print("no loss curve: it takes matplotlib (pip install matplotlib)")
    console.print(f"{shown['demo_seconds']:.0f} s in all, {report['train_seconds']:.0f} s of them training the names")
    console.print(f"Go on: udm generate {names_dir} --watch, udm evaluate {names_dir} --json")
    return shown


def without_extra() -> list[str]:
    """The options of a run without the extra `train`: no loss.png, or no logs, of what is not installed."""
    lacking = {"matplotlib": ["--plot", "false"], "tensorboard": ["--report_to", "none"]}
    return [word for name, words in lacking.items() if importlib.util.find_spec(name) is None for word in words]


def train(output: Path, dataset: Path, options: list[str], seconds: int, steps: int | None, seed: int) -> None:
    """One training run of so many seconds or steps, unless a finished one is there already; one that was stopped or
    killed is resumed."""
    if is_finished(output):
        console.print(f"\n[bold]model[/]  {output} is there already; remove the folder to train again")
        return
    arguments = ["--data", str(dataset), "--output", str(output), *options, "--seed", str(seed)]
    if steps is None:
        arguments += ["--max_seconds", str(seconds)]
    else:
        arguments += ["--max_steps", str(steps), "--save_steps", str(max(1, steps // 2))]
    arguments += ["--bf16"] if quick_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else []
    arguments += ["--resume"] if is_begun(output) else []
    arguments += without_extra()
    console.print(f"\n[bold]training[/]  udm train {' '.join(arguments)}")
    end(train_text(*parse(arguments)), and_signals=True)


def show_samples(pipe, seen: list[str], seed: int) -> dict[str, Any]:
    """A sample as it appears, a table of samples with their verdicts, and the shares of many."""
    known, words = set(seen), {word for name in seen for word in name.split()}
    [first] = pipe("", seed=seed, length=6, output_trajectory=True)
    console.print("\n[bold]a name appears, one token a step[/]")
    for text in first["trajectory"]:
        console.print(f"  {text.replace(pipe.tokenizer.mask_token, '░░')}", markup=False)
    texts = [record["generated_text"] for record in pipe("", num_return_sequences=SAMPLES, seed=seed)]
    verdicts = [verdict(text, known, words) for text in texts]
    table = Table("sample (the first 12 of this seed)", "verdict", title="from nothing", title_justify="left")
    for text, kind in zip(texts[:12], verdicts[:12], strict=True):
        table.add_row(text, VERDICTS[kind])
    console.print(table)
    counts = Counter(verdicts)
    shares = {kind: counts[kind] / len(texts) for kind in VERDICTS}
    shares["known_words"] = 1.0 - shares["other"]
    figures = {
        name: {"share": share, "stderr": math.sqrt(share * (1 - share) / SAMPLES)} for name, share in shares.items()
    }
    console.print(f"of {SAMPLES} samples: " + ", ".join(f"{shares[k]:.1%} {text}" for k, text in VERDICTS.items()))
    console.print(f"made of known words only, real names included: {shares['known_words']:.1%}")
    return {
        "number": SAMPLES,
        "seed": seed,
        "shares": figures,
        "first": list(zip(texts[:12], verdicts[:12], strict=True)),
    }


def show_infilling(pipe, seed: int) -> dict[str, Any]:
    """Blanks filled in several ways."""
    texts = [record["generated_text"] for record in pipe(BLANK, num_return_sequences=5, seed=seed)]
    console.print(f"\n[bold]fill in[/]  {BLANK.replace('[MASK]', '░░')}")
    for text in texts:
        console.print(f"  {text}", markup=False)
    return {"input": BLANK, "seed": seed, "generated": texts}


def show_growing(growing_dir: Path, seed: int) -> dict[str, Any]:
    """A name that grows token by token, and blanks of any width."""
    pipe = load_pipeline(str(growing_dir))
    [first] = pipe("", seed=seed, length=6, output_trajectory=True)
    console.print("\n[bold]a name grows, one token a step, wherever the model likes[/]")
    for text in first["trajectory"]:
        console.print(f"  {text}", markup=False)
    texts = [record["generated_text"] for record in pipe(WIDE_BLANK, num_return_sequences=5, seed=seed)]
    console.print(f"\n[bold]blanks of any width[/]  {WIDE_BLANK}")
    for text in texts:
        console.print(f"  {text}", markup=False)
    report = json.loads((growing_dir / "report.json").read_text(encoding="utf-8"))
    console.print(f"bound of the small model that grows its names  {describe(report['validation'])}")
    return {"grown": first["trajectory"], "input": WIDE_BLANK, "seed": seed, "generated": texts}


def show_repair(repair_dir: Path) -> dict[str, Any]:
    """Misspelt names repaired, each edit marked; and how often held-out names come back."""
    pipe = load_pipeline(str(repair_dir))
    console.print("\n[bold]repair[/]")
    examples = []
    for text in MISSPELT:
        [record] = pipe(text, max_edits=1, output_trajectory=True)
        repaired = record["generated_text"]
        examples.append({"input": text, "repaired": repaired})
        console.print(f"  {text}\n  {marks(text, repaired)}\n  {repaired}", markup=False)
    rates = json.loads((repair_dir / "report.json").read_text(encoding="utf-8"))["repair"]
    console.print(describe_repair(rates))
    return {"examples": examples, **rates}
