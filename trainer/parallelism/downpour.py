"""Downpour SGD: asynchronous workers around parameter servers (Dean et al. 2012)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.checks import check_whole
from trainer.base.config import Config
from trainer.base.rank import open_store, rank_info
from trainer.base.stateful import State
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
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch, T, Unreduced

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_STORE_KEY = "downpour"
_PAUSE = 0.05  # seconds between two polls of the store
_MAX_STORED = 4 << 20  # bytes per key: a TCPStore accepts at most 8 MB


class Downpour(Unreduced):
    """Workers compute gradients on fetched weights and push them to servers, which step immediately:

    w <- step(w, g_i(w_old)), where g_i is the mean gradient over worker i's shard of the batch and w_old the weights
    it fetched last. Workers do not wait for one another, so w_old lacks the updates made meanwhile: the staleness.
    Each step of the loop makes one update per worker. One worker equals a single device.
    Source: Optimization (Part 2), "Distributed Training"; Dean et al. 2012, section 4.1 and appendix (algorithm 1.1).

    `devices` is the number of workers (`auto`: one per CUDA device, two on a CPU), all on one machine; `servers` the
    number of processes over which whole parameters are distributed. Each server runs the configured optimizer (the
    paper uses Adagrad). Every `period` steps a worker pushes the sum of its gradients and fetches; in between it
    steps with w <- w - lr * g, as in the paper. Only the main worker (rank 0) logs, evaluates and saves; the run
    survives the loss of any other. Raises ValueError for other values.
    """

    weights_differ = True

    default_devices = 2
    is_synchronous = False
    takes_closures = False
    steps_all_weights = False

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
        self._store: Store | None = None
        self._num_made = 0
        self._model: nn.Module
        self._is_evaluating = self._is_accumulating = False
        self._num_micro_batch = 0  # samples of the micro-batch over all workers
        self._num_own = self._num_global = 0  # samples of the step so far, of this worker and of all
        self._staleness: list[int] = []

    # --- before any process is started

    def plan(self, available: int | None, machines: int) -> None:
        if machines > 1:
            raise ValueError(f"parallelism: the workers of downpour must be on one machine; there are {machines}")
        self.devices = self.world_size = resolve_devices(self.devices, self.default_devices, available)

    def validate(self, config: Config, model: nn.Module) -> None:
        parameters = len(list(_trained(model)))
        if self.servers > parameters:
            raise ValueError(
                f"parallelism.servers={self.servers}: the model has {parameters} parameter tensors, which are not "
                f"split; must be at most {parameters}"
            )
        if self.world_size > 1:
            self._validate_several(config)

    def _validate_several(self, config: Config) -> None:
        batch_size = config["batch_size"]
        if isinstance(batch_size, int) and self.world_size > batch_size:
            raise ValueError(
                f"parallelism: a batch of {batch_size} samples cannot be divided among {self.world_size} workers; "
                f"batch_size must be at least {self.world_size}"
            )
        if config["micro_batch"] == "auto":
            raise ValueError("micro_batch=auto: needs parallelism=single; set accumulate or micro_batch yourself")
        if config["on_nonfinite"] == "rollback":
            raise ValueError("on_nonfinite=rollback: asynchronous workers cannot roll back together; use stop or skip")

    @property
    def norm_shards(self) -> int:  # type: ignore[override]
        return self.world_size

    def notices(self, model: nn.Module) -> list[str]:
        if self.world_size == 1:
            return []
        text = (
            f"{self.world_size} asynchronous workers: {self.world_size} updates per step; neither equal to one device "
            "nor bit-reproducible"
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

    # --- ranks and servers

    def connect(self, device: torch.device) -> None:
        info = rank_info()
        if info is not None:
            self.rank, self.world_size = info.rank, info.world_size
        if self.world_size > 1:
            self._store = open_store()  # kept open: a FileStore is deleted once every rank has closed its handle
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
        optimizer.state.clear()  # it is on the servers now
        return self._remote

    def _start(self, optimizer: Optimizer, held: list[list[Tensor]]) -> Servers:
        """Set up the servers and publish their addresses to the other workers."""
        key = new_key()
        for process, parameters in zip(self._processes, held, strict=True):
            process.set_up(Setup.of(key, optimizer, parameters))
        addresses = [process.address(self.timeout) for process in self._processes]
        if self._store is not None:
            self._store.set(_STORE_KEY, json.dumps({"addresses": addresses, "key": key.hex()}))
        return Servers(addresses, key, self.rank, self.timeout)

    def _find(self) -> Servers | None:
        """Connect to the servers; returns None if the main worker has already ended."""
        assert self._store is not None
        self._store.wait([_STORE_KEY], timedelta(seconds=self.timeout))
        setup = json.loads(self._store.get(_STORE_KEY))
        try:
            return Servers(
                [(host, port) for host, port in setup["addresses"]], bytes.fromhex(setup["key"]), self.rank, None
            )
        except ServerLost:
            return None

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
        for process in self._processes:
            process.close()
        self._remote, self._processes, self._store = None, [], None

    def from_main(self, make: Callable[[], T]) -> T:
        """Exchange through the store, so that the main worker does not wait for workers that may be lost."""
        if self.world_size == 1:
            return make()
        self._num_made += 1
        key, store = f"made{self._num_made}", self._store
        assert store is not None
        if self.is_main:
            return self._make(store, key, make)
        store.wait([f"{key}/begun"], timedelta(seconds=self.timeout))
        while not store.check([key]):  # without a timeout; `wait` would block signals
            time.sleep(_PAUSE)
        count = int(store.get(key))
        if count == 0:
            raise ServerLost("the main worker has failed")
        value: T = decode(b"".join(store.get(f"{key}/{number}") for number in range(count)))["value"]
        return value

    def _make(self, store: "Store", key: str, make: Callable[[], T]) -> T:
        """Call `make` and write the result to the store in pieces; write no pieces if it fails."""
        store.set(f"{key}/begun", "yes")
        pieces: list[bytes] = []
        try:
            value = make()
            data = encode({"value": value})
            pieces = [data[start : start + _MAX_STORED] for start in range(0, len(data), _MAX_STORED)]
            for number, piece in enumerate(pieces):
                store.set(f"{key}/{number}", piece)  # type: ignore[arg-type]  # bytes, too
            return value
        finally:
            store.set(key, str(len(pieces)))

    # --- steps

    def fetch(self) -> int:
        assert self._remote is not None
        return self._remote.fetch()

    def shard(self, count: int) -> slice:
        """Return this worker's contiguous shard; in an evaluation, which only the main worker does, everything."""
        if self._is_evaluating:
            return slice(0, count)
        return shard_of(count, self.rank, self.world_size)

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        if self.world_size == 1:
            return super().backward(forward, loss, batch, weight)
        self._num_micro_batch = batch.num_global
        self._num_global += batch.num_global
        self._num_own += len(batch.targets)
        self._model.train(len(batch.targets) > 0)  # batch norm has no statistics of an empty batch
        seen = super().backward(forward, loss, batch, weight)
        self._model.train()
        if not self._is_accumulating:
            self._take_mean()
        return seen

    def _take_mean(self) -> None:
        """Rescale the gradients from the samples of all workers to those of this worker."""
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

    def state_dict(self, model: nn.Module) -> State:
        assert self._remote is not None
        self._remote.synchronize()
        return model.state_dict()

    def load_state_dict(self, model: nn.Module, state: State) -> None:
        assert self._remote is not None
        model.load_state_dict(state)
        self._remote.load_weights()

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        assert self._remote is not None
        self._remote.synchronize()
        with self._remote.original() as original:
            return named_state(model, original, whole=lambda name, value: value)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        assert self._remote is not None
        with self._remote.original() as original:
            load_named_state(model, original, state, local=lambda name, value: value)
            self._remote.load_state()

    # --- numbers

    def metrics(self) -> dict[str, float]:
        """Return the staleness over all workers: updates by others between a worker's fetch and its push."""
        assert self._remote is not None
        new = self._remote.staleness()
        self._staleness += new
        if not new:
            return {}
        return {"diagnostics/staleness/mean": sum(new) / len(new), "diagnostics/staleness/max": float(max(new))}

    def histograms(self) -> dict[str, Tensor]:
        """Return the staleness of each update that `metrics` has reported since the last call."""
        values, self._staleness = self._staleness, []
        return {"diagnostics/staleness": torch.tensor(values, dtype=torch.float32)} if values else {}


def partition(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Partition names into `count` lists of similar total size: largest first, each to the list with least load."""
    shards: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lightest = loads.index(min(loads))
        shards[lightest].append(name)
        loads[lightest] += sizes[name]
    return shards


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
