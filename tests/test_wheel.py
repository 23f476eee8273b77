"""The wheel: what is in it, and that it works where there is no repository."""

import json
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.helpers import ROOT

COPIED = {f"udm_text/data/{name}": ROOT / "data" / name for name in ("local_dataset.py", "unicode_names/prepare.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    [built] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    place = tmp_path_factory.mktemp("installed")
    wheel.extractall(place)
    return place


def test_it_holds_the_two_packages_and_what_the_demo_makes_its_data_with(wheel):
    named = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {
        str(p.relative_to(ROOT)) for package in ("udm_text", "continuous") for p in (ROOT / package).rglob("*.py")
    }
    assert named == modules | {"udm_text/py.typed", "continuous/py.typed"} | set(COPIED)
    for name, source in COPIED.items():
        assert wheel.read(name) == source.read_bytes()


def test_its_metadata_name_the_command_the_licence_and_every_extra(wheel):
    [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    [points] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "udm = udm_text.cli:main" in points and "License-Expression: Apache-2.0" in metadata
    assert {"Provides-Extra: train", "Provides-Extra: lora", "Provides-Extra: images"} <= set(metadata.splitlines())


INSTALLED = """
import sys
sys.argv[0] = "udm"
sys.path[:] = [{place!r}, *(p for p in sys.path if p != {root!r}), {packages!r}]  # no .pth file adds the checkout
from pathlib import Path
import udm_text
assert udm_text.__file__.startswith({place!r}), udm_text.__file__
"""


def run_installed(code: str, place, cwd, *arguments: str) -> str:
    """What a program prints that finds the unpacked wheel and other people's packages, and no repository."""
    packages = sysconfig.get_path("purelib")
    head = INSTALLED.format(place=str(place), root=str(ROOT), packages=packages)
    command = [sys.executable, "-I", "-S", "-c", head + code, *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


PREPARE = """
from udm_text.cli.demo import load_script, place_of_data, prepare_script
import json
script, output = prepare_script(), Path("runs")
counts = load_script(script).prepare(place_of_data(script, output))
print(json.dumps({"script": str(script), "counts": counts, "where": str(place_of_data(script, output))}))
"""


def test_the_demo_finds_its_data_where_no_repository_is(unpacked, tmp_path):
    said = json.loads(run_installed(PREPARE, unpacked, tmp_path))
    assert said["script"] == str(unpacked / "udm_text/data/unicode_names/prepare.py")
    assert said["where"] == "runs/unicode-names-data" and sum(said["counts"].values()) > 27_000
    assert (tmp_path / "runs/unicode-names-data/data/train.jsonl").is_file()


def test_in_a_clone_the_data_lie_beside_their_script():
    from udm_text.cli.demo import place_of_data, prepare_script

    script = ROOT / "data/unicode_names/prepare.py"
    assert prepare_script() == script and place_of_data(script, ROOT / "runs") == script.parent / "dataset"


WITHOUT_EXTRA = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("matplotlib", "tensorboard") else find(name, *more)
sys.modules["matplotlib"] = sys.modules["tensorboard"] = None
from udm_text.cli import main
main()
"""


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_without_any_extra(unpacked, tmp_path):
    said = run_installed(WITHOUT_EXTRA, unpacked, tmp_path, "demo", "--steps", "4")
    assert "no loss curve: it takes matplotlib" in said and "a name grows" in said
    assert (tmp_path / "runs/unicode-names/report.json").is_file()
    assert not (tmp_path / "runs/unicode-names/loss.png").exists()
