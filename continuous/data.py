"""Images as rows: the embedded digits, MNIST files, a folder of images, or a `datasets` name.

An image is a float32 tensor (C, H, W) in [-1, 1]; a row may carry a class label. Rows are kept as one tensor and handed
to a data loader a batch at a time.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from udm_text.randomness import RowRandom

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
HELD_OUT_DIGITS = 500
_SPLIT = 0x53504C4954000000
"""Distinguishes the seed of a split from that of noise."""


class ImageRows(Dataset):
    """Images and their labels, as a map-style data set with batched access.

    Args:
        images: (N, C, H, W) float32 in [-1, 1], finite.
        labels: (N,) int64 class indices from 0, or None.
        classes: names of the classes; None: their numbers.
        levels: how many different values a pixel can take, evenly spaced over [-1, 1] (256 for 8-bit files, 17 for the
            digits of scikit-learn); bits per dimension are meant for data of so many levels.

    Raises:
        ValueError: wrong shape, dtype or range, values that are not finite, labels that do not fit.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None = None, classes: Sequence[str] | None = None, levels: int = 256
    ):
        self.images = check_images(images, "images")
        if not len(images):
            raise ValueError("images must hold at least one image, got none")
        self.labels = labels
        if labels is not None:
            if labels.shape != (len(images),) or labels.dtype != torch.int64:
                raise ValueError(
                    f"labels must be ({len(images)},) int64, one for each image, got {tuple(labels.shape)} "
                    f"{labels.dtype}"
                )
            if labels.min() < 0:
                raise ValueError(f"labels must be class indices from 0, got {int(labels.min())}")
            count = int(labels.max()) + 1
            if classes is not None and count > len(classes):
                raise ValueError(f"labels go up to {count - 1}, and classes names {len(classes)} of them")
            classes = [str(i) for i in range(count)] if classes is None else list(classes)
        self.classes = None if labels is None else list(classes or [])
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """0 where there are no labels."""
        return len(self.classes or [])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = {"images": self.images[index]}
        return row if self.labels is None else {**row, "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once; torch's loader asks for it, and `collate_images` lets it pass."""
        return self.batch(torch.as_tensor(indices))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """{"images": (B, C, H, W)} and {"labels": (B,)} where there are labels."""
        batch = {"images": self.images[index]}
        return batch if self.labels is None else {**batch, "labels": self.labels[index]}

    def take(self, index: Tensor) -> ImageRows:
        """The rows at `index`, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return ImageRows(self.images[index], labels, self.classes, self.levels)


@dataclass
class ImageSplits:
    """Rows to train on, and rows that are held out."""

    train: ImageRows
    validation: ImageRows


def collate_images(rows: Any) -> dict[str, Tensor]:
    """A batch of `ImageRows`, however the loader fetched it."""
    if isinstance(rows, dict):
        return rows
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def check_images(images: Any, name: str, shape: Sequence[int] | None = None, slack: float = 1e-4) -> Tensor:
    """`images` as they are, if they are images; raises ValueError naming `name` and what is wrong.

    Args:
        images: (N, C, H, W) floating point, finite, in [-1, 1] (up to rounding).
        shape: (C, H, W) that they must have. slack: how far beyond the range a value may lie.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} must be a torch tensor (N, C, H, W) in [-1, 1], got {type(images).__name__}")
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != tuple(shape)):
        wanted = "(N, C, H, W)" if shape is None else f"(N, {', '.join(map(str, shape))})"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(
            f"{name} must be floating point in [-1, 1], got {images.dtype}: x / 127.5 - 1 for 8-bit images"
        )
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(images)).sum())} values that are not")
    if images.numel() and float(images.abs().max()) > 1.0 + slack:
        low, high = float(images.min()), float(images.max())
        raise ValueError(f"{name} must lie in [-1, 1], got values in [{low:g}, {high:g}]; rescale them")
    return images


def from_bytes(pixels: Tensor) -> Tensor:
    """8-bit pixels as float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit pixels, rounded; what lies outside is cut off."""
    return ((images.to(torch.float32).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Any]:
    """Images (N, C, H, W) in [-1, 1] as Pillow images, of one channel (mode "L") or three ("RGB")."""
    from PIL import Image

    if images.shape[1] not in (1, 3):
        raise ValueError(f"Pillow shows images of 1 or 3 channels, got {images.shape[1]}: take output_type='pt'")
    pixels = to_bytes(images).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if images.shape[1] == 1 else one) for one in pixels]


