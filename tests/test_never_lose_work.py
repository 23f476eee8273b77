"""Killed, starved of disk, memory or time, or lied to by a checkpoint: a run ends where an undisturbed one would."""

import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from tests.helpers import assert_equal_weights, listing, weights_in
from tests.models import make_rows, make_udm
from tests.training_helpers import history, make_trainer, say_it_is_sharded, weights
from udm_text.evaluation import bounds
from udm_text.training import OutOfMemoryError, interrupts
from udm_text.training import trainer as training
from udm_text.training.checkpoints import (
    STAGING,
    CheckpointError,
    last_checkpoint,
    rotate,
    staging_name,
    sweep,
    why_unusable,
)
from udm_text.training.interrupts import TimedLRLambda
from udm_text.training.locks import LOCK, LockedError, locked, process_identity

HOW = {"dropout": 0.2, "ema_decay": 0.9, "max_steps": 9, "save_strategy": "steps", "save_steps": 3}
"""A run with everything that has a state: noise of dropout, an average, an optimiser, a schedule, an order of rows."""


def trainer_in(folder, **args):
    return make_trainer(folder, **{**HOW, "save_total_limit": 2, "train_sampling_strategy": "group_by_length", **args})


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.what()


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def start(work):
    """Does `work` in a child process, at once (a fork: no imports to wait for); returns its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def assert_same_end(one: Path, other: Path, step=9):
    """The last checkpoints are equal: weights, their average, optimiser, schedule and random numbers, bit for bit."""
    one, other = one / f"checkpoint-{step}", other / f"checkpoint-{step}"
    assert why_unusable(one) is why_unusable(other) is None
    for name in ("model.safetensors", "ema.safetensors"):
        assert_equal_weights(weights_in(one, name), weights_in(other, name))
    a, b = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (one, other))
    assert len(a["state"]) > 30 and a["param_groups"] == b["param_groups"]
    for number, state in a["state"].items():
        assert all(torch.equal(value, b["state"][number][name]) for name, value in state.items())
    for name in ("scheduler.pt", "rng_state.pth"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer_in(folder).train()
    return folder


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def killed_between_steps(trainer, monkeypatch):
    trainer.add_callback(At(7, die))


def killed_in_the_middle_of_a_checkpoint(trainer, monkeypatch):
    trainer.add_callback(At(5, lambda: monkeypatch.setattr(trainer, "_save_rng_state", die)))


def killed_before_a_checkpoint_is_in_its_place(trainer, monkeypatch):
    trainer.add_callback(At(5, lambda: monkeypatch.setattr(training, "move_into_place", die)))


def killed_while_old_checkpoints_are_removed(trainer, monkeypatch):
    def half(*args, **kwargs):
        (Path(trainer.args.output_dir) / "checkpoint-3" / "trainer_state.json").unlink()
        die()

    trainer.add_callback(At(8, lambda: monkeypatch.setattr(training, "rotate", half)))


@pytest.mark.parametrize(
    ("how", "left"),
    [
        (killed_between_steps, 6),
        (killed_in_the_middle_of_a_checkpoint, 3),
        (killed_before_a_checkpoint_is_in_its_place, 3),
        (killed_while_old_checkpoints_are_removed, 9),
    ],
)
def test_a_run_killed_at_any_moment_and_resumed_ends_where_the_undisturbed_one_ends(
    undisturbed, tmp_path, monkeypatch, how, left
):
    def work():
        trainer = trainer_in(tmp_path)
        how(trainer, monkeypatch)
        trainer.train()

    assert os.waitpid(start(work), 0)[1] == signal.SIGKILL
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{left}")
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(undisturbed, tmp_path)
    assert not list(tmp_path.glob(f"{STAGING}*")) or left == 9


def test_a_checkpoint_at_the_end_of_the_run_is_not_trained_beyond(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.state.global_step, resumed.steps_made) == (9, 0)
    assert_equal_weights(weights(resumed), weights_in(undisturbed / "checkpoint-9"))
    assert all(
        torch.equal(value, weights_in(undisturbed / "checkpoint-9", "ema.safetensors")[name])
        for name, value in resumed.average.average.items()
    )
    [loss] = [entry["train_loss"] for entry in resumed.state.log_history if "train_loss" in entry]
    assert loss == json.loads((undisturbed / "checkpoint-9" / "spent.json").read_text())["loss"] / 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-9"]


def test_a_checkpoint_at_the_end_of_the_time_is_not_trained_beyond(tmp_path):
    how = {"max_seconds": 0.3, "max_steps": -1, "lr_scheduler_type": "cosine", "save_steps": 500}
    trainer = trainer_in(tmp_path, **how)
    trainer.train()
    resumed = trainer_in(tmp_path, **how)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.steps_made, resumed.stopped_by) == (0, "max_seconds")
    assert_equal_weights(weights(resumed), weights(trainer))


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_random_moments_ends_where_the_undisturbed_one_ends(tmp_path):
    """A checkpoint at every second step and a kill every few steps: many kills fall into the writing of one."""
    how = {"max_steps": 40, "save_steps": 2}
    started = time.monotonic()
    trainer_in(tmp_path / "a", **how).train()
    whole = time.monotonic() - started
    source, kills, reached = random.Random(0), 0, set()
    while True:
        child = start(lambda: trainer_in(tmp_path / "b", **how).train(last_checkpoint(tmp_path / "b")))
        deadline = time.monotonic() + whole * (source.uniform(0.05, 0.35) + 0.02 * kills)  # longer lives: it ends
        while time.monotonic() < deadline and not (done := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.005)
        if done[0]:
            assert done[1] == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        reached.add(last_checkpoint(tmp_path / "b"))
    assert kills > 5 and len(reached) > 3
    assert_same_end(tmp_path / "a", tmp_path / "b", 40)


# --- two runs in one folder ------------------------------------------------------------------------------------------


def hold(folder, **other):
    """A lock as another process has written it."""
    holder = {"host": socket.gethostname(), "pid": os.getppid(), "start": "now"}
    (folder / LOCK).write_text(json.dumps(holder | other))


def dead_process():
    child = start(lambda: None)
    os.waitpid(child, 0)
    return child


def test_a_folder_in_use_is_refused_by_host_and_process_and_nothing_changes(tmp_path):
    for other in ({}, {"host": "elsewhere", "pid": dead_process()}):
        hold(tmp_path, **other)
        before, said = listing(tmp_path), json.loads((tmp_path / LOCK).read_text())
        words = rf"in use by process {said['pid']} on host {said['host']}, since now"
        with pytest.raises(LockedError, match=words), locked(tmp_path):
            raise AssertionError
        assert listing(tmp_path) == before
    for text in ("", "{}", "null", "[1]", '{"pid": "x", "host": 3}'):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(LockedError, match="does not say which process"), locked(tmp_path):
            raise AssertionError
    (tmp_path / LOCK).unlink()
    with locked(tmp_path):
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()} "), locked(tmp_path):
            raise AssertionError
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over_and_given_back_also_after_an_error(tmp_path, monkeypatch):
    zombie = start(lambda: None)
    while process_identity(zombie) != "ended":
        time.sleep(0.01)
    gone = [{"pid": dead_process()}, {"pid": zombie}, {"pid": os.getpid(), "identity": "of another boot 5"}]
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    gone += [{"host": "elsewhere", "job": ["71", 1]}]
    for other in gone:
        hold(tmp_path, **other)
        with pytest.raises(RuntimeError, match="in the middle"), locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
            raise RuntimeError("in the middle")
        assert not (tmp_path / LOCK).exists()
    os.waitpid(zombie, 0)
    for job in (["70", 1], ["71", 2]):
        hold(tmp_path, host="elsewhere", job=job)
        with pytest.raises(LockedError, match="elsewhere"), locked(tmp_path):
            raise AssertionError


def test_folders_made_for_a_lock_go_with_it_where_nothing_came_into_them(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "note").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "note"]


def test_of_many_who_take_over_one_dead_lock_one_has_it_at_a_time(tmp_path):
    """Each who has the lock makes a folder that must not be there yet, and removes it."""
    hold(tmp_path, pid=dead_process())

    def work():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with locked(tmp_path):
                    (tmp_path / "mine").mkdir()
                    time.sleep(0.02)
                    (tmp_path / "mine").rmdir()
                return
            except LockedError:
                time.sleep(0.005)
        raise TimeoutError

    children = [start(work) for _ in range(8)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert not list(tmp_path.iterdir())


def test_two_writers_have_staging_folders_of_their_own_and_only_the_dead_ones_go(tmp_path):
    names = {staging_name() for _ in range(9)}
    assert len(names) == 9 and all(name.startswith(STAGING) for name in names)
    mine, alien = tmp_path / staging_name(), tmp_path / f"{STAGING}-elsewhere-1-01234567"
    dead = tmp_path / staging_name().replace(f"-{os.getpid()}-", f"-{dead_process()}-")
    for path in (mine, alien, dead, tmp_path / STAGING):
        path.mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, alien.name}
    sweep(tmp_path, every=True)
    assert not list(tmp_path.iterdir())


# --- checkpoints that are not whole ----------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_whole_is_named_and_passed_over(undisturbed, tmp_path):
    def cut(name, keep=0.5):
        file = tmp_path / "checkpoint-9" / name
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])

    def remove(name):
        (tmp_path / "checkpoint-9" / name).unlink()

    def write(name, text):
        (tmp_path / "checkpoint-9" / name).write_text(text)

    cases = [
        (lambda: cut("model.safetensors"), "model.safetensors is cut off"),
        (lambda: cut("model.safetensors", 0.0), "model.safetensors is cut off"),
        (lambda: cut("model.safetensors", 0.999), "model.safetensors is cut off"),
        (lambda: cut("ema.safetensors"), "ema.safetensors is cut off"),
        (lambda: cut("optimizer.pt"), "optimizer.pt is cut off"),
        (lambda: cut("rng_state.pth", 0.9), "rng_state.pth is cut off"),
        (lambda: cut("trainer_state.json"), "trainer_state.json is not whole"),
        (lambda: write("trainer_state.json", "[]"), "trainer_state.json is not whole"),
        (lambda: write("trainer_state.json", '{"global_step": 8}'), "is of step 8"),
        (lambda: remove("model.safetensors"), "has no weights"),
        (lambda: remove("optimizer.pt"), "has no optimiser state"),
        (lambda: remove("scheduler.pt"), "has no schedule state"),
        (lambda: remove("rng_state.pth"), "has no random numbers"),
        (lambda: remove("trainer_state.json"), "has no trainer_state.json"),
    ]
    for spoil, message in cases:
        shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
        spoil()
        assert message in why_unusable(tmp_path / "checkpoint-9")
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6"), message
        shutil.rmtree(tmp_path / "checkpoint-9")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        trainer_in(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    (tmp_path / "checkpoint-x").mkdir()
    assert last_checkpoint(tmp_path / "nowhere") is None


def flip(file, place=0.5):
    """One bit of a file is another."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def test_every_file_of_a_checkpoint_is_in_its_manifest_and_a_single_bit_is_seen(undisturbed, tmp_path):
    whole, spoiled = undisturbed / "checkpoint-9", tmp_path / "checkpoint-9"
    manifest = json.loads((whole / "manifest.json").read_text())
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert manifest["step"] == 9 and manifest["files"].keys() == names - {"manifest.json"}
    assert {"model.safetensors", "ema.safetensors", "optimizer.pt", "rng_state.pth", "config.json"} <= names
    for name in names - {"manifest.json"}:
        for spoil in (
            flip,
            lambda file: flip(file, 0.9),
            lambda file: flip(file, 1.0),
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(file.read_bytes() + b"\0"),
            Path.unlink,
        ):
            shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
            spoil(spoiled / name)
            assert why_unusable(spoiled) is not None, name
            assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    flip(spoiled / "optimizer.pt")
    assert "its optimizer.pt is not what was written (by its SHA-256)" in why_unusable(spoiled)
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.copy(undisturbed / "checkpoint-6" / "model.safetensors", spoiled)
    assert "its model.safetensors is not what was written" in why_unusable(spoiled)
    trainer_in(tmp_path).train(resume_from_checkpoint=True)  # from the whole one behind it
    assert_same_end(undisturbed, tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", '{"step": 9, "files": {"config.json": null}}', "{"])
def test_a_manifest_that_is_none_is_a_fault_of_the_checkpoint(undisturbed, tmp_path, text):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-9" / "manifest.json").write_text(text)
    assert why_unusable(tmp_path / "checkpoint-9") == "its manifest.json is not whole"
    (tmp_path / "checkpoint-9" / "manifest.json").write_text('{"step": 6, "files": {}}')
    assert why_unusable(tmp_path / "checkpoint-9") == "its manifest.json is of step 6"
    (tmp_path / "checkpoint-9" / "manifest.json").unlink()  # as checkpoints were written before
    assert why_unusable(tmp_path / "checkpoint-9") is None


def test_the_latest_steps_and_the_best_are_kept_whatever_was_touched_last(tmp_path):
    def left(limit, keep, touched=()):
        for step in (2, 4, 6, 8, 10):
            (tmp_path / f"checkpoint-{step}" / "inner").mkdir(parents=True, exist_ok=True)
        for step in touched:
            os.utime(tmp_path / f"checkpoint-{step}", (2e9, 2e9))
        rotate(tmp_path, limit, [step and tmp_path / f"checkpoint-{step}" for step in keep])
        return sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir())

    assert left(None, (10, None)) == [2, 4, 6, 8, 10]
    assert left(2, (10, None), touched=(2, 4)) == [8, 10]
    assert left(3, (10, 4)) == [4, 8, 10]
    assert left(1, (10, 4)) == [4, 10]
    assert left(2, (6, None)) == [6, 10]  # begun anew in an old folder: what was just written stays


class Exploit:
    """Touches a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_does_more_than_hold_numbers_is_refused(undisturbed, tmp_path, name):
    shutil.copytree(undisturbed / "checkpoint-6", tmp_path / "checkpoint-6")
    trap = tmp_path / "trap"
    torch.save(Exploit(trap), tmp_path / "checkpoint-6" / name)
    assert f"its {name}" in why_unusable(tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / "manifest.json").unlink()  # as whoever wrote such a file would do
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        trainer_in(tmp_path).train(resume_from_checkpoint=True)
    assert not trap.exists()
    torch.load(tmp_path / "checkpoint-6" / name, weights_only=False)
    assert trap.exists()  # it would have worked


# --- no room, no memory ----------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """A switch: from then on no file may grow beyond 20 kB, as on a disk that has so much left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint_left(undisturbed, tmp_path, full_disk):
    trainer = trainer_in(tmp_path)
    trainer.add_callback(At(4, full_disk))
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 6 could not be written: .*last good one .*-3;"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    with pytest.raises(CheckpointError, match="the model could not be written"):
        trainer.save_model()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    trainer_in(tmp_path).train(resume_from_checkpoint=True)
    assert_same_end(undisturbed, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_step_that_does_not_fit_into_memory_says_what_would(tmp_path, error):
    trainer = trainer_in(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2)

    def burst():
        raise error

    trainer.add_callback(At(5, burst))
    with pytest.raises(OutOfMemoryError, match=r"step 5 with per_device_train_batch_size 8 and .*With 4 and 4 .*-3\."):
        trainer.train()


# --- signals and time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_has_a_checkpoint_written_at_the_end_of_the_step(undisturbed, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    trainer = trainer_in(tmp_path)
    trainer.add_callback(At(4, lambda: os.kill(os.getpid(), number)))
    trainer.train()
    assert trainer.stopped_by == signal.Signals(number).name
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopped_by is None
    assert_same_end(undisturbed, tmp_path)


def test_a_signal_ends_an_evaluation_between_two_batches(undisturbed, tmp_path, monkeypatch):
    asked, collate = [], bounds.collate

    def signalled(*args, **kwargs):
        asked.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return collate(*args, **kwargs)

    how = {"eval_strategy": "steps", "eval_steps": 4, "eval_dataset": make_rows(30), "per_device_eval_batch_size": 10}
    trainer = trainer_in(tmp_path, **how)
    with monkeypatch.context() as patch:
        patch.setattr(bounds, "collate", signalled)
        trainer.train()
    assert len(asked) == 1 and trainer.stopped_by == "SIGTERM" and trainer.state.global_step == 4
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)
    trainer_in(tmp_path, **how).train(resume_from_checkpoint=True)
    assert_same_end(undisturbed, tmp_path)
    assert len(trainer.evaluate()) > 3, "outside of training no signal is waited for"


def test_a_second_ctrl_c_ends_at_once(tmp_path, capfd):
    trainer = trainer_in(tmp_path)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    trainer.add_callback(At(4, twice))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "Ctrl-C: a checkpoint is written at the end of this step; once more" in capfd.readouterr().err
    assert trainer.state.global_step == 4 and last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_ctrl_c_stays_ignored_where_it_was(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = trainer_in(tmp_path, max_steps=3)
        trainer.add_callback(At(1, lambda: os.kill(os.getpid(), signal.SIGINT)))
        trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (trainer.stopped_by, trainer.state.global_step) == (None, 3)


def test_a_run_ends_by_time_on_a_finished_schedule_and_goes_on_from_there(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(interrupts, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 50))  # of 0.02 s a step
    how = {"max_seconds": 1.0, "max_steps": -1, "lr_scheduler_type": "cosine", "warmup_steps": 3, "save_steps": 500}
    trainer = trainer_in(tmp_path, **how)
    trainer.train()
    assert trainer.stopped_by == "max_seconds" and trainer.state.global_step == pytest.approx(50, abs=1)
    rates = history(trainer, "learning_rate")[:, 0]
    assert rates[:3].tolist() == pytest.approx([2.5e-4, 5e-4, 7.5e-4])
    assert (rates[4:].diff() < 0).all() and rates[-1] < 1e-5
    last = trainer.state.global_step
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{last}")
    longer = trainer_in(tmp_path, **{**how, "max_seconds": 1.3})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == pytest.approx(last + 15, abs=1)
    assert longer.timed_rate.elapsed == pytest.approx(1.3, abs=0.03)


def test_the_rate_by_time_is_the_cosine_of_the_share_that_is_over():
    rate = TimedLRLambda(100.0, 0, 10, "cosine")
    assert [rate(step) for step in (0, 4)] == [1 / 11, 5 / 11]
    rate.elapsed = 25.0
    assert rate(50) == pytest.approx((1 + 2**-0.5) / 2)
    rate.elapsed = 200.0
    assert rate(50) == 0.0
    by_steps = TimedLRLambda(100.0, 40, 0, "linear")
    assert by_steps(10) == 0.75  # whichever of the two ends first
    assert TimedLRLambda(100.0, 40, 0, "constant")(39) == 1.0
    with pytest.raises(ValueError, match="lr_scheduler_type must be one of .*'polynomial'"):
        TimedLRLambda(100.0, 0, 0, "polynomial")


# --- the average -----------------------------------------------------------------------------------------------------


def test_the_average_is_the_weighted_sum_of_the_weights_of_all_steps(tmp_path):
    trainer = trainer_in(tmp_path, ema_decay=0.5, save_strategy="no", max_steps=20)
    seen = [{n: p.double() for n, p in weights(trainer).items()}]

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append({n: p.double() for n, p in weights(trainer).items()})

    trainer.add_callback(Record())
    trainer.train()
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 21)]
    share = [1.0]  # of each weight in the average
    for decay in decays:
        share = [decay * s for s in share] + [1 - decay]
    assert sum(share) == pytest.approx(1) and decays[0] < decays[-1] == 0.5
    for name, value in trainer.average.average.items():
        expected = sum(s * w[name] for s, w in zip(share, seen, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_the_average_is_what_is_evaluated_and_written_and_the_weights_stay_what_they_are(tmp_path):
    rows = make_rows(9, seed=1)
    trainer = trainer_in(tmp_path, eval_dataset=rows, learning_rate=1e-2)
    plain = trainer.evaluate()
    trainer.train()
    own = weights(trainer)
    figures = trainer.evaluate()
    trainer.save_model()
    assert_equal_weights(own, weights(trainer))
    written, stored = (weights_in(folder) for folder in (tmp_path, tmp_path / "checkpoint-9"))
    assert all(torch.equal(written[name], value) for name, value in trainer.average.average.items())
    assert all(torch.equal(stored[name], value) for name, value in own.items())
    again = trainer_in(tmp_path / "b", model=type(trainer.model).from_pretrained(tmp_path), eval_dataset=rows)
    assert again.evaluate()["eval_loss"] == figures["eval_loss"] != plain["eval_loss"]


def test_the_best_checkpoint_comes_back_with_its_average(tmp_path):
    how = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "learning_rate": 1e-2}
    trainer = trainer_in(tmp_path, eval_dataset=make_rows(9), **how)
    trainer.train()
    log = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_metric == min(log.values())
    assert Path(trainer.state.best_model_checkpoint).parent == tmp_path
    state = json.loads((tmp_path / "checkpoint-9" / "trainer_state.json").read_text())
    assert STAGING not in str(state["best_model_checkpoint"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(log.values()), rel=1e-6)


def test_the_state_of_a_trainer_is_strict_json_also_where_a_figure_is_no_number(tmp_path):
    def never(constant):
        raise AssertionError(constant)

    how = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": make_rows(1)}  # one row has no standard error
    trainer = trainer_in(tmp_path, **how)
    trainer.train()
    assert any(value != value for entry in trainer.state.log_history for value in entry.values())
    trainer.save_state()
    for folder in (tmp_path, tmp_path / "checkpoint-9", tmp_path / "checkpoint-6"):
        state = json.loads((folder / "trainer_state.json").read_text(), parse_constant=never)
        errors = [entry["eval_bits_per_char_stderr"] for entry in state["log_history"] if "eval_loss" in entry]
        assert errors and set(errors) == {None}
    shutil.rmtree(tmp_path / "checkpoint-9")
    resumed = trainer_in(tmp_path, **how)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9


def test_a_run_without_an_average_is_not_resumed_with_one(tmp_path):
    trainer_in(tmp_path, ema_decay=None, max_steps=3).train()
    with pytest.raises(ValueError, match=r"has no ema.safetensors: that run had no ema_decay"):
        trainer_in(tmp_path).train(resume_from_checkpoint=True)


def test_an_average_of_weights_that_no_process_has_whole_is_refused(tmp_path, monkeypatch):
    model = make_udm()
    say_it_is_sharded(monkeypatch, model)
    with pytest.raises(ValueError, match="ema_decay goes with one process or with DDP"):
        trainer_in(tmp_path, model=model, save_strategy="no")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs or max_seconds, got 0"),
        ({"max_steps": -2}, "max_steps must be at least 1, .* got -2"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs must be positive without max_steps, got 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \(0, 1\), got 1.0"),
        ({"max_seconds": 0.0}, "max_seconds must be positive"),
        ({"max_seconds": 9.0, "lr_scheduler_type": "polynomial"}, "lr_scheduler_type must be one of"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        trainer_in(tmp_path, **args)
