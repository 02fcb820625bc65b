"""What a run and `train plan` say about schedules and averages, given the length of the run."""

from collections.abc import Iterator

from trainer.averaging.averaging import Averaging
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.schedules.robbins_monro import robbins_monro


def length_notices(blueprint: Blueprint) -> Iterator[tuple[str, str]]:
    """Yield what is shorter or longer than the run, and what that leads to: the subject and a sentence."""
    length, moments = blueprint.schedule_steps, blueprint.timeline.moments
    if length < moments:
        yield "schedule", f"over {length:,} of {moments:,} steps; afterwards its last rate is held"
    elif length > moments:
        share = blueprint.factor(blueprint.total_steps - 1)
        yield (
            "schedule",
            f"over {length:,} steps, of which the run has {moments:,}; it ends at {share:.3g} times optimizer.lr",
        )
    for notice in blueprint.schedule.notices(length):
        yield "schedule", notice
    averaging: Averaging | None = build_component(blueprint.config, "averaging", **blueprint.for_averaging)
    if averaging is not None and (told := averaging.notice(moments)) is not None:
        yield "averaging", told


def robbins_monro_verdict(blueprint: Blueprint) -> str:
    """The conditions on the learning rate for convergence in the limit, one by one."""
    tail = blueprint.schedule.tail
    is_held = tail is not None and blueprint.schedule_steps < blueprint.timeline.moments
    answers = robbins_monro(0.0 if is_held else tail)
    if not answers:
        return "not applicable: the schedule ends with the run, or follows evaluations"
    return ", ".join(f"{condition}: {'yes' if holds else 'no'}" for condition, holds in answers.items())
