"""What an optimizer may ask of a step: the gradient, or the loss, as often as it likes on the same batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.batches import Batch
from trainer.gradients import GradientGuard
from trainer.metrics import Meter
from trainer.parallelism.strategy import Strategy
from trainer.precision import LossScale
from trainer.randomness import StepRandomness


class Closure:
    """The objective of one step. Every evaluation has the same randomness; the first one counts for metrics.

    Batch-norm statistics move on the first evaluation only.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        strategy: Strategy,
        meter: Meter,
        guard: GradientGuard,
        randomness: StepRandomness,
        loss_scale: LossScale | None,
        dtype: torch.dtype | None,
        micro_batch: int,
    ) -> None:
        self._model, self._loss, self._strategy = model, loss, strategy
        self._meter, self._guard = meter, guard
        self._randomness, self._loss_scale = randomness, loss_scale
        self._dtype, self.micro_batch = dtype, micro_batch
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._weights: dict[int, Tensor] = {}
        self._batch: Batch
        self._outputs: Tensor
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._step = self._evaluations = 0

    def begin(self, step: int, batch: Batch) -> None:
        """Turn to the batch of optimizer step `step`."""
        self._step, self._batch, self._evaluations = step, batch, 0
        self._seen = []

    def gradient(self) -> Tensor:
        """Leave the clipped gradient of the mean loss in `.grad` and return the mean loss over all ranks."""
        loss_sum = self.backward()
        self._guard.clip(self.gradients(), loss_sum)
        return self._mean(loss_sum)

    def backward(self) -> Tensor:
        """As `gradient`, but neither clipped nor divided by the loss scale: the guard does both in one go.
        Returns the sum of the loss over the samples of this rank.

        The batch is computed in parts of `micro_batch` samples; a part's loss is a sum over its samples divided
        by the whole step's count, so that the parts add up exactly.
        """
        for parameter in self._parameters:
            parameter.grad = None
        statistics = self._statistics() if self._evaluations else None
        self._randomness.start(self._step)
        weight = self._weight(self._batch.num_global)
        if self._loss_scale is not None:
            weight = weight * self._loss_scale.scale
        *earlier, last = self._parts()
        total: Tensor | float = 0.0
        for images, targets in earlier:
            with self._strategy.accumulating():
                total = total + self._backward(images, targets, weight)
        loss_sum = self._backward(*last, weight)
        if earlier:
            loss_sum = loss_sum + total
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return loss_sum

    def loss(self, create_graph: bool = False) -> Tensor:
        """The mean loss; with `create_graph` it can be differentiated (twice), on a single device."""
        statistics = self._statistics() if self._evaluations else None
        self._randomness.start(self._step)
        with torch.set_grad_enabled(create_graph):
            loss_sum = torch.zeros((), device=self._device)
            for images, targets in self._parts():
                part = self._objective(images, targets)
                self._see(part.detach(), targets)
                loss_sum = loss_sum + part
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return self._mean(loss_sum)

    def _mean(self, loss_sum: Tensor) -> Tensor:
        """The step's mean loss over all ranks."""
        return self._strategy.sum(loss_sum) * self._weight(self._batch.num_global)

    @property
    def num_local(self) -> int:
        """This rank's samples of the step."""
        return len(self._batch.targets)

    def gradients(self) -> list[Tensor]:
        """The gradients that the last `gradient()` left."""
        return [p.grad for p in self._parameters if p.grad is not None]

    def forward(self, images: Tensor) -> Tensor:
        """The model's outputs in the run's precision."""
        outputs: Tensor
        if self._dtype is None:
            outputs = self._model(images)
        else:
            with torch.autocast(self._device.type, self._dtype):
                outputs = self._model(images)
        return outputs

    def _objective(self, images: Tensor, targets: Tensor) -> Tensor:
        self._outputs = self.forward(images)
        return self._loss(self._outputs, targets)

    def _backward(self, images: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        loss_sum = self._strategy.backward(self._objective, images, targets, weight)
        self._see(loss_sum, targets)
        return loss_sum

    def _see(self, loss_sum: Tensor, targets: Tensor) -> None:
        if self._evaluations == 0:
            self._seen.append((loss_sum, self._outputs.detach(), targets))

    def forget(self) -> None:
        """Let go of outputs and gradients of an evaluation that failed."""
        self._outputs = torch.empty(0)
        self._seen = []
        for parameter in self._parameters:
            parameter.grad = None

    def _count_evaluation(self) -> None:
        """Hand the first evaluation to the meter, when it is whole: one that ran out of memory left nothing."""
        for seen in self._seen:
            self._meter.add(*seen)
        self._seen = []
        self._evaluations += 1

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        images, targets, _ = self._batch
        if len(targets) <= self.micro_batch:
            return [(images, targets)]
        size = self.micro_batch
        return list(zip(images.split(size), targets.split(size), strict=True))

    def _weight(self, count: int) -> Tensor:
        """1 / count on the device, made once."""
        if count not in self._weights:
            dtype = torch.promote_types(self._parameters[0].dtype, torch.float32)
            self._weights[count] = torch.full((), 1 / count, dtype=dtype, device=self._device)
        return self._weights[count]

    def _statistics(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._model.buffers()]

    def _restore(self, statistics: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, saved in zip(self._model.buffers(), statistics, strict=True):
                buffer.copy_(saved)
