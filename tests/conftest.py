"""Fixtures shared by every test."""

import os
from pathlib import Path

# before torch is loaded: tests run side by side, a thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.forks import Zygote, shared


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets that DATA_ROOT names; the test is skipped where there is none."""
    root = os.environ.get("DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("DATA_ROOT names no folder of real data")
    return Path(root)


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """Forks processes that need not import anything; see `tests.forks`."""
    return shared()
