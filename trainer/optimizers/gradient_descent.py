"""Full-batch gradient descent that stops by itself."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_number, check_whole
from trainer.optimizers.foreach import sgd_, with_decay, with_gradients


class GradientDescent(Optimizer):
    """w <- w - lr g until the length of a step, lr |g|, was below `tolerance` in `patience` steps in a row.

    Slide: the listing of CUHK ELEG 5491 stops while the length is *above* the tolerance, a misprint.

    `weight_decay` is coupled. Raises ValueError: `lr` not above 0, `tolerance` or `weight_decay` below 0, `patience`
    below 1.
    """

    element_wise = False  # the length is that of the whole step
    joins_parameters = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        tolerance: float = 1e-6,
        patience: int = 10,
        weight_decay: float = 0.0,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("tolerance", tolerance, 0)
        check_whole("patience", patience, 1)
        check_number("weight_decay", weight_decay, 0)
        # `short` counts short steps in a row; it is in a group because checkpoints contain groups
        defaults = {"lr": lr, "tolerance": tolerance, "patience": patience, "weight_decay": weight_decay, "short": 0}
        super().__init__(params, defaults)

    @property
    def converged(self) -> bool:
        first = self.param_groups[0]
        return bool(first["short"] >= first["patience"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        moves: list[tuple[list[Tensor], float]] = []
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if params:
                gradients = with_decay(gradients, params, group["weight_decay"])
                moves.append((gradients, group["lr"]))
                sgd_(params, gradients, [], group["lr"])
        first = self.param_groups[0]
        first["short"] = first["short"] + 1 if _is_shorter(moves, first["tolerance"]) else 0


def _is_shorter(moves: list[tuple[list[Tensor], float]], tolerance: float) -> bool:
    """Whether all parts of a step, gradients with their rate, are together shorter than the tolerance."""
    if not moves:
        return tolerance > 0
    gradients, lr = moves[-1]
    if float(torch.linalg.vector_norm(gradients[-1])) * lr >= tolerance:
        return False  # one part is long enough, which saves the others' norms in nearly all steps
    norms = [torch.stack(torch._foreach_norm(gradients)) * lr for gradients, lr in moves]
    return float(torch.linalg.vector_norm(torch.cat(norms))) < tolerance
