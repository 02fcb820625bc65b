"""A process that has imported everything and forks others: a start takes tenths of a second instead of five.

Started by `tests.forks.Zygote`. Reads one JSON job per line from stdin, forks a process for it and answers with its
process id; answers `{"reap": id}` with the wait status once that process has ended. A job is a command line of `train`,
optionally with a fault (see `faults.py`), Python code, or a pickled function.
"""

import fcntl
import gc
import json
import os
import pickle
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import Any

from tests import forked_servers, quick_hydra


def main() -> None:
    _warm_up()
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    assert threads == 1, f"{threads} threads: a fork has only the one that forks, and locks of the others stay taken"
    gc.collect()
    gc.freeze()  # forks do not write to shared pages in garbage collection
    listener = forked_servers.listen()
    forked_servers.install(listener)
    print("ready", file=answer)
    servers: set[int] = set()
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [], 1.0 if servers else None)
        servers -= {pid for pid in servers if os.waitpid(pid, os.WNOHANG)[0]}
        if listener in ready:
            servers.add(_fork_server(listener))
        if sys.stdin in ready:  # one line: the next is written when this one is answered
            if not (line := sys.stdin.readline()):
                return
            job = json.loads(line)
            if "reap" in job:
                print(os.waitpid(job["reap"], 0)[1], file=answer)
            elif child := os.fork():
                print(child, file=answer)
            else:
                _exit_with(_call if "call" in job else _run, job)


def _fork_server(listener: socket.socket) -> int:
    """Fork the parameter server that a process asks for; returns its process id."""
    connection, _ = listener.accept()
    with connection:
        note, descriptors = forked_servers.read_request(connection)
        if not (child := os.fork()):
            connection.close()
            _exit_with(lambda _: forked_servers.serve(note, descriptors), None)
        connection.send(str(child).encode())
    for descriptor in descriptors:
        os.close(descriptor)
    return child


def _warm_up() -> None:
    """Import and use everything that a run would. Unlike a run on one device, which tests/test_start_up.py verifies,
    ranks import torch's compiler."""
    import hydra  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from trainer.reporting.curves import draw_curves
    from trainer.reporting.tensorboard import draw_confusion_matrix

    quick_hydra.install()
    with tempfile.TemporaryDirectory() as folder:
        draw_curves([{"step": 1, "epoch": 1.0, "train/loss": 1.0}], Path(folder, "curves.png"), "warm")
    draw_confusion_matrix(torch.ones(2, 2), ["a", "b"])
    _warm_up_a_step()


def _warm_up_a_step() -> None:
    import torch

    import trainer.hydra_entry.hydra
    import trainer.hydra_entry.jobs
    import trainer.hydra_entry.preflight
    import trainer.training.loop  # noqa: F401
    from trainer import compose
    from trainer.assembly.assemble import build_run
    from trainer.configuration.resolve import resolve
    from trainer.training.step import train_step

    generator = torch.get_rng_state()
    run = build_run(resolve(compose(["model=lenet", "steps=1", "threads=1", "device=cpu"])))
    train_step(run, next(iter(run.batches.epoch(0, 0))))
    torch.set_deterministic_debug_mode("default")
    torch.set_rng_state(generator)


def _run(job: dict[str, Any]) -> int:
    _redirect(job)
    os.chdir(job["cwd"])
    _change_environment(job["environment"])
    if not job["pictures"]:
        _draw_nothing()
    if job["spare"]:
        _keep_a_spare()
    if job["sitting"]:
        _set_clock_forward(2.0 * job["sitting"])
    sys.argv = ["train", *job["arguments"]]
    if job["fault"] is not None:
        import faults

        faults.install(job["fault"])
    if job["code"] is not None:
        return _code_of(lambda: exec(job["code"], {"__name__": "__main__"}))
    from trainer.app import main

    return _code_of(main)


def _code_of(main: Callable[[], Any]) -> int:
    try:
        main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _call(job: dict[str, Any]) -> int:
    _redirect(job | {"terminal": None, "session": False})
    os.chdir(job["cwd"])
    _change_environment(job["environment"])
    sys.path[:] = job["path"]
    function, arguments = pickle.loads(Path(job["call"]).read_bytes())
    function(*arguments)
    return 0


def _draw_nothing() -> None:
    """Skip drawing, which takes two thirds of a short run. Applies to ranks, too, which are forked later."""
    import numpy

    import trainer.reporting.tensorboard
    import trainer.training.finish
    from trainer.storage.files import write_atomic

    trainer.training.finish.draw_curves = lambda records, path, *others: write_atomic(path, b"a picture")
    trainer.reporting.tensorboard.draw_confusion_matrix = lambda *others: numpy.zeros((8, 8, 3), numpy.uint8)


def _change_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))


def _redirect(job: dict[str, Any]) -> None:
    if job["terminal"] is not None:
        os.setsid()  # the first terminal that is opened next becomes the controlling terminal, which delivers Ctrl-C
        descriptors = [os.open(job["terminal"], os.O_RDWR)] * 3
        job["environment"].update(TERM="xterm-256color")
        job["environment"].pop("CI", None)
    else:
        if job["session"]:
            os.setsid()
        names = [(os.devnull, os.O_RDONLY), *((job[key], os.O_WRONLY | os.O_APPEND) for key in ("out", "err"))]
        descriptors = [os.open(name, flags) for name, flags in names]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in {*descriptors} - {0, 1, 2}:
        os.close(descriptor)


def _set_clock_forward(seconds: float) -> None:
    """Event files are named after the second, and a run waits for the next one: every start gets a new time."""
    now = time.time
    time.time = lambda: now() + seconds


# --- servers of multiprocessing ---------------------------------------------------------------------------


def _keep_a_spare() -> None:
    """Fork a process in this initial state and use it for the next fork server that multiprocessing would start: it is
    a child of this process, too, and has everything imported."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        _exit_with(_be_started, there)
    there.close()
    spawn = util.spawnv_passfds

    def start(path: str, arguments: list[str], descriptors: list[int]) -> int:
        if "forkserver" not in arguments[-1] or here.fileno() < 0:
            return spawn(path, arguments, descriptors)
        held = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        note = {"code": arguments[-1], "environment": dict(os.environ), "blocked": held, "numbers": descriptors}
        socket.send_fds(here, [json.dumps(note).encode()], descriptors)
        here.close()
        return child

    util.spawnv_passfds = start


def _be_started(there: socket.socket) -> int:
    """Wait for the code to run, and for descriptors with the numbers that it expects."""
    text, descriptors, _, _ = socket.recv_fds(there, 1 << 20, 16)
    there.close()
    if not text:
        return 0
    note = json.loads(text)
    # first to numbers above all in use, then to the expected ones, which were free when this process was forked
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 200) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, note["numbers"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(note["environment"])
    signal.pthread_sigmask(signal.SIG_BLOCK, note["blocked"])
    return _code_of(lambda: exec(note["code"], {"__name__": "__main__"}))


def _exit_with(run: Callable[[Any], int], job: Any) -> None:
    code = 1
    try:
        code = run(job)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # Python's own exit code if it cannot flush a stream
        os._exit(code)


if __name__ == "__main__":
    main()
