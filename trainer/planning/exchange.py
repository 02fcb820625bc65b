"""How long a step takes with several processes of this machine, from measured computation and communication."""

import statistics
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from trainer.base.rank import rank_info
from trainer.configuration.blueprint import Blueprint
from trainer.parallelism.sizes import Cost, Sent, all_reduce
from trainer.planning.estimate import Estimate, rank_seconds

_SMALL, _LARGE = 41, 1 << 18  # numbers: statistics of a layer, and the gradients of a small model
_REPEATS = 15
_TIMEOUT = timedelta(seconds=60)


class Link(NamedTuple):
    """The connection between two processes: seconds of a message, and bytes per second."""

    latency: float
    bytes_per_second: float

    def seconds(self, sent: Sent) -> float:
        """Time of what a rank sends in a step, without overlap with computation."""
        return sent.seconds(self.bytes_per_second, self.latency)


class StepTime(NamedTuple):
    """Seconds of computation and of communication of a step, one after the other."""

    computation: float
    communication: float
    messages: float
    latency: float

    @property
    def total(self) -> float:
        return self.computation + self.communication


def step_time(blueprint: Blueprint, found: Estimate, cost: Cost) -> StepTime | None:
    """Measure it; None unless all ranks are processes of this machine, on its CPU, and take steps together."""
    strategy = blueprint.strategy
    if blueprint.device.type != "cpu" or rank_info() is not None or not strategy.is_synchronous:
        return None
    sent, link = cost.total.plus(all_reduce(4, strategy.world_size)), measure_link()  # and the loss
    return StepTime(rank_seconds(blueprint, found, cost), link.seconds(sent), sent.messages, link.latency)


def measure_link() -> Link:
    """Sum tensors of two sizes over two ranks, threads of this process, over the loopback interface."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    found: dict[int, Link] = {}

    def rank(number: int) -> None:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = _TIMEOUT
        group = dist.ProcessGroupGloo(store, number, 2, options)
        exchange = group.allreduce  # type: ignore[attr-defined]
        small, large = (_seconds(torch.zeros(size), exchange) for size in (_SMALL, _LARGE))
        # between two ranks, an all-reduce sends two messages and as many bytes as the tensor has
        found[number] = Link(small / 2, 4 * _LARGE / large)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0]


def _seconds(tensor: torch.Tensor, exchange: Callable[[list[torch.Tensor]], dist.Work]) -> float:
    """Return the median time of an exchange; the first one connects."""
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        exchange([tensor]).wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
