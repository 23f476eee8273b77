"""The demo, shortened: all of it, with a few seconds of training."""

import json

import pytest

import continuous.demo
import udm_text.cli.demo
from tests.helpers import udm


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    command = ["demo", "--output", output, "--steps", "60"]
    return output, udm(*command).stdout, command


def test_the_demo_shows_bound_samples_infilling_repair_and_curve(demo):
    output, printed, *_ = demo
    for words in ("bits/char", "never seen", "fill in", "repair", "grows", "any width", "loss.png", "░░"):
        assert words in printed, printed
    assert (output / "unicode-names" / "loss.png").stat().st_size > 5000


def test_the_demo_learns_even_in_a_few_steps(demo):
    report = json.loads((demo[0] / "unicode-names" / "report.json").read_text())
    assert report["validation"]["bits_per_char"] < 2.2  # 6,000 equally likely tokens would cost 2.4
    shares = report["samples"]["shares"]
    assert abs(sum(shares[k]["share"] for k in ("seen", "unseen", "words", "other")) - 1) < 1e-9
    assert len(report["infilling"]["generated"]) == 5
    assert 0 <= report["repair"]["restored"] <= 1
    grown = report["growing"]["grown"]
    assert grown[0] == "" and len(grown) == 7
    assert all(text.startswith("LATIN") and "WITH" in text for text in report["growing"]["generated"])


def test_a_second_demo_uses_the_models_that_are_there(demo):
    output, _, command = demo
    weights = output / "unicode-names" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert "is there already" in udm(*command).stdout
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("module", "name", "more", "clock"),
    [(udm_text.cli.demo, "train_text", ("data",), (30,)), (continuous.demo, "train_image", (), ())],
)
def test_a_demo_that_was_stopped_or_killed_goes_on_and_a_finished_one_is_used(
    module, name, more, clock, tmp_path, monkeypatch
):
    seen, ends = [], {"stopped": None}
    monkeypatch.setattr(module, name, lambda *options: seen.append(options[-1].resume) or ends)

    def train(**files):
        for file, content in files.items():
            (tmp_path / f"{file}.json").write_text(json.dumps(content))
        before = len(seen)
        module.train(tmp_path, *more, [], *clock, 4, 0)
        return seen[before:]

    assert train() == [False]
    assert train(run={}) == [True]  # killed
    assert train(report={"stopped": "SIGTERM", "log": []}) == [True]
    assert train(report={"stopped": None, "seconds": 3.0}) == []
    for signal, code in (("SIGTERM", 0), ("SIGINT", 130)):
        ends["stopped"] = signal
        with pytest.raises(SystemExit) as ended:
            train(report={"stopped": signal})
        assert ended.value.code == code
