"""Training samples as stored, after each single operation of the augmentation, and as used in training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.augmentation import Operation, Pipeline, Rows
from trainer.base.config import Config
from trainer.base.randomness import generator_for
from trainer.contracts import Augmentation
from trainer.training.batches import TrainingBatches

NUM_SAMPLES = 8
_NUMBERS_SHOWN = 3  # of one parameter
_NO_PARAMETERS = ("seed", "next_weight")  # auxiliary columns without a meaning of their own


@dataclass(frozen=True)
class Strip:
    """Images side by side, float32 (K, C, H, W), and a caption for each, as a list of phrases."""

    title: str
    note: str
    images_KCHW: Tensor
    captions: list[list[str]]


@dataclass(frozen=True)
class _Samples:
    """Samples of an epoch's first steps: the images as trained on, their indices, their positions in the epoch, and
    the partners, the previous samples in the batch, with which they are mixed."""

    images_KCHW: Tensor
    targets_K: Tensor  # (K, number of classes) of mixed ones
    indices_K: Tensor
    positions_K: Tensor
    partners_K: Tensor


def strips(
    batches: TrainingBatches,
    augmentation: Augmentation | None,
    *,
    repeats: bool,
    settings: Config,
    name_of: Callable[[Tensor], str],
    preprocessing: str,
) -> Iterator[Strip]:
    """Yield the originals; for a Pipeline, each single operation; and the result, bit-identical to the run's.

    `batches` are those of a run on one device, with this `augmentation`; `repeats` is that of their sampler. A single
    operation has the same parameters as in the pipeline, but is applied to all images: probabilities do not affect
    the other parameters. The note of an operation shows its `settings`; `name_of` returns the caption of a target.
    """
    batches = batches.before_preprocessing()
    samples = _first_samples(batches)
    originals = _stored(batches, samples.indices_K)
    names = [name_of(target) for target in batches.targets[samples.indices_K.to(batches.targets.device)]]
    note = "" if isinstance(batches.images, Tensor) else "framed as for evaluation"
    yield Strip("originals", note, originals, [[name] for name in names])
    if augmentation is None:
        return
    if isinstance(augmentation, Pipeline):
        always = Pipeline(**{name: operation.always() for name, operation in augmentation.operations.items()})
        rows = _rows(always, batches, samples.positions_K if repeats else samples.indices_K)
        for name, operation in always.operations.items():
            note = _note(settings.get(name), augmentation.operations[name], operation)
            if name == always.mixing:
                yield Strip(name, note, *_mixed(always, batches, samples, originals, rows, name_of))
            else:
                images = _alone(name, always, batches, samples, originals, rows)
                yield Strip(name, note, images, _drawn(operation, _own(rows, name), len(names)))
    labels = [_label(target, name_of) for target in samples.targets_K] if samples.targets_K.ndim > 1 else []
    is_mixed = augmentation.mixing is not None
    yield Strip(
        "as trained on",
        f"in the first epoch, before preprocessing={preprocessing}",
        samples.images_KCHW,
        labels if is_mixed else [],
    )


def _first_samples(batches: TrainingBatches) -> _Samples:
    """Pick samples from the first steps: one per class, then more until there are `NUM_SAMPLES`."""
    found: list[tuple[Tensor, ...]] = []
    count = 0
    for batch in batches.epoch(0):
        positions = torch.arange(count, count + len(batch.indices))
        found.append((batch.images, batch.targets, batch.indices, positions, batch.indices.roll(1)))
        count += len(positions)
        if count >= NUM_SAMPLES:
            break
    images, targets, indices, positions, partners = (torch.cat(parts) for parts in zip(*found, strict=True))
    classes = [str(batches.targets[index].tolist()) for index in indices.tolist()]
    first_ones = [classes.index(name) for name in dict.fromkeys(classes)]
    chosen = sorted(list(dict.fromkeys([*first_ones, *range(count)]))[:NUM_SAMPLES])
    return _Samples(images[chosen], targets[chosen], indices[chosen], positions[chosen], partners[chosen])


def _stored(batches: TrainingBatches, indices_K: Tensor) -> Tensor:
    parts = [batches.images[index : index + 1] for index in indices_K.tolist()]
    return torch.cat(parts).to(batches.targets.device, torch.float32)


def _rows(pipeline: Pipeline, batches: TrainingBatches, by_K: Tensor) -> Rows:
    shape = (int(batches.images.shape[1]), int(batches.images.shape[2]), int(batches.images.shape[3]))
    table = pipeline.draw(len(batches.targets), shape, generator_for(batches.seed, "augmentation", 0))
    return {key: values[by_K] for key, values in table.items()}


def _own(rows: Rows, name: str) -> Rows:
    return {key.partition(".")[2]: values for key, values in rows.items() if key.partition(".")[0] == name}


def _alone(
    name: str, pipeline: Pipeline, batches: TrainingBatches, samples: _Samples, originals: Tensor, rows: Rows
) -> Tensor:
    alone, images = Pipeline(**{name: pipeline.operations[name]}), batches.images
    if name == next(iter(pipeline.operations)) and not isinstance(images, Tensor):
        frames = alone.frames(rows, images.sizes[samples.indices_K], (originals.shape[2], originals.shape[3]))
        if frames is not None:  # cut out of the photograph itself
            (framed,) = images.read([(samples.indices_K, frames)])
            found: Tensor = framed.to(originals)
            return found
    return alone(originals.clone(), rows)


def _mixed(
    pipeline: Pipeline,
    batches: TrainingBatches,
    samples: _Samples,
    originals: Tensor,
    rows: Rows,
    name_of: Callable[[Tensor], str],
) -> tuple[Tensor, list[list[str]]]:
    """Return mixed images and the classes of each."""
    images, lam_K = pipeline.mix(originals, _stored(batches, samples.partners_K), rows)
    labels = []
    for lam, index, partner in zip(lam_K, samples.indices_K, samples.partners_K, strict=True):
        target = torch.zeros_like(samples.targets_K[0])
        target[batches.targets[index]] += lam
        target[batches.targets[partner]] += 1 - lam
        labels.append(_label(target, name_of))
    return images, labels


def _label(target_K: Tensor, name_of: Callable[[Tensor], str]) -> list[str]:
    """Return the class, or several classes with their probabilities, except those below half a percent."""
    weights, classes = target_K.sort(descending=True)
    shown = [(f"{weight:.2f}", name_of(number)) for weight, number in zip(weights.tolist(), classes, strict=True)]
    shown = [(weight, name) for weight, name in shown if weight != "0.00"]
    return [name for _, name in shown] if len(shown) == 1 else [f"{weight} {name}" for weight, name in shown]


def _note(settings: object, configured: Operation, shown: Operation) -> str:
    """Return an operation's settings, and how often it is applied."""
    given = settings if isinstance(settings, Mapping) else {}
    phrases = [f"{key}={_number(value)}" for key, value in given.items() if key not in ("_target_", "probability")]
    if shown.probability != configured.probability:
        phrases.insert(0, f"applied to {100 * configured.probability:.3g} %, here to all")
    return ", ".join(phrases)


def _drawn(operation: Operation, rows: Rows, count: int) -> list[list[str]]:
    """Return phrases that describe what was done to each image, or its parameters."""
    phrases = operation.phrases(rows)
    if phrases is not None:
        return list(phrases)
    shown = {
        key: values.reshape(count, -1)
        for key, values in rows.items()
        if key not in _NO_PARAMETERS and values.dtype != torch.bool and values.numel() <= count * _NUMBERS_SHOWN
    }
    return [
        [f"{key.replace('_', ' ')} {' '.join(map(_number, values[k].tolist()))}" for key, values in shown.items()]
        for k in range(count)
    ]


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("'", "")
