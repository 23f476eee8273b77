"""A training run from a text file to a report: complete, repeatable, resumable, and careful with what is there."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, TrainingArguments

from tests.helpers import ROOT, assert_equal_weights, listing, python, weights_in, write_lines
from tests.models import make_masked_lm, text_config
from tests.test_corpus import LINES, framed_tokenizer
from udm_text import UDMForMaskedGeneration
from udm_text.cli.reports import describe
from udm_text.cli.train_text import ADAMW_RATE, main, parse, train_text
from udm_text.corpus import CorpusError, hold_out, load_corpus, load_tokenizer, make_rows
from udm_text.evaluation import evaluate_bound
from udm_text.training import UDMTrainer
from udm_text.training.arguments import PRESETS
from udm_text.training.callbacks import StepNoise, terminal_bar
from udm_text.training.causal import load_twin
from udm_text.training.locks import LockedError
from udm_text.training.optimizers import muon_rate
from udm_text.training.resuming import ResumeError
from udm_text.training.runs import OutputExistsError, resolved

WORDS = "latin greek small capital letter with above below dot ring tilde sign mark arrow left right double".split()
FAST = "--model tiny --max_steps 4 --per_device_train_batch_size 8 --vocab_size 200 --use_cpu --report_to none".split()


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("toy") / "toy.txt", WORDS, lines=160, longest=5)


def train(data, output, *options, plot=False):
    plot_option = [] if plot else ["--plot", "false"]
    arguments = ["--data", str(data), "--output", str(output), *FAST, *plot_option, *map(str, options)]
    return train_text(*parse(arguments))


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A run of 20 steps with everything on, and its report."""
    output = tmp_path_factory.mktemp("run") / "model"
    options = "--max-steps 20 --save_steps=10 --seed 1 --eval_strategy steps --eval_steps 10 --logging_steps 5"
    return output, train(toy, output, *options.split(), "--report_to", "tensorboard", plot=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--noisy_column", "n"], ", and this model has process 'mask'"),
        (
            ["--noisy_column", "n", "--model", "{finished}"],
            ", and this model has process 'mask'",
        ),
        (["--max_corruption", 0.2], "max_corruption below 1 trains a repairer, which needs process 'substitute'"),
        (["--process", "nosuch"], "process must be 'mask', 'substitute', 'uniform', 'delete' or 'edit', got 'nosuch'"),
        (["--process", "substitute", "--kernel", "x"], "kernel must be 'site', 'hamming' or 'free', got 'x'"),
        (
            ["--process", "substitute", "--loss", "nelbo", "--loss_chunk", 3],
            "goes with loss 'cross_entropy'",
        ),
    ],
)
def test_a_process_that_cannot_be_trained_so_is_refused_before_the_data_is_read(finished, tmp_path, options, said):
    given = [str(word).format(finished=finished[0]) for word in options]
    with pytest.raises(ValueError, match=said):
        main(["--data", "no-such-corpus.txt", "--output", str(tmp_path / "out"), "--use_cpu", *given])


