"""docs/study.md and the drawing of the race, made of the lines that `study.py` keeps: a line a run, by its name."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study_parts import (
    ACROSS,
    CALLS,
    CORPORA,
    DRAWN,
    FIGURES,
    FULL,
    KINDS,
    PARTS,
    RACE,
    RACE_ROWS,
    RACERS,
    SOUND,
    STEPS,
    TRAINED,
)

from udm_text.common import written_whole

TITLES = {
    RACE: "The race on few rows: diffusion and its causal twin",
    "laws": "The law of t in training, equal steps",
    "counts": "Exact counts and Bernoulli masks, equal steps",
    "corruptions": "Corruptions, equal time, each by its defaults",
    "drawn": "Samples of the corruptions, equal calls, each by its defaults",
    "kernels": "Kernels of substitution, equal calls",
    "orders": "Random and adaptive orders, equal calls",
    "churn": "Churn, equal calls",
}


NOTES = {
    RACE: "Both train at a constant rate behind the warm-up, without dropout, until so many measurements in a row were "
    "no better; the weights of the best count. At a constant rate the curves waver, and "
    "little patience may end a racer early: the drawing shows how flat it was.",
    "laws": "`mask` is today's default, t of a bell and the root of the bound's weights; `uniform t` and `clipped t` "
    "change the law alone, `weights of the bound` law and weights.",
    "counts": "Uniform t and the weights of the bound for both: exactly t of l tokens hidden, weight l/t, or each by a "
    "coin of chance u, weight 1/u.",
    "corruptions": "Bounds of substitution and uniform noise are loose: theirs do not compare with the others. Masks "
    "and deletion train with t of a bell and the root of the bound's weights, substitution and uniform noise with t "
    "uniform and the bound. What else the machine did moves how many steps a run came to.",
    "drawn": "Models of the same time as above, whose samples compare where bounds do not.",
    "orders": "At temperature 1. Orders but the random one are heuristics.",
    "churn": "The share of fresh noise in a step; of substitution by kernel `hamming`, which draws whole rows.",
}
GLANCE = (
    "Differences between runs of one seed, mean and standard error. Fewer bits are better, and so are more sound "
    "samples: names made of known words, molecules that RDKit reads; of verse nothing says it. They are sound at "
    "a price where the entropy of their words falls below that of held-out texts, which stands with each part. Bounds "
    "of substitution and uniform noise are loose, so what they are above masks is partly the bound."
)


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
        stem = f"{KINDS[part]}/{corpus}"
        found = {way: by_seed(done, f"{stem}/{way}") for way in (first, *others)}
        if not found[first] or not any(found[way] for way in others):
            continue
        long = sorted({how_long(line) for run, line in done.items() if run.startswith(f"{stem}/{first}/")})
        rows = []
        for way, values in found.items():
            if less := paired(done, f"{stem}/{way}", f"{stem}/{first}"):
                steps = ", ".join(str(number) for number in by_seed(done, f"{stem}/{way}", "steps").values())
                rows.append((way, steps, spread([*values.values()]), said_of(less) if way != first else ""))
        yield f"{title}, {'; '.join(long)} each, bits a character held out:"
        yield from table(("trained with", "steps of each seed", "bits/char", f"less `{first}`, paired"), rows)


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
    """The drawing and tables of the race, and where diffusion passes."""
    if stem_in(done, RACE):
        yield "![held-out bits a character of both, over the epochs](images/study-race.png)"
        yield ""
    for corpus, title in CORPORA.items():
        for number in rows_raced(corpus, done):
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
                if len({line["machine"] for line in lines[name]}) > 1:
                    times = "on two machines"
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


def rows_raced(corpus: str, done: dict[str, dict[str, Any]]) -> list[int]:
    """The numbers of rows that races of a corpus were asked for."""
    return sorted({int(run.split("/")[2]) for run in done if run.startswith(f"{RACE}/{corpus}/")})


def draw_race(done: dict[str, dict[str, Any]], path: Path) -> None:
    """Held-out bits a character of every racer over the epochs, a panel for a corpus and a number of rows, as a PNG.

    Nothing is drawn where nobody raced.
    """
    raced = [(corpus, rows) for corpus in CORPORA for rows in rows_raced(corpus, done)]
    if not raced:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    wide = min(2, len(raced))
    high = -(-len(raced) // wide)
    figure, panels = plt.subplots(high, wide, figsize=(4.6 * wide, 3 * high), layout="constrained", squeeze=False)
    for axes, (corpus, rows) in zip(panels.flat, raced, strict=False):
        draw_panel(axes, corpus, rows, done)
    for axes in panels.flat[len(raced) :]:
        axes.remove()
    panels.flat[0].legend()
    figure.supxlabel("epochs")
    figure.supylabel("held-out bits a character")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:  # of few colours, a quarter of the bytes
        Image.open(drawn).convert("RGB").quantize(64).save(part, format="PNG", optimize=True)
    plt.close(figure)


def draw_panel(axes: Any, corpus: str, rows: int, done: dict[str, dict[str, Any]]) -> None:
    """The curves of all seeds of a race; what the twin loses above all of diffusion is cut off."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    low, top, first, number = math.inf, 0.0, 1.0, rows
    styles = {"diffusion": ("#4477aa", "diffusion (a bound)"), "twin": ("#ee6677", "causal twin (exact)")}
    for name, (color, label) in styles.items():
        for line in (line for run, line in done.items() if run.startswith(f"{RACE}/{corpus}/{rows}/{name}/")):
            epochs, bits = zip(*line["curve"], strict=True)
            axes.plot(epochs, bits, color=color, linewidth=1.2, label=label)
            low, number, label = min(low, *bits), min(number, line.get("rows", rows)), "_"  # named once
            top, first = max(top, *bits) if name == "diffusion" else top, min(first, *epochs)
    axes.set(title=f"{CORPORA[corpus]}, {number:,} rows", xscale="log", xlim=(0.9 * first, None))
    axes.set(ylim=(0.98 * low, 1.02 * top))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


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
            bits = [point[1] for point in near if abs(point[0] - mark) <= max(0.5, 0.25 * mark)]
            cells.append(f"{statistics.mean(bits):.3f}" if bits else "")
        rows.append((name, *cells))
    return table(("held-out bits/char at epoch", *map(str, marks)), rows)


