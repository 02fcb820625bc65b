"""Inspection of files before use: size, checksum, and whether they can be decoded."""

import hashlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass
from pathlib import Path

from trainer.data.photographs.decoding import BadPhotograph, decode, stored_size
from trainer.data.photographs.storage import read_file
from trainer.data.photographs.writing import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspected:
    """The result for one file: its bytes, its (height, width) as stored, its sha256, and its problem, if any."""

    num_bytes: int = 0
    modified: int = 0  # ns
    height: int = 0
    width: int = 0
    sha256: str = ""
    problem: str = ""


class Inspection:
    """Inspects each file once; with `record`, a file of results, not again while its size and time are unchanged.

    With `deep`, files are decoded completely, which finds damage behind the header. `expected` are a manifest's sha256
    by name.
    """

    def __init__(
        self, root: Path, max_side: int | None, expected: dict[str, str] | None, *, deep: bool, record: Path | None
    ) -> None:
        self.root, self.max_side, self.expected, self.deep, self._record = root, max_side, expected, deep, record

    def inspect(self, names: list[str], threads: int) -> list[Inspected]:
        """Return one entry per name. Reads the files that have no current entry."""
        known = self._load_record()
        found: list[Inspected] = [Inspected()] * len(names)
        new = []
        for number, name in enumerate(names):
            entry = known.get(name)
            if entry is None or not self._is_current(entry, self.root / name):
                new.append(number)
            else:
                found[number] = entry

        def inspect_one(index: int) -> None:
            found[new[index]] = self._inspect(names[new[index]])

        for_all(len(new), inspect_one, threads, "checking photographs" if self.deep else "listing photographs")
        if new:
            self._save_record(dict(zip(names, found, strict=True)))
        return [self._compared(name, entry) for name, entry in zip(names, found, strict=True)]

    def _inspect(self, name: str) -> Inspected:
        path = self.root / name
        num_bytes = modified = 0
        sha256 = ""
        try:
            modified = _modified(path)  # before reading, so that a file that changes meanwhile is inspected again
            content = read_file(path)
            num_bytes = len(content)
            sha256 = hashlib.sha256(content).hexdigest()
            height, width = stored_size(content, self.max_side)
            if self.deep:
                decode(content, self.max_side)
        except BadPhotograph as error:
            return Inspected(num_bytes, modified, 0, 0, sha256, str(error))
        return Inspected(num_bytes, modified, height, width, sha256)

    def _compared(self, name: str, entry: Inspected) -> Inspected:
        if self.expected is None or self.expected.get(name, entry.sha256) == entry.sha256:
            return entry
        problem = entry.problem or "does not match its checksum in the manifest"
        return Inspected(entry.num_bytes, entry.modified, 0, 0, entry.sha256, problem)

    @staticmethod
    def _is_current(entry: Inspected, path: Path) -> bool:
        try:
            status = path.stat()
        except OSError:
            return False
        return (entry.num_bytes, entry.modified) == (status.st_size, status.st_mtime_ns)

    def _load_record(self) -> dict[str, Inspected]:
        if self._record is None:
            return {}
        try:
            return {name: Inspected(*entry) for name, entry in json.loads(self._record.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # missing or damaged: inspect all files again

    def _save_record(self, found: dict[str, Inspected]) -> None:
        if self._record is None:
            return
        try:
            write_whole(self._record, json.dumps({name: astuple(entry) for name, entry in found.items()}).encode())
        except OSError as error:
            logger.warning("cannot store the results of the check of the photographs: %s", error)


def some_of(bad: dict[str, str], most: int) -> str:
    """List the first names with their problems, and how many more there are."""
    first = ", ".join(f"{shown(name)} ({reason})" for name, reason in list(bad.items())[:most])
    return first if len(bad) <= most else f"{first} and {len(bad) - most:,} more"


def shown(name: str) -> str:
    r"""A file name that can be printed anywhere: bytes that are not UTF-8 as \udc80..."""
    return name.encode(errors="backslashreplace").decode()


def for_all(count: int, work: Callable[[int], None], threads: int, label: str) -> None:
    """Call `work(0)` to `work(count - 1)` in threads, with progress on the terminal; stops at the first error."""
    numbers = itertools.count()
    done = [0]

    def work_through() -> None:
        while (number := next(numbers)) < count:
            work(number)
            done[0] += 1  # not atomic: only for display

    pool = ThreadPoolExecutor(max(1, threads), "photographs")
    try:
        pending = {pool.submit(work_through) for _ in range(max(1, threads))}
        began, shown = time.monotonic(), False
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            if pending and sys.stderr.isatty() and time.monotonic() - began > 1:
                print(f"\r{label}: {done[0]:,} of {count:,}", end="", file=sys.stderr, flush=True)
                shown = True
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    finally:
        numbers = itertools.count(count)  # running threads find no more work
        pool.shutdown(cancel_futures=True)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # reading it will report the problem
