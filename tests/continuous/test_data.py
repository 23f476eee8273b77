"""Images as rows: the embedded digits, files of every kind, and what is refused."""

import gzip
import json
import struct
import zlib

import numpy
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
    image_files,
    load_images,
    mnist,
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


def test_too_few_images_to_hold_one_out_are_refused_by_their_number(tmp_path):
    one = ImageRows(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="rows must be at least 2, of which one can be held out, got 1"):
        hold_out(one, 1)
    with pytest.raises(ValueError, match="count, of the rows that are held out, must lie between 1 and 2 of 3, got 3"):
        hold_out(ImageRows(torch.zeros(3, 1, 2, 2)), 3)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"{tmp_path} holds 1 image, and one has to be held out"):
        load_images(str(tmp_path))


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


def test_columns_of_numbers_are_the_conditions_of_images(tmp_path):
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

    pixels = [Image.fromarray(torch.full((4, 4), 10 * i, dtype=torch.uint8).numpy()) for i in range(6)]
    kinds = {
        "image": ImageFeature(),
        "size": Value("float32"),
        "place": Sequence(Value("int64")),
        "word": Value("string"),
    }
    values = {
        "image": pixels,
        "size": [i / 2 for i in range(6)],
        "place": [[i, -i] for i in range(6)],
        "word": ["a"] * 6,
    }
    values["words"] = [[[i, 1.0], [0.5, 2.0], [i, i]] for i in range(6)]
    kinds["words"] = Sequence(Sequence(Value("float32")))
    Dataset.from_dict(values, features=Features(kinds)).to_parquet(str(tmp_path / "train.parquet"))
    splits = load_images(str(tmp_path), validation_share=0.3, condition_columns=("place", "size"))
    assert splits.train.conditions.shape == (4, 3) and splits.validation.conditions.shape == (2, 3)
    for rows in (splits.train, splits.validation):
        level = ((rows.images[:, 0, 0, 0] + 1) * 127.5 / 10).round()
        assert torch.equal(rows.conditions, torch.stack((level, -level, level / 2), dim=1))
        assert torch.equal(rows.batch(torch.tensor([1]))["conditions"], rows.conditions[1:2])
    assert load_images(str(tmp_path), condition_columns=("words",)).train.conditions.shape == (5, 3, 2)
    for columns, words in (
        (("width",), "has no column 'width' of conditions, only image, size, place, word, words"),
        (("word",), "column 'word' must hold numbers, as many in every row"),
        (("size", "words"), "of several columns of conditions none may hold lists of vectors"),
    ):
        with pytest.raises(ValueError, match=words):
            load_images(str(tmp_path), condition_columns=columns)
    with pytest.raises(ValueError, match="condition_columns are columns of a `datasets` data set, and digits is none"):
        load_images("digits", condition_columns=("size",))
    with pytest.raises(ValueError, match=r"conditions must be finite float32 \(6, d\)"):
        ImageRows(torch.zeros(6, 1, 4, 4), conditions=torch.zeros(5, 2))


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


# files as people have them ------------------------------------------------------------------------------------------


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    pixels = numpy.arange(24, dtype=numpy.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = to_bytes(read_image(tmp_path / "a.png", "a.png"))
    assert torch.equal(found[0], torch.from_numpy(numpy.rot90(pixels, -1).copy()))


@pytest.mark.parametrize(
    ("mode", "pixel", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (200, 0, 0, 255), [200, 0, 0]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
        ("LA", (0, 0), [255]),
        ("LA", (10, 255), [10]),
    ],
)
def test_what_is_transparent_lies_on_white(tmp_path, mode, pixel, seen):
    Image.new(mode, (4, 4), pixel).save(tmp_path / "a.png")
    assert to_bytes(read_image(tmp_path / "a.png", "a.png"))[:, 0, 0].tolist() == seen


def test_a_transparent_colour_of_a_palette_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 7, 7, 7])
    image.save(tmp_path / "a.gif", transparency=1)
    assert to_bytes(read_image(tmp_path / "a.gif", "a.gif")).unique().tolist() == [255]


