"""This process's place among those of a job, and the store by which they find each other."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """`rank` of `world_size` processes; `local_rank` of `local_size` on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int

    @property
    def machines(self) -> int:
        return self.world_size // self.local_size


_taken: Place | None = None
_open_store: Callable[[], Any] | None = None


def take(place: Place | None, open_store: Callable[[], Any] | None) -> None:
    """Be this rank from now on; `open_store` opens a torch.distributed store that is the job's own."""
    global _taken, _open_store
    _taken, _open_store = place, open_store


def place() -> Place | None:
    """The place that was taken, else the one that torchrun gave, else None: a process of its own."""
    return _taken or given_place()


def given_place() -> Place | None:
    """What the environment says by torchrun's contract."""
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():  # some clusters set the first alone
        return None
    world_size = int(env["WORLD_SIZE"])
    return Place(
        int(env["RANK"]), world_size, int(env.get("LOCAL_RANK", env["RANK"])),
        int(env.get("LOCAL_WORLD_SIZE", world_size)),
    )  # fmt: skip


def open_store() -> Any:
    """The job's store. Raises ValueError in a process that has taken no place."""
    if _open_store is None:
        raise ValueError("parallelism: this process is no rank; start the run with `train`, torchrun or trainer.launch")
    return _open_store()
