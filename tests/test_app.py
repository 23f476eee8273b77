"""`udm app`: what its buttons do, without a page; what it refuses; the folder of a Space."""

import io
import itertools
import re
import threading

import numpy
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from continuous.degradations import Blur
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.pipeline import ImagePipeline
from continuous.processes import ColdProcess, GaussianProcess
from tests.helpers import udm_here
from tests.models import COUNTS, make_tokenizer, text_config, wrap
from udm_text.cli import page
from udm_text.cli.page import markup, work
from udm_text.cli.page.space import export_space
from udm_text.cli.page.work import Painter, Settings, Writer
from udm_text.cli.terminal import BLOCK
from udm_text.framing import tokenizer_fields
from udm_text.pipeline_udm import UDMGenerationPipeline

HOSTILE = "<img src=x onerror=alert(1)> </div><script>alert(2)</script> ${alert(3)} {{alert(4)}} &amp; \u202e"


def make_writer(process: str = "mask", family: str = "bert", **fields) -> Writer:
    """A random model of the words of `models.TEXTS`; of bytes and pieces of them by family "roberta"."""
    tokenizer = make_tokenizer(family)
    config = text_config(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    own = tokenizer_fields(tokenizer, config.vocab_size)
    model = wrap(config, process, length_counts=COUNTS, **own, **fields)
    return Writer(UDMGenerationPipeline(model=model, tokenizer=tokenizer), process, pause=0.0)


def make_painter(process=None, **fields) -> Painter:
    """A random model of grey images of 4 x 4."""
    process = GaussianProcess.vp("cosine", 20) if process is None else process
    fields = {"image_shape": [1, 4, 4], "network": {"kind": "mlp", "width": 16, "blocks": 1}, **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageDenoiser(ImageConfig(process=process.to_dict(), **fields))
    return Painter(ImagePipeline(model), "images", pause=0.0)


@pytest.fixture(scope="module")
def writer():
    return make_writer()


@pytest.fixture(scope="module")
def cold():
    return make_painter(ColdProcess(Blur(T=4, std=2.0)), prediction="x0")


def bare(html: str) -> str:
    """The text of some HTML, masks as blocks."""
    import html as escapes

    return escapes.unescape(re.sub(r"<[^>]*>", "", re.sub(r'<span class="mask"[^>]*></span>', BLOCK, html)))


# what is shown -------------------------------------------------------------------------------------------------------

TEXTS = st.text("ab <&\n░é", max_size=24)


@given(TEXTS, TEXTS)
@settings(max_examples=150, deadline=None)
def test_edits_lead_from_one_text_to_the_other_and_none_of_them_back(before, after):
    edits = markup.find_edits(before, after)
    assert markup.apply_edits(before, edits) == after and markup.apply_edits(before, []) == before
    shown = markup.edited(before, edits)
    assert (
        bare(re.sub("<ins>[^<]*</ins>", "", shown)) == before and bare(re.sub("<del>[^<]*</del>", "", shown)) == after
    )
    assert bare(markup.marked(before, after)) == after


def test_one_edit_of_several_is_undone_and_the_others_stand():
    before, after = "teh cat sat on mat", "the cat sat on the mat"
    edits = markup.find_edits(before, after)
    assert [markup.describe_edit(i, before, edit) for i, edit in enumerate(edits, 1)] == [
        "1. teh → the",
        "2. the put in",
    ]
    assert markup.apply_edits(before, edits[1:]) == "teh cat sat on the mat"
    assert markup.apply_edits(before, edits[:1]) == "the cat sat on mat"


def test_what_is_new_is_marked_and_masks_are_boxes():
    shown = markup.marked(f"the {BLOCK} {BLOCK} on", f"the cat {BLOCK} on")
    assert "<mark>cat</mark>" in shown and shown.count('class="mask"') == 1 and "<mark>the" not in shown


def test_nothing_that_is_shown_holds_a_tag_or_a_control_character_of_a_text():
    edits = tuple(markup.find_edits("a b", HOSTILE))
    shown = [markup.marked("", HOSTILE), markup.cards([HOSTILE], done=True), markup.problem(ValueError(HOSTILE))]
    shown += [Writer.show_edits("a b", edits), markup.picture(torch.zeros(1, 2, 2, dtype=torch.uint8), HOSTILE)]
    for html in shown:
        assert (
            not re.search(r"<(?!/?(div|span|mark|del|ins|figure|figcaption)\b)(?!img alt)", html)
            and "\u202e" not in html
        )
        assert "<script" not in html and "onerror=alert(1)&gt;" in html


# watching ------------------------------------------------------------------------------------------------------------


def test_what_is_handed_over_comes_one_by_one_and_errors_come_too():
    assert list(work.watch(lambda put: [put(i) for i in range(3)] and "end")) == [0, 1, 2, "end"]
    with pytest.raises(KeyError):
        list(work.watch(lambda put: {}["x"]))


def test_who_stops_looking_stops_the_work():
    made = []
    before = threading.active_count()
    walk = work.watch(lambda put: [made.append(i) or put(i) for i in range(10**6)])
    assert list(itertools.islice(walk, 3)) == [0, 1, 2]
    walk.close()
    assert len(made) < 8 and threading.active_count() == before


# texts ---------------------------------------------------------------------------------------------------------------


def test_a_walk_is_that_of_the_pipeline_and_ends_with_its_texts(writer):
    how = Settings(num_steps=2, order="confidence", temperature=0.7)
    *walk, last = writer.fill("the cat [MASK] on [MASK] mat [MASK]", how, 2, seed=3)
    options = {"num_steps": 2, "order": "confidence", "temperature": 0.7, "seed": 3, "num_return_sequences": 2}
    found = writer.pipe("the cat [MASK] on [MASK] mat [MASK]", **options)
    assert last.html == markup.cards([record["generated_text"] for record in found], done=True)
    assert [frame.html.count('class="mask"') for frame in walk] == [6, 2, 0, 0] or len(walk) >= 3
    assert "mark" in walk[1].html and last.note.startswith("6 tokens in 2 steps, 2 calls")


def test_two_who_look_at_once_see_their_own(writer):
    a, b = (list(writer.fill(f"{word} [MASK] [MASK]", Settings(), 1, 0)) for word in ("cat", "dog"))
    walks = [writer.fill(f"{word} [MASK] [MASK]", Settings(), 1, 0) for word in ("cat", "dog")]
    both = list(zip(*walks, strict=True))
    assert [one for one, _ in both] == a and [other for _, other in both] == b and a != b


def test_writing_takes_a_length_and_growing_texts_grow(writer):
    *_, last = writer.write("the", 5, Settings(), 1, 0)
    assert last.note.startswith("4 tokens in 4 steps")
    growing = make_writer("delete")
    assert growing.takes_blanks and growing.orders == [] and growing.fills
    walk = [bare(frame.html) for frame in growing.write("", 4, Settings(), 1, 0)]
    assert len(walk) > 4 and len(walk[1]) <= len(walk[-1])


def test_a_blank_is_filled_by_as_many_words_as_the_model_likes():
    wide = make_writer(blank_widths=3)
    assert wide.takes_blanks
    *walk, last = wide.fill("the <blank> sat <blank>", Settings(), 1, 1)
    [record] = wide.pipe("the <blank> sat <blank>", seed=1)
    assert bare(last.html) == record["generated_text"] and "<blank>" not in bare(walk[0].html)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda w: w.write("x" * 2001, 0, Settings(), 1, 0), "the beginning has 2001 characters"),
        (lambda w: w.write("", 257, Settings(), 1, 0), "the length may be 256 at most"),
        (lambda w: w.write("", 4, Settings(), 9, 0), "the number of samples may be 8 at most"),
        (lambda w: w.write("", 4, Settings(num_steps=257), 1, 0), "the number of steps may be 256 at most"),
        (lambda w: w.write("", 4, Settings(temperature=float("nan")), 1, 0), "temperature must lie between 0 and 2"),
        (lambda w: w.write("", 4, Settings(order="<b>"), 1, 0), "the order must be one of random"),
        (lambda w: w.write("", 4, Settings(), 1, -1), "the seed must be at least 0"),
        (lambda w: w.write("a " * 300, 0, Settings(), 1, 0), "more than 256 tokens"),
        (lambda w: w.fill("nothing is missing", Settings(), 1, 0), "nothing is missing in this text"),
        (lambda w: w.fill("a <blank>", Settings(), 1, 0), "no width head"),
        (lambda w: w.repair("a cat", 1, 0.0), "max_edits is of the substitute or edit process"),
        (lambda w: w.repair(" ", 1, 0.0), "there is nothing to repair"),
        (lambda w: w.repair("a", 17, 0.0), "the number of edits may be 16 at most"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(writer, call, said):
    *_, last = call(writer)
    assert said in bare(last.html) and last.html.startswith('<div class="problem">')


def test_a_repair_is_that_of_the_pipeline_and_each_edit_can_be_undone():
    repairer = make_writer("substitute")
    assert repairer.repairs
    text = "the cat  sat on teh mat"
    *_, last = repairer.repair(text, 3, 0.0)
    [record] = repairer.pipe(text, max_edits=3, seed=0)
    assert last.edits and markup.apply_edits(text, last.edits) == record["generated_text"] != text
    assert last.html == repairer.show_edits(text, last.edits) and "<del>" in last.html
    assert bare(repairer.show_edits(text, ())) == text * 2


def test_two_settings_are_shown_beside_each_other(writer):
    cool, hot = Settings(temperature=0.0), Settings(temperature=2.0)
    *_, (a, b) = writer.compare("the", 6, (cool, hot), 2, 5)
    assert [a] == [*writer.write("the", 6, cool, 2, 5)][-1:] and [b] == [*writer.write("the", 6, hot, 2, 5)][-1:]


def test_the_price_is_that_of_the_measured_curve():
    priced = make_writer(step_curve=[1.0, 3.0])  # c at half and at all of a row masked
    # four tokens, one a step: (c(4/4) + c(3/4) + c(2/4) + c(1/4)) / 4; in two steps (2 c(4/4) + 2 c(2/4)) / 4
    assert "4 steps for 4 tokens: 1.750 nats a token" in priced.price(4, Settings())
    assert "2 steps for 4 tokens: 2.000 nats a token" in priced.price(4, Settings(num_steps=2))
    assert "+0.250 beside one token a step" in priced.price(4, Settings(num_steps=2))
    assert "not known of these settings" in priced.price(4, Settings(temperature=0.5))
    assert "was not measured" in make_writer().price(4, Settings())
    assert "not known of this model" in make_writer("substitute").price(4, Settings())
    *_, last = priced.write("", 4, Settings(num_steps=2), 1, 0)
    assert "Expected price of these steps: 2.000 nats a token" in last.note


# images --------------------------------------------------------------------------------------------------------------


def pixels(html: str) -> list[torch.Tensor]:
    import base64

    found = re.findall(r"base64,([^\"]+)", html)
    images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]
    return [torch.tensor(numpy.asarray(image)) for image in images]


def test_images_are_those_of_the_pipeline_and_their_way_is_shown():
    from continuous.grids import grid

    painter = make_painter(classes=["nought", "one"])
    assert painter.draws and painter.labels == ["nought", "one"]
    *walk, last = painter.draw("one", 4, 3, seed=2)
    assert len(walk) == 3 and len(pixels(last.html)) == 2
    expected = grid(painter.pipe.generate(4, "one", num_steps=3, seed=2))[0]
    assert torch.equal(pixels(last.html)[0], expected)
    assert "may be 64 at most" in bare([*painter.draw("", 65, 3, 0)][-1].html)


def test_an_upload_of_any_size_is_restored(cold, tmp_path):
    assert not cold.draws and cold.restores
    Image.new("RGB", (37, 20), "red").save(tmp_path / "red.png")
    *walk, last = cold.restore(str(tmp_path / "red.png"), True, 3, seed=0)
    assert len(walk) == 3 and "sent, degraded, restored" in last.html
    assert len([*cold.restore(str(tmp_path / "red.png"), False, 2, seed=0)]) == 3


def test_what_is_no_image_or_too_large_is_refused_in_a_sentence(cold, tmp_path, monkeypatch):
    (tmp_path / "no.png").write_text(HOSTILE, encoding="utf-8")
    Image.new("1", (5000, 5000)).save(tmp_path / "wide.png")
    [refused] = cold.restore(None, True, 1, 0)
    assert "there is no image" in refused.html
    [refused] = cold.restore(str(tmp_path / "no.png"), True, 1, 0)
    assert "what was sent cannot be read as an image" in refused.html
    [refused] = cold.restore(str(tmp_path / "wide.png"), True, 1, 0)
    assert "5000 x 5000 pixels" in refused.html
    monkeypatch.setattr(work, "MOST_BYTES", 10)
    [refused] = cold.restore(str(tmp_path / "wide.png"), True, 1, 0)
    assert "and this page takes" in refused.html


# the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "example.org", ""])
def test_an_address_that_others_can_reach_is_refused(host):
    assert "--export-space" in str(udm_here("app", "runs/none", "--host", host, code=1).exception)
    for own in page.LOOPBACK:
        page.check_host(own)


def test_without_gradio_it_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'udm-text[app]'" in str(udm_here("app", "runs/none", code=1).exception)


@pytest.fixture(scope="module")
def saved(writer, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "no: words"
    writer.pipe.save_pretrained(str(place))
    (place / "run.json").write_text("{}")
    (place / "report.json").write_text('{"data": "/home/me/secret.txt"}')
    return place


def test_a_space_holds_the_page_its_code_and_the_model(saved, tmp_path):
    target = tmp_path / "space"
    said = udm_here("app", saved, "--export-space", target).stdout
    assert {"app.py", "README.md", "requirements.txt"} <= {path.name for path in target.iterdir()}
    assert str(target / "app.py") in said and "hf upload" in said
    head = yaml.safe_load((target / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["title"] == "no: words"
    needed = (target / "requirements.txt").read_text().splitlines()
    assert f"gradio=={head['sdk_version']}" in needed and any(line.startswith("transformers") for line in needed)
    assert "serve_space(['models/no: words'])" in (target / "app.py").read_text()
    model = {path.name for path in (target / "models/no: words").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model and "run.json" not in model
    assert "/home/me" not in (target / "models/no: words/report.json").read_text()
    assert (target / "udm_text/cli/page/layout.py").is_file() and (target / "continuous/pipeline.py").is_file()
    with pytest.raises(FileExistsError):
        export_space([str(saved)], target)
    with pytest.raises(ValueError, match="the same name"):
        export_space([str(saved), str(target / "models/no: words")], tmp_path / "two")


def test_a_space_that_cannot_be_written_leaves_nothing(saved, tmp_path, monkeypatch):
    import shutil

    def full(*args, **how):
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="no space left"):
        export_space([str(saved)], tmp_path / "space")
    with pytest.raises(OSError):
        export_space([str(tmp_path / "gone")], tmp_path / "space")
    assert list(tmp_path.iterdir()) == []
