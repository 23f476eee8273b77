"""The card of a model on the Hub: what it is, how good it is and how to load it, from what was measured."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from .configuration_udm import PRESETS
from .objectives import wrong_rows
from .randomness import RowRandom
from .run_report import (
    HUB_MODEL,
    HUB_NAME,
    TEXTS,
    HeldOut,
    base_model,
    describe_data,
    drawn_figures,
    evaluation_command,
    held_out,
    inline,
    measured,
    public,
    went_wrong,
    words_on_judges,
)
from .schedules import counts, step_costs

NUM_SAMPLES = 8
"""Samples in a card: the first ones of seed 0, whatever they are."""

_MARK = re.compile(r"\n<!-- udm-text card (\w{16}): [^>]*-->\s*$")
_GENERATED = "This model card has been automatically generated"
_LONGEST = 200
"""Characters of a text that is shown as an example, at most."""

_TEMPLATE = """\
{%- macro figure(value, error, digits) -%}
{{ "%.*f" % (digits, value) }}{% if error is not none %} ± {{ "%.*f" % (digits, error) }}{% endif %}
{%- endmacro -%}
---
{{ card_data }}
---

# {{ name }}

{{ kind.what }} by discrete diffusion, {{ process.card.what }}. \
A {{ config.text_config.model_type }} with a masked-LM head, {{ "%.1f" % (parameters / 1e6) }} M parameters, \
{{ config.vocab_size }} tokens; made with \
{% if address %}[udm-text]({{ address }}){% else %}udm-text{% endif %}.

## Use it

It needs the package udm-text: `pip install FOLDER`, the folder that holds its source.

```python\nimport udm_text
from transformers import pipeline

pipe = pipeline("udm-generation", model="{{ repo_id }}")
{{ calls }}
```
{%- if with_code %}

The repository also holds the code of the model: without the package, read it, then

```python
from transformers import pipeline

pipe = pipeline("udm-generation", model="{{ repo_id }}", trust_remote_code=True)
{{ calls }}
```
{%- endif %}

{{ kind.use }} Every option is in `docs/generation.md` of udm-text.

## How good it is

{% if figures -%}
On {{ held.rows }} {{ source.words }}, ± one standard error:

| figure | value |
| --- | --- |
{%- for words, text in figures %}
| {{ words }} | {{ text }} |
{%- endfor %}
{%- if report.validation %}

These are upper bounds, never the likelihood itself, and the bounds of masks and of substitution do not compare with \
each other. Row lengths: {{ "included" if held.length_included else "given, not predicted" }}.\
{% if config.prompted %} They are of the answers alone, given their prompts.{% endif %}
{%- endif %}
{%- if ((report.vocabulary or {}).round_trip or {}).lost %} The tokenizer does not give back \
{{ report.vocabulary.round_trip.lost|join(", ") }}, which figures per character leave out.
{%- endif %}

{% if (report.context or {}).learnt_context == false -%}
**It has learnt no context yet**: its bound is no better than that of a model that knows only how often each token is, \
or its own where all tokens are drawn at once. It writes word salad; \
{% if diverged %}its training diverged, so train it with a lower learning rate.{% else %}\
train it longer, or start from an encoder.{% endif %}

{% endif -%}
To measure them again{{ ", where that file lies" if " --data " in again }}: `{{ again }}`
{%- else -%}
No held-out figures were published with this model.
{%- endif %}
{%- if drawn %}

Texts drawn from nothing with seed {{ report.samples.seed }}, beside as many held-out and as many training texts; what \
is wanted is the figure of the held-out ones:

| figure | samples | held out | training |
| --- | --- | --- | --- |
{%- for words, values in drawn %}
| {{ words }} | {{ values | join(" | ") }} |
{%- endfor %}
{%- if judges %}

{{ judges }}
{%- endif %}
{%- endif %}
{%- if "loss.png" in images %}

![training loss and held-out bound](loss.png)
{%- endif %}
{%- if samples %}

## Samples

{{ kind.samples }}, unedited:
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
{%- if command %}

The command, of paths the last part alone:

