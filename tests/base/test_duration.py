import pytest

from trainer.base.duration import Duration, is_time, parse_duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("5ep", 115), ("1 epoch", 23), ("0.5ep", 12), ("2.5 epochs", 58), ("500step", 500), ("1 step", 1),
        ("10%", 69), ("0.1%", 1), ("29%", 200), ("100%", 690), ("0ep", 0), ("0%", 0), (" 7 steps ", 7),
    ],
)  # fmt: skip
def test_converts_to_the_nearest_step(text: str, steps: int) -> None:
    assert parse_duration(text).steps(steps_per_epoch=23, total_steps=690) == steps


@pytest.mark.parametrize("text", ["5", "", "ep", "-1ep", "5 parsecs", "101%", "1.5step", "1e3step", None, True, 5])
def test_refuses_what_has_no_unit_or_no_meaning(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be|whole"):
        parse_duration(text)


def test_a_duration_is_a_value() -> None:
    assert parse_duration("5ep") == Duration(5, "ep") == parse_duration("5.0 epochs")


def test_is_time_at_every_multiple_and_at_the_end() -> None:
    assert [step for step in range(1, 11) if is_time(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_time(step, 0, 10)] == [10]
