"""The figures of the page on the loop are those that its own code draws."""

import importlib.util

import numpy
from PIL import Image

from tests.helpers import ROOT


def drawer():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_in_the_docs_are_those_that_are_drawn_now(tmp_path):
    words, *pictures = drawer().draw(tmp_path)
    assert words.read_text() == (ROOT / "docs/images" / words.name).read_text()
    for path in pictures:
        drawn, kept = (numpy.asarray(Image.open(one), dtype=float) for one in (path, ROOT / "docs/images" / path.name))
        assert drawn.shape == kept.shape and abs(drawn - kept).mean() < 0.5  # other processors round otherwise


def test_new_letters_are_told_apart_from_those_that_stood():
    drawn = drawer().draw_words([["__", "__"], ["a_", "_b"], ["ac", "<b"]])
    assert [drawn.count(f'class="{kind}"') for kind in "mnk"] == [6, 4, 2] and "&lt;" in drawn
