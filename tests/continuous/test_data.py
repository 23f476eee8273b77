"""Images as rows: the embedded digits, files of every kind, and what is refused."""

import gzip
import struct

import pytest
import torch
from PIL import Image

from continuous.data import (
    ImageRows,
    collate_images,
    digits,
    folder_rows,
    from_bytes,
    hold_out,
    load_images,
    read_idx,
    read_image,
    to_bytes,
)


@pytest.fixture(scope="module")
def splits():
    return digits()


def write_idx(path, values):
    raw = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + bytes(values.flatten())
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_png(path, seed, size=(6, 6), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "RGB": 3}[mode]
    pixels = torch.randint(256, (*size, channels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray((pixels[..., 0] if mode == "L" else pixels).numpy()).save(path)
    return pixels


def test_the_digits_are_split_without_overlap_and_each_class_gives_its_share(splits):
    assert (len(splits.train), len(splits.validation)) == (1297, 500)
    assert splits.train.shape == (1, 8, 8) and splits.train.num_classes == 10 and splits.train.levels == 17
    counts, held = (part.labels.bincount(minlength=10) for part in (splits.train, splits.validation))
    expected = (counts + held) * 500 / 1797
    assert (held - expected).abs().max() < 1.0
    together = torch.cat((splits.train.images, splits.validation.images)).flatten(1)
    assert len(together.unique(dim=0)) == 1797  # no image on both sides
    assert splits.train.images.min() == -1.0 and splits.train.images.max() == 1.0
    assert ((splits.train.images + 1) * 8).frac().abs().max() == 0  # 17 levels


def test_the_split_of_the_digits_is_the_same_in_every_run(splits):
    # A change of these numbers is a change of every figure that was ever measured on held-out digits.
    again = digits()
    assert torch.equal(again.validation.images, splits.validation.images)
    assert splits.validation.labels[:12].tolist() == FIRST_LABELS
    assert int(((splits.validation.images + 1) * 8).sum()) == INK


FIRST_LABELS, INK = [3, 3, 6, 7, 3, 6, 7, 7, 7, 3, 0, 8], 157229


def test_a_loader_that_asks_for_batches_gets_what_rows_collated_give(splits):
    index = [5, 3, 5]
    rows = [splits.train[i] for i in index]
    batch = collate_images(splits.train.__getitems__(index))
    assert batch.keys() == {"images", "labels"}
    assert all(torch.equal(batch[name], collate_images(rows)[name]) for name in batch)


def test_bytes_survive_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(values)), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_holding_out_takes_rows_of_every_class_by_their_share():
    rows = ImageRows(torch.zeros(30, 1, 2, 2), torch.tensor([0] * 20 + [1] * 10))
    parts = hold_out(rows, 9)
    assert parts.validation.labels.bincount().tolist() == [6, 3] and len(parts.train) == 21


@pytest.mark.parametrize("end", [".gz", ""])
def test_idx_files_of_mnist_become_rows(tmp_path, end):
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 7), ("t10k", 3)):
        pixels = torch.randint(256, (count, 4, 5), generator=generator, dtype=torch.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{end}", pixels)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", torch.arange(count, dtype=torch.uint8))
    found = load_images(str(tmp_path))
    assert found.train.shape == (1, 4, 5) and len(found.train) == 7 and len(found.validation) == 3
    assert torch.equal(to_bytes(found.validation.images[:, 0]), pixels)
    assert found.validation.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\0\0\x08\x01\0\0\0\x05abc", "should hold 5 bytes"),
        (b"PK\3\4", "must begin with 00 00 08"),
        (b"", "must begin with 00 00 08"),
    ],
)
def test_a_file_that_is_no_idx_file_is_refused_by_name(tmp_path, raw, words):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{path.name}.*{words}"):
        read_idx(path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"abcdef")[:-3])
    with pytest.raises(ValueError, match="cut.gz is not a readable gzip file"):
        read_idx(tmp_path / "cut.gz")


def test_a_folder_of_classes_is_read_pixel_by_pixel(tmp_path):
    pixels = write_png(tmp_path / "b" / "one.png", 1)
    write_png(tmp_path / "a" / "two.png", 2)
    rows = folder_rows(tmp_path)
    assert rows.classes == ["a", "b"] and rows.labels.tolist() == [0, 1] and rows.shape == (1, 6, 6)
    assert torch.equal(to_bytes(rows.images[1]), pixels.permute(2, 0, 1))


