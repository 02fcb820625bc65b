"""Weights that are pruned: held at exactly 0 from the first step on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.base.stateful import State


class Pruning:
    """Holds masks of weights, by parameter name; true where a weight is kept. Checkpoints contain them.

    The gradients of pruned weights are set to 0 before clipping, so that momentum, the second moments and the norm are
    those of the pruned network; their weights are set to 0 after each step, whatever the optimizer adds.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._named = dict(model.named_parameters())
        self._weights: list[Tensor] = []
        self._factors: list[Tensor] = []
        self.use(masks)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks, bool and of the shapes of the weights."""
        return dict(self._masks)

    def use(self, masks: Mapping[str, Tensor]) -> None:
        """Take these masks from now on, each of which must fit its weight."""
        for name, mask in masks.items():
            weight = self._named.get(name)
            assert weight is not None and weight.shape == mask.shape, f"the mask of {name} does not fit the model"
        self._weights = [self._named[name] for name in masks]
        self._masks = {name: mask.to(self._named[name].device) for name, mask in masks.items()}
        self._factors = [self._masks[name].to(self._named[name].dtype) for name in masks]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set pruned weights to 0."""
        if self._weights:
            torch._foreach_mul_(self._weights, self._factors)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to 0."""
        pairs = [(w.grad, f) for w, f in zip(self._weights, self._factors, strict=True) if w.grad is not None]
        if pairs:
            gradients, factors = zip(*pairs, strict=True)
            torch._foreach_mul_(list(gradients), list(factors))

    def state_dict(self) -> State:
        return {"masks": self.masks}

    def load_state_dict(self, state: State) -> None:
        self.use(state["masks"])
