"""Ranks started by srun: its variables, what is refused, and a real Slurm of two nodes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.launching.test_launching import ENVIRONMENT, end, free_port, start
from trainer.base.errors import ConfigurationError, RankLost
from trainer.base.rank import RankInfo
from trainer.launching import given
from trainer.launching.slurm import STEP, first_host, see_slurm

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without variables of Slurm or torchrun, before and after."""
    with monkeypatch.context() as context:
        for name in list(os.environ):
            if name in VARIABLES or name.startswith(("SLURM_", "GROUP_")):
                context.delenv(name)
        yield context
        for name in (*VARIABLES, STEP):
            os.environ.pop(name, None)


def task(environment: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in {"JOB_ID": 1, "STEP_ID": 0, "PROCID": 0, "LOCALID": 0, "NODEID": 0, **variables}.items():
        environment.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"NUM_TASKS": 4, "NUM_NODES": 2, "TASKS_PER_NODE": "2(x2)"}, ("3", "4", "1", "2", "n1")),
        # dealt in turn, so that task 1 is the first one of the second node
        ({"NUM_TASKS": 4, "NUM_NODES": 2, "TASKS_PER_NODE": "2(x2)", "first": 1}, ("2", "4", "0", "2", "n1")),
        ({"NUM_TASKS": 2, "NUM_NODES": 1, "TASKS_PER_NODE": "2", "alone": 1}, ("1", "2", "1", "2", "127.0.0.1")),
    ],
)
def test_ranks_are_counted_by_node(
    variables: dict[str, object], rank: tuple[str, ...], environment: pytest.MonkeyPatch
) -> None:
    local, node = 0 if variables.pop("first", 0) else 1, 0 if variables.pop("alone", 0) else 1
    step = {f"STEP_{name}": value for name, value in variables.items()}
    task(environment, PROCID=1, LOCALID=local, NODEID=node, STEP_NODELIST="n[1-2]", **step)
    see_slurm()
    assert tuple(os.environ[name] for name in VARIABLES[:-1]) == rank


@pytest.mark.parametrize(
    ("per_node", "tasks", "nodes"), [("2,1", 3, 2), ("1,2", 3, 2), ("2(x2),1", 5, 3), ("3,1(x3)", 6, 4)]
)
def test_unequal_tasks_are_refused_in_one_line(
    per_node: str, tasks: int, nodes: int, environment: pytest.MonkeyPatch
) -> None:
    step = {"STEP_NUM_TASKS": tasks, "STEP_NUM_NODES": nodes, "STEP_TASKS_PER_NODE": per_node}
    task(environment, **step)
    with pytest.raises(ConfigurationError, match=f"different numbers of tasks \\({per_node[0]}"):
        see_slurm()
    task(environment, **step, PROCID=1)
    with pytest.raises(SystemExit) as caught:
        see_slurm()
    assert caught.value.code == 2


def test_default_ports_are_not_those_that_the_system_assigns(environment: pytest.MonkeyPatch) -> None:
    for job, step in ((1, 0), (7, 99), (20_000, 0), (4_000_000, 4_294_967_290)):
        task(environment, JOB_ID=job, STEP_ID=step, STEP_NUM_TASKS=2, STEP_NUM_NODES=1)
        see_slurm()
        assert 15_000 <= int(os.environ["MASTER_PORT"]) < 29_400  # Linux assigns from 32768, torchrun uses 29400, 29500
        for name in VARIABLES:
            del os.environ[name]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("node[01-04,07]", "node01"), ("a[3,5]b,c", "a3b"), ("a,b[1-2]", "a"), ("r[0-1]n[3-6]", "r0n3")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_what_keeps_ranks_from_finding_each_other_is_one_line(environment: pytest.MonkeyPatch) -> None:
    """Before torch is asked, which would try and warn for minutes."""

    def unknown(host: str, port: int) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def ranks(local: int, size: int, host: str = "127.0.0.1", **more: str) -> None:
        numbers = {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": host}
        for name, value in {**numbers, **more}.items():
            environment.setenv(name, str(value))
        given.Bus()

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        with pytest.raises(
            ConfigurationError, match=rf"MASTER_PORT={port}: cannot be used .*[Aa]ddress already in use"
        ):
            ranks(0, 2, MASTER_PORT=port)
    with pytest.raises(ConfigurationError, match="torchrun: 2 of 3 processes are on this machine"):
        ranks(0, 3, MASTER_PORT=port, GROUP_WORLD_SIZE="2")
    with pytest.raises(SystemExit):
        ranks(1, 3, MASTER_PORT=port, GROUP_WORLD_SIZE="2")
    environment.delenv("GROUP_WORLD_SIZE")
    environment.setattr(given.socket, "getaddrinfo", unknown)
    for local in (0, 1):
        with pytest.raises(ConfigurationError, match="MASTER_ADDR=n1: this name of the machine of rank 0 is not known"):
            ranks(local, 2, "n1", MASTER_PORT=port)


def test_a_rank_without_rank_0_says_where_it_looked(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(given, "_PATIENCE", 0.2)
    bus = object.__new__(given.Bus)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "12345")):
        environment.setenv(name, value)
    assert str(bus._unreachable(RankInfo(1, 2, 1, 2))) == "rank 1: found no rank 0 at 127.0.0.1:12345 within 0.2 s"


