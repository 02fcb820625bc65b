"""How a rank failed, as the others and the user hear of it."""

import signal
from dataclasses import dataclass
from pathlib import Path

from trainer.base.errors import (
    ConfigurationError,
    DataError,
    DiskError,
    Diverged,
    GearshiftError,
    Interrupted,
    OutOfMemory,
    RankLost,
    RunInUse,
    one_line,
    understood,
)
from trainer.storage import run_folder

# how long, after the first failure, the others have to tell theirs, and the main rank to put its files in order
GRACE = 5.0
OURS: dict[str, type[GearshiftError]] = {
    kind.__name__: kind
    for kind in (ConfigurationError, DataError, DiskError, Diverged, OutOfMemory, RankLost, RunInUse)
}


@dataclass(frozen=True)
class Failure:
    """Why a rank ended: `kind` is the name of an error of ours, "lost", "raised" or "peer" (another one failed)."""

    rank: int
    kind: str
    text: str

    @property
    def line(self) -> str:
        return f"rank {self.rank}: {self.text}" if self.kind != "Diverged" else self.text


def told(error: BaseException, log: Path) -> tuple[str, str]:
    """A failure as it is sent: its kind and one line."""
    known = understood(error)
    if type(known).__name__ in OURS:
        return type(known).__name__, str(known)
    if isinstance(known, Interrupted):
        return "peer", str(known)
    names = {kind.__name__ for kind in type(error).__mro__}
    words = str(error)
    by_peer = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"} & names
    if by_peer or any(
        word in words for word in ("onnection closed by peer", "onnection reset by peer", "gloo", "NCCL")
    ):
        return "peer", f"lost its connection: {one_line(error)}"
    return "raised", f"{type(error).__name__}: {one_line(error)} (trace: {run_folder.shown(log)})"


def how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
