"""Time of one optimizer step on ResNet-20's parameters: `python benchmarks/optimizer_step.py [--rounds 15]`.

Each optimizer of ours is compared with the relative of torch that the table names, in its fused and its foreach form,
and with those of timm and pytorch_optimizer that are installed. All take turns in one process with a fixed number of
threads; a round has some steps of each, in an order that rotates, and ratios are computed per round. Gradients are
fixed; a closure that an optimizer needs costs nothing, so that a step is the optimizer's own work.

Newton's method and Broyden's family, whose matrices ResNet-20 would not fit into, are timed on the 650 weights of a
softmax regression of 256 samples, with its gradients; torch's L-BFGS with one iteration is their relative.

With one thread on a CPU, times are of the processor, so that other work on the machine counts less.

The table has the median (quartiles) over the rounds of the mean time of a step, and of its ratios.
"""

import argparse
import gc
import importlib.metadata
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from trainer.averaging import EMA, Mean
from trainer.models.resnet import resnet
from trainer.optimizers.broyden import BFGS
from trainer.optimizers.gradient_descent import GradientDescent
from trainer.optimizers.lion import Lion
from trainer.optimizers.momentum import SGDW, Lookahead, Momentum
from trainer.optimizers.muon import Muon
from trainer.optimizers.newton import Newton, StochasticNewton
from trainer.optimizers.rprop import Rprop
from trainer.optimizers.sam import SAM
from trainer.optimizers.schedule_free import ScheduleFreeAdamW

OF_FUSED, OF_FOREACH, OF_AVERAGED_MODEL = 1.25, 0.5, 0.05
LR, MU, DECAY = 1e-4, 0.9, 0.01
LONGEST = 20e6  # nanoseconds of one optimizer in a round, if it can take more than one step
Params = list[nn.Parameter]
Make = Callable[[Params], Any]


@dataclass(frozen=True)
class Row:
    """An optimizer of ours; `relative` makes torch's with `fused` or `foreach`. `limits`: whether it has some."""

    make: Make
    relative: str
    others: tuple[str, ...] = ()
    limits: bool = True


def _sgd(p: Params, **form: bool) -> Any:
    return torch.optim.SGD(p, LR, **form)


def _momentum(p: Params, **form: bool) -> Any:
    return torch.optim.SGD(p, LR, MU, weight_decay=DECAY, **form)


def _nesterov(p: Params, **form: bool) -> Any:
    return torch.optim.SGD(p, LR, MU, nesterov=True, **form)


def _adamw(p: Params, **form: bool) -> Any:
    return torch.optim.AdamW(p, LR, weight_decay=DECAY, **form)


def _rprop(p: Params, **form: bool) -> Any:
    return torch.optim.Rprop(p, LR, foreach=form["foreach"])


RELATIVES: dict[str, Callable[..., Any]] = {
    "SGD": _sgd, "SGD, momentum": _momentum, "SGD, nesterov": _nesterov, "AdamW": _adamw, "Rprop": _rprop,
}  # fmt: skip
WITHOUT_FUSED = ("Rprop",)
OURS: dict[str, Row] = {
    # with LR the steps would be shorter than its tolerance, as in the last steps of a run
    "gd": Row(lambda p: GradientDescent(p), "SGD"),
    "momentum, velocity": Row(lambda p: Momentum(p, LR, MU, "velocity", DECAY), "SGD, momentum"),
    "momentum, ema": Row(lambda p: Momentum(p, LR, MU, "ema", DECAY), "SGD, momentum"),
    "sgdw": Row(lambda p: SGDW(p, LR, MU, "ema", DECAY), "SGD, momentum", ("timm SGDW", "pytorch_optimizer SGDW")),
    "nesterov, lookahead": Row(lambda p: Lookahead(p, LR, MU), "SGD, nesterov"),
    "rprop": Row(lambda p: Rprop(p, LR), "Rprop"),
    "lion": Row(lambda p: Lion(p, LR, weight_decay=DECAY), "AdamW", ("timm Lion", "pytorch_optimizer Lion")),
    "schedule_free_adamw": Row(
        lambda p: ScheduleFreeAdamW(p, LR, weight_decay=DECAY), "AdamW", ("pytorch_optimizer ScheduleFreeAdamW",)
    ),
    "muon": Row(
        lambda p: Muon(p, LR, convolutions=True), "AdamW", ("timm Muon", "pytorch_optimizer Muon"), limits=False
    ),
    "sam": Row(lambda p: SAM(p, LR, momentum=MU), "SGD, momentum", limits=False),
}


