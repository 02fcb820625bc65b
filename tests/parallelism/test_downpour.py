"""Asynchronous workers and parameter servers: one worker equals a single device, several workers learn."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import closing, contextmanager
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tests.parallelism import harness
from tests.parallelism.harness import advance, difference, make, spawn, state_of
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.parallelism.downpour import Downpour, partition
from trainer.parallelism.parameter_server import (
    ParameterServer,
    ServerLost,
    ServerProcess,
    Servers,
    Setup,
    decode,
    encode,
)
from trainer.parallelism.strategy import MicroBatch
from trainer.training import worker_loop
from trainer.training.evaluation import confusion_matrix, evaluate
from trainer.training.run import Run
from trainer.training.state import capture, restore
from trainer.training.step import train_step
from trainer.training.worker_loop import run_worker

BASE = ["threads=1", "model=lenet", "batch_size=50", "device=cpu"]
ONE = [*BASE, "parallelism=downpour", "parallelism.devices=1", "parallelism.servers=1"]
SEVERAL = [*BASE, "parallelism=downpour", "optimizer=adagrad", "schedule=constant"]


def slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@contextmanager
def made(overrides: list[str]) -> Any:
    length = [] if any(word.startswith(("steps=", "epochs=")) for word in overrides) else ["steps=50"]
    run = make([*overrides, *length])
    try:
        yield run
    finally:
        run.close()


def trained(overrides: list[str], steps: int = 50) -> dict[str, Any]:
    with made(overrides) as run:
        return {"losses": advance(run, steps), **state_of(run)}


def is_listening(address: Any) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(tuple(address)) == 0


def gone(addresses: list[Any], within: float = 60.0) -> bool:
    deadline = time.monotonic() + within
    while any(is_listening(address) for address in addresses):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- one worker is a single device ------------------------------------------------------------------------


@pytest.mark.proves("parallelism=downpour", reference="parallelism=single, for one worker", tolerance="bitwise")
@pytest.mark.parametrize("optimizer", ["adagrad", slow("momentum"), slow("adamw")])
def test_one_worker_has_the_bits_of_a_single_device(optimizer: str) -> None:
    single = trained([*BASE, f"optimizer={optimizer}"])
    alone = trained([*ONE[:-1], f"optimizer={optimizer}"])
    assert difference(single, alone) == {"losses": 0.0, "model": 0.0, "optimizer": 0.0}
    assert single["optimizer"]["groups"] == alone["optimizer"]["groups"]


def test_states_are_those_of_a_single_device_both_ways() -> None:
    optimizer = ["optimizer=adamw", "every.checkpoint=10step"]
    single = trained([*BASE, *optimizer])
    with made([*ONE, *optimizer]) as asynchronous, made([*BASE, *optimizer]) as run:
        advance(run, 10)
        restore(asynchronous, capture(run))
        losses = advance(asynchronous, 20)
        assert evaluate(asynchronous, asynchronous.splits.val, "val")["val/loss"] > 0
        restore(run, capture(asynchronous))
        losses += advance(run, 20)
        back = {"losses": losses, **state_of(run)}
    assert difference({**single, "losses": single["losses"][10:]}, back) == dict.fromkeys(
        ("losses", "model", "optimizer"), 0.0
    )


def test_between_two_pushes_a_worker_goes_on_by_plain_sgd() -> None:
    """With SGD on the servers, the pushed sum of gradients equals the local steps in between. The remainder after the
    last full period is pushed too.
    """
    plain = ["optimizer=sgd", "schedule=constant"]
    single, alone = trained([*BASE, *plain]), trained([*ONE, *plain, "parallelism.period=4"])
    found = difference(single, alone)
    assert found["losses"] < 1e-5 and found["model"] < 1e-5


def test_a_step_that_is_left_out_fetches_and_a_lost_server_is_named() -> None:
    with made([*ONE, "optimizer=momentum"]) as run:
        advance(run, 2)
        before = {name: value.clone() for name, value in run.strategy.state_dict(run.model).items()}
        with torch.no_grad():
            run.model.output.bias.fill_(torch.nan)
        advance(run, 1)
        assert all(torch.equal(before[name], parameter) for name, parameter in run.model.named_parameters())
        assert [run.guard.read()[1][-1], advance(run, 1)[0] < 10] == [True, True]
        os.kill(run.strategy._processes[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="parameter server 0 is gone"):
            advance(run, 10)


# --- a worker's shard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_worker_has_the_mean_gradient_of_its_own_samples(rank: int) -> None:
    """Micro-batches of 5 and 2 samples; the last worker's shard of the second is empty."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    strategy = Downpour(devices=3)
    strategy.plan(None, 1)
    strategy.rank = rank
    model.eval()  # batch norm's statistics are not the subject
    own: list[torch.Tensor] = []
    weight = torch.tensor(1 / 7)
    strategy.apply(model)
    for last, images in ((False, torch.randn(5, 3)), (True, torch.randn(2, 3))):
        shard = images[strategy.shard(len(images))]
        own.append(shard)
        batch = MicroBatch(shard, torch.zeros(len(shard)), len(images))

        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.square().sum()

        def forward(x: torch.Tensor) -> torch.Tensor:
            return model[2](model[0](x))

        if last:
            strategy.backward(forward, loss, batch, weight)
        else:
            with strategy.accumulating():
                strategy.backward(forward, loss, batch, weight)
    found = model[0].weight.grad.clone()
    model.zero_grad()
    samples = torch.cat(own)
    (model[2](model[0](samples)).square().sum() / len(samples)).backward()
    torch.testing.assert_close(found, model[0].weight.grad)


