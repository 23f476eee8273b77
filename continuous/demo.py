"""The demo of images: small models of the embedded digits, and honest figures of them.

They are a hot and a cold one, a student of the first, and one that walks in the latents of an autoencoder.

What is shown: a grid of class-conditional samples, how they came to be, a table of samplers beside real digits, a
memoriser and a matched normal law; one step of the student beside fifty of its teacher; samples in latents; held-out
digits blurred and restored, and digits that the cold model makes of a blur that it draws itself.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from udm_text.common import write_json
from udm_text.training.resuming import is_begun, is_finished
from udm_text.training.runs import end

from .data import ImageSplits, digits
from .evaluation import (
    RESTORATIONS,
    Quality,
    bits_per_dim,
    describe_bound,
    quality,
    reference_rows,
    restorations,
    train_classifier,
)
from .grids import save_grid, save_png, save_strip, tile
from .pipeline import ImagePipeline
from .train_autoencoder import parse as parse_autoencoder
from .train_autoencoder import train_autoencoder
from .train_image import parse, train_image

HOT = ["--network_options", json.dumps({"width": 320, "blocks": 4, "dropout": 0.3})]
COLD = [
    *("--process", "cold", "--degradation", "blur", "--degradation_options", json.dumps({"T": 20, "std": 2.5})),
    *("--conditional", "false", "--network_options", json.dumps({"width": 320, "blocks": 4})),
]
STUDENT = ["--objective", "consistency", "--learning_rate", "1e-3", "--warmup_steps", "20"]
LATENT = ["--network_options", json.dumps({"width": 256, "blocks": 3})]
HOT_STEPS, COLD_STEPS, STUDENT_STEPS, SAMPLES = 650, 400, 250, 500
ENCODER_STEPS, LATENT_STEPS = 400, 300
PAIRED = (("dpm_solver", 10), ("ddim", 50))
"""The second is to be no better than the first, with five times the calls."""
TABLE = (
    *(("ddpm", 10), ("ddpm", 50), ("ddpm", 1000)),
    *(("ddim", 10), ("ddim", 50), ("ddim", 1000)),
    *(("dpm_solver", 10), ("dpm_solver", 50), ("dpm_solver", 1000)),
)
SEEDS = 3
FEW: dict[str, tuple[str, dict[str, Any]]] = {
    "teacher, DDIM, 50 steps": ("teacher", {"sampler": "ddim", "num_steps": 50}),
    "teacher, DDIM, 1 step": ("teacher", {"sampler": "ddim", "num_steps": 1}),
    "student, 1 step": ("student", {"num_steps": 1}),
    "student, 2 steps": ("student", {"num_steps": 2}),
}
"""Rows of the table of the student: whose they are, and how they are made."""

console = Console(highlight=False, soft_wrap=True)


def run(output: Path, steps: int | None = None, number: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Train the models below `output`, show what they do; returns what is added to report.json."""
    started = time.time()
    logging.disable_progress_bar()
    number = SAMPLES if number is None else number
    hot_dir, cold_dir, student_dir = output / "digits", output / "digits-blur", output / "digits-student"
    encoder_dir, latent_dir = output / "digits-autoencoder", output / "digits-latent"
    train(hot_dir, HOT, HOT_STEPS if steps is None else steps, seed)
    train(cold_dir, COLD, COLD_STEPS if steps is None else steps, seed)
    train(student_dir, [*STUDENT, "--teacher", str(hot_dir)], STUDENT_STEPS if steps is None else steps, seed)
    train(encoder_dir, [], ENCODER_STEPS if steps is None else steps, seed, "autoencoder")
    latent_steps = LATENT_STEPS if steps is None else steps
    train(latent_dir, [*LATENT, "--autoencoder", str(encoder_dir)], latent_steps, seed)
    splits = digits()
    classifier = train_classifier(splits.train)
    assert splits.validation.labels is not None
    accuracy = classifier.accuracy(splits.validation.images, splits.validation.labels)
    hot, cold = ImagePipeline.from_pretrained(hot_dir), ImagePipeline.from_pretrained(cold_dir)

    show_images(hot, hot_dir, seed)
    rows, paired = measure(hot, splits, classifier, number, seed)
    print_table(rows, accuracy, number)
    print_pairs(paired)
    bound = bits_per_dim(hot, splits.validation, terms=64, seed=seed)
    console.print(f"\n[bold]likelihood[/]  {describe_bound(bound)}; levels drawn evenly: {math.log2(17):.2f}")
    few = show_student(hot, ImagePipeline.from_pretrained(student_dir), splits, classifier, number, student_dir, seed)
    latent = show_latent(ImagePipeline.from_pretrained(latent_dir), splits, classifier, number, latent_dir, seed)
    restored = show_cold(cold, splits, classifier, cold_dir, seed)
    made = show_made(cold, splits, classifier, number, cold_dir, seed)
    shown = {
        "samples": {name: row.to_dict() for name, row in rows.items()},
        "paired": paired,
        "bound": bound,
        "student": few,
        "latent": latent,
        "restorations": restored,
        "cold_samples": made,
        "classifier_accuracy": accuracy,
        "demo_seconds": time.time() - started,
    }
    report = json.loads((hot_dir / "report.json").read_text(encoding="utf-8"))
    write_json(hot_dir / "report.json", {**report, **shown})
    console.print(f"\n{shown['demo_seconds']:.0f} s in all; every figure  {hot_dir / 'report.json'}")
    console.print(f"Go on: udm image generate {hot_dir} --label 3 -o threes.png, udm image evaluate {hot_dir}")
    return shown


