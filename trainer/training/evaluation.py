"""Metrics of a model over a whole split of the data."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from trainer.data.facts import Part
from trainer.metrics import Meter
from trainer.training.evaluation_batches import evaluation_batches, evaluation_shards, prepared, raw_evaluation_batches
from trainer.training.run import Run
from trainer.training.test_time_augmentation import TestTime

Seen = Callable[[int], object]  # is told how many samples more were looked at by this rank
Views = Iterable[tuple[Tensor, int]]  # of some images, on the device, each with the number of times that it counts


def evaluate(run: Run, split: Part, prefix: str, seen: Seen = lambda count: None) -> dict[str, float]:
    """Mean loss and metrics, named `<prefix>/...`, in evaluation mode; the model is left in training mode.

    Every sample counts once, whichever rank looks at it; all ranks get the main rank's numbers, so that what
    is decided by them is decided once.
    """
    run.model.eval()
    meter = Meter(run.blueprint.metrics)
    with torch.inference_mode(), run.strategy.evaluating(run.model):
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
    """As `evaluate`, of class probabilities (softmax of the outputs) that are averaged over views of an image.

    The loss is that of these probabilities (`Loss.of_probabilities`): for cross-entropy -log p[target], with its base
    and smoothing. A loss that is defined on outputs only is left out.
    """
    has_loss = True
    run.model.eval()
    meter = Meter(run.blueprint.metrics)
    with torch.inference_mode(), run.strategy.evaluating(run.model):
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
    """Views of this rank's shard of a split, some images at a time, and their classes.

    Each view of a photograph is read for itself, ahead of time and in one stream: all views of a batch before the next.
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
    on_device = (some.to(run.device) for some in read)
    for shard in shards:
        yield test_time.views_of_frames(on_device), split.targets_N[shard].to(run.device)


def log_probabilities(run: Run, views: Views) -> Tensor:
    """float32 (N, K): the logarithm of the class probabilities' average over these views of uint8 images."""
    weighted, num_views = [], 0
    for view, count in views:
        outputs = run.objective.forward(prepared(run, view)).float()
        weighted.append(outputs.log_softmax(1) + math.log(count))
        num_views += count
    return torch.stack(weighted).logsumexp(0) - math.log(num_views)


def confusion_matrix(run: Run, split: Part) -> Tensor:
    """Counts (K, K) on the CPU: true class in rows, predicted class in columns."""
    size = run.blueprint.facts.num_outputs
    counts = torch.zeros(size * size, dtype=torch.int64, device=run.device)
    run.model.eval()
    with torch.inference_mode(), run.strategy.evaluating(run.model):
        for images, targets in evaluation_batches(run, split):
            predicted = run.objective.forward(images).argmax(1)
            counts += torch.bincount((targets * size + predicted).cpu(), minlength=size * size).to(run.device)
    run.model.train()
    return run.strategy.sum(counts).cpu().view(size, size)
