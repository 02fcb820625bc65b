"""Packages that the user trusts, and how they are found in the current folder."""

import os
import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def users_packages() -> tuple[str, ...]:
    """Return the names in GEARSHIFT_TRUST, separated by commas."""
    names = (name.strip() for name in os.environ.get("GEARSHIFT_TRUST", "").split(","))
    return tuple(name for name in names if name)


class TrustedFinder(MetaPathFinder):
    """Finds the named packages in one folder, and no other file there.

    The whole folder on `sys.path` would let any file of it, such as a `triton.py` among someone's data, be imported
    by a library that looks for an optional one.
    """

    def __init__(self, folder: str, names: Collection[str]) -> None:
        self.folder, self.names = folder, frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_named = path is None and fullname in self.names
        return PathFinder.find_spec(fullname, [self.folder]) if is_named else None


def see_trusted_packages() -> None:
    """Make trusted packages in the current folder importable, which a console script does not do by itself.

    An installed package of the same name is preferred. Idempotent; every process calls it.
    """
    names = {package.partition(".")[0] for package in users_packages()}
    there = {name for name in names if Path(name).is_dir() or Path(f"{name}.py").is_file()}
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, TrustedFinder)]
    if there:
        sys.meta_path.append(TrustedFinder(str(Path.cwd()), there))
