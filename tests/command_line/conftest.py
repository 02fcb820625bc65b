"""Fixtures that run the whole program in an empty folder, in this process or as a separate one."""

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tests.forks import Zygote
from trainer import app
from trainer.base.signals import HANDLED, stop_request

PROGRAM = Path(sys.executable).with_name("train")
INSTALLED = (str(PROGRAM),)
_VARIABLES = ("GEARSHIFT_DEBUG", "GEARSHIFT_TRUST", "HYDRA_FULL_ERROR", "DATA_ROOT", "GOMP_SPINCOUNT")
SMALL = ["model=linear", "epochs=2", "batch_size=128", "every.log=3step", "seed=5", "threads=1"]


@dataclass
class Done:
    """Exit code and output of a command line."""

    code: int | str | None
    out: str
    err: str
    seconds: float = 0.0  # CPU time, which other processes on the machine do not prolong

    @property
    def problems(self) -> list[str]:
        """The errors on stderr; asserts that it contains nothing but one-line errors."""
        lines = self.err.splitlines()
        assert all(line.startswith("error: ") for line in lines), self.err
        return [line.removeprefix("error: ") for line in lines]


Train = Callable[..., Done]


def listing(folder: Path) -> dict[str, bytes | None]:
    """Paths below a folder, with the contents of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for name in _VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture
def train(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """`train(*arguments, **variables)` in this process; `variables` of the environment."""
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    threads = torch.get_num_threads()

    root = logging.getLogger()
    level, known = root.level, list(root.handlers)

    def run(*arguments: str, **variables: str) -> Done:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
        GlobalHydra.instance().clear()
        stop_request.forget()
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            app.main()
        captured = capsys.readouterr()
        return Done(leaving.value.code, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    stop_request.leaves, stop_request.advice = False, None
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)
    logging.getLogger("trainer").handlers.clear()
    root.setLevel(level)
    root.handlers[:] = known  # Hydra's --info adds a handler


@pytest.fixture
def process(folder: Path, zygote: Zygote) -> Train:
    """`train(*arguments)` as a separate process: forked from the zygote, or started as `program`."""

    def fork(*arguments: str, **variables: str) -> Done:
        started = zygote.start(arguments, folder, environment=variables, apart=True, spare=True)
        out, err = started.communicate()
        return Done(started.returncode, out, err)

    def run(*arguments: str, program: tuple[str, ...] | None = None, **variables: str) -> Done:
        if program is None:
            return fork(*arguments, **variables)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | variables
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Done(done.returncode, done.stdout, done.stderr, seconds)

    return run


@pytest.fixture
def seconds_of_torch(process: Train) -> float:
    """CPU seconds of importing torch and torchvision, as a measure of the machine's speed."""
    return min(process(program=(sys.executable, "-c", "import torch, torchvision")).seconds for _ in range(3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small completed run; read-only."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train"])
        assert app.run([*SMALL, "hydra.run.dir=run"]) == 0
    return folder / "run"
