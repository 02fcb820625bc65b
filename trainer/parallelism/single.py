"""One device: every verb, plainly."""

import torch
from torch import nn

from trainer.parallelism.strategy import Unreduced


class Single(Unreduced):
    """One process, one device; what all other strategies are compared with."""

    def plan(self, available: int | None, machines: int) -> None:
        pass

    def connect(self, device: torch.device) -> None:
        pass

    def apply(self, model: nn.Module) -> nn.Module:
        return model

    def shard(self, count: int) -> slice:
        return slice(0, count)
