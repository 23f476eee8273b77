"""What the pages say can be done as they say it: their Python, their commands, their links and the files they name."""

import ast
import builtins
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from tests.helpers import ROOT, write_shapes
from tests.models import make_udm
from tests.pages import PAGES, blocks, defined, named, run

QUOTED = {("docs/one-loop.md", 0): {"Tensor", "Prediction"}}
"""Names that a block uses and does not define, by page and number of the block: it quotes udm_text/core.py, which
tests/continuous/test_one_loop.py compares, without its head."""
MADE = re.compile(r"data/\w+/dataset")
"""What is made by a command, and in no checkout."""


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a source reads, and those that it binds anywhere."""
    read, bound = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return read, bound


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_name_in_a_block_of_python_is_defined_there_or_in_an_earlier_one(page):
    known = set(dir(builtins))
    for number, block in enumerate(blocks(page, "python")):
        read, bound = names(block)
        known |= bound
        assert read - known == QUOTED.get((named(page), number), set()), block


def commands(page: Path) -> list[list[str]]:
    """The `udm` commands of a page's blocks as lists of words; what lists options in brackets is no command."""
    text = page.read_text(encoding="utf-8")
    kinds = [body for kind in ("", "bash") for body in blocks(page, kind)]
    lines = "\n".join(kinds).replace("\\\n", " ").splitlines()
    lines = [line.rpartition(" | ")[2] for line in lines]  # a command may read from another
    indented = [line.strip() for line in re.findall(r"^    (.*)$", text.replace("\\\n", " "), re.MULTILINE)]
    found = [
        line
        for line in (*lines, *indented)
        if line.startswith("udm ") and "[options]" not in line and "[--" not in line
    ]
    return [[word for word in shlex.split(line, comments=True) if word != "..."] for line in found]


def refuse(words: list[str]) -> str | None:
    """What the command line says of these words before any work is done; None: nothing."""
    from udm_text.cli.commands import app

    command = typer.main.get_command(app)
    try:
        while hasattr(command, "commands"):
            words = words[1:]
            command = command.commands[words[0]]
        if words[0] == "train":
            return None if parsed(words[1:], command.callback.__module__) else "not parsed"
        command.make_context(words[0], words[1:])
    except Exception as error:  # typer brings a click of its own
        return f"{type(error).__name__}: {error}"
    return None


def parsed(words: list[str], module: str):
    if module.startswith("continuous"):
        from continuous.train_image import parse
    else:
        from udm_text.training.arguments import parse
    return parse(words)


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("page, words", ALL, ids=[f"{named(page)}: {' '.join(words)}" for page, words in ALL])
def test_every_command_is_one_that_the_command_line_takes(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)  # where recipes/ is
    assert refuse(words) is None


def test_there_are_commands_to_check_and_a_wrong_one_would_be_seen():
    assert len(ALL) > 20
    assert "No such option" in (refuse(["udm", "generate", "m", "--steps", "3"]) or "")
    assert "takes no '--dta'" in (refuse(["udm", "train", "--data", "d", "--dta", "d", "--output", "o"]) or "")
    assert "KeyError" in (refuse(["udm", "write", "m"]) or "")
    assert names("import a.b\nfor i in c: d = a(i)") == ({"a", "c", "i"}, {"a", "d", "i"})


OTHERS = {"hf", "sbatch", "printf", "grep", ".", "export"}
"""Programs of other people that pages call."""


def calls(page: Path) -> list[list[str]]:
    """The lines of a page's blocks of commands that call another program than `udm`, as lists of words."""
    bash = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    plain = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    indented = re.findall(r"^    (\S.*)$", page.read_text(encoding="utf-8").replace("\\\n", " "), re.MULTILINE)
    known = re.compile(r"(accelerate launch|python (recipes|benchmarks|data)/|make [a-z]|pip install)")
    lines = [*bash, *(line for line in (*plain, *indented) if known.match(line))]
    found = [shlex.split(line, comments=True) for line in lines if "[options]" not in line]
    return [words for words in found if words and words[0] != "udm"]


