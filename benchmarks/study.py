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
import math
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corruptions
from common import machine, train_model

from udm_text.cli.demo import load_script, prepare_script, verdict
from udm_text.cli.terminal import load_pipeline
from udm_text.common import written_whole
from udm_text.corpus import load_corpus
from udm_text.evaluation import compare_samples
from udm_text.evaluation.context import evenly

ROOT = Path(__file__).resolve().parent.parent
EVEN = ["--loss_weighting", "bound", "--time_law", "uniform"]
WAYS = {
    **{way: ["--process", way] for way in corruptions.WAYS},
    "uniform t": ["--time_law", "uniform"],
    "clipped t": ["--time_law", "clipped"],
    "weights of the bound": EVEN,
    "Bernoulli masks": EVEN,
}
"""Options of `udm train` by name; "mask" is today's default, t of a bell."""
TRAINED = {
    "corruptions": corruptions.WAYS,
    "laws": ("mask", "uniform t", "clipped t", "weights of the bound"),
    "counts": ("weights of the bound", "Bernoulli masks"),
}
"""Parts that compare training runs of equal time; the first way is what the others are compared with."""
DRAWN: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "kernels": {kernel: ("substitute", {"kernel": kernel}) for kernel in ("site", "hamming", "free")},
    "orders": {order: ("mask", {"order": order}) for order in ("random", "confidence", "margin", "entropy")},
    "churn": {
        f"{way}, churn {churn:g}": (way, {"churn": churn, **({"kernel": "hamming"} if way == "substitute" else {})})
        for way in ("mask", "substitute", "uniform")
        for churn in (0.0, 0.25, 0.5, 1.0)
    },
}
"""Parts that compare ways to draw from one model: whose, and options of the generation."""
RACE, RACERS = "race", {"diffusion": [], "twin": ["--objective", "ar"]}
PARTS = (RACE, "laws", "counts", "corruptions", *DRAWN)
RACE_ROWS, RACE_BATCH = (2_000, 20_000), 64
FIGURES = ("known_grams", "distinct_2", "self_bleu", "word_entropy", "copies")
"""Of samples, beside those of held-out texts (`compare_samples`)."""
SOUND = {"names": "made_of_words", "molecules": "valid"}
"""The share of samples that are what they should be, where that can be told: of known words; read by RDKit."""


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
        seconds = self.options.seconds if self.options.steps is None else None
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

    def length(self) -> list[str]:
        """How long a run is trained."""
        steps = self.options.steps
        return ["--max_seconds", str(self.options.seconds)] if steps is None else ["--max_steps", str(steps)]

    def rows(self, otherwise: int | None = None) -> list[str]:
        """How many rows a step takes; what is nowhere said follows from the corpus."""
        number = self.options.batch_size or otherwise
        return [] if number is None else ["--per_device_train_batch_size", str(number)]

    def trained(self, corpus: str, way: str, seed: int) -> Path:
        """The folder of a model, which is trained where it or its line in the results is missing."""
        run, output = f"train/{corpus}/{way}/{seed}", self.folder / corpus / f"{way.replace(' ', '-')}-{seed}"
        if run in self.done and (output / "report.json").is_file():
            return output
        program = [str(ROOT / "benchmarks" / "bernoulli.py")] if way == "Bernoulli masks" else ["-m", "udm_text"]
        how = ["--model", self.options.model, "--seed", str(seed), *self.length(), *self.rows(), *WAYS[way]]
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
                            self.trained(corpus, way, seed)
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


# --- the page --------------------------------------------------------------------------------------------------------

CORPORA = {"names": "Unicode names", "molecules": "molecules", "tang": "Tang verse"}
TITLES = {
    RACE: "The race on few rows: diffusion and its causal twin",
    "laws": "The law of t in training",
    "counts": "Exact counts and Bernoulli masks",
    "corruptions": "Corruptions, trained alike",
    "kernels": "Kernels of substitution, equal calls",
    "orders": "Random and adaptive orders, equal calls",
    "churn": "Churn, equal calls",
}


