"""Images as rows: the embedded digits, MNIST files, a folder of images, or a `datasets` name.

An image is a float32 tensor (C, H, W) in [-1, 1]; a row may carry a class label. Rows are kept as one tensor and handed
to a data loader a batch at a time.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from udm_text.randomness import RowRandom

DIGITS = "digits"
"""Names the embedded digits, also where a path of that name exists."""
SUFFIXES = tuple(".png .jpg .jpeg .jpe .jfif .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
"""What the name of an image file ends in, in capitals or not."""
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
        noise: (N, C, H, W), that which each image came of, for reflow; a label may then be -1, for no class.
        conditions: (N, d) or (N, n, d) float32, finite: vectors that a model may be told of each image; or None.

    Raises:
        ValueError: wrong shape, dtype or range, values that are not finite, labels that do not fit.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        levels: int = 256,
        *,
        noise: Tensor | None = None,
        conditions: Tensor | None = None,
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
            if labels.min() < (0 if noise is None else -1):
                raise ValueError(f"labels must be class indices from 0, got {int(labels.min())}")
            count = int(labels.max()) + 1
            if classes is not None and count > len(classes):
                raise ValueError(f"labels go up to {count - 1}, and classes names {len(classes)} of them")
            classes = [str(i) for i in range(count)] if classes is None else list(classes)
        self.classes = None if labels is None else list(classes or [])
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels
        if noise is not None and noise.shape != images.shape:
            raise ValueError(f"noise must be of the shape of images, {tuple(images.shape)}, got {tuple(noise.shape)}")
        self.noise = noise
        if conditions is not None:
            good = conditions.ndim in (2, 3) and len(conditions) == len(images) and conditions.dtype == torch.float32
            if not good or not conditions[0].numel() or not bool(torch.isfinite(conditions).all()):
                raise ValueError(
                    f"conditions must be finite float32 ({len(images)}, d) or ({len(images)}, n, d), got "
                    f"{tuple(conditions.shape)} {conditions.dtype}"
                )
        self.conditions = conditions

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
        return {name: values[index] for name, values in self._columns().items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once; torch's loader asks for it, and `collate_images` lets it pass."""
        return self.batch(torch.as_tensor(indices))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """{"images": (B, C, H, W)}, and "labels" (B,), "noise" (B, C, H, W) and "conditions" where there are such."""
        return {name: values[index] for name, values in self._columns().items()}

    def _columns(self) -> dict[str, Tensor]:
        columns = {
            "images": self.images,
            "labels": self.labels,
            "noise": self.noise,
            "conditions": self.conditions,
        }
        return {name: values for name, values in columns.items() if values is not None}

    def take(self, index: Tensor) -> ImageRows:
        """The rows at `index`, in that order."""
        parts = self.batch(index)
        more = {name: parts.get(name) for name in ("noise", "conditions")}
        return ImageRows(parts["images"], parts.get("labels"), self.classes, self.levels, **more)


@dataclass
class ImageSplits:
    """Rows to train on, and rows that are held out; `notes`: what was left out or taken in part, a sentence each."""

    train: ImageRows
    validation: ImageRows
    notes: tuple[str, ...] = ()


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
    if len(rows) < 2:
        raise ValueError(f"rows must be at least 2, of which one can be held out, got {len(rows)}: give more images")
    if not 0 < count < len(rows):
        raise ValueError(
            f"count, of the rows that are held out, must lie between 1 and {len(rows) - 1} of {len(rows)}, got {count}"
        )
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
        raise ImportError(
            "the embedded digits need scikit-learn: pip install '.[images]' in the folder of udm-text"
        ) from None
    found: Any = load_digits()
    images = torch.from_numpy(found.images).to(torch.float32)[:, None] / 8.0 - 1.0
    rows = ImageRows(images, torch.from_numpy(found.target).to(torch.int64), levels=17)
    return hold_out(rows, HELD_OUT_DIGITS)


