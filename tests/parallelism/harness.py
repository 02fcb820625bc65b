"""Ranks for tests: processes connected by gloo, forked from one that has loaded torch."""

import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.forks import Fork, shared
from trainer import compose
from trainer.assembly import assemble
from trainer.base import rank
from trainer.base.config import Config
from trainer.base.rank import RankInfo, take
from trainer.configuration.resolve import resolve
from trainer.contracts import Preprocessing
from trainer.training.evaluation import confusion_matrix, evaluate
from trainer.training.run import Run
from trainer.training.step import train_step


def spawn(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
    """Run `function(*args)` on `world_size` ranks; returns their results. Raises AssertionError with the traceback of a
    rank."""
    with started(world_size, function, *args) as ranks:
        return [answer(process, path, rank, timeout) for rank, (process, path) in enumerate(ranks)]


@contextmanager
def started(world_size: int, function: Callable[..., Any], *args: Any) -> Iterator[list[tuple[Fork, Path]]]:
    """Context manager: the ranks, and the file in which each leaves its result; kills the ranks on exit."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"answer {rank}") for rank in range(world_size)]
        shared_arguments = str(Path(folder, "store")), world_size, function, args
        processes = [shared().call(_rank, path, rank, *shared_arguments) for rank, path in enumerate(paths)]
        try:
            yield list(zip(processes, paths, strict=True))
        finally:
            for process in processes:
                process.kill()


def answer(process: Fork, path: Path, rank: int, timeout: float) -> Any:
    assert process.wait(timeout) is not None, f"rank {rank} gave no answer in {timeout} s"
    assert path.exists(), f"rank {rank} ended with code {process.returncode}: {process.output()}"
    kind, value = pickle.loads(path.read_bytes())
    assert kind == "result", f"rank {rank}: {value}"
    return value


def _rank(path: Path, rank: int, store: str, world_size: int, function: Callable[..., Any], args: Any) -> None:
    take(RankInfo(rank, world_size, rank, world_size), lambda: dist.FileStore(store, world_size))
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)  # of torch too: a user cannot act on them
    try:
        found = ("result", function(*args))
        if dist.is_initialized():
            dist.barrier()  # no rank exits while another one still communicates with it
    except BaseException:
        found = ("trace", traceback.format_exc())
    path.write_bytes(pickle.dumps(found))  # multiprocessing would share the memory of tensors instead


# --- what a rank does -------------------------------------------------------------------------------------


class InDouble(Preprocessing):
    """A fitted preprocessing with results in float64."""

    def __init__(self, fitted: nn.Module) -> None:
        super().__init__()
        self.fitted = fitted

    def fit(self, images: Any) -> None:
        raise AssertionError("is fitted already")

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fitted(images_NCHW).double()
        return result


def make(overrides: list[str], double: bool = False) -> Run:
    """A run without a folder, with float64 weights if `double`."""
    return make_from(composed(tuple(overrides)), double)


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    """Compose once per set of overrides; runs do not change their configuration."""
    return compose(overrides)


def make_from(config: Config, double: bool = False) -> Run:
    blueprint = resolve(config)
    assemble.connect(blueprint)
    if not double:
        return assemble.build_run(blueprint)
    make_model = assemble.make_model
    assemble.make_model = lambda *given: make_model(*given).double()  # type: ignore[assignment]
    try:
        run = assemble.build_run(blueprint)
    finally:
        assemble.make_model = make_model
    run.preprocessing = run.batches._preprocessing = InDouble(run.preprocessing)
    return run


def advance(run: Run, steps: int) -> list[float]:
    """Train for `steps` steps; returns the mean loss of each."""
    losses: list[float] = []
    run.model.train()
    while len(losses) < steps:
        for batch in run.batches.epoch(run.progress.epoch, run.progress.samples_seen):
            train_step(run, batch)
            run.advance(batch.num_global)
            losses.append(run.meter.read(run.strategy.sum)["loss"])
            if len(losses) == steps:
                break
    return losses


def state_of(run: Run) -> dict[str, Any]:
    """Weights, buffers and optimizer state, with the names of the unsharded model: the main rank's, where others have
    only shards."""
    model, optimizer = run.strategy.state_dict(run.model), run.strategy.optimizer_state(run.model, run.optimizer)
    mains = run.strategy.broadcast((model, optimizer))
    model, optimizer = (model, optimizer) if model else mains
    return {"model": {name: value.clone() for name, value in model.items()}, "optimizer": optimizer}


def curve(overrides: list[str], steps: int = 50, double: bool = False) -> dict[str, Any]:
    """Train; returns `losses`, `model` and `optimizer`."""
    run = make([*overrides, f"steps={steps}"], double)
    return {"losses": advance(run, steps), **state_of(run)}


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Largest difference of losses, of weights and buffers, and of optimizer state."""
    assert one["model"].keys() == other["model"].keys()
    losses = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
    model = max(float((one["model"][n].double() - other["model"][n].double()).abs().max()) for n in one["model"])
    states, others = one["optimizer"]["state"], other["optimizer"]["state"]
    assert states.keys() == others.keys()
    kept = [
        float((torch.as_tensor(state[key]).double() - torch.as_tensor(others[name][key]).double()).abs().max())
        for name, state in states.items()
        for key in state
        if state[key] is not None
    ]
    return {"losses": losses, "model": model, "optimizer": max(kept, default=0.0)}


DOUBLE = 1e-12  # tolerance between float64 curves, for any order of summation


def tolerance(exact: dict[str, Any], rounded: dict[str, Any]) -> float:
    """Largest allowed difference of a strategy's float32 curve from the float64 curve of one device (`exact`).

    Ten times the difference of one device's own float32 curve (`rounded`), measured on this machine, because no
    constant fits every processor. Strategies change only the order of summation, so their differences have the same
    size: 0.2 to 1.4 times `rounded` in the 44 float32 rows of test_matrix.py (torch 2.14.1, AVX2). Between processors
    it varies by a factor of 2 (batch norm with AdamW: 3.0e-6 without vector instructions, 3.3e-6 with AVX2, 6.7e-6 with
    AVX-512).
    """
    return 10 * max(difference(exact, rounded).values())


@cache
def reference(overrides: tuple[str, ...], double: bool, steps: int = 50) -> dict[str, Any]:
    """The curve of one device, with one thread like the ranks."""
    threads = torch.get_num_threads()
    try:
        return curve([*overrides, "parallelism=single"], steps, double)
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("default")


def curves(rows: Sequence[tuple[Sequence[str], bool]], overrides: list[str], steps: int = 50) -> list[dict[str, Any]]:
    """Several runs in succession in the same processes."""
    return [in_new_run(number, curve, [*row, *overrides], steps, double) for number, (row, double) in enumerate(rows)]


def in_new_run(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` as a new run in the same processes, with an empty store."""
    info, store = rank.rank_info(), rank.open_store()
    rank.take(info, lambda: dist.PrefixStore(f"run {number}", store))
    try:
        return function(*arguments)
    finally:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        rank.take(info, lambda: store)


def trained(run: Run, steps: int) -> dict[str, Any]:
    """A curve with evaluations before, during and after training and a round trip through the whole state, which change
    nothing."""
    found = evaluate(run, run.splits.val, "before")
    losses = advance(run, steps // 2)
    matrix = confusion_matrix(run, run.splits.val)
    losses += advance(run, steps - steps // 2)
    norm = run.guard.read()[0]
    found |= evaluate(run, run.splits.val, "after")
    before = state_of(run)
    run.strategy.load_state_dict(run.model, {name: value + 0 for name, value in before["model"].items()})
    run.strategy.load_optimizer_state(run.model, run.optimizer, before["optimizer"])
    return {"losses": losses, **state_of(run), "before": before, "metrics": found, "matrix": matrix, "norm": norm}
