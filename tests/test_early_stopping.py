import math

import pytest

from trainer.base.improvement import Improvement, direction
from trainer.early_stopping import EarlyStopping


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("val/loss", "min"), ("val/mae", "min"), ("val/accuracy", "max"), ("val/accuracy_top5", "max")],
)
def test_auto_knows_which_way_is_better(monitor: str, expected: str) -> None:
    assert direction(monitor, "auto") == expected


def test_improvement_by_hand() -> None:
    improvement = Improvement("val/loss", "min", min_delta=0.5)
    seen = [improvement.observe(value) for value in (3.0, 2.6, 2.5, 2.4, math.nan, 1.0, -math.inf)]
    #                                     first  0.4   0.5   0.6 > 0.5
    assert seen == [True, False, False, True, False, True, True]


def test_infinity_again_is_no_improvement() -> None:
    improvement = Improvement("val/loss", "min")
    assert [improvement.observe(value) for value in (math.inf, math.inf, 5.0, math.inf)] == [True, False, True, False]


def stops_at(values: list[float], **settings: object) -> int | None:
    stopping = EarlyStopping(**{"monitor": "val/loss", "mode": "min", "patience": 2, "min_delta": 0.0, **settings})
    for step, value in enumerate(values, start=1):
        if stopping.should_stop(value, step):
            return step
    return None


def test_stops_when_patience_runs_out_by_hand() -> None:
    assert stops_at([5, 4, 4, 4, 3]) == 4
    assert stops_at([5, 4, 4, 3, 3, 2]) is None
    assert stops_at([5, 4, 4, 4, 3], patience=3) is None
    assert stops_at([1, 2, 3, 3, 3], mode="max") == 5
    assert stops_at([5, 4.9, 4.8, 4.7], min_delta=0.5) == 3
    assert stops_at([math.nan, math.nan]) == 2


def test_evaluations_before_the_warm_up_s_end_do_not_count() -> None:
    assert stops_at([5, 6, 6, 6, 6, 6], after_step=3) == 5
    assert stops_at([1, 6, 6, 6, 5, 5], after_step=3) == 5  # the best value before `after_step` counts


def test_goes_on_where_it_was() -> None:
    first, second = (EarlyStopping("val/loss", "min", 3, 0.0) for _ in range(2))
    for step, value in enumerate([2.0, 2.0, 2.0]):
        first.should_stop(value, step)
    second.load_state_dict(first.state_dict())
    assert second.should_stop(2.0, 4)


def test_refuses_values_out_of_range() -> None:
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopping("val/loss", "min", 0, 0.0)
    with pytest.raises(ValueError, match="min_delta=-1"):
        Improvement("val/loss", "min", -1)
