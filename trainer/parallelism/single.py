"""Training on one device."""

import torch
from torch import nn

from trainer.parallelism.strategy import Unreduced


class Single(Unreduced):
    """One process on one device; the reference for all other strategies."""

    replicates = True
    differentiates = True

    def plan(self, available: int | None, machines: int) -> None:
        pass

    def connect(self, device: torch.device) -> None:
        pass

    def apply(self, model: nn.Module) -> nn.Module:
        return model

    def shard(self, count: int) -> slice:
        return slice(0, count)
