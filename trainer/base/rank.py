"""The rank of this process, and the store through which ranks find each other."""

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
    """Set this process's rank; `open_store` opens the job's own torch.distributed store."""
    global _taken, _open_store
    _taken, _open_store = info, open_store


def rank_info() -> RankInfo | None:
    """Return the rank set by `take`, else the one in the environment, else None for a single process."""
    return _taken or given_rank_info()


def given_rank_info() -> RankInfo | None:
    """Return the rank that torchrun has set in the environment, if any."""
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():  # some clusters set only RANK
        return None
    world_size = int(env["WORLD_SIZE"])
    return RankInfo(
        int(env["RANK"]), world_size, int(env.get("LOCAL_RANK", env["RANK"])),
        int(env.get("LOCAL_WORLD_SIZE", world_size)),
    )  # fmt: skip


def open_store() -> "Store":
    """Open the job's store. Raises ValueError in a process that is not a rank."""
    if _open_store is None:
        raise ValueError(
            "parallelism: this process is not a rank; start the run with `train`, torchrun or trainer.launch"
        )
    return _open_store()
