"""Atomic writing of cache files, so that a partial file never has the final name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Context manager: descriptor and temporary name of a new file, which is renamed to `path` on success.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        yield descriptor, Path(temporary)
        os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError."""
    with whole_file(path) as (descriptor, _), os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
