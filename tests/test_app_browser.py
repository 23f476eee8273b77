"""`udm app` in a headless Chromium: type, click, watch, undo; two at once; nothing of the machine is in reach.

UDM_SHOWN="runs/latin runs/latin-repair runs/digits runs/digits-blur", models of masks, of repair and of images hot and
cold, draws the screenshots of the pages anew.
"""

import dataclasses
import io
import json
import os
import runpy
import socket
import threading
import urllib.error
import urllib.request

import pytest
from PIL import Image

from continuous.degradations import Blur
from continuous.processes import ColdProcess
from tests.browser import CHROMIUM, DRIVER, Browser, browser
from tests.helpers import ROOT, udm_here
from tests.test_app import make_painter, make_writer
from udm_text.cli.page import layout, load, work

HOSTILE = (
    "<img src=x onerror=window.hacked=1> </div><script>window.hacked=2</script> ${window.hacked=3} {{hacked}} &amp;"
)
SHOWN = os.environ.get("UDM_SHOWN", "").split()


def serve(models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = layout.build(models)
    layout.launch(page, "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
    return page


@pytest.fixture(scope="module")
def page():
    """The page of three random models, on one server for all tests."""
    cold = make_painter(ColdProcess(Blur(T=4, std=2.0)), prediction="x0")
    writer = dataclasses.replace(make_writer(), pause=0.1)
    served = serve([writer, make_writer("substitute", "roberta"), cold])
    yield served
    served.close()


@pytest.fixture(scope="module")
def window(page, tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no browser: apt-get install chromium chromium-driver")
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(page.local_url)
        yield opened


def choose(window: Browser, *tabs: str) -> None:
    for tab in tabs:
        window.click(f"//button[@role='tab'][normalize-space()='{tab}']")


def press(window: Browser, name: str) -> None:
    window.click(f"//button[normalize-space()='{name}'][not(@role='tab' or @tabindex)]")


def fill(window: Browser, text: str) -> None:
    choose(window, "mask", "Fill in")
    window.type("//label[contains(., 'A text with gaps')]//textarea", text)
    press(window, "Fill in")


DONE = "//div[contains(@class, 'card') and contains(@class, 'done')]"
RECORD = """
window.states = [];
new MutationObserver(() => window.states.push([...document.querySelectorAll('.result')]
  .filter(one => one.checkVisibility()).map(one => one.querySelectorAll('.mask').length)[0])
).observe(document.body, {subtree: true, childList: true});
"""


def test_a_text_is_typed_and_seen_to_fill_up(window):
    choose(window, "mask", "Fill in")
    window.run(RECORD)
    fill(window, "the cat [MASK] [MASK] [MASK] mat")
    seen = window.until(lambda: window.run("return document.querySelector('.card.done') && window.states"), "an end")
    masks = [count for count in seen if count]
    assert len(set(masks)) > 1 and masks == sorted(masks, reverse=True), seen  # fewer and fewer
    text = window.text(DONE)
    assert text.startswith("the cat ") and text.endswith(" mat") and "[MASK]" not in text
    window.find("//div[@class='note'][contains(., 'calls of the network')]")


def test_nothing_is_asked_of_another_machine(window):
    asked = window.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    here = window.run("return location.origin")
    assert asked and [name for name in asked if not name.startswith((here, "data:", "blob:"))] == []


def test_hostile_text_is_text(window):
    fill(window, f"{HOSTILE} [MASK]")
    window.until(lambda: "hacked" in window.text(DONE), "the text")
    assert window.text(DONE).startswith(HOSTILE)
    choose(window, "substitute", "Repair")
    window.type("//label[contains(., 'A text with errors')]//textarea", HOSTILE[:36])
    press(window, "Repair")
    window.find("//label[.//input[@type='checkbox']][contains(., '=')]")  # edits of its own words
    assert window.run("return [window.hacked === undefined, document.querySelectorAll('img[src=x]').length]") == [
        True,
        0,
    ]


def test_an_edit_is_marked_and_undone(window):
    choose(window, "substitute", "Repair")
    window.type("//label[contains(., 'A text with errors')]//textarea", "the cat sat on teh mat")
    press(window, "Repair")
    marks = "return [...document.querySelectorAll('.card del, .card ins')].map(one => one.textContent)"
    window.until(lambda: "teh" in window.run("return document.querySelector('.card del').parentNode.textContent"))
    window.find("//div[@class='note'][contains(., 'Untick an edit')]")
    boxes = "[...document.querySelectorAll('.edits input')].filter(one => one.checked)"
    count = window.run(f"return {boxes}.length")
    for _ in range(count):
        before = window.run(marks)
        window.run(f"{boxes}[0].click()")
        window.until(lambda before=before: len(window.run(marks)) < len(before), "an edit less")
    assert count and window.run(marks) == [] and window.text(DONE) == "the cat sat on teh mat"


def test_who_stops_a_walk_ends_it(window, monkeypatch):
    ended = []
    monkeypatch.setattr(work.Writer, "describe_walk", lambda *of: ended.append(of) or "")
    fill(window, "[MASK] " * 30)
    window.find("//div[contains(@class, 'card')][.//span[@class='mask']]//mark")
    assert work.WALK in {thread.name for thread in threading.enumerate()}
    press(window, "Stop")
    window.until(lambda: work.WALK not in {thread.name for thread in threading.enumerate()}, "the end of the work")
    assert ended == [] and window.run("return document.querySelectorAll('.mask').length") > 0


def test_two_at_once_see_their_own(window, page):
    first = window.new_window()
    window.open(page.local_url)
    fill(window, "a dog [MASK] [MASK] [MASK] [MASK]")
    second = window.ask("GET", "/window")
    window.switch(first)
    fill(window, "the cat [MASK] [MASK] [MASK] [MASK]")
    assert window.until(lambda: window.text(DONE).startswith("the cat "), "the first")
    window.switch(second)
    assert window.until(lambda: window.text(DONE).startswith("a dog "), "the second")
    window.ask("DELETE", "/window")
    window.switch(first)


def test_an_image_is_sent_and_restored(window, tmp_path):
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "teal.png")
    choose(window, "images", "Restore")
    window.send("//input[@type='file']", tmp_path / "teal.png")
    window.find("//img[not(starts-with(@src, 'data:'))]")  # it has arrived
    press(window, "Restore")
    window.find("//figure[contains(., 'sent, degraded, restored')]")
    shown = "return [...document.querySelectorAll('figure img')].every(one => one.complete && one.naturalWidth > 60)"
    assert window.until(lambda: window.run(shown), "pictures")


@pytest.mark.parametrize("as_space", [False, True])
def test_the_command_and_its_space_serve_a_model_of_a_folder(as_space, tmp_path, monkeypatch, capsys):
    import gradio

    make_writer().pipe.save_pretrained(str(tmp_path / "words"))
    said = []

    def look(page):
        said.append((page.local_url, answer(page.local_url)[1]))
        page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", look)
    if as_space:
        udm_here("app", tmp_path / "words", "--export-space", tmp_path / "space")
        monkeypatch.chdir(tmp_path / "space")
        runpy.run_path("app.py", run_name="__main__")
    else:
        assert "(Ctrl-C ends it)" in udm_here("app", tmp_path / "words").stdout
    [(address, shown)] = said
    assert address.startswith("http://127.0.0.1:") and b"words: process mask" in shown
    assert str(tmp_path).encode() not in shown


def answer(url: str, **how) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **how), timeout=60) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_file_of_the_machine_is_in_reach(page):
    files = [
        "/etc/passwd",
        str(ROOT / "README.md"),
        "README.md",
        "../../etc/passwd",
        "/proc/self/environ",
        "//etc/passwd",
    ]
    for file in files:
        for place in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme.css/../"):
            status, body = answer(f"{page.local_url}{place}{file}")
            assert status >= 400 or b"root:" not in body and b"udm-text" not in body, (place, file, status)
        assert answer(f"{page.local_url}gradio_api/file={file}")[0] in (403, 404)