{{ command[0] }}bash
{{ command[1] }}
{{ command[0] }}
{%- endif %}

Every figure is in `report.json`.
{%- else -%}
Nothing was published of how this model was trained.
{%- endif %}

## Intended use and limits

{{ kind.limits }}{{ lengths }} It was not aligned or filtered: it repeats what its data says, true or not, and may \
repeat rows of it. {{ process.card.limits }}

## Licence

{% if license %}The weights: {{ license }}.\
{% else %}No licence was stated for the weights: ask before you use them.{% endif %}
{%- if data.license %} The data: {{ data.license }}.{% endif %}
{%- if with_code %} The code files are those of udm-text: Apache-2.0.{% endif %}
"""
"""The card in Jinja, inside a module since only modules travel with the weights. No line may begin by importing this
package, which a copy of this file elsewhere does not have; hence the one written-out line break."""


class Kind(NamedTuple):
    """What a card says of a model by what it was trained for.

    what: a noun, before "by discrete diffusion". use: what the calls of the example do. samples: what stands in
    "Samples". limits: what it is for and what it is not. tags, pipeline_tag, task: of the metadata; the last is type
    and name of the task that the held-out figures are of.
    """

    what: str
    use: str
    samples: str
    limits: str
    tags: tuple[str, ...]
    pipeline_tag: str | None
    task: tuple[str, str]


_GENERATOR = Kind(
    "Text generation",
    "A text with [MASK] is filled in, any other text is continued, and without one a text is written from nothing.",
    f"The first {NUM_SAMPLES} of seed 0",
    "For writing, continuing and filling in texts like those it was trained on. It answers no questions and follows no "
    "instructions.",
    ("text-infilling",),
    "text-generation",
    ("text-generation", "Text generation"),
)
_ANSWERER = Kind(
    "Answers to prompts",
    "A text is a prompt, and what comes back is its answer; to fill in a part of an answer, write "
    "`prompt [SEP] answer with [MASK]`.",
    "Held-out prompts, and the answers of seed 0",
    "For prompts like those it was trained on: to any other it gives an answer of the same kind, and it follows no "
    "instructions.",
    ("text2text-generation", "prompt-and-answer"),
    "text-generation",
    ("text2text-generation", "Answers to prompts"),
)
_REPAIRER = Kind(
    "Repair of texts",
    "A text comes back with at most `max_edits` of its tokens changed, and as it was where the model finds no error.",
    "Held-out texts with one token changed at random, as in training, and their repairs by `max_edits=2`",
    "For repairing texts like those it was trained on, in which few tokens are replaced by others: it moves no token "
    "and adds or removes none. It was not trained to write from nothing.",
    ("text2text-generation", "text-correction"),
    None,  # the Hub has no such task
    ("text-correction", "Repair of texts"),
)

_EDITOR = _REPAIRER._replace(
    use="A text comes back with at most `max_edits` of its tokens changed, put in or left out, and as it was where the "
    "model finds no error.",
    samples="Held-out texts with one random edit of a token, as in training, and their repairs by `max_edits=2`",
    limits="For repairing texts like those it was trained on, in which few tokens are wrong, missing or too many. It "
    "cannot write from nothing, continue a text or fill in a part of one.",
)
_REPAIRERS = _REPAIRER, _EDITOR


_BY_HISTOGRAM = (
    " How long an answer is is drawn from the lengths of the training answers, whatever the prompt says; "
    "`length=` gives it by hand, the prompt not counted."
)
_BY_WIDTHS = " How long an answer is is drawn given the prompt; `length=` gives it by hand, the prompt not counted."
_WITH_BLANKS = " `<blank>` in a text stands for any number of tokens, as many as the model draws."


def words_on_lengths(kind: Kind, config: Any) -> str:
    """What a card says of how many tokens a model puts where their number is not given; "" where nothing is special."""
    has_widths = config.blank_widths is not None
    answers = (_BY_WIDTHS if has_widths else _BY_HISTOGRAM) if kind is _ANSWERER else ""
    return answers + (_WITH_BLANKS if has_widths else "")


def kind_of(config: Any, report: dict[str, Any]) -> Kind:
    """What a model was trained for: the report has its largest corruption, the configuration whether it has prompts."""
    if report.get("max_corruption", 1.0) < 1.0:
        return _EDITOR if config.build_process().edits else _REPAIRER
    return _ANSWERER if config.prompted else _GENERATOR


def documentation() -> str | None:
    """Where the documentation of the installed package is, by its own metadata; None: it names no place."""
    try:
        addresses = metadata("udm-text").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(entry.split(", ", 1) for entry in addresses)
    return next((named[label] for label in ("Documentation", "Homepage", "Repository") if label in named), None)


def eval_results(report: dict[str, Any], source: HeldOut, task: tuple[str, str]) -> list[EvalResult]:
    """The held-out figures for the `model-index` of the metadata. task: type and name of it."""
    name = source.data.get("name", "held-out text")
    return [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=source.data.get("hub", re.sub(r"\W+", "-", name.lower()).strip("-") or "text"),
            dataset_name=name,
            dataset_split=source.split,
            metric_type=figure.key,
            metric_name=figure.words,
            metric_value=figure.value,
            metric_args=None if figure.error is None else {"standard_error": figure.error},
        )
        for figure in measured(report)
    ]


def eval_entries(report: dict[str, Any]) -> list[EvalResultEntry]:
    """The same for `.eval_results/`, whose entries are of a data set on the Hub; [] for other data.

    The task is named after the figure, so that none is taken for the score of a benchmark of that data set.
    """
    source = held_out(report)
    if "hub" not in source.data:
        return []
    return [
        EvalResultEntry(
            dataset_id=source.data["hub"],
            task_id=f"udm_{figure.key}",
            value=figure.value,
            notes=f"{figure.words}, {source.words}"
            + ("" if figure.error is None else f", standard error {figure.error:.3g}"),
        )
        for figure in measured(report)
    ]


def check_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card; raises ValueError where the Hub would refuse it, naming the field."""
    data = ModelCard(text).data.to_dict()
    for field in ("library_name", "pipeline_tag", "license", "base_model"):
        if field in data and not (isinstance(data[field], str) and data[field]):
            raise ValueError(f"{field} must be a string that is not empty, got {data[field]!r}")
    if "license" in data and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", data["license"]):
        raise ValueError(f"license must be an identifier of the Hub such as 'apache-2.0', got {data['license']!r}")
    for field, form in (("base_model", HUB_MODEL), ("datasets", HUB_NAME)):
        for name in [data[field]] if isinstance(data.get(field), str) else data.get(field, []):
            if not form.fullmatch(name):
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
    """Of the text whatever its line ends are: a reader or an editor may have turned `\\r` into `\\n`."""
    return hashlib.sha256(re.sub(r"\r\n?", "\n", text).strip().encode()).hexdigest()[:16]


