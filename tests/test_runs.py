"""What runs do around the training."""

import subprocess
import sys

import pytest
import torch

from udm_text.runs import keep_memory

FAULTS = """
import resource, sys, torch
from udm_text.runs import keep_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept" and not keep_memory(torch.device("cpu")):
    print("cannot")
    sys.exit()
for number in range(6):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add_(1)  # 64 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_is_used_again_without_new_pages():
    said = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        said[how] = done.stdout.strip()
    if said["kept"] == "cannot":
        pytest.skip("this C library has no mallopt")
    assert int(said["kept"]) < int(said["given back"]) / 10, said


def test_memory_of_an_accelerator_is_left_alone():
    assert not keep_memory(torch.device("cuda"))
