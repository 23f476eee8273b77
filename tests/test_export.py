"""Trajectories as files: a page that stands alone and says what was written, a GIF of one frame a step."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.helpers import udm, udm_here
from tests.models import make_tokenizer, make_udm
from udm_text.cli import export
from udm_text.cli.export import as_html, check_target, gif_frames, save_trajectories
from udm_text.cli.terminal import BLOCK, readable

TRACKS = [
    [f"{BLOCK} {BLOCK} sat", f"the {BLOCK} sat", "the cat sat"],
    [f"<b>{BLOCK}</b> & {BLOCK}", f'<b>x</b> & "{BLOCK}"', '<b>x</b> & "y"', "</pre><script>alert(1)</script>"],
]


class Page(HTMLParser):
    """The texts of a page's list, step by step; its tags; what it would load from elsewhere."""

    VOID = ("meta", "input")

    def __init__(self, source):
        super().__init__()
        self.texts, self.tags, self.loads, self.open, self.marked = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "li":
            self.texts.append([])
        if tag == "pre":
            self.texts[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.texts[-1][-1] += data
            if self.open[-1] == "mark":
                self.marked.append(data)


def test_a_page_holds_every_state_of_every_text_escaped_and_loads_nothing():
    source = as_html(TRACKS, "a & <i>b</i>")
    page = Page(source)
    assert page.texts == TRACKS
    assert page.tags.count("script") == 1 and "b" not in page.tags and "i" not in page.tags
    assert not page.loads and "http" not in source and "url(" not in source
    assert page.tags.count("input") == 1 and 'max="3"' in source


def test_what_a_step_changed_is_marked_and_nothing_else():
    page = Page(as_html([["░░ a ░░", "░░ a b", "░░ a b", "xyz a b"]], "t"))
    assert page.marked == ["b", "xyz"]
    assert Page(as_html([["aa", "aaa", "a", ""]], "t")).texts == [["aa", "aaa", "a", ""]]


def test_a_gif_has_a_frame_for_each_step_all_of_one_size(tmp_path):
    path = tmp_path / "out.gif"
    save_trajectories(path, TRACKS)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        sizes, images, times = set(), set(), []
        for i in range(image.n_frames):
            image.seek(i)
            sizes.add(image.size)
            images.add(image.convert("L").tobytes())
            times.append(image.info["duration"])
    assert len(sizes) == 1 and len(images) == 4
    assert times[-1] > times[0]


def test_states_that_do_not_differ_keep_their_frame(tmp_path):
    save_trajectories(tmp_path / "out.gif", [["same"] * 5])
    with Image.open(tmp_path / "out.gif") as image:
        assert image.n_frames == 5


def test_long_texts_are_wrapped_and_long_walks_thinned_with_both_ends_kept(monkeypatch):
    [frame] = gif_frames([["word " * 200 + "\n\nend"]])
    assert frame.width < 1000 and frame.height > 300
    monkeypatch.setattr(export, "MAX_GIF_FRAMES", 4)
    track = [str(i) * 3 for i in range(100)]
    frames = gif_frames([track])
    assert len(frames) == 4
    monkeypatch.setattr(export, "MAX_GIF_FRAMES", 100)
    every = gif_frames([track])
    assert len(every) == 100
    assert frames[0].tobytes() == every[0].tobytes() and frames[-1].tobytes() == every[-1].tobytes()


@pytest.mark.parametrize("name", ["out.html", "out.gif", "OUT.GIF"])
def test_a_file_is_replaced_by_a_complete_one_or_left_as_it_was(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text("before")
    with pytest.raises(ValueError, match="at least one"):
        save_trajectories(path, [[]])

    def broken(*arguments):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(export, "as_html", broken)
        patch.setattr(export, "gif_frames", broken)
        with pytest.raises(RuntimeError, match="broken"):
            save_trajectories(path, TRACKS)
    assert path.read_text() == "before"
    save_trajectories(path, TRACKS)
    assert path.read_bytes()[:6] in (b"<!doct", b"GIF89a") and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.mp4", "out", "out.html.txt", "no/such/out.gif", "folder.html"])
def test_other_suffixes_and_places_that_are_not_there_are_refused(tmp_path, name):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match="--save must"):
        check_target(tmp_path / name)


def test_without_pillow_a_gif_is_refused_and_a_page_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match="a GIF needs Pillow"):
        check_target(tmp_path / "out.gif")
    assert check_target(tmp_path / "out.html")


def test_states_are_shown_with_blocks_for_masks():
    assert readable(make_tokenizer("bert"), "the [MASK] [UNK] sat ") == f"the {BLOCK} [UNK] sat"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer("bert")
    make_udm(length_counts=[0, 0, 0, 0, 1]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_command_saves_how_its_texts_came_to_be_and_prints_what_it_prints_without(model_folder, tmp_path):
    call = ["generate", str(model_folder), "-n", "2", "--length", "4", "--seed", "0", "--order", "confidence"]
    call += ["--order-noise", "0.5", "--revise", "1", "--forbid", "t", "--json"]
    page, plain = (udm_here(*call, *more) for more in (["--save", tmp_path / "out.html"], []))
    assert page.stdout == plain.stdout
    texts = Page((tmp_path / "out.html").read_text(encoding="utf-8")).texts
    [group] = [one["generated"] for one in json.loads(plain.stdout)]
    assert [track[-1] for track in texts] == [record["generated_text"] for record in group]
    assert [len(track) for track in texts] == [7, 7] and texts[0][0].count(BLOCK) == 4
    assert texts[0][5].count(BLOCK) == 1, "the token that is opened again"


def test_the_command_refuses_another_suffix_before_it_loads_the_model():
    result = udm("generate", "no/such/model", "--save", "out.mp4", code=1)
    assert result.stderr.strip() == "udm: --save must end in .html or .gif, got 'out.mp4'"
