"""Checksums of files that grow: checkpoints count how far they have come, and store what they contain up to there."""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

_MOST_MARKS = 256
_MARK = 8  # hexadecimal digits


class GrowingHash:
    """SHA-256 of the beginning of a file; each byte is read once, when `upto` first includes it."""

    def __init__(self, path: Path) -> None:
        self._path, self._size, self._hash = path, 0, hashlib.sha256()

    def upto(self, size: int) -> str:
        """Return the checksum of the first `size` bytes, at least as many as in the last call. Raises OSError."""
        with self._path.open("rb") as file:
            file.seek(self._size)
            while self._size < size and (block := file.read(min(size - self._size, 1 << 20))):
                self._hash.update(block)
                self._size += len(block)
        return self._hash.hexdigest()


class LineMarks(TypedDict):
    """The checksum of the first lines of a file, and shortened ones after every `every`-th of these lines."""

    lines: int
    sha256: str
    every: int
    marks: list[str]


class LineHash:
    """SHA-256 of the lines of a file. Its marks tell later in which lines the file has changed.

    There are at most 256 marks: every line has one until there are more, then every second one, and so on.
    """

    def __init__(self, before: LineMarks | None = None) -> None:
        self._hash = hashlib.sha256()
        self._lines, self._every = (before["lines"], before["every"]) if before else (0, 1)
        self._marks = list(before["marks"]) if before else []

    def add(self, line: bytes) -> None:
        """Add a line, with its line break."""
        self._hash.update(line)
        self._lines += 1
        if self._lines % self._every:
            return
        self._marks.append(self._hash.hexdigest()[:_MARK])
        if len(self._marks) > _MOST_MARKS:
            self._marks, self._every = self._marks[1::2], 2 * self._every

    def marks(self) -> LineMarks:
        """Return the checksums of all lines so far."""
        return {
            "lines": self._lines, "sha256": self._hash.hexdigest(), "every": self._every, "marks": list(self._marks)
        }  # fmt: skip

    def resume(self, path: Path, offset: int, sha256: str) -> None:
        """Read the lines that are there. Raises ValueError, naming the line, if they are not those of the marks."""
        with path.open("rb") as file:
            left = offset
            while block := file.read(min(left, 1 << 20)):
                self._hash.update(block)
                left -= len(block)
        if self._hash.hexdigest() != sha256:
            raise ValueError(f"{path} is damaged: {self._changed_lines(path)} what the checkpoint recorded")

    def _changed_lines(self, path: Path) -> str:
        found, number, first = hashlib.sha256(), 0, 1
        odd: list[int] = []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found.update(line)
                if not _is_object(line):
                    odd.append(number)
                if number % self._every == 0:
                    index = number // self._every - 1
                    if index >= len(self._marks) or found.hexdigest()[:_MARK] != self._marks[index]:
                        break
                    first, odd = number + 1, []
        if odd or first >= number:
            return f"line {odd[0] if odd else first} is not"
        return f"lines {first} to {number} are not all"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
