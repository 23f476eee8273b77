"""What the `udm` command can do. Everything heavy is imported inside the commands: `udm --help` answers at once."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from continuous.cli import app as image_app

from .. import __version__
from ..common import check_new_folder, check_place, to_json, watching
from ..generation_options import OPTIONS, read_order
from .export import check_target, save_trajectories
from .terminal import (
    LiveText,
    check_device,
    describe_prices,
    describe_speed,
    fetching,
    hide_loading_bars,
    hide_untrue_warnings,
    load_pipeline,
    marks,
    readable,
    show,
    speaks_unicode,
    visible,
)
from .texts import Texts, as_line, by_batch, check_output, find_texts, has_something, is_table, write_texts

_WRITES_ONCE = {
    "generate": "nothing was written",
    "repair": "nothing was written",
    "evaluate": "nothing was written",
    "export": "nothing was written",
    "push": "the push is not confirmed, and nothing half-done is visible; to push again is safe",
}
"""Commands that write when all is done, if at all: what a person who stops one is told."""
_written: list[str] = []
"""What the command has written so far."""


def _note_written(path: str | Path) -> None:
    _written.append(str(path))


class Commands(TyperGroup):
    """The commands; one that Ctrl-C ends says in one line what it did, and its exit code is 130."""

    def invoke(self, ctx: Any) -> Any:
        _written.clear()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            left = f"{', '.join(_written)} was written" if _written else _WRITES_ONCE.get(ctx.invoked_subcommand)
            show(f"udm: stopped{f'; {left}' if left else ''}", error=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --num_steps is --num-steps
    help="Text by discrete diffusion: train, generate, evaluate, repair.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"udm-text {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(image_app, name="image")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, or a name on the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that lies beside the model. Read it first.")
]
Seed = Annotated[int | None, typer.Option(help="Reproduces the result.")]
TextColumn = Annotated[
    str | None, typer.Option(help="Of a table: the column that holds the texts; default: text, or as in training.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Texts from a file: the lines of a text file, or a column of a table (.jsonl, .csv, .tsv, .parquet); -: "
        "standard input.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="A file for what comes out, a text a line in the order of the input; .jsonl: an object a line, the input "
        "in it; -: standard output.",
    ),
]
InputColumn = Annotated[
    str | None, typer.Option("--text-column", help="Of an --input that is a table: the column; default: text.")
]
DataConfig = Annotated[str | None, typer.Option(help="Configuration of a data set; default: as in training.")]


def _pipeline(model: str, revision: str | None, device: str | None = None, dtype: str = "float32", trust: bool = False):
    """`load_pipeline`; a model of another type is refused before it is loaded, with a word on what to do."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from ..configuration_udm import check_config_file

    check_device(device)
    hide_loading_bars()
    hide_untrue_warnings()
    check_place(model, revision=revision)
    with fetching(model):
        check_config_file(model, revision=revision)
        kind = PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("model_type")
    if kind is None and (Path(model) / "run.json").is_file():
        raise ValueError(f"the run in {model} is not finished: the command that began it, told to resume, goes on")
    if kind != "udm" and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ValueError(
            f"{model} is of model type {kind!r}, and this needs a UDM model, or a masked LM to wrap: `udm train` makes "
            "one of the other"
        )
    try:
        with fetching(model):
            return load_pipeline(model, revision, device, dtype, trust)
    except ValueError as error:
        *_, last = str(error).strip().splitlines()
        if "while loading with" not in str(error):
            raise
        # transformers puts the tracebacks of all it tried into its message, what went wrong in the last line
        raise OSError(last.split(": ", 1)[-1]) from error


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train: udm train --data PATH --output DIR; more: udm train --help, and all there is: udm train --help-all."""
    from transformers import dynamic_module_utils

    from .. import register
    from .train_text import main as run

    register()
    hide_untrue_warnings()
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # it refuses at once in place of asking on stdin
    try:
        run(context.args)
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise ValueError(
            "what --model or --tokenizer names holds Python code of its own, which `udm train` never runs: save it in "
            "a form that transformers loads by itself"
        ) from error


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every option of a generation that has one, handed to it as keywords."""
    parameters = {n: p for n, p in inspect.signature(function, eval_str=True).parameters.items() if n != "options"}
    for name, option in OPTIONS.items():
        if option.kind is None:
            continue
        first = option.help if len(option.help) < 200 else option.help.split(". ")[0].removesuffix(".") + "."
        help = first + (f" ({option.of} models)" if option.of else "")
        flag = typer.Option(*option.flags, help=help, show_default=option.default is not None)
        kind = Annotated[option.kind, flag]  # type: ignore[name-defined]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters[name] = inspect.Parameter(name, keyword, default=option.default, annotation=kind)
    function.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    function.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return function


