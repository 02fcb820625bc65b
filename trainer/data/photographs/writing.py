"""Files of the cache: written under another name first, so that a name never holds half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Descriptor and temporary name of a new file that gets its name `path` when all went well. Raises OSError."""
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
    """Write all of a file, or nothing. Raises OSError."""
    with whole_file(path) as (descriptor, _), os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
