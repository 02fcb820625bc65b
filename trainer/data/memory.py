"""How much memory a data set may take, and the folder for what can be made again."""

import os
import re
from pathlib import Path

from trainer.place import place

_SHARE_OF_FREE = 0.5  # what "auto" takes; the rest is for the model, its gradients, and others
_UNITS = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def cache_folder(given: str | None) -> Path:
    """`given`, or the user's folder for what can be made again."""
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gearshift"


def parse_limit(memory_limit: int | str) -> int | None:
    """Bytes, or None for "auto"; MB are 10^6 bytes, MiB 2^20. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B?", str(memory_limit).strip(), re.IGNORECASE)
    if memory_limit == "auto":
        return None
    if found is None or isinstance(memory_limit, bool):
        raise ValueError(f"memory_limit={memory_limit}: must be auto, a number of bytes, or such as 500MB or 4GB")
    letter, binary = found[2], found[3]
    unit = 1 if letter is None else _UNITS[letter.upper()]
    if binary:  # KiB, MiB, ...
        unit = 1024 ** (1 + list(_UNITS).index(letter.upper()))
    return int(float(found[1]) * unit)


def free_share() -> int:
    """Half of the memory that is free, for this process among those of the job on this machine."""
    here = place()
    return int(_SHARE_OF_FREE * _free_memory()) // (here.local_size if here is not None else 1)


def _free_memory() -> int:
    """What the system has left, or the control group when that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):
            continue  # there is no such group, or it has no limit ("max")
    return max(0, free)


def as_bytes(count: int) -> str:
    """A number of bytes for people: 152 MB."""
    number, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"