def test_a_path_in_place_of_an_upload_and_a_file_too_large_are_refused(page):
    images = {one["id"] for one in page.config["components"] if one["type"] == "image"}
    number = next(one["id"] for one in page.config["dependencies"] if images & set(one["inputs"]))
    path = {"path": "/etc/passwd", "orig_name": "a.svg", "meta": {"_type": "gradio.FileData"}}
    call = {"data": [path, False, 1, 0, False], "fn_index": number, "session_hash": "mine"}
    head = {"Content-Type": "application/json"}
    answer(f"{page.local_url}gradio_api/queue/join", data=json.dumps(call).encode(), headers=head)
    _, said = answer(f"{page.local_url}gradio_api/queue/data?session_hash=mine")
    assert b'"success":false' in said and b"root:" not in said
    large = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n" + b"0" * (work.MOST_BYTES + 1)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert answer(f"{page.local_url}gradio_api/upload", data=large + b"\r\n--x--\r\n", headers=form)[0] == 413


def shoot(window: Browser, name: str) -> None:
    """A screenshot for the pages, in colours enough."""
    image = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
    small = image.quantize(96, dither=Image.Dither.NONE)
    small.save(ROOT / f"docs/images/app-{name}.png", optimize=True)


@pytest.mark.skipif(not SHOWN, reason="draws docs/images/app-*.png where UDM_SHOWN names the models to show")
def test_screenshots(tmp_path):
    from udm_text.cli.terminal import load_pipeline

    words, repairer, *images = (load(name, load_pipeline) for name in SHOWN)
    served = serve([words, repairer, *images])
    with browser(tmp_path) as window:
        window.size(860, 900)
        window.open(served.local_url)
        press(window, "Write")
        half = "return document.querySelector('.card mark') && document.querySelectorAll('.mask').length < 9"
        window.until(lambda: window.run(half))
        shoot(window, "write")
        choose(window, repairer.name)
        window.type("//label[contains(., 'A text with errors')]//textarea", "LATIN SMAKL LETTEW A WITH GRAVE")
        window.size(860, 1180)
        press(window, "Repair")
        window.find("//div[@class='note'][contains(., 'Untick an edit')]")
        window.run("scrollTo(0, 0)")
        shoot(window, "repair")
        choose(window, images[0].name, "Draw")
        window.size(860, 1340)
        press(window, "Draw")
        window.find("//figure[contains(., 'came to be')]")
        window.run("scrollTo(0, 0)")
        shoot(window, "images")
    served.close()
