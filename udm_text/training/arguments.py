"""The options of a training run on text: what they are, how they are read, and which go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..common import choices
from ..configuration_udm import PREDICTORS, PRESETS
from .objective import check_loss
from .runs import RunArguments
from .runs import parse as parse_run

OBJECTIVES = ("diffusion", "ar")
WRITER = "bart"
"""The encoder-decoder of the presets."""


@dataclass
class DataArguments:
    """What to train on."""

    data: str = field(metadata={"help": "A text file, a folder, or the name of a data set."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the text, or the answer."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "The column of prompts: the model learns to write text_column given them."}
    )
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "The column of chats, lists of messages: each answer of the assistant is learnt, given what was "
            "said before it."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "A file with the Jinja template that writes messages; default: the tokenizer's."},
    )
    noisy_column: str | None = field(
        default=None,
        metadata={"help": "The column of noisy texts: a repairer learns to make text_column of them."},
    )
    noisy_share: float | None = field(
        default=None,
        metadata={"help": "Share of rows that take their noisy text, the others the process's noise; default: 0.5."},
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

    @property
    def prompted(self) -> bool:
        """Whether rows are answers to prompts, or to what was said in a chat."""
        return self.prompt_column is not None or self.messages_column is not None


@dataclass
class ModelArguments:
    """What to train."""

    model: str = field(
        default="mini",
        metadata={"help": f"{', '.join(PRESETS)} (from scratch), or any masked LM or decoder, or one of ours."},
    )
    backbone: str = field(
        default=None,  # type: ignore[assignment]  # by the predictor
        metadata={
            "help": "From scratch: nomic_bert (default), bert, roberta or modernbert; bart with predictor "
            "autoregressive."
        },
    )
    predictor: str | None = field(
        default=None,
        metadata={
            "help": "factorised (default): every token by itself; autoregressive: whole rows from left to right, by an "
            "encoder-decoder (mask, substitute, uniform)."
        },
    )
    process: str | None = field(default=None, metadata={"help": "mask (default), substitute, uniform, delete or edit."})
    kernel: str | None = field(default=None, metadata={"help": "Reverse kernel of substitute: site, hamming or free."})
    gap_tokens: bool | None = field(
        default=None,
        metadata={
            "help": "Of delete: the network reads a [MASK] in every gap, which suits a pretrained masked LM; twice the "
            "tokens."
        },
    )
    shift_logits: bool | None = field(
        default=None,
        metadata={"help": "Of a decoder: a position is predicted where the decoder learnt to, at the one before it."},
    )
    blanks: int | None = field(
        default=None,
        metadata={
            "help": "Learn how wide a blank is, up to so many tokens (masks); without a number up to twice the longest "
            "text. Blanks of unknown width can then be filled in, and the length of an answer depends on its prompt.",
            "nargs": "?",
            "const": 0,
        },
    )
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
        default=None,
        metadata={"help": "Modules with adapters, as q_proj,v_proj; default: all linear maps but the last."},
    )

    def __post_init__(self):
        if self.predictor is not None and self.predictor not in PREDICTORS:
            raise ValueError(f"predictor must be {choices(PREDICTORS)}, got {self.predictor!r}")
        if self.backbone is None:
            self.backbone = WRITER if self.predictor == "autoregressive" else "nomic_bert"


@dataclass
class ObjectiveArguments:
    """What is minimised."""

    objective: str = field(
        default="diffusion", metadata={"help": "diffusion, or ar: the causal twin of a preset, for comparison."}
    )
    loss: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy or nelbo; they differ for the substitute process only."},
    )
    max_corruption: float = field(
        default=1.0,
        metadata={
            "help": "Largest corrupted share of a row in training; below 1 a substitute or edit model learns to repair."
        },
    )
    loss_chunk: int | None = field(
        default=None, metadata={"help": "Rows of logits held at a time; saves memory where the vocabulary is large."}
    )
    loss_weighting: str | None = field(
        default=None,
        metadata={
            "help": "Weight of a row with t of l tokens corrupted: bound (l/t), sqrt of it, or mean (1); default: sqrt "
            "for masks and delete, else bound."
        },
    )
    time_law: str | None = field(
        default=None,
        metadata={
            "help": "How t is drawn in training: uniform, bell, clipped (above l/10), or geometric (few errors); "
            "default: bell for masks and delete, geometric for edits, else uniform."
        },
    )

    teacher: str | None = field(
        default=None,
        metadata={"help": "A model of ours of the same process, whose laws are learnt, too; its tokenizer is taken."},
    )
    teacher_weight: float = field(
        default=0.5, metadata={"help": "Share of the loss that is the distance to the teacher; 1: no data counts."}
    )

    def __post_init__(self):
        if not 0.0 < self.teacher_weight <= 1.0:
            raise ValueError(f"teacher_weight must lie in (0, 1], got {self.teacher_weight}")
        if self.teacher is None and self.teacher_weight != ObjectiveArguments.teacher_weight:
            raise ValueError(f"--teacher_weight is {self.teacher_weight} and there is no teacher: give --teacher")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be {choices(OBJECTIVES)}, got {self.objective!r}")
        check_loss(self.loss, self.max_corruption, self.loss_chunk, self.loss_weighting, self.time_law)


DEFAULTS = {"per_device_train_batch_size": None, "per_device_eval_batch_size": 128, "eval_rows": 512}
"""Of a run on text, where they differ from those of `RunArguments`."""

GROUPS: dict[str, dict[str, str | None]] = {
    "Needed": {"data": None, "output_dir": "The folder that the model, its report and its checkpoints go to."},
    "The texts": {
        "text_column": None,
        "prompt_column": None,
        "messages_column": None,
        "validation_data": None,
        "validation_share": None,
        "rows": None,
        "row_length": None,
        "tokenizer": None,
        "vocab_size": None,
    },
    "The model": {"model": None, "process": None, "max_corruption": None, "blanks": None},
    "How long, and how": {
        "max_steps": "Steps; -1: by num_train_epochs or max_seconds.",
        "num_train_epochs": "Times that all rows are seen, where neither steps nor seconds are given.",
        "max_seconds": "Seconds of training at most; measuring the model comes on top.",
        "per_device_train_batch_size": "Rows of a step, on each device; default: 64, more of short rows.",
        "gradient_accumulation_steps": "Batches of a step.",
        "learning_rate": None,
        "seed": "Of the weights, the noise and the order of rows.",
        "bf16": "Compute in bfloat16, for less memory; faster on accelerators.",
    },
    "On the way": {
        "eval_strategy": "Measure the held-out bound in the middle: no, steps or epoch.",
        "eval_steps": "Steps between two measurements, or their share of the run.",
        "eval_rows": "Held-out rows of such a measurement, evenly spread; default: 512.",
        "patience": None,
        "save_steps": "Steps between two checkpoints, or their share of the run.",
        "resume": None,
        "report_to": None,
    },
}
"""What `udm train --help` tells of."""

Arguments = tuple[DataArguments, ModelArguments, ObjectiveArguments, RunArguments]


def parse(arguments: list[str] | None = None) -> Arguments:
    """The options of `udm train`; None: those of the process."""
    kinds = (DataArguments, ModelArguments, ObjectiveArguments, RunArguments)
    found: Any = parse_run(kinds, arguments, "udm train", DEFAULTS, GROUPS)
    return found


def check_data(data: DataArguments, goal: ObjectiveArguments, run: RunArguments) -> None:
    """Raises ValueError where options do not go together, before anything is read."""
    if data.prompt_dropout and not data.prompted:
        raise ValueError(f"--prompt_dropout is {data.prompt_dropout} and rows have no prompt: give --prompt_column")
    if data.messages_column is None and data.chat_template is not None:
        raise ValueError(f"--chat_template {data.chat_template} writes messages: give --messages_column")
    for name in ("prompt_column", "noisy_column"):
        if data.messages_column is not None and (value := getattr(data, name)) is not None:
            raise ValueError(f"--messages_column holds prompts and answers in one: leave --{name} {value} away")
    if not 0.0 <= data.prompt_dropout < 1.0:
        raise ValueError(f"--prompt_dropout must lie in [0, 1), got {data.prompt_dropout}")
    if data.pack_rows is not None and goal.objective == "ar":
        raise ValueError("--pack_rows goes with models that attend both ways, not with --objective ar")
    if data.noisy_column is None:
        if data.noisy_share is not None:
            raise ValueError(f"--noisy_share is {data.noisy_share} and rows have no noisy text: give --noisy_column")
    else:
        if data.noisy_share is not None and not 0.0 < data.noisy_share <= 1.0:
            raise ValueError(f"--noisy_share must lie in (0, 1], got {data.noisy_share}")
        if goal.objective == "ar":
            raise ValueError("--noisy_column trains a repairer, and --objective ar corrupts nothing")
        if goal.loss != "cross_entropy":
            raise ValueError(f"--noisy_column goes with --loss cross_entropy, got {goal.loss}")
        if data.rows == "packed":
            raise ValueError("--noisy_column goes with --rows line or fixed: packed blocks join texts")
        if data.streaming:
            raise ValueError("--noisy_column does not go with --streaming: pairs are compared before the training")
    if not data.streaming:
        return
    if run.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: a stream does not tell how long an epoch is")
    if data.row_length is None:
        raise ValueError("--streaming needs --row_length: the longest row is not known beforehand")
    if data.prompted and data.rows != "line":
        column = "--prompt_column" if data.messages_column is None else "--messages_column"
        raise ValueError(f"--streaming with {column} goes with --rows line, got {data.rows}")
    if run.dataloader_num_workers > 1:
        raise ValueError(
            f"--streaming needs --dataloader_num_workers 0 or 1, got {run.dataloader_num_workers}: each would read "
            "all of the stream"
        )


def check_model(model_args: ModelArguments, goal: ObjectiveArguments) -> None:
    """Raises ValueError where options of model and objective do not go together."""
    scratch = model_args.model in PRESETS
    if model_args.blanks is not None and model_args.blanks < 0:
        raise ValueError(f"--blanks must be at least 1, or 0 for twice the longest text, got {model_args.blanks}")
    if scratch and model_args.shift_logits:
        raise ValueError(f"--shift_logits is of decoders, and {model_args.model!r} is a preset: give --model with one")
    if goal.objective == "ar":
        for name in ("process", "predictor", "kernel", "gap_tokens", "lora_rank", "blanks"):
            if (value := getattr(model_args, name)) is not None:
                raise ValueError(f"--objective ar has no {name}, got {value!r}")
        if not scratch:
            raise ValueError(
                f"--objective ar trains a preset ({', '.join(PRESETS)}) from scratch, got {model_args.model!r}"
            )
        if goal.teacher is not None:
            raise ValueError(f"--teacher {goal.teacher} teaches diffusion, and --objective ar learns none")
        for name in ("max_corruption", "loss_weighting", "time_law"):
            if getattr(goal, name) != getattr(ObjectiveArguments, name):
                raise ValueError(f"--objective ar corrupts nothing: leave --{name} out")
    if model_args.predictor == "autoregressive":
        if model_args.kernel is not None:
            raise ValueError(
                f"--kernel {model_args.kernel} is a way to change single positions, and --predictor autoregressive "
                "predicts whole rows: leave it out"
            )
        if scratch and model_args.backbone != WRITER:
            raise ValueError(
                f"--predictor autoregressive from scratch is a {WRITER}, got --backbone {model_args.backbone}; for "
                "another encoder-decoder give its directory as --model"
            )
    if model_args.lora_rank is None:
        for name in ("lora_alpha", "lora_target"):
            if (value := getattr(model_args, name)) is not None:
                raise ValueError(f"--{name} {value} goes with --lora_rank")
    elif scratch:
        raise ValueError(
            f"--lora_rank adapts a model that is trained; {model_args.model!r} is a preset with new weights: give "
            "--model with a masked LM, a decoder or one of ours"
        )