def read_idx(path: str | Path) -> Tensor:
    """An idx file of bytes (MNIST's format), gzipped or not, whatever its name, as a uint8 tensor.

    Raises:
        ValueError: not such a file, or one that is shorter or longer than it says.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != _IDX:
                while file.read(_CHUNK):  # a torn gzip file is called that
                    pass
                raise ValueError(
                    f"{path} is not an idx file of bytes: it must begin with 00 00 08, got {head[:3].hex(' ')}"
                )
            lengths = file.read(4 * head[3])
            shape = struct.unpack(f">{head[3]}I", lengths) if len(lengths) == 4 * head[3] else ()
            size = 1
            for length in shape:
                size *= length
            raw = bytearray()
            while len(raw) <= size and (more := file.read(min(_CHUNK, size + 1 - len(raw)))):
                raw += more
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable gzip file: {error}") from None
    if not shape or len(raw) != size:
        held = "more" if len(raw) > size else len(raw)
        raise ValueError(f"{path} should hold {size} bytes for shape {shape}, and holds {held}")
    return torch.frombuffer(raw, dtype=torch.uint8).reshape(shape) if raw else torch.empty(shape, dtype=torch.uint8)


_IDX = b"\0\0\x08"
_CHUNK = 1 << 24


def _opened(path: Path) -> Any:
    """A file to read from, unpacked where its content, not its name, is that of gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def is_idx(path: Path) -> bool:
    """Whether a file is one of MNIST's format, by its content or by MNIST's own way of naming."""
    if re.search(r"idx\d-ubyte", path.name):
        return True
    try:
        with _opened(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:3] == _IDX and 1 <= head[3] <= 4


def mnist(folder: str | Path) -> ImageSplits | ImageRows:
    """The idx files of MNIST, or of a set in its format, below a folder, under any names.

    Images are the files of three dimensions, labels those of one, and a pair has the same number of rows. Of two pairs
    the one is held out whose file of images has "t10k", "test" or "val" in its name, or else the smaller one. Files
    that lie there twice count once.

    Returns:
        Both parts; of one pair alone its rows.

    Raises:
        ValueError: a file cannot be read, or the files are no such pairs; the message names them.
    """
    paths = [path for path in walk(Path(folder)) if is_idx(path)]
    images: list[tuple[Path, Tensor]] = []
    labels: list[tuple[Path, Tensor]] = []
    for path in paths:
        values = read_idx(path)
        if values.ndim not in (1, 3):
            raise ValueError(f"{path} has shape {tuple(values.shape)}; images have 3 dimensions and labels 1")
        known = images if values.ndim == 3 else labels
        if not any(torch.equal(values, other) for _, other in known):
            known.append((path, values))

    def named(files: list[tuple[Path, Tensor]]) -> str:
        return ", ".join(f"{path.relative_to(folder)} {tuple(values.shape)}" for path, values in files) or "none"

    counts = [len(pixels) for _, pixels in images]
    if not images or len(images) > 2 or len(set(counts)) < len(counts) or len(labels) != len(images):
        raise ValueError(
            f"{folder}: of idx files there must be one of images and one of its labels, or two of each with different "
            f"numbers of rows; got images {named(images)} and labels {named(labels)}"
        )
    parts = {}
    for path, pixels in images:
        own = next((values for _, values in labels if len(values) == len(pixels)), None)
        if own is None:
            raise ValueError(f"{folder}: images {named([(path, pixels)])} and labels {named(labels)} do not fit")
        parts[path] = ImageRows(from_bytes(pixels[:, None]), own.to(torch.int64))
    if len(parts) == 1:
        return next(iter(parts.values()))
    held = [path for path in parts if re.search("t10k|test|val", path.name.lower())]
    last = held[0] if len(held) == 1 else min(parts, key=lambda path: len(parts[path]))
    [first] = [path for path in parts if path != last]
    return ImageSplits(parts[first], parts[last])


def walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder, sorted by name, links followed; hidden ones (`.git`, `._a.png`) are none of them."""
    above = above | {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            if path.resolve() not in above:  # a link that leads back up
                yield from walk(path, above)
        else:
            yield path


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, by the end of their names; none that is hidden or lies in a hidden folder."""
    return [path for path in walk(folder) if path.suffix.lower() in SUFFIXES]


