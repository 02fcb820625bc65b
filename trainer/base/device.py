"""The device that a run computes on, and the memory of the machine."""

import os

import torch

from trainer.base.errors import ConfigurationError
from trainer.base.rank import rank_info


def choose_device(text: str, several: bool = False) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    With `several` ranks, each has its own CUDA device, or all share the CPU. Raises ConfigurationError.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if several and (text == "mps" or text.startswith("cuda:")):
        raise ConfigurationError(f"device={text}: is a single device; with this parallelism use cuda, cpu or auto")
    if several and cuda and text in ("auto", "cuda"):
        info = rank_info()
        return torch.device("cuda", info.local_rank if info is not None else 0)
    if text == "auto":
        return torch.device("cuda" if cuda else "mps" if mps and not several else "cpu")
    devices = [
        "cpu",
        *(["mps"] if mps else []),
        *(f"cuda:{index}" for index in range(torch.cuda.device_count())),
    ]
    if text not in (*devices, *(["cuda"] if cuda else [])):
        raise ConfigurationError(f"device={text}: this machine has {', '.join(devices)}")
    return torch.device(text)


def total_memory() -> int:
    """Total memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
