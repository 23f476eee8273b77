"""What is better than what: corruptions, laws of t, kernels, orders, churn, and a race with a causal model on few rows.

    python benchmarks/study.py runs/study                                  # Unicode names, every part, 3 seeds
    python benchmarks/study.py runs/study --parts race laws --seconds 300
    python benchmarks/study.py runs/study --molecules TRAIN HELD_OUT --tang TRAIN HELD_OUT
    python benchmarks/study.py runs/study --parts --page docs/study.md     # nothing is run, the page is written

Every finished run is a line of the file --results, which is whole at any time: a run that stands there is not made
again, so the study goes on where it was stopped. Models lie in the folder, for the parts that draw from them. Runs
follow each other on one thread; seeds are outermost, so that a machine that slows down slows all ways down, and what is
compared are differences between runs of one seed. All bounds are of held-out texts, t uniform, whatever the training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import corruptions
from common import machine, train_model
from study_page import draw_race, page
from study_parts import (
    CORPORA,
    DRAWN,
    FIGURES,
    FULL,
    KINDS,
    PARTS,
    RACE,
    RACE_BATCH,
    RACE_ROWS,
    RACERS,
    SOUND,
    STEPS,
    TRAINED,
    WAYS,
)

from udm_text.cli.demo import load_script, prepare_script, verdict
from udm_text.cli.terminal import load_pipeline
from udm_text.common import written_whole
from udm_text.corpus import load_corpus
from udm_text.evaluation import compare_samples
from udm_text.evaluation.context import evenly

ROOT = Path(__file__).resolve().parent.parent


class Study:
    """The runs of a study. options: of the command line; done: the lines of the results by the name of their run."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.folder
        self.done: dict[str, dict[str, Any]] = {}
        if options.results.is_file():
            lines = options.results.read_text(encoding="utf-8").splitlines()
            self.done = {found["run"]: found for found in map(json.loads, lines)}
        self.loaded: dict[str, tuple[list[str], dict[str, list[str]]]] = {}

    def keep(self, run: str, figures: dict[str, Any]) -> None:
        """A line more, and the file whole."""
        timed = self.options.steps is None and not run.startswith("steps/")
        seconds = self.options.seconds if timed else None
        about = {"machine": machine("cpu"), "model": self.options.model, "seconds": seconds}
        self.done[run] = {"run": run, **figures, **about}
        write_text(self.options.results, "".join(f"{json.dumps(found)}\n" for found in self.done.values()))
        print(f"{run}  {figures}"[:300], flush=True)

    def corpus(self, name: str) -> tuple[list[str], dict[str, list[str]]]:
        """Options of `udm train` for a corpus, and its texts: train and validation."""
        if name not in self.loaded:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            if name == "names":
                data = self.folder / name / "data"
                if not data.exists():
                    load_script(prepare_script()).prepare(data)
                how, splits = ["--data", str(data), *corruptions.NAMES], load_corpus(str(data))
                texts = {part: list(splits[part]["text"]) for part in ("train", "validation")}
            else:
                train, held_out = getattr(self.options, name)
                how = ["--config", str(ROOT / "recipes" / f"{name}.yaml"), "--data", train]
                how += ["--validation_data", held_out]
                read = ((part, load_corpus(place)) for part, place in (("train", train), ("validation", held_out)))
                texts = {part: list(splits["train"]["text"]) for part, splits in read}
            self.loaded[name] = how, texts
        return self.loaded[name]

    def length(self, own: int | None = None) -> list[str]:
        """How long a run is trained. own: its number of steps, where none is given."""
        steps = self.options.steps or own
        return ["--max_seconds", str(self.options.seconds)] if steps is None else ["--max_steps", str(steps)]

    def rows(self, otherwise: int | None = None) -> list[str]:
        """How many rows a step takes; what is nowhere said follows from the corpus."""
        number = self.options.batch_size or otherwise
        return [] if number is None else ["--per_device_train_batch_size", str(number)]

    def trained(self, corpus: str, way: str, seed: int, kind: str = "train") -> Path:
        """The folder of a model, which is trained where it or its line in the results is missing."""
        run, steps = f"{kind}/{corpus}/{way}/{seed}", STEPS[corpus] if kind == "steps" else None
        output = self.folder / corpus / f"{'steps-' * (steps is not None)}{way.replace(' ', '-')}-{seed}"
        if run in self.done and (output / "report.json").is_file():
            return output
        program = [str(ROOT / "benchmarks" / "bernoulli.py")] if way == "Bernoulli masks" else ["-m", "udm_text"]
        how = ["--model", self.options.model, "--seed", str(seed), *self.length(steps), *self.rows(), *WAYS[way]]
        report = train_model([*self.corpus(corpus)[0], *how], fresh(output), program)
        self.keep(run, {**held_out(report), "steps": report["steps"], "rows_per_step": report["rows_per_step"]})
        return output

    def draw(self, part: str, corpus: str, seed: int) -> None:
        """Samples of one part: each way at a quarter of the calls that one token a call takes, and at all of them."""
        texts = self.corpus(corpus)[1]
        spaced = {name: [spell(corpus, text) for text in some] for name, some in texts.items()}
        for name, (way, how) in DRAWN[part].items():
            output = self.trained(corpus, way, seed)
            for calls in ("quarter", "all"):
                run = f"{part}/{corpus}/{name}/{calls}/{seed}"
                if run in self.done:
                    continue
                if (same := self.drawn_before(corpus, name, part, calls, seed)) is not None:
                    self.keep(run, same)
                    continue
                pipe = load_pipeline(str(output))
                longest = max(len(row) for row in pipe.tokenizer(texts["validation"])["input_ids"]) - 2
                steps = max(1, longest // 4) if calls == "quarter" else longest
                number = self.options.samples
                drawn = pipe("", num_return_sequences=number, seed=seed, num_steps=steps, **how)
                made = [record["generated_text"] for record in drawn]
                compared = compare_samples(
                    [spell(corpus, text) for text in made], spaced["validation"], spaced["train"]
                )
                figures = {f: compared["samples"][f] for f in FIGURES} | {
                    f"{f}_held_out": compared["held_out"][f] for f in FIGURES
                }
                if corpus in SOUND:
                    figures |= {SOUND[corpus]: sound_share(corpus, made, texts["train"])}
                self.keep(run, {"calls": steps, "samples": number, **figures})

    def drawn_before(self, corpus: str, name: str, part: str, calls: str, seed: int) -> dict[str, Any] | None:
        """The line of another part that drew the very same."""
        for other, ways in DRAWN.items():
            for way, how in ways.items():
                line = self.done.get(f"{other}/{corpus}/{way}/{calls}/{seed}")
                if line is not None and how == DRAWN[part][name] and line["samples"] == self.options.samples:
                    return {key: value for key, value in line.items() if key != "run"}
        return None

    def race(self, corpus: str, rows: int, seed: int) -> None:
        """Diffusion and its causal twin on the same few rows, or all there are, each until it stops improving."""
        how, texts = self.corpus(corpus)
        few = self.folder / corpus / f"rows-{rows}.txt"
        held = few.with_name("held-out.txt")
        write_text(few, "".join(f"{text}\n" for text in evenly(texts["train"], rows)))
        write_text(held, "".join(f"{text}\n" for text in texts["validation"]))
        where = how.index("--data")
        how = [*how[:where], "--data", str(few), *how[where + 2 :], "--validation_data", str(held)]
        for name, options in RACERS.items():
            run = f"{RACE}/{corpus}/{rows}/{name}/{seed}"
            if run in self.done:
                continue
            goes_on = ["--lr_scheduler_type", "constant_with_warmup", "--patience", str(self.options.patience)]
            goes_on += ["--eval_strategy", "steps"]
            goes_on += ["--eval_steps", str(self.options.eval_steps * max(1, rows // RACE_ROWS[0]))]
            end = ["--max_seconds", str(self.options.race_seconds)] if self.options.steps is None else self.length()
            how_many = [*self.rows(RACE_BATCH), "--model", self.options.race_model, "--seed", str(seed)]
            options = [*how, *goes_on, *end, *how_many, *options]
            report = train_model(options, fresh(self.folder / corpus / f"race-{rows}-{name}-{seed}"))
            curve = [(e["epoch"], e["eval_bits_per_char"]) for e in report["log"] if "eval_bits_per_char" in e]
            best = min(curve, key=lambda point: point[1])
            figures = {**held_out(report), "best_epoch": best[0], "curve": curve, "steps": report["steps"]}
            how_raced = {"rows": min(rows, len(texts["train"])), "race_model": self.options.race_model}
            how_raced |= {"patience": self.options.patience}
            how_raced |= {"rows_per_step": report["rows_per_step"], "eval_steps": int(goes_on[-1])}
            self.keep(run, {**figures, **how_raced, "stopped_by": report["stopped"]})

    def go(self) -> None:
        """Every run that is asked for and not there."""
        options = self.options
        corpora = options.corpora or [name for name in CORPORA if name == "names" or getattr(options, name) is not None]
        for part in options.parts:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                for corpus in corpora:
                    if part == RACE:
                        for rows in options.race_rows:
                            self.race(corpus, rows, seed)
                    elif part in TRAINED:
                        for way in TRAINED[part]:
                            self.trained(corpus, way, seed, KINDS[part])
                    else:
                        self.draw(part, corpus, seed)


def write_text(path: Path, text: str) -> None:
    """The file appears whole."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def fresh(output: Path) -> Path:
    """A folder for a run, without what one that was stopped has left there."""
    shutil.rmtree(output, ignore_errors=True)
    return output


def held_out(report: dict[str, Any]) -> dict[str, float]:
    """The figure of a run's held-out texts, its error, and the seconds of its training."""
    found = report["validation"]
    return {name: found[name] for name in ("bits_per_char", "bits_per_char_stderr")} | {
        "train_seconds": round(report["train_seconds"], 1)
    }


def spell(corpus: str, text: str) -> str:
    """A text whose words are letters, where the corpus has no words."""
    return text if corpus == "names" else " ".join(text)


def sound_share(corpus: str, made: list[str], training: list[str]) -> float:
    """Of samples, the share that `SOUND` names. RDKit is in the extra `molecules`."""
    if corpus == "molecules":
        good = sum(map(load_script(ROOT / "recipes" / "validity.py").smiles, made))
    else:
        known, words = set(training), {word for text in training for word in text.split()}
        good = sum(verdict(text, known, words) != "other" for text in made)
    return good / len(made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="models and texts")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "study.jsonl")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, help="of those given; default: all, and names")
    parser.add_argument("--molecules", nargs=2, metavar=("TRAIN", "HELD_OUT"))
    parser.add_argument("--tang", nargs=2, metavar=("TRAIN", "HELD_OUT"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="for several machines, whose results are joined")
    parser.add_argument("--seconds", type=float, default=FULL[1], help="of training, each run of equal time")
    parser.add_argument("--steps", type=int, help="of training in place of seconds, the race included")
    parser.add_argument("--batch-size", type=int, help="rows of a step; default: by the corpus, of the race 64")
    parser.add_argument("--model", default=FULL[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--race-rows", type=int, nargs="+", default=list(RACE_ROWS))
    parser.add_argument("--race-model", default="tiny")
    parser.add_argument("--race-seconds", type=float, default=3600.0, help="of a racer, at most")
    parser.add_argument("--patience", type=int, default=10, help="measurements of a racer that were no better")
    parser.add_argument("--eval-steps", type=int, default=32, help="between two, of 2,000 rows; more rows, more steps")
    parser.add_argument("--page", type=Path, help="write what was found here, and images/study-race.png beside it")
    options = parser.parse_args(arguments)
    for name in options.corpora or ():
        if name != "names" and getattr(options, name) is None:
            parser.error(f"--corpora {name} needs --{name} TRAIN HELD_OUT")
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    study.go()
    if options.page is not None:
        write_text(options.page, page(study.done))
        draw_race(study.done, options.page.parent / "images" / "study-race.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
