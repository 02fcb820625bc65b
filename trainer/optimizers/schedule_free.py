"""AdamW without a schedule: the rate is constant, and the weights to use are an average (Defazio et al. 2024)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_number, check_whole
from trainer.optimizers.foreach import buffers, sgd_, with_gradients


class ScheduleFreeAdamW(Optimizer):
    """Three sequences: z takes the steps, x is its weighted mean, and gradients are taken at y between the two:

    v <- b2 v + (1 - b2) g^2,  d = g / (sqrt(v / (1 - b2^t)) + eps) + weight_decay y,  z <- z - s d,
    x <- (1 - c) x + c z,  y = (1 - b1) z + b1 x,  with c = (t^r s_max^p) / (its sum so far), s = lr min(1, t / warmup),
    s_max the largest s so far and p = `weight_lr_power`.

    In training the model's weights are y; `evaluation_weights` returns x, which is evaluated and kept as best. Batch
    norm keeps the statistics of y. Defazio et al. 2024, algorithm 1, as in the authors' package. Raises ValueError:
    `lr` not above 0, betas[0] not in (0, 1), betas[1] not in [0, 1), any other argument below 0.
    """

    element_wise = True
    rate = "fixed"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.005,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 20,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("betas", betas[0], 0, 1, above=True, below=True)
        check_number("betas", betas[1], 0, 1, below=True)
        check_whole("warmup_steps", warmup_steps, 0)
        rest = {"eps": eps, "weight_decay": weight_decay, "r": r, "weight_lr_power": weight_lr_power}
        for name, value in rest.items():
            check_number(name, value, 0)
        super().__init__(
            params,
            {
                "lr": lr, "betas": tuple(betas), "warmup_steps": warmup_steps, **rest,
                "steps": 0, "weight_sum": 0.0, "lr_max": 0.0,  # in groups, because checkpoints contain them
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            count = group["steps"]
            lr = group["lr"] * min(1.0, count / max(1, group["warmup_steps"]))
            group["lr_max"] = max(lr, group["lr_max"])
            weight = count ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if group["weight_sum"] else 0.0
            params, gradients = with_gradients(group)
            if not params:
                continue
            for parameter in params:
                state = self.state[parameter]
                if "z" not in state:
                    state["z"] = parameter.clone(memory_format=torch.preserve_format)
            beta1, beta2 = group["betas"]
            squares, steps = buffers(self, params, "exp_avg_sq"), buffers(self, params, "z")
            decay = group["weight_decay"]
            # y becomes b1 x, which leaves b1 (1 - c) x + (1 - b1 (1 - c)) z to be the next y once z has taken its step
            sgd_(params, steps, [], 1 - beta1)
            counts = [torch.full((), count, dtype=torch.float32, device=params[0].device)] * len(params)
            # with beta 0, Adam's mean is the gradient; of y = (1 - b1) z + b1 x, it takes the decay by z
            torch._fused_adamw_(
                steps, gradients, gradients, squares, [], counts, lr=lr, beta1=0.0, beta2=beta2,
                weight_decay=decay * (1 - beta1), eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip
            if decay:
                torch._foreach_add_(steps, params, alpha=-lr * decay)
            of_z = 1 - beta1 * (1 - share)
            sgd_(params, steps, [], -of_z, weight_decay=-share / of_z)  # (1 - c) w + of_z z

    @torch.no_grad()
    def evaluation_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter that has been stepped, and x."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "z" in self.state.get(parameter, {}):
                    yield parameter, parameter.lerp(self.state[parameter]["z"], 1 - 1 / group["betas"][0])
