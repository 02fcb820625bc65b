"""Speed-up by several processes, measured and simulated: `python benchmarks/parallel.py [--rounds 5] [--steps 20]`.

Without a flag: one process against two on this machine, with one thread each and the same global batch. All
contestants take turns within a round; ratios are computed per round, and their median and quartiles are printed.
Efficiency = (time of one process) / (processes * time of a strategy).

`--simulate`: AlexNet at batch 256 (the model and the batch of CUHK ELEG 5491's figure "Hybrid data and model
parallelism") on up to 64 ranks with links of stated speeds. The time per sample is measured here or given
(`--per-sample`), the bytes come from `trainer.parallelism.cost`, and communication does not overlap with computation:

    step(n) = work / speed-up * (1 + sd * E[largest of n normal numbers]) + bytes / speed + messages * latency

Claims that it is compared with (tests/parallelism/test_cost.py):

- CUHK ELEG 5491, "Drawbacks of data parallelism": "Require considerable communication between GPUs, since must
  communicate both gradients and parameter values on every update step".
- CUHK ELEG 5491, "Model parallelism": columns that cross at one layer and at the top "may require less communication
  bandwidth when the cross connections involve small intermediate feature maps".
- CUHK ELEG 5491, "Hybrid data and model parallelism": both can be combined on 4 GPUs; Optimization (Part 2),
  "Distributed Training": "Combining data-parallelism and model-parallelism", with Krizhevsky 2014.
- CUHK ELEG 5491, "Distributed computation with CPU cores": "the speedup cannot keep increasing with infinite number of
  machines"; less than ideal by "variance in processing times across the different machines, leading to many machines
  waiting for the single slowest machine". Backup workers against that: Chen et al. 2016.

`--curves FILE`: plots the loss against the number of updates for every strategy, and the difference to one device.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from tests.parallelism.harness import curve, make, spawn
from trainer.base.rank import rank_info
from trainer.configuration.compose import config_folder
from trainer.models.alexnet_two_column import alexnet_two_column
from trainer.parallelism import cost, ddp
from trainer.parallelism.cost import Cost, Step
from trainer.training.step import train_step

SYNCHRONOUS = ("ddp", "fsdp", "tensor", "hybrid", "weird_trick", "pipeline")


def there_are(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (config_folder() / "parallelism" / f"{name}.yaml").is_file()]


# --- here -------------------------------------------------------------------------------------------------

PROBLEM = ["device=cpu", "threads=1", "data=digits", "schedule=constant", "model.norm=none", "diagnostics=off"]
WARM_UP = 5


def seconds_per_step(overrides: list[str], steps: int) -> float:
    """Seconds per step on this rank, with all ranks running at the same time."""
    run = make([*overrides, f"steps={steps + WARM_UP}"])
    run.model.train()
    done, start = 0, 0.0
    while done < steps + WARM_UP:
        for batch in run.batches.epoch(run.progress.epoch, run.progress.samples_seen):
            if done == WARM_UP:
                start = time.perf_counter()
            train_step(run, batch)
            run.advance(batch.num_global)
            done += 1
            if done == steps + WARM_UP:
                break
    return (time.perf_counter() - start) / steps


def measure(contestants: dict[str, tuple[int, list[str]]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each round, on the slowest rank; one warm-up round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, (processes, words) in contestants.items():
            taken = max(spawn(processes, seconds_per_step, words, steps, timeout=600))
            if number:
                times[name].append(taken)
    return times


def contestants_of(names: list[str], overrides: list[str]) -> dict[str, tuple[int, list[str]]]:
    base = [*PROBLEM, *overrides]
    found = {"single": (1, [*base, "parallelism=single"])}
    for name in names:
        found[name] = (2, [*base, f"parallelism={name}", "parallelism.devices=2"])
    return found


def table(times: dict[str, list[float]]) -> list[str]:
    lines = ["| strategy | processes | step (ms) | speed-up | efficiency |", "|---|---|---|---|---|"]
    for name, taken in times.items():
        processes = 1 if name == "single" else 2
        gained = [one / own for one, own in zip(times["single"], taken, strict=True)]
        lines.append(
            f"| {name} | {processes} | {_spread([1e3 * t for t in taken], 1)} | {_spread(gained, 2)} "
            f"| {_spread([g / processes for g in gained], 2)} |"
        )
    return lines


def _spread(values: list[float], digits: int) -> str:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{quarters[1]:.{digits}f} ({quarters[0]:.{digits}f}-{quarters[2]:.{digits}f})"


# --- elsewhere --------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """Bandwidth of one rank in bytes per second, and latency of a message in seconds."""

    bytes_per_second: float
    latency: float


LINKS = {
    "1 Gb/s Ethernet": Link(1e9 / 8, 50e-6),
    "10 Gb/s Ethernet": Link(10e9 / 8, 20e-6),
    "100 Gb/s InfiniBand": Link(100e9 / 8, 2e-6),
    "NVLink 4 (450 GB/s)": Link(450e9, 2e-6),
}


def order_statistic(k: int, count: int) -> float:
    """Expected `k`-th smallest of `count` independent standard normal numbers.

    E = integral of x * count! / ((k - 1)! (count - k)!) * F(x)^(k - 1) (1 - F(x))^(count - k) f(x).
    The expected maximum grows like sqrt(2 ln count).
    """
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    ln_ways = math.lgamma(count + 1) - math.lgamma(k) - math.lgamma(count - k + 1)
    below, above = torch.special.log_ndtr(x), torch.special.log_ndtr(-x)
    ln_density = -x * x / 2 - math.log(2 * math.pi) / 2
    weight = torch.exp(ln_ways + (k - 1) * below + (count - k) * above + ln_density)
    return float(torch.trapezoid(x * weight, x))


def slowest(ranks: int, mean: float, sd: float, backups: int = 0) -> float:
    """Expected time until `ranks` of `ranks + backups` workers are done, with normally distributed times (mean, sd)."""
    return mean + sd * order_statistic(ranks, ranks + backups)


def step_seconds(costs: Cost, work: float, ranks: int, link: Link, spread: float = 0.0) -> float:
    """Seconds of a step that takes one device `work` seconds; `spread` is sd / mean of a rank's time."""
    own = work / costs.speed_up
    return slowest(ranks, own, spread * own) + costs.total.seconds(*link)


