"""The story of a training run, top to bottom: corpus, tokenizer, rows, model, trainer, bound, report.

`udm train` and `recipes/train_text.py` are two doors to `train_text`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, ProgressCallback, set_seed

from .adapters import ADAPTER, add_adapter, is_adapted, merge_adapter
from .causal import PROCESS as CAUSAL
from .causal import CausalObjective, causal_twin, evaluate_causal
from .checkpoints import checkpoints, fault, last_checkpoint
from .configuration_udm import UDMConfig, choices, tokenizer_fields, tokenizer_separator
from .corpus import (
    TOKENIZERS,
    RowCutter,
    fit_vocabulary,
    hold_out,
    length_counts,
    load_corpus,
    load_tokenizer,
    make_rows,
    open_corpus,
    train_tokenizer,
    vocabulary_report,
)
from .evaluation import evaluate_bound, evaluate_repair
from .modeling_udm import UDMForMaskedGeneration
from .packing import check_packing
from .streaming import RowStream, TrainingTexts, follow_stream, sample_corpus, stream_arguments
from .training import UDMTrainer, UDMTrainingArguments

PRESETS = {  # layers, hidden size, attention heads
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
}
OBJECTIVES = ("diffusion", "ar")
RUN_FILE = "run.json"
"""Written when training begins: marks a folder as that of a run, which --resume may start anew."""
ROTARY = ("modernbert",)
"""Architectures without absolute positions."""


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


class OutputExistsError(FileExistsError):
    """The output folder is not empty and `resume` was not asked for."""


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
    place = next((i for i, argument in enumerate(given) if argument.split("=")[0] == "--config"), None)
    if place is None:
        return given
    name, _, file = given[place].partition("=")
    rest = given[:place] + given[place + 1 :]
    if not file:
        if place == len(rest):
            raise ValueError("--config needs the path of a YAML file behind it")
        file = rest.pop(place)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{name} {file}: there is no such file")
    try:
        fields = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {error}") from None
    if not isinstance(fields, dict) or any(isinstance(value, (dict, list)) for value in fields.values()):
        raise ValueError(f"{file} must hold lines `field: value`, as in `max_steps: 1000`")
    return [f"--{name}={value}" for name, value in fields.items() if value is not None] + rest


def train_text(data: DataArguments, model_args: ModelArguments, run: RunArguments) -> dict[str, Any]:
    """Train, evaluate and write a model to `run.output_dir`; returns what report.json holds."""
    started = time.time()
    output, state = Path(str(run.output_dir)), PartialState()
    checkpoint = prepare_output(output, run.resume)
    if run.resume and checkpoint is None:
        print_once(state, f"note: {output} holds no whole checkpoint yet: the run starts from the beginning")
    state.wait_for_everyone()
    if run.plot:
        require_matplotlib()
    set_seed(run.seed)

    check_data(data, run)
    with state.main_process_first():  # the others find its cache
        splits, stream_texts = read_texts(data)
    scratch = model_args.model in PRESETS
    tokenizer = choose_tokenizer(data, model_args, splits, checkpoint, state)
    cut: dict[str, Any] = {"rows": data.rows, "row_length": data.row_length, "num_proc": data.num_proc}
    with state.main_process_first():
        train_rows, dropped = make_rows(splits["train"], tokenizer, **cut)
        eval_rows = None
        if "validation" in splits:
            eval_rows, _ = make_rows(splits["validation"], tokenizer, **cut)
    vocabulary = vocabulary_report(train_rows, tokenizer)
    print_once(state, describe_rows(dropped, vocabulary, len(train_rows)))

    fields: dict[str, Any] = {"separator_token_ids": None, "prompt_dropout": data.prompt_dropout}
    if data.prompt_column is not None:
        fields["separator_token_ids"] = tokenizer_separator(tokenizer)
    check_model(model_args, run)
    causal = run.objective == "ar"
    objective: Any = None
    if causal:
        config = preset_config(model_args, tokenizer, train_rows, fields)
        model: Any = causal_twin(config)
        objective = CausalObjective(config, run.per_device_eval_batch_size)
    else:
        model = build_model(model_args, tokenizer, train_rows, fields)
        config = model.config
        if model_args.lora_rank is not None:
            model = add_adapter(model, model_args.lora_rank, model_args.lora_alpha, model_args.lora_target)
    attention = model_args.attn_implementation or ("eager" if run.device.type == "cpu" else None)
    if attention is not None:
        model.set_attn_implementation(attention)
    limit = config.max_row_length
    longest = longest_row(train_rows, eval_rows)
    stream = None
    if stream_texts is not None:
        cutter = RowCutter(tokenizer, data.rows, data.row_length, prompted=data.prompt_column is not None)
        seed = run.seed if run.data_seed is None else run.data_seed
        stream = RowStream(stream_texts, cutter, seed=seed, buffer=data.stream_buffer)
        longest = max(longest, cutter.longest or 0)
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and the model reads at most {limit}; give --row_length")
    if run.learning_rate is None:
        run.learning_rate = 1e-3 if scratch else 1e-4
    if stream is not None:
        stream_arguments(run)
    sets: dict[str, Any] = {"train_dataset": train_rows if stream is None else stream, "eval_dataset": eval_rows}
    trainer = UDMTrainer(model, run, objective=objective, processing_class=tokenizer, **sets)
    if data.pack_rows is not None:
        check_packing(model, data.pack_rows)
        text_objective: Any = trainer.objective
        text_objective.pack_length = data.pack_rows
    if stream is not None:
        follow_stream(trainer, stream, checkpoint)
    if not run.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar)
    process = CAUSAL if causal else config.process
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print_once(
        state,
        f"{len(train_rows)} rows{' read beforehand' * data.streaming}, {parameters / 1e6:.1f} M parameters, "
        f"{len(tokenizer)} tokens, process {process}, {trainer.rows_per_step} rows a step",
    )
    if state.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / RUN_FILE, {"data": vars(data), "model": vars(model_args), "run": run.to_dict()})
    result = trainer.train(resume_from_checkpoint=checkpoint)
    report: dict[str, Any] = {
        "data": str(Path(data.data).resolve()) if Path(data.data).exists() else data.data,
        "data_arguments": vars(data),
        "model_arguments": vars(model_args),
        "objective": run.objective,
        "process": process,
        "parameters": parameters,
        "trained_parameters": trained,
        "vocab_size": len(tokenizer),
        "train_rows": len(train_rows),
        "dropped": dropped,
        "vocabulary": vocabulary,
        "rows_per_step": trainer.rows_per_step,
        "steps": trainer.state.global_step,
        "stopped": trainer.stopped_by,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "max_corruption": run.max_corruption,
        "train_seconds": result.metrics["train_runtime"],
        "train_loss": result.metrics["train_loss"],
        "step_noise": trainer.noise.relative,
        "machine": machine(),
        "log": trainer.state.log_history,
    }
    if trainer.stopped_by is not None and trainer.stopped_by.startswith("SIG"):
        if state.is_main_process:
            write_json(output / "report.json", report)
        print_once(
            state,
            f"{trainer.stopped_by} at step {trainer.state.global_step}: a checkpoint is written, the model is not "
            "finished; the same command with --resume goes on from there",
        )
        return report
    write_model(trainer, output)
    if state.is_main_process:
        if causal and eval_rows is not None:
            twin = AutoModelForCausalLM.from_pretrained(output)
            report["validation"] = evaluate_causal(twin, eval_rows, objective)
            print_once(state, describe(report["validation"]))
        elif eval_rows is not None:  # from what was written, so that `udm evaluate` repeats these very figures
            saved = UDMForMaskedGeneration.from_pretrained(output)
            if run.max_corruption < 1.0:
                report["repair"] = evaluate_repair(saved, eval_rows).to_dict()
                print_once(state, describe_repair(report["repair"]))
            else:
                report["validation"] = evaluate_bound(saved, eval_rows).to_dict()
                print_once(state, describe(report["validation"]))
        if run.plot:
            draw_loss(trainer.state.log_history, output / "loss.png", report.get("validation"))
        report["seconds"] = time.time() - started
        write_json(output / "report.json", report)
    state.wait_for_everyone()
    return report


class LossBar(ProgressCallback):
    """The progress bar of transformers with the latest loss in it, in place of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)
        elif "eval_nelbo_nats_per_token" in logs:
            value, error = (logs[f"eval_nelbo_nats_per_token{end}"] for end in ("", "_stderr"))
            self.training_bar.write(f"step {state.global_step}: held-out NELBO {value:.4f} +- {error:.4f} nats/token")


