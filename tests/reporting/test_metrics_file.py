"""Each metric is in the file exactly once, also after a kill and a resume; every line is strict JSON."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trainer.base.errors import DiskError
from trainer.reporting.metrics_file import MetricsFile, check_lines, read_metrics


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "epoch": step / 7, "train/loss": math.exp(-step) / 3} for step in range(5)]
    file = MetricsFile(path)
    for record in records:
        file.write(record)
    file.close()
    assert read_metrics(path) == records
    assert [json.loads(line) for line in path.read_text().splitlines()] == records


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    file.sync()
    assert file.offset() == 12
    file.close()


def test_non_finite_numbers_survive_a_strict_reader(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1, "train/loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "none": None})
    file.close()
    strict = json.loads(path.read_text(), parse_constant=refuse_constant)
    assert strict == {"step": 1, "train/loss": "nan", "grad_norm": "inf", "low": "-inf", "none": None}
    (record,) = read_metrics(path)
    assert math.isnan(record["train/loss"])
    assert (record["grad_norm"], record["low"], record["none"]) == (math.inf, -math.inf, None)


def test_opening_at_an_offset_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1})
    offset = file.offset()
    file.write({"step": 2, "value": "old"})
    file.close()
    file = MetricsFile(path, offset)
    assert file.offset() == offset
    file.write({"step": 2, "value": "new"})
    file.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "value": "new"}]


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    MetricsFile(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("offset", [13, 100])
def test_a_file_shorter_than_the_checkpoint_says_is_damaged(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=f"it has 12 bytes, but the checkpoint recorded {offset}"):
        MetricsFile(path, offset)
    assert path.read_text() == '{"step": 1}\n'


def test_an_offset_inside_a_line_is_refused_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="byte 5 of the checkpoint is not the end of a line"):
        MetricsFile(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_a_missing_file_is_damage_only_for_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has 0 bytes"):
        MetricsFile(tmp_path / "metrics.jsonl", 12)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_offset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offset=-1: must be 0 or more"):
        MetricsFile(tmp_path / "metrics.jsonl", -1)


def test_reading_passes_over_an_unfinished_last_line_but_not_over_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        read_metrics(path)


@pytest.mark.parametrize("num_lines", [1, 7, 256, 257, 300, 5000])
def test_a_line_that_changed_is_named(tmp_path: Path, num_lines: int) -> None:
    """Exactly up to 256 lines, or where it is no longer an object; else within the lines of a mark."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(num_lines):
        file.write({"step": step, "value": step / 7})
    offset, marks = file.offset(), file.lines.marks()
    file.write({"step": num_lines})
    file.close()
    assert check_lines(path, offset, marks).marks() == marks
    good = path.read_bytes().splitlines(keepends=True)
    for number in {1, num_lines, (num_lines + 1) // 2}:
        for old, new in ((b"step", b"stop"), (b'{"', b'("')):
            changed = [*good[: number - 1], good[number - 1].replace(old, new), *good[number:]]
            path.write_bytes(b"".join(changed))
            with pytest.raises(ValueError, match="is damaged: line") as caught:
                check_lines(path, offset, marks)
            numbers = [int(word) for word in re.findall(r"\b\d+\b", str(caught.value).rpartition("damaged")[2])]
            if num_lines <= 256 or new == b'("':
                assert numbers == [number]
            else:
                assert numbers[0] <= number <= numbers[-1] and numbers[-1] - numbers[0] < 2 * num_lines / 128
    path.write_bytes(b"".join(good))
    check_lines(path, offset, marks)


def test_a_resumed_file_has_the_marks_of_a_whole_one(tmp_path: Path) -> None:
    whole, cut = MetricsFile(tmp_path / "whole"), MetricsFile(tmp_path / "cut")
    for step in range(700):
        whole.write({"step": step})
        cut.write({"step": step})
        if step in (3, 400):
            offset, marks = cut.offset(), cut.lines.marks()
            cut.write({"step": -1})
            cut.close()
            lines = check_lines(tmp_path / "cut", offset, marks)
            cut = MetricsFile(tmp_path / "cut", offset)
            cut.lines = lines
    assert cut.lines.marks() == whole.lines.marks()
    for file in (whole, cut):
        file.close()


def test_a_killed_and_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_RUN), str(path)], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL
    assert len(read_metrics(path)) == 10
    file = MetricsFile(path, int(child.stdout))
    for step in range(7, 11):
        file.write({"step": step, "value": step / 3})
    file.close()
    assert read_metrics(path) == [{"step": step, "value": step / 3} for step in range(1, 11)]


KILLED_RUN = """
    import os, signal, sys
    from pathlib import Path
    from trainer.reporting.metrics_file import MetricsFile
    file = MetricsFile(Path(sys.argv[1]))
    for step in range(1, 11):
        file.write({"step": step, "value": step / 3 if step <= 6 else -1.0})
        if step == 6:
            print(file.offset(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._file.fileno())
    os.close(full)
    with pytest.raises(DiskError, match=r"^cannot write .*metrics\.jsonl: the disk is full$"):
        file.write({"step": 1})
    file.close()