def read_image(source: Any, name: str, size: int | None = None, channels: int | None = None) -> Tensor:
    """One image as float32 (C, H, W) in [-1, 1], as a viewer shows it.

    Turned as its EXIF data say; what is transparent lies on white; 16 bits a pixel, of either byte order, are rounded
    to 8. Of several frames the first is taken, with a warning.

    Args:
        source: a path, an open file, a Pillow image, or a function that gives one.
        name: what a message calls it.
        size: the shorter side is brought to it and the middle square is cut out; None: as it is.
        channels: 1 (grey) or 3 (colour); None: grey where the file is grey.

    Raises:
        ValueError: the file cannot be read as an image.
    """
    image, frames = _read(source, name, size, channels)
    if frames > 1:
        warnings.warn(f"{name} holds {frames} frames; the first is taken", stacklevel=2)
    return image


def _read(source: Any, name: str, size: int | None, channels: int | None) -> tuple[Tensor, int]:
    """`read_image`, and the number of frames of the file."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            image = source() if callable(source) else source
            image = image if isinstance(image, Image.Image) else Image.open(image)
            # a photo of a telephone may carry a preview of itself as a second frame
            frames = 1 if getattr(image, "format", None) == "MPO" else getattr(image, "n_frames", 1)
            sixteen = getattr(image, "format", None) in ("PNG", "PPM")
            image.load()
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises whatever a damaged file makes its readers stumble over
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image: {reason}") from None
    image = _flat(image, name, sixteen)
    if channels is None:
        channels = 1 if image.mode == "L" else 3
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return from_bytes(pixels.reshape(image.height, image.width, channels).permute(2, 0, 1)), frames


def _flat(image: Any, name: str, sixteen: bool) -> Any:
    """A Pillow image without transparency and of 8 bits: mode "L" where it is grey, else "RGB".

    sixteen: whether its format knows integers of 16 bits at most, which Pillow may hold as 32.
    """
    from PIL import Image

    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and sixteen):
        import numpy

        wide = numpy.asarray(image).astype(numpy.int64)
        narrow = (wide + 128) // 257
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            narrow[wide == clear] = 255
        return Image.fromarray(narrow.clip(0, 255).astype(numpy.uint8))
    if mode in ("I", "F"):
        raise ValueError(f"{name} has pixels of mode {mode!r}, whose range is not known; convert it to 8 or 16 bits")
    grey = mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        if mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def stack_images(
    named: Iterator[tuple[str, Tensor]], cure: str = "give --image_size (and --channels) to bring them to one"
) -> Tensor:
    """(N, C, H, W) out of images of one shape; raises ValueError naming the first that differs, and the cure."""
    images: list[Tensor] = []
    for name, image in named:
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)} and those before it {tuple(images[0].shape)} (channels, "
                f"height, width): {cure}"
            )
        images.append(image)
    return torch.stack(images)


def folder_rows(
    folder: str | Path, size: int | None = None, channels: int | None = None, notes: list[str] | None = None
) -> ImageRows:
    """The images of a folder. Where they lie in subfolders, the subfolders' names are the classes.

    notes: what is left out or taken in part is added to it, a sentence each; None: warned of.

    Raises:
        ValueError: no images, images beside class folders, or one that cannot be read or has another shape.
    """
    folder, said = Path(folder), [] if notes is None else notes
    files = list(walk(folder))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    stray = [path for path, above in zip(paths, parents, strict=True) if not above]
    if stray and len(stray) < len(paths):
        raise ValueError(
            f"{folder} holds {len(stray)} images beside its {len({p[0] for p in parents if p})} subfolders of images "
            f"(first: {stray[0]}): subfolders are classes, so move them into one, or all images into one folder"
        )
    several: list[str] = []

    def read(path: Path) -> Tensor:
        image, frames = _read(path, str(path), size, channels)
        if frames > 1:
            several.append(str(path))
        return image

    images = stack_images((str(path), read(path)) for path in paths)
    if len(files) > len(paths):
        said.append(_left_out(folder, [path for path in files if path.suffix.lower() not in SUFFIXES]))
    if several:
        said.append(f"{len(several)} files hold several frames, of which the first is taken (first: {several[0]})")
    for note in said if notes is None else ():
        warnings.warn(note, stacklevel=2)
    if stray:
        return ImageRows(images)
    classes = sorted({above[0] for above in parents})
    return ImageRows(images, torch.tensor([classes.index(above[0]) for above in parents]), classes)


def _left_out(folder: Path, files: Sequence[Path]) -> str:
    """A sentence on files that are no images."""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return f"{folder}: left out what is no image by its name: {listed} (first: {files[0].name})"


def dataset_rows(
    part: Any,
    name: str,
    size: int | None = None,
    channels: int | None = None,
    condition_columns: Sequence[str] = (),
) -> ImageRows:
    """A split of a `datasets` data set: its one column of images, its one column of class labels if there is one.

    condition_columns: of numbers, or of lists of them, which stand side by side in the vector of an image; one alone
    may also hold lists of vectors.
    """
    from datasets import ClassLabel, Image

    def column(kind: type) -> list[str]:
        return [key for key, feature in part.features.items() if isinstance(feature, kind)]

    own, labels = column(Image), column(ClassLabel)
    if len(own) != 1:
        raise ValueError(f"{name} must have one column of images, got {own or 'none'} among {part.column_names}")
    feature = Image(mode=part.features[own[0]].mode)
    stored = part.select_columns(own).cast_column(own[0], Image(decode=False))

    def read(value: Any, where: str) -> Tensor:
        if value is None:
            raise ValueError(f"{where} holds no image")
        return read_image(lambda: feature.decode_example(value), where, size, channels)

    named = ((f"{name}, row {i}", row[own[0]]) for i, row in enumerate(stored))
    images = stack_images((where, read(value, where)) for where, value in named)
    conditions = _conditions(part, name, condition_columns) if condition_columns else None
    if len(labels) != 1:
        return ImageRows(images, conditions=conditions)
    found = part[labels[0]][:]
    for i, label in enumerate(found):
        if label is None or label < 0:
            raise ValueError(f"{name}, row {i} has no class in its column {labels[0]}, and others have one")
    return ImageRows(images, torch.tensor(found), part.features[labels[0]].names, conditions=conditions)


def _conditions(part: Any, name: str, columns: Sequence[str]) -> Tensor:
    """(N, d) or (N, n, d) float32 from columns of numbers; ValueError that names what is none."""
    found = []
    for column in columns:
        if column not in part.column_names:
            raise ValueError(f"{name} has no column {column!r} of conditions, only {', '.join(part.column_names)}")
        try:
            values = torch.tensor(part[column][:], dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, column {column!r} must hold numbers, as many in every row: {error}") from None
        found.append(values[:, None] if values.ndim == 1 else values)
    if len(found) > 1 and any(values.ndim != 2 for values in found):
        raise ValueError(
            f"{name}: of several columns of conditions none may hold lists of vectors, got {list(columns)}"
        )
    return torch.cat(found, dim=-1)


def load_images(
    data: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    validation_share: float = 0.05,
    condition_columns: Sequence[str] = (),
    seed: int = 0,
) -> ImageSplits:
    """`data` as rows to train on and rows held out.

    Args:
        data: "digits"; a folder with idx files, as MNIST's; a folder of images (with `train` and `validation`, `val` or
            `test` inside, or classes as subfolders); else the name or path of a `datasets` data set.
        size, channels: see `read_image`; the digits and idx files stay as they are.
        validation_share: held out where the data has no part of its own for that.
        condition_columns: of a `datasets` data set, see `dataset_rows`.
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
    if data == DIGITS:
        _no_columns(data, condition_columns)
        if size not in (None, 8) or channels == 3:
            raise ValueError(
                f"the digits are 8 x 8 and grey: leave image_size and channels away, got {size}, {channels}"
            )
        return digits()
    folder = Path(data)
    notes: list[str] = []
    if folder.is_file():
        raise ValueError(f"{data} is a file; data must be 'digits', a folder, or the name of a data set")
    files = [] if not folder.is_dir() or list(folder.glob("*.parquet")) else list(walk(folder))
    if files and is_model(folder):
        raise ValueError(f"{data} is a model, and no data set: give 'digits', a folder of images or a data set")
    idx = [path for path in files if path.suffix.lower() not in SUFFIXES and is_idx(path)]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    parts: dict[str, ImageRows]
    if idx or images:
        _no_columns(data, condition_columns)
    if idx and images:
        raise ValueError(f"{data} holds idx files ({idx[0]}) and images ({images[0]}): keep them in two folders")
    if idx:
        found = mnist(folder)
        if len(files) > len(idx):
            notes.append(_left_out(folder, [path for path in files if path not in idx]))
        if isinstance(found, ImageSplits):
            found.notes = tuple(notes)
            return found
        parts = {"train": found}
    elif images:
        parts = _folder_parts(folder, size, channels, notes)
    else:
        parts = _dataset_parts(
            data, lambda part, name: dataset_rows(part, name, size, channels, condition_columns), notes
        )
    train = parts["train"]
    held = next((parts[name] for name in HELD_OUT if name in parts), None)
    if held is None:
        if len(train) < 2:
            raise ValueError(f"{data} holds 1 image, and one has to be held out beside those to train on: give more")
        splits = hold_out(train, max(1, round(validation_share * len(train))), seed)
        splits.notes = tuple(notes)
        return splits
    if held.shape != train.shape or held.classes != train.classes:
        raise ValueError(
            f"{data}: the held-out part has shape {held.shape} and classes {held.classes}, the training "
            f"part {train.shape} and {train.classes}"
        )
    return ImageSplits(train, held, tuple(notes))


