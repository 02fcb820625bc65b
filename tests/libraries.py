"""Libraries that single options need. `pip install -e '.[test]'` installs them, `pip install -e .` does not."""

import pytest


def need_library(option: str) -> None:
    """Skip the test if the library of an option is not installed."""
    if option.rpartition("=")[2] == "timm":
        pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[test]'")
