"""Named operations, one after the other."""

from collections import defaultdict

import torch
from torch import Tensor

from trainer.augmentation.operation import Operation, Rows


class Pipeline:
    """Applies operations in the order in which they are written.

    An operation's parameters stand in the table under `<its name>.<parameter>`, say "crop.offset_y". Raises
    ValueError when there is no operation, or something that is none.
    """

    def __init__(self, **operations: Operation) -> None:
        if not operations:
            raise ValueError("operations={}: must name at least one (or choose augmentation=none)")
        for name, operation in operations.items():
            if not (callable(operation) and hasattr(operation, "draw")):
                raise ValueError(f"{name}={operation}: must be an operation (remove one by ~augmentation.{name})")
        self.operations = operations

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """The table of an epoch: a CPU tensor for each parameter, with one row a sample."""
        return {
            f"{name}.{parameter}": column
            for name, operation in self.operations.items()
            for parameter, column in operation.draw(num_samples, input_shape, generator).items()
        }

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        """The augmented images, given these samples' rows of the table on the same device."""
        rows_of: dict[str, Rows] = defaultdict(dict)
        for key, column in rows.items():
            name, _, parameter = key.partition(".")
            rows_of[name][parameter] = column
        for name, operation in self.operations.items():
            images_NCHW = operation(images_NCHW, rows_of[name])
        return images_NCHW
