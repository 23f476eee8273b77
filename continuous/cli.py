"""`udm image`: train, generate, restore, edit, invert, interpolate, evaluate, export, demo.

Heavy imports wait inside them.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Images by hot and cold diffusion: train, generate, restore, evaluate.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, or a name on the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Label = Annotated[
    str | None, typer.Option(help="A class by name, or all: each in turn; or a condition as JSON; default: none.")
]
Seed = Annotated[int | None, typer.Option(help="Reproduces the result.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
Steps = Annotated[int | None, typer.Option("--num-steps", min=1, help="Steps of an image, each a network call.")]
Page = Annotated[
    Path | None, typer.Option("--output", "-o", help="An image to write: before and after below each other.")
]
Singles = Annotated[
    Path | None, typer.Option(help="A folder for the images that are made, each a PNG named as its file.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train: udm image train --output DIR --data DATA; takes every field of TrainingArguments, see --help."""
    from .train_image import main as run

    run(context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def autoencoder(context: typer.Context) -> None:
    """Train an autoencoder, whose latents `train --autoencoder` walks in: udm image autoencoder --output DIR."""
    from .train_autoencoder import main as run

    run(context.args)


@app.command()
def generate(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write: all of them in a grid.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images.")] = 64,
    label: Label = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, ddpm, dpm_solver (default), dpm_solver_3, heun, adaptive, ddpm_large, ddpm_learned, "
            "ddpm_optimal, reverse_sde, baseline; of cold models improved (default) or naive."
        ),
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(
            "--num-steps", min=1, help="Steps of an image, each a network call; default: 20, of a student its own."
        ),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="even, quadratic or snr; default: what suits the sampler.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Share of fresh noise of ddim (1: ddpm) and reverse_sde (0: no noise).")
    ] = None,
    law: Annotated[
        str | None,
        typer.Option(help="What ddpm_learned and ddpm_optimal draw x0_hat from: normal (default) or laplace."),
    ] = None,
    rtol: Annotated[
        float | None,
        typer.Option(help="Of adaptive, which takes as many steps as it needs: what a step may be off (0.05)."),
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1: none.")] = 1.0,
    jitter: Annotated[
        float, typer.Option(min=0.0, help="Of cold models: deviation of noise on what they start from.")
    ] = 0.0,
    clip: Annotated[bool, typer.Option(help="Hold predictions inside the range of images.")] = True,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 512,
    strip: Annotated[Path | None, typer.Option(help="Also write how the first ones came to be.")] = None,
    x0_strip: Annotated[
        Path | None, typer.Option(help="Also write what the network took the first ones for at each step, x0_hat.")
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Images in a row of the grid.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """New images: from noise, or of a cold model from degraded images that it draws itself."""
    from .grids import check_target, save_grid, save_strip

    check_target(output)
    strips = {"trajectory": strip, "predictions": x0_strip}
    for name, path in strips.items():
        if path is not None:
            check_target(path, output, *(other for key, other in strips.items() if other is not None and key != name))
    if sampler == "adaptive" and (strip is not None or x0_strip is not None):
        raise ValueError("strips do not go with sampler 'adaptive', whose images have steps of their own")
    pipe = _load(model, device, shown=True)
    seed = secrets.randbits(63) if seed is None else seed
    how: dict[str, Any] = {"sampler": sampler, "num_steps": num_steps, "spacing": spacing, "eta": eta, "clip": clip}
    how |= {"jitter": jitter, "law": law, "rtol": rtol}
    how |= {"guidance_scale": guidance_scale, "seed": seed}
    images = pipe.generate(number, label, batch_size=batch_size, progress=not quiet, **how)
    save_grid(output, images, columns)
    print(output)
    if strip is not None or x0_strip is not None:
        first = pipe.generate(min(number, _SHOWN), label, output_trajectory=True, **how)  # the same images once more
        for name, path in strips.items():
            if path is not None:
                save_strip(path, first[name])
                print(path)


@app.command()
def restore(
    model: Model,
    image: Annotated[list[Path], typer.Argument(help="Degraded images (any image file of the model's size).")],
    output: Page = None,
    output_dir: Singles = None,
    t: Annotated[
        int | None,
        typer.Option(
            "--t", min=1, help="How far they are degraded; default: as far as can be, with --degrade half way."
        ),
    ] = None,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="The files are clean: degrade them first, to try it.")
    ] = False,
    label: Label = None,
    num_steps: Steps = None,
    churn: Annotated[float, typer.Option(min=0.0, max=1.0, help="0: improved sampling, 1: naive.")] = 0.0,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Restore degraded images, by a model of a cold process (or take the noise out of noisy ones)."""
    singles = _targets(output, output_dir, image)
    pipe = _load(model, device, shown=True)
    found = _read(pipe, image)
    rows = [found]
    if degrade:
        if t is None:
            t = (pipe.process.T + 1) // 2
            print(f"note: degraded to t = {t} of {pipe.process.T}; --t takes another", file=sys.stderr)
        found = pipe.degrade(found, t, seed=seed)
        rows.append(found)
    restored = pipe.restore(found, t, label=label, num_steps=num_steps, churn=churn, seed=seed, progress=not quiet)
    _write(output, [*rows, restored], singles)


@app.command()
def edit(
    model: Model,
    image: Annotated[list[Path], typer.Argument(help="Images of which a part is to be made anew.")],
    mask: Annotated[
        Path,
        typer.Option(help="An image of the same height and width: white where pixels may change, black elsewhere."),
    ],
    output: Page = None,
    output_dir: Singles = None,
    label: Label = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="How known pixels stand on the way: clean, of models trained with regions (their default), or "
            "replace, put back at every step with the noise of its time."
        ),
    ] = None,
    num_steps: Annotated[int, typer.Option("--num-steps", min=1, help="Steps of an image.")] = 100,
    start: Annotated[
        int | None,
        typer.Option(min=1, help="Begin at this t, from the image itself: a smaller one stays nearer to it."),
    ] = None,
    eta: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of fresh noise: 1 is DDPM, 0 DDIM.")] = 1.0,
    corrections: Annotated[
        int, typer.Option(min=0, help="Langevin steps after each step: what is made fits what is known better.")
    ] = 0,
    step_size: Annotated[float | None, typer.Option(help="Of corrections, in (0, 2) (0.2).")] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of corrections: below 1 nearer to what is likeliest.")
    ] = 1.0,
    guidance_scale: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1: none.")] = 1.0,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make a part of images anew, and keep the rest: inpainting, by a model of a Gaussian process."""
    from .control import STEP_SIZE

    singles = _targets(output, output_dir, image, mask)
    pipe = _load(model, device, shown=True)
    found, editable = _read(pipe, image), _read_mask(pipe, mask)
    edited = pipe.edit(
        found,
        editable,
        label=label,
        start=start,
        num_steps=num_steps,
        eta=eta,
        corrections=corrections,
        step_size=STEP_SIZE if step_size is None else step_size,
        temperature=temperature,
        mode=mode,
        guidance_scale=guidance_scale,
        seed=seed,
        progress=not quiet,
    )
    _write(output, [found, found.where(~editable, 0.0), edited], singles)


@app.command()
def invert(
    model: Model,
    image: Annotated[list[Path], typer.Argument(help="Image files of the model's size.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The image to write: given, their noise, what it makes again.")
    ],
    label: Label = None,
    to: Annotated[str | None, typer.Option(help="Make images of this class out of it; default: --label.")] = None,
    noise: Annotated[Path | None, typer.Option(help="Also write the noise, as `noise` of a .safetensors file.")] = None,
    num_steps: Steps = 50,
    device: Device = None,
) -> None:
    """The noise that the model would have made these images from (DDIM inversion), and what it makes of it again."""
    from safetensors.torch import save_file

    from udm_text.common import written_whole

    from .grids import check_target, save_png, tile

    check_target(output, *image)
    if noise is not None and (noise.suffix != ".safetensors" or not noise.absolute().parent.is_dir()):
        raise ValueError(f"noise must be a .safetensors file in an existing directory, got {str(noise)!r}")
    pipe = _load(model, device, shown=True)
    found = _read(pipe, image)
    hidden = pipe.encode(found, label, num_steps=num_steps)
    again = pipe.decode(hidden, label if to is None else to, num_steps=num_steps)
    save_png(output, tile([found, hidden / 3, again]))
    print(output)
    if noise is not None:
        with written_whole(noise) as part:
            save_file({"noise": hidden}, part)
        print(noise)
    off = (again - found).double().square().mean().sqrt()
    print(f"note: made again, they are off by an RMSE of {off:.4f} of the range [-1, 1]", file=sys.stderr)


@app.command()
def interpolate(
    model: Model,
    first: Annotated[Path, typer.Argument(help="An image file of the model's size.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write: the way from one to the other.")],
    number: Annotated[int, typer.Option("--number", "-n", min=2, help="Images of the way, both ends among them.")] = 8,
    label: Label = None,
    num_steps: Steps = 50,
    device: Device = None,
) -> None:
    """The way from one image to another through the noise of both (DDIM inversion, and a great circle)."""
    from .grids import check_target, save_grid

    check_target(output, first, second)
    pipe = _load(model, device, shown=True)
    found = _read(pipe, [first, second])
    way = pipe.interpolate(found[:1], found[1:], number, label, num_steps=num_steps)
    save_grid(output, way[0], number)
    print(output)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str | None, typer.Option(help="Images; default: those the model was trained with.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Of --data: bring the shorter side to it; default: as in training.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of --data: 1 or 3; default: as in training.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    num_steps: Annotated[
        int | None, typer.Option("--num-steps", min=1, help="Steps of a sample; default: as in generate.")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1: none.")] = 1.0,
    number: Annotated[
        int | None, typer.Option("--number", "-n", min=2, help="Samples; default: as many as held out.")
    ] = None,
    terms: Annotated[
        int, typer.Option(min=0, help="Terms of the likelihood bound of a held-out image; 0: no bound.")
    ] = 64,
    variance: Annotated[
        str | None,
        typer.Option(
            help="Of the bound's steps: fixed, learned or optimal (measured on training images); default: as learned."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of samples and noise.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """How good samples are, beside real images and a memoriser, and the bound; of a cold model restorations, too."""
    from udm_text.common import watching
    from udm_text.training.callbacks import terminal_bar

    from .evaluation import describe_figures, describe_work, evaluate_model
    from .train_image import load_splits_of

    pipe = _load(model, device)
    splits, name = load_splits_of(model, data, image_size, channels)
    for note in splits.notes:
        print(f"note: {note}", file=sys.stderr)
    amount: dict[str, Any] = {"num_steps": num_steps, "number": number, "terms": terms, "variance": variance}
    print(f"note: {describe_work(pipe, splits, **amount)}", file=sys.stderr, flush=True)
    with watching(terminal_bar):
        figures = evaluate_model(
            pipe,
            splits,
            sampler=sampler,
            guidance_scale=guidance_scale,
            seed=seed,
            progress=sys.stderr.isatty(),
            **amount,
        )
    print(json.dumps({"model": model, "data": name, **figures}) if as_json else describe_figures(figures))


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet, or empty.")],
    int8: Annotated[bool, typer.Option("--int8", help="Weights of 8 bits (torchao); the only kind of export.")] = False,
) -> None:
    """Write a model with weights of 8 bits, which everything reads as any other."""
    from udm_text.common import check_new_folder, check_place

    if not int8:
        raise ValueError("give --int8: a model is a folder already, and this is what else it can be written as")
    check_new_folder(output)
    check_place(model)
    from .pipeline import save_int8

    save_int8(model, output)
    print(f'{output}: ImagePipeline.from_pretrained("{output}")')


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the models and images go.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; fewer for a quick look.")] = None,
    number: Annotated[
        int | None, typer.Option(min=20, help="Samples of each row of the table; fewer for a quick look.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and samples.")] = 0,
) -> None:
    """Train on digits, then sample, restore and measure. A few minutes on two cores."""
    from .demo import run

    run(output, steps, number, seed)


def _load(model: str, device: str | None, shown: bool = False) -> Any:
    """The pipeline of a model, without the bars of what takes no time; `shown`: of images that a PNG can show."""
    from transformers.utils import logging

    from udm_text.common import check_place

    from .pipeline import ImagePipeline, check_device

    check_device(device)
    check_place(model)
    logging.disable_progress_bar()
    pipe = ImagePipeline.from_pretrained(model, device)
    if shown and pipe.shape[0] not in (1, 3):
        raise ValueError(f"a PNG shows 1 or 3 channels, and {model} makes images of {pipe.shape[0]}")
    return pipe


def _targets(output: Path | None, output_dir: Path | None, files: list[Path], mask: Path | None = None) -> list[Path]:
    """Where single images go; raises before anything is computed for them."""
    from .grids import check_target, check_targets

    if output is None and output_dir is None:
        raise ValueError("give --output FILE.png, --output-dir DIR or both: where the images go")
    if output is not None:
        check_target(output, *files, *([] if mask is None else [mask]))
    singles = [] if output_dir is None else check_targets(output_dir, files)
    if mask is not None and mask.absolute() in [path.absolute() for path in singles]:
        raise ValueError(f"an image would take the place of the mask {mask}: give another --output-dir")
    return singles


def _write(output: Path | None, rows: list[Any], singles: list[Path]) -> None:
    """Rows of images below each other, and those of the last row one by one."""
    from .data import to_bytes
    from .grids import save_png, tile

    if output is not None:
        save_png(output, tile(rows))
        print(output)
    for path, one in zip(singles, rows[-1], strict=False):
        path.parent.mkdir(exist_ok=True)
        save_png(path, to_bytes(one))
        print(path)


def _read_mask(pipe: Any, file: Path) -> Any:
    """(1, H, W) bool, true where a file is nearer to white than to black."""
    from .data import read_image

    found = read_image(file, str(file), channels=1)
    if tuple(found.shape[1:]) != pipe.shape[1:]:
        wanted, given = (" x ".join(map(str, shape[1:])) for shape in (pipe.shape, found.shape))
        raise ValueError(f"mask must be {wanted}, as the model's images are, got {given}")
    editable = found > 0
    if not bool(editable.any()):
        raise ValueError(f"mask {file} is black all over: make those pixels white that may change")
    return editable


def _read(pipe: Any, files: list[Path]) -> Any:
    """Image files as (N, C, H, W) in [-1, 1]; ValueError where they are not of the model's shape."""
    from .data import read_image, stack_images

    channels = pipe.shape[0]
    size = f"the model takes images of {' x '.join(map(str, pipe.shape[1:]))}"
    found = stack_images(((str(path), read_image(path, str(path), channels=channels)) for path in files), size)
    if tuple(found.shape[1:]) != pipe.shape:
        raise ValueError(
            f"the model takes images of {' x '.join(map(str, pipe.shape))}, and these are "
            f"{' x '.join(map(str, found.shape[1:]))}"
        )
    return found


_SHOWN = 8
"""Images of a strip."""
