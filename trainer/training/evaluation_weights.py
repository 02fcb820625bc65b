"""The weights that are evaluated and kept as best, if they are an average and not those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.data.facts import Part
from trainer.training.evaluation_batches import evaluation_batches
from trainer.training.run import Run


@contextmanager
def at_evaluation_weights(run: Run) -> Iterator[None]:
    """Context manager within which the model has the weights to use; afterwards it has the same bits as before.

    Does nothing if the trained weights are used, or if the model already has the best ones. A collective call.
    """
    pairs = [] if run.averaged is None or run.holds_best else list(run.averaged())
    if not pairs:
        yield
        return
    buffers = list(run.model.buffers())
    with torch.no_grad():
        own = [tensor.clone() for tensor in (*(parameter for parameter, _ in pairs), *buffers)]
        for parameter, value in pairs:
            parameter.copy_(value)
        _estimate_batch_norm(run, buffers)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip((*(parameter for parameter, _ in pairs), *buffers), own, strict=True):
                tensor.copy_(value)


def _estimate_batch_norm(run: Run, buffers: list[Tensor]) -> None:
    """Replace the statistics of batch norm by their means over batches of training samples, without augmentation.

    What was estimated is kept for the next use in the same step.
    """
    count = 0 if run.averaging is None else run.averaging.batch_norm_samples
    norms = [module for module in run.model.modules() if isinstance(module, _BatchNorm)]
    if not count or not norms:
        return
    step, known = run.batch_norm
    if step == run.step:
        for buffer, value in zip(buffers, known, strict=True):
            buffer.copy_(value)
        return
    settings = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    part = run.splits.train
    try:
        for images, _ in evaluation_batches(run, Part(part.images_NCHW[:count], part.targets_N[:count])):
            run.objective.forward(images)
    finally:
        for norm, momentum, training in settings:
            norm.momentum = momentum
            norm.train(training)
    run.batch_norm = run.step, [buffer.clone() for buffer in buffers]
