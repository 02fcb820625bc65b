"""Time of a small run: `train epochs=1` and `train plan` against a hand-written script.

    python benchmarks/start_up.py [--runs 9] [--threads 2] [--json FILE]

Every run is a separate process, started in an empty folder with the same number of threads. The programs take turns, so
that other load on the machine affects them equally, and their order changes from round to round. The first round, in
which files are not yet in the page cache, does not count. Reports the medians of wall time and CPU time (user and
system, with all child processes), the spread (25th to 75th percentile), and the median over rounds of the ratio to the
script's time in the same round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("hand_written.py")
PROGRAMS = {
    "script": [str(SCRIPT)],
    "train epochs=1": [str(ROOT / "cli.py"), "epochs=1"],
    "train plan": [str(ROOT / "cli.py"), "plan"],
}
AGAINST = "script"


@dataclass(frozen=True)
class Times:
    """Seconds of each counted round."""

    elapsed: list[float]
    cpu: list[float]


def measure(programs: dict[str, list[str]], runs: int, threads: int) -> dict[str, Times]:
    """Run the programs in turn, `runs` + 1 times. Raises CalledProcessError when one fails."""
    found = {name: Times([], []) for name in programs}
    for number in range(runs + 1):
        order = list(programs)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            elapsed, cpu = _run_once(programs[name], threads)
            if number > 0:
                found[name].elapsed.append(elapsed)
                found[name].cpu.append(cpu)
    return found


def _run_once(arguments: Sequence[str], threads: int) -> tuple[float, float]:
    """Wall seconds, and CPU seconds including all child processes."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # allow the bytecode cache, as in normal use
    with tempfile.TemporaryDirectory() as folder:
        before, begin = os.times(), time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        elapsed, after = time.perf_counter() - begin, os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return elapsed, user + system


def table(found: dict[str, Times]) -> str:
    """Markdown table with one row per program."""
    lines = [f"{'':16}{'elapsed':>9}  {'25 to 75 %':>13}{'ratio':>7}{'CPU':>9}{'ratio':>7}"]
    for name, times in found.items():
        low, _, high = statistics.quantiles(times.elapsed, n=4)
        lines.append(
            f"{name:16}{statistics.median(times.elapsed):7.2f} s  {low:5.2f} to {high:4.2f}"
            f"{_ratio(times.elapsed, found[AGAINST].elapsed):7.2f}{statistics.median(times.cpu):7.2f} s"
            f"{_ratio(times.cpu, found[AGAINST].cpu):7.2f}"
        )
    return "\n".join(lines)


def _ratio(values: list[float], against: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, against, strict=True))


def main() -> None:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9, help="rounds that count, at least 2")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch in each program")
    parser.add_argument("--json", type=Path, help="write all times here, too")
    arguments = parser.parse_args()
    if arguments.runs < 2:
        parser.error("--runs: must be at least 2")
    found = measure(PROGRAMS, arguments.runs, arguments.threads)
    print(
        f"n={arguments.runs}, {arguments.threads} threads, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, load {os.getloadavg()[0]:.1f}"
    )
    print(table(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({name: asdict(times) for name, times in found.items()}))


if __name__ == "__main__":
    main()
