"""The ranges that `train plan` shows for time and memory follow from its measurements."""

import pytest

from trainer.planning import timing
from trainer.planning.estimate import beyond_tensors
from trainer.planning.sections import memory_range, time_range
from trainer.planning.timing import Spread, Waiting, scaled, spread


def test_the_spread_leaves_out_a_tenth_at_either_end() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2, 1, 3)
    assert spread([100.0, *map(float, range(1, 10))]) == (5.5, 2, 9)


@pytest.mark.parametrize(
    ("of_few", "of_many", "whole"),
    [(3, 5, 17), (4, 4, 4), (9, 4, 4), (1, 16, 64)],
    ids=["a + b n", "constant", "noise: not below a measurement", "noise: not more than in proportion"],
)
def test_time_grows_linearly_with_the_samples(of_few: float, of_many: float, whole: float) -> None:
    found = scaled((2, of_few), (4, Spread(of_many, of_many / 2, 2 * of_many)), 16)
    assert found == pytest.approx((whole, whole / 2, 2 * whole))
    assert scaled((4, 7.0), (4, Spread(5, 4, 6)), 4) == (5, 4, 6)
    assert scaled((4, 7.0), (4, Spread(5, 4, 6)), 8) == (10, 8, 12)


def test_memory_beyond_the_tensors() -> None:
    # a step took 60 for 4 samples of 8, of which at most 20 are the optimizer's; an evaluation of all took 50
    assert beyond_tensors(30, (60, 20, 4, 8), (50, 10, 3, 3)) == (20 + 80) + 50 - 30
    assert beyond_tensors(30, (10, 20, 4, 8), (50, 0, 1, 3)) == 10 + 150 - 30
    assert beyond_tensors(1000, (60, 20, 4, 4), (0, 10, 3, 3)) == 0


def test_ranges_are_told_unless_their_ends_look_the_same() -> None:
    assert time_range(Spread(80, 70, 95)) == "80 s, 70 s to 95 s"
    assert time_range(Spread(80, 79.9, 80.1)) == "80 s"
    assert memory_range(101_000_000, 238_000_000) == "about 100 MB to 240 MB"
    assert memory_range(101_000_000, None) == memory_range(101_000_000, 101_500_000) == "about 100 MB"


@pytest.mark.parametrize(("after", "fraction"), [((30, 90), 0.8), ((20, 10), 0.0), (None, 0.75)])
def test_a_busy_machine_is_noticed(
    after: tuple[int, int] | None, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([(10, 10), after])
    monkeypatch.setattr(timing, "_scheduled", lambda: next(readings))
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (8.0, 1.0, 1.0))
    assert Waiting().fraction() == pytest.approx(fraction)
