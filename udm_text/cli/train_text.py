"""The story of a training run, top to bottom: corpus, tokenizer, rows, model, trainer, bound, report.

`udm train` and `recipes/train_text.py` are two doors to `train_text`. Its options are in `training/arguments.py`, what
it says in `reports.py`; what every run does around the training is `training/runs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from ..common import choices
from ..configuration_udm import PRESETS, UDMConfig
from ..corpus import (
    TOKENIZERS,
    Corpus,
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
from ..corpus.streaming import RowStream, TrainingTexts, sample_corpus
from ..evaluation import evaluate_bound, evaluate_repair
from ..framing import tokenizer_fields, tokenizer_separator
from ..modeling_udm import UDMForMaskedGeneration
from ..training import TextObjective, UDMTrainer
from ..training.adapters import add_adapter
from ..training.arguments import DataArguments, ModelArguments, ObjectiveArguments, check_data, check_model
from ..training.arguments import parse as parse
from ..training.causal import PROCESS as CAUSAL
from ..training.causal import CausalObjective, causal_twin, evaluate_causal
from ..training.packing import check_packing
from ..training.resuming import digest_rows
from ..training.runs import Preparation, RunArguments, end, prepare, resolved
from ..training.runs import run as carry_out
from ..training.streams import follow_stream, stream_arguments
from .reports import describe, describe_evaluation, describe_repair, describe_round_trip, describe_rows, draw_loss

ROTARY = ("modernbert",)
"""Architectures without absolute positions."""


@dataclass
class Rows:
    """What a run trains on and is measured on."""

    tokenizer: Any
    train: Dataset
    """With streaming those of the texts that were read beforehand."""
    validation: Dataset | None
    texts: TrainingTexts | None
    """What is streamed; None: nothing."""
    dropped: dict[str, int]
    vocabulary: dict[str, Any]
    notes: list[str]
    """What is to be said of the corpus, in sentences."""


def train_text(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, run: RunArguments
) -> dict[str, Any]:
    """Train, evaluate and write a model to `run.output_dir`; returns what report.json holds."""
    with prepare(run, {"data": data, "model": model_args, "objective": goal}) as ready:
        if ready.finished is not None:
            return ready.finished
        return _train(data, model_args, goal, run, ready)


def _train(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, run: RunArguments, ready: Preparation
) -> dict[str, Any]:
    """`train_text`, in a folder that is this run's own."""
    check_data(data, goal, run)
    check_model(model_args, goal)
    rows = prepare_rows(data, model_args, ready)
    model, objective = prepare_model(data, model_args, goal, run, rows)
    trainer = prepare_trainer(data, model_args, run, rows, model, objective, ready.checkpoint)
    facts = describe_run(data, model_args, goal, rows, objective)
    parameters = sum(p.numel() for p in model.parameters())
    ready.say(
        f"{len(rows.train)} rows{' read beforehand' * data.streaming}, {parameters / 1e6:.1f} M parameters, "
        f"{len(rows.tokenizer)} tokens, process {facts['process']}, {trainer.rows_per_step} rows a step"
    )

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        if not ready.state.is_main_process:
            return {}
        figures = (
            {}
            if rows.validation is None
            else figures_of(ready.output, goal, rows.validation, objective, rows.vocabulary)
        )
        if run.plot:
            draw_loss(trainer.state.log_history, ready.output / "loss.png", figures.get("validation"))
        return figures

    digests = {
        name: digest_rows(arrays_of(part))
        for name, part in (("training", rows.train), ("held-out", rows.validation))
        if part is not None
    }
    return carry_out(trainer, ready, facts, measure, describe_evaluation, digests)


# --- the rows --------------------------------------------------------------------------------------------------------


def prepare_rows(data: DataArguments, model_args: ModelArguments, ready: Preparation) -> Rows:
    """Reads the corpus, finds or trains the tokenizer, cuts the rows; one process before the others."""
    state = ready.state
    with state.main_process_first():  # the others find its cache
        splits, texts = read_texts(data)
    tokenizer = choose_tokenizer(data, model_args, splits, ready.checkpoint, state)
    cut: dict[str, Any] = {"rows": data.rows, "row_length": data.row_length, "num_proc": data.num_proc}
    with state.main_process_first():
        train_rows, dropped = make_rows(splits["train"], tokenizer, **cut)
        held: Dataset | None = splits.get("validation")
        validation = None if held is None else make_rows(held, tokenizer, split="validation", **cut)[0]
    dropped = {"blank": splits.blank.get("train", 0), **dropped}
    vocabulary = vocabulary_report(train_rows, tokenizer, splits["train"]["text"])
    for note in splits.notes:
        ready.say(f"note: {note}")
    ready.say(describe_rows(dropped, vocabulary, len(train_rows)))
    if said := describe_round_trip(vocabulary, len(splits["train"])):
        ready.say(f"note: {said}")
    return Rows(tokenizer, train_rows, validation, texts, dropped, vocabulary, splits.notes)


