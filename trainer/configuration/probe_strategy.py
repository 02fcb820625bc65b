"""Probes of a user's strategy: what it declares, and, if it has one process, a step on a small model.

The methods of a strategy of several processes need the others; they are called when the run begins.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.checks import is_number
from trainer.base.config import Config
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.probe import calling, check_scalar, described, is_theirs, key_of, refuse
from trainer.parallelism.strategy import MicroBatch, Strategy

_FLAGS = (
    "is_synchronous", "takes_closures", "cuts_weights", "steps_all_weights", "replicates", "uses_all_parameters",
    "weights_differ", "differentiates",
)  # fmt: skip
_COUNT, _CLASSES = 4, 2


@contextmanager
def calling_strategy(config: Config, strategy: Strategy, what: str) -> Iterator[None]:
    """Context manager around a call of a strategy: an error of a user's is told with its key and place, other than a
    ValueError, with which a strategy refuses a configuration."""
    if not is_theirs(config, "parallelism", strategy):
        yield
        return
    refusal: ValueError | None = None
    with calling(key_of(config, "parallelism"), what):
        try:
            yield
        except ValueError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def check_plan(config: Config, strategy: Strategy) -> None:
    """Check what `plan` has decided, which everything else depends on, and what the class declares."""
    if not is_theirs(config, "parallelism", strategy):
        return
    where = key_of(config, "parallelism")
    for name in ("devices", "world_size"):
        value = vars(strategy).get(name, vars(type(strategy)).get(name, 1))
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            refuse(where, f"after plan(), {name} is {described(value)}", "be a whole number of at least 1")
    declared = {name: value for name, value in _declared(strategy).items() if not callable(value)}
    for name in _FLAGS:
        if name in declared and not isinstance(declared[name], bool | property):
            refuse(where, f"{name} is {described(declared[name])}", "be True or False")
    for name in ("max_restarts", "timeout"):
        if name in declared and not (is_number(declared[name]) and declared[name] >= 0):
            refuse(where, f"{name} is {described(declared[name])}", "be a number of at least 0")
    preload = declared.get("preload", ())
    if not isinstance(preload, tuple | list) or not all(isinstance(name, str) for name in preload):
        refuse(where, f"preload is {described(preload)}", "be a tuple of names of modules")


def divide_and_validate(blueprint: Blueprint, model: nn.Module) -> None:
    """Divide the model, which is on the meta device, among the ranks. Raises ValueError if it is not supported."""
    strategy = blueprint.strategy
    with calling_strategy(blueprint.config, strategy, "divide() or validate()"):
        strategy.divide(model, blueprint.facts.input_shape)
        strategy.validate(blueprint.config, model)


def _declared(strategy: Strategy) -> dict[str, Any]:
    """What the class, its bases and the object itself set."""
    found: dict[str, Any] = {}
    for kind in reversed(type(strategy).__mro__):
        found |= vars(kind)
    return found | vars(strategy)


def check_strategy_calls(blueprint: Blueprint, make: Callable[[], Strategy]) -> None:
    """Call what a user's strategy does in the main process before a run, and in a step if there is one process."""
    config, strategy = blueprint.config, blueprint.strategy
    if not is_theirs(config, "parallelism", strategy):
        return
    where = key_of(config, "parallelism")
    with torch.device("meta"):
        model = blueprint.build_model()
    with calling(where, "notices()"):
        notices = strategy.differences(model, None)
        if not isinstance(notices, list) or not all(isinstance(line, str) for line in notices):
            refuse(where, f"notices() returns {described(notices)}", "return a list of texts")
    from trainer.parallelism.ranks import Ranks

    if strategy.world_size != 1 or isinstance(strategy, Ranks):  # which is connected by the launcher
        return
    probed = make()
    with calling(where, "plan()"):
        probed.plan(None, 1)
    with calling(where, "connect()"):
        probed.connect(torch.device("cpu"))
    try:
        _check_exchanges(where, probed)
        _check_step(where, probed)
    finally:
        with calling(where, "close()"):
            probed.close()


def _check_exchanges(where: str, strategy: Strategy) -> None:
    """With one rank, every exchange gives back what it was given."""
    value = torch.arange(3.0)
    calls: dict[str, tuple[Callable[[], object], object]] = {
        "sum()": (lambda: strategy.sum(value.clone()), value),
        "broadcast()": (lambda: strategy.broadcast({"a": 1}), {"a": 1}),
        "from_main()": (lambda: strategy.from_main(lambda: {"a": 1}), {"a": 1}),
        "gather()": (lambda: strategy.gather({"a": 1}), [{"a": 1}]),
        "collect()": (lambda: strategy.collect({"a": 1}), [{"a": 1}]),
        "shard()": (lambda: strategy.shard(_COUNT), slice(0, _COUNT)),
    }
    for what, (call, asked) in calls.items():
        with calling(where, what):
            found = call()
        if not _is_same(found, asked):
            refuse(where, f"{what} returns {described(found)}", f"return {_in_words(asked)}, as there is one rank")
    with calling(where, "agree()"):
        flag = strategy.agree(False)
    if not isinstance(flag, bool):
        refuse(where, f"agree() returns {described(flag)}", "return True or False")


def _is_same(found: object, asked: object) -> bool:
    if isinstance(asked, Tensor):
        return isinstance(found, Tensor) and found.shape == asked.shape and torch.equal(found, asked)
    if isinstance(asked, slice):
        whole = range(_COUNT)
        return isinstance(found, slice) and list(whole[found]) == list(whole[asked])
    return type(found) is type(asked) and found == asked