def refuse_call(words: list[str]) -> str | None:
    """What is wrong with a call of another program, as far as it is of this repository; None: nothing."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    if words[0] == "make":
        return None if re.search(rf"^{words[1]}:", text, re.MULTILINE) else f"no target {words[1]}"
    if words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [extra for word in words for part in re.findall(r"\[(.*)\]", word) for extra in part.split(",")]
        return None if set(asked) <= set(extras) else f"no extra of {asked}"
    if words[:2] == ["python", "-m"]:
        return None if importlib.util.find_spec(words[2]) else f"no module {words[2]}"
    if words[0] in ("python", "accelerate"):
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return refuse_script(ROOT / words[place], words[place + 1 :])
    return None if words[0] in OTHERS else f"what is {words[0]}?"


def refuse_script(path: Path, words: list[str]) -> str | None:
    """What a recipe says of its options, or which of them a script of another kind never names."""
    source = path.read_text(encoding="utf-8")
    if path.parent.name == "recipes" and path.stem in ("train_text", "train_image"):
        module = "udm_text.cli.train_text" if path.stem == "train_text" else "continuous.train_image"
        return None if parsed(words, module) else "not parsed"
    if "typer.Typer(" not in source:
        if "local_dataset" in source:
            source += (ROOT / "data" / "local_dataset.py").read_text(encoding="utf-8")
        unknown = [word for word in words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source]
        return f"no option {unknown}" if unknown else None
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for their own types
    spec.loader.exec_module(module)
    command = typer.main.get_command(module.app)
    try:
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context(path.stem, list(words))
    except Exception as error:  # typer brings a click of its own
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if calls(page)], ids=named)
def test_every_other_call_of_a_block_is_one_that_can_be_made(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [(words, why) for words in calls(page) if (why := refuse_call(words)) is not None] == []


def test_a_wrong_call_would_be_seen():
    for wrong in (
        "make tea",
        "pip install .[trian]",
        "python benchmarks/repair.py --dta x",
        "accelerate launch recipes/generate_corpus.py model out --sample 3",
        "curl x",
    ):
        assert refuse_call(wrong.split()) is not None, wrong


def slug(heading: str) -> str:
    """The anchor that a heading of Markdown gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_page_and_a_heading_that_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        there = page.parent / file if file else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, heads), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_of_the_repository_that_is_named_is_there(page):
    rooms = "recipes|tests|benchmarks|docs|udm_text|continuous|data"
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w./-]*\w)", text):
        if not MADE.match(name) and "NAME" not in name and not re.search(r"\.\w+\.\w+", name):
            assert (ROOT / name).exists(), name


def test_every_row_of_the_systems_names_code_and_a_test_that_are_there():
    """A name of code is whole; that of a test may be the beginning of one."""
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| [^-|]", line) and "| system |" not in line]
    listed = [row for row in rows if row.count("|") == 6]
    assert len(listed) > 40
    for row in listed:
        named = re.findall(r"`([\w/]+\.py):(\w+)`", row)
        assert [file.startswith("tests/") for file, _ in named] == [False, True], row
        for file, name in named:
            found = defined(ROOT / file)
            whole = not file.startswith("tests/")
            assert name in found if whole else any(test.startswith(name) for test in found), f"{file}:{name}"


@pytest.mark.parametrize("image", sorted((ROOT / "docs" / "images").glob("*")), ids=named)
def test_every_image_of_the_pages_is_small_and_shown(image):
    assert image.stat().st_size < 60_000
    shown = [page.name for page in PAGES if f"images/{image.name}" in page.read_text(encoding="utf-8")]
    assert shown


