"""torch's process-wide settings, and the memory layout of images."""

import os
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from trainer.base.config import Config
from trainer.base.rank import rank_info
from trainer.base.without_compiler import set_deterministic
from trainer.configuration.blueprint import Blueprint


def set_up_torch(config: Config, device: torch.device) -> None:
    """Set threads and determinism for the whole process."""
    torchs_own_threads()
    info = rank_info()
    sharing = info.local_size if info is not None and device.type == "cpu" else 1
    torch.set_num_threads(config["threads"] or max(1, torchs_own_threads() // sharing))
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_deterministic(config["deterministic"], warn_only=device.type != "cpu", compiles=config["compile"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # torch.cuda.manual_seed seeds the current device
    torch.backends.cudnn.benchmark = not config["deterministic"]
    # filling new memory is unnecessary: nothing here reads uninitialized memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_torch_settings() -> Callable[[], None]:
    """Return a function that restores the settings of `set_up_torch` as they are now: they are the program's own."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    benchmark, filling = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]

    def restore() -> None:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]

    return restore


@cache
def torchs_own_threads() -> int:
    """Return torch's default number of threads, cached so that an earlier run's setting does not affect it."""
    return torch.get_num_threads()


def use_channels_last(wanted: bool | str, model: nn.Module, blueprint: Blueprint) -> bool:
    """Whether to use channels-last memory; `auto`: where it was measured to help, for convolutions on CUDA or bf16."""
    if wanted != "auto":
        return bool(wanted)
    helps = blueprint.device.type == "cuda" or blueprint.dtype is torch.bfloat16
    return helps and any(isinstance(module, nn.Conv2d) for module in model.modules())
