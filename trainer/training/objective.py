"""The objective of a step: its gradient and value, which an optimizer may evaluate repeatedly on the same batch."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.base.chunks import chunk_sizes
from trainer.base.errors import ConfigurationError
from trainer.base.precision import LossScale
from trainer.base.randomness import StepRandomness
from trainer.contracts import Loss, auxiliary_weights
from trainer.metrics import Meter
from trainer.parallelism.strategy import MicroBatch, Strategy
from trainer.training.batches import Batch
from trainer.training.gradients import GradientGuard


class Penalty(Protocol):
    """A function of the weights that is added to the mean data loss (L1, L2)."""

    def value(self) -> Tensor:
        """Return the penalty, differentiable."""
        ...

    def add_gradient(self, scale: Tensor | None) -> None:
        """Add its gradient, times `scale` if given, to `.grad` in place."""
        ...


class Objective:
    """The objective of a step, mean data loss plus penalty; also the closure passed to optimizers that need one.

    Every evaluation of a step uses the same batch and the same random numbers. Only the first one counts for metrics
    and updates batch-norm statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: nn.Module,
        loss: Loss,
        *,
        strategy: Strategy,
        meter: Meter,
        guard: GradientGuard,
        randomness: StepRandomness,
        loss_scale: LossScale | None = None,
        dtype: torch.dtype | None = None,
        micro_batch: int,
        observe: Callable[[Tensor, Tensor], None] | None = None,
        penalty: Penalty | None = None,
        mask_gradients: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._compute, self._strategy = model, compute, strategy
        self._loss, self._auxiliary = loss, auxiliary_weights(model)
        self.data_loss: Callable[[Tensor, Tensor], Tensor] = self._with_auxiliary if self._auxiliary else loss
        self._observe = observe  # called with the indices of a step's samples and the loss of each
        self._meter, self._guard = meter, guard
        self._randomness, self._loss_scale = randomness, loss_scale
        self._dtype, self.micro_batch = dtype, micro_batch
        self.most_at_once: int | None = None  # samples for which there is memory, if that has been short
        self._penalty, self._mask_gradients = penalty, mask_gradients
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._sharded = any(_is_sharded(p) for p in self._parameters)
        self._weights: dict[int, Tensor] = {}
        self._batch: Batch
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.frozen: list[nn.Parameter] = []  # have no gradient
        self._step = self._evaluations = 0
        self.first_loss: Tensor | None = None  # loss of the step's first evaluation, summed over all ranks
        self.num_seen = 0  # this rank's number of samples in it

    def begin(self, step: int, batch: Batch) -> None:
        """Start optimizer step `step` with its batch."""
        self._step, self._batch, self._evaluations = step, batch, 0
        self._seen, self.first_loss = [], None
        self._guard.begin()

    def __call__(self) -> Tensor:
        """Same as `gradient`; the closure call of torch's optimizers."""
        return self.gradient()

    def gradient(self) -> Tensor:
        """Compute the clipped gradient of the objective into `.grad`; returns the mean data loss over all ranks.

        May be called under `torch.no_grad`, with which many optimizers decorate `step`.
        """
        with torch.enable_grad():
            loss_total = self.compute_gradient()
        return loss_total * self._weight(self._batch.num_global)

    def compute_gradient(self, *, leave_to_kernel: bool = False) -> Tensor:
        """Like `gradient`, but return the sum of the data loss over all ranks.

        With `leave_to_kernel`, the gradient is neither clipped nor divided by the loss scale: the optimizer's kernel
        does both.
        """
        is_first = self._evaluations == 0
        loss_sum = self.backward()
        for parameter in self.frozen:
            parameter.grad = None
        if self._penalty is not None:
            self._penalty.add_gradient(None if self._loss_scale is None else self._loss_scale.scale)
        if self._mask_gradients is not None:
            self._mask_gradients()
        loss_total = self._guard.check(self.gradients(), loss_sum, leave_to_kernel=leave_to_kernel)
        if is_first:
            self.first_loss = loss_total
        return loss_total

    def backward(self) -> Tensor:
        """Compute the gradient of the mean data loss, times the loss scale, into `.grad`.

        Returns the sum of the loss over this rank's samples. The loss of each micro-batch is its sum divided by the
        number of samples of the whole step, so that the gradients of micro-batches add up exactly.
        """
        for parameter in self._parameters:
            parameter.grad = None
        statistics = self._statistics() if self._evaluations else None
        self._randomness.start(self._step)
        weight = self._weight(self._batch.num_global)
        if self._loss_scale is not None:
            weight = weight * self._loss_scale.scale
        *earlier, last = self._micro_batches()
        total: Tensor | float = 0.0
        for batch in earlier:
            with self._strategy.accumulating():
                total = total + self._backward(batch, weight)
        loss_sum = self._backward(last, weight)
        if earlier:
            loss_sum = loss_sum + total
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return loss_sum

    def objective(self) -> Tensor:
        """Return the mean data loss plus the penalty, without a graph, as a line search needs it.

        A value that is not finite does not count as a failure of the step: a line search rejects such weights.
        """
        with torch.no_grad():
            loss_sum, penalty = self._loss_sum(create_graph=False)
            return self._objective(self._strategy.sum(loss_sum), penalty)

    def loss(self, create_graph: bool = False) -> Tensor:
        """Return the mean data loss plus the penalty; with `create_graph`, differentiable any number of times.

        With several ranks, the derivatives with respect to the parameters are those of the whole objective, on every
        rank. Raises ConfigurationError for `create_graph` if the strategy does not support this.
        """
        with torch.set_grad_enabled(create_graph):
            loss_sum, penalty = self._loss_sum(create_graph=create_graph)
            loss_total = self._guard.check_loss(loss_sum)
            if create_graph and self._strategy.world_size > 1:
                loss_total = self._strategy.sum_of_shards(loss_sum)
            return self._objective(loss_total, penalty)

    def _objective(self, loss_total: Tensor, penalty: Tensor | None) -> Tensor:
        if self._evaluations == 1:
            self.first_loss = loss_total.detach()
        mean = loss_total * self._weight(self._batch.num_global)
        return mean if penalty is None else mean + penalty

    def _loss_sum(self, *, create_graph: bool) -> tuple[Tensor, Tensor | None]:
        """Return the sum of the loss over this rank's samples, and the penalty."""
        compute: Callable[[Tensor], Tensor] = self._compute
        if create_graph and self._strategy.world_size > 1:
            if not self._strategy.differentiates:
                raise ConfigurationError("optimizer: differentiates the loss itself, which needs parallelism=single")
            compute = self._replicated_model
        statistics = self._statistics() if self._evaluations else None
        self._randomness.start(self._step)
        loss_sum = torch.zeros((), device=self._device)
        for batch in self._micro_batches():
            self._strategy.computing(batch)
            outputs = self._outputs(compute, batch.images)
            value = self.data_loss(outputs, batch.targets)
            self._keep(value.detach(), outputs.detach(), batch.targets)
            loss_sum = loss_sum + value
        penalty = None if self._penalty is None else self._penalty.value()
        if statistics is not None:
            self._restore(statistics)
        self._count_evaluation()
        return loss_sum, penalty

    def _replicated_model(self, images: Tensor) -> Tensor:
        """Compute with weights whose gradients are summed over ranks."""
        names, weights = zip(*self._model.named_parameters(), strict=True)
        given = dict(zip(names, self._strategy.replicated(weights), strict=True))
        outputs: Tensor = functional_call(self._model, given, (images,))
        return outputs

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the last evaluation; for sharded parameters this rank's shard, sharing memory."""
        gradients: list[Any] = [p.grad for p in self._parameters if p.grad is not None]
        return [gradient.to_local() for gradient in gradients] if self._sharded else gradients

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs, computed in the run's precision."""
        return self._outputs(self._compute, images)

    def _outputs(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if self._dtype is None:
            return compute(images)
        with torch.autocast(self._device.type, self._dtype):
            return compute(images)

    def _backward(self, batch: MicroBatch, weight: Tensor) -> Tensor:
        loss_sum, outputs, targets = self._strategy.backward(self.forward, self.data_loss, batch, weight)
        self._keep(loss_sum, outputs, targets)
        return loss_sum

    def _with_auxiliary(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L(main) + sum_i w_i L(auxiliary_i) for a model with auxiliary classifiers (Szegedy et al. 2014)."""
        main_NK, *others = outputs.unbind(1)
        total = self._loss(main_NK, targets)
        for weight, auxiliary_NK in zip(self._auxiliary, others, strict=True):
            total = total + weight * self._loss(auxiliary_NK, targets)
        return total

    def untrained_loss(self, num_outputs: int) -> float | None:
        """Return the expected mean data loss of an untrained model, or None if unknown."""
        value = self._loss.initial_value(num_outputs)
        return None if value is None else value * (1 + sum(self._auxiliary))

    def _keep(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        if self._evaluations == 0:
            if self._auxiliary:  # metrics are those of the main outputs
                outputs = outputs[:, 0]
            self._seen.append((loss_sum, outputs, targets))

    def forget(self) -> None:
        """Release outputs and gradients of a failed evaluation."""
        self._seen = []
        for parameter in self._parameters:
            parameter.grad = None

    def _count_evaluation(self) -> None:
        """Add the first evaluation to the meter, once it is complete: one that ran out of memory does not count."""
        if self._seen:
            self.num_seen = sum(len(targets) for _, _, targets in self._seen)
            if self._observe is not None:
                outputs, targets = (torch.cat(parts) for parts in list(zip(*self._seen, strict=True))[1:])
                self._observe(self._batch.indices, self._loss.each(outputs.detach(), targets))
        for seen in self._seen:
            self._meter.add(*seen)
        self._seen = []
        self._evaluations += 1

    def _micro_batches(self) -> list[MicroBatch]:
        """Split the batch into this rank's shards of micro-batches of `micro_batch` samples each."""
        images, targets, num_global, _ = self._batch
        if num_global <= self.micro_batch:
            return [MicroBatch(images, targets, num_global)]
        counts = chunk_sizes(num_global, self.micro_batch)
        shards = [self._strategy.shard(count) for count in counts]
        sizes = [shard.stop - shard.start for shard in shards]
        return [MicroBatch(*item) for item in zip(images.split(sizes), targets.split(sizes), counts, strict=True)]

    def _weight(self, count: int) -> Tensor:
        """Return 1 / count as a cached tensor on the device."""
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


def _is_sharded(parameter: Tensor) -> bool:
    """Whether it is a DTensor. Does not import the module: without it, there are no DTensors."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)
