"""SIGKILL at thirty random moments of a run from a text file to a report: `--resume` ends where it would have ended.

The runs are children of a fork, which have their imports done. Each tells through a pipe which phase it comes to, and
the parent kills it some time later: while it starts up, in a step, while a checkpoint is written, between the last
checkpoint and the model, while model and report are written.
"""

import json
import os
import random
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import write_lines
from tests.test_train_text import WORDS
from udm_text.cli.train_text import parse, train_text
from udm_text.training import UDMTrainer, runs

STEPS, KILLS = 9, 30
HOW = f"""--model tiny --max_steps {STEPS} --save_steps 3 --save_total_limit 2 --per_device_train_batch_size 8 --use_cpu
    --vocab_size 200 --report_to none --plot false --disable_tqdm true --logging_steps 1 --ema_decay 0.9 --dropout 0.1
    --eval_strategy steps --eval_steps 4 --seed 3""".split()
PHASES = START, CHECKPOINT, STEP, LAST, WRITE = range(5)
"""In the order in which a run is killed in them: each leaves the later ones to do."""
OFTEN = {START: 1, CHECKPOINT: 3, STEP: 3, LAST: 1, WRITE: 1}
"""How often a run comes to them at least that is killed in this order, save the last checkpoint."""


def work(data: Path, output: Path, pipe: int) -> None:
    """A run, resumed where there is something to resume; writes the number of each phase that it comes to."""

    def tell(phase):
        os.write(pipe, bytes([phase]))

    def telling(phase, function):
        def told(*args, **kwargs):
            tell(phase)
            return function(*args, **kwargs)

        return told

    save_checkpoint = telling(CHECKPOINT, UDMTrainer._save_checkpoint)

    def save_checkpoint_and_tell(trainer, *args, **kwargs):
        save_checkpoint(trainer, *args, **kwargs)
        tell(LAST if trainer.state.global_step == STEPS else STEP)

    UDMTrainer._save_checkpoint = save_checkpoint_and_tell
    UDMTrainer.training_step = telling(STEP, UDMTrainer.training_step)
    runs.save = telling(WRITE, runs.save)
    tell(START)
    resume = ["--resume"] if output.is_dir() and any(output.iterdir()) else []
    train_text(*parse(["--data", str(data), "--output", str(output), *HOW, *resume]))


def start(data: Path, output: Path) -> tuple[int, int]:
    """A run in a child process: its number, and where its phases can be read. What it says is in OUTPUT.log."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(data, output, write)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def ended(child: int, output: Path) -> bool:
    """Waits for a child; whether it was killed. It must not have ended by itself with an error."""
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), Path(f"{output}.log").read_text()[-4000:]
    return status == signal.SIGKILL


def durations(data: Path, output: Path) -> dict[int, float]:
    """Seconds of each phase of a run that nobody disturbs, the longest where there are several."""
    child, read = start(data, output)
    seconds, phase, since = dict.fromkeys(PHASES, 0.0), START, time.monotonic()
    while told := os.read(read, 1):
        now = time.monotonic()
        seconds[phase] = max(seconds[phase], now - since)
        phase, since = told[0], now
    seconds[phase] = time.monotonic() - since
    os.close(read)
    assert not ended(child, output)
    return seconds


def killed(data: Path, output: Path, phase: int, time_of_it: int, delay: float) -> bool:
    """Starts the run and kills it so many seconds after it came to a phase; False where it was over before that."""
    child, read = start(data, output)
    while told := os.read(read, 1):
        time_of_it -= told[0] == phase
        if time_of_it == 0 and told[0] == phase:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
    os.close(read)
    return ended(child, output)


def figures(value):
    """A report without the times that were taken."""
    if isinstance(value, dict):
        apart = ("second", "runtime", "command")  # a command names its folder
        return {name: figures(one) for name, one in value.items() if not any(word in name for word in apart)}
    return [figures(one) for one in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_run_killed_at_thirty_random_moments_ends_with_the_model_and_the_figures_of_an_unbroken_one(tmp_path):
    data = write_lines(tmp_path / "toy.txt", WORDS, lines=160, longest=5)
    seconds = durations(data, tmp_path / "whole")
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    report = figures(json.loads((tmp_path / "whole" / "report.json").read_text()))
    source, kills, chain = random.Random(0), Counter(), 0
    while kills.total() < KILLS:
        chain += 1
        assert chain <= KILLS, kills
        output = tmp_path / f"{chain}"
        for phase in PHASES:
            moment = source.randint(1, OFTEN[phase]), source.uniform(0.0, 1.0) * seconds[phase]
            kills[phase] += killed(data, output, phase, *moment)
        killed(data, output, START, 0, 0.0)  # to its end
        assert (output / "model.safetensors").read_bytes() == weights, chain
        assert figures(json.loads((output / "report.json").read_text())) == report, chain
        # a run killed between a checkpoint and the removal of an older one, with no step to come, keeps both
        names = [{p.name for p in folder.iterdir()} for folder in (output, tmp_path / "whole")]
        assert {name for name in names[0] ^ names[1] if not name.startswith("checkpoint-")} == set()
    print(f"killed {dict(kills)} in {chain} runs")
    assert all(kills[phase] for phase in PHASES)