def test_parameters_are_divided_whole_and_evenly() -> None:
    assert partition({"a": 5, "b": 9, "c": 4, "d": 1}, 2) == [["b", "d"], ["a", "c"]]


def test_messages_come_back_as_they_were() -> None:
    tensors = [
        torch.randn(3, 4).t(), torch.tensor(2.5, dtype=torch.float64), torch.empty(0, 3),
        torch.randn(5).bfloat16(), torch.tensor([True, False]), torch.arange(3),
    ]  # fmt: skip
    back = decode(encode({"kind": "push", "tensors": tensors, "none": None, "nested": [{"lr": 0.1, "x": tensors[0]}]}))
    assert (back["kind"], back["none"], back["nested"][0]["lr"]) == ("push", None, 0.1)
    for one, other in zip([*tensors, tensors[0]], [*back["tensors"], back["nested"][0]["x"]], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


# --- a server by hand -------------------------------------------------------------------------------------


@contextmanager
def one_server(weight: nn.Parameter) -> Any:
    """A server of one parameter with SGD; yields its address."""
    optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=1.0)
    with closing(ServerProcess()) as process:
        process.set_up(Setup.of(b"key", optimizer, [weight]))
        yield process.address(60)


def push(lr: float, gradient: float) -> dict[str, Any]:
    return {"kind": "push", "groups": [{"lr": lr}], "gradients": [torch.tensor([gradient])]}


def test_staleness_counts_the_updates_of_others_between_fetch_and_push() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    with one_server(weight) as address:
        with pytest.raises(Exception, match="digest"):
            Servers([address], b"another", 0, 60)  # wrong key
        main, other = (Servers([address], b"key", rank, 60) for rank in (0, 1))

        def value(servers: Servers, message: dict[str, Any]) -> tuple[float, int]:
            (answer,) = servers.ask([message])
            return answer["weights"][0].item(), answer["step"]

        assert value(main, {"kind": "load", "weights": [torch.tensor([10.0])]}) == (10.0, 0)
        main.tell([{"kind": "publish", "step": 7}])
        assert value(other, {"kind": "fetch"}) == (10.0, 7)  # the main worker's step
        assert value(main, push(1.0, 1.0)) == (9.0, 7)  # staleness 0
        assert value(main, push(0.5, 2.0)) == (8.0, 7)  # 0, with the learning rate of the worker that pushes
        assert value(other, push(1.0, 3.0)) == (5.0, 7)  # 2
        assert value(other, push(1.0, 1.0)) == (4.0, 7)  # 0
        assert value(main, {"kind": "fetch"}) == (4.0, 7)
        assert value(other, push(1.0, 1.0)) == (3.0, 7)  # 0
        assert value(main, push(1.0, 1.0)) == (2.0, 7)  # 1
        (answer,) = main.ask([{"kind": "staleness"}])
        assert answer["staleness"] == [0, 0, 2, 0, 0, 1]
        assert main.ask([{"kind": "staleness"}]) == [{"staleness": []}]
        main.close()
        other.close()
    with pytest.raises(ServerLost, match="parameter server 0 is gone"):
        Servers([address], b"key", 0, 60)


