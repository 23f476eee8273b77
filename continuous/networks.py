"""What reads a corrupted image: a small fast network of ours, and diffusers' U-Net.

A network is called as network(xt, ratio, labels): xt (B, C, H, W), ratio (B,) = t/T in [0, 1], labels (B,) int64; of a
model that is conditioned on vectors (B, d) or (B, n, d) float, NaN in rows without a condition; None where the model
knows neither. It gives (B, channels_out, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 32


def waves(ratio: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 64): sines and cosines of ratio = t/T, at angles up to 1000 radians.

    Neighbouring t of 1000 steps differ by one radian at the fastest.
    """
    frequencies = torch.linspace(0, math.log(1000.0), FREQUENCIES, device=ratio.device).exp()
    angles = ratio.to(torch.float32)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)


class TimeEmbedding(nn.Module):
    """What a network is told of t/T: (B,) -> (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, ratio: Tensor, dtype: torch.dtype) -> Tensor:
        return self.layers(waves(ratio, dtype))


class FilmBlock(nn.Module):
    """A residual two-layer block whose input is scaled and shifted, and whose output is scaled, by a condition."""

    def __init__(self, width: int, condition: int, expansion: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(condition, 3 * width)
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        for start_at_zero in (self.film, self.outer):
            nn.init.zeros_(start_at_zero.weight)
            nn.init.zeros_(start_at_zero.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.film(condition).chunk(3, dim=1)
        hidden = self.inner(self.norm(x) * (1 + scale) + shift)
        return x + (1 + gate) * self.outer(self.dropout(functional.silu(hidden)))


class VectorLabel(nn.Module):
    """Vectors (B, d) as embeddings (B, width), linearly; rows of NaN as one that is learned. A one-hot vector is looked
    up, as `nn.Embedding` does it."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.linear = nn.Linear(dim, width, bias=False)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor) -> Tensor:
        none = vectors.isnan().any(dim=1, keepdim=True)
        told = self.linear(torch.where(none, 0.0, vectors).to(self.linear.weight.dtype))
        return torch.where(none, self.null, told)


class FilmMLP(nn.Module):
    """Residual blocks over all pixels at once, conditioned on t and the class: for small images, as 8 x 8 digits.

    Source of the conditioning: Perez et al., "FiLM" (arXiv 1709.07871), after each normalisation.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels_out: int,
        num_labels: int,
        width: int = 320,
        blocks: int = 4,
        expansion: int = 2,
        dropout: float = 0.1,
        condition: int = 128,
        condition_dim: int = 0,
    ):
        super().__init__()
        _, height, columns = shape
        self.shape_out = (channels_out, height, columns)
        self.read = nn.Linear(math.prod(shape), width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.label: nn.Module | None = nn.Embedding(num_labels, condition) if num_labels else None
        if condition_dim:
            self.label = VectorLabel(condition_dim, condition)
        self.blocks = nn.ModuleList(FilmBlock(width, condition, expansion, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, math.prod(self.shape_out))
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, xt: Tensor, ratio: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = self.time(waves(ratio, xt.dtype))
        if self.label is not None:
            condition = condition + self.label(labels)
        condition = functional.silu(condition)
        x = self.read(xt.flatten(1))
        for block in self.blocks:
            x = block(x, condition)
        return self.write(self.norm(x)).unflatten(1, self.shape_out)


class UNet(nn.Module):
    """diffusers' `UNet2DModel`: convolutions at every size, attention at some.

    Args:
        widths: channels at each size, from the full one downwards; each size halves the one before, so the image's
            height and width must be divisible by 2^(len(widths) - 1).
        layers: residual blocks at each size. attention: heads' width; 0: no attention.
        attention_sizes: heights in pixels at which there is attention (Ho et al. 2006.11239: 16), beside the middle;
            None: the smallest.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels_out: int,
        num_labels: int,
        widths: tuple[int, ...] = (32, 64, 64),
        layers: int = 1,
        attention: int = 8,
        dropout: float = 0.1,
        attention_sizes: tuple[int, ...] | None = None,
        condition_dim: int = 0,
    ):
        super().__init__()
        self.label = VectorLabel(condition_dim, 4 * widths[0]) if condition_dim else None
        there = attends(shape, widths, attention, attention_sizes)
        self.body = _of_diffusers("UNet2DModel")(
            **_sizes("Attn", shape, channels_out, widths, layers, dropout, there),
            attention_head_dim=attention or None,
            add_attention=bool(attention),
            num_class_embeds=num_labels or None,
            class_embed_type="identity" if condition_dim else None,
        )

    def forward(self, xt: Tensor, ratio: Tensor, labels: Tensor | None = None) -> Tensor:
        told = labels if self.label is None else self.label(labels)
        return self.body(xt, ratio.to(torch.float32) * 1000.0, class_labels=told).sample


