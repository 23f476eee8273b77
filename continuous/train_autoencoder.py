"""The story of a training run on an autoencoder of images, whose latents an image model may walk in.

Written are the autoencoder, report.json and reconstructions.png, held-out images above what is decoded of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from udm_text.training import UDMTrainer
from udm_text.training.resuming import digest_rows
from udm_text.training.runs import RunArguments, describe_best, end, evaluated_rows, keep_best, prepare
from udm_text.training.runs import parse as parse_run
from udm_text.training.runs import run as carry_out

from .autoencoders import Autoencoder, AutoencoderConfig, AutoencoderObjective
from .data import load_images
from .grids import save_png, tile
from .train_image import DataArguments


@dataclass
class AutoencoderArguments:
    """What to train."""

    latent_channels: int = field(default=4, metadata={"help": "Channels of latents."})
    widths: str = field(default="32,64,64", metadata={"help": "Channels at each size, each half the one before."})
    regularisation: float = field(default=0.01, metadata={"help": "Weight of the nats of latents."})


DEFAULTS: dict[str, Any] = {"max_steps": 1500, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256}
DEFAULTS |= {"eval_strategy": "steps", "eval_steps": 0.2, "eval_rows": 512, "save_steps": 0.5}
DEFAULTS |= {"learning_rate": 2e-3, "optim": "adamw_torch_fused"}

Arguments = tuple[DataArguments, AutoencoderArguments, RunArguments]


def parse(arguments: list[str] | None = None) -> Arguments:
    """The options of `udm image autoencoder`; None: those of the process."""
    kinds = (DataArguments, AutoencoderArguments, RunArguments)
    found: Any = parse_run(kinds, arguments, "udm image autoencoder", DEFAULTS)
    return found


def train_autoencoder(data: DataArguments, kind: AutoencoderArguments, run: RunArguments) -> dict[str, Any]:
    """Train, measure and write an autoencoder to `run.output_dir`; returns what report.json holds."""
    with prepare(run, {"data": data, "model": kind}) as ready:
        return ready.finished if ready.finished is not None else _train(data, kind, run, ready)


def _train(data: DataArguments, kind: AutoencoderArguments, run: RunArguments, ready: Any) -> dict[str, Any]:
    with ready.state.main_process_first():
        splits = load_images(
            data.data, size=data.image_size, channels=data.channels, validation_share=data.validation_share
        )
    train, held = splits.train, splits.validation
    config = AutoencoderConfig(
        image_shape=list(train.shape),
        latent_channels=kind.latent_channels,
        widths=[int(width) for width in kind.widths.split(",")],
    )
    model = Autoencoder(config)
    objective = AutoencoderObjective(regularisation=kind.regularisation, eval_batch_size=run.per_device_eval_batch_size)
    some = held.take(torch.tensor(evaluated_rows(run, len(held))))
    trainer = UDMTrainer(model, run, objective=objective, train_dataset=train, eval_dataset=some)
    best = keep_best(trainer, run, ready)
    latent = " x ".join(map(str, config.latent_shape))
    ready.say(f"{len(train)} images {' x '.join(map(str, train.shape))} into latents {latent}, {len(held)} held out")

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        # The weights that were written hold no size of latents yet.
        trained = trainer.accelerator.unwrap_model(trainer.model)
        with trainer.averaged_weights():
            trained.measure(train.images[:10_000].to(run.device))
            figures = {name: value for name, value in objective.evaluate(trainer, held).items()}
            if ready.state.is_main_process:
                trained.save_pretrained(ready.output)
        if ready.state.is_main_process:
            written = Autoencoder.from_pretrained(ready.output)
            shown = held.images[:12]
            with torch.no_grad():
                save_png(ready.output / "reconstructions.png", tile([shown, written.decode(written.encode(shown))]))
            ready.say(f"held-out images come back with an rms error of {figures['reconstruction_rmse']:.4f}")
        return {"validation": figures, **describe_best(best, report["steps"], ready)}

    facts = {"data": data.data, "data_arguments": vars(data), "train_rows": len(train), "held_out_rows": len(held)}
    digests = {"training": digest_rows([train.images.numpy()]), "held-out": digest_rows([held.images.numpy()])}
    return carry_out(trainer, ready, facts, measure, rows=digests)


def main(arguments: list[str] | None = None) -> None:
    end(train_autoencoder(*parse(arguments)))
