"""`udm doctor`: what it finds, what it calls a problem, and what it keeps to itself."""

import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path

from tests.helpers import ROOT, python, udm_here
from udm_text import __version__
from udm_text.cli import doctor


def found(*, code: int = 0) -> dict:
    return json.loads(udm_here("doctor", "--json", code=code).stdout)


def test_it_says_what_is_installed_and_that_nothing_is_missing():
    report = found()
    assert report["udm-text"] == __version__ and report["problems"] == []
    assert report["packages"]["torch"]["version"] == importlib.metadata.version("torch")
    assert {"transformers", "accelerate", "datasets", "tokenizers"} <= set(report["packages"])
    cpu = report["devices"][0]
    assert cpu["device"] == "cpu" and cpu["threads"] == 1 and isinstance(cpu["quick_bfloat16"], bool)
    assert set(report["caches"]) == {"models", "data sets"} and report["offline"] is True
    text = udm_here("doctor").stdout
    assert "All that is needed is there." in text and f"torch {importlib.metadata.version('torch')}" in text


def test_the_extras_that_it_tells_of_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == doctor.DISTRIBUTION and {"train", "lora", "images"} <= set(doctor.EXTRAS)
    assert set(doctor.EXTRAS) <= set(project["optional-dependencies"]) - {"dev", "docs"}


def without(monkeypatch, **versions: str | None) -> None:
    """Packages of other versions than they have, or of none."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_an_extra_that_is_not_there_is_named_and_is_no_problem(monkeypatch):
    without(monkeypatch, tensorboard=None, peft="0.1")
    report = found()
    assert report["extras"]["train"]["missing"] == ["tensorboard>=2.20"]
    assert report["extras"]["lora"]["missing"] == ["peft>=0.19"] and report["problems"] == []
    assert "extra train lacks tensorboard>=2.20: curves" in udm_here("doctor").stdout


def test_a_package_that_is_missing_or_too_old_is_a_problem_with_its_cure(monkeypatch):
    without(monkeypatch, transformers="4.57.0", tokenizers=None)
    old, missing = sorted(found(code=1)["problems"], reverse=True)
    assert old.startswith("transformers is 4.57.0 and must be ") and "pip install 'transformers" in old
    assert missing.startswith("tokenizers is not installed and must be ") and "pip install 'tokenizers" in missing


def test_without_torch_it_still_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = found(code=1)
    [problem] = report["problems"]
    assert problem.startswith("torch does not load: ") and report["devices"] == []


def test_without_the_package_installed_it_says_that_it_knows_no_requirements(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert any("is not installed, so what it needs is not known" in problem for problem in found(code=1)["problems"])


def test_a_cache_that_cannot_be_written_to_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    [problem] = found(code=1)["problems"]
    assert "the cache of models" in problem and "HF_HOME" in problem
    assert "CANNOT be written to" in udm_here("doctor", code=1).stdout


def test_it_shows_no_token_and_no_name_of_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    for text in (udm_here("doctor").stdout, udm_here("doctor", "--json").stdout):
        assert "hf_" not in text and tmp_path.name not in text and "~/hub" in text


AS_UDM = "import sys; sys.argv[0] = 'udm'; from udm_text.cli import main; main()"


def test_a_shell_completes_commands():
    asked = {"_UDM_COMPLETE": "complete_bash", "COMP_WORDS": "udm do", "COMP_CWORD": "1"}
    assert python("-c", AS_UDM, **asked).stdout.split() == ["doctor"]
