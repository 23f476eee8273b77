"""What runs do around the training."""

from types import SimpleNamespace

import pytest
import torch

from continuous.grids import draw_loss as draw_image_loss
from tests.helpers import python
from tests.models import make_udm
from udm_text.cli.reports import describe_evaluation, draw_loss
from udm_text.cli.train_text import train_text
from udm_text.training import TextObjective
from udm_text.training.arguments import parse
from udm_text.training.callbacks import LossBar, describe_time
from udm_text.training.interrupts import TimedLRLambda, TimedShares
from udm_text.training.runs import keep_memory, rows_a_step, without_secrets

FAULTS = """
import resource, sys, torch
from udm_text.training.runs import keep_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept" and not keep_memory(torch.device("cpu")):
    print("cannot")
    sys.exit()
for number in range(32):
    if number == 8:  # by then small blocks that were put into a freed large one have found another place
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add_(1)  # 64 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_is_used_again_without_new_pages():
    said = {}
    for how in ("kept", "given back"):
        said[how] = python("-c", FAULTS, how).stdout.strip()
    if said["kept"] == "cannot":
        pytest.skip("this C library has no mallopt")
    assert int(said["kept"]) < int(said["given back"]) / 4, said


def test_the_command_that_a_report_keeps_has_no_token_in_it():
    given = "--data=a=b.txt --hub_token=hf_x --hub-token hf_y --push_to_hub_token hf_z --tokenizer bpe".split()
    assert without_secrets(given) == ["--data", "a=b.txt", "--tokenizer", "bpe"]


def test_memory_of_an_accelerator_is_left_alone():
    assert not keep_memory(torch.device("cuda"))


@pytest.mark.parametrize(
    ("tokens", "rows", "expected"),
    [
        (7.0, 22_116, 256),  # names: 7 x 128 is still below 1,024
        (18.0, 18_359, 64),
        (16.0, 10**6, 64),
        (1.0, 10**6, 1024),
        (1.0, 4096, 128),  # 32 steps an epoch, no fewer
        (1.0, 4095, 64),
        (1.0, 10, 64),  # which the run then refuses: there are fewer rows than a step takes
    ],
)
def test_short_rows_come_in_larger_steps_where_there_are_enough(tokens, rows, expected):
    assert rows_a_step(tokens, rows) == expected


def test_rows_that_are_not_asked_for_follow_from_the_corpus_and_others_do_not(tmp_path, capsys):
    lines = "".join(f"{a}{b} {a * b}\n" for a in range(64) for b in range(80))
    file = tmp_path / "lines.txt"
    file.write_text(lines)
    options = "--tokenizer char --model tiny --max_steps 1 --use_cpu --report_to none --plot false --keep_best false"
    found = []
    for more in ("", "--per_device_train_batch_size 64"):
        output = tmp_path / f"run{len(found)}"
        report = train_text(*parse(["--data", str(file), "--output", str(output), *options.split(), *more.split()]))
        found.append(report["rows_per_step"])
    assert found == [128, 64]
    assert "process mask, 128 rows a step" in capsys.readouterr().out


class Bar:
    """What LossBar writes on."""

    def __init__(self):
        self.behind, self.lines = [], []

    def set_postfix_str(self, text, refresh):
        self.behind.append(text)

    def write(self, text):
        self.lines.append(text)


def test_the_bar_tells_the_loss_and_each_evaluation_in_the_words_it_is_given():
    state = SimpleNamespace(is_world_process_zero=True, global_step=7)
    said = []
    for describe in (None, describe_evaluation):
        bar = LossBar(describe)
        bar.training_bar = Bar()
        bar.on_log(None, state, None, {"loss": 2.0})
        bar.on_log(None, state, None, {"eval_loss": 1.5})
        logs = {"eval_loss": 1.5, "eval_nelbo_nats_per_token": 1.5, "eval_nelbo_nats_per_token_stderr": 0.25}
        bar.on_log(None, state, None, logs)
        assert bar.training_bar.behind == ["loss 2.0000"]
        said.append(bar.training_bar.lines)
    assert said == [
        ["step 7: held-out loss 1.50000"] * 2,
        ["step 7: held-out loss 1.5000 nats/token", "step 7: held-out NELBO 1.5000 +- 0.2500 nats/token"],
    ]


# --- one quantity an image -------------------------------------------------------------------------------------------

HISTORY = [
    {"step": 10, "loss": 3.0},
    {"step": 10, "eval_loss": 2.9, "eval_nelbo_nats_per_token": 2.9, "eval_nelbo_nats_per_token_stderr": 0.1}
    | {"eval_length_nats_per_token": 0.4},
    {"step": 20, "loss": 2.0, "grad_norm": None},
    {"step": 20, "eval_loss": None, "eval_nelbo_nats_per_token": None, "eval_length_nats_per_token": None},
    {"step": 20, "train_runtime": 3.0, "train_loss": 2.5},
]
FINAL = {"nelbo_nats_per_token": 2.113, "nelbo_nats_per_token_stderr": 0.02, "length_nats_per_token": 0.263}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that are drawn from now on: (label on the left, {name of points: their values})."""
    import matplotlib.pyplot as plt

    axes = []

    def look(figure):
        for one in figure.axes:
            lines = {bars.get_label(): bars[0] for bars in one.containers} | {
                line.get_label(): line for line in one.lines if not line.get_label().startswith("_")
            }
            axes.append((one.get_ylabel(), {name: list(map(float, line.get_ydata())) for name, line in lines.items()}))

    monkeypatch.setattr(plt, "close", look)
    return axes


