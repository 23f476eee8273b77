"""Sudoku by infilling: a model of complete grids, asked for the cells that are missing.

    python recipes/sudoku.py grids sudoku.train.csv sudoku.valid.csv runs/sudoku-grids --count 200000
    udm train --config recipes/sudoku.yaml --data runs/sudoku-grids --output runs/sudoku
    python recipes/sudoku.py solve runs/sudoku sudoku.valid.csv --column puzzle30

The tables have a column `solution` of 81 digits and columns of puzzles, where a dot is an empty cell. A row of text is
a grid, a token a cell. Training sees each grid under the symmetries of the game (digits renamed, rows and columns
shuffled inside their bands, bands shuffled, transposed), drawn anew for each copy; the tables stay as they are.
No rule of the game is told to the model. A puzzle is solved where all 81 cells are right.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import numpy as np  # noqa: E402
import typer  # noqa: E402

from udm_text.common import share_in_words  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def read_table(path: Path, column: str) -> list[str]:
    """A column of a .csv or .csv.gz table, each entry 81 characters."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0]:
        raise typer.BadParameter(f"{path} has no column {column!r}; it has {', '.join(rows[0]) if rows else 'no rows'}")
    cells = [row[column] for row in rows]
    for number, grid in enumerate(cells, start=2):
        if len(grid) != 81:
            raise typer.BadParameter(f"{path}, line {number}: {column} has {len(grid)} cells in place of 81")
    return cells


def symmetries(grids: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(N, 9, 9) digits 1 to 9, each grid under one of the 9! * 6^8 * 2 symmetries of the game, drawn uniformly."""
    number = np.arange(len(grids))[:, None]
    lines = []
    for _ in range(2):
        bands = random.permuted(np.tile(np.arange(3), (len(grids), 1)), axis=1)
        inside = random.permuted(np.tile(np.arange(3), (len(grids), 3, 1)), axis=2)
        lines.append((3 * bands[:, :, None] + inside).reshape(-1, 9))
    moved = grids[number[:, :, None], lines[0][:, :, None], lines[1][:, None, :]]
    moved = np.where(random.integers(2, size=len(grids))[:, None, None] == 1, moved.transpose(0, 2, 1), moved)
    names = random.permuted(np.tile(np.arange(1, 10), (len(grids), 1)), axis=1)
    return names[number[:, :, None], moved - 1]


@app.command()
def grids(
    train: Annotated[Path, typer.Argument(help="Table to train on.")],
    valid: Annotated[Path, typer.Argument(help="Table held out, used as it is.")],
    output: Annotated[Path, typer.Argument(help="New folder for train.jsonl and validation.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="Training grids.")] = 200_000,
    seed: int = 0,
) -> None:
    """Write the corpus of complete grids."""
    random = np.random.default_rng(seed)
    known = np.array([[int(cell) for cell in grid] for grid in read_table(train, "solution")]).reshape(-1, 9, 9)
    made = symmetries(known[np.arange(count) % len(known)], random).reshape(-1, 81)
    output.mkdir(parents=True, exist_ok=False)
    parts = {"train": ["".join(map(str, grid)) for grid in made.tolist()], "validation": read_table(valid, "solution")}
    for split, rows in parts.items():
        text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (output / f"{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{output / split}.jsonl: {len(rows)} grids")


@app.command()
def solve(
    model: Annotated[str, typer.Argument(help="A trained model.")],
    table: Annotated[Path, typer.Argument(help="Table of puzzles and solutions.")],
    column: Annotated[str, typer.Option(help="Which puzzles.")] = "puzzle30",
    limit: Annotated[int | None, typer.Option(help="Only the first so many puzzles.")] = None,
    order: Annotated[list[str] | None, typer.Option(help="Orders to compare.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely digit.")] = 0.0,
    batch_size: int = 128,
    seed: int = 0,
) -> None:
    """Fill the puzzles in, cell by cell, and count those with all cells right."""
    import transformers

    import udm_text

    udm_text.register()
    make = transformers.pipeline
    pipe = make("udm-generation", model=model)
    puzzles, solutions = read_table(table, column)[:limit], read_table(table, "solution")[:limit]
    mask = pipe.tokenizer.mask_token
    inputs = [puzzle.replace(".", mask) for puzzle in puzzles]
    for name in order or ["random", "margin"]:
        started = time.perf_counter()
        results = pipe(inputs, order=name, temperature=temperature, seed=seed, batch_size=batch_size)
        answers = ["".join(result[0]["generated_text"].split()) for result in results]
        right = np.array([answer == solution for answer, solution in zip(answers, solutions, strict=True)])
        cells = np.array(
            [
                np.mean([a == b for a, b, given in zip(answer, solution, puzzle, strict=True) if given == "."])
                for answer, solution, puzzle in zip(answers, solutions, puzzles, strict=True)
            ]
        )
        error = (right.mean() * (1 - right.mean()) / len(right)) ** 0.5
        print(
            f"order {name:<8} solved {share_in_words(float(right.mean()), error, len(right))}, {len(right)} puzzles, "
            f"{cells.mean():.1%} of the empty cells right, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    app()
