"""Which rank of a job this process is, and the store by which they find each other."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed.Store, which mypy does not find there


@dataclass(frozen=True)
class RankInfo:
    """`rank` of `world_size` processes; `local_rank` of `local_size` on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int

    @property
    def machines(self) -> int:
        return self.world_size // self.local_size


_taken: RankInfo | None = None
_open_store: "Callable[[], Store] | None" = None


def take(info: RankInfo | None, open_store: "Callable[[], Store] | None") -> None:
    """Be this rank from now on; `open_store` opens a torch.distributed store that is the job's own."""
    global _taken, _open_store
    _taken, _open_store = info, open_store


def rank_info() -> RankInfo | None:
    """The rank that `take` set, else the one in the environment, else None: a process of its own."""
    return _taken or given_rank_info()


def given_rank_info() -> RankInfo | None:
    """The rank that torchrun has put into the environment."""
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():  # some clusters set the first alone
        return None
    world_size = int(env["WORLD_SIZE"])
    return RankInfo(
        int(env["RANK"]), world_size, int(env.get("LOCAL_RANK", env["RANK"])),
        int(env.get("LOCAL_WORLD_SIZE", world_size)),
    )  # fmt: skip


def open_store() -> "Store":
    """The job's store. Raises ValueError in a process that is no rank."""
    if _open_store is None:
        raise ValueError("parallelism: this process is no rank; start the run with `train`, torchrun or trainer.launch")
    return _open_store()