def test_after_new_weights_others_wait_and_what_they_push_is_dropped() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    server = ParameterServer(Setup.of(b"key", torch.optim.SGD([{"params": [weight], "name": "all"}]), [weight]))
    waits, wait_for = threading.Event(), server._changed.wait_for

    def signal_and_wait_for(is_open: Any) -> bool:
        waits.set()
        return wait_for(is_open)

    server._changed.wait_for = signal_and_wait_for  # type: ignore[method-assign, assignment]
    with Listener(("127.0.0.1", 0), backlog=2, authkey=b"key") as listener:
        serving = [threading.Thread(target=lambda: server.serve(listener.accept()), daemon=True) for _ in range(2)]
        for thread in serving:
            thread.start()
        main, other = (Servers([listener.address], b"key", rank, 60) for rank in (0, 1))  # type: ignore[list-item]
        main.ask([{"kind": "load", "weights": [torch.tensor([5.0])]}])
        other.tell([push(1.0, 1.0)])
        assert waits.wait(60)  # the server has received the push
        assert not other._connections[0].poll(0.3)
        (answer,) = main.ask([{"kind": "fetch"}])
        assert answer["weights"][0].item() == 5.0
        main.tell([{"kind": "publish", "step": 8}])
        answer = other._receive(0)
        assert (answer["weights"][0].item(), answer["step"]) == (5.0, 8)
        main.close()
        other.close()
        for thread in serving:
            thread.join(60)


# --- several workers --------------------------------------------------------------------------------------


def survivors(world_size: int, function: Any, *args: Any) -> dict[int, Any]:
    """Like `spawn`, with ranks that are killed: the results of the others."""
    answers = {}
    with harness.started(world_size, function, *args) as ranks:
        for rank, (process, path) in enumerate(ranks):
            if process.wait(240) != -signal.SIGKILL:
                answers[rank] = harness.answer(process, path, rank, 0)
    return answers


def addresses_of(run: Run) -> list[Any]:
    return json.loads(run.strategy._store.get("downpour"))["addresses"]


def worker(steps: int, dies: int | None = None) -> Any:
    """Results of the main worker, or the steps of another one. Independent of their speed, the main worker waits for
    the others at its tenth step, and near its end until they have taken half as many steps or are dead.
    """
    with made([*SEVERAL, f"steps={steps}", "parallelism.devices=3"]) as run:
        rank, done, store = run.strategy.rank, [], run.strategy._store

        def step(run: Run, batch: Any) -> None:
            if rank == dies and len(done) == 10:
                store.set(f"half {rank}", "dies")
                os.kill(os.getpid(), signal.SIGKILL)
            train_step(run, batch)
            done.append(run.step)
            if len(done) == 1:
                store.set(f"begun {rank}", "yes")
            if len(done) == steps // 2:
                store.set(f"half {rank}", "yes")

        if run.strategy.steps_only:
            with patch.object(worker_loop, "train_step", step):
                run_worker(run)
            return done
        losses = advance(run, 10)
        store.wait(["begun 1", "begun 2"])
        numbers, values = run.strategy.metrics(), run.strategy.histograms()["diagnostics/staleness"].tolist()
        losses += advance(run, steps - 20)
        store.wait(["half 1", "half 2"])
        losses += advance(run, 10)
        with run.strategy.evaluating(run.model):
            evaluated = {name: value.clone() for name, value in run.model.state_dict().items()}
            everything = run.strategy.shard(10) == slice(0, 10)
        time.sleep(0.2)
        saved = run.strategy.state_dict(run.model)
        return {
            "losses": losses, "numbers": numbers, "values": values, "everything": everything,
            "same": all(torch.equal(evaluated[name], saved[name]) for name in saved),
            "accuracy": evaluate(run, run.splits.val, "val")["val/accuracy"],
            "counted": int(confusion_matrix(run, run.splits.val).sum()), "samples": len(run.splits.val.targets_N),
            "updates": len(values) + len(run.strategy._remote.staleness()), "addresses": addresses_of(run),
        }  # fmt: skip