class CrossUNet(nn.Module):
    """diffusers' `UNet2DConditionModel`: pixels attend to the vectors of a condition, (B, n, d) or one each, (B, d).

    Rows of NaN attend to one vector that is learned. Source: Rombach et al. (arXiv 2112.10752, section 3.3).

    Args:
        widths, layers, attention, attention_sizes: as of `UNet`, where there is attention to pixels and vectors both.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels_out: int,
        num_labels: int,
        widths: tuple[int, ...] = (32, 64, 64),
        layers: int = 1,
        attention: int = 8,
        dropout: float = 0.1,
        attention_sizes: tuple[int, ...] | None = None,
        condition_dim: int = 0,
    ):
        super().__init__()
        if not condition_dim or not attention:
            raise ValueError("network 'cross_unet' attends to vectors: it needs a condition_dim and attention above 0")
        self.null = nn.Parameter(torch.zeros(condition_dim))
        there = attends(shape, widths, attention, attention_sizes)
        self.body = _of_diffusers("UNet2DConditionModel")(
            **_sizes("CrossAttn", shape, channels_out, widths, layers, dropout, there),
            attention_head_dim=tuple(max(1, width // attention) for width in widths),  # there it counts heads
            cross_attention_dim=condition_dim,
        )

    def forward(self, xt: Tensor, ratio: Tensor, labels: Tensor) -> Tensor:
        vectors = labels[:, None] if labels.ndim == 2 else labels
        none = vectors.isnan().flatten(1).any(dim=1)[:, None, None]
        vectors = torch.where(none, self.null, vectors.to(self.null.dtype))
        return self.body(xt, ratio.to(torch.float32) * 1000.0, encoder_hidden_states=vectors).sample


def _sizes(
    kind: str,
    shape: tuple[int, int, int],
    channels_out: int,
    widths: tuple[int, ...],
    layers: int,
    dropout: float,
    there: list[bool],
) -> dict[str, Any]:
    """What both U-Nets of diffusers are told of their blocks. kind: of those with attention, at the sizes `there`."""
    kinds = [kind * attended for attended in there]
    return {
        "in_channels": shape[0],
        "out_channels": channels_out,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "dropout": dropout,
        "norm_num_groups": math.gcd(8, *widths),
    }


def attends(
    shape: tuple[int, int, int], widths: Sequence[int], attention: int, attention_sizes: Sequence[int] | None
) -> list[bool]:
    """At which sizes of a U-Net there is attention, from the full one downwards; ValueError where it cannot be."""
    factor = 2 ** (len(widths) - 1)
    if any(side % factor for side in shape[1:]):
        raise ValueError(
            f"a U-Net of {len(widths)} sizes needs a height and width divisible by {factor}, got {shape[1]} x "
            f"{shape[2]}: give fewer widths, or --image_size"
        )
    sizes = [shape[1] >> i for i in range(len(widths))]
    if attention_sizes is None:
        return [bool(attention) and size == sizes[-1] for size in sizes]
    if not attention or not set(attention_sizes) <= set(sizes):
        raise ValueError(
            f"attention_sizes must be heights of this U-Net, {', '.join(map(str, sizes))}, with an attention above 0, "
            f"got {list(attention_sizes)} and attention {attention}"
        )
    return [size in attention_sizes for size in sizes]


def _of_diffusers(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise ImportError("a U-Net needs diffusers: pip install '.[images]' in the folder of udm-text") from None
    return getattr(diffusers, name)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": FilmMLP, "unet": UNet, "cross_unet": CrossUNet}
"""The one table from a network's name to its class."""


def network(kind: str, shape: tuple[int, int, int], channels_out: int, num_labels: int, **options: Any) -> nn.Module:
    """A network of the table; `options` are its own."""
    if kind not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(map(repr, NETWORKS))}, got {kind!r}")
    try:
        return NETWORKS[kind](shape, channels_out, num_labels, **options)
    except TypeError as error:
        raise ValueError(f"network {kind!r} does not take these options: {error}") from error
