"""The notebooks: at toy size their cells run in this process, and slowly in kernels, as a reader runs them."""

import ast
import html
import json
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT
from udm_text.evaluation.bounds import BoundReport
from udm_text.showing import Texts

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOY = {"STEPS": "2", "CODES": "0x180"}
"""What the second cell of a notebook sets, and what it is here."""
LONGEST = 150_000
"""Bytes of a notebook with its outputs."""


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def toy(source: str) -> str:
    for name, value in TOY.items():
        source = re.sub(rf"^{name} = \S+", f"{name} = {value}", source, flags=re.MULTILINE)
    return source


def run_cell(source: str, names: dict) -> object:
    """Runs a cell; the value of its last line, where that is an expression, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_and_show_something(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    shown = [run_cell(toy("".join(cell["source"])), names) for cell in cells(path)]
    shown = [value for value in shown if value is not None]
    assert len(shown) >= 3
    for value in shown:
        ways = [name for name in ("_repr_html_", "_repr_png_", "_repr_mimebundle_") if hasattr(value, name)]
        assert any(getattr(value, name)() for name in ways), type(value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_small_outputs_and_says_what_it_does(path):
    assert path.stat().st_size < LONGEST
    text = cells(path, "markdown")
    assert "".join(text[0]["source"]).startswith("# ") and len(text) >= 4
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    assert any({"image/png", "text/html"} & set(output.get("data", {})) for output in outputs)
    assert "/tmp/" not in path.read_text() and "/home/" not in path.read_text()


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_the_notebook(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        cell.source = toy(cell.source)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1))


# --- what is shown ---------------------------------------------------------------------------------------------------

HOSTILE = '<script>alert("x")</script>&\u202e'


def test_texts_are_shown_escaped_with_what_a_step_changed_marked():
    texts = Texts([{"generated_text": HOSTILE, "trajectory": ["a", f"a{HOSTILE}"]}])
    assert texts == [*texts] and isinstance(texts, list)
    said = texts._repr_html_()
    assert "<script" not in said and html.escape(HOSTILE) in said and f"a<mark>{html.escape(HOSTILE)}</mark>" in said
    chat = Texts([{"generated_text": [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": "c"}]}])
    assert "user: &lt;b&gt;\nassistant: c" in chat._repr_html_()
    several = Texts([[{"generated_text": "a"}, {"generated_text": "b"}], [{"generated_text": "c"}]])._repr_html_()
    assert re.findall(r"<th>(.*?)</th>", several) == ["0.0", "0.1", "1.0"]
    assert Texts([])._repr_html_().count("<tr>") == 0


def test_a_bound_is_shown_as_one():
    figures = {"nelbo_nats_per_token": 1.5, "nelbo_nats_per_token_stderr": 0.25, "perplexity_bound": 4.5}
    figures |= {"perplexity_bound_stderr": 1.0, "bits_per_char": None, "bits_per_char_stderr": None}
    more = {"length_nats_per_token": 0.0, "length_included": True, "process": "<i>", "kernel": None}
    said = BoundReport(**figures, **more, rows=3, tokens=9, chars=None, draws=2, seed=0)._repr_html_()
    assert "1.5 &plusmn; 0.25 nats a token" in said and "unknown bits" in said and "&lt;i&gt;" in said
    assert "perplexity, at most" in said


def test_images_are_shown_inside_the_page():
    import torch

    from continuous.data import to_pil
    from continuous.pipeline import ImageOutput

    images = torch.zeros(2, 1, 8, 8)
    assert ImageOutput(images=images)._repr_html_() is None
    shown = {2: ImageOutput(images=to_pil(images)), 1: ImageOutput(images=images, trajectory=(images, images))}
    inside = r'(<img style="margin:2px" src="data:image/png;base64,[A-Za-z0-9+/=]+">)+'
    for count, output in shown.items():
        said = output._repr_html_()
        assert re.fullmatch(inside, said) and said.count("<img") == count
