"""Probes of losses and their metrics: what they declare, and what they return for a few samples."""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from trainer import metrics
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError
from trainer.configuration.build import is_foreign
from trainer.configuration.probe import (
    COUNT,
    calling,
    check_finite_number,
    check_scalar,
    described,
    is_theirs,
    key_of,
    random_targets,
    refuse,
)
from trainer.contracts import Loss
from trainer.data.facts import DataFacts

_SUM = "return a scalar tensor, the sum over the samples"


def declaration_problems(config: Config, loss: Loss) -> Iterator[str]:
    """Yield what is wrong with the attributes of a loss that later checks read."""
    where = key_of(config, "loss")
    if not _is_names(loss.tasks):
        yield f"{where}: tasks is {described(loss.tasks)}; must be a set of names, such as {{'classification'}}"
    if not isinstance(loss.metrics, Mapping):
        yield f"{where}: metrics is {described(loss.metrics)}; must be a dict, task -> list of metrics"
        return
    for task, wanted in loss.metrics.items():
        if isinstance(wanted, str) or not isinstance(wanted, Collection):
            yield f"{where}: metrics['{task}'] is {described(wanted)}; must be a list of names and functions"
        elif bad := [item for item in wanted if not isinstance(item, str) and not callable(item)]:
            yield f"{where}: metrics['{task}'] contains {described(bad[0])}; must be a name or a function"
    if not isinstance(loss.directions, Mapping):
        yield f"{where}: directions is {described(loss.directions)}; must be a dict, metric -> 'min' or 'max'"


def _is_names(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(v, str) for v in value)


def check_loss_calls(config: Config, loss: Loss, facts: DataFacts, *, mixes: bool, listens: bool) -> None:
    """Call the loss and its metrics as training does. Raises ConfigurationError for the first problem."""
    where = key_of(config, "loss")
    num_outputs = loss.num_outputs(facts.num_outputs)
    for name, function in metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs).items():
        if is_foreign(function):
            _check_metric(f"loss: metric '{name}'", function, facts, num_outputs)
    if not is_theirs(config, "loss", loss):
        return
    with calling(where, "initial_value()"):
        initial = loss.initial_value(facts.num_outputs)
        if initial is not None:
            check_finite_number(where, "initial_value()", initial)
    targets = random_targets(facts.task, facts.num_outputs)
    _check_sum(where, loss, _outputs(num_outputs), targets)
    if mixes and loss.soft_targets:
        soft = torch.full((COUNT, facts.num_outputs), 1 / facts.num_outputs)
        _check_sum(f"{where}: with class probabilities as targets", loss, _outputs(num_outputs), soft)
    if listens:
        with calling(where, "each()"):
            each = loss.each(_outputs(num_outputs), targets)
            if not isinstance(each, Tensor) or tuple(each.shape) != (COUNT,):
                refuse(where, f"each() returns {described(each)} for {COUNT} samples", f"be of shape ({COUNT},)")


def _outputs(num_outputs: int) -> Tensor:
    """Outputs that the model of a run could return: a result of computation, so that no leaf is changed in place."""
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(COUNT, num_outputs, generator=generator, requires_grad=True)
    return leaf * 1.0


def _check_sum(where: str, loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    before = targets.clone()
    with calling(where, "the loss"):
        value = check_scalar(where, "the loss", loss(outputs, targets), _SUM)
        changes = bool(outputs._version) or not torch.equal(targets, before)
        twice = value if changes else loss(torch.cat([outputs] * 2), torch.cat([targets] * 2))
    if not value.is_floating_point():
        refuse(where, f"the loss returns {described(value)}", "return a floating-point number")
    if not value.requires_grad:
        refuse(where, "the loss returns a tensor without a gradient", "compute it from the outputs, without detaching")
    if changes:
        refuse(where, "the loss changes its arguments", "leave them as they are")
    _check_additive(where, "the loss", value, twice)


def _check_additive(where: str, what: str, once: Tensor, twice: Tensor) -> None:
    """A mean, or a maximum, does not change if every sample is there twice; a sum doubles."""
    first, second = float(once.detach()), float(twice.detach())
    if first and abs(second - first) <= 1e-4 * abs(first):
        refuse(where, f"{what} returns the same for every sample twice ({first:.4g} and {second:.4g}), as a mean does",
               "return the sum over the samples")  # fmt: skip


def _check_metric(where: str, function: Callable[[Tensor, Tensor], Tensor], facts: DataFacts, num_outputs: int) -> None:
    outputs = _outputs(num_outputs).detach()
    targets = random_targets(facts.task, facts.num_outputs)
    if facts.task == "classification":
        targets[::2] = metrics.predicted(outputs)[::2]  # some are right
    with calling(where, "it"), torch.no_grad():
        once = check_scalar(where, "it", function(outputs, targets), _SUM)
        twice = check_scalar(where, "it", function(torch.cat([outputs] * 2), torch.cat([targets] * 2)), _SUM)
    _check_additive(where, "it", once, twice)


def metric_problems(config: Config, loss: Loss, facts: DataFacts) -> Iterator[str]:
    """Yield problems of the metrics' names."""
    try:
        metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs)
    except ConfigurationError as error:
        yield from (f"{key_of(config, 'loss')}: {problem}" for problem in error.problems)
