"""The demo, shortened: all of it, with a few seconds of training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "udm_text.cli", "demo", "--output", str(output), "--steps", "120"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return output, result.stdout, command, environment


def test_the_demo_shows_bound_samples_infilling_repair_and_curve(demo):
    output, printed, *_ = demo
    for words in ("bits/char", "never seen", "fill in", "repair", "loss.png", "░░"):
        assert words in printed, printed
    assert (output / "unicode-names" / "loss.png").stat().st_size > 5000


def test_the_demo_learns_even_in_a_few_steps(demo):
    report = json.loads((demo[0] / "unicode-names" / "report.json").read_text())
    assert report["validation"]["bits_per_char"] < 2.2  # 6,000 equally likely tokens would cost 2.4
    shares = report["samples"]["shares"]
    assert abs(sum(shares[k]["share"] for k in ("seen", "unseen", "words", "other")) - 1) < 1e-9
    assert len(report["infilling"]["generated"]) == 5
    assert 0 <= report["repair"]["restored"] <= 1


def test_a_second_demo_uses_the_models_that_are_there(demo):
    output, _, command, environment = demo
    weights = output / "unicode-names" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "is there already" in again.stdout
    assert weights.stat().st_mtime_ns == before
