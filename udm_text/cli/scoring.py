"""What is scored: the rows that `udm evaluate` measures, and texts one by one for `udm generate --score`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from ..common import check_place, choices
from ..corpus import load_corpus, make_rows
from ..evaluation import compare_samples
from ..evaluation.bounds import length_nats, row_draws
from ..hub import find_file
from ..training.arguments import DataArguments
from ..training.resuming import resolved
from .train_text import ALL, cut_fields, rows_of_split, texts_of_split


def report_of(model: str) -> Path | None:
    """The report.json that lies beside a model, in its folder or on the Hub; None where there is none."""
    return find_file(model, "report.json")


def reading(report: Mapping[str, Any], model: str, data: str | None, given: Mapping[str, Any]) -> DataArguments:
    """How a corpus is read to be scored: as the model's own was, but for what is given.

    Args:
        report: the report.json beside the model, {} where there is none. data: a corpus; None: the model's own.
        given: fields of `DataArguments` that were asked for; None: not.

    Raises:
        ValueError: where nothing says which corpus it is.
    """
    known = {field.name for field in dataclasses.fields(DataArguments)}
    how = {name: value for name, value in report.get("data_arguments", {}).items() if name in known}
    if data is not None:
        if how.get("validation_data") is not None:  # nothing was held out of the training texts themselves
            how |= {"validation_data": None, "validation_share": 0.0}
    else:
        data = report.get("data")
        if data is None:
            raise ValueError(f"{model} holds no report.json that names its corpus: give --data")
        published = not Path(model).is_dir() and "/" not in data
        if published or (Path(data).is_absolute() and not Path(data).exists()):
            raise ValueError(
                f"the corpus that {model} was trained with, {Path(data).name}, is not here: give --data, and --split "
                "validation where it is that very corpus"
            )
    asked = {name: value for name, value in given.items() if value is not None}
    other = {"prompt_column": "messages_column", "messages_column": "prompt_column"}
    how |= {other[name]: None for name in other if name in asked}
    return DataArguments(**{**how, "data": data, **asked})


def rows_to_score(
    config: Any, data: DataArguments, tokenizer: Any, split: str | None, whole: bool = False
) -> tuple[Dataset, Dataset, str]:
    """The rows of a split, its texts, and its name.

    Args:
        config: of the model that is to read them. data: see `reading`.
        split: as a run with these arguments has it; "all": every text of the source, nothing held out; None: see
            `whole`.
        whole: where no split is named, nothing is held out either: a source that has no splits of its own is scored
            whole, one that has them by its validation split, or else its test split. Otherwise it is the validation
            split of the run.

    Raises:
        ValueError: there is no such split; the model has prompts and the texts have none, or the other way round; a
            row is longer than the model reads.
    """
    if config.prompted != data.prompted:
        column = "prompt" if data.messages_column is None else "messages"
        raise ValueError(
            "the model writes answers to prompts: give --prompt-column, the column that holds them, or of chats "
            "--messages-column"
            if config.prompted
            else f"--{column}-column {getattr(data, f'{column}_column')}: the model was not trained on prompts, leave "
            "it away"
        )
    if split == ALL or (whole and split is None):
        columns: dict[str, Any] = {
            name: getattr(data, name) for name in ("text_column", "prompt_column", "noisy_column", "messages_column")
        }
        splits = load_corpus(data.data, name=data.data_config, to_train=False, tokenizer=tokenizer, **columns)
        if split == ALL or len(splits) == 1:
            split, texts = ALL, concatenate_datasets(list(splits.values()))
        else:
            split = next((name for name in ("validation", "test") if name in splits), None)
            if split is None:
                raise ValueError(f"--split must be {choices([*splits, ALL])} of {data.data}, and none is given")
            texts = splits[split]
        rows, _ = make_rows(texts, tokenizer, split=split, **cut_fields(data, config.process))
    else:
        split = "validation" if split is None else split
        texts = texts_of_split(data, split, tokenizer)
        rows = rows_of_split(data, tokenizer, config.process, split, texts)
    longest, limit = max(map(len, rows["input_ids"])), config.max_row_length
    if limit is not None and longest > limit:
        raise ValueError(f"a row has {longest} tokens and the model reads at most {limit}; give --row-length")
    return rows, texts, split


def figures_of_samples(
    pipe: Any,
    data: DataArguments,
    count: int,
    judge: str | None,
    split: str | None,
    *,
    batch_size: int,
    seed: int,
    **how: Any,
) -> dict[str, Any]:
    """Draws `count` texts from nothing, and compares them with texts of the corpus (`compare_samples`).

    Args:
        pipe: a pipeline of the model. data: see `reading`. judge: a causal language model by its place.
        split: what the texts that were not trained on are; None: the validation split.
        seed: of the first batch, the next number of each further one. how: options of the generation.

    Raises:
        ValueError: the model writes answers to prompts.
    """
    if pipe.model.config.prompted:
        raise ValueError("--samples draws texts from nothing, and this model writes answers to prompts")
    against = None
    if judge is not None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_place(judge)
        against = (
            AutoModelForCausalLM.from_pretrained(judge).to(pipe.model.device),
            AutoTokenizer.from_pretrained(judge),
        )
    held_out, training = (texts_of_split(data, name)["text"] for name in (split or "validation", "train"))
    texts: list[str] = []
    while len(texts) < count:
        some = min(batch_size, count - len(texts))
        drawn = pipe("", num_return_sequences=some, seed=seed + len(texts) // batch_size, **how)
        texts += [record["generated_text"] for record in drawn]
    return {**compare_samples(texts, list(held_out), list(training), judge=against), "seed": seed}


def refuse_repairer(model: str, report: Mapping[str, Any], option: str = "--score") -> None:
    """Raises ValueError for a model that has no bound worth the name, before it is loaded."""
    if (share := report.get("max_corruption", 1.0)) < 1.0 and option != "--score":
        raise ValueError(
            f"{option}: {model} is a repairer, trained on rows of which at most {share:g} was wrong, and writes no "
            f"texts of its own: leave {option} away"
        )
    if (share := report.get("max_corruption", 1.0)) < 1.0:
        raise ValueError(
            f"--score: {model} is a repairer, trained on rows of which at most {share:g} was wrong. The bound of a "
            "text asks it about rows that are all noise, of which it knows nothing, so it has no score: leave --score "
            "away"
        )


def score_rows(
    model: Any, rows: Sequence[Mapping[str, Any]], *, draws: int, seed: int = 0, kernel: str | None = None
) -> list[dict[str, Any]]:
    """Upper bounds on -log p of rows one by one: "nats", and "nats_per_token" of what was generated of each.

    A row of which all that the model may change was generated has the bound of `evaluate_bound`, its length counted
    where the model draws lengths. Of a row with a given part it is the bound of the rest given that part, and given how
    long the rest is. Equal rows have equal scores, whatever stands beside them.

    Args:
        rows: each with "input_ids" and "editable", a bool for each token: whether it was generated.
        draws: corruptions of each row. seed: their noise.
    """
    config = model.config
    how: dict[str, Any] = {"draws": draws, "seed": seed, "kernel": kernel or config.kernel}
    drawn = row_draws(model, rows, [0] * len(rows), batch_size=64, **how)  # type: ignore[arg-type]
    counts = torch.tensor([sum(row["editable"]) for row in rows], dtype=torch.float64)
    every = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.float64)
    nats = drawn.nats.mean(dim=1)
    if whole := ((counts == every) & (counts > 0)).nonzero()[:, 0].tolist():
        nats[whole] += length_nats(model, [{"input_ids": rows[i]["input_ids"]} for i in whole])
    return [
        {"nats": total, "nats_per_token": each}
        for total, each in zip(nats.tolist(), (nats / counts.clamp(min=1)).tolist(), strict=True)
    ]


def is_corpus_of(report: Mapping[str, Any], data: str) -> bool:
    """Whether a corpus is, by its name, the one that the report's model was trained with."""
    own = report.get("data")
    return own is not None and own in (resolved(data), Path(data).name)
