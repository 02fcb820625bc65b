"""Builds objects from `_target_` nodes, after checking the allow list, the signature and types. No other code does."""

import importlib
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.base.blame import with_place
from trainer.base.config import Component, ConfigValue, Target
from trainer.base.errors import ConfigurationError, DataError, is_out_of_memory, one_line, unknown
from trainer.base.text import written
from trainer.configuration.rules import OPEN
from trainer.configuration.trust import hint, lacking, may_be_named, refusal

Node = Mapping[str, ConfigValue]


def locate(target: str, where: str) -> Target:
    """Return the class or function of a dotted name, for the node at the key `where`.

    Raises ConfigurationError if it does not exist, is not a class or function, or is not on the allow list for its
    group, the first name of `where`.
    """
    line = f"{where}._target_={target}: "
    module_name, _, name = target.rpartition(".")
    if not may_be_named(target) or not module_name:
        raise ConfigurationError(f"{line}is not in a trusted package{hint(target)}")
    module = _imported(module_name, line)
    found = getattr(module, name, None)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        if found is None and not _is_module(target):
            text = unknown("class", name, _offers(module), module_name + ".")
            raise ConfigurationError(f"{line}{text}{_shadow(module)}")
        kind = "a module" if found is None or inspect.ismodule(found) else f"{type(found).__name__}"
        raise ConfigurationError(f"{line}is {kind}, not a class or a function")
    group, dot, _ = where.partition(".")
    if reason := refusal(found, group, is_part=bool(dot)):
        raise ConfigurationError(line + reason)
    return found


def _imported(name: str, line: str) -> types.ModuleType:
    """Import a module. Raises ConfigurationError, which begins with `line`, whatever the module raises."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(with_place(f"{line}cannot import {name}: {one_line(error)}", error)) from error
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigurationError(with_place(f"{line}cannot import {name}: {what}", error)) from error


def _shadow(module: types.ModuleType) -> str:
    """Tell that a module was found elsewhere than in the current folder, which has one of this name, too."""
    top = module.__name__.partition(".")[0]
    origin, here = Path(inspect.getsourcefile(module) or ""), Path.cwd()
    has_own = (here / top).is_dir() or (here / f"{top}.py").is_file()
    if not has_own or origin.resolve().is_relative_to(here.resolve()):
        return ""
    return f" ({module.__name__} is {origin}; the {top} in the current folder needs another name)"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _offers(module: types.ModuleType) -> list[str]:
    """Names of classes and functions that the module defines or exports."""
    package = module.__name__
    return [
        name
        for name, item in vars(module).items()
        if (inspect.isclass(item) or inspect.isfunction(item)) and not name.startswith("_")
        if name in getattr(module, "__all__", ()) or item.__module__.startswith(package)
    ]


def problems(node: Node, where: str, runtime: Collection[str] = ()) -> list[str]:
    """Return the problems of a node and the nodes inside it, without building anything."""
    if not node.get("_target_"):
        return []
    try:
        target = locate(node["_target_"], where)
        inspect.signature(target)
    except ConfigurationError as error:
        return error.problems
    except (ValueError, TypeError):  # a few classes written in C
        return [f"{where}._target_={node['_target_']}: has no signature"]
    found = list(_signature_problems(target, node, where, runtime))
    for key, value in node.items():
        if isinstance(value, Mapping):
            found += problems(value, f"{where}.{key}")
    return found


def build(node: Node, where: str, **runtime: object) -> Component:
    """Build the object that a node describes, nested nodes first; returns None for a node without `_target_`.

    The target receives those arguments of `runtime` that its signature names. Raises ConfigurationError for an
    invalid argument, also if the constructor raises ValueError.
    """
    if not node.get("_target_"):
        return None
    if found := problems(node, where, runtime):
        raise ConfigurationError(found)
    target = locate(node["_target_"], where)
    arguments = {key: _value(item, f"{where}.{key}", target, key) for key, item in node.items() if key != "_target_"}
    names = inspect.signature(target).parameters
    arguments |= {key: item for key, item in runtime.items() if key in names}
    try:
        return target(**_as_annotated(target, arguments))
    except ConfigurationError:
        raise
    except DataError as error:  # a damaged file
        raise DataError(_about(node, where, error)) from error
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or not (isinstance(error, _EXPECTED) or is_foreign(target)):
            raise
        raise ConfigurationError(_about(node, where, error)) from error


# what constructors raise for arguments; torch raises RuntimeError or ArithmeticError for impossible sizes
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)


def is_foreign(target: object) -> bool:
    """Whether a class, a function or an object of a class is neither Gearshift's nor torch's."""
    kind = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    return kind.__module__.partition(".")[0] not in ("trainer", "torch")


def _about(node: Node, where: str, error: BaseException) -> str:
    """Prefix a constructor's message "name=value: ..." with the full key; tell where another error was raised."""
    message = one_line(error)
    match = re.match(r"(\w+)[.=\[]", message)
    if match and match[1] in node:
        return f"{where}.{message}"
    kind = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
    return with_place(f"{where}: {kind}{message.removeprefix(where + ' ')}", error)


