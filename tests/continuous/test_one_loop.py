"""docs/one-loop.md runs, prints what it says it prints, and quotes the loop as it is."""

import ast
import contextlib
import io
import re

import pytest

from udm_text import core


@pytest.fixture(scope="module")
def blocks(repository):
    page = (repository / "docs" / "one-loop.md").read_text(encoding="utf-8")
    return re.findall(r"```(python|text)\n(.*?)```", page, flags=re.DOTALL)


NAMES = ("recover_noise", "reverse_step", "take_step", "denoise")


def bare(source):
    """The functions of a source by name, without docstrings, annotations and formatting."""
    functions = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in NAMES:
            if ast.get_docstring(node):
                node.body = node.body[1:]
            node.returns = None
            arguments = node.args
            for argument in (*arguments.args, *arguments.kwonlyargs, arguments.kwarg):
                if argument is not None:
                    argument.annotation = None
            functions[node.name] = ast.unparse(node)
    return functions


def test_the_loop_on_the_page_is_the_loop_in_the_code(blocks):
    quoted = bare(blocks[0][1])
    with open(core.__file__, encoding="utf-8") as file:
        assert quoted == bare(file.read())
    assert len(quoted) == len(NAMES) and len([line for line in blocks[0][1].splitlines() if line.strip()]) <= 30


def test_the_page_runs_and_prints_what_it_says(blocks):
    scope, printed = {}, []
    for kind, text in blocks[1:]:
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "one-loop.md", "exec"), scope)
            printed.append(out.getvalue())
        else:
            assert printed[-1].strip() == text.strip()
    assert len(printed) == 3
    figures = {line.split()[0]: [float(x) for x in line.split()[2::2]] for line in printed[1].strip().splitlines()}
    error, contrast = ({name: row[i] for name, row in figures.items()} for i in (0, 1))
    assert error["direct"] < error["improved"] < error["naive"]  # the page's claims, not only its digits
    assert contrast["direct"] < 0.8 * contrast["improved"] and contrast["improved"] < 1.1 * contrast["truth"]
