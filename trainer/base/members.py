"""Compares the members of a component with those of its contract."""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import get_args, get_type_hints

from trainer.base.blame import with_place
from trainer.base.config import Annotation, Component
from trainer.base.errors import one_line

_PLAIN = {int: "a whole number", float: "a number", str: "text", type(None): "None"}


def misfits(contract: type, component: Component) -> list[str]:
    """Return what is wrong with the members that a component has under the names of its contract.

    A name that means something else in the user's class, such as a text called `storage`, would be called later.
    """
    found = []
    for kind in (kind for kind in contract.__mro__ if kind.__module__.startswith("trainer.")):
        hints = get_type_hints(kind)
        for name in (name for name in {**vars(kind), **hints} if not name.startswith("_") or name == "__call__"):
            wanted = vars(kind).get(name)
            if isinstance(wanted, property):
                continue
            try:
                value = getattr(component, name)
            except AttributeError:
                continue
            except Exception as error:  # of a property of the user's
                raised = f"its attribute {name} raises {type(error).__name__}: {one_line(error)}"
                found.append(with_place(raised, error))
                continue
            if inspect.isfunction(wanted):
                found += _misfit_of_method(name, wanted, value)
            elif not _is_of(value, hints.get(name)):
                must = " or ".join(_PLAIN[option] for option in get_args(hints[name]) or (hints[name],))
                found.append(f"its attribute {name} is {type(value).__name__}; must be {must}, or have another name")
    return found


def _misfit_of_method(name: str, wanted: Callable[..., object], value: object) -> list[str]:
    if not callable(value):
        return [f"its attribute {name} is {type(value).__name__}; must be a method, or have another name"]
    _, *parameters = inspect.signature(wanted).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    try:
        signature = inspect.signature(value)
        try:
            signature.bind(*needed)
        except TypeError:  # it may need what is optional in the contract, as the closure of a step
            if len(needed) == len(parameters):
                raise
            signature.bind(*parameters)
    except TypeError as error:
        shown = "it" if name == "__call__" else name
        return [f"{shown} is called with ({', '.join(needed)}), but {error}"]
    except ValueError:  # a few classes written in C have no signature
        return []
    return []


def _is_of(value: object, hint: Annotation) -> bool:
    """Whether a value is of a plain type, or of one of several; every value is of another type."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(option in _PLAIN for option in options):
        return True
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    kinds = tuple(option for option in options if option is not int)
    return isinstance(value, kinds) or (is_whole and not {int, float}.isdisjoint(options))
