"""The recipes: those for clusters, read by accelerate as they stand; those with a model of their own, at toy size."""

import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from typer.testing import CliRunner

from tests.helpers import write_shapes

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_configuration_and_knows_every_key_in_it(name):
    config = load_config_from_file(str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    known = set(re.findall(r'"--(\w+)"', Path(launch.__file__).read_text()))
    for part in (config.fsdp_config, config.deepspeed_config):
        assert set(part or {}) <= known
    assert config.num_processes == (1 if name == "single" else 8)


def test_there_is_a_test_for_every_configuration():
    assert {path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")} == set(KINDS)


def test_the_layers_that_are_wrapped_are_known():
    from tests.models import make_udm

    assert "BertLayer" in make_udm()._no_split_modules


@pytest.fixture
def slurm(tmp_path):
    """Runs train.sbatch with stand-ins for srun and scontrol; gives its result and what the two were called with."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    report = 'mkdir -p "$OUT" && echo "{\\"stopped\\": $STOPPED}" > "$OUT/report.json"'
    for name, work in (("srun", report), ("scontrol", 'if [ "$1" = show ]; then echo node7; fi')):
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $WORLD_SIZE $MASTER_ADDR $*" >> {calls}\n{work}\n')
        (tools / name).chmod(0o755)

    def run(*arguments, stopped="null"):
        calls.unlink(missing_ok=True)
        own = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "16"}
        own |= {"SLURM_JOB_NODELIST": "node[7-8]", "OUT": str(tmp_path / "out"), "STOPPED": stopped}
        script = ROOT / "recipes" / "slurm" / "train.sbatch"
        result = subprocess.run(["bash", script, *arguments], env=own, capture_output=True, text=True, timeout=60)
        return result, calls.read_text() if calls.exists() else ""

    return run


def test_the_batch_script_resumes_what_is_there_and_queues_itself_again_where_it_was_stopped(slurm, tmp_path):
    script = ROOT / "recipes" / "slurm" / "train.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    arguments = ("--data", "corpus.txt", "--output", str(tmp_path / "out"))
    result, calls = slurm(*arguments, stopped='"SIGUSR1"')
    assert result.returncode == 0, result.stderr
    assert "srun 16 node7" in calls and "--data corpus.txt" in calls and "--resume" not in calls
    assert "requeue 17" in calls
    result, calls = slurm(*arguments)
    assert "--resume" in calls and "requeue" not in calls
    result, calls = slurm("--data", "corpus.txt")
    assert result.returncode == 2 and "give --output DIR" in result.stderr and not calls


def recipe(name):
    """A recipe as a module; nothing of it runs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their own types
    spec.loader.exec_module(module)
    return module


def called(module, *arguments, code=0):
    """A command of a recipe with a typer app; what it printed."""
    result = CliRunner().invoke(module.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


QUIET = ("--report_to", "none", "--plot", "false", "--disable_tqdm", "true", "--warmup_steps", "5")


def test_embedding_diffusion_learns_lines_and_writes_new_ones(tmp_path):
    """In 60 steps of a tiny network the bound falls below that of tokens drawn evenly."""
    embedding = recipe("embedding_diffusion")
    out, data = tmp_path / "out", write_shapes(tmp_path / "shapes.txt")
    sizes = "--width 16 --layers 1 --heads 2 --dim 4 --times 20 --vocab_size 60 --given_share 0.3".split()
    own_word = data.read_text().split()[0]
    train = ("train", "--data", data, "--output", out, "--max_steps", "60", "--learning_rate", "0.02", *sizes, *QUIET)
    printed = called(embedding, *train)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    figures = report["validation"]
    assert f"{figures['bits_per_char']:.4f}" in printed
    own = embedding.EmbeddedTextModel.from_pretrained(out)
    drawable = own.config.vocab_size - len(own.config.special_token_ids)
    assert 0.5 < figures["nelbo_nats_per_token"] < math.log(drawable)
    one, again, draws = (
        called(embedding, "generate", out, "-n", 4, "--seed", 3, *how) for how in ((), (), ("--walk", "draws"))
    )
    assert one == again and len(one.splitlines()) == len(draws.splitlines()) == 4 and one != draws
    begun = called(embedding, "generate", out, "-n", 3, "--seed", 3, "--prompt", own_word)
    filled = called(embedding, "generate", out, "-n", 2, "--seed", 3, "--prompt", f"{own_word} [MASK]")
    assert all(line.startswith(own_word) for line in (*begun.splitlines(), *filled.splitlines()))
    assert "nothing was changed" in called(embedding, *train, "--resume")


def test_an_autoencoder_is_trained_and_an_image_model_walks_in_its_latents(tmp_path):
    """In few steps digits come back with less error than their mean has, and the pipeline decodes by itself."""
    from continuous.data import digits
    from continuous.pipeline import ImagePipeline
    from tests.helpers import udm_here

    made, out = tmp_path / "autoencoder", tmp_path / "latent"
    how = ("--max_steps", "60", "--widths", "8,16", "--latent_channels", "2", "--learning_rate", "0.01", *QUIET)
    recipe("latent_diffusion").main(["--output", str(made), *how])
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    images = digits().validation.images
    assert report["validation"]["reconstruction_rmse"] < 0.75 * float((images - images.mean(0)).square().mean().sqrt())
    assert (made / "reconstructions.png").exists()
    network = ("--network_options", '{"width": 16, "blocks": 1}', "--max_steps", "10")
    udm_here("image", "train", "--autoencoder", made, "--output", out, *network, *QUIET)
    pipe = ImagePipeline.from_pretrained(out)
    assert pipe.generate(3, label=2, seed=0).shape == (3, 1, 8, 8) and pipe.denoiser.config.state_shape == (2, 4, 4)
    udm_here("image", "generate", out, "-n", 4, "-o", tmp_path / "made.png", "--strip", tmp_path / "strip.png")


def test_text_and_image_learns_pairs_and_makes_each_of_the_other(tmp_path):
    """In 60 steps of a tiny network the loss falls; what is given stays, and a seed gives the same pairs."""
    import torch

    from continuous.data import digits, to_pil

    both, out = recipe("text_and_image"), tmp_path / "out"
    sizes = ("--width", "32", "--layers", "1", "--heads", "2", "--times", "50")
    train = ("train", "--output", out, "--max_steps", "60", "--learning_rate", "0.01", *sizes, *QUIET)
    called(both, *train)
    log = json.loads((out / "report.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0] and (out / "samples.png").exists()
    model = both.PairModel.from_pretrained(out)
    asked = ["three", "zero", "seven"]
    texts, images = model.generate(3, text=asked, num_steps=4, seed=1)
    assert texts == asked and images.shape == (3, 1, 8, 8) and float(images.abs().max()) <= 1
    shown = digits().validation.images[:3]
    texts, kept = model.generate(3, images=shown, num_steps=4, seed=1)
    assert torch.equal(kept, shown) and len(texts) == 3
    half = model.config.encode(["three", "zero", "seven"]).masked_fill(torch.arange(5) < 3, len(model.config.letters))
    t, s = ((torch.full((3,), clock), torch.full((3,), 20)) for clock in (3, 2))
    predict = model._predictor(both.RowRandom(0, torch.arange(3)), 1.0)
    hat = predict((half, shown), t, s).x0[0]
    assert torch.equal(hat[:, 3:], half[:, 3:]) and int(hat.max()) < len(model.config.letters)
    for order in both.ORDERS:
        pairs = model.generate(5, num_steps=4, order=order, seed=2)
        again = model.generate(5, num_steps=4, order=order, seed=2, batch_size=2)
        assert pairs[0] == again[0] and torch.allclose(pairs[1], again[1], atol=1e-4)
    to_pil(shown)[0].save(tmp_path / "digit.png")
    assert called(both, "read", out, tmp_path / "digit.png").startswith(str(tmp_path / "digit.png"))
    printed = called(both, "generate", out, "-o", tmp_path / "made.png", "-n", 2, "--text", "two", "--num-steps", 3)
    assert printed.split()[1:] == ["two", "two"]


def test_text_and_image_names_bad_input():
    both = recipe("text_and_image")
    model = both.PairModel(
        both.PairConfig(backbone={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1})
    )
    for call, message in (
        (lambda: model.generate(1, text=["eleven"]), "text must be of at most 5 of the letters"),
        (lambda: model.generate(2, text=["one"]), "text must hold 2, one for each row, got 1"),
        (lambda: model.generate(1, order="first"), "order must be one of together, text, image, got 'first'"),
        (lambda: both.PairConfig(patch=3), "patch must divide height and width, got 3"),
        (lambda: both.PairConfig(names=["a."]), "names must be texts without '.'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- many texts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A model that continues texts, without training, and a table of prompts, some of them equal and one blank."""
    from tests.models import COUNTS, make_udm
    from udm_text.corpus import train_tokenizer
    from udm_text.framing import tokenizer_fields

    folder = tmp_path_factory.mktemp("writer")
    tokenizer = train_tokenizer("wordpiece", ["red green blue circle"], 60, cls_sep=True)
    model = make_udm(vocab_size=len(tokenizer), length_counts=COUNTS, **tokenizer_fields(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    prompts = ["red", "green blue", "", *["blue circle"] * 3, *["green"] * 5]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"q": prompt}) + "\n" for prompt in prompts))
    return folder


def job(writer, output, *more, world=1, dies_at=None):
    """The exit codes of the processes of a job, which are children of this one, as `accelerate launch` starts them.

    dies_at: the file, counted from 1, in whose middle the process kills itself by SIGKILL.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        if not (child := os.fork()):
            try:
                log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
                _work(writer, output, more, rank, world, port, dies_at)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _work(writer, output, more, rank, world, port, dies_at):
    from accelerate import PartialState

    PartialState._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    many = recipe("generate_corpus")
    written, write_table = [], many.pq.write_table

    def write(table, part):
        write_table(table, part)
        written.append(part)
        if len(written) == dies_at:
            os.truncate(part, os.path.getsize(part) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    many.pq.write_table = write
    data = ("--data", str(writer / "prompts.jsonl"), "--text-column", "q", "-n", "2")
    words = [str(writer / "model"), str(output), "--file-rows", "3", "--batch-size", "2", "--seed", "5"]
    many.app([*words, *(more or data)], standalone_mode=False)


def rows_in(output):
    """The rows of a job in the order of its files."""
    return [row for file in sorted(output.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_a_job_that_was_killed_and_goes_on_in_two_processes_writes_the_rows_of_one_that_was_not(writer, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert job(writer, whole) == [0], Path(f"{whole}.log").read_text()
    rows = rows_in(whole)
    assert [(row["id"], row["sample"]) for row in rows] == [(i, k) for i in range(10) for k in range(2)]
    assert [row["prompt"] for row in rows[::2]] == ["red", "green blue", *["blue circle"] * 3, *["green"] * 5]
    assert len({row["text"] for row in rows[10:]}) > 2  # equal prompts have draws of their own
    assert job(writer, killed, dies_at=2) == [-signal.SIGKILL]
    assert len(list(killed.glob("*.parquet"))) == 1 and len(list(killed.glob(".*.part"))) == 1
    stamp = next(killed.glob("*.parquet")).stat().st_mtime_ns
    assert job(writer, killed, world=2) == [0, 0], Path(f"{killed}.log").read_text()
    assert rows_in(killed) == rows and min(file.stat().st_mtime_ns for file in killed.glob("*.parquet")) == stamp
    names = [{file.name for file in folder.iterdir()} for folder in (whole, killed)]
    assert names[0] == names[1] and "job.json" in names[0]
    assert job(writer, whole, "--samples", "10") == [1]  # another job
    assert "was begun with prompts" in Path(f"{whole}.log").read_text()
    assert "1 without text left out, 4 files" in Path(f"{whole}.log").read_text()


def test_samples_of_a_job_do_not_depend_on_their_batch(writer, tmp_path):
    from transformers import pipeline

    assert job(writer, tmp_path / "job", "--samples", "7") == [0], Path(f"{tmp_path / 'job'}.log").read_text()
    rows = rows_in(tmp_path / "job")
    pipe = pipeline("udm-generation", model=str(writer / "model"))
    alone = pipe("", num_return_sequences=7, seed=5)
    assert [row["text"] for row in rows] == [record["generated_text"] for record in alone] and set(rows[0]) == {
        "id",
        "sample",
        "text",
    }


@pytest.mark.slow
def test_accelerate_launches_a_job(writer, tmp_path):
    where = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    how = ["launch", "--multi_gpu", "--num_processes", "2", "recipes/generate_corpus.py", str(writer / "model")]
    tool = Path(sys.executable).with_name("accelerate")
    subprocess.run(
        [tool, *how, str(tmp_path / "job"), "--samples", "9", "--file-rows", "2"], check=True, cwd=ROOT, env=where
    )
    assert [row["id"] for row in rows_in(tmp_path / "job")] == [*range(9)]


# --- validity --------------------------------------------------------------------------------------------------------


def test_the_recipes_of_validity_know_what_is_valid():
    from udm_text.cli.scoring import user_function

    def says(name, *texts):
        function = user_function(f"{ROOT / 'recipes' / 'validity.py'}:{name}")
        return [function(text) for text in texts]

    names = ("LATIN SMALL LETTER A", " greek small letter alpha ", "LATIN SMALL LETTER", "")
    assert says("unicode_name", *names) == [True, True, False, False]
    assert says("unicode_words", "LATIN LATIN", "LATIN QZX", "CJK UNIFIED IDEOGRAPH-4E00", "") == [
        True,
        False,
        True,
        False,
    ]
    grid = "".join("123456789"[(3 * (i % 3) + i // 3 + j) % 9] for i in range(9) for j in range(9))
    wrong = grid[:9] + grid[9:18][::-1] + grid[18:]
    assert says("sudoku_grid", grid, " ".join(grid), wrong, grid[:80]) == [True, True, False, False]
    pytest.importorskip("rdkit")
    assert says("smiles", "c1ccccc1", "CCO", "c1ccccc", "C(C)(C)(C)(C)C", "") == [True, True, False, False, False]
