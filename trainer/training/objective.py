"""What an optimizer may ask of a step: the gradient, or the loss, as often as it likes on the same batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.base.chunks import part_sizes
from trainer.base.errors import ConfigurationError
from trainer.base.precision import LossScale
from trainer.base.randomness import StepRandomness
from trainer.metrics import Meter
from trainer.parallelism.strategy import Part, Strategy
from trainer.training.batches import Batch
from trainer.training.gradients import GradientGuard


class Closure:
    """The objective of one step. Every evaluation has the same randomness; the first one counts for metrics.

    Batch-norm statistics move on the first evaluation only.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        strategy: Strategy,
        meter: Meter,
        guard: GradientGuard,
        randomness: StepRandomness,
        loss_scale: LossScale | None,
        dtype: torch.dtype | None,
        micro_batch: int,
        observe: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._model, self._compute, self._strategy = model, compute, strategy
        self._loss: Any = loss
        self._observe = observe  # takes the numbers of a step's samples and the loss of each
        self._meter, self._guard = meter, guard
        self._randomness, self._loss_scale = randomness, loss_scale
        self._dtype, self.micro_batch = dtype, micro_batch
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._sharded = any(hasattr(p, "to_local") for p in self._parameters)
        self._weights: dict[int, Tensor] = {}
        self._batch: Batch
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._step = self._evaluations = 0
        self.num_seen = 0  # samples of the step whose loss this rank has

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
        for part in earlier:
            with self._strategy.accumulating():
                total = total + self._backward(part, weight)
        loss_sum = self._backward(last, weight)
        if earlier:
            loss_sum = loss_sum + total
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return loss_sum

    def loss(self, create_graph: bool = False) -> Tensor:
        """The mean loss; with `create_graph` it can be differentiated (twice), on a single device.

        Raises ConfigurationError under several ranks.
        """
        if create_graph and self._strategy.world_size > 1:
            raise ConfigurationError("optimizer: differentiates the loss itself, which needs parallelism=single")
        statistics = self._statistics() if self._evaluations else None
        self._randomness.start(self._step)
        with torch.set_grad_enabled(create_graph):
            loss_sum = torch.zeros((), device=self._device)
            for part in self._parts():
                outputs = self.forward(part.images)
                value = self._loss(outputs, part.targets)
                self._see(value.detach(), outputs.detach(), part.targets)
                loss_sum = loss_sum + value
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return self._mean(loss_sum)

    def _mean(self, loss_sum: Tensor) -> Tensor:
        """The step's mean loss over all ranks."""
        return self._strategy.sum(loss_sum) * self._weight(self._batch.num_global)

    def gradients(self) -> list[Tensor]:
        """The gradients that the last `gradient()` left; of sharded ones this rank's part, in the same memory."""
        gradients: list[Any] = [p.grad for p in self._parameters if p.grad is not None]
        return [gradient.to_local() for gradient in gradients] if self._sharded else gradients

    def forward(self, images: Tensor) -> Tensor:
        """The model's outputs in the run's precision."""
        outputs: Tensor
        if self._dtype is None:
            outputs = self._compute(images)
        else:
            with torch.autocast(self._device.type, self._dtype):
                outputs = self._compute(images)
        return outputs

    def _backward(self, part: Part, weight: Tensor) -> Tensor:
        loss_sum, outputs, targets = self._strategy.backward(self.forward, self._loss, part, weight)
        self._see(loss_sum, outputs, targets)
        return loss_sum

    def _see(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        if self._evaluations == 0:
            self._seen.append((loss_sum, outputs, targets))

    def forget(self) -> None:
        """Let go of outputs and gradients of an evaluation that failed."""
        self._seen = []
        for parameter in self._parameters:
            parameter.grad = None

    def _count_evaluation(self) -> None:
        """Hand the first evaluation to the meter, when it is whole: one that ran out of memory left nothing."""
        if self._seen:
            self.num_seen = sum(len(targets) for _, _, targets in self._seen)
            if self._observe is not None:
                outputs, targets = (torch.cat(parts) for parts in list(zip(*self._seen, strict=True))[1:])
                self._observe(self._batch.indices, self._loss.each(outputs.detach(), targets))
        for seen in self._seen:
            self._meter.add(*seen)
        self._seen = []
        self._evaluations += 1

    def _parts(self) -> list[Part]:
        """What is computed at once: this rank's shares of `micro_batch` samples each."""
        images, targets, num_global, _ = self._batch
        if num_global <= self.micro_batch:
            return [Part(images, targets, num_global)]
        counts = part_sizes(num_global, self.micro_batch)
        shares = [self._strategy.share(count) for count in counts]
        sizes = [share.stop - share.start for share in shares]
        return [Part(*part) for part in zip(images.split(sizes), targets.split(sizes), counts, strict=True)]

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
