"""Gradient descent with momentum in its three forms, with decoupled weight decay, and at the point looked ahead to."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_choice, check_number, check_that
from trainer.contracts import ParameterGroup
from trainer.optimizers.foreach import buffers, factor_of, sgd_, with_decay, with_gradients

Form = Literal["heavy_ball", "velocity", "ema"]
FORMS = ("heavy_ball", "velocity", "ema")


def momentum(
    params: ParamsT,
    lr: float = 0.02,
    momentum: float = 0.9,
    form: Form = "heavy_ball",
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    fused: bool = True,
) -> Optimizer:
    """Return torch's SGD for the form `heavy_ball`, and `Momentum` for the other two.

    Raises ValueError if `dampening` or `nesterov`, which are torch's, are given for another form, or `nesterov` without
    momentum or with dampening.
    """
    check_choice("form", form, FORMS)
    if form == "heavy_ball":
        beside = f"momentum={momentum:g}" if momentum == 0 else f"dampening={dampening:g}"
        check_that(not nesterov or (momentum > 0 and dampening == 0), "nesterov", nesterov, f"false with {beside}")
        return SGD(params, lr, momentum, dampening, weight_decay, nesterov, fused=fused)
    check_that(dampening == 0, "dampening", dampening, f"0 with form={form}")
    check_that(not nesterov, "nesterov", nesterov, f"false with form={form}")
    return Momentum(params, lr, momentum, form, weight_decay)


def nesterov(
    params: ParamsT,
    lr: float = 0.02,
    momentum: float = 0.9,
    lookahead: bool = False,
    weight_decay: float = 0.0,
    fused: bool = True,
) -> Optimizer:
    """Return torch's SGD with `nesterov`, or with `lookahead` the rule of the lectures, `Lookahead`.

    Raises ValueError: `momentum` not in (0, 1).
    """
    check_number("momentum", momentum, 0, 1, above=True, below=True)
    if lookahead:
        return Lookahead(params, lr, momentum, weight_decay)
    return SGD(params, lr, momentum, weight_decay=weight_decay, nesterov=True, fused=fused)


class Momentum(Optimizer):
    """The buffer b starts at 0, and mu is `momentum`:

    heavy_ball: b <- mu b + g,            w <- w - lr b  (Polyak 1964; Optimization, Part 2; torch's)
    velocity:   b <- mu b + lr g,         w <- w - b     (CS7150; UIUC ECE 598; Keras's: differs if lr changes)
    ema:        b <- mu b + (1 - mu) g,   w <- w - lr b  (CUHK ELEG 5491; torch's `dampening` starts b at g instead)

    Slide: CUHK ELEG 5491 prints the signs of the last form for a buffer of negative gradients.

    `weight_decay` is coupled: g includes weight_decay * w. Raises ValueError: `lr` not above 0, `momentum` not in
    [0, 1), `weight_decay` below 0, another `form`.
    """

    element_wise = True
    is_decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.9,
        form: Form = "heavy_ball",
        weight_decay: float = 0.0,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("momentum", momentum, 0, 1, below=True)
        check_choice("form", form, FORMS)
        check_number("weight_decay", weight_decay, 0)
        super().__init__(params, {"lr": lr, "momentum": momentum, "form": form, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if params:
                self._update(group, params, gradients)

    def _update(self, group: ParameterGroup, params: list[Tensor], gradients: list[Tensor]) -> None:
        lr, mu, form, weight_decay = (group[name] for name in ("lr", "momentum", "form", "weight_decay"))
        if self.is_decoupled and weight_decay:
            torch._foreach_mul_(params, factor_of(params, 1 - lr * weight_decay))
        kept = buffers(self, params, "momentum_buffer")
        length, dampening = {"heavy_ball": (lr, 0.0), "velocity": (1.0, 1 - lr), "ema": (lr, mu)}[form]
        sgd_(params, gradients, kept, length, mu, dampening, 0.0 if self.is_decoupled else weight_decay)


class SGDW(Momentum):
    """Any form of `Momentum` with decoupled decay: w <- w - lr b - lr weight_decay w, with the old w on the right.

    CUHK ELEG 5491, "SGD with Decoupled Weight Decay"; Loshchilov & Hutter 2019, algorithm 1, whose schedule multiplies
    both terms, too. Raises ValueError as `Momentum` does.
    """

    is_decoupled = True

    def __init__(
        self, params: ParamsT, lr: float = 0.02, momentum: float = 0.9, form: Form = "ema", weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, lr, momentum, form, weight_decay)


class Lookahead(Optimizer):
    """v <- mu v + lr grad J(w - mu v), w <- w - v: the gradient is that of the point to which momentum leads.

    UIUC ECE 598, "Nesterov Acceleration"; Nesterov 1983. torch's `nesterov` is the same rule in terms of the point
    looked ahead to, at which it also evaluates. `weight_decay` is coupled: the penalty is differentiated there, too.
    Raises ValueError: `lr` not above 0, `momentum` not in [0, 1), `weight_decay` below 0.
    """

    needs_closure = True
    element_wise = True

    def __init__(self, params: ParamsT, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("momentum", momentum, 0, 1, below=True)
        check_number("weight_decay", weight_decay, 0)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        for group in self.param_groups:
            params = list(group["params"])
            kept = buffers(self, params, "momentum_buffer")
            torch._foreach_mul_(kept, factor_of(kept, group["momentum"]))
            torch._foreach_sub_(params, kept)
        loss = closure()
        # w - v is (w - mu v) - lr g: the step goes on from the point looked ahead to
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if params:
                gradients = with_decay(gradients, params, group["weight_decay"])
                torch._foreach_add_(buffers(self, params, "momentum_buffer"), gradients, alpha=group["lr"])
                sgd_(params, gradients, [], group["lr"])
        return loss
