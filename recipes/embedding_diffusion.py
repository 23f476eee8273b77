"""Embedding diffusion of text: Gaussian noise on embeddings of tokens, which are learned with the network.

    python recipes/embedding_diffusion.py train --data SENTENCES.txt --output runs/embedded --max_seconds 480
    python recipes/embedding_diffusion.py generate runs/embedded -n 10 --seed 0
    python recipes/embedding_diffusion.py generate runs/embedded --prompt "the cat" --seed 0
    accelerate launch recipes/embedding_diffusion.py train --data SENTENCES.txt --output runs/embedded --bf16
    python recipes/embedding_diffusion.py train --help      every option

A line of the file is a row; its length is remembered and drawn again. The bound is that of docs/mathematics.md,
"Behind an encoder", in bits a character with the nats of the length, as `udm train` prints it for its processes, so
the two compare. The model is `continuous/embedded_text.py`, the trainer that of `udm train`.
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402

from continuous import GaussianProcess  # noqa: E402
from continuous.embedded_text import (  # noqa: E402
    WALKS,
    EmbeddedTextConfig,
    EmbeddedTextModel,
    EmbeddedTextObjective,
    row_bounds,
)
from continuous.objectives import ImportanceCallback  # noqa: E402
from udm_text.common import check_place  # noqa: E402
from udm_text.corpus import hold_out, length_counts, load_corpus, load_tokenizer, make_rows, train_tokenizer  # noqa: E402
from udm_text.evaluation.bounds import row_figures  # noqa: E402
from udm_text.training import UDMTrainer  # noqa: E402
from udm_text.training.resuming import digest_rows  # noqa: E402
from udm_text.training.runs import RunArguments, describe_best, end, evaluated_rows, keep_best, parse, prepare  # noqa: E402
from udm_text.training.runs import run as carry_out  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@dataclass
class TextArguments:
    """What to train on."""

    data: str = field(metadata={"help": "A text file, a folder, or the name of a data set; a line is a row."})
    validation_share: float = field(default=0.05, metadata={"help": "Held out where the data has no part for it."})
    tokenizer: str = field(default="wordpiece", metadata={"help": "wordpiece, char, bpe, or a tokenizer directory."})
    vocab_size: int = field(default=4000, metadata={"help": "Tokens at most, of a tokenizer of our own."})
    row_length: int = field(default=64, metadata={"help": "Tokens of a row; longer lines are cut."})


@dataclass
class NetworkArguments:
    """What to train."""

    dim: int = field(default=16, metadata={"help": "Numbers of an embedding."})
    width: int = field(default=256, metadata={"help": "Width of the network."})
    layers: int = field(default=6, metadata={"help": "Its layers."})
    heads: int = field(default=4, metadata={"help": "Heads of each."})
    schedule: str = field(default="cosine", metadata={"help": "Of the noise, as in docs/images.md."})
    times: int = field(default=1000, metadata={"help": "T, steps of the noise."})
    given_share: float = field(
        default=0.0, metadata={"help": "Share of rows of which a random part stands clean: for prompts and blanks."}
    )
    importance: bool = field(default=True, metadata={"help": "Draw t where the bound's terms are large."})


DEFAULTS = {"max_steps": 2000, "per_device_train_batch_size": 64, "eval_strategy": "steps", "eval_steps": 0.25}
DEFAULTS |= {"eval_rows": 256, "eval_draws": 4, "learning_rate": 1e-3, "optim": "adamw_torch_fused", "save_steps": 0.5}
MEASURED = 32
"""Values of t for each held-out row in the figures of the written model."""


def train_model(arguments: list[str]) -> dict[str, Any]:
    """Train, measure and write a model; returns what report.json holds."""
    kinds = (TextArguments, NetworkArguments, RunArguments)
    data, network, run = parse(kinds, arguments, "embedding_diffusion.py train", DEFAULTS)
    with prepare(run, {"data": data, "model": network}) as ready:
        return ready.finished if ready.finished is not None else _train(data, network, run, ready)


def _train(data: TextArguments, network: NetworkArguments, run: RunArguments, ready: Any) -> dict[str, Any]:
    with ready.state.main_process_first():
        splits = hold_out(load_corpus(data.data), data.validation_share)
        texts = splits["train"]["text"]
        if ready.checkpoint is not None:
            tokenizer = load_tokenizer(ready.checkpoint)
        elif data.tokenizer in ("wordpiece", "char", "bpe"):
            tokenizer = train_tokenizer(data.tokenizer, texts, data.vocab_size)
        else:
            tokenizer = load_tokenizer(data.tokenizer)
        rows, _ = make_rows(splits["train"], tokenizer, row_length=data.row_length)
        held, _ = make_rows(splits["validation"], tokenizer, row_length=data.row_length, split="validation")
    config = EmbeddedTextConfig(
        process=GaussianProcess.vp(network.schedule, network.times).to_dict(),
        vocab_size=len(tokenizer),
        dim=network.dim,
        special_token_ids=tokenizer.all_special_ids,
        pad_token_id=tokenizer.pad_token_id,
        length_counts=length_counts(rows),
        given_share=network.given_share,
        backbone={
            "hidden_size": network.width,
            "num_hidden_layers": network.layers,
            "num_attention_heads": network.heads,
        },
    )
    model = EmbeddedTextModel(config)
    objective = EmbeddedTextObjective(
        config,
        importance=network.importance,
        eval_draws=run.eval_draws,
        eval_batch_size=run.per_device_eval_batch_size,
    )
    some = held.select(evaluated_rows(run, len(held)))
    trainer = UDMTrainer(
        model, run, objective=objective, train_dataset=rows, eval_dataset=some, processing_class=tokenizer
    )
    if objective.importance is not None:
        trainer.add_callback(ImportanceCallback(trainer, objective.importance))
    best = keep_best(trainer, run, ready)
    parameters = sum(p.numel() for p in model.parameters())
    ready.say(f"{len(rows)} rows, {len(held)} held out, {parameters / 1e6:.1f} M parameters, {len(tokenizer)} tokens")

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        if not ready.state.is_main_process:
            return {}
        written = EmbeddedTextModel.from_pretrained(ready.output).to(run.device)
        figures = bits(written, held, objective)
        ready.say(
            f"held-out bound {figures['nelbo_nats_per_token']:.4f} +- {figures['nelbo_nats_per_token_stderr']:.4f} "
            f"nats/token, {describe(figures)}"
        )
        for text in texts_of(written, tokenizer, 3, seed=0):
            ready.say(f"  {text}")
        return {"validation": figures, **describe_best(best, report["steps"], ready)}

    facts = {"data": data.data, "process": config.process, "train_rows": len(rows), "held_out_rows": len(held)}
    digests = {
        name: digest_rows(part.with_format("numpy")["input_ids"]) for name, part in (("training", rows), ("held", held))
    }
    return carry_out(trainer, ready, facts, measure, rows=digests)


def bits(
    model: EmbeddedTextModel, held: Any, objective: EmbeddedTextObjective, draws: int = MEASURED
) -> dict[str, Any]:
    """The figures that `udm train` gives of held-out rows: the bound with the nats of each length."""
    nats = row_bounds(model, held, range(len(held)), objective, draws=draws)
    tokens = torch.tensor(held["length"], dtype=torch.float64)
    law = model.config.length_law()
    known = tokens.long().clamp(max=len(law) - 1)
    lengths = -torch.where(tokens < len(law), law[known], 0.0).log()
    scored = tokens > 0
    some = [held[i] for i in range(len(held)) if scored[i]]
    return row_figures(some, tokens[scored], (nats + lengths)[scored], lengths[scored])


def describe(figures: dict[str, Any]) -> str:
    """The bound a character, where the tokenizer counts them."""
    if figures["bits_per_char"] is None:
        return "characters not counted"
    return f"{figures['bits_per_char']:.4f} +- {figures['bits_per_char_stderr']:.4f} bits/char"


def texts_of(model: EmbeddedTextModel, tokenizer: Any, num: int, **how: Any) -> list[str]:
    """New texts; how: of `EmbeddedTextModel.generate`."""
    return tokenizer.batch_decode(model.generate(num, **how))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train on lines; `train --help` lists the options."""
    end(train_model(context.args))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A trained model.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Texts.")] = 5,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the texts begin with, or with [MASK] for each token to fill in, all of them."),
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of each; default: drawn as in training.")] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="Calls of the network; default: 200 at most.")] = None,
    walk: Annotated[str, typer.Option(help=f"{' or '.join(WALKS)}: see docs/mathematics.md.")] = "means",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the tokens; 0 takes the likeliest.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeats a call.")] = None,
) -> None:
    """New texts, one a line."""
    check_place(model)
    tokenizer, own = load_tokenizer(model), EmbeddedTextModel.from_pretrained(Path(model))
    lengths = None if length is None else [length] * number
    seed = secrets.randbits(63) if seed is None else seed
    known = None
    if prompt is not None:
        row = [-1 if token == tokenizer.mask_token_id else token for token in tokenizer(prompt)["input_ids"]]
        known = [row] * number
        if length is None and -1 not in row:
            lengths = own.draw_lengths(number, seed, len(row) + 1)
        if not own.config.given_share:
            note = "note: trained without --given_share, so what is given keeps its noise on the way (replacement)"
            print(f"{note}: the rest fits it less well than it should", file=sys.stderr)
    how: dict[str, Any] = {
        "lengths": lengths,
        "known": known,
        "num_steps": num_steps,
        "walk": walk,
        "temperature": temperature,
    }
    for text in texts_of(own, tokenizer, number, seed=seed, **how):
        print(text)


if __name__ == "__main__":
    app()