def write_samples(model: Any, tokenizer: Any, report: dict[str, Any]) -> list[str]:
    """What a model does, unedited, as texts of seed 0 of its pipeline.

    Of a generator the first texts from nothing; of a model of prompts the answers to the examples of the report, of a
    repairer these examples with one token changed, and their repairs. [] where there is nothing to begin with: no
    tokenizer, no lengths, no examples that the model can read.
    """
    if tokenizer is None:
        return []
    from .pipeline_udm import UDMGenerationPipeline

    kind = kind_of(model.config, report)
    if kind is _GENERATOR and model.config.length_counts is None:
        return []
    pipe = UDMGenerationPipeline(model=model, tokenizer=tokenizer, device=model.device)
    if kind is _GENERATOR:
        return [record["generated_text"] for record in pipe("", num_return_sequences=NUM_SAMPLES, seed=0)]
    shown = []
    for given in example_texts(model, tokenizer, report):
        how = {"max_edits": 2} if kind in _REPAIRERS else {"seed": 0}
        [record] = pipe(given, **how)
        heads = ("given:   ", "repaired:") if kind in _REPAIRERS else ("prompt:", "answer:")
        shown.append(f"{heads[0]} {given}\n{heads[1]} {record['generated_text']}")
    return shown


def example_texts(model: Any, tokenizer: Any, report: dict[str, Any]) -> list[str]:
    """What the examples of a report give a model to work on: prompts; texts with one token changed, of a repairer.

    Those that it could not read, with the longest answer behind a prompt, are left out.
    """
    kind, config, texts = kind_of(model.config, report), model.config, []
    if kind is _GENERATOR or tokenizer is None:
        return []
    longest = config.max_row_length
    room = len(config.length_probabilities()) - 1 if config.prompted and config.length_counts is not None else 0
    for number, example in enumerate(report.get(TEXTS) or []):
        text = example.get("prompt" if kind is _ANSWERER else "text")
        if not text or len(text) > _LONGEST or "```" in text:
            continue
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        if longest is not None and ids.shape[1] + room > longest:
            continue
        if kind in _REPAIRERS:
            if config.prompted or not bool((editable := config.editable(ids)).any()):
                continue
            process, random = config.build_process(), RowRandom(0, torch.tensor([number]))
            wrong, _ = wrong_rows(process, ids, editable, torch.ones_like(editable), torch.tensor([1]), random)
            text = tokenizer.decode(wrong[0].tolist(), skip_special_tokens=True)
        texts.append(text)
    return texts


