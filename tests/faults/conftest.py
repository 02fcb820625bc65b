"""Crash points are located through /proc."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("crash points are found through /proc", allow_module_level=True)
