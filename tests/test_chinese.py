"""The pages in Chinese: formulas are the lines they say, code runs, figures are those of the English pages."""

import re

import pytest

from tests.helpers import ROOT
from tests.models import text_config, wrap
from tests.pages import blocks, defined, printed_by, run

HERE = [ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
LOOP = ROOT / "docs" / "zh" / "one-loop.md"
NAME = re.compile(r"`([\w/]+\.py):([\w.]+)`")
LINE = re.compile(r"^\| [^`]*\| `([\w/]+\.py):([\w.]+)` \| `(.+)` \|$", re.MULTILINE)


def test_every_formula_is_the_line_that_it_is_said_to_be():
    """A row of the page names a function and quotes a line: the line stands in that function."""
    rows = LINE.findall(LOOP.read_text(encoding="utf-8"))
    assert len(rows) == 19
    assert {"udm_text/core.py", "udm_text/processes.py", "continuous/processes.py"} == {file for file, _, _ in rows}
    for file, name, line in rows:
        assert line in defined(ROOT / file)[name], f"{file}:{name} has no {line}"


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.name)
def test_every_function_that_is_named_is_there(page):
    for file, name in NAME.findall(page.read_text(encoding="utf-8")):
        found = defined(ROOT / file)
        whole = not file.startswith("tests/")
        assert name in found if whole else any(test.startswith(name) for test in found), f"{file}:{name}"


def test_what_is_said_to_be_exact_is_a_row_of_the_systems():
    """Code and test of each row stand side by side in docs/systems.md, too."""
    systems = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    english = {tuple(name for _, name in NAME.findall(row)) for row in systems.splitlines()}
    table = (ROOT / "docs" / "zh" / "exact.md").read_text(encoding="utf-8").split("## 精确到哪里为止")[0]
    rows = [tuple(name for _, name in NAME.findall(row)) for row in table.splitlines() if row.startswith("|")]
    rows = [row for row in rows if row]
    assert len(rows) == 10
    for code, test in rows:
        assert any(code.split(".")[-1] == c and test == t for c, t in filter(lambda r: len(r) == 2, english)), code


def test_the_verses_appear_as_the_page_prints_them():
    [code], [shown] = blocks(LOOP, "python"), blocks(LOOP, "text")
    assert printed_by(code, "docs/zh/one-loop.md") == shown


def test_figures_and_samples_are_those_of_the_page_on_training():
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    tour = ROOT / "docs" / "zh" / "quick-tour.md"
    [_, samples] = blocks(tour, "text")
    for sample in samples.split():
        assert sample in training
    for page in (tour, ROOT / "README.zh.md"):
        figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", page.read_text(encoding="utf-8"))
        assert figures and all(figure.replace("±", "+-") in training for figure in figures)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs/tang: a model of single characters, without training, that reads rows of forty."""
    from udm_text.corpus import train_tokenizer
    from udm_text.framing import tokenizer_fields

    here = tmp_path_factory.mktemp("tang")
    poem = "空山新雨後天氣晚來秋明月松間照清泉石上流竹喧歸浣女蓮動下漁舟隨意春芳歇王孫自可留"
    assert len(poem) == 40
    tokenizer = train_tokenizer("char", [poem] * 3, 100)
    config = text_config(vocab_size=len(tokenizer), max_position_embeddings=64)
    model = wrap(config, length_counts=[0] * 40 + [1], **tokenizer_fields(tokenizer))
    for name in ("runs/tang", "user/tang"):
        model.save_pretrained(here / name)
        tokenizer.save_pretrained(here / name)
    return here


def test_the_quick_tour_writes_poems_and_fills_in_a_couplet(place, monkeypatch, capsys):
    tour = "docs/zh/quick-tour.md"
    left = run(tour, lambda block: True, place, monkeypatch)  # the last one finds in a folder what it names on the Hub
    assert len(left["poems"][0]["generated_text"]) == 40
    whole, *couplets = capsys.readouterr().out.split()
    assert whole == left["poems"][0]["generated_text"]
    assert len(couplets) == 3 and all(len(couplet) == 10 for couplet in couplets)


def test_the_readme_in_chinese_runs(place, monkeypatch):
    left = run("README.zh.md", lambda block: True, place, monkeypatch)
    assert left["pipe"].model.config.process == "mask"


def test_the_two_readmes_lead_to_each_other():
    assert "(README.zh.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(README.md)" in (ROOT / "README.zh.md").read_text(encoding="utf-8")
