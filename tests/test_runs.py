"""What runs do around the training."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import python
from udm_text.cli.reports import describe_evaluation
from udm_text.training.callbacks import LossBar
from udm_text.training.runs import keep_memory, without_secrets

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
