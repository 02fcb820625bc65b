"""Averages of weights and of predictions are better than single weights (Izmailov et al. 2018; Huang et al. 2017).

A multi-layer perceptron with batch norm on 6,000 Fashion-MNIST images, momentum, three seeds:

- a constant rate, under which the weights stay noisy: the single weights against `averaging=swa` (from a third of the
  run on, at the end of each epoch, batch norm estimated anew) and `averaging=ema` (decay 0.99) of the same training;
- cycles of 3 epochs (`schedule=sgdr`): the ensemble of the snapshots at their ends (`averaging=snapshots`) against the
  last snapshot, and against the weights of a run of the same length with one cycle (`schedule=cosine`).

A run's weights are those with the best validation accuracy. Rate, cycles and decay are from pilots with seeds 10 to 12,
in which a LeNet with three cycles gained nothing from its ensemble.

    python benchmarks/proofs/averaging.py [--reduced] [--write]
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from proof import Proof, mean_sd, pooled, proof, table

from trainer.commands.arguments import changed_configuration, recorded_configuration
from trainer.studies.ensemble import Trained, evaluate_ensemble

CRITERION = (
    "the mean test accuracy of swa and of ema is above that of the single weights, and that of the ensemble of "
    "snapshots above those of the last snapshot and of one cycle, each by more than the pooled standard deviation over "
    "3 seeds"
)
FULL = ["data=fashion_mnist", "data.num_train=6000", "model.hidden=[256,128]", "epochs=24"]
REDUCED = ["data=fashion_mnist", "data.num_train=2000", "model.hidden=[128]", "epochs=24"]
COMMON = [
    "model=mlp", "model.norm=batch", "optimizer=momentum", "optimizer.lr=0.3", "early_stopping.monitor=val/accuracy",
    "early_stopping.patience=1000", "every.evaluate=2ep", "threads=1", "device=cpu",
]  # fmt: skip
KINDS = {
    "single": ["schedule=constant"],
    "swa": ["schedule=constant", "averaging=swa", "averaging.start=33%"],
    "ema": ["schedule=constant", "averaging=ema", "averaging.decay=0.99"],
    "one cycle": ["schedule=cosine"],
    "snapshots": ["schedule=sgdr", "schedule.cycles=8", "schedule.multiply=1", "averaging=snapshots"],
}
COMPARED = (
    ("swa", "single"), ("ema", "single"), ("snapshots", "last snapshot"), ("snapshots", "one cycle"),
)  # fmt: skip
METRIC = "test/accuracy"


def main(given: Proof) -> int:
    size = [*(REDUCED if given.reduced else FULL), *COMMON]
    found: dict[str, list[float]] = {}
    for kind, words in KINDS.items():
        for seed in range(3):
            result = given.run(f"{kind.replace(' ', '-')}-{seed}", [*size, *words, f"seed={seed}"])
            assert result.test is not None
            score, last = float(result.test[METRIC]), None  # type: ignore[arg-type]
            if kind == "snapshots":
                score, last = ensemble(Path(result.folder))
                found.setdefault("last snapshot", []).append(last)
            found.setdefault(kind, []).append(score)
    draw(given, found)
    rows = [[name, *(f"{value:.4f}" for value in values), mean_sd(values)] for name, values in found.items()]
    lines = table([METRIC, "seed 0", "seed 1", "seed 2", "mean"], rows)
    verdicts, holds = [], True
    for better, other in COMPARED:
        apart = statistics.mean(found[better]) - statistics.mean(found[other])
        spread = pooled(found[better], found[other])
        holds &= apart > spread
        verdicts.append([f"{better} - {other}", f"{apart:+.4f}", f"{spread:.4f}", "yes" if apart > spread else "no"])
    title = ["difference of means", "", "pooled deviation", "above"]
    return given.conclude(CRITERION, holds, [*lines, "", *table(title, verdicts)], runs=3 * len(KINDS))


def ensemble(folder: Path) -> tuple[float, float]:
    """Return the test accuracy of a run's snapshots together, and of the last one; kept beside the run."""
    kept = folder.with_name(f"{folder.name}-ensemble.json")
    if not kept.is_file():
        recorded = recorded_configuration(folder)
        run = Trained(folder, recorded, changed_configuration(folder, recorded, []))
        *members, whole = evaluate_ensemble([run], "snapshots", None, lambda number: None)
        kept.write_text(json.dumps([whole.values[METRIC], members[-1].values[METRIC]]))
    whole_accuracy, last_accuracy = json.loads(kept.read_text())
    return float(whole_accuracy), float(last_accuracy)


def draw(given: Proof, found: dict[str, Sequence[float]] | dict[str, list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    averages = {better for better, _ in COMPARED}
    for place, (name, values) in enumerate(found.items()):
        axes.bar(place, statistics.mean(values), color="C0" if name in averages else "C7", alpha=0.5)
        axes.plot([place] * len(values), values, "k.")
    low, high = min(map(min, found.values())), max(map(max, found.values()))
    axes.set(ylabel=METRIC, title="single weights (grey) and averages; mean and 3 seeds", ylim=(2 * low - high, None))
    axes.set_xticks(range(len(found)), [name.replace(" ", "\n") for name in found])
    figure.savefig(given.picture(), dpi=120)


if __name__ == "__main__":
    sys.exit(main(proof(__file__, __doc__)))
