"""SIGTERM, SIGINT and Ctrl-C: the first finishes the step and saves, the second exits at once."""

import json
import os
import pty
import select
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from harness import CONFIGURATIONS, but, differences, finish, train, wait_for_lines

from tests.forks import TIME_LIMIT, Fork, Zygote

ENDLESS = but(CONFIGURATIONS["adamw"], "steps=1000000", "early_stopping=null", "schedule=constant")
SIGNALS = [signal.SIGTERM, signal.SIGINT]
OTHERS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
HIDES, SHOWS = b"\x1b[?25l", b"\x1b[?25h"


@pytest.mark.parametrize("signum", SIGNALS + OTHERS)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    zygote: Zygote, tmp_path: Path, signum: signal.Signals
) -> None:
    run = tmp_path / "a run"
    process = zygote.start([*ENDLESS, f"hydra.run.dir={run}"], tmp_path)
    wait_for_lines(process, run, 3)
    os.kill(process.pid, signum)
    assert finish(process) == 128 + signum
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", 128 + signum)
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["stateful"]["progress"]["step"] == result["steps"]
    last_line = process.output().splitlines()[-1]
    assert last_line.startswith("to continue: train resume ") and last_line.endswith("a run'")
    assert "Traceback" not in process.output()


# the eleventh step takes a quarter of an hour; files report that it has begun and that a signal has arrived
SLOW = """
import pathlib, time
from torch import nn
from trainer.base.signals import stop_request

class Slow(nn.Flatten):
    calls = 0

    def forward(self, images):
        if self.training and images.device.type == "cpu":
            self.calls += 1
            if self.calls > 10:
                pathlib.Path("asleep").touch()
                for _ in range(100_000):
                    time.sleep(0.01)
                    if stop_request.signum is not None:
                        pathlib.Path("asked").touch()
        return super().forward(images)

def slow(input_shape, num_outputs):
    return nn.Sequential(Slow(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_outputs))
"""


def start_slow_run(zygote: Zygote, folder: Path, terminal: str | None = None) -> Fork:
    (folder / "slow_model.py").write_text(SLOW)
    (folder / "options/model").mkdir(parents=True)
    (folder / "options/model/slow.yaml").write_text("# slow\n_target_: slow_model.slow\n")
    arguments = ["--config-dir", "options", "model=slow", "hydra.run.dir=run"]
    environment = {"GEARSHIFT_TRUST": "slow_model", "PYTHONPATH": str(folder)}
    return zygote.start(arguments, folder, environment=environment, terminal=terminal)


def wait_for_file(process: Fork, path: Path) -> None:
    while not path.exists():
        assert process.wait(0.01) is None, process.output()


def test_a_second_ctrl_c_leaves_at_once(zygote: Zygote, tmp_path: Path) -> None:
    process = start_slow_run(zygote, tmp_path)
    wait_for_file(process, tmp_path / "asleep")
    os.kill(process.pid, signal.SIGINT)
    wait_for_file(process, tmp_path / "asked")
    for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):  # as a scheduler warns, and then stops
        os.kill(process.pid, signum)
    assert process.wait(0.5) is None, "the first one waits for the step"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert process.output().splitlines()[-1] == (
        "stopped at once by SIGINT, without saving; run folder: run; to continue: train resume run"
    )


def test_a_closed_terminal_saves(zygote: Zygote, tmp_path: Path) -> None:
    """Nothing can be printed on it any more."""
    master, slave = pty.openpty()
    process = zygote.start([*ENDLESS, "hydra.run.dir=run"], tmp_path, terminal=os.ttyname(slave))
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert process.wait(0.01) is None
        if select.select([master], [], [], 0.01)[0]:
            os.read(master, 65536)
    os.close(slave)  # not before the run has opened it: nothing can be read from a terminal that nobody holds
    os.close(master)
    assert finish(process) == 129
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", 129)
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["step"] == result["steps"]


