"""Classes as users plug them in that are right, though unusual."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.configuration.wrong_classes import GoodData, GoodLoss, GoodModel, top
from trainer.data.facts import Part

third = partial(top, k=3)
third.__name__ = "third"  # type: ignore[attr-defined]


class Confident:
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.softmax(1).amax(1) > 0.5).sum()


named = lambda outputs, targets: outputs.amax(1).sum()  # noqa: E731
named.__name__ = "named"


class Measured(GoodLoss):
    """Without `initial_value`; metrics are a name of ours, partials, an object and a named lambda."""

    metrics = {"classification": ("accuracy", partial(top, k=2), third, Confident(), named)}  # noqa: RUF012


class Lazy(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.filters, self.norm, self.output = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(num_outputs)

    def forward(self, images: Tensor) -> Any:
        return self.output(self.norm(self.filters(images)).relu().flatten(1))


class Zeros:
    def __call__(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)


class Loaded(GoodData):
    """Targets of any dtype and shape."""

    def __init__(self, task: str, dtype: str, shape: list[int], num_outputs: int) -> None:
        self.given = {"task": task, "num_outputs": num_outputs}
        self.dtype, self.shape = getattr(torch, dtype), shape

    def part(self, count: int) -> Any:
        part = super().part(count)
        values = (torch.arange(count * torch.Size(self.shape).numel()) % 2).to(self.dtype)
        return Part(part.images_NCHW, values.reshape(count, *self.shape))


class Tied(GoodModel):
    """One weight in two layers, and a layer that is used in no step."""

    pipeline_plan = ("first", "second", "layer")

    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int, spare: bool = False) -> None:
        super().__init__(input_shape, num_outputs)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.spare = nn.Linear(3, 3) if spare else None

    def forward(self, images: Tensor) -> Any:
        return self.layer(self.second(self.first(images.flatten(1))))
