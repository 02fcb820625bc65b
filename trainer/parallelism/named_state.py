"""Optimizer state by parameter name, which can be loaded under any strategy and world size."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.snapshot import Copied, snapshot
from trainer.base.stateful import State, StateValue
from trainer.base.torch_optimizers import lay_out_state

Convert = Callable[[str, Tensor], Tensor]


class OwnPart(NamedTuple):
    """This rank's part of a tensor, in the place of the whole."""

    tensor: Tensor


def named_state(model: nn.Module, optimizer: Optimizer, whole: Convert, copies: bool = False) -> State:
    """Return `state`, the optimizer's state by parameter name, and `groups`, its settings by group name.

    `whole(name, tensor)` turns a tensor that is sharded like the parameter into the full tensor. If the optimizer
    overrides `state_dict`, as wrappers around another optimizer do, the result of that is returned as `own`. With
    `copies`, `whole` returns copies on the CPU, and the rest of a parameter's state is copied, too.
    """
    if type(optimizer).state_dict is not Optimizer.state_dict:
        return {"own": optimizer.state_dict()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: dict[str, State] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter)
            if kept:
                name = names[id(parameter)]
                values = {
                    key: whole(name, value) if _is_like(key, value, parameter) else snapshot(value) if copies else value
                    for key, value in kept.items()
                }
                state[name] = Copied(values) if copies else values
    groups = {
        group["name"]: {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    }
    return {"state": state, "groups": groups}


def load_named_state(
    model: nn.Module, optimizer: Optimizer, state: State, local: Callable[[str, StateValue], Tensor]
) -> None:
    """Load the result of `named_state`; `local(name, tensor)` returns this rank's shard of a full tensor, or of
    what `Strategy.distribute` has left of it.

    Parameters without an entry in `state` start with empty state.
    """
    if "own" in state:
        optimizer.load_state_dict(state["own"])
        lay_out_state(optimizer)
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept: dict[int, State] = {}
    groups, index = [], 0
    for group in optimizer.param_groups:
        numbers = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            if name in state["state"]:
                kept[index] = {
                    key: local(name, value) if key != "step" and _is_split(value) else value
                    for key, value in state["state"][name].items()
                }
            numbers.append(index)
            index += 1
        groups.append({**state["groups"][group["name"]], "params": numbers})
    optimizer.load_state_dict({"state": kept, "param_groups": groups})
    lay_out_state(optimizer)


def _is_split(value: object) -> bool:
    return isinstance(value, OwnPart) or (isinstance(value, Tensor) and value.dim() > 0)


def _is_like(key: str, value: object, parameter: Tensor) -> bool:
    return key != "step" and isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
