"""The proofs of `benchmarks/proofs` at their reduced size, which they state, with the criterion of the whole one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROOFS = sorted(path.stem for path in (ROOT / "benchmarks" / "proofs").glob("*.py") if path.stem != "proof")
ON_CLOTHES = ("averaging",)  # reduced, too: on digits, averages gain nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_is_reproduced_at_its_reduced_size(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environment = dict(os.environ)
    if name in ON_CLOTHES:
        environment["DATA_ROOT"] = str(request.getfixturevalue("data_root"))
    line = [sys.executable, str(ROOT / "benchmarks" / "proofs" / f"{name}.py"), "--reduced", "--folder", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert f"# {name}: reproduced" in done.stdout


@pytest.mark.parametrize("name", PROOFS)
def test_the_table_of_the_whole_size_is_committed(name: str) -> None:
    text = (ROOT / "benchmarks" / "proofs" / f"{name}.md").read_text()
    assert text.startswith((f"# {name}: reproduced\n", f"# {name}: not reproduced\n"))
    assert "n = " in text
