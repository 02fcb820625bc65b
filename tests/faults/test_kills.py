"""A run that is killed at any instant and resumed ends with the same bits as one that nobody disturbed."""

from pathlib import Path

import pytest
from harness import CONFIGURATIONS, Zygote, differences, storm, undisturbed


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kills_at_random_leave_no_trace(zygote: Zygote, tmp_path: Path, name: str) -> None:
    reference = undisturbed(zygote, CONFIGURATIONS[name], tmp_path / "reference")
    kills = storm(zygote, CONFIGURATIONS[name], tmp_path / "run", reference, seed=0, num_kills=2)
    assert differences(reference.folder, tmp_path / "run") == [], kills
