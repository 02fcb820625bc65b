"""The timeline against counting every batch of a run."""

import pytest

from trainer.base.timeline import Position, Segment, Timeline

GROWING = [
    (100, 10, 60, [(20, 20), (40, 60)]),
    (1437, 64, 5 * 23, [(35, 143)]),  # a last batch of another size in each epoch, and growth within one
    (1437, 64, 100, [(7, 65), (8, 66), (9, 67), (30, 700)]),  # phases of few steps; the run ends within an epoch
    (50, 7, 40, [(1, 50), (2, 50)]),  # the whole set at once
    (97, 3, 33 * 4, [(33, 5), (33, 8), (34, 100)]),  # several at one moment
]


def counted(num_samples: int, unit: int, moments: int, growth: list[tuple[int, int]]) -> list[tuple[Position, int]]:
    """Where each step begins and how many samples it takes at most, one after the other."""
    per_epoch = -(-num_samples // unit)
    at = [(Position(moment // per_epoch, moment % per_epoch * unit), size) for moment, size in growth]
    end, position, steps = Position(moments // per_epoch, moments % per_epoch * unit), Position(0, 0), []
    while position < end:
        size = ([unit] + [size for begin, size in at if begin <= position])[-1]
        steps.append((position, size))
        following = position.sample + size
        position = Position(position.epoch, following) if following < num_samples else Position(position.epoch + 1, 0)
    return steps


@pytest.mark.parametrize(("num_samples", "unit", "moments", "growth"), [*GROWING, (1437, 64, 100, [])])
def test_steps_are_those_that_counting_gives(
    num_samples: int, unit: int, moments: int, growth: list[tuple[int, int]]
) -> None:
    timeline = Timeline(num_samples, unit, moments, growth, micro_batch=lambda size: size // 2 + 1)
    steps = counted(num_samples, unit, moments, growth)
    assert timeline.total_steps == len(steps)
    assert [timeline.position(step) for step in range(len(steps))] == [position for position, _ in steps]
    assert [timeline.phase(step).batch_size for step in range(len(steps))] == [size for _, size in steps]
    reached = [moment for step in range(1, len(steps) + 1) for moment in timeline.reached(step)]
    assert reached[:moments] == list(range(1, moments + 1))  # each once
    for moment in range(1, moments + 1):
        step = timeline.step_at(moment)
        assert timeline.moment(step - 1) < moment <= timeline.moment(step)
    taken: list[tuple[Position, int]] = []
    for epoch in range(steps[-1][0].epoch + 1):
        end = 0
        for segment in timeline.segments(epoch):
            assert segment.start == end
            assert segment.micro_batch == segment.batch_size // 2 + 1
            taken += [(Position(epoch, s), segment.batch_size) for s in range(segment.start, segment.end, segment[2])]
            end = segment.end
        assert end == num_samples
    assert taken[: len(steps)] == steps


def test_moments_are_steps_if_the_batch_does_not_grow() -> None:
    timeline = Timeline(100, 8, 70)
    assert [timeline.moment(step) for step in range(70)] == [timeline.step_at(moment) for moment in range(70)]
    assert list(timeline.segments(5)) == [Segment(0, 100, 8, 8)]
    assert timeline.reached(4) == range(4, 5)