@app.command()
@with_options
def generate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts to continue, or texts with [MASK] to fill in, or <blank> for any number of tokens; none: "
            "those of standard input, one a line, if it is a file or a pipe with any, else texts from nothing."
        ),
    ] = None,
    *,
    source: Input = None,
    output: Output = None,
    text_column: InputColumn = None,
    blank_token: Annotated[
        str | None,
        typer.Option(help="What stands for any number of tokens (models trained with blanks); default: <blank>."),
    ] = None,
    score: Annotated[
        bool,
        typer.Option("--score", help="The bound on -log p of each text: nats, and nats a token of what was generated."),
    ] = False,
    draws: Annotated[int, typer.Option(min=1, help="Of --score: corruptions of each text.")] = 32,
    revision: Revision = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs a batch.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    watch: Annotated[bool, typer.Option("--watch", help="Show the text as it appears.")] = False,
    watch_delay: Annotated[
        float, typer.Option(min=0.0, help="Of --watch: seconds that a step stays; 0: as fast as it goes.")
    ] = 0.1,
    save: Annotated[
        Path | None, typer.Option(help="Write how the texts came to be: a page (.html) or an animation (.gif).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Speed and expected price, on stderr.")] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Write, continue or fill in texts."""
    options["order"] = read_order(options["order"])
    if save is not None:
        check_target(save)
    if watch and (output is not None or score):
        raise ValueError("--watch shows texts on the terminal: leave --output and --score away")
    if score and output is not None and not is_table(output):
        raise ValueError(f"--score needs an output with a place for it: give --output FILE.jsonl, got {output}")
    texts = find_texts(text, source, text_column)
    output = check_output(output, texts.source, as_json)
    if score:
        from ..run_report import read_report
        from .scoring import refuse_repairer, report_of, score_rows

        check_place(model, revision=revision)
        report_file = report_of(model)
        refuse_repairer(model, {} if report_file is None else read_report(report_file))
    pipe = _pipeline(model, revision, device, dtype, trust_remote_code)
    if not texts.texts and source is None:
        texts = Texts([""], None)
    if not options.get("forbidden_tokens"):
        options["forbidden_tokens"] = None
    options |= {"return_dict_in_generate": verbose or as_json, "output_trajectory": save is not None}
    if blank_token is not None:
        options["blank_token"] = blank_token
    if score:
        options["return_tensors"] = True
    started = time.perf_counter()
    batch_size = 1 if watch else max(1, min(batch_size, len(texts.texts)))
    if watch:
        with LiveText(pipe.tokenizer, watch_delay) as streamer:
            results = by_batch(texts, 1, lambda some: [pipe(some[0], streamer=streamer, **options)])
    else:
        results = by_batch(texts, batch_size, lambda some: pipe(some, batch_size=batch_size, **options))
    seconds = time.perf_counter() - started
    records = [(given, record) for given, group in zip(texts.texts, results, strict=True) for record in group]
    if score:
        rows = [
            {"input_ids": record.pop("generated_token_ids"), "editable": record.pop("generated")}
            for _, record in records
        ]
        for (_, record), one in zip(
            records, score_rows(pipe.model, rows, draws=draws, kernel=options["kernel"]), strict=True
        ):
            record |= one
    if save is not None:
        states = [record.pop("trajectory") for _, record in records]
        save_trajectories(save, [[readable(pipe.tokenizer, state) for state in track] for track in states], model)
        _note_written(save)
    if output is not None:
        lines = [record["generated_text"] for _, record in records]
        write_texts(output, [{"input": given, **record} for given, record in records], lines)
        _note_written(output)
    elif as_json:
        pairs = zip(texts.texts, results, strict=True)
        show(to_json([{"input": a, "generated": b} for a, b in pairs], ensure_ascii=not speaks_unicode()))
    elif not watch:
        for _, record in records:
            line = record["generated_text"] if texts.source is None else as_line(record["generated_text"])
            show(f"{record['nats']:.3f} nats, {record['nats_per_token']:.3f} a token: {line}" if score else line)
    if verbose:
        print(describe_speed(results, batch_size, seconds), file=sys.stderr)


@app.command()
@with_options
def chat(
    model: Model,
    *,
    system: Annotated[str | None, typer.Option(help="A message of the system, before all others.")] = None,
    revision: Revision = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    watch_delay: Annotated[
        float, typer.Option(min=0.0, help="On a terminal: seconds that a step stays; 0: as fast as it goes.")
    ] = 0.05,
    trust_remote_code: Trust = False,
    **options: Any,
) -> None:
    """Chat with a model that was trained on chats: a line, its answer, and so on. /reset begins anew."""
    from .chat import converse

    if (number := options["num_return_sequences"]) != 1:
        raise ValueError(f"a chat goes on with one answer: leave --number {number} away")
    pipe = _pipeline(model, revision, device, dtype, trust_remote_code)
    pipe.prompt_of([{"role": "user", "content": "Is there a chat template?"}])  # or it is said before anybody types
    if not options.get("forbidden_tokens"):
        options["forbidden_tokens"] = None
    converse(pipe, system, watch_delay, **options)


@app.command()
def repair(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to repair; none: the lines of standard input, if it is a file or a pipe."),
    ] = None,
    max_edits: Annotated[int, typer.Option(min=1, help="Tokens changed, put in or left out at most.")] = 2,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Make only edits that are at least so probable.")
    ] = None,
    seed: Seed = 0,
    source: Input = None,
    output: Output = None,
    text_column: InputColumn = None,
    revision: Revision = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts a batch.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Repair texts by a model of the substitute or the edit process, one edit at a time; shows every edit of those that
    are given here, of the lines of a file the repaired line alone."""
    texts = find_texts(text, source, text_column)
    if texts.source is None and not texts.texts:
        raise ValueError("there is no text to repair: give texts, --input FILE, or lines by standard input")
    output = check_output(output, texts.source, as_json)
    pipe = _pipeline(model, revision, device, trust=trust_remote_code)
    how: dict[str, Any] = {"max_edits": max_edits, "min_confidence": min_confidence}
    how |= {"seed": seed, "output_trajectory": True}

    def work(some: list[str]) -> list[dict[str, Any]]:
        """A record of each text; a line of a file in which the model reads nothing comes back as it is."""
        found: list[dict[str, Any]] = [{"input": one, "repaired": one, "edits": [one]} for one in some]
        there = [i for i, one in enumerate(some) if texts.source is None or has_something(pipe, one)]
        results = pipe([some[i] for i in there], batch_size=max(1, len(there)), **how)
        for i, [result] in zip(there, results, strict=True):
            walk = result["trajectory"]
            steps = [step for j, step in enumerate(walk) if j == 0 or step != walk[j - 1]]
            found[i] |= {"repaired": result["generated_text"], "edits": steps}
        return found

    records = by_batch(texts, batch_size, work)
    if output is not None:
        write_texts(output, records, [record["repaired"] for record in records])
        _note_written(output)
    elif as_json:
        show(to_json(records, ensure_ascii=not speaks_unicode()))
    else:
        for record in records:
            for before, after in zip(record["edits"], record["edits"][1:], strict=False):
                if texts.source is None:
                    before, after = visible(before), visible(after)
                    show(f"  {before}\n  {marks(before, after)}")
            show(record["repaired"] if texts.source is None else as_line(record["repaired"]))


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="A corpus, scored whole; default: what was held out of the one the model was trained with."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The part of it: train, validation (the held-out share, where the corpus has no such split), test, "
            "all; default: all of a corpus without splits that is given, else validation."
        ),
    ] = None,
    data_config: DataConfig = None,
    text_column: TextColumn = None,
    prompt_column: Annotated[str | None, typer.Option(help="The column of prompts; default: as in training.")] = None,
    messages_column: Annotated[str | None, typer.Option(help="The column of chats; default: as in training.")] = None,
    rows: Annotated[str | None, typer.Option(help="line, fixed or packed; default: as in training.")] = None,
    row_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row, at which it is cut; default: as in training.")
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Held out where the corpus has no such split; default: as in training.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Corruptions of each row, or orders; default: 8, of a fixed order 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The noise of the estimate.")] = 0,
    likelihood: Annotated[
        str,
        typer.Option(
            help="bound; of masks also chain (the chain rule in an order of positions, exact for it) or importance (a "
            "tighter bound, by many orders together). The bound is then measured besides, which takes --draws calls of "
            "the network a row more."
        ),
    ] = "bound",
    order: Annotated[
        str | None, typer.Option(help="Of --likelihood chain: random (the default), left_to_right or skeleton:4.")
    ] = None,
    per_example: Annotated[
        Path | None, typer.Option(help="Write the score of every text, too: a table that ends in .parquet.")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Reverse kernel of a substitute model.")] = None,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="The bound for so many steps; default: one token a step (mask, delete).")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="How they are spread: linear, cosine or optimal.")] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Measure and store the price of a token; print that of fewer steps.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(min=2, help="Draw so many texts, and compare them with held-out and training texts, in figures."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Of --samples: a causal language model, whose perplexity of the texts is a figure, too."),
    ] = None,
    featuriser: Annotated[
        str | None, typer.Option(help="Of --samples: a model whose hidden states MAUVE compares (udm-text[metrics]).")
    ] = None,
    validity: Annotated[
        str | None,
        typer.Option(
            help="Of --samples: your function that says of a text whether it is valid, as module:function or "
            "path.py:function; it is run."
        ),
    ] = None,
    frontier: Annotated[
        Path | None,
        typer.Option(
            help="Of --judge: perplexity against entropy over --temperatures and --steps, as an image (.png)."
        ),
    ] = None,
    temperatures: Annotated[str | None, typer.Option(help="Of --frontier: default: 0.7,0.85,1.0.")] = None,
    steps: Annotated[str | None, typer.Option(help="Of --frontier: numbers of steps; default: 8,32.")] = None,
    report_to: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Write all of it into a new folder: bound, prices of fewer steps and --samples (200) as a page of "
            "HTML and as Markdown; the figures on the model's own held-out text go into its card.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """The bound on held-out text: nats/token, bits/char, perplexity bound, each with its standard error. Of a repairer
    (trained with max_corruption below 1) how it repairs typing errors instead."""
    from .. import register
    from ..common import write_json
    from ..evaluation import (
        evaluate_bound,
        evaluate_continuous_bound,
        evaluate_likelihood,
        measure_curve,
        measure_prices,
        price_table,
        store_curve,
    )
    from ..evaluation.continuous_time import CONTINUOUS_TIME
    from ..framing import load_tokenizer
    from ..modeling_udm import UDMForMaskedGeneration
    from ..run_report import read_report
    from ..training.callbacks import terminal_bar
    from .report_page import measure_all, store_evaluation, versions, write_report
    from .reports import describe, describe_frontier, describe_repair, describe_samples, draw_frontier
    from .scoring import (
        ALL,
        SampleOptions,
        check_frontier,
        check_table,
        figures_of_samples,
        is_corpus_of,
        reading,
        refuse_repairer,
        report_of,
        rows_to_score,
        score_examples,
    )
    from .train_text import measure_repairs, repairs_by

    register()
    check_device(device)
    hide_loading_bars()
    hide_untrue_warnings()
    if curve and Path(model).is_dir() and not os.access(model, os.W_OK):
        raise ValueError(f"--curve stores what it measures in {model}, which may not be written to")
    for option, value in (("--num-steps", num_steps), ("--schedule", schedule), ("--kernel", kernel)):
        if curve and value is not None:
            raise ValueError(f"--curve prices every number of steps and schedule: leave {option} away")
    draws_of_rows = 8 if draws is None else draws
    by = f"--likelihood {likelihood}" if likelihood != "bound" else f"--per-example {per_example}"
    single = (likelihood != "bound" or per_example is not None) and report_to is None
    if order is not None and likelihood == "bound":
        raise ValueError(f"--order {order}: the bound is over all orders; it is --likelihood chain that has one")
    in_order = None if order is None else read_order(order)
    if single:
        others = {"--curve": curve or None, "--samples": samples, "--num-steps": num_steps, "--schedule": schedule}
        for option, value in {**others, "--kernel": kernel if likelihood != "bound" else None}.items():
            if value is not None:
                raise ValueError(f"{by} is of single texts, one token a step: leave {option} away")
    of_samples = {"--judge": judge, "--featuriser": featuriser, "--validity": validity, "--frontier": frontier}
    for option, place in of_samples.items():
        if place is not None and samples is None and report_to is None:
            raise ValueError(f"{option} {place} is about texts that are drawn: give --samples, too")
    grid = check_frontier(frontier, judge, temperatures, steps, always=report_to is not None and judge is not None)
    if report_to is not None:
        for option, given_too in (("--curve", curve), ("--kernel", kernel), ("--per-example", per_example)):
            if given_too:
                raise ValueError(f"--report measures what there is, with the model's own kernel: leave {option} away")
        check_new_folder(report_to)
    for option, value in (("--curve", curve or None), ("--kernel", kernel)):
        if samples is not None and value is not None:
            raise ValueError(f"--samples measures texts, and {option} is of the bound: leave one of them away")
    check_place(model)
    report_file = report_of(model)
    report = {} if report_file is None else read_report(report_file)
    given: dict[str, Any] = {"data_config": data_config, "text_column": text_column, "prompt_column": prompt_column}
    given |= {"rows": rows, "row_length": row_length, "validation_share": validation_share}
    given["messages_column"] = messages_column
    how = reading(report, model, data, given)
    if per_example is not None:
        check_table(per_example, how.rows)
    drawing: dict[str, Any] = {"seed": seed, "num_steps": num_steps, "schedule": schedule or "linear"}
    wanted = SampleOptions(samples or 200, judge, featuriser, validity, *grid)
    if report_to is not None:
        refuse_repairer(model, report, "--report")
        pipe = _pipeline(model, None, device, trust=trust_remote_code)
        scored, _, where = rows_to_score(pipe.model.config, how, pipe.tokenizer, split, whole=data is not None)
        asked = samples is not None or any(place is not None for place in of_samples.values())
        draws_texts = asked or (pipe.model.config.length_counts is not None and not pipe.model.config.prompted)
        measuring: dict[str, Any] = {"likelihood": likelihood, "order": in_order, "draws": draws, **drawing}
        own = data is None and split in (None, "validation") and not any(v is not None for v in given.values())
        with watching(terminal_bar):
            figures, found = measure_all(
                pipe, scored, how, wanted if draws_texts else None, split, batch_size=batch_size, **measuring
            )
        settings = {"model": model, "data": how.data, "split": where, **measuring, **dataclasses.asdict(wanted)}
        figures |= {"settings": {**settings, "draws": figures["bound"]["draws"]}, "versions": versions()}
        write_report(report_to, figures, f"Evaluation of {model}")
        _note_written(report_to)
        if frontier is not None:
            draw_frontier(figures["samples"], frontier)
            _note_written(frontier)
        if own and report and report_file is not None and Path(model).is_dir():
            store_evaluation(model, report_file, report, figures, found)
        print(to_json(figures) if as_json else f"{describe(figures['bound'], report.get('vocabulary'))}\n{report_to}")
        return
    if samples is not None:
        refuse_repairer(model, report, "--samples")
        pipe = _pipeline(model, None, device, trust=trust_remote_code)
        with watching(terminal_bar):
            figures, _ = figures_of_samples(pipe, how, wanted, split, batch_size=batch_size, **drawing)
        if frontier is not None:
            draw_frontier(figures, frontier)
            _note_written(frontier)
        text = describe_samples(figures)
        if frontier is not None:
            text = f"{text}\n\n{describe_frontier(figures['frontier'])}"
        print(to_json({"model": model, "data": how.data, **figures}) if as_json else text)
        return
    network = UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code)
    if device is not None:
        network = network.to(device)
    tokenizer = load_tokenizer(model, trust_remote_code)
    scored, texts, split = rows_to_score(network.config, how, tokenizer, split, whole=data is not None)
    if split == ALL and is_corpus_of(report, how.data):
        print(
            f"note: {model} was trained on {how.data}, and all of it is scored; --split validation scores what was "
            "held out",
            file=sys.stderr,
        )
    if curve and not network.config.build_process().has_curve:
        with watching(terminal_bar):
            figures = measure_prices(network, scored, batch_size=batch_size, draws=draws_of_rows, seed=seed)
        text = describe_prices(figures)
    elif curve:
        with watching(terminal_bar):
            measured = measure_curve(network, scored, batch_size=batch_size, draws=draws_of_rows, seed=seed)
        figures = {**measured.to_dict(), "prices": price_table(measured)}
        text = describe_prices(figures)
        if Path(model).is_dir():
            store_curve(model, measured.curve)
            _note_written(Path(model) / "config.json")
            if report and report_file is not None:
                write_json(report_file, {**report, "curve": figures})
        else:
            print(f"note: {model} is no directory here, so the curve is not stored", file=sys.stderr)
    elif single:
        refuse_repairer(model, report, "--per-example" if likelihood == "bound" else "--likelihood")
        scoring: dict[str, Any] = {"likelihood": likelihood, "draws": draws, "order": in_order, "seed": seed}
        scoring["batch_size"] = batch_size
        with watching(terminal_bar):
            if per_example is not None:
                scoring["kernel"] = kernel
                figures = score_examples(network, tokenizer, how, texts, per_example, **scoring)
                _note_written(per_example)
            else:
                figures = evaluate_likelihood(network, scored, **scoring).to_dict()
            text = describe(figures, report.get("vocabulary"))
            if likelihood != "bound":
                beside = evaluate_bound(
                    network, scored, batch_size=batch_size, draws=draws_of_rows, seed=seed
                ).to_dict()
                figures |= {"bound": beside}
                text += f"\nbeside it the bound: {describe(beside, report.get('vocabulary'))}"
    elif report.get("max_corruption", 1.0) < 1.0 or how.noisy_column is not None:  # a repairer
        repairing: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        share = report.get("max_corruption", 1.0)
        with watching(terminal_bar):
            figures = measure_repairs(network, tokenizer, how, share, texts, scored, **repairing)
        text = describe_repair(figures, repairs_by(network.config))
    else:
        how_measured: dict[str, Any] = {"batch_size": batch_size, "draws": draws_of_rows, "seed": seed}
        how_measured["kernel"] = kernel
        with watching(terminal_bar):
            bound = evaluate_bound(network, scored, **how_measured, num_steps=num_steps, schedule=schedule)
            figures = bound.to_dict()
            text = describe(figures, report.get("vocabulary"))
            if network.config.build_process().has_rates:
                rates = evaluate_continuous_bound(
                    network, scored, batch_size=batch_size, draws=draws_of_rows, seed=seed
                ).to_dict()
                figures |= {CONTINUOUS_TIME: rates}
                text += f"\nin continuous time, leave-one-out: {describe(rates, report.get('vocabulary'))}"
    print(to_json({"model": model, "data": how.data, "split": split, **figures}) if as_json else text)


@app.command()
def push(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository only its owner can see.")] = False,
    include_code: Annotated[
        bool, typer.Option("--include-code", help="Also the code, so that it works without this package.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
    license: Annotated[str | None, typer.Option(help="The licence of the weights, as apache-2.0.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The model on the Hub it was trained from; default: as the training knows it.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which the Hub counts as gone.")] = 120.0,
    output: Annotated[
        Path | None,
        typer.Option(help="Send nothing: write what would be pushed, card included, into this new folder; no token."),
    ] = None,
    trust_remote_code: Trust = False,
) -> None:
    """Publish a model on the Hub: weights, tokenizer, settings and a card with its figures, in one commit."""
    from .. import register
    from ..framing import has_file, load_tokenizer
    from ..hub import push as publish
    from ..hub import write_folder
    from ..modeling_udm import UDMForMaskedGeneration

    register()
    hide_loading_bars()
    hide_untrue_warnings()
    if output is not None:
        for option, value in (("--private", private), ("--revision", revision), ("--message", message)):
            if value:
                raise ValueError(f"--output {output} writes a folder and sends nothing: leave {option} away")
        check_new_folder(output)
    check_place(model)
    network = UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(model, trust_remote_code) if has_file(model, "tokenizer_config.json") else None
    how: dict[str, Any] = {"tokenizer": tokenizer, "source": model, "include_code": include_code}
    how |= {"license": license, "base_model": base_model}
    if output is not None:
        for file in write_folder(network, name, output, **how):
            print(output / file)
        return
    commit = publish(
        network,
        name,
        **how,
        private=private or None,
        revision=revision,
        commit_message=message,
        timeout=timeout,
    )
    print(f'{commit.commit_url}\nload it: pipeline("udm-generation", model="{name}")')


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet, or empty.")],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="The whole model in place of the masked LM, its weights of 8 bits (torchao)."),
    ] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write the masked LM inside a model, as transformers itself would: for fill-mask, or as a start elsewhere. With
    --int8 the whole model, with weights of 8 bits."""
    from .. import register
    from ..framing import load_tokenizer
    from ..hub import save_backbone, save_int8
    from ..modeling_udm import UDMForMaskedGeneration

    register()
    hide_loading_bars()
    hide_untrue_warnings()
    check_new_folder(output)
    check_place(model)
    if int8:
        save_int8(model, load_tokenizer(model, trust_remote_code), output, trust_remote_code)
        print(f'{output}: pipeline("udm-generation", model="{output}")')
        return
    network = UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code)
    save_backbone(network, load_tokenizer(model, trust_remote_code), output)
    print(f'{output}: pipeline("fill-mask", model="{output}")')


