"""Runs of one process take turns: they share torch's generator, threads and settings."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def turn() -> Iterator[None]:
    """Context manager that other threads wait for: a run in one of them would draw from the same generator."""
    with _LOCK:
        yield
