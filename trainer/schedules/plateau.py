"""A schedule that follows evaluations."""

from collections.abc import Mapping
from types import MappingProxyType

from trainer.base.checks import check_number, check_whole
from trainer.base.improvement import Improvement
from trainer.base.stateful import State
from trainer.contracts import Schedule
from trainer.schedules.time import SHARE


class Plateau(Schedule):
    """factor = max(floor, f^k), where k counts how often the monitored metric stalled for more than `patience`
    evaluations.

    Like torch's ReduceLROnPlateau with an absolute threshold and no cooldown (UVic PHYS 555: divided by 10 when
    validation stalls). `factor`: f in (0, 1); `patience` >= 0 evaluations; `min_delta` >= 0; `floor` in [0, 1].
    `directions` are those that the loss declares, for `mode="auto"`.
    """

    monitor: str

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: str = "auto",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        floor: float = 0.0,
        *,
        directions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.monitor = monitor
        self.drop = check_number("factor", factor, 0, 1, above=True, below=True)
        self.patience = check_whole("patience", patience, 0)
        self.floor = check_number("floor", floor, 0, 1, must=SHARE)
        self.improvement = Improvement(monitor, mode, min_delta, directions, "schedule.")
        self.drops = self.stalled = 0

    def factor(self, step: int) -> float:
        return max(self.floor, float(self.drop**self.drops))

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an evaluation."""
        self.stalled = 0 if self.improvement.observe(metrics[self.monitor]) else self.stalled + 1
        if self.stalled > self.patience:
            self.drops, self.stalled = self.drops + 1, 0

    def state_dict(self) -> State:
        return {"drops": self.drops, "stalled": self.stalled, "best": self.improvement.best}

    def load_state_dict(self, state: State) -> None:
        self.drops, self.stalled = state["drops"], state["stalled"]
        self.improvement.best = state["best"]