def test_a_folder_with_train_and_test_inside_keeps_its_split(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for i in range(count):
            write_png(tmp_path / part / f"{i}.png", i, mode="RGB")
    found = load_images(str(tmp_path))
    assert (len(found.train), len(found.validation)) == (4, 2) and found.train.shape == (3, 6, 6)
    assert found.train.labels is None
    small = load_images(str(tmp_path), size=4, channels=1)
    assert small.train.shape == (1, 4, 4)


def test_images_that_cannot_be_read_are_named(tmp_path):
    write_png(tmp_path / "good.png", 0)
    bad = tmp_path / "torn.png"
    bad.write_bytes((tmp_path / "good.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="torn.png cannot be read as an image"):
        load_images(str(tmp_path))
    bad.unlink()
    write_png(tmp_path / "wide.png", 0, size=(6, 8))
    with pytest.raises(ValueError, match=r"wide.png has shape \(1, 6, 8\).*--image_size"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), size=6).train.shape == (1, 6, 6)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_square_image_of_the_right_size_is_untouched(tmp_path, mode):
    pixels = write_png(tmp_path / "a.png", 3, mode=mode)
    found = read_image(tmp_path / "a.png", "a.png", 6)
    assert torch.equal(to_bytes(found), pixels.permute(2, 0, 1))
    assert torch.equal(found, read_image(tmp_path / "a.png", "a.png"))


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_square_of_an_image_is_kept_and_its_ends_are_cut(wide):
    pixels = torch.full((6, 10), 255, dtype=torch.uint8)  # white, with a black mark in the middle
    pixels[2:4, 4:6] = 0
    ends = torch.tensor([0, 1, 8, 9])
    pixels[:, ends] = 100
    square = pixels[:, 2:8]
    pixels, square = (pixels, square) if wide else (pixels.T.contiguous(), square.T)
    image = Image.fromarray(pixels.numpy())
    assert torch.equal(to_bytes(read_image(image, "it", 6))[0], square)  # the shorter side has the size already
    small = read_image(Image.fromarray(pixels.repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()), "it", 6)
    assert small.shape == (1, 6, 6) and (to_bytes(small)[0].int() - square.int()).abs().max() < 40
    even = read_image(Image.new("L", (31, 17) if wide else (17, 31), 77), "it", 12)
    assert even.shape == (1, 12, 12) and to_bytes(even).unique().tolist() == [77]


def test_a_datasets_folder_is_read_by_its_feature_types(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    pixels = [write_png(tmp_path / f"{i}.png", i) for i in range(4)]
    features = Features({"image": ImageFeature(), "kind": ClassLabel(names=["cat", "dog"])})
    part = Dataset.from_dict({"image": paths, "kind": [0, 1, 1, 0]}, features=features)
    home = tmp_path / "set"
    home.mkdir()
    part.to_parquet(home / "train.parquet")
    found = load_images(str(home), validation_share=0.25)
    assert found.train.classes == ["cat", "dog"] and (len(found.train), len(found.validation)) == (3, 1)
    every = torch.cat((found.train.images, found.validation.images))
    assert {tuple(x.flatten().tolist()) for x in to_bytes(every)} == {tuple(p.flatten().tolist()) for p in pixels}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(2, 8, 8)}, r"images must have shape \(N, C, H, W\), got \(2, 8, 8\)"),
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "images must be floating point"),
        ({"images": torch.full((2, 1, 8, 8), 200.0)}, r"images must lie in \[-1, 1\], got values in \[200, 200\]"),
        ({"images": torch.full((2, 1, 8, 8), torch.nan)}, "images must be finite, got 128 values"),
        ({"images": torch.zeros(0, 1, 8, 8)}, "at least one image"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be \(2,\) int64"),
        ({"labels": torch.tensor([0, -1])}, "labels must be class indices from 0"),
        ({"labels": torch.tensor([0, 2]), "classes": ["a", "b"]}, "classes names 2 of them"),
        ({"levels": 1}, "levels must be at least 2"),
    ],
)
def test_rows_that_are_no_images_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        ImageRows(**{"images": torch.zeros(2, 1, 8, 8), **change})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"data": "digits", "size": 16}, "the digits are 8 x 8"),
        ({"data": "digits", "channels": 2}, "channels must be 1"),
        ({"data": "digits", "validation_share": 1.5}, "validation_share must lie between 0 and 1"),
        ({"data": "no/such/set"}, "data must be 'digits', a folder"),
    ],
)
def test_data_that_is_not_there_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        load_images(**how)
