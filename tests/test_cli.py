"""The `udm` command, run as a person runs it: in a process of its own."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, listing, python, udm, udm_here, udm_main, write_shapes

TRAIN = (
    "--max_steps 12 --model tiny --per_device_train_batch_size 8 --use_cpu --report_to none --disable_tqdm true".split()
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("corpus") / "rows.txt")


@pytest.fixture(scope="module")
def mask_model(corpus):
    output = corpus.parent / "mask"
    udm("train", "--data", corpus, "--output", output, *TRAIN, "--save_steps", "6", "--seed", "1")
    return output


@pytest.fixture(scope="module")
def repair_model(corpus):
    output = corpus.parent / "repair"
    options = ["--process", "substitute", "--tokenizer", "char", "--max_corruption", "0.2"]
    udm("train", "--data", corpus, "--output", output, *TRAIN, *options)
    return output


def test_help_answers_without_importing_torch():
    command = Path(sys.executable).parent / "udm"
    result = python("-X", "importtime", command, "--help")
    assert "repair" in result.stdout
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time")
    }
    assert "typer" in imported and not {"torch", "transformers"} & imported


REGISTERED = """
import udm_text
from transformers import AutoConfig
from transformers.pipelines import PIPELINE_REGISTRY
print(AutoConfig.for_model("udm").model_type == "udm" and "udm-generation" in PIPELINE_REGISTRY.get_supported_tasks())
"""


@pytest.mark.parametrize("program", ["-m app.run", "-m app", "udm", "app/run.py"])
def test_importing_the_package_registers_it_in_every_program_but_our_command(tmp_path, program):
    app = tmp_path / "app"
    app.mkdir()
    for file in (app / "__init__.py", app / "run.py", app / "__main__.py", tmp_path / "udm"):
        file.write_text(REGISTERED)
    result = python(*program.split(), cwd=tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert set(result.stdout.split()) == {"True"}


def test_train_writes_the_model_and_every_figure(mask_model):
    names = {path.name for path in mask_model.iterdir()}
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "report.json", "loss.png"}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".part"))]
    report = json.loads((mask_model / "report.json").read_text())
    assert report["steps"] == 12 and report["validation"]["bits_per_char_stderr"] > 0


def test_evaluate_repeats_the_figures_of_the_report_exactly(mask_model):
    printed = json.loads(udm("evaluate", mask_model, "--json").stdout)
    report = json.loads((mask_model / "report.json").read_text())["validation"]
    assert {name: printed[name] for name in report} == report
    for name in ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound"):
        assert printed[name] > 0 and printed[f"{name}_stderr"] > 0


def test_generate_is_reproduced_by_a_seed_and_mixes_uses_in_one_call(mask_model):
    call = ["generate", mask_model, "red [MASK] circle", "small", "--json", "-n", "2", "--seed", "3"]
    first, second = udm(*call).stdout, udm(*call).stdout
    assert first == second
    filled, continued = json.loads(first)
    assert all(r["generated_text"].startswith("red") for r in filled["generated"])  # the space is the blank's
    assert all(r["generated_text"].endswith(" circle") for r in filled["generated"])
    assert all(r["generated_text"].startswith("small") for r in continued["generated"])
    assert len(filled["generated"]) == 2


def test_watch_shows_the_text_as_it_appears(mask_model):
    shown = udm("generate", mask_model, "--watch", "--seed", "0", "--length", "3").stdout
    plain = udm("generate", mask_model, "--seed", "0", "--length", "3").stdout.strip()
    assert plain in shown


def test_repair_prints_the_text_and_its_edits(repair_model):
    [record] = json.loads(udm("repair", repair_model, "red greem circle", "--json", "--max-edits", "2").stdout)
    assert record["edits"][0] == "red greem circle" and record["edits"][-1] == record["repaired"]
    assert len(record["repaired"]) == len("red greem circle")
    assert sum(a != b for a, b in zip(record["repaired"], record["input"], strict=True)) <= 2


def test_a_second_run_into_a_folder_neither_overwrites_nor_mixes(mask_model, corpus):
    before = listing(mask_model)
    result = udm("train", "--data", corpus, "--output", mask_model, *TRAIN, code=1)
    assert "--resume" in result.stderr and listing(mask_model) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "{model}", "--temperature=-1"], "temperature"),
        (["generate", "{model}", "--order", "backwards"], "order must be"),
        (["generate", "{model}", "--kernel", "warp"], "kernel must be"),
        (["generate", "{model}", "--dtype", "int8"], "--dtype must be"),
        (["generate", "no/such/folder/here"], "no/such/folder/here"),
        (["repair", "{model}", "red"], "substitute"),
        (["evaluate", "{model}", "--split", "weekend"], "--split must be"),
        (["train", "--data", "nothing.txt", "--output", "{fresh}"], "nothing.txt"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_it(mask_model, tmp_path, arguments, words, monkeypatch):
    filled = [a.format(model=mask_model, fresh=tmp_path / "fresh") for a in arguments]
    code, _, said = udm_main(monkeypatch, filled)
    assert code == 1 and words in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "fresh").exists()


def test_a_repairer_is_measured_by_typing_errors_and_its_loss_and_measured_again_alike(repair_model):
    report = json.loads((repair_model / "report.json").read_text(encoding="utf-8"))["repair"]
    assert set(report["by_kind"]) == {"mixed", "substitute", "insert", "delete", "transpose"}
    assert 0 <= report["restored"] <= 1 and 0 <= report["recall"] <= 1 and report["loss_nats_per_token"] > 0
    inserted = report["by_kind"]["insert"]["1"]
    assert inserted["restored"] == 0 and inserted["out_of_reach"] == inserted["rows"] > 0
    again = json.loads(udm("evaluate", repair_model, "--json").stdout)
    assert {name: again[name] for name in report} == report
    words = udm("evaluate", repair_model).stdout
    assert "cannot be reached by substitution" in words and "precision" in words and "held-out loss" in words


def test_a_plain_masked_lm_fills_in_from_the_command_line_and_a_model_of_another_kind_does_not(tmp_path, caplog):
    from tests.models import save_masked_lm

    save_masked_lm(tmp_path / "bert", "bert")
    out = udm_here("generate", tmp_path / "bert", "the [MASK] sat on [MASK] mat", "--seed", "0", "-n", "2")
    assert out.stdout.count("sat on") == 2 and "not trained for generation" in caplog.text
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    refused = udm_here("generate", tmp_path / "clip", code=1)
    assert "is of model type 'clip', and this needs a UDM model, or a masked LM to wrap" in str(refused.exception)
