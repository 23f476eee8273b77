"""Everyday mistakes end in one line that names them, before the work."""

import json
import os
import subprocess
import sys

import httpx2
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertForMaskedLM

from tests.helpers import ROOT, udm, udm_here, udm_main, write_shapes
from tests.models import save_masked_lm, wake_time
from udm_text import UDMForMaskedGeneration, __version__, register
from udm_text.cli.terminal import check_device
from udm_text.common import check_new_folder, check_place
from udm_text.hub import save_backbone
from udm_text.run_report import read_report

register()


@pytest.fixture
def model(tmp_path):
    """A model as `udm train` leaves one, to spoil."""
    plain = save_masked_lm(tmp_path / "plain", "bert")
    wake_time(UDMForMaskedGeneration.from_pretrained(plain, length_counts=[0, 1, 2, 3])).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_the_version_is_told():
    assert udm_here("--version").output == f"udm-text {__version__}\n"


@pytest.mark.parametrize("name", ["cuda:99", "cudda", "mps:7", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(name):
    with pytest.raises(ValueError, match="--device"):
        check_device(name)
    if not torch.cuda.is_available():
        for command in (["generate"], ["evaluate", "--data", "x"], ["repair", "a"]):
            said = str(udm_here(*command, "no-such-model", "--device", "cuda", code=1).exception)
            assert "--device cuda: this machine has 0" in said or "no-such-model" in said
    check_device("cpu")
    check_device(None)


@pytest.mark.parametrize(
    "content", ["null", "[]", "{", "3", "", '{"validation": 3}', '{"data": []}', '{"max_corruption": "a"}']
)
def test_a_report_that_is_none_is_refused_by_name(model, tmp_path, content):
    (model / "report.json").write_text(content)
    with pytest.raises(ValueError, match="report.json"):
        read_report(model / "report.json")
    error = udm_here("evaluate", model, "--data", write_shapes(tmp_path / "rows.txt"), code=1).exception
    assert isinstance(error, ValueError) and "report.json" in str(error)


def test_an_empty_report_names_no_corpus(model):
    (model / "report.json").write_text("{}")
    assert "give --data" in str(udm_here("evaluate", model, code=1).exception)


@pytest.mark.parametrize(
    "content",
    ["null", "[]", "{", "{}", '{"model_type": 3}', '{"model_type": "udm", "text_config": []}']
    + ['{"model_type": "udm", "text_config": {"model_type": "bert", "hidden_size": "big"}}']
    + ['{"model_type": "udm", "special_token_ids": "abc"}', '{"model_type": "udm", "auto_map": null}'],
)
def test_a_config_that_is_none_is_refused_in_one_sentence(model, content):
    (model / "config.json").write_text(content)
    for command in (["generate", model], ["export", model, model.parent / "out"]):
        error = udm_here(*command, code=1).exception
        assert isinstance(error, ValueError | OSError), repr(error)
    assert not (model.parent / "out").exists()


def test_an_export_that_cannot_be_written_says_so_before_the_model_is_read(model, tmp_path):
    (tmp_path / "file").write_text("")
    error = udm_here("export", "no-such-model", tmp_path / "file" / "out", code=1).exception
    assert "is no folder that may be written to" in str(error)
    assert check_new_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_full_disk_ends_an_export_in_one_sentence_and_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    network, tokenizer = UDMForMaskedGeneration.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="could not be written .*No space left"):
        save_backbone(network, tokenizer, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_of_two_exports_into_one_folder_one_is_there_whole_and_the_other_is_refused(model, tmp_path, monkeypatch):
    """Each stages beside the target; the second is ready while the first is still writing."""
    network, tokenizer = UDMForMaskedGeneration.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    target, stages = tmp_path / "deep" / "out", []
    whole = BertForMaskedLM.save_pretrained

    def both(self, folder, **how):
        stages.append(folder)
        whole(self, folder, **how)
        if len(stages) == 1:
            save_backbone(network, tokenizer, target)

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", both)
    with pytest.raises(FileExistsError, match="was written by another process meanwhile"):
        save_backbone(network, tokenizer, target)
    assert len(set(stages)) == 2 and all(stage.parent == target.parent for stage in stages)
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert BertForMaskedLM.from_pretrained(target).config.model_type == "bert"
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        save_backbone(network, tokenizer, target)


def test_an_empty_folder_takes_an_export(model, tmp_path):
    (tmp_path / "out").mkdir()
    network, tokenizer = UDMForMaskedGeneration.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    save_backbone(network, tokenizer, tmp_path / "out")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_arguments_that_are_no_utf8_are_refused():
    call = [sys.executable, "-m", "udm_text", "generate", "m", b"caf\xe9"]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, timeout=280)
    assert result.returncode == 1
    assert result.stderr == b"udm: argument 3 is not UTF-8: b'caf\\xe9'\n"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}])