def example_calls(kind: Kind, config: Any, samples: list[str], given: list[str]) -> str:
    """The lines of Python that use a model, behind the one that loads it, and print what comes back."""
    edits = "max_edits" in config.build_process().generation_options
    if kind in _REPAIRERS:
        lines = [f'print(pipe({_literal(given, "a text with an error in it")}, max_edits=2)[0]["generated_text"])']
    elif kind is _ANSWERER:
        text = _literal(given, "a prompt like those it was trained on")
        lines = [f'print(pipe({text}, seed=0)[0]["generated_text"])  # the answer']
    else:
        length = "" if config.length_counts is not None else "length=12, "
        lines = [
            f'for record in pipe("", {length}num_return_sequences=3, seed=0):  # from nothing',
            '    print(record["generated_text"])',
        ]
        if (blank := _with_blank(samples)) is not None:
            lines.append(f'print(pipe({_literal([blank])}, seed=0)[0]["generated_text"])  # filled in')
        if edits and samples:
            lines.append(f'print(pipe({_literal(samples)}, max_edits=2)[0]["generated_text"])  # repaired')
    return "\n".join(lines)


def _literal(texts: list[str], otherwise: str = "") -> str:
    """The first of these texts as a string of Python on one line, without what would end the block it stands in."""
    fit = (text for text in texts if len(text) <= _LONGEST and "```" not in text)
    return json.dumps(next(fit, otherwise), ensure_ascii=False)