def alexnet_step(batch_size: int = 256) -> Step:
    """One step of AlexNet for ImageNet (60,965,224 parameters)."""
    with torch.device("meta"):
        model = alexnet_two_column(input_shape=(3, 224, 224), num_outputs=1000)
    return Step(cost.layers_of(model, (3, 224, 224)), batch_size)


SCHEMES: dict[str, Callable[[Step, int], Cost]] = {
    "data": cost.data_parallel,
    "data x two columns": lambda step, ranks: cost.hybrid(step, ranks // 2, 2),
    "one weird trick": cost.weird_trick,
}


def simulate(per_sample: float, spread: float, batch_size: int = 256) -> list[str]:
    """Table of speed-ups over one device."""
    step, worlds = alexnet_step(batch_size), (2, 4, 8, 16, 32, 64)
    work = per_sample * batch_size
    lines = [f"| link | scheme | {' | '.join(f'{n} ranks' for n in worlds)} |", "|---|---|" + "---|" * len(worlds)]
    for name, scheme in SCHEMES.items():
        sizes = " | ".join(f"{scheme(step, n).total.bytes / 1e6:.0f} MB" for n in worlds)
        lines.append(f"| sent by a rank | {name} | {sizes} |")
    for link_name, link in LINKS.items():
        for name, scheme in SCHEMES.items():
            gained = (work / step_seconds(scheme(step, n), work, n, link, spread) for n in worlds)
            lines.append(f"| {link_name} | {name} | {' | '.join(f'{g:.2f}' for g in gained)} |")
    return lines


def waiting(spread: float) -> list[str]:
    """Table of relative step times when waiting for the slowest worker, without and with backup workers."""
    lines = ["| workers | slowest of all | with 5 % more workers, not waited for |", "|---|---|---|"]
    for ranks in (2, 8, 32, 128, 512):
        backups = math.ceil(0.05 * ranks)
        lines.append(f"| {ranks} | {slowest(ranks, 1, spread):.3f} | {slowest(ranks, 1, spread, backups):.3f} |")
    return lines


def seconds_per_sample(batch_size: int = 8) -> float:
    """Seconds per sample of AlexNet's forward and backward pass on this machine, median of five."""
    model = alexnet_two_column(input_shape=(3, 224, 224), num_outputs=1000)
    images, targets = torch.randn(batch_size, 3, 224, 224), torch.zeros(batch_size, dtype=torch.int64)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        nn.functional.cross_entropy(model(images), targets).backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:]) / batch_size


# --- curves -----------------------------------------------------------------------------------------------

LEARNT = [
    "device=cpu", "threads=1", "data=digits", "batch_size=64", "schedule=constant", "model=lenet",
    "model.channels=[8,16]", "model.hidden=[32]", "model.activation=tanh", "optimizer=momentum",
]  # fmt: skip
NORM = {"batch": ["model.norm=batch", "optimizer.lr=0.05"], "none": ["model.norm=none", "optimizer.lr=0.2"]}
STEPS = 50


def curve_with_mean(overrides: list[str], steps: int) -> list[float]:
    """Incorrect data parallelism: divides the gradient sum by the world size although each gradient is already
    weighted."""
    summed = ddp.sum_gradients

    def mean(group: Any, bucket: dist.GradBucket) -> Any:
        bucket.buffer().div_(dist.get_world_size(group))
        return summed(group, bucket)

    mean.__annotations__ = {}  # torch compares the annotations with its own
    ddp.sum_gradients = mean
    return curve_losses(overrides, steps)


def curve_with_own_seed(overrides: list[str], steps: int) -> list[float]:
    info = rank_info()
    assert info is not None
    return curve_losses([*overrides, f"seed={info.rank}"], steps)


