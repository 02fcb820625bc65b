"""Checks of components: rules between them, and shapes, memory and capabilities of model and optimizer.

Each check yields problems, or raises ConfigurationError for the first one; none has side effects.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import metrics
from trainer.base.blame import with_place
from trainer.base.capabilities import centroids_of
from trainer.base.chunks import chunk_sizes
from trainer.base.config import Config
from trainer.base.device import total_memory
from trainer.base.errors import ConfigurationError, advice_of, one_line, unknown
from trainer.base.improvement import direction
from trainer.base.recomputation import blocks_of
from trainer.base.without_compiler import zeros_for
from trainer.configuration.blueprint import Blueprint, advised_size, micro_batch_size
from trainer.configuration.components import build_component
from trainer.configuration.optimizer_checks import check_optimizer_for
from trainer.configuration.parameter_group_checks import check_parameter_groups
from trainer.configuration.probe import calling, described, key_of
from trainer.configuration.probe_model import check_built, check_shared, check_trained, output_shape, run_real
from trainer.configuration.probe_strategy import divide_and_validate
from trainer.configuration.weights_checks import check_regularizer
from trainer.contracts import (
    Augmentation,
    Initializer,
    Loss,
    Preprocessing,
    Sampler,
    Schedule,
)
from trainer.data.facts import DataFacts, DataSet
from trainer.optimizers.parameter_groups import unmatched
from trainer.parallelism.strategy import Strategy


def check_data(config: Config, data: DataSet, facts: DataFacts) -> Iterator[str]:
    batch_size, samples = config["batch_size"], facts.num_train
    for part, count in (("training", samples), ("validation", facts.num_val), ("test", facts.num_test)):
        if count < 1:
            yield f"data: the {part} split is empty; it needs at least one sample"
    if batch_size != "full" and batch_size > samples:
        yield f"batch_size={batch_size}: must be at most {samples}, the training samples; {advised_size(samples)}"
    elif batch_size != "full" and config["accumulate"] > batch_size:
        yield f"accumulate={config['accumulate']}: must be at most batch_size={batch_size}"
    problem = None
    try:
        data.check()
    except (ValueError, OSError) as error:
        problem = line_of("data", error)
    if problem is not None:
        yield problem
    start = config["init_from"]
    if start is not None and not (Path(start).is_file() or (Path(start) / "checkpoints").is_dir()):
        yield f"init_from={start}: is neither a run folder nor a file"


def line_of(group: str, error: Exception) -> str:
    """Return a component's message, prefixed with its full key or the group."""
    joint = "." if re.match(r"[\w.]+=", str(error)) else ": "
    return f"{group}{joint}{one_line(error)}"


def check_contradictions(config: Config, total_steps: int) -> Iterator[str]:
    """Settings that have no effect because of another setting."""
    model = config["model"] or {}
    is_pretrained = model.get("pretrained") and str(model.get("_target_")).startswith("trainer.models.")
    weights = config["init_from"] or model.get("weights") or ("model.pretrained" if is_pretrained else None)
    if weights is not None and (config["initializer"] or {}).get("_target_"):
        option = config["choices"].get("initializer", "initializer")
        yield f"initializer={option}: the weights come from {weights}; leave initializer=default"
    if config["profile"] is not None and config["profile"] + 10 > total_steps:
        yield f"profile={config['profile']}: with ten steps of warm-up, this exceeds the run's {total_steps} steps"


def metric_names(loss: Loss, facts: DataFacts) -> list[str]:
    """Return the names of the validation metrics."""
    return [f"val/{name}" for name in ("loss", *metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs))]


def check_loss(config: Config, loss: Loss, facts: DataFacts) -> Iterator[str]:
    """The loss must support the task of the data and provide the metric that early stopping monitors."""
    if facts.task not in loss.tasks:
        option, data = config["choices"].get("loss", "loss"), config["choices"].get("data", "data")
        yield f"loss={option}: is for {', '.join(sorted(loss.tasks))}; data={data} is {facts.task}"
        return
    problem = _problem_of_directions(loss)
    if problem is None and (stopping := config["early_stopping"]) is not None:
        monitor = stopping["monitor"]
        problem = _problem_of_monitor("early_stopping.monitor", monitor, metric_names(loss, facts))
        try:
            direction(monitor, stopping["mode"], loss.directions, section="early_stopping.")
        except ValueError as error:
            problem = problem or f"early_stopping.{error}"
    if problem is not None:
        yield problem


