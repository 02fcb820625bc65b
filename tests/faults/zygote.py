"""A process that has imported everything and forks runs: a start costs tenths of a second, not five.

Started by `harness.Zygote`. Reads one JSON job a line from stdin, forks `train` with its arguments and answers
with two lines: the process id at once, the wait status at the end. A job may carry a fault (see `faults.py`).
"""

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    _warm_up()
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print("ready", file=answer)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _exit_with(_run, job)
        print(child, file=answer)
        _, status = os.waitpid(child, 0)
        print(status, file=answer)


def _warm_up() -> None:
    """Import and use once what a run would otherwise import: torch's compiler comes with any optimizer."""
    import hydra  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from trainer.reporting.curves import draw_curves
    from trainer.reporting.tensorboard import draw_confusion_matrix

    with tempfile.TemporaryDirectory() as folder:
        draw_curves([{"step": 1, "epoch": 1.0, "train/loss": 1.0}], Path(folder, "curves.png"), "warm")
    draw_confusion_matrix(torch.ones(2, 2), ["a", "b"])


def _run(job: dict[str, Any]) -> int:
    _redirect(job["output"], job["terminal"])
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    sys.path[:0] = filter(None, job["environment"].get("PYTHONPATH", "").split(os.pathsep))
    _set_clock_forward(2.0 * job["sitting"])
    sys.argv = ["train", *job["arguments"]]
    if job["fault"] is not None:
        import faults

        faults.install(job["fault"])
    from trainer.app import main

    try:
        main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _redirect(path: str, terminal: str | None) -> None:
    if terminal is not None:
        os.setsid()  # the first terminal that is opened now is the controlling one: Ctrl-C comes from it
        descriptors = [os.open(terminal, os.O_RDWR)] * 3
        os.environ.update(TERM="xterm-256color")
        os.environ.pop("CI", None)
    else:
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        descriptors = [os.open(os.devnull, os.O_RDONLY), output, output]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)


def _set_clock_forward(seconds: float) -> None:
    """Event files are named after the second, and a run waits for the next one: every sitting has its own."""
    now = time.time
    time.time = lambda: now() + seconds


def _exit_with(run: Any, job: dict[str, Any]) -> None:
    code = 1
    try:
        code = run(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
