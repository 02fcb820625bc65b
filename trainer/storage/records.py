"""JSON and YAML files that hold their own SHA-256, and safe reading of both.

They are read back although anything may have happened to them, so every kind of damage is a DataError in one line.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import yaml

from trainer.base.bounded_yaml import BoundedLoader
from trainer.base.config import ConfigValue, Json, JsonObject
from trainer.base.errors import DataError
from trainer.storage.files import read_file, write_atomic

_CHECKSUM = "sha256"
_CHECKSUM_LINE = re.compile(rb"^# sha256 of the lines below: ([0-9a-f]{64})\n", re.MULTILINE)


# --- JSON ---------------------------------------------------------------------------------------------------


def spelled(value: Json) -> Json:
    """Return a value that strict JSON can express: numbers that are not finite become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    return value


def write_json(path: Path, value: JsonObject) -> None:
    """Write indented JSON, with keys in the given order and a checksum as the last one. Raises DiskError."""
    plain = {key: spelled(item) for key, item in value.items() if key != _CHECKSUM}
    text = json.dumps({**plain, _CHECKSUM: _checksum(plain)}, indent=2, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> JsonObject:
    """Read a file of `write_json`, without the checksum. Raises DataError if it is missing or damaged."""
    try:
        found = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(found, dict) or _CHECKSUM not in found:
        raise DataError(f"{path} is damaged or of an older version: it has no checksum")
    if found.pop(_CHECKSUM) != _checksum(found):
        raise DataError(f"{path} is damaged: its checksum does not match")
    return found


def _checksum(value: JsonObject) -> str:
    """Return the SHA-256 of the values, whatever the layout of the text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- YAML ---------------------------------------------------------------------------------------------------


class _Plain(yaml.SafeDumper):
    """Repeats a value that occurs twice, because `_Careful` refuses aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class _Careful(BoundedLoader):
    """Our own files have no aliases."""

    aliases = False


def write_yaml(path: Path, value: ConfigValue, heading: str) -> None:
    """Write YAML below a comment and the checksum of all that follows. Raises DiskError."""
    body = yaml.dump(value, Dumper=_Plain, sort_keys=False).encode()
    head = f"# {heading}\n# sha256 of the lines below: {hashlib.sha256(body).hexdigest()}\n"
    write_atomic(path, head.encode() + body)


def read_yaml(path: Path) -> ConfigValue:
    """Read a YAML file, with or without a checksum. Raises DataError if it is missing or no YAML."""
    try:
        return yaml.load(read_file(path).decode(), Loader=_Careful)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # a value that YAML forbids
        raise DataError(f"{path} is damaged: it holds a value that cannot be read") from error


def is_unchanged(path: Path) -> bool:
    """Whether a file of `write_yaml` is as it was written. True if its checksum was removed on purpose."""
    content = read_file(path)
    found = _CHECKSUM_LINE.search(content)
    return found is None or hashlib.sha256(content[found.end() :]).hexdigest().encode() == found[1]
