"""Checks the nodes from which Hydra configures `logging`: they may write to the screen and to the run's folder only.

`logging.config.dictConfig` imports and calls what a node names, and its handlers write files, open connections and
start listeners.
"""

from collections.abc import Iterable, Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.base.config import ConfigValue
from trainer.configuration.trust import hint, is_users

_SECTIONS = ("version", "formatters", "handlers", "loggers", "root", "disable_existing_loggers")
_LOGGER = ("level", "handlers", "propagate")
_FORMATTER = ("format", "datefmt", "style", "validate", "class", "()", "log_colors")
_FORMATTERS = ("logging.Formatter", "colorlog.ColoredFormatter")  # the second is that of hydra/job_logging=colorlog
_HANDLER = ("class", "level", "formatter")
# handlers -> further keys
_HANDLERS = {"logging.StreamHandler": ("stream",), "logging.NullHandler": (), "logging.FileHandler": ("filename",)}
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # of hydra/job_logging=default; known when a job starts


def logging_problems(node: DictConfig | None, raw: ConfigValue, where: str) -> Iterator[str]:
    """Return the entries of a node that would do more than print; `raw` is the node without resolved interpolations."""
    if raw is None:
        return
    if not isinstance(raw, dict):
        yield f"{where}={raw}: must be written out, not referred to; it is not trusted"
        return
    try:
        content = frozen(node)
    except OmegaConfBaseException as error:
        yield f"{where}: {str(error).splitlines()[0]}"
        return
    assert isinstance(content, dict)
    yield from _unknown(content, _SECTIONS, where)
    for name, formatter in _section(content, "formatters"):
        yield from _formatter_problems(formatter, f"{where}.formatters.{name}")
    for name, handler in _section(content, "handlers"):
        yield from _handler_problems(handler, f"{where}.handlers.{name}")
    loggers = [(f"loggers.{name}", logger) for name, logger in _section(content, "loggers")]
    for name, logger in [*loggers, ("root", content.get("root"))]:
        if logger is not None:
            yield from _unknown(logger, _LOGGER, f"{where}.{name}")
    yield from _texts(content, where)


def frozen(node: DictConfig | None) -> ConfigValue:
    """Resolve a node now, so that no interpolation has another value when Hydra uses it."""
    return None if node is None else _frozen(node, OmegaConf.to_container(node, resolve=False))


def _frozen(node: ConfigValue, raw: ConfigValue) -> ConfigValue:
    if isinstance(raw, dict):
        return {key: _frozen(node._get_node(key) if raw[key] == _FILE else node[key], raw[key]) for key in raw}
    if raw == _FILE:
        return raw
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _section(content: ConfigValue, name: str) -> Iterable[tuple[str, ConfigValue]]:
    section = content.get(name)
    return section.items() if isinstance(section, dict) else ()


def _unknown(node: ConfigValue, known: Iterable[str], where: str) -> Iterator[str]:
    if not isinstance(node, dict):
        yield f"{where}: must be a mapping; it is not trusted"
        return
    for key in node:
        if key not in known:
            yield f"{where}.{key}: is not trusted; known are {', '.join(known)}"


def _formatter_problems(node: ConfigValue, where: str) -> Iterator[str]:
    named = [key for key in ("()", "class") if isinstance(node, dict) and key in node]
    if named and all(is_users(str(node[key])) for key in named):
        return
    yield from _unknown(node, _FORMATTER, where)
    for key in named:
        if str(node[key]) not in _FORMATTERS:
            yield f"{where}.{key}={node[key]}: is not trusted; must be {' or '.join(_FORMATTERS)}{hint(node[key])}"
    for key, value in node.items() if isinstance(node, dict) else ():
        values = value.values() if key == "log_colors" and isinstance(value, dict) else [value]
        if any(isinstance(item, dict | list) for item in values):
            yield f"{where}.{key}: must be text; it is not trusted"


def _handler_problems(node: ConfigValue, where: str) -> Iterator[str]:
    name = str(node.get("()", node.get("class"))) if isinstance(node, dict) else ""
    if is_users(name):
        return
    if name not in _HANDLERS:
        key = "()" if isinstance(node, dict) and "()" in node else "class"
        yield f"{where}.{key}={name}: is not trusted; must be {' or '.join(_HANDLERS)}{hint(name)}"
        return
    yield from _unknown(node, (*_HANDLER, *_HANDLERS[name]), where)
    if "filename" in node and node["filename"] != _FILE:
        yield (
            f"{where}.filename={node['filename']}: must be {_FILE}; the run folder has its own train.log{hint(name)}"
        )
    if node.get("stream", _STREAMS[0]) not in _STREAMS:
        yield f"{where}.stream={node['stream']}: is not trusted; must be {' or '.join(_STREAMS)}"


def _texts(node: ConfigValue, where: str) -> Iterator[str]:
    """`ext://` and `cfg://` import and look up what follows, wherever they stand."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{where}[{index}]")
    elif isinstance(node, str) and node not in (*_STREAMS, _FILE):
        kind, _, name = node.partition("://")
        if kind in ("ext", "cfg") and not is_users(name):
            yield f"{where}={node}: is not trusted"
        elif "${" in node:
            yield f"{where}={node}: must be without an interpolation"
