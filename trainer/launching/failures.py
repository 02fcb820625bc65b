"""Failures of ranks, as they are sent to other processes and reported to the user."""

import signal
from dataclasses import dataclass
from pathlib import Path

from trainer.base.errors import (
    ComponentError,
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

# seconds after the first failure for other ranks to report theirs, and for the main rank to complete its files
GRACE = 5.0
OURS: dict[str, type[GearshiftError]] = {
    kind.__name__: kind
    for kind in (ComponentError, ConfigurationError, DataError, DiskError, Diverged, OutOfMemory, RankLost, RunInUse)
}


@dataclass(frozen=True)
class Failure:
    """Why a rank ended. `kind` is the name of a GearshiftError, "lost", "raised" or "peer" (another rank failed)."""

    rank: int
    kind: str
    text: str

    @property
    def line(self) -> str:
        return f"rank {self.rank}: {self.text}" if self.kind != "Diverged" else self.text


def describe(error: BaseException, log: Path) -> tuple[str, str]:
    """Return the kind of a failure and one line of text, for sending."""
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
