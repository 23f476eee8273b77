"""The card of a model on the Hub: what it is, how good it is and how to load it, from what was measured."""

from __future__ import annotations

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import DatasetCard, EvalResult, EvalResultEntry, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from .common import finite, read_object
from .configuration_udm import PRESETS
from .framing import continuation_tokens
from .schedules import counts, step_costs

NUM_SAMPLES = 8
"""Samples in a card: the first ones of seed 0, whatever they are."""

_MARK = re.compile(r"\n<!-- udm-text card (\w{16}): [^>]*-->\s*$")
_GENERATED = "This model card has been automatically generated"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FIGURES = {  # of report.json: name in words, and digits
    "bits_per_char": ("bits per character", 4),
    "nelbo_nats_per_token": ("nats per token", 4),
    "perplexity_bound": ("perplexity per token", 2),
}
_RATES = {"restored": "rows with one wrong token restored exactly", "left_alone": "rows without an error left alone"}

_TEMPLATE = """\
{%- macro figure(value, error, digits) -%}
{{ "%.*f" % (digits, value) }}{% if error is not none %} ± {{ "%.*f" % (digits, error) }}{% endif %}
{%- endmacro -%}
---
{{ card_data }}
---

# {{ name }}

Text by discrete diffusion, {{ process.card.what }}{% if config.prompted -%}
; it was trained on prompts and answers: a text is a prompt, and what comes back is its answer
{%- endif %}. \
A {{ config.text_config.model_type }} with a masked-LM head, {{ "%.1f" % (parameters / 1e6) }} M parameters, \
{{ config.vocab_size }} tokens; made with udm-text.

## Load it

```python\nimport udm_text  # pip install udm-text
from transformers import pipeline
pipe = pipeline("udm-generation", model="{{ repo_id }}")
```
{%- if with_code %}

The repository also holds the code of the model: without the package installed, read it, then

```python
from transformers import pipeline

pipe = pipeline("udm-generation", model="{{ repo_id }}", trust_remote_code=True)
```
{%- endif %}

## How good it is

{% if figures -%}
On {{ held.rows }} held-out rows of {{ data.get("name", "its data") }}, ± one standard error:

| figure | value |
| --- | --- |
{%- for _, words, value, error, digits in figures %}
| {{ words }} | {{ figure(value, error, digits) }} |
{%- endfor %}
{%- if report.validation %}

These are upper bounds, never the likelihood itself, and the bounds of masks and of substitution do not compare with \
each other. Row lengths: {{ "included" if held.length_included else "given, not predicted" }}. To measure them again: \
`udm evaluate {{ repo_id }} --data DATA`.
{%- endif %}
{%- if ((report.vocabulary or {}).round_trip or {}).lost %} The tokenizer does not give back \
{{ report.vocabulary.round_trip.lost|join(", ") }}, which figures per character leave out.
{%- endif %}
{%- else -%}
No held-out figures were published with this model.
{%- endif %}
{%- if "loss.png" in images %}

![training loss and held-out bound](loss.png)
{%- endif %}
{%- if samples %}

## Samples

The first {{ samples | length }} of seed 0, unedited:
{%- for fence, text in blocks %}

{{ fence }}text
{{ text }}
{{ fence }}
{%- endfor %}
{%- endif %}
{%- if prices %}

## Fewer steps

The measured price of `num_steps`, in nats per token of a row of {{ length }} tokens (upper bound, random order, \
length given). The first line is one token a step.

| steps | {{ schedules | join(" | ") }} |
| --- |{{ " --- |" * (schedules | length) }}
{%- for row in prices %}
| {{ row.num_steps }} |
{%- for schedule in schedules %} {{ figure(row[schedule], row.get(schedule ~ "_stderr"), 4) }} |{% endfor %}
{%- endfor %}
{%- if "prices.png" in images %}

![price of steps](prices.png)
{%- endif %}
{%- endif %}

## Training

{% if facts -%}
| what | value |
| --- | --- |
{%- for what, value in facts.items() if value is not none %}
| {{ what }} | {{ value }} |
{%- endfor %}

Every figure is in `report.json`.
{%- else -%}
Nothing was published of how this model was trained.
{%- endif %}

## Intended use and limits

For writing, continuing and filling in texts like those it was trained on. It was not aligned or filtered: it repeats \
what its data says, true or not, and may repeat rows of it. It answers no questions and follows no instructions. \
{{ process.card.limits }}

## Licence

{% if license %}The weights: {{ license }}.\
{% else %}No licence was stated for the weights: ask before you use them.{% endif %}
{%- if data.license %} The data: {{ data.license }}.{% endif %}
{%- if with_code %} The code files are those of udm-text: Apache-2.0.{% endif %}
"""
"""The card in Jinja, inside a module since only modules travel with the weights. No line may begin by importing this
package, which a copy of this file elsewhere does not have; hence the one written-out line break."""


