"""The walks that README.md names and docs/one-loop.md draws are those that a step takes."""

import re
import sys
from pathlib import Path

import pytest

from continuous import GaussianProcess, ImageConfig, ImageDenoiser, ImagePipeline
from tests.models import FIRST, VOCAB, make_udm, word_tokenizer
from tests.training_helpers import make_trainer
from udm_text import UDMGenerationPipeline

STEPS = ("training", "sampling", "image")
PACKAGES = ("udm_text", "continuous")
Node = tuple[str, str]
"""A file, as a path from the root, and a function in it."""


def node(text: str) -> Node:
    """`core.py:denoise` as the pages write it: paths are below udm_text/ unless they begin with continuous/."""
    file, _, function = text.strip().partition(":")
    return file if file.startswith("continuous/") else f"udm_text/{file}", function


def named(page: str) -> dict[str, list[Node]]:
    """The walks of README.md: a name, then nodes with arrows between them, over as many lines as it takes."""
    found = re.findall(r"^(\w+) step +(\S+:\S+(?:\s+→ \S+:\S+)*)$", page, flags=re.MULTILINE)
    return {name: [node(part) for part in walk.split("→")] for name, walk in found}


def drawn(page: str) -> dict[str, list[tuple[int, Node]]]:
    """The walks of docs/one-loop.md: a node a line, deeper by two spaces than what calls it."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.split("## The walks through the code")[1], re.DOTALL | re.MULTILINE)
    lines = [[re.match(r"( *)(\S+:\S+)", line) for line in block.splitlines()] for block in blocks]
    walks = [[(len(found[1]) // 2, node(found[2])) for found in walk if found] for walk in lines]
    return dict(zip(STEPS, walks, strict=True))


class Recorder:
    """What of our packages is entered: nodes in the order of their first calls, and who stood above whom."""

    def __init__(self, root: Path):
        self.roots = tuple(f"{root / package}/" for package in PACKAGES)
        self.start = len(f"{root}/")
        self.entered: list[Node] = []
        self.above: set[tuple[Node, Node]] = set()

    def node_of(self, frame) -> Node | None:
        code = frame.f_code
        ours = code.co_filename.startswith(self.roots)
        return (code.co_filename[self.start :], code.co_name) if ours else None

    def __call__(self, frame, event, argument):
        if event != "call" or (here := self.node_of(frame)) is None:
            return
        if here not in self.entered:
            self.entered.append(here)
        while (frame := frame.f_back) is not None:
            if (there := self.node_of(frame)) is not None:
                self.above.add((there, here))

    def record(self, step) -> "Recorder":
        before = sys.getprofile()
        sys.setprofile(self)
        try:
            step()
        finally:
            sys.setprofile(before)
        return self


@pytest.fixture(scope="module")
def taken(repository, tmp_path_factory):
    """One step of each kind, recorded."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), max_steps=1)
    words = word_tokenizer(f"w{i}" for i in range(VOCAB - FIRST))
    text = UDMGenerationPipeline(model=make_udm(), tokenizer=words)
    process, network = GaussianProcess.vp("cosine", T=10), {"kind": "mlp", "width": 16, "blocks": 1}
    config = ImageConfig(process=process.to_dict(), image_shape=[1, 8, 8], network=network)
    images = ImagePipeline(ImageDenoiser(config))
    steps = {
        "training": trainer.train,
        "sampling": lambda: text("", length=5, num_steps=1, seed=0),
        "image": lambda: images.generate(2, num_steps=1, seed=0),
    }
    return {name: Recorder(repository).record(step) for name, step in steps.items()}


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def one_loop(repository):
    return (repository / "docs" / "one-loop.md").read_text(encoding="utf-8")


def astray(walk: list[Node], entered: list[Node]) -> str | None:
    """Where a walk leaves what was entered, in the order of first calls; None: nowhere."""
    for here in walk:
        if here not in entered:
            return f"{':'.join(here)} is not entered"
    for before, after in zip(walk, walk[1:], strict=False):
        if entered.index(before) >= entered.index(after):
            return f"{':'.join(before)} is not entered before {':'.join(after)}"
    return None


@pytest.mark.parametrize("step", STEPS)
def test_a_step_enters_what_the_readme_names_in_that_order(step, readme, taken):
    walk = named(readme)[step]
    assert len(walk) >= 5 and astray(walk, taken[step].entered) is None


@pytest.mark.parametrize("step", STEPS)
def test_a_step_calls_what_is_drawn_from_where_it_is_drawn(step, one_loop, taken):
    walk, path = drawn(one_loop)[step], []
    assert astray([here for _, here in walk], taken[step].entered) is None
    for depth, here in walk:
        del path[depth:]
        assert not path or (path[-1], here) in taken[step].above, f"{path[-1]} does not call {here}"
        path.append(here)
        assert len(path) == depth + 1, f"{here} stands too deep"


@pytest.mark.parametrize("step", STEPS)
def test_what_the_readme_names_is_drawn(step, readme, one_loop):
    assert set(named(readme)[step]) <= {here for _, here in drawn(one_loop)[step]}


@pytest.mark.parametrize("step", STEPS)
def test_a_wrong_walk_would_be_seen(step, readme, taken):
    walk, entered = named(readme)[step], taken[step].entered
    for i, (file, function) in enumerate(walk):
        for wrong in ((file.replace(".py", "s.py"), function), (file, f"{function}s")):
            assert "is not entered" in (astray([*walk[:i], wrong, *walk[i + 1 :]], entered) or "")
        if i:
            swapped = [*walk[: i - 1], walk[i], walk[i - 1], *walk[i + 1 :]]
            assert "is not entered before" in (astray(swapped, entered) or "")
