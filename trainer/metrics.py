"""Training and evaluation metrics: sums over samples that stay on the device until they are read."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainer.base.errors import ConfigurationError, unknown
from trainer.base.stateful import State

Sum = Callable[[Tensor, Tensor], Tensor]


def correct(outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Number of samples whose class is ranked first."""
    return (predicted(outputs_NK) == _classes(targets_N)).sum()


def predicted(outputs_NK: Tensor) -> Tensor:
    """The class ranked first; of a single output, 1 if it is positive and 0 otherwise."""
    return outputs_NK.argmax(1) if outputs_NK.shape[1] > 1 else (outputs_NK[:, 0] > 0).long()


def correct_top5(outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Number of samples whose class is among the five ranked first."""
    return (outputs_NK.topk(5, dim=1).indices == _classes(targets_N).unsqueeze(1)).sum()


def _classes(targets: Tensor) -> Tensor:
    """Class indices; for a mixed sample, the class with the largest weight."""
    return targets.argmax(1) if targets.is_floating_point() else targets


def cross_entropy(outputs_NK: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(outputs)[target] in nats, which losses of different label smoothing can be compared by."""
    return functional.cross_entropy(outputs_NK, targets, reduction="sum")


def absolute_error(outputs_NK: Tensor, targets_NK: Tensor) -> Tensor:
    """Sum over samples of the mean absolute error of their outputs."""
    return (outputs_NK.reshape(len(outputs_NK), -1) - targets_NK.reshape(len(outputs_NK), -1)).abs().mean(1).sum()


_FEW_CLASSES = 10
SUMS: dict[str, Sum] = {
    "accuracy": correct, "accuracy_top5": correct_top5, "cross_entropy": cross_entropy, "mae": absolute_error
}  # fmt: skip


def available(wanted: Sequence[str | Sum], num_outputs: int) -> dict[str, Sum]:
    """Select the applicable metrics: top-5 accuracy says little about ten classes or fewer, and is omitted there.

    A callable in `wanted` is a user's metric, reported under its own name (see `name_of`). Raises ConfigurationError
    for a name that does not exist, is used twice, or is that of the loss.
    """
    found: dict[str, Sum] = {}
    for metric in wanted:
        if isinstance(metric, str) and metric not in SUMS:
            raise ConfigurationError(unknown("metric", metric, SUMS))
        if metric == "accuracy_top5" and num_outputs <= _FEW_CLASSES:
            continue
        name, function = (metric, SUMS[metric]) if isinstance(metric, str) else (name_of(metric), metric)
        if name in found or name == "loss":
            whose = "the loss itself is reported" if name == "loss" else "another metric is reported"
            raise ConfigurationError(f"metric '{name}': {whose} under this name; set another one as its __name__")
        found[name] = function
    return found


def name_of(metric: Sum) -> str:
    """Return the name of a user's metric: `__name__`, that of a partial's function, or else that of its class.

    Raises ConfigurationError for one without a usable name, as that of a lambda.
    """
    inner: object = metric
    while isinstance(inner, partial) and "__name__" not in vars(inner):
        inner = inner.func
    names: Iterable[object] = (getattr(inner, "__name__", None), type(inner).__name__)
    name = str(next(name for name in names if name))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigurationError(
            f"metric '{name}': has no name under which it could be reported; define it with def, or set its __name__"
        )
    return name


def _wide(value: Tensor) -> Tensor:
    """Convert to float64, or to float32 on MPS, which has no float64."""
    return value.float() if value.device.type == "mps" else value.double()


def _at_least_float32(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype is torch.float64 else outputs.float()


# micro-batches whose outputs are buffered before metrics are computed on them at once, and a bound on their size
_FOLD_PARTS, _FOLD_ELEMENTS = 32, 1 << 20


class Meter:
    """Means over the samples seen since the last read.

    Computing metrics costs at least 10 microseconds per step, so outputs are buffered and folded into totals 32
    micro-batches at a time; losses are buffered individually. Checkpoints hold the buffers as they are, so that the
    last bit does not depend on where a run was interrupted.
    """

    def __init__(self, sums: Mapping[str, Sum]) -> None:
        self._sums = dict(sums)
        self.reset()

    def reset(self) -> None:
        self._losses: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._elements = 0
        self._totals: dict[str, Tensor] = {}
        self._num_samples = 0

    def add(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add the summed loss, the outputs and the targets of a batch or micro-batch."""
        self._losses.append(loss_sum)
        self._outputs.append(outputs.detach())
        self._targets.append(targets)
        self._elements += outputs.numel()
        self._num_samples += len(targets)
        if len(self._outputs) == _FOLD_PARTS or self._elements > _FOLD_ELEMENTS:
            self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        outputs, targets = _at_least_float32(torch.cat(self._outputs)), torch.cat(self._targets)
        for name, total in self._sums.items():
            value = _wide(total(outputs, targets)) if len(targets) else _wide(torch.zeros_like(self._losses[0]))
            self._totals[name] = self._totals[name] + value if name in self._totals else value
        self._outputs, self._targets, self._elements = [], [], 0

    def read(self, over_ranks: Callable[[Tensor], Tensor] = lambda value: value) -> dict[str, float]:
        """Return `loss` and the other means and reset; empty if nothing was seen. Waits for the device once.

        `over_ranks` sums a tensor over the ranks; all of them must call this.
        """
        if not self._losses:
            return {}
        if self._outputs:
            self._fold()
        loss = _wide(torch.stack(self._losses)).sum()
        count = torch.full_like(loss, self._num_samples)
        sums = over_ranks(torch.stack([count, loss, *(self._totals[name] for name in self._sums)]))
        values = (sums[1:] / sums[0]).tolist()
        names = ["loss", *self._sums]
        self.reset()
        return dict(zip(names, values, strict=True))

    def state_dict(self) -> State:
        return {
            "losses": torch.stack(self._losses) if self._losses else None,
            "outputs": self._outputs,
            "targets": self._targets,
            "totals": self._totals,
            "num_samples": self._num_samples,
        }

    def load_state_dict(self, states: Sequence[State], shard: int, num_shards: int, device: torch.device) -> None:
        """Resume from `states`, one per shard of the samples.

        This rank takes every `num_shards`-th state, so that nothing is lost or counted twice if the number of shards
        has changed.
        """
        self.reset()
        for state in states[shard::num_shards]:
            self._take(state, device)

    def _take(self, state: State, device: torch.device) -> None:
        self._losses += [] if state["losses"] is None else list(state["losses"].to(device).unbind())
        self._outputs += [outputs.to(device) for outputs in state["outputs"]]
        self._targets += [targets.to(device) for targets in state["targets"]]
        self._elements += sum(outputs.numel() for outputs in state["outputs"])
        for name, total in state["totals"].items():
            value = total.to(device)
            self._totals[name] = self._totals[name] + value if name in self._totals else value
        self._num_samples += state["num_samples"]