def read_texts(data: DataArguments) -> tuple[Corpus, TrainingTexts | None]:
    """The splits of the corpus, or with streaming those of its beginning, and then the texts to stream."""
    how: dict[str, Any] = {"text_column": data.text_column, "prompt_column": data.prompt_column}
    contiguous = data.rows == "packed"
    given: dict[str, Dataset] = {}
    said = Corpus({})
    if data.validation_data is not None:
        said = load_corpus(data.validation_data, **how)
        given["validation"] = said["train"]
    if data.streaming:
        splits, texts = sample_corpus(
            open_corpus(data.data, name=data.data_config, **how),
            data.stream_sample,
            0.0 if given else data.validation_share,
            contiguous,
        )
        return splits.replaced({**splits, **given}, *said.notes), texts
    corpus = load_corpus(data.data, name=data.data_config, **how)
    whole = corpus.replaced({**corpus, **given}, *said.notes)
    return hold_out(whole, data.validation_share, contiguous), None


def rows_of_split(data: DataArguments, tokenizer, split: str = "validation") -> Dataset:
    """The rows of a split as a run with these arguments has them: what it trained on, or measured on."""
    splits, _ = read_texts(data)
    if split not in splits:
        raise ValueError(f"--split must be {choices(splits)} of {data.data}, got {split!r}")
    cut: dict[str, Any] = {"rows": data.rows, "row_length": data.row_length, "num_proc": data.num_proc}
    return make_rows(splits[split], tokenizer, split=split, **cut)[0]


def arrays_of(rows: Dataset) -> Iterator[Any]:
    """Tokens and lengths of rows as numpy arrays, some thousand rows at a time."""
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        table: Any = batch
        tokens = table["input_ids"].combine_chunks()
        yield tokens.flatten().to_numpy().astype("<i4")
        yield tokens.value_lengths().to_numpy().astype("<i4")
        yield table["length"].to_numpy().astype("<i4")


def longest_row(*parts: Any) -> int:
    """Tokens of the longest row, whatever stands around it included."""
    return max(len(ids) for part in parts if part is not None for ids in part["input_ids"])


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
    # With rotary positions alone, a row that is all [MASK] looks the same everywhere: [CLS] and [SEP] tell
    # its ends apart.
    cls_sep = model_args.backbone in ROTARY
    how: dict[str, Any] = {"cls_sep": cls_sep, "separator": data.prompt_column is not None}
    how["min_frequency"] = data.min_frequency
    made = [train_tokenizer(kind, texts, data.vocab_size, **how) if state.is_main_process else None]
    return broadcast_object_list(made)[0]  # by one process for all


# --- the model -------------------------------------------------------------------------------------------------------


def prepare_model(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, run: RunArguments, rows: Rows
) -> tuple[Any, Any]:
    """What is trained, and the objective it is trained on."""
    fields: dict[str, Any] = {"separator_token_ids": None, "prompt_dropout": data.prompt_dropout}
    if data.prompt_column is not None:
        fields["separator_token_ids"] = tokenizer_separator(rows.tokenizer)
    objective: Any
    if goal.objective == "ar":
        config = preset_config(model_args, rows.tokenizer, rows.train, fields)
        model: Any = causal_twin(config)
        objective = CausalObjective(config, run.per_device_eval_batch_size)
    else:
        model = build_model(model_args, rows.tokenizer, rows.train, fields)
        if model_args.lora_rank is not None:
            model = add_adapter(model, model_args.lora_rank, model_args.lora_alpha, model_args.lora_target)
        objective = TextObjective(
            model.config,
            loss=goal.loss,
            max_corruption=goal.max_corruption,
            loss_chunk=goal.loss_chunk,
            eval_draws=run.eval_draws,
            eval_batch_size=run.per_device_eval_batch_size,
        )
    attention = model_args.attn_implementation or ("eager" if run.device.type == "cpu" else None)
    if attention is not None:
        model.set_attn_implementation(attention)
    if data.pack_rows is not None:
        check_packing(model, data.pack_rows)
        objective.pack_length = data.pack_rows
    return model, objective


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


