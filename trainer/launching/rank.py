"""The life of a rank that the launcher started."""

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from trainer.base import signals
from trainer.base.config import JsonObject
from trainer.base.rank import RankInfo, take
from trainer.launching.failures import told
from trainer.launching.job import Job, distributed, leave, work
from trainer.reporting.console import ignore_deprecations_inside_torch, outlive_readers
from trainer.storage import run_folder

BEAT = 1.0  # seconds between two signs of life


def rank_process(pipe: Connection, info: RankInfo, store: str, job: Job, environment: dict[str, str]) -> None:
    """The life of a rank that the launcher started."""
    os.setsid()  # a Ctrl-C at the terminal reaches the launcher alone, which passes it on once
    os.environ.update(environment)
    # gloo would listen on the interface that the host's name leads to; these ranks share one machine
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    signals.install()
    mouth = threading.Lock()
    threading.Thread(target=_die_with_launcher, args=(pipe,), daemon=True).start()
    log = Path(job.folder, "ranks", f"{info.rank}.log")
    if info.rank != 0:
        _speak_into(log)
    message = _live(info, store, job, log, threading.Thread(target=_beat, args=(pipe, mouth), daemon=True))
    with mouth, suppress(OSError):
        pipe.send(message)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # what hangs in a collective with a rank that is gone is not waited for


Ending = tuple[str, JsonObject | None] | tuple[str, str, str]
"""done and the result, or failed with the kind of failure and a line."""


def _live(info: RankInfo, store: str, job: Job, log: Path, beat: threading.Thread) -> Ending:
    try:
        beat.start()  # from the first beat on the launcher passes signals on: what they raise is caught here
        take(info, lambda: distributed().FileStore(store, info.world_size))
        outlive_readers()
        ignore_deprecations_inside_torch()
        result = work(job, run_folder.HeldLock())
        leave()
        return ("done", None if result is None else asdict(result))
    except BaseException as error:
        with suppress(OSError), log.open("a") as file:
            traceback.print_exception(error, file=file)
        if os.environ.get("GEARSHIFT_DEBUG") and info.rank == 0:
            traceback.print_exception(error)
        return ("failed", *told(error, log))
    finally:
        signals.stop_request.can_wait = True  # how it ended is told, whatever comes now


def _speak_into(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _beat(pipe: Connection, mouth: threading.Lock) -> None:
    while True:
        with mouth, suppress(OSError):
            pipe.send(("beat",))
        time.sleep(BEAT)


def _die_with_launcher(pipe: Connection) -> None:
    """The launcher never says anything: when reading ends, it is gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
