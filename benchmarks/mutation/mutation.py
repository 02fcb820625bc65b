"""Faults put into our optimizers, schedules, initializers, losses, regularizers and averaging are found by their tests.

Each mutant changes one operator, comparison, number, condition or statement of a file, and only the test file that
mirrors it (or that folder of tests) is run, without its slow tests, until the first failure. A mutant that no test
finds has survived; those that cannot be found, and why, are in `mutation.yaml`. Before the mutants, the tests must pass
without a change: see `mutants/run.py`.

    PYTHONPATH=benchmarks/proofs python benchmarks/mutation/mutation.py [--reduced] --folder outputs/mutation

`--reduced` is a random sample of 1 in 25. Outcomes are kept in the folder, and are not asked for again. It becomes one
of the proofs once all of its survivors are explained; those of the schedules are not yet.
"""

import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy  # noqa: F401  what most tests need is imported once, before processes are forked
import scipy.optimize  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch
import yaml
from mutants.change import ROOT, Mutant, mutant_of, number_of_mutants
from mutants.run import Ran, inside_functions, outside_functions
from proof import Proof, proof, table

Run = Callable[[Sequence[Mutant], Sequence[str], Path, Callable[[Mutant, Ran], None]], None]
TESTS = {
    "trainer/optimizers": ("tests/optimizers",),
    "trainer/schedules": ("tests/test_schedules.py",),
    "trainer/initializers": ("tests/test_initializers.py",),
    "trainer/losses.py": ("tests/test_losses.py",),
    "trainer/regularizers": ("tests/test_regularizers.py",),
    "trainer/averaging": ("tests/test_averaging.py",),
}
GROUPS_OF_PARAMETERS = "trainer/optimizers/parameter_groups.py"
OF_GROUPS = ("tests/optimizers/test_parameter_groups.py", "tests/training/test_freezing.py")
CRITERION = "at least 90 % of the mutants are killed, and every survivor is explained"
SHARE = 0.9
SEED, SAMPLE = 0, 25
EXPLAINED = Path(__file__).with_suffix(".yaml")  # reasons, and the mutants that survive for each


def tests_of(file: str) -> tuple[str, ...]:
    if file == GROUPS_OF_PARAMETERS:
        return OF_GROUPS
    return TESTS[place_of(file)]


def place_of(file: str) -> str:
    return next(place for place in TESTS if file.startswith(place))


def main(given: Proof) -> int:
    torch.set_num_threads(1)
    record = given.folder.resolve() / "outcomes.txt"
    record.touch()
    os.chdir(ROOT)
    files = [str(path.relative_to(ROOT)) for place in TESTS for path in _files(ROOT / place)]
    places = [(file, number) for file in files for number in range(number_of_mutants(file))]
    if given.reduced:
        places = random.Random(SEED).sample(places, len(places) // SAMPLE)
    mutants = [mutant_of(*place) for place in places]
    found = recorded(record)
    left = [mutant for mutant in mutants if mutant.key not in found]
    print(f"{len(mutants):,} mutants, {len(left):,} to run", flush=True)
    for tests, inside in sorted({(tests_of(mutant.file), bool(mutant.function)) for mutant in left}):
        group = [m for m in left if tests_of(m.file) == tests and bool(m.function) == inside]
        run_group(inside_functions if inside else outside_functions, group, tests, record)
    return report(given, mutants, recorded(record))


def recorded(record: Path) -> dict[str, str]:
    """Return the outcomes by mutant; those that are undecided are run again."""
    lines = [line.split("\t") for line in record.read_text().splitlines()]
    return {name: outcome for name, outcome, _ in lines if outcome in ("killed", "hangs", "survived")}


def run_group(run: Run, group: Sequence[Mutant], tests: Sequence[str], record: Path) -> None:
    """Run the mutants with the same tests in a process of their own, since they import the product."""
    terminal = os.dup(1)

    def tell(mutant: Mutant, ran: Ran) -> None:
        with record.open("a") as file:
            print(f"{mutant.key}\t{ran.outcome}\t{ran.failed}", file=file)
        if ran.outcome != "killed":
            shown = f"{mutant.file}:{mutant.line} {mutant.node[:60]}: {mutant.what}: {ran.outcome}\n"
            os.write(terminal, shown.encode())

    os.write(terminal, f"== {len(group)} mutants: {' '.join(tests)}\n".encode())
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run(group, tests, record.parent, tell)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    if status:
        raise SystemExit(f"the mutants of {' '.join(tests)} could not be run")


def report(given: Proof, mutants: list[Mutant], found: dict[str, str]) -> int:
    counts: dict[str, Counter[str]] = {place: Counter() for place in TESTS}
    for mutant in mutants:
        counts[place_of(mutant.file)][found.get(mutant.key, "undecided")] += 1
    columns = ("killed", "hangs", "survived", "undecided")
    rows: list[list[object]] = [[place, c.total(), *(c[column] for column in columns)] for place, c in counts.items()]
    rows.append(["all", len(mutants), *(sum(c[column] for c in counts.values()) for column in columns)])
    lost = [mutant for mutant in mutants if found.get(mutant.key) not in ("killed", "hangs")]
    share = 1 - len(lost) / len(mutants)
    reasons = explained()
    details = [
        [f"{m.file}:{m.line}", f"`{m.node[:60]}`: {m.what}", reasons.get(m.name, "**not explained**")] for m in lost
    ]
    lines = table(["files", "mutants", "killed", "hang, which kills", "survived", "undecided"], rows)
    lines += ["", f"{share:.1%} are killed. Survivors:", ""]
    lines += table(["where", "change", "why no test finds it"], details)
    holds = share >= SHARE and all(mutant.name in reasons for mutant in lost)
    return given.conclude(CRITERION, holds, lines, runs=len(mutants))


def explained() -> dict[str, str]:
    """Return the reasons by the names of the mutants."""
    entries = yaml.safe_load(EXPLAINED.read_text())
    return {name: entry["reason"] for entry in entries for name in entry["mutants"]}


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.py"))


if __name__ == "__main__":
    sys.exit(main(proof(__file__, __doc__)))