def _in_words(asked: object) -> str:
    if isinstance(asked, slice):
        return f"slice(0, {asked.stop})"
    if isinstance(asked, list):
        return "a list with the value of each rank"
    return "the value that it was given"


def _check_step(where: str, strategy: Strategy) -> None:
    """A step of a small model has the gradient of torch's own, and its state comes back."""
    model, own = nn.Linear(3, _CLASSES), nn.Linear(3, _CLASSES)
    own.load_state_dict(model.state_dict())
    names = list(own.state_dict())
    images, targets = torch.randn(_COUNT, 3), torch.arange(_COUNT) % _CLASSES
    with calling(where, "apply()"):
        compute = strategy.apply(model)
    if not isinstance(compute, nn.Module):
        refuse(where, f"apply() returns {described(compute)}", "return the module to call")
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD([{"params": parameters, "name": "all"}], lr=0.1, momentum=0.9)
    with calling(where, "wrap_optimizer()"):
        stepped = strategy.wrap_optimizer(optimizer, model)
    if not isinstance(stepped, Optimizer):
        refuse(where, f"wrap_optimizer() returns {described(stepped)}", "return an optimizer")
    _check_backward(where, strategy, compute, model, own, MicroBatch(images, targets, _COUNT))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with calling(where, "grad_norm()"):
        norm = check_scalar(where, "grad_norm()", strategy.grad_norm(gradients), "return a scalar tensor")
        wanted = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    if not torch.isclose(norm, wanted, rtol=1e-4):
        refuse(where, f"grad_norm() returns {norm.item():.6g}", f"return the L2 norm, here {wanted.item():.6g}")
    with calling(where, "sum_over_weights()"):
        total = strategy.sum_over_weights([(parameter, torch.ones(())) for parameter in parameters])
    if not is_number(total):
        refuse(where, f"sum_over_weights() returns {described(total)}", "return a number")
    with calling(where, "a step"):
        stepped.step()
        strategy.stepped(model, 1)
    _check_state(where, strategy, model, stepped, names)


def _check_backward(
    where: str, strategy: Strategy, compute: nn.Module, model: nn.Module, own: nn.Module, batch: MicroBatch
) -> None:
    weight = torch.tensor(1 / _COUNT)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="sum")

    for what, context in (
        ("accumulating()", strategy.accumulating), ("evaluating()", lambda: strategy.evaluating(model))
    ):  # fmt: skip
        with calling(where, what):
            entered = context()
        if not isinstance(entered, AbstractContextManager):
            refuse(where, f"{what} returns {described(entered)}", "return a context manager")
    with calling(where, "backward()"):
        found = strategy.backward(compute, loss, batch, weight)
    asked = "return the sum of the loss, the outputs and the targets"
    if not isinstance(found, tuple) or len(found) != 3:
        refuse(where, f"backward() returns {described(found)}", asked)
    sizes = [tuple(value.shape) if isinstance(value, Tensor) else described(value) for value in found]
    if sizes != [(), (_COUNT, _CLASSES), (_COUNT,)]:
        refuse(where, f"backward() returns {', '.join(map(str, sizes))} for {_COUNT} samples", asked)
    expected = loss(own(batch.images), batch.targets)
    expected.backward(weight)
    if not torch.allclose(found[0].float(), expected, rtol=1e-4):
        refuse(where, f"backward() returns the loss {float(found[0]):.6g} instead of {expected.item():.6g}", asked)
    for (name, parameter), reference in zip(model.named_parameters(), own.parameters(), strict=False):
        assert reference.grad is not None
        if parameter.grad is None or not torch.allclose(parameter.grad, reference.grad, rtol=1e-3, atol=1e-6):
            far = _far(parameter.grad, reference.grad)
            asked = "be that of the weight times the loss"
            refuse(where, f"after backward(), the gradient of '{name}' is {far}", asked)


def _far(found: Tensor | None, wanted: Tensor) -> str:
    if found is None:
        return "missing"
    return f"{float(found.norm() / wanted.norm()):.3g} times what it should be"


def _check_state(where: str, strategy: Strategy, model: nn.Module, optimizer: Optimizer, names: list[str]) -> None:
    with calling(where, "state_dict()"):
        state = strategy.state_dict(model)
    if not isinstance(state, Mapping) or list(state) != names:
        shown = f"the names {', '.join(map(str, state))}" if isinstance(state, Mapping) else described(state)
        refuse(where, f"state_dict() returns {shown}", f"return those of the whole model, {', '.join(names)}")
    with calling(where, "load_state_dict()"):
        strategy.load_state_dict(model, state)
    with calling(where, "optimizer_state()"):
        kept = strategy.optimizer_state(model, optimizer)
    if not isinstance(kept, Mapping) or not ({"state", "groups"} <= kept.keys() or "own" in kept):
        refuse(where, f"optimizer_state() returns {described(kept)}", "return a dict of state and groups")
    with calling(where, "load_optimizer_state()"):
        strategy.load_optimizer_state(model, optimizer, kept)
    with calling(where, "local_state()"):
        local = strategy.local_state(model, optimizer)
    if local is not None and not isinstance(local, Mapping):
        refuse(where, f"local_state() returns {described(local)}", "return a dict or None")
    for what, call in (("metrics()", strategy.metrics), ("histograms()", strategy.histograms)):
        with calling(where, what):
            values = call()
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            refuse(where, f"{what} returns {described(values)}", "return a dict with names")
