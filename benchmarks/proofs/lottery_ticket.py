"""A winning ticket trains better than a random mask, and than its mask with other weights (Frankle & Carbin 2019).

`train experiment=lottery_ticket`, three seeds: LeNet-300-100 and Adam as in the paper, on 6,000 Fashion-MNIST images.
One-shot: the network is trained, the 20 % of each layer's weights that became largest are kept (and all biases), set
back to their first values and trained again with the same order of the data. The controls are a random mask with as
many weights of each layer, and the ticket's mask with redrawn weights. Compared is the test accuracy of the weights
with the lowest validation loss.

The number of epochs is from pilots with seeds 10 to 12, where 6 epochs gave differences of 2.1 and 1.0 percentage
points, and 20 epochs of 0.9 and 0.5, or none with three rounds of pruning or a global threshold: at this size a ticket
learns faster, and does not end higher.

    python benchmarks/proofs/lottery_ticket.py [--reduced] [--write]
"""

import json
import statistics
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from proof import Proof, mean_sd, pooled, proof, table

CRITERION = (
    "with 20 % of the weights left, the mean test accuracy of the ticket is above that of the random mask, and above "
    "that of the redrawn weights, each by more than the pooled standard deviation over 3 seeds"
)
FULL = ["data=fashion_mnist", "data.num_train=6000", "epochs=6"]
REDUCED = ["data=digits", "data.val_fraction=0.3", "model.hidden=[100]", "epochs=4"]
COMMON = ["experiment=lottery_ticket", "batch_size=60", "study.share=0.2", "threads=1", "device=cpu"]
MEMBERS = ("dense", "ticket", "random_mask", "redrawn_weights")
CONTROLS = MEMBERS[2:]
METRIC = "test/accuracy"


def main(given: Proof) -> int:
    words = [*COMMON, *(REDUCED if given.reduced else FULL)]
    tables = [study(given, [*words, f"seed={seed}", f"name=seed-{seed}"]) for seed in range(3)]
    found = {name: [members[name][METRIC] for members in tables] for name in MEMBERS}
    draw(given, found)
    ticket, rows, holds = found["ticket"], [], True
    for name in MEMBERS:
        row = [name, *(f"{value:.4f}" for value in found[name]), mean_sd(found[name])]
        if name != "ticket":
            apart, spread = statistics.mean(ticket) - statistics.mean(found[name]), pooled(ticket, found[name])
            fine = apart > spread
            holds &= fine or name not in CONTROLS
            row += [f"{apart:+.4f}", f"{spread:.4f}", ("yes" if fine else "no") if name in CONTROLS else ""]
        rows.append([*row, *[""] * (8 - len(row))])
    title = [METRIC, *(f"seed {seed}" for seed in range(3)), "mean", "ticket - it", "pooled deviation", "above"]
    return given.conclude(CRITERION, holds, table(title, rows), runs=3 * len(MEMBERS))


def study(given: Proof, words: list[str]) -> dict[str, dict[str, float]]:
    """Run a study, or the rest of it; returns the metrics of its members."""
    print(f"== train {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "trainer", *words], cwd=given.folder).returncode
    if code:
        raise SystemExit(code)
    name = words[-1].removeprefix("name=")
    members: dict[str, dict[str, float]] = json.loads(
        (given.folder / "outputs" / "studies" / name / "results.json").read_text()
    )["members"]
    return members


def draw(given: Proof, found: dict[str, list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, (name, values) in enumerate(found.items()):
        axes.bar(place, statistics.mean(values), color="C0" if name == "ticket" else "C7", alpha=0.5)
        axes.plot([place] * len(values), values, "k.")
    low, high = min(map(min, found.values())), max(map(max, found.values()))
    axes.set(ylabel=METRIC, title="20 % of the weights (dense: all); mean and 3 seeds", ylim=(2 * low - high, None))
    axes.set_xticks(range(len(found)), [name.replace("_", "\n") for name in found])
    figure.savefig(given.picture(), dpi=120)


if __name__ == "__main__":
    sys.exit(main(proof(__file__, __doc__)))
