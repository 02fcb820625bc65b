"""Fixtures shared by every test."""

import os
import signal
from pathlib import Path

# before torch is loaded: tests run in parallel, with one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import quick_hydra
from tests.forks import Zygote, shared

quick_hydra.install()
# a shell starts background jobs with SIGINT ignored, which the processes that tests start would inherit
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than the number of cores: tests spend a sixth of their time waiting for other processes."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets in DATA_ROOT; without it the test is skipped."""
    root = os.environ.get("DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("DATA_ROOT names no folder of real data")
    return Path(root)


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """Forks processes that have already imported everything; see `tests.forks`."""
    return shared()
