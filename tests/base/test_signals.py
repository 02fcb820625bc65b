"""Handling of the first and second signal in isolation; tests/faults interrupts whole runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trainer.base.errors import ConfigurationError, DiskError, Diverged, Interrupted
from trainer.base.signals import HANDLED, StopRequest


@pytest.mark.parametrize("signum", HANDLED)
def test_where_nobody_looks_the_first_signal_is_an_exception(signum: int) -> None:
    request = StopRequest()
    with pytest.raises(Interrupted) as caught:
        request.receive(signum)
    assert caught.value.exit_code == 128 + signum
    assert not isinstance(caught.value, Exception), "no one who handles errors may swallow it"


def test_a_loop_that_looks_is_not_disturbed() -> None:
    request = StopRequest()
    request.can_wait = True
    request.receive(signal.SIGTERM)
    assert request.signum == signal.SIGTERM


def test_the_signal_behind_an_error() -> None:
    request = StopRequest()
    failed = ImportError("cannot load module more than once per process")
    assert request.behind(failed) is None
    with pytest.raises(Interrupted) as caught:
        request.receive(signal.SIGTERM)
    assert request.behind(caught.value) is caught.value
    for consequence in (failed, ConfigurationError("model: cannot be imported"), AttributeError("half a module")):
        stop = request.behind(consequence)
        assert stop is not None and stop.exit_code == 143
    assert [request.behind(error) for error in (DiskError("full"), OSError("full"), Diverged("nan"))] == [None] * 3


def test_a_signal_that_is_waited_for_is_behind_no_error() -> None:
    request = StopRequest()
    request.can_wait = True
    request.receive(signal.SIGTERM)
    assert request.behind(ImportError("no such module")) is None


INT, TERM, HUP, USR1, USR2 = HANDLED
# signals with the seconds at which they come, and the exit code with which the process is gone at once, if it is
SEQUENCES = [
    ([(INT, 0), (INT, 0.1)], 130),
    ([(INT, 0), (INT, 60)], 130),
    ([(USR1, 0), (INT, 1), (INT, 1.5)], 130),
    ([(TERM, 0), (TERM, 2.1)], 143),
    ([(HUP, 0), (HUP, 1), (HUP, 1.9), (HUP, 2.1)], 129),
    ([(USR1, 0), (TERM, 30), (TERM, 33)], 143),
    ([(USR2, 0), (USR2, 3)], 140),
    ([(TERM, 0), (TERM, 0.1), (TERM, 1.9)], None),
    ([(USR1, 0), (TERM, 60)], None),
    ([(USR1, 0), (TERM, 60), (TERM, 61), (INT, 90), (HUP, 100), (USR2, 200)], None),
    ([(TERM, 0), (INT, 5)], None),
]


@pytest.mark.parametrize(("signals_at", "code"), SEQUENCES)
@pytest.mark.parametrize("can_wait", [False, True])
def test_what_leaves_at_once_and_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    can_wait: bool,
    signals_at: list[tuple[int, float]],
    code: int | None,
) -> None:
    request, codes, now = StopRequest(), [], [0.0]
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    request.can_wait, request.advice = True, "run folder: runs/a b; to continue: train resume 'runs/a b'"
    for signum, seconds in signals_at:
        assert codes == []
        now[0] = seconds
        request.receive(signum)
        request.can_wait = can_wait  # the loop has seen the first one and saves
    assert codes == ([] if code is None else [code])
    how = "" if code is None else f"stopped at once by {signal.Signals(code - 128).name}, without saving"
    assert capfd.readouterr().err == (how and f"{how}; {request.advice}\n")
    assert request.signum == signals_at[0][0]


def test_before_a_run_has_begun_and_after_it_every_signal_leaves_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Gone(BaseException):
        pass

    def leave(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr(os, "_exit", leave)
    for signum in HANDLED:
        request = StopRequest()
        request.leaves = True
        with pytest.raises(Gone) as caught:
            request.receive(signum)
        assert caught.value.args == (128 + signum,)
    assert capfd.readouterr() == ("", "")


def test_what_is_ignored_at_the_start_stays_ignored() -> None:
    """As `nohup` and shells set it."""
    program = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
from trainer.base import signals
signals.install()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGINT)
print(signals.stop_request.signum, signals.heeded() == [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
signals.install([signal.SIGHUP])
signals.stop_request.can_wait = True
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGHUP)
print(signals.stop_request.signum)
with signals.blocked():
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    signals.stop_request.forget()
print(signals.stop_request.signum)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("None True\n1\nNone\n", "")


def test_ctrl_c_while_our_modules_load_prints_nothing() -> None:
    """Sent by the import of each module that `main` loads before errors are reported."""
    program = """
import os, signal, sys
class Sends:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), NUMBER)
sys.meta_path.insert(0, Sends())
sys.argv = ["train", "--version"]
from trainer.app import main
main()
"""
    cases = [("trainer.base.signals", INT), ("trainer.launching", INT), ("trainer.reporting.console", TERM),
             ("trainer.commands", INT)]  # fmt: skip
    for module, signum in cases:
        text = program.replace("MODULE", repr(module)).replace("NUMBER", str(int(signum)))
        ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signum, "", ""), module


def test_a_signal_that_meets_a_finalizer_is_not_lost() -> None:
    """Python prints exceptions raised there and continues."""
    program = """
import os, signal, sys, time
from trainer.base import signals
from trainer.reporting.console import exit_on_error
signals.install()
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
with exit_on_error():
    thing = Finalized()
    del thing
    print("passed over", flush=True)
    time.sleep(1000)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "passed over\n", "")


def test_both_signals_are_heard_before_torch_is_imported() -> None:
    program = (
        "import sys, os, signal; from trainer.base import signals; signals.install(); "
        "from trainer.reporting.console import exit_on_error\n"
        "with exit_on_error():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not reached')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, trainer.app; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert loaded.stdout == "False\n"
