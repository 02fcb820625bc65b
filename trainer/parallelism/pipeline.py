"""Pipeline parallelism: each rank has consecutive layers, and a batch passes through them in micro-batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from trainer.base.checks import check_one_of, check_that, check_whole
from trainer.base.config import Config
from trainer.base.stateful import State
from trainer.parallelism import cost
from trainer.parallelism.collect import merged
from trainer.parallelism.exchange import Group
from trainer.parallelism.global_dropout import arranged, is_random, memory_order
from trainer.parallelism.ranks import Ranks
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.stages import cut, work_of_children
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch


class Pipeline(Ranks):
    """Rank s computes stage s of the model; activations are sent to the next rank, their gradients back.

    A batch is split into `micro_batches` of equal size (if that does not divide it, into the largest divisor below),
    so that the ranks work concurrently. The loss of each is a sum, so gradients add up to the batch's. With S stages
    and m micro-batches, ranks are idle for the fraction (S-1) / (m+S-1) of the time. All ranks see the whole batch;
    its outputs are broadcast from the last rank.

    `schedule` gpipe: all forward passes, then all backward passes; 1f1b: alternating, which stores the activations of
    at most S micro-batches. Stages begin at children listed in the model's `pipeline_plan` and minimize the sum of
    squares of their work, the multiply-adds of a step. Raises ValueError for other values, for models whose plan is
    missing or too short, and for batch norm with several micro-batches.

    Sources: Huang et al. 2019 (GPipe); Narayanan et al. 2019 (PipeDream, 1F1B).
    """

    steps_all_weights = False

    def __init__(
        self,
        devices: int | str = "auto",
        schedule: Literal["gpipe", "1f1b"] = "gpipe",
        micro_batches: int = 4,
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, max_restarts, timeout)
        check_one_of("schedule", schedule, ("gpipe", "1f1b"))
        check_whole("micro_batches", micro_batches, 1)
        self.schedule, self.micro_batches = schedule, micro_batches
        self._work: Mapping[str, int] = {}  # of the model's children
        self._held: _Stage | None = None
        self._schedules: dict[tuple[int, ...], tuple[_PipelineSchedule, list[list[_Draw]]]] = {}
        self._call = _Call()
        self._draws: _Draws
        self._loss: Loss
        self._weight: Tensor
        self._losses: list[Tensor] = []  # of the micro-batches of a step

    def plan(self, available: int | None, machines: int) -> None:
        super().plan(available, machines)
        if self.schedule == "1f1b" and self.micro_batches < self.world_size:
            raise ValueError(
                f"parallelism.micro_batches={self.micro_batches}: schedule=1f1b with {self.world_size} stages needs "
                f"at least {self.world_size}"
            )

    def data_shards(self) -> int:
        return 1

    def connect(self, device: torch.device) -> None:
        super().connect(device)
        self.data_rank = 0

    def divide(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self._work = work_of_children(model, input_shape)

    def validate(self, config: Config, model: nn.Module) -> None:
        super().validate(config, model)
        for number, names in enumerate(self._stages_of(model), 1):
            parameters = (p for name in names for p in model.get_submodule(name).parameters())
            if not any(parameter.requires_grad for parameter in parameters):
                raise ValueError(f"parallelism=pipeline: all parameters of stage {number} ({names[0]}, ...) are frozen")
        if config["compile"]:
            raise ValueError("compile=true: the stages of parallelism=pipeline cannot be compiled; leave compile=false")
        must = "false with parallelism=pipeline, which draws the random numbers of several micro-batches at once"
        check_that(not config["checkpoint_activations"], "checkpoint_activations", True, must)
        for name, module in model.named_modules():
            if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
                raise ValueError(
                    f"parallelism=pipeline: {type(module).__name__} ({name}) cannot be drawn for a whole batch at "
                    "once; it must be nn.Dropout, or another module that multiplies by a random mask"
                )
            if isinstance(module, _BatchNorm) and self.micro_batches > 1:
                raise ValueError(
                    f"parallelism.micro_batches={self.micro_batches}: the statistics of batch norm ({name}) would be "
                    "those of a micro-batch; it must be 1, or choose a model without batch norm"
                )

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        stages = self._stages_of(model)
        micro_batches = largest_divisor(step.micro_batch or step.batch_size, self.micro_batches)
        in_flight = None if self.schedule == "gpipe" else len(stages)
        return cost.pipeline(step, stages, micro_batches, in_flight)

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers of other stages by identities in place, which keeps this rank's stage and all names."""
        self._device = next(tensor.device for tensor in model.parameters())  # this stage may have none
        own = self._stages_of(model)[self.rank]
        self._draws = _Draws(model)
        for name in [name for name, _ in model.named_children() if name not in own]:
            setattr(model, name, nn.Identity())
        self._held = _Stage(model, self.rank, self.world_size, self._control)
        return self._held

    def _stages_of(self, model: nn.Module) -> list[list[str]]:
        return cut(model, self.world_size, self._work)

    @property
    def _stage(self) -> "_Stage":
        assert self._held is not None
        return self._held

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        self._call.function, self._loss, self._weight = forward, loss, weight
        schedule, draws = self._schedule_for(batch.images)
        self._draws.begin(draws, self.rank, batch.images)
        images = (batch.images,) if self._stage.is_first else ()
        with self._stage.in_turns():
            outputs = schedule.step(*images, target=batch.targets if self._stage.is_last else None)
        rows = None
        if self._stage.is_last:
            loss_sum = torch.stack(self._losses).sum()
            rows = torch.cat([outputs.detach().to(loss_sum.dtype), loss_sum.expand(1, outputs.shape[1])])
            self._losses.clear()
        rows = self._stage.from_last("step", batch.images, rows)
        return rows[-1, 0], rows[:-1], batch.targets

    def _schedule_for(self, images: Tensor) -> "tuple[_PipelineSchedule, list[list[_Draw]]]":
        """Return torch's schedule, with its buffers, for batches of this shape, and the dropout calls of all ranks."""
        key = tuple(images.shape)
        if key not in self._schedules:
            count = largest_divisor(len(images), self.micro_batches)
            with self._draws.noted() as calls:
                taken, given = self._stage.try_out(self._call, images[: len(images) // count])
            stage = PipelineStage(
                self._call, self.rank, self.world_size, images.device, input_args=(taken,), output_args=(given,)
            )
            # 1F1B needs at least as many micro-batches as stages; ragged batches with fewer use GPipe
            kind = Schedule1F1B if self.schedule == "1f1b" and count >= self.world_size else ScheduleGPipe
            schedule = kind(stage, count, loss_fn=self._weighted, scale_grads=False)
            self._schedules[key] = schedule, self.gather(calls)
        return self._schedules[key]

    def _weighted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss_sum = self._loss(outputs, targets)
        self._losses.append(loss_sum.detach())
        return loss_sum * self._weight

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        gradients = list(gradients)
        # a stage may have no gradients: all its parameters are frozen, or it has none
        squares = super().grad_norm(gradients).square() if gradients else torch.zeros((), device=self._device)
        dist.all_reduce(squares)
        return squares.sqrt()

    def sum_over_weights(self, terms: Iterable[tuple[Tensor, Tensor]]) -> float:
        return sum(self.gather(super().sum_over_weights(terms)))

    def state_dict(self, model: nn.Module) -> State:
        return merged(self.collect(model.state_dict()))

    def load_state_dict(self, model: nn.Module, state: State) -> None:
        model.load_state_dict({name: state[name] for name in model.state_dict()})

    def part_to_load(self, name: str, whole: Tensor, model: nn.Module) -> Tensor | None:
        return whole if name in model.state_dict() else None

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        states = self.collect(super().optimizer_state(model, optimizer))
        return {kind: merged([state[kind] for state in states]) for kind in ("state", "groups")} if states else {}

    def close(self) -> None:
        self._held, self._schedules = None, {}
        super().close()


_Layout = tuple[torch.Size, torch.dtype]
_PipelineSchedule = Schedule1F1B | ScheduleGPipe
# a layer that is called, the shape of a sample, its type, and the order of the axes in memory
_Draw = tuple[str, tuple[int, ...], torch.dtype, tuple[int, ...]]


class _Call(nn.Module):
    """Module that torch's schedule calls: the stage, in the run's precision."""

    function: Forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Stage(nn.Module):
    """A rank's layers. Outside a step, stages run one after the other, and every rank gets the last one's outputs."""

    def __init__(self, model: nn.Module, rank: int, num_stages: int, control: Group) -> None:
        super().__init__()
        self.model = model
        self.is_first, self.is_last = rank == 0, rank == num_stages - 1
        self._rank, self._last, self._control = rank, num_stages - 1, control
        self._scheduled = False
        # shape and dtype of received tensors, by the shape of the images
        self._shapes: dict[tuple[str, tuple[int, ...]], _Layout] = {}
        self._seen: tuple[Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if self._scheduled:
            return self._layers(x)
        if torch.is_grad_enabled():
            raise ValueError("parallelism=pipeline: the loss cannot be differentiated outside of a step")
        taken = x if self.is_first else self._receive(x)
        given = self._layers(taken)
        self._seen = taken, given
        if not self.is_last:
            self._send(x, given)
        return self.from_last("outputs", x, given if self.is_last else None)

    def _layers(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y if self.is_last else y.contiguous()  # send needs contiguous tensors

    @contextmanager
    def in_turns(self) -> Iterator[None]:
        """Context manager within which torch's schedule calls the layers and does the communication."""
        self._scheduled = True
        try:
            yield
        finally:
            self._scheduled = False

    def try_out(self, call: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's input and output for such images, from a forward pass without side effects."""
        self.model.eval()
        with torch.no_grad():
            call(images)
        self.model.train()
        taken, given = self._seen
        return taken.detach().requires_grad_(not self.is_first), given.detach().requires_grad_()

    def from_last(self, kind: str, images: Tensor, value: Tensor | None) -> Tensor:
        """Broadcast the last stage's value to every rank."""
        key = kind, tuple(images.shape)
        if key not in self._shapes:
            box = [None if value is None else (value.shape, value.dtype)]
            dist.broadcast_object_list(box, src=self._last, group=self._control)
            assert box[0] is not None
            self._shapes[key] = box[0]
        if value is None:
            shape, dtype = self._shapes[key]
            value = torch.empty(shape, dtype=dtype, device=images.device)
        dist.broadcast(value, src=self._last)
        return value

    def _send(self, images: Tensor, value: Tensor) -> None:
        key = "sent", tuple(images.shape)
        if key not in self._shapes:
            dist.send_object_list([(value.shape, value.dtype)], dst=self._rank + 1, group=self._control)
            self._shapes[key] = value.shape, value.dtype
        dist.send(value, dst=self._rank + 1)

    def _receive(self, images: Tensor) -> Tensor:
        key = "received", tuple(images.shape)
        if key not in self._shapes:
            box: list[_Layout | None] = [None]
            dist.recv_object_list(box, src=self._rank - 1, group=self._control)
            assert box[0] is not None
            self._shapes[key] = box[0]
        shape, dtype = self._shapes[key]
        value = torch.empty(shape, dtype=dtype, device=images.device)
        dist.recv(value, src=self._rank - 1)
        return value


class _Draws:
    """Dropout as on one device: every rank draws the masks of the whole batch for all layers in order, and uses those
    of its own stage, slice by slice for each micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        self._draw: dict[str, Callable[[Tensor], Tensor]] = {}
        self._masks: list[Tensor] = []
        self._notes: list[_Draw] | None = None
        self._used = 0
        for name, module in model.named_modules():
            if is_random(module):
                self._draw[name] = module.forward
                module.forward = partial(self._forward, name, module)

    def _forward(self, name: str, module: nn.Module, x: Tensor) -> Tensor:
        if self._notes is not None:
            self._notes.append((name, tuple(x.shape[1:]), x.dtype, memory_order(x)))
        if not module.training:
            return x
        micro_batch, index = divmod(self._used, len(self._masks))
        self._used += 1
        return x * self._masks[index].narrow(0, micro_batch * len(x), len(x))

    @contextmanager
    def noted(self) -> Iterator[list[_Draw]]:
        """Context manager that records calls: the layer, the shape of a sample, its dtype, and its order in memory."""
        self._notes = []
        try:
            yield self._notes
        finally:
            self._notes = None

    @torch.no_grad()
    def begin(self, calls: list[list[_Draw]], rank: int, images: Tensor) -> None:
        """Draw the masks of a batch for the `calls` of each rank."""
        self._masks, self._used = [], 0
        for owner, noted in enumerate(calls):
            for name, shape, dtype, order in noted:
                ones = torch.ones(len(images), *shape, dtype=dtype, device=images.device)
                mask = self._draw[name](arranged(ones, order))
                if owner == rank:
                    self._masks.append(mask)


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