WORDS = "LATIN GREEK SMALL CAPITAL LETTER A ALPHA OMEGA WITH GRAVE SMAKL".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the pages take it to be: models without training under the names of those of the demo, a corpus."""
    from tests.models import COUNTS
    from udm_text.corpus import train_tokenizer
    from udm_text.framing import tokenizer_fields

    here = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer("wordpiece", [" ".join(WORDS)] * 20, 200)
    for name, process in (("unicode-names", "mask"), ("unicode-names-repair", "substitute"), ("blanks", "mask")):
        own = {key: value for key, value in tokenizer_fields(tokenizer).items()}
        own |= {"blank_widths": 8} if name == "blanks" else {}
        make_udm(process, vocab_size=len(tokenizer), length_counts=COUNTS, **own).save_pretrained(here / "runs" / name)
        tokenizer.save_pretrained(here / "runs" / name)
    write_shapes(here / "corpus.txt")
    return here


def test_the_python_of_the_readme_runs(place, monkeypatch):
    left = run("README.md", lambda block: "runs/unicode-names" in block, place, monkeypatch)
    assert left["pipe"].model.config.process == "mask" and left["repairer"].model.config.process == "substitute"


def test_what_was_pushed_is_loaded_as_the_readme_says(place, monkeypatch):
    """From folders of the names that the page gives to repositories."""
    import shutil

    for name in ("user/name", "user/with-code"):
        shutil.copytree(place / "runs/unicode-names", place / name)
    left = run("README.md", lambda block: "user/" in block, place, monkeypatch)
    assert len(left["texts"]) == 3


def test_the_python_of_the_pages_on_encoders_and_on_text_and_images_runs(tmp_path, monkeypatch):
    left = run("docs/encoders.md", lambda block: True, tmp_path, monkeypatch)
    assert left["ids"].shape == (4, 7) and left["latents"].shape == (4, 7, 5)
    left = run("docs/text-and-images.md", lambda block: True, tmp_path, monkeypatch)
    assert left["text"].shape == (4, 5) and left["image"].shape == (4, 1, 8, 8)
    assert bool((left["text"] == 3).all()), "the text that was given stands"


RUN_BY = {  # the pages with Python, and the tests that run it
    "README.md": "test_docs.py",
    "README.zh.md": "test_chinese.py",
    "docs/encoders.md": "test_docs.py",
    "docs/generation.md": "test_docs.py",
    "docs/images.md": "continuous/test_image_cli.py",
    "docs/index.md": "test_howto.py",
    "docs/one-loop.md": "continuous/test_one_loop.py",
    "docs/text-and-images.md": "test_docs.py",
    "docs/training.md": "test_docs.py",
    "docs/zh/one-loop.md": "test_chinese.py",
    "docs/zh/quick-tour.md": "test_chinese.py",
    **{named(page): "test_howto.py" for page in (ROOT / "docs" / "how-to").glob("*.md")},
}


def test_every_page_with_python_is_run_by_a_test():
    assert {named(page) for page in PAGES if blocks(page, "python")} <= set(RUN_BY)
    for page, file in RUN_BY.items():
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert Path(page).name in source or "docs/how-to" in page, page


def test_any_masked_lm_fills_in_masks_jointly_as_the_readme_says(place, monkeypatch, capsys):
    """With a masked LM without training under the name of one of the Hub."""
    from transformers import BertConfig, BertForMaskedLM

    from tests.models import word_tokenizer

    words = word_tokenizer("the capital of france is paris big .".split())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(place / "bert-base-uncased")
    words.save_pretrained(place / "bert-base-uncased")
    run("README.md", lambda block: "bert-base" in block or "runs/unicode-names" in block, place, monkeypatch)
    assert capsys.readouterr().out.count("of France is") == 3


def test_the_python_of_the_page_on_generation_runs(place, monkeypatch):
    left = run("docs/generation.md", lambda block: "FILL" not in block, place, monkeypatch)
    assert left["out"].tokens_per_call.shape == (1,) and left["ids"].shape[0] == 1


def test_the_python_of_the_page_on_training_trains(place, monkeypatch):
    few = {"max_steps": "3", "per_device_train_batch_size": "8"}
    monkeypatch.setattr("udm_text.training.runs.require_matplotlib", lambda: None)
    left = run("docs/training.md", lambda block: True, place, monkeypatch, **few)
    assert left["report"]["steps"] == 3 and left["report"]["validation"]["bits_per_char"] > 0
    assert left["trainer"].state.global_step == 3 and (place / "runs/by-hand/model.safetensors").is_file()


def test_answers_that_are_filled_up_have_one_length_and_are_stripped_again(place, monkeypatch):
    import json

    from udm_text.cli.train_text import parse, train_text
    from udm_text.configuration_udm import UDMConfig

    monkeypatch.chdir(place)
    words = ["ab", "abc", "abcd", "ba", "bad", "dab", "cab", "cabd", "bc", "cd", "dc", "da", "ad", "db", "bd", "ac"]
    lines = [json.dumps({"q": word, "a": word[::-1]}) + "\n" for word in words]
    Path("reverse.jsonl").write_text("".join(lines), encoding="utf-8")
    fill, ask = [block for block in blocks(ROOT / "docs/generation.md", "python") if "FILL" in block]
    from transformers import pipeline

    names: dict = {"pipeline": pipeline}
    exec(compile(fill, "generation.md", "exec"), names)
    [command] = [words for words in commands(ROOT / "docs/generation.md") if "filled.jsonl" in words]
    few = "--model tiny --max_steps 2 --per_device_train_batch_size 4 --use_cpu --report_to none --plot false"
    train_text(*parse([*command[2:], *few.split()]))
    config = UDMConfig.from_pretrained("runs/reverse")
    assert [n for n, count in enumerate(config.length_counts) if count] == [4], "one length, that of the longest"
    exec(compile(ask.replace("face", "dab"), "generation.md", "exec"), names)
    assert not names["answer"].endswith(names["FILL"]) and len(names["answer"]) <= 4