def prepare_output(output: Path, resume: bool) -> str | None:
    """The checkpoint to resume from, or None; refuses a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; --output must be a folder")
    if output.is_dir() and any(output.iterdir()):
        if not resume:
            raise OutputExistsError(
                f"{output} is not empty: give --resume to continue that run, or another --output. Nothing was changed."
            )
        checkpoint = last_checkpoint(output)
        broken = [f"{path.name}: {fault(path)}" for path in checkpoints(output) if fault(path) is not None]
        if checkpoint is None and not (output / RUN_FILE).exists():
            found = f" ({'; '.join(broken)})" if broken else ""
            raise OutputExistsError(f"{output} holds no checkpoint to resume from{found}; give another --output")
        return checkpoint  # none yet, but a run of ours: from the beginning
    if resume:
        raise FileNotFoundError(f"{output} holds no checkpoint to resume from")
    return None


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


def read_texts(data: DataArguments) -> tuple[DatasetDict, TrainingTexts | None]:
    """The splits of the corpus, or with streaming those of its beginning, and then the texts to stream."""
    how: dict[str, Any] = {"text_column": data.text_column, "prompt_column": data.prompt_column}
    contiguous = data.rows == "packed"
    given: dict[str, Any] = {}
    if data.validation_data is not None:
        given["validation"] = load_corpus(data.validation_data, **how)["train"]
    if data.streaming:
        splits, texts = sample_corpus(
            open_corpus(data.data, name=data.data_config, **how),
            data.stream_sample,
            0.0 if given else data.validation_share,
            contiguous,
        )
        return DatasetDict({**splits, **given}), texts
    corpus = load_corpus(data.data, name=data.data_config, **how)
    return hold_out(DatasetDict({**corpus, **given}), data.validation_share, contiguous), None


def rows_of_split(data: DataArguments, tokenizer, split: str = "validation") -> Dataset:
    """The rows of a split as a run with these arguments has them: what it trained on, or measured on."""
    splits, _ = read_texts(data)
    if split not in splits:
        raise ValueError(f"--split must be {choices(splits)} of {data.data}, got {split!r}")
    cut: dict[str, Any] = {"rows": data.rows, "row_length": data.row_length, "num_proc": data.num_proc}
    return make_rows(splits[split], tokenizer, **cut)[0]


def longest_row(*parts: Any) -> int:
    """Tokens of the longest row, whatever stands around it included."""
    return max(len(ids) for part in parts if part is not None for ids in part["input_ids"])


def describe_rows(dropped: dict[str, int], vocabulary: dict[str, Any], rows: int) -> str:
    """What of the corpus training will not see, each with its share; and what of the vocabulary."""
    lost = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in dropped.items())
    return (
        f"note: of {rows} training rows: {lost} ({vocabulary['unknown_share']:.2%} of tokens unknown); "
        f"{vocabulary['never_seen']} tokens of the vocabulary ({vocabulary['never_seen_share']:.1%}) never occur"
    )


def choose_tokenizer(
    data: DataArguments, model_args: ModelArguments, splits, checkpoint: str | None, state: PartialState
):
    """The named tokenizer, or that of the pretrained model or the checkpoint, or one trained on the training part."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    kind = data.tokenizer or ("wordpiece" if model_args.model in PRESETS else model_args.model)
    if kind not in TOKENIZERS:
        return load_tokenizer(kind)
    texts: Iterable[str] = splits["train"]["text"]
    if data.prompt_column is not None:
        texts = (text or "" for column in ("prompt", "text") for text in splits["train"][column])
    if data.rows == "packed":  # blocks hold line ends
        texts = (f"{text}\n" for text in texts)
    # With rotary positions alone, a row that is all [MASK] looks the same everywhere: [CLS] and [SEP] are its
    # landmarks.
    landmarks = model_args.backbone in ROTARY
    how: dict[str, Any] = {"landmarks": landmarks, "separator": data.prompt_column is not None}
    how["min_frequency"] = data.min_frequency
    made = [train_tokenizer(kind, texts, data.vocab_size, **how) if state.is_main_process else None]
    return broadcast_object_list(made)[0]  # by one process for all


