"""The `udm` command. Everything heavy is imported inside the commands: `udm --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .export import check_target, save_trajectories
from .terminal import LiveText, describe_prices, describe_speed, load_pipeline, marks, readable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text by discrete diffusion: train, generate, evaluate, repair.",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, or a name on the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Seed = Annotated[int | None, typer.Option(help="Reproduces the result.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train: udm train --data PATH --output DIR [every field of TrainingArguments]; all options: udm train --help."""
    from . import register
    from .train_text import main as run

    register()
    run(context.args)


@app.command()
def generate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts to continue, or texts with [MASK] to fill in; none: texts from nothing."),
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Texts for each input.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a text; default: drawn from the training lengths.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens added behind a prompt.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Reverse steps; default: one token a step.")] = None,
    schedule: Annotated[
        str, typer.Option(help="How the steps are spread: linear, cosine or optimal (which needs a measured curve).")
    ] = "linear",
    threshold: Annotated[
        float | None, typer.Option(help="Reveal every token surer than this in a step, and at least one (mask models).")
    ] = None,
    order: Annotated[
        str, typer.Option(help="random, left_to_right, confidence, margin or entropy (mask models).")
    ] = "random",
    order_noise: Annotated[
        float, typer.Option(help="Gumbel noise on confidence, margin and entropy: 0 none, large the random order.")
    ] = 0.0,
    revise: Annotated[
        int, typer.Option(help="At the end, draw the least sure tokens anew, so many of them (mask models).")
    ] = 0,
    forbid: Annotated[
        list[str] | None, typer.Option(help="A token that is never drawn; may be given several times.")
    ] = None,
    speculate: Annotated[
        int | None, typer.Option(help="Draft so many tokens at a time, by the law of one token a step (mask models).")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="site, hamming or free (substitute models).")] = None,
    churn: Annotated[float, typer.Option(help="Share of fresh noise: 0 improved, 1 baseline sampler.")] = 0.0,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most likely token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the most likely tokens of this mass.")] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs a batch.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    watch: Annotated[bool, typer.Option("--watch", help="Show the text as it appears.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write how the texts came to be: a page (.html) or an animation (.gif).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Speed and expected price, on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Write, continue or fill in texts."""
    if save is not None:
        check_target(save)
    pipe = load_pipeline(model, device, dtype)
    inputs = list(text or [""])
    options: dict[str, Any] = {
        "num_return_sequences": number,
        "length": length,
        "max_new_tokens": max_new_tokens,
        "num_steps": num_steps,
        "schedule": schedule,
        "threshold": threshold,
        "order": order,
        "order_noise": order_noise,
        "revise": revise,
        "speculate": speculate,
        "kernel": kernel,
        "churn": churn,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "return_dict_in_generate": verbose or as_json,
        "output_trajectory": save is not None,
    }
    if forbid:
        options["forbidden_tokens"] = forbid
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
        print(
            json.dumps([{"input": a, "generated": b} for a, b in zip(inputs, results, strict=True)], ensure_ascii=False)
        )
    elif not watch:
        for group in results:
            for record in group:
                print(record["generated_text"])
    if verbose:
        print(describe_speed(results, batch_size, seconds), file=sys.stderr)


@app.command()
def repair(
    model: Model,
    text: Annotated[list[str], typer.Argument(help="Texts to repair.")],
    max_edits: Annotated[int, typer.Option(min=1, help="Tokens changed at most.")] = 2,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Json = False,
) -> None:
    """Repair texts by a model of the substitute process, one edit at a time; shows every edit."""
    pipe = load_pipeline(model, device)
    records = []
    for one in text:
        [result] = pipe(one, max_edits=max_edits, seed=seed, output_trajectory=True)
        steps = [step for i, step in enumerate(result["trajectory"]) if i == 0 or step != result["trajectory"][i - 1]]
        records.append({"input": one, "repaired": result["generated_text"], "edits": steps})
    if as_json:
        print(json.dumps(records, ensure_ascii=False))
        return
    for record in records:
        for before, after in zip(record["edits"], record["edits"][1:], strict=False):
            print(f"  {before}\n  {marks(before, after)}")
        print(record["repaired"])


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
    as_json: Json = False,
) -> None:
    """The bound on held-out text: nats/token, bits/char, perplexity bound, each with its standard error. Of a repairer
    (trained with max_corruption below 1) the share of rows it restores instead."""
    from . import register
    from .configuration_udm import choices
    from .corpus import hold_out, load_corpus, load_tokenizer, make_rows
    from .evaluation import evaluate_bound, evaluate_repair, measure_curve, price_table, store_curve
    from .modeling_udm import UDMForMaskedGeneration
    from .train_text import describe, describe_repair

    register()
    report_file = Path(model) / "report.json"
    report: dict[str, Any] = {}
    how: dict[str, Any] = {}
    if report_file.is_file():
        report = json.loads(report_file.read_text(encoding="utf-8"))
        how = report["data_arguments"]
        data = data or report["data"]
    if data is None:
        raise ValueError(f"{model} holds no report.json that names its corpus: give --data")
    network = UDMForMaskedGeneration.from_pretrained(model)
    if device is not None:
        network = network.to(device)
    splits = load_corpus(data, how.get("text_column", "text"), how.get("data_config"))
    if split not in splits:
        splits = hold_out(splits, how.get("validation_share", 0.05), contiguous=how.get("rows") == "packed")
    if split not in splits:
        raise ValueError(f"--split must be {choices(splits)} of {data}, got {split!r}")
    rows, _ = make_rows(
        splits[split], load_tokenizer(model), rows=how.get("rows", "line"), row_length=how.get("row_length")
    )
    if curve:
        for option, value in (("--num-steps", num_steps), ("--schedule", schedule), ("--kernel", kernel)):
            if value is not None:
                raise ValueError(f"--curve prices every number of steps and schedule: leave {option} away")
        measured = measure_curve(network, rows, batch_size=batch_size, draws=draws, seed=seed)
        figures = {**measured.to_dict(), "prices": price_table(measured)}
        text = describe_prices(figures)
        if Path(model).is_dir():
            store_curve(model, measured.curve)
        else:
            print(f"note: {model} is no directory here, so the curve is not stored", file=sys.stderr)
    elif report.get("max_corruption", 1.0) < 1.0:  # a repairer: its bound means little, its repairs do
        figures = evaluate_repair(network, rows, batch_size=batch_size, seed=seed).to_dict()
        text = describe_repair(figures)
    else:
        how_measured: dict[str, Any] = {"batch_size": batch_size, "draws": draws, "seed": seed, "kernel": kernel}
        figures = evaluate_bound(network, rows, **how_measured, num_steps=num_steps, schedule=schedule).to_dict()
        text = describe(figures)
    print(json.dumps({"model": model, "data": data, "split": split, **figures}) if as_json else text)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; fewer for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and samples.")] = 0,
) -> None:
    """Train on Unicode character names, then score, sample, fill in and repair. Some six minutes on two cores."""
    from . import register
    from .demo import run

    register()
    run(output, steps, seed)


def main() -> None:
    """Run the command; what a user can mend ends in one line and exit code 1 (UDM_TRACEBACK=1 shows it all)."""
    # Idle OpenMP threads spin, by default so long that a training step beside one busy process takes 30 times longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("UDM_TRACEBACK"):
            raise
        print(f"udm: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
