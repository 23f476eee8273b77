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

from continuous.cli import app as image_app

from .. import __version__
from ..common import to_json
from ..generation_options import OPTIONS
from .export import check_target, save_trajectories
from .terminal import (
    LiveText,
    check_device,
    describe_prices,
    describe_speed,
    fetching,
    load_pipeline,
    marks,
    readable,
    show,
    speaks_unicode,
    visible,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
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


def _pipeline(model: str, revision: str | None, device: str | None = None, dtype: str = "float32", trust: bool = False):
    """`load_pipeline`; a model of another type is refused before it is loaded, with a word on what to do."""
    from transformers import PreTrainedConfig

    from ..configuration_udm import check_config_file

    check_device(device)
    if Path(model).is_dir() or not model.startswith((".", "/", "~")):
        with fetching(model):
            check_config_file(model, revision=revision)
            kind = PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("model_type")
        if kind != "udm":
            raise ValueError(
                f"{model} is of model type {kind!r}, and this needs a UDM model: wrap and train a masked LM with "
                f"`udm train --model {model} --data ... --output ...`"
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
    """Train: udm train --data PATH --output DIR, and every field of TrainingArguments; all: udm train --help."""
    from transformers import dynamic_module_utils

    from .. import register
    from .train_text import main as run

    register()
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


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
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
@_with_options
def generate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts to continue, or texts with [MASK] to fill in; none: texts from nothing."),
    ] = None,
    *,
    revision: Revision = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs a batch.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    watch: Annotated[bool, typer.Option("--watch", help="Show the text as it appears.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write how the texts came to be: a page (.html) or an animation (.gif).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Speed and expected price, on stderr.")] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Write, continue or fill in texts."""
    if save is not None:
        check_target(save)
    pipe = _pipeline(model, revision, device, dtype, trust_remote_code)
    inputs = list(text or [""])
    if not options.get("forbidden_tokens"):
        options["forbidden_tokens"] = None
    options |= {"return_dict_in_generate": verbose or as_json, "output_trajectory": save is not None}
    started = time.perf_counter()
    batch_size = 1 if watch else min(batch_size, len(inputs))
    if watch:
        with LiveText(pipe.tokenizer) as streamer:
            results = [pipe(one, streamer=streamer, **options) for one in inputs]
    else:
        results = pipe(inputs, batch_size=batch_size, **options)
    seconds = time.perf_counter() - started
    if save is not None:
        states = [record.pop("trajectory") for group in results for record in group]
        save_trajectories(save, [[readable(pipe.tokenizer, state) for state in track] for track in states], model)
    if as_json:
        pairs = zip(inputs, results, strict=True)
        show(to_json([{"input": a, "generated": b} for a, b in pairs], ensure_ascii=not speaks_unicode()))
    elif not watch:
        for group in results:
            for record in group:
                show(record["generated_text"])
    if verbose:
        print(describe_speed(results, batch_size, seconds), file=sys.stderr)


@app.command()
def repair(
    model: Model,
    text: Annotated[list[str], typer.Argument(help="Texts to repair.")],
    max_edits: Annotated[int, typer.Option(min=1, help="Tokens changed at most.")] = 2,
    seed: Seed = 0,
    revision: Revision = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Repair texts by a model of the substitute process, one edit at a time; shows every edit."""
    pipe = _pipeline(model, revision, device, trust=trust_remote_code)
    records = []
    for one in text:
        [result] = pipe(one, max_edits=max_edits, seed=seed, output_trajectory=True)
        steps = [step for i, step in enumerate(result["trajectory"]) if i == 0 or step != result["trajectory"][i - 1]]
        records.append({"input": one, "repaired": result["generated_text"], "edits": steps})
    if as_json:
        show(to_json(records, ensure_ascii=not speaks_unicode()))
        return
    for record in records:
        for before, after in zip(record["edits"], record["edits"][1:], strict=False):
            before, after = visible(before), visible(after)
            show(f"  {before}\n  {marks(before, after)}")
        show(record["repaired"])


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str | None, typer.Option(help="A corpus; default: the one the model was trained with.")] = None,
    split: Annotated[str, typer.Option(help="Which part of it.")] = "validation",
    draws: Annotated[int, typer.Option(min=1, help="Corruptions of each row.")] = 8,
    seed: Annotated[int, typer.Option(help="The noise of the estimate.")] = 0,
    kernel: Annotated[str | None, typer.Option(help="Reverse kernel of a substitute model.")] = None,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="The bound for so many steps; default: one token a step (mask models).")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="How they are spread: linear, cosine or optimal.")] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Measure and store the price of a token; print that of fewer steps.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """The bound on held-out text: nats/token, bits/char, perplexity bound, each with its standard error. Of a repairer
    (trained with max_corruption below 1) the share of rows it restores instead."""
    from .. import register
    from ..card import read_report
    from ..common import write_json
    from ..evaluation import evaluate_bound, evaluate_repair, measure_curve, price_table, store_curve
    from ..framing import load_tokenizer
    from ..modeling_udm import UDMForMaskedGeneration
    from ..training.arguments import DataArguments
    from .reports import describe, describe_repair
    from .train_text import rows_of_split

    register()
    check_device(device)
    if curve and Path(model).is_dir() and not os.access(model, os.W_OK):
        raise ValueError(f"--curve stores what it measures in {model}, which may not be written to")
    report_file = Path(model) / "report.json"
    report: dict[str, Any] = {}
    how: dict[str, Any] = {}
    if report_file.is_file():
        report = read_report(report_file)
        known = {field.name for field in dataclasses.fields(DataArguments)}
        how = {name: value for name, value in report.get("data_arguments", {}).items() if name in known}
        if data is not None:
            how["validation_data"] = None  # another corpus has held-out texts of its own
        data = data or report.get("data")
    if data is None:
        raise ValueError(f"{model} holds no report.json that names its corpus: give --data")
    network = UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code)
    if device is not None:
        network = network.to(device)
    tokenizer = load_tokenizer(model, trust_remote_code)
    rows = rows_of_split(DataArguments(**{**how, "data": data}), tokenizer, split)
    if curve:
        for option, value in (("--num-steps", num_steps), ("--schedule", schedule), ("--kernel", kernel)):
            if value is not None:
                raise ValueError(f"--curve prices every number of steps and schedule: leave {option} away")
        measured = measure_curve(network, rows, batch_size=batch_size, draws=draws, seed=seed)
        figures = {**measured.to_dict(), "prices": price_table(measured)}
        text = describe_prices(figures)
        if Path(model).is_dir():
            store_curve(model, measured.curve)
            if report:
                write_json(report_file, {**report, "curve": figures})
        else:
            print(f"note: {model} is no directory here, so the curve is not stored", file=sys.stderr)
    elif report.get("max_corruption", 1.0) < 1.0:  # a repairer: its bound means little, its repairs do
        figures = evaluate_repair(network, rows, batch_size=batch_size, seed=seed).to_dict()
        text = describe_repair(figures)
    else:
        how_measured: dict[str, Any] = {"batch_size": batch_size, "draws": draws, "seed": seed, "kernel": kernel}
        figures = evaluate_bound(network, rows, **how_measured, num_steps=num_steps, schedule=schedule).to_dict()
        text = describe(figures, report.get("vocabulary"))
    print(to_json({"model": model, "data": data, "split": split, **figures}) if as_json else text)


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
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which the Hub counts as gone.")] = 120.0,
    trust_remote_code: Trust = False,
) -> None:
    """Publish a model on the Hub: weights, tokenizer, settings and a card with its figures, in one commit."""
    from .. import register
    from ..framing import has_file, load_tokenizer
    from ..hub import push as publish
    from ..modeling_udm import UDMForMaskedGeneration

    register()
    commit = publish(
        UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code),
        name,
        tokenizer=load_tokenizer(model, trust_remote_code) if has_file(model, "tokenizer_config.json") else None,
        source=model,
        private=private or None,
        include_code=include_code,
        revision=revision,
        commit_message=message,
        license=license,
        timeout=timeout,
    )
    print(f'{commit.commit_url}\nload it: pipeline("udm-generation", model="{name}")')


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet, or empty.")],
    trust_remote_code: Trust = False,
) -> None:
    """Write the masked LM inside a model, as transformers itself would: for fill-mask, or as a start elsewhere."""
    from .. import register
    from ..framing import load_tokenizer
    from ..hub import check_new_folder, save_backbone
    from ..modeling_udm import UDMForMaskedGeneration

    register()
    check_new_folder(output)
    network = UDMForMaskedGeneration.from_pretrained(model, trust_remote_code=trust_remote_code)
    save_backbone(network, load_tokenizer(model, trust_remote_code), output)
    print(f'{output}: pipeline("fill-mask", model="{output}")')


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; fewer for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and samples.")] = 0,
) -> None:
    """Train on Unicode character names, then score, sample, fill in and repair. Some six minutes on two cores."""
    from .. import register
    from .demo import run

    register()
    run(output, steps, seed)
