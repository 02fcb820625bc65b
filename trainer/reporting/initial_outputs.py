"""Mean and variance of the outputs of each layer with weights, in the first forward pass.

If they grow or shrink from layer to layer, the initializer does not suit the activations (CUHK ELEG 5491, "Weight
initialization").
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_WITH_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)


class Outputs(NamedTuple):
    """Mean and variance of a layer's outputs."""

    layer: str
    mean: float
    variance: float


class FirstOutputs:
    """Records the outputs of each layer in its next call, without changing anything and without a call of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: dict[str, RemovableHandle] = {
            name: module.register_forward_hook(lambda _, __, output, name=name: self._keep(name, output))
            for name, module in model.named_modules()
            if isinstance(module, _WITH_WEIGHTS)
        }

    @torch.no_grad()
    def _keep(self, name: str, output: Tensor | tuple[Tensor, object]) -> None:
        values = (
            (output[0] if isinstance(output, tuple) else output).detach().float()
        )  # of torch.nn.LSTM: with its state
        self._found[name] = values.mean(), values.var(correction=0)
        self._hooks.pop(name).remove()

    def read(self) -> list[Outputs]:
        """Return what was recorded, in the order of the calls, and end the recording. Waits for the device."""
        for hook in self._hooks.values():
            hook.remove()
        return [Outputs(name, mean.item(), variance.item()) for name, (mean, variance) in self._found.items()]


def as_markdown(rows: Iterable[Outputs]) -> str:
    """A table for TensorBoard."""
    lines = [f"| {row.layer} | {row.mean:.3g} | {row.variance:.3g} |" for row in rows]
    return "\n".join(["| layer | mean | variance |", "|---|---|---|", *lines])
