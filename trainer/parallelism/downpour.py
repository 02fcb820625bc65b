"""Downpour SGD: asynchronous workers around parameter servers (Dean et al. 2012)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.checks import check_whole
from trainer.base.rank import open_store, rank_info
from trainer.parallelism import cost
from trainer.parallelism.global_dropout import global_dropout
from trainer.parallelism.named_state import load_named_state, named_state
from trainer.parallelism.parameter_server import (
    ServerLost,
    ServerProcess,
    Servers,
    Setup,
    decode,
    encode,
    new_key,
)
from trainer.parallelism.ranks import check_ranks, resolve_devices, shard_of
from trainer.parallelism.remote_optimizer import RemoteOptimizer
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch, Unreduced

_STORE_KEY = "downpour"
_PAUSE = 0.05  # seconds between two looks at the store
_MOST_STORED = 4 << 20  # bytes under a key: a TCPStore takes 8 MB at most


class Downpour(Unreduced):
    """Workers compute gradients on weights that they fetched and push them to servers, which step at once:

    w <- step(w, g_i(w_old)), g_i the mean gradient over worker i's shard of the batch and w_old what it fetched
    last. Nobody waits for another worker, so w_old misses the updates that others made meanwhile: the staleness.
    Each loop step makes one update a worker. One worker equals a single device.
    Source: Optimization (Part 2), "Distributed Training"; Dean et al. 2012, section 4.1 and appendix (algorithm 1.1).

    `devices` are the workers (`auto`: every CUDA device, two on a CPU), all on one machine; `servers` the
    processes among which whole parameters are divided; each runs the configured optimizer (the paper has Adagrad).
    Every `period` steps a worker pushes the sum of its gradients and fetches; in between it goes on by
    w <- w - lr * g, as the paper has it. Only the main worker (rank 0) logs, evaluates and saves; the loss of any
    other does not stop it. Raises ValueError for other values.
    """

    default_devices = 2
    is_synchronous = False
    takes_closures = False

    def __init__(
        self,
        devices: int | str = "auto",
        servers: int = 2,
        period: int = 1,
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        check_ranks(devices, max_restarts, timeout)
        for name, value in (("servers", servers), ("period", period)):
            check_whole(name, value, 1)
        self.devices, self.servers, self.period = devices, servers, period
        self.max_restarts, self.timeout = max_restarts, timeout
        self._processes: list[ServerProcess] = []
        self._remote: RemoteOptimizer | None = None
        self._store: Any = None
        self._num_made = 0
        self._model: nn.Module
        self._is_evaluating = self._is_accumulating = False
        self._num_micro_batch = 0  # samples of the micro-batch over all workers, and of the step up to now:
        self._num_own = self._num_global = 0
        self._staleness: list[int] = []

    # --- before any process is started

    def plan(self, available: int | None, machines: int) -> None:
        if machines > 1:
            raise ValueError(f"parallelism: the workers of downpour share one machine; there are {machines}")
        self.devices = self.world_size = resolve_devices(self.devices, self.default_devices, available)

    def validate(self, config: Mapping[str, Any], model: nn.Module) -> None:
        parameters = len(list(_trained(model)))
        if self.servers > parameters:
            raise ValueError(
                f"parallelism.servers={self.servers}: the model has {parameters} parameters, which are not cut; "
                f"must be at most {parameters}"
            )
        if self.world_size > 1:
            self._validate_several(config)

    def _validate_several(self, config: Mapping[str, Any]) -> None:
        batch_size = config["batch_size"]
        if isinstance(batch_size, int) and self.world_size > batch_size:
            raise ValueError(
                f"parallelism: a batch of {batch_size} samples cannot be shared by {self.world_size} workers; "
                f"batch_size must be at least {self.world_size}"
            )
        if config["micro_batch"] == "auto":
            raise ValueError("micro_batch=auto: needs parallelism=single; set accumulate or micro_batch yourself")
        if config["on_nonfinite"] == "rollback":
            raise ValueError("on_nonfinite=rollback: asynchronous workers do not go back together; use stop or skip")

    def notices(self, model: nn.Module) -> list[str]:
        if self.world_size == 1:
            return []
        text = (
            f"{self.world_size} asynchronous workers: {self.world_size} updates a step; neither equal to one device "
            "nor repeatable bit by bit"
        )
        has_statistics = any(True for _ in model.buffers())
        return [text + ("; the statistics of batch norm are the main worker's" if has_statistics else "")]

    def is_exact(self, model: nn.Module) -> bool:
        return self.world_size == 1

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.downpour(step, self.world_size, self.period)

    @property
    def steps_only(self) -> bool:
        return not self.is_main

    def tolerates(self, rank: int) -> bool:
        return rank != 0

    # --- one's place

    def connect(self, device: torch.device) -> None:
        here = rank_info()
        if here is not None:
            self.rank, self.world_size = here.rank, here.world_size
        if self.world_size > 1:
            self._store = open_store()  # kept: a FileStore is removed when as many as there are ranks were closed
        if self.is_main:
            self._processes = [ServerProcess() for _ in range(self.servers)]

    def apply(self, model: nn.Module) -> nn.Module:
        self._model = model
        if self.world_size > 1:
            global_dropout(model, self.shard, total=lambda _: self._num_micro_batch)
        return model

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        shards = partition({name: parameter.numel() for name, parameter in _trained(model)}, self.servers)
        parameters = dict(model.named_parameters())
        held: list[list[Tensor]] = [[parameters[name] for name in shard] for shard in shards]
        servers = self._start(optimizer, held) if self.is_main else self._find()
        self._remote = RemoteOptimizer(optimizer, held, servers, self.period)
        if self.is_main:
            self._remote.load_weights()
            self._remote.load_state()
        optimizer.state.clear()  # theirs now
        return self._remote

    def _start(self, optimizer: Optimizer, held: list[list[Tensor]]) -> Servers:
        """Tell the servers what they are, and the other workers where they are."""
        key = new_key()
        for process, parameters in zip(self._processes, held, strict=True):
            process.set_up(Setup.of(key, optimizer, parameters))
        addresses = [process.address(self.timeout) for process in self._processes]
        if self.world_size > 1:
            self._store.set(_STORE_KEY, json.dumps({"addresses": addresses, "key": key.hex()}))
        return Servers(addresses, key, self.rank, self.timeout)

    def _find(self) -> Servers | None:
        """Connections to the servers; None when the main worker has ended already."""
        self._store.wait([_STORE_KEY], timedelta(seconds=self.timeout))
        told = json.loads(self._store.get(_STORE_KEY))
        try:
            return Servers(
                [(host, port) for host, port in told["addresses"]], bytes.fromhex(told["key"]), self.rank, None
            )
        except ServerLost:
            return None

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
        for process in self._processes:
            process.close()
        self._remote, self._processes, self._store = None, [], None

    def from_main(self, make: Callable[[], Any]) -> Any:
        """Through the store: the main worker waits for nobody, so that the loss of another does not stop it."""
        if self.world_size == 1:
            return make()
        self._num_made += 1
        key = f"made{self._num_made}"
        if self.is_main:
            return self._make(key, make)
        self._store.wait([f"{key}/begun"], timedelta(seconds=self.timeout))
        while not self._store.check([key]):  # as long as it takes; `wait` would not listen to signals
            time.sleep(_PAUSE)
        count = int(self._store.get(key))
        if count == 0:
            raise ServerLost("the main worker has failed")
        return decode(b"".join(self._store.get(f"{key}/{number}") for number in range(count)))["value"]

    def _make(self, key: str, make: Callable[[], Any]) -> Any:
        """Put it into the store in pieces; none of them where it fails."""
        self._store.set(f"{key}/begun", "yes")
        pieces: list[bytes] = []
        try:
            value = make()
            data = encode({"value": value})
            pieces = [data[start : start + _MOST_STORED] for start in range(0, len(data), _MOST_STORED)]
            for number, piece in enumerate(pieces):
                self._store.set(f"{key}/{number}", piece)
            return value
        finally:
            self._store.set(key, str(len(pieces)))

    # --- steps

    def fetch(self) -> int:
        assert self._remote is not None
        return self._remote.fetch()

    def shard(self, count: int) -> slice:
        """Contiguous, the first ones longer by one where it does not divide; everything in an evaluation, which
        the main worker does alone."""
        if self._is_evaluating:
            return slice(0, count)
        return shard_of(count, self.rank, self.world_size)

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        if self.world_size == 1:
            return super().backward(forward, loss, batch, weight)
        self._num_micro_batch = batch.num_global
        self._num_global += batch.num_global
        self._num_own += len(batch.targets)
        self._model.train(len(batch.targets) > 0)  # batch norm has no statistics of nothing
        seen = super().backward(forward, loss, batch, weight)
        self._model.train()
        if not self._is_accumulating:
            self._take_mean()
        return seen

    def _take_mean(self) -> None:
        """Divide by this worker's samples of the step instead of all workers'."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        if self._num_own:
            torch._foreach_mul_(gradients, self._num_global / self._num_own)
        self._num_global = self._num_own = 0

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._is_accumulating = True
        try:
            yield
        finally:
            self._is_accumulating = False

    def stepped(self, model: nn.Module, step: int) -> None:
        assert self._remote is not None
        self._remote.end_step()
        if self.is_main:
            self._remote.publish(step)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        assert self._remote is not None
        self._remote.synchronize()
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False

    # --- state

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        assert self._remote is not None
        self._remote.synchronize()
        return model.state_dict()

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        assert self._remote is not None
        model.load_state_dict(state)
        self._remote.load_weights()

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        assert self._remote is not None
        self._remote.synchronize()
        with self._remote.original() as original:
            return named_state(model, original, whole=lambda name, value: value)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        assert self._remote is not None
        with self._remote.original() as original:
            load_named_state(model, original, state, local=lambda name, value: value)
            self._remote.load_state()

    # --- numbers

    def metrics(self) -> dict[str, float]:
        """How many updates of others came between a worker's fetch and its push, over all workers."""
        assert self._remote is not None
        new = self._remote.staleness()
        self._staleness += new
        if not new:
            return {}
        return {"diagnostics/staleness/mean": sum(new) / len(new), "diagnostics/staleness/max": float(max(new))}

    def histograms(self) -> dict[str, Tensor]:
        """One by one what `metrics` has spoken of since the last call of this, so that both tell of the same."""
        values, self._staleness = self._staleness, []
        return {"diagnostics/staleness": torch.tensor(values, dtype=torch.float32)} if values else {}


def partition(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Names in `count` lists of about the same total size: the largest first, each to the lightest."""
    shards: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lightest = loads.index(min(loads))
        shards[lightest].append(name)
        loads[lightest] += sizes[name]
    return shards


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
