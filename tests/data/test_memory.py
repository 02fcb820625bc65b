"""Available memory according to the system's files, and sizes in human-readable form."""

from pathlib import Path

import pytest

from trainer.data import memory

MB = 1000**2
UNLIMITED = 9223372036854771712


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a file system that reports 1000 MB of available memory and no control groups."""
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    kilobytes = 1000 * MB // 1024
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {kilobytes} kB\n")
    return tmp_path


def belongs(machine: Path, *lines: str) -> None:
    (machine / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def group(machine: Path, path: str, limit: float | str, used: float, inactive: float = 0) -> None:
    """Write a control group of version 2; sizes in megabytes."""
    folder = machine / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit if isinstance(limit, str) else int(limit * MB)}\n")
    (folder / "memory.current").write_text(f"{int(used * MB)}\n")
    (folder / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {int(inactive * MB)}\nactive_file 3\n")


def old_group(machine: Path, path: str, limit: int, used: float, inactive: float = 0) -> None:
    """Write a control group of version 1; its own `inactive_file` differs from the `total_` one, which counts."""
    folder = machine / "sys/fs/cgroup/memory" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{int(used * MB)}\n")
    (folder / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {int(inactive * MB)}\n")


def free(of: float) -> int:
    return int(of * MB // 2)


def test_half_of_what_the_system_has_left(machine: Path) -> None:
    assert memory.free_share() == pytest.approx(free(1000), abs=1024)
    belongs(machine, "0::/")
    assert memory.free_share() == pytest.approx(free(1000), abs=1024)


def test_the_process_s_own_group_counts_without_files_that_may_go(machine: Path) -> None:
    belongs(machine, "0::/user.slice/job.scope")
    (machine / "sys/fs/cgroup").mkdir(parents=True)
    group(machine, "user.slice", "max", 900)
    group(machine, "user.slice/job.scope", 500, 400, inactive=250)
    group(machine, "user.slice/another.scope", 10, 9)
    assert memory.free_share() == free(500 - (400 - 250))


@pytest.mark.parametrize("tightest", ["", "a", "a/b", "a/b/c"])
def test_the_tightest_of_a_group_and_those_above_it(tightest: str, machine: Path) -> None:
    belongs(machine, "0::/a/b/c")
    for path in ("", "a", "a/b", "a/b/c"):
        group(machine, path, 60 if path == tightest else 200, 40, inactive=10)
    assert memory.free_share() == free(30)


@pytest.mark.parametrize("path", ["/docker/0123", "/../0123", "/"])
def test_a_container_that_sees_its_own_group_as_the_top_one(path: str, machine: Path) -> None:
    belongs(machine, f"0::{path}")
    group(machine, "", 100, 50)
    assert memory.free_share() == free(50)


def test_groups_of_version_1(machine: Path) -> None:
    belongs(machine, "12:cpu,cpuacct:/other", "4:memory:/job", "0::/unified")
    old_group(machine, "", UNLIMITED, 1e6)
    old_group(machine, "job", 300 * MB, 250, inactive=100)
    old_group(machine, "other", 1 * MB, 1)
    assert memory.free_share() == free(150)
    old_group(machine, "", 200 * MB, 150)
    assert memory.free_share() == free(50)


def test_a_group_above_its_limit_has_nothing_left(machine: Path) -> None:
    belongs(machine, "0::/")
    group(machine, "", 10, 20)
    assert memory.free_share() == 0


def test_what_cannot_be_read_is_no_limit(machine: Path) -> None:
    belongs(machine, "0::/a")
    group(machine, "a", "a lot", 20)
    assert memory.free_share() == pytest.approx(free(1000), abs=1024)


def test_ranks_of_a_machine_share_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "rank_info", lambda: type("Four", (), {"local_size": 4}))
    belongs(machine, "0::/")
    group(machine, "", 100, 20)
    assert memory.free_share() == free(80) // 4
