"""What a call says of the images that it wants, as the classes or conditions that a model is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .modeling import ImageDenoiser

Label: TypeAlias = int | str | Sequence[int] | Tensor | None
"""A class, one for each image, "all", a condition or many, or nothing: see `read_labels`."""


def read_labels(denoiser: ImageDenoiser, label: Label, num: int) -> Tensor | None:
    """(num,) int64 classes of a model by what a call says of them, or conditions (num, d) or (num, n, d) float32.

    Args:
        label: None: no class, and None is returned. A class by index or name, or an index for each image; "all": every
            class in turn. Of a model with a condition_dim a condition for all images or one for each, or either as
            JSON.
        num: how many images. Raises ValueError where the model knows no such label, or `num` does not fit.
    """
    if isinstance(num, bool) or not isinstance(num, Integral) or int(num) < 1:
        raise ValueError(f"the number of images must be at least 1, got {num!r}")
    classes = denoiser.config.classes or []
    if label is None:
        return None
    if denoiser.config.condition_dim:
        return _conditions(denoiser, label, int(num))
    if not classes:
        raise ValueError(f"label {label!r} was given, and this model knows no classes")
    if isinstance(label, str):
        if label == "all":
            return torch.arange(num) % len(classes)
        if label not in classes:
            raise ValueError(f"label must be 'all' or one of {', '.join(classes)}, got {label!r}")
        label = classes.index(label)
    given = [label] * int(num) if isinstance(label, Integral) else label
    mixed = isinstance(given, Sequence) and any(isinstance(one, bool) for one in given)
    try:
        found = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError):
        mixed, found = True, torch.empty(0)
    if mixed or found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise ValueError(f"label must be 'all', one class by name or index, or an index for each image, got {label!r}")
    if found.shape != (num,):
        raise ValueError(f"label must be one class, or one for each of {num} images, got {tuple(found.shape)}")
    found = found.to(torch.int64)
    denoiser.label_row(found, num)
    return found


def _conditions(denoiser: ImageDenoiser, given: Any, num: int) -> Tensor:
    """(num, d) or (num, n, d) float32 from vectors for all images or for each."""
    shape = denoiser.config.condition_shape
    wrong = f"label must be a condition of shape {shape}, or one for each of {num} images, got "
    try:
        found = torch.as_tensor(json.loads(given) if isinstance(given, str) else given).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wrong}{given!r}") from None
    if found.dtype == torch.bool or found.is_complex():
        raise ValueError(f"{wrong}{found.dtype}")
    if tuple(found.shape) == shape:
        found = found.expand(num, *shape)
    if tuple(found.shape) != (num, *shape):
        raise ValueError(f"{wrong}{tuple(found.shape)}")
    found = found.to(torch.float32)
    denoiser.label_row(found, num)
    return found
