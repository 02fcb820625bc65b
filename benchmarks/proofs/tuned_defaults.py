"""Every optimizer trains well with its defaults: `train optimizer=NAME`, and no other key.

Networks: the default model on the handwritten digits, seeds 0 to 2. Methods that need the whole training set, and the
second-order ones: `model=linear`, split seeds 0 to 2, against scikit-learn's logistic regression (C=1) on the same
split and the same standardized pixels. The classes can be separated, so that the training loss has no minimum without
a penalty; its gap to scikit-learn's is stated. Rates were tuned on split seeds 10 to 12.

The second table has the steps that each optimizer needs on functions in float64: quadratics of condition number 1, 5
and 100 in 10 dimensions, Rosenbrock's function in 2, and logistic regression on 200 points of 5 features. A method with
a rate has the best of 1, 0.3, 0.1, ..., 1e-4.

    python benchmarks/proofs/tuned_defaults.py [--reduced] [--write]
"""

import statistics
import sys
from collections.abc import Callable

import torch
from proof import Proof, proof, table
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from trainer import compose
from trainer.base.capabilities import needs_closure, traits
from trainer.base.config import Config
from trainer.base.without_compiler import keep_compiler_out
from trainer.configuration.components import build_component
from trainer.configuration.compose import config_folder
from trainer.configuration.resolve import resolve
from trainer.training.finish import Result

ACCURACY, BELOW_SKLEARN = 0.97, 0.01
CRITERION = (
    f"networks reach a mean validation accuracy of at least {ACCURACY}; full-batch and second-order methods one of at "
    f"most {BELOW_SKLEARN} below scikit-learn's logistic regression"
)
OPTIONS = sorted(path.stem for path in (config_folder() / "optimizer").glob("*.yaml") if path.stem != "template")
REDUCED = ("adamw", "momentum", "lbfgs", "muon")
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
MOST_STEPS = 2000


def main(given: Proof) -> int:
    keep_compiler_out()
    options = REDUCED if given.reduced else OPTIONS
    seeds = (0,) if given.reduced else (0, 1, 2)
    networks = [name for name in options if not is_for_linear(name)]
    rows, holds = [], True
    for name in networks:
        found = [given.run(f"{name}-{seed}", [f"optimizer={name}", f"seed={seed}", "threads=1"]) for seed in seeds]
        accuracies = [best(result, "val/accuracy") for result in found]
        fine = statistics.mean(accuracies) >= ACCURACY
        holds &= fine
        rows.append([f"`train optimizer={name}`", *cells(accuracies, seeds), "", "" if fine else "too low"])
    for name in [name for name in options if name not in networks]:
        words = [f"optimizer={name}", "model=linear", "threads=1"]
        found = [given.run(f"{name}-split{seed}", [*words, f"data.split_seed={seed}"]) for seed in seeds]
        accuracies, losses = [best(result, "val/accuracy") for result in found], [last_loss(result) for result in found]
        theirs = [logistic_regression(seed) for seed in seeds]
        gap = statistics.mean(a for a, _ in theirs) - statistics.mean(accuracies)
        ratio = statistics.mean(losses) / statistics.mean(loss for _, loss in theirs)
        fine = gap <= BELOW_SKLEARN
        holds &= fine
        how = f"{-gap:+.4f}, training loss {ratio:.2f} of its"
        rows.append(
            [f"`train optimizer={name} model=linear`", *cells(accuracies, seeds), how, "" if fine else "too low"]
        )
    title = ["command", *(f"seed {seed}" for seed in seeds), "mean", "beside scikit-learn", ""]
    lines = [*table(title, rows), "", *steps_table(options)]
    return given.conclude(CRITERION, holds, lines, runs=len(seeds) * len(options))


def is_for_linear(name: str) -> bool:
    """Whether it needs the whole training set or second derivatives."""
    config = compose([f"optimizer={name}"])
    optimizer = build_component(config, "optimizer", params=[nn.Parameter(torch.zeros(1))])
    return bool(config["batch_size"] == "full" or traits(optimizer).differentiates)


def cells(values: list[float], seeds: tuple[int, ...]) -> list[str]:
    return [*(f"{value:.4f}" for value in values), f"{statistics.mean(values):.4f}"]


def best(result: Result, metric: str) -> float:
    assert result.best is not None
    return float(result.best["metrics"][metric])


def last_loss(result: Result) -> float:
    return float([record for record in result.history if "train/loss" in record][-1]["train/loss"])  # type: ignore[arg-type]