@app.command("app")
def page(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Directories of models, or names on the Hub; of texts or of images."),
    ],
    host: Annotated[str, typer.Option(help="This machine alone: 127.0.0.1, localhost or ::1.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first of 7860 to 7959 that is free.")
    ] = None,
    browse: Annotated[bool, typer.Option("--browse", help="Open it in the browser.")] = False,
    export_space: Annotated[
        Path | None,
        typer.Option(help="Serve nothing: write a Space of the Hub that does, models in it, into this new folder."),
    ] = None,
    revision: Revision = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="Of texts: float32 or bfloat16.")] = "float32",
    trust_remote_code: Trust = False,
) -> None:
    """A page in the browser to try models on: watch texts and images come to be. Needs the extra app."""
    from .. import register
    from .page import check_extra, check_host, load, serve

    check_host(host)
    check_extra()
    register()
    hide_loading_bars()
    if export_space is not None:
        from .page.space import export_space as export

        for file in export(models, export_space):
            if "/" not in file:
                print(export_space / file)
        print(f"send it: hf upload USER/NAME {export_space} --repo-type space (make it first, sdk gradio)")
        return
    check_device(device)

    def load_text(name: str) -> Any:
        return _pipeline(name, revision, device, dtype, trust_remote_code)

    serve([load(name, load_text, device, revision) for name in models], host, port, inbrowser=browse)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, which devices are found and what is missing. Asks nothing of the network."""
    from .doctor import describe, examine

    found = examine()
    show(to_json(found, ensure_ascii=not speaks_unicode()) if as_json else describe(found))
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; fewer for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and samples.")] = 0,
) -> None:
    """Train on Unicode character names, then score, sample, fill in and repair. Six minutes on two cores."""
    from .. import register
    from .demo import run

    register()
    run(output, steps, seed)
