"""Memory limits of data sets, and the cache folder."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.base.checks import refuse
from trainer.base.rank import rank_info

_SHARE_OF_FREE = 0.5  # what "auto" uses; the rest is for the model, its gradients and other processes
_ROOT = Path("/")
# files with a control group's limit and usage, and the field with its reclaimable bytes
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_VERSION_2 = "memory.max", "memory.current", "inactive_file"
_UNITS = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def cache_folder(given: str | None) -> Path:
    """`given`, or the user's cache folder."""
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gearshift"


def parse_limit(memory_limit: int | str) -> int | None:
    """Bytes, or None for "auto"; MB are 10^6 bytes, MiB 2^20. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B?", str(memory_limit).strip(), re.IGNORECASE)
    if memory_limit == "auto":
        return None
    if found is None or isinstance(memory_limit, bool):
        refuse("memory_limit", memory_limit, "auto, a number of bytes, or a size such as 500MB or 4GB")
    letter, binary = found[2], found[3]
    unit = 1 if letter is None else _UNITS[letter.upper()]
    if binary:  # KiB, MiB, ...
        unit = 1024 ** (1 + list(_UNITS).index(letter.upper()))
    return int(float(found[1]) * unit)


def free_share() -> int:
    """Half of the free memory, divided by the number of ranks on this machine."""
    info = rank_info()
    return int(_SHARE_OF_FREE * _free_memory()) // (info.local_size if info is not None else 1)


def _free_memory() -> int:
    """Bytes available to the system, or to a control group of this process if that is less."""
    try:
        lines = (_ROOT / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_left_to_groups()]))


def _left_to_groups() -> Iterator[int]:
    """Yield the free bytes of each control group with a limit: this process's own and its ancestors.

    Reclaimable page cache does not count as used.
    """
    try:
        lines = (_ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = _ROOT / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            top, files = _ROOT / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # some may be missing: a container may see its own group as the root
            yield from _left_to(folder, *files)


def _left_to(folder: Path, limit: str, usage: str, inactive: str) -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):  # the group does not exist, or has no limit ("max")
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield most - max(0, used - int(counts[inactive]))


def as_bytes(count: int) -> str:
    """Format a number of bytes: 152 MB."""
    number, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"
