"""The options that are torch's classes, against the formulas of their papers in numpy.

Each formula returns the weights after the given gradients; its arguments are the keys of the option's file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from trainer.base.torch_optimizers import plain_step
from trainer.base.without_compiler import keep_compiler_out
from trainer.configuration.build import locate
from trainer.optimizers.foreach import sgd_, with_decay

keep_compiler_out()  # its import takes longer than all these tests
CONFIGS = Path(__file__).parents[2] / "configs/optimizer"
GENERATOR = np.random.default_rng(0)
START = GENERATOR.normal(size=(3, 4))
GRADIENTS = GENERATOR.normal(size=(20, 3, 4)) * np.geomspace(0.01, 10, 4)
Formula = Callable[..., np.ndarray]
Arrays = np.ndarray


def sgd(w: Arrays, lr: float, weight_decay: float) -> Arrays:
    for g in GRADIENTS:
        w = w - lr * (g + weight_decay * w)
    return w


def adagrad(
    w: Arrays, lr: float, lr_decay: float, weight_decay: float, initial_accumulator_value: float, eps: float
) -> Arrays:
    s = np.full_like(w, initial_accumulator_value)
    for t, g in enumerate(GRADIENTS):
        g = g + weight_decay * w
        s = s + g**2
        w = w - lr / (1 + t * lr_decay) * g / (np.sqrt(s) + eps)
    return w


def adadelta(w: Arrays, lr: float, rho: float, eps: float, weight_decay: float) -> Arrays:
    v, u = np.zeros_like(w), np.zeros_like(w)
    for g in GRADIENTS:
        g = g + weight_decay * w
        v = rho * v + (1 - rho) * g**2
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d**2
        w = w - lr * d
    return w


def rmsprop(
    w: Arrays, lr: float, alpha: float, eps: float, weight_decay: float, momentum: float, centered: bool
) -> Arrays:
    v, mean, b = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for g in GRADIENTS:
        g = g + weight_decay * w
        v = alpha * v + (1 - alpha) * g**2
        mean = alpha * mean + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(v - mean**2 * centered) + eps)
        w = w - lr * b
    return w


def adam(w: Arrays, lr: float, betas: list[float], eps: float, weight_decay: float, amsgrad: bool) -> Arrays:
    return _adam(w, lr, betas, eps, 0.0, weight_decay, amsgrad)


def adamw(w: Arrays, lr: float, betas: list[float], eps: float, weight_decay: float, amsgrad: bool) -> Arrays:
    return _adam(w, lr, betas, eps, weight_decay, 0.0, amsgrad)


def _adam(w: Arrays, lr: float, betas: list[float], eps: float, decoupled: float, l2: float, largest: bool) -> Arrays:
    (b1, b2), m, v, top = betas, np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(GRADIENTS, 1):
        g = g + l2 * w
        w = w - lr * decoupled * w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        top = np.maximum(top, v) if largest else v
        w = w - lr * m / (1 - b1**t) / (np.sqrt(top / (1 - b2**t)) + eps)
    return w


def adamax(w: Arrays, lr: float, betas: list[float], eps: float, weight_decay: float) -> Arrays:
    (b1, b2), m, u = betas, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(GRADIENTS, 1):
        g = g + weight_decay * w
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, np.abs(g) + eps)
        w = w - lr / (1 - b1**t) * m / u
    return w


def nadam(
    w: Arrays, lr: float, betas: list[float], eps: float, weight_decay: float, momentum_decay: float,
    decoupled_weight_decay: bool,
) -> Arrays:  # fmt: skip
    (b1, b2), m, v, product = betas, np.zeros_like(w), np.zeros_like(w), 1.0
    for t, g in enumerate(GRADIENTS, 1):
        w = w - lr * weight_decay * w * decoupled_weight_decay
        g = g + weight_decay * w * (not decoupled_weight_decay)
        mu, next_mu = (b1 * (1 - 0.96 ** (k * momentum_decay) / 2) for k in (t, t + 1))
        product *= mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        ahead = next_mu * m / (1 - product * next_mu) + (1 - mu) * g / (1 - product)
        w = w - lr * ahead / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def radam(
    w: Arrays, lr: float, betas: list[float], eps: float, weight_decay: float, decoupled_weight_decay: bool
) -> Arrays:
    (b1, b2), m, v = betas, np.zeros_like(w), np.zeros_like(w)
    last = 2 / (1 - b2) - 1
    for t, g in enumerate(GRADIENTS, 1):
        w = w - lr * weight_decay * w * decoupled_weight_decay
        g = g + weight_decay * w * (not decoupled_weight_decay)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        rho = last - 2 * t * b2**t / (1 - b2**t)
        step = m / (1 - b1**t)
        if rho > 5:
            ratio = (rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)
            step = step * np.sqrt(ratio) * np.sqrt(1 - b2**t) / (np.sqrt(v) + eps)
        w = w - lr * step
    return w


def asgd(w: Arrays, lr: float, lambd: float, alpha: float, t0: float, weight_decay: float) -> Arrays:
    for t, g in enumerate(GRADIENTS):
        eta = lr / (1 + lambd * lr * t) ** alpha
        w = (1 - lambd * eta) * w - eta * (g + weight_decay * w)
    return w


def adafactor(
    w: Arrays, lr: float, beta2_decay: float, eps: list[float | None], d: float, weight_decay: float
) -> Arrays:
    rows, columns = np.zeros((3, 1)), np.zeros((1, 4))
    least = eps[0] or float(np.finfo(w.dtype).eps)
    for t, g in enumerate(GRADIENTS, 1):
        new = t**beta2_decay
        rows = (1 - new) * rows + new * (g**2).mean(1, keepdims=True)
        columns = (1 - new) * columns + new * (g**2).mean(0, keepdims=True)
        u = g / np.sqrt(np.maximum(rows * columns / rows.mean(), least**2))
        u = u / max(1.0, np.sqrt((u**2).mean()) / d)
        step = max(float(eps[1] or 0), np.sqrt((w**2).mean())) * min(lr, t**-0.5)
        w = (1 - lr * weight_decay) * w - step * u
    return w


# other values than those of the files, so that every term matters
FORMULAS: dict[str, tuple[Formula, dict[str, Any]]] = {
    "sgd": (sgd, {"weight_decay": 0.1}),
    "adagrad": (adagrad, {"weight_decay": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "eps": 0.01}),
    "adadelta": (adadelta, {"weight_decay": 0.1, "eps": 0.01}),
    "rmsprop": (rmsprop, {"weight_decay": 0.1, "momentum": 0.7, "centered": True, "eps": 0.01}),
    "adam": (adam, {"weight_decay": 0.1, "eps": 0.01, "amsgrad": True, "betas": [0.8, 0.6]}),
    "adam_l2": (adam, {"eps": 0.01}),
    "adamw": (adamw, {"weight_decay": 0.1, "eps": 0.01, "betas": [0.8, 0.6]}),
    "adamax": (adamax, {"weight_decay": 0.1, "betas": [0.8, 0.6]}),
    "nadam": (nadam, {"weight_decay": 0.1, "momentum_decay": 0.3, "eps": 0.01}),
    "radam": (radam, {"weight_decay": 0.1, "betas": [0.8, 0.9], "decoupled_weight_decay": True}),
    "asgd": (asgd, {"weight_decay": 0.1, "lambd": 0.5}),
    "adafactor": (adafactor, {"weight_decay": 0.1, "lr": 0.5}),
}


@pytest.mark.proves(
    "optimizer=sgd", "optimizer=adagrad", "optimizer=adadelta", "optimizer=rmsprop", "optimizer=adam",
    "optimizer=adam_l2", "optimizer=adamw", "optimizer=adamax", "optimizer=radam", "optimizer=adafactor",
    reference="the paper's formula in numpy",
    tolerance="1e-10 relative over 20 steps, with the file's values and with others",
)  # fmt: skip
@pytest.mark.proves(
    "optimizer=nadam", "optimizer=asgd", reference="the paper's formula in numpy",
    tolerance="1e-6 relative over 20 steps, with the file's values and with others",
)  # fmt: skip
@pytest.mark.parametrize("is_default", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_torchs_classes_follow_the_formulas_of_their_papers(name: str, is_default: bool) -> None:
    formula, changes = FORMULAS[name]
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    keys = {key: value for key, value in node.items() if key not in ("_target_", "rate")}
    keys |= {} if is_default else changes
    parameter = nn.Parameter(torch.from_numpy(START.copy()))
    optimizer = locate(node["_target_"], "optimizer")([parameter], **keys)
    for g in GRADIENTS:
        parameter.grad = torch.from_numpy(g.copy())
        plain_step(optimizer, None)
    keys.pop("fused", None)
    tolerance = 1e-6 if name in ("nadam", "asgd") else 1e-10  # torch keeps their factors in single precision
    np.testing.assert_allclose(parameter.detach().numpy(), formula(START, **keys), rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("dampening", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 1.0, 0.2])
def test_the_shared_step_is_its_formula(weight_decay: float, momentum: float, dampening: float) -> None:
    w, g, b = START, GRADIENTS[0], START + 1
    tensors = [[torch.from_numpy(values.copy())] for values in (w, g, b)]
    (decayed,) = with_decay(tensors[1], tensors[0], weight_decay)
    np.testing.assert_allclose(decayed.numpy(), g + weight_decay * w, rtol=1e-12)
    assert (decayed is tensors[1][0]) == (weight_decay == 0)  # no copy for nothing
    sgd_(*tensors, 0.5, momentum, dampening, weight_decay)
    b = momentum * b + (1 - dampening) * (g + weight_decay * w)
    np.testing.assert_allclose(tensors[0][0].numpy(), w - 0.5 * b, rtol=1e-12)