def is_local(name: str) -> bool:
    """Whether a string that names data or a model is a path of this machine rather than a name on the Hub."""
    return os.path.isabs(name) or name.startswith(("~", ".")) or "\\" in name or Path(name).exists()


def public(value: Any) -> Any:
    """`report.json` as it may be published: of every path on this machine only the last part."""
    if isinstance(value, dict):
        return {key: public(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if isinstance(value, str) and value and is_local(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    return finite(value)


def describe_data(data: str | None) -> dict[str, str]:
    """Name, Hub id and licence of the data as far as they are known; the card of a local data set is read."""
    if data is None:
        return {}
    if not is_local(data):
        return {"name": data, "hub": data} if _HUB_NAME.fullmatch(data) else {"name": data}
    known = {"name": " ".join(str(public(data)).split())}
    card = Path(data) / "README.md"
    if card.is_file():
        fields = DatasetCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
        if fields.get("pretty_name"):
            known["name"] = " ".join(str(fields["pretty_name"]).split())
        licence = fields.get("license_name") or fields.get("license")
        if licence:
            known["license"] = ", ".join(licence) if isinstance(licence, list) else str(licence)
    return known


def read_report(path: str | Path) -> dict[str, Any]:
    """The report.json of a training; raises ValueError, naming file and field, where it is none."""
    report = finite(read_object(path))
    kinds: dict[str, Any] = dict.fromkeys(
        ("validation", "repair", "curve", "machine", "model_arguments", "data_arguments"), dict
    )
    kinds |= {"data": str, "process": str, "max_corruption": int | float, "train_seconds": int | float}
    fields = [(name, report.get(name), kind) for name, kind in kinds.items()]
    if isinstance(report.get("model_arguments"), dict):
        fields.append(("model_arguments.model", report["model_arguments"].get("model"), str))
    for part in ("validation", "repair"):
        held = report.get(part)
        if isinstance(held, dict):
            measured = (*_FIGURES, *_RATES)
            names = [name for key in measured for name in (key, f"{key}_stderr")]
            fields += [(f"{part}.{name}", held.get(name), int | float) for name in names]
    for name, value, kind in fields:
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            words = {dict: "an object", str: "a string"}.get(kind, "a number")
            raise ValueError(f"{path}: {name} must be {words}, got {value!r}")
    return {name: value for name, value in report.items() if value is not None or name not in kinds}


def inline(text: str) -> str:
    """A string that is shown as it is within a line or a cell of Markdown: no markup, no HTML, no control character."""
    tidy = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", " ".join(tidy.split()))


def base_model(report: dict[str, Any]) -> str | None:
    """What the training started from, or None for a model from scratch: not one of the sizes of `udm train`."""
    name = report.get("model_arguments", {}).get("model")
    return None if name is None or name in PRESETS else name


def measured(report: dict[str, Any]) -> list[tuple[str, str, float, float | None, int]]:
    """(key, name in words, value, standard error or None, digits) of the figures a report holds on held-out text."""
    figures = []
    bound, repair = (finite(report.get(name) or {}) for name in ("validation", "repair"))
    if bound.get("nelbo_nats_per_token") is None:  # infinite, and what follows from it with it
        bound = {}
    for key, (words, digits) in _FIGURES.items():
        if bound.get(key) is not None:
            figures.append((key, f"{words}, upper bound", bound[key], bound.get(f"{key}_stderr"), digits))
    for key, words in _RATES.items():
        if repair.get(key) is not None:
            figures.append((f"{key}_rate", words, repair[key], repair.get(f"{key}_stderr"), 4))
    return figures


def eval_results(report: dict[str, Any], data: dict[str, str]) -> list[EvalResult]:
    """The held-out figures for the `model-index` of the metadata."""
    name = data.get("name", "held-out text")
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=data.get("hub", re.sub(r"\W+", "-", name.lower()).strip("-") or "text"),
            dataset_name=name,
            dataset_split="validation",
            metric_type=key,
            metric_name=words,
            metric_value=value,
            metric_args=None if error is None else {"standard_error": error},
        )
        for key, words, value, error, _ in measured(report)
    ]


def eval_entries(report: dict[str, Any], data: dict[str, str]) -> list[EvalResultEntry]:
    """The same for `.eval_results/`, whose entries are of a data set on the Hub; [] for other data.

    The task is named after the figure, so that none is taken for the score of a benchmark of that data set.
    """
    if "hub" not in data:
        return []
    return [
        EvalResultEntry(
            dataset_id=data["hub"],
            task_id=f"udm_{key}",
            value=value,
            notes=f"{words}, validation split" + ("" if error is None else f", standard error {error:.3g}"),
        )
        for key, words, value, error, _ in measured(report)
    ]


def check_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card; raises ValueError where the Hub would refuse it, naming the field."""
    data = ModelCard(text).data.to_dict()
    for field in ("library_name", "pipeline_tag", "license", "base_model"):
        if field in data and not (isinstance(data[field], str) and data[field]):
            raise ValueError(f"{field} must be a string that is not empty, got {data[field]!r}")
    if "license" in data and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", data["license"]):
        raise ValueError(f"license must be an identifier of the Hub such as 'apache-2.0', got {data['license']!r}")
    for field in ("base_model", "datasets"):
        for name in [data[field]] if isinstance(data.get(field), str) else data.get(field, []):
            if not _HUB_NAME.fullmatch(name):
                raise ValueError(f"{field} must be a name on the Hub, as user/name, got {name!r}")
    tags = data.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) and tag for tag in tags)):
        raise ValueError(f"tags must be a list of strings, got {tags!r}")
    if "model-index" in data:
        for result in model_index_to_eval_results(data["model-index"])[1]:
            value = result.metric_value
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"model-index: {result.metric_type} must be a finite number, got {value!r}")
    return data


def is_edited(text: str) -> bool:
    """Whether a person wrote or changed this card: it is neither as we left it nor the template of transformers."""
    if _GENERATED in text:
        return False
    mark = _MARK.search(text)
    return mark is None or mark[1] != _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def write_samples(model: Any, tokenizer: Any, report: dict[str, Any]) -> list[str]:
    """The first texts of seed 0, unedited; [] where nothing can be written from nothing: without lengths, or by a
    repairer."""
    silent = model.config.length_counts is None or model.config.prompted
    if tokenizer is None or silent or report.get("max_corruption", 1.0) < 1.0:
        return []
    whole: dict[str, Any] = {"begin_suppress_tokens": continuation_tokens(tokenizer, model.config.vocab_size)}
    made = model.generate(num_return_sequences=NUM_SAMPLES, seed=0, return_dict_in_generate=True, **whole)
    return [
        tokenizer.decode(row[kept.bool()].tolist(), skip_special_tokens=True)
        for row, kept in zip(made.sequences, made.attention_mask, strict=True)
    ]


def price_rows(config: Any, report: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Length of the row, and for K = l, l/2, ..., 1 the price of K steps in nats per token; (0, []) without a curve.

    With the standard errors of `report.json` where the curve was measured into it; else from the curve alone, without
    the optimal grid, which would be priced on the very rows that chose it.
    """
    curve, stored = config.step_curve, report.get("curve") or {}
    if curve is None:
        return 0, []
    if stored.get("curve") == list(curve):
        return stored["length"], stored["prices"]
    length = steps = len(curve)
    rows = []
    while steps:
        row: dict[str, Any] = {"num_steps": steps}
        for schedule in ("linear", "cosine"):
            grid = counts(schedule, torch.tensor([length]), steps)
            row[schedule] = float(step_costs(grid, curve)) / length
        rows.append(row)
        steps //= 2
    return length, rows


def draw_prices(length: int, rows: list[dict[str, Any]], path: Path) -> bool:
    """The price of steps as a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [row["num_steps"] for row in rows]
    for schedule in _schedules(rows):
        errors = [row.get(f"{schedule}_stderr") or 0.0 for row in rows]
        axes.errorbar(steps, [row[schedule] for row in rows], errors, marker="o", capsize=3, label=schedule)
    axes.set(xlabel=f"steps of a row of {length} tokens", ylabel="nats per token, upper bound", xscale="log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})
    plt.close(figure)
    return True


def _schedules(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in ("linear", "cosine", "optimal") if rows and name in rows[0]]


def _blocks(samples: list[str]) -> list[tuple[str, str]]:
    """(fence, text) of the blocks that hold the samples as they are: one, or one for each if any has line breaks."""
    whole = "\n".join(samples)
    texts = [whole] if len(whole.splitlines()) == len(samples) else samples
    return [("`" * max(3, *(1 + len(run) for run in ["", *re.findall(r"`+", text)])), text) for text in texts]


def make_card(
    model: Any,
    repo_id: str,
    *,
    report: dict[str, Any] | None = None,
    samples: list[str] | None = None,
    images: tuple[str, ...] = (),
    with_code: bool = False,
    licence: str | None = None,
    tags: list[str] | None = None,
) -> str:
    """The README.md of a model repository.

    Args:
        model: the model itself. repo_id: `user/name`.
        report: what `udm train` wrote as report.json, paths and all; None: nothing is known of the training.
        samples: of `write_samples`. images: names of the images that stand beside the card.
        with_code: whether the repository carries the code of the model. licence: of the weights.

    Raises:
        ValueError: where the Hub would refuse the metadata.
    """
    process, data = model.config.build_process(), describe_data((report or {}).get("data"))
    clean, start = public(report or {}), base_model(report or {})
    length, prices = price_rows(model.config, report or {})
    card = ModelCard.from_template(
        card_data=_metadata(repo_id, process, clean, data, start, with_code, licence, tags),
        template_str=_TEMPLATE,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        config=model.config,
        process=process,
        parameters=sum(p.numel() for p in model.parameters()),
        report=clean,
        data={key: inline(value) for key, value in data.items()},
        figures=measured(clean),
        held=clean.get("validation") or clean.get("repair"),
        samples=samples,
        blocks=_blocks(samples or []),
        length=length,
        prices=prices,
        schedules=_schedules(prices),
        facts={k: inline(v) if isinstance(v, str) else v for k, v in _facts(clean, data, start).items()},
        images=images,
        with_code=with_code,
    )
    body = f"{card}\n"
    check_metadata(body)
    return f"{body}\n<!-- udm-text card {_digest(body)}: an edited card is kept by the next push -->\n"


def _metadata(
    repo_id: str,
    process: Any,
    report: dict[str, Any],
    data: dict[str, str],
    start: str | None,
    with_code: bool,
    licence: str | None,
    tags: list[str] | None,
) -> ModelCardData:
    """The YAML of a card; `report` is the published one, `start` of `base_model`."""
    kinds = ["udm", "discrete-diffusion", process.card.tag]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        library_name="udm-text",
        pipeline_tag="text-generation",
        license=licence,
        base_model=start if start is not None and not is_local(start) and _HUB_NAME.fullmatch(start) else None,
        datasets=[data["hub"]] if "hub" in data else None,
        tags=[*kinds, *(["custom_code"] if with_code else []), *(tag for tag in tags or [] if tag not in kinds)],
        eval_results=eval_results(report, data) or None,
    )


def _facts(report: dict[str, Any], data: dict[str, str], start: str | None) -> dict[str, Any]:
    """What is known of the training, None where it is not; {} without a report."""
    if not report:
        return {}
    machine = report.get("machine", {})
    place = machine.get("accelerator") or f"{machine.get('processor', 'a CPU')}, {machine.get('threads')} threads"
    return {
        "data": data.get("name"),
        "started from": (start and public(start)) or "scratch",
        "process": report.get("process"),
        "rows": report.get("train_rows"),
        "steps": report.get("steps"),
        "rows a step": report.get("rows_per_step"),
        "learning rate": report.get("learning_rate"),
        "seed": report.get("seed"),
        "time": f"{report['train_seconds']:.0f} s" if report.get("train_seconds") is not None else None,
        "machine": place if machine else None,
        "torch": machine.get("torch"),
    }
