"""`udm app --export-space`: a folder that runs the page as a Space of the Hub, models and code in it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ...common import check_new_folder, staged_folder, to_json, write_json
from ...run_report import public, read_report
from ..doctor import requirements
from . import is_image_model

CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
"""Spares the Space, which has no GPU unless it is paid for, gigabytes of CUDA libraries."""
_PACKAGES = Path(__file__).resolve().parents[2], Path(__file__).resolve().parents[3] / "continuous"
_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Files of a model's folder that belong to it, by the end of their names; those of its training are left out."""
_OF_TRAINING = ("run.json", "trainer_state.json")

_APP = '''"""The page of udm-text on the models of this Space."""

from udm_text.cli.page import serve_space

if __name__ == "__main__":
    serve_space({models!r})
'''

_README = """---
title: {quoted}
emoji: ✍️
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
{models}---

# {title}

Texts and images by diffusion, watched as they come to be: the page of udm-text, whose code is beside it in `udm_text/`
and `continuous/`. `pip install -r requirements.txt` and `python app.py` run it anywhere.
"""


def export_space(names: Sequence[str], directory: str | Path, title: str | None = None) -> list[str]:
    """Writes app.py, requirements.txt and README.md, the code, and the models that are folders here; returns the files.

    A model of the Hub is named and fetched by the Space, which needs to be allowed to read it.

    Raises:
        FileExistsError: the directory is not empty. OSError: a model is not there.
    """
    directory = check_new_folder(directory)
    for name in names:
        is_image_model(name)  # raises where there is no model
    places = [f"models/{Path(name).resolve().name}" if Path(name).is_dir() else name for name in names]
    if len(set(places)) < len(places):
        raise ValueError(f"two of these models have the same name, {', '.join(names)}: rename the folder of one")
    if title is None:
        title = " and ".join(dict.fromkeys(name.rstrip("/").rsplit("/", 1)[-1] for name in names))
    packages = [f"{one.name}{one.specifier}" for extra in ("", "images") for one in requirements(extra)]
    if not packages:
        raise ValueError("udm-text runs without being installed, so what it needs is not known: pip install it first")
    with staged_folder(directory) as folder:
        for name, place in zip(names, places, strict=True):
            if place != name:
                _copy_model(Path(name), folder / place)
        for package in _PACKAGES:
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "app.py").write_text(_APP.format(models=places), encoding="utf-8")
        lines = [CPU_INDEX, f"gradio=={version('gradio')}", *dict.fromkeys(packages)]
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        fetched = [place for name, place in zip(names, places, strict=True) if place == name]
        listed = "".join(["models:\n", *(f"- {name}\n" for name in fetched)]) if fetched else ""
        head = {"title": title, "quoted": to_json(title), "gradio": version("gradio"), "models": listed}
        (folder / "README.md").write_text(_README.format(**head), encoding="utf-8")
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _copy_model(source: Path, target: Path) -> None:
    """The files of a model; of its report what may be published."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix in _OF_A_MODEL and path.name not in _OF_TRAINING:
            shutil.copyfile(path, target / path.name)
    if (report := target / "report.json").exists():
        write_json(report, public(read_report(report)))
