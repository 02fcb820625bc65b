"""Probes of what steps and reports: optimizer, schedule, regularizer, averaging and diagnostics."""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from trainer.averaging.averaging import Averaging
from trainer.base.checks import is_number
from trainer.base.config import Config
from trainer.base.stateful import Stateful
from trainer.configuration.probe import (
    calling,
    check_finite_number,
    check_scalar,
    described,
    is_theirs,
    key_of,
    refuse,
    reloaded,
)
from trainer.contracts import Diagnostics, ParameterGroup, Schedule, needs_closure
from trainer.optimizers.parameter_groups import parameter_groups
from trainer.parallelism.named_state import load_named_state, named_state
from trainer.regularizers.regularizer import Regularizer

_SAMPLES = 100  # steps at which a schedule is asked


# --- schedule ---------------------------------------------------------------------------------------------


def check_schedule_calls(config: Config, make: Callable[[], Schedule], steps: int, names: Iterable[str]) -> None:
    """Ask for the factor of some steps, and let a schedule that listens see the metrics of an evaluation."""
    where, schedule = key_of(config, "schedule"), make()
    if not is_theirs(config, "schedule", schedule):
        return
    asked = sorted({*range(0, steps, max(1, steps // _SAMPLES)), steps - 1})
    with calling(where, "factor()"):
        factors = [check_factor(where, schedule.factor(step), step) for step in asked]
        again = [schedule.factor(step) for step in reversed(asked)][::-1]
    if factors != [float(value) for value in again]:
        refuse(where, "factor(step) returns another number if it is asked again", "depend on the step alone")
    if not schedule.listens:
        return
    values = dict.fromkeys(names, 0.5)
    with calling(where, "observe()"):
        schedule.observe(values)
        state = reloaded(where, dict(schedule.state_dict()))
        other = make()
        other.load_state_dict(state)
        for item in (schedule, other):
            item.observe(values)
        if schedule.factor(steps - 1) != other.factor(steps - 1):
            refuse(where, "after load_state_dict(), factor() differs", "keep all its state in state_dict()")


def check_factor(where: str, value: object, step: int) -> float:
    """Return the factor of a step as a float, if it is a finite number of at least 0."""
    return check_finite_number(where, f"factor({step})", value, low=0.0)


# --- optimizer --------------------------------------------------------------------------------------------


class _Objective:
    """The closure of a tiny problem, with the methods of `training.objective.Objective`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self) -> Tensor:
        return self.gradient()

    def gradient(self) -> Tensor:
        for parameter in self._model.parameters():
            parameter.grad = None
        with torch.enable_grad():
            loss = self.loss(create_graph=True)
            loss.backward()
        return loss.detach()

    def objective(self) -> Tensor:
        return self.loss()

    def loss(self, create_graph: bool = False) -> Tensor:
        with torch.set_grad_enabled(create_graph):
            value: Tensor = (self._model(torch.tensor([[1.0, -2.0], [0.5, 1.0]])) - 1).square().mean()
        return value


def check_optimizer_calls(config: Config, build: Callable[[list[ParameterGroup]], torch.optim.Optimizer]) -> None:
    """Step a tiny model three times, once with and once without a checkpoint after the second step."""
    where = key_of(config, "optimizer")
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).view_as(parameter))

    def made(of: nn.Module) -> torch.optim.Optimizer:
        return build(parameter_groups(of, config | {"parameter_groups": {}}))

    with calling(where, "its constructor, given parameter groups,"):
        optimizer = made(model)
    if not is_theirs(config, "optimizer", optimizer):
        return
    _check_groups(where, optimizer)
    with calling(where, "step()"):
        for _ in range(2):
            _step(optimizer, model)
        state = reloaded(where, dict(named_state(model, optimizer, lambda name, value: value)))
        twin = copy.deepcopy(model)
        other = made(twin)
    with calling(where, "load_state_dict()"):
        load_named_state(twin, other, state, lambda name, value: value)
    for item, of in ((optimizer, model), (other, twin)):
        with calling(where, "step()"):
            _step(item, of)
    after = [torch.cat([p.detach().flatten() for p in of.parameters()]) for of in (model, twin)]
    if not torch.equal(*after) and bool(torch.stack(after).isfinite().all()):
        refuse(where, "after load_state_dict(), step() does something else", "keep all its state in state_dict()")


def _check_groups(where: str, optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.param_groups
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        refuse(where, f"param_groups is {described(groups)}", "be a list of dicts, one for each parameter group")
    for group in groups:
        if not is_number(group.get("lr")):
            kind = f"'lr' is {described(group['lr'])}" if "lr" in group else "there is no 'lr'"
            refuse(where, f"{kind} in its parameter groups", "be a number there, which the schedule multiplies")
    if not isinstance(optimizer, Stateful):
        refuse(where, "it has no load_state_dict()", "have one, to resume a run")


def _step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    objective = _Objective(model)
    if needs_closure(optimizer):
        optimizer.step(objective)  # type: ignore[arg-type, unused-ignore]
    else:
        objective.gradient()
        optimizer.step()


# --- regularizer ------------------------------------------------------------------------------------------


def check_regularizer_calls(config: Config, make: Callable[[], Regularizer | None]) -> None:
    """Let it penalize a tiny model: its gradient must be that of its value."""
    regularizer = make()
    if regularizer is None or not is_theirs(config, "regularizer", regularizer):
        return
    where, model = key_of(config, "regularizer"), nn.Linear(2, 2)
    weights = dict(model.named_parameters())
    with calling(where, "attach()"):
        regularizer.attach(weights, [])
    with calling(where, "value()"):
        value = check_scalar(where, "value()", regularizer.value(), "return a scalar tensor")
        expected = torch.autograd.grad(value, list(weights.values()), allow_unused=True) if value.requires_grad else ()
    if regularizer.decoupled or not expected:
        return
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    with calling(where, "add_gradient()"):
        regularizer.add_gradient(None)
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        wanted = torch.zeros_like(weight) if gradient is None else gradient
        if weight.grad is None or not torch.allclose(weight.grad, wanted, rtol=1e-3, atol=1e-6):
            refuse(
                where, f"add_gradient() adds another gradient to '{name}' than that of value()", "be the same function"
            )


# --- averaging --------------------------------------------------------------------------------------------


def check_averaging_calls(config: Config, make: Callable[[], Averaging | None], moments: int) -> None:
    """Ask for the share of some steps, and let it average a tiny model for three steps."""
    averaging = make()
    if averaging is None or not is_theirs(config, "averaging", averaging):
        return
    where, model = key_of(config, "averaging"), nn.Linear(2, 2)
    for moment in sorted({1, 2, moments // 2, moments} - {0}):
        for count in (0, 1, moment):
            with calling(where, "share()"):
                share = averaging.share(moment, count)
            if share is not None and not (is_number(share) and 0 <= share <= 1):
                returned = f"share({moment}, {count}) returns {described(share)}"
                refuse(where, returned, "return a number from 0 to 1, or None")
    with calling(where, "attach()"):
        averaging.attach(model.parameters())
    with calling(where, "stepped()"):
        for moment in range(1, 4):
            averaging.stepped([moment])
    with calling(where, "evaluation_weights()"):
        for parameter, average in averaging.evaluation_weights():
            if parameter.shape != average.shape:
                returned = f"evaluation_weights() yields {described(average)} for {described(parameter)}"
                refuse(where, returned, "yield each parameter with its average")
    other = make()
    assert other is not None
    with calling(where, "load_state_dict()"):
        other.load_state_dict(reloaded(where, dict(averaging.state_dict())))
    with calling(where, "share()"):
        if averaging.share(4, 3) != other.share(4, 3):
            refuse(where, "after load_state_dict(), share() differs", "keep all its state in state_dict()")


# --- diagnostics ------------------------------------------------------------------------------------------

_OURS = ("lr", "grad_norm", "loss", "step", "epoch", "time")
_PREFIXES = ("train/", "val/", "test/", "throughput/")


def check_diagnostics_calls(config: Config, diagnostics: Diagnostics | None) -> None:
    """Ask for the metrics of a logged step and of the first one."""
    if diagnostics is None or not is_theirs(config, "diagnostics", diagnostics):
        return
    where = key_of(config, "diagnostics")
    with calling(where, "at_log()"):
        for norm in (0.5, None):
            check_metrics(where, "at_log()", diagnostics.at_log(norm))
    with calling(where, "at_start()"):
        for untrained in (2.3, None):
            found = diagnostics.at_start(2.0, untrained)
            if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], str | None):
                refuse(where, f"at_start() returns {described(found)}", "return (metrics, a warning or None)")
            check_metrics(where, "at_start()", found[0])


def check_metrics(where: str, what: str, values: object) -> None:
    """Check names and values of metrics that a class of the user's returns."""
    if not isinstance(values, Mapping):
        refuse(where, f"{what} returns {described(values)}", "return a dict, name -> number")
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            refuse(where, f"{what} returns {described(name)} as a name", "be text")
        if (name in _OURS and name != "grad_norm") or name.startswith(_PREFIXES):
            refuse(where, f"{what} returns '{name}', which is a metric of Gearshift's", "have a name of its own")
        if not isinstance(value, int | float):
            refuse(where, f"{what}['{name}'] is {described(value)}", "be a number")
