"""Starts multiprocessing's fork server so that signals to the process group do not end it."""

from multiprocessing import forkserver, resource_tracker

from trainer.base import signals


def start_fork_server() -> None:
    """Start the server, if it does not run, with signals blocked.

    The processes that it forks call `signals.unblock` once they have handlers.
    """
    with signals.blocked():
        resource_tracker.ensure_running()  # separately, because it unblocks SIGINT and SIGTERM
    with signals.blocked():
        forkserver.ensure_running()