def paired(done: dict[str, dict[str, Any]], stem: str, first: str, figure: str = "bits_per_char") -> list[float]:
    """A figure of the runs stem/SEED less that of first/SEED, for the seeds of both."""
    ours, theirs = by_seed(done, stem, figure), by_seed(done, first, figure)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def summary_lines(done: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The first comparison of every part."""
    for part in PARTS:
        yield from next(differences(part, done), ())


def differences(part: str, done: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Tables of a part: ways beside the first one, or the first of their model, a corpus a column, paired."""
    for of, words, stems, figures in compared(part, done):
        rows = []
        for name, ours, theirs in stems:
            cells = []
            for corpus in CORPORA:
                what = figures.get(corpus)
                found = paired(done, ours.format(corpus), theirs.format(corpus), what) if what else []
                cells.append(said_of(found, words) if found else "")
            if any(cells):
                rows.append((name, *cells))
        if rows:
            yield [f"{TITLES[part]}, {of}:", *table(("", *CORPORA.values()), rows)]


def compared(
    part: str, done: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, tuple[str, str], list[tuple[str, str, str]], dict[str, str]]]:
    """The comparisons of a part: of what, what more and less are called, pairs of stems by name, figures by corpus."""
    bits = dict.fromkeys(CORPORA, "bits_per_char")
    if part == RACE:
        pairs = []
        for rows in RACE_ROWS:
            name = f"{rows:,} rows{', or all there are' * raced_on_fewer(rows, done)}: diffusion less its twin"
            pairs.append((name, f"{RACE}/{{}}/{rows}/diffusion", f"{RACE}/{{}}/{rows}/twin"))
        yield "bits a character", BITS, pairs, bits
    elif part in TRAINED:
        first, *others = TRAINED[part]
        stem = f"{KINDS[part]}/{{}}"
        yield (
            "bits a character",
            BITS,
            [(f"{way} less {first}", f"{stem}/{way}", f"{stem}/{first}") for way in others],
            bits,
        )
    else:
        first_of: dict[str, str] = {}
        pairs = []
        for way, (model, _) in DRAWN[part].items():
            base = first_of.setdefault("" if part in ACROSS else model, way)
            if way != base:
                pairs.append((way, base))
        for calls, words in CALLS.items():
            stems = [(f"{a} less {b}", f"{part}/{{}}/{a}/{calls}", f"{part}/{{}}/{b}/{calls}") for a, b in pairs]
            yield f"share of samples that are sound, {words}", SHARES, stems, SOUND
        stems = [(f"{a} less {b}", f"{part}/{{}}/{a}/all", f"{part}/{{}}/{b}/all") for a, b in pairs]
        yield (
            f"entropy of words in bits, {CALLS['all']}",
            ("lower", "higher"),
            stems,
            dict.fromkeys(CORPORA, "word_entropy"),
        )


