"""Many texts: written by several processes, continued where they were killed, the same whoever wrote them.

    accelerate launch recipes/generate_corpus.py runs/unicode-names corpus --samples 100000
    accelerate launch recipes/generate_corpus.py runs/answers answers --data questions.jsonl --text-column q -n 4
    python recipes/generate_corpus.py --help        every option of a generation is one here

OUTPUT is a folder of parquet files, each of `--file-rows` rows of the job, in order: `id`, the number of the row (of
`--data` among those that hold text); `prompt`, where there is `--data`; `sample`, its number among the `-n` texts of
the row; and `text`. A row is a prompt, or of `--samples` a text from nothing.

A file is there whole or not at all, and its name says which rows it holds. So the same command goes on after any end, a
kill -9 too: what is there stays, what is missing is made, with as many processes as there are then. The draws of a row
depend on the seed and its id alone, and its batch is the same in every run, so the texts are those of one process,
bit for bit on the same kind of machine. `job.json` holds what was asked for; another job in the folder is refused.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import pyarrow as pa  # type: ignore[import-untyped]  # noqa: E402
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import parse_flag_from_env  # noqa: E402

from udm_text.cli.commands import with_options  # noqa: E402
from udm_text.cli.terminal import load_pipeline  # noqa: E402
from udm_text.common import choices, read_object, write_json, written_whole  # noqa: E402
from udm_text.corpus import load_corpus  # noqa: E402
from udm_text.pipeline_udm import UDMGenerationPipeline  # noqa: E402
from udm_text.training.locks import locked  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
JOB = "job.json"


class NumberedPipeline(UDMGenerationPipeline):
    """The pipeline, of (number, text) in place of texts: rows are told apart by their numbers, not by their texts."""

    def preprocess(self, input_: tuple[int, str], **parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        number, text = input_
        return {**super().preprocess(text, **parameters), "number": torch.tensor([[number]])}

    def _keys(self, input_tensors: dict[str, Any]) -> list[int]:
        return [int(number) for number in input_tensors["number"][:, 0]]


def name_of(first: int, end: int) -> str:
    """The file of the rows from `first` to before `end`."""
    return f"rows-{first:012d}-{end:012d}.parquet"


def files_of(rows: int, size: int) -> list[tuple[int, int]]:
    """Which rows each file holds: from the first to before the second."""
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]


def digest(model: str, revision: str | None) -> str:
    """Of what of a folder decides on its texts; of a model on the Hub its name and revision."""
    if not Path(model).is_dir():
        return f"{model}@{revision or 'main'}"
    found = hashlib.sha256()
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    files = [*sorted(Path(model).glob("*.safetensors")), *(Path(model) / name for name in names)]
    for file in filter(Path.is_file, files):
        with open(file, "rb") as opened:
            found.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def digest_texts(texts: Iterable[str]) -> str:
    """Of texts and their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()


def check_job(folder: Path, job: dict[str, Any]) -> None:
    """Writes down what is asked for, or compares it with what the folder was begun with.

    Raises:
        ValueError: it was begun with something else, or holds other files.
    """
    if (folder / JOB).is_file():
        begun = read_object(folder / JOB)
        for name, value in job.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{folder} was begun with {name} {begun.get(name)!r}, and now it is {value!r}: give the same, or "
                    "another folder"
                )
    elif any(file.suffix == ".parquet" for file in folder.iterdir()):
        raise ValueError(f"{folder} holds parquet files and no {JOB}: give another folder")
    else:
        write_json(folder / JOB, job)
    for part in folder.glob(".*.part"):  # of a process that was killed
        part.unlink()


def write_rows(folder: Path, ids: range, prompts: Sequence[str] | None, results: list[list[dict[str, Any]]]) -> None:
    """A file of rows, whole or not at all."""
    columns: dict[str, list[Any]] = {"id": [], **({} if prompts is None else {"prompt": []}), "sample": [], "text": []}
    for place, (number, records) in enumerate(zip(ids, results, strict=True)):
        for sample, record in enumerate(records):
            columns["id"].append(number)
            if prompts is not None:
                columns["prompt"].append(prompts[place])
            columns["sample"].append(sample)
            columns["text"].append(record["generated_text"])
    with written_whole(folder / name_of(ids.start, ids.stop)) as part:
        pq.write_table(pa.table(columns), part)


@app.command()
@with_options
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, or a name on the Hub.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder; the same one goes on.")],
    *,
    samples: Annotated[int | None, typer.Option(min=1, help="So many texts from nothing.")] = None,
    data: Annotated[str | None, typer.Option(help="Prompts: a file, a folder, or the name of a data set.")] = None,
    data_config: Annotated[str | None, typer.Option(help="Configuration of the data set.")] = None,
    split: Annotated[str, typer.Option(help="The split of the data.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds the prompts.")] = "text",
    file_rows: Annotated[int, typer.Option(min=1, help="Rows of a file: what is lost when a process dies.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    **options: Any,
) -> None:
    """Write many texts, by the processes of `accelerate launch`."""
    if (samples is None) == (data is None):
        raise typer.BadParameter(f"give --samples, or --data, got {'neither' if data is None else 'both'}")
    options["seed"] = 0 if options["seed"] is None else options["seed"]
    options["forbidden_tokens"] = options["forbidden_tokens"] or None
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=timedelta(days=365))  # the first to be done waits for the last
    prompts, blank = None, 0
    if data is not None:
        with state.main_process_first():  # the others find its cache
            corpus = load_corpus(data, text_column, data_config, to_train=False)
        if split not in corpus:
            raise typer.BadParameter(f"--split must be {choices([*corpus])} of {data}, got {split!r}")
        prompts, blank = corpus[split]["text"], corpus.blank.get(split, 0)
    rows = samples if prompts is None else len(prompts)
    assert rows is not None
    output.mkdir(parents=True, exist_ok=True)
    with locked(output) if state.is_main_process else nullcontext():
        if state.is_main_process:
            job: dict[str, Any] = {"model": digest(model, revision), "dtype": dtype, "rows": rows}
            job |= {"prompts": None if prompts is None else digest_texts(prompts)}
            job |= {"file_rows": file_rows, "batch_size": batch_size, **options}
            check_job(output, job)
        state.wait_for_everyone()
        pipe = load_pipeline(model, revision, str(state.device), dtype)
        pipe.__class__ = NumberedPipeline
        mine = files_of(rows, file_rows)[state.process_index :: state.num_processes]
        number = options["num_return_sequences"]
        for first, end in mine:
            if (output / name_of(first, end)).is_file():
                continue
            ids, given = range(first, end), None if prompts is None else list(prompts[first:end])
            texts = [(number * row, text) for row, text in zip(ids, given or [""] * len(ids), strict=True)]
            write_rows(output, ids, given, pipe(texts, batch_size=batch_size, **options))
            print(f"process {state.process_index}: rows {first} to {end - 1} of {rows}", file=sys.stderr, flush=True)
        state.wait_for_everyone()
        missing = [name_of(*part) for part in files_of(rows, file_rows) if not (output / name_of(*part)).is_file()]
        if missing:
            raise RuntimeError(f"{output} lacks {missing[0]} and {len(missing) - 1} more files: give the command again")
        said = f", {blank} without text left out" if blank else ""
        state.print(f"{output}: {rows} rows{said}, {len(files_of(rows, file_rows))} files")


if __name__ == "__main__":
    app()
