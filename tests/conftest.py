"""Tests run on one thread, without network and without the caches of whoever runs them.

The environment is set here, before any import of torch and the Hugging Face libraries: they read it once.
"""

import atexit
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HF_HOME = tempfile.mkdtemp(prefix="udm-tests-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ACCELERATE_")):
        del os.environ[name]
os.environ.update(
    HF_HOME=HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo, minutes of one process, comes first: where it is the last file, the other workers wait for it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(scope="session", autouse=True)
def counted_positions() -> Iterator[None]:
    """What a generation says beforehand of how many positions it asks about is compared with what it then asks."""
    from udm_text.positions import Positions

    of = Positions.of

    def checked(wanted: torch.Tensor, counts: list[int] | None = None) -> Positions:
        if wanted.device.type == "cpu" and counts is not None:
            assert wanted.sum(dim=1).tolist() == counts
        return of(wanted, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Positions, "of", checked)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout: for tests of what is not installed (data, recipes)."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A connection to another machine fails at once and says so, instead of passing on lucky days."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("localhost", "127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {address}: tests must not need network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
