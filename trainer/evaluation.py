"""Metrics of a model over a whole part of the data."""

from typing import Any

import torch
from torch import Tensor

from trainer.metrics import Meter
from trainer.run import Run


def evaluate(run: Run, part: Any, prefix: str) -> dict[str, float]:
    """Mean loss and metrics, named `<prefix>/...`, in evaluation mode; the model is left in training mode.

    Every sample counts once, whichever rank looks at it; all ranks get the main rank's numbers, so that what
    is decided by them is decided once.
    """
    run.model.eval()
    meter = Meter(run.blueprint.metrics)
    with torch.inference_mode(), run.strategy.evaluating(run.model):
        for images, targets in run.evaluation_batches(part):
            outputs = run.closure.forward(images)
            meter.add(run.blueprint.loss(outputs, targets), outputs, targets)
    run.model.train()
    values = run.strategy.broadcast(meter.read(run.strategy.sum))
    return {f"{prefix}/{name}": value for name, value in values.items()}


def confusion_matrix(run: Run, part: Any) -> Tensor:
    """Counts (K, K) on the CPU: true class in rows, predicted class in columns."""
    size = run.blueprint.facts.num_outputs
    counts = torch.zeros(size * size, dtype=torch.int64, device=run.device)
    run.model.eval()
    with torch.inference_mode(), run.strategy.evaluating(run.model):
        for images, targets in run.evaluation_batches(part):
            predicted = run.closure.forward(images).argmax(1)
            counts += torch.bincount((targets * size + predicted).cpu(), minlength=size * size).to(run.device)
    run.model.train()
    return run.strategy.sum(counts).cpu().view(size, size)