def dropout_fields(model_args: ModelArguments) -> dict[str, Any]:
    """The names an architecture gives its dropout, and what small vocabularies need besides."""
    if model_args.backbone == "modernbert":
        return {"mlp_dropout": model_args.dropout}
    return {"hidden_dropout_prob": model_args.dropout, "attention_probs_dropout_prob": 0.0}


# --- the training ----------------------------------------------------------------------------------------------------


def prepare_trainer(
    data: DataArguments,
    model_args: ModelArguments,
    run: RunArguments,
    rows: Rows,
    model: Any,
    objective: Any,
    checkpoint: str | None,
) -> UDMTrainer:
    """A trainer of these rows, or of the stream whose beginning they are; raises ValueError where one is too long."""
    stream, longest = None, longest_row(rows.train, rows.validation)
    if rows.texts is not None:
        cutter = RowCutter(rows.tokenizer, data.rows, data.row_length, prompted=data.prompt_column is not None)
        seed = run.seed if run.data_seed is None else run.data_seed
        stream = RowStream(rows.texts, cutter, seed=seed, buffer=data.stream_buffer)
        longest = max(longest, cutter.longest or 0)
    limit = objective.config.max_row_length
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and the model reads at most {limit}; give --row_length")
    shares = run.gradient_accumulation_steps * run.world_size
    if stream is None and run.train_batch_size * shares > len(rows.train):
        raise ValueError(
            f"a step takes {run.train_batch_size * shares} rows (--per_device_train_batch_size x "
            f"--gradient_accumulation_steps x processes) and {len(rows.train)} rows are there to train on: give "
            f"--per_device_train_batch_size of at most {max(1, len(rows.train) // shares)}, or more text"
        )
    if run.learning_rate is None:
        run.learning_rate = 1e-3 if model_args.model in PRESETS else 1e-4
    if stream is not None:
        stream_arguments(run)
    sets: dict[str, Any] = {
        "train_dataset": rows.train if stream is None else stream,
        "eval_dataset": rows.validation,
    }
    trainer = UDMTrainer(model, run, objective=objective, processing_class=rows.tokenizer, **sets)
    if stream is not None:
        follow_stream(trainer, stream, checkpoint)
    return trainer


# --- the report ------------------------------------------------------------------------------------------------------


def describe_run(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, rows: Rows, objective: Any
) -> dict[str, Any]:
    """What report.json says of a run whatever comes of it; every path absolute, so that it says the same elsewhere."""
    config: UDMConfig = objective.config
    source = resolved(data.data)
    return {
        "data": source,
        "data_arguments": {
            **vars(data),
            "data": source,
            "validation_data": resolved(data.validation_data),
            "tokenizer": resolved(data.tokenizer, TOKENIZERS),
        },
        "model_arguments": {**vars(model_args), "model": resolved(model_args.model, PRESETS)},
        "objective": goal.objective,
        "max_corruption": goal.max_corruption,
        "process": CAUSAL if goal.objective == "ar" else config.process,
        "vocab_size": len(rows.tokenizer),
        "train_rows": len(rows.train),
        "dropped": rows.dropped,
        "vocabulary": rows.vocabulary,
        "notes": rows.notes,
    }


def figures_of(
    output: Path, goal: ObjectiveArguments, rows: Dataset, objective: Any, vocabulary: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The figures of held-out rows, printed: the bound, of a causal twin its loss, of a repairer its repairs.

    From what was written, so that `udm evaluate` repeats these very figures.
    """
    if goal.objective == "ar":
        figures = evaluate_causal(AutoModelForCausalLM.from_pretrained(output), rows, objective)
        name, text = "validation", describe(figures, vocabulary)
    elif goal.max_corruption < 1.0:
        figures = evaluate_repair(UDMForMaskedGeneration.from_pretrained(output), rows).to_dict()
        name, text = "repair", describe_repair(figures)
    else:
        figures = evaluate_bound(UDMForMaskedGeneration.from_pretrained(output), rows).to_dict()
        name, text = "validation", describe(figures, vocabulary)
    print(text, flush=True)
    return {name: figures}


def main(arguments: list[str] | None = None) -> None:
    end(train_text(*parse(arguments)))
