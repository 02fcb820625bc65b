"""A storm of kills over a study: `python -m tests.studies.study_storm [--kills 20] [--seed 0] [NAME ...]`.

Drivers are killed at random moments, of a study on two ranks also a rank; now and then two drivers work on the study at
once. In the end the study must have the table and the bits of an undisturbed one.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.harness import MLP, PARTS, but, differences, finish
from tests.forks import Fork, Zygote

_PARTS = [*but(PARTS, "steps=33"), *MLP, "device=cpu"]
STUDIES = {
    "k_fold": [*_PARTS, "study=k_fold", "study.folds=3", "optimizer=momentum", "optimizer.lr=0.1"],
    "lottery_ticket": [*_PARTS, "study=lottery_ticket", "study.rounds=2", "averaging=ema"],
    "ranks": [*but(_PARTS, "steps=24"), "study=k_fold", "study.folds=2", "parallelism=ddp"],
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(zygote: Zygote, words: list[str], folder: Path, sitting: int = 0) -> Fork:
    fault = {"every_checkpoint": True}
    line = [*words, f"hydra.run.dir={folder.name}"]
    return zygote.start(line, folder.parent, sitting, fault=fault, spare="parallelism=ddp" in words)


def storm(zygote: Zygote, words: list[str], home: Path, seed: int, num_kills: int) -> list[str]:
    """Kill studies until `num_kills` kills have hit, let each end, and compare it; returns the kills.

    Raises AssertionError if one differs from an undisturbed study.
    """
    generator, begin = random.Random(f"{seed} {words}"), time.monotonic()
    reference, process = home / "reference", start(zygote, words, home / "reference")
    assert finish(process) == 0, process.output()
    seconds = time.monotonic() - begin
    kills: list[str] = []
    for number in range(10 * num_kills):
        folder, before = home / f"study-{number}", len(kills)
        for sitting in range(100):
            processes = [start(zygote, words, folder, sitting) for _ in range(generator.choice([1, 1, 2]))]
            kill = generator.choice(SIGNALS)
            processes[0].wait(generator.uniform(0, seconds / 2))
            hit = _hit(processes[0], kill, generator) if len(kills) - before < 8 and len(kills) < num_kills else ""
            kills += [hit] * bool(hit)
            codes = [finish(process) for process in processes]
            allowed = {0, 75, *([-kill, 128 + kill, 3, 71] if hit else [])}  # 3: the rank's member has failed
            told = "\n".join(process.output() for process in processes)
            assert set(codes) <= allowed and "Traceback" not in told, f"{codes} after {hit or 'no kill'}:\n{told}"
            if not hit and 0 in codes:
                break
        assert (found := list(study_differences(reference, folder))) == [], (found, kills[before:])
        if len(kills) >= num_kills:
            return kills
    raise AssertionError(f"{len(kills)} of {num_kills} kills hit")


def _hit(driver: Fork, signum: int, generator: random.Random) -> str:
    """Send a signal to a driver, or kill one of its ranks; returns what was hit."""
    ranks = _ranks(driver.pid)
    if driver.poll() is not None:
        return ""
    if ranks and generator.random() < 0.5:
        os.kill(generator.choice(ranks), signal.SIGKILL)
        return "a rank"
    driver.send_signal(signum)
    return f"driver, {signal.Signals(signum).name}"


def _ranks(pid: int) -> list[int]:
    """The ranks of a driver: the children of its fork server, which is its child or that of the zygote."""
    status = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                _name, _, rest = (entry / "stat").read_text().rpartition(")")
                status[int(entry.name)] = int(rest.split()[1])
            except OSError:
                continue
    own = [child for child, parent in status.items() if parent == pid]
    return [child for child, parent in status.items() if parent in own]


def study_differences(reference: Path, study: Path) -> Iterator[str]:
    """Differences of a study from an undisturbed one: its ledger, its table and its runs."""
    for name in ("ledger.json", "results.json"):
        one, other = (_content(folder / name, folder) for folder in (reference, study))
        if one != other:
            yield f"{name}: {one} became {other}"
    for folder in sorted(path for path in reference.iterdir() if path.is_dir()):
        yield from (f"{folder.name}/{line}" for line in differences(folder, study / folder.name))


def _content(path: Path, folder: Path) -> Any:
    text = path.read_text().replace(str(folder), "FOLDER").replace(folder.name, "NAME")
    found = json.loads(text)
    found.pop("sha256")
    for member in found["members"] if isinstance(found["members"], list) else ():
        member.pop("configuration")  # contains the folder
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each study (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="study-storm-") as home:
        zygote = Zygote(Path(home))
        for name in given.names or STUDIES:
            place = Path(home, name)
            place.mkdir()
            begin = time.monotonic()
            kills = storm(zygote, STUDIES[name], place, given.seed, given.kills)
            print(f"{name}: the same after {len(kills)} kills, {time.monotonic() - begin:.0f} s: {', '.join(kills)}")
        zygote.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
