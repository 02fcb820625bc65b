"""Rows of `train plan` about what a run also says when it starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from trainer.configuration.blueprint import Blueprint


def model_rows(blueprint: "Blueprint", model: "nn.Module") -> Iterator[tuple[str, str]]:
    """Yield the warning about batch norm of few samples, if there is one."""
    from trainer.configuration.few_samples import few_samples

    if (told := few_samples(blueprint, model)) is not None:
        name, _, text = told.partition(": ")
        yield name, text


def weights_rows(blueprint: "Blueprint", model: "nn.Module") -> Iterator[tuple[str, str]]:
    """Yield what a model takes, leaves out and has new of weights that do not all fit it."""
    from trainer.assembly.weights import fitting_weights
    from trainer.contracts import taken_weights

    config = blueprint.config
    if (told := taken_weights(model)) is not None:
        yield "model", told
    if config["init_from"] is not None:
        _, told = fitting_weights(model, Path(config["init_from"]), is_strict=config["init_strict"])
        if told is not None:
            yield "init_from", told