def train(output: Path, options: list[str], steps: int, seed: int, command: str = "train") -> None:
    """One training run, unless a finished one is there already; one that was stopped or killed is resumed.

    command: of `udm image`, "train" or "autoencoder".
    """
    if is_finished(output):
        console.print(f"\n[bold]model[/]  {output} is there already; remove the folder to train again")
        return
    arguments = ["--output", str(output), *options, "--max_steps", str(steps), "--seed", str(seed)]
    arguments += ["--report_to", "none", "--eval_strategy", "no"]  # so few steps do not overtrain
    arguments += ["--resume"] if is_begun(output) else []
    console.print(f"\n[bold]training[/]  udm image {command} {' '.join(arguments)}", markup=True)
    if command == "train":
        end(train_image(*parse(arguments)), and_signals=True)
    else:
        end(train_autoencoder(*parse_autoencoder(arguments)), and_signals=True)


def show_images(pipe: ImagePipeline, folder: Path, seed: int) -> None:
    """grid.png: a row of samples for each class. strip.png: noise becoming digits, one of each class."""
    classes = pipe.denoiser.config.num_classes
    labels = torch.arange(classes).repeat_interleave(classes)
    save_grid(folder / "grid.png", pipe.generate(len(labels), labels, seed=seed), classes)
    made: Any = pipe.generate(classes, "all", sampler="ddpm", num_steps=50, seed=seed, output_trajectory=True)
    save_strip(folder / "strip.png", made.trajectory)
    console.print(f"\n[bold]images[/]  {folder / 'grid.png'}  a row for each class, DPM-Solver++, 20 steps")
    console.print(f"          {folder / 'strip.png'}  from noise to digits, DDPM, 50 steps")


def measure(
    pipe: ImagePipeline, splits: ImageSplits, classifier: Any, number: int, seed: int
) -> tuple[dict[str, Quality], list[dict[str, Any]]]:
    """The table's rows, and Frechet distances of the paired samplers on three seeds."""
    held = splits.validation
    assert held.labels is not None
    labels = held.labels[torch.arange(number) % len(held)]
    rows = reference_rows(splits, classifier, seed)
    paired: list[dict[str, Any]] = [{"seed": seed + i} for i in range(SEEDS)]
    for sampler, num_steps in TABLE:
        if num_steps > pipe.process.T:
            continue
        for i in range(SEEDS if (sampler, num_steps) in PAIRED else 1):
            images = pipe.generate(number, labels, sampler=sampler, num_steps=num_steps, seed=seed + i, progress=True)
            found = quality(images, splits, classifier, labels)
            name = f"{sampler} {num_steps}"
            if i == 0:
                rows[name] = found
            if (sampler, num_steps) in PAIRED:
                paired[i][name] = found.frechet
    return rows, paired


def print_rows(rows: dict[str, Quality], title: str) -> None:
    """A table of samples and their figures."""
    table = Table("samples", "Frechet", "nearest", "1-NN", "label", title=title, title_justify="left")
    for name, row in rows.items():
        label = "" if row.label_accuracy is None else f"{row.label_accuracy:.3f}"
        table.add_row(name, f"{row.frechet:.3f}", f"{row.nearest:.3f}", f"{row.one_nn:.3f}", label)
    console.print("")
    console.print(table)


def print_table(rows: dict[str, Quality], accuracy: float, number: int) -> None:
    """The table of samplers and references."""
    print_rows(rows, f"{number} class-conditional samples against {SAMPLES} held-out digits")
    console.print(
        f"Frechet: on 32 features of a classifier with {accuracy:.1%} on held-out digits; it varies by some "
        "0.02 from seed to seed.\nnearest: mean distance to the nearest training digit (real: of held-out digits); "
        "a memoriser has 0.\n1-NN: how often the nearest neighbour tells samples from held-out digits; 0.5 is best."
    )