def build_model(
    model_args: ModelArguments, tokenizer, train_rows, fields: dict[str, Any] | None = None
) -> UDMForMaskedGeneration:
    """A new model of a preset size, or a pretrained one. fields: what of a UDMConfig follows from the rows."""
    fields = fields or {}
    if model_args.model not in PRESETS:
        own = own_fields(model_args)
        own |= {
            "length_counts": length_counts(train_rows),
            "step_curve": None,
        }  # a curve is of the weights that it was measured on
        model, info = UDMForMaskedGeneration.from_pretrained(model_args.model, output_loading_info=True, **own)
        if model_args.lora_rank is not None and (info["missing_keys"] or len(tokenizer) > model.config.vocab_size):
            what = "no language-model head" if info["missing_keys"] else "fewer tokens than the tokenizer"
            raise ValueError(
                f"--lora_rank adapts what is trained, and {model_args.model} has {what}: train it whole first, without "
                "--lora_rank"
            )
        fit_vocabulary(model, tokenizer)
        model.config.update(fields)
        return model
    return UDMForMaskedGeneration(preset_config(model_args, tokenizer, train_rows, fields))


def preset_config(model_args: ModelArguments, tokenizer, train_rows, fields: dict[str, Any] | None = None) -> UDMConfig:
    """The configuration of a new model of a preset size."""
    fields = fields or {}
    own = own_fields(model_args)
    counts = length_counts(train_rows)
    layers, hidden, heads = PRESETS[model_args.model]
    if fields.get("separator_token_ids"):
        room = longest_row(train_rows) + len(counts) + 1
    else:
        room = 2 * (len(counts) - 1) + len(tokenizer("")["input_ids"]) + 2
    names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
    config = AutoConfig.for_model(
        model_args.backbone,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(64, room + (tokenizer.pad_token_id or 0) + 1),
        **{name: getattr(tokenizer, name) for name in names},
        **dropout_fields(model_args),
    )
    return UDMConfig(text_config=config, length_counts=counts, **tokenizer_fields(tokenizer), **fields, **own)


