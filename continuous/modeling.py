"""The x0-predictor of images, with everything a sampler must know inside its checkpoint.

`ImageConfig` holds process, schedule and prediction type, so that a model cannot be sampled with other flags than those
it was trained with; `ImageDenoiser` is the network behind `predict_x0`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from udm_text.common import choices, eval_mode, load_exactly, refuse_newer, refuse_unknown
from udm_text.devices import demand, reads_are_free

from .autoencoders import Autoencoder, AutoencoderConfig
from .degradations import per_row
from .distillation import FewSteps
from .networks import NETWORKS, network
from .processes import PREDICTIONS, ColdProcess, GaussianProcess, ImageProcess, process_from_dict
from .sampling import PRIOR_RANK, ColdPrior

CONFIG_VERSION = 1


class NonFiniteOutputError(RuntimeError):
    """What a network predicts is NaN or infinite."""


@strict
class ImageConfig(PreTrainedConfig):
    """What an image model is.

    Args:
        process (`dict`): `to_dict()` of a `GaussianProcess` or a `ColdProcess`.
        prediction (`str`): what the network predicts: "epsilon", "x0", "v" or "score"; a cold process takes "x0".
        learned_variance (`bool`): whether the network also predicts the variance of a step, by a share for each value
            between the least and the largest that is right for some data (Gaussian process only).
        image_shape (`list[int]`): channels, height, width.
        levels (`int`): values that a pixel can take, evenly spaced over [-1, 1].
        classes (`list[str]`): names of the classes; empty: not conditional. One label more means "no class".
        condition_dim (`int`): numbers of a vector that the network is told in place of a class; 0: none.
        condition_length (`int`): vectors of an image, (B, n, d), for network "cross_unet"; 0: one, (B, d).
        network (`dict`): "kind" ("mlp", "unet" or "cross_unet") and the options of that network.
        prior_rank (`int`): directions of the law of x_T that a model of a cold process holds, beside its weights, to
            generate from (`ImageDenoiser.fit_prior` sets it); 0: it holds none and restores only.
        few_steps (`dict`): of a student, how it has to be sampled: the fields of `distillation.FewSteps`; None: in any
            way.
        autoencoder (`dict`): the fields of an `AutoencoderConfig`: the model walks in latents of images, and holds the
            autoencoder beside its weights (Gaussian process only). None: in pixels.
        teacher (`str`): of a student, the name of the model that it learned from: what its card says.
        regions (`bool`): whether the network is told which pixels are corrupted, and so takes images whose other pixels
            are clean: a clock for each pixel (Gaussian process only; see `ImageObjective`).
        optimal_variance (`bool`): whether it holds, beside its weights, the best variance of a step as it was measured
            on training images (`ImagePipeline.fit_variance` sets it; Gaussian process only).
    """

    model_type = "udm-image"

    process: dict | None = None
    prediction: str = "v"
    learned_variance: bool = False
    image_shape: list[int] | None = None
    levels: int = 256
    classes: list[str] | None = None
    condition_dim: int = 0
    condition_length: int = 0
    network: dict | None = None
    prior_rank: int = 0
    few_steps: dict | None = None
    teacher: str | None = None
    autoencoder: dict | None = None
    regions: bool = False
    optimal_variance: bool = False
    udm_version: int = CONFIG_VERSION

    def __post_init__(self, **kwargs):
        refuse_unknown(kwargs, {field.name for field in dataclasses.fields(PreTrainedConfig)}, "ImageConfig")
        super().__post_init__(**kwargs)
        refuse_newer(self.udm_version, CONFIG_VERSION)
        self.classes = list(self.classes or [])
        self.image_shape = [int(n) for n in self.image_shape or (1, 8, 8)]
        self.process = dict(self.process or GaussianProcess.vp().to_dict())
        self.network = dict(self.network or {"kind": "mlp"})
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape must be channels, height and width, got {self.image_shape}")
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.network.get("kind") not in NETWORKS:
            raise ValueError(f"network must have a kind, {choices(NETWORKS)}, got {self.network.get('kind')!r}")
        if min(self.condition_dim, self.condition_length) < 0 or (self.condition_dim and self.classes):
            raise ValueError(
                "condition_dim and condition_length must be 0 or more, and a model with the first has no classes, "
                f"got {self.condition_dim}, {self.condition_length} and {len(self.classes)} classes"
            )
        if self.condition_length and (not self.condition_dim or self.network["kind"] != "cross_unet"):
            raise ValueError("condition_length needs a condition_dim and network 'cross_unet': others take one vector")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be {choices(PREDICTIONS)}, got {self.prediction!r}")
        process = self.build_process()
        process.check_learnable(self.prediction, self.learned_variance)
        if self.prior_rank < 0 or (self.prior_rank and process.starts_from_noise):
            raise ValueError(f"prior_rank must be 0, or of a cold process at least 1, got {self.prior_rank}")
        if self.few_steps is not None:
            if self.learned_variance:
                raise ValueError("few_steps does not go with learned_variance: a student learns steps, not their law")
            FewSteps.read(self.few_steps, process)
        if self.autoencoder is not None:
            self.autoencoder = AutoencoderConfig(**{**self.autoencoder, "image_shape": self.image_shape}).fields()
            if not process.starts_from_noise:
                raise ValueError("an autoencoder goes with a Gaussian process: a degradation is one of pixels")
            if self.learned_variance:
                raise ValueError("learned_variance is learned from the levels of pixels: latents have none")
            if self.few_steps is not None:
                raise ValueError("few_steps is of students, who learn from a teacher in pixels: give no autoencoder")
            if self.regions or self.optimal_variance:
                raise ValueError("regions and optimal_variance are of pixels, and an autoencoder makes latents of them")
        if self.regions and not process.starts_from_noise:
            raise ValueError("regions are a clock for each pixel, which a Gaussian process has, and this one is cold")
        if self.regions and cast(GaussianProcess, process).continuous:
            raise ValueError("regions are trained on steps 1..T: they do not go with continuous time")
        if self.optimal_variance and not process.starts_from_noise:
            raise ValueError("optimal_variance is that of the steps of a Gaussian process, and this one is cold")

    def build_process(self) -> ImageProcess:
        """The process object of this model."""
        assert self.process is not None
        with torch.device("cpu"):  # not "meta", on which from_pretrained builds a model
            return process_from_dict(self.process)

    @property
    def student(self) -> FewSteps | None:
        """How this model has to be sampled, where it is a student."""
        return None if self.few_steps is None else FewSteps(**self.few_steps)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.image_shape or (1, 8, 8)
        return channels, height, width

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is corrupted: an image, or the latents of one."""
        return self.shape if self.autoencoder is None else AutoencoderConfig(**self.autoencoder).latent_shape

    @property
    def num_classes(self) -> int:
        return len(self.classes or [])

    @property
    def conditional(self) -> bool:
        """Whether the network is told a class or a condition."""
        return bool(self.num_classes or self.condition_dim)

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of what the network is told of an image: () of a class, (d,) or (n, d) of vectors."""
        if not self.condition_dim:
            return ()
        return (self.condition_length, self.condition_dim) if self.condition_length else (self.condition_dim,)

    def withheld(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """What a network of classes or conditions is told where it is told none: (rows, *condition_shape)."""
        if self.condition_dim:
            return torch.full((rows, *self.condition_shape), torch.nan, device=device)
        return torch.full((rows,), self.num_classes, dtype=torch.int64, device=device)


class ImageDenoiser(PreTrainedModel):
    """A network asked for the clean image behind a corrupted one.

    Args:
        config: see `ImageConfig`.

    `forward` gives what the network predicts (that is what is trained), `predict_x0` the clean image.
    """

    config_class = ImageConfig
    config: ImageConfig
    base_model_prefix = "network"
    main_input_name = "xt"

    def __init__(self, config: ImageConfig):
        super().__init__(config)
        options = dict(config.network or {})
        self.network = network(
            options.pop("kind"),
            (config.state_shape[0] + config.regions, *config.state_shape[1:]),
            config.state_shape[0] * (2 if config.learned_variance else 1),
            config.num_classes + 1 if config.num_classes else 0,
            **({"condition_dim": config.condition_dim} if config.condition_dim else {}),
            **options,
        )
        self.autoencoder: Autoencoder | None = None
        if config.autoencoder is not None:
            self.autoencoder = Autoencoder(AutoencoderConfig(**config.autoencoder)).requires_grad_(False)
        self._process: ImageProcess | None = None
        if config.prior_rank:
            means, laws = (config.num_classes + 1, 2) if config.num_classes else (1, 1)
            shapes = ((means,), (laws, config.prior_rank), (laws,))
            self._hold_prior(ColdPrior(*(torch.full((*shape, *config.shape), torch.nan) for shape in shapes)))
        if config.optimal_variance:
            self.hold_variance(torch.full((2 if config.conditional else 1, self.process.T + 1), torch.nan))
        self.post_init()

    def hold_variance(self, table: Tensor) -> None:
        """Keep a table of the variance of x0 given xt beside the weights, to be saved with them.

        Args:
            table: (2, T + 1) for images of a known class (or condition) and of none; (1, T + 1) of a model that is told
                none.
        """
        shape = (2 if self.config.conditional else 1, self.process.T + 1)
        if tuple(table.shape) != shape:
            raise ValueError(f"table must be {shape}, got {tuple(table.shape)}")
        self.register_buffer("variance_of_x0", table.to(self.device, torch.float32))
        self.config.optimal_variance = True

    @property
    def variance(self) -> Tensor:
        """The table that `hold_variance` keeps, float32; ValueError where there is none."""
        if not self.config.optimal_variance:
            raise ValueError(
                "this model keeps no optimal variance: train with `udm image train --optimal_variance`, or have it "
                "measured by ImagePipeline.fit_variance(images) on those it was trained with"
            )
        table: Tensor = self.get_buffer("variance_of_x0")
        demand(~table.isnan().any(), "the optimal variance was not measured yet: call fit_variance(images)")
        return table

    def _hold_prior(self, prior: ColdPrior) -> None:
        for name, values in prior._asdict().items():
            self.register_buffer(f"prior_{name}", values)

    @property
    def prior(self) -> ColdPrior:
        """The law of x_T that is kept beside the weights of a cold model; ValueError where it keeps none."""
        if not self.config.prior_rank:
            raise ValueError(
                "this model of a cold process keeps no law of x_T to draw from: restore degraded images, or have it "
                "measured by fit_prior(images) on those it was trained with"
            )
        found = ColdPrior(*(getattr(self, f"prior_{name}") for name in ColdPrior._fields))
        demand(~found.means.isnan().any(), "the law of x_T was not measured yet: call fit_prior(images)")
        return found

    def fit_prior(self, images: Tensor, labels: Tensor | None = None, rank: int = PRIOR_RANK) -> None:
        """Measure the law of x_T on clean images and keep it beside the weights, to be saved with them.

        Args:
            images: (N, C, H, W) in [-1, 1], those of training. labels: (N,) int64 of a model with classes.
            rank: see `sampling.ColdPrior`.
        """
        if self.process.starts_from_noise:
            raise ValueError("the law of x_T of a Gaussian process is known: only a cold one has it measured")
        if tuple(images.shape[1:]) != self.config.shape:
            raise ValueError(f"images must be (N, {', '.join(map(str, self.config.shape))}), got {tuple(images.shape)}")
        cold = cast(ColdProcess, self.process)
        prior = ColdPrior.fit(cold, images, labels, self.config.num_classes, rank)
        self._hold_prior(ColdPrior(*(values.to(self.device) for values in prior)))
        self.config.prior_rank = prior.basis.shape[1]

    def hold(self, autoencoder: Autoencoder) -> None:
        """Takes over a trained autoencoder, whose weights then are part of this model's and are trained no more."""
        if self.autoencoder is None or autoencoder.config.fields() != self.config.autoencoder:
            raise ValueError(
                f"the autoencoder must be that of the configuration, {self.config.autoencoder}, got "
                f"{autoencoder.config.fields()}"
            )
        if not autoencoder.measured:
            raise ValueError("the size of the autoencoder's latents was not measured yet: call measure(images)")
        self.autoencoder.load_state_dict(autoencoder.state_dict())

    def to_state(self, images: Tensor) -> Tensor:
        """What of images is corrupted: their latents where the model has an autoencoder, else they themselves."""
        if self.autoencoder is None:
            return images
        with torch.no_grad(), eval_mode(self.autoencoder):
            return self.autoencoder.encode(images).to(images.dtype)

    def to_images(self, state: Tensor) -> Tensor:
        """The other way."""
        if self.autoencoder is None:
            return state
        with torch.no_grad(), eval_mode(self.autoencoder):
            return self.autoencoder.decode(state).to(state.dtype)

    def _init_weights(self, module: Any) -> None:
        """Networks initialise themselves; a checkpoint that lacks weights is refused."""

    def get_input_embeddings(self) -> Any:
        """None: an image model reads no tokens. transformers asks where it rounds weights."""
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers. A checkpoint whose weights are not exactly those of its config is refused."""
        return load_exactly(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @property
    def process(self) -> ImageProcess:
        """The process of the config, built once."""
        if self._process is None:
            self._process = self.config.build_process()
        return self._process

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, where it is a Gaussian one; else a ValueError."""
        if not self.process.starts_from_noise:
            raise ValueError("this needs a model of a Gaussian process, and this one is cold: use restore or generate")
        return cast(GaussianProcess, self.process)

    def label_row(self, labels: Tensor | None, rows: int) -> Tensor | None:
        """(rows,) int64 labels for the network: those given, -1 and None meaning "no class"; None without classes.

        Of a model with a condition_dim (rows, d) or (rows, n, d) float32, NaN all through a row meaning none.

        Raises:
            ValueError: labels for a model without classes, of a wrong shape, or outside -1..num_classes-1.
        """
        number = self.config.num_classes
        if not self.config.conditional:
            if labels is not None:
                raise ValueError("labels were given, and this model knows no classes")
            return None
        if labels is None:
            return self.config.withheld(rows, self.device)
        if self.config.condition_dim:
            shape = (rows, *self.config.condition_shape)
            if tuple(labels.shape) != shape or not labels.is_floating_point():
                raise ValueError(f"conditions must be {shape} float, got {tuple(labels.shape)} {labels.dtype}")
            each = labels.reshape(rows, -1)
            good = torch.isfinite(each).all(dim=1) | each.isnan().all(dim=1)
            demand(good, "conditions must be finite numbers, or NaN all through a row for none")
            return labels.to(self.device, torch.float32)
        if labels.shape != (rows,) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({rows},) int64, got {tuple(labels.shape)} {labels.dtype}")
        wrong = f"labels must lie in 0..{number - 1}, or be -1 for no class"
        demand((labels >= -1) & (labels < number), wrong, lambda: f", got {labels.unique().tolist()}")
        return torch.where(labels < 0, number, labels).to(self.device)

    def forward(self, xt: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network predicts of xt at t.

        Args:
            xt: (B, C, H, W), corrupted images, or latents of such.
            t: (B,) int64 in 0..T, in continuous time also float64 in [0, 1]; of a model with regions (B, 1 or C, H, W)
                as well, 0 where pixels are clean and one and the same elsewhere in a row.
            labels: (B,) int64, `num_classes` for no class; conditions (B, d) or (B, n, d), NaN for none; None where the
                model is told neither.

        Returns:
            (B, C, H, W), by `config.prediction`; (B, 2C, H, W) with a learned variance, whose share in [0, 1] between
            least (0) and largest (1) is `variance_share` of the second half.
        """
        scaled, row = self.process.scale_input(xt, t), t
        if t.ndim > 1 and not self.config.regions:
            raise ValueError("a t for each pixel needs a model that was trained with regions; give t as (B,)")
        if self.config.regions:
            where = per_row(t > 0, scaled)[:, :1].expand(len(xt), 1, *xt.shape[2:])
            scaled, row = torch.cat((scaled, where), dim=1), t.reshape(len(t), -1).amax(dim=1)
        output = self.network(scaled.to(self.dtype), self.process.ratio(row), labels)
        model_output, *share = output.split(self.config.state_shape[0], dim=1)
        model_output = self.process.scale_output(self.config.prediction, model_output, t)
        return torch.cat((model_output, *share), dim=1) if share else model_output

    def split_output(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is predicted of x0, noise or v, and the share of the variance, in float32 or more."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if not self.config.learned_variance:
            return output, None
        model_output, share = output.chunk(2, dim=1)
        return model_output, variance_share(share)

    def to_x0(self, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat out of what the network gave, in float32 or more. xt at t = 0 is its own x0."""
        xt = xt.to(torch.promote_types(xt.dtype, torch.float32))
        # in float64: b / a amplifies rounding where a_t is small
        x0 = self.process.to_x0(self.config.prediction, model_output.double(), xt.double(), t).to(xt.dtype)
        return torch.where(per_row(t == 0, xt, torch.bool), xt, x0)

    def predict(self, xt: Tensor, t: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(x0_hat, share of the variance or None), as `predict_x0`."""
        model_output, share = self.split_output(self(xt, t, self.label_row(labels, len(xt))))
        x0 = self.to_x0(model_output, xt, t)
        finite = torch.isfinite(x0) if share is None else torch.isfinite(x0) & torch.isfinite(share)
        if not reads_are_free(x0.device):
            return torch.where(finite, x0, torch.nan), share
        if not finite.all():
            broken = ~finite.flatten(1).all(dim=1)
            raise NonFiniteOutputError(
                f"what the network predicts is not finite at t = {t[broken.to(t.device)][0].max().item():g}, in "
                f"{int(broken.sum())} of {len(xt)} images, so nothing is drawn: its weights are damaged, or too large "
                f"for {self.dtype}"
            )
        return x0, share

    def predict_x0(self, xt: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x0_hat (B, C, H, W), float32, or float64 where xt is.

        Args:
            xt: (B, C, H, W). t: (B,) int64 in 0..T, or as `forward` takes it: clean pixels are their own x0_hat.
            labels: (B,) int64 classes, -1 for none; None: none at all.

        Raises:
            NonFiniteOutputError: a value is NaN or infinite. On an accelerator, which is not kept waiting, NaN stands
                there, and an `ImagePipeline` raises when the images are made.
        """
        return self.predict(xt, t, labels)[0]


def variance_share(raw: Tensor) -> Tensor:
    """The network's number for the variance as a share: 0 at -1, 1 at 1, free beyond (Nichol and Dhariwal, eq. 15)."""
    return (raw + 1.0) / 2.0
