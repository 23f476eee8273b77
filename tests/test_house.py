"""The house in order: folders import what stands below them, and the tree in CONTRIBUTING is the tree."""

import ast
import re
from pathlib import Path

import pytest

from udm_text.hub import CODE

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {  # of udm_text: what each may import besides itself and the standard library; "" is the root
    "": set(),
    "corpus": {""},
    "evaluation": {"", "corpus"},
    "training": {"", "corpus", "evaluation"},
    "cli": {"", "corpus", "evaluation", "training", "continuous"},
}
OF_TEXT = re.compile(r"udm_text\.(common|core|devices|randomness|training(\..+)?)")
"""What images take of the house of text: these know no tokens."""


def modules(package: str) -> list[Path]:
    """The files of a package, the doors of its folders included."""
    return sorted((ROOT / package).rglob("*.py"))


def folder(path: Path) -> str:
    inside = path.relative_to(ROOT / "udm_text").parts
    if inside == ("__main__.py",):
        return "cli"  # the command by another name
    return inside[0] if len(inside) > 1 else ""


def imported(path: Path, lazily: bool = True) -> set[str]:
    """Whole names of the modules that a file imports, those inside functions too where `lazily`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = [*path.relative_to(ROOT).parts[:-1]]
    nodes = list(ast.walk(tree)) if lazily else tree.body
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            known = [ROOT.joinpath(*name.split("."), f"{alias.name}.py").exists() for alias in node.names]
            found |= {f"{name}.{a.name}" if own else name for a, own in zip(node.names, known, strict=True)}
    return found


def home(name: str) -> str | None:
    """The folder of udm_text that a module is in, "" the root; `continuous` and the like by their own name."""
    parts = name.split(".")
    if parts[0] in ("continuous", "recipes", "data", "benchmarks", "tests"):
        return parts[0]
    if parts[0] != "udm_text":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


@pytest.mark.parametrize("path", modules("udm_text"), ids=str)
def test_a_folder_imports_what_stands_below_it(path):
    mine, door = folder(path), path == ROOT / "udm_text" / "__init__.py"
    for name in imported(path, lazily=not door):
        there = home(name)
        assert there in (None, mine) or there in FOLDERS[mine], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", modules("continuous"), ids=str)
def test_images_take_of_text_what_knows_no_tokens(path):
    for name in imported(path):
        there = home(name)
        assert there in (None, "continuous") or OF_TEXT.fullmatch(name), f"{path.name} imports {name}"


def test_modules_import_each_other_in_no_circle():
    known = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (*modules("udm_text"), *modules("continuous"))
    }
    graph = {name: {used for used in imported(path, lazily=False) if used in known} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for used in graph[name]:
                visit(used, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_root_is_what_travels_with_the_weights():
    """What a repository names (`hub.CODE`) and all that it imports, function bodies included, by one dot each."""
    closure, waiting = set(), [*CODE]
    while waiting:
        module = waiting.pop()
        if module not in closure:
            closure.add(module)
            tree = ast.parse((ROOT / "udm_text" / f"{module}.py").read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1 and node.module and "." not in node.module, f"{module}: {ast.unparse(node)}"
                    waiting.append(node.module)
    assert closure == {path.stem for path in (ROOT / "udm_text").glob("*.py")} - {"__init__", "__main__"}


def test_the_public_names_of_images_are_there_and_importing_them_is_lazy():
    import subprocess
    import sys

    import continuous

    for name in continuous.__all__:
        assert getattr(continuous, name).__module__ == f"continuous.{continuous._HOMES[name]}" or name == "ancestral"
    source = (ROOT / "continuous" / "__init__.py").read_text(encoding="utf-8")
    for name, home in continuous._HOMES.items():
        assert f"from .{home} import {name} as {name}" in source  # what a type checker reads
    code = "import continuous, sys; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_there_is_one_loop():
    """`core.denoise` is the only caller of `reverse_step`."""
    for package in ("udm_text", "continuous"):
        for path in modules(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert path.name == "core.py" or "reverse_step" not in called, path


def test_the_core_needs_torch_alone():
    process = ("processes", "edits", "edit_actions", "kernels", "objectives")
    for module in ("randomness", "core", "hamming", "lattice", "schedules", "decoding", *process):
        tree = ast.parse((ROOT / "udm_text" / f"{module}.py").read_text(encoding="utf-8"))
        names = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {
            n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level and n.module
        }
        assert names <= {"torch", "numpy", "math", "dataclasses", "typing", "collections", "functools", "__future__"}, (
            module,
            names,
        )


def test_no_process_is_told_apart_by_its_name_outside_the_one_table():
    for path in modules("udm_text"):
        if path.stem == "configuration_udm":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                assert not {"mask", "substitute"} & set(map(str, words)), (
                    f"{path.name}:{node.lineno} branches on a process"
                )


def test_the_tree_in_contributing_is_the_tree():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    every = [path for package in ("udm_text", "continuous") for path in modules(package) if path.stem[:2] != "__"]
    assert not [str(path.relative_to(ROOT)) for path in every if path.name not in page]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme


def test_links_in_the_docs_lead_somewhere():
    for page in (*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