def _of_package(name: str, params: Params) -> Any:
    """An optimizer of timm or pytorch_optimizer by its class. Raises ImportError or AttributeError without it."""
    package, kind = name.split(" ")
    if package == "timm":
        import timm.optim as found
    else:
        import pytorch_optimizer as found
    arguments: dict[str, Any] = {"lr": LR, "weight_decay": DECAY} | ({"momentum": MU} if kind == "SGDW" else {})
    if kind == "Muon" and package == "pytorch_optimizer":
        return vars(found)[kind]([{"params": params, "use_muon": True}], **arguments)
    optimizer = vars(found)[kind](params, **arguments)
    if kind == "ScheduleFreeAdamW":
        optimizer.train()
    return optimizer


def parameters(device: str) -> Params:
    """ResNet-20's, with gradients."""
    torch.manual_seed(0)
    found = list(resnet(input_shape=(3, 32, 32), num_outputs=10, depth=20).to(device).parameters())
    for parameter in found:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return found


def contestants(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names, and functions that take a step."""
    for name, row in OURS.items():
        optimizer = row.make(parameters(device))
        yield name, _stepper(optimizer)
    for name, make in RELATIVES.items():
        for form in ("fused", "foreach"):
            if not (name in WITHOUT_FUSED and form == "fused"):
                yield f"torch {name}, {form}", make(parameters(device), **{form: True}).step
    for name in dict.fromkeys(other for row in OURS.values() for other in row.others):
        with suppress(ImportError):
            yield name, _of_package(name, parameters(device)).step


def _stepper(optimizer: Any) -> Callable[[], object]:
    loss = torch.zeros(())
    needs = isinstance(optimizer, Lookahead | SAM)
    return (lambda: optimizer.step(lambda: loss)) if needs else optimizer.step


# --- averages of the weights ----------------------------------------------------------------------------------------


def averages(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, ours in (("ema", EMA(0.999)), ("polyak", Mean("0step", "1step", steps_per_epoch=1, total_steps=10**9))):
        ours.attach(parameters(device))
        yield name, _averager(ours)
    forms: dict[str, dict[str, Any]] = {
        "torch AveragedModel": {},
        "torch AveragedModel, get_ema_multi_avg_fn": {"multi_avg_fn": get_ema_multi_avg_fn(0.999)},
        "torch AveragedModel, get_ema_avg_fn": {"avg_fn": get_ema_avg_fn(0.999)},
    }
    for name, form in forms.items():
        model = resnet(input_shape=(3, 32, 32), num_outputs=10, depth=20).to(device)
        averaged = AveragedModel(model, **form)
        yield name, lambda averaged=averaged, model=model: averaged.update_parameters(model)
    with suppress(ImportError):
        from timm.utils import ModelEmaV3

        model = resnet(input_shape=(3, 32, 32), num_outputs=10, depth=20).to(device)
        ema = ModelEmaV3(model)
        yield "timm ModelEmaV3", lambda: ema.update(model)


def _averager(averaging: EMA | Mean) -> Callable[[], object]:
    steps = iter(range(1, 10**9))
    return lambda: averaging.stepped([next(steps)])


# --- second order ---------------------------------------------------------------------------------------------------


class Objective:
    """The closure of the trainer for a softmax regression of 256 samples."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.zeros(10, 64, device=device))
        self.bias = nn.Parameter(torch.zeros(10, device=device))
        self.images = torch.randn(256, 64, device=device)
        self.targets = (self.images @ torch.randn(64, 10, device=device)).argmax(1)
        self.parameters = [self.weight, self.bias]

    def __call__(self) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        value = self.loss(create_graph=True)
        value.backward()
        return value.detach()

    def gradient(self) -> Tensor:
        return self()

    def objective(self) -> Tensor:
        return self.loss()

    def loss(self, create_graph: bool = False) -> Tensor:
        with torch.set_grad_enabled(create_graph):
            return F.cross_entropy(F.linear(self.images, self.weight, self.bias), self.targets)


SECOND_ORDER: dict[str, Make] = {
    "newton": Newton,
    "stochastic_newton": StochasticNewton,
    "bfgs": BFGS,
    "torch LBFGS, one iteration": lambda p: torch.optim.LBFGS(p, max_iter=1, line_search_fn="strong_wolfe"),
}


def second_order(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, make in SECOND_ORDER.items():
        problem = Objective(device)
        optimizer = make(problem.parameters)
        yield name, lambda optimizer=optimizer, problem=problem: optimizer.step(problem)


# --- measurement ----------------------------------------------------------------------------------------------------


def measure(steppers: dict[str, Callable[[], object]], rounds: int, steps: int, device: str) -> dict[str, list[float]]:
    """Mean time of a step in microseconds in each round; one warm-up round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steppers}
    # processor time: on a busy machine a step of 100 microseconds may wait for milliseconds
    alone = not device.startswith("cuda") and torch.get_num_threads() == 1
    clock = time.thread_time_ns if alone else time.perf_counter_ns
    names = list(steppers)
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            step = steppers[name]
            gc.disable()
            first = _elapsed(step, 1, clock, device)
            count = max(1, min(steps, int(LONGEST / first)))
            elapsed = _elapsed(step, count, clock, device)
            gc.enable()
            if number:
                times[name].append(elapsed / count / 1e3)
    return times


def _elapsed(step: Callable[[], object], count: int, clock: Callable[[], int], device: str) -> int:
    begin = clock()
    for _ in range(count):
        step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return max(1, clock() - begin)


def ratio(times: dict[str, list[float]], name: str, reference: str, limit: float | None) -> str:
    """Quartiles of the ratio, and whether its median keeps the limit; a dash without the reference."""
    if reference not in times:
        return "-"
    ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    missed = limit is not None and statistics.median(ratios) > limit
    return spread(ratios, 2) + (f", above {limit}" if missed else "")


def spread(values: list[float], digits: int) -> str:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{quarters[1]:.{digits}f} ({quarters[0]:.{digits}f}-{quarters[2]:.{digits}f})"


def optimizer_table(times: dict[str, list[float]]) -> list[str]:
    lines = ["| ours | step (µs) | torch's relative | to fused | to foreach | to others |", "|---|---|---|---|---|---|"]
    for name, row in OURS.items():
        fused, foreach = (f"torch {row.relative}, {form}" for form in ("fused", "foreach"))
        others = [f"{o} {ratio(times, name, o, None)}" for o in row.others if o in times]
        to_fused = ratio(times, name, fused, OF_FUSED if row.limits else None)
        to_foreach = ratio(times, name, foreach, OF_FOREACH if row.limits else None)
        shown = (name, spread(times[name], 0), row.relative, to_fused, to_foreach, "; ".join(others) or "-")
        lines.append(f"| {' | '.join(shown)} |")
    lines += ["", "| torch's and others' | step (µs) |", "|---|---|"]
    return lines + [f"| {name} | {spread(values, 0)} |" for name, values in times.items() if name not in OURS]


def other_table(times: dict[str, list[float]], reference: str, limit: float | None) -> list[str]:
    lines = [f"| | step (µs) | to {reference} |", "|---|---|---|"]
    for name, values in times.items():
        allowed = limit if not name.startswith(("torch", "timm")) else None
        lines.append(f"| {name} | {spread(values, 0)} | {ratio(times, name, reference, allowed)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="most steps of each optimizer in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, packages = arguments.device, []
    for package in ("timm", "pytorch_optimizer"):
        with suppress(importlib.metadata.PackageNotFoundError):
            packages.append(f"{package} {importlib.metadata.version(package)}")
    count = sum(math.prod(p.shape) for p in parameters(device))
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    print(f"{hardware}, torch {torch.__version__}, {', '.join(packages) or 'no other packages'}, {arguments.threads} "
          f"threads, ResNet-20: {count:,} parameters, n={arguments.rounds} rounds of {arguments.steps} steps; "
          "median (quartiles)\n")  # fmt: skip
    sizes = arguments.rounds, arguments.steps, device
    print("\n".join(optimizer_table(measure(dict(contestants(device)), *sizes))))
    print("\nAverages of the weights:\n")
    print("\n".join(other_table(measure(dict(averages(device)), *sizes), "torch AveragedModel", OF_AVERAGED_MODEL)))
    print("\nSecond order, on 650 weights:\n")
    print("\n".join(other_table(measure(dict(second_order(device)), *sizes), "torch LBFGS, one iteration", None)))


if __name__ == "__main__":
    main()