def test_the_held_out_curve_leaves_out_the_lengths_that_the_training_loss_leaves_out(drawn, tmp_path):
    assert draw_loss(HISTORY, tmp_path / "loss.png", FINAL)
    [(label, curves)] = drawn
    assert label == "nats per token, lengths of rows not counted"
    assert curves == {
        "training loss": [3.0, 2.0],
        "held-out bound": [2.5],
        "held-out bound at the end: 1.850": [pytest.approx(1.85)],
    }


def test_of_a_causal_twin_both_count_the_ends_of_rows(drawn, tmp_path):
    history = [{name: value for name, value in entry.items() if "length" not in name} for entry in HISTORY]
    assert draw_loss(history, tmp_path / "loss.png", FINAL, counts_lengths=True)
    [(label, curves)] = drawn
    assert label == "nats per token, ends of rows counted"
    assert curves["held-out bound"] == [2.9] and curves["held-out bound at the end: 2.113"] == [2.113]


def test_a_loss_that_estimates_no_bound_stands_apart_from_the_bound(drawn, tmp_path):
    assert draw_loss(HISTORY, tmp_path / "loss.png", FINAL, loss_is_bound=False)
    (above, loss), (below, bound) = drawn
    assert (above, below) == ("nats per token, loss of training", "nats per token, lengths of rows not counted")
    assert list(loss) == ["training loss"] and "training loss" not in bound and bound["held-out bound"] == [2.5]
    bounds = {process: TextObjective(make_udm(process).config).loss_is_bound for process in ("mask", "substitute")}
    assert bounds == {"mask": True, "substitute": False}
    assert TextObjective(make_udm("substitute").config, loss="nelbo").loss_is_bound


@pytest.mark.parametrize(
    ("draw", "span", "least"),
    [
        *((draw_image_loss, span, 3) for span in ((0.012, 0.5), (0.02, 0.9), (2.1, 2.9), (0.3, 3.0))),
        *((draw_loss, span, 2) for span in ((0.012, 0.5), (2.1, 2.9), (9.0, 11.0))),
    ],
)
def test_some_numbers_stand_beside_a_loss_whatever_it_spans(monkeypatch, tmp_path, draw, span, least):
    import matplotlib.pyplot as plt

    seen = []
    monkeypatch.setattr(plt, "close", seen.append)
    assert draw([{"step": i, "loss": loss} for i, loss in enumerate(span)], tmp_path / "loss.png")
    [axes] = seen[0].axes
    low, high = axes.get_ylim()
    labels = [*axes.yaxis.get_majorticklabels(), *axes.yaxis.get_minorticklabels()]
    assert len({label.get_text() for label in labels if low <= label.get_position()[1] <= high} - {""}) >= least


