"""A deterministic problem on which optimizers are compared with references.

The references that are not installed for the tests were run on it once; RECORDED has six of their weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.capabilities import needs_closure
from trainer.base.torch_optimizers import plain_step
from trainer.base.without_compiler import keep_compiler_out

keep_compiler_out()  # its import takes longer than all these tests

SHAPES = ((4, 3), (3,), (2, 3, 2, 2))
SHOWN = [0, 5, 11, 13, 20, 38]  # of the flattened weights
# after 20 steps with lr=0.05, weight_decay=0.1
RECORDED = {
    "timm 1.0.31, SGDW(momentum=0.9)": [
        -0.8865108629321269, 0.2758684914109314, 0.10722772694930392, 0.8583127109815217, 2.8592158068908278,
        0.7359426400355747,
    ],
    "timm 1.0.31 and pytorch_optimizer 4.1.0, Lion(betas=(0.9, 0.99))": [
        1.0555009395502124, -0.7550677428505328, 0.04433563732057162, 0.9484176901809691, 0.6199131270723399,
        0.7730192014044002,
    ],
    "schedulefree 1.4.1, AdamWScheduleFree(betas=(0.9, 0.99), warmup_steps=5, r=1.0), in training": [
        1.2515704193691886, -0.9593236060311199, 0.053760190885898326, 0.9786558005359078, 0.5557546596227904,
        0.7319272585231582,
    ],
    "the same in evaluation": [
        1.2576057665717424, -0.9832953560910864, 0.06342266460784603, 0.9783473029540064, 0.5435700334391608,
        0.7104129258167524,
    ],
    "pytorch_optimizer 4.1.0, SAM(SGD, rho=0.3, adaptive=True, momentum=0.9)": [
        -3.6533612235367086, 0.27296743591341527, 0.10922371746053389, 0.8171460978735453, 2.759001761179051,
        0.4721660259878416,
    ],
}  # fmt: skip
Make = Callable[[list[nn.Parameter]], Optimizer]


def weights(shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def loss(params: Iterable[Tensor], step: int) -> Tensor:
    """A smooth function that is neither convex nor the same in each step."""
    total = torch.zeros((), dtype=torch.float64)
    for number, p in enumerate(params):
        curvature = torch.linspace(0.5, 3, p.numel(), dtype=p.dtype).view(p.shape)
        total = total + (curvature * (p - number).square() / 2 + torch.sin(3 * p + step)).sum()
    return total


def rate(base: float, step: int) -> float:
    """A rate that falls and rises again."""
    return base * (1.0, 0.5, 0.1, 0.7)[step // 3 % 4]


def trained(make: Make, steps: int = 20, params: list[nn.Parameter] | None = None, rates: bool = True) -> Tensor:
    """The weights after some steps with changing rates, flattened."""
    params = weights() if params is None else params
    optimizer: Any = make(params)
    bases = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = rate(base, step) if rates else base

        def closure(step: int = step) -> Tensor:
            with torch.enable_grad():
                optimizer.zero_grad()
                value = loss(params, step)
                value.backward()  # type: ignore[no-untyped-call]
            return value

        if needs_closure(optimizer):
            optimizer.step(closure)
        else:
            closure()
            plain_step(optimizer, None)
    return torch.cat([p.detach().flatten() for p in params])
