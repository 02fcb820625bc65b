"""Metrics of a model over a whole split."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from trainer.data.facts import Part
from trainer.metrics import Meter, predicted
from trainer.training.evaluation_batches import evaluation_batches, evaluation_shards, prepared, raw_evaluation_batches
from trainer.training.evaluation_weights import at_evaluation_weights
from trainer.training.run import Run
from trainer.training.test_time_augmentation import TestTime

Seen = Callable[[int], object]  # called with the number of samples that this rank has just evaluated
Views = Iterable[tuple[Tensor, int]]  # views of a batch, on the device, each with its weight


def evaluate(run: Run, split: Part, prefix: str, seen: Seen = lambda count: None) -> dict[str, float]:
    """Return mean loss and metrics, named `<prefix>/...`, in evaluation mode; the model is left in training mode.

    Every sample counts once, under any number of ranks. All ranks return the main rank's values, so that they all
    make the same decisions.
    """
    run.model.eval()
    meter = Meter(run.blueprint.metrics)
    with at_evaluation_weights(run), torch.inference_mode(), run.strategy.evaluating(run.model):
        for images, targets in evaluation_batches(run, split):
            outputs = run.objective.forward(images)
            meter.add(run.blueprint.loss(outputs, targets), outputs, targets)
            seen(len(targets))
    run.model.train()
    values = run.strategy.broadcast(meter.read(run.strategy.sum))
    return {f"{prefix}/{name}": value for name, value in values.items()}


def evaluate_views(
    run: Run, split: Part, prefix: str, test_time: TestTime, seen: Seen = lambda count: None
) -> dict[str, float]:
    """Like `evaluate`, with class probabilities (softmax of the outputs) averaged over views of each image.

    The loss is computed from these probabilities (`Loss.of_probabilities`): for cross-entropy -log p[target], with its
    base and smoothing. It is omitted if it is defined on outputs only.
    """
    has_loss = True
    run.model.eval()
    meter = Meter(run.blueprint.metrics)
    with at_evaluation_weights(run), torch.inference_mode(), run.strategy.evaluating(run.model):
        for views, targets in batches_of_views(run, split, test_time):
            outputs = log_probabilities(run, views)
            loss = run.blueprint.loss.of_probabilities(outputs, targets)
            has_loss = loss is not None
            meter.add(outputs.new_zeros(()) if loss is None else loss, outputs, targets)
            seen(len(targets))
    run.model.train()
    values = run.strategy.broadcast(meter.read(run.strategy.sum))
    return {f"{prefix}/{name}": value for name, value in values.items() if has_loss or name != "loss"}


def batches_of_views(run: Run, split: Part, test_time: TestTime) -> Iterator[tuple[Views, Tensor]]:
    """Yield views of this rank's shard of a split, batch by batch, and the classes of each batch.

    Each view of a photograph is read separately, ahead of time, in one stream: all views of a batch before the next.
    """
    images = split.images_NCHW
    if isinstance(images, Tensor):
        for some, targets in raw_evaluation_batches(run, split):
            yield test_time.views(some), targets
        return
    shards, size, short_side = evaluation_shards(run, split), images.shape[-1], run.blueprint.data.short_side
    read = images.read(
        (shard, frames) for shard in shards for frames in test_time.frames(images.sizes[shard], size, short_side)
    )
    on_device = (some.to(run.device, non_blocking=True) for some in read)
    for shard in shards:
        targets = split.targets_N[shard].to(run.device, non_blocking=True)
        yield test_time.views_of_frames(on_device), targets


def log_probabilities(run: Run, views: Views) -> Tensor:
    """Return float32 (N, K): the logarithm of the class probabilities averaged over views of uint8 images."""
    weighted, num_views = [], 0
    for view, count in views:
        outputs = run.objective.forward(prepared(run, view)).float()
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # the same class is ranked first
        weighted.append(outputs.log_softmax(1) + math.log(count))
        num_views += count
    return torch.stack(weighted).logsumexp(0) - math.log(num_views)


def confusion_matrix(run: Run, split: Part) -> Tensor:
    """Return counts (K, K) on the CPU: true class in rows, predicted class in columns."""
    size = run.blueprint.facts.num_outputs
    cells: list[Tensor] = []
    run.model.eval()
    with at_evaluation_weights(run), torch.inference_mode(), run.strategy.evaluating(run.model):
        for images, targets in evaluation_batches(run, split):
            cells.append(targets * size + predicted(run.objective.forward(images)))
    run.model.train()
    counts = torch.bincount(torch.cat(cells).cpu(), minlength=size * size)  # on CUDA not deterministic
    return run.strategy.sum(counts.to(run.device, non_blocking=True)).cpu().view(size, size)
