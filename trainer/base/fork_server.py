"""Starts multiprocessing's fork server so that signals to the process group do not end it, and so that no file of the
current folder is imported in place of one of Python's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

from trainer.base import signals


def start_fork_server() -> None:
    """Start the server, if it does not run, with signals blocked.

    The processes that it forks call `signals.unblock` once they have handlers.
    """
    with _without_current_folder():
        with signals.blocked():
            resource_tracker.ensure_running()  # separately, because it unblocks SIGINT and SIGTERM
        with signals.blocked():
            forkserver.ensure_running()


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """Python puts the current folder first on the path of what is started with `-c`, before its own modules. The
    processes that are forked get the path of this one."""
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
