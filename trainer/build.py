"""The only place that turns a `_target_` into an object: allow list, signature, kinds, suggestions."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from trainer.config import OPEN, is_trusted
from trainer.errors import ConfigurationError, unknown

Node = Mapping[str, Any]


def locate(target: str, where: str) -> Callable[..., Any]:
    """The class or function that a dotted name means.

    Raises ConfigurationError when it does not exist, is no class or function, or lies outside the trusted
    packages - also when it was only imported into one of them from elsewhere.
    """
    module_name, _, name = target.rpartition(".")
    if not is_trusted(target) or not module_name:
        raise ConfigurationError(f"{where}._target_={target}: is not in a trusted package (see --trust)")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(f"{where}._target_={target}: cannot import {module_name}: {error}") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigurationError(f"{where}._target_: {unknown('class', name, public, module_name + '.')}")
    if not is_trusted(found.__module__):
        raise ConfigurationError(
            f"{where}._target_={target}: comes from {found.__module__}, which is not trusted (see --trust)"
        )
    return found


def problems(node: Node, where: str, runtime: Collection[str] = ()) -> list[str]:
    """What is wrong with a node and the nodes inside it, found without building anything."""
    if not node.get("_target_"):
        return []
    try:
        target = locate(node["_target_"], where)
    except ConfigurationError as error:
        return error.problems
    found = list(_signature_problems(target, node, where, runtime))
    for key, value in node.items():
        if isinstance(value, Mapping):
            found += problems(value, f"{where}.{key}")
    return found


def build(node: Node, where: str, **runtime: Any) -> Any:
    """Build the object that a node describes, the nodes inside it first; a node without `_target_` is None.

    Of `runtime` each target gets what its signature names. Raises ConfigurationError for a bad argument; a
    ValueError of the constructor becomes one, too.
    """
    if not node.get("_target_"):
        return None
    if found := problems(node, where, runtime):
        raise ConfigurationError(found)
    target = locate(node["_target_"], where)
    arguments = {key: _value(item, f"{where}.{key}") for key, item in node.items() if key != "_target_"}
    names = inspect.signature(target).parameters
    arguments |= {key: item for key, item in runtime.items() if key in names}
    try:
        return target(**_as_annotated(target, arguments))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigurationError(f"{where}: {' '.join(str(error).split())}") from error


def _value(item: Any, where: str) -> Any:
    if isinstance(item, Mapping) and "_target_" in item:
        return build(item, where)
    return item


def _signature_problems(target: Callable[..., Any], node: Node, where: str, runtime: Collection[str]) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    given = [key for key in node if key != "_target_"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name in parameters if name not in runtime]
    for key in given:
        if key in parameters and key in runtime:
            yield f"{where}.{key}: is given by the trainer, not by the configuration"
        elif key not in parameters and not takes_any:
            yield unknown("key", key, known, f"{where}.")
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if name not in given and name not in runtime
    ]
    if missing:
        yield f"{where}: {node['_target_']} also needs {', '.join(missing)}"
    hints = _hints(target)
    for key in given:
        value = node[key]
        if key in hints and key not in OPEN and not isinstance(value, Mapping) and not fits(value, hints[key]):
            shown = "null" if value is None else value
            yield f"{where}.{key}={shown}: must be {_kind(hints[key])}"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # foreign annotations may name what is not imported
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value from YAML can stand where `annotation` is asked for; unknown kinds accept all."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is typing.Literal:
        return value in inner
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if origin is tuple and isinstance(value, list) and Ellipsis not in inner:
        return len(value) == len(inner) and all(fits(v, a) for v, a in zip(value, inner, strict=True))
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value)
    if inspect.isclass(annotation) and annotation.__module__.partition(".")[0] == "torch":
        return not isinstance(value, str | int | float | bool | list) and value is not None
    return True


def _kind(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(option) for option in inner if getattr(option, "__module__", "") != "torch"]
        return " or ".join(dict.fromkeys(kinds))
    if origin is typing.Literal:
        return "one of " + ", ".join(str(option) for option in inner)
    if origin is tuple and Ellipsis not in inner:
        return "a list of " + " and ".join(_kind(option) for option in inner)
    if origin is not None and inner:
        return f"a list, each {_kind(inner[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _as_annotated(target: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML has no tuples: lists become tuples where the signature asks for one."""
    hints = _hints(target)
    return {
        key: tuple(value) if isinstance(value, list) and _wants_tuple(hints.get(key)) else value
        for key, value in arguments.items()
    }


def _wants_tuple(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_wants_tuple(option) for option in typing.get_args(annotation))
    return origin is tuple