NOTES = {
    RACE: "Both train at a constant rate behind the warm-up, without dropout, until so many measurements in a row were "
    "no better; the weights of the best count.",
    "laws": "`mask` is today's default, t of a bell and the root of the bound's weights; `uniform t` and `clipped t` "
    "change the law alone, `weights of the bound` law and weights.",
    "counts": "Uniform t and the weights of the bound for both: exactly t of l tokens hidden, weight l/t, or each by a "
    "coin of chance u, weight 1/u.",
    "corruptions": "Bounds of substitution and uniform noise are loose: theirs do not compare with the others.",
    "orders": "At temperature 1. Orders but the random one are heuristics.",
    "churn": "The share of fresh noise in a step; of substitution by kernel `hamming`, which draws whole rows.",
}
GLANCE = (
    "Differences between runs of one seed, mean and standard error. Fewer bits are better, and so are more sound "
    "samples: names made of known words, molecules that RDKit reads; of verse nothing says it. Bounds of substitution "
    "and uniform noise are loose, so what they are above masks is partly the bound."
)
FULL = ("tiny", 60.0)
"""Model and seconds of a run of full size, the defaults."""


def spread(values: list[float], alone: str = " (one seed)") -> str:
    """The mean, and its standard error where there are several; nothing of nothing."""
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}{alone}"
    return f"{mean:.4f} +- {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


ALIKE, BITS, SHARES = "not told apart", ("fewer bits", "more bits"), ("fewer", "more")
"""What is said of two ways: that they cannot be told apart, or that one has less or more than the other."""


def said_of(differences: list[float], words: tuple[str, str] = BITS) -> str:
    """What paired differences allow to be said. words: of a negative one and of a positive one."""
    if len(differences) < 2:
        return f"{differences[0]:+.4f} (one seed: no error bar)"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    # two-sided 5 % of Student's t, of n - 1 degrees of freedom
    wide = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(differences), 2.6)
    return f"{mean:+.4f} +- {error:.4f}, {ALIKE if abs(mean) <= wide * error else words[mean > 0]}"


def by_seed(done: dict[str, dict[str, Any]], stem: str, figure: str = "bits_per_char") -> dict[int, float]:
    """A figure of the runs stem/SEED."""
    runs = [(int(run.rsplit("/", 1)[1]), line) for run, line in done.items() if run.rsplit("/", 1)[0] == stem]
    return {seed: line[figure] for seed, line in sorted(runs, key=lambda each: each[0]) if line.get(figure) is not None}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]
    return ["", *lines, ""]


