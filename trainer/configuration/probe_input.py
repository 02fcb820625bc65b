"""Probes of what comes before the model: facts of the data, sampler, preprocessing and augmentation."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from math import prod

import torch
from torch import Tensor

from trainer.augmentation import Pipeline
from trainer.base.config import Config
from trainer.configuration.build import is_foreign
from trainer.configuration.probe import COUNT, calling, described, is_theirs, key_of, random_targets, refuse, reloaded
from trainer.contracts import Augmentation, Preprocessing, Rows, Sampler
from trainer.data.facts import DataFacts

_MOST_VALUES = 1024  # of a sample that a preprocessing is fitted to: whitening takes its cube
_TASKS, _KINDS = ("classification", "regression"), ("images", "features")


def facts_problems(config: Config, facts: object) -> Iterator[str]:
    """Yield what is wrong with the result of `facts()`."""
    where = key_of(config, "data")
    if not isinstance(facts, DataFacts):
        yield f"{where}: facts() returns {described(facts)}; must return a DataFacts"
        return
    if facts.task not in _TASKS:
        yield f"{where}: facts() says task={facts.task}; must be {' or '.join(_TASKS)}"
    if facts.kind not in _KINDS:
        yield f"{where}: facts() says kind={facts.kind}; must be {' or '.join(_KINDS)}"
    shape = facts.input_shape
    if not isinstance(shape, tuple | list) or len(shape) != 3 or not all(_is_count(size, 1) for size in shape):
        yield f"{where}: facts() says input_shape={shape}; must be three whole numbers >= 1, (channels, height, width)"
    elif facts.kind == "features" and tuple(shape[1:]) != (1, 1):
        yield f"{where}: facts() says input_shape={shape} with kind=features; must be (number of features, 1, 1)"
    for name in [field.name for field in fields(facts) if field.name.startswith("num_")]:
        value = vars(facts)[name]
        if not _is_count(value, 1 if name == "num_outputs" else 0):
            yield f"{where}: facts() says {name}={value}; must be a whole number"
    if len(facts.class_names) not in (0, facts.num_outputs):
        yield f"{where}: facts() gives {len(facts.class_names)} class_names for {facts.num_outputs} outputs; must agree"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


# --- sampler ----------------------------------------------------------------------------------------------


def check_sampler_calls(config: Config, make: Callable[[], Sampler], facts: DataFacts) -> None:
    """Draw two epochs over a few samples, with and without the state of a checkpoint between them."""
    where = key_of(config, "sampler")
    sampler = make()
    if not is_theirs(config, "sampler", sampler):
        return
    count = max(2 * COUNT, 2 * min(facts.num_outputs, COUNT))
    targets = random_targets(facts.task, facts.num_outputs, count)
    with calling(where, "order()"):
        first = sampler.order(targets.clone(), _generator(0))
        check_order(where, first, count, repeats=sampler.repeats)
        again = sampler.order(targets.clone(), _generator(0))
    if not torch.equal(first, again):
        refuse(where, "order() returns another order for the same generator", "draw from the generator alone")
    if not sampler.listens:
        return
    with calling(where, "observing losses"):
        sampler.observe(first, torch.linspace(0.1, 3.0, count))
        sampler.gather(lambda tensor: tensor)
        sampler.end_epoch()
        state = reloaded(where, dict(sampler.state_dict()))
        other = make()
        other.order(targets.clone(), _generator(0))
        other.load_state_dict(state)
        following, restored = (item.order(targets.clone(), _generator(1)) for item in (sampler, other))
    if not torch.equal(following, restored):
        refuse(where, "after load_state_dict(), order() returns another order", "keep all its state in state_dict()")


def check_order(where: str, order: object, count: int, *, repeats: bool) -> None:
    """Check the indices of an epoch over `count` samples."""
    asked = f"return {count} indices from 0 to {count - 1}, int64, on the CPU"
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1 or order.device.type != "cpu":
        refuse(where, f"order() returns {described(order)}", asked)
    if len(order) != count:
        refuse(where, f"order() returns {len(order)} indices for {count} samples", asked)
    if count and (int(order.min()) < 0 or int(order.max()) >= count):
        refuse(where, f"order() returns indices from {int(order.min())} to {int(order.max())}", asked)
    if not repeats and len(order.unique()) != count:
        refuse(where, "order() repeats samples", "use each sample once, or set repeats = True")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- preprocessing ----------------------------------------------------------------------------------------


def check_preprocessing_calls(config: Config, make: Callable[[], Preprocessing], facts: DataFacts) -> None:
    """Fit it to a few random samples and apply it, with and without the state of a checkpoint between them."""
    where, preprocessing = key_of(config, "preprocessing"), make()
    if not is_theirs(config, "preprocessing", preprocessing) or prod(facts.input_shape) > _MOST_VALUES:
        return
    images = _random_images(facts, COUNT)
    before = images.clone()
    with calling(where, "fit()"):
        preprocessing.fit(images)
    with calling(where, "forward()"), torch.no_grad():
        found = preprocessing(images)
        check_prepared(where, "forward()", found, images)
        if not torch.equal(images, before):
            refuse(where, "forward() changes its argument", "leave it as it is")
        if preprocessing.transform_ is not None:
            in_place = preprocessing.transform_(images.float())
            check_prepared(where, "transform_()", in_place, images)
            if not torch.allclose(in_place, found, rtol=1e-4, atol=1e-5, equal_nan=True):
                refuse(where, "transform_() and forward() return different values", "be the same function")
        state = reloaded(where, dict(preprocessing.state_dict()))
        other = make()
        other.load_state_dict(state)
        if not torch.equal(other(images), found):
            refuse(where, "after load_state_dict(), forward() returns other values",
                   "keep the statistics in buffers (register_buffer)")  # fmt: skip


def check_prepared(where: str, what: str, found: object, images: Tensor) -> None:
    if not isinstance(found, Tensor) or found.dtype != torch.float32 or found.shape != images.shape:
        asked = f"return a float32 tensor of the shape of the images, {tuple(images.shape)}"
        refuse(where, f"{what} returns {described(found)}", asked)


def _random_images(facts: DataFacts, count: int) -> Tensor:
    shape = (count, *facts.input_shape)
    if facts.kind == "features":
        return torch.randn(shape, generator=_generator(0))
    return torch.randint(256, shape, dtype=torch.uint8, generator=_generator(0))


# --- augmentation -----------------------------------------------------------------------------------------


def check_augmentation_calls(config: Config, augmentation: Augmentation | None, facts: DataFacts) -> None:
    """Draw and apply a preset, or a user's operations in ours, to a few random images."""
    if augmentation is None or facts.kind != "images":
        return
    images = _random_images(facts, COUNT)
    if not isinstance(augmentation, Pipeline):
        if is_foreign(augmentation):
            where = key_of(config, "augmentation")
            _check_changed(where, augmentation.draw, augmentation, images, is_float=False)
            if augmentation.mixing is not None:
                _check_mixed(where, augmentation, images)
        return
    for name, operation in augmentation.operations.items():
        if is_foreign(operation):
            where = f"augmentation.{name}"
            if operation.mixes or operation.maps_coordinates:
                _check_rows(where, operation.draw, images)
            else:
                _check_changed(where, operation.draw, operation, images, is_float=not operation.keeps_values)
    if augmentation.mixing is not None and is_foreign(augmentation.operations[augmentation.mixing]):
        _check_mixed(f"augmentation.{augmentation.mixing}", augmentation, images)