def check_learnt(found: dict[str, Any]) -> None:
    losses = found["losses"]
    assert sum(losses[-10:]) / 10 < losses[0] / 10, losses[-10:]
    assert found["accuracy"] > 0.9
    assert found["same"] and found["everything"] and found["counted"] == found["samples"]
    assert found["numbers"]["diagnostics/staleness/max"] == max(found["values"])
    mean = sum(found["values"]) / len(found["values"])
    assert found["numbers"]["diagnostics/staleness/mean"] == pytest.approx(mean)
    assert gone(found["addresses"])


@pytest.mark.slow
def test_three_workers_learn() -> None:
    found, *others = spawn(3, worker, 120)
    check_learnt(found)
    assert found["updates"] > 200 and all(len(done) > 30 for done in others)


def test_a_killed_worker_stops_nobody() -> None:
    answers = survivors(3, worker, 150, 2)
    assert answers.keys() == {0, 1}
    check_learnt(answers[0])


def joins_late(folder: Path) -> Any:
    """The main worker is killed while the other one, which joined late, trains."""
    with made([*SEVERAL, "steps=10000", "parallelism.devices=2", "parallelism.servers=1"]) as run:
        store = run.strategy._store
        if run.strategy.rank == 0:
            advance(run, 35)
            run.strategy.metrics()  # an answer: the server has also received the step that was published before
            store.set("late", "now")
            store.wait(["joined"])
            torch.save(addresses_of(run), folder / "addresses")
            os.kill(os.getpid(), signal.SIGKILL)
        store.wait(["late"])
        positions: list[tuple[int, int, int]] = []

        def step(run: Run, batch: Any) -> None:
            positions.append((run.step, run.progress.epoch, run.progress.samples_seen))
            train_step(run, batch)
            store.set("joined", "now")

        with patch.object(worker_loop, "train_step", step):
            run_worker(run)
        return positions[0]


def test_a_late_worker_begins_where_the_main_one_is_and_ends_with_it(tmp_path: Path) -> None:
    """1437 samples in batches of 50 are 29 steps per epoch."""
    assert survivors(2, joins_late, tmp_path) == {1: (35, 1, 300)}
    assert gone(torch.load(tmp_path / "addresses", weights_only=True))


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["parallelism.devices=0"], "devices=0: must be auto or at least 1"),
        (["parallelism.period=0"], "period=0: must be at least 1"),
        (["parallelism.servers=12"], "parallelism.servers=12: the model has 11 parameter tensors"),
        (["parallelism.devices=3", "batch_size=2"], "a batch of 2 samples cannot be divided among 3 workers"),
        (["on_nonfinite=rollback"], "on_nonfinite=rollback: asynchronous workers cannot roll back together"),
        (["schedule=plateau"], "schedule=plateau: follows evaluations"),
        (["micro_batch=auto"], "micro_batch=auto: needs parallelism=single"),
    ],
)
def test_refusals(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(["device=cpu", "parallelism=downpour", *overrides]))
    assert sentence in str(caught.value)


def test_several_machines_are_refused() -> None:
    with pytest.raises(ValueError, match="must be on one machine; there are 2"):
        Downpour().plan(2, 2)


# --- real data --------------------------------------------------------------------------------------------


def on_clothes(root: str, *more: str) -> Any:
    overrides = ["threads=1", "device=cpu", "data=fashion_mnist", f"data.root={root}", "model=lenet", "epochs=1"]
    with made([*overrides, "optimizer=adagrad", "schedule=constant", *more]) as run:
        if run.strategy.steps_only:
            return run_worker(run)
        advance(run, run.blueprint.total_steps)
        return evaluate(run, run.splits.val, "val")["val/accuracy"]


@pytest.mark.proves(
    "parallelism=downpour",
    reference="the validation accuracy of parallelism=single on Fashion-MNIST, for three workers",
    tolerance="0.02",
)
@pytest.mark.slow
def test_three_workers_are_as_good_as_one_device_on_clothes(data_root: Path) -> None:
    single = on_clothes(str(data_root))
    workers = ["parallelism=downpour", "parallelism.devices=3"]
    three, *_ = spawn(3, on_clothes, str(data_root), *workers, timeout=1200)
    assert abs(three - single) < 0.02, (single, three)