def trained_lines(part: str, done: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Tables of a part of training runs, a corpus each."""
    first, *others = TRAINED[part]
    for corpus, title in CORPORA.items():
        found = {way: by_seed(done, f"train/{corpus}/{way}") for way in (first, *others)}
        if not found[first] or not any(found[way] for way in others):
            continue
        long = sorted({how_long(line) for run, line in done.items() if run.startswith(f"train/{corpus}/{first}/")})
        rows = []
        for way, values in found.items():
            if less := paired(done, f"train/{corpus}/{way}", f"train/{corpus}/{first}"):
                rows.append((way, str(len(values)), spread([*values.values()]), said_of(less) if way != first else ""))
        yield f"{title}, {'; '.join(long)} each, bits a character held out:"
        yield from table(("trained with", "seeds", "bits/char", f"less `{first}`, paired"), rows)


def how_long(line: dict[str, Any]) -> str:
    """What a training was given: seconds, or steps."""
    if line["seconds"] is not None:
        return f"{line['model']}, {line['seconds']:g} s"
    return f"{line['model']}, {line['steps']} steps of {line['rows_per_step']} rows"


def drawn_lines(part: str, done: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Tables of a part of samples, a corpus each."""
    for corpus, title in CORPORA.items():
        shown = (*((SOUND[corpus],) if corpus in SOUND else ()), *FIGURES)
        rows, held, given = [], {}, set()
        for name, (way, _) in DRAWN[part].items():
            for calls in ("quarter", "all"):
                lines = [line for run, line in done.items() if run.startswith(f"{part}/{corpus}/{name}/{calls}/")]
                if not lines:
                    continue
                held = {figure: lines[0].get(f"{figure}_held_out") for figure in shown}
                given |= {how_long(line) for run, line in done.items() if run.startswith(f"train/{corpus}/{way}/")}
                given.add(f"{lines[0]['samples']} samples of each seed")
                means = (spread([line[f] for line in lines if line[f] is not None], "") for f in shown)
                rows.append((name, str(lines[0]["calls"]), str(len(lines)), *means))
        if rows:
            rows.append(("held-out texts", "", "", *("" if held.get(f) is None else f"{held[f]:.4f}" for f in shown)))
            yield f"{title} ({'; '.join(sorted(given))}). What is wanted is the figure of the held-out texts:"
            yield from table(("drawn by", "calls", "seeds", *(f.replace("_", " ") for f in shown)), rows)


def stem_in(done: dict[str, dict[str, Any]], stem: str) -> bool:
    return any(run.startswith(f"{stem}/") for run in done)


def race_lines(done: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Tables of the race, and where diffusion passes."""
    for corpus, title in CORPORA.items():
        for number in sorted({int(run.split("/")[2]) for run in done if run.startswith(f"{RACE}/{corpus}/")}):
            stem = f"{RACE}/{corpus}/{number}"
            found = {name: by_seed(done, f"{stem}/{name}") for name in RACERS}
            seeds = [seed for seed in found["diffusion"] if seed in found["twin"]]
            if not seeds:
                continue
            lines = {name: [done[f"{stem}/{name}/{seed}"] for seed in seeds] for name in RACERS}
            rows = []
            for name in RACERS:
                ended = sorted({str(line["stopped_by"]) for line in lines[name]})
                epochs = ", ".join(f"{line['best_epoch']:.0f}" for line in lines[name])
                times = f"{statistics.mean(line['train_seconds'] for line in lines[name]):.0f} s"
                bits = spread([line["bits_per_char"] for line in lines[name]])
                rows.append((name, bits, epochs, times, ", ".join(ended)))
            one = lines["twin"][0]
            some = f"{number:,} rows" if one.get("rows", number) == number else f"all {one['rows']:,} rows there are"
            how = f"{one['race_model']}, steps of {one['rows_per_step']} rows, measured every {one['eval_steps']}, "
            how += f"patience {one['patience']}"
            yield f"{title}, {some}, {len(seeds)} seed{'s' * (len(seeds) > 1)} ({how}):"
            head = ("", "bits/char, best weights, all held-out texts", "best epoch of each seed", "time", "ended by")
            yield from table(head, rows)
            less = said_of(paired(done, f"{stem}/diffusion", f"{stem}/twin"))
            yield f"Diffusion (a bound) less the twin (exact), paired: {less}. {passing(lines)}"
            yield from curve_table(lines)


def raced_on_fewer(rows: int, done: dict[str, dict[str, Any]]) -> bool:
    """Whether a corpus had fewer rows than a race is on."""
    return any(
        run.split("/")[0] == RACE and run.split("/")[2] == str(rows) and line.get("rows", rows) < rows
        for run, line in done.items()
    )


def passing(lines: dict[str, list[dict[str, Any]]]) -> str:
    """From which epoch on diffusion is below the best that its twin ever reached."""
    where = []
    for ours, theirs in zip(lines["diffusion"], lines["twin"], strict=True):
        goal = min(bits for _, bits in theirs["curve"])
        epochs = [epoch for epoch, bits in ours["curve"] if bits < goal]
        where.append(f"{min(epochs):.0f}" if epochs else "never")
    return f"The epoch at which diffusion passes the best of its twin, by seed: {', '.join(where)}."


def curve_table(lines: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Held-out bits at some epochs, by both, mean of the seeds that came so far."""
    last = max(epoch for some in lines.values() for line in some for epoch, _ in line["curve"])
    marks = [mark for mark in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if mark <= 1.01 * last]
    rows = []
    for name, some in lines.items():
        cells = []
        for mark in marks:
            near = [min(line["curve"], key=lambda point: abs(point[0] - mark)) for line in some]
            bits = [point[1] for point in near if abs(point[0] - mark) <= max(0.6, 0.25 * mark)]
            cells.append(f"{statistics.mean(bits):.3f}" if bits else "")
        rows.append((name, *cells))
    return table(("held-out bits/char at epoch", *map(str, marks)), rows)


def paired(done: dict[str, dict[str, Any]], stem: str, first: str, figure: str = "bits_per_char") -> list[float]:
    """A figure of the runs stem/SEED less that of first/SEED, for the seeds of both."""
    ours, theirs = by_seed(done, stem, figure), by_seed(done, first, figure)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def summary_lines(done: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every way beside the first of its part, or of those of its model, a corpus a column, paired."""
    for part in PARTS:
        figure, words, of = "bits_per_char", BITS, "bits a character"
        if part == RACE:
            all_rows = {rows: ", or all there are" * raced_on_fewer(rows, done) for rows in RACE_ROWS}
            pairs = [
                (f"{rows:,} rows{more}: diffusion less its twin", f"{RACE}/{{}}/{rows}/")
                for rows, more in all_rows.items()
            ]
            stems = [(name, f"{stem}diffusion", f"{stem}twin") for name, stem in pairs]
        elif part in TRAINED:
            first, *others = TRAINED[part]
            stems = [(f"{way} less {first}", f"train/{{}}/{way}", f"train/{{}}/{first}") for way in others]
        else:
            first = {model: way for way, (model, _) in reversed(DRAWN[part].items())}
            sets = [(way, first[model]) for way, (model, _) in DRAWN[part].items() if way != first[model]]
            stems = [(f"{way} less {base}", f"{part}/{{}}/{way}/all", f"{part}/{{}}/{base}/all") for way, base in sets]
            figure, words, of = "", SHARES, "share of samples that are sound, a call a token"
        rows = []
        for name, ours, theirs in stems:
            cells = []
            for corpus in CORPORA:
                what = figure or SOUND.get(corpus)
                found = paired(done, ours.format(corpus), theirs.format(corpus), what) if what else []
                cells.append(said_of(found, words) if found else "")
            if any(cells):
                rows.append((name, *cells))
        if rows:
            yield f"{TITLES[part]}, {of}:"
            yield from table(("", *CORPORA.values()), rows)


def page(done: dict[str, dict[str, Any]]) -> str:
    """docs/study.md."""
    machines = sorted({line["machine"] for line in done.values()})
    text = [
        "# The study: what is better than what",
        "",
        "Written by `benchmarks/study.py` from `benchmarks/study.jsonl`, a line for each finished run. "
        f"Machine: {'; '.join(machines) or 'none yet'}; one thread, other work beside it. Errors are standard errors "
        "over seeds, differences are between runs of one seed, and `not told apart` means within the 95 % of Student's "
        "t for so few seeds. Bounds are of held-out texts with t uniform, whatever the training; those of the twin are "
        "exact.",
        "",
        "```",
        "python benchmarks/study.py runs/study --molecules TRAIN HELD_OUT --tang TRAIN HELD_OUT    # hours",
        "```",
        "",
    ]
    if summary := list(summary_lines(done)):
        text += ["## All at a glance", "", GLANCE, "", *summary]
    missing = []
    for part in PARTS:
        lines = (
            race_lines(done)
            if part == RACE
            else (trained_lines(part, done) if part in TRAINED else drawn_lines(part, done))
        )
        found = list(lines)
        if found:
            text += [f"## {TITLES[part]}", "", *([NOTES[part], ""] if part in NOTES else []), *found]
            if ran_small(part, done):
                missing.append(f"* {TITLES[part]}: what stands above ran small, and not with {FULL[0]}, {FULL[1]:g} s.")
        lacking = [words for name in CORPORA if (words := what_lacks(part, name, done)) is not None]
        if lacking:
            missing.append(f"* {TITLES[part]}: no run of {'; '.join(lacking)}.")
    if missing:
        text += ["## Not run at full size", "", *missing, ""]
    return "\n".join(text).rstrip() + "\n"


def ran_small(part: str, done: dict[str, dict[str, Any]]) -> bool:
    """Whether any run of a part has a smaller model or less time than `FULL`; the race ends by itself."""
    stems = [f"train/{corpus}/{way}/" for corpus in CORPORA for way in TRAINED.get(part, ())] or [f"{part}/"]
    lines = [line for run, line in done.items() if run.startswith(tuple(stems))]
    return part != RACE and any((line["model"], line["seconds"]) != FULL for line in lines)


def what_lacks(part: str, corpus: str, done: dict[str, dict[str, Any]]) -> str | None:
    """A corpus of which a part has no runs, or not all of them; None where there are all, of one seed at least."""
    stems = {f"{RACE}/{corpus}/{rows}": f"{rows:,} rows" for rows in RACE_ROWS}
    if part in TRAINED:
        stems = {f"train/{corpus}/{way}": f"`{way}`" for way in TRAINED[part]}
    elif part in DRAWN:
        stems = {f"{part}/{corpus}/{name}": f"`{name}`" for name in DRAWN[part]}
    lacking = [words for stem, words in stems.items() if not stem_in(done, stem)]
    if not lacking:
        return None
    return CORPORA[corpus] if len(lacking) == len(stems) else f"{CORPORA[corpus]} ({', '.join(lacking)})"


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
    parser.add_argument("--page", type=Path, help="write what was found here")
    options = parser.parse_args(arguments)
    for name in options.corpora or ():
        if name != "names" and getattr(options, name) is None:
            parser.error(f"--corpora {name} needs --{name} TRAIN HELD_OUT")
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    study.go()
    if options.page is not None:
        write_text(options.page, page(study.done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