def logistic_regression(split_seed: int) -> tuple[float, float]:
    """Return scikit-learn's validation accuracy and mean training loss."""
    blueprint = resolve(compose(["model=linear", f"data.split_seed={split_seed}"]))
    splits = blueprint.data.load()
    preprocessing = build_component(blueprint.config, "preprocessing")
    preprocessing.fit(splits.train.images_NCHW)
    (x, y), (val_x, val_y) = (
        (preprocessing(part.images_NCHW).flatten(1).double().numpy(), part.targets_N.numpy())
        for part in (splits.train, splits.val)
    )
    model = LogisticRegression(C=1.0, max_iter=10_000).fit(x, y)
    chosen = torch.from_numpy(model.predict_log_proba(x)).gather(1, torch.from_numpy(y).unsqueeze(1))
    return float(model.score(val_x, val_y)), float(-chosen.mean())


# --- functions --------------------------------------------------------------------------------------------


class Objective:
    """A function of one vector as the closure of an optimizer, with the methods of a run's objective."""

    def __init__(self, function: Callable[[Tensor], Tensor], parameter: nn.Parameter) -> None:
        self.function, self.parameter = function, parameter

    def __call__(self) -> Tensor:
        return self.gradient()

    def gradient(self) -> Tensor:
        self.parameter.grad = None
        with torch.enable_grad():
            value = self.function(self.parameter)
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def objective(self) -> Tensor:
        with torch.no_grad():
            return self.function(self.parameter)

    def loss(self, create_graph: bool = False) -> Tensor:
        with torch.set_grad_enabled(create_graph):
            return self.function(self.parameter)


def quadratic(condition: float) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    scales = torch.logspace(0, torch.tensor(condition).log10().item(), 10, dtype=torch.float64)
    return lambda x: (scales * x.square()).sum() / 2, torch.ones(10, dtype=torch.float64), 1e-8


def rosenbrock() -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    return lambda x: (1 - x[0]).square() + 100 * (x[1] - x[0].square()).square(), start, 1e-3


def logistic() -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    y = (torch.rand(200, generator=generator, dtype=torch.float64) < torch.sigmoid(x.sum(1))).double()

    def function(w: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(x @ w, y)

    w = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    reference = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    objective = Objective(function, w)
    reference.step(objective)
    least = function(w.detach())
    return lambda v: function(v) - least, torch.zeros(5, dtype=torch.float64), 1e-6


FUNCTIONS = {
    "quadratic, 1": quadratic(1), "quadratic, 5": quadratic(5), "quadratic, 100": quadratic(100),
    "Rosenbrock": rosenbrock(), "logistic regression": logistic(),
}  # fmt: skip


def steps_table(options: tuple[str, ...] | list[str]) -> list[str]:
    title = ["optimizer", *(f"{name}: {accuracy:g}" for name, (_, _, accuracy) in FUNCTIONS.items())]
    rows = [[name, *(shown(name, *function) for function in FUNCTIONS.values())] for name in options]
    return ["Steps until the function is this far above its minimum (rate):", "", *table(title, rows)]


def shown(name: str, function: Callable[[Tensor], Tensor], start: Tensor, accuracy: float) -> str:
    config = compose([f"optimizer={name}"])
    has_rate = "lr" in config["optimizer"] and config["optimizer"].get("rate", "scheduled") == "scheduled"
    found: list[tuple[int, float]] = []
    for rate in RATES if has_rate else (None,):
        most = min([steps for steps, _ in found], default=MOST_STEPS)
        steps = steps_needed(config, rate, function, start, accuracy, most)
        if steps is not None:
            found.append((steps, 0.0 if rate is None else rate))
    if not found:
        return f"> {MOST_STEPS:,}"
    steps, rate = min(found)
    return f"{steps:,} ({rate:g})" if has_rate else f"{steps:,}"


def steps_needed(
    config: Config, rate: float | None, function: Callable[[Tensor], Tensor], start: Tensor, accuracy: float, most: int
) -> int | None:
    """Return the number of steps until the function is below `accuracy`, or None after `most`."""
    node = config["optimizer"] | ({} if rate is None else {"lr": rate})
    parameter = nn.Parameter(start.clone())
    optimizer = build_component(config | {"optimizer": node}, "optimizer", params=[parameter])
    objective = Objective(function, parameter)
    for step in range(1, most + 1):
        if needs_closure(optimizer):
            optimizer.step(objective)
        else:
            objective.gradient()
            optimizer.step()
        value = objective.objective()
        if value < accuracy:
            return step
        if not value.isfinite():
            return None
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(proof(__file__, __doc__)))
