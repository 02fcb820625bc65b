"""The largest memory of this process, or of its GPU, during a part of a measurement."""

import gc
import resource
import sys
from pathlib import Path

import torch

from trainer.base.unused_memory import return_unused_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


class Peak:
    """Bytes by which memory grew beyond what it was at `begin`.

    On the CPU these are resident pages of the whole process, so they include what the allocator keeps and libraries'
    workspaces. None where the system does not tell. On CUDA they are bytes in tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before, self._can_reset = 0, True

    def begin(self) -> None:
        """Forget earlier peaks, and return unused memory to the system first, which would hide a growth."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        return_unused_memory()
        self._can_reset = _reset_peak()
        now = _kilobytes("VmRSS") if self._can_reset else _largest()
        self._before = 0 if now is None else now

    def kept(self) -> int | None:
        """Return what is left of the growth since `begin`, when all that is unused is returned."""
        gc.collect()
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device) - self._before
        if self._device.type != "cpu":
            return None
        return_unused_memory()
        now = _kilobytes("VmRSS")
        return 0 if now is None or not self._can_reset else max(0, now - self._before) * 1024

    def growth(self) -> int | None:
        """Return the largest growth since `begin`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        if self._device.type != "cpu":
            return None
        now = _kilobytes("VmHWM") if self._can_reset else _largest()
        return None if now is None else max(0, now - self._before) * 1024


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _kilobytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _largest() -> int:
    """Return the largest memory of the process so far, in kB."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found // 1024 if sys.platform == "darwin" else found
