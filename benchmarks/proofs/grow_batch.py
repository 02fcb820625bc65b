"""A batch that grows gives the curve of a rate that drops, with fewer updates (Smith et al. 2018, arXiv 1711.00489).

Three schedules, three seeds each: `step` drops the learning rate, `grow_batch` lets the batch grow at the same moments,
and the control, `constant`, does neither. Compared is the mean training loss of each epoch, as in the paper, before
each drop and at the end.

    python benchmarks/proofs/grow_batch.py [--reduced] [--write]
"""

import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from proof import Proof, mean_sd, proof, table, values_at

from trainer import compose
from trainer.configuration.resolve import resolve

CRITERION = (
    "at each drop and at the end, the mean losses of growing batches and dropping rates differ by less than the spread "
    "over seeds (the larger range of the two); after the first drop, that of the control differs from both by more; "
    "and the "
    "number of updates is the predicted one, smaller than with dropping rates"
)
# dropout keeps a rate that does not drop from learning 6,000 images by heart, which would lower its loss, too
FULL = [
    "data=fashion_mnist", "data.num_train=6000", "model=mlp", "model.hidden=[128]", "model.drop_prob=0.3", "epochs=15",
    "batch_size=16", "optimizer.lr=0.03",
]  # fmt: skip
REDUCED = [
    "data=digits", "data.val_fraction=0.3", "model=mlp", "model.hidden=[64]", "model.drop_prob=0.3", "epochs=12",
    "batch_size=8", "optimizer.lr=0.03",
]  # fmt: skip
COMMON = [
    "optimizer=momentum", "early_stopping=null", "threads=1", "device=cpu",
    "every.log=1ep",
]  # fmt: skip
DROPS = ["schedule.every=33.4%", "schedule.factor=0.2"]
METRIC = "train/loss"


def main(given: Proof) -> int:
    size = [*(REDUCED if given.reduced else FULL), *COMMON]
    kinds = {
        "step": ["schedule=step", *DROPS],
        "grow_batch": ["schedule=grow_batch", *DROPS],
        "constant": ["schedule=constant"],
    }
    results = {
        kind: [given.run(f"{kind}-{seed}", [*size, *words, f"seed={seed}"]) for seed in range(3)]
        for kind, words in kinds.items()
    }
    planned = {kind: resolve(compose([*size, *words])) for kind, words in kinds.items()}
    epochs = planned["step"].config["epochs"]
    moments = [epochs // 3, 2 * epochs // 3, epochs]
    curves = {kind: [values_at(result, METRIC) for result in found] for kind, found in results.items()}
    draw(given, curves, moments)

    rows, holds = [], True
    for epoch in moments:
        at = {kind: [curve[epoch] for curve in found] for kind, found in curves.items()}
        spread = max(max(at[kind]) - min(at[kind]) for kind in ("step", "grow_batch"))
        apart = abs(statistics.mean(at["step"]) - statistics.mean(at["grow_batch"]))
        control = min(abs(statistics.mean(at["constant"]) - statistics.mean(at[k])) for k in ("step", "grow_batch"))
        holds &= apart < spread
        if epoch > moments[0]:
            holds &= control > spread
        rows.append([epoch, *(mean_sd(at[kind]) for kind in kinds), f"{apart:.4f}", f"{spread:.4f}", f"{control:.4f}"])
    steps = {kind: {result.steps for result in found} for kind, found in results.items()}
    holds &= all(steps[kind] == {planned[kind].total_steps} for kind in kinds)
    holds &= max(steps["grow_batch"]) < min(steps["step"])
    title = [f"{METRIC} after epoch", *kinds, "step - grow_batch", "spread", "control, nearest"]
    updates = ["updates", *(f"{max(steps[kind]):,}" for kind in kinds), "", "", ""]
    return given.conclude(CRITERION, holds, table(title, [*rows, updates]), runs=9)


def draw(given: Proof, curves: dict[str, list[dict[float, float]]], moments: list[int]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for colour, (kind, found) in zip(("C0", "C1", "C7"), curves.items(), strict=True):
        epochs = sorted(found[0])
        values = [[curve[epoch] for curve in found] for epoch in epochs]
        axes.plot(epochs, [statistics.mean(v) for v in values], colour, label=f"{kind}, mean of 3 seeds")
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2)
    for moment in moments[:-1]:
        axes.axvline(moment, color="black", linewidth=0.5, linestyle=":")
    axes.set(xlabel="epoch", ylabel=METRIC, title="rate drops, or batch grows (shaded: range of 3 seeds)", yscale="log")
    axes.legend()
    figure.savefig(given.picture(), dpi=120)


if __name__ == "__main__":
    sys.exit(main(proof(__file__, __doc__)))
