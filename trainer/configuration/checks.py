"""The rules between components, and the checks of the model and the optimizer: shapes, memory, capabilities."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import metrics
from trainer.base.chunks import part_sizes
from trainer.base.device import _memory
from trainer.base.errors import ConfigurationError, one_line, unknown
from trainer.base.torch_optimizers import needs_closure
from trainer.configuration.blueprint import Blueprint, _micro_batch
from trainer.configuration.groups import _build_part
from trainer.configuration.rules import Config
from trainer.optimizers.parameter_groups import unmatched


def _data_problems(config: Config, data: Any, facts: Any) -> Iterator[str]:
    batch_size, samples = config["batch_size"], facts.num_train
    for part, count in (("training", samples), ("validation", facts.num_val), ("test", facts.num_test)):
        if count < 1:
            yield f"data: the {part} part is empty; it needs at least one sample"
    if batch_size != "full" and batch_size > samples:
        yield f"batch_size={batch_size}: must be at most {samples}, the training samples (or `full`)"
    elif batch_size != "full" and config["accumulate"] > batch_size:
        yield f"accumulate={config['accumulate']}: must be at most batch_size={batch_size}"
    check = getattr(data, "check", None)
    if check is not None:
        lines: list[str] = []
        try:
            check()
        except (ValueError, OSError) as error:
            lines.append(_line("data", error))
        yield from lines
    start = config["init_from"]
    if start is not None and not (Path(start).is_file() or (Path(start) / "checkpoints").is_dir()):
        yield f"init_from={start}: is neither a run folder nor a file"


def _line(group: str, error: Exception) -> str:
    """What a part says, with the key that it names, or that of the group."""
    joint = "." if re.match(r"[\w.]+=", str(error)) else ": "
    return f"{group}{joint}{one_line(error)}"


def _contradictions(config: Config, total_steps: int) -> Iterator[str]:
    """Settings of which one would make the other do nothing."""
    weights = config["init_from"] or (config["model"] or {}).get("weights")
    if weights is not None and (config["initializer"] or {}).get("_target_"):
        option = config["choices"].get("initializer", "initializer")
        yield f"initializer={option}: the weights come from {weights}; leave initializer=default"
    if config["profile"] is not None and config["profile"] + 10 > total_steps:
        yield f"profile={config['profile']}: ten steps to get warm and these are more than the run's {total_steps}"


def metric_names(loss: Any, facts: Any) -> list[str]:
    """The names that a validation yields."""
    return [f"val/{name}" for name in ("loss", *metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs))]


def _metric_problems(config: Config, loss: Any, facts: Any) -> Iterator[str]:
    if facts.task not in loss.tasks:
        option, data = config["choices"].get("loss", "loss"), config["choices"].get("data", "data")
        yield f"loss={option}: is for {', '.join(sorted(loss.tasks))}; data={data} is {facts.task}"
    elif config["early_stopping"] is not None:
        monitor = config["early_stopping"]["monitor"]
        yield from _monitor_problem("early_stopping.monitor", monitor, metric_names(loss, facts))


def _augmentation_problems(config: Config, augmentation: Any, loss: Any, facts: Any) -> Iterator[str]:
    if augmentation is not None and facts.kind != "images":
        option, data = config["choices"].get("augmentation"), config["choices"].get("data")
        yield f"augmentation={option}: changes images; data={data} has {facts.kind}; leave augmentation=none"
        return
    if augmentation is not None:
        try:
            augmentation.draw(2, tuple(facts.input_shape), torch.Generator())
        except ValueError as error:  # an operation that asks more of the images than there is
            yield _line("augmentation", error)
    mixing = getattr(augmentation, "mixing", None)
    if mixing is None:
        return
    if facts.task != "classification":
        yield f"augmentation.{mixing}: mixes the labels of classes; data={config['choices'].get('data')} has none"
    elif not getattr(loss, "soft_targets", False):
        option = config["choices"].get("loss", "loss")
        yield f"augmentation.{mixing}: needs a loss that takes a probability of each class; loss={option} does not"


def _sampler_problems(config: Config, sampler: Any, loss: Any, facts: Any, strategy: Any) -> Iterator[str]:
    """A sampler that learns from the losses has to be told them, by all ranks; some ask for classes."""
    option = config["choices"].get("sampler", "sampler")
    if getattr(sampler, "needs_classes", False) and facts.task != "classification":
        yield f"sampler={option}: chooses by class; data={config['choices'].get('data', 'data')} has none"
    if not hasattr(sampler, "observe"):
        return
    if not hasattr(loss, "each"):
        yield f"sampler={option}: asks for the loss of each sample; loss={config['choices'].get('loss')} has no `each`"
    if not getattr(strategy, "is_synchronous", True):
        parallelism = config["choices"].get("parallelism")
        yield f"sampler={option}: every rank must know every loss; parallelism={parallelism} does not wait for them"


def _check_preprocessing(preprocessing: Any, facts: Any) -> None:
    try:
        preprocessing.check(tuple(facts.input_shape))
    except ValueError as error:
        raise ConfigurationError(_line("preprocessing", error)) from error


def _monitor_problem(where: str, monitor: str, names: list[str]) -> list[str]:
    return [] if monitor in names else [f"{where}={monitor}: {unknown('metric', monitor, names)}"]


def _check_optimizer(blueprint: Blueprint) -> None:
    """Construct the optimizer on a dummy parameter. Closure optimizers cannot use loss scaling."""
    optimizer = _build_part(blueprint.config, "optimizer", params=[nn.Parameter(torch.zeros(1))])
    if needs_closure(optimizer) and blueprint.dtype is torch.float16:
        raise ConfigurationError("precision=fp16: cannot be scaled under an optimizer that evaluates a closure")


def _check_model_of(blueprint: Blueprint) -> None:
    """`_check_model`, and which models there are for features."""
    try:
        _check_model(blueprint)
    except ConfigurationError as error:
        choices = blueprint.config["choices"]
        if blueprint.facts.kind == "images" or choices.get("model") in ("linear", "mlp"):
            raise
        why = f"data={choices.get('data')} has features, which model=mlp and model=linear take"
        raise ConfigurationError(f"{problem}; {why}" for problem in error.problems) from error


def _check_model(blueprint: Blueprint) -> None:
    """Build and run the model on the meta device: shapes are checked, nothing is allocated."""
    with torch.device("meta"):
        model = blueprint.build_model()
        if not isinstance(model, nn.Module):
            target = blueprint.config["model"]["_target_"]
            raise ConfigurationError(f"model._target_={target}: gives no torch.nn.Module, but {type(model).__name__}")
        outputs = _run_meta(model, blueprint)
    for pattern in unmatched(model, blueprint.config["no_weight_decay"]):
        names = [name for name, _ in model.named_parameters()]
        raise ConfigurationError(
            f"no_weight_decay={pattern}: is neither bias nor norm nor a pattern of a parameter, such as {names[0]}"
        )
    wanted = (2, blueprint.facts.num_outputs)
    if outputs is not None and tuple(outputs.shape) != wanted:
        raise ConfigurationError(
            f"model: turns a batch of 2 into outputs of shape {tuple(outputs.shape)}; {wanted} is needed"
        )
    _check_memory(model)
    if blueprint.strategy is not None:
        blueprint.strategy.validate(blueprint.config, model)
    _check_lone_sample(model, blueprint)
    if blueprint.config["micro_batch"] == "auto" and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ConfigurationError(
            "micro_batch=auto: the model has batch norm, whose statistics would change with the split; "
            "set accumulate or micro_batch yourself, or use a model without it"
        )


def _check_lone_sample(model: nn.Module, blueprint: Blueprint) -> None:
    """Batch norm of a vector has no variance over one sample: what is computed at once must not be that."""
    batch_size = blueprint.batch_size
    if not _leaves_one_alone(blueprint, batch_size):
        return
    try:
        model(torch.empty(1, *blueprint.facts.input_shape, device="meta"))
    except Exception as error:  # two at once were well: whatever else it is, the run will tell
        if "more than 1 value per channel" not in str(error):
            return
        others = (size for near in range(1, batch_size + 2) for size in (batch_size - near, batch_size + near))
        better = next((size for size in others if size > 1 and not _leaves_one_alone(blueprint, size)), None)
        raise ConfigurationError(
            f"batch_size={blueprint.config['batch_size']}: of {blueprint.facts.num_train:,} training samples one is"
            " computed alone, and over one the model's batch norm has no variance"
            + ("" if better is None else f"; batch_size={better} leaves none alone")
        ) from error


def _leaves_one_alone(blueprint: Blueprint, batch_size: int) -> bool:
    config, samples = blueprint.config, blueprint.facts.num_train
    if config["limit_batches"] is not None:
        samples = min(samples, config["limit_batches"] * batch_size)
    whole, last = divmod(samples, batch_size)
    micro_batch = _micro_batch(config, batch_size)
    reaches_last = config["steps"] is None or config["steps"] > whole
    sizes = [*part_sizes(batch_size, micro_batch) * (whole > 0), *part_sizes(last, micro_batch) * reaches_last]
    return 1 in sizes


def _check_memory(model: nn.Module) -> None:
    """Weights and gradients alone must fit into the machine: a model is built on the CPU for every device."""
    needed = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    there = _memory()
    if needed > there:
        raise ConfigurationError(
            f"model: weights and gradients alone need {needed / 1e9:,.1f} GB of memory; "
            f"this machine has {there / 1e9:,.1f} GB"
        )


def _run_meta(model: nn.Module, blueprint: Blueprint) -> Tensor | None:
    images = torch.empty(2, *blueprint.facts.input_shape)
    try:
        outputs = model(images)
    except NotImplementedError:  # an operation that has no meta kernel says nothing about the shapes
        return None
    except Exception as error:  # whatever a foreign model raises, the user's question is the same
        if "meta" in str(error):  # it reads a value, or mixes in a tensor made elsewhere: no word about shapes
            return None
        shape = tuple(blueprint.facts.input_shape)
        raise ConfigurationError(f"model: cannot take images of shape {shape}: {one_line(error)}") from error
    if not isinstance(outputs, Tensor):
        raise ConfigurationError(f"model: returns {type(outputs).__name__}, a tensor is needed")
    return outputs