@pytest.mark.parametrize("hidden", [False, True])
def test_the_measuring_after_a_training_has_a_bar_where_the_training_has(toy, tmp_path, monkeypatch, hidden):
    shown = []

    def bar(parts, what):
        shown.append((what, len(parts)))
        return parts

    monkeypatch.setattr("udm_text.training.runs.terminal_bar", bar)
    how = ["--disable_tqdm", "true"] * hidden
    report = train(toy, tmp_path / "run", "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1, *how)
    assert shown == ([] if hidden else [("bound", 1)] * 3) and report["validation"]["rows"] > 0
    assert list(terminal_bar(range(3), "words")) == [0, 1, 2]


def test_an_evaluation_on_the_way_is_of_the_rows_that_were_asked_for(toy, tmp_path, monkeypatch):
    asked, evaluate = [], UDMTrainer.evaluate

    def noted(self, *args, **kwargs):
        asked.append([row["input_ids"] for row in self.eval_dataset])
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(UDMTrainer, "evaluate", noted)
    report = train(
        toy, tmp_path / "run", "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2, "--eval_rows", 2
    )
    held = make_rows(hold_out(load_corpus(str(toy)))["validation"], load_tokenizer(str(tmp_path / "run")), rows="line")[
        0
    ]
    rows = held["input_ids"]
    assert asked == [[rows[0], rows[len(rows) // 2]]] and len(rows) > 2
    assert report["eval_rows"] == 2 and report["validation"]["rows"] == len(rows)


def test_the_output_folder_holds_the_model_and_all_about_it(finished):
    output, _ = finished
    names = {path.name for path in output.iterdir()}
    model = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert model | {"report.json", "loss.png", "checkpoint-10", "checkpoint-20"} <= names
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list(output.rglob("events.out.tfevents.*"))
    report = json.loads((output / "report.json").read_text())
    assert report["held_out"]["split"] == "train" and report["held_out"]["share"] == 0.05
    assert report["examples"] == [], "a writer of texts needs none"
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".part")]
    assert json.loads((output / "config.json").read_text())["model_type"] == "udm"


def test_the_report_repeats_what_the_saved_model_gives(finished, toy):
    output, report = finished
    assert json.loads((output / "report.json").read_text()) == json.loads(json.dumps(report, default=str))
    model = UDMForMaskedGeneration.from_pretrained(output)
    rows, _ = make_rows(hold_out(load_corpus(str(toy)))["validation"], load_tokenizer(str(output)))
    assert report["validation"] == evaluate_bound(model, rows).to_dict()
    assert (report["steps"], report["seed"], report["process"]) == (20, 1, "mask")
    assert report["train_rows"] + report["validation"]["rows"] == 160
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    steps = [entry["step"] for entry in report["log"] if "loss" in entry]
    assert steps == [5, 10, 15, 20]
    assert [entry["step"] for entry in report["log"] if "eval_loss" in entry] == [10, 20]


def test_what_the_report_names_by_a_path_can_be_found_from_elsewhere(few_words, plain_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(plain_bert)
    data, start = os.path.relpath(few_words), os.path.join("..", plain_bert.name)
    options = ["--model", start, "--tokenizer", start, "--validation_data", data, "--max_steps", 1]
    report = train(data, tmp_path / "out", *options)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["data_arguments"] == report["data_arguments"]
    data_arguments = {name: stored["data_arguments"][name] for name in ("data", "validation_data", "tokenizer")}
    assert data_arguments == {"data": str(few_words), "validation_data": str(few_words), "tokenizer": str(plain_bert)}
    assert (stored["data"], stored["model_arguments"]["model"]) == (str(few_words), str(plain_bert))
    assert (stored["base_model"], stored["held_out"]["data"]) == (None, str(few_words))
    places = {"--data": str(few_words), "--model": str(plain_bert), "--output": str(tmp_path / "out")}
    words = stored["command"]
    last = dict(zip(words, words[1:], strict=False))  # of an option that was given twice
    assert words[:2] == ["udm", "train"] and {name: last[name] for name in places} == places
    (plain_bert / "mini").mkdir()
    assert (resolved("mini"), resolved("mini", PRESETS)) == (str(plain_bert / "mini"), "mini")
    assert (resolved("user/data"), resolved(None)) == ("user/data", None)
    (plain_bert / "mini").rmdir()


def test_the_saved_model_knows_the_training_lengths_and_generates(finished):
    output, _ = finished
    model, tokenizer = UDMForMaskedGeneration.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    report = json.loads((output / "report.json").read_text())
    assert sum(model.config.length_counts) == 160 - report["validation"]["rows"] == report["train_rows"]
    assert len(model.config.length_counts) == 6
    text = tokenizer.batch_decode(model.generate(num_return_sequences=3, seed=0), skip_special_tokens=True)
    assert len(text) == 3
    assert all(set(one.split()) for one in text)


def test_a_non_empty_folder_is_refused_and_left_as_it_was(finished, toy, tmp_path):
    output, _ = finished
    before = listing(output)
    with pytest.raises(OutputExistsError, match="is not empty: give --resume .* Nothing was changed"):
        train(toy, output)
    assert listing(output) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(OutputExistsError, match="holds no checkpoint to resume from"):
        train(toy, tmp_path / "notes", "--resume")
    with pytest.raises(OutputExistsError, match="is a file"):
        train(toy, tmp_path / "notes" / "thesis.tex")
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        train(toy, tmp_path / "nowhere", "--resume")
    assert listing(tmp_path) == before


def test_a_resumed_run_ends_where_an_unbroken_one_ends(toy, tmp_path):
    steady = ["--lr_scheduler_type", "constant", "--warmup_steps", 0, "--dropout", 0.1, "--seed", 3]
    train(toy, tmp_path / "whole", *steady, "--max_steps", 8)
    train(toy, tmp_path / "halves", *steady, "--max_steps", 4)
    report = train(toy, tmp_path / "halves", *steady, "--max_steps", 8, "--resume")
    assert report["steps"] == 8
    assert_equal_weights(weights_in(tmp_path / "whole"), weights_in(tmp_path / "halves"))
    assert report["validation"] == json.loads((tmp_path / "whole" / "report.json").read_text())["validation"]


def test_one_seed_repeats_a_run(toy, tmp_path):
    first, again, other = (train(toy, tmp_path / str(i), "--seed", seed) for i, seed in enumerate((1, 1, 2)))
    assert first["validation"] == again["validation"] != other["validation"]
    assert (tmp_path / "0" / "tokenizer.json").read_bytes() == (tmp_path / "1" / "tokenizer.json").read_bytes()


def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_and_says_how_to_go_on(toy, tmp_path, capsys, monkeypatch):
    output, options = tmp_path / "out", ["--lr_scheduler_type", "constant", "--max_steps", 6, "--ema_decay", 0.9]
    on_step_begin = StepNoise.on_step_begin

    def told(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step_begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepNoise, "on_step_begin", told)
    report = train(toy, output, *options)
    monkeypatch.undo()
    assert "SIGTERM at step 3: a checkpoint is written" in capsys.readouterr().out
    assert (report["stopped"], report["steps"]) == ("SIGTERM", 3) and "validation" not in report
    assert json.loads((output / "report.json").read_text())["stopped"] == "SIGTERM"
    assert (output / "checkpoint-3").is_dir() and not (output / "model.safetensors").exists()
    report = train(toy, output, *options, "--resume")
    assert (report["stopped"], report["steps"]) == (None, 6)
    train(toy, tmp_path / "whole", *options)
    assert_equal_weights(weights_in(tmp_path / "whole"), weights_in(tmp_path / "out"))


INTERRUPTED = """
import os, signal, sys
from udm_text.training.callbacks import StepNoise
from udm_text.training.causal import load_twin
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == 2:
        os.kill(os.getpid(), signal.SIGINT)
StepNoise.on_step_begin = on_step_begin
from udm_text.cli import main
sys.argv = ["udm", "train", *sys.argv[1:]]
main()
"""


def test_ctrl_c_writes_a_checkpoint_says_so_and_ends_with_130(toy, tmp_path):
    options = ["--data", toy, "--output", tmp_path / "out", *FAST, "--plot", "false"]
    said = python("-c", INTERRUPTED, *options, code=130)
    assert "SIGINT at step 3: a checkpoint is written" in said.stdout and "Traceback" not in said.stderr
    assert "once more ends the run at once" in said.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"checkpoint-3", "report.json", "run.json"}
    assert train(toy, tmp_path / "out", "--resume")["steps"] == 4


def test_a_reader_that_goes_away_does_not_end_the_run(toy, tmp_path):
    options = ["--data", toy, "--output", tmp_path / "out", *FAST, "--plot", "false", "--disable_tqdm", "true"]
    options += ["--logging_steps", 1]
    command = [sys.executable, "-m", "udm_text", "train", *map(str, options)]
    for name, both in (("out", False), ("both", True)):
        command[command.index("--output") + 1] = str(tmp_path / name)
        error = subprocess.STDOUT if both else subprocess.PIPE
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error, cwd=ROOT, text=True)
        run.stdout.close()
        said = "" if both else run.stderr.read()
        assert run.wait(280) == 0, said
        assert both or said.count("nobody reads what the run prints any more; it goes on") == 1
        assert "Traceback" not in said and "BrokenPipe" not in said
        assert json.loads((tmp_path / name / "report.json").read_text())["steps"] == 4


def test_a_run_that_died_before_its_first_checkpoint_is_started_anew_by_resume(toy, tmp_path, capsys):
    output = tmp_path / "out"
    train(toy, output, "--max_steps", 2)
    for path in output.glob("checkpoint-*"):
        (path / "model.safetensors").write_bytes(b"half")
    (output / "report.json").unlink()
    report = train(toy, output, "--max_steps", 2, "--resume")
    assert "holds no whole checkpoint yet: the run starts from the beginning" in capsys.readouterr().out
    assert report["steps"] == 2
    (output / "run.json").unlink()
    (output / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(
        OutputExistsError, match=r"holds no checkpoint .*checkpoint-2: its model.safetensors is cut off"
    ):
        train(toy, output, "--resume")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "rng_state.pth"])
