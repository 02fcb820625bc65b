"""Everything about a run that can be known before anything heavy happens; drawing it is the second check.

Signatures, ranges inside components, data facts, shapes (the model runs once on torch's meta device, which has
no memory) and the rules between them. All problems are raised together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer import metrics
from trainer.base.improvement import Improvement
from trainer.configuration.build import build
from trainer.configuration.rules import Config
from trainer.early_stopping import EarlyStopping


@dataclass
class Blueprint:
    """A checked configuration and what follows from it. Durations are in optimizer steps."""

    config: Config
    data: Any
    facts: Any
    loss: Any
    schedule: Any
    strategy: Any
    device: torch.device
    dtype: torch.dtype | None
    metrics: dict[str, metrics.Sum]
    batch_size: int
    micro_batch: int
    steps_per_epoch: int
    total_steps: int
    every_log: int
    every_evaluate: int
    every_checkpoint: int
    monitor: str
    best: Improvement
    early_stopping: EarlyStopping | None

    def build_model(self) -> nn.Module:
        """The model, on torch's current default device."""
        model: nn.Module = build(
            self.config["model"],
            "model",
            input_shape=tuple(self.facts.input_shape),
            num_outputs=self.facts.num_outputs,
        )
        return model

    def build_optimizer(self, params: Any) -> torch.optim.Optimizer:
        """The optimizer over parameters or parameter groups."""
        optimizer: torch.optim.Optimizer = build(self.config["optimizer"], "optimizer", params=params)
        return optimizer


def _micro_batch(config: Config, batch_size: int) -> int:
    """Samples computed at a time."""
    micro_batch = config["micro_batch"]
    if isinstance(micro_batch, int):
        return min(batch_size, micro_batch)
    accumulate: int = config["accumulate"]
    return -(-batch_size // accumulate)