def hold_out(rows: ImageRows, count: int, seed: int = 0) -> ImageSplits:
    """`count` rows held out, of each class its share (to the nearest row); the same ones for a seed, always.

    Raises:
        ValueError: fewer than one row would be left on either side.
    """
    if not 0 < count < len(rows):
        raise ValueError(f"the held-out part must be between 1 and {len(rows) - 1} of {len(rows)} rows, got {count}")
    labels = torch.zeros(len(rows), dtype=torch.int64) if rows.labels is None else rows.labels
    keys = RowRandom(seed ^ _SPLIT, torch.arange(len(rows))).uniform(1)[:, 0]
    # A row's place within its class, as a share of the class: the smallest shares of all classes are held out.
    share = torch.empty(len(rows), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rank = keys[members].argsort().argsort()
        share[members] = (rank.double() + 0.5) / len(members)
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[share.argsort(stable=True)[:count]] = True
    return ImageSplits(rows.take((~held).nonzero()[:, 0]), rows.take(held.nonzero()[:, 0]))


def digits() -> ImageSplits:
    """The 1,797 digits of scikit-learn, 8 x 8, 17 levels of grey: 1,297 to train on, 500 held out, always the same.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI repository, CC BY 4.0), the part
    that scikit-learn carries.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the embedded digits need scikit-learn: pip install 'udm-text[images]'") from None
    found: Any = load_digits()
    images = torch.from_numpy(found.images).to(torch.float32)[:, None] / 8.0 - 1.0
    rows = ImageRows(images, torch.from_numpy(found.target).to(torch.int64), levels=17)
    return hold_out(rows, HELD_OUT_DIGITS)


def read_idx(path: str | Path) -> Tensor:
    """An idx file of bytes (MNIST's format), gzipped or not, as a uint8 tensor.

    Raises:
        ValueError: not such a file, or one that ends too early.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a readable gzip file: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes: it must begin with 00 00 08, got {raw[:3].hex(' ')}")
    head = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:head]) if len(raw) >= head else ()
    size = 1
    for length in shape:
        size *= length
    if not shape or len(raw) - head != size:
        raise ValueError(f"{path} should hold {size} bytes for shape {shape}, and holds {len(raw) - head}")
    return torch.frombuffer(bytearray(raw[head:]), dtype=torch.uint8).reshape(shape)


def mnist(folder: str | Path) -> ImageSplits:
    """A folder with the four idx files of MNIST (or of a set in its format): train, and t10k as held-out rows."""
    parts = []
    for part in ("train", "t10k"):
        found = []
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            names = [Path(folder, f"{part}-{kind}{end}") for end in (".gz", "")]
            path = next((name for name in names if name.is_file()), None)
            if path is None:
                raise FileNotFoundError(f"{folder} lacks {names[0].name}, one of the four files of MNIST")
            found.append(read_idx(path))
        pixels, labels = found
        if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"{folder}: images {tuple(pixels.shape)} and labels {tuple(labels.shape)} of {part} do not fit"
            )
        parts.append(ImageRows(from_bytes(pixels[:, None]), labels.to(torch.int64)))
    return ImageSplits(*parts)


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_image(source: Any, name: str, size: int | None = None, channels: int | None = None) -> Tensor:
    """One image as float32 (C, H, W) in [-1, 1].

    Args:
        source: a path, an open file, or a Pillow image.
        name: what a message calls it.
        size: the shorter side is brought to it and the middle square is cut out; None: as it is.
        channels: 1 (grey) or 3 (colour); None: grey where the file is grey.

    Raises:
        ValueError: the file cannot be read as an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from None
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "I", "I;16", "F") else 3
    if image.mode in ("I", "I;16", "F"):
        raise ValueError(f"{name} has pixels of mode {image.mode!r}; convert it to 8 bits first")
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return from_bytes(pixels.reshape(image.height, image.width, channels).permute(2, 0, 1))


def stack_images(named: Iterator[tuple[str, Tensor]]) -> Tensor:
    """(N, C, H, W) out of images of one shape; raises ValueError naming the first that differs."""
    images: list[Tensor] = []
    for name, image in named:
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)} and those before it {tuple(images[0].shape)} (channels, "
                "height, width): give --image_size (and --channels) to bring them to one"
            )
        images.append(image)
    return torch.stack(images)


def folder_rows(folder: str | Path, size: int | None = None, channels: int | None = None) -> ImageRows:
    """The images of a folder. Where every one lies in a subfolder, the subfolders' names are the classes."""
    folder = Path(folder)
    paths = image_files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    images = stack_images((str(path), read_image(path, str(path), size, channels)) for path in paths)
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    if not all(parents):
        return ImageRows(images)
    classes = sorted({parts[0] for parts in parents})
    return ImageRows(images, torch.tensor([classes.index(parts[0]) for parts in parents]), classes)


