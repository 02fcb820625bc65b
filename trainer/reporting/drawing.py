"""Loads matplotlib without the current folder's settings."""

import os
import sys


def load_matplotlib() -> None:
    """Import matplotlib, without a file `matplotlibrc` in the current folder; the user's own is read as usual.

    Such a file may have come with data of others. matplotlib evaluates expressions in it and runs LaTeX for it.
    """
    if "matplotlib" in sys.modules:
        return
    exists = os.path.exists
    os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
    try:
        import matplotlib  # noqa: F401
    finally:
        os.path.exists = exists