def print_pairs(paired: list[dict[str, Any]]) -> None:
    """DPM-Solver++ at 10 steps beside DDIM at 50, seed by seed."""
    names = [f"{sampler} {steps}" for sampler, steps in PAIRED]
    console.print(f"\n[bold]paired seeds[/]  {names[0]} / {names[1]}, Frechet distance")
    for row in paired:
        console.print(f"  seed {row['seed']}: {row[names[0]]:.3f} / {row[names[1]]:.3f}")


def show_student(
    teacher: ImagePipeline,
    student: ImagePipeline,
    splits: ImageSplits,
    classifier: Any,
    number: int,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """few-steps.png: a row for each of `FEW`, all from the same noise; their figures."""
    pipes = {"teacher": teacher, "student": student}
    classes = teacher.denoiser.config.num_classes
    strips = [pipes[whose].generate(classes, "all", seed=seed, **how) for whose, how in FEW.values()]
    save_png(folder / "few-steps.png", tile(strips))
    assert splits.validation.labels is not None
    labels = splits.validation.labels[torch.arange(number) % len(splits.validation)]
    rows = {
        name: quality(pipes[whose].generate(number, labels, seed=seed, **how), splits, classifier, labels)
        for name, (whose, how) in FEW.items()
    }
    print_rows(rows, "a student that learned to be consistent, and its teacher")
    console.print(f"[bold]images[/]  {folder / 'few-steps.png'}  a row for each row of the table, from the same noise")
    return {name: row.to_dict() for name, row in rows.items()}


def show_latent(
    pipe: ImagePipeline, splits: ImageSplits, classifier: Any, number: int, folder: Path, seed: int
) -> dict[str, Any]:
    """latent.png: held-out digits, what the autoencoder makes of them, and a row of samples in its latents; figures."""
    held, classes = splits.validation, pipe.denoiser.config.num_classes
    assert held.labels is not None
    labels = held.labels[torch.arange(number) % len(held)]
    again = pipe.denoiser.to_images(pipe.denoiser.to_state(held.images))
    row = quality(pipe.generate(number, labels, seed=seed), splits, classifier, labels)
    title = f"an image model in latents of {' x '.join(map(str, pipe.denoiser.config.state_shape))}"
    print_rows({"samples in latents": row}, title)
    off = float((again - held.images).double().square().mean().sqrt())
    console.print(f"Of held-out digits, decoded again, the rms error is {off:.3f}.")
    few = slice(2 * classes)
    save_png(folder / "latent.png", tile([held.images[few], again[few], pipe.generate(2 * classes, "all", seed=seed)]))
    console.print(f"[bold]images[/]  {folder / 'latent.png'}  held-out digits, decoded ones, samples")
    return {**row.to_dict(), "decoded_rmse": off}


def show_made(
    pipe: ImagePipeline, splits: ImageSplits, classifier: Any, number: int, folder: Path, seed: int
) -> dict[str, Any]:
    """made.png: digits of the cold model's own, from blurred ones that it draws; how they came to be; their figures."""
    made: Any = pipe.generate(10, seed=seed, output_trajectory=True)
    save_strip(folder / "made.png", made.trajectory)
    row = quality(pipe.generate(number, seed=seed), splits, classifier)
    print_rows({"blurred digits drawn, then restored": row}, "digits that the cold model makes itself")
    console.print(f"[bold]images[/]  {folder / 'made.png'}  from a drawn blur to digits")
    return row.to_dict()


def show_cold(pipe: ImagePipeline, splits: ImageSplits, classifier: Any, folder: Path, seed: int) -> dict[str, Any]:
    """restored.png: held-out digits, blurred, and restored in three ways; RMSE and Frechet distance of each."""
    clean = splits.validation.images[:12]
    degraded = pipe.degrade(clean, seed=seed)
    ways = [pipe.restore(degraded, **how) for how in RESTORATIONS.values()]
    save_png(folder / "restored.png", tile([clean, degraded, *ways]))
    figures = restorations(pipe, splits.validation, classifier, seed=seed)
    table = Table("held-out digits", "RMSE", "Frechet", title="blurred and restored", title_justify="left")
    for name, row in figures.items():
        table.add_row(name, f"{row.rmse:.4f}", f"{row.frechet:.3f}")
    console.print("")
    console.print(table)
    console.print(f"[bold]images[/]  {folder / 'restored.png'}  clean, blurred, direct, naive, improved")
    return {name: row.to_dict() for name, row in figures.items()}
