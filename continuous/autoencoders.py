"""A small autoencoder of images, in whose latents an image model may walk: latent diffusion.

    images (B, C, H, W) in [-1, 1]  -> encode ->  latents (B, channels, H / f, W / f) of unit rms  -> decode ->  images

It is trained first, as a variational autoencoder: the squared error of an image and `regularisation` times the nats
KL(N(mean, variance) || N(0, 1)) of its latents, which keeps them close together and smooth. Then its latents are
shifted and divided, channel by channel, to mean 0 and variance 1 over images, which is the size that the schedules of
noise are made for, and an image model learns their law while the autoencoder stays as it is.

Sources: Kingma and Welling (1312.6114); Rombach et al., latent diffusion (2112.10752).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from udm_text.common import check_whole, eval_mode, load_exactly, watched
from udm_text.randomness import RowRandom, step_random

from .data import check_images, collate_images


@strict
class AutoencoderConfig(PreTrainedConfig):
    """What an autoencoder is.

    Args:
        image_shape (`list[int]`): channels, height and width of images. latent_channels (`int`): those of latents.
        widths (`list[int]`): channels of the convolutions at each size, from the full one down; each halves the one
            before, so height and width must be divisible by 2^(len(widths) - 1).
    """

    model_type = "udm-autoencoder"

    image_shape: list[int] | None = None
    latent_channels: int = 4
    widths: list[int] | None = None

    _fields: ClassVar[tuple[str, ...]] = ("image_shape", "latent_channels", "widths")

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.image_shape = [int(n) for n in self.image_shape or (1, 8, 8)]
        self.widths = [int(n) for n in self.widths or (32, 64, 64)]
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape must be channels, height and width, got {self.image_shape}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be numbers of channels, got {self.widths}")
        check_whole(1, latent_channels=self.latent_channels)
        if any(side % self.factor for side in self.image_shape[1:]):
            raise ValueError(
                f"an autoencoder of {len(self.widths)} widths needs a height and width divisible by {self.factor}, got "
                f"{self.image_shape[1]} x {self.image_shape[2]}"
            )

    @property
    def factor(self) -> int:
        """Pixels of an image beside each other for each latent."""
        return 2 ** (len(self.widths or ()) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of latents."""
        _, height, width = self.image_shape or (1, 8, 8)
        return self.latent_channels, height // self.factor, width // self.factor

    def fields(self) -> dict[str, Any]:
        """What says what it is, JSON-ready: kept in the configuration of an image model."""
        return {name: getattr(self, name) for name in self._fields}


class Autoencoder(PreTrainedModel):
    """Images to latents of unit rms, and back.

    Args:
        config: see `AutoencoderConfig`.

    `forward` gives what is trained on: mean and log variance of the latents as the encoder gives them.
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig
    base_model_prefix = "encoder"
    main_input_name = "images"

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        channels = (config.image_shape or [1])[0]
        widths, latent = config.widths or [32], config.latent_channels
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), _Block(widths[0])]
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1), _Block(widths[-1])]
        for wide, narrow in zip(widths, widths[1:], strict=False):
            down += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), _Block(narrow)]
        for narrow, wide in zip(widths[::-1], widths[-2::-1], strict=False):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(narrow, wide, 3, padding=1), _Block(wide)]
        down.append(nn.Conv2d(widths[-1], 2 * latent, 3, padding=1))
        up.append(nn.Conv2d(widths[0], channels, 3, padding=1))
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.register_buffer("shift", torch.zeros(latent, 1, 1))
        self.register_buffer("size", torch.full((latent, 1, 1), math.nan))
        self.post_init()

    shift: Tensor
    size: Tensor

    def _init_weights(self, module: Any) -> None:
        """The parts initialise themselves; a checkpoint that lacks weights is refused."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers. A checkpoint whose weights are not exactly those of its config is refused."""
        return load_exactly(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) of latents, (B, channels, H / f, W / f), before they are brought to unit rms."""
        mean, log_variance = self.encoder(images.to(self.dtype)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 10.0)

    @property
    def measured(self) -> bool:
        """Whether the size of latents was measured (`measure`)."""
        return not bool(self.size.isnan().any())

    @torch.no_grad()
    def measure(self, images: Tensor, batch_size: int = 512) -> None:
        """Mean and deviation of each channel of the latents of images (N, C, H, W), kept beside the weights."""
        check_images(images, "images", tuple(self.config.image_shape or ()))
        if len(images) < 2:
            raise ValueError(f"the size of latents needs at least 2 images, got {len(images)}")
        with eval_mode(self):
            found = torch.cat([self(part.to(self.device))[0].double() for part in images.split(batch_size)])
        self.shift.copy_(found.mean((0, 2, 3)).view(self.shift.shape))
        self.size.copy_(found.std((0, 2, 3)).clamp(min=1e-6).view(self.size.shape))

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, channels, H / f, W / f), each channel of mean 0 and variance 1 over images."""
        return (self(images)[0] - self.shift) / self.size

    def decode(self, latents: Tensor) -> Tensor:
        """The other way; what comes out may lie a little outside [-1, 1]."""
        return self.decoder(latents.to(self.dtype) * self.size + self.shift)


