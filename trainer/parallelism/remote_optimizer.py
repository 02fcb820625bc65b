"""Optimizer of an asynchronous worker, whose weights and state are on parameter servers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.parallelism.parameter_server import (
    Message,
    ServerLost,
    Servers,
    settings,
)


class RemoteOptimizer(Optimizer):
    """Proxy for an optimizer whose weights and state are on servers; its settings are sent with each push.

    `held` contains the parameters of each server. Raises ServerLost if a server does not answer.
    """

    def __init__(self, optimizer: Optimizer, held: list[list[Tensor]], servers: Servers | None, period: int) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)  # the groups are the same objects
        self._original, self._held, self._connected, self._period = optimizer, held, servers, period
        self._pending: dict[Tensor, Tensor] = {}  # sums of gradients not yet pushed
        self._steps = 0  # since the last push
        self._has_stepped = self._is_fresh = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Push and fetch every `period` steps; in between, step with w <- w - lr * g."""
        self._has_stepped, self._is_fresh = True, False
        self._steps += 1
        pushes = self._steps == self._period
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                before = self._pending.get(parameter)
                self._pending[parameter] = gradient if before is None else before + gradient
                if not pushes:
                    parameter.sub_(gradient, alpha=group["lr"])
        if pushes:
            self._push()

    def _push(self) -> None:
        groups = [settings(group) for group in self.param_groups]
        answers = self._servers.ask(
            [
                {"kind": "push", "groups": groups, "gradients": [self._pending.get(parameter) for parameter in shard]}
                for shard in self._held
            ]
        )
        self._pending, self._steps = {}, 0
        self._take(answers)

    def fetch(self) -> int:
        """Fetch the servers' weights; returns the step of the main worker. Other workers wait for its first step."""
        answers = self._servers.ask([{"kind": "fetch"} for _ in self._held])
        self._take(answers)
        step: int = answers[0]["step"]
        return step

    @torch.no_grad()
    def _take(self, answers: list[Message]) -> None:
        for shard, answer in zip(self._held, answers, strict=True):
            for parameter, weight in zip(shard, answer["weights"], strict=True):
                parameter.copy_(weight)

    def synchronize(self) -> None:
        """Push pending gradients and make sure that the weights are not older than the last step."""
        if self._pending:
            self._push()
        elif not self._is_fresh:
            self.fetch()
        self._is_fresh = True

    def end_step(self) -> None:
        """End a step. If it was skipped, fetch: `step` has not done so, and the weights may be the cause."""
        if not self._has_stepped:
            self._is_fresh = False
            self.synchronize()
        self._has_stepped = False

    def publish(self, step: int) -> None:
        """Publish the main worker's step, which lets the other workers continue."""
        self._servers.tell([{"kind": "publish", "step": step} for _ in self._held])

    # --- weights and state of the servers

    def load_weights(self) -> None:
        """Replace the servers' weights; gradients of other workers are dropped until the next `publish`."""
        self._pending, self._steps, self._is_fresh = {}, 0, True
        self._servers.ask([{"kind": "load", "weights": shard} for shard in self._held])

    def load_state(self) -> None:
        """Replace the servers' optimizer state by that of the original optimizer, in the same way."""
        self.param_groups = self._original.param_groups
        groups = [settings(group) for group in self.param_groups]
        state = self._original.state
        self._servers.ask(
            [
                {"kind": "load", "groups": groups, "state": [state.get(parameter, {}) for parameter in shard]}
                for shard in self._held
            ]
        )

    @contextmanager
    def original(self) -> Iterator[Optimizer]:
        """Context manager that returns the original optimizer with the servers' state."""
        answers = self._servers.ask([{"kind": "optimizer"} for _ in self._held])
        for shard, answer in zip(self._held, answers, strict=True):
            for parameter, state in zip(shard, answer["state"], strict=True):
                if state:
                    self._original.state[parameter] = state
        try:
            yield self._original
        finally:
            self._original.state.clear()

    def staleness(self) -> list[int]:
        """Return, for each update since the last call, the number of updates by others between fetch and push."""
        (answer,) = self._servers.ask([{"kind": "staleness"}])
        values: list[int] = answer["staleness"]
        return values

    @property
    def _servers(self) -> Servers:
        if self._connected is None:
            raise ServerLost("the main worker has ended")
        return self._connected

    def close(self) -> None:
        """Close the connections; idempotent."""
        if self._connected is not None:
            self._connected.close()
