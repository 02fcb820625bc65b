"""Python's garbage collector while libraries are imported.

It would look through hundreds of thousands of new objects again and again, none of which is garbage: a sixth of the
processor time of a small run.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_is_paused = False


@contextmanager
def pausing_collection() -> Iterator[None]:
    """Inside, nothing is collected until `resume_collection`."""
    global _is_paused
    if not gc.isenabled():
        yield
        return
    gc.disable()
    _is_paused = True
    try:
        yield
    finally:
        if _is_paused:
            _is_paused = False
            gc.enable()


def resume_collection() -> None:
    """Collect from here on, if collection was paused; what exists already is not looked at again."""
    global _is_paused
    if _is_paused:
        _is_paused = False
        gc.freeze()
        gc.enable()
