"""What the proofs of this folder share: runs that continue when the proof is called again, and the report."""

import argparse
import datetime
import hashlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import trainer

if TYPE_CHECKING:  # a proof may have to import the product anew
    from trainer.training.finish import Result

HERE = Path(__file__).parent


@dataclass
class Proof:
    """A proof: its name, which is that of its script; whether it runs at its reduced size; and where its runs are."""

    name: str
    reduced: bool
    folder: Path
    write: bool

    def run(self, member: str, overrides: Sequence[str]) -> "Result":
        """Train a configuration, or continue it, or read its result if it is complete."""
        key = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
        folder = self.folder / f"{member}-{key}"
        print(f"== {folder.name}: train {' '.join(overrides)}", flush=True)
        from trainer.hydra_entry.jobs import COMPLETE, read_result
        from trainer.training.finish import recorded_result

        found = read_result(folder) if folder.is_dir() else None
        result: Result
        if found is not None and found["status"] in COMPLETE:  # also of an earlier version
            result = recorded_result(folder, found)
        elif (folder / "config.yaml").is_file():
            result = trainer.resume(folder)
        else:
            result = trainer.fit(trainer.assemble(trainer.compose(list(overrides)), folder))
        if result.status not in COMPLETE:
            raise SystemExit(f"{folder}: {result.status}")
        return result

    def conclude(self, criterion: str, holds: bool, table: Iterable[str], runs: int) -> int:
        """Print the verdict, and write it if asked to; returns the exit code."""
        verdict = "reproduced" if holds else "not reproduced"
        where = f"n = {runs} runs; {_today()}; commit {_commit()}; {_versions()}; "
        where += f"`python benchmarks/proofs/{self.name}.py`"
        text = [f"# {self.name}: {verdict}", "", f"Criterion, written before the runs: {criterion}.", "", *table]
        text += ["", where, ""]
        print("\n".join(text))
        if self.write:
            (HERE / f"{self.name}.md").write_text("\n".join(text))
        return 0 if holds else 1

    def picture(self) -> Path:
        """Where the picture goes."""
        return (HERE if self.write else self.folder) / f"{self.name}.png"


def proof(script: str, description: str | None) -> Proof:
    """Read the command line of a proof."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="a smaller size, with the same criterion")
    parser.add_argument("--folder", type=Path, help="where the runs are (outputs/proofs/NAME)")
    parser.add_argument("--write", action="store_true", help="write table and picture beside the script")
    given = parser.parse_args()
    name = Path(script).stem
    folder = given.folder or Path("outputs/proofs", name + "-reduced" * given.reduced)
    folder.mkdir(parents=True, exist_ok=True)
    return Proof(name, given.reduced, folder, given.write)


def table(title: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [title, ["---"] * len(title), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def mean_sd(values: Sequence[float], digits: int = 4) -> str:
    """Return "mean ± standard deviation" of a sample."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def pooled(*samples: Sequence[float]) -> float:
    """Return the pooled standard deviation of samples."""
    squares = sum((len(sample) - 1) * statistics.variance(sample) for sample in samples)
    freedom = sum(len(sample) - 1 for sample in samples)
    return float((squares / freedom) ** 0.5)


def values_at(result: "Result", metric: str) -> dict[float, float]:
    """Return a metric of a run's evaluations by epoch."""
    records: list[Mapping[str, float]] = [r for r in result.history if metric in r]  # type: ignore[misc]
    return {record["epoch"]: record[metric] for record in records}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


def _versions() -> str:
    machine = f"{_processor()}, {torch.get_num_threads()} threads, {sys.platform}"
    return f"torch {torch.__version__}, Python {platform.python_version()}, {machine}"


def _processor() -> str:
    """The name of the processor, on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{platform.machine()} ({next(names, 'unknown')})"
