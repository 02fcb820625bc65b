"""Samplers: which sample of the training part comes when.

`order(targets_N, generator)` answers with the indices of one whole epoch, int64, on the CPU; the CPU
generator comes seeded for that epoch, so that no order depends on how often a run was interrupted. `repeats`
says whether a sample may come more than once in an epoch.
"""

import torch
from torch import Tensor


class Shuffle:
    """A new uniform permutation every epoch: every sample exactly once.

    Source: A "Shuffling the training samples"; B "SGD Algorithm with mini-batches".
    """

    repeats = False

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(targets_N), generator=generator)


class Sequential:
    """The stored order, 0 to N-1, every epoch; draws nothing."""

    repeats = False

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.arange(len(targets_N))
