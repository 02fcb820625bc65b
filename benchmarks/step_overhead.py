"""Overhead of `fit` compared with hand-written loops: `python benchmarks/step_overhead.py [--rounds 15]`.

`fit` runs with everything enabled: TensorBoard, metrics file, live display, early stopping, clipping, a schedule,
evaluation and a checkpoint each epoch; with one parameter group, like the hand-written loops. Two hand-written loops
over the same model, data and AdamW take turns with it, in one process with a fixed number of threads:

- bare: preloaded float tensors, fused AdamW; does not clip, log, evaluate or save
- same work: also clips (foreach), follows a cosine schedule, evaluates and saves each epoch

The time of a step is from one forward pass to the next. `median` excludes what happens once per epoch, `mean` includes
everything. Ratios are computed per round.
"""

import argparse
import gc
import io
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.configuration.resolve import resolve

MODELS = {"mlp": ["model=mlp", "model.hidden=[64,64]"], "resnet": ["model=resnet20"]}
CLIP, LR, DECAY = 1.0, 0.002, 0.01


class Clock:
    """Records when each forward pass in training mode begins."""

    def __init__(self, model: nn.Module) -> None:
        self.times: list[int] = []
        model.register_forward_pre_hook(self._tick)

    def _tick(self, module: nn.Module, inputs: object) -> None:
        if module.training:
            self.times.append(time.perf_counter_ns())

    def microseconds(self) -> tuple[float, float]:
        """Median and mean time of a step, without the first twenty."""
        steps = [(b - a) / 1e3 for a, b in zip(self.times[20:], self.times[21:], strict=False)]
        return statistics.median(steps), statistics.mean(steps)


class Problem:
    """Model and data of a configuration, as a hand-written loop holds them."""

    def __init__(self, overrides: list[str], epochs: int, device: str) -> None:
        self.overrides = [
            "optimizer=adamw", f"epochs={epochs}", f"clip_norm={CLIP}", "threads=1", f"device={device}",
            "early_stopping.patience=1000", "no_weight_decay=[]", *overrides,
        ]  # fmt: skip
        self.config = compose(self.overrides)
        run = build_run(resolve(self.config))
        self.epochs, self.batch_size, self.device = epochs, run.blueprint.batch_size, run.device
        train, val = run.splits.train, run.splits.val
        self.images, self.targets = self._ready(run, train), train.targets_N.to(run.device)
        self.val_images, self.val_targets = self._ready(run, val), val.targets_N.to(run.device)
        self.parameters = sum(p.numel() for p in run.model.parameters())

    @staticmethod
    def _ready(run: object, part: object) -> Tensor:
        return run.preprocessing(part.images_NCHW.to(run.device)).contiguous()

    def model(self) -> nn.Module:
        return resolve(self.config).build_model().to(self.device).train()


def bare(problem: Problem) -> Clock:
    """The fastest hand-written loop that only trains."""
    model = problem.model()
    clock, optimizer = Clock(model), torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    images, targets, total = problem.images, problem.targets, torch.zeros((), device=problem.device)
    for _ in range(problem.epochs):
        for index in torch.randperm(len(targets), device=problem.device).split(problem.batch_size):
            loss = F.cross_entropy(model(images[index]), targets[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
    return clock


def same_work(problem: Problem) -> Clock:
    """A hand-written loop that does the same work as `fit`: clipping, schedule, metrics, evaluation and a checkpoint
    each epoch."""
    model = problem.model()
    clock, optimizer = Clock(model), torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    parameters = list(model.parameters())
    images, targets, step = problem.images, problem.targets, 0
    steps = problem.epochs * math.ceil(len(targets) / problem.batch_size)
    loss_sum = torch.zeros((), device=problem.device)
    correct = torch.zeros((), dtype=torch.int64, device=problem.device)
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(problem.epochs):
            for index in torch.randperm(len(targets), device=problem.device).split(problem.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
                outputs, batch_targets = model(images[index]), targets[index]
                loss = F.cross_entropy(outputs, batch_targets)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                loss_sum += loss.detach()
                correct += (outputs.argmax(1) == batch_targets).sum()
                step += 1
            model.eval()
            with torch.inference_mode():
                outputs = model(problem.val_images)
                F.cross_entropy(outputs, problem.val_targets).item()
                (outputs.argmax(1) == problem.val_targets).float().mean().item()
            model.train()
            loss_sum.zero_(), correct.zero_()
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch},
                Path(folder, "last.pt"),
            )
    return clock


def ours(problem: Problem) -> Clock:
    """`fit`, with its live display written to a null device."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(problem.config, Path(folder), console=console)
        clock = Clock(run.model)
        fit(run)
    return clock


CONTESTANTS: dict[str, Callable[[Problem], Clock]] = {"bare": bare, "same work": same_work, "fit": ours}


def measure(problem: Problem, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Median and mean step time of each contestant in each round; one warm-up round is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    for round_number in range(rounds + 1):
        for name, contestant in CONTESTANTS.items():
            gc.collect()
            gc.disable()
            clock = contestant(problem)
            gc.enable()
            if round_number:
                times[name].append(clock.microseconds())
    return times


def table(times: dict[str, list[tuple[float, float]]]) -> list[str]:
    lines = ["| loop | median step (µs) | to bare | mean step (µs) | to same work |", "|---|---|---|---|---|"]
    for name, rows in times.items():
        medians, means = [row[0] for row in rows], [row[1] for row in rows]
        to_bare = [a / b[0] for a, b in zip(medians, times["bare"], strict=True)]
        to_same = [a / b[1] for a, b in zip(means, times["same work"], strict=True)]
        lines.append(
            f"| {name} | {_spread(medians, 0)} | {_spread(to_bare, 2)} | {_spread(means, 0)} | {_spread(to_same, 2)} |"
        )
    return lines


def _spread(values: list[float], digits: int) -> str:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{quarters[1]:.{digits}f} ({quarters[0]:.{digits}f}-{quarters[2]:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the MLP; the ResNet has a tenth")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="more overrides for both models, e.g. precision=bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["CI"] = ""
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, n={arguments.rounds}")
    for name in arguments.models:
        epochs = arguments.epochs if name == "mlp" else max(3, arguments.epochs // 10)
        problem = Problem([*MODELS[name], *arguments.overrides], epochs, arguments.device)
        print(f"\n{name}: {problem.parameters:,} parameters, batch {problem.batch_size}, {problem.device}; "
              "median (quartiles)\n")  # fmt: skip
        print("\n".join(table(measure(problem, arguments.rounds))))


if __name__ == "__main__":
    main()
