"""Gearshift: an experiment runner for training neural networks.

From Python: `run = assemble(compose(["optimizer=adamw"]))`, then `fit(run)`; later `resume(folder)`.
"""

TYPE_CHECKING = False  # as type checkers know it; importing typing takes longer than all else before `train` begins
if TYPE_CHECKING:
    from typing import Any

__all__ = ["assemble", "compose", "fit", "launch", "resume"]

_HOMES = {
    "compose": "trainer.configuration.compose",
    "assemble": "trainer.assembly.assemble",
    "fit": "trainer.training.loop",
    "launch": "trainer.launching",
    "resume": "trainer.commands.resume",
}


def __dir__() -> "list[str]":
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> "Any":
    """Import lazily, so that `train --help` does not import torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'trainer' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