def told_apart(done: dict[str, dict[str, Any]]) -> str:
    """How many of all differences are told apart, and how many would be if there were none."""
    tables = [lines for part in PARTS for lines in differences(part, done)]
    cells = [
        cell
        for lines in tables
        for line in lines
        if line.startswith("| ")
        for cell in line.split(" | ")
        if " +- " in cell
    ]
    apart = sum(ALIKE not in cell for cell in cells)
    chance = f"{0.05 * len(cells):.0f} would be if none were real"
    return f"Of the {len(cells)} differences on this page {apart} are told apart; at 95 %, {chance}."


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
        text += ["## All at a glance", "", GLANCE, "", told_apart(done), "", *summary]
    missing = []
    for part in PARTS:
        lines = (
            race_lines(done)
            if part == RACE
            else (trained_lines(part, done) if part in TRAINED else drawn_lines(part, done))
        )
        found = list(lines)
        if part in DRAWN:
            found += [line for lines in list(differences(part, done))[1:] for line in lines]
        if found:
            text += [f"## {TITLES[part]}", "", *([NOTES[part], ""] if part in NOTES else []), *found]
            if ran_small(part, done):
                length = (
                    f"{FULL[1]:g} s" if KINDS.get(part) != "steps" else f"{', '.join(map(str, STEPS.values()))} steps"
                )
                missing.append(f"* {TITLES[part]}: what stands above ran small, and not with {FULL[0]}, {length}.")
        lacking = [words for name in CORPORA if (words := what_lacks(part, name, done)) is not None]
        if lacking:
            missing.append(f"* {TITLES[part]}: no run of {'; '.join(lacking)}.")
    if missing:
        text += ["## Not run at full size", "", *missing, ""]
    return "\n".join(text).rstrip() + "\n"


def ran_small(part: str, done: dict[str, dict[str, Any]]) -> bool:
    """Whether any run of a part has a smaller model or less time than `FULL`; the race ends by itself."""
    if part == RACE:
        return False
    kind = KINDS.get(part, part)
    for corpus in CORPORA:
        stems = tuple(f"{kind}/{corpus}/{way}/" for way in TRAINED.get(part, DRAWN.get(part, ())))
        for line in (line for run, line in done.items() if run.startswith(stems)):
            enough = line["steps"] >= STEPS[corpus] if kind == "steps" else line["seconds"] == FULL[1]
            if line["model"] != FULL[0] or not enough:
                return True
    return False


def what_lacks(part: str, corpus: str, done: dict[str, dict[str, Any]]) -> str | None:
    """A corpus of which a part has no runs, or not all of them; None where there are all, of one seed at least."""
    stems = {f"{RACE}/{corpus}/{rows}": f"{rows:,} rows" for rows in RACE_ROWS}
    if part in TRAINED:
        stems = {f"{KINDS[part]}/{corpus}/{way}": f"`{way}`" for way in TRAINED[part]}
    elif part in DRAWN:
        stems = {f"{part}/{corpus}/{name}": f"`{name}`" for name in DRAWN[part]}
    lacking = [words for stem, words in stems.items() if not stem_in(done, stem)]
    if not lacking:
        return None
    return CORPORA[corpus] if len(lacking) == len(stems) else f"{CORPORA[corpus]} ({', '.join(lacking)})"