def test_a_damaged_checkpoint_is_named_and_the_whole_one_behind_it_is_used(toy, tmp_path, capsys, name):
    how = ["--save_steps", 2, "--dropout", 0.1]
    whole = train(toy, tmp_path / "out", *how)
    (tmp_path / "out" / "report.json").unlink()
    before = weights_in(tmp_path / "out")
    file = tmp_path / "out" / "checkpoint-4" / name
    size = file.stat().st_size
    file.write_bytes(b"" if name.endswith("json") else file.read_bytes()[: size // 2] + bytes(size - size // 2))
    report = train(toy, tmp_path / "out", *how, "--resume")
    assert f"passed over checkpoint-4: its {name} " in capsys.readouterr().out
    assert_equal_weights(weights_in(tmp_path / "out"), before)
    assert report["validation"] == whole["validation"]


def test_a_finished_run_is_left_as_it_is_by_resume(toy, tmp_path, capsys):
    output = tmp_path / "out"
    report = train(toy, output)
    before, folder = listing(output), output.stat().st_mtime_ns
    assert train(toy, output, "--resume") == json.loads((output / "report.json").read_text())
    said = capsys.readouterr().out
    assert "this run is finished after 4 steps, and nothing was changed; to go on, give a larger max_steps" in said
    assert (listing(output), output.stat().st_mtime_ns) == (before, folder)
    model = output / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-8] + bytes(8 * [1]))  # damaged: written again from the checkpoint
    again = train(toy, output, "--resume")
    assert model.read_bytes() == whole
    for name in ("validation", "steps", "train_loss"):
        assert again[name] == report[name]


def test_a_run_that_died_behind_its_last_checkpoint_is_finished_without_another_step(toy, tmp_path, monkeypatch):
    how = ["--max_steps", 4, "--ema_decay", 0.9, "--dropout", 0.1]
    whole = train(toy, tmp_path / "whole", *how)

    def die(*args):
        raise RuntimeError("killed")

    for i, moment in enumerate(("save", "describe_training")):
        with monkeypatch.context() as patch:
            patch.setattr(f"udm_text.training.runs.{moment}", die)
            with pytest.raises(RuntimeError, match="killed"):
                train(toy, tmp_path / f"{i}", *how)
        report = train(toy, tmp_path / f"{i}", *how, "--resume")
        assert (tmp_path / f"{i}" / "model.safetensors").read_bytes() == (
            tmp_path / "whole" / "model.safetensors"
        ).read_bytes()
        assert (report["validation"], report["steps"]) == (whole["validation"], 4)


CHANGED = [
    ("--seed 4", "seed 4 in place of 3"),
    ("--validation_share 0.2", "validation_share 0.2 in place of 0.05"),
    ("--dropout 0.2", "dropout 0.2 in place of 0.0"),
    ("--ema_decay 0.9", "ema_decay 0.9 in place of None"),
    ("--per_device_train_batch_size 4", "rows_per_step 4 in place of 8"),
    ("--process substitute", "process 'substitute' in place of None"),
    ("--kernel free", "kernel 'free' in place of None"),
    ("--tokenizer char", "tokenizer 'char' in place of None"),
    ("--vocab_size 300", "vocab_size 300 in place of 200"),
    ("--objective ar", "objective 'ar' in place of 'diffusion'"),
    ("--loss nelbo", "loss 'nelbo' in place of 'cross_entropy'"),
    ("--model mini", "model 'mini' in place of 'tiny'"),
    ("--optim adafactor", "optim 'adafactor' in place of None"),
    ("--max_seconds 9", "max_seconds 9.0 in place of None"),
    ("--train_sampling_strategy random --data_seed 4", "train_sampling_strategy 'random' in place of"),
]


