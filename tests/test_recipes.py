"""The recipes for clusters: read by accelerate as they stand, and a batch script that queues itself again."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file

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
