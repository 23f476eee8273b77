"""Images to look at: grids, strips of states, loss curves, as PNG files that are complete or not there."""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udm_text.common import written_whole

from .data import to_bytes

_CELL = 64
"""Pixels of an image on paper, at least: small ones are enlarged by a whole number, without smoothing."""
_PAD, _BACKGROUND = 4, 255


def check_target(path: str | Path, *others: str | Path) -> Path:
    """The path, if a PNG can be written there; raises before anything is computed for it.

    others: files that it must not take the place of.

    Raises:
        ValueError: another suffix, a directory, a missing parent folder, one of the `others`.
        OSError: a folder that cannot be written to, or a name that the file system does not take.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"images are written as .png, got {str(path)!r}")
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir():
        why = f"{path} is a directory" if path.is_dir() else f"there is no directory {parent}"
        raise ValueError(f"an image must be a file in an existing directory, got {str(path)!r}: {why}")
    if clash := [other for other in others if Path(other).resolve() == path.resolve()]:
        raise ValueError(f"{str(path)!r} would take the place of {str(clash[0])!r}: give it another name")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # the name that `written_whole` gives
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
    part.unlink()
    return path


def check_targets(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """A PNG in `folder` for each source, named as it is; the folder is made if need be, and then its parent is there.

    Raises:
        ValueError: two sources of one name, a source that would be overwritten, a folder that is a file or whose parent
            is missing. OSError: the folder cannot be written to.
    """
    targets = [folder / f"{source.stem}.png" for source in sources]
    seen: dict[Path, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        if target in seen:
            raise ValueError(f"{seen[target]} and {source} would both be written as {target}: give them apart")
        seen[target] = source
    if folder.is_dir():
        return [check_target(target, *sources) for target in targets]
    parent = folder.absolute().parent
    if folder.exists() or not parent.is_dir():
        why = "it is a file" if folder.exists() else f"there is no directory {parent}"
        raise ValueError(f"images must go to a folder in an existing directory, got {str(folder)!r}: {why}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OSError(f"{str(folder)!r} cannot be made: {parent} cannot be written to")
    return targets


def tile(rows: Sequence[Tensor], scale: int | None = None) -> Tensor:
    """Rows of images as one image: (C, H, W) uint8.

    Args:
        rows: each (N, C, h, w) in [-1, 1] (what lies outside is cut off); a shorter row ends earlier.
        scale: how often a pixel is repeated; None: so that an image is at least 64 pixels wide.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("rows must hold at least one row with at least one image")
    channels, height, width = rows[0].shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"a PNG shows 1 or 3 channels, got {channels}")
    scale = max(1, -(-_CELL // width)) if scale is None else scale
    high, wide = height * scale + _PAD, width * scale + _PAD
    columns = max(map(len, rows))
    page = torch.full((channels, len(rows) * high + _PAD, columns * wide + _PAD), _BACKGROUND, dtype=torch.uint8)
    for i, row in enumerate(rows):
        large = to_bytes(row.detach().cpu()).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        for j, image in enumerate(large):
            top, left = _PAD + i * high, _PAD + j * wide
            page[:, top : top + height * scale, left : left + width * scale] = image
    return page


def to_image(page: Tensor) -> Any:
    """(C, H, W) uint8, 1 or 3 channels, as a Pillow image."""
    from PIL import Image

    pixels = page.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if page.shape[0] == 1 else pixels)


def save_png(path: str | Path, page: Tensor) -> None:
    """Write (C, H, W) uint8, 1 or 3 channels."""
    path = check_target(path)
    image = to_image(page)
    with written_whole(path) as part:
        image.save(part, format="PNG")


def as_html(images: Sequence[Any]) -> str:
    """Images of Pillow side by side, for a notebook, small ones enlarged; each is inside the text as a PNG."""
    shown = []
    for image in images:
        scale = max(1, -(-_CELL // image.width))
        out = io.BytesIO()
        image.resize((image.width * scale, image.height * scale), resample=0).save(out, format="PNG")
        data = base64.b64encode(out.getvalue()).decode()
        shown.append(f'<img style="margin:2px" src="data:image/png;base64,{data}">')
    return "".join(shown)


def grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] side by side, as `tile` makes one of them; `columns` None: about a square."""
    columns = max(1, round(len(images) ** 0.5)) if columns is None else columns
    return tile([images[i : i + columns] for i in range(0, len(images), columns)], scale)


def save_grid(path: str | Path, images: Tensor, columns: int | None = None, scale: int | None = None) -> None:
    """Write the `grid` of images (N, C, H, W) in [-1, 1]."""
    save_png(path, grid(images, columns, scale))


def strip(states: Sequence[Tensor], count: int = 12, scale: int | None = None) -> Tensor:
    """How images came to be, as `tile` makes one of them: a row for each, from its first state to its last, `count` of
    them, evenly.

    states: tensors (N, C, H, W), one after each step.
    """
    if not states:
        raise ValueError("states must hold at least one state")
    last, count = len(states) - 1, min(count, len(states))
    chosen = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    track = torch.stack([states[i].detach().cpu() for i in chosen], dim=1)
    return tile(list(track), scale)


def save_strip(path: str | Path, states: Sequence[Tensor], count: int = 12, scale: int | None = None) -> None:
    """Write the `strip` of states."""
    save_png(path, strip(states, count, scale))


def _label_log_axis(figure: Any, axes: Any) -> None:
    """Labels between the powers of ten, too, as plain numbers, where fewer than three labelled ticks are in sight."""
    from matplotlib.ticker import ScalarFormatter

    figure.canvas.draw()  # what places the ticks
    low, high = axes.get_ylim()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    if sum(low <= tick.get_loc() <= high and bool(tick.label1.get_text()) for tick in ticks) < 3:
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())


def draw_loss(history: Sequence[dict[str, Any]], path: str | Path) -> bool:
    """Training and held-out loss over the steps (needs matplotlib); whether there was a point to draw."""
    curves = {
        name: [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
        for name in ("loss", "eval_loss")
    }
    if not any(curves.values()):
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = (("training loss", "#4477aa", None), ("held out", "#ee6677", "o"))
    for points, (label, color, marker) in zip(curves.values(), styles, strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=1, marker=marker)
    axes.set(xlabel="step", ylabel="loss per dimension", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    _label_log_axis(figure, axes)
    with written_whole(path) as part:
        figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    return True
