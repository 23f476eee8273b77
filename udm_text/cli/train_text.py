"""The story of a training run, top to bottom: corpus, tokenizer, rows, model, trainer, bound, report.

`udm train` and `recipes/train_text.py` are two doors to `train_text`. Its options are in `training/arguments.py`, what
it says in `reports.py`; what every run does around the training is `training/runs.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoConfig
from transformers.trainer_utils import IntervalStrategy

from ..chats import MARKS, check_template
from ..common import check_place, choices
from ..configuration_udm import PRESETS, PROCESSES, UDMConfig
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
from ..corpus.chats import whole_chats
from ..corpus.streaming import RowStream, TrainingTexts, sample_corpus
from ..edits import MOST_OF_A_PAIR
from ..evaluation import evaluate_bound, evaluate_loss, evaluate_repair, measure_context
from ..framing import tokenizer_fields, tokenizer_separator
from ..modeling_udm import UDMForMaskedGeneration
from ..run_report import hub_name
from ..training import TextObjective, UDMTrainer
from ..training.adapters import add_adapter
from ..training.arguments import WRITER, DataArguments, ModelArguments, ObjectiveArguments, check_data, check_model
from ..training.arguments import parse as parse
from ..training.causal import PROCESS as CAUSAL
from ..training.causal import CausalObjective, causal_twin, evaluate_causal, load_twin
from ..training.optimizers import MUON, best_optimizer, muon_rate, quick_bfloat16
from ..training.packing import check_packing
from ..training.resuming import digest_rows
from ..training.runs import (
    NOTHING_TO_DRAW,
    Preparation,
    RunArguments,
    describe_best,
    end,
    evaluated_rows,
    keep_best,
    prepare,
    resolved,
    rows_a_step,
)
from ..training.runs import run as carry_out
from ..training.streams import follow_stream, stream_arguments
from .reports import (
    describe,
    describe_context,
    describe_evaluation,
    describe_repair,
    describe_round_trip,
    describe_rows,
    draw_loss,
)

NOISY_SHARE = 0.5
"""Rows of a step that take their noisy text, where there are such and no share is given."""
ADAMW_RATE, TUNED_RATE = 1e-3, 1e-4
"""Learning rates of AdamW: from scratch, and of a pretrained model. That of Muon is `optimizers.muon_rate`."""
ROTARY = ("modernbert", "nomic_bert")
"""Architectures without absolute positions."""
GATED = ("modernbert", "nomic_bert")
"""Architectures whose MLP is gated, of three matrices where others have two."""


@dataclass
class Rows:
    """What a run trains on and is measured on."""

    tokenizer: Any
    train: Dataset
    """With streaming those of the texts that were read beforehand."""
    validation: Dataset | None
    held: Dataset | None
    """The texts of the validation rows."""
    texts: TrainingTexts | None
    """What is streamed; None: nothing."""
    dropped: dict[str, int]
    vocabulary: dict[str, Any]
    notes: list[str]
    """What is to be said of the corpus, in sentences."""
    held_out: str | None
    """The split of the corpus that the held-out rows are of, if they are: "train" where they are a share of it."""
    examples: list[dict[str, str]]
    """The first held-out texts that are short, with their prompts."""


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
    check_places(data, model_args, goal, ready)
    check_process(data, model_args, goal)
    if goal.teacher is not None and data.tokenizer is None and model_args.model in PRESETS:
        data = replace(data, tokenizer=goal.teacher)
    rows = prepare_rows(data, model_args, ready)
    model, objective = prepare_model(data, model_args, goal, run, rows)
    trainer = prepare_trainer(data, model_args, run, rows, model, objective, ready.checkpoint)
    best = keep_best(trainer, run, ready)
    facts = describe_run(data, model_args, goal, rows, objective)
    if rows.validation is not None and run.eval_strategy != "no":
        facts["eval_rows"] = len(evaluated_rows(run, len(rows.validation)))
    parameters = sum(p.numel() for p in model.parameters())
    ready.say(
        f"{len(rows.train)} rows{' read beforehand' * data.streaming}, {parameters / 1e6:.1f} M parameters, "
        f"{len(rows.tokenizer)} tokens, process {facts['process']}, {trainer.rows_per_step} rows a step"
    )
    if not (run.bf16 or run.fp16) and quick_bfloat16(run.device):
        ready.say("note: this machine multiplies bfloat16: with --bf16 a step takes less time")

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        if not ready.state.is_main_process:
            return {}
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        figures = figures_of(ready.output, data, goal, rows, objective, losses)
        if run.plot:
            how = {"loss_is_bound": objective.loss_is_bound, "counts_lengths": goal.objective == "ar"}
            history, file = trainer.state.log_history, ready.output / "loss.png"
            if not draw_loss(history, file, figures.get("validation"), **how):
                ready.say(NOTHING_TO_DRAW)
        return {**figures, **describe_best(best, report["steps"], ready)}

    digests = {
        name: digest_rows(arrays_of(part))
        for name, part in (("training", rows.train), ("held-out", rows.validation))
        if part is not None
    }
    return carry_out(trainer, ready, facts, measure, describe_evaluation, digests)


def check_places(data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, ready: Preparation) -> None:
    """Raises OSError where a model or tokenizer that is to be loaded is not to be had, before anything is read."""
    if model_args.model not in PRESETS:
        check_place(model_args.model)
    if goal.teacher is not None:
        check_place(goal.teacher)
    if ready.checkpoint is None and data.tokenizer is not None and data.tokenizer not in TOKENIZERS:
        check_place(data.tokenizer, "tokenizer directory")


def check_process(data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments) -> None:
    """Raises ValueError where the process of the model, given or stored, cannot be trained so, before data is read."""
    if goal.objective == "ar":
        return
    own = {name: value for name, value in process_fields(model_args).items() if name != "shift_logits"}
    if model_args.blanks is not None:
        own["blank_widths"] = 1  # a process without blanks refuses any
    if own.get("predictor") == "autoregressive":
        own["text_config"] = {"model_type": WRITER}
    config = UDMConfig(mask_token_id=0, pad_token_id=1, prefix_token_ids=[2], **own)  # with any backbone and tokenizer
    TextObjective(config, **goal_fields(data, goal))


# --- the rows --------------------------------------------------------------------------------------------------------


def prepare_rows(data: DataArguments, model_args: ModelArguments, ready: Preparation) -> Rows:
    """Reads the corpus, finds or trains the tokenizer, cuts the rows; one process before the others."""
    state = ready.state
    writer = chat_writer(data, model_args, ready.checkpoint)
    with state.main_process_first():  # the others find its cache
        splits, texts = read_texts(data, writer)
    tokenizer = choose_tokenizer(data, model_args, splits, ready.checkpoint, state)
    process = "mask" if data.noisy_column is None else process_fields(model_args).get("process", "mask")
    cut = cut_fields(data, process)
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
    examples = [] if held is None else first_short(held)
    of = splits.held_out or ("validation" if held is not None else None)
    return Rows(tokenizer, train_rows, validation, held, texts, dropped, vocabulary, splits.notes, of, examples)


def first_short(texts: Dataset, count: int = 4, longest: int = 200) -> list[dict[str, str]]:
    """The first few of some texts, with prompts where they have any, that have at most so many characters."""
    found: list[dict[str, str]] = []
    for row in texts:
        record: Any = row
        example = {name: record[name] for name in ("prompt", "text") if record.get(name)}
        if len(found) < count and max(map(len, example.values()), default=0) <= longest:
            found.append(example)
        if len(found) == count:
            break
    return found


def read_texts(data: DataArguments, tokenizer: Any = None) -> tuple[Corpus, TrainingTexts | None]:
    """The splits of the corpus, or with streaming those of its beginning, and then the texts to stream.

    tokenizer: whose chat template writes messages.
    """
    how: dict[str, Any] = {"text_column": data.text_column, "prompt_column": data.prompt_column}
    how |= {"messages_column": data.messages_column, "tokenizer": tokenizer}
    whole: dict[str, Any] = {**how, "noisy_column": data.noisy_column}
    contiguous = data.rows == "packed"
    given: dict[str, Dataset] = {}
    said = Corpus({})
    if data.validation_data is not None:
        said = load_corpus(data.validation_data, **whole)
        given["validation"] = said["train"]
    if data.streaming:
        splits, texts = sample_corpus(
            open_corpus(data.data, name=data.data_config, **how),
            data.stream_sample,
            0.0 if given else data.validation_share,
            contiguous,
        )
        return splits.replaced({**splits, **given}, *said.notes), texts
    corpus = load_corpus(data.data, name=data.data_config, **whole)
    every = corpus.replaced({**corpus, **given}, *said.notes)
    return hold_out(every, data.validation_share, contiguous), None


ALL = "all"
"""The split of a source that is scored whole; a run has none of this name."""


def texts_of_split(data: DataArguments, split: str = "validation", tokenizer: Any = None) -> Dataset:
    """The texts of a split as a run with these arguments has them. tokenizer: of the model, for chats."""
    splits, _ = read_texts(data, tokenizer)
    if split not in splits:
        raise ValueError(f"--split must be {choices([*splits, ALL])} of {data.data}, got {split!r}")
    return splits[split]


def cut_fields(data: DataArguments, process: str) -> dict[str, Any]:
    """How texts are cut into rows for a model of that process (`make_rows`)."""
    edits = MOST_OF_A_PAIR if PROCESSES[process].edits else None
    return {"rows": data.rows, "row_length": data.row_length, "num_proc": data.num_proc, "most_edits": edits}


def rows_of_split(
    data: DataArguments, tokenizer, process: str, split: str = "validation", texts: Dataset | None = None
) -> Dataset:
    """The rows of a split as a run with these arguments has them: what it trained on, or measured on.

    process: of the model. texts: those of the split, where they have been read.
    """
    texts = texts_of_split(data, split, tokenizer) if texts is None else texts
    return make_rows(texts, tokenizer, split=split, **cut_fields(data, process))[0]


def arrays_of(rows: Dataset) -> Iterator[Any]:
    """Tokens and lengths of rows as numpy arrays, some thousand rows at a time."""
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        table: Any = batch
        tokens = table["input_ids"].combine_chunks()
        yield tokens.flatten().to_numpy().astype("<i4")
        yield tokens.value_lengths().to_numpy().astype("<i4")
        yield table["length"].to_numpy().astype("<i4")
        if "noisy_ids" in table.column_names:
            yield table["noisy_ids"].combine_chunks().flatten().to_numpy().astype("<i4")


def longest_row(*parts: Any) -> int:
    """Tokens of the longest row, whatever stands around it included."""
    return max(len(ids) for part in parts if part is not None for ids in part["input_ids"])


def choose_tokenizer(
    data: DataArguments, model_args: ModelArguments, splits, checkpoint: str | None, state: PartialState
):
    """The named tokenizer, or that of the pretrained model or the checkpoint, or one trained on the training part."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    kind = tokenizer_kind(data, model_args)
    if kind not in TOKENIZERS:
        return existing_tokenizer(kind, data, model_args)
    texts: Iterable[str] = splits["train"]["text"]
    if data.prompt_column is not None:
        texts = (text or "" for column in ("prompt", "text") for text in splits["train"][column])
    if data.messages_column is not None:
        marks = re.compile("|".join(map(re.escape, MARKS)))
        said = whole_chats(splits["train"])
        texts = (part for row in said for text in (row["prompt"], row["text"]) for part in marks.split(text))
    if data.rows == "packed":  # blocks hold line ends
        texts = (f"{text}\n" for text in texts)
    how: dict[str, Any] = {**tokenizer_frame_of(data, model_args), "min_frequency": data.min_frequency}
    made = [train_tokenizer(kind, texts, data.vocab_size, **how) if state.is_main_process else None]
    return with_template(broadcast_object_list(made)[0], data)  # by one process for all