def test_a_prompt_beyond_ascii_works_in_every_locale(model, locale):
    call = [sys.executable, "-m", "udm_text", "generate", str(model), "naïve 木 [MASK]", "--json", "--seed", "0"]
    result = subprocess.run(call, cwd=ROOT, env={**os.environ, **locale}, capture_output=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["input"] == "naïve 木 [MASK]"


def test_integers_beyond_64_bits_end_in_one_line(model, monkeypatch):
    for flag in ("--seed", "--num-steps", "-n", "--length"):
        code, _, said = udm_main(monkeypatch, ["generate", model, flag, 10**30])
        assert code == 1 and said.startswith("udm: ") and len(said.splitlines()) == 1


COMMANDS = {
    "generate": ["generate", "{name}", "a"],
    "score": ["generate", "{name}", "a", "--score"],
    "repair": ["repair", "{name}", "a"],
    "evaluate": ["evaluate", "{name}"],
    "push": ["push", "{name}", "user/name"],
    "export": ["export", "{name}", "out"],
    "train": ["train", "--model", "{name}", "--data", "corpus.txt", "--output", "out", "--use_cpu"],
    "image": ["image", "generate", "{name}", "--output", "a.png"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a folder of runs and a corpus, where every question to the Hub is counted and fails."""
    asked = []

    def broken(url, **how):
        asked.append(url)
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", broken)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/names", "models/names"):
        (tmp_path / name).mkdir(parents=True)
    write_shapes(tmp_path / "corpus.txt")
    return asked


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_of_models_that_is_mistyped_is_refused_at_once_and_the_nearest_named(place, command):
    error = udm_here(*(word.format(name="runs/nmaes") for word in command), code=1).exception
    assert str(error) == "there is no model directory runs/nmaes; did you mean runs/names?"
    assert place == [], "the Hub is not asked for a path"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_hub_that_is_not_there_is_asked_once_and_both_possibilities_are_said(place, command):
    error = udm_here(*(word.format(name="models/nmaes") for word in command), code=1).exception
    assert isinstance(error, OSError) and str(error) == (
        "there is no model directory models/nmaes here, and the Hub could not be asked for a model of that name: no "
        "route; did you mean models/names?"
    )
    assert len(place) == 1 and "/models/nmaes/" in place[0]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("./runs/nmaes", "; did you mean runs/names?"),
        ("rnus/names", "; did you mean runs/names?"),
        ("~/no-such-folder-of-mine", ""),
        ("runs/names/none/of/these", ""),
        ("/no/such", ""),
    ],
)
def test_what_reads_as_a_path_is_no_name_on_the_hub(place, name, near):
    with pytest.raises(OSError) as caught:
        check_place(name)
    said = str(caught.value)
    assert said.startswith(f"there is no model directory {name}") and said.endswith(near or name)
    assert len(place) == (name == "rnus/names")


def test_a_name_that_the_hub_does_not_know_is_told_beside_the_folder_that_is_near(place, monkeypatch):
    def unknown(url, **how):
        raise RepositoryNotFoundError("404", response=httpx2.Response(404, request=httpx2.Request("HEAD", url)))

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unknown)
    with pytest.raises(FileNotFoundError, match="no model of that name on the Hub; did you mean models/names"):
        check_place("models/name")
    check_place("models/else")  # what loads it says what the Hub said


def test_a_corpus_that_is_not_there_is_refused_likewise(place):
    for data, said in (
        ("corpsu.txt", "there is no file or folder corpsu.txt; did you mean corpus.txt?"),
        ("runs/nmaes", "there is no file or folder runs/nmaes; did you mean runs/names?"),
        ("no/such", "'no/such' is neither a file, nor a folder, nor a data set that could be loaded: there is no file"),
    ):
        error = udm_here("train", "--data", data, "--output", "out", "--use_cpu", code=1).exception
        assert str(error).startswith(said)
    assert len(place) == 1


def test_a_run_that_is_not_finished_is_told_from_a_model_of_another_kind(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    result = udm("generate", tmp_path / "run", "a", code=1)
    assert result.stderr.startswith(f"udm: the run in {tmp_path / 'run'} is not finished")
