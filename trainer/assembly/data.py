"""The data of a run: loading, fitted preprocessing, and training batches."""

import math

import torch

from trainer.assembly.splits import checked_splits
from trainer.base.blame import with_place
from trainer.base.errors import ConfigurationError, DataError, is_out_of_files
from trainer.base.stateful import State
from trainer.configuration.blueprint import Blueprint
from trainer.contracts import Augmentation, Preprocessing, Sampler
from trainer.data.facts import Part, Splits
from trainer.parallelism.strategy import Strategy
from trainer.training.batches import TrainingBatches


def share_statistics(
    preprocessing: Preprocessing, splits: Splits, strategy: Strategy, known: State | None = None
) -> None:
    """Give all ranks the main rank's statistics: `known` ones, or estimated from the training split."""

    def on_main() -> State:
        if known is not None:
            return known
        preprocessing.fit(splits.train.images_NCHW)
        return preprocessing.state_dict()

    statistics = strategy.from_main(on_main)
    if not strategy.is_main:
        preprocessing.load_state_dict(statistics)


def make_batches(
    blueprint: Blueprint,
    train: Part,
    sampler: Sampler,
    augmentation: Augmentation | None,
    preprocessing: Preprocessing,
    *,
    channels_last: bool = False,
    room: float | None = None,
) -> TrainingBatches:
    """Return the training batches of a run, on its device; `room` is the memory that the data set leaves, in bytes."""
    config, device, images = blueprint.config, blueprint.device, train.images_NCHW
    if room is None:
        room = blueprint.data.room() if device.type == "cpu" else None
    return TrainingBatches(
        images.to(device) if isinstance(images, torch.Tensor) else images, train.targets_N,
        batch_size=blueprint.batch_size, micro_batch=blueprint.micro_batch, limit=config["limit_batches"],
        seed=config["seed"], sampler=sampler, augmentation=augmentation, preprocessing=preprocessing,
        strategy=blueprint.strategy, channels_last=channels_last, num_classes=blueprint.facts.num_outputs,
        room=math.inf if room is None else room, device=device,
        timeline=blueprint.timeline if blueprint.timeline.grows else None,
    )  # fmt: skip


def load_data(blueprint: Blueprint) -> Splits:
    """Load the splits, on the CPU. Raises ConfigurationError if data is missing, DataError if it is damaged."""
    try:
        splits: object = blueprint.data.load()
    except ValueError as error:
        raise DataError(with_place(f"data: {error}", error)) from error
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise ConfigurationError(with_place(f"data: {error}", error)) from error
    return checked_splits(splits, blueprint)
