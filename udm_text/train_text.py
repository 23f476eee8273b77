"""The story of a training run, top to bottom: corpus, tokenizer, rows, model, trainer, bound, report.

`udm train` and `recipes/train_text.py` are two doors to `train_text`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, HfArgumentParser, ProgressCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .configuration_udm import UDMConfig, tokenizer_fields
from .corpus import TOKENIZERS, hold_out, length_counts, load_corpus, load_tokenizer, make_rows, train_tokenizer
from .evaluation import evaluate_bound, evaluate_repair
from .modeling_udm import UDMForMaskedGeneration
from .training import UDMTrainer, UDMTrainingArguments

PRESETS = {  # layers, hidden size, attention heads
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
}
ROTARY = ("modernbert",)
"""Architectures without absolute positions."""


@dataclass
class DataArguments:
    """What to train on."""

    data: str = field(metadata={"help": "A text file, a folder, or the name of a data set."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})
    rows: str = field(
        default="line",
        metadata={"help": "line: a row a line; fixed: lines of row_length tokens; packed: blocks of row_length."},
    )
    row_length: int | None = field(default=None, metadata={"help": "Tokens of a row; lines that are longer are cut."})
    validation_share: float = field(
        default=0.05, metadata={"help": "Held out of the training part where the data has no validation split."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "wordpiece, char or bpe (trained on the data), or an existing one; default: the model's."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Tokens at most of a tokenizer that is trained."})


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


@dataclass
class RunArguments(UDMTrainingArguments):
    """How to train: every field of TrainingArguments, some with defaults for text on a laptop."""

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
        super().__post_init__()


class OutputExistsError(FileExistsError):
    """The output folder is not empty and `resume` was not asked for."""


def parse(arguments: list[str] | None = None) -> tuple[DataArguments, ModelArguments, RunArguments]:
    """Command-line arguments; --output is short for --output_dir, and every field may be written with dashes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = [a.replace("--output", "--output_dir", 1) if a.split("=")[0] == "--output" else a for a in given]
    usage = "udm train --data DATA --output DIR [options]   (all of them: udm train --help)"
    kinds: Any = (DataArguments, ModelArguments, RunArguments)
    parser = HfArgumentParser(kinds, prog="udm train", usage=usage, allow_abbrev=False)
    data, model, run = parser.parse_args_into_dataclasses(given)
    if not any(a.split("=")[0].replace("-", "_") == "__output_dir" for a in given):
        parser.error("--output DIR is needed: where the model goes")
    return data, model, run


