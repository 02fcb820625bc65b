"""Weights that are kept at the ends of a schedule's cycles, for an ensemble."""

from trainer.averaging.averaging import Averaging
from trainer.base.stateful import State


class Snapshots(Averaging):
    """Keeps the weights at the end of each cycle of the schedule, whose predictions are averaged (Huang et al. 2017).

    The weights themselves are what is evaluated, early-stopped on and kept as best during training.
    `train evaluate RUN ensemble=snapshots` evaluates the mean of the snapshots' class probabilities.
    """

    needs_cycles = True

    def __init__(self, *, cycle_ends: tuple[int, ...]) -> None:
        self.ends = frozenset(cycle_ends)
        self.steps: list[int] = []

    def share(self, step: int, count: int) -> float | None:
        return None

    def keeps(self, moment: int) -> bool:
        return moment in self.ends

    def kept(self, step: int) -> None:
        self.steps.append(step)

    def state_dict(self) -> State:
        return {"count": self.count, "snapshots": list(self.steps)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.steps = list(state["snapshots"])
