"""The demo, shortened: all of it, with a few seconds of training."""

import json

import pytest

from tests.helpers import udm


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    command = ["demo", "--output", output, "--steps", "120"]
    return output, udm(*command).stdout, command


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
    output, _, command = demo
    weights = output / "unicode-names" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert "is there already" in udm(*command).stdout
    assert weights.stat().st_mtime_ns == before
