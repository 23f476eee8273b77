"""An evaluation as a report: one page of HTML that needs nothing else, the same as Markdown, and its figures."""

from __future__ import annotations

import base64
import html
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..card import draw_prices
from ..common import finite, write_json, written_whole
from ..evaluation import (
    CurveReport,
    evaluate_bound,
    evaluate_continuous_bound,
    evaluate_likelihood,
    measure_curve,
    measure_prices,
    price_table,
    store_curve,
)
from ..evaluation.continuous_time import CONTINUOUS_TIME
from ..run_report import inline, words_on_cuts
from .doctor import installed
from .reports import draw_frontier, figure_with_error
from .scoring import SampleOptions, figures_of_samples
from .terminal import visible

SHOWN = 20
"""Drawn texts that a report shows: the first, whatever they are."""
_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "mauve-text")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}
body{color:#1a1a1a;background:#fafafa}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .8rem;border-bottom:1px solid #ccc;text-align:right;overflow-wrap:anywhere}
th:first-child,td:first-child{text-align:left}img{max-width:100%;background:#fff}
pre{margin:.4rem 0;padding:.4rem .8rem;white-space:pre-wrap;overflow-wrap:anywhere;background:#eee}
@media(prefers-color-scheme:dark){body{background:#16181d;color:#e6e6e6}pre{background:#24272e}th,td{border-color:#444}}
"""


class Section(NamedTuple):
    """A part of a report.

    note: a sentence below the title. table: rows of cells, the first row the heads; [] for none. image: the name of a
    file beside the Markdown; None for none. texts: that are shown as they are.
    """

    title: str
    note: str = ""
    table: Sequence[Sequence[str]] = ()
    image: str | None = None
    texts: Sequence[str] = ()


def measure_all(
    pipe: Any,
    rows: Any,
    data: Any,
    options: SampleOptions | None,
    split: str | None,
    *,
    likelihood: str = "bound",
    order: Any = None,
    draws: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **how: Any,
) -> tuple[dict[str, Any], CurveReport | None]:
    """The figures of a report on a model: bound, likelihood, prices of fewer steps, samples; and its curve, if any.

    "bound" is that of one token a step, "continuous_time" of uniform noise beside it; "likelihood" is there where
    another than the bound is asked for; "curve" where a price of several tokens a step is known and the bound is
    finite; "samples" and "texts" where texts are drawn.

    Args:
        pipe: a pipeline of the model. rows: that are scored. data, split: of `figures_of_samples`.
        options: of the samples; None: no texts are drawn. how: options of the generation.
    """
    model = pipe.model
    measuring: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    many: dict[str, Any] = {**measuring, "draws": 8 if draws is None else draws}
    process, measured = model.config.build_process(), None
    figures: dict[str, Any] = {}
    if options is not None:
        figures["samples"], texts = figures_of_samples(pipe, data, options, split, **measuring, **how)
        figures["texts"] = texts[:SHOWN]
    figures["bound"] = evaluate_bound(model, rows, **many).to_dict()
    if process.has_rates:
        figures[CONTINUOUS_TIME] = evaluate_continuous_bound(model, rows, **many).to_dict()
    if likelihood != "bound":
        by: dict[str, Any] = {"likelihood": likelihood, "order": order, "draws": draws}
        figures["likelihood"] = evaluate_likelihood(model, rows, **by, **measuring).to_dict()
    if process.prices_steps and figures["bound"]["nelbo_nats_per_token"] is not None:
        if process.has_curve:
            measured = measure_curve(model, rows, **many)
            figures["curve"] = {**measured.to_dict(), "prices": price_table(measured)}
        else:
            figures["curve"] = measure_prices(model, rows, **many)
    return figures, measured


def store_evaluation(
    model: str, file: Path, report: Mapping[str, Any], figures: Mapping[str, Any], measured: CurveReport | None
) -> None:
    """Writes the figures on a model's own held-out text beside it, where its card takes them from.

    Args:
        model: its folder. file: its report.json, which holds `report`. figures, measured: of `measure_all`.
    """
    if not os.access(model, os.W_OK):
        print(f"note: {model} may not be written to, so its card keeps the figures it has", file=sys.stderr)
        return
    found = {"validation": figures["bound"], "curve": figures.get("curve"), "samples": figures.get("samples")}
    if measured is not None:
        store_curve(model, measured.curve)
    write_json(file, {**report, **{name: value for name, value in found.items() if value is not None}})


def versions() -> dict[str, str]:
    """Of this package, of Python and of what the figures hang on."""
    found = {name: installed(name) for name in _PACKAGES}
    own = {"udm-text": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return {**own, **{name: version for name, version in found.items() if version is not None}}


def sections(figures: Mapping[str, Any]) -> list[Section]:
    """The parts of a report. figures: of `measure_all`, with "settings" and "versions", each a dict of what to say."""
    found = [_likelihood(figures)]
    if curve := figures.get("curve"):
        schedules = [name for name in ("linear", "cosine", "optimal") if name in curve["prices"][0]]
        rows = [
            [str(row["num_steps"]), *(figure_with_error(row[s], row[f"{s}_stderr"], 4) for s in schedules)]
            for row in curve["prices"]
        ]
        note = (
            f"Nats a token of a row of {curve['length']} tokens, an upper bound, its length given, +- one standard "
            "error; the first line is one token a step."
        )
        found.append(Section("What fewer steps cost", note, [["steps", *schedules], *rows], "prices.png"))
    if samples := figures.get("samples"):
        parts = ("samples", "held_out", "training")
        names = [name for name in samples["samples"] if not name.endswith("_stderr")]
        rows = [[name.replace("_", " "), *(_value(samples[part], name) for part in parts)] for name in names]
        note = "What is wanted is the figure of the held-out texts, not a large or a small one."
        note = " ".join(filter(None, (note, words_on_cuts(samples))))
        found.append(Section("Drawn texts", note, [["figure", *(p.replace("_", " ") for p in parts)], *rows]))
        if points := samples.get("frontier"):
            heads = ["num_steps", "temperature", "perplexity", "token_entropy", "word_entropy"]
            heads += ["judge_cut"] if any(point["judge_cut"] for point in points) else []
            rows = [[_value(point, name) for name in heads] for point in points]
            note = "Perplexity under the judge falls for texts that repeat themselves: read it beside the entropy."
            table = [[name.replace("_", " ") for name in heads], *rows]
            found.append(Section("Quality against variety", note, table, "frontier.png"))
    if texts := figures.get("texts"):
        found.append(Section("Samples", f"The first {len(texts)}, unedited.", texts=texts))
    for title, name in (("Settings", "settings"), ("Versions", "versions")):
        rows = [[key.replace("_", " "), str(value)] for key, value in figures[name].items() if value is not None]
        found.append(Section(title, table=[["what", "value"], *rows]))
    return found


def _likelihood(figures: Mapping[str, Any]) -> Section:
    bound, rates, other = (figures.get(name) for name in ("bound", CONTINUOUS_TIME, "likelihood"))
    assert bound is not None
    names = {"nats a token": (4, "nelbo_nats_per_token", "nats_per_token")}
    names |= {"bits a character": (4, "bits_per_char", "bits_per_char")}
    names |= {"perplexity": (2, "perplexity_bound", "perplexity")}
    heads, rows, columns = ["figure", "NELBO, an upper bound"], [], [(bound, 0)]
    if rates is not None:
        heads.append("in continuous time, leave-one-out, an upper bound")
        columns.append((rates, 0))
    if other is not None:
        exact = "exact" if other["exact"] else "an upper bound"
        heads.append(f"{other['likelihood']}, order {other['order']}, {exact}")
        columns.append((other, 1))
    for words, (digits, *keys) in names.items():
        of = [(one, keys[which]) for one, which in columns]
        if words != "bits a character" or bound["chars"] is not None:
            rows.append([words, *(figure_with_error(d[key], d[f"{key}_stderr"], digits) for d, key in of)])
    lengths = "lengths of rows counted" if bound["length_included"] else "lengths of rows given"
    note = f"{bound['rows']} rows, {bound['tokens']} tokens; {lengths}; +- one standard error over rows and noise."
    return Section("Likelihood", note, [heads, *rows])


def _value(figures: Mapping[str, Any], name: str) -> str:
    value = figures[name]
    if value is None or isinstance(value, int):
        return "none" if value is None else str(value)
    error = figures.get("nats_per_token_stderr" if name == "perplexity" else f"{name}_stderr")
    error = error and (value * error if name == "perplexity" else error)
    return f"{value:.4g}" + (f" +- {error:.2g}" if error else "")  # an error of 0, of a share of all, says nothing


def as_html(parts: Sequence[Section], title: str, images: Mapping[str, bytes]) -> str:
    """One page that needs nothing else: images in it, no script, and a policy that fetches nothing; all is escaped."""
    name, body = html.escape(visible(title)), []
    for part in parts:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        body += [f"<p>{html.escape(part.note)}</p>"] if part.note else []
        for i, row in enumerate(part.table):
            cell = "td" if i else "th"
            cells = "".join(f"<{cell}>{html.escape(visible(text))}</{cell}>" for text in row)
            body.append(f"{'' if i else '<table>'}<tr>{cells}</tr>")
        body += ["</table>"] if part.table else []
        if part.image is not None and part.image in images:
            data = base64.b64encode(images[part.image]).decode()
            body.append(f'<img alt="{html.escape(part.title)}" src="data:image/png;base64,{data}">')
        body += [f"<pre>{html.escape(visible(text))}</pre>" for text in part.texts]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{name}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def as_markdown(parts: Sequence[Section], title: str, images: Mapping[str, bytes]) -> str:
    """The same for a reader of Markdown, its images files beside it; texts are indented, so that nothing in them is
    read as markup."""
    lines = [f"# {inline(title)}"]
    for part in parts:
        lines += ["", f"## {part.title}"]
        lines += ["", part.note] if part.note else []
        for i, row in enumerate(part.table):
            lines += [""] if not i else []
            lines.append(f"| {' | '.join(inline(text) for text in row)} |")
            lines += [f"| --- |{' ---: |' * (len(row) - 1)}"] if not i else []
        lines += ["", f"![{part.title}]({part.image})"] if part.image in images else []
        for text in part.texts:
            lines += ["", *(f"    {line}" for line in visible(text).splitlines() or [""]), "", "<!-- -->"]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, figures: Mapping[str, Any], title: str) -> None:
    """Writes report.html, report.md with its images, and evaluation.json into a folder, each whole or not at all.

    figures: of `sections`. The same figures make the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as scratch:
        prices, frontier = Path(scratch, "prices.png"), Path(scratch, "frontier.png")
        if curve := figures.get("curve"):
            if draw_prices(curve["length"], curve["prices"], prices):
                images[prices.name] = prices.read_bytes()
        if figures.get("samples", {}).get("frontier") and importlib.util.find_spec("matplotlib") is not None:
            draw_frontier(figures["samples"], frontier)
            images[frontier.name] = frontier.read_bytes()
    parts = sections(figures)
    pages = {"report.html": as_html(parts, title, images), "report.md": as_markdown(parts, title, images)}
    for name, page in pages.items():
        with written_whole(folder / name) as file:
            file.write_text(page, encoding="utf-8")
    for name, image in images.items():
        with written_whole(folder / name) as file:
            file.write_bytes(image)
    write_json(folder / "evaluation.json", finite(dict(figures)))