def own_fields(model_args: ModelArguments) -> dict[str, Any]:
    """What of a UDMConfig was asked for."""
    names = ("process", "kernel")
    return {name: getattr(model_args, name) for name in names if getattr(model_args, name) is not None}


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


def write_model(trainer: UDMTrainer, output: Path) -> None:
    """The finished model as files; of one with an adapter the merged model, and the adapter in its own folder."""
    if not is_adapted(trainer.model):
        trainer.save_model()
        return
    trainer.save_model(str(output / ADAPTER))
    with trainer.averaged_weights():
        merged = merge_adapter(trainer.model)
    trainer.model = trainer.model_wrapped = merged
    trainer.average = None  # its part is in the merged weights
    trainer.save_model()


def dropout_fields(model_args: ModelArguments) -> dict[str, Any]:
    """The names an architecture gives its dropout, and what small vocabularies need besides."""
    if model_args.backbone == "modernbert":
        return {"mlp_dropout": model_args.dropout}
    return {"hidden_dropout_prob": model_args.dropout, "attention_probs_dropout_prob": 0.0}


def describe(bound: dict[str, Any]) -> str:
    """One line on a bound, each figure with its standard error."""

    def figure(name: str, digits: int) -> str:
        value, error = bound[name], bound[f"{name}_stderr"]
        if value is None:
            return "infinite"
        return f"{value:.{digits}f} +- {'unknown' if error is None else format(error, f'.{digits}f')}"

    exact = bool(bound.get("exact"))
    names = ("NLL", "perplexity") if exact else ("NELBO", "perplexity bound")
    values = figure("nelbo_nats_per_token", 4), figure("perplexity_bound", 2)
    text = f"{names[0]} {values[0]} nats/token, {names[1]} {values[1]}"
    if bound["chars"] is not None:
        text += f", {figure('bits_per_char', 4)} bits/char"
    length = "lengths included" if bound["length_included"] else "lengths given"
    how = "exact" if exact else f"{bound['draws']} draws each"
    return f"{text} ({length}; {bound['rows']} rows, {how})"


def describe_repair(rates: dict[str, Any]) -> str:
    """One line on how well a repairer does."""
    restored, left = (f"{rates[name]:.1%} +- {rates[f'{name}_stderr']:.1%}" for name in ("restored", "left_alone"))
    return (
        f"of {rates['rows']} held-out rows with one wrong token {restored} are restored exactly; without an error "
        f"{left} are left alone"
    )


def processor_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_once(state: PartialState, text: str) -> None:
    if state.is_main_process:
        print(text, flush=True)


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def require_matplotlib() -> None:
    """Fail before training where the plot could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "the loss plot needs matplotlib: pip install 'udm-text[train]', or give --plot false"
        ) from None


def draw_loss(history: list[dict[str, Any]], path: Path, final: dict[str, Any] | None = None) -> None:
    """Training loss and held-out bounds over the steps, as a PNG; `final` is the bound of the finished model.

    The training loss does not count the lengths of rows, and neither does the last bound as it is drawn here.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held = [
        (entry["step"], entry["eval_nelbo_nats_per_token"], entry["eval_nelbo_nats_per_token_stderr"])
        for entry in history
        if "eval_nelbo_nats_per_token" in entry
    ]
    if train:
        axes.plot(*zip(*train, strict=True), label="training loss", color="#4477aa", linewidth=1)
    if held:
        steps, values, errors = zip(*held, strict=True)
        axes.errorbar(steps, values, errors, label="held-out bound", color="#ee6677", marker="o", capsize=3)
    if final is not None and train:
        value = final["nelbo_nats_per_token"] - final["length_nats_per_token"]
        label = f"held-out bound at the end: {value:.3f}, lengths not counted"
        axes.errorbar(
            train[-1][0], value, final["nelbo_nats_per_token_stderr"], color="#228833", marker="D", label=label
        )
    axes.set(xlabel="step", ylabel="nats per token", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    if train or held:
        axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> None:
    train_text(*parse(arguments))
