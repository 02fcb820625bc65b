"""The metrics of a run as JSON lines, each written exactly once even if the run is killed and resumed."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.base.checks import check_whole
from trainer.base.config import JsonObject
from trainer.storage.files import disk_error
from trainer.storage.growing import LineHash, LineMarks

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Value = float | int | bool | str | None


class MetricsFile:
    """One JSON object a line, handed to the operating system when `write` returns (a kill loses nothing).

    Bare `NaN` and `Infinity` are not JSON. Non-finite numbers are written as the strings "nan", "inf" and
    "-inf", which every strict reader accepts, `float()` understands in most languages, and which, unlike
    `null`, keep a loss that overflowed apart from one that is undefined.

    Opening cuts the file to `offset` bytes: what stands beyond the checkpoint is computed and written again.
    Raises ValueError when the file is damaged: shorter than `offset`, or a line would be cut in two. `lines` is the
    checksum of all lines; for a resumed run, it is the result of `check_lines`.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        check_whole("offset", offset, 0, must="0 or more bytes")
        if offset:
            _check_cut(path, offset)
        self.lines = LineHash()
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._file.truncate(offset)

    def write(self, record: Mapping[str, Value]) -> None:
        """Append one line. Raises DiskError if the disk is full."""
        plain = {name: _spell(value) for name, value in record.items()}
        line = json.dumps(plain, allow_nan=False).encode() + b"\n"
        self.lines.add(line)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise disk_error(self._path, error) from error

    def offset(self) -> int:
        """Return the bytes written so far; checkpoints store it, and `MetricsFile(path, offset)` returns to it."""
        return os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Flush the lines to disk (fsync), before a checkpoint that counts them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[JsonObject]:
    """Like `stream_metrics`, all records at once."""
    return list(stream_metrics(path))


def stream_metrics(path: Path) -> Iterator[JsonObject]:
    """Read the records of a metrics file one by one, with non-finite numbers restored.

    Ignores an incomplete last line, which a killed run can leave. Raises ValueError for any other line that is not a
    JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _read_line(line, path, number)


def check_lines(path: Path, offset: int, before: LineMarks) -> LineHash:
    """Return the checksum of the lines before `offset`.

    Raises ValueError, naming the line, if they are not those that the checkpoint counted.
    """
    found = LineHash(before)
    if offset:
        _check_cut(path, offset)
        found.resume(path, offset, before["sha256"])
    return found


def _check_cut(path: Path, offset: int) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size < offset:
        raise ValueError(f"{path} is damaged: it has {size} bytes, but the checkpoint recorded {offset}")
    with path.open("rb") as file:
        file.seek(offset - 1)
        if file.read(1) != b"\n":
            raise ValueError(f"{path} is damaged: byte {offset} of the checkpoint is not the end of a line")


def _spell(value: Value) -> Value:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _read_line(line: bytes, path: Path, number: int) -> JsonObject:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: line {number} is not a JSON object")
    return {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}
