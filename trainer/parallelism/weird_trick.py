"""One weird trick: convolutions see a shard of the batch each, fully connected layers share their units."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer import contracts
from trainer.parallelism import cost
from trainer.parallelism.ddp import DataParallel
from trainer.parallelism.exchange import Gather, Keep, gathered
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.split_layers import Member
from trainer.parallelism.tensor import SplitModel

# what may stand at the border, where the input is whole; a layer that would gather its input finds it so
_AT_THE_BORDER = {"column": "column", "cross": "column", "gather": "gather"}


class WeirdTrick(SplitModel):
    """Convolutions have few weights and most of the arithmetic: every rank does all of them on its share of the
    batch, and their gradients are summed. Fully connected layers have most weights and little arithmetic: every
    rank has a part of them, through which it passes the whole batch.

    At the border the shards of the batch are gathered; on the way back the gradients of the features, to which
    each rank's units contribute, are summed, and each rank keeps its shard. The outputs go back to the rank
    whose samples they are. Source: Optimization (Part 2), "One weird trick"; Krizhevsky 2014, section 4, scheme (a).

    The border is the model's first fully connected layer. `batch_norm` as in DataParallel, for the convolutional
    part. Raises ValueError for models whose fully connected layers have no tensor plan, and for numbers of ranks
    that do not divide them.
    """

    def __init__(
        self,
        devices: int | str = "auto",
        batch_norm: Any = "synchronized",
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, batch_norm, max_restarts, timeout)
        self._sizes: list[int] = []

    def tensor_plan(self, config: Mapping[str, Any], model: nn.Module) -> Mapping[str, str]:
        super().tensor_plan(config, model)
        plan = dense_plan(model)
        if not plan:
            raise ValueError(
                f"parallelism=weird_trick: model={config['choices'].get('model', '')} ({type(model).__name__}) has no "
                "fully connected layers that can be shared; mlp, linear, lenet and alexnet_two_column have some"
            )
        return plan

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.weird_trick(step, self.world_size, self.is_synchronized)

    def connect(self, device: torch.device) -> None:
        super().connect(device)
        # a group of its own: what passes the border does not queue among the gradients
        group = dist.new_group(timeout=timedelta(seconds=self.timeout))
        self._member = Member(group, self.rank, self.world_size)

    def apply(self, model: nn.Module) -> nn.Module:
        self.split(model, dense_plan(model))
        dense = dense_children(model)
        self._gather_before(model.get_submodule(dense[0]))
        self._keep_after(model.get_submodule(dense[-1]))
        # their gradients are complete on each rank, which has passed the whole batch through them
        ours = [name for name, _ in model.named_parameters() if name.partition(".")[0] in dense]
        if len(ours) == len(list(model.parameters())):
            return model
        model._ddp_params_and_buffers_to_ignore = ours  # type: ignore[assignment]
        return DataParallel.apply(self, model)

    def use_global_batch(self, model: nn.Module, synchronize: bool = True) -> None:
        """Only the convolutional part sees shards; dropout and batch norm after it have the whole batch."""
        dense = dense_children(model)
        shared = nn.ModuleDict({name: child for name, child in model.named_children() if name not in dense})
        super().use_global_batch(shared, synchronize)
        for name, child in shared.items():
            setattr(model, name, child)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext() if self._wrapped is None else super().accumulating()

    def _gather_before(self, layer: nn.Module) -> None:
        inner: Any = layer.forward

        def forward(x: Tensor) -> Tensor:
            self._sizes = self._share_sizes(x.size(0))
            # not partial: the layer itself adds up the gradients of its inputs
            outputs: Tensor = inner(Gather.apply(x, self._member.group, 0, self._sizes, False))
            return outputs

        layer.forward = forward

    def _keep_after(self, layer: nn.Module) -> None:
        inner: Any = layer.forward

        def forward(x: Tensor) -> Tensor:
            outputs: Tensor = Keep.apply(inner(x), self._member.group, 0, self._sizes)
            return outputs

        layer.forward = forward

    def _share_sizes(self, size: int) -> list[int]:
        """How many samples each rank has, also where nothing says how many there are in all."""
        sizes: list[int] = gathered(torch.tensor([size]), self._control, 0, [1] * self.world_size).tolist()
        return sizes


def dense_children(model: nn.Module) -> list[str]:
    """The names of the model's children from its first fully connected layer on, in order; none without one."""
    names = [name for name, _ in model.named_children()]
    first = next((i for i, child in enumerate(model.children()) if isinstance(child, nn.Linear)), len(names))
    return names[first:]


def dense_plan(model: nn.Module) -> dict[str, str]:
    """The tensor plan of the fully connected part, whose input is whole; empty where it cannot be split."""
    dense = dense_children(model)
    plan = contracts.tensor_plan(model)
    if not dense or plan.get(dense[0]) not in _AT_THE_BORDER:
        return {}
    rest = {name: kind for name, kind in plan.items() if name.partition(".")[0] in dense}
    return rest | {dense[0]: _AT_THE_BORDER[plan[dense[0]]]}
