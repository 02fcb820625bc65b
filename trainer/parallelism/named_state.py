"""An optimizer's state by the names of the parameters, so that it fits any strategy and world size."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Convert = Callable[[str, Tensor], Tensor]


def named_state(model: nn.Module, optimizer: Optimizer, whole: Convert) -> dict[str, Any]:
    """`state`: by parameter name, what the optimizer keeps; `groups`: by group name, its settings.

    `whole(name, tensor)` makes a tensor that is laid out like the (local) parameter into the full one. An optimizer
    with a `state_dict` of its own, such as a wrapper around another optimizer, is kept as that returns it.
    """
    if type(optimizer).state_dict is not Optimizer.state_dict:
        return {"own": optimizer.state_dict()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter)
            if kept:
                name = names[id(parameter)]
                state[name] = {
                    key: whole(name, value) if _is_like(key, value, parameter) else value for key, value in kept.items()
                }
    groups = {
        group["name"]: {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    }
    return {"state": state, "groups": groups}


def load_named_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], local: Convert) -> None:
    """The inverse; `local(name, tensor)` takes this rank's shard of a full tensor.

    Parameters that `state` does not speak of start anew, as one does that never had a gradient.
    """
    if "own" in state:
        optimizer.load_state_dict(state["own"])
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept: dict[int, Any] = {}
    groups, index = [], 0
    for group in optimizer.param_groups:
        numbers = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            if name in state["state"]:
                kept[index] = {
                    key: local(name, value) if key != "step" and isinstance(value, Tensor) and value.dim() else value
                    for key, value in state["state"][name].items()
                }
            numbers.append(index)
            index += 1
        groups.append({**state["groups"][group["name"]], "params": numbers})
    optimizer.load_state_dict({"state": kept, "param_groups": groups})


def _is_like(key: str, value: Any, parameter: Tensor) -> bool:
    return key != "step" and isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