def test_an_image_without_a_point_is_not_drawn(tmp_path):
    for history in ([], [{"step": 4, "train_runtime": 1.0}]):
        assert not draw_loss(history, tmp_path / "loss.png", FINAL)
        assert not draw_image_loss(history, tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


# --- a run by the clock ----------------------------------------------------------------------------------------------


class Watch:
    """A rate whose time is set by hand, and what is asked for at the end of each step."""

    def __init__(self, rate, **strategies):
        self.rate, self.callback = rate, TimedShares(rate)
        shares = {"logging_steps": 0.01, "eval_steps": 0.25, "save_steps": 500, "logging_first_step": False}
        kinds = {"logging_strategy": "steps", "eval_strategy": "steps", "save_strategy": "steps"}
        self.args = SimpleNamespace(**{**shares, **kinds, **strategies})

    def step(self, number, elapsed, stop=False, asked=False):
        control = SimpleNamespace(should_log=asked, should_evaluate=asked, should_save=asked, should_training_stop=stop)
        self.rate.elapsed = elapsed
        self.callback.on_step_end(self.args, SimpleNamespace(global_step=number), control)
        return [name for name in ("log", "evaluate", "save") if getattr(control, f"should_{name}")]


def test_shares_of_a_run_by_the_clock_are_shares_of_its_time():
    watch = Watch(TimedLRLambda(300.0, 0, 0, "cosine"))
    watch.callback.on_train_begin(watch.args, SimpleNamespace(global_step=0), None)
    said = [watch.step(i + 1, second) for i, second in enumerate([2.0, 3.0, 5.0, 9.5, 74.0, 75.0, 76.0])]
    assert said == [[], ["log"], [], ["log"], ["log"], ["log", "evaluate"], []]
    assert watch.step(8, 301.0, stop=True) == ["log"]  # the end is logged, and measured afterwards
    resumed = Watch(TimedLRLambda(300.0, 0, 0, "cosine"))
    resumed.rate.elapsed = 100.0
    resumed.callback.on_train_begin(resumed.args, SimpleNamespace(global_step=50), None)
    assert [resumed.step(51, 101.0), resumed.step(52, 102.5)] == [[], ["log"]]


def test_where_the_steps_end_first_the_shares_are_of_the_steps():
    watch = Watch(TimedLRLambda(300.0, 200, 0, "cosine"), eval_strategy="no", save_steps=0.5)
    watch.callback.on_train_begin(watch.args, SimpleNamespace(global_step=0), None)
    assert [watch.step(1, 0.1), watch.step(2, 0.2), watch.step(99, 0.3)] == [[], ["log"], ["log"]]
    assert watch.step(100, 0.4) == ["log", "save"]


def test_what_transformers_makes_of_a_share_of_max_steps_does_not_come_on_top():
    watch = Watch(TimedLRLambda(300.0, 2000, 0, "cosine"))
    watch.callback.on_train_begin(watch.args, SimpleNamespace(global_step=0), None)
    assert watch.step(10, 4.0, asked=True) == ["log", "save"]  # a save by a number of steps is let through
    assert watch.step(11, 4.1, asked=True) == ["save"]
    assert watch.step(12, 4.2, stop=True, asked=True) == ["log", "evaluate", "save"]


def test_the_bar_of_a_run_by_the_clock_tells_the_time_and_not_a_thousand_million_steps(capsys):
    rate = TimedLRLambda(300.0, 0, 0, "cosine")
    bar = LossBar(rate=rate)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=10**9)
    bar.on_train_begin(None, state, None)
    rate.elapsed, state.global_step = 42.4, 204
    bar.on_log(None, state, None, {"loss": 2.0})
    bar.on_step_end(None, state, None)
    bar.training_bar.refresh()
    bar.on_train_end(None, state, None)
    said = capsys.readouterr().err
    assert "42 s of 300 s, step 204, loss 2.0000" in said and " 14%|" in said
    assert "000000" not in said
    rate = TimedLRLambda(300.0, 1000, 0, "cosine")
    rate.elapsed = 310.0
    assert describe_time(rate, 204) == "300 s of 300 s, step 204 of 1000"
