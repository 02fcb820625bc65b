"""Ranks for tests: real processes with gloo between them, forked from one that has torch loaded."""

import pickle
import tempfile
import traceback
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
    """What `function(*args)` returns on each of `world_size` ranks. Raises AssertionError with a rank's trace."""
    with started(world_size, function, *args) as ranks:
        return [answer(process, path, rank, timeout) for rank, (process, path) in enumerate(ranks)]


@contextmanager
def started(world_size: int, function: Callable[..., Any], *args: Any) -> Iterator[list[tuple[Fork, Path]]]:
    """The ranks, and where each leaves its answer; they are killed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"answer {rank}") for rank in range(world_size)]
        told = str(Path(folder, "store")), world_size, function, args
        processes = [shared().call(_rank, path, rank, *told) for rank, path in enumerate(paths)]
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
    try:
        found = ("result", function(*args))
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while another one still speaks to it
    except BaseException:
        found = ("trace", traceback.format_exc())
    path.write_bytes(pickle.dumps(found))  # not as multiprocessing does, by which tensors would be shared


# --- what a rank does -------------------------------------------------------------------------------------


class InDouble(Preprocessing):
    """The result of a fitted preprocessing in float64."""

    def __init__(self, fitted: nn.Module) -> None:
        super().__init__()
        self.fitted = fitted

    def fit(self, images: Any) -> None:
        raise AssertionError("is fitted already")

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fitted(images_NCHW).double()
        return result


def make(overrides: list[str], double: bool = False) -> Run:
    """A run without a folder; in float64 where asked."""
    return make_from(composed(tuple(overrides)), double)


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    """Composed once: whoever makes a run leaves its configuration as it is."""
    return compose(overrides)


def make_from(config: Config, double: bool = False) -> Run:
    blueprint = resolve(config)
    assemble.connect(blueprint)
    if not double:
        return assemble.build_run(blueprint)
    make_model = assemble.make_model
    assemble.make_model = lambda plan: make_model(plan).double()  # type: ignore[assignment]
    try:
        run = assemble.build_run(blueprint)
    finally:
        assemble.make_model = make_model
    run.preprocessing = run.batches._preprocessing = InDouble(run.preprocessing)
    return run


def advance(run: Run, steps: int) -> list[float]:
    """So many steps; the mean loss of each."""
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
    """Weights, buffers and optimizer state under whole-model names."""
    return {
        "model": {name: value.clone() for name, value in run.strategy.state_dict(run.model).items()},
        "optimizer": run.strategy.optimizer_state(run.model, run.optimizer),
    }


def curve(overrides: list[str], steps: int = 50, double: bool = False) -> dict[str, Any]:
    """Train and return `losses`, `model`, `optimizer`."""
    run = make([*overrides, f"steps={steps}"], double)
    return {"losses": advance(run, steps), **state_of(run)}


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Largest difference of losses, and of weights, buffers and optimizer state."""
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


DOUBLE = 1e-12  # between float64 curves, whatever the order of their sums


def tolerance(exact: dict[str, Any], rounded: dict[str, Any]) -> float:
    """How far the float32 curve of a strategy may be from the float64 curve of one device (`exact`).

    Ten times the distance of one device's own float32 curve (`rounded`), measured here and now: a fixed number that one
    processor meets, another misses. The strategies change the order of sums alone, so that their distances are of the
    same size: 0.2 to 1.4 times it in the 44 float32 rows of test_matrix.py (torch 2.14.1, AVX2). Between processors it
    changes by a factor of 2 (batch norm with AdamW: 3.0e-6 without vectors, 3.3e-6 with AVX2, 6.7e-6 with AVX-512).
    """
    return 10 * max(difference(exact, rounded).values())


@cache
def reference(overrides: tuple[str, ...], double: bool, steps: int = 50) -> dict[str, Any]:
    """The curve of one device, with one thread as the ranks have."""
    threads = torch.get_num_threads()
    try:
        return curve([*overrides, "parallelism=single"], steps, double)
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("default")


def curves(rows: Sequence[tuple[Sequence[str], bool]], words: list[str], steps: int = 50) -> list[dict[str, Any]]:
    """Several runs one after the other in the same processes."""
    return [anew(number, curve, [*row, *words], steps, double) for number, (row, double) in enumerate(rows)]


def anew(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Another run in the same processes, with a store in which no earlier one has left anything."""
    here, store = rank.rank_info(), rank.open_store()
    rank.take(here, lambda: dist.PrefixStore(f"run {number}", store))
    try:
        return function(*arguments)
    finally:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        rank.take(here, lambda: store)


def trained(run: Run, steps: int) -> dict[str, Any]:
    """A curve with an evaluation before, between and after, and a round trip through the whole state at its end,
    which must change nothing."""
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
