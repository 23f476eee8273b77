"""What `make docs` would find, without its packages: pages can be reached, names of the reference are there."""

import ast
import re
from pathlib import Path

from tests.helpers import ROOT
from tests.pages import defined

CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
DOCS = ROOT / "docs"


def linked(page: Path) -> set[Path]:
    """The pages below docs/ that a page links to."""
    targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets if not target.startswith("http")}


def test_every_page_is_placed_in_the_site_or_linked_from_one_that_is():
    placed = [DOCS / name for name in re.findall(r": ([\w/-]+\.md)$", CONFIGURATION, re.MULTILINE)]
    assert len(set(placed)) == len(placed) > 30 and [page for page in placed if not page.is_file()] == []
    reached, waiting = set(placed), [*placed]
    while waiting:
        fresh = linked(waiting.pop()) - reached
        reached |= fresh
        waiting += fresh
    assert set(DOCS.rglob("*.md")) <= reached


def documented(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines, with a docstring."""
    module = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if module.is_file():
        return bool(ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))))
    path, _, last = name.rpartition(".")
    module = ROOT.joinpath(*path.split(".")).with_suffix(".py")
    return module.is_file() and '"""' in defined(module).get(last, "")


def test_every_name_of_the_reference_is_there_and_says_what_it_is():
    names = [
        name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    assert len(names) > 30 and len(set(names)) == len(names)
    assert [name for name in names if not documented(name)] == []
    assert not documented("udm_text.core.gone") and not documented("udm_text.gone")


def test_no_page_links_out_of_the_site():
    """What is below docs/ links to what is there, or to the network: the site holds nothing else."""
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).resolve().is_relative_to(DOCS), (page, target)
