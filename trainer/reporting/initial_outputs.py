"""Mean and variance of the outputs of each layer with weights, before training.

If they grow or shrink from layer to layer, the initializer does not suit the activations (CUHK ELEG 5491, "Weight
initialization").
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WITH_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Outputs(NamedTuple):
    """Mean and variance of a layer's outputs, in its first call."""

    layer: str
    mean: float
    variance: float


@torch.no_grad()
def initial_outputs(model: nn.Module, images: Tensor) -> list[Outputs]:
    """Run the model once in training mode; its buffers and the random generators stay as they are."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, output: Tensor) -> None:
        values = output.float()
        found.setdefault(name, (values.mean(), values.var(correction=0)))

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if isinstance(module, _WITH_WEIGHTS)
    ]
    try:
        with _unchanged(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [Outputs(name, mean.item(), variance.item()) for name, (mean, variance) in found.items()]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    buffers = [buffer.clone() for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    was_training = model.training
    with torch.random.fork_rng(devices=devices):
        try:
            model.train()
            yield
        finally:
            model.train(was_training)
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)


def as_markdown(rows: Iterable[Outputs]) -> str:
    """A table for TensorBoard."""
    lines = [f"| {row.layer} | {row.mean:.3g} | {row.variance:.3g} |" for row in rows]
    return "\n".join(["| layer | mean | variance |", "|---|---|---|", *lines])