def dataset_rows(part: Any, name: str, size: int | None = None, channels: int | None = None) -> ImageRows:
    """A split of a `datasets` data set: its one column of images, its one column of class labels if there is one."""
    from datasets import ClassLabel, Image

    def column(kind: type) -> list[str]:
        return [key for key, feature in part.features.items() if isinstance(feature, kind)]

    own, labels = column(Image), column(ClassLabel)
    if len(own) != 1:
        raise ValueError(f"{name} must have one column of images, got {own or 'none'} among {part.column_names}")
    rows = ((f"{name}, row {i}", row[own[0]]) for i, row in enumerate(part.select_columns(own)))
    images = stack_images((where, read_image(image, where, size, channels)) for where, image in rows)
    if len(labels) != 1:
        return ImageRows(images)
    return ImageRows(images, torch.tensor(part[labels[0]][:]), part.features[labels[0]].names)


def load_images(
    data: str, *, size: int | None = None, channels: int | None = None, validation_share: float = 0.05, seed: int = 0
) -> ImageSplits:
    """`data` as rows to train on and rows held out.

    Args:
        data: "digits"; a folder with MNIST's idx files; a folder of images (with `train` and `validation` or `test`
            inside, or classes as subfolders); else the name or path of a `datasets` data set.
        size, channels: see `read_image`; the digits and idx files stay as they are.
        validation_share: held out where the data has no part of its own for that.
        seed: of the split.

    Raises:
        ValueError, OSError: nothing there can be read as images; the message names the file.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    if size is not None and size < 4:
        raise ValueError(f"image_size must be at least 4, got {size}")
    if not 0.0 < validation_share < 1.0:
        raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share}")
    if data == "digits":
        if size not in (None, 8) or channels == 3:
            raise ValueError(
                f"the digits are 8 x 8 and grey: leave image_size and channels away, got {size}, {channels}"
            )
        return digits()
    folder = Path(data)
    parts: dict[str, ImageRows]
    if folder.is_dir() and list(folder.glob("*-idx3-ubyte*")):
        return mnist(folder)
    if folder.is_dir() and not list(folder.glob("*.parquet")) and image_files(folder):
        named = {path.name: path for path in folder.iterdir() if path.is_dir() and path.name in _PARTS}
        parts = {name: folder_rows(path, size, channels) for name, path in named.items()}
        if "train" not in parts:
            parts = {"train": folder_rows(folder, size, channels)}
    elif folder.is_file():
        raise ValueError(f"{data} is a file; data must be 'digits', a folder, or the name of a data set")
    else:
        parts = _dataset_parts(data, lambda part, name: dataset_rows(part, name, size, channels))
    train = parts["train"]
    held = next((parts[name] for name in _PARTS[1:] if name in parts), None)
    if held is None:
        return hold_out(train, max(1, round(validation_share * len(train))), seed)
    if held.shape != train.shape or held.classes != train.classes:
        raise ValueError(
            f"{data}: the held-out part has shape {held.shape} and classes {held.classes}, the training "
            f"part {train.shape} and {train.classes}"
        )
    return ImageSplits(train, held)


_PARTS = ("train", "validation", "test")


def _dataset_parts(data: str, read: Callable[[Any, str], ImageRows]) -> dict[str, ImageRows]:
    from datasets import load_dataset

    try:
        found: Any = load_dataset(data)
    except Exception as error:
        raise ValueError(
            f"data must be 'digits', a folder of images or of MNIST's files, or a `datasets` data set; {data!r} is "
            f"none that could be loaded: {type(error).__name__}: {error}"
        ) from None
    if "train" not in found:
        raise ValueError(f"{data} has no split named train, only {', '.join(found)}")
    return {name: read(found[name], f"{data}[{name}]") for name in _PARTS if name in found}
