"""Latent diffusion, first half: a small autoencoder of images. The second half is `udm image train`.

    python recipes/latent_diffusion.py --data digits --output runs/autoencoder
    udm image train --data digits --autoencoder runs/autoencoder --output runs/latent
    udm image generate runs/latent --label all -n 40 -o latent.png
    python recipes/latent_diffusion.py --help      every option

The trainer is that of `udm image train`, `--data` what it is there (MNIST: the folder of its files). The image model
keeps the autoencoder in its checkpoint and decodes by itself: `ImagePipeline.from_pretrained("runs/latent")`.
Here are written the autoencoder, report.json and reconstructions.png, held-out images above what is decoded of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import torch  # noqa: E402

from continuous.autoencoders import Autoencoder, AutoencoderConfig, AutoencoderObjective  # noqa: E402
from continuous.data import load_images  # noqa: E402
from continuous.grids import save_png, tile  # noqa: E402
from continuous.train_image import DataArguments  # noqa: E402
from udm_text.training import UDMTrainer  # noqa: E402
from udm_text.training.resuming import digest_rows  # noqa: E402
from udm_text.training.runs import RunArguments, describe_best, end, evaluated_rows, keep_best, parse, prepare  # noqa: E402
from udm_text.training.runs import run as carry_out  # noqa: E402


@dataclass
class AutoencoderArguments:
    """What to train."""

    latent_channels: int = field(default=4, metadata={"help": "Channels of latents."})
    widths: str = field(default="32,64,64", metadata={"help": "Channels at each size, each half the one before."})
    regularisation: float = field(default=0.01, metadata={"help": "Weight of the nats of latents."})


DEFAULTS = {"max_steps": 1500, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256}
DEFAULTS |= {"eval_strategy": "steps", "eval_steps": 0.2, "eval_rows": 512, "save_steps": 0.5}
DEFAULTS |= {"learning_rate": 2e-3, "optim": "adamw_torch_fused"}


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and write an autoencoder."""
    kinds = (DataArguments, AutoencoderArguments, RunArguments)
    data, kind, run = parse(kinds, arguments, "latent_diffusion.py", DEFAULTS)
    with prepare(run, {"data": data, "model": kind}) as ready:
        end(ready.finished if ready.finished is not None else _train(data, kind, run, ready))


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


if __name__ == "__main__":
    main()
