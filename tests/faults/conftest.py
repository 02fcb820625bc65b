"""The process that runs are forked from, one for all tests."""

import sys
from collections.abc import Iterator

import pytest
from harness import Zygote

if sys.platform != "linux":
    pytest.skip("crash points are found through /proc", allow_module_level=True)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()