@pytest.fixture(scope="module")
def begun(toy, tmp_path_factory):
    """A run of four steps, in a folder beside a copy of its data."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copy(toy, folder / "toy.txt")
    train(folder / "toy.txt", folder / "out", "--seed", 3, "--lr_scheduler_type", "constant", "--warmup_steps", 0)
    return folder


STEADY = ["--seed", 3, "--lr_scheduler_type", "constant", "--warmup_steps", 0, "--max_steps", 6, "--resume"]


@pytest.mark.parametrize(("options", "words"), CHANGED)
def test_what_a_run_is_cannot_be_changed_when_it_is_resumed(begun, options, words):
    before = listing(begun)
    with pytest.raises(ResumeError, match=re.escape(words)):
        train(begun / "toy.txt", begun / "out", *STEADY, *options.split())
    assert listing(begun) == before


def test_rows_that_were_reordered_or_changed_are_refused(begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    lines = (begun / "toy.txt").read_text().splitlines(keepends=True)
    (tmp_path / "other.txt").write_text("".join(lines))
    with pytest.raises(ResumeError, match=r"data '.*other.txt' in place of '.*toy.txt'"):
        train(tmp_path / "other.txt", tmp_path / "out", *STEADY)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["data"]["data"] = record["paths"]["data"] = str(tmp_path / "toy.txt")
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    before = listing(tmp_path / "out")
    for text in ("".join(reversed(lines)), "".join([*lines[:-1], "latin greek small\n"])):
        (tmp_path / "toy.txt").write_text(text)
        with pytest.raises(ResumeError, match="rows are not those that this run was begun with"):
            train(tmp_path / "toy.txt", tmp_path / "out", *STEADY)
        assert listing(tmp_path / "out") == before
    (tmp_path / "toy.txt").write_text("".join(lines))
    assert train(tmp_path / "toy.txt", tmp_path / "out", *STEADY)["steps"] == 6


def test_what_can_be_changed_is_applied_and_reported(begun, tmp_path, capsys):
    shutil.copytree(begun / "out", tmp_path / "out")
    options = ["--learning_rate", 2e-4, "--weight_decay", 0.5, "--logging_steps", 1, "--save_steps", 1]
    report = train(begun / "toy.txt", tmp_path / "out", *STEADY, *options)
    said = capsys.readouterr().out
    for words in ("learning_rate 0.0002 in place of None", "weight_decay 0.5 in place of 0.01", "max_steps 6 in"):
        assert words in said
    log = {entry["step"]: entry["learning_rate"] for entry in report["log"] if "learning_rate" in entry}
    muon = report["optim"] == "muon"
    before = muon_rate(report["rows_per_step"]) if muon else ADAMW_RATE
    assert log[4] == before and log[5] == log[6] == report["learning_rate"] == 2e-4
    assert report["changed"][0]["step"] == 4 and report["changed"][0]["weight_decay"] == [0.01, 0.5]
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-6"}
    state = torch.load(tmp_path / "out" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["param_groups"]] == [*[0.5] * (1 + muon), 0.0]
    assert [group["lr"] for group in state["param_groups"]] == [2e-4] * (2 + muon)
    again = train(begun / "toy.txt", tmp_path / "out", *STEADY, *options[:2], "--learning_rate", 1e-5)
    assert "no further step was made" in capsys.readouterr().out
    assert again["learning_rate"] == 2e-4  # what the steps were made with


def test_a_learning_rate_of_nearly_nothing_given_at_resume_moves_nothing(begun, tmp_path):
    shutil.copytree(begun / "out", tmp_path / "out")
    train(begun / "toy.txt", tmp_path / "out", *STEADY, "--learning_rate", 1e-30)
    assert_equal_weights(weights_in(begun / "out"), weights_in(tmp_path / "out"))


def test_an_unchanged_resume_prints_no_difference(toy, tmp_path, capfd, caplog):
    how = ["--save_steps", 2, "--logging_steps", 0.3, "--gradient_accumulation_steps", 2]
    whole = train(toy, tmp_path / "out", *how)
    (tmp_path / "out" / "report.json").unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    capfd.readouterr()
    again = train(toy, tmp_path / "out", *how, "--resume")
    out, err = capfd.readouterr()
    words = ("in place of", "do not match", "logging_steps", "resumed with")
    assert not [word for word in words if word in f"{out}{err}{caplog.text}"]
    assert "changed" not in again and again["validation"] == whole["validation"]


def test_a_record_of_before_still_resumes(begun, tmp_path):
    """As run.json was written: with what defaults had become, and without much that it holds now."""
    shutil.copytree(begun / "out", tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    for name in ("batch", "paths", "rows", "used", "changed"):
        del record[name]
    record["run"]["learning_rate"] = 1e-3
    for name in ("weight_decay", "data_seed"):
        del record["run"][name]
    del record["data"]["min_frequency"]
    for stored in (record, {}, {"data": None, "run": []}):
        (tmp_path / "out" / "run.json").write_text(json.dumps(stored))
        shutil.copytree(tmp_path / "out", tmp_path / "again", dirs_exist_ok=True)
        assert train(begun / "toy.txt", tmp_path / "again", *STEADY)["steps"] == 6
        shutil.rmtree(tmp_path / "again")


def test_resume_from_checkpoint_is_refused_with_what_to_give_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="resume_from_checkpoint is not for .* got '/nonexistent': give --resume"):
        train("nowhere.txt", tmp_path / "out", "--resume_from_checkpoint", "/nonexistent")
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_a_folder_is_refused_before_anything_is_read_or_written(toy, tmp_path, monkeypatch):
    def second(self, args, state, control, **kwargs):
        if state.global_step == 2:
            before = listing(tmp_path / "out")
            assert ".lock" in {path.name for path in (tmp_path / "out").iterdir()}
            for options in others:
                with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on host "):
                    train_text(*options)
            assert listing(tmp_path / "out") == before
            seen.append(2)

    common = ["--data", "nowhere.txt", "--output", str(tmp_path / "out"), *FAST]
    seen, others = [], [parse([*common, *more]) for more in ([], ["--resume"])]
    monkeypatch.setattr(StepNoise, "on_step_begin", second)
    train(toy, tmp_path / "out")
    assert seen == [2] and not (tmp_path / "out" / ".lock").exists()
    monkeypatch.undo()

    with pytest.raises(CorpusError):
        train("nowhere.txt", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()  # of a run that was killed while it read its corpus
    (tmp_path / "new" / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 999999999}))
    assert train(toy, tmp_path / "new", "--resume", "--max_steps", 1)["steps"] == 1


def test_time_and_loss_of_a_resumed_run_are_those_of_all_its_legs(toy, tmp_path, monkeypatch):
    steady = ["--lr_scheduler_type", "constant", "--warmup_steps", 0, "--max_steps", 6, "--save_steps", 3]
    whole = train(toy, tmp_path / "whole", *steady, "--logging_steps", 4)
    losses = train(toy, tmp_path / "each", *steady, "--logging_steps", 1)["log"]
    each = [entry["loss"] for entry in losses if "loss" in entry]
    assert whole["train_loss"] == pytest.approx(sum(each) / 6, rel=1e-6)

    class Killed(RuntimeError):
        pass

    def dies(trainer, *args, **kwargs):
        if trainer.state.global_step == 5:
            raise Killed
        return step(trainer, *args, **kwargs)

    step = UDMTrainer.training_step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(UDMTrainer, "training_step", dies)
        train(toy, tmp_path / "out", *steady)
    spent = json.loads((tmp_path / "out" / "checkpoint-3" / "spent.json").read_text())
    report = train(toy, tmp_path / "out", *steady, "--resume")
    assert report["train_loss"] == whole["train_loss"]
    [runtime] = [entry["train_runtime"] for entry in report["log"] if "train_runtime" in entry]
    assert 0 < spent["train_seconds"] < spent["seconds"] < report["seconds"] - runtime
    assert report["train_seconds"] == pytest.approx(spent["train_seconds"] + runtime, abs=1e-3)
    assert [entry["train_loss"] for entry in report["log"] if "train_loss" in entry] == [report["train_loss"]]


def test_the_autoregressive_twin_is_trained_and_reported_like_diffusion(toy, tmp_path, capsys):
    mask, twin = (train(toy, tmp_path / o, "--objective", o, "--seed", 5) for o in ("diffusion", "ar"))
    assert twin.keys() == mask.keys() - {"context"} and twin["validation"].keys() == mask["validation"].keys() | {
        "exact"
    }
    assert (twin["objective"], twin["process"]) == ("ar", "autoregressive")
    for name in ("train_rows", "steps", "rows_per_step", "vocab_size", "learning_rate"):
        assert twin[name] == mask[name]
    assert twin["validation"]["tokens"] == mask["validation"]["tokens"]
    assert twin["validation"]["chars"] == mask["validation"]["chars"]
    assert abs(twin["parameters"] - mask["parameters"]) <= 2 * 128  # two more places
    assert "NLL" in capsys.readouterr().out
    assert load_twin(tmp_path / "ar").num_parameters() == twin["parameters"]


@pytest.mark.parametrize("steps", [-1, 100_000])  # the second as recipes have it
def test_a_run_by_time_ends_with_a_model_and_its_bound(toy, tmp_path, capsys, steps):
    how = ["--eval_strategy", "steps", "--eval_steps", 0.5, "--disable_tqdm", "true"]
    report = train(toy, tmp_path / "out", "--max_steps", steps, "--max_seconds", 1.5, *how, plot=True)
    assert report["stopped"] == "max_seconds" and report["train_seconds"] >= 1.5
    losses, held = ([entry["step"] for entry in report["log"] if name in entry] for name in ("loss", "eval_loss"))
    assert 1 <= len(losses) <= 101 and losses[-1] == report["steps"] and len(held) <= 2
    said = capsys.readouterr().out
    assert "measuring the written model, which comes on top of max_seconds" in said
    assert f"measured in {report['measure_seconds']:.0f} s" in said
    assert report["seconds"] > report["train_seconds"] + report["measure_seconds"] > report["train_seconds"]
    assert (tmp_path / "out" / "loss.png").is_file() and "is not drawn" not in said
    assert report["validation"]["nelbo_nats_per_token"] > 0 and (tmp_path / "out" / "model.safetensors").exists()


# --- arguments -------------------------------------------------------------------------------------------------------


def test_every_field_of_training_arguments_is_an_option_under_its_own_name(capsys):
    with pytest.raises(SystemExit):
        parse(["--help-all"])
    words = set(capsys.readouterr().out.replace(",", " ").split())
    for field in dataclasses.fields(TrainingArguments):
        if field.init:
            assert f"--{field.name}" in words
            assert f"--{field.name.replace('_', '-')}" in words


def test_options_are_read_in_both_forms():
    options = "--max_steps 20 --save-steps 10 --seed=1 --learning-rate=0.5 --gradient_accumulation_steps 3"
    options += " --eval-strategy steps --adam_epsilon 1e-6 --bf16 false --run_name x --dataloader-num-workers 2"
    options += " --row-length 9"
    for output in (["--output", "o"], ["--output=o"], ["--output_dir", "o"], ["--output-dir", "o"]):
        data, model, _, run = parse(["--data", "d", *output, *options.split()])
        assert (data.data, data.row_length, model.model, run.output_dir) == ("d", 9, "mini", "o")
        assert (run.max_steps, run.save_steps, run.seed, run.learning_rate) == (20, 10, 1, 0.5)
        assert (run.gradient_accumulation_steps, run.eval_strategy, run.adam_epsilon) == (3, "steps", 1e-6)
        assert (run.bf16, run.run_name, run.dataloader_num_workers) == (False, "x", 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--data d --output o --max_step 3", "--max_step"),  # abbreviations are not guessed at
        ("--data d --output o --nonsense 3", "--nonsense"),
        ("--data d --output o stray", "stray"),
        ("--data d", "--output DIR is needed"),
        ("--output o", "--data"),
        ("--data d --output o --objective gpt", "objective must be 'diffusion' or 'ar'"),
        ("--data d --output o --loss mse", "loss must be 'cross_entropy' or 'nelbo'"),
        ("--data d --output o --max_corruption 1.5", "max_corruption must lie in"),
        ("--data d --output o --loss_chunk 0", "loss_chunk must be at least 1"),
        ("--data d --output o --max_steps many", "--max_steps"),
    ],
)
def test_wrong_options_fail_and_are_named(capsys, options, error):
    with pytest.raises((SystemExit, ValueError)) as raised:
        parse(options.split())
    assert error in capsys.readouterr().err + str(raised.value)


# --- kinds of models and rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--backbone roberta",
        "--backbone modernbert --tokenizer bpe --vocab_size 300",
        "--process substitute --tokenizer char --kernel hamming --loss nelbo",
        "--process uniform --tokenizer char --loss nelbo",
        "--rows packed --row_length 12 --tokenizer char",
        "--rows fixed --row_length 3 --validation_share 0.3",
        "--gradient_accumulation_steps 2 --dataloader_num_workers 1 --dropout 0.1",
    ],
)
def test_every_kind_of_run_ends_with_a_model_that_loads_and_generates(toy, tmp_path, options):
    output = tmp_path / "model"
    report = train(toy, output, *options.split())
    bound = report["validation"]
    assert bound["nelbo_nats_per_token"] > 0 and bound["bits_per_char"] > 0
    model = UDMForMaskedGeneration.from_pretrained(output)
    assert model.generate(seed=0).shape[0] == 1
    if "--backbone" in options:
        assert model.config.text_config.model_type == options.split()[1]
    if "substitute" in options:
        assert (model.config.process, model.config.kernel, bound["kernel"]) == ("substitute", "hamming", "hamming")
        assert model.config.time_conditioning
    if "uniform" in options:
        assert (model.config.process, model.config.kernel, bound["kernel"]) == ("uniform", "uniform", "uniform")
        assert model.config.time_conditioning and report["process"] == "uniform"
    if "packed" in options:
        tokenizer = load_tokenizer(str(output))
        assert tokenizer("\n")["input_ids"] != [tokenizer.unk_token_id]
        assert model.config.length_counts == [0] * 12 + [report["train_rows"]]


@pytest.fixture(scope="module")
def plain_bert(tmp_path_factory):
    """A masked LM that knows nothing of us, with its tokenizer; it reads at most 16 tokens."""
    path = tmp_path_factory.mktemp("bert")
    tokenizer = framed_tokenizer()
    tokenizer.save_pretrained(path)
    make_masked_lm(text_config(vocab_size=len(tokenizer), max_position_embeddings=16)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def few_words(tmp_path_factory):
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text("".join(f"{' '.join(line.split()[: 1 + i % 4])}\n" for i in range(60) for line in LINES[:3]))
    return path


def test_a_plain_bert_is_fine_tuned_with_its_own_tokenizer_and_then_ours_is_continued(few_words, plain_bert, tmp_path):
    first = train(few_words, tmp_path / "first", "--model", plain_bert, "--max_steps", 6)
    assert first["learning_rate"] == 1e-4  # pretrained: gentler than the 1e-3 from scratch
    model = UDMForMaskedGeneration.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(plain_bert)
    assert model.config.prefix_token_ids == [tokenizer.cls_token_id]
    assert model.config.suffix_token_ids == [tokenizer.sep_token_id]
    assert model.config.vocab_size == len(tokenizer)
    before = BertForMaskedLM.from_pretrained(plain_bert).state_dict()
    changed = [n for n, p in model.backbone.state_dict().items() if not torch.equal(p, before[n])]
    assert "cls.predictions.bias" in changed
    moved = max(float((p - before[n]).abs().max()) for n, p in model.backbone.state_dict().items())
    assert moved < 1e-2  # it started from the pretrained weights

    options = ["--model", tmp_path / "first", "--learning_rate", 3e-3, "--max_steps", 30]
    second = train(few_words, tmp_path / "second", *options)
    assert second["validation"]["nelbo_nats_per_token"] < first["validation"]["nelbo_nats_per_token"]
    again = UDMForMaskedGeneration.from_pretrained(tmp_path / "second")
    assert (again.config.process, again.config.special_token_ids) == ("mask", model.config.special_token_ids)


def test_rows_of_the_embedding_that_have_no_token_are_never_drawn(few_words, tmp_path):
    tokenizer = framed_tokenizer()
    tokenizer.save_pretrained(tmp_path / "padded")
    make_masked_lm(text_config(vocab_size=len(tokenizer) + 5)).save_pretrained(tmp_path / "padded")
    train(few_words, tmp_path / "out", "--model", tmp_path / "padded", "--max_steps", 2)
    config = UDMForMaskedGeneration.from_pretrained(tmp_path / "out").config
    assert config.vocab_size == len(tokenizer) + 5
    assert set(range(len(tokenizer), len(tokenizer) + 5)) <= set(config.special_token_ids)


def test_lines_that_begin_with_number_signs_are_trained_on(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"{'#' * (1 + i % 4)} part {i % 7}\n###{'acgt' * (10 + i)}\n" for i in range(40)))
    report = train(path, tmp_path / "out", "--max_steps", 2)
    assert report["dropped"]["left_out"] == report["vocabulary"]["unknown"] == 0


def test_rows_without_text_are_counted_and_notes_are_reported(tmp_path, capsys):
    rows = [f"{i},small word {i % 9}" for i in range(40)] + ["40,", "41,  ", "42"]
    for name, lines in (("train.csv", rows), ("val.csv", rows[:9])):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text("\n".join(["id,text", *lines]))
    for i, how in enumerate(((), ("--streaming", "true", "--row_length", 8))):
        report = train(tmp_path / "data", tmp_path / f"out{i}", "--max_steps", 1, *how)
        assert report["dropped"]["blank"] == 3 and report["train_rows"] == 40 and report["validation"]["rows"] == 9
        assert "splits by their names: train 1, validation 1" in report["notes"][0]
        said = capsys.readouterr().out
        assert f"note: {report['notes'][0]}" in said and "of 40 training rows: blank 3, truncated 0" in said


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_fails_before_anything_is_written(few_words, plain_bert, tmp_path):
    empty, blank, bad, table = (tmp_path / name for name in ("empty.txt", "blank.txt", "bad.txt", "a.csv"))
    empty.write_text("")
    blank.write_text("\n \n")
    bad.write_bytes(b"one\ntwo \xff\n")
    table.write_text("a,b\n1,2\n")
    long = tmp_path / "long.txt"
    long.write_text(few_words.read_text() + "small " * 40 + "\n")
    without = tmp_path / "without"
    framed_tokenizer().save_pretrained(without)
    config = json.loads((without / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (without / "tokenizer_config.json").write_text(json.dumps(config))
    cases = [
        ((empty,), CorpusError, "empty.txt is empty"),
        ((blank,), CorpusError, "no text to train on"),
        ((bad,), CorpusError, "bad.txt, line 2"),
        ((tmp_path / "missing.txt",), CorpusError, "no file or folder"),
        ((table,), CorpusError, "no column 'text'"),
        ((long, "--model", plain_bert), ValueError, "a row has 42 tokens and the model reads at most 16"),
        ((few_words, "--tokenizer", without), ValueError, "no mask token"),
        ((few_words, "--rows", "packed"), ValueError, "needs row_length"),
        ((few_words, "--process", "erase"), ValueError, "process must be"),
        ((few_words, "--objective", "ar", "--process", "mask"), ValueError, "--objective ar has no process"),
        ((few_words, "--objective", "ar", "--model", plain_bert), ValueError, "--objective ar trains a preset"),
        ((few_words, "--objective", "ar", "--max_corruption", 0.5), ValueError, "--objective ar corrupts nothing"),
        ((few_words, "--objective", "ar", "--backbone", "modernbert"), ValueError, "needs a backbone"),
        ((few_words, "--backbone", "t6"), ValueError, "t6"),
        ((few_words, "--validation_share", "2"), ValueError, "validation_share"),
    ]
    for i, (arguments, error, message) in enumerate(cases):
        with pytest.raises(error, match=message):
            train(arguments[0], tmp_path / f"out{i}", *arguments[1:])
        assert not (tmp_path / f"out{i}").exists(), message


def test_a_step_of_more_rows_than_there_are_is_refused(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("".join(f"small word {i}\n" for i in range(12)))
    error = r"a step takes 64 rows .* and 11 rows are there .*--per_device_train_batch_size of at most 5, or more text"
    with pytest.raises(ValueError, match=error):
        train(path, tmp_path / "out", "--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 2)
    assert not (tmp_path / "out").exists()


def test_a_validation_row_longer_than_the_model_fails_before_training(plain_bert, tmp_path):
    from datasets import Dataset, DatasetDict

    rows = {"train": ["latin small"] * 9, "validation": ["small " * 30]}
    splits = {split: Dataset.from_dict({"text": texts}) for split, texts in rows.items()}
    DatasetDict(splits).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="a row has 32 tokens and the model reads at most 16"):
        train(tmp_path / "d", tmp_path / "out", "--model", plain_bert)
    assert not (tmp_path / "out").exists()


def test_without_validation_there_is_no_bound_and_a_report_all_the_same(toy, tmp_path):
    report = train(toy, tmp_path / "out", "--validation_share", 0, "--max_steps", 1)
    assert "validation" not in report
    assert (tmp_path / "out" / "report.json").exists()


def test_main_takes_a_command_line(toy, tmp_path, capsys):
    main(["--data", str(toy), "--output", str(tmp_path / "out"), *FAST, "--max_steps", "1", "--plot", "false"])
    assert "NELBO" in capsys.readouterr().out


def test_a_bound_without_error_or_beyond_all_numbers_can_be_described():
    names = ("nelbo_nats_per_token", "perplexity_bound", "bits_per_char")
    bound = {f"{name}{end}": 1.5 for name in names for end in ("", "_stderr")}
    bound |= {"length_included": True, "rows": 3, "draws": 2, "chars": 7}
    assert describe(bound) == (
        "NELBO 1.5000 +- 1.5000 nats/token, perplexity bound 1.50 +- 1.50, 1.5000 +- 1.5000 bits/char "
        "(lengths included; 3 rows, 2 draws each)"
    )
    assert "NELBO infinite nats/token" in describe(bound | {"nelbo_nats_per_token": None})
    assert "perplexity bound 1.50 +- unknown" in describe(bound | {"perplexity_bound_stderr": None})


def test_a_recipe_gives_fields_and_the_command_line_overrides_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("row_length: 40\nbf16: true\nlearning_rate: 1.0e-3\nmodel: tiny\n")
    common = ["--data", "x.txt", "--output", str(tmp_path / "out")]
    data, model, _, run = parse(["--config", str(recipe), *common, "--row_length", "7"])
    assert (data.row_length, model.model, run.bf16, run.learning_rate) == (7, "tiny", True, 1e-3)
    assert parse([*common, f"--config={recipe}"])[0].row_length == 40
    with pytest.raises(FileNotFoundError, match="--config nowhere.yaml"):
        parse(["--config", "nowhere.yaml", *common])
    recipe.write_text("- a\n")
    with pytest.raises(ValueError, match="field: value"):
        parse(["--config", str(recipe), *common])


RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_hold_known_fields(recipe, tmp_path):
    data, _, _, run = parse(["--config", str(recipe), "--data", "x.txt", "--output", str(tmp_path / "out")])
    assert run.max_steps > 0 and data.rows in ("line", "fixed", "packed")


# --- the best weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch):
    """Makes evaluations find these held-out losses, one after the other."""

    def begin(*values):
        found = iter(values)

        def evaluate(self, trainer, dataset):
            return {"loss": next(found)}

        monkeypatch.setattr("udm_text.training.objective.TextObjective.evaluate", evaluate)

    return begin


@pytest.mark.parametrize("average", [[], ["--ema_decay", "0.5"]])
def test_the_weights_of_the_best_evaluation_are_written(toy, tmp_path, losses, capsys, average):
    every = ["--max_steps", "6", "--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "9", *average]
    last = train(toy, tmp_path / "last", *every, "--keep_best", "false")
    assert last["best_step"] is None and not [entry for entry in last["log"] if "eval_loss" in entry]
    losses(3.0, 2.0, 2.5)
    best = train(toy, tmp_path / "best", *every)
    assert best["best_step"] == 4 and "the weights of step 4 are written" in capsys.readouterr().out
    stored = weights_in(tmp_path / "best" / "checkpoint-4", "ema.safetensors" if average else "model.safetensors")
    for name, value in weights_in(tmp_path / "best").items():
        if name in stored:
            assert torch.equal(value, stored[name].to(value.dtype)), name
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights_in(tmp_path / "best").values(), weights_in(tmp_path / "last").values(), strict=True)
    )
    shutil.copytree(tmp_path / "best" / "checkpoint-4", tmp_path / "half" / "checkpoint-4")
    shutil.copy(tmp_path / "best" / "run.json", tmp_path / "half")
    losses(2.5)
    assert train(toy, tmp_path / "half", *every, "--resume")["best_step"] == 4
    assert_equal_weights(weights_in(tmp_path / "best"), weights_in(tmp_path / "half"))


def test_training_ends_when_patience_does_and_a_resumed_run_waits_no_longer_than_the_other(toy, tmp_path, losses):
    flags = ["--max_steps", "12", "--eval_steps", "1", "--save_steps", "1", "--save_total_limit", "9"]
    losses(3.0, 2.0, 2.5, 2.1, 2.0)
    whole = train(toy, tmp_path / "whole", *flags, "--patience", "3")
    assert (whole["steps"], whole["best_step"], whole["stopped"]) == (5, 2, "patience")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "half" / "checkpoint-4")
    shutil.copy(tmp_path / "whole" / "run.json", tmp_path / "half")
    losses(2.0)
    half = train(toy, tmp_path / "half", *flags, "--patience", "3", "--resume")
    assert (half["steps"], half["best_step"], half["stopped"]) == (5, 2, "patience")
    assert_equal_weights(weights_in(tmp_path / "whole"), weights_in(tmp_path / "half"))


def test_a_run_is_measured_ten_times_unless_it_holds_nothing_out(toy, tmp_path):
    report = train(toy, tmp_path / "ten", "--max_steps", "20")
    assert [entry["step"] for entry in report["log"] if "eval_loss" in entry] == list(range(2, 21, 2))
    report = train(toy, tmp_path / "none", "--validation_share", "0")
    assert report["best_step"] is None and not [entry for entry in report["log"] if "eval_loss" in entry]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patience", "0"], "patience must be at least 1, got 0"),
        (["--patience", "2", "--keep_best", "false"], "patience waits for a better held-out loss"),
        (["--patience", "2", "--validation_share", "0"], "patience=2 counts evaluations of held-out rows"),
        (["--load_best_model_at_end", "--eval_strategy", "steps"], "load_best_model_at_end has a place of its own"),
    ],
)
def test_patience_without_anything_to_wait_for_is_refused(toy, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(toy, tmp_path / "out", *options)