def _with_blank(samples: list[str]) -> str | None:
    """A sample with [MASK] in place of its last word, or, where it is no row of words, of its last character."""
    for text in samples:
        head, space, last = text.rpartition(" ")
        if not space:
            head, last = text[:-1], text[-1:]
        if head.strip() and last and len(text) <= _LONGEST and "```" not in text:
            return f"{head}{space}[MASK]"
    return None


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
    examples: list[str] | None = None,
    images: tuple[str, ...] = (),
    with_code: bool = False,
    licence: str | None = None,
    base: str | None = None,
    tags: list[str] | None = None,
) -> str:
    """The README.md of a model repository.

    Args:
        model: the model itself. repo_id: `user/name`.
        report: what `udm train` wrote as report.json, paths and all; None: nothing is known of the training.
        samples: of `write_samples`. examples: of `example_texts`; None: there are none to show.
        images: names of the images that stand beside the card.
        with_code: whether the repository carries the code of the model. licence: of the weights.
        base: name on the Hub of what the training started from; None: what the report says.

    Raises:
        ValueError: where the Hub would refuse the metadata.
    """
    known = {**(report or {}), **({} if base is None else {"base_model": base})}
    process, data, kind, source = (
        model.config.build_process(),
        describe_data(known.get("data")),
        kind_of(model.config, known),
        held_out(known),
    )
    clean, start = (public(known) if report else {}), base_model(known)
    length, prices = price_rows(model.config, known)
    command = shlex.join(clean.get("command") or [])
    card = ModelCard.from_template(
        card_data=_metadata(repo_id, process, kind, clean, data, source, start, with_code, licence, tags),
        template_str=_TEMPLATE,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        config=model.config,
        process=process,
        kind=kind,
        address=documentation(),
        calls=example_calls(kind, model.config, samples or [], examples or []),
        parameters=sum(p.numel() for p in model.parameters()),
        report=clean,
        data={key: inline(value) for key, value in data.items()},
        diverged=went_wrong(clean),
        figures=[(figure.words, figure.text) for figure in measured(clean)],
        drawn=drawn_figures(clean),
        judges=words_on_judges(clean),
        held=clean.get("validation") or clean.get("repair"),
        lengths=words_on_lengths(kind, model.config),
        source=source,
        again=evaluation_command(repo_id, clean),
        samples=samples,
        blocks=_blocks(samples or []),
        length=length,
        prices=prices,
        schedules=_schedules(prices),
        facts={k: inline(v) if isinstance(v, str) else v for k, v in _facts(clean, data, start).items()},
        command=_blocks([command])[0] if command else None,
        images=images,
        with_code=with_code,
    )
    body = f"{card}\n"
    check_metadata(body)
    return f"{body}\n<!-- udm-text card {_digest(body)}: an edited card is kept by the next push -->\n"


def _metadata(
    repo_id: str,
    process: Any,
    kind: Kind,
    report: dict[str, Any],
    data: dict[str, str],
    source: HeldOut,
    start: str | None,
    with_code: bool,
    licence: str | None,
    tags: list[str] | None,
) -> ModelCardData:
    """The YAML of a card; `report` is the published one, `start` of `base_model`."""
    kinds = ["udm", "discrete-diffusion", process.card.tag, *kind.tags]
    if report.get("model_arguments", {}).get("lora_rank") is not None:
        kinds.append("lora")
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        library_name="udm-text",
        pipeline_tag=kind.pipeline_tag,
        license=licence,
        base_model=start,
        base_model_relation=None if start is None else "finetune",  # adapters are merged: the weights are whole
        datasets=[data["hub"]] if "hub" in data else None,
        tags=[*kinds, *(["custom_code"] if with_code else []), *(tag for tag in tags or [] if tag not in kinds)],
        eval_results=eval_results(report, source, kind.task) or None,
    )


def _facts(report: dict[str, Any], data: dict[str, str], start: str | None) -> dict[str, Any]:
    """What is known of the training, None where it is not; {} without a report. start: of `base_model`."""
    if not report:
        return {}
    machine = report.get("machine", {})
    place = machine.get("accelerator") or f"{machine.get('processor', 'a CPU')}, {machine.get('threads')} threads"
    return {
        "data": data.get("name"),
        "started from": _start(report, start),
        "teacher": report.get("teacher"),
        "adapters": _adapters(report),
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


def _start(report: dict[str, Any], name: str | None) -> str:
    """What the training started from, in words. report: the published one. name: of it or its origin, on the Hub."""
    given = report.get("model_arguments", {}).get("model")
    if given is None or given in PRESETS:
        return "scratch"
    return given if name in (None, given) else f"{given}, of {name}"


def _adapters(report: dict[str, Any]) -> str | None:
    """LoRA in words; None: every weight was trained."""
    options = report.get("model_arguments", {})
    if options.get("lora_rank") is None:
        return None
    scale = options.get("lora_alpha") or 2 * options["lora_rank"]
    where = options.get("lora_target") or "all linear maps but the last"
    trained = report.get("trained_parameters")
    share = (
        "" if trained is None else f"; {trained / 1e6:.2f} M of {report['parameters'] / 1e6:.1f} M parameters trained"
    )
    return f"LoRA of rank {options['lora_rank']}, alpha {scale}, on {where}, merged into the weights{share}"
