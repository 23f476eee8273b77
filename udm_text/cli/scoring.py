"""What is scored: the rows that `udm evaluate` measures, and texts one by one for `udm generate --score`."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import runpy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..common import check_place, choices, takes, written_whole
from ..corpus import load_corpus, make_rows
from ..corpus.rows import RowCutter
from ..evaluation import check_judge, compare_samples, measure_frontier, row_scores, scored_rows
from ..evaluation.bounds import summarise
from ..evaluation.features import check_featuriser, check_package, encoder_of
from ..evaluation.likelihood import summarise_scores
from ..framing import find_tokenizer
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
        if split == ALL or len(splits.blank) == 1:  # which names the splits without text, too
            split, texts = ALL, concatenate_datasets(list(splits.values()))
        else:
            split = next((name for name in ("validation", "test") if name in splits.blank), None)
            if split is None or split not in splits:
                why = "none is given" if split is None else f"its split {split} holds no text"
                raise ValueError(f"--split must be {choices([*splits, ALL])} of {data.data}, and {why}")
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


def load_beside(place: str, option: str, device: Any, causal: bool = True) -> tuple[Any, Any]:
    """A model that texts are measured by, and its tokenizer, on a device.

    Args:
        option: that named it. causal: whether it has to be a causal language model, or may be any that has states; of
            an encoder-decoder it is then the encoder (`encoder_of`).

    Raises:
        ValueError: there is no tokenizer, or the two are of different vocabularies, or one of them cannot be read, or
            weights of a judge are missing, or the model is not what is needed, in a sentence that names the option.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    check_place(place)
    name, kind = f"{option} {place}", "causal language model" if causal else "model"
    with _reading(f"{name} holds a tokenizer that cannot be read"):
        tokenizer = find_tokenizer(place)
    if tokenizer is None:
        raise ValueError(f"{name} holds no tokenizer: save the model's own beside it")
    with _reading(f"{name} is no {kind} of transformers that can be read"):
        loader: Any = AutoModelForCausalLM if causal else AutoModel
        model, loaded = loader.from_pretrained(place, output_loading_info=True)
    if causal and (missing := sorted(loaded["missing_keys"])):  # of others a head that no state depends on
        raise ValueError(f"{name} lacks weights, which would be drawn at random: {', '.join(missing[:3])}")
    model = (model if causal else encoder_of(model)).to(device)
    (check_judge if causal else check_featuriser)(model, tokenizer, name)
    return model, tokenizer


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Within it, whatever error a broken file brings about, of any library, is a ValueError that begins with `what`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def user_function(given: str, option: str = "--validity") -> Any:
    """The function that a person names, as module:function or path.py:function; its module is run.

    Raises:
        ValueError: in a sentence that names the option: there is no such module, file or function.
    """
    place, _, name = given.rpartition(":")
    if not place or not name:
        raise ValueError(f"{option} must be module:function or path.py:function, got {given}")
    if place.endswith(".py") and not Path(place).is_file():
        raise ValueError(f"{option} {given}: there is no file {place}")
    try:
        function = runpy.run_path(place)[name] if place.endswith(".py") else getattr(import_module(place), name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{option} {given}: it cannot be had: {type(error).__name__}: {error}") from error
    if not takes(function, 1):
        raise ValueError(f"{option} {given} must be a function of one text")
    return function


def check_frontier(
    path: Path | None, judge: str | None, temperatures: str | None, steps: str | None, always: bool = False
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The temperatures and the numbers of steps of a frontier, ((), ()) where none is asked for.

    always: whether there is one without an image of its own, too.

    Raises:
        ValueError: in a sentence that names the option: there is no judge, or no matplotlib; a list holds what is no
            number, or cannot be; the image cannot be written.
    """
    for option, value in (("--temperatures", temperatures), ("--steps", steps)):
        if value is not None and path is None and not always:
            raise ValueError(f"{option} {value} is of a frontier: give --frontier FILE.png, too")
    if path is not None:
        if judge is None:
            raise ValueError(f"--frontier {path} sets perplexity beside entropy: give --judge, a causal model, too")
        check_image(path)
    elif not always:
        return (), ()
    warm = _numbers("--temperatures", temperatures or "0.7,0.85,1.0", float, 0)
    return warm, _numbers("--steps", steps or "8,32")


def check_image(path: Path) -> None:
    """Raises ValueError or OSError where the image of a frontier cannot be drawn, or written as a PNG at this path."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--frontier draws with matplotlib: pip install 'udm-text[train]'")
    if path.suffix != ".png" or path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"--frontier writes an image that ends in .png, in a folder that is there, got {path}")
    with written_whole(path, keep=False):
        pass


