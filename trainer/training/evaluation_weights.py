"""The weights that are evaluated and kept as best, if the optimizer trains others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.training.run import Run


@contextmanager
def at_evaluation_weights(run: Run) -> Iterator[None]:
    """Context manager within which the model has the weights to use; afterwards it has the same bits as before.

    Does nothing if the optimizer trains those weights themselves, or if the model already has the best ones.
    """
    if run.averaged is None or run.holds_best:
        yield
        return
    with torch.no_grad():
        pairs = list(run.averaged())
        own = [parameter.clone() for parameter, _ in pairs]
        for parameter, value in pairs:
            parameter.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(pairs, own, strict=True):
                parameter.copy_(value)