def curve_losses(overrides: list[str], steps: int) -> list[float]:
    losses: list[float] = curve(overrides, steps, double=True)["losses"]
    return losses


# incorrect data parallelism: these curves must differ
WRONG = {
    "plain batch norm": (curve_losses, ["parallelism.batch_norm=plain"]),
    "mean instead of sum": (curve_with_mean, []),
    "a seed a rank": (curve_with_own_seed, []),
}


def all_curves() -> dict[str, dict[str, list[float]]]:
    """Norm -> strategy -> losses, on two processes (`hybrid`: four)."""
    found: dict[str, dict[str, list[float]]] = {"batch": {}, "none": {}}
    for norm, words in NORM.items():
        base = [*LEARNT, *words]
        found[norm]["single"] = spawn(1, curve_losses, [*base, "parallelism=single"], STEPS)[0]
        for name in there_are(SYNCHRONOUS):
            if norm == "batch" and name == "pipeline":
                continue
            ranks = 4 if name == "hybrid" else 2
            spread = [f"parallelism={name}", f"parallelism.devices={ranks}"]
            found[norm][name] = spawn(ranks, curve_losses, [*base, *spread], STEPS)[0]
    data_parallel = [*LEARNT, *NORM["batch"], "parallelism=ddp", "parallelism.devices=2"]
    for name, (function, words) in WRONG.items():
        found["batch"][name] = spawn(2, function, [*data_parallel, *words], STEPS)[0]
    return found


def draw_curves(path: Path) -> dict[str, float]:
    """Draw the picture; returns the largest difference of each strategy's loss from that of one device."""
    from matplotlib.figure import Figure

    found = all_curves()
    names = [*dict.fromkeys(name for losses in found.values() for name in losses if name not in WRONG), *WRONG]
    colors = {name: "grey" if name in WRONG else f"C{i}" for i, name in enumerate(names)}
    marks = dict(zip(WRONG, ("x", "+", "v"), strict=True))
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    distances = dict.fromkeys(names[1:], 0.0)
    for norm, style in (("batch", "-"), ("none", "--")):
        single = found[norm]["single"]
        for number, (name, losses) in enumerate(found[norm].items()):
            updates = range(1, len(losses) + 1)
            look: Any = {"color": colors[name], "marker": marks.get(name), "markersize": 4, "markevery": 2}
            # later lines are thinner, so that overlapping curves remain visible
            width = 0.9 if name in WRONG else max(1.0, 7.0 - number)
            left.plot(updates, losses, style, linewidth=width, **look)
            if name != "single":
                apart = [abs(a - b) for a, b in zip(losses, single, strict=True)]
                right.semilogy(updates, [max(value, 1e-17) for value in apart], style, linewidth=1.0, **look)
                distances[name] = max(distances[name], *apart)
    for name in names:
        label = f"ddp, wrong: {name}" if name in WRONG else name
        left.plot([], [], color=colors[name], marker=marks.get(name), markersize=4, label=label)
    left.plot([], [], "-", color="black", linewidth=0.9, label="with batch norm")
    left.plot([], [], "--", color="black", linewidth=0.9, label="without")
    left.set(xlabel="update", ylabel="training loss", title="Loss against the number of updates")
    left.legend(fontsize=8, frameon=False)
    right.axhline(1e-12, color="black", linewidth=0.8, linestyle=":")
    right.text(50, 1.5e-12, "what a test allows", fontsize=8, ha="right")
    right.set(xlabel="update", ylabel="distance", title="Distance from one device, float64", ylim=(5e-18, 10))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategies", nargs="+", default=there_are(SYNCHRONOUS))
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--per-sample", type=float, help="seconds of a sample on one device, instead of measuring it")
    parser.add_argument("--spread", type=float, default=0.1, help="sd / mean of a rank's time")
    parser.add_argument("--curves", type=Path, help="where to draw the curves")
    parser.add_argument("overrides", nargs="*", help="e.g. model=resnet20 batch_size=256")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    if arguments.curves is not None:
        for name, apart in draw_curves(arguments.curves).items():
            print(f"{name:24} {apart:.1e}")
    elif arguments.simulate:
        per_sample = arguments.per_sample or seconds_per_sample()
        where = "given" if arguments.per_sample else "measured here, 1 thread"
        print(f"AlexNet, batch 256, {per_sample:.3g} s a sample ({where}), sd / mean {arguments.spread}\n")
        print("\n".join(simulate(per_sample, arguments.spread)), "\n")
        print("\n".join(waiting(arguments.spread)))
    else:
        overrides = arguments.overrides or ["model=lenet", "batch_size=256"]
        print(f"{' '.join(overrides)}, 1 thread a process, n={arguments.rounds}, {arguments.steps} steps; "
              "median (quartiles)\n")  # fmt: skip
        contestants = contestants_of(arguments.strategies, overrides)
        print("\n".join(table(measure(contestants, arguments.rounds, arguments.steps))))


if __name__ == "__main__":
    main()