class _Block(nn.Module):
    """x + two convolutions of its normalised activations."""

    def __init__(self, width: int):
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AutoencoderObjective:
    """An `Objective` (see udm_text/training/trainer.py) for `Autoencoder`: rows of `ImageRows`.

    A row's term is its squared error and `regularisation` times the nats of its latents; the items are pixels' values.

    Args:
        regularisation: >= 0. eval_batch_size: rows of a forward pass in an evaluation.
    """

    collate = staticmethod(collate_images)

    def __init__(self, *, regularisation: float = 0.01, eval_batch_size: int = 256):
        if not (math.isfinite(regularisation) and regularisation >= 0):
            raise ValueError(f"regularisation must be a number >= 0, got {regularisation}")
        self.regularisation, self.eval_batch_size = regularisation, eval_batch_size

    def begin(self) -> None:
        """Nothing was measured on the weights before."""

    def lengths(self, dataset: Any) -> None:
        """Rows are all alike."""

    def num_items(self, inputs: dict[str, Tensor]) -> int:
        """Pixels' values of the batch."""
        return inputs["images"].numel()

    def row_terms(
        self, model: Any, inputs: dict[str, Tensor], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) squared error of the image that a draw of its latents gives, and the weighted nats of these."""
        return self.terms(model, inputs["images"], step_random(seed, step, row_index.to(inputs["images"].device)))

    def terms(self, model: Any, images: Tensor, random: RowRandom) -> Tensor:
        """(B,), as `row_terms`."""
        mean, log_variance = model(images)
        noise = random.normal(math.prod(mean.shape[1:])).view(mean.shape).to(mean)
        back = getattr(model, "module", model).decoder(mean + (0.5 * log_variance).exp() * noise)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        error = (back - images).square().flatten(1).sum(1)
        return error + self.regularisation * nats.flatten(1).sum(1)

    @torch.no_grad()
    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """The loss on held-out rows by one fixed seed, and the rms of the difference to images decoded from means."""
        model, count = trainer.model, len(dataset)
        mine = trainer.own_rows(count)
        totals, off = torch.zeros(2, len(mine), dtype=torch.float64)
        with eval_mode(model):
            for start in watched(range(0, len(mine), self.eval_batch_size), "held-out images"):
                part = mine[start : start + self.eval_batch_size]
                images = collate_images(dataset.__getitems__(part))["images"].to(trainer.args.device)
                random = step_random(0, 0, torch.tensor(part, device=images.device))
                rows = slice(start, start + len(part))
                totals[rows] = self.terms(model, images, random).double().cpu() / images[0].numel()
                own = getattr(model, "module", model)
                off[rows] = (own.decoder(own(images)[0]) - images).double().square().flatten(1).mean(1).cpu()
        loss, square = (trainer.gather_rows(x, mine, count) for x in (totals, off))
        return {"loss": float(loss.mean()), "reconstruction_rmse": float(square.mean().sqrt())}