@pytest.mark.parametrize(("name", "order"), [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.pgm", ">u2")])
def test_sixteen_bits_of_either_byte_order_are_the_nearest_of_eight(tmp_path, name, order):
    values = [0, 128, 129, 257, 32768, 65535 - 129, 65535 - 128, 65535, 300]
    path = tmp_path / name
    if name == "a.tif":
        write_tiff(path, numpy.array(values, order).reshape(3, 3))
    else:
        Image.fromarray(numpy.array(values, "<u2").reshape(3, 3)).save(path)
    assert path.read_bytes()[:2] == {"<u2": b"II", ">u2": b"MM"}[order] or name != "a.tif"
    assert to_bytes(read_image(path, name)).flatten().tolist() == [0, 0, 1, 1, 128, 254, 255, 255, 1]
    assert read_image(path, name).shape == (1, 3, 3)


def write_tiff(path, values):
    """An uncompressed grey TIFF of 16 bits in the byte order of `values`."""
    mark = ">" if values.dtype.byteorder == ">" else "<"
    height, width = values.shape
    raw = values.tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(raw))]
    body = struct.pack(f"{mark}H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(f"{mark}HH", value, 0) if kind == 3 else struct.pack(f"{mark}I", value)
        body += struct.pack(f"{mark}HHI", tag, kind, 1) + packed
    head = {"<": b"II", ">": b"MM"}[mark] + struct.pack(f"{mark}HI", 42, 8 + len(raw))
    path.write_bytes(head + raw + body + b"\0\0\0\0")


def test_pixels_whose_range_is_not_known_are_refused_by_name(tmp_path):
    Image.fromarray(numpy.zeros((4, 4), numpy.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="f.tif has pixels of mode 'F'"):
        load_images(str(tmp_path))


def bomb(side):
    """A PNG of a kilobyte or so that says it is `side` x `side`."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("cut", [60, 200, 300])
def test_bombs_and_truncated_images_are_refused_by_name_in_one_line(tmp_path, cut):
    write_png(tmp_path / "good.png", 0, (20, 20))
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:cut])
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "a.png").write_bytes(bomb(50_000))
    for path in (tmp_path / "torn.png", tmp_path / "bomb" / "a.png"):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as an image: .") as caught:
            read_image(path, str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a.png cannot be read as an image: .*decompression bomb"):
        load_images(str(tmp_path / "bomb"))


def test_a_torn_image_of_a_data_set_is_refused_by_its_row(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    write_png(tmp_path / "good.png", 0)
    good = (tmp_path / "good.png").read_bytes()
    rows = [{"bytes": good, "path": None}, {"bytes": good[:50], "path": None}]
    for i, bad in enumerate((rows[1], None)):
        home = tmp_path / f"set{i}"
        home.mkdir()
        made = Dataset.from_dict({"image": [rows[0], bad]}, features=Features({"image": ImageFeature()}))
        made.to_parquet(home / "train.parquet")
        with pytest.raises(ValueError, match="row 1 (cannot be read as an image|holds no image)"):
            load_images(str(home))


def test_a_stray_image_beside_class_folders_is_refused_by_name(tmp_path):
    for name in ("a/1.png", "b/2.png", "stray.png"):
        write_png(tmp_path / name, 0)
    with pytest.raises(ValueError, match="1 images beside its 2 subfolders of images .first: .*stray.png"):
        load_images(str(tmp_path))
    (tmp_path / "stray.png").unlink()
    assert folder_rows(tmp_path).classes == ["a", "b"]


def test_hidden_files_and_folders_are_no_data(tmp_path):
    for name in ("a/1.png", "b/2.png", ".git/x.png", ".ipynb_checkpoints/1.png", "__MACOSX/a/1.png", "a/.trash/3.png"):
        write_png(tmp_path / name, 0)
    (tmp_path / "a" / "._1.png").write_bytes(b"no image at all")
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == ["a/1.png", "b/2.png"]
    assert folder_rows(tmp_path).classes == ["a", "b"]


def test_a_linked_folder_is_read_and_a_link_upwards_is_not_followed_for_ever(tmp_path):
    write_png(tmp_path / "elsewhere" / "1.png", 0)
    write_png(tmp_path / "data" / "a" / "1.png", 1)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    assert folder_rows(tmp_path / "data").classes == ["a", "b"]


@pytest.mark.parametrize("held", ["validation", "val", "test"])
def test_a_held_out_folder_is_kept_apart_under_each_of_its_names(tmp_path, held):
    for part, count in (("train", 4), (held, 2)):
        for i in range(count):
            write_png(tmp_path / part / "cat" / f"{i}.png", i)
    found = load_images(str(tmp_path))
    assert (len(found.train), len(found.validation), found.notes) == (4, 2, ()) and found.train.classes == ["cat"]


def test_nothing_is_left_out_in_silence(tmp_path):
    for i, part in enumerate(("train", "val", "test", "extra")):
        write_png(tmp_path / part / "1.png", i)
    (tmp_path / "train" / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    images = [Image.new("L", (6, 6), i) for i in range(3)]
    images[0].save(tmp_path / "train" / "2.gif", save_all=True, append_images=images[1:])
    found = load_images(str(tmp_path), channels=1)
    assert (len(found.train), len(found.validation)) == (2, 1)
    words = " | ".join(found.notes)
    for part in ("extra, test left out; train and val taken", "1 .txt (first: notes.txt)", "1 .csv", "2.gif"):
        assert part in words
    write_png(tmp_path / "stray.png", 0)
    with pytest.raises(ValueError, match="1 images beside its folder train .first: .*stray.png"):
        load_images(str(tmp_path))
    with pytest.warns(UserWarning, match="2.gif holds 3 frames"):
        read_image(tmp_path / "train" / "2.gif", "2.gif")


def test_a_held_out_folder_without_train_is_no_class(tmp_path):
    for part in ("val", "cat"):
        write_png(tmp_path / part / "1.png", 0)
    with pytest.raises(ValueError, match="holds a folder val to hold out and none named train"):
        load_images(str(tmp_path))


IDX_NAMES = [
    ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
    ("a", "b", "c", "d"),
    ("x/emnist-train-images.gz", "x/emnist-train-labels.gz", "x/emnist-test-images.gz", "x/emnist-test-labels.gz"),
]


@pytest.mark.parametrize("names", IDX_NAMES)
def test_idx_files_are_known_by_their_content(tmp_path, names):
    generator = torch.Generator().manual_seed(0)
    for count, images, labels in ((7, names[0], names[1]), (3, names[2], names[3])):
        pixels = torch.randint(256, (count, 4, 5), generator=generator, dtype=torch.uint8)
        for name, values in ((images, pixels), (labels, torch.arange(count, dtype=torch.uint8))):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_idx(tmp_path / name, values)
            write_idx(tmp_path / f"again-{name.replace('/', '-').removesuffix('.gz')}", values)  # unpacked beside it
    (tmp_path / "README").write_text("what this is")
    found = load_images(str(tmp_path))
    assert (len(found.train), len(found.validation)) == (7, 3) and "README" in found.notes[0]
    assert torch.equal(to_bytes(found.validation.images[:, 0]), pixels)
    assert found.validation.labels.tolist() == [0, 1, 2]


def test_one_pair_of_idx_files_is_split_and_what_is_no_pair_is_refused(tmp_path):
    write_idx(tmp_path / "images", torch.zeros(8, 4, 4, dtype=torch.uint8))
    write_idx(tmp_path / "labels", torch.zeros(8, dtype=torch.uint8))
    found = load_images(str(tmp_path), validation_share=0.25)
    assert (len(found.train), len(found.validation)) == (6, 2)
    (tmp_path / "labels").unlink()
    with pytest.raises(ValueError, match=r"got images images \(8, 4, 4\) and labels none"):
        mnist(tmp_path)
    write_idx(tmp_path / "labels", torch.zeros(9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="do not fit"):
        load_images(str(tmp_path))
    write_png(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match="keep them in two folders"):
        load_images(str(tmp_path))


def test_an_idx_file_that_promises_more_than_it_holds_is_refused_without_room_for_it(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"abc")
    with pytest.raises(ValueError, match="a should hold .* and holds 3"):
        load_images(str(tmp_path))


def test_a_model_is_no_data_set(tmp_path):
    write_png(tmp_path / "samples.png", 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "udm-image"}))
    with pytest.raises(ValueError, match="is a model, and no data set"):
        load_images(str(tmp_path))


def test_rows_may_carry_the_noise_they_came_of_and_then_no_class():
    images, noise = torch.zeros(3, 1, 2, 2), torch.arange(12.0).view(3, 1, 2, 2)
    rows = ImageRows(images, torch.tensor([0, -1, 1]), ["a", "b"], noise=noise)
    assert torch.equal(rows.take(torch.tensor([2, 0])).noise, noise[[2, 0]])
    batch = rows.batch(torch.tensor([1]))
    assert torch.equal(batch["noise"], noise[1:2]) and batch["labels"].tolist() == [-1]
    with pytest.raises(ValueError, match=r"noise must be of the shape of images, \(3, 1, 2, 2\), got \(2, 1, 2, 2\)"):
        ImageRows(images, noise=noise[:2])
    with pytest.raises(ValueError, match="labels must be class indices from 0, got -1"):
        ImageRows(images, torch.tensor([0, -1, 1]), ["a", "b"])