def _no_columns(data: str, condition_columns: Sequence[str]) -> None:
    if condition_columns:
        raise ValueError(
            f"condition_columns are columns of a `datasets` data set, and {data} is none: got {list(condition_columns)}"
        )


HELD_OUT = ("validation", "val", "test")
"""Names of a part that is held out; of several the first is taken."""


def is_model(folder: str | Path) -> bool:
    """Whether a folder holds a model of ours: then the images in it are drawn, not data."""
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "udm-image"


def _chosen(names: list[str], data: str, notes: list[str]) -> list[str]:
    """ "train" and the first held-out part among names of parts; the others are noted."""
    chosen = ["train", *[name for name in HELD_OUT if name in names][:1]]
    if rest := [name for name in names if name not in chosen]:
        notes.append(f"{data}: {', '.join(rest)} left out; {' and '.join(chosen)} taken")
    return chosen


def _folder_parts(folder: Path, size: int | None, channels: int | None, notes: list[str]) -> dict[str, ImageRows]:
    """Parts of a folder of images by name; the whole as "train" where it has none."""
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    folders = {path.name: path for path in inside if path.is_dir() and image_files(path)}
    if "train" not in folders:
        if held := [name for name in HELD_OUT if name in folders]:
            raise ValueError(f"{folder} holds a folder {held[0]} to hold out and none named train")
        return {"train": folder_rows(folder, size, channels, notes)}
    if stray := [path for path in inside if path.is_file() and path.suffix.lower() in SUFFIXES]:
        raise ValueError(
            f"{folder} holds {len(stray)} images beside its folder train (first: {stray[0]}): move them into a part"
        )
    if loose := [path for path in inside if path.is_file()]:
        notes.append(_left_out(folder, loose))
    chosen = _chosen(list(folders), str(folder), notes)
    return {name: folder_rows(folders[name], size, channels, notes) for name in chosen}


def _dataset_parts(data: str, read: Callable[[Any, str], ImageRows], notes: list[str]) -> dict[str, ImageRows]:
    from datasets import config, load_dataset

    from udm_text.common import check_place

    try:
        if not Path(config.HF_DATASETS_CACHE, data.replace("/", "___")).exists():
            check_place(data, "file or folder", kind="dataset")  # the Hub is asked once, and not for most of a minute
        found: Any = load_dataset(data)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"data must be 'digits', a folder of images or of MNIST's files, or a `datasets` data set; {data!r} is "
            f"none that could be loaded: {type(error).__name__}: {reason}"
        ) from None
    if "train" not in found:
        raise ValueError(f"{data} has no split named train, only {', '.join(found)}")
    return {name: read(found[name], f"{data}[{name}]") for name in _chosen(list(found), data, notes)}
