"""Progress of a run."""

import time
from dataclasses import asdict, dataclass, field

from torch import Tensor

from trainer.base.stateful import State


@dataclass
class Best:
    """The evaluation of the weights in `best.pt`."""

    step: int
    epoch: float
    metrics: dict[str, float]


@dataclass
class Progress:
    """Progress of a run: `step` steps are done; the position in the data is (`epoch`, `samples_seen`)."""

    step: int = 0
    epoch: int = 0
    samples_seen: int = 0
    rollbacks: int = 0
    best: Best | None = None
    initial_loss: Tensor | None = None  # until it is logged
    seconds_before: float = 0.0  # wall time of earlier sessions
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time over all sessions."""
        return self.seconds_before + time.perf_counter() - self.started

    def advance(self, count: int, num_samples: int) -> bool:
        """Count a step over `count` samples; returns whether it ended an epoch of `num_samples`."""
        self.step += 1
        self.samples_seen += count
        if self.samples_seen < num_samples:
            return False
        self.epoch, self.samples_seen = self.epoch + 1, 0
        return True

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "samples_seen": self.samples_seen,
            "rollbacks": self.rollbacks,
            "best": None if self.best is None else asdict(self.best),
            "initial_loss": self.initial_loss,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: State) -> None:
        self.step, self.epoch, self.samples_seen = state["step"], state["epoch"], state["samples_seen"]
        self.rollbacks, self.initial_loss = state["rollbacks"], state["initial_loss"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.seconds_before = state["seconds"]