def _problem_of_directions(loss: Loss) -> str | None:
    for name, way in loss.directions.items():
        if way not in ("min", "max"):
            return f"loss: directions = {{{name!r}: {way!r}}}: must be 'min' (lower values are better) or 'max'"
    return None


def _problem_of_monitor(where: str, monitor: str, names: list[str]) -> str | None:
    return None if monitor in names else f"{where}={monitor}: {unknown('metric', monitor, names)}"


def check_augmentation(
    config: Config, augmentation: Augmentation | None, loss: Loss, facts: DataFacts
) -> Iterator[str]:
    """The augmentation must support the images; mixing labels needs classes and a loss with soft targets."""
    if augmentation is None:
        return
    if facts.kind != "images":
        option, data = config["choices"].get("augmentation"), config["choices"].get("data")
        yield f"augmentation={option}: changes images; data={data} has {facts.kind}; use augmentation=none"
        return
    problem = None
    try:
        augmentation.draw(2, facts.input_shape, torch.Generator())
    except ValueError as error:  # an operation does not support such images
        problem = line_of("augmentation", error)
    if problem is not None:
        yield problem
    mixing = augmentation.mixing
    if mixing is None:
        return
    if facts.task != "classification":
        yield f"augmentation.{mixing}: mixes the labels of classes; data={config['choices'].get('data')} has none"
    elif not loss.soft_targets:
        option = config["choices"].get("loss", "loss")
        yield f"augmentation.{mixing}: needs a loss that takes a probability of each class; loss={option} does not"


def check_sampler(
    config: Config, sampler: Sampler | None, loss: Loss, facts: DataFacts, strategy: Strategy
) -> Iterator[str]:
    """A sampler that uses losses needs the loss of each sample from all ranks; some samplers need classes."""
    if sampler is None:
        return
    option = config["choices"].get("sampler", "sampler")
    if sampler.needs_classes and facts.task != "classification":
        yield f"sampler={option}: chooses by class; data={config['choices'].get('data', 'data')} has none"
    if not sampler.listens:
        return
    if not loss.has_each:
        yield f"sampler={option}: needs the loss of each sample; loss={config['choices'].get('loss')} has no `each`"
    if not strategy.is_synchronous:
        parallelism = config["choices"].get("parallelism")
        yield f"sampler={option}: needs the losses of all ranks, which parallelism={parallelism} does not synchronize"


def check_preprocessing(preprocessing: Preprocessing, facts: DataFacts) -> Iterator[str]:
    """The preprocessing must support samples of this shape."""
    problem = None
    try:
        preprocessing.check(facts.input_shape)
    except ValueError as error:
        problem = line_of("preprocessing", error)
    if problem is not None:
        yield problem


def check_schedule_monitor(config: Config, loss: Loss, facts: DataFacts) -> None:
    """Raise ConfigurationError if the metric that the schedule is to monitor does not exist."""
    monitor = (config["schedule"] or {}).get("monitor")
    problem = None
    if isinstance(monitor, str):
        problem = _problem_of_monitor("schedule.monitor", monitor, metric_names(loss, facts))
    if problem is not None:
        raise ConfigurationError(problem)


def check_schedule(
    config: Config, schedule: Schedule, loss: Loss, facts: DataFacts, strategy: Strategy, sampler: Sampler | None
) -> Iterator[str]:
    """A schedule that uses evaluation metrics needs an existing one, on every rank; batches that grow need steps that
    all ranks make together."""
    if schedule.monitor is not None:
        problem = _problem_of_monitor("schedule.monitor", schedule.monitor, metric_names(loss, facts))
        if problem is not None:
            yield problem
    if schedule.listens and not strategy.is_synchronous and strategy.world_size > 1:
        option, parallelism = config["choices"].get("schedule"), config["choices"].get("parallelism")
        yield f"schedule={option}: follows evaluations, which only the main worker of {parallelism} makes"
    if schedule.batch_sizes and not strategy.is_synchronous and strategy.world_size > 1:
        parallelism = config["choices"].get("parallelism")
        yield f"schedule.max_batch: the workers of parallelism={parallelism} take steps of one size"
    if schedule.batch_sizes and sampler is not None and sampler.draws_batches:
        yield f"schedule.max_batch: sampler={config['choices'].get('sampler')} draws batches of one size"


