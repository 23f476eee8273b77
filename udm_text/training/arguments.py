"""The options of a training run on text: what they are, how they are read, and which go together."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from .trainer import UDMTrainingArguments

PRESETS = {  # layers, hidden size, attention heads
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
}
OBJECTIVES = ("diffusion", "ar")


@dataclass
class DataArguments:
    """What to train on."""

    data: str = field(metadata={"help": "A text file, a folder, or the name of a data set."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the text, or the answer."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "The column of prompts: the model learns to write text_column given them."}
    )
    prompt_dropout: float = field(
        default=0.0, metadata={"help": "Share of rows whose prompt is hidden in training; guidance needs some, as 0.1."}
    )
    rows: str = field(
        default="line",
        metadata={"help": "line: a row a line; fixed: lines of row_length tokens; packed: blocks of row_length."},
    )
    row_length: int | None = field(default=None, metadata={"help": "Tokens of a row; lines that are longer are cut."})
    validation_data: str | None = field(
        default=None, metadata={"help": "Held-out texts: a source like data, whose train split (or only file) counts."}
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "Held out of the training part where the data has no validation split."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "wordpiece, char or bpe (trained on the data), or an existing one; default: the model's."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Tokens at most of a tokenizer that is trained."})
    min_frequency: int = field(
        default=1, metadata={"help": "Of a tokenizer that is trained: what is rarer becomes no token."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    pack_rows: int | None = field(
        default=None, metadata={"help": "Training: rows share sequences of so many tokens, each attending to itself."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and tokenise while training (needs max_steps and row_length)."}
    )
    stream_sample: int = field(
        default=100_000,
        metadata={"help": "Streaming: first texts, read beforehand for tokenizer, lengths and held-out rows."},
    )
    stream_buffer: int = field(default=10_000, metadata={"help": "Streaming: texts that are shuffled at a time."})


@dataclass
class ModelArguments:
    """What to train."""

    model: str = field(
        default="mini",
        metadata={"help": f"{', '.join(PRESETS)} (from scratch), or any masked LM, or one of ours."},
    )
    backbone: str = field(default="bert", metadata={"help": "From scratch: bert, roberta or modernbert."})
    process: str | None = field(default=None, metadata={"help": "mask (default) or substitute."})
    kernel: str | None = field(default=None, metadata={"help": "Reverse kernel of substitute: site, hamming or free."})
    dropout: float = field(default=0.0, metadata={"help": "From scratch: dropout of the hidden layers."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Default: eager on a CPU, where the fused backward is slow; else sdpa."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank adapters of a pretrained model (peft), merged at the end."}
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapters; default: 2 lora_rank."})
    lora_target: str | None = field(
        default=None, metadata={"help": "Modules with adapters, as query,value; default: all linear maps but the last."}
    )


@dataclass
class RunArguments(UDMTrainingArguments):
    """How to train: every field of TrainingArguments, some with defaults for text on a laptop."""

    objective: str = field(
        default="diffusion", metadata={"help": "diffusion, or ar: the causal twin of a preset, for comparison."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})
    plot: bool = field(default=True, metadata={"help": "Draw the loss as loss.png (needs matplotlib)."})
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Default: 1e-3 from scratch, 1e-4 for a pretrained model."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a device and micro-step."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows a device in evaluation."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps (or share below 1) of linear warm-up."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "How rows are ordered."})
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimiser."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW beta2."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    logging_steps: float = field(default=0.01, metadata={"help": "Steps between log lines, or their share of the run."})
    report_to: str = field(default="tensorboard", metadata={"help": "Where logs go; none for nowhere."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers would refuse bf16, which a CPU has
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.max_seconds is not None and self.max_steps <= 0 and self.logging_steps < 1:
            self.logging_steps = 50
        super().__post_init__()


def parse(arguments: list[str] | None = None) -> tuple[DataArguments, ModelArguments, RunArguments]:
    """Command-line arguments; --output is short for --output_dir, and every field may be written with dashes.

    `--config FILE` reads fields from a YAML file; what stands on the command line goes before it.
    """
    given = read_recipe(list(sys.argv[1:] if arguments is None else arguments))
    given = [a.replace("--output", "--output_dir", 1) if a.split("=")[0] == "--output" else a for a in given]
    usage = "udm train --data DATA --output DIR [options]   (all of them: udm train --help)"
    kinds: Any = (DataArguments, ModelArguments, RunArguments)
    parser = HfArgumentParser(kinds, prog="udm train", usage=usage, allow_abbrev=False)
    data, model, run = parser.parse_args_into_dataclasses(given)
    if not any(a.split("=")[0].replace("-", "_") == "__output_dir" for a in given):
        parser.error("--output DIR is needed: where the model goes")
    return data, model, run


def read_recipe(given: list[str]) -> list[str]:
    """The arguments with those of the YAML file after `--config` in front of them, where a later one overrides them."""
    index = next((i for i, argument in enumerate(given) if argument.split("=")[0] == "--config"), None)
    if index is None:
        return given
    name, _, file = given[index].partition("=")
    rest = given[:index] + given[index + 1 :]
    if not file:
        if index == len(rest):
            raise ValueError("--config needs the path of a YAML file behind it")
        file = rest.pop(index)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{name} {file}: there is no such file")
    try:
        fields = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {error}") from None
    if not isinstance(fields, dict) or any(isinstance(value, (dict, list)) for value in fields.values()):
        raise ValueError(f"{file} must hold lines `field: value`, as in `max_steps: 1000`")
    return [f"--{name}={value}" for name, value in fields.items() if value is not None] + rest


def check_data(data: DataArguments, run: RunArguments) -> None:
    """Raises ValueError where options do not go together, before anything is read."""
    if data.prompt_dropout and data.prompt_column is None:
        raise ValueError(f"--prompt_dropout is {data.prompt_dropout} and rows have no prompt: give --prompt_column")
    if not 0.0 <= data.prompt_dropout < 1.0:
        raise ValueError(f"--prompt_dropout must lie in [0, 1), got {data.prompt_dropout}")
    if data.pack_rows is not None and run.objective == "ar":
        raise ValueError("--pack_rows goes with models that attend both ways, not with --objective ar")
    if not data.streaming:
        return
    if run.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: a stream does not tell how long an epoch is")
    if data.row_length is None:
        raise ValueError("--streaming needs --row_length: the longest row is not known beforehand")
    if data.prompt_column is not None and data.rows != "line":
        raise ValueError(f"--streaming with --prompt_column goes with --rows line, got {data.rows}")
    if run.dataloader_num_workers > 1:
        raise ValueError(
            f"--streaming needs --dataloader_num_workers 0 or 1, got {run.dataloader_num_workers}: each would read "
            "all of the stream"
        )


def check_model(model_args: ModelArguments, run: RunArguments) -> None:
    """Raises ValueError where options of model and run do not go together."""
    scratch = model_args.model in PRESETS
    if run.objective == "ar":
        for name in ("process", "kernel", "lora_rank"):
            if (value := getattr(model_args, name)) is not None:
                raise ValueError(f"--objective ar has no {name}, got {value!r}")
        if not scratch:
            raise ValueError(
                f"--objective ar trains a preset ({', '.join(PRESETS)}) from scratch, got {model_args.model!r}"
            )
        if run.max_corruption < 1.0:
            raise ValueError("--objective ar corrupts nothing: leave --max_corruption out")
    if model_args.lora_rank is None:
        for name in ("lora_alpha", "lora_target"):
            if (value := getattr(model_args, name)) is not None:
                raise ValueError(f"--{name} {value} goes with --lora_rank")
    elif scratch:
        raise ValueError(
            f"--lora_rank adapts a model that is trained; {model_args.model!r} is a preset with new weights: give "
            "--model with a masked LM or one of ours"
        )