Draw = Callable[[int, tuple[int, int, int], torch.Generator], Rows]


def _check_rows(where: str, draw: Draw, images: Tensor) -> Rows:
    count, channels, height, width = images.shape
    with calling(where, "draw()"):
        rows, again = (draw(count, (channels, height, width), _generator(0)) for _ in range(2))
    if not isinstance(rows, dict):
        refuse(where, f"draw() returns {described(rows)}", "return a dict of tensors, one row per sample")
    for name, values in rows.items():
        if not isinstance(values, Tensor) or values.ndim < 1 or len(values) != count or values.device.type != "cpu":
            refuse(where, f"draw()['{name}'] is {described(values)} for {count} samples",
                   "be a tensor on the CPU with one row per sample")  # fmt: skip
        if not torch.equal(values, again[name]):
            refuse(where, f"draw()['{name}'] differs for the same generator", "be drawn from the generator alone")
    return rows


def _check_changed(
    where: str, draw: Draw, change: Callable[[Tensor, Rows], Tensor], images: Tensor, *, is_float: bool
) -> None:
    rows = _check_rows(where, draw, images)
    with calling(where, "it"):
        given = images.float() if is_float else images.clone()
        found = change(given, rows)
    check_augmented(where, found, tuple(images.shape))
    values = found.float()
    if not torch.equal(values, values.round()) or values.min() < 0 or values.max() > 255:
        refuse(where, f"it returns values such as {_worst(values):.4g}", "return whole numbers from 0 to 255")


def _worst(values: Tensor) -> float:
    """A value that is none of a pixel."""
    flat = values.flatten()
    return float(flat[(flat != flat.round()) | (flat < 0) | (flat > 255)][0])


def check_augmented(where: str, images: object, shape: tuple[int, ...]) -> None:
    """Check the shape and dtype of augmented images."""
    if not isinstance(images, Tensor) or images.shape != shape or images.dtype not in (torch.uint8, torch.float32):
        refuse(where, f"it returns {described(images)}", f"return images of shape {shape}, uint8 or float32")


def _check_mixed(where: str, augmentation: Augmentation, images: Tensor) -> None:
    rows = _check_rows(where, augmentation.draw, images)
    with calling(where, "mix()"):
        mixed = augmentation.mix(images.float(), images.roll(1, 0).float(), rows)
        if not isinstance(mixed, tuple) or len(mixed) != 2:
            refuse(where, f"mix() returns {described(mixed)}", "return the images and the weight of each one's label")
        found, lam = mixed
    check_augmented(where, found, tuple(images.shape))
    if not isinstance(lam, Tensor) or tuple(lam.shape) != (len(images),) or lam.min() < 0 or lam.max() > 1:
        refuse(where, f"mix() returns {described(lam)} as weights", f"be {len(images)} numbers from 0 to 1")