def check_model(blueprint: Blueprint) -> None:
    """The model must run; if it does not support features, name models that do."""
    try:
        _check_model(blueprint)
    except ConfigurationError as error:
        choices = blueprint.config["choices"]
        if blueprint.facts.kind == "images" or choices.get("model") in ("linear", "mlp"):
            raise
        why = f"data={choices.get('data')} has features, which model=mlp and model=linear take"
        raise ConfigurationError(f"{problem}; {why}" for problem in error.problems) from error


def _check_model(blueprint: Blueprint) -> None:
    """Build the model on the meta device, which allocates nothing, and run it there; run a small one on the CPU."""
    where = key_of(blueprint.config, "model")
    with torch.device("meta"):
        with calling(where, "building it"):
            model = blueprint.build_model()
        check_built(where, model)
        fits = _fits(model, 2, blueprint)
        outputs = None if fits else _run_meta(model, blueprint)
    _check_memory(model)
    check_optimizer_for(model, blueprint)
    _check_suits(model, blueprint)
    if not fits:
        _check_outputs(run_real(blueprint) if outputs is None else outputs, output_shape(model, 2, blueprint))
    check_trained(model, blueprint)
    for pattern in unmatched(model, blueprint.config["no_weight_decay"]):
        names = [name for name, _ in model.named_parameters()]
        raise ConfigurationError(
            f"no_weight_decay={pattern}: is neither bias nor norm nor a pattern of a parameter, such as {names[0]}"
        )
    if problems := [*check_parameter_groups(blueprint, model), *check_regularizer(blueprint, model)]:
        raise ConfigurationError(problems)
    if blueprint.config["checkpoint_activations"]:
        check_recomputation(blueprint.config, model)
    divide_and_validate(blueprint, model)
    check_shared(blueprint, model)
    _check_lone_sample(model, blueprint)
    if blueprint.config["micro_batch"] == "auto" and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ConfigurationError(
            "micro_batch=auto: the model has batch norm, whose statistics would change with the split; "
            "set accumulate or micro_batch yourself, or use a model without it"
        )


def check_recomputation(config: Config, model: nn.Module) -> None:
    """Blocks must be there, and computed by torch as they stand."""
    key = "checkpoint_activations=true"
    if config["compile"]:
        raise ConfigurationError(f"{key}: blocks that are computed again cannot be compiled; leave compile=false")
    if not any(True for _ in blocks_of(model)):
        raise ConfigurationError(
            f"{key}: {type(model).__name__} has no blocks, modules of several layers that could be computed again; "
            "model=resnet20 has, for example"
        )


def _check_outputs(outputs: object, wanted: tuple[int, ...]) -> None:
    if not isinstance(outputs, Tensor):
        raise ConfigurationError(f"model: returns {type(outputs).__name__}, a tensor is needed")
    if tuple(outputs.shape) != wanted:
        raise ConfigurationError(
            f"model: returns outputs of shape {tuple(outputs.shape)} for a batch of 2; must be {wanted}"
        )
    if not outputs.is_floating_point():
        raise ConfigurationError(f"model: returns {described(outputs)}; must be floating-point numbers")


def _check_lone_sample(model: nn.Module, blueprint: Blueprint) -> None:
    """A micro-batch must not have a single sample if the model has batch norm of vectors, which needs a variance."""
    batch_size = blueprint.batch_size
    if not _ever_leaves_one_alone(blueprint) or _fits(model, 1, blueprint):
        return
    try:
        model(torch.empty(1, *blueprint.facts.input_shape, device="meta"))
    except Exception as error:  # a batch of two works; the run will report any other error
        if "more than 1 value per channel" not in str(error):
            return
        others = (size for near in range(1, batch_size + 2) for size in (batch_size - near, batch_size + near))
        better = next((size for size in others if size > 1 and not _leaves_one_alone(blueprint, size)), None)
        raise ConfigurationError(
            f"batch_size={blueprint.config['batch_size']}: one of {blueprint.facts.num_train:,} training samples would"
            " be computed alone, but the model's batch norm needs at least two"
            + ("" if better is None else f"; batch_size={better} avoids this")
        ) from error


