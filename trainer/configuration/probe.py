"""Helpers that call a component once before a run and tell what it returned and what is asked for.

Only components that are neither ours nor torch's are probed: `build.is_foreign`. A probe costs milliseconds.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor

from trainer.base.blame import with_place
from trainer.base.checks import is_number
from trainer.base.config import Component, Config
from trainer.base.errors import ConfigurationError, DataError, advice_of, is_out_of_memory, one_line
from trainer.base.stateful import State
from trainer.base.text import written
from trainer.configuration.build import is_foreign, locate

COUNT = 4  # samples of a probe


def is_theirs(config: Config, group: str, component: Component) -> bool:
    """Whether a group's component is of a class, or made by a function, that is neither ours nor torch's."""
    return is_foreign(component) or is_foreign(locate(config[group]["_target_"], group))


def key_of(config: Config, group: str) -> str:
    """Return the key of a group with its value, with which messages begin."""
    return f"{group}._target_={config[group]['_target_']}"


def refuse(where: str, returned: str, asked: str) -> NoReturn:
    """Raise ConfigurationError: what was returned, and what must be."""
    raise ConfigurationError(f"{where}: {returned}; must {asked}")


@contextmanager
def calling(where: str, what: str) -> Iterator[None]:
    """Context manager around calls of a component: any error becomes a ConfigurationError that tells where it was
    raised. torch's generator is seeded, and afterwards as before."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run shows them
            torch.default_generator.manual_seed(0)
            yield
    except (ConfigurationError, DataError):
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        told = advice_of(error) or f"{what} fails with {kind}{one_line(error)}"
        raise ConfigurationError(with_place(f"{where}: {told}", error)) from error


def described(value: object) -> str:
    """Return in a few words what a value is."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        where = "" if value.device.type in ("cpu", "meta") else f" on {value.device}"
        return f"{'an' if kind[0] == 'i' else 'a'} {kind} tensor of shape {tuple(value.shape)}{where}"
    if isinstance(value, float):
        return f"the {type(value).__name__} {value:.6g}"
    if value is None:
        return "None"
    if isinstance(value, str | bool | Real):
        return f"the {type(value).__name__} {written(value)}"
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def check_scalar(where: str, what: str, value: object, asked: str) -> Tensor:
    """Return `value` if it is a tensor with a single number of a real kind, without dimensions."""
    if not isinstance(value, Tensor) or value.ndim or value.is_complex():
        refuse(where, f"{what} returns {described(value)}", asked)
    return value


def check_finite_number(where: str, what: str, value: object, low: float = -torch.inf) -> float:
    """Return `value` if it is a finite number of at least `low`; a tensor is none."""
    if not is_number(value) or not low <= value < torch.inf:
        refuse(where, f"{what} returns {described(value)}", f"be a finite number{'' if low < 0 else f' >= {low:g}'}")
    return float(value)


def reloaded(where: str, state: object) -> State:
    """Return a state as it comes back from a checkpoint."""
    if not isinstance(state, dict):
        refuse(where, f"state_dict() returns {described(state)}", "return a dict")
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        found: State = torch.load(buffer, weights_only=True)
    except Exception as error:  # of pickle, of the classes in the state, or of torch
        kind = re.search(r"GLOBAL (\S+)", str(error))
        text = one_line(error) if kind is None else f"an object of {kind[1]}"
        refuse(where, f"state_dict() returns what a checkpoint cannot hold ({text})", "hold plain containers, numbers, "
               "text and tensors only")  # fmt: skip
    return found


def random_targets(task: str, num_outputs: int, count: int = COUNT) -> Tensor:
    """Return targets as data sets of this task have them."""
    if task == "regression":
        return torch.randn(count, num_outputs)
    return torch.arange(count) % num_outputs
