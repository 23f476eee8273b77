"""The house in order: imports point down the floors, and the README's tree is the tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    **dict.fromkeys(("randomness", "core", "hamming", "schedules", "decoding"), 0),
    **dict.fromkeys(("processes", "kernels", "framing", "configuration_udm", "prompts", "packing", "row_order"), 1),
    **dict.fromkeys(("sources", "tokenizing", "rows", "streaming"), 2),
    **dict.fromkeys(("objectives", "corpus", "card", "hub", "checkpoints", "ema", "interrupts", "runs", "reports"), 2),
    **dict.fromkeys(("callbacks", "backbones"), 3),
    **dict.fromkeys(("modeling_udm", "inputs", "constraints", "fastpath", "caching", "predictors", "speculative"), 3),
    **dict.fromkeys(("generation_udm", "training", "evaluation", "text_objective", "causal", "adapters"), 4),
    **dict.fromkeys(("pipeline_udm", "arguments", "train_text", "terminal", "export"), 5),
    **dict.fromkeys(("cli", "demo"), 6),
}
UPWARD = {("modeling_udm", "generation_udm")}  # a model class inherits its generate from the mixin
IMAGE_FLOORS = {  # the companion: the same plan, one house further
    **dict.fromkeys(("schedules", "data", "networks"), 0),
    **dict.fromkeys(("degradations", "grids"), 1),
    "processes": 2,
    **dict.fromkeys(("sampling", "modeling"), 3),
    **dict.fromkeys(("control", "likelihood", "scheduler_adapter", "objectives"), 4),
    **dict.fromkeys(("pipeline", "evaluation"), 5),
    **dict.fromkeys(("train_image", "demo"), 6),
    "cli": 7,
}
OF_TEXT = {
    "core",
    "randomness",
    "training",
    "callbacks",
    "runs",
}  # what images take of the house of text: these know no tokens
IMAGE_MODULES = sorted(path.stem for path in (ROOT / "continuous").glob("*.py") if path.stem != "__init__")
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


def siblings(path: Path) -> set[str]:
    """The modules of its own package that a module imports, `from . import x` included."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    bare = {alias.name for n in nodes if n.level == 1 and not n.module for alias in n.names}
    return relative_imports(path) | bare


@pytest.mark.parametrize("module", IMAGE_MODULES)
def test_imports_of_images_point_down_the_floors_and_take_nothing_of_tokens(module):
    assert module in IMAGE_FLOORS, f"continuous/{module} has no floor: give it one here and a line in the README"
    path = ROOT / "continuous" / f"{module}.py"
    for used in siblings(path):
        above = IMAGE_FLOORS[used] > IMAGE_FLOORS[module]
        assert not above and used != module, f"continuous/{module} imports {used}, which is above it"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, _, rest = name.partition(".")
            assert package not in ("continuous", "recipes", "data", "benchmarks", "tests"), (module, name)
            assert package != "udm_text" or rest in OF_TEXT, (module, name)


def test_nothing_of_text_imports_images_but_the_command():
    for module in MODULES:
        tree = ast.parse((ROOT / "udm_text" / f"{module}.py").read_text(encoding="utf-8"))
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
        assert module == "cli" or not any(name.split(".")[0] == "continuous" for name in names), module


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
        for path in sorted((ROOT / package).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert path.name == "core.py" or "reverse_step" not in called, path


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
    missing += [f"continuous/{module}" for module in IMAGE_MODULES if f"continuous/{module}.py" not in readme]
    assert not missing
    assert "make demo" in readme and "make test" in readme


def test_links_in_the_docs_lead_somewhere():
    import re

    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
