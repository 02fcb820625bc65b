"""Handling of the first and second signal in isolation; tests/faults interrupts whole runs."""

import os
import signal
import subprocess
import sys

import pytest

from trainer.base.errors import ConfigurationError, DiskError, Diverged, Interrupted
from trainer.base.signals import StopRequest


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
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


@pytest.mark.parametrize("can_wait", [False, True])
def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch, can_wait: bool) -> None:
    request, codes = StopRequest(), []
    monkeypatch.setattr(os, "_exit", codes.append)
    request.can_wait = True
    request.receive(signal.SIGTERM)
    request.can_wait = can_wait
    try:
        request.receive(signal.SIGINT)
    except Interrupted:
        assert codes, "the process was to be gone"
    assert codes == [130]


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