def _ever_leaves_one_alone(blueprint: Blueprint) -> bool:
    if not blueprint.timeline.grows:
        return _leaves_one_alone(blueprint, blueprint.batch_size)
    epochs = range(blueprint.timeline.position(blueprint.total_steps).epoch + 1)
    segments = {found for epoch in epochs for found in blueprint.timeline.segments(epoch)}
    return any(
        1 in (*chunk_sizes(size, micro_batch), *chunk_sizes((end - start) % size, micro_batch))
        for start, end, size, micro_batch in segments
    )


def _leaves_one_alone(blueprint: Blueprint, batch_size: int) -> bool:
    config, samples = blueprint.config, blueprint.facts.num_train
    if config["limit_batches"] is not None:
        samples = min(samples, config["limit_batches"] * batch_size)
    whole, last = divmod(samples, batch_size)
    micro_batch = micro_batch_size(config, batch_size)
    reaches_last = config["steps"] is None or config["steps"] > whole
    sizes = [*chunk_sizes(batch_size, micro_batch) * (whole > 0), *chunk_sizes(last, micro_batch) * reaches_last]
    return 1 in sizes


def _check_memory(model: nn.Module) -> None:
    """Weights and gradients must fit into main memory, because models are built on the CPU for every device."""
    needed = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    available = total_memory()
    if needed > available:
        raise ConfigurationError(
            f"model: weights and gradients alone need {needed / 1e9:,.1f} GB of memory; "
            f"this machine has {available / 1e9:,.1f} GB"
        )


def _fits(model: nn.Module, count: int, blueprint: Blueprint) -> bool:
    """Whether a small model with zero weights maps `count` samples to outputs of the right shape, on the CPU.

    If not, the meta device decides, because there the result cannot depend on values.
    """
    shape = tuple(blueprint.facts.input_shape)
    zeros = zeros_for(model, shape)
    if zeros is not None:
        with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            outputs = functional_call(model, zeros, (torch.zeros(count, *shape),))
            wanted = output_shape(model, count, blueprint)
            return isinstance(outputs, Tensor) and tuple(outputs.shape) == wanted and outputs.is_floating_point()
    return False


def _check_suits(model: nn.Module, blueprint: Blueprint) -> None:
    """The initializer and the loss may need a certain kind of model."""
    choices = blueprint.config["choices"]
    initializer: Initializer | None = None
    with suppress(ConfigurationError):  # one that cannot be built has been reported
        initializer = build_component(blueprint.config, "initializer", input_shape=tuple(blueprint.facts.input_shape))
    if initializer is not None:
        try:
            initializer.check(model)
        except ValueError as error:
            raise ConfigurationError(f"initializer={choices.get('initializer')}: {error}") from error
    if blueprint.loss.needs_centroids and not centroids_of(model):
        raise ConfigurationError(
            f"loss={choices.get('loss')}: needs distances to centroids, which model={choices.get('model')} has none "
            "of; choose model=centroids"
        )


def _run_meta(model: nn.Module, blueprint: Blueprint) -> object | None:
    """Return the outputs for two samples; None if the model cannot be called on the meta device."""
    images = torch.empty(2, *blueprint.facts.input_shape)
    try:
        outputs: object = model(images)
    except NotImplementedError:  # an operation without a meta kernel
        return None
    except Exception as error:  # foreign models may raise anything
        if "meta" in str(error):  # it reads values or uses tensors of other devices
            return None
        shape = tuple(blueprint.facts.input_shape)
        text = advice_of(error) or f"cannot take images of shape {shape}: {one_line(error)}"
        raise ConfigurationError(with_place(f"model: {text}", error)) from error
    return outputs