# functions during which a signal arrives, in the order of a run up to training
EARLY = [
    "trainer.configuration.compose.finalize",
    "trainer.configuration.resolve.resolve",
    "trainer.storage.run_folder.write_configuration",
    "trainer.storage.run_folder._move_into_place",
    "trainer.assembly.data.load_data",
    "trainer.assembly.weights.make_model",
    "trainer.assembly.run_folder_of.record_environment",
]


def test_a_signal_before_training_leaves_nothing_half_made(zygote: Zygote, tmp_path: Path) -> None:
    for number, function in enumerate(EARLY):
        signum = [*SIGNALS, *OTHERS][number % 5]
        home = tmp_path / str(number)
        home.mkdir()
        fault = {"signal": int(signum), "during": function}
        code, output = train(zygote, home, *CONFIGURATIONS["adamw"], "hydra.run.dir=made/run", fault=fault)
        made = number > EARLY.index("trainer.storage.run_folder._move_into_place")
        words = f"stopped by {signum.name}; run folder: made/run; to continue: train resume made/run\n" if made else ""
        assert (code, output) == (128 + signum, words), function
        assert [path.name for path in home.iterdir()] == (["made"] if made else []), function
        if made:
            assert [path.name for path in (home / "made").iterdir()] == ["run"], function
            assert train(zygote, home, "resume", "made/run", sitting=1)[0] == 0, function


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_gives_the_terminal_back(zygote: Zygote, tmp_path: Path, times: int) -> None:
    """Pressed once while steps are taken, or twice in a step that does not end."""
    screen, presses = b"", 0
    master, slave = pty.openpty()
    if times == 1:
        process = zygote.start([*ENDLESS, "hydra.run.dir=run"], tmp_path, terminal=os.ttyname(slave))
    else:
        process = start_slow_run(zygote, tmp_path, terminal=os.ttyname(slave))
    # a second press before the first one is handled would be merged with it
    acknowledged = [tmp_path / "run/metrics.jsonl"] if times == 1 else [tmp_path / "asleep", tmp_path / "asked"]
    while process.wait(0) is None:
        if select.select([master], [], [], 0.01)[0]:
            screen += os.read(master, 65536)
        if HIDES in screen and presses < times and acknowledged[presses].exists():
            os.write(master, b"\x03")
            presses += 1
    os.close(slave)
    with suppress(OSError):  # Linux raises it once the other side is closed and everything has been read
        while select.select([master], [], [], TIME_LIMIT)[0]:
            screen += os.read(master, 65536)
    os.close(master)
    assert (finish(process), presses) == (130, times), screen
    assert screen.rfind(SHOWS) > screen.rfind(HIDES) >= 0, "the cursor is shown again"
    assert b"to continue: train resume run" in screen


@pytest.mark.parametrize(
    ("function", "as_import"),
    [
        ("trainer.training.finish.evaluate", False),
        ("trainer.training.finish.confusion_matrix", False),
        ("trainer.training.finish.confusion_matrix", True),
    ],
)
def test_a_signal_at_the_end_leaves_the_end_to_be_done_again(
    zygote: Zygote, tmp_path: Path, function: str, as_import: bool
) -> None:
    """The signal may arrive during an import; steps that would need another import are skipped."""
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert train(zygote, tmp_path, *CONFIGURATIONS["adamw"], f"hydra.run.dir={reference}")[0] == 0
    fault = {"signal": int(signal.SIGTERM), "during": function, "as_import": as_import}
    code, output = train(zygote, tmp_path, *CONFIGURATIONS["adamw"], f"hydra.run.dir={run}", fault=fault)
    assert code == 143
    assert output.splitlines()[-1] == "to continue: train resume run"
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["exit_code"], result["test"]) == ("interrupted", 143, None)
    assert not (run / "curves.png").exists()
    assert train(zygote, tmp_path, "resume", str(run), sitting=1)[0] == 0
    assert differences(reference, run) == []
