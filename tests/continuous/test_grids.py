"""Pages of images, pixel by pixel."""

import pytest
import torch
from PIL import Image

from continuous.grids import save_grid, save_png, save_strip, tile


def test_a_page_holds_every_image_at_its_place_enlarged_without_smoothing():
    rows = [torch.full((2, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0)]
    rows[0][1, 0, 0, 1] = 0.0
    page = tile(rows, scale=3)
    assert page.shape == (1, 2 * 10 + 4, 2 * 10 + 4) and page.dtype == torch.uint8
    assert (page[0, 4:10, 4:10] == 0).all() and (page[0, :4] == 255).all()
    assert page[0, 4:10, 14:20].tolist() == [[0] * 3 + [128] * 3] * 3 + [[0] * 6] * 3
    assert (page[0, 14:20] == 255).all()  # a white image, and nothing beside it
    assert tile(rows).shape[-1] == 2 * 68 + 4  # at least 64 pixels an image


def test_a_strip_shows_first_and_last_state_and_others_evenly(tmp_path):
    states = [torch.full((2, 3, 4, 4), -1.0 + 2 * i / 10) for i in range(11)]
    save_strip(tmp_path / "strip.png", states, count=3, scale=1)
    with Image.open(tmp_path / "strip.png") as page:
        assert page.mode == "RGB" and page.size == (3 * 8 + 4, 2 * 8 + 4)
        assert [page.getpixel((5 + 8 * i, 5))[0] for i in range(3)] == [0, 128, 255]


def test_what_is_no_page_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        tile([])
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        save_grid(tmp_path / "a.png", torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="written as .png"):
        save_png(tmp_path / "a.jpg", torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one state"):
        save_strip(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())
