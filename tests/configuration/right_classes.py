"""Classes as users plug them in that are right, though unusual."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.configuration.wrong_classes import GoodLoss, top

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