def tokenizer_kind(data: DataArguments, model_args: ModelArguments) -> str:
    """Which tokenizer a new run takes: one of `TOKENIZERS`, which is trained, or the place of an existing one."""
    return data.tokenizer or ("wordpiece" if model_args.model in PRESETS else model_args.model)


def existing_tokenizer(kind: str, data: DataArguments, model_args: ModelArguments) -> Any:
    """The tokenizer at a place, as the model of the run reads it, with the chat template that was asked for."""
    of = None
    if model_args.model not in PRESETS:
        predictor: dict[str, Any] = {} if model_args.predictor is None else {"predictor": model_args.predictor}
        of = UDMConfig.from_pretrained(model_args.model, **predictor)
    return with_template(load_tokenizer(kind, of), data)


def tokenizer_frame_of(data: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """What a tokenizer that is trained puts around and between texts.

    With rotary positions alone, a row that is all [MASK] looks the same everywhere: [CLS] and [SEP] tell its ends
    apart. And where texts grow, a gap before the first token is read at [CLS].
    """
    cls_sep = model_args.backbone in ROTARY or PROCESSES[model_args.process or "mask"].inserts
    chat = data.messages_column is not None and data.chat_template is None
    return {"cls_sep": cls_sep, "separator": data.prompted, "chat": chat}


def with_template(tokenizer: Any, data: DataArguments) -> Any:
    """The tokenizer, of chats with the chat template that was asked for.

    Raises:
        ValueError: it has none, or one that cannot be used. FileNotFoundError: there is no such file.
    """
    if data.messages_column is not None:
        if data.chat_template is not None:
            if not (file := Path(data.chat_template)).is_file():
                raise FileNotFoundError(f"--chat_template {file}: there is no such file")
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        check_template(tokenizer)
    return tokenizer


def chat_writer(data: DataArguments, model_args: ModelArguments, checkpoint: str | None) -> Any:
    """The tokenizer whose template writes the messages of a run; one that is still to be trained has a stand-in."""
    if data.messages_column is None:
        return None
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    if (kind := tokenizer_kind(data, model_args)) not in TOKENIZERS:
        return existing_tokenizer(kind, data, model_args)
    return with_template(train_tokenizer("char", ["012"], 16, **tokenizer_frame_of(data, model_args)), data)


# --- the model -------------------------------------------------------------------------------------------------------


def prepare_model(
    data: DataArguments, model_args: ModelArguments, goal: ObjectiveArguments, run: RunArguments, rows: Rows
) -> tuple[Any, Any]:
    """What is trained, and the objective it is trained on."""
    fields: dict[str, Any] = {"separator_token_ids": None, "prompt_dropout": data.prompt_dropout}
    if data.prompted:
        fields["separator_token_ids"] = tokenizer_separator(rows.tokenizer)
    if repairs(data, goal):
        fields["time_conditioning"] = False  # how many errors a text has is not known
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
            **goal_fields(data, goal),
            teacher=load_teacher(goal.teacher, rows),
            teacher_weight=goal.teacher_weight,
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


def load_teacher(name: str | None, rows: Rows) -> UDMForMaskedGeneration | None:
    """The teacher of that name, None where there is none.

    Raises:
        ValueError: where its tokens are not those of the rows, or it does not read rows so long.
    """
    if name is None:
        return None
    if load_tokenizer(name).get_vocab() != rows.tokenizer.get_vocab():
        raise ValueError(
            f"--teacher {name} has another vocabulary than what is trained: leave --tokenizer out, or train from a "
            "--model with the teacher's tokenizer"
        )
    teacher = UDMForMaskedGeneration.from_pretrained(name)
    longest, limit = longest_row(rows.train, rows.validation), teacher.config.max_row_length
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and --teacher {name} reads at most {limit}; give --row_length")
    return teacher.requires_grad_(False)


def goal_fields(data: DataArguments, goal: ObjectiveArguments) -> dict[str, Any]:
    """What of a `TextObjective` was asked for."""
    names = "loss max_corruption loss_chunk loss_weighting time_law".split()
    fields = {name: getattr(goal, name) for name in names}
    return {**fields, "noisy_share": noisy_share(data)}


def noisy_share(data: DataArguments) -> float:
    """Rows of a step that take their noisy text."""
    share = NOISY_SHARE if data.noisy_share is None else data.noisy_share
    return 0.0 if data.noisy_column is None else share


def repairs(data: DataArguments, goal: ObjectiveArguments) -> bool:
    """Whether a run trains a repairer of texts."""
    return goal.max_corruption < 1.0 or data.noisy_column is not None


def build_model(
    model_args: ModelArguments, tokenizer, train_rows, fields: dict[str, Any] | None = None
) -> UDMForMaskedGeneration:
    """A new model of a preset size, or a pretrained one. fields: what of a UDMConfig follows from the rows."""
    fields = fields or {}
    if model_args.model not in PRESETS:
        own = own_fields(model_args)
        stored, _ = UDMConfig.get_config_dict(model_args.model)
        if stored.get("time_conditioning"):  # what has learnt to be told goes on being told
            fields = {name: value for name, value in fields.items() if name != "time_conditioning"}
        own |= {name: value for name, value in fields.items() if name == "time_conditioning"}
        if model_args.blanks is not None:
            own["blank_widths"] = widest_blank(model_args.blanks, train_rows, UDMConfig.from_dict(stored, **own))
        own |= {
            "length_counts": length_counts(train_rows),
            "step_curve": None,
        }  # a curve is of the weights that it was measured on
        model, info = UDMForMaskedGeneration.from_pretrained(model_args.model, output_loading_info=True, **own)
        missing = [name for name in info["missing_keys"] if not name.startswith("width_head.")]
        if model_args.lora_rank is not None and (missing or len(tokenizer) > model.config.vocab_size):
            what = "no language-model head" if missing else "fewer tokens than the tokenizer"
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
    if own.get("process") in PROCESSES and PROCESSES[own["process"]].edits:
        room *= 2  # a [MASK] is read in every gap
    names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
    special = {name: getattr(tokenizer, name) for name in names}
    size = (
        pair_size(layers, hidden, heads, special)
        if own.get("predictor") == "autoregressive"
        else {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": intermediate_size(model_args.backbone, hidden),
        }
    )
    config = AutoConfig.for_model(
        model_args.backbone,
        vocab_size=len(tokenizer),
        max_position_embeddings=max(64, room + (tokenizer.pad_token_id or 0) + 1),
        **size,
        **special,
        **dropout_fields(model_args),
    )
    if model_args.blanks is not None:
        own["blank_widths"] = widest_blank(model_args.blanks, train_rows)
    return UDMConfig(text_config=config, length_counts=counts, **tokenizer_fields(tokenizer), **fields, **own)


def pair_size(layers: int, hidden: int, heads: int, special: dict[str, int | None]) -> dict[str, Any]:
    """The sizes of an encoder-decoder of a preset: one half of its layers reads, the other writes.

    special: the tokens of the rows; the decoder begins with what ends them, as BART's does, or else with padding.
    """
    ends = (special["eos_token_id"], special["sep_token_id"], special["pad_token_id"])
    half = {"layers": layers // 2, "attention_heads": heads, "ffn_dim": 4 * hidden}
    return {
        "d_model": hidden,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in half.items()},
        "decoder_start_token_id": next((token for token in ends if token is not None), 0),
        "forced_eos_token_id": None,
    }


def widest_blank(asked: int, train_rows, config: UDMConfig | None = None) -> int:
    """The most tokens of a blank, of a model that is to have a width head.

    asked: 0 takes that of the head that the model has, or twice the longest text, as far as the model reads. config: of
    a model that is trained already.
    """
    if config is not None and config.blank_widths is not None:
        if asked not in (0, config.blank_widths):
            raise ValueError(
                f"--blanks is {asked}, and the width head of --model knows widths up to {config.blank_widths}: give "
                "--blanks without a number"
            )
        return config.blank_widths
    if asked:
        return asked
    longest = None if config is None else config.max_row_length
    most = 2 * max(train_rows["length"])
    return most if longest is None else min(most, longest)


def intermediate_size(backbone: str, hidden: int) -> int:
    """Of the MLP of a preset: 4 times the hidden size, or of a gated one 8/3 of it, which is as many weights."""
    return 64 * round(8 * hidden / 3 / 64) if backbone in GATED else 4 * hidden


def process_fields(model_args: ModelArguments) -> dict[str, Any]:
    """What of a UDMConfig was asked for, and of a stored model its process, where no other was."""
    own = own_fields(model_args)
    stored = {} if model_args.model in PRESETS else UDMConfig.get_config_dict(model_args.model)[0]
    changed = "process" in own and own["process"] != stored.get("process")
    kept = ("process", "predictor") if changed else ("process", "predictor", "kernel")
    return {**{name: stored[name] for name in kept if name in stored}, **own}


def own_fields(model_args: ModelArguments) -> dict[str, Any]:
    """What of a UDMConfig was asked for."""
    names = ("process", "predictor", "kernel", "gap_tokens", "shift_logits")
    return {name: getattr(model_args, name) for name in names if getattr(model_args, name) is not None}


def dropout_fields(model_args: ModelArguments) -> dict[str, Any]:
    """The names an architecture gives its dropout, and what small vocabularies need besides."""
    if model_args.backbone == "modernbert":
        return {"mlp_dropout": model_args.dropout}
    if model_args.backbone == WRITER:
        return {"dropout": model_args.dropout, "attention_dropout": 0.0}
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
        cutter = RowCutter(rows.tokenizer, data.rows, data.row_length, prompted=data.prompted)
        seed = run.seed if run.data_seed is None else run.data_seed
        stream = RowStream(rows.texts, cutter, seed=seed, buffer=data.stream_buffer)
        longest = max(longest, cutter.longest or 0)
    limit = objective.config.max_row_length
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and the model reads at most {limit}; give --row_length")
    shares = run.gradient_accumulation_steps * run.world_size
    if run.rows_by_rule and model_args.model in PRESETS:
        tokens = sum(rows.train["length"]) / len(rows.train)
        run.per_device_train_batch_size = rows_a_step(tokens, len(rows.train) // shares)
    if stream is None and run.train_batch_size * shares > len(rows.train):
        raise ValueError(
            f"a step takes {run.train_batch_size * shares} rows (--per_device_train_batch_size x "
            f"--gradient_accumulation_steps x processes) and {len(rows.train)} rows are there to train on: give "
            f"--per_device_train_batch_size of at most {max(1, len(rows.train) // shares)}, or more text"
        )
    scratch = model_args.model in PRESETS
    if run.optim is None:
        run.optim = best_optimizer(run.device) if scratch else "adamw_torch_fused"
    if run.learning_rate is None:
        rate = muon_rate(run.train_batch_size * shares) if run.optim == MUON else ADAMW_RATE
        run.learning_rate = rate if scratch else TUNED_RATE
    if run.keep_best and rows.validation is not None and run.eval_strategy == "no":
        run.eval_strategy, run.eval_steps, run.do_eval = IntervalStrategy.STEPS, run.eval_steps or 0.1, True
    if stream is not None:
        stream_arguments(run)
    sets: dict[str, Any] = {
        "train_dataset": rows.train if stream is None else stream,
        "eval_dataset": rows.validation and rows.validation.select(evaluated_rows(run, len(rows.validation))),
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
    held: dict[str, Any] | None = None
    if data.validation_data is not None:
        held = {"data": resolved(data.validation_data), "split": "train", "share": None}
    elif rows.validation is not None:
        share = data.validation_share if rows.held_out == "train" else None
        held = {"data": source, "split": rows.held_out, "share": share}
    return {
        "data": source,
        "data_arguments": {
            **vars(data),
            "data": source,
            "validation_data": resolved(data.validation_data),
            "tokenizer": resolved(data.tokenizer, TOKENIZERS),
            "chat_template": resolved(data.chat_template),
        },
        "model_arguments": {**vars(model_args), "model": resolved(model_args.model, PRESETS)},
        "objective": goal.objective,
        "max_corruption": goal.max_corruption,
        "teacher": resolved(goal.teacher),
        "teacher_weight": None if goal.teacher is None else goal.teacher_weight,
        **{name: getattr(objective, name, None) for name in ("loss_weighting", "time_law")},
        "base_model": hub_name(model_args.model),
        "held_out": held,
        "examples": rows.examples if config.prompted or goal.max_corruption < 1.0 else [],
        "process": CAUSAL if goal.objective == "ar" else config.process,
        "vocab_size": len(rows.tokenizer),
        "train_rows": len(rows.train),
        "dropped": rows.dropped,
        "vocabulary": rows.vocabulary,
        "notes": rows.notes,
    }


def figures_of(
    output: Path,
    data: DataArguments,
    goal: ObjectiveArguments,
    rows: Rows,
    objective: Any,
    losses: Sequence[float] = (),
) -> dict[str, dict[str, Any]]:
    """The figures of held-out rows, printed: the bound, of a causal twin its loss, of a repairer its repairs.

    Beside the bound it is measured whether the model has learnt context, and said where it has not, with what would
    help: losses are those that were logged.

    From what was written, so that `udm evaluate` repeats these very figures. Without held-out rows there are none.
    """
    found: dict[str, dict[str, Any]] = {}
    if rows.validation is None or rows.held is None:
        return found
    if goal.objective == "ar":
        found["validation"] = evaluate_causal(load_twin(output), rows.validation, objective)
        text = describe(found["validation"], rows.vocabulary)
    elif repairs(data, goal):
        model = UDMForMaskedGeneration.from_pretrained(output)
        texts = rows.tokenizer, data, goal.max_corruption, rows.held
        found["repair"] = measure_repairs(model, *texts, rows.validation)
        text = describe_repair(found["repair"], repairs_by(model.config))
    else:
        model = UDMForMaskedGeneration.from_pretrained(output)
        found["validation"] = evaluate_bound(model, rows.validation).to_dict()
        found["context"] = measure_context(model, rows.validation, rows.train).to_dict()
        said = describe_context(found["context"], losses, len(rows.tokenizer))
        text = "\n".join((describe(found["validation"], rows.vocabulary), *said))
    print(text, flush=True)
    return found


def repairs_by(config: UDMConfig) -> str:
    """What a repairer does to the tokens of a text, in a word."""
    return "edits" if PROCESSES[config.process].edits else "substitution"


def measure_repairs(
    model: Any, tokenizer, data: DataArguments, max_corruption: float, texts: Dataset, rows: Dataset, **how: Any
) -> dict[str, Any]:
    """The figures of a repairer: typing errors, or the noisy texts that were given, repaired, and the held-out loss.

    texts: held-out ones, and `rows` are theirs. how: batch_size and seed of `evaluate_repair` and `evaluate_loss`.
    """
    columns: dict[str, Any] = {}
    if "prompt" in texts.column_names:
        columns["prompts"] = [prompt or "" for prompt in texts["prompt"]]
    if "noisy" in texts.column_names:
        columns["noisy"] = [noisy or "" for noisy in texts["noisy"]]
    report = evaluate_repair(model, tokenizer, list(texts["text"]), row_length=data.row_length, **columns, **how)
    loss, error = evaluate_loss(model, rows, max_corruption=max_corruption, noisy_share=noisy_share(data), **how)
    return {**report.to_dict(), "loss_nats_per_token": loss, "loss_nats_per_token_stderr": error}


def main(arguments: list[str] | None = None) -> None:
    end(train_text(*parse(arguments)))