def mute(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(60)


def closing(connection: socket.socket, ended: threading.Event) -> None:
    connection.close()


def speaking(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    ended.wait(60)


@pytest.mark.parametrize("answer", [mute, closing, speaking])
def test_a_rank_knows_soon_that_another_program_has_the_port_of_rank_0(
    environment: pytest.MonkeyPatch, answer: Callable[[socket.socket, threading.Event], None]
) -> None:
    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = other.accept()
                threading.Thread(target=answered, args=(connection,), daemon=True).start()

    def answered(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            answer(connection, ended)

    ended = threading.Event()
    environment.setattr(given, "_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = str(other.getsockname()[1])
        begin = time.monotonic()
        with pytest.raises(ConfigurationError, match=rf"^rank 1: another program answers at 127\.0\.0\.1:{port}, and"):
            rank_1(environment, port)
        assert time.monotonic() - begin < 20
        other.shutdown(socket.SHUT_RDWR)
    ended.set()
    thread.join()


def test_a_rank_knows_soon_that_the_store_is_of_another_run(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(given, "_ANSWER", 0.3)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(ConfigurationError, match=r"^rank 1: the store of another run answers at 127\.0\.0\.1:"):
        rank_1(environment, str(store.port))


def test_a_rank_waits_until_rank_0_listens(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A node may start later than others."""
    environment.setattr(given, "_NOTICE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stores = []

    def begin() -> None:
        time.sleep(0.3)
        stores.append(torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
        torch.distributed.PrefixStore("gearshift0/", stores[0]).set("begun", "yes")

    thread = threading.Thread(target=begin)
    thread.start()
    rank_1(environment, str(port))
    thread.join()
    assert capsys.readouterr().err == f"rank 1: looks for rank 0 at 127.0.0.1:{port}, up to 300 s\n"
    environment.setattr(given, "_PATIENCE", 0.2)
    del stores[:]
    with pytest.raises(RankLost, match=r"^rank 1: found no rank 0 at 127\.0\.0\.1:1 within"):
        rank_1(environment, "1")


def rank_1(environment: pytest.MonkeyPatch, port: str) -> None:
    numbers = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        environment.setenv(name, value)
    given.Bus()


@pytest.mark.slow
def test_a_busy_port_ends_all_ranks_soon(tmp_path: Path) -> None:
    shared = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost",
              "SLURM_JOB_ID": "1"}  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as busy:
        shared["MASTER_PORT"] = str(busy.getsockname()[1])
        begin = time.monotonic()
        tasks = [start(tmp_path, "parallelism=ddp", **shared, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
                 for rank in range(2)]  # fmt: skip
        codes, errors = zip(*((code, err) for code, _, err in map(end, tasks)), strict=True)
    assert codes == (2, 2), errors
    assert "cannot be used on" in errors[0] and "another program answers at" in errors[1]
    assert [len(error.splitlines()) for error in errors] == [1, 1], errors
    assert time.monotonic() - begin < 90
    assert list(tmp_path.iterdir()) == []


# --- a real Slurm -------------------------------------------------------------------------------------------

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "runuser")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which srun finds two nodes."""
    if os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("no Slurm here (Debian, as root: apt-get install slurm-wlm slurm-wlm-basic-plugins munge)")
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("slurm_two_nodes.sh")
    with (folder / "start.log").open("w") as log:  # the daemons keep it open
        started = subprocess.run([script, folder, str(free_port())], stdout=log, stderr=log, check=False)
    try:
        assert started.returncode == 0, (folder / "start.log").read_text()
        ours = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        yield ours | ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        for path in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGTERM)


WORDS = [sys.executable, "-m", "trainer", "parallelism=ddp", "device=cpu", "threads=1", "model=linear", "steps=20",
         "hydra.run.dir=run"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "variables", "code", "line"),
    [
        ("-N2 -n4 --overcommit --distribution=cyclic", {"MASTER_ADDR": "127.0.0.1"}, 0, "parallelism: ddp, 4 ranks"),
        ("-N2 -n3", {}, 2, "error: srun: the nodes have different numbers of tasks (2,1)"),
        ("-N2 -n2", {"MASTER_ADDR": "no-such-host.invalid"}, 2, "error: MASTER_ADDR=no-such-host.invalid: this name"),
    ],
)
def test_two_nodes(
    tasks: str, variables: dict[str, str], code: int, line: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["srun", *tasks.split(), *WORDS], cwd=tmp_path, env=slurm | variables, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    said = [text for text in (done.stdout + done.stderr).splitlines() if text.startswith(line)]
    assert said and "Traceback" not in done.stderr and "[W" not in done.stderr
    assert len([text for text in done.stderr.splitlines() if text.startswith("error:")]) <= 2  # one on each node
