"""The process of a rank started by the launcher."""

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from trainer.base import signals, streams
from trainer.base.config import JsonObject
from trainer.base.rank import RankInfo, take
from trainer.base.trusted_packages import see_trusted_packages
from trainer.launching.failures import describe
from trainer.launching.job import Job, distributed, leave, work
from trainer.reporting.console import ignore_deprecations_inside_torch
from trainer.storage import run_folder

BEAT = 1.0  # seconds between heartbeats


def rank_process(
    pipe: Connection, info: RankInfo, store: str, job: Job, environment: dict[str, str], heeded: list[int]
) -> None:
    """Entry point of a rank's process: execute the job and send its result or failure to the launcher.

    `heeded` are the signals that the launcher does not ignore; all of them are blocked until here.
    """
    os.setsid()  # Ctrl-C at the terminal reaches only the launcher, which forwards it once
    os.environ.update(environment)
    see_trusted_packages()
    # by default gloo uses the interface of the host name; these ranks are on one machine
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    signals.install(heeded)
    signals.unblock()
    send_lock = threading.Lock()
    threading.Thread(target=_die_with_launcher, args=(pipe,), daemon=True).start()
    log = Path(job.folder, "ranks", f"{info.rank}.log")
    if info.rank != 0:
        _redirect_output(log)
    message = _live(info, store, job, log, threading.Thread(target=_beat, args=(pipe, send_lock), daemon=True))
    with send_lock, suppress(OSError):
        pipe.send(message)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # without waiting for threads that hang in a collective with a lost rank


Ending = tuple[str, JsonObject | None] | tuple[str, str, str]
"""done and the result, or failed with the kind of failure and a line."""


def _live(info: RankInfo, store: str, job: Job, log: Path, beat: threading.Thread) -> Ending:
    try:
        beat.start()  # after the first heartbeat the launcher forwards signals; their exceptions are caught here
        take(info, lambda: distributed().FileStore(store, info.world_size))
        streams.prepare()
        ignore_deprecations_inside_torch()
        result = work(job, run_folder.HeldLock())
        leave()
        return ("done", None if result is None else asdict(result))
    except BaseException as error:
        with suppress(OSError), log.open("a") as file:
            traceback.print_exception(error, file=file)
        if os.environ.get("GEARSHIFT_DEBUG") and info.rank == 0:
            traceback.print_exception(error)
        return ("failed", *describe(error, log))
    finally:
        signals.stop_request.can_wait = True  # further signals must not prevent sending the result


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _beat(pipe: Connection, send_lock: threading.Lock) -> None:
    while True:
        with send_lock, suppress(OSError):
            pipe.send(("beat",))
        time.sleep(BEAT)


def _die_with_launcher(pipe: Connection) -> None:
    """Exit when the launcher is gone: it never sends anything, so `recv` returns only at end of file."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
