"""The benchmarks run: each is imported, and the step of training is taken by all its methods, small."""

import importlib
import json
import sys

import pytest

from tests.helpers import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """They import what they share by its bare name, as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_imported(name):
    assert importlib.import_module(name).__doc__


def test_the_ways_to_take_a_training_step_have_one_loss(monkeypatch, tmp_path, capsys):
    training = importlib.import_module("training")
    monkeypatch.setitem(training.SIZES, "mini", (1, 32, 2))
    out = tmp_path / "found.json"
    command = f"training.py --sizes mini --rows 2 --lengths 8 --rounds 1 --backbone bert --json {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    assert training.main() == 0  # 1: the losses differ
    [found] = json.loads(out.read_text())["results"]
    assert set(found["methods"]) == {"full", "gathered", "chunked"}
    assert "gathered" in capsys.readouterr().out
