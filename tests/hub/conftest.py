"""A Hub on this machine, a small trained model with every figure, and processes of their own that push and load."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, python, write_shapes
from tests.hub.server import Hub

HERE = Path(__file__).resolve().parent
README = (ROOT / "README.md").read_text(encoding="utf-8").split("## Share your model")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("udm ")]
INSTALLED, CARRIED = (block for kind, block in BLOCKS if kind == "python")

SAMPLES = {"num_return_sequences": 3, "seed": 0}


@pytest.fixture(scope="session")
def hub():
    with Hub().running() as running:
        yield running


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """Where the README's commands run: it holds runs/unicode-names, a model as `udm train` leaves it."""
    from udm_text.cli.train_text import parse, train_text
    from udm_text.common import write_json
    from udm_text.corpus import load_corpus, load_tokenizer, make_rows
    from udm_text.evaluation import measure_curve, price_table, store_curve
    from udm_text.modeling_udm import UDMForMaskedGeneration

    place = tmp_path_factory.mktemp("secret-home")
    corpus = write_shapes(place / "shapes.txt")
    output = place / "runs/unicode-names"
    options = (
        "--max_steps 6 --model tiny --per_device_train_batch_size 8 --use_cpu --report_to none --disable_tqdm true"
    )
    report = train_text(*parse(["--data", str(corpus), "--output", str(output), *options.split()]))
    held, _ = make_rows(load_corpus(str(corpus))["train"].select(range(8)), load_tokenizer(str(output)), rows="line")
    measured = measure_curve(UDMForMaskedGeneration.from_pretrained(output), held, draws=2)
    store_curve(output, measured.curve)
    write_json(output / "report.json", {**report, "curve": {**measured.to_dict(), "prices": price_table(measured)}})
    return place


@pytest.fixture(scope="session")
def model_directory(workplace) -> Path:
    return workplace / "runs/unicode-names"


@pytest.fixture(scope="session")
def local_texts(model_directory) -> list[dict[str, Any]]:
    """What the model on disk writes: what every copy of it must write."""
    from transformers import pipeline

    return pipeline("udm-generation", model=str(model_directory))("", **SAMPLES)


@pytest.fixture(scope="session")
def environment(hub, tmp_path_factory) -> Callable[..., dict[str, str]]:
    """The environment of a fresh process: our Hub, an empty cache unless one is given, nobody logged in."""

    def make(home: Path | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home or tmp_path_factory.mktemp("cache")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    return make


@pytest.fixture(scope="session")
def run_script(environment) -> Callable[..., dict[str, Any]]:
    """Runs a script of this folder in a fresh process; what it found out is the JSON of its last line."""

    def run(name: str, given: dict[str, Any], *flags: str, home: Path | None = None, **more: str) -> dict[str, Any]:
        made = environment(home)
        result = python(*flags, HERE / name, json.dumps(given), environment=made, cwd=home, **more)
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def author(hub, workplace, model_directory, run_script) -> dict[str, Any]:
    """What a process found that ran the README's commands, pushed in every way and through every fault."""
    hub.add("user/gpt2", {"config.json": b'{"model_type": "gpt2"}'})
    for name in ("user/broken-line", "user/dropped-line"):
        hub.add(name, {"config.json": b'{"model_type": "udm"}' + b" " * 100})
    given = {"model": str(model_directory), "place": str(workplace), "commands": COMMANDS}
    return run_script("author.py", given, HF_HUB_ETAG_TIMEOUT="1")


@pytest.fixture(scope="session")
def commands(author) -> list[dict[str, Any]]:
    """How the commands of the README ended, in their order."""
    return author["readme"]