def _value(item: ConfigValue, where: str, target: Target, name: str) -> Component:
    """Return an argument of `target`; a node is built and checked against what its place is known to take."""
    if not (isinstance(item, Mapping) and "_target_" in item):
        return item
    part = build(item, where)
    line = f"{where}._target_={item['_target_']}: returns {written(part) if part is None else type(part).__name__}"
    if not is_foreign(target) and (missing := lacking(part, where.partition(".")[0])):
        raise ConfigurationError(f"{line}, which has no {', '.join(missing)}")
    wanted = _classes(_hints(target).get(name))
    if wanted and not isinstance(part, wanted):
        raise ConfigurationError(f"{line}; must be {' or '.join(kind.__name__ for kind in wanted)}")
    return part


def _classes(annotation: Any) -> tuple[type, ...]:
    """Return the classes that an annotation allows; empty if there is none, or if it is more than classes."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [_classes(option) for option in typing.get_args(annotation)]
        return tuple(kind for option in options for kind in option) if all(options) else ()
    kind = typing.get_origin(annotation) or annotation
    if not inspect.isclass(kind) or kind is object or typing.is_typeddict(kind) or kind in (typing.Any, typing.Self):
        return ()
    if vars(kind).get("_is_protocol", False):
        return ()
    return (kind, *_ALSO.get(kind, ()))


_ALSO: dict[type, tuple[type, ...]] = {float: (int,), tuple: (list,)}  # lists become tuples


def _signature_problems(target: Target, node: Node, where: str, runtime: Collection[str]) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    given = [key for key in node if key != "_target_"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, p in parameters.items() if name not in runtime and p.kind in by_name]
    for key in given:
        if key in parameters and key in runtime:
            yield f"{where}.{key}: is set by the trainer, not by the configuration"
        elif key not in parameters and not takes_any:
            taken = unknown("key", str(key), known, f"{where}.")
            yield f"{where}.{key}={written(node[key])}: {taken} (of {node['_target_']})"
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in by_name
        if name not in given and name not in runtime
    ]
    if missing:
        yield f"{where}: {node['_target_']} also needs {', '.join(missing)}"
    hints = _hints(target)
    for key in given:
        value = node[key]
        if key in hints and key not in OPEN and not isinstance(value, Mapping) and not fits(value, hints[key]):
            yield f"{where}.{key}={written(value)}: must be {_kind(hints[key])}"


def _hints(target: Target) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # foreign annotations may refer to names that are not imported, or fail in other ways
        return {}


def fits(value: ConfigValue, annotation: Any) -> bool:
    """Whether a plain value from YAML matches a type annotation; unknown annotations match everything."""
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


def _as_annotated(target: Target, arguments: dict[str, Component]) -> dict[str, Component]:
    """Convert lists to tuples if the signature asks for tuples, which YAML does not have."""
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
