"""Base of the strategies over several processes: process groups, shards, and collectives, all of which are sums."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the process group at the time of import as a default value. If the compiler imported it after a
# group is made, the connections of that group would stay open when this rank leaves it, and other ranks would wait.
import torch.distributed.nn.functional
from torch import Tensor, nn

from trainer.base.checks import check_count_or_auto, check_number, check_that, check_whole
from trainer.base.config import Config
from trainer.base.rank import open_store, rank_info
from trainer.base.stateful import State
from trainer.parallelism.collect import Path, collect, distribute, name_of
from trainer.parallelism.exchange import Group, own_group
from trainer.parallelism.global_dropout import global_dropout
from trainer.parallelism.named_state import OwnPart
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch, T, WholeModel
from trainer.parallelism.sync_batch_norm import synchronize_batch_norms


def check_ranks(devices: int | str, max_restarts: int, timeout: float) -> None:
    """Raise ValueError for invalid arguments of a strategy with several ranks."""
    check_count_or_auto("devices", devices)
    check_whole("max_restarts", max_restarts, 0)
    check_number("timeout", timeout, 0, above=True, must="> 0 (seconds)")


def resolve_devices(devices: int | str, default: int, available: int | None) -> int:
    """Return the number of processes; `available` is the number of devices or of processes already started, if known.

    Raises ValueError if `devices` exceeds it.
    """
    count = (default if available is None else available) if devices == "auto" else int(devices)
    if available is not None:
        must = f"at most {available}, the number of devices (or processes) available"
        check_that(count <= available, "parallelism.devices", count, must)
    return count


def shard_of(count: int, rank: int, size: int) -> slice:
    """Return a rank's contiguous shard; if `size` does not divide `count`, the first shards are longer by one."""
    length, longer = divmod(count, size)
    start = rank * length + min(rank, longer)
    return slice(start, start + length + (rank < longer))


_PATIENCE = timedelta(days=7)  # timeout for work that only the main rank does


class Ranks(WholeModel):
    """Base of all synchronous strategies: several processes, each with a shard of every batch.

    `devices` is the number of processes on each machine (`auto`: one per CUDA device; `default_devices` on a CPU).
    `max_restarts` is how often a run restarts from its last checkpoint after losing a rank. `timeout` is how many
    seconds a rank waits for the others. Raises ValueError for other values.
    """

    # number of processes on a CPU under `auto`
    default_devices = 2

    def __init__(self, devices: int | str = "auto", max_restarts: int = 0, timeout: float = 300.0) -> None:
        check_ranks(devices, max_restarts, timeout)
        self.devices, self.max_restarts, self.timeout = devices, max_restarts, timeout
        self.data_rank, self.data_size = 0, 1
        self.num_global = 0  # samples of the current micro-batch over all ranks
        self._flag: tuple[Tensor, dist.Work] | None = None
        self._control: Group = None
        self._patient: Group = None

    # --- before any process is started

    def plan(self, available: int | None, machines: int) -> None:
        self.devices = resolve_devices(self.devices, self.default_devices, available)
        self.world_size = self.devices * machines
        self.data_size = self.data_shards()

    def data_shards(self) -> int:
        """Return the number of shards of a batch. Raises ValueError if the degrees of parallelism do not divide."""
        return self.world_size

    def validate(self, config: Config, model: nn.Module) -> None:
        batch_size = config["batch_size"]
        if isinstance(batch_size, int) and self.data_size > batch_size:
            raise ValueError(
                f"parallelism: a batch of {batch_size} samples cannot be divided among {self.data_size} ranks; "
                f"batch_size must be at least {self.data_size}"
            )
        if config["micro_batch"] == "auto" and self.world_size > 1:
            raise ValueError("micro_batch=auto: needs parallelism=single; set accumulate or micro_batch yourself")

    # --- ranks and shards

    def connect(self, device: torch.device) -> None:
        info, store = rank_info(), open_store()
        assert info is not None
        if device.type == "cuda":
            device = torch.device("cuda", info.local_rank if device.index is None else device.index)
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=info.rank,
            world_size=info.world_size,
            timeout=timedelta(seconds=self.timeout),
            device_id=device if device.type == "cuda" else None,
        )
        self.rank, self.world_size = info.rank, info.world_size
        # flags and objects are exchanged on the CPU, concurrently with the work of the device
        self._control = own_group(dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout)))
        self._patient = own_group(dist.new_group(backend="gloo", timeout=_PATIENCE))
        self.data_rank, self.data_size = self.rank, self.data_shards()

    def shard(self, count: int) -> slice:
        return shard_of(count, self.data_rank, self.data_size)

    @property
    def data_group(self) -> Group:
        """Process group over which a batch is sharded; None: all ranks."""
        return None

    # --- collectives

    def sum(self, value: Tensor) -> Tensor:
        if self.data_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.data_group)
        return total

    def agree(self, flag: bool) -> bool:
        before = self._flag
        now = torch.tensor(float(flag))
        self._flag = now, dist.all_reduce(now, group=self._control, async_op=True)
        if before is None:
            return False
        answer, handle = before
        handle.wait()
        return bool(answer.item())

    def broadcast(self, value: T) -> T:
        return self._from_main(value, self._control)

    def from_main(self, make: Callable[[], T]) -> T:
        return self._from_main(make() if self.is_main else None, self._patient)

    def _from_main(self, value: T | None, group: Group) -> T:
        box: list[Sendable] = [on_cpu(value)]
        dist.broadcast_object_list(box, src=0, group=group)
        sent: T = box[0]
        return sent

    def gather(self, value: T) -> list[T]:
        values: list[Sendable] = [None] * self.world_size
        dist.all_gather_object(values, on_cpu(value), group=self._control)
        return values

    def collect(self, value: T) -> list[T]:
        return collect(value, self._control)

    def distribute(self, state: State | None, model: nn.Module) -> State | None:
        def keep(path: Path, tensor: Tensor) -> Tensor | OwnPart | None:
            if path[0] == "ranks" and path[1] != self.rank:
                return None
            name = name_of(path)
            is_whole = name is None or path[-1] == "step" or not tensor.dim()
            return tensor if is_whole else self.part_to_load(str(name), tensor, model)

        found: State | None = distribute(state, keep, self._control)
        return found

    def part_to_load(self, name: str, whole: Tensor, model: nn.Module) -> Tensor | OwnPart | None:
        """Return what this rank loads of a tensor of the model's or the optimizer's state, None for nothing."""
        return whole

    # --- the model

    def computing(self, batch: MicroBatch) -> None:
        self.num_global = batch.num_global

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        self.computing(batch)
        return super().backward(forward, loss, batch, weight)

    def use_global_batch(self, model: nn.Module, synchronize: bool = True) -> None:
        """Make batch norm use, and dropout draw for, the whole batch of which each rank has a shard."""
        if self.data_size > 1:
            global_dropout(model, self.shard, total=lambda _: self.num_global)
            if synchronize:
                synchronize_batch_norms(model, self.data_group)

    def close(self) -> None:
        self._flag = self._control = self._patient = None
        if dist.is_initialized():
            dist.destroy_process_group()


Sendable = Any
"""What one process sends to another: nested containers of numbers, text and tensors."""


def on_cpu(value: Sendable) -> Sendable:
    """Copy nested containers with every tensor moved to the CPU, for sending to another process."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item) for item in value)
    return value
