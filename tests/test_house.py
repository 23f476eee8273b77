"""The house in order: imports point down the floors, and the README's tree is the tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    **dict.fromkeys(("randomness", "core", "hamming", "schedules", "decoding"), 0),
    **dict.fromkeys(("processes", "kernels", "configuration_udm"), 1),
    **dict.fromkeys(("objectives", "corpus"), 2),
    **dict.fromkeys(("modeling_udm", "canvas", "constraints", "fastpath", "predictors", "speculative"), 3),
    **dict.fromkeys(("generation_udm", "training", "evaluation"), 4),
    **dict.fromkeys(("pipeline_udm", "train_text", "terminal", "export"), 5),
    **dict.fromkeys(("cli", "demo"), 6),
}
UPWARD = {("modeling_udm", "generation_udm")}  # a model class inherits its generate from the mixin
MODULES = sorted(path.stem for path in (ROOT / "udm_text").glob("*.py") if path.stem != "__init__")


def relative_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_floors(module):
    assert module in FLOORS, f"{module} has no floor: give it one here and a line in the README"
    for used in relative_imports(ROOT / "udm_text" / f"{module}.py"):
        assert FLOORS[used] <= FLOORS[module] or (module, used) in UPWARD, f"{module} imports {used}, which is above it"


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_a_floor_do_not_import_each_other_in_circles(module):
    def reach(name: str, seen: frozenset[str]) -> None:
        for used in relative_imports(ROOT / "udm_text" / f"{name}.py"):
            assert used != module, f"{module} is imported by {name}, which it imports"
            if used not in seen and FLOORS[used] == FLOORS[name]:
                reach(used, seen | {used})

    reach(module, frozenset())


def test_the_core_needs_torch_alone():
    for module in ("randomness", "core", "hamming", "schedules", "decoding", "processes", "kernels", "objectives"):
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
    for module in MODULES:
        if module == "configuration_udm":
            continue
        for node in ast.walk(ast.parse((ROOT / "udm_text" / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                assert not {"mask", "substitute"} & set(map(str, words)), (
                    f"{module}:{node.lineno} branches on a process"
                )


def test_nothing_imports_recipes_data_or_benchmarks():
    for path in (ROOT / "udm_text").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                assert node.module.split(".")[0] not in ("recipes", "data", "benchmarks", "tests")


def test_the_readme_lists_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [module for module in MODULES if f"{module}.py" not in readme]
    assert not missing
    assert "make demo" in readme and "make test" in readme


def test_links_in_the_docs_lead_somewhere():
    import re

    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