def train_text(data: DataArguments, model_args: ModelArguments, run: RunArguments) -> dict[str, Any]:
    """Train, evaluate and write a model to `run.output_dir`; returns what report.json holds."""
    started = time.time()
    output, state = Path(str(run.output_dir)), PartialState()
    checkpoint = prepare_output(output, run.resume)
    state.wait_for_everyone()
    if run.plot:
        require_matplotlib()
    set_seed(run.seed)

    splits = load_corpus(data.data, data.text_column, data.data_config)
    splits = hold_out(splits, data.validation_share, contiguous=data.rows == "packed")
    scratch = model_args.model in PRESETS
    tokenizer = choose_tokenizer(data, model_args, splits, checkpoint, state)
    train_rows, dropped = make_rows(splits["train"], tokenizer, rows=data.rows, row_length=data.row_length)
    eval_rows = None
    if "validation" in splits:
        eval_rows, _ = make_rows(splits["validation"], tokenizer, rows=data.rows, row_length=data.row_length)
    if dropped["truncated"] or dropped["left_out"] or dropped["unknown"]:
        print_once(state, f"note: training rows {dropped}")

    model = build_model(model_args, tokenizer, train_rows)
    attention = model_args.attn_implementation or ("eager" if run.device.type == "cpu" else None)
    if attention is not None:
        model.set_attn_implementation(attention)
    limit = model.config.max_row_length
    longest = max(len(ids) for part in (train_rows, eval_rows) if part is not None for ids in part["input_ids"])
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and the model reads at most {limit}; give --row_length")
    if run.learning_rate is None:
        run.learning_rate = 1e-3 if scratch else 1e-4
    trainer = UDMTrainer(model, run, train_dataset=train_rows, eval_dataset=eval_rows, processing_class=tokenizer)
    if not run.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar)
    parameters = sum(p.numel() for p in model.parameters())
    print_once(
        state,
        f"{len(train_rows)} rows, {parameters / 1e6:.1f} M parameters, {len(tokenizer)} tokens, process "
        f"{model.config.process}, {trainer.rows_per_step} rows a step",
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    report = {
        "data": str(Path(data.data).resolve()) if Path(data.data).exists() else data.data,
        "data_arguments": vars(data),
        "model_arguments": vars(model_args),
        "process": model.config.process,
        "parameters": parameters,
        "vocab_size": len(tokenizer),
        "train_rows": len(train_rows),
        "dropped": dropped,
        "rows_per_step": trainer.rows_per_step,
        "steps": trainer.state.global_step,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "max_corruption": run.max_corruption,
        "train_seconds": result.metrics["train_runtime"],
        "train_loss": result.metrics["train_loss"],
        "machine": machine(),
        "log": trainer.state.log_history,
    }
    if state.is_main_process:
        if eval_rows is not None:  # from what was written, so that `udm evaluate` repeats these very figures
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
        checkpoint = get_last_checkpoint(str(output))
        if checkpoint is None:
            raise OutputExistsError(f"{output} holds no checkpoint to resume from; give another --output")
        return checkpoint
    if resume:
        raise FileNotFoundError(f"{output} holds no checkpoint to resume from")
    return None


def choose_tokenizer(
    data: DataArguments, model_args: ModelArguments, splits, checkpoint: str | None, state: PartialState
):
    """The named tokenizer, or that of the pretrained model or the checkpoint, or one trained on the training part."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    kind = data.tokenizer or ("wordpiece" if model_args.model in PRESETS else model_args.model)
    if kind not in TOKENIZERS:
        return load_tokenizer(kind)
    texts = splits["train"]["text"]
    if data.rows == "packed":  # blocks hold line ends
        texts = (f"{text}\n" for text in texts)
    # With rotary positions alone, a row that is all [MASK] looks the same everywhere: [CLS] and [SEP] are its
    # landmarks.
    landmarks = model_args.backbone in ROTARY
    made = [train_tokenizer(kind, texts, data.vocab_size, landmarks=landmarks) if state.is_main_process else None]
    return broadcast_object_list(made)[0]  # by one process for all


def build_model(model_args: ModelArguments, tokenizer, train_rows) -> UDMForMaskedGeneration:
    """A new model of a preset size, or a pretrained one."""
    own = {name: getattr(model_args, name) for name in ("process", "kernel") if getattr(model_args, name) is not None}
    counts = length_counts(train_rows)
    if model_args.model not in PRESETS:
        own |= {"length_counts": counts, "step_curve": None}  # a curve is of the weights that it was measured on
        model = UDMForMaskedGeneration.from_pretrained(model_args.model, **own)
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        model.config.update(tokenizer_fields(tokenizer, model.config.vocab_size))
        return model
    layers, hidden, heads = PRESETS[model_args.model]
    frame = len(tokenizer("")["input_ids"])
    room = 2 * (len(counts) - 1) + frame + 2
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
    return UDMForMaskedGeneration(
        UDMConfig(text_config=config, length_counts=counts, **tokenizer_fields(tokenizer), **own)
    )


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

    text = f"NELBO {figure('nelbo_nats_per_token', 4)} nats/token, perplexity bound {figure('perplexity_bound', 2)}"
    if bound["chars"] is not None:
        text += f", {figure('bits_per_char', 4)} bits/char"
    length = "lengths included" if bound["length_included"] else "lengths given"
    return f"{text} ({length}; {bound['rows']} rows, {bound['draws']} draws each)"


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