def _numbers(option: str, given: str, kind: Any = int, least: float = 1) -> tuple[Any, ...]:
    """Different numbers, with commas between them."""
    try:
        found = tuple(kind(part) for part in given.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or not all(math.isfinite(x) and x >= least for x in found):
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} must be different {what} of at least {least}, with commas between, got {given}")
    return found


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """What texts are drawn for, and how they are measured.

    count: how many. judge, featuriser: models by their places, for perplexity and for MAUVE. validity: of
    `user_function`. temperatures, steps: of a frontier; () for none.
    """

    count: int
    judge: str | None = None
    featuriser: str | None = None
    validity: str | None = None
    temperatures: Sequence[float] = ()
    steps: Sequence[int] = ()


def figures_of_samples(
    pipe: Any,
    data: DataArguments,
    options: SampleOptions,
    split: str | None,
    *,
    batch_size: int,
    seed: int,
    **how: Any,
) -> tuple[dict[str, Any], list[str]]:
    """Draws texts from nothing, and compares them with texts of the corpus (`compare_samples`); the texts, too.

    The figures have "seed", what they were measured by as "judge", "featuriser" and "validity", and where a frontier
    was asked for its points (`measure_frontier`) as "frontier".

    Args:
        pipe: a pipeline of the model. data: see `reading`.
        split: what the texts that were not trained on are; None: the validation split.
        seed: of the first batch, the next number of each further one. how: options of the generation.

    Raises:
        ValueError: the model writes answers to prompts; a model or a function that the options name cannot be had.
    """
    if pipe.model.config.prompted:
        raise ValueError("--samples draws texts from nothing, and this model writes answers to prompts")
    valid = None if options.validity is None else user_function(options.validity)
    if options.featuriser is not None:
        check_package()
    device = pipe.model.device
    judge = None if options.judge is None else load_beside(options.judge, "--judge", device)
    featuriser = None if options.featuriser is None else load_beside(options.featuriser, "--featuriser", device, False)
    held_out, training = (texts_of_split(data, name)["text"] for name in (split or "validation", "train"))

    def draw(**other: Any) -> list[str]:
        texts: list[str] = []
        while len(texts) < options.count:
            some = min(batch_size, options.count - len(texts))
            drawn = pipe("", num_return_sequences=some, seed=seed + len(texts) // batch_size, **{**how, **other})
            texts += [record["generated_text"] for record in drawn]
        return texts

    texts = draw()
    by: dict[str, Any] = {"judge": judge, "featuriser": featuriser, "valid": valid}
    figures = {**compare_samples(texts, list(held_out), list(training), **by), "seed": seed}
    given = {"judge": options.judge, "featuriser": options.featuriser, "validity": options.validity}
    figures |= {name: place for name, place in given.items() if place is not None}
    if options.temperatures and judge is not None:
        grid = options.temperatures, options.steps
        figures["frontier"] = measure_frontier(lambda t, k: draw(temperature=t, num_steps=k), judge, *grid)
    return figures, texts


def refuse_repairer(model: str, report: Mapping[str, Any], option: str = "--score") -> None:
    """Raises ValueError for a model that has no bound worth the name, before it is loaded."""
    if (share := report.get("max_corruption", 1.0)) < 1.0 and option != "--score":
        raise ValueError(
            f"{option}: {model} is a repairer, trained on rows of which at most {share:g} was wrong: it writes no "
            f"texts of its own, and has no likelihood of any: leave {option} away"
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
    found = row_scores(model, rows, index=[0] * len(rows), draws=draws, seed=seed, kernel=kernel)  # type: ignore[arg-type]
    each = found.nats / found.tokens.clamp(min=1)
    return [{"nats": a, "nats_per_token": b} for a, b in zip(found.nats.tolist(), each.tolist(), strict=True)]


def check_table(path: str | Path, rows: str) -> None:
    """Raises ValueError or OSError where the scores of texts cannot be written, one by one, before they are made."""
    target = Path(path)
    if target.suffix != ".parquet":
        raise ValueError(f"--per-example writes a table that ends in .parquet, got {path}")
    if rows != "line":
        raise ValueError(f"--per-example scores text by text, and a row of rows={rows} is no text: give --rows line")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ValueError(f"--per-example {path} cannot be written: there is no folder for it, or it is one")
    with written_whole(target, keep=False):
        pass


def score_examples(
    model: Any,
    tokenizer: Any,
    data: DataArguments,
    texts: Dataset,
    path: str | Path,
    *,
    likelihood: str,
    order: Any,
    **how: Any,
) -> dict[str, Any]:
    """Writes the scores of texts one by one as a table, whole or not at all; the figures of all of them together.

    The table has a row a text, in their order: text (and prompt), nats, stderr (null where one draw alone was made),
    tokens, characters and bits_per_char; nats are null where no token of a text is scored. The figures are those of
    the command without it.

    Args:
        data: how the texts are cut, a row a text. likelihood, order, how: of `row_scores`.
    """
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    config = model.config
    prompted = "prompt" in texts.column_names
    cutter = RowCutter(tokenizer, "line", data.row_length, prompted=prompted)
    names = ("text", "prompt") if prompted else ("text",)
    columns: dict[str, list[Any]] = {name: list(texts[name]) for name in names}
    records = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    places, rows = scored_rows(config, cutter.lines(records))
    scores = row_scores(model, rows, likelihood=likelihood, order=order, **how)
    measured = {"nats": scores.nats, "stderr": scores.stderr, "tokens": scores.tokens}
    for name, values in measured.items():
        columns[name] = [None] * len(records)
        for place, value in zip(places, values.tolist(), strict=True):
            columns[name][place] = None if value != value else value
    columns["characters"], columns["bits_per_char"] = [None] * len(records), [None] * len(records)
    for place, row, nats in zip(places, rows, scores.nats.tolist(), strict=True):
        columns["characters"][place] = row["num_chars"]
        columns["bits_per_char"][place] = nats / math.log(2) / row["num_chars"] if row["num_chars"] else None
    numbers = {"nats": "float64", "stderr": "float64", "bits_per_char": "float64"}
    kinds = {**dict.fromkeys(names, "string"), **numbers, "tokens": "int64", "characters": "int64"}
    table = pyarrow.table({name: pyarrow.array(values, type=kinds[name]) for name, values in columns.items()})
    with written_whole(path) as part:
        parquet.write_table(table, part)
    if likelihood != "bound":
        return summarise_scores(config, rows, scores, order=order or "random", seed=how["seed"]).to_dict()
    kernel = how["kernel"] or config.kernel
    nats = scores.nats - scores.length_nats
    return summarise(
        config, rows, nats, scores.length_nats, draws=scores.draws, seed=how["seed"], kernel=kernel
    ).to_dict()


def is_corpus_of(report: Mapping[str, Any], data: str) -> bool:
    """Whether a corpus is, by its name, the one that the report's model was trained with."""
    own = report.get("data")
    return own is not None and own in (resolved(data), Path(data).name)
